//! Tests pruning and chain walks against histories of transactions and a literal model of heap's algorithm.

use super::tests::{assert_invariants, body, empty_page};
use super::*;
use crate::ids::{FROZEN_XID, Tid};
use infomask::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Committed,
    Aborted,
    Running,
}

/// A page, the fates of the transactions that wrote it, and what each version stands for.
struct History {
    bytes: Vec<u8>,
    fates: HashMap<Xid, Fate>,
    multis: HashMap<u32, Xid>,
    horizon: Xid,
    next_xid: Xid,
    // The index entry of each version, by the number that its data carries.
    roots: HashMap<u64, u16>,
    next_row: u64,
}

impl History {
    fn new() -> History {
        let (fates, multis, roots) = Default::default();
        History { bytes: empty_page(), fates, multis, horizon: 0, next_xid: 100, roots, next_row: 1 }
    }

    fn page(&self) -> Page<'_> {
        Page::new(&self.bytes)
    }

    fn fate(&self, xid: Xid) -> Fate {
        if xid == FROZEN_XID { Fate::Committed } else { self.fates[&xid] }
    }

    fn begin(&mut self, fate: Fate, jump: bool) -> Xid {
        // Not always upwards: a transaction that began earlier may write later.
        self.next_xid += 2;
        let xid = if jump { self.next_xid - 51 } else { self.next_xid };
        self.fates.insert(xid, fate);
        xid
    }

    fn number(version: Version<'_>) -> u64 {
        u64::from_le_bytes(version.body()[2..10].try_into().unwrap())
    }

    fn add(&mut self, header: &Header, root: Option<u16>) -> Option<u16> {
        let mut body = body(8, 0);
        body[2..].copy_from_slice(&self.next_row.to_le_bytes());
        let offset = PageMut::new(&mut self.bytes).add_row(header, &body, None)?;
        self.roots.insert(self.next_row, root.unwrap_or(offset));
        self.next_row += 1;
        Some(offset)
    }

    fn insert(&mut self, fate: Fate, jump: bool) {
        let xmin = self.begin(fate, jump);
        self.add(&Header { xmin, infomask: HEAP_XMAX_INVALID, infomask2: 1, ..Header::default() }, None);
    }

    /// The versions an updater finds.
    fn latest(&self) -> Vec<u16> {
        let open = |header: &Header| {
            header.xmax == 0 || header.infomask & HEAP_XMAX_INVALID != 0 || self.fate(self.updater(header)) == Fate::Aborted
        };
        let live = |header: &Header| self.fate(header.effective_xmin()) == Fate::Committed && open(header);
        self.page().versions().filter(|(_, version)| live(&version.header())).map(|(offset, _)| offset).collect()
    }

    fn updater(&self, header: &Header) -> Xid {
        header.update_xid(|multi| self.multis[&multi])
    }

    /// Updates a row so many times in one transaction; a deletion is the update of no new version.
    fn update(&mut self, pick: usize, times: usize, fate: Fate, jump: bool, multi: bool) {
        let latest = self.latest();
        let Some(&(mut old)) = latest.get(pick % latest.len().max(1)) else { return };
        let xid = self.begin(fate, jump);
        for _ in 0..times.max(1) {
            let header = self.page().version(old).unwrap().header();
            let number = History::number(self.page().version(old).unwrap());
            let root = self.roots[&number];
            let new = Header {
                xmin: xid,
                infomask: HEAP_XMAX_INVALID | HEAP_UPDATED,
                infomask2: 1 | HEAP_ONLY_TUPLE,
                ..Header::default()
            };
            let next = if times == 0 { None } else { self.add(&new, Some(root)) };
            if times > 0 && next.is_none() {
                return;
            }
            let mut changed = Header { xmax: xid, ..header };
            changed.infomask &= !HEAP_XMAX_BITS;
            changed.infomask2 &= !HEAP_HOT_UPDATED;
            if multi {
                changed.xmax = xid | 0x8000_0000;
                changed.infomask |= HEAP_XMAX_IS_MULTI;
                self.multis.insert(changed.xmax as u32, xid);
            }
            if let Some(next) = next {
                changed.infomask2 |= HEAP_HOT_UPDATED;
                changed.ctid = Tid::new(0, next);
            }
            PageMut::new(&mut self.bytes).set_header(old, &changed).unwrap();
            old = next.unwrap_or(old);
        }
    }

    /// HeapTupleSatisfiesVacuum, hint bits included.
    fn state(&self, header: &mut Header) -> TupleState {
        match self.fate(header.effective_xmin()) {
            Fate::Aborted => {
                header.infomask |= HEAP_XMIN_INVALID;
                return TupleState::Dead;
            }
            Fate::Running => return TupleState::InsertInProgress,
            Fate::Committed => (),
        }
        if header.infomask & HEAP_XMAX_INVALID != 0 {
            return TupleState::Live;
        }
        let xmax = self.updater(header);
        match self.fate(xmax) {
            Fate::Aborted => {
                header.infomask |= HEAP_XMAX_INVALID;
                TupleState::Live
            }
            Fate::Running => TupleState::DeleteInProgress,
            Fate::Committed if xmax < self.horizon => TupleState::Dead,
            Fate::Committed => TupleState::RecentlyDead,
        }
    }

    /// Freezes what is old, as VACUUM does after its prune with the same horizon.
    fn freeze(&mut self) {
        for offset in self.latest() {
            let mut header = self.page().version(offset).unwrap().header();
            if header.xmin < self.horizon {
                header.infomask |= HEAP_XMIN_FROZEN;
                PageMut::new(&mut self.bytes).set_header(offset, &header).unwrap();
            }
        }
    }

    /// The versions that some snapshot may need, by number; others may go.
    fn needed(&self) -> HashSet<u64> {
        let mut needed: HashSet<u64> = HashSet::new();
        for (_, version) in self.page().versions() {
            let (mut header, mut goes) = (version.header(), false);
            let mut state = self.state(&mut header);
            // A recently dead version before a dead one is dead too.
            while state == TupleState::RecentlyDead && header.is_hot_updated() {
                let Some(next) = self.page().version(header.ctid.offset).map(Version::header) else { break };
                if next.effective_xmin() != self.updater(&header) {
                    break;
                }
                header = next;
                state = self.state(&mut header);
                goes |= state == TupleState::Dead;
            }
            if !goes && self.state(&mut version.header()) != TupleState::Dead {
                needed.insert(History::number(version));
            }
        }
        needed
    }

    /// Where a search from the index entry finds a version.
    fn find(&self, number: u64) -> Option<u16> {
        struct Wanted<'h>(&'h History, u64);
        impl ChainVisitor for Wanted<'_> {
            fn visible(&mut self, offset: u16, header: &mut Header) -> bool {
                self.0.state(header);
                History::number(self.0.page().version(offset).unwrap()) == self.1
            }
            fn surely_dead(&mut self, _: u16, _: &Header) -> bool {
                false
            }
            fn multi_update_xid(&mut self, multi: u32) -> Xid {
                self.0.multis[&multi]
            }
        }
        hot_search(self.page(), self.roots[&number], true, &mut Wanted(self, number)).found
    }

    fn plan(&self, dead_lines: DeadLines) -> PrunePlan {
        plan_prune(self.page(), dead_lines, |_, header| self.state(header), |multi| self.multis[&multi])
    }

    fn prune(&mut self, dead_lines: DeadLines) {
        let needed = self.needed();
        let plan = self.plan(dead_lines);
        if dead_lines == DeadLines::Keep {
            assert_eq!(plan, literal::plan(self), "same plan as heap's");
        }
        let before = self.page().versions().count();
        let free_before = self.page().free_space();
        PageMut::new(&mut self.bytes).apply_prune(&plan.actions).unwrap();
        assert_invariants(&self.bytes);
        assert_eq!(self.page().versions().count(), before - plan.removed as usize);
        assert!(self.page().free_space() >= free_before + 48 * plan.removed as usize);
        let page = self.page();
        let mut states = HashMap::new();
        for (_, version) in page.versions() {
            *states.entry(format!("{:?}", self.state(&mut version.header()))).or_insert(0) += 1;
        }
        assert!(!states.contains_key("Dead"), "no dead version keeps its storage");
        assert_eq!(states.get("Live").copied().unwrap_or(0), plan.live);
        assert_eq!(states.get("RecentlyDead").copied().unwrap_or(0), plan.recently_dead);
        for &number in &needed {
            let offset = page.versions().find(|(_, version)| History::number(*version) == number).map(|(offset, _)| offset);
            assert!(offset.is_some(), "version {number} stays");
            assert_eq!(self.find(number), offset, "version {number} is found from its index entry");
        }
        for (from, to) in (1..=page.max_offset()).map(|offset| (page.line(offset), page.line(offset).redirect())) {
            assert!(!from.is_redirect() || page.version(to).is_some_and(|version| version.header().is_heap_only()));
        }
        let dead = (1..=page.max_offset()).any(|offset| page.line(offset).is_dead());
        assert!(!(dead && dead_lines == DeadLines::Free));
        let again = self.plan(dead_lines);
        assert!(again.actions.is_empty(), "a second prune finds nothing");
        // Not always equal: the first plan counts recently dead versions that go with a dead one.
        assert!(again.new_prune_xid == 0 || again.new_prune_xid >= plan.new_prune_xid);
    }

    fn vacuum(&mut self) {
        let page = self.page();
        let dead: Vec<u16> = (1..=page.max_offset()).filter(|&offset| page.line(offset).is_dead()).collect();
        PageMut::new(&mut self.bytes).mark_unused(&dead).unwrap();
        assert_invariants(&self.bytes);
    }

    fn check_roots(&self) {
        let page = self.page();
        let roots = root_offsets(page, |multi| self.multis[&multi]);
        for (offset, version) in page.versions() {
            let number = History::number(version);
            // A version that no chain leads to (an aborted update's) has no root, or its old one while the chain still stands.
            if self.find(number) == Some(offset) {
                assert_eq!(roots[offset as usize], self.roots[&number]);
            } else {
                assert!([0, self.roots[&number]].contains(&roots[offset as usize]));
            }
        }
        for offset in (1..=page.max_offset()).filter(|&offset| page.version(offset).is_none()) {
            assert_eq!(roots[offset as usize], 0);
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Insert(Fate, bool),
    Update { pick: usize, times: usize, fate: Fate, jump: bool, multi: bool },
    Horizon(u64),
    Prune { free: bool, freeze: bool },
    Vacuum,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![6 => Just(Fate::Committed), 3 => Just(Fate::Aborted), 1 => Just(Fate::Running)]
}

fn act() -> impl Strategy<Value = Act> {
    let update = (any::<usize>(), 0usize..4, fate(), prop::bool::weighted(0.2), prop::bool::weighted(0.1));
    prop_oneof![
        4 => (fate(), prop::bool::weighted(0.2)).prop_map(|(fate, jump)| Act::Insert(fate, jump)),
        12 => update.prop_map(|(pick, times, fate, jump, multi)| Act::Update { pick, times, fate, jump, multi }),
        2 => (0u64..120).prop_map(Act::Horizon),
        2 => (prop::bool::weighted(0.2), any::<bool>()).prop_map(|(free, freeze)| Act::Prune { free, freeze }),
        1 => Just(Act::Vacuum),
    ]
}

proptest! {
    #[test]
    fn prune_is_heaps_and_loses_nothing(acts in vec(act(), 1..150)) {
        let mut history = History::new();
        for act in acts {
            match act {
                Act::Insert(fate, jump) => history.insert(fate, jump),
                Act::Update { pick, times, fate, jump, multi } => history.update(pick, times, fate, jump, multi),
                // Never backwards, as horizons of one table are.
                Act::Horizon(behind) => history.horizon = history.horizon.max(history.next_xid.saturating_sub(behind)),
                Act::Prune { free, freeze } => {
                    history.prune(if free { DeadLines::Free } else { DeadLines::Keep });
                    if freeze {
                        history.freeze();
                    }
                }
                Act::Vacuum => history.vacuum(),
            }
            history.check_roots();
        }
        history.prune(DeadLines::Keep);
        history.vacuum();
    }
}

/// Answers from lists of offsets, and notes what was asked.
#[derive(Default)]
struct Lists {
    visible: Vec<u16>,
    surely_dead: Vec<u16>,
    asked_visible: Vec<u16>,
    asked_dead: Vec<u16>,
}

impl ChainVisitor for Lists {
    fn visible(&mut self, offset: u16, _: &mut Header) -> bool {
        self.asked_visible.push(offset);
        self.visible.contains(&offset)
    }
    fn surely_dead(&mut self, offset: u16, _: &Header) -> bool {
        self.asked_dead.push(offset);
        self.surely_dead.contains(&offset)
    }
    fn multi_update_xid(&mut self, _: u32) -> Xid {
        0
    }
}

/// A chain 1 → 2 → 3 and a row of its own at 4.
fn chain_page() -> Vec<u8> {
    let mut bytes = empty_page();
    let mut page = PageMut::new(&mut bytes);
    let links = [(10, 11, 2, HEAP_HOT_UPDATED), (11, 12, 3, HEAP_HOT_UPDATED | HEAP_ONLY_TUPLE), (12, 0, 3, HEAP_ONLY_TUPLE)];
    for (xmin, xmax, next, infomask2) in links {
        page.add_row(&Header { xmin, xmax, ctid: Tid::new(0, next), infomask2, ..Header::default() }, &body(8, 0), None);
    }
    page.add_row(&Header { xmin: 20, ..Header::default() }, &body(8, 0), None);
    bytes
}

#[test]
fn hot_search_stops_at_the_first_visible_version() {
    let bytes = chain_page();
    let mut lists = Lists { visible: vec![2, 3], surely_dead: vec![1, 2, 3], ..Lists::default() };
    let found = hot_search(Page::new(&bytes), 1, true, &mut lists);
    assert_eq!(found, HotSearch { found: Some(2), all_dead: false });
    assert_eq!((lists.asked_visible, lists.asked_dead), (vec![1, 2], vec![1]));
}

#[test]
fn hot_search_goes_on_behind_the_version_found() {
    let bytes = chain_page();
    let mut lists = Lists { visible: vec![2, 3], surely_dead: vec![1, 2, 3], ..Lists::default() };
    assert_eq!(hot_search(Page::new(&bytes), 2, false, &mut lists).found, Some(3));
    let end = hot_search(Page::new(&bytes), 3, false, &mut lists);
    assert_eq!(end, HotSearch { found: None, all_dead: false });
    assert_eq!((lists.asked_visible, lists.asked_dead), (vec![3], vec![]));
}

#[test]
fn hot_search_tells_when_all_are_dead() {
    let bytes = chain_page();
    let all_dead = |surely_dead: &[u16]| {
        let mut lists = Lists { surely_dead: surely_dead.to_vec(), ..Lists::default() };
        let search = hot_search(Page::new(&bytes), 1, true, &mut lists);
        (search.all_dead, lists.asked_dead)
    };
    assert_eq!(all_dead(&[1, 2, 3]), (true, vec![1, 2, 3]));
    assert_eq!(all_dead(&[1, 3]), (false, vec![1, 2]));
    // An index entry without a version behind it is dead as well.
    for offset in [0, 5, u16::MAX] {
        let search = hot_search(Page::new(&bytes), offset, true, &mut Lists::default());
        assert_eq!(search, HotSearch { found: None, all_dead: true });
    }
}

#[test]
fn hot_search_leaves_a_chain_whose_place_is_reused() {
    let mut bytes = chain_page();
    let mut page = PageMut::new(&mut bytes);
    let header = page.as_page().version(2).unwrap().header();
    page.set_header(2, &Header { xmin: 99, ..header }).unwrap();
    let mut lists = Lists { visible: vec![2, 3], ..Lists::default() };
    assert_eq!(hot_search(Page::new(&bytes), 1, true, &mut lists).found, None);
    assert_eq!(hot_search(Page::new(&bytes), 2, true, &mut lists).found, None, "no chain starts at a heap-only version");
    assert_eq!(lists.asked_visible, [1]);
    assert_eq!(root_offsets(Page::new(&bytes), |_| 0)[..5], [0, 1, 0, 0, 4]);
}

#[test]
fn hot_search_follows_a_redirect_only_at_the_start() {
    let mut bytes = chain_page();
    let actions = PruneActions { redirected: vec![(1, 3)], unused: vec![2], ..PruneActions::default() };
    PageMut::new(&mut bytes).apply_prune(&actions).unwrap();
    let mut lists = Lists { visible: vec![3], ..Lists::default() };
    assert_eq!(hot_search(Page::new(&bytes), 1, true, &mut lists).found, Some(3));
    assert_eq!(hot_search(Page::new(&bytes), 1, false, &mut lists).found, None);
    assert_eq!(root_offsets(Page::new(&bytes), |_| 0)[..5], [0, 0, 0, 1, 4]);
}

#[test]
fn circular_chains_end() {
    let mut bytes = chain_page();
    let mut page = PageMut::new(&mut bytes);
    for (offset, next) in [(2, 3), (3, 2)] {
        let header = Header {
            xmin: 11,
            xmax: 11,
            ctid: Tid::new(0, next),
            infomask2: HEAP_HOT_UPDATED | HEAP_ONLY_TUPLE,
            ..Header::default()
        };
        page.set_header(offset, &header).unwrap();
    }
    assert_eq!(hot_search(Page::new(&bytes), 1, true, &mut Lists::default()).found, None);
    assert_eq!(root_offsets(Page::new(&bytes), |_| 0)[..5], [0, 1, 1, 1, 4]);
    let plan = plan_prune(Page::new(&bytes), DeadLines::Keep, |_, _| TupleState::Dead, |_| 0);
    assert_eq!((plan.actions.dead, plan.actions.unused), (vec![1, 4], vec![2, 3]));
}

/// Heap's pruning, statement by statement, over plain arrays.
mod literal {
    use super::*;

    struct State {
        states: Vec<Option<(Header, TupleState)>>,
        marked: Vec<bool>,
        plan: PrunePlan,
    }

    pub fn plan(history: &History) -> PrunePlan {
        let page = history.page();
        let maxoff = page.max_offset();
        let judge = |offset: u16| {
            let mut header = page.version(offset)?.header();
            let state = history.state(&mut header);
            Some((header, state))
        };
        let mut prstate = State {
            states: (0..=maxoff).map(judge).collect(),
            marked: vec![false; maxoff as usize + 1],
            plan: PrunePlan::default(),
        };
        for offnum in 1..=maxoff {
            if prstate.marked[offnum as usize] || page.line(offnum).is_unused() || page.line(offnum).is_dead() {
                continue;
            }
            chain(history, offnum, &mut prstate);
        }
        let actions = &prstate.plan.actions;
        let stays = |offset: u16| {
            !actions.dead.contains(&offset)
                && !actions.unused.contains(&offset)
                && !actions.redirected.iter().any(|&(from, _)| from == offset)
        };
        let count = |wanted| {
            let with_state = |offset: &u16| prstate.states[*offset as usize].is_some_and(|(_, state)| state == wanted);
            (1..=maxoff).filter(with_state).filter(|&offset| stays(offset)).count() as u32
        };
        let (live, recently_dead) = (count(TupleState::Live), count(TupleState::RecentlyDead));
        PrunePlan { live, recently_dead, ..prstate.plan }
    }

    fn chain(history: &History, rootoffnum: u16, prstate: &mut State) {
        let page = history.page();
        let rootlp = page.line(rootoffnum);
        if let Some((htup, state)) = prstate.states[rootoffnum as usize]
            && htup.is_heap_only()
        {
            if state == TupleState::Dead && !htup.is_hot_updated() {
                unused(prstate, rootoffnum);
                prstate.plan.removed += 1;
            }
            return;
        }
        let (mut offnum, mut prior_xmax, mut latestdead) = (rootoffnum, 0, 0);
        let mut chainitems: Vec<u16> = Vec::new();
        loop {
            if offnum < 1 || offnum > page.max_offset() || prstate.marked[offnum as usize] {
                break;
            }
            let lp = page.line(offnum);
            if lp.is_unused() {
                break;
            }
            if lp.is_redirect() {
                if !chainitems.is_empty() {
                    break;
                }
                chainitems.push(offnum);
                offnum = rootlp.redirect();
                continue;
            }
            if lp.is_dead() {
                break;
            }
            let (htup, state) = prstate.states[offnum as usize].unwrap();
            if prior_xmax != 0 && htup.effective_xmin() != prior_xmax {
                break;
            }
            chainitems.push(offnum);
            let (mut tupdead, mut recent_dead) = (false, false);
            match state {
                TupleState::Dead => tupdead = true,
                TupleState::RecentlyDead => {
                    recent_dead = true;
                    prunable(prstate, history.updater(&htup));
                }
                TupleState::DeleteInProgress => prunable(prstate, history.updater(&htup)),
                TupleState::Live | TupleState::InsertInProgress => (),
            }
            if tupdead {
                latestdead = offnum;
            } else if !recent_dead {
                break;
            }
            if !htup.is_hot_updated() {
                break;
            }
            offnum = htup.ctid.offset;
            prior_xmax = history.updater(&htup);
        }
        if latestdead != 0 {
            let mut i = 1;
            while i < chainitems.len() && chainitems[i - 1] != latestdead {
                unused(prstate, chainitems[i]);
                prstate.plan.removed += 1;
                i += 1;
            }
            if rootlp.is_normal() {
                prstate.plan.removed += 1;
            }
            if i >= chainitems.len() {
                dead(prstate, rootoffnum);
            } else {
                prstate.plan.actions.redirected.push((rootoffnum, chainitems[i]));
                prstate.marked[rootoffnum as usize] = true;
                prstate.marked[chainitems[i] as usize] = true;
            }
        } else if chainitems.len() < 2 && rootlp.is_redirect() {
            dead(prstate, rootoffnum);
        }
    }

    fn prunable(prstate: &mut State, xid: Xid) {
        if prstate.plan.new_prune_xid == 0 || xid < prstate.plan.new_prune_xid {
            prstate.plan.new_prune_xid = xid;
        }
    }

    fn dead(prstate: &mut State, offnum: u16) {
        prstate.plan.actions.dead.push(offnum);
        prstate.marked[offnum as usize] = true;
    }

    fn unused(prstate: &mut State, offnum: u16) {
        prstate.plan.actions.unused.push(offnum);
        prstate.marked[offnum as usize] = true;
    }
}
