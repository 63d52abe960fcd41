//! Properties over headers of any form: hints change no answer, and removal is never in sight of a snapshot.

use proptest::prelude::*;

use super::world::{State, World, locker, updater};
use crate::ids::{Lsn, Tid, Xid};
use crate::page::infomask::*;
use crate::page::{Header, TupleState};
use crate::visibility::*;

const OWN: Tid = Tid::new(0, 1);
const CURCID: u32 = 2;
/// Transactions have xids from here on.
const FIRST: Xid = 10;
const XMIN: Xid = FIRST + 8;
const XMAX: Xid = FIRST + 24;
const END: Xid = FIRST + 32;

/// A snapshot of transactions of which some ended later, and what became of them all.
fn worlds() -> impl Strategy<Value = (World, PlainSnapshot)> {
    let ended = prop_oneof![Just(State::Committed), Just(State::Aborted)];
    let now = prop_oneof![Just(State::Current), Just(State::Running), Just(State::Committed), Just(State::Aborted)];
    let states = prop::collection::vec((ended, now, any::<bool>()), (END - FIRST) as usize);
    let multi = prop::collection::vec(FIRST..END, 1..4).prop_flat_map(|xids| (Just(xids), 0..4_usize));
    (states, prop::collection::vec(multi, 8), any::<bool>()).prop_map(|(drawn, multis, may_hint)| {
        let mut world = World { may_hint, ..World::default() };
        let mut snapshot = PlainSnapshot { xmin: XMIN, xmax: XMAX, curcid: CURCID, running: Vec::new() };
        for (xid, (ended, now, ran)) in (FIRST..).zip(drawn) {
            let ended_before = xid < XMIN || xid < XMAX && !ran;
            // Only a snapshot's own transaction runs and stands outside its list.
            let state = if ended_before && now != State::Current || xid < XMIN { ended } else { now };
            world.states.insert(xid, state);
            if !ended_before && xid < XMAX && state != State::Current {
                snapshot.running.push(xid);
            }
        }
        for (number, (xids, updating)) in (1..).zip(multis) {
            // Odd multixacts only lock.
            let member = |(at, xid): (usize, &Xid)| {
                if number % 2 == 0 && at == updating % xids.len() { updater(*xid) } else { locker(*xid) }
            };
            world.multis.insert(number, xids.iter().enumerate().map(member).collect());
        }
        (world, snapshot)
    })
}

/// A header as somebody may have left it: a hint that is set is true.
fn headers(world: &World) -> impl Strategy<Value = Header> + use<> {
    let world = world.clone();
    let xmax = prop_oneof![FIRST..END, 1..9_u64, Just(0)];
    let parts = (prop_oneof![9 => FIRST..END, 1 => 0..3_u64], xmax, 0..4_u32, 0..4_u32, 1..3_u16, any::<[bool; 5]>());
    parts.prop_map(move |(xmin, xmax, cmin, cmax, offset, [hint_xmin, hint_xmax, lock, old_form, frozen])| {
        let state = |xid| if xid < FIRST { None } else { Some(world.state(xid)) };
        let mut infomask = match state(xmin) {
            Some(State::Committed) if hint_xmin && frozen && xmin < XMIN => HEAP_XMIN_FROZEN,
            Some(State::Committed) if hint_xmin => HEAP_XMIN_COMMITTED,
            Some(State::Aborted) if hint_xmin => HEAP_XMIN_INVALID,
            _ => 0,
        };
        infomask |= match (xmax, state(xmax)) {
            (0, _) => HEAP_XMAX_INVALID,
            (multi, None) if multi % 2 == 1 => HEAP_XMAX_IS_MULTI | HEAP_XMAX_LOCK_ONLY | HEAP_XMAX_KEYSHR_LOCK,
            (_, None) => HEAP_XMAX_IS_MULTI | HEAP_XMAX_EXCL_LOCK,
            (_, Some(_)) if lock && old_form => HEAP_XMAX_EXCL_LOCK,
            (_, Some(State::Current | State::Running)) if lock => HEAP_XMAX_LOCK_ONLY | HEAP_XMAX_EXCL_LOCK,
            (_, Some(_)) if lock && hint_xmax => HEAP_XMAX_LOCK_ONLY | HEAP_XMAX_EXCL_LOCK | HEAP_XMAX_INVALID,
            (_, Some(_)) if lock => HEAP_XMAX_LOCK_ONLY | HEAP_XMAX_SHR_LOCK,
            (_, Some(State::Committed)) if hint_xmax => HEAP_XMAX_COMMITTED,
            (_, Some(State::Aborted)) if hint_xmax => HEAP_XMAX_INVALID,
            _ => 0,
        };
        Header { xmin, xmax, cmin, cmax, ctid: Tid::new(0, offset), infomask, infomask2: 1 }
    })
}

fn cases() -> impl Strategy<Value = (World, PlainSnapshot, Header)> {
    worlds().prop_flat_map(|(world, snapshot)| {
        let headers = headers(&world);
        (Just(world), Just(snapshot), headers)
    })
}

type Answers = (bool, bool, (bool, DirtyInfo), TmResult, (TupleState, Xid));

/// The answers of all rules, and the hints of each.
fn answers(h: &Header, world: &World, snapshot: &PlainSnapshot) -> (Answers, [u16; 5]) {
    let (lsn, mut hints) = (Lsn(1), [0; 5]);
    let [of_mvcc, of_self, of_dirty, of_update, of_vacuum] = &mut hints;
    let (mut info, mut dead_after) = (DirtyInfo::default(), 0);
    let mvcc = satisfies_mvcc(h, snapshot, world, lsn, of_mvcc);
    let own = satisfies_self(h, world, lsn, of_self);
    let dirty = satisfies_dirty(h, world, lsn, of_dirty, &mut info);
    let update = satisfies_update(h, OWN, CURCID, world, lsn, of_update);
    let vacuum = satisfies_vacuum_horizon(h, world, lsn, of_vacuum, &mut dead_after);
    ((mvcc, own, (dirty, info), update, (vacuum, dead_after)), hints)
}

/// A history cannot show this: only the inserter itself changes a version that is not committed.
fn is_possible(h: &Header, world: &World) -> bool {
    let of_own = h.infomask & HEAP_XMIN_FROZEN == 0 && h.xmin >= FIRST && world.state(h.xmin) == State::Current;
    let settled = h.infomask & HEAP_XMAX_INVALID != 0 || xmax_is_locked_only(h.infomask);
    !of_own || settled || matches!(world.state(update_xid(h, world)), State::Current | State::Aborted)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hints_change_no_answer((world, snapshot, header) in cases()) {
        prop_assume!(is_possible(&header, &world));
        let (expected, hints) = answers(&header, &world, &snapshot);
        for bits in hints.into_iter().chain([hints.into_iter().fold(0, |all, bits| all | bits)]) {
            prop_assert_eq!(bits & !HINT_BITS, 0);
            let hinted = Header { infomask: header.infomask | bits, ..header };
            prop_assert_eq!(answers(&hinted, &world, &snapshot).0, expected, "hints {:04x}", bits);
            prop_assert_eq!(header_is_only_locked(&header, &world) && !header_is_only_locked(&hinted, &world), false);
        }
    }

    #[test]
    fn rules_agree_with_each_other((world, snapshot, header) in cases()) {
        prop_assume!(is_possible(&header, &world));
        let ((mvcc, own, (dirty, info), update, (vacuum, dead_after)), _) = answers(&header, &world, &snapshot);
        // What is there for itself is there for the dirty reader, who sees running insertions besides.
        prop_assert_eq!(own, dirty && info.xmin == 0);
        prop_assert_eq!(vacuum == TupleState::RecentlyDead, dead_after != 0);
        if vacuum == TupleState::Dead || dead_after != 0 && dead_after < snapshot.xmin {
            prop_assert!(!mvcc, "the snapshot sees a version that may be removed");
        }
        if matches!(update, TmResult::Ok) {
            prop_assert!(own, "a version that may be changed is not there");
        }
        if matches!(update, TmResult::Updated | TmResult::Deleted) {
            prop_assert!(!own && vacuum == TupleState::RecentlyDead);
        }
        if update == TmResult::SelfModified {
            prop_assert!(!own && vacuum == TupleState::DeleteInProgress);
        }
    }
}
