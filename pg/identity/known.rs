//! What a process remembers of the users it has met, so that a statement asks one map for all that it needs of its user.

use std::borrow::Borrow;
use std::cell::{Cell, RefCell};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use smallvec::SmallVec;

use crate::hash::Set;

/// Users that a process remembers.
const USERS_MAX: usize = 10_000;

/// Storages in which the partition of a user is remembered.
const STORAGES_MAX: usize = 16;

/// What the audit log has been told of a user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// OID of the role that acts for the user.
    pub role: u32,
    /// OID of the audit log's table.
    pub log: u32,
    /// Hours since 1970.
    pub hour: i64,
}

/// A user, and what the process remembers of them.
#[derive(Debug)]
pub struct KnownUser {
    /// The bytes of a text, beside the rest: a name elsewhere is one more cache miss.
    name: SmallVec<[u8; 24]>,
    /// What this process has told the audit log last.
    pub told: Cell<Told>,
    /// The user's partitions by the ids of their storages: a user's number in a storage never changes.
    partitions: RefCell<SmallVec<[(u64, u32); 2]>>,
}

thread_local! {
    /// The user that was asked for last: many statements in a row are for the same one.
    static LAST: RefCell<Option<Rc<KnownUser>>> = const { RefCell::new(None) };
    static USERS: RefCell<Set<ByName>> = RefCell::default();
}

/// A user that is found by name.
#[derive(PartialEq, Eq)]
struct ByName(Rc<KnownUser>);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        self.0.name()
    }
}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl PartialEq for KnownUser {
    fn eq(&self, other: &KnownUser) -> bool {
        self.name == other.name
    }
}

impl Eq for KnownUser {}

impl KnownUser {
    /// The user with a name.
    #[inline]
    pub fn of(name: &str) -> Rc<KnownUser> {
        LAST.with_borrow_mut(|last| match last {
            Some(user) if user.name() == name => Rc::clone(user),
            _ => Rc::clone(last.insert(look_up(name))),
        })
    }

    /// The user's name.
    #[inline]
    pub fn name(&self) -> &str {
        // SAFETY: taken from a text by `look_up`, and not changed.
        unsafe { std::str::from_utf8_unchecked(&self.name) }
    }

    /// The user's partition in a storage, if it is remembered.
    #[inline]
    pub fn partition(&self, storage: u64) -> Option<u32> {
        self.partitions.borrow().iter().find(|(known, _)| *known == storage).map(|(_, partition)| *partition)
    }

    /// Remembers the user's partition in a storage.
    pub fn remember_partition(&self, storage: u64, partition: u32) {
        let mut partitions = self.partitions.borrow_mut();
        if partitions.len() >= STORAGES_MAX {
            partitions.remove(0);
        }
        partitions.push((storage, partition));
    }
}

fn look_up(name: &str) -> Rc<KnownUser> {
    USERS.with_borrow_mut(|users| {
        if let Some(ByName(user)) = users.get(name) {
            return Rc::clone(user);
        }
        if users.len() >= USERS_MAX {
            users.clear();
        }
        let user = Rc::new(KnownUser {
            name: SmallVec::from_slice(name.as_bytes()),
            told: Cell::default(),
            partitions: RefCell::default(),
        });
        users.insert(ByName(Rc::clone(&user)));
        user
    })
}
