//! Benchmark: heap and the access method under test in turns on one private server; medians and ratios as a markdown table.

mod data;
mod report;
mod workloads;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use kalamdb_tests::args::{Args, exit_code};
use kalamdb_tests::measure::{self, on_server};
use kalamdb_tests::{Cluster, ClusterOptions, Installation};

use report::Measured;
use workloads::{Bench, Scale, Workload};

const USAGE: &str = "bench [--quick] [--only NAME,...] [--rounds N] [--seconds S] [--rows N] [--users N] [--seed S] [--memory 1GB] [--write docs/benchmarks.md] [--list]
--only takes names or their beginnings; environment: AM (kalam_shared), PRELOAD (kalamdb), PG_BIN or PG_CONFIG, KALAM_SERVER_DIR, KALAM_SERVER_USER";

fn main() -> ExitCode {
    let outcome =
        Args::from_env(&["only", "rounds", "seconds", "rows", "users", "seed", "memory", "write"], &["quick", "list", "help"])
            .and_then(run);
    exit_code("bench", outcome)
}

fn run(args: Args) -> Result<()> {
    if args.flag("help") {
        println!("{USAGE}");
        return Ok(());
    }
    let only = args.list("only");
    let chosen: Vec<Workload> = workloads::all()
        .into_iter()
        .filter(|workload| only.is_empty() || only.iter().any(|name| workload.name.starts_with(name.as_str())))
        .collect();
    if args.flag("list") {
        chosen.iter().for_each(|workload| println!("{:<16} {}", workload.name, workload.title));
        return Ok(());
    }
    ensure!(!chosen.is_empty(), "--only names no workload; --list shows them");
    let quick = args.flag("quick");
    let scale = Scale {
        rows: args.get("rows", if quick { 100_000 } else { 1_000_000 })?,
        users: args.get("users", if quick { 500 } else { 5_000 })?,
        seconds: args.get("seconds", if quick { 1 } else { 6 })?,
        tpcb_scale: 10,
        seed: args.get("seed", 1)?,
    };
    let rounds = args.get("rounds", if quick { 3 } else { 5 })?;
    ensure!(
        rounds > 0 && scale.rows > 0 && scale.users > 0 && scale.seconds > 0,
        "rounds, rows, users and seconds must be positive"
    );

    let installation = Installation::from_env()?;
    let options = ClusterOptions { name: "bench", settings: settings(&installation, args.text("memory").unwrap_or("1GB")) };
    let (text, failed) = on_server(&installation, &options, |cluster| measure_all(cluster, &chosen, scale, rounds))?;
    println!("{text}");
    if let Some(path) = args.text("write") {
        report::write_section(Path::new(path), &text)?;
    }
    ensure!(failed == 0, "{failed} workloads could not be measured");
    Ok(())
}

/// A server as one would run it, except that nothing starts by itself in the middle of a turn.
fn settings(installation: &Installation, memory: &str) -> Vec<(String, String)> {
    let mut named = vec![
        ("shared_buffers", memory),
        ("fsync", "on"),
        ("wal_level", "replica"),
        ("max_replication_slots", "8"),
        ("max_connections", "50"),
        ("max_wal_size", "16GB"),
        ("checkpoint_timeout", "1h"),
        ("autovacuum", "off"),
        ("jit", "off"),
        ("max_parallel_workers_per_gather", "0"),
        ("maintenance_work_mem", "256MB"),
    ];
    if installation.is_extension() {
        named.push(("kalam.cache_size", memory));
        named.push(("kalam.stream_eviction_interval", "1d"));
    }
    measure::settings(&named)
}

/// Measures everything; the report and how many workloads failed.
fn measure_all(cluster: &mut Cluster, chosen: &[Workload], scale: Scale, rounds: usize) -> Result<(String, usize)> {
    let mut bench = Bench::create(cluster, scale)?;
    let limits = bench.raw_limits()?;
    let mut measured = Vec::new();
    for workload in chosen {
        let result = alternate(&mut bench, workload, scale, rounds).map_err(|error| format!("{error:#}"));
        if let Err(reason) = &result {
            eprintln!("{}: failed: {reason}", workload.name);
            // The session may be inside of whatever failed, or the server may be recovering from it.
            bench.reconnect()?;
        }
        measured.push(Measured::new(workload, result));
    }
    let method = bench.sides[1].method.clone();
    let data_bytes = bench.data_bytes;
    let failed = measured.iter().filter(|measured| measured.result.is_err()).count();
    let conditions = report::conditions(&mut bench.client, &method, &scale, rounds, data_bytes, limits)?;
    Ok((format!("{}\n{conditions}", report::table(&method, &measured)), failed))
}

/// A warm-up turn of each side, then all rounds; who comes first changes from round to round.
fn alternate(bench: &mut Bench, workload: &Workload, scale: Scale, rounds: usize) -> Result<[Vec<f64>; 2]> {
    for side in [0, 1] {
        bench.turn(workload, side, scale.seconds.div_ceil(3))?;
    }
    let mut turns = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let value = bench.turn(workload, side, scale.seconds)?;
            turns[side].push(value);
            eprintln!("{} round {} {}: {value:.0} {}", workload.name, round + 1, bench.sides[side].method, workload.unit);
        }
    }
    Ok(turns)
}
