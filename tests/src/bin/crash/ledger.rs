//! What one client knows must be in the database: the truth outside the server that a crash is judged against.
//!
//! A client runs one transaction at a time, so after a crash at most the last one is in doubt. With `synchronous_commit = off` a whole tail
//! of acknowledged transactions may be lost, but only from the end: the database must equal the state after some prefix of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

/// Which table a row lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Entry,
    Transfer,
    Hit,
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

/// The net effect of a transaction: `None` is a row that it removes.
#[derive(Debug, Clone, Default)]
pub struct Changes(pub BTreeMap<Key, Option<Row>>);

impl Changes {
    pub fn put(&mut self, key: Key, row: Row) {
        self.0.insert(key, Some(row));
    }

    pub fn remove(&mut self, key: Key) {
        self.0.insert(key, None);
    }
}

#[derive(Debug, Clone)]
struct Pending {
    changes: Changes,
    acknowledged: bool,
}

/// How far a client got with deciding a prepared transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// PREPARE TRANSACTION was sent, no answer came.
    Preparing,
    Prepared,
    Committing,
    RollingBack,
}

#[derive(Debug, Clone)]
pub struct PreparedTransaction {
    pub name: String,
    pub changes: Changes,
    pub state: Resolution,
}

#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Certainly durable.
    base: BTreeMap<Key, Row>,
    /// `base` with everything acknowledged since: what the client's next transaction sees.
    current: BTreeMap<Key, Row>,
    pending: Vec<Pending>,
    pub prepared: Option<PreparedTransaction>,
}

/// How the open question of a crash was answered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    pub in_doubt_kept: usize,
    pub in_doubt_lost: usize,
    /// Acknowledged with `synchronous_commit = off`, and lost.
    pub asynchronous_lost: usize,
}

fn apply(rows: &mut BTreeMap<Key, Row>, changes: &Changes) {
    for (key, row) in &changes.0 {
        match row {
            Some(row) => rows.insert(*key, *row),
            None => rows.remove(key),
        };
    }
}

impl Ledger {
    pub fn current(&self) -> &BTreeMap<Key, Row> {
        &self.current
    }

    pub fn entries(&self) -> usize {
        self.current.range((Table::Entry, i64::MIN)..=(Table::Entry, i64::MAX)).count()
    }

    /// The commit is about to be sent: from here on it may happen.
    pub fn attempt(&mut self, changes: Changes) {
        self.pending.push(Pending { changes, acknowledged: false });
    }

    /// The server said that the attempted commit happened. A durable commit makes all earlier ones durable, for the log is flushed in order.
    pub fn acknowledge(&mut self, durable: bool) {
        let last = self.pending.last_mut().expect("a commit is acknowledged after it was attempted");
        last.acknowledged = true;
        apply(&mut self.current, &last.changes);
        if durable {
            for pending in self.pending.drain(..) {
                apply(&mut self.base, &pending.changes);
            }
        }
    }

    /// The server said that the attempted commit did not happen.
    pub fn withdraw(&mut self) {
        self.pending.pop();
    }

    /// Something durable happened outside of the client's own attempts (a prepared transaction was committed).
    pub fn adopt(&mut self, changes: &Changes) {
        apply(&mut self.current, changes);
        apply(&mut self.base, changes);
    }

    /// Forgets all rows of a table that was emptied on purpose.
    pub fn forget(&mut self, table: Table) {
        self.base.retain(|key, _| key.0 != table);
        self.current.retain(|key, _| key.0 != table);
    }

    /// Finds the prefix of the pending transactions that explains `actual`, and takes it as the new truth.
    pub fn settle(&mut self, actual: &BTreeMap<Key, Row>, acknowledged_must_be_there: bool) -> Result<Settled> {
        let acknowledged = self.pending.iter().filter(|pending| pending.acknowledged).count();
        let mut expected = self.base.clone();
        let keys: BTreeSet<Key> = expected.keys().chain(actual.keys()).copied().collect();
        let mut differing: BTreeSet<Key> = keys.into_iter().filter(|key| expected.get(key) != actual.get(key)).collect();
        let mut fits = differing.is_empty().then_some(0);
        let mut nearest = (0, differing.clone());
        for (index, pending) in self.pending.iter().enumerate() {
            apply(&mut expected, &pending.changes);
            for key in pending.changes.0.keys() {
                if expected.get(key) == actual.get(key) {
                    differing.remove(key);
                } else {
                    differing.insert(*key);
                }
            }
            if differing.is_empty() {
                fits = Some(index + 1);
            }
            if differing.len() <= nearest.1.len() {
                nearest = (index + 1, differing.clone());
            }
        }
        let Some(kept) = fits else { bail!(self.explain(actual, nearest.0, &nearest.1)) };
        if acknowledged_must_be_there && kept < acknowledged {
            bail!(
                "only {kept} of {acknowledged} acknowledged transactions are there, although the server was stopped in good order"
            );
        }
        let settled = Settled {
            in_doubt_kept: kept.saturating_sub(acknowledged),
            in_doubt_lost: self.pending.len() - kept.max(acknowledged),
            asynchronous_lost: acknowledged.saturating_sub(kept),
        };
        self.base = actual.clone();
        self.current = actual.clone();
        self.pending.clear();
        Ok(settled)
    }

    fn explain(&self, actual: &BTreeMap<Key, Row>, prefix: usize, differing: &BTreeSet<Key>) -> String {
        let mut text = format!(
            "no prefix of the {} pending transactions explains the table ({} acknowledged durable rows, {} found); after {prefix} of them {} rows differ:",
            self.pending.len(),
            self.base.len(),
            actual.len(),
            differing.len()
        );
        for key in differing.iter().take(20) {
            text.push_str(&format!("\n    {key:?}: durable {:?}, found {:?}", self.base.get(key), actual.get(key)));
            for (index, pending) in self.pending.iter().enumerate() {
                if let Some(row) = pending.changes.0.get(key) {
                    let state = if pending.acknowledged { "acknowledged" } else { "in doubt" };
                    text.push_str(&format!("\n        pending {index} ({state}, {} rows): {row:?}", pending.changes.0.len()));
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(version: i32) -> Row {
        Row { version, payload: 0, remark: 0 }
    }

    fn changes(rows: &[(i64, Option<i32>)]) -> Changes {
        Changes(rows.iter().map(|(id, version)| ((Table::Entry, *id), version.map(row))).collect())
    }

    fn state(rows: &[(i64, i32)]) -> BTreeMap<Key, Row> {
        rows.iter().map(|(id, version)| ((Table::Entry, *id), row(*version))).collect()
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.attempt(changes(&[(1, Some(1)), (2, Some(1))]));
        ledger.acknowledge(true);
        ledger
    }

    #[test]
    fn a_lost_acknowledged_row_is_noticed() {
        assert!(ledger().settle(&state(&[(1, 1)]), false).is_err());
        assert!(ledger().settle(&state(&[(1, 1), (2, 2)]), false).is_err());
        assert!(ledger().settle(&state(&[(1, 1), (2, 1), (3, 1)]), false).is_err());
    }

    #[test]
    fn a_transaction_in_doubt_is_whole_or_absent() {
        let mut doubt = ledger();
        doubt.attempt(changes(&[(1, None), (3, Some(1))]));
        let kept = doubt.clone().settle(&state(&[(2, 1), (3, 1)]), true).unwrap();
        assert_eq!((kept.in_doubt_kept, kept.in_doubt_lost), (1, 0));
        let lost = doubt.clone().settle(&state(&[(1, 1), (2, 1)]), true).unwrap();
        assert_eq!((lost.in_doubt_kept, lost.in_doubt_lost), (0, 1));
        assert!(doubt.clone().settle(&state(&[(1, 1), (2, 1), (3, 1)]), true).is_err());
        assert!(doubt.settle(&state(&[(2, 1)]), true).is_err());
    }

    #[test]
    fn asynchronous_commits_are_lost_only_from_the_end() {
        let mut ledger = ledger();
        for id in 3..6 {
            ledger.attempt(changes(&[(id, Some(1))]));
            ledger.acknowledge(false);
        }
        assert_eq!(ledger.clone().settle(&state(&[(1, 1), (2, 1), (3, 1)]), false).unwrap().asynchronous_lost, 2);
        assert!(ledger.clone().settle(&state(&[(1, 1), (2, 1), (3, 1)]), true).is_err());
        assert!(ledger.clone().settle(&state(&[(1, 1), (2, 1), (4, 1)]), false).is_err());
        assert!(ledger.settle(&state(&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]), true).is_ok());
    }

    #[test]
    fn a_withdrawn_transaction_must_be_absent() {
        let mut ledger = ledger();
        ledger.attempt(changes(&[(3, Some(1))]));
        ledger.withdraw();
        assert!(ledger.settle(&state(&[(1, 1), (2, 1), (3, 1)]), false).is_err());
    }
}
