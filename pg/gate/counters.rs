//! Counters of indexes of user tables, which would tell what others have.
//!
//! Postgres counts the entries that a search of an index meets, also those that lead to rows of other users, and functions show the
//! counters to everybody. So it counts these indexes where nobody looks; what reaches the statistics is how often they were searched.

use std::cell::{Cell, RefCell};

use pgrx::{pg_guard, pg_sys};

use super::planner::{nodes, relations};
use crate::hash::Map;

thread_local! {
    /// The counters that stand in for those of the statistics, by index. Postgres keeps their addresses.
    static HIDDEN: RefCell<Map<u32, Box<pg_sys::PgStat_TableStatus>>> = RefCell::default();
}

/// Installs the callback; once per process.
pub fn init() {
    // SAFETY: a plain function that stays loaded.
    unsafe { pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut()) };
}

/// Hides the counters of the indexes of all user tables of a statement.
///
/// # Safety
/// A list of range table entries, whose tables are locked.
pub unsafe fn hide_of_statement(entries: *mut pg_sys::List) {
    // SAFETY: the caller's.
    unsafe {
        for table in relations(entries).filter(|table| super::is_user_table(*table).is_some()) {
            let rel = pg_sys::RelationIdGetRelation(table);
            if !rel.is_null() {
                hide_of_table(rel);
                pg_sys::RelationClose(rel);
            }
        }
    }
}

/// Hides the counters of the indexes of a table that gets a row outside of a query: COPY.
///
/// # Safety
/// An open user table.
pub unsafe fn hide_of_copy(rel: pg_sys::Relation) {
    thread_local! {
        /// The table and the statement, by its start, that were seen last.
        static LAST: Cell<(u32, i64)> = const { Cell::new((0, 0)) };
    }
    // SAFETY: the caller's; a value of the process.
    unsafe {
        let seen = ((*rel).rd_id.to_u32(), pg_sys::GetCurrentStatementStartTimestamp());
        if LAST.replace(seen) != seen {
            hide_of_table(rel);
        }
    }
}

unsafe fn hide_of_table(rel: pg_sys::Relation) {
    // SAFETY: an open user table; the list is a copy.
    unsafe {
        let indexes = pg_sys::RelationGetIndexList(rel);
        for place in 0..if indexes.is_null() { 0 } else { (*indexes).length as usize } {
            hide((*(*indexes).elements.add(place)).oid_value);
        }
        pg_sys::list_free(indexes);
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
        let rel = pg_sys::RelationIdGetRelation(index);
        if rel.is_null() {
            return;
        }
        if !(*rel).pgstat_enabled {
            // Nobody has opened it since its description was made.
            pg_sys::pgstat_init_relation(rel);
        }
        if (*rel).pgstat_enabled {
            HIDDEN.with_borrow_mut(|hidden| {
                let counters: *mut pg_sys::PgStat_TableStatus = &mut **hidden.entry(index.to_u32()).or_default();
                if (*rel).pgstat_info != counters {
                    pg_sys::pgstat_unlink_relation(rel);
                    (*counters).relation = rel;
                    (*rel).pgstat_info = counters;
                }
            });
        }
        pg_sys::RelationClose(rel);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::{XACT_EVENT_PARALLEL_PRE_COMMIT, XACT_EVENT_PRE_COMMIT};
    if [XACT_EVENT_PRE_COMMIT, XACT_EVENT_PARALLEL_PRE_COMMIT].contains(&event) {
        // SAFETY: the transaction is still open.
        unsafe { tell_searches() };
    }
}

/// Adds the numbers of searches to the statistics.
unsafe fn tell_searches() {
    let searched: Vec<(u32, pg_sys::PgStat_Counter)> = HIDDEN.with_borrow_mut(|hidden| {
        let searched = hidden.iter().filter(|(_, counters)| counters.t_counts.t_numscans > 0);
        let searched = searched.map(|(index, counters)| (*index, counters.t_counts.t_numscans)).collect();
        hidden.values_mut().for_each(|counters| counters.t_counts = pg_sys::PgStat_TableCounts::default());
        searched
    });
    for (index, searches) in searched {
        // SAFETY: the description is of an index that the transaction has searched, if it is there still.
        unsafe {
            let rel = pg_sys::RelationIdGetRelation(index.into());
            if rel.is_null() {
                HIDDEN.with_borrow_mut(|hidden| drop(hidden.remove(&index)));
                continue;
            }
            let hidden = (*rel).pgstat_info;
            pg_sys::pgstat_unlink_relation(rel);
            if (*rel).pgstat_enabled {
                pg_sys::pgstat_assoc_relation(rel);
                (*(*rel).pgstat_info).t_counts.t_numscans += searches;
                pg_sys::pgstat_unlink_relation(rel);
                if !hidden.is_null() {
                    (*hidden).relation = rel;
                    (*rel).pgstat_info = hidden;
                }
            }
            pg_sys::RelationClose(rel);
        }
    }
}
