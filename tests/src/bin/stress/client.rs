//! One client: transactions of its own at every isolation level, changes of what all share, and looks at snapshots.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use kalamdb_tests::failure::Failure;
use kalamdb_tests::sql;
use postgres::{Client, IsolationLevel, NoTls, Transaction};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::board::Board;
use crate::look;
use crate::own::{Own, compare, first_id};
use crate::schema::{ACCOUNTS, Changes, Ledger, PAIRS, Row, Table, item_columns, item_of};
use crate::verify;

/// How long a server that was struck may take to accept sessions.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// One client; it lives through all sessions.
pub struct StressClient {
    pub number: u32,
    pub ledger: Ledger,
    last_id: i64,
    rng: ChaCha8Rng,
}

/// Runs `work` in sessions, one after the other as blows end them, until the board says stop.
pub fn in_sessions(
    configuration: &postgres::Config,
    board: &Board,
    mut begin: impl FnMut(&mut Client) -> Result<()>,
    mut work: impl FnMut(&mut Client) -> Result<(), Failure>,
) -> Result<()> {
    while !board.stops() {
        let is_struck = board.watch();
        let Some(mut client) = connect(configuration, board)? else { return Ok(()) };
        if let Err(error) = begin(&mut client) {
            // Struck again already: what is left of the old session is looked at by the next.
            if is_struck() && client.is_closed() {
                continue;
            }
            return Err(error);
        }
        while !board.stops() {
            match work(&mut client) {
                Ok(()) => board.count(&board.done),
                Err(Failure::Aborted) => board.count(&board.aborted),
                Err(Failure::Disconnected { .. }) if is_struck() => break,
                Err(Failure::Disconnected { why, .. }) => bail!("lost its session although nobody struck: {why}"),
                Err(Failure::Wrong(what)) => bail!(what),
            }
        }
    }
    Ok(())
}

fn connect(configuration: &postgres::Config, board: &Board) -> Result<Option<Client>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match configuration.connect(NoTls) {
            Ok(client) => return Ok(Some(client)),
            Err(_) if board.stops() => return Ok(None),
            Err(error) => {
                ensure!(Instant::now() < deadline, "no session within {PATIENCE:?}: {}", sql::describe(&error));
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

impl StressClient {
    pub fn new(number: u32, seed: u64) -> StressClient {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::from(number) + 1);
        let mut ledger = Ledger::default();
        let mut changes = Changes::default();
        changes.put((Table::Progress, 0), Row::default());
        ledger.adopt(&changes);
        StressClient { number, ledger, last_id: first_id(number), rng }
    }

    pub fn run(&mut self, configuration: &postgres::Config, board: &Board) -> Result<()> {
        let number = self.number;
        // What the last session left open is settled before the next goes on.
        let this = std::cell::RefCell::new(self);
        in_sessions(
            configuration,
            board,
            |client| verify::settle(client, &mut this.borrow_mut().ledger, number),
            |client| this.borrow_mut().transaction(client, board),
        )
    }

    fn isolation(&mut self) -> IsolationLevel {
        *[IsolationLevel::ReadCommitted, IsolationLevel::RepeatableRead, IsolationLevel::Serializable]
            .choose(&mut self.rng)
            .expect("not empty")
    }

    fn transaction(&mut self, client: &mut Client, board: &Board) -> Result<(), Failure> {
        match self.rng.random_range(0..100) {
            0..40 => self.change_own(client, board),
            40..58 => self.transfer(client, board),
            58..70 => self.serve(client, board),
            70..76 => self.look_at_once(client, board),
            _ => self.look(client, board),
        }
    }

    /// Several steps with the client's own items, some inside savepoints, with a cursor open meanwhile, and a line in the log.
    fn change_own(&mut self, client: &mut Client, board: &Board) -> Result<(), Failure> {
        let isolation = self.isolation();
        let with_cursor = self.rng.random_ratio(1, 5);
        let seq = self.ledger.current()[&(Table::Progress, 0)].version + 1;
        let mut own = Own {
            client: self.number,
            rng: &mut self.rng,
            last_id: &mut self.last_id,
            seq,
            current: self.ledger.current(),
            changes: Changes::default(),
        };
        let mut tx = client.build_transaction().isolation_level(isolation).start()?;
        let mut expected = None;
        let mut found = Vec::new();
        if with_cursor {
            let statement = "DECLARE mine CURSOR FOR SELECT {} FROM item WHERE owner = {}";
            let statement = statement.replacen("{}", &item_columns(), 1).replacen("{}", &own.client.to_string(), 1);
            tx.batch_execute(&statement)?;
            expected = Some(own.items());
        }
        if seq == 1 {
            own.load(&mut tx)?;
        }
        for _ in 0..own.rng.random_range(1..6) {
            if own.rng.random_ratio(1, 4) {
                in_savepoint(&mut tx, &mut own)?;
            } else {
                own.step(&mut tx)?;
            }
            if expected.is_some() {
                let rows = tx.query(&format!("FETCH {} FROM mine", own.rng.random_range(1..60)), &[])?;
                found.extend(rows.iter().map(item_of));
                board.linger(own.rng);
            }
        }
        if let Some(expected) = expected {
            found.extend(tx.query("FETCH ALL FROM mine", &[])?.iter().map(item_of));
            compare("own items by a cursor", &found, &expected)?;
        }
        if own.rng.random_ratio(1, 10) {
            return Ok(tx.rollback()?);
        }
        let number = own.client as i32;
        tx.execute("UPDATE progress SET seq = seq + 1 WHERE client = $1 AND seq + 1 = $2", &[&number, &seq])?;
        let note = "a line of the log that is as long as a short message ".repeat(own.rng.random_range(1..8));
        tx.execute("INSERT INTO log (client, seq, note) VALUES ($1, $2, $3)", &[&number, &seq, &note])?;
        let mut changes = own.changes;
        changes.put((Table::Progress, 0), Row { version: seq, ..Row::default() });
        self.ledger.attempt(changes);
        board.attempt(self.number, seq);
        match tx.commit().map_err(Failure::from) {
            Ok(()) => {
                self.ledger.acknowledge(true);
                board.acknowledge(self.number, seq);
                Ok(())
            }
            Err(failure) => {
                if !matches!(failure, Failure::Disconnected { in_doubt: true, .. }) {
                    self.ledger.withdraw();
                }
                Err(failure)
            }
        }
    }

    /// One of the numbers from 1 to `count`, mostly from a window that all clients move on together.
    fn pick_shared(&mut self, board: &Board, count: i32) -> i32 {
        if self.rng.random_ratio(1, 10) {
            return self.rng.random_range(1..=count);
        }
        let commits: i64 = board.acknowledged().iter().sum();
        let begin = (commits / 10 % i64::from(count)) as i32;
        (begin + self.rng.random_range(0..20)) % count + 1
    }

    /// Moves money between accounts of which every client may change any.
    fn transfer(&mut self, client: &mut Client, board: &Board) -> Result<(), Failure> {
        let isolation = self.isolation();
        let source = self.pick_shared(board, ACCOUNTS);
        let target = (source + self.rng.random_range(1..30) - 1) % ACCOUNTS + 1;
        let amount = self.rng.random_range(1..50i64);
        let mut tx = client.build_transaction().isolation_level(isolation).start()?;
        if self.rng.random_ratio(1, 4) {
            let strength = *["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"].choose(&mut self.rng).expect("not empty");
            let statement = format!("SELECT id FROM account WHERE id IN ($1, $2) ORDER BY id FOR {strength}");
            tx.execute(&statement, &[&source, &target])?;
        }
        let mut changed = 0;
        for (account, change) in [(source, -amount), (target, amount)] {
            changed += match self.rng.random_range(0..6) {
                0 => replace_account(&mut tx, account, change)?,
                1 => {
                    let note = "n".repeat(self.rng.random_range(100..2_000));
                    let statement = "UPDATE account SET balance = balance + $2, note = $3 WHERE id = $1";
                    tx.execute(statement, &[&account, &change, &note])?
                }
                _ => tx.execute("UPDATE account SET balance = balance + $2 WHERE id = $1", &[&account, &change])?,
            };
        }
        // An account that somebody else replaced meanwhile is not found at READ COMMITTED.
        if changed < 2 || self.rng.random_ratio(1, 12) {
            return Ok(tx.rollback()?);
        }
        Ok(tx.commit()?)
    }

    /// Takes from one side of a pair what both have together: right only if serializable transactions are.
    fn serve(&mut self, client: &mut Client, board: &Board) -> Result<(), Failure> {
        let pair = self.pick_shared(board, PAIRS);
        let side = self.rng.random_range(0..2i32);
        let mut tx = client.build_transaction().isolation_level(IsolationLevel::Serializable).start()?;
        let total: i64 = tx.query_one("SELECT sum(amount) FROM duty WHERE pair = $1", &[&pair])?.get(0);
        let change = if total > 0 { -total as i32 } else { self.rng.random_range(1..5) };
        let count = tx.execute("UPDATE duty SET amount = amount + $3 WHERE pair = $1 AND side = $2", &[&pair, &side, &change])?;
        if count != 1 {
            return Err(Failure::Wrong(format!("side {side} of pair {pair}: {count} rows changed instead of 1")));
        }
        Ok(tx.commit()?)
    }

    /// Single statements, each with a snapshot of its own.
    fn look_at_once(&mut self, client: &mut Client, board: &Board) -> Result<(), Failure> {
        board.count(&board.looks);
        let acknowledged = board.acknowledged();
        match self.rng.random_range(0..3) {
            0 => look::accounts(client),
            1 => look::duties(client),
            _ => look::progress(client, board, &acknowledged),
        }
    }

    /// One snapshot, looked at in many ways.
    fn look(&mut self, client: &mut Client, board: &Board) -> Result<(), Failure> {
        board.count(&board.looks);
        let acknowledged = board.acknowledged();
        let isolation = if self.rng.random_ratio(1, 3) { IsolationLevel::Serializable } else { IsolationLevel::RepeatableRead };
        let read_only = self.rng.random();
        let mut tx = client.build_transaction().isolation_level(isolation).read_only(read_only).start()?;
        for _ in 0..self.rng.random_range(1..4) {
            match self.rng.random_range(0..7) {
                0 => look::accounts(&mut tx)?,
                1 => look::duties(&mut tx)?,
                2 => look::progress(&mut tx, board, &acknowledged)?,
                3 => look::tids(&mut tx, &mut self.rng, board)?,
                _ => look::whole_table(&mut tx, &mut self.rng, board)?,
            }
        }
        if self.rng.random_ratio(1, 3) {
            return look::cursor(tx, &mut self.rng, board);
        }
        Ok(tx.commit()?)
    }
}

fn in_savepoint(tx: &mut Transaction, own: &mut Own) -> Result<(), Failure> {
    let before = own.changes.clone();
    let mut savepoint = tx.transaction()?;
    for _ in 0..own.rng.random_range(1..3) {
        own.step(&mut savepoint)?;
    }
    if own.rng.random() {
        savepoint.rollback()?;
        own.changes = before;
    } else {
        savepoint.commit()?;
    }
    Ok(())
}

/// Deletes an account and inserts it anew with another balance.
fn replace_account(tx: &mut Transaction, account: i32, change: i64) -> Result<u64, Failure> {
    let rows = tx.query("DELETE FROM account WHERE id = $1 RETURNING balance, note", &[&account])?;
    let Some(row) = rows.first() else { return Ok(0) };
    let (balance, note): (i64, String) = (row.get(0), row.get(1));
    let statement = "INSERT INTO account (id, balance, note) VALUES ($1, $2, $3)";
    Ok(tx.execute(statement, &[&account, &(balance + change), &note])?)
}
