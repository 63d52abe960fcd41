//! Reads a segment: pages of blocks and single values, decoding no more of the file than they need.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef, BinaryArray, RecordBatch, new_empty_array};
use arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelectionPolicy,
};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_field_levels};
use parquet::file::metadata::PageIndexPolicy;

use super::assemble::PageBuilder;
use super::checked::{self, Data};
use super::column::data_type;
use super::compressed::compress_pglz;
use super::footer::{Footer, Identity};
use super::form::RowForm;
use super::input::{Input, Ranges};
use super::pages::GroupPages;
use super::rows::{Columns, NOWHERE, Values};
use super::{BlockStub, FORM_COLUMN, HIDDEN, SegmentSource, SegmentSummary, TID_COLUMN, TableSchema, ValueStub, XMIN_COLUMN};
use crate::error::{Error, Result};
use crate::ids::StorageId;

/// Decoded chunks that are kept: what a few scans at a time need.
const CHUNKS: usize = 4;
/// Chunks of which rows of one block were read that are remembered.
const TOUCHED: usize = 16;

/// What a read cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadCost {
    /// Bytes read from the source.
    pub bytes: u64,
    /// Reads of the source.
    pub reads: u32,
}

/// An open segment; several threads may read it at a time.
pub struct SegmentReader {
    data: Data,
    metadata: ArrowReaderMetadata,
    identity: Identity,
    schema: TableSchema,
    /// The first row of each row group, and the number of rows behind the last.
    groups: Vec<u64>,
    /// The place of each column of the table behind the hidden ones; nothing for dropped ones.
    places: Vec<Option<usize>>,
    kept: Mutex<Kept>,
}

/// What is known of chunks from earlier reads.
#[derive(Default)]
struct Kept {
    /// Chunks that were decoded or are just being, the last one used at the end.
    slots: VecDeque<Arc<Slot>>,
    /// First rows of chunks of which the rows of one block were decoded alone, the last one at the end.
    touched: VecDeque<u64>,
}

impl Kept {
    /// Whether the rows of a chunk are to be decoded all: a neighbour was wanted before, so others will be.
    fn wants_all(&self, chunk: &Range<u64>) -> bool {
        let is_near = |slot: &Arc<Slot>| slot.rows.start == chunk.start || slot.rows.end == chunk.start;
        self.slots.iter().any(is_near) || self.touched.contains(&chunk.start)
    }

    fn touch(&mut self, chunk: &Range<u64>) {
        if self.touched.len() >= TOUCHED {
            self.touched.pop_front();
        }
        self.touched.push_back(chunk.start);
    }
}

/// The place of a chunk; its lock is held while it is decoded, so that those who want the same rows wait instead of decoding them too.
struct Slot {
    rows: Range<u64>,
    chunk: Mutex<Option<Arc<Chunk>>>,
}

/// Rows of a row group, decoded, without the values that are in overflow pages for the rows.
pub struct Chunk {
    rows: Range<u64>,
    pub hidden: RecordBatch,
    /// One for each column that is not dropped.
    pub columns: Vec<Decoded>,
}

/// The values of a column.
pub struct Decoded {
    pub array: ArrayRef,
    /// The place of each row's value in the array, if not every row has one.
    pub places: Option<Vec<u32>>,
}

/// Where the form stands among them.
const FORM: usize = 2;

impl SegmentReader {
    /// Reads a segment's footer.
    ///
    /// # Errors
    /// `Corrupt` when the file is no segment or is damaged, `Unsupported` when a newer version wrote it, and those of the source.
    pub fn open(source: Arc<dyn SegmentSource>) -> Result<SegmentReader> {
        let (length, tail) = checked::read_tail(source.as_ref())?;
        let input = Input::new(source.size(), Ranges::new(vec![(length, tail)]));
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_page_index_policy(PageIndexPolicy::Required);
        let metadata = guarded(|| ArrowReaderMetadata::load(&input, options))?;
        let footer = Footer::of(metadata.metadata());
        footer.check_format()?;
        let (identity, schema) = (footer.identity()?, footer.schema()?);
        let data = Data::new(source, footer.sums()?, length).ok_or_else(|| wrong("its checksums are not those of its data"))?;
        let mut groups = vec![0u64];
        for group in metadata.metadata().row_groups() {
            let rows = u64::try_from(group.num_rows()).map_err(|_| wrong("a row group has a negative number of rows"))?;
            groups.push(groups[groups.len() - 1].saturating_add(rows));
        }
        if groups.last() != Some(&identity.rows) {
            return Err(wrong("its row groups do not have its rows"));
        }
        let places = places_of(&metadata, &schema)?;
        Ok(SegmentReader { data, metadata, identity, schema, groups, places, kept: Mutex::default() })
    }

    /// The columns of its table when it was written.
    pub fn schema(&self) -> &TableSchema {
        &self.schema
    }

    /// The storage it belongs to, and its number there.
    pub fn identity(&self) -> (StorageId, u64) {
        (self.identity.storage, self.identity.segment)
    }

    /// What its writer said of it, from the footer.
    ///
    /// # Errors
    /// `Corrupt` when the footer is damaged.
    pub fn summary(&self) -> Result<SegmentSummary> {
        let (blocks, values) = Footer::of(self.metadata.metadata()).stubs()?;
        let identity = self.identity.clone();
        Ok(SegmentSummary {
            rows: identity.rows,
            bytes: self.data.file_size(),
            hot_bytes: identity.hot_bytes,
            min_tid: identity.min_tid,
            max_tid: identity.max_tid,
            blocks,
            values,
            columns: identity.columns,
        })
    }

    /// Replaces `out` with the compact image of a block's page.
    ///
    /// # Errors
    /// `Corrupt` when the file or the stub is damaged or they do not belong together, and those of the source.
    pub fn build_page(&self, stub: &BlockStub, out: &mut Vec<u8>) -> Result<ReadCost> {
        let mut cost = ReadCost::default();
        out.clear();
        self.check_segment(stub.segment)?;
        let mut builder = PageBuilder::new(stub);
        if stub.rows > 0 {
            self.push_rows(stub, &mut builder, &mut cost)?;
        }
        builder.finish(out)?;
        if crc32c::crc32c(out) != stub.checksum || out.len() != usize::from(stub.image_len) {
            return Err(Error::corrupt(format!("block {} of segment {} has a wrong checksum", stub.block, stub.segment)));
        }
        Ok(cost)
    }

    /// Decodes the rows behind those of a block, if the ones before it were decoded lately: then somebody reads in order.
    ///
    /// # Errors
    /// As [`SegmentReader::build_page`].
    pub fn read_ahead(&self, stub: &BlockStub) -> Result<ReadCost> {
        let mut cost = ReadCost::default();
        let Some(last) = stub.first_row.saturating_add(stub.rows.into()).checked_sub(1).filter(|_| stub.rows > 0) else {
            return Ok(cost);
        };
        let here = self.rows_of_chunk(self.group_of(&(last..last.saturating_add(1)))?, last);
        let next = here.end;
        let in_order = {
            let slots = &self.lock().slots;
            slots.iter().any(|slot| slot.rows.end == here.start) && !slots.iter().any(|slot| slot.rows.contains(&next))
        };
        if in_order && next < self.identity.rows {
            self.chunk(self.group_of(&(next..next + 1))?, next, &mut cost)?;
        }
        Ok(cost)
    }

    /// Reads a large value.
    ///
    /// # Errors
    /// As [`SegmentReader::build_page`].
    pub fn read_value(&self, stub: &ValueStub) -> Result<(Vec<u8>, ReadCost)> {
        let mut cost = ReadCost::default();
        self.check_segment(stub.segment)?;
        let group = self.group_of(&(stub.row..stub.row.saturating_add(1)))?;
        let row = (stub.row - self.groups[group]) as usize;
        let place = usize::from(stub.attnum.unsigned_abs()).wrapping_sub(1);
        let in_file = self.places.get(place).copied().flatten().ok_or_else(|| wrong("a value has no column"))?;
        let batch = self.fetch(group, std::slice::from_ref(&(row..row + 1)), &[FORM, in_file + HIDDEN], &mut cost)?;
        let form = form_of(batch.column(0).as_any().downcast_ref(), 0)?;
        let compressed = form.pointers.iter().any(|pointer| pointer.attnum == stub.attnum && pointer.compressed != 0);
        let value = match form.large.into_iter().find(|(attnum, _)| *attnum == stub.attnum) {
            Some((_, value)) => value,
            None => {
                let value =
                    self.value_of(place, batch.column(1).as_ref(), 0)?.ok_or_else(|| wrong("a large value is missing"))?;
                if compressed { compress_pglz(&value) } else { value }
            }
        };
        if crc32c::crc32c(&value) != stub.checksum || value.len() != stub.length as usize {
            return Err(Error::corrupt(format!("value {} of segment {} has a wrong checksum", stub.value, stub.segment)));
        }
        Ok((value, cost))
    }

    /// Bytes that the open segment takes in memory.
    pub fn memory(&self) -> usize {
        let size = |chunk: &Arc<Chunk>| {
            let columns: usize = chunk.columns.iter().map(|column| column.array.get_array_memory_size()).sum();
            columns + chunk.hidden.get_array_memory_size()
        };
        let kept = self.lock();
        // One that is being decoded counts next time.
        let chunks: usize = kept.slots.iter().filter_map(|slot| slot.chunk.try_lock().ok()?.as_ref().map(size)).sum();
        self.metadata.metadata().memory_size() + self.data.memory() + chunks
    }

    fn check_segment(&self, segment: u64) -> Result<()> {
        if segment == self.identity.segment { Ok(()) } else { Err(wrong("it is not the segment that the stub names")) }
    }

    /// Builds the rows of a block.
    fn push_rows(&self, stub: &BlockStub, builder: &mut PageBuilder<'_>, cost: &mut ReadCost) -> Result<()> {
        let rows = stub.first_row..stub.first_row.saturating_add(stub.rows.into());
        let group = self.group_of(&rows)?;
        let mut offsets = stub.row_offsets().into_iter();
        let mut row = rows.start;
        let (mut body, mut scratch) = (Vec::new(), Vec::new());
        let alone = self.touch(group, &rows);
        while row < rows.end {
            let chunk = if alone { Arc::new(self.decode(group, rows.clone(), cost)?) } else { self.chunk(group, row, cost)? };
            let columns = Columns::of(&self.schema, &self.places, &chunk)?;
            let end = rows.end.min(chunk.rows.end);
            for offset in offsets.by_ref().take((end - row) as usize) {
                let place = (row - chunk.rows.start) as usize;
                if columns.tids.value(place) != i64::from(stub.block) << 16 | i64::from(offset) {
                    return Err(wrong("the rows are not those of the block"));
                }
                builder.push(offset, &columns.row(place, &mut body, &mut scratch)?)?;
                row += 1;
            }
            if row != end {
                return Err(wrong("a block has fewer rows than its stub says"));
            }
        }
        Ok(())
    }

    fn value_of(&self, place: usize, array: &dyn Array, row: usize) -> Result<Option<Vec<u8>>> {
        let mut scratch = Vec::new();
        let values = Values { column: &self.schema.columns[place], array, places: None };
        if values.is_null(row) {
            return Ok(None);
        }
        Ok(Some(values.payload(row, &mut scratch)?.to_vec()))
    }

    /// The row group in which rows lie.
    fn group_of(&self, rows: &Range<u64>) -> Result<usize> {
        let group = self.groups.partition_point(|first| *first <= rows.start).checked_sub(1);
        let group = group.filter(|group| self.groups.get(group + 1).is_some_and(|end| rows.end <= *end));
        group.ok_or_else(|| wrong("the rows lie beyond a row group"))
    }

    /// Whether the rows of a block are to be decoded alone, as nothing near them was wanted lately. The next time it was.
    fn touch(&self, group: usize, rows: &Range<u64>) -> bool {
        let chunks = [self.rows_of_chunk(group, rows.start), self.rows_of_chunk(group, rows.end - 1)];
        let mut kept = self.lock();
        if chunks.iter().any(|chunk| kept.wants_all(chunk)) {
            return false;
        }
        chunks.iter().for_each(|chunk| kept.touch(chunk));
        true
    }

    /// The chunk of a row group with a row.
    fn chunk(&self, group: usize, row: u64, cost: &mut ReadCost) -> Result<Arc<Chunk>> {
        let slot = {
            let slots = &mut self.lock().slots;
            let found = slots.iter().position(|slot| slot.rows.contains(&row)).and_then(|place| slots.remove(place));
            let slot = found.unwrap_or_else(|| {
                if slots.len() >= CHUNKS {
                    slots.pop_front();
                }
                Arc::new(Slot { rows: self.rows_of_chunk(group, row), chunk: Mutex::default() })
            });
            slots.push_back(Arc::clone(&slot));
            slot
        };
        let mut chunk = slot.chunk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chunk) = &*chunk {
            return Ok(Arc::clone(chunk));
        }
        let decoded = Arc::new(self.decode(group, slot.rows.clone(), cost)?);
        *chunk = Some(Arc::clone(&decoded));
        Ok(decoded)
    }

    fn rows_of_chunk(&self, group: usize, row: u64) -> Range<u64> {
        let size = self.identity.chunk_rows.max(1) as u64;
        let first = self.groups[group];
        let start = first + (row - first) / size * size;
        start..start.saturating_add(size).min(self.groups[group + 1])
    }

    /// Decodes rows of a row group.
    fn decode(&self, group: usize, rows: Range<u64>, cost: &mut ReadCost) -> Result<Chunk> {
        let first = self.groups[group];
        let within = (rows.start - first) as usize..(rows.end - first) as usize;
        let live: Vec<i16> = self.schema.columns.iter().filter(|column| !column.dropped).map(|column| column.attnum).collect();
        let is_large = |place: &usize| self.identity.large_columns.contains(&live[*place]);
        let small: Vec<usize> = (0..live.len()).filter(|place| !is_large(place)).collect();
        let roots: Vec<usize> = (0..HIDDEN).chain(small.iter().map(|place| place + HIDDEN)).collect();
        let batch = self.fetch(group, std::slice::from_ref(&within), &roots, cost)?;
        let hidden = batch.project(&[0, 1, 2]).map_err(|_| wrong("a hidden column is missing"))?;
        let mut arrays = batch.columns()[HIDDEN..].iter();
        let forms = hidden.column(FORM).as_any().downcast_ref();
        let mut columns = Vec::with_capacity(live.len());
        for (place, attnum) in live.iter().enumerate() {
            columns.push(match small.binary_search(&place) {
                Ok(_) => {
                    Decoded { array: arrays.next().map(Arc::clone).ok_or_else(|| wrong("a column is missing"))?, places: None }
                }
                Err(_) => self.decode_inline(group, &within, place, *attnum, forms, cost)?,
            });
        }
        Ok(Chunk { rows, hidden, columns })
    }

    /// Decodes the values of a column that stand in their rows; the others may be long, and a page does not have them.
    fn decode_inline(
        &self,
        group: usize,
        within: &Range<usize>,
        place: usize,
        attnum: i16,
        forms: Option<&BinaryArray>,
        cost: &mut ReadCost,
    ) -> Result<Decoded> {
        let mut places = Vec::with_capacity(within.len());
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut count = 0;
        for row in within.clone() {
            let form = form_of(forms, row - within.start)?;
            if form.body.is_some() || form.pointers.iter().any(|pointer| pointer.attnum == attnum) {
                places.push(NOWHERE);
                continue;
            }
            places.push(count);
            count += 1;
            match runs.last_mut() {
                Some(run) if run.end == row => run.end += 1,
                _ => runs.push(row..row + 1),
            }
        }
        let array = if runs.is_empty() {
            new_empty_array(self.metadata.schema().field(place + HIDDEN).data_type())
        } else {
            Arc::clone(self.fetch(group, &runs, &[place + HIDDEN], cost)?.column(0))
        };
        Ok(Decoded { array, places: Some(places) })
    }

    /// Reads the pages that hold rows of some columns of a row group, all at once, and decodes the rows. Columns ascend.
    fn fetch(&self, group: usize, runs: &[Range<usize>], columns: &[usize], cost: &mut ReadCost) -> Result<RecordBatch> {
        let parquet = self.metadata.metadata().file_metadata().schema_descr();
        let ranges = self.ranges(group, runs, |leaf| columns.contains(&parquet.get_column_root_idx(leaf)))?;
        let ranges = self.data.read(ranges)?;
        cost.bytes += ranges.bytes();
        cost.reads += ranges.reads();
        let input = Input::new(self.data.file_size(), ranges);
        let total = (self.groups[group + 1] - self.groups[group]) as usize;
        let count = runs.iter().map(Range::len).sum();
        let batch = guarded(|| {
            let wanted = ProjectionMask::roots(parquet, columns.iter().copied());
            let selection = RowSelection::from_consecutive_ranges(runs.iter().cloned(), total);
            let mut reader = if runs.len() == 1 {
                let levels = parquet_to_arrow_field_levels(parquet, wanted, None)?;
                let pages = GroupPages { input: Arc::new(input), metadata: Arc::clone(self.metadata.metadata()), group };
                ParquetRecordBatchReader::try_new_with_row_groups(&levels, &pages, count, Some(selection))?
            } else {
                // Pages between the runs were not read: rows there must be skipped, not decoded and left out.
                ParquetRecordBatchReaderBuilder::new_with_metadata(input, self.metadata.clone())
                    .with_row_groups(vec![group])
                    .with_projection(wanted)
                    .with_row_selection(selection)
                    .with_row_selection_policy(RowSelectionPolicy::Selectors)
                    .with_batch_size(count)
                    .build()?
            };
            Ok(reader.next().transpose()?)
        })?;
        batch
            .filter(|batch| batch.num_rows() == count && batch.num_columns() == columns.len())
            .ok_or_else(|| wrong("it has fewer rows than its footer says"))
    }

    /// The parts of the file with the pages of some rows of a row group, of some of Parquet's columns.
    fn ranges(&self, group: usize, runs: &[Range<usize>], wanted: impl Fn(usize) -> bool) -> Result<Vec<Range<u64>>> {
        let metadata = self.metadata.metadata();
        let offsets =
            metadata.offset_index().and_then(|index| index.get(group)).ok_or_else(|| wrong("it has no offset index"))?;
        let group = metadata.row_group(group);
        let position = |value: i64| u64::try_from(value).map_err(|_| wrong("a page has a negative position"));
        let mut ranges = Vec::new();
        for (_, (chunk, pages)) in group.columns().iter().zip(offsets).enumerate().filter(|(leaf, _)| wanted(*leaf)) {
            let pages = pages.page_locations();
            if let (Some(first), Some(dictionary)) = (pages.first(), chunk.dictionary_page_offset()) {
                ranges.push(position(dictionary)?..position(first.offset)?);
            }
            for (number, page) in pages.iter().enumerate() {
                let end = pages.get(number + 1).map_or(group.num_rows(), |next| next.first_row_index);
                let (begin, end) = (position(page.first_row_index)? as usize, position(end)? as usize);
                let next = runs.partition_point(|run| run.end <= begin);
                if runs.get(next).is_some_and(|run| run.start < end) {
                    let start = position(page.offset)?;
                    ranges.push(start..start.saturating_add(position(page.compressed_page_size.into())?));
                }
            }
        }
        Ok(ranges)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the hidden column says of a row.
///
/// # Errors
/// `Corrupt` when it cannot be read.
pub fn form_of(forms: Option<&BinaryArray>, row: usize) -> Result<RowForm> {
    let forms = forms.ok_or_else(|| wrong("a hidden column is missing"))?;
    if forms.is_null(row) { Ok(RowForm::default()) } else { RowForm::decode(forms.value(row)) }
}

/// Where the table's columns are behind the hidden ones; refuses a file whose columns have other types than its footer says.
fn places_of(metadata: &ArrowReaderMetadata, schema: &TableSchema) -> Result<Vec<Option<usize>>> {
    let fields = metadata.schema().fields();
    let check = |place: usize, name: &str, wanted: &DataType| match fields.get(place) {
        Some(field) if field.name() == name && same_type(field.data_type(), wanted) => Ok(()),
        _ => Err(wrong("a column is missing or has another type")),
    };
    check(0, TID_COLUMN, &DataType::Int64)?;
    check(1, XMIN_COLUMN, &DataType::Int64)?;
    check(FORM, FORM_COLUMN, &DataType::Binary)?;
    let mut next = 0;
    let mut places = Vec::with_capacity(schema.columns.len());
    for column in &schema.columns {
        if column.dropped {
            places.push(None);
            continue;
        }
        check(HIDDEN + next, &column.name, &data_type(&column.kind))?;
        places.push(Some(next));
        next += 1;
    }
    if fields.len() == HIDDEN + next { Ok(places) } else { Err(wrong("it has more columns than its table")) }
}

/// Whether two types hold the same values; names of list elements do not matter.
fn same_type(found: &DataType, wanted: &DataType) -> bool {
    match (found, wanted) {
        (DataType::List(found), DataType::List(wanted)) => same_type(found.data_type(), wanted.data_type()),
        (found, wanted) => found == wanted,
    }
}

/// Runs the Parquet library. Its bytes have been verified; what it stumbles over all the same was written wrong.
fn guarded<T>(work: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::corrupt("the segment cannot be decoded").with_source(error)),
        Err(_) => Err(wrong("the decoder stumbled over it")),
    }
}

/// The error of a segment that says what cannot be.
#[cold]
pub fn wrong(what: &str) -> Error {
    Error::corrupt("the segment is damaged").with_detail(crate::error::sentence(what))
}
