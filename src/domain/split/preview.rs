//! Tells a sender what a cut will be like before anyone pays: bounds, mean, quantiles, an example.
//!
//! The random rules are sampled with fixed public seeds, so the same cut always previews alike and
//! a preview says nothing about any envelope. `even` and `tiers` have nothing to sample: their
//! quantiles are exact.
//!
//! *Bounds.* At most [`PREVIEW_SHARES_MAX`] shares are cut and sorted: under 20 ms of one core.

use super::{Cut, CutError, Split, SplitSeed};

/// The most shares that a preview cuts. The quantile nearest an end, 1 in 1,000, then rests on a
/// hundred samples: within about a tenth of its own rank, at a cost that an unpaid call may have.
pub const PREVIEW_SHARES_MAX: u32 = 100_000;

/// The most shares of the example, about what a screen shows.
pub const EXAMPLE_SHARES_MAX: usize = 100;

/// The quantiles that are told, in thousandths.
const PERMILLES: [u32; 11] = [1, 10, 50, 100, 250, 500, 750, 900, 950, 990, 999];

/// A quantile is told only where so many samples are expected beyond it: the tenth from the end is
/// good to a third of its rank, the first to nothing at all.
const SAMPLES_BEYOND_MIN: usize = 10;

/// What to expect of a cut. Amounts are minor units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// The least that any share can come to, over all seeds.
    pub share_min_minor: i64,
    /// The most that any share can come to, over all seeds.
    pub share_max_minor: i64,
    /// The mean of the shares, rounded down.
    pub mean_minor: i64,
    /// What the rounding dropped: the mean is `mean_minor` + `mean_remainder` / share count.
    pub mean_remainder: i64,
    /// (thousandths, amount): so many thousandths of all shares are worth at most this amount.
    pub quantiles: Vec<(u32, i64)>,
    /// The same for the greatest share of an envelope. Shorter, or empty, where the envelope is too
    /// large for enough of its like to be sampled (above 10,000 shares, for the random rules).
    pub best_luck_quantiles: Vec<(u32, i64)>,
    /// The first shares, at most [`EXAMPLE_SHARES_MAX`], of one envelope in grabbing order.
    pub example: Vec<i64>,
}

impl Cut {
    /// The distribution of the shares of this cut.
    ///
    /// A cut of more than [`PREVIEW_SHARES_MAX`] shares is previewed on a smaller one with the same
    /// mean and bounds, whose shares have the same distribution to within one part in
    /// [`PREVIEW_SHARES_MAX`].
    pub fn preview(&self) -> Result<Preview, CutError> {
        self.check()?;
        let share_count = i64::from(self.share_count);
        let (share_min_minor, share_max_minor) = self.extremes();
        let mut preview = Preview {
            share_min_minor,
            share_max_minor,
            mean_minor: self.total_minor / share_count,
            mean_remainder: self.total_minor % share_count,
            quantiles: Vec::new(),
            best_luck_quantiles: Vec::new(),
            example: Vec::new(),
        };
        match &self.split {
            Split::Even => {
                let more = self.total_minor % share_count;
                let runs = [
                    (share_min_minor, share_count - more),
                    (share_max_minor, more),
                ];
                self.preview_listed(&runs, &mut preview);
            }
            Split::Tiers { tiers } => {
                let mut runs: Vec<(i64, i64)> = tiers
                    .iter()
                    .map(|tier| (tier.amount_minor, i64::from(tier.count)))
                    .collect();
                runs.sort_unstable();
                self.preview_listed(&runs, &mut preview);
            }
            Split::DoubleMean | Split::BrokenStick => self.preview_sampled(&mut preview)?,
        }
        Ok(preview)
    }

    /// The least and the greatest amount that a share of this checked cut can be.
    fn extremes(&self) -> (i64, i64) {
        let others = i64::from(self.share_count) - 1;
        match &self.split {
            Split::Even => {
                let share_count = i64::from(self.share_count);
                let mean = self.total_minor / share_count;
                (mean, mean + i64::from(self.total_minor % share_count != 0))
            }
            // All others at one bound leave this one the farthest from it.
            Split::DoubleMean | Split::BrokenStick => (
                self.min_minor
                    .max(self.total_minor - others.saturating_mul(self.max_minor)),
                self.max_minor
                    .min(self.total_minor - others * self.min_minor),
            ),
            Split::Tiers { tiers } => {
                let amounts = || tiers.iter().map(|tier| tier.amount_minor);
                (
                    amounts().min().expect("a checked list has a tier"),
                    amounts().max().expect("a checked list has a tier"),
                )
            }
        }
    }

    /// Exact quantiles from (amount, count) runs in ascending order; the example is one shuffle.
    fn preview_listed(&self, runs: &[(i64, i64)], preview: &mut Preview) {
        let share_count = i64::from(self.share_count);
        for permille in PERMILLES {
            // The smallest amount that at least this part of the shares does not exceed.
            let rank = (share_count * i64::from(permille) + 999) / 1_000;
            let mut reached = 0;
            let amount = runs
                .iter()
                .find(|&&(_, count)| {
                    reached += count;
                    reached >= rank
                })
                .map_or(preview.share_max_minor, |&(amount, _)| amount);
            preview.quantiles.push((permille, amount));
            preview
                .best_luck_quantiles
                .push((permille, preview.share_max_minor));
        }
        preview.example = self.listed_example(runs);
    }

    /// Some shares of a listed cut in a shuffled order, without laying out ten million of them.
    fn listed_example(&self, runs: &[(i64, i64)]) -> Vec<i64> {
        let mut words = super::WordStream::new(&public_seed(0));
        let mut left: Vec<(i64, i64)> = runs.to_vec();
        let mut shares_left = i64::from(self.share_count);
        let mut example = Vec::new();
        while shares_left > 0 && example.len() < EXAMPLE_SHARES_MAX {
            // The next share of a shuffled list is a uniform choice among those not yet dealt.
            let mut place = words.between(0, shares_left - 1);
            let run = left.iter_mut().find(|(_, count)| {
                let here = place < *count;
                place -= *count;
                here
            });
            let (amount, count) = run.expect("a place below the sum of the counts lies in a run");
            example.push(*amount);
            *count -= 1;
            shares_left -= 1;
        }
        example
    }

    fn preview_sampled(&self, preview: &mut Preview) -> Result<(), CutError> {
        let sampled = self.scaled_down();
        let envelope_count = PREVIEW_SHARES_MAX / sampled.share_count;
        let mut shares = Vec::with_capacity(PREVIEW_SHARES_MAX as usize);
        let mut best_lucks = Vec::with_capacity(envelope_count as usize);
        for number in 0..envelope_count {
            let amounts = sampled.amounts(&public_seed(number))?;
            best_lucks.extend(amounts.iter().max());
            if number == 0 {
                preview.example = amounts[..amounts.len().min(EXAMPLE_SHARES_MAX)].to_vec();
            }
            shares.extend(amounts);
        }
        if sampled.share_count < self.share_count {
            // The greatest of fewer shares would understate the greatest of all.
            best_lucks.clear();
        }
        preview.quantiles = quantiles(&mut shares);
        preview.best_luck_quantiles = quantiles(&mut best_lucks);
        Ok(())
    }

    /// This cut, or one of [`PREVIEW_SHARES_MAX`] shares with the same mean (rounded down to a whole
    /// total) and bounds. It is possible if this one is: the total per share stays within them.
    fn scaled_down(&self) -> Self {
        if self.share_count <= PREVIEW_SHARES_MAX {
            return self.clone();
        }
        let total_minor = i128::from(self.total_minor) * i128::from(PREVIEW_SHARES_MAX)
            / i128::from(self.share_count);
        Self {
            total_minor: i64::try_from(total_minor).expect("smaller than the total"),
            share_count: PREVIEW_SHARES_MAX,
            ..self.clone()
        }
    }
}

/// A seed that is known to all and used for nothing else.
fn public_seed(number: u32) -> SplitSeed {
    let mut seed = *b"red-envelope preview, public....";
    seed[28..].copy_from_slice(&number.to_le_bytes());
    SplitSeed(seed)
}

/// Those of [`PERMILLES`] that so many samples can tell.
fn quantiles(samples: &mut [i64]) -> Vec<(u32, i64)> {
    samples.sort_unstable();
    PERMILLES
        .into_iter()
        .filter(|&permille| {
            let nearer = permille.min(1_000 - permille) as usize;
            samples.len() * nearer >= SAMPLES_BEYOND_MIN * 1_000
        })
        .map(|permille| {
            let rank = (samples.len() * permille as usize).div_ceil(1_000).max(1);
            (permille, samples[rank - 1])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Tier;
    use super::*;

    fn cut(total_minor: i64, share_count: u32, split: Split) -> Cut {
        Cut {
            total_minor,
            share_count,
            min_minor: 1,
            max_minor: total_minor,
            split,
        }
    }

    #[test]
    fn a_preview_is_the_same_every_time() {
        let cut = cut(20_000, 50, Split::DoubleMean);
        assert_eq!(cut.preview(), cut.preview());
    }

    #[test]
    fn an_even_preview_is_exact() {
        let preview = cut(103, 10, Split::Even).preview().unwrap();
        assert_eq!((preview.share_min_minor, preview.share_max_minor), (10, 11));
        assert_eq!((preview.mean_minor, preview.mean_remainder), (10, 3));
        // Seven of ten shares are 10, so the 700th thousandth is the last that is.
        assert!(preview.quantiles.contains(&(500, 10)));
        assert!(preview.quantiles.contains(&(750, 11)));
        assert!(
            preview
                .best_luck_quantiles
                .iter()
                .all(|&(_, best)| best == 11)
        );
        assert_eq!(preview.example.iter().sum::<i64>(), 103);
    }

    #[test]
    fn a_preview_of_tiers_lists_them_by_their_parts() {
        let tiers = [(500, 1), (1, 900), (20, 99)]
            .map(|(amount_minor, count)| Tier {
                amount_minor,
                count,
            })
            .to_vec();
        let preview = cut(3_380, 1_000, Split::Tiers { tiers }).preview().unwrap();
        assert_eq!((preview.share_min_minor, preview.share_max_minor), (1, 500));
        let told: Vec<i64> = preview
            .quantiles
            .iter()
            .map(|&(_, amount)| amount)
            .collect();
        // The 900th share of a thousand is still worth 1, and the 999th is worth 20.
        assert_eq!(told, [1, 1, 1, 1, 1, 1, 1, 1, 20, 20, 20]);
        assert_eq!(preview.example.len(), EXAMPLE_SHARES_MAX);
    }

    #[test]
    fn double_mean_previews_as_a_law_about_flat_up_to_twice_the_mean() {
        let preview = cut(1_000_000, 50, Split::DoubleMean).preview().unwrap();
        let at = |told: &[(u32, i64)], asked| {
            told.iter()
                .find(|&&(permille, _)| permille == asked)
                .map(|&(_, amount)| amount)
        };
        let median = at(&preview.quantiles, 500).unwrap();
        assert!((18_000..=20_500).contains(&median), "{median}");
        // 2,000 envelopes tell the 10th thousandth of best luck (20 beyond), not the first (2).
        assert!(at(&preview.best_luck_quantiles, 10).is_some());
        assert_eq!(at(&preview.best_luck_quantiles, 1), None);
        assert_eq!(preview.share_max_minor, 1_000_000 - 49);
    }

    #[test]
    fn a_huge_cut_is_previewed_on_a_small_one_and_leaves_best_luck_untold() {
        let cut = cut(
            7_777_777_777,
            super::super::SHARE_COUNT_MAX,
            Split::BrokenStick,
        );
        let preview = cut.preview().unwrap();
        assert_eq!(preview.best_luck_quantiles, []);
        assert_eq!(preview.mean_minor, 777);
        let &(permille, median) = &preview.quantiles[5];
        // The median spacing is ln 2 of the mean: 539.
        assert_eq!(permille, 500);
        assert!((525..=553).contains(&median), "{median}");
    }

    #[test]
    fn one_share_is_the_whole_total() {
        for split in [Split::Even, Split::DoubleMean, Split::BrokenStick] {
            let preview = cut(500, 1, split).preview().unwrap();
            assert_eq!(
                (preview.share_min_minor, preview.share_max_minor),
                (500, 500)
            );
            assert_eq!(preview.example, [500]);
            assert!(preview.quantiles.iter().all(|&(_, amount)| amount == 500));
        }
    }

    #[test]
    fn an_impossible_cut_has_no_preview() {
        assert!(matches!(
            cut(9, 10, Split::Even).preview(),
            Err(CutError::TotalTooSmall { .. })
        ));
    }
}
