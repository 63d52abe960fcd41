//! What a session does with jobs: asks the keeper of its database for one, waits for it, cancels it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Duty, JOB_TEXT, Wait, futex, raise, wanted};
use kalamdb_engine::{Error, ErrorKind};
use pgrx::{PgLogLevel, pg_sys};
use serde_json::{Value, json};

use super::kinds::Kind;
use crate::error::{OrRaise, SqlError, raise as raise_error};
use crate::ffi::catalog::{self, RelationInfo};
use crate::ffi::compat;
use crate::ffi::interrupts::BackendWait;
use crate::ffi::plain;
use crate::identity::account::{Rank, current_rank};
use crate::shmem::engine_cache;
use crate::tableam::storage::relation_name;
use crate::tableam::{self, stream};

/// How long a session waits for the keeper's answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How often a session that waits for a job asks how it stands, if jobs change their states all the time.
const ASK_INTERVAL: Duration = Duration::from_millis(20);

/// The lock modes that keep a job from working on a table.
const CONFLICTING: [u32; 5] = [
    pg_sys::ShareUpdateExclusiveLock,
    pg_sys::ShareLock,
    pg_sys::ShareRowExclusiveLock,
    pg_sys::ExclusiveLock,
    pg_sys::AccessExclusiveLock,
];

/// How long VACUUM waits for it.
const SUGGESTION_LIMIT: Duration = Duration::from_secs(3);

/// Asks the keeper of this database; the answer is there when it has committed.
///
/// # Errors
/// The keeper's, or why there is none.
fn ask(request: &Value) -> Result<Value, SqlError> {
    ask_within(request, ANSWER_LIMIT)
}

fn ask_within(request: &Value, limit: Duration) -> Result<Value, SqlError> {
    let cache = engine_cache();
    let board = cache.jobs();
    // SAFETY: set once at the start of the session.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    let text = request.to_string();
    if text.len() > JOB_TEXT {
        return Err(Error::new(ErrorKind::LimitExceeded, "the parameters of a job are too long")
            .with_detail(format!("A request has room for {JOB_TEXT} bytes, this one needs {}.", text.len()))
            .into());
    }
    let begun = Instant::now();
    let wait = BackendWait::new(cache);
    let mut posted = None;
    loop {
        if posted.is_none() {
            posted = board.post(database, &text);
            if posted.is_some() {
                call_keeper(database)?;
            }
        }
        match &posted {
            Some(posted) => match posted.answer() {
                Some(answer) => return read_answer(&answer),
                None => posted.sleep(futex::WAIT_MAX),
            },
            // All places are taken, and each for a moment only.
            None => std::thread::sleep(Duration::from_millis(5)),
        }
        wait.pause()?;
        if begun.elapsed() > limit {
            return Err(Error::new(ErrorKind::Unavailable, "the KalamDB job process does not answer")
                .with_hint("See the server's log; the server may be overloaded.")
                .into());
        }
    }
}

fn call_keeper(database: u32) -> Result<(), SqlError> {
    let cache = engine_cache();
    let board = cache.jobs();
    if !board.want(database, wanted::REQUESTS) {
        return Err(SqlError::configuration_limit("too many databases have KalamDB jobs at the same time")
            .with_hint("Try again when jobs in other databases have ended."));
    }
    if let Some(place) = board.find_process(database, Duty::Keeper) {
        raise(&board.process(place).wake);
    }
    raise(&cache.header().main_wake);
    Ok(())
}

fn read_answer(text: &str) -> Result<Value, SqlError> {
    let answer: Value = serde_json::from_str(text).unwrap_or_default();
    if let Some(error) = answer["error"].as_str() {
        return Err(SqlError::from_text(error).unwrap_or_else(|| Error::internal(error.to_owned()).into()));
    }
    Ok(answer["ok"].clone())
}

fn role() -> u32 {
    // SAFETY: the current user of the session.
    unsafe { plain::GetUserId() }.to_u32()
}

/// Asks for a job on one table; returns its id, or that of the active one.
pub fn add_for_table(kind: Kind, relation: pg_sys::Oid, parameters: &Value) -> Result<String, SqlError> {
    let table = require_own_table(kind, relation);
    add(kind, Some(&table), None, parameters)
}

/// Asks for a job on all tables of a schema, or of the database, that the session's user owns.
pub fn add_for_many(kind: Kind, schema: Option<&str>, parameters: &Value) -> Result<String, SqlError> {
    add(kind, None, schema, parameters)
}

/// Asks for a job on no table, or for the active one of the same name. Its parameters are seen by whoever sees the job.
pub fn add_named(kind: Kind, name: Option<&str>, parameters: &Value) -> Result<String, SqlError> {
    let answer = ask(&json!({
        "op": "add", "kind": kind.code(), "role": role(), "parameters": parameters, "relation": 0, "schema": null, "table": name,
    }))?;
    answer["id"].as_str().map(str::to_owned).ok_or_else(|| Error::internal("a job without an id").into())
}

/// Asks the keeper of this database to look for what is due; does nothing if there are too many databases.
pub fn ask_to_keep_house() {
    let Ok(cache) = crate::shmem::attach() else { return };
    // SAFETY: set once at the start of the session.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    cache.jobs().want(database, wanted::HOUSEKEEPING);
    raise(&cache.header().main_wake);
}

/// Asks for a job that is a good idea, for a table that is open: without one, things go on as well.
pub fn suggest(kind: Kind, rel: pg_sys::Relation) {
    // SAFETY: the relation is open.
    let Some(table) = catalog::relation_info(unsafe { (*rel).rd_id }) else { return };
    match ask_within(&addition(kind, Some(&table), None, &json!({})), SUGGESTION_LIMIT) {
        Err(error) if error.is_cancelled() => raise_error(error),
        Err(error) => error.log(PgLogLevel::LOG),
        Ok(_) => {}
    }
}

fn addition(kind: Kind, table: Option<&RelationInfo>, schema: Option<&str>, parameters: &Value) -> Value {
    json!({
        "op": "add", "kind": kind.code(), "role": role(), "parameters": parameters,
        "relation": table.map_or(0, |table| table.oid.to_u32()),
        "schema": table.map(|table| table.schema.as_str()).or(schema),
        "table": table.map(|table| table.name.as_str()),
    })
}

fn add(kind: Kind, table: Option<&RelationInfo>, schema: Option<&str>, parameters: &Value) -> Result<String, SqlError> {
    let answer = ask(&addition(kind, table, schema, parameters))?;
    answer["id"].as_str().map(str::to_owned).ok_or_else(|| Error::internal("a job without an id").into())
}

/// Raises an error unless the relation is a table that the current user may have jobs run on.
fn require_own_table(kind: Kind, relation: pg_sys::Oid) -> RelationInfo {
    let Some(info) = catalog::relation_info(relation) else {
        raise_error(SqlError::undefined_object(format!("relation with OID {} does not exist", relation.to_u32())));
    };
    catalog::with_relation(relation, tableam::require_table);
    if !catalog::is_owner_of(relation) && !current_rank().is_ok_and(|(_, rank)| rank >= Rank::Service) {
        raise_error(
            SqlError::insufficient_privilege(format!("must be owner of table {}", info.name))
                .with_hint("Jobs on a table are for its owner, for the roles kalam_service and kalam_dba, and for superusers."),
        );
    }
    let unusable = catalog::with_relation(relation, |rel| unflushable(kind, rel)).flatten();
    if let Some(error) = unusable {
        raise_error(error);
    }
    info
}

/// Why jobs cannot work on a table of ours.
fn unflushable(kind: Kind, rel: pg_sys::Relation) -> Option<SqlError> {
    // SAFETY: an open relation.
    let (persistence, created_here) = unsafe { ((*(*rel).rd_rel).relpersistence as u8, (*rel).rd_createSubid != 0) };
    let name = relation_name(rel);
    if stream::is_stream(rel) {
        return Some(
            Error::new(ErrorKind::Unsupported, format!("cannot run a {} job on stream table \"{name}\"", kind.name()))
                .with_detail("Rows of a stream never leave the hot store.")
                .with_hint("They go by themselves when the time of option \"ttl\" has passed.")
                .into(),
        );
    }
    if persistence != pg_sys::RELPERSISTENCE_PERMANENT {
        return Some(
            Error::new(ErrorKind::Unsupported, format!("cannot run a {} job on table \"{name}\"", kind.name()))
                .with_detail("It is temporary or unlogged: its rows never leave the hot store.")
                .with_hint("Use a permanent table, or ALTER TABLE ... SET LOGGED.")
                .into(),
        );
    }
    created_here.then(|| {
        SqlError::prerequisite(format!("cannot run a {} job on table \"{name}\" yet", kind.name()))
            .with_detail("The table was created in the transaction that is still open, and no other process can see it.")
            .with_hint("Commit first.")
    })
}

/// How Postgres names the lock of a relation of this database.
pub fn relation_tag(relation: pg_sys::Oid) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        // SAFETY: a value of the process.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: relation.to_u32(),
        locktag_field3: 0,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_RELATION as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    }
}

/// Raises an error if the session's own locks would keep a job from ever working on a table.
pub fn refuse_own_locks(relation: pg_sys::Oid) {
    let held = CONFLICTING.iter().any(|mode| {
        // SAFETY: the tag is what Postgres' own macro makes.
        unsafe { compat::holds_lock(&relation_tag(relation), *mode as pg_sys::LOCKMODE) }
    });
    if held {
        raise_error(
            SqlError::prerequisite("cannot wait for a job on a table that this transaction has locked")
                .with_detail("The job would wait for the end of the transaction, and the transaction for the job.")
                .with_hint("Commit first, or do not wait."),
        );
    }
}

/// How a job stands.
fn state_of(id: &str) -> Result<Value, SqlError> {
    ask(&json!({ "op": "state", "id": id, "role": role() }))
}

fn has_ended(state: &Value) -> bool {
    matches!(state["state"].as_str(), Some("completed" | "failed" | "cancelled"))
}

/// Waits for a job's end, at most `timeout`; returns how it stands then.
fn wait_for_end(id: &str, timeout: Option<Duration>) -> Result<Value, SqlError> {
    let cache = engine_cache();
    let changed = &cache.jobs().changed;
    let wait = BackendWait::new(cache);
    let begun = Instant::now();
    super::snapshot::give_back();
    loop {
        let seen = changed.load(Ordering::Acquire);
        let state = state_of(id)?;
        if has_ended(&state) || timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
            return Ok(state);
        }
        let asked = Instant::now();
        // The keeper is asked again when a job has changed its state; once in a while in any case, should one have been missed.
        while changed.load(Ordering::Acquire) == seen && asked.elapsed() < Duration::from_secs(2) {
            wait.pause()?;
            let left = timeout.map_or(futex::WAIT_MAX, |timeout| timeout.saturating_sub(begun.elapsed()));
            if left.is_zero() {
                break;
            }
            futex::wait_for(changed, seen, left);
        }
        if let Some(rest) = ASK_INTERVAL.checked_sub(asked.elapsed()) {
            std::thread::sleep(rest);
        }
        wait.pause()?;
    }
}

/// Waits for a job's end, at most `timeout`; returns its state then.
pub fn wait_for_state(id: &str, timeout: Option<Duration>) -> String {
    let state = wait_for_end(id, timeout).or_raise();
    state["state"].as_str().unwrap_or_default().to_owned()
}

/// Waits until a job is done, and raises an error if it was not.
pub fn wait_for_success(id: &str) {
    let state = wait_for_end(id, None).or_raise();
    match state["state"].as_str() {
        Some("completed") => {}
        Some("cancelled") => {
            let reason = state["message"].as_str().unwrap_or("it was cancelled");
            raise_error(SqlError::cancelled(format!("job {id} was cancelled")).with_detail(format!("Reason: {reason}.")))
        }
        _ => {
            let message = state["error"].as_str().unwrap_or("unknown error").to_owned();
            let sqlstate = state["sqlstate"].as_str().unwrap_or("XX000");
            raise_error(
                SqlError::from_parts(sqlstate, message)
                    .with_detail(format!("This ended job {id}."))
                    .with_hint("The row of the job in kalam.jobs has more."),
            )
        }
    }
}

/// Cancels a job; false if it had ended.
pub fn cancel(id: &str) -> bool {
    ask(&json!({ "op": "cancel", "id": id, "role": role() })).or_raise().as_bool().unwrap_or(false)
}
