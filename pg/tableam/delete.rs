//! Deletes a row version, after whoever changes or locks it has ended.

#![allow(non_upper_case_globals, reason = "constants in patterns have Postgres' names")]

use kalamdb_engine::ids::Tid;
use kalamdb_engine::page::ALL_VISIBLE;
use kalamdb_engine::page::infomask::*;
use kalamdb_engine::visibility::TmResult;
use pgrx::pg_sys::LockTupleMode::LockTupleExclusive;
use pgrx::pg_sys::LockWaitPolicy::LockWaitBlock;
use pgrx::{pg_guard, pg_sys};

use super::change::change_page;
use super::raw;
use super::row::{LatchedRow, report_gone, tm_result};
use super::row_lock::{TupleLock, WaitFor, add_holder, multi_conflict, wait_for_multi, wait_for_xid};
use super::slot::{item_pointer, tid_of};
use super::status::{current_xid, narrow};
use super::storage::Storage;
use crate::error::{SqlError, raise};
use crate::ffi::interrupts::BackendWait;
use crate::ffi::plain;
use crate::gate::{self, Access, in_key_check, is_partitioned, owner_of_row, refuse_other_partition};
use crate::history::{self, DeletedRow};
use crate::jobs::count_rows;
use crate::wal;

/// The block number in the forward pointer of a row that an update moved to another partition.
const MOVED_BLOCK: u32 = u32::MAX;

/// Refuses changes while parallel workers run.
pub fn refuse_in_parallel_mode(what: &str) {
    // SAFETY: reads the backend's own state.
    if unsafe { plain::IsInParallelMode() } {
        raise(SqlError::invalid_transaction_state(format!("cannot {what} tuples during a parallel operation")));
    }
}

/// Deletes one version.
#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_delete(
    rel: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    cid: pg_sys::CommandId,
    _snapshot: pg_sys::Snapshot,
    crosscheck: pg_sys::Snapshot,
    wait: bool,
    failure: *mut pg_sys::TM_FailureData,
    changing_partition: bool,
) -> pg_sys::TM_Result::Type {
    refuse_in_parallel_mode("delete");
    let storage = Storage::of(rel);
    let waiter = BackendWait::new(storage.cache);
    wal::wait_for_room(storage.cache);
    let xid = current_xid();
    let access = Access::of_statement(rel, &storage, &waiter);
    // SAFETY: the executor passes a valid TID and failure struct.
    let tid = unsafe { tid_of(&*tid) };
    let mut lock = TupleLock::new(rel, tid, LockTupleExclusive);
    let what = WaitFor { rel, tid, operation: pg_sys::XLTW_Oper::XLTW_Delete };
    let result = loop {
        let Some(row) = LatchedRow::find(&storage, tid, cid, &waiter) else {
            // SAFETY: as above.
            break unsafe { report_gone(tid, failure) };
        };
        if !access.allows(row.page.page()) {
            drop(row);
            refuse_other_partition(rel);
        }
        let mut state = row.state;
        if state == TmResult::Invisible {
            raise(SqlError::prerequisite("attempted to delete invisible tuple"));
        }
        if state == TmResult::BeingModified && wait {
            let header = row.header;
            if header.infomask & HEAP_XMAX_IS_MULTI != 0 {
                let multi = header.xmax as u32;
                let conflict = multi_conflict(multi, header.infomask, LockTupleExclusive);
                if conflict.must_wait {
                    drop(row);
                    if !conflict.current_is_member {
                        lock.acquire(LockWaitBlock);
                    }
                    wait_for_multi(multi, pg_sys::MultiXactStatus::MultiXactStatusUpdate, header.infomask, &what, true);
                    continue;
                }
            } else if !row.xmax_is_current() {
                drop(row);
                lock.acquire(LockWaitBlock);
                wait_for_xid(narrow(header.xmax), &what, true);
                continue;
            }
            state = row.settle();
        }
        state = row.crosscheck(state, crosscheck);
        if state != TmResult::Ok {
            // SAFETY: as above.
            unsafe { row.report(state, failure) };
            break tm_result(state);
        }
        let moved = if changing_partition { moved_by_key_check(rel, &row) } else { None };
        note_deletion(rel, &storage, delete_row(rel, row, xid, cid, changing_partition));
        note_move(rel, moved);
        break pg_sys::TM_Result::TM_Ok;
    };
    lock.release();
    result
}

/// The row that the check of a foreign key takes out of a partition of a user table, to put it into another one.
fn moved_by_key_check(rel: pg_sys::Relation, row: &LatchedRow) -> Option<Vec<u8>> {
    let version = row.page.page().version(row.tid.offset).filter(|_| is_partitioned(rel) && in_key_check());
    version.map(|version| version.tuple().to_vec())
}

/// Notes whose row is on its way to another partition; no latch is held any more.
fn note_move(rel: pg_sys::Relation, moved: Option<Vec<u8>>) {
    if let Some(tuple) = moved {
        gate::note_move(owner_of_row(rel, &tuple));
    }
}

/// What is done about a deletion when no latch is held any more.
fn note_deletion(rel: pg_sys::Relation, storage: &Storage, kept: Option<DeletedRow>) {
    if let Some(deleted) = kept {
        deleted.keep(rel);
    }
    // SAFETY: the relation is open.
    unsafe { pg_sys::pgstat_count_heap_delete(rel) };
    count_rows(storage, 1);
}

/// Marks the version deleted; returns a copy of the row if it is to be kept.
fn delete_row(rel: pg_sys::Relation, mut row: LatchedRow, xid: u64, cid: u32, changing_partition: bool) -> Option<DeletedRow> {
    let tid = row.tid;
    // SAFETY: the latch is held from this check until the deletion can be seen, as the check demands.
    unsafe {
        let mut pointer = item_pointer(tid);
        raw::CheckForSerializableConflictIn(rel, &mut pointer, tid.block);
        pg_sys::MultiXactIdSetOldestMember();
    }
    let mut header = row.header;
    add_holder(&row.header, xid, LockTupleExclusive, true).put(&mut header);
    header.infomask2 &= !HEAP_HOT_UPDATED;
    header.cmax = cid;
    header.ctid = if changing_partition { Tid::new(MOVED_BLOCK, MOVED_PARTITIONS_OFFSET) } else { tid };
    let was_all_visible = row.page.page().flags() & ALL_VISIBLE != 0;
    // A row that moves to another partition lives on there.
    let keeps = !changing_partition && history::keeps(rel);
    let page = row.page.page();
    let kept = if keeps { page.version(tid.offset).map(|version| DeletedRow::copy(tid, version)) } else { None };
    change_page(&mut row.page, |page, record| {
        page.set_header(tid.offset, &header).expect("the version was just read under this latch");
        record.header(tid.offset, &header);
        if page.set_prune_xid_min(xid) {
            record.prune_xid(xid);
        }
        if was_all_visible {
            page.clear_flags(ALL_VISIBLE);
            record.flags(0, ALL_VISIBLE);
        }
    });
    kept
}
