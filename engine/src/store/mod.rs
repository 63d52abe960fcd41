//! The store: RocksDB with one value per page, the storages' descriptors and the durable mark; the only module that names `rocksdb`.
//!
//! RocksDB's own log is off: what a page contains before the next flush is found again in Postgres' log, from the durable mark on. Column
//! families flush atomically and only so, hence a mark is never on disk without the pages that were written before it.

mod batch;
mod cold;
mod failure;
mod format;
mod options;
mod superseded;
mod values;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rocksdb::{ColumnFamily, DB, FlushOptions, IteratorMode, Range, ReadOptions, ReadTier};

pub use batch::Batch;
pub use format::DurableMark;
pub use options::StoreOptions;

use crate::cache::StorageInfo;
use crate::error::{Error, ErrorKind, Result, sentence};
use crate::ids::{PageKey, StorageId};

/// The format of everything in the store; a store of a newer format is refused.
pub const FORMAT_VERSION: u32 = 1;

const PAGES: &str = "pages";
const COLD: &str = "cold";
const META: &str = "meta";

/// Time between two looks at what a flush of RocksDB's has left to do.
const FLUSH_SLICE: Duration = Duration::from_millis(1);

/// What flushes know of each other.
#[derive(Default)]
struct Flushes {
    /// The number of the last one that was tried.
    number: u64,
    /// How many batches are durable.
    written: u64,
}

/// An open store. One process at a time has it open; all its threads may use it.
pub struct Store {
    db: DB,
    /// Held by flushes: they take turns.
    flushing: Mutex<Flushes>,
    /// Batches that were written since the store was opened.
    written: AtomicU64,
    directory: PathBuf,
    /// As in [`StoreOptions`].
    automatic_compaction: bool,
}

impl Store {
    /// Opens the store in `directory`, creating both if they are missing.
    ///
    /// # Errors
    /// `StorageMissing` when the directory cannot be used, `Unsupported` when a newer version wrote it, `Unavailable` when another
    /// process has it open, `Corrupt`, `DiskFull` or `Io` from RocksDB.
    pub fn open(directory: &Path, options: &StoreOptions) -> Result<Store> {
        prepare_directory(directory)?;
        let block_cache = options.block_cache();
        let families = [
            (rocksdb::DEFAULT_COLUMN_FAMILY_NAME, options.default_family()),
            (META, options.meta_family(&block_cache)),
            (PAGES, options.pages_family(&block_cache)),
            (COLD, options.cold_family(&block_cache)),
        ];
        let mut database_options = options.database();
        database_options.create_if_missing(true);
        database_options.create_missing_column_families(true);
        let db =
            DB::open_cf_with_opts(&database_options, directory, families).map_err(|error| failure::opening(directory, error))?;
        let store = Store {
            db,
            flushing: Mutex::default(),
            written: AtomicU64::new(0),
            directory: directory.to_owned(),
            automatic_compaction: options.automatic_compaction,
        };
        store.check_format()?;
        store.turn().number = store.flush_number(&ReadOptions::default())?;
        Ok(store)
    }

    /// Where the store is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The durable mark; none in a store that was just created.
    ///
    /// # Errors
    /// `Corrupt` when the value has no valid form; those of RocksDB.
    pub fn mark(&self) -> Result<Option<DurableMark>> {
        self.meta(format::KEY_MARK)?.map(|value| DurableMark::decode(&value)).transpose()
    }

    /// The next storage id that was never given out, as of the durable mark.
    ///
    /// # Errors
    /// As [`Store::mark`].
    pub fn next_storage_id(&self) -> Result<StorageId> {
        match self.meta(format::KEY_NEXT_STORAGE)? {
            Some(value) => format::decode_storage_id(&value),
            None => Ok(StorageId(1)),
        }
    }

    /// The descriptors of all storages, in the order of their ids.
    ///
    /// # Errors
    /// As [`Store::mark`].
    pub fn storages(&self) -> Result<Vec<StorageInfo>> {
        self.meta_entries("the storages' descriptors", format::KEY_STORAGE, |key, value| {
            format::decode_storage_key(key).map(|id| format::decode_storage(id, value))
        })
    }

    /// The pages that are known to be lost.
    ///
    /// # Errors
    /// As [`Store::mark`].
    pub fn quarantine(&self) -> Result<Vec<PageKey>> {
        self.meta_entries("the list of lost pages", format::KEY_QUARANTINE, |key, _| format::decode_quarantine_key(key).map(Ok))
    }

    /// Reads the compact image of a page into `image`; false, and an empty image, when the store does not have the page.
    ///
    /// # Errors
    /// `Corrupt` when the stored bytes or their file are damaged or gone; `Io` and others from RocksDB.
    pub fn read_page(&self, key: PageKey, image: &mut Vec<u8>) -> Result<bool> {
        image.clear();
        let value =
            self.db.get_pinned_cf(self.pages_family(), format::page_key(key)).map_err(|error| failure::page(key, error))?;
        match value {
            Some(value) => image.extend_from_slice(format::decode_page(key, &value)?),
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Reads many pages at once and gives each one's compact image, or none, to `found`, in the order of `keys`.
    ///
    /// `keys` are in ascending order. A failure belongs to its page alone.
    pub fn read_pages(&self, keys: &[PageKey], mut found: impl FnMut(PageKey, Result<Option<&[u8]>>)) {
        debug_assert!(keys.is_sorted());
        let encoded: Vec<[u8; format::PAGE_KEY_LENGTH]> = keys.iter().map(|key| format::page_key(*key)).collect();
        let options = ReadOptions::default();
        let values = self.db.batched_multi_get_cf_opt(self.pages_family(), encoded.iter(), true, &options);
        for (key, value) in keys.iter().zip(values) {
            match value {
                Ok(Some(value)) => found(*key, format::decode_page(*key, &value).map(Some)),
                Ok(None) => found(*key, Ok(None)),
                Err(error) => found(*key, Err(failure::page(*key, error))),
            }
        }
    }

    /// An empty batch of changes.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self)
    }

    /// Makes everything that was written so far durable, all column families as one.
    ///
    /// RocksDB compares the families' buffers with each other's numbers when it waits for an atomic flush. Beside another flush, one of
    /// its own included, it may come back before the end. So each flush gets a number, which is written behind everything else and then
    /// looked for on disk.
    ///
    /// # Errors
    /// `DiskFull`, `Corrupt` or `Io`; what was not flushed stays in memory, and another call tries again.
    pub fn flush(&self) -> Result<()> {
        let mut flushes = self.turn();
        let written = self.written.load(Ordering::Acquire);
        if written == flushes.written {
            return Ok(());
        }
        let number = flushes.number + 1;
        let mut batch = self.batch();
        batch.put_flush_number(number);
        batch.write()?;
        flushes.number = number;
        let mut on_disk = ReadOptions::default();
        on_disk.set_read_tier(ReadTier::Persisted);
        let mut options = FlushOptions::default();
        options.set_wait(true);
        loop {
            self.db
                .flush_cfs_opt(&[self.pages_family(), self.cold_family(), self.meta_family()], &options)
                .map_err(|error| failure::using("make pages durable", error))?;
            if self.flush_number(&on_disk)? >= number {
                // The number's own batch counts as well, and others that came meanwhile do not.
                flushes.written = written + 1;
                return Ok(());
            }
            std::thread::sleep(FLUSH_SLICE);
        }
    }

    fn turn(&self) -> MutexGuard<'_, Flushes> {
        self.flushing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the last flush, as far as `options` let see it.
    fn flush_number(&self, options: &ReadOptions) -> Result<u64> {
        let found = self.db.get_cf_opt(self.meta_family(), format::KEY_FLUSH, options);
        match found.map_err(|error| failure::using("read the store's meta data", error))? {
            Some(value) => format::decode_flush_number(&value),
            None => Ok(0),
        }
    }

    /// Approximate bytes a storage takes on disk, compressed and with versions that compaction has not removed yet.
    ///
    /// Pages that were not flushed yet do not count; [`Store::flush`] before it makes the figure complete.
    pub fn storage_bytes(&self, storage: StorageId) -> u64 {
        let (from, to) = format::storage_range(storage);
        self.db.get_approximate_sizes_cf(self.pages_family(), &[Range::new(&from, &to)]).iter().sum()
    }

    /// Rewrites a storage's pages into the last level: superseded versions go, the strongest compression is used.
    ///
    /// # Errors
    /// `Io` and others when files could not be written anew.
    pub fn compact_storage(&self, storage: StorageId) -> Result<()> {
        let (from, to) = superseded::all_of(storage);
        self.rewrite(PAGES, self.pages_family(), Some((&from, &to)))
    }

    /// Gives back the table files that hold nothing but a removed storage's pages; the removal has been flushed.
    ///
    /// # Errors
    /// Those of RocksDB; compaction removes the pages later then.
    pub fn reclaim(&self, storage: StorageId) -> Result<()> {
        let (from, to) = format::storage_range(storage);
        self.db
            .delete_file_in_range_cf(self.pages_family(), from, to)
            .map_err(|error| failure::using("delete the files of a removed table", error))
    }

    /// Makes everything durable if the device lets it, then ends RocksDB's background work; after it nothing can be written.
    pub fn stop_background_work(&self) {
        self.db.cancel_all_background_work(true);
    }

    /// Makes a directory with what a crash at this moment would leave: links to the table files, nothing that is not flushed.
    ///
    /// # Errors
    /// Those of RocksDB, also when the directory exists.
    pub fn link_durable(&self, to: &Path) -> Result<()> {
        // With this bound for its log RocksDB flushes nothing before.
        rocksdb::checkpoint::Checkpoint::new(&self.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint_with_log_size(to, u64::MAX))
            .map_err(|error| failure::using("link the store's files", error))
    }

    fn pages_family(&self) -> &ColumnFamily {
        self.db.cf_handle(PAGES).expect("the family was opened with the store")
    }

    fn cold_family(&self) -> &ColumnFamily {
        self.db.cf_handle(COLD).expect("the family was opened with the store")
    }

    fn meta_family(&self) -> &ColumnFamily {
        self.db.cf_handle(META).expect("the family was opened with the store")
    }

    fn meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.db.get_cf(self.meta_family(), key).map_err(|error| failure::using("read the store's meta data", error))
    }

    /// The entries from `first` on as long as `decode` knows their keys.
    fn meta_entries<T>(&self, what: &str, first: &[u8], decode: impl Fn(&[u8], &[u8]) -> Option<Result<T>>) -> Result<Vec<T>> {
        let mut entries = Vec::new();
        for entry in self.db.iterator_cf(self.meta_family(), IteratorMode::From(first, rocksdb::Direction::Forward)) {
            let (key, value) = entry.map_err(|error| failure::using(&format!("read {what}"), error))?;
            match decode(&key, &value) {
                Some(decoded) => entries.push(decoded?),
                None => break,
            }
        }
        Ok(entries)
    }

    /// Refuses a store of another format and stamps a new one.
    fn check_format(&self) -> Result<()> {
        match self.meta(format::KEY_FORMAT)? {
            Some(value) => format::check_version(&self.directory, &value),
            None => {
                let mut batch = self.batch();
                batch.put_format_version(FORMAT_VERSION);
                batch.write()?;
                self.flush()
            }
        }
    }
}

/// Creates the directory, or finds out in plain words why it cannot be used.
fn prepare_directory(directory: &Path) -> Result<()> {
    let refuse = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
            _ => ErrorKind::StorageMissing,
        };
        Error::new(kind, format!("cannot use the directory \"{}\"", directory.display()))
            .with_detail(sentence(error))
            .with_hint("The operating system user that runs the server needs all rights and some free space there.")
    };
    match fs::create_dir(directory) {
        Ok(()) => restrict(directory).map_err(refuse)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(refuse(error)),
    }
    // RocksDB reports missing rights only after it has tried to repair what it takes for a damaged store.
    let probe = directory.join("write_probe");
    fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).map_err(refuse)?;
    fs::read_dir(directory).map(drop).map_err(refuse)
}

/// Nobody but the server reads the rows.
fn restrict(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests;
