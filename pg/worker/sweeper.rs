//! Finds storages whose relation is gone, so that the engine can purge them.
//!
//! Postgres itself decides when a relation's files go: at commit of a DROP, at rollback of a CREATE, with the database. A
//! storage follows its main fork. Only a server crash in the creating transaction leaves the file for ever; then the
//! transaction's fate decides.

use std::fs;
use std::path::{Path, PathBuf};

use kalamdb_engine::cache::{Cache, StorageInfo};
use kalamdb_engine::ids::{FROZEN_XID, StorageId};
use pgrx::pg_sys;

use crate::ffi::compat;

/// OIDs of the two tablespaces that live inside the data directory.
const DEFAULT_TABLESPACES: [u32; 2] = [1663, 1664];

/// The storages that no transaction can need any more.
pub fn find_orphans(cache: &Cache) -> Vec<StorageId> {
    let table = cache.storages();
    let storages = table.list();
    storages.iter().filter(|storage| is_orphan(cache, storage)).map(|storage| storage.id).collect()
}

fn is_orphan(cache: &Cache, storage: &StorageInfo) -> bool {
    match creator_state(storage.creator_xid) {
        CreatorState::Running => return false,
        CreatorState::Aborted => return true,
        CreatorState::Committed => {
            if storage.creator_xid != 0
                && let Some(place) = cache.storages().find_id(storage.id)
            {
                cache.storages().at(place).creator_committed();
            }
        }
        CreatorState::Unknown => {}
    }
    let file = storage.file;
    let path = compat::main_fork_of(&file);
    is_missing(&path) && tablespace_is_usable(file.tablespace, &path) && !exists_in_another_tablespace(&path)
}

enum CreatorState {
    Running,
    Committed,
    Aborted,
    /// The commit log does not reach back so far; a rollback would have been noticed long ago.
    Unknown,
}

fn creator_state(xid: u64) -> CreatorState {
    if xid <= FROZEN_XID {
        return CreatorState::Committed;
    }
    if xid < compat::oldest_known_xid() {
        return CreatorState::Unknown;
    }
    let short = pg_sys::TransactionId::from(xid as u32);
    // SAFETY: both look up shared memory and the commit log, whose range was checked. The order matters: a transaction leaves
    // the list of running ones after its outcome is in the commit log.
    unsafe {
        if pg_sys::TransactionIdIsInProgress(short) {
            CreatorState::Running
        } else if pg_sys::TransactionIdDidCommit(short) {
            CreatorState::Committed
        } else {
            CreatorState::Aborted
        }
    }
}

/// Whether a file surely does not exist; any other trouble counts as existing.
fn is_missing(path: &Path) -> bool {
    matches!(fs::symlink_metadata(path), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}

/// A tablespace whose disk is not mounted makes all its files look gone; one that was dropped has no link any more.
fn tablespace_is_usable(tablespace: u32, path: &Path) -> bool {
    if DEFAULT_TABLESPACES.contains(&tablespace) {
        return true;
    }
    let link = PathBuf::from(format!("pg_tblspc/{tablespace}"));
    let version_directory = path.parent().and_then(Path::parent);
    is_missing(&link) || version_directory.is_some_and(Path::is_dir)
}

/// ALTER DATABASE ... SET TABLESPACE moves files under their old numbers; such a storage is kept.
fn exists_in_another_tablespace(path: &Path) -> bool {
    let (Some(name), Some(database)) = (path.file_name(), path.parent().and_then(Path::file_name)) else { return false };
    if Path::new("base").join(database).join(name).exists() {
        return true;
    }
    let Ok(tablespaces) = fs::read_dir("pg_tblspc") else { return false };
    tablespaces
        .flatten()
        .filter_map(|entry| fs::read_dir(entry.path()).ok())
        .any(|versions| versions.flatten().any(|version| version.path().join(database).join(name).exists()))
}
