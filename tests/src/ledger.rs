//! What one client knows must be in the database: the truth outside the server that a crash is judged against.
//!
//! A client runs one transaction at a time, so after a crash at most the last one is in doubt. With `synchronous_commit = off` a whole tail
//! of acknowledged transactions may be lost, but only from the end: the database must equal the state after some prefix of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use anyhow::{Result, bail};

/// The net effect of a transaction: `None` is a row that it removes. `K` identifies a row, `R` its content.
#[derive(Debug, Clone)]
pub struct Changes<K, R>(pub BTreeMap<K, Option<R>>);

impl<K, R> Default for Changes<K, R> {
    fn default() -> Self {
        Changes(BTreeMap::new())
    }
}

impl<K: Ord, R> Changes<K, R> {
    pub fn put(&mut self, key: K, row: R) {
        self.0.insert(key, Some(row));
    }

    pub fn remove(&mut self, key: K) {
        self.0.insert(key, None);
    }
}

#[derive(Debug, Clone)]
struct Pending<K, R> {
    changes: Changes<K, R>,
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
pub struct PreparedTransaction<K, R> {
    pub name: String,
    pub changes: Changes<K, R>,
    pub state: Resolution,
}

#[derive(Debug, Clone)]
pub struct Ledger<K, R> {
    /// Certainly durable.
    base: BTreeMap<K, R>,
    /// `base` with everything acknowledged since: what the client's next transaction sees.
    current: BTreeMap<K, R>,
    pending: Vec<Pending<K, R>>,
    pub prepared: Option<PreparedTransaction<K, R>>,
}

impl<K, R> Default for Ledger<K, R> {
    fn default() -> Self {
        Ledger { base: BTreeMap::new(), current: BTreeMap::new(), pending: Vec::new(), prepared: None }
    }
}

/// How the open question of a crash was answered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    pub in_doubt_kept: usize,
    pub in_doubt_lost: usize,
    /// Acknowledged with `synchronous_commit = off`, and lost.
    pub asynchronous_lost: usize,
}

fn apply<K: Ord + Copy, R: Copy>(rows: &mut BTreeMap<K, R>, changes: &Changes<K, R>) {
    for (key, row) in &changes.0 {
        match row {
            Some(row) => rows.insert(*key, *row),
            None => rows.remove(key),
        };
    }
}

impl<K: Ord + Copy + Debug, R: Copy + PartialEq + Debug> Ledger<K, R> {
    pub fn current(&self) -> &BTreeMap<K, R> {
        &self.current
    }

    /// The commit is about to be sent: from here on it may happen.
    pub fn attempt(&mut self, changes: Changes<K, R>) {
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
    pub fn adopt(&mut self, changes: &Changes<K, R>) {
        apply(&mut self.current, changes);
        apply(&mut self.base, changes);
    }

    /// Forgets rows that were removed on purpose.
    pub fn forget(&mut self, is_gone: impl Fn(&K) -> bool) {
        self.base.retain(|key, _| !is_gone(key));
        self.current.retain(|key, _| !is_gone(key));
    }

    /// Finds the prefix of the pending transactions that explains `actual`, and takes it as the new truth.
    pub fn settle(&mut self, actual: &BTreeMap<K, R>, acknowledged_must_be_there: bool) -> Result<Settled> {
        let acknowledged = self.pending.iter().filter(|pending| pending.acknowledged).count();
        let mut expected = self.base.clone();
        let keys: BTreeSet<K> = expected.keys().chain(actual.keys()).copied().collect();
        let mut differing: BTreeSet<K> = keys.into_iter().filter(|key| expected.get(key) != actual.get(key)).collect();
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

    fn explain(&self, actual: &BTreeMap<K, R>, prefix: usize, differing: &BTreeSet<K>) -> String {
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

    fn changes(rows: &[(i64, Option<i32>)]) -> Changes<i64, i32> {
        Changes(rows.iter().map(|(id, version)| (*id, *version)).collect())
    }

    fn state(rows: &[(i64, i32)]) -> BTreeMap<i64, i32> {
        rows.iter().map(|(id, version)| (*id, *version)).collect()
    }

    fn ledger() -> Ledger<i64, i32> {
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
