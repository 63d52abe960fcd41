//! The kinds of jobs, their ids, and what runs for each.

use std::fmt::{self, Display};

use kalamdb_engine::{Error, ErrorKind};
use pgrx::pg_sys;

use super::process::{Me, transaction};
use super::runner::Progress;
use super::table_work;
use crate::error::{SqlError, catching};
use crate::ffi::interrupts::check_for_interrupts;
use crate::ownership;

/// A kind of job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Moves rows into segments.
    Flush,
    /// Merges segments.
    Compact,
    /// Removes deleted rows whose retention has ended.
    Retention,
    /// Removes rows of ended jobs from the job table.
    Cleanup,
    /// Gives back the storage of expired rows of a stream.
    Evict,
    /// Removes what erased users leave behind on disk, and users whose time after their drop is over.
    UserCleanup,
    /// Writes what a user owns to a storage.
    UserExport,
    /// Does nothing but count, fail and wait as its parameters say: what the tests of the job processes run.
    Exercise,
}

const KINDS: [(Kind, &str, &str); 8] = [
    (Kind::Flush, "FL", "flush"),
    (Kind::Compact, "CO", "compaction"),
    (Kind::Retention, "RT", "retention"),
    (Kind::Cleanup, "CL", "cleanup"),
    (Kind::Evict, "SE", "eviction"),
    (Kind::UserCleanup, "UC", "user cleanup"),
    (Kind::UserExport, "UE", "user export"),
    (Kind::Exercise, "XX", "exercise"),
];

impl Kind {
    /// The two letters that ids begin with.
    pub fn code(self) -> &'static str {
        self.entry().1
    }

    /// The name for people.
    pub fn name(self) -> &'static str {
        self.entry().2
    }

    fn entry(self) -> &'static (Kind, &'static str, &'static str) {
        KINDS.iter().find(|entry| entry.0 == self).unwrap_or(&KINDS[0])
    }

    /// The kind with these letters.
    pub fn from_code(code: &str) -> Option<Kind> {
        KINDS.iter().find(|entry| entry.1 == code).map(|entry| entry.0)
    }
}

/// The id of a job: two letters and 48 random bits, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobId(pub u64);

impl JobId {
    /// A new id.
    ///
    /// # Errors
    /// `Internal` if the operating system gives no random numbers.
    pub fn new(kind: Kind) -> Result<JobId, SqlError> {
        let mut random = [0u8; 8];
        // SAFETY: fills the six bytes it is given.
        if !unsafe { pg_sys::pg_strong_random(random.as_mut_ptr().cast(), 6) } {
            return Err(Error::internal("could not generate random bytes for a job's id").into());
        }
        Ok(JobId::from_parts(kind.code(), u64::from_le_bytes(random)))
    }

    fn from_parts(code: &str, number: u64) -> JobId {
        let letters = code.bytes().fold(0u64, |word, letter| word << 8 | u64::from(letter));
        JobId(letters << 48 | number)
    }

    /// The id in a text.
    pub fn parse(text: &str) -> Option<JobId> {
        let (code, digits) = text.split_at_checked(2)?;
        let is_hex = digits.len() == 12 && digits.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit));
        let is_code = code.bytes().all(|letter| letter.is_ascii_uppercase());
        let number = u64::from_str_radix(digits, 16).ok()?;
        (is_hex && is_code).then(|| JobId::from_parts(code, number))
    }
}

impl Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [(self.0 >> 56) as u8, (self.0 >> 48) as u8];
        write!(f, "{}{:012x}", String::from_utf8_lossy(&letters), self.0 & 0xFFFF_FFFF_FFFF)
    }
}

/// A job as its runner gets it.
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its kind.
    pub kind: Kind,
    /// The table; invalid for a job on several.
    pub relation: pg_sys::Oid,
    /// The schema, if the job is on one table or one schema.
    pub schema: Option<String>,
    /// Who asked for it.
    pub role: pg_sys::Oid,
    /// What else was said.
    pub parameters: serde_json::Value,
    /// How often it was begun, this time included.
    pub attempt: i32,
    /// Whether nobody asked for it.
    pub automatic: bool,
}

/// Runs a job to its end and says what it did. It opens its own transactions.
///
/// # Errors
/// What made it fail.
pub fn run(me: Me, job: &Job, progress: &mut Progress) -> Result<String, SqlError> {
    match job.kind {
        Kind::Flush | Kind::Compact | Kind::Retention | Kind::Evict => table_work::run(me, job, progress),
        Kind::Cleanup => {
            let removed = transaction(c"KalamDB: cleanup of the job table", || Ok(super::table::remove_old()))?;
            let exports = ownership::export::delete_due()?;
            Ok(if exports == 0 { removed } else { format!("{removed}, {exports} exports deleted") })
        }
        // It waits between its transactions, too.
        Kind::UserCleanup => catching(|| ownership::cleanup::run(progress)).and_then(|result| result),
        Kind::UserExport => ownership::export::run(job, progress),
        Kind::Exercise => exercise(job, progress),
    }
}

/// The error for a kind that no code runs.
pub fn not_built(kind: Kind) -> SqlError {
    Error::new(ErrorKind::Unsupported, format!("{} jobs are not built yet", kind.name()))
        .with_hint("Rows stay in the hot store, where everything works.")
        .into()
}

/// Parameters: `rows` to count, `wait` until cancelled, `failures` before it succeeds, `code` of a failure that is not repeated.
fn exercise(job: &Job, progress: &mut Progress) -> Result<String, SqlError> {
    let number = |name: &str| job.parameters.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let rows = number("rows");
    transaction(c"KalamDB: exercise", || {
        progress.total(rows, rows * 10);
        for row in 1..=rows {
            progress.done(row, row * 10);
        }
        if u64::from(job.attempt.unsigned_abs()) <= number("failures") {
            return Err(Error::new(ErrorKind::Io, format!("attempt {} was told to fail", job.attempt)).into());
        }
        if number("unsupported") > 0 {
            return Err(Error::new(ErrorKind::Unsupported, "the exercise was told to be impossible").into());
        }
        while number("wait") > 0 {
            check_for_interrupts();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(format!("counted {rows} rows"))
    })
}
