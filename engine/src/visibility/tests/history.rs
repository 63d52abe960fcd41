//! Plays random histories of concurrent transactions and compares every rule with the model's naive answer at every step.

use proptest::prelude::*;

use super::model::{Model, View};
use crate::ids::{Lsn, Tid};
use crate::visibility::*;

/// One step: what, by which session, on which version, and a choice within it.
type Step = (u8, usize, usize, bool);

fn play(model: &mut Model, (what, who, which, choice): Step) {
    if what >= 90 {
        return model.vacuum(who as u64 % 8, which as u32 % 4);
    }
    if model.sessions.is_empty() || what < 8 && model.sessions.len() < 5 {
        return model.begin();
    }
    let session = who % model.sessions.len();
    if what < 14 {
        return model.begin_sub(session);
    } else if what < 28 {
        return model.end_one(session, choice);
    } else if what < 36 {
        return model.take_snapshot(session);
    } else if what < 44 {
        model.sessions[session].command += 1;
        return;
    } else if what < 52 || model.versions.is_empty() {
        return model.insert(session);
    }
    let version = which % model.versions.len();
    if model.versions[version].removed {
        return;
    }
    match what {
        ..62 => model.change(version, session, true, choice),
        62..68 => model.change(version, session, false, choice),
        68..80 => model.lock(version, session, choice),
        _ => {
            model.may_hint = choice;
            model.versions[version].header.infomask |= hints(model, version, session);
        }
    }
}

/// The hints that a session's look at a version gives.
fn hints(model: &Model, version: usize, session: usize) -> u16 {
    let header = model.versions[version].header;
    let view = View(model, Some(model.sessions[session].top));
    let mut hints = 0;
    for taken in model.snapshots.iter().filter(|taken| taken.owner == model.sessions[session].top) {
        satisfies_mvcc(&header, &taken.plain, &view, Lsn(1), &mut hints);
    }
    satisfies_self(&header, &view, Lsn(1), &mut hints);
    satisfies_update(&header, Tid::new(version as u32, 1), model.sessions[session].command, &view, Lsn(1), &mut hints);
    satisfies_vacuum_horizon(&header, &view, Lsn(1), &mut hints, &mut 0);
    hints
}

/// Compares every rule's answer on every version with the history.
fn compare(model: &Model) -> Result<(), TestCaseError> {
    for (at, version) in model.versions.iter().enumerate().filter(|(_, version)| !version.removed) {
        let h = &version.header;
        for taken in &model.snapshots {
            let mut hints = 0;
            let view = View(model, Some(taken.owner));
            let seen = satisfies_mvcc(h, &taken.plain, &view, Lsn(1), &mut hints);
            prop_assert_eq!(seen, model.sees(at, taken), "version {} {:?} and {:?}", at, h, taken);
        }
        for session in &model.sessions {
            let (view, mut hints, mut info, mut dead_after) = (View(model, Some(session.top)), 0, DirtyInfo::default(), 0);
            let there = satisfies_self(h, &view, Lsn(1), &mut hints);
            prop_assert_eq!(there, model.is_there(at, session.top), "self: version {} {:?}", at, h);
            let dirty = satisfies_dirty(h, &view, Lsn(1), &mut hints, &mut info);
            prop_assert_eq!((dirty, info), model.is_there_dirtily(at, session.top), "dirty: version {} {:?}", at, h);
            for command in [session.command, session.command + 1] {
                let result = satisfies_update(h, Tid::new(at as u32, 1), command, &view, Lsn(1), &mut hints);
                let expected = model.can_update(at, session.top, command);
                prop_assert_eq!(result, expected, "update: version {} {:?} in {:?}", at, h, session);
            }
            let state = satisfies_vacuum_horizon(h, &view, Lsn(1), &mut hints, &mut dead_after);
            prop_assert_eq!((state, dead_after), model.tuple_state(at, session.top), "vacuum: version {} {:?}", at, h);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_is_seen_as_it_was(steps in prop::collection::vec((0..96_u8, 0..100_usize, 0..100_usize, any::<bool>()), 1..120)) {
        let mut model = Model::new();
        for step in steps {
            play(&mut model, step);
            compare(&model)?;
        }
    }
}
