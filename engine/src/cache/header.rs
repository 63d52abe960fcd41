//! The head of the shared mapping: layout, state of the worker, counters.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::latch::Latch;
use crate::error::{Error, ErrorKind, sentence};
use crate::ids::{Lsn, StorageId};

/// "KALAMDB1" read as a little-endian number.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"KALAMDB1");

/// The version of the layout of the mapping; an old library meets a new one and is refused.
pub const LAYOUT_VERSION: u32 = 9;

/// The longest text of a failure that the mapping keeps, in bytes.
pub const FAILURE_TEXT: usize = 1984;

const FAILING_DISK_FULL: u32 = 1;
const FAILING_OTHERWISE: u32 = 2;

/// What the worker is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum WorkerState {
    /// No worker runs.
    Absent = 0,
    /// It opens the store.
    Starting = 1,
    /// It replays the log.
    Recovering = 2,
    /// Pages can be used.
    Ready = 3,
    /// It failed and is about to be started again.
    Failed = 4,
    /// It writes everything and leaves.
    Stopping = 5,
}

impl WorkerState {
    fn from_word(word: u32) -> WorkerState {
        match word {
            1 => WorkerState::Starting,
            2 => WorkerState::Recovering,
            3 => WorkerState::Ready,
            4 => WorkerState::Failed,
            5 => WorkerState::Stopping,
            _ => WorkerState::Absent,
        }
    }
}

/// The counters of the mapping; all count events since the mapping was made.
#[repr(C)]
#[derive(Default)]
pub struct Counters {
    /// Pages asked of the worker.
    pub loads: AtomicU64,
    /// Pages made anew.
    pub creates: AtomicU64,
    /// Clean pages dropped for others.
    pub evictions: AtomicU64,
    /// Pages written to the store.
    pub writebacks: AtomicU64,
    /// Bytes of those pages, before compression.
    pub writeback_bytes: AtomicU64,
    /// Times a process found no clean frame and waited for the writer.
    pub clean_waits: AtomicU64,
    /// Checkpoints of the store.
    pub checkpoints: AtomicU64,
    /// Log records replayed.
    pub replayed: AtomicU64,
    /// Pages built from segments.
    pub cold_loads: AtomicU64,
    /// Bytes read from segments.
    pub segment_bytes_read: AtomicU64,
    /// Segments opened.
    pub segments_opened: AtomicU64,
    /// Blocks that became cold.
    pub blocks_cooled: AtomicU64,
    /// Cold blocks that were changed and became hot.
    pub blocks_thawed: AtomicU64,
    /// Segments that became part of a table.
    pub segments_added: AtomicU64,
    /// Files of segments deleted.
    pub segments_deleted: AtomicU64,
}

/// The fields at the start of the mapping.
#[repr(C, align(64))]
pub struct Header {
    pub(super) magic: AtomicU64,
    pub(super) layout_version: AtomicU32,
    pub(super) frames: AtomicU32,
    pub(super) storages: AtomicU32,
    /// Raised each time a worker starts.
    pub generation: AtomicU32,
    worker_state: AtomicU32,
    /// Process id of the worker; 0 when there is none.
    pub worker_pid: AtomicU32,
    /// Processes that use the mapping, the worker not counted.
    pub attached: AtomicU32,
    /// Up to where Postgres' log is flushed, as last seen by the worker's main thread.
    pub flushed_lsn: AtomicU64,
    /// Up to where an engine thread wants it flushed.
    pub wanted_flush: AtomicU64,
    /// The insert position of Postgres' log, as last seen by the worker's main thread.
    pub insert_lsn: AtomicU64,
    /// Everything before it is in the store for good.
    pub durable_lsn: AtomicU64,
    /// Number of checkpoints asked for; the worker makes one when it is above `checkpoints_done`.
    pub checkpoints_wanted: AtomicU64,
    /// Number of asked-for checkpoints that are complete.
    pub checkpoints_done: AtomicU64,
    /// The end of the log when the mapping came into use; 0 before. What stands before it was written by processes that are gone.
    pub first_lsn: AtomicU64,
    /// The next storage id to give out.
    pub next_storage_id: AtomicU64,
    /// The next segment number to give out.
    pub next_segment: AtomicU64,
    /// Seconds for which the file of a segment that nobody needs any more is kept.
    pub segment_retention: AtomicU64,
    /// Memory that pages may take, in units of 4 KB.
    pub(super) memory_units: AtomicU64,
    /// Memory that frames have.
    pub resident_units: AtomicU64,
    /// Memory of dirty frames.
    pub dirty_units: AtomicU64,
    /// Number of dirty frames.
    pub dirty_frames: AtomicU32,
    pub(super) clock_hand: AtomicU32,
    /// Raised and woken when the worker's main thread has something to do.
    pub main_wake: AtomicU32,
    /// Raised and woken when the writer thread has something to do.
    pub writer_wake: AtomicU32,
    /// Raised and woken when frames were cleaned.
    pub cleaned: AtomicU32,
    pub(super) load_wake: AtomicU32,
    pub(super) load_sleepers: AtomicU32,
    /// Raised and woken when `worker_state` changes or a checkpoint ends.
    pub state_changed: AtomicU32,
    /// Why the store refuses writes at the moment; 0 when it takes them.
    store_failing: AtomicU32,
    /// Whether the store is used without compaction, as that met a damaged file; 0 or 1, until the mapping is made anew.
    pub compaction_stopped: AtomicU32,
    pub(super) storage_latch: Latch,
    failure_latch: Latch,
    /// Event counters.
    pub counters: Counters,
    failure: [AtomicU32; FAILURE_TEXT / 4],
}

impl Header {
    pub(super) fn clear_for_use(&self) {
        self.storage_latch.reset();
        self.failure_latch.reset();
        self.next_storage_id.store(1, Ordering::Relaxed);
        self.next_segment.store(1, Ordering::Relaxed);
    }

    /// What the worker is doing.
    pub fn worker_state(&self) -> WorkerState {
        WorkerState::from_word(self.worker_state.load(Ordering::Acquire))
    }

    /// Publishes what the worker is doing and wakes those who wait for a change.
    pub fn set_worker_state(&self, state: WorkerState) {
        self.worker_state.store(state as u32, Ordering::Release);
        raise(&self.state_changed);
    }

    /// Gives out a storage id that no storage had before.
    pub fn allocate_storage_id(&self) -> StorageId {
        StorageId(self.next_storage_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes sure that ids up to `used` are not given out.
    pub fn note_storage_id(&self, used: StorageId) {
        self.next_storage_id.fetch_max(used.0 + 1, Ordering::Relaxed);
    }

    /// Gives out a segment number that no segment had before.
    pub fn allocate_segment(&self) -> u64 {
        self.next_segment.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps a number from being given out.
    pub fn skip_segment(&self, segment: u64) {
        self.next_segment.fetch_max(segment.saturating_add(1), Ordering::Relaxed);
    }

    /// Up to where the log is flushed, as last published.
    pub fn flushed(&self) -> Lsn {
        Lsn(self.flushed_lsn.load(Ordering::Acquire))
    }

    /// Keeps the text of a failure for whoever reports it.
    pub fn set_failure(&self, text: &str) {
        if !self.failure_latch.try_lock_exclusive() {
            return;
        }
        let mut bytes = [0u8; FAILURE_TEXT];
        let mut end = text.len().min(FAILURE_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        for (word, chunk) in self.failure.iter().zip(bytes.as_chunks::<4>().0) {
            word.store(u32::from_le_bytes(*chunk), Ordering::Relaxed);
        }
        self.failure_latch.unlock_exclusive();
    }

    /// Publishes that the store takes no writes, and why.
    pub fn set_store_failing(&self, error: &Error) {
        self.set_failure(&error.to_string());
        let reason = if error.kind() == ErrorKind::DiskFull { FAILING_DISK_FULL } else { FAILING_OTHERWISE };
        self.store_failing.store(reason, Ordering::Release);
    }

    /// Publishes that the store takes writes; whether it did not before.
    pub fn clear_store_failing(&self) -> bool {
        self.store_failing.load(Ordering::Relaxed) != 0 && self.store_failing.swap(0, Ordering::AcqRel) != 0
    }

    /// The error with which a wait for the store ends that takes no writes; none while it takes them.
    pub fn store_failure(&self, message: &str) -> Option<Error> {
        let (kind, remedy) = match self.store_failing.load(Ordering::Acquire) {
            0 => return None,
            FAILING_DISK_FULL => (ErrorKind::DiskFull, "Free disk space where the data directory lies"),
            _ => (ErrorKind::Io, "Mend what the detail names"),
        };
        let error = Error::new(kind, message).with_detail(sentence(self.failure()));
        Some(error.with_hint(format!("{remedy}; nothing is lost meanwhile, and the engine goes on by itself.")))
    }

    /// Whether the store refuses writes at the moment.
    pub fn is_store_failing(&self) -> bool {
        self.store_failing.load(Ordering::Relaxed) != 0
    }

    /// The text of the last failure; empty when there was none.
    pub fn failure(&self) -> String {
        let bytes: Vec<u8> = self.failure.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }
}

/// Raises a wake-up word and wakes its waiters.
pub fn raise(word: &AtomicU32) {
    word.fetch_add(1, Ordering::Release);
    super::futex::wake_all(word);
}
