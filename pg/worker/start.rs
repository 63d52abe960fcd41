//! Gets the engine worker running and waits for it.
//!
//! A preloaded library registers the worker with the postmaster. Otherwise the first process that needs it registers a
//! dynamic worker under AddinShmemInitLock, so that one of many simultaneous first users does; should two workers meet
//! nevertheless, the second leaves with exit code 0 and is not started again.

use std::ffi::c_char;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Cache, Duty, WorkerState, futex};
use kalamdb_engine::{Error, ErrorKind};
use pgrx::pg_sys;

use crate::error::SqlError;
use crate::ffi::interrupts::{check_for_interrupts, exit_without_postmaster};
use crate::shmem::{self, AddinLock};

/// Seconds after which the postmaster starts a worker again that left with an error.
const RESTART_SECONDS: i32 = 1;

/// How long the first user waits for a worker process to appear.
const APPEARANCE_LIMIT: Duration = Duration::from_secs(30);

/// Registers the worker if the postmaster is loading the library.
pub fn init() {
    if shmem::preloading() {
        let mut registration = registration();
        // SAFETY: the registration is copied.
        unsafe { pg_sys::RegisterBackgroundWorker(&raw mut registration) };
    }
}

fn registration() -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
        bgw_restart_time: RESTART_SECONDS,
        ..Default::default()
    };
    write_name(&mut worker.bgw_name, "kalamdb engine");
    write_name(&mut worker.bgw_type, "kalamdb engine");
    write_name(&mut worker.bgw_library_name, "$libdir/kalamdb");
    write_name(&mut worker.bgw_function_name, "kalamdb_worker_main");
    worker
}

/// The registration of a process that runs jobs: the launcher alone starts one again.
pub fn job_registration(duty: Duty, argument: pg_sys::Datum) -> pg_sys::BackgroundWorker {
    const NEVER: i32 = -1;
    let mut worker = registration();
    worker.bgw_restart_time = NEVER;
    worker.bgw_main_arg = argument;
    // SAFETY: set once at the start of the process.
    worker.bgw_notify_pid = unsafe { pg_sys::MyProcPid };
    worker.bgw_name = [0; 96];
    worker.bgw_type = [0; 96];
    worker.bgw_function_name = [0; 96];
    write_name(&mut worker.bgw_name, if duty == Duty::Keeper { "kalamdb job table" } else { "kalamdb job" });
    write_name(&mut worker.bgw_type, "kalamdb job");
    write_name(&mut worker.bgw_function_name, "kalamdb_job_main");
    worker
}

fn write_name(target: &mut [c_char], name: &str) {
    for (place, byte) in target.iter_mut().zip(name.bytes()) {
        *place = byte as c_char;
    }
}

/// Checks what the server must be configured for before the engine can keep data.
///
/// # Errors
/// 55000 with the setting to change.
pub fn check_prerequisites() -> Result<(), SqlError> {
    // SAFETY: settings of the server, constant or changed only by this process itself.
    let (wal_level, slots, keep_size) =
        unsafe { (pg_sys::wal_level, pg_sys::max_replication_slots, pg_sys::max_slot_wal_keep_size_mb) };
    if wal_level < pg_sys::WalLevel::WAL_LEVEL_REPLICA as i32 {
        return Err(SqlError::prerequisite("KalamDB needs \"wal_level\" to be \"replica\" or higher")
            .with_detail("The engine recovers its tables from the server's write-ahead log.")
            .with_hint("Set \"wal_level = replica\" and restart the server."));
    }
    if slots < 1 {
        return Err(SqlError::prerequisite("KalamDB needs a replication slot")
            .with_detail("The slot keeps the write-ahead log that the engine has not made durable itself yet.")
            .with_hint("Set \"max_replication_slots\" to 4 or more and restart the server."));
    }
    if !shmem::preloaded() && keep_size != -1 {
        return Err(SqlError::prerequisite("KalamDB without preload needs \"max_slot_wal_keep_size\" to be -1")
            .with_detail("The engine is started on first use, and until then the server could remove log that it needs.")
            .with_hint("Set \"max_slot_wal_keep_size = -1\", or add kalamdb to \"shared_preload_libraries\"."));
    }
    Ok(())
}

/// Waits until the engine can be used, starting its worker if there is none.
///
/// # Errors
/// What the worker failed with, or `Unavailable` if none appears.
pub fn wait_until_ready(cache: &Cache) -> Result<(), SqlError> {
    let header = cache.header();
    let begun = Instant::now();
    loop {
        let seen = header.state_changed.load(Ordering::Acquire);
        match header.worker_state() {
            WorkerState::Ready => return Ok(()),
            WorkerState::Failed => {
                if let Some(failure) = SqlError::from_text(&header.failure()) {
                    return Err(failure);
                }
            }
            WorkerState::Absent => {
                register_once()?;
                if begun.elapsed() > APPEARANCE_LIMIT {
                    return Err(Error::new(ErrorKind::Unavailable, "the KalamDB engine did not start")
                        .with_hint("See the server's log; \"max_worker_processes\" may be too small.")
                        .into());
                }
            }
            WorkerState::Starting | WorkerState::Recovering | WorkerState::Stopping => {}
        }
        check_for_interrupts();
        exit_without_postmaster();
        futex::wait(&header.state_changed, seen);
    }
}

/// Registers a dynamic worker if none is registered.
fn register_once() -> Result<(), SqlError> {
    let _lock = AddinLock::acquire();
    let Some(anchor) = shmem::anchor() else {
        return Err(Error::internal("the engine's shared memory is not attached").into());
    };
    if anchor.worker_registered.load(Ordering::Acquire) != 0 {
        return Ok(());
    }
    let mut registration = registration();
    // SAFETY: the registration is copied; no handle is asked for.
    if !unsafe { pg_sys::RegisterDynamicBackgroundWorker(&raw mut registration, std::ptr::null_mut()) } {
        return Err(SqlError::configuration_limit("could not register the KalamDB engine as a background worker")
            .with_detail("All background worker slots are in use.")
            .with_hint("Raise \"max_worker_processes\" and restart the server."));
    }
    anchor.worker_registered.store(1, Ordering::Release);
    Ok(())
}
