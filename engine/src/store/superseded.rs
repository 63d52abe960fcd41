//! What files of the store still have of values that were overwritten or removed: getting rid of it, and finding out.

use rocksdb::{BottommostLevelCompaction, ColumnFamily, CompactOptions, IteratorMode};

use super::{COLD, META, PAGES, Store, failure, format};
use crate::error::Result;
use crate::ids::StorageId;

/// Gets the column family, the key and the value of an entry.
pub type EntryVisitor<'a> = dyn FnMut(&str, &[u8], &[u8]) + 'a;

impl Store {
    /// Writes all tables anew that have something of these storages, and the meta data: afterwards no file has a page, a stub or a
    /// segment's record of them that was overwritten or removed before the call.
    ///
    /// # Errors
    /// Those of [`Store::flush`].
    pub fn drop_superseded(&self, storages: &[StorageId]) -> Result<()> {
        self.flush()?;
        for storage in storages {
            self.compact_storage(*storage);
            let (from, to) = format::storage_range(*storage);
            self.rewrite(self.cold_family(), Some(&from), Some(&to));
        }
        self.rewrite(self.meta_family(), None, None);
        Ok(())
    }

    /// Has RocksDB write a range's tables anew, down into the last level; without bounds, those of the whole family.
    pub(super) fn rewrite(&self, family: &ColumnFamily, from: Option<&[u8]>, to: Option<&[u8]>) {
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        options.set_exclusive_manual_compaction(false);
        self.db.compact_range_cf_opt(family, from, to, &options);
    }

    /// Shows every value of the store, and returns how many entries the files of pages and of stubs have that are no value any more:
    /// those that were overwritten, and the marks of those that were removed. For proofs that something is gone.
    ///
    /// # Errors
    /// Those of RocksDB.
    pub fn examine(&self, visit: &mut EntryVisitor<'_>) -> Result<u64> {
        let mut values = 0;
        for (name, family) in [(PAGES, self.pages_family()), (COLD, self.cold_family()), (META, self.meta_family())] {
            for entry in self.db.iterator_cf(family, IteratorMode::Start) {
                let (key, value) = entry.map_err(|error| failure::using("read the store", error))?;
                values += u64::from(name != META);
                visit(name, &key, &value);
            }
        }
        let files = self.db.live_files().map_err(|error| failure::using("list the store's files", error))?;
        let entries: u64 = files.iter().filter(|file| file.column_family_name != META).map(|file| file.num_entries).sum();
        Ok(entries.saturating_sub(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PageKey;
    use crate::store::StoreOptions;

    fn count(store: &Store, needle: &[u8]) -> (u64, u64) {
        let mut found = 0;
        let superseded = store.examine(&mut |_, _, value| found += u64::from(value.ends_with(needle))).unwrap();
        (found, superseded)
    }

    #[test]
    fn what_was_overwritten_is_in_no_file_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let options = StoreOptions { automatic_compaction: false, ..StoreOptions::default() };
        let store = Store::open(directory.path(), &options).unwrap();
        for round in ["secret", "public"] {
            let mut batch = store.batch();
            for block in 0..10 {
                batch.put_page(PageKey::block(StorageId(1), block), format!("page {round}").as_bytes());
                batch.put_page(PageKey::block(StorageId(2), block), format!("other {round}").as_bytes());
            }
            batch.write().unwrap();
            store.flush().unwrap();
        }
        assert_eq!(count(&store, b"secret"), (0, 20));
        assert_eq!(count(&store, b"page public").0, 10);
        store.drop_superseded(&[StorageId(1), StorageId(2)]).unwrap();
        assert_eq!(count(&store, b"secret"), (0, 0));
        assert_eq!(count(&store, b"page public").0, 10);
        let raw: Vec<Vec<u8>> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
            .map(|path| std::fs::read(path).unwrap())
            .collect();
        assert!(!raw.is_empty() && !raw.iter().any(|file| file.windows(6).any(|bytes| bytes == b"secret")));
    }
}
