//! Faults of the server's surroundings: full disks, damaged and missing files, buckets that fail, wrong settings. Each has a small cluster of its own.
//!
//! What is proven for each: the statement that meets the fault ends with the right SQLSTATE, a detail and a hint, the server stays up, and
//! when the fault is mended everything that was acknowledged is there.

mod bed;
mod bucket;
mod configuration;
mod disk;
mod jobs;
mod link;
mod segments;
mod store;
mod streams;
mod waits;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kalamdb_tests::Installation;
use kalamdb_tests::args::{Args, exit_code};

const USAGE: &str = "faults [--only NAME,...] [--at-once N] [--keep]
environment: PG_BIN or PG_CONFIG, KALAM_SERVER_DIR, KALAM_SERVER_USER";

/// How a server may take to start, to stop, or to notice that a fault is gone.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How a fault's test ended, if not in an error.
pub enum Outcome {
    /// With a few words on what happened.
    Passed(String),
    /// It cannot be made here, and why.
    Skipped(String),
}

type Fault = fn(&Installation) -> Result<Outcome>;

/// The longest first.
const FAULTS: [(&str, Fault); 27] = [
    ("store_full", disk::store_full),
    ("disk_full", disk::disk_full),
    ("bucket_unreachable", bucket::unreachable),
    ("bucket_objects_damaged", bucket::damaged),
    ("bucket_round_trip", bucket::round_trip),
    ("manifest_lost", segments::manifest_lost),
    ("uncommitted_files", segments::uncommitted_files),
    ("eviction_stopped", streams::eviction_stopped),
    ("streams_locked", streams::streams_locked),
    ("user_files_missing", segments::user_files_missing),
    ("unnamed_values", segments::unnamed_values),
    ("missing_rights", store::missing_rights),
    ("two_servers", store::two_servers),
    ("job_killed", jobs::job_killed),
    ("owner_code_goes_on", jobs::owner_code_goes_on),
    ("job_server_stopped", jobs::job_server_stopped),
    ("job_database_dropped", jobs::job_database_dropped),
    ("template_copy", configuration::template_copy),
    ("database_moved", configuration::database_moved),
    ("client_lost", waits::client_lost),
    ("new_users_wait", waits::new_users_wait),
    ("all_slots_in_use", configuration::all_slots_in_use),
    ("missing_store", store::missing),
    ("corrupt_page", store::corrupt_page),
    ("wal_level_minimal", configuration::wal_level_minimal),
    ("unknown_options", configuration::unknown_options),
    ("no_replication_slots", configuration::no_replication_slots),
];

fn main() -> ExitCode {
    let outcome = Args::from_env(&["only", "at-once"], &["keep", "help"]).and_then(|args| {
        if args.flag("help") {
            println!("{USAGE}");
            return Ok(());
        }
        run(&Installation::from_env()?, &args)
    });
    exit_code("faults", outcome)
}

fn run(installation: &Installation, args: &Args) -> Result<()> {
    ensure!(installation.is_extension(), "these are faults of the extension's store; AM={} has none", installation.method);
    let only = args.list("only");
    for name in &only {
        FAULTS.iter().find(|(known, _)| known == name).with_context(|| format!("no fault is called {name:?}"))?;
    }
    bed::KEEP.store(args.flag("keep"), Ordering::Relaxed);
    // Before there is a second thread.
    disk::enter_mount_namespace();
    let chosen: Vec<_> = FAULTS.iter().filter(|(name, _)| only.is_empty() || only.iter().any(|wanted| wanted == name)).collect();
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    // The faults mostly wait. A server ends with the thread that started it, so a thread stays with its fault to the end.
    std::thread::scope(|scope| {
        for _ in 0..args.get("at-once", 3)? {
            scope.spawn(|| {
                while let Some((name, fault)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    let outcome = fault(installation);
                    tally.lock().expect("no thread panics with it").add(name, outcome, begun.elapsed());
                }
            });
        }
        anyhow::Ok(())
    })?;
    let Tally { passed, skipped, failed } = tally.into_inner().expect("no thread panicked");
    if !failed.is_empty() {
        bail!("{}", failed.join(", "));
    }
    let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
    println!("faults: {passed} passed{skipped}");
    Ok(())
}

#[derive(Default)]
struct Tally {
    passed: usize,
    skipped: usize,
    failed: Vec<&'static str>,
}

impl Tally {
    fn add(&mut self, name: &'static str, outcome: Result<Outcome>, time: Duration) {
        let line = match outcome {
            Ok(Outcome::Passed(words)) => {
                self.passed += 1;
                format!("passed: {words}")
            }
            Ok(Outcome::Skipped(why)) => {
                self.skipped += 1;
                format!("SKIPPED: {why}")
            }
            Err(error) => {
                self.failed.push(name);
                format!("FAILED: {error:#}")
            }
        };
        println!("{name}: {line} ({time:.1?})");
    }
}
