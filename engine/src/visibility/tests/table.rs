//! A literal truth table: every kind of inserter against every kind of xmax, for every rule.
//!
//! The tables follow the manual's words, not the implementation: a version is visible if its inserter committed before the snapshot
//! (or is this transaction in an earlier command) and no deleter did; row locks never hide a version; UPDATE waits for running
//! transactions that changed or locked a version, and so on. A dot marks what cannot be: nobody changes a version he cannot see.

use super::world::{State, World, locker, updater};
use crate::ids::{Lsn, Tid, Xid};
use crate::page::infomask::*;
use crate::page::{Header, TupleState};
use crate::visibility::*;

const OWN: Tid = Tid::new(7, 3);
const NEXT: Tid = Tid::new(7, 4);
const CURCID: u32 = 5;

// Transactions: me and a subtransaction of mine that aborted; others that ended before the snapshot; others that the snapshot calls
// running, by what they are now; others that began after it.
const ME: Xid = (1 << 32) + 100;
const MY_SUB: Xid = ME + 1;
const MY_ABORTED_SUB: Xid = ME + 2;
const EARLY: Xid = ME - 90;
const EARLY_ABORTED: Xid = ME - 89;
const RUNNING: Xid = ME - 50;
const ENDED: Xid = ME - 49;
const ENDED_ABORTED: Xid = ME - 48;
const LATE: Xid = ME + 101;
const LATE_ABORTED: Xid = ME + 102;
const LATE_RUNNING: Xid = ME + 103;

fn snapshot() -> PlainSnapshot {
    PlainSnapshot { xmin: RUNNING, xmax: ME + 50, curcid: CURCID, running: vec![ENDED_ABORTED, RUNNING, ENDED] }
}

fn world(may_hint: bool) -> World {
    let states = [
        (ME, State::Current),
        (MY_SUB, State::Current),
        (MY_ABORTED_SUB, State::Aborted),
        (EARLY, State::Committed),
        (EARLY_ABORTED, State::Aborted),
        (RUNNING, State::Running),
        (ENDED, State::Committed),
        (ENDED_ABORTED, State::Aborted),
        (LATE, State::Committed),
        (LATE_ABORTED, State::Aborted),
        (LATE_RUNNING, State::Running),
    ];
    let multis = [
        (1, vec![locker(RUNNING), locker(EARLY)]),
        (2, vec![locker(EARLY), locker(ENDED_ABORTED)]),
        (3, vec![locker(ME), locker(EARLY)]),
        (4, vec![locker(EARLY_ABORTED), updater(EARLY)]),
        (5, vec![locker(RUNNING), updater(EARLY)]),
        (6, vec![locker(EARLY), updater(ENDED)]),
        (7, vec![locker(EARLY), updater(LATE)]),
        (8, vec![locker(EARLY), updater(RUNNING)]),
        (9, vec![locker(EARLY), updater(EARLY_ABORTED)]),
        (10, vec![locker(RUNNING), updater(EARLY_ABORTED)]),
        (11, vec![locker(EARLY), updater(ME)]),
        (12, vec![locker(RUNNING), updater(MY_SUB)]),
        (13, vec![locker(EARLY), updater(MY_ABORTED_SUB)]),
        (14, vec![locker(RUNNING), updater(MY_ABORTED_SUB)]),
    ];
    World { states: states.into(), multis: multis.into(), may_hint }
}

/// Sets up the inserter that a column of the tables names.
fn with_inserter(name: &str) -> Header {
    let (xmin, cmin, infomask) = match name {
        "frozen" => (LATE_RUNNING, 0, HEAP_XMIN_FROZEN),
        "oldfrozen" => (2, 0, 0),
        "early" => (EARLY, 0, 0),
        "early+" => (EARLY, 0, HEAP_XMIN_COMMITTED),
        "mine" => (ME, CURCID - 1, 0),
        "subs" => (MY_SUB, 0, 0),
        "minenow" => (ME, CURCID, 0),
        "ended" => (ENDED, 0, 0),
        "ended+" => (ENDED, 0, HEAP_XMIN_COMMITTED),
        "late" => (LATE, 0, 0),
        "late+" => (LATE, 0, HEAP_XMIN_COMMITTED),
        "running" => (RUNNING, 0, 0),
        "laterun" => (LATE_RUNNING, 0, 0),
        "aborted" => (EARLY_ABORTED, 0, 0),
        "ended-" => (ENDED_ABORTED, 0, 0),
        "hinted-" => (EARLY_ABORTED, 0, HEAP_XMIN_INVALID),
        "mysub-" => (MY_ABORTED_SUB, 0, 0),
        "late-" => (LATE_ABORTED, 0, 0),
        "killed" => (0, 0, 0),
        _ => panic!("no inserter {name}"),
    };
    Header { xmin, cmin, infomask, ctid: NEXT, ..Header::default() }
}

/// Adds the xmax that a row of the tables names.
fn add_xmax(h: &mut Header, name: &str) {
    const LOCK: u16 = HEAP_XMAX_LOCK_ONLY | HEAP_XMAX_KEYSHR_LOCK;
    const LOCKERS: u16 = LOCK | HEAP_XMAX_IS_MULTI;
    const EXCL: u16 = HEAP_XMAX_EXCL_LOCK;
    const MULTI: u16 = HEAP_XMAX_IS_MULTI | HEAP_XMAX_EXCL_LOCK;
    let (xmax, cmax, bits) = match name {
        "none" => (0, 0, HEAP_XMAX_INVALID),
        "zero" => (0, 0, 0),
        "invalid+" => (EARLY_ABORTED, 0, HEAP_XMAX_INVALID),
        "lock_me" => (ME, 0, LOCK),
        "lock_running" => (RUNNING, 0, LOCK),
        "lock_running_9.2" => (RUNNING, 0, EXCL),
        "lock_early" => (EARLY, 0, LOCK),
        "lock_early_9.2" => (EARLY, 0, EXCL),
        "lock_early+" => (EARLY, 0, LOCK | HEAP_XMAX_COMMITTED),
        "lock_aborted" => (EARLY_ABORTED, 0, LOCK),
        "lock_late" => (LATE, 0, LOCK),
        "me_before" => (ME, CURCID - 1, 0),
        "me_now" => (ME, CURCID, 0),
        "sub_before" => (MY_SUB, 0, 0),
        "mysub-" => (MY_ABORTED_SUB, 0, 0),
        "early" => (EARLY, 0, 0),
        "early+" => (EARLY, 0, HEAP_XMAX_COMMITTED),
        "ended" => (ENDED, 0, 0),
        "ended+" => (ENDED, 0, HEAP_XMAX_COMMITTED),
        "late" => (LATE, 0, 0),
        "late+" => (LATE, 0, HEAP_XMAX_COMMITTED),
        "running" => (RUNNING, 0, 0),
        "laterun" => (LATE_RUNNING, 0, 0),
        "aborted" => (EARLY_ABORTED, 0, 0),
        "ended-" => (ENDED_ABORTED, 0, 0),
        "late-" => (LATE_ABORTED, 0, 0),
        "m_lock_running" => (1, 0, LOCKERS),
        "m_lock_gone" => (2, 0, LOCKERS),
        "m_lock_me" => (3, 0, LOCKERS),
        "m_lock_9.2" => (999, 0, HEAP_XMAX_IS_MULTI | HEAP_XMAX_LOCK_ONLY),
        "m_early" => (4, 0, MULTI),
        "m_early_locked" => (5, 0, MULTI),
        "m_ended" => (6, 0, MULTI),
        "m_late" => (7, 0, MULTI),
        "m_running" => (8, 0, MULTI),
        "m_aborted" => (9, 0, MULTI),
        "m_aborted_locked" => (10, 0, MULTI),
        "m_me_before" => (11, CURCID - 1, MULTI),
        "m_me_now" => (11, CURCID, MULTI),
        "m_sub_before" => (12, 0, MULTI),
        "m_mysub-" => (13, 0, MULTI),
        "m_mysub-_locked" => (14, 0, MULTI),
        _ => panic!("no xmax {name}"),
    };
    h.xmax = xmax;
    h.cmax = cmax;
    h.infomask |= bits;
}

/// Versions that each rule sees, or what it answers instead; rows are kinds of xmax, columns the rules.
///
/// mvcc, self: `+` visible, `-` not. dirty: `d` is visible with a deleter reported. update: `O`k, `I`nvisible, `S`elf-modified,
/// `U`pdated, `B`eing modified. vacuum: `L`ive, `D`eletion in progress, `I`nsertion in progress, `R`ecently dead.
const OF_COMMITTED: &str = "
    xmax              mvcc self dirty update vacuum
    none              +    +    +     O      L
    zero              +    +    +     O      L
    invalid+          +    +    +     O      L
    lock_me           +    +    +     B      L
    lock_running      +    +    +     B      L
    lock_running_9.2  +    +    +     B      L
    lock_early        +    +    +     O      L
    lock_early_9.2    +    +    +     O      L
    lock_early+       +    +    +     O      L
    lock_aborted      +    +    +     O      L
    lock_late         +    +    +     O      L
    me_before         -    -    -     I      D
    me_now            +    -    -     S      D
    sub_before        -    -    -     I      D
    mysub-            +    +    +     O      L
    early             -    -    -     U      R
    early+            -    -    -     U      R
    ended             +    -    -     U      R
    ended+            +    -    -     U      R
    late              +    -    -     U      R
    late+             +    -    -     U      R
    running           +    +    d     B      D
    laterun           +    +    d     B      D
    aborted           +    +    +     O      L
    ended-            +    +    +     O      L
    late-             +    +    +     O      L
    m_lock_running    +    +    +     B      L
    m_lock_gone       +    +    +     O      L
    m_lock_me         +    +    +     B      L
    m_lock_9.2        +    +    +     O      L
    m_early           -    -    -     U      R
    m_early_locked    -    -    -     B      R
    m_ended           +    -    -     U      R
    m_late            +    -    -     U      R
    m_running         +    +    d     B      D
    m_aborted         +    +    +     O      L
    m_aborted_locked  +    +    +     B      L
    m_me_before       -    -    -     I      D
    m_me_now          +    -    -     S      D
    m_sub_before      -    -    -     I      D
    m_mysub-          +    +    +     O      L
    m_mysub-_locked   +    +    +     B      L
";

/// The same for a version that an earlier command of this transaction inserted. Another transaction cannot change it, but may hold a
/// lock that came with an update.
const OF_OWN: &str = "
    xmax              mvcc self dirty update vacuum
    none              +    +    +     O      I
    zero              +    +    +     O      I
    lock_me           +    +    +     B      I
    lock_running      +    +    +     B      I
    lock_early        +    +    +     O      I
    lock_aborted      +    +    +     O      I
    me_before         -    -    -     I      D
    me_now            +    -    -     S      D
    sub_before        -    -    -     I      D
    mysub-            +    +    +     O      I
    m_lock_running    +    +    +     B      I
    m_lock_gone       +    +    +     O      I
    m_lock_me         +    +    +     B      I
    m_me_before       -    -    -     I      D
    m_me_now          +    -    -     S      D
    m_sub_before      -    -    -     I      D
    m_mysub-          +    +    +     O      I
    m_mysub-_locked   +    +    +     B      I
";

/// What the inserter alone decides; in `dirty`, `i` is visible with the inserter reported. Where a column says `x`, xmax decides, by
/// the table above that `xmax` names; for the inserters that ended after the snapshot it decides for every rule but mvcc.
const INSERTERS: &str = "
    inserter   mvcc self dirty update vacuum  xmax
    frozen     x    x    x     x      x       committed
    oldfrozen  x    x    x     x      x       committed
    early      x    x    x     x      x       committed
    early+     x    x    x     x      x       committed
    ended      -    x    x     x      x       committed
    ended+     -    x    x     x      x       committed
    late       -    x    x     x      x       committed
    late+      -    x    x     x      x       committed
    mine       x    x    x     x      x       own
    subs       x    x    x     x      x       own
    minenow    -    x    x     I      x       own
    running    -    -    i     I      I       committed
    laterun    -    -    i     I      I       committed
    aborted    -    -    -     I      X       committed
    ended-     -    -    -     I      X       committed
    hinted-    -    -    -     I      X       committed
    mysub-     -    -    -     I      X       committed
    killed     -    -    -     I      X       committed
";

/// What each rule reports for the next reader: `C`ommitted or `A`borted inserter, `c`ommitted or `a`borted (or unlocked) xmax.
const HINTS: &str = "
    inserter  xmax              mvcc self dirty update vacuum
    early     none              C    C    C     C      C
    early     early             Cc   Cc   Cc    Cc     Cc
    early     aborted           Ca   Ca   Ca    Ca     Ca
    early     running           C    C    C     C      C
    early     me_before         C    C    C     C      C
    early     ended             C    Cc   Cc    Cc     Cc
    early     late-             C    Ca   Ca    Ca     Ca
    early     lock_running      C    C    C     C      C
    early     lock_me           C    C    C     C      C
    early     lock_early        C    Ca   Ca    Ca     Ca
    early     lock_aborted      C    Ca   Ca    Ca     Ca
    early     lock_early+       C    C    C     C      C
    early     m_lock_running    C    C    C     C      C
    early     m_lock_gone       C    C    C     Ca     Ca
    early     m_lock_9.2        C    C    C     C      Ca
    early     m_early           C    C    C     C      C
    early     m_aborted         C    C    C     Ca     Ca
    early     m_aborted_locked  C    C    C     C      C
    ended     none              .    C    C     C      C
    late      early             .    Cc   Cc    Cc     Cc
    aborted   none              A    A    A     A      A
    killed    none              A    A    A     A      A
    late-     early             .    A    A     A      A
    running   early             .    .    .     .      .
    mine      none              .    .    .     .      .
    mine      lock_early        .    .    .     .      .
    mine      me_now            .    .    .     .      .
    mine      mysub-            a    a    a     a      a
    mine      m_mysub-          .    .    .     .      .
    minenow   mysub-            .    a    a     .      a
    early+    none              .    .    .     .      .
    frozen    ended             .    c    c     c      c
";

fn rows(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|cells| !cells.is_empty()).skip(1)
}

/// Every combination with its expected answers, in the order mvcc, self, dirty, update, vacuum.
fn cases() -> Vec<(String, Header, Vec<&'static str>)> {
    let mut cases = Vec::new();
    for inserter in rows(INSERTERS) {
        let by_xmax = if inserter[6] == "own" { OF_OWN } else { OF_COMMITTED };
        for xmax in rows(by_xmax) {
            let mut header = with_inserter(inserter[0]);
            add_xmax(&mut header, xmax[0]);
            let expected = (1..6).map(|rule| if inserter[rule] == "x" { xmax[rule] } else { inserter[rule] }).collect();
            cases.push((format!("inserter {}, xmax {}", inserter[0], xmax[0]), header, expected));
        }
    }
    cases
}

fn plain(visible: bool) -> &'static str {
    if visible { "+" } else { "-" }
}

/// The answers of all rules in the tables' words, and all their hints together.
fn answers(h: &Header, world: &World) -> (Vec<&'static str>, u16) {
    let (answers, hints) = answers_and_hints(h, world);
    (answers, hints.into_iter().fold(0, |all, hints| all | hints))
}

fn answers_and_hints(h: &Header, world: &World) -> (Vec<&'static str>, [u16; 5]) {
    let (lsn, mut hints) = (Lsn(1), [0; 5]);
    let mvcc = plain(satisfies_mvcc(h, &snapshot(), world, lsn, &mut hints[0]));
    let own = plain(satisfies_self(h, world, lsn, &mut hints[1]));

    let mut info = DirtyInfo { xmin: 77, xmax: 77, speculative_token: 77 };
    let dirty = match satisfies_dirty(h, world, lsn, &mut hints[2], &mut info) {
        visible if info == DirtyInfo::default() => plain(visible),
        true if info == (DirtyInfo { xmin: h.xmin, ..DirtyInfo::default() }) => "i",
        true if info == (DirtyInfo { xmax: update_xid(h, world), ..DirtyInfo::default() }) => "d",
        _ => "wrong report",
    };

    let update = match satisfies_update(h, OWN, CURCID, world, lsn, &mut hints[3]) {
        TmResult::Ok => "O",
        TmResult::Invisible => "I",
        TmResult::SelfModified => "S",
        TmResult::Updated => "U",
        TmResult::Deleted => "deleted",
        TmResult::BeingModified => "B",
    };

    let mut dead_after = 77;
    let vacuum = match (satisfies_vacuum_horizon(h, world, lsn, &mut hints[4], &mut dead_after), dead_after) {
        (TupleState::Live, 0) => "L",
        (TupleState::Dead, 0) => "X",
        (TupleState::InsertInProgress, 0) => "I",
        (TupleState::DeleteInProgress, 0) => "D",
        (TupleState::RecentlyDead, xid) if xid == update_xid(h, world) => "R",
        _ => "wrong dead_after",
    };
    (vec![mvcc, own, dirty, update, vacuum], hints)
}

#[test]
fn answers_follow_the_tables() {
    let cases = cases();
    assert!(cases.len() > 600, "{} cases", cases.len());
    for (name, header, expected) in cases {
        let (found, _) = answers(&header, &world(false));
        assert_eq!(found, expected, "{name}: mvcc, self, dirty, update, vacuum");
    }
}

#[test]
fn hints_change_no_answer() {
    let world = world(true);
    for (name, mut header, expected) in cases() {
        let (_, hints) = answers(&header, &world);
        assert_eq!(hints & !HINT_BITS, 0, "{name}: hints {hints:04x}");
        header.infomask |= hints;
        let (found, again) = answers(&header, &world);
        assert_eq!(found, expected, "{name} with hints {hints:04x}");
        assert_eq!(again & !header.infomask, 0, "{name}: all that can be learnt is learnt at once");
    }
}

#[test]
fn what_is_learnt_is_hinted() {
    let bits = [('C', HEAP_XMIN_COMMITTED), ('A', HEAP_XMIN_INVALID), ('c', HEAP_XMAX_COMMITTED), ('a', HEAP_XMAX_INVALID)];
    for row in rows(HINTS) {
        let mut header = with_inserter(row[0]);
        add_xmax(&mut header, row[1]);
        let (_, hints) = answers_and_hints(&header, &world(true));
        let found = hints.map(|hints| bits.iter().filter(|(_, bit)| hints & bit != 0).map(|(name, _)| name).collect::<String>());
        let expected: Vec<&str> = row[2..].iter().map(|cell| cell.trim_matches('.')).collect();
        assert_eq!(found.to_vec(), expected, "inserter {}, xmax {}", row[0], row[1]);
    }
}

#[test]
fn committed_is_hinted_only_with_leave() {
    let hinted = |may_hint| {
        let worlds = world(may_hint);
        let asked = cases().into_iter().filter(|(_, header, _)| header.xmin != 2);
        asked.map(|(_, header, _)| answers(&header, &worlds).1).fold(0, |all, hints| all | hints)
    };
    assert_eq!(hinted(true), HINT_BITS);
    assert_eq!(hinted(false), HEAP_XMIN_INVALID | HEAP_XMAX_INVALID);
}

#[test]
fn a_snapshot_learns_nothing_of_what_it_calls_running() {
    let world = world(true);
    for name in ["ended", "late", "running", "laterun", "ended-"] {
        let mut hints = 0;
        assert!(!satisfies_mvcc(&with_inserter(name), &snapshot(), &world, Lsn(1), &mut hints));
        let mut deleted = with_inserter("early+");
        add_xmax(&mut deleted, name);
        assert!(satisfies_mvcc(&deleted, &snapshot(), &world, Lsn(1), &mut hints));
        assert_eq!(hints, 0, "{name}");
    }
}

#[test]
fn without_a_next_version_it_is_a_deletion() {
    let world = world(false);
    for (name, mut header, expected) in cases() {
        header.ctid = OWN;
        let result = satisfies_update(&header, OWN, CURCID, &world, Lsn(1), &mut 0);
        assert_eq!(result == TmResult::Deleted, expected[3] == "U", "{name}");
        assert_ne!(result, TmResult::Updated, "{name}");
    }
    let mut moved = with_inserter("early");
    add_xmax(&mut moved, "early");
    moved.ctid = Tid::new(u32::MAX, MOVED_PARTITIONS_OFFSET);
    assert_eq!(satisfies_update(&moved, OWN, CURCID, &world, Lsn(1), &mut 0), TmResult::Updated);
}

#[test]
fn a_speculative_token_is_reported_while_the_inserter_runs() {
    let world = world(false);
    let report = |inserter| {
        let mut header = with_inserter(inserter);
        header.infomask |= HEAP_XMAX_INVALID;
        header.ctid = Tid::new(4711, SPECULATIVE_OFFSET);
        let mut info = DirtyInfo::default();
        (satisfies_dirty(&header, &world, Lsn(1), &mut 0, &mut info), info)
    };
    assert_eq!(report("running"), (true, DirtyInfo { xmin: RUNNING, xmax: 0, speculative_token: 4711 }));
    assert_eq!(report("mine"), (true, DirtyInfo::default()));
    assert_eq!(report("killed"), (false, DirtyInfo::default()));
}

#[test]
fn a_horizon_decides_on_the_recently_dead() {
    let world = world(true);
    for (name, mut header, expected) in cases() {
        let deleter = update_xid(&header, &world);
        for (horizon, passed) in [(deleter, false), (deleter + 1, true)] {
            let dead = expected[4] == "X" || expected[4] == "R" && passed;
            let state = satisfies_vacuum(&header, horizon, &world, Lsn(1), &mut 0);
            assert_eq!(state == TupleState::Dead, dead, "{name}");
            let needed = satisfies_non_vacuumable(&header, &world, Lsn(1), &mut 0, |xid| xid < horizon);
            assert_eq!(needed, !dead, "{name}");
            assert!(!is_surely_dead(&header, |xid| xid < horizon) || dead, "{name}");
        }
        // With all hints set, only multixacts leave a doubt.
        header.infomask |= answers(&header, &world).1;
        let dead = expected[4] == "X" || expected[4] == "R" && header.infomask & HEAP_XMAX_IS_MULTI == 0;
        assert_eq!(is_surely_dead(&header, |_| true), dead, "{name}");
    }
}

#[test]
fn a_multixact_is_never_surely_dead() {
    let mut header = with_inserter("early+");
    add_xmax(&mut header, "m_early");
    header.infomask |= HEAP_XMAX_COMMITTED;
    assert!(!is_surely_dead(&header, |_| true), "its number is no xid to compare");
}

#[test]
fn only_locked_means_no_live_updater() {
    // A plain updater's end is known by its hint only.
    let updated = ["me_before", "me_now", "sub_before", "mysub-", "early", "early+", "ended", "ended+", "late", "late+"];
    let updated = [&updated[..], &["running", "laterun", "aborted", "ended-", "late-"]].concat();
    let multis = ["m_early", "m_early_locked", "m_ended", "m_late", "m_running", "m_me_before", "m_me_now", "m_sub_before"];
    // The form from before 9.3 is no business of this rule.
    let old_form = ["lock_running_9.2", "lock_early_9.2"];
    let expected = [&updated[..], &multis, &old_form].concat();
    for row in rows(OF_COMMITTED) {
        let mut header = with_inserter("early");
        add_xmax(&mut header, row[0]);
        assert_eq!(header_is_only_locked(&header, &world(false)), !expected.contains(&row[0]), "{}", row[0]);
    }
}

#[test]
fn update_xid_looks_into_multixacts_that_update() {
    let found = |name| {
        let mut header = with_inserter("early");
        add_xmax(&mut header, name);
        update_xid(&header, &world(false))
    };
    assert_eq!(found("m_early_locked"), EARLY);
    assert_eq!(found("m_aborted"), EARLY_ABORTED);
    assert_eq!(found("m_lock_running"), 1);
    assert_eq!(found("late"), LATE);
    assert_eq!(found("none"), 0);
}
