//! Gives the Parquet library the parts of a file that were read before, all at once.

use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

/// Parts of a file in memory, ascending.
#[derive(Clone, Default)]
pub struct Ranges(Vec<(u64, Bytes)>);

impl Ranges {
    /// Parts by their positions.
    pub fn new(parts: Vec<(u64, Bytes)>) -> Ranges {
        Ranges(parts)
    }

    /// Bytes read.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, part)| part.len() as u64).sum()
    }

    /// Reads done.
    pub fn reads(&self) -> u32 {
        self.0.len() as u32
    }

    fn get(&self, start: u64, length: u64) -> Option<Bytes> {
        let place = self.0.partition_point(|(first, _)| *first <= start).checked_sub(1)?;
        let (first, part) = &self.0[place];
        let from = start - first;
        let end = from.checked_add(length)?;
        (end <= part.len() as u64).then(|| part.slice(from as usize..end as usize))
    }

    /// What is there from a position on.
    fn rest(&self, start: u64) -> Option<Bytes> {
        let place = self.0.partition_point(|(first, _)| *first <= start).checked_sub(1)?;
        let (first, part) = &self.0[place];
        let from = usize::try_from(start - first).ok().filter(|from| *from < part.len())?;
        Some(part.slice(from..))
    }
}

/// A file of which only those parts can be read, as the library wants it.
#[derive(Clone)]
pub struct Input {
    size: u64,
    ranges: Ranges,
}

impl Input {
    /// A file of this size.
    pub fn new(size: u64, ranges: Ranges) -> Input {
        Input { size, ranges }
    }
}

#[cold]
fn beyond() -> ParquetError {
    ParquetError::EOF("a position is none of the pages that were asked for".to_owned())
}

impl Length for Input {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Input {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Reader<Bytes>> {
        Ok(self.ranges.rest(start).ok_or_else(beyond)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.ranges.get(start, length as u64).ok_or_else(beyond)
    }
}
