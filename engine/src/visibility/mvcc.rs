//! Owns the rule of ordinary queries: what one snapshot sees.

use super::snapshot::{Snapshot, in_snapshot};
use super::transaction::*;
use crate::ids::Lsn;
use crate::page::Header;
use crate::page::infomask::*;

/// Whether the snapshot sees the version (`HeapTupleSatisfiesMVCC`).
///
/// A transaction that the snapshot calls running is not asked about further, even if it ended since: the answer could not change,
/// and the list of running transactions is what all backends fight for. So no hint comes of it either.
#[inline]
pub fn satisfies_mvcc(h: &Header, snap: &impl Snapshot, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16) -> bool {
    const SETTLED: u16 = HEAP_XMIN_COMMITTED | HEAP_XMAX_INVALID;
    if h.infomask & SETTLED == SETTLED {
        // Beside the committed bit, the invalid bit means frozen.
        return h.infomask & HEAP_XMIN_INVALID != 0 || !in_snapshot(h.xmin, snap);
    }
    satisfies_unsettled(h, snap, st, lsn, hints)
}

fn satisfies_unsettled(h: &Header, snap: &impl Snapshot, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16) -> bool {
    match h.infomask & HEAP_XMIN_FROZEN {
        HEAP_XMIN_FROZEN => {}
        HEAP_XMIN_INVALID => return false,
        HEAP_XMIN_COMMITTED if in_snapshot(h.xmin, snap) => return false,
        HEAP_XMIN_COMMITTED => {}
        _ => {
            let state = xid_state(h.xmin, st, |xid| in_snapshot(xid, snap));
            hint_inserter(state, h, st, lsn, hints);
            match state {
                XidState::Current => {
                    return h.cmin < snap.curcid() && own_delete(h, st, hints).is_none_or(|cmax| cmax >= snap.curcid());
                }
                XidState::InProgress | XidState::Aborted => return false,
                XidState::Committed => {}
            }
        }
    }
    !sees_delete(h, snap, st, lsn, hints)
}

/// Whether the snapshot sees that the version was deleted; its inserter is seen and is not the asking transaction.
fn sees_delete(h: &Header, snap: &impl Snapshot, st: &impl TransactionStatus, lsn: Lsn, hints: &mut u16) -> bool {
    if h.infomask & HEAP_XMAX_INVALID != 0 || xmax_is_locked_only(h.infomask) {
        return false;
    }
    let multi = h.infomask & HEAP_XMAX_IS_MULTI != 0;
    if !multi && h.infomask & HEAP_XMAX_COMMITTED != 0 {
        return !in_snapshot(h.xmax, snap);
    }
    let deleter = if multi { st.multi_update_xid(h.xmax as u32) } else { h.xmax };
    match xid_state(deleter, st, |xid| in_snapshot(xid, snap)) {
        XidState::Current => h.cmax < snap.curcid(),
        XidState::InProgress => false,
        XidState::Committed => {
            if !multi {
                hint_committed(HEAP_XMAX_COMMITTED, deleter, st, lsn, hints);
            }
            true
        }
        XidState::Aborted => {
            // The other members of a multixact may still hold locks.
            if !multi {
                *hints |= HEAP_XMAX_INVALID;
            }
            false
        }
    }
}
