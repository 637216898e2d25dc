//! The law of conservation, and what breaks it.
//!
//! For every envelope, at every instant:
//! funded = remaining + won and unsettled + settled + refunded. What was made good comes from the
//! operator's reserve, outside the envelope.

use serde::Serialize;

use super::id::{EnvelopeId, TenantId};

/// One envelope's money, gathered from both stores. Minor units of one currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EnvelopeBooks {
    /// Put in by the sender.
    pub funded_minor: i64,
    /// Shares that nobody took.
    pub remaining_minor: i64,
    /// Taken or declined, and not yet in the ledger.
    pub unsettled_minor: i64,
    /// Paid to grabbers.
    pub settled_minor: i64,
    /// Back with the sender.
    pub refunded_minor: i64,
}

impl EnvelopeBooks {
    /// What is missing (negative) or too much (positive); zero is the law.
    pub fn imbalance_minor(&self) -> i128 {
        let parts = [
            self.remaining_minor,
            self.unsettled_minor,
            self.settled_minor,
            self.refunded_minor,
        ];
        parts.into_iter().map(i128::from).sum::<i128>() - i128::from(self.funded_minor)
    }

    /// Whether the law holds and no part is negative.
    pub fn balanced(&self) -> bool {
        let parts = [
            self.funded_minor,
            self.remaining_minor,
            self.unsettled_minor,
            self.settled_minor,
            self.refunded_minor,
        ];
        self.imbalance_minor() == 0 && parts.into_iter().all(|part| part >= 0)
    }
}

/// What kind of wrong an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiscrepancyKind {
    /// An envelope's money does not add up.
    EnvelopeUnbalanced,
    /// A posting's entries do not add up to zero.
    PostingUnbalanced,
    /// An account's balance is not the sum of its entries.
    BalanceWrong,
    /// Paid, but not granted; or with another amount or grabber.
    ClaimWithoutGrant,
    /// Granted long ago, but not paid.
    GrantWithoutClaim,
    /// A claim's amount is not what the seed says.
    AmountWrong,
    /// Past its expiry and not closed.
    Stuck,
    /// Has dead letters.
    DeadLetter,
    /// The stores disagree on an envelope's existence or state.
    StateMismatch,
}

/// One thing that is wrong. The detail has numbers, never names of persons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Discrepancy {
    /// What kind.
    pub kind: DiscrepancyKind,
    /// Whose envelope, where it concerns one.
    pub tenant: Option<TenantId>,
    /// Which, where it concerns one.
    pub envelope: Option<EnvelopeId>,
    /// Expected and found.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_law_holds_exactly_when_the_parts_make_up_the_whole(
            parts in proptest::array::uniform4(0_i64..1_000_000_000_000),
            off in 1_i64..1_000,
        ) {
            let [remaining_minor, unsettled_minor, settled_minor, refunded_minor] = parts;
            let mut books = EnvelopeBooks {
                funded_minor: parts.iter().sum(),
                remaining_minor,
                unsettled_minor,
                settled_minor,
                refunded_minor,
            };
            prop_assert!(books.balanced());
            books.settled_minor += off;
            prop_assert_eq!(books.imbalance_minor(), i128::from(off));
            prop_assert!(!books.balanced());
        }
    }

    #[test]
    fn a_negative_part_breaks_the_law_even_where_the_sum_is_right() {
        let books = EnvelopeBooks {
            funded_minor: 10,
            remaining_minor: 15,
            refunded_minor: -5,
            ..EnvelopeBooks::default()
        };
        assert_eq!(books.imbalance_minor(), 0);
        assert!(!books.balanced());
    }
}
