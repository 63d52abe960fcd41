//! Asking for jobs, waiting for them, and seeing how far they are.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pgrx::prelude::*;
use serde_json::json;

use crate::error::{OrRaise, SqlError, raise};
use crate::jobs::{JobId, Kind, request};
use crate::shmem::engine_cache;

/// Waits for a job that was asked for, if that is wanted; returns its id.
fn finish(id: String, wait: bool) -> String {
    if wait {
        request::wait_for_success(&id);
    }
    id
}

fn run_on_table(kind: Kind, relation: pg_sys::Oid, wait: bool) -> String {
    if wait {
        request::refuse_own_locks(relation);
    }
    finish(request::add_for_table(kind, relation, &json!({})).or_raise(), wait)
}

/// Has the rows of a table moved into segments.
#[pg_extern]
fn job_flush(relation: pg_sys::Oid, wait: bool) -> String {
    run_on_table(Kind::Flush, relation, wait)
}

/// Has the segments of a table merged.
#[pg_extern]
fn job_compact(relation: pg_sys::Oid, wait: bool) -> String {
    run_on_table(Kind::Compact, relation, wait)
}

/// Has the rows of all tables of a schema moved into segments that the user owns.
#[pg_extern]
fn job_flush_schema(schema: &str, wait: bool) -> String {
    let name = std::ffi::CString::new(schema).unwrap_or_default();
    // SAFETY: raises an error if there is no schema of that name.
    unsafe { pg_sys::get_namespace_oid(name.as_ptr(), false) };
    finish(request::add_for_many(Kind::Flush, Some(schema), &json!({})).or_raise(), wait)
}

/// Has the rows of all tables of the database moved into segments that the user owns.
#[pg_extern]
fn job_flush_all(wait: bool) -> String {
    finish(request::add_for_many(Kind::Flush, None, &json!({})).or_raise(), wait)
}

/// Runs a job of the kind that exists for tests of the job processes; declared by tests alone.
#[pg_extern]
fn job_exercise(schema: Option<&str>, parameters: pgrx::JsonB) -> String {
    // SAFETY: a flag of the session's user.
    if !unsafe { pg_sys::superuser() } {
        raise(SqlError::insufficient_privilege("must be superuser to run exercises"));
    }
    request::add_for_many(Kind::Exercise, schema, &parameters.0).or_raise()
}

/// Cancels a job; false if it had ended.
#[pg_extern]
fn job_cancel(id: &str) -> bool {
    request::cancel(require_id(id))
}

/// Waits for a job's end, at most that many microseconds unless the number is below zero; returns its state then.
#[pg_extern]
fn job_wait(id: &str, timeout_us: i64) -> String {
    let timeout = u64::try_from(timeout_us).ok().map(Duration::from_micros);
    request::wait_for_state(require_id(id), timeout)
}

fn require_id(id: &str) -> &str {
    if JobId::parse(id).is_none() {
        raise(
            SqlError::invalid_parameter(format!("invalid job id: \"{id}\""))
                .with_detail("A job id is two capital letters and twelve hexadecimal digits.")
                .with_hint("The view kalam.jobs lists the jobs of this database that you may see."),
        );
    }
    id
}

/// What a job has done so far, if it runs at the moment in this database.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "the macro reads the columns from the signature and takes no alias")]
fn job_progress(
    id: &str,
) -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(rows_done, i64),
        name!(rows_total, i64),
        name!(bytes_done, i64),
        name!(bytes_total, i64),
        name!(seconds, f64),
    ),
> {
    let cache = engine_cache();
    // SAFETY: set once at the start of the session.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    let now = kalamdb_engine::cache::monotonic_ms();
    let running = JobId::parse(id).and_then(|id| cache.jobs().running(id.0));
    let rows: Vec<_> = running
        .into_iter()
        .filter(|process| process.database() == database)
        .map(|process| {
            let count = |place: usize| i64::try_from(process.progress[place].load(Ordering::Relaxed)).unwrap_or(i64::MAX);
            let seconds = now.saturating_sub(process.begun.load(Ordering::Relaxed)) as f64 / 1000.0;
            (process.pid.load(Ordering::Relaxed) as i32, count(0), count(1), count(2), count(3), seconds)
        })
        .collect();
    TableIterator::new(rows)
}
