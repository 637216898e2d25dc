//! Conservation across both stores: gather, judge, report. Safe on a live system: it writes
//! nothing, and what moves while it reads is never called wrong.
//!
//! *Shape*
//!
//! | step | reads | file |
//! |---|---|---|
//! | 1. accounts and postings, from one snapshot | ledger | `rows` |
//! | 2. envelopes, page by page: the row beside its entries and claims, from one snapshot | ledger | `rows` |
//! | 3. each envelope: claims, then grants, share by share beside the seed | ledger, then hot store | `envelope`, `shares`; judged by `domain::books` |
//! | 4. envelopes that only the hot store has | hot store, then ledger | `strangers` |
//! | 5. dead letters | ledger | here |
//! | 6. epochs: the hot store's, then the ledger's, which never goes back | hot store, then ledger | here |
//!
//! An audit of what is hot leaves steps 1 and 2 out, and takes the envelopes of step 3 from the hot store: what
//! it costs goes with what is open, not with what the books have seen.
//!
//! *Ordering*, which is why there are no false alarms. Let C(t) be an envelope's claims and G(t) its
//! grants. Both only grow, a claim is written after its grant is durable, and the hot store forgets
//! an envelope only long after it is closed. So at every instant C(t) ⊆ G(t), and
//!
//! - with claims read at t and grants at u ≥ t (for each range of share numbers), C(t) ⊆ G(u): **a
//!   claim without its grant is wrong**, at once;
//! - a grant without a claim was taken or settled after t, or is on its way: it is *in flight* if it
//!   is younger than 60 s. An older one is looked at again, once: its claim may have come between t
//!   and u, and after a second read of the ledger nothing but a loss explains that it is missing;
//! - if the ledger had the envelope closed before t, C is complete, and **every** grant without a
//!   claim is wrong;
//! - the parts of the law are taken from the same reads: remaining is what the seed says of shares
//!   outside C(t) ∪ G(u), unsettled is G(u) ∖ C(t), settled and declined are C(t). They add up
//!   whatever moves meanwhile, and only for a wrong amount, share or count do they not;
//! - a row, its entries and its claims come from one snapshot and must agree exactly;
//! - a state is only wrong if no order of the two reads explains it: `closed` in the ledger before
//!   `live` in the hot store is wrong; `live` before *missing* is wrong unless the ledger says
//!   `closed` when it is asked again; a deadline is judged by a row that is read again;
//! - a hot store that was replaced may have lost an envelope or some of its grants until somebody
//!   touches it; then it is missing, or *stale*, and a claim without its grant is explained;
//! - step 4 reads the other way round, because the ledger knows an envelope before the hot store.
//!
//! *Quiet* is said only if the outbox was empty before and after, no grant was in flight, and the
//! envelopes, read page by page, hold exactly what the accounts' snapshot has in escrow. So it is never said of
//! what is hot alone, which no snapshot is held beside.
//!
//! *Bounds.* A page of each at a time, the vector of one envelope (80 MB for the largest), and
//! [`DISCREPANCIES_NAMED_MAX`] discrepancies; the others are counted.
//!
//! *What nobody can read.* A row that holds something else than this release writes is a line of the report,
//! and so are sums that can't be added up; the audit goes on with the others. It ends early only where a store
//! is out of reach.
//!
//! *Not here.* Repair. What an edit of the ledger's own rows would show: `Ledger::audit_totals`.

mod envelope;
mod report;
mod rows;
mod shares;
mod strangers;

pub use report::{AuditOptions, AuditReport, CurrencyTotals, DISCREPANCIES_NAMED_MAX};

use report::Findings;

use crate::domain::books::{Discrepancy, DiscrepancyKind};
use crate::domain::id::{Epoch, TenantId};
use crate::hot::{HotError, HotStore, VIEWS_PER_CALL_MAX};
use crate::ledger::{AuditPage, AuditRow, Ledger, LedgerError, PAGE_ROWS_MAX};
use crate::telemetry::metrics;

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
    let AuditOptions { tenant, hot_only } = options;
    let of_all = tenant.is_none();
    let mut findings = Findings::default();
    findings.report.started_at = ledger.now();
    findings.report.hot_only = hot_only;
    let unsettled_before = hot.vitals().await?.unsettled_records;
    if !hot_only {
        // 1. accounts and postings
        match ledger.audit_totals(tenant.clone()).await {
            Ok(totals) => rows::check_totals(&totals, &mut findings),
            Err(LedgerError::Broken(why)) => {
                findings.unread(None, format!("the accounts can't be added up: {why}"));
            }
            Err(error) => return Err(error.into()),
        }
        // 2. envelopes, 3. each of them
        check_envelopes(hot, ledger, tenant.as_ref(), &mut findings).await?;
    }
    // 4. envelopes that only the hot store has, 5. dead letters, 6. epochs
    strangers::check(hot, ledger, (tenant.as_ref(), hot_only), &mut findings).await?;
    check_dead_letters(ledger, tenant, &mut findings).await?;
    check_epochs(hot, ledger, &mut findings).await?;
    let unsettled = unsettled_before + hot.vitals().await?.unsettled_records;
    let still = unsettled == 0 && findings.report.in_flight_count == 0;
    let quiet = still && !hot_only && findings.escrow_agrees();
    if of_all {
        metrics::audited(findings.report.discrepancy_count, hot_only);
    }
    Ok(findings.finish(quiet, ledger.now()))
}

/// Envelopes of the ledger, each beside what the hot store has of it.
async fn check_envelopes(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    tenant: Option<&TenantId>,
    findings: &mut Findings,
) -> Result<(), AuditError> {
    let (mut after, mut limit) = (i64::MIN, VIEWS_PER_CALL_MAX);
    loop {
        let asked = AuditPage::After(after, limit);
        let page = match ledger.audit_envelopes(tenant.cloned(), asked).await {
            // One of them can't be added up: those before it are read one by one.
            Err(LedgerError::Broken(_)) if limit > 1 => {
                limit = 1;
                continue;
            }
            Err(LedgerError::Broken(why)) => {
                let detail = format!("envelopes after row {after} can't be added up: {why}");
                findings.unread(None, detail);
                return Ok(());
            }
            page => page?,
        };
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = last.row;
        check_page(hot, ledger, &page, findings).await?;
    }
}

/// At most `VIEWS_PER_CALL_MAX` envelopes of the books, each beside what the hot store has of it.
async fn check_page(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    page: &[AuditRow],
    findings: &mut Findings,
) -> Result<(), AuditError> {
    let mut readable = Vec::with_capacity(page.len());
    for audited in page {
        findings.report.envelope_count += 1;
        match &audited.envelope {
            Ok(row) => readable.push((audited, row)),
            Err(why) => {
                let detail = format!("envelope row {} can't be read: {why}", audited.row);
                findings.unread(audited.id, detail);
            }
        }
    }
    let ids = readable.iter().map(|(_, row)| row.id).collect();
    let views = hot.view(ids).await?;
    for (envelope, view) in readable.into_iter().zip(&views) {
        envelope::check(hot, ledger, envelope, view.as_ref(), findings).await?;
    }
    Ok(())
}

/// The epoch in which the hot store grants was one of the ledger before: it never goes back.
async fn check_epochs(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    findings: &mut Findings,
) -> Result<(), AuditError> {
    let all = hot.partitions().all();
    let granting: Vec<_> = all
        .map(|partition| (partition, hot.epoch(partition)))
        .collect();
    let rows = match ledger.partitions().await {
        Err(LedgerError::Broken(why)) => {
            findings.unread(None, format!("the epochs can't be read: {why}"));
            return Ok(());
        }
        rows => rows?,
    };
    for (partition, granting) in granting {
        let row = rows.iter().find(|row| row.partition == partition);
        let stands = row.map_or(Epoch::FIRST, |row| row.epoch);
        if granting > stands {
            findings.found(Discrepancy {
                kind: DiscrepancyKind::StateMismatch,
                tenant: None,
                envelope: None,
                detail: format!(
                    "partition {}: the hot store grants in epoch {}, the ledger has gone back to {}",
                    partition.index(),
                    granting.0,
                    stands.0
                ),
            });
        }
    }
    Ok(())
}

/// Promises that can't be kept as they stand.
async fn check_dead_letters(
    ledger: &dyn Ledger,
    tenant: Option<TenantId>,
    findings: &mut Findings,
) -> Result<(), AuditError> {
    let mut after = i64::MIN;
    loop {
        let page = ledger.dead_letters(tenant.clone(), after, PAGE_ROWS_MAX);
        let page = match page.await {
            Err(LedgerError::Broken(why)) => {
                let detail = format!("dead letters after row {after} can't be read: {why}");
                findings.unread(None, detail);
                return Ok(());
            }
            page => page?,
        };
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = last.row;
        for letter in page {
            let (share, amount) = (letter.record.grant.share, letter.record.grant.amount_minor);
            findings.found(Discrepancy {
                kind: DiscrepancyKind::DeadLetter,
                tenant: letter.tenant,
                envelope: Some(letter.record.envelope),
                detail: format!(
                    "dead letter {}: share {share} of {amount}: {}",
                    letter.row, letter.reason
                ),
            });
        }
    }
}
