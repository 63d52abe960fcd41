//! Gives up the storages of temporary tables that are gone.
//!
//! Postgres does not tell which temporary files the end of a transaction unlinks. The worker's sweeper finds that they are missing,
//! but a session that makes and drops many tables would fill the engine's table of storages meanwhile; so the session looks
//! itself, now and then when it makes another one.

use std::cell::RefCell;

use kalamdb_engine::cache::{Cache, RelationFile};

use crate::ffi::compat;
use crate::shmem::engine_cache;

/// Temporary tables of a session that are never looked at.
const LEAST: usize = 16;

/// The temporary files this session has made, and at which number of them it looks which are gone.
struct Made {
    files: Vec<RelationFile>,
    look_at: usize,
}

thread_local! {
    static MADE: RefCell<Made> = const { RefCell::new(Made { files: Vec::new(), look_at: LEAST }) };
}

/// Notes files that are about to be made; nothing to do for those of all sessions.
pub fn note(file: RelationFile) {
    if file.owner == 0 {
        return;
    }
    MADE.with_borrow_mut(|made| {
        if made.files.len() >= made.look_at {
            let cache = engine_cache();
            made.files.retain(|file| !forget_if_gone(cache, file));
            // The cost of a look is spread over as many tables as were found alive.
            made.look_at = LEAST.max(2 * made.files.len());
        }
        made.files.push(file);
    });
}

fn forget_if_gone(cache: &Cache, file: &RelationFile) -> bool {
    let missing = matches!(std::fs::symlink_metadata(compat::main_fork_of(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound);
    if missing && let Some(place) = cache.storages().find(file) {
        cache.storages().remove(cache.storages().at(place).id());
    }
    missing
}
