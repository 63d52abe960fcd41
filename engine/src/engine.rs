//! Opens, wires and closes the worker's half: the store under the page cache and the threads between them.
//!
//! Threads: loaders fill frames from the store, the writer brings changed pages to the store and makes checkpoints, the flusher makes
//! them durable. The caller is the worker's main thread, the only one that knows Postgres: it feeds replay, publishes how far the log
//! is written and flushed, and asks for checkpoints. None of the engine's threads waits for it without an end.

mod checkpoint;
mod cold;
mod loader;
mod replay;
mod restore;
mod shared;
pub mod stop_point;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cache::{Cache, Wait, WorkerState, futex, raise};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Lsn, PageKey, StorageId};
use crate::store::{Store, StoreOptions};

use replay::Replay;
use shared::Shared;

/// What the engine is opened with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The directory of the store; its parent exists.
    pub directory: PathBuf,
    /// Options of the store.
    pub store: StoreOptions,
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// The timeline that the cluster writes on.
    pub timeline: u32,
    /// The end of the log; a new store begins here.
    pub log_end: Lsn,
    /// The server's own directory for segments; its parent exists.
    pub segments: PathBuf,
    /// Threads that load pages.
    pub loaders: usize,
    /// Threads that build cold pages.
    pub cold_loaders: usize,
    /// Longest time between two checkpoints while the log grows.
    pub checkpoint_interval: Duration,
    /// Bytes of log after which a checkpoint is made.
    pub checkpoint_log_bytes: u64,
    /// How long pages wait for the log's flush before others get their turn.
    pub flush_patience: Duration,
}

impl EngineConfig {
    /// Usual settings for a cluster's store.
    pub fn new(directory: PathBuf, system_identifier: u64, timeline: u32, log_end: Lsn) -> EngineConfig {
        EngineConfig {
            segments: directory.with_file_name("kalamdb_segments"),
            directory,
            store: StoreOptions::default(),
            system_identifier,
            timeline,
            log_end,
            loaders: 2,
            cold_loaders: 4,
            checkpoint_interval: Duration::from_secs(60),
            checkpoint_log_bytes: 512 << 20,
            flush_patience: Duration::from_secs(1),
        }
    }
}

/// A checkpoint that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The worker's half. Dropped, it stops its threads and leaves the store as a crash would find it, or newer; after a failure the store
/// stays open until the process ends.
pub struct Engine {
    shared: Arc<Shared>,
    /// Whether the cache was made anew with this start: then no process of before is alive.
    crashed: bool,
    replay: Replay,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Opens the store and gives the cache its storages; then the log is to be replayed from [`Engine::replay_from`].
    ///
    /// The cache may have been in use under an earlier worker: what it holds is kept.
    ///
    /// # Errors
    /// `StorageMissing` when the directory is not usable or belongs to another cluster, `Unsupported` when a newer version wrote it,
    /// `Corrupt`, `DiskFull`, `Io` from the store.
    pub fn open(cache: Cache, config: EngineConfig) -> Result<Engine> {
        let header = cache.header();
        header.set_worker_state(WorkerState::Starting);
        cache.begin_generation();
        let automatic_compaction = header.compaction_stopped.load(Ordering::Acquire) == 0;
        cold::files::prepare(&config.segments)?;
        let store = Store::open(&config.directory, &StoreOptions { automatic_compaction, ..config.store.clone() })?;
        let restored = restore::restore(&cache, &store, &config)?;
        let from = restored.mark.lsn;
        let crashed = !restored.warm;
        let shared = Arc::new(Shared::new(cache, store, config, (restored.quarantine, restored.cold), from));
        let mut engine = Engine { shared, crashed, replay: Replay::new(from), threads: Vec::new() };
        let (mark, known) = (restored.mark, restored.known);
        engine.spawn("kalam writer", move |shared| writer::run(shared, mark, known))?;
        engine.spawn("kalam flusher", checkpoint::run)?;
        cache.header().set_worker_state(WorkerState::Recovering);
        Ok(engine)
    }

    /// Everything the log holds before this is in the store.
    pub fn replay_from(&self) -> Lsn {
        self.shared.durable()
    }

    /// Replays one record; records come in the order of the log, each once.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no record, or one of a storage that never was; what ends the `wait` for a free frame; the store's
    /// errors. A record that does not suit its page is no error: the page is put into quarantine.
    pub fn replay(&mut self, end: Lsn, payload: &[u8], wait: &dyn Wait) -> Result<()> {
        self.replay.record(&self.shared, end, payload, wait)
    }

    /// Ends replay at the end of the log: from here on everybody may use the pages.
    ///
    /// # Errors
    /// `Internal` when a thread cannot be started.
    pub fn finish_replay(&mut self, end: Lsn) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        shared.finish_replay(end);
        for _ in 0..shared.config.loaders.max(1) {
            self.spawn("kalam loader", loader::run)?;
        }
        for _ in 0..shared.config.cold_loaders.max(1) {
            self.spawn("kalam builder", cold::build::run)?;
        }
        let crashed = self.crashed;
        self.spawn("kalam quick answers", cold::answers::run_quick)?;
        self.spawn("kalam long answers", move |shared| cold::answers::run_long(shared, crashed))?;
        self.spawn("kalam rewriter", cold::answers::run_rewriter)?;
        shared.cache.header().set_worker_state(WorkerState::Ready);
        self.checkpoint(|| end);
        Ok(())
    }

    /// Publishes the insert position of the log.
    pub fn set_insert_position(&self, position: Lsn) {
        self.shared.cache.header().insert_lsn.fetch_max(position.0, Ordering::SeqCst);
    }

    /// Publishes up to where the log is flushed.
    pub fn set_flushed(&self, position: Lsn) {
        let header = self.shared.cache.header();
        if header.flushed_lsn.fetch_max(position.0, Ordering::SeqCst) < position.0 {
            raise(&header.writer_wake);
        }
    }

    /// Up to where the log is to be flushed, when that is further than it is.
    pub fn wanted_flush(&self) -> Option<Lsn> {
        let header = self.shared.cache.header();
        let wanted = Lsn(header.wanted_flush.load(Ordering::SeqCst));
        (wanted > header.flushed()).then_some(wanted)
    }

    /// Asks for a checkpoint. `insert_position` reads the log's insert position; everything before it will be durable.
    ///
    /// Checkpoints that backends asked for through the header before this call count as asked for with it.
    pub fn checkpoint(&self, insert_position: impl FnOnce() -> Lsn) -> Ticket {
        let header = self.shared.cache.header();
        let wanted = header.checkpoints_wanted.load(Ordering::SeqCst);
        let position = insert_position();
        let ticket = self.shared.checkpoints.ask(position, wanted);
        raise(&header.writer_wake);
        Ticket(ticket)
    }

    /// Whether a checkpoint is complete.
    pub fn is_complete(&self, ticket: Ticket) -> bool {
        self.shared.checkpoints.completed() >= ticket.0
    }

    /// Waits for a checkpoint. `wait` is called every few milliseconds; it serves [`Engine::wanted_flush`], or the wait may last.
    ///
    /// # Errors
    /// What `wait` answers; `Unavailable` when the engine has failed.
    pub fn wait_complete(&self, ticket: Ticket, wait: &dyn Wait) -> Result<()> {
        let header = self.shared.cache.header();
        loop {
            let word = header.state_changed.load(Ordering::SeqCst);
            if self.is_complete(ticket) {
                return Ok(());
            }
            self.shared.check_health()?;
            wait.pause()?;
            futex::wait_for(&header.state_changed, word, Duration::from_millis(5));
        }
    }

    /// Everything the log holds before this is in the store for good.
    pub fn durable(&self) -> Lsn {
        self.shared.durable()
    }

    /// Takes a storage out of the table and has its pages removed. No transaction may need it any more.
    pub fn purge(&self, storage: StorageId) {
        self.shared.cache.storages().remove(storage);
        self.shared.purge_wanted.store(true, Ordering::Release);
        raise(&self.shared.cache.header().writer_wake);
    }

    /// Approximate bytes of a storage on disk. Makes written pages durable first, which takes the time of the device; pages that
    /// are changed in the cache count as they were when last written.
    ///
    /// # Errors
    /// Those of the store.
    pub fn storage_bytes(&self, storage: StorageId) -> Result<u64> {
        self.shared.store.flush()?;
        Ok(self.shared.store.storage_bytes(storage))
    }

    /// Makes a directory with what a crash at this moment would leave of the store: links to its files, nothing that is not flushed.
    ///
    /// # Errors
    /// Those of the store.
    pub fn link_durable(&self, to: &Path) -> Result<()> {
        self.shared.store.link_durable(to)
    }

    /// Rewrites a storage's stored pages: superseded versions go, the strongest compression is used. Takes as long as that takes.
    ///
    /// # Errors
    /// Those of the store.
    pub fn compact(&self, storage: StorageId) -> Result<()> {
        self.shared.store.compact_storage(storage)
    }

    /// Pages that are lost: reading them is an error.
    pub fn quarantine(&self) -> Vec<PageKey> {
        self.shared.quarantine.list()
    }

    /// Why the engine cannot go on; the worker is to end and be started again.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure()
    }

    /// Why the store takes no writes at the moment.
    pub fn last_error(&self) -> Option<String> {
        let header = self.shared.cache.header();
        header.is_store_failing().then(|| header.failure())
    }

    /// Lines for the server's log since the last call.
    pub fn take_messages(&self) -> Vec<String> {
        self.shared.take_messages()
    }

    /// Writes and makes durable everything before `end`, the log's insert position after the last change, and closes the store.
    ///
    /// # Errors
    /// As [`Engine::wait_complete`]; the next start replays the log then.
    pub fn shutdown(self, end: Lsn, wait: &dyn Wait) -> Result<()> {
        self.shared.cache.header().set_worker_state(WorkerState::Stopping);
        while self.durable() < end {
            let ticket = self.checkpoint(|| end);
            self.wait_complete(ticket, wait)?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce(&Shared) + Send + 'static) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || shared.guard(body));
        self.threads.push(thread.map_err(|error| {
            Error::new(ErrorKind::OutOfMemory, format!("could not start the thread \"{name}\"")).with_source(error)
        })?);
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
        let header = self.shared.cache.header();
        if self.shared.failure().is_some() {
            // Closing would wait for a device that may never answer; the process ends, and the log has everything.
            std::mem::forget(Arc::clone(&self.shared));
            header.set_worker_state(WorkerState::Failed);
        } else {
            header.set_worker_state(WorkerState::Absent);
            self.shared.store.stop_background_work();
        }
    }
}
