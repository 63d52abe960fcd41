//! VACUUM of a table: two passes over its pages with the cleaning of its indexes between them.
//!
//! The first pass prunes and freezes each page and remembers its dead line pointers. The indexes then drop their entries for
//! them, and the second pass frees the line pointers. If the memory for remembering does not suffice, indexes and second pass
//! come round several times.
//!
//! Invariants: a line pointer is freed only after every index has dropped its entries for it in this run. relfrozenxid moves on
//! only to an xid below which no version holds one; since there is no visibility map, every page is looked at that is not cold.

mod compat;
mod dead_items;
mod indexes;
mod limits;
mod reclaim;
mod report;
mod scan;
mod truncate;
mod unnamed;

use kalamdb_engine::ids::Xid;
use kalamdb_engine::visibility::{FreezeLimits, FreezeTracker};
use pgrx::{pg_guard, pg_sys};

use super::main_fork;
use super::prune::Horizon;
use super::status::{narrow, refresh_reference};
use super::storage::Storage;
use super::stream;
use crate::cold::{self, ColdBlocks};
use crate::error::OrRaise;
use crate::ffi::interrupts::BackendWait;
use crate::gate::is_partitioned;
use crate::jobs::{Kind, request};
pub use compat::next_xid;
pub use limits::full_cutoff;

use compat::{Cutoffs, RelationNumbers};
use dead_items::DeadItems;
use indexes::Indexes;
use report::{Beginning, TableName};
use unnamed::Unnamed;

/// What was counted, for pg_class, the statistics and the user.
#[derive(Default)]
struct Counts {
    scanned_pages: u32,
    /// Pages that were not looked at because they are cold.
    cold_pages: u32,
    removed_pages: u32,
    /// Pages with dead line pointers.
    dead_line_pages: u32,
    /// Pages of which somebody else's pin kept dead versions.
    missed_pages: u32,
    /// Pages with `ALL_VISIBLE`.
    all_visible_pages: u32,
    /// The last page with versions, plus one.
    nonempty_pages: u32,
    removed_versions: i64,
    dead_lines: i64,
    /// Large values that no row named.
    freed_values: u64,
    live: i64,
    recently_dead: i64,
    missed_dead: i64,
}

/// One VACUUM of one table.
struct Vacuum {
    rel: pg_sys::Relation,
    storage: Storage,
    wait: BackendWait,
    name: TableName,
    indexes: Indexes,
    strategy: pg_sys::BufferAccessStrategy,
    cutoffs: Cutoffs,
    limits: FreezeLimits,
    /// The oldest ids that stay in the table.
    remaining: FreezeTracker,
    horizon: Horizon,
    dead: DeadItems,
    /// Blocks that are not looked at: their rows are frozen in segments.
    cold: ColdBlocks,
    /// The search for large values that no row names, if it is due.
    unnamed: Option<Unnamed>,
    /// Blocks when the run began; later ones have only newer xids.
    pages: u32,
    /// The only blocks to look at, if not all are: then nothing is known of the others' xids.
    only: Option<Vec<u32>>,
    verbose: bool,
    aggressive: bool,
    in_emergency: bool,
    /// Whether the indexes may be spared when there is next to nothing to clean.
    may_bypass_indexes: bool,
    clean_indexes: bool,
    finish_indexes: bool,
    may_truncate: bool,
    counts: Counts,
    /// reltuples.
    live_estimate: f64,
}

/// The access method's callback: VACUUM without FULL.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_vacuum(
    rel: pg_sys::Relation,
    params: *mut pg_sys::VacuumParams,
    strategy: pg_sys::BufferAccessStrategy,
) {
    if stream::is_stream(rel) {
        stream::expire(rel);
    }
    // SAFETY: Postgres passes a table that it opened and locked against other VACUUMs and against schema changes.
    unsafe { run(rel, params, strategy, None) };
}

/// Vacuums the table, or only some of its blocks; returns how many dead versions are still there.
///
/// # Safety
/// As of [`relation_vacuum`].
unsafe fn run(
    rel: pg_sys::Relation,
    params: *mut pg_sys::VacuumParams,
    strategy: pg_sys::BufferAccessStrategy,
    only: Option<Vec<u32>>,
) -> u64 {
    // SAFETY: see above.
    unsafe {
        let beginning = Beginning::now();
        pg_sys::pgstat_progress_start_command(pg_sys::ProgressCommandType::PROGRESS_COMMAND_VACUUM, (*rel).rd_id);
        let mut vacuum = Vacuum::prepare(rel, params, strategy);
        vacuum.only = only;
        if !vacuum.check_emergency() && vacuum.only.is_none() {
            vacuum.unnamed = Unnamed::begin(vacuum.rel, &vacuum.storage, &vacuum.wait).or_raise();
        }
        scan::scan(&mut vacuum);
        vacuum.end_indexes();
        if let Some(unnamed) = vacuum.unnamed.take().filter(|_| !vacuum.in_emergency) {
            vacuum.counts.freed_values = unnamed.free(&vacuum.storage, &vacuum.wait).or_raise();
        }
        truncate::truncate(&mut vacuum);
        main_fork::follow(vacuum.storage.descriptor);
        let moved = vacuum.publish(&beginning);
        if cold::wants_compaction(&vacuum.storage, &vacuum.wait) {
            request::suggest(Kind::Compact, rel);
        }
        pg_sys::pgstat_progress_end_command();
        vacuum.report(&*params, &beginning, moved);
        (vacuum.counts.recently_dead + vacuum.counts.missed_dead).unsigned_abs()
    }
}

/// Removes what is dead as VACUUM does, from within another command, in some blocks or all; returns how many dead versions are still
/// there, as a snapshot or somebody who looks at their page at the moment needs them.
///
/// # Safety
/// The table is open and locked as for VACUUM.
pub unsafe fn remove_dead(rel: pg_sys::Relation, only: Option<Vec<u32>>) -> u64 {
    let mut params = pg_sys::VacuumParams {
        options: pg_sys::VACOPT_VACUUM,
        freeze_min_age: -1,
        freeze_table_age: -1,
        multixact_freeze_min_age: -1,
        multixact_freeze_table_age: -1,
        index_cleanup: pg_sys::VacOptValue::VACOPTVALUE_ENABLED,
        truncate: pg_sys::VacOptValue::VACOPTVALUE_DISABLED,
        log_min_duration: -1,
        nworkers: -1,
        ..Default::default()
    };
    // SAFETY: the caller's lock.
    unsafe {
        let strategy = pg_sys::GetAccessStrategy(pg_sys::BufferAccessStrategyType::BAS_VACUUM);
        let left = run(rel, &raw mut params, strategy, only);
        pg_sys::FreeAccessStrategy(strategy);
        left
    }
}

impl Vacuum {
    /// Opens what the run needs and fixes its limits.
    unsafe fn prepare(
        rel: pg_sys::Relation,
        params: *mut pg_sys::VacuumParams,
        strategy: pg_sys::BufferAccessStrategy,
    ) -> Vacuum {
        // SAFETY: the caller vouches for the relation and the parameters.
        unsafe {
            let storage = Storage::of(rel);
            refresh_reference();
            let params_ref = &*params;
            let verbose = params_ref.options & pg_sys::VACOPT_VERBOSE != 0;
            let skips_nothing = params_ref.options & pg_sys::VACOPT_DISABLE_PAGE_SKIPPING != 0;
            let cutoffs = Cutoffs::of(rel, params);
            let aggressive = cutoffs.aggressive || skips_nothing;
            let name = TableName::of(rel);
            if verbose {
                name.announce(aggressive);
            }
            let indexes = Indexes::open(rel);
            let limits = freeze_limits(&cutoffs);
            // The size is read after the horizon: rows in blocks that come later have younger xids.
            let pages = storage.blocks();
            let clean_indexes = params_ref.index_cleanup != pg_sys::VacOptValue::VACOPTVALUE_DISABLED;
            let workers = if clean_indexes && !cutoffs.is_emergency() { params_ref.nworkers } else { -1 };
            let wait = BackendWait::new(storage.cache);
            // After the cutoffs: what becomes hot from now on has younger xids only.
            let cold = if skips_nothing { ColdBlocks::default() } else { ColdBlocks::of(&storage, &wait).or_raise() };
            let dead = DeadItems::new(rel, indexes.relations(), pages, workers, verbose, strategy);
            Vacuum {
                rel,
                storage,
                wait,
                name,
                indexes,
                strategy,
                cutoffs,
                remaining: FreezeTracker::new(&limits),
                horizon: Horizon::of(rel).at_least(limits.oldest_xmin),
                limits,
                dead,
                cold,
                unnamed: None,
                pages,
                only: None,
                verbose,
                aggressive,
                in_emergency: false,
                may_bypass_indexes: params_ref.index_cleanup != pg_sys::VacOptValue::VACOPTVALUE_ENABLED,
                clean_indexes,
                finish_indexes: clean_indexes,
                // The blocks of a user stay with the user.
                may_truncate: params_ref.truncate != pg_sys::VacOptValue::VACOPTVALUE_DISABLED && !is_partitioned(rel),
                counts: Counts::default(),
                live_estimate: 0.0,
            }
        }
    }

    /// Gives up everything but freezing when the table is about to run out of xids. Tells whether it did, now or before.
    fn check_emergency(&mut self) -> bool {
        if self.in_emergency {
            return true;
        }
        if !self.cutoffs.is_emergency() {
            return false;
        }
        self.in_emergency = true;
        self.clean_indexes = false;
        self.finish_indexes = false;
        self.may_truncate = false;
        self.name.warn_of_emergency(self.indexes.rounds);
        compat::stop_cost_limits();
        true
    }

    /// Ends the work on the indexes and tells the planner their new sizes.
    fn end_indexes(&mut self) {
        // SAFETY: the scan is over, nobody uses the list of dead line pointers again; the indexes are open until closed here.
        unsafe {
            self.dead.end_workers(self.indexes.statistics.as_mut_ptr());
            if self.finish_indexes {
                self.indexes.update_pg_class();
            }
            self.indexes.close();
        }
    }

    /// Rows left, dead ones included.
    fn versions_left(&self) -> f64 {
        self.live_estimate.max(0.0) + self.counts.recently_dead as f64 + self.counts.missed_dead as f64
    }

    /// Tells pg_class and the statistics what came out; tells whether relfrozenxid and relminmxid moved on.
    unsafe fn publish(&self, beginning: &Beginning) -> (bool, bool) {
        compat::progress(pg_sys::PROGRESS_VACUUM_PHASE, i64::from(pg_sys::PROGRESS_VACUUM_PHASE_FINAL_CLEANUP));
        let (all_visible, frozen_xid, min_multi) = if self.only.is_some() {
            // SAFETY: the relation is open.
            let known = unsafe { (*(*self.rel).rd_rel).relallvisible };
            (known.unsigned_abs(), pg_sys::InvalidTransactionId, 0.into())
        } else {
            let all_visible = self.counts.all_visible_pages.min(self.pages);
            (all_visible, narrow(self.remaining.oldest_xid), self.remaining.oldest_multi.into())
        };
        let numbers = RelationNumbers {
            pages: self.pages,
            tuples: self.live_estimate,
            all_visible,
            has_index: !self.indexes.is_empty(),
            frozen_xid,
            min_multi,
        };
        let dead = self.counts.recently_dead + self.counts.missed_dead;
        // SAFETY: the relation is open and locked.
        unsafe {
            let moved = compat::update_pg_class(self.rel, &numbers);
            compat::report_to_statistics(self.rel, self.live_estimate.max(0.0) as i64, dead, beginning.time);
            moved
        }
    }
}

/// The limits in the form that the rules of freezing want: full xids.
fn freeze_limits(cutoffs: &Cutoffs) -> FreezeLimits {
    let next = compat::next_xid();
    let full = |xid: pg_sys::TransactionId| -> Xid { limits::full_cutoff(xid.into_inner(), next) };
    FreezeLimits {
        freeze_xid: full(cutoffs.freeze_limit),
        relfrozen_xid: full(cutoffs.relfrozenxid),
        multi_cutoff: cutoffs.multi_cutoff.into(),
        relmin_multi: cutoffs.relminmxid.into(),
        oldest_xmin: full(cutoffs.oldest_xmin),
        oldest_multi: cutoffs.oldest_multi.into(),
    }
}
