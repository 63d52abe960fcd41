//! Tests the page: its layout byte for byte, its primitives by their invariants, its views on garbage.

use super::*;
use crate::ids::Tid;
use infomask::*;
use proptest::collection::vec;
use proptest::prelude::*;

pub(crate) fn empty_page() -> Vec<u8> {
    let mut bytes = vec![0xee; PAGE_SIZE];
    PageMut::new(&mut bytes).init(PageKind::Data, 0);
    bytes
}

/// A tuple's bytes from the hoff byte on, with so many bytes of attributes.
pub(crate) fn body(len: usize, fill: u8) -> Vec<u8> {
    let mut body = vec![24, 0];
    body.resize(2 + len, fill);
    body
}

pub(crate) fn header(xmin: Xid) -> Header {
    Header { xmin, infomask: HEAP_XMAX_INVALID, infomask2: 2, ..Header::default() }
}

/// A version of exactly this length.
fn version_of(len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    build_version(&header(9), &body(len - PREFIX - 24, 7), &mut out);
    assert_eq!(out.len(), len);
    out
}

/// Checks what must hold after every primitive, beyond what `check` demands.
pub(crate) fn assert_invariants(bytes: &[u8]) {
    let page = Page::new(bytes);
    page.check().expect("a primitive keeps the page valid");
    if page.kind() != PageKind::Data {
        return;
    }
    assert!(bytes[page.lower()..page.upper()].iter().all(|&byte| byte == 0), "free space is zero");
    let unused = (1..=page.max_offset()).any(|offset| page.line(offset).is_unused());
    assert_eq!(page.flags() & HAS_FREE_LINES != 0, unused);
    for (offset, version) in page.versions() {
        let line = page.line(offset);
        let end = line.offset() + line.len();
        assert!(bytes[end..align(end)].iter().all(|&byte| byte == 0), "padding is zero");
        assert_eq!(version.bytes().len(), line.len());
    }
}

#[test]
fn layout_is_what_the_format_says() {
    let mut bytes = empty_page();
    let mut page = PageMut::new(&mut bytes);
    page.init(PageKind::Data, 0x0102_0304);
    let stored = Header {
        xmin: 0x1111_1111_2222_2222,
        xmax: 0x3333_3333_4444_4444,
        cmin: 0x5555_5555,
        cmax: 0x6666_6666,
        ctid: Tid::new(0x7777_8888, 0x0123),
        infomask2: 0x9003,
        infomask: 0x0900,
    };
    assert_eq!(page.add_row(&stored, &[24, 0, 0xaa, 0xbb, 0xcc], None), Some(1));
    page.set_lsn(Lsn(0x0a0b_0c0d_0e0f_1011));
    page.set_prune_xid(0x2122_2324_2526_2728);
    page.set_flags(FULL);
    #[rustfmt::skip]
    let head = [
        1, 0, 1, 2, 4, 3, 2, 1,
        0x11, 0x10, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b, 0x0a,
        36, 0, 0xd0, 0x7f, 0, 0, 0, 0,
        0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,
        // Position 32720, normal, 43 bytes.
        0xd0, 0xff, 0x56, 0x00,
    ];
    assert_eq!(bytes[..36], head);
    #[rustfmt::skip]
    let version = [
        0x11, 0x11, 0x11, 0x11, 0x33, 0x33, 0x33, 0x33, 0x66, 0x66, 0x66, 0x66, 0, 0, 0, 0,
        0x22, 0x22, 0x22, 0x22, 0x44, 0x44, 0x44, 0x44, 0x55, 0x55, 0x55, 0x55,
        0x77, 0x77, 0x88, 0x88, 0x23, 0x01, 0x03, 0x90, 0x00, 0x09, 24,
        0, 0xaa, 0xbb, 0xcc, 0, 0, 0, 0, 0,
    ];
    assert_eq!(bytes[32720..], version);
    let view = Page::new(&bytes).version(1).unwrap();
    assert_eq!(view.header(), stored);
    assert_eq!((view.hoff(), view.natts(), view.tuple().len()), (24, 3, 27));
    assert_eq!(Page::new(&bytes).line(1).infomask_position(), 32720 + 36);
    assert_invariants(&bytes);
}

#[test]
fn line_pointer_has_the_bits_of_item_id_data() {
    assert_eq!(LinePointer::normal(32760, 32728).raw(), 32760 | 1 << 15 | 32728 << 17);
    assert_eq!(LinePointer::redirected(291).raw(), 291 | 2 << 15);
    assert_eq!(LinePointer::DEAD.raw(), 3 << 15);
    for raw in [0, 5 | 1 << 15 | 9 << 17, 7 | 2 << 15, 3 << 15] {
        let line = LinePointer::from_raw(raw);
        let seen = [line.is_unused(), line.is_normal(), line.is_redirect(), line.is_dead()];
        assert_eq!(seen.iter().filter(|&&yes| yes).count(), 1);
        assert!(seen[line.flags() as usize]);
    }
}

#[test]
fn longest_version_fits_an_empty_page_alone() {
    let mut bytes = empty_page();
    let mut page = PageMut::new(&mut bytes);
    assert_eq!(MAX_VERSION, 32728);
    assert!(page.as_page().has_room(MAX_VERSION) && !page.as_page().has_room(MAX_VERSION + 1));
    assert_eq!(page.add_version(&version_of(MAX_VERSION + 1), None), None);
    assert_eq!(page.add_version(&version_of(MAX_VERSION), None), Some(1));
    assert!(!page.as_page().has_room(VERSION_HEADER + 1));
    assert_eq!(page.add_version(&version_of(40), None), None);
    assert_eq!(page.add_version(&[1; VERSION_HEADER - 1], None), None);
    assert_invariants(&bytes);
}

#[test]
fn offsets_end_at_291() {
    let mut bytes = empty_page();
    let mut page = PageMut::new(&mut bytes);
    for offset in 1..=MAX_OFFSET {
        assert_eq!(page.add_version(&version_of(48), None), Some(offset));
    }
    assert_eq!((page.as_page().free_space(), page.add_version(&version_of(48), None)), (0, None));
    // A freed line pointer in the middle makes room for one more, and only one.
    page.apply_prune(&PruneActions { dead: vec![100], ..PruneActions::default() }).unwrap();
    assert_eq!(page.as_page().free_space(), 0);
    page.mark_unused(&[100]).unwrap();
    assert!(page.as_page().has_room(48));
    assert_eq!(page.add_version(&version_of(48), None), Some(100));
    assert_eq!(page.add_version(&version_of(48), None), None);
    assert_invariants(&bytes);
}

#[test]
fn given_offset_must_be_unused_or_next() {
    let mut bytes = empty_page();
    let mut page = PageMut::new(&mut bytes);
    assert_eq!(page.add_version(&version_of(48), Some(0)), None);
    assert_eq!(page.add_version(&version_of(48), Some(2)), None);
    assert_eq!(page.add_version(&version_of(48), Some(1)), Some(1));
    assert_eq!(page.add_version(&version_of(48), Some(1)), None);
    assert_eq!(page.add_version(&version_of(48), Some(2)), Some(2));
    page.apply_prune(&PruneActions { unused: vec![1], ..PruneActions::default() }).unwrap();
    assert_ne!(page.as_page().flags() & HAS_FREE_LINES, 0);
    assert_eq!(page.add_version(&version_of(48), Some(1)), Some(1));
    assert_eq!(page.as_page().flags() & HAS_FREE_LINES, 0);
    assert_invariants(&bytes);
}

#[test]
fn ctid_without_offset_becomes_the_own_one() {
    let mut bytes = empty_page();
    let mut page = PageMut::new(&mut bytes);
    let new = Header { ctid: Tid::new(0x8000_0001, 0), ..header(5) };
    page.add_row(&new, &body(8, 1), None);
    let mut version = Vec::new();
    build_version(&new, &body(8, 1), &mut version);
    page.add_version(&version, None);
    let token = Header { ctid: Tid::new(77, SPECULATIVE_OFFSET), ..header(5) };
    page.add_row(&token, &body(8, 1), None);
    let ctids: Vec<Tid> = page.as_page().versions().map(|(_, version)| version.ctid()).collect();
    assert_eq!(ctids, [Tid::new(0x8000_0001, 1), Tid::new(0x8000_0001, 2), Tid::new(77, SPECULATIVE_OFFSET)]);
}

#[test]
fn prune_xid_keeps_the_oldest() {
    let mut bytes = empty_page();
    let mut page = PageMut::new(&mut bytes);
    let changed: Vec<bool> = [0, 20, 30, 20, 10].map(|xid| page.set_prune_xid_min(xid)).to_vec();
    assert_eq!(changed, [false, true, false, false, true]);
    assert_eq!(page.as_page().prune_xid(), 10);
}

#[test]
fn wrong_prunes_change_nothing() {
    let mut bytes = empty_page();
    let mut page = PageMut::new(&mut bytes);
    let root = Header { infomask2: HEAP_HOT_UPDATED, ..header(5) };
    page.add_row(&root, &body(8, 1), None);
    page.add_row(&Header { infomask2: HEAP_ONLY_TUPLE, ..header(6) }, &body(8, 1), None);
    page.add_row(&header(7), &body(8, 1), None);
    page.set_flags(FULL | ALL_VISIBLE);
    let before = bytes.clone();
    let mut page = PageMut::new(&mut bytes);
    for (redirected, dead, unused) in [
        (vec![(1, 3)], vec![], vec![]),
        (vec![(2, 2)], vec![], vec![]),
        (vec![(1, 2)], vec![], vec![2]),
        (vec![(1, 2)], vec![1], vec![]),
        (vec![(1, 9)], vec![], vec![]),
        (vec![(0, 2)], vec![], vec![]),
        (vec![], vec![4], vec![]),
        (vec![], vec![], vec![1, u16::MAX]),
    ] {
        page.apply_prune(&PruneActions { redirected, dead, unused }).unwrap_err();
    }
    page.mark_unused(&[1]).unwrap_err();
    page.set_header(4, &header(1)).unwrap_err();
    assert_eq!(bytes, before);
    PageMut::new(&mut bytes).apply_prune(&PruneActions { redirected: vec![(1, 2)], ..Default::default() }).unwrap();
    assert_eq!(Page::new(&bytes).line(1), LinePointer::redirected(2));
    assert_eq!(Page::new(&bytes).flags(), ALL_VISIBLE, "a prune gives a full page another chance");
}

#[test]
fn overflow_page_keeps_its_chunk() {
    let mut bytes = empty_page();
    for len in [0, 1, 4097, OVERFLOW_PAYLOAD] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let mut page = PageMut::new(&mut bytes);
        page.init_overflow(3, 1, 1 << 30, &payload);
        page.set_overflow_refcount(4_000_000_000);
        let view = page.as_page();
        assert_eq!((view.kind(), view.partition()), (PageKind::Overflow, 3));
        assert_eq!((view.overflow_refcount(), view.overflow_total()), (4_000_000_000, 1 << 30));
        assert_eq!(view.overflow_payload(), payload);
        assert_eq!(view.compact_len(), 48 + len);
        assert_compacts(&bytes);
    }
}

#[test]
fn overflow_page_with_a_wrong_length_is_refused() {
    let mut bytes = empty_page();
    PageMut::new(&mut bytes).init_overflow(0, 1, 100, &[5; 100]);
    for (at, value) in [(36, 99), (40, 99), (40, 101), (16, 147), (19, 0x7f)] {
        let mut wrong = bytes.clone();
        wrong[at] = value;
        Page::new(&wrong).check().unwrap_err();
    }
    PageMut::new(&mut bytes).init(PageKind::Overflow, 0);
    Page::new(&bytes).check().unwrap();
    assert!(Page::new(&bytes).overflow_payload().is_empty());
}

fn assert_compacts(bytes: &[u8]) {
    let mut image = vec![9];
    Page::new(bytes).to_compact(&mut image);
    assert_eq!(image.len(), 1 + Page::new(bytes).compact_len());
    let mut other = vec![0xdd; PAGE_SIZE];
    PageMut::new(&mut other).from_compact(&image[1..]).unwrap();
    assert!(other == bytes, "compact and expand are inverse");
}

#[test]
fn unused_pages_compact_to_their_header() {
    let mut bytes = vec![0; PAGE_SIZE];
    assert_compacts(&bytes);
    let mut page = PageMut::new(&mut bytes);
    page.init(PageKind::Unused, 0);
    page.set_lsn(Lsn(99));
    assert_eq!(page.as_page().compact_len(), PAGE_HEADER);
    assert!(!page.as_page().has_room(PAGE_SIZE));
    assert_compacts(&bytes);
}

#[test]
fn directory_categories_promise_room() {
    for free in [0usize, 127, 128, 32639, 32640, 32728] {
        for len in [40usize, 128, 129, 32632] {
            if category_of(free) >= category_for(len) {
                assert!(free >= len, "{free} bytes of category {} hold {len}", category_of(free));
            }
        }
    }
    assert_eq!((category_of(usize::MAX), category_for(MAX_VERSION)), (255, 255));
}

proptest! {
    #[test]
    fn directory_finds_what_a_plain_search_finds(
        set in vec((0..DIRECTORY_FANOUT, any::<u8>()), 0..200),
        near in vec((0u32..150, any::<u8>()), 0..200),
        ask in vec((any::<u8>(), 0..DIRECTORY_FANOUT + 9), 1..20),
        low in vec((any::<u8>(), 0u32..200), 1..20),
    ) {
        let mut bytes = empty_page();
        let mut page = PageMut::new(&mut bytes);
        page.init(PageKind::Directory, 0);
        let mut plain = vec![0; DIRECTORY_FANOUT as usize];
        for (index, category) in set.into_iter().chain(near) {
            page.set_category(index, category);
            plain[index as usize] = category;
        }
        page.set_category(DIRECTORY_FANOUT, 7);
        for (category, start) in ask.into_iter().chain(low) {
            let order = (start..DIRECTORY_FANOUT).chain(0..start.min(DIRECTORY_FANOUT));
            let expected = order.into_iter().find(|&index| plain[index as usize] >= category.max(1));
            prop_assert_eq!(page.as_page().find_category(category, start), expected);
        }
        prop_assert!((0..DIRECTORY_FANOUT).all(|index| page.as_page().category(index) == plain[index as usize]));
        page.as_page().check().unwrap();
        assert_compacts(&bytes);
    }

    #[test]
    fn primitives_keep_rows_and_invariants(steps in vec((any::<u8>(), 0usize..600, any::<prop::sample::Index>()), 1..400)) {
        let mut bytes = empty_page();
        // What must stand at each offset.
        let mut model: std::collections::BTreeMap<u16, Vec<u8>> = Default::default();
        let mut dead = Vec::new();
        for (step, len, pick) in steps {
            let mut page = PageMut::new(&mut bytes);
            let some = (!model.is_empty()).then(|| *model.keys().nth(pick.index(model.len())).unwrap());
            match (step % 8, some) {
                (0..=3, _) => {
                    let mut version = Vec::new();
                    let own = Header { ctid: Tid::new(4, 1), ..header(len as u64 + 3) };
                    build_version(&own, &body(len, step), &mut version);
                    let room = page.as_page().has_room(version.len());
                    let offset = page.add_version(&version, None);
                    prop_assert_eq!(offset.is_some(), room);
                    if let Some(offset) = offset {
                        prop_assert_eq!(model.insert(offset, version), None);
                    }
                }
                (4, Some(offset)) => {
                    page.apply_prune(&PruneActions { dead: vec![offset], ..Default::default() }).unwrap();
                    model.remove(&offset);
                    dead.push(offset);
                }
                (5, Some(offset)) => {
                    page.apply_prune(&PruneActions { unused: vec![offset], ..Default::default() }).unwrap();
                    model.remove(&offset);
                }
                (6, _) => {
                    page.mark_unused(&dead).unwrap();
                    dead.clear();
                }
                (_, Some(offset)) => {
                    let new = Header { xmax: 1 << 40, cmax: 7, ..page.as_page().version(offset).unwrap().header() };
                    page.set_header(offset, &new).unwrap();
                    let body = page.as_page().version(offset).unwrap().body().to_vec();
                    build_version(&new, &body, model.get_mut(&offset).unwrap());
                }
                _ => (),
            }
            assert_invariants(&bytes);
            let page = Page::new(&bytes);
            let stored: Vec<_> = page.versions().map(|(offset, version)| (offset, version.bytes().to_vec())).collect();
            prop_assert!(stored.iter().map(|(offset, bytes)| (offset, bytes)).eq(model.iter()));
            prop_assert!(dead.iter().all(|&offset| page.line(offset).is_dead()));
        }
        assert_compacts(&bytes);
    }

    #[test]
    fn header_survives_its_bytes(
        xids in any::<(u64, u64)>(), cids in any::<(u32, u32)>(), ctid in any::<(u32, u16)>(), masks in any::<(u16, u16)>(),
    ) {
        let stored = Header {
            xmin: xids.0, xmax: xids.1, cmin: cids.0, cmax: cids.1, ctid: Tid::new(ctid.0, ctid.1),
            infomask2: masks.0, infomask: masks.1,
        };
        let mut version = Vec::new();
        build_version(&stored, &[24, 0], &mut version);
        prop_assert_eq!(Version::new(&version).unwrap().header(), stored);
        let again = version.clone();
        let mut bytes = empty_page();
        let mut page = PageMut::new(&mut bytes);
        page.add_row(&header(3), &[24, 0], None);
        page.set_header(1, &stored).unwrap();
        prop_assert_eq!(page.as_page().version(1).unwrap().bytes(), &again);
    }
}

/// Uses every view of an image; nothing may panic, whatever the image.
fn read_everything(page: Page<'_>) {
    struct Blind;
    impl ChainVisitor for Blind {
        fn visible(&mut self, _: u16, _: &mut Header) -> bool {
            false
        }
        fn surely_dead(&mut self, _: u16, _: &Header) -> bool {
            true
        }
        fn multi_update_xid(&mut self, multi: u32) -> Xid {
            multi as Xid
        }
    }
    for offset in 0..=MAX_OFFSET + 1 {
        if let Some(version) = page.version(offset) {
            assert!(version.is_well_formed() || version.tuple().len() > version.body().len());
            let header = version.header();
            assert_eq!((header.natts(), header.ctid), (version.natts(), version.ctid()));
        }
        hot_search(page, offset, true, &mut Blind);
        hot_search(page, offset, false, &mut Blind);
    }
    root_offsets(page, |multi| multi as Xid);
    page.overflow_payload();
    page.find_category(3, 40);
    page.has_room(100);
    page.to_compact(&mut Vec::new());
}

/// A page with all kinds of line pointers, and one byte in it to change.
fn any_page() -> impl Strategy<Value = Vec<u8>> {
    let row = (any::<[u16; 2]>(), 0u64..4, 0u64..4, 0u16..12, 0usize..60);
    (vec(row, 0..40), any::<u64>()).prop_map(|(rows, choice)| {
        let mut bytes = empty_page();
        let mut page = PageMut::new(&mut bytes);
        for (masks, xmin, xmax, next, len) in rows {
            let masks = (masks[0] & !HEAP_NATTS_MASK | 1, masks[1] & !HEAP_HASNULL);
            let row = Header { xmin, xmax, ctid: Tid::new(0, next), infomask2: masks.0, infomask: masks.1, ..header(0) };
            page.add_row(&row, &body(len, 5), None);
        }
        let plan = plan_prune(page.as_page(), DeadLines::Keep, |offset, _| state_of(choice, offset), |multi| multi as Xid);
        page.apply_prune(&plan.actions).unwrap();
        bytes
    })
}

fn state_of(choice: u64, offset: u16) -> TupleState {
    use TupleState::*;
    let states = [Dead, Live, RecentlyDead, InsertInProgress, DeleteInProgress, Dead, Dead, RecentlyDead];
    states[(choice.wrapping_mul(offset as u64 | 1) >> 20) as usize % states.len()]
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        head in vec(any::<u8>(), 0..400), fill in any::<u8>(), valid_header in any::<bool>(), bounds in (0u16..1200, any::<u16>()),
    ) {
        let mut bytes = vec![fill; PAGE_SIZE];
        bytes[..head.len()].copy_from_slice(&head);
        if valid_header {
            bytes[..4].copy_from_slice(&[1, 0, 1 + fill % 3, 0]);
            bytes[16..18].copy_from_slice(&bounds.0.to_le_bytes());
            bytes[18..20].copy_from_slice(&(bounds.1 & !7).to_le_bytes());
        }
        let _ = Page::new(&bytes).check();
        read_everything(Page::new(&bytes));
        let mut other = vec![1; PAGE_SIZE];
        let mut page = PageMut::new(&mut other);
        if page.from_compact(&head).is_err() {
            prop_assert!(other.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn changed_pages_are_refused_or_harmless(
        bytes in any_page(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), choice in any::<u64>(),
    ) {
        assert_compacts(&bytes);
        let mut image = Vec::new();
        Page::new(&bytes).to_compact(&mut image);
        for (at, byte) in changes {
            let at = at.index(image.len());
            image[at] = byte;
        }
        let mut other = vec![0; PAGE_SIZE];
        if PageMut::new(&mut other).from_compact(&image).is_err() {
            return Ok(());
        }
        read_everything(Page::new(&other));
        let page = Page::new(&other);
        if page.kind() == PageKind::Data {
            // Chains may be broken or circular now: a plan must end and still be one that can be applied or refused.
            let plan = plan_prune(page, DeadLines::Free, |offset, _| state_of(choice, offset), |multi| multi as Xid);
            let _ = PageMut::new(&mut other).apply_prune(&plan.actions);
            Page::new(&other).check().unwrap();
        }
    }
}

#[test]
fn overlapping_versions_are_refused() {
    let mut bytes = empty_page();
    let mut page = PageMut::new(&mut bytes);
    page.add_version(&version_of(48), None);
    page.add_version(&version_of(48), None);
    let (first, second) = (page.as_page().line(1), page.as_page().line(2));
    page.as_page().check().unwrap();
    for line in [
        first,
        LinePointer::normal(second.offset() - 8, 48),
        LinePointer::normal(second.offset(), 56),
        LinePointer::normal(second.offset() + 1, 47),
        LinePointer::normal(second.offset(), 38),
        LinePointer::normal(32760, 48),
        LinePointer::redirected(3),
        LinePointer::redirected(0),
        LinePointer::from_raw(1 << 17),
        LinePointer::DEAD,
    ] {
        let mut wrong = bytes.clone();
        wrong[36..40].copy_from_slice(&line.raw().to_le_bytes());
        Page::new(&wrong).check().expect_err(&format!("{line:?} is wrong"));
    }
}

#[test]
fn tuple_that_leads_outside_is_refused() {
    let well_formed = |hoff: u8, natts: u16, infomask: u16, len: usize| {
        let mut version = Vec::new();
        let mut body = body(len, 0);
        body[0] = hoff;
        build_version(&Header { infomask2: natts, infomask, ..header(1) }, &body, &mut version);
        Version::new(&version).unwrap().is_well_formed()
    };
    assert!(well_formed(24, 8, HEAP_HASNULL, 0));
    assert!(!well_formed(24, 9, HEAP_HASNULL, 8));
    assert!(well_formed(32, 9, HEAP_HASNULL, 8));
    assert!(!well_formed(32, 9, 0, 7));
    assert!(!well_formed(16, 1, 0, 50));
    assert!(!well_formed(25, 1, 0, 50));
}

#[test]
fn a_cold_page_is_frozen_offers_no_room_and_is_stored_as_a_hot_one() {
    let mut bytes = empty_page();
    let mut page = PageMut::new(&mut bytes);
    for (xmax, infomask) in [(0, HEAP_XMAX_INVALID), (77, HEAP_XMAX_EXCL_LOCK | HEAP_XMAX_LOCK_ONLY), (78, HEAP_XMAX_IS_MULTI)] {
        let mut version = Vec::new();
        let ctid = Tid::new(9, 4);
        let header = Header { xmin: 1 << 33, xmax, ctid, infomask, infomask2: 2 | HEAP_HOT_UPDATED, ..Header::default() };
        build_version(&header, &body(40, 3), &mut version);
        page.add_version(&version, None).unwrap();
    }
    page.set_prune_xid(5);
    page.set_flags(FULL);
    let room = page.as_page().free_space();
    page.turn_cold(6);
    let page = Page::new(&bytes);
    assert_invariants(&bytes);
    assert!(page.is_cold() && page.flags() & ALL_VISIBLE != 0 && page.flags() & FULL == 0);
    assert_eq!((page.free_space(), page.has_room(1), page.prune_xid()), (0, false, 0));
    for (offset, version) in page.versions() {
        let header = version.header();
        assert_eq!((header.xmin, header.xmax, header.ctid), (1 << 33, 0, Tid::new(6, offset)));
        assert_eq!(header.infomask & HEAP_XMIN_FROZEN, HEAP_XMIN_FROZEN);
        assert_eq!(header.infomask & HEAP_XMAX_BITS, HEAP_XMAX_INVALID);
        assert_eq!(header.infomask2, 2);
    }
    let mut stored = Vec::new();
    page.to_compact(&mut stored);
    let mut again = empty_page();
    PageMut::new(&mut again).from_compact(&stored).unwrap();
    assert!(!Page::new(&again).is_cold());
    assert_eq!(Page::new(&again).free_space(), room);
    assert_eq!((compact_kind(&stored), compact_lsn(&stored).unwrap()), (PageKind::Data, page.lsn()));
}
