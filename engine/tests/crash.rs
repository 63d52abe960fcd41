//! A process with engine and backends in it is killed at every stop point and at random moments; what is flushed of its log is in the
//! pages afterwards, nothing else is. Every other round kills a recovery.

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kalamdb_engine::engine::stop_point;
use kalamdb_engine::ids::StorageId;
use support::cold::Job;
use support::*;

const CHANGES: u64 = 2500;
const FRAMES: u32 = 64;
const MOST_BLOCKS: u32 = 60;

/// The other side: does nothing unless a test below started it.
#[test]
fn process() {
    let Some(assignment) = Assignment::get() else { return };
    let _ = stop_point::HOOK.set(|name| {
        if is_end(name) {
            std::process::abort();
        }
    });
    let directory = &assignment.directory;
    let memory = Memory::sparse(&directory.join("memory"), FRAMES);
    let log = Arc::new(Log::buffered(&directory.join("log")));
    log.records(kalamdb_engine::ids::Lsn(0));
    let config = config(&directory.join("store"), &log);
    let engine = Arc::new(recover(memory.cache, config, &log).unwrap());
    let _serving = Serving::start(&engine, &log);
    let (cache, mut random) = (memory.cache, Random::new(assignment.seed));
    let gone = purged(directory);
    let mut storages: Vec<StorageId> = cache.storages().list().iter().map(|storage| storage.id).collect();
    storages.retain(|id| !gone.contains(id));
    while storages.len() < 3 {
        storages.push(create_storage(
            &cache,
            &log,
            relation(cache.header().next_storage_id.load(std::sync::atomic::Ordering::SeqCst)),
        ));
    }
    for step in 0..6 {
        std::thread::scope(|scope| {
            let (log, storages) = (&log, &storages);
            scope.spawn(move || {
                let patience = Patience::new();
                let job = Job {
                    cache,
                    log,
                    store: directory.join("store"),
                    segments: directory.join("kalamdb_segments"),
                    wait: &patience,
                };
                for id in storages {
                    job.flush_hot(*id).unwrap();
                    job.compact(*id).unwrap();
                    job.client().delete_unused().unwrap();
                }
                job.client().drop_superseded(storages.clone()).unwrap();
            });
            for lane in 0..2 {
                let engine = &engine;
                let mut random = Random::new(assignment.seed * 100 + step * 10 + lane);
                scope.spawn(move || {
                    for _ in 0..CHANGES / 12 {
                        let id = storages[random.below(storages.len() as u64) as usize];
                        random_change(&cache, log, id, &mut random, MOST_BLOCKS, &Patience::new()).unwrap();
                        if random.below(300) == 0 {
                            engine.checkpoint(|| log.position());
                        }
                    }
                });
            }
        });
        if random.below(2) == 0 {
            let id = storages.swap_remove(random.below(storages.len() as u64) as usize);
            log.flush();
            let mut list = fs::File::options().create(true).append(true).open(directory.join("purged")).unwrap();
            list.write_all(&id.0.to_le_bytes()).unwrap();
            engine.purge(id);
            storages.push(create_storage(&cache, &log, relation(1000 + id.0)));
        }
    }
    // No farewell: the end is one more crash.
    std::process::abort();
}

fn purged(directory: &Path) -> Vec<StorageId> {
    let list = fs::read(directory.join("purged")).unwrap_or_default();
    list.as_chunks().0.iter().map(|id| StorageId(u64::from_le_bytes(*id))).collect()
}

/// Opens a copy of everything and compares it with what the log says.
fn check(directory: &Path) {
    let copy = scratch();
    let store = copy.path().join("store");
    fs::create_dir(&store).unwrap();
    if directory.join("store").exists() {
        let entries = fs::read_dir(directory.join("store")).unwrap().map(|entry| entry.unwrap());
        for entry in entries.filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), store.join(entry.file_name())).unwrap();
        }
    }
    let segments = copy.path().join("kalamdb_segments");
    fs::create_dir(&segments).unwrap();
    for entry in fs::read_dir(directory.join("kalamdb_segments")).into_iter().flatten() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), segments.join(entry.file_name())).unwrap();
    }
    if directory.join("log").exists() {
        fs::copy(directory.join("log"), copy.path().join("log")).unwrap();
    }
    let log = Log::buffered(&copy.path().join("log"));
    log.records(kalamdb_engine::ids::Lsn(0));
    let mut model = Model::of(&log);
    purged(directory).iter().for_each(|id| model.forget(*id));
    let memory = Memory::create(&copy.path().join("memory"), FRAMES);
    let engine = recover(memory.cache, config(&store, &log), &log).unwrap();
    assert_eq!(engine.quarantine(), []);
    model.check(&memory.cache, &MainThread { engine: Some(&engine), log: &log });
}

fn output(directory: &Path) -> String {
    fs::read_to_string(directory.join("server.log")).unwrap_or_default()
}

#[test]
fn killed_at_every_stop_point() {
    let directory = scratch();
    for (round, name) in stop_point::NAMES.iter().enumerate() {
        for count in [1, 4] {
            // The only stop point that a start passes once.
            let count = if *name == "storages restored" { 1 } else { count };
            let mut child = start_process("server", directory.path(), round as u64 * 7 + count, Some((name, count)));
            let status = child.wait(Duration::from_secs(120)).expect("the process ends");
            assert!(status.code().is_none(), "{name}: {status}: {}", output(directory.path()));
            check(directory.path());
        }
    }
}

#[test]
fn killed_at_random_moments() {
    let directory = scratch();
    let mut random = Random::new(77);
    for round in 0..14 {
        let mut child = start_process("server", directory.path(), round, None);
        let within = Duration::from_millis(random.below(if round % 2 == 0 { 60 } else { 500 }));
        let status = child.wait(within).unwrap_or_else(|| child.kill());
        assert!(status.code().is_none(), "{status}: {}", output(directory.path()));
        check(directory.path());
    }
    assert!(Model::of(&Log::buffered(&directory.path().join("log"))).pages.len() > 20);
}
