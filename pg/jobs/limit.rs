//! A limit of time for what a table's owner has defined for it, and jobs run: casts, triggers, expressions of indexes. A job that waited for
//! such code for ever would keep its place among the few jobs, its snapshot and its locks.

use std::cell::OnceCell;
use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kalamdb_engine::cache::monotonic_ms;
use kalamdb_engine::{Error, ErrorKind};
use pgrx::pg_sys;

use super::process::{is_job, terminate_requested};
use crate::error::{OrRaise, catching, raise};
use crate::ffi::compat::{OWN_TIMEOUT, STATEMENT_TIMEOUT};
use crate::ffi::{catalog, plain};
use crate::settings;
use crate::tableam::storage::Storage;

/// Bytes of a table that a command has a second more for: far fewer than it takes.
const BYTES_PER_SECOND: u64 = 1 << 20;

/// Seconds that code has for its end once it was cancelled. Code that catches the cancelling and goes on ends with its process.
const GRACE: u32 = 5;

/// When the code that runs has to be through, on the clock of [`monotonic_ms`].
static DEADLINE: AtomicU64 = AtomicU64::new(u64::MAX);

/// Seconds that have gone by since it should have ended.
static OVERDUE: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// The number of the timeout by which code is watched.
    static WATCH: OnceCell<c_int> = const { OnceCell::new() };
}

/// Called each second while code of an owner runs, as a handler of a signal: it sets flags only.
unsafe extern "C" fn watch() {
    let late = terminate_requested() || monotonic_ms() >= DEADLINE.load(Ordering::Relaxed);
    if late && OVERDUE.fetch_add(1, Ordering::Relaxed) >= GRACE {
        // SAFETY: flags that signal handlers of Postgres set in the same way.
        unsafe {
            pg_sys::ProcDiePending = 1;
            pg_sys::InterruptPending = 1;
            pg_sys::SetLatch(pg_sys::MyLatch);
        }
    }
}

/// The statement's timeout of Postgres, which nothing else sets in a job, and the watch over what it ends.
struct Timer;

impl Timer {
    fn start(limit: Duration) -> Timer {
        let milliseconds = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        DEADLINE.store(monotonic_ms().saturating_add(limit.as_millis() as u64), Ordering::Relaxed);
        OVERDUE.store(0, Ordering::Relaxed);
        // SAFETY: every process with a database has registered the first timeout, and this one the other.
        unsafe {
            plain::enable_timeout_after(STATEMENT_TIMEOUT, milliseconds);
            plain::enable_timeout_every(watch_number(), pg_sys::GetCurrentTimestamp() + 1_000_000, 1000);
        }
        Timer
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: as above. What it said is forgotten.
        unsafe {
            plain::disable_timeout(STATEMENT_TIMEOUT, false);
            plain::disable_timeout(watch_number(), false);
        }
    }
}

fn watch_number() -> c_int {
    // SAFETY: once per process, which has few timeouts of its own.
    WATCH.with(|number| *number.get_or_init(|| unsafe { plain::RegisterTimeout(OWN_TIMEOUT, watch) }))
}

/// Runs a part of a job's work on a table, and ends it when the code of the table's owner takes longer than it may: an ERROR that names the
/// table.
pub fn limited<R>(table: &str, run: impl FnOnce() -> R) -> R {
    run_limited(table, settings::owner_code_limit(), run)
}

/// As [`limited`], for a command that goes through the whole table: it has a second more for each megabyte.
pub fn limited_by_size<R>(relation: pg_sys::Oid, table: &str, run: impl FnOnce() -> R) -> R {
    let bytes = catalog::with_relation(relation, |rel| {
        let storage = Storage::of(rel);
        u64::from(storage.blocks()) * kalamdb_engine::page::PAGE_SIZE as u64
    });
    run_limited(table, settings::owner_code_limit() + Duration::from_secs(bytes.unwrap_or(0) / BYTES_PER_SECOND), run)
}

fn run_limited<R>(table: &str, limit: Duration, run: impl FnOnce() -> R) -> R {
    if !is_job() {
        // Whoever runs a statement can cancel it.
        return run();
    }
    let begun = Instant::now();
    let timer = Timer::start(limit);
    let result = catching(run);
    drop(timer);
    match result {
        Err(error) if error.is_cancelled() && begun.elapsed() >= limit => raise(
            Error::new(ErrorKind::LimitExceeded, format!("code of the owner of table {table} takes too long"))
                .with_detail(format!("A part of a job that calls it was ended after {} s.", limit.as_secs()))
                .with_hint("Look for casts, triggers and expressions of indexes that wait, or raise \"kalam.owner_code_limit\"."),
        ),
        result => result.or_raise(),
    }
}
