//! Cleans the indexes of a table: drops the entries for dead line pointers, then lets each access method finish.

use pgrx::pg_sys;

use super::super::storage::relation_name;
use super::compat::{self, RelationNumbers};
use super::{Vacuum, limits, reclaim};

/// The open indexes of a table and what their access methods count.
pub struct Indexes {
    relations: *mut pg_sys::Relation,
    count: usize,
    /// One per index; null until its access method has something to tell.
    pub statistics: Vec<*mut pg_sys::IndexBulkDeleteResult>,
    /// The names, for the report after the indexes are closed.
    pub names: Vec<String>,
    /// How often all indexes were cleaned.
    pub rounds: i32,
}

impl Indexes {
    /// Opens the indexes of a table.
    ///
    /// # Safety
    /// The table is open and locked.
    pub unsafe fn open(rel: pg_sys::Relation) -> Indexes {
        let (mut count, mut relations) = (0, std::ptr::null_mut());
        // SAFETY: see above; the out parameters are locals.
        unsafe { pg_sys::vac_open_indexes(rel, pg_sys::RowExclusiveLock as i32, &mut count, &mut relations) };
        let count = count as usize;
        let mut indexes =
            Indexes { relations, count, statistics: vec![std::ptr::null_mut(); count], names: Vec::new(), rounds: 0 };
        indexes.names = indexes.relations().iter().map(|&index| relation_name(index)).collect();
        indexes
    }

    /// The open indexes.
    pub fn relations(&self) -> &[pg_sys::Relation] {
        if self.relations.is_null() {
            return &[];
        }
        // SAFETY: Postgres allocated the array with so many entries; it lives until `close`.
        unsafe { std::slice::from_raw_parts(self.relations, self.count) }
    }

    /// Whether the table has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Writes the sizes that are known exactly to pg_class.
    ///
    /// # Safety
    /// The indexes are open.
    pub unsafe fn update_pg_class(&self) {
        for (&index, &found) in self.relations().iter().zip(&self.statistics) {
            // SAFETY: null, or the access method's statistics in memory of this command.
            let Some(found) = (unsafe { found.as_ref() }).filter(|found| !found.estimated_count) else { continue };
            let numbers = RelationNumbers {
                pages: found.num_pages,
                tuples: found.num_index_tuples,
                all_visible: 0,
                has_index: false,
                frozen_xid: pg_sys::TransactionId::INVALID,
                min_multi: pg_sys::MultiXactId::INVALID,
            };
            // SAFETY: the index is open and locked.
            unsafe { compat::update_pg_class(index, &numbers) };
        }
    }

    /// Closes the indexes and keeps their locks to the end of the transaction.
    ///
    /// # Safety
    /// They are open.
    pub unsafe fn close(&mut self) {
        // SAFETY: see above.
        unsafe { pg_sys::vac_close_indexes(self.count as i32, self.relations, pg_sys::NoLock as i32) };
        self.relations = std::ptr::null_mut();
    }
}

/// Cleans the indexes of what the first pass has collected and lets the second pass free it; then the list is empty again.
pub fn run_round(vacuum: &mut Vacuum) {
    let counts = &vacuum.counts;
    if vacuum.clean_indexes {
        if vacuum.may_bypass_indexes && limits::may_bypass_indexes(vacuum.pages, counts.dead_line_pages, counts.dead_lines) {
            vacuum.clean_indexes = false;
        } else if clean_all(vacuum) {
            reclaim::free_dead_lines(vacuum);
        }
    }
    vacuum.dead.clear();
}

/// Whether every index has dropped its entries for the list; false in an emergency.
fn clean_all(vacuum: &mut Vacuum) -> bool {
    if vacuum.check_emergency() {
        return false;
    }
    compat::progress(pg_sys::PROGRESS_VACUUM_PHASE, i64::from(pg_sys::PROGRESS_VACUUM_PHASE_VACUUM_INDEX));
    // SAFETY: the relation is open.
    let old_tuples = f64::from(unsafe { (*(*vacuum.rel).rd_rel).reltuples });
    let workers = vacuum.dead.workers();
    let mut done = true;
    if workers.is_null() {
        for place in 0..vacuum.indexes.relations().len() {
            clean_one(vacuum, place, old_tuples);
            if vacuum.check_emergency() {
                done = false;
                break;
            }
        }
    } else {
        // SAFETY: the workers' state lives until `end_workers`.
        unsafe { pg_sys::parallel_vacuum_bulkdel_all_indexes(workers, old_tuples as _, vacuum.indexes.rounds) };
        done = !vacuum.check_emergency();
    }
    vacuum.indexes.rounds += 1;
    compat::progress(pg_sys::PROGRESS_VACUUM_NUM_INDEX_VACUUMS, i64::from(vacuum.indexes.rounds));
    done
}

fn clean_one(vacuum: &mut Vacuum, place: usize, tuples: f64) {
    let index = vacuum.indexes.relations()[place];
    let mut info = compat::index_info(vacuum.rel, index, vacuum.strategy, tuples, true);
    let known = vacuum.indexes.statistics[place];
    // SAFETY: the index is open; the statistics come from its own access method.
    vacuum.indexes.statistics[place] = unsafe { vacuum.dead.delete_from(&mut info, known) };
}

/// Lets every index' access method finish.
pub fn finish_all(vacuum: &mut Vacuum) {
    compat::progress(pg_sys::PROGRESS_VACUUM_PHASE, i64::from(pg_sys::PROGRESS_VACUUM_PHASE_INDEX_CLEANUP));
    let tuples = vacuum.versions_left();
    let estimated = vacuum.counts.scanned_pages < vacuum.pages;
    let workers = vacuum.dead.workers();
    if !workers.is_null() {
        // SAFETY: the workers' state lives until `end_workers`.
        unsafe { pg_sys::parallel_vacuum_cleanup_all_indexes(workers, tuples as _, vacuum.indexes.rounds, estimated) };
        return;
    }
    for place in 0..vacuum.indexes.relations().len() {
        let index = vacuum.indexes.relations()[place];
        let mut info = compat::index_info(vacuum.rel, index, vacuum.strategy, tuples, estimated);
        let known = vacuum.indexes.statistics[place];
        // SAFETY: the index is open; the statistics come from its own access method.
        vacuum.indexes.statistics[place] = unsafe { pg_sys::vac_cleanup_one_index(&mut info, known) };
    }
}
