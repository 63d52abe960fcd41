//! The engine worker: the one background process that owns the store.
//!
//! Its main thread is the only one that calls Postgres. It opens the engine, replays the log, then publishes positions of the
//! log, starts checkpoints and moves the replication slot, until the server stops; it outlives all processes that use the
//! cache. Everything else is done by the engine's threads.

mod directory;
mod lifecycle;
pub mod requests;
mod serve;
pub mod signals;
mod slot;
pub mod start;
mod sweeper;
mod unlogged;

use pgrx::pg_sys;
use pgrx::prelude::*;

pub use directory::{data_directory, segments_directory, temporary_directory};
pub use signals::with_all_blocked;

/// The process' entry, called by Postgres by name.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn kalamdb_worker_main(_argument: pg_sys::Datum) {
    signals::install();
    // Without a database: no database is kept from being dropped.
    // SAFETY: called once at the start of a background worker that was registered with a database connection.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) };
    let code = lifecycle::run();
    // SAFETY: ends the process the way Postgres wants it.
    unsafe { pg_sys::proc_exit(code) };
}
