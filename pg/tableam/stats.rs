//! Counts accesses for Postgres' statistics views.

use pgrx::pg_sys;

use crate::ffi::compat::{TableCounters, table_counters};

/// The counters of a relation, if statistics are kept for it.
fn counters(rel: pg_sys::Relation) -> Option<TableCounters<'static>> {
    // SAFETY: Postgres attaches the counters to an open relation on first use; they live until the transaction ends.
    unsafe {
        if (*rel).pgstat_info.is_null() {
            if !(*rel).pgstat_enabled {
                return None;
            }
            pg_sys::pgstat_assoc_relation(rel);
        }
        (*rel).pgstat_info.as_mut().map(|status| table_counters(status))
    }
}

/// A sequential scan began.
pub fn count_scan(rel: pg_sys::Relation) {
    if let Some(counts) = counters(rel) {
        *counts.scans += 1;
    }
}

/// Rows were returned by a scan.
pub fn count_returned(rel: pg_sys::Relation, rows: i64) {
    if let Some(counts) = counters(rel) {
        *counts.returned += rows;
    }
}

/// Rows were fetched for an index.
pub fn count_fetched(rel: pg_sys::Relation, rows: i64) {
    if let Some(counts) = counters(rel) {
        *counts.fetched += rows;
    }
}

/// Blocks were read, from the page cache.
pub fn count_blocks(rel: pg_sys::Relation, blocks: i64) {
    if let Some(counts) = counters(rel) {
        *counts.blocks += blocks;
        *counts.hits += blocks;
    }
}
