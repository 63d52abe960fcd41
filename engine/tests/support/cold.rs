//! The job's side of cold storage for the engine's tests: copies pages, writes segments, asks the engine to make blocks cold.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kalamdb_engine::cache::{Cache, Wait};
use kalamdb_engine::cold::{Client, CommitMode, CommitSegment, Committed, FilePlace, LOCAL, segment_file_name};
use kalamdb_engine::ids::{Lsn, PageKey, PageNumber, StorageId};
use kalamdb_engine::page::infomask::HEAP_XMIN_FROZEN;
use kalamdb_engine::page::{Header, PAGE_SIZE, Page, PageKind, PageMut};
use kalamdb_engine::segment::{
    Align, BlockStub, Column, ColumnKind, LargeValues, SegmentSummary, SegmentWriter, StoredValue, TableSchema, WriteOptions,
};
use kalamdb_engine::{Error, Result};

use super::Log;

/// The columns of the tests' rows.
pub fn schema() -> TableSchema {
    let column = Column {
        attnum: 1,
        name: "body".to_owned(),
        type_name: "bytea".to_owned(),
        kind: ColumnKind::Bytea,
        len: -1,
        align: Align::Int,
        by_value: false,
        packed: true,
        dropped: false,
    };
    TableSchema {
        namespace: "app".to_owned(),
        table: "rows".to_owned(),
        table_oid: 16_400,
        version: 1,
        columns: vec![column],
        bloom_columns: Vec::new(),
    }
}

/// Overflow values of a storage, read through the cache.
struct CachedValues<'a> {
    cache: Cache,
    storage: StorageId,
    wait: &'a dyn Wait,
}

impl LargeValues for CachedValues<'_> {
    fn fetch(&mut self, value: u32) -> Result<StoredValue> {
        let mut stored = StoredValue { bytes: Vec::new(), references: 0, lsn: Lsn(0) };
        for chunk in 0.. {
            let key = PageKey { storage: self.storage, page: PageNumber::overflow(value, chunk) };
            let pin = self.cache.read(key, self.wait)?;
            let guard = pin.shared(self.wait)?;
            let page = guard.page();
            if page.kind() != PageKind::Overflow {
                return Err(Error::corrupt(format!("there is no chunk {chunk} of value {value}")));
            }
            if chunk == 0 {
                (stored.references, stored.lsn) = (page.overflow_refcount(), page.lsn());
            }
            stored.bytes.extend_from_slice(page.overflow_payload());
            if stored.bytes.len() >= page.overflow_total() as usize {
                break;
            }
        }
        Ok(stored)
    }

    fn allocate(&mut self) -> Result<u32> {
        let table = self.cache.storages();
        let place = table.find_id(self.storage).ok_or_else(|| Error::internal("no storage"))?;
        Ok(table.at(place).next_value.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
    }
}

/// Everything that flushes and compactions of one process need.
pub struct Job<'a> {
    pub cache: Cache,
    pub log: &'a Log,
    /// The store's directory; segments lie beside it.
    pub store: PathBuf,
    pub segments: PathBuf,
    pub wait: &'a dyn Wait,
}

impl Job<'_> {
    pub fn client(&self) -> Client<'_> {
        Client::new(&self.cache, self.store.clone(), self.wait)
    }

    /// Copies the pages of a storage that `wanted` takes and makes their blocks cold, or leaves them in the file alone if `commit` is
    /// false. Nothing when there are none.
    pub fn flush(
        &self,
        storage: StorageId,
        mode: CommitMode,
        commit: bool,
        wanted: &mut dyn FnMut(Page<'_>) -> bool,
    ) -> Result<Option<Committed>> {
        let written = self.written(storage, mode, wanted)?.filter(|_| commit);
        written.map(|commit| self.client().commit_segment(commit)).transpose()
    }

    /// As `flush`; `between` runs after the segment is written.
    pub fn flush_after(
        &self,
        storage: StorageId,
        mode: CommitMode,
        wanted: &mut dyn FnMut(Page<'_>) -> bool,
        between: &mut dyn FnMut(),
    ) -> Result<Option<Committed>> {
        let written = self.written(storage, mode, wanted)?;
        between();
        written.map(|commit| self.client().commit_segment(commit)).transpose()
    }

    /// Writes a segment and everything that its commit needs.
    pub fn written(
        &self,
        storage: StorageId,
        mode: CommitMode,
        wanted: &mut dyn FnMut(Page<'_>) -> bool,
    ) -> Result<Option<CommitSegment>> {
        let mut copies = Vec::new();
        let blocks = self
            .cache
            .storages()
            .find_id(storage)
            .map_or(0, |place| self.cache.storages().at(place).blocks.load(std::sync::atomic::Ordering::SeqCst));
        for block in 0..blocks {
            let pin = self.cache.read(PageKey::block(storage, block), self.wait)?;
            let guard = pin.shared(self.wait)?;
            if guard.page().kind() == PageKind::Data && wanted(guard.page()) {
                copies.push((block, Box::new(*guard.bytes())));
            }
        }
        if copies.is_empty() {
            return Ok(None);
        }
        self.log.flush();
        let client = self.client();
        let segment = client.begin_segment();
        let path = segment_file_name(storage, segment, rand_suffix());
        let place = FilePlace { database: 5, location: LOCAL.to_owned(), path };
        if copies.len() % 2 == 0 {
            client.announce_files(vec![(segment, place.clone())])?;
        }
        let summary = self.write(&self.segments.join(&place.path), storage, segment, &copies)?;
        Ok(Some(CommitSegment { storage, segment, place, partition: 0, schema_version: 1, mode, summary }))
    }

    fn write(
        &self,
        path: &Path,
        storage: StorageId,
        segment: u64,
        copies: &[(u32, Box<[u8; PAGE_SIZE]>)],
    ) -> Result<SegmentSummary> {
        fs::create_dir_all(&self.segments)?;
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        let mut writer = SegmentWriter::create(file, schema(), WriteOptions::new(storage, segment))?;
        let mut values = CachedValues { cache: self.cache, storage, wait: self.wait };
        for (block, page) in copies {
            writer.add_block(*block, Page::new(&page[..]), &mut values)?;
        }
        writer.finish()
    }

    /// Flushes every hot block whose rows all qualify.
    pub fn flush_hot(&self, storage: StorageId) -> Result<Option<Committed>> {
        self.flush(storage, CommitMode::Flush, true, &mut is_eligible)
    }

    /// Writes all cold blocks into a new segment.
    pub fn compact(&self, storage: StorageId) -> Result<Option<Committed>> {
        let sources = self.client().segments(storage, 0)?.entries.iter().map(|record| record.segment).collect();
        self.flush(storage, CommitMode::Replace(sources), true, &mut |page| page.is_cold())
    }

    /// The stubs of a storage's cold blocks.
    pub fn stubs(&self, storage: StorageId) -> Vec<BlockStub> {
        let (mut stubs, mut from) = (Vec::new(), Some(0));
        while let Some(first) = from {
            let page = self.client().block_stubs(storage, first).unwrap();
            stubs.extend(page.entries);
            from = page.next;
        }
        stubs
    }
}

/// Makes a named pipe.
pub fn make_pipe(path: &Path) {
    let status = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(status.success());
}

/// Tells files apart whose numbers are given out again after a crash.
fn rand_suffix() -> u32 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    time.map_or(0, |time| time.subsec_nanos())
}

/// Whether every version of a page is neither deleted nor locked, and it is hot.
pub fn is_eligible(page: Page<'_>) -> bool {
    !page.is_cold() && page.versions().count() > 0 && page.versions().all(|(_, version)| version.header().xmax == 0)
}

/// Compares a page with what the log says, row by row. Rows may be frozen: those of a cold page are, and those of a page that was cold
/// when its worker was lost.
pub fn assert_same(page: Page<'_>, expected: Page<'_>, key: PageKey) {
    assert_eq!((page.kind(), page.partition()), (expected.kind(), expected.partition()), "{key:?}");
    // Of a value that was in a segment all chunks have the LSN of the first one.
    if key.page.as_overflow().is_none_or(|(_, chunk)| chunk == 0) {
        assert_eq!(page.lsn(), expected.lsn(), "{key:?}");
    }
    if page.kind() != PageKind::Data {
        assert!(page.overflow_payload() == expected.overflow_payload(), "{key:?}");
        assert_eq!(page.overflow_total(), expected.overflow_total(), "{key:?}");
        assert_eq!(page.overflow_refcount(), expected.overflow_refcount(), "{key:?}");
        return;
    }
    let mut frozen = Box::new(*expected.bytes());
    let mut frozen = PageMut::new(&mut frozen[..]);
    frozen.turn_cold(key.page.as_block().unwrap());
    assert_eq!(page.max_offset(), expected.max_offset(), "{key:?}");
    for offset in 1..=page.max_offset() {
        let (line, wanted) = (page.line(offset), expected.line(offset));
        assert_eq!(line.flags(), wanted.flags(), "{key:?} line pointer {offset}");
        let (Some(version), Some(wanted)) = (page.version(offset), expected.version(offset)) else { continue };
        let is_frozen = version.header().infomask & HEAP_XMIN_FROZEN == HEAP_XMIN_FROZEN;
        let same = |header: Header| Header { cmin: 0, cmax: 0, ..header };
        if page.is_cold() || (is_frozen && version.header() != wanted.header()) {
            let wanted = frozen.as_page().version(offset).unwrap();
            assert_eq!(same(version.header()), same(wanted.header()), "{key:?} version {offset}");
        } else {
            assert_eq!(version.header(), wanted.header(), "{key:?} version {offset}");
        }
        assert!(version.body() == wanted.body(), "{key:?} version {offset}");
    }
}
