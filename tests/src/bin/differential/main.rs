//! Differential test: the same random statements on heap tables and on tables of the access method, compared statement by statement.

mod generate;
mod interleave;
mod pair;
mod values;

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use kalamdb_tests::args::{Args, exit_code};
use kalamdb_tests::{Cluster, ClusterOptions, Installation, StopMode};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use generate::Generator;
use interleave::Interleaving;
use pair::{Agreed, Pair};

const USAGE: &str = "differential [--seed S] [--runs N] [--steps N] [--sessions 1|2|both] [--strict] [--disturb] [--self-test]
each run has its own seed (S, S+1, ...); --strict: 0A000 from the access method is a failure
--disturb: tables of our side get another physical order, to show with AM=heap that the comparison does not depend on it
environment: AM (kalam_shared), PRELOAD (kalamdb), PG_BIN or PG_CONFIG, KALAM_SERVER_DIR, KALAM_SERVER_USER";

struct Options {
    seed: u64,
    runs: u64,
    steps: usize,
    single: bool,
    double: bool,
    strict: bool,
    disturb: bool,
    self_test: bool,
}

fn main() -> ExitCode {
    let outcome =
        Args::from_env(&["seed", "runs", "steps", "sessions"], &["strict", "disturb", "self-test", "help"]).and_then(|args| {
            if args.flag("help") {
                println!("{USAGE}");
                return Ok(());
            }
            let sessions = args.text("sessions").unwrap_or("both").to_string();
            ensure!(["1", "2", "both"].contains(&sessions.as_str()), "--sessions is 1, 2 or both");
            run(&Options {
                seed: args.get("seed", 1)?,
                runs: args.get("runs", 10)?,
                steps: args.get("steps", 1000)?,
                single: sessions != "2",
                double: sessions != "1",
                strict: args.flag("strict"),
                disturb: args.flag("disturb"),
                self_test: args.flag("self-test"),
            })
        });
    exit_code("differential", outcome)
}

/// What has been done so far.
#[derive(Default)]
struct Totals {
    statements: usize,
    errors: usize,
    steps: usize,
    waits: usize,
    unsupported: BTreeMap<String, usize>,
}

impl Totals {
    /// Counts what the access method refused by the message alone: details name tables.
    fn note_unsupported(&mut self, text: &str) {
        let message = text.split(" | ").next().unwrap_or(text);
        *self.unsupported.entry(message.to_string()).or_default() += 1;
    }
}

fn run(options: &Options) -> Result<()> {
    let installation = Installation::from_env()?;
    let settings = [("fsync", "off"), ("wal_level", "replica"), ("max_replication_slots", "8"), ("autovacuum_naptime", "1s")];
    let settings = settings.map(|(name, value)| (name.to_string(), value.to_string())).to_vec();
    let mut cluster = Cluster::create(&installation, &ClusterOptions { name: "differential", settings })?;
    let mut totals = Totals::default();
    let outcome = cluster.start(Duration::from_secs(60)).and_then(|()| all_runs(&cluster, options, &mut totals));
    if let Err(error) = outcome {
        cluster.keep();
        eprintln!("end of {}:\n{}", cluster.log_path().display(), cluster.log_tail(20));
        return Err(error.context(format!("kept in {}", cluster.directory().display())));
    }
    cluster.stop(StopMode::Fast, Duration::from_secs(60))?;
    for (what, count) in &totals.unsupported {
        println!("not supported ({count} times): {what}");
    }
    println!(
        "differential: {} runs passed: {} statements ({} of them errors on both sides), {} interleaved steps with {} waits",
        options.runs, totals.statements, totals.errors, totals.steps, totals.waits
    );
    Ok(())
}

fn all_runs(cluster: &Cluster, options: &Options, totals: &mut Totals) -> Result<()> {
    drop(cluster.create_database(pair::DATABASE)?);
    for seed in options.seed..options.seed + options.runs {
        if options.single {
            pair::reset_schemas(cluster)?;
            let mut pair = Pair::connect(cluster)?;
            let result = one_session(&mut pair, options, seed, totals);
            report(cluster, seed, &pair.script, result)?;
        }
        if options.double && !options.self_test {
            pair::reset_schemas(cluster)?;
            let mut interleaving = Interleaving::open(cluster)?;
            let result = two_sessions(&mut interleaving, options, seed, totals);
            totals.steps += interleaving.script.len();
            totals.waits += interleaving.waits;
            report(cluster, seed, &interleaving.script, result)?;
        }
        println!("seed {seed}: same; so far {} statements, {} errors, {} waits", totals.statements, totals.errors, totals.waits);
    }
    Ok(())
}

/// Leaves a script of everything executed beside the server's files when a run failed.
fn report(cluster: &Cluster, seed: u64, script: &[String], result: Result<()>) -> Result<()> {
    let Err(error) = result else { return Ok(()) };
    let path = cluster.directory().join(format!("seed-{seed}.sql"));
    fs::write(&path, script.join("\n") + "\n")?;
    Err(error.context(format!("seed {seed}, statement {} of {}", script.len(), path.display())))
}

fn one_session(pair: &mut Pair, options: &Options, seed: u64, totals: &mut Totals) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut generator = Generator::new();
    for step in 0..options.steps {
        let generated = generator.next(&mut rng);
        totals.statements += 1;
        match pair.run(&generated.statement)? {
            Agreed::Unsupported(text) => {
                ensure!(!options.strict, "not supported: {}\n    {text}", generated.statement.script());
                totals.note_unsupported(&text);
                if generator.in_transaction() {
                    pair.run_anyway("ROLLBACK")?;
                    generator.end(false);
                }
                continue;
            }
            Agreed::Failed => {
                totals.errors += 1;
                generator.note(generated, false);
            }
            Agreed::Done => {
                let touched = generated.touches.clone();
                generator.note(generated, true);
                if let (Some(table), false) = (touched, generator.is_aborted()) {
                    pair.compare_table(&table)?;
                }
            }
        }
        if options.disturb && step % 7 == 0 && !generator.in_transaction() {
            disturb(pair, &generator)?;
        }
        if options.self_test && step > 100 && damage(pair, &generator)? {
            return Ok(());
        }
        if step % 50 == 49 && !generator.in_transaction() {
            compare_everything(pair, &generator)?;
        }
    }
    pair.run_anyway("ROLLBACK")?;
    generator.end(false);
    compare_everything(pair, &generator)?;
    pair.check_methods()
}

fn two_sessions(interleaving: &mut Interleaving, options: &Options, seed: u64, totals: &mut Totals) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for _ in 0..options.steps {
        let result = interleaving.step(&mut rng);
        if let (Err(_), Some(text), false) = (&result, interleaving.unsupported.take(), options.strict) {
            // Heap did what ours refused: from here on they differ, so this interleaving ends.
            totals.note_unsupported(&text);
            return Ok(());
        }
        result?;
    }
    interleaving.finish()
}

/// All tables, by sequential scan and with sequential scans discouraged.
fn compare_everything(pair: &mut Pair, generator: &Generator) -> Result<()> {
    for setting in ["SET enable_seqscan = off", "SET enable_seqscan = on; SET enable_indexscan = on; SET enable_bitmapscan = on"]
    {
        pair.run_anyway(setting)?;
        for table in generator.table_names() {
            pair.compare_table(&table)?;
        }
    }
    Ok(())
}

/// Rows of our side alone move: updated in place of themselves, vacuumed, and new ones placed on pages that are left nearly empty.
fn disturb(pair: &mut Pair, generator: &Generator) -> Result<()> {
    for table in generator.table_names() {
        let moves = format!(
            "SET synchronize_seqscans = off; ALTER TABLE {table} SET (fillfactor = 20); UPDATE {table} SET id = id WHERE id % 2 = 0"
        );
        for statement in [moves, format!("VACUUM {table}")] {
            pair.run_on_ours_only(&statement)?;
        }
    }
    Ok(())
}

/// The test of the test: one row is changed on our side only, which the comparison must notice. False when there is no row to change.
fn damage(pair: &mut Pair, generator: &Generator) -> Result<bool> {
    if generator.in_transaction() {
        return Ok(false);
    }
    for table in generator.table_names() {
        let outcome = pair.run_on_ours_only(&format!("DELETE FROM {table} WHERE id = (SELECT max(id) FROM {table})"))?;
        if matches!(&outcome, pair::Outcome::Done { counts, .. } if counts[0] > 0) {
            let Err(error) = pair.compare_table(&table) else { bail!("a row missing on our side was not noticed") };
            println!("self-test: noticed: {error:#}");
            return Ok(true);
        }
    }
    Ok(false)
}
