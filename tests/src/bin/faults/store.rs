//! The store is missing, foreign, in use, closed to the server, or damaged.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kalamdb_tests::{Installation, StopMode};
use postgres::Client;

use crate::bed::{Bed, ROWS, check_error, eventually, refused};
use crate::{Outcome, PATIENCE};

/// Statements that need the rows or the size of table `t`.
pub const EVERY_ACCESS: [&str; 16] = [
    "SELECT * FROM t",
    "SELECT count(*) FROM t",
    "SELECT id FROM t WHERE id = 1",
    "SET enable_seqscan = off; SELECT count(*) FROM t WHERE id > 0",
    "SELECT * FROM t WHERE ctid = '(0,1)'",
    "SELECT * FROM t TABLESAMPLE SYSTEM (10)",
    "INSERT INTO t VALUES (-1, '')",
    "INSERT INTO t VALUES (1, '') ON CONFLICT DO NOTHING",
    "UPDATE t SET pad = '' WHERE id = 1",
    "DELETE FROM t",
    "COPY t TO '/dev/null'",
    "CREATE TABLE other AS SELECT * FROM t",
    "CREATE INDEX ON t (pad)",
    "VACUUM t",
    "ANALYZE t",
    "SELECT kalam.table_stats('t')",
];

pub fn missing(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "missing", &[])?;
    let mut client = bed.connect()?;
    bed.create_table(&mut client, "t")?;
    drop(client);
    bed.stop()?;
    let away = bed.cluster.directory().join("away");
    fs::rename(bed.store(), &away)?;

    bed.start()?;
    let postmaster = bed.cluster.postmaster_pid();
    let mut client = bed.connect()?;
    for statement in EVERY_ACCESS {
        refused(&mut client, statement, "58P01", &["\"t\"", "directory"])?;
    }
    // Work goes on in a new store, and does not get into the way of the old one.
    bed.create_table(&mut client, "later")?;
    bed.check_table(&mut client, "later")?;
    drop(client);
    bed.check_up(postmaster)?;

    bed.stop()?;
    fs::rename(bed.store(), bed.cluster.directory().join("replaced"))?;
    fs::rename(&away, bed.store())?;
    bed.start()?;
    let mut client = bed.connect()?;
    bed.check_table(&mut client, "t")?;
    // The log still has all of it.
    bed.check_table(&mut client, "later")?;
    Ok(Outcome::Passed(format!("58P01 for {} kinds of access, all rows there when it is back", EVERY_ACCESS.len())))
}

pub fn missing_rights(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "rights", &[])?;
    let mut client = bed.connect()?;
    bed.create_table(&mut client, "t")?;
    drop(client);
    bed.stop()?;
    let modes = [("none", 0o000), ("only reading", 0o500)];
    for (name, mode) in modes {
        fs::set_permissions(bed.store(), Permissions::from_mode(mode))?;
        bed.start()?;
        let postmaster = bed.cluster.postmaster_pid();
        let mut client = bed.connect()?;
        refused(&mut client, "SELECT * FROM t", "58P01", &["pgsql_tmp_kalamdb", "Permission denied"]).context(name)?;
        refused(&mut client, "CREATE TABLE u (id int)", "58P01", &["pgsql_tmp_kalamdb", "Permission denied"]).context(name)?;
        client.batch_execute("CREATE TABLE h (id int) USING heap; DROP TABLE h")?;
        fs::set_permissions(bed.store(), Permissions::from_mode(0o700))?;
        eventually(|| Ok(client.batch_execute("SELECT count(*) FROM t")?))?;
        bed.check_table(&mut client, "t")?;
        drop(client);
        bed.check_up(postmaster)?;
        bed.stop()?;
    }
    Ok(Outcome::Passed("58P01, and without a restart all rows when the rights are back".into()))
}

/// The table files of a store, the largest first.
fn table_files(store: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        // A file that was merged into another one may be gone by now.
        if entry.path().extension().is_some_and(|extension| extension == "sst")
            && let Ok(metadata) = entry.metadata()
        {
            files.push((metadata.len(), entry.path()));
        }
    }
    files.sort();
    Ok(files.into_iter().rev().map(|(_, path)| path).collect())
}

fn worker_starts(client: &mut Client) -> Result<i64> {
    Ok(client.query_one("SELECT value FROM kalam.stats() WHERE name = 'worker_starts'", &[])?.get(0))
}

/// Makes the tables "t" and "sound" and stops the server: the file that holds the rows of "t" and none of "sound".
fn file_of_table(bed: &mut Bed) -> Result<PathBuf> {
    for _ in 0..10 {
        let mut client = bed.connect()?;
        client.batch_execute("DROP TABLE IF EXISTS t, sound")?;
        bed.create_table(&mut client, "t")?;
        let largest = table_files(&bed.store())?.into_iter().next().context("the store has no table file")?;
        bed.create_table(&mut client, "sound")?;
        drop(client);
        bed.stop()?;
        if largest.exists() {
            return Ok(largest);
        }
        // RocksDB has put both tables into one file.
        bed.start()?;
    }
    bail!("RocksDB merges the tables' files again and again")
}

pub fn corrupt_page(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "corrupt", &[])?;
    let damaged = file_of_table(&mut bed)?;
    let mut bytes = fs::read(&damaged)?;
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8].iter_mut().for_each(|byte| *byte ^= 0xff);
    fs::write(&damaged, bytes)?;

    bed.start()?;
    let postmaster = bed.cluster.postmaster_pid();
    let mut client = bed.connect()?;
    bed.check_table(&mut client, "sound")?;
    refused(&mut client, "SELECT sum(length(pad)) FROM t", "XX001", &["block", "storage", "backup"])?;
    client.batch_execute("SET enable_seqscan = off")?;
    let mut readable = 0;
    for id in 1..=ROWS {
        match client.simple_query(&format!("SELECT pad FROM t WHERE id = {id}")) {
            Ok(_) => readable += 1,
            Err(error) => check_error(&error, "XX001", &["block", "storage", "backup"])?,
        }
    }
    ensure!((ROWS / 2..ROWS).contains(&readable), "{readable} of {ROWS} rows can be read beside the damaged block");
    // More files make RocksDB merge them, and so meet the damaged one by itself.
    let starts = worker_starts(&mut client)?;
    for round in 1..=6 {
        client.batch_execute(&format!(
            "UPDATE t SET pad = pad || '' WHERE id IN (1, {ROWS});
             CREATE TABLE more{round} AS SELECT * FROM sound"
        ))?;
        client.batch_execute("SELECT kalam.checkpoint()").with_context(|| format!("checkpoint {round} after the damage"))?;
    }
    bed.check_table(&mut client, "more6")?;
    client.batch_execute("DROP TABLE t; SELECT kalam.checkpoint()")?;
    bed.check_table(&mut client, "sound")?;
    ensure!(worker_starts(&mut client)? == starts + 1, "the engine did not open the store once more, without compaction");
    drop(client);
    bed.check_up(postmaster)?;
    Ok(Outcome::Passed(format!("XX001 names block and storage, {readable} of {ROWS} rows and other tables are readable")))
}

/// Two servers beside each other, then with each other's store, then with one store.
pub fn two_servers(installation: &Installation) -> Result<Outcome> {
    let mut first = Bed::started(installation, "first", &[])?;
    let mut second = Bed::started(installation, "second", &[])?;
    for bed in [&first, &second] {
        bed.create_table(&mut bed.connect()?, "t")?;
    }
    for bed in [&first, &second] {
        bed.check_table(&mut bed.connect()?, "t")?;
    }
    second.stop()?;
    let own = second.cluster.directory().join("own");
    fs::rename(second.store(), &own)?;

    symlink(first.store(), second.store())?;
    second.start()?;
    refused(&mut second.connect()?, "SELECT * FROM t", "57P03", &["in use", "process"])
        .context("the other server's open store")?;
    first.check_table(&mut first.connect()?, "t").context("beside the server that tried to use its store")?;
    let mut client = first.connect()?;
    client.batch_execute("CREATE TABLE u AS SELECT * FROM t; SELECT kalam.checkpoint()")?;
    drop(client);

    let kept = first.cluster.postmaster_pid();
    first.check_up(kept)?;
    first.stop()?;
    eventually(|| refused(&mut second.connect()?, "SELECT * FROM t", "58P01", &["system identifier"]))
        .context("the other server's store")?;
    second.stop()?;
    fs::remove_file(second.store())?;
    fs::rename(&own, second.store())?;
    for bed in [&mut first, &mut second] {
        bed.start()?;
        bed.check_table(&mut bed.connect()?, "t")?;
        bed.cluster.stop(StopMode::Immediate, PATIENCE)?;
    }
    Ok(Outcome::Passed("57P03 for a store in use, 58P01 for the other cluster's, both are whole".into()))
}
