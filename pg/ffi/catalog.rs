//! Looking things up in Postgres' catalogs.

#![allow(non_snake_case, reason = "names of functions are Postgres'")]

use std::ffi::{CStr, c_char, c_int};
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::error::{SqlError, raise};
use crate::ffi::interrupts::sleep;
use crate::ffi::{extension, plain};
use crate::gate;

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    #[cfg(feature = "pg15")]
    fn RelidByRelfilenode(tablespace: pg_sys::Oid, relnumber: pg_sys::Oid) -> pg_sys::Oid;
    #[cfg(not(feature = "pg15"))]
    fn RelidByRelfilenumber(tablespace: pg_sys::Oid, relnumber: pg_sys::Oid) -> pg_sys::Oid;
}

/// The relation of this database to which a main fork belongs; invalid if there is none that the transaction sees.
pub fn relation_of_file(tablespace: u32, relnumber: u32) -> pg_sys::Oid {
    // SAFETY: looks into catalogs in an open transaction.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            RelidByRelfilenode(tablespace.into(), relnumber.into())
        }
        #[cfg(not(feature = "pg15"))]
        {
            RelidByRelfilenumber(tablespace.into(), relnumber.into())
        }
    }
}

/// Time between two tries to get a lock.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// What a relation is called and whose it is.
pub struct RelationInfo {
    /// Its OID.
    pub oid: pg_sys::Oid,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: pg_sys::Oid,
}

/// Runs a function on a relation, locked against being dropped; none if it does not exist.
pub fn with_relation<R>(relation: pg_sys::Oid, run: impl FnOnce(pg_sys::Relation) -> R) -> Option<R> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: opened with a lock that the transaction keeps no longer than the call; after an ERROR the resource owner closes it.
    unsafe {
        let rel = pg_sys::try_relation_open(relation, lock);
        if rel.is_null() {
            return None;
        }
        let result = run(rel);
        pg_sys::relation_close(rel, lock);
        Some(result)
    }
}

/// As [`with_relation`], for what takes no harm if the relation changes meanwhile: waits for nobody.
pub fn with_relation_unlocked<R>(relation: pg_sys::Oid, run: impl FnOnce(pg_sys::Relation) -> R) -> Option<R> {
    // SAFETY: looks into the catalogs; after an ERROR the resource owner closes the relation.
    unsafe {
        let rel = pg_sys::RelationIdGetRelation(relation);
        if rel.is_null() {
            return None;
        }
        let result = run(rel);
        pg_sys::RelationClose(rel);
        Some(result)
    }
}

/// Locks a relation that may not exist any more.
///
/// The lock is asked for again and again instead of waited for: whoever waits in the queue of a lock keeps those behind him out.
///
/// # Errors
/// 55P03 when the lock is not free in time.
pub fn lock_within(relation: pg_sys::Oid, lock: pg_sys::LOCKMODE, patience: Duration) -> Result<(), SqlError> {
    let since = Instant::now();
    // SAFETY: takes a lock, which goes with the transaction.
    while !unsafe { pg_sys::ConditionalLockRelationOid(relation, lock) } {
        if since.elapsed() > patience {
            return Err(SqlError::lock_not_available(
                "the table is in use by a change of its definition, by VACUUM or by another job",
            )
            .with_hint("Try again later; a job does so by itself."));
        }
        sleep(LOCK_PAUSE);
    }
    Ok(())
}

/// A relation's name, schema and owner without a lock on it; none if it is gone.
pub fn relation_info(relation: pg_sys::Oid) -> Option<RelationInfo> {
    // SAFETY: the tuple is read before it is released; a class tuple is a struct of that type.
    let (name, schema, owner) = unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, relation.into());
        if tuple.is_null() {
            return None;
        }
        let class = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
        let found = (text_of((*class).relname.data.as_ptr()), (*class).relnamespace, (*class).relowner);
        pg_sys::ReleaseSysCache(tuple);
        found
    };
    // SAFETY: gives an allocated string or null.
    let schema = unsafe { take_text(pg_sys::get_namespace_name(schema)) }?;
    Some(RelationInfo { oid: relation, schema, name, owner })
}

/// Kind and access method of a relation as the catalog has them, without a lock on it; none if it is gone.
pub fn method_of(relation: pg_sys::Oid) -> Option<(u8, pg_sys::Oid)> {
    // SAFETY: the tuple is read before it is released; a class tuple is a struct of that type.
    unsafe {
        let row = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, relation.into());
        if row.is_null() {
            return None;
        }
        let form = &*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_class>();
        let found = (form.relkind as u8, form.relam);
        pg_sys::ReleaseSysCache(row);
        Some(found)
    }
}

/// The callbacks of a table access method; null if there is no such method, or it is one for indexes.
pub fn routine_of_method(method: pg_sys::Oid) -> *const pg_sys::TableAmRoutine {
    // SAFETY: the tuple is read before it is released and is a struct of that type; the handler of a table access method gives its routine.
    unsafe {
        let row = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::AMOID as i32, method.into());
        if row.is_null() {
            return std::ptr::null();
        }
        let form = &*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_am>();
        let (kind, handler) = (form.amtype as u8, form.amhandler);
        pg_sys::ReleaseSysCache(row);
        if kind == pg_sys::AMTYPE_TABLE { pg_sys::GetTableAmRoutine(handler) } else { std::ptr::null() }
    }
}

/// Has a function called whenever what a catalog's cache has may have changed. It raises no error.
pub fn on_change(cache: pg_sys::SysCacheIdentifier::Type, forget: unsafe extern "C-unwind" fn(pg_sys::Datum, c_int, u32)) {
    // SAFETY: a plain function that stays loaded.
    unsafe { pg_sys::CacheRegisterSyscacheCallback(cache as c_int, Some(forget), pg_sys::Datum::from(0)) };
}

/// The OIDs of a list.
///
/// # Safety
/// A list of OIDs, or null; it lives as long as the iterator.
pub unsafe fn oids(list: *mut pg_sys::List) -> impl Iterator<Item = pg_sys::Oid> {
    // SAFETY: see above.
    let count = if list.is_null() { 0 } else { unsafe { (*list).length as usize } };
    // SAFETY: as above.
    (0..count).map(move |place| unsafe { (*(*list).elements.add(place)).oid_value })
}

/// Whether a relation is in the catalog.
pub fn relation_exists(relation: pg_sys::Oid) -> bool {
    relation_info(relation).is_some()
}

/// Whether the current user owns a relation or has its owner's rights.
pub fn is_owner_of(relation: pg_sys::Oid) -> bool {
    // SAFETY: looks into catalogs in an open transaction.
    unsafe {
        let user = plain::GetUserId();
        #[cfg(feature = "pg15")]
        {
            pg_sys::pg_class_ownercheck(relation, user)
        }
        #[cfg(not(feature = "pg15"))]
        {
            pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, user)
        }
    }
}

/// Whether the current user owns a database or has its owner's rights.
pub fn is_owner_of_database(database: pg_sys::Oid) -> bool {
    // SAFETY: as above.
    unsafe {
        let user = plain::GetUserId();
        #[cfg(feature = "pg15")]
        {
            pg_sys::pg_database_ownercheck(database, user)
        }
        #[cfg(not(feature = "pg15"))]
        {
            pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, user)
        }
    }
}

/// A copy of a terminated string.
///
/// # Safety
/// The pointer is valid.
pub unsafe fn text_of(text: *const c_char) -> String {
    // SAFETY: see above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A copy of an allocated string, which is freed; none for null.
///
/// # Safety
/// The pointer is null or was allocated by Postgres.
pub unsafe fn take_text(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: see above.
    unsafe {
        let copy = text_of(text);
        plain::pfree(text.cast());
        Some(copy)
    }
}

/// Runs a function with the rights of the bootstrap superuser and a search path that nobody else can write to. The extension stays for the
/// rest of the transaction: otherwise the tables that the function uses might not be ours.
///
/// An ERROR in it ends the subtransaction at least, and Postgres itself takes both back then.
pub fn as_superuser<R>(run: impl FnOnce() -> R) -> R {
    extension::require();
    let mut user = pg_sys::InvalidOid;
    let mut context = 0;
    // SAFETY: what is saved is set again below; the nesting level undoes the setting.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        let local = context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
        pg_sys::SetUserIdAndSecContext(pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID), local);
        let level = pg_sys::NewGUCNestLevel();
        let (source, action) = (pg_sys::GucSource::PGC_S_SESSION, pg_sys::GucAction::GUC_ACTION_SAVE);
        let path = c"pg_catalog, pg_temp".as_ptr();
        pg_sys::set_config_option(c"search_path".as_ptr(), path, pg_sys::GucContext::PGC_USERSET, source, action, true, 0, false);
        let result = run();
        pg_sys::AtEOXact_GUC(true, level);
        pg_sys::SetUserIdAndSecContext(user, context);
        result
    }
}

/// Runs a function on a table, whose quoted name it gets, with the rights of the table's owner: what the owner has defined for it, as
/// triggers, casts and expressions, must not run with the rights of whoever asks. None if the table is gone.
///
/// The lock is kept to the end of the transaction, so that nobody puts another relation in the table's place. An ERROR ends the
/// subtransaction at least, and Postgres itself takes the rights back then.
pub fn as_owner<R>(oid: pg_sys::Oid, lock: u32, run: impl FnOnce(&str) -> R) -> Option<R> {
    let mut user = pg_sys::InvalidOid;
    let mut context = 0;
    // SAFETY: the relation is open while it is read; what is saved is set again below, and the nesting level undoes settings.
    unsafe {
        let rel = pg_sys::try_relation_open(oid, lock as pg_sys::LOCKMODE);
        if rel.is_null() {
            return None;
        }
        let class = &*(*rel).rd_rel;
        let table = text_of(class.relname.data.as_ptr());
        let schema = pg_sys::get_namespace_name(class.relnamespace);
        let name = CStr::from_ptr(pg_sys::quote_qualified_identifier(schema, class.relname.data.as_ptr()));
        // Another name might be that of another table.
        let Ok(name) = name.to_str() else {
            raise(
                SqlError::unsupported(format!("the name of table \"{table}\" is no text in UTF-8"))
                    .with_hint("Rename the table or its schema, or use a database whose encoding is UTF8."),
            )
        };
        let (owner, is_filtered) = (class.relowner, class.relrowsecurity && class.relforcerowsecurity);
        pg_sys::relation_close(rel, pg_sys::NoLock as pg_sys::LOCKMODE);
        if is_filtered {
            raise(
                SqlError::prerequisite(format!("row-level security is forced on table \"{table}\""))
                    .with_detail("The policies would hide rows from the table's owner, and so from what is to be done with them.")
                    .with_hint("ALTER TABLE ... NO FORCE ROW LEVEL SECURITY; user tables keep users apart without policies."),
            );
        }
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        let before = gate::enter_rights_of(owner);
        let restricted = pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_LOCAL_USERID_CHANGE;
        pg_sys::SetUserIdAndSecContext(owner, context | restricted as i32);
        let level = pg_sys::NewGUCNestLevel();
        let result = run(name);
        pg_sys::AtEOXact_GUC(false, level);
        pg_sys::SetUserIdAndSecContext(user, context);
        gate::leave(before);
        Some(result)
    }
}
