//! Full disks: the data directory's and the store's own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use kalamdb_tests::{Installation, StopMode, sql};
use postgres::Client;

use crate::bed::{Bed, check_error, eventually, noise};
use crate::{Outcome, PATIENCE};

/// Rows of one transaction that fills the disk; about 1 MB.
const BATCH: i64 = 500;

/// Why this process cannot mount anything, if it cannot.
static NO_MOUNTS: OnceLock<String> = OnceLock::new();

/// Gives this process and its children a view of the mounts of their own, which ends with them, however they end.
pub fn enter_mount_namespace() {
    // SAFETY: unshare(2) takes a number and touches no memory; the process has one thread yet.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        let _ = NO_MOUNTS.set(format!("no mount namespace: {}", std::io::Error::last_os_error()));
    } else if let Err(error) = mount(&["--make-rprivate", "/"]) {
        let _ = NO_MOUNTS.set(format!("{error:#}"));
    }
}

fn mount(arguments: &[&str]) -> Result<()> {
    let output = Command::new("mount").args(arguments).output().context("mount")?;
    ensure!(output.status.success(), "mount {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A small file system in memory, over a directory.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts a file system of some MB over a directory, with the directory's owner and rights and what it contains.
    fn over(directory: &Path, megabytes: u32) -> Result<Mount> {
        let metadata = fs::metadata(directory)?;
        let beside = directory.with_extension("moved");
        fs::rename(directory, &beside)?;
        fs::create_dir(directory)?;
        mount(&["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs", &directory.display().to_string()])?;
        let mount = Mount(directory.to_owned());
        chown(directory, Some(metadata.uid()), Some(metadata.gid()))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        let copied = Command::new("cp").arg("-a").arg(beside.join(".")).arg(directory).status()?;
        ensure!(copied.success(), "cp failed");
        fs::remove_dir_all(&beside)?;
        Ok(mount)
    }

    fn resize(&self, megabytes: u32) -> Result<()> {
        mount(&["-o", &format!("remount,size={megabytes}m"), &self.0.display().to_string()])
    }

    fn used_megabytes(&self) -> Result<u32> {
        let output = Command::new("df").args(["-m", "--output=used"]).arg(&self.0).output()?;
        let text = String::from_utf8(output.stdout)?;
        text.lines().nth(1).and_then(|used| used.trim().parse().ok()).with_context(|| format!("df said {text:?}"))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A server may still run in it when a test fails; then the file system goes when the server has.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}

/// What a client that fills the disk knows.
#[derive(Default)]
struct Filling {
    /// Transactions whose commit was acknowledged.
    acknowledged: Vec<i32>,
    /// The one that failed last; it may be there only if its session broke.
    in_doubt: Option<i32>,
    next: i32,
}

impl Filling {
    fn create(client: &mut Client) -> Result<Filling> {
        client.batch_execute("CREATE TABLE filled (batch int, id int, pad bytea, PRIMARY KEY (batch, id))")?;
        Ok(Filling::default())
    }

    fn insert(&mut self, client: &mut Client) -> Result<(), postgres::Error> {
        let batch = self.next;
        self.next += 1;
        let pad = noise(&format!("{batch} * 1000 + i"), 128);
        match client.batch_execute(&format!("INSERT INTO filled SELECT {batch}, i, {pad} FROM generate_series(1, {BATCH}) i")) {
            Ok(()) => self.acknowledged.push(batch),
            Err(error) => {
                if sql::session_is_over(&error) {
                    self.in_doubt = Some(batch);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Inserts until the server refuses.
    fn until_refused(&mut self, client: &mut Client, most: usize) -> Result<postgres::Error> {
        for _ in 0..most {
            if let Err(error) = self.insert(client) {
                return Ok(error);
            }
        }
        bail!("{most} MB fit onto the disk")
    }

    /// Everything that was acknowledged is there, nothing half.
    fn check(&self, client: &mut Client) -> Result<()> {
        let sound = format!("pad = {}", noise("batch * 1000 + id", 128));
        let query = format!("SELECT batch, count(*), count(*) FILTER (WHERE {sound}) FROM filled GROUP BY batch");
        let mut found = BTreeMap::new();
        for row in client.query(&query, &[])? {
            let (batch, rows, sound): (i32, i64, i64) = (row.get(0), row.get(1), row.get(2));
            ensure!(rows == BATCH && sound == BATCH, "transaction {batch} has {rows} rows, {sound} of them sound");
            found.insert(batch, rows);
        }
        for batch in &self.acknowledged {
            ensure!(found.remove(batch).is_some(), "the acknowledged transaction {batch} is lost");
        }
        if let Some(batch) = self.in_doubt {
            found.remove(&batch);
        }
        ensure!(found.is_empty(), "transactions that failed are there: {found:?}");
        Ok(())
    }
}

/// The store's own device is full, the log's is not.
pub fn store_full(installation: &Installation) -> Result<Outcome> {
    if let Some(why) = NO_MOUNTS.get() {
        return Ok(Outcome::Skipped(why.clone()));
    }
    let mut bed = Bed::started(installation, "storefull", &[])?;
    let mut filling = Filling::create(&mut bed.connect()?)?;
    bed.stop()?;
    let mount = bed.mount.insert(Mount::over(&bed.store(), 12)?);
    bed.cluster.start(PATIENCE)?;
    let postmaster = bed.cluster.postmaster_pid();
    let mut client = bed.cluster.connect(crate::bed::DATABASE)?;
    let begun = Instant::now();
    let error = filling.until_refused(&mut client, 200)?;
    let refused_after = begun.elapsed();
    check_error(&error, "53100", &["No space left on device", "Free"])?;
    let accepted = filling.acknowledged.len();
    // The device has 12 MB and the cache 16.
    ensure!(accepted >= 12, "only {accepted} MB were accepted");
    client.batch_execute("CREATE TABLE h (id int) USING heap; INSERT INTO h VALUES (1)")?;
    let error = client.batch_execute("SELECT kalam.checkpoint()").err().context("kalam.checkpoint() with a full store")?;
    check_error(&error, "53100", &["No space left on device", "Free"])?;

    mount.resize(200)?;
    eventually(|| Ok(filling.insert(&mut client)?))?;
    client.batch_execute("SELECT kalam.checkpoint()")?;
    filling.check(&mut client)?;
    drop(client);
    bed.check_up(postmaster)?;
    bed.cluster.stop(StopMode::Immediate, PATIENCE)?;
    bed.start()?;
    filling.check(&mut bed.connect()?).context("after a crash")?;

    // A server whose store is full stops in time and replays the log later.
    let mount = bed.mount.as_ref().context("mounted above")?;
    let mut client = bed.connect()?;
    mount.resize(mount.used_megabytes()? + 1)?;
    for _ in 0..4 {
        filling.insert(&mut client)?;
    }
    drop(client);
    bed.cluster.stop(StopMode::Fast, PATIENCE).context("stopping with a full store")?;
    mount.resize(200)?;
    bed.start()?;
    filling.check(&mut bed.connect()?).context("after a stop with a full store")?;
    bed.stop()?;
    Ok(Outcome::Passed(format!("53100 after {accepted} MB and {refused_after:.0?}, all rows there when there is room")))
}

/// Says how a statement met the full device.
fn check_disk_full(error: &postgres::Error) -> Result<&'static str> {
    match error.as_db_error() {
        // The log could not be extended: Postgres restarts itself, or cannot even do that. It is the same for heap.
        _ if sql::session_is_over(error) => Ok("a crash as the log could not be extended"),
        // An index or the commit log could not be extended; the report is Postgres' own.
        Some(report) if report.message().starts_with("could not extend file") && report.code().code() == "53100" => Ok("53100"),
        _ => check_error(error, "53100", &["No space left on device"]).map(|()| "53100"),
    }
}

/// The device of the whole data directory is full, also for the write-ahead log.
pub fn disk_full(installation: &Installation) -> Result<Outcome> {
    if let Some(why) = NO_MOUNTS.get() {
        return Ok(Outcome::Skipped(why.clone()));
    }
    let mut bed = Bed::new(installation, "diskfull", &[("max_wal_size", "64MB"), ("min_wal_size", "32MB")])?;
    bed.mount = Some(Mount::over(bed.cluster.data(), 300)?);
    bed.start()?;
    bed.cluster.create_database(crate::bed::DATABASE)?;
    let mut client = bed.connect()?;
    let mut filling = Filling::create(&mut client)?;
    let mount = bed.mount.as_ref().context("mounted above")?;
    mount.resize(mount.used_megabytes()? + 60)?;
    let error = filling.until_refused(&mut client, 200)?;
    let mut what = check_disk_full(&error)?;
    for _ in 0..20 {
        match filling.insert(&mut client) {
            Err(error) if !sql::session_is_over(&error) => check_disk_full(&error).map(drop)?,
            Err(error) => what = check_disk_full(&error)?,
            Ok(()) => {}
        }
        if client.is_closed() {
            break;
        }
    }
    drop(client);
    bed.mount.as_ref().context("mounted above")?.resize(600)?;
    bed.start()?;
    let mut client = eventually(|| {
        let mut client = bed.connect()?;
        client.batch_execute("SELECT count(*) FROM filled")?;
        Ok(client)
    })?;
    filling.check(&mut client)?;
    eventually(|| Ok(filling.insert(&mut client)?))?;
    client.batch_execute("SELECT kalam.checkpoint()")?;
    drop(client);
    bed.cluster.stop(StopMode::Immediate, PATIENCE)?;
    bed.start()?;
    filling.check(&mut bed.connect()?).context("after a crash")?;
    bed.stop()?;
    Ok(Outcome::Passed(format!("{what} after {} MB, nothing acknowledged is lost", filling.acknowledged.len())))
}
