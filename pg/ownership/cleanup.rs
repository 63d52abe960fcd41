//! The job `UC`: what erased users leave on disk goes, and users go that were dropped long enough ago.
//!
//! After the deletion commits, bytes of the rows are still in dead versions, in entries of indexes, in segments, in statistics, and
//! in files of the store that compaction has not rewritten. The job waits until no snapshot needs the rows, vacuums the tables, builds
//! their indexes anew (what separates the keys of an inner page outlives its row), clusters the catalogs and control tables that had
//! something of the user, and has the store's files rewritten. It does so for all erased users at once. Only the log is left.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kalamdb_engine::cold::SegmentRecord;
use kalamdb_engine::ids::StorageId;
use pgrx::pg_sys;
use serde_json::{Value, json};

use super::{erase, export, user_tables};
use crate::cold::{self, segments_of};
use crate::error::{OrRaise, SqlError};
use crate::ffi::catalog;
use crate::ffi::interrupts::{BackendWait, check_for_interrupts};
use crate::ffi::sql::{Row, query, query_one, text};
use crate::identity::audit::Event;
use crate::identity::control_table::Lasts;
use crate::jobs::Progress;
use crate::jobs::limit::limited_by_size;
use crate::jobs::process::transaction;
use crate::settings;
use crate::shmem::engine_cache;
use crate::storages;
use crate::tableam::storage::Storage;
use crate::tableam::{partition, vacuum};
use crate::worker::requests;

/// How long the job waits for snapshots that need the rows, and for locks; then it is run again.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Tables that have or had something of erased users, and the index by whose order they are written anew.
const CONTROL_TABLES: [(&str, &str); 7] = [
    ("kalam.deleted_rows", "deleted_rows_by_relation"),
    ("kalam.user_accounts", "user_accounts_pkey"),
    ("kalam.login_attempts", "login_attempts_name_at"),
    ("kalam.user_storages", "user_storages_pkey"),
    ("kalam.user_exports", "user_exports_pkey"),
    ("pg_catalog.pg_statistic", "pg_statistic_relid_att_inh_index"),
    ("pg_catalog.pg_statistic_ext_data", "pg_statistic_ext_data_stxoid_inh_index"),
];

/// Users that were dropped and can be restored no longer.
const OVERDUE: &str = "SELECT name FROM kalam.user_accounts
    WHERE deleted_at <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1::double precision)";

/// Whether there is something for the job.
pub fn is_due() -> bool {
    let retention = settings::user_retention_seconds().to_string();
    let statement =
        format!("SELECT 'yes' WHERE EXISTS (SELECT FROM kalam.user_erasure WHERE finished_at IS NULL) OR EXISTS ({OVERDUE})");
    query_one(&statement, &[Some(&retention)]).is_some()
}

/// A table that an erased user had rows in.
struct Touched {
    oid: pg_sys::Oid,
    name: String,
    storage: StorageId,
}

/// A user's erasure that is not finished yet.
struct Erasure {
    id: String,
    user: String,
    rows: Value,
    kept: i64,
    /// Rows, and entries with deleted ones, of transactions that were running at the erasure.
    late: i64,
    /// The first transaction that began to write after the erasure.
    before: u64,
    /// Places of the segments that have or had the user's rows.
    segments: BTreeSet<String>,
    /// Files of exports.
    exports: Vec<String>,
    /// Why it cannot be finished now.
    failure: Option<SqlError>,
}

impl Erasure {
    /// Does a part of the work; what fails, fails for this user only.
    fn attempt(&mut self, activity: &CStr, part: impl FnOnce(&mut Erasure) -> Result<(), SqlError>) -> Result<(), SqlError> {
        if self.failure.is_some() {
            return Ok(());
        }
        match transaction(activity, || part(self)) {
            Err(error) if error.is_cancelled() => Err(error),
            result => {
                self.failure = result.err();
                Ok(())
            }
        }
    }
}

/// What the job has to do.
#[derive(Default)]
struct Work {
    erasures: Vec<Erasure>,
    tables: Vec<Touched>,
    /// Those above them, which may have no rows of their own.
    above: Vec<(pg_sys::Oid, String)>,
    /// The next transaction when the rows were deleted.
    limit: u64,
}

/// Runs the job.
///
/// # Errors
/// What made it fail, as when a snapshot needs the rows for too long.
pub fn run(progress: &mut Progress) -> Result<String, SqlError> {
    let mut users = 0;
    loop {
        transaction(c"KalamDB: erasing dropped users", erase_overdue)?;
        let mut work = transaction(c"KalamDB: looking for erased users", find_work)?;
        if work.erasures.is_empty() {
            return Ok(format!("{users} users erased"));
        }
        await_transactions(work.erasures.iter().map(|erasure| erasure.before).max().unwrap_or(0))?;
        for erasure in &mut work.erasures {
            erasure.attempt(c"KalamDB: erasing late rows", erase_late)?;
        }
        if work.erasures.iter().any(|erasure| erasure.late > 0) {
            transaction(c"KalamDB: looking for what erased users had", || look_at_tables(&mut work))?;
        }
        progress.total(work.tables.len() as u64, 0);
        await_horizon(work.limit)?;
        // No export that still sees the rows is being written now.
        for erasure in &mut work.erasures {
            erasure.attempt(c"KalamDB: deleting exports", |erasure| {
                erasure.exports = export::delete_all(&erasure.user)?;
                Ok(())
            })?;
        }
        clean_tables(&work, progress)?;
        end_segments(&work, progress)?;
        // Only when what was written anew is in the store, nothing is read from old segments and nothing stands in old files.
        transaction(c"KalamDB: rewriting the store", || rewrite_store(&work))?;
        let left = transaction(c"KalamDB: looking for segments", || Ok(segments_left(&work)))?;
        for erasure in &mut work.erasures {
            erasure.attempt(c"KalamDB: noting an erasure", |erasure| finish(erasure, &work.tables, &left))?;
        }
        users += work.erasures.iter().filter(|erasure| erasure.failure.is_none()).count();
        if let Some(error) = work.erasures.into_iter().find_map(|erasure| erasure.failure) {
            return Err(error);
        }
    }
}

fn clean_tables(work: &Work, progress: &mut Progress) -> Result<(), SqlError> {
    for (number, table) in work.tables.iter().enumerate() {
        clean_table(table)?;
        progress.done(number as u64 + 1, 0);
    }
    for (_, table) in &work.above {
        patiently(|| query(&format!("ANALYZE {table}"), &[]))?;
    }
    for (table, index) in CONTROL_TABLES {
        patiently(|| query(&format!("CLUSTER {table} USING {index}"), &[]))?;
    }
    Ok(())
}

/// Writes the segments of the users anew that have rows of theirs which came after the erasure.
fn end_segments(work: &Work, progress: &mut Progress) -> Result<(), SqlError> {
    let begun = Instant::now();
    for table in &work.tables {
        let is_noted = |record: &SegmentRecord| work.erasures.iter().any(|erasure| erasure.segments.contains(&place_of(record)));
        loop {
            let outcome = transaction(c"KalamDB: rewriting segments of erased users", || {
                if !has_segments(table.oid) {
                    return Ok(cold::Outcome::default());
                }
                cold::release_snapshot();
                Ok(cold::rewrite_segments(table.oid, &is_noted, progress))
            })?;
            if !outcome.yielded || begun.elapsed() > PATIENCE {
                break;
            }
            check_for_interrupts();
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

fn has_segments(table: pg_sys::Oid) -> bool {
    let found = catalog::with_relation(table, |rel| {
        Storage::find(rel).map(|storage| storage.descriptor.segments.load(Ordering::Acquire))
    });
    found.flatten().is_some_and(|segments| segments > 0)
}

/// Erases the users whose time is over.
fn erase_overdue() -> Result<(), SqlError> {
    let retention = settings::user_retention_seconds().to_string();
    let rows = query(&format!("{OVERDUE} ORDER BY name FOR UPDATE SKIP LOCKED"), &[Some(&retention)]);
    if rows.is_empty() {
        return Ok(());
    }
    act_without_triggers();
    for row in &rows {
        if let Some(user) = text(row, 0) {
            erase::erase(user)?;
        }
        check_for_interrupts();
    }
    Ok(())
}

/// Gives the transaction what the session of a dba gets from the SQL function.
fn act_without_triggers() {
    query("SET LOCAL row_security = on", &[]);
    query("SET LOCAL session_replication_role = replica", &[]);
}

fn find_work() -> Result<Work, SqlError> {
    let mut work = Work::default();
    let rows = query(
        "SELECT id::text, user_name, rows::text, kept_rows::text, rows_before::text, segments.places::text
         FROM kalam.user_erasure, LATERAL (SELECT proof -> 'segments' AS places) segments WHERE finished_at IS NULL ORDER BY id",
        &[],
    );
    for row in &rows {
        let column = |place| text(row, place).unwrap_or_default();
        let segments: Vec<String> = serde_json::from_str(column(5)).unwrap_or_default();
        work.erasures.push(Erasure {
            id: column(0).to_owned(),
            user: column(1).to_owned(),
            rows: serde_json::from_str(column(2)).unwrap_or_default(),
            kept: column(3).parse().unwrap_or(0),
            late: 0,
            before: column(4).parse().unwrap_or_else(|_| vacuum::next_xid()),
            segments: segments.into_iter().collect(),
            exports: Vec::new(),
            failure: None,
        });
    }
    if work.erasures.is_empty() {
        return Ok(work);
    }
    for erasure in &mut work.erasures {
        // What the erasing transaction itself had deleted before was kept at its end.
        erasure.kept += erase_kept_before(erasure);
    }
    look_at_tables(&mut work)?;
    Ok(work)
}

/// Erases what transactions brought that were running at the erasure.
fn erase_late(erasure: &mut Erasure) -> Result<(), SqlError> {
    act_without_triggers();
    let kept = erase_kept_before(erasure);
    erasure.kept += kept;
    erasure.late = kept + erase::erase_late(&erasure.user, erasure.before)?;
    Ok(())
}

/// Looks for the tables and segments that had rows of the users.
fn look_at_tables(work: &mut Work) -> Result<(), SqlError> {
    work.tables.clear();
    for (oid, name) in user_tables()? {
        if let Some(storage) = catalog::with_relation(oid, |rel| look_at_table(rel, &mut work.erasures)).flatten() {
            forget_statistics(oid);
            work.tables.push(Touched { oid, name, storage });
        }
    }
    work.above = tables_above(&work.tables);
    for (oid, _) in &work.above {
        forget_statistics(*oid);
    }
    // Their files have to be found also when this run comes no further than taking them out of the tables.
    for erasure in &work.erasures {
        query(
            "UPDATE kalam.user_erasure SET proof = $2::jsonb WHERE id = $1::bigint",
            &[Some(&erasure.id), Some(&json!({ "segments": erasure.segments }).to_string())],
        );
    }
    work.limit = vacuum::next_xid();
    Ok(())
}

fn erase_kept_before(erasure: &Erasure) -> i64 {
    let erased = erase::count_erased(
        "DELETE FROM kalam.deleted_rows d USING kalam.user_erasure e
         WHERE e.id = $1::bigint AND d.user_id = pg_catalog.convert_to(e.user_name, pg_catalog.getdatabaseencoding())
             AND (d.deleted_at <= e.requested_at OR d.xid < $2::xid8)
         RETURNING d.rows",
        &[erasure.id.as_str().into(), erasure.before.to_string().as_str().into()],
    );
    erased as i64
}

/// Where a segment is: its storage, and its path below that.
fn place_of(record: &SegmentRecord) -> String {
    format!("{}:{}", record.place.location, record.place.path)
}

/// Notes the segments with rows of the users in a table; its storage if one of them ever had rows there.
fn look_at_table(rel: pg_sys::Relation, erasures: &mut [Erasure]) -> Option<StorageId> {
    let storage = Storage::find(rel)?;
    let wait = BackendWait::new(storage.cache);
    let mut records: Option<Vec<_>> = None;
    let mut is_touched = false;
    for erasure in erasures {
        let Some(number) = partition::find(&storage, erasure.user.as_bytes(), &wait).or_raise() else { continue };
        is_touched = true;
        let all = records.get_or_insert_with(|| segments_of(&storage, &requests::client(storage.cache, &wait)).0);
        for record in all.iter().filter(|record| record.partition == number) {
            erasure.segments.insert(place_of(record));
        }
    }
    is_touched.then_some(storage.id)
}

/// Removes what the planner knows of the values in a table and in its indexes: values of erased rows may be among the most common.
fn forget_statistics(table: pg_sys::Oid) {
    let number = table.to_u32().to_string();
    let indexes = query("SELECT indexrelid::text FROM pg_catalog.pg_index WHERE indrelid = $1::oid", &[Some(&number)]);
    let oids = indexes.iter().filter_map(|row| text(row, 0)?.parse::<u32>().ok()).map(pg_sys::Oid::from);
    for oid in oids.chain([table]) {
        // SAFETY: removes catalog rows in the open transaction.
        unsafe { pg_sys::RemoveStatistics(oid, 0) };
    }
    query(
        "DELETE FROM pg_catalog.pg_statistic_ext_data d USING pg_catalog.pg_statistic_ext s
         WHERE s.oid = d.stxoid AND s.stxrelid = $1::oid",
        &[Some(&number)],
    );
}

/// The partitioned tables, and those that others inherit from, above tables: their statistics are of the rows below.
fn tables_above(tables: &[Touched]) -> Vec<(pg_sys::Oid, String)> {
    let numbers: Vec<String> = tables.iter().map(|table| table.oid.to_u32().to_string()).collect();
    let rows = query(
        "WITH RECURSIVE above (oid) AS (
             SELECT inhparent FROM pg_catalog.pg_inherits WHERE inhrelid = ANY ($1::oid[])
             UNION SELECT i.inhparent FROM pg_catalog.pg_inherits i JOIN above a ON i.inhrelid = a.oid
         ) SELECT c.oid::text, pg_catalog.format('%I.%I', n.nspname, c.relname)
         FROM above a JOIN pg_catalog.pg_class c ON c.oid = a.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p') ORDER BY c.oid",
        &[Some(&format!("{{{}}}", numbers.join(",")))],
    );
    let table = |row: &Row| Some((pg_sys::Oid::from(text(row, 0)?.parse::<u32>().ok()?), text(row, 1)?.to_owned()));
    rows.iter().filter_map(table).collect()
}

/// Waits until all transactions before one have ended.
fn await_transactions(limit: u64) -> Result<(), SqlError> {
    let begun = Instant::now();
    loop {
        let oldest = transaction(c"KalamDB: waiting for old transactions", || {
            Ok(query_one("SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text", &[]))
        })?;
        if oldest.and_then(|oldest| oldest.parse::<u64>().ok()).is_some_and(|oldest| oldest >= limit) {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(SqlError::lock_not_available("a transaction that may have rows of an erased user is still open")
                .with_detail("It began before the rows were erased.")
                .with_hint("The job is run again by itself; end transactions that stay open, prepared ones too."));
        }
        check_for_interrupts();
        std::thread::sleep(PAUSE);
    }
}

/// Waits until no snapshot sees what was deleted before a transaction.
fn await_horizon(limit: u64) -> Result<(), SqlError> {
    let begun = Instant::now();
    loop {
        let past = transaction(c"KalamDB: waiting for old snapshots", || {
            // Those of the catalogs are the oldest: some readers need the catalogs only.
            let oldest = catalog::with_relation(pg_sys::StatisticRelationId, |rel| {
                // SAFETY: the relation is open.
                unsafe { pg_sys::GetOldestNonRemovableTransactionId(rel) }.into_inner()
            });
            Ok(oldest.is_some_and(|oldest| vacuum::full_cutoff(oldest, vacuum::next_xid()) >= limit))
        })?;
        if past {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(SqlError::lock_not_available("a transaction still sees rows of an erased user")
                .with_detail("It began before the rows were erased, or a replica or a replication slot needs them.")
                .with_hint("The job is run again by itself; end transactions that stay open."));
        }
        check_for_interrupts();
        std::thread::sleep(PAUSE);
    }
}

/// Removes dead versions and what indexes have of them, and lets the planner know the rest.
fn clean_table(table: &Touched) -> Result<(), SqlError> {
    let begun = Instant::now();
    loop {
        let left = patiently(|| vacuum_table(table.oid))?;
        match left.flatten() {
            None => return Ok(()),
            Some(0) => break,
            Some(_) if begun.elapsed() > PATIENCE => {
                return Err(SqlError::lock_not_available("dead rows of an erased user are still in use")
                    .with_detail(format!("They are in table {}.", table.name))
                    .with_hint("The job is run again by itself."));
            }
            Some(_) => std::thread::sleep(PAUSE),
        }
    }
    let indexes = transaction(c"KalamDB: looking for indexes", || {
        Ok(query(
            "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
             FROM pg_catalog.pg_index i
             JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE i.indrelid = $1::oid ORDER BY c.oid",
            &[Some(&table.oid.to_u32().to_string())],
        ))
    })?;
    for index in indexes.iter().filter_map(|row| text(row, 0)) {
        patiently(|| limited_by_size(table.oid, &table.name, || query(&format!("REINDEX INDEX {index}"), &[])))?;
    }
    patiently(|| limited_by_size(table.oid, &table.name, || query(&format!("ANALYZE {}", table.name), &[])))?;
    Ok(())
}

/// Vacuums a table; returns how many dead versions are left, or nothing if the table is gone.
fn vacuum_table(oid: pg_sys::Oid) -> Option<u64> {
    let lock = pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: opened with VACUUM's lock, which goes with the transaction if an ERROR comes.
    unsafe {
        let rel = pg_sys::try_relation_open(oid, lock);
        if rel.is_null() {
            return None;
        }
        let left = vacuum::remove_dead(rel, None);
        pg_sys::relation_close(rel, pg_sys::NoLock as pg_sys::LOCKMODE);
        Some(left)
    }
}

/// Does something in a transaction of its own that waits for its locks for a moment only: whoever needs the relation next waits behind
/// it. Nothing comes back when the relation is gone.
fn patiently<R>(run: impl Fn() -> R) -> Result<Option<R>, SqlError> {
    let begun = Instant::now();
    loop {
        let result = transaction(c"KalamDB: erasing users", || {
            query("SET LOCAL lock_timeout = '300 ms'", &[]);
            Ok(run())
        });
        match result {
            Err(error) if error.is_lock_not_available() && begun.elapsed() < PATIENCE => {
                check_for_interrupts();
                std::thread::sleep(PAUSE);
            }
            Err(error) if error.is_undefined_relation() => return Ok(None),
            result => return result.map(Some),
        }
    }
}

/// Brings the pages as they are now to the store, deletes segments that nothing is read from, and has what was overwritten removed.
fn rewrite_store(work: &Work) -> Result<(), SqlError> {
    query("SELECT 'done' FROM kalam.checkpoint()", &[]);
    let storages = work.tables.iter().map(|table| table.storage).collect();
    requests::with_client(engine_cache(), |client| {
        client.delete_unused()?;
        client.drop_superseded(storages)
    })?;
    Ok(())
}

/// The places of the segments that the tables have now.
fn segments_left(work: &Work) -> BTreeSet<String> {
    let mut left = BTreeSet::new();
    for table in &work.tables {
        catalog::with_relation(table.oid, |rel| {
            let Some(storage) = Storage::find(rel) else { return };
            let wait = BackendWait::new(storage.cache);
            let (records, _) = segments_of(&storage, &requests::client(storage.cache, &wait));
            left.extend(records.iter().map(place_of));
        });
    }
    left
}

/// Sees to it that the files of the segments are gone, and notes that the user is erased, with the proof.
fn finish(erasure: &mut Erasure, tables: &[Touched], left: &BTreeSet<String>) -> Result<(), SqlError> {
    if let Some(place) = erasure.segments.iter().find(|place| left.contains(*place)) {
        return Err(SqlError::lock_not_available("a segment of an erased user is still read")
            .with_detail(format!("It is {place}."))
            .with_hint("The job is run again by itself."));
    }
    let wait = BackendWait::new(engine_cache());
    for (storage, path) in erasure.segments.iter().filter_map(|place| place.split_once(':')) {
        // The engine may keep it for a time, or may not have reached the storage.
        storages::open(&storages::require(storage)?)?.delete(path, &wait)?;
    }
    let tables: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let proof = json!({
        "rows": erasure.rows, "late_rows": erasure.late, "kept_rows": erasure.kept, "segments": erasure.segments,
        "exports": erasure.exports, "rewritten_tables": tables,
    });
    query(
        "UPDATE kalam.user_erasure SET finished_at = pg_catalog.clock_timestamp(), kept_rows = $3::bigint, proof = $2::jsonb
         WHERE id = $1::bigint",
        &[Some(&erasure.id), Some(&proof.to_string()), Some(&erasure.kept.to_string())],
    );
    Event::about("user_erased", &erasure.user)
        .with("segments", erasure.segments.len())
        .with("exports", erasure.exports.len())
        .record(Lasts::WithTransaction)?;
    Ok(())
}
