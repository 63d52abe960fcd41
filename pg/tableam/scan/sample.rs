//! Scans for TABLESAMPLE: the sampling method chooses blocks, by their place among those of the scan, and rows.

use kalamdb_engine::page::PageKind;
use pgrx::{pg_guard, pg_sys};

use super::super::fetch::BorrowedPin;
use super::super::stats;
use super::{Scan, clear};
use crate::error::OrRaise;
use crate::ffi::interrupts::{BackendWait, check_for_interrupts};

/// Chooses the next block of a sample.
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_sample_next_block(
    scan: pg_sys::TableScanDesc,
    sample: *mut pg_sys::SampleScanState,
) -> bool {
    // SAFETY: made by `scan_begin`; Postgres passes an initialised sample.
    unsafe {
        let state = Scan::of(scan);
        let next = match (*(*sample).tsmroutine).NextSampleBlock {
            Some(choose) => {
                let block = choose(sample, state.end);
                (block != pg_sys::InvalidBlockNumber).then_some(block)
            }
            None if state.started => state.place.checked_add(1),
            None => Some(0),
        };
        let Some(place) = next.filter(|place| *place < state.end) else {
            state.unpin();
            state.started = false;
            return false;
        };
        state.started = true;
        state.place = place;
        state.collect(state.block_at(place));
        stats::count_returned(state.base.rs_rd, i64::from(state.count));
        true
    }
}

/// Puts the next sampled row of the block into a slot.
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_sample_next_tuple(
    scan: pg_sys::TableScanDesc,
    sample: *mut pg_sys::SampleScanState,
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    // SAFETY: made by `scan_begin`; Postgres passes an initialised sample and a slot of ours.
    unsafe {
        let state = Scan::of(scan);
        let choose = (*(*sample).tsmroutine).NextSampleTuple.expect("every sampling method chooses rows");
        let last = {
            let wait = BackendWait::new(state.storage.cache);
            let pin = BorrowedPin::of(&state.storage, state.frame);
            let guard = pin.get().shared(&wait).or_raise();
            if guard.page().kind() == PageKind::Data { guard.page().max_offset() } else { 0 }
        };
        loop {
            check_for_interrupts();
            let offset = choose(sample, state.block, last);
            if offset == 0 {
                clear(slot);
                return false;
            }
            let found = state.hits[..state.count as usize].binary_search_by_key(&offset, |hit| hit.offset);
            if let Ok(place) = found {
                state.current = place as i32;
                state.store_current(slot);
                return true;
            }
        }
    }
}
