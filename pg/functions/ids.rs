//! Identifiers that sort by the time they were made.

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use kalamdb_engine::Error;
use pgrx::prelude::*;

use crate::error::{OrRaise, SqlError};
use crate::identity::snowflake;

/// A bigint that is unique in the server and grows with time.
#[pg_extern]
fn snowflake_id() -> i64 {
    snowflake::next_id().or_raise()
}

/// The latest time, in 4,096th parts of a millisecond, of this session's UUIDs.
static LATEST_UUID: Mutex<u64> = Mutex::new(0);

/// A UUID of version 7; those of one session grow, even within a millisecond.
#[pg_extern]
fn uuid_v7() -> pgrx::Uuid {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    // 48 bits of milliseconds, then twelve bits of their fraction, as RFC 9562 describes in its third method.
    let now = (nanoseconds * 4096 / 1_000_000) as u64;
    let mut latest = LATEST_UUID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let time = now.max(*latest + 1);
    *latest = time;
    let mut bytes = [0u8; 16];
    bytes[..6].copy_from_slice(&(time >> 12).to_be_bytes()[2..]);
    bytes[6..8].copy_from_slice(&(0x7000 | (time & 0xFFF) as u16).to_be_bytes());
    random(&mut bytes[8..]).or_raise();
    bytes[8] = 0x80 | (bytes[8] & 0x3F);
    pgrx::Uuid::from_bytes(bytes)
}

/// The latest ULID of this session: milliseconds and the 80 random bits.
static LATEST_ULID: Mutex<(u64, u128)> = Mutex::new((0, 0));

const ULID_RANDOM_BITS: u32 = 80;

/// A ULID as text; those of one session grow, even within a millisecond.
#[pg_extern]
fn ulid() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let mut latest = LATEST_ULID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if now > latest.0 {
        let mut bytes = [0u8; 16];
        random(&mut bytes[6..]).or_raise();
        *latest = (now, u128::from_be_bytes(bytes));
    } else {
        // The same millisecond, or a clock that went back.
        latest.1 += 1;
        if latest.1 >> ULID_RANDOM_BITS != 0 {
            *latest = (latest.0 + 1, 0);
        }
    }
    base32(u128::from(latest.0) << ULID_RANDOM_BITS | latest.1)
}

/// 26 characters of Crockford's alphabet, which has no I, L, O and U.
fn base32(value: u128) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    (0..26).rev().map(|place| char::from(ALPHABET[(value >> (5 * place)) as usize & 31])).collect()
}

fn random(bytes: &mut [u8]) -> Result<(), SqlError> {
    // SAFETY: the buffer has this length.
    if unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) } {
        return Ok(());
    }
    Err(Error::internal("the system has no random numbers").into())
}
