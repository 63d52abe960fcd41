//! The job table in SQL: everything that keepers and runners read from it and write to it.

use pgrx::pg_sys;

use super::kinds::{Job, JobId, Kind};
use crate::error::SqlError;
use crate::ffi::catalog::RelationInfo;
use crate::ffi::sql::{query, query_one, text};
use crate::settings;

/// Times that a failed job is run again.
pub const RETRIES: i32 = 3;

/// The states in which a job is not at its end.
pub const ACTIVE: &str = "('new', 'queued', 'running', 'retrying')";

/// A job to be added.
pub struct NewJob<'a> {
    /// Its kind.
    pub kind: Kind,
    /// The table; invalid for a job on several.
    pub relation: pg_sys::Oid,
    /// The schema, if it is on one table or one schema.
    pub schema: Option<&'a str>,
    /// The table's name, if it is on one.
    pub table: Option<&'a str>,
    /// What else is to be said.
    pub parameters: &'a str,
    /// Who asks for it.
    pub role: pg_sys::Oid,
    /// Whether a policy does.
    pub automatic: bool,
}

impl<'a> NewJob<'a> {
    /// A job on a table that nobody asked for.
    pub fn automatic(kind: Kind, table: &'a RelationInfo) -> NewJob<'a> {
        NewJob {
            kind,
            relation: table.oid,
            schema: Some(&table.schema),
            table: Some(&table.name),
            parameters: "{}",
            role: table.owner,
            automatic: true,
        }
    }
}

/// Adds a job, or finds the active one of the same kind on the same tables. Returns its id, and whether it is new.
pub fn add(job: &NewJob) -> Result<(String, bool), SqlError> {
    let id = JobId::new(job.kind)?.to_string();
    let relation = job.relation.to_u32().to_string();
    let role = job.role.to_u32().to_string();
    let code = job.kind.code();
    // A table may have got the name of one that was dropped with its job still queued.
    query(
        &format!(
            "UPDATE kalam.job SET state = 'cancelled', message = 'the table was dropped', finished_at = pg_catalog.clock_timestamp()
             WHERE type = $1 AND schema_name IS NOT DISTINCT FROM $2 AND table_name = $3 AND relation <> $4::oid
               AND state IN {ACTIVE} AND state <> 'running'
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = relation)"
        ),
        &[Some(code), job.schema, job.table, Some(&relation)],
    );
    let found = query(
        &format!(
            "WITH active AS (
                 SELECT id FROM kalam.job
                 WHERE type = $2 AND relation = $3::oid AND schema_name IS NOT DISTINCT FROM $4 AND state IN {ACTIVE}
                     -- A job on no table may have a name of its own.
                     AND (relation <> 0 OR table_name IS NOT DISTINCT FROM $5) LIMIT 1
             ), made AS (
                 INSERT INTO kalam.job (id, type, relation, schema_name, table_name, parameters, requested_by, automatic, node,
                     idempotency_key)
                 SELECT $1, $2, $3::oid, $4, $5, $6::jsonb, $7::oid, $8::boolean, $9, pg_catalog.concat_ws(':', $2,
                     coalesce($4, ''), coalesce($5, ''), (pg_catalog.clock_timestamp() AT TIME ZONE 'UTC')::date::text)
                 WHERE NOT EXISTS (SELECT FROM active)
                 ON CONFLICT (idempotency_key) WHERE state IN {ACTIVE} DO NOTHING
                 RETURNING id
             )
             SELECT id, 'new' FROM made UNION ALL SELECT id, 'active' FROM active"
        ),
        &[
            Some(&id),
            Some(code),
            Some(&relation),
            job.schema,
            job.table,
            Some(job.parameters),
            Some(&role),
            Some(if job.automatic { "true" } else { "false" }),
            Some(&node()),
        ],
    );
    match found.first() {
        Some(row) => Ok((text(row, 0).unwrap_or(&id).to_owned(), text(row, 1) == Some("new"))),
        None => Err(SqlError::prerequisite(format!("another {} job of the same name runs", job.kind.name()))
            .with_detail("The table has the name of one that was dropped while a job on it ran.")
            .with_hint("Try again in a moment.")),
    }
}

/// The server's name: its cluster name if it has one, else the machine's.
fn node() -> String {
    // SAFETY: a setting of the server.
    let cluster = unsafe { pg_sys::cluster_name };
    if !cluster.is_null() {
        // SAFETY: a setting is a terminated string.
        let name = unsafe { std::ffi::CStr::from_ptr(cluster) }.to_string_lossy().into_owned();
        if !name.is_empty() {
            return name;
        }
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Hands the new jobs to the runners; whether any job waits to be run.
pub fn queue_new() -> bool {
    query("UPDATE kalam.job SET state = 'queued' WHERE state = 'new'", &[]);
    query_one("SELECT 'yes' FROM kalam.job WHERE state = 'queued' LIMIT 1", &[]).is_some()
}

/// Milliseconds until the first of the jobs that are to be tried again is due; none if there are no such jobs.
pub fn next_retry() -> Option<u64> {
    let due = query_one(
        "SELECT greatest(0, pg_catalog.ceil(extract(epoch FROM not_before - pg_catalog.clock_timestamp()) * 1000))::bigint::text
         FROM kalam.job WHERE state = 'retrying' ORDER BY not_before LIMIT 1",
        &[],
    );
    due.and_then(|milliseconds| milliseconds.parse().ok())
}

/// The jobs that the table calls running.
pub fn running() -> Vec<JobId> {
    let rows = query("SELECT id FROM kalam.job WHERE state = 'running'", &[]);
    rows.iter().filter_map(|row| JobId::parse(text(row, 0)?)).collect()
}

/// The jobs that could run now, as a condition: no two on the same table at once.
const CLAIMABLE: &str = "(j.state = 'queued' OR (j.state = 'retrying' AND j.not_before <= pg_catalog.clock_timestamp()))
    AND NOT EXISTS (SELECT FROM kalam.job r WHERE r.state = 'running' AND r.relation = j.relation AND r.relation <> 0)";

/// Whether a job waits that could run now.
pub fn has_claimable() -> bool {
    query_one(&format!("SELECT 'yes' FROM kalam.job j WHERE {CLAIMABLE} LIMIT 1"), &[]).is_some()
}

/// Takes a job that waits; none if there is none that could run now.
pub fn claim() -> Option<Job> {
    let rows = query(
        &format!(
            "UPDATE kalam.job SET state = 'running', started_at = pg_catalog.clock_timestamp(), finished_at = NULL,
                 pid = pg_catalog.pg_backend_pid(), attempts = attempts + 1
             WHERE id = (
                 SELECT j.id FROM kalam.job j WHERE {CLAIMABLE} ORDER BY j.created_at, j.id LIMIT 1 FOR UPDATE SKIP LOCKED)
             RETURNING id, type, relation::text, schema_name, requested_by::text, parameters::text, attempts::text,
                 automatic::text"
        ),
        &[],
    );
    let row = rows.first()?;
    let oid = |column| pg_sys::Oid::from(text(row, column).and_then(|oid| oid.parse::<u32>().ok()).unwrap_or(0));
    Some(Job {
        id: JobId::parse(text(row, 0)?)?,
        kind: Kind::from_code(text(row, 1)?)?,
        relation: oid(2),
        schema: text(row, 3).map(str::to_owned),
        role: oid(4),
        parameters: text(row, 5).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default(),
        attempt: text(row, 6).and_then(|attempts| attempts.parse().ok()).unwrap_or(1),
        automatic: text(row, 7) == Some("true"),
    })
}

/// Notes that a job did what it was to do; rows done and to do, bytes done and to do.
pub fn complete(id: JobId, message: &str, progress: [u64; 4]) {
    let counts = progress.map(|count| count.to_string());
    query(
        "UPDATE kalam.job SET state = 'completed', message = $2, error = NULL, sqlstate = NULL, pid = NULL,
             rows_done = $3::bigint, rows_total = $4::bigint, bytes_done = $5::bigint, bytes_total = $6::bigint,
             finished_at = pg_catalog.clock_timestamp()
         WHERE id = $1",
        &[Some(&id.to_string()), Some(message), Some(&counts[0]), Some(&counts[1]), Some(&counts[2]), Some(&counts[3])],
    );
}

/// Notes that a job was ended before it was done.
pub fn cancel(id: JobId, message: &str) {
    query(
        "UPDATE kalam.job SET state = 'cancelled', message = $2, pid = NULL, finished_at = pg_catalog.clock_timestamp() WHERE id = $1",
        &[Some(&id.to_string()), Some(message)],
    );
}

/// Notes that a job failed. Returns the milliseconds after which it is tried again, if it is.
pub fn fail(id: JobId, error: &SqlError, may_repeat: bool) -> Option<u64> {
    let sqlstate = error.sqlstate();
    let left = query_one(
        "UPDATE kalam.job SET
             state = CASE WHEN $4::boolean AND attempts <= $5::integer THEN 'retrying' ELSE 'failed' END,
             error = $2, sqlstate = $3, pid = NULL, finished_at = pg_catalog.clock_timestamp(),
             not_before = pg_catalog.clock_timestamp() + interval '100 milliseconds' * pg_catalog.power(2, attempts - 1)
         WHERE id = $1 RETURNING CASE WHEN state = 'retrying' THEN (100 * pg_catalog.power(2, attempts - 1))::bigint::text END",
        &[
            Some(&id.to_string()),
            Some(&error.full_text()),
            Some(&sqlstate),
            Some(if may_repeat { "true" } else { "false" }),
            Some(&RETRIES.to_string()),
        ],
    );
    left.and_then(|milliseconds| milliseconds.parse().ok())
}

/// Gives a job back that its process leaves undone through no fault of the job: it is queued again and the attempt does not count.
pub fn give_back(id: JobId, reason: &str) {
    query(
        "UPDATE kalam.job SET state = 'retrying', error = $2, sqlstate = NULL, pid = NULL, attempts = attempts - 1,
             not_before = pg_catalog.clock_timestamp(), finished_at = pg_catalog.clock_timestamp()
         WHERE id = $1 AND state = 'running'",
        &[Some(&id.to_string()), Some(reason)],
    );
}

/// What somebody who waits for a job wants to know.
pub struct JobState {
    /// Its state.
    pub state: String,
    /// What it says of its end.
    pub message: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// The SQLSTATE of that.
    pub sqlstate: Option<String>,
    /// Who asked for it.
    pub requested_by: u32,
    /// The owner of its table; none when it is on several or on one that is gone.
    pub owner: Option<u32>,
}

/// The state of a job.
pub fn state_of(id: &str) -> Option<JobState> {
    let rows = query(
        "SELECT j.state, j.message, j.error, j.sqlstate, j.requested_by::text, c.relowner::text
         FROM kalam.job j LEFT JOIN pg_catalog.pg_class c ON c.oid = j.relation WHERE j.id = $1",
        &[Some(id)],
    );
    let row = rows.first()?;
    let owned = |column| text(row, column).map(str::to_owned);
    Some(JobState {
        state: owned(0)?,
        message: owned(1),
        error: owned(2),
        sqlstate: owned(3),
        requested_by: owned(4)?.parse().ok()?,
        owner: owned(5).and_then(|oid| oid.parse().ok()),
    })
}

/// Cancels a job that does not run yet; false if it runs or has ended.
pub fn cancel_waiting(id: &str) -> bool {
    query_one(
        "UPDATE kalam.job SET state = 'cancelled', message = 'cancelled before it ran', finished_at = pg_catalog.clock_timestamp()
         WHERE id = $1 AND state IN ('new', 'queued', 'retrying') RETURNING id",
        &[Some(id)],
    )
    .is_some()
}

fn retention() -> String {
    format!("{} seconds", settings::job_retention_seconds())
}

/// Whether rows of ended jobs are older than they are kept.
pub fn has_old() -> bool {
    query_one(
        &format!(
            "SELECT 'yes' FROM kalam.job WHERE finished_at < pg_catalog.clock_timestamp() - $1::interval AND state NOT IN {ACTIVE}
             LIMIT 1"
        ),
        &[Some(&retention())],
    )
    .is_some()
}

/// The tables with deleted rows that are kept, and when the oldest of them were deleted, in microseconds as Postgres counts them.
pub fn tables_with_deleted_rows() -> Vec<(pg_sys::Oid, i64)> {
    // Microseconds since the year 2000, as timestamps are stored.
    let rows = query(
        "SELECT relation::text, (extract(epoch FROM min(deleted_at) - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint::text
         FROM kalam.deleted_rows GROUP BY relation",
        &[],
    );
    let table = |row| Some((pg_sys::Oid::from(text(row, 0)?.parse::<u32>().ok()?), text(row, 1)?.parse().ok()?));
    rows.iter().filter_map(table).collect()
}

/// Removes the rows of jobs that ended longer ago than they are kept, and options of tables that are gone.
pub fn remove_old() -> String {
    let removed = query(
        &format!(
            "DELETE FROM kalam.job WHERE finished_at < pg_catalog.clock_timestamp() - $1::interval AND state NOT IN {ACTIVE}
             RETURNING id"
        ),
        &[Some(&retention())],
    );
    query("DELETE FROM kalam.deleted_rows d WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = d.relation)", &[]);
    query("DELETE FROM kalam.table_options o WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = o.relation)", &[]);
    format!("removed {} jobs", removed.len())
}
