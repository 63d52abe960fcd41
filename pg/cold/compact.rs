//! Compaction: writes what is still read from small or outdated segments into new ones.
//!
//! A segment keeps its rows for ever. What a change has thawed is still in the file, and nobody reads it; compaction leaves it behind,
//! which also erases rows that were deleted. Blocks and TIDs stay.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;

use kalamdb_engine::cache::Wait;
use kalamdb_engine::cold::{Client, CommitMode, SegmentRecord, SegmentUse};
use kalamdb_engine::page::{OVERFLOW_PAYLOAD, PAGE_SIZE};
use pgrx::pg_sys;

use super::copying::Copying;
use super::flush::FlushOptions;
use super::table::Table;
use super::{Outcome, Progress};
use crate::error::OrRaise;
use crate::ffi::interrupts::check_for_interrupts;
use crate::tableam::storage::Storage;
use crate::tableam::values;
use crate::worker::requests;

/// How a compaction goes about it.
#[derive(Clone)]
pub struct CompactOptions {
    /// As for a flush.
    pub flush: FlushOptions,
    /// Segments shorter than this are merged with others.
    pub small_bytes: u64,
    /// So many small segments of a partition are worth it.
    pub least_small: usize,
    /// A segment is written anew when so large a share of its rows, in percent, is not read from it any more.
    pub stale_percent: u64,
}

impl Default for CompactOptions {
    fn default() -> CompactOptions {
        CompactOptions { flush: FlushOptions::default(), small_bytes: 32 << 20, least_small: 4, stale_percent: 30 }
    }
}

/// Merges small segments of a table and writes those anew of which much is outdated.
pub fn compact_relation(relation: pg_sys::Oid, options: &CompactOptions, progress: &mut dyn Progress) -> Outcome {
    rewrite_chosen(relation, &options.flush, |table| choose(&table.storage, &table.client(), options), progress)
}

/// Writes the segments of a table anew that are chosen, by partition.
fn rewrite_chosen(
    relation: pg_sys::Oid,
    options: &FlushOptions,
    choose: impl FnOnce(&Table) -> BTreeMap<u32, Vec<u64>>,
    progress: &mut dyn Progress,
) -> Outcome {
    let Some(table) = Table::open(relation, options.lock_patience) else {
        return Outcome { gone: true, ..Outcome::default() };
    };
    let chosen = choose(&table);
    let outcome = rewrite(&table, options, &chosen, progress);
    table.close();
    outcome
}

/// Whether a compaction would find something to do.
pub fn is_worthwhile(relation: pg_sys::Oid, options: &CompactOptions) -> bool {
    let Some(table) = Table::open(relation, options.flush.lock_patience) else { return false };
    let worthwhile = !choose(&table.storage, &table.client(), options).is_empty();
    table.close();
    worthwhile
}

/// Whether a compaction of a table would find something to do, for somebody who has it open and locked.
pub fn wants_compaction(storage: &Storage, wait: &dyn Wait) -> bool {
    storage.descriptor.segments.load(Ordering::Acquire) > 0
        && !choose(storage, &requests::client(storage.cache, wait), &CompactOptions::default()).is_empty()
}

/// Erases every copy that segments still have of a row that is not read from them.
pub fn erase_expired(relation: pg_sys::Oid, progress: &mut dyn Progress) -> Outcome {
    let options = CompactOptions {
        least_small: usize::MAX,
        stale_percent: 0,
        flush: FlushOptions::of_table(relation),
        ..CompactOptions::default()
    };
    compact_relation(relation, &options, progress)
}

/// Writes segments of a table anew, with what is still read from them.
pub fn rewrite_segments(
    relation: pg_sys::Oid,
    is_wanted: &dyn Fn(&SegmentRecord) -> bool,
    progress: &mut dyn Progress,
) -> Outcome {
    let choose = |table: &Table| {
        let mut chosen: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for record in segments_of(&table.storage, &table.client()).0.into_iter().filter(is_wanted) {
            chosen.entry(record.partition).or_default().push(record.segment);
        }
        chosen
    };
    rewrite_chosen(relation, &FlushOptions::of_table(relation), choose, progress)
}

/// Every segment of a storage, and how much of it is still read.
pub fn segments_of(storage: &Storage, client: &Client<'_>) -> (Vec<SegmentRecord>, HashMap<u64, SegmentUse>) {
    let uses = client.segment_uses(storage.id).or_raise().into_iter().map(|used| (used.segment, used)).collect();
    let mut found = Vec::new();
    let mut next = Some(0);
    while let Some(after) = next {
        let page = client.segments(storage.id, after).or_raise();
        found.extend(page.entries);
        next = page.next;
        check_for_interrupts();
    }
    (found, uses)
}

/// The segments to write anew, by partition.
fn choose(storage: &Storage, client: &Client<'_>, options: &CompactOptions) -> BTreeMap<u32, Vec<u64>> {
    let (records, uses) = segments_of(storage, client);
    let mut small: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let mut chosen: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for record in records {
        let read = uses.get(&record.segment).map_or(0, |used| used.rows);
        let stale = record.rows.saturating_sub(read);
        if stale > 0 && stale * 100 >= record.rows * options.stale_percent {
            chosen.entry(record.partition).or_default().push(record.segment);
        }
        if record.bytes < options.small_bytes {
            small.entry(record.partition).or_default().push(record.segment);
        }
    }
    for (partition, segments) in small {
        if segments.len() >= options.least_small {
            let chosen = chosen.entry(partition).or_default();
            chosen.extend(segments);
            chosen.sort_unstable();
            chosen.dedup();
        }
    }
    chosen
}

fn rewrite(table: &Table, options: &FlushOptions, chosen: &BTreeMap<u32, Vec<u64>>, progress: &mut dyn Progress) -> Outcome {
    if chosen.is_empty() {
        return Outcome::default();
    }
    let mut copying = Copying::new(table, options, progress);
    let blocks = blocks_of(table, chosen);
    copying.announce(blocks.values().map(Vec::len).sum());
    for (partition, blocks) in &blocks {
        let mode = CommitMode::Replace(chosen[partition].clone());
        copying.copy(*partition, blocks, &mode, |examiner, table, block| examiner.copy_cold(table, block));
        if copying.outcome.yielded {
            return copying.outcome;
        }
    }
    copying.commit();
    thaw_values(&mut copying, chosen);
    copying.outcome
}

/// The blocks that are read from the chosen segments.
fn blocks_of(table: &Table, chosen: &BTreeMap<u32, Vec<u64>>) -> BTreeMap<u32, Vec<u32>> {
    let client = table.client();
    let mut blocks: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let page = client.block_stubs(table.storage.id, from).or_raise();
        for stub in page.entries {
            if chosen.get(&stub.partition).is_some_and(|segments| segments.contains(&stub.segment)) {
                blocks.entry(stub.partition).or_default().push(stub.block);
            }
        }
        next = page.next;
        check_for_interrupts();
    }
    blocks
}

/// Makes the large values hot that are still read from the chosen segments: their rows are in hot blocks, which are not copied, and
/// nothing else would ever end the segments.
fn thaw_values(copying: &mut Copying<'_>, chosen: &BTreeMap<u32, Vec<u64>>) {
    let table = copying.table;
    let segments: HashSet<u64> = chosen.values().flatten().copied().collect();
    let client = table.client();
    let mut next = Some(0);
    while let Some(from) = next {
        let page = client.value_stubs(table.storage.id, from).or_raise();
        for stub in page.entries.iter().filter(|stub| segments.contains(&stub.segment)) {
            for chunk in 0..(stub.length as usize).div_ceil(OVERFLOW_PAYLOAD).max(1) {
                copying.pace.work(PAGE_SIZE);
                values::thaw(&table.storage, stub.value, chunk, &table.wait).or_raise();
            }
            if table.is_wanted() {
                copying.outcome.yielded = true;
                return;
            }
        }
        next = page.next;
        check_for_interrupts();
    }
}
