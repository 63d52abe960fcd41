//! Copies blocks into new segments, partition after partition: what a flush and a compaction have in common.

use std::rc::Rc;

use kalamdb_engine::Result;
use kalamdb_engine::cold::CommitMode;
use kalamdb_engine::page::PAGE_SIZE;
use kalamdb_engine::segment::{TableSchema, WriteOptions};

use super::eligible::{Examiner, Found};
use super::flush::FlushOptions;
use super::output::{Batch, Output};
use super::pace::Pace;
use super::place::Target;
use super::table::Table;
use super::{Outcome, Progress, columns};
use crate::error::OrRaise;

/// A run over a table.
pub struct Copying<'a> {
    pub table: &'a Table,
    pub pace: Pace,
    pub outcome: Outcome,
    options: &'a FlushOptions,
    schema: TableSchema,
    write: WriteOptions,
    examiner: Examiner,
    progress: &'a mut dyn Progress,
    /// Rows and bytes of pages that were copied.
    copied: (u64, u64),
    /// Finished segments that are not part of the table yet.
    batch: Batch<'a>,
}

impl<'a> Copying<'a> {
    /// Begins a run.
    pub fn new(table: &'a Table, options: &'a FlushOptions, progress: &'a mut dyn Progress) -> Copying<'a> {
        Copying {
            table,
            pace: Pace::new(),
            outcome: Outcome::default(),
            options,
            schema: columns::describe(table.rel, options.bloom_columns.as_deref()),
            write: options.write_options(table),
            examiner: Examiner::new(table.rel),
            progress,
            copied: (0, 0),
            batch: Batch::new(table),
        }
    }

    /// Tells how many blocks there are to look at.
    pub fn announce(&mut self, blocks: usize) {
        self.progress.total(0, (blocks * PAGE_SIZE) as u64);
    }

    /// Copies blocks of a partition, in ascending order, as far as `look` finds them fit. Ends early when somebody waits for the table.
    pub fn copy(
        &mut self,
        partition: u32,
        blocks: &[u32],
        mode: &CommitMode,
        look: impl Fn(&mut Examiner, &Table, u32) -> Result<Found>,
    ) {
        let mut output: Option<Output<'a>> = None;
        let mut target = None;
        for (place, &block) in blocks.iter().enumerate() {
            self.table.read_ahead(blocks, place);
            self.pace.work(PAGE_SIZE);
            let pin = match look(&mut self.examiner, self.table, block).or_raise() {
                Found::Nothing => continue,
                Found::Busy => {
                    self.outcome.left_out += 1;
                    continue;
                }
                Found::Ready(pin) => pin,
            };
            if target.is_none() {
                target = Some(Rc::new(Target::of(self.table, self.options.storage.as_deref(), self.examiner.page())));
            }
            let current = match &mut output {
                Some(current) => current,
                None => output.insert(Output::begin(self.table, &self.schema, &self.write, partition).or_raise()),
            };
            let added = current.add(block, self.examiner.page());
            drop(pin);
            added.or_raise();
            self.note_copied();
            if self.table.is_wanted() {
                self.outcome.yielded = true;
                break;
            }
            // The file of a partition that goes on.
            if output.as_ref().is_some_and(|output| output.bytes() >= self.options.segment_bytes) {
                self.finish(output.take(), target.as_ref(), mode);
                self.commit();
            }
        }
        self.finish(output, target.as_ref(), mode);
        if self.batch.is_full() || self.outcome.yielded {
            self.commit();
        }
    }

    fn note_copied(&mut self) {
        let page = self.examiner.page();
        self.copied.0 += page.versions().count() as u64;
        self.copied.1 += PAGE_SIZE as u64;
        self.progress.done(self.copied.0, self.copied.1);
    }

    fn finish(&mut self, output: Option<Output<'a>>, target: Option<&Rc<Target>>, mode: &CommitMode) {
        if let (Some(output), Some(target)) = (output, target) {
            self.batch.add(output, target, mode.clone()).or_raise();
        }
    }

    /// Makes what was copied part of the table.
    pub fn commit(&mut self) {
        for stored in self.batch.commit().or_raise() {
            self.outcome.note(&stored);
        }
    }
}
