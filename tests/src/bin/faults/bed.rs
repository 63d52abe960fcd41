//! A small cluster for one fault, the rows it must keep, and what a good error looks like.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kalamdb_tests::{Cluster, ClusterOptions, Installation, StopMode, sql};
use postgres::Client;
use postgres::error::DbError;

use crate::PATIENCE;
use crate::disk::Mount;

pub const DATABASE: &str = "faults";

/// Rows of the table that [`Bed::create_table`] makes.
pub const ROWS: i64 = 2000;

/// Whether the clusters' directories stay.
pub static KEEP: AtomicBool = AtomicBool::new(false);

pub struct Bed {
    /// Unmounted before the cluster's directory is removed.
    pub mount: Option<Mount>,
    pub cluster: Cluster,
}

impl Bed {
    /// A cluster that is not started yet.
    pub fn new(installation: &Installation, name: &'static str, settings: &[(&str, &str)]) -> Result<Bed> {
        let usual = [
            ("fsync", "off"),
            ("max_replication_slots", "4"),
            ("max_connections", "20"),
            ("shared_buffers", "16MB"),
            ("autovacuum", "off"),
            ("jit", "off"),
            ("kalam.cache_size", "16MB"),
            ("kalam.checkpoint_interval", "1h"),
        ];
        let settings = usual.iter().chain(settings).map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let mut cluster = Cluster::create(installation, &ClusterOptions { name, settings })?;
        if KEEP.load(Ordering::Relaxed) {
            cluster.keep();
        }
        Ok(Bed { mount: None, cluster })
    }

    /// A started cluster with the extension in a database.
    pub fn started(installation: &Installation, name: &'static str, settings: &[(&str, &str)]) -> Result<Bed> {
        let mut bed = Bed::new(installation, name, settings)?;
        bed.start()?;
        bed.cluster.create_database(DATABASE)?;
        Ok(bed)
    }

    pub fn start(&mut self) -> Result<()> {
        self.cluster.start(PATIENCE)
    }

    pub fn stop(&mut self) -> Result<()> {
        self.cluster.stop(StopMode::Fast, PATIENCE)
    }

    /// Adds a setting for the next start.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        let mut file = OpenOptions::new().append(true).open(self.cluster.data().join("postgresql.conf"))?;
        Ok(writeln!(file, "{name} = {}", sql::literal(value))?)
    }

    pub fn connect(&self) -> Result<Client> {
        let mut client = self.cluster.connect(DATABASE).context("no session")?;
        client.batch_execute(&format!("SET default_table_access_method = {}", self.cluster.installation().method))?;
        Ok(client)
    }

    pub fn store(&self) -> PathBuf {
        self.cluster.data().join("pgsql_tmp_kalamdb")
    }

    /// Makes a table of [`ROWS`] rows with a primary key, about 2 MB that do not compress, and brings it into the store.
    pub fn create_table(&self, client: &mut Client, table: &str) -> Result<()> {
        Ok(client.batch_execute(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, pad bytea);
             INSERT INTO {table} SELECT i, {} FROM generate_series(1, {ROWS}) i;
             SELECT kalam.checkpoint()",
            noise("i", 60)
        ))?)
    }

    /// Whether the table of [`Bed::create_table`] is whole, read by scan and by index.
    pub fn check_table(&self, client: &mut Client, table: &str) -> Result<()> {
        for scan in ["enable_seqscan", "enable_indexscan"] {
            client.batch_execute(&format!("SET {scan} = off"))?;
            let row = client.query_one(
                &format!("SELECT count(*), count(*) FILTER (WHERE pad = {}) FROM {table} WHERE id > 0", noise("id", 60)),
                &[],
            )?;
            client.batch_execute(&format!("RESET {scan}"))?;
            let (rows, sound): (i64, i64) = (row.get(0), row.get(1));
            ensure!(rows == ROWS && sound == ROWS, "{table} has {rows} rows, {sound} of them sound, with {scan} off");
        }
        Ok(())
    }

    /// The server has not restarted since `postmaster` was noted, and no process of it crashed.
    pub fn check_up(&mut self, postmaster: Option<i32>) -> Result<()> {
        ensure!(self.cluster.postmaster_lives() && self.cluster.postmaster_pid() == postmaster, "the server went down");
        let log = fs::read_to_string(self.cluster.log_path())?;
        let crash = ["PANIC:", "was terminated by signal", "panicked at"];
        if let Some(line) = log.lines().find(|line| crash.iter().any(|mark| line.contains(mark))) {
            bail!("in the server's log: {line}");
        }
        Ok(())
    }
}

/// An expression for 16 * `blocks` bytes that no compression shrinks and that depend on `seed` only.
pub fn noise(seed: &str, blocks: u32) -> String {
    format!(
        "(SELECT string_agg(decode(md5({seed} || ':' || part), 'hex'), '' ORDER BY part) FROM generate_series(1, {blocks}) part)"
    )
}

/// Runs a statement that must fail with this SQLSTATE, and with a detail and a hint in Postgres' style that contain the words.
pub fn refused(client: &mut Client, statement: &str, sqlstate: &str, words: &[&str]) -> Result<()> {
    match client.simple_query(statement) {
        Ok(_) => bail!("{statement}: no error, expected {sqlstate}"),
        Err(error) => check_error(&error, sqlstate, words).context(statement.to_owned()),
    }
}

/// Whether an error of the extension is the expected one and says what it has to.
pub fn check_error(error: &postgres::Error, sqlstate: &str, words: &[&str]) -> Result<()> {
    let text = sql::describe(error);
    let Some(report) = error.as_db_error() else { bail!("expected {sqlstate}, got {text}") };
    ensure!(report.code().code() == sqlstate, "expected {sqlstate}, got {text}");
    for word in words {
        ensure!(text.contains(word), "{word:?} is missing in {text}");
    }
    check_style(report).with_context(|| text)
}

/// Postgres' style guide: the message begins small and has no full stop, detail and hint are sentences.
fn check_style(report: &DbError) -> Result<()> {
    let message = report.message();
    let capital = message.starts_with(|first: char| first.is_uppercase()) && !message.starts_with("KalamDB");
    ensure!(!capital && !message.ends_with('.') && !message.contains('\n'), "the message is not in Postgres' style");
    for (name, text) in [("detail", report.detail()), ("hint", report.hint())] {
        let Some(text) = text else { bail!("the {name} is missing") };
        let sentence = text.starts_with(|first: char| first.is_uppercase() || first == '"') && text.ends_with('.');
        ensure!(sentence && !text.contains('\n'), "the {name} is no sentence");
    }
    Ok(())
}

/// Repeats something until it succeeds: the engine notices by itself that a fault is gone, and a job that it has ended.
pub fn eventually<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("not within {PATIENCE:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
