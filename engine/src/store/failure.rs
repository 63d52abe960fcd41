//! Turns RocksDB's failures into the engine's errors: what the user can do about each.

use std::path::Path;

use super::format;
use crate::error::{Error, ErrorKind, sentence};
use crate::ids::PageKey;

/// A failure of reading one page.
#[cold]
pub(super) fn page(key: PageKey, error: rocksdb::Error) -> Error {
    match kind(&error) {
        ErrorKind::Corrupt | ErrorKind::StorageMissing => format::unreadable_page(key)
            .with_hint("The file named in the detail is damaged or gone; restore it, or the cluster, from a backup.")
            .with_detail(sentence(error)),
        kind => complete(kind, format!("could not read a page of storage {}", key.storage.0), error),
    }
}

/// A failure of any other use of an open store; `action` completes "could not".
#[cold]
pub(super) fn using(action: &str, error: rocksdb::Error) -> Error {
    complete(kind(&error), format!("could not {action}"), error)
}

/// A failure of opening.
#[cold]
pub(super) fn opening(directory: &Path, error: rocksdb::Error) -> Error {
    if error.as_ref().contains("Column families not opened") {
        return format::newer_format(directory).with_detail(sentence(error));
    }
    if error.as_ref().contains("While lock file") || error.as_ref().contains("lock hold by current process") {
        return Error::new(ErrorKind::Unavailable, format!("the store in \"{}\" is in use", directory.display()))
            .with_hint("Another process has the store open; wait until it has ended.")
            .with_detail(sentence(error));
    }
    complete(kind(&error), format!("could not open the store in \"{}\"", directory.display()), error)
}

fn complete(kind: ErrorKind, message: String, error: rocksdb::Error) -> Error {
    let complete = Error::new(kind, message).with_detail(sentence(error));
    match kind {
        ErrorKind::DiskFull => complete
            .with_hint("Free some hundred megabytes on the device of the data directory; the work goes on by itself then."),
        ErrorKind::StorageMissing => {
            complete.with_hint("Check that the files exist and belong to the operating system user that runs the server.")
        }
        ErrorKind::Corrupt => complete.with_hint("Restore the named file, or the cluster, from a backup."),
        _ => complete,
    }
}

/// RocksDB gives the cause only as text.
fn kind(error: &rocksdb::Error) -> ErrorKind {
    let text = error.as_ref();
    if text.contains("No space left on device") || text.contains("Disk quota exceeded") || text.starts_with("IO error: NoSpace") {
        return ErrorKind::DiskFull;
    }
    if text.contains("Permission denied") || text.contains("Read-only file system") || text.contains("No such file or directory")
    {
        return ErrorKind::StorageMissing;
    }
    if text.contains("Cannot allocate memory") {
        return ErrorKind::OutOfMemory;
    }
    match error.kind() {
        rocksdb::ErrorKind::Corruption => ErrorKind::Corrupt,
        rocksdb::ErrorKind::ShutdownInProgress => ErrorKind::Unavailable,
        rocksdb::ErrorKind::IOError => ErrorKind::Io,
        _ => ErrorKind::Internal,
    }
}
