//! Tests the records of user tables and streams: they survive their bytes, and replay makes the page that normal running made.

use super::*;
use crate::ids::{Lsn, PageKey, PageNumber};
use crate::page::tests::{body, empty_page, header};
use crate::page::*;
use proptest::collection::vec;
use proptest::prelude::*;

const KEY: PageKey = PageKey { storage: StorageId(7), page: PageNumber::chains(3) };

#[derive(Clone, Debug)]
enum Step {
    User(u32, Vec<u8>),
    Split,
    Partition(u32, u32, u32),
    Chain(u32, u32, u32),
    Seconds(u32),
    Insert(usize, i64),
    Expire(usize),
}

fn user_steps() -> impl Strategy<Value = Vec<Step>> {
    let user = (any::<u32>(), vec(any::<u8>(), 1..256)).prop_map(|(partition, name)| Step::User(partition, name));
    vec(prop_oneof![20 => user, 1 => Just(Step::Split)], 0..200)
}

fn map_steps(kind: PageKind) -> impl Strategy<Value = Vec<Step>> {
    let entry = (0..PARTITION_FANOUT, any::<u32>(), any::<u32>());
    let step = entry.prop_map(move |(index, first, second)| {
        if kind == PageKind::Partitions { Step::Partition(index, first, second) } else { Step::Chain(index, first, second) }
    });
    vec(step, 0..100)
}

fn stream_steps() -> impl Strategy<Value = Vec<Step>> {
    let insert = (8usize..400, 0i64..1 << 33).prop_map(|(len, millis)| Step::Insert(len, millis));
    vec(prop_oneof![9 => insert, 3 => (0usize..50).prop_map(Step::Expire), 1 => (0u32..1 << 23).prop_map(Step::Seconds)], 0..80)
}

/// Does a step to a page and describes it; what does not fit is left out.
fn take(step: &Step, page: &mut PageMut<'_>, record: &mut RecordBuilder) {
    match step {
        Step::User(partition, name) => {
            if page.add_user(*partition, name) {
                record.user(*partition, name);
            }
        }
        Step::Split => {
            page.split_users();
            record.split_users();
        }
        Step::Partition(index, last, blocks) => {
            let entry = PartitionEntry { last: *last, blocks: *blocks };
            assert!(page.set_partition_entry(*index, entry));
            record.partition(*index, entry);
        }
        Step::Chain(index, partition, before) => {
            let entry = ChainEntry { partition: *partition, before: *before };
            assert!(page.set_chain_entry(*index, entry));
            record.chain(*index, entry);
        }
        Step::Seconds(seconds) => {
            if page.as_page().max_offset() == 0 {
                page.set_seconds(*seconds);
                record.seconds(*seconds);
            }
        }
        Step::Insert(len, millis) => {
            if let Some(offset) = page.add_row(&header(9), &body(*len, 1), None) {
                page.set_row_time(offset, *millis);
                record.insert(offset, page.as_page().version(offset).unwrap().bytes());
            }
        }
        Step::Expire(place) => {
            let offsets: Vec<u16> = page.as_page().versions().map(|(offset, _)| offset).skip(*place).step_by(3).collect();
            page.expire(&offsets).unwrap();
            record.expire(&offsets);
        }
    }
}

fn replay_equals_the_original(kind: PageKind, steps: &[Step]) {
    let (mut live, mut replayed) = (empty_page(), empty_page());
    let mut record = RecordBuilder::new();
    for (number, steps) in steps.chunks(5).enumerate() {
        let mut page = PageMut::new(&mut live[..]);
        record.clear();
        record.page(KEY);
        if number == 0 {
            page.init(kind, 3);
            record.init(kind, 3);
        }
        for step in steps {
            take(step, &mut page, &mut record);
        }
        let lsn = Lsn(number as u64 + 1);
        page.set_lsn(lsn);
        for group in Record::decode(record.bytes()).unwrap().groups() {
            assert_eq!(group.key, KEY);
            apply_group(&group, lsn, &mut PageMut::new(&mut replayed[..])).unwrap();
        }
        assert_eq!(live[..], replayed[..]);
        Page::new(&live[..]).check().unwrap();
    }
}

proptest! {
    #[test]
    fn maps_of_users_are_replayed(steps in user_steps()) {
        replay_equals_the_original(PageKind::Users, &steps);
    }

    #[test]
    fn maps_of_partitions_are_replayed(steps in map_steps(PageKind::Partitions)) {
        replay_equals_the_original(PageKind::Partitions, &steps);
    }

    #[test]
    fn maps_of_blocks_are_replayed(steps in map_steps(PageKind::Chains)) {
        replay_equals_the_original(PageKind::Chains, &steps);
    }

    #[test]
    fn pages_of_streams_are_replayed(steps in stream_steps()) {
        replay_equals_the_original(PageKind::Data, &steps);
    }
}

#[test]
fn an_operation_of_a_map_suits_no_other_page() {
    let mut record = RecordBuilder::new();
    record.page(KEY).user(1, b"alice");
    record.page(KEY).split_users();
    record.page(KEY).partition(0, PartitionEntry { last: 1, blocks: 1 });
    record.page(KEY).chain(0, ChainEntry { partition: 1, before: 0 });
    let groups: Vec<_> = Record::decode(record.bytes()).unwrap().groups().collect();
    assert_eq!(groups.len(), 4);
    for group in groups {
        let mut page = empty_page();
        PageMut::new(&mut page[..]).init(PageKind::Data, 0);
        apply_group(&group, Lsn(9), &mut PageMut::new(&mut page[..])).unwrap_err();
    }
}
