//! What the test programs share: a private PostgreSQL cluster, its processes, and small helpers for options, digests and measurement.

pub mod args;
pub mod cluster;
pub mod failure;
pub mod faults;
pub mod ledger;
pub mod measure;
pub mod process;
pub mod scans;
pub mod sql;

pub use cluster::{Cluster, ClusterOptions, Installation, StopMode};
