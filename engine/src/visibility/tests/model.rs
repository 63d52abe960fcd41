//! A model of concurrent transactions that keeps the whole history, and beside it the headers as an engine would have left them.
//!
//! The naive answers (`sees`, `can_update`, ...) come from the history alone: who did what to a version, and how his transaction
//! ended. Nobody sets a hint in the history, and nothing in it is ever overwritten.

use std::collections::HashSet;

use crate::error::Result;
use crate::ids::{Lsn, Tid, Xid};
use crate::page::infomask::*;
use crate::page::{Header, TupleState};
use crate::visibility::*;

/// The first xid; the epoch changes soon after.
const FIRST_XID: Xid = (1 << 32) - 8;
/// The first multixact; their numbers wrap around soon after.
const FIRST_MULTI: u32 = u32::MAX - 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Open,
    Committed,
    Aborted,
}

/// A transaction, or a subtransaction with its parent.
#[derive(Clone, Debug)]
struct Transaction {
    parent: Option<Xid>,
    end: End,
}

/// What happened to one version.
#[derive(Clone, Debug)]
pub struct Version {
    inserter: (Xid, u32),
    deletes: Vec<(Xid, u32, bool)>,
    lockers: Vec<Xid>,
    pub header: Header,
    pub removed: bool,
}

/// A snapshot, and what it must see: the transactions that had committed.
#[derive(Clone, Debug)]
pub struct Taken {
    pub plain: PlainSnapshot,
    pub owner: Xid,
    committed: HashSet<Xid>,
}

/// A client with an open transaction.
#[derive(Clone, Debug)]
pub struct Session {
    pub top: Xid,
    stack: Vec<Xid>,
    pub command: u32,
}

#[derive(Clone, Debug)]
pub struct Model {
    transactions: Vec<Transaction>,
    multis: Vec<Vec<MultiMember>>,
    pub versions: Vec<Version>,
    pub snapshots: Vec<Taken>,
    pub sessions: Vec<Session>,
    relfrozen_xid: Xid,
    relmin_multi: u32,
    pub may_hint: bool,
}

/// How the process of one session, or one without any, asks the model.
pub struct View<'a>(pub &'a Model, pub Option<Xid>);

impl Model {
    pub fn new() -> Model {
        Model {
            transactions: Vec::new(),
            multis: Vec::new(),
            versions: Vec::new(),
            snapshots: Vec::new(),
            sessions: Vec::new(),
            relfrozen_xid: FIRST_XID,
            relmin_multi: FIRST_MULTI,
            may_hint: false,
        }
    }

    fn next_xid(&self) -> Xid {
        FIRST_XID + self.transactions.len() as Xid
    }

    /// The number of the multixact at an index; 0 is no multixact.
    fn multi_at(index: usize) -> u32 {
        let number = FIRST_MULTI as u64 + index as u64;
        if number > u32::MAX as u64 { (number - u32::MAX as u64) as u32 } else { number as u32 }
    }

    fn members(&self, multi: u32) -> &[MultiMember] {
        assert!((multi.wrapping_sub(self.relmin_multi) as i32) >= 0, "multixact {multi} is forgotten");
        let index = (0..self.multis.len()).find(|&index| Model::multi_at(index) == multi).expect("a known multixact");
        &self.multis[index]
    }

    fn top(&self, xid: Xid) -> Xid {
        self.transactions[(xid - FIRST_XID) as usize].parent.map_or(xid, |parent| self.top(parent))
    }

    /// A subtransaction ends as its parent does, unless it aborted before.
    fn end(&self, xid: Xid) -> End {
        let transaction = &self.transactions[(xid - FIRST_XID) as usize];
        match (transaction.end, transaction.parent) {
            (End::Aborted, _) | (_, None) => transaction.end,
            (_, Some(parent)) => self.end(parent),
        }
    }

    fn xids(&self) -> impl Iterator<Item = Xid> {
        FIRST_XID..self.next_xid()
    }

    fn start(&mut self, parent: Option<Xid>) -> Xid {
        let xid = self.next_xid();
        self.transactions.push(Transaction { parent, end: End::Open });
        xid
    }

    pub fn begin(&mut self) {
        let top = self.start(None);
        self.sessions.push(Session { top, stack: vec![top], command: 0 });
    }

    pub fn begin_sub(&mut self, session: usize) {
        let parent = self.xid(session);
        let xid = self.start(Some(parent));
        self.sessions[session].stack.push(xid);
    }

    /// Ends the innermost subtransaction, or the transaction.
    pub fn end_one(&mut self, session: usize, commit: bool) {
        let xid = self.sessions[session].stack.pop().expect("an open transaction");
        self.transactions[(xid - FIRST_XID) as usize].end = if commit { End::Committed } else { End::Aborted };
        if self.sessions[session].stack.is_empty() {
            self.sessions.remove(session);
            self.snapshots.retain(|taken| taken.owner != xid);
        }
    }

    pub fn xid(&self, session: usize) -> Xid {
        *self.sessions[session].stack.last().expect("an open transaction")
    }

    /// Takes a snapshot for a session as Postgres does.
    pub fn take_snapshot(&mut self, session: usize) {
        let Session { top: owner, command: curcid, .. } = self.sessions[session];
        let xmax = self.xids().filter(|&xid| self.end(xid) != End::Open).max().map_or(FIRST_XID, |last| last + 1);
        let open: Vec<Xid> = self.xids().filter(|&xid| self.end(xid) == End::Open).collect();
        let xmin = open.iter().copied().min().map_or(xmax, |first| first.min(xmax));
        let running = open.into_iter().filter(|&xid| xid < xmax && self.top(xid) != owner).collect();
        let committed = self.xids().filter(|&xid| self.end(xid) == End::Committed).collect();
        self.snapshots.push(Taken { plain: PlainSnapshot { xmin, xmax, curcid, running }, owner, committed });
    }

    fn locks(&mut self, lockers: &[Xid]) -> (Xid, u16) {
        let members: Vec<MultiMember> = lockers.iter().map(|&xid| MultiMember { xid, updates: false }).collect();
        self.xmax_of(&members)
    }

    /// The xmax for these members, with its infomask bits.
    fn xmax_of(&mut self, members: &[MultiMember]) -> (Xid, u16) {
        let lock = if members.iter().any(|member| member.updates) { 0 } else { HEAP_XMAX_LOCK_ONLY | HEAP_XMAX_KEYSHR_LOCK };
        match members {
            [] => (0, HEAP_XMAX_INVALID),
            [member] => (member.xid, lock),
            _ => {
                self.multis.push(members.to_vec());
                let strength = if lock == 0 { HEAP_XMAX_EXCL_LOCK } else { lock };
                (Model::multi_at(self.multis.len() - 1) as Xid, HEAP_XMAX_IS_MULTI | strength)
            }
        }
    }

    pub fn insert(&mut self, session: usize) {
        self.add_version(session, 0, HEAP_XMAX_INVALID, Vec::new());
    }

    fn add_version(&mut self, session: usize, xmax: Xid, infomask: u16, lockers: Vec<Xid>) {
        let (xid, command) = (self.xid(session), self.sessions[session].command);
        let ctid = Tid::new(self.versions.len() as u32, 1);
        let header = Header { xmin: xid, cmin: command, xmax, ctid, infomask, ..Header::default() };
        self.versions.push(Version { inserter: (xid, command), deletes: Vec::new(), lockers, header, removed: false });
    }

    /// Puts a new xmax into a version's header: the session's update or lock, beside the locks that are held and an update that runs.
    fn change_xmax(&mut self, version: usize, session: usize, updates: bool, keep_own_locks: bool) {
        let (xid, top, command) = (self.xid(session), self.sessions[session].top, self.sessions[session].command);
        let mut lockers = self.held_locks(version);
        lockers.retain(|&locker| locker != xid && (keep_own_locks || self.top(locker) != top));
        let mut members: Vec<MultiMember> = lockers.iter().map(|&xid| MultiMember { xid, updates: false }).collect();
        members.push(MultiMember { xid, updates });
        if updates {
            self.versions[version].header.cmax = command;
        } else {
            lockers.push(xid);
            if let Some((updater, _, _)) = self.deleter(version) {
                members.push(MultiMember { xid: updater, updates: true });
            }
        }
        let (xmax, bits) = self.xmax_of(&members);
        let changed = &mut self.versions[version];
        changed.lockers = lockers;
        changed.header.xmax = xmax;
        changed.header.infomask = changed.header.infomask & !HEAP_XMAX_BITS | bits;
    }

    /// Updates or deletes, if nobody else does.
    pub fn change(&mut self, version: usize, session: usize, update: bool, keep_own_locks: bool) {
        let answer = self.can_update(version, self.sessions[session].top, self.sessions[session].command);
        if answer != TmResult::Ok && (answer != TmResult::BeingModified || self.deleter(version).is_some()) {
            return;
        }
        self.change_xmax(version, session, true, keep_own_locks);
        let successor = Tid::new(if update { self.versions.len() } else { version } as u32, 1);
        let (xid, command) = (self.xid(session), self.sessions[session].command);
        let changed = &mut self.versions[version];
        changed.deletes.push((xid, command, update));
        changed.header.ctid = successor;
        if update {
            // Others' locks hold for the next version too.
            let top = self.sessions[session].top;
            let mut lockers = self.held_locks(version);
            lockers.retain(|&locker| self.top(locker) != top);
            let (xmax, bits) = self.locks(&lockers);
            self.add_version(session, xmax, bits | HEAP_UPDATED, lockers);
        }
    }

    /// Locks weakly enough to go beside anything.
    pub fn lock(&mut self, version: usize, session: usize, keep_own_locks: bool) {
        let answer = self.can_update(version, self.sessions[session].top, self.sessions[session].command);
        let ended = self.deleter(version).is_some_and(|(xid, _, _)| self.end(xid) == End::Committed);
        if answer == TmResult::Ok || answer == TmResult::BeingModified && !ended {
            self.change_xmax(version, session, false, keep_own_locks);
        }
    }

    /// Removes what is dead to all and freezes the rest; transactions and multixacts older than what remains are forgotten.
    pub fn vacuum(&mut self, freeze_age: Xid, multi_age: u32) {
        let open = self.xids().filter(|&xid| self.end(xid) == End::Open);
        let oldest_xmin = open.chain(self.snapshots.iter().map(|taken| taken.plain.xmin)).min().unwrap_or(self.next_xid());
        let running = |members: &[MultiMember]| members.iter().any(|member| self.end(member.xid) == End::Open);
        let oldest = self.multis.iter().position(|members| running(members)).unwrap_or(self.multis.len());
        let limits = FreezeLimits {
            freeze_xid: oldest_xmin.saturating_sub(freeze_age).max(self.relfrozen_xid),
            relfrozen_xid: self.relfrozen_xid,
            multi_cutoff: Model::multi_at(oldest.saturating_sub(multi_age as usize)),
            relmin_multi: self.relmin_multi,
            oldest_xmin,
            oldest_multi: Model::multi_at(oldest),
        };
        let mut remaining = FreezeTracker::new(&limits);
        for at in 0..self.versions.len() {
            let header = self.versions[at].header;
            if self.versions[at].removed {
                continue;
            }
            let view = View(self, None);
            if satisfies_vacuum(&header, oldest_xmin, &view, Lsn(1), &mut 0) == TupleState::Dead {
                let watched = self.snapshots.iter().any(|taken| self.sees(at, taken));
                assert!(!watched, "version {at} is removed under a snapshot that sees it");
                self.versions[at].removed = true;
                continue;
            }
            let planned = plan_freeze(&header, &limits, &view, &mut remaining).expect("a sound history");
            self.versions[at].header = planned.unwrap_or(header);
        }
        assert!(remaining.oldest_xid >= self.relfrozen_xid);
        self.relfrozen_xid = remaining.oldest_xid;
        self.relmin_multi = remaining.oldest_multi;
    }

    /// The locks that the history says are held.
    fn held_locks(&self, version: usize) -> Vec<Xid> {
        self.versions[version].lockers.iter().copied().filter(|&xid| self.end(xid) == End::Open).collect()
    }

    /// The update or deletion that did not abort.
    fn deleter(&self, version: usize) -> Option<(Xid, u32, bool)> {
        let mut live = self.versions[version].deletes.iter().filter(|delete| self.end(delete.0) != End::Aborted);
        let found = live.next().copied();
        assert!(live.next().is_none(), "two transactions changed version {version}");
        found
    }

    fn is_own(&self, xid: Xid, top: Xid) -> bool {
        self.top(xid) == top && self.end(xid) == End::Open
    }

    /// Naive MVCC.
    pub fn sees(&self, version: usize, taken: &Taken) -> bool {
        let happened = |(xid, command): (Xid, u32)| {
            taken.committed.contains(&xid) || self.is_own(xid, taken.owner) && command < taken.plain.curcid
        };
        let Version { inserter, deletes, .. } = &self.versions[version];
        happened(*inserter) && !deletes.iter().any(|&(xid, command, _)| happened((xid, command)))
    }

    /// Naive SnapshotSelf.
    pub fn is_there(&self, version: usize, top: Xid) -> bool {
        let happened = |xid| self.end(xid) == End::Committed || self.is_own(xid, top);
        happened(self.versions[version].inserter.0) && !self.deleter(version).is_some_and(|(xid, _, _)| happened(xid))
    }

    /// Naive SnapshotDirty.
    pub fn is_there_dirtily(&self, version: usize, top: Xid) -> (bool, DirtyInfo) {
        let (inserter, other) = (self.versions[version].inserter.0, |xid| self.end(xid) == End::Open && self.top(xid) != top);
        if other(inserter) {
            return (true, DirtyInfo { xmin: inserter, ..DirtyInfo::default() });
        }
        let visible = self.is_there(version, top);
        let deleter = self.deleter(version).map(|delete| delete.0).filter(|&xid| visible && other(xid));
        (visible, DirtyInfo { xmax: deleter.unwrap_or(0), ..DirtyInfo::default() })
    }

    /// Naive answer to a command that wants to change the version.
    pub fn can_update(&self, version: usize, top: Xid, command: u32) -> TmResult {
        let (inserter, cmin) = self.versions[version].inserter;
        let own = self.is_own(inserter, top);
        if !own && self.end(inserter) != End::Committed || own && cmin >= command {
            return TmResult::Invisible;
        }
        let locked = !self.held_locks(version).is_empty();
        match self.deleter(version) {
            Some((xid, cmax, _)) if self.is_own(xid, top) && cmax >= command => TmResult::SelfModified,
            Some((xid, _, _)) if self.is_own(xid, top) => TmResult::Invisible,
            Some((xid, _, _)) if self.end(xid) == End::Open => TmResult::BeingModified,
            _ if locked => TmResult::BeingModified,
            Some((_, _, true)) => TmResult::Updated,
            Some((_, _, false)) => TmResult::Deleted,
            None => TmResult::Ok,
        }
    }

    /// Naive judgement of a cleaner within a session, with the deleter if that is what counts.
    pub fn tuple_state(&self, version: usize, top: Xid) -> (TupleState, Xid) {
        let inserter = self.versions[version].inserter.0;
        match (self.end(inserter), self.deleter(version)) {
            (End::Aborted, _) => (TupleState::Dead, 0),
            (End::Open, Some(_)) if self.is_own(inserter, top) => (TupleState::DeleteInProgress, 0),
            (End::Open, _) => (TupleState::InsertInProgress, 0),
            (End::Committed, None) => (TupleState::Live, 0),
            (End::Committed, Some((xid, _, _))) if self.end(xid) == End::Open => (TupleState::DeleteInProgress, 0),
            (End::Committed, Some((xid, _, _))) => (TupleState::RecentlyDead, xid),
        }
    }
}

impl TransactionStatus for View<'_> {
    fn is_current(&self, xid: Xid) -> bool {
        self.1.is_some_and(|top| self.0.is_own(xid, top))
    }

    fn in_progress(&self, xid: Xid) -> bool {
        self.0.end(xid) == End::Open
    }

    fn did_commit(&self, xid: Xid) -> bool {
        assert!(xid >= self.0.relfrozen_xid, "the state of xid {xid} is forgotten");
        self.0.end(xid) == End::Committed
    }

    fn multi_update_xid(&self, multi: u32) -> Xid {
        self.0.members(multi).iter().find(|member| member.updates).map_or(0, |member| member.xid)
    }

    fn multi_running(&self, multi: u32, _lock_only: bool) -> bool {
        self.0.members(multi).iter().any(|member| self.in_progress(member.xid))
    }

    fn may_hint_committed(&self, _xid: Xid, _page_lsn: Lsn) -> bool {
        self.0.may_hint
    }
}

impl MultiMembers for View<'_> {
    fn multi_members(&self, multi: u32, _lock_only: bool) -> Result<Vec<MultiMember>> {
        Ok(self.0.members(multi).to_vec())
    }
}
