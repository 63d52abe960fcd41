//! Owns the stubs: what the store keeps of a cold block or value, and what the segment's own table of them holds.
//!
//! A stub is a format version, fields as varints, and the checksum of what is rebuilt; the encoding is in docs/formats.md.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::Lsn;
use crate::page::{MAX_OFFSET, PAGE_SIZE};

const BLOCK_VERSION: u8 = 1;
const VALUE_VERSION: u8 = 2;

/// Where a cold block is and what its line pointers without rows are. The others, up to `max_offset`, have the rows in order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct BlockStub {
    /// The block.
    pub block: u32,
    /// The segment with its rows.
    pub segment: u64,
    /// Its first row in the segment, counted from 0.
    pub first_row: u64,
    /// How many rows it has.
    pub rows: u16,
    /// The LSN that the page had when it was copied.
    pub lsn: Lsn,
    /// The page's partition.
    pub partition: u32,
    /// crc32c of the compact image that is rebuilt.
    pub checksum: u32,
    /// Length of that image.
    pub image_len: u16,
    /// The highest line pointer.
    pub max_offset: u16,
    /// Dead line pointers, ascending.
    pub dead: Vec<u16>,
    /// Unused line pointers, ascending.
    pub unused: Vec<u16>,
    /// Redirects and what they name, ascending by the first.
    pub redirects: Vec<(u16, u16)>,
}

/// Where a large value of a cold row is. The chunk pages hold exactly the bytes that are read by it, uncompressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ValueStub {
    /// The value's number in its storage.
    pub value: u32,
    /// The segment with it.
    pub segment: u64,
    /// The block whose row names it. Both become cold together or not at all.
    pub block: u32,
    /// The row in the segment, counted from 0.
    pub row: u64,
    /// The column.
    pub attnum: i16,
    /// Length of the value.
    pub length: u32,
    /// How many row versions name it.
    pub references: u32,
    /// The LSN that chunk 0 had when it was copied; 0 for a value that stood compressed in its row and has no chunks yet.
    pub lsn: Lsn,
    /// crc32c of the value.
    pub checksum: u32,
}

impl BlockStub {
    /// Appends the stored form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(BLOCK_VERSION);
        for field in [self.block.into(), self.segment, self.first_row, self.rows.into(), self.lsn.0, self.partition.into()] {
            put_varint(out, field);
        }
        out.extend_from_slice(&self.checksum.to_le_bytes());
        put_varint(out, self.image_len.into());
        put_varint(out, self.max_offset.into());
        put_ascending(out, &self.dead);
        put_ascending(out, &self.unused);
        put_varint(out, self.redirects.len() as u64);
        for &(from, to) in &self.redirects {
            put_varint(out, from.into());
            put_varint(out, to.into());
        }
    }

    /// The stored form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        self.encode(&mut out);
        out
    }

    /// Reads a stored form.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<BlockStub> {
        let mut fields = Fields(bytes);
        let stub = BlockStub::take(&mut fields)?;
        fields.end()?;
        Ok(stub)
    }

    /// Reads a stored form that others follow.
    pub(super) fn take(fields: &mut Fields<'_>) -> Result<BlockStub> {
        fields.version(BLOCK_VERSION)?;
        let mut stub = BlockStub {
            block: fields.number()?,
            segment: fields.number()?,
            first_row: fields.number()?,
            rows: fields.number()?,
            lsn: Lsn(fields.number()?),
            partition: fields.number()?,
            checksum: fields.u32()?,
            image_len: fields.number()?,
            max_offset: fields.number()?,
            dead: fields.ascending()?,
            unused: fields.ascending()?,
            redirects: Vec::new(),
        };
        for _ in 0..fields.count()? {
            stub.redirects.push((fields.number()?, fields.number()?));
        }
        stub.check()?;
        Ok(stub)
    }

    /// Whether the line pointers make sense together: each is one thing, and the rows are the rest.
    fn check(&self) -> Result<()> {
        let mut taken = [false; MAX_OFFSET as usize + 1];
        let all = self.dead.iter().chain(&self.unused).chain(self.redirects.iter().map(|(from, _)| from));
        for &offset in all {
            if offset == 0 || offset > self.max_offset.min(MAX_OFFSET) || taken[offset as usize] {
                return Err(wrong());
            }
            taken[offset as usize] = true;
        }
        let rest = (1..=self.max_offset.min(MAX_OFFSET)).filter(|&offset| !taken[offset as usize]).count();
        let fits = self.max_offset <= MAX_OFFSET && self.image_len as usize <= PAGE_SIZE && rest == self.rows as usize;
        if fits && self.first_row.checked_add(rest as u64).is_some() { Ok(()) } else { Err(wrong()) }
    }

    /// The line pointers that have rows, ascending.
    pub fn row_offsets(&self) -> Vec<u16> {
        let other = |offset: &u16| {
            self.dead.contains(offset) || self.unused.contains(offset) || self.redirects.iter().any(|(from, _)| from == offset)
        };
        (1..=self.max_offset).filter(|offset| !other(offset)).collect()
    }
}

impl ValueStub {
    /// Appends the stored form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VALUE_VERSION);
        let attnum = self.attnum.unsigned_abs();
        for field in [self.value.into(), self.segment, self.block.into(), self.row, attnum.into(), self.length.into()] {
            put_varint(out, field);
        }
        put_varint(out, self.references.into());
        put_varint(out, self.lsn.0);
        out.extend_from_slice(&self.checksum.to_le_bytes());
    }

    /// The stored form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        self.encode(&mut out);
        out
    }

    /// Reads a stored form.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<ValueStub> {
        let mut fields = Fields(bytes);
        let stub = ValueStub::take(&mut fields)?;
        fields.end()?;
        Ok(stub)
    }

    /// Reads a stored form that others follow.
    pub(super) fn take(fields: &mut Fields<'_>) -> Result<ValueStub> {
        fields.version(VALUE_VERSION)?;
        Ok(ValueStub {
            value: fields.number()?,
            segment: fields.number()?,
            block: fields.number()?,
            row: fields.number()?,
            attnum: fields.number()?,
            length: fields.number()?,
            references: fields.number()?,
            lsn: Lsn(fields.number()?),
            checksum: fields.u32()?,
        })
    }
}

/// Appends a number with seven bits a byte, lowest first.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A count, then the distance of each number from the one before.
fn put_ascending(out: &mut Vec<u8>, numbers: &[u16]) {
    put_varint(out, numbers.len() as u64);
    let mut last = 0;
    for &number in numbers {
        put_varint(out, number.wrapping_sub(last).into());
        last = number;
    }
}

#[cold]
fn wrong() -> Error {
    Error::corrupt("stub of a cold block has a wrong form")
}

/// Reads fields one behind the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or_else(wrong)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(crate::page::read_u32(self.bytes(4)?, 0))
    }

    pub(super) fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(wrong())
    }

    /// A varint that fits the wanted type.
    pub(super) fn number<T: TryFrom<u64>>(&mut self) -> Result<T> {
        T::try_from(self.varint()?).map_err(|_| wrong())
    }

    /// A count of things that take a byte at least.
    pub(super) fn count(&mut self) -> Result<usize> {
        let count: usize = self.number()?;
        if count <= self.0.len() { Ok(count) } else { Err(wrong()) }
    }

    fn ascending(&mut self) -> Result<Vec<u16>> {
        let mut numbers = Vec::new();
        let mut last = 0u16;
        for _ in 0..self.count()? {
            last = last.checked_add(self.number()?).ok_or_else(wrong)?;
            numbers.push(last);
        }
        Ok(numbers)
    }

    fn version(&mut self, known: u8) -> Result<()> {
        let version = self.u8()?;
        if version == known { Ok(()) } else { Err(Error::corrupt(format!("stub has the unknown format version {version}"))) }
    }

    pub(super) fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(wrong()) }
    }
}
