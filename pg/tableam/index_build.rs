//! Feeds index builds: every version an index needs, with the line pointer it is to name.

use kalamdb_engine::Error;
use kalamdb_engine::ids::{Tid, Xid};
use kalamdb_engine::page::{Header, TupleState};
use kalamdb_engine::visibility::{TransactionStatus, satisfies_vacuum, update_xid};
use pgrx::{pg_guard, pg_sys};

use super::row_lock::{WaitFor, nothing_to_drop, wait_for_xid};
use super::scan::Scan;
use super::slot::{item_pointer, slot_ops};
use super::status::{PostgresStatus, narrow, refresh_reference, widen};
use super::storage::relation_name;
use crate::error::raise;
use crate::ffi::compat;
use crate::ffi::interrupts::check_for_interrupts;
use crate::ffi::unguarded;
use crate::gate;

/// The executor's state for predicates and expressions of one index.
struct Expressions {
    estate: *mut pg_sys::EState,
    context: *mut pg_sys::ExprContext,
    predicate: *mut pg_sys::ExprState,
    slot: *mut pg_sys::TupleTableSlot,
    info: *mut pg_sys::IndexInfo,
    values: [pg_sys::Datum; pg_sys::INDEX_MAX_KEYS as usize],
    nulls: [bool; pg_sys::INDEX_MAX_KEYS as usize],
}

impl Expressions {
    unsafe fn begin(rel: pg_sys::Relation, info: *mut pg_sys::IndexInfo) -> Expressions {
        // SAFETY: an executor state of our own; the slot fits the table.
        unsafe {
            let estate = pg_sys::CreateExecutorState();
            let context = pg_sys::MakePerTupleExprContext(estate);
            let slot = pg_sys::MakeSingleTupleTableSlot((*rel).rd_att, slot_ops());
            (*context).ecxt_scantuple = slot;
            let predicate = pg_sys::ExecPrepareQual((*info).ii_Predicate, estate);
            let values = [pg_sys::Datum::from(0); pg_sys::INDEX_MAX_KEYS as usize];
            Expressions { estate, context, predicate, slot, info, values, nulls: [false; pg_sys::INDEX_MAX_KEYS as usize] }
        }
    }

    /// Computes the index entry of the row in the slot; false when the index does not cover it.
    unsafe fn form(&mut self) -> bool {
        // SAFETY: the states belong to this executor state; the slot holds a row.
        unsafe {
            pg_sys::MemoryContextReset((*self.context).ecxt_per_tuple_memory);
            if !self.predicate.is_null() {
                let old = pg_sys::MemoryContextSwitchTo((*self.context).ecxt_per_tuple_memory);
                let evaluate = (*self.predicate).evalfunc.expect("a prepared qualification can be evaluated");
                let mut is_null = false;
                let result = evaluate(self.predicate, self.context, &mut is_null);
                pg_sys::MemoryContextSwitchTo(old);
                if result.value() as u8 == 0 {
                    return false;
                }
            }
            unguarded::FormIndexDatum(self.info, self.slot, self.estate, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
            true
        }
    }

    unsafe fn end(self) {
        // SAFETY: nothing uses the states any more; the index info must not point to them.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::FreeExecutorState(self.estate);
            (*self.info).ii_ExpressionsState = std::ptr::null_mut();
            (*self.info).ii_PredicateState = std::ptr::null_mut();
        }
    }
}

/// What an index build does with a version.
struct Verdict {
    index: bool,
    alive: bool,
    counts: bool,
    broken_chain: bool,
    wait: Option<Xid>,
}

impl Verdict {
    const SKIP: Verdict = Verdict { index: false, alive: false, counts: false, broken_chain: false, wait: None };
    const LIVE: Verdict = Verdict { index: true, alive: true, counts: true, broken_chain: false, wait: None };
    const DYING: Verdict = Verdict { index: true, alive: false, counts: false, broken_chain: false, wait: None };
    const BROKEN: Verdict = Verdict { index: false, alive: false, counts: false, broken_chain: true, wait: None };

    fn wait_for(xid: Xid) -> Verdict {
        Verdict { wait: Some(xid), ..Verdict::SKIP }
    }
}

/// Judges a version by heap's rules for builds that hold off writers.
fn judge(header: &Header, state: TupleState, any_visible: bool, unique: bool) -> Verdict {
    match state {
        TupleState::Dead => Verdict::SKIP,
        TupleState::Live => Verdict::LIVE,
        TupleState::RecentlyDead if header.is_hot_updated() => Verdict::BROKEN,
        TupleState::RecentlyDead => Verdict::DYING,
        TupleState::InsertInProgress if any_visible || PostgresStatus.is_current(header.xmin) => Verdict::LIVE,
        TupleState::InsertInProgress if unique => Verdict::wait_for(header.xmin),
        TupleState::InsertInProgress => Verdict { counts: false, ..Verdict::LIVE },
        TupleState::DeleteInProgress if any_visible => Verdict { counts: true, ..Verdict::DYING },
        TupleState::DeleteInProgress => {
            let deleter = update_xid(header, &PostgresStatus);
            let own = PostgresStatus.is_current(deleter);
            match (own, header.is_hot_updated()) {
                (true, true) => Verdict::BROKEN,
                (true, false) => Verdict::DYING,
                (false, hot) if hot || unique => Verdict::wait_for(deleter),
                (false, _) => Verdict { counts: true, ..Verdict::DYING },
            }
        }
    }
}

/// Scans a table for an index build.
#[pg_guard]
pub unsafe extern "C-unwind" fn index_build_range_scan(
    rel: pg_sys::Relation,
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    allow_sync: bool,
    any_visible: bool,
    progress: bool,
    start_block: pg_sys::BlockNumber,
    blocks: pg_sys::BlockNumber,
    callback: pg_sys::IndexBuildCallback,
    callback_state: *mut std::ffi::c_void,
    scan: pg_sys::TableScanDesc,
) -> f64 {
    // SAFETY: Postgres keeps the contract of the callback.
    unsafe {
        refresh_reference();
        gate::check_index(rel, index, info);
        let unique = (*info).ii_Unique || !(*info).ii_ExclusionOps.is_null();
        let judged_here = !(*info).ii_Concurrent;
        let oldest = if judged_here { widen(pg_sys::GetOldestNonRemovableTransactionId(rel)) } else { 0 };
        let mut registered: pg_sys::Snapshot = std::ptr::null_mut();
        let scan = if scan.is_null() {
            let snapshot = if judged_here {
                &raw mut pg_sys::SnapshotAnyData
            } else {
                registered = pg_sys::RegisterSnapshot(pg_sys::GetTransactionSnapshot());
                registered
            };
            super::scan::scan_begin(rel, snapshot, 0, std::ptr::null_mut(), std::ptr::null_mut(), SCAN_FLAGS)
        } else {
            scan
        };
        let state = Scan::of(scan);
        state.reach_everybody();
        if !allow_sync {
            state.limit(start_block, blocks);
        }
        let callback = callback.expect("an index build passes its callback");
        let build = Build { rel, index, callback, callback_state, oldest, any_visible, unique, judged_here };
        let rows = build.run(state, info, progress);
        super::scan::scan_end(scan);
        if !registered.is_null() {
            pg_sys::UnregisterSnapshot(registered);
        }
        rows
    }
}

const SCAN_FLAGS: u32 = pg_sys::ScanOptions::SO_TYPE_SEQSCAN | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;

type Callback = unsafe extern "C-unwind" fn(
    pg_sys::Relation,
    pg_sys::ItemPointer,
    *mut pg_sys::Datum,
    *mut bool,
    bool,
    *mut std::ffi::c_void,
);

/// An index build on its way.
struct Build {
    rel: pg_sys::Relation,
    index: pg_sys::Relation,
    callback: Callback,
    callback_state: *mut std::ffi::c_void,
    oldest: Xid,
    any_visible: bool,
    unique: bool,
    judged_here: bool,
}

const _: () = nothing_to_drop::<(Build, Expressions)>();

impl Build {
    unsafe fn run(&self, scan: &mut Scan, info: *mut pg_sys::IndexInfo, progress: bool) -> f64 {
        let mut rows = 0.0;
        let mut roots = (u32::MAX, [0; kalamdb_engine::page::MAX_OFFSET as usize + 1]);
        let mut blocks_done = 0;
        // SAFETY: the scan is open and the index info belongs to the index being built.
        unsafe {
            let mut expressions = Expressions::begin(self.rel, info);
            if progress {
                pg_sys::pgstat_progress_update_param(pg_sys::PROGRESS_SCAN_BLOCKS_TOTAL as i32, i64::from(scan.total_blocks()));
            }
            while scan.next_hit() {
                check_for_interrupts();
                let tid = scan.current_tid();
                if tid.block != roots.0 {
                    roots = (tid.block, scan.current_roots());
                    blocks_done += 1;
                    if progress {
                        pg_sys::pgstat_progress_update_param(pg_sys::PROGRESS_SCAN_BLOCKS_DONE as i32, blocks_done);
                    }
                }
                let Some((header, verdict)) = self.decide(scan) else { continue };
                rows += f64::from(u8::from(verdict.counts));
                if verdict.broken_chain {
                    (*info).ii_BrokenHotChain = true;
                }
                if !verdict.index {
                    continue;
                }
                scan.store_current(expressions.slot);
                if !expressions.form() {
                    continue;
                }
                let named = self.named_tid(scan, &header, tid, &mut roots.1);
                let mut pointer = item_pointer(named);
                let (values, nulls) = (expressions.values.as_mut_ptr(), expressions.nulls.as_mut_ptr());
                (self.callback)(self.index, &mut pointer, values, nulls, verdict.alive, self.callback_state);
            }
            if progress {
                pg_sys::pgstat_progress_update_param(pg_sys::PROGRESS_SCAN_BLOCKS_DONE as i32, i64::from(scan.total_blocks()));
            }
            expressions.end();
        }
        rows
    }

    /// Decides about the current version, after waiting for whoever is still changing it where that matters.
    fn decide(&self, scan: &Scan) -> Option<(Header, Verdict)> {
        loop {
            let (header, lsn) = scan.current_header()?;
            if !self.judged_here {
                return Some((header, Verdict::LIVE));
            }
            let mut hints = 0;
            let state = satisfies_vacuum(&header, self.oldest, &PostgresStatus, lsn, &mut hints);
            let verdict = judge(&header, state, self.any_visible, self.unique);
            let Some(xid) = verdict.wait else { return Some((header, verdict)) };
            let what = WaitFor { rel: self.rel, tid: scan.current_tid(), operation: pg_sys::XLTW_Oper::XLTW_InsertIndexUnique };
            wait_for_xid(narrow(xid), &what, true);
            check_for_interrupts();
        }
    }

    /// The TID that the index entry of a version names: the root of its chain.
    fn named_tid(&self, scan: &Scan, header: &Header, tid: Tid, roots: &mut [u16]) -> Tid {
        root_of(self.rel, scan, header, tid, roots)
    }
}

fn root_of(rel: pg_sys::Relation, scan: &Scan, header: &Header, tid: Tid, roots: &mut [u16]) -> Tid {
    if !header.is_heap_only() {
        return tid;
    }
    if roots[tid.offset as usize] == 0 {
        // The version was added after the roots were collected.
        roots.copy_from_slice(&scan.current_roots());
    }
    if roots[tid.offset as usize] == 0 {
        raise(Error::corrupt(format!(
            "failed to find parent tuple for heap-only tuple at {tid} in table \"{}\"",
            relation_name(rel)
        )));
    }
    Tid::new(tid.block, roots[tid.offset as usize])
}

/// The TIDs that an index has, in order, as CREATE INDEX CONCURRENTLY sorted them.
struct IndexedTids {
    sort: *mut pg_sys::Tuplesortstate,
    current: Option<Tid>,
    exhausted: bool,
}

impl IndexedTids {
    unsafe fn next(&mut self) {
        // SAFETY: the sort is finished and holds encoded TIDs.
        unsafe {
            match compat::next_sorted_datum(self.sort) {
                Some(encoded) => {
                    let encoded = encoded.value() as u64;
                    self.current = Some(Tid::new((encoded >> 16) as u32, encoded as u16));
                }
                None => {
                    self.exhausted = true;
                    self.current = None;
                }
            }
        }
    }
}

/// Inserts the rows that an index built concurrently misses.
#[pg_guard]
pub unsafe extern "C-unwind" fn index_validate_scan(
    rel: pg_sys::Relation,
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    snapshot: pg_sys::Snapshot,
    state: *mut pg_sys::ValidateIndexState,
) {
    // SAFETY: Postgres keeps the contract of the callback.
    unsafe {
        let scan_desc = super::scan::scan_begin(rel, snapshot, 0, std::ptr::null_mut(), std::ptr::null_mut(), SCAN_FLAGS);
        let scan = Scan::of(scan_desc);
        scan.reach_everybody();
        let mut expressions = Expressions::begin(rel, info);
        let mut indexed = IndexedTids { sort: (*state).tuplesort, current: None, exhausted: false };
        let mut roots = (u32::MAX, [0; kalamdb_engine::page::MAX_OFFSET as usize + 1]);
        let mut in_index = [false; kalamdb_engine::page::MAX_OFFSET as usize + 1];
        pg_sys::pgstat_progress_update_param(pg_sys::PROGRESS_SCAN_BLOCKS_TOTAL as i32, i64::from(scan.total_blocks()));
        while scan.next_hit() {
            check_for_interrupts();
            let tid = scan.current_tid();
            (*state).htups += 1.0;
            if tid.block != roots.0 {
                roots = (tid.block, scan.current_roots());
                in_index = [false; kalamdb_engine::page::MAX_OFFSET as usize + 1];
                pg_sys::pgstat_progress_update_param(pg_sys::PROGRESS_SCAN_BLOCKS_DONE as i32, i64::from(tid.block));
            }
            let Some((header, _)) = scan.current_header() else { continue };
            let root = root_of(rel, scan, &header, tid, &mut roots.1);
            while !indexed.exhausted && indexed.current.is_none_or(|current| current < root) {
                // Roots of one block need not come in order: what was passed over is remembered.
                if let Some(current) = indexed.current.filter(|current| current.block == root.block)
                    && let Some(known) = in_index.get_mut(current.offset as usize)
                {
                    *known = true;
                }
                indexed.next();
            }
            let known = indexed.current == Some(root) || in_index[root.offset as usize];
            if known {
                continue;
            }
            scan.store_current(expressions.slot);
            if !expressions.form() {
                continue;
            }
            let unique = if (*info).ii_Unique {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
            } else {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
            };
            let mut pointer = item_pointer(root);
            let (values, nulls) = (expressions.values.as_mut_ptr(), expressions.nulls.as_mut_ptr());
            unguarded::index_insert(index, values, nulls, &mut pointer, rel, unique, false, info);
            (*state).tups_inserted += 1.0;
        }
        expressions.end();
        super::scan::scan_end(scan_desc);
    }
}
