//! Jobs whose process or server goes away, and databases that go away under jobs.

use anyhow::{Context, Result, ensure};
use kalamdb_tests::{Installation, process};
use postgres::Client;

use crate::Outcome;
use crate::bed::{Bed, eventually};

/// Declares the function that runs a job which does what it is told.
const EXERCISE: &str = "CREATE FUNCTION exercise(schema text, parameters jsonb) RETURNS text STRICT LANGUAGE c
    AS '$libdir/kalamdb', 'job_exercise_wrapper'";

/// The process of a job once it runs for the `attempt`-th time.
fn running(client: &mut Client, id: &str, attempt: i32) -> Result<i32> {
    eventually(|| {
        let row = client.query_one("SELECT state, pid, attempts FROM kalam.jobs WHERE id = $1", &[&id])?;
        let (state, pid, attempts): (String, Option<i32>, i32) = (row.get(0), row.get(1), row.get(2));
        ensure!(state == "running" && attempts == attempt, "job {id} is {state} in attempt {attempts}");
        pid.context("a running job without a process")
    })
}

fn begin(client: &mut Client, name: &str, parameters: &str) -> Result<String> {
    let text = format!("SELECT exercise('{name}', '{parameters}')");
    Ok(client.query_one(&text, &[])?.get(0))
}

pub fn job_killed(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "jobkill", &[])?;
    let mut client = bed.connect()?;
    client.batch_execute(EXERCISE)?;
    // The engine looks for jobs where there are tables.
    client.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)")?;
    let id = begin(&mut client, "killed", r#"{"wait": 1}"#)?;
    let waiting = begin(&mut client, "waiting", r#"{"wait": 1}"#)?;
    let queued = begin(&mut client, "queued", r#"{"rows": 7}"#)?;
    let pid = running(&mut client, &id, 1)?;
    running(&mut client, &waiting, 1)?;
    let state = |client: &mut Client, id: &str| -> Result<String> {
        Ok(client.query_one("SELECT state FROM kalam.jobs WHERE id = $1", &[&id])?.get(0))
    };
    ensure!(state(&mut client, &queued)? == "queued", "a third job runs beside two");
    // The server restarts all processes, as after the crash of any.
    process::signal(pid, libc::SIGKILL);
    eventually(|| {
        ensure!(client.simple_query("SELECT 1").is_err(), "the server goes on");
        Ok(())
    })?;
    let mut client = eventually(|| {
        let mut client = bed.connect()?;
        client.query_one("SELECT count(*) FROM t", &[])?;
        Ok(client)
    })?;
    running(&mut client, &id, 2)?;
    let row = client.query_one("SELECT error, sqlstate FROM kalam.jobs WHERE id = $1", &[&id])?;
    let (error, sqlstate): (Option<String>, Option<String>) = (row.get(0), row.get(1));
    ensure!(error.as_deref().is_some_and(|error| error.contains("ended")), "the reason is {error:?}");
    ensure!(sqlstate.as_deref() == Some("57P03"), "the SQLSTATE is {sqlstate:?}");
    running(&mut client, &waiting, 2)?;
    for id in [&id, &waiting] {
        client.execute("SELECT kalam.job_cancel($1)", &[id])?;
    }
    let ended: String = client.query_one("SELECT kalam.job_wait($1)", &[&queued])?.get(0);
    ensure!(ended == "completed", "the job that waited is {ended}");
    let ended: String = client.query_one("SELECT kalam.job_wait($1)", &[&id])?.get(0);
    ensure!(ended == "cancelled", "the killed job that was cancelled is {ended}");
    bed.start()?;
    Ok(Outcome::Passed("jobs go on after their processes were killed, with the reason".into()))
}

pub fn job_server_stopped(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "jobstop", &[])?;
    let mut client = bed.connect()?;
    client.batch_execute(EXERCISE)?;
    client.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)")?;
    let old = begin(&mut client, "old", "{}")?;
    client.query_one("SELECT kalam.job_wait($1)", &[&old])?;
    let id = begin(&mut client, "stopped", r#"{"wait": 1}"#)?;
    running(&mut client, &id, 1)?;
    drop(client);
    bed.stop()?;
    bed.set("kalam.job_retention", "0")?;
    bed.start()?;
    let mut client = bed.connect()?;
    client.query_one("SELECT count(*) FROM t", &[])?;
    // The process had the time to give the job back: that was no failure of the job.
    running(&mut client, &id, 1)?;
    client.execute("SELECT kalam.job_cancel($1)", &[&id])?;
    eventually(|| {
        let kept: i64 = client.query_one("SELECT count(*) FROM kalam.jobs WHERE id = $1", &[&old])?.get(0);
        ensure!(kept == 0, "a job that ended is kept beyond its time");
        Ok(())
    })?;
    Ok(Outcome::Passed("a job goes on after a restart, the attempt not counted; old ones go".into()))
}

pub fn job_database_dropped(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "jobdrop", &[])?;
    let postmaster = bed.cluster.postmaster_pid();
    let mut client = bed.connect()?;
    client.batch_execute("CREATE DATABASE going")?;
    let mut other = bed.cluster.connect("going")?;
    other.batch_execute("CREATE EXTENSION kalamdb")?;
    other.batch_execute(EXERCISE)?;
    let id = begin(&mut other, "inside", r#"{"wait": 1}"#)?;
    running(&mut other, &id, 1)?;
    drop(other);
    // The session that was closed just now may take a moment to leave, the job has to be told.
    eventually(|| Ok(client.batch_execute("DROP DATABASE going")?))?;
    client.batch_execute("CREATE DATABASE renamed")?;
    let mut other = bed.cluster.connect("renamed")?;
    other.batch_execute("CREATE EXTENSION kalamdb")?;
    other.batch_execute(EXERCISE)?;
    let id = begin(&mut other, "inside", r#"{"wait": 1}"#)?;
    running(&mut other, &id, 1)?;
    drop(other);
    eventually(|| Ok(client.batch_execute("ALTER DATABASE renamed RENAME TO kept")?))?;
    let mut other = bed.cluster.connect("kept")?;
    // Asking for anything has the job table looked through.
    begin(&mut other, "after", "{}")?;
    running(&mut other, &id, 1)?;
    other.execute("SELECT kalam.job_cancel($1)", &[&id])?;
    bed.check_up(postmaster)?;
    Ok(Outcome::Passed("jobs leave a database that is dropped or renamed, and go on after the latter".into()))
}

/// Code of a table's owner that catches every cancelling: it ends with its process, and neither holds up other jobs nor the server's stop.
pub fn owner_code_goes_on(installation: &Installation) -> Result<Outcome> {
    let settings = [("kalam.owner_code_limit", "1s"), ("kalam.max_parallel_jobs", "1")];
    let mut bed = Bed::started(installation, "ownercode", &settings)?;
    let mut client = bed.connect()?;
    client.batch_execute(
        "CREATE TYPE hen AS ENUM ('a');
         CREATE FUNCTION goes_on(hen) RETURNS json LANGUAGE plpgsql AS $$
         BEGIN
             LOOP
                 BEGIN PERFORM pg_sleep(1000); EXCEPTION WHEN query_canceled THEN NULL; END;
             END LOOP;
         END $$;
         CREATE CAST (hen AS json) WITH FUNCTION goes_on(hen);
         CREATE TABLE t (i int); INSERT INTO t VALUES (1);
         CREATE TABLE coop (id int PRIMARY KEY, hen hen) USING kalam_user; INSERT INTO coop VALUES (1, 'a');
         SELECT kalam.export_user(kalam.user_id())",
    )?;
    eventually(|| {
        let query = "SELECT count(*) FROM kalam.jobs WHERE id LIKE 'UE%' AND error IS NOT NULL";
        ensure!(client.query_one(query, &[])?.get::<_, i64>(0) == 1, "the export does not end");
        Ok(())
    })?;
    client.batch_execute("SELECT kalam.flush('t', wait => true)")?;
    eventually(|| {
        let query = "SELECT count(*) FROM kalam.jobs WHERE id LIKE 'UE%' AND state = 'running'";
        let state: Option<String> = client.query_one("SELECT max(state) FROM kalam.jobs WHERE id LIKE 'UE%'", &[])?.get(0);
        let running: i64 = client.query_one(query, &[])?.get(0);
        ensure!(running == 1 || state.as_deref() == Some("failed"), "the export is not run again");
        Ok(())
    })?;
    drop(client);
    bed.stop()?;
    Ok(Outcome::Passed("a job that cannot be cancelled ends, and the server stops".to_owned()))
}
