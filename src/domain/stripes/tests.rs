//! What is kept by the answers of `stripes` is found again by every later release.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::domain::split::SHARE_COUNT_MAX;

fn count(of: u16) -> StripeCount {
    StripeCount::new(of).unwrap()
}

fn partitions(count: u16) -> PartitionCount {
    PartitionCount::new(count).unwrap()
}

fn person(name: &str) -> PersonId {
    PersonId::parse(name).unwrap()
}

/// Three envelopes of which none is like another.
fn envelopes() -> [EnvelopeId; 3] {
    let counted = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    [
        EnvelopeId::from_bytes([0; 16]),
        EnvelopeId::from_parts(20_000, [7; 14]),
        EnvelopeId::from_bytes(counted),
    ]
}

proptest! {
    #[test]
    fn each_share_is_dealt_once_and_in_order(
        share_count in 1..=SHARE_COUNT_MAX, of in 1..=STRIPES_MAX, some: prop::sample::Index,
    ) {
        let of = count(of);
        let mut next = 0;
        let stripes = u32::from(of.get());
        let (least, most) = (share_count / stripes, share_count.div_ceil(stripes));
        for stripe in of.all() {
            let range = dealt(stripe, of, share_count);
            prop_assert_eq!(range.start, next);
            prop_assert!((least..=most).contains(&(range.end - range.start)), "{:?}", range);
            next = range.end;
            for share in [range.start, range.end.saturating_sub(1)] {
                if range.contains(&share) {
                    prop_assert_eq!(dealt_to(share, of, share_count), Some(stripe));
                }
            }
        }
        prop_assert_eq!(next, share_count);
        let share = u32::try_from(some.index(share_count as usize)).unwrap();
        let stripe = dealt_to(share, of, share_count).unwrap();
        prop_assert!(dealt(stripe, of, share_count).contains(&share));
        prop_assert_eq!(dealt_to(share_count, of, share_count), None);
    }

    #[test]
    fn no_two_stripes_lie_in_one_partition_and_the_first_lies_where_the_envelope_does(
        id: [u8; 16], among in 1..=PartitionCount::MAX, of in 1..=STRIPES_MAX,
    ) {
        let (id, of) = (EnvelopeId::from_bytes(id), count(of.min(among)));
        let among = partitions(among);
        let places: BTreeSet<_> = of.all().map(|stripe| place(id, stripe, of, among)).collect();
        prop_assert_eq!(places.len(), usize::from(of.get()));
        prop_assert!(places.iter().all(|place| place.index() < among.get()));
        prop_assert_eq!(place(id, Stripe::FIRST, of, among), id.partition(among));
    }

    #[test]
    fn what_is_not_dealt_stays_in_its_own_partition_whoever_grabs(
        id: [u8; 16], among in 1..=PartitionCount::MAX, name in "[a-z]{1,9}",
    ) {
        let (id, among) = (EnvelopeId::from_bytes(id), partitions(among));
        let home = home_partition(id, &person(&name), StripeCount::ONE, among);
        prop_assert_eq!(home, id.partition(among));
    }
}

#[test]
fn only_what_has_more_shares_than_the_threshold_is_dealt() {
    let stripes =
        |kind, shares, above, among| StripeCount::of(kind, shares, above, partitions(among)).get();
    for (shares, above, among, expected) in [
        (1, 10_000, 64, 1),
        (10_000, 10_000, 64, 1),
        (10_001, 10_000, 64, 2),
        (20_000, 10_000, 64, 2),
        (20_001, 10_000, 64, 3),
        (10_000_000, 10_000, 64, 64),
        (10_000_000, 10_000, 1_024, 64),
        (10_000_000, 10_000, 8, 8),
        (10_000_000, 10_000, 2, 2),
        (10_000_000, 10_000, 1, 1),
        (10_000_000, 1, 1_024, 64),
        (2, 1, 64, 2),
        (10_000_000, 0, 64, 1),
    ] {
        for kind in [Kind::Lucky, Kind::Equal] {
            let dealt = stripes((kind, false), shares, above, among);
            assert_eq!(dealt, expected, "{shares}");
            assert_eq!(stripes((kind, true), shares, above, among), 1);
        }
        assert_eq!(stripes((Kind::Exclusive, false), shares, above, among), 1);
    }
}

#[test]
fn homes_are_those_of_the_specification() {
    // Computed with Python's hashlib.
    let long = "x".repeat(64);
    let vectors = [
        (0, "alice", [1, 2, 4, 27, 59]),
        (0, "小明", [0, 0, 4, 28, 60]),
        (0, long.as_str(), [1, 0, 2, 9, 41]),
        (0, "0", [0, 1, 0, 28, 60]),
        (1, "alice", [1, 0, 2, 15, 47]),
        (1, "小明", [0, 1, 4, 18, 18]),
        (1, long.as_str(), [1, 0, 0, 19, 19]),
        (1, "0", [1, 0, 4, 19, 19]),
        (2, "alice", [0, 2, 1, 16, 16]),
        (2, "小明", [0, 1, 6, 6, 6]),
        (2, long.as_str(), [1, 2, 4, 17, 17]),
        (2, "0", [0, 0, 5, 16, 48]),
    ];
    for (envelope, name, expected) in vectors {
        let id = envelopes()[envelope];
        let homes = [2, 3, 7, 32, 64].map(|of| home(id, &person(name), count(of)).index());
        assert_eq!(homes, expected, "{id} {name}");
    }
}

#[test]
fn places_are_those_of_the_specification() {
    let places = |id: EnvelopeId, of, among| {
        let all = count(of).all();
        let place = |stripe| place(id, stripe, count(of), partitions(among)).index();
        all.map(place).collect::<Vec<_>>()
    };
    let [zero, seven, _] = envelopes();
    assert_eq!(places(zero, 4, 64), [0, 16, 32, 48]);
    // 0x07070707 is 7 modulo 64, and 3 modulo 10.
    assert_eq!(places(seven, 4, 64), [7, 23, 39, 55]);
    assert_eq!(places(seven, 3, 10), [3, 6, 9]);
    assert_eq!(places(seven, 8, 8), [7, 0, 1, 2, 3, 4, 5, 6]);
}

#[test]
#[should_panic(expected = "an envelope of 3 stripes among 2 partitions")]
fn stripes_that_have_no_partition_of_their_own_are_placed_nowhere() {
    place(envelopes()[0], Stripe::FIRST, count(3), partitions(2));
}

/// Pearson's statistic of so many grabbers, 1,000 for each cell.
fn chi_square(cells: usize, cell: impl Fn(&PersonId) -> usize) -> f64 {
    let mut found = vec![0_u32; cells];
    for number in 0..cells * 1_000 {
        found[cell(&person(&format!("g{number}")))] += 1;
    }
    let square = |n: &u32| (f64::from(*n) - 1_000.0).powi(2) / 1_000.0;
    found.iter().map(square).sum()
}

#[test]
fn grabbers_are_spread_evenly_over_the_stripes_of_an_envelope() {
    // With 1, 2, 6 and 63 degrees of freedom these are exceeded by chance less than once in 10⁹.
    for (of, bound) in [(2, 38.0), (3, 42.0), (7, 54.0), (64, 157.0)] {
        for id in envelopes() {
            let cell = |grabber: &PersonId| usize::from(home(id, grabber, count(of)).index());
            let found = chi_square(usize::from(of), cell);
            assert!(found < bound, "{id}: {found} over {of} stripes");
        }
    }
}

#[test]
fn little_is_left_in_all_stripes_when_the_first_of_them_is_used_up() {
    let of = count(STRIPES_MAX);
    // A stripe of n shares is used up early by a deviation of √n: the fullest of 64 by 2.4 of them on average.
    for (share_count, most_permille) in [(64_000, 150), (192_000, 90)] {
        for id in envelopes() {
            let mut left: Vec<_> = of
                .all()
                .map(|stripe| dealt(stripe, of, share_count).len())
                .collect();
            for number in 0.. {
                let home = home(id, &person(&format!("g{number}")), of);
                let left = &mut left[usize::from(home.index())];
                match *left {
                    0 => break,
                    _ => *left -= 1,
                }
            }
            let all: usize = left.iter().sum();
            let permille = all * 1_000 / usize::try_from(share_count).unwrap();
            assert!((1..most_permille).contains(&permille), "{id}: {permille}");
        }
    }
}

#[test]
fn homes_of_two_envelopes_tell_nothing_of_each_other() {
    let [_, first, second] = envelopes();
    let home = |id, grabber: &PersonId| usize::from(home(id, grabber, count(8)).index());
    let found = chi_square(64, |grabber| {
        8 * home(first, grabber) + home(second, grabber)
    });
    assert!(found < 157.0, "{found}");
}

#[test]
fn a_number_of_stripes_that_there_can_not_be_is_not_read() {
    for (text, expected) in [("1", Some(1)), ("64", Some(64)), ("0", None), ("65", None)] {
        let read = serde_json::from_str::<StripeCount>(text).ok();
        assert_eq!(read.map(StripeCount::get), expected);
        assert_eq!(StripeCount::new(text.parse().unwrap()), read);
    }
}
