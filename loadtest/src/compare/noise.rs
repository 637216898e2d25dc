//! Whether two samples differ by more than chance: the two methods that a comparison uses.
//!
//! **Several runs on each side**: Mann and Whitney's test on the figures of the runs, two-sided, exact: the
//! place of the observed rank sum among those of all ways to deal the runs to the sides (Mann & Whitney,
//! "On a test of whether one of two random variables is stochastically larger than the other", 1947; ties
//! share their mean rank). It assumes nothing of the figures' distribution, only that runs don't influence
//! each other; whoever runs all of one side before the other, on a machine that warms up or fills its disk,
//! breaks that.
//!
//! **One run on each side**: a circular block bootstrap over the seconds of both runs, paired (Künsch, "The
//! jackknife and the bootstrap for general stationary observations", 1989; Politis & Romano, "A circular
//! block-resampling procedure for stationary data", 1992). Pairs, since the same second of the same
//! profile and seed has the same arrivals; blocks of ∛n seconds, since a second that is slow makes the next
//! one slow. It tells whether the *seconds of these two runs* differ. What differs from run to run (where
//! the disk wrote, what else ran) it can't see.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Resamplings: the ends of a 99 % interval lie 10 from the edge.
const RESAMPLINGS: usize = 2_000;
/// Of them, beyond each end of the interval: 1 % of both together.
const BEYOND: usize = RESAMPLINGS / 200;
/// The same files give the same answer.
const SEED: u64 = 1;

/// A second's part of a figure: what is added up, and what it is divided by.
pub type Part = (f64, f64);

/// The 99 % interval of the ratio of two figures, from parts of the same seconds. None: a side has none.
pub fn interval(before: &[Part], after: &[Part]) -> Option<(f64, f64)> {
    let count = before.len().min(after.len());
    let block = (1..=count).find(|side| side * side * side >= count)?;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut ratios = Vec::with_capacity(RESAMPLINGS);
    for _ in 0..RESAMPLINGS {
        let mut sums = [(0.0, 0.0); 2];
        let mut drawn = 0;
        while drawn < count {
            let first = rng.random_range(0..count);
            for place in (first..first + block.min(count - drawn)).map(|it| it % count) {
                add(&mut sums[0], before[place]);
                add(&mut sums[1], after[place]);
            }
            drawn += block;
        }
        let ratio = (sums[1].0 / sums[1].1) / (sums[0].0 / sums[0].1);
        if ratio.is_finite() {
            ratios.push(ratio);
        }
    }
    // A figure that is nought in most resamplings has no ratio.
    (ratios.len() == RESAMPLINGS).then(|| {
        ratios.sort_by(f64::total_cmp);
        (ratios[BEYOND], ratios[RESAMPLINGS - 1 - BEYOND])
    })
}

fn add(sum: &mut Part, part: Part) {
    sum.0 += part.0;
    sum.1 += part.1;
}

/// How likely rank sums at least as far from the middle are if the sides don't differ.
pub fn mann_whitney(before: &[f64], after: &[f64]) -> f64 {
    let all: Vec<f64> = before.iter().chain(after).copied().collect();
    // Twice the mean rank is whole, ties or not.
    let ranks: Vec<usize> = all
        .iter()
        .map(|value| {
            let below = all.iter().filter(|other| *other < value).count();
            let alike = all.iter().filter(|other| *other == value).count();
            2 * below + alike + 1
        })
        .collect();
    let seen: usize = ranks[..before.len()].iter().sum();
    // ways[n][s]: so many choices of n runs have the doubled rank sum s.
    let most: usize = ranks.iter().sum();
    let mut ways = vec![vec![0.0_f64; most + 1]; before.len() + 1];
    ways[0][0] = 1.0;
    for rank in ranks {
        for chosen in (1..=before.len()).rev() {
            for sum in (rank..=most).rev() {
                let more = ways[chosen - 1][sum - rank];
                ways[chosen][sum] += more;
            }
        }
    }
    let ways = &ways[before.len()];
    let total: f64 = ways.iter().sum();
    let low: f64 = ways[..=seen].iter().sum();
    let high: f64 = ways[seen..].iter().sum();
    (2.0 * low.min(high) / total).min(1.0)
}

/// The middle one, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_probabilities_are_those_of_the_published_tables() {
        // No overlap: 2 / (10 over 5), 2 / (8 over 4), 2 / (6 over 3).
        let five = [1.0, 2.0, 3.0, 4.0, 5.0];
        let far = five.map(|value| value + 10.0);
        assert!((mann_whitney(&five, &far) - 2.0 / 252.0).abs() < 1e-12);
        assert!((mann_whitney(&far[..4], &five[..4]) - 2.0 / 70.0).abs() < 1e-12);
        assert!((mann_whitney(&far[..3], &five[..3]) - 0.1).abs() < 1e-12);
        // U = 2 of 5 and 5: the cumulative counts of the table are 1, 2, 4 of 252.
        let p = mann_whitney(&[1.0, 2.0, 3.0, 4.0, 7.5], &[5.0, 6.0, 7.0, 8.0, 9.0]);
        assert!((p - 2.0 * 7.0 / 252.0).abs() < 1e-12, "{p}");
    }

    #[test]
    fn sides_that_are_alike_are_never_told_apart() {
        assert_eq!(mann_whitney(&[3.0; 5], &[3.0; 5]), 1.0);
        let mixed = mann_whitney(&[1.0, 4.0, 5.0, 8.0], &[2.0, 3.0, 6.0, 7.0]);
        assert_eq!(mixed, 1.0);
    }

    #[test]
    fn an_interval_holds_the_ratio_that_was_planted_and_is_the_same_each_time() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut noisy = |mean: f64| -> Vec<Part> {
            let value = |_| (mean * rng.random_range(0.8..1.2), 1.0);
            (0..60).map(value).collect()
        };
        let (before, after) = (noisy(100.0), noisy(130.0));
        let (low, high) = interval(&before, &after).unwrap();
        assert!(low < 1.3 && 1.3 < high && low > 1.2, "{low} to {high}");
        assert_eq!(interval(&before, &after), Some((low, high)));
    }

    #[test]
    fn slow_spells_widen_an_interval_more_than_slow_seconds() {
        let spell = |second: usize| {
            if (second / 10).is_multiple_of(2) {
                1.0
            } else {
                3.0
            }
        };
        let apart = |second: usize| if second.is_multiple_of(2) { 1.0 } else { 3.0 };
        let width = |of: &dyn Fn(usize) -> f64| {
            let after: Vec<Part> = (0..120).map(|second| (of(second), 1.0)).collect();
            let (low, high) = interval(&[(2.0, 1.0); 120], &after).unwrap();
            high - low
        };
        assert!(width(&spell) > 2.0 * width(&apart));
    }

    #[test]
    fn nothing_has_no_interval() {
        assert_eq!(interval(&[], &[]), None);
        assert_eq!(interval(&[(0.0, 1.0); 30], &[(1.0, 1.0); 30]), None);
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
