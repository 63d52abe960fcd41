//! Makes a table's segments known again from their files: each says in its footer which blocks it has.
//!
//! For a store that was restored from an older copy than the files. A block that is hot or cold stays as it is; of several segments
//! that have a block, the newest gives it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kalamdb_engine::Result;
use kalamdb_engine::cold::{CommitMode, CommitSegment, FilePlace, LOCAL};
use kalamdb_engine::segment::{FileSource, SegmentReader};
use pgrx::pg_sys;

use super::Outcome;
use super::compact::segments_of;
use super::table::Table;
use crate::error::OrRaise;
use crate::ffi::interrupts::check_for_interrupts;
use crate::worker::segments_directory;

/// How long to try to get the table's lock.
const PATIENCE: Duration = Duration::from_secs(30);

/// Adopts the segments of a table that the engine does not know, from the server's own directory.
pub fn rebuild_segments(relation: pg_sys::Oid) -> Outcome {
    let Some(table) = Table::open(relation, PATIENCE) else {
        return Outcome { gone: true, ..Outcome::default() };
    };
    let mut outcome = Outcome::default();
    let (known, _) = segments_of(&table.storage, &table.client());
    let is_known = |path: &str| known.iter().any(|record| record.place.location == LOCAL && record.place.path == path);
    let mut found: Vec<(u64, String, SegmentReader)> = Vec::new();
    for path in files(&table).or_raise() {
        check_for_interrupts();
        if is_known(&path) {
            continue;
        }
        // A file that is none of ours, or damaged, gives nothing; what it had is reported as missing by whoever wants it.
        let Ok(reader) = open(&path) else { continue };
        let (storage, segment) = reader.identity();
        if storage == table.storage.id {
            found.push((segment, path, reader));
        }
    }
    found.sort_unstable_by_key(|(segment, ..)| std::cmp::Reverse(*segment));
    for (segment, path, reader) in found {
        adopt(&table, segment, path, &reader, &mut outcome).or_raise();
    }
    table.close();
    outcome
}

fn open(path: &str) -> Result<SegmentReader> {
    SegmentReader::open(Arc::new(FileSource::open(&segments_directory().join(path))?))
}

/// The files of segments below the server's own directory, relative to it.
fn files(table: &Table) -> Result<Vec<String>> {
    let root = segments_directory();
    let prefix = format!("segment-{}-", table.storage.id.0);
    let mut directories: Vec<PathBuf> = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else if name.to_str().is_some_and(|name| name.starts_with(&prefix) && name.ends_with(".parquet"))
                && let Ok(relative) = entry.path().strip_prefix(&root)
            {
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    Ok(found)
}

fn adopt(table: &Table, segment: u64, path: String, reader: &SegmentReader, outcome: &mut Outcome) -> Result<()> {
    let summary = reader.summary()?;
    let partition = summary.blocks.first().map_or(0, |stub| stub.partition);
    // SAFETY: a plain global of the backend.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    let committed = table.client().commit_segment(CommitSegment {
        storage: table.storage.id,
        segment,
        place: FilePlace { database, location: LOCAL.to_owned(), path },
        partition,
        schema_version: reader.schema().version,
        mode: CommitMode::Adopt,
        summary,
    })?;
    if committed.kept {
        outcome.segments += 1;
        outcome.blocks += committed.cold.iter().map(|range| range.len() as u64).sum::<u64>();
    }
    Ok(())
}
