//! Counts the rows that a transaction changes, and at its end tells whoever decides about flushes.

use std::cell::RefCell;

use kalamdb_engine::cache::{FlushNews, StorageDescriptor, monotonic_ms, raise, wanted};
use kalamdb_engine::ids::StorageId;
use pgrx::pg_sys;

use crate::shmem::known_cache;
use crate::tableam::storage::Storage;

struct Changed {
    descriptor: &'static StorageDescriptor,
    id: StorageId,
    rows: u64,
}

thread_local! {
    /// What the transaction changed; those of rolled back subtransactions count too, which does no harm.
    static CHANGED: RefCell<Vec<Changed>> = const { RefCell::new(Vec::new()) };
}

/// Counts changed rows of a table. Rows of temporary and unlogged tables are never flushed and do not count.
#[inline]
pub fn count_rows(storage: &Storage, rows: u64) {
    CHANGED.with_borrow_mut(|changed| match changed.last_mut() {
        Some(last) if last.id == storage.id => last.rows += rows,
        _ => note(changed, storage, rows),
    });
}

#[cold]
fn note(changed: &mut Vec<Changed>, storage: &Storage, rows: u64) {
    if let Some(place) = changed.iter().position(|known| known.id == storage.id) {
        changed[place].rows += rows;
        let last = changed.len() - 1;
        changed.swap(place, last);
    } else if storage.descriptor.outlives_crash() {
        changed.push(Changed { descriptor: storage.descriptor, id: storage.id, rows });
    }
}

/// Forgets what was counted.
pub fn forget() {
    CHANGED.with_borrow_mut(Vec::clear);
}

fn publish() {
    let Some(cache) = known_cache() else { return forget() };
    CHANGED.with_borrow_mut(|changed| {
        for entry in changed.drain(..) {
            // A storage that was truncated or dropped meanwhile has left its place.
            if entry.descriptor.id() != entry.id {
                continue;
            }
            match entry.descriptor.flush.add(entry.rows, monotonic_ms()) {
                FlushNews::Nothing => {}
                FlushNews::DueAt(at) => cache.jobs().note_deadline(at),
                FlushNews::Unknown | FlushNews::Due => {
                    cache.jobs().want(entry.descriptor.file().database, wanted::POLICIES);
                    raise(&cache.header().main_wake);
                }
            }
        }
    });
}

unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT | pg_sys::XactEvent::XACT_EVENT_PREPARE => publish(),
        pg_sys::XactEvent::XACT_EVENT_ABORT => forget(),
        _ => {}
    }
}

/// Registers the callback; once per process.
pub fn init() {
    // SAFETY: a plain function that stays loaded.
    unsafe { pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut()) };
}
