//! Functions of Postgres that raise no error, called without pgrx's guard: its `sigsetjmp` costs more than most of them do.
//!
//! They look at values of the process or of shared memory, or give back what the caller owns.

#![allow(non_snake_case, reason = "the names are Postgres'")]

use pgrx::pg_sys;

unsafe extern "C-unwind" {
    pub fn IsLogicalWorker() -> bool;
    pub fn GetUserId() -> pg_sys::Oid;
    pub fn GetOuterUserId() -> pg_sys::Oid;
    pub fn GetSessionUserId() -> pg_sys::Oid;
    pub fn InLocalUserIdChange() -> bool;
    pub fn InSecurityRestrictedOperation() -> bool;
    pub fn InNoForceRLSOperation() -> bool;
    pub fn IsInParallelMode() -> bool;
    pub fn RecoveryInProgress() -> bool;
    pub fn GetCurrentTransactionStartTimestamp() -> pg_sys::TimestampTz;
    pub fn GetCurrentStatementStartTimestamp() -> pg_sys::TimestampTz;
    pub fn ReadNextFullTransactionId() -> pg_sys::FullTransactionId;
    /// Whether `xid` is the current transaction or one of its live subtransactions.
    #[link_name = "TransactionIdIsCurrentTransactionId"]
    pub fn transaction_id_is_current(xid: pg_sys::TransactionId) -> bool;
    /// Whether the log still has to be flushed up to a position.
    #[link_name = "XLogNeedsFlush"]
    pub fn log_needs_flush(lsn: pg_sys::XLogRecPtr) -> bool;
    /// Sets a timeout that the process has registered, in milliseconds.
    pub fn enable_timeout_after(timeout: std::ffi::c_int, delay: std::ffi::c_int);
    /// Registers a timeout of the process' own; returns its number. The handler is called as one for a signal.
    pub fn RegisterTimeout(timeout: std::ffi::c_int, handler: unsafe extern "C" fn()) -> std::ffi::c_int;
    /// Sets a timeout that the process has registered and that is reached again and again: first at a time, then every so many milliseconds.
    pub fn enable_timeout_every(timeout: std::ffi::c_int, first: pg_sys::TimestampTz, delay: std::ffi::c_int);
    /// Ends a timeout; whether it was reached is remembered if wanted.
    pub fn disable_timeout(timeout: std::ffi::c_int, keeps_indicator: bool);
    /// The name of an index's column that is an expression; null if it has none of its own.
    pub fn FigureIndexColname(expression: *mut pg_sys::Node) -> *mut std::ffi::c_char;
    /// Whether the client's connection is open.
    pub fn pq_check_connection() -> bool;
    pub fn RelationClose(rel: pg_sys::Relation);
    pub fn list_free(list: *mut pg_sys::List);
    pub fn pfree(chunk: *mut std::ffi::c_void);
}
