//! Two sessions per side at READ COMMITTED in one deterministic interleaving: who waits for whom must be the same on both sides, and what
//! comes out when the wait ends.

use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kalamdb_tests::Cluster;
use postgres::Client;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::pair::{self, Outcome, Statement};

const PATIENCE: Duration = Duration::from_secs(60);
const KEYS: i32 = 7;

/// A session that runs its statements in a thread of its own, so that it may wait for a lock.
struct Session {
    pid: i32,
    statements: Sender<Statement>,
    outcomes: Receiver<Result<Outcome>>,
}

impl Session {
    fn open(cluster: &Cluster, side: usize) -> Result<Self> {
        let mut client = pair::connect(cluster, side)?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        let (statements, to_run) = mpsc::channel::<Statement>();
        let (done, outcomes) = mpsc::channel();
        std::thread::spawn(move || {
            for statement in to_run {
                if done.send(pair::execute(&mut client, &statement)).is_err() {
                    break;
                }
            }
        });
        Ok(Session { pid, statements, outcomes })
    }
}

/// What a step of a session led to.
#[derive(Debug)]
enum Progress {
    Finished(Outcome),
    Waits,
}

/// One logical session: the same statements on both sides.
struct Twin {
    sides: [Session; 2],
    waiting: Option<Statement>,
    in_transaction: bool,
}

pub struct Interleaving {
    twins: [Twin; 2],
    observer: Client,
    pub script: Vec<String>,
    pub waits: usize,
    /// What ours said when it refused something that heap did.
    pub unsupported: Option<String>,
}

impl Interleaving {
    pub fn open(cluster: &Cluster) -> Result<Self> {
        for side in [0, 1] {
            let mut client = pair::connect(cluster, side)?;
            client.batch_execute(
                "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL, tag text UNIQUE, body text);
                 CREATE INDEX ON t (n);
                 INSERT INTO t SELECT i, i % 4, 'tag ' || i, 'x' FROM generate_series(1, 5) i",
            )?;
        }
        let twin = || -> Result<Twin> {
            Ok(Twin { sides: [Session::open(cluster, 0)?, Session::open(cluster, 1)?], waiting: None, in_transaction: false })
        };
        Ok(Interleaving {
            twins: [twin()?, twin()?],
            observer: cluster.connect(pair::DATABASE)?,
            script: Vec::new(),
            waits: 0,
            unsupported: None,
        })
    }

    /// One step of one of the sessions that do not wait.
    pub fn step(&mut self, rng: &mut ChaCha8Rng) -> Result<()> {
        let free: Vec<usize> = (0..2).filter(|session| self.twins[*session].waiting.is_none()).collect();
        let Some(&session) = free.choose(rng) else { return self.break_deadlock() };
        let statement = self.draw(rng, session);
        self.send(session, statement)?;
        let other = 1 - session;
        if self.twins[other].waiting.is_some() && self.twins[session].waiting.is_none() {
            self.look_again(other)?;
        }
        Ok(())
    }

    /// Ends all transactions and compares the tables.
    pub fn finish(&mut self) -> Result<()> {
        for _ in 0..4 {
            for session in [0, 1] {
                if self.twins[session].waiting.is_some() {
                    continue;
                }
                self.send(session, Statement::sql("ROLLBACK"))?;
                if self.twins[1 - session].waiting.is_some() {
                    self.look_again(1 - session)?;
                }
            }
            if (0..2).all(|session| self.twins[session].waiting.is_some()) {
                self.break_deadlock()?;
            }
        }
        ensure!(self.twins.iter().all(|twin| twin.waiting.is_none()), "a session waits although no transaction is open");
        for scan in ["SET enable_seqscan = on", "SET enable_seqscan = off"] {
            self.send(0, Statement::sql(scan))?;
            self.send(0, Statement::ordered("SELECT id, n, tag, md5(body) FROM t ORDER BY id"))?;
            self.send(0, Statement::sql("SELECT n, count(*) FROM t WHERE n >= 0 GROUP BY n"))?;
        }
        Ok(())
    }

    fn draw(&mut self, rng: &mut ChaCha8Rng, session: usize) -> Statement {
        let twin = &mut self.twins[session];
        if !twin.in_transaction && rng.random_ratio(2, 3) {
            twin.in_transaction = true;
            return Statement::sql("BEGIN");
        }
        let (key, other, n) = (rng.random_range(1..=KEYS), rng.random_range(1..=KEYS), rng.random_range(0..6));
        // Each changing statement touches one row found by its key: the order in which several rows are met is no part of the contract.
        let text = match rng.random_range(0..30) {
            0..4 if twin.in_transaction => {
                twin.in_transaction = false;
                if rng.random_ratio(2, 3) { "COMMIT".into() } else { "ROLLBACK".into() }
            }
            4 if twin.in_transaction => "SAVEPOINT s".into(),
            5 if twin.in_transaction => "ROLLBACK TO SAVEPOINT s".into(),
            6..10 => format!("INSERT INTO t VALUES ({key}, {n}, 'tag {other}', 'inserted') RETURNING id"),
            10 => format!(
                "INSERT INTO t VALUES ({key}, {n}, 'tag {key}', 'new') ON CONFLICT (id) DO UPDATE SET n = t.n + 1 RETURNING *"
            ),
            11 => format!("INSERT INTO t VALUES ({key}, {n}, 'tag {other}', 'new') ON CONFLICT DO NOTHING"),
            12..16 => format!("UPDATE t SET n = n + 1 WHERE id = {key} RETURNING n"),
            16..18 => format!("UPDATE t SET body = repeat('{n}', {}) WHERE id = {key} AND n < {n}", rng.random_range(1..50_000)),
            18 => format!("UPDATE t SET tag = 'tag {other}' WHERE id = {key}"),
            19 => format!("UPDATE t SET id = {other} WHERE id = {key}"),
            20..23 => format!("DELETE FROM t WHERE id = {key} AND n <> {n} RETURNING n, tag"),
            23 => format!("SELECT id, n FROM t WHERE id = {key} FOR UPDATE"),
            24 => format!("SELECT id, n FROM t WHERE id = {key} FOR SHARE"),
            25 => format!("SELECT id, n FROM t WHERE id = {key} FOR NO KEY UPDATE NOWAIT"),
            26 => format!("SELECT id FROM t WHERE id = {key} AND n >= {n} FOR KEY SHARE SKIP LOCKED"),
            27 => return Statement::ordered("SELECT id, n, tag, md5(body) FROM t ORDER BY id"),
            _ => format!("SELECT id, tag FROM t WHERE n = {n}"),
        };
        Statement::sql(text)
    }

    fn send(&mut self, session: usize, statement: Statement) -> Result<()> {
        self.script.push(format!("/* session {} */ {}", session + 1, statement.script()));
        for side in &self.twins[session].sides {
            side.statements.send(statement.clone()).context("the session's thread ended")?;
        }
        self.await_both(session, statement)
    }

    /// After the other session finished something, a waiting one goes on, or waits further on both sides alike.
    fn look_again(&mut self, session: usize) -> Result<()> {
        let statement = self.twins[session].waiting.take().expect("the session waits");
        self.await_both(session, statement)
    }

    fn await_both(&mut self, session: usize, statement: Statement) -> Result<()> {
        let heap = self.progress(session, 0)?;
        let ours = self.progress(session, 1)?;
        match (&heap, &ours) {
            (Progress::Waits, Progress::Waits) => {
                self.waits += 1;
                self.twins[session].waiting = Some(statement);
                Ok(())
            }
            (Progress::Finished(heap), Progress::Finished(ours)) => {
                if ours.is_unsupported() && !heap.is_unsupported() {
                    self.unsupported = Some(ours.text());
                    bail!("not supported in interleavings: {}\n    {}", statement.script(), ours.text());
                }
                pair::compare(&statement, heap, ours)
            }
            _ => bail!("one side waits, the other does not: {}\n    heap: {heap:?}\n    ours: {ours:?}", statement.script()),
        }
    }

    /// Waits until the statement has ended or is seen waiting for a lock.
    fn progress(&mut self, session: usize, side: usize) -> Result<Progress> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let one = &self.twins[session].sides[side];
            if let Ok(outcome) = one.outcomes.recv_timeout(Duration::from_millis(3)) {
                return Ok(Progress::Finished(outcome?));
            }
            let pid = one.pid;
            // Asked through the lock manager, whether somebody of our own sessions holds what is waited for.
            let blockers: Vec<i32> = self.observer.query_one("SELECT pg_blocking_pids($1)", &[&pid])?.get(0);
            let by_other = blockers.contains(&self.twins[1 - session].sides[side].pid);
            if by_other {
                // A wait that ended between the two looks shows itself by its outcome.
                let one = &self.twins[session].sides[side];
                return match one.outcomes.recv_timeout(Duration::from_millis(3)) {
                    Ok(outcome) => Ok(Progress::Finished(outcome?)),
                    Err(_) => Ok(Progress::Waits),
                };
            }
            ensure!(
                Instant::now() < deadline,
                "side {side} of session {} neither ends nor waits for the other (pid {pid}, blockers {blockers:?})",
                session + 1
            );
        }
    }

    /// Both wait for each other. The deadlock check is off, for which of the two it hits depends on time: the first session is cancelled.
    fn break_deadlock(&mut self) -> Result<()> {
        self.script.push("/* both wait: session 1 is cancelled */".into());
        let statement = self.twins[0].waiting.take().expect("both sessions wait");
        for side in [0, 1] {
            let pid = self.twins[0].sides[side].pid;
            self.observer.execute("SELECT pg_cancel_backend($1)", &[&pid])?;
        }
        for side in [0, 1] {
            let outcome =
                self.twins[0].sides[side].outcomes.recv_timeout(PATIENCE).context("a cancelled statement goes on")??;
            let cancelled = matches!(&outcome, Outcome::Error { state, .. } if state == "57014");
            ensure!(cancelled, "a cancelled wait ended otherwise: {}\n    {}", statement.script(), outcome.text());
        }
        // Its transaction has failed and holds its locks until it ends.
        self.twins[0].in_transaction = false;
        self.send(0, Statement::sql("ROLLBACK"))?;
        self.look_again(1)
    }
}
