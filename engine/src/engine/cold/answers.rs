//! The threads that answer requests: one for what is at hand, one for what writes and waits, one for what takes minutes.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::{commit, files, flush, now, retire};
use crate::cache::{Request, RequestClass};
use crate::cold::{Ask, FilePlace, Garbage, LOCAL, Told, pack, parse, push_to_ranges, unpack};
use crate::engine::shared::{Shared, lock};
use crate::engine::stop_point;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{PageNumber, StorageId};
use crate::location::{Definition, check_object};
use crate::segment::{BlockStub, ValueStub};

/// Ranges of blocks in one answer.
const RANGES_MAX: usize = 500;
/// Blocks looked at for one answer.
const BLOCKS_MAX: usize = 100_000;
/// Stubs in one answer.
const STUBS_MAX: usize = 10_000;
/// Segments in one answer.
const SEGMENTS_MAX: usize = 200;
/// Time between two looks for segments that nobody needs.
const SWEEP_INTERVAL: Duration = Duration::from_secs(20);

/// The thread for requests that take no time.
pub(in crate::engine) fn run_quick(shared: &Shared) {
    serve(shared, RequestClass::Quick, &mut |_| {});
}

/// The thread for what takes minutes. It changes nothing that anybody else wants to change, and nobody waits for it who does not ask.
pub(in crate::engine) fn run_rewriter(shared: &Shared) {
    serve(shared, RequestClass::Lasting, &mut |_| {});
}

/// The thread for everything that changes cold storage: one thing at a time.
pub(in crate::engine) fn run_long(shared: &Shared, crashed: bool) {
    files::clear_messages(shared.store.directory());
    if crashed {
        shared.cold.give_up_announced();
    }
    match files::delete_drafts(shared, SystemTime::now(), crashed) {
        Ok(strays) => tell_strays(shared, &strays),
        Err(error) => shared.say(format!("could not delete the draft of a segment that no job finishes: {error}")),
    }
    let (mut swept, mut rest) = (Instant::now(), SWEEP_INTERVAL);
    serve(shared, RequestClass::Long, &mut |shared| {
        if swept.elapsed() >= rest {
            let begun = Instant::now();
            sweep_if_wanted(shared);
            swept = Instant::now();
            // A look at many stubs takes its time and must not become this thread's only work.
            rest = SWEEP_INTERVAL.max(begun.elapsed() * 50);
        }
    });
}

fn tell_strays(shared: &Shared, strays: &files::Strays) {
    if strays.deleted > 0 {
        shared.say(format!("deleted {} drafts of segments that no job finishes", strays.deleted));
    }
    if strays.unknown > 0 {
        shared.say(format!(
            "{} files of segments belong to no table: kalam.rebuild_segments() makes those known again that a table has lost",
            strays.unknown
        ));
    }
}

fn sweep_if_wanted(shared: &Shared) {
    let wanted = shared.cold.sweep_wanted.swap(false, Ordering::AcqRel);
    if !wanted && !retire::has_garbage(shared) {
        return;
    }
    if let Err(error) = retire::sweep(shared) {
        shared.cold.sweep_wanted.store(true, Ordering::Release);
        shared.say(format!("could not delete segments that nobody needs: {error}"));
    }
}

fn serve(shared: &Shared, class: RequestClass, between: &mut dyn FnMut(&Shared)) {
    while !shared.is_stopping() {
        between(shared);
        let Some(request) = shared.cache.next_request(class, Duration::from_millis(100)) else { continue };
        let told = match answer(shared, &request) {
            // The end of the engine is no answer.
            Err(_) if shared.is_stopping() => {
                request.leave();
                break;
            }
            Err(error) => {
                if !std::ptr::eq(error.for_log(), &error) {
                    shared.say(error.for_log().to_string());
                }
                Told::failed(&error)
            }
            Ok(told) => told,
        };
        match pack(&told, shared.store.directory(), Told::InFile) {
            Ok(bytes) => request.answer(&bytes),
            Err(error) => {
                shared.say(format!("could not answer a request: {error}"));
                request.answer(&[]);
            }
        }
    }
}

fn answer(shared: &Shared, request: &Request) -> Result<Told> {
    let ask = match parse(request.payload())? {
        Ask::InFile(name) => {
            let ask = unpack(shared.store.directory(), &name)?;
            let told = answer_ask(shared, ask, request);
            if told.is_ok() || !shared.is_stopping() {
                // Only now: the next worker reads it again if this one does not come to the end.
                let _ = std::fs::remove_file(crate::cold::message_directory(shared.store.directory()).join(name));
            }
            return told;
        }
        ask => ask,
    };
    answer_ask(shared, ask, request)
}

fn answer_ask(shared: &Shared, ask: Ask, request: &Request) -> Result<Told> {
    match ask {
        Ask::InFile(_) => Err(Error::internal("a message in a file names another file")),
        Ask::Commit(asked) => Ok(Told::Committed(commit::commit(shared, &asked)?)),
        Ask::ColdRanges { storage, from } => cold_ranges(shared, storage, from),
        Ask::BlockStubs { storage, from } => block_stubs(shared, storage, from),
        Ask::ValueStubs { storage, from } => value_stubs(shared, storage, from),
        Ask::Segments { storage, after } => {
            let behind = shared.cold.segments_behind(storage, after, SEGMENTS_MAX);
            let segments: Vec<_> = behind.iter().map(|segment| segment.as_ref().clone()).collect();
            let next = segments.last().map(|segment| segment.segment).filter(|_| segments.len() == SEGMENTS_MAX);
            Ok(Told::Segments { segments, next })
        }
        Ask::SegmentUses { storage } => Ok(Told::SegmentUses(retire::uses(shared, storage)?)),
        Ask::Announce(files) => {
            announce(shared, files)?;
            Ok(Told::Done)
        }
        Ask::PutLocation(location) => {
            Definition::from_value(&location.name, &location.definition)?.check()?;
            let mut batch = shared.store.batch();
            batch.put_location(&location)?;
            batch.write()?;
            shared.store.flush()?;
            shared.cold.open_locations.forget(location.database, &location.name);
            let key = (location.database, location.name.clone());
            shared.cold.locations.write().unwrap_or_else(PoisonError::into_inner).insert(key, location);
            Ok(Told::Done)
        }
        Ask::DropLocation { database, name } => {
            let mut batch = shared.store.batch();
            batch.remove_location(database, &name);
            batch.write()?;
            shared.store.flush()?;
            shared.cold.open_locations.forget(database, &name);
            shared.cold.locations.write().unwrap_or_else(PoisonError::into_inner).remove(&(database, name));
            Ok(Told::Done)
        }
        Ask::Locations { database } => {
            let locations = shared.cold.locations.read().unwrap_or_else(PoisonError::into_inner);
            Ok(Told::Locations(locations.values().filter(|location| location.database == database).cloned().collect()))
        }
        Ask::LocationUses { database, name } => Ok(Told::Count(location_uses(shared, database, &name))),
        Ask::UnnamedValues { storage, first, named, before } => {
            Ok(Told::Values(shared.store.unnamed_values(storage, first, &named, before)?))
        }
        Ask::DropUnusedFile(place) => {
            drop_unused_file(shared, &place)?;
            Ok(Told::Done)
        }
        Ask::DeleteUnused => Ok(Told::Count(retire::sweep(shared)?)),
        Ask::DropSuperseded { storages } => {
            drop_superseded(shared, &storages, request)?;
            Ok(Told::Done)
        }
    }
}

/// Rewrites files of the store as long as somebody waits for it and the engine does not stop.
fn drop_superseded(shared: &Shared, storages: &[StorageId], request: &Request) -> Result<()> {
    if shared.cache.header().compaction_stopped.load(Ordering::Acquire) != 0 {
        return Err(Error::corrupt("the store's files are not written anew, as one of them is damaged")
            .with_hint("The server's log names it; restore it, or the cluster, from a backup."));
    }
    shared.store.drop_superseded(storages, &mut || {
        stop_point::reached("files of the store rewritten");
        if shared.is_stopping() {
            return Err(Error::new(ErrorKind::Unavailable, "the KalamDB engine stops"));
        }
        if request.is_abandoned() { Err(Error::new(ErrorKind::Cancelled, "nobody waits for it")) } else { Ok(()) }
    })
}

fn cold_ranges(shared: &Shared, storage: StorageId, from: u32) -> Result<Told> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    let mut next = None;
    let mut looked = 0;
    if shared.cold.has(storage) {
        shared.store.stubs(storage, PageNumber::block(from), &mut |page, _| {
            let Some(block) = page.as_block() else { return Ok(false) };
            let extends = ranges.last().is_some_and(|last| last.end == block);
            if looked >= BLOCKS_MAX || (ranges.len() >= RANGES_MAX && !extends) {
                next = Some(block);
                return Ok(false);
            }
            looked += 1;
            push_to_ranges(&mut ranges, block);
            Ok(true)
        })?;
        flush(shared)?;
    }
    Ok(Told::Ranges { ranges, next })
}

fn block_stubs(shared: &Shared, storage: StorageId, from: u32) -> Result<Told> {
    let (mut stubs, mut next) = (Vec::new(), None);
    shared.store.stubs(storage, PageNumber::block(from), &mut |page, stub| {
        let Some(block) = page.as_block() else { return Ok(false) };
        if stubs.len() == STUBS_MAX {
            next = Some(block);
            return Ok(false);
        }
        stubs.push(BlockStub::decode(stub)?);
        Ok(true)
    })?;
    Ok(Told::BlockStubs { stubs, next })
}

fn value_stubs(shared: &Shared, storage: StorageId, from: u32) -> Result<Told> {
    let (mut stubs, mut next) = (Vec::new(), None);
    shared.store.stubs(storage, PageNumber::overflow(from, 0), &mut |page, stub| {
        if stubs.len() == STUBS_MAX {
            next = page.as_overflow().map(|(value, _)| value);
            return Ok(false);
        }
        stubs.push(ValueStub::decode(stub)?);
        Ok(true)
    })?;
    Ok(Told::ValueStubs { stubs, next })
}

fn location_uses(shared: &Shared, database: u32, name: &str) -> u64 {
    let here = |place: &FilePlace| place.location == name && (name == LOCAL || place.database == database);
    let segments = shared.cold.count_places(here);
    let garbage = lock(&shared.cold.garbage).iter().filter(|file| here(&file.place)).count();
    (segments + garbage) as u64
}

/// Notes that files are about to be stored: those that are not committed are deleted some time, whatever becomes of the process.
fn announce(shared: &Shared, files: Vec<(u64, FilePlace)>) -> Result<()> {
    let since = now();
    let mut announced = Vec::with_capacity(files.len());
    let mut batch = shared.store.batch();
    for (segment, place) in files {
        check_object(&place.path)?;
        let file = Garbage { segment, place, since, announced: true };
        batch.put_garbage(&file)?;
        announced.push(file);
    }
    batch.write()?;
    shared.store.flush()?;
    let mut garbage = lock(&shared.cold.garbage);
    garbage.retain(|other| announced.iter().all(|file| file.segment != other.segment));
    garbage.extend(announced);
    Ok(())
}

fn drop_unused_file(shared: &Shared, place: &FilePlace) -> Result<()> {
    if shared.cold.has_place(place) {
        return Ok(());
    }
    files::delete(shared, place)?;
    let mut garbage = lock(&shared.cold.garbage);
    let mut batch = shared.store.batch();
    garbage.iter().filter(|file| file.place == *place).for_each(|file| batch.remove_garbage(file.segment));
    batch.write()?;
    garbage.retain(|file| file.place != *place);
    Ok(())
}
