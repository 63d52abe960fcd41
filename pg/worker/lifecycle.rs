//! The worker's life: claim the engine, open it, replay the log, serve, leave.

use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Cache, WorkerState, futex, raise};
use kalamdb_engine::engine::{Engine, OpenOptions};
use kalamdb_engine::ids::Lsn;
use kalamdb_engine::{Error, ErrorKind};
use pgrx::{PgLogLevel, pg_sys};

use super::serve::{Outcome, Server};
use super::slot::Slot;
use super::{directory, signals, start};
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
    let engine = open(cache, directory)?;
    if !recover(cache, &engine)? {
        return Ok(Outcome::Restart);
    }
    Server::new(cache, engine, slot).run()
}

fn open(cache: &'static Cache, directory: PathBuf) -> Result<Engine, SqlError> {
    // SAFETY: both read shared memory.
    let (system_identifier, timeline) = unsafe { (pg_sys::GetSystemIdentifier(), pg_sys::GetWALInsertionTimeLine()) };
    let options = OpenOptions { directory, system_identifier, timeline, loader_threads: settings::loader_threads() };
    Ok(signals::with_all_blocked(|| Engine::open(*cache, options))?)
}

/// Replays the log from the durable position to its end; false if the process was asked to leave meanwhile.
fn recover(cache: &'static Cache, engine: &Engine) -> Result<bool, SqlError> {
    cache.header().set_worker_state(WorkerState::Recovering);
    // The reader sees what is on disk only, and after a failure of the engine alone there may be more.
    wal::flush(wal::end_lsn());
    let end = wal::flushed_lsn();
    if let Some(from) = engine.replay_from() {
        if from > end {
            return Err(behind_the_log(from, end));
        }
        if !replay(engine, from, end)? {
            return Ok(false);
        }
    }
    signals::with_all_blocked(|| engine.finish_replay(end))?;
    cache.header().set_worker_state(WorkerState::Ready);
    Ok(true)
}

fn replay(engine: &Engine, from: Lsn, end: Lsn) -> Result<bool, SqlError> {
    let begun = Instant::now();
    let mut reader = wal::Reader::open(from)?;
    let mut records = 0u64;
    let mut more = true;
    while more && reader.position() < end {
        if signals::terminate_requested() {
            return Ok(false);
        }
        check_for_interrupts();
        more = signals::with_all_blocked(|| replay_batch(engine, &mut reader, &mut records))?;
    }
    if records > 0 {
        pgrx::log!("KalamDB replayed {records} log records from {from} to {end} in {} ms", begun.elapsed().as_millis());
    }
    Ok(true)
}

fn replay_batch(engine: &Engine, reader: &mut wal::Reader, records: &mut u64) -> Result<bool, SqlError> {
    for _ in 0..REPLAY_BATCH {
        let Some(record) = reader.next()? else { return Ok(false) };
        engine.replay(record.end, record.payload)?;
        *records += 1;
    }
    Ok(true)
}

#[cold]
fn behind_the_log(from: Lsn, end: Lsn) -> SqlError {
    Error::new(ErrorKind::StorageMissing, "the KalamDB store is ahead of the server's write-ahead log")
        .with_detail(format!("The store contains everything before {from}, the log ends at {end}."))
        .with_hint("The data directory was restored or reset in parts; restore the whole cluster from one backup.")
        .into()
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
        // SAFETY: asks the operating system.
        if !unsafe { super::serve::postmaster_is_alive() } {
            return;
        }
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
}
