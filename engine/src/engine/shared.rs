//! What the engine's threads share, and how they say that something went wrong.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::EngineConfig;
use super::checkpoint::Checkpoints;
use super::cold::Cold;
use crate::cache::{Cache, Wait, WorkerState, raise};
use crate::error::{Error, ErrorKind, Result, sentence};
use crate::ids::{Lsn, PageKey};
use crate::store::Store;

/// Lines kept for the server's log until the main thread takes them.
const MESSAGES_MAX: usize = 100;

/// The engine's parts and its state of health.
pub(super) struct Shared {
    pub(super) cache: Cache,
    pub(super) store: Store,
    pub(super) config: EngineConfig,
    pub(super) checkpoints: Checkpoints,
    pub(super) quarantine: Quarantine,
    pub(super) cold: Cold,
    /// Storages have left the table and their pages are to be removed.
    pub(super) purge_wanted: AtomicBool,
    /// Up to where the log is replayed; only meaningful while `replaying`.
    replayed: AtomicU64,
    replaying: AtomicBool,
    stopping: AtomicBool,
    failure: Mutex<Option<String>>,
    messages: Mutex<VecDeque<String>>,
}

impl Shared {
    pub(super) fn new(cache: Cache, store: Store, config: EngineConfig, found: (Vec<PageKey>, Cold), from: Lsn) -> Shared {
        let (quarantine, cold) = found;
        Shared {
            cache,
            store,
            config,
            checkpoints: Checkpoints::default(),
            quarantine: Quarantine::new(quarantine),
            cold,
            purge_wanted: AtomicBool::new(false),
            replayed: AtomicU64::new(from.0),
            replaying: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            failure: Mutex::new(None),
            messages: Mutex::new(VecDeque::new()),
        }
    }

    pub(super) fn durable(&self) -> Lsn {
        Lsn(self.cache.header().durable_lsn.load(Ordering::SeqCst))
    }

    /// A position such that every change before it is in a frame or in the store.
    pub(super) fn applied(&self) -> Lsn {
        if self.replaying.load(Ordering::SeqCst) {
            Lsn(self.replayed.load(Ordering::SeqCst))
        } else {
            Lsn(self.cache.header().insert_lsn.load(Ordering::SeqCst))
        }
    }

    pub(super) fn set_replayed(&self, position: Lsn) {
        self.replayed.store(position.0, Ordering::SeqCst);
    }

    /// Ends replay at `end`; the pages it touched can be found from now on.
    pub(super) fn finish_replay(&self, end: Lsn) {
        let header = self.cache.header();
        header.flushed_lsn.fetch_max(end.0, Ordering::SeqCst);
        header.insert_lsn.fetch_max(end.0, Ordering::SeqCst);
        // A worker that starts anew finds the processes that used the mapping under the last one.
        let _ = header.first_lsn.compare_exchange(0, end.0, Ordering::SeqCst, Ordering::SeqCst);
        self.replaying.store(false, Ordering::SeqCst);
        self.cache.end_replay(&|key| self.quarantine.contains(key));
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Asks all threads to leave.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.checkpoints.wake();
        raise(&self.cache.header().writer_wake);
        self.cache.wake_loaders();
        self.cache.wake_answerers();
        self.cold.stop();
    }

    /// Runs a thread's body; a panic in it is the end of the engine, not of the process.
    pub(super) fn guard(&self, body: impl FnOnce(&Shared)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(self))) {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".to_owned());
            let name = std::thread::current().name().unwrap_or("thread").to_owned();
            self.fail(&format!("{name} panicked: {text}"));
        }
    }

    /// Gives up: no thread goes on, the worker is to be started again.
    #[cold]
    pub(super) fn fail(&self, text: &str) {
        lock(&self.failure).get_or_insert_with(|| text.to_owned());
        self.say(text.to_owned());
        let header = self.cache.header();
        header.set_failure(text);
        self.stop();
        header.set_worker_state(WorkerState::Failed);
        raise(&header.main_wake);
    }

    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    pub(super) fn check_health(&self) -> Result<()> {
        match self.failure() {
            Some(text) => Err(Error::new(ErrorKind::Unavailable, "the KalamDB engine has failed")
                .with_detail(sentence(text))
                .with_hint("It is started again by itself; the server's log has more.")),
            None => Ok(()),
        }
    }

    /// Adds a line for the server's log.
    pub(super) fn say(&self, line: String) {
        let mut messages = lock(&self.messages);
        if messages.len() < MESSAGES_MAX && messages.back() != Some(&line) {
            messages.push_back(line);
        }
    }

    pub(super) fn take_messages(&self) -> Vec<String> {
        lock(&self.messages).drain(..).collect()
    }

    /// Publishes that the store takes no writes.
    #[cold]
    pub(super) fn store_failed(&self, error: &Error) {
        self.cache.header().set_store_failing(error);
        self.say(error.to_string());
    }

    /// Publishes that the store takes writes.
    pub(super) fn store_works(&self) {
        if self.cache.header().clear_store_failing() {
            self.say("the store takes writes again".to_owned());
        }
    }
}

/// Waits between attempts at something that failed; gives up where trying again cannot help.
pub(super) struct Backoff {
    failures: u32,
    pause: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(5);
    /// RocksDB mends a full disk by itself; other failures of the device leave it closed for writing until it is opened anew.
    const ATTEMPTS: u32 = 12;

    pub(super) fn new() -> Backoff {
        Backoff { failures: 0, pause: Backoff::FIRST }
    }

    pub(super) fn succeeded(&mut self, shared: &Shared) {
        if self.failures > 0 {
            *self = Backoff::new();
            shared.store_works();
        }
    }

    pub(super) fn failed(&mut self, shared: &Shared, error: &Error) {
        self.failures += 1;
        shared.store_failed(error);
        let compaction_stopped = &shared.cache.header().compaction_stopped;
        if error.kind() == ErrorKind::Corrupt && compaction_stopped.swap(1, Ordering::AcqRel) == 0 {
            // A compaction met a damaged file, which ends all writing until the store is opened anew.
            shared.fail(&format!("compaction stops until the server is restarted: {error}"));
            return;
        }
        if error.kind() != ErrorKind::DiskFull && self.failures >= Backoff::ATTEMPTS {
            shared.fail(&error.to_string());
            return;
        }
        let mut left = self.pause;
        while !left.is_zero() && !shared.is_stopping() {
            let slice = left.min(Duration::from_millis(50));
            std::thread::sleep(slice);
            left -= slice;
        }
        self.pause = (self.pause * 2).min(Backoff::LONGEST);
    }
}

/// Lets a wait go on as the caller's does and while the engine is in health.
pub(super) struct WhileHealthy<'a> {
    pub(super) shared: &'a Shared,
    pub(super) wait: &'a dyn Wait,
}

impl Wait for WhileHealthy<'_> {
    fn pause(&self) -> Result<()> {
        self.shared.check_health()?;
        self.wait.pause()
    }
}

/// The pages that are lost. Most engines have none, so asking costs one load.
pub(super) struct Quarantine {
    any: AtomicBool,
    pages: RwLock<HashSet<PageKey>>,
}

impl Quarantine {
    fn new(pages: Vec<PageKey>) -> Quarantine {
        Quarantine { any: AtomicBool::new(!pages.is_empty()), pages: RwLock::new(pages.into_iter().collect()) }
    }

    pub(super) fn contains(&self, key: PageKey) -> bool {
        self.any.load(Ordering::Acquire) && self.pages.read().unwrap_or_else(PoisonError::into_inner).contains(&key)
    }

    pub(super) fn list(&self) -> Vec<PageKey> {
        let mut pages: Vec<PageKey> = self.pages.read().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        pages.sort_unstable();
        pages
    }

    pub(super) fn insert(&self, key: PageKey) {
        self.pages.write().unwrap_or_else(PoisonError::into_inner).insert(key);
        self.any.store(true, Ordering::Release);
    }

    pub(super) fn retain(&self, keep: impl Fn(PageKey) -> bool) {
        if self.any.load(Ordering::Acquire) {
            self.pages.write().unwrap_or_else(PoisonError::into_inner).retain(|key| keep(*key));
        }
    }
}

/// Locks a mutex whose content is whole at every moment, whatever became of its last holder.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
