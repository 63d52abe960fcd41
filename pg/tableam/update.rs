//! Updates a row: the old version gets an end and a forward pointer, the new one goes into the same page where it fits.
//!
//! A new version whose indexed columns did not change is heap-only: indexes go on pointing to the chain's root. When the new
//! version needs another page or has large values to move out, the old one is locked first, as the latch is given up meanwhile.

#![allow(non_upper_case_globals, reason = "constants in patterns have Postgres' names")]

use kalamdb_engine::cache::LatchedPage;
use kalamdb_engine::ids::{Tid, Xid};
use kalamdb_engine::page::infomask::*;
use kalamdb_engine::page::{ALL_VISIBLE, FULL, Header, PageKind};
use kalamdb_engine::visibility::{TmResult, TransactionStatus};
use pgrx::pg_sys::LockTupleMode::{self, LockTupleExclusive, LockTupleNoKeyExclusive};
use pgrx::pg_sys::LockWaitPolicy::LockWaitBlock;
use pgrx::{pg_guard, pg_sys};

use super::change::{change_page, change_two_pages};
use super::delete::refuse_in_parallel_mode;
use super::insert::NewTuple;
use super::modified::{IndexedColumns, Modified, modified_columns};
use super::raw;
use super::row::{LatchedRow, report_gone, tm_result};
use super::row_lock::{
    NewXmax, TupleLock, WaitFor, add_holder, holds, is_locked_only, member_status, multi_conflict, multi_masks, nothing_to_drop,
    wait_for_multi, wait_for_xid,
};
use super::slot::{item_pointer, tid_of};
use super::space::{Wanted, page_with_room};
use super::status::{PostgresStatus, current_xid, narrow};
use super::storage::Storage;
use super::{stream, values};
use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::compat;
use crate::ffi::interrupts::BackendWait;
use crate::jobs::count_rows;
use crate::{gate, wal};

/// An update on its way: what does not change while it waits.
struct Update {
    rel: pg_sys::Relation,
    storage: Storage,
    waiter: BackendWait,
    tid: Tid,
    xid: Xid,
    cid: u32,
    /// The partition that the new version belongs to; 0 in a shared table.
    partition: u32,
}

const _: () = nothing_to_drop::<(Update, IndexedColumns, NewTuple)>();

/// Updates one version.
#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_update(
    rel: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    slot: *mut pg_sys::TupleTableSlot,
    cid: pg_sys::CommandId,
    _snapshot: pg_sys::Snapshot,
    crosscheck: pg_sys::Snapshot,
    wait: bool,
    failure: *mut pg_sys::TM_FailureData,
    lock_mode: *mut LockTupleMode::Type,
    update_indexes: *mut compat::UpdateIndexes,
) -> pg_sys::TM_Result::Type {
    refuse_in_parallel_mode("update");
    stream::refuse_update(rel);
    let storage = Storage::of(rel);
    wal::wait_for_room(storage.cache);
    // SAFETY: the executor passes a valid TID, a slot with the new row and its result structs.
    unsafe {
        let waiter = BackendWait::new(storage.cache);
        gate::begin_rows(rel);
        let partition = gate::partition_of_row(rel, &storage, slot, &waiter);
        let update = Update { rel, storage, waiter, tid: tid_of(&*tid), xid: current_xid(), cid, partition };
        let columns = IndexedColumns::of(rel);
        let mut new = NewTuple::unmoved(rel, slot);
        let mut lock = None;
        let updated = update.run(&columns, &mut new, &mut lock, crosscheck, wait, &mut *lock_mode);
        let result = match updated {
            Ok((new_tid, heap_only)) => {
                new.placed();
                (*slot).tts_tid = item_pointer(new_tid);
                *update_indexes = compat::update_indexes(!heap_only);
                compat::count_update(rel, heap_only, new_tid.block != update.tid.block);
                count_rows(&storage, 1);
                pg_sys::TM_Result::TM_Ok
            }
            Err((state, row)) => {
                *update_indexes = compat::update_indexes(false);
                match row {
                    Some(row) => {
                        row.report(state, failure);
                        tm_result(state)
                    }
                    None => report_gone(update.tid, failure),
                }
            }
        };
        if let Some(lock) = lock {
            lock.release();
        }
        columns.free();
        result
    }
}

/// Why an update did not happen: the state and the version as found, or nothing when the version is gone.
type Refused = (TmResult, Option<LatchedRow>);

impl Update {
    /// Does the update; returns the new TID and whether the new version is heap-only.
    unsafe fn run(
        &self,
        columns: &IndexedColumns,
        new: &mut NewTuple,
        lock: &mut Option<TupleLock>,
        crosscheck: pg_sys::Snapshot,
        wait: bool,
        lock_mode: &mut LockTupleMode::Type,
    ) -> Result<(Tid, bool), Refused> {
        let mut known: Option<Modified> = None;
        loop {
            let Some(row) = LatchedRow::find(&self.storage, self.tid, self.cid, &self.waiter) else {
                return Err((TmResult::Deleted, None));
            };
            if row.page.page().partition() != self.partition {
                drop(row);
                gate::refuse_other_partition(self.rel);
            }
            let modified = *known.get_or_insert_with(|| self.compare(columns, &row, new));
            *lock_mode = if modified.key { LockTupleExclusive } else { LockTupleNoKeyExclusive };
            // SAFETY: only sets this backend's own entry.
            unsafe { pg_sys::MultiXactIdSetOldestMember() };
            let mut state = row.state;
            if state == TmResult::Invisible {
                raise(SqlError::prerequisite("attempted to update invisible tuple"));
            }
            if state == TmResult::BeingModified && wait {
                match self.obstacle(&row, modified.key, *lock_mode) {
                    Obstacle::None => state = TmResult::Ok,
                    Obstacle::Changed => state = row.changed(),
                    Obstacle::Wait { skip_lock } => {
                        let header = row.header;
                        drop(row);
                        if !skip_lock {
                            lock.get_or_insert_with(|| TupleLock::new(self.rel, self.tid, *lock_mode)).acquire(LockWaitBlock);
                        }
                        self.wait_for_holders(&header, *lock_mode);
                        continue;
                    }
                }
            }
            state = row.crosscheck(state, crosscheck);
            if state != TmResult::Ok {
                return Err((state, Some(row)));
            }
            return Ok(self.store(row, new, modified, *lock_mode));
        }
    }

    fn compare(&self, columns: &IndexedColumns, row: &LatchedRow, new: &NewTuple) -> Modified {
        let version = row.page.page().version(self.tid.offset).expect("the version was just found under this latch");
        let mut old = pg_sys::HeapTupleData {
            t_len: version.tuple().len() as u32,
            t_self: item_pointer(self.tid),
            // SAFETY: the relation is open.
            t_tableOid: unsafe { (*self.rel).rd_id },
            t_data: version.tuple().as_ptr() as *mut pg_sys::HeapTupleHeaderData,
        };
        // SAFETY: both tuples are rows of the relation; the old one is latched.
        unsafe { modified_columns(self.rel, columns, &mut old, new.tuple) }
    }

    /// Whether someone who holds the version stands in the way.
    fn obstacle(&self, row: &LatchedRow, changes_key: bool, mode: LockTupleMode::Type) -> Obstacle {
        let header = &row.header;
        if header.infomask & HEAP_XMAX_IS_MULTI != 0 {
            let conflict = multi_conflict(header.xmax as u32, header.infomask, mode);
            if conflict.must_wait {
                return Obstacle::Wait { skip_lock: conflict.current_is_member };
            }
            if is_locked_only(header.infomask) {
                return Obstacle::None;
            }
            let updater = PostgresStatus.multi_update_xid(header.xmax as u32);
            let alive = updater != 0 && (PostgresStatus.in_progress(updater) || PostgresStatus.did_commit(updater));
            return if alive { Obstacle::Changed } else { Obstacle::None };
        }
        let shares_key = holds(header.infomask, HEAP_XMAX_KEYSHR_LOCK) && !changes_key;
        if row.xmax_is_current() || shares_key { Obstacle::None } else { Obstacle::Wait { skip_lock: false } }
    }

    fn wait_for_holders(&self, header: &Header, mode: LockTupleMode::Type) {
        let what = WaitFor { rel: self.rel, tid: self.tid, operation: pg_sys::XLTW_Oper::XLTW_Update };
        if header.infomask & HEAP_XMAX_IS_MULTI != 0 {
            wait_for_multi(header.xmax as u32, member_status(mode, true), header.infomask, &what, true);
        } else {
            wait_for_xid(narrow(header.xmax), &what, true);
        }
    }

    /// Writes both versions, in one page or in two.
    fn store(&self, mut row: LatchedRow, new: &mut NewTuple, modified: Modified, mode: LockTupleMode::Type) -> (Tid, bool) {
        // SAFETY: the tuple is the executor's new row.
        let moves_out = unsafe { values::needs_move(new.tuple) };
        let carried = Carried::of(&row.header);
        if !moves_out && row.page.page().has_room_for_update(new.version_len()) {
            self.check_serializable();
            return self.store_in_page(row, new, modified, mode, carried);
        }
        self.lock_old(&mut row, mode);
        if moves_out {
            let mut carried = Vec::new();
            let old = row.page.page().version(self.tid.offset).expect("the version was just read under this latch");
            values::named_by(self.rel, old.bytes(), &mut carried);
            drop(row);
            // SAFETY: no latch is held; the tuple is the executor's new row.
            unsafe { new.move_out(self.rel, &self.storage, &carried) };
        } else {
            drop(row);
        }
        loop {
            let row = LatchedRow::find(&self.storage, self.tid, self.cid, &self.waiter)
                .expect("a version this transaction has locked stays");
            if row.page.page().has_room(new.version_len()) {
                self.check_serializable();
                return self.store_in_page(row, new, modified, mode, carried);
            }
            drop(row);
            if let Some(stored) = self.store_in_other_page(new, mode, carried) {
                return stored;
            }
        }
    }

    fn check_serializable(&self) {
        let mut pointer = item_pointer(self.tid);
        // SAFETY: the latch on the old version is held until the update can be seen.
        unsafe { raw::CheckForSerializableConflictIn(self.rel, &mut pointer, self.tid.block) };
    }

    /// Marks the old version locked, so that nobody changes it while its page is not latched.
    fn lock_old(&self, row: &mut LatchedRow, mode: LockTupleMode::Type) {
        let mut header = row.header;
        add_holder(&row.header, self.xid, mode, false).put(&mut header);
        header.infomask2 &= !HEAP_HOT_UPDATED;
        header.cmax = self.cid;
        header.ctid = self.tid;
        change_page(&mut row.page, |page, record| {
            page.set_header(self.tid.offset, &header).expect("the version was just read under this latch");
            record.header(self.tid.offset, &header);
        });
    }

    /// The old version's header after the update to `new_tid`.
    fn ended(&self, old: &Header, mode: LockTupleMode::Type, heap_only: bool) -> Header {
        let mut header = *old;
        add_holder(old, self.xid, mode, true).put(&mut header);
        header.infomask2 = (header.infomask2 & !HEAP_HOT_UPDATED) | if heap_only { HEAP_HOT_UPDATED } else { 0 };
        header.cmax = self.cid;
        header
    }

    /// The new version's header; its ctid becomes its own TID when it is stored.
    fn fresh(&self, old: &Header, new: &NewTuple, block: u32, heap_only: bool, carried: Carried) -> Header {
        let mut header = new.header(self.xid, self.cid, block, false);
        header.infomask |= HEAP_UPDATED;
        header.infomask2 |= if heap_only { HEAP_ONLY_TUPLE } else { 0 };
        if let Some(carried) = carried.holders(old) {
            carried.put(&mut header);
        }
        header
    }

    fn store_in_page(
        &self,
        mut row: LatchedRow,
        new: &NewTuple,
        modified: Modified,
        mode: LockTupleMode::Type,
        carried: Carried,
    ) -> (Tid, bool) {
        let heap_only = !modified.indexed;
        let fresh = self.fresh(&row.header, new, self.tid.block, heap_only, carried);
        let mut ended = self.ended(&row.header, mode, heap_only);
        let was_all_visible = row.page.page().flags() & ALL_VISIBLE != 0;
        let mut new_tid = self.tid;
        change_page(&mut row.page, |page, record| {
            let offset = page.add_row(&fresh, new.body(), None).expect("the page has room, as checked under this latch");
            record.insert(offset, page.as_page().version(offset).expect("the version was just added").bytes());
            new_tid.offset = offset;
            ended.ctid = new_tid;
            page.set_header(self.tid.offset, &ended).expect("the version was just read under this latch");
            record.header(self.tid.offset, &ended);
            if page.set_prune_xid_min(self.xid) {
                record.prune_xid(self.xid);
            }
            if was_all_visible {
                page.clear_flags(ALL_VISIBLE);
                record.flags(0, ALL_VISIBLE);
            }
        });
        // SAFETY: the slot holds the new row until the callback returns.
        unsafe { new.show(&fresh, new_tid) };
        (new_tid, heap_only)
    }

    /// Puts the new version into another page; nothing when that page filled up before both were latched.
    fn store_in_other_page(&self, new: &NewTuple, mode: LockTupleMode::Type, carried: Carried) -> Option<(Tid, bool)> {
        let reserve = super::space::reserve_for_updates(self.rel);
        let (partition, len) = (self.partition, new.version_len());
        let wanted = Wanted { partition, len, reserve, avoid: Some(self.tid.block), time: None };
        let candidate = page_with_room(&self.storage, wanted, &self.waiter).or_raise();
        let block = candidate.key().page.as_block().expect("rows are stored in blocks");
        let (mut row, mut other) = self.latch_both(candidate, block);
        let unused = other.page().kind() == PageKind::Unused;
        if !unused && !other.page().has_room(new.version_len()) {
            return None;
        }
        self.check_serializable();
        let fresh = self.fresh(&row.header, new, block, false, carried);
        let mut ended = self.ended(&row.header, mode, false);
        let other_was_all_visible = other.page().flags() & ALL_VISIBLE != 0;
        let clear = row.page.page().flags() & ALL_VISIBLE;
        let new_tid = change_two_pages(
            &mut other,
            &mut row.page,
            |page, record| {
                if unused {
                    page.init(PageKind::Data, self.partition);
                    record.init(PageKind::Data, self.partition);
                }
                let offset = page.add_row(&fresh, new.body(), None).expect("the page has room, as checked under this latch");
                record.insert(offset, page.as_page().version(offset).expect("the version was just added").bytes());
                if other_was_all_visible {
                    page.clear_flags(ALL_VISIBLE);
                    record.flags(0, ALL_VISIBLE);
                }
                Tid::new(block, offset)
            },
            |new_tid, page, record| {
                ended.ctid = new_tid;
                page.set_header(self.tid.offset, &ended).expect("the version was just read under this latch");
                record.header(self.tid.offset, &ended);
                if page.set_prune_xid_min(self.xid) {
                    record.prune_xid(self.xid);
                }
                page.set_flags(FULL);
                page.clear_flags(clear);
                record.flags(FULL, clear);
                new_tid
            },
        );
        // SAFETY: as above.
        unsafe { new.show(&fresh, new_tid) };
        Some((new_tid, false))
    }

    /// Latches the old version's page and the candidate in the order of their numbers, as everybody does.
    fn latch_both(&self, candidate: LatchedPage, block: u32) -> (LatchedRow, LatchedPage) {
        let find = || {
            LatchedRow::find(&self.storage, self.tid, self.cid, &self.waiter)
                .expect("a version this transaction has locked stays")
        };
        if block < self.tid.block {
            return (find(), candidate);
        }
        let pin = candidate.into_pin();
        let row = find();
        let other = pin.into_exclusive(&self.waiter).or_raise();
        (row, other)
    }
}

/// Who has to be waited for before a version can be updated.
enum Obstacle {
    /// Nobody.
    None,
    /// The version has been updated or deleted.
    Changed,
    /// The holders in xmax; without the tuple lock when the transaction is one of them.
    Wait { skip_lock: bool },
}

/// Which row locks of the old version go over to the new one: those that were there before the update began.
#[derive(Clone, Copy)]
struct Carried {
    held_before: bool,
}

impl Carried {
    fn of(old: &Header) -> Carried {
        Carried { held_before: old.infomask & HEAP_XMAX_INVALID == 0 }
    }

    /// The new version's xmax, from the old version's as it is now.
    fn holders(self, old: &Header) -> Option<NewXmax> {
        if old.infomask & HEAP_XMAX_INVALID != 0 {
            return None;
        }
        if old.infomask & HEAP_XMAX_IS_MULTI != 0 {
            let multi = old.xmax as u32;
            let (infomask, infomask2) = multi_masks(multi);
            return Some(NewXmax { xmax: old.xmax, infomask, infomask2 });
        }
        // A lone holder that the update did not wait for: this transaction itself, or a key-share locker.
        let keep = self.held_before;
        keep.then_some(NewXmax { xmax: old.xmax, infomask: HEAP_XMAX_KEYSHR_LOCK | HEAP_XMAX_LOCK_ONLY, infomask2: 0 })
    }
}
