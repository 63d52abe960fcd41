//! Frames that go to the worker and come back: each is filled once, and a page that was not stored stays changed.

mod support;

use std::collections::HashSet;
use std::time::Duration;

use kalamdb_engine::cache::{
    Cache, DirtyFrame, ForCooling, LoadFailure, LoadReport, LoadStatistics, WaitForever, load_statistics,
};
use kalamdb_engine::ids::{Lsn, PageKey, StorageId};
use kalamdb_engine::page::PageKind;
use kalamdb_engine::{Error, ErrorKind};
use support::*;

fn key(block: u32) -> PageKey {
    PageKey::block(StorageId(1), block)
}

fn changed_page(cache: &Cache, rec_lsn: u64) -> DirtyFrame {
    let pin = cache.create_page(key(0), &WaitForever).unwrap();
    let mut guard = pin.exclusive(&WaitForever).unwrap();
    guard.mark_dirty(Lsn(rec_lsn));
    guard.page_mut().init(PageKind::Data, 0);
    guard.page_mut().set_lsn(Lsn(rec_lsn + 10));
    DirtyFrame { frame: pin.frame(), key: key(0), rec_lsn: Lsn(rec_lsn) }
}

#[test]
fn a_frame_is_filled_once() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let cache = memory.cache;
    // Replay takes over a page that is queued; its place in the queue stays.
    cache.prefetch(key(0));
    drop(cache.replay_page(key(0), &WaitForever, &mut |found| found(None)).unwrap());
    cache.end_replay(&|_| false);
    assert!(cache.lookup(key(0)).is_some());
    // All frames, that one too, are taken for other pages.
    for round in 0..20 {
        (1..=64).for_each(|block| cache.prefetch(key(block)));
        assert!(round < 19 || cache.lookup(key(0)).is_none());
    }
    let mut loads = Vec::new();
    while let Some(load) = cache.try_next_load() {
        loads.push(load);
    }
    let keys: HashSet<PageKey> = loads.iter().map(|load| load.key()).collect();
    assert_eq!((loads.len(), keys.len()), (64, 64));
    loads.into_iter().for_each(|load| load.finish(None).unwrap());
    (1..=64).for_each(|block| assert!(cache.lookup(key(block)).is_some()));
}

#[test]
fn replayed_pages_are_hidden_until_the_end() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let cache = memory.cache;
    for block in [0, 1] {
        drop(cache.replay_page(key(block), &WaitForever, &mut |found| found(None)).unwrap());
        assert!(cache.lookup(key(block)).is_none());
        // Replay itself finds it and does not load it again.
        drop(cache.replay_page(key(block), &WaitForever, &mut |_| panic!("loaded twice")).unwrap());
    }
    cache.end_replay(&|lost| lost == key(1));
    assert!(cache.lookup(key(0)).is_some());
    assert!(cache.lookup(key(1)).is_none());
    // A worker that ends in the middle leaves nothing of it.
    drop(cache.replay_page(key(2), &WaitForever, &mut |found| found(None)).unwrap());
    cache.begin_generation();
    cache.end_replay(&|_| false);
    assert!(cache.lookup(key(2)).is_none());
}

#[test]
fn a_page_that_was_not_stored_stays_changed() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let cache = memory.cache;
    let dirty = changed_page(&cache, 100);
    let mut image = Vec::new();
    let copy = cache.copy_for_write(&dirty, &mut image).unwrap();
    assert_eq!((copy.page_lsn, copy.rec_lsn), (Lsn(110), Lsn(100)));
    assert_eq!(cache.min_rec_lsn(), None);
    drop(copy);
    assert_eq!(cache.min_rec_lsn(), Some(Lsn(100)));

    // It was changed again while it was on its way: the older position counts.
    let copy = cache.copy_for_write(&dirty, &mut image).unwrap();
    changed_page(&cache, 500);
    assert_eq!(cache.min_rec_lsn(), Some(Lsn(500)));
    drop(copy);
    assert_eq!(cache.min_rec_lsn(), Some(Lsn(100)));

    cache.copy_for_write(&dirty, &mut image).unwrap().stored();
    assert_eq!(cache.min_rec_lsn(), None);
    assert!(cache.copy_for_write(&dirty, &mut image).is_none());
}

#[test]
fn what_a_lost_worker_may_have_taken_counts_as_changed() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let cache = memory.cache;
    let dirty = changed_page(&cache, 100);
    let mut image = Vec::new();
    cache.copy_for_write(&dirty, &mut image).unwrap().stored();
    cache.mark_dirty_since(Lsn(110));
    assert_eq!(cache.min_rec_lsn(), None);
    cache.mark_dirty_since(Lsn(105));
    assert_eq!(cache.min_rec_lsn(), Some(Lsn(105)));
    // A page that is changed already may have older changes there.
    cache.mark_dirty_since(Lsn(50));
    assert_eq!(cache.min_rec_lsn(), Some(Lsn(50)));
}

#[test]
fn a_load_that_failed_says_why_until_it_is_tried_again() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let cache = memory.cache;
    let read = |end: &dyn Fn(kalamdb_engine::cache::Load)| {
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| cache.read(key(3), &Patience::new()).map(drop));
            while !reader.is_finished() {
                if let Some(load) = cache.try_next_load() {
                    end(load);
                }
            }
            reader.join().unwrap()
        })
    };
    let cause = Error::new(ErrorKind::Unavailable, "could not read the moon").with_detail("It is new.").with_hint("Wait.");
    let error = read(&|load| load.fail_with(&cause)).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Unavailable, "could not read the moon"));
    assert_eq!((error.detail().as_deref(), error.hint()), (Some("It is new."), Some("Wait.")));
    let error = read(&|load| load.fail(LoadFailure::Corrupt)).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Corrupt, "invalid page: block 3 of storage 1"));
    // A text longer than there is room for loses its end, between two characters.
    let long = Error::new(ErrorKind::Io, "ü".repeat(3000));
    let error = read(&|load| load.fail_with(&long)).unwrap_err();
    assert!(error.message().chars().count() > 400 && error.message().chars().all(|each| each == 'ü'));
    // More failures than texts are kept.
    for block in 10..60 {
        cache.prefetch(key(block));
        cache.try_next_load().unwrap().fail_with(&cause);
    }
    read(&|load| load.finish(None).unwrap()).unwrap();
}

#[test]
fn what_a_load_took_is_counted_once_by_whoever_uses_the_page_first() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let cache = memory.cache;
    let mut image = Vec::new();
    let mut page = vec![0; kalamdb_engine::page::PAGE_SIZE];
    kalamdb_engine::page::PageMut::new(&mut page).init(PageKind::Data, 0);
    kalamdb_engine::page::Page::new(&page).to_compact(&mut image);
    let before = load_statistics();
    for block in 0..3 {
        cache.prefetch(key(block));
    }
    let report = LoadReport { built: true, segments_opened: 1, bytes_read: 70_000 };
    cache.try_next_load().unwrap().finish(Some(&image)).unwrap();
    cache.try_next_load().unwrap().finish_cold(&image, report).unwrap();
    cache.try_next_load().unwrap().finish(None).unwrap();
    assert_eq!(load_statistics(), before);
    for pages in [3, 6] {
        (0..3).for_each(|block| drop(cache.lookup(key(block)).unwrap()));
        let expected = LoadStatistics { pages, hot_pages: 1, cold_pages: 1, segments_opened: 1, bytes_read: 70_000 };
        assert_eq!(load_statistics(), expected);
    }
    let cold = cache.lookup(key(1)).unwrap();
    assert!(cold.shared(&WaitForever).unwrap().page().is_cold());
    assert_eq!(cache.cold_pages(), [key(1)]);
}

#[test]
fn a_page_that_is_kept_for_cooling_is_nobody_elses() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let cache = memory.cache;
    let changed = changed_page(&cache, 100);
    let Some(ForCooling::Latched(mut guard)) = cache.keep_for_cooling(changed.key, Duration::ZERO) else { panic!("it is there") };
    assert!(cache.keep_for_cooling(changed.key, Duration::ZERO).is_none());
    guard.turn_cold();
    drop(guard);
    assert!(!cache.is_dirty(changed.key));
    assert_eq!(cache.header().dirty_frames.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert_eq!(cache.cold_pages(), [changed.key]);

    let Some(ForCooling::Reserved(reserved)) = cache.keep_for_cooling(key(9), Duration::ZERO) else { panic!("it is not there") };
    assert!(cache.keep_for_cooling(key(9), Duration::ZERO).is_none());
    cache.prefetch(key(9));
    assert!(cache.lookup(key(9)).is_none() && cache.try_next_load().is_none());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| cache.read(key(9), &Patience::new()).map(drop));
        drop(reserved);
        while !reader.is_finished() {
            if let Some(load) = cache.try_next_load() {
                load.finish(None).unwrap();
            }
        }
        reader.join().unwrap().unwrap();
    });
}
