//! Functions of Postgres that pgrx does not bind: its predicate lock manager, storage and datums, guarded like pgrx' own bindings.

#![allow(non_snake_case, reason = "the names are Postgres'")]

use pgrx::pg_sys;

use crate::ffi::compat::FileLocator;

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    pub fn log_smgrcreate(files: *const FileLocator, fork: pg_sys::ForkNumber::Type);
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
