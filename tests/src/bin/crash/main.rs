//! Server crash test: eight writing clients, a blow at a random moment, and a verification of everything that was acknowledged.

mod maintenance;
mod sabotage;
mod schema;
mod steps;
mod truth;
mod verify;
mod workload;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use kalamdb_tests::args::{Args, exit_code};
use kalamdb_tests::faults::{self, Blow, Fault};
use kalamdb_tests::{Cluster, ClusterOptions, Installation, StopMode};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use maintenance::Maintainer;
use truth::{Ledger, Table};
use workload::{Ending, Signals, Skips, Writer};

/// How long the clients may take to notice that they are to stop, and the server to come back.
const PATIENCE: Duration = Duration::from_secs(120);
const FOLD_EVERY: u64 = 8;

const USAGE: &str = "crash [--rounds N] [--seed S] [--seconds-per-round T] [--clients N] [--faults backend,worker,auxiliary,postmaster,all,immediate,fast]
      [--skip upsert,prepare,amcheck] [--no-preload] [--keep] [--self-test [--damage KIND]] [--self-test-lose-row]
environment: AM (kalam_shared), PRELOAD (kalamdb), PG_BIN or PG_CONFIG, KALAM_SERVER_DIR, KALAM_SERVER_USER";

struct Options {
    rounds: u64,
    seed: u64,
    seconds: f64,
    clients: u32,
    faults: Vec<Fault>,
    skips: Skips,
    keep: bool,
    self_test: bool,
    damage: Option<String>,
}

fn main() -> ExitCode {
    let values = ["rounds", "seed", "seconds-per-round", "clients", "faults", "skip", "damage"];
    let flags = ["no-preload", "keep", "self-test", "self-test-lose-row", "help"];
    let outcome = Args::from_env(&values, &flags).and_then(|args| {
        if args.flag("help") {
            println!("{USAGE}");
            return Ok(());
        }
        let installation = Installation::for_program(&args)?;
        run(&installation, &read_options(&args, &installation)?)
    });
    exit_code("crash", outcome)
}

fn read_options(args: &Args, installation: &Installation) -> Result<Options> {
    let mut skips = Skips::default();
    for name in args.list("skip") {
        match name.as_str() {
            "upsert" => skips.upsert = true,
            "prepare" => skips.prepare = true,
            "amcheck" => skips.amcheck = true,
            _ => bail!("--skip {name}: unknown"),
        }
    }
    let lose_row = args.flag("self-test-lose-row");
    Ok(Options {
        rounds: args.get("rounds", 50)?,
        seed: args.get("seed", 1)?,
        seconds: args.get("seconds-per-round", 3.0)?,
        clients: args.get("clients", 8)?,
        faults: Fault::selection(&args.list("faults"), installation.is_extension())?,
        skips,
        keep: args.flag("keep"),
        self_test: lose_row || args.flag("self-test"),
        damage: if lose_row { Some("lose-row".into()) } else { args.text("damage").map(str::to_string) },
    })
}

fn run(installation: &Installation, options: &Options) -> Result<()> {
    println!(
        "crash: {} rounds, seed {}, access method {}, preload {:?}, binaries {}",
        options.rounds,
        options.seed,
        installation.method,
        installation.preload,
        installation.bin.display()
    );
    let mut cluster = Cluster::create(installation, &ClusterOptions { name: "crash", settings: settings() })?;
    let outcome = Test::start(&mut cluster, options).and_then(|mut test| test.rounds(&mut cluster));
    if options.keep {
        cluster.keep();
    }
    if let Err(error) = outcome {
        cluster.keep();
        eprintln!("processes at the failure:\n{}", cluster.describe_processes());
        eprintln!("end of {}:\n{}", cluster.log_path().display(), cluster.log_tail(60));
        return Err(error.context(format!("seed {}, kept in {}", options.seed, cluster.directory().display())));
    }
    cluster.stop(StopMode::Fast, PATIENCE)?;
    ensure!(
        kalamdb_tests::process::wait_all_gone(cluster.data(), Duration::from_secs(10)),
        "processes outlive a fast stop:\n{}",
        cluster.describe_hang()
    );
    println!("crash: {} rounds passed", options.rounds);
    Ok(())
}

/// Killed processes do not lose what the kernel has, so nothing needs to reach the disk; frequent checkpoints and vacuums come into the way.
fn settings() -> Vec<(String, String)> {
    [
        ("fsync", "off"),
        ("wal_level", "replica"),
        ("max_replication_slots", "8"),
        ("max_prepared_transactions", "20"),
        ("max_connections", "40"),
        ("shared_buffers", "64MB"),
        ("max_wal_size", "128MB"),
        ("checkpoint_timeout", "30s"),
        ("autovacuum_naptime", "2s"),
        ("deadlock_timeout", "30ms"),
        ("log_checkpoints", "on"),
    ]
    .into_iter()
    .map(|(name, value)| (name.into(), value.into()))
    .collect()
}

struct Test<'a> {
    options: &'a Options,
    rng: ChaCha8Rng,
    writers: Vec<Writer>,
    maintainer: Option<Maintainer>,
    log_mark: u64,
}

/// A client's thread hands its state back with how its round ended.
enum Returned {
    Writer(Writer, Ending),
    Maintainer(Maintainer, Ending),
}

impl<'a> Test<'a> {
    fn start(cluster: &mut Cluster, options: &'a Options) -> Result<Self> {
        cluster.start(PATIENCE)?;
        schema::create(cluster)?;
        let has_users = cluster.installation().is_extension();
        let asynchronous = |number: u32| options.clients > 1 && number == options.clients - 1;
        Ok(Test {
            options,
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            writers: (0..options.clients)
                .map(|n| Writer::new(n, options.seed, asynchronous(n), options.skips, has_users))
                .collect(),
            maintainer: Some(Maintainer::new(options.seed, &cluster.installation().method)),
            log_mark: 0,
        })
    }

    fn rounds(&mut self, cluster: &mut Cluster) -> Result<()> {
        let options = self.options;
        for round in 1..=options.rounds {
            self.round(cluster, round).map_err(|error| error.context(format!("round {round}")))?;
            if options.self_test {
                let mut client = cluster.connect(schema::DATABASE)?;
                sabotage::run(&mut client, &self.ledgers(), options.damage.as_deref(), !options.skips.amcheck)?;
            }
        }
        Ok(())
    }

    fn round(&mut self, cluster: &mut Cluster, round: u64) -> Result<()> {
        let (blows, orderly, commits) = self.run_clients_and_strike(cluster)?;
        let back = Instant::now();
        cluster.start(PATIENCE)?;
        let back = back.elapsed();

        let verification = Instant::now();
        let mut client = cluster.connect(schema::DATABASE)?;
        let mut rng = self.rng.clone();
        let prepared = verify::resolve_prepared(&mut client, &mut self.ledgers(), &mut rng)?;
        self.rng = rng;
        let amcheck = !self.options.skips.amcheck;
        let verified = verify::check(&mut client, &mut self.ledgers(), orderly, amcheck)?;
        if cluster.installation().is_extension() {
            verify::check_storages(&mut client)?;
            verify::check_values(&mut client)?;
        }
        self.log_mark = cluster.require_sound_log(self.log_mark, &["cannot reindex invalid index"])?;
        let settled = verified.settled;
        println!(
            "round {round}: {}; {commits} commits, in doubt: {} kept, {} absent; {} asynchronous lost, {prepared} prepared; \
             back in {back:.1?}; {} rows, {} index scans verified in {:.1?}",
            blows.join(", then "),
            settled.in_doubt_kept,
            settled.in_doubt_lost,
            settled.asynchronous_lost,
            verified.rows,
            verified.index_scans,
            verification.elapsed()
        );
        if round.is_multiple_of(FOLD_EVERY) {
            schema::fold(&mut client)?;
            for ledger in self.ledgers() {
                ledger.forget(|key| matches!(key.0, Table::Transfer | Table::Hit));
            }
        }
        Ok(())
    }

    /// The clients' ledgers in the order of their numbers; the maintenance client's comes last.
    fn ledgers(&mut self) -> Vec<&mut Ledger> {
        let maintainer = self.maintainer.as_mut().map(|maintainer| &mut maintainer.ledger);
        self.writers.iter_mut().map(|writer| &mut writer.ledger).chain(maintainer).collect()
    }

    /// One load with its blows; returns their descriptions, whether the end was orderly, and the number of commits.
    fn run_clients_and_strike(&mut self, cluster: &mut Cluster) -> Result<(Vec<String>, bool, usize)> {
        let signals = Signals {
            stop: Arc::new(AtomicBool::new(false)),
            connected: Arc::new(AtomicUsize::new(0)),
            commits: Arc::new(AtomicUsize::new(0)),
        };
        let returned = self.launch_clients(cluster, &signals);
        let clients = self.options.clients as usize + 1;
        let deadline = Instant::now() + PATIENCE;
        while signals.connected.load(Ordering::SeqCst) < clients && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_secs_f64(self.rng.random_range(0.02..=1.0) * self.options.seconds));

        let struck_at = Instant::now();
        let fault = *self.options.faults.choose(&mut self.rng).expect("there is at least one fault");
        let first = faults::strike(cluster, fault, &mut self.rng);
        // Clients go on for a moment: sessions that the blow did not end must still be right.
        std::thread::sleep(Duration::from_millis(self.rng.random_range(0..60)));
        signals.stop.store(true, Ordering::SeqCst);
        let mut rng = self.rng.clone();
        let blows = first.and_then(|first| Self::strike_again(cluster, first, fault, &mut rng));
        self.rng = rng;
        let ended = self.collect_clients(cluster, &returned, struck_at);
        let (descriptions, orderly) = blows?;
        ended?;
        Ok((descriptions, orderly, signals.commits.load(Ordering::Relaxed)))
    }

    fn strike_again(cluster: &mut Cluster, first: Blow, fault: Fault, rng: &mut ChaCha8Rng) -> Result<(Vec<String>, bool)> {
        let mut descriptions = vec![first.description.clone()];
        let mut more = fault != Fault::FastStop && rng.random_ratio(2, 5);
        if !more {
            faults::wait_noticed(cluster, &first)?;
        }
        let mut latest = first;
        while more {
            latest = faults::strike_during_recovery(cluster, &latest, rng)?;
            descriptions.push(latest.description.clone());
            more = descriptions.len() < 3 && rng.random_ratio(1, 3);
        }
        Ok((descriptions, latest.orderly))
    }

    fn launch_clients(&mut self, cluster: &Cluster, signals: &Signals) -> Receiver<Returned> {
        let (sender, receiver) = mpsc::channel();
        let configuration = cluster.configuration(schema::DATABASE);
        for mut writer in self.writers.drain(..) {
            let (sender, signals, configuration) = (sender.clone(), signals.clone(), configuration.clone());
            std::thread::spawn(move || {
                let ending = writer.run(&configuration, &signals);
                // The receiver is only gone when the whole test already failed.
                sender.send(Returned::Writer(writer, ending)).ok();
            });
        }
        if let Some(mut maintainer) = self.maintainer.take() {
            let signals = signals.clone();
            std::thread::spawn(move || {
                let ending = maintainer.run(&configuration, &signals);
                // As above.
                sender.send(Returned::Maintainer(maintainer, ending)).ok();
            });
        }
        receiver
    }

    /// Waits for all clients; one that hangs, or that lost its session before the blow, is a failure.
    fn collect_clients(&mut self, cluster: &Cluster, returned: &Receiver<Returned>, struck_at: Instant) -> Result<()> {
        let mut wrong = Vec::new();
        for _ in 0..=self.options.clients {
            let Ok(client) = returned.recv_timeout(PATIENCE) else {
                bail!("clients hang {PATIENCE:?} after the blow:\n{}", cluster.describe_hang());
            };
            let (name, ending) = match client {
                Returned::Writer(writer, ending) => {
                    let name = format!("client {}", writer.number);
                    self.writers.push(writer);
                    (name, ending)
                }
                Returned::Maintainer(maintainer, ending) => {
                    self.maintainer = Some(maintainer);
                    ("maintenance client".to_string(), ending)
                }
            };
            match ending {
                Ending::Stopped => {}
                Ending::Disconnected { at, .. } if at >= struck_at => {}
                Ending::Disconnected { why, .. } => wrong.push(format!("{name} lost its session before the blow: {why}")),
                Ending::Wrong(what) => wrong.push(format!("{name}: {what}")),
            }
        }
        self.writers.sort_by_key(|writer| writer.number);
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}
