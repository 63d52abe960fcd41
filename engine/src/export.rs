//! Rows as plain files for somebody who takes them elsewhere: a Parquet file with the columns' own types, and one of JSON lines.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array,
    RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::Serialize;

use crate::error::{Error, Result};

/// Rows that are collected before they are written.
const BATCH_ROWS: usize = 8192;
/// Bytes of texts that are collected before they are written.
const BATCH_BYTES: usize = 16 << 20;

/// What a column has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportKind {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// Days since 1970.
    Date,
    /// Microseconds since 1970.
    Timestamp,
    /// Microseconds since 1970 in UTC.
    Timestamptz,
    Bytea,
    /// Every other type in the form of its output.
    Text,
}

/// A column.
#[derive(Clone, Debug, Serialize)]
pub struct ExportColumn {
    pub name: String,
    pub kind: ExportKind,
}

/// A value; whole numbers, dates and times are `Int`.
#[derive(Clone, PartialEq, Debug)]
pub enum ExportValue {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(Vec<u8>),
    Text(String),
}

/// Two files in the making.
pub struct Export {
    columns: Vec<ExportColumn>,
    schema: SchemaRef,
    parquet: ArrowWriter<File>,
    json: BufWriter<File>,
    /// One list for each column.
    values: Vec<Vec<ExportValue>>,
    bytes: usize,
    rows: u64,
}

impl Export {
    /// Creates both files, which must not exist.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(parquet: &Path, json: &Path, columns: Vec<ExportColumn>) -> Result<Export> {
        let fields: Vec<Field> = columns.iter().map(|column| Field::new(&column.name, data_type(column.kind), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let properties =
            WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap_or_default())).build();
        let writer = ArrowWriter::try_new(create(parquet)?, Arc::clone(&schema), Some(properties)).map_err(failed)?;
        let values = columns.iter().map(|_| Vec::new()).collect();
        Ok(Export { columns, schema, parquet: writer, json: BufWriter::new(create(json)?), values, bytes: 0, rows: 0 })
    }

    /// Adds a row: a value for each column, and the row as JSON.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn add(&mut self, row: Vec<ExportValue>, json: &str) -> Result<()> {
        self.json.write_all(json.as_bytes())?;
        self.json.write_all(b"\n")?;
        for (list, value) in self.values.iter_mut().zip(row) {
            self.bytes += match &value {
                ExportValue::Text(text) => text.len(),
                ExportValue::Bytes(bytes) => bytes.len(),
                _ => 8,
            };
            list.push(value);
        }
        self.rows += 1;
        if self.rows.is_multiple_of(BATCH_ROWS as u64) || self.bytes >= BATCH_BYTES {
            self.write_batch()?;
        }
        Ok(())
    }

    /// Completes both files; returns the number of rows.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn finish(mut self) -> Result<u64> {
        self.write_batch()?;
        self.parquet.close().map_err(failed)?;
        self.json.flush()?;
        Ok(self.rows)
    }

    fn write_batch(&mut self) -> Result<()> {
        let rows = self.values.first().map_or(0, Vec::len);
        if rows > 0 {
            let arrays = self.columns.iter().zip(&self.values).map(|(column, values)| array(column.kind, values)).collect();
            let batch = RecordBatch::try_new(Arc::clone(&self.schema), arrays)
                .map_err(|error| Error::internal("a row has values of other types than its columns").with_source(error))?;
            self.parquet.write(&batch).map_err(failed)?;
        }
        self.values.iter_mut().for_each(Vec::clear);
        self.bytes = 0;
        Ok(())
    }
}

fn create(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    Ok(File::options().write(true).create_new(true).mode(0o600).open(path)?)
}

fn failed(error: parquet::errors::ParquetError) -> Error {
    Error::new(crate::ErrorKind::Io, "could not write a Parquet file").with_source(error)
}

fn data_type(kind: ExportKind) -> DataType {
    match kind {
        ExportKind::Bool => DataType::Boolean,
        ExportKind::Int2 => DataType::Int16,
        ExportKind::Int4 => DataType::Int32,
        ExportKind::Int8 => DataType::Int64,
        ExportKind::Float4 => DataType::Float32,
        ExportKind::Float8 => DataType::Float64,
        ExportKind::Date => DataType::Date32,
        ExportKind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        ExportKind::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        ExportKind::Bytea => DataType::Binary,
        ExportKind::Text => DataType::Utf8,
    }
}

fn array(kind: ExportKind, values: &[ExportValue]) -> ArrayRef {
    let ints = || {
        values.iter().map(|value| match value {
            ExportValue::Int(number) => Some(*number),
            _ => None,
        })
    };
    let floats = || {
        values.iter().map(|value| match value {
            ExportValue::Float(number) => Some(*number),
            _ => None,
        })
    };
    match kind {
        ExportKind::Bool => Arc::new(BooleanArray::from_iter(values.iter().map(|value| match value {
            ExportValue::Bool(truth) => Some(*truth),
            _ => None,
        }))),
        ExportKind::Int2 => Arc::new(Int16Array::from_iter(ints().map(|value| value.map(|number| number as i16)))),
        ExportKind::Int4 => Arc::new(Int32Array::from_iter(ints().map(|value| value.map(|number| number as i32)))),
        ExportKind::Int8 => Arc::new(Int64Array::from_iter(ints())),
        ExportKind::Float4 => Arc::new(Float32Array::from_iter(floats().map(|value| value.map(|number| number as f32)))),
        ExportKind::Float8 => Arc::new(Float64Array::from_iter(floats())),
        ExportKind::Date => Arc::new(Date32Array::from_iter(ints().map(|value| value.map(|number| number as i32)))),
        ExportKind::Timestamp => Arc::new(TimestampMicrosecondArray::from_iter(ints())),
        ExportKind::Timestamptz => Arc::new(TimestampMicrosecondArray::from_iter(ints()).with_timezone("UTC")),
        ExportKind::Bytea => Arc::new(BinaryArray::from_iter(values.iter().map(|value| match value {
            ExportValue::Bytes(bytes) => Some(bytes.as_slice()),
            _ => None,
        }))),
        ExportKind::Text => Arc::new(StringArray::from_iter(values.iter().map(|value| match value {
            ExportValue::Text(text) => Some(text.as_str()),
            _ => None,
        }))),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    #[test]
    fn what_is_exported_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let (parquet, json) = (directory.path().join("a.parquet"), directory.path().join("a.json"));
        let kinds = [ExportKind::Int8, ExportKind::Text, ExportKind::Timestamptz, ExportKind::Bytea, ExportKind::Bool];
        let columns = kinds.iter().enumerate().map(|(number, kind)| ExportColumn { name: format!("c{number}"), kind: *kind });
        let mut export = Export::create(&parquet, &json, columns.collect()).unwrap();
        let rows = BATCH_ROWS as i64 + 10;
        for number in 0..rows {
            let text = if number == 3 { ExportValue::Null } else { ExportValue::Text(format!("row {number}")) };
            let time = ExportValue::Int(number * 1_000_000);
            let row = vec![ExportValue::Int(number), text, time, ExportValue::Bytes(vec![1, 0, 255]), ExportValue::Bool(true)];
            export.add(row, &format!("{{\"c0\":{number}}}")).unwrap();
        }
        assert_eq!(export.finish().unwrap(), rows as u64);
        let lines = std::fs::read_to_string(&json).unwrap();
        assert_eq!(lines.lines().count() as i64, rows);
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&parquet).unwrap()).unwrap().build().unwrap();
        let mut next = 0;
        for batch in reader {
            let batch = batch.unwrap();
            let numbers = batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
            let texts = batch.column(1).as_any().downcast_ref::<StringArray>().unwrap();
            for place in 0..batch.num_rows() {
                assert_eq!(numbers.value(place), next);
                assert_eq!(texts.is_null(place), next == 3);
                if next != 3 {
                    assert_eq!(texts.value(place), format!("row {next}"));
                }
                next += 1;
            }
            assert_eq!(batch.column(2).data_type(), &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())));
        }
        assert_eq!(next, rows);
    }
}
