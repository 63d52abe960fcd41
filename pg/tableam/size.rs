//! Tells Postgres how large a table is.

use pgrx::{pg_guard, pg_sys};

use super::storage::Storage;
use crate::ffi::compat::locator_of;
use crate::gate;

/// Bytes of one of Postgres' own blocks: the unit in which the planner counts.
const BLOCK: u64 = pg_sys::BLCKSZ as u64;

/// Bytes of a page that rows can use.
const USABLE: usize = kalamdb_engine::page::PAGE_SIZE - kalamdb_engine::page::PAGE_HEADER;

/// Bytes of a heap page that rows can use: the guess for an empty table is heap's.
const USABLE_HEAP: usize = pg_sys::BLCKSZ as usize - 24;

/// Bytes that every version costs beside its values: prefix, tuple header, line pointer.
const OVERHEAD: usize = kalamdb_engine::page::PREFIX + 24 + 4;

/// Size of a fork: of the main fork one of Postgres' blocks for each of ours, so that block numbers mean the same to both.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_size(rel: pg_sys::Relation, fork: pg_sys::ForkNumber::Type) -> u64 {
    let whole = fork == pg_sys::ForkNumber::InvalidForkNumber;
    let mut size = 0;
    if whole || fork == pg_sys::ForkNumber::MAIN_FORKNUM {
        size += u64::from(Storage::of(rel).blocks()) * BLOCK;
    }
    if whole || fork != pg_sys::ForkNumber::MAIN_FORKNUM {
        size += file_forks_size(rel, if whole { None } else { Some(fork) });
    }
    size
}

fn file_forks_size(rel: pg_sys::Relation, only: Option<pg_sys::ForkNumber::Type>) -> u64 {
    let mut blocks = 0;
    // SAFETY: the relation is open; its files exist as long as it does.
    unsafe {
        let files = pg_sys::smgropen(locator_of(rel), (*rel).rd_backend);
        for fork in pg_sys::ForkNumber::FSM_FORKNUM..=pg_sys::ForkNumber::INIT_FORKNUM {
            if only.is_none_or(|only| only == fork) && pg_sys::smgrexists(files, fork) {
                blocks += u64::from(pg_sys::smgrnblocks(files, fork));
            }
        }
    }
    blocks * BLOCK
}

/// The planner's estimate of pages and rows.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_estimate_size(
    rel: pg_sys::Relation,
    widths: *mut i32,
    pages: *mut pg_sys::BlockNumber,
    rows: *mut f64,
    all_visible: *mut f64,
) {
    let usable = if Storage::of(rel).blocks() == 0 { USABLE_HEAP } else { USABLE };
    // SAFETY: Postgres passes an open relation and places for results.
    unsafe {
        pg_sys::table_block_relation_estimate_size(rel, widths, pages, rows, all_visible, OVERHEAD, usable);
        to_own_share(rel, pages, rows);
        // There is no visibility map, so an index-only scan fetches every row: the planner must not count on sparing that.
        *all_visible = 0.0;
    }
}

/// Reduces the estimate of a user table to what the session's user has of it.
unsafe fn to_own_share(rel: pg_sys::Relation, pages: *mut pg_sys::BlockNumber, rows: *mut f64) {
    // SAFETY: the caller's relation and results.
    unsafe {
        if let Some(share) = gate::own_share(rel) {
            *pages = (f64::from(*pages) * share).round() as pg_sys::BlockNumber;
            *rows = (*rows * share).max(1.0);
        }
    }
}
