//! The tables of the crash test.

use anyhow::Result;
use kalamdb_tests::{Cluster, scans};
use postgres::Client;

pub const DATABASE: &str = "crash";
pub const ACCOUNTS: i32 = 500;
pub const OPENING_BALANCE: i64 = 10_000;
pub const SHARED_KEYS: u32 = 200;

/// Rows that are inserted together into the unlogged table.
pub const SCRATCH_GROUP: i32 = 7;

/// Tables that are vacuumed and made cold.
pub const TABLES: [&str; 5] = ["account", "transfer", "entry", "keyed", "hit"];

/// Creates the database, its tables and the accounts.
pub fn create(cluster: &Cluster) -> Result<()> {
    let mut client: Client = cluster.create_database(DATABASE)?;
    let method = &cluster.installation().method;
    client.batch_execute("CREATE EXTENSION amcheck")?;
    client.batch_execute(&format!(
        "CREATE TABLE account (id int PRIMARY KEY, opening bigint NOT NULL, balance bigint NOT NULL) USING {method};
         CREATE TABLE transfer (id bigint PRIMARY KEY, source int NOT NULL, target int NOT NULL, amount bigint NOT NULL) USING {method};
         CREATE TABLE entry (id bigint PRIMARY KEY, client int NOT NULL, version int NOT NULL, payload text, remark text) USING {method};
         CREATE INDEX entry_client_version ON entry (client, version);
         CREATE TABLE keyed (key text PRIMARY KEY, alias text NOT NULL, opening bigint NOT NULL, hits bigint NOT NULL) USING {method};
         CREATE INDEX keyed_alias ON keyed USING hash (alias);
         CREATE TABLE hit (id bigint PRIMARY KEY, key text NOT NULL) USING {method};
         INSERT INTO account SELECT id, {OPENING_BALANCE}, {OPENING_BALANCE} FROM generate_series(1, {ACCOUNTS}) id;"
    ))?;
    client.batch_execute(&format!(
        "CREATE UNLOGGED TABLE scratch (part bigint, number int, filler text, PRIMARY KEY (part, number)) USING {method}"
    ))?;
    if method != "heap" {
        client.batch_execute("CREATE TABLE note (id bigint PRIMARY KEY, body text NOT NULL) USING kalam_user")?;
        scans::create_cooling_functions(&mut client)?;
    }
    Ok(())
}

/// Folds the transfers and hits into the opening values and empties both tables, so that a long run does not only grow.
pub fn fold(client: &mut Client) -> Result<()> {
    client.batch_execute(
        "BEGIN;
         UPDATE account SET opening = balance;
         UPDATE keyed SET opening = hits;
         TRUNCATE transfer, hit;
         COMMIT",
    )?;
    Ok(())
}
