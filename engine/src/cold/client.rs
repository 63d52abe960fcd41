//! The requester's side: one method for each request.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use super::{
    Ask, CommitSegment, Committed, FilePlace, SegmentRecord, SegmentUse, StoredLocation, Told, message_directory, pack, parse,
    unpack,
};
use crate::cache::{Cache, RequestClass, Wait};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Lsn, StorageId};
use crate::segment::{BlockStub, ValueStub};

/// Asks the engine on behalf of one process, or one statement of it.
pub struct Client<'w> {
    cache: Cache,
    store: PathBuf,
    wait: &'w dyn Wait,
}

/// A part of a list, and where the next part begins.
pub struct Page<T, P> {
    /// The part.
    pub entries: Vec<T>,
    /// What to ask for next; nothing at the end.
    pub next: Option<P>,
}

impl<'w> Client<'w> {
    /// A client of the engine behind a cache; `store` is the store's directory.
    pub fn new(cache: &Cache, store: PathBuf, wait: &'w dyn Wait) -> Client<'w> {
        Client { cache: *cache, store, wait }
    }

    /// Gives out the number of a segment that is about to be written.
    pub fn begin_segment(&self) -> u64 {
        self.cache.header().allocate_segment()
    }

    /// Keeps a number from being given out that a file has.
    pub fn skip_segment(&self, segment: u64) {
        self.cache.header().skip_segment(segment);
    }

    /// Tells where the files of segments are about to be stored: should this process end before the commit, the engine deletes them. For
    /// locations that others use as well, this is the only way in which files without an owner are found.
    ///
    /// # Errors
    /// Those of the store; what ends the wait.
    pub fn announce_files(&self, files: Vec<(u64, FilePlace)>) -> Result<()> {
        self.done(RequestClass::Long, Ask::Announce(files))
    }

    /// Makes stored segments part of their storages; answers for each of them. After an error the caller leaves the files alone: the engine
    /// knows which are needed, and deletes the others later.
    ///
    /// # Errors
    /// `StorageMissing` when the storage is gone, `InvalidInput` when the file is not as the summary says; `Corrupt`, `Io`, `DiskFull`,
    /// `Unavailable`; what ends the wait.
    pub fn commit_segments(&self, segments: Vec<CommitSegment>) -> Result<Vec<Committed>> {
        let count = segments.len();
        match self.ask(RequestClass::Long, Ask::Commit(segments))? {
            Told::Committed(committed) if committed.len() == count => Ok(committed),
            _ => Err(unsuited()),
        }
    }

    /// As [`Client::commit_segments`], for one.
    ///
    /// # Errors
    /// As [`Client::commit_segments`].
    pub fn commit_segment(&self, segment: CommitSegment) -> Result<Committed> {
        self.commit_segments(vec![segment])?.pop().ok_or_else(unsuited)
    }

    /// The cold blocks from `from` on: durably so, when this returns. A block among them may become hot at any moment.
    ///
    /// # Errors
    /// Those of the store; what ends the wait.
    pub fn cold_ranges(&self, storage: StorageId, from: u32) -> Result<Page<Range<u32>, u32>> {
        match self.ask(RequestClass::Quick, Ask::ColdRanges { storage, from })? {
            Told::Ranges { ranges, next } => Ok(Page { entries: ranges, next }),
            _ => Err(unsuited()),
        }
    }

    /// The stubs of cold blocks from `from` on.
    ///
    /// # Errors
    /// As [`Client::cold_ranges`].
    pub fn block_stubs(&self, storage: StorageId, from: u32) -> Result<Page<BlockStub, u32>> {
        match self.ask(RequestClass::Quick, Ask::BlockStubs { storage, from })? {
            Told::BlockStubs { stubs, next } => Ok(Page { entries: stubs, next }),
            _ => Err(unsuited()),
        }
    }

    /// The stubs of large values from number `from` on.
    ///
    /// # Errors
    /// As [`Client::cold_ranges`].
    pub fn value_stubs(&self, storage: StorageId, from: u32) -> Result<Page<ValueStub, u32>> {
        match self.ask(RequestClass::Quick, Ask::ValueStubs { storage, from })? {
            Told::ValueStubs { stubs, next } => Ok(Page { entries: stubs, next }),
            _ => Err(unsuited()),
        }
    }

    /// The large values with numbers from `first` on whose bits in `named` are not set, which the store has, and whose first chunk was
    /// changed last before `before`. Pages that were not written yet are not looked at.
    ///
    /// # Errors
    /// As [`Client::cold_ranges`]; `Corrupt` when a page has no valid form.
    pub fn unnamed_values(&self, storage: StorageId, first: u32, named: &[u8], before: Lsn) -> Result<Vec<u32>> {
        match self.ask(RequestClass::Quick, Ask::UnnamedValues { storage, first, named: named.to_vec(), before })? {
            Told::Values(values) => Ok(values),
            _ => Err(unsuited()),
        }
    }

    /// The segments of a storage with numbers above `after`.
    ///
    /// # Errors
    /// As [`Client::cold_ranges`].
    pub fn segments(&self, storage: StorageId, after: u64) -> Result<Page<SegmentRecord, u64>> {
        match self.ask(RequestClass::Quick, Ask::Segments { storage, after })? {
            Told::Segments { segments, next } => Ok(Page { entries: segments, next }),
            _ => Err(unsuited()),
        }
    }

    /// How much of each segment of a storage is still in use.
    ///
    /// # Errors
    /// As [`Client::cold_ranges`].
    pub fn segment_uses(&self, storage: StorageId) -> Result<Vec<SegmentUse>> {
        match self.ask(RequestClass::Quick, Ask::SegmentUses { storage })? {
            Told::SegmentUses(uses) => Ok(uses),
            _ => Err(unsuited()),
        }
    }

    /// Gives the engine the definition of a location, durably when this returns.
    ///
    /// # Errors
    /// `InvalidInput` when the definition is none; those of the store; what ends the wait.
    pub fn put_location(&self, location: StoredLocation) -> Result<()> {
        self.done(RequestClass::Long, Ask::PutLocation(location))
    }

    /// Makes the engine forget a location.
    ///
    /// # Errors
    /// As [`Client::put_location`].
    pub fn drop_location(&self, database: u32, name: &str) -> Result<()> {
        self.done(RequestClass::Long, Ask::DropLocation { database, name: name.to_owned() })
    }

    /// The locations of a database that the engine knows.
    ///
    /// # Errors
    /// As [`Client::put_location`].
    pub fn locations(&self, database: u32) -> Result<Vec<StoredLocation>> {
        match self.ask(RequestClass::Quick, Ask::Locations { database })? {
            Told::Locations(locations) => Ok(locations),
            _ => Err(unsuited()),
        }
    }

    /// How many files the engine has in a location, those that are about to be deleted included.
    ///
    /// # Errors
    /// As [`Client::put_location`].
    pub fn location_uses(&self, database: u32, name: &str) -> Result<u64> {
        self.count(RequestClass::Quick, Ask::LocationUses { database, name: name.to_owned() })
    }

    /// Deletes a stored file that was never committed; does nothing to a file that is part of a table.
    ///
    /// # Errors
    /// Those of the location; what ends the wait.
    pub fn drop_unused_file(&self, place: FilePlace) -> Result<()> {
        self.done(RequestClass::Long, Ask::DropUnusedFile(place))
    }

    /// Looks for segments that nobody needs any more and deletes their files as far as their retention is over; returns how many.
    ///
    /// # Errors
    /// Those of the store; what ends the wait.
    pub fn delete_unused(&self) -> Result<u64> {
        self.count(RequestClass::Long, Ask::DeleteUnused)
    }

    /// Rewrites what the store has of storages, so that no file of it has bytes any more that were overwritten or removed before.
    /// Takes as long as that takes; when the wait ends, it goes no further.
    ///
    /// # Errors
    /// Those of the store, also when files could not be written anew; what ends the wait.
    pub fn drop_superseded(&self, storages: Vec<StorageId>) -> Result<()> {
        self.done(RequestClass::Lasting, Ask::DropSuperseded { storages })
    }

    fn done(&self, class: RequestClass, ask: Ask) -> Result<()> {
        match self.ask(class, ask)? {
            Told::Done => Ok(()),
            _ => Err(unsuited()),
        }
    }

    fn count(&self, class: RequestClass, ask: Ask) -> Result<u64> {
        match self.ask(class, ask)? {
            Told::Count(count) => Ok(count),
            _ => Err(unsuited()),
        }
    }

    fn ask(&self, class: RequestClass, ask: Ask) -> Result<Told> {
        let payload = pack(&ask, &self.store, Ask::InFile)?;
        let answer = self.cache.ask(class, &payload, self.wait)?;
        if answer.is_empty() {
            return Err(Error::new(ErrorKind::Unavailable, "the KalamDB engine could not answer a request")
                .with_hint("The server log has the cause; try again."));
        }
        let told = match parse(&answer)? {
            Told::InFile(name) => {
                let told = unpack(&self.store, &name)?;
                // The worker removes what is left here at its next start.
                let _ = fs::remove_file(message_directory(&self.store).join(name));
                told
            }
            told => told,
        };
        match told {
            Told::Failed { kind, message, detail, hint } => {
                let mut error = Error::new(kind.kind(), message);
                if let Some(detail) = detail {
                    error = error.with_detail(detail);
                }
                if let Some(hint) = hint {
                    error = error.with_hint(hint);
                }
                Err(error)
            }
            told => Ok(told),
        }
    }
}

fn unsuited() -> Error {
    Error::internal("the KalamDB engine gave an answer that does not suit the request")
}
