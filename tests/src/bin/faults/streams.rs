//! Streams whose eviction stands still on its way: whoever looks sees the same rows before, meanwhile and afterwards.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kalamdb_tests::Installation;
use kalamdb_tests::process::{Pid, signal};
use postgres::Client;
use postgres::error::SqlState;

use crate::bed::{Bed, eventually};
use crate::{Outcome, PATIENCE};

const ROUNDS: usize = 5;

/// Rows whose eviction takes a while.
const ROWS: usize = 700_000;

/// As the table's option says.
const LIFETIME: Duration = Duration::from_secs(2);

/// The process that runs an eviction.
fn eviction(control: &mut Client) -> Result<Option<Pid>> {
    let query =
        "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.relation = 'event'::regclass AND l.granted
        AND l.mode = 'ShareUpdateExclusiveLock' AND a.backend_type <> 'client backend'";
    Ok(control.query_opt(query, &[])?.map(|row| row.get(0)))
}

fn count(client: &mut Client) -> std::result::Result<i64, postgres::Error> {
    Ok(client.query_one("SELECT count(*) FROM event", &[])?.get(0))
}

/// Stops an eviction where it holds nothing that a look needs; false if it had ended by then.
fn stop_between(control: &mut Client, pid: Pid) -> Result<bool> {
    loop {
        signal(pid, libc::SIGSTOP);
        match count(control) {
            Ok(_) => return Ok(eviction(control)? == Some(pid)),
            Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => signal(pid, libc::SIGCONT),
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Transactions that have begun before an eviction, and look for the first time while it stands still.
pub fn eviction_stopped(installation: &Installation) -> Result<Outcome> {
    let settings = [("kalam.stream_eviction_interval", "1"), ("kalam.cache_size", "256MB")];
    let bed = Bed::started(installation, "eviction_stopped", &settings)?;
    let (mut control, mut reader) = (bed.connect()?, bed.connect()?);
    control.batch_execute("CREATE TABLE event (id int, body text) USING kalam_stream WITH (kalam.ttl = '2 s')")?;
    let (mut looks, mut most) = (0, 0);
    for round in 0..ROUNDS {
        control.batch_execute(&format!("INSERT INTO event SELECT i, 'x' FROM generate_series(1, {ROWS}) i"))?;
        // The rows are younger than their lifetime when it begins, and older when the eviction does.
        reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
        std::thread::sleep(LIFETIME);
        let begun = Instant::now();
        let pid = loop {
            if let Some(pid) = eviction(&mut control)? {
                break pid;
            }
            ensure!(begun.elapsed() < PATIENCE, "there is no eviction");
        };
        std::thread::sleep(Duration::from_millis(5 * round as u64));
        control.batch_execute("SET statement_timeout = '300ms'")?;
        let stopped = stop_between(&mut control, pid);
        let seen = count(&mut reader);
        signal(pid, libc::SIGCONT);
        let (stopped, seen) = (stopped?, seen?);
        eventually(|| {
            ensure!(eviction(&mut control)?.is_none(), "the eviction does not end");
            Ok(())
        })?;
        let again = count(&mut reader)?;
        ensure!(seen == again, "one snapshot saw {seen} rows and then {again}");
        looks += usize::from(stopped);
        most = most.max(seen);
        reader.batch_execute("ROLLBACK")?;
        control.batch_execute("RESET statement_timeout")?;
    }
    ensure!(looks > 0, "no eviction was stopped on its way");
    Ok(Outcome::Passed(format!("{looks} evictions stood still, {most} rows at most were seen throughout")))
}

/// Streams that somebody has locked: neither do other jobs wait for that, nor does anything wait in the queue of the lock.
pub fn streams_locked(installation: &Installation) -> Result<Outcome> {
    let settings = [("kalam.stream_eviction_interval", "1"), ("kalam.max_parallel_jobs", "1")];
    let bed = Bed::started(installation, "streams_locked", &settings)?;
    let (mut locker, mut control) = (bed.connect()?, bed.connect()?);
    control.batch_execute(
        "CREATE TABLE one (id int) USING kalam_stream WITH (kalam.ttl = '1 s');
         CREATE TABLE two (id int) USING kalam_stream WITH (kalam.ttl = '1 s');
         CREATE TABLE other (id int); INSERT INTO other SELECT generate_series(1, 1000);
         INSERT INTO one VALUES (1); INSERT INTO two VALUES (1)",
    )?;
    locker.batch_execute("BEGIN; LOCK TABLE one, two IN SHARE MODE")?;
    // The evictions of both have met the lock.
    std::thread::sleep(LIFETIME + Duration::from_secs(2));
    control.batch_execute("SET statement_timeout = '20s'; SELECT kalam.flush('other', wait => true)")?;
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    ensure!(control.query_one(waiting, &[])?.get::<_, i64>(0) == 0, "somebody waits in the queue of a lock");
    locker.batch_execute("COMMIT")?;
    eventually(|| {
        let query = "SELECT count(*) FROM kalam.jobs WHERE id LIKE 'SE%' AND message = '1 expired rows gone'";
        ensure!(control.query_one(query, &[])?.get::<_, i64>(0) == 2, "rows stay");
        Ok(())
    })?;
    Ok(Outcome::Passed("a flush went past two locked streams, whose rows went later".to_owned()))
}
