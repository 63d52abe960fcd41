//! Storages of cold segments: directories and object stores behind one face.
//!
//! A [`Definition`] is what the user says, a [`Location`] what does the work. Objects are written once under names that are new, never
//! changed, and read in ranges. Nothing here waits without an end: every request has a limit, and waiters are asked every 50 ms.

mod check;
mod definition;
mod directory;
mod failure;
mod io;
mod remote;
mod template;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::cache::{Wait, WaitForever};
use crate::error::{Error, ErrorKind, Result};
use crate::segment::SegmentSource;
use directory::{Directory, DirectoryFile};
use failure::Attempt;
use remote::Remote;

pub use check::{Health, Report, Step};
pub use definition::{Address, Definition, Kind, LOCAL};
pub use directory::prepare_directory;
pub use io::start;
pub use template::{Names, Owner, Template, check_object, encode_name};

/// What was stored.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stored {
    /// Length of the object.
    pub bytes: u64,
    /// Its CRC-32C.
    pub crc32c: u32,
}

impl Stored {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
    }
}

/// An object that a list names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// Its path below the location.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// When it was written, by the storage's clock.
    pub modified: SystemTime,
}

#[derive(Debug)]
enum Place {
    Directory(Directory),
    Remote(Remote),
}

#[derive(Debug)]
struct Inner {
    definition: Definition,
    secrets: Vec<String>,
    place: Place,
}

/// A storage that can be used; clones are the same one.
#[derive(Clone, Debug)]
pub struct Location {
    inner: Arc<Inner>,
}

impl Location {
    /// Makes the storage of a definition usable without asking anything of it. `local_directory` is that of the storage `local`.
    ///
    /// A process whose main thread is Postgres' calls [`start`] before, with all signals blocked.
    ///
    /// # Errors
    /// `InvalidInput` when the definition is wrong, `StorageMissing` when its directory is not what it was.
    pub fn open(definition: &Definition, local_directory: &Path) -> Result<Location> {
        definition.check()?;
        let address = definition.address()?;
        let place = match address.kind {
            Kind::File if address.path.is_empty() => Place::Directory(Directory::new(local_directory.to_owned())),
            Kind::File => {
                let attempt = Attempt { storage: &definition.name, action: "open", object: "", secrets: &[] };
                directory::check_real(Path::new(&address.path), &attempt)?;
                Place::Directory(Directory::new(address.path.into()))
            }
            Kind::S3 | Kind::Gcs | Kind::Azure => Place::Remote(Remote::open(definition, address)?),
        };
        Ok(Location::at(definition.clone(), place))
    }

    fn at(definition: Definition, place: Place) -> Location {
        let secrets = definition.secrets();
        Location { inner: Arc::new(Inner { definition, secrets, place }) }
    }

    /// The storage's name.
    pub fn name(&self) -> &str {
        &self.inner.definition.name
    }

    /// The definition it was opened with.
    pub fn definition(&self) -> &Definition {
        &self.inner.definition
    }

    fn attempt<'a>(&'a self, action: &'static str, object: &'a str) -> Attempt<'a> {
        Attempt { storage: self.name(), action, object, secrets: &self.inner.secrets }
    }

    /// The path of a table's file by the definition's template.
    ///
    /// # Errors
    /// `InvalidInput` when the file's name is no part of a path, or the path gets too long.
    pub fn object_path(&self, names: &Names<'_>, file_name: &str) -> Result<String> {
        let owner = if names.user.is_some() { Owner::User } else { Owner::Shared };
        let path = format!("{}/{file_name}", self.inner.definition.template(owner)?.render(names)?);
        check_object(&path)?;
        Ok(path)
    }

    /// Stores a file as a new object. When this returns, the object is durable and was looked at.
    ///
    /// # Errors
    /// `Io` when the storage cannot be reached or refuses, `StorageMissing` when it is not there or does not let us, `Corrupt` when it
    /// does not have what it took, `DiskFull`; what ends the wait.
    pub fn put(&self, file: &Path, object: &str, wait: &dyn Wait) -> Result<Stored> {
        check_object(object)?;
        let attempt = self.attempt("write", object);
        match &self.inner.place {
            Place::Directory(directory) => directory.put(file, object, &attempt, wait),
            Place::Remote(remote) => remote.put(file, object, &attempt, wait),
        }
    }

    /// Opens an object of known length for reading. Nothing is asked of an object store yet.
    ///
    /// # Errors
    /// `StorageMissing` when there is no such object, `Corrupt` when it has another length.
    pub fn source(&self, object: &str, bytes: u64) -> Result<ObjectReader> {
        check_object(object)?;
        let file = match &self.inner.place {
            Place::Directory(directory) => Some(directory.open(object, bytes, &self.attempt("open", object))?),
            Place::Remote(_) => None,
        };
        Ok(ObjectReader { location: self.clone(), object: object.to_owned(), bytes, file })
    }

    /// Reads an object back and compares its length and checksum.
    ///
    /// # Errors
    /// As [`Location::put`].
    pub fn verify(&self, object: &str, stored: &Stored, wait: &dyn Wait) -> Result<()> {
        check_object(object)?;
        let attempt = self.attempt("verify", object);
        match &self.inner.place {
            Place::Directory(directory) => {
                let file = directory.open(object, stored.bytes, &attempt)?;
                let mut found = Stored::default();
                while found.bytes < stored.bytes {
                    wait.pause()?;
                    let end = stored.bytes.min(found.bytes + (1 << 20));
                    found.add(&file.read(found.bytes..end, &attempt)?);
                }
                match found == *stored {
                    true => Ok(()),
                    false => Err(attempt.corrupt("Its checksum is not that of what was written.")),
                }
            }
            Place::Remote(remote) => remote.verify(object, stored, &attempt, wait),
        }
    }

    /// The length of an object.
    ///
    /// # Errors
    /// `StorageMissing` when it is not there; as [`Location::put`].
    pub fn size(&self, object: &str, wait: &dyn Wait) -> Result<u64> {
        check_object(object)?;
        let attempt = self.attempt("find", object);
        match &self.inner.place {
            Place::Directory(directory) => directory.size(object, &attempt),
            Place::Remote(remote) => remote.size(object, &attempt, wait),
        }
    }

    /// Removes an object; one that is not there is removed already.
    ///
    /// # Errors
    /// As [`Location::put`].
    pub fn delete(&self, object: &str, wait: &dyn Wait) -> Result<()> {
        check_object(object)?;
        let attempt = self.attempt("delete", object);
        match &self.inner.place {
            Place::Directory(directory) => directory.delete(object, &attempt),
            Place::Remote(remote) => remote.delete(object, &attempt, wait),
        }
    }

    /// Up to `limit` objects below a directory, or all for "", that come after a path, in the order of their paths. A full list goes on
    /// with its last path as `after`.
    ///
    /// # Errors
    /// As [`Location::put`].
    pub fn list(&self, directory: &str, after: Option<&str>, limit: usize, wait: &dyn Wait) -> Result<Vec<Object>> {
        let directory = directory.trim_end_matches('/');
        for path in [Some(directory), after].into_iter().flatten().filter(|path| !path.is_empty()) {
            check_object(path)?;
        }
        let attempt = self.attempt("list", directory);
        match &self.inner.place {
            Place::Directory(files) => files.list(directory, after, limit, &attempt, wait),
            Place::Remote(remote) => remote.list(directory, after, limit, &attempt, wait),
        }
    }

    /// Ends all waits for an object store within 100 ms, those of other threads and later ones too.
    pub fn close(&self) {
        if let Place::Remote(remote) = &self.inner.place {
            remote.close();
        }
    }
}

/// An object that is read in ranges.
#[derive(Debug)]
pub struct ObjectReader {
    location: Location,
    object: String,
    bytes: u64,
    file: Option<DirectoryFile>,
}

impl ObjectReader {
    /// Length of the object.
    pub fn size(&self) -> u64 {
        self.bytes
    }

    /// Unwanted bytes between two ranges up to which one read is cheaper than two.
    pub fn gap(&self) -> u64 {
        if self.file.is_some() { 16 << 10 } else { 256 << 10 }
    }

    /// Reads exactly these ranges.
    ///
    /// # Errors
    /// `Corrupt` when the object has another length or ends before; as [`Location::put`].
    pub fn read_ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let attempt = self.location.attempt("read", &self.object);
        if let Some(bad) = ranges.iter().find(|range| range.start > range.end || range.end > self.bytes) {
            return Err(attempt.corrupt(format!("Bytes {} to {} are wanted of {}.", bad.start, bad.end, self.bytes)));
        }
        match (&self.file, &self.location.inner.place) {
            (Some(file), _) => {
                if ranges.len() > 1 {
                    file.announce(ranges);
                }
                ranges.iter().map(|range| file.read(range.clone(), &attempt)).collect()
            }
            (None, Place::Remote(remote)) => remote.read_ranges(&self.object, self.bytes, ranges, &attempt, &WaitForever),
            (None, Place::Directory(_)) => Err(Error::new(ErrorKind::Internal, "an object of a directory without its file")),
        }
    }

    /// Reads exactly this range.
    ///
    /// # Errors
    /// As [`ObjectReader::read_ranges`].
    pub fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let read = self.read_ranges(std::slice::from_ref(&range))?;
        read.into_iter().next().ok_or_else(|| Error::internal("a read of one range answered none"))
    }
}

impl SegmentSource for ObjectReader {
    fn size(&self) -> u64 {
        self.bytes
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        ObjectReader::read(self, range)
    }

    fn read_ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        ObjectReader::read_ranges(self, ranges)
    }

    fn gap(&self) -> u64 {
        ObjectReader::gap(self)
    }
}
