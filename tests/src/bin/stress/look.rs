//! What must hold in every snapshot, whoever changes and moves rows meanwhile: sums, each row exactly once by every kind of scan, and the
//! same rows again as long as the snapshot lasts.

use kalamdb_tests::failure::Failure;
use kalamdb_tests::sql;
use postgres::{GenericClient, Transaction};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::board::Board;
use crate::schema::{ACCOUNTS, OPENING_BALANCE, PAIRS, TABLES};

/// Ways to read a whole table.
const WAYS: [&str; 7] = ["seqscan", "indexscan", "bitmapscan", "indexonlyscan", "tidscan", "parallel", "sample"];

/// A table's rows in a snapshot: how many, how many different keys, a digest of all.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Fingerprint {
    rows: i64,
    keys: i64,
    digest: String,
}

/// Lets the planner use one way only, until the transaction ends.
fn allow_only(db: &mut impl GenericClient, way: &str) -> Result<(), Failure> {
    let mut statement = String::new();
    for setting in ["seqscan", "indexscan", "indexonlyscan", "bitmapscan", "tidscan"] {
        let on = match way {
            "indexonlyscan" => setting == "indexscan" || setting == way,
            "parallel" | "sample" => setting == "seqscan",
            _ => setting == way,
        };
        statement.push_str(&format!("SET LOCAL enable_{setting} = {};", if on { "on" } else { "off" }));
    }
    let workers = if way == "parallel" { 2 } else { 0 };
    statement.push_str(&format!(
        "SET LOCAL max_parallel_workers_per_gather = {workers}; SET LOCAL parallel_setup_cost = 0; SET LOCAL min_parallel_table_scan_size = 0;
         SET LOCAL parallel_tuple_cost = 0"
    ));
    Ok(db.batch_execute(&statement)?)
}

fn allow_all(db: &mut impl GenericClient) -> Result<(), Failure> {
    let mut statement = String::from("SET LOCAL max_parallel_workers_per_gather = 0;");
    for setting in ["seqscan", "indexscan", "indexonlyscan", "bitmapscan", "tidscan"] {
        statement.push_str(&format!("SET LOCAL enable_{setting} = on;"));
    }
    Ok(db.batch_execute(&statement)?)
}

/// How a query reads `table` in one way: what stands behind FROM and WHERE. `t` is the table.
fn source(rng: &mut ChaCha8Rng, table: (&str, &str, &[&str]), way: &str) -> (String, String) {
    let (name, _, indexed) = table;
    let column = indexed.choose(rng).expect("every table has a key");
    match way {
        "indexscan" | "bitmapscan" => (format!("{name} t"), format!("t.{column} IS NOT NULL")),
        "tidscan" => (format!("{name} t"), "t.ctid >= '(0,0)'".into()),
        "sample" => (format!("{name} t TABLESAMPLE SYSTEM (100)"), "true".into()),
        _ => (format!("{name} t"), "true".into()),
    }
}

fn fingerprint(
    db: &mut impl GenericClient,
    rng: &mut ChaCha8Rng,
    table: (&str, &str, &[&str]),
    way: &str,
) -> Result<Fingerprint, Failure> {
    allow_only(db, way)?;
    let (from, condition) = source(rng, table, way);
    let keys = match table.0 {
        "duty" => "(t.pair, t.side)",
        "log" => "(t.client, t.seq)",
        _ => &format!("t.{}", table.1),
    };
    let query = if way == "indexonlyscan" {
        let first = table.1;
        format!("SELECT count(*), count(*), '' FROM {from} WHERE t.{first} IS NOT NULL")
    } else {
        let digest = "coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text";
        format!("SELECT count(*), count(DISTINCT {keys}), {digest} FROM {from} WHERE {condition}")
    };
    let row = db.query_one(&query, &[])?;
    Ok(Fingerprint { rows: row.get(0), keys: row.get(1), digest: row.get(2) })
}

/// Reads one table again and again in different ways: the answer never changes while the snapshot lasts.
pub fn whole_table(tx: &mut Transaction, rng: &mut ChaCha8Rng, board: &Board) -> Result<(), Failure> {
    let table = *TABLES.choose(rng).expect("not empty");
    let first_way = if rng.random() { "seqscan" } else { "indexscan" };
    let first = fingerprint(tx, rng, table, first_way)?;
    if first.rows != first.keys {
        return Err(Failure::Wrong(format!("{} by {first_way}: {} rows have {} keys", table.0, first.rows, first.keys)));
    }
    for _ in 0..rng.random_range(1..5) {
        board.linger(rng);
        let way = *WAYS.choose(rng).expect("not empty");
        let again = fingerprint(tx, rng, table, way)?;
        let same = again.rows == first.rows && (way == "indexonlyscan" || again == first);
        if !same {
            let differing = differing_keys(tx, rng, table, way).unwrap_or_else(|_| "unknown".into());
            return Err(Failure::Wrong(format!(
                "{} in one snapshot: by {first_way} {first:?}, later by {way} {again:?}; keys that a sequential scan and {way} do not \
                 agree on now: {differing}",
                table.0
            )));
        }
    }
    allow_all(tx)
}

/// For the report: which rows two ways of reading do not agree on.
fn differing_keys(
    tx: &mut Transaction,
    rng: &mut ChaCha8Rng,
    table: (&str, &str, &[&str]),
    way: &str,
) -> Result<String, Failure> {
    let mut read = |way: &str| -> Result<Vec<String>, Failure> {
        allow_only(tx, way)?;
        let (from, condition) = source(rng, table, way);
        let query =
            format!("SELECT t.ctid::text || ' ' || t.xmin || ' ' || left(t::text, 60) FROM {from} WHERE {condition} ORDER BY 1");
        Ok(tx.query(&query, &[])?.iter().map(|row| row.get(0)).collect())
    };
    let (one, other) = (read("seqscan")?, read(way)?);
    let only = |a: &[String], b: &[String]| a.iter().filter(|row| !b.contains(row)).take(5).cloned().collect::<Vec<_>>();
    Ok(format!("only by sequential scan {:?}, only by {way} {:?}", only(&one, &other), only(&other, &one)))
}

/// The accounts' sum never changes, and there are as many as ever.
pub fn accounts(db: &mut impl GenericClient) -> Result<(), Failure> {
    let row = db.query_one("SELECT count(*), count(DISTINCT id), sum(balance)::bigint FROM account", &[])?;
    let found: (i64, i64, Option<i64>) = (row.get(0), row.get(1), row.get(2));
    let count = i64::from(ACCOUNTS);
    match found == (count, count, Some(count * OPENING_BALANCE)) {
        true => Ok(()),
        false => Err(Failure::Wrong(format!("accounts, different ids and their sum are {found:?}"))),
    }
}

/// No pair's amounts sum to less than nothing, which serializable transactions see to.
pub fn duties(db: &mut impl GenericClient) -> Result<(), Failure> {
    let query = "SELECT count(*), count(*) FILTER (WHERE sum < 0), sum(count)::bigint
         FROM (SELECT pair, count(*), sum(amount) FROM duty GROUP BY pair) pairs";
    let row = db.query_one(query, &[])?;
    let found: (i64, i64, Option<i64>) = (row.get(0), row.get(1), row.get(2));
    match found == (i64::from(PAIRS), 0, Some(2 * i64::from(PAIRS))) {
        true => Ok(()),
        false => Err(Failure::Wrong(format!("pairs, those below nothing and their rows are {found:?}"))),
    }
}

/// Every client's number of commits is that of its log, at least what was acknowledged before the snapshot and at most what is attempted.
pub fn progress(db: &mut impl GenericClient, board: &Board, acknowledged: &[i64]) -> Result<(), Failure> {
    let query = "SELECT p.client, p.seq, (SELECT count(*) FROM log l WHERE l.client = p.client AND l.seq > p.seq - 50),
             (SELECT coalesce(max(seq), 0) FROM log l WHERE l.client = p.client) FROM progress p ORDER BY client";
    let rows = db.query(query, &[])?;
    let attempted = board.attempted();
    if rows.len() != acknowledged.len() {
        return Err(Failure::Wrong(format!("progress has {} rows", rows.len())));
    }
    for (place, row) in rows.iter().enumerate() {
        let (client, seq, recent, last): (i32, i64, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let right = client as usize == place && last == seq && recent == seq.min(50);
        if !right || seq < acknowledged[place] || seq > attempted[place] {
            return Err(Failure::Wrong(format!(
                "client {client} (row {place}) has committed {seq} times, with {recent} of the last 50 in the log, which ends at {last}; \
                 {} were acknowledged before, {} are attempted",
                acknowledged[place], attempted[place]
            )));
        }
    }
    Ok(())
}

/// Rows that a snapshot shows are found at their TIDs as long as the snapshot lasts.
pub fn tids(tx: &mut Transaction, rng: &mut ChaCha8Rng, board: &Board) -> Result<(), Failure> {
    let query = "SELECT ctid::text, hashtextextended(t::text, 0) FROM item t WHERE tag = $1 LIMIT 40";
    let rows = tx.query(query, &[&rng.random_range(0..crate::schema::TAGS)])?;
    for _ in 0..2 {
        board.linger(rng);
        for row in &rows {
            let (tid, content): (String, i64) = (row.get(0), row.get(1));
            let query = format!("SELECT hashtextextended(t::text, 0) FROM item t WHERE ctid = {}", sql::literal(&tid));
            let found: Vec<i64> = tx.query(&query, &[])?.iter().map(|row| row.get(0)).collect();
            if found != [content] {
                return Err(Failure::Wrong(format!("item at {tid}: found {found:?} instead of {content}")));
            }
        }
    }
    Ok(())
}

/// A cursor shows what was there when it was opened, each row once, forwards and backwards, and after the commit if it is held.
/// Takes the transaction because a held cursor outlives it.
pub fn cursor(mut tx: Transaction, rng: &mut ChaCha8Rng, board: &Board) -> Result<(), Failure> {
    let (hold, scroll) = (rng.random_ratio(1, 3), rng.random_ratio(1, 3));
    let way = *["seqscan", "indexscan", "bitmapscan"].choose(rng).expect("not empty");
    let tag = rng.random_range(0..crate::schema::TAGS);
    let condition = if rng.random_ratio(1, 3) { format!("tag = {tag}") } else { "true".into() };
    let order = if rng.random_ratio(1, 3) { "ORDER BY id" } else { "" };
    let query = format!("SELECT id, hashtextextended(t::text, 0) FROM item t WHERE {condition} {order}");
    let read = |rows: &[postgres::Row]| rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<(i64, i64)>>();
    let mut expected = read(&tx.query(&query, &[])?);
    expected.sort_unstable();
    allow_only(&mut tx, way)?;
    let kind = format!("{} CURSOR {}", if scroll { "SCROLL" } else { "NO SCROLL" }, if hold { "WITH HOLD" } else { "" });
    tx.batch_execute(&format!("DECLARE look {kind} FOR {query}"))?;
    let mut found = Vec::new();
    loop {
        let step = rng.random_range(1..400);
        let rows = tx.query(&format!("FETCH {step} FROM look"), &[])?;
        let held_enough = hold && rng.random_ratio(1, 3);
        if rows.is_empty() || held_enough {
            found.extend(read(&rows));
            break;
        }
        found.extend(read(&rows));
        board.linger(rng);
    }
    if scroll && !hold {
        tx.batch_execute("MOVE FORWARD ALL FROM look")?;
        found = read(&tx.query("FETCH BACKWARD ALL FROM look", &[])?);
    }
    let judge = |mut found: Vec<(i64, i64)>| {
        found.sort_unstable();
        match found == expected {
            true => Ok(()),
            false => Err(Failure::Wrong(format!("{kind} for {query} by {way}: {}", difference(&expected, &found)))),
        }
    };
    if !hold {
        return judge(found);
    }
    tx.batch_execute("COMMIT")?;
    board.linger(rng);
    found.extend(read(&tx.query("FETCH ALL FROM look", &[])?));
    tx.batch_execute("CLOSE look")?;
    judge(found)
}

fn difference(expected: &[(i64, i64)], found: &[(i64, i64)]) -> String {
    let missing: Vec<_> = expected.iter().filter(|row| found.binary_search(row).is_err()).take(5).collect();
    let extra: Vec<_> = found.iter().filter(|row| expected.binary_search(row).is_err()).take(5).collect();
    let twice: Vec<_> = found.windows(2).filter(|pair| pair[0].0 == pair[1].0).map(|pair| pair[0].0).take(5).collect();
    format!("{} rows instead of {}, missing {missing:?}, too many {extra:?}, twice {twice:?}", found.len(), expected.len())
}
