//! The numbers by which VACUUM decides, apart from everything it asks of Postgres.

use kalamdb_engine::ids::{FROZEN_XID, Xid};

/// Below this share of pages with dead line pointers the indexes are spared.
const BYPASS_SHARE: f64 = 0.02;

/// With more dead line pointers than fit into 32 MB, six bytes each, the indexes are cleaned in any case.
const BYPASS_LINES: i64 = 32 * 1024 * 1024 / 6;

/// So many empty blocks are worth the lock in any case.
const TRUNCATE_BLOCKS: u32 = 1000;

/// So large a share of the table is worth the lock.
const TRUNCATE_SHARE: u32 = 16;

/// The full form of a cutoff, given the next transaction.
///
/// Postgres computes cutoffs by subtraction in 32 bits: in a young cluster they lie before its first transaction.
pub fn full_cutoff(cutoff: u32, next: Xid) -> Xid {
    let age = (next as u32).wrapping_sub(cutoff) as i32;
    next.saturating_add_signed(-i64::from(age)).max(FROZEN_XID + 1)
}

/// Whether so few dead line pointers are not worth a walk through all indexes: they stay for the next VACUUM.
pub fn may_bypass_indexes(pages: u32, dead_line_pages: u32, dead_lines: i64) -> bool {
    f64::from(dead_line_pages) < f64::from(pages) * BYPASS_SHARE && dead_lines < BYPASS_LINES
}

/// Whether the empty end of a table is worth locking everybody out.
pub fn is_worth_truncating(pages: u32, nonempty: u32) -> bool {
    let empty = pages.saturating_sub(nonempty);
    empty > 0 && (empty >= TRUNCATE_BLOCKS || empty >= pages / TRUNCATE_SHARE)
}
