//! Replay: does to the cached pages what the log says, from the durable mark to the log's end.
//!
//! Pages that replay loads stay hidden from everybody else until its end, as they show a state of the past. Pages that a running
//! cluster has in its cache already are newer than the log's records about them, or wait for exactly that record's position: their
//! latch is taken before positions are compared.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::cold::build::{Found, Stub, find_page};
use super::shared::{Shared, WhileHealthy};
use super::stop_point;
use crate::cache::{RelationFile, StorageInfo, Wait};
use crate::error::{Error, Result};
use crate::ids::{Lsn, PageKey, StorageId};
use crate::log::{Group, Op, Record, StorageCreate, apply_group};
use crate::page::{CHAIN_FANOUT, PageKind};

/// The state of a replay.
pub(super) struct Replay {
    /// End of the last record.
    position: Lsn,
    /// Places in the storage table; none for storages that are purged or superseded.
    places: HashMap<StorageId, Option<u32>>,
    image: Vec<u8>,
}

impl Replay {
    pub(super) fn new(from: Lsn) -> Replay {
        Replay { position: from, places: HashMap::new(), image: Vec::new() }
    }

    /// Replays one record.
    pub(super) fn record(&mut self, shared: &Shared, end: Lsn, payload: &[u8], wait: &dyn Wait) -> Result<()> {
        if end <= self.position {
            return Err(Error::internal(format!("log record that ends at {end} comes after {}", self.position)));
        }
        // A log that is read is flushed.
        shared.cache.header().flushed_lsn.fetch_max(end.0, Ordering::SeqCst);
        let record = Record::decode(payload).map_err(|error| error.with_detail(format!("The record ends at {end}.")))?;
        if let Some(create) = record.create_storage() {
            self.create_storage(shared, &create)?;
        }
        let wait = WhileHealthy { shared, wait };
        for group in record.groups() {
            if self.has_storage(shared, group.key.storage, end)? {
                self.group(shared, &group, end, &wait)?;
            }
        }
        self.position = end;
        shared.set_replayed(end);
        shared.cache.header().counters.replayed.fetch_add(1, Ordering::Relaxed);
        stop_point::reached("record replayed");
        Ok(())
    }

    /// Registers a storage, unless it is there or its files have a newer one already.
    fn create_storage(&mut self, shared: &Shared, create: &StorageCreate) -> Result<()> {
        let table = shared.cache.storages();
        shared.cache.header().note_storage_id(create.storage);
        if self.place(shared, create.storage).is_some() {
            return Ok(());
        }
        let StorageCreate { tablespace, database, relnumber, owner, .. } = *create;
        let file = RelationFile { tablespace, database, relnumber, owner };
        let present = table.find(&file).map(|place| table.at(place).id());
        if present.is_some_and(|present| present > create.storage) {
            self.places.insert(create.storage, None);
            return Ok(());
        }
        let storage = StorageInfo::empty(create.storage, file, create.unlogged, create.xid);
        let (place, superseded) = table.create(&storage)?;
        self.places.insert(create.storage, Some(place));
        if let Some(superseded) = superseded {
            self.places.insert(superseded.id, None);
            shared.purge_wanted.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// The storage's place in the table, if it has one.
    fn place(&mut self, shared: &Shared, id: StorageId) -> Option<u32> {
        let table = shared.cache.storages();
        let place = *self.places.entry(id).or_insert_with(|| table.find_id(id));
        // A storage that was dropped meanwhile leaves its place.
        place.filter(|place| table.at(*place).id() == id)
    }

    /// Whether a storage is there; one that is not was purged.
    fn has_storage(&mut self, shared: &Shared, id: StorageId, end: Lsn) -> Result<bool> {
        if self.place(shared, id).is_some() {
            return Ok(true);
        }
        if id.0 < shared.cache.header().next_storage_id.load(Ordering::SeqCst) {
            return Ok(false);
        }
        Err(Error::corrupt(format!("log record changes storage {}, which was never created", id.0))
            .with_detail(format!("The record ends at {end}.")))
    }

    fn group(&mut self, shared: &Shared, group: &Group<'_>, end: Lsn, wait: &dyn Wait) -> Result<()> {
        let key = group.key;
        self.note_page(shared, group);
        if group.starts_empty {
            if shared.quarantine.contains(key) {
                release(shared, key)?;
            }
        } else if shared.quarantine.contains(key) {
            return Ok(());
        }
        if is_in_segment(shared, key, end)? {
            return Ok(());
        }
        let image = &mut self.image;
        let loaded = shared.cache.replay_page(key, wait, &mut |found| {
            if group.starts_empty {
                return found(None);
            }
            match find_page(shared, key, image)? {
                Found::Nothing => found(None),
                Found::Hot | Found::Built(..) => found(Some(image)),
            }
        });
        let pin = match loaded {
            Ok(pin) => pin,
            Err(error) if error.kind() == crate::ErrorKind::Corrupt => return quarantine(shared, key, end, &error),
            Err(error) => return Err(error),
        };
        let mut guard = pin.exclusive(wait)?;
        if guard.page().lsn() >= end {
            return Ok(());
        }
        if !group.starts_empty && guard.page().kind() == PageKind::Unused {
            return quarantine(shared, key, end, &Error::corrupt("the page is missing"));
        }
        let half_changed = AbortOnPanic;
        let applied = apply_group(group, end, &mut guard.page_mut());
        if let Err(error) = applied {
            guard.page_mut().init(PageKind::Unused, 0);
            std::mem::forget(half_changed);
            return quarantine(shared, key, end, &error);
        }
        std::mem::forget(half_changed);
        guard.mark_dirty(self.position);
        Ok(())
    }

    /// Counts the page as given out, and the blocks that a user was given.
    fn note_page(&mut self, shared: &Shared, group: &Group<'_>) {
        let key = group.key;
        let Some(place) = self.place(shared, key.storage) else { return };
        let descriptor = shared.cache.storages().at(place);
        if let Some(block) = key.page.as_block() {
            descriptor.note_block(block);
        } else if let Some((value, _)) = key.page.as_overflow() {
            descriptor.next_value.fetch_max(value + 1, Ordering::AcqRel);
        } else if let Some(number) = key.page.as_chains() {
            for op in group.ops.clone() {
                if let Op::Chain { index, .. } = op {
                    descriptor.note_block(number.saturating_mul(CHAIN_FANOUT).saturating_add(index));
                }
            }
        }
    }
}

/// Whether a page is cold and its segment has what a record did: the page is neither built nor made anew.
fn is_in_segment(shared: &Shared, key: PageKey, end: Lsn) -> Result<bool> {
    if !shared.cold.has(key.storage) || shared.store.page_lsn(key)?.is_some() {
        return Ok(false);
    }
    Ok(Stub::find(shared, key)?.is_some_and(|stub| stub.lsn() >= end))
}

/// Gives a page up. Written before the record counts as replayed, so that no mark can pass it silently.
#[cold]
fn quarantine(shared: &Shared, key: PageKey, end: Lsn, cause: &Error) -> Result<()> {
    let mut batch = shared.store.batch();
    batch.put_quarantine(key);
    batch.write()?;
    shared.quarantine.insert(key);
    shared.say(format!(
        "page {:#x} of storage {} is lost: the log record that ends at {end} cannot be replayed: {}",
        key.page.0,
        key.storage.0,
        cause.for_log()
    ));
    Ok(())
}

/// The log makes a lost page anew.
#[cold]
fn release(shared: &Shared, key: PageKey) -> Result<()> {
    let mut batch = shared.store.batch();
    batch.remove_quarantine(key);
    batch.write()?;
    shared.quarantine.retain(|page| page != key);
    Ok(())
}

/// A half-changed page in a cache that others use must not outlive a panic.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}
