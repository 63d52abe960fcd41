//! Where jobs are asked for, started and watched: requests, job processes and databases with something to do, in shared memory.
//!
//! A request is a short text that a session leaves for the worker process of its database, and the answer that it finds in its
//! place. The engine worker starts processes where flags of a database want them; the tables that say what was done are Postgres'.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::futex;
use super::header::raise;
use super::latch::{Latch, WaitForever};

/// Most requests at a time.
pub const JOB_REQUESTS: usize = 32;
/// Most job processes at a time.
pub const JOB_PROCESSES: usize = 48;
/// Most databases that can want something at a time.
pub const JOB_DATABASES: usize = 128;
/// Longest text of a request or an answer, in bytes.
pub const JOB_TEXT: usize = 4096;

/// Flags of a database: what its processes are wanted for.
pub mod wanted {
    /// Requests are posted.
    pub const REQUESTS: u32 = 1;
    /// Flushes are due, or options are to be looked up.
    pub const POLICIES: u32 = 2;
    /// The job table is to be looked through for what was left behind.
    pub const HOUSEKEEPING: u32 = 4;
    /// Jobs are queued.
    pub const QUEUED: u32 = 8;
    /// What the process that keeps the job table serves.
    pub const KEEPER: u32 = REQUESTS | POLICIES | HOUSEKEEPING;
}

/// What a process is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Duty {
    /// It keeps the job table of a database: takes requests, looks at policies.
    Keeper = 1,
    /// It runs jobs.
    Runner = 2,
}

/// The taker of a request that no job process took.
const NO_PLACE: usize = u32::MAX as usize;

const FREE: u32 = 0;
const STARTING: u32 = 1;
const ALIVE: u32 = 2;
const LEAVING: u32 = 3;

const FILLING: u32 = 1;
const POSTED: u32 = 2;
const TAKEN: u32 = 3;
const ANSWERED: u32 = 4;
const ABANDONED: u32 = 5;

/// Milliseconds of a clock that all processes share and that never steps.
pub fn monotonic_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the struct; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// A text in shared memory, written by one and read by another after a change of state in between.
#[repr(C)]
struct Text {
    len: AtomicU32,
    words: [AtomicU32; JOB_TEXT / 4],
}

impl Text {
    /// Keeps as much of the text as fits.
    fn set(&self, text: &str) {
        let mut end = text.len().min(JOB_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        for (word, chunk) in self.words.iter().zip(text.as_bytes()[..end].chunks(4)) {
            let mut bytes = [0; 4];
            bytes[..chunk.len()].copy_from_slice(chunk);
            word.store(u32::from_le_bytes(bytes), Ordering::Relaxed);
        }
        self.len.store(end as u32, Ordering::Relaxed);
    }

    fn get(&self) -> String {
        let len = (self.len.load(Ordering::Relaxed) as usize).min(JOB_TEXT);
        let words = self.words[..len.div_ceil(4)].iter();
        let mut bytes: Vec<u8> = words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        bytes.truncate(len);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[repr(C)]
struct RequestSlot {
    state: AtomicU32,
    database: AtomicU32,
    /// The place of the process that took it, in the list of processes.
    taker: AtomicU32,
    text: Text,
}

impl RequestSlot {
    /// Lets another process take a request that was taken and not answered.
    fn give_back(&self) {
        self.taker.store(NO_PLACE as u32, Ordering::Release);
        if self.state.compare_exchange(TAKEN, POSTED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            let _ = self.state.compare_exchange(ABANDONED, FREE, Ordering::AcqRel, Ordering::Acquire);
        }
    }
}

/// One process that runs jobs or keeps a job table.
#[repr(C, align(64))]
pub struct JobProcess {
    state: AtomicU32,
    duty: AtomicU32,
    database: AtomicU32,
    /// Its process id once it runs.
    pub pid: AtomicU32,
    /// Raised and woken when there is something to do for it.
    pub wake: AtomicU32,
    /// Whether the job it runs is to end; 0 or 1.
    pub cancelled: AtomicU32,
    /// The job it runs; 0 when none.
    pub job: AtomicU64,
    /// Rows done and to do, bytes done and to do; 0 when unknown.
    pub progress: [AtomicU64; 4],
    /// When the job began, in milliseconds of [`monotonic_ms`].
    pub begun: AtomicU64,
}

impl JobProcess {
    /// The database it is connected to.
    pub fn database(&self) -> u32 {
        self.database.load(Ordering::Relaxed)
    }

    /// Whether the process runs.
    pub fn is_alive(&self) -> bool {
        self.state.load(Ordering::Acquire) == ALIVE
    }

    /// Whether the place is in use by a process that is starting or running.
    fn is_used_for(&self, database: u32, duty: Duty) -> bool {
        matches!(self.state.load(Ordering::Acquire), STARTING | ALIVE)
            && self.database() == database
            && self.duty.load(Ordering::Relaxed) == duty as u32
    }
}

#[repr(C)]
struct Database {
    /// OID; 0 when the place is free.
    oid: AtomicU32,
    flags: AtomicU32,
    /// When a job is to be tried again; `u64::MAX` when none is.
    queue_at: AtomicU64,
    /// No process is started before; set after one could not start, and while the database is being dropped.
    hold_until: AtomicU64,
    failures: AtomicU32,
    padding: AtomicU32,
}

/// What the engine worker has to know to start processes for a database.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseWish {
    /// OID of the database.
    pub oid: u32,
    /// The flags of [`wanted`] that are set.
    pub flags: u32,
}

/// The board.
#[repr(C, align(64))]
pub struct JobBoard {
    latch: Latch,
    /// Raised and woken when a job changes its state.
    pub changed: AtomicU32,
    /// When the next flush of any table is due by time, at the earliest; `u64::MAX` when none is known.
    next_deadline: AtomicU64,
    /// Whether databases want something that did not fit into the table; 0 or 1.
    overflow: AtomicU32,
    requests: [RequestSlot; JOB_REQUESTS],
    processes: [JobProcess; JOB_PROCESSES],
    databases: [Database; JOB_DATABASES],
}

/// A request on its way; gives its place back when it is dropped.
pub struct PostedRequest<'a> {
    slot: &'a RequestSlot,
}

impl PostedRequest<'_> {
    /// The answer, once it is there.
    pub fn answer(&self) -> Option<String> {
        (self.slot.state.load(Ordering::Acquire) == ANSWERED).then(|| self.slot.text.get())
    }

    /// Sleeps until something may have changed, at most `timeout`.
    pub fn sleep(&self, timeout: Duration) {
        let seen = self.slot.state.load(Ordering::Acquire);
        if seen != ANSWERED {
            futex::wait_for(&self.slot.state, seen, timeout);
        }
    }
}

impl Drop for PostedRequest<'_> {
    fn drop(&mut self) {
        let state = &self.slot.state;
        let change = |from, to| state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok();
        // Whoever is about to answer an abandoned request frees it. A request goes from posted to taken at any moment, and back
        // when its taker ends: only the one who changes its state out of such a one may free it.
        while !(change(POSTED, FREE) || change(TAKEN, ABANDONED) || change(ANSWERED, FREE)) {
            std::hint::spin_loop();
        }
    }
}

/// A request that a process has taken.
pub struct TakenRequest<'a> {
    slot: &'a RequestSlot,
    /// What is asked for.
    pub text: String,
}

impl TakenRequest<'_> {
    /// Answers it.
    pub fn answer(self, text: &str) {
        self.slot.text.set(text);
        self.slot.taker.store(NO_PLACE as u32, Ordering::Release);
        let state = &self.slot.state;
        if state.compare_exchange(TAKEN, ANSWERED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            state.store(FREE, Ordering::Release);
        }
        futex::wake_all(state);
    }
}

impl JobBoard {
    pub(super) fn format(&self) {
        self.latch.reset();
        self.next_deadline.store(u64::MAX, Ordering::Relaxed);
        for request in &self.requests {
            request.taker.store(NO_PLACE as u32, Ordering::Relaxed);
        }
        for database in &self.databases {
            database.queue_at.store(u64::MAX, Ordering::Relaxed);
        }
    }

    fn latched<R>(&self, run: impl FnOnce() -> R) -> R {
        // A wait that pauses for nothing fails for nothing.
        let held = self.latch.lock_exclusive(&WaitForever).is_ok();
        let result = run();
        if held {
            self.latch.unlock_exclusive();
        }
        result
    }

    // ----- requests -----

    /// Posts a request for the processes of a database; none when all places are taken.
    pub fn post(&self, database: u32, text: &str) -> Option<PostedRequest<'_>> {
        let slot = self
            .requests
            .iter()
            .find(|slot| slot.state.compare_exchange(FREE, FILLING, Ordering::AcqRel, Ordering::Acquire).is_ok())?;
        slot.database.store(database, Ordering::Relaxed);
        slot.text.set(text);
        slot.state.store(POSTED, Ordering::Release);
        Some(PostedRequest { slot })
    }

    /// Takes a request for a database, for the process in a place.
    pub fn take_request(&self, database: u32, taker: usize) -> Option<TakenRequest<'_>> {
        self.requests.iter().find_map(|slot| {
            let is_mine = || slot.database.load(Ordering::Relaxed) == database;
            if !is_mine() || slot.state.compare_exchange(POSTED, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_err() {
                return None;
            }
            slot.taker.store(taker as u32, Ordering::Release);
            if !is_mine() {
                // Another request came into the place since it was looked at.
                slot.give_back();
                return None;
            }
            Some(TakenRequest { slot, text: slot.text.get() })
        })
    }

    fn has_request(&self, database: u32) -> bool {
        self.requests
            .iter()
            .any(|slot| slot.state.load(Ordering::Acquire) == POSTED && slot.database.load(Ordering::Relaxed) == database)
    }

    // ----- databases -----

    /// Notes that a database's processes are wanted; false when the table is full.
    pub fn want(&self, database: u32, flags: u32) -> bool {
        let found = self.with_database(database, |entry| {
            entry.flags.fetch_or(flags, Ordering::AcqRel);
        });
        if found.is_none() {
            self.overflow.store(1, Ordering::Release);
        }
        found.is_some()
    }

    /// Notes when a job of a database is to be tried again.
    pub fn want_at(&self, database: u32, at: u64) {
        self.with_database(database, |entry| {
            entry.queue_at.fetch_min(at, Ordering::AcqRel);
        });
    }

    /// Finds or makes the entry of a database.
    fn with_database<R>(&self, database: u32, run: impl FnOnce(&Database) -> R) -> Option<R> {
        self.latched(|| {
            let known = self.databases.iter().find(|entry| entry.oid.load(Ordering::Relaxed) == database);
            let entry = known.or_else(|| {
                let free = self.databases.iter().find(|entry| {
                    let idle = entry.flags.load(Ordering::Relaxed) == 0 && entry.queue_at.load(Ordering::Relaxed) == u64::MAX;
                    entry.oid.load(Ordering::Relaxed) == 0 || idle
                })?;
                free.oid.store(database, Ordering::Relaxed);
                free.failures.store(0, Ordering::Relaxed);
                free.hold_until.store(0, Ordering::Relaxed);
                Some(free)
            })?;
            Some(run(entry))
        })
    }

    /// Takes flags of a database: they are served from now on.
    pub fn take_wanted(&self, database: u32, mask: u32) -> u32 {
        self.with_database(database, |entry| entry.flags.fetch_and(!mask, Ordering::AcqRel) & mask).unwrap_or(0)
    }

    /// The databases that want something now, held ones left out; jobs whose time has come count as queued.
    pub fn wishes(&self, now: u64) -> Vec<DatabaseWish> {
        self.latched(|| {
            let mut wishes = Vec::new();
            for entry in &self.databases {
                if entry.queue_at.load(Ordering::Acquire) <= now {
                    entry.queue_at.store(u64::MAX, Ordering::Release);
                    entry.flags.fetch_or(wanted::QUEUED, Ordering::AcqRel);
                }
                let (oid, flags) = (entry.oid.load(Ordering::Relaxed), entry.flags.load(Ordering::Acquire));
                if oid != 0 && flags != 0 && entry.hold_until.load(Ordering::Acquire) <= now {
                    wishes.push(DatabaseWish { oid, flags });
                }
            }
            wishes
        })
    }

    /// Whether another database than this has queued jobs.
    pub fn others_are_queued(&self, database: u32) -> bool {
        self.databases.iter().any(|entry| {
            entry.flags.load(Ordering::Acquire) & wanted::QUEUED != 0 && entry.oid.load(Ordering::Relaxed) != database
        })
    }

    /// A process could not start: the next attempt is made later, each time after a longer pause. Returns the pause in milliseconds.
    pub fn start_failed(&self, database: u32, now: u64) -> u64 {
        self.with_database(database, |entry| {
            let failures = entry.failures.fetch_add(1, Ordering::Relaxed).min(8);
            let pause = 1000u64 << failures;
            entry.hold_until.store(now + pause, Ordering::Release);
            pause
        })
        .unwrap_or(0)
    }

    /// Starts no process for a database until a time.
    pub fn hold(&self, database: u32, until: u64) {
        self.with_database(database, |entry| entry.hold_until.store(until, Ordering::Release));
    }

    /// Forgets a database: it is gone.
    pub fn forget_database(&self, database: u32) {
        self.with_database(database, |entry| {
            entry.flags.store(0, Ordering::Release);
            entry.queue_at.store(u64::MAX, Ordering::Release);
            entry.hold_until.store(0, Ordering::Release);
        });
    }

    /// Answers every request for a database that no process has taken.
    pub fn refuse_requests(&self, database: u32, text: &str) {
        while let Some(request) = self.take_request(database, NO_PLACE) {
            request.answer(text);
        }
    }

    /// Whether databases want something that was not noted; asks once.
    pub fn take_overflow(&self) -> bool {
        self.overflow.swap(0, Ordering::AcqRel) != 0
    }

    // ----- deadlines -----

    /// Makes sure that storages are looked at by then.
    pub fn note_deadline(&self, at: u64) {
        self.next_deadline.fetch_min(at, Ordering::AcqRel);
    }

    /// Whether the next deadline has come; then it is for the caller to look at all storages and note the next one.
    pub fn take_deadline(&self, now: u64) -> bool {
        let deadline = self.next_deadline.load(Ordering::Acquire);
        deadline <= now && self.next_deadline.compare_exchange(deadline, u64::MAX, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    // ----- processes -----

    /// Reserves a place for a process about to be started; none when all are in use.
    pub fn reserve_process(&self, database: u32, duty: Duty) -> Option<usize> {
        self.latched(|| {
            let place = self.processes.iter().position(|process| process.state.load(Ordering::Relaxed) == FREE)?;
            let process = &self.processes[place];
            process.duty.store(duty as u32, Ordering::Relaxed);
            process.database.store(database, Ordering::Relaxed);
            process.pid.store(0, Ordering::Relaxed);
            process.job.store(0, Ordering::Relaxed);
            process.cancelled.store(0, Ordering::Relaxed);
            process.state.store(STARTING, Ordering::Release);
            Some(place)
        })
    }

    /// The process in a place.
    pub fn process(&self, place: usize) -> &JobProcess {
        &self.processes[place % JOB_PROCESSES]
    }

    /// The duty of the process in a place that was reserved for it; none if it is no longer.
    pub fn process_began(&self, place: usize, database: u32, pid: u32) -> Option<Duty> {
        let process = self.process(place);
        if process.database() != database {
            return None;
        }
        process.state.compare_exchange(STARTING, ALIVE, Ordering::AcqRel, Ordering::Acquire).ok()?;
        process.pid.store(pid, Ordering::Release);
        self.with_database(process.database(), |entry| entry.failures.store(0, Ordering::Relaxed));
        match process.duty.load(Ordering::Relaxed) {
            1 => Some(Duty::Keeper),
            _ => Some(Duty::Runner),
        }
    }

    /// Frees the place of a process that did not come to its work; false if it did.
    pub fn give_up_start(&self, place: usize) -> bool {
        self.process(place).state.compare_exchange(STARTING, FREE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether the process in a place has not come to its work yet.
    pub fn is_starting(&self, place: usize) -> bool {
        self.process(place).state.load(Ordering::Acquire) == STARTING
    }

    /// Lets a keeper leave unless something is wanted of it.
    pub fn leave(&self, place: usize) -> bool {
        let process = self.process(place);
        let database = process.database();
        self.latched(|| {
            let wanted = self.databases.iter().any(|entry| {
                entry.oid.load(Ordering::Relaxed) == database && entry.flags.load(Ordering::Acquire) & wanted::KEEPER != 0
            });
            let stays = wanted || self.has_request(database);
            if !stays {
                process.state.store(LEAVING, Ordering::Release);
            }
            !stays
        })
    }

    /// Frees the place of a process that has ended; returns the job that it ran to its own end. What it took and did not answer
    /// waits for the next one.
    pub fn process_ended(&self, place: usize) -> u64 {
        let process = self.process(place);
        for slot in self.requests.iter().filter(|slot| slot.taker.load(Ordering::Acquire) as usize == place) {
            slot.give_back();
            self.want(process.database(), wanted::REQUESTS);
        }
        let job = process.job.swap(0, Ordering::AcqRel);
        process.pid.store(0, Ordering::Release);
        process.state.store(FREE, Ordering::Release);
        job
    }

    /// The place of a process for a database with a duty that runs or is starting.
    pub fn find_process(&self, database: u32, duty: Duty) -> Option<usize> {
        self.processes.iter().position(|process| process.is_used_for(database, duty))
    }

    /// Number of processes with a duty that run or are starting.
    pub fn count(&self, duty: Duty) -> usize {
        self.processes.iter().filter(|process| process.is_used_for(process.database(), duty)).count()
    }

    /// The process that runs a job.
    pub fn running(&self, job: u64) -> Option<&JobProcess> {
        self.processes.iter().find(|process| process.job.load(Ordering::Acquire) == job && process.is_alive())
    }

    /// All processes that run.
    pub fn alive(&self) -> impl Iterator<Item = &JobProcess> {
        self.processes.iter().filter(|process| process.is_alive())
    }

    /// Whether any process is connected to a database or about to be.
    pub fn is_connected(&self, database: u32) -> bool {
        self.processes.iter().any(|process| process.state.load(Ordering::Acquire) != FREE && process.database() == database)
    }

    /// Wakes those who wait for the end of a job.
    pub fn tell_job_changed(&self) {
        raise(&self.changed);
    }
}
