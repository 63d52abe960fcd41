//! The storages of the cluster: which relfilenode has which storage, and how many blocks it has.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Cache;
use super::eras::Eras;
use super::flush_state::FlushState;
use super::latch::WaitForever;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{StorageId, Xid};

/// Pages with room that different backends insert into, so that they seldom meet.
const INSERT_TARGETS: usize = 16;

const NONE: u32 = u32::MAX;

/// Postgres' identity of a relation's files: it may repeat over time, a [`StorageId`] never does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RelationFile {
    /// OID of the tablespace.
    pub tablespace: u32,
    /// OID of the database.
    pub database: u32,
    /// Number of the relation's files.
    pub relnumber: u32,
    /// Postgres' number of the backend whose temporary relation it is, plus one; 0 for a relation of all sessions.
    pub owner: u32,
}

/// What lasts of a storage over restarts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StorageInfo {
    /// The id.
    pub id: StorageId,
    /// The relation's files.
    pub file: RelationFile,
    /// Whether a crash of the server empties it.
    pub unlogged: bool,
    /// The transaction that made it; 0 once that is known to have committed.
    pub creator_xid: Xid,
    /// Number of blocks given out so far.
    pub blocks: u32,
    /// The next number of an overflow value.
    pub next_value: u32,
}

impl StorageInfo {
    /// A storage without pages.
    pub fn empty(id: StorageId, file: RelationFile, unlogged: bool, creator_xid: Xid) -> StorageInfo {
        StorageInfo { id, file, unlogged, creator_xid, blocks: 0, next_value: 1 }
    }
}

/// One storage in shared memory.
#[repr(C, align(64))]
pub struct StorageDescriptor {
    id: AtomicU64,
    creator_xid: AtomicU64,
    /// Approximate bytes of its pages in the store, as of the last checkpoint that wrote some of them.
    pub stored_bytes: AtomicU64,
    /// Bytes of its segments; 0 when it has none.
    pub segment_bytes: AtomicU64,
    /// Number of its segments.
    pub segments: AtomicU32,
    tablespace: AtomicU32,
    database: AtomicU32,
    relnumber: AtomicU32,
    owner: AtomicU32,
    unlogged: AtomicU32,
    next_in_bucket: AtomicU32,
    /// Number of blocks given out so far.
    pub blocks: AtomicU32,
    /// The next number of an overflow value.
    pub next_value: AtomicU32,
    /// Whether a VACUUM has looked for values that no row names since the mapping came into use; 0 or 1.
    pub values_searched: AtomicU32,
    /// The first number that may be one, and whether it comes behind those of another storage of the same table; 0 or 1.
    first_value: AtomicU32,
    continues_values: AtomicU32,
    /// Block from which the next search for free space starts.
    pub free_space_hint: AtomicU32,
    /// A search for pages with at least this free-space category found nothing since the directory changed; 256 = no such knowledge.
    pub free_space_exhausted: AtomicU32,
    insert_targets: [AtomicU32; INSERT_TARGETS],
    /// When its changed rows are due for a flush.
    pub flush: FlushState,
    /// Which rows have vanished; of streams alone.
    pub eras: Eras,
}

impl StorageDescriptor {
    /// The id of the storage; [`StorageId::INVALID`] when the place is empty.
    #[inline]
    pub fn id(&self) -> StorageId {
        StorageId(self.id.load(Ordering::Acquire))
    }

    /// The relation's files.
    pub fn file(&self) -> RelationFile {
        RelationFile {
            tablespace: self.tablespace.load(Ordering::Relaxed),
            database: self.database.load(Ordering::Relaxed),
            relnumber: self.relnumber.load(Ordering::Relaxed),
            owner: self.owner.load(Ordering::Relaxed),
        }
    }

    /// Whether a crash of the server empties the storage.
    pub fn is_unlogged(&self) -> bool {
        self.unlogged.load(Ordering::Relaxed) != 0
    }

    /// Whether rows are there after a crash of the server: those of temporary and unlogged tables are not.
    #[inline]
    pub fn outlives_crash(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == 0 && !self.is_unlogged()
    }

    /// Whether the storage never had a page.
    pub fn is_unused(&self) -> bool {
        self.blocks.load(Ordering::Acquire) == 0 && !self.has_values()
    }

    /// Whether a large value may ever have been stored.
    #[inline]
    pub fn has_values(&self) -> bool {
        self.next_value.load(Ordering::Acquire) > self.first_value()
    }

    /// The first number that a large value may have.
    #[inline]
    pub fn first_value(&self) -> u32 {
        self.first_value.load(Ordering::Relaxed)
    }

    /// Begins the numbers of a new storage's large values behind those of its table's old one, before the first is given out: a pointer
    /// that somebody holds must not lead to another value.
    pub fn continue_values(&self, first: u32) {
        self.first_value.store(first.max(1), Ordering::Relaxed);
        self.continues_values.store(1, Ordering::Relaxed);
        self.next_value.fetch_max(first.max(1), Ordering::AcqRel);
    }

    /// The numbers that the storage has given out behind those of an old one, which has to skip them if it comes back.
    pub fn continued_values(&self) -> Option<Range<u32>> {
        let numbers = self.first_value()..self.next_value.load(Ordering::Acquire);
        (self.continues_values.load(Ordering::Relaxed) != 0 && !numbers.is_empty()).then_some(numbers)
    }

    /// The transaction that made the storage; 0 once that is known to have committed.
    pub fn creator_xid(&self) -> Xid {
        self.creator_xid.load(Ordering::Relaxed)
    }

    /// Notes that the transaction that made the storage committed.
    pub fn creator_committed(&self) {
        self.creator_xid.store(0, Ordering::Relaxed);
    }

    /// What lasts of it.
    pub fn info(&self) -> StorageInfo {
        StorageInfo {
            id: self.id(),
            file: self.file(),
            unlogged: self.is_unlogged(),
            creator_xid: self.creator_xid(),
            blocks: self.blocks.load(Ordering::Relaxed),
            next_value: self.next_value.load(Ordering::Relaxed),
        }
    }

    /// The block that inserter `lane` last used.
    pub fn insert_target(&self, lane: usize) -> Option<u32> {
        match self.insert_targets[lane % INSERT_TARGETS].load(Ordering::Relaxed) {
            NONE => None,
            block => Some(block),
        }
    }

    /// Sets the block that inserter `lane` uses next.
    pub fn set_insert_target(&self, lane: usize, block: Option<u32>) {
        self.insert_targets[lane % INSERT_TARGETS].store(block.unwrap_or(NONE), Ordering::Relaxed);
    }

    /// Makes sure that `block` counts as given out.
    pub fn note_block(&self, block: u32) {
        self.blocks.fetch_max(block.saturating_add(1), Ordering::AcqRel);
    }

    fn fill(&self, info: &StorageInfo) {
        self.creator_xid.store(info.creator_xid, Ordering::Relaxed);
        self.stored_bytes.store(0, Ordering::Relaxed);
        self.segment_bytes.store(0, Ordering::Relaxed);
        self.segments.store(0, Ordering::Relaxed);
        self.tablespace.store(info.file.tablespace, Ordering::Relaxed);
        self.database.store(info.file.database, Ordering::Relaxed);
        self.relnumber.store(info.file.relnumber, Ordering::Relaxed);
        self.owner.store(info.file.owner, Ordering::Relaxed);
        self.unlogged.store(u32::from(info.unlogged), Ordering::Relaxed);
        self.blocks.store(info.blocks, Ordering::Relaxed);
        self.next_value.store(info.next_value.max(1), Ordering::Relaxed);
        self.values_searched.store(0, Ordering::Relaxed);
        self.first_value.store(1, Ordering::Relaxed);
        self.continues_values.store(0, Ordering::Relaxed);
        self.free_space_hint.store(0, Ordering::Relaxed);
        self.free_space_exhausted.store(256, Ordering::Relaxed);
        for target in &self.insert_targets {
            target.store(NONE, Ordering::Relaxed);
        }
        self.flush.reset();
        self.eras.reset();
        self.id.store(info.id.0, Ordering::Release);
    }
}

fn bucket_of(file: &RelationFile, buckets: usize) -> usize {
    let place = u64::from(file.database) << 8 ^ u64::from(file.tablespace) ^ u64::from(file.owner) << 16;
    let mixed = (u64::from(file.relnumber) << 32 ^ place).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 33) as usize % buckets
}

/// The table of all storages.
#[derive(Clone, Copy)]
pub struct StorageTable<'a> {
    pub(super) cache: &'a Cache,
}

impl<'a> StorageTable<'a> {
    fn descriptors(self) -> &'a [StorageDescriptor] {
        self.cache.storage_descriptors()
    }

    fn buckets(self) -> &'a [AtomicU32] {
        self.cache.storage_buckets()
    }

    /// The descriptor at a place.
    #[inline]
    pub fn at(self, place: u32) -> &'a StorageDescriptor {
        &self.descriptors()[place as usize]
    }

    /// The storage of a relation's files.
    pub fn find(self, file: &RelationFile) -> Option<u32> {
        self.cache.header().storage_latch.lock_shared(&WaitForever).ok()?;
        let found = self.find_latched(file);
        self.cache.header().storage_latch.unlock_shared();
        found
    }

    fn find_latched(self, file: &RelationFile) -> Option<u32> {
        let mut place = self.buckets()[bucket_of(file, self.buckets().len())].load(Ordering::Acquire);
        while place != NONE {
            let descriptor = self.at(place);
            if descriptor.file() == *file && descriptor.id() != StorageId::INVALID {
                return Some(place);
            }
            place = descriptor.next_in_bucket.load(Ordering::Acquire);
        }
        None
    }

    /// The storage with an id.
    pub fn find_id(self, id: StorageId) -> Option<u32> {
        self.descriptors().iter().position(|descriptor| descriptor.id() == id).map(|place| place as u32)
    }

    /// Registers a storage; one that the same files had before is returned as superseded and leaves the table.
    ///
    /// # Errors
    /// `LimitExceeded` when the table is full.
    pub fn create(self, info: &StorageInfo) -> Result<(u32, Option<StorageInfo>)> {
        self.cache.header().storage_latch.lock_exclusive(&WaitForever)?;
        let created = self.create_latched(info);
        self.cache.header().storage_latch.unlock_exclusive();
        created
    }

    fn create_latched(self, info: &StorageInfo) -> Result<(u32, Option<StorageInfo>)> {
        let superseded = self.find_latched(&info.file).map(|place| {
            let superseded = self.at(place).info();
            self.unlink(place);
            superseded
        });
        let free = self.descriptors().iter().position(|descriptor| descriptor.id() == StorageId::INVALID);
        let Some(place) = free else {
            let most = self.descriptors().len();
            return Err(Error::new(ErrorKind::LimitExceeded, "too many tables in the KalamDB engine")
                .with_detail(format!("The engine has room for {most} tables and materialized views."))
                .with_hint("Raise \"kalam.max_storages\" and restart the server."));
        };
        let descriptor = &self.descriptors()[place];
        descriptor.fill(info);
        let bucket = &self.buckets()[bucket_of(&info.file, self.buckets().len())];
        descriptor.next_in_bucket.store(bucket.load(Ordering::Relaxed), Ordering::Relaxed);
        bucket.store(place as u32, Ordering::Release);
        self.cache.header().note_storage_id(info.id);
        Ok((place as u32, superseded))
    }

    /// Takes a storage out of the table.
    pub fn remove(self, id: StorageId) -> Option<StorageInfo> {
        self.cache.header().storage_latch.lock_exclusive(&WaitForever).ok()?;
        let removed = self.find_id(id).map(|place| {
            let info = self.at(place).info();
            self.unlink(place);
            info
        });
        self.cache.header().storage_latch.unlock_exclusive();
        removed
    }

    fn unlink(self, place: u32) {
        let descriptor = self.at(place);
        let mut link = &self.buckets()[bucket_of(&descriptor.file(), self.buckets().len())];
        loop {
            let current = link.load(Ordering::Relaxed);
            if current == place {
                link.store(descriptor.next_in_bucket.load(Ordering::Relaxed), Ordering::Release);
                break;
            }
            if current == NONE {
                break;
            }
            link = &self.at(current).next_in_bucket;
        }
        descriptor.id.store(0, Ordering::Release);
    }

    /// All storages of the moment.
    pub fn list(self) -> Vec<StorageInfo> {
        self.in_use().map(StorageDescriptor::info).collect()
    }

    /// The descriptors of all storages of the moment; each may come to stand for another storage.
    pub fn in_use(self) -> impl Iterator<Item = &'a StorageDescriptor> {
        self.descriptors().iter().filter(|descriptor| descriptor.id() != StorageId::INVALID)
    }

    pub(super) fn format(self) {
        for bucket in self.buckets() {
            bucket.store(NONE, Ordering::Relaxed);
        }
        for descriptor in self.descriptors() {
            descriptor.id.store(0, Ordering::Relaxed);
        }
    }
}
