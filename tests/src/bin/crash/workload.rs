//! The writing clients: random transactions over tables whose right content each client keeps in its ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use kalamdb_tests::failure::Failure;
use kalamdb_tests::ledger::Resolution;
use kalamdb_tests::sql;
use postgres::{Client, GenericClient, NoTls};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::steps::{Step, Steps};
use crate::truth::{self, Changes, Ledger, PreparedTransaction};

/// Parts of the workload that can be left out while an access method does not have them yet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Skips {
    pub upsert: bool,
    pub prepare: bool,
    pub amcheck: bool,
}

/// What client and driver tell each other during a round.
#[derive(Clone)]
pub struct Signals {
    pub stop: Arc<AtomicBool>,
    pub connected: Arc<AtomicUsize>,
    pub commits: Arc<AtomicUsize>,
}

/// How a client's round ended.
#[derive(Debug)]
pub enum Ending {
    /// It was told to stop.
    Stopped,
    /// Its session ended, as it does when the server is struck.
    Disconnected { at: Instant, why: String },
    /// The server did something that no crash excuses.
    Wrong(String),
}

/// One writing client; it lives through all rounds.
pub struct Writer {
    pub number: u32,
    pub ledger: Ledger,
    steps: Steps,
    rng: ChaCha8Rng,
    /// Commits with `synchronous_commit = off`: the last ones may be lost.
    asynchronous: bool,
    skips: Skips,
}

impl Writer {
    pub fn new(number: u32, seed: u64, asynchronous: bool, skips: Skips, has_users: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::from(number) + 1);
        Writer { number, ledger: Ledger::default(), steps: Steps::new(number, skips.upsert, has_users), rng, asynchronous, skips }
    }

    /// Runs transactions until told to stop or until the session ends.
    pub fn run(&mut self, configuration: &postgres::Config, signals: &Signals) -> Ending {
        let mut client = match configuration.connect(NoTls) {
            Ok(client) => client,
            Err(error) => return Ending::Wrong(format!("cannot connect: {}", sql::describe(&error))),
        };
        let setting = if self.asynchronous { "SET synchronous_commit = off" } else { "SET synchronous_commit = on" };
        let prepared = client.batch_execute(setting).map_err(Failure::from);
        signals.connected.fetch_add(1, Ordering::SeqCst);
        let mut outcome = prepared;
        while !signals.stop.load(Ordering::SeqCst) {
            if outcome.is_ok() {
                outcome = self.transaction(&mut client);
            }
            match outcome {
                Ok(()) => _ = signals.commits.fetch_add(1, Ordering::Relaxed),
                Err(Failure::Aborted) => outcome = Ok(()),
                Err(Failure::Disconnected { why, .. }) => return Ending::Disconnected { at: Instant::now(), why },
                Err(Failure::Wrong(text)) => return Ending::Wrong(text),
            }
        }
        Ending::Stopped
    }

    fn transaction(&mut self, client: &mut Client) -> Result<(), Failure> {
        match self.rng.random_range(0..100) {
            0..30 => self.single(client),
            30..34 if !self.asynchronous && !self.skips.prepare => self.two_phase(client),
            _ => self.block(client),
        }
    }

    /// One step without a transaction block: the statement itself is the commit.
    fn single(&mut self, client: &mut Client) -> Result<(), Failure> {
        let step = *[Step::InsertRow, Step::InsertRows, Step::Update, Step::Delete, Step::Copy]
            .choose(&mut self.rng)
            .expect("not empty");
        // The content is drawn before the statement is sent, for the ledger must know it when the answer does not come.
        let planned = self.steps.plan(step, &mut self.rng, self.ledger.current(), &Changes::default());
        let mut changes = Changes::default();
        planned.apply_to(&mut changes);
        self.ledger.attempt(changes);
        let result = planned.execute(client);
        self.conclude(result)
    }

    /// Several steps in a transaction block, some inside savepoints that are rolled back, sometimes all of it rolled back.
    fn block(&mut self, client: &mut Client) -> Result<(), Failure> {
        let mut changes = Changes::default();
        let mut transaction = client.transaction()?;
        for _ in 0..self.rng.random_range(1..=5) {
            self.step_or_savepoint(&mut transaction, &mut changes, 0)?;
        }
        if self.rng.random_ratio(1, 12) {
            transaction.rollback()?;
            return Ok(());
        }
        self.ledger.attempt(changes);
        let committed = transaction.commit();
        self.conclude(committed.map_err(Failure::from))
    }

    fn step_or_savepoint(&mut self, client: &mut impl GenericClient, changes: &mut Changes, depth: u32) -> Result<(), Failure> {
        if depth == 3 || !self.rng.random_ratio(1, 4) {
            let step = self.steps.choose(&mut self.rng, truth::entries(&self.ledger));
            let planned = self.steps.plan(step, &mut self.rng, self.ledger.current(), changes);
            planned.execute(client)?;
            planned.apply_to(changes);
            return Ok(());
        }
        let mut inside = changes.clone();
        let mut savepoint = client.transaction()?;
        for _ in 0..self.rng.random_range(1..=2) {
            self.step_or_savepoint(&mut savepoint, &mut inside, depth + 1)?;
        }
        match self.rng.random_range(0..3) {
            0 => savepoint.rollback()?,
            1 => {
                self.steps.collide(&mut savepoint, &mut self.rng, self.ledger.current(), &inside)?;
                savepoint.rollback()?;
            }
            _ => {
                savepoint.commit()?;
                *changes = inside;
            }
        }
        Ok(())
    }

    /// Leaves a prepared transaction behind, or decides the one from before.
    fn two_phase(&mut self, client: &mut Client) -> Result<(), Failure> {
        if let Some(mut prepared) = self.ledger.prepared.take() {
            let commit = self.rng.random_ratio(2, 3);
            prepared.state = if commit { Resolution::Committing } else { Resolution::RollingBack };
            let verb = if commit { "COMMIT" } else { "ROLLBACK" };
            let result = client.batch_execute(&format!("{verb} PREPARED {}", sql::literal(&prepared.name)));
            match result {
                Ok(()) if commit => self.ledger.adopt(&prepared.changes),
                Ok(()) => {}
                Err(error) => {
                    self.ledger.prepared = Some(prepared);
                    return Err(error.into());
                }
            }
            return Ok(());
        }
        let mut changes = Changes::default();
        client.batch_execute("BEGIN")?;
        for step in [Step::InsertRow, Step::InsertRows] {
            let planned = self.steps.plan(step, &mut self.rng, self.ledger.current(), &changes);
            planned.execute(client)?;
            planned.apply_to(&mut changes);
        }
        let name = format!("client {} transaction {}", self.number, self.steps.next_id());
        let prepare = format!("PREPARE TRANSACTION {}", sql::literal(&name));
        self.ledger.prepared = Some(PreparedTransaction { name, changes, state: Resolution::Preparing });
        client.batch_execute(&prepare)?;
        if let Some(prepared) = &mut self.ledger.prepared {
            prepared.state = Resolution::Prepared;
        }
        Ok(())
    }

    fn conclude(&mut self, result: Result<(), Failure>) -> Result<(), Failure> {
        conclude(&mut self.ledger, result, !self.asynchronous)
    }
}

/// Writes down how an attempted commit ended.
pub fn conclude(ledger: &mut Ledger, result: Result<(), Failure>, durable: bool) -> Result<(), Failure> {
    match &result {
        Ok(()) => ledger.acknowledge(durable),
        Err(Failure::Disconnected { in_doubt: true, .. }) => {}
        Err(_) => ledger.withdraw(),
    }
    result
}
