//! The store's keys and values: what stands in RocksDB, byte by byte.
//!
//! Keys are big endian, so that they sort as numbers; values are little endian and begin with a format version of their own.

use std::path::Path;

use super::FORMAT_VERSION;
use crate::cache::{RelationFile, StorageInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Lsn, PageKey, PageNumber, StorageId};

pub(super) const KEY_FORMAT: &[u8] = b"format";
pub(super) const KEY_MARK: &[u8] = b"mark";
pub(super) const KEY_NEXT_STORAGE: &[u8] = b"next_storage_id";
pub(super) const KEY_STORAGE: &[u8] = b"storage/";
pub(super) const KEY_QUARANTINE: &[u8] = b"quarantine/";
pub(super) const KEY_SEGMENT: &[u8] = b"segment/";
pub(super) const KEY_GARBAGE: &[u8] = b"garbage/";
pub(super) const KEY_LOCATION: &[u8] = b"location/";
pub(super) const KEY_NEXT_SEGMENT: &[u8] = b"next_segment";
pub(super) const KEY_FLUSH: &[u8] = b"flush";

pub(super) const PAGE_KEY_LENGTH: usize = 16;

const PAGE_VALUE_VERSION: u8 = 1;
const STORAGE_VALUE_VERSION: u8 = 1;
const MARK_VALUE_VERSION: u8 = 1;

/// How far the store is complete: every change that the log holds below `lsn` is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurableMark {
    /// Replay begins here.
    pub lsn: Lsn,
    /// The cluster whose log `lsn` is a position of.
    pub system_identifier: u64,
    /// The timeline of that log.
    pub timeline: u32,
}

impl DurableMark {
    pub(super) fn encode(&self) -> [u8; 21] {
        let mut value = [MARK_VALUE_VERSION; 21];
        value[1..9].copy_from_slice(&self.lsn.0.to_le_bytes());
        value[9..17].copy_from_slice(&self.system_identifier.to_le_bytes());
        value[17..].copy_from_slice(&self.timeline.to_le_bytes());
        value
    }

    pub(super) fn decode(value: &[u8]) -> Result<DurableMark> {
        let mut fields = Fields::of("durable mark", value, MARK_VALUE_VERSION, 20)?;
        Ok(DurableMark { lsn: Lsn(fields.u64()), system_identifier: fields.u64(), timeline: fields.u32() })
    }
}

const STORAGE_FIELDS: usize = 36;

/// What the store keeps of a storage; the key has its id.
pub(super) fn encode_storage(storage: &StorageInfo) -> [u8; 1 + STORAGE_FIELDS] {
    let mut value = [STORAGE_VALUE_VERSION; 1 + STORAGE_FIELDS];
    let file = storage.file;
    let flags = u32::from(storage.unlogged);
    let words = [file.tablespace, file.database, file.relnumber, file.owner, flags, storage.blocks, storage.next_value];
    for (slot, word) in value[1..].chunks_exact_mut(4).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    value[29..].copy_from_slice(&storage.creator_xid.to_le_bytes());
    value
}

pub(super) fn decode_storage(id: StorageId, value: &[u8]) -> Result<StorageInfo> {
    let mut fields = Fields::of("storage descriptor", value, STORAGE_VALUE_VERSION, STORAGE_FIELDS)?;
    let [tablespace, database, relnumber, owner, flags, blocks, next_value] = std::array::from_fn(|_| fields.u32());
    let file = RelationFile { tablespace, database, relnumber, owner };
    if flags > 1 {
        return Err(Error::corrupt(format!("the store's descriptor of storage {} has unknown flags {flags:#x}", id.0)));
    }
    Ok(StorageInfo { id, file, unlogged: flags == 1, creator_xid: fields.u64(), blocks, next_value })
}

pub(super) fn storage_key(storage: StorageId) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(KEY_STORAGE);
    key[8..].copy_from_slice(&storage.0.to_be_bytes());
    key
}

pub(super) fn decode_storage_key(key: &[u8]) -> Option<StorageId> {
    let id = key.strip_prefix(KEY_STORAGE)?;
    Some(StorageId(u64::from_be_bytes(id.try_into().ok()?)))
}

pub(super) fn decode_storage_id(value: &[u8]) -> Result<StorageId> {
    match value.try_into() {
        Ok(bytes) => Ok(StorageId(u64::from_le_bytes(bytes))),
        Err(_) => Err(wrong_length("next storage id", value.len())),
    }
}

pub(super) fn decode_flush_number(value: &[u8]) -> Result<u64> {
    value.try_into().map(u64::from_le_bytes).map_err(|_| wrong_length("number of the last flush", value.len()))
}

pub(super) fn page_key(key: PageKey) -> [u8; PAGE_KEY_LENGTH] {
    let mut bytes = [0; PAGE_KEY_LENGTH];
    bytes[..8].copy_from_slice(&key.storage.0.to_be_bytes());
    bytes[8..].copy_from_slice(&key.page.0.to_be_bytes());
    bytes
}

/// The entry that says a page is lost.
pub(super) fn quarantine_key(page: PageKey) -> Vec<u8> {
    [KEY_QUARANTINE, &page_key(page)].concat()
}

pub(super) fn decode_quarantine_key(key: &[u8]) -> Option<PageKey> {
    let (storage, page) = key.strip_prefix(KEY_QUARANTINE)?.split_first_chunk::<8>()?;
    let page = u64::from_be_bytes(page.try_into().ok()?);
    Some(PageKey { storage: StorageId(u64::from_be_bytes(*storage)), page: PageNumber(page) })
}

pub(super) fn segment_key(storage: StorageId, segment: u64) -> Vec<u8> {
    [KEY_SEGMENT, &storage.0.to_be_bytes(), &segment.to_be_bytes()].concat()
}

pub(super) fn garbage_key(segment: u64) -> Vec<u8> {
    [KEY_GARBAGE, &segment.to_be_bytes()].concat()
}

pub(super) fn location_key(database: u32, name: &str) -> Vec<u8> {
    [KEY_LOCATION, &database.to_be_bytes(), name.as_bytes()].concat()
}

/// The keys of all pages of a storage: from the first one to before the second one.
pub(super) fn storage_range(storage: StorageId) -> ([u8; 8], [u8; 8]) {
    (storage.0.to_be_bytes(), (storage.0 + 1).to_be_bytes())
}

pub(super) fn encode_page(image: &[u8], value: &mut Vec<u8>) {
    value.clear();
    value.push(PAGE_VALUE_VERSION);
    value.extend_from_slice(image);
}

pub(super) fn decode_page(key: PageKey, value: &[u8]) -> Result<&[u8]> {
    match value.split_first() {
        Some((&PAGE_VALUE_VERSION, image)) => Ok(image),
        Some((version, _)) => {
            let detail = format!("The stored page has format {version}; this version reads format {PAGE_VALUE_VERSION}.");
            Err(unreadable_page(key).with_detail(detail))
        }
        None => Err(unreadable_page(key).with_detail("The stored page is empty.")),
    }
}

/// The error of a page that cannot be read, to be completed with its cause.
pub(super) fn unreadable_page(key: PageKey) -> Error {
    let page = match (key.page.as_block(), key.page.as_overflow()) {
        (Some(block), _) => format!("block {block}"),
        (None, Some((value, chunk))) => format!("chunk {chunk} of overflow value {value}"),
        (None, None) => format!("page {:#x}", key.page.0),
    };
    Error::corrupt(format!("could not read {page} of storage {}", key.storage.0))
}

pub(super) fn check_version(directory: &Path, value: &[u8]) -> Result<()> {
    let version = match value.try_into() {
        Ok(bytes) => u32::from_le_bytes(bytes),
        Err(_) => return Err(wrong_length("format version", value.len())),
    };
    if version == FORMAT_VERSION {
        return Ok(());
    }
    Err(newer_format(directory)
        .with_detail(format!("It has format {version}; this version of kalamdb reads format {FORMAT_VERSION}.")))
}

/// The error of a store that this version cannot read, to be completed with the particulars.
pub(super) fn newer_format(directory: &Path) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the store in \"{}\" was written by another version of kalamdb", directory.display()),
    )
    .with_hint("Install the version of kalamdb that wrote it, or a later one.")
}

fn wrong_length(what: &str, length: usize) -> Error {
    Error::corrupt(format!("the store's {what} has a wrong length of {length} bytes"))
}

/// Reads the fixed fields of a value whose version and length were checked.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn of(what: &str, value: &'a [u8], version: u8, length: usize) -> Result<Fields<'a>> {
        match value.split_first() {
            Some((found, fields)) if *found == version && fields.len() == length => Ok(Fields(fields)),
            Some((found, _)) if *found != version => {
                Err(Error::corrupt(format!("the store's {what} has unknown format {found}")))
            }
            _ => Err(wrong_length(what, value.len())),
        }
    }

    fn u32(&mut self) -> u32 {
        let (bytes, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        u32::from_le_bytes(*bytes)
    }

    fn u64(&mut self) -> u64 {
        let (bytes, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        u64::from_le_bytes(*bytes)
    }
}
