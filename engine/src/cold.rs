//! Cold storage as every process sees it: what the engine keeps of segments, and the requests with which processes ask for changes.
//!
//! A job writes a segment's file and stores it; then one request makes its blocks cold. Requests and answers are JSON. One that is too
//! long for a slot of the shared memory goes through a file in the store's directory.

mod client;

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use client::{Client, Page};

use crate::cache::REQUEST_BYTES;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Lsn, StorageId};
use crate::segment::{BlockStub, ColumnSummary, SegmentSummary, ValueStub};

/// The location that is always there: a directory of the server.
pub const LOCAL: &str = "local";

/// Where a file is: a location of a database, and the path in it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct FilePlace {
    /// OID of the database whose location it is.
    pub database: u32,
    /// Name of the location.
    pub location: String,
    /// Path below it.
    pub path: String,
}

/// A segment that is part of a storage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// The storage.
    pub storage: StorageId,
    /// The segment's number, given out once in a cluster.
    pub segment: u64,
    /// Where its file is.
    pub place: FilePlace,
    /// The partition whose rows it has; 0 in a shared table.
    pub partition: u32,
    /// Rows of the file, those of blocks that are not read from it any more included.
    pub rows: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Bytes that the blocks took as hot pages.
    pub hot_bytes: u64,
    /// Blocks of the file.
    pub blocks: u32,
    /// `block << 16 | offset` of the first row.
    pub min_tid: u64,
    /// Likewise of the last row.
    pub max_tid: u64,
    /// The table's columns as they were counted when it was written.
    pub schema_version: u32,
    /// When it was committed, in seconds since 1970.
    pub created: u64,
    /// Least and greatest values.
    pub columns: Vec<ColumnSummary>,
}

/// A file that nobody needs any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Garbage {
    /// The segment whose file it was.
    pub segment: u64,
    /// Where it is.
    pub place: FilePlace,
    /// Since when nobody needs it, in seconds since 1970.
    pub since: u64,
    /// Whether it may still become part of a table: its commit is to come, and was announced at that time.
    pub announced: bool,
}

impl Garbage {
    /// The file of a segment that nobody needs since `now`.
    pub(crate) fn of(record: &SegmentRecord, now: u64) -> Garbage {
        Garbage { segment: record.segment, place: record.place.clone(), since: now, announced: false }
    }
}

/// The engine's copy of a location's definition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredLocation {
    /// OID of the database it is defined in.
    pub database: u32,
    /// Its name.
    pub name: String,
    /// URL and options, as the location module reads them.
    pub definition: serde_json::Value,
}

/// What a new segment does to its blocks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CommitMode {
    /// Blocks that are hot and have the stub's LSN become cold.
    Flush,
    /// Blocks that are cold in one of these segments are read from the new one.
    Replace(Vec<u64>),
    /// Blocks that do not exist come into being, as when a manifest is made anew from files. Nothing happens if the file is one that is
    /// to be deleted: what it has is elsewhere, or gone for good.
    Adopt,
}

/// A segment whose file is stored and complete, and whose rows are covered by the flushed log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommitSegment {
    /// The storage.
    pub storage: StorageId,
    /// The segment's number, from [`Client::begin_segment`].
    pub segment: u64,
    /// Where its file is.
    pub place: FilePlace,
    /// The partition whose rows it has.
    pub partition: u32,
    /// The table's columns as they are counted.
    pub schema_version: u32,
    /// What is to happen.
    pub mode: CommitMode,
    /// What the writer returned.
    pub summary: SegmentSummary,
}

/// What became of a commit.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Committed {
    /// The blocks that are read from the segment from now on, durably.
    pub cold: Vec<Range<u32>>,
    /// The blocks that changed meanwhile, or were in use, and stay as they were.
    pub left_out: Vec<Range<u32>>,
    /// Whether the segment is part of the storage; if not, the engine deletes its file.
    pub kept: bool,
}

/// How much of a segment is still in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SegmentUse {
    /// The segment.
    pub segment: u64,
    /// Blocks that are read from it.
    pub blocks: u64,
    /// Rows of those blocks.
    pub rows: u64,
    /// Large values that are read from it.
    pub values: u64,
}

/// What a process asks of the engine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// The request stands in this file of the store's directory.
    InFile(String),
    Commit(Vec<CommitSegment>),
    ColdRanges {
        storage: StorageId,
        from: u32,
    },
    BlockStubs {
        storage: StorageId,
        from: u32,
    },
    ValueStubs {
        storage: StorageId,
        from: u32,
    },
    Segments {
        storage: StorageId,
        after: u64,
    },
    SegmentUses {
        storage: StorageId,
    },
    Announce(Vec<(u64, FilePlace)>),
    PutLocation(StoredLocation),
    DropLocation {
        database: u32,
        name: String,
    },
    Locations {
        database: u32,
    },
    LocationUses {
        database: u32,
        name: String,
    },
    UnnamedValues {
        storage: StorageId,
        first: u32,
        named: Vec<u8>,
        before: Lsn,
    },
    DropUnusedFile(FilePlace),
    DeleteUnused,
    DropSuperseded {
        storages: Vec<StorageId>,
    },
}

/// What the engine answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    /// The answer stands in this file of the store's directory; its reader removes it.
    InFile(String),
    Failed {
        kind: Failed,
        message: String,
        detail: Option<String>,
        hint: Option<String>,
    },
    Done,
    Committed(Vec<Committed>),
    Ranges {
        ranges: Vec<Range<u32>>,
        next: Option<u32>,
    },
    BlockStubs {
        stubs: Vec<BlockStub>,
        next: Option<u32>,
    },
    ValueStubs {
        stubs: Vec<ValueStub>,
        next: Option<u32>,
    },
    Segments {
        segments: Vec<SegmentRecord>,
        next: Option<u64>,
    },
    SegmentUses(Vec<SegmentUse>),
    Locations(Vec<StoredLocation>),
    Values(Vec<u32>),
    Count(u64),
}

/// The kinds of error that an answer can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Failed {
    InvalidInput,
    Unsupported,
    Unavailable,
    LimitExceeded,
    DiskFull,
    OutOfMemory,
    Io,
    StorageMissing,
    Corrupt,
    Internal,
}

impl Told {
    pub(crate) fn failed(error: &Error) -> Told {
        let kind = match error.kind() {
            ErrorKind::InvalidInput => Failed::InvalidInput,
            ErrorKind::Unsupported => Failed::Unsupported,
            ErrorKind::Unavailable | ErrorKind::Cancelled => Failed::Unavailable,
            ErrorKind::LimitExceeded => Failed::LimitExceeded,
            ErrorKind::DiskFull => Failed::DiskFull,
            ErrorKind::OutOfMemory => Failed::OutOfMemory,
            ErrorKind::Io => Failed::Io,
            ErrorKind::StorageMissing => Failed::StorageMissing,
            ErrorKind::Corrupt => Failed::Corrupt,
            ErrorKind::Internal => Failed::Internal,
        };
        let (message, detail, hint) = (error.message().to_owned(), error.detail(), error.hint().map(str::to_owned));
        Told::Failed { kind, message, detail, hint }
    }
}

impl Failed {
    fn kind(self) -> ErrorKind {
        match self {
            Failed::InvalidInput => ErrorKind::InvalidInput,
            Failed::Unsupported => ErrorKind::Unsupported,
            Failed::Unavailable => ErrorKind::Unavailable,
            Failed::LimitExceeded => ErrorKind::LimitExceeded,
            Failed::DiskFull => ErrorKind::DiskFull,
            Failed::OutOfMemory => ErrorKind::OutOfMemory,
            Failed::Io => ErrorKind::Io,
            Failed::StorageMissing => ErrorKind::StorageMissing,
            Failed::Corrupt => ErrorKind::Corrupt,
            Failed::Internal => ErrorKind::Internal,
        }
    }
}

/// The name of a segment's file. `random` keeps it apart from others of the same number, as the number of a segment that was never
/// committed, or that an older store has forgotten, may be given out again.
pub fn segment_file_name(storage: StorageId, segment: u64, random: u32) -> String {
    format!("segment-{}-{segment}-{random:08x}.parquet", storage.0)
}

/// The segment's number in the name of its file, and whether it is a draft, which has `.tmp` behind it.
pub(crate) fn segment_of_file(name: &str) -> Option<(u64, bool)> {
    let (name, is_draft) = name.strip_suffix(".tmp").map_or((name, false), |name| (name, true));
    let mut parts = name.strip_prefix("segment-")?.strip_suffix(".parquet")?.split('-');
    let (storage, segment, _random) = (parts.next()?, parts.next()?, parts.next()?);
    storage.parse::<u64>().ok()?;
    segment.parse().ok().map(|segment| (segment, is_draft))
}

/// Appends a number to ranges of ascending numbers.
pub(crate) fn push_to_ranges(ranges: &mut Vec<Range<u32>>, number: u32) {
    match ranges.last_mut() {
        Some(last) if last.end == number => last.end += 1,
        _ => ranges.push(number..number + 1),
    }
}

/// The directory for messages that are too long for the shared memory.
pub(crate) fn message_directory(store: &Path) -> PathBuf {
    store.join("pending")
}

/// The bytes of a message for the shared memory; what is too long goes into a file, and `in_file` makes the message that names it.
pub(crate) fn pack<M: Serialize>(message: &M, store: &Path, in_file: impl FnOnce(String) -> M) -> Result<Vec<u8>> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let encode = |message: &M| {
        serde_json::to_vec(message).map_err(|error| Error::internal("could not encode a message").with_source(error))
    };
    let bytes = encode(message)?;
    if bytes.len() <= REQUEST_BYTES {
        return Ok(bytes);
    }
    let directory = message_directory(store);
    fs::create_dir_all(&directory)?;
    let name = format!("message-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    // Definitions of locations have secrets.
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(directory.join(&name))?;
    file.write_all(&bytes)?;
    encode(&in_file(name))
}

/// The message in a file that `pack` wrote.
pub(crate) fn unpack<M: serde::de::DeserializeOwned>(store: &Path, name: &str) -> Result<M> {
    if name.contains('/') || !name.starts_with("message-") {
        return Err(Error::new(ErrorKind::InvalidInput, "a message names a file that is none"));
    }
    parse(&fs::read(message_directory(store).join(name))?)
}

/// The message in these bytes.
pub(crate) fn parse<M: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<M> {
    serde_json::from_slice(bytes).map_err(|error| Error::internal("a message has no valid form").with_source(error))
}
