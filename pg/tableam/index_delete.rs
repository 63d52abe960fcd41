//! Tells an index access method which of its entries lead to nothing that anybody can see.
//!
//! Two kinds of calls come: simple deletion names entries that are known or supposed to be dead and wants all of them judged;
//! bottom-up deletion brings every entry of a full index page, most of them of unknown state, and wants a little space at little
//! cost. For the latter, the blocks with the most promising entries are visited first and few of them.

use std::cmp::Reverse;

use kalamdb_engine::Error;
use kalamdb_engine::cache::Pin;
use kalamdb_engine::ids::{INVALID_XID, Tid, Xid};
use kalamdb_engine::page::infomask::HEAP_XMIN_COMMITTED;
use kalamdb_engine::page::{Header, MAX_OFFSET, Page, PageKind, hot_search};
use kalamdb_engine::visibility::TransactionStatus;
use pgrx::{pg_guard, pg_sys};

use super::prune::{Horizon, RemovableChain};
use super::slot::tid_of;
use super::status::{PostgresStatus, narrow, refresh_reference};
use super::storage::{Storage, relation_name};
use crate::error::{OrRaise, raise};
use crate::ffi::interrupts::BackendWait;

/// The most blocks that one bottom-up deletion visits.
const BLOCKS_MAX: usize = 6;

/// Blocks that are so near to each other count as contiguous.
const NEAR: u32 = 3;

/// Fewer promising entries of a block than this say nothing.
const PROMISING_MIN: u32 = 4;

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

/// What is wrong with an index entry for this line pointer, if anything.
///
/// The index page is locked, so no VACUUM can have freed the line pointer since the entry was read.
fn fault_of(page: Page<'_>, root: u16) -> Option<&'static str> {
    if page.kind() != PageKind::Data || root == 0 || root > page.max_offset() {
        return Some("past the end of the page's line pointers");
    }
    let line = page.line(root);
    if line.is_unused() {
        return Some("to an unused line pointer");
    }
    let is_heap_only = page.version_at(line).is_some_and(|version| version.header().is_heap_only());
    is_heap_only.then_some("to a heap-only row version")
}

/// The newest transaction whose deletion makes a chain removable; 0 if the chain has no versions any more.
///
/// A dead line pointer tells nothing: the prune that made it told it.
fn newest_deleter(page: Page<'_>, root: u16, status: &impl TransactionStatus) -> Xid {
    let mut newest = INVALID_XID;
    let (mut offset, mut updater) = (root, INVALID_XID);
    for _ in 0..=MAX_OFFSET {
        let line = page.line(offset);
        if line.is_redirect() {
            offset = line.redirect();
            continue;
        }
        let Some(version) = page.version_at(line) else { break };
        let header = version.header();
        if updater != INVALID_XID && updater != header.effective_xmin() {
            break;
        }
        newest = newest.max(deleter_seen_by_others(&header, status));
        if !header.is_hot_updated() {
            break;
        }
        offset = header.ctid.offset;
        updater = header.update_xid(|multi| status.multi_update_xid(multi));
    }
    newest
}

/// The deleter of a version that others than its inserter could see; 0 if there is none.
fn deleter_seen_by_others(header: &Header, status: &impl TransactionStatus) -> Xid {
    let xmin = header.effective_xmin();
    let is_committed = header.infomask & HEAP_XMIN_COMMITTED != 0 || (!header.xmin_invalid() && status.did_commit(xmin));
    let deleter = header.update_xid(|multi| status.multi_update_xid(multi));
    if is_committed && deleter != xmin { deleter } else { INVALID_XID }
}

/// The entries for one block.
#[derive(Clone, Copy, Debug)]
struct BlockGroup {
    block: u32,
    first: usize,
    entries: usize,
    promising: u32,
}

impl BlockGroup {
    /// Sorts the most worthwhile block first. Numbers are rounded up to powers of two: small differences are noise, and the order
    /// of the blocks on disk counts more.
    fn rank(&self) -> (Reverse<u32>, Reverse<usize>, usize) {
        let promising = self.promising.max(PROMISING_MIN).next_power_of_two();
        (Reverse(promising), Reverse(self.entries.next_power_of_two()), self.first)
    }
}

/// How many blocks from the first one on lie near to their predecessor; the first one always counts.
fn contiguous(groups: &[BlockGroup]) -> usize {
    let near = groups.windows(2).take_while(|pair| pair[0].block.abs_diff(pair[1].block) <= NEAR);
    1 + near.count()
}

/// Decides when a bottom-up deletion has gained enough, or no longer gains anything.
#[derive(Debug)]
struct Budget {
    target: i32,
    gained: i32,
    /// What was gained before the block in work.
    before: i32,
    /// Blocks that may be visited without lowering the target.
    favorable: usize,
    visited: usize,
    is_final: bool,
}

impl Budget {
    fn new(target: i32, favorable: usize) -> Budget {
        Budget { target, gained: 0, before: 0, favorable, visited: 0, is_final: false }
    }

    /// Whether the next block is worth its cost; counts it as visited.
    fn may_visit(&mut self) -> bool {
        let was_useless = self.visited > 0 && self.gained == self.before;
        if self.is_final || was_useless {
            return false;
        }
        self.before = self.gained;
        self.visited += 1;
        if self.favorable > 0 {
            self.favorable -= 1;
        } else {
            self.target /= 2;
        }
        true
    }

    /// Adds the space of an entry that goes. The block in work is finished in any case, its cost is paid.
    fn gain(&mut self, bytes: i16) {
        self.gained += i32::from(bytes);
        self.is_final |= self.gained >= self.target;
    }
}
