//! The device is full for a while: nothing is lost, cached pages stay usable, work goes on by itself when there is space.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kalamdb_engine::ErrorKind;
use support::*;

/// The other side, inside a file system of 24 MB: does nothing unless the test below started it.
#[test]
fn process() {
    let Some(assignment) = Assignment::get() else { return };
    // The store alone is on the small device.
    let small = assignment.directory.join("small");
    let ballast = small.join("ballast");
    fs::write(&ballast, vec![1; 12 << 20]).unwrap();
    let log = Arc::new(Log::buffered(&assignment.directory.join("log")));
    let memory = Memory::create(&assignment.directory.join("memory"), 256);
    let cache = memory.cache;
    let engine = Arc::new(recover(cache, config(&small.join("store"), &log), &log).unwrap());
    let serving = Serving::start(&engine, &log);
    let header = cache.header();
    let id = create_storage(&cache, &log, relation(1));
    let mut random = Random::new(assignment.seed);
    let begun = Instant::now();
    while !header.is_store_failing() {
        // The cache may be full in the same moment.
        if let Err(error) = random_change(&cache, &log, id, &mut random, 2000, &Patience::new()) {
            assert_eq!(error.kind(), ErrorKind::DiskFull);
            break;
        }
        if random.below(50) == 0 {
            engine.checkpoint(|| log.position());
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the device does not fill up");
    }
    let text = engine.last_error().unwrap();
    assert!(text.contains("No space left on device"), "{text}");
    let durable = engine.durable();
    // Pages of the cache can still be read and changed.
    let most = cache.storages().at(cache.storages().find_id(id).unwrap()).blocks.load(Ordering::SeqCst);
    let present: Vec<_> = (0..most).filter_map(|block| cache.lookup(kalamdb_engine::ids::PageKey::block(id, block))).collect();
    assert!(present.len() > 100);
    present.iter().for_each(|pin| pin.shared(&Patience::new()).unwrap().page().check().unwrap());
    drop(present);
    // Once no frame can be taken, a reader of another page is told why.
    let error = loop {
        if let Err(error) = random_change(&cache, &log, id, &mut random, 2000, &Patience::new()) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::DiskFull);
    assert!(error.detail().unwrap().contains("No space left") && error.hint().is_some());
    assert_eq!(engine.failure(), None);
    // A flush small enough for what is left may still succeed; what was durable stays so.
    assert!(engine.durable() >= durable);

    fs::remove_file(&ballast).unwrap();
    while header.is_store_failing() {
        assert!(begun.elapsed() < Duration::from_secs(120), "the store does not mend");
        std::thread::sleep(Duration::from_millis(20));
    }
    let ticket = engine.checkpoint(|| log.position());
    engine.wait_complete(ticket, &Patience::new()).unwrap();
    log.flush();
    Model::of(&log).check(&cache, &Patience::new());
    let end = log.position();
    drop(serving);
    let engine = Arc::into_inner(engine).unwrap();
    engine.shutdown(end, &Flushing { cache, log: &log, patience: Patience::new() }).unwrap();
    let memory = Memory::create(&assignment.directory.join("memory2"), 256);
    let engine = recover(memory.cache, config(&small.join("store"), &log), &log).unwrap();
    assert_eq!(engine.replay_from(), end);
    Model::of(&log).check(&memory.cache, &MainThread { engine: Some(&engine), log: &log });
    fs::write(assignment.directory.join("passed"), b"").unwrap();
}

/// Whether the process can give a child its own mounts.
fn can_mount(directory: &Path) -> bool {
    let script = format!("mount -t tmpfs -o size=1m tmpfs {}", directory.display());
    let status = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).status();
    status.is_ok_and(|status| status.success())
}

#[test]
fn a_full_device_loses_nothing() {
    let directory = scratch();
    let small = directory.path().join("small");
    fs::create_dir(&small).unwrap();
    if !can_mount(&small) {
        eprintln!("no right to mount a small file system here: nothing tested");
        return;
    }
    let script = format!(
        "mount -t tmpfs -o size=24m tmpfs {} && exec {} --exact process --nocapture",
        small.display(),
        std::env::current_exe().unwrap().display()
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .env("KALAM_ROLE", "server")
        .env("KALAM_DIRECTORY", directory.path())
        .env("KALAM_SEED", "4")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(directory.path().join("passed").exists());
}
