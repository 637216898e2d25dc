//! What one snapshot of the ledger must say by itself, whatever the hot store does meanwhile.

use super::report::Findings;
use crate::domain::books::{Discrepancy, DiscrepancyKind};
use crate::domain::envelope::BookState;
use crate::ledger::{AuditRow, AuditTotals, EnvelopeRow};

/// An envelope's row beside its entries and claims. All come from one snapshot, so every
/// difference is wrong.
pub(super) fn check_row(audited: &AuditRow, row: &EnvelopeRow, findings: &mut Findings) {
    if let Some(detail) = &audited.contradicts {
        let (kind, tenant) = (DiscrepancyKind::EnvelopeUnbalanced, &row.terms.tenant);
        findings.wrong(kind, tenant, row.id, detail.clone());
    }
    let (paid_count, paid_minor) = audited.paid;
    let (declined_count, declined_minor) = audited.declined;
    let funded_minor = row.terms.total_minor;
    let left_minor =
        i128::from(funded_minor) - i128::from(row.settled_minor) - i128::from(row.refunded_minor);
    let out_minor = row.settled_minor.saturating_add(row.refunded_minor);
    let closed = matches!(row.state, BookState::Closed(_));
    let mut same = |what: &str, found: i64, expected: i64| {
        if found != expected {
            let detail = format!("{what}: found {found}, expected {expected}");
            let (kind, tenant) = (DiscrepancyKind::EnvelopeUnbalanced, &row.terms.tenant);
            findings.wrong(kind, tenant, row.id, detail);
        }
    };
    same(
        "entries into the escrow",
        audited.entries_in_minor,
        funded_minor,
    );
    same(
        "entries out of the escrow",
        audited.entries_out_minor,
        out_minor,
    );
    same("sum of paid claims", paid_minor, row.settled_minor);
    same(
        "count of paid claims",
        paid_count.into(),
        row.settled_count.into(),
    );
    same(
        "count of declined claims",
        declined_count.into(),
        row.declined_count.into(),
    );
    if closed {
        same(
            "left after the close",
            i64::try_from(left_minor).unwrap_or(i64::MIN),
            0,
        );
    } else {
        // Before the close nothing but declined shares goes back.
        same("sum of declined claims", declined_minor, row.refunded_minor);
    }
    let claims = i64::from(paid_count) + i64::from(declined_count);
    let shares = i64::from(row.terms.share_count);
    same("claims beyond the shares", (claims - shares).max(0), 0);
    same("paid out beyond the funds", i64::from(left_minor < 0), 0);
}

/// The accounts as a whole: money came from outside and is somewhere.
pub(super) fn check_totals(totals: &AuditTotals, findings: &mut Findings) {
    for discrepancy in &totals.discrepancies {
        findings.found(discrepancy.clone());
    }
    for sums in &totals.currencies {
        findings.add_accounts(sums);
        let inside = i128::from(sums.available_minor) + i128::from(sums.escrow_minor);
        let brought = i128::from(sums.outside_minor) + i128::from(sums.made_good_minor);
        if inside != brought {
            findings.found(Discrepancy {
                kind: DiscrepancyKind::BalanceWrong,
                tenant: None,
                envelope: None,
                detail: format!(
                    "{}: accounts and escrow hold {inside}, outside and reserve brought {brought}",
                    sums.currency
                ),
            });
        }
    }
}
