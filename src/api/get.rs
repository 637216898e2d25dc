//! GetEnvelope and BatchGetEnvelopes: what a chat shows.
//!
//! # Bounds
//! 100 envelopes a call, and [`RESPONSE_BYTES_MAX`] an answer.
//!
//! # Not here
//! What a viewer may see: `sight`.

use std::collections::HashMap;

use prost::Message;
use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::look::admits;
use super::sight::{Snapshot, Viewer};
use super::status::ApiError;
use crate::domain::id::{EnvelopeId, PersonId, TenantId};
use crate::hot::VIEWS_PER_CALL_MAX;

/// Bytes of one answer: gRPC clients accept 4 MiB unless told otherwise, and the message around
/// the envelopes stays below 64 KiB.
pub const RESPONSE_BYTES_MAX: usize = (4 << 20) - (64 << 10);

/// GetEnvelope.
pub(super) async fn get_envelope(
    api: &Api,
    request: v1::GetEnvelopeRequest,
) -> Result<v1::GetEnvelopeResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let id = a.envelope("envelope_id", &request.envelope_id);
    let viewer = a.name("viewer", &request.viewer);
    a.group(&request.group_id, &request.group_ticket);
    let (tenant, (id, person)) = a.admit(tenant.zip(id.zip(viewer)))?;
    let (snapshot, viewer) = looked_at(api, &tenant, id, person, &request.group_id).await?;
    Ok(response(&snapshot, &viewer))
}

/// One envelope and who looks at it, if it exists for them.
pub(super) async fn looked_at(
    api: &Api,
    tenant: &TenantId,
    id: EnvelopeId,
    person: PersonId,
    group_id: &str,
) -> Result<(Snapshot, Viewer), ApiError> {
    let terms = api.facts.find(id).await?;
    if !admits(&terms, tenant, &person, group_id) {
        return Err(ApiError::NotFound);
    }
    let snapshot = api.snapshot(id).await?;
    let viewer = api.viewer(person, &snapshot).await?;
    Ok((snapshot, viewer))
}

/// An envelope and the viewer's own share.
pub(super) fn response(snapshot: &Snapshot, viewer: &Viewer) -> v1::GetEnvelopeResponse {
    v1::GetEnvelopeResponse {
        envelope: Some(snapshot.envelope(viewer)),
        own_share: viewer.own.as_ref().map(|own| snapshot.share(own, viewer)),
    }
}

/// BatchGetEnvelopes.
pub(super) async fn batch_get_envelopes(
    api: &Api,
    request: v1::BatchGetEnvelopesRequest,
) -> Result<v1::BatchGetEnvelopesResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let person = a.name("viewer", &request.viewer);
    a.group(&request.group_id, &request.group_ticket);
    let count = request.envelope_ids.len();
    if count == 0 || count > VIEWS_PER_CALL_MAX {
        a.offend(
            "envelope_ids",
            format!("must be 1 to {VIEWS_PER_CALL_MAX} ids, not {count}"),
        );
    }
    let mut ids = Vec::with_capacity(count.min(VIEWS_PER_CALL_MAX));
    for (index, text) in request
        .envelope_ids
        .iter()
        .take(VIEWS_PER_CALL_MAX)
        .enumerate()
    {
        ids.extend(a.envelope(format!("envelope_ids[{index}]"), text));
    }
    let (tenant, person) = a.admit(tenant.zip(person))?;
    let found = api.snapshots(ids).await?;
    let admitted: Vec<_> = found
        .iter()
        .map(|snapshot| {
            let snapshot = snapshot.as_ref()?;
            admits(snapshot.terms(), &tenant, &person, &request.group_id).then_some(snapshot)
        })
        .collect();
    let seen: Vec<&Snapshot> = admitted.iter().flatten().copied().collect();
    let held = api.held_by(&person, &seen).await?;
    answer(&request, &admitted, &person, held)
}

fn answer(
    request: &v1::BatchGetEnvelopesRequest,
    admitted: &[Option<&Snapshot>],
    person: &PersonId,
    held: HashMap<EnvelopeId, crate::domain::grab::HeldShare>,
) -> Result<v1::BatchGetEnvelopesResponse, ApiError> {
    let mut answer = v1::BatchGetEnvelopesResponse::default();
    let mut bytes = 0;
    for (snapshot, text) in admitted.iter().zip(&request.envelope_ids) {
        let Some(snapshot) = snapshot else {
            answer.missing.push(text.clone());
            continue;
        };
        let viewer = Viewer {
            person: person.clone(),
            own: held.get(&snapshot.row.id).cloned(),
        };
        let seen = response(snapshot, &viewer);
        bytes += seen.encoded_len();
        if bytes > RESPONSE_BYTES_MAX {
            return Err(ApiError::TooMuch);
        }
        answer.envelopes.push(seen);
    }
    Ok(answer)
}
