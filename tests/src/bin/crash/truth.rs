//! What the clients of the crash test note in their ledgers.

use std::collections::{BTreeMap, BTreeSet};

/// Which table a row lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Entry,
    Transfer,
    Hit,
    /// A row of one of the client's users, see [`note_key`].
    Note,
    /// Not a row: a whole table that the maintenance client made.
    Churn,
}

pub type Key = (Table, i64);

/// What identifies a row's content; the texts are represented by digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub version: i32,
    pub payload: i64,
    pub remark: i64,
}

pub type Changes = kalamdb_tests::ledger::Changes<Key, Row>;
pub type Ledger = kalamdb_tests::ledger::Ledger<Key, Row>;
pub type PreparedTransaction = kalamdb_tests::ledger::PreparedTransaction<Key, Row>;

/// So many users write through one client.
pub const USERS_PER_CLIENT: i64 = 3;
/// Users have the same ids.
pub const NOTE_IDS: i64 = 60;

/// The key of a user's row in the ledger of the client.
pub fn note_key(user: i64, id: i64) -> Key {
    (Table::Note, user * 1_000 + id)
}

/// The ids of the rows that a user has.
pub fn notes(user: i64, current: &BTreeMap<Key, Row>, changes: &Changes) -> BTreeSet<i64> {
    let of_user = note_key(user, 0)..note_key(user + 1, 0);
    let mut ids: BTreeSet<i64> = current.range(of_user.clone()).map(|(key, _)| key.1 % 1_000).collect();
    for (key, row) in changes.0.range(of_user) {
        match row {
            Some(_) => ids.insert(key.1 % 1_000),
            None => ids.remove(&(key.1 % 1_000)),
        };
    }
    ids
}

/// The entries that a client has.
pub fn entries(ledger: &Ledger) -> usize {
    ledger.current().range((Table::Entry, i64::MIN)..=(Table::Entry, i64::MAX)).count()
}
