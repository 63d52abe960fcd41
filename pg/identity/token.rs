//! JSON web tokens: checking those of clients and issuing our own.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::MetadataExt;

use jsonwebtoken::errors::ErrorKind as JwtError;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use super::account::{Rank, active_account};
use crate::error::SqlError;
use crate::settings;

/// Shortest secret in bytes.
const SHORTEST_SECRET: usize = 32;

/// Longest file with a key, in bytes; anything longer is not one.
const LONGEST_FILE: u64 = 65_536;

/// Longest token in bytes.
const LONGEST_TOKEN: usize = 16_384;

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Claims {
    pub sub: String,
    pub role: String,
    pub iss: String,
    pub exp: i64,
    #[serde(default)]
    pub iat: i64,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub aud: Option<serde_json::Value>,
}

/// A claim that is there, whatever it is; null too.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(deserializer).map(Some)
}

/// Why a token was refused: for the audit log, and whether its bearer may know.
pub struct Refusal {
    pub reason: String,
    /// The subject of a token whose signature is right.
    pub subject: Option<String>,
    expired: bool,
}

impl Refusal {
    fn new(reason: impl Into<String>) -> Refusal {
        Refusal { reason: reason.into(), subject: None, expired: false }
    }

    fn of(subject: &str, reason: impl Into<String>) -> Refusal {
        Refusal { reason: reason.into(), subject: Some(subject.to_owned()), expired: false }
    }
}

impl From<Refusal> for SqlError {
    fn from(refusal: Refusal) -> SqlError {
        SqlError::invalid_password("the token is not valid")
            .with_detail(if refusal.expired { "The token has expired." } else { "The token was refused." })
            .with_hint(if refusal.expired {
                "Get a new token."
            } else {
                "The audit log and the settings kalam.jwt_* tell administrators why."
            })
    }
}

/// Checks a token with the key that belongs to its algorithm.
///
/// An algorithm has one key only: a public key is never taken for a secret, nor the other way round.
///
/// # Errors
/// A configuration that cannot work as the outer error, a token that is not accepted as the inner one.
pub fn verify(token: &str) -> Result<Result<Claims, Refusal>, SqlError> {
    let secret = secret()?;
    let public = public_key()?;
    if secret.is_none() && public.is_none() {
        return Err(not_configured("kalam.jwt_secret_file or kalam.jwt_public_key_file"));
    }
    if token.len() > LONGEST_TOKEN {
        return Ok(Err(Refusal::new("the token is too long")));
    }
    let Ok(header) = jsonwebtoken::decode_header(token) else {
        return Ok(Err(Refusal::new("the token is malformed or of an unknown algorithm")));
    };
    let key = match (header.alg, &secret, &public) {
        (Algorithm::HS256, Some(secret), _) => DecodingKey::from_secret(secret),
        (algorithm, _, Some((of_key, key))) if algorithm == *of_key => key.clone(),
        (algorithm, ..) => return Ok(Err(Refusal::new(format!("no key is set for the algorithm {algorithm:?}")))),
    };
    let mut validation = Validation::new(header.alg);
    validation.leeway = 0;
    validation.validate_nbf = true;
    validation.set_required_spec_claims(&["exp", "iss", "sub"]);
    validation.set_issuer(&[settings::jwt_issuer()]);
    if let Some(audience) = settings::jwt_audience() {
        validation.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
        validation.set_audience(&[audience]);
    }
    Ok(match jsonwebtoken::decode::<Claims>(token, &key, &validation) {
        Ok(data) => accept(data.claims),
        Err(error) => {
            let expired = matches!(error.kind(), JwtError::ExpiredSignature);
            Err(Refusal { reason: format!("the token was refused: {error}"), subject: None, expired })
        }
    })
}

/// Compares a token's claims with what is stored about its subject.
fn accept(claims: Claims) -> Result<Claims, Refusal> {
    // The library still takes a token in the second in which it ends.
    if claims.exp <= jsonwebtoken::get_current_timestamp() as i64 {
        return Err(Refusal { expired: true, ..Refusal::of(&claims.sub, "the token was refused: ExpiredSignature") });
    }
    if claims.aud.is_some() && settings::jwt_audience().is_none() {
        return Err(Refusal::of(&claims.sub, "the token was refused: InvalidAudience"));
    }
    let Some(account) = active_account(&claims.sub) else {
        return Err(Refusal::of(&claims.sub, "unknown or dropped user"));
    };
    match Rank::from_name(&claims.role) {
        None => Err(Refusal::of(&claims.sub, "the token names an unknown role")),
        Some(claimed) if claimed > account.rank => {
            Err(Refusal::of(&claims.sub, format!("the token claims the role {claimed}, the user has {}", account.rank)))
        }
        Some(_) => Ok(claims),
    }
}

/// Signs a token with the secret.
///
/// # Errors
/// 55000 when there is no secret.
pub fn issue(claims: &Claims) -> Result<String, SqlError> {
    let Some(secret) = secret()? else {
        return Err(not_configured("kalam.jwt_secret_file"));
    };
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(&secret))
        .map_err(|error| kalamdb_engine::Error::internal(format!("a token could not be signed: {error}")).into())
}

fn not_configured(settings: &str) -> SqlError {
    SqlError::prerequisite("tokens are not configured")
        .with_detail("No key is known to this server.")
        .with_hint(format!("Set {settings} to a file with the key."))
}

/// The secret of HS256, if one is configured.
fn secret() -> Result<Option<Vec<u8>>, SqlError> {
    let Some(path) = settings::jwt_secret_file() else { return Ok(None) };
    let mut secret = read_key(&path, c"kalam.jwt_secret_file", true)?;
    // An editor ends the last line.
    while secret.last().is_some_and(u8::is_ascii_whitespace) {
        secret.pop();
    }
    if secret.len() < SHORTEST_SECRET {
        return Err(SqlError::prerequisite("the secret for tokens is too short")
            .with_detail(format!("It has {} bytes; {SHORTEST_SECRET} are needed.", secret.len()))
            .with_hint("Make one with: openssl rand -hex 32."));
    }
    Ok(Some(secret))
}

/// The public key, if one is configured, and the one algorithm that it is for.
fn public_key() -> Result<Option<(Algorithm, DecodingKey)>, SqlError> {
    let Some(path) = settings::jwt_public_key_file() else { return Ok(None) };
    let pem = read_key(&path, c"kalam.jwt_public_key_file", false)?;
    let key = DecodingKey::from_rsa_pem(&pem)
        .map(|key| (Algorithm::RS256, key))
        .or_else(|_| DecodingKey::from_ec_pem(&pem).map(|key| (Algorithm::ES256, key)));
    key.map(Some).map_err(|_| {
        SqlError::prerequisite("the public key for tokens cannot be used")
            .with_detail("The file holds neither an RSA key nor one of the elliptic curve P-256 in PEM.")
            .with_hint("Write the public key as \"-----BEGIN PUBLIC KEY-----\" to the file.")
    })
}

/// Reads a file with a key; one with a secret must be closed to others.
fn read_key(path: &str, setting: &CStr, is_secret: bool) -> Result<Vec<u8>, SqlError> {
    let setting = setting.to_string_lossy();
    let unreadable = |error: std::io::Error| {
        SqlError::prerequisite(format!("the file of \"{setting}\" cannot be read"))
            .with_detail(format!("The system says: {error}."))
            .with_hint("The file must be readable by the user that runs the server.")
    };
    let status = fs::metadata(path).map_err(unreadable)?;
    if is_secret && status.mode() & 0o007 != 0 {
        return Err(SqlError::prerequisite(format!("the file of \"{setting}\" is open to everybody"))
            .with_detail(format!("Its mode is {:04o}.", status.mode() & 0o7777))
            .with_hint("Take all rights of others away: chmod o= on the file."));
    }
    if !status.is_file() || status.len() > LONGEST_FILE {
        return Err(SqlError::prerequisite(format!("the file of \"{setting}\" holds no key"))
            .with_detail("It is not a plain file, or too large.")
            .with_hint("Name the file that holds the key and nothing else."));
    }
    fs::read(path).map_err(unreadable)
}
