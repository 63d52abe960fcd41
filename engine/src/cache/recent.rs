//! What some process of the server has met of late: a set of fixed size that forgets what it has no room for.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Places of the set: 2 MB.
const PLACES: usize = 1 << 18;
/// Places in which a member may be: those of one line of the processor's caches.
const WAYS: usize = 8;

/// The set. A member may be missing, and is met once more then; what was never inserted is found with a chance of one in 2^60.
#[repr(C, align(64))]
pub struct Recent {
    /// Makes hashes such that nobody can choose two members with the same one.
    seed: AtomicU64,
    places: [AtomicU64; PLACES],
}

impl Recent {
    /// Empties the set: only while nobody uses it. The places are zero already.
    pub(super) fn format(&self) {
        self.seed.store(RandomState::new().hash_one(PLACES), Ordering::Relaxed);
    }

    /// The hash of a member, which is never 0, and its places.
    fn places(&self, member: impl Hash) -> (u64, &[AtomicU64]) {
        let mut hasher = DefaultHasher::new();
        (self.seed.load(Ordering::Relaxed), member).hash(&mut hasher);
        let hash = hasher.finish() | 1;
        let first = (hash >> 8) as usize % (PLACES / WAYS) * WAYS;
        (hash, &self.places[first..first + WAYS])
    }

    /// Whether it was inserted, and is not forgotten.
    pub fn contains(&self, member: impl Hash) -> bool {
        let (hash, places) = self.places(member);
        places.iter().any(|place| place.load(Ordering::Relaxed) == hash)
    }

    /// Inserts a member, which may make another one forgotten.
    pub fn insert(&self, member: impl Hash) {
        let (hash, places) = self.places(member);
        let free = places.iter().find(|place| place.load(Ordering::Relaxed) == 0);
        free.unwrap_or(&places[(hash >> 1) as usize % WAYS]).store(hash, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Box<Recent> {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let places: Box<[AtomicU64; PLACES]> = places.into_boxed_slice().try_into().ok().unwrap();
        let set = Box::new(Recent { seed: AtomicU64::new(0), places: *places });
        set.format();
        set
    }

    #[test]
    fn members_are_found_until_there_are_too_many() {
        let set = empty();
        (0..100_000).for_each(|member| set.insert(("user", member)));
        let found = (0..100_000).filter(|member| set.contains(("user", *member))).count();
        assert!(found > 98_000, "{found}");
        assert!(!(0..100_000).any(|member| set.contains(("other", member))));
        (100_000..1_000_000).for_each(|member| set.insert(("user", member)));
        assert!(set.contains(("user", 999_999)));
        assert!((0..100_000).filter(|member| set.contains(("user", *member))).count() < 50_000);
    }

    #[test]
    fn hashes_of_two_servers_differ() {
        let (one, other) = (empty(), empty());
        assert_ne!(one.places("x").0, other.places("x").0);
    }
}
