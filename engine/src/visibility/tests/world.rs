//! A set of transactions and multixacts with known states, for the rules to ask.

use std::collections::HashMap;

use crate::error::Result;
use crate::ids::{Lsn, Xid};
use crate::visibility::{MultiMember, MultiMembers, TransactionStatus};

/// What became of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Current,
    Running,
    Committed,
    Aborted,
}

/// All that a process could ask Postgres.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub states: HashMap<Xid, State>,
    pub multis: HashMap<u32, Vec<MultiMember>>,
    pub may_hint: bool,
}

impl World {
    pub fn state(&self, xid: Xid) -> State {
        *self.states.get(&xid).unwrap_or_else(|| panic!("nobody may ask of xid {xid}"))
    }

    fn members(&self, multi: u32) -> &[MultiMember] {
        self.multis.get(&multi).unwrap_or_else(|| panic!("nobody may ask of multixact {multi}"))
    }
}

impl TransactionStatus for World {
    fn is_current(&self, xid: Xid) -> bool {
        self.state(xid) == State::Current
    }

    fn in_progress(&self, xid: Xid) -> bool {
        matches!(self.state(xid), State::Current | State::Running)
    }

    fn did_commit(&self, xid: Xid) -> bool {
        self.state(xid) == State::Committed
    }

    fn multi_update_xid(&self, multi: u32) -> Xid {
        self.members(multi).iter().find(|member| member.updates).map_or(0, |member| member.xid)
    }

    fn multi_running(&self, multi: u32, lock_only: bool) -> bool {
        assert!(!lock_only || self.multi_update_xid(multi) == 0, "multixact {multi} is not lock-only");
        self.members(multi).iter().any(|member| self.in_progress(member.xid))
    }

    fn may_hint_committed(&self, xid: Xid, _page_lsn: Lsn) -> bool {
        assert_eq!(self.state(xid), State::Committed, "a committed hint for xid {xid}");
        self.may_hint
    }
}

impl MultiMembers for World {
    fn multi_members(&self, multi: u32, _lock_only: bool) -> Result<Vec<MultiMember>> {
        Ok(self.members(multi).to_vec())
    }
}

/// A member that only locks.
pub fn locker(xid: Xid) -> MultiMember {
    MultiMember { xid, updates: false }
}

/// A member that updates or deletes.
pub fn updater(xid: Xid) -> MultiMember {
    MultiMember { xid, updates: true }
}
