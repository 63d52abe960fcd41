//! The threads that build cold pages: their waits for slow storages hold up nobody who wants a hot page.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::files;
use crate::cache::{Load, LoadReport};
use crate::cold::SegmentRecord;
use crate::engine::shared::{Shared, lock};
use crate::engine::stop_point;
use crate::error::{Error, ErrorKind, Result, sentence};
use crate::ids::{Lsn, PageKey};
use crate::page::{OVERFLOW_PAYLOAD, PAGE_SIZE, PageMut};
use crate::segment::{BlockStub, ValueStub};

/// Most bytes of large values kept for the next chunk, as far as it is more than one value.
const VALUES_MAX: usize = 32 << 20;

/// The large values read last: their chunks are asked for one by one.
#[derive(Default)]
pub(super) struct Values(Mutex<Vec<(ValueStub, Arc<Vec<u8>>)>>);

impl Values {
    fn find(&self, stub: &ValueStub) -> Option<Arc<Vec<u8>>> {
        let mut values = lock(&self.0);
        let at = values.iter().position(|(kept, _)| kept == stub)?;
        let entry = values.remove(at);
        let value = Arc::clone(&entry.1);
        values.push(entry);
        Some(value)
    }

    fn keep(&self, stub: &ValueStub, value: &Arc<Vec<u8>>) {
        let mut values = lock(&self.0);
        values.push((*stub, Arc::clone(value)));
        let mut bytes: usize = values.iter().map(|(_, value)| value.len()).sum();
        while values.len() > 1 && bytes > VALUES_MAX {
            bytes -= values.remove(0).1.len();
        }
    }
}

/// What the store has of a page, when that is not a hot image.
pub(in crate::engine) enum Stub {
    /// The rows are in a segment.
    Block(BlockStub),
    /// The page is this chunk of a value in a segment.
    Chunk(ValueStub, u32),
}

impl Stub {
    /// The stub that a page can be built from.
    pub(in crate::engine) fn find(shared: &Shared, key: PageKey) -> Result<Option<Stub>> {
        if let Some((value, chunk)) = key.page.as_overflow() {
            let stub = shared.store.value_stub(key.storage, value)?;
            let has_chunk = |stub: &ValueStub| chunk == 0 || chunk as usize * OVERFLOW_PAYLOAD < stub.length as usize;
            return Ok(stub.filter(has_chunk).map(|stub| Stub::Chunk(stub, chunk)));
        }
        match key.page.as_block() {
            Some(_) => Ok(shared.store.block_stub(key)?.map(Stub::Block)),
            None => Ok(None),
        }
    }

    fn segment(&self) -> u64 {
        match self {
            Stub::Block(stub) => stub.segment,
            Stub::Chunk(stub, _) => stub.segment,
        }
    }

    /// The LSN of the page that is built.
    pub(in crate::engine) fn lsn(&self) -> Lsn {
        match self {
            Stub::Block(stub) => stub.lsn,
            Stub::Chunk(stub, _) => stub.lsn,
        }
    }
}

/// Whether a page may have to be built, for which its load goes to the threads below; and from which storage location.
pub(in crate::engine) fn cold_location(shared: &Shared, key: PageKey) -> Option<String> {
    if !shared.cold.has(key.storage) {
        return None;
    }
    match Stub::find(shared, key) {
        Ok(None) => None,
        Ok(Some(stub)) => {
            let record = shared.cold.segment(key.storage, stub.segment());
            Some(record.map(|record| record.place.location.clone()).unwrap_or_default())
        }
        // A failure is reported by the thread that takes the load.
        Err(_) => Some(String::new()),
    }
}

/// One of the threads.
pub(in crate::engine) fn run(shared: &Shared) {
    let mut image = Vec::new();
    while let Some((load, location)) = shared.cold.backlog.next(shared) {
        let _turn = Turn { shared, location };
        serve(shared, load, &mut image);
    }
}

/// A thread's use of a location, until it is dropped.
struct Turn<'a> {
    shared: &'a Shared,
    location: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.cold.backlog.done(&self.location);
    }
}

fn serve(shared: &Shared, load: Load, image: &mut Vec<u8>) {
    let key = load.key();
    let finished = match find_page(shared, key, image) {
        Ok(Found::Hot) => load.finish(Some(image)),
        Ok(Found::Nothing) => load.finish(None),
        Ok(Found::Built(report, stub)) => {
            stop_point::reached("cold page built");
            let finished = load.finish_cold(image, report);
            read_ahead(shared, key, &stub);
            finished
        }
        Err(error) => {
            // Whoever is referred to the server's log finds it there.
            shared.cold.backlog.complain(shared, &error);
            load.fail_with(&error);
            return;
        }
    };
    if let Err(error) = finished {
        shared.cold.backlog.complain(shared, &error);
    }
}

/// What `find_page` found.
pub(in crate::engine) enum Found {
    /// A hot image.
    Hot,
    /// A page that was built from a segment.
    Built(LoadReport, Stub),
    /// Neither.
    Nothing,
}

/// Reads or builds the compact image of a page.
pub(in crate::engine) fn find_page(shared: &Shared, key: PageKey, image: &mut Vec<u8>) -> Result<Found> {
    let mut failed: Option<(u64, Error)> = None;
    loop {
        if shared.store.read_page(key, image)? {
            return Ok(Found::Hot);
        }
        if !shared.cold.has(key.storage) {
            return Ok(Found::Nothing);
        }
        let Some(stub) = Stub::find(shared, key)? else { return Ok(Found::Nothing) };
        // A compaction may have put another segment in the place of the one that is gone.
        if let Some((segment, error)) = failed
            && segment == stub.segment()
        {
            return Err(error);
        }
        match build(shared, key, &stub, image) {
            Ok(report) => return Ok(Found::Built(report, stub)),
            Err(error) => {
                shared.cold.readers.forget(stub.segment());
                failed = Some((stub.segment(), error));
            }
        }
    }
}

fn build(shared: &Shared, key: PageKey, stub: &Stub, image: &mut Vec<u8>) -> Result<LoadReport> {
    let segment = stub.segment();
    let Some(record) = shared.cold.segment(key.storage, segment) else {
        return Err(unreadable(key, segment, ErrorKind::Corrupt).with_detail("The list of segments does not have it."));
    };
    let report = build_from(shared, &record, stub, image).map_err(|error| describe(key, &record, &error))?;
    let counters = &shared.cache.header().counters;
    counters.cold_loads.fetch_add(1, Ordering::Relaxed);
    counters.segment_bytes_read.fetch_add(report.bytes_read, Ordering::Relaxed);
    counters.segments_opened.fetch_add(report.segments_opened.into(), Ordering::Relaxed);
    Ok(report)
}

fn build_from(shared: &Shared, record: &SegmentRecord, stub: &Stub, image: &mut Vec<u8>) -> Result<LoadReport> {
    let mut report = LoadReport { built: true, ..LoadReport::default() };
    match stub {
        Stub::Block(stub) => {
            let (reader, opened) = shared.cold.readers.get(shared, record)?;
            report.segments_opened = u32::from(opened);
            image.clear();
            report.bytes_read = reader.build_page(stub, image)?.bytes;
        }
        Stub::Chunk(stub, chunk) => {
            let value = match shared.cold.values.find(stub) {
                Some(value) => value,
                None => {
                    let (reader, opened) = shared.cold.readers.get(shared, record)?;
                    report.segments_opened = u32::from(opened);
                    let (value, cost) = reader.read_value(stub)?;
                    report.bytes_read = cost.bytes;
                    let value = Arc::new(value);
                    shared.cold.values.keep(stub, &value);
                    value
                }
            };
            chunk_page(record, stub, *chunk, &value, image)?;
        }
    }
    Ok(report)
}

/// Where a segment is read in order, decodes what is read next. Whoever wants it is told what goes wrong.
fn read_ahead(shared: &Shared, key: PageKey, stub: &Stub) {
    let Stub::Block(stub) = stub else { return };
    let Some(record) = shared.cold.segment(key.storage, stub.segment) else { return };
    if let Ok((reader, _)) = shared.cold.readers.get(shared, &record)
        && let Ok(cost) = reader.read_ahead(stub)
    {
        shared.cache.header().counters.segment_bytes_read.fetch_add(cost.bytes, Ordering::Relaxed);
    }
}

/// Makes the page of a value's chunk.
fn chunk_page(record: &SegmentRecord, stub: &ValueStub, chunk: u32, value: &[u8], image: &mut Vec<u8>) -> Result<()> {
    let start = chunk as usize * OVERFLOW_PAYLOAD;
    if value.len() != stub.length as usize || start > value.len() {
        return Err(Error::corrupt(format!("value {} has {} bytes instead of {}", stub.value, value.len(), stub.length)));
    }
    let payload = &value[start..value.len().min(start + OVERFLOW_PAYLOAD)];
    let mut bytes = Box::new([0; PAGE_SIZE]);
    let mut page = PageMut::new(&mut bytes[..]);
    let references = if chunk == 0 { stub.references } else { 0 };
    page.init_overflow(record.partition, references, stub.length, payload);
    page.set_lsn(stub.lsn);
    image.clear();
    page.as_page().to_compact(image);
    Ok(())
}

fn unreadable(key: PageKey, segment: u64, kind: ErrorKind) -> Error {
    let page = match (key.page.as_block(), key.page.as_overflow()) {
        (Some(block), _) => format!("block {block}"),
        (None, Some((value, chunk))) => format!("chunk {chunk} of overflow value {value}"),
        (None, None) => format!("page {:#x}", key.page.0),
    };
    Error::new(kind, format!("could not read {page} of storage {} from segment {segment}", key.storage.0))
}

/// The error of a page, from what went wrong with its segment. The path of a user's rows says whose they are, and it is not only the user
/// who reads them: the table's owner builds indexes and has segments compacted.
fn describe(key: PageKey, record: &SegmentRecord, cause: &Error) -> Error {
    let place = &record.place;
    let detail = format!("File \"{}\" of storage \"{}\": {}", place.path, place.location, sentence(cause));
    let hint = match cause.kind() {
        ErrorKind::Corrupt => "The file is damaged; restore it from a backup. Rows of other files are not affected.",
        ErrorKind::StorageMissing => "Bring the file back from a backup. Rows of other files are not affected.",
        _ => "Try again when the storage can be reached. Rows of other files are not affected.",
    };
    let error = unreadable(key, record.segment, cause.kind()).with_detail(detail).with_hint(hint);
    if record.partition == 0 {
        return error;
    }
    unreadable(key, record.segment, cause.kind()).with_detail(files::PATH_IS_IN_THE_LOG).with_hint(hint).with_source(error)
}
