//! The tables of the stress test, and what its clients note of them.

use anyhow::Result;
use kalamdb_tests::{Cluster, scans, sql};

pub const DATABASE: &str = "stress";
/// Filler makes accounts and duties spread over many blocks.
pub const ACCOUNTS: i32 = 1_200;
pub const OPENING_BALANCE: i64 = 1_000;
pub const PAIRS: i32 = 200;
pub const OPENING_AMOUNT: i32 = 3;
pub const TAGS: i32 = 40;

/// Tables with a column that their primary key begins with and all columns that indexes begin with.
pub const TABLES: [(&str, &str, &[&str]); 5] = [
    ("item", "id", &["id", "tag"]),
    ("account", "id", &["id"]),
    ("duty", "pair", &["pair"]),
    ("log", "client", &["client"]),
    ("progress", "client", &["client"]),
];

/// Which table a row lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Item,
    /// How many transactions the client has committed.
    Progress,
}

pub type Key = (Table, i64);

/// What identifies a row's content; texts are represented by digests, a text that is null by 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Row {
    pub tag: i32,
    pub version: i64,
    pub payload: i64,
    pub body: i64,
}

pub type Changes = kalamdb_tests::ledger::Changes<Key, Row>;
pub type Ledger = kalamdb_tests::ledger::Ledger<Key, Row>;

/// The columns that make a [`Row`] of an item, its id first.
pub fn item_columns() -> String {
    format!("id, tag, version, {}, coalesce({}, 0)", sql::digest_sql("payload"), sql::digest_sql("body"))
}

pub fn item_of(row: &postgres::Row) -> (i64, Row) {
    (row.get(0), Row { tag: row.get(1), version: row.get(2), payload: row.get(3), body: row.get(4) })
}

pub fn create(cluster: &Cluster, clients: u32) -> Result<()> {
    let mut client = cluster.create_database(DATABASE)?;
    let method = &cluster.installation().method;
    client.batch_execute("CREATE EXTENSION amcheck")?;
    if cluster.installation().is_extension() {
        scans::create_cooling_functions(&mut client)?;
    }
    client.batch_execute(&format!(
        "CREATE TABLE item (id bigint PRIMARY KEY, owner int NOT NULL, tag int NOT NULL, version bigint NOT NULL, payload text NOT NULL, body text)
             USING {method};
         CREATE INDEX item_tag ON item (tag);
         CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, note text NOT NULL) USING {method};
         CREATE TABLE duty (pair int, side int, amount int NOT NULL, note text NOT NULL, PRIMARY KEY (pair, side)) USING {method};
         CREATE TABLE log (client int, seq bigint, note text NOT NULL, PRIMARY KEY (client, seq)) USING {method};
         CREATE TABLE progress (client int PRIMARY KEY, seq bigint NOT NULL, note text NOT NULL) USING {method};
         INSERT INTO account SELECT id, {OPENING_BALANCE}, repeat('n', 900) FROM generate_series(1, {ACCOUNTS}) id;
         INSERT INTO duty SELECT pair, side, {OPENING_AMOUNT}, repeat('n', 900)
             FROM generate_series(0, 1) side, generate_series(1, {PAIRS}) pair ORDER BY side, pair;
         INSERT INTO progress SELECT client, 0, repeat('n', 2000) FROM generate_series(0, {clients} - 1) client;"
    ))?;
    Ok(())
}

pub fn settings() -> Vec<(String, String)> {
    [
        ("fsync", "off"),
        ("wal_level", "replica"),
        ("max_replication_slots", "8"),
        ("max_worker_processes", "24"),
        ("max_connections", "40"),
        ("shared_buffers", "64MB"),
        ("max_wal_size", "128MB"),
        ("checkpoint_timeout", "30s"),
        ("autovacuum_naptime", "1s"),
        ("autovacuum_vacuum_scale_factor", "0.02"),
        ("deadlock_timeout", "30ms"),
        // A small cache: pages are written back and built from segments all the time.
        ("kalam.cache_size", "16MB"),
        ("kalam.checkpoint_interval", "5s"),
        ("kalam.flush_io_limit", "0"),
        ("kalam.flush_check_interval", "1s"),
    ]
    .into_iter()
    .map(|(name, value)| (name.into(), value.into()))
    .collect()
}
