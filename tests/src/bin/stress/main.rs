//! Stress test: each row is seen exactly once while clients change rows, rows become cold and hot again, and processes end.

mod board;
mod client;
mod look;
mod own;
mod schema;
mod shake;
mod verify;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kalamdb_tests::args::{Args, exit_code};
use kalamdb_tests::{Cluster, ClusterOptions, Installation, StopMode};

use board::Board;
use client::{PATIENCE, StressClient};
use schema::Ledger;
use shake::Blow;

const USAGE: &str = "stress [--seconds N] [--seed S] [--clients N] [--blows terminate,end-job,job,backend,worker,auxiliary,postmaster,all,immediate,fast]
       [--blow-every SECONDS] [--no-preload] [--keep]
       [--damage lose-row|change-value|break-sum|lose-line|lose-index-entry]: succeeds if the damage is noticed
environment: AM (kalam_shared), PRELOAD (kalamdb), PG_BIN or PG_CONFIG, KALAM_SERVER_DIR, KALAM_SERVER_USER";

/// What Postgres itself reports with internal SQLSTATEs when an index build or the leader of parallel workers is ended.
const EXPECTED_IN_LOG: [&str; 3] = [
    "cannot reindex invalid index",
    "could not attach to per-session DSM segment",
    "could not map dynamic shared memory segment",
];

struct Options {
    seconds: f64,
    seed: u64,
    clients: u32,
    blows: Vec<Blow>,
    blow_every: f64,
    keep: bool,
}

fn main() -> ExitCode {
    let outcome =
        Args::from_env(&["seconds", "seed", "clients", "blows", "blow-every", "damage"], &["no-preload", "keep", "help"])
            .and_then(|args| {
                if args.flag("help") {
                    println!("{USAGE}");
                    return Ok(());
                }
                let installation = Installation::for_program(&args)?;
                let options = Options {
                    seconds: args.get("seconds", 20.0)?,
                    seed: args.get("seed", 1)?,
                    clients: args.get("clients", 8)?,
                    blows: shake::blows(&args.list("blows"))?,
                    blow_every: args.get("blow-every", 3.0)?,
                    keep: args.flag("keep"),
                };
                match args.text("damage") {
                    None => run(&installation, &options),
                    Some(kind) => notice(&installation, Options { blows: vec![shake::damage(kind)?], ..options }),
                }
            });
    exit_code("stress", outcome)
}

/// The test of the test.
fn notice(installation: &Installation, options: Options) -> Result<()> {
    let Err(error) = run(installation, &Options { blow_every: options.seconds / 2.0, ..options }) else {
        bail!("the damage was not noticed");
    };
    println!("stress: the damage was noticed: {error:#}");
    Ok(())
}

fn run(installation: &Installation, options: &Options) -> Result<()> {
    let mut cluster = Cluster::create(installation, &ClusterOptions { name: "stress", settings: schema::settings() })?;
    let outcome = shake_and_verify(&mut cluster, options);
    if options.keep {
        cluster.keep();
    }
    if options.blows.iter().any(|blow| matches!(blow, Blow::Damage(_))) {
        return outcome;
    }
    if let Err(error) = outcome {
        cluster.keep();
        eprintln!("processes at the failure:\n{}", cluster.describe_processes());
        eprintln!("end of {}:\n{}", cluster.log_path().display(), cluster.log_tail(40));
        return Err(error.context(format!("seed {}, kept in {}", options.seed, cluster.directory().display())));
    }
    Ok(())
}

fn shake_and_verify(cluster: &mut Cluster, options: &Options) -> Result<()> {
    cluster.start(PATIENCE)?;
    schema::create(cluster, options.clients)?;
    let board = Arc::new(Board::new(options.clients));
    let is_extension = cluster.installation().is_extension();
    let until = Instant::now() + Duration::from_secs_f64(options.seconds);
    let (clients, others) = launch(cluster, options, &board);
    let struck = shake::strike_until(cluster, &board, &options.blows, options.blow_every, until, options.seed);
    board.stop.store(true, Ordering::SeqCst);
    let mut wrong: Vec<String> = Vec::new();
    let mut returned = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    for handle in clients {
        let (client, outcome) = join(handle, deadline).with_context(|| cluster.describe_hang())?;
        wrong.extend(outcome.err().map(|error| format!("client {}: {error:#}", client.number)));
        returned.push(client);
    }
    for handle in others {
        let outcome = join(handle, deadline).with_context(|| cluster.describe_hang())?;
        wrong.extend(outcome.err().map(|error| format!("{error:#}")));
    }
    // What a client found comes before what the driver missed because of it.
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let struck = struck?;
    let mut ledgers: Vec<&mut Ledger> = returned.iter_mut().map(|client| &mut client.ledger).collect();
    verify_in_stages(cluster, &mut ledgers, is_extension)?;
    cluster.require_sound_log(0, &EXPECTED_IN_LOG)?;
    report(options, &board, &struck);
    // A run in which nothing was cooled proves nothing.
    ensure!(!is_extension || board.cooled_blocks.load(Ordering::Relaxed) > 0, "no block became cold");
    Ok(())
}

type Clients = Vec<JoinHandle<(StressClient, Result<()>)>>;
/// What goes on beside the clients.
type Work = fn(&postgres::Config, &Board, u64) -> Result<()>;
type Others = Vec<JoinHandle<Result<()>>>;

/// Whoever finds something wrong stops all others.
fn launch(cluster: &Cluster, options: &Options, board: &Arc<Board>) -> (Clients, Others) {
    let configuration = cluster.configuration(schema::DATABASE);
    let mut clients = Clients::new();
    for number in 0..options.clients {
        let (board, configuration) = (Arc::clone(board), configuration.clone());
        let mut client = StressClient::new(number, options.seed);
        clients.push(std::thread::spawn(move || {
            let outcome = client.run(&configuration, &board);
            board.stop.fetch_or(outcome.is_err(), Ordering::SeqCst);
            (client, outcome)
        }));
    }
    let mut others = Others::new();
    let mut works: Vec<Work> = vec![shake::maintain];
    if cluster.installation().is_extension() {
        works.push(shake::cool);
    }
    for work in works {
        let (board, configuration, seed) = (Arc::clone(board), configuration.clone(), options.seed);
        others.push(std::thread::spawn(move || {
            let outcome = work(&configuration, &board, seed);
            board.stop.fetch_or(outcome.is_err(), Ordering::SeqCst);
            outcome
        }));
    }
    (clients, others)
}

fn join<T>(handle: JoinHandle<T>, deadline: Instant) -> Result<T> {
    while !handle.is_finished() {
        if Instant::now() > deadline {
            bail!("a session hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    handle.join().map_err(|_| anyhow!("a client panicked"))
}

/// The whole comparison again after each thing that moves rows, and after a restart.
fn verify_in_stages(cluster: &mut Cluster, ledgers: &mut [&mut Ledger], is_extension: bool) -> Result<()> {
    let mut client = cluster.connect(schema::DATABASE)?;
    verify::everything(&mut client, ledgers, "as the clients left it")?;
    client.batch_execute("VACUUM")?;
    verify::everything(&mut client, ledgers, "after VACUUM")?;
    if is_extension {
        for (table, _, _) in schema::TABLES {
            client.execute(&format!("SELECT * FROM flush_now('{table}')"), &[])?;
            client.execute(&format!("SELECT * FROM compact_now('{table}')"), &[])?;
        }
        verify::everything(&mut client, ledgers, "after everything became cold")?;
        let row =
            client.query_one("SELECT count(*), sum(live_rows)::bigint FROM kalam.segments WHERE schemaname = 'public'", &[])?;
        let (segments, rows): (i64, Option<i64>) = (row.get(0), row.get(1));
        println!("stress: {segments} segments have {} rows at the end", rows.unwrap_or(0));
    }
    drop(client);
    cluster.stop(StopMode::Fast, PATIENCE)?;
    cluster.start(PATIENCE)?;
    verify::everything(&mut cluster.connect(schema::DATABASE)?, ledgers, "after a restart")
}

fn report(options: &Options, board: &Board, struck: &[String]) {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "stress: seed {}, {} s passed: {} transactions, {} rolled back by the server, {} looks at snapshots, {} flushes and \
         compactions, {} blocks cooled, {} written anew, {} jobs asked for, {} vacuums and the like, {} blows",
        options.seed,
        options.seconds,
        count(&board.done),
        count(&board.aborted),
        count(&board.looks),
        count(&board.coolings),
        board.cooled_blocks.load(Ordering::Relaxed),
        board.rewritten_blocks.load(Ordering::Relaxed),
        count(&board.jobs),
        count(&board.vacuums),
        struck.len()
    );
    struck.iter().for_each(|what| println!("    {what}"));
}
