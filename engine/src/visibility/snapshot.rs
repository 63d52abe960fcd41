//! Owns what an MVCC snapshot is to the rules: the transactions that had ended when it was taken.

use crate::ids::Xid;

/// A point in the order of commits, and a point within the asking transaction.
pub trait Snapshot {
    /// Every transaction below had ended.
    fn xmin(&self) -> Xid;

    /// No transaction from here on had ended.
    fn xmax(&self) -> Xid;

    /// The asking transaction's commands below this one are seen.
    fn curcid(&self) -> u32;

    /// Whether a transaction in `xmin..xmax`, or the parent of a subtransaction, had not ended; not asked outside that range.
    fn running(&self, xid: Xid) -> bool;
}

/// Whether a transaction had not ended when the snapshot was taken (`XidInMVCCSnapshot`).
#[inline]
pub(super) fn in_snapshot(xid: Xid, snap: &impl Snapshot) -> bool {
    xid >= snap.xmin() && (xid >= snap.xmax() || snap.running(xid))
}

/// A snapshot that stands on its own: for tests and models, which have no Postgres behind them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlainSnapshot {
    /// Every transaction below had ended.
    pub xmin: Xid,
    /// No transaction from here on had ended.
    pub xmax: Xid,
    /// The asking transaction's commands below this one are seen.
    pub curcid: u32,
    /// Transactions and subtransactions in `xmin..xmax` that had not ended, in no order.
    pub running: Vec<Xid>,
}

impl Snapshot for PlainSnapshot {
    fn xmin(&self) -> Xid {
        self.xmin
    }

    fn xmax(&self) -> Xid {
        self.xmax
    }

    fn curcid(&self) -> u32 {
        self.curcid
    }

    fn running(&self, xid: Xid) -> bool {
        self.running.contains(&xid)
    }
}
