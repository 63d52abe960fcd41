//! Makes a table's segments known again from their files: each says in its footer which blocks it has.
//!
//! For a store that lost its manifest, or was restored from an older copy than the files. Footers say what the rows were when they became
//! cold, and nothing of what came later. So a block that is hot or cold stays as it is: whatever changed since then is in its hot image.
//! Blocks beyond the table's end, which VACUUM gave back, stay away, and so do files that the engine is about to delete. Of several
//! segments that have a block, the newest gives it.

use std::sync::Arc;
use std::time::Duration;

use kalamdb_engine::cold::{CommitMode, CommitSegment, FilePlace, LOCAL, SegmentRecord};
use kalamdb_engine::location::{Definition, Location};
use kalamdb_engine::segment::SegmentReader;
use kalamdb_engine::{Error, ErrorKind, Result};
use pgrx::pg_sys;

use super::Outcome;
use super::compact::segments_of;
use super::table::Table;
use crate::error::{OrRaise, SqlError};
use crate::ffi::catalog::as_superuser;
use crate::ffi::interrupts::check_for_interrupts;
use crate::ffi::sql::{query, text};
use crate::storages;
use crate::tableam::main_fork;

/// How long to try to get the table's lock.
const PATIENCE: Duration = Duration::from_secs(30);

/// Objects asked for at one time.
const LIST_MAX: usize = 1000;

/// A file with a segment that the engine does not know.
struct Lost {
    segment: u64,
    place: FilePlace,
    reader: SegmentReader,
}

/// Adopts the segments of a table that the engine does not know, from every storage of the database.
pub fn rebuild_segments(relation: pg_sys::Oid) -> Outcome {
    let Some(table) = Table::open(relation, PATIENCE) else {
        return Outcome { gone: true, ..Outcome::default() };
    };
    let mut outcome = Outcome::default();
    let (known, _) = segments_of(&table.storage, &table.client());
    let mut lost: Vec<Lost> = Vec::new();
    for definition in definitions() {
        find_lost(&table, &definition, &known, &mut lost).or_raise();
    }
    lost.sort_unstable_by_key(|lost| std::cmp::Reverse(lost.segment));
    for found in lost {
        check_for_interrupts();
        adopt(&table, found, &mut outcome).or_raise();
    }
    main_fork::follow(table.storage.descriptor);
    table.close();
    outcome
}

/// The storages of the database.
fn definitions() -> Vec<Definition> {
    let names = as_superuser(|| query("SELECT name FROM kalam.storage_catalog ORDER BY name", &[]));
    let definition = |name: &str| if name == LOCAL { Definition::local() } else { storages::require(name).or_raise() };
    names.iter().filter_map(|row| text(row, 0)).map(definition).collect()
}

/// Looks through a storage for segments of the table that are not in the manifest.
fn find_lost(table: &Table, definition: &Definition, known: &[SegmentRecord], lost: &mut Vec<Lost>) -> Result<()> {
    let location = storages::open(definition)?;
    let prefix = format!("segment-{}-", table.storage.id.0);
    // SAFETY: a plain global of the backend.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    let mut after: Option<String> = None;
    loop {
        let objects = location.list("", after.as_deref(), LIST_MAX, &table.wait)?;
        for object in &objects {
            check_for_interrupts();
            let name = object.path.rsplit('/').next().unwrap_or_default();
            if !name.starts_with(&prefix) || !name.ends_with(".parquet") {
                continue;
            }
            let place = FilePlace { database, location: location.name().to_owned(), path: object.path.clone() };
            if known.iter().any(|record| is_same(&record.place, &place)) {
                continue;
            }
            let Some(reader) = open(&location, &object.path, object.bytes)? else { continue };
            let (storage, segment) = reader.identity();
            if storage != table.storage.id {
                continue;
            }
            // In a location that the engine does not look through, the number of a file that the store forgot may have been given out.
            table.client().skip_segment(segment);
            if known.iter().map(|record| record.segment).chain(lost.iter().map(|lost| lost.segment)).any(|other| other == segment)
            {
                skip(&object.path, "Another file has the segment of this number.");
                continue;
            }
            lost.push(Lost { segment, place, reader });
        }
        after = objects.last().filter(|_| objects.len() == LIST_MAX).map(|object| object.path.clone());
        if after.is_none() {
            break;
        }
    }
    // What is adopted is read by the engine.
    if definition.name != LOCAL && lost.iter().any(|lost| lost.place.location == definition.name) {
        storages::publish(definition)?;
    }
    Ok(())
}

/// The server's own directory is the same one in all databases.
fn is_same(one: &FilePlace, other: &FilePlace) -> bool {
    one.location == other.location && one.path == other.path && (one.location == LOCAL || one.database == other.database)
}

/// Opens a file; nothing if it is none of ours or damaged. What it had is reported as missing by whoever wants it.
fn open(location: &Location, path: &str, bytes: u64) -> Result<Option<SegmentReader>> {
    match location.source(path, bytes).and_then(|source| SegmentReader::open(Arc::new(source))) {
        Ok(reader) => Ok(Some(reader)),
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
            skip(path, &kalamdb_engine::sentence(&error));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn skip(path: &str, why: &str) {
    SqlError::from(Error::corrupt(format!("the file \"{path}\" is left out")).with_detail(why))
        .with_hint("Rows that it alone has cannot be read.")
        .log(pgrx::PgLogLevel::WARNING);
}

fn adopt(table: &Table, lost: Lost, outcome: &mut Outcome) -> Result<()> {
    let mut summary = match lost.reader.summary() {
        Ok(summary) => summary,
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            skip(&lost.place.path, &kalamdb_engine::sentence(&error));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let end = table.storage.blocks().max(main_fork::blocks(table.storage.descriptor));
    summary.blocks.retain(|stub| stub.block < end);
    summary.values.retain(|value| value.block < end);
    let Some(partition) = summary.blocks.first().map(|stub| stub.partition) else { return Ok(()) };
    let committed = table.client().commit_segment(CommitSegment {
        storage: table.storage.id,
        segment: lost.segment,
        place: lost.place,
        partition,
        schema_version: lost.reader.schema().version,
        mode: CommitMode::Adopt,
        summary,
    })?;
    if committed.kept {
        outcome.segments += 1;
        outcome.blocks += committed.cold.iter().map(|range| range.len() as u64).sum::<u64>();
    }
    Ok(())
}
