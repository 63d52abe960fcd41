//! Tells an index access method which of its entries lead to nothing that anybody can see.
//!
//! Two kinds of calls come: simple deletion names entries that are known or supposed to be dead and wants all of them judged;
//! bottom-up deletion brings every entry of a full index page, most of them of unknown state, and wants a little space at little
//! cost. For the latter, the blocks with the most promising entries are visited first and few of them.

mod budget;
mod chain;

use kalamdb_engine::Error;
use kalamdb_engine::cache::Pin;
use kalamdb_engine::ids::{INVALID_XID, Tid, Xid};
use kalamdb_engine::page::{Page, hot_search};
use pgrx::{pg_guard, pg_sys};

use super::prune::{Horizon, RemovableChain};
use super::slot::tid_of;
use super::status::{PostgresStatus, narrow, refresh_reference};
use super::storage::{Storage, relation_name};
use crate::error::{OrRaise, raise};
use crate::ffi::interrupts::BackendWait;
use budget::{BLOCKS_MAX, BlockGroup, Budget, contiguous};
use chain::{fault_of, newest_deleter};

/// Blocks that are loaded ahead of the one in work.
const READ_AHEAD: usize = 4;

/// The access method's callback: judges entries, keeps the deletable ones in front, and tells the newest transaction that a
/// snapshot must call ended to miss none of them.
#[pg_guard]
pub unsafe extern "C-unwind" fn index_delete_tuples(
    rel: pg_sys::Relation,
    operation: *mut pg_sys::TM_IndexDeleteOp,
) -> pg_sys::TransactionId {
    refresh_reference();
    // SAFETY: the index access method passes its operation with `ndeltids` entries, each with a status of its own.
    let mut deletion = unsafe { Deletion::new(rel, &mut *operation) };
    let conflict = deletion.run();
    narrow(conflict)
}

/// One deletion.
struct Deletion<'a> {
    operation: &'a mut pg_sys::TM_IndexDeleteOp,
    entries: &'a mut [pg_sys::TM_IndexDelete],
    storage: Storage,
    wait: BackendWait,
    horizon: Horizon,
    /// The newest deleter of a row whose entry goes.
    conflict: Xid,
}

impl<'a> Deletion<'a> {
    unsafe fn new(rel: pg_sys::Relation, operation: &'a mut pg_sys::TM_IndexDeleteOp) -> Deletion<'a> {
        let storage = Storage::of(rel);
        // SAFETY: the caller vouches for the array.
        let entries = unsafe { std::slice::from_raw_parts_mut(operation.deltids, operation.ndeltids.max(0) as usize) };
        let wait = BackendWait::new(storage.cache);
        Deletion { operation, entries, storage, wait, horizon: Horizon::of(rel), conflict: INVALID_XID }
    }

    fn status(&mut self, entry: usize) -> &mut pg_sys::TM_IndexStatus {
        // SAFETY: the id of an entry is the place of its status.
        unsafe { &mut *self.operation.status.add(self.entries[entry].id as usize) }
    }

    fn tid(&self, entry: usize) -> Tid {
        tid_of(&self.entries[entry].tid)
    }

    fn run(&mut self) -> Xid {
        self.entries.sort_unstable_by_key(|entry| tid_of(&entry.tid));
        let (taken, mut budget) = if self.operation.bottomup {
            let groups = self.rank();
            let taken = groups.iter().map(|group| group.entries).sum();
            (taken, Some(Budget::new(self.operation.bottomupfreespace, contiguous(&groups))))
        } else {
            (self.entries.len(), None)
        };
        let mut kept = 0;
        let mut entry = 0;
        while entry < taken {
            if budget.as_mut().is_some_and(|budget| !budget.may_visit()) {
                break;
            }
            let block = self.tid(entry).block;
            let behind = (entry..taken).find(|&other| self.tid(other).block != block).unwrap_or(taken);
            self.read_ahead(behind, taken);
            self.judge_block(entry..behind, budget.as_mut(), &mut kept);
            entry = behind;
        }
        // The last entries are cut off if nothing of them goes; bottom-up deletion may come back with none at all.
        self.operation.ndeltids = kept as i32;
        self.conflict
    }

    /// Puts the entries of the most promising blocks in front, block by block, and describes these blocks.
    fn rank(&mut self) -> Vec<BlockGroup> {
        let mut groups: Vec<BlockGroup> = Vec::new();
        for entry in 0..self.entries.len() {
            let block = self.tid(entry).block;
            let promising = u32::from(self.status(entry).promising);
            match groups.last_mut() {
                Some(group) if group.block == block => {
                    group.entries += 1;
                    group.promising += promising;
                }
                _ => groups.push(BlockGroup { block, first: entry, entries: 1, promising }),
            }
        }
        groups.sort_unstable_by_key(BlockGroup::rank);
        groups.truncate(BLOCKS_MAX);
        let old = self.entries.to_vec();
        let chosen = groups.iter().flat_map(|group| &old[group.first..group.first + group.entries]);
        self.entries.iter_mut().zip(chosen).for_each(|(place, entry)| *place = *entry);
        groups
    }

    fn read_ahead(&self, from: usize, taken: usize) {
        let mut last = None;
        let blocks = (from..taken).map(|entry| self.tid(entry).block).filter(|block| last.replace(*block) != Some(*block));
        blocks.take(READ_AHEAD).for_each(|block| self.storage.cache.prefetch(self.storage.block(block)));
    }

    /// Judges the entries of one block; `kept` becomes the place behind the last entry that goes.
    fn judge_block(&mut self, entries: std::ops::Range<usize>, mut budget: Option<&mut Budget>, kept: &mut usize) {
        let key = self.storage.block(self.tid(entries.start).block);
        let pin = self.storage.cache.read(key, &self.wait).or_raise();
        let guard = pin.shared(&self.wait).or_raise();
        let page = guard.page();
        for entry in entries {
            let root = self.tid(entry).offset;
            if let Some(fault) = fault_of(page, root) {
                drop(guard);
                self.raise_corrupt(entry, fault);
            }
            if !self.status(entry).knowndeletable {
                if !self.is_removable(&pin, page, root) {
                    continue;
                }
                self.status(entry).knowndeletable = true;
                if let Some(budget) = budget.as_deref_mut() {
                    budget.gain(self.status(entry).freespace);
                }
            }
            self.conflict = self.conflict.max(newest_deleter(page, root, &PostgresStatus));
            *kept = entry + 1;
        }
    }

    /// Whether nobody can see a version of the chain.
    fn is_removable(&self, pin: &Pin, page: Page<'_>, root: u16) -> bool {
        hot_search(page, root, true, &mut RemovableChain::new(&self.horizon, pin, page)).found.is_none()
    }

    #[cold]
    fn raise_corrupt(&mut self, entry: usize, fault: &str) -> ! {
        let tid = self.tid(entry);
        let (offset, block) = (self.status(entry).idxoffnum, self.operation.iblknum);
        let index = relation_name(self.operation.irel);
        raise(Error::corrupt(format!(
            "tid {tid} from index tuple points {fault} at offset {offset} of block {block} in index \"{index}\""
        )))
    }
}
