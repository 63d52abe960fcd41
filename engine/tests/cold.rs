//! Cold blocks: what becomes of their segments' files, and what a damaged, missing or slow file does to whom.

#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges are what is compared")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kalamdb_engine::cache::{Cache, LoadStatistics, WaitForever, load_statistics};
use kalamdb_engine::cold::{Client, CommitMode, CommitSegment, FilePlace, LOCAL};
use kalamdb_engine::engine::{Engine, EngineConfig, stop_point};
use kalamdb_engine::ids::{PageKey, PageNumber, StorageId};
use kalamdb_engine::page::OVERFLOW_PAYLOAD;
use kalamdb_engine::segment::{FileSource, SegmentReader};
use kalamdb_engine::store::{Store, StoreOptions};
use kalamdb_engine::{Error, ErrorKind, Result};
use support::cold::*;
use support::*;

const FRAMES: u32 = 128;

/// A server in one process: its main loop is a thread.
struct Server {
    _serving: Serving,
    engine: Arc<Engine>,
    memory: Memory,
    log: Arc<Log>,
    directory: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        let directory = scratch();
        Server::start_in(directory)
    }

    fn start_in(directory: tempfile::TempDir) -> Server {
        let log = Arc::new(Log::buffered(&directory.path().join("log")));
        let memory = Memory::create(&directory.path().join("memory"), FRAMES);
        let config = EngineConfig { ..config(&directory.path().join("store"), &log) };
        let engine = Arc::new(recover(memory.cache, config, &log).unwrap());
        Server { _serving: Serving::start(&engine, &log), engine, memory, log, directory }
    }

    /// Stops in order and starts again.
    fn restart(self) -> Server {
        Server::start_in(self.stop())
    }

    fn stop(self) -> tempfile::TempDir {
        let Server { _serving, engine, memory, log, directory } = self;
        drop(_serving);
        let end = log.position();
        let wait = Flushing { cache: memory.cache, log: &log, patience: Patience::new() };
        Arc::into_inner(engine).expect("nobody else has the engine").shutdown(end, &wait).unwrap();
        drop(memory);
        directory
    }

    fn segments(&self) -> PathBuf {
        self.directory.path().join("kalamdb_segments")
    }

    fn job(&self) -> Job<'_> {
        let store = self.directory.path().join("store");
        Job { cache: self.memory.cache, log: &self.log, store, segments: self.segments(), wait: &WaitForever }
    }

    /// Makes a storage with `blocks` blocks whose rows all qualify.
    fn table(&self, number: u64, blocks: u32) -> StorageId {
        let id = create_storage(&self.memory.cache, &self.log, relation(number));
        self.fill(id, blocks);
        id
    }

    fn fill(&self, id: StorageId, blocks: u32) {
        for block in 0..blocks {
            insert_block(&self.memory.cache, &self.log, PageKey::block(id, block), 3, &WaitForever).unwrap();
        }
    }

    fn read(&self, id: StorageId, block: u32) -> Result<bool> {
        read_block(&self.memory.cache, id, block)
    }

    /// Drops all pages that nobody uses and that are stored from the cache.
    fn empty_cache(&self) {
        let ticket = self.engine.checkpoint(|| self.log.position());
        self.engine.wait_complete(ticket, &WaitForever).unwrap();
        self.memory.cache.discard(&|_| true);
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(self.segments()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn check(&self) {
        self.log.flush();
        Model::of(&self.log).check(&self.memory.cache, &WaitForever);
    }
}

/// Whether a block is cold, if it can be read.
fn read_block(cache: &Cache, id: StorageId, block: u32) -> Result<bool> {
    let pin = cache.read(PageKey::block(id, block), &WaitForever)?;
    let guard = pin.shared(&WaitForever)?;
    Ok(guard.page().is_cold())
}

#[test]
fn a_flushed_table_is_read_from_its_segment() {
    let server = Server::start();
    let id = server.table(1, 40);
    let committed = server.job().flush_hot(id).unwrap().unwrap();
    assert_eq!((committed.cold, committed.left_out, committed.kept), (vec![0..40], vec![], true));
    assert_eq!(server.job().client().cold_ranges(id, 0).unwrap().entries, [0..40]);
    assert_eq!(server.job().client().cold_ranges(id, 17).unwrap().entries, [17..40]);
    // In the cache they are cold already.
    assert!((0..40).all(|block| server.read(id, block).unwrap()));
    server.empty_cache();
    let before = load_statistics();
    assert!((0..40).all(|block| server.read(id, block).unwrap()));
    let took = load_statistics();
    assert_eq!((took.cold_pages - before.cold_pages, took.segments_opened - before.segments_opened), (40, 1));
    assert!(took.bytes_read > before.bytes_read && took.hot_pages == before.hot_pages);
    server.check();
    let table = server.memory.cache.storages();
    let descriptor = table.at(table.find_id(id).unwrap());
    assert_eq!(descriptor.segments.load(Ordering::SeqCst), 1);
    assert_eq!(descriptor.segment_bytes.load(Ordering::SeqCst), fs::metadata(&server.files()[0]).unwrap().len());
    // Nothing is hot any more, so there is nothing to flush.
    assert!(server.job().flush_hot(id).unwrap().is_none());

    let server = server.restart();
    assert!((0..40).all(|block| server.read(id, block).unwrap()));
    server.check();
}

#[test]
fn a_changed_block_stays_hot_and_goes_with_the_next_flush() {
    let server = Server::start();
    let id = server.table(1, 10);
    server.job().flush_hot(id).unwrap();
    let cache = server.memory.cache;
    delete_row(&cache, &server.log, PageKey::block(id, 4), 2, 900, &WaitForever).unwrap();
    assert!(!server.read(id, 4).unwrap());
    server.check();
    server.empty_cache();
    assert!(!server.read(id, 4).unwrap() && server.read(id, 3).unwrap());
    assert_eq!(server.job().client().cold_ranges(id, 0).unwrap().entries, [0..4, 5..10]);
    assert_eq!(cache.header().counters.blocks_thawed.load(Ordering::SeqCst), 1);
    // The deletion is undone, the next flush takes the block: not written back yet, its old stub lies below.
    delete_row(&cache, &server.log, PageKey::block(id, 4), 2, 0, &WaitForever).unwrap();
    delete_row(&cache, &server.log, PageKey::block(id, 5), 1, 900, &WaitForever).unwrap();
    delete_row(&cache, &server.log, PageKey::block(id, 5), 1, 0, &WaitForever).unwrap();
    assert_eq!(server.job().flush_hot(id).unwrap().unwrap().cold, [4..6]);
    let uses: Vec<(u64, u64)> =
        server.job().client().segment_uses(id).unwrap().iter().map(|used| (used.blocks, used.rows)).collect();
    assert_eq!(uses, [(8, 24), (2, 6)]);
    server.empty_cache();
    server.check();
}

/// A value of several chunks, which do not repeat.
fn long_value(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..2 * OVERFLOW_PAYLOAD + 700).map(|_| random.below(256) as u8).collect()
}

#[test]
fn large_values_go_with_their_block_and_outlive_changes_of_it() {
    let server = Server::start();
    let id = create_storage(&server.memory.cache, &server.log, relation(1));
    let (cache, log) = (server.memory.cache, &server.log);
    for value in 1..4 {
        insert_value(&cache, log, PageKey::block(id, value - 1), value, &long_value(value.into()), &WaitForever).unwrap();
    }
    let values = |server: &Server| -> Vec<u32> {
        server.job().client().value_stubs(id, 0).unwrap().entries.iter().map(|stub| stub.value).collect()
    };
    // The value of the middle block changes while the segment is written: it stays hot, and its block with it.
    let committed = server
        .job()
        .flush_after(id, CommitMode::Flush, &mut is_eligible, &mut || {
            set_references(&cache, log, id, 2, 2, &WaitForever).unwrap();
        })
        .unwrap()
        .unwrap();
    assert_eq!((committed.cold, committed.left_out), (vec![0..1, 2..3], vec![1..2]));
    assert_eq!(values(&server), [1, 3]);
    server.empty_cache();
    server.check();
    // A cold value gets a second reference: its first chunk is hot, the others are not.
    set_references(&cache, log, id, 3, 2, &WaitForever).unwrap();
    server.empty_cache();
    server.check();
    // Its block is changed and flushed again: the value goes into the new segment, with its count.
    delete_row(&cache, log, PageKey::block(id, 2), 1, 900, &WaitForever).unwrap();
    delete_row(&cache, log, PageKey::block(id, 2), 1, 0, &WaitForever).unwrap();
    assert_eq!(server.job().flush_hot(id).unwrap().unwrap().cold, [1..3]);
    assert_eq!(values(&server), [1, 2, 3]);
    server.empty_cache();
    server.check();
    // Both blocks of the first segment go: their row is deleted, its value freed.
    delete_row(&cache, log, PageKey::block(id, 0), 1, 900, &WaitForever).unwrap();
    set_references(&cache, log, id, 1, 0, &WaitForever).unwrap();
    server.empty_cache();
    server.check();
    assert_eq!(server.job().client().delete_unused().unwrap(), 1);
    assert_eq!((values(&server), server.files().len()), (vec![2, 3], 1));
    let server = server.restart();
    server.check();
    server.job().compact(id).unwrap();
    server.job().client().delete_unused().unwrap();
    assert_eq!((values(&server), server.files().len()), (vec![2, 3], 1));
    server.empty_cache();
    server.check();
}

#[test]
fn a_segment_ends_when_the_last_values_that_are_read_from_it_are_hot() {
    let server = Server::start();
    let id = create_storage(&server.memory.cache, &server.log, relation(1));
    let (cache, log) = (server.memory.cache, &server.log);
    insert_value(&cache, log, PageKey::block(id, 0), 1, &long_value(1), &WaitForever).unwrap();
    assert_eq!(server.job().flush_hot(id).unwrap().unwrap().cold, [0..1]);
    let swept = |server: &Server| {
        server.empty_cache();
        server.check();
        server.job().client().delete_unused().unwrap();
        (server.job().client().value_stubs(id, 0).unwrap().entries.len(), server.files().len())
    };
    // The row's block changes, and is not flushed again.
    delete_row(&cache, log, PageKey::block(id, 0), 1, 900, &WaitForever).unwrap();
    delete_row(&cache, log, PageKey::block(id, 0), 1, 0, &WaitForever).unwrap();
    assert_eq!(swept(&server), (1, 1));
    // Most chunks are not all.
    thaw_value(&cache, log, id, 1, 0..2, &WaitForever).unwrap();
    assert_eq!(swept(&server), (1, 1));
    thaw_value(&cache, log, id, 1, 2..3, &WaitForever).unwrap();
    assert_eq!(swept(&server), (0, 0));
    let server = server.restart();
    server.check();
}

/// A table in which value 1 is named by rows of blocks 0, 1 and `far`, twice in block 0.
fn with_shared_value(server: &Server, far: u32) -> StorageId {
    let (cache, log) = (server.memory.cache, &server.log);
    let id = create_storage(&cache, log, relation(1));
    let value = long_value(1);
    insert_value(&cache, log, PageKey::block(id, 0), 1, &value, &WaitForever).unwrap();
    for block in [0, 1, far] {
        insert_pointer(&cache, log, PageKey::block(id, block), 1, value.len(), &WaitForever).unwrap();
    }
    set_references(&cache, log, id, 1, 4, &WaitForever).unwrap();
    for block in 2..far {
        insert_block(&cache, log, PageKey::block(id, block), 1, &WaitForever).unwrap();
    }
    id
}

#[test]
fn a_value_of_several_blocks_goes_with_the_first_and_stays_with_the_last() {
    // Which of the blocks change while the segment is written.
    for changed in [vec![], vec![0], vec![1], vec![70], vec![0, 1], vec![1, 70], vec![0, 1, 70]] {
        let server = Server::start();
        let (cache, log) = (server.memory.cache, &server.log);
        let id = with_shared_value(&server, 70);
        let touch = || {
            for &block in &changed {
                delete_row(&cache, log, PageKey::block(id, block), 1, 900, &WaitForever).unwrap();
                delete_row(&cache, log, PageKey::block(id, block), 1, 0, &WaitForever).unwrap();
            }
        };
        let flushed = server.job().flush_after(id, CommitMode::Flush, &mut is_eligible, &mut || touch()).unwrap().unwrap();
        let cold: Vec<u32> = flushed.cold.iter().cloned().flatten().collect();
        assert!((0..=70).all(|block| cold.contains(&block) != changed.contains(&block)), "{changed:?}: {flushed:?}");
        let stubs = server.job().client().value_stubs(id, 0).unwrap().entries;
        assert_eq!(stubs.len(), usize::from(changed.len() < 3), "{changed:?}");
        server.check();
        server.empty_cache();
        server.check();
        // The others follow, in a segment of their own, which has the value as well.
        if !changed.is_empty() {
            assert_eq!(server.job().flush_hot(id).unwrap().unwrap().left_out, []);
        }
        server.empty_cache();
        server.check();
        server.job().compact(id).unwrap();
        server.job().client().delete_unused().unwrap();
        assert_eq!(server.files().len(), 1, "{changed:?}");
        let server = server.restart();
        server.check();
    }
}

#[test]
fn a_page_that_changes_after_the_copy_is_left_out() {
    let server = Server::start();
    let id = server.table(1, 10);
    let cache = server.memory.cache;
    let mut changed = false;
    let job = server.job();
    // The first page changes after all are copied: the writer asks for the values of the last one at the earliest then.
    let committed = job
        .flush_after(id, CommitMode::Flush, &mut is_eligible, &mut || {
            if !std::mem::replace(&mut changed, true) {
                delete_row(&cache, &server.log, PageKey::block(id, 7), 1, 900, &WaitForever).unwrap();
            }
        })
        .unwrap()
        .unwrap();
    assert_eq!((committed.cold, committed.left_out), (vec![0..7, 8..10], vec![7..8]));
    assert!(!server.read(id, 7).unwrap());
    server.empty_cache();
    server.check();
}

#[test]
fn compaction_puts_segments_together_and_their_files_go() {
    let server = Server::start();
    let id = server.table(1, 6);
    let job = server.job();
    for pair in 0..3u32 {
        let wanted = pair * 2..pair * 2 + 2;
        let mut next = 0..6u32;
        job.flush(id, CommitMode::Flush, true, &mut |_| next.next().is_some_and(|block| wanted.contains(&block))).unwrap();
    }
    assert_eq!(server.files().len(), 3);
    let replaced = job.compact(id).unwrap().unwrap();
    assert_eq!((replaced.cold, replaced.left_out), (vec![0..6], vec![]));
    assert_eq!(server.files().len(), 4);
    assert_eq!(job.client().delete_unused().unwrap(), 3);
    assert_eq!(server.files().len(), 1);
    assert_eq!(job.client().segments(id, 0).unwrap().entries.len(), 1);
    server.empty_cache();
    server.check();
    assert_eq!(server.memory.cache.header().counters.segments_deleted.load(Ordering::SeqCst), 3);
}

/// A page that is read whenever a commit has written the stubs of values, and what came of it.
struct Watched {
    cache: Cache,
    key: PageKey,
    found: Vec<Result<()>>,
}

static WATCHED: Mutex<Option<Watched>> = Mutex::new(None);

/// Whether a rewrite of the store is to wait between its pieces, and whether one does.
static REWRITE_WAITS: AtomicBool = AtomicBool::new(false);
static REWRITE_HAS_BEGUN: AtomicBool = AtomicBool::new(false);

fn hook(name: &'static str) {
    read_watched(name);
    while name == "files of the store rewritten" && REWRITE_WAITS.load(Ordering::SeqCst) {
        REWRITE_HAS_BEGUN.store(true, Ordering::SeqCst);
        std::thread::yield_now();
    }
}

fn read_watched(name: &'static str) {
    if name == "stubs of values written"
        && let Some(Watched { cache, key, found }) = &mut *WATCHED.lock().unwrap()
    {
        cache.discard(&|_| true);
        found.push(cache.read(*key, &WaitForever).map(drop));
    }
}

#[test]
fn a_value_is_found_while_it_moves_to_another_segment() {
    let server = Server::start();
    let cache = server.memory.cache;
    let id = create_storage(&cache, &server.log, relation(1));
    let bytes: Vec<u8> = (0..20_000u32).map(|byte| (byte % 251) as u8).collect();
    insert_value(&cache, &server.log, PageKey::block(id, 0), 1, &bytes, &WaitForever).unwrap();
    server.job().flush_hot(id).unwrap().unwrap();
    server.empty_cache();
    let _ = stop_point::HOOK.set(hook);
    let key = PageKey { storage: id, page: PageNumber::overflow(1, 0) };
    *WATCHED.lock().unwrap() = Some(Watched { cache, key, found: Vec::new() });
    server.job().compact(id).unwrap().unwrap();
    let found = WATCHED.lock().unwrap().take().unwrap().found;
    assert!(!found.is_empty());
    found.into_iter().for_each(|found| found.unwrap());
    server.check();
}

#[test]
fn commits_do_not_wait_for_a_rewrite_of_the_store() {
    let server = Server::start();
    let id = server.table(1, 6);
    server.empty_cache();
    let _ = stop_point::HOOK.set(hook);
    REWRITE_WAITS.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let (cache, store) = (server.memory.cache, server.directory.path().join("store"));
        let rewrite = scope.spawn(move || Client::new(&cache, store, &WaitForever).drop_superseded(vec![id]));
        while !REWRITE_HAS_BEGUN.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let flushed = server.job().flush_hot(id);
        REWRITE_WAITS.store(false, Ordering::SeqCst);
        assert_eq!(flushed.unwrap().unwrap().cold, [0..6]);
        rewrite.join().unwrap().unwrap();
    });
    server.check();
}

#[test]
fn files_are_kept_for_their_retention() {
    let server = Server::start();
    let id = server.table(1, 6);
    server.memory.cache.header().segment_retention.store(1 << 40, Ordering::SeqCst);
    server.job().flush_hot(id).unwrap();
    server.job().compact(id).unwrap();
    assert_eq!(server.job().client().delete_unused().unwrap(), 0);
    assert_eq!(server.files().len(), 2);
    let server = server.restart();
    server.memory.cache.header().segment_retention.store(0, Ordering::SeqCst);
    server.job().client().delete_unused().unwrap();
    assert_eq!(server.files().len(), 1);
    server.check();
}

#[test]
fn the_files_of_a_purged_storage_go() {
    let server = Server::start();
    let (gone, kept) = (server.table(1, 6), server.table(2, 6));
    server.job().flush_hot(gone).unwrap();
    server.job().flush_hot(kept).unwrap();
    server.log.flush();
    server.engine.purge(gone);
    let ticket = server.engine.checkpoint(|| server.log.position());
    server.engine.wait_complete(ticket, &WaitForever).unwrap();
    server.job().client().delete_unused().unwrap();
    assert_eq!(server.files().len(), 1);
    assert_eq!(server.job().client().segments(gone, 0).unwrap().entries.len(), 0);
    assert!((0..6).all(|block| server.read(kept, block).unwrap()));
    // A storage that goes while its segment is written.
    let late = server.table(3, 6);
    let engine = Arc::clone(&server.engine);
    let error = server.job().flush_after(late, CommitMode::Flush, &mut is_eligible, &mut || engine.purge(late)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageMissing);
}

#[test]
fn files_that_nobody_commits_go() {
    let server = Server::start();
    let id = server.table(1, 4);
    let job = server.job();
    // Announced, then not committed; and one that the job gives up itself.
    job.flush(id, CommitMode::Flush, false, &mut is_eligible).unwrap();
    assert_eq!(server.files().len(), 1);
    let path = "segment-1-99-0000000a.parquet".to_owned();
    fs::write(server.segments().join(&path), b"x").unwrap();
    let place = FilePlace { database: 5, location: LOCAL.to_owned(), path };
    job.client().drop_unused_file(place).unwrap();
    assert_eq!(server.files().len(), 1);
    job.flush_hot(id).unwrap();
    let used = job.client().segments(id, 0).unwrap().entries.remove(0).place;
    job.client().drop_unused_file(used).unwrap();
    assert_eq!(server.files().len(), 2);
    // Files of others are left alone, and finished segments that nobody knows: they may be all that is left of a manifest. Old drafts go.
    let hours = std::time::Duration::from_secs(7200);
    for name in ["notes.txt", "segment-1-98-0000000b.parquet", "segment-1-97-0000000c.parquet.tmp"] {
        let file = fs::File::create(server.segments().join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - hours).unwrap();
    }
    let server = server.restart();
    server.job().client().delete_unused().unwrap();
    let left = server.files();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(!left.iter().any(|path| path.extension().is_some_and(|extension| extension == "tmp")));
    assert!((0..4).all(|block| server.read(id, block).unwrap()));
    assert_eq!(server.job().client().location_uses(5, LOCAL).unwrap(), 1);
}

#[test]
fn a_lost_manifest_is_made_anew_from_footers() {
    let server = Server::start();
    let id = server.table(1, 10);
    let cache = server.memory.cache;
    server.job().flush_hot(id).unwrap();
    // Block 4 is flushed a second time, block 5 changes and stays hot.
    for xmax in [900, 0] {
        delete_row(&cache, &server.log, PageKey::block(id, 4), 2, xmax, &WaitForever).unwrap();
    }
    server.job().flush_hot(id).unwrap();
    delete_row(&cache, &server.log, PageKey::block(id, 5), 1, 900, &WaitForever).unwrap();
    server.empty_cache();
    let records = server.job().client().segments(id, 0).unwrap().entries;
    assert_eq!(records.len(), 2);

    let directory = server.stop();
    {
        let store = Store::open(&directory.path().join("store"), &StoreOptions::default()).unwrap();
        let mut stubs = Vec::new();
        store
            .stubs(id, PageNumber(0), &mut |page, _| {
                stubs.push(PageKey { storage: id, page });
                Ok(true)
            })
            .unwrap();
        assert_eq!(stubs.len(), 9);
        let mut batch = store.batch();
        stubs.iter().for_each(|key| batch.remove_stub(*key));
        records.iter().for_each(|record| batch.remove_segment(record));
        batch.write().unwrap();
        store.flush().unwrap();
    }
    let server = Server::start_in(directory);
    assert!(server.read(id, 5).is_ok_and(|cold| !cold));
    assert!(server.job().client().cold_ranges(id, 0).unwrap().entries.is_empty());
    // A look at blocks that do not exist leaves empty pages in memory.
    assert!((0..4).all(|block| server.read(id, block).is_ok_and(|cold| !cold)));
    // The newest first. What is hot or was flushed again later does not come back.
    for (record, blocks) in records.iter().rev().zip([vec![4..5], vec![0..4, 6..10]]) {
        let file = FileSource::open(&server.segments().join(&record.place.path)).unwrap();
        let summary = SegmentReader::open(Arc::new(file)).unwrap().summary().unwrap();
        let (segment, place, mode) = (record.segment, record.place.clone(), CommitMode::Adopt);
        let commit = CommitSegment { storage: id, segment, place, partition: 0, schema_version: 1, mode, summary };
        let committed = server.job().client().commit_segment(commit).unwrap();
        assert_eq!((committed.cold, committed.kept), (blocks, true));
    }
    server.check();
    server.empty_cache();
    server.check();
    // A file that is to be deleted has nothing that is not elsewhere.
    server.memory.cache.header().segment_retention.store(3600, Ordering::SeqCst);
    server.job().compact(id).unwrap();
    server.job().client().delete_unused().unwrap();
    let old = &records[0];
    let file = FileSource::open(&server.segments().join(&old.place.path)).unwrap();
    let summary = SegmentReader::open(Arc::new(file)).unwrap().summary().unwrap();
    let (segment, place, mode) = (old.segment, old.place.clone(), CommitMode::Adopt);
    let commit = CommitSegment { storage: id, segment, place, partition: 0, schema_version: 1, mode, summary };
    assert!(!server.job().client().commit_segment(commit).unwrap().kept);
    server.check();
}

fn copy_files(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_store_older_than_the_files_does_not_give_out_their_numbers() {
    let server = Server::start();
    let id = server.table(1, 10);
    let directory = server.stop();
    let (store, older) = (directory.path().join("store"), directory.path().join("older"));
    copy_files(&store, &older);
    let server = Server::start_in(directory);
    server.job().flush_hot(id).unwrap().unwrap();
    let record = server.job().client().segments(id, 0).unwrap().entries.remove(0);
    let directory = server.stop();
    fs::remove_dir_all(&store).unwrap();
    copy_files(&older, &store);
    {
        // The copy does not have the rows either, and neither has the log any more.
        let store = Store::open(&store, &StoreOptions::default()).unwrap();
        assert!(store.segments().unwrap().is_empty());
        let mut batch = store.batch();
        (0..10).for_each(|block| batch.remove_page(PageKey::block(id, block)));
        batch.write().unwrap();
        store.flush().unwrap();
    }
    let server = Server::start_in(directory);
    // Before anybody looks for what is lost, another flush runs.
    insert_block(&server.memory.cache, &server.log, PageKey::block(id, 10), 3, &WaitForever).unwrap();
    assert_eq!(server.job().flush_hot(id).unwrap().unwrap().cold, [10..11]);
    let file = FileSource::open(&server.segments().join(&record.place.path)).unwrap();
    let summary = SegmentReader::open(Arc::new(file)).unwrap().summary().unwrap();
    let (segment, place, mode) = (record.segment, record.place.clone(), CommitMode::Adopt);
    let commit = CommitSegment { storage: id, segment, place, partition: 0, schema_version: 1, mode, summary };
    assert_eq!(server.job().client().commit_segment(commit).unwrap().cold, [0..10]);
    assert_eq!(server.job().client().segments(id, 0).unwrap().entries.len(), 2);
    server.check();
    server.empty_cache();
    server.check();
}

#[test]
fn a_damaged_or_missing_file_costs_its_rows_only_and_is_named() {
    let server = Server::start();
    let (broken, whole) = (server.table(1, 4), server.table(2, 4));
    server.job().flush_hot(broken).unwrap();
    let file = server.files().remove(0);
    server.job().flush_hot(whole).unwrap();
    server.empty_cache();
    let aside = server.directory.path().join("aside");
    fs::rename(&file, &aside).unwrap();
    let error = server.read(broken, 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageMissing, "{error}");
    let segment = server.job().client().segments(broken, 0).unwrap().entries[0].segment;
    let expected = format!("could not read block 2 of storage {} from segment {segment}", broken.0);
    assert_eq!(error.message(), expected);
    assert!(error.detail().unwrap().contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
    assert!(error.hint().is_some());
    assert!((0..4).all(|block| server.read(whole, block).unwrap()));
    // Cut short.
    fs::write(&file, b"PAR1").unwrap();
    let error = server.read(broken, 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // Back again.
    fs::rename(&aside, &file).unwrap();
    assert!((0..4).all(|block| server.read(broken, block).unwrap()));
    assert!(server.engine.take_messages().iter().any(|line| line.contains(&expected)));
    server.check();
}

#[test]
fn the_path_of_a_users_segment_is_for_the_servers_log() {
    let server = Server::start();
    let id = server.table(1, 4);
    let commit = |hide: bool| {
        let mut commit = server.job().written(id, CommitMode::Flush, &mut is_eligible).unwrap().unwrap();
        commit.partition = 7;
        let path = server.segments().join(&commit.place.path);
        if hide {
            fs::remove_file(&path).unwrap();
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (server.job().client().commit_segment(commit), path, name)
    };
    let is_hidden = |error: Error, name: &str| {
        let told = format!("{} {} {}", error.message(), error.detail().unwrap(), error.hint().unwrap());
        assert!(error.kind() == ErrorKind::StorageMissing && !told.contains("segment-"), "{told}");
        let log = server.engine.take_messages();
        assert!(log.iter().any(|line| line.contains(name) && line.contains("No such file")), "{log:?}");
    };
    let (refused, _, name) = commit(true);
    is_hidden(refused.unwrap_err(), &name);
    let (committed, path, name) = commit(false);
    assert_eq!(committed.unwrap().cold, [0..4]);
    server.empty_cache();
    fs::remove_file(path).unwrap();
    is_hidden(server.read(id, 2).unwrap_err(), &name);
}

#[test]
fn a_slow_file_holds_up_nobody_else() {
    let server = Server::start();
    let (slow, hot) = (server.table(1, 12), server.table(2, 12));
    server.job().flush_hot(slow).unwrap();
    let file = server.files().remove(0);
    server.empty_cache();
    let aside = server.directory.path().join("aside");
    fs::rename(&file, &aside).unwrap();
    // Opening a pipe without a writer waits.
    make_pipe(&file);
    let cache = server.memory.cache;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..12).map(|block| scope.spawn(move || read_block(&cache, slow, block))).collect();
        while server.memory.cache.header().counters.loads.load(Ordering::SeqCst) < 12 {
            std::thread::yield_now();
        }
        for _ in 0..3 {
            assert!((0..12).all(|block| !server.read(hot, block).unwrap()));
            server.empty_cache();
        }
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        // What comes out of the pipe is no segment.
        fs::rename(&file, server.directory.path().join("pipe")).unwrap();
        fs::rename(&aside, &file).unwrap();
        drop(fs::File::options().write(true).open(server.directory.path().join("pipe")).unwrap());
        for reader in readers {
            match reader.join().unwrap() {
                Ok(cold) => assert!(cold),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
            }
        }
    });
    assert!((0..12).all(|block| server.read(slow, block).unwrap()));
    server.check();
}

#[test]
fn a_commit_that_cannot_be_is_refused_and_changes_nothing() {
    let server = Server::start();
    let id = server.table(1, 4);
    let job = server.job();
    let refused = |change: &dyn Fn(&mut kalamdb_engine::cold::CommitSegment)| -> Error {
        let mut commit = job.written(id, CommitMode::Flush, &mut is_eligible).unwrap().unwrap();
        change(&mut commit);
        job.client().commit_segment(commit).unwrap_err()
    };
    let missing = refused(&|commit| commit.place.path = "segment-1-1-00000000.parquet".to_owned());
    assert_eq!(missing.kind(), ErrorKind::StorageMissing, "{missing}");
    assert_eq!(refused(&|commit| commit.place.path = "../x".to_owned()).kind(), ErrorKind::InvalidInput);
    assert_eq!(refused(&|commit| commit.summary.blocks.reverse()).kind(), ErrorKind::InvalidInput);
    assert_eq!(refused(&|commit| commit.summary.blocks[0].segment += 1).kind(), ErrorKind::InvalidInput);
    assert_eq!(refused(&|commit| commit.summary.blocks.clear()).kind(), ErrorKind::InvalidInput);
    assert_eq!(refused(&|commit| commit.summary.bytes += 1).kind(), ErrorKind::Corrupt);
    assert_eq!(refused(&|commit| commit.storage = StorageId(77)).kind(), ErrorKind::Corrupt);
    assert!((0..4).all(|block| !server.read(id, block).unwrap()));
    assert_eq!(job.client().segments(id, 0).unwrap().entries.len(), 0);
    assert_eq!(LoadStatistics { pages: 0, ..load_statistics() }, LoadStatistics::default());
    server.check();
}
