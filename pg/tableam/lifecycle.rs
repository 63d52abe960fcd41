//! Gives a storage the lifetime of its relation's files: created with them, gone when they are.
//!
//! Postgres keeps the list of files to unlink at the end of a transaction; the engine's storages follow it. What a crash leaves
//! behind, the worker's sweeper finds.

use std::sync::atomic::Ordering;

use kalamdb_engine::cache::{RelationFile, StorageDescriptor, StorageInfo};
use kalamdb_engine::ids::{PageKey, PageNumber, Xid};
use kalamdb_engine::log::StorageCreate;
use kalamdb_engine::page::{CHAIN_FANOUT, OVERFLOW_PAYLOAD, PARTITION_FANOUT, PageKind};
use pgrx::{pg_guard, pg_sys};

use super::change::{change_page, log_only, note_storage};
use super::status::current_xid;
use super::storage::{Storage, relation_file, relation_name};
use super::{is_ours, main_fork, partition, raw, temporary};
use crate::error::OrRaise;
use crate::ffi::compat::{self, FileLocator, NO_BACKEND, file_of_locator};
use crate::ffi::interrupts::{BackendWait, check_for_interrupts};
use crate::ffi::{plain, unguarded};
use crate::gate;
use crate::shmem::{engine_cache, known_cache};

/// Numbers of large values above which a new storage begins at 1 all the same, so that a rewrite helps when they run out.
const LAST_CONTINUED: u32 = 3 << 30;

/// Where the numbers of a relation's new storage begin: behind those of the old one, if there is one.
///
/// A transaction may hold pointers that it read before TRUNCATE or a rewrite. They must lead nowhere then, and not to a value of the new
/// storage, whose row it may not see.
unsafe fn first_value(rel: pg_sys::Relation) -> Option<u32> {
    let behind = |descriptor: &StorageDescriptor| descriptor.next_value.load(Ordering::Acquire);
    let first = if let Some(old) = Storage::find(rel) {
        behind(old.descriptor)
    } else {
        // CLUSTER, VACUUM FULL, REFRESH and ALTER TABLE fill a table of this name and exchange the files.
        let old = relation_name(rel).strip_prefix("pg_temp_")?.parse::<u32>().ok()?;
        // SAFETY: the statement has the old table open and locked; somebody else's table of such a name is only looked at.
        let found = unsafe {
            let old = pg_sys::RelationIdGetRelation(old.into());
            if old.is_null() {
                return None;
            }
            let found = if is_ours(old) { Storage::find(old) } else { None };
            plain::RelationClose(old);
            found
        };
        // A table of another access method may have been ours before, in this transaction too.
        found.map_or_else(|| engine_cache().storages().in_use().map(behind).max().unwrap_or(1), |old| behind(old.descriptor))
    };
    Some(if first > LAST_CONTINUED { 1 } else { first })
}

/// When a transaction gives up a storage, the old one of the table skips the numbers that were given out meanwhile.
fn skip_values(given_up: &StorageDescriptor, others: impl Iterator<Item = &'static StorageDescriptor>) {
    let Some(numbers) = given_up.continued_values() else { return };
    let database = given_up.file().database;
    for other in others.filter(|other| other.file().database == database) {
        if numbers.contains(&other.next_value.load(Ordering::Acquire)) {
            other.next_value.fetch_max(numbers.end, Ordering::AcqRel);
        }
    }
}

/// Makes and logs a storage for a relation's files; one that the files had before is given up. `values` is where the numbers of its large
/// values begin, if not at 1.
fn create(file: RelationFile, unlogged: bool, creator: Xid, values: Option<u32>) -> &'static StorageDescriptor {
    let cache = engine_cache();
    let id = cache.header().allocate_storage_id();
    // In the table first: a checkpoint whose position lies behind the record finds the storage there.
    let (place, _) = cache.storages().create(&StorageInfo::empty(id, file, unlogged, creator)).or_raise();
    let descriptor = cache.storages().at(place);
    if let Some(first) = values {
        descriptor.continue_values(first);
    }
    note_storage(descriptor);
    let RelationFile { tablespace, database, relnumber, owner } = file;
    log_only(id, |record| {
        record.create_storage(&StorageCreate { storage: id, tablespace, database, relnumber, owner, unlogged, xid: creator });
    });
    descriptor
}

/// Creates the files of a table; they go again if the transaction fails.
unsafe fn create_files(locator: &FileLocator, persistence: u8) {
    // SAFETY: the caller passes an identity that Postgres has just chosen.
    unsafe {
        let files = pg_sys::RelationCreateStorage(*locator, persistence as std::ffi::c_char, true);
        if persistence == pg_sys::RELPERSISTENCE_UNLOGGED {
            // After a crash Postgres replaces all other files of the relation by a copy of this one. It is on disk at once, as
            // recovery of the database's or the tablespace's creation may remove what only the log tells of.
            let init = pg_sys::ForkNumber::INIT_FORKNUM;
            pg_sys::smgrcreate(files, init, false);
            raw::log_smgrcreate(locator, init);
            pg_sys::smgrimmedsync(files, init);
            compat::write_unlogged_mark(files);
        }
        pg_sys::smgrclose(files);
    }
}

/// Creates the files and the storage of a new table, or the new ones of a rewritten table.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_set_new_filenode(
    rel: pg_sys::Relation,
    locator: *const FileLocator,
    persistence: std::ffi::c_char,
    freeze_xid: *mut pg_sys::TransactionId,
    min_multi: *mut pg_sys::MultiXactId,
) {
    // SAFETY: Postgres passes an open relation, the new identity and two places for results.
    unsafe {
        gate::check_columns(rel);
        let file = file_of_locator(&*locator, (*rel).rd_backend);
        temporary::note(file);
        create_files(&*locator, persistence as u8);
        create(file, persistence as u8 == pg_sys::RELPERSISTENCE_UNLOGGED, current_xid(), first_value(rel));
        *freeze_xid = pg_sys::RecentXmin;
        *min_multi = pg_sys::GetOldestMultiXactId();
    }
}

/// Empties a table without a way back: one that this transaction made, or a temporary one at the end of a transaction.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_nontransactional_truncate(rel: pg_sys::Relation) {
    let old = Storage::of(rel).descriptor;
    if !old.is_unused() {
        // The files stay, so the new storage has the fate of the transaction that made them and not of this one.
        let values = old.next_value.load(Ordering::Acquire);
        main_fork::shortened(create(relation_file(rel), old.is_unlogged(), old.creator_xid(), Some(values)));
    }
}

/// Copies a table to new files, as SET TABLESPACE needs it.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_copy_data(rel: pg_sys::Relation, locator: *const FileLocator) {
    let source = Storage::of(rel);
    let wait = BackendWait::new(source.cache);
    // SAFETY: Postgres passes an open relation and the new identity.
    let descriptor = unsafe {
        let file = file_of_locator(&*locator, (*rel).rd_backend);
        temporary::note(file);
        create_files(&*locator, (*(*rel).rd_rel).relpersistence as u8);
        create(file, source.descriptor.is_unlogged(), current_xid(), Some(source.descriptor.first_value()))
    };
    let target = Storage { cache: source.cache, descriptor, id: descriptor.id() };
    for block in 0..source.blocks() {
        // Counted before the record about it, as a checkpoint demands.
        descriptor.note_block(block);
        copy_page(&source, &target, PageNumber::block(block), &wait);
    }
    if gate::is_partitioned(rel) {
        copy_maps(&source, &target, &wait);
    }
    main_fork::follow(descriptor);
    let values = source.descriptor.next_value.load(Ordering::Relaxed);
    descriptor.next_value.store(values, Ordering::Relaxed);
    for value in source.descriptor.first_value()..values {
        let first = PageNumber::overflow(value, 0);
        let Some(total) = copy_page(&source, &target, first, &wait) else { continue };
        for chunk in 1..total.div_ceil(OVERFLOW_PAYLOAD) {
            copy_page(&source, &target, PageNumber::overflow(value, chunk as u32), &wait);
        }
    }
    // SAFETY: the relation is open; its old files go when the transaction commits.
    unsafe { pg_sys::RelationDropStorage(rel) };
}

/// Copies what says whose rows are where.
fn copy_maps(source: &Storage, target: &Storage, wait: &BackendWait) {
    let mut pages: Vec<PageNumber> = (0..source.blocks().div_ceil(CHAIN_FANOUT)).map(PageNumber::chains).collect();
    let partitions = partition::count(source, wait).or_raise();
    pages.extend((0..=partitions / PARTITION_FANOUT).map(PageNumber::partitions));
    partition::each_users_page(source, wait, &mut |_, number| {
        pages.push(number);
        Ok(())
    })
    .or_raise();
    for page in pages {
        copy_page(source, target, page, wait);
    }
}

/// Copies one page and logs its image; returns the length of the value whose chunk it is.
fn copy_page(source: &Storage, target: &Storage, page: PageNumber, wait: &BackendWait) -> Option<usize> {
    check_for_interrupts();
    let mut image = Vec::new();
    let total = {
        let pin = source.cache.read(PageKey { storage: source.id, page }, wait).or_raise();
        let guard = pin.shared(wait).or_raise();
        if guard.page().kind() == PageKind::Unused {
            return None;
        }
        guard.page().to_compact(&mut image);
        (guard.page().kind() == PageKind::Overflow).then(|| guard.page().overflow_total() as usize)
    };
    let pin = target.cache.create_page(PageKey { storage: target.id, page }, wait).or_raise();
    let mut copy = pin.into_exclusive(wait).or_raise();
    change_page(&mut copy, |page, record| {
        page.from_compact(&image).expect("a page of the cache is sound");
        record.image(&image);
    });
    total
}

/// Gives up the storages whose files the ending transaction is about to unlink; Postgres does not list temporary ones.
fn forget_files(for_commit: bool) {
    let Some(cache) = known_cache() else { return };
    let mut locators: *mut FileLocator = std::ptr::null_mut();
    // SAFETY: Postgres returns an allocated array of that many identities, or none.
    unsafe {
        let count = unguarded::smgrGetPendingDeletes(for_commit, &mut locators);
        for place in 0..count.max(0) as usize {
            let file = file_of_locator(&*locators.add(place), NO_BACKEND);
            if let Some(place) = cache.storages().find(&file) {
                let descriptor = cache.storages().at(place);
                if !for_commit {
                    skip_values(descriptor, cache.storages().in_use());
                }
                cache.storages().remove(descriptor.id());
            }
        }
        if !locators.is_null() {
            plain::pfree(locators.cast());
        }
    }
}

unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT => forget_files(true),
        pg_sys::XactEvent::XACT_EVENT_ABORT => {
            super::values::release_unplaced();
            forget_files(false);
        }
        _ => {}
    }
}

unsafe extern "C-unwind" fn at_subtransaction_end(
    event: pg_sys::SubXactEvent::Type,
    _subid: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        super::values::release_unplaced();
        forget_files(false);
    }
}

/// Registers the callbacks; once per process.
pub fn init() {
    // SAFETY: plain functions that stay loaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction_end), std::ptr::null_mut());
    }
}
