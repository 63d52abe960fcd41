//! Reads a log record. A record is checked as a whole first; after that, reading it cannot fail.

use super::{FORMAT_VERSION, StorageCreate, tag};
use crate::error::{Error, Result};
use crate::ids::{PageKey, PageNumber, StorageId, Tid, Xid};
use crate::page::{ChainEntry, Header, OVERFLOW_PAYLOAD, PageKind, PartitionEntry, PruneActions};

/// A checked record.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    create: Option<StorageCreate>,
    groups: &'a [u8],
}

impl<'a> Record<'a> {
    /// Checks the form of a record, whatever the bytes are.
    ///
    /// # Errors
    /// `Corrupt` when the version is unknown or the form is wrong.
    pub fn decode(bytes: &'a [u8]) -> Result<Record<'a>> {
        match bytes.split_first() {
            Some((&FORMAT_VERSION, rest)) => Record::parse(rest).ok_or_else(|| Error::corrupt("log record has a wrong form")),
            Some((version, _)) => Err(Error::corrupt(format!("log record has the unknown format version {version}"))),
            None => Err(Error::corrupt("log record is empty")),
        }
    }

    fn parse(bytes: &'a [u8]) -> Option<Record<'a>> {
        let mut reader = Reader(bytes);
        if bytes.first() == Some(&tag::CREATE_STORAGE) {
            let create = read_create(&mut reader)?;
            return reader.0.is_empty().then_some(Record { create: Some(create), groups: &[] });
        }
        while !reader.0.is_empty() {
            let key = reader.page()?;
            let mut ops = Ops { reader, block: key.page.as_block().unwrap_or(0), run: None };
            while !ops.at_end() {
                ops.read()?;
            }
            reader = ops.reader;
        }
        Some(Record { create: None, groups: bytes })
    }

    /// The storage that comes into being with this record.
    pub fn create_storage(&self) -> Option<StorageCreate> {
        self.create
    }

    /// What happened to each page.
    pub fn groups(&self) -> Groups<'a> {
        Groups { rest: self.groups }
    }
}

fn read_create(reader: &mut Reader<'_>) -> Option<StorageCreate> {
    reader.u8()?;
    Some(StorageCreate {
        storage: StorageId(reader.varint()?),
        tablespace: reader.u32()?,
        database: reader.u32()?,
        relnumber: reader.u32()?,
        owner: reader.varint()?.try_into().ok()?,
        unlogged: match reader.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        },
        xid: reader.varint()?,
    })
}

/// The groups of a record.
#[derive(Clone, Debug)]
pub struct Groups<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Groups<'a> {
    type Item = Group<'a>;

    fn next(&mut self) -> Option<Group<'a>> {
        let mut reader = Reader(self.rest);
        let key = reader.page()?;
        let starts_empty = reader.0.first().is_some_and(|first| tag::starts_anew(*first));
        let ops = Ops { reader, block: key.page.as_block().unwrap_or(0), run: None };
        let mut skip = ops.clone();
        while skip.next().is_some() {}
        self.rest = skip.reader.0;
        Some(Group { key, starts_empty, ops })
    }
}

/// What happened to one page.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// The page.
    pub key: PageKey,
    /// Whether the first operation makes the page anew, so that no older image is needed.
    pub starts_empty: bool,
    /// What was done, in order.
    pub ops: Ops<'a>,
}

/// One change of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// The page becomes an empty one.
    Init { kind: PageKind, partition: u32 },
    /// The page becomes what a stored image describes.
    Image(&'a [u8]),
    /// The same for an image of so many bytes, compressed with LZ4.
    PackedImage { length: usize, packed: &'a [u8] },
    /// The page becomes a tombstone.
    Free,
    /// The page becomes a chunk of an overflow value.
    Overflow { partition: u32, refcount: u32, total: u32, payload: &'a [u8] },
    /// A version is added that nobody has touched since.
    Insert { offset: u16, header: Header, body: &'a [u8] },
    /// A version is added, given with all its bytes.
    InsertFull { offset: u16, version: &'a [u8] },
    /// A version's header is replaced.
    Header { offset: u16, header: Header },
    /// Flags are set, then others cleared.
    Flags { set: u8, clear: u8 },
    /// The prune xid is replaced.
    PruneXid(Xid),
    /// A prune is applied.
    Prune(PruneOp<'a>),
    /// Dead line pointers are freed.
    Unused(OffsetList<'a>),
    /// An overflow value's count of row versions is replaced.
    Refcount(u32),
    /// A user is added to the map of users.
    User { partition: u32, name: &'a [u8] },
    /// The children of a node of the map of users take its entries.
    SplitUsers,
    /// A partition's entry is replaced.
    Partition { index: u32, entry: PartitionEntry },
    /// A block's place is replaced.
    Chain { index: u32, entry: ChainEntry },
    /// The second from which the page counts is set.
    Seconds(u32),
    /// Versions become ones that were never there.
    Expire(OffsetList<'a>),
}

/// A list of line pointer numbers in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetList<'a>(&'a [u8]);

impl<'a> OffsetList<'a> {
    /// The numbers.
    pub fn iter(self) -> impl Iterator<Item = u16> + use<'a> {
        self.0.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes))
    }
}

/// A prune in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneOp<'a> {
    redirected: OffsetList<'a>,
    dead: OffsetList<'a>,
    unused: OffsetList<'a>,
}

impl PruneOp<'_> {
    /// The actions as the page takes them.
    pub fn actions(self) -> PruneActions {
        let pairs = self.redirected.0.as_chunks::<4>().0.iter();
        PruneActions {
            redirected: pairs.map(|&[a, b, c, d]| (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))).collect(),
            dead: self.dead.iter().collect(),
            unused: self.unused.iter().collect(),
        }
    }
}

/// The operations of a group. Insertions of many rows come as single ones.
#[derive(Clone, Debug)]
pub struct Ops<'a> {
    reader: Reader<'a>,
    block: u32,
    // What is left of an insertion of many rows.
    run: Option<Run>,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    left: u16,
    xmin: Xid,
    cmin: u32,
}

impl<'a> Iterator for Ops<'a> {
    type Item = Op<'a>;

    fn next(&mut self) -> Option<Op<'a>> {
        if self.at_end() { None } else { self.read() }
    }
}

impl<'a> Ops<'a> {
    fn at_end(&self) -> bool {
        self.run.is_none() && matches!(self.reader.0.first(), None | Some(&tag::PAGE))
    }

    fn read(&mut self) -> Option<Op<'a>> {
        if let Some(run) = self.run {
            return self.row(run);
        }
        let reader = &mut self.reader;
        Some(match reader.u8()? {
            tag::INIT => Op::Init { kind: PageKind::from_byte(reader.u8()?)?, partition: reader.varint32()? },
            tag::IMAGE => Op::Image(reader.with_len()?),
            tag::PACKED_IMAGE => Op::PackedImage { length: reader.u16()?.into(), packed: reader.with_len()? },
            tag::FREE => Op::Free,
            tag::OVERFLOW => Op::Overflow {
                partition: reader.varint32()?,
                refcount: reader.varint32()?,
                total: reader.varint32()?,
                payload: reader.with_len().filter(|payload| payload.len() <= OVERFLOW_PAYLOAD)?,
            },
            tag::INSERT => {
                let run = Run { left: 1, xmin: reader.varint()?, cmin: reader.varint32()? };
                return self.row(run);
            }
            tag::INSERT_MANY => {
                let run = Run { xmin: reader.varint()?, cmin: reader.varint32()?, left: reader.u16()? };
                return self.row(run);
            }
            tag::INSERT_FULL => Op::InsertFull { offset: reader.u16()?, version: reader.with_len()? },
            tag::HEADER => Op::Header { offset: reader.u16()?, header: reader.header()? },
            tag::FLAGS => Op::Flags { set: reader.u8()?, clear: reader.u8()? },
            tag::PRUNE_XID => Op::PruneXid(reader.varint()?),
            tag::PRUNE => Op::Prune(PruneOp { redirected: reader.list(4)?, dead: reader.list(2)?, unused: reader.list(2)? }),
            tag::UNUSED => Op::Unused(reader.list(2)?),
            tag::REFCOUNT => Op::Refcount(reader.varint32()?),
            tag::USER => Op::User { partition: reader.varint32()?, name: reader.with_len()? },
            tag::SPLIT_USERS => Op::SplitUsers,
            tag::PARTITION => {
                let index = reader.varint32()?;
                Op::Partition { index, entry: PartitionEntry { last: reader.varint32()?, blocks: reader.varint32()? } }
            }
            tag::SECONDS => Op::Seconds(reader.u32()?),
            tag::EXPIRE => Op::Expire(reader.list(2)?),
            tag::CHAIN => {
                let index = reader.varint32()?;
                Op::Chain { index, entry: ChainEntry { partition: reader.varint32()?, before: reader.varint32()? } }
            }
            _ => return None,
        })
    }

    fn row(&mut self, run: Run) -> Option<Op<'a>> {
        // A run of no rows is never written.
        let left = run.left.checked_sub(1)?;
        self.run = (left > 0).then_some(Run { left, ..run });
        let reader = &mut self.reader;
        let offset = reader.u16()?;
        let (infomask2, infomask) = (reader.u16()?, reader.u16()?);
        let ctid = Tid::new(self.block, offset);
        let header = Header { xmin: run.xmin, xmax: 0, cmin: run.cmin, cmax: 0, ctid, infomask2, infomask };
        Some(Op::Insert { offset, header, body: reader.with_len()? })
    }
}

#[derive(Clone, Copy, Debug)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (&taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    #[inline]
    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    #[inline]
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                return None;
            }
            value |= ((byte & 0x7f) as u64) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    #[inline]
    fn varint32(&mut self) -> Option<u32> {
        self.varint()?.try_into().ok()
    }

    fn with_len(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(len as usize)
    }

    fn list(&mut self, width: usize) -> Option<OffsetList<'a>> {
        let count = self.u16()?;
        self.take(count as usize * width).map(OffsetList)
    }

    fn page(&mut self) -> Option<PageKey> {
        if self.u8()? != tag::PAGE {
            return None;
        }
        let storage = StorageId(self.varint()?);
        Some(PageKey { storage, page: PageNumber(self.varint()?.rotate_right(2)) })
    }

    fn header(&mut self) -> Option<Header> {
        Some(Header {
            xmin: self.varint()?,
            xmax: self.varint()?,
            cmin: self.varint32()?,
            cmax: self.varint32()?,
            ctid: Tid::new(self.varint32()?, self.u16()?),
            infomask2: self.u16()?,
            infomask: self.u16()?,
        })
    }
}
