//! Failures of storages as the engine's errors: which storage, what it was to do, with which object, and why not; never a credential.

use std::error::Error as StdError;

use super::io::Unfinished;
use crate::error::{Error, ErrorKind, sentence};

/// What was tried where.
#[derive(Clone, Debug)]
pub(super) struct Attempt<'a> {
    /// The storage's name.
    pub storage: &'a str,
    /// Completes "could not": "read", "write"...
    pub action: &'static str,
    /// The object's path; empty for the storage as a whole.
    pub object: &'a str,
    /// Texts that no message may contain.
    pub secrets: &'a [String],
}

impl Attempt<'_> {
    fn message(&self) -> String {
        let Attempt { storage, action, object, .. } = self;
        match object.is_empty() {
            true => format!("could not {action} storage \"{storage}\""),
            false => format!("could not {action} \"{object}\" in storage \"{storage}\""),
        }
    }

    fn error(&self, kind: ErrorKind, cause: &str) -> Error {
        let error = Error::new(kind, self.message()).with_detail(sentence(self.redacted(cause)));
        match kind {
            ErrorKind::StorageMissing => {
                error.with_hint("Check the storage with kalam.storage_check(), and that its objects were not removed by others.")
            }
            ErrorKind::DiskFull => error.with_hint("Free space on the device of the storage."),
            ErrorKind::Io => {
                error.with_hint("The work can be repeated when kalam.storage_check() says that the storage is healthy.")
            }
            ErrorKind::InvalidInput => error.with_hint("Correct the storage with kalam.alter_storage()."),
            ErrorKind::OutOfMemory => error.with_hint("Give the server more memory."),
            _ => error.with_hint("Use a storage that can do this."),
        }
    }

    /// A store that answers, but not with what it was given.
    #[cold]
    pub fn corrupt(&self, detail: impl Into<String>) -> Error {
        Error::corrupt(self.message())
            .with_detail(detail)
            .with_hint("The object is damaged or the storage does not keep what it is given; restore the object from a copy.")
    }

    /// A failure of the operating system.
    #[cold]
    pub fn system(&self, error: &std::io::Error) -> Error {
        let kind = match (error.raw_os_error(), error.kind()) {
            (Some(libc::ENOSPC | libc::EDQUOT), _) => ErrorKind::DiskFull,
            (Some(libc::ENOMEM), _) => ErrorKind::OutOfMemory,
            (_, std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied) => ErrorKind::StorageMissing,
            (Some(libc::EROFS | libc::ENOTDIR | libc::ELOOP), _) => ErrorKind::StorageMissing,
            _ => ErrorKind::Io,
        };
        self.error(kind, &error.to_string())
    }

    /// A failure of an object store.
    #[cold]
    pub fn store(&self, error: &object_store::Error) -> Error {
        use object_store::Error as Store;
        let kind = match error {
            Store::NotFound { .. } | Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => ErrorKind::StorageMissing,
            Store::NotSupported { .. } | Store::NotImplemented { .. } => ErrorKind::Unsupported,
            Store::UnknownConfigurationKey { .. } | Store::InvalidPath { .. } => ErrorKind::InvalidInput,
            _ => ErrorKind::Io,
        };
        self.error(kind, &causes(error))
    }

    /// A task that did not end by itself.
    #[cold]
    pub fn unfinished(&self, reason: Unfinished) -> Error {
        match reason {
            Unfinished::TimedOut(limit) => {
                self.error(ErrorKind::Io, &format!("the storage did not answer within {} ms", limit.as_millis()))
            }
            Unfinished::Ended(error) => error,
        }
    }

    /// Takes credentials out of a text, and the queries of addresses, where signatures and tokens stand.
    fn redacted(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in self.secrets.iter().filter(|secret| !secret.is_empty()) {
            text = text.replace(secret.as_str(), "***");
        }
        let mut clean = String::with_capacity(text.len());
        for word in text.split_inclusive(|c: char| c.is_whitespace() || c == '"' || c == ')') {
            match word.split_once("://").and_then(|_| word.split_once('?')) {
                Some((address, query)) => {
                    clean.push_str(address);
                    clean.extend(query.chars().last().filter(|last| last.is_whitespace() || "\")".contains(*last)));
                }
                None => clean.push_str(word),
            }
        }
        clean.truncate(clean.char_indices().nth(1000).map_or(clean.len(), |(at, _)| at));
        clean
    }
}

/// An error and what caused it, each text once.
fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}
