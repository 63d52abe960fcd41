//! Turns measurements into a markdown table with the conditions under which they were made.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use kalamdb_tests::measure::median;
use postgres::Client;

use crate::workloads::{Scale, Target, Workload};

const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// All turns of one workload, by side; or why it could not be measured.
pub struct Measured {
    pub title: &'static str,
    pub unit: &'static str,
    pub target: Target,
    pub result: Result<[Vec<f64>; 2], String>,
}

impl Measured {
    pub fn new(workload: &Workload, result: Result<[Vec<f64>; 2], String>) -> Self {
        Measured { title: workload.title, unit: workload.unit, target: workload.target, result }
    }

    fn line(&self) -> String {
        let target = match self.target {
            Target::Speed(target) => format!("≥ {target}"),
            Target::Size(target) => format!("≤ {target}"),
            Target::None => String::new(),
        };
        let turns = match &self.result {
            Err(reason) => return format!("| {} | | | | {target} | failed: {} |", self.title, reason.replace(['\n', '|'], " ")),
            Ok(turns) => turns,
        };
        let (heap, ours) = (median(&turns[0]), median(&turns[1]));
        let ratio = ours / heap;
        let ratios: Vec<f64> = turns[0].iter().zip(&turns[1]).map(|(heap, ours)| ours / heap).collect();
        let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let high = ratios.iter().copied().fold(0.0, f64::max);
        let met = match self.target {
            Target::Speed(target) => ratio >= target,
            Target::Size(target) => ratio <= target,
            Target::None => true,
        };
        format!(
            "| {} | {} | {} | {ratio:.2} ({low:.2} to {high:.2}) | {target} | {} |",
            self.title,
            amount(heap, self.unit),
            amount(ours, self.unit),
            if met { "yes" } else { "**no**" }
        )
    }
}

fn amount(value: f64, unit: &str) -> String {
    if unit == "bytes" {
        return format!("{:.1} MB", value / 1e6);
    }
    let digits = format!("{value:.0}");
    let grouped: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits are ASCII")).collect();
    format!("{} {unit}", grouped.join(","))
}

/// The table, one line per workload.
pub fn table(method: &str, measured: &[Measured]) -> String {
    let mut text = format!(
        "| what | heap (median) | {method} (median) | ratio to heap (of single turns) | target | met |\n|---|--:|--:|--:|--:|---|\n"
    );
    for line in measured.iter().map(Measured::line) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// Machine, versions, settings and sizes of the run.
pub fn conditions(
    client: &mut Client,
    method: &str,
    scale: &Scale,
    rounds: usize,
    data_bytes: u64,
    limits: (f64, f64),
) -> Result<String> {
    let server: String = client.query_one("SHOW server_version", &[])?.get(0);
    let extension = client.query_opt("SELECT extversion FROM pg_extension WHERE extname = 'kalamdb'", &[])?;
    let extension = extension.map(|row| row.get::<_, String>(0)).unwrap_or_else(|| "not installed".into());
    let commit =
        Command::new("git").args(["describe", "--always", "--dirty"]).output().ok().filter(|output| output.status.success());
    let commit =
        commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string()).unwrap_or_else(|| "unknown".into());
    let settings = client.query(
        "SELECT name, current_setting(name) FROM pg_settings
         WHERE name IN ('shared_buffers', 'kalam.cache_size', 'fsync', 'wal_level', 'wal_compression', 'full_page_writes', 'max_wal_size',
                        'checkpoint_timeout', 'autovacuum', 'jit', 'max_parallel_workers_per_gather', 'shared_preload_libraries')
         ORDER BY name",
        &[],
    )?;
    let settings: Vec<String> =
        settings.iter().map(|row| format!("{} = {}", row.get::<_, String>(0), row.get::<_, String>(1))).collect();
    let cpu = first_value("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    let memory = first_value("/proc/meminfo", "MemTotal").unwrap_or_default();
    let memory: u64 = memory.split(' ').next().unwrap_or("").parse().unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map(|cores| cores.get()).unwrap_or(0);
    Ok(format!(
        "- PostgreSQL {server}; kalamdb {extension} (commit {commit}); access method {method}\n\
         - {cores} cores ({cpu}), {:.0} GB of memory, Linux {}; raw limits: {:.0} flushes of 8 kB per second, {:.0} MB/s written sequentially\n\
         - {} messages, {:.0} MB as COPY text, {} messages per conversation; {} users with rows of their own; seed {}\n\
         - {rounds} rounds, heap and {method} in turns, {} s per timed turn, after a warm-up turn of each; TPC-B at scale {}\n\
         - settings: {}\n",
        memory as f64 / 1e6,
        kernel.trim(),
        limits.0,
        limits.1 / 1e6,
        scale.rows,
        data_bytes as f64 / 1e6,
        crate::data::MESSAGES_PER_CONVERSATION,
        scale.users,
        scale.seed,
        scale.seconds,
        scale.tpcb_scale,
        settings.join(", ")
    ))
}

fn first_value(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Puts `text` between the markers of a markdown file; makes the file when there is none.
pub fn write_section(path: &Path, text: &str) -> Result<()> {
    let document = match fs::read_to_string(path) {
        Ok(document) => document,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            format!("# Benchmarks\n\n`make bench` measures this.\n\n{BEGIN}\n{END}\n")
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    fs::write(path, replace_section(&document, text).with_context(|| path.display().to_string())?)?;
    Ok(())
}

fn replace_section(document: &str, text: &str) -> Result<String> {
    let missing = || format!("the lines {BEGIN} and {END} are missing");
    let (head, rest) = document.split_once(BEGIN).with_context(missing)?;
    let (_, tail) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{head}{BEGIN}\n{text}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(target: Target, heap: &[f64], ours: &[f64]) -> String {
        Measured { title: "t", unit: "tx/s", target, result: Ok([heap.to_vec(), ours.to_vec()]) }.line()
    }

    #[test]
    fn a_missed_target_shows() {
        assert!(measured(Target::Speed(0.9), &[1000.0], &[899.0]).ends_with("| **no** |"));
        assert!(measured(Target::Speed(0.9), &[1000.0], &[900.0]).ends_with("| yes |"));
        assert!(measured(Target::Size(0.6), &[1000.0], &[700.0]).ends_with("| **no** |"));
        assert!(measured(Target::Size(0.6), &[1000.0], &[500.0]).ends_with("| yes |"));
    }

    #[test]
    fn a_line_shows_medians_and_the_spread_of_ratios() {
        let line = measured(Target::Speed(0.5), &[1000.0, 2000.0, 1500.0], &[1000.0, 1000.0, 1234567.0]);
        assert_eq!(line, "| t | 1,500 tx/s | 1,000 tx/s | 0.67 (0.50 to 823.04) | ≥ 0.5 | yes |");
    }

    #[test]
    fn only_the_section_between_the_markers_changes() {
        let document = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        assert_eq!(replace_section(&document, "new\n").unwrap(), format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert!(replace_section("no markers", "new").is_err());
    }
}
