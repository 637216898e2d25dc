//! Many names in a few bits each: who is surely none of them.
//!
//! # Shape
//! A Bloom filter (Bloom 1970) of [`BITS_PER_NAME`] bits a name and [`PROBES`] probes, which lie as in Kirsch and
//! Mitzenmacher 2006: two halves of one hash make them all. One of 120 strangers is taken for one of them.
//!
//! # Ordering
//! The hash is keyed anew for each set, so nobody can choose a name that is taken for another.
//!
//! # Bounds
//! 12.5 MB for 10,000,000 names.

use std::hash::{BuildHasher, RandomState};

/// Bits of a name. With 8 it would be one stranger of 46.
const BITS_PER_NAME: u64 = 10;
/// Of them, those that are set: 10 ln 2 is the best number.
const PROBES: u64 = 7;
/// Bits of a word.
const WORD: u64 = 64;

/// See the module.
#[derive(Debug)]
pub struct Names {
    words: Vec<u64>,
    keyed: RandomState,
}

impl Names {
    /// Room for so many.
    pub fn with_room(count: u32) -> Self {
        let words = (u64::from(count) * BITS_PER_NAME).div_ceil(WORD).max(1);
        Self {
            words: vec![0; usize::try_from(words).unwrap_or(usize::MAX)],
            keyed: RandomState::new(),
        }
    }

    /// Adds a name.
    pub fn put(&mut self, name: &str) {
        for (word, bit) in probes(self.keyed.hash_one(name), self.words.len()) {
            self.words[word] |= bit;
        }
    }

    /// `false`: it was not added, for certain.
    pub fn may_have(&self, name: &str) -> bool {
        probes(self.keyed.hash_one(name), self.words.len())
            .all(|(word, bit)| self.words[word] & bit != 0)
    }

    /// Bytes of its bits.
    pub fn bytes(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }
}

/// PURE: the words and their bits that stand for a hash among so many words.
fn probes(hash: u64, words: usize) -> impl Iterator<Item = (usize, u64)> {
    let (start, step) = (hash >> 32, hash & u64::from(u32::MAX) | 1);
    let bits = u64::try_from(words).unwrap_or(u64::MAX) * WORD;
    (0..PROBES).map(move |number| {
        let at = start.wrapping_add(number.wrapping_mul(step)) % (1 << 32);
        // As at lies in 2^32, so the bit in all of them.
        let bit = (at * bits) >> 32;
        let word = usize::try_from(bit / WORD).unwrap_or(usize::MAX);
        (word, 1 << (bit % WORD))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many of them.
    fn filled(count: u32) -> Names {
        let mut names = Names::with_room(count);
        for number in 0..count {
            names.put(&format!("winner-{number}"));
        }
        names
    }

    #[test]
    fn everybody_who_was_added_is_found() {
        for count in [0, 1, 6, 7, 1_000, 100_000] {
            let names = filled(count);
            for number in 0..count {
                assert!(names.may_have(&format!("winner-{number}")));
            }
        }
    }

    #[test]
    fn few_strangers_are_taken_for_somebody() {
        let names = filled(100_000);
        let taken = (0..100_000).filter(|number| names.may_have(&format!("stranger-{number}")));
        // 0.82 % are expected: 819, with a standard deviation of 29.
        let taken = taken.count();
        assert!((600..1_100).contains(&taken), "{taken}");
    }

    #[test]
    fn nobody_is_in_an_empty_set() {
        let names = filled(0);
        assert!((0..1_000).all(|number| !names.may_have(&format!("stranger-{number}"))));
    }

    #[test]
    fn ten_million_names_take_what_the_bound_says() {
        assert_eq!(Names::with_room(10_000_000).bytes(), 12_500_000);
    }

    #[test]
    fn probes_reach_the_first_and_the_last_bit() {
        let words = 3;
        let all: Vec<_> = [0, u64::MAX, u64::from(u32::MAX) << 32]
            .into_iter()
            .flat_map(|hash| probes(hash, words))
            .collect();
        assert!(all.contains(&(0, 1)));
        assert!(all.contains(&(words - 1, 1 << 63)));
        assert!(all.iter().all(|(word, _)| *word < words));
    }
}
