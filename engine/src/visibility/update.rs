//! Owns the rule of UPDATE, DELETE and row locks: whether a version may be changed now, and if not, why.

use super::transaction::*;
use crate::ids::{Lsn, Tid, Xid};
use crate::page::Header;
use crate::page::infomask::*;

/// Postgres' `TM_Result`, as far as a look at one version can give it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TmResult {
    /// The version is there and nobody works on it.
    Ok,
    /// The version was not there when the command started.
    Invisible,
    /// The asking transaction changed it after the command started.
    SelfModified,
    /// A committed transaction updated it, or moved it to another partition.
    Updated,
    /// A committed transaction deleted it.
    Deleted,
    /// A running transaction changes or locks it; with a multixact, the asking one may be among them.
    BeingModified,
}

/// Whether command `curcid` of the asking transaction may change the version at `own` (`HeapTupleSatisfiesUpdate`).
#[inline]
pub fn satisfies_update(h: &Header, own: Tid, curcid: u32, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16) -> TmResult {
    match inserter(h, st, lsn, hints) {
        XidState::Aborted | XidState::InProgress => TmResult::Invisible,
        XidState::Current if h.cmin >= curcid => TmResult::Invisible,
        XidState::Current => update_of_own(h, curcid, st, hints),
        XidState::Committed => update_of_committed(h, own, curcid, st, lsn, hints),
    }
}

/// The asking transaction inserted the version. Others can hold locks on it nevertheless: those that the version it came from had
/// when it was updated.
fn update_of_own(h: &Header, curcid: u32, st: &impl TransactionStatus, hints: &mut u16) -> TmResult {
    if h.infomask & HEAP_XMAX_INVALID != 0 {
        return TmResult::Ok;
    }
    let multi = h.infomask & HEAP_XMAX_IS_MULTI != 0;
    if xmax_is_locked_only(h.infomask) {
        let locked = if multi { st.multi_running(h.xmax as u32, true) } else { is_running(h.xmax, st) };
        return if locked { TmResult::BeingModified } else { TmResult::Ok };
    }
    if let Some(cmax) = own_delete(h, st, hints) {
        return changed_by_self(cmax, curcid);
    }
    // The updating subtransaction aborted.
    if multi && st.multi_running(h.xmax as u32, false) { TmResult::BeingModified } else { TmResult::Ok }
}

fn update_of_committed(h: &Header, own: Tid, curcid: u32, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16) -> TmResult {
    if h.infomask & HEAP_XMAX_INVALID != 0 {
        return TmResult::Ok;
    }
    let locked_only = xmax_is_locked_only(h.infomask);
    if h.infomask & HEAP_XMAX_COMMITTED != 0 {
        return if locked_only { TmResult::Ok } else { changed_by_other(h, own) };
    }
    if h.infomask & HEAP_XMAX_IS_MULTI != 0 {
        return update_under_multi(h, own, curcid, st, hints);
    }
    match xid_state_now(h.xmax, st) {
        XidState::Current if !locked_only => changed_by_self(h.cmax, curcid),
        XidState::Current | XidState::InProgress => TmResult::BeingModified,
        XidState::Committed if !locked_only => {
            hint_committed(HEAP_XMAX_COMMITTED, h.xmax, st, lsn, hints);
            changed_by_other(h, own)
        }
        XidState::Committed | XidState::Aborted => {
            *hints |= HEAP_XMAX_INVALID;
            TmResult::Ok
        }
    }
}

fn update_under_multi(h: &Header, own: Tid, curcid: u32, st: &impl TransactionStatus, hints: &mut u16) -> TmResult {
    if locked_upgraded(h.infomask) {
        return TmResult::Ok;
    }
    let multi = h.xmax as u32;
    let locked_only = xmax_is_locked_only(h.infomask);
    let updater: Xid = if locked_only { 0 } else { st.multi_update_xid(multi) };
    if is_current(updater, st) {
        return changed_by_self(h.cmax, curcid);
    }
    if st.multi_running(multi, locked_only) {
        return TmResult::BeingModified;
    }
    // Members are never added to a multixact, so one that does not run will not run again, and its updater has ended.
    if xid_state(updater, st, |_| false) == XidState::Committed {
        return changed_by_other(h, own);
    }
    *hints |= HEAP_XMAX_INVALID;
    TmResult::Ok
}

/// The asking transaction changed the version: in a command the current one sees, or not.
#[inline]
fn changed_by_self(cmax: u32, curcid: u32) -> TmResult {
    if cmax >= curcid { TmResult::SelfModified } else { TmResult::Invisible }
}

/// A committed transaction changed the version: a next version tells an update from a deletion.
#[inline]
fn changed_by_other(h: &Header, own: Tid) -> TmResult {
    if h.ctid == own { TmResult::Deleted } else { TmResult::Updated }
}
