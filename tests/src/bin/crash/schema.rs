//! The tables of the crash test.

use anyhow::Result;
use kalamdb_tests::Cluster;
use postgres::Client;

pub const DATABASE: &str = "crash";
pub const ACCOUNTS: i32 = 500;
pub const OPENING_BALANCE: i64 = 10_000;
pub const SHARED_KEYS: u32 = 200;

/// Tables whose indexes are compared with a sequential scan.
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
    if method != "heap" {
        for (function, symbol) in [("flush_now", "flush_inline_wrapper"), ("compact_now", "compact_inline_wrapper")] {
            client.batch_execute(&format!(
                "CREATE FUNCTION {function}(regclass, OUT rows bigint, OUT blocks bigint, OUT segments bigint, OUT left_out bigint, OUT gone bool)
                     RETURNS SETOF record LANGUAGE c STRICT AS '$libdir/kalamdb', '{symbol}'"
            ))?;
        }
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
