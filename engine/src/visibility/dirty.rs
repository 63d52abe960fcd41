//! Owns the rules without a snapshot: what is there right now.

use super::transaction::*;
use crate::ids::{INVALID_XID, Lsn, Xid};
use crate::page::Header;
use crate::page::infomask::*;

/// Whom [`satisfies_dirty`] found at work on the version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DirtyInfo {
    /// Another transaction that runs and inserted the version; 0 if none.
    pub xmin: Xid,
    /// Another transaction that runs and deletes or updates the version; 0 if none.
    pub xmax: Xid,
    /// The token to wait for if the insertion is speculative; 0 if not.
    pub speculative_token: u32,
}

/// SnapshotSelf: what is committed or was done by the asking transaction, the running command included.
#[inline]
pub fn satisfies_self(h: &Header, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16) -> bool {
    match inserter(h, st, lsn, hints) {
        XidState::Aborted | XidState::InProgress => false,
        XidState::Current => own_delete(h, st, hints).is_none(),
        XidState::Committed => match deleter(h, st, lsn, hints).0 {
            XidState::Current | XidState::Committed => false,
            XidState::InProgress | XidState::Aborted => true,
        },
    }
}

/// SnapshotDirty: as [`satisfies_self`], but what other running transactions inserted counts, and `out` names whom to wait for.
///
/// Of a version that another running transaction inserted, xmax is not looked at: the caller waits for the inserter first.
#[inline]
pub fn satisfies_dirty(h: &Header, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16, out: &mut DirtyInfo) -> bool {
    *out = DirtyInfo::default();
    match inserter(h, st, lsn, hints) {
        XidState::Aborted => false,
        XidState::InProgress => {
            out.xmin = h.xmin;
            if h.ctid.offset == SPECULATIVE_OFFSET {
                out.speculative_token = h.ctid.block;
            }
            true
        }
        XidState::Current => own_delete(h, st, hints).is_none(),
        XidState::Committed => match deleter(h, st, lsn, hints) {
            (XidState::Current | XidState::Committed, _) => false,
            (XidState::InProgress, xid) => {
                out.xmax = xid;
                true
            }
            (XidState::Aborted, _) => true,
        },
    }
}

/// The transaction that deletes a committed version and its state now, with hints; aborted if there is none or xmax only locks.
#[inline]
fn deleter(h: &Header, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16) -> (XidState, Xid) {
    const NOBODY: (XidState, Xid) = (XidState::Aborted, INVALID_XID);
    if h.infomask & HEAP_XMAX_INVALID != 0 {
        return NOBODY;
    }
    let locked_only = xmax_is_locked_only(h.infomask);
    if h.infomask & HEAP_XMAX_COMMITTED != 0 {
        return if locked_only { NOBODY } else { (XidState::Committed, h.xmax) };
    }
    if h.infomask & HEAP_XMAX_IS_MULTI != 0 {
        if locked_only {
            return NOBODY;
        }
        let xid = st.multi_update_xid(h.xmax as u32);
        return (xid_state_now(xid, st), xid);
    }
    let state = xid_state_now(h.xmax, st);
    let ended = matches!(state, XidState::Committed | XidState::Aborted);
    match state {
        _ if locked_only && ended => *hints |= HEAP_XMAX_INVALID,
        XidState::Aborted => *hints |= HEAP_XMAX_INVALID,
        XidState::Committed => hint_committed(HEAP_XMAX_COMMITTED, h.xmax, st, lsn, hints),
        XidState::Current | XidState::InProgress => {}
    }
    if locked_only { NOBODY } else { (state, h.xmax) }
}
