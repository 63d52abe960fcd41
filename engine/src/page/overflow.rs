//! Owns overflow pages: a chunk of a value too long for its row's page.
//!
//! ```text
//! 32 u32 refcount (chunk 0 only) | 36 u32 total_length | 40 u16 payload length | 42 zero | 48 payload
//! ```

use super::bytes::{read_u16, read_u32, write_u16, write_u32};
use super::*;
use crate::error::{Error, Result};

const AT_REFCOUNT: usize = 32;
const AT_TOTAL: usize = 36;
const AT_LEN: usize = 40;
/// Where the payload starts.
pub(super) const OVERFLOW_HEADER: usize = 48;

/// The most bytes of a value that one overflow page takes.
pub const OVERFLOW_PAYLOAD: usize = PAGE_SIZE - OVERFLOW_HEADER;

impl<'a> Page<'a> {
    /// The bytes of the value that the page holds; empty if it is no overflow page.
    #[inline]
    pub fn overflow_payload(self) -> &'a [u8] {
        if self.kind() != PageKind::Overflow {
            return &[];
        }
        let len = (read_u16(self.0, AT_LEN) as usize).min(OVERFLOW_PAYLOAD);
        &self.0[OVERFLOW_HEADER..OVERFLOW_HEADER + len]
    }

    /// How many row versions name the value; kept in chunk 0.
    #[inline]
    pub fn overflow_refcount(self) -> u32 {
        read_u32(self.0, AT_REFCOUNT)
    }

    /// Length of the whole value.
    #[inline]
    pub fn overflow_total(self) -> u32 {
        read_u32(self.0, AT_TOTAL)
    }

    pub(super) fn check_overflow(self) -> Result<()> {
        let len = read_u16(self.0, AT_LEN) as usize;
        if self.lower() < OVERFLOW_HEADER || self.lower() - OVERFLOW_HEADER != len || len > self.overflow_total() as usize {
            return Err(Error::corrupt(format!("overflow page has {len} of {} bytes", self.overflow_total())));
        }
        Ok(())
    }
}

impl PageMut<'_> {
    /// Makes the page one chunk of a value; its LSN becomes 0.
    ///
    /// # Panics
    /// If the payload is longer than [`OVERFLOW_PAYLOAD`] or than the value.
    pub fn init_overflow(&mut self, partition: u32, refcount: u32, total: u32, payload: &[u8]) {
        assert!(payload.len() <= OVERFLOW_PAYLOAD && payload.len() <= total as usize, "a chunk fits its page and its value");
        self.init(PageKind::Overflow, partition);
        write_u32(self.0, AT_REFCOUNT, refcount);
        write_u32(self.0, AT_TOTAL, total);
        write_u16(self.0, AT_LEN, payload.len() as u16);
        self.0[OVERFLOW_HEADER..OVERFLOW_HEADER + payload.len()].copy_from_slice(payload);
        self.set_bounds(OVERFLOW_HEADER + payload.len(), PAGE_SIZE);
    }

    /// Replaces the count of row versions that name the value.
    #[inline]
    pub fn set_overflow_refcount(&mut self, refcount: u32) {
        write_u32(self.0, AT_REFCOUNT, refcount);
    }
}
