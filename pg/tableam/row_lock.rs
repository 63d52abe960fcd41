//! Row locks: what an xmax says of its holders, how one more holder is added, and how to wait for them.
//!
//! The rules are heap's: a lone locker's xid stands in xmax, several share a multixact, and a heavyweight tuple lock gives
//! waiters their order. See README.tuplock in PostgreSQL's source.

#![allow(non_upper_case_globals, reason = "constants in patterns have Postgres' names")]

use kalamdb_engine::ids::{Tid, Xid};
use kalamdb_engine::page::Header;
use kalamdb_engine::page::infomask::*;
use kalamdb_engine::visibility::TransactionStatus;
use pgrx::pg_sys;
use pgrx::pg_sys::LockTupleMode::{self, LockTupleExclusive, LockTupleKeyShare, LockTupleNoKeyExclusive, LockTupleShare};
use pgrx::pg_sys::MultiXactStatus;

use super::slot::item_pointer;
use super::status::{PostgresStatus, for_each_member, narrow};
use super::storage::relation_name;
use crate::error::{SqlError, raise};
use crate::ffi::compat;
use crate::ffi::{plain, unguarded};

/// xmax of a version with one more holder.
#[derive(Clone, Copy)]
pub struct NewXmax {
    /// The transaction or multixact.
    pub xmax: Xid,
    /// Bits of the first mask within `HEAP_XMAX_BITS`.
    pub infomask: u16,
    /// `HEAP_KEYS_UPDATED` or nothing.
    pub infomask2: u16,
}

impl NewXmax {
    /// Writes it into a header in place of the old one.
    pub fn put(&self, header: &mut Header) {
        header.infomask = (header.infomask & !HEAP_XMAX_BITS) | self.infomask;
        header.infomask2 = (header.infomask2 & !HEAP_KEYS_UPDATED) | self.infomask2;
        header.xmax = self.xmax;
    }
}

/// Whether xmax names lockers only (pg_upgrade's old form included).
pub fn is_locked_only(infomask: u16) -> bool {
    infomask & HEAP_XMAX_LOCK_ONLY != 0 || infomask & (HEAP_XMAX_IS_MULTI | HEAP_LOCK_MASK) == HEAP_XMAX_EXCL_LOCK
}

/// Whether a lone locker holds at least this kind of lock.
pub fn holds(infomask: u16, kind: u16) -> bool {
    infomask & HEAP_LOCK_MASK == kind
}

/// Whether xmax or its kind differs between two looks at a version.
pub fn xmax_changed(now: &Header, then: &Header) -> bool {
    let interesting = HEAP_XMAX_IS_MULTI | HEAP_XMAX_LOCK_ONLY | HEAP_LOCK_MASK;
    now.infomask & interesting != then.infomask & interesting || now.xmax != then.xmax
}

/// The status a holder gets in a multixact.
pub fn member_status(mode: LockTupleMode::Type, is_update: bool) -> MultiXactStatus::Type {
    match (mode, is_update) {
        (LockTupleKeyShare, false) => MultiXactStatus::MultiXactStatusForKeyShare,
        (LockTupleShare, false) => MultiXactStatus::MultiXactStatusForShare,
        (LockTupleNoKeyExclusive, false) => MultiXactStatus::MultiXactStatusForNoKeyUpdate,
        (LockTupleExclusive, false) => MultiXactStatus::MultiXactStatusForUpdate,
        (LockTupleNoKeyExclusive, true) => MultiXactStatus::MultiXactStatusNoKeyUpdate,
        _ => MultiXactStatus::MultiXactStatusUpdate,
    }
}

/// The lock that a member's status stands for.
pub fn mode_of_status(status: MultiXactStatus::Type) -> LockTupleMode::Type {
    match status {
        MultiXactStatus::MultiXactStatusForKeyShare => LockTupleKeyShare,
        MultiXactStatus::MultiXactStatusForShare => LockTupleShare,
        MultiXactStatus::MultiXactStatusForNoKeyUpdate | MultiXactStatus::MultiXactStatusNoKeyUpdate => LockTupleNoKeyExclusive,
        _ => LockTupleExclusive,
    }
}

/// Whether a member's status is an update and not a lock.
pub fn is_update_status(status: MultiXactStatus::Type) -> bool {
    status > MultiXactStatus::MultiXactStatusForUpdate
}

/// The heavyweight lock mode that stands for a row lock.
fn heavyweight(mode: LockTupleMode::Type) -> pg_sys::LOCKMODE {
    (match mode {
        LockTupleKeyShare => pg_sys::AccessShareLock,
        LockTupleShare => pg_sys::RowShareLock,
        LockTupleNoKeyExclusive => pg_sys::ExclusiveLock,
        _ => pg_sys::AccessExclusiveLock,
    }) as pg_sys::LOCKMODE
}

/// Whether two row locks conflict.
pub fn modes_conflict(one: LockTupleMode::Type, other: LockTupleMode::Type) -> bool {
    // SAFETY: looks into a constant table of the lock manager.
    unsafe { pg_sys::DoLockModesConflict(heavyweight(one), heavyweight(other)) }
}

/// The status of a lone xmax holder, from the masks.
pub fn lone_status(infomask: u16, infomask2: u16) -> Option<MultiXactStatus::Type> {
    let keys = infomask2 & HEAP_KEYS_UPDATED != 0;
    if !is_locked_only(infomask) {
        return Some(if keys { MultiXactStatus::MultiXactStatusUpdate } else { MultiXactStatus::MultiXactStatusNoKeyUpdate });
    }
    match infomask & HEAP_LOCK_MASK {
        HEAP_XMAX_KEYSHR_LOCK => Some(MultiXactStatus::MultiXactStatusForKeyShare),
        HEAP_XMAX_SHR_LOCK => Some(MultiXactStatus::MultiXactStatusForShare),
        HEAP_XMAX_EXCL_LOCK if keys => Some(MultiXactStatus::MultiXactStatusForUpdate),
        HEAP_XMAX_EXCL_LOCK => Some(MultiXactStatus::MultiXactStatusForNoKeyUpdate),
        _ => None,
    }
}

/// The masks that describe a multixact.
pub fn multi_masks(multi: u32) -> (u16, u16) {
    let mut infomask = HEAP_XMAX_IS_MULTI;
    let mut infomask2 = 0;
    let mut strongest = LockTupleKeyShare;
    let mut has_update = false;
    for_each_member(multi, false, &mut |_, status| {
        strongest = strongest.max(mode_of_status(status));
        has_update |= is_update_status(status);
        if matches!(status, MultiXactStatus::MultiXactStatusForUpdate | MultiXactStatus::MultiXactStatusUpdate) {
            infomask2 |= HEAP_KEYS_UPDATED;
        }
    });
    infomask |= match strongest {
        LockTupleExclusive | LockTupleNoKeyExclusive => HEAP_XMAX_EXCL_LOCK,
        LockTupleShare => HEAP_XMAX_SHR_LOCK,
        _ => HEAP_XMAX_KEYSHR_LOCK,
    };
    if !has_update {
        infomask |= HEAP_XMAX_LOCK_ONLY;
    }
    (infomask, infomask2)
}

fn sole_holder(xid: Xid, mode: LockTupleMode::Type, is_update: bool) -> NewXmax {
    let keys = if mode == LockTupleExclusive { HEAP_KEYS_UPDATED } else { 0 };
    if is_update {
        return NewXmax { xmax: xid, infomask: 0, infomask2: keys };
    }
    let kind = match mode {
        LockTupleKeyShare => HEAP_XMAX_KEYSHR_LOCK,
        LockTupleShare => HEAP_XMAX_SHR_LOCK,
        _ => HEAP_XMAX_EXCL_LOCK,
    };
    NewXmax { xmax: xid, infomask: HEAP_XMAX_LOCK_ONLY | kind, infomask2: keys }
}

fn from_multi(multi: pg_sys::MultiXactId) -> NewXmax {
    let (infomask, infomask2) = multi_masks(multi.into_inner());
    NewXmax { xmax: u64::from(multi.into_inner()), infomask, infomask2 }
}

fn pair(old: &Header, old_status: MultiXactStatus::Type, xid: Xid, new_status: MultiXactStatus::Type) -> NewXmax {
    // SAFETY: both are live or committed transactions; errors unwind through the guard.
    from_multi(unsafe { pg_sys::MultiXactIdCreate(narrow(old.xmax), old_status, narrow(xid), new_status) })
}

/// xmax of a version after the current transaction `xid` updates it or locks it in `mode`.
pub fn add_holder(old: &Header, xid: Xid, mode: LockTupleMode::Type, is_update: bool) -> NewXmax {
    let status = &PostgresStatus;
    if old.infomask & HEAP_XMAX_INVALID != 0 {
        return sole_holder(xid, mode, is_update);
    }
    if old.infomask & HEAP_XMAX_IS_MULTI != 0 {
        let multi = old.xmax as u32;
        let lock_only = is_locked_only(old.infomask);
        let over = !status.multi_running(multi, lock_only) && (lock_only || !status.did_commit(status.multi_update_xid(multi)));
        if over {
            return sole_holder(xid, mode, is_update);
        }
        // SAFETY: the multixact is of this cluster; errors unwind through the guard.
        let expanded =
            unsafe { pg_sys::MultiXactIdExpand(pg_sys::MultiXactId::from(multi), narrow(xid), member_status(mode, is_update)) };
        return from_multi(expanded);
    }
    let in_progress = old.infomask & HEAP_XMAX_COMMITTED == 0 && (status.is_current(old.xmax) || status.in_progress(old.xmax));
    if in_progress {
        let Some(old_status) = lone_status(old.infomask, old.infomask2) else {
            return sole_holder(xid, mode, is_update);
        };
        if old.xmax == xid {
            // The transaction's own lock grows to the stronger of both.
            return sole_holder(xid, mode.max(mode_of_status(old_status)), is_update);
        }
        return pair(old, old_status, xid, member_status(mode, is_update));
    }
    let updated = old.infomask & HEAP_XMAX_COMMITTED != 0 || (!is_locked_only(old.infomask) && status.did_commit(old.xmax));
    match lone_status(old.infomask, old.infomask2) {
        Some(old_status) if updated => pair(old, old_status, xid, member_status(mode, is_update)),
        _ => sole_holder(xid, mode, is_update),
    }
}

/// What a multixact means for someone who wants a row lock.
pub struct MultiConflict {
    /// Somebody else holds what conflicts, or has committed an update that does.
    pub conflicts: bool,
    /// Somebody else who is still running holds what conflicts.
    pub must_wait: bool,
    /// The current transaction is a member.
    pub current_is_member: bool,
}

/// Whether members of a multixact stand in the way of a lock.
pub fn multi_conflict(multi: u32, infomask: u16, mode: LockTupleMode::Type) -> MultiConflict {
    let mut found = MultiConflict { conflicts: false, must_wait: false, current_is_member: false };
    let mut members = Vec::new();
    for_each_member(multi, is_locked_only(infomask), &mut |xid, status| members.push((xid, status)));
    for (xid, member) in members {
        let xid = u64::from(xid.into_inner());
        if PostgresStatus.is_current(xid) {
            found.current_is_member = true;
            continue;
        }
        if found.must_wait || !modes_conflict(mode_of_status(member), mode) {
            continue;
        }
        found.must_wait = PostgresStatus.in_progress(xid);
        found.conflicts |= found.must_wait || (is_update_status(member) && PostgresStatus.did_commit(xid));
    }
    found
}

/// Which row is waited for and why; for Postgres' error context.
#[derive(Clone, Copy)]
pub struct WaitFor {
    /// The table.
    pub rel: pg_sys::Relation,
    /// The version.
    pub tid: Tid,
    /// What the waiter is about to do.
    pub operation: pg_sys::XLTW_Oper::Type,
}

/// Refuses to compile for a type with something to drop. What is alive across [`wait_for_xid`], [`wait_for_multi`] and
/// [`TupleLock::acquire`] is checked with it.
pub const fn nothing_to_drop<T>() {
    assert!(!std::mem::needs_drop::<T>(), "an error during a wait for a row lock would jump over it");
}

const _: () = nothing_to_drop::<TupleLock>();
const _: () = nothing_to_drop::<WaitFor>();

/// Waits until a transaction has ended; with `block` unset answers false instead of waiting.
///
/// An error (deadlock, timeout, cancellation) leaves this and the calling functions by a long jump, so that it keeps the context
/// that names the row: callers hold no latch, no pin and nothing else with something to drop.
pub fn wait_for_xid(xid: pg_sys::TransactionId, what: &WaitFor, block: bool) -> bool {
    if !block {
        // SAFETY: no latch is held; errors unwind through the guard.
        return unsafe { compat::try_wait_for_xid(xid) };
    }
    let mut tid = item_pointer(what.tid);
    // SAFETY: no latch is held; the wait serves interrupts. The frames up to the callback's guard have nothing to drop, and that
    // guard keeps no state that a jump past it would leave behind; Postgres' handler puts its own stacks back.
    unsafe { unguarded::XactLockTableWait(xid, what.rel, &mut tid, what.operation) };
    true
}

/// Waits for the members of a multixact that conflict with `status`; false when that would block and must not. The number tells
/// how many other members remain. Errors leave it as they leave [`wait_for_xid`].
pub fn wait_for_multi(multi: u32, status: MultiXactStatus::Type, infomask: u16, what: &WaitFor, block: bool) -> (bool, usize) {
    let mut members: *mut pg_sys::MultiXactMember = std::ptr::null_mut();
    let mut remaining = 0;
    let mut got = true;
    // SAFETY: the members are as many as Postgres says. They are in its memory and not in a Vec: an error that jumps out of a wait
    // leaves them to the end of the statement.
    unsafe {
        let count =
            pg_sys::GetMultiXactIdMembers(pg_sys::MultiXactId::from(multi), &mut members, false, is_locked_only(infomask));
        for place in 0..count.max(0) as usize {
            let member = *members.add(place);
            let full = u64::from(member.xid.into_inner());
            if PostgresStatus.is_current(full) {
                remaining += 1;
            } else if !modes_conflict(mode_of_status(member.status), mode_of_status(status)) {
                remaining += usize::from(PostgresStatus.in_progress(full));
            } else if !wait_for_xid(member.xid, what, block) {
                got = false;
                break;
            }
        }
        if !members.is_null() {
            plain::pfree(members.cast());
        }
    }
    (got, remaining)
}

/// The heavyweight lock that keeps the order of waiters for one row. It is given back by [`TupleLock::release`] and not when it
/// is dropped, as errors jump over it: then the end of the transaction gives it back, as for heap.
#[must_use = "it is given back by release()"]
pub struct TupleLock {
    rel: pg_sys::Relation,
    tid: Tid,
    mode: LockTupleMode::Type,
    held: bool,
}

impl TupleLock {
    /// A lock not yet taken.
    pub fn new(rel: pg_sys::Relation, tid: Tid, mode: LockTupleMode::Type) -> TupleLock {
        TupleLock { rel, tid, mode, held: false }
    }

    /// Takes the lock if it is not held; false when `policy` says not to wait and it is taken by another. Errors of the wait
    /// leave it as they leave [`wait_for_xid`].
    pub fn acquire(&mut self, policy: pg_sys::LockWaitPolicy::Type) -> bool {
        if self.held {
            return true;
        }
        let mut tid = item_pointer(self.tid);
        if policy == pg_sys::LockWaitPolicy::LockWaitBlock {
            // SAFETY: as in `wait_for_xid`.
            unsafe { unguarded::LockTuple(self.rel, &mut tid, heavyweight(self.mode)) };
        } else {
            // SAFETY: no latch is held; errors unwind through the guard.
            let got = unsafe { compat::try_lock_tuple(self.rel, &mut tid, heavyweight(self.mode)) };
            if !got {
                if policy == pg_sys::LockWaitPolicy::LockWaitError {
                    raise_not_available(self.rel);
                }
                return false;
            }
        }
        self.held = true;
        true
    }

    /// Gives the lock back if it was taken.
    pub fn release(self) {
        if self.held {
            let mut tid = item_pointer(self.tid);
            // SAFETY: the lock is held in this mode by this backend.
            unsafe { pg_sys::UnlockTuple(self.rel, &mut tid, heavyweight(self.mode)) };
        }
    }
}

/// Reports a row lock that NOWAIT did not get.
pub fn raise_not_available(rel: pg_sys::Relation) -> ! {
    raise(SqlError::lock_not_available(format!("could not obtain lock on row in relation \"{}\"", relation_name(rel))))
}
