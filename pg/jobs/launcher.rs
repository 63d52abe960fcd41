//! Starts job processes where they are wanted; a part of the engine worker's main thread, which has no database connection.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Cache, DatabaseWish, Duty, JobBoard, raise, wanted};
use pgrx::pg_sys;

use super::{keeper, process};
use crate::error::SqlError;
use crate::ffi::plain;
use crate::settings;
use crate::worker::start;

/// How often all storages are looked at for deadlines, at most.
const DEADLINE_INTERVAL: Duration = Duration::from_millis(250);

/// How often job tables are looked through for rows that are old enough to go.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(3600);

struct Started {
    /// Its place on the board; none once another process has it.
    place: Option<usize>,
    database: u32,
    handle: *mut pg_sys::BackgroundWorkerHandle,
}

/// What the engine worker knows of job processes.
pub struct Launcher {
    cache: &'static Cache,
    started: Vec<Started>,
    last_deadlines: Instant,
    last_check: Instant,
    last_housekeeping: Option<Instant>,
    told_of_full_server: Option<Instant>,
}

impl Launcher {
    /// A launcher for an engine that is about to serve. Reservations of an earlier worker are given up: its processes that
    /// begin nevertheless find their place taken and leave.
    pub fn new(cache: &'static Cache) -> Launcher {
        let now = Instant::now();
        for place in 0..kalamdb_engine::cache::JOB_PROCESSES {
            cache.jobs().give_up_start(place);
        }
        Launcher {
            cache,
            started: Vec::new(),
            last_deadlines: now,
            last_check: now,
            last_housekeeping: None,
            told_of_full_server: None,
        }
    }

    fn board(&self) -> &'static JobBoard {
        self.cache.jobs()
    }

    /// One round: forgets processes that ended, and starts or wakes those that are wanted.
    pub fn step(&mut self) {
        self.forget_ended();
        self.look_at_time();
        for wish in self.board().wishes(process::now()) {
            self.serve(wish);
        }
    }

    /// The configuration was read again: limits that tables do not set themselves may be others.
    pub fn forget_limits(&mut self) {
        let mut databases = BTreeSet::new();
        for descriptor in self.cache.storages().in_use() {
            if descriptor.flush.forget_limits() {
                databases.insert(descriptor.file().database);
            }
        }
        self.want(&databases, wanted::POLICIES);
    }

    fn want(&self, databases: &BTreeSet<u32>, flags: u32) {
        for database in databases {
            self.board().want(*database, flags);
        }
    }

    fn forget_ended(&mut self) {
        let board = self.board();
        self.started.retain(|started| {
            let mut pid = 0;
            // SAFETY: a handle that this process got from Postgres and has not freed.
            let status = unsafe { pg_sys::GetBackgroundWorkerPid(started.handle, &raw mut pid) };
            if status != pg_sys::BgwHandleStatus::BGWH_STOPPED {
                return true;
            }
            // SAFETY: as above; it is not used again.
            unsafe { plain::pfree(started.handle.cast()) };
            if started.place.is_some_and(|place| board.give_up_start(place)) {
                board.start_failed(started.database, process::now());
                let error = SqlError::prerequisite("the job process of the database could not start")
                    .with_hint("See the server's log for the reason.");
                board.refuse_requests(started.database, &keeper::refusal(&error));
            }
            false
        });
    }

    fn look_at_time(&mut self) {
        let board = self.board();
        if self.last_housekeeping.is_none_or(|when| when.elapsed() >= HOUSEKEEPING_INTERVAL) {
            self.last_housekeeping = Some(Instant::now());
            let all = self.cache.storages().in_use().map(|descriptor| descriptor.file().database).collect();
            self.want(&all, wanted::HOUSEKEEPING);
        }
        let check = self.last_check.elapsed() >= settings::flush_check_interval() || board.take_overflow();
        if check {
            self.last_check = Instant::now();
        }
        let rested = self.last_deadlines.elapsed() >= DEADLINE_INTERVAL;
        if check || (rested && board.take_deadline(process::now())) {
            self.last_deadlines = Instant::now();
            self.look_at_storages();
        }
    }

    /// Wants the keepers of all databases with something due, and finds the next deadline.
    fn look_at_storages(&self) {
        let now = process::now();
        let mut databases = BTreeSet::new();
        for descriptor in self.cache.storages().in_use() {
            let state = &descriptor.flush;
            if state.wants_limits() || state.is_due(now) {
                databases.insert(descriptor.file().database);
            } else if let Some(deadline) = state.deadline() {
                self.board().note_deadline(deadline);
            }
        }
        self.want(&databases, wanted::POLICIES);
    }

    fn serve(&mut self, wish: DatabaseWish) {
        let board = self.board();
        if wish.flags & wanted::KEEPER != 0 {
            match board.find_process(wish.oid, Duty::Keeper) {
                Some(place) => raise(&board.process(place).wake),
                None => self.start(wish.oid, Duty::Keeper),
            }
        }
        if wish.flags & wanted::QUEUED != 0 && board.count(Duty::Runner) < settings::max_parallel_jobs() {
            // One at a time: it takes the flag when it begins, and whatever is left raises it again.
            let starting = self
                .started
                .iter()
                .any(|started| started.database == wish.oid && started.place.is_some_and(|place| board.is_starting(place)));
            if !starting {
                self.start(wish.oid, Duty::Runner);
            }
        }
    }

    fn start(&mut self, database: u32, duty: Duty) {
        let board = self.board();
        let Some(place) = board.reserve_process(database, duty) else { return };
        let mut registration = start::job_registration(duty, process::argument(place, database));
        let mut handle: *mut pg_sys::BackgroundWorkerHandle = std::ptr::null_mut();
        // SAFETY: the registration is copied; the handle is allocated in the context set here, which lives as long as the process.
        let registered = unsafe {
            let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let registered = pg_sys::RegisterDynamicBackgroundWorker(&raw mut registration, &raw mut handle);
            pg_sys::MemoryContextSwitchTo(context);
            registered
        };
        if registered {
            // Whoever had the place before has left it, though Postgres may not have said so yet.
            for earlier in self.started.iter_mut().filter(|earlier| earlier.place == Some(place)) {
                earlier.place = None;
            }
            self.started.push(Started { place: Some(place), database, handle });
            return;
        }
        board.give_up_start(place);
        board.hold(database, process::now() + 1000);
        let error = SqlError::configuration_limit("could not start a KalamDB job process")
            .with_detail("All background worker slots are in use.")
            .with_hint("Raise \"max_worker_processes\" and restart the server.");
        if self.told_of_full_server.is_none_or(|when| when.elapsed() > Duration::from_secs(60)) {
            self.told_of_full_server = Some(Instant::now());
            error.log(pgrx::PgLogLevel::WARNING);
        }
        board.refuse_requests(database, &keeper::refusal(&error));
    }
}
