//! Flush and compaction in the calling session, for tests: no SQL object names them.

use pgrx::prelude::*;

use crate::cold::{CompactOptions, FlushOptions, Outcome, Unwatched, compact_relation, erase_expired, flush_relation};

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
    row(erase_expired(relation, before.into_inner(), &mut Unwatched))
}
