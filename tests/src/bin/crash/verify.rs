//! Judges the database after a crash: ledgers, sums, indexes against tables, duplicates.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kalamdb_tests::ledger::{Resolution, Settled};
use kalamdb_tests::{scans, sql};
use postgres::{Client, GenericClient};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::schema;
use crate::steps::owner_of;
use crate::truth::{self, Key, Ledger, Row, Table};

/// What a verification found out.
#[derive(Debug, Default)]
pub struct Verified {
    pub rows: usize,
    pub settled: Settled,
    /// Combinations of index and kind of scan that were compared with a sequential scan.
    pub index_scans: usize,
}

/// How a table of the maintenance client with that many rows looks.
pub fn churn_row(rows: i64) -> Row {
    Row { version: rows as i32, payload: rows * (rows + 1) / 2, remark: (1..=rows).map(|id| id * 37 % 3000).sum() }
}

/// Decides the prepared transactions that the clients left, each as its client wanted if it had decided. The ledger says which may be missing.
pub fn resolve_prepared(client: &mut Client, ledgers: &mut [&mut Ledger], rng: &mut ChaCha8Rng) -> Result<usize> {
    let rows = client.query("SELECT gid FROM pg_prepared_xacts", &[])?;
    let mut present: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let found = present.len();
    for ledger in ledgers {
        let Some(prepared) = ledger.prepared.take() else { continue };
        let there = present.iter().position(|name| *name == prepared.name);
        let commit = match (there, prepared.state) {
            (Some(_), Resolution::Committing) => true,
            (Some(_), Resolution::RollingBack) => false,
            (Some(_), _) => rng.random(),
            (None, Resolution::Prepared) => bail!("the prepared transaction {:?} was acknowledged and is lost", prepared.name),
            (None, Resolution::Committing) => {
                ledger.adopt(&prepared.changes);
                continue;
            }
            (None, Resolution::Preparing | Resolution::RollingBack) => continue,
        };
        if let Some(position) = there {
            present.swap_remove(position);
        }
        let verb = if commit { "COMMIT" } else { "ROLLBACK" };
        client.batch_execute(&format!("{verb} PREPARED {}", sql::literal(&prepared.name)))?;
        if commit {
            ledger.adopt(&prepared.changes);
        }
    }
    ensure!(present.is_empty(), "prepared transactions that nobody left: {present:?}");
    Ok(found)
}

/// Runs every check; the ledgers take what they find as their new truth. Changes nothing in the database.
pub fn check(db: &mut impl GenericClient, ledgers: &mut [&mut Ledger], orderly: bool, amcheck: bool) -> Result<Verified> {
    let mut verified = Verified::default();
    let mut actual = read_all(db, ledgers.len())?;
    for (client, ledger) in ledgers.iter_mut().enumerate() {
        let rows = std::mem::take(&mut actual[client]);
        verified.rows += rows.len();
        let settled = ledger.settle(&rows, orderly).with_context(|| format!("client {client}"))?;
        verified.settled.in_doubt_kept += settled.in_doubt_kept;
        verified.settled.in_doubt_lost += settled.in_doubt_lost;
        verified.settled.asynchronous_lost += settled.asynchronous_lost;
    }
    check_sums(db)?;
    check_scratch(db, orderly)?;
    for table in schema::TABLES.into_iter().chain(["scratch"]) {
        verified.index_scans += scans::compare_indexes(db, table)?;
    }
    if has_users(db)? {
        check_users(db)?;
    }
    if amcheck {
        scans::check_with_amcheck(db)?;
    }
    Ok(verified)
}

/// Waits until the engine has exactly the storages that tables need: the sweep removes those that a crash left behind.
pub fn check_storages(db: &mut Client) -> Result<()> {
    const SWEEPS: Duration = Duration::from_secs(60);
    let query = "SELECT (SELECT value FROM kalam.stats() WHERE name = 'storages'),
                        (SELECT count(*) FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_depend d ON d.classid = 'pg_am'::regclass
                             AND d.objid = a.oid JOIN pg_extension e ON d.refobjid = e.oid AND e.extname = 'kalamdb'
                         WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't')";
    let deadline = Instant::now() + SWEEPS;
    loop {
        let row = db.query_one(query, &[])?;
        let (storages, tables): (i64, i64) = (row.get(0), row.get(1));
        if storages == tables {
            return Ok(());
        }
        ensure!(storages > tables, "{tables} tables have only {storages} storages");
        ensure!(Instant::now() < deadline, "{} storages belong to no table", storages - tables);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The first VACUUM after a crash leaves no large value that no row names. Rows that are removed meanwhile give theirs up a moment later.
pub fn check_values(db: &mut Client) -> Result<()> {
    const MOMENT: Duration = Duration::from_secs(20);
    db.batch_execute(
        "CREATE OR REPLACE FUNCTION count_values(regclass, OUT there bigint, OUT unnamed bigint) RETURNS SETOF record STRICT
             LANGUAGE c AS '$libdir/kalamdb', 'count_values_wrapper';
         SELECT kalam.checkpoint()",
    )?;
    for table in schema::TABLES {
        db.batch_execute(&format!("VACUUM {table}"))?;
        let deadline = Instant::now() + MOMENT;
        loop {
            let row = db.query_one("SELECT there, unnamed FROM count_values($1::text::regclass)", &[&table])?;
            let (there, unnamed): (i64, i64) = (row.get(0), row.get(1));
            if unnamed == 0 {
                break;
            }
            ensure!(Instant::now() < deadline, "no row of {table} names {unnamed} of its {there} large values");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Every row of every client by sequential scans; the last ledger is the maintenance client's.
fn read_all(db: &mut impl GenericClient, clients: usize) -> Result<Vec<BTreeMap<Key, Row>>> {
    scans::allow_only(db, "seqscan")?;
    let mut actual = vec![BTreeMap::new(); clients];
    let queries = [
        (
            Table::Entry,
            format!("SELECT id, version, {}, {}, client FROM entry", sql::digest_sql("payload"), sql::digest_sql("remark")),
        ),
        (
            Table::Transfer,
            format!(
                "SELECT id, 0, {}, 0::bigint, (id >> 32)::int FROM transfer",
                sql::digest_sql("concat_ws(' ', source, target, amount)")
            ),
        ),
        (Table::Hit, format!("SELECT id, 0, {}, 0::bigint, (id >> 32)::int FROM hit", sql::digest_sql("key"))),
    ];
    for (table, query) in queries {
        for row in db.query(&query, &[])? {
            let id: i64 = row.get(0);
            let owner = owner_of(id) as usize;
            ensure!(owner < clients - 1 && row.get::<_, i32>(4) == owner as i32, "{table:?} {id} belongs to nobody");
            let content = Row { version: row.get(1), payload: row.get(2), remark: row.get(3) };
            ensure!(actual[owner].insert((table, id), content).is_none(), "{table:?} {id} is there twice");
        }
    }
    if has_users(db)? {
        read_notes(db, &mut actual)?;
    }
    let names = db.query("SELECT relname::text FROM pg_class WHERE relname ~ '^churn_[0-9]+$' AND relkind = 'r'", &[])?;
    for name in names {
        let name: String = name.get(0);
        let number: i64 = name["churn_".len()..].parse()?;
        let query =
            format!("SELECT count(*)::int, coalesce(sum(id), 0)::bigint, coalesce(sum(length(filler)), 0)::bigint FROM {name}");
        let row = db.query_one(&query, &[])?;
        actual[clients - 1].insert((Table::Churn, number), Row { version: row.get(0), payload: row.get(1), remark: row.get(2) });
    }
    Ok(actual)
}

/// Whether there are user tables, which heap has not.
fn has_users(db: &mut impl GenericClient) -> Result<bool> {
    Ok(db.query_one("SELECT to_regclass('note') IS NOT NULL", &[])?.get(0))
}

/// The rows of all users, as those see them who may do without row security.
fn read_notes(db: &mut impl GenericClient, actual: &mut [BTreeMap<Key, Row>]) -> Result<()> {
    db.batch_execute("SET row_security = off")?;
    let query = format!(
        "SELECT split_part(_user_id, ' ', 2)::int, split_part(_user_id, ' ', 3)::bigint, id, {} FROM note",
        sql::digest_sql("body")
    );
    for row in db.query(&query, &[])? {
        let key = truth::note_key(row.get(1), row.get(2));
        let content = Row { version: 0, payload: row.get(3), remark: 0 };
        let client: i32 = row.get(0);
        ensure!(actual[client as usize].insert(key, content).is_none(), "row {key:?} of client {client} is there twice");
    }
    db.batch_execute("RESET row_security")?;
    Ok(())
}

/// Each user sees by every kind of scan what all users' rows say of this one.
fn check_users(db: &mut impl GenericClient) -> Result<()> {
    let summary = "count(*), coalesce(sum(hashtextextended(concat_ws(' ', _user_id, id, body), 0)::numeric), 0)::text";
    db.batch_execute("SET row_security = off")?;
    let users = db.query(&format!("SELECT _user_id, {summary} FROM note GROUP BY 1"), &[])?;
    db.batch_execute("RESET row_security")?;
    for user in users {
        let (name, rows, digest): (String, i64, String) = (user.get(0), user.get(1), user.get(2));
        for kind in ["seqscan", "indexscan", "bitmapscan"] {
            scans::allow_only(db, kind)?;
            db.batch_execute(&format!("SET kalam.user_id = {}", sql::literal(&name)))?;
            let own = db.query_one(&format!("SELECT {summary} FROM note WHERE id IS NOT NULL"), &[])?;
            let found: (i64, String) = (own.get(0), own.get(1));
            ensure!(found == (rows, digest.clone()), "user {name:?} by {kind} sees {found:?}, of all rows have {rows} {digest}");
        }
    }
    db.batch_execute("RESET ALL")?;
    Ok(())
}

/// An unlogged table is empty after a crash; without one it has whole groups.
fn check_scratch(db: &mut impl GenericClient, orderly: bool) -> Result<()> {
    let query = "SELECT count(*), count(*) FILTER (WHERE number = $1), coalesce(sum(number), 0)::bigint FROM scratch";
    let row = db.query_one(query, &[&schema::SCRATCH_GROUP])?;
    let (rows, groups, sum): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    let group = i64::from(schema::SCRATCH_GROUP);
    ensure!(orderly || rows == 0, "the unlogged table has {rows} rows after a crash");
    ensure!(
        rows == groups * group && sum == groups * group * (group + 1) / 2,
        "the unlogged table has {rows} rows of {groups} groups, their numbers sum to {sum}"
    );
    Ok(())
}

fn check_sums(db: &mut impl GenericClient) -> Result<()> {
    scans::allow_only(db, "seqscan")?;
    let row = db.query_one("SELECT count(*), sum(balance)::bigint FROM account", &[])?;
    let (accounts, total): (i64, i64) = (row.get(0), row.get(1));
    let expected = i64::from(schema::ACCOUNTS) * schema::OPENING_BALANCE;
    ensure!(accounts == i64::from(schema::ACCOUNTS), "{accounts} accounts instead of {}", schema::ACCOUNTS);
    ensure!(total == expected, "the balances sum to {total} instead of {expected}");
    let wrong = db.query(
        "SELECT a.id, a.balance, a.opening + coalesce(m.amount, 0)::bigint
         FROM account a LEFT JOIN (SELECT id, sum(amount) AS amount FROM (SELECT source AS id, -amount AS amount FROM transfer
              UNION ALL SELECT target, amount FROM transfer) movement GROUP BY id) m USING (id)
         WHERE a.balance <> a.opening + coalesce(m.amount, 0) LIMIT 5",
        &[],
    )?;
    if let Some(row) = wrong.first() {
        let (id, balance, by_transfers): (i32, i64, i64) = (row.get(0), row.get(1), row.get(2));
        bail!("account {id} has {balance}, its transfers make {by_transfers} ({} such accounts or more)", wrong.len());
    }
    let wrong = db.query(
        "SELECT coalesce(k.key, h.key), k.hits, k.opening, h.count, k.copies
         FROM (SELECT key, min(hits) AS hits, min(opening) AS opening, count(*) AS copies FROM keyed GROUP BY key) k
         FULL JOIN (SELECT key, count(*) FROM hit GROUP BY key) h USING (key)
         WHERE k.hits IS DISTINCT FROM k.opening + coalesce(h.count, 0) OR k.copies <> 1 LIMIT 5",
        &[],
    )?;
    if let Some(row) = wrong.first() {
        let key: String = row.get(0);
        let numbers: Vec<Option<i64>> = (1..5).map(|column| row.get(column)).collect();
        bail!("upserted {key:?}: hits, opening hits, rows in hit and rows in keyed are {numbers:?}");
    }
    Ok(())
}
