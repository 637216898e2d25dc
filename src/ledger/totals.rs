//! What somebody gave and got in a period.

use crate::domain::id::UnixMs;
use crate::domain::money::Currency;

/// From one instant up to another, which is not of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// The first instant.
    pub from: UnixMs,
    /// The first instant after it.
    pub to: UnixMs,
}

/// What somebody gave and got in a period, in one currency. Amounts in minor units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeriodTotals {
    /// The currency.
    pub currency: Currency,
    /// Shares that were grabbed in the period and are paid.
    pub received_count: u32,
    /// Their sum.
    pub received_minor: i64,
    /// Those of them that are the largest of their envelope, which is over.
    pub best_count: u32,
    /// Envelopes that were funded in the period.
    pub sent_count: u32,
    /// Their sum.
    pub sent_minor: i64,
    /// What of it came back.
    pub refunded_minor: i64,
}

impl PeriodTotals {
    /// None of it.
    pub(in crate::ledger) fn nothing(currency: Currency) -> Self {
        Self {
            currency,
            received_count: 0,
            received_minor: 0,
            best_count: 0,
            sent_count: 0,
            sent_minor: 0,
            refunded_minor: 0,
        }
    }

    pub(in crate::ledger) fn is_any(&self) -> bool {
        self.received_count > 0 || self.sent_count > 0
    }
}
