//! Large values: moved out of their row into overflow pages of the same storage, and read back by Postgres' detoasting.
//!
//! A row keeps a TOAST pointer whose value number names the overflow pages. Postgres opens the pointer's "TOAST relation", which
//! is the table itself, and asks its access method for a slice. Values are counted by the row versions that name them: an update
//! that leaves a value alone shares it, and pruning the last version frees it. Rows share no values with each other.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use kalamdb_engine::cache::Wait;
use kalamdb_engine::ids::{Lsn, PageKey, PageNumber};
use kalamdb_engine::page::{MAX_VERSION, OVERFLOW_PAYLOAD, PREFIX, PageKind, VERSION_HEADER};
use kalamdb_engine::segment::{LargeValues, StoredValue};
use kalamdb_engine::{Error, ErrorKind, Result};
use pgrx::{pg_guard, pg_sys};

use super::change::change_page;
use super::status::current_xid;
use super::storage::{Storage, relation_name};
use super::{raw, slot};
use crate::error::{OrRaise, raise};
use crate::ffi::compat;
use crate::ffi::interrupts::{BackendWait, check_for_interrupts};
use crate::ffi::memory::{in_context, in_new_context};

/// Values longer than this leave their row, in bytes with their header.
const INLINE_MAX: usize = 4096;

/// Values shorter than this gain nothing by leaving their row.
const OUTLINE_MIN: usize = 64;

/// Bytes of a TOAST pointer: header, tag and `varatt_external`.
const POINTER: usize = 18;

/// Tag of a TOAST pointer to a stored value.
const TAG_ON_DISK: u8 = 18;

/// The bits of a pointer's `extinfo` that are the stored size; the others are the compression's.
const EXTERNAL_SIZE: u32 = (1 << 30) - 1;

/// `varatt_external`, which may stand unaligned.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Pointer {
    rawsize: i32,
    extinfo: u32,
    value: u32,
    table: u32,
}

/// What matters of a column for storing its values.
#[derive(Clone, Copy)]
pub struct Attribute {
    /// Whether values are passed in a Datum.
    pub by_value: bool,
    /// Postgres' attlen: -1 for varlena, -2 for C strings.
    pub length: i32,
    /// Whether values may leave the row.
    movable: bool,
    /// Whether values may be compressed.
    compressible: bool,
    /// The column's own compression method; 0 for that of `default_toast_compression`.
    compression: std::ffi::c_char,
}

/// A column of a descriptor, counted from 0.
///
/// # Safety
/// `descriptor` is valid and has that column.
pub unsafe fn attribute(descriptor: pg_sys::TupleDesc, column: usize) -> Attribute {
    // SAFETY: see above.
    let form = unsafe { &*compat::attributes(descriptor).add(column) };
    let storage = form.attstorage as u8;
    Attribute {
        by_value: form.attbyval,
        length: i32::from(form.attlen),
        movable: form.attlen == -1 && storage != pg_sys::TYPSTORAGE_PLAIN,
        compressible: form.attlen == -1 && matches!(storage, pg_sys::TYPSTORAGE_EXTENDED | pg_sys::TYPSTORAGE_MAIN),
        compression: form.attcompression,
    }
}

/// A tuple taken apart.
struct Columns {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Columns {
    unsafe fn of(descriptor: pg_sys::TupleDesc, tuple: pg_sys::HeapTuple) -> Columns {
        // SAFETY: the caller's tuple fits the descriptor.
        unsafe {
            let count = (*descriptor).natts as usize;
            let mut columns = Columns { values: vec![pg_sys::Datum::from(0); count], nulls: vec![true; count] };
            pg_sys::heap_deform_tuple(tuple, descriptor, columns.values.as_mut_ptr(), columns.nulls.as_mut_ptr());
            columns
        }
    }

    /// Address of a varlena value; nothing for NULL.
    fn address(&self, column: usize) -> Option<*mut u8> {
        (!self.nulls[column]).then(|| self.values[column].cast_mut_ptr::<u8>())
    }
}

/// Whether a varlena value is a pointer of some kind.
unsafe fn is_external(value: *const u8) -> bool {
    // SAFETY: a varlena has at least one byte.
    unsafe { *value == 1 }
}

/// Whether a varlena value that is not external is compressed.
unsafe fn is_compressed(value: *const u8) -> bool {
    // SAFETY: a varlena has at least one byte; the low two bits tell its form.
    unsafe { *value & 3 == 2 }
}

/// The TOAST pointer that a varlena value is; nothing for other values.
unsafe fn pointer_of(value: *const u8) -> Option<Pointer> {
    // SAFETY: an external value has a tag, and one on disk is as long as a pointer.
    unsafe {
        if *value != 1 || *value.add(1) != TAG_ON_DISK {
            return None;
        }
        Some(value.add(2).cast::<Pointer>().read_unaligned())
    }
}

/// Whether a tuple has values that cannot stay in it.
///
/// # Safety
/// `tuple` is whole.
pub unsafe fn needs_move(tuple: pg_sys::HeapTuple) -> bool {
    // SAFETY: see above.
    unsafe { (*(*tuple).t_data).t_infomask & pg_sys::HEAP_HASEXTERNAL as u16 != 0 || (*tuple).t_len as usize > INLINE_MAX }
}

/// A tuple with its large values stored in overflow pages and values of other rows taken in.
///
/// Only `carried`, the values of the version that the tuple takes the place of, are shared. If rows shared values, what is kept of one
/// row's segment, and the file of one user, would depend on another row and another user.
///
/// # Safety
/// `tuple` is a row of `rel`; no latch is held.
pub unsafe fn move_out(rel: pg_sys::Relation, storage: &Storage, tuple: pg_sys::HeapTuple, carried: &[u32]) -> Moved {
    let mut stored = 0;
    let wait = BackendWait::new(storage.cache);
    // SAFETY: the descriptor belongs to the open relation; new values are palloc'ed and live as long as the statement's context.
    unsafe {
        let descriptor = (*rel).rd_att;
        let mut columns = Columns::of(descriptor, tuple);
        let attributes: Vec<Attribute> = (0..columns.values.len()).map(|column| attribute(descriptor, column)).collect();
        for (column, form) in attributes.iter().enumerate() {
            let Some(value) = columns.address(column).filter(|_| form.length == -1) else { continue };
            if let Some(pointer) = pointer_of(value)
                && pointer.table == (*rel).rd_id.to_u32()
                && form.movable
                && carried.contains(&{ pointer.value })
            {
                share(storage, pointer.value, &wait).or_raise();
                stored += 1;
                continue;
            }
            if is_external(value) {
                columns.values[column] = pg_sys::Datum::from(pg_sys::detoast_external_attr(value.cast()));
            }
        }
        compress(descriptor, &mut columns, &attributes);
        let mut inline = Vec::new();
        for (column, form) in attributes.iter().enumerate() {
            let Some(value) = columns.address(column).filter(|_| form.length == -1) else { continue };
            if is_external(value) {
                continue;
            }
            let size = pgrx::varsize_any(value.cast());
            if form.movable && size > INLINE_MAX {
                columns.values[column] = store(rel, storage, value, &mut stored, &wait).or_raise();
            } else if form.movable && size > OUTLINE_MIN {
                inline.push((size, column));
            }
        }
        // A row of many middling values still has to fit a page: the longest go first.
        inline.sort_unstable();
        while row_len(descriptor, &columns) > MAX_VERSION - PREFIX {
            let Some((_, column)) = inline.pop() else { break };
            let value = columns.values[column].cast_mut_ptr::<u8>();
            columns.values[column] = store(rel, storage, value, &mut stored, &wait).or_raise();
        }
        let moved = pg_sys::heap_form_tuple(descriptor, columns.values.as_mut_ptr(), columns.nulls.as_mut_ptr());
        (*moved).t_self = (*tuple).t_self;
        (*moved).t_tableOid = (*tuple).t_tableOid;
        Moved { tuple: moved, values: stored }
    }
}

/// Compresses values, the longest first, until the row is as short as a value may be, by heap's rules: a column's STORAGE and
/// COMPRESSION mean the same in both.
unsafe fn compress(descriptor: pg_sys::TupleDesc, columns: &mut Columns, attributes: &[Attribute]) {
    // SAFETY: values and nulls are as many as the descriptor's columns; no value is passed on that is external or compressed.
    unsafe {
        let mut candidates: Vec<(usize, usize)> = (0..attributes.len())
            .filter(|&column| attributes[column].compressible)
            .filter_map(|column| columns.address(column).map(|value| (column, value)))
            .filter(|&(_, value)| !is_external(value) && !is_compressed(value))
            .map(|(column, value)| (pgrx::varsize_any(value.cast()), column))
            .filter(|&(size, _)| size > OUTLINE_MIN)
            .collect();
        candidates.sort_unstable();
        while row_len(descriptor, columns) > INLINE_MAX {
            let Some((_, column)) = candidates.pop() else { break };
            let compressed = raw::toast_compress_datum(columns.values[column], attributes[column].compression);
            // Not every value gets shorter.
            if compressed.value() != 0 {
                columns.values[column] = compressed;
            }
        }
    }
}

unsafe fn row_len(descriptor: pg_sys::TupleDesc, columns: &Columns) -> usize {
    let bitmap = columns.nulls.len().div_ceil(8);
    let header = (VERSION_HEADER - PREFIX + bitmap).next_multiple_of(8);
    // SAFETY: values and nulls are as many as the descriptor's columns.
    header
        + unsafe {
            pg_sys::heap_compute_data_size(descriptor, columns.values.as_ptr().cast_mut(), columns.nulls.as_ptr().cast_mut())
        }
}

/// The large values of a table, for the writer of a segment.
pub struct TableValues<'a> {
    rel: pg_sys::Relation,
    storage: &'a Storage,
    wait: &'a dyn Wait,
}

impl<'a> TableValues<'a> {
    /// The values of an open table; no latch is held while one is asked for.
    pub fn new(rel: pg_sys::Relation, storage: &'a Storage, wait: &'a dyn Wait) -> TableValues<'a> {
        TableValues { rel, storage, wait }
    }
}

impl LargeValues for TableValues<'_> {
    fn fetch(&mut self, value: u32) -> Result<StoredValue> {
        let mut stored = StoredValue { bytes: Vec::new(), references: 0, lsn: Lsn::INVALID };
        let mut total = 0;
        let mut chunk = 0;
        loop {
            let pin = self.storage.cache.read(chunk_key(self.storage, value, chunk), self.wait)?;
            let guard = pin.shared(self.wait)?;
            let page = guard.page();
            let payload = page.overflow_payload();
            if chunk == 0 && page.kind() == PageKind::Overflow {
                total = page.overflow_total() as usize;
                (stored.references, stored.lsn) = (page.overflow_refcount(), page.lsn());
            }
            if page.kind() != PageKind::Overflow || (payload.is_empty() && total > 0) {
                return Err(missing(value, chunk));
            }
            stored.bytes.extend_from_slice(payload);
            drop(guard);
            if stored.bytes.len() >= total {
                return Ok(stored);
            }
            chunk += 1;
            self.wait.pause()?;
        }
    }

    fn allocate(&mut self) -> Result<u32> {
        next_number(self.rel, self.storage)
    }
}

/// The number of the table's next large value; none is given out twice.
fn next_number(rel: pg_sys::Relation, storage: &Storage) -> Result<u32> {
    let next = |number: u32| number.checked_add(1);
    storage.descriptor.next_value.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_err(|_| {
        Error::new(ErrorKind::LimitExceeded, format!("table \"{}\" has stored too many large values", relation_name(rel)))
            .with_detail("A table numbers 4,294,967,294 of them.")
            .with_hint("VACUUM FULL numbers them anew.")
    })
}

/// Stores a value in overflow pages; returns the pointer that stands for it.
unsafe fn store(
    rel: pg_sys::Relation,
    storage: &Storage,
    value: *mut u8,
    stored: &mut usize,
    wait: &dyn Wait,
) -> Result<pg_sys::Datum> {
    // SAFETY: `value` is a plain, short or compressed varlena.
    let (bytes, rawsize, extinfo) = unsafe { stored_form(value) };
    let number = next_number(rel, storage)?;
    note_unplaced(storage, number);
    *stored += 1;
    for (chunk, payload) in bytes.chunks(OVERFLOW_PAYLOAD).enumerate() {
        let key = chunk_key(storage, number, chunk);
        let mut page = storage.cache.create_page(key, wait)?.into_exclusive(wait)?;
        let references = u32::from(chunk == 0);
        change_page(&mut page, |page, record| {
            page.init_overflow(0, references, bytes.len() as u32, payload);
            record.overflow(0, references, bytes.len() as u32, payload);
        });
        drop(page);
        check_for_interrupts();
    }
    // SAFETY: a fresh chunk of the pointer's size.
    unsafe {
        let pointer = pg_sys::palloc(POINTER).cast::<u8>();
        *pointer = 1;
        *pointer.add(1) = TAG_ON_DISK;
        let body = Pointer { rawsize, extinfo, value: number, table: (*rel).rd_id.to_u32() };
        pointer.add(2).cast::<Pointer>().write_unaligned(body);
        Ok(pg_sys::Datum::from(pointer))
    }
}

/// The bytes of a varlena that are stored, and the two sizes of its pointer, as Postgres' detoasting expects them.
unsafe fn stored_form<'v>(value: *mut u8) -> (&'v [u8], i32, u32) {
    const HEADER: usize = 4;
    // SAFETY: the caller passes a varlena that is not external.
    unsafe {
        let size = pgrx::varsize_any(value.cast());
        if *value & 1 == 1 {
            // One-byte header.
            let bytes = std::slice::from_raw_parts(value.add(1), size - 1);
            return (bytes, (bytes.len() + HEADER) as i32, bytes.len() as u32);
        }
        let bytes = std::slice::from_raw_parts(value.add(HEADER), size - HEADER);
        if is_compressed(value) {
            // Compressed: the first word has the raw size and the method in its top two bits.
            let info = value.add(HEADER).cast::<u32>().read_unaligned();
            let rawsize = (info & 0x3FFF_FFFF) as usize + HEADER;
            return (bytes, rawsize as i32, bytes.len() as u32 | (info & 0xC000_0000));
        }
        (bytes, size as i32, bytes.len() as u32)
    }
}

fn chunk_key(storage: &Storage, value: u32, chunk: usize) -> PageKey {
    storage.page(PageNumber::overflow(value, chunk as u32))
}

fn missing(value: u32, chunk: usize) -> Error {
    Error::corrupt(format!("missing chunk {chunk} of large value {value}"))
        .with_hint("Other rows are not affected; restore the row from a backup.")
}

/// Counts one more row version that names a value.
fn share(storage: &Storage, value: u32, wait: &dyn Wait) -> Result<()> {
    let mut page = storage.cache.read(chunk_key(storage, value, 0), wait)?.into_exclusive(wait)?;
    if page.page().kind() != PageKind::Overflow {
        return Err(missing(value, 0));
    }
    let references = page.page().overflow_refcount() + 1;
    change_page(&mut page, |page, record| {
        page.set_overflow_refcount(references);
        record.refcount(references);
    });
    note_unplaced(storage, value);
    Ok(())
}

/// A tuple whose large values stand in overflow pages.
pub struct Moved {
    /// The tuple.
    pub tuple: pg_sys::HeapTuple,
    /// Number of values it counts on; [`placed`] is owed for them once the row is stored.
    pub values: usize,
}

/// A reference to a value that no stored row stands for yet.
struct Unplaced {
    storage: Storage,
    value: u32,
}

thread_local! {
    /// What the running statement has stored or shared before the row that names it; a failed statement leaves it here.
    static UNPLACED: RefCell<Vec<Unplaced>> = const { RefCell::new(Vec::new()) };
}

fn note_unplaced(storage: &Storage, value: u32) {
    UNPLACED.with_borrow_mut(|unplaced| unplaced.push(Unplaced { storage: *storage, value }));
}

/// Notes that the row which names the next `count` values is stored: from now on pruning that row releases them.
///
/// Rows are stored in the order in which their values were moved out.
pub fn placed(count: usize) {
    if count > 0 {
        UNPLACED.with_borrow_mut(|unplaced| drop(unplaced.drain(..count.min(unplaced.len()))));
    }
}

/// Releases the values of rows that a failed statement did not get to store; called while the transaction rolls back.
///
/// What cannot be released now, as the engine is gone or the disk is full, is found by the first VACUUM after the server's next start:
/// nothing here may fail.
pub fn release_unplaced() {
    let unplaced = UNPLACED.with_borrow_mut(std::mem::take);
    for Unplaced { storage, value } in unplaced {
        if storage.descriptor.id() == storage.id {
            let _ = release(&storage, &[value], &BackendWait::new(storage.cache));
        }
    }
}

/// Gives up one reference to each value, as the row version that named it is gone; frees values nobody names.
///
/// # Errors
/// Those of the cache.
pub fn release(storage: &Storage, values: &[u32], wait: &dyn Wait) -> Result<()> {
    for &value in values {
        let mut page = storage.cache.read(chunk_key(storage, value, 0), wait)?.into_exclusive(wait)?;
        if page.page().kind() != PageKind::Overflow {
            continue;
        }
        let references = page.page().overflow_refcount();
        if references > 1 {
            change_page(&mut page, |page, record| {
                page.set_overflow_refcount(references - 1);
                record.refcount(references - 1);
            });
            continue;
        }
        let total = page.page().overflow_total();
        drop(page);
        free(storage, value, total, wait)?;
    }
    Ok(())
}

/// Frees the chunks of a value of a length, the first one last: as long as it is there the value can be found.
fn free(storage: &Storage, value: u32, total: u32, wait: &dyn Wait) -> Result<()> {
    for chunk in (0..(total as usize).div_ceil(OVERFLOW_PAYLOAD)).rev() {
        let mut page = storage.cache.read(chunk_key(storage, value, chunk), wait)?.into_exclusive(wait)?;
        if page.page().kind() == PageKind::Unused {
            // Storing the value ended before this chunk.
            continue;
        }
        change_page(&mut page, |page, record| {
            page.init(PageKind::Unused, 0);
            record.free();
        });
    }
    Ok(())
}

/// Frees a value that no row names, unless it was stored or shared since the log was at `before`; tells whether it did.
///
/// # Errors
/// Those of the cache.
pub fn free_unnamed(storage: &Storage, value: u32, before: Lsn, wait: &dyn Wait) -> Result<bool> {
    let page = storage.cache.read(chunk_key(storage, value, 0), wait)?.into_exclusive(wait)?;
    let view = page.page();
    if view.kind() != PageKind::Overflow || view.is_cold() || view.lsn() >= before {
        return Ok(false);
    }
    let total = view.overflow_total();
    drop(page);
    free(storage, value, total, wait)?;
    Ok(true)
}

/// Stores a value that no row will name, as a crash at this moment would leave it; for tests.
pub fn store_unnamed(rel: pg_sys::Relation, length: usize) {
    let storage = Storage::of(rel);
    let mut stored = 0;
    current_xid();
    let mut value = vec![b'x'; length + 4];
    value[..4].copy_from_slice(&((length as u32 + 4) << 2).to_le_bytes());
    // SAFETY: a plain varlena.
    unsafe { store(rel, &storage, value.as_mut_ptr(), &mut stored, &BackendWait::new(storage.cache)) }.or_raise();
    placed(stored);
}

/// How many large values a table has, and how many of them no row version names; for tests.
pub fn count(rel: pg_sys::Relation, storage: &Storage) -> (i64, i64) {
    let wait = BackendWait::new(storage.cache);
    let numbers = storage.descriptor.first_value()..storage.descriptor.next_value.load(Ordering::Acquire);
    let is_there = |value: &u32| {
        let pin = storage.cache.read(chunk_key(storage, *value, 0), &wait).or_raise();
        pin.shared(&wait).or_raise().page().kind() == PageKind::Overflow
    };
    let there: Vec<u32> = numbers.filter(is_there).collect();
    let mut named = Vec::new();
    for block in 0..storage.blocks() {
        let pin = storage.cache.read(storage.block(block), &wait).or_raise();
        let guard = pin.shared(&wait).or_raise();
        for (_, version) in guard.page().versions().filter(|(_, version)| version.has_external()) {
            named_by(rel, version.bytes(), &mut named);
        }
    }
    named.sort_unstable();
    let unnamed = there.iter().filter(|value| named.binary_search(value).is_err()).count();
    (there.len() as i64, unnamed as i64)
}

/// Makes a chunk of a value hot if it is cold: it is read from the store then, and from no segment.
///
/// # Errors
/// Those of the cache.
pub fn thaw(storage: &Storage, value: u32, chunk: usize, wait: &dyn Wait) -> Result<()> {
    let mut page = storage.cache.read(chunk_key(storage, value, chunk), wait)?.into_exclusive(wait)?;
    if page.page().kind() == PageKind::Overflow && page.page().is_cold() {
        // The record of any change of a cold page has its image; this one changes nothing else.
        change_page(&mut page, |page, record| {
            record.refcount(page.as_page().overflow_refcount());
        });
    }
    Ok(())
}

/// Calls `visit` with the address of every TOAST pointer of a tuple.
unsafe fn each_pointer(descriptor: pg_sys::TupleDesc, tuple: pg_sys::HeapTuple, visit: &mut dyn FnMut(*mut u8, Pointer)) {
    // SAFETY: the caller's tuple fits the descriptor.
    unsafe {
        let columns = Columns::of(descriptor, tuple);
        for column in 0..columns.values.len() {
            if attribute(descriptor, column).length != -1 {
                continue;
            }
            if let Some(value) = columns.address(column)
                && let Some(pointer) = pointer_of(value)
            {
                visit(value, pointer);
            }
        }
    }
}

/// Collects the values that a stored version names.
pub fn named_by(rel: pg_sys::Relation, version: &[u8], into: &mut Vec<u32>) {
    let Some(tuple) = version.get(PREFIX..) else { return };
    let mut tuple = pg_sys::HeapTupleData {
        t_len: tuple.len() as u32,
        t_self: slot::item_pointer(kalamdb_engine::ids::Tid::new(0, 1)),
        // SAFETY: the relation is open.
        t_tableOid: unsafe { (*rel).rd_id },
        t_data: tuple.as_ptr() as *mut pg_sys::HeapTupleHeaderData,
    };
    // SAFETY: the version is a row of the relation; its bytes stay in place during the call.
    unsafe { each_pointer((*rel).rd_att, &mut tuple, &mut |_, pointer| into.push(pointer.value)) };
}

/// A tuple's bytes with its large values taken in; nothing if that would be longer than `most`.
///
/// A rewrite may have left pointers that name another table; see [`localize_slot`].
pub fn flat_copy(rel: pg_sys::Relation, tid: kalamdb_engine::ids::Tid, tuple: &[u8], most: usize) -> Option<Vec<u8>> {
    // SAFETY: the bytes are a row of the open relation; they are copied to where they are aligned, and all that is allocated is
    // freed with the context.
    in_new_context(c"kalamdb large values", |_| unsafe {
        let copy = pg_sys::palloc(tuple.len()).cast::<u8>();
        std::ptr::copy_nonoverlapping(tuple.as_ptr(), copy, tuple.len());
        let mut whole = pg_sys::HeapTupleData {
            t_len: tuple.len() as u32,
            t_self: slot::item_pointer(tid),
            t_tableOid: (*rel).rd_id,
            t_data: copy.cast(),
        };
        flatten(rel, &mut whole, most)
            .map(|flat| std::slice::from_raw_parts((*flat).t_data.cast::<u8>(), (*flat).t_len as usize).to_vec())
    })
}

unsafe fn flatten(rel: pg_sys::Relation, tuple: pg_sys::HeapTuple, most: usize) -> Option<pg_sys::HeapTuple> {
    // SAFETY: the caller's tuple is a private copy of a row of the relation.
    unsafe {
        let table = (*rel).rd_id.to_u32();
        let mut total = (*tuple).t_len as usize;
        each_pointer((*rel).rd_att, tuple, &mut |value, mut pointer| {
            total += (pointer.extinfo & EXTERNAL_SIZE) as usize;
            pointer.table = table;
            value.add(2).cast::<Pointer>().write_unaligned(pointer);
        });
        if total > most {
            return None;
        }
        let mut columns = Columns::of((*rel).rd_att, tuple);
        for column in 0..columns.values.len() {
            if (*compat::attributes((*rel).rd_att).add(column)).attisdropped {
                // Nobody asks for it.
                columns.nulls[column] = true;
            } else if attribute((*rel).rd_att, column).length == -1
                && let Some(value) = columns.address(column)
                && is_external(value)
            {
                columns.values[column] = pg_sys::Datum::from(pg_sys::detoast_external_attr(value.cast()));
            }
        }
        Some(pg_sys::heap_form_tuple((*rel).rd_att, columns.values.as_mut_ptr(), columns.nulls.as_mut_ptr()))
    }
}

/// Makes the pointers of a row in a slot name its table.
///
/// A rewrite stores rows under the OID of a transient table; afterwards their pointers name a table that is gone.
///
/// # Safety
/// `slot` is a slot of ours that holds a row of `rel`.
pub unsafe fn localize_slot(slot: *mut pg_sys::TupleTableSlot, rel: pg_sys::Relation) {
    // SAFETY: see above; the copy is made in the slot's memory context.
    unsafe {
        let table = (*rel).rd_id.to_u32();
        // Not the relation's own descriptor: while ALTER TABLE rewrites a table, that is the one of the rows to come.
        let descriptor = (*slot).tts_tupleDescriptor;
        let tuple = (*slot.cast::<pg_sys::HeapTupleTableSlot>()).tuple;
        let mut foreign = false;
        each_pointer(descriptor, tuple, &mut |_, pointer| foreign |= pointer.table != table);
        if !foreign {
            return;
        }
        let copy = in_context((*slot).tts_mcxt, || pg_sys::heap_copytuple(tuple));
        each_pointer(descriptor, copy, &mut |value, mut pointer| {
            pointer.table = table;
            value.add(2).cast::<Pointer>().write_unaligned(pointer);
        });
        slot::store_owned(slot, copy);
    }
}

/// Rows longer than this make heap use a TOAST table (`TOAST_TUPLE_THRESHOLD`).
const TOAST_THRESHOLD: usize = 2032;

/// Whether a table gets a TOAST table: as for heap, though it stays empty.
///
/// Large values are kept by the storage itself. But ALTER TABLE ... SET ACCESS METHOD heap gives the rewritten table a TOAST
/// table only if the old one had one.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_needs_toast_table(rel: pg_sys::Relation) -> bool {
    // SAFETY: the relation is open; its descriptor has that many columns.
    unsafe {
        let descriptor = (*rel).rd_att;
        let (mut longest, mut unbounded, mut movable) = (0, false, false);
        let columns = (*descriptor).natts as usize;
        for column in 0..columns {
            let form = &*compat::attributes(descriptor).add(column);
            if form.attisdropped {
                continue;
            }
            movable |= form.attstorage != pg_sys::TYPSTORAGE_PLAIN as std::ffi::c_char;
            let length =
                if form.attlen > 0 { i32::from(form.attlen) } else { pg_sys::type_maximum_size(form.atttypid, form.atttypmod) };
            unbounded |= length < 0;
            longest += (length.max(0) as usize).next_multiple_of(8);
        }
        let header = (VERSION_HEADER - PREFIX + columns.div_ceil(8)).next_multiple_of(8);
        movable && (unbounded || header + longest > TOAST_THRESHOLD)
    }
}

/// TOAST tables are heap tables.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_toast_am(_rel: pg_sys::Relation) -> pg_sys::Oid {
    pg_sys::HEAP_TABLE_AM_OID
}

/// Reads a slice of a large value for Postgres' detoasting.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_fetch_toast_slice(
    rel: pg_sys::Relation,
    value: pg_sys::Oid,
    total: i32,
    offset: i32,
    length: i32,
    result: *mut pg_sys::varlena,
) {
    let storage = Storage::of(rel);
    let wait = BackendWait::new(storage.cache);
    let value = value.to_u32();
    let (start, end) = (offset.max(0) as usize, (offset + length).max(0) as usize);
    if end > total as usize {
        raise(Error::corrupt(format!("slice of large value {value} ends behind the value")));
    }
    // SAFETY: Postgres allocated room for the slice behind the four-byte header.
    let target = unsafe { std::slice::from_raw_parts_mut(result.cast::<u8>().add(4), end - start) };
    let mut chunk = start / OVERFLOW_PAYLOAD;
    let mut done = 0;
    while start + done < end {
        let pin = storage.cache.read(chunk_key(&storage, value, chunk), &wait).or_raise();
        {
            let guard = pin.shared(&wait).or_raise();
            let payload = guard.page().overflow_payload();
            let from = start + done - chunk * OVERFLOW_PAYLOAD;
            let count = payload.len().saturating_sub(from).min(end - start - done);
            if count == 0 {
                raise(missing(value, chunk));
            }
            target[done..done + count].copy_from_slice(&payload[from..from + count]);
            done += count;
        }
        drop(pin);
        chunk += 1;
        check_for_interrupts();
    }
}
