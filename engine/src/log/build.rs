//! Writes a log record. The builder is reused: after the first records it allocates nothing.

use lz4_flex::block::{compress_into, get_maximum_output_size};

use super::{FORMAT_VERSION, StorageCreate, tag};
use crate::ids::{PageKey, Tid, Xid};
use crate::page::{ChainEntry, Header, PageKind, PartitionEntry, PruneActions, Version};

/// Builds one record at a time.
///
/// Operations are added after they were done to the page; each must see the page as the operations before it left it.
#[derive(Debug)]
pub struct RecordBuilder {
    bytes: Vec<u8>,
    // The block of the present group: a version whose ctid is its own place needs none in the record.
    block: u32,
}

impl Default for RecordBuilder {
    fn default() -> RecordBuilder {
        RecordBuilder::new()
    }
}

impl RecordBuilder {
    /// An empty record.
    pub fn new() -> RecordBuilder {
        RecordBuilder { bytes: vec![FORMAT_VERSION], block: 0 }
    }

    /// Starts the next record.
    #[inline]
    pub fn clear(&mut self) {
        self.bytes.truncate(1);
    }

    /// The record so far.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether nothing was added.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == 1
    }

    /// Bytes of the record so far.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Makes the record one of a new storage; it takes nothing else.
    pub fn create_storage(&mut self, create: &StorageCreate) -> &mut Self {
        self.bytes.push(tag::CREATE_STORAGE);
        self.varint(create.storage.0);
        self.bytes.extend_from_slice(&create.tablespace.to_le_bytes());
        self.bytes.extend_from_slice(&create.database.to_le_bytes());
        self.bytes.extend_from_slice(&create.relnumber.to_le_bytes());
        self.varint(u64::from(create.owner));
        self.bytes.push(u8::from(create.unlogged));
        self.varint(create.xid);
        self
    }

    /// Starts the operations of a page.
    #[inline]
    pub fn page(&mut self, key: PageKey) -> &mut Self {
        self.bytes.push(tag::PAGE);
        self.varint(key.storage.0);
        // The marks of the other number spaces stand in the highest bits; there they would make every number long.
        self.varint(key.page.0.rotate_left(2));
        self.block = key.page.as_block().unwrap_or(0);
        self
    }

    /// The page becomes an empty one.
    pub fn init(&mut self, kind: PageKind, partition: u32) -> &mut Self {
        self.bytes.extend_from_slice(&[tag::INIT, kind as u8]);
        self.varint(partition as u64);
        self
    }

    /// The page becomes what a stored image describes.
    pub fn image(&mut self, compact: &[u8]) -> &mut Self {
        self.bytes.push(tag::IMAGE);
        self.with_len(compact)
    }

    /// Puts the image of a page before the operations of its group, which begin at `start`, unless they make the page anew.
    ///
    /// `compact` is the page as it was before them: so replay needs no older image of it.
    pub fn image_before(&mut self, start: usize, compact: &[u8]) {
        if self.bytes.get(start).is_some_and(|first| tag::starts_anew(*first)) {
            return;
        }
        let operations = self.bytes.split_off(start.min(self.bytes.len()));
        self.packed_image(compact);
        self.bytes.extend_from_slice(&operations);
    }

    /// An image, compressed if that makes the record shorter: writing it to the log costs more than compressing it.
    fn packed_image(&mut self, compact: &[u8]) {
        let start = self.bytes.len();
        self.bytes.push(tag::PACKED_IMAGE);
        self.u16(compact.len() as u16);
        let length_at = self.bytes.len();
        self.u16(0);
        let packed_at = self.bytes.len();
        self.bytes.resize(packed_at + get_maximum_output_size(compact.len()), 0);
        match compress_into(compact, &mut self.bytes[packed_at..]) {
            Ok(length) if length < compact.len() => {
                self.bytes.truncate(packed_at + length);
                self.bytes[length_at..packed_at].copy_from_slice(&(length as u16).to_le_bytes());
            }
            _ => {
                self.bytes.truncate(start);
                self.image(compact);
            }
        }
    }

    /// The page becomes a tombstone.
    pub fn free(&mut self) -> &mut Self {
        self.bytes.push(tag::FREE);
        self
    }

    /// The page becomes a chunk of an overflow value.
    pub fn overflow(&mut self, partition: u32, refcount: u32, total: u32, payload: &[u8]) -> &mut Self {
        self.bytes.push(tag::OVERFLOW);
        self.varint(partition as u64);
        self.varint(refcount as u64);
        self.varint(total as u64);
        self.with_len(payload)
    }

    /// The count of row versions that name the overflow value is replaced.
    pub fn refcount(&mut self, refcount: u32) -> &mut Self {
        self.bytes.push(tag::REFCOUNT);
        self.varint(refcount as u64);
        self
    }

    /// A version was added, with these bytes as they stand in the page.
    ///
    /// # Panics
    /// If the bytes are no version: shorter than a header.
    #[inline]
    pub fn insert(&mut self, offset: u16, version: &[u8]) -> &mut Self {
        let version = Version::new(version).expect("a stored version has a header");
        if version.is_plain_insert(Tid::new(self.block, offset)) {
            let header = version.header();
            self.bytes.push(tag::INSERT);
            self.varint(header.xmin);
            self.varint(header.cmin as u64);
            self.row(offset, version)
        } else {
            self.bytes.push(tag::INSERT_FULL);
            self.u16(offset);
            self.with_len(version.bytes())
        }
    }

    /// Versions of one command were added, in this order, with these bytes as they stand in the page.
    ///
    /// # Panics
    /// If the bytes of one are no version.
    pub fn insert_many<'v>(&mut self, xmin: Xid, cmin: u32, versions: impl IntoIterator<Item = (u16, &'v [u8])>) -> &mut Self {
        // Where the number of rows of the present run stands, and that number.
        let mut run: Option<(usize, u16)> = None;
        for (offset, bytes) in versions {
            let version = Version::new(bytes).expect("a stored version has a header");
            let header = version.header();
            let plain = version.is_plain_insert(Tid::new(self.block, offset));
            if !plain || header.xmin != xmin || header.cmin != cmin {
                run = None;
                self.insert(offset, bytes);
                continue;
            }
            let (at, count) = match run {
                Some(run) => run,
                None => {
                    self.bytes.push(tag::INSERT_MANY);
                    self.varint(xmin);
                    self.varint(cmin as u64);
                    self.u16(0);
                    (self.bytes.len() - 2, 0)
                }
            };
            self.row(offset, version);
            self.bytes[at..at + 2].copy_from_slice(&(count + 1).to_le_bytes());
            run = (count + 1 < u16::MAX).then_some((at, count + 1));
        }
        self
    }

    /// The part of a plain insertion that differs from row to row.
    #[inline]
    fn row(&mut self, offset: u16, version: Version<'_>) -> &mut Self {
        let [o0, o1] = offset.to_le_bytes();
        let [m0, m1] = version.infomask2().to_le_bytes();
        let [i0, i1] = version.infomask().to_le_bytes();
        self.bytes.extend_from_slice(&[o0, o1, m0, m1, i0, i1]);
        self.with_len(version.body())
    }

    /// A version's header was replaced.
    #[inline]
    pub fn header(&mut self, offset: u16, header: &Header) -> &mut Self {
        self.bytes.push(tag::HEADER);
        self.u16(offset);
        self.varint(header.xmin);
        self.varint(header.xmax);
        self.varint(header.cmin as u64);
        self.varint(header.cmax as u64);
        self.varint(header.ctid.block as u64);
        self.u16(header.ctid.offset);
        self.u16(header.infomask2);
        self.u16(header.infomask);
        self
    }

    /// Flags were set, then others cleared.
    #[inline]
    pub fn flags(&mut self, set: u8, clear: u8) -> &mut Self {
        self.bytes.extend_from_slice(&[tag::FLAGS, set, clear]);
        self
    }

    /// The prune xid has this value now.
    #[inline]
    pub fn prune_xid(&mut self, xid: Xid) -> &mut Self {
        self.bytes.push(tag::PRUNE_XID);
        self.varint(xid);
        self
    }

    /// A prune was applied.
    pub fn prune(&mut self, actions: &PruneActions) -> &mut Self {
        self.bytes.push(tag::PRUNE);
        self.u16(actions.redirected.len() as u16);
        for &(from, to) in &actions.redirected {
            self.u16(from);
            self.u16(to);
        }
        self.offsets(&actions.dead);
        self.offsets(&actions.unused);
        self
    }

    /// Dead line pointers were freed.
    pub fn unused(&mut self, offsets: &[u16]) -> &mut Self {
        self.bytes.push(tag::UNUSED);
        self.offsets(offsets);
        self
    }

    /// A user was added to the map of users.
    pub fn user(&mut self, partition: u32, name: &[u8]) -> &mut Self {
        self.bytes.push(tag::USER);
        self.varint(partition as u64);
        self.with_len(name)
    }

    /// The children of a node of the map of users have its entries now.
    pub fn split_users(&mut self) -> &mut Self {
        self.bytes.push(tag::SPLIT_USERS);
        self
    }

    /// A partition's entry was replaced, numbered within the page.
    pub fn partition(&mut self, index: u32, entry: PartitionEntry) -> &mut Self {
        self.bytes.push(tag::PARTITION);
        self.varint(index as u64);
        self.varint(entry.last as u64);
        self.varint(entry.blocks as u64);
        self
    }

    /// A block's place was replaced, numbered within the page.
    pub fn chain(&mut self, index: u32, entry: ChainEntry) -> &mut Self {
        self.bytes.push(tag::CHAIN);
        self.varint(index as u64);
        self.varint(entry.partition as u64);
        self.varint(entry.before as u64);
        self
    }

    /// The second from which the page counts was set.
    pub fn seconds(&mut self, seconds: u32) -> &mut Self {
        self.bytes.push(tag::SECONDS);
        self.bytes.extend_from_slice(&seconds.to_le_bytes());
        self
    }

    /// Versions were made ones that were never there.
    pub fn expire(&mut self, offsets: &[u16]) -> &mut Self {
        self.bytes.push(tag::EXPIRE);
        self.offsets(offsets);
        self
    }

    fn offsets(&mut self, offsets: &[u16]) {
        self.u16(offsets.len() as u16);
        for &offset in offsets {
            self.u16(offset);
        }
    }

    #[inline]
    fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Bytes of less than a page's length.
    #[inline]
    fn with_len(&mut self, bytes: &[u8]) -> &mut Self {
        debug_assert!(bytes.len() <= crate::page::PAGE_SIZE);
        self.u16(bytes.len() as u16);
        self.bytes.extend_from_slice(bytes);
        self
    }

    #[inline]
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}
