//! Turns a seed into words, bounded integers and a shuffle: all the chance that a cut has.
//!
//! `docs/FAIRNESS.md`, sections 5 and 6, states this file to the bit.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use zeroize::Zeroize;

/// The most words that one bounded integer takes.
///
/// A word is rejected with probability below bound / 2^64, which is under 2^-10 for every bound that
/// a cut asks for (amounts are below 2^53, positions below 2^24). Sixteen words in a row are
/// rejected with probability below 2^-160, so the sixteenth is taken as it is: the loop is bounded
/// and the law is not bent by anything that can be observed.
const WORDS_PER_INTEGER_MAX: u32 = 16;

/// The 32 bytes from which the shares of one envelope follow.
///
/// Whoever holds it before the envelope is empty knows every share to come, so it never prints and
/// is wiped when dropped.
pub struct SplitSeed(pub [u8; 32]);

impl std::fmt::Debug for SplitSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SplitSeed(..)")
    }
}

impl Drop for SplitSeed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The keystream of ChaCha20 under the seed, read as little-endian 64-bit words.
///
/// The generator's own state is not wiped (its crate offers no way): it lives on the stack for the
/// length of one cut.
pub(in crate::domain) struct WordStream {
    rng: ChaCha20Rng,
}

impl WordStream {
    /// Key = seed, nonce 0, block counter 0.
    pub(in crate::domain) fn new(seed: &SplitSeed) -> Self {
        Self {
            rng: ChaCha20Rng::from_seed(seed.0),
        }
    }

    /// The next 64 bits.
    #[inline]
    pub(in crate::domain) fn next(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// A uniform integer of 0…bound − 1. The bound is 1…2^63.
    #[inline]
    pub(in crate::domain) fn below(&mut self, bound: u64) -> u64 {
        bounded(bound, || self.next())
    }

    /// A uniform integer of low…high, both included.
    #[inline]
    pub(in crate::domain) fn between(&mut self, low: i64, high: i64) -> i64 {
        debug_assert!(0 <= low && low <= high);
        low + self.below((high - low).cast_unsigned() + 1).cast_signed()
    }

    /// Fisher and Yates, from the last position down.
    pub(in crate::domain) fn shuffle(&mut self, amounts: &mut [i64]) {
        for last in (1..amounts.len()).rev() {
            let bound = u64::try_from(last + 1).expect("a position is below 2^24");
            let other = usize::try_from(self.below(bound)).expect("below a usize");
            amounts.swap(last, other);
        }
    }
}

/// Lemire's multiplication with rejection: the high half of word × bound, unless the low half is
/// below 2^64 mod bound, in which case the next word is tried.
#[inline]
fn bounded(bound: u64, mut next_word: impl FnMut() -> u64) -> u64 {
    debug_assert!(bound >= 1);
    let (mut high, mut low) = halves(next_word(), bound);
    // 2^64 mod bound is below the bound, so the division is needed only here: about never.
    if low < bound {
        let rejected_below = bound.wrapping_neg() % bound;
        for _ in 1..WORDS_PER_INTEGER_MAX {
            if low >= rejected_below {
                break;
            }
            (high, low) = halves(next_word(), bound);
        }
    }
    high
}

/// The high and the low 64 bits of word × bound.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is asked for, and the high half has 64 bits"
)]
fn halves(word: u64, bound: u64) -> (u64, u64) {
    let product = u128::from(word) * u128::from(bound);
    ((product >> 64) as u64, product as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounded_of(bound: u64, words: &[u64]) -> (u64, usize) {
        let mut taken = 0;
        let integer = bounded(bound, || {
            taken += 1;
            words[taken - 1]
        });
        (integer, taken)
    }

    #[test]
    fn a_seed_does_not_print() {
        assert_eq!(format!("{:?}", SplitSeed([7; 32])), "SplitSeed(..)");
    }

    #[test]
    fn words_are_the_keystream_of_the_published_chacha20_vector() {
        // RFC 8439, appendix A.1, test vector 1: key 0, nonce 0, counter 0.
        let mut words = WordStream::new(&SplitSeed([0; 32]));
        assert_eq!(
            words.next(),
            u64::from_le_bytes([0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90])
        );
        assert_eq!(
            words.next(),
            u64::from_le_bytes([0x40, 0x5d, 0x6a, 0xe5, 0x53, 0x86, 0xbd, 0x28])
        );
    }

    #[test]
    fn a_bound_of_one_takes_one_word_and_gives_zero() {
        assert_eq!(bounded_of(1, &[u64::MAX]), (0, 1));
    }

    #[test]
    fn a_word_in_the_biased_strip_is_skipped() {
        // 2^64 mod 3 = 1, so only the low half 0 is rejected, and word 0 has it.
        assert_eq!(bounded_of(3, &[0, u64::MAX]), (2, 2));
        assert_eq!(bounded_of(3, &[1]), (0, 1));
        // 2^64 mod 2^k = 0: nothing is ever rejected.
        assert_eq!(bounded_of(1 << 40, &[0]), (0, 1));
    }

    #[test]
    fn the_sixteenth_word_is_taken_as_it_is() {
        assert_eq!(bounded_of(3, &[0; 16]), (0, 16));
    }

    #[test]
    fn every_integer_below_a_small_bound_has_the_same_number_of_words() {
        // On 64-bit words the count per integer is (2^64 − 2^64 mod bound) / bound; here it is
        // checked at both edges of each integer's run of accepted words.
        for bound in [2_u64, 3, 5, 6, 7, 10, 50, 100] {
            let rejected_below = bound.wrapping_neg() % bound;
            let run = ((1_u128 << 64) - u128::from(rejected_below)) / u128::from(bound);
            for integer in 0..bound {
                let first = (u128::from(integer) << 64).div_ceil(u128::from(bound));
                let (_, low) = halves(u64::try_from(first).unwrap(), bound);
                let first = first + u128::from(low < rejected_below);
                for word in [first, first + run - 1] {
                    let word = u64::try_from(word).unwrap();
                    assert_eq!(bounded_of(bound, &[word]), (integer, 1));
                }
            }
        }
    }
}
