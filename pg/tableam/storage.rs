//! The storage behind an open relation.

use std::ffi::CStr;
use std::sync::atomic::Ordering;

use kalamdb_engine::cache::{Cache, RelationFile, StorageDescriptor};
use kalamdb_engine::ids::{Lsn, PageKey, PageNumber, StorageId};
use kalamdb_engine::page::Page;
use kalamdb_engine::{Error, ErrorKind};
use pgrx::pg_sys;

use super::change::note_storage;
use crate::error::{SqlError, raise};
use crate::ffi::compat::{file_of_locator, locator_of};
use crate::shmem::engine_cache;

/// The storage behind a relation, found once per relation cache entry.
#[derive(Clone, Copy)]
pub struct Storage {
    /// The page cache.
    pub cache: &'static Cache,
    /// The storage's entry in shared memory.
    pub descriptor: &'static StorageDescriptor,
    /// Its id.
    pub id: StorageId,
}

/// What the relation cache keeps; one flat chunk, as Postgres frees it with pfree.
#[repr(C)]
struct CachedStorage {
    id: u64,
    place: u32,
    file: RelationFile,
}

/// Postgres' identity of the files of an open relation.
pub fn relation_file(rel: pg_sys::Relation) -> RelationFile {
    // SAFETY: Postgres passes an open relation.
    let backend = unsafe { (*rel).rd_backend };
    file_of_locator(&locator_of(rel), backend)
}

/// Another session's temporary rows mean nothing here: its transactions' command ids and snapshots are its own.
fn refuse_temporary_of_others(rel: pg_sys::Relation) {
    // SAFETY: the relation is open.
    let (persistence, own) = unsafe { ((*(*rel).rd_rel).relpersistence as u8, (*rel).rd_islocaltemp) };
    if persistence == pg_sys::RELPERSISTENCE_TEMP && !own {
        raise(Error::new(ErrorKind::Unsupported, "cannot access temporary tables of other sessions"));
    }
}

/// The name of a relation, for messages.
pub fn relation_name(rel: pg_sys::Relation) -> String {
    // SAFETY: an open relation has a pg_class row with a terminated name.
    unsafe { CStr::from_ptr((*(*rel).rd_rel).relname.data.as_ptr()).to_string_lossy().into_owned() }
}

impl Storage {
    /// The storage of an open relation; raises an error when the engine has none for it.
    #[inline]
    pub fn of(rel: pg_sys::Relation) -> Storage {
        let cache = engine_cache();
        // SAFETY: the relation is open; rd_amcache is ours for relations of our access method.
        let cached = unsafe { ((*rel).rd_amcache as *const CachedStorage).as_ref() };
        if let Some(cached) = cached {
            let descriptor = cache.storages().at(cached.place);
            if descriptor.id().0 == cached.id && relation_file(rel) == cached.file {
                return Storage { cache, descriptor, id: StorageId(cached.id) };
            }
        }
        Storage::look_up(cache, rel)
    }

    /// The storage of an open relation, if the engine has one for it.
    pub fn find(rel: pg_sys::Relation) -> Option<Storage> {
        let cache = engine_cache();
        let descriptor = cache.storages().at(cache.storages().find(&relation_file(rel))?);
        Some(Storage { cache, descriptor, id: descriptor.id() })
    }

    #[cold]
    fn look_up(cache: &'static Cache, rel: pg_sys::Relation) -> Storage {
        refuse_temporary_of_others(rel);
        let file = relation_file(rel);
        let Some(place) = cache.storages().find(&file) else {
            raise(
                Error::new(ErrorKind::StorageMissing, format!("relation \"{}\" has no storage in KalamDB", relation_name(rel)))
                    .with_detail(format!(
                        "The engine does not know relfilenode {} of database {}.",
                        file.relnumber, file.database
                    ))
                    .with_hint(
                        "The table was copied by CREATE DATABASE ... TEMPLATE, or the engine's directory was lost or replaced: restore the \
                         table from a backup. If ALTER DATABASE ... SET TABLESPACE has moved the database, move it back.",
                    ),
            );
        };
        let descriptor = cache.storages().at(place);
        let storage = Storage { cache, descriptor, id: descriptor.id() };
        note_storage(descriptor);
        // SAFETY: the chunk lives in the cache's memory context, as Postgres demands of rd_amcache, and is freed by it.
        unsafe {
            if (*rel).rd_amcache.is_null() {
                (*rel).rd_amcache =
                    pg_sys::MemoryContextAllocZero(pg_sys::CacheMemoryContext, std::mem::size_of::<CachedStorage>());
            }
            *((*rel).rd_amcache as *mut CachedStorage) = CachedStorage { id: storage.id.0, place, file };
        }
        storage
    }

    /// Number of blocks given out so far.
    #[inline]
    pub fn blocks(&self) -> u32 {
        self.descriptor.blocks.load(Ordering::Acquire)
    }

    /// Whether a large value may ever have been stored.
    #[inline]
    pub fn has_values(&self) -> bool {
        self.descriptor.has_values()
    }

    /// The key of a block's page.
    #[inline]
    pub fn block(&self, block: u32) -> PageKey {
        PageKey::block(self.id, block)
    }

    /// The LSN by which hints for a page are judged.
    ///
    /// A hint of a commit waits until the commit is flushed, as the page could outlive it in a crash. Pages of temporary and
    /// unlogged tables never do, and their commits are not flushed at once: their hints wait for nothing.
    #[inline]
    pub fn hint_lsn(&self, page: Page<'_>) -> Lsn {
        if self.descriptor.outlives_crash() { page.lsn() } else { Lsn(u64::MAX) }
    }

    /// The key of any page of the storage.
    pub fn page(&self, page: PageNumber) -> PageKey {
        PageKey { storage: self.id, page }
    }
}

/// Raises an error unless the relation is a table of our access method.
pub fn require_table(rel: pg_sys::Relation) {
    // SAFETY: an open relation; the name of an access method is allocated by Postgres.
    let method = unsafe {
        if super::is_ours(rel) {
            return;
        }
        let name = if (*rel).rd_tableam.is_null() { std::ptr::null_mut() } else { pg_sys::get_am_name((*(*rel).rd_rel).relam) };
        (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    };
    raise(
        SqlError::wrong_object_type(format!("\"{}\" is not a KalamDB table", relation_name(rel)))
            .with_detail(match method {
                Some(method) => format!("Its access method is \"{method}\"."),
                None => "Only tables and materialized views have a storage.".to_owned(),
            })
            .with_hint("The view kalam.tables lists the KalamDB tables of this database."),
    );
}
