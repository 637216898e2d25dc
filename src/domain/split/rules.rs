//! The four rules: shares in the order in which each rule makes them, before the shuffle.
//!
//! *Bounds.* The caller has checked the cut. All sums fit an `i64` because the total does; products
//! that may not are saturated or widened, with the reason beside them.
//!
//! `docs/FAIRNESS.md`, section 7, states this file to the bit.

use super::draw::WordStream;
use super::{Cut, Split, Tier};

/// The shares of a checked cut, unshuffled.
pub(super) fn shares(cut: &Cut, words: &mut WordStream) -> Vec<i64> {
    debug_assert_eq!(cut.check(), Ok(()));
    match &cut.split {
        Split::Even => even(cut),
        Split::DoubleMean => double_mean(cut, words),
        Split::BrokenStick => broken_stick(cut, words),
        Split::Tiers { tiers } => listed(cut, tiers),
    }
}

/// The mean rounded down; the first `remainder` shares are one more.
fn even(cut: &Cut) -> Vec<i64> {
    let share_count = i64::from(cut.share_count);
    let (mean, remainder) = (cut.total_minor / share_count, cut.total_minor % share_count);
    (0..share_count)
        .map(|number| mean + i64::from(number < remainder))
        .collect()
}

/// Each share uniform between the minimum and twice the mean of what remains, clipped so that the
/// shares after it can still be made; the last is what is left.
///
/// With k shares and `remaining` units to go, the interval is
/// max(min, remaining − (k − 1) × max) … min(max, ⌊2 × remaining / k⌋, remaining − (k − 1) × min).
/// It is never empty: k × min ≤ remaining ≤ k × max holds before and, by the clipping, after each
/// draw, and from it every lower end is at most every upper end.
fn double_mean(cut: &Cut, words: &mut WordStream) -> Vec<i64> {
    let mut amounts = Vec::with_capacity(cut.share_count as usize);
    let mut remaining = cut.total_minor;
    for to_go in (2..=i64::from(cut.share_count)).rev() {
        let after = to_go - 1;
        // Where the product saturates, the maximum doesn't bind: the difference is negative.
        let low = cut
            .min_minor
            .max(remaining - after.saturating_mul(cut.max_minor));
        let high = cut
            .max_minor
            .min(2 * remaining / to_go)
            .min(remaining - after * cut.min_minor);
        let amount = words.between(low, high);
        remaining -= amount;
        amounts.push(amount);
    }
    amounts.push(remaining);
    amounts
}

/// The spacings of n − 1 points, each uniform on 0…excess and repeatable, where the excess is what
/// the total has above n minimums; what a spacing has above the maximum is dealt to the others.
fn broken_stick(cut: &Cut, words: &mut WordStream) -> Vec<i64> {
    let excess = cut.total_minor - cut.min_minor * i64::from(cut.share_count);
    let mut points: Vec<i64> = (1..cut.share_count)
        .map(|_| words.between(0, excess))
        .collect();
    points.sort_unstable();
    points.push(excess);
    // In place: each point becomes the distance from the one before it.
    let mut before = 0;
    for point in &mut points {
        let spacing = *point - before;
        before = *point;
        *point = spacing;
    }
    let room = cut.max_minor - cut.min_minor;
    level(&mut points, room);
    for spacing in &mut points {
        *spacing += cut.min_minor;
    }
    points
}

/// Cuts each spacing at `room` and deals what was cut off to the others in proportion to the room
/// that each has left, rounded by running totals so that the sum is exact.
///
/// In effect each spacing's distance to `room` shrinks by one common factor, so who had more keeps
/// at least as much (less one unit of rounding). Nothing changes where no spacing exceeds `room`.
///
/// The products fit: something is cut off only if room < R, the sum of the spacings, and then
/// cut_off × free ≤ (R − room) × n × room ≤ n × R² / 4 ≤ 10^7 × (9 × 10^15)² / 4 < 2^128.
fn level(spacings: &mut [i64], room: i64) {
    let wide = |amount: i64| u128::from(amount.cast_unsigned());
    let mut cut_off = 0_u128;
    let mut free = 0_u128;
    for spacing in spacings.iter() {
        cut_off += wide((spacing - room).max(0));
        free += wide((room - spacing).max(0));
    }
    if cut_off == 0 {
        return;
    }
    let mut free_so_far = 0_u128;
    let mut dealt_so_far = 0_u128;
    for spacing in spacings {
        let kept = (*spacing).min(room);
        free_so_far += wide(room - kept);
        let dealt = cut_off * free_so_far / free;
        let added = i64::try_from(dealt - dealt_so_far).expect("at most this share's free room");
        dealt_so_far = dealt;
        *spacing = kept + added;
    }
}

/// The tiers in the order of the list.
fn listed(cut: &Cut, tiers: &[Tier]) -> Vec<i64> {
    let mut amounts = Vec::with_capacity(cut.share_count as usize);
    for tier in tiers {
        amounts.extend(std::iter::repeat_n(tier.amount_minor, tier.count as usize));
    }
    amounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levelling_keeps_the_sum_the_order_and_the_room() {
        let mut spacings = [100, 0, 30, 7, 63];
        level(&mut spacings, 50);
        // Cut off 50 + 13 = 63; free 50 + 20 + 43 = 113; dealt by running totals of 63/113.
        assert_eq!(spacings, [50, 27, 42, 31, 50]);
    }

    #[test]
    fn levelling_does_not_overflow_at_its_widest_products() {
        // One spacing holds everything, the room is half of it, and ten million are free.
        let mut spacings = vec![0; super::super::SHARE_COUNT_MAX as usize];
        spacings[0] = super::super::AMOUNT_MINOR_MAX;
        level(&mut spacings, super::super::AMOUNT_MINOR_MAX / 2);
        assert_eq!(spacings[0], super::super::AMOUNT_MINOR_MAX / 2);
        assert_eq!(spacings.iter().sum::<i64>(), super::super::AMOUNT_MINOR_MAX);
    }

    #[test]
    fn levelling_leaves_alone_what_fits() {
        let mut spacings = [50, 0, 49];
        level(&mut spacings, 50);
        assert_eq!(spacings, [50, 0, 49]);
    }

    #[test]
    fn levelling_without_a_unit_to_spare_fills_everyone() {
        let mut spacings = [9, 0, 0];
        level(&mut spacings, 3);
        assert_eq!(spacings, [3, 3, 3]);
    }
}
