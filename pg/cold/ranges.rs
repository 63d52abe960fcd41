//! Which blocks of a table are cold: those that nobody has to look at.

use std::ops::Range;
use std::sync::atomic::Ordering;

use kalamdb_engine::Result;
use kalamdb_engine::cache::Wait;
use kalamdb_engine::cold::Client;

use crate::tableam::storage::Storage;
use crate::worker::requests;

/// Cold blocks, as ascending ranges.
#[derive(Default)]
pub struct ColdBlocks {
    ranges: Vec<Range<u32>>,
    rows: u64,
}

impl ColdBlocks {
    /// The blocks of a table that are cold now, durably; one that was cold a moment ago and becomes hot later may be among them.
    ///
    /// The caller holds a lock that keeps flushes out. The store's word alone does not do: a changed page is cold there until it is
    /// written back. It is in the cache so long; so a block is cold if the store calls it so before and after a look at the cache
    /// that does not find it changed.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn of(storage: &Storage, wait: &dyn Wait) -> Result<ColdBlocks> {
        if storage.descriptor.segments.load(Ordering::Acquire) == 0 {
            return Ok(ColdBlocks::default());
        }
        let client = requests::client(storage.cache, wait);
        let before = stored(&client, storage, wait)?;
        let mut hot = Vec::new();
        for block in before.iter().flat_map(Clone::clone) {
            if is_changed(storage, block, wait)? {
                hot.push(block);
            }
            if block % 1024 == 0 {
                wait.pause()?;
            }
        }
        let after = stored(&client, storage, wait)?;
        let known: u64 = client.segment_uses(storage.id)?.iter().map(|used| used.rows).sum();
        let mut hot = hot.into_iter().peekable();
        let mut ranges = Vec::new();
        for range in after.iter().cloned() {
            cut(range, &mut hot, &mut ranges);
        }
        // The rows of blocks that are hot in memory are in the sum: each block counts with the average.
        let (whole, left) = (blocks_in(&after), blocks_in(&ranges));
        let rows = if whole == 0 { 0 } else { (u128::from(known) * u128::from(left) / u128::from(whole)) as u64 };
        Ok(ColdBlocks { ranges, rows })
    }

    /// Whether a block is among them.
    #[inline]
    pub fn contains(&self, block: u32) -> bool {
        !self.ranges.is_empty() && contains(&self.ranges, block)
    }

    /// Rows of the cold blocks, about.
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

/// Whether ascending ranges have a number.
pub fn contains(ranges: &[Range<u32>], number: u32) -> bool {
    let after = ranges.partition_point(|range| range.start <= number);
    after > 0 && ranges[after - 1].contains(&number)
}

fn blocks_in(ranges: &[Range<u32>]) -> u64 {
    ranges.iter().map(|range| range.len() as u64).sum()
}

/// Appends what is left of a range without ascending numbers.
fn cut(range: Range<u32>, without: &mut std::iter::Peekable<impl Iterator<Item = u32>>, ranges: &mut Vec<Range<u32>>) {
    let mut start = range.start;
    while let Some(&number) = without.peek() {
        if number >= range.end {
            break;
        }
        without.next();
        if number < start {
            continue;
        }
        if start < number {
            ranges.push(start..number);
        }
        start = number + 1;
    }
    if start < range.end {
        ranges.push(start..range.end);
    }
}

fn stored(client: &Client<'_>, storage: &Storage, wait: &dyn Wait) -> Result<Vec<Range<u32>>> {
    let mut ranges = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let page = client.cold_ranges(storage.id, from)?;
        ranges.extend(page.entries);
        next = page.next;
        wait.pause()?;
    }
    Ok(ranges)
}

/// Whether a block is in the cache with a page that is not the segment's.
fn is_changed(storage: &Storage, block: u32, wait: &dyn Wait) -> Result<bool> {
    let Some(pin) = storage.cache.lookup(storage.block(block)) else { return Ok(false) };
    let guard = pin.shared(wait)?;
    Ok(!guard.page().is_cold())
}
