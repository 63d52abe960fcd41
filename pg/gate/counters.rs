//! Counters of indexes of user tables, which would tell what others have.
//!
//! Postgres counts the entries that a search of an index meets, also those that lead to rows of other users, and functions show the
//! counters to everybody. So it counts these indexes where nobody looks; what reaches the statistics is how often they were searched.

use std::cell::{Cell, RefCell};

use pgrx::{pg_guard, pg_sys};

use super::planner::{nodes, relations};
use crate::ffi::catalog::oids;
use crate::ffi::compat::table_counters;
use crate::ffi::{plain, unguarded};
use crate::hash::Map;

/// How often a session tells the statistics of its searches at most, in microseconds: Postgres itself brings them to others once a
/// second.
const TELL_INTERVAL: i64 = 1_000_000;

thread_local! {
    /// The counters that stand in for those of the statistics, by index. Postgres keeps their addresses.
    static HIDDEN: RefCell<Map<u32, Box<pg_sys::PgStat_TableStatus>>> = RefCell::default();
    /// The indexes of the tables that were looked at since the description of some relation changed: none for those that are no user
    /// tables.
    static SEEN: RefCell<Map<u32, Box<[u32]>>> = RefCell::default();
    /// When searches were told last, as the start of a statement.
    static TOLD: Cell<i64> = const { Cell::new(0) };
    /// Whether the process tells of what is left when it ends.
    static TELLS_AT_EXIT: Cell<bool> = const { Cell::new(false) };
}

/// Installs the callbacks; once per process.
pub fn init() {
    // SAFETY: plain functions that stay loaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
        pg_sys::CacheRegisterRelcacheCallback(Some(forget_seen), pg_sys::Datum::from(0));
    }
}

/// A table may have got an index.
unsafe extern "C-unwind" fn forget_seen(_argument: pg_sys::Datum, _relation: pg_sys::Oid) {
    SEEN.with_borrow_mut(Map::clear);
}

/// Hides the counters of the indexes of all user tables of a statement.
///
/// # Safety
/// A list of range table entries, whose tables are locked. The caller's frames own nothing: errors jump over them.
pub unsafe fn hide_of_statement(entries: *mut pg_sys::List) {
    // SAFETY: the caller's.
    unsafe { relations(entries).for_each(|table| hide_of_table(table)) };
}

/// Hides the counters of the indexes of a table if it is a user table.
///
/// They are looked at every time: whoever opens an index while `track_counts` is off takes its counters away.
///
/// # Safety
/// As [`hide_of_statement`].
pub unsafe fn hide_of_table(table: pg_sys::Oid) {
    if !SEEN.with_borrow(|seen| seen.contains_key(&table.to_u32())) {
        // SAFETY: the caller's.
        unsafe { look_at(table) };
    }
    // One by one, as nothing may be owned or borrowed while one is hidden; all are forgotten if a description changes meanwhile.
    let index = |place: usize| SEEN.with_borrow(|seen| seen.get(&table.to_u32())?.get(place).copied());
    for index in (0..).map_while(index) {
        // SAFETY: the caller's.
        unsafe { hide(index.into()) };
    }
}

/// Notes which indexes a table has.
#[cold]
unsafe fn look_at(table: pg_sys::Oid) {
    // SAFETY: the caller has a lock on the table; the list is a copy. Nothing is owned before the last call that may raise an error.
    unsafe {
        let mut indexes = std::ptr::null_mut();
        if super::is_user_table(table).is_some() {
            let rel = unguarded::RelationIdGetRelation(table);
            if !rel.is_null() {
                indexes = unguarded::RelationGetIndexList(rel);
                plain::RelationClose(rel);
            }
        }
        let numbers = oids(indexes).map(|index| index.to_u32()).collect();
        SEEN.with_borrow_mut(|seen| seen.insert(table.to_u32(), numbers));
        plain::list_free(indexes);
    }
}

/// Hides the counters of the indexes that the planner has found.
///
/// # Safety
/// A list of descriptions of indexes of a user table.
pub unsafe fn hide_of_plan(indexes: *mut pg_sys::List) {
    // SAFETY: the caller's.
    unsafe { nodes::<pg_sys::IndexOptInfo>(indexes).for_each(|index| hide((*index).indexoid)) };
}

unsafe fn hide(index: pg_sys::Oid) {
    // SAFETY: the caller holds a lock on the table; the description outlives the reference as long as nothing changes the index.
    unsafe {
        let rel = unguarded::RelationIdGetRelation(index);
        if rel.is_null() {
            return;
        }
        if !(*rel).pgstat_enabled {
            // Nobody has opened it since its description was made.
            pg_sys::pgstat_init_relation(rel);
        }
        if (*rel).pgstat_enabled {
            tell_at_exit();
            HIDDEN.with_borrow_mut(|hidden| {
                let counters: *mut pg_sys::PgStat_TableStatus = &mut **hidden.entry(index.to_u32()).or_default();
                if (*rel).pgstat_info != counters {
                    pg_sys::pgstat_unlink_relation(rel);
                    (*counters).relation = rel;
                    (*rel).pgstat_info = counters;
                }
            });
        }
        plain::RelationClose(rel);
    }
}

/// Has the process tell of what is left when it ends.
fn tell_at_exit() {
    if !TELLS_AT_EXIT.replace(true) {
        // SAFETY: a plain function that stays loaded.
        unsafe { pg_sys::before_shmem_exit(Some(tell_the_rest), pg_sys::Datum::from(0)) };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::{XACT_EVENT_PARALLEL_PRE_COMMIT, XACT_EVENT_PRE_COMMIT, XACT_EVENT_PRE_PREPARE};
    if ![XACT_EVENT_PRE_COMMIT, XACT_EVENT_PARALLEL_PRE_COMMIT, XACT_EVENT_PRE_PREPARE].contains(&event)
        || HIDDEN.with_borrow(Map::is_empty)
    {
        return;
    }
    // SAFETY: a value of the process.
    let now = unsafe { plain::GetCurrentStatementStartTimestamp() };
    // The clock may be set back.
    let is_early = (0..TELL_INTERVAL).contains(&(now - TOLD.get()));
    if is_early && event != XACT_EVENT_PARALLEL_PRE_COMMIT {
        return;
    }
    TOLD.set(now);
    // SAFETY: the transaction is still open.
    unsafe { tell_searches() };
}

/// Tells of the searches since the last time, in a transaction of its own, before the process brings its statistics to others for the
/// last time.
#[pg_guard]
unsafe extern "C-unwind" fn tell_the_rest(_code: std::ffi::c_int, _argument: pg_sys::Datum) {
    if HIDDEN.with_borrow_mut(|hidden| hidden.values_mut().all(|counters| *table_counters(counters).scans == 0)) {
        return;
    }
    TOLD.set(0);
    // SAFETY: Postgres removes temporary tables in the same way at this time.
    unsafe {
        pg_sys::AbortOutOfAnyTransaction();
        pg_sys::StartTransactionCommand();
        pg_sys::CommitTransactionCommand();
    }
}

/// Adds the numbers of searches to the statistics.
unsafe fn tell_searches() {
    let searched: Vec<(u32, pg_sys::PgStat_Counter)> = HIDDEN.with_borrow_mut(|hidden| {
        let counted = hidden.iter_mut().map(|(index, counters)| (*index, std::mem::take(table_counters(counters).scans)));
        counted.filter(|(_, searches)| *searches > 0).collect()
    });
    for (index, searches) in searched {
        // SAFETY: the description is of an index that the session has searched, if it is there still.
        unsafe {
            let rel = pg_sys::RelationIdGetRelation(index.into());
            if rel.is_null() {
                // Postgres keeps the description of an index that the transaction has made and dropped, and with it the counters.
                HIDDEN.with_borrow_mut(|hidden| {
                    if hidden.get(&index).is_some_and(|counters| counters.relation.is_null()) {
                        hidden.remove(&index);
                    }
                });
                continue;
            }
            let hidden = (*rel).pgstat_info;
            pg_sys::pgstat_unlink_relation(rel);
            if (*rel).pgstat_enabled {
                pg_sys::pgstat_assoc_relation(rel);
                *table_counters(&mut *(*rel).pgstat_info).scans += searches;
                pg_sys::pgstat_unlink_relation(rel);
                if !hidden.is_null() {
                    (*hidden).relation = rel;
                    (*rel).pgstat_info = hidden;
                }
            }
            plain::RelationClose(rel);
        }
    }
}
