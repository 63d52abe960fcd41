//! Owns directory pages: one byte for each block of a run, its free space. A hint only, never logged.

use super::*;

/// Blocks that one directory page describes.
pub const DIRECTORY_FANOUT: u32 = (PAGE_SIZE - PAGE_HEADER) as u32;
/// Free bytes in one category.
const CATEGORY_BYTES: usize = 128;
/// Bytes looked at together: enough for the compiler to use vector instructions, few enough to stop early.
const STRIDE: usize = 64;

/// The category of a page with so much free space.
#[inline]
pub const fn category_of(free_space: usize) -> u8 {
    let category = free_space / CATEGORY_BYTES;
    if category > 255 { 255 } else { category as u8 }
}

/// The lowest category whose pages have room for a version of this length.
///
/// Above 32,640 bytes no category promises that; the caller looks at the page in any case.
#[inline]
pub const fn category_for(version_len: usize) -> u8 {
    let category = align(version_len).div_ceil(CATEGORY_BYTES);
    if category > 255 { 255 } else { category as u8 }
}

impl Page<'_> {
    /// The category of a block, numbered within the page.
    #[inline]
    pub fn category(self, index: u32) -> u8 {
        if index < DIRECTORY_FANOUT { self.0[PAGE_HEADER + index as usize] } else { 0 }
    }

    /// The first block from `start` on, then from 0 on, with this category at least, 1 at least.
    pub fn find_category(self, category: u8, start: u32) -> Option<u32> {
        let categories = &self.0[PAGE_HEADER..self.lower().clamp(PAGE_HEADER, PAGE_SIZE)];
        let start = (start as usize).min(categories.len());
        let category = category.max(1);
        let behind = find(&categories[start..], category).map(|index| start + index);
        behind.or_else(|| find(&categories[..start], category)).map(|index| index as u32)
    }
}

fn find(categories: &[u8], category: u8) -> Option<usize> {
    for (stride, run) in categories.chunks(STRIDE).enumerate() {
        if run.iter().fold(0, |most, &each| most.max(each)) >= category {
            return run.iter().position(|&each| each >= category).map(|index| stride * STRIDE + index);
        }
    }
    None
}

impl PageMut<'_> {
    /// Notes the category of a block, numbered within the page.
    #[inline]
    pub fn set_category(&mut self, index: u32, category: u8) {
        if index >= DIRECTORY_FANOUT {
            return;
        }
        let at = PAGE_HEADER + index as usize;
        self.0[at] = category;
        if category > 0 && self.as_page().lower() <= at {
            self.set_bounds(at + 1, PAGE_SIZE);
        }
    }
}
