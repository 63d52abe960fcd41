//! The loader threads: fill frames that backends asked for from the store. Cold pages they leave to others.

use std::time::Duration;

use super::cold::build;
use super::shared::Shared;
use super::stop_point;
use crate::cache::{Load, LoadFailure};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::PageKey;

/// Pages read together: neighbours of a scan share blocks and reads.
const BATCH: usize = 16;

pub(super) fn run(shared: &Shared) {
    let mut loads: Vec<Load> = Vec::with_capacity(BATCH);
    let mut keys: Vec<PageKey> = Vec::with_capacity(BATCH);
    while !shared.is_stopping() {
        let Some(first) = shared.cache.next_load(Duration::from_millis(100)) else { continue };
        loads.push(first);
        while loads.len() < BATCH
            && let Some(load) = shared.cache.try_next_load()
        {
            loads.push(load);
        }
        loads.sort_unstable_by_key(Load::key);
        keys.clear();
        keys.extend(loads.iter().map(Load::key));
        let mut waiting = loads.drain(..);
        shared.store.read_pages(&keys, |key, image| {
            let load = waiting.next().expect("the store answers each key once and in order");
            debug_assert_eq!(load.key(), key);
            finish(shared, load, image);
        });
        drop(waiting);
    }
}

fn finish(shared: &Shared, load: Load, image: Result<Option<&[u8]>>) {
    stop_point::reached("page loaded");
    let key = load.key();
    if shared.quarantine.contains(key) {
        load.fail(LoadFailure::Corrupt);
        return;
    }
    if matches!(image, Ok(None))
        && let Some(location) = build::cold_location(shared, key)
    {
        shared.cold.backlog.hand_over(load, location);
        return;
    }
    match image {
        Ok(image) => {
            if let Err(error) = load.finish(image) {
                report(shared, key, &error);
            }
        }
        Err(error) => {
            load.fail(match error.kind() {
                ErrorKind::Corrupt => LoadFailure::Corrupt,
                ErrorKind::Io | ErrorKind::StorageMissing => LoadFailure::Io,
                _ => LoadFailure::Internal,
            });
            report(shared, key, &error);
        }
    }
}

fn report(shared: &Shared, key: PageKey, error: &Error) {
    shared.say(format!("page {:#x} of storage {}: {error}", key.page.0, key.storage.0));
}
