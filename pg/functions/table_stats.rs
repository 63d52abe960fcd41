//! How large one table is, in the store, in segments and in its indexes.

use std::sync::atomic::Ordering;

use pgrx::prelude::*;

use crate::tableam;
use crate::tableam::storage::Storage;

/// The table's storage and sizes; no row if it was dropped meanwhile. Without a storage its columns are null if `missing_ok`.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "the macro reads the columns from the signature and takes no alias")]
fn table_stats(
    relation: pg_sys::Oid,
    missing_ok: bool,
) -> TableIterator<
    'static,
    (
        name!(storage, Option<i64>),
        name!(blocks, Option<i64>),
        name!(hot_bytes, Option<i64>),
        name!(index_bytes, i64),
        name!(cold_bytes, i64),
        name!(total_bytes, i64),
    ),
> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: opened with a lock and closed below; after an ERROR the resource owner closes it.
    let rel = unsafe { pg_sys::try_relation_open(relation, lock) };
    if rel.is_null() {
        return TableIterator::empty();
    }
    tableam::require_table(rel);
    let storage = if missing_ok { Storage::find(rel) } else { Some(Storage::of(rel)) };
    let index_bytes = index_bytes(relation);
    // SAFETY: opened above.
    unsafe { pg_sys::relation_close(rel, lock) };
    let hot_bytes = storage.map(|storage| clip(storage.descriptor.stored_bytes.load(Ordering::Relaxed)));
    let cold_bytes = storage.map_or(0, |storage| clip(storage.descriptor.segment_bytes.load(Ordering::Relaxed)));
    let total = hot_bytes.unwrap_or(0) + index_bytes + cold_bytes;
    let (id, blocks) = (storage.map(|storage| clip(storage.id.0)), storage.map(|storage| i64::from(storage.blocks())));
    TableIterator::once((id, blocks, hot_bytes, index_bytes, cold_bytes, total))
}

fn clip(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn index_bytes(relation: pg_sys::Oid) -> i64 {
    // SAFETY: a function of Postgres with one argument of this type.
    unsafe { pgrx::direct_function_call(pg_sys::pg_indexes_size, &[relation.into_datum()]) }.unwrap_or(0)
}
