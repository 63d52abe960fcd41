//! Changes a page: the only primitives with which rows are written, in normal running and in replay.
//!
//! Each one is a function of the page and its arguments alone; so the same calls in the same order give the same bytes.

use std::ops::Range;

use super::bytes::{read_u16, write_u16, write_u32, write_u64};
use super::line::LinePointer;
use super::partition::USERS_HEADER;
use super::prune::PruneActions;
use super::version::{Header, Version, version_len, write_ctid, write_version};
use super::*;
use crate::error::{Error, Result};
use crate::ids::Tid;

/// A view that changes a page.
pub struct PageMut<'a>(pub(crate) &'a mut [u8; PAGE_SIZE]);

impl<'a> PageMut<'a> {
    /// Views a frame.
    ///
    /// # Panics
    /// If the slice is not `PAGE_SIZE` bytes long.
    #[inline]
    pub fn new(bytes: &'a mut [u8]) -> PageMut<'a> {
        PageMut(bytes.try_into().expect("a frame has PAGE_SIZE bytes"))
    }

    /// The same page to read.
    #[inline]
    pub fn as_page(&self) -> Page<'_> {
        Page(self.0)
    }

    /// Makes the page an empty one of its kind; its LSN becomes 0. The free space of what was a page is zero, and stays untouched.
    ///
    /// Empty of kind `Unused` it is the tombstone of a freed page, once it has the LSN of the record that freed it.
    pub fn init(&mut self, kind: PageKind, partition: u32) {
        self.clear();
        write_u16(self.0, 0, FORMAT_VERSION);
        self.0[AT_KIND] = kind as u8;
        write_u32(self.0, AT_PARTITION, partition);
        let lower = match kind {
            PageKind::Overflow => OVERFLOW_HEADER,
            PageKind::Users => USERS_HEADER,
            _ => PAGE_HEADER,
        };
        self.set_bounds(lower, PAGE_SIZE);
    }

    /// Makes every byte zero and touches only those that may not be: frames have no memory for the others.
    fn clear(&mut self) {
        let is_page = PageKind::from_byte(self.0[AT_KIND]).is_some();
        let (lower, upper) = if is_page { self.as_page().used() } else { (PAGE_SIZE, PAGE_SIZE) };
        self.0[..lower].fill(0);
        self.0[upper..].fill(0);
    }

    /// Stores a version and gives its line pointer number; `None` if it does not fit or is shorter than a header.
    ///
    /// With an `offset` the line pointer must be unused or the next one; without, the first unused one is taken, else a new one.
    /// A ctid with offset 0 becomes the version's own.
    #[inline]
    pub fn add_version(&mut self, version: &[u8], offset: Option<u16>) -> Option<u16> {
        let (offset, at) = self.reserve(version.len(), offset)?;
        let place = &mut self.0[at..at + version.len()];
        place.copy_from_slice(version);
        let stored = Version::new(version)?;
        if stored.ctid().offset == 0 {
            write_ctid(place.first_chunk_mut()?, Tid::new(stored.ctid().block, offset));
        }
        Some(offset)
    }

    /// Stores a version given as header and tuple bytes from the hoff byte on, without building it elsewhere first.
    ///
    /// For the rest like [`PageMut::add_version`].
    #[inline]
    pub fn add_row(&mut self, header: &Header, body: &[u8], offset: Option<u16>) -> Option<u16> {
        let (offset, at) = self.reserve(version_len(body), offset)?;
        // Where a process touches memory for the first time, Linux maps what lies around it when it reads, and 4 KB when it writes.
        std::hint::black_box(self.0[at]);
        let mut header = *header;
        if header.ctid.offset == 0 {
            header.ctid.offset = offset;
        }
        write_version(&header, body, &mut self.0[at..at + version_len(body)]);
        Some(offset)
    }

    /// Appends a line pointer without a version, for a page that is built anew; gives its number, or `None` without room.
    ///
    /// What a redirect names may follow later; [`Page::check`] judges the whole.
    pub fn push_line(&mut self, line: LinePointer) -> Option<u16> {
        let page = self.as_page();
        let (offset, lower, upper) = (page.max_offset() + 1, page.lower() + LINE, page.upper());
        if line.is_normal() || offset > MAX_OFFSET || lower > upper {
            return None;
        }
        self.set_line(offset, line);
        self.set_bounds(lower, upper);
        if line.is_unused() {
            self.set_flags(HAS_FREE_LINES);
        }
        Some(offset)
    }

    /// Takes a line pointer and the bytes for a version of this length.
    #[inline]
    fn reserve(&mut self, len: usize, wanted: Option<u16>) -> Option<(u16, usize)> {
        let page = self.as_page();
        let (lower, upper, last) = (page.lower(), page.upper(), page.max_offset());
        let offset = match wanted {
            Some(offset) => offset,
            None if page.flags() & HAS_FREE_LINES != 0 => self.first_unused(1)?,
            None => last + 1,
        };
        let reused = offset <= last;
        if offset == 0 || offset > last + 1 || offset > MAX_OFFSET || len < VERSION_HEADER {
            return None;
        }
        if reused && !page.line(offset).is_unused() {
            return None;
        }
        let lower = if reused { lower } else { lower + LINE };
        let at = upper.checked_sub(align(len))?;
        if at < lower || upper > PAGE_SIZE {
            return None;
        }
        self.set_line(offset, LinePointer::normal(at, len));
        self.set_bounds(lower, at);
        if reused {
            // Whoever chose the line, the page or a log record, the flag must come out the same.
            let free = self.first_unused(1).is_some();
            self.put_flag(HAS_FREE_LINES, free);
        }
        Some((offset, at))
    }

    fn first_unused(&self, from: u16) -> Option<u16> {
        let page = self.as_page();
        (from..=page.max_offset()).find(|&offset| page.line(offset).is_unused())
    }

    /// Replaces a version's header.
    ///
    /// # Errors
    /// `Corrupt` when there is no such version; nothing is changed then.
    #[inline]
    pub fn set_header(&mut self, offset: u16, header: &Header) -> Result<()> {
        match self.version_bytes_mut(offset).and_then(|version| version.first_chunk_mut()) {
            Some(head) => {
                header.write(head);
                Ok(())
            }
            None => Err(no_version(offset)),
        }
    }

    /// The bytes of a version, prefix included.
    #[inline]
    pub fn version_bytes_mut(&mut self, offset: u16) -> Option<&mut [u8]> {
        let line = self.as_page().line(offset);
        if !line.is_normal() {
            return None;
        }
        self.0.get_mut(line.offset()..line.offset() + line.len())
    }

    /// Sets the LSN: the end of the record that describes the last change.
    #[inline]
    pub fn set_lsn(&mut self, lsn: Lsn) {
        write_u64(self.0, AT_LSN, lsn.0);
    }

    /// Sets flags.
    #[inline]
    pub fn set_flags(&mut self, flags: u8) {
        self.0[AT_FLAGS] |= flags & KNOWN_FLAGS;
    }

    /// Clears flags.
    #[inline]
    pub fn clear_flags(&mut self, flags: u8) {
        self.0[AT_FLAGS] &= !flags;
    }

    fn put_flag(&mut self, flag: u8, on: bool) {
        if on {
            self.set_flags(flag);
        } else {
            self.clear_flags(flag);
        }
    }

    /// Replaces the prune xid; 0 says that there is nothing to prune.
    #[inline]
    pub fn set_prune_xid(&mut self, xid: Xid) {
        write_u64(self.0, AT_PRUNE_XID, xid);
    }

    /// Notes a transaction whose end may leave something to prune; the oldest one stays. Tells whether the field changed.
    #[inline]
    pub fn set_prune_xid_min(&mut self, xid: Xid) -> bool {
        let old = self.as_page().prune_xid();
        let older = xid != 0 && (old == 0 || xid < old);
        if older {
            self.set_prune_xid(xid);
        }
        older
    }

    /// Does what a prune planned, closes the holes and clears `FULL`. The prune xid is the caller's to set.
    ///
    /// # Errors
    /// `Corrupt` when the actions do not suit the page; nothing is changed then.
    pub fn apply_prune(&mut self, actions: &PruneActions) -> Result<()> {
        actions.check(self.as_page())?;
        for &(from, to) in &actions.redirected {
            self.set_line(from, LinePointer::redirected(to));
        }
        for &offset in &actions.dead {
            self.set_line(offset, LinePointer::DEAD);
        }
        for &offset in &actions.unused {
            self.set_line(offset, LinePointer::UNUSED);
        }
        self.compact();
        self.clear_flags(FULL);
        Ok(())
    }

    /// Frees dead line pointers that no index names any more: VACUUM's second pass.
    ///
    /// # Errors
    /// `Corrupt` when one of them is not dead; nothing is changed then.
    pub fn mark_unused(&mut self, offsets: &[u16]) -> Result<()> {
        let page = self.as_page();
        if let Some(&offset) = offsets.iter().find(|&&offset| !page.line(offset).is_dead()) {
            return Err(Error::corrupt(format!("line pointer {offset} is not dead")));
        }
        for &offset in offsets {
            self.set_line(offset, LinePointer::UNUSED);
        }
        self.trim_lines();
        Ok(())
    }

    /// Moves the versions together at the end of the page, in their order, and drops unused line pointers from the end.
    ///
    /// The page has passed [`Page::check`] but for the space of versions whose line pointers were taken away since.
    pub fn compact(&mut self) {
        let page = self.as_page();
        // Each entry: position, length, line pointer number. Sorted downwards, every move goes over bytes already moved.
        let mut stored = [0u64; MAX_OFFSET as usize];
        let mut count = 0;
        for offset in 1..=page.max_offset() {
            let line = page.line(offset);
            if line.is_normal() {
                stored[count] = (line.offset() as u64) << 32 | (line.len() as u64) << 16 | offset as u64;
                count += 1;
            }
        }
        let old_upper = page.upper();
        let stored = &mut stored[..count];
        stored.sort_unstable_by(|a, b| b.cmp(a));
        let mut upper = PAGE_SIZE;
        for &entry in stored.iter() {
            let (from, len, offset) = ((entry >> 32) as usize, (entry >> 16) as u16 as usize, entry as u16);
            upper -= align(len);
            if upper != from {
                self.0.copy_within(from..from + align(len), upper);
                self.set_line(offset, LinePointer::normal(upper, len));
            }
        }
        self.0[old_upper..upper].fill(0);
        let lower = self.as_page().lower();
        self.set_bounds(lower, upper);
        self.trim_lines();
    }

    /// Drops unused line pointers, which are zero, from the end of the array and sets `HAS_FREE_LINES` by the rest.
    fn trim_lines(&mut self) {
        let page = self.as_page();
        let upper = page.upper();
        let mut last = page.max_offset();
        while last > 0 && page.line(last).is_unused() {
            last -= 1;
        }
        self.set_bounds(PAGE_HEADER + LINE * last as usize, upper);
        let free = self.first_unused(1).is_some();
        self.put_flag(HAS_FREE_LINES, free);
    }

    /// Makes the page that a stored image describes, and checks it. As in [`PageMut::init`] free space stays untouched.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no page; the page is zeroed then.
    pub fn from_compact(&mut self, image: &[u8]) -> Result<()> {
        let is_page = PageKind::from_byte(self.0[AT_KIND]).is_some();
        let (lower, upper) = if is_page { self.as_page().used() } else { (PAGE_SIZE, PAGE_SIZE) };
        self.from_compact_over(image, lower..upper)
    }

    /// As [`PageMut::from_compact`] in a frame where the bytes in `zero` are zero; they stay untouched if the page does not use them.
    ///
    /// # Errors
    /// As [`PageMut::from_compact`].
    pub fn from_compact_over(&mut self, image: &[u8], zero: Range<usize>) -> Result<()> {
        let result = self.expand(image, &zero).and_then(|()| self.as_page().check());
        if result.is_err() {
            self.0.fill(0);
        }
        result
    }

    fn expand(&mut self, image: &[u8], zero: &Range<usize>) -> Result<()> {
        let wrong = || Error::corrupt(format!("page image of {} bytes has no valid header", image.len()));
        if image.len() < PAGE_HEADER || image.len() > PAGE_SIZE {
            return Err(wrong());
        }
        let (mut lower, mut upper) = (read_u16(image, AT_LOWER) as usize, read_u16(image, AT_UPPER) as usize);
        if image[AT_KIND] == PageKind::Unused as u8 {
            (lower, upper) = (PAGE_HEADER, PAGE_SIZE);
        }
        if lower < PAGE_HEADER || lower > upper || upper > PAGE_SIZE || lower + PAGE_SIZE - upper != image.len() {
            return Err(wrong());
        }
        self.0[..lower].copy_from_slice(&image[..lower]);
        self.0[lower..zero.start.clamp(lower, upper)].fill(0);
        self.0[zero.end.clamp(lower, upper)..upper].fill(0);
        self.0[upper..].copy_from_slice(&image[lower..]);
        Ok(())
    }

    #[inline]
    pub(super) fn set_bounds(&mut self, lower: usize, upper: usize) {
        write_u16(self.0, AT_LOWER, lower as u16);
        write_u16(self.0, AT_UPPER, upper as u16);
    }

    #[inline]
    fn set_line(&mut self, offset: u16, line: LinePointer) {
        write_u32(self.0, line_position(offset), line.raw());
    }
}

#[cold]
fn no_version(offset: u16) -> Error {
    Error::corrupt(format!("page has no row version at offset {offset}"))
}
