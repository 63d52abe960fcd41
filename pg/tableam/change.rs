//! Changes pages and logs the change as one step that no error can split.

use std::borrow::Borrow;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use kalamdb_engine::cache::{Exclusive, Pin, StorageDescriptor};
use kalamdb_engine::ids::{Lsn, StorageId};
use kalamdb_engine::log::RecordBuilder;
use kalamdb_engine::page::{COLD, PageMut};
use pgrx::pg_sys;

use crate::ffi::interrupts::CriticalSection;
use crate::wal;

thread_local! {
    /// The record under construction; reused, so that steady work allocates nothing.
    static RECORD: RefCell<RecordBuilder> = RefCell::new(RecordBuilder::new());
    /// The image of a cold page that is being changed.
    static IMAGE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// The storages this process has met that a crash of the server empties, and whether there is one at all.
    static FORGETTABLE: RefCell<HashSet<StorageId>> = RefCell::default();
    static ANY_FORGETTABLE: Cell<bool> = const { Cell::new(false) };
}

/// Forgettable storages remembered before the set starts anew: forgetting one costs flushes that nobody needs.
const FORGETTABLE_MAX: usize = 10_000;

/// Notes a storage before the process changes it, if it is one of a temporary or unlogged table.
pub fn note_storage(descriptor: &StorageDescriptor) {
    if descriptor.outlives_crash() {
        return;
    }
    ANY_FORGETTABLE.set(true);
    FORGETTABLE.with_borrow_mut(|storages| {
        if storages.len() >= FORGETTABLE_MAX {
            storages.clear();
        }
        storages.insert(descriptor.id());
    });
}

/// Logs a record about a storage; returns where it ends.
///
/// A commit waits until the log is flushed if its transaction wrote to it. Rows that a crash of the server removes anyway are not
/// worth that: their records do not count.
///
/// # Safety
/// A critical section is open in a backend that may write the log.
unsafe fn log(record: &RecordBuilder, storage: StorageId) -> Lsn {
    // SAFETY: see above; the position belongs to the backend's only thread.
    unsafe {
        let counted = pg_sys::XactLastRecEnd;
        let end = wal::insert(record.bytes());
        if ANY_FORGETTABLE.get() && FORGETTABLE.with_borrow(|storages| storages.contains(&storage)) {
            pg_sys::XactLastRecEnd = counted;
        }
        end
    }
}

fn note_change<P: Borrow<Pin>>(guard: &Exclusive<P>) {
    if !guard.is_dirty() {
        guard.mark_dirty(wal::insert_lsn());
    }
}

/// Does the operations of one group of the record. A cold page becomes a hot one by that: the record has its image, so that no replay
/// depends on the segment, nor on what the page was like when the segment was written.
#[inline]
fn change_group<R>(
    page: &mut PageMut<'_>,
    record: &mut RecordBuilder,
    change: impl FnOnce(&mut PageMut<'_>, &mut RecordBuilder) -> R,
) -> R {
    if page.as_page().is_cold() { thaw_group(page, record, change) } else { change(page, record) }
}

#[cold]
fn thaw_group<R>(
    page: &mut PageMut<'_>,
    record: &mut RecordBuilder,
    change: impl FnOnce(&mut PageMut<'_>, &mut RecordBuilder) -> R,
) -> R {
    let start = record.len();
    let mut image = IMAGE.take();
    image.clear();
    page.clear_flags(COLD);
    page.as_page().to_compact(&mut image);
    let result = change(page, record);
    record.image_before(start, &image);
    IMAGE.set(image);
    result
}

/// Changes one latched page: `change` does it and describes it in the record.
///
/// The transaction id that stands in the change is assigned before, so that it is part of the record. Nothing in `change` may
/// raise: an error in here takes the server down, as in every critical section.
pub fn change_page<P: Borrow<Pin>>(guard: &mut Exclusive<P>, change: impl FnOnce(&mut PageMut<'_>, &mut RecordBuilder)) {
    let _critical = CriticalSection::enter();
    note_change(guard);
    let key = guard.key();
    RECORD.with_borrow_mut(|record| {
        record.clear();
        record.page(key);
        let mut page = guard.page_mut();
        change_group(&mut page, record, change);
        // SAFETY: inside a critical section of a backend that may write the log.
        let lsn = unsafe { log(record, key.storage) };
        page.set_lsn(lsn);
    });
}

/// Changes two latched pages under one record, so that both or none are replayed; what the first change answers goes to the second.
pub fn change_two_pages<P: Borrow<Pin>, Q: Borrow<Pin>, T, R>(
    first: &mut Exclusive<P>,
    second: &mut Exclusive<Q>,
    change_first: impl FnOnce(&mut PageMut<'_>, &mut RecordBuilder) -> T,
    change_second: impl FnOnce(T, &mut PageMut<'_>, &mut RecordBuilder) -> R,
) -> R {
    let _critical = CriticalSection::enter();
    note_change(first);
    note_change(second);
    RECORD.with_borrow_mut(|record| {
        record.clear();
        record.page(first.key());
        let between = change_group(&mut first.page_mut(), record, change_first);
        record.page(second.key());
        let result = change_group(&mut second.page_mut(), record, |page, record| change_second(between, page, record));
        // SAFETY: as in `change_page`.
        let lsn = unsafe { log(record, first.key().storage) };
        first.page_mut().set_lsn(lsn);
        second.page_mut().set_lsn(lsn);
        result
    })
}

/// Logs a record about a storage that belongs to no page, such as its creation.
pub fn log_only(storage: StorageId, describe: impl FnOnce(&mut RecordBuilder)) {
    RECORD.with_borrow_mut(|record| {
        record.clear();
        describe(record);
        let _critical = CriticalSection::enter();
        // SAFETY: as in `change_page`.
        unsafe { log(record, storage) };
    });
}
