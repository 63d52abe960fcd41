//! Encodes the columns of a segment into its file, on a thread of its own: taking rows apart and compressing them take about as long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use arrow::array::{Array, ArrayRef, FixedSizeBinaryArray, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::checked::Summing;
use super::{Column, ColumnKind, Compression, FORM_COLUMN, HIDDEN, TID_COLUMN, TableSchema, WriteOptions};
use crate::error::{Error, ErrorKind, Result};

/// Uncompressed bytes of a data page: long values get pages of their own, which nobody has to read for the rows beside them.
const PAGE_BYTES: usize = 128 << 10;
/// More than the values of a chunk, so that the library looks at the limits of a page only at its end.
const ENCODE_ROWS: usize = 1 << 20;
/// A column whose dictionary grows beyond this goes on without: a lookup reads the dictionary too.
const DICTIONARY_BYTES: usize = 16 << 10;
/// A column has no bloom filter if so many of 8 values are greater than the one before: the bounds of its pages say more.
const ASCENDING: usize = 7;
const BLOOM_FPP: f64 = 0.01;
/// Bounds of texts are cut to this.
const BOUND_BYTES: usize = 64;
/// Batches that may wait while one is encoded.
const WAITING: usize = 1;

/// What the thread does.
pub enum Work {
    /// Begins the file.
    Open(Box<WriterProperties>),
    /// Adds rows.
    Batch(Vec<ArrayRef>),
    /// Ends a row group.
    EndGroup,
}

/// How much there is of the file, as of the last batch that was encoded.
#[derive(Default)]
struct Sizes {
    written: AtomicUsize,
    in_progress: AtomicUsize,
}

/// The thread. Dropped before the end, it leaves the file as it is.
pub struct Encoder {
    work: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<Result<ArrowWriter<Summing>>>>,
    sizes: Arc<Sizes>,
}

impl Encoder {
    /// Starts the thread.
    ///
    /// # Errors
    /// `OutOfMemory` when there can be no more threads.
    pub fn start(file: Summing, columns: SchemaRef) -> Result<Encoder> {
        let (sender, receiver) = sync_channel(WAITING);
        let sizes = Arc::<Sizes>::default();
        let shared = Arc::clone(&sizes);
        let thread =
            std::thread::Builder::new().name("kalam encoder".into()).spawn(move || run(file, columns, receiver, &shared));
        let thread = thread.map_err(|error| {
            Error::new(ErrorKind::OutOfMemory, "could not start the thread that encodes a segment").with_source(error)
        })?;
        Ok(Encoder { work: Some(sender), thread: Some(thread), sizes })
    }

    /// Gives the thread something to do; waits while it is behind.
    ///
    /// # Errors
    /// Those of the thread.
    pub fn send(&mut self, work: Work) -> Result<()> {
        let accepted = self.work.as_ref().is_some_and(|sender| sender.send(work).is_ok());
        // A thread that takes no more has failed.
        if accepted { Ok(()) } else { self.finish().and_then(|_| Err(Error::internal("a segment was written behind its end"))) }
    }

    /// Bytes so far, with what is not in the file yet.
    pub fn bytes(&self) -> usize {
        self.sizes.written.load(Ordering::Relaxed) + self.group_bytes()
    }

    /// Bytes of the row group that has not ended.
    pub fn group_bytes(&self) -> usize {
        self.sizes.in_progress.load(Ordering::Relaxed)
    }

    /// Ends the thread when it has done everything.
    ///
    /// # Errors
    /// Those of the thread.
    pub fn finish(&mut self) -> Result<ArrowWriter<Summing>> {
        self.work = None;
        let thread = self.thread.take().ok_or_else(|| Error::internal("a segment ended twice"))?;
        thread.join().unwrap_or_else(|_| Err(Error::internal("the thread that encodes a segment failed")))
    }
}

fn run(file: Summing, columns: SchemaRef, work: Receiver<Work>, sizes: &Sizes) -> Result<ArrowWriter<Summing>> {
    let unordered = || Error::internal("a segment has to be opened first, and once");
    let mut file = Some(file);
    let mut opened = None;
    while let Ok(work) = work.recv() {
        match work {
            Work::Open(properties) => {
                let file = file.take().ok_or_else(unordered)?;
                opened = Some(ArrowWriter::try_new(file, Arc::clone(&columns), Some(*properties)).map_err(failed)?);
            }
            Work::Batch(arrays) => {
                let batch = RecordBatch::try_new(Arc::clone(&columns), arrays)
                    .map_err(|error| Error::internal("columns of a segment do not suit each other").with_source(error))?;
                opened.as_mut().ok_or_else(unordered)?.write(&batch).map_err(failed)?;
            }
            Work::EndGroup => opened.as_mut().ok_or_else(unordered)?.flush().map_err(failed)?,
        }
        if let Some(sink) = &opened {
            sizes.written.store(sink.bytes_written(), Ordering::Relaxed);
            sizes.in_progress.store(sink.in_progress_size(), Ordering::Relaxed);
        }
    }
    opened.ok_or_else(unordered)
}

/// What decides how the columns are encoded.
pub struct Layout<'a> {
    pub schema: &'a TableSchema,
    pub options: &'a WriteOptions,
    /// Rows of a page.
    pub chunk_rows: usize,
    /// Whether there are bloom filters at all.
    pub has_filters: bool,
}

impl Layout<'_> {
    fn wants_bloom(&self, column: &Column, first: &ArrayRef) -> bool {
        self.has_filters
            && self.schema.bloom_columns.contains(&column.attnum)
            && !matches!(column.kind, ColumnKind::Array { .. })
            && !is_ascending(first)
    }

    /// The settings of the Parquet library, given the first values of all columns, or none.
    pub fn properties(&self, first: &[ArrayRef]) -> WriterProperties {
        let compression = match self.options.compression {
            Compression::Zstd(level) => parquet::basic::Compression::ZSTD(ZstdLevel::try_new(level).unwrap_or_default()),
            Compression::Lz4 => parquet::basic::Compression::LZ4_RAW,
            Compression::Snappy => parquet::basic::Compression::SNAPPY,
            Compression::None => parquet::basic::Compression::UNCOMPRESSED,
        };
        let mut properties = WriterProperties::builder()
            .set_created_by(format!("kalamdb version {}", env!("CARGO_PKG_VERSION")))
            .set_compression(compression)
            .set_max_row_group_row_count(None)
            .set_data_page_size_limit(PAGE_BYTES)
            .set_data_page_row_count_limit(self.chunk_rows)
            .set_write_batch_size(ENCODE_ROWS)
            .set_dictionary_enabled(true)
            .set_dictionary_page_size_limit(DICTIONARY_BYTES)
            .set_statistics_enabled(EnabledStatistics::Page)
            .set_statistics_truncate_length(Some(BOUND_BYTES))
            .set_column_index_truncate_length(Some(BOUND_BYTES));
        let tid = ColumnPath::from(TID_COLUMN);
        properties = properties
            .set_column_dictionary_enabled(tid.clone(), false)
            .set_column_encoding(tid, Encoding::DELTA_BINARY_PACKED)
            .set_column_statistics_enabled(ColumnPath::from(FORM_COLUMN), EnabledStatistics::None);
        for (number, column) in self.schema.columns.iter().filter(|column| !column.dropped).enumerate() {
            let path = ColumnPath::from(column.name.as_str());
            match column.kind {
                ColumnKind::Int4 | ColumnKind::Int8 | ColumnKind::Date | ColumnKind::Time => {
                    properties = properties.set_column_encoding(path.clone(), Encoding::DELTA_BINARY_PACKED);
                }
                ColumnKind::Timestamp | ColumnKind::TimestampTz => {
                    properties = properties
                        .set_column_dictionary_enabled(path.clone(), false)
                        .set_column_encoding(path.clone(), Encoding::DELTA_BINARY_PACKED);
                }
                ColumnKind::Text | ColumnKind::Json | ColumnKind::Jsonb | ColumnKind::Bytea | ColumnKind::Opaque => {
                    properties = properties.set_column_encoding(path.clone(), Encoding::DELTA_LENGTH_BYTE_ARRAY);
                }
                _ => {}
            }
            if first.get(HIDDEN + number).is_some_and(|first| self.wants_bloom(column, first)) {
                properties = properties
                    .set_column_bloom_filter_enabled(path.clone(), true)
                    .set_column_bloom_filter_fpp(path.clone(), BLOOM_FPP)
                    .set_column_bloom_filter_max_ndv(path, self.options.row_group_rows as u64);
            }
        }
        properties.build()
    }
}

/// Whether most values are greater than the one before.
fn is_ascending(array: &ArrayRef) -> bool {
    fn share<T: PartialOrd>(values: impl Iterator<Item = T> + Clone, count: usize) -> bool {
        let ascents = values.clone().zip(values.skip(1)).filter(|(value, next)| value < next).count();
        ascents * 8 >= count.saturating_sub(1) * ASCENDING
    }
    let any = array.as_any();
    let count = array.len();
    if let Some(array) = any.downcast_ref::<Int64Array>() {
        share(array.values().iter(), count)
    } else if let Some(array) = any.downcast_ref::<TimestampMicrosecondArray>() {
        share(array.values().iter(), count)
    } else if let Some(array) = any.downcast_ref::<Int32Array>() {
        share(array.values().iter(), count)
    } else if let Some(array) = any.downcast_ref::<FixedSizeBinaryArray>() {
        share((0..count).map(|row| array.value(row)), count)
    } else {
        false
    }
}

/// The error of a write: that of the file where it is one.
pub fn failed(error: ParquetError) -> Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<std::io::Error>() {
            Ok(cause) => Error::from(*cause),
            Err(cause) => Error::internal("a segment could not be written").with_detail(crate::error::sentence(cause)),
        },
        error => Error::internal("a segment could not be written").with_source(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::StorageId;
    use crate::segment::Align;

    fn column(attnum: i16) -> Column {
        Column {
            attnum,
            name: format!("column {attnum}"),
            type_name: "bigint".to_owned(),
            kind: ColumnKind::Int8,
            len: 8,
            align: Align::Double,
            by_value: true,
            packed: false,
            dropped: attnum == 1,
        }
    }

    #[test]
    fn filters_are_for_keys_that_come_in_no_order() {
        let schema = TableSchema {
            namespace: "app".to_owned(),
            table: "t".to_owned(),
            table_oid: 1,
            version: 1,
            columns: (1..=4).map(column).collect(),
            bloom_columns: vec![2, 3],
        };
        let options = WriteOptions::new(StorageId(1), 1);
        let array = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
        // Two sessions that insert side by side.
        let nearly = (0..1000).map(|number| if number % 10 == 0 { number - 5 } else { number }).collect();
        let mixed: Vec<i64> = (0..1000).map(|number| number * 7919 % 1000).collect();
        let hidden = (0..HIDDEN).map(|_| array(vec![0; 1000]));
        let first: Vec<ArrayRef> = hidden.chain([array(nearly), array(mixed.clone()), array(mixed)]).collect();
        let filtered = |has_filters: bool, first: &[ArrayRef]| -> Vec<i16> {
            let properties = Layout { schema: &schema, options: &options, chunk_rows: 1000, has_filters }.properties(first);
            let has = |attnum: &i16| {
                let path = ColumnPath::from(format!("column {attnum}"));
                properties.bloom_filter_properties(&path).is_some()
            };
            (1..=4).filter(has).collect()
        };
        assert_eq!(filtered(true, &first), [3]);
        assert!(filtered(false, &first).is_empty());
        assert!(filtered(true, &[]).is_empty());
    }
}
