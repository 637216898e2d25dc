//! FreezeEnvelope and UnfreezeEnvelope: an operator stops an envelope, and lets it go on.
//!
//! # Shape
//! | step | door |
//! |---|---|
//! | the mark and the act on record, and the mark where grabs are decided | `publish::marks` |
//! | a refused act is put on record by itself | `ledger.record_act` |
//!
//! # Ordering
//! Frozen, the books come first: nothing settles or is refunded from then on, and grabs that are
//! granted a moment longer are parked.
//!
//! # If it crashes here
//! The operator had no answer. The sweeper makes the marks alike, and the repeated call answers.
//!
//! # Not here
//! What an unfrozen envelope does next: settlement finds it in the state in which it stood.

use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::sight::Viewer;
use super::status::ApiError;
use crate::domain::envelope::Terms;
use crate::domain::id::{EnvelopeId, PersonId, TenantId, UnixMs};
use crate::ledger::AdminAct;
use crate::publish::marks::{self, MarkError};

/// Bytes of an act's reason.
pub const REASON_BYTES_MAX: usize = 256;

/// Who and why, as every act must say.
pub(super) struct Said {
    pub(super) operator: PersonId,
    pub(super) reason: String,
}

/// Checks who and why.
pub(super) fn said(a: &mut Admission, operator: &str, reason: &str) -> Option<Said> {
    if reason.is_empty() {
        a.offend("reason", "must say why");
    }
    a.text("reason", reason, REASON_BYTES_MAX);
    a.name("operator", operator).map(|operator| Said {
        operator,
        reason: reason.to_owned(),
    })
}

impl Said {
    /// An act for the record. The ledger fills in when.
    pub(super) fn act(&self, act: &'static str, envelope: Option<EnvelopeId>) -> AdminAct {
        AdminAct {
            act: act.to_owned(),
            envelope,
            operator: self.operator.clone(),
            reason: self.reason.clone(),
            at: UnixMs(0),
            result: "done".to_owned(),
        }
    }
}

impl Api {
    /// Puts a refused act on record and answers why it was refused.
    pub(super) async fn refused(&self, act: AdminAct, error: ApiError) -> ApiError {
        let refused = AdminAct {
            result: error.row().reason.to_owned(),
            ..act
        };
        if let Err(unrecorded) = self.ledger.record_act(refused).await {
            // The record is part of the act: without it the operator hears of that.
            return unrecorded.into();
        }
        error
    }

    /// The terms of an envelope of this tenant.
    pub(super) async fn of_tenant(
        &self,
        tenant: &TenantId,
        id: EnvelopeId,
    ) -> Result<std::sync::Arc<Terms>, ApiError> {
        let terms = self.facts.find(id).await?;
        if terms.tenant != *tenant {
            return Err(ApiError::NotFound);
        }
        Ok(terms)
    }
}

/// FreezeEnvelope.
pub(super) async fn freeze_envelope(
    api: &Api,
    request: v1::FreezeEnvelopeRequest,
) -> Result<v1::FreezeEnvelopeResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let id = a.envelope("envelope_id", &request.envelope_id);
    let said = said(&mut a, &request.operator, &request.reason);
    let ((tenant, id), said) = a.admit(tenant.zip(id).zip(said))?;
    let (envelope, replayed) = mark(api, &tenant, id, said.act("freeze", Some(id)), true).await?;
    Ok(v1::FreezeEnvelopeResponse {
        envelope: Some(envelope),
        replayed,
    })
}

/// UnfreezeEnvelope.
pub(super) async fn unfreeze_envelope(
    api: &Api,
    request: v1::UnfreezeEnvelopeRequest,
) -> Result<v1::UnfreezeEnvelopeResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let id = a.envelope("envelope_id", &request.envelope_id);
    let said = said(&mut a, &request.operator, &request.reason);
    let ((tenant, id), said) = a.admit(tenant.zip(id).zip(said))?;
    let act = said.act("unfreeze", Some(id));
    let (envelope, replayed) = mark(api, &tenant, id, act, false).await?;
    Ok(v1::UnfreezeEnvelopeResponse {
        envelope: Some(envelope),
        replayed,
    })
}

async fn mark(
    api: &Api,
    tenant: &TenantId,
    id: EnvelopeId,
    act: AdminAct,
    freeze: bool,
) -> Result<(v1::Envelope, bool), ApiError> {
    let terms = match api.of_tenant(tenant, id).await {
        Ok(terms) => terms,
        Err(error) => return Err(api.refused(act, error).await),
    };
    let marked = if freeze {
        marks::freeze(&*api.hot, &*api.ledger, id, act.clone()).await
    } else {
        marks::unfreeze(&*api.hot, &*api.ledger, id, act.clone()).await
    };
    let replayed = match marked {
        Ok(replayed) => replayed,
        Err(MarkError::Ledger(error)) => return Err(api.refused(act, error.into()).await),
        Err(MarkError::Hot(error)) => return Err(error.into()),
    };
    let snapshot = api.snapshot(id).await?;
    // Operators see what the sender sees.
    let viewer = Viewer {
        person: terms.sender.clone(),
        own: None,
    };
    Ok((snapshot.envelope(&viewer), replayed))
}
