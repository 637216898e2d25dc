//! Balanced entries: how money moves in the books.
//!
//! | posting | debit | credit |
//! |---|---|---|
//! | deposit | outside | owner |
//! | withdrawal | owner | outside |
//! | fund | sender | escrow of the envelope |
//! | settle | escrow of the envelope | grabber, one entry a claim |
//! | refund | escrow of the envelope | sender |
//! | make-good | reserve | grabber |
//!
//! Amounts of entries are signed: a credit is positive, a debit negative, a posting sums to zero.

use serde::{Deserialize, Serialize};

/// Why a posting was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PostingKind {
    /// Money from outside.
    Deposit,
    /// Money to the outside.
    Withdrawal,
    /// Sender → escrow.
    Fund,
    /// Escrow → grabbers.
    Settle,
    /// Escrow → sender: a declined share, or the remainder at the close.
    Refund,
    /// Reserve → grabber.
    MakeGood,
}

impl PostingKind {
    /// Every kind, in the order of the table above.
    pub const ALL: [Self; 6] = [
        Self::Deposit,
        Self::Withdrawal,
        Self::Fund,
        Self::Settle,
        Self::Refund,
        Self::MakeGood,
    ];

    /// As the ledger's tables and reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deposit => "deposit",
            Self::Withdrawal => "withdrawal",
            Self::Fund => "fund",
            Self::Settle => "settle",
            Self::Refund => "refund",
            Self::MakeGood => "make_good",
        }
    }

    /// From [`PostingKind::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Whether signed entries sum to zero. Sums in 128 bits: no number of entries overflows it.
pub fn balances(entries_minor: impl IntoIterator<Item = i64>) -> bool {
    entries_minor.into_iter().map(i128::from).sum::<i128>() == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn entries_balance_exactly_when_the_last_pays_for_all_others(
            amounts in proptest::collection::vec(-1_000_000_000_i64..1_000_000_000, 1..50),
            off in 1_i64..1_000,
        ) {
            let closing = -amounts.iter().sum::<i64>();
            let with = |last| amounts.iter().copied().chain([last]);
            prop_assert!(balances(with(closing)));
            prop_assert!(!balances(with(closing + off)));
        }
    }

    #[test]
    fn sums_beyond_64_bits_neither_wrap_nor_panic() {
        assert!(!balances([i64::MAX, i64::MAX, 2]));
        assert!(balances([i64::MAX, -i64::MAX]));
    }

    #[test]
    fn every_kind_reads_back_from_its_name() {
        for kind in PostingKind::ALL {
            assert_eq!(PostingKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(PostingKind::from_name("tip"), None);
    }
}
