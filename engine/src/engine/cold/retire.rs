//! The end of segments: finds those that nothing is read from, takes them out of the manifest and deletes their files.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;

use super::{files, now};
use crate::cold::{Garbage, SegmentUse};
use crate::engine::shared::{Shared, lock};
use crate::engine::stop_point;
use crate::error::Result;
use crate::ids::{PageKey, PageNumber, StorageId};
use crate::page::{OVERFLOW_PAYLOAD, PageKind, compact_kind};
use crate::segment::{BlockStub, ValueStub};

/// Time from the announcement of a file to its commit, in seconds, after which nobody will commit it.
const ANNOUNCED_SECONDS: u64 = 6 * 3600;

/// How much of each segment of a storage is in use.
pub(super) fn uses(shared: &Shared, storage: StorageId) -> Result<Vec<SegmentUse>> {
    let segments = shared.cold.segments_of(storage);
    let mut uses: BTreeMap<u64, SegmentUse> = BTreeMap::new();
    for segment in segments {
        uses.insert(segment.segment, SegmentUse { segment: segment.segment, ..SegmentUse::default() });
    }
    shared.store.stubs(storage, PageNumber(0), &mut |page, stub| {
        if page.as_block().is_some() {
            let stub = BlockStub::decode(stub)?;
            if let Some(used) = uses.get_mut(&stub.segment) {
                used.blocks += 1;
                used.rows += u64::from(stub.rows);
            }
        } else if let Some(used) = uses.get_mut(&ValueStub::decode(stub)?.segment) {
            used.values += 1;
        }
        Ok(true)
    })?;
    Ok(uses.into_values().collect())
}

/// Takes segments that nothing is read from out of the manifest, then deletes files whose time has come; returns how many.
pub(super) fn sweep(shared: &Shared) -> Result<u64> {
    for storage in shared.cold.storages() {
        // New users of a segment come with commits, which are made by the same thread as this.
        remove_unread_values(shared, storage)?;
        for unused in uses(shared, storage)?.iter().filter(|used| used.blocks == 0 && used.values == 0) {
            retire(shared, storage, unused.segment)?;
        }
    }
    delete_files(shared)
}

/// Removes stubs of values that nobody reads by them: the value was freed, its first chunk is a tombstone; or all chunks are hot. Only where
/// they alone keep a segment.
fn remove_unread_values(shared: &Shared, storage: StorageId) -> Result<()> {
    let without_blocks: HashSet<u64> =
        uses(shared, storage)?.iter().filter(|used| used.blocks == 0 && used.values > 0).map(|used| used.segment).collect();
    if without_blocks.is_empty() {
        return Ok(());
    }
    let mut unread = Vec::new();
    let mut image = Vec::new();
    shared.store.stubs(storage, PageNumber::overflow(0, 0), &mut |page, stub| {
        let key = PageKey { storage, page };
        let stub = ValueStub::decode(stub)?;
        if without_blocks.contains(&stub.segment)
            && shared.store.read_page(key, &mut image)?
            && (compact_kind(&image) == PageKind::Unused || has_all_chunks(shared, key, &stub)?)
        {
            unread.push(key);
        }
        Ok(true)
    })?;
    let _order = shared.cold.between_pages();
    let mut batch = shared.store.batch();
    unread.iter().for_each(|key| batch.remove_stub(*key));
    batch.write()
}

/// Whether the store has every chunk of a value. None of them becomes cold again but by a commit, which puts another stub.
fn has_all_chunks(shared: &Shared, first: PageKey, stub: &ValueStub) -> Result<bool> {
    for chunk in 1..(stub.length as usize).div_ceil(OVERFLOW_PAYLOAD) {
        let key = PageKey { page: PageNumber::overflow(stub.value, chunk as u32), ..first };
        if shared.store.page_lsn(key)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn retire(shared: &Shared, storage: StorageId, segment: u64) -> Result<()> {
    let _order = shared.cold.between_pages();
    let Some(record) = shared.cold.segment(storage, segment) else { return Ok(()) };
    let garbage = Garbage::of(&record, now());
    let mut batch = shared.store.batch();
    batch.remove_segment(&record);
    batch.put_garbage(&garbage)?;
    batch.write()?;
    shared.cold.remove(&shared.cache, &record);
    shared.cold.add_garbage([garbage]);
    stop_point::reached("segment retired");
    Ok(())
}

/// Deletes the files whose retention is over.
fn delete_files(shared: &Shared) -> Result<u64> {
    let retention = shared.cache.header().segment_retention.load(Ordering::Relaxed);
    let due: Vec<Garbage> = {
        let garbage = lock(&shared.cold.garbage);
        garbage.iter().filter(|file| is_due(file, retention)).cloned().collect()
    };
    if due.is_empty() {
        return Ok(0);
    }
    // A crash must not bring back a manifest that names them.
    shared.store.flush()?;
    let mut deleted = Vec::new();
    for file in due {
        match files::delete(shared, &file.place) {
            Ok(()) => deleted.push(file),
            Err(error) => shared.say(format!("the file of segment {} stays for now: {error}", file.segment)),
        }
    }
    stop_point::reached("segment files deleted");
    let mut batch = shared.store.batch();
    deleted.iter().for_each(|file| batch.remove_garbage(file.segment));
    batch.write()?;
    lock(&shared.cold.garbage).retain(|file| !deleted.contains(file));
    shared.cache.header().counters.segments_deleted.fetch_add(deleted.len() as u64, Ordering::Relaxed);
    Ok(deleted.len() as u64)
}

/// Whether the time of a file has come: its retention is over, or nobody will commit it any more.
fn is_due(file: &Garbage, retention: u64) -> bool {
    file.since.saturating_add(if file.announced { ANNOUNCED_SECONDS } else { retention }) <= now()
}

/// Whether files wait for the end of their retention, or for their location.
pub(super) fn has_garbage(shared: &Shared) -> bool {
    !lock(&shared.cold.garbage).is_empty()
}
