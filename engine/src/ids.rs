//! Names things: storages, pages, row versions and log positions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A full 64-bit transaction id; the low half is Postgres' `TransactionId`.
pub type Xid = u64;

/// The xid of nothing.
pub const INVALID_XID: Xid = 0;
/// The xid that every snapshot sees.
pub const FROZEN_XID: Xid = 2;

/// Identifies one storage (the rows behind one relfilenode) for ever; never given out twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct StorageId(pub u64);

impl StorageId {
    /// The id of no storage.
    pub const INVALID: StorageId = StorageId(0);
}

/// A byte position in Postgres' write-ahead log (`XLogRecPtr`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Lsn(pub u64);

impl Lsn {
    /// A position before every record.
    pub const INVALID: Lsn = Lsn(0);
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

const OVERFLOW: u64 = 1 << 63;
const DIRECTORY: u64 = 1 << 62;
const USERS: u64 = 1 << 61;
const PARTITIONS: u64 = 1 << 60;
const CHAINS: u64 = 1 << 59;
const TIMES: u64 = 1 << 58;

/// The number of a page within its storage; several number spaces share it.
///
/// | bits | space |
/// |---|---|
/// | below 2^32 | rows, the block number of their TIDs |
/// | 2^58 + t | page t of the times of a stream's blocks |
/// | 2^59 + c | page c of the map from blocks to partitions |
/// | 2^60 + p | page p of the map from partitions to blocks |
/// | 2^61 + n | node n of the map from users to partitions |
/// | 2^62 + d | directory page d |
/// | 2^63 + value * 2^24 + chunk | chunk of an overflow value |
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct PageNumber(pub u64);

impl PageNumber {
    /// The page of rows with this block number.
    #[inline]
    pub const fn block(block: u32) -> PageNumber {
        PageNumber(block as u64)
    }

    /// The directory page that describes a run of blocks.
    pub const fn directory(number: u32) -> PageNumber {
        PageNumber(DIRECTORY | number as u64)
    }

    /// A node of the map from users to partitions: 1 is the root, the children of n are 16 n to 16 n + 15.
    ///
    /// `node` is below 2^59.
    pub const fn users(node: u64) -> PageNumber {
        PageNumber(USERS | node)
    }

    /// A page of the map from partitions to their blocks.
    pub const fn partitions(number: u32) -> PageNumber {
        PageNumber(PARTITIONS | number as u64)
    }

    /// A page of the map from blocks to their partitions.
    pub const fn chains(number: u32) -> PageNumber {
        PageNumber(CHAINS | number as u64)
    }

    /// A page of the times of a stream's blocks.
    pub const fn times(number: u32) -> PageNumber {
        PageNumber(TIMES | number as u64)
    }

    /// The number of a page of the map from blocks to their partitions.
    pub const fn as_chains(self) -> Option<u32> {
        if self.0 & !(u32::MAX as u64) == CHAINS { Some(self.0 as u32) } else { None }
    }

    /// One chunk of a value that does not fit into its row's page.
    ///
    /// `chunk` is below 2^24.
    pub const fn overflow(value: u32, chunk: u32) -> PageNumber {
        PageNumber(OVERFLOW | (value as u64) << 24 | chunk as u64)
    }

    /// The block number, for a page of rows.
    pub const fn as_block(self) -> Option<u32> {
        if self.0 <= u32::MAX as u64 { Some(self.0 as u32) } else { None }
    }

    /// The value number and the chunk, for an overflow page.
    pub const fn as_overflow(self) -> Option<(u32, u32)> {
        if self.0 & OVERFLOW == 0 {
            return None;
        }
        Some((((self.0 & !OVERFLOW) >> 24) as u32, (self.0 & 0xff_ffff) as u32))
    }
}

/// Names one page of the whole cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct PageKey {
    /// The storage the page belongs to.
    pub storage: StorageId,
    /// Its number there.
    pub page: PageNumber,
}

impl PageKey {
    /// The key of a page of rows.
    #[inline]
    pub const fn block(storage: StorageId, block: u32) -> PageKey {
        PageKey { storage, page: PageNumber::block(block) }
    }
}

/// The place of a row version: Postgres' item pointer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Tid {
    /// Block number.
    pub block: u32,
    /// Line pointer number, from 1.
    pub offset: u16,
}

impl Tid {
    /// Builds a TID.
    #[inline]
    pub const fn new(block: u32, offset: u16) -> Tid {
        Tid { block, offset }
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{})", self.block, self.offset)
    }
}
