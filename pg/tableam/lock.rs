//! Locks a row version for the executor: SELECT FOR UPDATE and its kin, EvalPlanQual, ON CONFLICT, foreign keys.

#![allow(non_upper_case_globals, reason = "constants in patterns have Postgres' names")]

use kalamdb_engine::ids::{Tid, Xid};
use kalamdb_engine::page::Header;
use kalamdb_engine::page::infomask::*;
use kalamdb_engine::visibility::{TmResult, TransactionStatus, header_is_only_locked};
use pgrx::pg_sys::LockTupleMode::{self, LockTupleKeyShare, LockTupleNoKeyExclusive, LockTupleShare};
use pgrx::pg_sys::LockWaitPolicy::{self, LockWaitBlock, LockWaitError};
use pgrx::{pg_guard, pg_sys};

use super::change::change_page;
use super::fetch::store_row;
use super::row::{LatchedRow, tm_result};
use super::row_lock::{
    TupleLock, WaitFor, add_holder, holds, is_locked_only, is_update_status, lone_status, member_status, mode_of_status,
    modes_conflict, multi_conflict, nothing_to_drop, raise_not_available, wait_for_multi, wait_for_xid, xmax_changed,
};
use super::slot::{item_pointer, tid_of};
use super::status::{PostgresStatus, SnapshotView, current_xid, for_each_member, narrow};
use super::storage::Storage;
use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::interrupts::{BackendWait, check_for_interrupts};
use crate::gate::{Access, in_query, is_partitioned, refuse_other_partition};

/// A lock request: what does not change while it waits.
struct Request {
    rel: pg_sys::Relation,
    storage: Storage,
    waiter: BackendWait,
    cid: u32,
    mode: LockTupleMode::Type,
    policy: LockWaitPolicy::Type,
    follow_updates: bool,
}

const _: () = nothing_to_drop::<Request>();

/// How an attempt to lock one version ended.
struct Outcome {
    state: pg_sys::TM_Result::Type,
    /// The version's header as last seen; nothing when it is gone.
    header: Option<Header>,
}

/// Locks a row version, or the newest version of its row, and puts it into the slot.
#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_lock(
    rel: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    snapshot: pg_sys::Snapshot,
    slot: *mut pg_sys::TupleTableSlot,
    cid: pg_sys::CommandId,
    mode: LockTupleMode::Type,
    wait_policy: LockWaitPolicy::Type,
    flags: u8,
    failure: *mut pg_sys::TM_FailureData,
) -> pg_sys::TM_Result::Type {
    let storage = Storage::of(rel);
    let request = Request {
        rel,
        storage,
        waiter: BackendWait::new(storage.cache),
        cid,
        mode,
        policy: wait_policy,
        follow_updates: flags & pg_sys::TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS as u8 != 0,
    };
    if is_partitioned(rel) && in_query() {
        // SAFETY: the executor passes a valid TID.
        let block = unsafe { tid_of(&*tid) }.block;
        let access = Access::of_statement(rel, &storage, &request.waiter);
        if !access.allows_block(&storage, block, &request.waiter).or_raise() {
            refuse_other_partition(rel);
        }
    }
    let find_last = flags & pg_sys::TUPLE_LOCK_FLAG_FIND_LAST_VERSION as u8 != 0;
    // SAFETY: the executor passes a valid TID, slot and failure struct.
    unsafe {
        (*failure).traversed = false;
        let mut target = tid_of(&*tid);
        loop {
            let outcome = request.lock_version(target);
            let Some(header) = outcome.header else {
                (*failure).ctid = item_pointer(target);
                (*failure).xmax = pg_sys::InvalidTransactionId;
                (*failure).cmax = pg_sys::InvalidCommandId;
                return pg_sys::TM_Result::TM_Deleted;
            };
            request.report(outcome.state, &header, failure);
            if outcome.state == pg_sys::TM_Result::TM_Updated && find_last {
                (*failure).traversed = true;
                match request.next_version(&header, target, snapshot, failure) {
                    Next::Lock(next) => {
                        target = next;
                        continue;
                    }
                    Next::Result(result) => return result,
                }
            }
            *tid = item_pointer(target);
            // Also a version that could not be locked is shown: ON CONFLICT looks at who made it.
            store_row(rel, &storage, target, slot, &request.waiter);
            return outcome.state;
        }
    }
}

/// Where the walk to the newest version of a row leads.
enum Next {
    /// To this version.
    Lock(Tid),
    /// To an end.
    Result(pg_sys::TM_Result::Type),
}

/// What one look at a version decides.
enum Step {
    Done(pg_sys::TM_Result::Type),
    Again,
}

impl Request {
    unsafe fn report(&self, state: pg_sys::TM_Result::Type, header: &Header, failure: *mut pg_sys::TM_FailureData) {
        // SAFETY: the executor's struct.
        unsafe {
            (*failure).ctid = item_pointer(header.ctid);
            (*failure).xmax = narrow(kalamdb_engine::visibility::update_xid(header, &PostgresStatus));
            (*failure).cmax = if state == pg_sys::TM_Result::TM_SelfModified { header.cmax } else { pg_sys::InvalidCommandId };
        }
    }

    fn what(&self, tid: Tid, operation: pg_sys::XLTW_Oper::Type) -> WaitFor {
        WaitFor { rel: self.rel, tid, operation }
    }

    /// Locks exactly one version.
    fn lock_version(&self, tid: Tid) -> Outcome {
        let mut lock = TupleLock::new(self.rel, tid, self.mode);
        let mut first = true;
        let outcome = loop {
            let Some(row) = LatchedRow::find(&self.storage, tid, self.cid, &self.waiter) else {
                break Outcome { state: pg_sys::TM_Result::TM_Deleted, header: None };
            };
            let header = row.header;
            match row.state {
                TmResult::Invisible | TmResult::SelfModified => {
                    break Outcome { state: tm_result(row.state), header: Some(header) };
                }
                TmResult::Ok => {
                    self.put_lock(row);
                    break Outcome { state: pg_sys::TM_Result::TM_Ok, header: Some(header) };
                }
                TmResult::BeingModified | TmResult::Updated | TmResult::Deleted => {}
            }
            match self.deal_with_holders(row, first, &mut lock) {
                Step::Done(state) => break Outcome { state, header: Some(header) },
                Step::Again => first = false,
            }
        };
        lock.release();
        outcome
    }

    /// Somebody has changed or locked the version: shares it, waits, or gives up.
    fn deal_with_holders(&self, row: LatchedRow, first: bool, lock: &mut TupleLock) -> Step {
        let (tid, header, state) = (row.tid, row.header, row.state);
        drop(row);
        let mut skip_tuple_lock = false;
        if first || header.infomask & HEAP_XMAX_IS_MULTI != 0 {
            match self.own_hold(&header) {
                OwnHold::Enough => return Step::Done(pg_sys::TM_Result::TM_Ok),
                OwnHold::Weaker => skip_tuple_lock = true,
                OwnHold::None => {}
            }
        }
        if self.may_share(&header) {
            if self.mode == LockTupleKeyShare && self.follow_updates && !is_locked_only(header.infomask) && header.ctid != tid {
                let followed = self.lock_successors(&header);
                if followed != pg_sys::TM_Result::TM_Ok {
                    return Step::Done(followed);
                }
            }
            return self.lock_if_unchanged(tid, &header);
        }
        if header.infomask & HEAP_XMAX_IS_MULTI == 0 && PostgresStatus.is_current(header.xmax) {
            return self.lock_if_unchanged(tid, &header);
        }
        if state != TmResult::BeingModified {
            return Step::Done(tm_result(state));
        }
        if !skip_tuple_lock && !lock.acquire(self.policy) {
            return Step::Done(pg_sys::TM_Result::TM_WouldBlock);
        }
        if !self.wait_for_holders(tid, &header) {
            return Step::Done(pg_sys::TM_Result::TM_WouldBlock);
        }
        if self.follow_updates && !is_locked_only(header.infomask) && header.ctid != tid {
            let followed = self.lock_successors(&header);
            if followed != pg_sys::TM_Result::TM_Ok {
                return Step::Done(followed);
            }
        }
        self.lock_after_wait(tid, &header)
    }

    /// After the holders ended: locks the version, or says what became of it.
    fn lock_after_wait(&self, tid: Tid, seen: &Header) -> Step {
        let Some(row) = LatchedRow::find(&self.storage, tid, self.cid, &self.waiter) else {
            return Step::Done(pg_sys::TM_Result::TM_Deleted);
        };
        if xmax_changed(&row.header, seen) && row.header.infomask & HEAP_XMAX_INVALID == 0 {
            return Step::Again;
        }
        let free = row.header.infomask & HEAP_XMAX_INVALID != 0
            || is_locked_only(row.header.infomask)
            || header_is_only_locked(&row.header, &PostgresStatus);
        if free {
            self.put_lock(row);
            return Step::Done(pg_sys::TM_Result::TM_Ok);
        }
        Step::Done(tm_result(row.changed()))
    }

    /// Adds the lock if xmax is still what the decision was made on.
    fn lock_if_unchanged(&self, tid: Tid, seen: &Header) -> Step {
        let Some(row) = LatchedRow::find(&self.storage, tid, self.cid, &self.waiter) else {
            return Step::Done(pg_sys::TM_Result::TM_Deleted);
        };
        if xmax_changed(&row.header, seen) {
            return Step::Again;
        }
        self.put_lock(row);
        Step::Done(pg_sys::TM_Result::TM_Ok)
    }

    /// Whether the wanted lock and what xmax says go together without waiting.
    fn may_share(&self, header: &Header) -> bool {
        let infomask = header.infomask;
        match self.mode {
            LockTupleKeyShare => header.infomask2 & HEAP_KEYS_UPDATED == 0,
            LockTupleShare => is_locked_only(infomask) && !holds(infomask, HEAP_XMAX_EXCL_LOCK),
            LockTupleNoKeyExclusive if infomask & HEAP_XMAX_IS_MULTI != 0 => {
                !multi_conflict(header.xmax as u32, infomask, self.mode).conflicts
            }
            LockTupleNoKeyExclusive => holds(infomask, HEAP_XMAX_KEYSHR_LOCK),
            _ => false,
        }
    }

    /// What the current transaction holds of the version already.
    fn own_hold(&self, header: &Header) -> OwnHold {
        if header.infomask & HEAP_XMAX_IS_MULTI != 0 {
            let mut own = OwnHold::None;
            for_each_member(header.xmax as u32, is_locked_only(header.infomask), &mut |xid, status| {
                if !PostgresStatus.is_current(u64::from(xid.into_inner())) {
                    return;
                }
                if mode_of_status(status) >= self.mode {
                    own = OwnHold::Enough;
                } else if !matches!(own, OwnHold::Enough) {
                    own = OwnHold::Weaker;
                }
            });
            return own;
        }
        if !PostgresStatus.is_current(header.xmax) {
            return OwnHold::None;
        }
        match lone_status(header.infomask, header.infomask2) {
            Some(status) if mode_of_status(status) >= self.mode => OwnHold::Enough,
            _ => OwnHold::None,
        }
    }

    /// Waits as the policy says; false when the row is to be skipped.
    fn wait_for_holders(&self, tid: Tid, header: &Header) -> bool {
        let what = self.what(tid, pg_sys::XLTW_Oper::XLTW_Lock);
        let block = self.policy == LockWaitBlock;
        let got = if header.infomask & HEAP_XMAX_IS_MULTI != 0 {
            wait_for_multi(header.xmax as u32, member_status(self.mode, false), header.infomask, &what, block).0
        } else {
            wait_for_xid(narrow(header.xmax), &what, block)
        };
        if !got && self.policy == LockWaitError {
            raise_not_available(self.rel);
        }
        got
    }

    /// Writes the lock into a latched version.
    fn put_lock(&self, mut row: LatchedRow) {
        // SAFETY: only sets this backend's own entry.
        unsafe { pg_sys::MultiXactIdSetOldestMember() };
        let xid = current_xid();
        let mut header = row.header;
        let new = add_holder(&row.header, xid, self.mode, false);
        new.put(&mut header);
        if is_locked_only(new.infomask) {
            header.infomask2 &= !HEAP_HOT_UPDATED;
            header.ctid = row.tid;
        }
        write_header(&mut row, &header);
    }

    /// The version after an updated one, if the walk to the newest version goes on.
    unsafe fn next_version(
        &self,
        header: &Header,
        tid: Tid,
        snapshot: pg_sys::Snapshot,
        failure: *mut pg_sys::TM_FailureData,
    ) -> Next {
        if header.ctid.offset == MOVED_PARTITIONS_OFFSET {
            raise(SqlError::serialization_failure(
                "tuple to be locked was already moved to another partition due to concurrent update",
            ));
        }
        let mut next = header.ctid;
        // SAFETY: the executor's struct.
        let mut prior = unsafe { u64::from((*failure).xmax.into_inner()) };
        if next == tid {
            return Next::Result(pg_sys::TM_Result::TM_Deleted);
        }
        loop {
            check_for_interrupts();
            let Some(found) = self.look_at(next, prior) else {
                return Next::Result(pg_sys::TM_Result::TM_Deleted);
            };
            match found {
                Found::Live => return Next::Lock(next),
                Found::Broken => return Next::Result(pg_sys::TM_Result::TM_Deleted),
                Found::Wait(xid) => match self.policy {
                    LockWaitBlock => {
                        wait_for_xid(xid, &self.what(next, pg_sys::XLTW_Oper::XLTW_FetchUpdated), true);
                    }
                    policy => {
                        if !wait_for_xid(xid, &self.what(next, pg_sys::XLTW_Oper::XLTW_FetchUpdated), false) {
                            if policy == LockWaitError {
                                raise_not_available(self.rel);
                            }
                            return Next::Result(pg_sys::TM_Result::TM_WouldBlock);
                        }
                    }
                },
                Found::Own { cmin } => {
                    if cmin >= self.cid {
                        // SAFETY: the executor's struct.
                        unsafe {
                            (*failure).xmax = narrow(prior);
                            (*failure).cmax = cmin;
                        }
                        return Next::Result(pg_sys::TM_Result::TM_SelfModified);
                    }
                    return Next::Lock(next);
                }
                Found::Updated { ctid, xid } => {
                    if ctid.offset == MOVED_PARTITIONS_OFFSET {
                        raise(SqlError::serialization_failure(
                            "tuple to be locked was already moved to another partition due to concurrent update",
                        ));
                    }
                    if ctid == next {
                        return Next::Result(pg_sys::TM_Result::TM_Deleted);
                    }
                    next = ctid;
                    prior = u64::from(narrow(xid).into_inner());
                    let _ = snapshot;
                }
            }
        }
    }

    /// Looks at a version of an update chain with a dirty snapshot.
    fn look_at(&self, tid: Tid, prior: Xid) -> Option<Found> {
        let mut dirty = pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY, ..Default::default() };
        let view = SnapshotView::new(&mut dirty);
        let pin = self.storage.cache.read(self.storage.block(tid.block), &self.waiter).or_raise();
        let guard = pin.shared(&self.waiter).or_raise();
        let header = guard.page().version(tid.offset)?.header();
        if u64::from(narrow(header.effective_xmin()).into_inner()) != prior {
            return Some(Found::Broken);
        }
        let mut hints = 0;
        if view.sees(&header, guard.page().lsn(), &mut hints) {
            if dirty.xmin != pg_sys::InvalidTransactionId {
                raise(kalamdb_engine::Error::corrupt(format!(
                    "t_xmin {} is uncommitted in tuple {tid} to be updated in table \"{}\"",
                    dirty.xmin,
                    super::storage::relation_name(self.rel)
                )));
            }
            if dirty.xmax != pg_sys::InvalidTransactionId {
                return Some(Found::Wait(dirty.xmax));
            }
            if PostgresStatus.is_current(header.xmin) {
                return Some(Found::Own { cmin: header.cmin });
            }
            return Some(Found::Live);
        }
        if header.effective_xmin() != 2 && header.xmin_invalid() {
            return Some(Found::Broken);
        }
        Some(Found::Updated { ctid: header.ctid, xid: kalamdb_engine::visibility::update_xid(&header, &PostgresStatus) })
    }

    /// Locks the later versions of a row that is being updated, so that the lock holds for whichever version survives.
    fn lock_successors(&self, header: &Header) -> pg_sys::TM_Result::Type {
        if header.ctid.offset == MOVED_PARTITIONS_OFFSET {
            return pg_sys::TM_Result::TM_Ok;
        }
        // SAFETY: only sets this backend's own entry.
        unsafe { pg_sys::MultiXactIdSetOldestMember() };
        let mut tid = header.ctid;
        let mut prior = kalamdb_engine::visibility::update_xid(header, &PostgresStatus);
        loop {
            match self.lock_successor(tid, prior) {
                Successor::Wait(xid) => {
                    wait_for_xid(xid, &self.what(tid, pg_sys::XLTW_Oper::XLTW_LockUpdated), true);
                }
                Successor::End(result) => return result,
                Successor::Next { ctid, xid } => {
                    tid = ctid;
                    prior = xid;
                }
            }
            check_for_interrupts();
        }
    }

    fn lock_successor(&self, tid: Tid, prior: Xid) -> Successor {
        let ok = Successor::End(pg_sys::TM_Result::TM_Ok);
        let Some(mut row) = LatchedRow::find(&self.storage, tid, self.cid, &self.waiter) else { return ok };
        let header = row.header;
        if prior != 0 && narrow(header.effective_xmin()) != narrow(prior) {
            return ok;
        }
        let xmin = header.effective_xmin();
        let aborted = xmin != 2
            && !PostgresStatus.is_current(xmin)
            && !PostgresStatus.in_progress(xmin)
            && !PostgresStatus.did_commit(xmin);
        if aborted {
            return ok;
        }
        let mut locked_already = false;
        if header.infomask & HEAP_XMAX_INVALID == 0 {
            let mut holders = Vec::new();
            if header.infomask & HEAP_XMAX_IS_MULTI != 0 {
                for_each_member(header.xmax as u32, is_locked_only(header.infomask), &mut |xid, status| {
                    holders.push((xid, status));
                });
            } else if let Some(status) = lone_status(header.infomask, header.infomask2) {
                holders.push((narrow(header.xmax), status));
            }
            for (xid, status) in holders {
                match self.judge_holder(xid, status) {
                    Holder::Own => locked_already = true,
                    Holder::Harmless => {}
                    Holder::Running => return Successor::Wait(xid),
                    Holder::Changed => return Successor::End(tm_result(row.changed())),
                }
                if locked_already {
                    break;
                }
            }
        }
        if !locked_already {
            let mut locked = header;
            add_holder(&header, current_xid(), self.mode, false).put(&mut locked);
            write_header(&mut row, &locked);
            row.header = locked;
        }
        let ends = row.header.infomask & HEAP_XMAX_INVALID != 0
            || row.header.ctid.offset == MOVED_PARTITIONS_OFFSET
            || row.header.ctid == tid
            || header_is_only_locked(&row.header, &PostgresStatus);
        if ends { ok } else { Successor::Next { ctid: row.header.ctid, xid: row.update_xid() } }
    }

    fn judge_holder(&self, xid: pg_sys::TransactionId, status: pg_sys::MultiXactStatus::Type) -> Holder {
        let full = u64::from(xid.into_inner());
        let conflicts = modes_conflict(mode_of_status(status), self.mode);
        if PostgresStatus.is_current(full) {
            Holder::Own
        } else if PostgresStatus.in_progress(full) {
            if conflicts { Holder::Running } else { Holder::Harmless }
        } else if is_update_status(status) && conflicts && PostgresStatus.did_commit(full) {
            Holder::Changed
        } else {
            Holder::Harmless
        }
    }
}

fn write_header(row: &mut LatchedRow, header: &Header) {
    let offset = row.tid.offset;
    change_page(&mut row.page, |page, record| {
        page.set_header(offset, header).expect("the version was just read under this latch");
        record.header(offset, header);
    });
}

enum OwnHold {
    None,
    Weaker,
    Enough,
}

enum Found {
    Live,
    Broken,
    Wait(pg_sys::TransactionId),
    Own { cmin: u32 },
    Updated { ctid: Tid, xid: Xid },
}

enum Successor {
    Wait(pg_sys::TransactionId),
    End(pg_sys::TM_Result::Type),
    Next { ctid: Tid, xid: Xid },
}

enum Holder {
    Own,
    Harmless,
    Running,
    Changed,
}
