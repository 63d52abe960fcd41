//! Tells the audit log for whom sessions act by the setting `kalam.user_id`: an entry for each user, role and client's address, once an
//! hour.
//!
//! A gateway sets it for every transaction, so an entry for each would cost more than the transaction's own work. The sessions of a
//! server tell each other what they have told.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::{pg_guard, pg_sys};

use super::audit::Event;
use super::control_table::{ControlTable, Lasts};
use super::outer_role_name;
use super::session::{current_login, setting, statement_time, with_setting};
use crate::error::{OrRaise, SqlError};
use crate::ffi::plain;
use crate::settings;
use crate::shmem::{attached_cache, preloaded};

const HOUR: i64 = 3600;

/// The role, the user and the hour of what the session has told last, for the many statements in a row that are for the same user.
#[derive(Default)]
struct Told {
    role: u32,
    user: String,
    hour: i64,
}

thread_local! {
    static TOLD: RefCell<Told> = RefCell::default();
    static ADDRESS: OnceCell<Rc<[u8]>> = const { OnceCell::new() };
}

/// Whether this process is a parallel worker that has loaded the library because its leader has.
static LOADED_WITH_LEADER: AtomicBool = AtomicBool::new(false);

/// Called when a process loads the library.
pub fn init() {
    // SAFETY: a value of the process.
    LOADED_WITH_LEADER.store(unsafe { pg_sys::InitializingParallelWorker }, Ordering::Relaxed);
}

/// Called when a statement that may see rows of users begins, and for each row that COPY brings.
pub fn note() {
    if !settings::audits_user_id() {
        return;
    }
    // SAFETY: a value of the process.
    let role = unsafe { plain::GetOuterUserId() }.to_u32();
    let hour = statement_time() / HOUR;
    let is_told = |user: &str| TOLD.with_borrow(|told| told.role == role && told.hour == hour && told.user == user);
    if with_setting(is_told) == Some(false)
        && let Some(user) = setting()
    {
        note_user(role, user, hour).or_raise();
    }
}

/// As [`note`], for callers without a guard.
#[pg_guard]
pub extern "C-unwind" fn note_guarded() {
    note();
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

fn note_user(role: u32, user: String, hour: i64) -> Result<(), SqlError> {
    // Who acts for oneself acts for nobody else, as long as the role has this name.
    // SAFETY: a value of the process.
    if current_login().is_some() || unsafe { plain::RecoveryInProgress() } || *outer_role_name()? == *user {
        return Ok(());
    }
    // A database without the extension has no user tables.
    let Some(log) = ControlTable::find(c"audit_log") else { return Ok(()) };
    // SAFETY: a value of the process.
    let database = unsafe { pg_sys::MyDatabaseId };
    let told = ("set_user_id", database.to_u32(), log.to_u32(), role, &user, client_address(), hour);
    let others = attached_cache().map(|cache| cache.recent());
    if !others.is_some_and(|others| others.contains(&told)) {
        // SAFETY: a value of the process.
        if unsafe { plain::IsInParallelMode() } {
            return refuse_unseen_worker();
        }
        Event::about("set_user_id", &user).by_role().record(Lasts::ForGood)?;
        others.inspect(|others| others.insert(&told));
    }
    TOLD.set(Told { role, user, hour });
    Ok(())
}

/// In parallel mode nothing can be written. The leader has told of it when the statement began, unless it had not loaded the library.
fn refuse_unseen_worker() -> Result<(), SqlError> {
    if preloaded() || LOADED_WITH_LEADER.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(SqlError::prerequisite("the session acts for a user that the audit log has not been told of")
        .with_detail("A parallel worker cannot do that, and its leader has not loaded the library.")
        .with_hint("Use LOAD 'kalamdb' first, or put the library into \"shared_preload_libraries\"."))
}
