//! Deterministic chat-like messages: the same rows for every access method, run and machine.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Result;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Messages per conversation on average; conversations are interleaved as in a live system.
pub const MESSAGES_PER_CONVERSATION: u64 = 100;

const WORDS: [&str; 64] = [
    "the",
    "a",
    "to",
    "of",
    "and",
    "in",
    "is",
    "it",
    "you",
    "that",
    "for",
    "on",
    "with",
    "this",
    "we",
    "can",
    "are",
    "be",
    "have",
    "not",
    "do",
    "what",
    "if",
    "my",
    "your",
    "how",
    "when",
    "model",
    "answer",
    "question",
    "token",
    "context",
    "please",
    "explain",
    "thanks",
    "database",
    "table",
    "query",
    "index",
    "error",
    "message",
    "history",
    "user",
    "assistant",
    "summary",
    "example",
    "function",
    "result",
    "value",
    "because",
    "however",
    "between",
    "another",
    "without",
    "possible",
    "following",
    "conversation",
    "understand",
    "different",
    "important",
    "performance",
    "transaction",
    "configuration",
    "documentation",
];

/// A text of roughly `length` bytes.
fn text(rng: &mut ChaCha8Rng, length: usize) -> String {
    let mut text = String::with_capacity(length + 16);
    while text.len() < length {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(WORDS.choose(rng).expect("not empty"));
    }
    text
}

/// A text from which the insert script cuts its messages.
pub fn sample(length: usize) -> String {
    text(&mut ChaCha8Rng::seed_from_u64(0), length)
}

/// Writes `rows` messages in COPY's text format; returns the file's size.
pub fn write_messages(path: &Path, rows: u64, seed: u64) -> Result<u64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let conversations = (rows / MESSAGES_PER_CONVERSATION).max(1);
    for id in 1..=rows {
        let conversation = rng.random_range(1..=conversations);
        // Most messages are short, few are long; the mean is near 120 bytes.
        let length = if rng.random_ratio(1, 12) { rng.random_range(250..700) } else { rng.random_range(5..160) };
        let body = text(&mut rng, length);
        let role = if rng.random() { "user" } else { "assistant" };
        let seconds = 1_700_000_000 + id / 20;
        let (day, rest) = (seconds / 86_400, seconds % 86_400);
        writeln!(
            file,
            "{id}\t{conversation}\t{body}\t{} {:02}:{:02}:{:02}.{:03}+00\t{{\"role\": \"{role}\", \"model\": \"m-{}\", \"tokens\": {}}}",
            date(day),
            rest / 3600,
            rest / 60 % 60,
            rest % 60,
            id % 20 * 50,
            rng.random_range(1..5),
            body.len() / 4 + 1,
        )?;
    }
    file.flush()?;
    Ok(path.metadata()?.len())
}

/// The calendar date of a day since 1970-01-01.
fn date(day: u64) -> String {
    // Counts from 1 March of year 0, so that the leap day ends a year; eras of 400 years have 146,097 days.
    let shifted = day + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(19_675), "2023-11-14");
        assert_eq!(date(20_088), "2024-12-31");
    }

    #[test]
    fn messages_have_the_size_of_chat() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let total: usize = (0..1000).map(|_| text(&mut rng, 100).len()).sum();
        assert!((100..115).contains(&(total / 1000)));
    }
}
