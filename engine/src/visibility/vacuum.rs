//! Owns the rules of cleaning: whether somebody may still see a version.

use super::transaction::*;
use crate::ids::{INVALID_XID, Lsn, Xid};
use crate::page::infomask::*;
use crate::page::{Header, TupleState};

/// What VACUUM makes of the version (`HeapTupleSatisfiesVacuumHorizon`).
///
/// With [`TupleState::RecentlyDead`], `dead_after` is the deleter: the version can go once every snapshot sees that as ended, which
/// the caller judges by the horizon of its choice. Otherwise `dead_after` is 0.
pub fn satisfies_vacuum_horizon(
    h: &Header,
    st: &impl TransactionStatus,
    lsn: Lsn,
    hints: &mut u16,
    dead_after: &mut Xid,
) -> TupleState {
    *dead_after = INVALID_XID;
    match inserter(h, st, lsn, hints) {
        // Nobody but the inserter ever saw it.
        XidState::Aborted => return TupleState::Dead,
        // Whoever has to wait had better wait for the inserter than for a deleter.
        XidState::InProgress => return TupleState::InsertInProgress,
        XidState::Current if own_delete(h, st, hints).is_some() => return TupleState::DeleteInProgress,
        XidState::Current => return TupleState::InsertInProgress,
        XidState::Committed => {}
    }
    if h.infomask & HEAP_XMAX_INVALID != 0 {
        return TupleState::Live;
    }
    if xmax_is_locked_only(h.infomask) {
        hint_unlocked(h, st, hints);
        return TupleState::Live;
    }
    let multi = h.infomask & HEAP_XMAX_IS_MULTI != 0;
    let deleter = if multi { st.multi_update_xid(h.xmax as u32) } else { h.xmax };
    let state = if !multi && h.infomask & HEAP_XMAX_COMMITTED != 0 { XidState::Committed } else { xid_state_now(deleter, st) };
    match state {
        XidState::Current | XidState::InProgress => TupleState::DeleteInProgress,
        XidState::Committed => {
            if !multi {
                hint_committed(HEAP_XMAX_COMMITTED, deleter, st, lsn, hints);
            }
            // Lockers of the multixact that still run do not matter: they hold the next version too.
            *dead_after = deleter;
            TupleState::RecentlyDead
        }
        XidState::Aborted => {
            if !multi || !st.multi_running(h.xmax as u32, false) {
                *hints |= HEAP_XMAX_INVALID;
            }
            TupleState::Live
        }
    }
}

/// Marks a lock whose holders are gone, so that nobody asks about them again.
fn hint_unlocked(h: &Header, st: &impl TransactionStatus, hints: &mut u16) {
    if h.infomask & HEAP_XMAX_COMMITTED != 0 {
        return;
    }
    let held = if h.infomask & HEAP_XMAX_IS_MULTI != 0 {
        !locked_upgraded(h.infomask) && st.multi_running(h.xmax as u32, true)
    } else {
        is_running(h.xmax, st)
    };
    if !held {
        *hints |= HEAP_XMAX_INVALID;
    }
}

/// [`satisfies_vacuum_horizon`] against a horizon: every snapshot calls the transactions below `oldest_xmin` ended
/// (`HeapTupleSatisfiesVacuum`).
#[inline]
pub fn satisfies_vacuum(h: &Header, oldest_xmin: Xid, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16) -> TupleState {
    let mut dead_after = INVALID_XID;
    match satisfies_vacuum_horizon(h, st, lsn, hints, &mut dead_after) {
        TupleState::RecentlyDead if dead_after < oldest_xmin => TupleState::Dead,
        state => state,
    }
}

/// SnapshotNonVacuumable: whether somebody might see the version; `removable` says of a deleter that every snapshot calls it ended.
#[inline]
pub fn satisfies_non_vacuumable(
    h: &Header,
    st: &impl TransactionStatus,
    lsn: Lsn,
    hints: &mut u16,
    removable: impl FnOnce(Xid) -> bool,
) -> bool {
    let mut dead_after = INVALID_XID;
    match satisfies_vacuum_horizon(h, st, lsn, hints, &mut dead_after) {
        TupleState::Dead => false,
        TupleState::RecentlyDead => !removable(dead_after),
        TupleState::Live | TupleState::InsertInProgress | TupleState::DeleteInProgress => true,
    }
}

/// Whether nobody can see the version, from its hints alone (`HeapTupleIsSurelyDead`); false in doubt.
///
/// Made for a version that another rule has just looked at, and whose hints `h` has therefore: it asks for no status.
#[inline]
pub fn is_surely_dead(h: &Header, removable: impl FnOnce(Xid) -> bool) -> bool {
    if h.infomask & HEAP_XMIN_COMMITTED == 0 {
        return h.infomask & HEAP_XMIN_INVALID != 0;
    }
    h.infomask & (HEAP_XMAX_INVALID | HEAP_XMAX_IS_MULTI | HEAP_XMAX_COMMITTED) == HEAP_XMAX_COMMITTED
        && !xmax_is_locked_only(h.infomask)
        && removable(h.xmax)
}
