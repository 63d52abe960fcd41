//! Identifiers that grow with time and are unique in the whole server: 41 bits of milliseconds, 10 of the server's number, 12 of a
//! sequence.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::SqlError;
use crate::ffi::interrupts::check_for_interrupts;
use crate::{settings, shmem};

/// 2024-01-01 00:00 UTC in milliseconds since 1970.
const EPOCH: u64 = 1_704_067_200_000;

const SEQUENCE_BITS: u32 = 12;
const WORKER_BITS: u32 = 10;

/// How far the clock may go back, in milliseconds, while identifiers go on from the latest one.
const TOLERATED_STEP: u64 = 1_000;

/// How long to sleep for a new millisecond.
const NAP: Duration = Duration::from_micros(100);

/// The next identifier.
///
/// # Errors
/// 55000 when the clock went back by more than a second, or stands before 2024.
pub fn next_id() -> Result<i64, SqlError> {
    let worker = u64::from(settings::worker_id());
    let state = &shmem::any_anchor()?.snowflake;
    loop {
        if let Some(taken) = advance(state, milliseconds()?)? {
            let (millisecond, sequence) = (taken >> SEQUENCE_BITS, taken & ((1 << SEQUENCE_BITS) - 1));
            return Ok((millisecond << (SEQUENCE_BITS + WORKER_BITS) | worker << SEQUENCE_BITS | sequence) as i64);
        }
        check_for_interrupts();
        std::thread::sleep(NAP);
    }
}

/// Takes the next pair of millisecond and sequence number; none if this millisecond has none left.
fn advance(state: &AtomicU64, now: u64) -> Result<Option<u64>, SqlError> {
    let mut last = state.load(Ordering::Relaxed);
    loop {
        let latest = last >> SEQUENCE_BITS;
        if now + TOLERATED_STEP < latest {
            return Err(clock_went_back(latest - now));
        }
        let next = if now > latest { now << SEQUENCE_BITS } else { last + 1 };
        if next >> SEQUENCE_BITS > now.max(latest) {
            return Ok(None);
        }
        match state.compare_exchange_weak(last, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Ok(Some(next)),
            Err(other) => last = other,
        }
    }
}

/// Milliseconds since the epoch of the identifiers.
fn milliseconds() -> Result<u64, SqlError> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    since_1970.checked_sub(EPOCH).filter(|now| now >> 41 == 0).ok_or_else(|| {
        SqlError::prerequisite("the server's clock is wrong")
            .with_detail("It stands outside of the years 2024 to 2093, which the identifiers can tell.")
            .with_hint("Set the clock of the server's machine.")
    })
}

#[cold]
fn clock_went_back(step: u64) -> SqlError {
    SqlError::prerequisite("the server's clock went back")
        .with_detail(format!("It is {step} ms behind the latest identifier; identifiers never go backwards."))
        .with_hint("Identifiers are made again when the clock has caught up, or after a restart of the server.")
}
