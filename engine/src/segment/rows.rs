//! Makes rows of the decoded columns of a chunk, without an allocation for each value.

use std::borrow::Cow;

use arrow::array::{Array, BinaryArray, Int64Array};

use super::assemble::Row;
use super::column::value_at;
use super::form::{RowForm, ValuePointer};
use super::reader::{Chunk, form_of, wrong};
use super::tuple::{self, BodyBuilder, Pointer};
use super::value::{self, Value};
use super::{Column, ColumnKind, FORM_COLUMN, TID_COLUMN, TableSchema, XMIN_COLUMN};
use crate::error::Result;

/// The place of a value that was not decoded.
pub const NOWHERE: u32 = u32::MAX;

/// The values of a column of the table.
pub struct Values<'a> {
    pub column: &'a Column,
    pub array: &'a dyn Array,
    /// The place of each row's value in the array, if not every row has one.
    pub places: Option<&'a [u32]>,
}

impl Values<'_> {
    fn place(&self, row: usize) -> Option<usize> {
        match self.places {
            None => Some(row),
            Some(places) => places.get(row).copied().filter(|place| *place != NOWHERE).map(|place| place as usize),
        }
    }

    /// Whether a row has null. What was not decoded is no null.
    pub fn is_null(&self, row: usize) -> bool {
        self.place(row).is_some_and(|place| self.array.is_null(place))
    }

    /// A row's value as the row stores it, without a header; it is in `scratch`, or where it was decoded to.
    ///
    /// # Errors
    /// `Corrupt` when it is null, none of its column, or was not decoded.
    pub fn payload<'s>(&'s self, row: usize, scratch: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        let place = self.place(row).ok_or_else(|| wrong("a value in overflow pages has no number"))?;
        let (kind, len) = (&self.column.kind, self.column.len);
        let not_one = || wrong("a value is not of its column's type");
        match (kind, value_at(kind, self.array, place).ok_or_else(not_one)?) {
            (ColumnKind::Text, Value::Text(Cow::Borrowed(text))) if len < 0 => Ok(text.as_bytes()),
            (ColumnKind::Json, Value::Text(Cow::Borrowed(text))) => Ok(text.as_bytes()),
            (ColumnKind::Bytea | ColumnKind::Opaque | ColumnKind::Uuid, Value::Bytes(Cow::Borrowed(bytes))) => Ok(bytes),
            (_, value) => {
                scratch.clear();
                value::write(kind, len, &value, scratch).ok_or_else(not_one)?;
                Ok(scratch)
            }
        }
    }
}

/// The columns of a chunk.
pub struct Columns<'a> {
    schema: &'a TableSchema,
    /// One for each column of the table; nothing for a dropped one.
    table: Vec<Option<Values<'a>>>,
    pub tids: &'a Int64Array,
    xmins: &'a Int64Array,
    forms: &'a BinaryArray,
}

impl<'a> Columns<'a> {
    /// The columns of a chunk; `places` says which of them is that of each column of the table.
    ///
    /// # Errors
    /// `Corrupt` when one is missing.
    pub fn of(schema: &'a TableSchema, places: &[Option<usize>], chunk: &'a Chunk) -> Result<Columns<'a>> {
        fn hidden<'b, T: 'static>(chunk: &'b Chunk, name: &str) -> Result<&'b T> {
            let column = chunk.hidden.column_by_name(name).and_then(|column| column.as_any().downcast_ref());
            column.ok_or_else(|| wrong("a hidden column is missing"))
        }
        let values = schema.columns.iter().zip(places).map(|(column, place)| match place {
            None => Ok(None),
            Some(place) => {
                let decoded = chunk.columns.get(*place).ok_or_else(|| wrong("a column is missing"))?;
                Ok(Some(Values { column, array: decoded.array.as_ref(), places: decoded.places.as_deref() }))
            }
        });
        Ok(Columns {
            schema,
            table: values.collect::<Result<_>>()?,
            tids: hidden(chunk, TID_COLUMN)?,
            xmins: hidden(chunk, XMIN_COLUMN)?,
            forms: hidden(chunk, FORM_COLUMN)?,
        })
    }

    /// Builds a row, with its body in `body`.
    ///
    /// # Errors
    /// `Corrupt` when its values are none of its columns.
    pub fn row<'b>(&self, row: usize, body: &'b mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<Row<'b>> {
        let mut form = form_of(Some(self.forms), row)?;
        let natts = form.natts.map_or(self.table.len(), usize::from);
        let infomask = match form.body.take() {
            Some((infomask, stored)) => {
                *body = stored;
                infomask
            }
            None => self.body(row, natts, &form, body, scratch)?,
        };
        Ok(Row {
            xmin: self.xmins.value(row) as u64,
            heap_only: form.heap_only,
            updated: form.updated,
            natts: natts as u16,
            infomask: infomask & tuple::DERIVED_BITS,
            body,
        })
    }

    fn body(&self, row: usize, natts: usize, form: &RowForm, body: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<u16> {
        let table = self.table.get(..natts).ok_or_else(|| wrong("a row has more columns than its table"))?;
        let pointer = |values: &Values<'_>| -> Option<&ValuePointer> {
            form.pointers.iter().find(|pointer| pointer.attnum == values.column.attnum)
        };
        let is_null = |place: usize| match &table[place] {
            None => true,
            Some(values) => values.is_null(row) && pointer(values).is_none(),
        };
        let mut builder = BodyBuilder::new(natts, is_null, body);
        for values in table.iter().enumerate().filter(|(place, _)| !is_null(*place)).filter_map(|(_, values)| values.as_ref()) {
            match pointer(values) {
                Some(pointer) => builder.push(values.column, &Pointer::of(pointer, self.schema.table_oid).to_bytes()),
                None => builder.push_payload(values.column, values.payload(row, scratch)?),
            }
        }
        Ok(builder.finish())
    }
}
