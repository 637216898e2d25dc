//! TraceEnvelope: one envelope's money from the sender's hold to the last entry.
//!
//! # Bounds
//! [`TRACED_MAX`] postings and shares, [`ACTS_MAX`] acts; `truncated` says where a list was cut.
//!
//! # Ordering
//! The look itself is put on record before anything is shown.

use red_envelope_proto::v1;

use super::Api;
use super::admin_freeze::said;
use super::admission::Admission;
use super::list_grabs::page_of;
use super::sight::{Snapshot, Viewer};
use super::status::ApiError;
use super::wire;
use crate::domain::id::EnvelopeId;
use crate::hot::gate::where_to_go_on;
use crate::ledger::{AdminAct, EnvelopePosting};

/// Postings and shares that a trace holds: a page of either.
pub const TRACED_MAX: usize = 1_000;
/// Acts that a trace holds.
pub const ACTS_MAX: usize = 100;

/// The RPC.
pub(super) async fn trace_envelope(
    api: &Api,
    request: v1::TraceEnvelopeRequest,
) -> Result<v1::TraceEnvelopeResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let id = a.envelope("envelope_id", &request.envelope_id);
    let said = said(&mut a, &request.operator, &request.reason);
    let ((tenant, id), said) = a.admit(tenant.zip(id).zip(said))?;
    let act = said.act("trace", Some(id));
    let found = match api.of_tenant(&tenant, id).await {
        Ok(_) => api.snapshot(id).await,
        Err(error) => Err(error),
    };
    let snapshot = match found {
        Ok(snapshot) => snapshot,
        Err(error) => return Err(api.refused(act, error).await),
    };
    api.ledger.record_act(act).await?;
    traced(api, id, &snapshot).await
}

async fn traced(
    api: &Api,
    id: EnvelopeId,
    snapshot: &Snapshot,
) -> Result<v1::TraceEnvelopeResponse, ApiError> {
    // Operators see what the sender sees.
    let viewer = Viewer {
        person: snapshot.terms().sender.clone(),
        own: None,
    };
    let postings = api.ledger.postings(id, TRACED_MAX).await?;
    // What is there, told to anybody or not.
    let granted = api.hot.grants(id, 0, TRACED_MAX).await?.unwrap_or_default();
    let granted_next = where_to_go_on(&granted, TRACED_MAX);
    let (held, next) = page_of(&*api.ledger, id, (0, TRACED_MAX), (granted, granted_next)).await?;
    let more = next.is_some();
    let acts = api.ledger.acts(Some(id), ACTS_MAX).await?;
    let cut = postings.len() == TRACED_MAX || acts.len() == ACTS_MAX;
    let all_taken = held.len() == usize::try_from(snapshot.terms().share_count).unwrap_or(0);
    let share = |(held, settled): &(_, bool)| {
        let mut share = snapshot.share(held, &viewer);
        share.settled = *settled;
        share
    };
    Ok(v1::TraceEnvelopeResponse {
        envelope: Some(snapshot.envelope(&viewer)),
        postings: postings.into_iter().map(posting).collect(),
        shares: held.iter().map(share).collect(),
        acts: acts.into_iter().map(act).collect(),
        truncated: cut || (more && !all_taken),
    })
}

fn posting(posting: EnvelopePosting) -> v1::TracedPosting {
    v1::TracedPosting {
        posting_id: posting.posting.to_string(),
        kind: posting.kind.name().to_owned(),
        amount_minor: posting.amount_minor,
        share_count: posting.shares,
        post_time: Some(wire::timestamp(posting.posted_at)),
    }
}

fn act(act: AdminAct) -> v1::AdminAct {
    v1::AdminAct {
        act: act.act,
        operator: act.operator.to_string(),
        reason: act.reason,
        act_time: Some(wire::timestamp(act.at)),
        result: act.result,
    }
}
