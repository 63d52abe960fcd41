//! Which pages may go into a segment: those in which nothing is left to decide.

use kalamdb_engine::Result;
use kalamdb_engine::cache::Pin;
use kalamdb_engine::ids::{INVALID_XID, Xid};
use kalamdb_engine::page::infomask::{HEAP_XMAX_INVALID, HEAP_XMIN_COMMITTED};
use kalamdb_engine::page::{DeadLines, Header, PAGE_SIZE, Page, PageKind, TupleState};
use kalamdb_engine::visibility;
use pgrx::pg_sys;

use crate::error::OrRaise;
use crate::tableam::prune::{Horizon, keep_hints, prune_page};
use crate::tableam::status::{PostgresStatus, refresh_reference, widen};
use crate::tableam::values;
use crate::wal;

use super::table::Table;

/// What a look at a block found.
pub enum Found {
    /// The page is copied and may go. As long as it is pinned, nobody prunes it and frees large values of its rows.
    Ready(Pin),
    /// There is nothing in it that was looked for.
    Nothing,
    /// Something on it is younger than a snapshot, deleted, locked or dead.
    Busy,
}

/// What a page is like.
enum Rest {
    /// There is no row in it, or it is cold.
    Nothing,
    /// At rest, and copied.
    Copied,
    /// Nothing stands in the way but versions that nobody can see.
    HasDead,
    /// Nothing stands in the way but a commit that may not be in the flushed log yet.
    Unflushed,
    /// Somebody may still need it as it is.
    Busy,
}

/// Looks at pages for one run.
pub struct Examiner {
    oldest_xmin: Xid,
    horizon: Horizon,
    copy: Box<[u8; PAGE_SIZE]>,
}

impl Examiner {
    /// For a run that begins now. Whatever ended before now is visible to all by the horizon of now.
    pub fn new(rel: pg_sys::Relation) -> Examiner {
        refresh_reference();
        // SAFETY: the relation is open. The horizon counts in replication slots and the feedback of replicas.
        let oldest_xmin = widen(unsafe { pg_sys::GetOldestNonRemovableTransactionId(rel) });
        Examiner { oldest_xmin, horizon: Horizon::of(rel).at_least(oldest_xmin), copy: Box::new([0; PAGE_SIZE]) }
    }

    /// The page that [`Examiner::examine`] copied last.
    pub fn page(&self) -> Page<'_> {
        Page::new(&self.copy[..])
    }

    /// Copies the page of a block if it may go.
    ///
    /// # Errors
    /// Those of the cache.
    pub fn examine(&mut self, table: &Table, block: u32) -> Result<Found> {
        let key = table.storage.block(block);
        let cached = table.storage.cache.lookup(key);
        let is_new = cached.is_none();
        let pin = match cached {
            Some(pin) => pin,
            None => table.storage.cache.read(key, &table.wait)?,
        };
        if is_new {
            pin.cool();
        }
        let mut rest = self.look(table, &pin)?;
        if matches!(rest, Rest::HasDead) {
            self.prune(table, &pin);
            rest = self.look(table, &pin)?;
        }
        if matches!(rest, Rest::Unflushed) {
            // Postgres notes one position for the commits of many neighbours, so an asynchronous one is enough for it.
            wal::flush(wal::end_lsn());
            rest = self.look(table, &pin)?;
        }
        Ok(match rest {
            Rest::Nothing => Found::Nothing,
            Rest::Copied => Found::Ready(pin),
            Rest::HasDead | Rest::Unflushed | Rest::Busy => Found::Busy,
        })
    }

    /// Judges a page and copies it if everything on it is at rest.
    fn look(&mut self, table: &Table, pin: &Pin) -> Result<Rest> {
        let guard = pin.shared(&table.wait)?;
        let page = guard.page();
        if page.kind() != PageKind::Data || page.is_cold() || page.versions().next().is_none() {
            return Ok(Rest::Nothing);
        }
        let rest = self.judge(&guard, page);
        if matches!(rest, Rest::Copied) {
            page.copy_to(&mut self.copy);
        }
        Ok(rest)
    }

    /// Copies the page of a block that is cold; otherwise there is nothing to copy.
    ///
    /// # Errors
    /// Those of the cache.
    pub fn copy_cold(&mut self, table: &Table, block: u32) -> Result<Found> {
        let key = table.storage.block(block);
        let cached = table.storage.cache.lookup(key);
        let is_new = cached.is_none();
        let pin = match cached {
            Some(pin) => pin,
            None => table.storage.cache.read(key, &table.wait)?,
        };
        let guard = pin.shared(&table.wait)?;
        let is_cold = guard.page().is_cold();
        if is_cold {
            guard.page().copy_to(&mut self.copy);
        }
        drop(guard);
        if is_new {
            pin.cool();
        }
        Ok(if is_cold { Found::Ready(pin) } else { Found::Nothing })
    }

    /// Takes away what nobody can see, if nobody else has the page pinned.
    fn prune(&self, table: &Table, pin: &Pin) {
        let mut released = Vec::new();
        let Some(mut guard) = pin.try_exclusive() else { return };
        if guard.page().kind() != PageKind::Data || guard.page().is_cold() || !guard.sole_pin() {
            return;
        }
        let result = prune_page(table.rel, &mut guard, &self.horizon, DeadLines::Keep, &mut released);
        drop(guard);
        result.or_raise();
        values::release(&table.storage, &released, &table.wait).or_raise();
    }

    /// At rest is a page of which every snapshot sees every version, now and later, and nobody deletes or locks one.
    fn judge(&self, pin: &Pin, page: Page<'_>) -> Rest {
        let mut rest = Rest::Copied;
        for (offset, version) in page.versions() {
            let mut header = version.header();
            let mut hints = 0;
            let state = visibility::satisfies_vacuum(&header, self.oldest_xmin, &PostgresStatus, page.lsn(), &mut hints);
            keep_hints(pin, page, offset, &mut header, hints);
            if state == TupleState::Dead {
                rest = Rest::HasDead;
            } else if !self.is_settled(&header, state) {
                return Rest::Busy;
            } else if header.infomask & HEAP_XMIN_COMMITTED == 0 {
                // The hint says that the commit is in the flushed log, or before the page's LSN, up to which the log is flushed
                // before the segment counts.
                return Rest::Unflushed;
            }
        }
        rest
    }

    fn is_settled(&self, header: &Header, state: TupleState) -> bool {
        let free = header.infomask & HEAP_XMAX_INVALID != 0 || header.xmax == INVALID_XID;
        state == TupleState::Live && free && header.effective_xmin() < self.oldest_xmin
    }
}
