//! Shows that no share number is luckier than another, and that the unshuffled law fails the same
//! check.
//!
//! **What is asked.** A fair envelope is *exchangeable*: given which amounts are in it, every order of
//! them is equally likely. That null is exact, whatever the law of the amounts, so nothing has to be
//! estimated: for an envelope whose amounts have mean μ, variance v and fourth central moment q,
//!
//! - the share at each position has mean μ and variance v;
//! - its squared distance from μ has mean v and variance q − v²;
//! - it is the (only) best luck of n with probability 1/n;
//! - and, whatever was grabbed before it, its rank among the shares still in the envelope is uniform.
//!
//! The last is the right form of "the next share can't be predicted". Independence would be the wrong
//! one: the sum is exact, so what is gone always tells the mean of what is left, and the last share
//! entirely.
//!
//! **How far chance may stray.** Each check is a sum S over N independent envelopes of terms with mean
//! 0, variances that add up to V, and size at most b. Bernstein's inequality holds for every N:
//! P(|S| ≥ t) ≤ 2 exp(−t² / (2V + 2bt/3)). Setting the right side to p and solving for t gives, with
//! x = ln(2/p), t = bx/3 + √(b²x²/9 + 2Vx). For ranks, the Dvoretzky–Kiefer–Wolfowitz inequality with
//! Massart's constant: P(sup |F_N − F| ≥ ε) ≤ 2 exp(−2Nε²). For the chi-square of best luck, the tail of
//! the chi-square law (Laurent and Massart): P(X ≥ k + 2√(kx) + 2x) ≤ exp(−x) with x = ln(1/p); Pearson's
//! statistic has that law closely, with 4,000 expected a cell.
//!
//! **How often chance may fail us.** With fixed seeds never. With the fresh seed the whole test is to
//! fail by chance with probability below [`CHANCE`]; it makes fewer than [`CHECKS_MAX`] checks, so each
//! is held at p = [`CHANCE`] / [`CHECKS_MAX`] (Bonferroni: no independence is needed).
#![expect(
    clippy::float_arithmetic,
    reason = "statistics about money are not money"
)]

use super::*;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// Of the whole test, with the fresh seed.
const CHANCE: f64 = 1e-9;

/// 4 laws × 1 fresh seed × (50 positions × 3 sums + 1 chi-square + 48 positions × 2 ranks) = 988.
const CHECKS_MAX: f64 = 1_000.0;

const ENVELOPES: u64 = 200_000;
const SHARES: u32 = 50;

/// What was counted at one position.
#[derive(Clone, Default)]
struct Position {
    /// Σ (amount − μ).
    strayed: f64,
    /// Σ ((amount − μ)² − v).
    strayed_squared: f64,
    /// How often it held the only greatest amount.
    best_luck: f64,
    /// How often its rank among what was left was each, after a share above the mean of what was left
    /// with it (1) or not (0).
    ranks: [Vec<u32>; 2],
}

/// What was counted over many envelopes of one law.
struct Tally {
    positions: Vec<Position>,
    /// Σ v over the envelopes.
    variance: f64,
    /// Σ (q − v²).
    variance_squared: f64,
    /// The greatest |amount − μ| and |(amount − μ)² − v| that any position could have had.
    reach: f64,
    reach_squared: f64,
    /// Envelopes with one greatest amount.
    best_lucks: f64,
}

/// A check that failed, in words.
type Bias = String;

fn seed_of(run: u64, envelope: u64) -> SplitSeed {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&run.to_le_bytes());
    seed[8..16].copy_from_slice(&envelope.to_le_bytes());
    SplitSeed(seed)
}

fn cut_of(share_count: u32, split: Split) -> Cut {
    let total_minor = match &split {
        Split::Tiers { tiers } => tiers
            .iter()
            .map(|tier| tier.amount_minor * i64::from(tier.count))
            .sum(),
        // Leaves a remainder for `even`, and few ties for the random rules.
        _ => 100_000 * i64::from(share_count) + 17,
    };
    Cut {
        total_minor,
        share_count,
        min_minor: 1,
        max_minor: total_minor,
        split,
    }
}

/// One first prize, so that best luck is defined, and two lesser ones.
fn tiers() -> Split {
    let tiers = [(50_000, 1), (10_000, 9), (1_000, 40)]
        .map(|(amount_minor, count)| Tier {
            amount_minor,
            count,
        })
        .to_vec();
    Split::Tiers { tiers }
}

impl Tally {
    fn new(share_count: u32) -> Self {
        let position = |number: u32| Position {
            ranks: std::array::from_fn(|_| vec![0; (share_count - number) as usize]),
            ..Position::default()
        };
        Self {
            positions: (0..share_count).map(position).collect(),
            variance: 0.0,
            variance_squared: 0.0,
            reach: 0.0,
            reach_squared: 0.0,
            best_lucks: 0.0,
        }
    }

    /// Counts `envelopes` envelopes whose amounts `amounts_of` makes.
    fn count(
        cut: &Cut,
        run: u64,
        envelopes: u64,
        amounts_of: fn(&Cut, &SplitSeed) -> Vec<i64>,
    ) -> Self {
        let mut tally = Self::new(cut.share_count);
        let mean = cut.total_minor as f64 / f64::from(cut.share_count);
        for envelope in 0..envelopes {
            let amounts = amounts_of(cut, &seed_of(run, envelope));
            tally.add_moments(&amounts, mean);
            tally.add_best_luck(&amounts);
            tally.add_ranks(&amounts, envelope);
        }
        tally
    }

    fn add_moments(&mut self, amounts: &[i64], mean: f64) {
        let share_count = amounts.len() as f64;
        let squares = || amounts.iter().map(|&amount| (amount as f64 - mean).powi(2));
        let v = squares().sum::<f64>() / share_count;
        let q = squares().map(|square| square * square).sum::<f64>() / share_count;
        self.variance += v;
        self.variance_squared += q - v * v;
        for (position, square) in self.positions.iter_mut().zip(squares()) {
            position.strayed_squared += square - v;
            self.reach = self.reach.max(square.sqrt());
            self.reach_squared = self.reach_squared.max((square - v).abs());
        }
        for (position, &amount) in self.positions.iter_mut().zip(amounts) {
            position.strayed += amount as f64 - mean;
        }
    }

    fn add_best_luck(&mut self, amounts: &[i64]) {
        let best = amounts.iter().max().expect("an envelope has a share");
        let mut holders = (0..amounts.len()).filter(|&number| amounts[number] == *best);
        // A tie goes to the lowest number by rule, which is not the shuffle's doing.
        if let (Some(holder), None) = (holders.next(), holders.next()) {
            self.positions[holder].best_luck += 1.0;
            self.best_lucks += 1.0;
        }
    }

    /// The rank of each share from the second on among those that were still in the envelope. Equal
    /// amounts are ranked by a coin that knows nothing of the split.
    fn add_ranks(&mut self, amounts: &[i64], envelope: u64) {
        let mut left: i64 = amounts.iter().sum();
        let mut coin = envelope.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for number in 1..amounts.len() {
            let before = amounts[number - 1];
            let shares_left = i64::try_from(amounts.len() - number + 1).expect("50 at most");
            let lucky_before = usize::from(before * shares_left > left);
            left -= before;
            let (mut below, mut equal) = (0_usize, 0_usize);
            for &other in &amounts[number..] {
                below += usize::from(other < amounts[number]);
                equal += usize::from(other == amounts[number]);
            }
            // Xorshift: a place among the equals.
            coin ^= coin << 13;
            coin ^= coin >> 7;
            coin ^= coin << 17;
            let among = usize::try_from(((coin >> 32) * equal as u64) >> 32).expect("50 at most");
            self.positions[number].ranks[lucky_before][below + among] += 1;
        }
    }

    /// Every check that this tally fails.
    fn biases(&self) -> Vec<Bias> {
        let p = CHANCE / CHECKS_MAX;
        let x = (2.0 / p).ln();
        let bernstein = |v: f64, b: f64| b * x / 3.0 + (b * b * x * x / 9.0 + 2.0 * v * x).sqrt();
        let share_count = self.positions.len() as f64;
        let expected = self.best_lucks / share_count;
        let bound = bernstein(self.variance, self.reach);
        let bound_squared = bernstein(self.variance_squared, self.reach_squared);
        let bound_best = bernstein(expected * (1.0 - 1.0 / share_count), 1.0);
        let mut biases = Vec::new();
        let mut chi_square = 0.0;
        for (number, position) in self.positions.iter().enumerate() {
            let best = position.best_luck - expected;
            if expected > 0.0 {
                chi_square += best * best / expected;
            }
            // Bounds of zero (equal shares) leave the rounding of floats.
            for (what, strayed, bound) in [
                ("mean", position.strayed, bound + 1e-3),
                ("variance", position.strayed_squared, bound_squared + 1e-3),
                ("best luck", best, bound_best),
            ] {
                if strayed.abs() > bound {
                    biases.push(format!(
                        "{what} at {number}: {strayed:.0}, bound {bound:.0}"
                    ));
                }
            }
            biases.extend(position.rank_biases(number, x));
        }
        let freedom = share_count - 1.0;
        let x = (1.0 / p).ln();
        let bound = freedom + 2.0 * (freedom * x).sqrt() + 2.0 * x;
        if chi_square > bound {
            biases.push(format!(
                "chi-square of best luck: {chi_square:.0}, bound {bound:.0}"
            ));
        }
        biases
    }
}

impl Position {
    /// Dvoretzky–Kiefer–Wolfowitz on the ranks, after a lucky share and after another.
    fn rank_biases(&self, number: usize, x: f64) -> Vec<Bias> {
        let mut biases = Vec::new();
        for (lucky_before, counts) in self.ranks.iter().enumerate() {
            let total = counts.iter().sum::<u32>();
            // The last share has one rank only.
            if total == 0 || counts.len() < 2 {
                continue;
            }
            let bound = (x / (2.0 * f64::from(total))).sqrt();
            let mut seen = 0;
            let mut strayed = 0.0_f64;
            for (rank, count) in counts.iter().enumerate() {
                seen += count;
                let uniform = (rank + 1) as f64 / counts.len() as f64;
                strayed = strayed.max((f64::from(seen) / f64::from(total) - uniform).abs());
            }
            if strayed > bound {
                biases.push(format!(
                    "rank at {number} after luck {lucky_before}: {strayed:.4}, bound {bound:.4}"
                ));
            }
        }
        biases
    }
}

fn grabbed(cut: &Cut, seed: &SplitSeed) -> Vec<i64> {
    cut.amounts(seed).expect("the cut is possible")
}

fn as_made(cut: &Cut, seed: &SplitSeed) -> Vec<i64> {
    cut.unshuffled(seed)
}

/// A run number that differs each time, from the keys of the standard library's hash maps.
fn fresh_run() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// An unoptimised build counts a fiftieth of the envelopes: the bounds follow the number, so the test
/// is as sound and only less sharp.
fn envelopes() -> u64 {
    if cfg!(debug_assertions) {
        ENVELOPES / 50
    } else {
        ENVELOPES
    }
}

fn fair(split: Split) {
    let cut = cut_of(SHARES, split);
    for run in [1, fresh_run()] {
        println!("run {run} of {:?}", cut.split);
        let biases = Tally::count(&cut, run, envelopes(), grabbed).biases();
        assert_eq!(biases, Vec::<Bias>::new(), "run {run}");
    }
}

#[test]
fn no_position_is_favoured_by_double_mean() {
    fair(Split::DoubleMean);
}

#[test]
fn no_position_is_favoured_by_broken_stick() {
    fair(Split::BrokenStick);
}

#[test]
fn no_position_is_favoured_by_tiers() {
    fair(tiers());
}

#[test]
fn no_position_is_favoured_by_even() {
    fair(Split::Even);
}

#[test]
fn unshuffled_double_mean_fails_the_same_check() {
    let cut = cut_of(SHARES, Split::DoubleMean);
    let biases = Tally::count(&cut, 1, envelopes(), as_made).biases();
    let mut shown = vec!["variance", "best luck", "chi-square"];
    // Ranks stray by two to five hundredths, which takes the full number of envelopes to see.
    if envelopes() == ENVELOPES {
        shown.push("rank");
    }
    for what in shown {
        let found = biases.iter().filter(|bias| bias.starts_with(what)).count();
        assert!(found > 0, "{what} shows nothing: {biases:?}");
    }
    // Its mean is the same everywhere: what is drawn has the mean of what remains, but for the
    // minimum, which is a hundred-thousandth of it here.
    assert!(
        !biases.iter().any(|bias| bias.starts_with("mean")),
        "{biases:?}"
    );
}

#[test]
fn unshuffled_lists_fail_the_same_check() {
    for split in [tiers(), Split::Even] {
        let cut = cut_of(SHARES, split);
        let biases = Tally::count(&cut, 1, 1_000, as_made).biases();
        assert!(
            biases.iter().any(|bias| bias.starts_with("mean at 0")),
            "{biases:?}"
        );
    }
}

#[test]
fn unshuffled_spacings_are_unfair_where_the_units_are_few() {
    // Spacings of a continuous stick are exchangeable as they are. On few units they are not: points
    // that coincide make empty spacings between them, and the two ends have a point on one side only.
    let cut = Cut {
        total_minor: 2 * i64::from(SHARES),
        share_count: SHARES,
        min_minor: 1,
        max_minor: 2 * i64::from(SHARES),
        split: Split::BrokenStick,
    };
    let biases = Tally::count(&cut, 1, 4_000, as_made).biases();
    assert!(
        biases.iter().any(|bias| bias.starts_with("mean at 0")),
        "{biases:?}"
    );
    let biases = Tally::count(&cut, 1, 4_000, grabbed).biases();
    assert_eq!(biases, Vec::<Bias>::new());
}

#[test]
fn without_the_shuffle_the_last_two_of_a_hundred_have_the_best_luck_eight_times_as_often() {
    let share_of_the_last_two = |amounts_of| {
        let tally = Tally::count(&cut_of(100, Split::DoubleMean), 2, 20_000, amounts_of);
        let last_two: f64 = tally.positions[98..].iter().map(|at| at.best_luck).sum();
        last_two / tally.best_lucks
    };
    // Fixed seeds. Fair is 2 of 100.
    let unshuffled = share_of_the_last_two(as_made) / 0.02;
    let shuffled = share_of_the_last_two(grabbed) / 0.02;
    println!("times as likely: unshuffled {unshuffled:.2}, shuffled {shuffled:.2}");
    assert!(unshuffled > 5.0, "{unshuffled}");
    assert!((0.8..1.2).contains(&shuffled), "{shuffled}");
}
