//! Owns the maps of a storage whose rows belong to users: user to partition, partition to blocks, block to partition.
//!
//! ```text
//! users       32 u32 1 if the children of the node have its entries | 36 entries: u32 partition, u16 length, name
//! partitions  32 entries of 16 bytes: u32 last block plus one, u32 number of blocks, 8 zero bytes
//! chains      32 entries of 8 bytes: u32 partition, u32 block before it in its partition plus one
//! ```
//!
//! The entry of partition 0, which no user has, holds the number of partitions given out instead.

use super::bytes::{read_u16, read_u32, write_u16, write_u32};
use super::*;
use crate::error::{Error, Result};

/// Where the entries of a users page start.
pub(super) const USERS_HEADER: usize = 36;
const AT_SPLIT: usize = 32;
/// Bytes of an entry of a users page before the name.
const USER_HEADER: usize = 6;

const PARTITION_ENTRY: usize = 16;
const CHAIN_ENTRY: usize = 8;

/// Partitions that one page of their map describes.
pub const PARTITION_FANOUT: u32 = ((PAGE_SIZE - PAGE_HEADER) / PARTITION_ENTRY) as u32;
/// Blocks that one page of their map describes.
pub const CHAIN_FANOUT: u32 = ((PAGE_SIZE - PAGE_HEADER) / CHAIN_ENTRY) as u32;

/// The blocks of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PartitionEntry {
    /// The block that was added last, plus one; 0 when there is none.
    pub last: u32,
    /// Number of blocks; in the entry of partition 0 the number of partitions.
    pub blocks: u32,
}

/// The place of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChainEntry {
    /// The partition that the block belongs to; 0 when it was never given to one.
    pub partition: u32,
    /// The block that was added to the partition before it, plus one; 0 when it was the first.
    pub before: u32,
}

impl<'a> Page<'a> {
    /// Every user that the page names, with the partition.
    pub fn users(self) -> impl Iterator<Item = (u32, &'a [u8])> {
        let end = if self.kind() == PageKind::Users { self.lower().min(PAGE_SIZE) } else { 0 };
        let mut at = USERS_HEADER;
        std::iter::from_fn(move || {
            let name = at + USER_HEADER;
            if name > end {
                return None;
            }
            let len = read_u16(self.0, at + 4) as usize;
            // An entry that would end beyond the others is damaged, and so is what follows.
            let entry = (read_u32(self.0, at), self.0.get(name..name + len).filter(|_| name + len <= end)?);
            at = name + len;
            Some(entry)
        })
    }

    /// Whether the children of a users page have its entries.
    #[inline]
    pub fn users_are_split(self) -> bool {
        self.kind() == PageKind::Users && read_u32(self.0, AT_SPLIT) != 0
    }

    /// Whether one more user of this length fits into a users page.
    pub fn has_room_for_user(self, name: &[u8]) -> bool {
        self.lower().max(USERS_HEADER) + USER_HEADER + name.len() <= PAGE_SIZE
    }

    /// A partition's blocks, the partition numbered within the page; an empty entry if the page has none.
    #[inline]
    pub fn partition_entry(self, index: u32) -> PartitionEntry {
        if self.kind() != PageKind::Partitions || index >= PARTITION_FANOUT {
            return PartitionEntry::default();
        }
        let at = PAGE_HEADER + index as usize * PARTITION_ENTRY;
        PartitionEntry { last: read_u32(self.0, at), blocks: read_u32(self.0, at + 4) }
    }

    /// A block's place, the block numbered within the page; an empty entry if the page has none.
    #[inline]
    pub fn chain_entry(self, index: u32) -> ChainEntry {
        if self.kind() != PageKind::Chains || index >= CHAIN_FANOUT {
            return ChainEntry::default();
        }
        let at = PAGE_HEADER + index as usize * CHAIN_ENTRY;
        ChainEntry { partition: read_u32(self.0, at), before: read_u32(self.0, at + 4) }
    }

    pub(super) fn check_users(self) -> Result<()> {
        let used = self.users().fold(USERS_HEADER, |at, (_, name)| at + USER_HEADER + name.len());
        if self.lower() != used {
            return Err(Error::corrupt(format!("page of users ends at {} and not at {used}", self.lower())));
        }
        Ok(())
    }
}

impl PageMut<'_> {
    /// Adds a user to a users page; false if there is no room.
    pub fn add_user(&mut self, partition: u32, name: &[u8]) -> bool {
        let page = self.as_page();
        if page.kind() != PageKind::Users || page.users_are_split() || !page.has_room_for_user(name) {
            return false;
        }
        let at = page.lower();
        let end = at + USER_HEADER + name.len();
        write_u32(self.0, at, partition);
        write_u16(self.0, at + 4, name.len() as u16);
        self.0[at + USER_HEADER..end].copy_from_slice(name);
        self.set_bounds(end, PAGE_SIZE);
        true
    }

    /// Makes a users page one whose children have its entries.
    pub fn split_users(&mut self) {
        self.init(PageKind::Users, 0);
        write_u32(self.0, AT_SPLIT, 1);
    }

    /// Replaces a partition's entry, the partition numbered within the page; false if this is no page of partitions.
    pub fn set_partition_entry(&mut self, index: u32, entry: PartitionEntry) -> bool {
        if self.as_page().kind() != PageKind::Partitions || index >= PARTITION_FANOUT {
            return false;
        }
        let at = PAGE_HEADER + index as usize * PARTITION_ENTRY;
        write_u32(self.0, at, entry.last);
        write_u32(self.0, at + 4, entry.blocks);
        self.extend_to(at + PARTITION_ENTRY);
        true
    }

    /// Replaces a block's place, the block numbered within the page; false if this is no page of chains.
    pub fn set_chain_entry(&mut self, index: u32, entry: ChainEntry) -> bool {
        if self.as_page().kind() != PageKind::Chains || index >= CHAIN_FANOUT {
            return false;
        }
        let at = PAGE_HEADER + index as usize * CHAIN_ENTRY;
        write_u32(self.0, at, entry.partition);
        write_u32(self.0, at + 4, entry.before);
        self.extend_to(at + CHAIN_ENTRY);
        true
    }

    fn extend_to(&mut self, end: usize) {
        if self.as_page().lower() < end {
            self.set_bounds(end, PAGE_SIZE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(kind: PageKind) -> Box<[u8; PAGE_SIZE]> {
        let mut bytes: Box<[u8; PAGE_SIZE]> = vec![0; PAGE_SIZE].try_into().unwrap();
        PageMut(&mut bytes).init(kind, 0);
        bytes
    }

    fn stored_again(bytes: &[u8; PAGE_SIZE]) -> Box<[u8; PAGE_SIZE]> {
        let mut image = Vec::new();
        Page(bytes).to_compact(&mut image);
        let mut again: Box<[u8; PAGE_SIZE]> = vec![0xAA; PAGE_SIZE].try_into().unwrap();
        PageMut(&mut again).from_compact(&image).unwrap();
        again
    }

    #[test]
    fn users_stay_until_the_page_is_full_and_come_back_from_the_stored_image() {
        let mut bytes = page(PageKind::Users);
        let mut names = Vec::new();
        for number in 1u32.. {
            let name = format!("user {number} {}", "x".repeat(number as usize % 200));
            if !PageMut(&mut bytes).add_user(number, name.as_bytes()) {
                assert!(!Page(&bytes).has_room_for_user(name.as_bytes()));
                break;
            }
            names.push(name);
        }
        assert!(names.len() > 200);
        let again = stored_again(&bytes);
        assert_eq!(*again, *bytes);
        let read: Vec<(u32, &[u8])> = Page(&again).users().collect();
        let wanted: Vec<(u32, &[u8])> = (1..).zip(names.iter().map(String::as_bytes)).collect();
        assert_eq!(read, wanted);
    }

    #[test]
    fn a_split_node_has_no_users_and_takes_none() {
        let mut bytes = page(PageKind::Users);
        PageMut(&mut bytes).add_user(7, b"alice");
        PageMut(&mut bytes).split_users();
        let again = stored_again(&bytes);
        assert!(Page(&again).users_are_split());
        assert_eq!(Page(&again).users().count(), 0);
        assert!(!PageMut(&mut bytes).add_user(8, b"bob"));
    }

    #[test]
    fn a_damaged_users_page_is_refused_and_never_read_beyond_its_end() {
        let mut bytes = page(PageKind::Users);
        PageMut(&mut bytes).add_user(7, b"alice");
        write_u16(&mut bytes[..], USERS_HEADER + 4, 60_000);
        assert!(Page(&bytes).check().is_err());
        assert!(Page(&bytes).users().all(|(_, name)| name.len() <= 5));
    }

    #[test]
    fn entries_of_partitions_and_blocks_come_back() {
        let mut bytes = page(PageKind::Partitions);
        let entry = PartitionEntry { last: 5, blocks: 3 };
        assert!(PageMut(&mut bytes).set_partition_entry(PARTITION_FANOUT - 1, entry));
        assert!(!PageMut(&mut bytes).set_partition_entry(PARTITION_FANOUT, entry));
        let again = stored_again(&bytes);
        assert_eq!(Page(&again).partition_entry(PARTITION_FANOUT - 1), entry);
        assert_eq!(Page(&again).partition_entry(0), PartitionEntry::default());
        let mut bytes = page(PageKind::Chains);
        let entry = ChainEntry { partition: 9, before: 4 };
        assert!(PageMut(&mut bytes).set_chain_entry(3, entry));
        let again = stored_again(&bytes);
        assert_eq!(Page(&again).chain_entry(3), entry);
        assert_eq!(Page(&again).chain_entry(4), ChainEntry::default());
        assert_eq!(Page(&again).partition_entry(3), PartitionEntry::default(), "a page of another kind has no such entry");
    }
}
