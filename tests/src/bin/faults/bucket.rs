//! A storage in a bucket: unreachable, silent, with missing and damaged objects. Needs a server that speaks S3, whose address is in the
//! environment's OBJECT_STORE; see `tests/bin/object_store`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use kalamdb_tests::Installation;
use kalamdb_tests::sql;
use postgres::{Client, NoTls};

use crate::Outcome;
use crate::bed::{Bed, check_error, eventually, refused};
use crate::link::{Link, Way};

/// The server believes every signature, and refuses some requests that have none.
const SIGNED: &str = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// A bucket of its own on the server, and the way to it.
pub struct Bucket {
    server: String,
    name: String,
    link: Link,
}

impl Bucket {
    /// None without a server.
    pub fn new() -> Result<Option<Bucket>> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let Ok(server) = std::env::var("OBJECT_STORE") else { return Ok(None) };
        let name = format!("kalamdb-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let bucket = Bucket { link: Link::to(&server)?, server, name };
        bucket.ask("PUT", "", &[])?;
        Ok(Some(bucket))
    }

    /// One request beside the link; the answer's body.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect(&self.server)?;
        let head = format!(
            "{method} /{}{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: {SIGNED}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            self.name,
            self.server,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n").context("no HTTP")?;
        let status = String::from_utf8_lossy(&answer[..end]).into_owned();
        ensure!(status.starts_with("HTTP/1.1 2"), "{method} {path}: {status}");
        Ok(answer.split_off(end + 4))
    }

    /// The keys of all objects.
    fn keys(&self) -> Result<Vec<String>> {
        let list = String::from_utf8(self.ask("GET", "?list-type=2", &[])?)?;
        let keys = list.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        Ok(keys.map(str::to_owned).collect())
    }

    /// Makes the storage "archive" of it.
    pub fn create_storage(&self, client: &mut Client) -> Result<()> {
        let options = format!(
            r#"{{"endpoint": "http://{}", "allow_http": true, "access_key_id": "key", "secret_access_key": "hush-hush",
                "timeout": "2 s", "retries": 1, "retry_timeout": "2 s"}}"#,
            self.link.address
        );
        let url = format!("s3://{}/cold", self.name);
        let make = format!("SELECT kalam.create_storage('archive', {}, {})", sql::literal(&url), sql::literal(&options));
        client.batch_execute(&make)?;
        let row = client.query_one("SELECT status, error FROM kalam.storage_check('archive', extended => true)", &[])?;
        ensure!(
            row.get::<_, &str>(0) == "healthy",
            "the storage is {}: {:?}",
            row.get::<_, &str>(0),
            row.get::<_, Option<&str>>(1)
        );
        Ok(())
    }
}

/// A cluster with tables whose rows are in the bucket, and one whose rows are hot.
fn cold_bed(installation: &Installation, name: &'static str, bucket: &Bucket, tables: &[&str]) -> Result<Bed> {
    let bed = Bed::started(installation, name, &[("kalam.flush_policy", "off")])?;
    let mut client = bed.connect()?;
    bucket.create_storage(&mut client)?;
    bed.create_table(&mut client, "hot")?;
    for table in tables {
        bed.create_table(&mut client, table)?;
        client.batch_execute(&format!("SELECT kalam.set_options('{table}', storage => 'archive')"))?;
        let before = bucket.keys()?.len();
        flush(&mut client, table)?;
        ensure!(bucket.keys()?.len() > before, "the flush of {table} has put nothing into the bucket");
        bed.check_table(&mut client, table)?;
    }
    Ok(bed)
}

fn flush(client: &mut Client, table: &str) -> Result<()> {
    let id: String = client.query_one(&format!("SELECT kalam.flush('{table}', wait => true)"), &[])?.get(0);
    let job = client.query_one("SELECT state, error FROM kalam.jobs WHERE id = $1", &[&id])?;
    let (state, error): (String, Option<String>) = (job.get(0), job.get(1));
    ensure!(state == "completed", "the flush of {table} is {state}: {error:?}");
    Ok(())
}

/// Starts the server again, so that no cold page is in memory.
fn forget_pages(bed: &mut Bed) -> Result<()> {
    bed.stop()?;
    bed.start()
}

fn without_server() -> Outcome {
    Outcome::Skipped("no object store: OBJECT_STORE is not set (tests/bin/object_store sets it)".into())
}

/// Rows of a bucket behave as others; changed ones come back, dropped ones leave the bucket.
pub fn round_trip(installation: &Installation) -> Result<Outcome> {
    let Some(bucket) = Bucket::new()? else { return Ok(without_server()) };
    let mut bed = cold_bed(installation, "bucket", &bucket, &["t"])?;
    forget_pages(&mut bed)?;
    let postmaster = bed.cluster.postmaster_pid();
    let mut client = bed.connect()?;
    bed.check_table(&mut client, "t")?;
    client.batch_execute(
        "UPDATE t SET pad = pad WHERE id % 100 = 0;
         BEGIN; DELETE FROM t WHERE id < 500; ROLLBACK;
         DELETE FROM t WHERE id = 7; INSERT INTO t SELECT 7, pad FROM t WHERE id = 8;
         INSERT INTO t VALUES (1, '') ON CONFLICT DO NOTHING",
    )?;
    refused(&mut client, "SELECT kalam.drop_storage('archive')", "2BP01", &["archive"])?;
    client.batch_execute(&format!("UPDATE t SET pad = {} WHERE id = 7", crate::bed::noise("7", 60)))?;
    flush(&mut client, "t")?;
    drop(client);
    forget_pages(&mut bed)?;
    let mut client = bed.connect()?;
    bed.check_table(&mut client, "t")?;
    let objects = bucket.keys()?.len();
    client.batch_execute("DROP TABLE t")?;
    eventually(|| {
        // Files go when nothing durable names them any more.
        client.batch_execute("SELECT kalam.checkpoint()")?;
        let left = bucket.keys()?;
        ensure!(left.is_empty(), "{} objects of a dropped table are left", left.len());
        Ok(())
    })?;
    eventually(|| Ok(client.batch_execute("SELECT kalam.drop_storage('archive')")?))?;
    bed.check_table(&mut client, "hot")?;
    drop(client);
    ensure!(postmaster.is_some(), "the server has no process");
    let now = bed.cluster.postmaster_pid();
    bed.check_up(now)?;
    Ok(Outcome::Passed(format!("rows of {objects} objects read, changed, flushed again and dropped")))
}

/// The bucket cannot be reached, then answers nothing.
pub fn unreachable(installation: &Installation) -> Result<Outcome> {
    let Some(bucket) = Bucket::new()? else { return Ok(without_server()) };
    let mut bed = cold_bed(installation, "unreachable", &bucket, &["t"])?;
    forget_pages(&mut bed)?;
    let postmaster = bed.cluster.postmaster_pid();
    let mut client = bed.connect()?;
    bucket.link.set(Way::Cut);
    for statement in ["SELECT sum(length(pad)) FROM t", "SELECT pad FROM t WHERE id = 1", "DELETE FROM t WHERE id = 1"] {
        refused(&mut client, statement, "58030", &["archive", "segment"])?;
    }
    bed.check_table(&mut client, "hot")?;
    let row = client.query_one("SELECT status FROM kalam.storage_check('archive')", &[])?;
    ensure!(row.get::<_, &str>(0) == "unreachable", "a cut storage is {}", row.get::<_, &str>(0));
    bucket.link.set(Way::Open);
    eventually(|| bed.check_table(&mut client, "t"))?;

    // Patience that a test does not have: what ends the waits is the cancel and the way being opened.
    client
        .batch_execute(r#"SELECT kalam.alter_storage('archive', options => '{"timeout": "5 min", "retry_timeout": "5 min"}')"#)?;
    drop(client);
    forget_pages(&mut bed)?;
    let postmaster_again = bed.cluster.postmaster_pid();
    bucket.link.set(Way::Silent);
    let mut waiting = bed.connect()?;
    let cancel = waiting.cancel_token();
    let waiter = thread::spawn(move || waiting.batch_execute("SELECT sum(length(pad)) FROM t"));
    let mut client = bed.connect()?;
    eventually(|| {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT sum(length(pad))%'";
        ensure!(client.query_one(waits, &[])?.get::<_, i64>(0) == 1, "nobody waits for the storage");
        Ok(())
    })?;
    bed.check_table(&mut client, "hot").context("beside a wait for a silent storage")?;
    client.batch_execute("UPDATE hot SET pad = pad; SELECT kalam.checkpoint()")?;
    cancel.cancel_query(NoTls)?;
    let ended = waiter.join().map_err(|_| anyhow::anyhow!("the waiter panicked"))?;
    let error = ended.err().context("a cancelled wait ended without an error")?;
    ensure!(sql::sqlstate(&error) == Some("57014"), "a cancelled wait ended with {}", sql::describe(&error));
    bucket.link.set(Way::Open);
    eventually(|| bed.check_table(&mut client, "t"))?;
    drop(client);
    ensure!(postmaster.is_some() && postmaster_again.is_some(), "the server has no process");
    bed.check_up(postmaster_again)?;
    Ok(Outcome::Passed(
        "58030 while it is cut, 57014 for a cancelled wait, hot rows go on, all rows there when it is back".into(),
    ))
}

/// Objects are gone or have other bytes.
pub fn damaged(installation: &Installation) -> Result<Outcome> {
    let Some(bucket) = Bucket::new()? else { return Ok(without_server()) };
    let mut bed = cold_bed(installation, "objects", &bucket, &["sound", "gone", "garbled", "short"])?;
    let key = |table: &str| -> Result<String> {
        let mut keys = bucket.keys()?.into_iter().filter(|key| key.contains(&format!("/{table}/")));
        keys.next().map(|key| format!("/{key}")).context("a table has no object")
    };
    bucket.ask("DELETE", &key("gone")?, &[])?;
    let mut garbled = bucket.ask("GET", &key("garbled")?, &[])?;
    // The data pages; the end, where the lengths of everything stand, is left.
    let end = garbled.len() * 3 / 4;
    garbled[4..end].iter_mut().for_each(|byte| *byte = byte.wrapping_mul(31).wrapping_add(7));
    bucket.ask("PUT", &key("garbled")?, &garbled)?;
    let short = bucket.ask("GET", &key("short")?, &[])?;
    bucket.ask("PUT", &key("short")?, &short[..short.len() - 1])?;

    forget_pages(&mut bed)?;
    let postmaster = bed.cluster.postmaster_pid();
    let mut client = bed.connect()?;
    for (table, sqlstate) in [("gone", "58P01"), ("garbled", "XX001"), ("short", "XX001")] {
        for id in [1, 1000] {
            let read = format!("SELECT pad FROM {table} WHERE id = {id}");
            refused(&mut client, &read, sqlstate, &["archive", "segment"]).with_context(|| table.to_owned())?;
        }
        match client.batch_execute(&format!("SELECT sum(length(pad)) FROM {table}")) {
            Ok(()) => anyhow::bail!("{table} was read"),
            Err(error) => check_error(&error, sqlstate, &["archive"])?,
        }
        bed.check_table(&mut client, "sound")?;
        bed.check_table(&mut client, "hot")?;
        client.batch_execute(&format!("DROP TABLE {table}"))?;
    }
    drop(client);
    bed.check_up(postmaster)?;
    Ok(Outcome::Passed("58P01 for a missing object, XX001 for damaged ones, others are whole".into()))
}
