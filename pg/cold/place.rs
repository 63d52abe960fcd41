//! Where the files of segments go: drafts into the server's own directory, finished ones into the table's storage.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use kalamdb_engine::cold::{FilePlace, LOCAL, segment_file_name};
use kalamdb_engine::location::{Definition, Location, Names};
use kalamdb_engine::page::Page;
use kalamdb_engine::{Error, ErrorKind, Result};
use pgrx::pg_sys;

use super::table::Table;
use crate::error::{OrRaise, SqlError};
use crate::gate;
use crate::storages;
use crate::tableam::storage::relation_name;
use crate::worker::segments_directory;

/// A path for a segment that is being written; the engine's sweep deletes what stays there.
///
/// # Errors
/// Those of the file system.
pub fn draft(table: &Table, segment: u64) -> Result<PathBuf> {
    let directory = segments_directory();
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    Ok(directory.join(format!("{}.tmp", segment_file_name(table.storage.id, segment, random()))))
}

/// A number that keeps names apart.
fn random() -> u32 {
    // SAFETY: draws from the session's random numbers.
    unsafe { pg_sys::pg_prng_uint32(&raw mut pg_sys::pg_global_prng_state) }
}

/// The storage of a table's new segments.
pub struct Target {
    location: Location,
    namespace: String,
    table: String,
    /// Whose rows the segments have, in a user table.
    user: Option<String>,
}

impl Target {
    /// The storage of the user whose rows the page has, or the one with a name, or the server's own directory; the engine knows it
    /// when this returns.
    pub fn of(table: &Table, name: Option<&str>, page: Page<'_>) -> Target {
        super::with_snapshot(|| Target::look_up(table, name, page))
    }

    fn look_up(table: &Table, name: Option<&str>, page: Page<'_>) -> Target {
        let owner = page.versions().next().and_then(|(_, version)| gate::owner_of_row(table.rel, version.tuple()));
        let user = owner.map(|owner| String::from_utf8_lossy(&owner).into_owned());
        let own = user.as_deref().and_then(storages::of_user);
        let name = own.as_deref().or(name);
        let definition = match name {
            None | Some(LOCAL) => Definition::local(),
            Some(name) => storages::require(name).or_raise(),
        };
        if definition.name != LOCAL {
            storages::publish(&definition).or_raise();
        }
        // SAFETY: an open relation has a pg_class row, and its schema a name.
        let namespace = unsafe { super::columns::text(pg_sys::get_namespace_name((*(*table.rel).rd_rel).relnamespace)) };
        Target { location: storages::open(&definition).or_raise(), namespace, table: relation_name(table.rel), user }
    }

    /// A place for the file of a segment.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn choose(&self, table: &Table, segment: u64) -> Result<FilePlace> {
        let name = segment_file_name(table.storage.id, segment, random());
        let names = Names { namespace: &self.namespace, table: &self.table, user: self.user.as_deref() };
        let path = self.location.object_path(&names, &name).map_err(|error| self.without_user(error))?;
        // SAFETY: a plain global of the backend.
        let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
        Ok(FilePlace { database, location: self.location.name().to_owned(), path })
    }

    /// Brings a finished file to its place, durably.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn store(&self, table: &Table, draft: &Path, place: &FilePlace) -> Result<()> {
        self.location.put(draft, &place.path, &table.wait).map_err(|error| self.without_user(error))?;
        Ok(())
    }

    /// An error that does not say whose rows were to be stored: the path does, and the table's owner reads what became of a job.
    fn without_user(&self, error: Error) -> Error {
        if self.user.is_none() || error.kind() == ErrorKind::Cancelled {
            return error;
        }
        let (kind, storage) = (error.kind(), self.location.name().to_owned());
        SqlError::from(error).log(pgrx::PgLogLevel::LOG);
        Error::new(kind, format!("could not write rows of a user to storage \"{storage}\""))
            .with_detail("The server's log has the path and the reason.")
            .with_hint("The work can be repeated when kalam.storage_check() says that the storage is healthy.")
    }
}
