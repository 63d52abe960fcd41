//! Makes the blocks of a stored segment cold, so that a crash at any moment leaves each of them hot or cold.
//!
//! First the manifest's record and the stubs of large values become durable: from then on whatever is built from the segment finds what
//! it names. Values that are hot hide their stubs until then. After that each chunk of blocks changes in one batch, while nobody else can
//! see or change its pages: stubs come, hot images go, and pages in memory become cold ones. A second flush makes that durable, before
//! anybody is told.
//!
//! Segments that are committed together share these two flushes, which take longer than all the rest where segments are small.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{files, flush, now, readers};
use crate::cache::{ForCooling, futex, raise};
use crate::cold::{CommitMode, CommitSegment, Committed, Garbage, SegmentRecord, push_to_ranges};
use crate::engine::shared::{Shared, lock};
use crate::engine::stop_point;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Lsn, PageKey, PageNumber, StorageId};
use crate::location::check_object;
use crate::page::{OVERFLOW_PAYLOAD, PageKind};
use crate::segment::{BlockStub, SegmentReader, ValueStub};
use crate::store::Batch;

/// Blocks that become cold in one batch.
const CHUNK: usize = 32;
/// How long one page may be in use by others before its block stays hot.
const PAGE_PATIENCE: Duration = Duration::from_millis(2);
/// How long the log may take to be flushed.
const FLUSH_PATIENCE: Duration = Duration::from_secs(30);

/// Makes segments part of their storages. Asked again after a restart, it goes on where it was. After an error some of them are part of
/// their storages; those that nothing is read from go again.
pub(super) fn commit(shared: &Shared, segments: &[CommitSegment]) -> Result<Vec<Committed>> {
    let mut committed = Vec::with_capacity(segments.len());
    let mut rest = segments;
    while !rest.is_empty() {
        let (together, others) = rest.split_at(without_common_values(rest));
        rest = others;
        match commit_together(shared, together) {
            Ok(done) => committed.extend(done),
            Err(error) => {
                shared.cold.sweep_wanted.store(true, Ordering::Release);
                return Err(error);
            }
        }
    }
    Ok(committed)
}

/// How many segments, from the first one on, name no large value that one before them names: the stub that such a value had before would be
/// that of a segment of which it is not known yet what becomes cold.
fn without_common_values(segments: &[CommitSegment]) -> usize {
    let mut seen: HashSet<(StorageId, u32)> = HashSet::new();
    let has_common = |segment: &CommitSegment| {
        let own: HashSet<_> = segment.summary.values.iter().map(|value| (segment.storage, value.value)).collect();
        let has_common = !own.is_disjoint(&seen);
        seen.extend(own);
        has_common
    };
    segments.iter().position(has_common).unwrap_or(segments.len())
}

fn commit_together(shared: &Shared, segments: &[CommitSegment]) -> Result<Vec<Committed>> {
    let mut commits = Vec::with_capacity(segments.len());
    for segment in segments {
        commits.push(prepare(shared, segment)?);
    }
    shared.store.flush()?;
    stop_point::reached("segment prepared");
    let cooled = commits.iter_mut().flatten().try_for_each(Commit::cool);
    // Whatever became cold before an error is cold.
    flush(shared)?;
    cooled?;
    stop_point::reached("segment committed");
    commits.into_iter().map(|commit| commit.map_or_else(|| Ok(Committed::default()), Commit::end)).collect()
}

/// Writes what a page built from the segment may lead to; nothing to do for a file that is to be deleted.
fn prepare<'a>(shared: &'a Shared, commit: &'a CommitSegment) -> Result<Option<Commit<'a>>> {
    check(commit)?;
    let record = record_of(commit);
    if commit.mode == CommitMode::Adopt && lock(&shared.cold.garbage).iter().any(|file| file.place == record.place) {
        return Ok(None);
    }
    let known = shared.cold.segment(commit.storage, commit.segment);
    if known.as_ref().is_some_and(|known| known.place != record.place) {
        return Err(Error::new(ErrorKind::InvalidInput, format!("segment {} exists already", commit.segment)));
    }
    let opened = readers::open(shared, &record).and_then(|reader| Ok((reader.summary()?.rows, reader)));
    let (rows, reader) = opened.map_err(|error| files::without_user(&record, error))?;
    if rows != commit.summary.rows {
        return Err(Error::new(ErrorKind::InvalidInput, format!("segment {} is not the one of its summary", commit.segment)));
    }
    await_log(shared, &commit.summary.blocks)?;
    let is_repeated = known.is_some();
    let shares = shares_of(&commit.summary.values);
    let mut commit =
        Commit { shared, commit, record, reader, is_repeated, older: HashMap::new(), shares, result: Committed::default() };
    commit.prepare()?;
    Ok(Some(commit))
}

/// The order of everything that the rest relies on.
fn check(commit: &CommitSegment) -> Result<()> {
    let wrong = |what: &str| Err(Error::new(ErrorKind::InvalidInput, format!("segment {}: {what}", commit.segment)));
    let (blocks, values) = (&commit.summary.blocks, &commit.summary.values);
    check_object(&commit.place.path)?;
    if blocks.is_empty() || !blocks.is_sorted_by(|one, next| one.block < next.block) {
        return wrong("its blocks do not ascend");
    }
    if blocks.iter().any(|stub| stub.segment != commit.segment) || values.iter().any(|stub| stub.segment != commit.segment) {
        return wrong("a stub names another segment");
    }
    if !values.is_sorted_by_key(|value| value.block) {
        return wrong("its values do not ascend");
    }
    if values.iter().any(|value| blocks.binary_search_by_key(&value.block, |stub| stub.block).is_err()) {
        return wrong("a value has no block");
    }
    Ok(())
}

fn record_of(commit: &CommitSegment) -> SegmentRecord {
    let summary = &commit.summary;
    SegmentRecord {
        storage: commit.storage,
        segment: commit.segment,
        place: commit.place.clone(),
        partition: commit.partition,
        rows: summary.rows,
        bytes: summary.bytes,
        hot_bytes: summary.hot_bytes,
        blocks: summary.blocks.len() as u32,
        min_tid: summary.min_tid,
        max_tid: summary.max_tid,
        schema_version: commit.schema_version,
        created: now(),
        columns: summary.columns.clone(),
    }
}

/// The store must never be ahead of the log on disk, in segments as in pages.
fn await_log(shared: &Shared, blocks: &[BlockStub]) -> Result<()> {
    let header = shared.cache.header();
    let newest = blocks.iter().map(|stub| stub.lsn).max().unwrap_or_default();
    let begun = Instant::now();
    while header.flushed() < newest {
        header.wanted_flush.fetch_max(newest.0, Ordering::SeqCst);
        raise(&header.main_wake);
        let word = header.writer_wake.load(Ordering::SeqCst);
        if shared.is_stopping() || begun.elapsed() > FLUSH_PATIENCE {
            return Err(Error::new(ErrorKind::Unavailable, "the write-ahead log was not flushed in time"));
        }
        futex::wait_for(&header.writer_wake, word, Duration::from_millis(5));
    }
    Ok(())
}

fn value_key(storage: StorageId, value: u32) -> PageKey {
    PageKey { storage, page: PageNumber::overflow(value, 0) }
}

/// A value that rows of several blocks of the segment name: its stub serves all of them.
struct Share {
    /// Blocks of which it is not decided whether they become cold.
    undecided: u32,
    /// The value's LSN, once a block has become cold with it.
    cold: Option<Lsn>,
}

/// The values that several blocks name. Values stand in the order of their blocks.
fn shares_of(values: &[ValueStub]) -> HashMap<u32, Share> {
    let mut blocks: HashMap<u32, (u32, u32)> = HashMap::new();
    for value in values {
        let (last, count) = blocks.entry(value.value).or_insert((value.block, 1));
        if *last != value.block {
            (*last, *count) = (value.block, *count + 1);
        }
    }
    let shared = blocks.into_iter().filter(|(_, (_, count))| *count > 1);
    shared.map(|(value, (_, count))| (value, Share { undecided: count, cold: None })).collect()
}

struct Commit<'a> {
    shared: &'a Shared,
    commit: &'a CommitSegment,
    record: SegmentRecord,
    reader: Arc<SegmentReader>,
    /// Whether an attempt before this one may have made blocks cold.
    is_repeated: bool,
    /// The stubs that values had before, for those whose block stays hot.
    older: HashMap<u32, Option<ValueStub>>,
    shares: HashMap<u32, Share>,
    result: Committed,
}

/// A block that may become cold.
struct Candidate<'a> {
    stub: &'a BlockStub,
    values: &'a [ValueStub],
    /// Its page and the first chunks of its values, kept from everybody.
    kept: Vec<ForCooling>,
    /// What the page in memory becomes, if it was read while its block did not exist.
    image: Option<Vec<u8>>,
}

impl<'a> Commit<'a> {
    fn storage(&self) -> StorageId {
        self.commit.storage
    }

    fn block_key(&self, block: u32) -> PageKey {
        PageKey::block(self.storage(), block)
    }

    /// The values of a block; they stand in the order of their blocks.
    fn values_of(&self, block: u32) -> &'a [ValueStub] {
        let values = &self.commit.summary.values;
        let range: Range<usize> =
            values.partition_point(|value| value.block < block)..values.partition_point(|value| value.block <= block);
        &values[range]
    }

    /// Whether a value's stub takes the place of the one it has.
    fn replaces(&self, older: Option<&ValueStub>) -> bool {
        match &self.commit.mode {
            CommitMode::Flush => true,
            CommitMode::Replace(sources) => {
                older.is_none_or(|older| sources.contains(&older.segment) || older.segment == self.commit.segment)
            }
            CommitMode::Adopt => older.is_none(),
        }
    }

    /// Writes everything that a page built from the segment may lead to.
    fn prepare(&mut self) -> Result<()> {
        let (shared, record) = (self.shared, &self.record);
        let _order = shared.cold.between_pages();
        let table = shared.cache.storages();
        let Some(place) = table.find_id(self.storage()) else { return Err(gone(self.storage())) };
        let descriptor = table.at(place);
        if self.commit.mode == CommitMode::Adopt {
            self.commit.summary.blocks.iter().for_each(|stub| descriptor.note_block(stub.block));
        }
        let highest = self.commit.summary.values.iter().map(|value| value.value).max().unwrap_or_default();
        descriptor.next_value.fetch_max(highest + 1, Ordering::AcqRel);
        let mut batch = shared.store.batch();
        for value in &self.commit.summary.values {
            let older = shared.store.value_stub(self.storage(), value.value)?;
            if self.replaces(older.as_ref()) {
                batch.put_stub(value_key(self.storage(), value.value), &value.to_bytes());
                self.older.insert(value.value, older.filter(|older| older.segment != value.segment));
            }
        }
        batch.put_storage(&descriptor.info());
        batch.put_segment(record)?;
        // The file was announced, so that it would be deleted if it was never committed.
        batch.remove_garbage(record.segment);
        // Whoever finds a stub from here on finds the segment that it names.
        shared.cold.add(&shared.cache, record.clone());
        if let Err(error) = batch.write() {
            if !self.is_repeated {
                shared.cold.remove(&shared.cache, record);
            }
            return Err(error);
        }
        stop_point::reached("stubs of values written");
        lock(&shared.cold.garbage).retain(|file| file.segment != record.segment);
        shared.cold.touch(self.storage());
        Ok(())
    }

    fn cool(&mut self) -> Result<()> {
        let commit = self.commit;
        for chunk in commit.summary.blocks.chunks(CHUNK) {
            if self.shared.is_stopping() {
                return Err(Error::new(ErrorKind::Unavailable, "the KalamDB engine stops"));
            }
            match &commit.mode {
                CommitMode::Flush | CommitMode::Adopt => self.cool_chunk(chunk)?,
                CommitMode::Replace(sources) => self.replace_chunk(chunk, sources)?,
            }
        }
        Ok(())
    }

    fn cool_chunk(&mut self, chunk: &'a [BlockStub]) -> Result<()> {
        let shared = self.shared;
        let _order = shared.cold.between_pages();
        self.check_storage()?;
        let mut candidates = Vec::with_capacity(chunk.len());
        let mut kept_values = HashMap::new();
        let mut batch = shared.store.batch();
        let mut outcome = Vec::with_capacity(chunk.len());
        for stub in chunk {
            // Another segment's stub may lie below a page that has changed since and is not written yet.
            let present = shared.store.block_stub(self.block_key(stub.block))?;
            if present.as_ref().is_some_and(|present| present.segment == stub.segment) {
                outcome.push((stub.block, true));
                continue;
            }
            // A block that is cold in another segment was flushed there later.
            let is_taken = self.commit.mode == CommitMode::Adopt && present.is_some();
            let candidate = if is_taken { None } else { self.candidate(stub, &mut kept_values)? };
            outcome.push((stub.block, candidate.is_some()));
            candidates.extend(candidate);
        }
        for &(block, is_cold) in &outcome {
            self.decide_on_values(block, is_cold, &mut batch);
        }
        for candidate in &candidates {
            self.describe(candidate, &mut batch);
        }
        shared.cold.unflushed.store(true, Ordering::Release);
        batch.write()?;
        stop_point::reached("blocks cooled");
        shared.cache.header().counters.blocks_cooled.fetch_add(candidates.len() as u64, Ordering::Relaxed);
        for candidate in candidates {
            self.turn_cold(candidate);
        }
        self.note(&outcome);
        raise(&shared.cache.header().cleaned);
        Ok(())
    }

    /// Keeps a block's pages from everybody if they are what was copied into the segment. A value that another block of the batch has
    /// kept is kept for all; `kept_values` has the LSNs.
    fn candidate(&self, stub: &'a BlockStub, kept_values: &mut HashMap<u32, Lsn>) -> Result<Option<Candidate<'a>>> {
        let mut candidate = Candidate { stub, values: self.values_of(stub.block), kept: Vec::new(), image: None };
        if !self.keep(self.block_key(stub.block), stub.lsn, &mut candidate.kept)? {
            return Ok(None);
        }
        if self.commit.mode == CommitMode::Adopt && matches!(candidate.kept[..], [ForCooling::Latched(_)]) {
            self.reader.build_page(stub, candidate.image.insert(Vec::new()))?;
        }
        let mut own: Vec<(u32, Lsn)> = Vec::new();
        for value in candidate.values.iter().filter(|value| self.has_chunks(value)) {
            let kept = own.iter().find(|(number, _)| *number == value.value).map(|(_, lsn)| lsn);
            match kept.or_else(|| kept_values.get(&value.value)) {
                Some(lsn) if *lsn == value.lsn => {}
                Some(_) => return Ok(None),
                None if self.keep(value_key(self.storage(), value.value), value.lsn, &mut candidate.kept)? => {
                    own.push((value.value, value.lsn));
                }
                None => return Ok(None),
            }
        }
        kept_values.extend(own);
        Ok(Some(candidate))
    }

    fn keep(&self, key: PageKey, lsn: Lsn, kept: &mut Vec<ForCooling>) -> Result<bool> {
        let Some(page) = self.shared.cache.keep_for_cooling(key, PAGE_PATIENCE) else { return Ok(false) };
        let found = match &page {
            ForCooling::Latched(guard) => {
                let page = guard.page();
                // A block that is cold already is nothing to flush; a value may move to another segment.
                let is_cold_block = page.is_cold() && key.page.as_block().is_some();
                (page.kind() != PageKind::Unused && !is_cold_block).then(|| page.lsn())
            }
            ForCooling::Reserved(_) => match (self.shared.store.page_lsn(key)?, key.page.as_overflow()) {
                // A value that is cold already, in an older segment or with another block of this one.
                (None, Some((value, _))) => {
                    let older = self.older.get(&value).and_then(|older| older.map(|older| older.lsn));
                    older.or_else(|| self.shares.get(&value)?.cold)
                }
                (lsn, _) => lsn,
            },
        };
        // Whoever looked at a block that does not exist has left an empty page behind.
        let is_empty = match &page {
            ForCooling::Latched(guard) => {
                let page = guard.page();
                // A block that was given back has the LSN of that.
                let was_never = page.kind() == PageKind::Unused && page.lsn() == Lsn::INVALID;
                key.page.as_block().is_some() && was_never && !guard.is_dirty()
            }
            ForCooling::Reserved(_) => true,
        };
        // Another block has brought a value with it.
        let is_known = key.page.as_overflow().is_some_and(|(value, _)| match &page {
            ForCooling::Latched(guard) => guard.page().is_cold(),
            ForCooling::Reserved(_) => found.is_some() && self.shares.get(&value).is_some_and(|share| share.cold == found),
        });
        kept.push(page);
        Ok(match self.commit.mode {
            CommitMode::Adopt => is_known || (found.is_none() && is_empty),
            _ => found == Some(lsn),
        })
    }

    /// Whether somebody may have seen a value before this commit; one that stood in its row has no chunks yet.
    fn has_chunks(&self, value: &ValueStub) -> bool {
        value.lsn != Lsn::INVALID || self.older.get(&value.value).is_some_and(Option::is_some)
    }

    /// Puts what a block's change is into the batch.
    fn describe(&self, candidate: &Candidate<'_>, batch: &mut Batch<'_>) {
        let key = self.block_key(candidate.stub.block);
        batch.put_stub(key, &candidate.stub.to_bytes());
        batch.remove_page(key);
        for value in candidate.values.iter().filter(|value| self.has_chunks(value)) {
            for chunk in 0..(value.length as usize).div_ceil(OVERFLOW_PAYLOAD).max(1) {
                batch.remove_page(PageKey { page: PageNumber::overflow(value.value, chunk as u32), ..key });
            }
        }
    }

    /// Makes the pages in memory cold ones and lets everybody have them.
    fn turn_cold(&self, candidate: Candidate<'_>) {
        for page in candidate.kept {
            let ForCooling::Latched(mut guard) = page else { continue };
            let image = candidate.image.as_ref().filter(|_| guard.key().page.as_block().is_some());
            // The reader has checked the image. A page that cannot take it stays empty until it is loaded again.
            if image.is_none_or(|image| guard.page_mut().from_compact(image).is_ok()) {
                guard.turn_cold();
            }
        }
        for value in candidate.values {
            // Chunks that are in use are written as hot ones some time, which hides the segment's.
            for chunk in 1..(value.length as usize).div_ceil(OVERFLOW_PAYLOAD) {
                let key = PageKey { storage: self.storage(), page: PageNumber::overflow(value.value, chunk as u32) };
                self.shared.cache.turn_cold_if_there(key);
            }
        }
    }

    /// Notes what becomes of a block. Values that no block of the segment took with it get the stubs back that they had.
    fn decide_on_values(&mut self, block: u32, is_cold: bool, batch: &mut Batch<'_>) {
        let values = self.values_of(block);
        for (place, value) in values.iter().enumerate() {
            if values[..place].iter().any(|other| other.value == value.value) {
                continue;
            }
            if let Some(share) = self.shares.get_mut(&value.value) {
                share.undecided = share.undecided.saturating_sub(1);
                if is_cold {
                    share.cold = Some(value.lsn);
                }
                if share.undecided > 0 || share.cold.is_some() {
                    continue;
                }
            }
            // An earlier attempt may have made the block cold; changed since, it may still name values of this segment.
            if is_cold || self.is_repeated {
                continue;
            }
            let key = value_key(self.storage(), value.value);
            match self.older.get(&value.value) {
                Some(Some(older)) => batch.put_stub(key, &older.to_bytes()),
                Some(None) => batch.remove_stub(key),
                None => {}
            }
        }
    }

    fn replace_chunk(&mut self, chunk: &[BlockStub], sources: &[u64]) -> Result<()> {
        let shared = self.shared;
        let _order = shared.cold.between_pages();
        self.check_storage()?;
        let mut batch = shared.store.batch();
        let mut outcome = Vec::with_capacity(chunk.len());
        for stub in chunk {
            let key = self.block_key(stub.block);
            let present = shared.store.block_stub(key)?;
            let is_source = present.as_ref().is_some_and(|old| sources.contains(&old.segment) && old.lsn == stub.lsn);
            if is_source {
                batch.put_stub(key, &stub.to_bytes());
            }
            outcome.push((stub.block, is_source || present.is_some_and(|old| old.segment == stub.segment)));
        }
        shared.cold.unflushed.store(true, Ordering::Release);
        batch.write()?;
        stop_point::reached("blocks cooled");
        self.note(&outcome);
        Ok(())
    }

    fn check_storage(&self) -> Result<()> {
        match self.shared.cache.storages().find_id(self.storage()) {
            Some(_) => Ok(()),
            None => Err(gone(self.storage())),
        }
    }

    fn note(&mut self, outcome: &[(u32, bool)]) {
        for &(block, cold) in outcome {
            push_to_ranges(if cold { &mut self.result.cold } else { &mut self.result.left_out }, block);
        }
    }

    /// A segment that nothing is read from goes again.
    fn end(self) -> Result<Committed> {
        let record = &self.record;
        let cold = &self.shared.cold;
        if matches!(self.commit.mode, CommitMode::Replace(_)) {
            cold.sweep_wanted.store(true, Ordering::Release);
        }
        let mut result = self.result;
        // Where nothing was taken back, values may be read from it even so.
        let may_have_values = self.is_repeated || self.commit.mode != CommitMode::Flush;
        result.kept = !result.cold.is_empty() || (may_have_values && !self.commit.summary.values.is_empty());
        if !result.kept {
            let _order = cold.between_pages();
            let garbage = Garbage::of(record, now());
            let mut batch = self.shared.store.batch();
            batch.remove_segment(record);
            batch.put_garbage(&garbage)?;
            batch.write()?;
            cold.remove(&self.shared.cache, record);
            cold.add_garbage([garbage]);
        } else {
            self.shared.cache.header().counters.segments_added.fetch_add(1, Ordering::Relaxed);
        }
        Ok(result)
    }
}

fn gone(storage: StorageId) -> Error {
    Error::new(ErrorKind::StorageMissing, format!("storage {} is gone", storage.0))
        .with_hint("The table was dropped, truncated or rewritten meanwhile.")
}
