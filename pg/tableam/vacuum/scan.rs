//! The first pass: prunes and freezes every page and collects its dead line pointers.

use kalamdb_engine::cache::LatchedPage;
use kalamdb_engine::ids::Xid;
use kalamdb_engine::page::{ALL_VISIBLE, DeadLines, Header, PAGE_HEADER, PAGE_SIZE, Page, PageKind, TupleState};
use kalamdb_engine::visibility::{self, FreezeTracker, MultiMember, MultiMembers};
use kalamdb_engine::{Error, Result};
use pgrx::pg_sys;

use super::super::change::change_page;
use super::super::prune::{keep_hints, prune_page};
use super::super::space::record_free_space;
use super::super::status::{PostgresStatus, for_each_member, widen};
use super::super::values;
use super::compat::{self, Cost};
use super::{Vacuum, indexes};
use crate::error::{OrRaise, raise};
use crate::ffi::compat::WAIT_FOR_PINS;
use crate::ffi::interrupts::check_for_interrupts;

/// The emergency is looked for every 4 GB.
const PAGES_PER_EMERGENCY_CHECK: u32 = ((4u64 << 30) / PAGE_SIZE as u64) as u32;

/// Blocks that are asked for ahead of the one in work.
const READ_AHEAD: u32 = 16;

/// How often a page may show a new dead version right after its prune: each time needs an inserter that just aborted.
const PRUNE_TRIES: u32 = 100;

/// How long to wait between two looks at a page that others pin.
const PIN_WAIT_MS: std::ffi::c_long = 10;

/// What is known of the versions of one page; reused from page to page.
#[derive(Default)]
pub struct Findings {
    /// The stored versions with the hints learned.
    versions: Vec<(u16, Header, TupleState)>,
    /// Dead line pointers.
    dead_lines: Vec<u16>,
    /// New headers of versions that are frozen.
    frozen: Vec<(u16, Header)>,
    /// Overflow values of removed versions.
    released: Vec<u32>,
    /// Some redirect leads to a version.
    has_redirects: bool,
    removed: u32,
}

impl MultiMembers for PostgresStatus {
    fn multi_members(&self, multi: u32, lock_only: bool) -> Result<Vec<MultiMember>> {
        let mut members = Vec::new();
        for_each_member(multi, lock_only, &mut |xid, status| {
            let updates = status > pg_sys::MultiXactStatus::MultiXactStatusForUpdate;
            members.push(MultiMember { xid: widen(xid), updates });
        });
        Ok(members)
    }
}

impl Findings {
    /// Looks at everything on a page; `oldest_xmin` is what versions are dead by.
    fn survey(&mut self, page: &LatchedPage, oldest_xmin: Xid) {
        self.versions.clear();
        self.dead_lines.clear();
        self.has_redirects = false;
        let view = page.page();
        for offset in 1..=view.max_offset() {
            let line = view.line(offset);
            if line.is_dead() {
                self.dead_lines.push(offset);
            }
            self.has_redirects |= line.is_redirect();
            let Some(version) = view.version_at(line) else { continue };
            let mut header = version.header();
            let state = judge(page, view, offset, &mut header, oldest_xmin);
            self.versions.push((offset, header, state));
        }
    }

    fn count(&self, wanted: impl Fn(TupleState) -> bool) -> i64 {
        self.versions.iter().filter(|(_, _, state)| wanted(*state)).count() as i64
    }

    fn has_dead_version(&self) -> bool {
        self.versions.iter().any(|(_, _, state)| *state == TupleState::Dead)
    }

    fn is_all_visible(&self, oldest_xmin: Xid) -> bool {
        self.dead_lines.is_empty() && self.versions.iter().all(|(_, header, state)| sees_everybody(header, *state, oldest_xmin))
    }
}

/// What a version of a latched page is to a vacuum; hints go to the page and into the header.
pub fn judge(page: &LatchedPage, view: Page<'_>, offset: u16, header: &mut Header, oldest_xmin: Xid) -> TupleState {
    let mut hints = 0;
    let state = visibility::satisfies_vacuum(header, oldest_xmin, &PostgresStatus, view.lsn(), &mut hints);
    keep_hints(page, view, offset, header, hints);
    state
}

/// Whether every snapshot, now and later, sees the version.
///
/// The committed hint is asked for because it says that the inserter's commit is on disk as soon as the page can be.
pub fn sees_everybody(header: &Header, state: TupleState, oldest_xmin: Xid) -> bool {
    use kalamdb_engine::page::infomask::HEAP_XMIN_COMMITTED;
    state == TupleState::Live && header.infomask & HEAP_XMIN_COMMITTED != 0 && header.effective_xmin() < oldest_xmin
}

/// Goes over the table, with as many rounds through the indexes as the memory for dead line pointers makes necessary.
pub fn scan(vacuum: &mut Vacuum) {
    compat::progress(pg_sys::PROGRESS_VACUUM_PHASE, i64::from(pg_sys::PROGRESS_VACUUM_PHASE_SCAN_HEAP));
    compat::progress(pg_sys::PROGRESS_VACUUM_TOTAL_HEAP_BLKS, i64::from(vacuum.pages));
    vacuum.dead.report_room();
    let mut findings = Findings::default();
    let only = vacuum.only.clone();
    let chosen = only.as_ref().map_or(vacuum.pages, |blocks| blocks.len() as u32);
    for step in 0..chosen {
        let block = only.as_ref().map_or(step, |blocks| blocks[step as usize]);
        compat::progress(pg_sys::PROGRESS_VACUUM_HEAP_BLKS_SCANNED, i64::from(block));
        compat::delay_point();
        if block % PAGES_PER_EMERGENCY_CHECK == PAGES_PER_EMERGENCY_CHECK - 1 {
            vacuum.check_emergency();
        }
        if !vacuum.dead.has_room_for_page() {
            vacuum.may_bypass_indexes = false;
            indexes::run_round(vacuum);
            compat::progress(pg_sys::PROGRESS_VACUUM_PHASE, i64::from(pg_sys::PROGRESS_VACUUM_PHASE_SCAN_HEAP));
        }
        if vacuum.cold.contains(block) {
            note_cold(vacuum, block);
            continue;
        }
        scan_block(vacuum, block, &mut findings);
        vacuum.counts.scanned_pages += 1;
    }
    compat::progress(pg_sys::PROGRESS_VACUUM_HEAP_BLKS_SCANNED, i64::from(vacuum.pages));
    // SAFETY: the relation is open.
    vacuum.live_estimate = unsafe {
        // The rows of cold pages are known without a look.
        let looked_at = vacuum.counts.scanned_pages + vacuum.counts.cold_pages;
        let live = vacuum.counts.live as f64 + vacuum.cold.rows() as f64;
        pg_sys::vac_estimate_reltuples(vacuum.rel, vacuum.pages, looked_at, live)
    };
    if vacuum.dead.len() > 0 {
        indexes::run_round(vacuum);
    }
    compat::progress(pg_sys::PROGRESS_VACUUM_HEAP_BLKS_VACUUMED, i64::from(vacuum.pages));
    if !vacuum.indexes.is_empty() && vacuum.finish_indexes {
        indexes::finish_all(vacuum);
    }
}

/// Pins and latches a block's page for writing, charges it, and tells whether the scan brought it into the cache.
pub fn latch_block(vacuum: &Vacuum, block: u32) -> (LatchedPage, bool) {
    let key = vacuum.storage.block(block);
    let cached = vacuum.storage.cache.lookup(key);
    let is_new = cached.is_none();
    compat::charge(if is_new { Cost::Miss } else { Cost::Hit });
    let pin = match cached {
        Some(pin) => pin,
        None => vacuum.storage.cache.read(key, &vacuum.wait).or_raise(),
    };
    (pin.into_exclusive(&vacuum.wait).or_raise(), is_new)
}

/// Counts a page whose rows are frozen in a segment.
fn note_cold(vacuum: &mut Vacuum, block: u32) {
    vacuum.counts.cold_pages += 1;
    vacuum.counts.all_visible_pages += 1;
    vacuum.counts.nonempty_pages = block + 1;
}

fn scan_block(vacuum: &mut Vacuum, block: u32, findings: &mut Findings) {
    if block.is_multiple_of(READ_AHEAD) && vacuum.only.is_none() {
        let from = if block == 0 { 1 } else { block.saturating_add(READ_AHEAD) };
        let ahead = from..block.saturating_add(2 * READ_AHEAD).min(vacuum.pages);
        let hot = ahead.filter(|block| !vacuum.cold.contains(*block));
        hot.for_each(|block| vacuum.storage.cache.prefetch(vacuum.storage.block(block)));
    }
    findings.removed = 0;
    let free = loop {
        let (mut page, is_new) = latch_block(vacuum, block);
        let was_clean = !page.is_dirty();
        let done = match page.page().kind() {
            PageKind::Data => clean_page(vacuum, block, &mut page, findings),
            // Given out, but never written: whoever finds it makes it.
            PageKind::Unused => Ok(Some(PAGE_SIZE - PAGE_HEADER)),
            kind => Err(Error::corrupt(format!("block {block} is a page of kind {kind:?}"))),
        };
        if was_clean && page.is_dirty() {
            compat::charge(Cost::Dirty);
        }
        if is_new {
            page.cool();
        }
        drop(page);
        values::release(&vacuum.storage, &findings.released, &vacuum.wait).or_raise();
        findings.released.clear();
        if let Some(free) = done.unwrap_or_else(|error| raise(error)) {
            break free;
        }
        wait_for_pins();
    };
    let reclaims_later = !findings.dead_lines.is_empty() && vacuum.clean_indexes && !vacuum.indexes.is_empty();
    if !reclaims_later {
        record_free_space(&vacuum.storage, block, free, &vacuum.wait).or_raise();
    }
}

/// Waits a little with nothing held, so that a pin of somebody else may go.
fn wait_for_pins() {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: the latch is this process' own.
    unsafe {
        let woken = pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, PIN_WAIT_MS, WAIT_FOR_PINS);
        if woken as u32 & pg_sys::WL_LATCH_SET != 0 {
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
    }
    check_for_interrupts();
}

/// Prunes, freezes and counts a page and gives its free space; nothing if that has to wait for the pins of others.
fn clean_page(vacuum: &mut Vacuum, block: u32, page: &mut LatchedPage, findings: &mut Findings) -> Result<Option<usize>> {
    if page.sole_pin() {
        prune(vacuum, page, findings)?;
    } else {
        findings.survey(page, vacuum.limits.oldest_xmin);
    }
    let Some(remaining) = plan_freezes(vacuum, findings)? else { return Ok(None) };
    vacuum.remaining = remaining;
    log_changes(vacuum, page, findings);
    if let Some(unnamed) = &mut vacuum.unnamed {
        unnamed.note_page(vacuum.rel, page.page());
    }
    note(vacuum, block, findings);
    vacuum.counts.all_visible_pages += u32::from(page.page().flags() & ALL_VISIBLE != 0);
    Ok(Some(page.page().free_space()))
}

/// Prunes until no dead version is left: an inserter may abort between the prune and the look at what stays.
fn prune(vacuum: &Vacuum, page: &mut LatchedPage, findings: &mut Findings) -> Result<()> {
    // Without indexes nothing names a line pointer any more.
    let dead_lines = if vacuum.indexes.is_empty() { DeadLines::Free } else { DeadLines::Keep };
    for _ in 0..PRUNE_TRIES {
        let result = prune_page(vacuum.rel, page, &vacuum.horizon, dead_lines, &mut findings.released)?;
        findings.removed += result.removed;
        findings.survey(page, vacuum.limits.oldest_xmin);
        if !findings.has_dead_version() {
            return Ok(());
        }
    }
    Err(Error::corrupt("a dead row version belongs to no chain of its page and cannot be removed"))
}

/// Decides what is frozen. Nothing comes back if the page has to be pruned first and others pin it.
///
/// As long as a dead version is there, nothing on the page is frozen: its successor is recognised by its xmin.
fn plan_freezes(vacuum: &Vacuum, findings: &mut Findings) -> Result<Option<FreezeTracker>> {
    let mut remaining = vacuum.remaining;
    findings.frozen.clear();
    if findings.has_dead_version() {
        for (_, header, _) in &findings.versions {
            let is_old = visibility::would_freeze(header, &vacuum.limits, &PostgresStatus, &mut remaining)?;
            if is_old && vacuum.aggressive {
                return Ok(None);
            }
        }
    } else {
        for (offset, header, _) in &findings.versions {
            if let Some(frozen) = visibility::plan_freeze(header, &vacuum.limits, &PostgresStatus, &mut remaining)? {
                findings.frozen.push((*offset, frozen));
            }
        }
    }
    Ok(Some(remaining))
}

/// Writes the frozen headers and the page's new flag in one record.
fn log_changes(vacuum: &Vacuum, page: &mut LatchedPage, findings: &Findings) {
    let flagged = page.page().flags() & ALL_VISIBLE != 0;
    let visible = findings.is_all_visible(vacuum.limits.oldest_xmin);
    // A flag without reason stays where only the horizon went back; a dead line pointer contradicts it.
    let (set, clear) = match (flagged, visible) {
        (false, true) => (ALL_VISIBLE, 0),
        (true, false) if !findings.dead_lines.is_empty() => (0, ALL_VISIBLE),
        _ => (0, 0),
    };
    if findings.frozen.is_empty() && set == clear {
        return;
    }
    change_page(page, |page, record| {
        for (offset, header) in &findings.frozen {
            page.set_header(*offset, header).expect("the version was read under the same latch");
            record.header(*offset, header);
        }
        if set != clear {
            page.set_flags(set);
            page.clear_flags(clear);
            record.flags(set, clear);
        }
    });
}

/// Adds a page to the counts and its dead line pointers to the list.
fn note(vacuum: &mut Vacuum, block: u32, findings: &Findings) {
    let counts = &mut vacuum.counts;
    let mut missed = findings.count(|state| state == TupleState::Dead);
    let mut keeps_page = findings.has_redirects || !findings.versions.is_empty();
    if !findings.dead_lines.is_empty() && vacuum.indexes.is_empty() {
        // Only a page that others pin keeps them without an index; the next VACUUM frees them.
        missed += findings.dead_lines.len() as i64;
        keeps_page = true;
    } else if !findings.dead_lines.is_empty() {
        counts.dead_line_pages += 1;
        counts.dead_lines += findings.dead_lines.len() as i64;
        vacuum.dead.add(block, &findings.dead_lines);
    }
    if keeps_page {
        counts.nonempty_pages = block + 1;
    }
    counts.removed_versions += i64::from(findings.removed);
    // The deleter will report its deletion itself, after this run; the same goes for an inserter.
    counts.live += findings.count(|state| matches!(state, TupleState::Live | TupleState::DeleteInProgress));
    counts.recently_dead += findings.count(|state| state == TupleState::RecentlyDead);
    counts.missed_dead += missed;
    counts.missed_pages += u32::from(missed > 0);
}
