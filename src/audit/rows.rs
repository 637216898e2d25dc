//! What one snapshot of the ledger must say by itself, whatever the hot store does meanwhile.

use super::report::Findings;
use crate::domain::books::{Discrepancy, DiscrepancyKind};
use crate::domain::envelope::BookState;
use crate::ledger::{AuditRow, AuditTotals};

/// An envelope's row beside its entries and claims. All come from one snapshot, so every
/// difference is wrong.
pub(super) fn check_row(audited: &AuditRow, findings: &mut Findings) {
    let row = &audited.envelope;
    let (paid_count, paid_minor) = audited.paid;
    let (declined_count, declined_minor) = audited.declined;
    let closed = matches!(row.state, BookState::Closed(_));
    let out = i128::from(row.settled_minor) + i128::from(row.refunded_minor);
    let funded = i128::from(row.terms.total_minor);
    let counted = u64::from(paid_count) + u64::from(declined_count);
    let rules = [
        (
            audited.entries_in_minor == row.terms.total_minor,
            "funded",
            i128::from(audited.entries_in_minor),
            funded,
        ),
        (
            i128::from(audited.entries_out_minor) == out,
            "entries out of the escrow",
            i128::from(audited.entries_out_minor),
            out,
        ),
        (
            paid_minor == row.settled_minor,
            "sum of paid claims",
            i128::from(paid_minor),
            i128::from(row.settled_minor),
        ),
        (
            paid_count == row.settled_count,
            "count of paid claims",
            i128::from(paid_count),
            i128::from(row.settled_count),
        ),
        (
            declined_count == row.declined_count,
            "count of declined claims",
            i128::from(declined_count),
            i128::from(row.declined_count),
        ),
        (
            // Before the close nothing but declined shares goes back.
            if closed {
                declined_minor <= row.refunded_minor
            } else {
                declined_minor == row.refunded_minor
            },
            "sum of declined claims, against the refunds",
            i128::from(declined_minor),
            i128::from(row.refunded_minor),
        ),
        (
            if closed { out == funded } else { out <= funded },
            "settled and refunded, against funded",
            out,
            funded,
        ),
        (
            counted <= u64::from(row.terms.share_count),
            "claims, against shares",
            i128::from(counted),
            i128::from(row.terms.share_count),
        ),
    ];
    for (holds, what, found, expected) in rules {
        if !holds {
            findings.wrong(
                DiscrepancyKind::EnvelopeUnbalanced,
                &row.terms.tenant,
                row.id,
                format!("{what}: found {found}, the row says {expected}"),
            );
        }
    }
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
