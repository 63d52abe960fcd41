//! The descriptor of one frame: which page it holds, who pins it, whether it is dirty.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::latch::Latch;
use super::memory::{Edge, Extent};
use crate::error::{Error, ErrorKind};
use crate::ids::{Lsn, PageKey, PageNumber, StorageId};

/// Low bits of the state word: number of pins.
pub(super) const PINS: u64 = (1 << 20) - 1;
const USAGE_ONE: u64 = 1 << 20;
const USAGE: u64 = 7 << 20;
const USAGE_MAX: u64 = 5 << 20;
/// The tag is set and the frame can be found.
pub(super) const TAGGED: u64 = 1 << 32;
/// The content is there.
pub(super) const VALID: u64 = 1 << 33;
/// The worker is to fill the content.
pub(super) const LOADING: u64 = 1 << 34;
/// The content is newer than the store's.
pub(super) const DIRTY: u64 = 1 << 35;
/// Somebody is taking the frame away; nobody else may touch it.
pub(super) const CLAIMED: u64 = 1 << 36;
/// Nobody has begun to fill it yet. A frame may stand in the queue twice, once for a load that was given up; this says who fills it.
pub(super) const QUEUED: u64 = 1 << 38;
/// Replay has filled the content and may go on changing it; it becomes valid when replay ends.
pub(super) const REPLAYED: u64 = 1 << 37;

/// How a load ended badly; kept with the frame until the last waiter has seen it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum LoadFailure {
    /// The stored page is damaged.
    Corrupt = 1,
    /// The device failed.
    Io = 2,
    /// Anything else.
    Internal = 3,
    /// What the page is built from does not answer.
    Unavailable = 4,
    /// What the page is built from is gone.
    Missing = 5,
}

impl LoadFailure {
    /// The failure that an error is for those who wait.
    pub fn of(error: &Error) -> LoadFailure {
        match error.kind() {
            ErrorKind::Corrupt => LoadFailure::Corrupt,
            ErrorKind::Io | ErrorKind::DiskFull => LoadFailure::Io,
            ErrorKind::Unavailable | ErrorKind::Cancelled => LoadFailure::Unavailable,
            ErrorKind::StorageMissing => LoadFailure::Missing,
            _ => LoadFailure::Internal,
        }
    }

    pub(super) fn kind_of(word: u32) -> ErrorKind {
        match word {
            1 => ErrorKind::Corrupt,
            2 => ErrorKind::Io,
            4 => ErrorKind::Unavailable,
            5 => ErrorKind::StorageMissing,
            _ => ErrorKind::Internal,
        }
    }
}

/// One frame's descriptor.
#[repr(C, align(64))]
pub(super) struct Frame {
    pub(super) state: AtomicU64,
    storage: AtomicU64,
    page: AtomicU64,
    rec_lsn: AtomicU64,
    pub(super) latch: Latch,
    pub(super) next: AtomicU32,
    /// Raised when a load ends.
    pub(super) loaded: AtomicU32,
    pub(super) failure: AtomicU32,
    /// What the load of the content took, until somebody has taken note of it; see `load_report`.
    pub(super) report: AtomicU64,
    /// The units of memory that the frame has.
    extent: AtomicU32,
    /// The unit before it.
    pub(super) edge: Edge,
}

const _: () = assert!(size_of::<Frame>() == 64);

impl Frame {
    /// The page the frame holds.
    #[inline]
    pub(super) fn key(&self) -> PageKey {
        PageKey { storage: StorageId(self.storage.load(Ordering::Relaxed)), page: PageNumber(self.page.load(Ordering::Relaxed)) }
    }

    pub(super) fn set_key(&self, key: PageKey) {
        self.storage.store(key.storage.0, Ordering::Relaxed);
        self.page.store(key.page.0, Ordering::Relaxed);
    }

    /// The memory that the frame has.
    #[inline]
    pub(super) fn extent(&self) -> Extent {
        Extent::from_word(self.extent.load(Ordering::Relaxed))
    }

    /// Notes the memory that the frame has: for `memory` alone, which keeps the sum.
    pub(super) fn set_extent(&self, extent: Extent) {
        self.extent.store(extent.to_word(), Ordering::Relaxed);
    }

    pub(super) fn rec_lsn(&self) -> Lsn {
        Lsn(self.rec_lsn.load(Ordering::Acquire))
    }

    /// Takes over the filling of a queued frame; false when it is not to be filled or somebody has begun.
    pub(super) fn begin_load(&self) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        while state & (TAGGED | LOADING | QUEUED) == TAGGED | LOADING | QUEUED {
            match self.state.compare_exchange_weak(state, state & !QUEUED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(seen) => state = seen,
            }
        }
        false
    }

    /// Adds a pin if the frame still holds `key`; true when it does. The page counts as used.
    #[inline]
    pub(super) fn pin(&self, key: PageKey) -> bool {
        self.pin_and_count(key, USAGE_ONE)
    }

    /// As [`Frame::pin`], for a look that says nothing about the page's use.
    pub(super) fn pin_unnoticed(&self, key: PageKey) -> bool {
        self.pin_and_count(key, 0)
    }

    #[inline]
    fn pin_and_count(&self, key: PageKey, usage_one: u64) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if state & (TAGGED | CLAIMED) != TAGGED || self.key() != key {
                return false;
            }
            let usage = if state & USAGE < USAGE_MAX { usage_one } else { 0 };
            match self.state.compare_exchange_weak(state, state + 1 + usage, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => break,
                Err(seen) => state = seen,
            }
        }
        // The tag changes only while nobody pins, so this answer stays true as long as the pin is held.
        if self.key() == key {
            return true;
        }
        self.unpin();
        false
    }

    #[inline]
    pub(super) fn unpin(&self) {
        self.state.fetch_sub(1, Ordering::Release);
    }

    pub(super) fn add_pin(&self) {
        self.state.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds a pin if the frame has a page whose content is not there yet; true when it has.
    pub(super) fn pin_unfinished(&self) -> bool {
        let unfinished = |state: u64| (state & TAGGED != 0 && state & (LOADING | REPLAYED) != 0).then_some(state + 1);
        self.state.fetch_update(Ordering::Acquire, Ordering::Acquire, unfinished).is_ok()
    }

    /// Lets the frame be evicted before others, as after a pass of a scan.
    pub(super) fn cool(&self) {
        self.state.fetch_and(!USAGE, Ordering::Relaxed);
    }

    /// Takes the frame away from everybody when it is clean, unpinned and cold; otherwise cools it a little.
    pub(super) fn try_claim(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if state & (PINS | CLAIMED | DIRTY | LOADING) != 0 {
            return false;
        }
        if state & USAGE != 0 {
            let _ = self.state.compare_exchange(state, state - USAGE_ONE, Ordering::Relaxed, Ordering::Relaxed);
            return false;
        }
        self.state.compare_exchange(state, state | CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Takes the frame away from everybody when nobody pins it, dirty or not.
    pub(super) fn try_claim_to_discard(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        state & (PINS | CLAIMED | LOADING) == 0
            && self.state.compare_exchange(state, state | CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.state.load(Ordering::Acquire) & DIRTY != 0
    }

    pub(super) fn pins(&self) -> u64 {
        self.state.load(Ordering::Acquire) & PINS
    }

    /// Marks the content newer than the store's; true when it was not before. The caller holds the latch for writing.
    #[inline]
    pub(super) fn set_dirty(&self, rec_lsn: Lsn) -> bool {
        if self.state.load(Ordering::Relaxed) & DIRTY != 0 {
            return false;
        }
        self.rec_lsn.store(rec_lsn.0, Ordering::Release);
        self.state.fetch_or(DIRTY, Ordering::SeqCst);
        true
    }

    /// Lowers the position from which the log is needed for this page.
    pub(super) fn lower_rec_lsn(&self, rec_lsn: Lsn) {
        self.rec_lsn.fetch_min(rec_lsn.0, Ordering::AcqRel);
    }

    pub(super) fn clear_dirty(&self) {
        self.state.fetch_and(!DIRTY, Ordering::SeqCst);
    }
}
