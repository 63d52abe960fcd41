//! Tests the freeze decision case by case.

use super::world::{State, World, locker, updater};
use crate::error::ErrorKind;
use crate::ids::{Tid, Xid};
use crate::page::Header;
use crate::page::infomask::*;
use crate::visibility::*;

// Below RELFROZEN nothing may be found; OLD is to be frozen, RECENT is not, both have ended before every snapshot; LIVE has not.
const RELFROZEN: Xid = (1 << 33) + 1000;
const ANCIENT: Xid = RELFROZEN - 1;
const OLD: Xid = RELFROZEN + 1;
const OLD_ABORTED: Xid = RELFROZEN + 2;
const FREEZE: Xid = RELFROZEN + 100;
const RECENT: Xid = FREEZE + 1;
const RECENT_ABORTED: Xid = FREEZE + 2;
const OLDEST: Xid = FREEZE + 100;
const LIVE: Xid = OLDEST + 1;
const LATE: Xid = OLDEST + 2;

// Multixact numbers wrap around between the table's oldest and the cutoff.
const RELMIN_MULTI: u32 = u32::MAX - 10;
const MULTI_CUTOFF: u32 = 10;
const OLDEST_MULTI: u32 = 100;

const LIMITS: FreezeLimits = FreezeLimits {
    freeze_xid: FREEZE,
    relfrozen_xid: RELFROZEN,
    multi_cutoff: MULTI_CUTOFF,
    relmin_multi: RELMIN_MULTI,
    oldest_xmin: OLDEST,
    oldest_multi: OLDEST_MULTI,
};

const LOCK: u16 = HEAP_XMAX_LOCK_ONLY | HEAP_XMAX_KEYSHR_LOCK;
const LOCKERS: u16 = HEAP_XMAX_IS_MULTI | LOCK;
const MULTI: u16 = HEAP_XMAX_IS_MULTI | HEAP_XMAX_EXCL_LOCK;

fn world(members: &[MultiMember]) -> World {
    let states = [
        (ANCIENT, State::Committed),
        (OLD, State::Committed),
        (OLD_ABORTED, State::Aborted),
        (RECENT, State::Committed),
        (RECENT_ABORTED, State::Aborted),
        (LIVE, State::Running),
        (LATE, State::Committed),
    ];
    let multis = [RELMIN_MULTI - 1, RELMIN_MULTI, MULTI_CUTOFF - 1, MULTI_CUTOFF, OLDEST_MULTI + 1];
    World { states: states.into(), multis: multis.map(|multi| (multi, members.to_vec())).into(), may_hint: true }
}

fn version(xmin: Xid, xmax: Xid, bits: u16) -> Header {
    Header {
        xmin,
        xmax,
        cmin: 3,
        cmax: 4,
        ctid: Tid::new(1, 2),
        infomask2: HEAP_KEYS_UPDATED | HEAP_HOT_UPDATED | 5,
        infomask: bits,
    }
}

/// The planned header and the oldest xid and multixact that remain.
fn plan_with(h: Header, members: &[MultiMember]) -> Result<(Option<Header>, Xid, u32), String> {
    let world = world(members);
    let mut remaining = FreezeTracker::new(&LIMITS);
    let planned = plan_freeze(&h, &LIMITS, &world, &mut remaining).map_err(|error| {
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(remaining, FreezeTracker::new(&LIMITS), "a failed plan keeps nothing");
        error.to_string()
    })?;
    let mut unchanged = FreezeTracker::new(&LIMITS);
    let would = would_freeze(&h, &LIMITS, &world, &mut unchanged).expect("members are known");
    // A multixact that has lost its members is removed in passing.
    assert!(would || planned.is_none() || members.is_empty(), "a change that was not foreseen");
    assert!(unchanged.oldest_xid <= remaining.oldest_xid);
    Ok((planned, remaining.oldest_xid, remaining.oldest_multi))
}

fn plan(h: Header) -> Result<(Option<Header>, Xid, u32), String> {
    plan_with(h, &[])
}

fn plan_multi(multi: u32, bits: u16, members: &[MultiMember]) -> Result<(Option<Header>, Xid, u32), String> {
    plan_with(version(2, multi as u64, bits | HEAP_XMIN_FROZEN), members)
}

fn without_xmax(h: Header) -> Header {
    let infomask = h.infomask & !HEAP_XMAX_BITS | HEAP_XMAX_INVALID;
    Header { xmax: 0, cmax: 0, infomask, infomask2: 5, ..h }
}

#[test]
fn old_xmin_is_frozen_and_stays_readable() {
    let h = version(OLD, 0, HEAP_XMAX_INVALID | HEAP_XMIN_COMMITTED | HEAP_HASNULL);
    let frozen = Header { infomask: h.infomask | HEAP_XMIN_FROZEN, ..h };
    assert_eq!(plan(h), Ok((Some(frozen), OLDEST, OLDEST_MULTI)));
    assert_eq!(plan(frozen), Ok((None, OLDEST, OLDEST_MULTI)));
}

#[test]
fn younger_xids_remain_and_are_reported() {
    assert_eq!(plan(version(RECENT, 0, HEAP_XMAX_INVALID)), Ok((None, RECENT, OLDEST_MULTI)));
    assert_eq!(plan(version(LATE, 0, HEAP_XMAX_INVALID)), Ok((None, OLDEST, OLDEST_MULTI)));
    // The limit itself is not below the limit; that its state is unknown here shows that nobody asks.
    assert_eq!(plan(version(FREEZE, 0, HEAP_XMAX_INVALID)), Ok((None, FREEZE, OLDEST_MULTI)));
}

#[test]
fn special_xmins_need_nothing() {
    for xmin in [1, 2] {
        let h = version(xmin, 0, HEAP_XMAX_INVALID);
        assert_eq!(plan(h), Ok((None, OLDEST, OLDEST_MULTI)));
    }
}

#[test]
fn old_xmax_goes_if_it_means_nothing() {
    for (xmax, bits) in [(OLD_ABORTED, 0), (OLD_ABORTED, HEAP_XMAX_INVALID), (OLD, LOCK), (OLD, LOCK | HEAP_XMAX_COMMITTED)] {
        let h = version(2, xmax, bits | HEAP_UPDATED);
        assert_eq!(plan(h), Ok((Some(without_xmax(h)), OLDEST, OLDEST_MULTI)), "{bits:04x}");
    }
}

#[test]
fn younger_xmax_remains() {
    for xmax in [RECENT, RECENT_ABORTED] {
        assert_eq!(plan(version(2, xmax, 0)), Ok((None, xmax, OLDEST_MULTI)));
    }
    assert_eq!(plan(version(2, LIVE, LOCK)), Ok((None, OLDEST, OLDEST_MULTI)));
}

#[test]
fn what_must_not_be_there_is_an_error() {
    let error = |h| plan(h).expect_err("corruption");
    assert!(error(version(ANCIENT, 0, HEAP_XMAX_INVALID)).contains("xmin"));
    assert!(error(version(OLD_ABORTED, 0, HEAP_XMAX_INVALID)).contains("uncommitted xmin"));
    assert!(error(version(2, ANCIENT, HEAP_XMAX_INVALID)).contains("xmax"));
    assert!(error(version(2, OLD, 0)).contains("cannot freeze committed xmax"));
    assert!(error(version(2, 1, 0)).contains("not normal"));
    assert!(plan_multi(RELMIN_MULTI - 1, LOCKERS, &[locker(OLD)]).is_err_and(|text| text.contains("relminmxid")));
    let running = plan_multi(MULTI_CUTOFF - 1, LOCKERS, &[locker(LIVE)]);
    assert!(running.is_err_and(|text| text.contains("still running")));
    for multi in [MULTI_CUTOFF - 1, MULTI_CUTOFF] {
        let members = [locker(RECENT), updater(OLD)];
        assert!(plan_multi(multi, MULTI, &members).is_err_and(|text| text.contains("before xid cutoff")));
        let members = [locker(RECENT), updater(ANCIENT)];
        assert!(plan_multi(multi, MULTI, &members).is_err_and(|text| text.contains("before relfrozenxid")));
    }
}

/// What becomes of a multixact with these members: before the cutoff, and not.
fn assert_multi(bits: u16, members: &[MultiMember], old: Option<&str>, young: &str) {
    for (multi, expected) in [(RELMIN_MULTI, old), (MULTI_CUTOFF - 1, old), (MULTI_CUTOFF, Some(young))] {
        let Some(expected) = expected else { continue };
        let h = version(2, multi as u64, bits | HEAP_XMIN_FROZEN);
        let oldest = members.iter().map(|member| member.xid).min().unwrap_or(OLDEST).min(OLDEST);
        let update = members.iter().find(|member| member.updates).map_or(0, |member| member.xid);
        let alone = h.infomask & !HEAP_XMAX_BITS;
        let result = match expected {
            "kept" => (None, oldest, multi),
            "removed" => (Some(without_xmax(h)), OLDEST, OLDEST_MULTI),
            "committed" => {
                let infomask = alone | HEAP_XMAX_COMMITTED;
                (Some(Header { xmax: update, infomask, ..h }), update.min(OLDEST), OLDEST_MULTI)
            }
            "running" => (Some(Header { xmax: update, infomask: alone, ..h }), OLDEST, OLDEST_MULTI),
            _ => panic!("no result {expected}"),
        };
        assert_eq!(plan_multi(multi, bits, members), Ok(result), "multixact {multi} of {members:?}");
    }
}

#[test]
fn lockers_go_when_they_ended() {
    assert_multi(LOCKERS, &[locker(OLD), locker(OLD_ABORTED)], Some("removed"), "removed");
    assert_multi(LOCKERS, &[locker(OLD), locker(RECENT)], Some("removed"), "removed");
    assert_multi(LOCKERS, &[], Some("removed"), "removed");
}

#[test]
fn a_multixact_without_old_members_remains() {
    assert_multi(LOCKERS, &[locker(RECENT), locker(RECENT_ABORTED)], Some("removed"), "kept");
    assert_multi(LOCKERS, &[locker(RECENT), locker(LIVE)], None, "kept");
    assert_multi(MULTI, &[locker(RECENT), updater(LIVE)], None, "kept");
    assert_multi(MULTI, &[locker(RECENT), updater(RECENT)], Some("committed"), "kept");
}

#[test]
fn running_lockers_keep_a_multixact_with_old_members() {
    assert_multi(LOCKERS, &[locker(OLD), locker(LIVE)], None, "kept");
    assert_multi(MULTI, &[locker(OLD), locker(LIVE), updater(RECENT)], None, "kept");
    assert_multi(MULTI, &[locker(LIVE), updater(OLD_ABORTED)], None, "kept");
}

#[test]
fn an_updater_survives_its_lockers() {
    assert_multi(MULTI, &[locker(OLD), updater(RECENT)], Some("committed"), "committed");
    assert_multi(MULTI, &[locker(OLD), updater(LATE)], Some("committed"), "committed");
    assert_multi(MULTI, &[locker(OLD), updater(LIVE)], None, "running");
    assert_multi(MULTI, &[locker(OLD), updater(RECENT_ABORTED)], Some("removed"), "removed");
    assert_multi(MULTI, &[locker(RECENT), updater(OLD_ABORTED)], Some("removed"), "removed");
}

#[test]
fn multixacts_without_meaning_go_unasked() {
    // The world does not know these multixacts: to ask would panic.
    for (multi, bits) in [(0, MULTI), (77, HEAP_XMAX_IS_MULTI | HEAP_XMAX_LOCK_ONLY)] {
        let h = version(2, multi, bits | HEAP_XMIN_FROZEN);
        let mut remaining = FreezeTracker::new(&LIMITS);
        let planned = plan_freeze(&h, &LIMITS, &World::default(), &mut remaining).expect("nothing is wrong");
        assert_eq!(planned, Some(without_xmax(h)));
        assert_eq!(remaining, FreezeTracker::new(&LIMITS));
    }
}

#[test]
fn a_page_left_alone_keeps_everything() {
    let members = [locker(OLD), locker(LIVE)];
    let mut remaining = FreezeTracker::new(&LIMITS);
    let mut would = |h: Header| would_freeze(&h, &LIMITS, &world(&members), &mut remaining).expect("members are known");
    assert!(!would(version(RECENT, RECENT, 0)));
    assert!(would(version(RECENT, MULTI_CUTOFF as u64, LOCKERS)));
    assert!(would(version(OLD_ABORTED, 0, HEAP_XMAX_INVALID)));
    assert!(would(version(2, MULTI_CUTOFF as u64 - 1, LOCKERS)));
    assert_eq!(remaining, FreezeTracker { oldest_xid: OLD, oldest_multi: MULTI_CUTOFF - 1 });
    assert_eq!(FreezeTracker::new(&LIMITS).oldest_xid, OLDEST);
}
