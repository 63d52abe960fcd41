//! Owns the form of cold rows: a Parquet file per segment, written from pages and read back into the same pages.
//!
//! A segment holds whole blocks. Every row of a block is a row of the file, in the order of TIDs; three hidden columns keep what
//! a lake reader does not want to see (TID, xmin, and whatever the values alone do not tell). A [`BlockStub`] says which rows of
//! which segment are a block, and what its line pointers without rows are: stub and segment together give the page again, with
//! the same TIDs and tuples. Values that stood in overflow pages are in the column itself; a [`ValueStub`] finds them.
//!
//! The module is pure: no RocksDB, no Postgres, no thread but the one that encodes a segment. Bytes of a file are never trusted: whatever is wrong with them is an
//! error of kind `Corrupt`.

mod assemble;
mod checked;
mod column;
mod compressed;
mod encoder;
mod footer;
mod form;
mod input;
mod jsonb;
mod numeric;
mod pages;
#[cfg(test)]
mod random_pages_tests;
mod reader;
#[cfg(test)]
mod round_trip_tests;
mod rows;
mod statistics;
#[cfg(test)]
mod stored_cases;
mod stub;
mod tuple;
mod value;
mod writer;

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use reader::{ReadCost, SegmentReader};
pub use stub::{BlockStub, ValueStub};
pub use writer::SegmentWriter;

use crate::error::Result;
use crate::ids::{Lsn, StorageId};

/// The version of the segment format.
pub const SEGMENT_FORMAT: u32 = 1;
/// Name of the hidden column with a row's TID: `block << 16 | offset`.
pub const TID_COLUMN: &str = "_kalam_tid";
/// Name of the hidden column with a row's full xmin.
pub const XMIN_COLUMN: &str = "_kalam_xmin";
/// Name of the hidden column with what the values alone do not tell of a row; null for most rows.
pub const FORM_COLUMN: &str = "_kalam_form";

/// How many hidden columns there are; they stand before the table's.
const HIDDEN: usize = 3;

/// Postgres' attalign.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Align {
    /// `c`: any byte.
    Char,
    /// `s`: multiples of 2.
    Short,
    /// `i`: multiples of 4.
    Int,
    /// `d`: multiples of 8.
    Double,
}

impl Align {
    /// The alignment behind `pg_attribute.attalign`.
    pub const fn from_attalign(code: u8) -> Option<Align> {
        match code {
            b'c' => Some(Align::Char),
            b's' => Some(Align::Short),
            b'i' => Some(Align::Int),
            b'd' => Some(Align::Double),
            _ => None,
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Align::Char => 1,
            Align::Short => 2,
            Align::Int => 4,
            Align::Double => 8,
        }
    }
}

/// What a column's values are to a lake reader. A kind that has no exact counterpart in Arrow is `Opaque`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ColumnKind {
    /// bool
    Bool,
    /// smallint
    Int2,
    /// integer
    Int4,
    /// bigint
    Int8,
    /// real
    Float4,
    /// double precision
    Float8,
    /// text, varchar, bpchar (padding included) and name, in a database with encoding UTF-8.
    Text,
    /// bytea
    Bytea,
    /// uuid
    Uuid,
    /// date
    Date,
    /// time without time zone
    Time,
    /// timestamp without time zone
    Timestamp,
    /// timestamp with time zone
    TimestampTz,
    /// numeric(precision, scale) with precision 1..=38 and scale 0..=precision: decimal128.
    Numeric {
        /// Digits.
        precision: u8,
        /// Digits behind the point.
        scale: i8,
    },
    /// Every other numeric: its text, which keeps each value's own scale.
    NumericText,
    /// json: its text.
    Json,
    /// jsonb, as JSON text.
    Jsonb,
    /// An array whose elements are one of the kinds above, not an array; values of one dimension become lists.
    Array {
        /// What the elements are.
        element: Box<ColumnKind>,
        /// Their type's OID, which stands in every value.
        element_oid: u32,
        /// Their type's typlen.
        len: i16,
        /// Their type's typalign.
        align: Align,
        /// Their type's typbyval.
        by_value: bool,
    },
    /// Anything else: the exact binary datum.
    Opaque,
}

/// An attribute of the table, dropped ones included.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Column {
    /// Postgres' attnum, from 1, without a gap over the columns of a schema.
    pub attnum: i16,
    /// Its name; that of a dropped column is not used.
    pub name: String,
    /// Its type as `format_type` says it, for readers and people.
    pub type_name: String,
    /// What its values become.
    pub kind: ColumnKind,
    /// Postgres' attlen: -1 varlena, -2 C string.
    pub len: i16,
    /// Postgres' attalign.
    pub align: Align,
    /// Postgres' attbyval.
    pub by_value: bool,
    /// Whether Postgres packs short values of the column: attstorage is not `p`.
    pub packed: bool,
    /// Postgres' attisdropped.
    pub dropped: bool,
}

/// The columns of a table at one time; a segment keeps those of its own time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableSchema {
    /// The table's schema.
    pub namespace: String,
    /// The table's name.
    pub table: String,
    /// The table's OID: TOAST pointers name it.
    pub table_oid: u32,
    /// Counts the changes of the columns, as far as the caller does.
    pub version: u32,
    /// All attributes in the order of attnum.
    pub columns: Vec<Column>,
    /// The attnums that get a bloom filter.
    pub bloom_columns: Vec<i16>,
}

/// How the data pages of a segment are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Compression {
    /// zstd with a level of 1..=22.
    Zstd(i32),
    /// LZ4 (raw blocks).
    Lz4,
    /// Snappy.
    Snappy,
    /// Not at all.
    None,
}

impl Compression {
    /// The level of zstd where none is asked for: the lowest at which chats take an eighth of what they take in heap.
    pub const ZSTD_LEVEL: i32 = 5;
}

impl Default for Compression {
    fn default() -> Compression {
        Compression::Zstd(Compression::ZSTD_LEVEL)
    }
}

/// What a segment is written for and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteOptions {
    /// The storage whose blocks it holds.
    pub storage: StorageId,
    /// The segment's number in its storage; the stubs name it.
    pub segment: u64,
    /// How pages are compressed.
    pub compression: Compression,
    /// The most rows of a row group.
    pub row_group_rows: usize,
    /// The rows of a data page, 64 to 2,048; nothing lets the writer choose by the length of the rows.
    pub page_rows: Option<usize>,
}

impl WriteOptions {
    /// The default options for a segment.
    pub fn new(storage: StorageId, segment: u64) -> WriteOptions {
        WriteOptions { storage, segment, compression: Compression::default(), row_group_rows: 131_072, page_rows: None }
    }
}

/// A value of overflow pages, as it stands there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredValue {
    /// The chunks' payloads one behind the other.
    pub bytes: Vec<u8>,
    /// The reference count in chunk 0.
    pub references: u32,
    /// The LSN of chunk 0.
    pub lsn: Lsn,
}

/// The overflow values of a storage, for its flush.
pub trait LargeValues {
    /// Reads a value.
    ///
    /// # Errors
    /// Those of the cache; `Corrupt` when there is no such value.
    fn fetch(&mut self, value: u32) -> Result<StoredValue>;

    /// Gives out the number of a value to be; it is lost when the block that names it is not committed.
    ///
    /// # Errors
    /// `LimitExceeded` when no number is left.
    fn allocate(&mut self) -> Result<u32>;
}

/// The least and the greatest value of a column, as text that Postgres would print; for people and for pruning files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ColumnSummary {
    /// The column.
    pub attnum: i16,
    /// Nothing when the column has no value, or no order that this module knows. Texts are cut short, downwards.
    pub min: Option<String>,
    /// Likewise, cut short upwards.
    pub max: Option<String>,
    /// How many rows have null.
    pub nulls: u64,
    /// How many values have no exact form in the column's type: the column has null for them, `_kalam_form` the value.
    pub exceptions: u64,
}

/// What a finished segment holds: all that a manifest has to know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentSummary {
    /// Rows of the file.
    pub rows: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Bytes that the blocks take as compact images, overflow pages not counted.
    pub hot_bytes: u64,
    /// `block << 16 | offset` of the first row; 0 when there is none.
    pub min_tid: u64,
    /// Likewise of the last row.
    pub max_tid: u64,
    /// The blocks, in their order. Blocks without any row are among them.
    pub blocks: Vec<BlockStub>,
    /// The large values. Each may be committed only together with its block, and its block only together with all of them.
    pub values: Vec<ValueStub>,
    /// One entry for each column that is not dropped.
    pub columns: Vec<ColumnSummary>,
}

/// Where a segment's bytes come from.
pub trait SegmentSource: Send + Sync {
    /// Length of the file.
    fn size(&self) -> u64;

    /// Reads exactly these bytes.
    ///
    /// # Errors
    /// `Io` or `Unavailable` when the storage fails, `Corrupt` when it has fewer bytes.
    fn read(&self, range: Range<u64>) -> Result<Bytes>;

    /// Reads several ranges, which do not overlap and ascend; a remote storage may ask for all of them at once.
    ///
    /// # Errors
    /// As [`SegmentSource::read`].
    fn read_ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        ranges.iter().map(|range| self.read(range.clone())).collect()
    }

    /// Unwanted bytes between two ranges up to which one read is cheaper than two.
    fn gap(&self) -> u64 {
        16 << 10
    }
}

/// A segment in a file of this machine.
#[derive(Debug)]
pub struct FileSource {
    file: std::fs::File,
    size: u64,
}

impl FileSource {
    /// Opens a file.
    ///
    /// # Errors
    /// `Io` when it cannot be opened.
    pub fn open(path: &Path) -> Result<FileSource> {
        FileSource::new(std::fs::File::open(path)?)
    }

    /// Takes an open file.
    ///
    /// # Errors
    /// `Io` when its length cannot be read.
    pub fn new(file: std::fs::File) -> Result<FileSource> {
        let size = file.metadata()?.len();
        Ok(FileSource { file, size })
    }
}

impl SegmentSource for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        use std::os::unix::fs::FileExt;
        let beyond = range.start > range.end || range.end > self.size;
        if beyond {
            return Err(crate::Error::corrupt(format!("segment has {} bytes, not {}", self.size, range.end)));
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.into())
    }
}
