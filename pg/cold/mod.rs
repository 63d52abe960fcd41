//! Moves rows that have come to rest into segments, and keeps the segments in order: what a job does, not when.
//!
//! A flush looks at every block that is not cold. A block goes if each of its row versions is seen by every snapshot and nobody has
//! deleted or locked one; its page is copied under the latch, and the copies become a segment, in the order of TIDs. Then the log is
//! flushed, so that no commit that a segment supposes can be lost, the file is stored, and the engine makes those blocks cold that are
//! still as they were copied.
//!
//! Everything here runs in a process with a transaction: visibility needs the commit log, columns need the catalogs. The jobs call it;
//! nothing in it waits without serving interrupts.

mod columns;
mod compact;
mod copying;
mod eligible;
pub mod explain;
mod flush;
mod output;
mod pace;
mod place;
mod ranges;
mod rebuild;
mod table;

pub use compact::{
    CompactOptions, compact_relation, erase_expired, is_worthwhile, rewrite_segments, segments_of, wants_compaction,
};
pub use flush::{FlushOptions, flush_relation};
pub use ranges::ColdBlocks;
pub use rebuild::rebuild_segments;

use pgrx::pg_sys;

/// What a flush or a compaction did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Rows that are read from new segments now.
    pub rows: u64,
    /// Blocks of those rows.
    pub blocks: u64,
    /// Bytes of the new segments.
    pub bytes: u64,
    /// New segments.
    pub segments: u64,
    /// Blocks that stay hot, as a snapshot, a lock or a change needs them.
    pub left_out: u64,
    /// Whether the run ended early, as somebody waits for the table.
    pub yielded: bool,
    /// Whether the table was dropped before or during the run.
    pub gone: bool,
}

impl Outcome {
    /// Adds a segment.
    fn note(&mut self, stored: &output::Stored) {
        let count = |ranges: &[std::ops::Range<u32>]| ranges.iter().map(|range| range.len() as u64).sum::<u64>();
        self.rows += stored.rows;
        self.blocks += count(&stored.committed.cold);
        self.left_out += count(&stored.committed.left_out);
        if stored.committed.kept {
            self.bytes += stored.bytes;
            self.segments += 1;
        }
    }
}

/// Gives the transaction's snapshot up: a run that takes its time must not keep VACUUM from removing rows of other tables.
///
/// For processes whose transaction is there for the run alone. What is visible to all by a horizon stays so without a snapshot, and the
/// table's lock keeps VACUUM away from the table itself.
pub fn release_snapshot() {
    // SAFETY: the snapshot is the one that the process pushed when its transaction began; nothing uses it any more.
    unsafe {
        if pg_sys::ActiveSnapshotSet() {
            pg_sys::PopActiveSnapshot();
        }
        pg_sys::InvalidateCatalogSnapshotConditionally();
    }
}

/// Runs what reads catalogs with a snapshot, as values that stand outside of their rows need one.
fn with_snapshot<R>(read: impl FnOnce() -> R) -> R {
    // SAFETY: pushed and popped here; an ERROR in between ends the transaction, which pops it.
    unsafe {
        if pg_sys::ActiveSnapshotSet() {
            return read();
        }
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = read();
        pg_sys::PopActiveSnapshot();
        result
    }
}

/// Told how far a run is.
pub trait Progress {
    /// How much there is to do, as far as is known.
    fn total(&mut self, rows: u64, bytes: u64);
    /// How much is done since the beginning.
    fn done(&mut self, rows: u64, bytes: u64);
}

/// For callers that nobody watches.
pub struct Unwatched;

impl Progress for Unwatched {
    fn total(&mut self, _rows: u64, _bytes: u64) {}
    fn done(&mut self, _rows: u64, _bytes: u64) {}
}
