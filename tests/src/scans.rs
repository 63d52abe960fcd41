//! Compares what the kinds of scans find, and makes tables cold from a session: what the programs that look for lost rows share.

use anyhow::{Result, ensure};
use postgres::GenericClient;

use crate::sql;

/// Makes `flush_now` and `compact_now`, which work on a table in the calling session.
pub fn create_cooling_functions(db: &mut impl GenericClient) -> Result<()> {
    for (function, symbol) in [("flush_now", "flush_inline_wrapper"), ("compact_now", "compact_inline_wrapper")] {
        db.batch_execute(&format!(
            "CREATE FUNCTION {function}(regclass, OUT rows bigint, OUT blocks bigint, OUT segments bigint, OUT left_out bigint, OUT gone bool)
                 RETURNS SETOF record LANGUAGE c STRICT AS '$libdir/kalamdb', '{symbol}'"
        ))?;
    }
    Ok(())
}

/// Allows only one kind of scan for the following statements.
pub fn allow_only(db: &mut impl GenericClient, kind: &str) -> Result<()> {
    for setting in ["seqscan", "indexscan", "indexonlyscan", "bitmapscan"] {
        let on = if setting == kind || (kind == "indexonlyscan" && setting == "indexscan") { "on" } else { "off" };
        db.batch_execute(&format!("SET enable_{setting} = {on}"))?;
    }
    Ok(())
}

/// Count and content through every index and kind of index scan equal those of a sequential scan.
pub fn compare_indexes(db: &mut impl GenericClient, table: &str) -> Result<usize> {
    let indexes = db.query(
        "SELECT c.relname::text, m.amname::text, a.attname::text, a.attnum > 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
         JOIN pg_am m ON m.oid = c.relam JOIN pg_attribute a ON a.attrelid = c.oid
             AND a.attnum = (SELECT min(f.attnum) FROM pg_attribute f WHERE f.attrelid = c.oid AND f.attname <> '_user_id')
         WHERE i.indrelid = $1::text::regclass AND i.indisvalid ORDER BY 1",
        &[&table],
    )?;
    let content = "count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text";
    allow_only(db, "seqscan")?;
    let by_table = summary(db, &format!("SELECT {content} FROM {table} t"))?;
    let mut compared = 0;
    for index in indexes {
        let (name, kind, column): (String, String, String) = (index.get(0), index.get(1), index.get(2));
        // All indexes of a user table begin with the user, and the planner takes the smallest.
        let of_user: bool = index.get(3);
        let scans: &[&str] = if kind == "hash" { &["indexscan"] } else { &["indexscan", "indexonlyscan", "bitmapscan"] };
        for scan in scans {
            allow_only(db, scan)?;
            let query = match (kind.as_str(), *scan) {
                // A hash index can only look up single values.
                ("hash", _) => {
                    format!(
                        "SELECT {content} FROM (SELECT DISTINCT {column} FROM {table} OFFSET 0) v JOIN {table} t USING ({column})"
                    )
                }
                (_, "indexonlyscan") => format!("SELECT count(*), '' FROM {table} t WHERE {column} IS NOT NULL"),
                _ => format!("SELECT {content} FROM {table} t WHERE {column} IS NOT NULL"),
            };
            if kind == "hash" {
                db.batch_execute(
                    "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off; SET enable_memoize = off",
                )?;
            }
            let plan: String =
                db.query(&format!("EXPLAIN {query}"), &[])?.iter().map(|row| row.get::<_, String>(0) + "\n").collect();
            if !plan.contains(&name) {
                // Small tables have no statistics problem here: the other scans are off. Only a missing capability hides the index.
                ensure!(*scan == "bitmapscan" || of_user, "index {name} is not used for a {scan}:\n{plan}");
                continue;
            }
            let by_index = summary(db, &query)?;
            let same = by_index.0 == by_table.0 && (*scan == "indexonlyscan" || by_index.1 == by_table.1);
            ensure!(same, "{table} by {scan} of {name}: {by_index:?}, by sequential scan: {by_table:?}");
            compared += 1;
        }
    }
    db.batch_execute("RESET ALL")?;
    Ok(compared)
}

fn summary(db: &mut impl GenericClient, query: &str) -> Result<(i64, String)> {
    let row = db.query_one(query, &[])?;
    Ok((row.get(0), row.get(1)))
}

/// Postgres' own index checker: structure, and that every visible row has its index entry.
pub fn check_with_amcheck(db: &mut impl GenericClient) -> Result<()> {
    let indexes = db.query(
        "SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
         WHERE m.amname = 'btree' AND i.indrelid >= 16384 AND i.indisvalid AND c.relnamespace = 'public'::regnamespace",
        &[],
    )?;
    for index in indexes {
        let name: String = index.get(0);
        let statement = format!("SELECT bt_index_check({}::regclass, true)", sql::literal(&name));
        db.execute(&statement, &[]).map_err(|error| anyhow::anyhow!("amcheck of {name}: {}", sql::describe(&error)))?;
    }
    Ok(())
}
