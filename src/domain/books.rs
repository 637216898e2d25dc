//! The law of conservation, and what breaks it.
//!
//! For every envelope, at every instant:
//! funded = remaining + won and unsettled + settled + refunded. What was made good comes from the
//! operator's reserve, outside the envelope.

use serde::Serialize;

use super::grab::HeldShare;
use super::id::{EnvelopeId, TenantId, UnixMs};

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

/// How long an acknowledged grab may be on its way into the ledger before it counts as lost.
pub const IN_FLIGHT_MS_MAX: i64 = 60_000;

/// What the two stores and the seed say of one share.
#[derive(Clone, Copy, Debug)]
pub struct ShareFacts<'a> {
    /// What the seed says that it is worth; `None` where there is no such share.
    pub said_minor: Option<i64>,
    /// In the ledger, read first.
    pub claim: Option<&'a HeldShare>,
    /// In the hot store, read after it.
    pub grant: Option<&'a HeldShare>,
    /// Whether the hot store holds the envelope at all.
    pub hot_holds: bool,
    /// Whether the ledger can't take any more claims of the envelope: it was closed when its claims
    /// were read.
    pub closed: bool,
}

/// What to make of one share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareVerdict {
    /// Nobody took it.
    Open,
    /// In the books, and rightly so.
    Settled,
    /// On its way into the books.
    InFlight,
    /// It should be in the books by now. Look again: it may have come while the stores were read.
    Late,
    /// Wrong, whenever the stores were read.
    Wrong(DiscrepancyKind),
}

impl ShareFacts<'_> {
    /// Judges one share at an instant. A claim is read before the grant, and a grant is older than
    /// its claim, so a claim that has no grant is wrong and a grant that has no claim may be young.
    pub fn verdict(&self, now: UnixMs) -> ShareVerdict {
        let right_amount = |share: &HeldShare| self.said_minor == Some(share.grant.amount_minor);
        match (self.claim, self.grant) {
            (None, None) => ShareVerdict::Open,
            (Some(claim), _) if !right_amount(claim) => {
                ShareVerdict::Wrong(DiscrepancyKind::AmountWrong)
            }
            (_, Some(grant)) if !right_amount(grant) => {
                ShareVerdict::Wrong(DiscrepancyKind::AmountWrong)
            }
            (Some(claim), Some(grant)) => {
                let same = claim.grabber == grant.grabber && claim.declined == grant.declined;
                if same {
                    ShareVerdict::Settled
                } else {
                    ShareVerdict::Wrong(DiscrepancyKind::ClaimWithoutGrant)
                }
            }
            (Some(_), None) if self.hot_holds => {
                ShareVerdict::Wrong(DiscrepancyKind::ClaimWithoutGrant)
            }
            (Some(_), None) => ShareVerdict::Settled,
            (None, Some(_)) if self.closed => {
                ShareVerdict::Wrong(DiscrepancyKind::GrantWithoutClaim)
            }
            (None, Some(grant)) if grant.grant.at.plus_ms(IN_FLIGHT_MS_MAX) < now => {
                ShareVerdict::Late
            }
            (None, Some(_)) => ShareVerdict::InFlight,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grab::Grant;
    use crate::domain::id::PersonId;
    use proptest::prelude::*;

    fn held(grabber: &str, amount_minor: i64, at: i64) -> HeldShare {
        HeldShare {
            grabber: PersonId::parse(grabber).unwrap(),
            grant: Grant {
                share: 0,
                amount_minor,
                at: UnixMs(at),
            },
            declined: false,
        }
    }

    #[test]
    fn a_share_is_judged_by_what_can_be_true_of_it() {
        use DiscrepancyKind::{AmountWrong, ClaimWithoutGrant, GrantWithoutClaim};
        let bob = held("bob", 5, 1_000);
        let carol = held("carol", 5, 1_000);
        let dear = held("bob", 6, 1_000);
        let back = HeldShare {
            declined: true,
            ..bob.clone()
        };
        let verdict = |claim: Option<&HeldShare>, grant: Option<&HeldShare>, edges| {
            let (hot_holds, closed, now) = edges;
            let facts = ShareFacts {
                said_minor: Some(5),
                claim,
                grant,
                hot_holds,
                closed,
            };
            facts.verdict(UnixMs(now))
        };
        let live = (true, false, 61_000);
        assert_eq!(verdict(None, None, live), ShareVerdict::Open);
        let (b, c, d, r) = (Some(&bob), Some(&carol), Some(&dear), Some(&back));
        assert_eq!(verdict(b, b, live), ShareVerdict::Settled);
        assert_eq!(verdict(b, c, live), ShareVerdict::Wrong(ClaimWithoutGrant));
        assert_eq!(verdict(b, r, live), ShareVerdict::Wrong(ClaimWithoutGrant));
        assert_eq!(
            verdict(b, None, live),
            ShareVerdict::Wrong(ClaimWithoutGrant)
        );
        assert_eq!(verdict(b, None, (false, true, 0)), ShareVerdict::Settled);
        assert_eq!(verdict(d, d, live), ShareVerdict::Wrong(AmountWrong));
        assert_eq!(verdict(None, d, live), ShareVerdict::Wrong(AmountWrong));
        assert_eq!(verdict(b, d, live), ShareVerdict::Wrong(AmountWrong));
        assert_eq!(verdict(None, b, live), ShareVerdict::InFlight);
        assert_eq!(verdict(None, b, (true, false, 61_001)), ShareVerdict::Late);
        let closed = verdict(None, b, (true, true, 1_000));
        assert_eq!(closed, ShareVerdict::Wrong(GrantWithoutClaim));
    }

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
