//! The options that tables set themselves: read through a cache that follows the catalog's invalidations, written in SQL.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;

use kalamdb_engine::cache::{StorageDescriptor, raise as wake, wanted};
use kalamdb_engine::ids::StorageId;
use pgrx::{FromDatum, pg_sys};

use super::definition;
use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::catalog::{self, as_superuser};
use crate::ffi::extension;
use crate::ffi::sql::query;
use crate::hash::Map;
use crate::shmem::known_cache;
use crate::storages;
use crate::tableam;
use crate::tableam::storage::Storage;
use crate::tableam::stream;

/// Columns of `kalam.table_options`.
const RELATION: i16 = 1;
const OPTION: i32 = 2;
const VALUE: i32 = 3;

const TABLE: &CStr = c"table_options";
const INDEX: &CStr = c"table_options_pkey";

/// Entries of the cache before it starts anew.
const CACHED_MAX: usize = 10_000;

type Options = Rc<Vec<(String, String)>>;

thread_local! {
    static CACHED: RefCell<Map<u32, Options>> = RefCell::default();
    /// Changes with every invalidation, so that what was read meanwhile is not kept.
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    /// The storages of tables whose options this transaction changed.
    static CHANGED: RefCell<Vec<(&'static StorageDescriptor, StorageId)>> = const { RefCell::new(Vec::new()) };
}

/// Registers the callbacks; once per process.
pub fn init() {
    // SAFETY: plain functions that stay loaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
        pg_sys::CacheRegisterRelcacheCallback(Some(invalidated), pg_sys::Datum::from(0));
    }
}

unsafe extern "C-unwind" fn invalidated(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    GENERATION.set(GENERATION.get() + 1);
    CACHED.with_borrow_mut(|cached| {
        if relation == pg_sys::InvalidOid {
            cached.clear();
        } else {
            cached.remove(&relation.to_u32());
        }
    });
}

/// Whoever changed options has their limits looked up anew when others can see them.
unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    let committed = event == pg_sys::XactEvent::XACT_EVENT_COMMIT;
    if !committed && event != pg_sys::XactEvent::XACT_EVENT_ABORT {
        return;
    }
    CHANGED.with_borrow_mut(|changed| {
        let cache = known_cache().filter(|_| committed);
        for (descriptor, id) in changed.drain(..) {
            if let Some(cache) = cache
                && descriptor.id() == id
                && descriptor.flush.forget_limits()
            {
                cache.jobs().want(descriptor.file().database, wanted::POLICIES);
                wake(&cache.header().main_wake);
            }
        }
    });
}

/// The options that a table sets itself.
pub fn own_options(relation: pg_sys::Oid) -> Options {
    let known = CACHED.with_borrow(|cached| cached.get(&relation.to_u32()).cloned());
    if let Some(known) = known {
        return known;
    }
    let generation = GENERATION.get();
    let options = Rc::new(read(relation));
    if generation == GENERATION.get() {
        CACHED.with_borrow_mut(|cached| {
            if cached.len() >= CACHED_MAX {
                cached.clear();
            }
            cached.insert(relation.to_u32(), options.clone());
        });
    }
    options
}

/// Reads a table's rows as Postgres reads its catalogs: without statements, rights and the transaction's snapshot.
pub fn read(relation: pg_sys::Oid) -> Vec<(String, String)> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    let mut options = Vec::new();
    // SAFETY: the relations are looked up by name in the extension's own schema; rows are copied before the scan ends; after an
    // ERROR the resource owner closes everything.
    unsafe {
        let (Some(table), Some(index)) = (extension::relation(TABLE), extension::relation(INDEX)) else { return options };
        let rel = pg_sys::table_open(table, lock);
        let mut key = pg_sys::ScanKeyData::default();
        let equal = pg_sys::Oid::from(pg_sys::F_OIDEQ);
        pg_sys::ScanKeyInit(&raw mut key, RELATION, pg_sys::BTEqualStrategyNumber as u16, equal, relation.into());
        let scan = pg_sys::systable_beginscan(rel, index, true, std::ptr::null_mut(), 1, &raw mut key);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let column = |number| {
                let mut is_null = false;
                let datum = pg_sys::heap_getattr(tuple, number, (*rel).rd_att, &mut is_null);
                String::from_datum(datum, is_null).unwrap_or_default()
            };
            options.push((column(OPTION), column(VALUE)));
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(rel, lock);
    }
    options
}

/// Sets an option of a table, or takes it back, for a user who may.
pub fn set(relation: pg_sys::Oid, option: &str, value: Option<&str>) {
    let definition = definition::find(option).or_raise();
    let value = value.map(|value| definition.normalize(value).or_raise());
    if let Some(value) = &value {
        check_for_table(relation, option, value);
    }
    let relation = relation.to_u32().to_string();
    as_superuser(|| match &value {
        Some(value) => query(
            "INSERT INTO kalam.table_options (relation, option, value) VALUES ($1::oid::regclass, $2, $3)
             ON CONFLICT (relation, option) DO UPDATE SET value = excluded.value",
            &[Some(&relation), Some(option), Some(value)],
        ),
        None => query(
            "DELETE FROM kalam.table_options WHERE relation = $1::oid::regclass AND option = $2",
            &[Some(&relation), Some(option)],
        ),
    });
}

/// Raises an error unless a relation is a table that has options.
pub fn require_table(relation: pg_sys::Oid) {
    if catalog::with_relation(relation, tableam::require_table).is_none() {
        raise(SqlError::undefined_object(format!("relation with OID {} does not exist", relation.to_u32())));
    }
}

/// Raises an error unless the current user may set options of a relation, and it is a table that has them.
pub fn require_settable(relation: pg_sys::Oid) {
    require_table(relation);
    if !catalog::is_owner_of(relation) {
        let name = catalog::relation_info(relation).map(|info| info.name).unwrap_or_default();
        raise(
            SqlError::insufficient_privilege(format!("must be owner of table {name}"))
                .with_hint("Options of a table are set by its owner or a superuser."),
        );
    }
}

/// Raises an error if a value names a column that the table does not have, or a storage that the database does not have.
fn check_for_table(relation: pg_sys::Oid, option: &str, value: &str) {
    let is_stream = catalog::with_relation(relation, stream::is_stream).unwrap_or(false);
    // All keys would do for both.
    let is_valid = |option: &str| option == "encryption_key" || matches!(option, "ttl" | "max_bytes") == is_stream;
    if !is_valid(option) {
        let valid: Vec<_> =
            definition::DEFINITIONS.iter().map(|definition| definition.name).filter(|name| is_valid(name)).collect();
        let (kind, hint) = if is_stream {
            ("a stream table", "Rows of a stream never become cold, and deleted ones are not kept.")
        } else {
            ("a table that is no stream", "Rows vanish by themselves in tables of the access method kalam_stream.")
        };
        raise(
            SqlError::invalid_parameter(format!("option \"{option}\" has no meaning for {kind}"))
                .with_detail(format!("Valid options are {}.", valid.join(", ")))
                .with_hint(hint),
        );
    }
    match option {
        "storage" => {
            storages::require_and_keep(value).or_raise();
            return;
        }
        // Rows that their owner takes for encrypted or ordered must be.
        _ if definition::is_unbuilt(option) => raise(
            SqlError::unsupported(format!("option \"{option}\" is not supported yet"))
                .with_detail("Segments are written as they are, in the order of their rows' places.")
                .with_hint(if option == "cluster_by" {
                    "Leave the option out; CLUSTER orders the rows of a table, and of the segments that are written after it."
                } else {
                    "Leave the option out."
                }),
        ),
        "bloom_columns" => {}
        _ => return,
    }
    for column in definition::names(value) {
        let Ok(name) = std::ffi::CString::new(column.as_str()) else { continue };
        // SAFETY: looks into the catalog.
        let number = unsafe { pg_sys::get_attnum(relation, name.as_ptr()) };
        if number <= 0 {
            raise(
                SqlError::invalid_parameter(format!("invalid value for option \"{option}\": column \"{column}\" does not exist"))
                    .with_detail("Valid are columns of the table that are not system columns.")
                    .with_hint("Put names with upper-case letters or spaces in double quotes."),
            );
        }
    }
}

/// Called for every row of the table of options that changes, by whatever statement.
pub fn note_change(relation: pg_sys::Oid) {
    if catalog::relation_info(relation).is_none() {
        return;
    }
    // SAFETY: the relation is in the catalog.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) };
    if known_cache().is_none() {
        return;
    }
    let storage = catalog::with_relation(relation, |rel| {
        // SAFETY: an open relation.
        let is_ours = unsafe { tableam::is_ours(rel) };
        if is_ours { Storage::find(rel) } else { None }
    });
    if let Some(storage) = storage.flatten() {
        CHANGED.with_borrow_mut(|changed| changed.push((storage.descriptor, storage.id)));
    }
}
