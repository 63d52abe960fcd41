//! Tests the log: every operation survives its bytes, garbage is refused, and replay makes the page that normal running made.

use super::*;
use crate::ids::{Lsn, PageKey, PageNumber, Tid};
use crate::page::infomask::*;
use crate::page::tests::{assert_invariants, body, empty_page, header};
use crate::page::*;
use proptest::collection::vec;
use proptest::prelude::*;

const STORAGE: StorageId = StorageId(7);

fn any_header() -> impl Strategy<Value = Header> {
    let xid = prop_oneof![Just(0u64), 0u64..1000, any::<u64>()];
    (xid.clone(), xid, any::<(u32, u32)>(), any::<(u32, u16)>(), any::<(u16, u16)>()).prop_map(
        |(xmin, xmax, cids, ctid, masks)| Header {
            xmin,
            xmax,
            cmin: cids.0,
            cmax: cids.1,
            ctid: Tid::new(ctid.0, ctid.1),
            infomask2: masks.0,
            infomask: masks.1,
        },
    )
}

fn any_page_number() -> impl Strategy<Value = PageNumber> {
    prop_oneof![
        any::<u32>().prop_map(PageNumber::block),
        any::<u32>().prop_map(PageNumber::directory),
        (any::<u32>(), 0u32..1 << 24).prop_map(|(value, chunk)| PageNumber::overflow(value, chunk)),
    ]
}

fn offsets() -> impl Strategy<Value = Vec<u16>> {
    vec(any::<u16>(), 0..300)
}

fn ops_of(builder: &RecordBuilder) -> Vec<Op<'_>> {
    let record = Record::decode(builder.bytes()).expect("a built record is valid");
    record.groups().flat_map(|group| group.ops).collect()
}

proptest! {
    #[test]
    fn operations_survive_their_bytes(
        storage in any::<u64>(), page in any_page_number(), stored in any_header(), offset in any::<u16>(),
        numbers in any::<(u32, u32, u32, u64)>(), flags in any::<(u8, u8)>(), bytes in vec(any::<u8>(), 0..500),
        redirected in vec(any::<(u16, u16)>(), 0..300), dead in offsets(), unused in offsets(),
    ) {
        let key = PageKey { storage: StorageId(storage), page };
        let actions = PruneActions { redirected, dead, unused };
        let mut version = Vec::new();
        build_version(&stored, &body(bytes.len(), 9), &mut version);
        let mut builder = RecordBuilder::new();
        builder.page(key).init(PageKind::Directory, numbers.0).image(&bytes).free();
        builder.overflow(numbers.0, numbers.1, numbers.2, &bytes).refcount(numbers.1);
        builder.insert(offset, &version).header(offset, &stored).flags(flags.0, flags.1).prune_xid(numbers.3);
        builder.prune(&actions).unused(&actions.dead);
        let ops = ops_of(&builder);
        let (Op::Prune(prune), Op::Unused(list)) = (&ops[9], &ops[10]) else { panic!("{ops:?}") };
        prop_assert_eq!(prune.actions(), actions.clone());
        prop_assert_eq!(list.iter().collect::<Vec<_>>(), actions.dead);
        let [partition, refcount, total] = [numbers.0, numbers.1, numbers.2];
        let insert = if let Op::Insert { .. } = ops[5] {
            prop_assert!(stored.xmax == 0 && stored.cmax == 0 && stored.ctid == Tid::new(page.as_block().unwrap_or(0), offset));
            ops[5].clone()
        } else {
            Op::InsertFull { offset, version: &version }
        };
        let expected = [
            Op::Init { kind: PageKind::Directory, partition },
            Op::Image(&bytes),
            Op::Free,
            Op::Overflow { partition, refcount, total, payload: &bytes },
            Op::Refcount(refcount),
            insert,
            Op::Header { offset, header: stored },
            Op::Flags { set: flags.0, clear: flags.1 },
            Op::PruneXid(numbers.3),
        ];
        prop_assert_eq!(&ops[..9], &expected);
        let groups: Vec<_> = Record::decode(builder.bytes()).unwrap().groups().map(|group| (group.key, group.starts_empty)).collect();
        prop_assert_eq!(groups, [(key, true)]);
    }

    #[test]
    fn storage_events_survive_their_bytes(ids in any::<(u64, u64)>(), numbers in any::<(u32, u32, u32, u32)>(), unlogged in any::<bool>()) {
        let (tablespace, database, relnumber, owner) = numbers;
        let create = StorageCreate { storage: StorageId(ids.0), tablespace, database, relnumber, owner, unlogged, xid: ids.1 };
        let mut builder = RecordBuilder::new();
        builder.create_storage(&create);
        let record = Record::decode(builder.bytes()).unwrap();
        prop_assert_eq!(record.create_storage(), Some(create));
        prop_assert!(record.groups().next().is_none());
        builder.page(PageKey::block(STORAGE, 1));
        Record::decode(builder.bytes()).unwrap_err();
    }

    #[test]
    fn random_records_never_panic(mut bytes in vec(any::<u8>(), 0..300), tags in vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..20)) {
        let known = [1, 2, 0x10, 0x11, 0x12, 0x13, 0x14, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0];
        for (at, tag) in tags {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = known[tag.index(known.len())];
            }
        }
        replay_anything(&bytes);
        if bytes.len() > 5 {
            bytes[..5].copy_from_slice(&[FORMAT_VERSION, tag::PAGE, 7, 12, tag::INIT]);
            bytes[5] = 1;
            replay_anything(&bytes);
        }
    }

    #[test]
    fn changed_records_never_panic(acts in vec(act(), 1..30), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in any::<prop::sample::Index>()) {
        let run = Run::of(&acts);
        for (_, record) in run.records {
            let mut bytes = record.clone();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            replay_anything(&bytes);
            replay_anything(&record[..cut.index(record.len())]);
        }
    }
}

/// Replays whatever the bytes are on a page with rows; the page stays one that can be read, or there is an error.
fn replay_anything(bytes: &[u8]) {
    let Ok(record) = Record::decode(bytes) else { return };
    for group in record.groups() {
        let mut page = empty_page();
        for xmin in 3..9 {
            PageMut::new(&mut page).add_row(&header(xmin), &body(20, 1), None);
        }
        if apply_group(&group, Lsn(5), &mut PageMut::new(&mut page)).is_ok() {
            Page::new(&page).check().expect("a record that could be applied leaves a valid page");
        }
    }
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let prune_xid = |number: &[u8]| {
        let record = [&[FORMAT_VERSION, tag::PAGE, 7, 0, tag::PRUNE_XID], number].concat();
        Record::decode(&record).ok().map(|record| record.groups().flat_map(|group| group.ops).collect::<Vec<_>>().len())
    };
    let long = |last: u8| [&[0xff; 9], &[last][..]].concat();
    assert_eq!(prune_xid(&long(1)), Some(1));
    assert_eq!(prune_xid(&long(2)), None);
    assert_eq!(prune_xid(&long(0x81)), None);
    // A refcount has 32 bits.
    assert!(Record::decode(&[FORMAT_VERSION, tag::PAGE, 7, 0, tag::REFCOUNT, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_ok());
    assert!(Record::decode(&[FORMAT_VERSION, tag::PAGE, 7, 0, tag::REFCOUNT, 0xff, 0xff, 0xff, 0xff, 0x1f]).is_err());
    for wrong in [&[][..], &[0], &[FORMAT_VERSION + 1], &[FORMAT_VERSION, 0x7f], &[FORMAT_VERSION, tag::INIT, 1, 0]] {
        Record::decode(wrong).unwrap_err();
    }
    assert_eq!(Record::decode(&[FORMAT_VERSION]).unwrap().groups().count(), 0);
}

#[test]
fn plain_insertions_are_short() {
    let mut page = empty_page();
    let new = Header { xmin: 1 << 33, ctid: Tid::new(1 << 20, 0), ..header(0) };
    let mut page = PageMut::new(&mut page);
    page.add_row(&new, &body(100, 1), None);
    let mut builder = RecordBuilder::new();
    builder.page(PageKey::block(STORAGE, 1 << 20)).insert(1, page.as_page().version(1).unwrap().bytes());
    // Version, then page: tag, storage, block; then insertion: tag, xid, command, offset, masks, length; then hoff, padding, data.
    assert_eq!(builder.len(), 1 + (1 + 1 + 4) + (1 + 5 + 1 + 2 + 4 + 2) + 102);
    assert!(matches!(ops_of(&builder)[..], [Op::Insert { offset: 1, .. }]));
    // In another block its ctid leads elsewhere: nothing of it may be left out.
    builder.clear();
    assert!(builder.is_empty());
    builder.page(PageKey::block(STORAGE, 3)).insert(1, page.as_page().version(1).unwrap().bytes());
    assert!(matches!(ops_of(&builder)[..], [Op::InsertFull { offset: 1, .. }]));
}

#[test]
fn many_insertions_share_what_is_equal() {
    let mut page = empty_page();
    let mut page = PageMut::new(&mut page);
    for (xmin, xmax) in [(5, 0), (5, 0), (5, 8), (5, 0), (6, 0), (5, 0), (5, 0)] {
        page.add_row(&Header { xmax, ctid: Tid::new(2, 0), ..header(xmin) }, &body(8, 1), None);
    }
    let mut builder = RecordBuilder::new();
    let versions = page.as_page().versions().map(|(offset, version)| (offset, version.bytes()));
    builder.page(PageKey::block(STORAGE, 2)).insert_many(5, 0, versions);
    let mut replayed = empty_page();
    let record = Record::decode(builder.bytes()).unwrap();
    for group in record.groups() {
        apply_ops(group.ops, &mut PageMut::new(&mut replayed)).unwrap();
    }
    assert!(replayed == page.as_page().bytes());
    let runs = builder.bytes().windows(3).filter(|window| *window == [tag::INSERT_MANY, 5, 0]).count();
    assert_eq!(runs, 3);
    builder.clear();
    builder.page(PageKey::block(STORAGE, 2)).insert_many(5, 0, []);
    assert_eq!(ops_of(&builder), []);
}

#[test]
fn pages_seen_are_skipped() {
    let mut builder = RecordBuilder::new();
    builder.page(PageKey::block(STORAGE, 2)).flags(FULL, 0);
    let record = Record::decode(builder.bytes()).unwrap();
    let group = record.groups().next().unwrap();
    assert!(!group.starts_empty);
    for (lsn, replayed) in [(99, true), (100, false), (101, false)] {
        let mut bytes = empty_page();
        let mut page = PageMut::new(&mut bytes);
        page.set_lsn(Lsn(lsn));
        assert_eq!(apply_group(&group, Lsn(100), &mut page).unwrap(), replayed);
        assert_eq!(page.as_page().flags() & FULL != 0, replayed);
        assert_eq!(page.as_page().lsn(), Lsn(lsn.max(100)));
    }
}

#[test]
fn operations_of_another_kind_of_page_are_refused() {
    let mut builder = RecordBuilder::new();
    let key = PageKey::block(STORAGE, 2);
    for kind in [PageKind::Unused, PageKind::Overflow, PageKind::Directory] {
        builder.clear();
        builder.page(key).init(kind, 0).prune_xid(4);
        let ops = ops_of(&builder);
        apply_ops(ops, &mut PageMut::new(&mut empty_page())).unwrap_err();
    }
    for refused in [
        builder_with(|builder| builder.refcount(1)),
        builder_with(|builder| builder.overflow(0, 1, 3, &[1; 4])),
        builder_with(|builder| builder.header(1, &header(1))),
        builder_with(|builder| builder.unused(&[1])),
        builder_with(|builder| builder.image(&[1; 40])),
        builder_with(|builder| builder.insert(2, &[24; 60])),
    ] {
        apply_ops(ops_of(&refused), &mut PageMut::new(&mut empty_page())).unwrap_err();
    }
}

fn builder_with(add: impl Fn(&mut RecordBuilder) -> &mut RecordBuilder) -> RecordBuilder {
    let mut builder = RecordBuilder::new();
    builder.page(PageKey::block(STORAGE, 2));
    add(&mut builder);
    builder
}

/// One thing that a backend does under its latches: one record.
#[derive(Clone, Debug)]
enum Act {
    Insert {
        page: usize,
        len: usize,
        token: bool,
    },
    Many {
        page: usize,
        rows: Vec<usize>,
    },
    /// The new version goes to the other page, if so said, else to the same.
    Update {
        page: usize,
        pick: prop::sample::Index,
        len: usize,
        elsewhere: bool,
    },
    Lock {
        page: usize,
        pick: prop::sample::Index,
        multi: u32,
    },
    Prune {
        page: usize,
        states: Vec<u8>,
        free: bool,
    },
    Vacuum {
        page: usize,
    },
    Full {
        page: usize,
    },
    Remake {
        page: usize,
        how: u8,
    },
    /// Unlogged.
    Hint {
        page: usize,
        pick: prop::sample::Index,
        bits: u16,
    },
    /// The stored images become the present ones.
    WriteBack {
        page: usize,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let (page, pick) = (0usize..2, any::<prop::sample::Index>());
    prop_oneof![
        8 => (page.clone(), 0usize..900, prop::bool::weighted(0.1)).prop_map(|(page, len, token)| Act::Insert { page, len, token }),
        3 => (page.clone(), vec(0usize..300, 0..30)).prop_map(|(page, rows)| Act::Many { page, rows }),
        12 => (page.clone(), pick.clone(), 0usize..900, prop::bool::weighted(0.3))
            .prop_map(|(page, pick, len, elsewhere)| Act::Update { page, pick, len, elsewhere }),
        2 => (page.clone(), pick.clone(), any::<u32>()).prop_map(|(page, pick, multi)| Act::Lock { page, pick, multi }),
        4 => (page.clone(), vec(any::<u8>(), 1..9), any::<bool>()).prop_map(|(page, states, free)| Act::Prune { page, states, free }),
        2 => page.clone().prop_map(|page| Act::Vacuum { page }),
        1 => page.clone().prop_map(|page| Act::Full { page }),
        1 => (page.clone(), 0u8..6).prop_map(|(page, how)| Act::Remake { page, how }),
        3 => (page.clone(), pick.clone(), any::<u16>()).prop_map(|(page, pick, bits)| Act::Hint { page, pick, bits }),
        2 => page.prop_map(|page| Act::WriteBack { page }),
    ]
}

const KEYS: [PageKey; 2] = [PageKey::block(STORAGE, 3), PageKey::block(STORAGE, 0xffff_fff0)];

/// Normal running: live pages, their stored images, and the log.
struct Run {
    live: [Vec<u8>; 2],
    stored: [Vec<u8>; 2],
    records: Vec<(Lsn, Vec<u8>)>,
    builder: RecordBuilder,
    xid: Xid,
}

impl Run {
    fn of(acts: &[Act]) -> Run {
        let stored = [vec![0; PAGE_HEADER], vec![0; PAGE_HEADER]];
        let mut run =
            Run { live: [empty_page(), empty_page()], stored, records: vec![], builder: RecordBuilder::new(), xid: 1000 };
        run.builder.page(KEYS[0]).init(PageKind::Data, 0).page(KEYS[1]).init(PageKind::Data, 0);
        run.log(&[0, 1]);
        for act in acts {
            run.act(act);
            run.live.iter().for_each(|page| assert_invariants(page));
        }
        run
    }

    /// Ends a record and stamps the pages it changed.
    fn log(&mut self, pages: &[usize]) {
        let end = Lsn(1000 + 100 * self.records.len() as u64);
        for &page in pages {
            PageMut::new(&mut self.live[page]).set_lsn(end);
        }
        self.records.push((end, self.builder.bytes().to_vec()));
        self.builder.clear();
    }

    fn view(&self, page: usize) -> Page<'_> {
        Page::new(&self.live[page])
    }

    fn pick(&self, page: usize, pick: prop::sample::Index) -> Option<(u16, Header)> {
        let count = self.view(page).versions().count();
        let (offset, version) = self.view(page).versions().nth(if count == 0 { 0 } else { pick.index(count) })?;
        Some((offset, version.header()))
    }

    fn add(&mut self, page: usize, header: &Header, len: usize) -> Option<u16> {
        let block = KEYS[page].page.as_block().unwrap();
        let ctid = if header.ctid == Tid::default() { Tid::new(block, 0) } else { header.ctid };
        PageMut::new(&mut self.live[page]).add_row(&Header { ctid, ..*header }, &body(len, self.xid as u8), None)
    }

    fn act(&mut self, act: &Act) {
        self.xid += 1;
        match act {
            Act::Remake { page, how } => self.remake(*page, *how),
            Act::WriteBack { page } => self.stored[*page] = image_of(&self.live[*page]),
            Act::Insert { page, .. }
            | Act::Many { page, .. }
            | Act::Update { page, .. }
            | Act::Lock { page, .. }
            | Act::Prune { page, .. }
            | Act::Vacuum { page }
            | Act::Full { page }
            | Act::Hint { page, .. }
                if self.view(*page).kind() != PageKind::Data => {}

            Act::Insert { page, len, token } => self.insert(*page, *len, *token),
            Act::Many { page, rows } => self.many(*page, rows),
            Act::Update { page, pick, len, elsewhere } => self.update(*page, *pick, *len, *elsewhere),
            Act::Lock { page, pick, multi } => self.lock(*page, *pick, *multi),
            Act::Prune { page, states, free } => self.prune(*page, states, *free),
            Act::Vacuum { page } => self.vacuum(*page),
            Act::Full { page } => {
                PageMut::new(&mut self.live[*page]).set_flags(FULL);
                PageMut::new(&mut self.live[*page]).clear_flags(ALL_VISIBLE);
                self.builder.page(KEYS[*page]).flags(FULL, ALL_VISIBLE);
                self.log(&[*page]);
            }
            Act::Hint { page, pick, bits } => {
                if let Some((offset, header)) = self.pick(*page, *pick) {
                    let hinted = Header { infomask: header.infomask | bits & HINT_BITS, ..header };
                    PageMut::new(&mut self.live[*page]).set_header(offset, &hinted).unwrap();
                }
            }
        }
    }

    fn insert(&mut self, page: usize, len: usize, token: bool) {
        let ctid = if token { Tid::new(self.xid as u32, SPECULATIVE_OFFSET) } else { Tid::default() };
        let new = Header { ctid, cmin: len as u32, ..header(self.xid) };
        let Some(offset) = self.add(page, &new, len) else { return };
        let version = Page::new(&self.live[page]).version(offset).unwrap();
        self.builder.page(KEYS[page]).insert(offset, version.bytes());
        self.log(&[page]);
    }

    fn many(&mut self, page: usize, rows: &[usize]) {
        let new = header(self.xid);
        let offsets: Vec<u16> = rows.iter().map_while(|&len| self.add(page, &new, len)).collect();
        let view = Page::new(&self.live[page]);
        let versions = offsets.iter().map(|&offset| (offset, view.version(offset).unwrap().bytes()));
        self.builder.page(KEYS[page]).insert_many(self.xid, 0, versions);
        self.log(&[page]);
    }

    fn update(&mut self, page: usize, pick: prop::sample::Index, len: usize, elsewhere: bool) {
        let Some((old, old_header)) = self.pick(page, pick) else { return };
        let target = if elsewhere { 1 - page } else { page };
        if self.view(target).kind() != PageKind::Data {
            return;
        }
        let heap_only = if elsewhere { 0 } else { HEAP_ONLY_TUPLE };
        let new = Header { infomask2: 1 | heap_only, ..header(self.xid) };
        let Some(offset) = self.add(target, &new, len) else { return };
        let hot = if elsewhere { 0 } else { HEAP_HOT_UPDATED };
        let changed = Header {
            xmax: self.xid,
            cmax: 3,
            ctid: Tid::new(KEYS[target].page.as_block().unwrap(), offset),
            infomask: old_header.infomask & !HEAP_XMAX_BITS,
            infomask2: old_header.infomask2 & !HEAP_HOT_UPDATED | hot,
            ..old_header
        };
        let mut live = PageMut::new(&mut self.live[page]);
        live.set_header(old, &changed).unwrap();
        let older = live.set_prune_xid_min(self.xid);
        let version = Page::new(&self.live[target]).version(offset).unwrap();
        self.builder.page(KEYS[target]).insert(offset, version.bytes());
        if elsewhere {
            self.builder.page(KEYS[page]);
        }
        self.builder.header(old, &changed);
        if older {
            self.builder.prune_xid(self.xid);
        }
        self.log(&[page, target]);
    }

    fn lock(&mut self, page: usize, pick: prop::sample::Index, multi: u32) {
        let Some((offset, header)) = self.pick(page, pick) else { return };
        let infomask = header.infomask & !HEAP_XMAX_BITS | HEAP_XMAX_IS_MULTI | HEAP_XMAX_LOCK_ONLY | HEAP_XMAX_SHR_LOCK;
        let locked = Header { xmax: multi as Xid, infomask, infomask2: header.infomask2 & !HEAP_HOT_UPDATED, ..header };
        PageMut::new(&mut self.live[page]).set_header(offset, &locked).unwrap();
        self.builder.page(KEYS[page]).header(offset, &locked);
        self.log(&[page]);
    }

    fn prune(&mut self, page: usize, states: &[u8], free: bool) {
        use TupleState::*;
        let state = |offset: u16, _: &mut Header| {
            [Dead, Dead, RecentlyDead, Live, InsertInProgress, DeleteInProgress]
                [states[offset as usize % states.len()] as usize % 6]
        };
        let dead_lines = if free { DeadLines::Free } else { DeadLines::Keep };
        let plan = plan_prune(self.view(page), dead_lines, state, |multi| multi as Xid);
        if plan.actions.is_empty() {
            return;
        }
        let mut live = PageMut::new(&mut self.live[page]);
        live.apply_prune(&plan.actions).unwrap();
        live.set_prune_xid(plan.new_prune_xid);
        self.builder.page(KEYS[page]).prune(&plan.actions).prune_xid(plan.new_prune_xid);
        self.log(&[page]);
    }

    fn vacuum(&mut self, page: usize) {
        let view = self.view(page);
        let dead: Vec<u16> = (1..=view.max_offset()).filter(|&offset| view.line(offset).is_dead()).collect();
        if !dead.is_empty() {
            PageMut::new(&mut self.live[page]).mark_unused(&dead).unwrap();
            self.builder.page(KEYS[page]).unused(&dead);
            self.log(&[page]);
        }
    }

    fn remake(&mut self, page: usize, how: u8) {
        let mut live = PageMut::new(&mut self.live[page]);
        let builder = self.builder.page(KEYS[page]);
        match how {
            0 => {
                live.init(PageKind::Unused, 0);
                builder.free();
            }
            1 => {
                live.init_overflow(4, 1, 900, &[how; 900]);
                live.set_overflow_refcount(2);
                builder.overflow(4, 1, 900, &[how; 900]).refcount(2);
            }
            2 => {
                let mut image = Vec::new();
                live.as_page().to_compact(&mut image);
                builder.image(&image);
            }
            _ => {
                live.init(PageKind::Data, how as u32);
                builder.init(PageKind::Data, how as u32);
            }
        }
        self.log(&[page]);
    }

    /// Replays the whole log over pages with these images; gives the pages.
    fn replay(&self, images: &[Vec<u8>; 2]) -> [Vec<u8>; 2] {
        let mut pages = [empty_page(), empty_page()];
        for (page, image) in pages.iter_mut().zip(images) {
            PageMut::new(page).from_compact(image).unwrap();
        }
        for (end, bytes) in &self.records {
            for group in Record::decode(bytes).unwrap().groups() {
                let page = KEYS.iter().position(|key| *key == group.key).expect("records name the two pages");
                apply_group(&group, *end, &mut PageMut::new(&mut pages[page])).unwrap();
            }
        }
        pages
    }
}

/// The page with every hint bit set, for comparison.
fn hinted(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for offset in 1..=MAX_OFFSET {
        let mut page = PageMut::new(&mut bytes);
        if let Some(version) = page.as_page().version(offset) {
            let header = version.header();
            page.set_header(offset, &Header { infomask: header.infomask | HINT_BITS, ..header }).unwrap();
        }
    }
    bytes
}

fn image_of(page: &[u8]) -> Vec<u8> {
    let mut image = Vec::new();
    Page::new(page).to_compact(&mut image);
    image
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn replay_makes_the_same_page(acts in vec(act(), 1..120)) {
        let run = Run::of(&acts);
        let nothing = [vec![0; PAGE_HEADER], vec![0; PAGE_HEADER]];
        for images in [&nothing, &run.stored] {
            let pages = run.replay(images);
            for (page, live) in pages.iter().zip(&run.live) {
                prop_assert!(hinted(page) == hinted(live), "{:?} became {:?}", Page::new(live).lsn(), Page::new(page).lsn());
            }
            // Replay is repeatable, over its own result too.
            prop_assert!(run.replay(&pages.each_ref().map(|page| image_of(page))) == pages);
        }
    }
}

#[test]
fn an_image_before_the_operations_needs_no_older_page() {
    let mut bytes = vec![0; PAGE_SIZE];
    let mut page = PageMut::new(&mut bytes);
    page.init(PageKind::Data, 3);
    page.add_row(&Header { xmin: 9, ..Header::default() }, &[24, 0, 1, 2], None).unwrap();
    let mut image = Vec::new();
    page.as_page().to_compact(&mut image);
    let key = PageKey::block(StorageId(1), 0);
    let mut record = RecordBuilder::new();
    record.page(key);
    let start = record.len();
    record.header(1, &Header { xmin: 9, xmax: 12, ..Header::default() });
    record.image_before(start, &image);
    let decoded = Record::decode(record.bytes()).unwrap();
    let group = decoded.groups().next().unwrap();
    assert!(group.starts_empty);
    let mut replayed = vec![0; PAGE_SIZE];
    assert!(apply_group(&group, Lsn(50), &mut PageMut::new(&mut replayed)).unwrap());
    page.set_header(1, &Header { xmin: 9, xmax: 12, ..Header::default() }).unwrap();
    page.set_lsn(Lsn(50));
    assert!(replayed == page.as_page().bytes());

    // A page of rows like each other makes a short record.
    for _ in 0..200 {
        page.add_row(&Header { xmin: 9, ..Header::default() }, &[24, 0, 1, 2, 3, 4, 5, 6], None);
    }
    image.clear();
    page.as_page().to_compact(&mut image);
    record.clear();
    record.page(key);
    let start = record.len();
    record.prune_xid(7);
    record.image_before(start, &image);
    assert!(record.len() < image.len() / 4, "{} of {} bytes", record.len(), image.len());
    let decoded = Record::decode(record.bytes()).unwrap();
    assert!(apply_group(&decoded.groups().next().unwrap(), Lsn(60), &mut PageMut::new(&mut replayed)).unwrap());
    page.set_prune_xid(7);
    page.set_lsn(Lsn(60));
    assert!(replayed == page.as_page().bytes());
    // A damaged image is an error, whatever is in its bytes.
    for at in start..record.len() {
        let mut damaged = record.bytes().to_vec();
        damaged[at] ^= 0x55;
        if let Ok(decoded) = Record::decode(&damaged) {
            for group in decoded.groups() {
                drop(apply_group(&group, Lsn(70), &mut PageMut::new(&mut vec![0; PAGE_SIZE])));
            }
        }
    }

    // A group that makes the page anew needs none.
    record.clear();
    record.page(key);
    let start = record.len();
    record.free();
    let free = record.len();
    record.image_before(start, &image);
    assert_eq!(record.len(), free);
}
