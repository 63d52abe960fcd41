//! Plans which versions of a page go: heap's pruning of update chains.
//!
//! Dead versions at the start of a chain are removed, with recently dead ones before a dead one (they are dead too, the test is
//! only coarse). The root becomes a redirect to the first version that stays, or dead if none does: indexes name it. Heap-only
//! versions are named by no index and become unused at once.

use super::infomask::{HEAP_XMAX_INVALID, HEAP_XMIN_COMMITTED};
use super::*;
use crate::error::{Error, Result};

/// What a version is to a vacuum, judged by one horizon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TupleState {
    /// No snapshot sees it.
    Dead,
    /// It is the row's present version.
    Live,
    /// Deleted, but some snapshot may see it still.
    RecentlyDead,
    /// Its inserter runs.
    InsertInProgress,
    /// Its deleter runs.
    DeleteInProgress,
}

/// What becomes of the line pointers of dead versions that indexes may name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeadLines {
    /// They stay, dead, until VACUUM has cleaned the indexes.
    Keep,
    /// They are freed at once: a VACUUM of a table without indexes.
    Free,
}

/// The changes of a prune, as logged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PruneActions {
    /// Line pointers that become redirects, with what they name.
    pub redirected: Vec<(u16, u16)>,
    /// Line pointers that become dead.
    pub dead: Vec<u16>,
    /// Line pointers that become unused.
    pub unused: Vec<u16>,
}

impl PruneActions {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.redirected.is_empty() && self.dead.is_empty() && self.unused.is_empty()
    }

    /// Checks that the actions suit the page: a redirect must name a heap-only version that stays.
    pub(super) fn check(&self, page: Page<'_>) -> Result<()> {
        let mut goes = [false; SLOTS];
        for &offset in self.dead.iter().chain(&self.unused) {
            if page.line(offset).is_unused() {
                return Err(Error::corrupt(format!("prune removes the unused line pointer {offset}")));
            }
            goes[offset as usize] = true;
        }
        for &(from, to) in &self.redirected {
            let heap_only = |offset| page.version(offset).map(|version| version.header().is_heap_only());
            let to_stays = heap_only(to) == Some(true) && !goes[to as usize];
            let from_is_root = page.line(from).is_redirect() || heap_only(from) == Some(false);
            if !to_stays || !from_is_root || goes[from as usize] {
                return Err(Error::corrupt(format!("prune redirects line pointer {from} to {to}")));
            }
        }
        Ok(())
    }
}

/// A prune, planned.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PrunePlan {
    /// What to do.
    pub actions: PruneActions,
    /// The oldest transaction whose end will leave more to prune; 0 if there is none.
    pub new_prune_xid: Xid,
    /// Versions that the actions remove.
    pub removed: u32,
    /// Versions that stay and are live.
    pub live: u32,
    /// Versions that stay and are recently dead.
    pub recently_dead: u32,
}

/// The bits of a version that was inserted for good and that nobody has deleted or locked since.
const UNTOUCHED: u16 = HEAP_XMIN_COMMITTED | HEAP_XMAX_INVALID;

/// Room for every offset as an index.
const SLOTS: usize = MAX_OFFSET as usize + 1;

struct Pruner<'a, F> {
    page: Page<'a>,
    multi_update_xid: F,
    dead_lines: DeadLines,
    // Every state is asked once: it may change meanwhile, and a version can be reached twice.
    states: [Option<TupleState>; SLOTS],
    infomasks: [u16; SLOTS],
    marked: [bool; SLOTS],
    plan: PrunePlan,
}

/// Plans a prune. `state` judges each version once and puts the hint bits it learns into the header: chains end at aborted updates.
///
/// With nothing to do, the caller may still take over `new_prune_xid` and clear `FULL`, as a hint.
pub fn plan_prune(
    page: Page<'_>,
    dead_lines: DeadLines,
    mut state: impl FnMut(u16, &mut Header) -> TupleState,
    multi_update_xid: impl FnMut(u32) -> Xid,
) -> PrunePlan {
    let mut pruner = Pruner {
        page,
        multi_update_xid,
        dead_lines,
        states: [None; SLOTS],
        infomasks: [0; SLOTS],
        marked: [false; SLOTS],
        plan: PrunePlan::default(),
    };
    // The headers are far apart, and the masks of one lie in one cache line. A loop that reads nothing else lets the processor fetch many
    // of them at once; most versions are live by them.
    for offset in 1..=page.max_offset() {
        if let Some(version) = page.version(offset) {
            let infomask = version.infomask();
            pruner.infomasks[offset as usize] = infomask;
            if infomask & UNTOUCHED == UNTOUCHED {
                pruner.states[offset as usize] = Some(TupleState::Live);
            }
        }
    }
    for offset in 1..=page.max_offset() {
        if pruner.states[offset as usize].is_none()
            && let Some(version) = page.version(offset)
        {
            let mut header = version.header();
            pruner.states[offset as usize] = Some(state(offset, &mut header));
            pruner.infomasks[offset as usize] = header.infomask;
        }
    }
    let mut chain = [0; SLOTS];
    for offset in 1..=page.max_offset() {
        if !pruner.marked[offset as usize] {
            pruner.prune_line(offset, &mut chain);
        }
    }
    pruner.count();
    pruner.plan
}

impl<F: FnMut(u32) -> Xid> Pruner<'_, F> {
    fn header(&self, offset: u16) -> Option<Header> {
        let mut header = self.page.version(offset)?.header();
        header.infomask = self.infomasks[offset as usize];
        Some(header)
    }

    /// `chain` is scratch space, as in the functions below.
    fn prune_line(&mut self, root: u16, chain: &mut [u16; SLOTS]) {
        let line = self.page.line(root);
        if line.is_dead() && self.dead_lines == DeadLines::Free {
            self.free(root);
        }
        if line.is_dead() || line.is_unused() {
            return;
        }
        // A chain that ends where it starts.
        if self.states[root as usize] == Some(TupleState::Live) {
            return;
        }
        if let Some(header) = self.header(root)
            && header.is_heap_only()
        {
            // A dead end that no chain may lead to: the version of an aborted update whose old side was updated again.
            if self.states[root as usize] == Some(TupleState::Dead) && !header.is_hot_updated() {
                self.free(root);
                self.plan.removed += 1;
            }
            return;
        }
        self.prune_chain(root, chain);
    }

    fn prune_chain(&mut self, root: u16, chain: &mut [u16; SLOTS]) {
        let (len, gone) = self.follow(root, chain);
        let root_is_normal = self.page.line(root).is_normal();
        if gone > 0 {
            // The root is removed with its chain's start, but its line pointer stays.
            for &offset in &chain[1..gone] {
                self.free(offset);
                self.plan.removed += 1;
            }
            self.plan.removed += root_is_normal as u32;
            if gone == len {
                self.kill(root);
            } else {
                self.redirect(root, chain[gone]);
            }
        } else if len < 2 && !root_is_normal {
            // The redirect's target was a dead end, freed when it was met before its root.
            self.kill(root);
        }
    }

    /// Collects a chain, its root first. Gives its length and how many members from the start go: up to the last dead one.
    fn follow(&mut self, root: u16, chain: &mut [u16; SLOTS]) -> (usize, usize) {
        let (mut len, mut gone) = (0, 0);
        let mut offset = root;
        let mut updater = 0;
        while offset <= self.page.max_offset() && !self.marked[offset as usize] {
            let line = self.page.line(offset);
            if line.is_redirect() && len == 0 {
                chain[len] = offset;
                len += 1;
                offset = line.redirect();
                continue;
            }
            let Some(header) = self.header(offset) else { break };
            if updater != 0 && updater != header.effective_xmin() {
                break;
            }
            // Never so on a sound page; a circle would have no end.
            if len > 0 && (!header.is_heap_only() || chain[..len].contains(&offset)) {
                break;
            }
            chain[len] = offset;
            len += 1;
            let state = self.states[offset as usize];
            if matches!(state, Some(TupleState::RecentlyDead | TupleState::DeleteInProgress)) {
                let xid = header.update_xid(&mut self.multi_update_xid);
                self.note_prunable(xid);
            }
            match state {
                Some(TupleState::Dead) => gone = len,
                Some(TupleState::RecentlyDead) => (),
                _ => break,
            }
            if !header.is_hot_updated() {
                break;
            }
            offset = header.ctid.offset;
            updater = header.update_xid(&mut self.multi_update_xid);
        }
        (len, gone)
    }

    fn note_prunable(&mut self, xid: Xid) {
        let old = self.plan.new_prune_xid;
        if xid != 0 && (old == 0 || xid < old) {
            self.plan.new_prune_xid = xid;
        }
    }

    fn free(&mut self, offset: u16) {
        self.marked[offset as usize] = true;
        self.plan.actions.unused.push(offset);
    }

    fn kill(&mut self, root: u16) {
        match self.dead_lines {
            DeadLines::Free => self.free(root),
            DeadLines::Keep => {
                self.marked[root as usize] = true;
                self.plan.actions.dead.push(root);
            }
        }
    }

    fn redirect(&mut self, root: u16, to: u16) {
        self.marked[root as usize] = true;
        self.marked[to as usize] = true;
        self.plan.actions.redirected.push((root, to));
    }

    fn count(&mut self) {
        let mut removed = [false; SLOTS];
        let actions = &self.plan.actions;
        let redirected = actions.redirected.iter().map(|(from, _)| from);
        for &offset in actions.dead.iter().chain(&actions.unused).chain(redirected) {
            removed[offset as usize] = true;
        }
        for (state, removed) in self.states.iter().zip(removed) {
            self.plan.live += (!removed && *state == Some(TupleState::Live)) as u32;
            self.plan.recently_dead += (!removed && *state == Some(TupleState::RecentlyDead)) as u32;
        }
    }
}
