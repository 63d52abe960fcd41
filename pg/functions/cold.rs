//! Flush, compaction and eviction in the calling session, for tests: no SQL object names them.

use pgrx::prelude::*;

use crate::cold::{CompactOptions, FlushOptions, Outcome, Unwatched, compact_relation, erase_expired, flush_relation};
use crate::ffi::catalog;
use crate::history;
use crate::tableam::storage::Storage;
use crate::tableam::{stream, values};

type Row = (i64, i64, i64, i64, bool);

fn row(outcome: Outcome) -> TableIterator<'static, Row> {
    let clip = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    TableIterator::once((clip(outcome.rows), clip(outcome.blocks), clip(outcome.segments), clip(outcome.left_out), outcome.gone))
}

/// Moves the rows at rest of a table into segments.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "the macro reads the columns from the signature and takes no alias")]
fn flush_inline(
    relation: pg_sys::Oid,
) -> TableIterator<'static, (name!(rows, i64), name!(blocks, i64), name!(segments, i64), name!(left_out, i64), name!(gone, bool))>
{
    row(flush_relation(relation, &FlushOptions::of_table(relation), &mut Unwatched))
}

/// Stores a large value that no row names.
#[pg_extern]
fn leak_value(relation: pg_sys::Oid, length: i32) {
    catalog::with_relation(relation, |rel| values::store_unnamed(rel, length.max(1) as usize));
}

/// How many large values a table has, and how many of them no row names.
#[pg_extern]
fn count_values(relation: pg_sys::Oid) -> TableIterator<'static, (name!(there, i64), name!(unnamed, i64))> {
    let count = |rel| Storage::find(rel).map(|storage| values::count(rel, &storage));
    TableIterator::once(catalog::with_relation(relation, count).flatten().unwrap_or_default())
}

/// Writes all segments of a table anew, as one.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "the macro reads the columns from the signature and takes no alias")]
fn compact_inline(
    relation: pg_sys::Oid,
) -> TableIterator<'static, (name!(rows, i64), name!(blocks, i64), name!(segments, i64), name!(left_out, i64), name!(gone, bool))>
{
    let options =
        CompactOptions { least_small: 1, stale_percent: 0, flush: FlushOptions::of_table(relation), ..CompactOptions::default() };
    row(compact_relation(relation, &options, &mut Unwatched))
}

/// Erases what was deleted before a time.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "the macro reads the columns from the signature and takes no alias")]
fn erase_inline(
    relation: pg_sys::Oid,
    before: TimestampWithTimeZone,
) -> TableIterator<'static, (name!(rows, i64), name!(blocks, i64), name!(segments, i64), name!(left_out, i64), name!(gone, bool))>
{
    history::erase(relation, before.into_inner());
    row(erase_expired(relation, &mut Unwatched))
}

/// Gives back the storage of a stream's expired rows, and says how many of its blocks that took a look at.
#[pg_extern]
fn evict_inline(relation: pg_sys::Oid) -> TableIterator<'static, (name!(rows, i64), name!(looked_at, i64), name!(blocks, i64))> {
    let lock = pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: opened with VACUUM's lock, which stays to the end of the transaction.
    let (evicted, blocks) = unsafe {
        let rel = pg_sys::table_open(relation, lock);
        let evicted = stream::evict(rel);
        let blocks = Storage::of(rel).blocks();
        pg_sys::table_close(rel, pg_sys::NoLock as pg_sys::LOCKMODE);
        (evicted, blocks)
    };
    TableIterator::once((evicted.rows as i64, evicted.looked_at as i64, blocks.into()))
}
