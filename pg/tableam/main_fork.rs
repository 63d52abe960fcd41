//! Keeps the files of a table's main fork as long as the table: one of Postgres' blocks for each of ours, all of them holes.
//!
//! The files hold nothing. Their length is what pg_relation_size() and psql's \dt+ show. It is only a hint: it is not logged, no
//! error comes of it, and whoever extends, empties or vacuums the table sets it again.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use kalamdb_engine::cache::StorageDescriptor;
use pgrx::pg_sys;

use crate::ffi::compat;

unsafe extern "C" {
    /// The permissions of new files in the data directory.
    static pg_file_create_mode: std::ffi::c_int;
}

/// Bytes of one of Postgres' blocks.
const BLOCK: u64 = pg_sys::BLCKSZ as u64;

/// Blocks in one file; Postgres puts the following ones into another file.
const FILE_BLOCKS: u32 = pg_sys::RELSEG_SIZE;

/// Up to here every new block makes the file longer, further on every so many.
const EXACT_UP_TO: u32 = 128;

/// How many blocks a long file may lack.
const STEP: u32 = 8;

/// Follows the table's growth to `blocks`; no latch is held.
pub fn grown(descriptor: &StorageDescriptor, blocks: u32) {
    if blocks > EXACT_UP_TO && !blocks.is_multiple_of(STEP) {
        return;
    }
    let path = compat::main_fork_of(&descriptor.file());
    let last = file_of_block(blocks - 1);
    // The files before the last one are full, unless this one is just begun.
    if blocks <= last * FILE_BLOCKS + STEP || !set_length(&path, last, blocks, false) {
        fill(&path, blocks);
    }
    let now = descriptor.blocks.load(Ordering::Acquire);
    if now > blocks && now <= EXACT_UP_TO {
        // Another backend may have made the file longer meanwhile, and this one shorter again.
        follow(descriptor);
    }
}

/// Makes the files as long as the table, others may extend it meanwhile.
pub fn follow(descriptor: &StorageDescriptor) {
    let path = compat::main_fork_of(&descriptor.file());
    loop {
        let blocks = descriptor.blocks.load(Ordering::Acquire);
        fill(&path, marked(descriptor, blocks));
        if blocks == descriptor.blocks.load(Ordering::Acquire) {
            return;
        }
    }
}

/// Blocks that the files have.
pub fn blocks(descriptor: &StorageDescriptor) -> u32 {
    let path = compat::main_fork_of(&descriptor.file());
    let length_of = |file| std::fs::metadata(file_path(&path, file)).map(|metadata| metadata.len()).unwrap_or(0);
    let lengths = (0..).map(length_of).take_while(|length| *length > 0);
    u32::try_from(lengths.sum::<u64>() / BLOCK).unwrap_or(u32::MAX)
}

/// Makes the files as long as the table, which became shorter; nobody else uses it.
pub fn shortened(descriptor: &StorageDescriptor) {
    let blocks = marked(descriptor, descriptor.blocks.load(Ordering::Acquire));
    let path = compat::main_fork_of(&descriptor.file());
    fill(&path, blocks);
    // Empty files stay, as they do when Postgres truncates a table.
    let mut beyond = file_of_block(blocks.saturating_sub(1)) + 1;
    while set_length(&path, beyond, 0, false) {
        beyond += 1;
    }
}

/// Blocks that the files are to have: that an unlogged table's have one says that its rows are valid.
fn marked(descriptor: &StorageDescriptor, blocks: u32) -> u32 {
    if descriptor.is_unlogged() { blocks.max(1) } else { blocks }
}

/// Gives all files of a table with so many blocks their length.
fn fill(path: &Path, blocks: u32) {
    for file in 0..=file_of_block(blocks.saturating_sub(1)) {
        // The first file is Postgres' own: where it is missing, the table is gone.
        if !set_length(path, file, blocks, file > 0) {
            return;
        }
    }
}

fn file_of_block(block: u32) -> u32 {
    block / FILE_BLOCKS
}

/// Sets the length of one file of a table with so many blocks; false if it cannot be opened.
fn set_length(path: &Path, file: u32, blocks: u32, create: bool) -> bool {
    let begin = u64::from(file) * u64::from(FILE_BLOCKS);
    let length = u64::from(blocks).saturating_sub(begin).min(u64::from(FILE_BLOCKS)) * BLOCK;
    // SAFETY: a plain global, set when the process starts.
    let mode = unsafe { pg_file_create_mode } as u32;
    let opened = OpenOptions::new().write(true).create(create).truncate(false).mode(mode).open(file_path(path, file));
    opened.map(|opened| opened.set_len(length)).is_ok()
}

fn file_path(path: &Path, file: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if file > 0 {
        name.push(format!(".{file}"));
    }
    PathBuf::from(name)
}
