//! Finds a page with room for a row version: the inserter's own page, a page the directory knows, or a fresh one.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use kalamdb_engine::cache::{LatchedPage, Wait};
use kalamdb_engine::ids::PageNumber;
use kalamdb_engine::page::{DIRECTORY_FANOUT, PAGE_SIZE, PageKind, PageMut, category_for, category_of};
use kalamdb_engine::{Error, ErrorKind, Result};
use pgrx::pg_sys;

use super::storage::Storage;
use super::{is_stream_routine, main_fork, partition};
use crate::ffi::compat;
use crate::wal;

/// The free-space category that means "nothing is known to be exhausted".
const NOT_EXHAUSTED: u32 = 256;

/// Pages of the highest category that are looked at without success before the table grows.
const LOOKS_MAX: u32 = 16;

/// The last block number Postgres can address.
const LAST_BLOCK: u32 = 0xFFFF_FFFE;

/// The lane of this backend among the inserters of a table.
fn lane() -> usize {
    // SAFETY: a plain global of the backend.
    unsafe { compat::process_number() }
}

/// The share of a page that is kept free for updates whatever the fillfactor: without room a new version goes into another page, with an
/// entry in each index, and a prune gives one version's room back at a time. On disk free space takes nothing.
const LEAST_RESERVE: usize = PAGE_SIZE / 12;

/// Bytes that a page of the table keeps free for updates.
pub fn reserve_for_updates(rel: pg_sys::Relation) -> usize {
    // SAFETY: rd_options of a table is a StdRdOptions.
    let fill_factor = unsafe {
        let options = (*rel).rd_options as *const pg_sys::StdRdOptions;
        if options.is_null() { 100 } else { (*options).fillfactor }
    };
    let reserve = PAGE_SIZE * (100 - fill_factor.clamp(10, 100) as usize) / 100;
    // SAFETY: the relation is open.
    let is_append_only = unsafe { is_stream_routine((*rel).rd_tableam) };
    if is_append_only { reserve } else { reserve.max(LEAST_RESERVE) }
}

/// A page to be found for a row.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// The partition that the row belongs to; 0 in a shared table.
    pub partition: u32,
    /// Length of the version.
    pub len: usize,
    /// Bytes to keep free for updates.
    pub reserve: usize,
    /// A block that will not do.
    pub avoid: Option<u32>,
    /// When the row of a stream is inserted.
    pub time: Option<i64>,
}

/// A latched page with room for a version.
///
/// # Errors
/// Those of the cache; `LimitExceeded` when the table has all the blocks it can have.
pub fn page_with_room(storage: &Storage, wanted: Wanted, wait: &dyn Wait) -> Result<LatchedPage> {
    if wanted.partition == 0 { shared_page_with_room(storage, wanted, wait) } else { own_page_with_room(storage, wanted, wait) }
}

/// Blocks of a user that are considered before the user gets another one.
const OWN_BLOCKS_MAX: u32 = 64;

/// Partitions for which a process remembers where it inserts.
const TARGETS_MAX: usize = 8192;

/// Where a process last inserted into a partition.
#[derive(Clone, Copy, Default)]
struct Target {
    storage: u64,
    partition: u32,
    block: u32,
    /// The next block of the chain to consider, plus one.
    next: u32,
}

thread_local! {
    /// The targets, each at the one place that is its partition's.
    static TARGETS: RefCell<Vec<Target>> = const { RefCell::new(Vec::new()) };
}

fn place_of(storage: &Storage, partition: u32) -> usize {
    // Partitions of a table are numbered in sequence: one table's do not meet.
    (partition as usize).wrapping_add(storage.id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize >> 32) % TARGETS_MAX
}

fn target_of(storage: &Storage, partition: u32) -> Option<Target> {
    let target = TARGETS.with_borrow(|targets| targets.get(place_of(storage, partition)).copied());
    target.filter(|target| target.storage == storage.id.0 && target.partition == partition)
}

fn remember_target(storage: &Storage, partition: u32, block: u32, next: u32) {
    TARGETS.with_borrow_mut(|targets| {
        targets.resize(TARGETS_MAX, Target::default());
        targets[place_of(storage, partition)] = Target { storage: storage.id.0, partition, block, next };
    });
}

/// A page with room among the blocks of one partition.
fn own_page_with_room(storage: &Storage, wanted: Wanted, wait: &dyn Wait) -> Result<LatchedPage> {
    let target = target_of(storage, wanted.partition);
    let remember = |block, next| remember_target(storage, wanted.partition, block, next);
    if let Some(Target { block, .. }) = target
        && let Some(page) = try_own_page(storage, block, wanted, wait)?
    {
        return Ok(page);
    }
    let entry = partition::entry(storage, wanted.partition, wait)?;
    let newest = entry.last.checked_sub(1).filter(|newest| target.is_none_or(|target| target.block != *newest));
    if let Some(newest) = newest
        && let Some(page) = try_own_page(storage, newest, wanted, wait)?
    {
        remember(newest, entry.last);
        return Ok(page);
    }
    // A few older blocks, from where the last look ended: a long chain is gone through bit by bit, over and over.
    let from = target.map_or(entry.last, |target| if target.next == 0 { entry.last } else { target.next });
    let category = category_for(wanted.len + wanted.reserve);
    let mut candidates = Vec::new();
    let mut next = 0;
    let mut left = OWN_BLOCKS_MAX;
    partition::walk(storage, wanted.partition, from, wait, &mut |block| {
        next = block + 1;
        candidates.push(block);
        left -= 1;
        left > 0
    })?;
    let next = if left > 0 { 0 } else { next };
    for block in candidates {
        if known_category(storage, block, wait)? >= category.max(1)
            && let Some(page) = try_own_page(storage, block, wanted, wait)?
        {
            remember(block, next);
            return Ok(page);
        }
    }
    let page = partition::extend(storage, wanted.partition, wait)?;
    remember(page.key().page.as_block().expect("rows are stored in blocks"), next);
    Ok(page)
}

/// The page of a block of the wanted partition if it has the room.
fn try_own_page(storage: &Storage, block: u32, wanted: Wanted, wait: &dyn Wait) -> Result<Option<LatchedPage>> {
    if Some(block) == wanted.avoid || block >= storage.blocks() {
        return Ok(None);
    }
    let page = storage.cache.read(storage.block(block), wait)?.into_exclusive(wait)?;
    let view = page.page();
    let fits = match view.kind() {
        PageKind::Unused => true,
        PageKind::Data if view.partition() == wanted.partition && wanted.time.is_none_or(|time| view.takes_time(time)) => {
            view.has_room(wanted.len + wanted.reserve) || (view.max_offset() == 0 && view.has_room(wanted.len))
        }
        _ => false,
    };
    if fits {
        return Ok(Some(page));
    }
    let free = page.page().free_space();
    drop(page);
    record_free_space(storage, block, free, wait)?;
    Ok(None)
}

/// What the directory says of a block's free space.
fn known_category(storage: &Storage, block: u32, wait: &dyn Wait) -> Result<u8> {
    let pin = storage.cache.read(storage.page(PageNumber::directory(block / DIRECTORY_FANOUT)), wait)?;
    let guard = pin.shared(wait)?;
    let page = guard.page();
    Ok(if page.kind() == PageKind::Directory { page.category(block % DIRECTORY_FANOUT) } else { 0 })
}

fn shared_page_with_room(storage: &Storage, wanted: Wanted, wait: &dyn Wait) -> Result<LatchedPage> {
    let Wanted { len, reserve, avoid, .. } = wanted;
    let lane = lane();
    let mut target = storage.descriptor.insert_target(lane).filter(|block| Some(*block) != avoid);
    let mut looks = 0;
    loop {
        let block = match target {
            Some(block) => block,
            None => match search_directory(storage, len + reserve, wait)?.filter(|block| Some(*block) != avoid) {
                Some(block) => block,
                None => return extend(storage, lane, wait),
            },
        };
        if block < storage.blocks() {
            let pin = storage.cache.read(storage.block(block), wait)?;
            let page = pin.into_exclusive(wait)?;
            let view = page.page();
            match view.kind() {
                PageKind::Unused => {
                    storage.descriptor.set_insert_target(lane, Some(block));
                    return Ok(page);
                }
                PageKind::Data if view.has_room(len + reserve) || (view.max_offset() == 0 && view.has_room(len)) => {
                    storage.descriptor.set_insert_target(lane, Some(block));
                    return Ok(page);
                }
                _ => {
                    let free = view.free_space();
                    drop(page);
                    record_free_space(storage, block, free, wait)?;
                    if category_of(free) >= category_for(len + reserve) {
                        // The highest category promises no room for what is longer than its lower bound: the directory would
                        // name this page again and again.
                        looks += 1;
                        if looks == LOOKS_MAX {
                            return extend(storage, lane, wait);
                        }
                        storage.descriptor.free_space_hint.store(block + 1, Ordering::Relaxed);
                    }
                }
            }
        } else {
            record_free_space(storage, block, 0, wait)?;
        }
        storage.descriptor.set_insert_target(lane, None);
        target = None;
    }
}

/// Gives out the block behind the last one; no latch is held.
///
/// # Errors
/// `LimitExceeded` when the table has all the blocks it can have.
pub fn next_block(storage: &Storage) -> Result<u32> {
    let next = |blocks: u32| (blocks < LAST_BLOCK).then(|| blocks + 1);
    let block = storage
        .descriptor
        .blocks
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
        .map_err(|_| Error::new(ErrorKind::LimitExceeded, "cannot extend the table beyond 4294967294 blocks"))?;
    main_fork::grown(storage.descriptor, block + 1);
    Ok(block)
}

/// A fresh block at the end; its page is of kind `Unused` and to be initialised by the caller's logged change.
fn extend(storage: &Storage, lane: usize, wait: &dyn Wait) -> Result<LatchedPage> {
    loop {
        let block = next_block(storage)?;
        let pin = storage.cache.create_page(storage.block(block), wait)?;
        let page = pin.into_exclusive(wait)?;
        if page.page().kind() == PageKind::Unused {
            storage.descriptor.set_insert_target(lane, Some(block));
            return Ok(page);
        }
    }
}

fn search_directory(storage: &Storage, len: usize, wait: &dyn Wait) -> Result<Option<u32>> {
    let wanted = category_for(len);
    let exhausted = storage.descriptor.free_space_exhausted.load(Ordering::Relaxed);
    if u32::from(wanted) >= exhausted {
        return Ok(None);
    }
    let blocks = storage.blocks();
    let hint = storage.descriptor.free_space_hint.load(Ordering::Relaxed);
    let start = if hint < blocks { hint } else { 0 };
    let directories = blocks.div_ceil(DIRECTORY_FANOUT);
    let first = start / DIRECTORY_FANOUT;
    // One step more than there are pages: the first page is searched from the hint, at the end again from its start.
    for step in 0..=directories {
        let number = (first + step) % directories.max(1);
        let from = if step == 0 { start % DIRECTORY_FANOUT } else { 0 };
        if let Some(found) = search_page(storage, number, wanted, from, wait)? {
            let block = number * DIRECTORY_FANOUT + found;
            storage.descriptor.free_space_hint.store(block, Ordering::Relaxed);
            return Ok(Some(block));
        }
    }
    storage.descriptor.free_space_exhausted.store(u32::from(wanted), Ordering::Relaxed);
    Ok(None)
}

fn search_page(storage: &Storage, number: u32, wanted: u8, from: u32, wait: &dyn Wait) -> Result<Option<u32>> {
    let pin = storage.cache.read(storage.page(PageNumber::directory(number)), wait)?;
    let guard = pin.shared(wait)?;
    let page = guard.page();
    if page.kind() != PageKind::Directory {
        return Ok(None);
    }
    Ok(page.find_category(wanted, from))
}

/// Notes in the directory how much room a block has.
///
/// The directory is a hint: it is not logged, and whoever follows a wrong entry mends it.
///
/// # Errors
/// Those of the cache.
pub fn record_free_space(storage: &Storage, block: u32, free: usize, wait: &dyn Wait) -> Result<()> {
    let (number, place) = (block / DIRECTORY_FANOUT, block % DIRECTORY_FANOUT);
    let category = category_of(free);
    let pin = storage.cache.read(storage.page(PageNumber::directory(number)), wait)?;
    {
        let guard = pin.shared(wait)?;
        let page = guard.page();
        let known = if page.kind() == PageKind::Directory { page.category(place) } else { 0 };
        if known == category {
            return Ok(());
        }
    }
    let mut guard = pin.exclusive(wait)?;
    if !guard.is_dirty() {
        guard.mark_dirty(wal::insert_lsn());
    }
    let mut page: PageMut<'_> = guard.page_mut();
    if page.as_page().kind() != PageKind::Directory {
        page.init(PageKind::Directory, 0);
    }
    page.set_category(place, category);
    drop(guard);
    let exhausted = storage.descriptor.free_space_exhausted.load(Ordering::Relaxed);
    if category > 0 && u32::from(category) >= exhausted {
        storage.descriptor.free_space_exhausted.store(NOT_EXHAUSTED, Ordering::Relaxed);
    }
    Ok(())
}
