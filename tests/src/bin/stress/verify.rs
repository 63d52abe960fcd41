//! The comparison with what the clients know: of one client's rows after its session was ended, of everything at the end.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use kalamdb_tests::{scans, sql};
use postgres::Client;

use crate::look;
use crate::schema::{Key, Ledger, Row, TABLES, Table, item_columns, item_of};

/// Reads all rows of a client, and takes them as what it goes on with, if its ledger explains them.
pub fn settle(client: &mut Client, ledger: &mut Ledger, number: u32) -> Result<()> {
    // In one statement, for a commit of the session before may just be under way.
    let query = format!(
        "SELECT {columns} FROM item WHERE owner = {number}
         UNION ALL SELECT NULL, 0, seq, 0, 0 FROM progress WHERE client = {number}",
        columns = item_columns()
    );
    let mut actual: BTreeMap<Key, Row> = BTreeMap::new();
    for row in client.query(&query, &[]).map_err(|error| anyhow::anyhow!("{}", sql::describe(&error)))? {
        let key = match row.get::<_, Option<i64>>(0) {
            Some(id) => (Table::Item, id),
            None => (Table::Progress, 0),
        };
        let content = Row { tag: row.get(1), version: row.get(2), payload: row.get(3), body: row.get(4) };
        ensure!(actual.insert(key, content).is_none(), "client {number}: {key:?} is there twice");
    }
    ledger.settle(&actual, true).with_context(|| format!("client {number}"))?;
    Ok(())
}

/// Everything, by every kind of scan.
pub fn everything(client: &mut Client, ledgers: &mut [&mut Ledger], stage: &str) -> Result<()> {
    compare_all(client, ledgers).with_context(|| stage.to_string())
}

fn compare_all(client: &mut Client, ledgers: &mut [&mut Ledger]) -> Result<()> {
    client.batch_execute("SET max_parallel_workers_per_gather = 0")?;
    let mut items = 0;
    for (number, ledger) in ledgers.iter_mut().enumerate() {
        settle(client, ledger, number as u32)?;
        check_each_key(client, ledger).with_context(|| format!("client {number}"))?;
        items += ledger.current().keys().filter(|key| key.0 == Table::Item).count() as i64;
    }
    let found: i64 = client.query_one("SELECT count(*) FROM item", &[])?.get(0);
    ensure!(found == items, "{found} items are there instead of {items}");
    let lines: i64 = client.query_one("SELECT count(*) FROM log", &[])?.get(0);
    let commits: i64 = ledgers.iter().map(|ledger| ledger.current()[&(Table::Progress, 0)].version).sum();
    ensure!(lines == commits, "the log has {lines} lines for {commits} commits");
    let failed = |failure| anyhow::anyhow!("{failure:?}");
    look::accounts(client).map_err(failed)?;
    look::duties(client).map_err(failed)?;
    for (table, _, _) in TABLES {
        scans::compare_indexes(client, table)?;
    }
    scans::check_with_amcheck(client)
}

/// Every row by its key, and as many keys that are not there.
fn check_each_key(client: &mut Client, ledger: &Ledger) -> Result<()> {
    client.batch_execute("SET enable_seqscan = off")?;
    let statement = client.prepare(&format!("SELECT {} FROM item WHERE id = $1", item_columns()))?;
    let gone = client.prepare("SELECT count(*) FROM item WHERE id = $1")?;
    for (key, row) in ledger.current().iter().filter(|(key, _)| key.0 == Table::Item) {
        let found: Vec<(i64, Row)> = client.query(&statement, &[&key.1])?.iter().map(item_of).collect();
        ensure!(found == [(key.1, *row)], "item {} by its key: {found:?} instead of {row:?}", key.1);
        let other = key.1 + 1;
        if !ledger.current().contains_key(&(Table::Item, other)) {
            let count: i64 = client.query_one(&gone, &[&other])?.get(0);
            ensure!(count == 0, "item {other}, which was deleted, is found by its key");
        }
    }
    client.batch_execute("RESET ALL")?;
    Ok(())
}
