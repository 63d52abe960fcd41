//! A segment in the making: a file of this process until it is finished, then stored, then part of the table.

use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

use kalamdb_engine::Result;
use kalamdb_engine::cold::{CommitMode, CommitSegment, Committed};
use kalamdb_engine::page::Page;
use kalamdb_engine::segment::{SegmentSummary, SegmentWriter, TableSchema, WriteOptions};

use super::place::{self, Target};
use super::ranges::contains;
use super::table::Table;
use crate::tableam::space::record_free_space;
use crate::tableam::values::TableValues;
use crate::wal;
use crate::worker::signals::with_all_blocked;

/// Segments that become part of the table together at most, and bytes of their files.
const BATCH_SEGMENTS: usize = 64;
const BATCH_BYTES: u64 = 16 << 20;

/// A file that goes when the run ends without storing it.
struct Draft {
    path: PathBuf,
}

impl Drop for Draft {
    fn drop(&mut self) {
        // The engine's sweep finds what stays.
        let _ = fs::remove_file(&self.path);
    }
}

/// A segment that is being written.
pub struct Output<'t> {
    table: &'t Table,
    number: u64,
    partition: u32,
    schema_version: u32,
    draft: Draft,
    writer: SegmentWriter,
}

/// What became of a segment.
pub struct Stored {
    /// Length of the file.
    pub bytes: u64,
    /// What the engine said.
    pub committed: Committed,
    /// Rows of the blocks that are read from it.
    pub rows: u64,
}

impl<'t> Output<'t> {
    /// Begins a segment for rows of one partition.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn begin(table: &'t Table, schema: &TableSchema, options: &WriteOptions, partition: u32) -> Result<Output<'t>> {
        let number = table.client().begin_segment();
        let path = place::draft(table, number)?;
        let file = File::options().write(true).create_new(true).open(&path)?;
        let draft = Draft { path };
        let options = WriteOptions { storage: table.storage.id, segment: number, ..options.clone() };
        // Its thread must not take signals that are meant for the process.
        let writer = with_all_blocked(|| SegmentWriter::create(file, schema.clone(), options))?;
        Ok(Output { table, number, partition, schema_version: schema.version, draft, writer })
    }

    /// Adds a block.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn add(&mut self, block: u32, page: Page<'_>) -> Result<()> {
        let mut values = TableValues::new(self.table.rel, &self.table.storage, &self.table.wait);
        self.writer.add_block(block, page, &mut values)
    }

    /// Bytes so far, about.
    pub fn bytes(&self) -> u64 {
        self.writer.bytes()
    }
}

/// A segment whose file is written, and where it goes.
struct Finished {
    segment: CommitSegment,
    target: Rc<Target>,
    draft: Draft,
}

/// Segments that become part of the table together: each time costs flushes of the log and of the store, which take longer than a small
/// segment does.
pub struct Batch<'t> {
    table: &'t Table,
    finished: Vec<Finished>,
    bytes: u64,
}

impl<'t> Batch<'t> {
    /// A batch without segments.
    pub fn new(table: &'t Table) -> Batch<'t> {
        Batch { table, finished: Vec::new(), bytes: 0 }
    }

    /// Finishes a segment and adds it.
    ///
    /// # Errors
    /// Those of the writer and of the storage.
    pub fn add(&mut self, output: Output<'t>, target: &Rc<Target>, mode: CommitMode) -> Result<()> {
        let Output { table, number, partition, schema_version, draft, writer } = output;
        let summary: SegmentSummary = writer.finish()?;
        self.bytes += summary.bytes;
        let (storage, place) = (table.storage.id, target.choose(table, number)?);
        let segment = CommitSegment { storage, segment: number, place, partition, schema_version, mode, summary };
        self.finished.push(Finished { segment, target: Rc::clone(target), draft });
        Ok(())
    }

    /// Whether more segments would make little difference.
    pub fn is_full(&self) -> bool {
        self.finished.len() >= BATCH_SEGMENTS || self.bytes >= BATCH_BYTES
    }

    /// Stores the segments and makes them part of the table.
    ///
    /// # Errors
    /// Those of the storage and of the engine.
    pub fn commit(&mut self) -> Result<Vec<Stored>> {
        if self.finished.is_empty() {
            return Ok(Vec::new());
        }
        let (table, finished) = (self.table, std::mem::take(&mut self.finished));
        self.bytes = 0;
        // What made a row visible to all may not be on disk yet; once the segment is, nothing tells of it but the log.
        wal::flush(wal::end_lsn());
        let client = table.client();
        client.announce_files(finished.iter().map(|file| (file.segment.segment, file.segment.place.clone())).collect())?;
        for file in &finished {
            file.target.store(table, &file.draft.path, &file.segment.place)?;
        }
        let sizes: Vec<_> = finished.iter().map(|file| (file.segment.summary.bytes, rows_of(&file.segment.summary))).collect();
        let committed = client.commit_segments(finished.into_iter().map(|file| file.segment).collect())?;
        let stored = committed.into_iter().zip(sizes).map(|(committed, (bytes, rows))| {
            forget_room(table, &committed.cold)?;
            let cold = rows.iter().filter(|(block, _)| contains(&committed.cold, *block));
            Ok(Stored { bytes, rows: cold.map(|(_, rows)| u64::from(*rows)).sum(), committed })
        });
        stored.collect()
    }
}

/// The number of rows of each block.
fn rows_of(summary: &SegmentSummary) -> Vec<(u32, u16)> {
    summary.blocks.iter().map(|stub| (stub.block, stub.rows)).collect()
}

/// A cold block takes no rows: inserters need not look at it.
fn forget_room(table: &Table, cold: &[Range<u32>]) -> Result<()> {
    for block in cold.iter().flat_map(Clone::clone) {
        record_free_space(&table.storage, block, 0, &table.wait)?;
    }
    Ok(())
}
