//! The store's directory inside the data directory.

use std::ffi::{CStr, OsStr};
use std::fs::{self, DirBuilder};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kalamdb_engine::{Error, ErrorKind, Result, sentence};
use pgrx::pg_sys;

/// Base backups and pg_rewind skip names that begin with pgsql_tmp, as they must a live store.
const NAME: &str = "pgsql_tmp_kalamdb";

/// The default directory of segments; unlike the store it is part of a base backup, as segments never change.
const SEGMENTS: &str = "kalamdb_segments";

/// The store's directory.
pub fn store_directory() -> PathBuf {
    data_directory().join(NAME)
}

/// The server's own directory for segments: the location `local`.
pub fn segments_directory() -> PathBuf {
    data_directory().join(SEGMENTS)
}

/// The directory's path, made with the data directory's own mode if it is not there.
///
/// # Errors
/// `StorageMissing` if it cannot be made or used.
pub fn prepare() -> Result<PathBuf> {
    let path = store_directory();
    let unusable = |error: std::io::Error| {
        Error::new(ErrorKind::StorageMissing, format!("could not use the store's directory \"{}\"", path.display()))
            .with_detail(sentence(error))
            .with_hint("The directory must belong to the server's operating system user and be writable for it.")
    };
    match fs::metadata(&path) {
        Ok(metadata) if !metadata.is_dir() => return Err(unusable(std::io::ErrorKind::NotADirectory.into())),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mode = fs::metadata(data_directory()).map_err(unusable)?.permissions().mode() & 0o750;
            DirBuilder::new().mode(mode).create(&path).map_err(unusable)?;
        }
        Err(error) => return Err(unusable(error)),
    }
    // Opening it for listing tells missing rights before RocksDB meets them in the middle of its files.
    fs::read_dir(&path).map_err(unusable)?;
    Ok(path)
}

/// Postgres' own directory for temporary files, which it empties when the server starts.
///
/// # Errors
/// `Io` if it cannot be made.
pub fn temporary_directory() -> Result<PathBuf> {
    let path = data_directory().join("base/pgsql_tmp");
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(path),
    }
}

/// The cluster's data directory.
pub fn data_directory() -> &'static Path {
    // SAFETY: set at the start of the server and never changed.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(pg_sys::DataDir) }.to_bytes()))
}

/// Whether the postmaster is shutting down: then a request to leave is final, else it asks for a restart.
pub fn server_is_stopping() -> bool {
    const STATUS_LINE: usize = 7;
    fs::read_to_string(data_directory().join("postmaster.pid"))
        .ok()
        .and_then(|text| text.lines().nth(STATUS_LINE).map(|status| status.trim() == "stopping"))
        .unwrap_or(true)
}
