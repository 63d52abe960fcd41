//! Answers the engine's questions about transactions and snapshots from Postgres' own structures.

use std::cell::Cell;

use kalamdb_engine::ids::{Lsn, Xid};
use kalamdb_engine::page::Header;
use kalamdb_engine::visibility::{self, DirtyInfo, TransactionStatus};
use pgrx::pg_sys;

use crate::ffi::plain;

thread_local! {
    /// A recent full transaction id: the reference that widens 32-bit ids.
    static REFERENCE: Cell<u64> = const { Cell::new(0) };
}

/// The low half of a full transaction id.
#[inline]
pub fn narrow(xid: Xid) -> pg_sys::TransactionId {
    pg_sys::TransactionId::from(xid as u32)
}

/// Refreshes the reference for widening; called when a scan or a change begins.
#[inline]
pub fn refresh_reference() {
    // SAFETY: reads a shared counter under Postgres' own lock.
    let next = unsafe { plain::ReadNextFullTransactionId() };
    REFERENCE.set(next.value);
}

/// The full form of a 32-bit transaction id that is at most 2^31 away from the present.
#[inline]
pub fn widen(xid: pg_sys::TransactionId) -> Xid {
    let xid = xid.into_inner();
    if xid < 3 {
        return u64::from(xid);
    }
    if REFERENCE.get() == 0 {
        refresh_reference();
    }
    let reference = REFERENCE.get();
    let distance = xid.wrapping_sub(reference as u32) as i32;
    reference.wrapping_add_signed(i64::from(distance))
}

/// The current (sub)transaction's id, assigned if it has none yet.
pub fn current_xid() -> Xid {
    // SAFETY: called inside a transaction.
    let xid = unsafe { pg_sys::GetCurrentFullTransactionId() }.value;
    if xid > REFERENCE.get() {
        REFERENCE.set(xid);
    }
    xid
}

/// Postgres' commit log, process array and multixacts.
pub struct PostgresStatus;

impl TransactionStatus for PostgresStatus {
    #[inline]
    fn is_current(&self, xid: Xid) -> bool {
        // SAFETY: reads this backend's own state and never raises.
        unsafe { plain::transaction_id_is_current(narrow(xid)) }
    }

    fn in_progress(&self, xid: Xid) -> bool {
        // SAFETY: an error of the commit log's files unwinds through the guard.
        unsafe { pg_sys::TransactionIdIsInProgress(narrow(xid)) }
    }

    fn did_commit(&self, xid: Xid) -> bool {
        // SAFETY: as above.
        unsafe { pg_sys::TransactionIdDidCommit(narrow(xid)) }
    }

    fn multi_update_xid(&self, multi: u32) -> Xid {
        let mut update = 0;
        for_each_member(multi, false, &mut |xid, status| {
            if status > pg_sys::MultiXactStatus::MultiXactStatusForUpdate {
                update = widen(xid);
            }
        });
        update
    }

    fn multi_running(&self, multi: u32, lock_only: bool) -> bool {
        // SAFETY: an error of the multixact files unwinds through the guard.
        unsafe { pg_sys::MultiXactIdIsRunning(pg_sys::MultiXactId::from(multi), lock_only) }
    }

    fn may_hint_committed(&self, xid: Xid, page_lsn: Lsn) -> bool {
        // An asynchronously committed transaction must not look committed on a page that could reach the store first.
        // SAFETY: an error of the commit log's files unwinds through the guard; the other reads a shared counter.
        unsafe {
            let commit = pg_sys::TransactionIdGetCommitLSN(narrow(xid));
            !(plain::log_needs_flush(commit) && page_lsn.0 < commit)
        }
    }
}

/// Calls `visit` with every member of a multixact.
pub fn for_each_member(
    multi: u32,
    lock_only: bool,
    visit: &mut dyn FnMut(pg_sys::TransactionId, pg_sys::MultiXactStatus::Type),
) -> i32 {
    let mut members: *mut pg_sys::MultiXactMember = std::ptr::null_mut();
    // SAFETY: the members are palloc'ed by Postgres and freed here.
    unsafe {
        let count = pg_sys::GetMultiXactIdMembers(pg_sys::MultiXactId::from(multi), &mut members, false, lock_only);
        for place in 0..count.max(0) as usize {
            let member = &*members.add(place);
            visit(member.xid, member.status);
        }
        if !members.is_null() {
            plain::pfree(members.cast());
        }
        count
    }
}

/// A snapshot of Postgres with its bounds widened.
#[derive(Clone, Copy)]
pub struct SnapshotView {
    /// Postgres' snapshot; `SnapshotAny` may be null-like in its fields but never a null pointer.
    pub raw: pg_sys::Snapshot,
    kind: pg_sys::SnapshotType::Type,
    xmin: Xid,
    xmax: Xid,
    curcid: u32,
}

impl SnapshotView {
    /// Wraps a snapshot that stays registered or active as long as the view is used.
    pub fn new(snapshot: pg_sys::Snapshot) -> SnapshotView {
        // SAFETY: Postgres passes a valid snapshot of one of the kinds below.
        let data = unsafe { &*snapshot };
        let kind = data.snapshot_type;
        let (mut xmin, mut xmax) = (0, 0);
        if kind == pg_sys::SnapshotType::SNAPSHOT_MVCC {
            refresh_reference();
            xmin = widen(data.xmin);
            xmax = widen(data.xmax);
        }
        SnapshotView { raw: snapshot, kind, xmin, xmax, curcid: data.curcid }
    }

    /// Whether it is an ordinary statement or transaction snapshot.
    #[inline]
    pub fn is_mvcc(&self) -> bool {
        self.kind == pg_sys::SnapshotType::SNAPSHOT_MVCC
    }

    /// Whether it is the look of a check of a unique key.
    #[inline]
    pub fn is_dirty(&self) -> bool {
        self.kind == pg_sys::SnapshotType::SNAPSHOT_DIRTY
    }

    /// Whether it is the planner's look at the ends of an index.
    #[inline]
    pub fn is_horizon(&self) -> bool {
        self.kind == pg_sys::SnapshotType::SNAPSHOT_NON_VACUUMABLE
    }

    /// Whether the snapshot sees a version; `hints` collects infomask bits for the page.
    ///
    /// A dirty snapshot's xmin, xmax and speculative token are filled for whoever has to wait.
    #[inline]
    pub fn sees(&self, header: &Header, lsn: Lsn, hints: &mut u16) -> bool {
        if self.is_mvcc() {
            return visibility::satisfies_mvcc(header, self, &PostgresStatus, lsn, hints);
        }
        self.sees_specially(header, lsn, hints)
    }

    #[cold]
    fn sees_specially(&self, header: &Header, lsn: Lsn, hints: &mut u16) -> bool {
        use pg_sys::SnapshotType::*;
        match self.kind {
            SNAPSHOT_ANY | SNAPSHOT_TOAST => true,
            SNAPSHOT_SELF => visibility::satisfies_self(header, &PostgresStatus, lsn, hints),
            SNAPSHOT_DIRTY => {
                let mut info = DirtyInfo::default();
                let seen = visibility::satisfies_dirty(header, &PostgresStatus, lsn, hints, &mut info);
                // SAFETY: a dirty snapshot is the caller's own struct, made to be written.
                unsafe {
                    (*self.raw).xmin = narrow(info.xmin);
                    (*self.raw).xmax = narrow(info.xmax);
                    (*self.raw).speculativeToken = info.speculative_token;
                }
                seen
            }
            SNAPSHOT_NON_VACUUMABLE => {
                visibility::satisfies_non_vacuumable(header, &PostgresStatus, lsn, hints, |deleter| {
                    // SAFETY: a non-vacuumable snapshot carries the horizon to test against.
                    unsafe { pg_sys::GlobalVisTestIsRemovableXid((*self.raw).vistest, narrow(deleter)) }
                })
            }
            _ => visibility::satisfies_mvcc(header, self, &PostgresStatus, lsn, hints),
        }
    }
}

impl visibility::Snapshot for SnapshotView {
    #[inline]
    fn xmin(&self) -> Xid {
        self.xmin
    }

    #[inline]
    fn xmax(&self) -> Xid {
        self.xmax
    }

    #[inline]
    fn curcid(&self) -> u32 {
        self.curcid
    }

    fn running(&self, xid: Xid) -> bool {
        // SAFETY: the snapshot stays valid as long as the view; errors unwind through the guard.
        unsafe { pg_sys::XidInMVCCSnapshot(narrow(xid), self.raw) }
    }
}
