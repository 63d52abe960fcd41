//! A job process: its start, its signals, its transactions, its end.

use std::ffi::{CStr, c_int};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use kalamdb_engine::cache::{Cache, Duty, JobProcess, monotonic_ms, wanted};
use pgrx::prelude::*;

use super::{keeper, runner};
use crate::error::{OrRaise, SqlError, catching, raise};
use crate::ffi::interrupts::check_for_interrupts;
use crate::ffi::{compat, extension};
use crate::shmem;

static TERMINATE: AtomicBool = AtomicBool::new(false);

/// The process' place on the board plus one; 0 in any other process.
static PLACE: AtomicUsize = AtomicUsize::new(0);
static DATABASE: AtomicU32 = AtomicU32::new(0);

/// Whether the last transaction found the extension missing.
static WITHOUT_EXTENSION: AtomicBool = AtomicBool::new(false);

/// Settings that a database or a configuration file may have for its sessions and that jobs must not run under.
const SETTINGS: [(&CStr, &CStr); 9] = [
    (c"datestyle", c"ISO, MDY"),
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"statement_timeout", c"0"),
    (c"lock_timeout", c"0"),
    (c"idle_in_transaction_session_timeout", c"0"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"row_security", c"off"),
    (c"session_replication_role", c"origin"),
];

/// Where a process stands on the board.
#[derive(Clone, Copy)]
pub struct Me {
    /// The page cache.
    pub cache: &'static Cache,
    /// The entry of this process.
    pub process: &'static JobProcess,
    /// Its number.
    pub place: usize,
    /// OID of the database.
    pub database: u32,
}

/// Whether this process is one that runs jobs.
pub fn is_job() -> bool {
    PLACE.load(Ordering::Relaxed) != 0
}

/// The argument that tells a process its place and its database.
pub fn argument(place: usize, database: u32) -> pg_sys::Datum {
    pg_sys::Datum::from((place as u64) << 32 | u64::from(database))
}

unsafe extern "C-unwind" fn on_terminate(_signal: c_int) {
    TERMINATE.store(true, Ordering::Relaxed);
    // What runs ends with an error, so that the job's row can say why.
    // SAFETY: flags that signal handlers of Postgres set in the same way.
    unsafe {
        pg_sys::QueryCancelPending = 1;
        pg_sys::InterruptPending = 1;
        // A wait for a lock ends only if it is woken.
        pg_sys::SetLatch(pg_sys::MyLatch);
    }
}

unsafe extern "C-unwind" fn on_reload(_signal: c_int) {
    // SAFETY: the flag that Postgres' own handler sets.
    unsafe { pg_sys::ConfigReloadPending = 1 };
}

/// Whether the process was asked to leave.
pub fn terminate_requested() -> bool {
    TERMINATE.load(Ordering::Relaxed)
}

/// The process' entry, called by Postgres by name.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn kalamdb_job_main(argument: pg_sys::Datum) {
    let argument = argument.value() as u64;
    let (place, database) = ((argument >> 32) as usize, argument as u32);
    // SAFETY: the handlers only set flags; then signals are let through, and the process connects as the bootstrap superuser.
    unsafe {
        compat::handle_signal(libc::SIGTERM, Some(on_terminate));
        compat::handle_signal(libc::SIGHUP, Some(on_reload));
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database.into(), pg_sys::InvalidOid, 0);
        for (name, value) in SETTINGS {
            let context = pg_sys::GucContext::PGC_SUSET;
            pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), context, pg_sys::GucSource::PGC_S_OVERRIDE);
        }
    }
    let cache = shmem::engine_cache();
    // SAFETY: set once at the start of the process.
    let pid = unsafe { pg_sys::MyProcPid }.unsigned_abs();
    let Some(duty) = cache.jobs().process_began(place, database, pid) else { return };
    PLACE.store(place + 1, Ordering::Relaxed);
    DATABASE.store(database, Ordering::Relaxed);
    // SAFETY: the callback lives in this library, which is never unloaded.
    unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0)) };
    let me = Me { cache, process: cache.jobs().process(place), place, database };
    match transaction(c"KalamDB: looking for the extension", || Ok(())) {
        Ok(()) => {}
        Err(_) if is_without_extension() => {
            forget_database(me);
            return;
        }
        Err(error) => {
            error.log(PgLogLevel::LOG);
            return;
        }
    }
    match duty {
        Duty::Keeper => keeper::run(me),
        Duty::Runner => runner::run(me),
    }
    if is_without_extension() {
        forget_database(me);
    }
}

/// Whether the extension was found to be missing: it was dropped, or its tables are still those of the rows of a template database.
fn is_without_extension() -> bool {
    WITHOUT_EXTENSION.load(Ordering::Relaxed)
}

/// Gives up a database without the extension: nobody is started for it again until something is wanted there.
fn forget_database(me: Me) {
    me.cache.jobs().forget_database(me.database);
    me.cache.jobs().refuse_requests(me.database, &keeper::refusal(&extension::missing()));
}

/// Tells the engine worker what the process leaves behind.
unsafe extern "C-unwind" fn at_exit(_code: c_int, _argument: pg_sys::Datum) {
    let place = PLACE.swap(0, Ordering::Relaxed);
    let Ok(cache) = shmem::attach() else { return };
    if place == 0 {
        return;
    }
    let board = cache.jobs();
    if board.process_ended(place - 1) != 0 {
        board.want(DATABASE.load(Ordering::Relaxed), wanted::HOUSEKEEPING);
    }
    board.tell_job_changed();
    kalamdb_engine::cache::raise(&cache.header().main_wake);
}

/// Runs a function in a transaction of its own, which keeps the extension from being dropped. An error ends the transaction and not the
/// process.
///
/// # Errors
/// The function's, or what Postgres raised; 55000 where the extension is not installed.
pub fn transaction<R>(activity: &CStr, run: impl FnOnce() -> Result<R, SqlError>) -> Result<R, SqlError> {
    let result = catching(|| {
        // SAFETY: the process has a database connection and no transaction is open; the snapshot is popped before the commit.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr());
        }
        let is_installed = extension::hold_in_job();
        WITHOUT_EXTENSION.store(!is_installed, Ordering::Relaxed);
        if !is_installed {
            raise(extension::missing());
        }
        let result = run().or_raise();
        // SAFETY: as above.
        unsafe {
            if pg_sys::ActiveSnapshotSet() {
                pg_sys::PopActiveSnapshot();
            }
            pg_sys::CommitTransactionCommand();
        }
        result
    });
    extension::released();
    if result.is_err() {
        // SAFETY: ends whatever transaction is open.
        unsafe { pg_sys::AbortCurrentTransaction() };
    }
    // SAFETY: no transaction is open.
    unsafe {
        pg_sys::pgstat_report_stat(true);
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
    result
}

/// What a process does between two things: serves interrupts, reads changed settings. Nothing is there that could be cancelled.
pub fn pause() {
    // SAFETY: flags of the process; no transaction is open.
    unsafe {
        pg_sys::QueryCancelPending = 0;
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
    check_for_interrupts();
}

/// Has a runner look at the job table in so many milliseconds, if any.
pub fn wake_at(me: Me, milliseconds: Option<u64>) {
    if let Some(milliseconds) = milliseconds {
        // The table's clock is finer than the board's.
        me.cache.jobs().want_at(me.database, now() + milliseconds + 1);
    }
}

/// The time on the board's clock.
pub fn now() -> u64 {
    monotonic_ms()
}
