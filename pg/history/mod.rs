//! Keeps deleted rows for a while, in the extension's table `kalam.deleted_rows`.
//!
//! A DELETE copies the old row into a buffer of the session; the buffer goes into the table when it is long enough and before the
//! transaction commits, many rows to an entry. So a deleted row is kept exactly if its deletion commits, and a bulk delete pays
//! for few inserts. The entry says which types the columns had: rows can be read after ALTER TABLE.
//!
//! UPDATE and TRUNCATE keep nothing, nor do temporary and unlogged tables and materialized views.

mod buffer;
mod entry;
mod read;
pub mod retention;
mod table;

pub use buffer::init;
pub use read::{KeptRow, Restored, kept_rows, to_jsonb};
pub use table::erase;

use std::sync::atomic::{AtomicBool, Ordering};

use kalamdb_engine::ids::Tid;
use kalamdb_engine::page::{PREFIX, Version};
use pgrx::pg_sys;

use crate::tableam::{stream, values};

/// Longer rows are not kept: their copy would have to stand in the session's memory as a whole.
const ROW_MAX: usize = 64 << 20;

/// Whether this process deletes rows for good at the moment.
static SUSPENDED: AtomicBool = AtomicBool::new(false);

/// As long as it lives, deletions of this process keep nothing; an ERROR ends it too.
pub struct Suspended;

impl Suspended {
    pub fn begin() -> Suspended {
        SUSPENDED.store(true, Ordering::Relaxed);
        Suspended
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        SUSPENDED.store(false, Ordering::Relaxed);
    }
}

/// Whether the running transaction has deleted rows of a table that are kept.
pub fn has_pending(relation: pg_sys::Oid) -> bool {
    let mut found = false;
    buffer::each_pending(relation, &mut |_| found = true);
    found
}

/// Number of the rows of an entry of `kalam.deleted_rows`; of a damaged one, that of none.
pub fn count_rows(rows: &[u8]) -> u64 {
    entry::rows_of(rows).map_or(0, |rows| rows.len() as u64)
}

/// Whether a deletion in this table keeps the old row.
#[inline]
pub fn keeps(rel: pg_sys::Relation) -> bool {
    !SUSPENDED.load(Ordering::Relaxed)
        // A deleted event would outlive those that are not.
        && !stream::is_stream(rel)
        && retention::of(rel) > 0
        // SAFETY: an open relation has a pg_class row.
        && unsafe {
            let class = &*(*rel).rd_rel;
            class.relpersistence as u8 == pg_sys::RELPERSISTENCE_PERMANENT
                && class.relkind as u8 == pg_sys::RELKIND_RELATION
        }
}

/// A row that the current command has just deleted.
pub struct DeletedRow {
    tid: Tid,
    version: Vec<u8>,
}

impl DeletedRow {
    /// Copies a version out of its latched page.
    pub fn copy(tid: Tid, version: Version<'_>) -> DeletedRow {
        DeletedRow { tid, version: version.bytes().to_vec() }
    }

    /// Hands the row to the session's buffer; no latch is held any more.
    pub fn keep(self, rel: pg_sys::Relation) {
        let tuple = self.version.get(PREFIX..).unwrap_or_default();
        if tuple.len() > ROW_MAX {
            return;
        }
        let flat = Version::new(&self.version)
            .is_some_and(Version::has_external)
            .then(|| values::flat_copy(rel, self.tid, tuple, ROW_MAX));
        match flat {
            None => buffer::add(rel, self.tid, tuple),
            Some(Some(tuple)) => buffer::add(rel, self.tid, &tuple),
            Some(None) => {}
        }
    }
}
