//! The job `UE`: writes what a user owns to a storage, for each table a Parquet file and one of JSON lines, and a manifest behind them.

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kalamdb_engine::cold::segment_file_name;
use kalamdb_engine::export::{Export, ExportColumn, ExportKind, ExportValue};
use kalamdb_engine::ids::StorageId;
use kalamdb_engine::location::{Location, encode_name};
use kalamdb_engine::{Error, ErrorKind, Result as EngineResult};
use pgrx::prelude::*;
use serde_json::{Value, json};

use super::user_tables_of;
use crate::error::{OrRaise, SqlError};
use crate::ffi::catalog;
use crate::ffi::interrupts::BackendWait;
use crate::ffi::sql::{query, query_one, text};
use crate::identity::session::act_as;
use crate::jobs::limit::limited;
use crate::jobs::process::transaction;
use crate::jobs::table::ACTIVE;
use crate::jobs::{Job, Progress};
use crate::settings;
use crate::shmem::engine_cache;
use crate::storages;
use crate::worker::segments_directory;

/// Rows that a cursor gives at once.
const FETCH: i64 = 1000;
/// Time between two looks for sessions that wait.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Days from 1970 to Postgres' epoch, and microseconds.
const EPOCH_DAYS: i64 = 10_957;
const EPOCH_MICROSECONDS: i64 = EPOCH_DAYS * 86_400_000_000;
/// Objects in one answer of a storage.
const LIST: usize = 1000;

/// The directory of an export in its storage.
fn directory(id: &str) -> String {
    format!("exports/{id}")
}

/// Runs the job; its name is the export's number.
///
/// # Errors
/// What made it fail: those of the storage, or that the user was erased meanwhile.
pub fn run(job: &Job, progress: &mut Progress) -> Result<String, SqlError> {
    let id = job.parameters.get("export").and_then(Value::as_str).unwrap_or_default().to_owned();
    // All tables as of one moment.
    set_isolation(c"repeatable read");
    let written = transaction(c"KalamDB: exporting a user", || write(&id, progress));
    set_isolation(c"read committed");
    let Some(written) = written? else { return Ok("the export was dropped, or the user erased".to_owned()) };
    let noted = transaction(c"KalamDB: noting an export", || {
        let files = Value::from(written.files.clone()).to_string();
        let row = query_one(
            "UPDATE kalam.user_exports SET finished_at = pg_catalog.clock_timestamp(), files = $2::jsonb WHERE id = $1::bigint
             RETURNING 'there'",
            &[Some(&id), Some(&files)],
        );
        if row.is_none() {
            // An erasure or the end of the export took its row away, and may not have seen all of its files.
            delete_files(&written.storage, &id)?;
        }
        Ok(row.is_some())
    })?;
    let tables = written.tables;
    Ok(if noted {
        format!("{} rows of {tables} tables exported", written.rows)
    } else {
        "the export was dropped, or the user erased".to_owned()
    })
}

fn set_isolation(level: &std::ffi::CStr) {
    // SAFETY: a setting of this process, between two transactions.
    unsafe {
        pg_sys::SetConfigOption(
            c"default_transaction_isolation".as_ptr(),
            level.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// What was written.
struct Written {
    storage: String,
    files: Vec<String>,
    rows: u64,
    tables: usize,
}

fn write(id: &str, progress: &mut Progress) -> Result<Option<Written>, SqlError> {
    let rows = query("SELECT user_name, storage FROM kalam.user_exports WHERE id = $1::bigint", &[Some(id)]);
    let Some((user, storage)) = rows.first().and_then(|row| Some((text(row, 0)?, text(row, 1)?))) else { return Ok(None) };
    // Rows of this user only, as the user sees them.
    query("SET LOCAL row_security = on", &[]);
    let mut target = Target::open(id, storage)?;
    let mut tables = Vec::new();
    let (mut total, mut bytes) = (0, 0);
    for (oid, name) in user_tables_of(user)? {
        target.waiters.look()?;
        let table = Table::read(oid, &name, user, &mut target)?;
        if let Some(table) = table {
            total += table["rows"].as_u64().unwrap_or(0);
            bytes += table["parquet"]["bytes"].as_u64().unwrap_or(0);
            tables.push(table);
        }
        progress.done(total, bytes);
    }
    let account = query_one(
        "SELECT (pg_catalog.to_jsonb(u) - 'password_hash')::text FROM kalam.user_accounts u WHERE u.name = $1",
        &[Some(user)],
    );
    let account: Value = account.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
    let moment = query_one("SELECT pg_catalog.to_json(pg_catalog.transaction_timestamp())#>>'{}'", &[]);
    let database = query_one("SELECT pg_catalog.current_database()::text", &[]);
    let count = tables.len();
    let manifest = json!({
        "format": 1, "user": user, "database": database, "time": moment, "account": account, "tables": tables,
    });
    let draft = target.draft()?;
    fs::write(&draft.0, format!("{manifest:#}\n")).map_err(Error::from)?;
    target.store(&draft, "manifest.json")?;
    Ok(Some(Written { storage: storage.to_owned(), files: target.files, rows: total, tables: count }))
}

/// Looks for sessions that this one holds up: the rows of all tables are those of one moment, so all tables stay locked.
struct Waiters {
    looked: Instant,
}

impl Waiters {
    /// Ends the job, which is run again, when somebody waits for one of its locks; looks now and then.
    fn look(&mut self) -> Result<(), SqlError> {
        // Postgres does not tell a process who waits for its weak locks, which it keeps where they are cheap.
        const HELD_UP: &str = "SELECT w.relation::pg_catalog.regclass::text FROM pg_catalog.pg_locks w
            JOIN pg_catalog.pg_locks h USING (locktype, database, relation)
            WHERE locktype = 'relation' AND h.pid = pg_catalog.pg_backend_pid() AND h.granted AND NOT w.granted LIMIT 1";
        if self.looked.elapsed() < LOOK_INTERVAL {
            return Ok(());
        }
        self.looked = Instant::now();
        match query_one(HELD_UP, &[]) {
            None => Ok(()),
            Some(table) => Err(SqlError::lock_not_available(format!(
                "the export gave way to a session that waits for a lock on table {table}"
            ))
            .with_hint("The job is run again by itself.")),
        }
    }
}

/// A file of this process that goes when it is stored or the job fails.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // The engine's sweep finds what stays.
        let _ = fs::remove_file(&self.0);
    }
}

/// Where the files go.
struct Target {
    location: Location,
    directory: String,
    wait: BackendWait,
    waiters: Waiters,
    files: Vec<String>,
    number: u64,
}

impl Target {
    fn open(id: &str, storage: &str) -> Result<Target, SqlError> {
        let location = storages::open(&storages::require(storage)?)?;
        let waiters = Waiters { looked: Instant::now() };
        // What an attempt before this one has left behind.
        delete_files(storage, id)?;
        Ok(Target {
            location,
            directory: directory(id),
            wait: BackendWait::new(engine_cache()),
            waiters,
            files: Vec::new(),
            number: 0,
        })
    }

    /// A path for a file in the making.
    fn draft(&mut self) -> EngineResult<Draft> {
        let directory = segments_directory();
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        self.number += 1;
        let process = std::process::id();
        // A name like that of a segment in the making, which the engine deletes at its start.
        Ok(Draft(directory.join(format!("{}.tmp", segment_file_name(StorageId(0), self.number, process)))))
    }

    /// Brings a file to its place; what the manifest says of it.
    fn store(&mut self, draft: &Draft, name: &str) -> EngineResult<Value> {
        let path = format!("{}/{name}", self.directory);
        let stored = self.location.put(&draft.0, &path, &self.wait)?;
        self.files.push(path);
        Ok(json!({ "path": name, "bytes": stored.bytes, "crc32c": format!("{:08x}", stored.crc32c) }))
    }
}

/// A table as it is read.
struct Table {
    columns: Vec<ExportColumn>,
    expressions: Vec<String>,
}

impl Table {
    /// Writes the rows of a user in a table; what the manifest says of it, or nothing if there is none.
    fn read(oid: pg_sys::Oid, name: &str, user: &str, target: &mut Target) -> Result<Option<Value>, SqlError> {
        let table = Table::describe(oid);
        let (parquet, json) = (target.draft()?, target.draft()?);
        let mut export = Export::create(&parquet.0, &json.0, table.columns.clone())?;
        let (columns, quoted_user) = (table.expressions.join(", "), quoted(user));
        let copy = |name: &str| {
            let statement =
                format!("SELECT {columns}, pg_catalog.row_to_json(t.*)::text FROM {name} t WHERE t._user_id = {quoted_user}");
            act_as(user, || table.copy(name, &statement, &mut export, &mut target.waiters))
        };
        let Some(copied) = catalog::as_owner(oid, pg_sys::AccessShareLock, copy) else { return Ok(None) };
        copied?;
        let rows = export.finish()?;
        if rows == 0 {
            return Ok(None);
        }
        let file = encode_name(name);
        Ok(Some(json!({
            "table": name,
            "rows": rows,
            "columns": table.columns,
            "parquet": target.store(&parquet, &format!("{file}.parquet"))?,
            "json": target.store(&json, &format!("{file}.json"))?,
        })))
    }

    fn describe(oid: pg_sys::Oid) -> Table {
        let rows = query(
            "SELECT attname::text, pg_catalog.quote_ident(attname), atttypid::text FROM pg_catalog.pg_attribute
             WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            &[Some(&oid.to_u32().to_string())],
        );
        let mut table = Table { columns: Vec::new(), expressions: Vec::new() };
        for row in &rows {
            let column = |place| text(row, place).unwrap_or_default();
            let kind = kind_of(pg_sys::Oid::from(column(2).parse::<u32>().unwrap_or(0)));
            let cast = if kind == ExportKind::Text { "::text" } else { "" };
            table.expressions.push(format!("t.{}{cast}", column(1)));
            table.columns.push(ExportColumn { name: column(0).to_owned(), kind });
        }
        table
    }

    /// Runs a statement about a table and adds its rows.
    fn copy(&self, name: &str, statement: &str, export: &mut Export, waiters: &mut Waiters) -> Result<(), SqlError> {
        let statement = CString::new(statement).map_err(|_| SqlError::from(Error::internal("a name has a zero byte")))?;
        // SAFETY: the cursor's rows are read before they are freed; an ERROR ends cursor and connection with the transaction.
        unsafe {
            pg_sys::SPI_connect();
            let plan = pg_sys::SPI_prepare(statement.as_ptr(), 0, std::ptr::null_mut());
            let (values, nulls) = (std::ptr::null_mut(), std::ptr::null());
            let portal = limited(name, || pg_sys::SPI_cursor_open(std::ptr::null(), plan, values, nulls, true));
            loop {
                limited(name, || pg_sys::SPI_cursor_fetch(portal, true, FETCH as _));
                let (table, count) = (pg_sys::SPI_tuptable, pg_sys::SPI_processed as usize);
                for place in 0..count {
                    let row = *(*table).vals.add(place);
                    self.add(row, (*table).tupdesc, export).or_raise();
                }
                pg_sys::SPI_freetuptable(table);
                if count == 0 {
                    break;
                }
                waiters.look()?;
            }
            pg_sys::SPI_cursor_close(portal);
            pg_sys::SPI_finish();
        }
        Ok(())
    }

    /// # Safety
    /// A row of the statement and its descriptor: a value for each column, and JSON.
    unsafe fn add(&self, row: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc, export: &mut Export) -> EngineResult<()> {
        let value_at = |place: usize| {
            let mut is_null = false;
            // SAFETY: the row has that many columns.
            let value = unsafe { pg_sys::SPI_getbinval(row, descriptor, place as i32 + 1, &raw mut is_null) };
            (value, is_null)
        };
        let values = self.columns.iter().enumerate().map(|(place, column)| {
            let (value, is_null) = value_at(place);
            // SAFETY: the value has the type of its column.
            unsafe { export_value(column.kind, value, is_null) }
        });
        let (json, is_null) = value_at(self.columns.len());
        // SAFETY: a text.
        let json = unsafe { String::from_datum(json, is_null) }.unwrap_or_default();
        export.add(values.collect(), &json)
    }
}

fn quoted(text: &str) -> String {
    query_one("SELECT pg_catalog.quote_literal($1)", &[Some(text)]).unwrap_or_default()
}

fn kind_of(oid: pg_sys::Oid) -> ExportKind {
    match oid {
        pg_sys::BOOLOID => ExportKind::Bool,
        pg_sys::INT2OID => ExportKind::Int2,
        pg_sys::INT4OID => ExportKind::Int4,
        pg_sys::INT8OID => ExportKind::Int8,
        pg_sys::FLOAT4OID => ExportKind::Float4,
        pg_sys::FLOAT8OID => ExportKind::Float8,
        pg_sys::DATEOID => ExportKind::Date,
        pg_sys::TIMESTAMPOID => ExportKind::Timestamp,
        pg_sys::TIMESTAMPTZOID => ExportKind::Timestamptz,
        pg_sys::BYTEAOID => ExportKind::Bytea,
        _ => ExportKind::Text,
    }
}

/// # Safety
/// A value of the type that the kind stands for; a text where it stands for any other.
unsafe fn export_value(kind: ExportKind, value: pg_sys::Datum, is_null: bool) -> ExportValue {
    if is_null {
        return ExportValue::Null;
    }
    // SAFETY: the caller's.
    unsafe {
        match kind {
            ExportKind::Bool => ExportValue::Bool(value.value() != 0),
            ExportKind::Int2 => ExportValue::Int(i64::from(value.value() as i16)),
            ExportKind::Int4 => ExportValue::Int(i64::from(value.value() as i32)),
            ExportKind::Int8 => ExportValue::Int(value.value() as i64),
            ExportKind::Float4 => ExportValue::Float(f64::from(f32::from_bits(value.value() as u32))),
            ExportKind::Float8 => ExportValue::Float(f64::from_bits(value.value() as u64)),
            // Infinity stays the least or the greatest value there is.
            ExportKind::Date => match value.value() as i32 {
                infinite @ (i32::MIN | i32::MAX) => ExportValue::Int(i64::from(infinite)),
                days => ExportValue::Int(i64::from(days) + EPOCH_DAYS),
            },
            ExportKind::Timestamp | ExportKind::Timestamptz => match value.value() as i64 {
                infinite @ (i64::MIN | i64::MAX) => ExportValue::Int(infinite),
                microseconds => ExportValue::Int(microseconds.saturating_add(EPOCH_MICROSECONDS)),
            },
            ExportKind::Bytea => Vec::<u8>::from_datum(value, false).map_or(ExportValue::Null, ExportValue::Bytes),
            ExportKind::Text => String::from_datum(value, false).map_or(ExportValue::Null, ExportValue::Text),
        }
    }
}

/// Deletes the exports of a user with their files, those of unfinished ones too; returns the files' paths.
///
/// # Errors
/// Those of the storages.
pub fn delete_all(user: &str) -> Result<Vec<String>, SqlError> {
    let rows = query(
        "DELETE FROM kalam.user_exports WHERE user_name = $1
         RETURNING id::text, storage, coalesce(pg_catalog.jsonb_array_length(files), 0)::text",
        &[Some(user)],
    );
    let mut deleted = Vec::new();
    for (id, storage, written) in rows.iter().filter_map(|row| Some((text(row, 0)?, text(row, 1)?, text(row, 2)?))) {
        let files = delete_files(storage, id)?;
        if files.is_empty() && written != "0" {
            return Err(Error::new(ErrorKind::Unavailable, format!("the files of export {id} are not in storage \"{storage}\""))
                .with_detail("They were written there, and are to be deleted.")
                .with_hint("Has the storage's place been moved? If the files are gone, delete the row of kalam.user_exports.")
                .into());
        }
        deleted.extend(files);
    }
    Ok(deleted)
}

/// The active job that exports a user, if there is one.
pub fn active_job(user: &str) -> Option<String> {
    query_one(
        &format!(
            "SELECT j.id FROM kalam.job j JOIN kalam.user_exports e ON e.id::text = j.parameters ->> 'export'
             WHERE j.type = 'UE' AND j.state IN {ACTIVE} AND e.user_name = $1 AND e.dropped_at IS NULL LIMIT 1"
        ),
        &[Some(user)],
    )
}

/// Exports that were dropped, or whose retention is over.
const DUE: &str = "(dropped_at IS NOT NULL OR coalesce(finished_at, requested_at)
    <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1::double precision))";

/// The retention as a parameter of [`DUE`].
fn retention() -> Option<String> {
    settings::export_retention_seconds().map(|seconds| seconds.to_string())
}

/// Whether there are exports to be deleted.
pub fn is_any_due() -> bool {
    let statement = format!("SELECT 'yes' FROM kalam.user_exports WHERE {DUE} LIMIT 1");
    query_one(&statement, &[retention().as_deref()]).is_some()
}

/// Deletes the exports that were dropped or whose retention is over; returns how many. A job that still writes one deletes its files itself.
///
/// # Errors
/// The first one of a storage; the other exports go.
pub fn delete_due() -> Result<u64, SqlError> {
    let due = transaction(c"KalamDB: looking for exports", || {
        Ok(query(&format!("SELECT id::text, storage FROM kalam.user_exports WHERE {DUE} ORDER BY id"), &[retention().as_deref()]))
    })?;
    let (mut deleted, mut failure) = (0, None);
    for (id, storage) in due.iter().filter_map(|row| Some((text(row, 0)?, text(row, 1)?))) {
        let result = transaction(c"KalamDB: deleting an export", || {
            query("DELETE FROM kalam.user_exports WHERE id = $1::bigint", &[Some(id)]);
            delete_files(storage, id)
        });
        match result {
            Ok(_) => deleted += 1,
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(deleted), Err)
}

fn delete_files(storage: &str, id: &str) -> Result<Vec<String>, SqlError> {
    let location = storages::open(&storages::require(storage)?)?;
    let wait = BackendWait::new(engine_cache());
    let mut deleted = Vec::new();
    loop {
        let objects = location.list(&directory(id), None, LIST, &wait)?;
        if objects.is_empty() {
            return Ok(deleted);
        }
        for object in objects {
            location.delete(&object.path, &wait)?;
            deleted.push(format!("{storage}:{}", object.path));
        }
    }
}
