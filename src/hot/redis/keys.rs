//! Every key: its name, type, lifetime, writer and size. Nobody else builds one.
//!
//! # Shape
//! Layout 1. `T` is the partition's hash tag, `ID` a printed envelope id. Bytes are those of an
//! envelope of 100 shares whose grabbers have names of ten digits.
//!
//! | key | type | holds | written by | lives | bytes |
//! |---|---|---|---|---|---|
//! | `re1:layout` | string | how many partitions there are, and of which books | the first registration | for ever | 150 |
//! | `re1:{T}:epoch` | string | the partition's epoch | `register_2` | for ever | 80 |
//! | `re1:{T}:outbox` | stream | wins that the ledger does not have yet | `register_2`, `grab_1`, `decline_1`, `settled_1`, `set_aside_1` | for ever | 18 a grab |
//! | `re1:{T}:index` | sorted set | ids, for who walks | `load_1`, `close_1`, `remove_1`, `rebuild_1` | for ever | 100 an envelope |
//! | `re1:{T}:marked` | sorted set | ids of frozen envelopes | `freeze_1` | for ever | – |
//! | `re1:{T}:poison` | list | outbox entries that nobody can read | `set_aside_1` | until a person looks | – |
//! | `re1:{T}:g:ID` | hash | meta under the empty field; grabber → share, instant, amount | `load_1`, `open_1`, `grab_1`, `decline_1`, `close_1`, `freeze_1`, `remove_1`, `stamp_1`, `halt_1`, `rebuild_1`, `rebuild_put_1`, `rebuilt_1`, `rebuild_put_2`, `rebuilt_2` | until removed | 27 a grab |
//! | `re1:{T}:s:ID` | string | amounts by turn, packed | `load_1`, `close_1`, `remove_1`, `rebuild_1`, `rebuild_put_1`, `rebuild_put_2` | until removed | 1–8 a share |
//! | `re1:{T}:t:ID` | string | the terms, as JSON | `load_1`, `close_1`, `remove_1`, `rebuild_1`; a repair, by SET | until removed | 700 |
//! | `re1:{T}:l:ID` | list | grabbers by turn, where an envelope has more than `LISTED_SHARES_MIN` shares | `load_1`, `grab_1`, `close_1`, `remove_1`, `rebuild_1` | until removed | 12 a grab |
//! | `re1:{T}:p:ID` | hash | lock's digest and tries under the empty field; grabber → wrong tries | `load_1`, `grab_1`, `remove_1`, `rebuild_1` | until removed | – |
//!
//! What deletes a key writes it, too. The functions are held by
//! `each_key_is_written_by_the_functions_that_the_table_names`. Two keys are written without a
//! function, and so under no epoch: `re1:layout` by SET NX (`register`), and the terms by a repair
//! (`repair`), which are the same in every epoch.
//!
//! # Ordering
//! No key has a time to live: a clock that jumps would take money with it.
//!
//! # Not here
//! What the bytes mean: `layout`.

use crate::domain::id::{EnvelopeId, Partition, PartitionCount};

/// The number of this set of keys. Another one lives beside it.
pub const LAYOUT: u16 = 1;

/// Slots of a Redis Cluster.
const SLOTS: u32 = 16_384;

/// The key that records [`LAYOUT`], how many partitions there are, and whose books.
pub const LAYOUT_KEY: &str = "re1:layout";

/// Every partition's keys begin with one of these.
#[derive(Clone, Debug)]
pub struct Keys {
    count: PartitionCount,
    prefixes: Vec<String>,
}

/// The keys of one envelope.
#[derive(Clone, Debug)]
pub struct EnvelopeKeys {
    /// Meta and grabs.
    pub grabs: String,
    /// Amounts by turn.
    pub shares: String,
    /// Terms.
    pub terms: String,
    /// Grabbers by turn.
    pub list: String,
    /// Lock and wrong tries.
    pub phrase: String,
}

impl Keys {
    /// Of a store with so many partitions.
    pub fn new(count: PartitionCount) -> Self {
        let prefixes = tags(count).into_iter().map(|tag| format!("re1:{{{tag}}}:"));
        Self {
            count,
            prefixes: prefixes.collect(),
        }
    }

    /// How many partitions there are.
    pub fn count(&self) -> PartitionCount {
        self.count
    }

    fn of(&self, partition: Partition, name: &str) -> String {
        let prefix = &self.prefixes[usize::from(partition.index())];
        format!("{prefix}{name}")
    }

    /// The partition's epoch.
    pub fn epoch(&self, partition: Partition) -> String {
        self.of(partition, "epoch")
    }

    /// What is owed to the ledger.
    pub fn outbox(&self, partition: Partition) -> String {
        self.of(partition, "outbox")
    }

    /// Which envelopes there are.
    pub fn index(&self, partition: Partition) -> String {
        self.of(partition, "index")
    }

    /// Which envelopes stand still.
    pub fn marked(&self, partition: Partition) -> String {
        self.of(partition, "marked")
    }

    /// What nobody can read.
    pub fn poison(&self, partition: Partition) -> String {
        self.of(partition, "poison")
    }

    /// What of an envelope lies in a partition.
    pub fn envelope(&self, partition: Partition, id: EnvelopeId) -> EnvelopeKeys {
        let prefix = &self.prefixes[usize::from(partition.index())];
        let key = |letter: char| format!("{prefix}{letter}:{id}");
        EnvelopeKeys {
            grabs: key('g'),
            shares: key('s'),
            terms: key('t'),
            list: key('l'),
            phrase: key('p'),
        }
    }
}

/// A tag for each partition, so that partition i's slot lies in the i-th equal range of slots:
/// then any number of masters that divides the partitions has the same number of them. (The plain
/// numbers 0…63 would put eight of them on one of 16 masters, and none on another.)
fn tags(count: PartitionCount) -> Vec<String> {
    let partitions = u32::from(count.get());
    let mut tags = vec![String::new(); usize::from(count.get())];
    let mut missing = tags.len();
    for number in 0_u32.. {
        let tag = number.to_string();
        let range = slot(tag.as_bytes()) * partitions / SLOTS;
        let place = usize::try_from(range).expect("usize holds a u32");
        if tags[place].is_empty() {
            tags[place] = tag;
            missing -= 1;
        }
        if missing == 0 {
            break;
        }
    }
    tags
}

/// The slot of a hash tag: CRC-16/XMODEM, as the Redis Cluster specification has it.
fn slot(tag: &[u8]) -> u32 {
    let mut crc = 0_u16;
    for byte in tag {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            let carry = crc & 0x8000 != 0;
            crc <<= 1;
            if carry {
                crc ^= 0x1021;
            }
        }
    }
    u32::from(crc) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        // CRC-16/XMODEM of "123456789" is 0x31C3.
        assert_eq!(slot(b"123456789"), 0x31C3 % SLOTS);
        assert_eq!(slot(b"foo"), 12_182);
    }

    #[test]
    fn partitions_are_spread_evenly_over_any_masters_that_divide_them() {
        for count in [1, 8, 64, 1_024] {
            let tags = tags(PartitionCount::new(count).unwrap());
            for masters in [1, 2, 4, 16_u32] {
                let mut on = vec![0; masters as usize];
                for tag in &tags {
                    on[(slot(tag.as_bytes()) * masters / SLOTS) as usize] += 1;
                }
                let (least, most) = (on.iter().min().unwrap(), on.iter().max().unwrap());
                assert!(
                    most - least <= u32::from(u32::from(count) < masters),
                    "{on:?}"
                );
            }
        }
    }

    #[test]
    fn all_keys_of_an_envelope_have_the_tag_of_the_partition_that_was_named() {
        let keys = Keys::new(PartitionCount::new(64).unwrap());
        let id = EnvelopeId::from_parts(20_000, [7; 14]);
        for partition in keys.count().all() {
            let outbox = keys.outbox(partition);
            let tag = &outbox[..=outbox.find('}').unwrap()];
            let own = keys.envelope(partition, id);
            for key in [own.grabs, own.shares, own.terms, own.list, own.phrase] {
                assert!(
                    key.starts_with(tag) && key.ends_with(&id.to_string()),
                    "{key}"
                );
            }
        }
    }
}
