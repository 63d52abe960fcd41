//! What happens to the tables behind the clients' backs: rows become cold, segments are written anew, VACUUM and index builds run, and
//! processes are ended or killed.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kalamdb_tests::Cluster;
use kalamdb_tests::failure::Failure;
use kalamdb_tests::faults::{self, Fault};
use kalamdb_tests::sql;
use postgres::Client;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::board::Board;
use crate::client::{PATIENCE, in_sessions};
use crate::schema::{DATABASE, TABLES};

/// Flushes and compacts one table after the other without a pause.
pub fn cool(configuration: &postgres::Config, board: &Board, seed: u64) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xc001);
    in_sessions(
        configuration,
        board,
        |_| Ok(()),
        |client| {
            let (table, _, _) = TABLES.choose(&mut rng).expect("not empty");
            match rng.random_range(0..10) {
                0..6 => _ = board.cooled_blocks.fetch_add(blocks_of(client, &mut rng, "flush_now", table)?, Ordering::Relaxed),
                6..8 => {
                    _ = board.rewritten_blocks.fetch_add(blocks_of(client, &mut rng, "compact_now", table)?, Ordering::Relaxed)
                }
                kind => {
                    // The answer comes at once, the job runs beside this session.
                    let function = if kind == 8 { "flush" } else { "compact" };
                    client.execute(&format!("SELECT kalam.{function}({})", sql::literal(table)), &[])?;
                    board.count(&board.jobs);
                }
            }
            board.count(&board.coolings);
            Ok(())
        },
    )
}

/// Works on a table in this session. Cancelled if it takes long: it holds a snapshot that an index build may be waiting for, and it must
/// be possible to end it anywhere.
fn blocks_of(client: &mut Client, rng: &mut ChaCha8Rng, function: &str, table: &str) -> Result<i64, Failure> {
    let patience = rng.random_range(20..1_500);
    client.batch_execute(&format!("SET statement_timeout = {patience}"))?;
    let result = client.query_one(&format!("SELECT blocks FROM {function}({})", sql::literal(table)), &[]);
    let blocks = match result {
        Ok(row) => row.get(0),
        Err(error) if sql::sqlstate(&error) == Some("57014") => 0,
        Err(error) => return Err(error.into()),
    };
    client.batch_execute("SET statement_timeout = 0")?;
    Ok(blocks)
}

/// VACUUM, ANALYZE, index builds and checkpoints, with pauses.
pub fn maintain(configuration: &postgres::Config, board: &Board, seed: u64) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xface);
    in_sessions(
        configuration,
        board,
        |_| Ok(()),
        |client| {
            let (table, _, _) = TABLES.choose(&mut rng).expect("not empty");
            let statement = match rng.random_range(0..20) {
                0..8 => format!("VACUUM {table}"),
                8..10 => format!("VACUUM (FREEZE) {table}"),
                10..12 => format!("VACUUM (INDEX_CLEANUP ON, TRUNCATE ON, ANALYZE) {table}"),
                12..14 => format!("ANALYZE {table}"),
                14..16 => "CHECKPOINT".into(),
                16 => format!("REINDEX TABLE CONCURRENTLY {table}"),
                17 => "DROP INDEX IF EXISTS item_version; CREATE INDEX item_version ON item (version)".into(),
                _ => format!("VACUUM (PARALLEL 2) {table}"),
            };
            client.batch_execute(&statement)?;
            board.count(&board.vacuums);
            std::thread::sleep(Duration::from_millis(rng.random_range(10..200)));
            Ok(())
        },
    )
}

/// How sessions, jobs and servers end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// `pg_terminate_backend` of a client's session.
    Terminate,
    /// `pg_terminate_backend` of a job's process.
    EndJob,
    /// SIGKILL of a job's process, after which the server resets itself.
    KillJob,
    Fault(Fault),
    /// A change behind the clients' backs, which they must notice.
    Damage(&'static str),
}

/// Kinds of damage, for the test of the test.
const DAMAGE: [(&str, &str); 5] = [
    ("lose-row", "DELETE FROM item WHERE id = (SELECT min(id) FROM item)"),
    ("change-value", "UPDATE item SET payload = payload || 'x' WHERE id = (SELECT max(id) FROM item)"),
    ("break-sum", "UPDATE account SET balance = balance + 1 WHERE id = 1"),
    ("lose-line", "DELETE FROM log WHERE client = 0 AND seq = (SELECT max(seq) FROM log WHERE client = 0)"),
    // The row is written again while the index counts as not ready, so its new version has no entry there.
    (
        "lose-index-entry",
        "UPDATE pg_index SET indisready = false WHERE indexrelid = 'item_tag'::regclass;
         CREATE TEMPORARY TABLE moved AS SELECT * FROM item ORDER BY id LIMIT 1;
         DELETE FROM item WHERE id IN (SELECT id FROM moved);
         INSERT INTO item SELECT * FROM moved;
         UPDATE pg_index SET indisready = true WHERE indexrelid = 'item_tag'::regclass",
    ),
];

pub fn damage(name: &str) -> Result<Blow> {
    let found = DAMAGE.iter().find(|(known, _)| *known == name);
    found.map(|(_, statement)| Blow::Damage(statement)).with_context(|| format!("unknown kind of damage {name:?}"))
}

pub fn blows(names: &[String]) -> Result<Vec<Blow>> {
    let mut blows = Vec::new();
    for name in names {
        match name.as_str() {
            "terminate" => blows.push(Blow::Terminate),
            "end-job" => blows.push(Blow::EndJob),
            "job" => blows.push(Blow::KillJob),
            _ => blows.extend(Fault::selection(std::slice::from_ref(name), true)?.into_iter().map(Blow::Fault)),
        }
    }
    Ok(blows)
}

/// Strikes at random moments until the time is over; returns what was done. The server runs at the end.
pub fn strike_until(
    cluster: &mut Cluster,
    board: &Board,
    blows: &[Blow],
    every: f64,
    until: Instant,
    seed: u64,
) -> Result<Vec<String>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xb10);
    let mut done = Vec::new();
    loop {
        let pause = Duration::from_secs_f64(every * rng.random_range(0.5..1.5));
        let next = Instant::now() + pause;
        while Instant::now() < next.min(until) && !board.stops() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let Some(blow) = blows.choose(&mut rng).copied().filter(|_| Instant::now() < until && !board.stops()) else {
            if Instant::now() >= until || board.stops() {
                return Ok(done);
            }
            continue;
        };
        board.note_blow();
        done.push(strike(cluster, blow, &mut rng).with_context(|| format!("{blow:?}"))?);
        board.note_blow();
    }
}

fn strike(cluster: &mut Cluster, blow: Blow, rng: &mut ChaCha8Rng) -> Result<String> {
    match blow {
        Blow::Terminate => end(cluster, "client backend"),
        Blow::Damage(statement) => {
            cluster.connect(DATABASE)?.batch_execute(statement)?;
            Ok("damage".into())
        }
        Blow::EndJob => end(cluster, "kalamdb job"),
        Blow::KillJob => {
            let mark = cluster.log_length();
            let Some(job) = find_job(cluster)? else { return Ok("no job was there".into()) };
            kalamdb_tests::process::signal(job, libc::SIGKILL);
            Ok(if wait_reset(cluster, mark)? { "kill -9 of a job" } else { "a job ended before it was killed" }.into())
        }
        Blow::Fault(fault) => {
            let blow = faults::strike(cluster, fault, rng)?;
            faults::wait_noticed(cluster, &blow)?;
            cluster.start(PATIENCE)?;
            Ok(blow.description)
        }
    }
}

/// Ends some process of a kind as an administrator does. It may end by itself before.
fn end(cluster: &Cluster, kind: &str) -> Result<String> {
    let mut client = cluster.connect(DATABASE)?;
    let query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE backend_type = $1 AND datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1";
    let ended = client.query_opt(query, &[&kind])?.is_some();
    Ok(format!("{} a {kind}", if ended { "ended" } else { "did not find" }))
}

fn find_job(cluster: &Cluster) -> Result<Option<i32>> {
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        let mut jobs = cluster.processes().into_iter().filter(|process| process.title.starts_with("postgres: kalamdb job"));
        if let Some(job) = jobs.next_back() {
            return Ok(Some(job.pid));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(None)
}

/// Waits until the server has noticed that a child was killed, and is back; false if the child had ended before.
fn wait_reset(cluster: &Cluster, mark: u64) -> Result<bool> {
    let noticed = Instant::now() + Duration::from_secs(5);
    while !cluster.log_since(mark)?.contains("was terminated by signal 9") {
        if Instant::now() > noticed {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let back = Instant::now() + PATIENCE;
    while !cluster.log_since(mark)?.contains("all server processes terminated; reinitializing")
        || cluster.connect("postgres").is_err()
    {
        ensure!(Instant::now() < back, "the server does not come back:\n{}\n{}", cluster.describe_hang(), cluster.log_tail(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(true)
}
