//! What files of the store still have of values that were overwritten or removed: getting rid of it, and finding out.

use std::collections::HashSet;

use rocksdb::{BottommostLevelCompaction, ColumnFamily, CompactOptions, IteratorMode, LiveFile, WaitForCompactOptions};

use super::{COLD, META, PAGES, Store, failure, format};
use crate::error::{Error, ErrorKind, Result, sentence};
use crate::ids::{PageKey, PageNumber, StorageId};

/// Gets the column family, the key and the value of an entry.
pub type EntryVisitor<'a> = dyn FnMut(&str, &[u8], &[u8]) + 'a;

/// Bytes of table files that are written anew between two pauses, about.
const SLICE_BYTES: usize = 256 << 20;
/// Longest wait for RocksDB between two pauses, in microseconds.
const WAIT_MICROSECONDS: u64 = 100_000;
/// A page's key, as RocksDB compares it.
type Key = [u8; format::PAGE_KEY_LENGTH];

impl Store {
    /// Writes all tables anew that have something of these storages, and the meta data: afterwards no file has a page, a stub or a
    /// segment's record of them that was overwritten or removed before the call.
    ///
    /// `pause` is called between pieces of the work, which goes no further when it answers an error.
    ///
    /// # Errors
    /// Those of [`Store::flush`] and of `pause`; `Io` and others when files could not be written anew.
    pub fn drop_superseded(&self, storages: &[StorageId], pause: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.flush()?;
        let _still = self.still(pause)?;
        for storage in storages {
            for (name, family) in [(PAGES, self.pages_family()), (COLD, self.cold_family())] {
                for (from, to) in self.slices(name, *storage)? {
                    pause()?;
                    self.rewrite(name, family, Some((&from, &to)))?;
                }
            }
        }
        pause()?;
        self.rewrite(META, self.meta_family(), None)
    }

    /// Keeps RocksDB from merging files by itself. A file that it makes of two others between the steps of a rewrite would take part in
    /// none of them, and with it what it supersedes.
    fn still(&self, pause: &mut dyn FnMut() -> Result<()>) -> Result<Still<'_>> {
        let still = Still(self);
        self.set_merging(false)?;
        let mut options = WaitForCompactOptions::default();
        options.set_timeout(WAIT_MICROSECONDS);
        // What is being merged at the moment.
        while let Err(error) = self.db.wait_for_compact(&options) {
            if error.kind() != rocksdb::ErrorKind::TimedOut {
                return Err(failure::using("wait for the merging of files", error));
            }
            pause()?;
        }
        Ok(still)
    }

    fn set_merging(&self, on: bool) -> Result<()> {
        if !self.automatic_compaction {
            return Ok(());
        }
        let option = [("disable_auto_compactions", if on { "false" } else { "true" })];
        for family in [self.pages_family(), self.cold_family(), self.meta_family()] {
            self.db.set_options_cf(family, &option).map_err(|error| failure::using("change the merging of files", error))?;
        }
        Ok(())
    }

    /// The keys of a storage in a family in pieces whose files have a bounded size. The bounds are part of their piece.
    fn slices(&self, family: &str, storage: StorageId) -> Result<Vec<(Key, Key)>> {
        let (first, last) = all_of(storage);
        let mut starts: Vec<(Key, usize)> = self
            .files(family, Some((&first, &last)))?
            .iter()
            .map(|file| {
                let start = file.start_key.as_deref().and_then(|key| key.first_chunk().copied()).unwrap_or(first);
                (start.max(first), file.size)
            })
            .collect();
        starts.sort_unstable();
        Ok(cut(first, last, &starts, SLICE_BYTES))
    }

    /// The files of a family that have something of a range.
    fn files(&self, family: &str, range: Option<(&Key, &Key)>) -> Result<Vec<LiveFile>> {
        let mut files = self.db.live_files().map_err(|error| failure::using("list the store's files", error))?;
        files.retain(|file| {
            let overlaps = |(from, to): (&Key, &Key)| {
                file.start_key.as_ref().is_none_or(|start| start.as_slice() <= to.as_slice())
                    && file.end_key.as_ref().is_none_or(|end| end.as_slice() >= from.as_slice())
            };
            file.column_family_name == family && range.is_none_or(overlaps)
        });
        Ok(files)
    }

    /// Has RocksDB write a range's tables anew, down into the last level; without a range, those of the whole family.
    ///
    /// The interface does not tell whether that succeeded. Then none of the files is left that were there before.
    pub(super) fn rewrite(&self, name: &str, family: &ColumnFamily, range: Option<(&Key, &Key)>) -> Result<()> {
        let before: HashSet<String> = self.files(name, range)?.into_iter().map(|file| file.name).collect();
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        options.set_exclusive_manual_compaction(false);
        self.db.compact_range_cf_opt(family, range.map(|(from, _)| from), range.map(|(_, to)| to), &options);
        // RocksDB passes over files whose bounds are around the range and which have no key in it. From its own first key to its last
        // one, each has some.
        for file in self.files(name, range)?.iter().filter(|file| before.contains(&file.name)) {
            self.db.compact_range_cf_opt(family, file.start_key.as_deref(), file.end_key.as_deref(), &options);
        }
        match self.files(name, range)?.into_iter().find(|file| before.contains(&file.name)) {
            Some(left) => Err(self.not_rewritten(&left.name)),
            None => Ok(()),
        }
    }

    /// Why a file is still there, as far as RocksDB tells.
    #[cold]
    fn not_rewritten(&self, file: &str) -> Error {
        let mut options = WaitForCompactOptions::default();
        options.set_timeout(WAIT_MICROSECONDS);
        match self.db.wait_for_compact(&options) {
            Err(error) if error.kind() != rocksdb::ErrorKind::TimedOut => failure::using("write the store's files anew", error),
            _ => Error::new(ErrorKind::Io, "could not write the store's files anew")
                .with_detail(sentence(format!("the file \"{file}\" is still there")))
                .with_hint("The file \"LOG\" in the store's directory may tell why."),
        }
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

/// The first and the last key that a page of a storage can have.
pub(super) fn all_of(storage: StorageId) -> (Key, Key) {
    let key = |page| format::page_key(PageKey { storage, page: PageNumber(page) });
    (key(0), key(u64::MAX))
}

/// Cuts a range where files begin that have about `most` bytes before them, or before them since the last cut.
fn cut(first: Key, last: Key, starts: &[(Key, usize)], most: usize) -> Vec<(Key, Key)> {
    let (mut slices, mut from, mut bytes) = (Vec::new(), first, 0);
    for &(start, size) in starts {
        if bytes >= most && start > from {
            // Not the first key of the next piece's first file, which would be written twice.
            slices.push((from, (u128::from_be_bytes(start) - 1).to_be_bytes()));
            (from, bytes) = (start, 0);
        }
        bytes += size;
    }
    slices.push((from, last));
    slices
}

/// RocksDB merges no files by itself while this is there.
struct Still<'a>(&'a Store);

impl Drop for Still<'_> {
    fn drop(&mut self) {
        // Refused only by a store that takes no writes, and then it is opened anew.
        let _ = self.0.set_merging(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    fn count(store: &Store, needle: &[u8]) -> (u64, u64) {
        let mut found = 0;
        let superseded = store.examine(&mut |_, _, value| found += u64::from(value.ends_with(needle))).unwrap();
        (found, superseded)
    }

    fn overwritten(directory: &std::path::Path, automatic_compaction: bool) -> Store {
        let options = StoreOptions { automatic_compaction, ..StoreOptions::default() };
        let store = Store::open(directory, &options).unwrap();
        for round in ["secret", "public"] {
            let mut batch = store.batch();
            for block in 0..10 {
                batch.put_page(PageKey::block(StorageId(1), block), format!("page {round}").as_bytes());
                batch.put_page(PageKey::block(StorageId(2), block), format!("other {round}").as_bytes());
            }
            batch.write().unwrap();
            store.flush().unwrap();
        }
        store
    }

    #[test]
    fn what_was_overwritten_is_in_no_file_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let store = overwritten(directory.path(), false);
        assert_eq!(count(&store, b"secret"), (0, 20));
        assert_eq!(count(&store, b"page public").0, 10);
        store.drop_superseded(&[StorageId(1), StorageId(2)], &mut || Ok(())).unwrap();
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

    #[test]
    fn a_rewrite_that_fails_or_is_ended_is_no_success() {
        let directory = tempfile::tempdir().unwrap();
        let store = overwritten(directory.path(), true);
        let mut pauses = 0;
        let ended = store.drop_superseded(&[StorageId(1)], &mut || {
            pauses += 1;
            if pauses > 1 { Err(Error::new(ErrorKind::Cancelled, "enough")) } else { Ok(()) }
        });
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
        // A file cannot be made where a directory is.
        for number in 1..200 {
            let _ = std::fs::create_dir(directory.path().join(format!("{number:06}.sst")));
        }
        let error = store.drop_superseded(&[StorageId(1), StorageId(2)], &mut || Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(error.detail().is_some());
    }

    #[test]
    fn a_large_storage_is_cut_where_files_begin() {
        let (first, last) = all_of(StorageId(1));
        let key = |block| format::page_key(PageKey::block(StorageId(1), block));
        assert_eq!(cut(first, last, &[], 10), [(first, last)]);
        let starts = [(first, 10), (first, 10), (key(50), 4), (key(60), 5), (key(60), 5), (key(70), 1)];
        assert_eq!(cut(first, last, &starts, 10), [(first, key(49)), (key(50), key(69)), (key(70), last)]);
    }
}
