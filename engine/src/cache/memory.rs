//! What the frames take of memory: a frame has an address for every byte of a page, and memory only where its page has bytes.
//!
//! The operating system gives memory in units of 4 KB when they are first touched. A page has its bytes at both ends of its frame. So
//! that a small one takes one unit and not two, frames do not begin where units do: the first bytes of a page lie in the unit in which the
//! page before it ends.
//!
//! ```text
//! | head | unit | ... | unit |  tail | head | unit | ... | unit |  tail | head | ...
//! |  edge 0     frame 0      |    edge 1    |   frame 1         |    edge 2
//! ```
//!
//! Seven units are a frame's own. Each frame knows which of them were touched, and each edge by which of its two frames it is used;
//! the sum is kept below the size of the cache by whoever takes a frame away. A frame uses both its edges from before its first byte is
//! written until its memory is given back: otherwise the frame beside it would give the edge's memory back with bytes of this one in it.
//!
//! Invariant: every byte of a frame that its page does not use is zero.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::frame::Frame;
use super::header::raise;
use super::{Cache, FRAME_UNITS, MEMORY_UNIT};
use crate::page::{PAGE_SIZE, Page};

/// Units more than needed that a frame may keep: giving them back costs more than a few are worth.
const SPARE_UNITS: u32 = 3;

/// Bytes of a page that lie in the edge before its own units: the header and the line pointers of 56 rows.
pub(super) const HEAD: usize = 256;
/// Bytes of a page that lie in the edge behind its own units.
const TAIL: usize = MEMORY_UNIT - HEAD;
/// Units of a frame that are no edges.
const OWN_UNITS: u32 = FRAME_UNITS - 1;

/// What was touched of a frame: its own units from both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    head: u32,
    tail: u32,
    /// Whether the frame uses its edges.
    used: bool,
}

impl Extent {
    /// All of a frame.
    pub(super) const WHOLE: Extent = Extent { head: OWN_UNITS, tail: 0, used: true };
    /// The edges.
    const EDGES: Extent = Extent { head: 0, tail: 0, used: true };
    /// Nothing.
    const NOTHING: Extent = Extent { head: 0, tail: 0, used: false };

    /// Where a page has bytes.
    #[inline]
    pub(super) fn of(page: Page<'_>) -> Extent {
        let (lower, upper) = page.used();
        // A page without free space has one end in the other one's edge.
        let units = |bytes: usize| (bytes.div_ceil(MEMORY_UNIT) as u32).min(OWN_UNITS);
        Extent { head: units(lower.saturating_sub(HEAD)), tail: units((PAGE_SIZE - upper).saturating_sub(TAIL)), used: true }
    }

    #[inline]
    pub(super) fn from_word(word: u32) -> Extent {
        Extent { head: word & 0xFF, tail: word >> 8 & 0xFF, used: word >> 16 != 0 }
    }

    #[inline]
    pub(super) fn to_word(self) -> u32 {
        self.head | self.tail << 8 | u32::from(self.used) << 16
    }

    #[inline]
    fn and(self, other: Extent) -> Extent {
        Extent { head: self.head.max(other.head), tail: self.tail.max(other.tail), used: self.used || other.used }
    }

    /// Number of the frame's own units: the two ends may meet in one.
    #[inline]
    fn own_units(self) -> u32 {
        (self.head + self.tail).min(OWN_UNITS)
    }

    /// Number of units that the frame takes in a row of frames: of two edges that it shares it counts one.
    #[inline]
    pub(super) fn units(self) -> u32 {
        self.own_units() + u32::from(self.used)
    }

    /// The bytes between the two ends, which are zero.
    pub(super) fn untouched(self) -> Range<usize> {
        let (start, end) = (HEAD + self.head as usize * MEMORY_UNIT, PAGE_SIZE - TAIL - self.tail as usize * MEMORY_UNIT);
        if start < end { start..end } else { PAGE_SIZE..PAGE_SIZE }
    }
}

/// The frame before or behind an edge.
#[derive(Clone, Copy)]
enum Side {
    Before = 1,
    Behind = 2,
}

/// The edge before a frame: which of its two frames use it.
#[repr(transparent)]
pub(super) struct Edge(AtomicU32);

/// The memory of an edge is being given back.
const LEAVING: u32 = 4;

impl Edge {
    fn has_memory(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Begins to use it; true when nobody did.
    fn enter(&self, side: Side) -> bool {
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            if seen == LEAVING {
                std::thread::yield_now();
                seen = self.0.load(Ordering::Acquire);
                continue;
            }
            match self.0.compare_exchange_weak(seen, seen | side as u32, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return seen == 0,
                Err(changed) => seen = changed,
            }
        }
    }

    /// Ends its use: the last one gives the memory back, others wipe their bytes; true when nobody uses it any more.
    fn leave(&self, side: Side, wipe: impl Fn(), give_back: impl Fn() -> bool) -> bool {
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            let is_last = seen == side as u32;
            let next = if is_last { LEAVING } else { seen & !(side as u32) };
            if !is_last {
                // Before somebody else can be the last one, and the bytes belong to nobody.
                wipe();
            }
            match self.0.compare_exchange(seen, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if is_last => {
                    if !give_back() {
                        wipe();
                    }
                    self.0.store(0, Ordering::Release);
                    return true;
                }
                Ok(_) => return false,
                Err(changed) => seen = changed,
            }
        }
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
        header.resident_units.fetch_add(u64::from(new.own_units()).wrapping_sub(old.own_units().into()), Ordering::Relaxed);
        if frame.is_dirty() {
            header.dirty_units.fetch_add(u64::from(new.units()).wrapping_sub(old.units().into()), Ordering::Relaxed);
        }
        if new.units() > old.units() && self.memory_is_exceeded() {
            raise(&header.writer_wake);
        }
    }

    /// Takes memory for the edges of a claimed frame, before anything is written to it.
    #[inline]
    pub(super) fn occupy(&self, number: u32) {
        if !self.frame(number).extent().used {
            self.enter_edges(number);
        }
    }

    #[cold]
    fn enter_edges(&self, number: u32) {
        let new = self.count_edge(number, self.edge(number).enter(Side::Behind))
            + self.count_edge(number + 1, self.edge(number + 1).enter(Side::Before));
        self.header().resident_units.fetch_add(new, Ordering::Relaxed);
        let frame = self.frame(number);
        self.set_extent(frame, frame.extent(), frame.extent().and(Extent::EDGES));
    }

    /// What an edge counts if it counts: the one behind the last frame does not, so that all frames together take what whole pages do.
    fn count_edge(&self, number: u32, counts: bool) -> u64 {
        u64::from(counts && number < self.frame_count())
    }

    /// Whether a frame can hold a small page without more memory than there is in use.
    #[inline]
    pub(super) fn has_memory(&self, number: u32) -> bool {
        self.frame(number).extent().used || (self.edge(number).has_memory() && self.edge(number + 1).has_memory())
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
    }

    /// Gives the memory of a claimed frame back to the operating system; false when that is not possible.
    pub(super) fn release_memory(&self, number: u32) -> bool {
        let frame = self.frame(number);
        let old = frame.extent();
        if !old.used {
            return true;
        }
        if !self.can_give_back() || (old.own_units() > 0 && !self.give_back(number, HEAD..PAGE_SIZE - TAIL)) {
            return false;
        }
        let give_back = |edge: u32| move || self.give_edge_back(edge);
        let head = || self.bytes_mut(number)[..HEAD].fill(0);
        let tail = || self.bytes_mut(number)[PAGE_SIZE - TAIL..].fill(0);
        let gone = self.count_edge(number, self.edge(number).leave(Side::Behind, head, give_back(number)))
            + self.count_edge(number + 1, self.edge(number + 1).leave(Side::Before, tail, give_back(number + 1)));
        self.header().resident_units.fetch_sub(gone, Ordering::Relaxed);
        self.set_extent(frame, old, Extent::NOTHING);
        true
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
        if let Some(number) = self.claim_any(self.frame_count() as usize * 7) {
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
