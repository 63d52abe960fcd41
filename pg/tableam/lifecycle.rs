//! Gives a storage the lifetime of its relation's files: created with them, gone when they are.
//!
//! Postgres keeps the list of files to unlink at the end of a transaction; the engine's storages follow it. What a crash leaves
//! behind, the worker's sweeper finds.

use kalamdb_engine::cache::StorageInfo;
use kalamdb_engine::ids::{PageKey, PageNumber, Xid};
use kalamdb_engine::log::StorageCreate;
use kalamdb_engine::page::{OVERFLOW_PAYLOAD, PageKind};
use kalamdb_engine::{Error, ErrorKind};
use pgrx::{pg_guard, pg_sys};

use super::change::{change_page, log_only};
use super::status::current_xid;
use super::storage::{Storage, file_of_node, relation_file, relation_name};
use crate::error::{OrRaise, raise};
use crate::ffi::interrupts::{BackendWait, check_for_interrupts};
use crate::shmem::{engine_cache, known_cache};

/// Makes and logs a storage for a relation's files; one that the files had before is given up.
fn create(file: kalamdb_engine::cache::RelationFile, creator: Xid) -> u32 {
    let cache = engine_cache();
    let id = cache.header().allocate_storage_id();
    log_only(|record| {
        record.create_storage(&StorageCreate {
            storage: id,
            tablespace: file.tablespace,
            database: file.database,
            relnumber: file.relnumber,
            xid: creator,
        });
    });
    let info = StorageInfo { id, file, creator_xid: creator, blocks: 0, next_value: 1 };
    cache.storages().create(&info).or_raise().0
}

/// Creates the files and the storage of a new table, or the new ones of a rewritten table.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_set_new_filenode(
    rel: pg_sys::Relation,
    node: *const pg_sys::RelFileNode,
    persistence: std::ffi::c_char,
    freeze_xid: *mut pg_sys::TransactionId,
    min_multi: *mut pg_sys::MultiXactId,
) {
    let kind = match persistence as u8 {
        pg_sys::RELPERSISTENCE_UNLOGGED => Some("unlogged"),
        pg_sys::RELPERSISTENCE_TEMP => Some("temporary"),
        _ => None,
    };
    if let Some(kind) = kind {
        raise(
            Error::new(ErrorKind::Unsupported, format!("{kind} tables cannot use the access method kalam_shared"))
                .with_detail(format!("Table \"{}\" is {kind}.", relation_name(rel)))
                .with_hint("Create the table with USING heap, or make it permanent."),
        );
    }
    // SAFETY: Postgres passes an open relation, the new identity and two places for results.
    unsafe {
        let files = pg_sys::RelationCreateStorage(*node, persistence, true);
        pg_sys::smgrclose(files);
        create(file_of_node(&*node), current_xid());
        *freeze_xid = pg_sys::RecentXmin;
        *min_multi = pg_sys::GetOldestMultiXactId();
    }
}

/// Empties a table that this transaction made, without a way back.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_nontransactional_truncate(rel: pg_sys::Relation) {
    create(relation_file(rel), current_xid());
}

/// Copies a table to new files, as SET TABLESPACE needs it.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_copy_data(rel: pg_sys::Relation, node: *const pg_sys::RelFileNode) {
    let source = Storage::of(rel);
    let wait = BackendWait::new(source.cache);
    // SAFETY: Postgres passes an open relation and the new identity.
    let place = unsafe {
        let files = pg_sys::RelationCreateStorage(*node, (*(*rel).rd_rel).relpersistence, true);
        pg_sys::smgrclose(files);
        create(file_of_node(&*node), current_xid())
    };
    let descriptor = source.cache.storages().at(place);
    let target = Storage { cache: source.cache, descriptor, id: descriptor.id() };
    for block in 0..source.blocks() {
        copy_page(&source, &target, PageNumber::block(block), &wait);
        descriptor.note_block(block);
    }
    let values = source.descriptor.next_value.load(std::sync::atomic::Ordering::Relaxed);
    for value in 1..values {
        let first = PageNumber::overflow(value, 0);
        let Some(total) = copy_page(&source, &target, first, &wait) else { continue };
        for chunk in 1..total.div_ceil(OVERFLOW_PAYLOAD) {
            copy_page(&source, &target, PageNumber::overflow(value, chunk as u32), &wait);
        }
    }
    descriptor.next_value.store(values, std::sync::atomic::Ordering::Relaxed);
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

/// Gives up the storages whose files the ending transaction is about to unlink.
fn forget_files(for_commit: bool) {
    let Some(cache) = known_cache() else { return };
    let mut nodes: *mut pg_sys::RelFileNode = std::ptr::null_mut();
    // SAFETY: Postgres returns an allocated array of that many identities, or none.
    unsafe {
        let count = pg_sys::smgrGetPendingDeletes(for_commit, &mut nodes);
        for place in 0..count.max(0) as usize {
            let file = file_of_node(&*nodes.add(place));
            if let Some(place) = cache.storages().find(&file) {
                cache.storages().remove(cache.storages().at(place).id());
            }
        }
        if !nodes.is_null() {
            pg_sys::pfree(nodes.cast());
        }
    }
}

unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT => forget_files(true),
        pg_sys::XactEvent::XACT_EVENT_ABORT => forget_files(false),
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
