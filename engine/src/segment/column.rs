//! Columns of values as Arrow has them: building, and reading single values.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};

use super::value::Value;
use super::{Column, ColumnKind};

const ZONE: &str = "UTC";

/// The Arrow type of a kind.
pub fn data_type(kind: &ColumnKind) -> DataType {
    match kind {
        ColumnKind::Bool => DataType::Boolean,
        ColumnKind::Int2 => DataType::Int16,
        ColumnKind::Int4 => DataType::Int32,
        ColumnKind::Int8 => DataType::Int64,
        ColumnKind::Float4 => DataType::Float32,
        ColumnKind::Float8 => DataType::Float64,
        ColumnKind::Text | ColumnKind::Json | ColumnKind::Jsonb | ColumnKind::NumericText => DataType::Utf8,
        ColumnKind::Bytea | ColumnKind::Opaque => DataType::Binary,
        ColumnKind::Uuid => DataType::FixedSizeBinary(16),
        ColumnKind::Date => DataType::Date32,
        ColumnKind::Time => DataType::Time64(TimeUnit::Microsecond),
        ColumnKind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        ColumnKind::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some(ZONE.into())),
        ColumnKind::Numeric { precision, scale } => DataType::Decimal128(*precision, *scale),
        ColumnKind::Array { element, .. } => DataType::List(element_field(element)),
    }
}

fn element_field(element: &ColumnKind) -> FieldRef {
    Arc::new(Field::new("element", data_type(element), true))
}

/// The field of a table's column: its field id is the attribute's number.
pub fn field(column: &Column) -> Field {
    let encoding = if column.kind == ColumnKind::Opaque { "binary" } else { "exact" };
    let metadata = HashMap::from([
        ("PARQUET:field_id".to_owned(), column.attnum.to_string()),
        ("kalam.type".to_owned(), column.type_name.clone()),
        ("kalam.encoding".to_owned(), encoding.to_owned()),
    ]);
    Field::new(&column.name, data_type(&column.kind), true).with_metadata(metadata)
}

/// Collects the values of a column.
pub enum ColumnBuilder {
    Bool(BooleanBuilder),
    Int16(Int16Builder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Decimal(Decimal128Builder),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Uuid(FixedSizeBinaryBuilder),
    List { field: FieldRef, ends: Vec<i32>, valid: Vec<bool>, elements: Box<ColumnBuilder> },
}

macro_rules! for_each_plain {
    ($self:expr, $builder:ident => $do:expr) => {
        match $self {
            ColumnBuilder::Bool($builder) => $do,
            ColumnBuilder::Int16($builder) => $do,
            ColumnBuilder::Int32($builder) => $do,
            ColumnBuilder::Int64($builder) => $do,
            ColumnBuilder::Float32($builder) => $do,
            ColumnBuilder::Float64($builder) => $do,
            ColumnBuilder::Date($builder) => $do,
            ColumnBuilder::Time($builder) => $do,
            ColumnBuilder::Timestamp($builder) => $do,
            ColumnBuilder::Decimal($builder) => $do,
            ColumnBuilder::Text($builder) => $do,
            ColumnBuilder::Bytes($builder) => $do,
            ColumnBuilder::Uuid($builder) => $do,
            ColumnBuilder::List { .. } => unreachable!("lists are treated before"),
        }
    };
}

impl ColumnBuilder {
    /// A builder without values.
    pub fn new(kind: &ColumnKind) -> ColumnBuilder {
        match kind {
            ColumnKind::Bool => ColumnBuilder::Bool(BooleanBuilder::new()),
            ColumnKind::Int2 => ColumnBuilder::Int16(Int16Builder::new()),
            ColumnKind::Int4 => ColumnBuilder::Int32(Int32Builder::new()),
            ColumnKind::Int8 => ColumnBuilder::Int64(Int64Builder::new()),
            ColumnKind::Float4 => ColumnBuilder::Float32(Float32Builder::new()),
            ColumnKind::Float8 => ColumnBuilder::Float64(Float64Builder::new()),
            ColumnKind::Date => ColumnBuilder::Date(Date32Builder::new()),
            ColumnKind::Time => ColumnBuilder::Time(Time64MicrosecondBuilder::new()),
            ColumnKind::Timestamp => ColumnBuilder::Timestamp(TimestampMicrosecondBuilder::new()),
            ColumnKind::TimestampTz => ColumnBuilder::Timestamp(TimestampMicrosecondBuilder::new().with_timezone(ZONE)),
            ColumnKind::Numeric { .. } => ColumnBuilder::Decimal(Decimal128Builder::new().with_data_type(data_type(kind))),
            ColumnKind::Text | ColumnKind::Json | ColumnKind::Jsonb | ColumnKind::NumericText => {
                ColumnBuilder::Text(StringBuilder::new())
            }
            ColumnKind::Bytea | ColumnKind::Opaque => ColumnBuilder::Bytes(BinaryBuilder::new()),
            ColumnKind::Uuid => ColumnBuilder::Uuid(FixedSizeBinaryBuilder::new(16)),
            ColumnKind::Array { element, .. } => ColumnBuilder::List {
                field: element_field(element),
                ends: vec![0],
                valid: Vec::new(),
                elements: Box::new(ColumnBuilder::new(element)),
            },
        }
    }

    /// Adds a null.
    pub fn push_null(&mut self) {
        if let ColumnBuilder::List { ends, valid, .. } = self {
            ends.push(ends.last().copied().unwrap_or(0));
            valid.push(false);
            return;
        }
        for_each_plain!(self, builder => builder.append_null());
    }

    /// Adds a value; one of another kind becomes null.
    pub fn push(&mut self, value: &Value<'_>) {
        match (self, value) {
            (ColumnBuilder::Bool(builder), Value::Bool(value)) => builder.append_value(*value),
            (ColumnBuilder::Int16(builder), Value::Int16(value)) => builder.append_value(*value),
            (ColumnBuilder::Int32(builder), Value::Int32(value)) => builder.append_value(*value),
            (ColumnBuilder::Int64(builder), Value::Int64(value)) => builder.append_value(*value),
            (ColumnBuilder::Float32(builder), Value::Float32(value)) => builder.append_value(*value),
            (ColumnBuilder::Float64(builder), Value::Float64(value)) => builder.append_value(*value),
            (ColumnBuilder::Date(builder), Value::Int32(value)) => builder.append_value(*value),
            (ColumnBuilder::Time(builder), Value::Int64(value)) => builder.append_value(*value),
            (ColumnBuilder::Timestamp(builder), Value::Int64(value)) => builder.append_value(*value),
            (ColumnBuilder::Decimal(builder), Value::Decimal(value)) => builder.append_value(*value),
            (ColumnBuilder::Text(builder), Value::Text(value)) => builder.append_value(value),
            (ColumnBuilder::Bytes(builder), Value::Bytes(value)) => builder.append_value(value),
            (ColumnBuilder::Uuid(builder), Value::Bytes(value)) => {
                if builder.append_value(value).is_err() {
                    builder.append_null();
                }
            }
            (ColumnBuilder::List { ends, valid, elements, .. }, Value::List(values)) => {
                for value in values {
                    match value {
                        Some(value) => elements.push(value),
                        None => elements.push_null(),
                    }
                }
                ends.push(ends.last().copied().unwrap_or(0) + values.len() as i32);
                valid.push(true);
            }
            (builder, _) => builder.push_null(),
        }
    }

    /// The values so far; the builder is empty afterwards.
    pub fn finish(&mut self) -> ArrayRef {
        if let ColumnBuilder::List { field, ends, valid, elements } = self {
            let offsets = OffsetBuffer::new(std::mem::replace(ends, vec![0]).into());
            let nulls = NullBuffer::from(std::mem::take(valid));
            return Arc::new(ListArray::new(Arc::clone(field), offsets, elements.finish(), Some(nulls)));
        }
        for_each_plain!(self, builder => Arc::new(builder.finish()))
    }
}

/// The value in a row of an array of the kind; nothing for null, and for an array of another type.
pub fn value_at<'a>(kind: &ColumnKind, array: &'a dyn Array, row: usize) -> Option<Value<'a>> {
    if array.is_null(row) {
        return None;
    }
    let any = array.as_any();
    macro_rules! of {
        ($array:ty, $value:path) => {
            $value(any.downcast_ref::<$array>()?.value(row))
        };
    }
    Some(match kind {
        ColumnKind::Bool => of!(BooleanArray, Value::Bool),
        ColumnKind::Int2 => of!(Int16Array, Value::Int16),
        ColumnKind::Int4 => of!(Int32Array, Value::Int32),
        ColumnKind::Int8 => of!(Int64Array, Value::Int64),
        ColumnKind::Float4 => of!(Float32Array, Value::Float32),
        ColumnKind::Float8 => of!(Float64Array, Value::Float64),
        ColumnKind::Date => of!(Date32Array, Value::Int32),
        ColumnKind::Time => of!(Time64MicrosecondArray, Value::Int64),
        ColumnKind::Timestamp | ColumnKind::TimestampTz => of!(TimestampMicrosecondArray, Value::Int64),
        ColumnKind::Numeric { .. } => of!(Decimal128Array, Value::Decimal),
        ColumnKind::Text | ColumnKind::Json | ColumnKind::Jsonb | ColumnKind::NumericText => {
            Value::Text(Cow::Borrowed(any.downcast_ref::<StringArray>()?.value(row)))
        }
        ColumnKind::Bytea | ColumnKind::Opaque => Value::Bytes(Cow::Borrowed(any.downcast_ref::<BinaryArray>()?.value(row))),
        ColumnKind::Uuid => Value::Bytes(Cow::Borrowed(any.downcast_ref::<FixedSizeBinaryArray>()?.value(row))),
        ColumnKind::Array { element, .. } => {
            let list = any.downcast_ref::<ListArray>()?;
            let ends = list.value_offsets();
            let range = ends[row] as usize..ends[row + 1] as usize;
            let elements = list.values().as_ref();
            Value::List(range.map(|place| value_at(element, elements, place)).collect())
        }
    })
}
