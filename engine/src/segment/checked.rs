//! Checksums over the whole file: the Parquet library, which trusts lengths that it reads, is given no byte that was not verified.
//!
//! The data, everything before Parquet's indexes, has a checksum for each block of 4 KB; they stand in the footer. The tail, which
//! is the indexes and the footer, has one checksum, which stands in the footer too and counts as zeros there.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::SegmentSource;
use super::input::Ranges;
use crate::error::{Error, Result};
use crate::page::read_u32;

/// Bytes that have a checksum together.
const BLOCK: u64 = 4096;
/// Key of the footer's entry with the tail's begin and checksum.
pub const TAIL: &str = "kalamdb.tail";
/// Digits of the two in that entry.
const BEGIN_DIGITS: usize = 16;
const SUM_DIGITS: usize = 8;
/// What is read of a file at first: for most files the whole tail.
const FIRST_READ: u64 = 64 << 10;
/// Bytes behind the footer: its length and Parquet's mark.
const END: u64 = 8;

/// What the footer says before the checksum is known.
pub fn tail_entry(begin: u64) -> String {
    format!("{begin:016x}{:08x}", 0)
}

/// Where the entry's value stands in bytes that end with the footer.
fn find_entry(bytes: &[u8]) -> Option<usize> {
    // The key, then in Parquet's encoding that a text follows, and its length.
    let mark = [TAIL.as_bytes(), &[0x18, (BEGIN_DIGITS + SUM_DIGITS) as u8]].concat();
    let found = bytes.windows(mark.len()).rposition(|window| window == mark)?;
    let value = found + mark.len();
    (value + BEGIN_DIGITS + SUM_DIGITS <= bytes.len()).then_some(value)
}

/// The tail's checksum, and where its digits stand.
fn tail_sum(tail: &[u8]) -> Option<(u32, usize)> {
    let digits = find_entry(tail)? + BEGIN_DIGITS;
    let before = crc32c::crc32c_append(crc32c::crc32c(&tail[..digits]), &[b'0'; SUM_DIGITS]);
    Some((crc32c::crc32c_append(before, &tail[digits + SUM_DIGITS..]), digits))
}

/// The file that the library writes to; takes the checksums as it goes.
pub struct Summing {
    file: File,
    sums: Vec<u32>,
    /// Checksum and length of the block that is not full yet.
    sum: u32,
    filled: usize,
    /// What was written behind the data.
    tail: Option<Vec<u8>>,
}

impl Summing {
    pub fn new(file: File) -> Summing {
        Summing { file, sums: Vec::new(), sum: 0, filled: 0, tail: None }
    }

    /// Ends the data: the checksums of its blocks. What follows is the tail.
    pub fn end_data(&mut self) -> Vec<u32> {
        if self.filled > 0 {
            self.sums.push(self.sum);
            self.filled = 0;
        }
        self.tail = Some(Vec::new());
        std::mem::take(&mut self.sums)
    }

    /// Writes the tail's checksum into the finished file, whose data ended at `begin`.
    ///
    /// # Errors
    /// Those of the file.
    pub fn seal(&mut self, begin: u64) -> Result<()> {
        let sealed = self.tail.as_deref().and_then(tail_sum);
        let (sum, digits) = sealed.ok_or_else(|| Error::internal("a segment's footer does not have its checksum"))?;
        self.file.write_all_at(format!("{sum:08x}").as_bytes(), begin + digits as u64)?;
        Ok(())
    }
}

impl Write for Summing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        let mut rest = &bytes[..count];
        if let Some(tail) = &mut self.tail {
            tail.extend_from_slice(rest);
            return Ok(count);
        }
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BLOCK as usize - self.filled));
            self.sum = crc32c::crc32c_append(self.sum, now);
            self.filled += now.len();
            if self.filled == BLOCK as usize {
                self.sums.push(self.sum);
                (self.sum, self.filled) = (0, 0);
            }
            rest = later;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Reads a file's tail and verifies it; also says where it begins.
///
/// # Errors
/// `Corrupt` when it is damaged or none of a segment, and those of the source.
pub fn read_tail(source: &dyn SegmentSource) -> Result<(u64, Bytes)> {
    let foreign = || Error::corrupt("the file is no segment");
    let size = source.size();
    let first = size.saturating_sub(FIRST_READ);
    let end = read_exactly(source, first..size)?;
    let footer_end = end.len().checked_sub(END as usize).filter(|at| end[at + 4..] == *b"PAR1").ok_or_else(foreign)?;
    let footer = (size - END).checked_sub(read_u32(&end, footer_end).into()).ok_or_else(foreign)?;
    let end = if footer < first { read_exactly(source, footer..size)? } else { end };
    let begin = find_entry(&end).and_then(|at| std::str::from_utf8(&end[at..at + BEGIN_DIGITS]).ok());
    let begin = begin.and_then(|digits| u64::from_str_radix(digits, 16).ok()).filter(|begin| *begin <= footer);
    let begin = begin.ok_or_else(|| foreign().with_detail("Its footer has no checksum."))?;
    let have = size - end.len() as u64;
    let tail = if begin >= have {
        end.slice((begin - have) as usize..)
    } else {
        Bytes::from([read_exactly(source, begin..have)?, end].concat())
    };
    let expected = tail_sum(&tail).filter(|(sum, digits)| tail[*digits..digits + SUM_DIGITS] == *format!("{sum:08x}").as_bytes());
    match expected {
        Some(_) => Ok((begin, tail)),
        None => Err(Error::corrupt("the segment is damaged").with_detail("Its footer has a wrong checksum.")),
    }
}

fn read_exactly(source: &dyn SegmentSource, range: Range<u64>) -> Result<Bytes> {
    let wanted = range.end - range.start;
    let bytes = source.read(range)?;
    if bytes.len() as u64 == wanted { Ok(bytes) } else { Err(lied()) }
}

#[cold]
fn lied() -> Error {
    Error::corrupt("the storage gave other bytes of the segment than it was asked for")
}

/// The data of a file.
pub struct Data {
    source: Arc<dyn SegmentSource>,
    sums: Vec<u32>,
    length: u64,
}

impl Data {
    /// The first `length` bytes of a source; nothing if it has not one checksum for each block.
    pub fn new(source: Arc<dyn SegmentSource>, sums: Vec<u32>, length: u64) -> Option<Data> {
        (sums.len() as u64 == length.div_ceil(BLOCK)).then_some(Data { source, sums, length })
    }

    /// Length of the file.
    pub fn file_size(&self) -> u64 {
        self.source.size()
    }

    /// Bytes that the checksums take in memory.
    pub fn memory(&self) -> usize {
        self.sums.len() * size_of::<u32>()
    }

    /// Reads ranges and verifies them; what lies close together is read as one.
    ///
    /// # Errors
    /// `Corrupt` when a range is beyond the data or the data damaged, and those of the source.
    pub fn read(&self, mut ranges: Vec<Range<u64>>) -> Result<Ranges> {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            let start = range.start / BLOCK * BLOCK;
            let end = range.end.checked_next_multiple_of(BLOCK).map(|end| end.min(self.length));
            let end = end
                .filter(|_| range.end <= self.length)
                .ok_or_else(|| Error::corrupt("the segment is damaged").with_detail("A page lies beyond the end of the data."))?;
            match merged.last_mut() {
                Some(last) if start <= last.end.saturating_add(self.source.gap()) => last.end = last.end.max(end),
                _ => merged.push(start..end),
            }
        }
        let parts = self.source.read_ranges(&merged)?;
        if parts.len() != merged.len() {
            return Err(lied());
        }
        for (range, part) in merged.iter().zip(&parts) {
            self.verify(range, part)?;
        }
        Ok(Ranges::new(merged.iter().map(|range| range.start).zip(parts).collect()))
    }

    fn verify(&self, range: &Range<u64>, part: &Bytes) -> Result<()> {
        if part.len() as u64 != range.end - range.start {
            return Err(lied());
        }
        let sums = &self.sums[(range.start / BLOCK) as usize..];
        let wrong = part.chunks(BLOCK as usize).zip(sums).position(|(block, sum)| crc32c::crc32c(block) != *sum);
        match wrong {
            None => Ok(()),
            Some(number) => {
                let at = range.start + number as u64 * BLOCK;
                Err(Error::corrupt("the segment is damaged")
                    .with_detail(format!("The {BLOCK} bytes at position {at} have a wrong checksum.")))
            }
        }
    }
}
