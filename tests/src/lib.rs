//! What the test programs share: a private PostgreSQL cluster, its processes, and small helpers for options, digests and measurement.

pub mod args;
pub mod cluster;
pub mod process;
pub mod sql;

pub use cluster::{Cluster, ClusterOptions, Installation, StopMode};
