//! Whether a storage works: every operation that cold segments need, tried and timed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Location;
use crate::cache::Wait;
use crate::error::{Error, ErrorKind, Result};

/// An operation that takes longer makes a storage degraded.
const SLOW: Duration = Duration::from_secs(2);
const PROBE_BYTES: usize = 4096;

/// How a storage is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Everything that was tried worked, and fast.
    Healthy,
    /// Something failed or took more than two seconds.
    Degraded,
    /// Nothing works.
    Unreachable,
}

impl Health {
    /// The word for users.
    pub fn name(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Degraded => "degraded",
            Health::Unreachable => "unreachable",
        }
    }
}

/// One operation.
#[derive(Debug)]
pub struct Step {
    /// "list", "put", "get", "delete".
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
    /// Why it failed.
    pub failure: Option<Error>,
}

/// What a check found.
#[derive(Debug)]
pub struct Report {
    /// The verdict.
    pub health: Health,
    /// The operations in their order.
    pub steps: Vec<Step>,
}

impl Report {
    /// A storage that one operation was enough to give up.
    pub fn unreachable(name: &'static str, error: Error) -> Report {
        let step = Step { name, took: Duration::ZERO, failure: Some(error) };
        Report { health: Health::Unreachable, steps: vec![step] }
    }
}

impl Location {
    /// Tries the storage: lists it; extended, also puts, lists, gets and deletes an object of its own. `scratch` is a directory for the
    /// file to upload.
    ///
    /// # Errors
    /// What ended the wait. Failures of the storage are in the report.
    pub fn check(&self, extended: bool, scratch: &Path, wait: &dyn Wait) -> Result<Report> {
        let mut steps = Vec::new();
        if extended {
            self.try_all(scratch, &mut steps, wait)?;
        } else {
            step(&mut steps, "list", || self.list("", None, 1, wait).map(drop))?;
        }
        let failed = steps.iter().filter(|step| step.failure.is_some()).count();
        let health = match failed {
            _ if failed == steps.len() => Health::Unreachable,
            0 if steps.iter().all(|step| step.took < SLOW) => Health::Healthy,
            _ => Health::Degraded,
        };
        Ok(Report { health, steps })
    }

    fn try_all(&self, scratch: &Path, steps: &mut Vec<Step>, wait: &dyn Wait) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let name = format!("check-{}-{now:016x}", std::process::id());
        let object = format!("kalam-check/{name}");
        let file = scratch.join(format!("pgsql_tmp_kalam_{name}"));
        let body: Vec<u8> = (0..PROBE_BYTES).map(|at| (at as u64 ^ now.rotate_left(at as u32)) as u8).collect();
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?.write_all(&body)?;
        let mut stored = None;
        let put = step(steps, "put", || {
            stored = Some(self.put(&file, &object, wait)?);
            Ok(())
        });
        // Only what the check itself wrote.
        let _ = fs::remove_file(&file);
        put?;
        step(steps, "list", || {
            let found = self.list("kalam-check", None, 10_000, wait)?;
            match stored.is_none() || found.iter().any(|found| found.path == object && found.bytes == PROBE_BYTES as u64) {
                true => Ok(()),
                false => Err(self.attempt("list", &object).corrupt("The list lacks an object that was put just now.")),
            }
        })?;
        if let Some(stored) = &stored {
            step(steps, "get", || self.verify(&object, stored, wait))?;
            step(steps, "delete", || self.delete(&object, wait))?;
        }
        Ok(())
    }
}

fn step(steps: &mut Vec<Step>, name: &'static str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    let failure = match run() {
        Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
        tried => tried.err(),
    };
    steps.push(Step { name, took: started.elapsed(), failure });
    Ok(())
}
