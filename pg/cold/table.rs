//! The table that a run works on: locked so that its columns stay and no VACUUM and no second run come between.

use std::time::Duration;

use kalamdb_engine::cold::Client;
use pgrx::pg_sys;

use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::interrupts::BackendWait;
use crate::ffi::{catalog, extension};
use crate::tableam::storage::{Storage, relation_name, require_table};
use crate::worker::requests;

/// Allows reading and writing, excludes changes of the table, VACUUM and other runs.
const LOCK: pg_sys::LOCKMODE = pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE;

/// Blocks that are asked for at a time, ahead of the one in work.
const READ_AHEAD: usize = 16;

/// An open and locked table of ours.
pub struct Table {
    /// The relation.
    pub rel: pg_sys::Relation,
    /// Its storage.
    pub storage: Storage,
    /// How to wait for the engine.
    pub wait: BackendWait,
}

impl Table {
    /// Locks and opens a table; nothing if it does not exist any more.
    pub fn open(relation: pg_sys::Oid, patience: Duration) -> Option<Table> {
        // SAFETY: takes a lock and opens a relation; both go with the transaction if an ERROR comes.
        unsafe {
            catalog::lock_within(relation, LOCK, patience).or_raise();
            let rel = pg_sys::try_relation_open(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
            if rel.is_null() {
                pg_sys::UnlockRelationOid(relation, LOCK);
                return None;
            }
            require_table(rel);
            require_flushable(rel);
            let storage = Storage::of(rel);
            Some(Table { rel, storage, wait: BackendWait::new(storage.cache) })
        }
    }

    /// Closes the table and gives its lock back.
    pub fn close(self) {
        // SAFETY: opened by `open`.
        unsafe { pg_sys::relation_close(self.rel, LOCK) };
    }

    /// Asks for the blocks that come after one of a list, so that the engine reads or builds them meanwhile.
    pub fn read_ahead(&self, blocks: &[u32], place: usize) {
        if place.is_multiple_of(READ_AHEAD) {
            let from = if place == 0 { 1 } else { place + READ_AHEAD };
            let ahead = blocks.get(from..(place + 2 * READ_AHEAD).min(blocks.len())).unwrap_or_default();
            ahead.iter().for_each(|&block| self.storage.cache.prefetch(self.storage.block(block)));
        }
    }

    /// Whether somebody waits for a lock that this run stands in the way of.
    pub fn is_wanted(&self) -> bool {
        // SAFETY: looks at a lock that this process holds.
        extension::is_wanted() || unsafe { pg_sys::LockHasWaitersRelation(self.rel, LOCK) }
    }

    /// Requests to the engine.
    pub fn client(&self) -> Client<'_> {
        requests::client(self.storage.cache, &self.wait)
    }
}

/// Raises an error unless rows of the table can become cold.
fn require_flushable(rel: pg_sys::Relation) {
    // SAFETY: an open relation has a pg_class row.
    let persistence = unsafe { (*(*rel).rd_rel).relpersistence as u8 };
    if persistence != pg_sys::RELPERSISTENCE_PERMANENT {
        raise(
            SqlError::unsupported(format!("table \"{}\" cannot have cold rows", relation_name(rel)))
                .with_detail("Rows of temporary and unlogged tables end with the session or with a crash.")
                .with_hint("ALTER TABLE ... SET LOGGED makes an unlogged table permanent."),
        );
    }
}
