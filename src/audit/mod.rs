//! Conservation across both stores: gather, judge, report.

mod report;
mod rows;

pub use report::{AuditOptions, AuditReport, CurrencyTotals, DISCREPANCIES_NAMED_MAX};

use report::Findings;

use crate::domain::books::EnvelopeBooks;
use crate::hot::{HotError, HotStore};
use crate::ledger::{Ledger, LedgerError, PAGE_ROWS_MAX};

/// Why an audit could not be finished. Nothing was written, so it may be repeated.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    /// The books can't be read.
    #[error("the audit can't read the ledger: {0}")]
    Ledger(#[from] LedgerError),
    /// The hot store can't be read.
    #[error("the audit can't read the hot store: {0}")]
    Hot(#[from] HotError),
}

/// Checks the law of conservation for every envelope and currency, across both stores.
///
/// # Errors
/// A store that can't be read. What is wrong with the money is no error: it is in the report.
pub async fn run(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    options: AuditOptions,
) -> Result<AuditReport, AuditError> {
    let mut findings = Findings::default();
    findings.report.started_at = ledger.now();
    let unsettled_before = hot.vitals().await?.unsettled_records;
    let totals = ledger.audit_totals(options.tenant.clone()).await?;
    rows::check_totals(&totals, &mut findings);
    let mut after = i64::MIN;
    loop {
        let page = ledger
            .audit_envelopes(options.tenant.clone(), after, PAGE_ROWS_MAX)
            .await?;
        let Some(last) = page.last() else { break };
        after = last.envelope.row;
        for audited in &page {
            rows::check_row(audited, &mut findings);
            let row = &audited.envelope;
            findings.report.envelope_count += 1;
            let left = row.terms.total_minor - row.settled_minor - row.refunded_minor;
            let books = EnvelopeBooks {
                funded_minor: row.terms.total_minor,
                remaining_minor: left,
                unsettled_minor: 0,
                settled_minor: row.settled_minor,
                refunded_minor: row.refunded_minor,
            };
            findings.add(row.terms.currency, &books, row.made_good_minor);
        }
    }
    let unsettled = unsettled_before + hot.vitals().await?.unsettled_records;
    let quiet = unsettled == 0 && findings.escrow_agrees();
    Ok(findings.finish(quiet, ledger.now()))
}
