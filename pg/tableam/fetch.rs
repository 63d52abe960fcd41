//! Fetches row versions by TID: for index scans, the executor's second looks, and TID scans.

use kalamdb_engine::cache::{Pin, Wait};
use kalamdb_engine::ids::{Lsn, Tid, Xid};
use kalamdb_engine::page::{ChainVisitor, Header, Page, PageKind, TupleState, hot_search};
use kalamdb_engine::visibility::{self, TransactionStatus};
use pgrx::{pg_guard, pg_sys};

use super::pins::{self, NO_FRAME};
use super::prune;
use super::raw;
use super::row::set_hints;
use super::slot::{TuplePlace, item_pointer, store_version, tid_of};
use super::status::{PostgresStatus, SnapshotView, narrow};
use super::storage::Storage;
use super::stream::{Expiry, frees_key};
use crate::error::OrRaise;
use crate::ffi::interrupts::BackendWait;
use crate::ffi::{plain, unguarded};
use crate::gate::{Access, in_query, is_partitioned};

/// Puts a version into a slot, if it is there at all.
///
/// # Safety
/// `slot` is a slot of ours for `rel`.
pub unsafe fn store_row(
    rel: pg_sys::Relation,
    storage: &Storage,
    tid: Tid,
    slot: *mut pg_sys::TupleTableSlot,
    wait: &dyn Wait,
) -> bool {
    let pin = storage.cache.read(storage.block(tid.block), wait).or_raise();
    let place = {
        let guard = pin.shared(wait).or_raise();
        version_place(&pin, guard.page(), tid.offset)
    };
    // SAFETY: the pin keeps the version in place until the slot has its own.
    unsafe {
        place.is_some_and(|place| {
            store_version(slot, rel, storage, place, tid);
            true
        })
    }
}

/// Where a version lies in its pinned page.
#[inline]
pub fn version_place(pin: &Pin, page: Page<'_>, offset: u16) -> Option<TuplePlace> {
    let line = page.line(offset);
    if !line.is_normal() {
        return None;
    }
    Some(TuplePlace { frame: pin.frame(), page: pin.data(), offset: line.offset(), len: line.len() })
}

/// Reports to Postgres' serialisable isolation what a reader passes over or sees.
///
/// # Safety
/// `rel` and the snapshot are those of the running scan.
pub unsafe fn check_conflict_out(rel: pg_sys::Relation, view: &SnapshotView, visible: bool, header: &Header) {
    // SAFETY: see above.
    unsafe {
        if !raw::CheckForSerializableConflictOutNeeded(rel, view.raw) {
            return;
        }
        let (mut hints, mut dead_after) = (0, 0);
        let state = visibility::satisfies_vacuum_horizon(header, &PostgresStatus, Lsn::INVALID, &mut hints, &mut dead_after);
        let xid = match state {
            TupleState::Live if visible => return,
            TupleState::Live => header.effective_xmin(),
            TupleState::RecentlyDead | TupleState::DeleteInProgress => {
                if visible {
                    visibility::update_xid(header, &PostgresStatus)
                } else {
                    header.effective_xmin()
                }
            }
            TupleState::InsertInProgress => header.effective_xmin(),
            TupleState::Dead => return,
        };
        if PostgresStatus.is_current(xid) || xid < 3 {
            return;
        }
        // Postgres itself maps the id to its top-level transaction where that matters.
        let top = pg_sys::SubTransGetTopmostTransaction(narrow(xid));
        raw::CheckForSerializableConflictOut(rel, top, view.raw);
    }
}

/// The walk along a chain of versions under a snapshot.
struct Walk<'a> {
    rel: pg_sys::Relation,
    view: &'a SnapshotView,
    pin: &'a Pin,
    page: Page<'a>,
    hint_lsn: Lsn,
    serializable: bool,
    vistest: *mut pg_sys::GlobalVisState,
    /// Whether the caller wants to know that everything is dead.
    wants_dead: bool,
}

impl ChainVisitor for Walk<'_> {
    #[inline]
    fn visible(&mut self, offset: u16, header: &mut Header) -> bool {
        let mut hints = 0;
        let seen = self.view.sees(header, self.hint_lsn, &mut hints);
        if hints != 0 {
            header.infomask |= hints;
            set_hints(self.pin, self.page, offset, hints);
        }
        if self.serializable {
            // SAFETY: the scan's own relation and snapshot.
            unsafe { check_conflict_out(self.rel, self.view, seen, header) };
        }
        seen
    }

    fn surely_dead(&mut self, _offset: u16, header: &Header) -> bool {
        if !self.wants_dead {
            return false;
        }
        // SAFETY: the horizon is this backend's own state.
        unsafe {
            if self.vistest.is_null() {
                self.vistest = pg_sys::GlobalVisTestFor(self.rel);
            }
            visibility::is_surely_dead(header, |xid| pg_sys::GlobalVisTestIsRemovableXid(self.vistest, narrow(xid)))
        }
    }

    fn multi_update_xid(&mut self, multi: u32) -> Xid {
        PostgresStatus.multi_update_xid(multi)
    }
}

/// What a search along a chain found.
pub struct ChainHit {
    /// The visible version.
    pub found: Option<u16>,
    /// No snapshot will ever see any version of the chain.
    pub all_dead: bool,
}

/// Finds the version of a chain that a snapshot sees; the page is latched by the caller.
pub fn search_chain(
    rel: pg_sys::Relation,
    storage: &Storage,
    view: &SnapshotView,
    pin: &Pin,
    page: Page<'_>,
    root: Tid,
    first: bool,
    wants_dead: bool,
) -> ChainHit {
    // SAFETY: the scan's own relation and snapshot.
    let serializable = view.is_mvcc() && unsafe { needs_conflict_checks(rel, view) };
    let hint_lsn = storage.hint_lsn(page);
    let mut walk = Walk { rel, view, pin, page, hint_lsn, serializable, vistest: std::ptr::null_mut(), wants_dead };
    let found = hot_search(page, root.offset, first, &mut walk);
    ChainHit { found: found.found, all_dead: found.all_dead }
}

/// Whether the transaction is serialisable and the relation takes part.
///
/// # Safety
/// The scan's own relation and snapshot.
#[inline]
pub unsafe fn needs_conflict_checks(rel: pg_sys::Relation, view: &SnapshotView) -> bool {
    // SAFETY: XactIsoLevel is a plain global; the function looks at this backend's state.
    unsafe {
        pg_sys::XactIsoLevel as u32 == pg_sys::XACT_SERIALIZABLE && raw::CheckForSerializableConflictOutNeeded(rel, view.raw)
    }
}

/// The state of an index scan's fetches.
#[repr(C)]
struct IndexFetch {
    base: pg_sys::IndexFetchTableData,
    storage: Storage,
    view: SnapshotView,
    view_of: pg_sys::Snapshot,
    view_curcid: u32,
    view_xmin: u32,
    view_xmax: u32,
    frame: u32,
    block: u32,
    /// Which rows the statement reaches.
    access: Access,
    /// Whether that holds for checks of keys too.
    checks_keys: bool,
    /// Which rows are gone.
    expiry: Expiry,
    /// The version the last call returned, for snapshots that see several.
    last: u16,
}

/// Begins the fetches of an index scan.
#[pg_guard]
pub unsafe extern "C-unwind" fn index_fetch_begin(rel: pg_sys::Relation) -> *mut pg_sys::IndexFetchTableData {
    // SAFETY: a zeroed chunk in the executor's memory context, filled below.
    unsafe {
        let fetch = unguarded::palloc0(size_of::<IndexFetch>()).cast::<IndexFetch>();
        (*fetch).base.rel = rel;
        let storage = Storage::of(rel);
        (&raw mut (*fetch).storage).write(storage);
        let wait = BackendWait::new(storage.cache);
        (&raw mut (*fetch).access).write(Access::of_statement(rel, &storage, &wait));
        (*fetch).checks_keys = in_query();
        (&raw mut (*fetch).expiry).write(Expiry::of_transaction(rel, &storage, &wait));
        (*fetch).frame = NO_FRAME;
        fetch.cast()
    }
}

/// Gives up the pin on the current page.
#[pg_guard]
pub unsafe extern "C-unwind" fn index_fetch_reset(fetch: *mut pg_sys::IndexFetchTableData) {
    // SAFETY: made by `index_fetch_begin`.
    unsafe { unpin(&mut *fetch.cast::<IndexFetch>()) };
}

fn unpin(fetch: &mut IndexFetch) {
    if fetch.frame != NO_FRAME {
        pins::give_back(fetch.storage.cache, fetch.frame);
        fetch.frame = NO_FRAME;
    }
}

/// Ends the fetches.
#[pg_guard]
pub unsafe extern "C-unwind" fn index_fetch_end(fetch: *mut pg_sys::IndexFetchTableData) {
    // SAFETY: made by `index_fetch_begin` and not used afterwards.
    unsafe {
        unpin(&mut *fetch.cast::<IndexFetch>());
        plain::pfree(fetch.cast());
    }
}

/// Fetches the version that the snapshot sees of the row an index entry names.
#[pg_guard]
pub unsafe extern "C-unwind" fn index_fetch_tuple(
    fetch: *mut pg_sys::IndexFetchTableData,
    tid: pg_sys::ItemPointer,
    snapshot: pg_sys::Snapshot,
    slot: *mut pg_sys::TupleTableSlot,
    call_again: *mut bool,
    all_dead: *mut bool,
) -> bool {
    // SAFETY: Postgres keeps the contract of the callback; `fetch` was made by `index_fetch_begin`.
    unsafe {
        let fetch = &mut *fetch.cast::<IndexFetch>();
        let rel = fetch.base.rel;
        let root = tid_of(&*tid);
        let wait = BackendWait::new(fetch.storage.cache);
        refresh_view(fetch, snapshot);
        if !*call_again && (fetch.frame == NO_FRAME || fetch.block != root.block) {
            unpin(fetch);
            if root.block >= fetch.storage.blocks() {
                return false;
            }
            let Some(pin) = reach(fetch).pin_block(&fetch.storage, root.block, &wait).or_raise() else { return false };
            prune::on_access(rel, &fetch.storage, &pin, &wait);
            fetch.frame = pins::keep(pin);
            fetch.block = root.block;
        }
        let pin = BorrowedPin::of(&fetch.storage, fetch.frame);
        let (hit, place) = {
            let guard = pin.get().shared(&wait).or_raise();
            let page = guard.page();
            let start = if *call_again { Tid::new(root.block, fetch.last) } else { root };
            let mut hit =
                search_chain(rel, &fetch.storage, &fetch.view, pin.get(), page, start, !*call_again, !all_dead.is_null());
            // Versions of streams stand alone, so nothing else is to be found behind one that is gone.
            hit.found = hit.found.filter(|found| {
                let gone = fetch.expiry.gone_time(page, *found);
                // A check of a unique key asks whether the key may be given out again.
                gone.is_some_and(|time| fetch.view.is_dirty() && !frees_key(rel, &fetch.storage, time, &wait)) || gone.is_none()
            });
            // A page that is missing, as its segment is lost, may come back: the index entry stays.
            hit.all_dead &= page.kind() == PageKind::Data;
            let place = hit.found.and_then(|offset| version_place(pin.get(), page, offset));
            (hit, place)
        };
        if !all_dead.is_null() {
            *all_dead = hit.all_dead;
        }
        let (Some(offset), Some(place)) = (hit.found, place) else {
            *call_again = false;
            return false;
        };
        // Only an MVCC snapshot sees at most one version of a chain.
        *call_again = !fetch.view.is_mvcc();
        fetch.last = offset;
        let found = Tid::new(root.block, offset);
        if fetch.view.is_mvcc() && pg_sys::XactIsoLevel as u32 == pg_sys::XACT_SERIALIZABLE {
            predicate_lock(rel, &fetch.view, found, place);
        }
        store_version(slot, rel, &fetch.storage, place, found);
        // The executor and ON CONFLICT want the TID of the version, which may differ from the index entry's.
        *tid = item_pointer(found);
        true
    }
}

/// What the statement may look at.
///
/// A key that a query is about to insert may name another user: ON CONFLICT must not find theirs. Checks outside of queries, such
/// as deferred ones, come when the session may act for another user, and look at all: they meet rows of the same user only, as
/// the keys begin with the user.
fn reach(fetch: &IndexFetch) -> Access {
    if fetch.view.is_mvcc() || fetch.view.is_horizon() || fetch.checks_keys { fetch.access } else { Access::All }
}

/// Locks a read version for serialisable isolation.
///
/// # Safety
/// The scan's own relation and snapshot; `place` is pinned.
pub unsafe fn predicate_lock(rel: pg_sys::Relation, view: &SnapshotView, tid: Tid, place: TuplePlace) {
    // SAFETY: see above.
    unsafe {
        let header = place.page.add(place.offset + kalamdb_engine::page::PREFIX) as *const pg_sys::HeapTupleHeaderData;
        let mut pointer = item_pointer(tid);
        raw::PredicateLockTID(rel, &mut pointer, view.raw, (*header).t_choice.t_heap.t_xmin);
    }
}

fn refresh_view(fetch: &mut IndexFetch, snapshot: pg_sys::Snapshot) {
    // SAFETY: Postgres passes a live snapshot.
    let (curcid, xmin, xmax) = unsafe { ((*snapshot).curcid, (*snapshot).xmin.into_inner(), (*snapshot).xmax.into_inner()) };
    let same = fetch.view_curcid == curcid && fetch.view_xmin == xmin && fetch.view_xmax == xmax;
    if same && fetch.view_of == snapshot && fetch.view.is_mvcc() {
        return;
    }
    fetch.view = SnapshotView::new(snapshot);
    fetch.view_of = snapshot;
    fetch.view_curcid = curcid;
    fetch.view_xmin = xmin;
    fetch.view_xmax = xmax;
}

/// A pin that belongs to the resource owner, borrowed for one call.
pub struct BorrowedPin(std::mem::ManuallyDrop<Pin>);

impl BorrowedPin {
    /// Borrows a kept pin.
    pub fn of(storage: &Storage, frame: u32) -> BorrowedPin {
        BorrowedPin(std::mem::ManuallyDrop::new(storage.cache.adopt_pin(frame)))
    }

    /// The pin.
    #[inline]
    pub fn get(&self) -> &Pin {
        &self.0
    }
}

/// Fetches exactly the version with a TID, if the snapshot sees it.
#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_fetch_row_version(
    rel: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    snapshot: pg_sys::Snapshot,
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    let storage = Storage::of(rel);
    let wait = BackendWait::new(storage.cache);
    // SAFETY: Postgres passes a TID, a live snapshot and a slot of ours.
    unsafe {
        let tid = tid_of(&*tid);
        if tid.block >= storage.blocks() {
            return false;
        }
        let view = SnapshotView::new(snapshot);
        // Triggers and second looks ask for versions they know, by other snapshots.
        let access = if view.is_mvcc() { Access::of_statement(rel, &storage, &wait) } else { Access::All };
        let expiry = if view.is_mvcc() { Expiry::of_transaction(rel, &storage, &wait) } else { Expiry::NEVER };
        let Some(pin) = access.pin_block(&storage, tid.block, &wait).or_raise() else { return false };
        let place = {
            let guard = pin.shared(&wait).or_raise();
            let page = guard.page();
            let Some(version) = page.version(tid.offset) else { return false };
            let header = version.header();
            let mut hints = 0;
            let seen = view.sees(&header, storage.hint_lsn(page), &mut hints);
            set_hints(&pin, page, tid.offset, hints);
            let place = version_place(&pin, page, tid.offset);
            if view.is_mvcc() && needs_conflict_checks(rel, &view) {
                check_conflict_out(rel, &view, seen, &header);
                if seen && let Some(place) = place {
                    predicate_lock(rel, &view, tid, place);
                }
            }
            if !seen || expiry.is_gone(page, tid.offset) {
                return false;
            }
            place
        };
        let Some(place) = place else { return false };
        store_version(slot, rel, &storage, place, tid);
        true
    }
}

/// Whether a block that a TID names may be looked at for a function, as `currtid2()`: what the statement that calls it may look at is
/// not the function's.
fn may_tell_of(rel: pg_sys::Relation, storage: &Storage, block: u32, wait: &dyn Wait) -> bool {
    !is_partitioned(rel) || Access::for_function(rel, storage, wait).allows_block(storage, block, wait).or_raise()
}

/// Whether a TID can name a row of the scanned table.
#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_tid_valid(scan: pg_sys::TableScanDesc, tid: pg_sys::ItemPointer) -> bool {
    // SAFETY: Postgres passes an open scan and a TID.
    unsafe {
        let (rel, tid) = ((*scan).rs_rd, tid_of(&*tid));
        let storage = Storage::of(rel);
        let exists = tid.offset != 0 && tid.block < storage.blocks();
        exists && may_tell_of(rel, &storage, tid.block, &BackendWait::new(storage.cache))
    }
}

/// Follows a row's updates to the newest version that the scan's snapshot sees.
#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_get_latest_tid(scan: pg_sys::TableScanDesc, tid: pg_sys::ItemPointer) {
    // SAFETY: Postgres passes an open scan and a TID it has checked.
    unsafe {
        let rel = (*scan).rs_rd;
        let storage = Storage::of(rel);
        let wait = BackendWait::new(storage.cache);
        let view = SnapshotView::new((*scan).rs_snapshot);
        let mut current = tid_of(&*tid);
        let mut prior: Xid = 0;
        if !may_tell_of(rel, &storage, current.block, &wait) {
            return;
        }
        loop {
            let pin = storage.cache.read(storage.block(current.block), &wait).or_raise();
            let guard = pin.shared(&wait).or_raise();
            let Some(version) = guard.page().version(current.offset) else { return };
            let header = version.header();
            if prior != 0 && header.effective_xmin() != prior {
                return;
            }
            let mut hints = 0;
            if view.sees(&header, guard.page().lsn(), &mut hints) {
                *tid = item_pointer(current);
            }
            let ends = header.infomask & kalamdb_engine::page::infomask::HEAP_XMAX_INVALID != 0
                || header.ctid == current
                || header.ctid.offset == kalamdb_engine::page::infomask::MOVED_PARTITIONS_OFFSET
                || visibility::header_is_only_locked(&header, &PostgresStatus);
            if ends {
                return;
            }
            prior = visibility::update_xid(&header, &PostgresStatus);
            current = header.ctid;
        }
    }
}

/// Whether a snapshot sees the version in a slot.
#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_satisfies_snapshot(
    rel: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    snapshot: pg_sys::Snapshot,
) -> bool {
    let storage = Storage::of(rel);
    let wait = BackendWait::new(storage.cache);
    // SAFETY: Postgres passes a slot with a stored row of the relation.
    unsafe {
        let tid = tid_of(&(*slot).tts_tid);
        let view = SnapshotView::new(snapshot);
        let pin = storage.cache.read(storage.block(tid.block), &wait).or_raise();
        let guard = pin.shared(&wait).or_raise();
        let Some(version) = guard.page().version(tid.offset) else { return false };
        let mut hints = 0;
        view.sees(&version.header(), guard.page().lsn(), &mut hints)
    }
}
