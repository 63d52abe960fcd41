//! Offers rows to ANALYZE, a block at a time, and counts the live and the dead. Those of user tables it only counts.

use kalamdb_engine::page::TupleState;
use kalamdb_engine::visibility::{TransactionStatus, satisfies_vacuum, update_xid};
use pgrx::{pg_guard, pg_sys};

use super::scan::{Scan, clear};
use super::status::{PostgresStatus, refresh_reference, widen};
use crate::ffi::compat;
use crate::gate;

compat::analyze_next_block!(scan_analyze_next_block, read_block);

/// Reads a block that ANALYZE chose.
unsafe fn read_block(scan: pg_sys::TableScanDesc, block: pg_sys::BlockNumber) {
    // SAFETY: made by `scan_begin`.
    let scan = unsafe { Scan::of(scan) };
    refresh_reference();
    if block < scan.end() {
        scan.collect_every_version(block);
        if gate::is_partitioned(scan.relation()) {
            scan.sample().note_block();
        }
    } else {
        scan.leave();
    }
}

/// Puts the next row of the block that counts as live into the slot.
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_analyze_next_tuple(
    scan: pg_sys::TableScanDesc,
    oldest_xmin: pg_sys::TransactionId,
    live: *mut f64,
    dead: *mut f64,
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    // SAFETY: made by `scan_begin`; Postgres passes two counters and a slot of ours.
    unsafe {
        let scan = Scan::of(scan);
        *dead += f64::from(scan.take_dead_lines());
        let oldest = widen(oldest_xmin);
        while let Some((header, lsn)) = scan.next_version() {
            let mut hints = 0;
            let state = satisfies_vacuum(&header, oldest, &PostgresStatus, lsn, &mut hints);
            let sampled = match state {
                TupleState::Live => true,
                TupleState::Dead | TupleState::RecentlyDead => {
                    *dead += 1.0;
                    continue;
                }
                // Rows of other running transactions are left to whoever ends them: their counts reach the statistics at commit.
                TupleState::InsertInProgress => PostgresStatus.is_current(header.xmin),
                TupleState::DeleteInProgress => {
                    let own = PostgresStatus.is_current(update_xid(&header, &PostgresStatus));
                    if own {
                        *dead += 1.0;
                    }
                    !own
                }
            };
            if sampled {
                *live += 1.0;
                scan.store_current(slot);
                if !gate::is_partitioned(scan.relation()) {
                    return true;
                }
                scan.sample().offer(slot);
            }
        }
        scan.leave();
        clear(slot);
        false
    }
}
