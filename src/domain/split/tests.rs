//! What holds for every cut: exact sums, kept bounds, one answer per seed, and a yes or no that the
//! cut then keeps.

use super::*;
use proptest::prelude::*;

/// A possible cut of one of the four rules, from a few shares to a few hundred, roomy or tight.
fn possible_cut() -> impl Strategy<Value = Cut> {
    prop_oneof![3 => random_rule_cut(), 1 => tiers_cut()]
}

fn random_rule_cut() -> impl Strategy<Value = Cut> {
    let rule = prop_oneof![
        Just(Split::Even),
        Just(Split::DoubleMean),
        Just(Split::BrokenStick)
    ];
    let width = prop_oneof![0_i64..4, 0_i64..2_000, 0_i64..1_000_000_000_000];
    (1_u32..400, 1_i64..5_000, width, 0_u32..=1_000, rule).prop_map(
        |(share_count, min_minor, width, part, split)| {
            // Anywhere from all at the minimum (part 0) to all at the maximum (part 1,000).
            let above = i128::from(share_count) * i128::from(width) * i128::from(part) / 1_000;
            Cut {
                total_minor: min_minor * i64::from(share_count) + i64::try_from(above).unwrap(),
                share_count,
                min_minor,
                max_minor: min_minor + width,
                split,
            }
        },
    )
}

fn tiers_cut() -> impl Strategy<Value = Cut> {
    proptest::collection::vec((1_i64..100_000, 1_u32..40), 1..12).prop_map(|lines| {
        let tiers: Vec<Tier> = lines
            .into_iter()
            .map(|(amount_minor, count)| Tier {
                amount_minor,
                count,
            })
            .collect();
        Cut {
            total_minor: tiers
                .iter()
                .map(|tier| tier.amount_minor * i64::from(tier.count))
                .sum(),
            share_count: tiers.iter().map(|tier| tier.count).sum(),
            min_minor: tiers.iter().map(|tier| tier.amount_minor).min().unwrap(),
            max_minor: tiers.iter().map(|tier| tier.amount_minor).max().unwrap(),
            split: Split::Tiers { tiers },
        }
    })
}

fn cut(total_minor: i64, share_count: u32, min_minor: i64, max_minor: i64, split: Split) -> Cut {
    Cut {
        total_minor,
        share_count,
        min_minor,
        max_minor,
        split,
    }
}

proptest! {
    #[test]
    fn the_shares_are_counted_bounded_and_add_up(cut in possible_cut(), seed: [u8; 32]) {
        prop_assert_eq!(cut.check(), Ok(()));
        let amounts = cut.amounts(&SplitSeed(seed)).unwrap();
        prop_assert_eq!(amounts.len(), cut.share_count as usize);
        prop_assert_eq!(amounts.iter().sum::<i64>(), cut.total_minor);
        for amount in amounts {
            prop_assert!((cut.min_minor..=cut.max_minor).contains(&amount));
        }
    }

    #[test]
    fn one_seed_makes_one_split(cut in possible_cut(), seed: [u8; 32]) {
        prop_assert_eq!(cut.amounts(&SplitSeed(seed)), cut.amounts(&SplitSeed(seed)));
    }

    #[test]
    fn the_shuffle_moves_shares_and_changes_none(cut in possible_cut(), seed: [u8; 32]) {
        let mut words = WordStream::new(&SplitSeed(seed));
        let mut made = rules::shares(&cut, &mut words);
        let mut grabbed = cut.amounts(&SplitSeed(seed)).unwrap();
        made.sort_unstable();
        grabbed.sort_unstable();
        prop_assert_eq!(made, grabbed);
    }

    #[test]
    fn a_total_outside_the_bounds_is_rejected_and_names_its_field(
        cut in random_rule_cut(),
        missing in 1_i64..1_000,
    ) {
        let least = cut.min_minor * i64::from(cut.share_count);
        let too_small = Cut { total_minor: (least - missing).max(1), ..cut.clone() };
        if too_small.total_minor < least {
            prop_assert_eq!(too_small.check().unwrap_err().field(), "total_minor");
            prop_assert!(too_small.amounts(&SplitSeed([0; 32])).is_err());
        }
        let most = i128::from(cut.max_minor) * i128::from(cut.share_count);
        if let Ok(total_minor) = i64::try_from(most + i128::from(missing))
            && total_minor <= AMOUNT_MINOR_MAX
        {
            let too_large = Cut { total_minor, ..cut };
            prop_assert_eq!(too_large.check().unwrap_err().field(), "max_minor");
            prop_assert!(too_large.amounts(&SplitSeed([0; 32])).is_err());
        }
    }

    #[test]
    fn any_numbers_at_all_are_either_rejected_or_cut(
        total_minor: i64, share_count in 0_u32..2_000, min_minor: i64, max_minor: i64,
    ) {
        for split in [Split::Even, Split::DoubleMean, Split::BrokenStick] {
            let cut = cut(total_minor, share_count, min_minor, max_minor, split);
            prop_assert_eq!(cut.check().is_ok(), cut.amounts(&SplitSeed([1; 32])).is_ok());
        }
    }

    #[test]
    fn tiers_that_do_not_add_up_are_rejected(cut in tiers_cut(), more in 1_i64..100) {
        let total_minor = cut.total_minor + more;
        let off = Cut { total_minor, max_minor: total_minor, ..cut.clone() };
        prop_assert_eq!(off.check().unwrap_err().field(), "split.tiers");
        let share_count = cut.share_count + 1;
        let total_minor = cut.total_minor + cut.min_minor;
        let off = Cut { share_count, total_minor, max_minor: total_minor, ..cut };
        prop_assert_eq!(off.check().unwrap_err().field(), "split.tiers");
    }

    #[test]
    fn a_cut_survives_json(cut in possible_cut()) {
        let json = serde_json::to_string(&cut).unwrap();
        prop_assert_eq!(serde_json::from_str::<Cut>(&json).unwrap(), cut);
    }
}

#[test]
fn even_shares_differ_by_at_most_one_unit() {
    let amounts = cut(1_003, 10, 1, 1_003, Split::Even)
        .amounts(&SplitSeed([5; 32]))
        .unwrap();
    assert_eq!(amounts.iter().filter(|&&amount| amount == 101).count(), 3);
    assert_eq!(amounts.iter().filter(|&&amount| amount == 100).count(), 7);
}

#[test]
fn even_keeps_bounds_that_only_the_mean_fits() {
    assert!(cut(1_000, 10, 100, 100, Split::Even).check().is_ok());
    assert!(cut(1_001, 10, 100, 101, Split::Even).check().is_ok());
    assert_eq!(
        cut(1_001, 10, 100, 100, Split::Even)
            .check()
            .unwrap_err()
            .field(),
        "max_minor"
    );
}

#[test]
fn each_broken_rule_names_the_field_to_change() {
    let limit = AMOUNT_MINOR_MAX;
    let cases = [
        (cut(0, 1, 1, 1, Split::Even), "total_minor"),
        (cut(-5, 1, 1, 1, Split::Even), "total_minor"),
        (cut(limit + 1, 1, 1, limit, Split::Even), "total_minor"),
        (cut(10, 0, 1, 10, Split::Even), "share_count"),
        (
            cut(limit, SHARE_COUNT_MAX + 1, 1, limit, Split::Even),
            "share_count",
        ),
        (cut(10, 2, 0, 10, Split::Even), "min_minor"),
        (cut(10, 2, i64::MIN, 10, Split::Even), "min_minor"),
        (cut(10, 2, 6, 5, Split::Even), "max_minor"),
        (cut(10, 2, 1, i64::MAX, Split::Even), "max_minor"),
        (cut(10, 11, 1, 10, Split::DoubleMean), "total_minor"),
        (cut(10, 2, 1, 4, Split::BrokenStick), "max_minor"),
        (
            cut(10, 2, 1, 10, Split::Tiers { tiers: vec![] }),
            "split.tiers",
        ),
    ];
    for (cut, field) in cases {
        assert_eq!(cut.check().unwrap_err().field(), field, "{cut:?}");
    }
}

#[test]
fn each_broken_tier_is_named() {
    let tiers = |lines: &[(i64, u32)]| Split::Tiers {
        tiers: lines
            .iter()
            .map(|&(amount_minor, count)| Tier {
                amount_minor,
                count,
            })
            .collect(),
    };
    assert_eq!(
        cut(10, 2, 1, 10, tiers(&[(5, 2), (7, 0)])).check(),
        Err(CutError::TierEmpty { tier_number: 1 })
    );
    assert!(matches!(
        cut(10, 2, 1, 8, tiers(&[(1, 1), (9, 1)])).check(),
        Err(CutError::TierAmountOutOfRange { tier_number: 1, .. })
    ));
    assert_eq!(
        cut(10, 2, 1, 10, tiers(&[(1, u32::MAX), (1, u32::MAX)])).check(),
        Err(CutError::TierCountsMismatch {
            counted: 8_589_934_590,
            share_count: 2
        })
    );
    let limit = AMOUNT_MINOR_MAX;
    assert!(matches!(
        cut(limit, 2, 1, limit, tiers(&[(limit, 2)])).check(),
        Err(CutError::TierSumMismatch { .. })
    ));
    let lines = vec![(1, 1); TIER_COUNT_MAX + 1];
    assert!(matches!(
        cut(1_001, 1_001, 1, 1, tiers(&lines)).check(),
        Err(CutError::TierCountOutOfRange { .. })
    ));
}

#[test]
fn the_largest_amounts_do_not_overflow() {
    for split in [Split::DoubleMean, Split::BrokenStick] {
        for max_minor in [
            AMOUNT_MINOR_MAX,
            AMOUNT_MINOR_MAX / 2,
            AMOUNT_MINOR_MAX / 1_000,
        ] {
            let cut = cut(AMOUNT_MINOR_MAX, 1_000, 1, max_minor, split.clone());
            let amounts = cut.amounts(&SplitSeed([3; 32])).unwrap();
            assert_eq!(amounts.iter().sum::<i64>(), AMOUNT_MINOR_MAX);
            assert!(
                amounts
                    .iter()
                    .all(|amount| (1..=max_minor).contains(amount))
            );
        }
    }
}

#[test]
fn the_most_shares_are_cut_exactly() {
    // An unoptimised build cuts a tenth of them: the sums are as exact, and it would take a minute.
    let share_count = if cfg!(debug_assertions) {
        SHARE_COUNT_MAX / 10
    } else {
        SHARE_COUNT_MAX
    };
    // A mean of 900,000,000 and a little more room than that: about every fourth share is cut off.
    for (split, max_minor) in [
        (Split::DoubleMean, AMOUNT_MINOR_MAX),
        (
            Split::BrokenStick,
            1_200_000_000 * i64::from(SHARE_COUNT_MAX / share_count),
        ),
    ] {
        let cut = cut(AMOUNT_MINOR_MAX, share_count, 1, max_minor, split);
        let amounts = cut.amounts(&SplitSeed([4; 32])).unwrap();
        assert_eq!(amounts.len(), share_count as usize);
        assert_eq!(amounts.iter().sum::<i64>(), AMOUNT_MINOR_MAX);
        assert!(
            amounts
                .iter()
                .all(|amount| (1..=max_minor).contains(amount))
        );
    }
}
