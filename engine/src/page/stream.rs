//! Owns the times of rows that vanish: each version of a stream's table says when it was inserted.
//!
//! The page says a second since 2000, and each version, in the last word of its prefix, how many milliseconds later it was
//! inserted, plus one. So a page takes rows of 49 days; a version of another table has no time.

use super::bytes::{read_u32, write_u32};
use super::infomask::{HEAP_XMIN_FROZEN, HEAP_XMIN_INVALID};
use super::version::AT_TIME;
use super::*;
use crate::error::{Error, Result};
use crate::ids::INVALID_XID;

impl Page<'_> {
    /// The second, since 2000, from which the page counts.
    #[inline]
    pub fn seconds(self) -> u32 {
        read_u32(self.0, AT_SECONDS)
    }

    /// When a version was inserted, in milliseconds since 2000; nothing if it has no time.
    #[inline]
    pub fn row_time(self, offset: u16) -> Option<i64> {
        let version = self.version(offset)?;
        let millis = read_u32(version.bytes(), AT_TIME).checked_sub(1)?;
        Some(i64::from(self.seconds()) * 1000 + i64::from(millis))
    }

    /// Whether a row inserted at this time can say so on this page.
    #[inline]
    pub fn takes_time(self, millis: i64) -> bool {
        self.max_offset() == 0 || self.time_word(millis).is_some()
    }

    /// What a version says that was inserted at this time. A clock that went back behind the page's second counts from there.
    fn time_word(self, millis: i64) -> Option<u32> {
        let since = millis.saturating_sub(i64::from(self.seconds()) * 1000).max(0);
        u32::try_from(since).ok()?.checked_add(1)
    }
}

impl PageMut<'_> {
    /// Sets the second, since 2000, from which the page counts; only on a page without versions.
    pub fn set_seconds(&mut self, seconds: u32) {
        write_u32(self.0, AT_SECONDS, seconds);
    }

    /// Notes when a version was inserted, in milliseconds since 2000.
    pub fn set_row_time(&mut self, offset: u16, millis: i64) {
        let word = self.as_page().time_word(millis).unwrap_or(u32::MAX);
        if let Some(version) = self.version_bytes_mut(offset) {
            write_u32(version, AT_TIME, word);
        }
    }

    /// Makes versions ones that were never there: nobody sees them any more, and the next prune removes them.
    ///
    /// # Errors
    /// `Corrupt` when there is no such version; those before it are changed then.
    pub fn expire(&mut self, offsets: &[u16]) -> Result<()> {
        for &offset in offsets {
            let version = self.as_page().version(offset);
            let Some(version) = version else {
                return Err(Error::corrupt(format!("page has no row version at offset {offset}")));
            };
            let mut header = version.header();
            header.xmin = INVALID_XID;
            header.infomask = header.infomask & !HEAP_XMIN_FROZEN | HEAP_XMIN_INVALID;
            self.set_header(offset, &header)?;
        }
        self.clear_flags(ALL_VISIBLE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::infomask::HEAP_XMAX_INVALID;
    use super::*;

    #[test]
    fn a_row_keeps_its_time_through_header_changes_and_the_stored_image() {
        let mut bytes = vec![0; PAGE_SIZE];
        let mut page = PageMut::new(&mut bytes);
        page.init(PageKind::Data, 3);
        page.set_seconds(800_000_000);
        let header = Header { xmin: 5, infomask: HEAP_XMAX_INVALID, infomask2: 1, ..Header::default() };
        let body = [&[24u8, 0][..], &[7; 8]].concat();
        let offset = page.add_row(&header, &body, None).unwrap();
        assert_eq!(page.as_page().row_time(offset), None);
        page.set_row_time(offset, 800_000_012_345);
        let other = page.add_row(&header, &body, None).unwrap();
        page.set_row_time(other, 0);
        page.set_header(offset, &Header { xmax: 9, ..header }).unwrap();
        let mut image = Vec::new();
        page.as_page().to_compact(&mut image);
        let mut again = vec![0xAA; PAGE_SIZE];
        PageMut::new(&mut again).from_compact(&image).unwrap();
        let again = Page::new(&again);
        assert_eq!(again.row_time(offset), Some(800_000_012_345));
        assert_eq!(again.row_time(other), Some(800_000_000_000), "a clock that went back counts from the page's second");
        assert!(again.takes_time(800_000_000_000 + i64::from(u32::MAX) - 1));
        assert!(!again.takes_time(800_000_000_000 + i64::from(u32::MAX)));
    }

    #[test]
    fn an_expired_row_was_never_there() {
        let mut bytes = vec![0; PAGE_SIZE];
        let mut page = PageMut::new(&mut bytes);
        page.init(PageKind::Data, 3);
        let header = Header { xmin: 5, infomask: HEAP_XMIN_FROZEN | HEAP_XMAX_INVALID, infomask2: 1, ..Header::default() };
        let offset = page.add_row(&header, &[24, 0, 1, 2, 3, 4, 5, 6, 7, 8], None).unwrap();
        page.expire(&[offset]).unwrap();
        let stored = page.as_page().version(offset).unwrap().header();
        assert_eq!(stored.effective_xmin(), INVALID_XID);
        assert!(stored.xmin_invalid());
        assert!(page.expire(&[7]).is_err());
    }
}
