//! Owns the form of a stored row version: a 16-byte prefix with what a Postgres tuple header has no room for, then the tuple.

use super::bytes::{read_u16, read_u32, write_u16, write_u32};
use super::infomask::*;
use super::{PREFIX, TUPLE_HEADER, VERSION_HEADER};
use crate::ids::{FROZEN_XID, Tid, Xid};

const AT_XMIN_EPOCH: usize = 0;
const AT_XMAX_EPOCH: usize = 4;
const AT_CMAX: usize = 8;
pub(super) const AT_TIME: usize = 12;
const AT_XMIN: usize = 16;
const AT_XMAX: usize = 20;
const AT_CMIN: usize = 24;
const AT_CTID: usize = 28;
const AT_CTID_OFFSET: usize = 32;
const AT_INFOMASK2: usize = 34;
pub(super) const AT_INFOMASK: usize = 36;
const AT_HOFF: usize = 38;

/// A version's header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// The inserting transaction, as stored: see [`Header::effective_xmin`].
    pub xmin: Xid,
    /// The deleting, updating or locking transaction; a multixact id if `HEAP_XMAX_IS_MULTI`.
    pub xmax: Xid,
    /// The inserting command.
    pub cmin: u32,
    /// The deleting command.
    pub cmax: u32,
    /// The next version, or the version itself.
    pub ctid: Tid,
    /// Number of attributes and update flags.
    pub infomask2: u16,
    /// What is known of the attributes, xmin and xmax.
    pub infomask: u16,
}

impl Header {
    #[inline]
    fn read(head: &[u8; VERSION_HEADER]) -> Header {
        Header {
            xmin: (read_u32(head, AT_XMIN_EPOCH) as u64) << 32 | read_u32(head, AT_XMIN) as u64,
            xmax: (read_u32(head, AT_XMAX_EPOCH) as u64) << 32 | read_u32(head, AT_XMAX) as u64,
            cmin: read_u32(head, AT_CMIN),
            cmax: read_u32(head, AT_CMAX),
            ctid: read_ctid(head),
            infomask2: read_u16(head, AT_INFOMASK2),
            infomask: read_u16(head, AT_INFOMASK),
        }
    }

    #[inline]
    pub(super) fn write(&self, head: &mut [u8; VERSION_HEADER]) {
        write_u32(head, AT_XMIN_EPOCH, (self.xmin >> 32) as u32);
        write_u32(head, AT_XMAX_EPOCH, (self.xmax >> 32) as u32);
        write_u32(head, AT_CMAX, self.cmax);
        write_u32(head, AT_XMIN, self.xmin as u32);
        write_u32(head, AT_XMAX, self.xmax as u32);
        write_u32(head, AT_CMIN, self.cmin);
        write_ctid(head, self.ctid);
        write_u16(head, AT_INFOMASK2, self.infomask2);
        write_u16(head, AT_INFOMASK, self.infomask);
    }

    /// xmin with the frozen bit applied.
    #[inline]
    pub fn effective_xmin(&self) -> Xid {
        if self.infomask & HEAP_XMIN_FROZEN == HEAP_XMIN_FROZEN { FROZEN_XID } else { self.xmin }
    }

    /// Whether xmin is known to have aborted.
    #[inline]
    pub fn xmin_invalid(&self) -> bool {
        self.infomask & HEAP_XMIN_FROZEN == HEAP_XMIN_INVALID
    }

    /// Whether the next version follows in this page's chain; never after an aborted insertion or update.
    #[inline]
    pub fn is_hot_updated(&self) -> bool {
        self.infomask2 & HEAP_HOT_UPDATED != 0 && self.infomask & HEAP_XMAX_INVALID == 0 && !self.xmin_invalid()
    }

    /// Whether no index names the version.
    #[inline]
    pub fn is_heap_only(&self) -> bool {
        self.infomask2 & HEAP_ONLY_TUPLE != 0
    }

    /// The transaction that updated or deleted the version; `of_multi` finds it in a multixact.
    #[inline]
    pub fn update_xid(&self, of_multi: impl FnOnce(u32) -> Xid) -> Xid {
        let with_update = HEAP_XMAX_IS_MULTI | HEAP_XMAX_LOCK_ONLY | HEAP_XMAX_INVALID;
        if self.infomask & with_update == HEAP_XMAX_IS_MULTI { of_multi(self.xmax as u32) } else { self.xmax }
    }

    /// Number of attributes.
    #[inline]
    pub fn natts(&self) -> u16 {
        self.infomask2 & HEAP_NATTS_MASK
    }
}

// An item pointer keeps the high half of the block number first.
#[inline]
fn read_ctid(head: &[u8; VERSION_HEADER]) -> Tid {
    let block = (read_u16(head, AT_CTID) as u32) << 16 | read_u16(head, AT_CTID + 2) as u32;
    Tid::new(block, read_u16(head, AT_CTID_OFFSET))
}

#[inline]
pub(super) fn write_ctid(head: &mut [u8; VERSION_HEADER], ctid: Tid) {
    write_u16(head, AT_CTID, (ctid.block >> 16) as u16);
    write_u16(head, AT_CTID + 2, ctid.block as u16);
    write_u16(head, AT_CTID_OFFSET, ctid.offset);
}

/// A view of a stored version.
#[derive(Clone, Copy)]
pub struct Version<'a> {
    bytes: &'a [u8],
    head: &'a [u8; VERSION_HEADER],
}

impl<'a> Version<'a> {
    /// Views the bytes of a version; nothing if they are shorter than a header.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Version<'a>> {
        Some(Version { bytes, head: bytes.first_chunk()? })
    }

    /// The header, decoded.
    #[inline]
    pub fn header(self) -> Header {
        Header::read(self.head)
    }

    /// All bytes: prefix and tuple.
    #[inline]
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// The Postgres tuple: what `HeapTupleData.t_data` points to.
    #[inline]
    pub fn tuple(self) -> &'a [u8] {
        &self.bytes[PREFIX..]
    }

    /// The tuple without its fixed header, from the hoff byte on: what [`build_version`] takes.
    #[inline]
    pub fn body(self) -> &'a [u8] {
        &self.bytes[AT_HOFF..]
    }

    /// Where the attributes start, counted from the start of the tuple.
    #[inline]
    pub fn hoff(self) -> usize {
        self.head[AT_HOFF] as usize
    }

    /// Number of attributes.
    #[inline]
    pub fn natts(self) -> u16 {
        self.infomask2() & HEAP_NATTS_MASK
    }

    /// Whether some attribute is stored in overflow pages.
    #[inline]
    pub fn has_external(self) -> bool {
        self.infomask() & HEAP_HASEXTERNAL != 0
    }

    /// The first mask alone.
    #[inline]
    pub fn infomask(self) -> u16 {
        read_u16(self.head, AT_INFOMASK)
    }

    /// The second mask alone.
    #[inline]
    pub fn infomask2(self) -> u16 {
        read_u16(self.head, AT_INFOMASK2)
    }

    /// The forward pointer alone.
    #[inline]
    pub fn ctid(self) -> Tid {
        read_ctid(self.head)
    }

    /// Whether bitmap and attributes lie within the version, so that Postgres may read the tuple.
    pub fn is_well_formed(self) -> bool {
        let hoff = self.hoff();
        let bitmap = if self.infomask() & HEAP_HASNULL != 0 { (self.natts() as usize).div_ceil(8) } else { 0 };
        hoff.is_multiple_of(8) && TUPLE_HEADER + bitmap <= hoff && PREFIX + hoff <= self.bytes.len()
    }

    /// Whether nobody has touched the version since its insertion, as the short log form of an insertion supposes.
    #[inline]
    pub(crate) fn is_plain_insert(self, own: Tid) -> bool {
        let untouched = [AT_XMAX_EPOCH, AT_XMAX, AT_CMAX, AT_TIME].iter().all(|&at| read_u32(self.head, at) == 0);
        untouched && self.ctid() == own
    }
}

/// Builds the bytes of a version from its header and its tuple's bytes from the hoff byte on; replaces the contents of `out`.
#[inline]
pub fn build_version(header: &Header, body: &[u8], out: &mut Vec<u8>) {
    let mut head = [0; VERSION_HEADER];
    header.write(&mut head);
    out.clear();
    out.reserve(AT_HOFF + body.len());
    out.extend_from_slice(&head[..AT_HOFF]);
    out.extend_from_slice(body);
}

/// Length of the version that [`build_version`] makes of a body.
#[inline]
pub(super) const fn version_len(body: &[u8]) -> usize {
    AT_HOFF + body.len()
}

/// Writes a version into its place in a page; `place` is [`version_len`] bytes long, a header at least.
#[inline]
pub(super) fn write_version(header: &Header, body: &[u8], place: &mut [u8]) {
    place[AT_HOFF..].copy_from_slice(body);
    header.write(place.first_chunk_mut().expect("a version is as long as its header"));
}
