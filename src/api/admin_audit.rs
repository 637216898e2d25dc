//! Audit: conservation across both stores, as an operator asks for it. Writes nothing but the record
//! of the act.
//!
//! # Bounds
//! [`AUDITS_MAX`] at a time of everything, and as many of what is hot beside them.
//!
//! # Ordering
//! The act is on record before the report is shown.
//!
//! # Not here
//! The law (`domain::books`) and the gathering (`audit`).

use red_envelope_proto::v1;

use super::Api;
use super::admin_freeze::said;
use super::admission::Admission;
use super::status::{ApiError, Full};
use super::wire;
use crate::audit::{self, AuditError, AuditOptions, AuditReport, CurrencyTotals};
use crate::domain::books::{Discrepancy, DiscrepancyKind};
use crate::telemetry::metrics;

/// Audits of a kind that run at once: a second one tells nothing new.
pub const AUDITS_MAX: usize = 1;

/// The RPC.
pub(super) async fn audit(
    api: &Api,
    request: v1::AuditRequest,
) -> Result<v1::AuditResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant_or_all(&request.tenant);
    let said = said(&mut a, &request.operator, &request.reason);
    let (tenant, said) = a.admit(tenant.zip(said))?;
    let act = said.act("audit", None);
    let options = AuditOptions {
        tenant,
        hot_only: request.hot_only,
    };
    match run(api, options).await {
        Ok(report) => {
            api.ledger.record_act(act).await?;
            Ok(answer(report))
        }
        Err(error) => Err(api.refused(act, error).await),
    }
}

async fn run(api: &Api, options: AuditOptions) -> Result<AuditReport, ApiError> {
    let turns = match options.hot_only {
        true => &api.audits_of_hot,
        false => &api.audits,
    };
    let _turn = turns.try_acquire().map_err(|_| {
        metrics::shed(Full::Audits.name(), 1);
        ApiError::Shed(Full::Audits)
    })?;
    let report = audit::run(&*api.hot, &*api.ledger, options).await;
    let report = report.map_err(|error| match error {
        AuditError::Ledger(error) => ApiError::from(error),
        AuditError::Hot(error) => ApiError::from(error),
    })?;
    Ok(report)
}

/// A report as the contract has it.
pub fn answer(report: AuditReport) -> v1::AuditResponse {
    v1::AuditResponse {
        clean: report.clean,
        quiet: report.quiet,
        hot_only: report.hot_only,
        discrepancies: report.discrepancies.into_iter().map(discrepancy).collect(),
        discrepancy_count: report.discrepancy_count,
        totals: report.totals.iter().map(totals).collect(),
        envelope_count: report.envelope_count,
        claim_count: report.claim_count,
        grant_count: report.grant_count,
        in_flight_count: report.in_flight_count,
        start_time: Some(wire::timestamp(report.started_at)),
        end_time: Some(wire::timestamp(report.ended_at)),
    }
}

fn discrepancy(found: Discrepancy) -> v1::Discrepancy {
    let kind = match found.kind {
        DiscrepancyKind::EnvelopeUnbalanced => v1::DiscrepancyKind::EnvelopeUnbalanced,
        DiscrepancyKind::PostingUnbalanced => v1::DiscrepancyKind::PostingUnbalanced,
        DiscrepancyKind::BalanceWrong => v1::DiscrepancyKind::BalanceWrong,
        DiscrepancyKind::ClaimWithoutGrant => v1::DiscrepancyKind::ClaimWithoutGrant,
        DiscrepancyKind::GrantWithoutClaim => v1::DiscrepancyKind::GrantWithoutClaim,
        DiscrepancyKind::AmountWrong => v1::DiscrepancyKind::AmountWrong,
        DiscrepancyKind::Stuck => v1::DiscrepancyKind::Stuck,
        DiscrepancyKind::DeadLetter => v1::DiscrepancyKind::DeadLetter,
        DiscrepancyKind::StateMismatch => v1::DiscrepancyKind::StateMismatch,
    };
    v1::Discrepancy {
        kind: kind.into(),
        tenant: found.tenant.map(|t| t.to_string()).unwrap_or_default(),
        envelope_id: found.envelope.map(|id| id.to_string()).unwrap_or_default(),
        detail: found.detail,
    }
}

fn totals(totals: &CurrencyTotals) -> v1::CurrencyTotals {
    v1::CurrencyTotals {
        currency_code: totals.currency_code.code().to_owned(),
        funded_minor: totals.funded_minor,
        remaining_minor: totals.remaining_minor,
        unsettled_minor: totals.unsettled_minor,
        settled_minor: totals.settled_minor,
        refunded_minor: totals.refunded_minor,
        made_good_minor: totals.made_good_minor,
        outside_minor: totals.outside_minor,
        available_minor: totals.available_minor,
    }
}
