//! A storage in a directory of this machine.
//!
//! Files come into being under another name and get theirs when they are durable. No symbolic link below the directory is followed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Error as IoError, ErrorKind as IoErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{Advice, fadvise};

use super::failure::Attempt;
use super::{Object, Stored};
use crate::cache::Wait;
use crate::error::{Error, ErrorKind, Result};

/// Bytes that are copied between two looks at interrupts.
const COPY_BYTES: usize = 1 << 20;
/// Directories between the storage's own and a file.
const DEPTH_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub fn new(path: PathBuf) -> Directory {
        Directory { path }
    }

    /// The directory itself, which exists after this.
    pub fn create(&self) -> std::io::Result<()> {
        make_directory(&self.path)
    }

    /// The path of an object's file. Every directory on the way is one, not a link to one.
    fn file(&self, object: &str, create: bool) -> std::io::Result<PathBuf> {
        let mut path = self.path.clone();
        let mut parts = object.split('/').peekable();
        while let Some(part) = parts.next() {
            path.push(part);
            if parts.peek().is_none() {
                break;
            }
            if create {
                make_directory(&path)?;
            }
            if !fs::symlink_metadata(&path)?.is_dir() {
                return Err(IoError::from_raw_os_error(libc::ENOTDIR));
            }
        }
        Ok(path)
    }

    pub fn put(&self, source: &Path, object: &str, attempt: &Attempt<'_>, wait: &dyn Wait) -> Result<Stored> {
        let failed = |error: IoError| attempt.system(&error);
        self.create().map_err(failed)?;
        let target = self.file(object, true).map_err(failed)?;
        if fs::symlink_metadata(&target).is_ok() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("\"{object}\" already exists in storage \"{}\"", attempt.storage),
            )
            .with_detail("Objects are never written again.")
            .with_hint("Choose a name that is new."));
        }
        let mut name = target.file_name().unwrap_or_default().to_os_string();
        name.push(".tmp");
        let unfinished = target.with_file_name(name);
        let stored = copy(source, &unfinished, attempt, wait).and_then(|stored| {
            fs::rename(&unfinished, &target).map_err(failed)?;
            sync_parents(&target, &self.path).map_err(failed)?;
            Ok(stored)
        });
        if stored.is_err() {
            // What cannot be removed now is removed with other files that nobody names.
            let _ = fs::remove_file(&unfinished);
        }
        stored
    }

    pub fn open(&self, object: &str, bytes: u64, attempt: &Attempt<'_>) -> Result<DirectoryFile> {
        let open = || -> std::io::Result<(File, u64)> {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(self.file(object, false)?)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(|error| attempt.system(&error))?;
        if length != bytes {
            return Err(attempt.corrupt(format!("It has {length} bytes, and must have {bytes}.")));
        }
        Ok(DirectoryFile { file })
    }

    pub fn size(&self, object: &str, attempt: &Attempt<'_>) -> Result<u64> {
        let found = self.file(object, false).and_then(fs::symlink_metadata);
        found.map(|found| found.len()).map_err(|error| attempt.system(&error))
    }

    pub fn delete(&self, object: &str, attempt: &Attempt<'_>) -> Result<()> {
        let remove = || -> std::io::Result<()> {
            let path = self.file(object, false)?;
            fs::remove_file(&path)?;
            // Directories that are empty now go, up to the storage's own.
            let mut directory = path.parent();
            while let Some(path) = directory.filter(|path| *path != self.path && path.starts_with(&self.path)) {
                if fs::remove_dir(path).is_err() {
                    break;
                }
                directory = path.parent();
            }
            Ok(())
        };
        match remove() {
            Err(error) if error.kind() != IoErrorKind::NotFound => Err(attempt.system(&error)),
            _ => Ok(()),
        }
    }

    /// Files below a directory that come after a path, in the order of their paths; unfinished ones are among them.
    pub fn list(
        &self,
        wanted: &str,
        after: Option<&str>,
        limit: usize,
        attempt: &Attempt<'_>,
        wait: &dyn Wait,
    ) -> Result<Vec<Object>> {
        let mut found = BTreeMap::new();
        let mut directories = vec![(String::new(), 0)];
        while let Some((directory, depth)) = directories.pop() {
            wait.pause()?;
            let entries = match fs::read_dir(self.path.join(&directory)) {
                Ok(entries) => entries,
                Err(error) if error.kind() == IoErrorKind::NotFound => continue,
                Err(error) => return Err(attempt.system(&error)),
            };
            for entry in entries {
                let entry = entry.map_err(|error| attempt.system(&error))?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                let on_the_way = is_below(&path, wanted) || is_below(wanted, &path);
                // What vanishes meanwhile is not there.
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.is_dir() && depth < DEPTH_MAX && on_the_way {
                    directories.push((path, depth + 1));
                } else if metadata.is_file() && is_below(&path, wanted) && after.is_none_or(|after| path.as_str() > after) {
                    let modified = metadata.modified().map_err(|error| attempt.system(&error))?;
                    found.insert(path.clone(), Object { path, bytes: metadata.len(), modified });
                    if found.len() > limit {
                        found.pop_last();
                    }
                }
            }
        }
        Ok(found.into_values().collect())
    }
}

/// An open file of a directory.
#[derive(Debug)]
pub(super) struct DirectoryFile {
    file: File,
}

impl DirectoryFile {
    /// Has the device read ranges that are about to be read here, all at once instead of one after the other.
    pub fn announce(&self, ranges: &[Range<u64>]) {
        for range in ranges {
            // To the system no length means the rest of the file. It is advice: without it, they are read as well.
            if let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
                let _ = fadvise(&self.file, range.start, Some(len), Advice::WillNeed);
            }
        }
    }

    pub fn read(&self, range: Range<u64>, attempt: &Attempt<'_>) -> Result<Bytes> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        match self.file.read_exact_at(&mut bytes, range.start) {
            Ok(()) => Ok(bytes.into()),
            Err(error) if error.kind() == IoErrorKind::UnexpectedEof => {
                Err(attempt.corrupt(format!("It ends before byte {}.", range.end)))
            }
            Err(error) => Err(attempt.system(&error)),
        }
    }
}

/// Whether a path is a directory or lies in it; everything lies in "".
fn is_below(path: &str, directory: &str) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn make_directory(path: &Path) -> std::io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == IoErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn copy(source: &Path, target: &Path, attempt: &Attempt<'_>, wait: &dyn Wait) -> Result<Stored> {
    let failed = |error: IoError| attempt.system(&error);
    let mut from = File::open(source)?;
    // Left by a try that broke off.
    let _ = fs::remove_file(target);
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(target)
        .map_err(failed)?;
    let mut stored = Stored::default();
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        wait.pause()?;
        let length = from.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        to.write_all(&buffer[..length]).map_err(failed)?;
        stored.add(&buffer[..length]);
    }
    to.sync_all().map_err(failed)?;
    Ok(stored)
}

/// Makes the names durable that lead to a file.
fn sync_parents(file: &Path, root: &Path) -> std::io::Result<()> {
    let mut directory = file.parent();
    while let Some(path) = directory.filter(|path| path.starts_with(root)) {
        File::open(path)?.sync_all()?;
        directory = path.parent();
    }
    match root.parent() {
        // The storage's own directory may be new.
        Some(parent) => File::open(parent).and_then(|parent| parent.sync_all()).or_else(|error| match error.kind() {
            IoErrorKind::PermissionDenied => Ok(()),
            _ => Err(error),
        }),
        None => Ok(()),
    }
}

/// Checks a directory that a user names and creates it if need be; answers its real path, without symbolic links.
///
/// # Errors
/// `InvalidInput` when it is or contains the data directory, is inside of it, or belongs to or may be written by others;
/// `StorageMissing` or `Io` when it cannot be used.
pub fn prepare_directory(storage: &str, path: &Path, data_directory: &Path) -> Result<PathBuf> {
    let attempt = Attempt { storage, action: "create the directory of", object: "", secrets: &[] };
    let failed = |error: IoError| attempt.system(&error);
    let refuse = |detail: &str| {
        Err(Error::new(ErrorKind::InvalidInput, format!("directory \"{}\" cannot be a storage", path.display()))
            .with_detail(detail)
            .with_hint("Choose an absolute path outside of the data directory, where only the server's user may write."))
    };
    let data = data_directory.canonicalize().map_err(failed)?;
    // Judged before anything is created: the part that exists says where the rest would be.
    let mut existing = path;
    let missing = loop {
        match existing.canonicalize() {
            Ok(real) => break real.join(path.strip_prefix(existing).unwrap_or(Path::new(""))),
            Err(error) if error.kind() == IoErrorKind::NotFound => match existing.parent() {
                Some(parent) => existing = parent,
                None => return Err(failed(error)),
            },
            Err(error) => return Err(failed(error)),
        }
    };
    if missing.starts_with(&data) || data.starts_with(&missing) {
        return refuse("It is in the data directory, or the data directory in it.");
    }
    if !path.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&missing).map_err(failed)?;
    }
    let real = path.canonicalize().map_err(failed)?;
    let metadata = fs::metadata(&real).map_err(failed)?;
    if real != missing || !metadata.is_dir() {
        return refuse("It is no directory.");
    }
    if metadata.permissions().mode() & 0o022 != 0 {
        return refuse("Others than its owner may write into it.");
    }
    if real.join("PG_VERSION").exists() {
        return refuse("It is a directory of a PostgreSQL server.");
    }
    let probe = real.join(format!(".kalam-probe-{}", std::process::id()));
    let tried = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe).and_then(|_| fs::remove_file(&probe));
    tried.map_err(failed)?;
    Ok(real)
}

/// Whether a directory is still the one that was checked: no part of its path has become a symbolic link.
pub(super) fn check_real(path: &Path, attempt: &Attempt<'_>) -> Result<()> {
    let real = path.canonicalize().map_err(|error| attempt.system(&error))?;
    match real == path {
        true => Ok(()),
        false => Err(attempt.system(&IoError::from_raw_os_error(libc::ELOOP))),
    }
}
