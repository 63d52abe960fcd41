//! Postgres functions that pgrx does not bind, or that hot paths call without pgrx's guard.
//!
//! The unguarded ones never raise an error, so that no Rust frame is jumped over.

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
    pub fn datumIsEqual(value1: pg_sys::Datum, value2: pg_sys::Datum, by_value: bool, length: i32) -> bool;
}
