//! Logins with JSON web tokens, and issuing them.

use pgrx::prelude::*;

use crate::error::{OrRaise, SqlError};
use crate::identity::account::active_account;
use crate::identity::audit::Event;
use crate::identity::control_table::{Lasts, flush_log};
use crate::identity::session::{Login, Span, current_login, set_login, statement_time};
use crate::identity::token::{self, Claims};
use crate::identity::{Origin, current_identity, shortened};
use crate::settings;

use super::users::require_own_session;

/// How long an issued token may be valid, in seconds.
const LONGEST_VALIDITY: i64 = 24 * 60 * 60;

/// Logs the session in with a token, until the token ends; returns the user.
#[pg_extern]
fn authenticate(jwt: Option<&str>) -> String {
    require_own_session("log in").or_raise();
    match token::verify(jwt.unwrap_or_default()).or_raise() {
        Ok(claims) => {
            Event::about("authenticate", &claims.sub).with("expires", claims.exp).record(Lasts::ForGood).or_raise();
            let login = Login { name: claims.sub, origin: Origin::Token, expires: claims.exp };
            set_login(Some(&login), Span::Session);
            login.name
        }
        Err(refusal) => {
            let subject = refusal.subject.clone().unwrap_or_default();
            Event::about("authenticate_failed", shortened(&subject))
                .with("reason", refusal.reason.clone())
                .record(Lasts::ForGood)
                .or_raise();
            flush_log();
            Err(SqlError::from(refusal)).or_raise()
        }
    }
}

/// A token for the session's user, valid for so many seconds.
#[pg_extern]
fn issue_token(seconds: Option<f64>) -> String {
    make_token(seconds).or_raise()
}

fn make_token(seconds: Option<f64>) -> Result<String, SqlError> {
    require_own_session("issue a token")?;
    let identity = current_identity()?;
    let Some(account) = active_account(&identity.name) else {
        return Err(SqlError::prerequisite(format!("user \"{}\" can have no token", identity.name))
            .with_detail("Tokens are for users made with kalam.create_user().")
            .with_hint("Log in with kalam.login()."));
    };
    let seconds = seconds.filter(|seconds| (1.0..=LONGEST_VALIDITY as f64).contains(seconds)).ok_or_else(|| {
        SqlError::invalid_parameter("a token cannot be valid for that long")
            .with_detail("The time is between 1 second and 24 hours.")
            .with_hint("Issue another token before this one ends.")
    })?;
    let now = statement_time();
    let mut expires = now + seconds as i64;
    // A token cannot prolong itself.
    if let Some(Login { origin: Origin::Token, expires: end, .. }) = current_login() {
        expires = expires.min(end);
    }
    let claims = Claims {
        sub: identity.name,
        role: account.rank.to_string(),
        iss: settings::jwt_issuer(),
        exp: expires,
        iat: now,
        aud: settings::jwt_audience().map(serde_json::Value::from),
    };
    let text = token::issue(&claims)?;
    Event::about("issue_token", &claims.sub).with("expires", expires).record(Lasts::ForGood)?;
    Ok(text)
}
