//! What VACUUM asks of Postgres and what differs between its versions: cutoffs, cost accounting, statistics.

use crate::ffi::plain;
use kalamdb_engine::ids::Xid;
use kalamdb_engine::page::PAGE_SIZE;
use pgrx::pg_sys;

/// Blocks of Postgres that one of our pages counts for.
const BLOCKS_PER_PAGE: i32 = (PAGE_SIZE / pg_sys::BLCKSZ as usize) as i32;

/// The limits of one VACUUM of one table, as Postgres computes them.
#[derive(Clone, Copy)]
pub struct Cutoffs {
    /// The table's relfrozenxid before.
    pub relfrozenxid: pg_sys::TransactionId,
    /// The table's relminmxid before.
    pub relminmxid: pg_sys::MultiXactId,
    /// Versions deleted before it can be seen by nobody.
    pub oldest_xmin: pg_sys::TransactionId,
    /// Multixacts before it have no running members.
    pub oldest_multi: pg_sys::MultiXactId,
    /// Transactions before it are frozen.
    pub freeze_limit: pg_sys::TransactionId,
    /// Multixacts before it are replaced.
    pub multi_cutoff: pg_sys::MultiXactId,
    /// Everything older than the limits must go, so that relfrozenxid can move on.
    pub aggressive: bool,
}

impl Cutoffs {
    /// The limits of this VACUUM.
    ///
    /// # Safety
    /// The relation is open and locked, and `params` are those that Postgres passed.
    pub unsafe fn of(rel: pg_sys::Relation, params: *mut pg_sys::VacuumParams) -> Cutoffs {
        // SAFETY: see above; the out parameters are locals.
        unsafe {
            let row = &*(*rel).rd_rel;
            #[cfg(feature = "pg15")]
            {
                let (mut oldest_xmin, mut oldest_multi) = (row.relfrozenxid, row.relminmxid);
                let (mut freeze_limit, mut multi_cutoff) = (row.relfrozenxid, row.relminmxid);
                let aggressive = pg_sys::vacuum_set_xid_limits(
                    rel,
                    (*params).freeze_min_age,
                    (*params).freeze_table_age,
                    (*params).multixact_freeze_min_age,
                    (*params).multixact_freeze_table_age,
                    &mut oldest_xmin,
                    &mut oldest_multi,
                    &mut freeze_limit,
                    &mut multi_cutoff,
                );
                let (relfrozenxid, relminmxid) = (row.relfrozenxid, row.relminmxid);
                Cutoffs { relfrozenxid, relminmxid, oldest_xmin, oldest_multi, freeze_limit, multi_cutoff, aggressive }
            }
            #[cfg(not(feature = "pg15"))]
            {
                let mut cutoffs = pg_sys::VacuumCutoffs::default();
                let aggressive = pg_sys::vacuum_get_cutoffs(rel, params, &mut cutoffs);
                Cutoffs {
                    relfrozenxid: row.relfrozenxid,
                    relminmxid: row.relminmxid,
                    oldest_xmin: cutoffs.OldestXmin,
                    oldest_multi: cutoffs.OldestMxact,
                    freeze_limit: cutoffs.FreezeLimit,
                    multi_cutoff: cutoffs.MultiXactCutoff,
                    aggressive,
                }
            }
        }
    }

    /// Whether the table is so old that only freezing counts now.
    pub fn is_emergency(&self) -> bool {
        // SAFETY: reads shared counters.
        #[cfg(feature = "pg15")]
        unsafe {
            pg_sys::vacuum_xid_failsafe_check(self.relfrozenxid, self.relminmxid)
        }
        #[cfg(not(feature = "pg15"))]
        {
            let cutoffs = pg_sys::VacuumCutoffs {
                relfrozenxid: self.relfrozenxid,
                relminmxid: self.relminmxid,
                OldestXmin: self.oldest_xmin,
                OldestMxact: self.oldest_multi,
                FreezeLimit: self.freeze_limit,
                MultiXactCutoff: self.multi_cutoff,
            };
            // SAFETY: as above.
            unsafe { pg_sys::vacuum_xid_failsafe_check(&cutoffs) }
        }
    }
}

/// The number of the next transaction.
pub fn next_xid() -> Xid {
    // SAFETY: reads a shared counter under Postgres' own lock.
    unsafe { plain::ReadNextFullTransactionId() }.value
}

/// Serves interrupts and sleeps as long as the cost limits want; no latch and no pin is held.
pub fn delay_point() {
    // SAFETY: errors unwind through the guard.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::vacuum_delay_point();
        #[cfg(feature = "pg18")]
        pg_sys::vacuum_delay_point(false);
    }
}

/// What a page did to the budget of a VACUUM.
#[derive(Clone, Copy)]
pub enum Cost {
    /// It was in the cache.
    Hit,
    /// It was loaded.
    Miss,
    /// It was clean before.
    Dirty,
}

/// Charges a page to the cost limits, which [`delay_point`] enforces.
pub fn charge(cost: Cost) {
    // SAFETY: plain globals of the backend's only thread.
    unsafe {
        if !pg_sys::VacuumCostActive {
            return;
        }
        let each = match cost {
            Cost::Hit => pg_sys::VacuumCostPageHit,
            Cost::Miss => pg_sys::VacuumCostPageMiss,
            Cost::Dirty => pg_sys::VacuumCostPageDirty,
        };
        pg_sys::VacuumCostBalance += each * BLOCKS_PER_PAGE;
    }
}

/// Stops the enforcement of cost limits for the rest of this VACUUM.
pub fn stop_cost_limits() {
    // SAFETY: plain globals of the backend's only thread.
    unsafe {
        pg_sys::VacuumCostActive = false;
        pg_sys::VacuumCostBalance = 0;
        #[cfg(not(feature = "pg15"))]
        {
            pg_sys::VacuumFailsafeActive = true;
        }
    }
}

/// What pg_class is told of a table or an index.
pub struct RelationNumbers {
    /// relpages.
    pub pages: u32,
    /// reltuples.
    pub tuples: f64,
    /// relallvisible.
    pub all_visible: u32,
    /// relhasindex.
    pub has_index: bool,
    /// relfrozenxid; invalid to leave it.
    pub frozen_xid: pg_sys::TransactionId,
    /// relminmxid; invalid to leave it.
    pub min_multi: pg_sys::MultiXactId,
}

/// Writes a relation's row of pg_class; tells whether relfrozenxid and relminmxid moved on.
///
/// # Safety
/// The relation is open and locked.
pub unsafe fn update_pg_class(rel: pg_sys::Relation, numbers: &RelationNumbers) -> (bool, bool) {
    let (mut frozen_moved, mut multi_moved) = (false, false);
    // SAFETY: see above; the out parameters are locals.
    unsafe {
        pg_sys::vac_update_relstats(
            rel,
            numbers.pages,
            numbers.tuples,
            numbers.all_visible,
            #[cfg(feature = "pg18")]
            0,
            numbers.has_index,
            numbers.frozen_xid,
            numbers.min_multi,
            &mut frozen_moved,
            &mut multi_moved,
            false,
        );
    }
    (frozen_moved, multi_moved)
}

/// Tells the cumulative statistics what is left in a table.
///
/// # Safety
/// The relation is open.
pub unsafe fn report_to_statistics(rel: pg_sys::Relation, live: i64, dead: i64, _start: pg_sys::TimestampTz) {
    // SAFETY: see above.
    unsafe {
        pg_sys::pgstat_report_vacuum(
            (*rel).rd_id,
            (*(*rel).rd_rel).relisshared,
            live,
            dead,
            #[cfg(feature = "pg18")]
            _start,
        );
    }
}

/// What an index access method is told of the VACUUM.
pub fn index_info(
    _table: pg_sys::Relation,
    index: pg_sys::Relation,
    strategy: pg_sys::BufferAccessStrategy,
    tuples: f64,
    estimated: bool,
) -> pg_sys::IndexVacuumInfo {
    pg_sys::IndexVacuumInfo {
        index,
        #[cfg(not(feature = "pg15"))]
        heaprel: _table,
        analyze_only: false,
        report_progress: false,
        estimated_count: estimated,
        message_level: pg_sys::DEBUG2 as i32,
        num_heap_tuples: tuples,
        strategy,
    }
}

/// Whether this is a worker of autovacuum.
pub fn is_autovacuum() -> bool {
    // SAFETY: set once when the process starts.
    unsafe { pg_sys::MyBackendType == pg_sys::BackendType::B_AUTOVAC_WORKER }
}

/// Kilobytes that the list of dead line pointers may take.
pub fn work_mem() -> i32 {
    unsafe extern "C" {
        #[link_name = "autovacuum_work_mem"]
        static AUTOVACUUM_WORK_MEM: std::ffi::c_int;
    }
    // SAFETY: settings of the process, changed by its only thread.
    unsafe { if is_autovacuum() && AUTOVACUUM_WORK_MEM != -1 { AUTOVACUUM_WORK_MEM } else { pg_sys::maintenance_work_mem } }
}

/// Sets one column of pg_stat_progress_vacuum.
pub fn progress(parameter: u32, value: i64) {
    // SAFETY: writes this backend's own entry.
    unsafe { pg_sys::pgstat_progress_update_param(parameter as i32, value) };
}
