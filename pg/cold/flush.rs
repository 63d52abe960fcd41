//! Flush: moves blocks at rest into new segments.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::time::Duration;

use kalamdb_engine::cold::CommitMode;
use kalamdb_engine::page::PAGE_SIZE;
use kalamdb_engine::segment::{Compression, TableSchema, WriteOptions};
use pgrx::pg_sys;

use super::eligible::{Examiner, Found};
use super::output::Output;
use super::pace::Pace;
use super::place::Target;
use super::ranges::ColdBlocks;
use super::table::Table;
use super::{Outcome, Progress, columns};
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
    let outcome = Flush::new(&table, options, progress).run();
    table.close();
    outcome
}

struct Flush<'a> {
    table: &'a Table,
    options: &'a FlushOptions,
    schema: TableSchema,
    write: WriteOptions,
    examiner: Examiner,
    pace: Pace,
    progress: &'a mut dyn Progress,
    outcome: Outcome,
    /// Rows and bytes of pages that were looked at and copied.
    copied: (u64, u64),
}

impl<'a> Flush<'a> {
    fn new(table: &'a Table, options: &'a FlushOptions, progress: &'a mut dyn Progress) -> Flush<'a> {
        Flush {
            table,
            options,
            schema: columns::describe(table.rel, options.bloom_columns.as_deref()),
            write: options.write_options(table),
            examiner: Examiner::new(table.rel),
            pace: Pace::new(),
            progress,
            outcome: Outcome::default(),
            copied: (0, 0),
        }
    }

    fn run(mut self) -> Outcome {
        let cold = ColdBlocks::of(&self.table.storage, &self.table.wait).or_raise();
        let blocks = self.table.storage.blocks();
        let groups = self.by_partition((0..blocks).filter(|block| !cold.contains(*block)));
        self.progress.total(0, groups.values().map(|blocks| (blocks.len() * PAGE_SIZE) as u64).sum());
        for (partition, blocks) in groups {
            self.flush_blocks(partition, &blocks);
            if self.outcome.yielded {
                break;
            }
        }
        self.outcome
    }

    /// The blocks of each partition that is to be flushed, ascending. A shared table has one.
    fn by_partition(&self, blocks: impl Iterator<Item = u32>) -> BTreeMap<u32, Vec<u32>> {
        if !gate::is_partitioned(self.table.rel) {
            return BTreeMap::from([(0, blocks.collect())]);
        }
        let least = self.options.least_of_user;
        let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for block in blocks {
            let place = partition::place_of(&self.table.storage, block, &self.table.wait).or_raise();
            groups.entry(place.partition).or_default().push(block);
        }
        if least > 0 {
            groups.retain(|_, blocks| (blocks.len() * PAGE_SIZE) as u64 >= least);
            for blocks in groups.values_mut() {
                blocks.pop();
            }
        }
        groups
    }

    fn flush_blocks(&mut self, partition: u32, blocks: &[u32]) {
        let mut output: Option<Output<'a>> = None;
        let mut target = None;
        for (place, &block) in blocks.iter().enumerate() {
            self.table.read_ahead(blocks, place);
            self.pace.work(PAGE_SIZE);
            let pin = match self.examiner.examine(self.table, block).or_raise() {
                Found::Nothing => continue,
                Found::Busy => {
                    self.outcome.left_out += 1;
                    continue;
                }
                Found::Ready(pin) => pin,
            };
            let current = match &mut output {
                Some(current) => current,
                None => output.insert(self.begin(partition, &mut target)),
            };
            let added = current.add(block, self.examiner.page());
            drop(pin);
            added.or_raise();
            self.note_copied();
            let wanted = self.table.is_wanted();
            if wanted || output.as_ref().is_some_and(|output| output.bytes() >= self.options.segment_bytes) {
                self.commit(output.take(), target.as_ref());
            }
            if wanted {
                self.outcome.yielded = true;
                return;
            }
        }
        self.commit(output, target.as_ref());
    }

    fn note_copied(&mut self) {
        let page = self.examiner.page();
        self.copied.0 += page.versions().count() as u64;
        self.copied.1 += PAGE_SIZE as u64;
        self.progress.done(self.copied.0, self.copied.1);
    }

    /// Begins a segment of the partition to which the page that was copied last belongs.
    fn begin(&self, partition: u32, target: &mut Option<Target>) -> Output<'a> {
        if target.is_none() {
            *target = Some(Target::of(self.table, self.options.storage.as_deref(), self.examiner.page()));
        }
        Output::begin(self.table, &self.schema, &self.write, partition).or_raise()
    }

    fn commit(&mut self, output: Option<Output<'a>>, target: Option<&Target>) {
        let (Some(output), Some(target)) = (output, target) else { return };
        let stored = output.commit(target, CommitMode::Flush).or_raise();
        self.outcome.note(&stored);
    }
}
