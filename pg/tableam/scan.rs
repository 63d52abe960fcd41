//! Scans a table: sequentially, in parallel, by TID range, by bitmap and by sample.
//!
//! A scan takes a page at a time: it finds the visible versions under the latch, then hands them out under a pin alone.

mod sample;

use kalamdb_engine::cache::Wait;
use kalamdb_engine::ids::{Lsn, Tid};
use kalamdb_engine::page::{ALL_VISIBLE, Header, PREFIX, Page, PageKind, root_offsets};
use kalamdb_engine::visibility::TransactionStatus;
use pgrx::{pg_guard, pg_sys};

use super::fetch::{BorrowedPin, check_conflict_out, needs_conflict_checks, search_chain};
use super::pins::{self, NO_FRAME};
use super::row::set_hints;
use super::slot::{TuplePlace, store_version, tid_of};
use super::status::{PostgresStatus, SnapshotView};
use super::storage::Storage;
use super::stream::Expiry;
use super::{parallel, partition, prune, raw, stats};
use crate::error::OrRaise;
use crate::ffi::compat;
use crate::ffi::interrupts::{BackendWait, check_for_interrupts};
use crate::ffi::memory::in_context;
use crate::ffi::plain;
use crate::gate::{Access, Sample, is_partitioned, note_read_of_all};

pub use sample::{scan_sample_next_block, scan_sample_next_tuple};

/// Blocks that a sequential scan asks for ahead of the one it reads.
const READ_AHEAD: u32 = 8;

/// Versions by which the processor is told ahead where the scan will read: a row's header is a cache miss otherwise.
const AHEAD: usize = 4;

/// Room for the line pointers of one page.
const LINES: usize = kalamdb_engine::page::MAX_OFFSET as usize + 1;

/// Asks the processor to bring a cache line.
#[inline]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it reads nothing and accepts any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A version found on the current page.
#[repr(C)]
#[derive(Clone, Copy)]
struct Hit {
    offset: u16,
    at: u16,
    len: u16,
}

/// A scan of one of our tables, in one flat chunk that Postgres' memory context can drop.
#[repr(C)]
pub struct Scan {
    base: pg_sys::TableScanDescData,
    storage: Storage,
    view: SnapshotView,
    parallel: pg_sys::ParallelBlockTableScanWorkerData,
    /// Which rows the scan reaches.
    access: Access,
    /// Which rows are gone.
    expiry: Expiry,
    /// The blocks to scan where they are not all blocks in order: `few`, or a chunk in the memory context of the scan.
    list: *mut u32,
    few: [u32; partition::FEW],
    memory: pg_sys::MemoryContext,
    /// First place and the one behind the last of the range to scan: places in the list, or block numbers without one.
    first: u32,
    end: u32,
    /// The rows of a scan of a range of TIDs: the first and the last one.
    range: (Tid, Tid),
    started: bool,
    /// The place of the current block.
    place: u32,
    block: u32,
    frame: u32,
    serializable: bool,
    /// Number of hits, and the place of the current one.
    count: i32,
    current: i32,
    dead_lines: u32,
    /// What ANALYZE keeps of a user table; null as long as it has looked at nothing.
    sample: *mut Sample,
    /// Blocks of bitmaps that the scan looked at: those with row addresses, and those without.
    exact_blocks: u64,
    lossy_blocks: u64,
    hits: [Hit; LINES],
}

impl Scan {
    /// The scan behind Postgres' descriptor.
    ///
    /// # Safety
    /// `scan` was made by [`scan_begin`] and not ended.
    pub unsafe fn of<'s>(scan: pg_sys::TableScanDesc) -> &'s mut Scan {
        // SAFETY: see above.
        unsafe { &mut *scan.cast::<Scan>() }
    }

    /// Blocks of bitmaps that the scan looked at: those with row addresses, and those without.
    pub fn bitmap_blocks(&self) -> (u64, u64) {
        (self.exact_blocks, self.lossy_blocks)
    }

    /// One more than the last block of the scan.
    pub fn end(&self) -> u32 {
        self.end
    }

    fn unpin(&mut self) {
        if self.frame != NO_FRAME {
            pins::give_back(self.storage.cache, self.frame);
            self.frame = NO_FRAME;
        }
    }

    fn restart(&mut self) {
        self.unpin();
        self.first = 0;
        self.end = match self.access {
            Access::All => self.storage.blocks(),
            Access::Nothing => 0,
            Access::Partition(_) if !self.walks_blocks() || !self.base.rs_parallel.is_null() => self.storage.blocks(),
            Access::Partition(partition) => {
                let wait = BackendWait::new(self.storage.cache);
                self.set_list(&partition::blocks_of(&self.storage, partition, &wait).or_raise())
            }
        };
        self.started = false;
        self.count = 0;
        self.current = -1;
    }

    /// Whether the scan itself decides which blocks it reads, and not an index or TIDs.
    fn walks_blocks(&self) -> bool {
        use pg_sys::ScanOptions::{SO_TYPE_SAMPLESCAN, SO_TYPE_SEQSCAN, SO_TYPE_TIDRANGESCAN};
        self.base.rs_flags & (SO_TYPE_SEQSCAN | SO_TYPE_SAMPLESCAN | SO_TYPE_TIDRANGESCAN) != 0
    }

    /// Makes these the blocks to scan; returns how many they are.
    fn set_list(&mut self, blocks: &[u32]) -> u32 {
        self.drop_list();
        if blocks.len() <= partition::FEW {
            self.few[..blocks.len()].copy_from_slice(blocks);
            self.list = self.few.as_mut_ptr();
        } else {
            // SAFETY: the chunk lives as long as the scan, and is as long as the list.
            unsafe {
                self.list = pg_sys::MemoryContextAllocHuge(self.memory, size_of_val(blocks)).cast();
                std::ptr::copy_nonoverlapping(blocks.as_ptr(), self.list, blocks.len());
            }
        }
        blocks.len() as u32
    }

    fn drop_list(&mut self) {
        if !self.list.is_null() && self.list != self.few.as_mut_ptr() {
            // SAFETY: allocated by `set_list`.
            unsafe { plain::pfree(self.list.cast()) };
        }
        self.list = std::ptr::null_mut();
    }

    /// Scans all rows, those of each user together.
    pub fn reach_everybody_by_partition(&mut self) {
        self.access = Access::All;
        self.restart();
        let wait = BackendWait::new(self.storage.cache);
        self.end = self.set_list(&partition::blocks_by_partition(&self.storage, &wait).or_raise());
    }

    /// Scans all rows.
    pub fn reach_everybody(&mut self) {
        if is_partitioned(self.base.rs_rd) {
            note_read_of_all();
        }
        if !self.base.rs_parallel.is_null() {
            // SAFETY: the scan's shared state.
            unsafe { parallel::require_everybody(self.base.rs_parallel) };
        }
        self.access = Access::All;
        self.drop_list();
        self.restart();
    }

    /// The block at a place of the scan.
    #[inline]
    fn block_at(&self, place: u32) -> u32 {
        if self.list.is_null() {
            return place;
        }
        // SAFETY: places lie below `end`, which is the length of the list at most.
        unsafe { *self.list.add(place as usize) }
    }

    /// The place of the first block that is not below this one.
    fn place_of(&self, block: u32) -> u32 {
        if self.list.is_null() {
            return block;
        }
        // SAFETY: the list has `end` blocks after a restart.
        let blocks = unsafe { std::slice::from_raw_parts(self.list, self.end as usize) };
        blocks.partition_point(|listed| *listed < block) as u32
    }

    /// Whether the scan may look at a block that it did not choose itself.
    fn may_enter(&self, block: u32, wait: &dyn Wait) -> bool {
        self.access == Access::All || self.access.allows_block(&self.storage, block, wait).or_raise()
    }

    /// Pins a block's page as the scan's current one, pruned if that is worth it.
    fn enter(&mut self, block: u32, wait: &dyn Wait) {
        self.unpin();
        let pin = self.storage.cache.read(self.storage.block(block), wait).or_raise();
        prune::on_access(self.base.rs_rd, &self.storage, &pin, wait);
        self.block = block;
        self.frame = pins::keep(pin);
        if self.is_counted() {
            stats::count_blocks(self.base.rs_rd, 1);
        }
    }

    /// Whether the statistics are told what the scan reads. Which pages a bitmap names, and whether it names their rows, may depend on
    /// the entries of all users in the index.
    fn is_counted(&self) -> bool {
        self.access == Access::All || self.base.rs_flags & pg_sys::ScanOptions::SO_TYPE_BITMAPSCAN == 0
    }

    /// Finds the versions of a block that the snapshot sees.
    fn collect(&mut self, block: u32) {
        let wait = BackendWait::new(self.storage.cache);
        check_for_interrupts();
        self.enter(block, &wait);
        let pin = BorrowedPin::of(&self.storage, self.frame);
        let guard = pin.get().shared(&wait).or_raise();
        let page = guard.page();
        self.count = 0;
        self.current = -1;
        if page.kind() != PageKind::Data || !self.access.allows(page) {
            return;
        }
        let all_visible = page.flags() & ALL_VISIBLE != 0 && self.view.is_mvcc() && !self.serializable;
        let bring = |offset| {
            if !all_visible && offset <= page.max_offset() {
                prefetch(guard.data().wrapping_add(page.line(offset).offset()));
            }
        };
        (1..=AHEAD as u16).for_each(bring);
        for offset in 1..=page.max_offset() {
            bring(offset + AHEAD as u16);
            let line = page.line(offset);
            if !line.is_normal() {
                continue;
            }
            if !all_visible && !self.sees(pin.get(), page, offset) {
                continue;
            }
            if self.expiry.is_gone(page, offset) {
                continue;
            }
            self.add(page, offset);
        }
    }

    #[inline]
    fn add(&mut self, page: Page<'_>, offset: u16) {
        let line = page.line(offset);
        self.hits[self.count as usize] = Hit { offset, at: line.offset() as u16, len: line.len() as u16 };
        self.count += 1;
    }

    #[inline]
    fn sees(&self, pin: &kalamdb_engine::cache::Pin, page: Page<'_>, offset: u16) -> bool {
        let Some(version) = page.version(offset) else { return false };
        let header = version.header();
        let mut hints = 0;
        let seen = self.view.sees(&header, self.storage.hint_lsn(page), &mut hints);
        set_hints(pin, page, offset, hints);
        if self.serializable {
            // SAFETY: the scan's own relation and snapshot.
            unsafe { check_conflict_out(self.base.rs_rd, &self.view, seen, &header) };
        }
        seen
    }

    /// The scanned table.
    pub fn relation(&self) -> pg_sys::Relation {
        self.base.rs_rd
    }

    /// What ANALYZE keeps of a user table.
    pub fn sample(&mut self) -> &mut Sample {
        // SAFETY: a sample lives in the scan's memory, as long as the scan.
        unsafe {
            if self.sample.is_null() {
                self.sample = in_context(self.memory, || Sample::new(self.base.rs_rd));
            }
            &mut *self.sample
        }
    }

    /// Takes every version of a block, seen or not, and counts dead line pointers.
    pub fn collect_every_version(&mut self, block: u32) {
        let wait = BackendWait::new(self.storage.cache);
        check_for_interrupts();
        self.unpin();
        let pin = self.storage.cache.read(self.storage.block(block), &wait).or_raise();
        self.block = block;
        self.frame = pins::keep(pin);
        let pin = BorrowedPin::of(&self.storage, self.frame);
        let guard = pin.get().shared(&wait).or_raise();
        let page = guard.page();
        (self.count, self.current, self.dead_lines) = (0, -1, 0);
        if page.kind() != PageKind::Data {
            return;
        }
        for offset in 1..=page.max_offset() {
            let line = page.line(offset);
            if line.is_normal() {
                self.add(page, offset);
            } else if line.is_dead() {
                self.dead_lines += 1;
            }
        }
    }

    /// The dead line pointers counted last; zero from then on.
    pub fn take_dead_lines(&mut self) -> u32 {
        std::mem::take(&mut self.dead_lines)
    }

    /// Moves to the next version of the block and reads its header.
    pub fn next_version(&mut self) -> Option<(Header, Lsn)> {
        if self.current + 1 >= self.count {
            return None;
        }
        self.current += 1;
        self.current_header()
    }

    /// The header of the current version as it is now, and its page's LSN.
    pub fn current_header(&self) -> Option<(Header, Lsn)> {
        let wait = BackendWait::new(self.storage.cache);
        let pin = BorrowedPin::of(&self.storage, self.frame);
        let guard = pin.get().shared(&wait).or_raise();
        let page = guard.page();
        Some((page.version(self.hits[self.current as usize].offset)?.header(), page.lsn()))
    }

    /// The TID of the current version.
    pub fn current_tid(&self) -> Tid {
        Tid::new(self.block, self.hits[self.current as usize].offset)
    }

    /// The line pointers that indexes name for the versions of the current page.
    pub fn current_roots(&self) -> [u16; LINES] {
        let wait = BackendWait::new(self.storage.cache);
        let pin = BorrowedPin::of(&self.storage, self.frame);
        let guard = pin.get().shared(&wait).or_raise();
        root_offsets(guard.page(), |multi| PostgresStatus.multi_update_xid(multi))
    }

    /// Gives up the current page.
    pub fn leave(&mut self) {
        self.unpin();
        self.count = 0;
        self.current = -1;
    }

    /// Limits the scan to a run of blocks.
    pub fn limit(&mut self, first: u32, blocks: u32) {
        self.first = first.min(self.end);
        self.end = first.saturating_add(blocks).min(self.end);
    }

    /// Moves to the next version in block order.
    ///
    /// # Safety
    /// The scan is open.
    pub unsafe fn next_hit(&mut self) -> bool {
        // SAFETY: the caller's.
        unsafe { self.advance(true) }
    }

    /// Number of blocks to scan, over all workers.
    pub fn total_blocks(&self) -> u32 {
        if self.base.rs_parallel.is_null() {
            return self.end - self.first;
        }
        // SAFETY: the scan's shared state.
        unsafe { parallel::blocks(self.base.rs_parallel) }
    }

    /// Puts the current hit into a slot.
    ///
    /// # Safety
    /// `slot` is a slot of ours for the scanned table.
    pub unsafe fn store_current(&self, slot: *mut pg_sys::TupleTableSlot) {
        let hit = self.hits[self.current as usize];
        let place = TuplePlace {
            frame: self.frame,
            page: BorrowedPin::of(&self.storage, self.frame).get().data(),
            offset: hit.at as usize,
            len: hit.len as usize,
        };
        if let Some(ahead) = self.hits[..self.count as usize].get(self.current as usize + AHEAD) {
            prefetch(place.page.wrapping_add(ahead.at as usize + PREFIX));
        }
        // SAFETY: the frame is pinned by the scan; versions stay in place under a pin.
        unsafe { store_version(slot, self.base.rs_rd, &self.storage, place, Tid::new(self.block, hit.offset)) };
    }

    /// The block after the current one in scan order.
    unsafe fn next_block(&mut self, forward: bool) -> Option<u32> {
        if !self.base.rs_parallel.is_null() {
            // SAFETY: the scan's shared state.
            return unsafe { self.next_parallel_block() };
        }
        if !self.started {
            self.started = true;
            if self.first >= self.end {
                return None;
            }
            self.place = if forward { self.first } else { self.end - 1 };
        } else if forward {
            self.place = self.place.checked_add(1).filter(|next| *next < self.end)?;
            self.read_ahead(self.place);
        } else {
            self.place = self.place.checked_sub(1).filter(|next| *next >= self.first)?;
        }
        Some(self.block_at(self.place))
    }

    fn read_ahead(&self, next: u32) {
        let last = next.saturating_add(READ_AHEAD);
        let from = if next == self.first + 1 { next + 1 } else { last };
        for place in from..=last.min(self.end.saturating_sub(1)) {
            self.storage.cache.prefetch(self.storage.block(self.block_at(place)));
        }
    }

    unsafe fn next_parallel_block(&mut self) -> Option<u32> {
        let wait = BackendWait::new(self.storage.cache);
        loop {
            // SAFETY: see `next_block`.
            let block = unsafe { parallel::next_block(self.base.rs_rd, &mut self.parallel, self.base.rs_parallel, self.started) };
            self.started = true;
            let block = block?;
            if self.may_enter(block, &wait) {
                return Some(block);
            }
            check_for_interrupts();
        }
    }

    /// Moves to the next hit; false at the end, after which the scan can start again in either direction.
    unsafe fn advance(&mut self, forward: bool) -> bool {
        loop {
            let next = if forward { self.current + 1 } else { self.current - 1 };
            if self.started && self.frame != NO_FRAME && next >= 0 && next < self.count {
                self.current = next;
                return true;
            }
            // SAFETY: the caller's.
            let Some(block) = (unsafe { self.next_block(forward) }) else {
                self.unpin();
                self.started = false;
                self.count = 0;
                self.current = -1;
                return false;
            };
            self.collect(block);
            stats::count_returned(self.base.rs_rd, i64::from(self.count));
            if !forward {
                self.current = self.count;
            }
        }
    }
}

/// Begins a scan.
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_begin(
    rel: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    nkeys: std::ffi::c_int,
    key: *mut pg_sys::ScanKeyData,
    parallel: pg_sys::ParallelTableScanDesc,
    flags: u32,
) -> pg_sys::TableScanDesc {
    // SAFETY: a zeroed chunk in the executor's memory context; every field is set or valid as zero.
    unsafe {
        let storage = Storage::of(rel);
        pg_sys::RelationIncrementReferenceCount(rel);
        let scan = pg_sys::palloc0(size_of::<Scan>()).cast::<Scan>();
        (*scan).base.rs_rd = rel;
        (*scan).base.rs_snapshot = snapshot;
        (*scan).base.rs_nkeys = nkeys;
        (*scan).base.rs_flags = flags;
        (*scan).base.rs_parallel = parallel;
        (&raw mut (*scan).storage).write(storage);
        // ANALYZE scans without a snapshot and judges versions itself.
        let judged_by = if snapshot.is_null() { &raw mut pg_sys::SnapshotAnyData } else { snapshot };
        (&raw mut (*scan).view).write(SnapshotView::new(judged_by));
        (*scan).frame = NO_FRAME;
        (*scan).memory = pg_sys::CurrentMemoryContext;
        // Statements read under a snapshot of their own; whoever uses another kind looks at the table itself.
        let wait = BackendWait::new(storage.cache);
        let (access, expiry) = if (*scan).view.is_mvcc() {
            (Access::of_statement(rel, &storage, &wait), Expiry::of_transaction(rel, &storage, &wait))
        } else {
            (Access::All, Expiry::for_everybody(rel, &storage))
        };
        (&raw mut (*scan).access).write(access);
        (&raw mut (*scan).expiry).write(expiry);
        if nkeys > 0 {
            let bytes = size_of::<pg_sys::ScanKeyData>() * nkeys as usize;
            (*scan).base.rs_key = pg_sys::palloc(bytes).cast();
            std::ptr::copy_nonoverlapping(key, (*scan).base.rs_key, nkeys as usize);
        }
        let whole = pg_sys::ScanOptions::SO_TYPE_SEQSCAN | pg_sys::ScanOptions::SO_TYPE_SAMPLESCAN;
        if flags & whole != 0 && !snapshot.is_null() {
            raw::PredicateLockRelation(rel, snapshot);
        }
        let state = &mut *scan;
        state.serializable = state.view.is_mvcc() && needs_conflict_checks(rel, &state.view);
        state.restart();
        if flags & pg_sys::ScanOptions::SO_TYPE_SEQSCAN != 0 {
            stats::count_scan(rel);
        }
        scan.cast()
    }
}

/// Ends a scan.
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_end(scan: pg_sys::TableScanDesc) {
    // SAFETY: made by `scan_begin` and not used afterwards.
    unsafe {
        let state = Scan::of(scan);
        state.unpin();
        state.drop_list();
        if !state.sample.is_null() {
            (*state.sample).store(state.base.rs_rd, state.end);
            (*state.sample).end();
        }
        pg_sys::RelationDecrementReferenceCount((*scan).rs_rd);
        if !(*scan).rs_key.is_null() {
            plain::pfree((*scan).rs_key.cast());
        }
        if (*scan).rs_flags & pg_sys::ScanOptions::SO_TEMP_SNAPSHOT != 0 {
            pg_sys::UnregisterSnapshot((*scan).rs_snapshot);
        }
        plain::pfree(scan.cast());
    }
}

/// Starts a scan over.
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_rescan(
    scan: pg_sys::TableScanDesc,
    key: *mut pg_sys::ScanKeyData,
    _set_params: bool,
    _allow_strat: bool,
    _allow_sync: bool,
    _allow_pagemode: bool,
) {
    // SAFETY: made by `scan_begin`; new keys are as many as the old ones.
    unsafe {
        if !key.is_null() && (*scan).rs_nkeys > 0 {
            std::ptr::copy_nonoverlapping(key, (*scan).rs_key, (*scan).rs_nkeys as usize);
        }
        let state = Scan::of(scan);
        state.restart();
        // A cursor's snapshot may have advanced by commands of its transaction.
        if !(*scan).rs_snapshot.is_null() {
            state.view = SnapshotView::new((*scan).rs_snapshot);
        }
        if (*scan).rs_flags & pg_sys::ScanOptions::SO_TYPE_SEQSCAN != 0 {
            stats::count_scan((*scan).rs_rd);
        }
    }
}

/// Puts the next visible row into a slot; false at the end.
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_getnextslot(
    scan: pg_sys::TableScanDesc,
    direction: pg_sys::ScanDirection::Type,
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    // SAFETY: made by `scan_begin`; the slot is ours.
    unsafe {
        let state = Scan::of(scan);
        let forward = direction >= 0;
        loop {
            if !state.advance(forward) {
                clear(slot);
                return false;
            }
            state.store_current(slot);
            if keys_match(scan, slot) {
                return true;
            }
        }
    }
}

/// Empties a slot.
///
/// # Safety
/// `slot` is a live slot.
pub unsafe fn clear(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: every slot kind has this operation.
    unsafe { (*(*slot).tts_ops).clear.expect("every slot kind can be cleared")(slot) };
}

/// Whether the row satisfies the scan's keys; the executor passes none, some of Postgres' own code does.
unsafe fn keys_match(scan: pg_sys::TableScanDesc, slot: *mut pg_sys::TupleTableSlot) -> bool {
    // SAFETY: keys name columns of the table; the slot holds a row of it.
    unsafe {
        for place in 0..(*scan).rs_nkeys.max(0) as usize {
            let key = &mut *(*scan).rs_key.add(place);
            if key.sk_flags & pg_sys::SK_ISNULL as i32 != 0 {
                return false;
            }
            let column = i32::from(key.sk_attno);
            if i32::from((*slot).tts_nvalid) < column {
                pg_sys::slot_getsomeattrs_int(slot, column);
            }
            let index = column as usize - 1;
            if *(*slot).tts_isnull.add(index) {
                return false;
            }
            let value = *(*slot).tts_values.add(index);
            let matches = pg_sys::FunctionCall2Coll(&mut key.sk_func, key.sk_collation, value, key.sk_argument);
            if matches.value() == 0 {
                return false;
            }
        }
    }
    true
}

/// Limits a scan to a range of TIDs.
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_set_tidrange(
    scan: pg_sys::TableScanDesc,
    least: pg_sys::ItemPointer,
    greatest: pg_sys::ItemPointer,
) {
    // SAFETY: made by `scan_begin`; Postgres passes two TIDs.
    unsafe {
        let state = Scan::of(scan);
        let (least, greatest) = (tid_of(&*least), tid_of(&*greatest));
        state.range = (least, greatest);
        state.restart();
        let (whole, above) = (state.end, greatest.block.saturating_add(1));
        state.first = state.place_of(least.block).min(whole);
        state.end = if greatest < least { state.first } else { state.place_of(above).min(whole) };
    }
}

/// Puts the next visible row of the TID range into a slot.
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_getnextslot_tidrange(
    scan: pg_sys::TableScanDesc,
    direction: pg_sys::ScanDirection::Type,
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    // SAFETY: made by `scan_begin`; the slot is ours.
    unsafe {
        let state = Scan::of(scan);
        let range = state.range.0..=state.range.1;
        while state.advance(direction >= 0) {
            let tid = Tid::new(state.block, state.hits[state.current as usize].offset);
            if range.contains(&tid) {
                state.store_current(slot);
                return true;
            }
        }
        clear(slot);
        false
    }
}

compat::bitmap_callbacks!(set_bitmap_callbacks, enter_bitmap_page, next_of_bitmap_page);

/// Reads a page of a bitmap, all of it or the rows at some offsets; false when it has nothing to look at.
unsafe fn enter_bitmap_page(scan: pg_sys::TableScanDesc, block: u32, offsets: Option<&[u16]>) -> bool {
    // SAFETY: made by `scan_begin`.
    let state = unsafe { Scan::of(scan) };
    state.count = 0;
    state.current = -1;
    let wait = BackendWait::new(state.storage.cache);
    if block >= state.end || !state.may_enter(block, &wait) {
        return false;
    }
    let Some(offsets) = offsets else {
        state.lossy_blocks += 1;
        state.collect(block);
        return state.count > 0;
    };
    state.exact_blocks += 1;
    state.enter(block, &wait);
    let pin = BorrowedPin::of(&state.storage, state.frame);
    let guard = pin.get().shared(&wait).or_raise();
    let page = guard.page();
    for offset in offsets {
        let root = Tid::new(block, *offset);
        let hit = search_chain(state.base.rs_rd, &state.storage, &state.view, pin.get(), page, root, true, false);
        if let Some(found) = hit.found.filter(|found| !state.expiry.is_gone(page, *found)) {
            if state.serializable
                && let Some(place) = super::fetch::version_place(pin.get(), page, found)
            {
                // SAFETY: the scan's own relation and snapshot; the page is pinned.
                unsafe { super::fetch::predicate_lock(state.base.rs_rd, &state.view, Tid::new(block, found), place) };
            }
            state.add(page, found);
        }
    }
    state.count > 0
}

/// Puts the next row of the bitmap's page into a slot.
unsafe fn next_of_bitmap_page(scan: pg_sys::TableScanDesc, slot: *mut pg_sys::TupleTableSlot) -> bool {
    // SAFETY: made by `scan_begin`; the slot is ours.
    unsafe {
        let state = Scan::of(scan);
        if state.current + 1 >= state.count {
            return false;
        }
        state.current += 1;
        if state.is_counted() {
            stats::count_fetched(state.base.rs_rd, 1);
        }
        state.store_current(slot);
        true
    }
}
