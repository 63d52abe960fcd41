//! What the planner supposes of a user table: that it is as large as the user's part of it.

use pgrx::{pg_guard, pg_sys};

use super::context::{User, is_partitioned, may_plan_key_check, user_of_session};
use super::statistics::{self, Shape};
use super::{Access, access_for_estimate, cost, counters, is_user_table, may_have_users};
use crate::error::OrRaise;
use crate::ffi::interrupts::BackendWait;
use crate::ffi::{compat, plain};
use crate::tableam::partition;
use crate::tableam::storage::Storage;

static mut PREVIOUS_INFO: pg_sys::get_relation_info_hook_type = None;
static mut PREVIOUS_STATISTICS: pg_sys::get_relation_stats_hook_type = None;

/// Installs the hooks; once per process.
pub fn init() {
    // SAFETY: hooks are chained while the library is loaded, by the process' only thread; the functions stay loaded.
    unsafe {
        PREVIOUS_INFO = pg_sys::get_relation_info_hook;
        pg_sys::get_relation_info_hook = Some(relation_info);
        PREVIOUS_STATISTICS = pg_sys::get_relation_stats_hook;
        pg_sys::get_relation_stats_hook = Some(statistics_of);
    }
}

/// The fewest blocks that a user is supposed to have. A plan that is kept may run for others with far more: Postgres supposes ten pages
/// of tables that were never vacuumed for the same reason.
const LEAST_BLOCKS: u32 = 10;

/// The share of a user table's blocks that are the user's, if the statement is planned for one user.
///
/// # Safety
/// An open relation.
pub unsafe fn own_share(rel: pg_sys::Relation) -> Option<f64> {
    if !is_partitioned(rel) || may_plan_key_check() {
        return None;
    }
    let storage = Storage::of(rel);
    let wait = BackendWait::new(storage.cache);
    let own = match access_for_estimate(rel, &storage, &wait) {
        Access::All => return None,
        Access::Nothing => 0,
        Access::Partition(partition) => partition::entry(&storage, partition, &wait).or_raise().blocks,
    };
    Some((f64::from(own.max(LEAST_BLOCKS)) / f64::from(storage.blocks().max(1))).min(1.0))
}

/// An index that begins with the user has the entries of all users, of which a scan reads the user's: estimates take its size for the
/// user's part. A search of any other index meets those of all.
#[pg_guard]
unsafe extern "C-unwind" fn relation_info(
    root: *mut pg_sys::PlannerInfo,
    table: pg_sys::Oid,
    parent: bool,
    info: *mut pg_sys::RelOptInfo,
) {
    // SAFETY: the hook gets what the planner made of a table that the statement has locked.
    unsafe {
        if let Some(previous) = PREVIOUS_INFO {
            previous(root, table, parent, info);
        }
        if parent || (*info).indexlist.is_null() {
            return;
        }
        let Some((column, _)) = is_user_table(table) else { return };
        counters::hide_of_plan((*info).indexlist);
        let rel = pg_sys::RelationIdGetRelation(table);
        if rel.is_null() {
            return;
        }
        let share = own_share(rel);
        plain::RelationClose(rel);
        let Some(share) = share else { return };
        for index in super::planner::nodes::<pg_sys::IndexOptInfo>((*info).indexlist) {
            if (*index).relam == pg_sys::BTREE_AM_OID && *(*index).indexkeys == column {
                (*index).pages = ((f64::from((*index).pages) * share).ceil() as u32).max(1);
                compat::set_cost_function(&mut *index, cost::of_user_index);
            }
        }
    }
}

/// Among the rows that a statement reads, `_user_id` has one value.
#[pg_guard]
unsafe extern "C-unwind" fn statistics_of(
    root: *mut pg_sys::PlannerInfo,
    entry: *mut pg_sys::RangeTblEntry,
    column: pg_sys::AttrNumber,
    data: *mut pg_sys::VariableStatData,
) -> bool {
    // SAFETY: the hook gets what the planner asks for; it supplies a tuple with the function that frees it.
    unsafe {
        let for_one = |(number, _)| number == i32::from(column) && matches!(user_of_session(), Ok(User::Named(_)));
        if may_have_users(&*entry) && is_user_table((*entry).relid).is_some_and(for_one) {
            (*data).statsTuple = one_value((*entry).relid, column);
            (*data).freefunc = Some(free);
            (*data).acl_ok = true;
            return true;
        }
        PREVIOUS_STATISTICS.is_some_and(|previous| previous(root, entry, column, data))
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn free(tuple: pg_sys::HeapTuple) {
    // SAFETY: made by `one_value`.
    unsafe { pg_sys::heap_freetuple(tuple) };
}

/// A row of pg_statistic that says: one value, never null.
unsafe fn one_value(table: pg_sys::Oid, column: pg_sys::AttrNumber) -> pg_sys::HeapTuple {
    /// Width of a user's name.
    const WIDTH: i32 = 16;
    let shape = Shape { null_share: 0.0, width: WIDTH, distinct: 1.0, correlation: None };
    // SAFETY: the catalog is open while the row is made.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let catalog = pg_sys::table_open(pg_sys::StatisticRelationId, lock);
        let tuple = statistics::row(catalog, table, column, &shape);
        pg_sys::table_close(catalog, lock);
        tuple
    }
}
