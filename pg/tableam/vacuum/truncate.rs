//! Gives back the empty blocks at the end of a table.
//!
//! While the table is locked against everybody, the pages are freed by logged records and the number of blocks is lowered. The
//! number itself is not logged: after a crash it may be the old one, with empty blocks behind the new end, which are used again.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kalamdb_engine::page::{PageKind, PageMut};
use pgrx::pg_sys;

use super::super::change::change_page;
use super::super::main_fork;
use super::super::space::record_free_space;
use super::{Vacuum, compat, limits};
use crate::error::OrRaise;
use crate::ffi::interrupts::check_for_interrupts;

/// How often the lock is tried before truncation gives up.
const LOCK_TRIES: u32 = 100;

const LOCK_WAIT_MS: std::ffi::c_long = 50;

/// How long to hold the lock before looking whether somebody waits for it.
const WAITER_CHECK: Duration = Duration::from_millis(20);

const LOCK: i32 = pg_sys::AccessExclusiveLock as i32;

/// The lock that keeps everybody else out; given back when dropped.
struct TableLock(pg_sys::Relation);

impl TableLock {
    /// Takes the lock if nobody else uses the table within a while.
    fn take(rel: pg_sys::Relation) -> Option<TableLock> {
        for attempt in 0..=LOCK_TRIES {
            // SAFETY: the relation is open.
            if unsafe { pg_sys::ConditionalLockRelation(rel, LOCK) } {
                return Some(TableLock(rel));
            }
            check_for_interrupts();
            if attempt < LOCK_TRIES {
                pause();
            }
        }
        None
    }

    fn has_waiters(&self) -> bool {
        // SAFETY: the lock is held.
        unsafe { pg_sys::LockHasWaitersRelation(self.0, LOCK) }
    }
}

impl Drop for TableLock {
    fn drop(&mut self) {
        // After an ERROR the release of all locks is Postgres' own duty.
        if !std::thread::panicking() {
            // SAFETY: taken by `take`.
            unsafe { pg_sys::UnlockRelation(self.0, LOCK) };
        }
    }
}

fn pause() {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let reason = pg_sys::WaitEventTimeout::WAIT_EVENT_VACUUM_TRUNCATE;
    // SAFETY: the latch is this process' own.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, LOCK_WAIT_MS, reason);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

/// Gives back the empty end of the table if that is wanted, worth it and possible without making anybody wait.
pub fn truncate(vacuum: &mut Vacuum) {
    if !vacuum.may_truncate || !limits::is_worth_truncating(vacuum.pages, vacuum.counts.nonempty_pages) {
        return;
    }
    compat::progress(pg_sys::PROGRESS_VACUUM_PHASE, i64::from(pg_sys::PROGRESS_VACUUM_PHASE_TRUNCATE));
    let mut interrupted = true;
    while interrupted && vacuum.pages > vacuum.counts.nonempty_pages {
        let Some(lock) = TableLock::take(vacuum.rel) else {
            vacuum.name.tell_truncation_stopped(vacuum.verbose);
            return;
        };
        // New blocks have rows: then there is no empty end any more.
        if vacuum.storage.blocks() != vacuum.pages {
            return;
        }
        let old = vacuum.pages;
        let end;
        (end, interrupted) = find_end(vacuum, &lock);
        if end >= old {
            return;
        }
        free_blocks(vacuum, end);
        drop(lock);
        vacuum.name.tell_truncated(vacuum.verbose, old, vacuum.pages);
    }
}

/// The last block that is not empty, plus one, and whether the search stopped for somebody who waits for the table.
///
/// The look is not a repetition: rows may have come since the first pass.
fn find_end(vacuum: &Vacuum, lock: &TableLock) -> (u32, bool) {
    let mut checked = Instant::now();
    let mut end = vacuum.pages;
    while end > vacuum.counts.nonempty_pages {
        if end.is_multiple_of(32) && checked.elapsed() >= WAITER_CHECK {
            if lock.has_waiters() {
                vacuum.name.tell_truncation_suspended(vacuum.verbose);
                return (end, true);
            }
            checked = Instant::now();
        }
        check_for_interrupts();
        let pin = vacuum.storage.cache.read(vacuum.storage.block(end - 1), &vacuum.wait).or_raise();
        let guard = pin.shared(&vacuum.wait).or_raise();
        let page = guard.page();
        // A dead line pointer keeps the page too: indexes may name it.
        let is_empty = match page.kind() {
            PageKind::Unused => true,
            PageKind::Data => (1..=page.max_offset()).all(|offset| page.line(offset).is_unused()),
            _ => false,
        };
        if !is_empty {
            break;
        }
        end -= 1;
    }
    (end, false)
}

/// Frees the pages from `end` on and lowers the number of blocks; the caller holds the lock.
fn free_blocks(vacuum: &mut Vacuum, end: u32) {
    let storage = &vacuum.storage;
    for block in end..vacuum.pages {
        check_for_interrupts();
        record_free_space(storage, block, 0, &vacuum.wait).or_raise();
        let pin = storage.cache.read(storage.block(block), &vacuum.wait).or_raise();
        let mut guard = pin.exclusive(&vacuum.wait).or_raise();
        if guard.page().kind() != PageKind::Unused {
            change_page(&mut guard, |page: &mut PageMut<'_>, record| {
                page.init(PageKind::Unused, 0);
                record.free();
            });
        }
    }
    // Nobody else may extend the table under the lock, so the number is still the one that was checked.
    let lowered = storage.descriptor.blocks.compare_exchange(vacuum.pages, end, Ordering::AcqRel, Ordering::Acquire);
    if lowered.is_ok() {
        vacuum.counts.removed_pages += vacuum.pages - end;
        vacuum.pages = end;
        main_fork::shortened(storage.descriptor);
    }
}
