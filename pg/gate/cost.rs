//! What a search of an index that begins with the user costs.
//!
//! Postgres supposes that the rows which an index names lie as its first column does, and that is the same for all rows of a user.
//! Their order is that of the first column that a query does not fix; where the rows lie in this order, as those of a growing table do, a
//! range of them is read block after block. Without that a range with one end would be read by a scan of all rows: nothing is known of
//! the values of user tables, so the planner takes it for a third of them.

use std::ffi::c_int;

use pgrx::{pg_guard, pg_sys};

use super::planner::nodes;
use crate::ffi::unguarded;

/// How well the order of a column says where rows lie that are chosen by the columns before it. They are read in the order in which they
/// lie, though not one beside the other.
const PER_COLUMN: f64 = 0.9;

const EQUAL: c_int = pg_sys::BTEqualStrategyNumber as c_int;

/// The function for costs of an index that begins with the user, in place of btree's own.
#[pg_guard]
pub unsafe extern "C-unwind" fn of_user_index(
    root: *mut pg_sys::PlannerInfo,
    path: *mut pg_sys::IndexPath,
    loops: f64,
    startup: *mut pg_sys::Cost,
    total: *mut pg_sys::Cost,
    selectivity: *mut pg_sys::Selectivity,
    correlation: *mut f64,
    pages: *mut f64,
) {
    // SAFETY: the planner's arguments for a btree index.
    unsafe {
        unguarded::btcostestimate(root, path, loops, startup, total, selectivity, correlation, pages);
        if let Some(own) = correlation_of(root, path) {
            *correlation = own;
        }
    }
}

/// How the rows that a search finds lie in the order of the index; nothing if that is not known.
unsafe fn correlation_of(root: *mut pg_sys::PlannerInfo, path: *mut pg_sys::IndexPath) -> Option<f64> {
    // SAFETY: the caller's; a path's clauses belong to its index.
    unsafe {
        let index = &*(*path).indexinfo;
        let keys = std::slice::from_raw_parts(index.indexkeys, index.nkeycolumns.max(0) as usize);
        let is_fixed = |column: usize| {
            nodes::<pg_sys::IndexClause>((*path).indexclauses)
                .any(|clause| usize::try_from((*clause).indexcol) == Ok(column) && is_equality(index, column, clause))
        };
        let fixed = (0..keys.len()).take_while(|column| is_fixed(*column)).count();
        // Rows with the same key are in the order in which they lie.
        let Some(&next) = keys.get(fixed) else { return Some(1.0) };
        if fixed == 0 || next <= 0 {
            return None;
        }
        let entry = &**(*root).simple_rte_array.add((*index.rel).relid as usize);
        let known = correlation_of_column(entry.relid, next as i16)?;
        Some(known * PER_COLUMN.powi(fixed as i32 - 1))
    }
}

/// Whether a condition fixes the value of an index's column.
unsafe fn is_equality(index: &pg_sys::IndexOptInfo, column: usize, clause: *mut pg_sys::IndexClause) -> bool {
    // SAFETY: the caller's; the tag says which struct an expression is.
    unsafe {
        let first = nodes::<pg_sys::RestrictInfo>((*clause).indexquals).next();
        let Some(expression) = first.map(|condition| (*condition).clause) else { return false };
        (*expression).type_ == pg_sys::NodeTag::T_OpExpr && {
            let operator = (*expression.cast::<pg_sys::OpExpr>()).opno;
            pg_sys::get_op_opfamily_strategy(operator, *index.opfamily.add(column)) == EQUAL
        }
    }
}

/// How the order of a column's values follows that of the rows, as ANALYZE has found for single users.
unsafe fn correlation_of_column(table: pg_sys::Oid, column: i16) -> Option<f64> {
    // SAFETY: a row of the catalog's cache, released after it was read.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::STATRELATTINH as c_int;
        let tuple = pg_sys::SearchSysCache3(cache, table.into(), column.into(), false.into());
        if tuple.is_null() {
            return None;
        }
        let mut slot = pg_sys::AttStatsSlot::default();
        let kind = pg_sys::STATISTIC_KIND_CORRELATION as c_int;
        let found = pg_sys::get_attstatsslot(&mut slot, tuple, kind, pg_sys::InvalidOid, pg_sys::ATTSTATSSLOT_NUMBERS as c_int);
        let known = (found && slot.nnumbers == 1).then(|| f64::from(*slot.numbers));
        if found {
            pg_sys::free_attstatsslot(&mut slot);
        }
        pg_sys::ReleaseSysCache(tuple);
        known
    }
}
