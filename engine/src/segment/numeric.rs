//! Postgres' stored numeric and its two other forms: exact text, and a whole number with a scale.
//!
//! A stored numeric is a header of 2 or 4 bytes (sign, display scale, weight) and digits to base 10,000, without zero digits at its
//! ends. The functions take and give the value without its varlena header.

const SIGN_MASK: u16 = 0xC000;
const NEGATIVE: u16 = 0x4000;
const SHORT: u16 = 0x8000;
const SPECIAL: u16 = 0xC000;
const DSCALE_MASK: u16 = 0x3FFF;
const SHORT_NEGATIVE: u16 = 0x2000;
const SHORT_DSCALE_MASK: u16 = 0x1F80;
const SHORT_DSCALE_SHIFT: u16 = 7;
const SHORT_DSCALE_MAX: usize = 63;
const SHORT_WEIGHT_NEGATIVE: u16 = 0x0040;
const SHORT_WEIGHT_MASK: u16 = 0x003F;

const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const MINUS_INFINITY: u16 = 0xF000;

/// Decimal digits of one stored digit.
const GROUP: usize = 4;

/// A stored value taken apart.
struct Parts<'a> {
    negative: bool,
    /// Digits shown behind the point.
    dscale: usize,
    /// The power of 10,000 of the first digit.
    weight: i32,
    digits: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Nothing for NaN, the infinities and what is no numeric.
    fn of(payload: &'a [u8]) -> Option<Parts<'a>> {
        let (head, rest) = payload.split_first_chunk()?;
        let head = u16::from_le_bytes(*head);
        let parts = match head & SIGN_MASK {
            SPECIAL => return None,
            SHORT => {
                let magnitude = i32::from(head & SHORT_WEIGHT_MASK);
                let weight = if head & SHORT_WEIGHT_NEGATIVE != 0 { magnitude - 64 } else { magnitude };
                let dscale = usize::from((head & SHORT_DSCALE_MASK) >> SHORT_DSCALE_SHIFT);
                Parts { negative: head & SHORT_NEGATIVE != 0, dscale, weight, digits: rest }
            }
            sign => {
                let (weight, digits) = rest.split_first_chunk()?;
                let weight = i32::from(i16::from_le_bytes(*weight));
                Parts { negative: sign == NEGATIVE, dscale: usize::from(head & DSCALE_MASK), weight, digits }
            }
        };
        (parts.digits.len() % 2 == 0).then_some(parts)
    }

    /// The digit that counts 10,000 to the power `weight`; nothing when the stored one is none.
    fn digit(&self, weight: i32) -> Option<u16> {
        let Ok(place) = usize::try_from(self.weight - weight) else { return Some(0) };
        match self.digits.get(2 * place..2 * place + 2) {
            Some(bytes) => Some(u16::from_le_bytes([bytes[0], bytes[1]])).filter(|digit| *digit < 10_000),
            None => Some(0),
        }
    }

    /// The decimal digits of stored digits from the power `from` down to `to`, each with its leading zeros.
    fn decimals(&self, from: i32, to: i32, out: &mut Vec<u8>) -> Option<()> {
        for weight in (to..=from).rev() {
            let digit = self.digit(weight)?;
            out.extend([digit / 1000, digit / 100 % 10, digit / 10 % 10, digit % 10].map(|decimal| b'0' + decimal as u8));
        }
        Some(())
    }
}

/// The value as Postgres prints it; nothing when the bytes are no numeric.
pub fn to_text(payload: &[u8]) -> Option<String> {
    let mut text = Vec::with_capacity(2 * payload.len() + GROUP);
    append_text(payload, &mut text)?;
    String::from_utf8(text).ok()
}

/// As [`to_text`], behind what `out` has; what is in `out` after nothing was returned says nothing.
pub fn append_text(payload: &[u8], out: &mut Vec<u8>) -> Option<()> {
    if let Ok(head) = payload.try_into().map(u16::from_le_bytes)
        && head & SIGN_MASK == SPECIAL
    {
        out.extend_from_slice(match head {
            NAN => b"NaN".as_slice(),
            INFINITY => b"Infinity",
            MINUS_INFINITY => b"-Infinity",
            _ => return None,
        });
        return Some(());
    }
    let parts = Parts::of(payload)?;
    if parts.negative {
        out.push(b'-');
    }
    let start = out.len();
    parts.decimals(parts.weight, 0, out)?;
    let zeros = out[start..].iter().take_while(|decimal| **decimal == b'0').count();
    out.drain(start..start + zeros);
    if out.len() == start {
        out.push(b'0');
    }
    if parts.dscale > 0 {
        out.push(b'.');
        let start = out.len();
        parts.decimals(-1, -(parts.dscale.div_ceil(GROUP) as i32), out)?;
        out.truncate(start + parts.dscale);
    }
    Some(())
}

/// The stored form of a value as [`to_text`] gives it; nothing when the text is no such value.
pub fn from_text(text: &str) -> Option<Vec<u8>> {
    let special = match text {
        "NaN" => Some(NAN),
        "Infinity" => Some(INFINITY),
        "-Infinity" => Some(MINUS_INFINITY),
        _ => None,
    };
    if let Some(head) = special {
        return Some(head.to_le_bytes().to_vec());
    }
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    build(negative, whole.as_bytes(), fraction.as_bytes())
}

/// The value as a whole number of 10 to the power minus `scale`; nothing when its display scale is another or it does not fit.
pub fn to_i128(payload: &[u8], scale: u8) -> Option<i128> {
    let parts = Parts::of(payload)?;
    if parts.dscale != usize::from(scale) || parts.weight > 9 {
        return None;
    }
    let mut decimals = Vec::with_capacity(80);
    parts.decimals(parts.weight.max(-1), 0, &mut decimals)?;
    let whole = decimals.len();
    parts.decimals(-1, -(parts.dscale.div_ceil(GROUP) as i32), &mut decimals)?;
    decimals.truncate(whole + parts.dscale);
    let mut value: i128 = 0;
    for decimal in decimals {
        value = value.checked_mul(10)?.checked_add(i128::from(decimal - b'0'))?;
    }
    Some(if parts.negative { -value } else { value })
}

/// The stored form of a whole number of 10 to the power minus `scale`.
pub fn from_i128(value: i128, scale: u8) -> Vec<u8> {
    let scale = usize::from(scale);
    let decimals = format!("{:0width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = decimals.as_bytes().split_at(decimals.len() - scale);
    build(value < 0, whole, fraction).unwrap_or_default()
}

/// Builds the stored form from decimal digits; nothing when the value is beyond what a numeric can be.
fn build(negative: bool, whole: &[u8], fraction: &[u8]) -> Option<Vec<u8>> {
    let dscale = fraction.len();
    let lead = whole.len().next_multiple_of(GROUP) - whole.len();
    let groups = (lead + whole.len()) / GROUP;
    let count = groups + dscale.div_ceil(GROUP);
    let decimal = |place: usize| -> u16 {
        let byte = match place.checked_sub(lead) {
            None => b'0',
            Some(place) => whole.get(place).or_else(|| fraction.get(place - whole.len())).copied().unwrap_or(b'0'),
        };
        u16::from(byte - b'0')
    };
    let digits: Vec<u16> =
        (0..count).map(|group| (0..GROUP).fold(0, |digit, place| digit * 10 + decimal(group * GROUP + place))).collect();
    let leading = digits.iter().take_while(|digit| **digit == 0).count();
    let trailing = digits[leading..].iter().rev().take_while(|digit| **digit == 0).count();
    let digits = &digits[leading..digits.len() - trailing];
    let (negative, weight) = if digits.is_empty() { (false, 0) } else { (negative, groups as i64 - 1 - leading as i64) };
    let mut payload = Vec::with_capacity(4 + 2 * digits.len());
    if dscale <= SHORT_DSCALE_MAX && (-64..=63).contains(&weight) {
        let sign = if negative { SHORT_NEGATIVE } else { 0 };
        let weight_sign = if weight < 0 { SHORT_WEIGHT_NEGATIVE } else { 0 };
        let head = SHORT | sign | (dscale as u16) << SHORT_DSCALE_SHIFT | weight_sign | weight as u16 & SHORT_WEIGHT_MASK;
        payload.extend_from_slice(&head.to_le_bytes());
    } else {
        let dscale = u16::try_from(dscale).ok().filter(|dscale| *dscale <= DSCALE_MASK)?;
        let sign = if negative { NEGATIVE } else { 0 };
        payload.extend_from_slice(&(sign | dscale).to_le_bytes());
        payload.extend_from_slice(&i16::try_from(weight).ok()?.to_le_bytes());
    }
    digits.iter().for_each(|digit| payload.extend_from_slice(&digit.to_le_bytes()));
    Some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::stored_cases::{NUMERIC, bytes};

    #[test]
    fn the_text_is_what_postgres_prints_and_leads_back() {
        for (hex, text) in NUMERIC {
            assert_eq!(to_text(&bytes(hex)).as_deref(), Some(*text));
            assert_eq!(from_text(text), Some(bytes(hex)), "{text}");
        }
    }

    #[test]
    fn whole_numbers_with_a_scale_lead_back() {
        let texts = ["0", "0.00", "-0.01", "12345.6789", "99999999999999999999999999999999999999", "0.0000000001", "-10000.0000"];
        for text in texts {
            let scale = text.split_once('.').map_or(0, |(_, fraction)| fraction.len() as u8);
            let payload = from_text(text).unwrap();
            let value = to_i128(&payload, scale).unwrap();
            assert_eq!(value.to_string(), text.replace('.', "").parse::<i128>().unwrap().to_string());
            assert_eq!(from_i128(value, scale), payload, "{text}");
            assert_eq!(to_i128(&payload, scale + 1), None);
        }
    }

    #[test]
    fn what_is_no_numeric_is_refused() {
        for text in ["", "-", ".5", "1e5", "1_0", "0x1", "--1", "1.2.3", " 1", "nan"] {
            assert_eq!(from_text(text), None, "{text}");
        }
        for hex in ["", "80", "8000ff", "8080ffff", "00c1", "0000", "000000"] {
            assert_eq!(to_text(&bytes(hex)), None, "{hex}");
        }
        assert_eq!(to_i128(&NAN.to_le_bytes(), 0), None);
        assert_eq!(to_i128(&from_text(&"9".repeat(60)).unwrap(), 0), None);
    }
}
