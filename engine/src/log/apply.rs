//! Replays a log record on a page, with the functions the backend used.

use super::decode::{Group, Op};
use crate::error::{Error, Result};
use crate::ids::Lsn;
use crate::page::{COLD, PageKind, PageMut};

/// Replays a group if the page has not seen it yet; tells whether it did.
///
/// # Errors
/// `Corrupt` when the record does not suit the page, which is in no certain state then.
pub fn apply_group(group: &Group<'_>, record_end: Lsn, page: &mut PageMut<'_>) -> Result<bool> {
    if page.as_page().lsn() >= record_end {
        return Ok(false);
    }
    apply_ops(group.ops.clone(), page)?;
    page.clear_flags(COLD);
    page.set_lsn(record_end);
    Ok(true)
}

/// Does operations to a page, whatever its LSN.
///
/// # Errors
/// As [`apply_group`].
pub fn apply_ops<'a>(ops: impl IntoIterator<Item = Op<'a>>, page: &mut PageMut<'_>) -> Result<()> {
    ops.into_iter().try_for_each(|op| apply(&op, page))
}

fn apply(op: &Op<'_>, page: &mut PageMut<'_>) -> Result<()> {
    match *op {
        Op::Init { kind, partition } => page.init(kind, partition),
        Op::Image(compact) => page.from_compact(compact)?,
        Op::PackedImage { length, packed } => {
            let compact = lz4_flex::block::decompress(packed, length).map_err(|error| unsuited(op).with_source(error))?;
            page.from_compact(&compact)?;
        }
        Op::Free => page.init(PageKind::Unused, 0),
        Op::Overflow { partition, refcount, total, payload } => {
            if payload.len() > total as usize {
                return Err(unsuited(op));
            }
            page.init_overflow(partition, refcount, total, payload);
        }
        Op::Refcount(refcount) => {
            require(PageKind::Overflow, op, page)?;
            page.set_overflow_refcount(refcount);
        }
        Op::User { .. } | Op::SplitUsers | Op::Partition { .. } | Op::Chain { .. } => apply_to_map(op, page)?,
        _ => {
            require(PageKind::Data, op, page)?;
            apply_to_rows(op, page)?;
        }
    }
    Ok(())
}

fn apply_to_map(op: &Op<'_>, page: &mut PageMut<'_>) -> Result<()> {
    let done = match *op {
        Op::User { partition, name } => page.add_user(partition, name),
        Op::Partition { index, entry } => page.set_partition_entry(index, entry),
        Op::Chain { index, entry } => page.set_chain_entry(index, entry),
        _ => {
            require(PageKind::Users, op, page)?;
            page.split_users();
            true
        }
    };
    if done { Ok(()) } else { Err(unsuited(op)) }
}

fn apply_to_rows(op: &Op<'_>, page: &mut PageMut<'_>) -> Result<()> {
    match op {
        Op::Insert { offset, header, body } => {
            page.add_row(header, body, Some(*offset)).ok_or_else(|| unsuited(op))?;
            check_added(*offset, op, page)
        }
        Op::InsertFull { offset, version } => {
            page.add_version(version, Some(*offset)).ok_or_else(|| unsuited(op))?;
            check_added(*offset, op, page)
        }
        Op::Header { offset, header } => {
            page.set_header(*offset, header)?;
            check_added(*offset, op, page)
        }
        Op::Flags { set, clear } => {
            page.set_flags(*set);
            page.clear_flags(*clear);
            Ok(())
        }
        Op::PruneXid(xid) => {
            page.set_prune_xid(*xid);
            Ok(())
        }
        Op::Prune(prune) => page.apply_prune(&prune.actions()),
        Op::Seconds(seconds) => {
            page.set_seconds(*seconds);
            Ok(())
        }
        Op::Expire(offsets) => page.expire(&offsets.iter().collect::<Vec<_>>()),
        Op::Unused(offsets) => page.mark_unused(&offsets.iter().collect::<Vec<_>>()),
        _ => Err(unsuited(op)),
    }
}

/// No log record may make a page that fails its check.
fn check_added(offset: u16, op: &Op<'_>, page: &PageMut<'_>) -> Result<()> {
    let well_formed = page.as_page().version(offset).is_some_and(|version| version.is_well_formed());
    if well_formed { Ok(()) } else { Err(unsuited(op)) }
}

fn require(kind: PageKind, op: &Op<'_>, page: &PageMut<'_>) -> Result<()> {
    if page.as_page().kind() == kind { Ok(()) } else { Err(unsuited(op)) }
}

#[cold]
fn unsuited(op: &Op<'_>) -> Error {
    let name = match op {
        Op::Init { .. } => "initialisation",
        Op::Image(_) | Op::PackedImage { .. } => "page image",
        Op::Free => "release",
        Op::Overflow { .. } => "overflow chunk",
        Op::Insert { .. } | Op::InsertFull { .. } => "insertion",
        Op::Header { .. } => "header change",
        Op::Flags { .. } => "flag change",
        Op::PruneXid(_) => "prune xid",
        Op::Prune(_) => "prune",
        Op::Unused(_) => "release of line pointers",
        Op::Refcount(_) => "reference count",
        Op::User { .. } => "new user",
        Op::SplitUsers => "split of users",
        Op::Partition { .. } => "list of blocks",
        Op::Chain { .. } => "owner of a block",
        Op::Seconds(_) => "time of a page",
        Op::Expire(_) => "expiry of rows",
    };
    Error::corrupt(format!("log record's {name} does not suit its page"))
}
