//! Owns the form of log records: what one record of Postgres' log says of our pages.
//!
//! ```text
//! record  = u8 format version, then either one storage event or page groups
//! group   = PAGE, storage, page number, then operations in the order in which they were done
//! ```
//!
//! An operation is a tag byte and its fields; numbers that are small as a rule are variable-length (seven bits a byte, lowest
//! first), the rest little endian. Records are physiological: they name pages and line pointers, and replay does to the page what
//! the backend did, with the same functions of [`PageMut`](crate::page::PageMut). A group whose first operation makes the page
//! anew needs no older image.
//!
//! Replay takes a group if the page's LSN is below the record's end, then the page gets the record's end as its LSN.

mod apply;
mod build;
mod decode;
#[cfg(test)]
mod map_tests;
#[cfg(test)]
mod tests;

pub use apply::{apply_group, apply_ops};
pub use build::RecordBuilder;
pub use decode::{Group, Groups, OffsetList, Op, Ops, PruneOp, Record};

use crate::ids::{StorageId, Xid};

/// The only record format there is.
const FORMAT_VERSION: u8 = 1;

/// A storage comes into being.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StorageCreate {
    /// The id, never used before.
    pub storage: StorageId,
    /// Tablespace of the file whose lifetime the storage shares.
    pub tablespace: u32,
    /// Database of that file.
    pub database: u32,
    /// Relation file number of that file.
    pub relnumber: u32,
    /// Number of the backend whose temporary relation it is, plus one; 0 for a relation of all sessions.
    pub owner: u32,
    /// Whether a crash of the server empties it.
    pub unlogged: bool,
    /// The creating transaction: its end decides whether the storage stays.
    pub xid: Xid,
}

/// The tag bytes.
mod tag {
    pub const CREATE_STORAGE: u8 = 0x01;
    pub const PAGE: u8 = 0x02;
    pub const INIT: u8 = 0x10;
    pub const IMAGE: u8 = 0x11;
    pub const FREE: u8 = 0x12;
    pub const OVERFLOW: u8 = 0x13;
    pub const PACKED_IMAGE: u8 = 0x14;

    /// Whether a group that begins with this operation needs no older image of its page.
    pub const fn starts_anew(first: u8) -> bool {
        matches!(first, INIT | IMAGE | FREE | OVERFLOW | PACKED_IMAGE)
    }

    pub const INSERT: u8 = 0x20;
    pub const INSERT_MANY: u8 = 0x21;
    pub const INSERT_FULL: u8 = 0x22;
    pub const HEADER: u8 = 0x23;
    pub const FLAGS: u8 = 0x24;
    pub const PRUNE_XID: u8 = 0x25;
    pub const PRUNE: u8 = 0x26;
    pub const UNUSED: u8 = 0x27;
    pub const REFCOUNT: u8 = 0x28;
    pub const USER: u8 = 0x30;
    pub const SPLIT_USERS: u8 = 0x31;
    pub const PARTITION: u8 = 0x32;
    pub const CHAIN: u8 = 0x33;
    pub const SECONDS: u8 = 0x34;
    pub const EXPIRE: u8 = 0x35;
}
