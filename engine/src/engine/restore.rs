//! The engine's start: finds out what the store holds and gives it to the cache.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use super::cold::{Cold, files};
use super::{EngineConfig, stop_point};
use crate::cache::{Cache, StorageInfo, WaitForever};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Lsn, PageKey, PageNumber, StorageId};
use crate::page::COLD;
use crate::store::{DurableMark, Store};

/// What the store holds.
pub(super) struct Restored {
    pub(super) mark: DurableMark,
    /// The storages' descriptors as they are stored.
    pub(super) known: HashMap<StorageId, Option<StorageInfo>>,
    pub(super) quarantine: Vec<PageKey>,
    pub(super) cold: Cold,
    /// Whether the cache outlived its last worker.
    pub(super) warm: bool,
}

/// Brings the cache and the store to one state: everything before the mark is in the store, everything else the cache has is dirty.
pub(super) fn restore(cache: &Cache, store: &Store, config: &EngineConfig) -> Result<Restored> {
    let header = cache.header();
    // Published once the storages are restored: a cache that has it outlived its worker, and its storage table is the newer one.
    let warm = header.durable_lsn.load(Ordering::SeqCst) != 0;
    let mark = match store.mark()? {
        Some(mark) => check_mark(mark, config)?,
        None if warm => return Err(lost(config)),
        None => begin(store, config)?,
    };
    let next = store.next_storage_id()?;
    header.next_storage_id.fetch_max(next.0, Ordering::SeqCst);
    let stored = store.storages()?;
    if warm {
        // Its last worker took pages to memory that is gone.
        cache.mark_dirty_since(mark.lsn);
        warm_up(cache, store, mark.lsn)?;
    } else {
        let present: HashSet<StorageId> = cache.storages().list().iter().map(|storage| storage.id).collect();
        for storage in stored.iter().filter(|storage| !present.contains(&storage.id)) {
            cache.storages().create(storage)?;
        }
    }
    for storage in cache.storages().in_use() {
        storage.stored_bytes.store(store.storage_bytes(storage.id()), Ordering::Relaxed);
    }
    // A store that is older than the files must not give out their numbers again: a file says its number itself, and with the number
    // taken its rows could not be had any more.
    header.next_segment.fetch_max(store.next_segment()?.max(files::next_number(&config.segments)), Ordering::SeqCst);
    let cold = Cold::open(store)?;
    cold.storages().iter().for_each(|storage| cold.publish(cache, *storage));
    stop_point::reached("storages restored");
    header.durable_lsn.store(mark.lsn.0, Ordering::SeqCst);
    let mut known: HashMap<StorageId, Option<StorageInfo>> =
        stored.into_iter().map(|storage| (storage.id, Some(storage))).collect();
    for storage in cold.storages() {
        known.entry(storage).or_insert(None);
    }
    Ok(Restored { mark, known, quarantine: store.quarantine()?, cold, warm })
}

/// Makes cold pages in the cache hot ones whose stubs were lost with the last worker: the store has older hot images of them.
fn warm_up(cache: &Cache, store: &Store, position: Lsn) -> Result<()> {
    for key in cache.cold_pages() {
        let stub = match key.page.as_overflow() {
            Some((value, _)) => PageKey { page: PageNumber::overflow(value, 0), ..key },
            None => key,
        };
        let Some(pin) = cache.lookup(key).filter(|_| !store.has_stub(stub).unwrap_or(false)) else { continue };
        let mut guard = pin.exclusive(&WaitForever)?;
        if guard.page().is_cold() {
            guard.page_mut().clear_flags(COLD);
            guard.mark_dirty(position);
        }
    }
    Ok(())
}

/// Stamps a new store.
fn begin(store: &Store, config: &EngineConfig) -> Result<DurableMark> {
    if config.log_end == Lsn::INVALID {
        return Err(Error::internal("the log's end is not known"));
    }
    let mark = DurableMark { lsn: config.log_end, system_identifier: config.system_identifier, timeline: config.timeline };
    let mut batch = store.batch();
    batch.put_mark(&mark);
    // A store that was made before this one and comes back gave out lower ids: each of them took some bytes of the log.
    batch.put_next_storage_id(StorageId(config.log_end.0));
    batch.write()?;
    store.flush()?;
    Ok(mark)
}

fn check_mark(mark: DurableMark, config: &EngineConfig) -> Result<DurableMark> {
    let directory = config.directory.display();
    let refuse = |detail: String| {
        Err(Error::new(
            ErrorKind::StorageMissing,
            format!("the store in \"{directory}\" does not belong to this state of the cluster"),
        )
        .with_detail(detail)
        .with_hint("Restore the cluster together with this directory, or dump and reload the tables of kalamdb."))
    };
    if mark.system_identifier != config.system_identifier {
        let (stored, own) = (mark.system_identifier, config.system_identifier);
        return refuse(format!("It belongs to the cluster with system identifier {stored}; this cluster has {own}."));
    }
    if mark.timeline != config.timeline {
        return refuse(format!("It was written on timeline {}; the cluster is on timeline {}.", mark.timeline, config.timeline));
    }
    if mark.lsn > config.log_end {
        return refuse(format!("It is complete up to {}, but the write-ahead log ends at {}.", mark.lsn, config.log_end));
    }
    Ok(mark)
}

fn lost(config: &EngineConfig) -> Error {
    Error::new(
        ErrorKind::StorageMissing,
        format!("the store in \"{}\" was lost while the server ran", config.directory.display()),
    )
    .with_hint("Restore the directory and restart the server.")
}
