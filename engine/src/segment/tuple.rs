//! Takes tuples apart into attributes and puts them together, by the rules of Postgres' heap.

use super::form::ValuePointer;
use super::{Align, Column};
use crate::error::{Error, Result};
use crate::page::infomask::{HEAP_HASEXTERNAL, HEAP_HASNULL};
use crate::page::{TUPLE_HEADER, Version};

/// Some attribute has a length of its own.
const HEAP_HASVARWIDTH: u16 = 0x0002;
/// The bits of the first mask that follow from the attributes.
pub const DERIVED_BITS: u16 = HEAP_HASNULL | HEAP_HASVARWIDTH | HEAP_HASEXTERNAL;

/// First byte of a pointer to a value that stands elsewhere.
const EXTERNAL: u8 = 0x01;
/// Second byte of one to a value in a table's overflow pages.
const ON_DISK: u8 = 18;
/// Length of such a pointer.
pub const POINTER_LEN: usize = 18;
/// Bytes of a full varlena header.
pub const VARLENA: usize = 4;
/// Greatest length, header included, of a value with a header of one byte.
const SHORT_MAX: usize = 0x7f;

/// A pointer to a value in overflow pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pointer {
    /// Length of the value with a full header, uncompressed.
    pub rawsize: u32,
    /// Length as stored, and in the upper two bits how it is compressed.
    pub extinfo: u32,
    /// The value's number.
    pub value: u32,
    /// OID of the table it belongs to.
    pub table: u32,
}

impl Pointer {
    /// The pointer to a row's value.
    pub fn of(pointer: &ValuePointer, table: u32) -> Pointer {
        let extinfo = if pointer.compressed != 0 { pointer.compressed } else { pointer.length };
        Pointer { rawsize: pointer.length.saturating_add(VARLENA as u32), extinfo, value: pointer.value, table }
    }

    /// Length as stored.
    pub fn stored_len(&self) -> usize {
        (self.extinfo & 0x3FFF_FFFF) as usize
    }

    /// Whether what is stored is compressed.
    pub fn is_compressed(&self) -> bool {
        self.stored_len() + VARLENA < self.rawsize as usize
    }

    /// As it stands in a tuple.
    pub fn to_bytes(self) -> [u8; POINTER_LEN] {
        let mut bytes = [EXTERNAL; POINTER_LEN];
        bytes[1] = ON_DISK;
        for (place, word) in bytes[2..].chunks_exact_mut(4).zip([self.rawsize, self.extinfo, self.value, self.table]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Pointer> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Pointer { rawsize: word(2)?, extinfo: word(6)?, value: word(10)?, table: word(14)? })
    }
}

/// An attribute that is not null, as it stands in a tuple.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored<'a> {
    /// The value: without varlena header, or without the zero byte of a C string.
    Inline(&'a [u8]),
    /// The value compressed, without the first four bytes of its header.
    Compressed(&'a [u8]),
    /// It stands in overflow pages.
    Elsewhere(Pointer),
}

/// An attribute with its bytes, header included.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    /// All bytes.
    pub raw: &'a [u8],
    /// What they are.
    pub stored: Stored<'a>,
}

#[cold]
fn malformed() -> Error {
    Error::corrupt("row does not have the form of its table's columns")
}

/// Replaces the contents of `attributes` with those of a row; nothing for null. There are as many as the row has.
///
/// # Errors
/// `Corrupt` when the bytes do not suit the columns.
pub fn attributes<'a>(columns: &[Column], version: Version<'a>, attributes: &mut Vec<Option<Attribute<'a>>>) -> Result<()> {
    attributes.clear();
    let (tuple, natts) = (version.tuple(), version.natts() as usize);
    let columns = columns.get(..natts).ok_or_else(malformed)?;
    let nulls = (version.infomask() & HEAP_HASNULL != 0).then(|| tuple.get(TUPLE_HEADER..)).flatten();
    let data = tuple.get(version.hoff()..).ok_or_else(malformed)?;
    let mut at = 0;
    for (place, column) in columns.iter().enumerate() {
        if nulls.is_some_and(|bitmap| bitmap.get(place / 8).is_some_and(|bits| bits & (1 << (place % 8)) == 0)) {
            attributes.push(None);
            continue;
        }
        let (attribute, end) = attribute_at(data, at, column.len, column.align).ok_or_else(malformed)?;
        attributes.push(Some(attribute));
        at = end;
    }
    Ok(())
}

/// The attribute at or behind a position, and the position behind it.
pub fn attribute_at(data: &[u8], at: usize, len: i16, align: Align) -> Option<(Attribute<'_>, usize)> {
    let aligned = at.next_multiple_of(align.bytes());
    if len > 0 {
        let end = aligned + len as usize;
        let raw = data.get(aligned..end)?;
        return Some((Attribute { raw, stored: Stored::Inline(raw) }, end));
    }
    if len == -2 {
        let rest = data.get(aligned..)?;
        let zero = rest.iter().position(|byte| *byte == 0)?;
        return Some((Attribute { raw: &rest[..=zero], stored: Stored::Inline(&rest[..zero]) }, aligned + zero + 1));
    }
    // A byte that is not zero here is the header of a short value or of a pointer, which are not aligned.
    let start = if *data.get(at)? != 0 { at } else { aligned };
    let rest = data.get(start..)?;
    let (length, header) = varlena_len(rest)?;
    let raw = rest.get(..length)?;
    let stored = match (raw[0], header) {
        (EXTERNAL, _) => Stored::Elsewhere(Pointer::read(raw)?),
        (first, VARLENA) if first & 3 == 2 => Stored::Compressed(&raw[VARLENA..]),
        _ => Stored::Inline(&raw[header..]),
    };
    Some((Attribute { raw, stored }, start + length))
}

/// Length of a varlena with its header, and of the header.
fn varlena_len(bytes: &[u8]) -> Option<(usize, usize)> {
    let first = *bytes.first()?;
    if first == EXTERNAL {
        return (bytes.get(1) == Some(&ON_DISK)).then_some((POINTER_LEN, 2));
    }
    if first & 1 != 0 {
        return Some((usize::from(first >> 1), 1));
    }
    let length = u32::from_le_bytes(bytes.get(..VARLENA)?.try_into().ok()?) >> 2;
    (length as usize >= VARLENA).then_some((length as usize, VARLENA))
}

/// Whether a value that was taken apart has the header that [`put_header`] gives its payload: there are two, and their lengths differ.
pub fn has_usual_header(len: i16, packed: bool, raw: &[u8], payload: &[u8]) -> bool {
    let header = if packed && payload.len() < SHORT_MAX { 1 } else { VARLENA };
    len != -1 || raw.len() == header + payload.len()
}

/// Appends a value as a tuple stores it, header included and unaligned.
pub fn put_header(len: i16, packed: bool, payload: &[u8], out: &mut Vec<u8>) {
    match len {
        -1 if packed && payload.len() < SHORT_MAX => {
            out.push(((payload.len() + 1) << 1 | 1) as u8);
            out.extend_from_slice(payload);
        }
        -1 => {
            out.extend_from_slice(&(((payload.len() + VARLENA) as u32) << 2).to_le_bytes());
            out.extend_from_slice(payload);
        }
        -2 => {
            out.extend_from_slice(payload);
            out.push(0);
        }
        _ => out.extend_from_slice(payload),
    }
}

/// Puts a tuple's bytes together, from the hoff byte on. Replaces the contents of `body`.
pub struct BodyBuilder<'b> {
    body: &'b mut Vec<u8>,
    start: usize,
    infomask: u16,
}

impl<'b> BodyBuilder<'b> {
    /// Begins with the bitmap of nulls, if there is one; `is_null` is asked for each attribute.
    pub fn new(natts: usize, is_null: impl Fn(usize) -> bool, body: &'b mut Vec<u8>) -> BodyBuilder<'b> {
        let has_null = (0..natts).any(&is_null);
        let bitmap = if has_null { natts.div_ceil(8) } else { 0 };
        let hoff = (TUPLE_HEADER + bitmap).next_multiple_of(8);
        body.clear();
        body.push(hoff as u8);
        body.resize(1 + hoff - TUPLE_HEADER, 0);
        if has_null {
            for place in (0..natts).filter(|place| !is_null(*place)) {
                body[1 + place / 8] |= 1 << (place % 8);
            }
        }
        let start = body.len();
        BodyBuilder { body, start, infomask: if has_null { HEAP_HASNULL } else { 0 } }
    }

    fn align(&mut self, align: Align) {
        let length = self.start + (self.body.len() - self.start).next_multiple_of(align.bytes());
        self.body.resize(length, 0);
    }

    /// Adds a value with its header.
    pub fn push(&mut self, column: &Column, raw: &[u8]) {
        let header = raw.first().copied().unwrap_or(0);
        if column.len != -1 || header & 1 == 0 {
            self.align(column.align);
        }
        if column.len < 0 {
            self.infomask |= HEAP_HASVARWIDTH;
        }
        if column.len == -1 && header == EXTERNAL {
            self.infomask |= HEAP_HASEXTERNAL;
        }
        self.body.extend_from_slice(raw);
    }

    /// Adds a value, with the header that [`put_header`] gives it.
    pub fn push_payload(&mut self, column: &Column, payload: &[u8]) {
        let short = column.len == -1 && column.packed && payload.len() < SHORT_MAX;
        if !short {
            self.align(column.align);
        }
        if column.len < 0 {
            self.infomask |= HEAP_HASVARWIDTH;
        }
        put_header(column.len, column.packed, payload, self.body);
    }

    /// The bits of the first mask that follow from the values.
    pub fn finish(self) -> u16 {
        self.infomask
    }
}

/// Builds a tuple's bytes from the hoff byte on, of values with their headers; returns the bits of the first mask that follow.
/// Replaces the contents of `body`.
pub fn build_body<'v>(columns: &[Column], value: impl Fn(usize) -> Option<&'v [u8]>, body: &mut Vec<u8>) -> u16 {
    let mut builder = BodyBuilder::new(columns.len(), |place| value(place).is_none(), body);
    for (place, column) in columns.iter().enumerate() {
        if let Some(raw) = value(place) {
            builder.push(column, raw);
        }
    }
    builder.finish()
}
