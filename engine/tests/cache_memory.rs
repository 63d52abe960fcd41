//! A cache whose frames take memory only where their pages have bytes: how much fits, what grows, what is given back.

mod support;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use kalamdb_engine::ErrorKind;
use kalamdb_engine::cache::{Cache, DirtyFrame, FRAME_UNITS, MEMORY_UNIT, Wait};
use kalamdb_engine::ids::{Lsn, PageKey, StorageId};
use kalamdb_engine::page::{Header, MAX_VERSION, PREFIX, Page, PageKind, build_version};
use support::*;

/// Frames of the tests' cache; there is memory for a quarter of them if they are full.
const FRAMES: u32 = 128;
/// Memory for pages in units.
const UNITS: u64 = FRAMES as u64 / 4 * FRAME_UNITS as u64;

fn key(block: u32) -> PageKey {
    PageKey::block(StorageId(1), block)
}

/// Adds a row to a page, making the page if the store does not have it; false when it has no room.
fn add_row(cache: &Cache, block: u32, len: usize, fill: u8) -> bool {
    let pin = cache.create_page(key(block), &Patience::new()).unwrap();
    let mut guard = pin.exclusive(&Patience::new()).unwrap();
    let mut version = Vec::new();
    let mut body = vec![24, 0];
    body.resize(len, fill);
    build_version(&Header { xmin: 9, infomask2: 1, ..Header::default() }, &body, &mut version);
    if guard.page().kind() == PageKind::Unused {
        guard.mark_dirty(Lsn(1));
        guard.page_mut().init(PageKind::Data, 0);
    }
    if !guard.page().has_room(version.len()) {
        return false;
    }
    guard.mark_dirty(Lsn(1));
    guard.page_mut().add_version(&version, None).unwrap();
    true
}

/// A store that is a map: takes changed pages and answers loads, as the worker does.
#[derive(Default)]
struct Store {
    images: HashMap<PageKey, Vec<u8>>,
}

impl Store {
    fn write_all(&mut self, cache: &Cache) {
        let mut dirty: Vec<DirtyFrame> = Vec::new();
        cache.dirty_frames(&mut dirty);
        for frame in dirty {
            let mut image = Vec::new();
            let copy = cache.copy_for_write(&frame, &mut image).unwrap();
            self.images.insert(frame.key, image);
            copy.stored();
        }
    }

    fn load(&self, cache: &Cache, block: u32) {
        let begun = Patience::new();
        while cache.lookup(key(block)).is_none() {
            cache.prefetch(key(block));
            while let Some(load) = cache.try_next_load() {
                let image = self.images.get(&load.key()).map(Vec::as_slice);
                load.finish(image).unwrap();
            }
            begun.pause().unwrap();
        }
    }
}

/// Bytes of the file behind the memory that the system has pages for.
fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

fn resident(cache: &Cache) -> u64 {
    cache.header().resident_units.load(Ordering::SeqCst)
}

#[test]
fn as_many_small_pages_fit_as_there_are_frames() {
    let directory = scratch();
    let memory = Memory::sparse(&directory.path().join("memory"), FRAMES);
    let cache = memory.cache;
    (0..FRAMES).for_each(|block| assert!(add_row(&cache, block, 1000, 1)));
    assert!((0..FRAMES).all(|block| cache.lookup(key(block)).is_some()));
    // The end of one and the start of the next one have a unit together.
    assert_eq!(resident(&cache), u64::from(FRAMES));
    assert_eq!(cache.header().dirty_units.load(Ordering::SeqCst), u64::from(FRAMES));
    assert_eq!(cache.header().counters.evictions.load(Ordering::SeqCst), 0);
    let mut store = Store::default();
    store.write_all(&cache);
    assert_eq!(cache.header().dirty_units.load(Ordering::SeqCst), 0);
}

#[test]
fn full_pages_take_the_memory_of_small_ones() {
    let directory = scratch();
    let path = directory.path().join("memory");
    let memory = Memory::sparse(&path, FRAMES);
    let cache = memory.cache;
    let empty = allocated(&path);
    let mut store = Store::default();
    for block in 0..FRAMES {
        while add_row(&cache, block, 3000, block as u8) {}
        store.write_all(&cache);
        // A page that grows does not take frames; the next one that needs a frame does.
        assert!(resident(&cache) <= UNITS + u64::from(FRAME_UNITS), "{}", resident(&cache));
    }
    assert!(cache.occupancy().0 <= FRAMES / 4 + 1);
    // What was given back is not the system's word alone.
    let taken = allocated(&path) - empty;
    assert!(taken <= (UNITS + 2 * u64::from(FRAME_UNITS)) * MEMORY_UNIT as u64, "{taken} bytes");
    for block in 0..FRAMES {
        store.load(&cache, block);
        let pin = cache.lookup(key(block)).unwrap();
        let guard = pin.shared(&Patience::new()).unwrap();
        let mut image = Vec::new();
        guard.page().to_compact(&mut image);
        assert_eq!(image, store.images[&key(block)]);
    }
}

#[test]
fn pages_that_grow_where_they_are_drive_others_out() {
    let directory = scratch();
    let memory = Memory::sparse(&directory.path().join("memory"), FRAMES);
    let cache = memory.cache;
    let mut store = Store::default();
    (0..FRAMES).for_each(|block| assert!(add_row(&cache, block, 1000, 1)));
    store.write_all(&cache);
    // All of them are there and stay, whatever the others do: nobody asks for a frame.
    for block in 0..FRAMES / 2 {
        while add_row(&cache, block, 3000, 2) {}
    }
    assert!(cache.memory_is_far_exceeded());
    store.write_all(&cache);
    store.load(&cache, FRAMES);
    assert!(!cache.memory_is_exceeded());
    assert!(cache.occupancy().0 < FRAMES);
}

#[test]
fn pages_without_free_space_fit_as_well() {
    let directory = scratch();
    let memory = Memory::sparse(&directory.path().join("memory"), FRAMES);
    let cache = memory.cache;
    let mut store = Store::default();
    // From a page with room for a unit to one whose row begins behind its line pointer.
    for block in 0..2 * FRAMES {
        let len = MAX_VERSION - PREFIX - 22 - 40 * block as usize % 5000;
        assert!(add_row(&cache, block, len, block as u8));
        store.write_all(&cache);
    }
    for block in (0..2 * FRAMES).rev() {
        store.load(&cache, block);
        let pin = cache.lookup(key(block)).unwrap();
        let mut image = Vec::new();
        pin.shared(&Patience::new()).unwrap().page().to_compact(&mut image);
        assert_eq!(image, store.images[&key(block)]);
        assert!(resident(&cache) <= UNITS + u64::from(FRAME_UNITS));
    }
}

#[test]
fn a_writer_is_told_when_all_memory_is_in_use() {
    let directory = scratch();
    let memory = Memory::sparse(&directory.path().join("memory"), FRAMES);
    let cache = memory.cache;
    (0..FRAMES).for_each(|block| assert!(add_row(&cache, block, 1000, 1)));
    let pins: Vec<_> = (0..FRAMES).map(|block| cache.lookup(key(block)).unwrap()).collect();
    for block in 0..FRAMES / 2 {
        while add_row(&cache, block, 3000, 2) {}
    }
    assert!(cache.memory_is_far_exceeded());
    let error = cache.await_memory(&Patience::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert!(error.hint().is_some());
    drop(pins);
}

#[test]
fn small_pages_run_out_of_frames_where_there_is_memory_for_all() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), FRAMES);
    let cache = memory.cache;
    (0..FRAMES / 2 + 10).for_each(|block| assert!(add_row(&cache, block, 1000, 1)));
    assert!(!cache.is_changed_and_short(50), "there are frames that nobody uses");
    (0..FRAMES).for_each(|block| assert!(add_row(&cache, block, 1000, 1)));
    assert!(cache.is_changed_and_short(50) && !cache.is_changed_and_short(100));
    Store::default().write_all(&cache);
    assert!(!cache.is_changed_and_short(50));
}

#[test]
fn frames_of_all_sizes_hold_what_was_written() {
    let directory = scratch();
    let path = directory.path().join("memory");
    let memory = Memory::sparse(&path, FRAMES);
    let cache = memory.cache;
    let empty = allocated(&path);
    let mut random = Random::new(11);
    let mut store = Store::default();
    let mut rows: HashMap<u32, u32> = HashMap::new();
    for step in 0..20_000u32 {
        // Some pages stay small for a long time, and sometimes one is made anew.
        let block = if random.below(3) == 0 { random.below(20) } else { 20 + random.below(400) } as u32;
        store.load(&cache, block);
        if random.below(50) == 0 {
            let pin = cache.lookup(key(block)).unwrap();
            let mut guard = pin.exclusive(&Patience::new()).unwrap();
            guard.mark_dirty(Lsn(1));
            guard.page_mut().init(PageKind::Data, 0);
            rows.insert(block, 0);
        }
        if add_row(&cache, block, 40 + random.below(900) as usize, step as u8) {
            *rows.entry(block).or_default() += 1;
        }
        if step % 16 == 0 {
            store.write_all(&cache);
        }
        assert!(resident(&cache) <= UNITS + 16 * u64::from(FRAME_UNITS), "{} at {step}", resident(&cache));
    }
    store.write_all(&cache);
    for (block, count) in rows {
        store.load(&cache, block);
        let pin = cache.lookup(key(block)).unwrap();
        let guard = pin.shared(&Patience::new()).unwrap();
        let page: Page<'_> = guard.page();
        page.check().unwrap();
        assert_eq!(page.versions().count() as u32, count);
        assert!(page.bytes()[page.lower()..page.upper()].iter().all(|byte| *byte == 0), "free space is zero");
        // Looking at the free space gave it memory that nobody counts; the next page in the frame does not mind.
    }
    assert!(cache.header().counters.evictions.load(Ordering::SeqCst) > 1000);
    assert!(allocated(&path) > empty);
}
