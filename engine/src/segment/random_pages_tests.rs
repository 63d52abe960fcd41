//! Makes random tables and pages as Postgres would store them, by code that shares nothing with the writer and the reader.

use std::collections::HashMap;

use super::stored_cases::{JSONB, NUMERIC, bytes};
use super::{Align, Column, ColumnKind, LargeValues, StoredValue, TableSchema};
use crate::error::{Error, Result};
use crate::ids::{Lsn, Tid};
use crate::page::infomask::*;
use crate::page::{ALL_VISIBLE, Header, LinePointer, MAX_OFFSET, PAGE_SIZE, Page, PageKind, PageMut, Version};

const HEAP_HASVARWIDTH: u16 = 2;
/// OID of the table that all pointers name.
pub const TABLE: u32 = 16_400;

/// Numbers that look random and are the same for the same seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// The overflow pages of a table.
#[derive(Default)]
pub struct Values {
    /// As stored.
    pub stored: HashMap<u32, StoredValue>,
    /// Uncompressed.
    pub plain: HashMap<u32, Vec<u8>>,
    pub next: u32,
}

impl LargeValues for Values {
    fn fetch(&mut self, value: u32) -> Result<StoredValue> {
        self.stored.get(&value).cloned().ok_or_else(|| Error::corrupt("missing chunk 0"))
    }

    fn allocate(&mut self) -> Result<u32> {
        self.next += 1;
        Ok(self.next)
    }
}

pub fn column(attnum: i16, kind: ColumnKind, len: i16, align: Align) -> Column {
    let by_value = matches!(len, 1 | 2 | 4 | 8);
    let (name, type_name) = (format!("c{attnum}"), format!("{kind:?}").to_lowercase());
    Column { attnum, name, type_name, kind, len, align, by_value, packed: true, dropped: false }
}

pub fn schema(columns: Vec<Column>) -> TableSchema {
    let bloom_columns = columns.iter().filter(|column| !column.dropped).map(|column| column.attnum).take(1).collect();
    TableSchema { namespace: "app".into(), table: "t".into(), table_oid: TABLE, version: 1, columns, bloom_columns }
}

/// Kind, attlen and attalign of types that a table may have.
fn kinds() -> Vec<(ColumnKind, i16, Align)> {
    let array = |element: ColumnKind, element_oid, len, align, by_value| {
        (ColumnKind::Array { element: Box::new(element), element_oid, len, align, by_value }, -1, Align::Double)
    };
    vec![
        (ColumnKind::Bool, 1, Align::Char),
        (ColumnKind::Int2, 2, Align::Short),
        (ColumnKind::Int4, 4, Align::Int),
        (ColumnKind::Int8, 8, Align::Double),
        (ColumnKind::Float4, 4, Align::Int),
        (ColumnKind::Float8, 8, Align::Double),
        (ColumnKind::Text, -1, Align::Int),
        (ColumnKind::Text, 64, Align::Char),
        (ColumnKind::Bytea, -1, Align::Int),
        (ColumnKind::Uuid, 16, Align::Char),
        (ColumnKind::Date, 4, Align::Int),
        (ColumnKind::Time, 8, Align::Double),
        (ColumnKind::Timestamp, 8, Align::Double),
        (ColumnKind::TimestampTz, 8, Align::Double),
        (ColumnKind::Numeric { precision: 12, scale: 2 }, -1, Align::Int),
        (ColumnKind::Numeric { precision: 38, scale: 0 }, -1, Align::Int),
        (ColumnKind::NumericText, -1, Align::Int),
        (ColumnKind::Json, -1, Align::Int),
        (ColumnKind::Jsonb, -1, Align::Int),
        array(ColumnKind::Int4, 23, 4, Align::Int, true),
        array(ColumnKind::Text, 25, -1, Align::Int, false),
        array(ColumnKind::Jsonb, 3802, -1, Align::Int, false),
        array(ColumnKind::Float8, 701, 8, Align::Double, true),
        (ColumnKind::Opaque, -1, Align::Int),
        (ColumnKind::Opaque, -1, Align::Double),
        (ColumnKind::Opaque, -2, Align::Char),
        (ColumnKind::Opaque, 6, Align::Short),
        (ColumnKind::Opaque, 16, Align::Double),
    ]
}

pub fn random_schema(random: &mut Random) -> TableSchema {
    let kinds = kinds();
    let mut columns: Vec<Column> = (0..1 + random.below(14))
        .map(|place| {
            let (kind, len, align) = random.pick(&kinds).clone();
            let mut column = column(place as i16 + 1, kind, len, align);
            column.packed = !random.one_in(8);
            column.dropped = random.one_in(10);
            column
        })
        .collect();
    columns[0].dropped = false;
    schema(columns)
}

fn random_text(random: &mut Random, longest: usize) -> Vec<u8> {
    const PIECES: [&str; 10] = ["a", "message ", "é", "日本", "😀", "\n", "\"", "\\", "  ", "\u{1}"];
    let length = random.below(longest + 1);
    let mut text = String::new();
    while text.len() < length {
        text.push_str(PIECES[random.below(PIECES.len())]);
    }
    text.into_bytes()
}

fn random_bytes(random: &mut Random, count: usize) -> Vec<u8> {
    (0..count).map(|_| random.next() as u8).collect()
}

/// A numeric below 10^8 with two digits behind the point, as Postgres stores it.
fn numeric_2(random: &mut Random) -> Vec<u8> {
    let (negative, whole, cents) = (random.one_in(2), random.below(1000) as u16, random.below(100) as u16);
    let mut digits = vec![whole, cents * 100];
    let mut weight = 0i16;
    while digits.first() == Some(&0) {
        digits.remove(0);
        weight -= 1;
    }
    while digits.last() == Some(&0) {
        digits.pop();
    }
    let sign = if negative && !digits.is_empty() { 0x2000 } else { 0 };
    let weight = if digits.is_empty() { 0 } else { weight };
    let weight_bits = if weight < 0 { 0x40 | (weight as u16 & 0x3f) } else { weight as u16 };
    let head: u16 = 0x8000 | sign | 2 << 7 | weight_bits;
    std::iter::once(head).chain(digits).flat_map(u16::to_le_bytes).collect()
}

/// The value without its header, as Postgres stores it; sometimes one that no lake type has.
fn random_payload(random: &mut Random, kind: &ColumnKind, len: i16) -> Vec<u8> {
    let longest = if random.one_in(20) { 3000 } else { 150 };
    match kind {
        ColumnKind::Bool => vec![random.below(2) as u8],
        ColumnKind::Float4 => random.pick(&[f32::NAN, -f32::NAN, -0.0, f32::INFINITY, 1.5]).to_le_bytes().to_vec(),
        ColumnKind::Float8 => {
            let odd = f64::from_bits(0x7ff0_0000_0000_0001 | random.next());
            random.pick(&[f64::NAN, -f64::NAN, -0.0, f64::NEG_INFINITY, 2.25, odd]).to_le_bytes().to_vec()
        }
        ColumnKind::Text if len > 0 => {
            let mut name = random_text(random, 20);
            name.resize(len as usize, 0);
            name
        }
        ColumnKind::Text | ColumnKind::Json if random.one_in(50) => vec![0xff, 0xfe, b'x'],
        ColumnKind::Text | ColumnKind::Json => random_text(random, longest),
        ColumnKind::Date => {
            let day = random.next() as i32 / 4;
            random.pick(&[0, day, i32::MIN, i32::MAX, -2_451_507, 2_145_031_948]).to_le_bytes().to_vec()
        }
        ColumnKind::Time => random.pick(&[0i64, 1, 86_399_999_999, 86_400_000_000]).to_le_bytes().to_vec(),
        ColumnKind::Timestamp | ColumnKind::TimestampTz => {
            let time = random.next() as i64 / 16;
            random.pick(&[0, time, i64::MIN, i64::MAX, 9_223_371_331_199_999_999]).to_le_bytes().to_vec()
        }
        ColumnKind::Numeric { scale: 2, .. } if !random.one_in(10) => numeric_2(random),
        ColumnKind::Numeric { .. } | ColumnKind::NumericText => bytes(random.pick(NUMERIC).0),
        ColumnKind::Jsonb if random.one_in(50) => random_bytes(random, 12),
        ColumnKind::Jsonb => bytes(random.pick(JSONB).0),
        ColumnKind::Array { element, element_oid, len, align, .. } => random_array(random, element, *element_oid, *len, *align),
        _ if len > 0 => random_bytes(random, len as usize),
        _ if len == -2 => random_text(random, 40),
        _ => {
            let count = random.below(longest);
            random_bytes(random, count)
        }
    }
}

/// An array without its varlena header, by the rules of `construct_md_array`.
fn random_array(random: &mut Random, element: &ColumnKind, oid: u32, len: i16, align: Align) -> Vec<u8> {
    let count = random.below(6);
    let dimensions = if count == 0 { 0 } else { 1 + u32::from(random.one_in(10)) };
    let with_nulls = count > 0 && random.one_in(3);
    let nulls: Vec<bool> = (0..count).map(|place| with_nulls && (place == 0 || random.one_in(3))).collect();
    let bitmap = if with_nulls { count.div_ceil(8) } else { 0 };
    let data = (16 + 8 * dimensions as usize + bitmap).next_multiple_of(8);
    let mut whole = vec![0; 4];
    let offset = if with_nulls { data as u32 } else { 0 };
    [dimensions, offset, oid].into_iter().for_each(|word| whole.extend_from_slice(&word.to_le_bytes()));
    if dimensions > 0 {
        let lower = if random.one_in(10) { 0u32 } else { 1 };
        let sizes = [count as u32, 1];
        sizes[..dimensions as usize].iter().for_each(|size| whole.extend_from_slice(&size.to_le_bytes()));
        (0..dimensions).for_each(|_| whole.extend_from_slice(&lower.to_le_bytes()));
    }
    let bitmap_at = whole.len();
    whole.resize(data, 0);
    for (place, null) in nulls.iter().enumerate().filter(|(_, null)| !**null) {
        debug_assert!(!null);
        if with_nulls {
            whole[bitmap_at + place / 8] |= 1 << (place % 8);
        }
        whole.resize(whole.len().next_multiple_of(align.bytes()), 0);
        let payload = random_payload(random, element, len);
        if len == -1 {
            whole.extend_from_slice(&((payload.len() as u32 + 4) << 2).to_le_bytes());
        }
        whole.extend_from_slice(&payload);
        whole.resize(whole.len().next_multiple_of(align.bytes()), 0);
    }
    whole.split_off(4)
}

/// A value as pglz might be compressed, but not as Postgres does it: runs of the byte before.
pub fn pglz(plain: &[u8]) -> Vec<u8> {
    let mut out = (plain.len() as u32).to_le_bytes().to_vec();
    let mut at = 0;
    while at < plain.len() {
        let control_at = out.len();
        out.push(0);
        for bit in 0..8 {
            if at == plain.len() {
                break;
            }
            let run = match at {
                0 => 0,
                _ => plain[at..].iter().take_while(|byte| **byte == plain[at - 1]).count().min(273),
            };
            if run < 3 {
                out.push(plain[at]);
                at += 1;
                continue;
            }
            out[control_at] |= 1 << bit;
            out.extend_from_slice(&[(run - 3).min(15) as u8, 1]);
            if run >= 18 {
                out.push((run - 18) as u8);
            }
            at += run;
        }
    }
    out
}

fn pointer(rawsize: usize, extinfo: usize, value: u32) -> Vec<u8> {
    let mut bytes = vec![1, 18];
    [rawsize as u32, extinfo as u32, value, TABLE].into_iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    bytes
}

/// A varlena in one of its forms: short, long, compressed, or moved out.
fn random_varlena(random: &mut Random, column: &Column, values: &mut Values) -> Vec<u8> {
    let mut payload = random_payload(random, &column.kind, column.len);
    let text = matches!(column.kind, ColumnKind::Text | ColumnKind::Opaque | ColumnKind::Bytea);
    if column.packed && text && random.one_in(15) {
        let repeated = *random.pick(b"abc");
        payload = std::iter::repeat_n(repeated, *random.pick(&[70, 500, 5000])).chain(random_text(random, 100)).collect();
        let compressed = pglz(&payload);
        return long(&compressed, 2);
    }
    if column.packed && random.one_in(15) {
        let mut stored = payload.clone();
        if text && random.one_in(2) {
            payload = b"message ".repeat(1000 + random.below(5_000));
            payload.extend(random_text(random, 500));
            stored = if random.one_in(2) { pglz(&payload) } else { super::compressed::compress_pglz(&payload) };
        }
        if stored.len() >= payload.len() {
            stored = payload.clone();
        }
        let extinfo = stored.len();
        values.next += 1;
        let value = values.next;
        let references = 1 + random.below(2) as u32;
        let rawsize = payload.len() + 4;
        values.stored.insert(value, StoredValue { bytes: stored, references, lsn: Lsn(7) });
        values.plain.insert(value, payload);
        return pointer(rawsize, extinfo, value);
    }
    if column.packed && payload.len() <= 126 && !random.one_in(30) {
        return std::iter::once(((payload.len() + 1) << 1 | 1) as u8).chain(payload).collect();
    }
    long(&payload, 0)
}

fn long(rest: &[u8], bits: u32) -> Vec<u8> {
    let head = ((rest.len() as u32 + 4) << 2 | bits).to_le_bytes();
    head.into_iter().chain(rest.iter().copied()).collect()
}

/// A tuple from the hoff byte on, with the bits of its mask, by the rules of `heap_fill_tuple`.
pub fn fill(columns: &[Column], attributes: &[Option<Vec<u8>>]) -> (Vec<u8>, u16) {
    let nulls = attributes.iter().any(Option::is_none);
    let bitmap = if nulls { attributes.len().div_ceil(8) } else { 0 };
    let hoff = (23 + bitmap).next_multiple_of(8);
    let mut body = vec![0; 1 + hoff - 23];
    body[0] = hoff as u8;
    let start = body.len();
    let mut mask = if nulls { HEAP_HASNULL } else { 0 };
    for (place, (column, attribute)) in columns.iter().zip(attributes).enumerate() {
        let Some(bytes) = attribute else { continue };
        if nulls {
            body[1 + place / 8] |= 1 << (place % 8);
        }
        if column.len != -1 || bytes[0] & 1 == 0 {
            body.resize(start + (body.len() - start).next_multiple_of(column.align.bytes()), 0);
        }
        if column.len < 0 {
            mask |= HEAP_HASVARWIDTH;
        }
        if column.len == -1 && bytes[0] == 1 {
            mask |= HEAP_HASEXTERNAL;
        }
        body.extend_from_slice(bytes);
    }
    (body, mask)
}

/// The attributes of a version, header included.
pub fn deform(columns: &[Column], version: Version<'_>) -> Vec<Option<Vec<u8>>> {
    let tuple = version.tuple();
    let mut at = version.hoff();
    let base = at;
    let mut attributes = Vec::new();
    for (place, column) in columns.iter().take(version.natts() as usize).enumerate() {
        if version.infomask() & HEAP_HASNULL != 0 && tuple[23 + place / 8] & (1 << (place % 8)) == 0 {
            attributes.push(None);
            continue;
        }
        if column.len != -1 || tuple[at] == 0 || tuple[at] & 1 == 0 {
            at = base + (at - base).next_multiple_of(column.align.bytes());
        }
        let count = match column.len {
            -1 if tuple[at] == 1 => 18,
            -1 if tuple[at] & 1 == 1 => (tuple[at] >> 1) as usize,
            -1 => (u32::from_le_bytes(tuple[at..at + 4].try_into().expect("four bytes")) >> 2) as usize,
            -2 => 1 + tuple[at..].iter().position(|byte| *byte == 0).expect("a C string ends"),
            len => len as usize,
        };
        attributes.push(Some(tuple[at..at + count].to_vec()));
        at += count;
    }
    assert_eq!(at, tuple.len(), "a tuple ends with its last attribute");
    attributes
}

fn random_attributes(random: &mut Random, columns: &[Column], values: &mut Values) -> Vec<Option<Vec<u8>>> {
    let natts = if random.one_in(10) { random.below(columns.len() + 1) } else { columns.len() };
    let null_chance = *random.pick(&[2, 10, 1000]);
    columns[..natts]
        .iter()
        .map(|column| {
            if random.one_in(null_chance) || (column.dropped && !random.one_in(3)) {
                return None;
            }
            Some(match column.len {
                -1 => random_varlena(random, column, values),
                -2 => random_payload(random, &column.kind, -2).into_iter().filter(|byte| *byte != 0).chain([0]).collect(),
                len => random_payload(random, &column.kind, len),
            })
        })
        .collect()
}

/// A page whose versions are all live, with line pointers of every state.
pub fn random_page(random: &mut Random, schema: &TableSchema, block: u32, values: &mut Values) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE];
    let mut page = PageMut::new(&mut bytes);
    page.init(PageKind::Data, random.below(3) as u32);
    page.set_lsn(Lsn(random.next() >> 20));
    if random.one_in(2) {
        page.set_flags(ALL_VISIBLE);
    }
    let wanted = *random.pick(&[0, 1, 5, 60, MAX_OFFSET as usize]);
    while (page.as_page().max_offset() as usize) < wanted {
        let next = page.as_page().max_offset() + 1;
        let mut heap_only = false;
        let added = match random.below(30) {
            0 => page.push_line(LinePointer::DEAD),
            1 => page.push_line(LinePointer::UNUSED),
            2 if next < MAX_OFFSET => {
                heap_only = true;
                page.push_line(LinePointer::redirected(next + 1))
                    .and_then(|_| add_version(random, &mut page, schema, block, values, heap_only))
            }
            3 if next < MAX_OFFSET => {
                heap_only = true;
                add_version(random, &mut page, schema, block, values, heap_only)
                    .and_then(|offset| page.push_line(LinePointer::redirected(offset)))
            }
            _ => add_version(random, &mut page, schema, block, values, heap_only),
        };
        if added.is_none() {
            break;
        }
    }
    drop_dangling_redirect(&mut bytes);
    Page::new(&bytes).check().expect("the page is sound");
    bytes
}

/// A page of short rows of a number and a text, of which every twentieth and its neighbours have a large value instead.
pub fn page_with_large_values(random: &mut Random, schema: &TableSchema, block: u32, values: &mut Values) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE];
    let mut page = PageMut::new(&mut bytes);
    page.init(PageKind::Data, 0);
    for offset in 1..=160 {
        let text = if offset % 20 < 3 {
            values.next += 1;
            let value = random_bytes(random, 200_000).iter().map(|byte| b'a' + byte % 26).collect::<Vec<u8>>();
            let stored = StoredValue { bytes: value.clone(), references: 1, lsn: Lsn(7) };
            let pointer = pointer(value.len() + 4, value.len(), values.next);
            values.stored.insert(values.next, stored);
            values.plain.insert(values.next, value);
            pointer
        } else {
            vec![(6 << 1) | 1, b's', b'm', b'a', b'l', b'l']
        };
        let attributes = [Some(u64::from(offset).to_le_bytes().to_vec()), Some(text)];
        let (body, mask) = fill(&schema.columns, &attributes);
        let infomask = mask | HEAP_XMIN_FROZEN | HEAP_XMAX_INVALID;
        let header = Header { xmin: 700, ctid: Tid::new(block, offset), infomask2: 2, infomask, ..Header::default() };
        page.add_row(&header, &body, Some(offset)).expect("there is room");
    }
    Page::new(&bytes).check().expect("the page is sound");
    bytes
}

/// A redirect whose target had no room would be wrong: the last line pointer.
fn drop_dangling_redirect(bytes: &mut [u8]) {
    let page = Page::new(bytes);
    let last = page.max_offset();
    if page.line(last).is_redirect() && page.line(last).redirect() > last {
        let lower = page.lower() - 4;
        bytes[lower..lower + 4].fill(0);
        bytes[16..18].copy_from_slice(&(lower as u16).to_le_bytes());
    }
}

fn add_version(
    random: &mut Random,
    page: &mut PageMut<'_>,
    schema: &TableSchema,
    block: u32,
    values: &mut Values,
    heap_only: bool,
) -> Option<u16> {
    let attributes = random_attributes(random, &schema.columns, values);
    let (body, mask) = fill(&schema.columns, &attributes);
    let offset = page.as_page().max_offset() + 1;
    let frozen = if random.one_in(2) { HEAP_XMIN_FROZEN } else { HEAP_XMIN_COMMITTED };
    let updated = if heap_only || random.one_in(10) { HEAP_UPDATED } else { 0 };
    let header = Header {
        xmin: 700 + (random.next() >> random.below(60)),
        xmax: 0,
        cmin: random.below(3) as u32,
        cmax: 0,
        ctid: Tid::new(block, offset),
        infomask2: attributes.len() as u16 | if heap_only { HEAP_ONLY_TUPLE } else { 0 },
        infomask: mask | frozen | updated | HEAP_XMAX_INVALID,
    };
    page.add_row(&header, &body, Some(offset))
}
