//! Writes a segment: pages in, a Parquet file and its stubs out.

use std::borrow::Cow;
use std::fs::File;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, Schema};
use parquet::file::metadata::RowGroupMetaData;

use super::assemble::{PageBuilder, Row};
use super::checked::Summing;
use super::column::{self, ColumnBuilder};
use super::encoder::{Encoder, Layout, Work, failed};
use super::footer::{self, Identity};
use super::form::{RowForm, ValuePointer};
use super::tuple::{self, Attribute, Pointer, Stored};
use super::value::{self, Value};
use super::{
    BlockStub, Column, ColumnKind, ColumnSummary, FORM_COLUMN, HIDDEN, LargeValues, SegmentSummary, TID_COLUMN, TableSchema,
    ValueStub, WriteOptions, XMIN_COLUMN, compressed, statistics,
};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Lsn;
use crate::page::infomask::{HEAP_ONLY_TUPLE, HEAP_UPDATED};
use crate::page::{Page, Version};

/// Encoded bytes of a row group at which it ends before it has its rows: bounds the memory.
const GROUP_BYTES: usize = 64 << 20;
/// Bytes of values that are collected before they are encoded.
const BATCH_BYTES: usize = 32 << 20;
/// The longest value that a column takes: the columns of a batch have offsets of 32 bits.
const VALUE_BYTES: usize = 1 << 30;
/// What the rows of a chunk, which are decoded together to look one of them up, take in their pages.
const CHUNK_BYTES: usize = 512 << 10;
/// The least and the most rows of a chunk.
const CHUNK_ROWS: (usize, usize) = (64, 2048);
/// Segments with fewer rows have no bloom filters: they are read as fast as the filters are.
const BLOOM_ROWS: u64 = 1024;

/// A segment that is being written. After an error it is of no more use.
pub struct SegmentWriter {
    file: File,
    schema: TableSchema,
    options: WriteOptions,
    encoder: Encoder,
    /// Whether the encoder knows how: that takes a look at the first values.
    is_open: bool,
    tids: ColumnBuilder,
    xmins: ColumnBuilder,
    forms: ColumnBuilder,
    /// One for each column that is not dropped.
    builders: Vec<(usize, ColumnBuilder)>,
    /// Rows of a chunk, which is a page of each column.
    chunk_rows: usize,
    chunk_filled: usize,
    batch_rows: usize,
    batch_bytes: usize,
    group_rows: usize,
    rows: u64,
    hot_bytes: u64,
    blocks: Vec<BlockStub>,
    values: Vec<ValueStub>,
    exceptions: Vec<u64>,
    nulls: Vec<u64>,
    /// Whether some row has its value elsewhere.
    large: Vec<bool>,
    /// Whether all blocks have been added.
    is_whole: bool,
    scratch: Vec<u8>,
}

/// A row between its old page and the file.
struct WrittenRow<'p> {
    offset: u16,
    xmin: u64,
    natts: u16,
    infomask: u16,
    body: Cow<'p, [u8]>,
    form: RowForm,
}

impl SegmentWriter {
    /// Begins a segment in an empty file. Starts a thread, which gets the signal mask of this one.
    ///
    /// # Errors
    /// `InvalidInput` when a column has the name of a hidden one, `Io` from the file, `OutOfMemory` when there can be no more threads.
    pub fn create(file: File, schema: TableSchema, options: WriteOptions) -> Result<SegmentWriter> {
        let live = || schema.columns.iter().enumerate().filter(|(_, column)| !column.dropped);
        if let Some((_, column)) = live().find(|(_, column)| [TID_COLUMN, XMIN_COLUMN, FORM_COLUMN].contains(&&*column.name)) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("column \"{}\" keeps the table from cold storage", column.name),
            )
            .with_detail("Segments have a column of this name of their own.")
            .with_hint("Rename the column."));
        }
        let mut fields = vec![
            Field::new(TID_COLUMN, DataType::Int64, false),
            Field::new(XMIN_COLUMN, DataType::Int64, false),
            Field::new(FORM_COLUMN, DataType::Binary, true),
        ];
        fields.extend(live().map(|(_, column)| column::field(column)));
        let builders = live().map(|(place, column)| (place, ColumnBuilder::new(&column.kind))).collect();
        let encoder = Encoder::start(Summing::new(file.try_clone()?), Arc::new(Schema::new(fields)))?;
        Ok(SegmentWriter {
            file,
            encoder,
            is_open: false,
            tids: ColumnBuilder::new(&ColumnKind::Int8),
            xmins: ColumnBuilder::new(&ColumnKind::Int8),
            forms: ColumnBuilder::new(&ColumnKind::Bytea),
            builders,
            chunk_rows: CHUNK_ROWS.1,
            chunk_filled: 0,
            batch_rows: 0,
            batch_bytes: 0,
            group_rows: 0,
            rows: 0,
            hot_bytes: 0,
            blocks: Vec::new(),
            values: Vec::new(),
            exceptions: vec![0; schema.columns.len()],
            nulls: vec![0; schema.columns.len()],
            large: vec![false; schema.columns.len()],
            is_whole: false,
            scratch: Vec::new(),
            schema,
            options,
        })
    }

    /// Adds a block; blocks come in ascending order, and every version of the page is one that goes into a segment.
    ///
    /// # Errors
    /// `Corrupt` when a row does not suit the columns, and what `values` and the file answer.
    pub fn add_block(&mut self, block: u32, page: Page<'_>, values: &mut dyn LargeValues) -> Result<()> {
        let count = page.versions().count();
        if self.group_rows > 0 && (self.group_rows + count > self.options.row_group_rows || self.group_bytes() > GROUP_BYTES) {
            self.end_group()?;
        }
        if self.rows == 0 && count > 0 {
            let by_length = CHUNK_BYTES * count / page.compact_len();
            self.chunk_rows = self.options.page_rows.unwrap_or(by_length).clamp(CHUNK_ROWS.0, CHUNK_ROWS.1);
        }
        let mut stub = self.lines_of(block, page, count as u16);
        let mut rows = Vec::with_capacity(count);
        let mut attributes = Vec::with_capacity(self.schema.columns.len());
        for (offset, version) in page.versions() {
            tuple::attributes(&self.schema.columns, version, &mut attributes)?;
            let row = self.convert((block, offset), version, &attributes, values)?;
            self.push(block, &row);
            rows.push(row);
            // Pages end with the chunk, however many batches it takes.
            if self.chunk_filled == self.chunk_rows {
                self.chunk_filled = 0;
                self.write_batch()?;
            } else if self.batch_bytes > BATCH_BYTES {
                self.write_batch()?;
            }
        }
        self.complete(&mut stub, &rows)?;
        self.blocks.push(stub);
        self.hot_bytes += page.compact_len() as u64;
        Ok(())
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes so far, with what is encoded and not yet in the file.
    pub fn bytes(&self) -> u64 {
        self.encoder.bytes() as u64
    }

    /// Ends the segment. The file is complete, and not yet safe from a failure of the machine.
    ///
    /// # Errors
    /// Those of the file.
    pub fn finish(mut self) -> Result<SegmentSummary> {
        self.is_whole = true;
        self.end_group()?;
        self.open(&[])?;
        let mut sink = self.encoder.finish()?;
        sink.sync()?;
        let (length, sums) = (sink.bytes_written() as u64, sink.inner_mut().end_data());
        let (first, last) = (self.blocks.iter().find(|stub| stub.rows > 0), self.blocks.iter().rfind(|stub| stub.rows > 0));
        let tid = |stub: &BlockStub, offset: Option<&u16>| u64::from(stub.block) << 16 | u64::from(offset.copied().unwrap_or(0));
        let large = self.schema.columns.iter().zip(&self.large);
        let large_columns = large.filter(|(_, large)| **large).map(|(column, _)| column.attnum).collect();
        let identity = Identity {
            storage: self.options.storage,
            segment: self.options.segment,
            rows: self.rows,
            hot_bytes: self.hot_bytes,
            min_tid: first.map_or(0, |stub| tid(stub, stub.row_offsets().first())),
            max_tid: last.map_or(0, |stub| tid(stub, stub.row_offsets().last())),
            columns: self.summaries(sink.flushed_row_groups()),
            large_columns,
            chunk_rows: self.chunk_rows,
        };
        let data = footer::Data { length, sums: &sums };
        for entry in footer::entries(&identity, &self.schema, (&self.blocks, &self.values), data)? {
            sink.append_key_value_metadata(entry);
        }
        sink.finish().map_err(failed)?;
        sink.inner_mut().seal(length)?;
        Ok(SegmentSummary {
            rows: self.rows,
            bytes: self.file.metadata()?.len(),
            hot_bytes: self.hot_bytes,
            min_tid: identity.min_tid,
            max_tid: identity.max_tid,
            blocks: self.blocks,
            values: self.values,
            columns: identity.columns,
        })
    }

    fn summaries(&self, groups: &[RowGroupMetaData]) -> Vec<ColumnSummary> {
        let live = self.schema.columns.iter().enumerate().filter(|(_, column)| !column.dropped);
        live.map(|(place, column)| {
            let exceptions = self.exceptions[place];
            // A value that the column does not have may lie beyond its bounds.
            let (min, max) = if exceptions == 0 { statistics::bounds_of(groups, column) } else { (None, None) };
            ColumnSummary { attnum: column.attnum, min, max, nulls: self.nulls[place], exceptions }
        })
        .collect()
    }

    /// The stub of a block, but for what is known only when the page is built again.
    fn lines_of(&self, block: u32, page: Page<'_>, rows: u16) -> BlockStub {
        let mut stub = BlockStub {
            block,
            segment: self.options.segment,
            first_row: self.rows,
            rows,
            lsn: page.lsn(),
            partition: page.partition(),
            max_offset: page.max_offset(),
            ..BlockStub::default()
        };
        for offset in 1..=page.max_offset() {
            let line = page.line(offset);
            if line.is_dead() {
                stub.dead.push(offset);
            } else if line.is_redirect() {
                stub.redirects.push((offset, line.redirect()));
            } else if !line.is_normal() {
                stub.unused.push(offset);
            }
        }
        stub
    }

    /// Builds the page that a reader will build, for its checksum.
    fn complete(&mut self, stub: &mut BlockStub, rows: &[WrittenRow<'_>]) -> Result<()> {
        let image = &mut self.scratch;
        image.clear();
        let mut builder = PageBuilder::new(stub);
        for row in rows {
            let form = &row.form;
            builder.push(
                row.offset,
                &Row {
                    xmin: row.xmin,
                    heap_only: form.heap_only,
                    updated: form.updated,
                    natts: row.natts,
                    infomask: row.infomask,
                    body: &row.body,
                },
            )?;
        }
        builder.finish_new(image)?;
        let (checksum, length) = (crc32c::crc32c(image), image.len());
        stub.checksum = checksum;
        stub.image_len = u16::try_from(length).map_err(|_| Error::internal("the image of a page is longer than a page"))?;
        Ok(())
    }

    /// Adds a row's values to the columns, and says what they do not tell.
    fn convert<'p>(
        &mut self,
        (block, offset): (u32, u16),
        version: Version<'p>,
        attributes: &[Option<Attribute<'p>>],
        values: &mut dyn LargeValues,
    ) -> Result<WrittenRow<'p>> {
        let header = version.header();
        let natts = attributes.len();
        let mut form = RowForm {
            heap_only: header.infomask2 & HEAP_ONLY_TUPLE != 0,
            updated: header.infomask & HEAP_UPDATED != 0,
            natts: (natts != self.schema.columns.len()).then_some(natts as u16),
            ..RowForm::default()
        };
        // The places of values that stand elsewhere, with their pointers.
        let mut pointers: Vec<(usize, [u8; tuple::POINTER_LEN])> = Vec::new();
        let mut derived = true;
        for number in 0..self.builders.len() {
            let place = self.builders[number].0;
            match attributes.get(place).copied().flatten() {
                None => {
                    self.nulls[place] += 1;
                    self.builders[number].1.push_null();
                }
                Some(Attribute { raw, stored: Stored::Inline(payload) }) => {
                    derived &= self.push_inline(number, raw, payload);
                }
                Some(attribute) => match self.push_large(block, number, attribute, values, &mut form)? {
                    Some(pointer) => pointers.push((place, pointer.to_bytes())),
                    None => derived = false,
                },
            }
        }
        let columns = &self.schema.columns[..natts];
        let raw = |place: usize, keep_dropped: bool| -> Option<&[u8]> {
            if columns[place].dropped && !keep_dropped {
                return None;
            }
            match pointers.iter().find(|(pointed, _)| *pointed == place) {
                Some((_, pointer)) => Some(pointer.as_slice()),
                None => attributes[place].map(|attribute| attribute.raw),
            }
        };
        let body = &mut self.scratch;
        let mut infomask = tuple::build_body(columns, |place| raw(place, false), body);
        // What was in a column that is gone goes too, unless its overflow pages would lose the row that frees them, or the
        // bitmap with one more null would make the row longer than its page has room for.
        let names_value = |(column, attribute): (&Column, &Option<Attribute<'_>>)| {
            column.dropped && attribute.is_some_and(|attribute| matches!(attribute.stored, Stored::Elsewhere(_)))
        };
        if body.len() > version.body().len() || columns.iter().zip(attributes).any(names_value) {
            infomask = tuple::build_body(columns, |place| raw(place, true), body);
            derived = false;
        }
        if !derived {
            form.body = Some((infomask, body.clone()));
        }
        let body = if *body == version.body() { Cow::Borrowed(version.body()) } else { Cow::Owned(body.clone()) };
        Ok(WrittenRow { offset, xmin: header.xmin, natts: natts as u16, infomask, body, form })
    }

    /// Adds a value that stands in its row; whether the column leads back to it.
    fn push_inline(&mut self, number: usize, raw: &[u8], payload: &[u8]) -> bool {
        let (place, builder) = &mut self.builders[number];
        let column = &self.schema.columns[*place];
        self.batch_bytes += raw.len();
        let Some(value) = value::exact(&column.kind, column.len, payload, &mut self.scratch) else {
            builder.push_null();
            self.exceptions[*place] += 1;
            return false;
        };
        builder.push(&value);
        tuple::has_usual_header(column.len, column.packed, raw, payload)
    }

    /// Adds a value that stands elsewhere or compressed; the pointer that its row has from now on, or nothing if the row keeps
    /// what it has.
    fn push_large(
        &mut self,
        block: u32,
        number: usize,
        attribute: Attribute<'_>,
        values: &mut dyn LargeValues,
        form: &mut RowForm,
    ) -> Result<Option<Pointer>> {
        let wrong = || Error::corrupt("a compressed value cannot be uncompressed");
        // What the chunks have: their bytes never change, as pointers to them are under way in running statements.
        let (stored, compressed, payload) = match attribute.stored {
            Stored::Elsewhere(pointer) => {
                let stored = values.fetch(pointer.value)?;
                if pointer.is_compressed() {
                    let payload = compressed::uncompress(&stored.bytes).ok_or_else(wrong)?;
                    (Some((pointer.value, stored.references, stored.lsn)), Some((pointer.extinfo, stored.bytes)), payload)
                } else {
                    (Some((pointer.value, stored.references, stored.lsn)), None, stored.bytes)
                }
            }
            // Nobody points to it. A value that is shorter than a pointer stays.
            Stored::Compressed(bytes) => {
                let shorter = attribute.raw.len() >= tuple::POINTER_LEN;
                let stored = if shorter { Some((values.allocate()?, 1, Lsn::INVALID)) } else { None };
                (stored, None, compressed::uncompress(bytes).ok_or_else(wrong)?)
            }
            Stored::Inline(_) => return Err(Error::internal("a value in its row was taken for a large one")),
        };
        let length = u32::try_from(payload.len()).map_err(|_| wrong())?;
        let (place, builder) = &mut self.builders[number];
        let column = &self.schema.columns[*place];
        self.large[*place] = true;
        self.batch_bytes += payload.len();
        let value = value::exact(&column.kind, column.len, &payload, &mut self.scratch);
        let value = value.filter(|value| value.text_len() <= VALUE_BYTES);
        match &value {
            Some(value) => builder.push(value),
            None => {
                builder.push_null();
                self.exceptions[*place] += 1;
            }
        }
        let Some((number, references, lsn)) = stored else { return Ok(None) };
        let follows =
            value.is_some() && compressed.as_ref().is_none_or(|(_, bytes)| compressed::compress_pglz(&payload) == *bytes);
        let extinfo = compressed.as_ref().map_or(0, |(extinfo, _)| *extinfo);
        let bytes = compressed.map_or(payload, |(_, bytes)| bytes);
        let pointer = ValuePointer { attnum: column.attnum, value: number, length, compressed: extinfo };
        form.pointers.push(pointer);
        self.values.push(ValueStub {
            value: number,
            segment: self.options.segment,
            block,
            row: self.rows,
            attnum: column.attnum,
            length: u32::try_from(bytes.len()).map_err(|_| wrong())?,
            references,
            lsn,
            checksum: crc32c::crc32c(&bytes),
        });
        if !follows {
            let all = form.large.iter().map(|(_, value)| value.len()).sum::<usize>() + bytes.len();
            if all > VALUE_BYTES + VALUE_BYTES / 2 {
                return Err(Error::new(ErrorKind::LimitExceeded, "the large values of a row are too long for a segment"));
            }
            self.batch_bytes += bytes.len();
            form.large.push((column.attnum, bytes));
        }
        Ok(Some(Pointer::of(&pointer, self.schema.table_oid)))
    }

    /// Adds a row's hidden columns; its values are there already.
    fn push(&mut self, block: u32, row: &WrittenRow<'_>) {
        self.tids.push(&Value::Int64(i64::from(block) << 16 | i64::from(row.offset)));
        self.xmins.push(&Value::Int64(row.xmin as i64));
        match row.form.encode() {
            None => self.forms.push_null(),
            Some(form) => {
                self.batch_bytes += form.len();
                self.forms.push(&Value::Bytes(form.into()));
            }
        }
        self.rows += 1;
        self.batch_rows += 1;
        self.chunk_filled += 1;
        self.group_rows += 1;
    }

    fn group_bytes(&self) -> usize {
        self.batch_bytes + self.encoder.group_bytes()
    }

    fn write_batch(&mut self) -> Result<()> {
        if self.batch_rows == 0 {
            return Ok(());
        }
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(HIDDEN + self.builders.len());
        arrays.extend([self.tids.finish(), self.xmins.finish(), self.forms.finish()]);
        arrays.extend(self.builders.iter_mut().map(|(_, builder)| builder.finish()));
        self.open(&arrays)?;
        (self.batch_rows, self.batch_bytes) = (0, 0);
        self.encoder.send(Work::Batch(arrays))
    }

    fn end_group(&mut self) -> Result<()> {
        self.write_batch()?;
        (self.group_rows, self.chunk_filled) = (0, 0);
        if self.is_open { self.encoder.send(Work::EndGroup) } else { Ok(()) }
    }

    /// Begins the file; the first values to be written decide about bloom filters.
    fn open(&mut self, first: &[ArrayRef]) -> Result<()> {
        if self.is_open {
            return Ok(());
        }
        self.is_open = true;
        let layout = Layout {
            schema: &self.schema,
            options: &self.options,
            chunk_rows: self.chunk_rows,
            has_filters: !self.is_whole || self.rows >= BLOOM_ROWS,
        };
        self.encoder.send(Work::Open(Box::new(layout.properties(first))))
    }
}
