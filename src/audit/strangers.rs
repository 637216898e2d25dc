//! The hot store's envelopes: those that the ledger does not know, and in an audit of what is hot the others, too.
//!
//! *Ordering.* Ids come from the hot store first, since the ledger knows an envelope before the hot store does;
//! then rows and claims, then grants, as in an audit of everything.

use super::report::Findings;
use super::{AuditError, check_page};
use crate::domain::books::DiscrepancyKind;
use crate::domain::id::{EnvelopeId, TenantId};
use crate::hot::{HotStore, VIEWS_PER_CALL_MAX};
use crate::ledger::{AuditPage, Ledger, LedgerError, PAGE_ROWS_MAX};

/// Envelopes that the hot store holds and the ledger does not know; with `hot_only`, the law for each that both know.
pub(super) async fn check(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    (tenant, hot_only): (Option<&TenantId>, bool),
    findings: &mut Findings,
) -> Result<(), AuditError> {
    let mut after: Option<EnvelopeId> = None;
    loop {
        let page = hot.envelopes(after, PAGE_ROWS_MAX).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(*last);
        if hot_only {
            for some in page.chunks(VIEWS_PER_CALL_MAX) {
                check_known(hot, ledger, (tenant, some), findings).await?;
            }
        }
        let strangers = unknown(ledger, page).await?;
        for some in strangers.chunks(VIEWS_PER_CALL_MAX) {
            // One that is gone by now was a stranger all the same, but nobody's.
            for view in hot.view(some.to_vec()).await?.into_iter().flatten() {
                if tenant.is_some_and(|tenant| *tenant != view.terms.tenant) {
                    continue;
                }
                findings.wrong(
                    DiscrepancyKind::StateMismatch,
                    &view.terms.tenant,
                    view.envelope,
                    "in the hot store, and not in the ledger".to_owned(),
                );
            }
        }
    }
}

/// The law for those of these that the ledger knows.
async fn check_known(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    (tenant, ids): (Option<&TenantId>, &[EnvelopeId]),
    findings: &mut Findings,
) -> Result<(), AuditError> {
    let asked = AuditPage::Of(ids.to_vec());
    match ledger.audit_envelopes(tenant.cloned(), asked).await {
        Ok(page) => check_page(hot, ledger, &page, findings).await,
        // One of them can't be added up: the others are read one by one.
        Err(LedgerError::Broken(why)) => {
            if let [id] = ids {
                findings.report.envelope_count += 1;
                findings.unread(Some(*id), format!("it can't be added up: {why}"));
                return Ok(());
            }
            for id in ids {
                let alone = std::slice::from_ref(id);
                Box::pin(check_known(hot, ledger, (tenant, alone), findings)).await?;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Which envelopes the ledger does not know.
async fn unknown(
    ledger: &dyn Ledger,
    page: Vec<EnvelopeId>,
) -> Result<Vec<EnvelopeId>, AuditError> {
    let mut unknown = Vec::new();
    match ledger.envelopes(page.clone()).await {
        Ok(rows) => {
            let both = page.into_iter().zip(rows);
            unknown.extend(both.filter_map(|(id, row)| row.is_none().then_some(id)));
        }
        // One of them can't be read, but it is there, and was told of above.
        Err(LedgerError::Broken(_)) => {
            for id in page {
                match ledger.envelopes(vec![id]).await {
                    Err(LedgerError::Broken(_)) => {}
                    rows => unknown.extend(rows?.iter().all(Option::is_none).then_some(id)),
                }
            }
        }
        Err(error) => return Err(error.into()),
    }
    Ok(unknown)
}
