//! Postgres functions that pgrx does not bind, or that hot paths call without pgrx's guard.
//!
//! The unguarded ones never raise an error, so that no Rust frame is jumped over, but for those in [`unguarded`].

#![allow(non_snake_case, reason = "the names are Postgres'")]

use pgrx::pg_sys;

unsafe extern "C-unwind" {
    /// Whether `xid` is the current transaction or one of its live subtransactions. Never raises.
    #[link_name = "TransactionIdIsCurrentTransactionId"]
    pub fn transaction_id_is_current(xid: pg_sys::TransactionId) -> bool;
    /// The commit record's position of a transaction known to have committed. Never raises for cached groups.
    #[link_name = "TransactionIdGetCommitLSN"]
    pub fn commit_lsn(xid: pg_sys::TransactionId) -> pg_sys::XLogRecPtr;
    /// Whether the log still has to be flushed up to a position. Never raises.
    #[link_name = "XLogNeedsFlush"]
    pub fn log_needs_flush(lsn: pg_sys::XLogRecPtr) -> bool;
}

/// Functions that run a user's code or wait for row locks. The guard keeps an error's message, detail and hint only: context,
/// the detail for the server's log, constraint name and query position get lost. Their errors jump over the frames of the caller
/// instead, up to the callback's own guard and past it, so that none of these frames may own anything that has to be dropped.
pub mod unguarded {
    use pgrx::pg_sys;

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
            argument: *mut std::ffi::c_void,
        );
        pub fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            query: *const std::ffi::c_char,
            read_only: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            destination: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}

/// Declares functions of Postgres' predicate lock manager, storage and datums, guarded like pgrx' own bindings.
#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    pub fn log_smgrcreate(files: *const pg_sys::RelFileNode, fork: pg_sys::ForkNumber::Type);
    pub fn CheckForSerializableConflictOutNeeded(relation: pg_sys::Relation, snapshot: pg_sys::Snapshot) -> bool;
    pub fn CheckForSerializableConflictOut(relation: pg_sys::Relation, xid: pg_sys::TransactionId, snapshot: pg_sys::Snapshot);
    pub fn CheckForSerializableConflictIn(relation: pg_sys::Relation, tid: pg_sys::ItemPointer, block: pg_sys::BlockNumber);
    pub fn PredicateLockRelation(relation: pg_sys::Relation, snapshot: pg_sys::Snapshot);
    pub fn PredicateLockTID(
        relation: pg_sys::Relation,
        tid: pg_sys::ItemPointer,
        snapshot: pg_sys::Snapshot,
        xmin: pg_sys::TransactionId,
    );
    pub fn toast_compress_datum(value: pg_sys::Datum, method: std::ffi::c_char) -> pg_sys::Datum;
    pub fn datumCopy(value: pg_sys::Datum, by_value: bool, length: i32) -> pg_sys::Datum;
    pub fn datumIsEqual(value1: pg_sys::Datum, value2: pg_sys::Datum, by_value: bool, length: i32) -> bool;
}
