//! The keeper of a database's job table: answers requests, turns policies into jobs, finds what was left behind.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{futex, raise, wanted};
use kalamdb_engine::{Error, ErrorKind};
use pgrx::{PgLogLevel, pg_sys};
use serde_json::{Value, json};

use super::kinds::{JobId, Kind};
use super::policy;
use super::process::{self, Me, transaction};
use super::table::{self, NewJob};
use crate::error::SqlError;
use crate::ffi::plain;
use crate::ownership;

/// How long a keeper that has nothing to do stays: shorter than the five seconds for which DROP DATABASE waits for others to leave.
const LINGER: Duration = Duration::from_secs(1);

/// Serves until nothing has been wanted for a while.
pub fn run(me: Me) {
    let board = me.cache.jobs();
    let mut last_use = Instant::now();
    loop {
        let seen = me.process.wake.load(Ordering::Acquire);
        process::pause();
        if process::terminate_requested() {
            return;
        }
        let flags = board.take_wanted(me.database, wanted::KEEPER);
        let served = serve_requests(me) | serve_flags(me, flags);
        if served {
            hand_over(me);
            last_use = Instant::now();
        } else if last_use.elapsed() > LINGER && board.leave(me.place) {
            return;
        }
        futex::wait(&me.process.wake, seen);
    }
}

fn serve_flags(me: Me, flags: u32) -> bool {
    if flags & wanted::HOUSEKEEPING != 0 {
        keep_house(me);
    }
    if flags & (wanted::POLICIES | wanted::HOUSEKEEPING) != 0 {
        let first_look = flags & wanted::HOUSEKEEPING != 0;
        log_failure(transaction(c"KalamDB: flush policies", || policy::apply(me, first_look)));
    }
    flags & !wanted::REQUESTS != 0
}

/// Hands new jobs over to the runners.
fn hand_over(me: Me) {
    match transaction(c"KalamDB: queueing jobs", || Ok(table::queue_new())) {
        Ok(true) => {
            me.cache.jobs().want(me.database, wanted::QUEUED);
            raise(&me.cache.header().main_wake);
        }
        Ok(false) => {}
        Err(error) => {
            error.log(PgLogLevel::LOG);
            // A runner queues what it finds, too.
            process::wake_at(me, Some(1000));
        }
    }
}

fn log_failure(result: Result<(), SqlError>) {
    if let Err(error) = result {
        error.log(PgLogLevel::LOG);
    }
}

/// Finds jobs whose process is gone and retries whose time has come, and has old rows removed.
fn keep_house(me: Me) {
    let board = me.cache.jobs();
    let found = transaction(c"KalamDB: looking for jobs left behind", || {
        for job in table::running() {
            if board.running(job.0).is_none() {
                let error = SqlError::from(
                    Error::new(ErrorKind::Unavailable, "the process that ran the job ended")
                        .with_detail("The server or the process was stopped or failed while the job ran.")
                        .with_hint("See the server's log. The job is run again, unless that happened too often."),
                );
                table::fail(job, &error, true);
            }
        }
        let orphans = policy::end_retention()?;
        if orphans || table::has_old() || ownership::export::is_any_due() {
            table::add(&own_job(Kind::Cleanup))?;
        }
        if ownership::cleanup::is_due() {
            table::add(&own_job(Kind::UserCleanup))?;
        }
        Ok(table::next_retry())
    });
    match found {
        // Once everybody can see it: a runner that comes earlier would find nothing and leave.
        Ok(next) => process::wake_at(me, next),
        Err(error) => error.log(PgLogLevel::LOG),
    }
}

/// A job on no table that the keeper adds itself.
fn own_job(kind: Kind) -> NewJob<'static> {
    // SAFETY: the role that the process connected as.
    let role = unsafe { plain::GetUserId() };
    NewJob { kind, relation: pg_sys::InvalidOid, schema: None, table: None, parameters: "{}", role, automatic: true }
}

fn serve_requests(me: Me) -> bool {
    let mut any = false;
    while let Some(request) = me.cache.jobs().take_request(me.database, me.place) {
        any = true;
        let answer = transaction(c"KalamDB: request", || serve(me, &request.text));
        request.answer(&match answer {
            Ok(value) => json!({ "ok": value }).to_string(),
            Err(error) => refusal(&error),
        });
    }
    any
}

/// The answer that carries an error.
pub fn refusal(error: &SqlError) -> String {
    json!({ "error": error.to_text() }).to_string()
}

fn serve(me: Me, text: &str) -> Result<Value, SqlError> {
    let request: Value =
        serde_json::from_str(text).map_err(|error| SqlError::from(Error::internal(format!("a request for jobs: {error}"))))?;
    match request["op"].as_str() {
        Some("add") => add(&request),
        Some("state") => state(&request),
        Some("cancel") => cancel(me, &request),
        _ => Err(Error::internal("an unknown request for jobs").into()),
    }
}

fn oid(value: &Value) -> pg_sys::Oid {
    pg_sys::Oid::from(value.as_u64().and_then(|oid| u32::try_from(oid).ok()).unwrap_or(0))
}

fn add(request: &Value) -> Result<Value, SqlError> {
    let kind = request["kind"].as_str().and_then(Kind::from_code).ok_or_else(|| Error::internal("an unknown kind of job"))?;
    let parameters = request["parameters"].to_string();
    let (id, is_new) = table::add(&NewJob {
        kind,
        relation: oid(&request["relation"]),
        schema: request["schema"].as_str(),
        table: request["table"].as_str(),
        parameters: &parameters,
        role: oid(&request["role"]),
        automatic: false,
    })?;
    Ok(json!({ "id": id, "new": is_new }))
}

/// The job if the role that asks may see it: it is the job's or its table's, or sees everything.
fn job_of(request: &Value) -> Result<(String, table::JobState), SqlError> {
    let id = request["id"].as_str().unwrap_or("").to_owned();
    let state = table::state_of(&id).ok_or_else(|| unknown_job(&id))?;
    let role = oid(&request["role"]);
    let has = |other: u32| {
        // SAFETY: looks up catalogs in an open transaction.
        unsafe { pg_sys::has_privs_of_role(role, other.into()) }
    };
    if has(state.requested_by) || state.owner.is_some_and(has) {
        return Ok((id, state));
    }
    Err(SqlError::insufficient_privilege(format!("permission denied for job {id}"))
        .with_detail("A job belongs to the role that asked for it and to the owner of its table.")
        .with_hint("Ask one of them, or a superuser."))
}

fn unknown_job(id: &str) -> SqlError {
    SqlError::undefined_object(format!("job \"{id}\" does not exist"))
        .with_hint("The view kalam.jobs lists the jobs of this database that you may see.")
}

fn state(request: &Value) -> Result<Value, SqlError> {
    let (_, job) = job_of(request)?;
    Ok(json!({ "state": job.state, "message": job.message, "error": job.error, "sqlstate": job.sqlstate }))
}

fn cancel(me: Me, request: &Value) -> Result<Value, SqlError> {
    let (id, _) = job_of(request)?;
    if table::cancel_waiting(&id) {
        me.cache.jobs().tell_job_changed();
        return Ok(json!(true));
    }
    // A runner may have taken it in the meantime, for whose commit the attempt to cancel it as a waiting one has waited.
    let is_running = table::state_of(&id).is_some_and(|job| job.state == "running");
    let running = JobId::parse(&id).and_then(|id| me.cache.jobs().running(id.0));
    let (Some(process), true) = (running, is_running) else { return Ok(json!(false)) };
    process.cancelled.store(1, Ordering::Release);
    let pid = process.pid.load(Ordering::Acquire);
    // SAFETY: signals a process of this server that runs the job, as pg_cancel_backend does.
    unsafe { libc::kill(pid as libc::pid_t, libc::SIGINT) };
    Ok(json!(true))
}
