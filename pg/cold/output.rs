//! A segment in the making: a file of this process until it is finished, then stored, then part of the table.

use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;

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

    /// Stores the segment and makes it part of the table.
    ///
    /// # Errors
    /// Those of the location and of the engine.
    pub fn commit(self, target: &Target, mode: CommitMode) -> Result<Stored> {
        let Output { table, number, partition, schema_version, draft, writer } = self;
        let summary: SegmentSummary = writer.finish()?;
        // What made a row visible to all may not be on disk yet; once the segment is, nothing tells of it but the log.
        wal::flush(wal::end_lsn());
        let place = target.store(table, number, &draft.path)?;
        let bytes = summary.bytes;
        let rows_of: Vec<(u32, u16)> = summary.blocks.iter().map(|stub| (stub.block, stub.rows)).collect();
        let commit =
            CommitSegment { storage: table.storage.id, segment: number, place, partition, schema_version, mode, summary };
        let committed = table.client().commit_segment(commit)?;
        forget_room(table, &committed.cold)?;
        let rows = rows_of.iter().filter(|(block, _)| contains(&committed.cold, *block)).map(|(_, rows)| u64::from(*rows)).sum();
        Ok(Stored { bytes, committed, rows })
    }
}

/// A cold block takes no rows: inserters need not look at it.
fn forget_room(table: &Table, cold: &[Range<u32>]) -> Result<()> {
    for block in cold.iter().flat_map(Clone::clone) {
        record_free_space(&table.storage, block, 0, &table.wait)?;
    }
    Ok(())
}
