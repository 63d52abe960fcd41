//! Reads a segment: pages of blocks and single values, decoding no more of the file than they need.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef, BinaryArray, Int64Array, RecordBatch, new_empty_array};
use arrow::datatypes::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection};
use parquet::file::metadata::PageIndexPolicy;

use super::assemble::{PageBuilder, Row};
use super::checked::{self, Data};
use super::column::{data_type, value_at};
use super::compressed::compress_pglz;
use super::footer::{Footer, Identity};
use super::form::RowForm;
use super::input::{Input, Ranges};
use super::tuple::{self, Pointer};
use super::{BlockStub, FORM_COLUMN, SegmentSource, SegmentSummary, TID_COLUMN, TableSchema, ValueStub, XMIN_COLUMN, value};
use crate::error::{Error, Result};
use crate::ids::StorageId;

/// Decoded chunks that are kept: what a few scans at a time need.
const CHUNKS: usize = 4;

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
    /// Chunks that were decoded, the last one used at the end.
    kept: Mutex<VecDeque<Arc<Chunk>>>,
}

/// Rows of a row group, decoded, without the values that are in overflow pages for the rows.
struct Chunk {
    rows: Range<u64>,
    hidden: RecordBatch,
    /// One for each column that is not dropped.
    columns: Vec<Decoded>,
}

/// The values of a column.
struct Decoded {
    array: ArrayRef,
    /// The place of each row's value in the array, if not every row has one.
    places: Option<Vec<u32>>,
}

impl Decoded {
    fn place(&self, row: usize) -> Option<usize> {
        match &self.places {
            None => Some(row),
            Some(places) => places.get(row).copied().filter(|place| *place != NOWHERE).map(|place| place as usize),
        }
    }
}

/// The place of a value that was not decoded.
const NOWHERE: u32 = u32::MAX;
/// Hidden columns, which stand before the table's.
const HIDDEN: usize = 3;
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
            let group = self.group_of(&(stub.first_row..stub.first_row.saturating_add(stub.rows.into())))?;
            let mut body = Vec::new();
            let mut chunk: Option<Arc<Chunk>> = None;
            for (row, offset) in (stub.first_row..).zip(stub.row_offsets()) {
                let chunk = match &chunk {
                    Some(chunk) if chunk.rows.contains(&row) => chunk,
                    _ => &*chunk.insert(self.chunk(group, row, &mut cost)?),
                };
                let columns = Columns::of(chunk)?;
                let place = (row - chunk.rows.start) as usize;
                if columns.tids.value(place) != i64::from(stub.block) << 16 | i64::from(offset) {
                    return Err(wrong("the rows are not those of the block"));
                }
                self.push_row(&columns, place, offset, &mut body, &mut builder)?;
            }
        }
        builder.finish(out)?;
        if crc32c::crc32c(out) != stub.checksum || out.len() != usize::from(stub.image_len) {
            return Err(Error::corrupt(format!("block {} of segment {} has a wrong checksum", stub.block, stub.segment)));
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
        let chunks: usize = self.lock().iter().map(size).sum();
        self.metadata.metadata().memory_size() + self.data.memory() + chunks
    }

    fn check_segment(&self, segment: u64) -> Result<()> {
        if segment == self.identity.segment { Ok(()) } else { Err(wrong("it is not the segment that the stub names")) }
    }

    /// Builds a row and adds it to its page.
    fn push_row(
        &self,
        columns: &Columns<'_>,
        row: usize,
        offset: u16,
        body: &mut Vec<u8>,
        builder: &mut PageBuilder<'_>,
    ) -> Result<()> {
        let form = columns.form(row)?;
        let natts = form.natts.map_or(self.schema.columns.len(), usize::from);
        let table = self.schema.columns.get(..natts).ok_or_else(|| wrong("a row has more columns than its table"))?;
        let infomask = match form.body {
            Some((infomask, stored)) => {
                *body = stored;
                infomask
            }
            None => {
                let mut values: Vec<Option<Vec<u8>>> = Vec::with_capacity(natts);
                for (place, column) in table.iter().enumerate() {
                    let pointer = form.pointers.iter().find(|pointer| pointer.attnum == column.attnum);
                    values.push(match pointer {
                        Some(pointer) => Some(Pointer::of(pointer, self.schema.table_oid).to_bytes().to_vec()),
                        None => self.payload(columns, place, row)?.map(|payload| {
                            let mut raw = Vec::with_capacity(payload.len() + tuple::VARLENA);
                            tuple::put_header(column.len, column.packed, &payload, &mut raw);
                            raw
                        }),
                    });
                }
                super::assemble::body_of(table, &values, body)
            }
        };
        builder.push(
            offset,
            &Row {
                xmin: columns.xmins.value(row) as u64,
                heap_only: form.heap_only,
                updated: form.updated,
                natts: natts as u16,
                infomask: infomask & tuple::DERIVED_BITS,
                body,
            },
        )
    }

    /// A column's value as its row stores it, without a header.
    fn payload(&self, columns: &Columns<'_>, place: usize, row: usize) -> Result<Option<Vec<u8>>> {
        let Some(in_file) = self.places.get(place).copied().flatten() else { return Ok(None) };
        let column = &columns.table[in_file];
        let row = column.place(row).ok_or_else(|| wrong("a value in overflow pages has no number"))?;
        self.value_of(place, column.array.as_ref(), row)
    }

    fn value_of(&self, place: usize, array: &dyn Array, row: usize) -> Result<Option<Vec<u8>>> {
        let column = &self.schema.columns[place];
        if array.is_null(row) {
            return Ok(None);
        }
        let mut payload = Vec::new();
        value_at(&column.kind, array, row)
            .and_then(|value| value::write(&column.kind, column.len, &value, &mut payload))
            .ok_or_else(|| wrong("a value is not of its column's type"))?;
        Ok(Some(payload))
    }

    /// The row group in which rows lie.
    fn group_of(&self, rows: &Range<u64>) -> Result<usize> {
        let group = self.groups.partition_point(|first| *first <= rows.start).checked_sub(1);
        let group = group.filter(|group| self.groups.get(group + 1).is_some_and(|end| rows.end <= *end));
        group.ok_or_else(|| wrong("the rows lie beyond a row group"))
    }

    /// The chunk of a row group with a row.
    fn chunk(&self, group: usize, row: u64, cost: &mut ReadCost) -> Result<Arc<Chunk>> {
        {
            let mut kept = self.lock();
            if let Some(place) = kept.iter().position(|chunk| chunk.rows.contains(&row)) {
                let chunk = kept.remove(place).ok_or_else(|| Error::internal("a chunk is gone"))?;
                kept.push_back(Arc::clone(&chunk));
                return Ok(chunk);
            }
        }
        let size = self.identity.chunk_rows.max(1) as u64;
        let first = self.groups[group];
        let start = first + (row - first) / size * size;
        let chunk = Arc::new(self.decode(group, start..start.saturating_add(size).min(self.groups[group + 1]), cost)?);
        let mut kept = self.lock();
        if kept.len() >= CHUNKS {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&chunk));
        Ok(chunk)
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
            let mut reader = ParquetRecordBatchReaderBuilder::new_with_metadata(input, self.metadata.clone())
                .with_row_groups(vec![group])
                .with_projection(ProjectionMask::roots(parquet, columns.iter().copied()))
                .with_row_selection(RowSelection::from_consecutive_ranges(runs.iter().cloned(), total))
                .with_batch_size(count)
                .build()?;
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

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Chunk>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The columns of a chunk.
struct Columns<'a> {
    table: &'a [Decoded],
    tids: &'a Int64Array,
    xmins: &'a Int64Array,
    forms: &'a BinaryArray,
}

impl<'a> Columns<'a> {
    fn of(window: &'a Chunk) -> Result<Columns<'a>> {
        fn hidden<'b, T: 'static>(batch: &'b RecordBatch, name: &str) -> Result<&'b T> {
            let column = batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref());
            column.ok_or_else(|| wrong("a hidden column is missing"))
        }
        Ok(Columns {
            table: &window.columns,
            tids: hidden(&window.hidden, TID_COLUMN)?,
            xmins: hidden(&window.hidden, XMIN_COLUMN)?,
            forms: hidden(&window.hidden, FORM_COLUMN)?,
        })
    }

    fn form(&self, row: usize) -> Result<RowForm> {
        form_of(Some(self.forms), row)
    }
}

fn form_of(forms: Option<&BinaryArray>, row: usize) -> Result<RowForm> {
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

#[cold]
fn wrong(what: &str) -> Error {
    Error::corrupt("the segment is damaged").with_detail(crate::error::sentence(what))
}
