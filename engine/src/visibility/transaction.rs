//! Owns the questions about transactions and the parts of a header's meaning that every rule shares.

use crate::ids::{FROZEN_XID, INVALID_XID, Lsn, Xid};
use crate::page::Header;
use crate::page::infomask::*;

/// What became of transactions and multixacts, as the asking process knows it.
///
/// Ids of transactions are those of subtransactions too. The special xids 0..=2 are never asked for.
pub trait TransactionStatus {
    /// Whether the xid belongs to the asking transaction or one of its subtransactions that is open or committed into it.
    fn is_current(&self, xid: Xid) -> bool;

    /// Whether the transaction runs, the asking one included.
    fn in_progress(&self, xid: Xid) -> bool;

    /// Whether the transaction committed, and all its parents; asked only of one that does not run, or that a snapshot calls ended.
    fn did_commit(&self, xid: Xid) -> bool;

    /// The member that updates or deletes, whatever became of it; 0 if all only lock.
    fn multi_update_xid(&self, multi: u32) -> Xid;

    /// Whether some member runs, the asking transaction included; `lock_only` promises that no member updates.
    fn multi_running(&self, multi: u32, lock_only: bool) -> bool;

    /// Whether a page with this LSN may say that the transaction committed.
    ///
    /// The commit record must reach the disk before the page does: it is flushed, or the page's own records come after it. A page
    /// that ran ahead of an asynchronous commit would, after a crash, show rows of a transaction that never committed.
    fn may_hint_committed(&self, xid: Xid, page_lsn: Lsn) -> bool;
}

/// The state of a transaction in the eyes of the asking one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum XidState {
    Current,
    InProgress,
    Committed,
    Aborted,
}

/// Finds a transaction's state; `running` is the status' notion of it or a snapshot's.
#[inline]
pub(super) fn xid_state(xid: Xid, st: &impl TransactionStatus, running: impl FnOnce(Xid) -> bool) -> XidState {
    if xid <= FROZEN_XID {
        return if xid == INVALID_XID { XidState::Aborted } else { XidState::Committed };
    }
    if st.is_current(xid) {
        XidState::Current
    } else if running(xid) {
        XidState::InProgress
    } else if st.did_commit(xid) {
        XidState::Committed
    } else {
        // It aborted, or its process crashed and it will never end.
        XidState::Aborted
    }
}

/// Finds a transaction's state now, as opposed to a snapshot's.
#[inline]
pub(super) fn xid_state_now(xid: Xid, st: &impl TransactionStatus) -> XidState {
    xid_state(xid, st, |xid| st.in_progress(xid))
}

/// Whether a transaction runs now, the asking one included.
#[inline]
pub(super) fn is_running(xid: Xid, st: &impl TransactionStatus) -> bool {
    xid > FROZEN_XID && (st.is_current(xid) || st.in_progress(xid))
}

/// Whether the xid is one of the asking transaction.
#[inline]
pub(super) fn is_current(xid: Xid, st: &impl TransactionStatus) -> bool {
    xid > FROZEN_XID && st.is_current(xid)
}

/// Hints that a transaction committed, if the page may say so already.
#[inline]
pub(super) fn hint_committed(bit: u16, xid: Xid, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16) {
    if xid <= FROZEN_XID || st.may_hint_committed(xid, lsn) {
        *hints |= bit;
    }
}

/// What is known of the inserter now, with hints.
#[inline]
pub(super) fn inserter(h: &Header, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16) -> XidState {
    if h.infomask & HEAP_XMIN_COMMITTED != 0 {
        return XidState::Committed;
    }
    if h.infomask & HEAP_XMIN_INVALID != 0 {
        return XidState::Aborted;
    }
    let state = xid_state_now(h.xmin, st);
    hint_inserter(state, h, st, lsn, hints);
    state
}

/// Reports what was learnt of xmin.
#[inline]
pub(super) fn hint_inserter(state: XidState, h: &Header, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16) {
    match state {
        XidState::Committed => hint_committed(HEAP_XMIN_COMMITTED, h.xmin, st, lsn, hints),
        XidState::Aborted => *hints |= HEAP_XMIN_INVALID,
        XidState::Current | XidState::InProgress => {}
    }
}

/// The command that deleted a version of the asking transaction's own; none if nothing did.
///
/// No other transaction can have deleted it, so an xmax that is not ours is left from a subtransaction that aborted.
#[inline]
pub(super) fn own_delete(h: &Header, st: &impl TransactionStatus, hints: &mut u16) -> Option<u32> {
    if h.infomask & HEAP_XMAX_INVALID != 0 || xmax_is_locked_only(h.infomask) {
        return None;
    }
    if h.infomask & HEAP_XMAX_IS_MULTI != 0 {
        return is_current(st.multi_update_xid(h.xmax as u32), st).then_some(h.cmax);
    }
    if is_current(h.xmax, st) {
        return Some(h.cmax);
    }
    *hints |= HEAP_XMAX_INVALID;
    None
}

/// Whether xmax, if it is valid, only locks, judged by the infomask alone (`HEAP_XMAX_IS_LOCKED_ONLY`).
///
/// Postgres before 9.3 wrote a lock as the exclusive bit without the lock-only bit; tuples in that form can still come in.
#[inline]
pub const fn xmax_is_locked_only(infomask: u16) -> bool {
    infomask & HEAP_XMAX_LOCK_ONLY != 0 || infomask & (HEAP_XMAX_IS_MULTI | HEAP_LOCK_MASK) == HEAP_XMAX_EXCL_LOCK
}

/// Whether xmax is a multixact of share lockers from before 9.3 (`HEAP_LOCKED_UPGRADED`).
///
/// Its lockers are gone and its number means nothing today: it must not be looked up.
#[inline]
pub(super) const fn locked_upgraded(infomask: u16) -> bool {
    infomask & (HEAP_XMAX_IS_MULTI | HEAP_XMAX_LOCK_ONLY | HEAP_LOCK_MASK) == HEAP_XMAX_IS_MULTI | HEAP_XMAX_LOCK_ONLY
}

/// Whether the version is only locked, or not even that: no transaction updated or deleted it, except ones that aborted.
///
/// A plain updater counts without a look at its status, as in heap: callers ask right after a rule that would have set the hint.
#[inline]
pub fn header_is_only_locked(h: &Header, st: &impl TransactionStatus) -> bool {
    if h.infomask & (HEAP_XMAX_INVALID | HEAP_XMAX_LOCK_ONLY) != 0 || h.xmax == INVALID_XID {
        return true;
    }
    if h.infomask & HEAP_XMAX_IS_MULTI == 0 {
        return false;
    }
    xid_state_now(st.multi_update_xid(h.xmax as u32), st) == XidState::Aborted
}

/// The transaction that updated or deleted the version, whatever became of it; xmax itself if it is no multixact with an update.
#[inline]
pub fn update_xid(h: &Header, st: &impl TransactionStatus) -> Xid {
    h.update_xid(|multi| st.multi_update_xid(multi))
}
