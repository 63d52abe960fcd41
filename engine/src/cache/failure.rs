//! Why pages could not be loaded: what a loader knows, kept in shared memory for those who wait for the page.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Cache;
use super::frame::LoadFailure;
use super::latch::{Latch, WaitForever};
use crate::error::{Error, ErrorKind};
use crate::ids::PageKey;

/// Failures whose text is kept at a time; an older one is told without its cause.
const ENTRIES: usize = 16;
/// The longest text, in words.
const WORDS: usize = 252;
/// Stands between message, detail and hint.
const SEPARATOR: char = '\u{1f}';

#[repr(C)]
struct Entry {
    storage: AtomicU64,
    page: AtomicU64,
    text: [AtomicU32; WORDS],
}

/// The texts of the last failures.
#[repr(C, align(64))]
pub(super) struct LoadFailures {
    latch: Latch,
    next: AtomicU32,
    entries: [Entry; ENTRIES],
}

impl LoadFailures {
    /// Forgets everything: only while nobody uses it.
    pub(super) fn format(&self) {
        self.latch.reset();
        self.entries.iter().for_each(|entry| entry.storage.store(0, Ordering::Relaxed));
    }

    /// Keeps the text of a page's failure.
    fn keep(&self, key: PageKey, error: &Error) {
        let mut text = format!(
            "{}{SEPARATOR}{}{SEPARATOR}{}",
            error.message(),
            error.detail().unwrap_or_default(),
            error.hint().unwrap_or_default()
        );
        text.truncate(text.floor_char_boundary(WORDS * 4));
        let mut bytes = [0; WORDS * 4];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        let _ = self.latch.lock_exclusive(&WaitForever);
        let number = self.place_of(key).unwrap_or_else(|| self.next.fetch_add(1, Ordering::Relaxed) as usize % ENTRIES);
        let entry = &self.entries[number];
        for (word, chunk) in entry.text.iter().zip(bytes.as_chunks::<4>().0) {
            word.store(u32::from_le_bytes(*chunk), Ordering::Relaxed);
        }
        entry.page.store(key.page.0, Ordering::Relaxed);
        entry.storage.store(key.storage.0, Ordering::Relaxed);
        self.latch.unlock_exclusive();
    }

    fn forget(&self, key: PageKey) {
        let _ = self.latch.lock_exclusive(&WaitForever);
        if let Some(number) = self.place_of(key) {
            self.entries[number].storage.store(0, Ordering::Relaxed);
        }
        self.latch.unlock_exclusive();
    }

    fn find(&self, key: PageKey) -> Option<String> {
        let _ = self.latch.lock_shared(&WaitForever);
        let bytes: Option<Vec<u8>> = self
            .place_of(key)
            .map(|number| self.entries[number].text.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect());
        self.latch.unlock_shared();
        let bytes = bytes?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn place_of(&self, key: PageKey) -> Option<usize> {
        self.entries.iter().position(|entry| {
            entry.storage.load(Ordering::Relaxed) == key.storage.0 && entry.page.load(Ordering::Relaxed) == key.page.0
        })
    }
}

impl Cache {
    /// Keeps why a page could not be loaded; nothing is said of the cause when there is no error.
    pub(super) fn keep_failure(&self, key: PageKey, error: Option<&Error>) {
        match error {
            Some(error) => self.load_failures().keep(key, error),
            None => self.load_failures().forget(key),
        }
    }

    /// The error of those who wait for a page that could not be loaded.
    pub(super) fn load_error(&self, failure: u32, key: PageKey) -> Error {
        if let Some(text) = self.load_failures().find(key) {
            let mut parts = text.splitn(3, SEPARATOR).map(str::to_owned);
            let mut error = Error::new(LoadFailure::kind_of(failure), parts.next().unwrap_or_default());
            if let Some(detail) = parts.next().filter(|detail| !detail.is_empty()) {
                error = error.with_detail(detail);
            }
            if let Some(hint) = parts.next().filter(|hint| !hint.is_empty()) {
                error = error.with_hint(hint);
            }
            return error;
        }
        let place = match key.page.as_block() {
            Some(block) => format!("block {block}"),
            None => format!("page {:#x}", key.page.0),
        };
        if failure == LoadFailure::Io as u32 {
            return Error::new(ErrorKind::Io, format!("could not read {place} of storage {}", key.storage.0))
                .with_hint("The server log has the operating system's message.");
        }
        if failure == LoadFailure::Corrupt as u32 {
            return Error::corrupt(format!("invalid page: {place} of storage {}", key.storage.0))
                .with_detail("The stored bytes fail their check; other pages are not affected.")
                .with_hint("Restore the table from a backup, or look at the server log for the damaged file.");
        }
        Error::new(LoadFailure::kind_of(failure), format!("could not load {place} of storage {}", key.storage.0))
            .with_hint("The server log has the cause.")
    }
}
