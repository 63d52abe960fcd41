//! Maps of what a process remembers for itself, asked by every statement: a quicker hash function than the standard library's.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

/// A map that a process keeps for itself.
pub type Map<K, V> = HashMap<K, V, RandomState>;

/// A set that a process keeps for itself.
pub type Set<K> = HashSet<K, RandomState>;
