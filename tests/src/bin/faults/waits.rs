//! Waits for an engine that does not answer: they end when the statement or the session is to end, and leave nothing behind.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use kalamdb_tests::Installation;
use kalamdb_tests::process::{Pid, signal};
use postgres::Client;

use crate::Outcome;
use crate::bed::{Bed, DATABASE, eventually};

/// The engine's process, which stands still as long as this lives.
struct Still(Pid);

impl Still {
    fn engine(bed: &Bed) -> Result<Still> {
        let worker = bed.cluster.processes().into_iter().find(|process| process.is_engine_worker()).context("no engine")?;
        signal(worker.pid, libc::SIGSTOP);
        Ok(Still(worker.pid))
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        signal(self.0, libc::SIGCONT);
    }
}

/// A client of its own with these statements.
fn start_client(bed: &Bed, statements: &[&str]) -> Result<Child> {
    let mut command = bed.cluster.client_command("psql", DATABASE);
    command.arg("-X").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    for statement in statements {
        command.args(["-c", statement]);
    }
    Ok(command.spawn()?)
}

/// The sessions that run a statement which contains these words.
fn running(control: &mut Client, words: &str) -> Result<Vec<Pid>> {
    let query = "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND strpos(query, $1) > 0 AND pid <> pg_backend_pid()";
    Ok(control.query(query, &[&words])?.iter().map(|row| row.get(0)).collect())
}

fn await_running(control: &mut Client, words: &str, sessions: usize) -> Result<Vec<Pid>> {
    eventually(|| {
        let found = running(control, words)?;
        ensure!(found.len() == sessions, "{} sessions run {words:?}", found.len());
        Ok(found)
    })
}

/// A server with a table whose pages are not in the cache, and a session.
fn started_anew(installation: &Installation, name: &'static str, table: &str) -> Result<(Bed, Client)> {
    let mut bed = Bed::started(installation, name, &[])?;
    bed.connect()?.batch_execute(&format!("{table}; SELECT kalam.checkpoint()"))?;
    bed.stop()?;
    bed.start()?;
    let control = bed.connect()?;
    Ok((bed, control))
}

/// A client that is gone ends its session's wait for a page, and the page can be cleaned afterwards.
pub fn client_lost(installation: &Installation) -> Result<Outcome> {
    let table = "CREATE TABLE seen (id int); INSERT INTO seen SELECT generate_series(1, 10)";
    let (bed, mut control) = started_anew(installation, "client_lost", table)?;
    let still = Still::engine(&bed)?;
    let mut client = start_client(&bed, &["SET client_connection_check_interval = 100", "SELECT * FROM seen"])?;
    await_running(&mut control, "FROM seen", 1)?;
    client.kill()?;
    client.wait()?;
    await_running(&mut control, "FROM seen", 0)?;
    drop(still);
    control.batch_execute("SET statement_timeout = '30s'; DELETE FROM seen WHERE id = 5")?;
    control.batch_execute("VACUUM (FREEZE) seen").context("the page is in use for ever")?;
    ensure!(control.query_one("SELECT count(*) FROM seen", &[])?.get::<_, i64>(0) == 9, "rows were lost");
    Ok(Outcome::Passed("the session ended while the engine stood still".to_owned()))
}

/// New users' first rows wait for the engine, and for each other; both waits can be cancelled.
pub fn new_users_wait(installation: &Installation) -> Result<Outcome> {
    let table = "CREATE TABLE own (id int) USING kalam_user; INSERT INTO own VALUES (1)";
    let (bed, mut control) = started_anew(installation, "new_users_wait", table)?;
    // The map of users comes into the cache, the list of their blocks does not.
    control.batch_execute("SET kalam.user_id = 'nobody'; SELECT count(*) FROM own; RESET kalam.user_id")?;
    let still = Still::engine(&bed)?;
    let mut clients = vec![
        start_client(&bed, &["SET kalam.user_id = 'ann'", "INSERT INTO own VALUES (2)"])?,
        start_client(&bed, &["SET kalam.user_id = 'ben'", "INSERT INTO own VALUES (3)"])?,
    ];
    let waiting = await_running(&mut control, "INTO own", 2)?;
    control.execute("SELECT pg_cancel_backend($1)", &[&waiting[0]])?;
    control.execute("SELECT pg_terminate_backend($1)", &[&waiting[1]])?;
    await_running(&mut control, "INTO own", 0)?;
    drop(still);
    for client in &mut clients {
        ensure!(!client.wait()?.success(), "a row was inserted");
    }
    control.batch_execute("SET kalam.user_id = 'ann'; INSERT INTO own VALUES (4)")?;
    ensure!(control.query_one("SELECT count(*) FROM own", &[])?.get::<_, i64>(0) == 1, "a cancelled row is there");
    Ok(Outcome::Passed("both waits ended while the engine stood still".to_owned()))
}
