//! Asks the worker about cold storage, from a backend or a job, with waits that serve interrupts.

use kalamdb_engine::cache::{Cache, Wait};
use kalamdb_engine::cold::Client;

use super::directory::store_directory;
use crate::ffi::interrupts::BackendWait;

/// A client of the engine for one statement; `wait` is usually a [`BackendWait`].
pub fn client<'w>(cache: &Cache, wait: &'w dyn Wait) -> Client<'w> {
    Client::new(cache, store_directory(), wait)
}

/// Runs `ask` with a client that waits as a backend does.
pub fn with_client<R>(cache: &Cache, ask: impl FnOnce(&Client<'_>) -> R) -> R {
    let wait = BackendWait::new(cache);
    ask(&client(cache, &wait))
}
