//! Inserts row versions: one, many, and the speculative kind that ON CONFLICT uses.

use kalamdb_engine::cache::LatchedPage;
use kalamdb_engine::ids::{Tid, Xid};
use kalamdb_engine::page::infomask::*;
use kalamdb_engine::page::{ALL_VISIBLE, Header, MAX_VERSION, PREFIX, PageKind};
use kalamdb_engine::{Error, ErrorKind};
use pgrx::{pg_guard, pg_sys};

use super::change::change_page;
use super::raw;
use super::slot::{item_pointer, tid_of};
use super::space::{Wanted, page_with_room, reserve_for_updates};
use super::status::{current_xid, narrow};
use super::storage::Storage;
use super::{stream, values};
use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::interrupts::BackendWait;
use crate::ffi::unguarded;
use crate::jobs::count_rows;
use crate::{gate, wal};

/// Bits of the masks that say something of transactions and not of attributes.
pub const XACT_MASK: u16 = 0xFFF0;
const XACT_MASK2: u16 = 0xE000;

/// Byte position of a tuple's hoff field: the body of a version starts there.
const HOFF: usize = 22;

/// A tuple's bytes from its hoff field on.
///
/// # Safety
/// `tuple` is whole and stays as long as the bytes are used.
pub unsafe fn version_body<'t>(tuple: pg_sys::HeapTuple) -> &'t [u8] {
    // SAFETY: the tuple is t_len bytes long and longer than its header.
    unsafe {
        let start = (*tuple).t_data as *const u8;
        std::slice::from_raw_parts(start.add(HOFF), (*tuple).t_len as usize - HOFF)
    }
}

/// A tuple about to be stored: Postgres' memory, valid until the callback returns.
pub struct NewTuple {
    /// The tuple with its large values moved out.
    pub tuple: pg_sys::HeapTuple,
    /// The tuple as the caller's slot has it.
    shown: pg_sys::HeapTuple,
    /// Number of large values moved out of it.
    values: usize,
}

impl NewTuple {
    /// The tuple of a slot, made fit for our pages.
    ///
    /// # Safety
    /// `slot` holds a row of `rel`.
    pub unsafe fn from_slot(rel: pg_sys::Relation, storage: &Storage, slot: *mut pg_sys::TupleTableSlot) -> NewTuple {
        // SAFETY: see above.
        unsafe {
            let mut new = NewTuple::unmoved(rel, slot);
            if values::needs_move(new.tuple) {
                new.move_out(rel, storage, &[]);
            }
            new
        }
    }

    /// The tuple of a slot as it is.
    ///
    /// # Safety
    /// `slot` holds a row of `rel`.
    pub unsafe fn unmoved(rel: pg_sys::Relation, slot: *mut pg_sys::TupleTableSlot) -> NewTuple {
        // SAFETY: forms or fetches the tuple; a formed one stays until the caller's memory context is reset.
        unsafe {
            let mut should_free = false;
            let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, true, &mut should_free);
            (*slot).tts_tableOid = (*rel).rd_id;
            (*tuple).t_tableOid = (*rel).rd_id;
            NewTuple { tuple, shown: tuple, values: 0 }
        }
    }

    /// Moves the large values out of the tuple, except those that it carries on from the version before it.
    ///
    /// # Safety
    /// The tuple is a row of `rel`; no latch is held.
    pub unsafe fn move_out(&mut self, rel: pg_sys::Relation, storage: &Storage, carried: &[u32]) {
        // SAFETY: see above.
        let moved = unsafe { values::move_out(rel, storage, self.tuple, carried) };
        (self.tuple, self.values) = (moved.tuple, moved.values);
        let len = self.version_len();
        if len > MAX_VERSION {
            raise(Error::new(ErrorKind::LimitExceeded, format!("row is too big: size {len}, maximum size {MAX_VERSION}")));
        }
    }

    /// Notes that the row is stored, and with it the references to its large values.
    pub fn placed(&self) {
        values::placed(self.values);
    }

    /// Tells the caller's tuple what became of it, as RETURNING and triggers look at its system columns.
    ///
    /// # Safety
    /// The caller's slot still holds the tuple.
    pub unsafe fn show(&self, header: &Header, tid: Tid) {
        // SAFETY: the tuple is materialised and thus the slot's own or this statement's copy.
        unsafe {
            let pointer = item_pointer(tid);
            (*self.shown).t_self = pointer;
            let shown = &mut *(*self.shown).t_data;
            shown.t_infomask = (shown.t_infomask & !XACT_MASK) | (header.infomask & XACT_MASK);
            shown.t_infomask2 = (shown.t_infomask2 & !XACT_MASK2) | (header.infomask2 & XACT_MASK2);
            shown.t_ctid = pointer;
            shown.t_choice.t_heap.t_xmin = narrow(header.xmin);
            shown.t_choice.t_heap.t_xmax = narrow(header.xmax);
            shown.t_choice.t_heap.t_field3.t_cid = header.cmin;
        }
    }

    /// Length of the version with its prefix.
    pub fn version_len(&self) -> usize {
        // SAFETY: the tuple lives as long as the callback.
        unsafe { (*self.tuple).t_len as usize + PREFIX }
    }

    /// The tuple's bytes from its hoff field on.
    pub fn body(&self) -> &[u8] {
        // SAFETY: the tuple lives as long as the callback.
        unsafe { version_body(self.tuple) }
    }

    /// The header of a fresh version of this tuple; its ctid becomes its own TID when it is stored.
    pub fn header(&self, xmin: Xid, cid: u32, block: u32, frozen: bool) -> Header {
        // SAFETY: as above.
        let (infomask, infomask2) = unsafe { ((*(*self.tuple).t_data).t_infomask, (*(*self.tuple).t_data).t_infomask2) };
        let frozen = if frozen { HEAP_XMIN_FROZEN } else { 0 };
        Header {
            xmin,
            xmax: 0,
            cmin: cid,
            cmax: 0,
            ctid: Tid::new(block, 0),
            infomask2: infomask2 & !XACT_MASK2,
            infomask: (infomask & !XACT_MASK) | HEAP_XMAX_INVALID | frozen,
        }
    }
}

/// Adds a version to a latched page that has room for it, and logs that. Returns its TID.
fn place(page: &mut LatchedPage, wanted: &Wanted, header: &Header, body: &[u8]) -> Tid {
    let partition = wanted.partition;
    let block = page.key().page.as_block().expect("rows are stored in blocks");
    let fresh = page.page().kind() == PageKind::Unused;
    let was_all_visible = page.page().flags() & ALL_VISIBLE != 0;
    let mut offset = 0;
    change_page(page, |page, record| {
        if fresh {
            page.init(PageKind::Data, partition);
            record.init(PageKind::Data, partition);
        }
        let is_first = page.as_page().max_offset() == 0;
        offset = page.add_row(header, body, None).expect("the page was chosen because it has room");
        stream::note_time(page, record, offset, wanted.time, is_first);
        let version = page.as_page().version(offset).expect("the version was just added");
        record.insert(offset, version.bytes());
        if was_all_visible {
            page.clear_flags(ALL_VISIBLE);
            record.flags(0, ALL_VISIBLE);
        }
    });
    Tid::new(block, offset)
}

fn refuse_parallel() {
    // SAFETY: a plain global.
    if unsafe { pg_sys::ParallelWorkerNumber } >= 0 {
        raise(SqlError::invalid_transaction_state("cannot insert tuples in a parallel worker"));
    }
}

/// Ends a serializable transaction whose new row would complete a cycle of such transactions.
fn check_conflicts(rel: pg_sys::Relation) {
    // SAFETY: an open relation; the level is a value of the process and stays as it is from the first snapshot on.
    unsafe {
        if pg_sys::XactIsoLevel as u32 == pg_sys::XACT_SERIALIZABLE {
            raw::CheckForSerializableConflictIn(rel, std::ptr::null_mut(), pg_sys::InvalidBlockNumber);
        }
    }
}

/// The page that a version needs.
fn wanted(rel: pg_sys::Relation, partition: u32, len: usize) -> Wanted {
    Wanted { partition, len, reserve: reserve_for_updates(rel), avoid: None, time: None }
}

/// Stores the row of a slot; the slot gets the new TID.
unsafe fn insert_row(
    rel: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    cid: u32,
    options: i32,
    speculative_token: Option<u32>,
) {
    refuse_parallel();
    let storage = Storage::of(rel);
    let wait = BackendWait::new(storage.cache);
    wal::wait_for_room(storage.cache);
    let xid = current_xid();
    // SAFETY: the executor passes an open relation and a slot with a row of it.
    unsafe {
        let time = stream::time_of_insert(rel);
        gate::begin_rows(rel);
        let partition = gate::partition_of_row(rel, &storage, slot, &wait);
        let new = NewTuple::from_slot(rel, &storage, slot);
        check_conflicts(rel);
        let wanted = Wanted { time, ..wanted(rel, partition, new.version_len()) };
        let mut page = page_with_room(&storage, wanted, &wait).or_raise();
        let block = page.key().page.as_block().expect("rows are stored in blocks");
        let mut header = new.header(xid, cid, block, options & pg_sys::TABLE_INSERT_FROZEN as i32 != 0);
        if let Some(token) = speculative_token {
            header.ctid = Tid::new(token, SPECULATIVE_OFFSET);
        }
        let tid = place(&mut page, &wanted, &header, new.body());
        drop(page);
        new.placed();
        let pointer = item_pointer(tid);
        new.show(&header, tid);
        (*slot).tts_tid = pointer;
        (*slot).tts_tableOid = (*rel).rd_id;
        unguarded::pgstat_count_heap_insert(rel, 1);
        count_rows(&storage, 1);
    }
}

/// Inserts one row.
#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_insert(
    rel: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    cid: pg_sys::CommandId,
    options: std::ffi::c_int,
    _bistate: *mut pg_sys::BulkInsertStateData,
) {
    // SAFETY: Postgres keeps the contract of the callback.
    unsafe { insert_row(rel, slot, cid, options, None) };
}

/// Inserts one row that others can wait for, until it is confirmed or taken back.
#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_insert_speculative(
    rel: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    cid: pg_sys::CommandId,
    options: std::ffi::c_int,
    _bistate: *mut pg_sys::BulkInsertStateData,
    token: u32,
) {
    // SAFETY: as above.
    unsafe { insert_row(rel, slot, cid, options, Some(token)) };
}

/// Confirms a speculative insertion, or takes it back so that nobody ever sees it.
#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_complete_speculative(
    rel: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    _token: u32,
    succeeded: bool,
) {
    let storage = Storage::of(rel);
    let wait = BackendWait::new(storage.cache);
    // SAFETY: the slot holds the TID of this backend's speculative insertion.
    let tid = tid_of(unsafe { &(*slot).tts_tid });
    let pin = storage.cache.read(storage.block(tid.block), &wait).or_raise();
    let mut guard = pin.exclusive(&wait).or_raise();
    let Some(version) = guard.page().version(tid.offset) else {
        raise(Error::internal(format!("speculatively inserted row {tid} is gone")));
    };
    let mut header = version.header();
    header.ctid = tid;
    if !succeeded {
        // An xmin of nothing makes the version invisible to everybody, its own transaction included.
        header.xmin = 0;
        header.infomask |= HEAP_XMIN_INVALID;
    }
    let prune_xid = current_xid();
    change_page(&mut guard, |page, record| {
        page.set_header(tid.offset, &header).expect("the version was just read");
        record.header(tid.offset, &header);
        if !succeeded && page.set_prune_xid_min(prune_xid) {
            record.prune_xid(prune_xid);
        }
    });
    drop(guard);
    if !succeeded {
        // SAFETY: the relation is open.
        unsafe { pg_sys::pgstat_count_heap_delete(rel) };
    }
}

/// Inserts many rows: as many as fit go into each page under one log record.
#[pg_guard]
pub unsafe extern "C-unwind" fn multi_insert(
    rel: pg_sys::Relation,
    slots: *mut *mut pg_sys::TupleTableSlot,
    count: std::ffi::c_int,
    cid: pg_sys::CommandId,
    options: std::ffi::c_int,
    _bistate: *mut pg_sys::BulkInsertStateData,
) {
    refuse_parallel();
    let storage = Storage::of(rel);
    let wait = BackendWait::new(storage.cache);
    wal::wait_for_room(storage.cache);
    let xid = current_xid();
    let frozen = options & pg_sys::TABLE_INSERT_FROZEN as i32 != 0;
    let time = stream::time_of_insert(rel);
    // SAFETY: the caller passes `count` slots with rows of the relation.
    unsafe {
        let slots = std::slice::from_raw_parts(slots, count.max(0) as usize);
        gate::begin_rows(rel);
        // Asked before the slots are materialized, while their columns are at hand.
        let partitions: Vec<u32> = if gate::is_partitioned(rel) {
            slots.iter().map(|slot| gate::partition_of_row(rel, &storage, *slot, &wait)).collect()
        } else {
            Vec::new()
        };
        let rows: Vec<NewTuple> = slots.iter().map(|slot| NewTuple::from_slot(rel, &storage, *slot)).collect();
        check_conflicts(rel);
        let mut done = 0;
        while done < rows.len() {
            let partition = partitions.get(done).copied().unwrap_or(0);
            let run = partitions.get(done..).unwrap_or(&[]).iter().take_while(|next| **next == partition).count();
            let end = if partitions.is_empty() { rows.len() } else { done + run };
            let wanted = Wanted { time, ..wanted(rel, partition, rows[done].version_len()) };
            let mut page = page_with_room(&storage, wanted, &wait).or_raise();
            let tids = fill_page(&mut page, &rows[done..end], &wanted, xid, cid, frozen);
            drop(page);
            for (row, tid) in tids.iter().enumerate() {
                let pointer = item_pointer(*tid);
                let stored = &rows[done + row];
                stored.placed();
                stored.show(&stored.header(xid, cid, tid.block, frozen), *tid);
                (*slots[done + row]).tts_tid = pointer;
                (*slots[done + row]).tts_tableOid = (*rel).rd_id;
            }
            done += tids.len();
        }
        pg_sys::pgstat_count_heap_insert(rel, rows.len() as pg_sys::PgStat_Counter);
        count_rows(&storage, rows.len() as u64);
    }
}

/// Stores as many rows as fit into a latched page, at least one; returns their TIDs.
fn fill_page(page: &mut LatchedPage, rows: &[NewTuple], wanted: &Wanted, xid: Xid, cid: u32, frozen: bool) -> Vec<Tid> {
    let (partition, reserve) = (wanted.partition, wanted.reserve);
    let block = page.key().page.as_block().expect("rows are stored in blocks");
    let fresh = page.page().kind() == PageKind::Unused;
    let was_all_visible = page.page().flags() & ALL_VISIBLE != 0;
    let mut tids = Vec::with_capacity(rows.len());
    change_page(page, |page, record| {
        if fresh {
            page.init(PageKind::Data, partition);
            record.init(PageKind::Data, partition);
        }
        for row in rows {
            let len = row.version_len() + if tids.is_empty() { 0 } else { reserve };
            if !page.as_page().has_room(len) {
                break;
            }
            let header = row.header(xid, cid, block, frozen);
            let is_first = page.as_page().max_offset() == 0;
            let Some(offset) = page.add_row(&header, row.body(), None) else { break };
            stream::note_time(page, record, offset, wanted.time, is_first);
            tids.push(Tid::new(block, offset));
        }
        let view = page.as_page();
        let versions = tids.iter().filter_map(|tid| Some((tid.offset, view.version(tid.offset)?.bytes())));
        record.insert_many(xid, cid, versions);
        if was_all_visible {
            page.clear_flags(ALL_VISIBLE);
            record.flags(0, ALL_VISIBLE);
        }
    });
    tids
}

/// Ends a bulk insertion; nothing is buffered, so there is nothing to do.
#[pg_guard]
pub unsafe extern "C-unwind" fn finish_bulk_insert(_rel: pg_sys::Relation, _options: std::ffi::c_int) {}
