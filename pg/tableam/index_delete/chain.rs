//! Judges the chain of versions that an index entry leads to.

use kalamdb_engine::ids::{INVALID_XID, Xid};
use kalamdb_engine::page::infomask::HEAP_XMIN_COMMITTED;
use kalamdb_engine::page::{Header, MAX_OFFSET, Page, PageKind};
use kalamdb_engine::visibility::TransactionStatus;

/// What is wrong with an index entry for this line pointer, if anything.
///
/// The index page is locked, so no VACUUM can have freed the line pointer since the entry was read.
pub fn fault_of(page: Page<'_>, root: u16) -> Option<&'static str> {
    if page.kind() != PageKind::Data || root == 0 || root > page.max_offset() {
        return Some("past the end of the page's line pointers");
    }
    let line = page.line(root);
    if line.is_unused() {
        return Some("to an unused line pointer");
    }
    let is_heap_only = page.version_at(line).is_some_and(|version| version.header().is_heap_only());
    is_heap_only.then_some("to a heap-only row version")
}

/// The newest transaction whose deletion makes a chain removable; 0 if the chain has no versions any more.
///
/// A dead line pointer tells nothing: the prune that made it told it.
pub fn newest_deleter(page: Page<'_>, root: u16, status: &impl TransactionStatus) -> Xid {
    let mut newest = INVALID_XID;
    let (mut offset, mut updater) = (root, INVALID_XID);
    for _ in 0..=MAX_OFFSET {
        let line = page.line(offset);
        if line.is_redirect() {
            offset = line.redirect();
            continue;
        }
        let Some(version) = page.version_at(line) else { break };
        let header = version.header();
        if updater != INVALID_XID && updater != header.effective_xmin() {
            break;
        }
        newest = newest.max(deleter_seen_by_others(&header, status));
        if !header.is_hot_updated() {
            break;
        }
        offset = header.ctid.offset;
        updater = header.update_xid(|multi| status.multi_update_xid(multi));
    }
    newest
}

/// The deleter of a version that others than its inserter could see; 0 if there is none.
fn deleter_seen_by_others(header: &Header, status: &impl TransactionStatus) -> Xid {
    let xmin = header.effective_xmin();
    let is_committed = header.infomask & HEAP_XMIN_COMMITTED != 0 || (!header.xmin_invalid() && status.did_commit(xmin));
    let deleter = header.update_xid(|multi| status.multi_update_xid(multi));
    if is_committed && deleter != xmin { deleter } else { INVALID_XID }
}
