//! Jobs that work on tables: on one, or on all of a schema or database that the job's role owns, one after the other.

use std::time::{Duration, Instant};

use kalamdb_engine::cache::FlushNews;
use kalamdb_engine::{Error, ErrorKind};
use pgrx::{PgLogLevel, pg_sys};

use super::kinds::{self, Job, Kind};
use super::policy;
use super::process::{self, Me, transaction};
use super::runner::Progress;
use super::table::{self, NewJob};
use crate::cold::{self, CompactOptions, FlushOptions};
use crate::error::SqlError;
use crate::ffi::catalog;
use crate::ffi::interrupts::check_for_interrupts;
use crate::ffi::sql::{query, text};
use crate::history;
use crate::settings;
use crate::tableam::stream;

/// Seconds after which a table is flushed again whose flush left rows behind or failed, if it has no interval of its own.
const REST_SECONDS: u32 = 60;

/// How long a job that has given way stays away.
const PAUSE_AFTER_YIELDING: Duration = Duration::from_millis(100);

/// What was done.
#[derive(Clone, Copy, Default)]
pub struct Done {
    /// Rows that are in new segments.
    pub rows: u64,
    /// Bytes of those segments.
    pub bytes: u64,
    /// Their number.
    pub segments: u64,
    /// Blocks that could not be taken, as a snapshot, a lock or a change needs them.
    pub left_out: u64,
    /// Whether it ended early, as a session waits for the table.
    pub yielded: bool,
    /// Whether the table is not there any more.
    pub gone: bool,
}

impl Done {
    /// Adds what one more part did; how it ended is how all ends.
    fn add(&mut self, part: &Done) {
        self.rows += part.rows;
        self.bytes += part.bytes;
        self.segments += part.segments;
        self.left_out = part.left_out;
        self.yielded = part.yielded;
        self.gone = part.gone;
    }
}

/// Runs the job and says what it did.
///
/// # Errors
/// What made it fail; for several tables, that some of them failed.
pub fn run(me: Me, job: &Job, progress: &mut Progress) -> Result<String, SqlError> {
    if job.relation != pg_sys::InvalidOid {
        return work(me, job, job.relation, progress).map(|done| describe(job.kind, &done, 1));
    }
    let tables = transaction(c"KalamDB: looking for tables", || Ok(tables_of(job)))?;
    let mut all = Done::default();
    let mut failed: Vec<(String, SqlError)> = Vec::new();
    for (relation, name) in &tables {
        match work(me, job, *relation, progress) {
            Ok(done) => {
                all.rows += done.rows;
                all.bytes += done.bytes;
                all.segments += done.segments;
                all.left_out += done.left_out;
            }
            // Whoever cancels means the whole job.
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => failed.push((name.clone(), error)),
        }
    }
    if let Some((_, first)) = failed.first() {
        let names: Vec<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Error::new(
            ErrorKind::Io,
            format!("{} of {} tables failed: {}", failed.len(), tables.len(), first.message()),
        )
        .with_detail(format!("They are {}.", names.join(", ")))
        .into());
    }
    Ok(describe(job.kind, &all, tables.len()))
}

fn describe(kind: Kind, done: &Done, tables: usize) -> String {
    if done.gone {
        return "the table was dropped".to_owned();
    }
    let Done { rows, bytes, segments, left_out, .. } = done;
    if kind == Kind::Evict {
        return format!("{rows} expired rows gone");
    }
    let left = if *left_out > 0 { format!(", {left_out} blocks left for later") } else { String::new() };
    format!("{} of {tables} tables: {rows} rows in {segments} new segments of {bytes} bytes{left}", kind.name())
}

/// The tables of a job on several.
fn tables_of(job: &Job) -> Vec<(pg_sys::Oid, String)> {
    let rows = query(
        "SELECT c.oid::text, c.oid::regclass::text
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_am a ON a.oid = c.relam
         JOIN pg_catalog.pg_proc p ON p.oid = a.amhandler
         WHERE p.pronamespace = 'kalam'::regnamespace AND p.proname <> 'stream_handler' AND c.relkind IN ('r', 'm')
             AND c.relpersistence = 'p' AND ($1 IS NULL OR n.nspname = $1) AND pg_catalog.pg_has_role($2::oid, c.relowner, 'USAGE')
         ORDER BY c.oid",
        &[job.schema.as_deref(), Some(&job.role.to_u32().to_string())],
    );
    let table = |row| Some((pg_sys::Oid::from(text(row, 0)?.parse::<u32>().ok()?), text(row, 1)?.to_owned()));
    rows.iter().filter_map(table).collect()
}

/// Works on one table, in a transaction of its own.
fn work(me: Me, job: &Job, relation: pg_sys::Oid, progress: &mut Progress) -> Result<Done, SqlError> {
    if job.kind == Kind::Evict {
        return evict(me, relation);
    }
    let mut done = Done::default();
    loop {
        let part =
            if job.kind == Kind::Flush { flush(me, job, relation, progress) } else { run_inside(job, relation, progress) }?;
        done.add(&part);
        if !part.yielded || part.segments == 0 {
            break;
        }
        // It came on, so it is no failure; whoever has waited goes first.
        check_for_interrupts();
        std::thread::sleep(PAUSE_AFTER_YIELDING);
    }
    if done.yielded {
        return Err(SqlError::lock_not_available("the job gave way to a session that waits for a lock on the table")
            .with_detail(format!("It had written {} rows into {} segments by then.", done.rows, done.segments))
            .with_hint("The job is run again by itself."));
    }
    Ok(done)
}

fn run_inside(job: &Job, relation: pg_sys::Oid, progress: &mut Progress) -> Result<Done, SqlError> {
    if job.kind == Kind::Retention {
        // In a transaction of its own: one that has an id holds others' snapshots back.
        transaction(c"KalamDB: erasing deleted rows", || Ok(history::erase(relation, retention_began(relation))))?;
    }
    let activity = match job.kind {
        Kind::Flush => c"KalamDB: flush",
        Kind::Compact => c"KalamDB: compaction",
        _ => c"KalamDB: erasing outdated rows",
    };
    transaction(activity, || work_inside(job, relation, progress))
}

/// Flushes a table; its changed rows are counted anew from the beginning on.
fn flush(me: Me, job: &Job, relation: pg_sys::Oid, progress: &mut Progress) -> Result<Done, SqlError> {
    let storage = policy::flush_state(relation);
    if let Some(storage) = storage {
        storage.flush.begin_flush();
    }
    let result = run_inside(job, relation, progress);
    if result.as_ref().map_or(true, |done| done.left_out > 0 || done.yielded)
        && let Some(storage) = storage
        && let FlushNews::DueAt(at) = storage.flush.try_again_after(REST_SECONDS, process::now())
    {
        me.cache.jobs().note_deadline(at);
    }
    if result.as_ref().is_ok_and(|done| done.segments > 0) {
        // A compaction that cannot be added now is added after the next flush.
        let added = transaction(c"KalamDB: looking at segments", || add_compaction(relation));
        if let Err(error) = added {
            error.log(PgLogLevel::LOG);
        }
    }
    result
}

/// Adds a compaction if the segments of a table want one.
fn add_compaction(relation: pg_sys::Oid) -> Result<(), SqlError> {
    let mut options = CompactOptions { flush: FlushOptions::of_table(relation), ..CompactOptions::default() };
    // Whoever has the table's lock now may add segments or merge them.
    options.flush.lock_patience = Duration::ZERO;
    if cold::is_worthwhile(relation, &options)
        && let Some(table) = catalog::relation_info(relation)
    {
        table::add(&NewJob::automatic(Kind::Compact, &table))?;
        table::queue_new();
    }
    Ok(())
}

/// The time between two evictions of a stream, as a multiple of what the last one took.
const PAUSE_PER_EVICTION: u64 = 4;

/// How long an eviction tries to get the table's lock: it comes again by itself, and others wait for its place.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Gives back the storage of expired rows of a stream; comes again as long as there are rows.
fn evict(me: Me, relation: pg_sys::Oid) -> Result<Done, SqlError> {
    let storage = policy::flush_state(relation);
    if let Some(storage) = storage {
        storage.flush.begin_flush();
    }
    let begun = Instant::now();
    let evicted = transaction(c"KalamDB: eviction", || {
        // Who waits for old snapshots to end may hold the lock: REINDEX CONCURRENTLY does.
        cold::release_snapshot();
        let lock = pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE;
        match catalog::lock_within(relation, lock, LOCK_PATIENCE) {
            Err(error) if error.is_lock_not_available() => {
                return Ok(Some(stream::Evicted { left: true, ..stream::Evicted::default() }));
            }
            result => result?,
        }
        // SAFETY: opened with VACUUM's lock and closed with the transaction's end.
        unsafe {
            let rel = pg_sys::try_relation_open(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
            if rel.is_null() {
                return Ok(None);
            }
            let evicted = if stream::is_stream(rel) { stream::evict(rel) } else { stream::Evicted::default() };
            pg_sys::relation_close(rel, pg_sys::NoLock as pg_sys::LOCKMODE);
            Ok(Some(evicted))
        }
    });
    let again = evicted.as_ref().map_or(true, |evicted| evicted.is_some_and(|evicted| evicted.left));
    if again
        && let Some(storage) = storage
        // The indexes are read as a whole each time: where that takes long it comes seldom.
        && let pause = u32::try_from((begun.elapsed().as_millis() as u64 * PAUSE_PER_EVICTION).div_ceil(1000)).unwrap_or(u32::MAX)
        && let FlushNews::DueAt(at) =
            storage.flush.try_again_after(settings::stream_eviction_interval().max(pause), process::now())
    {
        me.cache.jobs().note_deadline(at);
    }
    Ok(evicted?.map_or(Done { gone: true, ..Done::default() }, |evicted| Done { rows: evicted.rows, ..Done::default() }))
}

fn work_inside(job: &Job, relation: pg_sys::Oid, progress: &mut Progress) -> Result<Done, SqlError> {
    progress.done(0, 0);
    let mut flush = FlushOptions::of_table(relation);
    if job.automatic {
        flush.least_of_user = settings::flush_user_bytes();
    }
    cold::release_snapshot();
    let outcome = match job.kind {
        Kind::Flush => cold::flush_relation(relation, &flush, progress),
        Kind::Compact => cold::compact_relation(relation, &CompactOptions { flush, ..CompactOptions::default() }, progress),
        Kind::Retention => cold::erase_expired(relation, progress),
        kind => return Err(kinds::not_built(kind)),
    };
    Ok(Done {
        rows: outcome.rows,
        bytes: outcome.bytes,
        segments: outcome.segments,
        left_out: outcome.left_out,
        yielded: outcome.yielded,
        gone: outcome.gone,
    })
}

/// The moment from which on deleted rows of a table are still kept.
fn retention_began(relation: pg_sys::Oid) -> pg_sys::TimestampTz {
    // SAFETY: asks the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    now.saturating_sub(crate::options::of(relation).deleted_retention_us())
}

impl cold::Progress for Progress {
    fn total(&mut self, rows: u64, bytes: u64) {
        Progress::total(self, rows, bytes);
    }

    fn done(&mut self, rows: u64, bytes: u64) {
        Progress::done(self, rows, bytes);
    }
}
