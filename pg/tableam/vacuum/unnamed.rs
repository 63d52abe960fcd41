//! Large values that no row names: a crash between the storing of a value and of its row, or between the end of a row and of its values,
//! leaves them. The first VACUUM of a table after the server's start frees them.
//!
//! A value is freed if its first chunk was changed last before the mapping came into use, and a walk over all pages that existed then has
//! found no version that names it. Why nobody can want it:
//!
//! - Who stores a value or lets one more version name it, changes its first chunk before. Nobody did so since the mapping came into use, and
//!   the processes of before are gone, with all that they were about to store. So no version came to name the value since then.
//! - A version that named it then and was there through the walk was found: versions do not move, and the walk looks at each page under
//!   its latch. One that was removed meanwhile was dead to every snapshot, so nobody has the value's pointer from it.
//! - Blocks that the walk leaves out are cold. A value that a cold block names has a stub, which lasts as long as the value, and flushes
//!   are kept out by the table's lock: what has a stub counts as named. Values of dropped columns have none: a cold table with such columns is
//!   not searched.
//! - Whoever removed the last version and frees the value at the same time, finds each chunk freed or frees it, under its latch.

use std::sync::atomic::Ordering;

use kalamdb_engine::cache::Wait;
use kalamdb_engine::ids::Lsn;
use kalamdb_engine::page::Page;
use kalamdb_engine::{ErrorKind, Result};
use pgrx::pg_sys;

use super::super::storage::Storage;
use super::super::values;
use super::compat::{self, Cost};
use crate::ffi::compat::attributes;
use crate::ffi::interrupts::check_for_interrupts;
use crate::worker::requests;

/// Bytes of the numbers that are remembered, a bit for each. A table that has numbered more values is not searched.
const BYTES_MAX: usize = 64 << 20;

/// Bytes of them in one question to the engine.
const ASKED_BYTES: usize = 2048;

/// Whether a column was dropped that may have had large values.
fn has_dropped_values(rel: pg_sys::Relation) -> bool {
    // SAFETY: an open relation has a descriptor with that many columns.
    let columns = unsafe {
        let descriptor = (*rel).rd_att;
        std::slice::from_raw_parts(attributes(descriptor), (*descriptor).natts as usize)
    };
    columns.iter().any(|column| column.attisdropped && column.attlen == -1)
}

/// The values that were found to be named.
pub struct Unnamed {
    /// A bit for each number.
    named: Vec<u8>,
    /// Values that were changed last before this may be left over.
    before: Lsn,
    scratch: Vec<u32>,
}

impl Unnamed {
    /// Begins a search, if one is due.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn begin(rel: pg_sys::Relation, storage: &Storage, wait: &dyn Wait) -> Result<Option<Unnamed>> {
        let descriptor = storage.descriptor;
        if descriptor.segments.load(Ordering::Acquire) > 0 && has_dropped_values(rel) {
            return Ok(None);
        }
        let next = descriptor.next_value.load(Ordering::Acquire);
        let bytes = (next as usize).div_ceil(8);
        let before = Lsn(storage.cache.header().first_lsn.load(Ordering::Acquire));
        if next <= 1 || bytes > BYTES_MAX || before == Lsn::INVALID || descriptor.values_searched.load(Ordering::Acquire) != 0 {
            return Ok(None);
        }
        let mut search = Unnamed { named: vec![0; bytes], before, scratch: Vec::new() };
        // No value has the number 0.
        search.note(0);
        if descriptor.segments.load(Ordering::Acquire) > 0 {
            let client = requests::client(storage.cache, wait);
            let mut next = Some(0);
            while let Some(from) = next {
                let page = client.value_stubs(storage.id, from)?;
                page.entries.iter().for_each(|stub| search.note(stub.value));
                next = page.next;
                wait.pause()?;
            }
        }
        Ok(Some(search))
    }

    /// Values that are numbered later are younger than what is looked for.
    fn note(&mut self, value: u32) {
        if let Some(byte) = self.named.get_mut(value as usize / 8) {
            *byte |= 1 << (value % 8);
        }
    }

    /// Notes what the versions of a latched page name.
    pub fn note_page(&mut self, rel: pg_sys::Relation, page: Page<'_>) {
        let mut found = std::mem::take(&mut self.scratch);
        for (_, version) in page.versions().filter(|(_, version)| version.has_external()) {
            values::named_by(rel, version.bytes(), &mut found);
        }
        found.drain(..).for_each(|value| self.note(value));
        self.scratch = found;
    }

    /// Ends the search after the walk: frees the values that nothing names; returns how many.
    ///
    /// # Errors
    /// Those of the engine and of the cache.
    pub fn free(self, storage: &Storage, wait: &dyn Wait) -> Result<u64> {
        let client = requests::client(storage.cache, wait);
        // What recovery has changed is in the cache alone for a while.
        let is_complete = storage.cache.header().durable_lsn.load(Ordering::Acquire) >= self.before.0;
        let mut freed = 0;
        for (part, named) in self.named.chunks(ASKED_BYTES).enumerate() {
            if named.iter().all(|byte| *byte == 0xff) {
                continue;
            }
            let values = match client.unnamed_values(storage.id, (part * ASKED_BYTES * 8) as u32, named, self.before) {
                // A damaged page is an error for those who want it.
                Err(error) if error.kind() == ErrorKind::Corrupt => continue,
                values => values?,
            };
            for value in values {
                compat::charge(Cost::Miss);
                compat::delay_point();
                freed += u64::from(values::free_unnamed(storage, value, self.before, wait)?);
            }
            check_for_interrupts();
        }
        storage.descriptor.values_searched.store(u32::from(is_complete), Ordering::Release);
        Ok(freed)
    }
}
