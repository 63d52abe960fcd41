//! The second pass: frees the dead line pointers that no index names any more.

use kalamdb_engine::Result;
use kalamdb_engine::cache::LatchedPage;
use kalamdb_engine::ids::Xid;
use kalamdb_engine::page::{ALL_VISIBLE, PageKind};
use pgrx::pg_sys;

use super::super::change::change_page;
use super::super::space::record_free_space;
use super::Vacuum;
use super::compat::{self, Cost};
use super::dead_items::Cursor;
use super::scan::{judge, latch_block, sees_everybody};
use crate::error::OrRaise;

/// Frees every line pointer of the list; each index has dropped its entries for them.
pub fn free_dead_lines(vacuum: &mut Vacuum) {
    compat::progress(pg_sys::PROGRESS_VACUUM_PHASE, i64::from(pg_sys::PROGRESS_VACUUM_PHASE_VACUUM_HEAP));
    let mut cursor = Cursor::default();
    let mut offsets = Vec::new();
    while let Some(block) = vacuum.dead.next_block(&mut cursor, &mut offsets) {
        compat::delay_point();
        compat::progress(pg_sys::PROGRESS_VACUUM_HEAP_BLKS_VACUUMED, i64::from(block));
        let (mut page, is_new) = latch_block(vacuum, block);
        let was_clean = !page.is_dirty();
        let was_visible = page.page().flags() & ALL_VISIBLE != 0;
        let result = free_lines(&mut page, &offsets, vacuum.limits.oldest_xmin);
        let free = page.page().free_space();
        let is_visible = page.page().flags() & ALL_VISIBLE != 0;
        if was_clean {
            compat::charge(Cost::Dirty);
        }
        if is_new {
            page.cool();
        }
        drop(page);
        result.or_raise();
        vacuum.counts.all_visible_pages += u32::from(is_visible && !was_visible);
        record_free_space(&vacuum.storage, block, free, &vacuum.wait).or_raise();
    }
}

/// Frees line pointers of a page. Nothing in it moves, so others may have it pinned.
fn free_lines(page: &mut LatchedPage, offsets: &[u16], oldest_xmin: Xid) -> Result<()> {
    // Asked before the change: the answer may have to be read from disk, which a change must not wait for.
    let becomes_visible = page.page().flags() & ALL_VISIBLE == 0 && is_all_visible_without(page, offsets, oldest_xmin);
    let mut result = Ok(());
    change_page(page, |page, record| {
        result = page.mark_unused(offsets);
        if result.is_err() {
            return;
        }
        record.unused(offsets);
        if becomes_visible {
            page.set_flags(ALL_VISIBLE);
            record.flags(ALL_VISIBLE, 0);
        }
    });
    result
}

/// Whether every snapshot sees everything on a page once these dead line pointers are gone; `offsets` ascend.
fn is_all_visible_without(page: &LatchedPage, offsets: &[u16], oldest_xmin: Xid) -> bool {
    let view = page.page();
    view.kind() == PageKind::Data
        && (1..=view.max_offset()).all(|offset| {
            let line = view.line(offset);
            if line.is_dead() {
                return offsets.binary_search(&offset).is_ok();
            }
            let Some(version) = view.version_at(line) else { return true };
            let mut header = version.header();
            let state = judge(page, view, offset, &mut header, oldest_xmin);
            sees_everybody(&header, state, oldest_xmin)
        })
}
