//! What the processes of a parallel scan share: Postgres' own state of a block-wise scan, and for one user the list of their blocks.
//!
//! Postgres gives out numbers from 0 on. They are block numbers when the scan reaches everybody, and places in the list when it
//! reaches one user: walking the blocks of all would take as long as the table is large. Each process still looks whether it may
//! enter a block, so that one which acts for somebody else would see nothing.

use std::cell::RefCell;
use std::ptr::{slice_from_raw_parts, slice_from_raw_parts_mut};

use kalamdb_engine::Error;
use pgrx::{pg_guard, pg_sys};

use super::partition;
use super::storage::Storage;
use crate::error::{OrRaise, raise};
use crate::ffi::interrupts::BackendWait;
use crate::gate::{Access, running_query};
use crate::hash::Map;

/// Blocks that may come between the moments in which the list is measured and made.
const SPARE: usize = 64;

thread_local! {
    /// The least room that the running query has asked for, by table: the query, and the length of a list.
    static ROOM: RefCell<Map<u32, (usize, usize)>> = RefCell::default();
}

/// The state in shared memory; the list follows it, and a snapshot follows that.
#[repr(C)]
struct Shared {
    base: pg_sys::ParallelBlockTableScanDescData,
    /// Length of the list, if there is one.
    listed: u32,
    has_list: bool,
}

/// Bytes of the state with a list; a multiple of what Postgres aligns to.
fn size(listed: usize) -> usize {
    (size_of::<Shared>() + listed * size_of::<u32>()).next_multiple_of(pg_sys::MAXIMUM_ALIGNOF as usize)
}

/// The blocks of the user for whom the running statement acts; none when it acts for everybody.
fn blocks_of_user(rel: pg_sys::Relation) -> Option<partition::Blocks> {
    let storage = Storage::of(rel);
    let wait = BackendWait::new(storage.cache);
    match Access::of_statement(rel, &storage, &wait) {
        Access::All => None,
        Access::Nothing => Some(partition::Blocks::new()),
        Access::Partition(partition) => Some(partition::blocks_of(&storage, partition, &wait).or_raise()),
    }
}

/// Notes the room for a list that a scan of the running query asks for; another one of the same table may have asked for less.
fn ask_for_room(rel: pg_sys::Relation, listed: usize) {
    let Some(query) = running_query() else { return };
    ROOM.with_borrow_mut(|room| {
        room.retain(|_, (asker, _)| *asker == query);
        // SAFETY: an open relation.
        let asked = room.entry(unsafe { (*rel).rd_id }.to_u32()).or_insert((query, listed));
        asked.1 = asked.1.min(listed);
    });
}

/// Whether a scan of the running query has asked for the room of this list.
fn has_room(rel: pg_sys::Relation, listed: usize) -> bool {
    // SAFETY: an open relation.
    let asked = ROOM.with_borrow(|room| room.get(&unsafe { (*rel).rd_id }.to_u32()).copied());
    asked.is_some_and(|(query, most)| Some(query) == running_query() && listed <= most)
}

/// Size of the state that parallel workers share.
#[pg_guard]
pub unsafe extern "C-unwind" fn estimate(rel: pg_sys::Relation) -> pg_sys::Size {
    let Some(blocks) = blocks_of_user(rel) else { return size(0) };
    ask_for_room(rel, blocks.len() + SPARE);
    size(blocks.len() + SPARE)
}

/// Fills the state that parallel workers share, of the size that was estimated for the same query. A list that has become too long is left
/// out: the workers walk all blocks then, and enter the user's.
#[pg_guard]
pub unsafe extern "C-unwind" fn initialize(rel: pg_sys::Relation, scan: pg_sys::ParallelTableScanDesc) -> pg_sys::Size {
    let blocks = blocks_of_user(rel).filter(|blocks| has_room(rel, blocks.len()));
    // SAFETY: Postgres' own function for block-wise scans; the memory has room for the list.
    unsafe {
        pg_sys::table_block_parallelscan_initialize(rel, scan);
        // Workers start at the first block: our scans read in block order and keep no synchronised position.
        (*scan).phs_syncscan = false;
        let shared = scan.cast::<Shared>();
        let list = blocks.as_deref().unwrap_or_default();
        (*shared).has_list = blocks.is_some();
        (*shared).listed = list.len() as u32;
        if (*shared).has_list {
            (*shared).base.phs_nblocks = list.len() as u32;
        }
        let room = slice_from_raw_parts_mut(shared.add(1).cast::<u32>(), list.len());
        (*room).copy_from_slice(list);
        size(list.len())
    }
}

/// Resets the state that parallel workers share.
#[pg_guard]
pub unsafe extern "C-unwind" fn reinitialize(rel: pg_sys::Relation, scan: pg_sys::ParallelTableScanDesc) {
    // SAFETY: Postgres' own function for block-wise scans.
    unsafe { pg_sys::table_block_parallelscan_reinitialize(rel, scan) };
}

/// Number of blocks to scan, over all workers.
///
/// # Safety
/// `scan` was filled by [`initialize`].
pub unsafe fn blocks(scan: pg_sys::ParallelTableScanDesc) -> u32 {
    // SAFETY: the caller's.
    unsafe { (*scan.cast::<Shared>()).base.phs_nblocks }
}

/// The next block that this process has to scan.
///
/// # Safety
/// As [`blocks`]; `worker` belongs to the process' scan of `rel`, and `started` says whether this was called before.
pub unsafe fn next_block(
    rel: pg_sys::Relation,
    worker: &mut pg_sys::ParallelBlockTableScanWorkerData,
    scan: pg_sys::ParallelTableScanDesc,
    started: bool,
) -> Option<u32> {
    // SAFETY: the caller's; the list is not changed.
    unsafe {
        let shared = scan.cast::<Shared>();
        if !started {
            pg_sys::table_block_parallelscan_startblock_init(rel, worker, scan.cast());
        }
        let place = pg_sys::table_block_parallelscan_nextpage(rel, worker, scan.cast());
        if place == pg_sys::InvalidBlockNumber {
            return None;
        }
        if !(*shared).has_list {
            return Some(place);
        }
        let list = slice_from_raw_parts(shared.add(1).cast::<u32>(), (*shared).listed as usize);
        Some((*list)[place as usize])
    }
}

/// Raises an error unless a scan that turns out to reach everybody was begun as one.
///
/// # Safety
/// As [`blocks`].
pub unsafe fn require_everybody(scan: pg_sys::ParallelTableScanDesc) {
    // SAFETY: the caller's.
    if unsafe { (*scan.cast::<Shared>()).has_list } {
        raise(Error::internal("a parallel scan of one user's rows cannot reach everybody"));
    }
}
