//! A runner: takes jobs from its database's table and runs them, one after the other, until there is none.

use std::sync::atomic::Ordering;

use kalamdb_engine::cache::{JobProcess, raise, wanted};
use pgrx::{PgLogLevel, pg_sys};

use super::kinds::{self, Job};
use super::process::{self, Me, transaction};
use super::{row_count, table};
use crate::error::SqlError;
use crate::ffi::catalog;
use crate::ffi::interrupts::check_for_interrupts;

/// The progress of the running job, where everybody can see it.
pub struct Progress {
    process: &'static JobProcess,
}

impl Progress {
    /// What is to be done in all.
    pub fn total(&mut self, rows: u64, bytes: u64) {
        self.process.progress[1].store(rows, Ordering::Relaxed);
        self.process.progress[3].store(bytes, Ordering::Relaxed);
    }

    /// What has been done so far. Serves interrupts.
    pub fn done(&mut self, rows: u64, bytes: u64) {
        self.process.progress[0].store(rows, Ordering::Relaxed);
        self.process.progress[2].store(bytes, Ordering::Relaxed);
        check_for_interrupts();
    }

    fn counts(&self) -> [u64; 4] {
        std::array::from_fn(|place| self.process.progress[place].load(Ordering::Relaxed))
    }
}

/// Runs jobs until none waits.
pub fn run(me: Me) {
    let board = me.cache.jobs();
    loop {
        process::pause();
        if process::terminate_requested() {
            board.want(me.database, wanted::QUEUED);
            return;
        }
        // Whatever is queued from here on raises the flag again.
        board.take_wanted(me.database, wanted::QUEUED);
        let claimed = transaction(c"KalamDB: taking a job", || {
            // Those that a keeper could not hand over.
            table::queue_new();
            let job = table::claim();
            if let Some(job) = &job {
                begin(me, job);
            }
            // Another runner may take what is left, if one may be started.
            let more = job.is_some() && table::has_claimable();
            let next = if job.is_none() { table::next_retry() } else { None };
            Ok((job, more, next))
        });
        match claimed {
            Ok((Some(job), more, _)) => {
                if more {
                    board.want(me.database, wanted::QUEUED);
                    raise(&me.cache.header().main_wake);
                }
                run_one(me, &job);
            }
            // The board knows the first retry of a database only; the others are noted when that one is served.
            Ok((None, _, next)) => return process::wake_at(me, next),
            Err(error) => {
                me.process.job.store(0, Ordering::Release);
                error.log(PgLogLevel::LOG);
                board.want_at(me.database, process::now() + 1000);
                return;
            }
        }
        if board.others_are_queued(me.database) {
            // Another database's turn; this one's place in the queue is kept.
            board.want(me.database, wanted::QUEUED);
            raise(&me.cache.header().main_wake);
            return;
        }
    }
}

/// Shows the job on the board before its row says that it runs.
fn begin(me: Me, job: &Job) {
    for count in &me.process.progress {
        count.store(0, Ordering::Relaxed);
    }
    me.process.cancelled.store(0, Ordering::Release);
    me.process.begun.store(process::now(), Ordering::Relaxed);
    me.process.job.store(job.id.0, Ordering::Release);
}

fn run_one(me: Me, job: &Job) {
    let board = me.cache.jobs();
    board.tell_job_changed();
    let mut progress = Progress { process: me.process };
    let result = kinds::run(me, job, &mut progress);
    // A cancel that came too late must not hit the statements that say how it ended.
    process::pause();
    let ended = transaction(c"KalamDB: noting the end of a job", || Ok(note_end(me, job, &result, progress.counts())));
    match ended {
        // Once everybody can see it: a runner that comes earlier would find nothing and leave.
        Ok(next) => process::wake_at(me, next),
        Err(error) => {
            // The keeper finds the row.
            error.log(PgLogLevel::WARNING);
            board.want(me.database, wanted::HOUSEKEEPING);
        }
    }
    me.process.job.store(0, Ordering::Release);
    row_count::forget();
    board.tell_job_changed();
}

/// Returns the milliseconds after which the job is to be tried again, if it is.
fn note_end(me: Me, job: &Job, result: &Result<String, SqlError>, counts: [u64; 4]) -> Option<u64> {
    let error = match result {
        Ok(message) => {
            table::complete(job.id, message, counts);
            return None;
        }
        Err(error) => error,
    };
    let reason = if me.process.cancelled.load(Ordering::Acquire) != 0 {
        "cancelled while it ran"
    } else if process::terminate_requested() {
        table::give_back(job.id, "the process that ran the job was asked to leave");
        return Some(0);
    } else if error.is_cancelled() {
        "its process was told to cancel the statement"
    } else if job.relation != pg_sys::InvalidOid && !catalog::relation_exists(job.relation) {
        "the table was dropped"
    } else {
        let next = table::fail(job.id, error, error.may_pass());
        if next.is_none() {
            error.log(PgLogLevel::WARNING);
        }
        return next;
    };
    table::cancel(job.id, reason);
    None
}
