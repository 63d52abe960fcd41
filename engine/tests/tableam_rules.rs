//! Tests the rules of VACUUM and index deletion that need no Postgres; they live with the access method.

#[path = "../../pg/tableam/index_delete/budget.rs"]
mod budget;
#[path = "../../pg/tableam/index_delete/chain.rs"]
mod chain;
#[path = "../../pg/tableam/vacuum/limits.rs"]
mod limits;

use budget::{BLOCKS_MAX, BlockGroup, Budget, contiguous};
use kalamdb_engine::ids::{Lsn, Tid, Xid};
use kalamdb_engine::page::infomask::*;
use kalamdb_engine::page::{Header, PAGE_SIZE, Page, PageKind, PageMut, PruneActions, build_version};
use kalamdb_engine::visibility::TransactionStatus;

/// A tuple's bytes from the hoff byte on: no attribute.
const BODY: [u8; 2] = [24, 0];

/// The transactions that committed.
struct Committed(&'static [Xid]);

impl TransactionStatus for Committed {
    fn is_current(&self, _xid: Xid) -> bool {
        false
    }

    fn in_progress(&self, _xid: Xid) -> bool {
        false
    }

    fn did_commit(&self, xid: Xid) -> bool {
        self.0.contains(&xid)
    }

    fn multi_update_xid(&self, multi: u32) -> Xid {
        Xid::from(multi) + 1000
    }

    fn multi_running(&self, _multi: u32, _lock_only: bool) -> bool {
        false
    }

    fn may_hint_committed(&self, _xid: Xid, _page_lsn: Lsn) -> bool {
        false
    }
}

fn header(xmin: Xid, xmax: Xid, next: u16, infomask2: u16, infomask: u16) -> Header {
    Header { xmin, xmax, cmin: 0, cmax: 0, ctid: Tid::new(0, next), infomask2, infomask }
}

/// A page with these versions at the offsets from 1 on.
fn page_of(headers: &[Header]) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE];
    let mut page = PageMut::new(&mut bytes);
    page.init(PageKind::Data, 0);
    let mut version = Vec::new();
    for header in headers {
        build_version(header, &BODY, &mut version);
        page.add_version(&version, None).expect("an empty page has room");
    }
    bytes
}

#[test]
fn the_newest_deleter_of_a_chain_counts() {
    let bytes = page_of(&[
        header(10, 20, 2, HEAP_HOT_UPDATED, 0),
        header(20, 30, 3, HEAP_ONLY_TUPLE | HEAP_HOT_UPDATED, 0),
        header(30, 25, 3, HEAP_ONLY_TUPLE, 0),
    ]);
    assert_eq!(chain::newest_deleter(Page::new(&bytes), 1, &Committed(&[10, 20, 30])), 30);
}

#[test]
fn a_chain_ends_where_its_successor_is_a_stranger() {
    let bytes = page_of(&[header(10, 20, 2, HEAP_HOT_UPDATED, 0), header(21, 90, 2, HEAP_ONLY_TUPLE, 0)]);
    assert_eq!(chain::newest_deleter(Page::new(&bytes), 1, &Committed(&[10, 20, 21])), 20);
}

#[test]
fn what_nobody_else_could_see_conflicts_with_nobody() {
    let status = Committed(&[20, 30]);
    let aborted = page_of(&[header(10, 20, 1, 0, 0)]);
    assert_eq!(chain::newest_deleter(Page::new(&aborted), 1, &status), 0);
    let known_aborted = page_of(&[header(30, 40, 1, 0, HEAP_XMIN_INVALID)]);
    assert_eq!(chain::newest_deleter(Page::new(&known_aborted), 1, &status), 0);
    let own = page_of(&[header(30, 30, 1, 0, 0)]);
    assert_eq!(chain::newest_deleter(Page::new(&own), 1, &status), 0);
    let hinted = page_of(&[header(11, 12, 1, 0, HEAP_XMIN_COMMITTED)]);
    assert_eq!(chain::newest_deleter(Page::new(&hinted), 1, &status), 12);
}

#[test]
fn a_multixact_counts_by_its_updater() {
    let bytes = page_of(&[header(10, 7, 1, 0, HEAP_XMIN_COMMITTED | HEAP_XMAX_IS_MULTI)]);
    assert_eq!(chain::newest_deleter(Page::new(&bytes), 1, &Committed(&[])), 1007);
}

#[test]
fn redirects_are_followed_and_dead_lines_tell_nothing() {
    let mut bytes = page_of(&[
        header(10, 20, 2, HEAP_HOT_UPDATED, HEAP_XMIN_COMMITTED),
        header(20, 35, 2, HEAP_ONLY_TUPLE, HEAP_XMIN_COMMITTED),
        header(10, 50, 3, 0, HEAP_XMIN_COMMITTED),
    ]);
    let actions = PruneActions { redirected: vec![(1, 2)], dead: vec![3], unused: vec![] };
    PageMut::new(&mut bytes).apply_prune(&actions).expect("the actions suit the page");
    assert_eq!(chain::newest_deleter(Page::new(&bytes), 1, &Committed(&[])), 35);
    assert_eq!(chain::newest_deleter(Page::new(&bytes), 3, &Committed(&[])), 0);
}

#[test]
fn wrong_index_entries_are_found() {
    let mut bytes = page_of(&[
        header(10, 20, 2, HEAP_HOT_UPDATED, 0),
        header(20, 0, 2, HEAP_ONLY_TUPLE, 0),
        header(10, 20, 3, 0, 0),
        header(10, 0, 4, 0, 0),
    ]);
    let actions = PruneActions { redirected: vec![], dead: vec![], unused: vec![3] };
    PageMut::new(&mut bytes).apply_prune(&actions).expect("the actions suit the page");
    let fault = |offset| chain::fault_of(Page::new(&bytes), offset);
    assert_eq!((fault(1), fault(4)), (None, None));
    assert!(fault(2).is_some_and(|fault| fault.contains("heap-only")));
    assert!(fault(3).is_some_and(|fault| fault.contains("unused")));
    assert!(fault(0).is_some() && fault(5).is_some_and(|fault| fault.contains("past the end")));
    assert!(chain::fault_of(Page::new(&vec![0; PAGE_SIZE]), 1).is_some());
}

#[test]
fn blocks_with_more_promise_come_first() {
    let group = |block, first, entries, promising| BlockGroup { block, first, entries, promising };
    let few = group(1, 0, 3, 1);
    let many = group(9, 3, 3, 9);
    let larger = group(20, 6, 9, 3);
    let similar = group(30, 15, 12, 0);
    let mut groups = [few, similar, many, larger];
    groups.sort_unstable_by_key(BlockGroup::rank);
    // 9 and 12 entries are the same number, up to 4 promising ones too: then the order of blocks decides.
    assert_eq!(groups.map(|group| group.block), [9, 20, 30, 1]);
    const { assert!(BLOCKS_MAX == 6, "as many blocks as heap visits") };
}

#[test]
fn neighbours_are_favorable() {
    let groups = |blocks: &[u32]| -> Vec<BlockGroup> {
        blocks.iter().map(|&block| BlockGroup { block, first: 0, entries: 1, promising: 0 }).collect()
    };
    assert_eq!(contiguous(&groups(&[50])), 1);
    assert_eq!(contiguous(&groups(&[50, 53, 51, 55, 54])), 3);
    assert_eq!(contiguous(&groups(&[50, 54, 55])), 1);
}

#[test]
fn a_block_without_gain_ends_the_deletion() {
    let mut budget = Budget::new(1000, 1);
    assert!(budget.may_visit());
    budget.gain(16);
    assert!(budget.may_visit());
    assert!(!budget.may_visit());
}

#[test]
fn the_target_sinks_with_each_scattered_block() {
    let mut budget = Budget::new(1000, 2);
    for gained in [100, 100, 100] {
        assert!(budget.may_visit());
        budget.gain(gained);
    }
    // The third block has halved the target to 500, the fourth halves it to 250: less than what is gained already.
    assert!(budget.may_visit());
    budget.gain(1);
    assert!(!budget.may_visit());
}

#[test]
fn cutoffs_get_their_epoch() {
    const EPOCH: u64 = 1 << 32;
    assert_eq!(limits::full_cutoff(700, 800), 700);
    assert_eq!(limits::full_cutoff(u32::MAX - 9, EPOCH + 100), EPOCH - 10);
    assert_eq!(limits::full_cutoff(50, 7 * EPOCH + 100), 7 * EPOCH + 50);
    assert_eq!(limits::full_cutoff(110, 7 * EPOCH + 100), 7 * EPOCH + 110);
}

#[test]
fn cutoffs_before_the_first_transaction_freeze_nothing() {
    assert_eq!(limits::full_cutoff(800u32.wrapping_sub(50_000_000), 800), 3);
    assert_eq!(limits::full_cutoff(0, 800), 3);
}

#[test]
fn indexes_are_spared_only_for_little() {
    assert!(limits::may_bypass_indexes(1000, 19, 100));
    assert!(!limits::may_bypass_indexes(1000, 20, 100));
    assert!(!limits::may_bypass_indexes(10, 1, 1));
    assert!(!limits::may_bypass_indexes(u32::MAX, 20, 6_000_000));
}

#[test]
fn truncation_must_be_worth_its_lock() {
    assert!(!limits::is_worth_truncating(100_000, 100_000));
    assert!(!limits::is_worth_truncating(100_000, 99_500));
    assert!(limits::is_worth_truncating(100_000, 99_000));
    assert!(limits::is_worth_truncating(160, 150));
    assert!(!limits::is_worth_truncating(160, 151));
    assert!(limits::is_worth_truncating(3, 2));
}
