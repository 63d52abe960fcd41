//! Frames that go to the worker and come back: each is filled once, and a page that was not stored stays changed.

mod support;

use std::collections::HashSet;

use kalamdb_engine::cache::{Cache, DirtyFrame, WaitForever};
use kalamdb_engine::ids::{Lsn, PageKey, StorageId};
use kalamdb_engine::page::PageKind;
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
