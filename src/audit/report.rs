//! What an audit says: for a program as JSON, for the API, for people.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::domain::books::{Discrepancy, DiscrepancyKind, EnvelopeBooks};
use crate::domain::id::{EnvelopeId, TenantId, UnixMs};
use crate::domain::money::Currency;
use crate::ledger;

/// Discrepancies that a report names; all are counted. The contract's answer holds as many, and a
/// person looks at ten.
pub const DISCREPANCIES_NAMED_MAX: usize = 1_000;

/// What an audit looks at.
#[derive(Clone, Debug, Default)]
pub struct AuditOptions {
    /// Only this tenant; `None`: all.
    pub tenant: Option<TenantId>,
    /// Only what can move: the envelopes that the hot store holds. Accounts and postings are not added up.
    pub hot_only: bool,
}

/// Sums of one currency, in minor units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CurrencyTotals {
    /// ISO 4217 or a declared unit.
    pub currency_code: Currency,
    /// Put into envelopes.
    pub funded_minor: i64,
    /// Not taken.
    pub remaining_minor: i64,
    /// Won or declined, and not yet in the ledger.
    pub unsettled_minor: i64,
    /// Paid to grabbers.
    pub settled_minor: i64,
    /// Back with the senders.
    pub refunded_minor: i64,
    /// Paid from the operator's reserve.
    pub made_good_minor: i64,
    /// Brought in from outside, less what was taken out.
    pub outside_minor: i64,
    /// On the accounts of senders and grabbers.
    pub available_minor: i64,
}

/// What an audit found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AuditReport {
    /// No discrepancy.
    pub clean: bool,
    /// Nothing was in flight, so every sum is exact. Never said of what is hot alone.
    pub quiet: bool,
    /// Only what the hot store holds was checked: no account, and no envelope that it forgot.
    pub hot_only: bool,
    /// The first [`DISCREPANCIES_NAMED_MAX`].
    pub discrepancies: Vec<Discrepancy>,
    /// All of them.
    pub discrepancy_count: u64,
    /// One a currency, by code.
    pub totals: Vec<CurrencyTotals>,
    /// Envelopes that were checked.
    pub envelope_count: u64,
    /// Claims that were checked.
    pub claim_count: u64,
    /// Grants that were checked.
    pub grant_count: u64,
    /// Granted less than `IN_FLIGHT_MS_MAX` ago and not yet paid.
    pub in_flight_count: u64,
    /// When it began, by the ledger's clock.
    pub started_at: UnixMs,
    /// When it ended, by the ledger's clock.
    pub ended_at: UnixMs,
}

/// A report that is being written.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) report: AuditReport,
    sums: BTreeMap<Currency, Sums>,
}

/// In 128 bits no number of envelopes overflows them.
#[derive(Clone, Copy, Default)]
struct Sums {
    funded: i128,
    remaining: i128,
    unsettled: i128,
    settled: i128,
    refunded: i128,
    made_good: i128,
    outside: i128,
    available: i128,
    /// What the accounts say is in escrow; the envelopes say funded − settled − refunded.
    escrow: i128,
}

impl Findings {
    /// One thing that is wrong.
    pub(super) fn found(&mut self, discrepancy: Discrepancy) {
        self.report.discrepancy_count += 1;
        if self.report.discrepancies.len() < DISCREPANCIES_NAMED_MAX {
            self.report.discrepancies.push(discrepancy);
        }
    }

    /// One thing that is wrong with an envelope.
    pub(super) fn wrong(
        &mut self,
        kind: DiscrepancyKind,
        tenant: &TenantId,
        envelope: EnvelopeId,
        detail: String,
    ) {
        self.found(Discrepancy {
            kind,
            tenant: Some(tenant.clone()),
            envelope: Some(envelope),
            detail,
        });
    }

    /// Rows that nobody can read: a line of the report, and not the end of the audit.
    pub(super) fn unread(&mut self, envelope: Option<EnvelopeId>, detail: String) {
        self.found(Discrepancy {
            kind: DiscrepancyKind::EnvelopeUnbalanced,
            tenant: None,
            envelope,
            detail,
        });
    }

    /// One envelope's money.
    pub(super) fn add(&mut self, currency: Currency, books: &EnvelopeBooks, made_good_minor: i64) {
        let sums = self.sums.entry(currency).or_default();
        sums.funded += i128::from(books.funded_minor);
        sums.remaining += i128::from(books.remaining_minor);
        sums.unsettled += i128::from(books.unsettled_minor);
        sums.settled += i128::from(books.settled_minor);
        sums.refunded += i128::from(books.refunded_minor);
        sums.made_good += i128::from(made_good_minor);
    }

    /// What the accounts say of one currency.
    pub(super) fn add_accounts(&mut self, totals: &ledger::CurrencyTotals) {
        let sums = self.sums.entry(totals.currency).or_default();
        sums.outside += i128::from(totals.outside_minor);
        sums.available += i128::from(totals.available_minor);
        sums.escrow += i128::from(totals.escrow_minor);
    }

    /// Whether the envelopes, read page by page, hold what the accounts hold, read at once: only
    /// then did no money move in between.
    pub(super) fn escrow_agrees(&self) -> bool {
        self.sums
            .values()
            .all(|s| s.funded - s.settled - s.refunded == s.escrow)
    }

    /// Writes the totals down.
    pub(super) fn finish(mut self, quiet: bool, ended_at: UnixMs) -> AuditReport {
        for (currency, sums) in std::mem::take(&mut self.sums) {
            let mut large = false;
            let mut fit = |sum: i128| {
                i64::try_from(sum).unwrap_or_else(|_| {
                    large = true;
                    if sum < 0 { i64::MIN } else { i64::MAX }
                })
            };
            let totals = CurrencyTotals {
                currency_code: currency,
                funded_minor: fit(sums.funded),
                remaining_minor: fit(sums.remaining),
                unsettled_minor: fit(sums.unsettled),
                settled_minor: fit(sums.settled),
                refunded_minor: fit(sums.refunded),
                made_good_minor: fit(sums.made_good),
                outside_minor: fit(sums.outside),
                available_minor: fit(sums.available),
            };
            if large {
                self.found(Discrepancy {
                    kind: DiscrepancyKind::BalanceWrong,
                    tenant: None,
                    envelope: None,
                    detail: format!("a sum of {currency} does not fit 64 bits"),
                });
            }
            self.report.totals.push(totals);
        }
        self.report.quiet = quiet;
        self.report.ended_at = ended_at;
        self.report.clean = self.report.discrepancy_count == 0;
        self.report
    }
}
