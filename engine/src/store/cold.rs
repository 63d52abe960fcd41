//! Cold blocks in the store: stubs under the keys of their pages, and the manifest: which segments there are, where, and which files
//! are to be deleted.
//!
//! A page is read from the family of hot pages first, and from its stub only if it is not there. A block has either; an overflow value's
//! stub stays below hot chunks of the value, and serves those that are not hot.

use rocksdb::{Direction, IteratorMode, ReadOptions};

use super::{Batch, Store, failure, format};
use crate::cold::{Garbage, SegmentRecord, StoredLocation};
use crate::error::{Error, Result};
use crate::ids::{Lsn, PageKey, PageNumber, StorageId};
use crate::page::compact_lsn;
use crate::segment::{BlockStub, ValueStub};

const RECORD_VERSION: u8 = 1;

impl Store {
    fn stub(&self, key: PageKey) -> Result<Option<Vec<u8>>> {
        self.db.get_cf(self.cold_family(), format::page_key(key)).map_err(|error| failure::page(key, error))
    }

    /// Whether there is a stub under a page's key.
    ///
    /// # Errors
    /// Those of RocksDB.
    pub fn has_stub(&self, key: PageKey) -> Result<bool> {
        let found = self.db.get_pinned_cf(self.cold_family(), format::page_key(key));
        Ok(found.map_err(|error| failure::page(key, error))?.is_some())
    }

    /// The stub of a block.
    ///
    /// # Errors
    /// `Corrupt` when it has no valid form; those of RocksDB.
    pub fn block_stub(&self, key: PageKey) -> Result<Option<BlockStub>> {
        self.stub(key)?.map(|bytes| BlockStub::decode(&bytes)).transpose()
    }

    /// The stub of an overflow value.
    ///
    /// # Errors
    /// As [`Store::block_stub`].
    pub fn value_stub(&self, storage: StorageId, value: u32) -> Result<Option<ValueStub>> {
        let key = PageKey { storage, page: PageNumber::overflow(value, 0) };
        self.stub(key)?.map(|bytes| ValueStub::decode(&bytes)).transpose()
    }

    /// Goes through a storage's pages with stubs from `from` on, as long as `visit` answers true.
    ///
    /// # Errors
    /// What `visit` answers; those of RocksDB.
    pub fn stubs(
        &self,
        storage: StorageId,
        from: PageNumber,
        visit: &mut dyn FnMut(PageNumber, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        let first = format::page_key(PageKey { storage, page: from });
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(format::storage_range(storage).1);
        let entries = self.db.iterator_cf_opt(self.cold_family(), options, IteratorMode::From(&first, Direction::Forward));
        for entry in entries {
            let (key, stub) = entry.map_err(|error| failure::using("read the list of cold blocks", error))?;
            let Some(page) = key.last_chunk::<8>().map(|page| PageNumber(u64::from_be_bytes(*page))) else { continue };
            if !visit(page, &stub)? {
                break;
            }
        }
        Ok(())
    }

    /// The LSN of a stored hot page; nothing when the store has none.
    ///
    /// # Errors
    /// As [`Store::read_page`].
    pub fn page_lsn(&self, key: PageKey) -> Result<Option<Lsn>> {
        let found = self.db.get_pinned_cf(self.pages_family(), format::page_key(key));
        match found.map_err(|error| failure::page(key, error))? {
            Some(value) => Ok(Some(compact_lsn(format::decode_page(key, &value)?)?)),
            None => Ok(None),
        }
    }

    /// All segments of all storages.
    ///
    /// # Errors
    /// `Corrupt` when a record has no valid form; those of RocksDB.
    pub fn segments(&self) -> Result<Vec<SegmentRecord>> {
        self.meta_entries("the list of segments", format::KEY_SEGMENT, |key, value| {
            key.starts_with(format::KEY_SEGMENT).then(|| decode("segment", value))
        })
    }

    /// The files that are to be deleted.
    ///
    /// # Errors
    /// As [`Store::segments`].
    pub fn garbage(&self) -> Result<Vec<Garbage>> {
        self.meta_entries("the list of files to delete", format::KEY_GARBAGE, |key, value| {
            key.starts_with(format::KEY_GARBAGE).then(|| decode("file to delete", value))
        })
    }

    /// The definitions of the locations that segments may be in.
    ///
    /// # Errors
    /// As [`Store::segments`].
    pub fn locations(&self) -> Result<Vec<StoredLocation>> {
        self.meta_entries("the list of locations", format::KEY_LOCATION, |key, value| {
            key.starts_with(format::KEY_LOCATION).then(|| decode("location", value))
        })
    }

    /// The next segment number that was never given out, as far as segments were announced or committed.
    ///
    /// # Errors
    /// As [`Store::mark`].
    pub fn next_segment(&self) -> Result<u64> {
        match self.meta(format::KEY_NEXT_SEGMENT)? {
            Some(value) => format::decode_storage_id(&value).map(|id| id.0),
            None => Ok(1),
        }
    }
}

impl Batch<'_> {
    /// Puts the stub of a page or value.
    pub fn put_stub(&mut self, key: PageKey, stub: &[u8]) {
        self.changes.put_cf(self.store.cold_family(), format::page_key(key), stub);
    }

    /// Removes a stub.
    pub fn remove_stub(&mut self, key: PageKey) {
        self.changes.delete_cf(self.store.cold_family(), format::page_key(key));
    }

    /// Removes the hot image of a page.
    pub fn remove_page(&mut self, key: PageKey) {
        self.changes.delete_cf(self.store.pages_family(), format::page_key(key));
    }

    /// Puts a segment into the manifest.
    pub fn put_segment(&mut self, segment: &SegmentRecord) -> Result<()> {
        let key = format::segment_key(segment.storage, segment.segment);
        self.changes.put_cf(self.store.meta_family(), key, encode(segment)?);
        self.note_segment(segment.segment)
    }

    /// A number that was given out; segments are not committed in the order of their numbers.
    fn note_segment(&mut self, segment: u64) -> Result<()> {
        let next = self.store.next_segment()?.max(segment + 1);
        self.changes.put_cf(self.store.meta_family(), format::KEY_NEXT_SEGMENT, next.to_le_bytes());
        Ok(())
    }

    /// Takes a segment out of the manifest.
    pub fn remove_segment(&mut self, segment: &SegmentRecord) {
        self.changes.delete_cf(self.store.meta_family(), format::segment_key(segment.storage, segment.segment));
    }

    /// Notes that a file is to be deleted.
    pub fn put_garbage(&mut self, garbage: &Garbage) -> Result<()> {
        self.changes.put_cf(self.store.meta_family(), format::garbage_key(garbage.segment), encode(garbage)?);
        // Another file of that number would take this one's place among those to delete. A segment that was committed is counted.
        if garbage.announced { self.note_segment(garbage.segment) } else { Ok(()) }
    }

    /// Notes that a segment has no file that is to be deleted.
    pub fn remove_garbage(&mut self, segment: u64) {
        self.changes.delete_cf(self.store.meta_family(), format::garbage_key(segment));
    }

    /// Puts the definition of a location.
    pub fn put_location(&mut self, location: &StoredLocation) -> Result<()> {
        let key = format::location_key(location.database, &location.name);
        self.changes.put_cf(self.store.meta_family(), key, encode(location)?);
        Ok(())
    }

    /// Removes the definition of a location.
    pub fn remove_location(&mut self, database: u32, name: &str) {
        self.changes.delete_cf(self.store.meta_family(), format::location_key(database, name));
    }
}

/// A version byte and JSON: small, and readable when it has to be mended by hand.
fn encode(record: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut value = vec![RECORD_VERSION];
    serde_json::to_writer(&mut value, record).map_err(|error| Error::internal("could not encode a record").with_source(error))?;
    Ok(value)
}

fn decode<T: serde::de::DeserializeOwned>(what: &str, value: &[u8]) -> Result<T> {
    match value.split_first() {
        Some((&RECORD_VERSION, json)) => serde_json::from_slice(json)
            .map_err(|error| Error::corrupt(format!("the store's record of a {what} has no valid form")).with_source(error)),
        _ => Err(Error::corrupt(format!("the store's record of a {what} has an unknown format"))),
    }
}
