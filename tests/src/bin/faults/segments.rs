//! Segments whose manifest is lost, and files that a crash leaves behind: what is made known again, and what goes.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use kalamdb_engine::cold::{FilePlace, Garbage, LOCAL};
use kalamdb_engine::ids::{PageKey, PageNumber};
use kalamdb_engine::store::{Store, StoreOptions};
use kalamdb_tests::{Installation, StopMode, sql};
use postgres::Client;

use crate::bed::{Bed, eventually, noise};
use crate::bucket::Bucket;
use crate::{Outcome, PATIENCE};

/// What a table has, in the order of a scan and by its index.
fn contents(client: &mut Client, table: &str) -> Result<Vec<(i64, Option<String>)>> {
    let mut found = Vec::new();
    for scan in ["enable_seqscan", "enable_indexscan"] {
        client.batch_execute(&format!("SET {scan} = off; SET enable_bitmapscan = off"))?;
        let query = format!("SELECT count(*), md5(string_agg(id || md5(pad), ',' ORDER BY id)) FROM {table} WHERE id > 0");
        let row = client.query_one(&query, &[])?;
        client.batch_execute(&format!("RESET {scan}; RESET enable_bitmapscan"))?;
        found.push((row.get(0), row.get(1)));
    }
    ensure!(found[0] == found[1], "{table}: scan and index disagree: {found:?}");
    Ok(found)
}

fn flush(client: &mut Client, table: &str) -> Result<()> {
    client.batch_execute(&format!("SELECT kalam.checkpoint(); SELECT kalam.flush('{table}', wait => true)"))?;
    Ok(())
}

/// Opens the store of a stopped server, and gives its files back to whom they belong.
fn with_store<R>(bed: &Bed, change: impl FnOnce(&Store) -> Result<R>) -> Result<R> {
    let store = Store::open(&bed.store(), &StoreOptions::default())?;
    let result = change(&store)?;
    store.flush()?;
    drop(store);
    let owner = format!("--reference={}", bed.cluster.data().display());
    let status = Command::new("chown").arg("-R").arg(owner).arg(bed.store()).status()?;
    ensure!(status.success(), "chown: {status}");
    Ok(result)
}

/// Takes every segment out of the manifest, and every stub that leads to one.
fn lose_manifest(bed: &Bed) -> Result<usize> {
    with_store(bed, |store| {
        let segments = store.segments()?;
        let mut batch = store.batch();
        for segment in &segments {
            batch.remove_segment(segment);
            store.stubs(segment.storage, PageNumber(0), &mut |page, _| {
                batch.remove_stub(PageKey { storage: segment.storage, page });
                Ok(true)
            })?;
        }
        batch.write()?;
        Ok(segments.len())
    })
}

/// A table whose rows were flushed, changed, partly flushed again, and deleted at its end, which VACUUM gave back.
fn create_history(bed: &Bed, client: &mut Client, table: &str, storage: &str) -> Result<()> {
    bed.create_table(client, table)?;
    client.batch_execute(&format!("SELECT kalam.set_options('{table}', storage => '{storage}')"))?;
    flush(client, table)?;
    client.batch_execute(&format!("UPDATE {table} SET pad = 'once' WHERE id % 300 = 0"))?;
    flush(client, table)?;
    client.batch_execute(&format!(
        "DELETE FROM {table} WHERE id BETWEEN 400 AND 420;
         UPDATE {table} SET pad = 'twice' WHERE id BETWEEN 1000 AND 1010;
         DELETE FROM {table} WHERE ctid >= (SELECT ctid FROM {table} WHERE id = 1801)"
    ))?;
    let blocks = |client: &mut Client| -> Result<i64> {
        Ok(client.query_one(&format!("SELECT blocks::bigint FROM kalam.table_stats('{table}')"), &[])?.get(0))
    };
    let before = blocks(client)?;
    // The job that flushed may hold a snapshot for a moment yet, which keeps the deleted rows.
    eventually(|| {
        client.batch_execute(&format!("VACUUM {table}"))?;
        ensure!(blocks(client)? < before, "VACUUM gives no block of {table} back");
        Ok(())
    })?;
    client.batch_execute("SELECT kalam.checkpoint()")?;
    let cold: i64 = client.query_one(&format!("SELECT sum(live_rows)::bigint FROM kalam.table_segments('{table}')"), &[])?.get(0);
    ensure!(cold > 1000, "{cold} rows of {table} are cold");
    Ok(())
}

/// The counters of EXPLAIN for a statement: cold pages built, segments opened, bytes read.
fn loads(client: &mut Client, statement: &str) -> Result<[i64; 3]> {
    let names = ["Cold Pages Built", "Segments Opened", "Segment Bytes Read"];
    let rows = client.simple_query(&format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {statement}"))?;
    let text = rows.iter().find_map(|row| match row {
        postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    let text = text.context("EXPLAIN says nothing")?;
    let mut found = [0; 3];
    for (place, name) in names.iter().enumerate() {
        let rest = text.split(&format!("\"{name}\": ")).nth(1).with_context(|| format!("no {name:?} in {text}"))?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        found[place] = digits.parse()?;
    }
    Ok(found)
}

/// The manifest is lost; the files say what was in it, and rows that changed since do not come back.
pub fn manifest_lost(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "manifest", &[("kalam.flush_policy", "off")])?;
    let mut client = bed.connect()?;
    let directory = bed.cluster.directory().join("disk");
    client.batch_execute(&format!(
        "SELECT kalam.create_storage('disk', {})",
        sql::literal(&format!("file://{}", directory.display()))
    ))?;
    let mut tables = vec![("t_local", LOCAL), ("t_disk", "disk")];
    let bucket = Bucket::new()?;
    if let Some(bucket) = &bucket {
        bucket.create_storage(&mut client)?;
        tables.push(("t_bucket", "archive"));
    }
    let mut before = Vec::new();
    for (table, storage) in &tables {
        create_history(&bed, &mut client, table, storage)?;
        before.push(contents(&mut client, table)?);
    }
    drop(client);
    bed.stop()?;
    bed.start()?;
    let mut client = bed.connect()?;
    // A row by its key: one block of one segment, read once.
    for (table, _) in &tables {
        let [pages, opened, bytes] = loads(&mut client, &format!("SELECT pad FROM {table} WHERE id = 5"))?;
        ensure!(pages == 1 && opened == 1 && bytes > 0, "{table}: {pages} pages, {opened} segments, {bytes} bytes for one row");
        ensure!(loads(&mut client, &format!("SELECT pad FROM {table} WHERE id = 5"))? == [0; 3], "{table}: loaded again");
    }
    drop(client);
    bed.stop()?;
    let lost = lose_manifest(&bed)?;
    ensure!(lost > tables.len(), "the manifest has {lost} segments");

    bed.start()?;
    let postmaster = bed.cluster.postmaster_pid();
    let mut client = bed.connect()?;
    let mut adopted = 0;
    for ((table, _), before) in tables.iter().zip(&before) {
        if contents(&mut client, table).is_ok_and(|now| now == *before) {
            bail!("{table} is whole without its segments");
        }
        let found: i64 = client.query_one(&format!("SELECT kalam.rebuild_segments('{table}')"), &[])?.get(0);
        ensure!(found > 0, "no segment of {table} was found");
        adopted += found;
        let now = contents(&mut client, table)?;
        ensure!(now == *before, "{table} was {before:?} and is {now:?}");
        let again: i64 = client.query_one(&format!("SELECT kalam.rebuild_segments('{table}')"), &[])?.get(0);
        ensure!(again == 0, "{again} segments of {table} were lost again");
    }
    // It lasts, and the tables go on as any other.
    drop(client);
    bed.check_up(postmaster)?;
    bed.stop()?;
    bed.start()?;
    let mut client = bed.connect()?;
    for ((table, _), before) in tables.iter().zip(&before) {
        ensure!(contents(&mut client, table)? == *before, "{table} differs after a restart");
        client.batch_execute(&format!("UPDATE {table} SET pad = pad WHERE id % 50 = 0"))?;
        flush(&mut client, table)?;
        ensure!(contents(&mut client, table)? == *before, "{table} differs after a flush");
    }
    let place = if bucket.is_some() { "two directories and a bucket" } else { "two directories (no object store)" };
    Ok(Outcome::Passed(format!("{adopted} segments in {place} known again, changed rows stayed changed")))
}

/// A crash between the storing of a segment and its commit, and one while a draft was written: the files go.
pub fn uncommitted_files(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "strays", &[("kalam.flush_policy", "off")])?;
    let mut client = bed.connect()?;
    bed.create_table(&mut client, "t")?;
    flush(&mut client, "t")?;
    drop(client);
    bed.cluster.stop(StopMode::Immediate, PATIENCE)?;

    let directory = bed.cluster.data().join("kalamdb_segments");
    let path = |name: &str| format!("public/t/{name}");
    let (announced, unknown) = (path("segment-1-901-0000000a.parquet"), path("segment-1-902-0000000b.parquet"));
    let draft = "segment-1-903-0000000c.parquet.tmp";
    for name in [&announced, &unknown, draft, "notes.txt"] {
        make_old(&directory.join(name))?;
    }
    with_store(&bed, |store| {
        let place = FilePlace { database: 5, location: LOCAL.to_owned(), path: announced.clone() };
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let mut batch = store.batch();
        batch.put_garbage(&Garbage { segment: 901, place, since, announced: true })?;
        Ok(batch.write()?)
    })?;
    let owner = format!("--reference={}", bed.cluster.data().display());
    Command::new("chown").arg("-R").arg(owner).arg(&directory).status()?;

    bed.start()?;
    let mut client = bed.connect()?;
    eventually(|| {
        // Files go when nothing durable names them any more.
        client.batch_execute("SELECT kalam.checkpoint()")?;
        for gone in [announced.as_str(), draft] {
            ensure!(!directory.join(gone).exists(), "{gone} is still there");
        }
        Ok(())
    })?;
    for kept in [unknown.as_str(), "notes.txt"] {
        ensure!(directory.join(kept).exists(), "{kept} is gone");
    }
    bed.check_table(&mut client, "t")?;
    // The number of the announced segment is not given out again.
    client.batch_execute("UPDATE t SET pad = pad")?;
    flush(&mut client, "t")?;
    let newest: i64 = client.query_one("SELECT max(segment) FROM kalam.table_segments('t')", &[])?.get(0);
    ensure!(newest > 901, "the newest segment has the number {newest}");
    bed.check_table(&mut client, "t")?;
    Ok(Outcome::Passed("the announced file and the draft are gone, files of others stay".into()))
}

/// The files of a user's segments are gone: who compacts or indexes the table for all users is told, but not whose rows they were.
pub fn user_files_missing(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "userfiles", &[("kalam.flush_policy", "off")])?;
    let mut client = bed.connect()?;
    client.batch_execute(
        "CREATE ROLE keeper; CREATE SCHEMA own AUTHORIZATION keeper; SET ROLE keeper;
         CREATE TABLE own.diary (id int PRIMARY KEY, body text) USING kalam_user;
         RESET ROLE; SET kalam.user_id = 'hidden_alice'",
    )?;
    for part in 0..4 {
        client.batch_execute(&format!(
            "INSERT INTO own.diary SELECT {part} * 1000 + i, repeat('a', 200) FROM generate_series(1, 500) i"
        ))?;
        flush(&mut client, "own.diary")?;
    }
    drop(client);
    bed.stop()?;
    let files = Command::new("find")
        .arg(bed.cluster.data().join("kalamdb_segments"))
        .args(["-path", "*hidden_alice*", "-name", "*.parquet", "-print", "-delete"])
        .output()?;
    let files = String::from_utf8_lossy(&files.stdout).lines().count();
    ensure!(files >= 4, "{files} files name the user");
    bed.start()?;
    let mut client = bed.connect()?;
    client.batch_execute("SET ROLE keeper")?;
    for statement in ["SELECT kalam.compact('own.diary', wait => true)", "REINDEX TABLE own.diary"] {
        let error = client.simple_query(statement).err().with_context(|| format!("{statement}: no error"))?;
        let text = sql::describe(&error);
        ensure!(!text.contains("alice") && !text.contains(".parquet"), "{statement}: {text}");
    }
    let row = client.query_one("SELECT j::text FROM kalam.jobs j WHERE error IS NOT NULL", &[])?;
    let job: String = row.get(0);
    ensure!(job.contains("server's log") && !job.contains("alice") && !job.contains(".parquet"), "{job}");
    eventually(|| {
        let log = fs::read_to_string(bed.cluster.log_path())?;
        ensure!(log.lines().any(|line| line.contains("hidden_alice/") && line.contains("No such file")), "no path in the log");
        Ok(())
    })?;
    Ok(Outcome::Passed(format!("{files} files are missing, and only the server's log says whose")))
}

/// Large values that a crash has left without rows: VACUUM frees them after the next start, and no others.
pub fn unnamed_values(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "unnamed", &[("kalam.flush_policy", "off")])?;
    let mut client = bed.connect()?;
    client.batch_execute(&format!(
        "CREATE FUNCTION leak_value(regclass, int) RETURNS void STRICT LANGUAGE c AS '$libdir/kalamdb', 'leak_value_wrapper';
         CREATE FUNCTION count_values(regclass, OUT there bigint, OUT unnamed bigint) RETURNS SETOF record STRICT LANGUAGE c
             AS '$libdir/kalamdb', 'count_values_wrapper';
         CREATE TABLE t (id int PRIMARY KEY, pad bytea);
         ALTER TABLE t ALTER pad SET STORAGE EXTERNAL;
         INSERT INTO t SELECT i, {} FROM generate_series(1, 20) i",
        noise("i", 5000)
    ))?;
    let count = |client: &mut Client| -> Result<(i64, i64)> {
        let row = client.query_one("SELECT * FROM count_values('t')", &[])?;
        Ok((row.get(0), row.get(1)))
    };
    let mut before = contents(&mut client, "t")?;
    for round in 0..3 {
        client.batch_execute("SELECT leak_value('t', 100000) FROM generate_series(1, 7)")?;
        client.batch_execute("VACUUM t")?;
        ensure!(count(&mut client)? == (27, 7), "round {round}: of this run, {:?}", count(&mut client)?);
        drop(client);
        bed.cluster.stop(StopMode::Immediate, PATIENCE)?;
        bed.start()?;
        client = bed.connect()?;
        ensure!(count(&mut client)? == (27, 7), "round {round}: after the crash, {:?}", count(&mut client)?);
        // Rows that move on take their values with them: to hot pages from hot ones, in the next round from cold ones.
        client.batch_execute("UPDATE t SET id = id + 100 WHERE id % 3 = 0; SELECT kalam.checkpoint()")?;
        client.batch_execute("VACUUM t")?;
        ensure!(count(&mut client)? == (20, 0), "round {round}: after VACUUM, {:?}", count(&mut client)?);
        client.batch_execute("UPDATE t SET id = id - 100 WHERE id > 100")?;
        ensure!(contents(&mut client, "t")? == before, "round {round}: other rows");
        flush(&mut client, "t")?;
        before = contents(&mut client, "t")?;
    }
    // The values of a dropped column stay as long as cold rows have pointers to them.
    client.batch_execute(&format!(
        "ALTER TABLE t ADD kept bytea; UPDATE t SET kept = {}; ALTER TABLE t DROP pad",
        noise("id", 5000)
    ))?;
    flush(&mut client, "t")?;
    let whole = |client: &mut Client| -> Result<i64> { Ok(client.query_one("SELECT sum(length(t::text)) FROM t", &[])?.get(0)) };
    let length = whole(&mut client)?;
    drop(client);
    bed.cluster.stop(StopMode::Fast, PATIENCE)?;
    bed.start()?;
    client = bed.connect()?;
    client.batch_execute("VACUUM t")?;
    ensure!(whole(&mut client)? == length, "whole rows changed after VACUUM");
    let deleted = client.execute("DELETE FROM t WHERE id <= 10", &[])?;
    ensure!(deleted == 10, "{deleted} rows were deleted");
    let kept: i64 = client.query_one("SELECT count(*) FROM kalam.history('t')", &[])?.get(0);
    ensure!(kept == 10, "{kept} deleted rows were kept");
    Ok(Outcome::Passed("values without rows are freed, those of hot and of cold rows stay".into()))
}

/// Makes a file that was written hours ago.
fn make_old(path: &Path) -> Result<()> {
    fs::create_dir_all(path.parent().context("a file in no directory")?)?;
    let hours = std::time::Duration::from_secs(7200);
    Ok(File::create(path)?.set_modified(std::time::SystemTime::now() - hours)?)
}
