//! Tests that pages go through a segment and come back: random tables, every kind of line pointer, damaged files.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Seek, Write};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::random_pages_tests::*;
use super::*;
use crate::ErrorKind;
use crate::page::infomask::*;
use crate::page::tests::assert_invariants;
use crate::page::{ALL_VISIBLE, COLD, HAS_FREE_LINES, PAGE_SIZE, Page, PageMut};

/// A segment in memory.
struct Memory(Bytes);

impl SegmentSource for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        if range.start > range.end || range.end > self.size() {
            return Err(crate::Error::corrupt("read beyond the end"));
        }
        Ok(self.0.slice(range.start as usize..range.end as usize))
    }
}

struct Written {
    file: Vec<u8>,
    summary: SegmentSummary,
}

fn options(random: &mut Random) -> WriteOptions {
    let mut options = WriteOptions::new(StorageId(5), 9);
    options.compression = *random.pick(&[Compression::Zstd(1), Compression::Lz4, Compression::Snappy, Compression::None]);
    options.row_group_rows = *random.pick(&[1, 100, 1000, 131_072]);
    options.page_rows = *random.pick(&[None, Some(1), Some(100), Some(1024)]);
    options
}

fn write(schema: &TableSchema, options: WriteOptions, pages: &[(u32, Vec<u8>)], values: &mut Values) -> Written {
    let mut file = tempfile::tempfile().unwrap();
    let mut writer = SegmentWriter::create(file.try_clone().unwrap(), schema.clone(), options).unwrap();
    for (block, page) in pages {
        writer.add_block(*block, Page::new(page), values).unwrap();
    }
    let summary = writer.finish().unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(summary.bytes, bytes.len() as u64);
    Written { file: bytes, summary }
}

fn open(file: &[u8]) -> Result<SegmentReader> {
    SegmentReader::open(Arc::new(Memory(Bytes::copy_from_slice(file))))
}

fn build(reader: &SegmentReader, stub: &BlockStub) -> Result<Vec<u8>> {
    let mut image = Vec::new();
    reader.build_page(stub, &mut image)?;
    let mut page = vec![0; PAGE_SIZE];
    PageMut::new(&mut page).from_compact(&image)?;
    Ok(page)
}

/// The value of a varlena attribute without its header, wherever it is.
fn plain(attribute: &[u8], values: &Values, moved: &HashMap<u32, Vec<u8>>) -> Vec<u8> {
    match attribute[0] {
        1 => {
            let word = |at: usize| u32::from_le_bytes(attribute[at..at + 4].try_into().unwrap());
            let (rawsize, extinfo, value) = (word(2), word(6), word(10));
            assert_eq!(word(14), TABLE);
            match values.stored.get(&value) {
                Some(stored) => {
                    assert_eq!((rawsize as usize, extinfo as usize), (values.plain[&value].len() + 4, stored.bytes.len()));
                    values.plain[&value].clone()
                }
                None => {
                    assert_eq!((rawsize as usize, extinfo as usize), (moved[&value].len() + 4, moved[&value].len()));
                    moved[&value].clone()
                }
            }
        }
        first if first & 1 == 1 => attribute[1..].to_vec(),
        first if first & 3 == 2 => compressed::uncompress(&attribute[4..]).unwrap(),
        _ => attribute[4..].to_vec(),
    }
}

/// Compares a page with what came back; what may differ is said in docs/formats.md.
fn assert_same(schema: &TableSchema, block: u32, old: &[u8], new: &[u8], values: &Values, moved: &HashMap<u32, Vec<u8>>) {
    assert_invariants(new);
    let (old, new) = (Page::new(old), Page::new(new));
    assert_eq!((old.lsn(), old.partition(), old.max_offset()), (new.lsn(), new.partition(), new.max_offset()));
    assert_eq!(new.flags() & !HAS_FREE_LINES, ALL_VISIBLE | COLD);
    assert_eq!(new.prune_xid(), 0);
    for offset in 1..=old.max_offset() {
        let (old_line, new_line) = (old.line(offset), new.line(offset));
        assert_eq!(old_line.flags(), new_line.flags());
        if !old_line.is_normal() {
            assert_eq!(old_line, new_line);
            continue;
        }
        let (old, new) = (old.version(offset).unwrap(), new.version(offset).unwrap());
        let (was, is) = (old.header(), new.header());
        assert_eq!((is.xmin, is.xmax, is.ctid), (was.xmin, 0, crate::ids::Tid::new(block, offset)));
        assert_eq!(is.infomask & !(HEAP_HASNULL | 2 | HEAP_HASEXTERNAL | HEAP_UPDATED), HEAP_XMIN_FROZEN | HEAP_XMAX_INVALID);
        assert_eq!(is.infomask & HEAP_UPDATED, was.infomask & HEAP_UPDATED);
        assert_eq!(is.infomask2, was.infomask2);
        assert!(new.bytes().len() <= old.bytes().len());
        let (before, after) = (deform(&schema.columns, old), deform(&schema.columns, new));
        let mut untouched = true;
        for (column, (before, after)) in schema.columns.iter().zip(before.iter().zip(&after)) {
            match (before, after) {
                (Some(_), None) if column.dropped => untouched = false,
                (Some(before), Some(after)) if column.len == -1 => {
                    assert_eq!(plain(before, values, &HashMap::new()), plain(after, values, moved));
                    untouched &= before == after;
                }
                (before, after) => assert_eq!(before, after),
            }
        }
        assert!(!untouched || old.body() == new.body(), "a row with the same attributes has the same bytes");
    }
}

fn random_pages(random: &mut Random, schema: &TableSchema, values: &mut Values, most: usize) -> Vec<(u32, Vec<u8>)> {
    let mut block = random.below(3) as u32;
    let mut pages = Vec::new();
    for _ in 0..random.below(most + 1) {
        pages.push((block, random_page(random, schema, block, values)));
        block += 1 + (random.next() >> (32 + random.below(32))) as u32 / 1000;
    }
    pages
}

/// What is read by the stubs of values, checked against what was there.
fn moved_values(reader: &SegmentReader, summary: &SegmentSummary, values: &Values) -> HashMap<u32, Vec<u8>> {
    let blocks: HashSet<u32> = summary.blocks.iter().map(|stub| stub.block).collect();
    let read = summary.values.iter().map(|stub| {
        assert!(blocks.contains(&stub.block));
        let (bytes, _) = reader.read_value(stub).unwrap();
        assert_eq!(bytes.len(), stub.length as usize);
        match values.stored.get(&stub.value) {
            Some(stored) => {
                assert_eq!((&bytes, stub.references, stub.lsn), (&stored.bytes, stored.references, stored.lsn));
            }
            None => assert_eq!((stub.references, stub.lsn), (1, Lsn(0))),
        }
        (stub.value, bytes)
    });
    let moved: HashMap<u32, Vec<u8>> = read.collect();
    assert_eq!(moved.len(), summary.values.len(), "a value has one stub");
    moved
}

fn round_trip(seed: u64) {
    let mut random = Random(seed);
    let schema = random_schema(&mut random);
    let mut values = Values::default();
    let pages = random_pages(&mut random, &schema, &mut values, 12);
    let written = write(&schema, options(&mut random), &pages, &mut values);
    let reader = open(&written.file).unwrap();
    assert_eq!(*reader.schema(), schema);
    assert_eq!(reader.identity(), (StorageId(5), 9));
    assert_eq!(reader.summary().unwrap(), written.summary);
    let moved = moved_values(&reader, &written.summary, &values);
    assert_eq!(written.summary.blocks.len(), pages.len());
    let mut order: Vec<usize> = (0..pages.len()).chain(0..pages.len()).collect();
    for _ in 0..5 {
        order.push(random.below(pages.len()));
    }
    for place in order.into_iter().filter(|place| *place < pages.len()) {
        let ((block, page), stub) = (&pages[place], &written.summary.blocks[place]);
        assert_eq!((stub.block, stub.segment), (*block, 9));
        assert_eq!(BlockStub::decode(&stub.to_bytes()).unwrap(), *stub);
        let rebuilt = build(&reader, stub).unwrap();
        assert_same(&schema, *block, page, &rebuilt, &values, &moved);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pages_come_back(seed in any::<u64>()) {
        round_trip(seed);
    }

    #[test]
    fn damaged_segments_are_refused(seed in any::<u64>()) {
        damage(seed);
    }
}

/// Any change of the file either is an error or changes nothing of what is read.
fn damage(seed: u64) {
    let mut random = Random(seed);
    let schema = random_schema(&mut random);
    let mut values = Values::default();
    let pages = random_pages(&mut random, &schema, &mut values, 4);
    let written = write(&schema, options(&mut random), &pages, &mut values);
    let whole = open(&written.file).unwrap();
    let good: Vec<Vec<u8>> = written.summary.blocks.iter().map(|stub| build(&whole, stub).unwrap()).collect();
    let moved = moved_values(&whole, &written.summary, &values);
    for _ in 0..20 {
        let mut file = written.file.clone();
        match random.below(4) {
            0 => file.truncate(random.below(written.file.len())),
            1 => file.extend_from_slice(&[1, 2, 3]),
            2 => {
                let from = random.below(file.len());
                let count = 1 + random.below(40.min(file.len() - from));
                file[from..from + count].iter_mut().for_each(|byte| *byte = random.next() as u8);
            }
            _ => {
                let (at, bit) = (random.below(file.len()), random.below(8));
                file[at] ^= 1 << bit;
            }
        }
        let Ok(reader) = open(&file).map_err(assert_corrupt) else { continue };
        let _ = reader.summary().map_err(assert_corrupt);
        for (stub, good) in written.summary.blocks.iter().zip(&good) {
            if let Ok(page) = build(&reader, stub).map_err(assert_corrupt) {
                assert!(page == *good, "a wrong page is never returned");
            }
        }
        for stub in &written.summary.values {
            if let Ok((bytes, _)) = reader.read_value(stub).map_err(assert_corrupt) {
                assert!(bytes == moved[&stub.value], "a wrong value is never returned");
            }
        }
    }
}

fn assert_corrupt(error: crate::Error) {
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn stubs_that_do_not_suit_the_segment_are_refused() {
    let mut random = Random(4);
    let schema = schema(vec![column(1, ColumnKind::Int8, 8, Align::Double), column(2, ColumnKind::Text, -1, Align::Int)]);
    let mut values = Values::default();
    let pages =
        vec![(0, random_page(&mut random, &schema, 0, &mut values)), (1, random_page(&mut random, &schema, 1, &mut values))];
    let written = write(&schema, WriteOptions::new(StorageId(5), 9), &pages, &mut values);
    let reader = open(&written.file).unwrap();
    let stub = written.summary.blocks[1].clone();
    let wrong = [
        BlockStub { first_row: stub.first_row + 1, ..stub.clone() },
        BlockStub { first_row: u64::MAX - 300, ..stub.clone() },
        BlockStub { segment: 8, ..stub.clone() },
        BlockStub { block: 7, ..stub.clone() },
        BlockStub { lsn: Lsn(1), ..stub.clone() },
        BlockStub { checksum: stub.checksum ^ 1, ..stub.clone() },
        BlockStub { rows: 291, max_offset: 291, dead: vec![], unused: vec![], redirects: vec![], ..stub.clone() },
    ];
    for stub in wrong {
        assert_corrupt(build(&reader, &stub).expect_err("the stub is refused"));
    }
    build(&reader, &stub).unwrap();
    let value = ValueStub { value: 1, segment: 9, block: 1, row: 0, attnum: 2, length: 3, ..ValueStub::default() };
    for stub in [value, ValueStub { row: u64::MAX, ..value }, ValueStub { attnum: 3, ..value }, ValueStub { attnum: -1, ..value }]
    {
        assert_corrupt(reader.read_value(&stub).expect_err("the stub is refused"));
    }
}

#[test]
fn damaged_stubs_are_refused_and_never_a_panic() {
    let stub = BlockStub {
        block: 70_000,
        rows: 3,
        max_offset: 8,
        dead: vec![2, 3],
        unused: vec![8],
        redirects: vec![(1, 4), (5, 6)],
        ..BlockStub::default()
    };
    let bytes = stub.to_bytes();
    assert_eq!(BlockStub::decode(&bytes).unwrap(), stub);
    assert_eq!(stub.row_offsets(), [4, 6, 7]);
    for end in 0..bytes.len() {
        assert!(BlockStub::decode(&bytes[..end]).is_err());
    }
    for at in 0..bytes.len() {
        for flip in 1..=255 {
            let mut bad = bytes.clone();
            bad[at] ^= flip;
            let _ = BlockStub::decode(&bad).map_err(assert_corrupt);
        }
    }
    assert!(ValueStub::decode(&bytes).is_err(), "the two kinds of stubs are told apart");
    let value = ValueStub { value: u32::MAX, row: 1 << 40, attnum: 1600, lsn: Lsn(u64::MAX), ..ValueStub::default() };
    assert_eq!(ValueStub::decode(&value.to_bytes()).unwrap(), value);
}

#[test]
fn an_added_and_a_dropped_column_leave_old_rows_alone() {
    let old = schema(vec![column(1, ColumnKind::Int4, 4, Align::Int), column(2, ColumnKind::Text, -1, Align::Int)]);
    let mut values = Values::default();
    let mut random = Random(11);
    let first = random_page(&mut random, &old, 0, &mut values);
    let mut new = old.clone();
    new.columns[1].dropped = true;
    new.columns.push(column(3, ColumnKind::Int8, 8, Align::Double));
    new.version = 2;
    let second = random_page(&mut random, &new, 1, &mut values);
    // The first page has rows with two attributes, the second one with three.
    let pages = vec![(0, first), (1, second)];
    let written = write(&new, WriteOptions::new(StorageId(5), 9), &pages, &mut values);
    let reader = open(&written.file).unwrap();
    let moved = moved_values(&reader, &written.summary, &values);
    for ((block, page), stub) in pages.iter().zip(&written.summary.blocks) {
        assert_same(&new, *block, page, &build(&reader, stub).unwrap(), &values, &moved);
    }
}

/// Pages of the file with nothing but large values lie between those that are read.
#[test]
fn short_runs_between_large_values_come_back() {
    let schema = schema(vec![column(1, ColumnKind::Int8, 8, Align::Double), column(2, ColumnKind::Text, -1, Align::Int)]);
    let mut random = Random(11);
    let mut values = Values::default();
    let pages: Vec<_> = (0..6).map(|block| (block, page_with_large_values(&mut random, &schema, block, &mut values))).collect();
    let written = write(&schema, WriteOptions::new(StorageId(5), 9), &pages, &mut values);
    let stubs = &written.summary.blocks;
    // Each block alone, then all in order, then all backwards.
    for stub in stubs {
        build(&open(&written.file).unwrap(), stub).unwrap();
    }
    let reader = open(&written.file).unwrap();
    let moved = moved_values(&reader, &written.summary, &values);
    for place in (0..stubs.len()).chain((0..stubs.len()).rev()) {
        let (block, page) = &pages[place];
        assert_same(&schema, *block, page, &build(&reader, &stubs[place]).unwrap(), &values, &moved);
    }
}

#[test]
fn a_segment_without_rows_comes_back() {
    let schema = schema(vec![column(1, ColumnKind::Int4, 4, Align::Int)]);
    let mut values = Values::default();
    let written = write(&schema, WriteOptions::new(StorageId(5), 9), &[], &mut values);
    assert_eq!((written.summary.rows, written.summary.blocks.len()), (0, 0));
    assert_eq!(open(&written.file).unwrap().summary().unwrap(), written.summary);
}

#[test]
fn what_is_no_segment_is_refused() {
    for file in [b"".as_slice(), b"PAR1", b"PAR1PAR1", b"PAR1\0\0\0\0PAR1", &[0xff; 100]] {
        assert_corrupt(open(file).err().expect("it is refused"));
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"no segment").unwrap();
    assert_corrupt(SegmentReader::open(Arc::new(FileSource::new(file).unwrap())).err().expect("it is refused"));
}

#[test]
fn neighbours_are_decoded_once() {
    let mut random = Random(3);
    let schema = schema(vec![column(1, ColumnKind::Int8, 8, Align::Double), column(2, ColumnKind::Bytea, -1, Align::Int)]);
    let mut values = Values::default();
    let pages: Vec<_> = (0..60).map(|block| (block, random_page(&mut random, &schema, block, &mut values))).collect();
    let written = write(&schema, WriteOptions::new(StorageId(5), 9), &pages, &mut values);
    let reader = open(&written.file).unwrap();
    let mut image = Vec::new();
    let mut cost = || -> Vec<u32> {
        let stubs = written.summary.blocks.iter().filter(|stub| stub.rows > 0);
        stubs.map(|stub| reader.build_page(stub, &mut image).unwrap().reads).collect()
    };
    let reads = cost();
    let with_reads = reads.iter().filter(|reads| **reads > 0).count();
    assert!(with_reads > 0 && with_reads * 4 < reads.len(), "{reads:?}");
}
