//! The worker's life: claim the engine, open it, replay the log, serve, leave.

use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Cache, WorkerState, futex, raise};
use kalamdb_engine::engine::{Engine, EngineConfig};
use kalamdb_engine::ids::Lsn;
use pgrx::{PgLogLevel, pg_sys};

use super::serve::{MainThreadWait, Outcome, Server, leave_with_postmaster};
use super::slot::Slot;
use super::{directory, signals, start, unlogged};
use crate::error::SqlError;
use crate::ffi::interrupts::check_for_interrupts;
use crate::{settings, shmem, wal};

/// How long a worker that cannot start stays, so that a fault that lasts does not fill the server's log.
const FAILED_START_PAUSE: Duration = Duration::from_secs(5);

/// How long latches may stay taken after the engine failed before the shared memory counts as damaged.
const LATCH_LIMIT: Duration = Duration::from_secs(2);

/// Records replayed between two looks at interrupts.
const REPLAY_BATCH: u32 = 512;

/// Whether this process is the worker that owns the engine.
static OWNER: AtomicBool = AtomicBool::new(false);

/// Runs the worker and returns the process' exit code: 0 ends the registration, 1 asks the postmaster for a restart.
pub fn run() -> c_int {
    let cache = match shmem::attach() {
        Ok(cache) => cache,
        Err(error) => {
            error.log(PgLogLevel::LOG);
            return 1;
        }
    };
    if !claim(cache) {
        return 0;
    }
    match open_and_serve(cache) {
        Ok(Outcome::Stopped) => 0,
        Ok(Outcome::Restart) => 1,
        Ok(Outcome::Failed(message)) => {
            engine_failed(cache, &message);
            1
        }
        Err(error) => {
            start_failed(cache, &error);
            1
        }
    }
}

/// Makes this process the one worker of the server; false if there is another.
fn claim(cache: &'static Cache) -> bool {
    let header = cache.header();
    // SAFETY: set once at the start of the process.
    let me = unsafe { pg_sys::MyProcPid }.unsigned_abs();
    if header.worker_pid.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return false;
    }
    OWNER.store(true, Ordering::Relaxed);
    if let Some(anchor) = shmem::anchor() {
        // After a crash restart the postmaster starts a dynamic worker again that the new shared memory knows nothing of.
        anchor.worker_registered.store(1, Ordering::Release);
    }
    header.set_worker_state(WorkerState::Starting);
    // SAFETY: the callbacks live in this library, which is never unloaded.
    unsafe {
        pg_sys::on_proc_exit(Some(leave_at_once), pg_sys::Datum::from(0));
        pg_sys::before_shmem_exit(Some(give_up_claim), pg_sys::Datum::from(0));
    }
    true
}

/// Runs while the shared memory is still mapped.
unsafe extern "C-unwind" fn give_up_claim(code: c_int, _argument: pg_sys::Datum) {
    // SAFETY: the cache was attached before the callback was registered.
    let Ok(cache) = shmem::attach() else { return };
    let header = cache.header();
    if !OWNER.swap(false, Ordering::Relaxed) {
        return;
    }
    if code == 0
        && let Some(anchor) = shmem::anchor()
    {
        anchor.worker_registered.store(u32::from(shmem::preloaded()), Ordering::Release);
    }
    if header.worker_state() != WorkerState::Failed {
        header.set_worker_state(WorkerState::Absent);
    }
    header.worker_pid.store(0, Ordering::Release);
    raise(&header.state_changed);
}

/// Ends the process without the C library's exit handlers, which would tear down RocksDB under threads that still run.
unsafe extern "C-unwind" fn leave_at_once(code: c_int, _argument: pg_sys::Datum) {
    // SAFETY: Postgres' own clean-up of shared memory is done when this is called.
    unsafe { libc::_exit(code) };
}

fn open_and_serve(cache: &'static Cache) -> Result<Outcome, SqlError> {
    start::check_prerequisites()?;
    let directory = directory::prepare()?;
    let slot = Slot::acquire()?;
    // The reader of the log sees what is on disk only, and after a failure of the engine alone there may be more.
    wal::flush(wal::end_lsn());
    let end = wal::flushed_lsn();
    let mut engine = open(cache, directory, end)?;
    if !replay(cache, &mut engine, end)? {
        return Ok(Outcome::Restart);
    }
    unlogged::empty_reset_tables(cache, &engine)?;
    signals::with_all_blocked(|| engine.finish_replay(end))?;
    Server::new(cache, engine, slot).run()
}

fn open(cache: &'static Cache, directory: PathBuf, end: Lsn) -> Result<Engine, SqlError> {
    // SAFETY: both read shared memory.
    let (system_identifier, timeline) = unsafe { (pg_sys::GetSystemIdentifier(), pg_sys::GetWALInsertionTimeLine()) };
    let config = EngineConfig {
        loaders: settings::loader_threads(),
        cold_loaders: settings::cold_loader_threads(),
        segments: directory::segments_directory(),
        // The main thread decides when checkpoints are made: it knows the settings of the moment.
        checkpoint_interval: Duration::MAX,
        checkpoint_log_bytes: u64::MAX,
        ..EngineConfig::new(directory, system_identifier, timeline, end)
    };
    Ok(signals::with_all_blocked(|| Engine::open(*cache, config))?)
}

/// Replays the log from the durable position to its end; false if the process was asked to leave meanwhile.
fn replay(cache: &'static Cache, engine: &mut Engine, end: Lsn) -> Result<bool, SqlError> {
    let from = engine.replay_from();
    let begun = Instant::now();
    let mut reader = wal::Reader::open(from)?;
    let mut records = 0u64;
    let mut more = true;
    engine.set_flushed(end);
    while more && reader.position() < end {
        // Any other wish to end this process is the checkpointer's, which wants the slot: it waits until replay is through.
        if signals::terminate_requested() && directory::server_is_stopping() {
            return Ok(false);
        }
        check_for_interrupts();
        super::serve::leave_with_postmaster();
        more = signals::with_all_blocked(|| replay_batch(cache, engine, &mut reader, end, &mut records))?;
    }
    if records > 0 {
        pgrx::log!("KalamDB replayed {records} log records from {from} to {end} in {} ms", begun.elapsed().as_millis());
    }
    Ok(true)
}

fn replay_batch(
    cache: &'static Cache,
    engine: &mut Engine,
    reader: &mut wal::Reader,
    end: Lsn,
    records: &mut u64,
) -> Result<bool, SqlError> {
    for _ in 0..REPLAY_BATCH {
        let Some(record) = reader.next()? else { return Ok(false) };
        // What backends logged meanwhile is in the cache, as they changed it there.
        if record.end > end {
            return Ok(false);
        }
        engine.replay(record.end, record.payload, &MainThreadWait::new(cache))?;
        *records += 1;
    }
    Ok(true)
}

/// Publishes why the engine cannot be opened, and stays a while.
fn start_failed(cache: &'static Cache, error: &SqlError) {
    let header = cache.header();
    if header.failure() != error.to_text() || header.generation.load(Ordering::Relaxed) <= 1 {
        error.log(PgLogLevel::LOG);
    }
    header.set_failure(&error.to_text());
    header.set_worker_state(WorkerState::Failed);
    let begun = Instant::now();
    while begun.elapsed() < FAILED_START_PAUSE && !signals::terminate_requested() {
        check_for_interrupts();
        leave_with_postmaster();
        futex::wait(&header.main_wake, header.main_wake.load(Ordering::Acquire));
    }
}

/// Logs the failure of an engine thread and makes sure that it left no page half changed.
fn engine_failed(cache: &'static Cache, message: &str) {
    pgrx::log!("the KalamDB engine failed and is started again: {message}");
    let begun = Instant::now();
    while cache.any_exclusive_latch() {
        if begun.elapsed() > LATCH_LIMIT {
            // Only the postmaster's crash restart makes the shared memory whole again.
            std::process::abort();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // Who waits for a page waits on, as the next worker is about to start.
    cache.header().set_worker_state(WorkerState::Absent);
}
