//! Passwords: which are good enough, and their hashes.

use crate::error::SqlError;
use crate::settings;

const SHORTEST: usize = 8;

/// bcrypt looks at no more bytes.
const LONGEST: usize = 72;

/// Salt and hash behind version and cost of a hash that no password is known for.
const NOBODYS_HASH: &str = "LQv3c1yqBWVHxkd0LHAkCOYz6TtxMQJqhN8/LewY5GyYzWZJmKsWe";

/// Passwords of at least eight bytes that head every published list of guesses, in lower case and in order.
const COMMON: &str = include_str!("common_passwords.txt");

/// Whether a password may be set for a user.
///
/// # Errors
/// 22023 that says which rule it breaks; the password itself is in no message.
pub fn check_new(name: &str, password: &str) -> Result<(), SqlError> {
    let refuse = |detail: &str| {
        Err(SqlError::invalid_parameter("the password is not acceptable")
            .with_detail(detail.to_owned())
            .with_hint("Choose 8 to 72 bytes that are neither a common password nor the user's name."))
    };
    let lower = password.to_lowercase();
    if password.len() < SHORTEST {
        refuse("It is shorter than 8 bytes.")
    } else if password.len() > LONGEST {
        refuse("It is longer than 72 bytes.")
    } else if lower == name.to_lowercase() {
        refuse("It is the user's name.")
    } else if is_common(&lower) {
        refuse("It is one of the most common passwords.")
    } else {
        Ok(())
    }
}

/// Whether a password in lower case is on the list, or a single character or digit run of the kind that the list is full of.
fn is_common(lower: &str) -> bool {
    let same = lower.chars().all(|one| lower.starts_with(one));
    let run = lower.as_bytes().windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1));
    same || run || COMMON.lines().any(|common| common == lower)
}

/// The hash to store for a password.
///
/// # Errors
/// When the system has no randomness.
pub fn hash(password: &str) -> Result<String, SqlError> {
    bcrypt::hash(password, settings::bcrypt_cost())
        .map_err(|error| kalamdb_engine::Error::internal(format!("a password could not be hashed: {error}")).into())
}

/// Whether a password fits a hash; without one it does not, after as much work. A hash of lower cost than hashes are made with now is
/// followed by what it lacks: each step of the cost is as much work as all below it and one more.
pub fn is_right(given: &str, hash: Option<&str>) -> bool {
    let nobodys = |cost: u32| format!("$2b${cost:02}${NOBODYS_HASH}");
    let cost = settings::bcrypt_cost();
    let fits = bcrypt::verify(given, hash.unwrap_or(&nobodys(cost))).unwrap_or(false);
    let own = hash.and_then(|hash| hash.get(4..6)?.parse::<u32>().ok()).unwrap_or(cost);
    for missing in own..cost {
        let _ = bcrypt::verify(given, &nobodys(missing));
    }
    fits && hash.is_some() && given.len() <= LONGEST
}
