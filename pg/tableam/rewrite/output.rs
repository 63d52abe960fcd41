//! The new table of a rewrite: stores versions page by page and gives update chains their new TIDs.
//!
//! A version names its successor by TID, and either of them can come first. The predecessor waits for its successor's new TID;
//! a successor that comes first leaves its TID for the predecessor. A TID alone can have been used again, so both are matched by
//! the old TID together with the transaction that made the one version of the other.

use std::collections::HashMap;

use kalamdb_engine::Result;
use kalamdb_engine::ids::{Tid, Xid};
use kalamdb_engine::page::infomask::*;
use kalamdb_engine::page::{Header, MAX_VERSION, PAGE_SIZE, PREFIX, Page, PageKind, PageMut};
use kalamdb_engine::visibility::{FreezeLimits, FreezeTracker, header_is_only_locked, plan_freeze, update_xid};
use kalamdb_engine::{Error, ErrorKind};
use pgrx::pg_sys;

use super::super::change::change_page;
use super::super::insert::{XACT_MASK, version_body};
use super::super::space::{next_block, record_free_space, reserve_for_updates};
use super::super::status::PostgresStatus;
use super::super::storage::Storage;
use super::super::{partition, values};
use crate::ffi::compat;
use crate::ffi::interrupts::BackendWait;
use crate::ffi::memory::new_context;
use crate::gate;

/// An updated version and the transaction that updated it, which made the version at the TID.
type Link = (Xid, Tid);

/// A version whose successor has no new place yet.
struct Waiting {
    old_tid: Tid,
    header: Header,
    /// A copy of the row, its large values still in the old table.
    tuple: pg_sys::HeapTuple,
}

/// The table being written.
pub struct Output {
    old: pg_sys::Relation,
    new: pg_sys::Relation,
    storage: Storage,
    wait: BackendWait,
    limits: FreezeLimits,
    /// The oldest ids that are in the new table.
    remaining: FreezeTracker,
    /// Bytes kept free in each page for updates.
    reserve: usize,
    /// Some column was dropped: its values must not come along, as nobody could read or free them.
    has_dropped: bool,
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    /// Memory for one row.
    row_memory: pg_sys::MemoryContext,
    /// Memory for the rows that wait.
    kept_memory: pg_sys::MemoryContext,
    waiting: HashMap<Link, Waiting>,
    placed: HashMap<Link, Tid>,
    /// The page being filled; it is copied into the cache as a whole.
    page: Box<[u8; PAGE_SIZE]>,
    block: Option<u32>,
    /// The partition whose page is being filled.
    partition: u32,
    image: Vec<u8>,
}

impl Output {
    /// Begins to fill a new table.
    ///
    /// # Safety
    /// Both tables are open and have the same columns; nobody else can reach the new one.
    pub unsafe fn begin(old: pg_sys::Relation, new: pg_sys::Relation, limits: FreezeLimits) -> Output {
        let storage = Storage::of(new);
        // SAFETY: see above; the memory contexts end with the command's own at the latest.
        unsafe {
            let columns = (*(*new).rd_att).natts as usize;
            let attributes = std::slice::from_raw_parts(compat::attributes((*new).rd_att), columns);
            Output {
                old,
                new,
                storage,
                wait: BackendWait::new(storage.cache),
                limits,
                remaining: FreezeTracker { oldest_xid: limits.freeze_xid, oldest_multi: limits.multi_cutoff },
                reserve: reserve_for_updates(new),
                has_dropped: attributes.iter().any(|attribute| attribute.attisdropped),
                values: vec![pg_sys::Datum::from(0); columns],
                nulls: vec![true; columns],
                row_memory: new_context(c"kalamdb rewrite row"),
                kept_memory: new_context(c"kalamdb rewrite chains"),
                waiting: HashMap::new(),
                placed: HashMap::new(),
                page: vec![0; PAGE_SIZE].try_into().expect("the vector has the page's length"),
                block: None,
                partition: 0,
                image: Vec::new(),
            }
        }
    }

    /// Takes a version that somebody may see; it is stored now, or as soon as its successor is.
    ///
    /// # Safety
    /// `tuple` is a row of the old table whose large values can be read through that table; `header` is its header at `old_tid`.
    ///
    /// # Errors
    /// Those of freezing and of storing.
    pub unsafe fn add(&mut self, tuple: pg_sys::HeapTuple, old_tid: Tid, header: &Header) -> Result<()> {
        // SAFETY: the caller vouches for the row; what is made of it lives in the memory for one row.
        unsafe {
            let caller_memory = pg_sys::MemoryContextSwitchTo(self.row_memory);
            let tuple = self.without_dropped_columns(tuple);
            let mut new_header = plan_freeze(header, &self.limits, &PostgresStatus, &mut self.remaining)?.unwrap_or(*header);
            new_header.infomask2 &= !(HEAP_HOT_UPDATED | HEAP_ONLY_TUPLE);
            let result = match successor(header, old_tid).map(|link| (link, self.placed.remove(&link))) {
                Some((link, None)) => {
                    pg_sys::MemoryContextSwitchTo(self.kept_memory);
                    let tuple = pg_sys::heap_copytuple(tuple);
                    self.waiting.insert(link, Waiting { old_tid, header: new_header, tuple });
                    Ok(())
                }
                Some((_, Some(new_tid))) => self.store_with_predecessors(tuple, &new_header, old_tid, Some(new_tid)),
                None => self.store_with_predecessors(tuple, &new_header, old_tid, None),
            };
            pg_sys::MemoryContextSwitchTo(caller_memory);
            pg_sys::MemoryContextReset(self.row_memory);
            result
        }
    }

    /// Forgets the version that a dead one succeeds, if it waits: it is dead too. Tells whether there was one.
    pub fn forget_predecessor(&mut self, dead: &Header, old_tid: Tid) -> bool {
        let Some(waiting) = self.waiting.remove(&(dead.effective_xmin(), old_tid)) else { return false };
        // SAFETY: the copy was made for this entry.
        unsafe { pg_sys::heap_freetuple(waiting.tuple) };
        true
    }

    /// Stores what still waits and the last page; gives the oldest ids that are in the table.
    ///
    /// # Safety
    /// The tables are still open.
    ///
    /// # Errors
    /// Those of storing.
    pub unsafe fn end(mut self) -> Result<FreezeTracker> {
        // Their successors were removed by an earlier VACUUM, so they ought to be dead; keeping them does no harm.
        let mut left: Vec<Waiting> = std::mem::take(&mut self.waiting).into_values().collect();
        left.sort_unstable_by_key(|waiting| waiting.old_tid);
        // SAFETY: as in `add`.
        unsafe {
            for waiting in left {
                let caller_memory = pg_sys::MemoryContextSwitchTo(self.row_memory);
                self.store(waiting.tuple, &waiting.header, None)?;
                pg_sys::MemoryContextSwitchTo(caller_memory);
                pg_sys::MemoryContextReset(self.row_memory);
            }
            self.write_page()?;
            pg_sys::MemoryContextDelete(self.row_memory);
            pg_sys::MemoryContextDelete(self.kept_memory);
        }
        Ok(self.remaining)
    }

    /// The row with NULL in dropped columns, and in the new table's form where the old one was written with fewer columns.
    unsafe fn without_dropped_columns(&mut self, tuple: pg_sys::HeapTuple) -> pg_sys::HeapTuple {
        // SAFETY: the row fits the old table's descriptor, which has as many columns as the new one's.
        unsafe {
            let columns = self.values.len();
            let own = ((*(*tuple).t_data).t_infomask2 & HEAP_NATTS_MASK) as usize;
            if !self.has_dropped && own == columns {
                return tuple;
            }
            let descriptor = (*self.new).rd_att;
            pg_sys::heap_deform_tuple(tuple, (*self.old).rd_att, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
            for (column, null) in self.nulls.iter_mut().enumerate() {
                *null |= (*compat::attributes(descriptor).add(column)).attisdropped;
            }
            pg_sys::heap_form_tuple(descriptor, self.values.as_mut_ptr(), self.nulls.as_mut_ptr())
        }
    }

    /// Stores a version, then the ones before it that waited for its TID.
    unsafe fn store_with_predecessors(
        &mut self,
        tuple: pg_sys::HeapTuple,
        header: &Header,
        old_tid: Tid,
        next: Option<Tid>,
    ) -> Result<()> {
        // SAFETY: as in `add`.
        unsafe {
            let mut new_tid = self.store(tuple, header, next)?;
            let (mut xmin, mut old_tid, mut infomask) = (header.effective_xmin(), old_tid, header.infomask);
            // A predecessor that somebody may still see was updated by a transaction that not every snapshot calls ended.
            while infomask & HEAP_UPDATED != 0 && xmin >= self.limits.oldest_xmin {
                let Some(waiting) = self.waiting.remove(&(xmin, old_tid)) else {
                    self.placed.insert((xmin, old_tid), new_tid);
                    break;
                };
                new_tid = self.store(waiting.tuple, &waiting.header, Some(new_tid))?;
                pg_sys::heap_freetuple(waiting.tuple);
                (xmin, old_tid, infomask) = (waiting.header.effective_xmin(), waiting.old_tid, waiting.header.infomask);
            }
            Ok(())
        }
    }

    /// Stores the large values of a row. A rewrite that fails gives up the whole storage, so nothing is owed for them.
    unsafe fn move_out(&self, tuple: pg_sys::HeapTuple) -> pg_sys::HeapTuple {
        // SAFETY: the caller's row; no latch is held.
        let moved = unsafe { values::move_out(self.new, &self.storage, tuple, &[]) };
        values::placed(moved.values);
        moved.tuple
    }

    /// Adds a version to the page being filled; without a `next` one it is the last of its chain.
    unsafe fn store(&mut self, tuple: pg_sys::HeapTuple, header: &Header, next: Option<Tid>) -> Result<Tid> {
        // SAFETY: as in `add`; no latch is held.
        let tuple = unsafe { if values::needs_move(tuple) { self.move_out(tuple) } else { tuple } };
        // SAFETY: the row stays until the memory for one row is reset.
        let (body, infomask, attributes) = unsafe {
            let data = &*(*tuple).t_data;
            (version_body(tuple), data.t_infomask, data.t_infomask2 & HEAP_NATTS_MASK)
        };
        // SAFETY: as above.
        let len = unsafe { (*tuple).t_len } as usize + PREFIX;
        if len > MAX_VERSION {
            let message = format!("row is too big: size {len}, maximum size {MAX_VERSION}");
            return Err(Error::new(ErrorKind::LimitExceeded, message));
        }
        // SAFETY: as above.
        let partition = unsafe { gate::partition_of_tuple(self.new, &self.storage, tuple, &self.wait)? };
        let block = self.block_with_room(len, partition)?;
        let ctid = match next {
            Some(next) => next,
            // Who still sees the version shall learn that it went to another partition.
            None if header.ctid.offset == MOVED_PARTITIONS_OFFSET => header.ctid,
            None => Tid::new(block, 0),
        };
        let header = Header {
            ctid,
            infomask: infomask & !XACT_MASK | header.infomask & XACT_MASK,
            infomask2: attributes | header.infomask2 & !HEAP_NATTS_MASK,
            ..*header
        };
        let offset = PageMut::new(&mut *self.page).add_row(&header, body, None).expect("the page was chosen because it has room");
        Ok(Tid::new(block, offset))
    }

    /// The block of the page being filled, which has room for a version of this length.
    fn block_with_room(&mut self, len: usize, partition: u32) -> Result<u32> {
        let page = Page::new(&*self.page);
        if let Some(block) = self.block
            && partition == self.partition
            && (page.has_room(len + self.reserve) || page.max_offset() == 0)
        {
            return Ok(block);
        }
        self.write_page()?;
        let block =
            if partition == 0 { next_block(&self.storage)? } else { partition::add_block(&self.storage, partition, &self.wait)? };
        PageMut::new(&mut *self.page).init(PageKind::Data, partition);
        (self.block, self.partition) = (Some(block), partition);
        Ok(block)
    }

    /// Brings the page being filled into the cache, under one record.
    fn write_page(&mut self) -> Result<()> {
        let Some(block) = self.block.take() else { return Ok(()) };
        let page = Page::new(&*self.page);
        self.image.clear();
        page.to_compact(&mut self.image);
        let key = self.storage.block(block);
        let mut target = self.storage.cache.create_page(key, &self.wait)?.into_exclusive(&self.wait)?;
        let mut versions = page.versions().peekable();
        change_page(&mut target, |copy, record| {
            copy.from_compact(&self.image).expect("the page was made by the page's own functions");
            record.init(PageKind::Data, page.partition());
            while let Some((_, first)) = versions.peek() {
                let Header { xmin, cmin, .. } = first.header();
                let same = std::iter::from_fn(|| {
                    versions.next_if(|(_, version)| version.header().xmin == xmin && version.header().cmin == cmin)
                });
                record.insert_many(xmin, cmin, same.map(|(offset, version)| (offset, version.bytes())));
            }
        });
        drop(target);
        record_free_space(&self.storage, block, page.free_space(), &self.wait)
    }
}

/// What to look for as a version's successor; nothing if it has none.
fn successor(header: &Header, own: Tid) -> Option<Link> {
    let ends = header.infomask & HEAP_XMAX_INVALID != 0
        || header.ctid == own
        || header.ctid.offset == MOVED_PARTITIONS_OFFSET
        || header_is_only_locked(header, &PostgresStatus);
    (!ends).then(|| (update_xid(header, &PostgresStatus), header.ctid))
}
