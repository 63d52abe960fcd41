//! The extension in this database: its own schema, told from one of the same name that somebody else has made.
//!
//! Much here runs with the rights of a superuser on tables of schema `kalam`. Where the extension is not installed, or is dropped while
//! that goes on, anybody may own a schema of this name, with tables and triggers of their own in it.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::pg_sys;

use super::catalog::{on_change, take_text};
use crate::error::{OrRaise, SqlError};

const EXTENSION: &CStr = c"kalamdb";
const SCHEMA: &CStr = c"kalam";
const LOCK: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;

thread_local! {
    /// The schema that was found to be the extension's own.
    static OWN: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
    /// The extension that the transaction of a job keeps.
    static HELD: Cell<Option<pg_sys::Oid>> = const { Cell::new(None) };
}

/// Registers the callback; once per process.
pub fn init() {
    on_change(pg_sys::SysCacheIdentifier::NAMESPACEOID, forget);
}

unsafe extern "C-unwind" fn forget(_argument: pg_sys::Datum, _cache: std::ffi::c_int, _hash: u32) {
    OWN.set(pg_sys::InvalidOid);
}

/// The extension's schema, if the extension is installed in this database. Nobody but superusers can put anything into it.
pub fn schema() -> Option<pg_sys::Oid> {
    // SAFETY: catalog look-ups inside a transaction.
    unsafe {
        let schema = pg_sys::get_namespace_oid(SCHEMA.as_ptr(), true);
        if schema == pg_sys::InvalidOid || schema == OWN.get() {
            return (schema != pg_sys::InvalidOid).then_some(schema);
        }
        // Null for a schema that is no extension's.
        let owner = pg_sys::get_extension_name(pg_sys::getExtensionOfObject(pg_sys::NamespaceRelationId, schema));
        if take_text(owner)?.as_bytes() != EXTENSION.to_bytes() {
            return None;
        }
        OWN.set(schema);
        Some(schema)
    }
}

/// A relation of the extension's schema.
pub fn relation(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: a catalog look-up inside a transaction.
    let oid = unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema()?) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Keeps the extension from being dropped until the transaction ends, and returns it; none where it is not installed.
pub fn hold() -> Option<pg_sys::Oid> {
    // SAFETY: a catalog look-up inside a transaction, and a lock that ends with it.
    let extension = unsafe { pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) };
    if extension == pg_sys::InvalidOid {
        return None;
    }
    // SAFETY: as above.
    unsafe { pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, extension, 0, LOCK) };
    // It may have been dropped before the lock was there.
    schema().map(|_| extension)
}

/// As [`hold`]; raises 55000 where the extension is not installed.
pub fn require() {
    hold().ok_or_else(missing).or_raise();
}

/// The error where the extension is not installed.
pub fn missing() -> SqlError {
    SqlError::prerequisite("the extension kalamdb is not installed in this database").with_hint("Run CREATE EXTENSION kalamdb.")
}

/// As [`hold`], for the transaction of a job process; whether the extension is installed.
pub fn hold_in_job() -> bool {
    HELD.set(hold());
    HELD.get().is_some()
}

/// The transaction of [`hold_in_job`] has ended.
pub fn released() {
    HELD.set(None);
}

/// Whether somebody waits to drop the extension, which this job keeps.
pub fn is_wanted() -> bool {
    let Some(extension) = HELD.get() else { return false };
    let tag = pg_sys::LOCKTAG {
        // SAFETY: a plain global of the process.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: pg_sys::ExtensionRelationId.to_u32(),
        locktag_field3: extension.to_u32(),
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    // SAFETY: this process holds the lock, and locks of objects are in the shared table.
    unsafe { pg_sys::LockHasWaiters(&raw const tag, LOCK, false) }
}
