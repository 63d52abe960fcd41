//! Finds large values in the store that no row names.

use rocksdb::ReadOptions;

use super::{Store, failure, format};
use crate::error::Result;
use crate::ids::{Lsn, PageKey, PageNumber, StorageId};
use crate::page::{PageKind, compact_kind, compact_lsn};

impl Store {
    /// The values with numbers from `first` on whose bits in `named` are not set, which are there, and whose first chunk was changed last
    /// before `before`. The lowest bit of a byte is the lowest number's.
    ///
    /// # Errors
    /// `Corrupt` when an image has no valid form; those of RocksDB.
    pub fn unnamed_values(&self, storage: StorageId, first: u32, named: &[u8], before: Lsn) -> Result<Vec<u32>> {
        let key = |value| format::page_key(PageKey { storage, page: PageNumber::overflow(value, 0) });
        let numbers = u32::try_from(named.len() * 8).unwrap_or(u32::MAX);
        let last = first.saturating_add(numbers);
        let is_named = |value: u32| {
            let bit = (value - first) as usize;
            named[bit / 8] >> (bit % 8) & 1 != 0
        };
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(key(last));
        let mut entries = self.db.raw_iterator_cf_opt(self.pages_family(), options);
        let (mut found, mut from) = (Vec::new(), first);
        while let Some(value) = (from..last).find(|value| !is_named(*value)) {
            entries.seek(key(value));
            let Some((entry, stored)) = entries.item() else { break };
            let Some(page) = entry.last_chunk::<8>().map(|page| PageNumber(u64::from_be_bytes(*page))) else { break };
            let Some((number, chunk)) = page.as_overflow() else { break };
            if chunk == 0 && !is_named(number) {
                let image = format::decode_page(PageKey { storage, page }, stored)?;
                if compact_kind(image) == PageKind::Overflow && compact_lsn(image)? < before {
                    found.push(number);
                }
            }
            from = number.saturating_add(1);
        }
        entries.status().map_err(|error| failure::using("look for large values", error))?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{PAGE_SIZE, PageMut};
    use crate::store::StoreOptions;

    #[test]
    fn values_are_found_by_bits_and_age() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), &StoreOptions::default()).unwrap();
        let mut bytes = vec![0; PAGE_SIZE];
        let mut put = |value, chunk, lsn, is_free: bool| {
            let mut page = PageMut::new(&mut bytes);
            match is_free {
                true => page.init(PageKind::Unused, 0),
                false => page.init_overflow(0, 1, 9, b"some part"),
            }
            page.set_lsn(Lsn(lsn));
            let mut image = Vec::new();
            page.as_page().to_compact(&mut image);
            let mut batch = store.batch();
            batch.put_page(PageKey { storage: StorageId(4), page: PageNumber::overflow(value, chunk) }, &image);
            batch.write().unwrap();
        };
        for value in [1, 2, 3, 9, 10, 30, 31] {
            put(value, 0, 100, false);
            put(value, 1, 100, false);
        }
        put(2, 0, 200, false);
        put(9, 0, 50, true);
        // The rest of a value that was being freed.
        put(20, 1, 10, false);
        let look = |first, named: &[u8]| store.unnamed_values(StorageId(4), first, named, Lsn(150)).unwrap();
        assert_eq!(look(1, &[0; 4]), [1, 3, 10, 30, 31]);
        assert_eq!(look(1, &[0b101, 0, 0, 0]), [10, 30, 31]);
        assert_eq!(look(3, &[0, 0]), [3, 10]);
        assert!(look(3, &[0xff; 9]).is_empty());
        for other in [3, 5] {
            assert!(store.unnamed_values(StorageId(other), 1, &[0; 8], Lsn(150)).unwrap().is_empty());
        }
    }
}
