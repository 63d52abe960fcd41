//! Empties the unlogged tables that a crash of the server emptied.
//!
//! Postgres knows whether its shutdown was clean, and resets the files of unlogged relations if it was not. The engine follows the
//! files: an unlogged table's main fork has a block exactly as long as the rows are valid. The table then gets a new storage, so that
//! no replay, now or later, brings rows of the old one back.

use std::path::Path;

use kalamdb_engine::cache::{Cache, StorageInfo};
use kalamdb_engine::engine::Engine;
use kalamdb_engine::log::{RecordBuilder, StorageCreate};
use kalamdb_engine::{Error, ErrorKind};
use pgrx::pg_sys;

use crate::error::{SqlError, catching_all};
use crate::ffi::compat::{self, NO_BACKEND};
use crate::ffi::interrupts::CriticalSection;
use crate::wal;

/// Gives a new storage to every unlogged table whose files were reset; nobody else uses the engine yet.
///
/// # Errors
/// Those of the file system; `LimitExceeded` when the table of storages is full.
pub fn empty_reset_tables(cache: &'static Cache, engine: &Engine) -> Result<(), SqlError> {
    for old in cache.storages().list().into_iter().filter(|storage| storage.unlogged) {
        if was_reset(&compat::main_fork_of(&old.file))? {
            replace(cache, &old)?;
            engine.purge(old.id);
        }
    }
    Ok(())
}

/// Whether the main fork is there and empty. One that is missing was dropped, which the sweeper notices.
fn was_reset(path: &Path) -> Result<bool, SqlError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len() == 0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::new(ErrorKind::Io, format!("could not look at the file \"{}\"", path.display()))
            .with_detail(error.to_string())
            .into()),
    }
}

/// Logs the new storage, then marks the files: in between, a failure leaves them to the next start.
fn replace(cache: &'static Cache, old: &StorageInfo) -> Result<(), SqlError> {
    let file = old.file;
    let new = StorageInfo::empty(cache.header().allocate_storage_id(), file, true, old.creator_xid);
    cache.storages().create(&new)?;
    let mut record = RecordBuilder::new();
    record.create_storage(&StorageCreate {
        storage: new.id,
        tablespace: file.tablespace,
        database: file.database,
        relnumber: file.relnumber,
        owner: file.owner,
        unlogged: true,
        xid: new.creator_xid,
    });
    {
        let _critical = CriticalSection::enter();
        // SAFETY: inside a critical section of a process that may write the log.
        unsafe { wal::insert(record.bytes()) };
    }
    catching_all(|| {
        // SAFETY: the relation is not temporary, and its main fork exists and is empty.
        unsafe {
            let files = pg_sys::smgropen(compat::locator_of_file(&file), NO_BACKEND);
            compat::write_unlogged_mark(files);
            pg_sys::smgrclose(files);
        }
    })
}
