//! A batch of changes to the store: all of it becomes visible, and later durable, or none.

use std::sync::atomic::Ordering;

use rocksdb::{WriteBatch, WriteOptions};

use super::format::{self, DurableMark};
use super::{Store, failure};
use crate::cache::StorageInfo;
use crate::error::Result;
use crate::ids::{PageKey, StorageId};

/// Changes that are not written yet.
pub struct Batch<'a> {
    pub(super) store: &'a Store,
    pub(super) changes: WriteBatch,
    value: Vec<u8>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(store: &'a Store) -> Batch<'a> {
        Batch { store, changes: WriteBatch::default(), value: Vec::new() }
    }

    /// Stores the compact image of a page.
    pub fn put_page(&mut self, key: PageKey, image: &[u8]) {
        format::encode_page(image, &mut self.value);
        self.changes.put_cf(self.store.pages_family(), format::page_key(key), &self.value);
    }

    /// Stores a storage's descriptor.
    pub fn put_storage(&mut self, storage: &StorageInfo) {
        self.changes.put_cf(self.store.meta_family(), format::storage_key(storage.id), format::encode_storage(storage));
    }

    /// Notes that a page is lost: it is not to be read, whatever the store has of it.
    pub fn put_quarantine(&mut self, key: PageKey) {
        self.changes.put_cf(self.store.meta_family(), format::quarantine_key(key), b"");
    }

    /// Notes that a page is whole again, as the log made it anew.
    pub fn remove_quarantine(&mut self, key: PageKey) {
        self.changes.delete_cf(self.store.meta_family(), format::quarantine_key(key));
    }

    /// Removes a storage: its descriptor and all its pages, hot and cold. The files of its segments are the caller's care.
    pub fn remove_storage(&mut self, storage: StorageId) {
        self.changes.delete_cf(self.store.meta_family(), format::storage_key(storage));
        let (from, to) = format::storage_range(storage);
        self.changes.delete_range_cf(self.store.pages_family(), from, to);
        self.changes.delete_range_cf(self.store.cold_family(), from, to);
        let segments = |bound: &[u8]| [format::KEY_SEGMENT, bound].concat();
        self.changes.delete_range_cf(self.store.meta_family(), segments(&from), segments(&to));
        let (from, to) = ([format::KEY_QUARANTINE, &from].concat(), [format::KEY_QUARANTINE, &to].concat());
        self.changes.delete_range_cf(self.store.meta_family(), from, to);
    }

    /// Stores the durable mark. The caller has written every page the mark speaks for.
    pub fn put_mark(&mut self, mark: &DurableMark) {
        self.changes.put_cf(self.store.meta_family(), format::KEY_MARK, mark.encode());
    }

    /// Stores the next storage id that was never given out.
    pub fn put_next_storage_id(&mut self, next: StorageId) {
        self.changes.put_cf(self.store.meta_family(), format::KEY_NEXT_STORAGE, next.0.to_le_bytes());
    }

    pub(super) fn put_flush_number(&mut self, number: u64) {
        self.changes.put_cf(self.store.meta_family(), format::KEY_FLUSH, number.to_le_bytes());
    }

    pub(super) fn put_format_version(&mut self, version: u32) {
        self.changes.put_cf(self.store.meta_family(), format::KEY_FORMAT, version.to_le_bytes());
    }

    /// Bytes the batch holds.
    pub fn bytes(&self) -> usize {
        self.changes.size_in_bytes()
    }

    /// Writes the changes into the write buffers; [`Store::flush`] makes them durable.
    ///
    /// After an error nothing of the batch is in the store.
    ///
    /// # Errors
    /// `DiskFull`, `Corrupt` or `Io`: the store takes no writes.
    pub fn write(self) -> Result<()> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.store.db.write_opt(self.changes, &options).map_err(|error| failure::using("write pages", error))?;
        self.store.written.fetch_add(1, Ordering::Release);
        Ok(())
    }
}
