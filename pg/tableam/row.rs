//! One row version under an exclusive latch, judged for a change: the start that delete, update and lock share.

use kalamdb_engine::cache::{LatchedPage, Pin, Wait};
use kalamdb_engine::ids::{Lsn, Tid, Xid};
use kalamdb_engine::page::infomask::*;
use kalamdb_engine::page::{Header, Page};
use kalamdb_engine::visibility::{TmResult, TransactionStatus, header_is_only_locked, satisfies_update, update_xid};
use pgrx::pg_sys;

use super::row_lock::is_locked_only;
use super::slot::item_pointer;
use super::status::{PostgresStatus, SnapshotView, narrow};
use super::storage::Storage;
use crate::error::OrRaise;

/// A version found under its page's latch.
pub struct LatchedRow {
    /// The page, latched for writing.
    pub page: LatchedPage,
    /// The version's TID.
    pub tid: Tid,
    /// Its header, with the hints learned.
    pub header: Header,
    /// What a change by the given command finds.
    pub state: TmResult,
}

impl LatchedRow {
    /// Latches a version's page and judges the version for a change by command `cid`; nothing when there is no such version.
    pub fn find(storage: &Storage, tid: Tid, cid: u32, wait: &dyn Wait) -> Option<LatchedRow> {
        let pin = storage.cache.read(storage.block(tid.block), wait).or_raise();
        let page = pin.into_exclusive(wait).or_raise();
        let mut header = page.page().version(tid.offset)?.header();
        let lsn = storage.hint_lsn(page.page());
        let mut hints = 0;
        let state = satisfies_update(&header, tid, cid, &PostgresStatus, lsn, &mut hints);
        set_hints(&page, page.page(), tid.offset, hints);
        header.infomask |= hints;
        Some(LatchedRow { page, tid, header, state })
    }

    /// Whether the xmax of a version being modified turns out not to stand in the way, once nobody has to be waited for.
    pub fn settle(&self) -> TmResult {
        let free = self.header.infomask & HEAP_XMAX_INVALID != 0
            || is_locked_only(self.header.infomask)
            || header_is_only_locked(&self.header, &PostgresStatus);
        if free { TmResult::Ok } else { self.changed() }
    }

    /// Updated or deleted, by the forward pointer.
    pub fn changed(&self) -> TmResult {
        if self.header.ctid == self.tid { TmResult::Deleted } else { TmResult::Updated }
    }

    /// Applies the extra check of a referential action in a transaction-snapshot transaction.
    pub fn crosscheck(&self, state: TmResult, crosscheck: pg_sys::Snapshot) -> TmResult {
        if crosscheck.is_null() || state != TmResult::Ok {
            return state;
        }
        let mut hints = 0;
        let seen = SnapshotView::new(crosscheck).sees(&self.header, Lsn::INVALID, &mut hints);
        if seen { state } else { TmResult::Updated }
    }

    /// Whether the transaction in xmax is the current one.
    pub fn xmax_is_current(&self) -> bool {
        PostgresStatus.is_current(self.header.xmax)
    }

    /// Tells the executor why the version could not be changed.
    ///
    /// # Safety
    /// `failure` points to the executor's struct.
    pub unsafe fn report(&self, state: TmResult, failure: *mut pg_sys::TM_FailureData) {
        // SAFETY: see above.
        unsafe {
            (*failure).ctid = item_pointer(self.header.ctid);
            (*failure).xmax = narrow(self.update_xid());
            (*failure).cmax = if state == TmResult::SelfModified { self.header.cmax } else { pg_sys::InvalidCommandId };
        }
    }

    /// The transaction that updated or deleted the version.
    pub fn update_xid(&self) -> Xid {
        update_xid(&self.header, &PostgresStatus)
    }
}

/// Tells the executor that a version is not there any more.
///
/// # Safety
/// `failure` points to the executor's struct.
pub unsafe fn report_gone(tid: Tid, failure: *mut pg_sys::TM_FailureData) -> pg_sys::TM_Result::Type {
    // SAFETY: see above.
    unsafe {
        (*failure).ctid = item_pointer(tid);
        (*failure).xmax = pg_sys::InvalidTransactionId;
        (*failure).cmax = pg_sys::InvalidCommandId;
    }
    pg_sys::TM_Result::TM_Deleted
}

/// Sets hint bits of a version in its page; the page must be latched.
#[inline]
pub fn set_hints(pin: &Pin, page: Page<'_>, offset: u16, hints: u16) {
    if hints != 0 {
        pin.set_hint(page.line(offset).infomask_position(), hints);
    }
}

/// Postgres' name for a result.
pub fn tm_result(state: TmResult) -> pg_sys::TM_Result::Type {
    match state {
        TmResult::Ok => pg_sys::TM_Result::TM_Ok,
        TmResult::Invisible => pg_sys::TM_Result::TM_Invisible,
        TmResult::SelfModified => pg_sys::TM_Result::TM_SelfModified,
        TmResult::Updated => pg_sys::TM_Result::TM_Updated,
        TmResult::Deleted => pg_sys::TM_Result::TM_Deleted,
        TmResult::BeingModified => pg_sys::TM_Result::TM_BeingModified,
    }
}
