//! The worker's main loop: positions of the log, checkpoints, the slot, the sweep, shutdown.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Cache, Wait, futex, raise};
use kalamdb_engine::engine::{Engine, Ticket};
use kalamdb_engine::ids::Lsn;
use kalamdb_engine::{Error, ErrorKind};
use pgrx::pg_sys;

use super::slot::Slot;
use super::{directory, signals, sweeper};
use crate::error::SqlError;
use crate::ffi::interrupts::check_for_interrupts;
use crate::ffi::interrupts::postmaster_is_alive;
use crate::jobs::Launcher;
use crate::{settings, wal};

const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long the worker waits at shutdown for the processes that use the cache.
const USERS_LIMIT: Duration = Duration::from_secs(60);

/// How late the signal of a process may come that was seen waiting for the slot.
const SLOT_SIGNAL_DELAY: Duration = Duration::from_secs(1);

/// How long the engine may take for one thing that the main thread waits for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How long the store may refuse writes before the main thread waits for it no longer.
const STORE_FAILURE_LIMIT: Duration = Duration::from_secs(5);

/// Why the main loop ended.
pub enum Outcome {
    /// The server stops, and everything is in the store.
    Stopped,
    /// The process was asked to leave while the server goes on.
    Restart,
    /// An engine thread failed.
    Failed(String),
}

/// The running worker.
pub struct Server {
    cache: &'static Cache,
    engine: Engine,
    slot: Slot,
    /// The checkpoint on its way.
    pending: Option<Ticket>,
    last_checkpoint: Instant,
    last_sweep: Instant,
    launcher: Launcher,
    /// When another process was last seen waiting for the slot.
    slot_wanted: Option<Instant>,
}

/// Ends the process if the postmaster is gone.
pub fn leave_with_postmaster() {
    if !postmaster_is_alive() {
        // Nothing needs to be saved: the log has everything.
        // SAFETY: ends the process.
        unsafe { libc::_exit(1) };
    }
}

/// Publishes the positions of the log, after flushing it as far as the engine needs it.
fn publish_log_positions(cache: &Cache) {
    let header = cache.header();
    let wanted = Lsn(header.wanted_flush.load(Ordering::Acquire));
    if wanted > wal::flushed_lsn() {
        wal::flush(wanted);
    }
    let flushed = wal::flushed_lsn();
    header.insert_lsn.store(wal::end_lsn().0, Ordering::Release);
    if header.flushed_lsn.swap(flushed.0, Ordering::AcqRel) < flushed.0 {
        raise(&header.writer_wake);
    }
}

/// What the main thread does while it waits for the engine: what the engine needs of it.
pub struct MainThreadWait {
    cache: &'static Cache,
    begun: Instant,
    failing_since: Cell<Option<Instant>>,
}

impl MainThreadWait {
    /// A wait that begins now.
    pub fn new(cache: &'static Cache) -> MainThreadWait {
        MainThreadWait { cache, begun: Instant::now(), failing_since: Cell::new(None) }
    }
}

impl Wait for MainThreadWait {
    fn pause(&self) -> kalamdb_engine::Result<()> {
        leave_with_postmaster();
        check_for_interrupts();
        publish_log_positions(self.cache);
        match self.cache.header().store_failure("the KalamDB store takes no writes") {
            None => self.failing_since.set(None),
            Some(failure) => {
                let since = self.failing_since.get().unwrap_or_else(Instant::now);
                self.failing_since.set(Some(since));
                // The log has everything: to wait for a full disk would only keep the server from stopping.
                if since.elapsed() > STORE_FAILURE_LIMIT {
                    return Err(failure);
                }
            }
        }
        if self.begun.elapsed() < LONGEST_WAIT {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, "the KalamDB store did not become durable in time")
            .with_detail(format!("It took longer than {} s.", LONGEST_WAIT.as_secs()))
            .with_hint("Nothing is lost; look at the load of the device of the data directory."))
    }
}

impl Server {
    /// A server for an engine that is ready.
    pub fn new(cache: &'static Cache, engine: Engine, slot: Slot) -> Server {
        let now = Instant::now();
        publish_retention(cache);
        let launcher = Launcher::new(cache);
        Server { cache, engine, slot, pending: None, last_checkpoint: now, last_sweep: now, launcher, slot_wanted: None }
    }

    /// Serves until the server stops or the engine fails.
    ///
    /// # Errors
    /// What stops the main thread itself: an ERROR of Postgres, or a store that is not written in time at the end.
    pub fn run(mut self) -> Result<Outcome, SqlError> {
        let main_wake = &self.cache.header().main_wake;
        loop {
            let seen = main_wake.load(Ordering::Acquire);
            if let Some(message) = self.step()? {
                return Ok(Outcome::Failed(message));
            }
            if !signals::terminate_requested() {
                self.launcher.step();
            }
            if signals::terminate_requested() {
                let stopping = directory::server_is_stopping();
                if stopping || !self.is_slot_wanted() {
                    return self.stop(stopping);
                }
                // To leave would give up the log that the slot holds. Whoever wants it looks again when the slot moves.
                signals::forget_terminate_request();
            }
            futex::wait(main_wake, seen);
        }
    }

    /// One round of everything the main thread does; the message of the engine if it failed.
    fn step(&mut self) -> Result<Option<String>, SqlError> {
        leave_with_postmaster();
        check_for_interrupts();
        if signals::take_reload_request() {
            // SAFETY: called between statements, of which the worker has none.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
            publish_retention(self.cache);
            self.launcher.forget_limits();
        }
        publish_log_positions(self.cache);
        for message in self.engine.take_messages() {
            pgrx::log!("{message}");
        }
        if let Some(message) = self.engine.failure() {
            return Ok(Some(message));
        }
        if self.slot.is_wanted() {
            self.slot_wanted = Some(Instant::now());
        }
        self.slot.advance(self.engine.durable());
        self.start_checkpoint_if_due();
        if self.last_sweep.elapsed() >= SWEEP_INTERVAL {
            self.sweep();
        }
        Ok(None)
    }

    fn start_checkpoint_if_due(&mut self) {
        if self.pending.is_some_and(|ticket| !self.engine.is_complete(ticket)) {
            return;
        }
        self.pending = None;
        let header = self.cache.header();
        let asked = header.checkpoints_wanted.load(Ordering::Acquire) > header.checkpoints_done.load(Ordering::Acquire);
        if asked || self.is_checkpoint_due() {
            self.last_checkpoint = Instant::now();
            self.pending = Some(self.engine.checkpoint(flushed_end));
        }
    }

    fn is_checkpoint_due(&self) -> bool {
        let dirty = self.cache.header().dirty_units.load(Ordering::Relaxed);
        let distance = wal::insert_lsn().0.saturating_sub(self.engine.durable().0);
        let elapsed = self.last_checkpoint.elapsed();
        // A limit that is passed at once again must not make one checkpoint follow the other.
        let rested = elapsed >= Duration::from_secs(1);
        let anything = dirty > 0 || distance >= segment_bytes();
        (anything && elapsed >= settings::checkpoint_interval())
            || (rested && self.cache.is_changed_and_short(settings::checkpoint_dirty_percent()))
            || (rested && distance > recovery_limit())
            || self.slot.is_wanted()
            || wal::slot_limit().is_some_and(|limit| distance > (limit / 4).max(segment_bytes()))
    }

    /// Whether another process wanted the slot a moment ago; it signals this one and then waits for the slot.
    fn is_slot_wanted(&self) -> bool {
        self.slot.is_wanted() || self.slot_wanted.is_some_and(|when| when.elapsed() < SLOT_SIGNAL_DELAY)
    }

    fn sweep(&mut self) {
        self.last_sweep = Instant::now();
        for storage in sweeper::find_orphans(self.cache) {
            self.engine.purge(storage);
        }
    }

    /// Outlives all users of the cache, brings everything into the store and closes it.
    fn stop(mut self, stopping: bool) -> Result<Outcome, SqlError> {
        let begun = Instant::now();
        while stopping && self.users() > 0 && begun.elapsed() < USERS_LIMIT {
            if let Some(message) = self.step()? {
                return Ok(Outcome::Failed(message));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let Server { cache, engine, slot, .. } = self;
        let end = flushed_end();
        signals::with_all_blocked(|| engine.shutdown(end, &MainThreadWait::new(cache)))?;
        slot.advance(Lsn(cache.header().durable_lsn.load(Ordering::Acquire)));
        Ok(if stopping { Outcome::Stopped } else { Outcome::Restart })
    }

    fn users(&self) -> u32 {
        self.cache.header().attached.load(Ordering::Acquire)
    }
}

/// Tells the engine's threads how long files of segments are kept that nobody needs any more.
fn publish_retention(cache: &Cache) {
    cache.header().segment_retention.store(settings::segment_retention().as_secs(), Ordering::Relaxed);
}

/// The end of the log, flushed up to there.
///
/// The store must never be ahead of the log on disk: after a crash its positions would be given out again.
fn flushed_end() -> Lsn {
    let end = wal::end_lsn();
    wal::flush(end);
    end
}

fn segment_bytes() -> u64 {
    // SAFETY: set once at the start of the server.
    unsafe { pg_sys::wal_segment_size as u64 }
}

/// How far the log may run ahead of the store: it bounds the time of a replay and the log that the slot holds.
fn recovery_limit() -> u64 {
    // SAFETY: a setting of the server, changed only by this process when it reads its configuration.
    let max_wal_mb = unsafe { pg_sys::max_wal_size_mb };
    (u64::from(max_wal_mb.unsigned_abs()) << 19).max(segment_bytes())
}
