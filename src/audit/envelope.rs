//! One envelope: its money across both stores, its state, its deadline.

use std::sync::Arc;

use super::report::Findings;
use super::shares::{ShareSums, Shares};
use super::{AuditError, rows};
use crate::domain::books::{DiscrepancyKind, EnvelopeBooks, IN_FLIGHT_MS_MAX};
use crate::domain::envelope::{BookState, HotState};
use crate::domain::fairness::leaf_hash;
use crate::domain::id::Epoch;
use crate::domain::stripes::place;
use crate::hot::{GrantWalk, HotStore, HotView};
use crate::ledger::{AuditRow, EnvelopeRow, Ledger, LedgerError};
use crate::publish;

/// Judges one envelope; `view` was read after `audited`.
pub(super) async fn check(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    (audited, row): (&AuditRow, &EnvelopeRow),
    view: Option<&HotView>,
    findings: &mut Findings,
) -> Result<(), AuditError> {
    rows::check_row(audited, row, findings);
    let amounts = match amounts(ledger, row, findings).await? {
        Ok(amounts) => amounts,
        Err(why) => {
            unreadable(
                row,
                &format!("its shares can't be derived: {why}"),
                findings,
            );
            return Ok(());
        }
    };
    let mut shares = Shares {
        hot,
        ledger,
        row,
        amounts: &amounts,
        hot_holds: view.is_some(),
        hot_whole: view.is_some_and(|view| !view.stale),
        grants: GrantWalk::default(),
        sums: ShareSums::default(),
    };
    match shares.walk(findings).await {
        Err(AuditError::Ledger(LedgerError::Broken(why))) => {
            unreadable(row, &format!("its claims can't be read: {why}"), findings);
            return Ok(());
        }
        walked => walked?,
    }
    let (hot_holds, sums) = (shares.hot_holds, shares.sums);
    findings.report.claim_count += sums.claims;
    findings.report.grant_count += sums.grants;
    check_counts((audited, row), view.filter(|_| hot_holds), &sums, findings);
    let books = books(row, &amounts, &sums);
    if !books.balanced() {
        let detail = format!(
            "funded {}, remaining {}, unsettled {}, settled {}, refunded {}: off by {}",
            books.funded_minor,
            books.remaining_minor,
            books.unsettled_minor,
            books.settled_minor,
            books.refunded_minor,
            books.imbalance_minor()
        );
        wrong(DiscrepancyKind::EnvelopeUnbalanced, row, detail, findings);
    }
    findings.add(row.terms.currency, &books, row.made_good_minor);
    let view = view.filter(|_| hot_holds);
    check_state((hot, ledger), row, view, &sums, findings).await?;
    check_deadline(ledger, row, findings).await
}

/// What the seed says of each share, or why it says nothing: a seed that can't be opened is one
/// envelope's damage, not the end of the audit.
async fn amounts(
    ledger: &dyn Ledger,
    row: &EnvelopeRow,
    findings: &mut Findings,
) -> Result<Result<Arc<[i64]>, String>, AuditError> {
    let seed = match ledger.server_seed(Arc::clone(&row.terms)).await {
        Ok(seed) => seed,
        Err(LedgerError::Broken(why)) => return Ok(Err(why)),
        Err(error) => return Err(error.into()),
    };
    let leaf = &row.terms.leaf;
    if leaf_hash(row.terms.tenant.as_str(), leaf.leaf_number, &seed) != leaf.leaf_hash {
        let detail = format!("leaf {} does not commit to its seed", leaf.leaf_number);
        wrong(DiscrepancyKind::AmountWrong, row, detail, findings);
    }
    match publish::cut_aside(&row.terms, row.id, seed).await {
        Ok(made) => Ok(made.map_err(|why| why.to_string())),
        Err(why) => Err(LedgerError::Unavailable(why.to_string()).into()),
    }
}

fn wrong(kind: DiscrepancyKind, row: &EnvelopeRow, detail: String, findings: &mut Findings) {
    findings.wrong(kind, &row.terms.tenant, row.id, detail);
}

/// Its row makes no shares, or its claims are none: only what the row says can be added up.
fn unreadable(row: &EnvelopeRow, detail: &str, findings: &mut Findings) {
    wrong(
        DiscrepancyKind::EnvelopeUnbalanced,
        row,
        detail.to_owned(),
        findings,
    );
    let funded_minor = row.terms.total_minor;
    let remaining_minor = funded_minor.saturating_sub(row.settled_minor);
    let books = EnvelopeBooks {
        funded_minor,
        remaining_minor: remaining_minor.saturating_sub(row.refunded_minor),
        unsettled_minor: 0,
        settled_minor: row.settled_minor,
        refunded_minor: row.refunded_minor,
    };
    findings.add(row.terms.currency, &books, row.made_good_minor);
}

/// What is missing from a later read was there in an earlier one: neither claims nor grants go.
fn check_counts(
    (audited, row): (&AuditRow, &EnvelopeRow),
    view: Option<&HotView>,
    sums: &ShareSums,
    findings: &mut Findings,
) {
    let counted = u64::from(audited.paid.0) + u64::from(audited.declined.0);
    if sums.claims < counted {
        let detail = format!("{} claims are there, {counted} were counted", sums.claims);
        wrong(DiscrepancyKind::EnvelopeUnbalanced, row, detail, findings);
    }
    let Some(view) = view else { return };
    let fewer = sums.grants < u64::from(view.taken_count);
    let less = sums.granted_minor < i128::from(view.taken_minor);
    if fewer || less {
        let detail = format!(
            "the hot store lists {} grants of {}, and counts {} of {}",
            sums.grants, sums.granted_minor, view.taken_count, view.taken_minor
        );
        wrong(DiscrepancyKind::StateMismatch, row, detail, findings);
    }
}

/// The envelope's money, each part from the store that knows it.
fn books(row: &EnvelopeRow, amounts: &[i64], sums: &ShareSums) -> EnvelopeBooks {
    let whole: i128 = amounts.iter().copied().map(i128::from).sum();
    let minor = |sum: i128| i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX });
    let closed = matches!(row.state, BookState::Closed(_));
    let (remaining, refunded) = if closed {
        // The remainder went back: the row says how much, and nothing may remain.
        (0, i128::from(row.refunded_minor))
    } else {
        (whole - sums.taken_said_minor, sums.declined_minor)
    };
    EnvelopeBooks {
        funded_minor: row.terms.total_minor,
        remaining_minor: minor(remaining),
        unsettled_minor: minor(sums.unsettled_minor),
        settled_minor: minor(sums.paid_minor),
        refunded_minor: minor(refunded),
    }
}

/// States that can't stand beside each other, whichever was read first; what a step of publish or
/// close could explain is read again.
async fn check_state(
    (hot, ledger): (&dyn HotStore, &dyn Ledger),
    row: &EnvelopeRow,
    view: Option<&HotView>,
    sums: &ShareSums,
    findings: &mut Findings,
) -> Result<(), AuditError> {
    let suspicious = match (row.state, view.map(|view| view.state)) {
        (BookState::Closed(_), Some(HotState::Funding | HotState::Live)) => {
            let detail = "closed in the ledger, and still granting in the hot store".to_owned();
            wrong(DiscrepancyKind::StateMismatch, row, detail, findings);
            None
        }
        (BookState::Live, Some(HotState::Funding)) => {
            let detail = "live in the ledger, and still loading in the hot store".to_owned();
            wrong(DiscrepancyKind::StateMismatch, row, detail, findings);
            None
        }
        // The store was replaced, and nobody has touched the envelope since.
        (_, None) if was_replaced(hot, row) => None,
        (BookState::Live, None) => Some("live in the ledger, and not in the hot store"),
        (BookState::Funding | BookState::Closing(_), None) if sums.claims > 0 => {
            Some("paid from, not closed, and not in the hot store")
        }
        _ => None,
    };
    let Some(detail) = suspicious else {
        return Ok(());
    };
    // The hot store forgets nothing before the close: if it is closed now, that explains it.
    if !closed_by_now(ledger, row).await? {
        let detail = detail.to_owned();
        wrong(DiscrepancyKind::StateMismatch, row, detail, findings);
    }
    Ok(())
}

/// Whether the store behind a partition in which the envelope lies is not the first one.
fn was_replaced(hot: &dyn HotStore, row: &EnvelopeRow) -> bool {
    let of = row.terms.stripes;
    let mut places = of
        .all()
        .map(|stripe| place(row.id, stripe, of, hot.partitions()));
    places.any(|partition| hot.epoch(partition) > Epoch::FIRST)
}

async fn check_deadline(
    ledger: &dyn Ledger,
    row: &EnvelopeRow,
    findings: &mut Findings,
) -> Result<(), AuditError> {
    let late_ms = ledger.now().0.saturating_sub(row.terms.expires_at.0);
    let open = !matches!(row.state, BookState::Closed(_));
    if late_ms <= IN_FLIGHT_MS_MAX || !open || closed_by_now(ledger, row).await? {
        return Ok(());
    }
    let why = if row.frozen { ", frozen" } else { "" };
    let detail = format!("expired {late_ms} ms ago and is not closed{why}");
    wrong(DiscrepancyKind::Stuck, row, detail, findings);
    Ok(())
}

async fn closed_by_now(ledger: &dyn Ledger, row: &EnvelopeRow) -> Result<bool, AuditError> {
    let rows = ledger.envelopes(vec![row.id]).await?;
    let now = rows.into_iter().flatten().next();
    Ok(now.is_some_and(|row| matches!(row.state, BookState::Closed(_))))
}
