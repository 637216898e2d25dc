//! GetFairnessProof: what a stranger needs to re-derive an envelope's id and every share.
//!
//! # Ordering
//! Nothing of the seed leaves the ledger before the books are closed.
//!
//! # Not here
//! What the proof proves: `docs/FAIRNESS.md` and `domain::fairness`.

use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::look::admits;
use super::status::ApiError;
use super::wire;

/// The RPC.
pub(super) async fn get_fairness_proof(
    api: &Api,
    request: v1::GetFairnessProofRequest,
) -> Result<v1::GetFairnessProofResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let id = a.envelope("envelope_id", &request.envelope_id);
    let viewer = a.name("viewer", &request.viewer);
    a.group(&request.group_id, &request.group_ticket);
    let (tenant, (id, viewer)) = a.admit(tenant.zip(id.zip(viewer)))?;
    let terms = api.facts.find(id).await?;
    if !admits(&terms, &tenant, &viewer, &request.group_id) {
        return Err(ApiError::NotFound);
    }
    let proof = api.ledger.proof(id).await?.ok_or(ApiError::NotClosed)?;
    Ok(v1::GetFairnessProofResponse {
        commitment: Some(wire::fairness(&terms.leaf, &terms.client_nonce)),
        server_seed: proof.server_seed.0.to_vec(),
        merkle_path: proof.path.iter().map(|hash| hash.0.to_vec()).collect(),
        proof_json: proof.to_json(),
    })
}
