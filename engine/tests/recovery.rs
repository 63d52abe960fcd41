//! Whatever was changed, written back, checkpointed and lost: after a crash and replay the pages are what the log says.

mod support;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kalamdb_engine::ErrorKind;
use kalamdb_engine::cache::{WaitForever, WorkerState};
use kalamdb_engine::cold::CommitMode;
use kalamdb_engine::engine::{Engine, EngineConfig};
use kalamdb_engine::ids::{Lsn, PageKey, StorageId};
use kalamdb_engine::log::RecordBuilder;
use proptest::prelude::*;
use support::cold::*;
use support::*;

/// A cluster in one process, with a cache much smaller than its pages.
struct Cluster {
    // In the order in which they are to be dropped.
    engine: Option<Engine>,
    memory: Memory,
    log: Log,
    storages: Vec<StorageId>,
    purged: Vec<StorageId>,
    random: Random,
    generation: u32,
    promised: Lsn,
    directory: tempfile::TempDir,
}

const FRAMES: u32 = 64;
const MOST_BLOCKS: u32 = 70;

impl Cluster {
    fn new(seed: u64) -> Cluster {
        let directory = scratch();
        let memory = Memory::create(&directory.path().join("memory0"), FRAMES);
        let log = Log::buffered(&directory.path().join("log"));
        let mut cluster = Cluster {
            engine: None,
            memory,
            log,
            storages: Vec::new(),
            purged: Vec::new(),
            random: Random::new(seed),
            generation: 0,
            promised: Lsn(0),
            directory,
        };
        cluster.start(cluster.store());
        cluster
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join(format!("store{}", self.generation))
    }

    fn start(&mut self, store: PathBuf) {
        let config = EngineConfig { segments: self.segments(), ..config(&store, &self.log) };
        self.engine = Some(recover(self.memory.cache, config, &self.log).unwrap());
        // What was published as durable may be cut off the log.
        assert!(self.engine().durable() >= self.promised, "{} {}", self.engine().durable(), self.promised);
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn wait(&self) -> MainThread<'_> {
        MainThread { engine: self.engine.as_ref(), log: &self.log }
    }

    fn create(&mut self) {
        if self.storages.len() < 4 {
            let file = relation(self.random.below(6));
            // Files get another storage only after the commit that gave up the first one is flushed.
            self.log.flush();
            let id = create_storage(&self.memory.cache, &self.log, file);
            // The files' older storage is superseded.
            let cache = self.memory.cache;
            self.purged.extend(self.storages.iter().filter(|old| cache.storages().find_id(**old).is_none()));
            self.storages.retain(|old| cache.storages().find_id(*old).is_some());
            self.storages.push(id);
        }
    }

    fn change(&mut self) {
        if self.storages.is_empty() {
            return self.create();
        }
        let id = self.storages[self.random.below(self.storages.len() as u64) as usize];
        let wait = MainThread { engine: self.engine.as_ref(), log: &self.log };
        random_change(&self.memory.cache, &self.log, id, &mut self.random, MOST_BLOCKS, &wait).unwrap();
    }

    /// Segments do not change, so that a crash leaves them as they are.
    fn segments(&self) -> PathBuf {
        self.directory.path().join("segments")
    }

    /// One thing that a job does.
    fn cold(&mut self, what: u64) {
        if self.storages.is_empty() {
            return;
        }
        let id = self.storages[self.random.below(self.storages.len() as u64) as usize];
        let wait = self.wait();
        let job = Job { cache: self.memory.cache, log: &self.log, store: self.store(), segments: self.segments(), wait: &wait };
        match what {
            0 => drop(job.compact(id).unwrap()),
            1 => drop(job.flush(id, CommitMode::Flush, false, &mut is_eligible).unwrap()),
            2 => drop(job.client().delete_unused().unwrap()),
            _ => drop(job.flush_hot(id).unwrap()),
        }
    }

    fn checkpoint(&self) {
        let ticket = self.engine().checkpoint(|| self.log.position());
        self.engine().wait_complete(ticket, &self.wait()).unwrap();
        assert_eq!(self.engine().last_error(), None);
    }

    /// A checkpoint while nobody flushes the log: pages stay behind.
    fn checkpoint_unserved(&self) {
        let ticket = self.engine().checkpoint(|| self.log.position());
        self.engine().wait_complete(ticket, &Patience::new()).unwrap();
    }

    fn purge(&mut self) {
        if self.storages.len() > 1 {
            let id = self.storages.swap_remove(0);
            self.purged.push(id);
            // A storage goes only after the commit that drops it is flushed.
            self.log.flush();
            self.engine().purge(id);
        }
    }

    /// What the log says, without the storages that nobody can ask for.
    fn model(&self) -> Model {
        let mut model = Model::of(&self.log);
        self.purged.iter().for_each(|id| model.forget(*id));
        model
    }

    /// Loses the memory of everything: cache, write buffers, log that was not flushed.
    fn crash(&mut self) {
        self.take_image();
        self.memory = Memory::create(&self.directory.path().join(format!("memory{}", self.generation)), FRAMES);
        self.log.crash();
        self.start(self.store());
        self.after_crash();
    }

    /// Loses the worker; the cache lives on.
    fn lose_worker(&mut self) {
        self.take_image();
        // What backends have inserted is flushed before the new worker reads the log.
        self.log.flush();
        self.start(self.store());
        let model = self.model();
        model.check(&self.memory.cache, &self.wait());
    }

    fn take_image(&mut self) {
        self.generation += 1;
        let engine = self.engine.take().unwrap();
        self.promised = engine.durable();
        engine.link_durable(&self.store()).unwrap();
    }

    fn after_crash(&mut self) {
        // A storage whose creation was lost may still be in the table: no transaction of it can have committed. Or its id is free
        // again, as nothing on disk has it.
        let known = Model::of(&self.log).storages;
        let lost = |id: &StorageId| !known.contains_key(id);
        self.storages.iter().filter(|id| lost(id)).for_each(|id| self.engine().purge(*id));
        self.storages.retain(|id| !lost(id));
        self.purged.retain(|id| !lost(id));
        let model = self.model();
        assert_eq!(self.engine().quarantine(), []);
        model.check(&self.memory.cache, &self.wait());
        for id in self.purged.clone() {
            self.engine().purge(id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn pages_are_what_the_log_says(seed in any::<u64>(), steps in prop::collection::vec(0u8..100, 1..120)) {
        let mut cluster = Cluster::new(seed);
        for step in steps {
            match step {
                0..3 => cluster.crash(),
                3..6 => cluster.lose_worker(),
                6..12 => cluster.checkpoint(),
                12..15 => cluster.create(),
                15..17 => cluster.purge(),
                17..21 => cluster.checkpoint_unserved(),
                21..24 => {
                    cluster.log.flush();
                }
                24..34 => cluster.cold(u64::from(step - 24)),
                _ => (0..1 + step % 16).for_each(|_| cluster.change()),
            }
        }
        cluster.log.flush();
        cluster.cold(9);
        cluster.crash();
        cluster.checkpoint();
        prop_assert!(cluster.engine().durable() >= cluster.log.position());
        cluster.crash();
    }
}

#[test]
fn a_clean_shutdown_leaves_nothing_to_replay() {
    let mut cluster = Cluster::new(11);
    (0..300).for_each(|_| cluster.change());
    let end = cluster.log.position();
    let engine = cluster.engine.take().unwrap();
    let (log, cache) = (&cluster.log, cluster.memory.cache);
    engine.shutdown(end, &Flushing { cache, log, patience: Patience::new() }).unwrap();
    assert_eq!(cache.header().worker_state(), WorkerState::Absent);
    assert_eq!(cluster.memory.cache.header().durable_lsn.load(Ordering::SeqCst), end.0);

    cluster.memory = Memory::create(&cluster.directory.path().join("second"), FRAMES);
    let engine = Engine::open(cluster.memory.cache, config(&cluster.store(), &cluster.log)).unwrap();
    assert_eq!(engine.replay_from(), end);
    let mut engine = engine;
    engine.finish_replay(end).unwrap();
    cluster.engine = Some(engine);
    cluster.model().check(&cluster.memory.cache, &cluster.wait());
}

#[test]
fn a_page_waits_for_its_log() {
    let mut cluster = Cluster::new(5);
    (0..5).for_each(|_| cluster.change());
    let position = cluster.log.position();
    // Nobody serves the wish for a flush.
    let ticket = cluster.engine().checkpoint(|| position);
    let begun = std::time::Instant::now();
    while cluster.engine().wanted_flush() < Some(position) {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
    let header = cluster.memory.cache.header();
    while !cluster.engine().is_complete(ticket) {
        assert!(begun.elapsed() < Duration::from_secs(60), "a checkpoint must not wait for the log for ever");
        std::thread::yield_now();
    }
    assert_eq!(header.counters.writebacks.load(Ordering::SeqCst), 0);
    assert!(cluster.engine().durable() < position);
    assert!(header.dirty_frames.load(Ordering::SeqCst) > 0);
    cluster.checkpoint();
    assert_eq!(cluster.engine().durable(), position);
    assert_eq!(header.dirty_frames.load(Ordering::SeqCst), 0);
}

#[test]
fn a_purged_storage_leaves_the_store() {
    let mut cluster = Cluster::new(17);
    (0..400).for_each(|_| cluster.change());
    cluster.create();
    cluster.checkpoint();
    let id = cluster.storages[0];
    assert!(cluster.engine().storage_bytes(id).unwrap() > 0);
    cluster.purge();
    cluster.checkpoint();
    cluster.engine().compact(id).unwrap();
    assert_eq!(cluster.engine().storage_bytes(id).unwrap(), 0);
    cluster.crash();
    assert_eq!(cluster.engine().storage_bytes(id).unwrap(), 0);
    assert!(cluster.memory.cache.storages().find_id(id).is_none());
}

#[test]
fn a_record_that_does_not_suit_its_page_costs_that_page_only() {
    let mut cluster = Cluster::new(23);
    (0..200).for_each(|_| cluster.change());
    cluster.checkpoint();
    let id = cluster.storages[0];
    let model = cluster.model();
    // A record about a row that the page does not have, and one about a page that was never made.
    let (broken, missing) = (PageKey::block(id, 0), PageKey::block(id, 5000));
    for key in [broken, missing] {
        let mut record = RecordBuilder::new();
        record.page(key).unused(&[290]);
        cluster.log.insert(record.bytes());
    }
    cluster.log.flush();
    cluster.take_image();
    let restart = |cluster: &mut Cluster, name: &str| {
        cluster.memory = Memory::create(&cluster.directory.path().join(name), FRAMES);
        cluster.start(cluster.store());
    };
    restart(&mut cluster, "again");
    assert_eq!(cluster.engine().quarantine(), [broken, missing]);
    assert_eq!(cluster.engine().take_messages().len(), 2);
    for key in [broken, missing] {
        let error = cluster.memory.cache.read(key, &cluster.wait()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    let mut rest = model;
    rest.pages.remove(&broken);
    rest.check(&cluster.memory.cache, &cluster.wait());

    // The next start has no log about it any more and knows it still.
    cluster.checkpoint();
    assert!(cluster.engine().durable() >= cluster.log.position());
    cluster.take_image();
    restart(&mut cluster, "third");
    assert_eq!(cluster.engine().quarantine(), [broken, missing]);
    assert_eq!(cluster.memory.cache.read(broken, &cluster.wait()).err().unwrap().kind(), ErrorKind::Corrupt);

    // A record that makes the page anew ends it.
    let mut record = RecordBuilder::new();
    record.page(broken).init(kalamdb_engine::page::PageKind::Data, 0);
    cluster.log.insert(record.bytes());
    cluster.log.flush();
    cluster.take_image();
    restart(&mut cluster, "fourth");
    assert_eq!(cluster.engine().quarantine(), [missing]);
    cluster.memory.cache.read(broken, &cluster.wait()).unwrap();
}

#[test]
fn a_store_of_another_cluster_is_refused() {
    let mut cluster = Cluster::new(3);
    (0..20).for_each(|_| cluster.change());
    cluster.checkpoint();
    cluster.take_image();
    let mut refused = |change: &dyn Fn(&mut kalamdb_engine::engine::EngineConfig)| {
        cluster.memory = Memory::create(&cluster.directory.path().join("other"), FRAMES);
        let mut config = config(&cluster.store(), &cluster.log);
        change(&mut config);
        let error = Engine::open(cluster.memory.cache, config).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::StorageMissing);
        assert!(error.detail().is_some() && error.hint().is_some());
        error.detail().unwrap()
    };
    assert!(refused(&|config| config.system_identifier += 1).contains("system identifier"));
    assert!(refused(&|config| config.timeline = 2).contains("timeline"));
    assert!(refused(&|config| config.log_end = Lsn(LOG_START)).contains("log ends"));
}

#[test]
fn a_lost_directory_is_refused_while_the_cache_lives() {
    let mut cluster = Cluster::new(3);
    (0..20).for_each(|_| cluster.change());
    cluster.checkpoint();
    drop(cluster.engine.take());
    let empty = cluster.directory.path().join("empty");
    let error = Engine::open(cluster.memory.cache, config(&empty, &cluster.log)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::StorageMissing);
}

#[test]
fn a_new_store_does_not_repeat_the_numbers_of_a_lost_one() {
    let mut cluster = Cluster::new(11);
    let old = create_storage(&cluster.memory.cache, &cluster.log, relation(1));
    cluster.log.flush();
    cluster.engine = None;
    cluster.memory = Memory::create(&cluster.directory.path().join("memory_of_new"), FRAMES);
    cluster.start(cluster.directory.path().join("new"));
    let new = create_storage(&cluster.memory.cache, &cluster.log, relation(2));
    assert!(new > old, "{new:?} after {old:?}");
    cluster.log.flush();
    cluster.engine = None;
    // The old store comes back: it learns of the new storage as of another one.
    cluster.memory = Memory::create(&cluster.directory.path().join("memory_of_old"), FRAMES);
    cluster.start(cluster.store());
    let table = cluster.memory.cache.storages();
    let found = [1, 2].map(|number| table.find(&relation(number)).map(|place| table.at(place).id()));
    assert_eq!(found, [Some(old), Some(new)]);
}

#[test]
fn records_that_cannot_be_are_errors() {
    let mut cluster = Cluster::new(3);
    cluster.change();
    cluster.take_image();
    cluster.memory = Memory::create(&cluster.directory.path().join("again"), FRAMES);
    let mut engine = Engine::open(cluster.memory.cache, config(&cluster.store(), &cluster.log)).unwrap();
    let from = engine.replay_from();
    assert_eq!(engine.replay(from, &[1], &WaitForever).unwrap_err().kind(), ErrorKind::Internal);
    let after = Lsn(from.0 + 100);
    assert_eq!(engine.replay(after, &[77, 1, 2], &WaitForever).unwrap_err().kind(), ErrorKind::Corrupt);
    let mut record = RecordBuilder::new();
    record.page(PageKey::block(StorageId(900_000), 0)).init(kalamdb_engine::page::PageKind::Data, 0);
    assert_eq!(engine.replay(after, record.bytes(), &WaitForever).unwrap_err().kind(), ErrorKind::Corrupt);
}
