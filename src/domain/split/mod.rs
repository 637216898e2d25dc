//! Cuts a total into shares, exactly and repeatably: the rules, what may be asked of them, and
//! the amounts that a seed makes of them.
//!
//! *Shape*
//!
//! | step | where |
//! |---|---|
//! | is the cut possible | [`Cut::check`], here |
//! | words from the seed, bounded integers, shuffle | `draw` |
//! | shares in the order in which the rule makes them | `rules` |
//! | shares in the order in which they are grabbed | [`Cut::amounts`], here |
//! | what to expect, before anyone pays | `preview` |
//!
//! *Bounds.* A cut of n shares takes O(n) words and O(n) memory (`broken_stick` also sorts, O(n log
//! n)), and n ≤ [`SHARE_COUNT_MAX`]. No loop waits for luck.
//!
//! *Ordering.* The order of the words is part of the contract that `docs/FAIRNESS.md` states to the
//! bit: a change here that moves one word is a new version of the proof, never a refactoring.
//!
//! *Not here.* EXCLUSIVE envelopes: their amounts are named by the sender, one for each grabber, and
//! are neither cut nor shuffled. Where a seed comes from: `fairness`.

// Money is never a float, and a float differs between machines.
#![deny(clippy::float_arithmetic)]

mod draw;
mod preview;
mod rules;
#[cfg(test)]
mod statistics;
#[cfg(test)]
mod tests;

// Below 2^53, so an exact integer in every JSON reader, and twice it fits an `i64`: `rules` needs that.
pub use super::money::AMOUNT_MINOR_MAX;
pub use draw::SplitSeed;
pub use preview::{EXAMPLE_SHARES_MAX, PREVIEW_SHARES_MAX, Preview};

#[cfg(test)]
pub(in crate::domain) use draw::WordStream;
#[cfg(not(test))]
use draw::WordStream;
use serde::{Deserialize, Serialize};

/// The most shares of one envelope. Ten million amounts are 80 MB, cut in about half a second: the
/// largest envelope that one process may still cut, hold and load while it serves others.
pub const SHARE_COUNT_MAX: u32 = 10_000_000;

/// The most tiers of one split. Each is a line of the sender's price list, carried in the request
/// and in every proof; 1,000 lines are about 40 kB of JSON.
pub const TIER_COUNT_MAX: usize = 1_000;

/// The rule that cuts a total into shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum Split {
    /// Every share is the mean, or one minor unit more where the total does not divide.
    Even,
    /// Each share is uniform between the minimum and twice the mean of what remains.
    DoubleMean,
    /// The spacings of points thrown uniformly on what the total has above the minimums.
    BrokenStick,
    /// A merchant's list: so many shares of this amount, so many of that.
    Tiers {
        /// 1…[`TIER_COUNT_MAX`] lines; counts add up to the share count, amounts to the total.
        tiers: Vec<Tier>,
    },
}

/// One line of a merchant's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// What each share of this tier is worth, in minor units, within the cut's min and max.
    pub amount_minor: i64,
    /// How many shares are worth that; at least 1.
    pub count: u32,
}

/// What is to be cut, and how. `min_minor` and `max_minor` bound each share; "no maximum" is
/// written as `max_minor = total_minor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The sum of all shares, 1…[`AMOUNT_MINOR_MAX`] minor units.
    pub total_minor: i64,
    /// How many shares, 1…[`SHARE_COUNT_MAX`].
    pub share_count: u32,
    /// The least that a share may be worth, at least 1.
    pub min_minor: i64,
    /// The most that a share may be worth, `min_minor`…[`AMOUNT_MINOR_MAX`].
    pub max_minor: i64,
    /// The rule.
    pub split: Split,
}

/// Why a cut is impossible. All are the asker's to mend; none depends on the seed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// The total is not positive or above the limit.
    #[error("the total must be 1 to {AMOUNT_MINOR_MAX} minor units, not {total_minor}")]
    TotalOutOfRange {
        /// What was asked for.
        total_minor: i64,
    },
    /// No shares, or too many.
    #[error("the number of shares must be 1 to {SHARE_COUNT_MAX}, not {share_count}")]
    ShareCountOutOfRange {
        /// What was asked for.
        share_count: u32,
    },
    /// A share could be worth nothing.
    #[error("the least share must be at least 1 minor unit, not {min_minor}")]
    MinBelowOne {
        /// What was asked for.
        min_minor: i64,
    },
    /// The bounds are the wrong way round.
    #[error("the greatest share, {max_minor}, is below the least, {min_minor}")]
    MaxBelowMin {
        /// The least share asked for.
        min_minor: i64,
        /// The greatest share asked for.
        max_minor: i64,
    },
    /// The upper bound is above every possible amount.
    #[error(
        "the greatest share must be at most {AMOUNT_MINOR_MAX} minor units, not {max_minor}; \
         for no maximum give the total"
    )]
    MaxOutOfRange {
        /// What was asked for.
        max_minor: i64,
    },
    /// Even if every share is the least, the total is not enough.
    #[error(
        "a total of {total_minor} is too little for {share_count} shares of at least {min_minor}"
    )]
    TotalTooSmall {
        /// The total asked for.
        total_minor: i64,
        /// The number of shares asked for.
        share_count: u32,
        /// The least share asked for.
        min_minor: i64,
    },
    /// Even if every share is the greatest, something of the total is left.
    #[error("a total of {total_minor} is too much for {share_count} shares of at most {max_minor}")]
    TotalTooLarge {
        /// The total asked for.
        total_minor: i64,
        /// The number of shares asked for.
        share_count: u32,
        /// The greatest share asked for.
        max_minor: i64,
    },
    /// No tiers, or too many.
    #[error("the number of tiers must be 1 to {TIER_COUNT_MAX}, not {tier_count}")]
    TierCountOutOfRange {
        /// What was asked for.
        tier_count: usize,
    },
    /// A tier of no shares.
    #[error("tier {tier_number} (from 0) has no shares")]
    TierEmpty {
        /// Its place in the list, from 0.
        tier_number: usize,
    },
    /// A tier's amount breaks the bounds of the cut.
    #[error(
        "tier {tier_number} (from 0) is worth {amount_minor} a share, outside {min_minor} to \
         {max_minor}"
    )]
    TierAmountOutOfRange {
        /// Its place in the list, from 0.
        tier_number: usize,
        /// Its amount.
        amount_minor: i64,
        /// The least share asked for.
        min_minor: i64,
        /// The greatest share asked for.
        max_minor: i64,
    },
    /// The tiers' counts do not add up to the share count.
    #[error("the tiers have {counted} shares together, not {share_count}")]
    TierCountsMismatch {
        /// What the counts add up to.
        counted: u64,
        /// The number of shares asked for.
        share_count: u32,
    },
    /// The tiers' amounts do not add up to the total.
    #[error("the tiers are worth {summed_minor} minor units together, not {total_minor}")]
    TierSumMismatch {
        /// What the amounts add up to.
        summed_minor: i128,
        /// The total asked for.
        total_minor: i64,
    },
}

impl CutError {
    /// The field of [`Cut`] that is to be changed, as a path.
    pub fn field(&self) -> &'static str {
        match self {
            Self::TotalOutOfRange { .. } | Self::TotalTooSmall { .. } => "total_minor",
            Self::ShareCountOutOfRange { .. } => "share_count",
            Self::MinBelowOne { .. } => "min_minor",
            Self::MaxBelowMin { .. } | Self::MaxOutOfRange { .. } | Self::TotalTooLarge { .. } => {
                "max_minor"
            }
            Self::TierCountOutOfRange { .. }
            | Self::TierEmpty { .. }
            | Self::TierAmountOutOfRange { .. }
            | Self::TierCountsMismatch { .. }
            | Self::TierSumMismatch { .. } => "split.tiers",
        }
    }
}

impl Cut {
    /// Whether the cut is possible. A cut that passes never fails to be made, with any seed.
    ///
    /// `even` needs no rule of its own: if the total lies between `share_count` minimums and
    /// maximums, so does the mean, rounded down, and rounded up where something remains.
    pub fn check(&self) -> Result<(), CutError> {
        let Self {
            total_minor,
            share_count,
            min_minor,
            max_minor,
            ..
        } = *self;
        if !(1..=AMOUNT_MINOR_MAX).contains(&total_minor) {
            return Err(CutError::TotalOutOfRange { total_minor });
        }
        if !(1..=SHARE_COUNT_MAX).contains(&share_count) {
            return Err(CutError::ShareCountOutOfRange { share_count });
        }
        if min_minor < 1 {
            return Err(CutError::MinBelowOne { min_minor });
        }
        if max_minor < min_minor {
            return Err(CutError::MaxBelowMin {
                min_minor,
                max_minor,
            });
        }
        if max_minor > AMOUNT_MINOR_MAX {
            return Err(CutError::MaxOutOfRange { max_minor });
        }
        if i128::from(total_minor) < i128::from(min_minor) * i128::from(share_count) {
            return Err(CutError::TotalTooSmall {
                total_minor,
                share_count,
                min_minor,
            });
        }
        if i128::from(total_minor) > i128::from(max_minor) * i128::from(share_count) {
            return Err(CutError::TotalTooLarge {
                total_minor,
                share_count,
                max_minor,
            });
        }
        match &self.split {
            Split::Even | Split::DoubleMean | Split::BrokenStick => Ok(()),
            Split::Tiers { tiers } => self.check_tiers(tiers),
        }
    }

    fn check_tiers(&self, tiers: &[Tier]) -> Result<(), CutError> {
        if tiers.is_empty() || tiers.len() > TIER_COUNT_MAX {
            return Err(CutError::TierCountOutOfRange {
                tier_count: tiers.len(),
            });
        }
        // 1,000 counts of 32 bits fit 64, and so many products of 53 and 32 bits fit 128.
        let mut counted = 0_u64;
        let mut summed_minor = 0_i128;
        for (tier_number, tier) in tiers.iter().enumerate() {
            if tier.count == 0 {
                return Err(CutError::TierEmpty { tier_number });
            }
            if !(self.min_minor..=self.max_minor).contains(&tier.amount_minor) {
                return Err(CutError::TierAmountOutOfRange {
                    tier_number,
                    amount_minor: tier.amount_minor,
                    min_minor: self.min_minor,
                    max_minor: self.max_minor,
                });
            }
            counted += u64::from(tier.count);
            summed_minor += i128::from(tier.amount_minor) * i128::from(tier.count);
        }
        if counted != u64::from(self.share_count) {
            return Err(CutError::TierCountsMismatch {
                counted,
                share_count: self.share_count,
            });
        }
        if summed_minor != i128::from(self.total_minor) {
            return Err(CutError::TierSumMismatch {
                summed_minor,
                total_minor: self.total_minor,
            });
        }
        Ok(())
    }

    /// The shares in the order in which they are grabbed: exactly `share_count` of them, each within
    /// the bounds, their sum the total to the minor unit, the same for ever from the same seed.
    ///
    /// They are shuffled whatever the rule, so every position has the same distribution (held by
    /// `statistics::no_position_is_favoured_by_double_mean` and its siblings).
    pub fn amounts(&self, seed: &SplitSeed) -> Result<Vec<i64>, CutError> {
        self.check()?;
        let mut words = WordStream::new(seed);
        let mut amounts = rules::shares(self, &mut words);
        words.shuffle(&mut amounts);
        Ok(amounts)
    }
    /// The shares in the order in which the rule makes them: what would be grabbed if nothing were
    /// shuffled. For test vectors, and to show what the shuffle is for.
    #[cfg(test)]
    pub(in crate::domain) fn unshuffled(&self, seed: &SplitSeed) -> Vec<i64> {
        rules::shares(self, &mut WordStream::new(seed))
    }
}
