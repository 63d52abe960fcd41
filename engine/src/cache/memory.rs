//! What the frames take of memory: a frame has an address for every byte of a page, and memory only where its page has bytes.
//!
//! The operating system gives memory in units of 4 KB when they are first touched. A page has its bytes at both ends of its frame, so
//! a small one takes two units instead of eight, and a cache with more frames than memory for whole pages holds as many small
//! ones. Each frame knows what was touched of it; the sum is kept below the size of the cache by whoever takes a frame away.
//!
//! Invariant: every byte of a frame that its page does not use is zero.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::frame::Frame;
use super::header::raise;
use super::{Cache, FRAME_UNITS, MEMORY_UNIT};
use crate::page::{PAGE_SIZE, Page};

/// Units more than needed that a frame may keep: giving them back costs more than a few are worth.
const SPARE_UNITS: u32 = 3;

/// The units at both ends of a frame that were touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    head: u32,
    tail: u32,
}

impl Extent {
    /// All of a frame.
    pub(super) const WHOLE: Extent = Extent { head: FRAME_UNITS, tail: 0 };
    /// The first unit.
    pub(super) const FIRST: Extent = Extent { head: 1, tail: 0 };

    /// Where a page has bytes.
    #[inline]
    pub(super) fn of(page: Page<'_>) -> Extent {
        let (lower, upper) = page.used();
        let unit = MEMORY_UNIT;
        Extent { head: lower.div_ceil(unit).max(1) as u32, tail: (PAGE_SIZE - upper).div_ceil(unit) as u32 }
    }

    #[inline]
    pub(super) fn from_word(word: u32) -> Extent {
        Extent { head: word & 0xFF, tail: word >> 8 }
    }

    #[inline]
    pub(super) fn to_word(self) -> u32 {
        self.head | self.tail << 8
    }

    #[inline]
    fn and(self, other: Extent) -> Extent {
        Extent { head: self.head.max(other.head), tail: self.tail.max(other.tail) }
    }

    /// Number of units: the two ends may meet in one.
    #[inline]
    pub(super) fn units(self) -> u32 {
        (self.head + self.tail).min(FRAME_UNITS)
    }

    /// The bytes between the two ends, which are zero.
    pub(super) fn untouched(self) -> Range<usize> {
        let (start, end) = (self.head as usize * MEMORY_UNIT, PAGE_SIZE - self.tail as usize * MEMORY_UNIT);
        if start < end { start..end } else { PAGE_SIZE..PAGE_SIZE }
    }
}

impl Cache {
    /// Memory that pages may take, in units.
    #[inline]
    pub fn memory_units(&self) -> u64 {
        self.header().memory_units.load(Ordering::Relaxed)
    }

    /// Whether frames have to be taken from pages, even if others have none.
    #[inline]
    pub(super) fn memory_is_full(&self) -> bool {
        self.header().resident_units.load(Ordering::Relaxed) >= self.memory_units()
    }

    /// Whether more than so much of the cache is changed, and pages will soon have to give way: as long as there is room nobody needs
    /// clean frames.
    pub fn is_changed_and_short(&self, percent: u64) -> bool {
        let (header, most, frames) = (self.header(), self.memory_units(), u64::from(self.frame_count()));
        let memory = header.dirty_units.load(Ordering::Relaxed) * 100 > most * percent
            && header.resident_units.load(Ordering::Relaxed) >= most - most / 8;
        // Small pages use up the frames of a cache that has memory for each of them. Counting those in use takes a look at all.
        memory
            || (u64::from(header.dirty_frames.load(Ordering::Relaxed)) * 100 > frames * percent
                && u64::from(self.occupancy().0) >= frames - frames / 8)
    }

    /// Whether pages take more memory than they may: they have grown where they are.
    #[inline]
    pub fn memory_is_exceeded(&self) -> bool {
        self.header().resident_units.load(Ordering::Relaxed) > self.memory_units()
    }

    /// Whether writers have to wait until the engine has given memory back.
    #[inline]
    pub fn memory_is_far_exceeded(&self) -> bool {
        let most = self.memory_units();
        self.header().resident_units.load(Ordering::Relaxed) > most + most / 8
    }

    /// Counts what a page takes now. The caller has its frame to itself.
    #[inline]
    pub(super) fn note_extent(&self, frame: &Frame, extent: Extent) {
        let (old, new) = (frame.extent(), frame.extent().and(extent));
        if old != new {
            self.set_extent(frame, old, new);
        }
    }

    #[cold]
    fn set_extent(&self, frame: &Frame, old: Extent, new: Extent) {
        frame.set_extent(new);
        let header = self.header();
        let change = u64::from(new.units()).wrapping_sub(old.units().into());
        header.resident_units.fetch_add(change, Ordering::Relaxed);
        if frame.is_dirty() {
            header.dirty_units.fetch_add(change, Ordering::Relaxed);
        }
        if new.units() > old.units() && self.memory_is_exceeded() {
            raise(&header.writer_wake);
        }
    }

    /// Counts a frame that became dirty.
    #[inline]
    pub(super) fn count_dirty(&self, frame: &Frame) {
        let header = self.header();
        header.dirty_frames.fetch_add(1, Ordering::Relaxed);
        header.dirty_units.fetch_add(frame.extent().units().into(), Ordering::Relaxed);
    }

    /// Counts a frame that is dirty no more.
    pub(super) fn count_clean(&self, frame: &Frame) {
        let header = self.header();
        header.dirty_frames.fetch_sub(1, Ordering::Relaxed);
        header.dirty_units.fetch_sub(frame.extent().units().into(), Ordering::Relaxed);
    }

    /// Makes every byte of a claimed frame zero.
    pub(super) fn zero(&self, number: u32) {
        let frame = self.frame(number);
        let untouched = frame.extent().untouched();
        let bytes = self.bytes_mut(number);
        bytes[..untouched.start].fill(0);
        bytes[untouched.end..].fill(0);
        self.note_extent(frame, Extent::FIRST);
    }

    /// Gives the memory of a claimed frame back to the operating system; false when that is not possible.
    pub(super) fn release_memory(&self, number: u32) -> bool {
        let frame = self.frame(number);
        let old = frame.extent();
        let released = old.units() == 0 || self.give_back(number, 0..PAGE_SIZE);
        if released {
            self.set_extent(frame, old, Extent::from_word(0));
        }
        released
    }

    /// Gives back what a frame has more than its page needs, if that is much and memory is short. The caller has the frame to itself.
    pub(super) fn release_surplus(&self, number: u32, needed: Extent) {
        let frame = self.frame(number);
        let old = frame.extent();
        if old.units() > needed.units() + SPARE_UNITS && self.memory_is_full() && self.give_back(number, needed.untouched()) {
            self.set_extent(frame, old, needed);
        }
    }

    /// Takes memory from unchanged pages until no more is used than may be; false when it is so, or nothing can be done.
    pub(crate) fn trim_memory(&self) -> bool {
        if !self.memory_is_exceeded() {
            return false;
        }
        let before = self.header().resident_units.load(Ordering::Relaxed);
        if let Some(number) = self.claim_once(self.frame_count() as usize * 7) {
            self.frame(number).state.store(0, Ordering::Release);
        }
        let trimmed = self.header().resident_units.load(Ordering::Relaxed) < before;
        if trimmed {
            raise(&self.header().cleaned);
        }
        trimmed
    }

    /// Whether nothing that the engine does can give memory back: all of it is in use, or the system does not take it.
    pub(super) fn memory_is_stuck(&self) -> bool {
        self.header().dirty_frames.load(Ordering::Relaxed) == 0 || !self.has_unpinned_memory()
    }

    /// Whether some memory belongs to a page that nobody uses at the moment.
    pub(super) fn has_unpinned_memory(&self) -> bool {
        self.frames().iter().any(|frame| frame.pins() == 0 && frame.extent().units() > 0)
    }
}
