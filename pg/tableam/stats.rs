//! Counts accesses for Postgres' statistics views.

use pgrx::pg_sys;

/// The counters of a relation, if statistics are kept for it.
fn counters(rel: pg_sys::Relation) -> Option<&'static mut pg_sys::PgStat_TableCounts> {
    // SAFETY: Postgres attaches the counters to an open relation on first use; they live until the transaction ends.
    unsafe {
        if (*rel).pgstat_info.is_null() {
            if !(*rel).pgstat_enabled {
                return None;
            }
            pg_sys::pgstat_assoc_relation(rel);
        }
        (*rel).pgstat_info.as_mut().map(|info| &mut info.t_counts)
    }
}

/// A sequential scan began.
pub fn count_scan(rel: pg_sys::Relation) {
    if let Some(counts) = counters(rel) {
        counts.t_numscans += 1;
    }
}

/// Rows were returned by a scan.
pub fn count_returned(rel: pg_sys::Relation, rows: i64) {
    if let Some(counts) = counters(rel) {
        counts.t_tuples_returned += rows;
    }
}

/// Rows were fetched for an index.
pub fn count_fetched(rel: pg_sys::Relation, rows: i64) {
    if let Some(counts) = counters(rel) {
        counts.t_tuples_fetched += rows;
    }
}

/// Blocks were read, from the page cache.
pub fn count_blocks(rel: pg_sys::Relation, blocks: i64) {
    if let Some(counts) = counters(rel) {
        counts.t_blocks_fetched += blocks;
        counts.t_blocks_hit += blocks;
    }
}
