//! Stream tables: user tables whose rows vanish a while after their insertion.
//!
//! Each version says when it was inserted. A statement does not see rows whose time has come by the start of its transaction, so
//! that a repeated query agrees with itself. Their storage is given back by [`evict`]: it begins an [era](kalamdb_engine::cache::Eras)
//! in which they have vanished, turns the versions into ones that were never there once no running transaction can see them, and
//! lets VACUUM's passes remove them from indexes and pages. Pages of times tell it which blocks to look at: those whose oldest row
//! has expired, and the empty ones once in the lifetime of a row.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kalamdb_engine::Result;
use kalamdb_engine::cache::Readers;
use kalamdb_engine::ids::PageNumber;
use kalamdb_engine::page::infomask::HEAP_XMIN_COMMITTED;
use kalamdb_engine::page::{BlockTime, Header, PAGE_SIZE, Page, PageKind, PageMut, TIMES_FANOUT};
use kalamdb_engine::visibility::TransactionStatus;
use pgrx::pg_sys;

use super::change::change_page;
use super::status::PostgresStatus;
use super::storage::{Storage, relation_name};
use super::{is_stream_routine, vacuum};
use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::compat;
use crate::ffi::interrupts::{BackendWait, check_for_interrupts, sleep};
use crate::ffi::plain;
use crate::{gate, options, wal};

/// Whether rows of a relation vanish.
#[inline]
pub fn is_stream(rel: pg_sys::Relation) -> bool {
    // SAFETY: an open relation.
    is_stream_routine(unsafe { (*rel).rd_tableam })
}

/// Milliseconds since 2000 of one of Postgres' timestamps.
fn millis(timestamp: pg_sys::TimestampTz) -> i64 {
    timestamp.div_euclid(1000)
}

/// Which rows are gone: those inserted at this time, in milliseconds since 2000, or before.
#[derive(Clone, Copy)]
pub struct Expiry {
    until: i64,
}

impl Expiry {
    /// No rows are gone.
    pub const NEVER: Expiry = Expiry { until: i64::MIN };

    /// What is gone for the running transaction, which has a snapshot.
    #[inline]
    pub fn of_transaction(rel: pg_sys::Relation, storage: &Storage, wait: &BackendWait) -> Expiry {
        if is_stream(rel) { Expiry::of_stream(rel, storage, wait) } else { Expiry::NEVER }
    }

    /// What is gone for everybody.
    pub fn for_everybody(rel: pg_sys::Relation, storage: &Storage) -> Expiry {
        if is_stream(rel) { Expiry { until: storage.descriptor.eras.vanished_for_all() } } else { Expiry::NEVER }
    }

    fn of_stream(rel: pg_sys::Relation, storage: &Storage, wait: &BackendWait) -> Expiry {
        // SAFETY: a value of the process; parallel workers have their leader's.
        let start = unsafe { plain::GetCurrentTransactionStartTimestamp() };
        let vanished = storage.descriptor.eras.vanished_for(start, wait).or_raise();
        Expiry { until: Expiry::at(rel, millis(start)).until.max(vanished) }
    }

    fn at(rel: pg_sys::Relation, now: i64) -> Expiry {
        // SAFETY: the relation is open.
        let lifetime = options::of(unsafe { (*rel).rd_id }).ttl_us();
        lifetime.map_or(Expiry::NEVER, |lifetime| Expiry { until: now.saturating_sub(lifetime.div_euclid(1000)) })
    }

    /// Whether some rows may be gone.
    #[inline]
    pub fn applies(self) -> bool {
        self.until != i64::MIN
    }

    /// Whether a version is gone.
    #[inline]
    pub fn is_gone(self, page: Page<'_>, offset: u16) -> bool {
        self.gone_time(page, offset).is_some()
    }

    /// When a version was inserted that is gone.
    #[inline]
    pub fn gone_time(self, page: Page<'_>, offset: u16) -> Option<i64> {
        if self.applies() { page.row_time(offset).filter(|time| *time <= self.until) } else { None }
    }
}

/// The time that a new row of a stream gets; none in other tables. Raises an error when the stream has no lifetime yet.
pub fn time_of_insert(rel: pg_sys::Relation) -> Option<i64> {
    if !is_stream(rel) {
        return None;
    }
    if gate::works_on_whole_tables() {
        raise(
            SqlError::unsupported("rows of a stream table cannot be written anew")
                .with_hint("Make another stream table; rows of this one vanish by themselves."),
        );
    }
    // A dump brings the rows of some schemas before it brings the options; they vanish once there is a lifetime.
    // SAFETY: the relation is open.
    if options::of(unsafe { (*rel).rd_id }).ttl_us().is_none() && !gate::acts_for_everybody() {
        let name = relation_name(rel);
        raise(
            SqlError::prerequisite(format!("stream table \"{name}\" has no lifetime for its rows"))
                .with_detail("Option \"ttl\" says how long rows live after their insertion.")
                .with_hint(format!("Use ALTER TABLE {name} SET (kalam.ttl = '1 minute').")),
        );
    }
    // SAFETY: reads the clock.
    Some(millis(unsafe { pg_sys::GetCurrentTimestamp() }))
}

/// Notes the time of a version that was just added; the page's own when the version is its first.
pub fn note_time(
    page: &mut PageMut<'_>,
    record: &mut kalamdb_engine::log::RecordBuilder,
    offset: u16,
    time: Option<i64>,
    is_first: bool,
) {
    let Some(time) = time else { return };
    if is_first {
        let seconds = u32::try_from(time.div_euclid(1000)).unwrap_or(0);
        page.set_seconds(seconds);
        record.seconds(seconds);
    }
    page.set_row_time(offset, time);
}

fn not_built(rel: pg_sys::Relation, what: &str) -> SqlError {
    SqlError::unsupported(format!("stream table \"{}\" cannot {what}", relation_name(rel)))
}

/// Refuses an update of a stream's row.
pub fn refuse_update(rel: pg_sys::Relation) {
    if is_stream(rel) {
        raise(not_built(rel, "be updated").with_hint("Rows of streams are events: insert another one, or delete it."));
    }
}

/// Refuses what writes the rows of a stream anew.
pub fn refuse_rewrite(rel: pg_sys::Relation) {
    if is_stream(rel) {
        raise(not_built(rel, "be rewritten").with_hint("VACUUM gives the storage of expired rows back."));
    }
}

/// When the other transactions that hold a snapshot began.
fn readers() -> Readers {
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let mut readers = Readers { oldest: now, newest: now };
    // SAFETY: reads the server's table of sessions, of which Postgres makes a local copy.
    unsafe {
        pg_sys::pgstat_clear_backend_activity_snapshot();
        for number in 1..=pg_sys::pgstat_fetch_stat_numbackends() {
            let entry = compat::session_entry(number);
            if entry.is_null() || (*entry).backend_xmin == pg_sys::InvalidTransactionId {
                continue;
            }
            let status = &(*entry).backendStatus;
            if status.st_procpid == pg_sys::MyProcPid {
                continue;
            }
            let kind = status.st_backendType;
            let has_statements = kind == pg_sys::BackendType::B_BACKEND || kind == pg_sys::BackendType::B_BG_WORKER;
            let start = if status.st_xact_start_timestamp != 0 {
                status.st_xact_start_timestamp
            } else if has_statements {
                // With track_activities off it does not say when its transaction began.
                status.st_proc_start_timestamp
            } else {
                continue;
            };
            readers = Readers { oldest: readers.oldest.min(start), newest: readers.newest.max(start) };
        }
        pg_sys::pgstat_clear_backend_activity_snapshot();
    }
    readers
}

/// Whether the key of an expired row is free: whether nobody sees the row, and nobody will. A transaction may have begun before the row
/// expired, and would see another one with its key.
pub fn frees_key(rel: pg_sys::Relation, storage: &Storage, time: i64, wait: &BackendWait) -> bool {
    let by_start = |start| Expiry::at(rel, millis(start)).until;
    storage.descriptor.eras.vanish_at_once(time, wait, readers, by_start).or_raise()
}

/// How long an eviction waits for the statements that run when it begins.
const PATIENCE: Duration = Duration::from_millis(500);

/// Makes rows that were inserted at a time or before it vanish for all transactions to come. Those until the time that it returns have vanished
/// for everybody: the same ones, unless a transaction of before goes on for longer than [`PATIENCE`].
fn vanish(storage: &Storage, until: i64, wait: &BackendWait) -> i64 {
    let eras = &storage.descriptor.eras;
    let begun = Instant::now();
    // They vanish in one era, and everybody has looked in it by the next.
    let mut left = 2;
    while left > 0 {
        let mut oldest = 0;
        let ask = || {
            let readers = readers();
            oldest = readers.oldest;
            readers
        };
        if eras.begin_era(until, wait, ask).or_raise() {
            left -= 1;
            continue;
        }
        // SAFETY: reads the clock.
        let age = Duration::from_micros(unsafe { pg_sys::GetCurrentTimestamp() }.saturating_sub(oldest).max(0) as u64);
        if begun.elapsed() + age > PATIENCE {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    eras.vanished_for_all()
}

/// What an eviction did.
#[derive(Clone, Copy, Default)]
pub struct Evicted {
    /// Rows that are gone.
    pub rows: u64,
    /// Blocks that were looked at.
    pub looked_at: u64,
    /// Whether rows are left, those of running transactions included.
    pub left: bool,
}

/// Turns expired versions into ones that were never there; looks at every block.
pub fn expire(rel: pg_sys::Relation) {
    Eviction::new(rel).expire(true);
}

/// An eviction on its way through the blocks.
struct Eviction {
    storage: Storage,
    wait: BackendWait,
    /// What has vanished for everybody.
    expiry: Expiry,
    /// The clock when it began, in milliseconds since 2000.
    now: i64,
    evicted: Evicted,
    /// The blocks with versions that are to be removed.
    dead: Vec<u32>,
}

/// What a look at a block's page found.
#[derive(Default)]
struct Found {
    /// When the oldest row that stays was inserted.
    oldest: Option<i64>,
    /// The rows whose time has come.
    gone: Vec<u16>,
    /// Something is to be removed.
    has_dead: bool,
}

impl Eviction {
    fn new(rel: pg_sys::Relation) -> Eviction {
        let storage = Storage::of(rel);
        let wait = BackendWait::new(storage.cache);
        // SAFETY: the relation is open; reads the clock.
        let (most, now) = unsafe { (options::of((*rel).rd_id).max_bytes(), millis(pg_sys::GetCurrentTimestamp())) };
        // A few blocks cannot hold that much, however full they are.
        let most = most.filter(|most| u64::from(storage.blocks()) * PAGE_SIZE as u64 > *most);
        let surplus = most.map_or(i64::MIN, |most| newest_above(&storage, most, &wait));
        let until = vanish(&storage, Expiry::at(rel, now).until.max(surplus), &wait);
        Eviction { storage, wait, expiry: Expiry { until }, now, evicted: Evicted::default(), dead: Vec::new() }
    }

    /// Goes over all blocks, or those that may have rows whose time has come.
    fn expire(&mut self, all: bool) {
        let blocks = self.storage.blocks();
        for number in 0..blocks.div_ceil(TIMES_FANOUT) {
            let first = number * TIMES_FANOUT;
            let of_page = 0..blocks.saturating_sub(first).min(TIMES_FANOUT);
            let known = self.known_times(number, of_page.clone());
            let mut learned = Vec::new();
            for (index, known) in of_page.zip(known) {
                check_for_interrupts();
                if all || self.is_due(known) {
                    let found = self.expire_block(first + index);
                    learned.push((index, self.time_of(&found)));
                    self.evicted.left |= found.oldest.is_some();
                } else {
                    self.evicted.left |= !known.was_empty;
                }
            }
            self.keep_times(number, &learned).or_raise();
        }
    }

    /// Whether a block may have rows whose time has come.
    fn is_due(&self, known: BlockTime) -> bool {
        known.since == 0 || i64::from(known.since) * 1000 <= self.expiry.until
    }

    /// The time of the oldest row, or of this look: rows that come later are younger, but for what a clock may be off.
    fn time_of(&self, found: &Found) -> BlockTime {
        let since = found.oldest.unwrap_or(self.now).min(self.now).div_euclid(1000);
        BlockTime { since: u32::try_from(since).unwrap_or(0), was_empty: found.oldest.is_none() }
    }

    fn known_times(&self, number: u32, of_page: std::ops::Range<u32>) -> Vec<BlockTime> {
        let key = self.storage.page(PageNumber::times(number));
        let pin = self.storage.cache.read(key, &self.wait).or_raise();
        let guard = pin.shared(&self.wait).or_raise();
        of_page.map(|index| guard.page().block_time(index)).collect()
    }

    fn keep_times(&self, number: u32, learned: &[(u32, BlockTime)]) -> Result<()> {
        if learned.is_empty() {
            return Ok(());
        }
        let pin = self.storage.cache.read(self.storage.page(PageNumber::times(number)), &self.wait)?;
        let mut guard = pin.exclusive(&self.wait)?;
        if !guard.is_dirty() {
            guard.mark_dirty(wal::insert_lsn());
        }
        let mut page = guard.page_mut();
        if page.as_page().kind() != PageKind::Times {
            page.init(PageKind::Times, 0);
        }
        learned.iter().for_each(|(index, time)| page.set_block_time(*index, *time));
        Ok(())
    }

    /// Expires the rows of a block whose time has come.
    fn expire_block(&mut self, block: u32) -> Found {
        self.evicted.looked_at += 1;
        let (storage, wait, expiry) = (&self.storage, &self.wait, self.expiry);
        let pin = storage.cache.read(storage.block(block), wait).or_raise();
        let mut found = look(pin.shared(wait).or_raise().page(), expiry);
        if !found.gone.is_empty() {
            let mut guard = pin.exclusive(wait).or_raise();
            found = look(guard.page(), expiry);
            if !found.gone.is_empty() {
                change_page(&mut guard, |page, record| {
                    page.expire(&found.gone).expect("the versions were read under the same latch");
                    record.expire(&found.gone);
                });
                self.evicted.rows += found.gone.len() as u64;
                found.has_dead = true;
            }
        }
        if found.has_dead {
            self.dead.push(block);
        }
        found
    }
}

/// What a page holds.
fn look(page: Page<'_>, expiry: Expiry) -> Found {
    let mut found = Found::default();
    if page.kind() != PageKind::Data {
        return found;
    }
    for offset in 1..=page.max_offset() {
        // Versions that were expired already wait for their removal, as others do without a header.
        let Some(header) = page.version(offset).map(|version| version.header()).filter(|header| !header.xmin_invalid()) else {
            found.has_dead |= !page.line(offset).is_unused();
            continue;
        };
        if expiry.is_gone(page, offset) && !is_being_inserted(&header) {
            found.gone.push(offset);
        } else {
            // What has no time is looked at again and again.
            let time = page.row_time(offset).unwrap_or(0);
            found.oldest = Some(found.oldest.map_or(time, |oldest| oldest.min(time)));
        }
    }
    found
}

/// Whether a version may be without its entries in the indexes yet, however far a clock was set back since.
fn is_being_inserted(header: &Header) -> bool {
    header.infomask & HEAP_XMIN_COMMITTED == 0 && PostgresStatus.in_progress(header.xmin)
}

/// When the newest of those rows was inserted, in milliseconds since 2000, without which a stream has no more than `most` bytes.
fn newest_above(storage: &Storage, most: u64, wait: &BackendWait) -> i64 {
    let mut bytes_at: BTreeMap<i64, u64> = BTreeMap::new();
    for block in 0..storage.blocks() {
        check_for_interrupts();
        let pin = storage.cache.read(storage.block(block), wait).or_raise();
        let guard = pin.shared(wait).or_raise();
        let page = guard.page();
        if page.kind() != PageKind::Data {
            continue;
        }
        let times: Vec<i64> = page.versions().filter_map(|(offset, _)| page.row_time(offset)).collect();
        // Each row counts with its share of the page.
        let share = page.compact_len() / times.len().max(1);
        for time in times {
            *bytes_at.entry(time).or_default() += share as u64;
        }
    }
    let mut kept = 0;
    let first_above = bytes_at.into_iter().rev().find(|(_, bytes)| {
        kept += bytes;
        kept > most
    });
    first_above.map_or(i64::MIN, |(time, _)| time)
}

/// Gives back the storage of expired rows.
///
/// # Safety
/// The stream is open and locked as for VACUUM.
pub unsafe fn evict(rel: pg_sys::Relation) -> Evicted {
    let mut eviction = Eviction::new(rel);
    eviction.expire(false);
    if !eviction.dead.is_empty() {
        // SAFETY: the caller's lock; the parameters are VACUUM's defaults.
        unsafe { vacuum::remove_dead(rel, Some(eviction.dead)) };
    }
    eviction.evicted
}
