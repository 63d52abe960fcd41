//! Postgres' stored jsonb and JSON text, both ways and exactly: the order of keys and the scale of numbers stay.
//!
//! A stored container is a header word (count and kind), an entry word for each key and value, and their bytes one after another. An
//! entry has its kind and its length, every 32nd its end instead. Numbers and containers begin at multiples of 4. The functions take
//! and give the value without its varlena header, which does not change what is a multiple of 4.

use super::numeric;

const COUNT_MASK: u32 = 0x0FFF_FFFF;
const SCALAR: u32 = 0x1000_0000;
const OBJECT: u32 = 0x2000_0000;
const ARRAY: u32 = 0x4000_0000;

const LENGTH_MASK: u32 = 0x0FFF_FFFF;
const KIND_MASK: u32 = 0x7000_0000;
const HAS_END: u32 = 0x8000_0000;
const STRING: u32 = 0x0000_0000;
const NUMERIC: u32 = 0x1000_0000;
const FALSE: u32 = 0x2000_0000;
const TRUE: u32 = 0x3000_0000;
const NULL: u32 = 0x4000_0000;
const CONTAINER: u32 = 0x5000_0000;

/// Every so many entries one has its end instead of its length.
const END_STRIDE: usize = 32;
/// Bytes of a word, and what numbers and containers are aligned to.
const WORD: usize = 4;
/// Containers within each other; a value with more keeps its stored form.
const DEPTH_MAX: u32 = 200;

/// The value as JSON text in Postgres' own spelling; nothing when the bytes are no jsonb, or one that nests too deep.
pub fn to_text(payload: &[u8]) -> Option<String> {
    let mut text = Vec::with_capacity(payload.len() + payload.len() / 2);
    write_container(payload, 0, true, &mut text)?;
    String::from_utf8(text).ok()
}

/// Appends the stored form of a text as [`to_text`] gives it; nothing when it is none, and then `out` has something of no use.
///
/// Keys stay in the order of the text, which for such a text is the order of the stored form.
pub fn append_stored(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let text = text.as_bytes();
    u32::try_from(text.len()).ok()?;
    let mut scan = Scan { text, at: 0, parts: Vec::with_capacity(16) };
    scan.value(0)?;
    if scan.at != text.len() {
        return None;
    }
    let base = out.len();
    let mut writer = Writer { text, parts: &scan.parts, base, out };
    match scan.parts.first()?.kind {
        CONTAINER => {
            writer.value(0)?;
        }
        _ => writer.scalar_root()?,
    }
    Some(())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + WORD)?.try_into().ok()?))
}

/// Goes over the entries of a container and knows where their bytes are.
struct Entries<'a> {
    container: &'a [u8],
    /// Where the entries' bytes begin, and where the container stands in the whole value, for the padding.
    data: usize,
    base: usize,
    count: usize,
}

impl<'a> Entries<'a> {
    /// The end of an entry's bytes, when `begin` is the begin of them; both count from the begin of the data.
    fn end(&self, number: usize, begin: usize) -> Option<usize> {
        let entry = word(self.container, WORD * (1 + number))?;
        let length = (entry & LENGTH_MASK) as usize;
        let end = if entry & HAS_END != 0 { length } else { begin + length };
        (end >= begin && number < self.count).then_some(end)
    }

    fn write(&self, number: usize, begin: usize, end: usize, depth: u32, out: &mut Vec<u8>) -> Option<()> {
        let entry = word(self.container, WORD * (1 + number))?;
        let bytes = self.container.get(self.data + begin..self.data + end)?;
        let position = self.base + self.data + begin;
        let padding = position.next_multiple_of(WORD) - position;
        match entry & KIND_MASK {
            STRING => write_string(bytes, out)?,
            NUMERIC => {
                // A number has a varlena header of its own.
                let datum = bytes.get(padding..)?;
                let header = word(datum, 0)?;
                if header & 3 != 0 || (header >> 2) as usize != datum.len() {
                    return None;
                }
                let start = out.len();
                numeric::append_text(&datum[WORD..], out)?;
                // JSON has no NaN and no infinity.
                if !out.last()?.is_ascii_digit() || out.len() == start {
                    return None;
                }
            }
            FALSE => out.extend_from_slice(b"false"),
            TRUE => out.extend_from_slice(b"true"),
            NULL => out.extend_from_slice(b"null"),
            CONTAINER => {
                let container = bytes.get(padding..)?;
                write_nested(container, position + padding, depth + 1, out)?;
            }
            _ => return None,
        }
        Some(())
    }
}

fn write_container(container: &[u8], base: usize, root: bool, out: &mut Vec<u8>) -> Option<()> {
    let header = word(container, 0)?;
    if root && header & SCALAR != 0 {
        if header != SCALAR | ARRAY | 1 {
            return None;
        }
        let entries = Entries { container, data: 2 * WORD, base, count: 1 };
        let end = entries.end(0, 0)?;
        return entries.write(0, 0, end, 0, out);
    }
    write_nested(container, base, 0, out)
}

fn write_nested(container: &[u8], base: usize, depth: u32, out: &mut Vec<u8>) -> Option<()> {
    let header = word(container, 0)?;
    let count = (header & COUNT_MASK) as usize;
    if depth > DEPTH_MAX || count > container.len() / WORD {
        return None;
    }
    match header & !COUNT_MASK {
        ARRAY => {
            let entries = Entries { container, data: WORD * (1 + count), base, count };
            out.push(b'[');
            let mut begin = 0;
            for number in 0..count {
                if number > 0 {
                    out.extend_from_slice(b", ");
                }
                let end = entries.end(number, begin)?;
                entries.write(number, begin, end, depth, out)?;
                begin = end;
            }
            out.push(b']');
        }
        OBJECT => {
            let entries = Entries { container, data: WORD * (1 + 2 * count), base, count: 2 * count };
            let mut value_begin = 0;
            for number in 0..count {
                value_begin = entries.end(number, value_begin)?;
            }
            out.push(b'{');
            let mut key_begin = 0;
            for number in 0..count {
                if number > 0 {
                    out.extend_from_slice(b", ");
                }
                let key_end = entries.end(number, key_begin)?;
                entries.write(number, key_begin, key_end, depth, out)?;
                out.extend_from_slice(b": ");
                let value_end = entries.end(count + number, value_begin)?;
                entries.write(count + number, value_begin, value_end, depth, out)?;
                (key_begin, value_begin) = (key_end, value_end);
            }
            out.push(b'}');
        }
        _ => return None,
    }
    Some(())
}

fn write_string(bytes: &[u8], out: &mut Vec<u8>) -> Option<()> {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut rest = bytes;
    while let Some(plain) = rest.iter().position(|byte| matches!(byte, 0..32 | b'"' | b'\\')) {
        out.extend_from_slice(&rest[..plain]);
        let byte = rest[plain];
        rest = &rest[plain + 1..];
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0 => return None,
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
    out.extend_from_slice(rest);
    out.push(b'"');
    Some(())
}

/// A string, number, word or container of a text. What is in a container follows it: keys and values in turns, or elements.
struct Part {
    kind: u32,
    /// Where it stands in the text; of a string, what is between the quotes.
    from: u32,
    to: u32,
    /// A container: how many elements or pairs it has.
    count: u32,
    /// A container: whether it is an object. A string: whether it has escapes.
    flag: bool,
    /// The number of the part behind it and everything in it.
    next: u32,
}

/// Finds the parts of a text, in one pass over it.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    parts: Vec<Part>,
}

impl Scan<'_> {
    fn take(&mut self, wanted: &[u8]) -> Option<()> {
        self.text[self.at..].starts_with(wanted).then(|| self.at += wanted.len())
    }

    fn add(&mut self, kind: u32, from: usize, to: usize, flag: bool) {
        let next = self.parts.len() as u32 + 1;
        self.parts.push(Part { kind, from: from as u32, to: to as u32, count: 0, flag, next });
    }

    fn value(&mut self, depth: u32) -> Option<()> {
        let from = self.at;
        match self.text.get(from)? {
            b'"' => return self.string(),
            b'{' => return self.container(true, b"}", depth),
            b'[' => return self.container(false, b"]", depth),
            b't' => self.take(b"true").map(|()| self.add(TRUE, from, self.at, false))?,
            b'f' => self.take(b"false").map(|()| self.add(FALSE, from, self.at, false))?,
            b'n' => self.take(b"null").map(|()| self.add(NULL, from, self.at, false))?,
            _ => {
                let rest = &self.text[from..];
                self.at += rest.iter().take_while(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.')).count();
                self.add(NUMERIC, from, self.at, false);
            }
        }
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        self.take(b"\"")?;
        let from = self.at;
        let mut escaped = false;
        loop {
            let rest = self.text.get(self.at..)?;
            self.at += rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
            if self.text[self.at] == b'"' {
                self.add(STRING, from, self.at, escaped);
                self.at += 1;
                return Some(());
            }
            escaped = true;
            self.at += 2;
        }
    }

    fn container(&mut self, object: bool, close: &[u8], depth: u32) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        let place = self.parts.len();
        self.add(CONTAINER, self.at, self.at, object);
        self.at += 1;
        let mut count = 0;
        while self.take(close).is_none() {
            if count > 0 {
                self.take(b", ")?;
            }
            if object {
                self.string()?;
                self.take(b": ")?;
            }
            self.value(depth + 1)?;
            count += 1;
            // Behind an element stands the end or one more.
            if !self.text[self.at..].starts_with(close) && !self.text[self.at..].starts_with(b", ") {
                return None;
            }
        }
        let next = self.parts.len() as u32;
        let part = &mut self.parts[place];
        (part.count, part.next) = (count, next);
        (count <= COUNT_MASK / 2).then_some(())
    }
}

/// Writes the stored form of the parts of a text.
struct Writer<'a> {
    text: &'a [u8],
    parts: &'a [Part],
    /// Where the value begins in `out`.
    base: usize,
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn pad(&mut self) {
        self.out.resize(self.base + (self.out.len() - self.base).next_multiple_of(WORD), 0);
    }

    fn put_word(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// A scalar by itself is stored as an array of one element.
    fn scalar_root(&mut self) -> Option<()> {
        self.put_word(SCALAR | ARRAY | 1);
        self.put_word(0);
        let entry = self.value(0)?;
        // The first entry of a container has its end, which here is its length.
        let at = self.base + WORD;
        self.out[at..at + WORD].copy_from_slice(&(entry | HAS_END).to_le_bytes());
        Some(())
    }

    /// Writes a part's bytes; its entry with the length, padding included.
    fn value(&mut self, number: usize) -> Option<u32> {
        let begin = self.out.len();
        let part = &self.parts[number];
        match part.kind {
            STRING => self.string(part)?,
            CONTAINER => self.container(number)?,
            NUMERIC => {
                let text = std::str::from_utf8(&self.text[part.from as usize..part.to as usize]).ok()?;
                let payload = numeric::from_text(text)?;
                self.pad();
                self.put_word(((payload.len() + WORD) as u32) << 2);
                self.out.extend_from_slice(&payload);
            }
            _ => {}
        }
        let length = u32::try_from(self.out.len() - begin).ok().filter(|length| *length <= LENGTH_MASK)?;
        Some(part.kind | length)
    }

    fn string(&mut self, part: &Part) -> Option<()> {
        let mut rest = &self.text[part.from as usize..part.to as usize];
        if !part.flag {
            self.out.extend_from_slice(rest);
            return Some(());
        }
        while let Some(plain) = rest.iter().position(|byte| *byte == b'\\') {
            self.out.extend_from_slice(&rest[..plain]);
            let escape = *rest.get(plain + 1)?;
            rest = &rest[plain + 2..];
            let byte = match escape {
                b'"' | b'\\' => escape,
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'u' => {
                    let digits = std::str::from_utf8(rest.get(..4)?).ok()?;
                    rest = &rest[4..];
                    // Only control characters are written so.
                    u8::from_str_radix(digits, 16).ok().filter(|byte| *byte < 32)?
                }
                _ => return None,
            };
            self.out.push(byte);
        }
        self.out.extend_from_slice(rest);
        Some(())
    }

    fn container(&mut self, number: usize) -> Option<()> {
        let Part { count, flag: object, .. } = self.parts[number];
        self.pad();
        self.put_word(count | if object { OBJECT } else { ARRAY });
        let entries_at = self.out.len();
        let values_from = if object { count as usize } else { 0 };
        let entries = count as usize + values_from;
        self.out.resize(entries_at + WORD * entries, 0);
        let mut total = 0;
        if object {
            // Keys stand before all values.
            let mut key = number + 1;
            for place in 0..count as usize {
                let entry = self.value(key)?;
                self.entry(entries_at, place, entry, &mut total)?;
                key = self.parts[key + 1].next as usize;
            }
        }
        let mut part = number + 1;
        for place in 0..count as usize {
            part += usize::from(object);
            let entry = self.value(part)?;
            self.entry(entries_at, values_from + place, entry, &mut total)?;
            part = self.parts[part].next as usize;
        }
        Some(())
    }

    fn entry(&mut self, entries_at: usize, number: usize, mut entry: u32, total: &mut u32) -> Option<()> {
        *total = total.checked_add(entry & LENGTH_MASK).filter(|total| *total <= LENGTH_MASK)?;
        if number.is_multiple_of(END_STRIDE) {
            entry = entry & KIND_MASK | *total | HAS_END;
        }
        let at = entries_at + WORD * number;
        self.out[at..at + WORD].copy_from_slice(&entry.to_le_bytes());
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::stored_cases::{JSONB, bytes};

    /// The stored form behind three other bytes, which do not count for what is a multiple of 4.
    fn from_text(text: &str) -> Option<Vec<u8>> {
        let mut out = vec![7; 3];
        append_stored(text, &mut out)?;
        Some(out.split_off(3))
    }

    #[test]
    fn the_text_is_what_postgres_prints_and_leads_back() {
        for (hex, text) in JSONB {
            assert_eq!(to_text(&bytes(hex)).as_deref(), Some(*text));
            assert_eq!(from_text(text), Some(bytes(hex)), "{text}");
        }
    }

    #[test]
    fn depth_beyond_the_limit_is_refused_both_ways() {
        let text = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(from_text(&text(200)).is_some());
        assert_eq!(from_text(&text(300)), None);
    }

    #[test]
    fn damaged_bytes_are_refused_or_something_else_but_never_a_panic() {
        for (hex, _) in JSONB {
            let good = bytes(hex);
            for at in 0..good.len() {
                for flip in [1, 0x80, 0xff] {
                    let mut bad = good.clone();
                    bad[at] ^= flip;
                    let _ = to_text(&bad);
                }
                let _ = to_text(&good[..at]);
            }
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "",
            "{",
            "[1,2]",
            "{\"a\":1}",
            "nul",
            "\"a",
            "[1, ]",
            "{\"a\": }",
            "1 ",
            "\"\\u0041\"",
            "{1: 2}",
            "[\"a\\",
            "[1, 2",
            "[1 2]",
            "[, 1]",
            "{\"a\"}",
            "\"a\\\"",
            "{\"a\": 1, }",
        ] {
            assert_eq!(from_text(text), None, "{text}");
        }
    }
}
