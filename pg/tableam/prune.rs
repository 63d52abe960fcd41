//! Prunes pages: removes the row versions that no snapshot can see, when a page is looked at and when VACUUM comes by.

use std::borrow::Borrow;
use std::sync::atomic::{AtomicU64, Ordering};

use kalamdb_engine::Result;
use kalamdb_engine::cache::{Exclusive, Pin, Wait};
use kalamdb_engine::ids::{INVALID_XID, Lsn, Xid};
use kalamdb_engine::page::{
    AT_PRUNE_XID, ChainVisitor, DeadLines, FULL, Header, PAGE_SIZE, Page, PageKind, PruneActions, PrunePlan, TupleState,
    plan_prune,
};
use kalamdb_engine::visibility::{self, TransactionStatus};
use pgrx::pg_sys;

use super::change::change_page;
use super::row::set_hints;
use super::status::PostgresStatus;
use super::storage::Storage;
use super::values;
use crate::error::OrRaise;

/// A page is worth pruning when it has no room for this many versions of the length they have there.
///
/// A fixed share of the page would do harm: a page that has little more of its bytes in removable versions would be pruned at each
/// update, for one version.
const LEAST_ROOM: usize = 3;
/// What is worth pruning at most, whatever the length of versions.
const MOST_FREE: usize = PAGE_SIZE / 10;

/// From when on a deleted version of a relation can be seen by nobody.
#[derive(Clone, Copy)]
pub struct Horizon {
    tests: *mut pg_sys::GlobalVisState,
    oldest_xmin: Xid,
}

impl Horizon {
    /// The horizon of the moment; it moves on while it is used.
    pub fn of(rel: pg_sys::Relation) -> Horizon {
        // SAFETY: the relation is open; the state is a global of this backend.
        Horizon { tests: unsafe { pg_sys::GlobalVisTestFor(rel) }, oldest_xmin: INVALID_XID }
    }

    /// The same with a fixed lower bound: what ended before it is removable, whatever the moving horizon says.
    ///
    /// VACUUM freezes by that bound and must not meet a version that is dead by it.
    pub fn at_least(self, oldest_xmin: Xid) -> Horizon {
        Horizon { oldest_xmin, ..self }
    }

    /// Whether every snapshot calls the transaction ended.
    #[inline]
    pub fn is_past(&self, xid: Xid) -> bool {
        // SAFETY: the state is a global of this backend.
        xid < self.oldest_xmin || unsafe { pg_sys::GlobalVisTestIsRemovableFullXid(self.tests, full(xid)) }
    }

    /// What a version is to a vacuum; `hints` collects infomask bits for the page.
    pub fn judge(&self, header: &Header, lsn: Lsn, hints: &mut u16) -> TupleState {
        let mut dead_after = INVALID_XID;
        match visibility::satisfies_vacuum_horizon(header, &PostgresStatus, lsn, hints, &mut dead_after) {
            TupleState::RecentlyDead if self.is_past(dead_after) => TupleState::Dead,
            state => state,
        }
    }
}

fn full(xid: Xid) -> pg_sys::FullTransactionId {
    pg_sys::FullTransactionId { value: xid }
}

/// Puts hints into the page that the pin holds and into the decoded header.
pub fn keep_hints(pin: &Pin, page: Page<'_>, offset: u16, header: &mut Header, hints: u16) {
    if hints & !header.infomask != 0 {
        header.infomask |= hints;
        set_hints(pin, page, offset, hints);
    }
}

/// Follows a chain of versions to learn whether all of it is removable.
pub struct RemovableChain<'a> {
    horizon: &'a Horizon,
    pin: &'a Pin,
    page: Page<'a>,
}

impl<'a> RemovableChain<'a> {
    /// For chains of one latched page.
    pub fn new(horizon: &'a Horizon, pin: &'a Pin, page: Page<'a>) -> RemovableChain<'a> {
        RemovableChain { horizon, pin, page }
    }
}

impl ChainVisitor for RemovableChain<'_> {
    fn visible(&mut self, offset: u16, header: &mut Header) -> bool {
        let mut hints = 0;
        let state = self.horizon.judge(header, self.page.lsn(), &mut hints);
        keep_hints(self.pin, self.page, offset, header, hints);
        state != TupleState::Dead
    }

    fn surely_dead(&mut self, _offset: u16, _header: &Header) -> bool {
        // Whoever asks here wants to know whether a version was found, nothing else.
        false
    }

    fn multi_update_xid(&mut self, multi: u32) -> Xid {
        PostgresStatus.multi_update_xid(multi)
    }
}

/// What a prune did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PruneResult {
    /// Versions removed.
    pub removed: u32,
    /// Line pointers that became dead and stay until VACUUM has cleaned the indexes.
    pub newly_dead: u32,
}

/// Prunes a page that is about to be read if it looks worth it and nobody else uses it at the moment.
///
/// The caller holds a pin and no latch; after the call, line pointers it knew may lead elsewhere.
#[inline]
pub fn on_access(rel: pg_sys::Relation, storage: &Storage, pin: &Pin, wait: &dyn Wait) {
    let prune_xid = peek_prune_xid(pin);
    if prune_xid != INVALID_XID {
        prune_if_worth(rel, storage, pin, prune_xid, wait);
    }
}

/// The page's prune xid, read without the latch: it only decides whether to look closer.
#[inline]
fn peek_prune_xid(pin: &Pin) -> Xid {
    // SAFETY: the pinned page lies there, aligned to a page, as long as the pin lives; a writer's plain store of an aligned word
    // is one store on every processor Postgres runs on, and any value does here.
    unsafe { AtomicU64::from_ptr(pin.data().add(AT_PRUNE_XID).cast_mut().cast()).load(Ordering::Relaxed) }
}

#[cold]
fn prune_if_worth(rel: pg_sys::Relation, storage: &Storage, pin: &Pin, prune_xid: Xid, wait: &dyn Wait) {
    let horizon = Horizon::of(rel);
    if !horizon.is_past(prune_xid) || !pin.is_sole() {
        return;
    }
    // ALTER TABLE may have changed the relation's descriptor while it still reads rows of the old form; only by the right one can
    // the large values of a removed version be found.
    // SAFETY: looks at this backend's own locks.
    if unsafe { pg_sys::CheckRelationLockedByMe(rel, pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE, true) } {
        return;
    }
    let Some(mut guard) = pin.try_exclusive() else { return };
    let page = guard.page();
    let least_free = (LEAST_ROOM * page.mean_length()).min(MOST_FREE);
    let is_short = page.flags() & FULL != 0 || page.free_space() < least_free;
    if page.kind() != PageKind::Data || !is_short || !guard.sole_pin() {
        return;
    }
    let mut released = Vec::new();
    let result = prune_page(rel, &mut guard, &horizon, DeadLines::Keep, &mut released);
    drop(guard);
    let result = result.or_raise();
    values::release(storage, &released, wait).or_raise();
    // What became dead still waits for VACUUM and counts on.
    if result.removed > result.newly_dead {
        // SAFETY: the relation is open.
        unsafe { pg_sys::pgstat_update_heap_dead_tuples(rel, (result.removed - result.newly_dead) as i32) };
    }
}

/// Removes what nobody can see from a page.
///
/// The caller holds the only pin. The overflow values of the removed versions are appended to `released`, to be given back with
/// [`values::release`] once the latch is gone. The free space gained is not noted in the directory: it is meant for updates of
/// the same page.
///
/// # Errors
/// `Corrupt` if the page's chains do not fit together; nothing is changed then.
pub fn prune_page<P: Borrow<Pin>>(
    rel: pg_sys::Relation,
    guard: &mut Exclusive<P>,
    horizon: &Horizon,
    dead_lines: DeadLines,
    released: &mut Vec<u32>,
) -> Result<PruneResult> {
    let page = guard.page();
    let lsn = page.lsn();
    let judge = |offset: u16, header: &mut Header| {
        let mut hints = 0;
        let state = horizon.judge(header, lsn, &mut hints);
        keep_hints(guard, page, offset, header, hints);
        state
    };
    let plan = plan_prune(page, dead_lines, judge, |multi| PostgresStatus.multi_update_xid(multi));
    if plan.actions.is_empty() {
        note_nothing_to_prune(guard, &plan);
        return Ok(PruneResult::default());
    }
    let before = released.len();
    removed_offsets(&plan.actions).for_each(|offset| {
        if let Some(version) = page.version(offset).filter(|version| version.has_external()) {
            values::named_by(rel, version.bytes(), released);
        }
    });
    apply(guard, &plan).inspect_err(|_| released.truncate(before))?;
    Ok(PruneResult { removed: plan.removed, newly_dead: plan.actions.dead.len() as u32 })
}

/// The line pointers that lose what they have: a version, as a rule.
fn removed_offsets(actions: &PruneActions) -> impl Iterator<Item = u16> {
    let roots = actions.redirected.iter().map(|&(from, _)| from);
    actions.dead.iter().chain(&actions.unused).copied().chain(roots)
}

fn apply<P: Borrow<Pin>>(guard: &mut Exclusive<P>, plan: &PrunePlan) -> Result<()> {
    let mut result = Ok(());
    change_page(guard, |page, record| {
        // A page that does not suit its own plan is damaged; the empty record that remains changes nothing in replay.
        result = page.apply_prune(&plan.actions);
        if result.is_ok() {
            page.set_prune_xid(plan.new_prune_xid);
            record.prune(&plan.actions).prune_xid(plan.new_prune_xid);
        }
    });
    result
}

/// Remembers that a prune found nothing, as a hint that may be lost: the next access shall not try again at once.
fn note_nothing_to_prune<P: Borrow<Pin>>(guard: &mut Exclusive<P>, plan: &PrunePlan) {
    let page = guard.page();
    if page.prune_xid() != plan.new_prune_xid || page.flags() & FULL != 0 {
        let mut page = guard.page_mut();
        page.set_prune_xid(plan.new_prune_xid);
        page.clear_flags(FULL);
    }
}
