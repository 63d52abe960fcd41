//! Puts rows and a stub together to the page of a block; writer and reader do it with the same code, so the same page comes out.

use super::BlockStub;
use crate::error::{Error, Result};
use crate::ids::{INVALID_XID, Tid, Xid};
use crate::page::infomask::*;
use crate::page::{ALL_VISIBLE, COLD, Header, LinePointer, PAGE_SIZE, Page, PageKind, PageMut};

/// The position of a page's flags in its image.
const AT_FLAGS: usize = 3;

/// A row on its way into a page.
pub struct Row<'a> {
    pub xmin: Xid,
    pub heap_only: bool,
    pub updated: bool,
    pub natts: u16,
    /// The mask bits that follow from the attributes.
    pub infomask: u16,
    /// The tuple from the hoff byte on.
    pub body: &'a [u8],
}

/// Makes the page of a block, row by row.
pub struct PageBuilder<'a> {
    stub: &'a BlockStub,
    bytes: Box<[u8; PAGE_SIZE]>,
    /// The next line pointer.
    next: u16,
}

impl<'a> PageBuilder<'a> {
    /// Begins the page of a stub, whose line pointers without rows it gets.
    pub fn new(stub: &'a BlockStub) -> PageBuilder<'a> {
        let mut bytes = Box::new([0; PAGE_SIZE]);
        PageMut::new(bytes.as_mut_slice()).init(PageKind::Data, stub.partition);
        PageBuilder { stub, bytes, next: 1 }
    }

    /// Adds the row of the line pointer `offset`; rows come in the order of their line pointers.
    ///
    /// # Errors
    /// `Corrupt` when the stub has no such row, or no room for it.
    pub fn push(&mut self, offset: u16, row: &Row<'_>) -> Result<()> {
        self.lines_before(offset)?;
        let header = Header {
            xmin: row.xmin,
            xmax: INVALID_XID,
            cmin: 0,
            cmax: 0,
            ctid: Tid::new(self.stub.block, offset),
            infomask2: row.natts & HEAP_NATTS_MASK | if row.heap_only { HEAP_ONLY_TUPLE } else { 0 },
            infomask: row.infomask | HEAP_XMIN_FROZEN | HEAP_XMAX_INVALID | if row.updated { HEAP_UPDATED } else { 0 },
        };
        let mut page = PageMut::new(self.bytes.as_mut_slice());
        // The next number in any case: an unused line pointer before it stays one.
        if page.add_row(&header, row.body, Some(offset)) != Some(offset) {
            return Err(Error::corrupt(format!("row {offset} of block {} does not fit into its page", self.stub.block)));
        }
        self.next = offset + 1;
        Ok(())
    }

    /// Adds the line pointers without rows that stand before `offset`.
    fn lines_before(&mut self, offset: u16) -> Result<()> {
        let mut page = PageMut::new(self.bytes.as_mut_slice());
        for number in self.next..offset {
            let line = if self.stub.dead.contains(&number) {
                LinePointer::DEAD
            } else if self.stub.unused.contains(&number) {
                LinePointer::UNUSED
            } else if let Some((_, to)) = self.stub.redirects.iter().find(|(from, _)| *from == number) {
                LinePointer::redirected(*to)
            } else {
                return Err(Error::corrupt(format!("row {number} of block {} is missing", self.stub.block)));
            };
            if page.push_line(line) != Some(number) {
                return Err(Error::corrupt(format!("block {} has too many line pointers", self.stub.block)));
            }
        }
        self.next = self.next.max(offset);
        Ok(())
    }

    /// Appends the compact image to `out`, with the flag of a cold page. Its checksum says whether it is the page that was checked
    /// when the segment was written.
    ///
    /// # Errors
    /// `Corrupt` when rows are missing.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<()> {
        self.end()?;
        self.put_image(out);
        Ok(())
    }

    /// Likewise for a page that is new.
    ///
    /// # Errors
    /// `Corrupt` when rows are missing, or the whole is no page.
    pub fn finish_new(mut self, out: &mut Vec<u8>) -> Result<()> {
        self.end()?;
        Page::new(self.bytes.as_slice()).check()?;
        self.put_image(out);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.lines_before(self.stub.max_offset + 1)?;
        let mut page = PageMut::new(self.bytes.as_mut_slice());
        page.set_flags(ALL_VISIBLE);
        page.set_lsn(self.stub.lsn);
        Ok(())
    }

    fn put_image(&self, out: &mut Vec<u8>) {
        let start = out.len();
        Page::new(self.bytes.as_slice()).to_compact(out);
        out[start + AT_FLAGS] |= COLD;
    }
}
