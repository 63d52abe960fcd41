//! The writer thread: brings changed pages to the store, makes checkpoints, removes storages that are gone.
//!
//! A page's copy is on its way from the moment it is marked unchanged until it is in RocksDB's write buffer. Only this thread has
//! pages on their way, and none when it writes a mark; so the bound of a mark is what the frames say. The write buffer itself needs no
//! care: a mark reaches the disk only with everything that was written before it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::checkpoint::{Flush, Request};
use super::shared::{Backoff, Shared};
use super::stop_point;
use crate::cache::{DirtyFrame, FRAME_UNITS, StorageInfo, WriteBack, futex, raise};
use crate::error::Result;
use crate::ids::{Lsn, PageKey, PageNumber, StorageId};
use crate::store::{Batch, DurableMark};

/// Pages written in one batch.
const BATCH: usize = 32;

/// The writer thread.
pub(super) fn run(shared: &Shared, mark: DurableMark, known: HashMap<StorageId, Option<StorageInfo>>) {
    let header = shared.cache.header();
    let mut writer = Writer {
        shared,
        mark,
        known,
        dirty: Vec::new(),
        images: (0..BATCH).map(|_| Vec::new()).collect(),
        waits_seen: 0,
        written: false,
        written_to: HashSet::new(),
        next_id: StorageId::INVALID,
        last_checkpoint: Instant::now(),
    };
    let mut backoff = Backoff::new();
    while !shared.is_stopping() {
        let word = header.writer_wake.load(Ordering::SeqCst);
        match writer.step() {
            Ok(true) => backoff.succeeded(shared),
            Ok(false) => futex::wait_for(&header.writer_wake, word, Duration::from_millis(50)),
            Err(error) => backoff.failed(shared, &error),
        }
    }
}

struct Writer<'a> {
    shared: &'a Shared,
    /// The last mark that was written.
    mark: DurableMark,
    /// The storages the store has something of, with their stored descriptors.
    known: HashMap<StorageId, Option<StorageInfo>>,
    dirty: Vec<DirtyFrame>,
    images: Vec<Vec<u8>>,
    waits_seen: u64,
    /// Whether something was written since the last mark.
    written: bool,
    /// The storages that pages were written of since the last checkpoint.
    written_to: HashSet<StorageId>,
    next_id: StorageId,
    last_checkpoint: Instant,
}

impl Writer<'_> {
    /// Does the most urgent thing; false when there is none.
    fn step(&mut self) -> Result<bool> {
        self.learn_of_commits();
        let trimmed = self.shared.cache.trim_memory();
        let cleaned = self.clean()?;
        let purged = self.shared.purge_wanted.swap(false, Ordering::AcqRel);
        if purged {
            self.purge_vanished(&mut Vec::new()).inspect_err(|_| self.shared.purge_wanted.store(true, Ordering::Release))?;
        }
        let Some(request) = self.due() else { return Ok(trimmed || cleaned || purged) };
        self.checkpoint(request).inspect_err(|_| self.shared.checkpoints.put_back(request))?;
        Ok(true)
    }

    /// Gets to know the storages that segments were committed for.
    fn learn_of_commits(&mut self) {
        for storage in self.shared.cold.take_touched() {
            self.known.entry(storage).or_insert(None);
        }
    }

    /// Writes the longest-changed pages when somebody waits for a clean frame, half of the cache is changed, or pages outgrow it.
    fn clean(&mut self) -> Result<bool> {
        let header = self.shared.cache.header();
        let waits = header.counters.clean_waits.load(Ordering::Relaxed);
        let awaited = std::mem::replace(&mut self.waits_seen, waits) != waits;
        let most = self.shared.cache.memory_units();
        // A page that changes again and again is best written seldom.
        let many = self.shared.cache.is_changed_and_short(50);
        if !awaited && !many && !self.shared.cache.memory_is_exceeded() {
            return Ok(false);
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        self.shared.cache.dirty_frames(&mut dirty);
        dirty.sort_unstable_by_key(|frame| frame.rec_lsn);
        let written = self.purge_vanished(&mut dirty).and_then(|_| {
            dirty.truncate((most as usize / FRAME_UNITS as usize / 8).max(2 * BATCH));
            self.write_back(&mut dirty)
        });
        self.dirty = dirty;
        Ok(written? > 0)
    }

    /// The checkpoint to make now.
    fn due(&self) -> Option<Request> {
        if let Some(request) = self.shared.checkpoints.take_request() {
            return Some(request);
        }
        let (position, config) = (self.shared.applied(), &self.shared.config);
        let grown = position.0.saturating_sub(self.mark.lsn.0);
        let due =
            grown >= config.checkpoint_log_bytes || (grown > 0 && self.last_checkpoint.elapsed() >= config.checkpoint_interval);
        if due { self.shared.checkpoints.unasked(position) } else { None }
    }

    /// Writes what is changed before the position, then the mark, and hands over to the flusher.
    fn checkpoint(&mut self, request: Request) -> Result<()> {
        stop_point::reached("checkpoint begun");
        self.last_checkpoint = Instant::now();
        let cache = self.shared.cache;
        let mut dirty = std::mem::take(&mut self.dirty);
        cache.dirty_frames(&mut dirty);
        dirty.retain(|frame| frame.rec_lsn < request.position);
        let purged = self.purge_vanished(&mut dirty).and_then(|purged| self.write_back(&mut dirty).map(|_| purged));
        self.dirty = dirty;
        let purged = purged?;
        // Where the log is not flushed in time, the mark stays behind and the next checkpoint makes up for it.
        self.await_flush(request.position);
        let durable = self.write_mark(request.position)?;
        stop_point::reached("mark written");
        let written = std::mem::take(&mut self.written_to);
        self.shared.checkpoints.hand_over(Flush { request, durable, purged, written });
        Ok(())
    }

    /// Writes the mark for everything before `position` that no frame holds back, with the storages as they are.
    ///
    /// A storage is in the table, and a block counted, before the first record about it. The position was read before the table is,
    /// so the descriptors know everything that the mark says.
    fn write_mark(&mut self, position: Lsn) -> Result<Lsn> {
        let cache = &self.shared.cache;
        let storages = cache.storages().list();
        let next_id = StorageId(cache.header().next_storage_id.load(Ordering::SeqCst));
        // The mark never passes the flushed log: after a crash the positions behind it are given out again.
        let position = position.min(cache.header().flushed());
        let bound = cache.min_rec_lsn().map_or(position, |oldest| oldest.min(position));
        let mark = DurableMark { lsn: bound.max(self.mark.lsn), ..self.mark };
        let changed: Vec<StorageInfo> =
            storages.into_iter().filter(|storage| self.known.get(&storage.id) != Some(&Some(*storage))).collect();
        if mark == self.mark && !self.written && changed.is_empty() && next_id == self.next_id {
            return Ok(mark.lsn);
        }
        let mut batch = self.shared.store.batch();
        changed.iter().for_each(|storage| batch.put_storage(storage));
        batch.put_next_storage_id(next_id);
        batch.put_mark(&mark);
        batch.write()?;
        self.known.extend(changed.into_iter().map(|storage| (storage.id, Some(storage))));
        self.mark = mark;
        self.next_id = next_id;
        self.written = false;
        Ok(mark.lsn)
    }

    /// Removes what the cache and the store have of storages that are no longer in the table; takes their pages out of `dirty`, which
    /// was listed before.
    ///
    /// A page of such a storage that is in use just now may be written later; then the storage is known again, and removed again.
    fn purge_vanished(&mut self, dirty: &mut Vec<DirtyFrame>) -> Result<Vec<StorageId>> {
        let _order = self.shared.cold.pages_on_their_way();
        self.learn_of_commits();
        let live: HashSet<StorageId> = self.shared.cache.storages().list().iter().map(|storage| storage.id).collect();
        let known = self.known.keys().copied().chain(dirty.iter().map(|frame| frame.key.storage));
        let vanished: HashSet<StorageId> = known.filter(|id| !live.contains(id)).collect();
        if vanished.is_empty() {
            return Ok(Vec::new());
        }
        dirty.retain(|frame| !vanished.contains(&frame.key.storage));
        self.shared.cache.discard(&|key| vanished.contains(&key.storage));
        let mut batch = self.shared.store.batch();
        vanished.iter().for_each(|storage| batch.remove_storage(*storage));
        let garbage = self.shared.cold.garbage_of(&vanished);
        garbage.iter().try_for_each(|file| batch.put_garbage(file))?;
        batch.write()?;
        self.shared.cold.drop_storages(&vanished, garbage);
        self.shared.quarantine.retain(|key| !vanished.contains(&key.storage));
        self.known.retain(|id, _| !vanished.contains(id));
        self.written = true;
        stop_point::reached("storage purged");
        raise(&self.shared.cache.header().cleaned);
        Ok(vanished.into_iter().collect())
    }

    /// Writes pages in the order of their keys; returns how many.
    fn write_back(&mut self, dirty: &mut [DirtyFrame]) -> Result<usize> {
        dirty.sort_unstable_by_key(|frame| frame.key);
        let mut written = 0;
        for chunk in dirty.chunks(BATCH) {
            if self.shared.is_stopping() {
                break;
            }
            written += self.write_chunk(chunk)?;
        }
        Ok(written)
    }

    fn write_chunk(&mut self, chunk: &[DirtyFrame]) -> Result<usize> {
        let cache = &self.shared.cache;
        let _order = self.shared.cold.pages_on_their_way();
        let mut copies: Vec<WriteBack> = Vec::with_capacity(chunk.len());
        for frame in chunk {
            copies.extend(cache.copy_for_write(frame, &mut self.images[copies.len()]));
        }
        let Some(newest) = copies.iter().map(|copy| copy.page_lsn).max() else { return Ok(0) };
        stop_point::reached("pages copied");
        let flushed = self.await_flush(newest);
        let mut batch = self.shared.store.batch();
        let mut pages = 0;
        for (copy, image) in copies.iter().zip(&self.images).filter(|(copy, _)| copy.page_lsn <= flushed) {
            batch.put_page(copy.key, image);
            self.thaw(copy.key, &mut batch)?;
            pages += 1;
        }
        let bytes = batch.bytes();
        batch.write()?;
        stop_point::reached("pages written");
        for copy in copies {
            if copy.page_lsn <= flushed {
                self.known.entry(copy.key.storage).or_insert(None);
                self.written_to.insert(copy.key.storage);
                copy.stored();
            }
        }
        self.written |= pages > 0;
        let header = self.shared.cache.header();
        header.counters.writebacks.fetch_add(pages as u64, Ordering::Relaxed);
        header.counters.writeback_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        raise(&header.cleaned);
        Ok(pages)
    }

    /// A hot block has no stub any more. An overflow value keeps its own: other chunks may be read by it; the sweep looks.
    fn thaw(&self, key: PageKey, batch: &mut Batch<'_>) -> Result<()> {
        if let Some((value, _)) = key.page.as_overflow() {
            let first = PageKey { page: PageNumber::overflow(value, 0), ..key };
            if self.shared.cold.has(key.storage) && self.shared.store.has_stub(first)? {
                self.shared.cold.sweep_wanted.store(true, Ordering::Release);
            }
        } else if key.page.as_block().is_some() && self.shared.cold.has(key.storage) && self.shared.store.has_stub(key)? {
            batch.remove_stub(key);
            self.shared.cache.header().counters.blocks_thawed.fetch_add(1, Ordering::Relaxed);
            self.shared.cold.sweep_wanted.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn want_flush(&self, position: Lsn) {
        let header = self.shared.cache.header();
        if header.flushed() < position {
            header.wanted_flush.fetch_max(position.0, Ordering::SeqCst);
            raise(&header.main_wake);
        }
    }

    /// Waits a while until the log is flushed to `position`; returns to where it is.
    fn await_flush(&self, position: Lsn) -> Lsn {
        self.want_flush(position);
        let header = self.shared.cache.header();
        let begun = Instant::now();
        loop {
            let word = header.writer_wake.load(Ordering::SeqCst);
            let flushed = header.flushed();
            if flushed >= position || self.shared.is_stopping() || begun.elapsed() >= self.shared.config.flush_patience {
                return flushed;
            }
            futex::wait_for(&header.writer_wake, word, Duration::from_millis(5));
        }
    }
}
