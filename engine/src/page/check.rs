//! Checks that an image has the form of a page, so that nothing read from it leads outside it.

use super::bytes::read_u16;
use super::*;
use crate::error::{Error, Result};

impl Page<'_> {
    /// Checks an image that comes from disk or from a log record. A zeroed page is a valid unused one.
    ///
    /// # Errors
    /// `Corrupt` with what is wrong.
    pub fn check(self) -> Result<()> {
        match PageKind::from_byte(self.0[AT_KIND]) {
            None => Err(Error::corrupt(format!("page has the unknown kind {}", self.0[AT_KIND]))),
            Some(PageKind::Unused) => self.check_unused(),
            Some(kind) => {
                self.check_header()?;
                match kind {
                    PageKind::Data => self.check_lines(),
                    PageKind::Overflow => self.check_overflow(),
                    PageKind::Users => self.check_users(),
                    PageKind::Directory | PageKind::Partitions | PageKind::Chains | PageKind::Times | PageKind::Unused => Ok(()),
                }
            }
        }
    }

    fn check_unused(self) -> Result<()> {
        let format = read_u16(self.0, 0);
        let zeroed = format == 0 && self.lower() == 0 && self.upper() == 0;
        let freed = format == FORMAT_VERSION && self.lower() == PAGE_HEADER && self.upper() == PAGE_SIZE;
        if zeroed || freed { Ok(()) } else { Err(Error::corrupt("unused page has contents")) }
    }

    fn check_header(self) -> Result<()> {
        let (format, lower, upper) = (read_u16(self.0, 0), self.lower(), self.upper());
        if format != FORMAT_VERSION {
            return Err(Error::corrupt(format!("page has the unknown format version {format}")));
        }
        if self.flags() & !KNOWN_FLAGS != 0 {
            return Err(Error::corrupt(format!("page has the unknown flags {:#x}", self.flags())));
        }
        if lower < PAGE_HEADER || lower > upper || upper > PAGE_SIZE {
            return Err(Error::corrupt(format!("page has the bounds {lower} and {upper}")));
        }
        if self.kind() != PageKind::Data && upper != PAGE_SIZE {
            return Err(Error::corrupt(format!("page without row versions ends at {upper}")));
        }
        Ok(())
    }

    fn check_lines(self) -> Result<()> {
        let lines = self.lower() - PAGE_HEADER;
        if !lines.is_multiple_of(LINE) || lines / LINE > MAX_OFFSET as usize || !self.upper().is_multiple_of(8) {
            return Err(Error::corrupt(format!("page has the bounds {} and {}", self.lower(), self.upper())));
        }
        // One bit for each eight bytes: shows versions that overlap.
        let mut taken = [0u64; PAGE_SIZE / 8 / 64];
        let mut total = 0;
        for offset in 1..=self.max_offset() {
            let line = self.line(offset);
            let well_formed = match line.flags() {
                LineState::Unused => line == LinePointer::UNUSED,
                LineState::Dead => line == LinePointer::DEAD,
                LineState::Redirect => line.is_empty() && (1..=self.max_offset()).contains(&line.redirect()),
                LineState::Normal => {
                    total += align(line.len());
                    self.check_version(line) && take(&mut taken, line.offset() / 8, align(line.len()) / 8)
                }
            };
            if !well_formed {
                return Err(Error::corrupt(format!("line pointer {offset} is wrong: {line:?}")));
            }
        }
        if total != PAGE_SIZE - self.upper() {
            return Err(Error::corrupt(format!("row versions of {total} bytes stand behind position {}", self.upper())));
        }
        Ok(())
    }

    fn check_version(self, line: LinePointer) -> bool {
        line.offset() >= self.upper()
            && line.offset().is_multiple_of(8)
            && line.offset() + align(line.len()) <= PAGE_SIZE
            && self.version_at(line).is_some_and(Version::is_well_formed)
    }
}

/// Takes a run of bits; false if one of them was taken before.
fn take(taken: &mut [u64], start: usize, count: usize) -> bool {
    let (mut bit, end) = (start, start + count);
    while bit < end {
        let in_word = (64 - bit % 64).min(end - bit);
        let mask = (u64::MAX >> (64 - in_word)) << (bit % 64);
        if taken[bit / 64] & mask != 0 {
            return false;
        }
        taken[bit / 64] |= mask;
        bit += in_word;
    }
    true
}
