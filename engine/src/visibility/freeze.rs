//! Owns the freeze decision: which xids must leave a version before the commit log forgets them, and which remain.

use super::transaction::*;
use crate::error::{Error, Result};
use crate::ids::{FROZEN_XID, INVALID_XID, Xid};
use crate::page::Header;
use crate::page::infomask::*;

/// One holder of a multixact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MultiMember {
    /// The transaction or subtransaction.
    pub xid: Xid,
    /// Whether it updates or deletes; else it only locks. At most one member does.
    pub updates: bool,
}

/// Lists who is in a multixact; only freezing wants all of them.
pub trait MultiMembers {
    /// The members; none if `lock_only` promises that none updates and the multixact is too old for any to run.
    fn multi_members(&self, multi: u32, lock_only: bool) -> Result<Vec<MultiMember>>;
}

/// How old is too old for one VACUUM of one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreezeLimits {
    /// Transactions below are frozen; at most `oldest_xmin`.
    pub freeze_xid: Xid,
    /// The table's relfrozenxid: nothing below may be found.
    pub relfrozen_xid: Xid,
    /// Multixacts before are replaced; at most `oldest_multi`.
    pub multi_cutoff: u32,
    /// The table's relminmxid: no multixact before may be found.
    pub relmin_multi: u32,
    /// Every snapshot calls the transactions below ended, and so relfrozenxid can become this at best.
    pub oldest_xmin: Xid,
    /// No multixact before has a running member, and so relminmxid can become this at best.
    pub oldest_multi: u32,
}

/// The oldest ids that a table keeps: after a VACUUM that saw every version, its new relfrozenxid and relminmxid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreezeTracker {
    /// No version has an xid below, alone or in a multixact.
    pub oldest_xid: Xid,
    /// No version has a multixact before.
    pub oldest_multi: u32,
}

impl FreezeTracker {
    /// The tracker of a table without versions.
    pub fn new(limits: &FreezeLimits) -> FreezeTracker {
        FreezeTracker { oldest_xid: limits.oldest_xmin, oldest_multi: limits.oldest_multi }
    }

    fn keep_xid(&mut self, xid: Xid) {
        if xid > FROZEN_XID {
            self.oldest_xid = self.oldest_xid.min(xid);
        }
    }

    fn keep_multi(&mut self, multi: u32) {
        if multi_precedes(multi, self.oldest_multi) {
            self.oldest_multi = multi;
        }
    }
}

/// Whether a multixact is older than another one; their numbers have 32 bits and wrap around.
#[inline]
fn multi_precedes(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

/// The header that the version must get, if any; what remains in it goes into `remaining` (`heap_prepare_freeze_tuple`).
///
/// The version must have been pruned with `oldest_xmin` under the same latch, and so is not dead: an old deleter that committed
/// is an error. So is an id below what the table promises: its status may be forgotten already, and a guess would bring back or
/// lose a row. The change must be logged; hints would not do, since they leave the xid in place.
///
/// Unlike heap, no new multixact is made: one whose lockers still run stays as it is and holds `remaining` back by its oldest
/// member. It goes with the first VACUUM after its lockers have ended.
pub fn plan_freeze(
    h: &Header,
    limits: &FreezeLimits,
    st: &(impl TransactionStatus + MultiMembers),
    remaining: &mut FreezeTracker,
) -> Result<Option<Header>> {
    let mut kept = *remaining;
    let mut frozen = *h;
    freeze_xmin(&mut frozen, limits, st, &mut kept)?;
    if h.infomask & HEAP_XMAX_IS_MULTI != 0 {
        freeze_multi(&mut frozen, limits, st, &mut kept)?;
    } else {
        freeze_plain_xmax(&mut frozen, limits, st, &mut kept)?;
    }
    *remaining = kept;
    Ok((frozen != *h).then_some(frozen))
}

fn freeze_xmin(h: &mut Header, limits: &FreezeLimits, st: &impl TransactionStatus, kept: &mut FreezeTracker) -> Result<()> {
    let xmin = h.effective_xmin();
    if xmin <= FROZEN_XID {
        return Ok(());
    }
    if xmin < limits.relfrozen_xid {
        return Err(Error::corrupt(format!("found xmin {xmin} from before relfrozenxid {}", limits.relfrozen_xid)));
    }
    if xmin >= limits.freeze_xid {
        kept.keep_xid(xmin);
        return Ok(());
    }
    if !st.did_commit(xmin) {
        let limit = limits.freeze_xid;
        return Err(Error::corrupt(format!("uncommitted xmin {xmin} from before xid cutoff {limit} needs to be frozen")));
    }
    h.infomask |= HEAP_XMIN_FROZEN;
    Ok(())
}

fn freeze_plain_xmax(h: &mut Header, limits: &FreezeLimits, st: &impl TransactionStatus, kept: &mut FreezeTracker) -> Result<()> {
    let xmax = h.xmax;
    if xmax <= FROZEN_XID {
        if xmax == INVALID_XID || h.infomask & HEAP_XMAX_INVALID != 0 {
            return Ok(());
        }
        let mask = h.infomask;
        return Err(Error::corrupt(format!("found xmax {xmax} (infomask 0x{mask:04x}) not frozen, not multi, not normal")));
    }
    if xmax < limits.relfrozen_xid {
        return Err(Error::corrupt(format!("found xmax {xmax} from before relfrozenxid {}", limits.relfrozen_xid)));
    }
    if xmax >= limits.freeze_xid {
        kept.keep_xid(xmax);
        return Ok(());
    }
    // A lock ends with its holder, whether that committed or not.
    if !xmax_is_locked_only(h.infomask) && st.did_commit(xmax) {
        return Err(Error::corrupt(format!("cannot freeze committed xmax {xmax}")));
    }
    remove_xmax(h);
    Ok(())
}

fn freeze_multi(
    h: &mut Header,
    limits: &FreezeLimits,
    st: &(impl TransactionStatus + MultiMembers),
    kept: &mut FreezeTracker,
) -> Result<()> {
    let multi = h.xmax as u32;
    if multi == 0 || locked_upgraded(h.infomask) {
        remove_xmax(h);
        return Ok(());
    }
    if multi_precedes(multi, limits.relmin_multi) {
        let min = limits.relmin_multi;
        return Err(Error::corrupt(format!("found multixact {multi} from before relminmxid {min}")));
    }
    let members = st.multi_members(multi, xmax_is_locked_only(h.infomask))?;
    let expired = multi_precedes(multi, limits.multi_cutoff);
    if expired && members.iter().any(|member| is_running(member.xid, st)) {
        let cutoff = limits.multi_cutoff;
        return Err(Error::corrupt(format!("multixact {multi} from before cutoff {cutoff} found to be still running")));
    }
    let old_member = members.iter().any(|member| member.xid < limits.freeze_xid);
    let updater = if expired || old_member { live_updater(&members, limits, st)? } else { None };
    let lockers_run = || members.iter().any(|member| !member.updates && is_running(member.xid, st));
    if !members.is_empty() && !expired && (!old_member || lockers_run()) {
        kept.keep_multi(multi);
        members.iter().for_each(|member| kept.keep_xid(member.xid));
        return Ok(());
    }
    match updater {
        None => remove_xmax(h),
        Some((xid, state)) => {
            kept.keep_xid(xid);
            // HEAP_KEYS_UPDATED is in the other mask and stays: it belongs to the updater.
            h.infomask &= !HEAP_XMAX_BITS;
            h.xmax = xid;
            if state == XidState::Committed {
                h.infomask |= HEAP_XMAX_COMMITTED;
            }
        }
    }
    Ok(())
}

/// The updating member with its state, unless it aborted.
fn live_updater(members: &[MultiMember], limits: &FreezeLimits, st: &impl TransactionStatus) -> Result<Option<(Xid, XidState)>> {
    let Some(xid) = members.iter().find(|member| member.updates).map(|member| member.xid) else {
        return Ok(None);
    };
    if xid < limits.relfrozen_xid {
        return Err(Error::corrupt(format!("found update xid {xid} from before relfrozenxid {}", limits.relfrozen_xid)));
    }
    let state = xid_state_now(xid, st);
    if state == XidState::Aborted {
        return Ok(None);
    }
    if xid < limits.freeze_xid {
        return Err(Error::corrupt(format!("found update xid {xid} from before xid cutoff {}", limits.freeze_xid)));
    }
    Ok(Some((xid, state)))
}

/// Takes out an xmax that means nothing any more, with everything that belongs to it.
fn remove_xmax(h: &mut Header) {
    h.xmax = INVALID_XID;
    h.cmax = 0;
    h.infomask = h.infomask & !HEAP_XMAX_BITS | HEAP_XMAX_INVALID;
    h.infomask2 &= !(HEAP_HOT_UPDATED | HEAP_KEYS_UPDATED);
}

/// Whether the limits demand that [`plan_freeze`] changes the version, which may be dead; takes everything in it into `remaining`, as
/// for a page that VACUUM leaves as it is (`heap_tuple_would_freeze`).
///
/// # Errors
/// Those of looking up the members of a multixact.
pub fn would_freeze(h: &Header, limits: &FreezeLimits, st: &impl MultiMembers, remaining: &mut FreezeTracker) -> Result<bool> {
    let xmin = h.effective_xmin();
    remaining.keep_xid(xmin);
    let old_xmin = xmin > FROZEN_XID && xmin < limits.freeze_xid;
    if h.infomask & HEAP_XMAX_IS_MULTI == 0 {
        remaining.keep_xid(h.xmax);
        return Ok(old_xmin || h.xmax > FROZEN_XID && h.xmax < limits.freeze_xid);
    }
    let multi = h.xmax as u32;
    if multi == 0 {
        return Ok(old_xmin);
    }
    remaining.keep_multi(multi);
    if locked_upgraded(h.infomask) {
        return Ok(true);
    }
    let members = st.multi_members(multi, xmax_is_locked_only(h.infomask))?;
    members.iter().for_each(|member| remaining.keep_xid(member.xid));
    let old_member = members.iter().any(|member| member.xid < limits.freeze_xid);
    Ok(old_xmin || old_member || multi_precedes(multi, limits.multi_cutoff))
}
