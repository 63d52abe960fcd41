//! The files of segments: opening them where they are, deleting them, and finding drafts that nobody finishes.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::cache::Wait;
use crate::cold::{FilePlace, LOCAL, SegmentRecord, segment_of_file};
use crate::engine::shared::{Shared, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::location::{Definition, Location};
use crate::segment::SegmentSource;

/// Drafts are kept so long: a job may be writing one.
const DRAFT_AGE: Duration = Duration::from_secs(3600);

/// How far a file's time may lie behind the clock's.
const CLOCK_STEP: Duration = Duration::from_secs(2);

/// The locations in use. Opening one asks nothing of it.
#[derive(Default)]
pub(in crate::engine) struct Locations(Mutex<HashMap<(u32, String), Location>>);

impl Locations {
    /// Forgets a location whose definition changes; waits for it end.
    pub(super) fn forget(&self, database: u32, name: &str) {
        if let Some(location) = lock(&self.0).remove(&(database, name.to_owned())) {
            location.close();
        }
    }

    /// Ends all waits for locations.
    pub(super) fn close(&self) {
        lock(&self.0).values().for_each(Location::close);
    }
}

/// Ends waits for a location when the engine stops.
struct UntilStop<'a>(&'a Shared);

impl Wait for UntilStop<'_> {
    fn pause(&self) -> Result<()> {
        if self.0.is_stopping() { Err(Error::new(ErrorKind::Unavailable, "the KalamDB engine stops")) } else { Ok(()) }
    }
}

/// The location of a file.
fn location_of(shared: &Shared, place: &FilePlace) -> Result<Location> {
    // The location of the server's own directory is the same in all databases.
    let database = if place.location == LOCAL { 0 } else { place.database };
    let key = (database, place.location.clone());
    let mut open = lock(&shared.cold.open_locations.0);
    if let Some(location) = open.get(&key) {
        return Ok(location.clone());
    }
    let definition = if place.location == LOCAL { Definition::local() } else { definition_of(shared, place)? };
    let location = Location::open(&definition, &shared.config.segments)?;
    open.insert(key, location.clone());
    Ok(location)
}

fn definition_of(shared: &Shared, place: &FilePlace) -> Result<Definition> {
    let known = shared.cold.locations.read().unwrap_or_else(PoisonError::into_inner);
    match known.get(&(place.database, place.location.clone())) {
        Some(stored) => Definition::from_value(&place.location, &stored.definition),
        None => Err(Error::new(ErrorKind::Unavailable, format!("the engine does not know the storage \"{}\"", place.location))
            .with_hint("Give the storage its definition again with kalam.alter_storage().")),
    }
}

/// What is told instead of a path that names a user.
pub(super) const PATH_IS_IN_THE_LOG: &str = "The server's log has the path and the reason.";

/// A failure with a segment as it is told: whose rows a user's segment has is for the server's log.
pub(super) fn without_user(record: &SegmentRecord, error: Error) -> Error {
    if record.partition == 0 {
        return error;
    }
    let told = Error::new(error.kind(), format!("could not read segment {}", record.segment)).with_detail(PATH_IS_IN_THE_LOG);
    match error.hint() {
        Some(hint) => told.with_hint(hint.to_owned()),
        None => told,
    }
    .with_source(error)
}

/// Opens the file of a segment that has `bytes` bytes.
pub(super) fn open_source(shared: &Shared, place: &FilePlace, bytes: u64) -> Result<Arc<dyn SegmentSource>> {
    Ok(Arc::new(location_of(shared, place)?.source(&place.path, bytes)?))
}

/// Deletes the file of a segment; one that is not there is no error.
pub(super) fn delete(shared: &Shared, place: &FilePlace) -> Result<()> {
    location_of(shared, place)?.delete(&place.path, &UntilStop(shared))
}

/// What is in the server's own directory without being part of a table.
#[derive(Default)]
pub(super) struct Strays {
    /// Drafts of segments that were deleted.
    pub deleted: usize,
    /// Finished segments that the manifest does not have.
    pub unknown: usize,
}

/// Deletes drafts of segments below the server's own directory that nobody finishes.
///
/// `crashed`: no job of before the start is alive, so every older draft is one that nobody finishes.
///
/// Finished segments are left alone. One that was never committed is known by its announcement; others may be all that is left of their
/// rows, if the manifest was lost or is older than they are.
pub(super) fn delete_drafts(shared: &Shared, started: SystemTime, crashed: bool) -> Result<Strays> {
    let mut strays = Strays::default();
    visit_files(&shared.config.segments, &mut |path, segment, is_draft| {
        if !is_draft {
            strays.unknown += usize::from(!is_known(shared, segment, path));
        } else if is_abandoned(path, started, crashed) {
            fs::remove_file(path)?;
            strays.deleted += 1;
        }
        Ok(())
    })?;
    Ok(strays)
}

/// The number behind those of all finished segments in a directory.
pub(in crate::engine) fn next_number(directory: &Path) -> u64 {
    let mut next = 0;
    let seen = visit_files(directory, &mut |_, segment, is_draft| {
        next = next.max(if is_draft { 0 } else { segment.saturating_add(1) });
        Ok(())
    });
    debug_assert!(seen.is_ok(), "the visitor has no errors");
    next
}

/// Shows all files of segments below a directory: their paths, their numbers, and whether they are drafts.
fn visit_files(directory: &Path, visit: &mut dyn FnMut(&Path, u64, bool) -> Result<()>) -> Result<()> {
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file()
                && let Some((segment, is_draft)) = entry.file_name().to_str().and_then(segment_of_file)
            {
                visit(&entry.path(), segment, is_draft)?;
            }
        }
    }
    Ok(())
}

/// Whether a file is part of a table or about to be deleted.
fn is_known(shared: &Shared, segment: u64, path: &Path) -> bool {
    let Ok(relative) = path.strip_prefix(&shared.config.segments) else { return false };
    let is_here = |place: &FilePlace| place.location == LOCAL && Path::new(&place.path) == relative;
    shared.cold.has_segment(segment, is_here) || lock(&shared.cold.garbage).iter().any(|garbage| is_here(&garbage.place))
}

fn is_abandoned(path: &Path, started: SystemTime, crashed: bool) -> bool {
    let Ok(modified) = path.metadata().and_then(|metadata| metadata.modified()) else { return false };
    let old = SystemTime::now().duration_since(modified).is_ok_and(|age| age > DRAFT_AGE);
    old || (crashed && started.duration_since(modified).is_ok_and(|age| age > CLOCK_STEP))
}

/// Makes the server's own directory for segments.
pub(in crate::engine) fn prepare(directory: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let unusable = |error: io::Error| {
        Error::new(ErrorKind::StorageMissing, format!("could not use the directory of segments \"{}\"", directory.display()))
            .with_detail(crate::sentence(error))
            .with_hint("The directory must belong to the server's operating system user and be writable for it.")
    };
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(unusable),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::read_dir(directory).map(drop).map_err(unusable),
        Err(error) => Err(unusable(error)),
    }
}

/// Removes messages of processes that are gone.
pub(in crate::engine) fn clear_messages(store: &Path) {
    let directory: PathBuf = crate::cold::message_directory(store);
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix("message-")?.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // Whoever could read it is gone.
            let _ = fs::remove_file(entry.path());
        }
    }
}
