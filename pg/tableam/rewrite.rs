//! Rewrites a table into new files: CLUSTER and VACUUM FULL.
//!
//! Reads every version of the old table, in the order of an index or of its blocks, and hands to the [`Output`] what somebody may
//! still see. Indexes are built anew afterwards and name each version by its own TID, so the new table has no HOT chains.

mod output;

use std::collections::HashMap;

use kalamdb_engine::ids::{FROZEN_XID, Tid, Xid};
use kalamdb_engine::page::infomask::*;
use kalamdb_engine::page::{Header, TupleState};
use kalamdb_engine::visibility::{FreezeLimits, TransactionStatus, satisfies_vacuum, update_xid};
use kalamdb_engine::{Error, ErrorKind};
use pgrx::{pg_guard, pg_sys};

use super::prune::keep_hints;
use super::scan::{self, Scan};
use super::slot::{slot_ops, tid_of};
use super::status::{PostgresStatus, narrow, refresh_reference, widen};
use super::storage::{Storage, relation_name};
use super::stream;
use super::vacuum::{full_cutoff, next_xid};
use crate::error::{OrRaise, raise};
use crate::ffi::compat;
use crate::ffi::interrupts::{BackendWait, check_for_interrupts};
use crate::gate::is_partitioned;
use output::Output;

/// What the caller wants to know afterwards.
#[derive(Default)]
struct Counts {
    /// Versions that are in the new table.
    rows: f64,
    /// Versions that nobody can see any more.
    removed: f64,
    /// Versions that are deleted and in the new table all the same.
    recently_dead: f64,
}

/// Copies what is left of a table into a new one.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_copy_for_cluster(
    old: pg_sys::Relation,
    new: pg_sys::Relation,
    index: pg_sys::Relation,
    use_sort: bool,
    oldest_xmin: pg_sys::TransactionId,
    xid_cutoff: *mut pg_sys::TransactionId,
    multi_cutoff: *mut pg_sys::MultiXactId,
    rows: *mut f64,
    removed: *mut f64,
    recently_dead: *mut f64,
) {
    // SAFETY: Postgres passes two tables with the same columns, locked against everybody else, and valid places for the results.
    unsafe {
        stream::refuse_rewrite(old);
        refresh_reference();
        let limits = freeze_limits(old, oldest_xmin, *xid_cutoff, *multi_cutoff);
        let mut rewrite = Rewrite {
            old,
            storage: Storage::of(old),
            output: Output::begin(old, new, limits),
            oldest_xmin: limits.oldest_xmin,
            counts: Counts::default(),
        };
        if !index.is_null() && !use_sort {
            rewrite.copy_in_index_order(index);
        } else {
            let sort = if use_sort { Sort::begin(old, index) } else { Sort::none() };
            rewrite.copy_in_block_order(sort);
        }
        let Rewrite { output, counts, .. } = rewrite;
        let remaining = output.end().or_raise();
        // Both become the new table's limits: a multixact that could not be replaced keeps them at what it holds.
        if remaining.oldest_xid < limits.freeze_xid {
            *xid_cutoff = narrow(remaining.oldest_xid);
        }
        *multi_cutoff = pg_sys::MultiXactId::from(remaining.oldest_multi);
        *rows += counts.rows;
        *removed += counts.removed;
        *recently_dead += counts.recently_dead;
    }
}

unsafe fn freeze_limits(
    old: pg_sys::Relation,
    oldest_xmin: pg_sys::TransactionId,
    xid_cutoff: pg_sys::TransactionId,
    multi_cutoff: pg_sys::MultiXactId,
) -> FreezeLimits {
    let next = next_xid();
    let full =
        |xid: pg_sys::TransactionId| if xid.into_inner() == 0 { FROZEN_XID + 1 } else { full_cutoff(xid.into_inner(), next) };
    // SAFETY: the relation is open.
    let row = unsafe { &*(*old).rd_rel };
    FreezeLimits {
        freeze_xid: full(xid_cutoff),
        relfrozen_xid: full(row.relfrozenxid),
        multi_cutoff: multi_cutoff.into(),
        relmin_multi: row.relminmxid.into(),
        oldest_xmin: full(oldest_xmin),
        oldest_multi: multi_cutoff.into(),
    }
}

/// A rewrite on its way.
struct Rewrite {
    old: pg_sys::Relation,
    storage: Storage,
    output: Output,
    /// Versions deleted before it can be seen by nobody.
    oldest_xmin: Xid,
    counts: Counts,
}

impl Rewrite {
    /// Copies the versions in the order of an index, by a scan of it.
    unsafe fn copy_in_index_order(&mut self, index: pg_sys::Relation) {
        // SAFETY: the caller's relations are open and locked; the slot fits the table.
        unsafe {
            let index_oid = (*index).rd_id;
            progress(&[
                (pg_sys::PROGRESS_CLUSTER_PHASE, i64::from(pg_sys::PROGRESS_CLUSTER_PHASE_INDEX_SCAN_HEAP)),
                (pg_sys::PROGRESS_CLUSTER_INDEX_RELID, i64::from(index_oid.to_u32())),
            ]);
            let slot = pg_sys::MakeSingleTupleTableSlot((*self.old).rd_att, slot_ops());
            let scan = compat::begin_index_scan(self.old, index, &raw mut pg_sys::SnapshotAnyData);
            pg_sys::index_rescan(scan, std::ptr::null_mut(), 0, std::ptr::null_mut(), 0);
            while pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot) {
                check_for_interrupts();
                if (*scan).xs_recheck {
                    raise(Error::new(ErrorKind::Internal, "CLUSTER does not support lossy index conditions"));
                }
                let tid = tid_of(&(*slot).tts_tid);
                if let Some((header, _)) = self.judge(tid) {
                    self.copy(pg_sys::ExecFetchSlotHeapTuple(slot, false, std::ptr::null_mut()), tid, &header);
                    self.report_copied();
                }
            }
            pg_sys::index_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
    }

    /// Copies the versions block by block, or through a sort.
    unsafe fn copy_in_block_order(&mut self, mut sort: Sort) {
        // SAFETY: as above.
        unsafe {
            let slot = pg_sys::MakeSingleTupleTableSlot((*self.old).rd_att, slot_ops());
            let any = &raw mut pg_sys::SnapshotAnyData;
            let descriptor = scan::scan_begin(self.old, any, 0, std::ptr::null_mut(), std::ptr::null_mut(), SCAN_FLAGS);
            let scan = Scan::of(descriptor);
            if is_partitioned(self.old) {
                scan.reach_everybody_by_partition();
            }
            let blocks = i64::from(scan.total_blocks());
            progress(&[
                (pg_sys::PROGRESS_CLUSTER_PHASE, i64::from(pg_sys::PROGRESS_CLUSTER_PHASE_SEQ_SCAN_HEAP)),
                (pg_sys::PROGRESS_CLUSTER_TOTAL_HEAP_BLKS, blocks),
            ]);
            let mut block = None;
            while scan.next_hit() {
                check_for_interrupts();
                let tid = scan.current_tid();
                if block.replace(tid.block) != Some(tid.block) {
                    progress(&[(pg_sys::PROGRESS_CLUSTER_HEAP_BLKS_SCANNED, i64::from(tid.block) + 1)]);
                }
                let Some((header, state)) = self.judge(tid) else { continue };
                scan.store_current(slot);
                let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, false, std::ptr::null_mut());
                if sort.is_wanted() {
                    sort.put(tuple, tid, &header, state);
                    progress(&[(pg_sys::PROGRESS_CLUSTER_HEAP_TUPLES_SCANNED, self.counts.rows as i64)]);
                } else {
                    self.copy(tuple, tid, &header);
                    self.report_copied();
                }
            }
            progress(&[(pg_sys::PROGRESS_CLUSTER_HEAP_BLKS_SCANNED, blocks)]);
            scan::scan_end(descriptor);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            if sort.is_wanted() {
                self.copy_sorted(&mut sort);
            }
        }
    }

    unsafe fn copy_sorted(&mut self, sort: &mut Sort) {
        progress(&[(pg_sys::PROGRESS_CLUSTER_PHASE, i64::from(pg_sys::PROGRESS_CLUSTER_PHASE_SORT_TUPLES))]);
        // SAFETY: the sort has all its input.
        unsafe { sort.perform() };
        progress(&[(pg_sys::PROGRESS_CLUSTER_PHASE, i64::from(pg_sys::PROGRESS_CLUSTER_PHASE_WRITE_NEW_HEAP))]);
        let mut written = 0;
        // SAFETY: the sort was performed; a tuple stays until the next one is asked for.
        unsafe {
            while let Some((tuple, tid, header)) = sort.next() {
                check_for_interrupts();
                self.copy(tuple, tid, &header);
                written += 1;
                progress(&[(pg_sys::PROGRESS_CLUSTER_HEAP_TUPLES_WRITTEN, written)]);
            }
            sort.end();
        }
    }

    fn report_copied(&self) {
        let rows = self.counts.rows as i64;
        progress(&[(pg_sys::PROGRESS_CLUSTER_HEAP_TUPLES_SCANNED, rows), (pg_sys::PROGRESS_CLUSTER_HEAP_TUPLES_WRITTEN, rows)]);
    }

    /// The header of a version that has to be copied, and what the version is; nothing for one that nobody can see.
    fn judge(&mut self, tid: Tid) -> Option<(Header, TupleState)> {
        let (header, state) = self.look_at(tid);
        match state {
            TupleState::Dead => {
                self.counts.removed += 1.0;
                if self.output.forget_predecessor(&header, tid) {
                    // What counted as recently dead is known to be dead now.
                    self.counts.removed += 1.0;
                    self.counts.recently_dead -= 1.0;
                    self.counts.rows -= 1.0;
                }
                return None;
            }
            TupleState::Live => {}
            TupleState::RecentlyDead => self.counts.recently_dead += 1.0,
            TupleState::InsertInProgress => self.warn_of_others("insert", header.effective_xmin()),
            TupleState::DeleteInProgress => {
                self.warn_of_others("delete", update_xid(&header, &PostgresStatus));
                self.counts.recently_dead += 1.0;
            }
        }
        self.counts.rows += 1.0;
        Some((header, state))
    }

    fn look_at(&self, tid: Tid) -> (Header, TupleState) {
        let wait = BackendWait::new(self.storage.cache);
        let pin = self.storage.cache.read(self.storage.block(tid.block), &wait).or_raise();
        let guard = pin.shared(&wait).or_raise();
        let page = guard.page();
        let Some(version) = page.version(tid.offset) else {
            drop(guard);
            raise(Error::corrupt(format!("row version {tid} of table \"{}\" is gone", relation_name(self.old))));
        };
        let mut header = version.header();
        let mut hints = 0;
        let state = satisfies_vacuum(&header, self.oldest_xmin, &PostgresStatus, page.lsn(), &mut hints);
        keep_hints(&pin, page, tid.offset, &mut header, hints);
        (header, state)
    }

    /// The table is locked against everybody, so a running transaction can only be the own one.
    fn warn_of_others(&self, what: &str, xid: Xid) {
        if !PostgresStatus.is_current(xid) {
            pgrx::warning!("concurrent {what} in progress within table \"{}\"", relation_name(self.old));
        }
    }

    unsafe fn copy(&mut self, tuple: pg_sys::HeapTuple, tid: Tid, header: &Header) {
        // SAFETY: the tuple is a row of the old table, in its slot or in the sort.
        unsafe { self.output.add(tuple, tid, header).or_raise() };
    }
}

const SCAN_FLAGS: u32 = pg_sys::ScanOptions::SO_TYPE_SEQSCAN | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;

/// Sets columns of pg_stat_progress_cluster.
fn progress(columns: &[(u32, i64)]) {
    for (parameter, value) in columns {
        // SAFETY: writes this backend's own entry.
        unsafe { pg_sys::pgstat_progress_update_param(*parameter as i32, *value) };
    }
}

/// Postgres' sort of whole rows by the columns of an index, or none.
struct Sort {
    state: *mut pg_sys::Tuplesortstate,
    /// The deleting commands of transactions that still run: a sorted tuple has Postgres' header only, where they have no place.
    cmax: HashMap<Tid, u32>,
}

impl Sort {
    fn none() -> Sort {
        Sort { state: std::ptr::null_mut(), cmax: HashMap::new() }
    }

    unsafe fn begin(old: pg_sys::Relation, index: pg_sys::Relation) -> Sort {
        // SAFETY: the caller's relations are open; the index is a btree of the table.
        let state = unsafe {
            let memory = pg_sys::maintenance_work_mem;
            pg_sys::tuplesort_begin_cluster((*old).rd_att, index, memory, std::ptr::null_mut(), pg_sys::TUPLESORT_NONE as i32)
        };
        Sort { state, cmax: HashMap::new() }
    }

    fn is_wanted(&self) -> bool {
        !self.state.is_null()
    }

    unsafe fn put(&mut self, tuple: pg_sys::HeapTuple, tid: Tid, header: &Header, state: TupleState) {
        if header.cmax != 0 && matches!(state, TupleState::InsertInProgress | TupleState::DeleteInProgress) {
            self.cmax.insert(tid, header.cmax);
        }
        // SAFETY: the sort takes a copy of the row.
        unsafe { pg_sys::tuplesort_putheaptuple(self.state, tuple) };
    }

    unsafe fn perform(&mut self) {
        // SAFETY: the sort was begun.
        unsafe { pg_sys::tuplesort_performsort(self.state) };
    }

    /// The next row, where it was and its header.
    unsafe fn next(&mut self) -> Option<(pg_sys::HeapTuple, Tid, Header)> {
        // SAFETY: the sort was performed; its tuples are whole heap tuples.
        unsafe {
            let tuple = pg_sys::tuplesort_getheaptuple(self.state, true);
            if tuple.is_null() {
                return None;
            }
            let data = &*(*tuple).t_data;
            let tid = tid_of(&(*tuple).t_self);
            let fields = &data.t_choice.t_heap;
            let multi = data.t_infomask & HEAP_XMAX_IS_MULTI != 0;
            let header = Header {
                xmin: widen(fields.t_xmin),
                xmax: if multi { u64::from(fields.t_xmax.into_inner()) } else { widen(fields.t_xmax) },
                cmin: fields.t_field3.t_cid,
                cmax: self.cmax.get(&tid).copied().unwrap_or(0),
                ctid: tid_of(&data.t_ctid),
                infomask2: data.t_infomask2,
                infomask: data.t_infomask,
            };
            Some((tuple, tid, header))
        }
    }

    unsafe fn end(&mut self) {
        // SAFETY: nothing uses the sort's tuples any more.
        unsafe { pg_sys::tuplesort_end(self.state) };
        self.state = std::ptr::null_mut();
    }
}
