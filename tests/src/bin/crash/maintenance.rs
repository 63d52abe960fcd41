//! The client that vacuums, makes rows cold, builds indexes, and makes, changes and drops whole tables while the others write.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kalamdb_tests::failure::Failure;
use kalamdb_tests::sql;
use postgres::{Client, NoTls};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::truth::{Changes, Ledger, Table};
use crate::workload::{Ending, Signals, conclude};

/// It lives through all rounds.
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
        // Prepared transactions keep their locks until their client decides about them.
        let limited = client.batch_execute("SET lock_timeout = '200ms'; SET statement_timeout = '20s'");
        signals.connected.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = limited {
            return Ending::Disconnected { at: Instant::now(), why: sql::describe(&error) };
        }
        while !signals.stop.load(Ordering::SeqCst) {
            let result = match self.rng.random_range(0..14) {
                0..3 => self.vacuum(&mut client),
                3..7 => self.cool(&mut client),
                7..10 => self.define(&mut client),
                10 => client.batch_execute("CHECKPOINT").map_err(Failure::from),
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
        let tables = crate::schema::TABLES.into_iter().map(String::from);
        let churned = self.ledger.current().keys().map(|key| format!("churn_{}", key.1));
        let tables: Vec<String> = tables.chain(["note".into()]).chain(churned).collect();
        let table = tables.choose(&mut self.rng).expect("not empty");
        let ours = "relam IN (SELECT oid FROM pg_am WHERE amname LIKE 'kalam%')";
        match client.batch_execute(&format!("SELECT {what}(oid) FROM pg_class WHERE relname = '{table}' AND {ours}")) {
            Err(error) if sql::sqlstate(&error) == Some("55P03") => Ok(()),
            result => Ok(result?),
        }
    }

    /// Builds and drops indexes and columns beside the writers.
    fn define(&mut self, client: &mut Client) -> Result<(), Failure> {
        const STATEMENTS: [&str; 9] = [
            "DROP INDEX IF EXISTS entry_payload; CREATE INDEX entry_payload ON entry USING hash (payload)",
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS hit_key ON hit (key)",
            "DROP INDEX CONCURRENTLY IF EXISTS hit_key",
            "REINDEX TABLE CONCURRENTLY transfer",
            "REINDEX INDEX CONCURRENTLY keyed_alias",
            "REINDEX TABLE entry",
            "ALTER TABLE entry ADD COLUMN IF NOT EXISTS later int DEFAULT 5",
            "ALTER TABLE entry DROP COLUMN IF EXISTS later",
            "REINDEX TABLE scratch",
        ];
        Ok(client.batch_execute(STATEMENTS.choose(&mut self.rng).expect("not empty"))?)
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
        } else if self.rng.random_ratio(1, 3) {
            transaction.batch_execute(&self.alteration(&name))?;
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

    /// A change of a table that leaves its rows' values as they are.
    fn alteration(&mut self, name: &str) -> String {
        let number = self.rng.random_range(0..3);
        let method = &self.method;
        match self.rng.random_range(0..5) {
            0 => format!("ALTER TABLE {name} ADD COLUMN IF NOT EXISTS extra_{number} int DEFAULT {number}"),
            1 => format!("ALTER TABLE {name} DROP COLUMN IF EXISTS extra_{number}"),
            2 => format!("ALTER TABLE {name} SET ACCESS METHOD heap"),
            3 => format!("ALTER TABLE {name} SET ACCESS METHOD {method}"),
            _ => format!("CLUSTER {name} USING {name}_pkey"),
        }
    }
}
