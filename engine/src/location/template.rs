//! Names of objects: which paths are allowed, and the templates that make them.

use crate::error::{Error, ErrorKind, Result};

/// Longest path of an object, prefix included: what S3 allows, less a reserve.
pub const PATH_BYTES_MAX: usize = 900;
/// Longest name between two slashes; longer ones are shortened and get a hash.
const NAME_BYTES_MAX: usize = 120;

/// What stands for the names in a template, in the order in which they may stand.
const PLACES: [&str; 4] = ["{namespace}", "{table}", "{shard}", "{user}"];

/// Whose segments a template places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// All users'.
    Shared,
    /// One user's.
    User,
}

/// The names that a template's places stand for.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The table's schema.
    pub namespace: &'a str,
    /// The table.
    pub table: &'a str,
    /// The user, in a user table.
    pub user: Option<&'a str>,
}

/// A checked path template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    text: String,
}

impl Template {
    /// Checks a template.
    ///
    /// # Errors
    /// `InvalidInput` when it is absolute, climbs, has unknown places, places in another order, or not those that its owner needs.
    pub fn parse(text: &str, owner: Owner) -> Result<Template> {
        let refuse = |detail: String| {
            Err(Error::new(ErrorKind::InvalidInput, format!("invalid path template \"{text}\""))
                .with_detail(detail)
                .with_hint("A template is a relative path of letters, digits, . _ - and {namespace}, {table}, {shard}, {user} in this order."))
        };
        if text.len() > 200 {
            return refuse("It has more than 200 bytes.".to_owned());
        }
        let mut literal = text.to_owned();
        let mut last = 0;
        for place in PLACES {
            match text.match_indices(place).map(|(at, _)| at).collect::<Vec<_>>()[..] {
                [] => {}
                [at] if at >= last => last = at,
                [_] => return refuse(format!("{place} stands before a place that belongs before it.")),
                _ => return refuse(format!("{place} stands in it more than once.")),
            }
            literal = literal.replace(place, "x");
        }
        if let Err(error) = check_object(&literal) {
            return refuse(error.detail().unwrap_or_default());
        }
        match owner {
            Owner::User if !text.contains("{user}") => refuse("A template of user tables needs {user}.".to_owned()),
            Owner::Shared if text.contains("{user}") || text.contains("{shard}") => {
                refuse("Shared tables have neither {user} nor {shard}.".to_owned())
            }
            _ => Ok(Template { text: text.to_owned() }),
        }
    }

    /// The directory of a table's or a user's segments.
    ///
    /// # Errors
    /// `InvalidInput` when a user is needed and there is none.
    pub fn render(&self, names: &Names<'_>) -> Result<String> {
        let mut path =
            self.text.replace("{namespace}", &encode_name(names.namespace)).replace("{table}", &encode_name(names.table));
        if path.contains("{user}") {
            let user = names.user.ok_or_else(|| {
                Error::new(ErrorKind::InvalidInput, format!("the path template \"{}\" needs a user", self.text))
                    .with_detail("The table's rows belong to no user.")
                    .with_hint("Use a template without {user} for shared tables.")
            })?;
            path =
                path.replace("{shard}", &format!("{:02x}", fnv1a(user.as_bytes()) & 0xff)).replace("{user}", &encode_name(user));
        }
        Ok(path)
    }

    /// The template's text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A name as it stands in a path: what is not a letter, digit, `.`, `_` or `-` becomes `%` and two hex digits, so that names never
/// climb, hide or meet. No encoded name contains a brace, so that one place never fills another.
pub fn encode_name(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => encoded.push(byte as char),
            b'.' if at > 0 => encoded.push('.'),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    if encoded.is_empty() {
        // No other name is encoded so: a percent sign itself becomes %25.
        return "%".to_owned();
    }
    if encoded.len() > NAME_BYTES_MAX {
        encoded.truncate(NAME_BYTES_MAX - 17);
        encoded.push_str(&format!("~{:016x}", fnv1a(name.as_bytes())));
    }
    encoded
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether a path may name an object below a location: relative, without empty, `.` or `..` parts, only plain characters.
///
/// # Errors
/// `InvalidInput` when it may not.
pub fn check_object(path: &str) -> Result<()> {
    let refuse = |detail: &str| {
        Err(Error::new(ErrorKind::InvalidInput, format!("invalid object path \"{path}\""))
            .with_detail(detail)
            .with_hint("Use a plain relative path."))
    };
    if path.is_empty() || path.len() > PATH_BYTES_MAX {
        return refuse("A path has 1 to 900 bytes.");
    }
    if path.starts_with('/') {
        return refuse("A path is relative to its location.");
    }
    for part in path.split('/') {
        if part.is_empty() || part == "." || part == ".." {
            return refuse("A path has no empty parts and none that are . or ..");
        }
        if !part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-~%=".contains(&byte)) {
            return refuse("A path has letters, digits and . _ - ~ % = only.");
        }
    }
    Ok(())
}
