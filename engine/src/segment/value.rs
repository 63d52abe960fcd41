//! Values between Postgres' stored form and what a lake reader sees; only what leads back to the same bytes is taken.

use std::borrow::Cow;

use super::tuple::{Stored, VARLENA, attribute_at};
use super::{Align, ColumnKind, jsonb, numeric};

/// Days from 1970-01-01 to 2000-01-01, and microseconds.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = 946_684_800_000_000;
const DAY_MICROS: i64 = 86_400_000_000;

/// A value as a lake reader sees it.
#[derive(Clone, PartialEq, Debug)]
pub enum Value<'a> {
    Bool(bool),
    Int16(i16),
    Int32(i32),
    Int64(i64),
    Float32(f32),
    Float64(f64),
    Decimal(i128),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Option<Value<'a>>>),
}

impl Value<'_> {
    /// Length of a text; 0 for what is no text, which is about as long as what is stored.
    pub fn text_len(&self) -> usize {
        match self {
            Value::Text(text) => text.len(),
            _ => 0,
        }
    }
}

/// The value of a payload, if writing it again gives the same payload. `scratch` is used for that.
pub fn exact<'a>(kind: &ColumnKind, len: i16, payload: &'a [u8], scratch: &mut Vec<u8>) -> Option<Value<'a>> {
    let value = read(kind, len, payload)?;
    if is_payload_itself(kind, len) {
        return Some(value);
    }
    scratch.clear();
    write(kind, len, &value, scratch)?;
    (scratch == payload).then_some(value)
}

/// Whether reading leaves nothing to be proved: the value is the payload, or a number at a fixed distance from its own.
fn is_payload_itself(kind: &ColumnKind, len: i16) -> bool {
    match kind {
        ColumnKind::Text => len < 0,
        ColumnKind::Int2 | ColumnKind::Int4 | ColumnKind::Int8 | ColumnKind::Date | ColumnKind::Time => true,
        ColumnKind::Timestamp | ColumnKind::TimestampTz | ColumnKind::Uuid => true,
        ColumnKind::Json | ColumnKind::Bytea | ColumnKind::Opaque => true,
        _ => false,
    }
}

/// What a stored value is to a lake reader; it need not lead back.
fn read<'a>(kind: &ColumnKind, len: i16, payload: &'a [u8]) -> Option<Value<'a>> {
    let text = |bytes: &'a [u8]| std::str::from_utf8(bytes).ok().map(|text| Value::Text(Cow::Borrowed(text)));
    Some(match kind {
        ColumnKind::Bool => Value::Bool(match payload {
            [0] => false,
            [1] => true,
            _ => return None,
        }),
        ColumnKind::Int2 => Value::Int16(i16::from_le_bytes(payload.try_into().ok()?)),
        ColumnKind::Int4 => Value::Int32(int4(payload)?),
        ColumnKind::Int8 => Value::Int64(int8(payload)?),
        ColumnKind::Float4 => Value::Float32(f32::from_le_bytes(payload.try_into().ok()?)),
        ColumnKind::Float8 => Value::Float64(f64::from_le_bytes(payload.try_into().ok()?)),
        // The infinities have no counterpart, and neither has what is beyond the range.
        ColumnKind::Date => {
            let day = int4(payload).filter(|day| *day != i32::MIN && *day != i32::MAX)?;
            Value::Int32(day.checked_add(EPOCH_DAYS)?)
        }
        ColumnKind::Time => Value::Int64(int8(payload).filter(|time| (0..DAY_MICROS).contains(time))?),
        ColumnKind::Timestamp | ColumnKind::TimestampTz => {
            let time = int8(payload).filter(|time| *time != i64::MIN && *time != i64::MAX)?;
            Value::Int64(time.checked_add(EPOCH_MICROS)?)
        }
        ColumnKind::Numeric { precision, scale } => {
            let scale = u8::try_from(*scale).ok()?;
            let digits = numeric::to_i128(payload, scale)?;
            Value::Decimal(Some(digits).filter(|digits| digits.unsigned_abs() < 10u128.pow((*precision).into()))?)
        }
        ColumnKind::NumericText => Value::Text(numeric::to_text(payload)?.into()),
        ColumnKind::Text if len > 0 => text(payload.split(|byte| *byte == 0).next()?)?,
        ColumnKind::Text | ColumnKind::Json => text(payload)?,
        ColumnKind::Jsonb => Value::Text(jsonb::to_text(payload)?.into()),
        ColumnKind::Bytea | ColumnKind::Opaque => Value::Bytes(Cow::Borrowed(payload)),
        ColumnKind::Uuid => Value::Bytes(Cow::Borrowed(Some(payload).filter(|bytes| bytes.len() == 16)?)),
        ColumnKind::Array { element, element_oid, len, align, .. } => {
            Value::List(read_list(element, *element_oid, *len, *align, payload)?)
        }
    })
}

/// Appends a value's payload; nothing when the value is none of this kind.
pub fn write(kind: &ColumnKind, len: i16, value: &Value<'_>, out: &mut Vec<u8>) -> Option<()> {
    match (kind, value) {
        (ColumnKind::Bool, Value::Bool(value)) => out.push((*value).into()),
        (ColumnKind::Int2, Value::Int16(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (ColumnKind::Int4, Value::Int32(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (ColumnKind::Date, Value::Int32(value)) => out.extend_from_slice(&value.wrapping_sub(EPOCH_DAYS).to_le_bytes()),
        (ColumnKind::Int8 | ColumnKind::Time, Value::Int64(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (ColumnKind::Timestamp | ColumnKind::TimestampTz, Value::Int64(value)) => {
            out.extend_from_slice(&value.wrapping_sub(EPOCH_MICROS).to_le_bytes());
        }
        (ColumnKind::Float4, Value::Float32(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (ColumnKind::Float8, Value::Float64(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (ColumnKind::Numeric { scale, .. }, Value::Decimal(value)) => {
            out.extend_from_slice(&numeric::from_i128(*value, u8::try_from(*scale).ok()?));
        }
        (ColumnKind::NumericText, Value::Text(text)) => out.extend_from_slice(&numeric::from_text(text)?),
        (ColumnKind::Text, Value::Text(text)) if len > 0 => {
            let padding = (len as usize).checked_sub(text.len())?;
            out.extend_from_slice(text.as_bytes());
            out.resize(out.len() + padding, 0);
        }
        (ColumnKind::Text | ColumnKind::Json, Value::Text(text)) => out.extend_from_slice(text.as_bytes()),
        (ColumnKind::Jsonb, Value::Text(text)) => jsonb::append_stored(text, out)?,
        (ColumnKind::Bytea | ColumnKind::Opaque | ColumnKind::Uuid, Value::Bytes(bytes)) => out.extend_from_slice(bytes),
        (ColumnKind::Array { element, element_oid, len, align, .. }, Value::List(elements)) => {
            write_list(element, *element_oid, *len, *align, elements, out)?;
        }
        _ => return None,
    }
    Some(())
}

fn int4(payload: &[u8]) -> Option<i32> {
    Some(i32::from_le_bytes(payload.try_into().ok()?))
}

fn int8(payload: &[u8]) -> Option<i64> {
    Some(i64::from_le_bytes(payload.try_into().ok()?))
}

/// Bytes of an array's header without its varlena header: dimensions, where the data is, element type.
const ARRAY_HEADER: usize = 12;
/// Of that and of one dimension: its length and its lower bound.
const LIST_HEADER: usize = ARRAY_HEADER + 8;

fn read_list<'a>(kind: &ColumnKind, oid: u32, len: i16, align: Align, payload: &'a [u8]) -> Option<Vec<Option<Value<'a>>>> {
    let word = |at: usize| int4(payload.get(at..at + 4)?);
    let (dimensions, data_offset) = (word(0)?, usize::try_from(word(4)?).ok()?);
    if word(8)? as u32 != oid {
        return None;
    }
    if dimensions == 0 {
        return Some(Vec::new());
    }
    let count = usize::try_from(word(ARRAY_HEADER)?).ok()?;
    if dimensions != 1 || word(ARRAY_HEADER + 4)? != 1 || count > payload.len() * 8 {
        return None;
    }
    let nulls = (data_offset > 0).then(|| payload.get(LIST_HEADER..LIST_HEADER + count.div_ceil(8)));
    let nulls = match nulls {
        Some(bitmap) => Some(bitmap?),
        None => None,
    };
    let mut at = if data_offset > 0 { data_offset } else { VARLENA + LIST_HEADER };
    // Alignment counts from the start of the value, header included.
    let whole = Whole(payload);
    let mut elements = Vec::with_capacity(count);
    for place in 0..count {
        if nulls.is_some_and(|bitmap| bitmap[place / 8] & (1 << (place % 8)) == 0) {
            elements.push(None);
            continue;
        }
        at = at.next_multiple_of(align.bytes());
        let (attribute, end) = attribute_at(whole.from(at)?, 0, len, Align::Char)?;
        let Stored::Inline(bytes) = attribute.stored else { return None };
        elements.push(Some(read(kind, len, bytes)?));
        at += end;
    }
    Some(elements)
}

/// A value's bytes by their position with the varlena header.
struct Whole<'a>(&'a [u8]);

impl<'a> Whole<'a> {
    fn from(&self, at: usize) -> Option<&'a [u8]> {
        self.0.get(at.checked_sub(VARLENA)?..)
    }
}

fn write_list(
    kind: &ColumnKind,
    oid: u32,
    len: i16,
    align: Align,
    elements: &[Option<Value<'_>>],
    out: &mut Vec<u8>,
) -> Option<()> {
    let base = out.len();
    let count = elements.len();
    let has_null = elements.iter().any(Option::is_none);
    let bitmap = if has_null { count.div_ceil(8) } else { 0 };
    let data = (VARLENA + LIST_HEADER + bitmap).next_multiple_of(8);
    let dimensions = i32::from(count > 0);
    let data_offset = if has_null { i32::try_from(data).ok()? } else { 0 };
    [dimensions, data_offset, oid as i32].into_iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    if count == 0 {
        return Some(());
    }
    [i32::try_from(count).ok()?, 1].into_iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    out.resize(base + data - VARLENA, 0);
    let mut payload = Vec::new();
    for (place, element) in elements.iter().enumerate() {
        let Some(element) = element else { continue };
        if has_null {
            out[base + LIST_HEADER + place / 8] |= 1 << (place % 8);
        }
        let position = out.len() - base + VARLENA;
        out.resize(base + position.next_multiple_of(align.bytes()) - VARLENA, 0);
        payload.clear();
        write(kind, len, element, &mut payload)?;
        super::tuple::put_header(len, false, &payload, out);
    }
    // Postgres fills up behind each element.
    let position = out.len() - base + VARLENA;
    out.resize(base + position.next_multiple_of(align.bytes()) - VARLENA, 0);
    Some(())
}
