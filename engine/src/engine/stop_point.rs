//! Named places at which a test stops or kills the process.

use std::sync::OnceLock;

/// Called with the name of every place that is reached; unset, a place costs one load.
pub static HOOK: OnceLock<fn(&'static str)> = OnceLock::new();

/// The names of all places, in the order in which a change passes them on its way to the disk and into a segment.
pub const NAMES: [&str; 18] = [
    "storages restored",
    "page loaded",
    "record replayed",
    "pages copied",
    "pages written",
    "checkpoint begun",
    "mark written",
    "checkpoint flushed",
    "checkpoint published",
    "storage purged",
    "stubs of values written",
    "segment prepared",
    "blocks cooled",
    "segment committed",
    "cold page built",
    "segment retired",
    "segment files deleted",
    "files of the store rewritten",
];

/// A place has been reached.
#[inline]
pub(crate) fn reached(name: &'static str) {
    if let Some(hook) = HOOK.get() {
        debug_assert!(NAMES.contains(&name));
        hook(name);
    }
}
