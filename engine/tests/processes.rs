//! Several backend processes read and change pages of one small cache while the worker process is lost and started again at its
//! stop points: nobody ever sees an older page than before, and in the end the pages are what the log says.

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Cache, WorkerState};
use kalamdb_engine::engine::stop_point;
use kalamdb_engine::ids::{Lsn, PageKey, StorageId};
use support::cold::Job;
use support::*;

const FRAMES: u32 = 128;
const MOST_BLOCKS: u32 = 150;
const BACKENDS: u64 = 3;
const CHANGES: u64 = 4000;
const FLUSHES: u64 = 25;

/// The other sides: does nothing unless a test below started it.
#[test]
fn process() {
    let Some(assignment) = Assignment::get() else { return };
    match assignment.role.as_str() {
        "worker" => worker(&assignment.directory),
        "job" => job(&assignment.directory),
        _ => backend(&assignment.directory, assignment.seed),
    }
}

/// The worker: a panic at its stop point is the end of it, without a farewell of its store.
fn worker(directory: &Path) {
    let _ = stop_point::HOOK.set(|name| {
        if is_end(name) {
            panic!("stop at \"{name}\"");
        }
    });
    let cache = Memory::attach(&directory.join("memory"));
    let log = Log::shared(&directory.join("log"));
    let engine = recover(cache.cache, config(&directory.join("store"), &log), &log).unwrap();
    while !directory.join("stop").exists() {
        assert_eq!(engine.failure(), None);
        serve(&engine, &log);
        std::thread::sleep(Duration::from_micros(300));
    }
    let wait = Flushing { cache: cache.cache, log: &log, patience: Patience::new() };
    engine.shutdown(log.position(), &wait).unwrap();
}

/// A backend: changes pages, and reads others whose position in the log never goes back.
fn backend(directory: &Path, seed: u64) {
    let memory = Memory::attach(&directory.join("memory"));
    let (cache, log) = (memory.cache, Log::shared(&directory.join("log")));
    let mut random = Random::new(seed);
    let storages: Vec<StorageId> = cache.storages().list().iter().map(|storage| storage.id).collect();
    let mut seen: HashMap<PageKey, Lsn> = HashMap::new();
    for change in 0.. {
        if change >= CHANGES && change % 64 == 0 && directory.join("enough").exists() {
            break;
        }
        let id = storages[random.below(storages.len() as u64) as usize];
        random_change(&cache, &log, id, &mut random, MOST_BLOCKS, &Patience::new()).unwrap();
        let blocks = cache.storages().at(cache.storages().find_id(id).unwrap()).blocks.load(Ordering::SeqCst);
        let key = PageKey::block(id, random.below(u64::from(blocks)) as u32);
        let pin = cache.read(key, &Patience::new()).unwrap();
        let guard = pin.shared(&Patience::new()).unwrap();
        guard.page().check().unwrap();
        let before = seen.insert(key, guard.page().lsn());
        assert!(before <= Some(guard.page().lsn()), "{key:?} went back from {before:?} to {:?}", guard.page().lsn());
    }
}

/// A job: makes blocks cold and puts segments together, as long as the backends run. Says when it has done enough itself: rounds before
/// the backends have written anything do not count.
fn job(directory: &Path) {
    let memory = Memory::attach(&directory.join("memory"));
    let (cache, log, patience) = (memory.cache, Log::shared(&directory.join("log")), Patience::new());
    let store = directory.join("store");
    let job = Job { cache, log: &log, store, segments: directory.join("kalamdb_segments"), wait: &patience };
    let storages: Vec<StorageId> = cache.storages().list().iter().map(|storage| storage.id).collect();
    let mut flushes = 0;
    for round in 0usize.. {
        if directory.join("enough").exists() {
            break;
        }
        let id = storages[round % storages.len()];
        match round % 5 {
            4 => drop(job.compact(id).unwrap()),
            3 => drop(job.client().delete_unused().unwrap()),
            _ => flushes += u64::from(job.flush_hot(id).unwrap().is_some()),
        }
        if flushes == FLUSHES {
            std::fs::write(directory.join("flushed"), b"").unwrap();
        }
    }
}

fn output(directory: &Path, role: &str) -> String {
    std::fs::read_to_string(directory.join(format!("{role}.log"))).unwrap_or_default()
}

fn await_ready(cache: &Cache) {
    let begun = Instant::now();
    while cache.header().worker_state() != WorkerState::Ready {
        assert!(begun.elapsed() < Duration::from_secs(60), "the worker does not start");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Starts a worker again for each stop, then lets the backends end.
fn run_backends(directory: &Path, worker: &mut Process, backends: &mut Vec<Process>, stops: &[(&str, u64)]) {
    let mut lost = 0;
    let begun = Instant::now();
    while !backends.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(200), "{} is not reached", stops[lost].0);
        if lost == stops.len() && directory.join("flushed").exists() && !directory.join("enough").exists() {
            std::fs::write(directory.join("enough"), b"").unwrap();
        }
        backends.retain_mut(|backend| match backend.ended() {
            Some(status) => {
                let mut logs: String = (0..BACKENDS).map(|number| output(directory, &format!("backend{number}"))).collect();
                logs.push_str(&output(directory, "job"));
                assert!(status.success(), "{status}: {logs}");
                false
            }
            None => true,
        });
        if let Some(status) = worker.ended() {
            let log = output(directory, "worker");
            assert!(log.contains(&format!("stop at \"{}\"", stops[lost].0)), "{status}: {log}");
            lost += 1;
            *worker = start_process("worker", directory, 0, stops.get(lost).copied());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn check_processes(stops: &[(&str, u64)]) {
    let directory = scratch();
    let directory = directory.path();
    let memory = Memory::sparse(&directory.join("memory"), FRAMES);
    let log = Log::shared(&directory.join("log"));
    // The first worker is there before the first storage, so it has no stop.
    let mut worker = start_process("worker", directory, 0, stops.first().copied());
    await_ready(&memory.cache);
    for number in 0..2 {
        create_storage(&memory.cache, &log, relation(number));
    }
    let backend = |number| start_process(&format!("backend{number}"), directory, number + 1, None);
    let mut backends: Vec<Process> = (0..BACKENDS).map(backend).collect();
    backends.push(start_process("job", directory, 0, None));
    run_backends(directory, &mut worker, &mut backends, stops);
    Model::of(&log).check(&memory.cache, &Patience::new());
    let counters = &memory.cache.header().counters;
    assert!(counters.evictions.load(Ordering::SeqCst) > 1000);
    let cold = [&counters.blocks_cooled, &counters.blocks_thawed, &counters.cold_loads, &counters.segments_deleted];
    let cold = cold.map(|counter| counter.load(Ordering::SeqCst));
    assert!(cold.iter().all(|count| *count > 0), "cooled, thawed, built and deleted: {cold:?}");

    std::fs::write(directory.join("stop"), b"").unwrap();
    assert!(worker.wait(Duration::from_secs(120)).is_some_and(|status| status.success()), "{}", output(directory, "worker"));
    let memory = Memory::create(&directory.join("memory2"), FRAMES);
    let engine = recover(memory.cache, config(&directory.join("store"), &log), &log).unwrap();
    assert_eq!(engine.replay_from(), log.position());
    Model::of(&log).check(&memory.cache, &MainThread { engine: Some(&engine), log: &log });
}

#[test]
fn backends_share_a_small_cache() {
    check_processes(&[]);
}

#[test]
fn backends_outlive_lost_workers() {
    check_processes(&[
        ("pages written", 3),
        ("storages restored", 1),
        ("record replayed", 10),
        ("page loaded", 40),
        ("checkpoint flushed", 2),
        ("pages copied", 6),
        ("record replayed", 6),
        ("mark written", 2),
        ("checkpoint published", 3),
        ("checkpoint begun", 3),
        ("blocks cooled", 2),
        ("stubs of values written", 2),
        ("segment prepared", 2),
        ("cold page built", 10),
        ("segment committed", 2),
        ("segment retired", 1),
        ("segment files deleted", 1),
    ]);
}
