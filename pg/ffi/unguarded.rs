//! Functions of Postgres that are called without pgrx's guard although they may raise an error.
//!
//! Such an error jumps over the frames of the caller, up to the callback's own guard and past it, so that none of these frames may own
//! anything that has to be dropped. There are two reasons to do that:
//!
//! - Some run a user's code or wait for row locks. The guard keeps an error's message, detail and hint only: context, the detail for the
//!   server's log, constraint name and query position get lost.
//! - Others are called several times by each short statement and raise an error when memory runs out, if at all.

#![allow(non_snake_case, reason = "the names are Postgres'")]

use std::ffi::{c_char, c_int, c_void};

use pgrx::pg_sys;

use crate::ffi::compat::FileLocator;

unsafe extern "C-unwind" {
    pub fn FormIndexDatum(
        info: *mut pg_sys::IndexInfo,
        slot: *mut pg_sys::TupleTableSlot,
        estate: *mut pg_sys::EState,
        values: *mut pg_sys::Datum,
        nulls: *mut bool,
    );
    pub fn index_insert(
        index: pg_sys::Relation,
        values: *mut pg_sys::Datum,
        nulls: *mut bool,
        tid: pg_sys::ItemPointer,
        table: pg_sys::Relation,
        check: pg_sys::IndexUniqueCheck::Type,
        unchanged: bool,
        info: *mut pg_sys::IndexInfo,
    ) -> bool;
    pub fn XactLockTableWait(
        xid: pg_sys::TransactionId,
        table: pg_sys::Relation,
        tid: pg_sys::ItemPointer,
        operation: pg_sys::XLTW_Oper::Type,
    );
    pub fn LockTuple(table: pg_sys::Relation, tid: pg_sys::ItemPointer, mode: pg_sys::LOCKMODE);
    pub fn RangeVarCallbackOwnsRelation(
        name: *const pg_sys::RangeVar,
        relation: pg_sys::Oid,
        before: pg_sys::Oid,
        argument: *mut c_void,
    );
    pub fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        read_only: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
    pub fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: c_int);
    #[cfg(not(feature = "pg18"))]
    pub fn standard_ExecutorRun(query: *mut pg_sys::QueryDesc, direction: pg_sys::ScanDirection::Type, count: u64, once: bool);
    #[cfg(feature = "pg18")]
    pub fn standard_ExecutorRun(query: *mut pg_sys::QueryDesc, direction: pg_sys::ScanDirection::Type, count: u64);
    pub fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
    pub fn standard_ExecutorEnd(query: *mut pg_sys::QueryDesc);
}

unsafe extern "C-unwind" {
    /// What the search of a btree index costs.
    pub fn btcostestimate(
        root: *mut pg_sys::PlannerInfo,
        path: *mut pg_sys::IndexPath,
        loops: f64,
        startup: *mut pg_sys::Cost,
        total: *mut pg_sys::Cost,
        selectivity: *mut pg_sys::Selectivity,
        correlation: *mut f64,
        pages: *mut f64,
    );
    pub fn RelationIdGetRelation(relation: pg_sys::Oid) -> pg_sys::Relation;
    pub fn RelationGetIndexList(rel: pg_sys::Relation) -> *mut pg_sys::List;
    pub fn smgrGetPendingDeletes(for_commit: bool, files: *mut *mut FileLocator) -> c_int;
    pub fn pgstat_count_heap_insert(rel: pg_sys::Relation, rows: pg_sys::PgStat_Counter);
    pub fn palloc0(size: pg_sys::Size) -> *mut c_void;
    #[cfg_attr(not(feature = "pg15"), link_name = "planstate_tree_walker_impl")]
    pub fn planstate_tree_walker(
        state: *mut pg_sys::PlanState,
        walker: unsafe extern "C-unwind" fn(*mut pg_sys::PlanState, *mut c_void) -> bool,
        context: *mut c_void,
    ) -> bool;
}
