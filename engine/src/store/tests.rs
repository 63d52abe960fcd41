//! The store keeps what a flush made durable, nothing else, and says what is wrong with a directory.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::cache::RelationFile;
use crate::cold::{FilePlace, Garbage, SegmentRecord, StoredLocation};
use crate::ids::{Lsn, PageNumber};
use crate::segment::{BlockStub, ValueStub};

fn small() -> StoreOptions {
    StoreOptions { write_buffer_bytes: 1 << 20, block_cache_bytes: 1 << 20, ..StoreOptions::default() }
}

fn open(directory: &Path) -> Store {
    Store::open(directory, &small()).unwrap()
}

fn key(storage: u64, page: PageNumber) -> PageKey {
    PageKey { storage: StorageId(storage), page }
}

fn put(store: &Store, key: PageKey, image: &[u8]) {
    let mut batch = store.batch();
    batch.put_page(key, image);
    batch.write().unwrap();
}

fn get(store: &Store, key: PageKey) -> Option<Vec<u8>> {
    let mut image = Vec::new();
    store.read_page(key, &mut image).unwrap().then_some(image)
}

fn mark(lsn: u64) -> DurableMark {
    DurableMark { lsn: Lsn(lsn), system_identifier: 7_000_000_000_000_000_001, timeline: 3 }
}

#[test]
fn flushed_content_survives_a_crash_and_the_rest_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    let file = RelationFile { tablespace: 1663, database: 5, relnumber: 16_384, owner: 4 };
    let storage = StorageInfo { id: StorageId(9), file, unlogged: true, creator_xid: 1 << 40, blocks: 77, next_value: 12 };
    let pages = [key(9, PageNumber::block(0)), key(9, PageNumber::directory(1)), key(9, PageNumber::overflow(3, 4))];
    let mut batch = store.batch();
    for (number, page) in pages.iter().enumerate() {
        batch.put_page(*page, &[number as u8; 100]);
    }
    batch.put_storage(&storage);
    batch.put_mark(&mark(1000));
    batch.put_next_storage_id(StorageId(10));
    batch.write().unwrap();
    store.flush().unwrap();

    put(&store, pages[0], b"later");
    let mut batch = store.batch();
    batch.put_mark(&mark(2000));
    batch.write().unwrap();
    assert_eq!(get(&store, pages[0]).unwrap(), b"later");
    store.link_durable(&dir.path().join("crashed")).unwrap();
    drop(store);

    let store = open(&dir.path().join("crashed"));
    assert_eq!(store.mark().unwrap(), Some(mark(1000)));
    assert_eq!(store.next_storage_id().unwrap(), StorageId(10));
    assert_eq!(store.storages().unwrap(), [storage]);
    for (number, page) in pages.iter().enumerate() {
        assert_eq!(get(&store, *page).unwrap(), [number as u8; 100]);
    }
    assert_eq!(get(&store, key(9, PageNumber::block(1))), None);
}

#[test]
fn a_new_store_has_no_mark_and_no_storages() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    assert_eq!(store.mark().unwrap(), None);
    assert_eq!(store.next_storage_id().unwrap(), StorageId(1));
    assert_eq!(store.storages().unwrap(), []);
}

#[test]
fn removing_a_storage_removes_its_pages_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let numbers =
        [PageNumber::block(0), PageNumber::block(u32::MAX - 1), PageNumber::directory(0), PageNumber::overflow(u32::MAX >> 1, 5)];
    for storage in [1, 2, 3] {
        let mut batch = store.batch();
        batch.put_storage(&StorageInfo { id: StorageId(storage), ..StorageInfo::default() });
        batch.put_quarantine(key(storage, PageNumber::block(5)));
        batch.write().unwrap();
        numbers.iter().for_each(|number| put(&store, key(storage, *number), b"x"));
    }
    let mut batch = store.batch();
    batch.remove_storage(StorageId(2));
    batch.write().unwrap();
    store.flush().unwrap();
    drop(store);
    let store = open(dir.path());
    let left: Vec<u64> = store.storages().unwrap().iter().map(|storage| storage.id.0).collect();
    assert_eq!(left, [1, 3]);
    assert_eq!(store.quarantine().unwrap(), [1, 3].map(|storage| key(storage, PageNumber::block(5))));
    for number in numbers {
        assert_eq!(get(&store, key(2, number)), None);
        assert!(get(&store, key(1, number)).is_some() && get(&store, key(3, number)).is_some());
    }
}

#[test]
fn storage_bytes_counts_one_storage() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut noise = 1u64;
    let mut image = vec![0; 32_000];
    for block in 0..100 {
        for byte in &mut image {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (noise >> 56) as u8;
        }
        put(&store, PageKey::block(StorageId(1), block), &image);
        if block < 10 {
            put(&store, PageKey::block(StorageId(2), block), &image);
        }
    }
    store.flush().unwrap();
    let (large, small) = (store.storage_bytes(StorageId(1)), store.storage_bytes(StorageId(2)));
    assert!((2_900_000..3_600_000).contains(&large), "{large}");
    assert!((250_000..500_000).contains(&small), "{small}");
    assert_eq!(store.storage_bytes(StorageId(3)), 0);
    store.compact_storage(StorageId(1)).unwrap();
    assert!((2_900_000..3_600_000).contains(&store.storage_bytes(StorageId(1))));
}

#[test]
fn a_store_of_a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut batch = store.batch();
    batch.put_format_version(FORMAT_VERSION + 1);
    batch.write().unwrap();
    store.flush().unwrap();
    drop(store);
    let error = Store::open(dir.path(), &small()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.hint().unwrap().contains("later one"));
}

#[test]
fn a_store_that_is_open_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path());
    assert_eq!(Store::open(dir.path(), &small()).err().unwrap().kind(), ErrorKind::Unavailable);
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    for path in [file.clone(), file.join("below"), dir.path().join("no/parent")] {
        let error = Store::open(&path, &small()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::StorageMissing, "{error}");
        assert!(error.message().contains(path.to_str().unwrap()));
        assert!(error.detail().is_some() && error.hint().is_some());
    }
}

fn table_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "sst")).collect()
}

#[test]
fn a_damaged_page_is_named_and_the_others_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let keys: Vec<PageKey> = (0..20).map(|block| PageKey::block(StorageId(4), block)).collect();
    for page in &keys {
        put(&store, *page, &[page.page.0 as u8; 30_000]);
    }
    store.flush().unwrap();
    drop(store);
    let largest = table_files(dir.path()).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    bytes[10] ^= 0x40;
    fs::write(&largest, bytes).unwrap();

    let store = open(dir.path());
    let mut outcomes = Vec::new();
    store.read_pages(&keys, |page, image| outcomes.push((page, image.map(|image| image.unwrap().to_vec()))));
    let (damaged, whole): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|(_, image)| image.is_err());
    assert!(!damaged.is_empty() && whole.len() > 10);
    for (page, image) in damaged {
        let error = image.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(error.message(), format!("could not read block {} of storage 4", page.page.0));
        assert!(error.hint().is_some());
    }
    for (page, image) in whole {
        assert_eq!(image.unwrap(), [page.page.0 as u8; 30_000]);
    }
}

#[test]
fn a_missing_table_file_refuses_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, PageKey::block(StorageId(4), 0), b"x");
    store.flush().unwrap();
    drop(store);
    table_files(dir.path()).iter().for_each(|file| fs::remove_file(file).unwrap());
    let error = Store::open(dir.path(), &small()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::StorageMissing, "{error}");
}

#[test]
fn values_of_a_wrong_form_are_errors() {
    let whole = mark(5).encode();
    assert_eq!(DurableMark::decode(&whole).unwrap(), mark(5));
    assert!(DurableMark::decode(&whole[..20]).is_err() && DurableMark::decode(&[]).is_err());
    let storage = format::encode_storage(&StorageInfo::default());
    assert_eq!(format::decode_storage(StorageId(0), &storage).unwrap(), StorageInfo::default());
    let mut unknown_flag = storage;
    unknown_flag[17] = 2;
    for wrong in [&[9; 37][..], &storage[..36], &unknown_flag] {
        assert!(format::decode_storage(StorageId(1), wrong).is_err());
    }
    let page = PageKey::block(StorageId(1), 2);
    assert!(format::decode_page(page, &[]).is_err() && format::decode_page(page, &[2, 0]).is_err());
}

#[test]
fn stubs_and_the_manifest_come_and_go_with_their_storage() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let record = |storage, segment| SegmentRecord { storage: StorageId(storage), segment, ..segment_record() };
    let mut batch = store.batch();
    for storage in [1, 2] {
        for block in [0, 5, 70_000] {
            batch.put_stub(PageKey::block(StorageId(storage), block), &BlockStub { block, ..BlockStub::default() }.to_bytes());
        }
        let chunk = PageKey { storage: StorageId(storage), page: PageNumber::overflow(8, 0) };
        batch.put_stub(chunk, &ValueStub { value: 8, ..ValueStub::default() }.to_bytes());
        batch.put_segment(&record(storage, 10 + storage)).unwrap();
    }
    let garbage = Garbage { segment: 4, place: record(1, 4).place, since: 99, announced: false };
    batch.put_garbage(&garbage).unwrap();
    let location = StoredLocation { database: 5, name: "lake".to_owned(), definition: serde_json::json!({"url": "s3://b"}) };
    batch.put_location(&location).unwrap();
    batch.write().unwrap();
    store.flush().unwrap();
    let blocks = |store: &Store, storage, from| {
        let mut found = Vec::new();
        store
            .stubs(StorageId(storage), PageNumber::block(from), &mut |page, _| {
                found.push(page);
                Ok(true)
            })
            .unwrap();
        found
    };
    let value = PageNumber::overflow(8, 0);
    assert_eq!(blocks(&store, 1, 5), [PageNumber::block(5), PageNumber::block(70_000), value]);
    assert_eq!(store.block_stub(PageKey::block(StorageId(2), 5)).unwrap().unwrap().block, 5);
    assert_eq!(store.value_stub(StorageId(2), 8).unwrap().unwrap().value, 8);
    assert!(!store.has_stub(PageKey::block(StorageId(2), 6)).unwrap());
    assert_eq!(store.segments().unwrap(), [record(1, 11), record(2, 12)]);
    assert_eq!((store.garbage().unwrap(), store.locations().unwrap()), (vec![garbage.clone()], vec![location]));
    assert_eq!(store.next_segment().unwrap(), 13);

    // The number of an announced segment is given out once, whether or not it is committed.
    let mut batch = store.batch();
    batch.put_garbage(&Garbage { segment: 20, announced: true, ..garbage.clone() }).unwrap();
    batch.write().unwrap();
    assert_eq!(store.next_segment().unwrap(), 21);
    let mut batch = store.batch();
    batch.remove_garbage(20);
    batch.remove_storage(StorageId(1));
    batch.remove_stub(PageKey::block(StorageId(2), 5));
    batch.remove_garbage(garbage.segment);
    batch.remove_location(5, "lake");
    batch.write().unwrap();
    assert_eq!(blocks(&store, 1, 0), []);
    assert_eq!(blocks(&store, 2, 0), [PageNumber::block(0), PageNumber::block(70_000), value]);
    assert_eq!(store.segments().unwrap(), [record(2, 12)]);
    assert_eq!((store.garbage().unwrap(), store.locations().unwrap()), (vec![], vec![]));
}

#[test]
fn damaged_stubs_and_records_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let key = PageKey::block(StorageId(1), 3);
    let mut batch = store.batch();
    batch.put_stub(key, b"no stub");
    batch.put_segment(&segment_record()).unwrap();
    batch.write().unwrap();
    assert_eq!(store.block_stub(key).unwrap_err().kind(), ErrorKind::Corrupt);
    let family = store.db.cf_handle(META).unwrap();
    for damaged in [&b""[..], b"\x02{}", b"\x01{\"storage\": 1"] {
        store.db.put_cf(family, format::segment_key(StorageId(1), 1), damaged).unwrap();
        assert_eq!(store.segments().unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

fn segment_record() -> SegmentRecord {
    SegmentRecord {
        storage: StorageId(1),
        segment: 1,
        place: FilePlace { database: 5, location: "local".to_owned(), path: "a/segment-1-1-00000000.parquet".to_owned() },
        partition: 0,
        rows: 10,
        bytes: 1000,
        hot_bytes: 9000,
        blocks: 1,
        min_tid: 1,
        max_tid: 10,
        schema_version: 1,
        created: 5,
        columns: Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any history of puts, removals, flushes and crashes leaves the state of the last flush at least, in one piece.
    #[test]
    fn a_crash_leaves_the_state_of_some_moment_since_the_last_flush(
        steps in prop::collection::vec((0u8..20, 0u32..6, any::<u8>(), 1usize..20_000), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut generation = 0;
        let mut store = open(&dir.path().join("0"));
        let mut model = std::collections::BTreeMap::new();
        // States that a crash may leave: the one of the last flush and everything since.
        let mut moments = vec![model.clone()];
        for (action, block, fill, length) in steps {
            let page = PageKey::block(StorageId(1), block);
            match action {
                0 => {
                    store.flush().unwrap();
                    moments = vec![model.clone()];
                }
                1 => {
                    generation += 1;
                    let next = dir.path().join(generation.to_string());
                    store.link_durable(&next).unwrap();
                    store = open(&next);
                    model = (0..6).filter_map(|block| {
                        let page = PageKey::block(StorageId(1), block);
                        get(&store, page).map(|image| (page, image))
                    }).collect();
                    prop_assert!(moments.contains(&model));
                    moments = vec![model.clone()];
                }
                2 => {
                    let mut batch = store.batch();
                    batch.remove_storage(StorageId(1));
                    batch.write().unwrap();
                    model.clear();
                    moments.push(model.clone());
                }
                _ => {
                    put(&store, page, &vec![fill; length]);
                    model.insert(page, vec![fill; length]);
                    moments.push(model.clone());
                }
            }
            prop_assert_eq!(get(&store, page), model.get(&page).cloned());
        }
    }
}

#[test]
fn segments_committed_out_of_their_order_do_not_give_a_number_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    for segment in [3, 2] {
        let record = SegmentRecord {
            storage: StorageId(segment),
            segment,
            place: FilePlace::default(),
            partition: 0,
            rows: 0,
            bytes: 0,
            hot_bytes: 0,
            blocks: 0,
            min_tid: 0,
            max_tid: 0,
            schema_version: 0,
            created: 0,
            columns: Vec::new(),
        };
        let mut batch = store.batch();
        batch.put_segment(&record).unwrap();
        batch.write().unwrap();
    }
    assert_eq!(store.next_segment().unwrap(), 4);
}

/// Pages nobody can compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(length).collect()
}

#[test]
fn a_flush_that_meets_one_of_rocksdb_itself_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { write_buffer_bytes: 256 << 10, ..small() };
    let store = Store::open(&dir.path().join("store"), &options).unwrap();
    let mut number = 0;
    let mut step = |pages: u32| {
        // The page that fills the write buffer makes the next write, which is the mark, begin a flush of what is before it. Then the
        // mark's flush has nothing of the pages that is not under way.
        (0..pages).for_each(|block| put(&store, PageKey::block(StorageId(1), block), &noise(block.into(), 4000)));
        number += 1;
        let mut batch = store.batch();
        batch.put_mark(&mark(number));
        batch.write().unwrap();
        store.flush().unwrap();
        let mut on_disk = ReadOptions::default();
        on_disk.set_read_tier(ReadTier::Persisted);
        let found = store.db.get_cf_opt(store.meta_family(), format::KEY_MARK, &on_disk).unwrap();
        assert_eq!(found, Some(mark(number).encode().to_vec()), "after {pages} pages");
    };
    // RocksDB numbers the buffers of each family; what it gets wrong shows where the mark's have had more of them than the pages'.
    (0..120).for_each(|_| step(0));
    (40..90).for_each(step);
}

#[test]
fn the_room_of_removed_pages_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    let pages = |range: std::ops::Range<u32>| range.map(|block| PageKey::block(StorageId(1), block));
    for page in pages(0..1000) {
        put(&store, page, &noise(page.page.0, 8000));
    }
    store.flush().unwrap();
    assert!(store.storage_bytes(StorageId(1)) > 7_900_000);
    let mut batch = store.batch();
    pages(0..900).for_each(|page| batch.remove_page(page));
    batch.write().unwrap();
    store.flush().unwrap();
    let begun = std::time::Instant::now();
    while store.storage_bytes(StorageId(1)) > 1_000_000 {
        assert!(begun.elapsed() < Duration::from_secs(120), "{} bytes are left", store.storage_bytes(StorageId(1)));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(get(&store, PageKey::block(StorageId(1), 950)), Some(noise(PageNumber::block(950).0, 8000)));
    assert_eq!(get(&store, PageKey::block(StorageId(1), 50)), None);
}
