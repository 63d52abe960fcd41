//! The open segments: a bounded number, the least recently used one is closed first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::files;
use crate::cold::SegmentRecord;
use crate::engine::shared::{Shared, lock};
use crate::error::{Error, Result};
use crate::segment::SegmentReader;

/// Most segments open at a time.
const OPEN_MAX: usize = 64;
/// Most bytes that open segments keep in memory, as far as more than one is open.
const MEMORY_MAX: usize = 128 << 20;

/// The open segments, the most recently used one last.
#[derive(Default)]
pub(in crate::engine) struct Readers {
    open: Mutex<Vec<(u64, Arc<SegmentReader>)>>,
    /// One lock for each segment that is being opened, so that it is opened once.
    opening: Mutex<HashMap<u64, Arc<Mutex<()>>>>,
}

impl Readers {
    fn find(&self, record: &SegmentRecord) -> Option<Arc<SegmentReader>> {
        let mut open = lock(&self.open);
        let at = open.iter().position(|(_, reader)| reader.identity() == (record.storage, record.segment))?;
        let entry = open.remove(at);
        let reader = Arc::clone(&entry.1);
        open.push(entry);
        Some(reader)
    }

    /// The reader of a segment, and whether it had to be opened.
    pub(super) fn get(&self, shared: &Shared, record: &SegmentRecord) -> Result<(Arc<SegmentReader>, bool)> {
        if let Some(reader) = self.find(record) {
            return Ok((reader, false));
        }
        let turn = Arc::clone(lock(&self.opening).entry(record.segment).or_default());
        let _turn = lock(&turn);
        if let Some(reader) = self.find(record) {
            return Ok((reader, false));
        }
        let opened = open(shared, record);
        lock(&self.opening).remove(&record.segment);
        let reader = opened?;
        let mut list = lock(&self.open);
        list.push((record.segment, Arc::clone(&reader)));
        let mut memory: usize = list.iter().map(|(_, reader)| reader.memory()).sum();
        while list.len() > 1 && (list.len() > OPEN_MAX || memory > MEMORY_MAX) {
            memory = memory.saturating_sub(list.remove(0).1.memory());
        }
        Ok((reader, true))
    }

    /// Closes a segment.
    pub(super) fn forget(&self, segment: u64) {
        lock(&self.open).retain(|(number, _)| *number != segment);
    }
}

/// Opens a segment and makes sure that it is the one of the manifest.
pub(super) fn open(shared: &Shared, record: &SegmentRecord) -> Result<Arc<SegmentReader>> {
    let source = files::open_source(shared, &record.place, record.bytes)?;
    let reader = SegmentReader::open(source)?;
    if reader.identity() != (record.storage, record.segment) {
        let (storage, segment) = reader.identity();
        return Err(Error::corrupt(format!(
            "the file \"{}\" holds segment {segment} of storage {}, not segment {} of storage {}",
            record.place.path, storage.0, record.segment, record.storage.0
        )));
    }
    Ok(Arc::new(reader))
}
