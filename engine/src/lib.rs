//! The storage engine of KalamDB: pages, cache, log records, visibility and the RocksDB store.
//!
//! The crate knows nothing of Postgres' C interface. Half of it runs in every process (pages, cache, visibility, record codec:
//! no threads, no RocksDB), half in the one worker that owns the store.

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "the shared memory is reached through raw pointers, here and nowhere else")]
pub mod cache;
pub mod cold;
pub mod engine;
pub mod error;
pub mod export;
pub mod ids;
pub mod location;
pub mod log;
pub mod page;
pub mod segment;
pub mod store;
pub mod visibility;

pub use error::{Error, ErrorKind, Result, sentence};
