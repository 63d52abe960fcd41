//! The engine's one error type: kinds named by what a caller does next.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, by what the caller can do about it; each kind has one SQLSTATE at the border to Postgres.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// A bad argument or option.
    InvalidInput,
    /// A thing that is not built or not possible.
    Unsupported,
    /// The engine is starting, restarting or stopped.
    Unavailable,
    /// A wait was ended by its waiter.
    Cancelled,
    /// A stated bound is reached.
    LimitExceeded,
    /// No space on the device.
    DiskFull,
    /// No memory.
    OutOfMemory,
    /// The operating system refused.
    Io,
    /// The store, a storage or the log it needs is not there, may not be used, or belongs to another cluster.
    StorageMissing,
    /// Stored bytes do not have the form they must have.
    Corrupt,
    /// A bug of the engine.
    Internal,
}

/// An error with Postgres' three texts: message, detail and hint.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The engine's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of a kind with a message in Postgres' style: lower case, no full stop.
    #[cold]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), detail: None, hint: None, source: None }
    }

    /// Stored bytes are wrong.
    #[cold]
    pub fn corrupt(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt, message)
    }

    /// A bug of the engine.
    #[cold]
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Internal, message)
    }

    /// Adds a sentence with the particulars.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Error {
        self.detail = Some(detail.into());
        self
    }

    /// Adds a sentence that says what the user can do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Error {
        self.source = Some(Box::new(source));
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The detail; the cause where no detail was given.
    pub fn detail(&self) -> Option<String> {
        self.detail.clone().or_else(|| self.source.as_ref().map(sentence))
    }

    /// The error as the server's log has it: its cause where what is told to users leaves that out.
    pub fn for_log(&self) -> &Error {
        let cause = self.source.as_ref().and_then(|source| source.downcast_ref::<Error>());
        cause.filter(|_| self.detail.is_some()).unwrap_or(self)
    }

    /// The hint.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// A text of the operating system or of a library as a sentence, which details and hints are.
pub fn sentence(text: impl fmt::Display) -> String {
    let text = text.to_string().replace('\n', " ");
    let mut rest = text.trim().trim_end_matches('.').chars();
    rest.next().map(|first| first.to_uppercase().chain(rest).chain(['.']).collect()).unwrap_or_default()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(detail) = self.detail() {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        let kind = match error.raw_os_error() {
            Some(libc::ENOSPC) | Some(libc::EDQUOT) => ErrorKind::DiskFull,
            Some(libc::ENOMEM) => ErrorKind::OutOfMemory,
            _ => ErrorKind::Io,
        };
        Error::new(kind, "file operation failed").with_source(error)
    }
}
