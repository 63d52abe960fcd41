//! The partitions of a storage whose rows belong to users: which user has which, and which blocks it consists of.
//!
//! Each user gets a number of their own per storage when they first store a row, and keeps it. Blocks belong to one partition
//! each; a partition's blocks form a chain from the newest to the oldest. Order of latches: users, partitions, chains, data.
//!
//! Numbers and blocks are given out by logged changes of their own, whatever becomes of the transaction: a crash or a rollback
//! leaves a number nobody uses, or an empty block that its user fills later.

use std::cell::RefCell;

use kalamdb_engine::cache::{LatchedPage, Pin, Wait};
use kalamdb_engine::ids::{PageKey, PageNumber};
use kalamdb_engine::log::RecordBuilder;
use kalamdb_engine::page::{CHAIN_FANOUT, ChainEntry, PAGE_SIZE, PARTITION_FANOUT, Page, PageKind, PageMut, PartitionEntry};
use kalamdb_engine::{Error, ErrorKind, Result};
use smallvec::SmallVec;

use super::change::{change_page, change_two_pages};
use super::space::next_block;
use super::storage::Storage;
use crate::hash::Set;
use crate::identity::KnownUser;

/// Levels of the map of users below its root: each consumes four bits of the name's hash.
const DEPTH_MAX: u32 = 14;

/// Bytes and users up to which a node of the map is not split.
const LEAF_BYTES: usize = 4096;
const LEAF_USERS: usize = 32;

/// Split nodes that a process remembers.
const SPLIT_MAX: usize = 10_000;

thread_local! {
    /// Nodes of the maps of users, by storage and number, whose children have their entries: they stay so.
    static SPLIT: RefCell<Set<(u64, u64)>> = RefCell::default();
}

/// A hash that is stored by way of the places it leads to: it must not change.
fn hash(name: &[u8]) -> u64 {
    let folded = name.iter().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3));
    let mixed = (folded ^ folded >> 33).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let mixed = (mixed ^ mixed >> 33).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    mixed ^ mixed >> 33
}

/// A node of the map of users on the way to a name.
#[derive(Clone, Copy)]
struct Node {
    number: u64,
    depth: u32,
}

impl Node {
    const ROOT: Node = Node { number: 1, depth: 0 };

    fn child(self, hash: u64) -> Node {
        let branch = hash >> (60 - 4 * self.depth) & 15;
        Node { number: self.number << 4 | branch, depth: self.depth + 1 }
    }

    fn key(self, storage: &Storage) -> PageKey {
        storage.page(PageNumber::users(self.number))
    }
}

fn search(page: Page<'_>, name: &[u8]) -> Option<u32> {
    // Names are mostly as long as others and begin alike: their ends tell them apart.
    let is_it = |user: &[u8]| user.len() == name.len() && user.last() == name.last() && user == name;
    page.users().find(|(_, user)| is_it(user)).map(|(partition, _)| partition)
}

/// The partition of a user, if they ever had a row in this storage.
///
/// # Errors
/// Those of the cache.
pub fn find(storage: &Storage, name: &[u8], wait: &dyn Wait) -> Result<Option<u32>> {
    Ok(leaf_of(storage, name, wait)?.1)
}

/// As [`find`]; remembered by the process.
///
/// # Errors
/// Those of the cache.
#[inline]
pub fn of_user(storage: &Storage, user: &KnownUser, wait: &dyn Wait) -> Result<Option<u32>> {
    if let known @ Some(_) = user.partition(storage.id.0) {
        return Ok(known);
    }
    let found = find(storage, user.name().as_bytes(), wait)?;
    Ok(found.inspect(|partition| user.remember_partition(storage.id.0, *partition)))
}

/// As [`find_or_create`]; remembered by the process.
///
/// # Errors
/// As [`find_or_create`].
#[inline]
pub fn of_user_or_new(storage: &Storage, user: &KnownUser, wait: &dyn Wait) -> Result<u32> {
    if let Some(known) = user.partition(storage.id.0) {
        return Ok(known);
    }
    let partition = find_or_create(storage, user.name().as_bytes(), wait)?;
    user.remember_partition(storage.id.0, partition);
    Ok(partition)
}

/// The node where a user's entry belongs, and the partition if it is there.
fn leaf_of(storage: &Storage, name: &[u8], wait: &dyn Wait) -> Result<(Node, Option<u32>)> {
    let hash = hash(name);
    let mut node = Node::ROOT;
    loop {
        let place = (storage.id.0, node.number);
        if SPLIT.with_borrow(|split| split.contains(&place)) {
            node = node.child(hash);
            continue;
        }
        let pin = storage.cache.read(node.key(storage), wait)?;
        let guard = pin.shared(wait)?;
        if !guard.page().users_are_split() {
            return Ok((node, search(guard.page(), name)));
        }
        SPLIT.with_borrow_mut(|split| {
            if split.len() >= SPLIT_MAX {
                split.clear();
            }
            split.insert(place);
        });
        node = node.child(hash);
    }
}

/// The partition of a user, made if they have none yet.
///
/// # Errors
/// Those of the cache; `LimitExceeded` when there are too many users.
pub fn find_or_create(storage: &Storage, name: &[u8], wait: &dyn Wait) -> Result<u32> {
    loop {
        let (node, found) = leaf_of(storage, name, wait)?;
        if let Some(partition) = found {
            return Ok(partition);
        }
        // Whatever is changed is pinned before a latch is taken: others wait for the latch, and must not wait for the store.
        let counter = storage.cache.read(storage.page(PageNumber::partitions(0)), wait)?;
        let mut leaf = storage.cache.read(node.key(storage), wait)?.into_exclusive(wait)?;
        if leaf.page().users_are_split() {
            continue;
        }
        if let Some(partition) = search(leaf.page(), name) {
            return Ok(partition);
        }
        let is_crowded = node.depth < DEPTH_MAX && is_crowded(leaf.page());
        if !is_crowded && leaf.page().has_room_for_user(name) {
            return create(storage, &mut leaf, &mut counter.into_exclusive(wait)?, name);
        }
        drop(leaf);
        split(storage, node, wait)?;
    }
}

/// Whether a node has so many users that a search among them costs more than one more node on the way.
fn is_crowded(page: Page<'_>) -> bool {
    page.lower() > LEAF_BYTES && page.users().nth(LEAF_USERS).is_some()
}

/// Makes the page one of this kind if it is empty, as part of a change.
fn make(page: &mut PageMut<'_>, record: &mut RecordBuilder, kind: PageKind) {
    if page.as_page().kind() != kind {
        page.init(kind, 0);
        record.init(kind, 0);
    }
}

/// Gives a user a number; `counter` is the page with the numbers given out.
fn create(storage: &Storage, leaf: &mut LatchedPage, counter: &mut LatchedPage, name: &[u8]) -> Result<u32> {
    let given_out = counter.page().partition_entry(0).blocks;
    let partition = given_out.checked_add(1).ok_or_else(|| too_many_users(storage))?;
    change_two_pages(
        leaf,
        counter,
        |page, record| {
            make(page, record, PageKind::Users);
            page.add_user(partition, name);
            record.user(partition, name);
        },
        |(), page, record| {
            make(page, record, PageKind::Partitions);
            let entry = PartitionEntry { last: 0, blocks: partition };
            page.set_partition_entry(0, entry);
            record.partition(0, entry);
        },
    );
    Ok(partition)
}

#[cold]
fn too_many_users(storage: &Storage) -> Error {
    Error::new(ErrorKind::LimitExceeded, "too many users have rows in one table")
        .with_detail(format!("Storage {} cannot name another one.", storage.id.0))
        .with_hint("Use another table for new users.")
}

/// Moves the entries of a crowded node to its children.
///
/// The children are complete before the node says that they count; after a crash in between they are made again.
fn split(storage: &Storage, node: Node, wait: &dyn Wait) -> Result<()> {
    if node.depth >= DEPTH_MAX {
        return Err(too_many_users(storage));
    }
    let child = |branch: u64| Node { number: node.number << 4 | branch, depth: node.depth + 1 };
    let pins: Vec<Pin> = (0..16).map(|branch| storage.cache.read(child(branch).key(storage), wait)).collect::<Result<_>>()?;
    let mut leaf = storage.cache.read(node.key(storage), wait)?.into_exclusive(wait)?;
    if leaf.page().users_are_split() {
        return Ok(());
    }
    let mut children: Vec<Option<Box<[u8; PAGE_SIZE]>>> = vec![None; 16];
    for (partition, name) in leaf.page().users() {
        let child = children[(node.child(hash(name)).number & 15) as usize].get_or_insert_with(|| {
            let mut bytes: Box<[u8; PAGE_SIZE]> = Box::new([0; PAGE_SIZE]);
            PageMut::new(&mut bytes[..]).init(PageKind::Users, 0);
            bytes
        });
        PageMut::new(&mut child[..]).add_user(partition, name);
    }
    let mut image = Vec::new();
    for (bytes, pin) in children.iter().zip(pins) {
        let Some(bytes) = bytes else { continue };
        image.clear();
        Page::new(&bytes[..]).to_compact(&mut image);
        let mut page = pin.into_exclusive(wait)?;
        change_page(&mut page, |page, record| {
            page.from_compact(&image).expect("the page was made by the page's own functions");
            record.image(&image);
        });
    }
    change_page(&mut leaf, |page, record| {
        page.split_users();
        record.split_users();
    });
    Ok(())
}

/// Calls `visit` with every user that has a partition, in no order.
///
/// # Errors
/// Those of the cache, and of `visit`.
pub fn each_user(storage: &Storage, wait: &dyn Wait, visit: &mut dyn FnMut(u32, &[u8]) -> Result<()>) -> Result<()> {
    each_users_page(storage, wait, &mut |page, _| page.users().try_for_each(|(partition, name)| visit(partition, name)))
}

/// Calls `visit` with every page of the map of users, latched, and its number.
///
/// # Errors
/// Those of the cache, and of `visit`.
pub fn each_users_page(
    storage: &Storage,
    wait: &dyn Wait,
    visit: &mut dyn FnMut(Page<'_>, PageNumber) -> Result<()>,
) -> Result<()> {
    let mut nodes = vec![Node::ROOT.number];
    while let Some(number) = nodes.pop() {
        wait.pause()?;
        let pin = storage.cache.read(storage.page(PageNumber::users(number)), wait)?;
        let guard = pin.shared(wait)?;
        if guard.page().users_are_split() {
            nodes.extend((0..16).map(|branch| number << 4 | branch));
        }
        visit(guard.page(), PageNumber::users(number))?;
    }
    Ok(())
}

/// The blocks of a partition, in short.
///
/// # Errors
/// Those of the cache.
pub fn entry(storage: &Storage, partition: u32, wait: &dyn Wait) -> Result<PartitionEntry> {
    let key = storage.page(PageNumber::partitions(partition / PARTITION_FANOUT));
    let pin = storage.cache.read(key, wait)?;
    let guard = pin.shared(wait)?;
    Ok(guard.page().partition_entry(partition % PARTITION_FANOUT))
}

/// Number of partitions given out: their numbers begin with 1.
///
/// # Errors
/// Those of the cache.
pub fn count(storage: &Storage, wait: &dyn Wait) -> Result<u32> {
    Ok(entry(storage, 0, wait)?.blocks)
}

/// The place of a block.
///
/// # Errors
/// Those of the cache.
pub fn place_of(storage: &Storage, block: u32, wait: &dyn Wait) -> Result<ChainEntry> {
    let pin = storage.cache.read(storage.page(PageNumber::chains(block / CHAIN_FANOUT)), wait)?;
    let guard = pin.shared(wait)?;
    Ok(guard.page().chain_entry(block % CHAIN_FANOUT))
}

/// Walks along a partition's blocks, from the one behind `from` (a block plus one) to the oldest; `visit` ends it with false.
///
/// # Errors
/// Those of the cache; `Corrupt` when the chain leaves its partition.
pub fn walk(storage: &Storage, partition: u32, from: u32, wait: &dyn Wait, visit: &mut dyn FnMut(u32) -> bool) -> Result<()> {
    let mut next = from;
    while next != 0 {
        let number = (next - 1) / CHAIN_FANOUT;
        let pin = storage.cache.read(storage.page(PageNumber::chains(number)), wait)?;
        let guard = pin.shared(wait)?;
        // As many steps as stay on this page.
        while next != 0 && (next - 1) / CHAIN_FANOUT == number {
            let block = next - 1;
            let entry = guard.page().chain_entry(block % CHAIN_FANOUT);
            // Equal ones would be a circle.
            if entry.partition != partition || entry.before == next {
                return Err(Error::corrupt(format!("block {block} is not where the list of its user's blocks has it")));
            }
            if !visit(block) {
                return Ok(());
            }
            next = entry.before;
        }
        drop(guard);
        if next != 0 {
            wait.pause()?;
        }
    }
    Ok(())
}

/// Blocks of a list that takes no memory of its own: most users have few.
pub const FEW: usize = 8;

/// Numbers of blocks.
pub type Blocks = SmallVec<[u32; FEW]>;

/// All blocks of a partition in ascending order.
///
/// # Errors
/// Those of [`walk`].
pub fn blocks_of(storage: &Storage, partition: u32, wait: &dyn Wait) -> Result<Blocks> {
    let entry = entry(storage, partition, wait)?;
    if let (1, Some(only)) = (entry.blocks, entry.last.checked_sub(1)) {
        return Ok(Blocks::from_slice(&[only]));
    }
    let mut blocks = Blocks::with_capacity(entry.blocks.min(1 << 20) as usize);
    // A block may have come since the entry was read, none goes; the bound ends a circle.
    let most = storage.blocks() as usize;
    walk(storage, partition, entry.last, wait, &mut |block| {
        blocks.push(block);
        blocks.len() <= most
    })?;
    blocks.sort_unstable();
    Ok(blocks)
}

/// All blocks of the storage, those of each partition together.
///
/// # Errors
/// Those of the cache.
pub fn blocks_by_partition(storage: &Storage, wait: &dyn Wait) -> Result<Vec<u32>> {
    let mut places = Vec::new();
    let blocks = storage.blocks();
    for number in 0..blocks.div_ceil(CHAIN_FANOUT) {
        wait.pause()?;
        let pin = storage.cache.read(storage.page(PageNumber::chains(number)), wait)?;
        let guard = pin.shared(wait)?;
        let first = number * CHAIN_FANOUT;
        let of_page = (first..blocks.min(first.saturating_add(CHAIN_FANOUT)))
            .map(|block| (guard.page().chain_entry(block - first).partition, block));
        places.extend(of_page);
    }
    places.sort_unstable();
    Ok(places.into_iter().map(|(_, block)| block).collect())
}

/// Gives a partition a fresh block; its page is of kind `Unused` and to be initialised by the caller's logged change.
///
/// # Errors
/// Those of the cache; `LimitExceeded` when the table has all the blocks it can have.
pub fn extend(storage: &Storage, partition: u32, wait: &dyn Wait) -> Result<LatchedPage> {
    loop {
        let block = add_block(storage, partition, wait)?;
        let page = storage.cache.create_page(storage.block(block), wait)?.into_exclusive(wait)?;
        if page.page().kind() == PageKind::Unused {
            return Ok(page);
        }
    }
}

/// Gives a partition a fresh block and returns its number.
///
/// # Errors
/// As [`extend`].
pub fn add_block(storage: &Storage, partition: u32, wait: &dyn Wait) -> Result<u32> {
    let (number, index) = (partition / PARTITION_FANOUT, partition % PARTITION_FANOUT);
    let read_chains = |chain: u32| storage.cache.read(storage.page(PageNumber::chains(chain)), wait);
    // Both pages are pinned before one is latched, and the likely one before there is a block that would be nobody's if that fails.
    let partitions = storage.cache.read(storage.page(PageNumber::partitions(number)), wait)?;
    let likely = storage.blocks() / CHAIN_FANOUT;
    let likely_chains = read_chains(likely)?;
    let block = next_block(storage)?;
    let (chain, place) = (block / CHAIN_FANOUT, block % CHAIN_FANOUT);
    let chains = if chain == likely { likely_chains } else { read_chains(chain)? };
    let (mut partitions, mut chains) = (partitions.into_exclusive(wait)?, chains.into_exclusive(wait)?);
    let old = partitions.page().partition_entry(index);
    change_two_pages(
        &mut partitions,
        &mut chains,
        |page, record| {
            make(page, record, PageKind::Partitions);
            let entry = PartitionEntry { last: block + 1, blocks: old.blocks + 1 };
            page.set_partition_entry(index, entry);
            record.partition(index, entry);
        },
        |(), page, record| {
            make(page, record, PageKind::Chains);
            let entry = ChainEntry { partition, before: old.last };
            page.set_chain_entry(place, entry);
            record.chain(place, entry);
        },
    );
    Ok(block)
}
