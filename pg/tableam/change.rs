//! Changes pages and logs the change as one step that no error can split.

use std::borrow::Borrow;
use std::cell::RefCell;

use kalamdb_engine::cache::{Exclusive, Pin};
use kalamdb_engine::log::RecordBuilder;
use kalamdb_engine::page::PageMut;

use crate::ffi::interrupts::CriticalSection;
use crate::wal;

thread_local! {
    /// The record under construction; reused, so that steady work allocates nothing.
    static RECORD: RefCell<RecordBuilder> = RefCell::new(RecordBuilder::new());
}

fn note_change<P: Borrow<Pin>>(guard: &Exclusive<P>) {
    if !guard.is_dirty() {
        guard.mark_dirty(wal::insert_lsn());
    }
}

/// Changes one latched page: `change` does it and describes it in the record.
///
/// The transaction id that stands in the change is assigned before, so that it is part of the record. Nothing in `change` may
/// raise: an error in here takes the server down, as in every critical section.
pub fn change_page<P: Borrow<Pin>>(guard: &mut Exclusive<P>, change: impl FnOnce(&mut PageMut<'_>, &mut RecordBuilder)) {
    let _critical = CriticalSection::enter();
    note_change(guard);
    RECORD.with_borrow_mut(|record| {
        record.clear();
        record.page(guard.key());
        let mut page = guard.page_mut();
        change(&mut page, record);
        // SAFETY: inside a critical section of a backend that may write the log.
        let lsn = unsafe { wal::insert(record.bytes()) };
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
        let between = change_first(&mut first.page_mut(), record);
        record.page(second.key());
        let result = change_second(between, &mut second.page_mut(), record);
        // SAFETY: as in `change_page`.
        let lsn = unsafe { wal::insert(record.bytes()) };
        first.page_mut().set_lsn(lsn);
        second.page_mut().set_lsn(lsn);
        result
    })
}

/// Logs a record that belongs to no page, such as the creation of a storage.
pub fn log_only(describe: impl FnOnce(&mut RecordBuilder)) {
    RECORD.with_borrow_mut(|record| {
        record.clear();
        describe(record);
        let _critical = CriticalSection::enter();
        // SAFETY: as in `change_page`.
        unsafe { wal::insert(record.bytes()) };
    });
}
