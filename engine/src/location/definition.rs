//! What a user says of a storage: name, URL and options, checked before anything is done with them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::template::{Owner, Template, check_object};
use crate::error::{Error, ErrorKind, Result};

/// The storage that is always there.
pub const LOCAL: &str = "local";

const NAME_BYTES_MAX: usize = 63;
const DEFAULT_SHARED_TEMPLATE: &str = "{namespace}/{table}";
const DEFAULT_USER_TEMPLATE: &str = "{namespace}/{table}/{shard}/{user}";

/// Which system keeps the objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A directory of this machine.
    File,
    /// Amazon S3 and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl Kind {
    /// The name in views.
    pub fn name(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::S3 => "s3",
            Kind::Gcs => "gcs",
            Kind::Azure => "azure",
        }
    }
}

/// One option: where it is allowed, what it takes, and whether others may see it.
struct Known {
    name: &'static str,
    kinds: &'static [Kind],
    takes: Takes,
    secret: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Text,
    Flag,
    /// 0 to 20.
    Count,
    /// A number of seconds, or text with a unit; 1 ms to 10 min.
    Time,
    Template(Owner),
}

const ALL: &[Kind] = &[Kind::File, Kind::S3, Kind::Gcs, Kind::Azure];
const REMOTE: &[Kind] = &[Kind::S3, Kind::Gcs, Kind::Azure];
const S3: &[Kind] = &[Kind::S3];
const GCS: &[Kind] = &[Kind::Gcs];
const AZURE: &[Kind] = &[Kind::Azure];

const fn known(name: &'static str, kinds: &'static [Kind], takes: Takes, secret: bool) -> Known {
    Known { name, kinds, takes, secret }
}

/// Every option. None names a file of the server: a storage gives nobody the server's own credentials.
const OPTIONS: &[Known] = &[
    known("shared_template", ALL, Takes::Template(Owner::Shared), false),
    known("user_template", ALL, Takes::Template(Owner::User), false),
    known("verify_uploads", REMOTE, Takes::Flag, false),
    known("timeout", REMOTE, Takes::Time, false),
    known("connect_timeout", REMOTE, Takes::Time, false),
    known("retries", REMOTE, Takes::Count, false),
    known("retry_timeout", REMOTE, Takes::Time, false),
    known("endpoint", REMOTE, Takes::Text, false),
    known("allow_http", REMOTE, Takes::Flag, false),
    known("ca_certificate", REMOTE, Takes::Text, false),
    known("anonymous", REMOTE, Takes::Flag, false),
    known("region", S3, Takes::Text, false),
    known("access_key_id", S3, Takes::Text, false),
    known("secret_access_key", S3, Takes::Text, true),
    known("session_token", S3, Takes::Text, true),
    known("virtual_hosted_style", S3, Takes::Flag, false),
    known("unsigned_payload", S3, Takes::Flag, false),
    known("server_side_encryption", S3, Takes::Text, false),
    known("kms_key_id", S3, Takes::Text, false),
    known("service_account_key", GCS, Takes::Text, true),
    known("account_name", AZURE, Takes::Text, false),
    known("account_key", AZURE, Takes::Text, true),
    known("sas_token", AZURE, Takes::Text, true),
    known("tenant_id", AZURE, Takes::Text, false),
    known("client_id", AZURE, Takes::Text, false),
    known("client_secret", AZURE, Takes::Text, true),
];

/// A storage's definition. Serialized it has its secrets; shown by `Debug` it does not.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// The storage's name.
    pub name: String,
    /// `file:///directory`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or `local:`.
    pub url: String,
    /// Options by their names.
    pub options: Map<String, Value>,
}

impl fmt::Debug for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Definition").field("name", &self.name).field("url", &self.url).finish_non_exhaustive()
    }
}

/// The parts of a checked URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// Which system.
    pub kind: Kind,
    /// Bucket or container; empty for files.
    pub bucket: String,
    /// The directory of files, or the prefix within the bucket without slashes around it.
    pub path: String,
}

impl Definition {
    /// The definition of the storage that is always there.
    pub fn local() -> Definition {
        Definition { name: LOCAL.to_owned(), url: "local:".to_owned(), options: Map::new() }
    }

    /// A checked definition.
    ///
    /// # Errors
    /// `InvalidInput` that says what is wrong with name, URL or options.
    pub fn new(name: &str, url: &str, options: Map<String, Value>) -> Result<Definition> {
        let definition = Definition { name: name.to_owned(), url: url.to_owned(), options };
        definition.check()?;
        Ok(definition)
    }

    /// The definition in a record that [`Definition::to_value`] made.
    ///
    /// # Errors
    /// `Corrupt` when it has another form.
    pub fn from_value(name: &str, value: &Value) -> Result<Definition> {
        let definition: Option<Definition> = serde_json::from_value(value.clone()).ok();
        definition.filter(|definition| definition.name == name).ok_or_else(|| {
            Error::corrupt(format!("the definition of storage \"{name}\" has no valid form"))
                .with_detail("The engine's record has not the fields of this version.")
                .with_hint("Give the storage its definition again with kalam.alter_storage().")
        })
    }

    /// A record for [`Definition::from_value`], with all secrets.
    pub fn to_value(&self) -> Value {
        let texts = [("name", &self.name), ("url", &self.url)].map(|(name, text)| (name.to_owned(), Value::from(text.as_str())));
        let options = ("options".to_owned(), Value::Object(self.options.clone()));
        Value::Object(texts.into_iter().chain([options]).collect())
    }

    /// Checks name, URL and options.
    ///
    /// # Errors
    /// As [`Definition::new`].
    pub fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        let kind = self.address()?.kind;
        for (name, value) in &self.options {
            let Some(known) = OPTIONS.iter().find(|known| known.name == name && known.kinds.contains(&kind)) else {
                let names: Vec<_> = OPTIONS.iter().filter(|known| known.kinds.contains(&kind)).map(|known| known.name).collect();
                return Err(Error::new(ErrorKind::InvalidInput, format!("unrecognized storage option \"{name}\""))
                    .with_detail(format!("Options of {} storages are: {}.", kind.name(), names.join(", ")))
                    .with_hint("What each option does is in docs/storages.md."));
            };
            known.check(value)?;
        }
        self.check_credentials(kind)
    }

    fn check_credentials(&self, kind: Kind) -> Result<()> {
        let refuse = |detail: &str| {
            Err(Error::new(ErrorKind::InvalidInput, format!("incomplete options of storage \"{}\"", self.name))
                .with_detail(detail)
                .with_hint("Examples for each kind of storage are in docs/storages.md."))
        };
        let has = |name: &str| self.options.contains_key(name);
        if has("access_key_id") != has("secret_access_key") {
            return refuse("access_key_id and secret_access_key are given together.");
        }
        if kind == Kind::Azure && !has("account_name") {
            return refuse("Azure storages need account_name.");
        }
        if self.text("endpoint").is_some_and(|url| url.starts_with("http://")) && !self.flag("allow_http") {
            return refuse("An endpoint without TLS needs allow_http.");
        }
        Ok(())
    }

    /// The parts of the URL.
    ///
    /// # Errors
    /// `InvalidInput` when it has not one of the forms.
    pub fn address(&self) -> Result<Address> {
        let refuse = |detail: &str| {
            // Not the URL itself: it may contain a password.
            Err(Error::new(ErrorKind::InvalidInput, format!("invalid URL of storage \"{}\"", self.name))
                .with_detail(detail)
                .with_hint("URLs are file:///directory, s3://bucket/prefix, gs://bucket/prefix and az://container/prefix."))
        };
        if self.url == "local:" && self.name == LOCAL {
            return Ok(Address { kind: Kind::File, bucket: String::new(), path: String::new() });
        }
        if self.name == LOCAL {
            return refuse("The storage local is always the server's own directory.");
        }
        let Some((scheme, rest)) = self.url.split_once("://") else { return refuse("It has no scheme.") };
        if rest.len() > 500 {
            return refuse("It has more than 500 bytes.");
        }
        let kind = match scheme {
            "file" => Kind::File,
            "s3" => Kind::S3,
            "gs" => Kind::Gcs,
            "az" => Kind::Azure,
            _ => return refuse("Its scheme is unknown."),
        };
        if kind == Kind::File {
            return match check_directory(rest) {
                Ok(()) => Ok(Address { kind, bucket: String::new(), path: rest.trim_end_matches('/').to_owned() }),
                Err(detail) => refuse(detail),
            };
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.len() < 3 || !bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
            return refuse("A bucket's name has at least three letters, digits, . _ and -; credentials belong into options.");
        }
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() && (prefix.len() > 300 || check_object(prefix).is_err()) {
            return refuse(
                "A prefix has letters, digits and . _ - ~ % = only, no empty parts and none that are . or .., and at most 300 bytes.",
            );
        }
        Ok(Address { kind, bucket: bucket.to_owned(), path: prefix.to_owned() })
    }

    /// The template for an owner's segments.
    ///
    /// # Errors
    /// `InvalidInput` when the option is not valid.
    pub fn template(&self, owner: Owner) -> Result<Template> {
        let text = match owner {
            Owner::Shared => self.text("shared_template").unwrap_or(DEFAULT_SHARED_TEMPLATE),
            Owner::User => self.text("user_template").unwrap_or(DEFAULT_USER_TEMPLATE),
        };
        Template::parse(text, owner)
    }

    /// The options that everybody may see.
    pub fn public_options(&self) -> Map<String, Value> {
        self.options.iter().filter(|(name, _)| !is_secret(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Whether this definition would send credentials of another one to another address than that one does.
    pub fn redirects_secrets_of(&self, before: &Definition) -> bool {
        let elsewhere = self.url != before.url || self.text("endpoint") != before.text("endpoint");
        elsewhere && before.secret_options().iter().any(|(name, value)| self.options.get(name) == Some(value))
    }

    /// The options that nobody may see.
    pub fn secret_options(&self) -> Map<String, Value> {
        self.options.iter().filter(|(name, _)| is_secret(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The texts of secret options, also as they stand in JSON and URLs.
    pub(super) fn secrets(&self) -> Vec<String> {
        let texts = self.options.iter().filter(|(name, _)| is_secret(name)).filter_map(|(_, value)| value.as_str());
        texts.flat_map(|text| [text.to_owned(), text.trim_start_matches('?').to_owned()]).collect()
    }

    /// An option's text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.options.get(name).and_then(Value::as_str)
    }

    /// Whether an option is on.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.options.get(name).is_some_and(|value| flag(value) == Some(true))
    }

    /// An option that counts.
    pub(super) fn count(&self, name: &str, default: usize) -> usize {
        self.options.get(name).and_then(count).unwrap_or(default)
    }

    /// An option that is a time.
    pub(super) fn time(&self, name: &str, default: Duration) -> Duration {
        self.options.get(name).and_then(time).unwrap_or(default)
    }
}

impl Known {
    fn check(&self, value: &Value) -> Result<()> {
        let wanted = match self.takes {
            Takes::Text if value.as_str().is_some_and(|text| !text.is_empty()) => return Ok(()),
            Takes::Flag if flag(value).is_some() => return Ok(()),
            Takes::Count if count(value).is_some() => return Ok(()),
            Takes::Time if time(value).is_some() => return Ok(()),
            Takes::Template(owner) if value.is_string() => {
                return Template::parse(value.as_str().unwrap_or_default(), owner).map(|_| ());
            }
            Takes::Text | Takes::Template(_) => "a text",
            Takes::Flag => "true or false",
            Takes::Count => "a number from 0 to 20",
            Takes::Time => "a number of seconds or a text such as \"500 ms\", \"30 s\" or \"2 min\", from 1 ms to 10 min",
        };
        Err(Error::new(ErrorKind::InvalidInput, format!("invalid value of storage option \"{}\"", self.name))
            .with_detail(format!("It takes {wanted}."))
            .with_hint("What each option does is in docs/storages.md."))
    }
}

fn is_secret(name: &str) -> bool {
    OPTIONS.iter().find(|known| known.name == name).is_none_or(|known| known.secret)
}

fn flag(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| value.as_str().and_then(|text| text.parse().ok()))
}

fn count(value: &Value) -> Option<usize> {
    let count = value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()))?;
    (count <= 20).then_some(count as usize)
}

fn time(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => {
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let number: f64 = digits.trim().parse().ok()?;
            match text[digits.len()..].trim() {
                "ms" => number / 1000.0,
                "" | "s" => number,
                "min" => number * 60.0,
                _ => return None,
            }
        }
        _ => return None,
    };
    (0.001..=600.0).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(Error::new(ErrorKind::InvalidInput, format!("invalid storage name \"{name}\""))
            .with_detail("A name has 1 to 63 lower-case letters, digits, _ and -.")
            .with_hint("Choose another name."));
    }
    Ok(())
}

fn check_directory(path: &str) -> std::result::Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("A file URL has an absolute path: file:///directory.");
    }
    let parts: Vec<_> = path.trim_end_matches('/').split('/').skip(1).collect();
    if parts.is_empty() {
        return Err("The root directory is no storage.");
    }
    if parts.iter().any(|part| part.is_empty() || *part == "." || *part == "..") {
        return Err("A path has no empty parts and none that are . or ..");
    }
    if path.bytes().any(|byte| byte < b' ' || byte == b'%' || byte == b'?' || byte == b'#') {
        return Err("A path has no control characters and no %, ? and #.");
    }
    Ok(())
}
