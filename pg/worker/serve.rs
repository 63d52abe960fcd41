//! The worker's main loop: positions of the log, checkpoints, the slot, the sweep, shutdown.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Cache, WorkerState, futex, raise};
use kalamdb_engine::engine::Engine;
use kalamdb_engine::ids::Lsn;
use pgrx::pg_sys;

use super::slot::Slot;
use super::{directory, signals, sweeper};
use crate::error::SqlError;
use crate::ffi::interrupts::check_for_interrupts;
use crate::{settings, wal};

const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long the worker waits at shutdown for the processes that use the cache.
const USERS_LIMIT: Duration = Duration::from_secs(60);

/// How long the last checkpoint may take without getting anywhere.
const LAST_CHECKPOINT_LIMIT: Duration = Duration::from_secs(300);

/// Why the main loop ended.
pub enum Outcome {
    /// The server stops, and everything is in the store.
    Stopped,
    /// The process was asked to leave while the server goes on.
    Restart,
    /// An engine thread failed.
    Failed(String),
}

/// A checkpoint on its way.
struct Pending {
    /// Everything before it becomes durable.
    up_to: Lsn,
    /// The asked-for checkpoint it answers.
    ticket: u64,
}

/// The running worker.
pub struct Server {
    cache: &'static Cache,
    engine: Engine,
    slot: Slot,
    pending: Option<Pending>,
    last_checkpoint: Instant,
    last_sweep: Instant,
}

/// Whether the postmaster still lives.
///
/// # Safety
/// Called in a child of the postmaster.
pub unsafe fn postmaster_is_alive() -> bool {
    unsafe extern "C-unwind" {
        fn PostmasterIsAliveInternal() -> bool;
    }
    // SAFETY: reads a pipe without waiting; raises nothing but FATAL.
    unsafe { PostmasterIsAliveInternal() }
}

impl Server {
    /// A server for an engine that is ready.
    pub fn new(cache: &'static Cache, engine: Engine, slot: Slot) -> Server {
        let now = Instant::now();
        Server { cache, engine, slot, pending: None, last_checkpoint: now, last_sweep: now }
    }

    /// Serves until the server stops or the engine fails.
    pub fn run(mut self) -> Result<Outcome, SqlError> {
        let main_wake = &self.cache.header().main_wake;
        loop {
            let seen = main_wake.load(Ordering::Acquire);
            if let Some(message) = self.step()? {
                return Ok(Outcome::Failed(message));
            }
            if signals::terminate_requested() {
                return self.stop();
            }
            futex::wait(main_wake, seen);
        }
    }

    /// One round of everything the main thread does; the message of the engine if it failed.
    fn step(&mut self) -> Result<Option<String>, SqlError> {
        // SAFETY: the worker is a child of the postmaster.
        if !unsafe { postmaster_is_alive() } {
            // Nothing needs to be saved: the log has everything.
            // SAFETY: ends the process.
            unsafe { libc::_exit(1) };
        }
        check_for_interrupts();
        if signals::take_reload_request() {
            // SAFETY: called between statements, of which the worker has none.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
        }
        self.publish_log_positions();
        if let Some(message) = self.engine.failed() {
            return Ok(Some(message));
        }
        self.finish_checkpoint();
        self.start_checkpoint_if_due();
        if self.last_sweep.elapsed() >= SWEEP_INTERVAL {
            self.sweep();
        }
        Ok(None)
    }

    fn publish_log_positions(&self) {
        let header = self.cache.header();
        let wanted = Lsn(header.wanted_flush.load(Ordering::Acquire));
        let mut flushed = wal::flushed_lsn();
        if wanted > flushed {
            wal::flush(wanted);
            flushed = wal::flushed_lsn();
        }
        header.insert_lsn.store(wal::insert_lsn().0, Ordering::Release);
        if header.flushed_lsn.swap(flushed.0, Ordering::AcqRel) < flushed.0 {
            raise(&header.writer_wake);
        }
    }

    fn start_checkpoint_if_due(&mut self) {
        if self.pending.is_some() {
            return;
        }
        let header = self.cache.header();
        let ticket = header.checkpoints_wanted.load(Ordering::Acquire);
        let asked = ticket > header.checkpoints_done.load(Ordering::Acquire);
        if asked || self.is_checkpoint_due() {
            self.start_checkpoint(ticket, asked);
        }
    }

    fn is_checkpoint_due(&self) -> bool {
        let dirty = u64::from(self.cache.header().dirty_frames.load(Ordering::Relaxed));
        let dirty_limit = u64::from(self.cache.frame_count()) * settings::checkpoint_dirty_percent() / 100;
        let distance = wal::insert_lsn().0.saturating_sub(self.engine.durable_lsn().0);
        let elapsed = self.last_checkpoint.elapsed();
        // A limit that is passed at once again must not make one checkpoint follow the other.
        let rested = elapsed >= Duration::from_secs(1);
        let anything = dirty > 0 || distance >= segment_bytes();
        (anything && elapsed >= settings::checkpoint_interval())
            || (rested && dirty > dirty_limit)
            || (rested && distance > distance_limit())
    }

    fn start_checkpoint(&mut self, ticket: u64, full: bool) {
        // Read before the engine looks at the frames: a change logged before this position has marked its page by then.
        let up_to = wal::end_lsn();
        // The store must never be ahead of the log: after a crash its positions would be given out again.
        wal::flush(up_to);
        self.last_checkpoint = Instant::now();
        self.engine.checkpoint(up_to, full);
        self.pending = Some(Pending { up_to, ticket });
    }

    fn finish_checkpoint(&mut self) {
        let durable = self.engine.durable_lsn();
        self.slot.advance(durable);
        if let Some(pending) = &self.pending
            && self.engine.checkpoint_finished()
        {
            let header = self.cache.header();
            if durable >= pending.up_to {
                header.checkpoints_done.fetch_max(pending.ticket, Ordering::AcqRel);
                raise(&header.state_changed);
            }
            self.pending = None;
        }
    }

    fn sweep(&mut self) {
        self.last_sweep = Instant::now();
        for storage in sweeper::find_orphans(self.cache) {
            self.engine.purge(storage);
        }
    }

    /// Outlives all users of the cache, brings everything into the store and closes it.
    fn stop(mut self) -> Result<Outcome, SqlError> {
        let stopping = directory::server_is_stopping();
        let begun = Instant::now();
        while stopping && self.users() > 0 && begun.elapsed() < USERS_LIMIT {
            if let Some(message) = self.step()? {
                return Ok(Outcome::Failed(message));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if stopping {
            self.cache.header().set_worker_state(WorkerState::Stopping);
        }
        if let Some(message) = self.last_checkpoint()? {
            return Ok(Outcome::Failed(message));
        }
        signals::with_all_blocked(|| self.engine.shutdown());
        self.slot.advance(self.engine.durable_lsn());
        Ok(if stopping { Outcome::Stopped } else { Outcome::Restart })
    }

    fn users(&self) -> u32 {
        self.cache.header().attached.load(Ordering::Acquire)
    }

    fn last_checkpoint(&mut self) -> Result<Option<String>, SqlError> {
        let goal = wal::end_lsn();
        let begun = Instant::now();
        while self.engine.durable_lsn() < goal && begun.elapsed() < LAST_CHECKPOINT_LIMIT {
            if let Some(message) = self.step()? {
                return Ok(Some(message));
            }
            if self.pending.is_none() {
                self.start_checkpoint(self.cache.header().checkpoints_wanted.load(Ordering::Acquire), true);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(None)
    }
}

fn segment_bytes() -> u64 {
    // SAFETY: set once at the start of the server.
    unsafe { pg_sys::wal_segment_size as u64 }
}

/// How far the log may run ahead of the store: it bounds the time of a replay and the log that the slot holds.
fn distance_limit() -> u64 {
    const MB: u64 = 1 << 20;
    // SAFETY: settings of the server, changed only by this process when it reads its configuration.
    let (max_wal, max_slot) = unsafe { (pg_sys::max_wal_size_mb, pg_sys::max_slot_wal_keep_size_mb) };
    let by_recovery = u64::try_from(max_wal).unwrap_or(1024) * MB / 2;
    // A slot that falls behind its own limit loses its log, and the store with it.
    let by_slot = u64::try_from(max_slot).map_or(u64::MAX, |limit| limit * MB / 4);
    by_recovery.min(by_slot).max(segment_bytes())
}
