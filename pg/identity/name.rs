//! Which names users may have.

use std::ffi::CStr;

/// Longest name of a user in bytes: a subject that an identity provider gave out may be 255 characters long.
pub const LONGEST_NAME: usize = 255;

/// Whether a text may name a user; the error says what is wrong with it.
///
/// Names stand in paths of files and in messages, so characters that cannot be seen are refused.
///
/// # Errors
/// A sentence for the error's detail.
pub fn check_user_name(name: &str) -> Result<(), &'static CStr> {
    if name.is_empty() {
        Err(c"The name of a user is not empty.")
    } else if name.len() > LONGEST_NAME {
        Err(c"The name of a user has at most 255 bytes.")
    } else if name.chars().any(char::is_control) {
        Err(c"The name of a user has no control characters.")
    } else if name.chars().any(is_invisible) {
        Err(c"The name of a user has no characters that cannot be seen.")
    } else if name.trim() != name {
        Err(c"The name of a user neither begins nor ends with white space.")
    } else {
        Ok(())
    }
}

/// Whether a character leaves no trace, so that two names that differ by it look the same.
fn is_invisible(character: char) -> bool {
    use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
    /// What Unicode calls ignorable by default beside the characters of these categories, and the blank of Braille.
    const BLANK: [std::ops::RangeInclusive<char>; 10] = [
        '\u{34F}'..='\u{34F}',
        '\u{115F}'..='\u{1160}',
        '\u{17B4}'..='\u{17B5}',
        '\u{180B}'..='\u{180F}',
        '\u{2065}'..='\u{2065}',
        '\u{2800}'..='\u{2800}',
        '\u{3164}'..='\u{3164}',
        '\u{FE00}'..='\u{FE0F}',
        '\u{FFA0}'..='\u{FFA0}',
        '\u{E0000}'..='\u{E0FFF}',
    ];
    !character.is_ascii()
        && (BLANK.iter().any(|range| range.contains(&character))
            || matches!(
                character.general_category(),
                GeneralCategory::Format | GeneralCategory::LineSeparator | GeneralCategory::ParagraphSeparator
            ))
}

/// A text that somebody gave as a name, cut to what a log has room for.
pub fn shortened(text: &str) -> &str {
    let end = text.floor_char_boundary(text.len().min(LONGEST_NAME));
    &text[..end]
}
