//! Flush: moves blocks at rest into new segments.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::time::Duration;

use kalamdb_engine::cold::CommitMode;
use kalamdb_engine::page::PAGE_SIZE;
use kalamdb_engine::segment::{Compression, WriteOptions};
use pgrx::pg_sys;

use super::copying::Copying;
use super::ranges::ColdBlocks;
use super::table::Table;
use super::{Outcome, Progress};
use crate::error::OrRaise;
use crate::gate;
use crate::options;
use crate::tableam::partition;
use crate::wal;

/// How a flush goes about it.
#[derive(Clone)]
pub struct FlushOptions {
    /// The storage of the files; the server's own directory if none is named.
    pub storage: Option<String>,
    /// Compression of the files.
    pub compression: Compression,
    /// The most rows of a row group.
    pub row_group_rows: usize,
    /// Columns with bloom filters; the primary key's if none are named.
    pub bloom_columns: Option<Vec<i16>>,
    /// A segment ends when its file is about that long.
    pub segment_bytes: u64,
    /// Users whose hot pages have fewer bytes than that keep them, and others the latest: a segment of few rows takes longer to make
    /// and more room than it saves. 0 takes everything.
    pub least_of_user: u64,
    /// How long to try to get the table's lock.
    pub lock_patience: Duration,
}

impl Default for FlushOptions {
    fn default() -> FlushOptions {
        FlushOptions {
            storage: None,
            compression: Compression::default(),
            row_group_rows: 131_072,
            bloom_columns: None,
            segment_bytes: 256 << 20,
            least_of_user: 0,
            lock_patience: Duration::from_secs(30),
        }
    }
}

impl FlushOptions {
    /// What the options of a table say.
    pub fn of_table(relation: pg_sys::Oid) -> FlushOptions {
        let options = options::of(relation);
        let compression = match options.compression() {
            (name, level) if name == "zstd" => Compression::Zstd(level.unwrap_or(Compression::ZSTD_LEVEL)),
            (name, _) if name == "lz4" => Compression::Lz4,
            (name, _) if name == "snappy" => Compression::Snappy,
            _ => Compression::None,
        };
        let column = |name: String| {
            let name = CString::new(name).ok()?;
            // SAFETY: looks a column up by its name.
            let attnum = unsafe { pg_sys::get_attnum(relation, name.as_ptr()) };
            (attnum > 0).then_some(attnum)
        };
        FlushOptions {
            storage: Some(options.storage()),
            compression,
            row_group_rows: options.row_group_rows(),
            // A column that was dropped since it was named has no filter.
            bloom_columns: options.bloom_columns().map(|names| names.into_iter().filter_map(column).collect()),
            ..FlushOptions::default()
        }
    }

    /// What the writer wants to know.
    pub fn write_options(&self, table: &Table) -> WriteOptions {
        WriteOptions {
            compression: self.compression,
            row_group_rows: self.row_group_rows,
            ..WriteOptions::new(table.storage.id, 0)
        }
    }
}

/// Moves every block at rest of a table into segments.
///
/// The lock of the table is kept until the end of the transaction only where an ERROR ends it. A run ends early, with what it has, when
/// somebody waits for the table.
pub fn flush_relation(relation: pg_sys::Oid, options: &FlushOptions, progress: &mut dyn Progress) -> Outcome {
    let Some(table) = Table::open(relation, options.lock_patience) else {
        return Outcome { gone: true, ..Outcome::default() };
    };
    // So that hints can be set of what committed asynchronously a moment ago.
    wal::flush(wal::end_lsn());
    let outcome = flush(&table, options, progress);
    table.close();
    outcome
}

fn flush(table: &Table, options: &FlushOptions, progress: &mut dyn Progress) -> Outcome {
    let cold = ColdBlocks::of(&table.storage, &table.wait).or_raise();
    let blocks = table.storage.blocks();
    let groups = by_partition(table, options.least_of_user, (0..blocks).filter(|block| !cold.contains(*block)));
    let mut copying = Copying::new(table, options, progress);
    copying.announce(groups.values().map(Vec::len).sum());
    for (partition, blocks) in groups {
        copying.copy(partition, &blocks, &CommitMode::Flush, |examiner, table, block| examiner.examine(table, block));
        if copying.outcome.yielded {
            break;
        }
    }
    copying.commit();
    copying.outcome
}

/// The blocks of each partition that is to be flushed, ascending. A shared table has one.
fn by_partition(table: &Table, least_of_user: u64, blocks: impl Iterator<Item = u32>) -> BTreeMap<u32, Vec<u32>> {
    if !gate::is_partitioned(table.rel) {
        return BTreeMap::from([(0, blocks.collect())]);
    }
    let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for block in blocks {
        let place = partition::place_of(&table.storage, block, &table.wait).or_raise();
        groups.entry(place.partition).or_default().push(block);
    }
    if least_of_user > 0 {
        groups.retain(|_, blocks| (blocks.len() * PAGE_SIZE) as u64 >= least_of_user);
        for blocks in groups.values_mut() {
            blocks.pop();
        }
    }
    groups
}
