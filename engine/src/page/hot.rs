//! Follows the chains of versions within a page that start where an index points.
//!
//! A chain goes from a version with `HEAP_HOT_UPDATED` to the one its ctid names, if that one's xmin is the transaction that
//! updated the first; otherwise the place has been reused since and the chain ends.

use super::*;

/// What the walk along a chain asks its caller.
pub trait ChainVisitor {
    /// Whether the snapshot sees the version. Hint bits learned go into the header too: an aborted update ends its chain.
    fn visible(&mut self, offset: u16, header: &mut Header) -> bool;

    /// Whether no snapshot can see the version, now or later. Asked only until the answer is no once.
    fn surely_dead(&mut self, offset: u16, header: &Header) -> bool;

    /// The updating transaction in a multixact; 0 if there is none.
    fn multi_update_xid(&mut self, multi: u32) -> Xid;
}

/// The result of a walk along a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HotSearch {
    /// The first visible version.
    pub found: Option<u16>,
    /// Nothing is visible to anyone, now or later: the index entry can be killed. Never with a version found.
    pub all_dead: bool,
}

/// Finds the visible version of the chain that starts at `root`.
///
/// With `first_call` unset, `root` is the version found before, and the search goes on behind it (snapshots that see several
/// versions of a row).
#[inline]
pub fn hot_search(page: Page<'_>, root: u16, first_call: bool, visitor: &mut impl ChainVisitor) -> HotSearch {
    let mut offset = root;
    let mut at_start = first_call;
    let mut skip = !first_call;
    let mut all_dead = first_call;
    let mut updater = 0;
    // A sound chain names each line pointer once; the bound ends the walk on a page that is not sound.
    for _ in 0..=page.max_offset() {
        let line = page.line(offset);
        let Some(version) = page.version_at(line) else {
            if line.is_redirect() && at_start {
                offset = line.redirect();
                at_start = false;
                continue;
            }
            break;
        };
        let mut header = version.header();
        if at_start && header.is_heap_only() {
            break;
        }
        if updater != 0 && updater != header.effective_xmin() {
            break;
        }
        if !skip && visitor.visible(offset, &mut header) {
            return HotSearch { found: Some(offset), all_dead: false };
        }
        skip = false;
        all_dead = all_dead && visitor.surely_dead(offset, &header);
        if !header.is_hot_updated() {
            break;
        }
        offset = header.ctid.offset;
        at_start = false;
        updater = header.update_xid(|multi| visitor.multi_update_xid(multi));
    }
    HotSearch { found: None, all_dead }
}

/// For each version, at the index of its offset, the line pointer that indexes name for it; 0 where there is none.
pub fn root_offsets(page: Page<'_>, mut multi_update_xid: impl FnMut(u32) -> Xid) -> [u16; MAX_OFFSET as usize + 1] {
    let mut roots = [0; MAX_OFFSET as usize + 1];
    for root in 1..=page.max_offset() {
        let line = page.line(root);
        let (mut next, mut updater) = match page.version_at(line) {
            Some(version) => {
                let header = version.header();
                // A member of another chain: found from its root.
                if header.is_heap_only() {
                    continue;
                }
                roots[root as usize] = root;
                if !header.is_hot_updated() {
                    continue;
                }
                (header.ctid.offset, header.update_xid(&mut multi_update_xid))
            }
            None if line.is_redirect() => (line.redirect(), 0),
            None => continue,
        };
        for _ in 0..page.max_offset() {
            let Some(version) = page.version(next) else { break };
            let header = version.header();
            if updater != 0 && updater != header.effective_xmin() {
                break;
            }
            roots[next as usize] = root;
            if !header.is_hot_updated() {
                break;
            }
            next = header.ctid.offset;
            updater = header.update_xid(&mut multi_update_xid);
        }
    }
    roots
}
