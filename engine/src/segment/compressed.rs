//! Values as Postgres compresses them: with its own pglz, or with LZ4.
//!
//! pglz is compressed here as well. It gives the same bytes for the same value, so a segment has the value alone where compressing it
//! gives back what stood in the overflow pages.

/// The value behind a word with its length and its method.
///
/// Nothing when the bytes are not such a value, or of a method that this version does not know.
pub fn uncompress(stored: &[u8]) -> Option<Vec<u8>> {
    let (info, data) = stored.split_first_chunk::<4>()?;
    let info = u32::from_le_bytes(*info);
    let length = (info & 0x3FFF_FFFF) as usize;
    match info >> 30 {
        0 => pglz(data, length),
        1 => lz4_flex::block::decompress(data, length).ok().filter(|value| value.len() == length),
        _ => None,
    }
}

fn pglz(mut source: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(length.min(64 << 20));
    while out.len() < length {
        let (control, rest) = source.split_first()?;
        source = rest;
        for bit in 0..8 {
            if out.len() >= length {
                break;
            }
            if control & (1 << bit) == 0 {
                let (byte, rest) = source.split_first()?;
                out.push(*byte);
                source = rest;
                continue;
            }
            let (pair, rest) = source.split_first_chunk::<2>()?;
            source = rest;
            let mut run = usize::from(pair[0] & 0x0f) + 3;
            let back = usize::from(pair[0] & 0xf0) << 4 | usize::from(pair[1]);
            if run == 18 {
                let (more, rest) = source.split_first()?;
                run += usize::from(*more);
                source = rest;
            }
            let from = out.len().checked_sub(back).filter(|_| back > 0)?;
            // Source and target may overlap: a run repeats what it has just written.
            for place in from..from + run.min(length - out.len()) {
                out.push(out[place]);
            }
        }
    }
    source.is_empty().then_some(out)
}

/// Positions that are remembered, and how far back a run may lie.
const HISTORY: usize = 4096;
const BACK_MAX: usize = 0xfff;
/// The longest run.
const RUN_MAX: usize = 273;
/// A run of this length ends the search; each place looked at makes it shorter by this many hundredths.
const GOOD_RUN: usize = 128;
const GOOD_DROP: usize = 10;

/// No entry before this one.
const HEAD: u16 = u16::MAX;

/// The places where values of a hash occurred; the youngest one first in each list. Entry 0 stands for none.
struct History<'a> {
    plain: &'a [u8],
    mask: usize,
    starts: Vec<u16>,
    entries: Vec<Entry>,
    next: usize,
    full: bool,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    next: u16,
    previous: u16,
    hash: u16,
    at: u32,
}

impl<'a> History<'a> {
    fn new(plain: &'a [u8]) -> History<'a> {
        let lists = match plain.len() {
            0..128 => 512,
            128..256 => 1024,
            256..512 => 2048,
            512..1024 => 4096,
            _ => 8192,
        };
        let entries = vec![Entry::default(); HISTORY + 1];
        History { plain, mask: lists - 1, starts: vec![0; lists], entries, next: 1, full: false }
    }

    /// As Postgres computes it where C's characters are signed.
    fn hash(&self, at: usize) -> usize {
        let sign = |byte: u8| i32::from(byte as i8);
        let hash = match self.plain[at..] {
            [a, b, c, d, ..] => sign(a) << 6 ^ sign(b) << 4 ^ sign(c) << 2 ^ sign(d),
            [a, ..] => sign(a),
            [] => 0,
        };
        hash as usize & self.mask
    }

    fn add(&mut self, at: usize) {
        let hash = self.hash(at);
        let number = self.next;
        if self.full {
            let old = self.entries[number];
            match old.previous {
                HEAD => self.starts[usize::from(old.hash)] = old.next,
                previous => self.entries[usize::from(previous)].next = old.next,
            }
            self.entries[usize::from(old.next)].previous = old.previous;
        }
        let first = self.starts[hash];
        self.entries[number] = Entry { next: first, previous: HEAD, hash: hash as u16, at: at as u32 };
        self.entries[usize::from(first)].previous = number as u16;
        self.starts[hash] = number as u16;
        self.next += 1;
        if self.next > HISTORY {
            (self.next, self.full) = (1, true);
        }
    }

    /// Length of the best run that repeats here, and how far back it began.
    fn find(&self, at: usize) -> Option<(usize, usize)> {
        let (mut best, mut best_back) = (0, 0);
        let mut good = GOOD_RUN;
        let mut number = self.starts[self.hash(at)];
        while number != 0 {
            let entry = self.entries[usize::from(number)];
            let from = entry.at as usize;
            let back = at - from;
            if back >= BACK_MAX {
                break;
            }
            let here = self.plain[at..].iter().take(RUN_MAX);
            let length = here.zip(&self.plain[from..]).take_while(|(here, there)| here == there).count();
            if length > best {
                (best, best_back) = (length, back);
            }
            number = entry.next;
            if number != 0 {
                if best >= good {
                    break;
                }
                good -= good * GOOD_DROP / 100;
            }
        }
        (best > 2).then_some((best, best_back))
    }
}

/// A value as Postgres' pglz compresses it, behind the word with its length.
pub fn compress_pglz(plain: &[u8]) -> Vec<u8> {
    let mut out = (plain.len() as u32 & 0x3FFF_FFFF).to_le_bytes().to_vec();
    let mut history = History::new(plain);
    let (mut control_at, mut bit) = (0, 8);
    let mut at = 0;
    while at < plain.len() {
        if bit == 8 {
            (control_at, bit) = (out.len(), 0);
            out.push(0);
        }
        let run = match history.find(at) {
            Some((run, back)) => {
                out[control_at] |= 1 << bit;
                out.extend_from_slice(&[(back >> 4 & 0xf0) as u8 | (run - 3).min(15) as u8, back as u8]);
                if run > 17 {
                    out.push((run - 18) as u8);
                }
                run
            }
            None => {
                out.push(plain[at]);
                1
            }
        };
        bit += 1;
        (at..at + run).for_each(|place| history.add(place));
        at += run;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes on the right are what PostgreSQL 15's `pglz_compress` makes of the values.
    #[test]
    fn pglz_compresses_as_postgres_does() {
        let value = format!("é日本 message 1, é日本 message 2, é日本 message 3{}", "-".repeat(40));
        let stored = compress_pglz(value.as_bytes());
        let hex: String = stored[4..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "00c3a9e697a5e69cac00206d6573736167655020312c200e14320f140133022d0f0115");
        assert_eq!(uncompress(&stored).as_deref(), Some(value.as_bytes()));
        // Longer than what is remembered.
        let value: String = (0..3000).map(|number| format!("{} é{} ", number * 7919 % 1000, number % 13)).collect();
        let stored = compress_pglz(value.as_bytes());
        assert_eq!((value.len(), stored.len() - 4, crc32c::crc32c(&stored[4..])), (24360, 13483, 0x21c208b4));
        assert_eq!(uncompress(&stored).as_deref(), Some(value.as_bytes()));
    }

    #[test]
    fn runs_repeat_what_was_written() {
        // "ab", then 10 bytes from two back.
        let stored = [12, 0, 0, 0, 0b100, b'a', b'b', 0x07, 0x02];
        assert_eq!(uncompress(&stored).as_deref(), Some(b"abababababab".as_slice()));
    }

    #[test]
    fn what_is_not_compressed_so_is_refused() {
        assert_eq!(uncompress(&[]), None);
        assert_eq!(uncompress(&[5, 0, 0, 0, 0, b'a']), None);
        assert_eq!(uncompress(&[4, 0, 0, 0, 1, 0x01, 0x09]), None);
        assert_eq!(uncompress(&[1, 0, 0, 0x80, 0]), None);
        assert_eq!(uncompress(&[9, 0, 0, 0x40, 0xff, 1, 2]), None);
    }

    #[test]
    fn lz4_comes_back() {
        let value = b"message message message message".repeat(20);
        let mut stored = (value.len() as u32 | 1 << 30).to_le_bytes().to_vec();
        stored.extend(lz4_flex::block::compress(&value));
        assert_eq!(uncompress(&stored), Some(value));
    }
}
