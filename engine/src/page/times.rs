//! Owns pages of times: since when rows stand in each block of a run of a stream's blocks. A hint only, never logged.
//!
//! ```text
//! 32 entries of 4 bytes: bits 0 to 30 seconds since 2000, bit 31 whether the block was empty then
//! ```
//!
//! Every row of the block was inserted at that second or later. An entry that a crash took back says an earlier second, so whoever
//! looks at blocks by it looks too early, and never too late by more than a row lives.

use super::bytes::{read_u32, write_u32};
use super::*;

const ENTRY: usize = 4;
const EMPTY: u32 = 1 << 31;

/// Blocks that one page of times describes.
pub const TIMES_FANOUT: u32 = ((PAGE_SIZE - PAGE_HEADER) / ENTRY) as u32;

/// What is known of the rows of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockTime {
    /// No row is older, in seconds since 2000; 0 when nothing is known.
    pub since: u32,
    /// Whether there were no rows then.
    pub was_empty: bool,
}

impl Page<'_> {
    /// What is known of a block, numbered within the page; nothing if this is no page of times.
    pub fn block_time(self, index: u32) -> BlockTime {
        if self.kind() != PageKind::Times || index >= TIMES_FANOUT {
            return BlockTime::default();
        }
        let word = read_u32(self.0, PAGE_HEADER + index as usize * ENTRY);
        BlockTime { since: word & !EMPTY, was_empty: word & EMPTY != 0 }
    }
}

impl PageMut<'_> {
    /// Notes what is known of a block, numbered within the page.
    pub fn set_block_time(&mut self, index: u32, time: BlockTime) {
        if self.as_page().kind() != PageKind::Times || index >= TIMES_FANOUT {
            return;
        }
        let at = PAGE_HEADER + index as usize * ENTRY;
        write_u32(self.0, at, time.since & !EMPTY | if time.was_empty { EMPTY } else { 0 });
        if self.as_page().lower() < at + ENTRY {
            self.set_bounds(at + ENTRY, PAGE_SIZE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_by_the_stored_image() {
        let mut bytes = vec![0; PAGE_SIZE];
        let mut page = PageMut::new(&mut bytes);
        page.set_block_time(3, BlockTime { since: 9, was_empty: true });
        assert_eq!(page.as_page().block_time(3), BlockTime::default());
        page.init(PageKind::Times, 0);
        let entries = [(0, 800_000_000, false), (3, 1, true), (TIMES_FANOUT - 1, 5, false), (TIMES_FANOUT, 7, false)];
        for (index, since, was_empty) in entries {
            page.set_block_time(index, BlockTime { since, was_empty });
        }
        page.as_page().check().unwrap();
        let mut image = Vec::new();
        page.as_page().to_compact(&mut image);
        let mut again = vec![0xAA; PAGE_SIZE];
        PageMut::new(&mut again).from_compact(&image).unwrap();
        assert!(again == bytes);
        for (index, since, was_empty) in &entries[..3] {
            assert_eq!(Page::new(&again).block_time(*index), BlockTime { since: *since, was_empty: *was_empty });
        }
        assert_eq!(Page::new(&again).block_time(1), BlockTime::default());
        assert_eq!(Page::new(&again).block_time(TIMES_FANOUT), BlockTime::default());
    }
}
