//! Cold storage in the worker: which segments there are, and everything that makes blocks cold or reads them.

pub(super) mod answers;
mod backlog;
pub(super) mod build;
mod commit;
pub(super) mod files;
mod readers;
mod retire;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::shared::{Shared, lock};
use crate::cache::Cache;
use crate::cold::{FilePlace, Garbage, SegmentRecord, StoredLocation};
use crate::error::Result;
use crate::ids::StorageId;
use crate::store::Store;

/// The segments of all storages.
fn records(segments: &HashMap<StorageId, Segments>) -> impl Iterator<Item = &Arc<SegmentRecord>> {
    segments.values().flat_map(|segments| segments.list.values())
}

/// The segments of a storage, by number. Tables of many users have as many.
#[derive(Default)]
struct Segments {
    list: BTreeMap<u64, Arc<SegmentRecord>>,
    /// Length of their files.
    bytes: u64,
}

impl Segments {
    fn insert(&mut self, record: SegmentRecord) {
        self.bytes += record.bytes;
        if let Some(old) = self.list.insert(record.segment, Arc::new(record)) {
            self.bytes -= old.bytes;
        }
    }

    fn remove(&mut self, segment: u64) {
        if let Some(old) = self.list.remove(&segment) {
            self.bytes -= old.bytes;
        }
    }
}

/// What the worker knows of cold storage, and what its threads meet at.
pub(super) struct Cold {
    any: AtomicBool,
    segments: RwLock<HashMap<StorageId, Segments>>,
    garbage: Mutex<Vec<Garbage>>,
    locations: RwLock<HashMap<(u32, String), StoredLocation>>,
    open_locations: files::Locations,
    pub(super) readers: readers::Readers,
    values: build::Values,
    pub(super) backlog: backlog::Backlog,
    /// Held while pages are on their way to the store, and while a batch makes blocks cold: neither must see the other half done.
    order: Mutex<()>,
    /// Commits that wait for `order`, which the writer takes again and again.
    waiting: AtomicU32,
    /// Storages that a commit has written something of; the writer has to know them.
    touched: Mutex<Vec<StorageId>>,
    /// Whether blocks became cold since the store was flushed for it.
    pub(super) unflushed: AtomicBool,
    /// Whether segments may have lost their last block, or files are to be deleted.
    pub(super) sweep_wanted: AtomicBool,
}

impl Cold {
    /// Reads the manifest.
    pub(super) fn open(store: &Store) -> Result<Cold> {
        let mut segments: HashMap<StorageId, Segments> = HashMap::new();
        for segment in store.segments()? {
            segments.entry(segment.storage).or_default().insert(segment);
        }
        let locations = store.locations()?.into_iter().map(|location| ((location.database, location.name.clone()), location));
        Ok(Cold {
            any: AtomicBool::new(!segments.is_empty()),
            segments: RwLock::new(segments),
            garbage: Mutex::new(store.garbage()?),
            locations: RwLock::new(locations.collect()),
            open_locations: files::Locations::default(),
            readers: readers::Readers::default(),
            values: build::Values::default(),
            backlog: backlog::Backlog::default(),
            order: Mutex::new(()),
            waiting: AtomicU32::new(0),
            touched: Mutex::default(),
            unflushed: AtomicBool::new(false),
            sweep_wanted: AtomicBool::new(true),
        })
    }

    /// Whether a storage has segments: only then its pages may have stubs.
    pub(super) fn has(&self, storage: StorageId) -> bool {
        self.any.load(Ordering::Acquire) && self.read_segments(|segments| segments.contains_key(&storage))
    }

    fn read_segments<T>(&self, look: impl FnOnce(&HashMap<StorageId, Segments>) -> T) -> T {
        look(&self.segments.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A segment by its number.
    fn segment(&self, storage: StorageId, segment: u64) -> Option<Arc<SegmentRecord>> {
        self.read_segments(|segments| segments.get(&storage)?.list.get(&segment).cloned())
    }

    /// The segments of a storage.
    fn segments_of(&self, storage: StorageId) -> Vec<Arc<SegmentRecord>> {
        self.segments_behind(storage, 0, usize::MAX)
    }

    /// As many segments of a storage with numbers above `after`, the next ones first.
    fn segments_behind(&self, storage: StorageId, after: u64, most: usize) -> Vec<Arc<SegmentRecord>> {
        self.read_segments(|segments| {
            let Some(segments) = segments.get(&storage) else { return Vec::new() };
            segments.list.range(after + 1..).take(most).map(|(_, segment)| Arc::clone(segment)).collect()
        })
    }

    /// Number of segments whose files are in a place as wanted.
    fn count_places(&self, is_wanted: impl Fn(&FilePlace) -> bool) -> usize {
        self.read_segments(|segments| records(segments).filter(|record| is_wanted(&record.place)).count())
    }

    /// Whether a segment has its file in this place.
    fn has_place(&self, place: &FilePlace) -> bool {
        self.read_segments(|segments| records(segments).any(|record| record.place == *place))
    }

    /// Whether a segment with this number has its file in a place as wanted.
    fn has_segment(&self, segment: u64, is_wanted: impl Fn(&FilePlace) -> bool) -> bool {
        self.read_segments(|segments| {
            segments.values().any(|segments| segments.list.get(&segment).is_some_and(|record| is_wanted(&record.place)))
        })
    }

    /// The storages that have segments.
    pub(super) fn storages(&self) -> Vec<StorageId> {
        self.read_segments(|segments| segments.keys().copied().collect())
    }

    fn add(&self, cache: &Cache, record: SegmentRecord) {
        let storage = record.storage;
        {
            let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
            segments.entry(storage).or_default().insert(record);
            self.any.store(true, Ordering::Release);
        }
        self.publish(cache, storage);
    }

    fn remove(&self, cache: &Cache, record: &SegmentRecord) {
        {
            let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(of_storage) = segments.get_mut(&record.storage) {
                of_storage.remove(record.segment);
                if of_storage.list.is_empty() {
                    segments.remove(&record.storage);
                }
            }
        }
        self.readers.forget(record.segment);
        self.publish(cache, record.storage);
    }

    /// The files of storages that are gone.
    pub(super) fn garbage_of(&self, storages: &HashSet<StorageId>) -> Vec<Garbage> {
        let segments = storages.iter().flat_map(|storage| self.segments_of(*storage));
        segments.map(|record| Garbage::of(&record, now())).collect()
    }

    /// Forgets storages that are gone; their files are `garbage` now.
    pub(super) fn drop_storages(&self, storages: &HashSet<StorageId>, garbage: Vec<Garbage>) {
        {
            let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
            segments.retain(|storage, _| !storages.contains(storage));
        }
        garbage.iter().for_each(|file| self.readers.forget(file.segment));
        if !garbage.is_empty() {
            self.add_garbage(garbage);
        }
    }

    /// Publishes how many segments a storage has and how long they are.
    pub(super) fn publish(&self, cache: &Cache, storage: StorageId) {
        let table = cache.storages();
        let Some(place) = table.find_id(storage) else { return };
        let (count, bytes) = self
            .read_segments(|segments| segments.get(&storage).map_or((0, 0), |segments| (segments.list.len(), segments.bytes)));
        let descriptor = table.at(place);
        descriptor.segment_bytes.store(bytes, Ordering::Relaxed);
        descriptor.segments.store(count as u32, Ordering::Relaxed);
    }

    /// Gives up the files that were announced: the processes that wanted to commit them are gone.
    fn give_up_announced(&self) {
        for file in lock(&self.garbage).iter_mut().filter(|file| file.announced) {
            (file.announced, file.since) = (false, 0);
        }
    }

    fn add_garbage(&self, garbage: impl IntoIterator<Item = Garbage>) {
        lock(&self.garbage).extend(garbage);
        self.sweep_wanted.store(true, Ordering::Release);
    }

    /// For the writer, around each batch of pages: lets a commit that waits pass.
    pub(super) fn pages_on_their_way(&self) -> MutexGuard<'_, ()> {
        while self.waiting.load(Ordering::Acquire) != 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
        lock(&self.order)
    }

    /// For commits, around each batch of blocks.
    fn between_pages(&self) -> MutexGuard<'_, ()> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let guard = lock(&self.order);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        guard
    }

    fn touch(&self, storage: StorageId) {
        lock(&self.touched).push(storage);
    }

    /// The storages that commits have written to since the last call.
    pub(super) fn take_touched(&self) -> Vec<StorageId> {
        std::mem::take(&mut *lock(&self.touched))
    }

    /// Ends all waits.
    pub(super) fn stop(&self) {
        self.open_locations.close();
        self.backlog.stop();
    }
}

/// Makes durable what became cold, if there is something.
pub(super) fn flush(shared: &Shared) -> Result<()> {
    if shared.cold.unflushed.swap(false, Ordering::AcqRel) {
        shared.store.flush().inspect_err(|_| shared.cold.unflushed.store(true, Ordering::Release))?;
    }
    Ok(())
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map(|since| since.as_secs()).unwrap_or_default()
}
