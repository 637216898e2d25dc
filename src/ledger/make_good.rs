//! What was shown to somebody and went to somebody else: how much of it the reserve pays. PURE.
//!
//! # Shape
//! | the record's share is somebody else's, and who was shown it | the reserve pays |
//! |---|---|
//! | has no share of the envelope | all of what was shown |
//! | has another share, worth less | the difference |
//! | has another share, worth as much or more; or declined the envelope | nothing: superseded |
//! | was made good of the envelope before | nothing: a duplicate, or superseded |
//!
//! Who was made good and is then paid a share of the envelope has the share, and gives back to the reserve
//! what was made good, up to the share's worth. So whichever record comes first, somebody who was shown two
//! amounts has the larger one, and never the sum.
//!
//! # Bounds
//! [`MakeGood`]: per tenant and currency, an amount and a number of records in any [`MAKE_GOOD_MS`]. What
//! is beyond becomes a dead letter with the reason [`CAPPED`]; what the grabber's account has no room for,
//! one with [`NO_ROOM`]. Neither blocks a close, and where an operator dismisses one it stays unpaid.
//!
//! # Not here
//! Whether (share, amount) is what the seed says and the terms allow the grabber: the plan of settlement.

use std::collections::BTreeMap;

use crate::domain::grab::OutboxRecord;
use crate::domain::money::Currency;

/// The time over which the cap holds: any 24 hours.
pub const MAKE_GOOD_MS: i64 = 86_400_000;

/// Why a record is a dead letter: the cap was reached. Stable.
pub const CAPPED: &str = "make_good_capped";

/// Why a record is a dead letter: its grabber's account has no room for what is made good. Stable.
pub const NO_ROOM: &str = "make_good_no_room";

/// Why a record is a dead letter: the books refused it again and again. Stable.
pub const REFUSED_BY_THE_BOOKS: &str = "refused_by_the_books";

/// How much may be made good of one tenant in any [`MAKE_GOOD_MS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MakeGood {
    /// By currency, in minor units. Of one that is not here nothing is made good.
    pub minor_max: BTreeMap<Currency, i64>,
    /// Records of each currency.
    pub records_max: u32,
}

/// What was made good of a tenant and currency in the last [`MAKE_GOOD_MS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub minor: i64,
    pub records: u32,
}

impl MakeGood {
    /// Takes so much more out of what is left, or nothing.
    pub(super) fn takes(&self, currency: Currency, used: &mut Used, minor: i64) -> bool {
        let minor_max = self.minor_max.get(&currency).copied().unwrap_or(0);
        let after = used.minor.saturating_add(minor);
        let fits = after <= minor_max && used.records < self.records_max;
        if fits {
            used.minor = after;
            used.records += 1;
        }
        fits
    }
}

/// What a grabber was made good of an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MadeGood {
    pub share: u32,
    /// What was shown to him.
    pub shown_minor: i64,
    /// What the reserve paid.
    pub amount_minor: i64,
}

impl MadeGood {
    /// Whether it was made good for this record.
    pub(super) fn is_of(&self, record: &OutboxRecord) -> bool {
        let (share, shown_minor) = (record.grant.share, record.grant.amount_minor);
        (self.share, self.shown_minor, false) == (share, shown_minor, record.declined)
    }

    /// What goes back to the reserve where he is paid a share after all. One that was made good beside a
    /// share is never paid another.
    pub(super) fn back_minor(&self, share_minor: i64) -> i64 {
        self.amount_minor.min(share_minor)
    }
}

/// The claim of the share that a record is about, and the other claim of its grabber, as a record finds
/// them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InTheWay {
    /// The share's claim is somebody else's, and of this amount.
    pub taken_minor: Option<i64>,
    /// The grabber's own claim: its amount, and whether it was declined.
    pub own: Option<(i64, bool)>,
}

impl InTheWay {
    /// What the reserve owes by a record of `shown_minor`; nothing where it is superseded.
    pub(super) fn owed_minor(&self, shown_minor: i64) -> Option<i64> {
        if self.taken_minor != Some(shown_minor) {
            return None;
        }
        let owed = match self.own {
            None => shown_minor,
            Some((_, true)) => return None,
            Some((has_minor, false)) => shown_minor - has_minor,
        };
        (owed > 0).then_some(owed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CNY: &str = "CNY";

    fn cny() -> Currency {
        Currency::from_code(CNY).unwrap()
    }

    #[test]
    fn the_reserve_owes_what_was_shown_less_what_the_claim_pays() {
        let taken = |own| InTheWay {
            taken_minor: Some(40),
            own,
        };
        assert_eq!(taken(None).owed_minor(40), Some(40));
        assert_eq!(taken(Some((15, false))).owed_minor(40), Some(25));
        assert_eq!(taken(Some((40, false))).owed_minor(40), None);
        assert_eq!(taken(Some((90, false))).owed_minor(40), None);
        assert_eq!(taken(Some((15, true))).owed_minor(40), None);
        // The share is his own, or nobody's; or worth something else.
        assert_eq!(InTheWay::default().owed_minor(40), None);
        assert_eq!(taken(None).owed_minor(41), None);
    }

    #[test]
    fn whichever_record_comes_first_the_larger_amount_is_what_he_has() {
        for (lost, won) in [(40, 15), (15, 40), (40, 40)] {
            let way = InTheWay {
                taken_minor: Some(lost),
                own: Some((won, false)),
            };
            let claim_first = won + way.owed_minor(lost).unwrap_or(0);
            let made = MadeGood {
                share: 0,
                shown_minor: lost,
                amount_minor: lost,
            };
            let made_good_first = lost + won - made.back_minor(won);
            assert_eq!(claim_first, lost.max(won));
            assert_eq!(made_good_first, lost.max(won));
        }
    }

    #[test]
    fn nothing_is_made_good_beyond_the_amount_or_the_number_or_in_another_currency() {
        let cap = MakeGood {
            minor_max: [(cny(), 100)].into(),
            records_max: 2,
        };
        let mut used = Used::default();
        assert!(!cap.takes(cny(), &mut used, 101));
        assert!(cap.takes(cny(), &mut used, 60));
        assert!(!cap.takes(cny(), &mut used, 41));
        assert!(cap.takes(cny(), &mut used, 1));
        assert!(!cap.takes(cny(), &mut used, 1), "two records are the most");
        assert_eq!((used.minor, used.records), (61, 2));
        let jpy = Currency::from_code("JPY").unwrap();
        assert!(!cap.takes(jpy, &mut Used::default(), 1));
        assert!(!MakeGood::default().takes(cny(), &mut Used::default(), 1));
    }
}
