//! Owns the layout of a page: the 32 KB image that the cache holds and the store keeps.
//!
//! ```text
//!  0 u16 format_version | 2 u8 kind | 3 u8 flags | 4 u32 partition | 8 u64 lsn
//! 16 u16 lower | 18 u16 upper | 20 u32 seconds | 24 u64 prune_xid | 32 contents
//! ```
//!
//! A data page is heap's page: line pointers grow up from 32 to `lower`, row versions grow down from the end to `upper`. In the
//! other kinds the contents are the bytes up to `lower`, and `upper` is the end of the page; so one rule gives the stored image of
//! every kind: `[0, lower)` and `[upper, end)`.
//!
//! Invariants of a data page outside a function of this module: the bytes in `[lower, upper)` and the padding behind each version
//! are zero; the versions fill `[upper, end)` without a hole; `HAS_FREE_LINES` is set exactly if some line pointer is unused. They
//! make a replayed page equal to the original byte for byte.

mod bytes;
#[cfg(test)]
mod chain_tests;
mod check;
mod cold;
mod directory;
mod edit;
mod hot;
pub mod infomask;
mod line;
mod overflow;
mod partition;
mod prune;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod times;
mod version;

pub use directory::{DIRECTORY_FANOUT, category_for, category_of};
pub use edit::PageMut;
pub use hot::{ChainVisitor, HotSearch, hot_search, root_offsets};
pub use line::{LinePointer, LineState};
pub use overflow::OVERFLOW_PAYLOAD;
pub use partition::{CHAIN_FANOUT, ChainEntry, PARTITION_FANOUT, PartitionEntry};
pub use prune::{DeadLines, PruneActions, PrunePlan, TupleState, plan_prune};
pub use times::{BlockTime, TIMES_FANOUT};
pub use version::{Header, Version, build_version};

use crate::error::{Error, Result};
use crate::ids::{Lsn, Xid};
pub(crate) use bytes::{read_u16, read_u32, read_u64};
use overflow::OVERFLOW_HEADER;

/// Bytes of a page in memory.
pub const PAGE_SIZE: usize = 32768;
/// The largest line pointer number; bitmaps, GIN and BRIN of an 8 KB Postgres allow no more.
pub const MAX_OFFSET: u16 = 291;
/// Bytes of the page header.
pub const PAGE_HEADER: usize = 32;
/// Bytes that stand before the tuple in a stored version.
pub const PREFIX: usize = 16;
/// Bytes of a tuple's fixed header.
pub const TUPLE_HEADER: usize = 23;
/// Bytes of a version before its null bitmap.
pub const VERSION_HEADER: usize = PREFIX + TUPLE_HEADER;
/// The longest version an empty page can hold.
pub const MAX_VERSION: usize = (PAGE_SIZE - PAGE_HEADER - LINE - 4) & !7;

/// The only page format there is.
const FORMAT_VERSION: u16 = 1;
/// Bytes of a line pointer.
const LINE: usize = 4;

/// Some line pointer below `max_offset` is unused.
pub const HAS_FREE_LINES: u8 = 1;
/// An update found no room here: pruning is worth trying.
pub const FULL: u8 = 2;
/// Every version is visible to every snapshot.
pub const ALL_VISIBLE: u8 = 4;
/// The page is that of a cold block, built from its segment and not changed since; never in a stored image.
pub const COLD: u8 = 8;
const KNOWN_FLAGS: u8 = HAS_FREE_LINES | FULL | ALL_VISIBLE | COLD;

const AT_KIND: usize = 2;
const AT_FLAGS: usize = 3;
const AT_PARTITION: usize = 4;
const AT_LSN: usize = 8;
const AT_LOWER: usize = 16;
const AT_UPPER: usize = 18;
const AT_SECONDS: usize = 20;
/// Byte position of the prune xid, a multiple of 8: for whoever reads it without a latch.
pub const AT_PRUNE_XID: usize = 24;

/// What a page holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PageKind {
    /// Nothing: never written, or freed (then its LSN says when).
    Unused = 0,
    /// Row versions.
    Data = 1,
    /// A chunk of a value too long for its row's page.
    Overflow = 2,
    /// Free-space categories of a run of blocks.
    Directory = 3,
    /// Which partition each user has, or that the children of this node say it.
    Users = 4,
    /// The blocks of each partition.
    Partitions = 5,
    /// The partition of each block, and which block comes before it there.
    Chains = 6,
    /// Since when rows stand in the blocks of a stream.
    Times = 7,
}

impl PageKind {
    /// The kind behind a stored byte.
    #[inline]
    pub const fn from_byte(byte: u8) -> Option<PageKind> {
        match byte {
            0 => Some(PageKind::Unused),
            1 => Some(PageKind::Data),
            2 => Some(PageKind::Overflow),
            3 => Some(PageKind::Directory),
            4 => Some(PageKind::Users),
            5 => Some(PageKind::Partitions),
            6 => Some(PageKind::Chains),
            7 => Some(PageKind::Times),
            _ => None,
        }
    }
}

/// A view of a page.
///
/// No method panics, whatever the bytes are, but only an image that passed [`Page::check`] gives answers that mean something.
/// The view is an array reference, not a slice, so that the compiler drops the bounds checks of the fixed fields.
#[derive(Clone, Copy)]
pub struct Page<'a>(pub(crate) &'a [u8; PAGE_SIZE]);

impl<'a> Page<'a> {
    /// Views a frame.
    ///
    /// # Panics
    /// If the slice is not `PAGE_SIZE` bytes long.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Page<'a> {
        Page(bytes.try_into().expect("a frame has PAGE_SIZE bytes"))
    }

    /// The whole image.
    #[inline]
    pub fn bytes(self) -> &'a [u8; PAGE_SIZE] {
        self.0
    }

    /// What the page holds.
    #[inline]
    pub fn kind(self) -> PageKind {
        PageKind::from_byte(self.0[AT_KIND]).unwrap_or(PageKind::Unused)
    }

    /// `HAS_FREE_LINES`, `FULL`, `ALL_VISIBLE`, `COLD`.
    #[inline]
    pub fn flags(self) -> u8 {
        self.0[AT_FLAGS]
    }

    /// The partition whose rows the page holds; 0 in a shared table.
    #[inline]
    pub fn partition(self) -> u32 {
        read_u32(self.0, AT_PARTITION)
    }

    /// End of the last log record that changed the page.
    #[inline]
    pub fn lsn(self) -> Lsn {
        Lsn(read_u64(self.0, AT_LSN))
    }

    /// End of the line pointers, or of the contents in kinds that have none.
    #[inline]
    pub fn lower(self) -> usize {
        read_u16(self.0, AT_LOWER) as usize
    }

    /// Start of the row versions.
    #[inline]
    pub fn upper(self) -> usize {
        read_u16(self.0, AT_UPPER) as usize
    }

    /// The oldest transaction whose end may leave something to prune; 0 if there is none.
    #[inline]
    pub fn prune_xid(self) -> Xid {
        read_u64(self.0, AT_PRUNE_XID)
    }

    /// The highest line pointer number in use or reusable; 0 on an empty page. Only for data pages.
    #[inline]
    pub fn max_offset(self) -> u16 {
        // The minimum changes nothing on a checked page; it lets the compiler see that every line pointer lies in the page.
        (self.lower().saturating_sub(PAGE_HEADER) / LINE).min(MAX_OFFSET as usize) as u16
    }

    /// The line pointer with this number; an unused one if there is none.
    #[inline]
    pub fn line(self, offset: u16) -> LinePointer {
        if offset == 0 || offset > self.max_offset() {
            return LinePointer::UNUSED;
        }
        LinePointer::from_raw(read_u32(self.0, line_position(offset)))
    }

    /// The version that a normal line pointer names.
    #[inline]
    pub fn version(self, offset: u16) -> Option<Version<'a>> {
        self.version_at(self.line(offset))
    }

    /// The version behind a line pointer already read.
    #[inline]
    pub fn version_at(self, line: LinePointer) -> Option<Version<'a>> {
        if !line.is_normal() {
            return None;
        }
        Version::new(self.0.get(line.offset()..line.offset() + line.len())?)
    }

    /// Every version with its line pointer number, in the order of numbers.
    #[inline]
    pub fn versions(self) -> impl Iterator<Item = (u16, Version<'a>)> {
        (1..=self.max_offset()).filter_map(move |offset| Some((offset, self.version(offset)?)))
    }

    /// Bytes that one more version may have, padding included; its line pointer is already subtracted. A cold page offers none.
    #[inline]
    pub fn free_space(self) -> usize {
        if self.is_cold() { 0 } else { self.room() }
    }

    /// What a line pointer of the page has in bytes on average, dead and unused ones counted in: an estimate that reads the header only.
    #[inline]
    pub fn mean_length(self) -> usize {
        (PAGE_SIZE - self.upper()) / (self.max_offset() as usize).max(1)
    }

    /// As [`Page::free_space`], also of a cold page: for a change that makes it hot anyway.
    #[inline]
    pub fn room(self) -> usize {
        let free = self.upper().saturating_sub(self.lower());
        if self.flags() & HAS_FREE_LINES != 0 {
            free
        } else if self.max_offset() < MAX_OFFSET {
            free.saturating_sub(LINE)
        } else {
            0
        }
    }

    /// Whether one more version of this length fits without pruning.
    #[inline]
    pub fn has_room(self, version_len: usize) -> bool {
        align(version_len) <= self.free_space()
    }

    /// Whether the new version of one of the page's rows fits without pruning; the update makes a cold page hot.
    #[inline]
    pub fn has_room_for_update(self, version_len: usize) -> bool {
        align(version_len) <= self.room()
    }

    /// Whether the page is built from a segment and not changed since.
    #[inline]
    pub fn is_cold(self) -> bool {
        self.flags() & COLD != 0
    }

    /// Appends the stored image to `out`: the page without the free space in its middle, and without `COLD`.
    pub fn to_compact(self, out: &mut Vec<u8>) {
        let (lower, upper) = self.used();
        out.reserve(lower + PAGE_SIZE - upper);
        let start = out.len();
        out.extend_from_slice(&self.0[..lower]);
        if let Some(flags) = out.get_mut(start + AT_FLAGS) {
            *flags &= !COLD;
        }
        out.extend_from_slice(&self.0[upper..]);
    }

    /// Copies the whole page without reading its free space, for which a frame may have no memory.
    pub fn copy_to(self, out: &mut [u8; PAGE_SIZE]) {
        let (lower, upper) = self.used();
        out[..lower].copy_from_slice(&self.0[..lower]);
        out[lower..upper].fill(0);
        out[upper..].copy_from_slice(&self.0[upper..]);
    }

    /// Length of the stored image.
    pub fn compact_len(self) -> usize {
        let (lower, upper) = self.used();
        lower + PAGE_SIZE - upper
    }

    /// Where the free space starts and ends; for an unused page, of which only the header matters, after it.
    #[inline]
    pub(crate) fn used(self) -> (usize, usize) {
        if self.kind() == PageKind::Unused {
            return (PAGE_HEADER, PAGE_SIZE);
        }
        let upper = self.upper().min(PAGE_SIZE);
        (self.lower().min(upper), upper)
    }
}

/// What a page's stored image holds.
pub fn compact_kind(image: &[u8]) -> PageKind {
    image.get(AT_KIND).and_then(|byte| PageKind::from_byte(*byte)).unwrap_or(PageKind::Unused)
}

/// The LSN in a page's stored image.
///
/// # Errors
/// `Corrupt` when the image is shorter than a header.
pub fn compact_lsn(image: &[u8]) -> Result<Lsn> {
    match image.get(AT_LSN..AT_LSN + 8).and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => Ok(Lsn(u64::from_le_bytes(bytes))),
        None => Err(Error::corrupt(format!("page image of {} bytes has no header", image.len()))),
    }
}

/// The position of a line pointer in the page; its number is 1 at least.
#[inline]
const fn line_position(offset: u16) -> usize {
    PAGE_HEADER + LINE * (offset as usize - 1)
}

/// Rounds a length up to Postgres' MAXALIGN.
#[inline]
const fn align(len: usize) -> usize {
    (len + 7) & !7
}
