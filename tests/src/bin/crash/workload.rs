//! The writing clients: random transactions over tables whose right content each client keeps in its ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kalamdb_tests::sql;
use postgres::{Client, GenericClient, NoTls};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ledger::{Changes, Ledger, PreparedTransaction, Resolution, Table};
use crate::steps::{Step, StepError, Steps};

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

/// Why a transaction did not go through.
enum Failure {
    /// The server rolled it back for a reason that a client must expect, such as a deadlock.
    Aborted,
    /// The session's round is over; when the last statement was a commit, `in_doubt` says whether it may have happened.
    Disconnected {
        why: String,
        in_doubt: bool,
    },
    Wrong(String),
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Self {
        let state = sql::sqlstate(&error).unwrap_or("");
        let text = sql::describe(&error);
        match state {
            "40P01" | "40001" => Failure::Aborted,
            // The server goes down, or the engine behind it does: both end the session's round, and the driver knows whether it struck.
            "" => Failure::Disconnected { why: text, in_doubt: true },
            _ if ["57P", "58", "08"].iter().any(|class| state.starts_with(class)) => {
                // An ERROR means rolled back; after FATAL or a broken connection nobody knows.
                Failure::Disconnected { why: text, in_doubt: sql::session_is_over(&error) }
            }
            _ => Failure::Wrong(text),
        }
    }
}

impl From<StepError> for Failure {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Server(error) => error.into(),
            StepError::Wrong(text) => Failure::Wrong(text),
        }
    }
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
    pub fn new(number: u32, seed: u64, asynchronous: bool, skips: Skips) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::from(number) + 1);
        Writer { number, ledger: Ledger::default(), steps: Steps::new(number, skips.upsert), rng, asynchronous, skips }
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
        self.conclude(result.map_err(Failure::from))
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
            let step = self.steps.choose(&mut self.rng, self.ledger.entries());
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
fn conclude(ledger: &mut Ledger, result: Result<(), Failure>, durable: bool) -> Result<(), Failure> {
    match &result {
        Ok(()) => ledger.acknowledge(durable),
        Err(Failure::Disconnected { in_doubt: true, .. }) => {}
        Err(_) => ledger.withdraw(),
    }
    result
}

/// The client that vacuums, checkpoints, and makes and drops whole tables while the others write.
pub struct Maintainer {
    pub ledger: Ledger,
    method: String,
    next_table: i64,
    rng: ChaCha8Rng,
}

impl Maintainer {
    pub fn new(seed: u64, method: &str) -> Self {
        Maintainer { ledger: Ledger::default(), method: method.into(), next_table: 0, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    pub fn run(&mut self, configuration: &postgres::Config, signals: &Signals) -> Ending {
        let mut client = match configuration.connect(NoTls) {
            Ok(client) => client,
            Err(error) => return Ending::Wrong(format!("cannot connect: {}", sql::describe(&error))),
        };
        signals.connected.fetch_add(1, Ordering::SeqCst);
        while !signals.stop.load(Ordering::SeqCst) {
            let result = match self.rng.random_range(0..10) {
                0..3 => self.vacuum(&mut client),
                3..6 => self.cool(&mut client),
                6 => client.batch_execute("CHECKPOINT").map_err(Failure::from),
                _ => self.churn(&mut client),
            };
            match result {
                Ok(()) | Err(Failure::Aborted) => {}
                Err(Failure::Disconnected { why, .. }) => return Ending::Disconnected { at: Instant::now(), why },
                Err(Failure::Wrong(text)) => return Ending::Wrong(text),
            }
            std::thread::sleep(Duration::from_millis(self.rng.random_range(5..120)));
        }
        Ending::Stopped
    }

    fn vacuum(&mut self, client: &mut Client) -> Result<(), Failure> {
        let verb = *["VACUUM", "VACUUM (FREEZE)", "VACUUM (ANALYZE)", "ANALYZE"].choose(&mut self.rng).expect("not empty");
        let table = *crate::schema::TABLES.choose(&mut self.rng).expect("not empty");
        Ok(client.batch_execute(&format!("{verb} {table}"))?)
    }

    /// Moves rows into segments, or writes segments anew. Whoever locks the table for long is waited for another time.
    fn cool(&mut self, client: &mut Client) -> Result<(), Failure> {
        if self.method == "heap" {
            return self.vacuum(client);
        }
        let what = *["flush_now", "flush_now", "compact_now"].choose(&mut self.rng).expect("not empty");
        let table = *crate::schema::TABLES.choose(&mut self.rng).expect("not empty");
        match client.batch_execute(&format!("SELECT {what}('{table}')")) {
            Err(error) if sql::sqlstate(&error) == Some("55P03") => Ok(()),
            result => Ok(result?),
        }
    }

    /// Makes a table with rows, or empties and refills or drops an old one, in one transaction that is committed or rolled back.
    fn churn(&mut self, client: &mut Client) -> Result<(), Failure> {
        let tables: Vec<i64> = self.ledger.current().keys().filter(|key| key.0 == Table::Churn).map(|key| key.1).collect();
        let mut changes = Changes::default();
        let rows = self.rng.random_range(0..400);
        let table = match tables.choose(&mut self.rng) {
            Some(table) if tables.len() > 6 || self.rng.random_ratio(1, 3) => *table,
            _ => {
                self.next_table += 1;
                self.next_table
            }
        };
        let name = format!("churn_{table}");
        let fill = format!("SELECT id, repeat('x', (id * 37 % 3000)::int) AS filler FROM generate_series(1::bigint, {rows}) id");
        let row = crate::verify::churn_row(rows);
        let mut transaction = client.transaction()?;
        if !tables.contains(&table) {
            transaction.batch_execute(&format!(
                "CREATE TABLE {name} USING {} AS {fill}; ALTER TABLE {name} ADD PRIMARY KEY (id)",
                self.method
            ))?;
            changes.put((Table::Churn, table), row);
        } else if tables.len() <= 6 && self.rng.random() {
            transaction.batch_execute(&format!("TRUNCATE {name}; INSERT INTO {name} {fill}"))?;
            changes.put((Table::Churn, table), row);
        } else {
            transaction.batch_execute(&format!("DROP TABLE {name}"))?;
            changes.remove((Table::Churn, table));
        }
        if self.rng.random_ratio(1, 4) {
            transaction.rollback()?;
            return Ok(());
        }
        self.ledger.attempt(changes);
        let committed = transaction.commit();
        conclude(&mut self.ledger, committed.map_err(Failure::from), true)
    }
}
