//! Tells the audit log for whom sessions act by the setting `kalam.user_id`: an entry for each user, role and client's address, once an
//! hour.
//!
//! A gateway sets it for every transaction, so an entry for each would cost more than the transaction's own work. The sessions of a
//! server tell each other what they have told.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;

use pgrx::{pg_guard, pg_sys};

use super::audit::Event;
use super::control_table::{Lasts, flush_log};
use super::known::{KnownUser, Told};
use super::session::{current_login, setting, statement_time};
use super::user_of_role;
use crate::error::{OrRaise, SqlError};
use crate::ffi::catalog::on_change;
use crate::ffi::{extension, plain};
use crate::settings;
use crate::shmem::{attached_cache, preloaded};

const HOUR: i64 = 3600;

thread_local! {
    /// The OID of the audit log's table, 0 in a database without the extension; nothing when that is to be looked up.
    static LOG: Cell<Option<u32>> = const { Cell::new(None) };
    /// Whether this process is a parallel worker that has loaded the library because its leader has.
    static LOADED_WITH_LEADER: Cell<bool> = const { Cell::new(false) };
    static ADDRESS: OnceCell<Rc<[u8]>> = const { OnceCell::new() };
}

/// Called when a process loads the library.
pub fn init() {
    // SAFETY: a value of the process.
    LOADED_WITH_LEADER.set(unsafe { pg_sys::InitializingParallelWorker });
    on_change(pg_sys::SysCacheIdentifier::NAMESPACEOID, forget_log);
    on_change(pg_sys::SysCacheIdentifier::RELNAMENSP, forget_log);
}

unsafe extern "C-unwind" fn forget_log(_argument: pg_sys::Datum, _cache: std::ffi::c_int, _hash: u32) {
    LOG.set(None);
}

/// The OID of the audit log's table; 0 in a database without the extension.
fn log_table() -> u32 {
    LOG.get().unwrap_or_else(|| {
        let log = extension::relation(c"audit_log").map_or(0, |log| log.to_u32());
        LOG.set(Some(log));
        log
    })
}

/// Called when a statement that may see rows of users begins, and for each row that COPY brings.
pub fn note() {
    note_for(false);
}

/// As [`note`], for callers without a guard and a statement that may start parallel workers: those have to find that it was told.
#[pg_guard]
pub extern "C-unwind" fn note_with_workers() {
    note_for(true);
}

/// Whether this process, if it is a parallel worker, has the settings of the library that its leader has: they cannot be taken over later.
pub fn knows_session() -> bool {
    preloaded() || LOADED_WITH_LEADER.get()
}

fn note_for(workers: bool) {
    // Who has logged in acts for oneself.
    if settings::audits_user_id()
        && current_login().is_none()
        && let Some(user) = setting()
    {
        note_user(&user, workers).or_raise();
    }
}

/// The address of the client, which stays what it is; nothing for a client on this machine and in processes without one.
fn client_address() -> Rc<[u8]> {
    ADDRESS.with(|address| Rc::clone(address.get_or_init(|| client_address_bytes().into())))
}

fn client_address_bytes<'a>() -> &'a [u8] {
    // SAFETY: the function of Postgres takes no argument; its result is copied by the caller.
    unsafe {
        let address = pgrx::direct_function_call_as_datum(pg_sys::inet_client_addr, &[]);
        address.map_or(&[], |address| pgrx::varlena_to_byte_slice(address.cast_mut_ptr()))
    }
}

fn note_user(user: &KnownUser, workers: bool) -> Result<(), SqlError> {
    // SAFETY: a value of the process.
    let role = unsafe { plain::GetOuterUserId() }.to_u32();
    let told = Told { role, log: log_table(), hour: statement_time() / HOUR };
    let is_told = user.told.get() == told;
    // SAFETY: as above.
    let in_recovery = || unsafe { plain::RecoveryInProgress() };
    // A database without the extension has no user tables. Who acts for oneself acts for nobody else, as long as the role has this name.
    if (is_told && !workers) || told.log == 0 || in_recovery() || user_of_role().is_ok_and(|role| role.name() == user.name()) {
        return Ok(());
    }
    // SAFETY: as above.
    let database = unsafe { pg_sys::MyDatabaseId };
    let member = ("set_user_id", database.to_u32(), told.log, role, user.name(), client_address(), told.hour);
    let others = attached_cache().map(|cache| cache.recent());
    if !others.is_some_and(|others| others.contains(&member)) {
        if !is_told {
            tell(user)?;
        }
        others.inspect(|others| others.insert(&member));
    }
    user.told.set(told);
    Ok(())
}

/// Writes the entry. It is in the log file before the statement shows anything, unless the transaction's own commit would not be.
fn tell(user: &KnownUser) -> Result<(), SqlError> {
    // SAFETY: a value of the process.
    if unsafe { plain::IsInParallelMode() } {
        // Nothing can be written then. A leader with the library has told of it before it started workers.
        if knows_session() {
            return Ok(());
        }
        return Err(SqlError::prerequisite("the session acts for a user that the audit log has not been told of")
            .with_detail("A parallel worker cannot do that, and its leader has not loaded the library.")
            .with_hint("Use LOAD 'kalamdb' first, or put the library into \"shared_preload_libraries\"."));
    }
    Event::about("set_user_id", user.name()).by_role().record(Lasts::ForGood)?;
    // SAFETY: a setting of the process.
    if unsafe { pg_sys::synchronous_commit } > pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32 {
        flush_log();
    }
    Ok(())
}
