//! Gives the Parquet library the pages of a row group. What zstd compressed is uncompressed here, with one context for all pages of a
//! thread: the library makes two contexts for each column, which takes as long as uncompressing a page.

use std::cell::RefCell;
use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use parquet::arrow::arrow_reader::RowGroups;
use parquet::basic::Compression;
use parquet::column::page::{Page, PageIterator, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::serialized_reader::SerializedPageReader;

use super::input::Input;

/// The longest page: Parquet keeps lengths in 32 bits.
const PAGE_MAX: u64 = i32::MAX as u64;

thread_local! {
    static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The pages of one row group.
pub struct GroupPages {
    pub input: Arc<Input>,
    pub metadata: Arc<ParquetMetaData>,
    pub group: usize,
}

impl RowGroups for GroupPages {
    fn num_rows(&self) -> usize {
        self.metadata.row_group(self.group).num_rows() as usize
    }

    fn column_chunks(&self, column: usize) -> Result<Box<dyn PageIterator>> {
        let chunk = self.metadata.row_group(self.group).column(column);
        let locations = self.metadata.offset_index().and_then(|index| index.get(self.group)?.get(column));
        let locations = locations.map(|pages| pages.page_locations().clone());
        let rows = self.num_rows();
        let pages = |chunk: &ColumnChunkMetaData| SerializedPageReader::new(Arc::clone(&self.input), chunk, rows, locations);
        let pages: Box<dyn PageReader> = if matches!(chunk.compression(), Compression::ZSTD(_)) {
            let raw = chunk.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
            Box::new(Uncompressing(pages(&raw)?))
        } else {
            Box::new(pages(chunk)?)
        };
        Ok(Box::new(OneColumn(Some(pages))))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(std::iter::once(self.metadata.row_group(self.group)))
    }

    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }
}

/// The pages of a column of one row group, given once.
struct OneColumn(Option<Box<dyn PageReader>>);

impl Iterator for OneColumn {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}

impl PageIterator for OneColumn {}

/// Pages whose bytes are compressed, read by a reader that does not know it.
struct Uncompressing(SerializedPageReader<Input>);

impl PageReader for Uncompressing {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let mut next = self.0.get_next_page()?;
        match &mut next {
            Some(Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. }) => *buf = uncompressed(buf, 0)?,
            Some(Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, is_compressed, .. }) if *is_compressed => {
                *buf = uncompressed(buf, *def_levels_byte_len as usize + *rep_levels_byte_len as usize)?;
                *is_compressed = false;
            }
            _ => {}
        }
        Ok(next)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.0.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.0.at_record_boundary()
    }
}

impl Iterator for Uncompressing {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

/// The bytes of a page, of which the first `plain` are not compressed.
fn uncompressed(page: &Bytes, plain: usize) -> Result<Bytes> {
    let wrong = || ParquetError::General("a page is not what zstd wrote".to_owned());
    let compressed = page.get(plain..).ok_or_else(wrong)?;
    // A page without a value that is not null.
    if compressed.is_empty() {
        return Ok(page.clone());
    }
    let length = zstd::zstd_safe::get_frame_content_size(compressed).ok().flatten();
    let length = length.filter(|length| *length <= PAGE_MAX).ok_or_else(wrong)? as usize;
    let mut out = Vec::with_capacity(plain + length);
    out.extend_from_slice(&page[..plain]);
    let mut room = Cursor::new(&mut out);
    room.set_position(plain as u64);
    let written = CONTEXT.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            None => context.insert(zstd::bulk::Decompressor::new()?),
        };
        context.decompress_to_buffer(compressed, &mut room)
    })?;
    if written == length { Ok(out.into()) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_with_their_plain_beginning() {
        let body = b"message message message".repeat(100);
        let mut page = b"levels".to_vec();
        page.extend(zstd::bulk::compress(&body, 3).expect("memory to memory"));
        let page = Bytes::from(page);
        assert_eq!(uncompressed(&page, 6).expect("as it was written"), [b"levels".as_slice(), &body].concat());
        assert_eq!(uncompressed(&page.slice(..6), 6).expect("nothing is compressed"), b"levels".as_slice());
        assert!(uncompressed(&page, 5).is_err() && uncompressed(&page, page.len() + 1).is_err());
        assert!(uncompressed(&page.slice(..page.len() - 1), 6).is_err());
    }
}
