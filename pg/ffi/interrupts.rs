//! Waits that stay interruptible, and sections that must not be interrupted.

use std::cell::Cell;
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Cache, Wait, WorkerState};
use kalamdb_engine::{Error, ErrorKind, Result};
use pgrx::pg_sys;

use crate::error::SqlError;
use crate::ffi::{compat, plain};

/// How long a backend waits for a worker that is not there before it gives up.
const WORKER_ABSENCE_LIMIT: Duration = Duration::from_secs(10);

/// The longest sleep without a look at interrupts.
const SLICE: Duration = Duration::from_millis(100);

/// What a backend does while it waits for the engine: serve interrupts, and give up when the engine is gone.
///
/// An interrupt that ends the statement or the session ends the wait with an error instead of being served inside it: leaving
/// the process here would leave pins behind, which only unwinding gives back.
pub struct BackendWait {
    cache: Cache,
    absent_since: Cell<Option<Instant>>,
}

impl BackendWait {
    /// A wait for the engine behind a cache.
    pub fn new(cache: &Cache) -> BackendWait {
        BackendWait { cache: *cache, absent_since: Cell::new(None) }
    }

    fn check_worker(&self) -> Result<()> {
        let header = self.cache.header();
        match header.worker_state() {
            WorkerState::Starting | WorkerState::Recovering | WorkerState::Ready => {
                self.absent_since.set(None);
                return Ok(());
            }
            WorkerState::Failed => {
                if let Some(failure) = SqlError::from_text(&header.failure()) {
                    return Err(failure.into());
                }
            }
            WorkerState::Absent | WorkerState::Stopping => {}
        }
        let since = self.absent_since.get().unwrap_or_else(|| {
            let now = Instant::now();
            self.absent_since.set(Some(now));
            now
        });
        if since.elapsed() < WORKER_ABSENCE_LIMIT {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, "the KalamDB engine is not running")
            .with_hint("It is started again by itself; see the server's log if this does not go away."))
    }
}

impl Wait for BackendWait {
    fn pause(&self) -> Result<()> {
        if interrupt_ends_statement() {
            return Err(Error::new(ErrorKind::Cancelled, "canceling statement due to user request"));
        }
        check_for_interrupts();
        exit_without_postmaster();
        self.check_worker()
    }
}

/// What a backend does while it waits for something that is not the engine: serve interrupts.
pub struct StatementWait;

impl Wait for StatementWait {
    fn pause(&self) -> Result<()> {
        if interrupt_ends_statement() {
            return Err(Error::new(ErrorKind::Cancelled, "canceling statement due to user request"));
        }
        check_for_interrupts();
        exit_without_postmaster();
        Ok(())
    }
}

/// Whether the postmaster lives; asks the operating system.
pub fn postmaster_is_alive() -> bool {
    unsafe extern "C-unwind" {
        fn PostmasterIsAliveInternal() -> bool;
    }
    // SAFETY: reads a pipe without waiting.
    unsafe { PostmasterIsAliveInternal() }
}

/// Ends the process when the postmaster is gone, as every wait of Postgres does: the worker is gone then too, and nobody will
/// end the wait. The shared memory is of no use to anybody any more.
pub fn exit_without_postmaster() {
    if !postmaster_is_alive() {
        // SAFETY: leaving runs the process' own exit callbacks.
        unsafe { pg_sys::proc_exit(1) };
    }
}

/// Whether serving interrupts now would end the statement or the session.
fn interrupt_ends_statement() -> bool {
    // SAFETY: flags and counters of this process, set by its signal handlers.
    unsafe {
        if pg_sys::InterruptPending == 0 || pg_sys::InterruptHoldoffCount != 0 || pg_sys::CritSectionCount != 0 {
            return false;
        }
        look_at_client();
        let cancelled = pg_sys::QueryCancelPending != 0 && pg_sys::QueryCancelHoldoffCount == 0;
        cancelled || pg_sys::ProcDiePending != 0 || pg_sys::ClientConnectionLost != 0 || compat::transaction_timed_out()
    }
}

/// Looks whether the client is there still if that is due (`client_connection_check_interval`): Postgres itself would leave the process at
/// once.
unsafe fn look_at_client() {
    // SAFETY: flags of this process; the connection is there as long as the process serves a client.
    unsafe {
        let interval = pg_sys::client_connection_check_interval;
        if pg_sys::CheckClientConnectionPending == 0 || interval <= 0 {
            return;
        }
        if plain::pq_check_connection() {
            pg_sys::CheckClientConnectionPending = 0;
            plain::enable_timeout_after(compat::CLIENT_CONNECTION_CHECK_TIMEOUT, interval);
        } else {
            // Postgres' own look, once nothing is held, ends the session.
            pg_sys::ClientConnectionLost = 1;
        }
    }
}

/// Whether serving interrupts now would end the session.
pub fn interrupt_ends_session() -> bool {
    // SAFETY: as above.
    unsafe { pg_sys::ProcDiePending != 0 || pg_sys::ClientConnectionLost != 0 || compat::transaction_timed_out() }
}

/// Serves interrupts if there are any: may end the statement or the process.
#[inline]
pub fn check_for_interrupts() {
    // Postgres itself does nothing here while interrupts are held off or a critical section is open.
    pg_sys::check_for_interrupts!();
}

/// Holds interrupts off, as taking a lightweight lock does; nests.
pub fn hold_interrupts() {
    // SAFETY: the counter belongs to this process' only thread that runs Postgres code.
    unsafe { pg_sys::InterruptHoldoffCount += 1 };
}

/// Undoes one [`hold_interrupts`].
pub fn resume_interrupts() {
    // SAFETY: as above. Postgres resets the counter to zero when it raises an ERROR, before guards are dropped.
    unsafe { pg_sys::InterruptHoldoffCount = pg_sys::InterruptHoldoffCount.saturating_sub(1) };
}

/// A stretch in which every ERROR becomes a PANIC: from the first change of a shared page to its log record.
#[must_use = "the section ends when this is dropped"]
pub struct CriticalSection {
    // Not Send: the counter belongs to the thread that runs Postgres code.
    _thread: std::marker::PhantomData<*mut ()>,
}

impl CriticalSection {
    /// Opens the section.
    #[inline]
    pub fn enter() -> CriticalSection {
        // SAFETY: the counter belongs to this process' only thread that runs Postgres code.
        unsafe { pg_sys::CritSectionCount += 1 };
        CriticalSection { _thread: std::marker::PhantomData }
    }
}

impl Drop for CriticalSection {
    #[inline]
    fn drop(&mut self) {
        // A panic inside leaves the page half changed: the section stays open, so that the report that follows is a PANIC.
        if !std::thread::panicking() {
            // SAFETY: as in `enter`, which raised the counter.
            unsafe { pg_sys::CritSectionCount -= 1 };
        }
    }
}

/// Sleeps for a while, serving interrupts.
pub fn sleep(time: Duration) {
    let end = Instant::now() + time;
    loop {
        check_for_interrupts();
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        let milliseconds = (left.min(SLICE).as_millis() as std::ffi::c_long).max(1);
        // SAFETY: the latch is this process' own.
        unsafe {
            let woken = pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, pg_sys::PG_WAIT_EXTENSION);
            if woken as u32 & pg_sys::WL_LATCH_SET != 0 {
                pg_sys::ResetLatch(pg_sys::MyLatch);
            }
        }
    }
}
