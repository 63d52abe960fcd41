//! Benchmark of cold history: a heap table and a flushed table of the same real messages on one private server.
//!
//! The messages come from a CSV of conversations (`--messages`); without one the program says so and measures nothing.

mod history;
mod probe;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use kalamdb_tests::args::{Args, exit_code};
use kalamdb_tests::measure::{self, on_server};
use kalamdb_tests::{Cluster, ClusterOptions, Installation};

use history::History;

const USAGE: &str = "bench_cold --messages FILE.csv[.gz] [--rows N] [--seconds S] [--rounds N] [--lookups N] [--memory 1GB] [--write FILE]
columns of the CSV: conversation_id, seq, role, content, metadata; environment: AM, PRELOAD, PG_BIN or PG_CONFIG, KALAM_SERVER_DIR, KALAM_SERVER_USER";

/// How much of everything is measured.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Messages in each table; the conversations of the file are repeated until there are as many.
    pub rows: u64,
    /// Length of a timed turn.
    pub seconds: u32,
    /// Turns of each side.
    pub rounds: usize,
    /// Lookups with empty caches on each side.
    pub lookups: u32,
}

/// One line of the report; the target is a bound on the ratio of ours to heap's, or on ours alone where heap has no such thing.
pub struct Line {
    pub what: String,
    pub heap: String,
    pub ours: String,
    pub ratio: Option<f64>,
    pub target: Target,
}

#[derive(Clone, Copy)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    None,
}

fn main() -> ExitCode {
    let options = ["messages", "rows", "seconds", "rounds", "lookups", "memory", "write"];
    let outcome = Args::from_env(&options, &["help"]).and_then(run);
    exit_code("bench_cold", outcome)
}

fn run(args: Args) -> Result<()> {
    if args.flag("help") {
        println!("{USAGE}");
        return Ok(());
    }
    let Some(messages) = args.text("messages").filter(|path| Path::new(path).exists()) else {
        println!("bench_cold: skipped: --messages names no file of conversations");
        return Ok(());
    };
    let scale = Scale {
        rows: args.get("rows", 2_000_000)?,
        seconds: args.get("seconds", 5)?,
        rounds: args.get("rounds", 3)?,
        lookups: args.get("lookups", 2_000)?,
    };
    ensure!(scale.rows > 0 && scale.rounds > 0 && scale.lookups > 0, "rows, rounds and lookups must be positive");
    let installation = Installation::from_env()?;
    let options = ClusterOptions { name: "bench_cold", settings: settings(args.text("memory").unwrap_or("1GB")) };
    let text = on_server(&installation, &options, |cluster| measure_all(cluster, messages, scale))?;
    println!("{text}");
    if let Some(path) = args.text("write") {
        std::fs::write(path, &text)?;
    }
    Ok(())
}

/// A server on which nothing moves rows by itself.
fn settings(memory: &str) -> Vec<(String, String)> {
    measure::settings(&[
        ("shared_buffers", memory),
        ("kalam.cache_size", memory),
        ("kalam.flush_policy", "off"),
        ("kalam.flush_io_limit", "0"),
        ("fsync", "on"),
        ("wal_level", "replica"),
        ("max_wal_size", "16GB"),
        ("checkpoint_timeout", "1h"),
        ("autovacuum", "off"),
        ("jit", "off"),
        ("max_parallel_workers_per_gather", "0"),
        ("maintenance_work_mem", "256MB"),
    ])
}

fn measure_all(cluster: &mut Cluster, messages: &str, scale: Scale) -> Result<String> {
    let mut history = History::load(cluster, messages, scale)?;
    let mut lines = Vec::new();
    lines.extend(history.flush()?);
    lines.extend(history.size()?);
    lines.extend(history.cold_lookups()?);
    lines.push(history.cold_scan()?);
    lines.extend(history.warm_reads()?);
    lines.push(history.inserts_during_flush()?);
    lines.extend(history.compaction()?);
    Ok(report(&lines, scale))
}

fn report(lines: &[Line], scale: Scale) -> String {
    let mut text = String::from("| what | heap | kalam_shared | ratio | target | met |\n|---|--:|--:|--:|--:|---|\n");
    for line in lines {
        let (target, met) = match (line.target, line.ratio) {
            (Target::AtLeast(bound), Some(ratio)) => (format!("≥ {bound}"), ratio >= bound),
            (Target::AtMost(bound), Some(ratio)) => (format!("≤ {bound}"), ratio <= bound),
            _ => (String::new(), true),
        };
        let ratio = line.ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default();
        let met = if met { "yes" } else { "**no**" };
        text.push_str(&format!("| {} | {} | {} | {ratio} | {target} | {met} |\n", line.what, line.heap, line.ours));
    }
    text.push_str(&format!(
        "\n{} messages, {} rounds of {} s, {} lookups with empty caches\n",
        scale.rows, scale.rounds, scale.seconds, scale.lookups
    ));
    text
}
