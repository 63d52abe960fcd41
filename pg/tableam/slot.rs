//! The tuple slot of KalamDB tables: heap's slot whose tuple may lie in a pinned frame of the page cache.
//!
//! The tuple in a page has Postgres' own header and data layout, so heap's deforming code (also its compiled form) reads it in
//! place. A slot pins its frame itself and therefore outlives the scan that filled it.

use std::mem::{offset_of, size_of};

use kalamdb_engine::ids::Tid;
use kalamdb_engine::page::PREFIX;
use pgrx::{pg_guard, pg_sys};

use super::pins::{self, NO_FRAME};
use super::storage::Storage;
use crate::ffi::compat;
use crate::ffi::plain;
use crate::shmem::engine_cache;

/// Heap's slot with the frame its tuple lies in.
#[repr(C)]
pub struct KalamSlot {
    base: pg_sys::HeapTupleTableSlot,
    frame: u32,
}

const SHOULD_FREE: u16 = pg_sys::TTS_FLAG_SHOULDFREE as u16;
const EMPTY: u16 = pg_sys::TTS_FLAG_EMPTY as u16;

struct SyncOps(pg_sys::TupleTableSlotOps);
// SAFETY: the table is written once, before any slot exists, and only read by the backend's one thread.
unsafe impl Sync for SyncOps {}

static OPS: std::sync::OnceLock<SyncOps> = std::sync::OnceLock::new();

/// The operations of our slots; Postgres compares their address.
pub fn slot_ops() -> &'static pg_sys::TupleTableSlotOps {
    &OPS.get_or_init(|| {
        // SAFETY: heap's table of operations is a constant of the server.
        let heap = unsafe { &pg_sys::TTSOpsHeapTuple };
        SyncOps(pg_sys::TupleTableSlotOps {
            base_slot_size: size_of::<KalamSlot>(),
            init: Some(init),
            release: Some(release),
            clear: Some(clear),
            materialize: Some(materialize),
            copyslot: Some(copyslot),
            get_heap_tuple: Some(get_heap_tuple),
            get_minimal_tuple: None,
            copy_heap_tuple: Some(copy_heap_tuple),
            copy_minimal_tuple: Some(copy_minimal_tuple),
            // What looks at the tuple, which stands in the slot where heap has it.
            ..*heap
        })
    })
    .0
}

/// The access method's callback: which slots our tables use.
#[pg_guard]
pub unsafe extern "C-unwind" fn slot_callbacks(_rel: pg_sys::Relation) -> *const pg_sys::TupleTableSlotOps {
    slot_ops()
}

#[pg_guard]
unsafe extern "C-unwind" fn init(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: Postgres allocated `base_slot_size` zeroed bytes.
    unsafe { (*slot.cast::<KalamSlot>()).frame = NO_FRAME };
}

#[pg_guard]
unsafe extern "C-unwind" fn release(_slot: *mut pg_sys::TupleTableSlot) {}

#[pg_guard]
unsafe extern "C-unwind" fn clear(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: the slot is ours, as its operations are.
    unsafe {
        let kalam = slot.cast::<KalamSlot>();
        drop_tuple(kalam);
        (*slot).tts_nvalid = 0;
        (*slot).tts_flags |= EMPTY;
        invalidate_tid(&mut (*slot).tts_tid);
        (*kalam).base.off = 0;
    }
}

/// Frees or unpins the tuple of a slot.
unsafe fn drop_tuple(kalam: *mut KalamSlot) {
    // SAFETY: the caller passes a slot of ours.
    unsafe {
        let slot = &raw mut (*kalam).base.base;
        if (*slot).tts_flags & SHOULD_FREE != 0 {
            plain::pfree((*kalam).base.tuple.cast());
            (*slot).tts_flags &= !SHOULD_FREE;
        }
        if (*kalam).frame != NO_FRAME {
            pins::give_back(engine_cache(), (*kalam).frame);
            (*kalam).frame = NO_FRAME;
        }
        (*kalam).base.tuple = std::ptr::null_mut();
    }
}

fn invalidate_tid(tid: &mut pg_sys::ItemPointerData) {
    tid.ip_blkid = pg_sys::BlockIdData { bi_hi: u16::MAX, bi_lo: u16::MAX };
    tid.ip_posid = 0;
}

/// Makes the slot own its tuple, so that it no longer depends on a frame or on foreign memory.
#[pg_guard]
unsafe extern "C-unwind" fn materialize(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: the slot is ours; the tuple is formed in the slot's own memory context.
    unsafe {
        let kalam = slot.cast::<KalamSlot>();
        if (*slot).tts_flags & SHOULD_FREE != 0 {
            return;
        }
        let old = pg_sys::MemoryContextSwitchTo((*slot).tts_mcxt);
        let old_tuple = (*kalam).base.tuple;
        let tuple = if old_tuple.is_null() {
            let formed = pg_sys::heap_form_tuple((*slot).tts_tupleDescriptor, (*slot).tts_values, (*slot).tts_isnull);
            (*formed).t_self = (*slot).tts_tid;
            (*formed).t_tableOid = (*slot).tts_tableOid;
            formed
        } else {
            pg_sys::heap_copytuple(old_tuple)
        };
        (*slot).tts_nvalid = 0;
        (*kalam).base.off = 0;
        drop_tuple(kalam);
        (*kalam).base.tuple = tuple;
        (*slot).tts_flags |= SHOULD_FREE;
        pg_sys::MemoryContextSwitchTo(old);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn copyslot(destination: *mut pg_sys::TupleTableSlot, source: *mut pg_sys::TupleTableSlot) {
    // SAFETY: the destination is ours; the source is any live slot with a compatible descriptor.
    unsafe {
        if std::ptr::eq((*source).tts_ops, slot_ops()) {
            let from = source.cast::<KalamSlot>();
            if (*from).frame != NO_FRAME {
                clear(destination);
                let to = destination.cast::<KalamSlot>();
                pins::keep_again(engine_cache(), (*from).frame);
                (*to).frame = (*from).frame;
                (*to).base.tupdata = *(*from).base.tuple;
                fill(to, (*source).tts_tid, (*source).tts_tableOid);
                return;
            }
        }
        clear(destination);
        let to = destination.cast::<KalamSlot>();
        let old = pg_sys::MemoryContextSwitchTo((*destination).tts_mcxt);
        let copy_heap_tuple = (*(*source).tts_ops).copy_heap_tuple.expect("every slot kind can copy a heap tuple");
        let tuple = copy_heap_tuple(source);
        pg_sys::MemoryContextSwitchTo(old);
        (*to).base.tuple = tuple;
        (*destination).tts_flags &= !EMPTY;
        (*destination).tts_flags |= SHOULD_FREE;
        (*destination).tts_nvalid = 0;
        (*destination).tts_tid = (*tuple).t_self;
        (*destination).tts_tableOid = (*tuple).t_tableOid;
    }
}

/// Marks a slot whose `tupdata` is set as holding that tuple.
#[inline]
unsafe fn fill(kalam: *mut KalamSlot, tid: pg_sys::ItemPointerData, table: pg_sys::Oid) {
    // SAFETY: the caller passes a slot of ours.
    unsafe {
        (*kalam).base.tuple = &raw mut (*kalam).base.tupdata;
        (*kalam).base.off = 0;
        let slot = &raw mut (*kalam).base.base;
        (*slot).tts_nvalid = 0;
        (*slot).tts_flags &= !(EMPTY | SHOULD_FREE);
        (*slot).tts_tid = tid;
        (*slot).tts_tableOid = table;
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn get_heap_tuple(slot: *mut pg_sys::TupleTableSlot) -> pg_sys::HeapTuple {
    // SAFETY: the slot is ours.
    unsafe {
        let kalam = slot.cast::<KalamSlot>();
        if (*kalam).base.tuple.is_null() {
            materialize(slot);
        }
        (*kalam).base.tuple
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn copy_heap_tuple(slot: *mut pg_sys::TupleTableSlot) -> pg_sys::HeapTuple {
    // SAFETY: the slot is ours.
    unsafe { pg_sys::heap_copytuple(get_heap_tuple(slot)) }
}

compat::copy_minimal_tuple!(copy_minimal_tuple, get_heap_tuple);

/// Postgres' form of a TID.
#[inline]
pub fn item_pointer(tid: Tid) -> pg_sys::ItemPointerData {
    pg_sys::ItemPointerData {
        ip_blkid: pg_sys::BlockIdData { bi_hi: (tid.block >> 16) as u16, bi_lo: tid.block as u16 },
        ip_posid: tid.offset,
    }
}

/// A TID from Postgres' form.
#[inline]
pub fn tid_of(pointer: &pg_sys::ItemPointerData) -> Tid {
    Tid::new(u32::from(pointer.ip_blkid.bi_hi) << 16 | u32::from(pointer.ip_blkid.bi_lo), pointer.ip_posid)
}

/// Where the tuple of a version lies: in the frame's page, behind the version's prefix.
#[derive(Clone, Copy)]
pub struct TuplePlace {
    /// The frame, pinned by the caller.
    pub frame: u32,
    /// Start of the page in this process.
    pub page: *const u8,
    /// Byte offset of the version in the page.
    pub offset: usize,
    /// Length of the version with its prefix.
    pub len: usize,
}

/// Puts a version into a slot; the slot takes a pin of its own.
///
/// # Safety
/// `slot` is a slot of ours; the frame is pinned and the place names a version in it.
#[inline]
pub unsafe fn store_version(
    slot: *mut pg_sys::TupleTableSlot,
    rel: pg_sys::Relation,
    storage: &Storage,
    place: TuplePlace,
    tid: Tid,
) {
    // SAFETY: see above; the version stays in place as long as the slot's pin.
    unsafe {
        let kalam = slot.cast::<KalamSlot>();
        if (*slot).tts_flags & SHOULD_FREE != 0 || (*kalam).frame != place.frame {
            drop_tuple(kalam);
            pins::keep_again(storage.cache, place.frame);
            (*kalam).frame = place.frame;
        }
        let table = (*rel).rd_id;
        let pointer = item_pointer(tid);
        let header = place.page.add(place.offset + PREFIX) as *mut pg_sys::HeapTupleHeaderData;
        (*kalam).base.tupdata =
            pg_sys::HeapTupleData { t_len: (place.len - PREFIX) as u32, t_self: pointer, t_tableOid: table, t_data: header };
        fill(kalam, pointer, table);
        // Most tables have no large values; then the row is not touched here, where it would be a cache miss of its own.
        if storage.has_values() && (*header).t_infomask & pg_sys::HEAP_HASEXTERNAL as u16 != 0 {
            super::values::localize_slot(slot, rel);
        }
    }
}

/// Puts a private copy of a tuple into a slot of ours.
///
/// # Safety
/// `slot` is a slot of ours; `tuple` is palloc'ed in the slot's memory context and becomes the slot's.
pub unsafe fn store_owned(slot: *mut pg_sys::TupleTableSlot, tuple: pg_sys::HeapTuple) {
    // SAFETY: see above.
    unsafe {
        let kalam = slot.cast::<KalamSlot>();
        drop_tuple(kalam);
        (*kalam).base.tuple = tuple;
        (*kalam).base.off = 0;
        (*slot).tts_nvalid = 0;
        (*slot).tts_flags &= !EMPTY;
        (*slot).tts_flags |= SHOULD_FREE;
        (*slot).tts_tid = (*tuple).t_self;
        (*slot).tts_tableOid = (*tuple).t_tableOid;
    }
}

const _: () = assert!(offset_of!(KalamSlot, base) == 0, "Postgres sees our slot as a heap slot");
