//! Keeps the pins that outlive one call, tagged with the resource owner that answers for them.
//!
//! Scans and slots hold pins between calls. Postgres releases them through the resource owner's callback, also when a
//! subtransaction or a portal ends by an error and nobody clears its slots.

use std::cell::RefCell;

use kalamdb_engine::cache::{Cache, Pin};
use pgrx::pg_sys;

use crate::shmem::engine_cache;

/// The frame number of no pin.
pub const NO_FRAME: u32 = u32::MAX;

struct Held {
    frame: u32,
    owner: pg_sys::ResourceOwner,
}

thread_local! {
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
}

fn current_owner() -> pg_sys::ResourceOwner {
    // SAFETY: a plain global of the backend's only thread.
    unsafe { pg_sys::CurrentResourceOwner }
}

/// Hands a pin to the current resource owner; returns its frame number.
#[inline]
pub fn keep(pin: Pin) -> u32 {
    let frame = pin.into_frame();
    HELD.with_borrow_mut(|held| held.push(Held { frame, owner: current_owner() }));
    frame
}

/// Takes a second pin on a frame that is pinned already.
#[inline]
pub fn keep_again(cache: &Cache, frame: u32) {
    let pin = cache.adopt_pin(frame);
    let second = pin.duplicate();
    pin.into_frame();
    keep(second);
}

/// Gives back a pin that [`keep`] took; does nothing when its resource owner has released it already.
#[inline]
pub fn give_back(cache: &Cache, frame: u32) {
    let owner = current_owner();
    let found = HELD.with_borrow_mut(|held| {
        let mine = held.iter().rposition(|entry| entry.frame == frame && entry.owner == owner);
        let place = mine.or_else(|| held.iter().rposition(|entry| entry.frame == frame));
        place.map(|place| held.swap_remove(place))
    });
    if found.is_some() {
        drop(cache.adopt_pin(frame));
    }
}

/// Releases what the ending resource owner still holds.
unsafe extern "C-unwind" fn release_owner(
    phase: pg_sys::ResourceReleasePhase::Type,
    _is_commit: bool,
    _is_top_level: bool,
    _arg: *mut std::ffi::c_void,
) {
    if phase != pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_BEFORE_LOCKS {
        return;
    }
    let owner = current_owner();
    HELD.with_borrow_mut(|held| {
        if held.is_empty() {
            return;
        }
        let cache = engine_cache();
        held.retain(|entry| {
            if entry.owner != owner {
                return true;
            }
            drop(cache.adopt_pin(entry.frame));
            false
        });
    });
}

/// Registers the release of pins with Postgres' resource owners; once per process.
pub fn init() {
    // SAFETY: the callback is a plain function that stays loaded; the argument is not used.
    unsafe { pg_sys::RegisterResourceReleaseCallback(Some(release_owner), std::ptr::null_mut()) };
}
