//! What the columns alone do not tell of a row: the contents of the hidden column `_kalam_form`. Most rows have none.

use super::stub::{Fields, put_varint};
use crate::error::{Error, Result};

const VERSION: u8 = 1;

const HEAP_ONLY: u8 = 1;
const UPDATED: u8 = 2;
const NATTS: u8 = 4;
const POINTERS: u8 = 8;
const BODY: u8 = 16;
const LARGE: u8 = 32;

/// A value in overflow pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ValuePointer {
    pub attnum: i16,
    /// Its number.
    pub value: u32,
    /// Its length, uncompressed and without a header.
    pub length: u32,
    /// Its length as stored, with its method in the upper two bits, if it is compressed there; else 0.
    pub compressed: u32,
}

/// A row's form.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RowForm {
    /// No index names the row: HEAP_ONLY_TUPLE.
    pub heap_only: bool,
    /// The row is the new side of an update: HEAP_UPDATED.
    pub updated: bool,
    /// Number of attributes, where it is not that of the segment's columns.
    pub natts: Option<u16>,
    /// The values in overflow pages.
    pub pointers: Vec<ValuePointer>,
    /// The tuple's bytes from the hoff byte on, with the mask bits that follow from them, where the columns do not lead back to it.
    pub body: Option<(u16, Vec<u8>)>,
    /// Values in overflow pages that do not follow from their column, as they stand there.
    pub large: Vec<(i16, Vec<u8>)>,
}

impl RowForm {
    /// The stored form; nothing for a row that needs none.
    pub fn encode(&self) -> Option<Vec<u8>> {
        if *self == RowForm::default() {
            return None;
        }
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = flag(self.heap_only, HEAP_ONLY)
            | flag(self.updated, UPDATED)
            | flag(self.natts.is_some(), NATTS)
            | flag(!self.pointers.is_empty(), POINTERS)
            | flag(self.body.is_some(), BODY)
            | flag(!self.large.is_empty(), LARGE);
        let mut out = vec![VERSION, flags];
        if let Some(natts) = self.natts {
            put_varint(&mut out, natts.into());
        }
        if !self.pointers.is_empty() {
            put_varint(&mut out, self.pointers.len() as u64);
            for pointer in &self.pointers {
                put_varint(&mut out, pointer.attnum.unsigned_abs().into());
                put_varint(&mut out, pointer.value.into());
                put_varint(&mut out, pointer.length.into());
                put_varint(&mut out, pointer.compressed.into());
            }
        }
        if let Some((infomask, body)) = &self.body {
            put_varint(&mut out, (*infomask).into());
            put_varint(&mut out, body.len() as u64);
            out.extend_from_slice(body);
        }
        if !self.large.is_empty() {
            put_varint(&mut out, self.large.len() as u64);
            for (attnum, value) in &self.large {
                put_varint(&mut out, attnum.unsigned_abs().into());
                put_varint(&mut out, value.len() as u64);
                out.extend_from_slice(value);
            }
        }
        Some(out)
    }

    /// Reads a stored form.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<RowForm> {
        let mut fields = Fields(bytes);
        let (version, flags) = (fields.u8()?, fields.u8()?);
        if version != VERSION {
            return Err(Error::corrupt(format!("row has a form of the unknown version {version}")));
        }
        let mut form = RowForm { heap_only: flags & HEAP_ONLY != 0, updated: flags & UPDATED != 0, ..RowForm::default() };
        if flags & NATTS != 0 {
            form.natts = Some(fields.number()?);
        }
        if flags & POINTERS != 0 {
            for _ in 0..fields.count()? {
                let (attnum, value) = (fields.number()?, fields.number()?);
                let (length, compressed) = (fields.number()?, fields.number()?);
                form.pointers.push(ValuePointer { attnum, value, length, compressed });
            }
        }
        if flags & BODY != 0 {
            let infomask = fields.number()?;
            let length = fields.count()?;
            form.body = Some((infomask, fields.bytes(length)?.to_vec()));
        }
        if flags & LARGE != 0 {
            for _ in 0..fields.count()? {
                let attnum = fields.number()?;
                let length = fields.count()?;
                form.large.push((attnum, fields.bytes(length)?.to_vec()));
            }
        }
        fields.end()?;
        Ok(form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_comes_back() {
        let form = RowForm {
            heap_only: true,
            updated: false,
            natts: Some(3),
            pointers: vec![ValuePointer { attnum: 2, value: 77, length: 100_000, compressed: 0x4000_0100 }],
            body: Some((6, vec![24, 1, 2])),
            large: vec![(2, vec![9; 300])],
        };
        let bytes = form.encode().unwrap();
        assert_eq!(RowForm::decode(&bytes).unwrap(), form);
        for end in 0..bytes.len() {
            assert!(RowForm::decode(&bytes[..end]).is_err());
        }
    }

    #[test]
    fn a_usual_row_needs_none() {
        assert_eq!(RowForm::default().encode(), None);
    }
}
