//! The segments of one table: what `kalam.segments` shows.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use kalamdb_engine::cold::{SegmentRecord, SegmentUse};
use kalamdb_engine::ids::Tid;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

use crate::cold::segments_of;
use crate::error::OrRaise;
use crate::ffi::interrupts::BackendWait;
use crate::ffi::plain;
use crate::gate::{Access, is_partitioned};
use crate::tableam::partition;
use crate::tableam::storage::{Storage, require_table};
use crate::worker::requests;

/// Seconds from 1970 to Postgres' epoch.
const EPOCH: i64 = 946_684_800;

/// The segments of a table; no row if it was dropped meanwhile, has no storage, or belongs to somebody else. Of a user table's
/// segments, a statement has those whose rows it may see.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "the macro reads the columns from the signature and takes no alias")]
fn table_segments(
    relation: pg_sys::Oid,
) -> TableIterator<
    'static,
    (
        name!(segment, i64),
        name!(user_id, Option<String>),
        name!(location, String),
        name!(path, String),
        name!(rows, i64),
        name!(live_rows, i64),
        name!(bytes, i64),
        name!(hot_bytes, i64),
        name!(min_tid, String),
        name!(max_tid, String),
        name!(columns, pgrx::JsonB),
        name!(schema_version, i32),
        name!(created_at, TimestampWithTimeZone),
        name!(state, &'static str),
    ),
> {
    let Some(Found { records, uses, users }) = read(relation) else { return TableIterator::empty() };
    let rows: Vec<_> = records
        .into_iter()
        .map(|record| {
            let live = uses.get(&record.segment).copied().unwrap_or_default();
            (
                clip(record.segment),
                users.get(&record.partition).cloned(),
                record.place.location.clone(),
                record.place.path.clone(),
                clip(record.rows),
                clip(live.rows),
                clip(record.bytes),
                clip(record.hot_bytes),
                tid(record.min_tid),
                tid(record.max_tid),
                pgrx::JsonB(bounds(&record)),
                record.schema_version as i32,
                time(record.created),
                state(&record, live),
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// Makes segments of a table known again that the engine has lost, from their files; returns how many.
#[pg_extern]
fn rebuild_segments(relation: pg_sys::Oid) -> i64 {
    clip(crate::cold::rebuild_segments(relation).segments)
}

/// What a statement may know of a table's segments.
struct Found {
    records: Vec<SegmentRecord>,
    uses: HashMap<u64, SegmentUse>,
    /// Whose rows the segments have, by partition; empty if the rows belong to nobody.
    users: HashMap<u32, String>,
}

fn read(relation: pg_sys::Oid) -> Option<Found> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: opened with a lock and closed below; after an ERROR the resource owner closes it.
    let rel = unsafe { pg_sys::try_relation_open(relation, lock) };
    if rel.is_null() {
        return None;
    }
    require_table(rel);
    // SAFETY: an open relation has a pg_class row.
    let is_own = unsafe { pg_sys::has_privs_of_role(plain::GetUserId(), (*(*rel).rd_rel).relowner) };
    let has_segments = |storage: &Storage| storage.descriptor.segments.load(Ordering::Acquire) > 0;
    let found = Storage::find(rel).filter(|_| is_own).filter(has_segments).map(|storage| {
        let wait = BackendWait::new(storage.cache);
        let access = Access::for_function(rel, &storage, &wait);
        let (mut records, uses) = segments_of(&storage, &requests::client(storage.cache, &wait));
        records.retain(|record| access.allows_partition(record.partition));
        let users = if is_partitioned(rel) { users_of(&storage, access, &wait) } else { HashMap::new() };
        Found { records, uses, users }
    });
    // SAFETY: opened above.
    unsafe { pg_sys::relation_close(rel, lock) };
    found
}

/// The names of a table's users whose rows a statement may see, by partition.
fn users_of(storage: &Storage, access: Access, wait: &BackendWait) -> HashMap<u32, String> {
    let mut users = HashMap::new();
    partition::each_user(storage, wait, &mut |partition, name| {
        if access.allows_partition(partition) {
            users.insert(partition, String::from_utf8_lossy(name).into_owned());
        }
        Ok(())
    })
    .or_raise();
    users
}

/// What is left of a segment in the table.
fn state(record: &SegmentRecord, live: SegmentUse) -> &'static str {
    if live.rows == record.rows {
        "active"
    } else if live.blocks == 0 && live.values == 0 {
        "unused"
    } else {
        "partly read"
    }
}

/// Least and greatest values, NULLs, and values that the column's type in the file cannot say, by attribute number.
fn bounds(record: &SegmentRecord) -> serde_json::Value {
    let column = |summary: &kalamdb_engine::segment::ColumnSummary| {
        let mut bounds = serde_json::json!({ "min": summary.min, "max": summary.max, "nulls": summary.nulls });
        if summary.exceptions > 0 {
            bounds["exceptions"] = summary.exceptions.into();
        }
        (summary.attnum.to_string(), bounds)
    };
    serde_json::Value::Object(record.columns.iter().map(column).collect())
}

fn tid(packed: u64) -> String {
    Tid::new((packed >> 16) as u32, packed as u16).to_string()
}

fn time(seconds: u64) -> TimestampWithTimeZone {
    let microseconds = (clip(seconds) - EPOCH).saturating_mul(1_000_000);
    TimestampWithTimeZone::try_from(microseconds).unwrap_or_else(|_| TimestampWithTimeZone::positive_infinity())
}

fn clip(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
