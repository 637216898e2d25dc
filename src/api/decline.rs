//! DeclineEnvelope: a share of an EXCLUSIVE envelope goes back to the sender.
//!
//! # Shape
//! | step | door |
//! |---|---|
//! | 1. is there a share for this grabber? | terms, which never change |
//! | 2. take it, for the sender | `hot.decline` |
//! | 3. missing there (or lost, or stale): publish and ask again, or answer from the books | `Publisher`, `ledger.claims_of` |
//!
//! # Bounds
//! [`ASKS_MAX`] calls of the hot store.
//!
//! # If it crashes here
//! A decline that was sent stands or does not, once: repeating it answers `replayed`.

use std::sync::Arc;

use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::look::admits;
use super::status::ApiError;
use super::wire;
use crate::domain::envelope::{BookState, Kind, Terms};
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, PersonId};
use crate::hot::{DeclineReply, HotError};

/// Calls of the hot store that one decline makes at the most: the first, one under a new epoch,
/// one after the envelope was published.
pub const ASKS_MAX: usize = 3;

/// The RPC.
pub(super) async fn decline_envelope(
    api: &Api,
    request: v1::DeclineEnvelopeRequest,
) -> Result<v1::DeclineEnvelopeResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let id = a.envelope("envelope_id", &request.envelope_id);
    let grabber = a.name("grabber", &request.grabber);
    let _ = a.name("request_id", &request.request_id);
    let (tenant, (id, grabber)) = a.admit(tenant.zip(id.zip(grabber)))?;
    let terms = api.facts.find(id).await?;
    if terms.kind != Kind::Exclusive && admits(&terms, &tenant, &grabber, "") {
        return Err(ApiError::NotExclusive);
    }
    if terms.tenant != tenant || terms.exclusive_share_of(&grabber).is_none() {
        return Err(ApiError::NotFound);
    }
    let (held, replayed) = decline(api, id, &terms, &grabber).await?;
    Ok(v1::DeclineEnvelopeResponse {
        share: Some(wire::share(&held, terms.currency)),
        replayed,
    })
}

async fn decline(
    api: &Api,
    id: EnvelopeId,
    terms: &Arc<Terms>,
    grabber: &PersonId,
) -> Result<(HeldShare, bool), ApiError> {
    let mut published = false;
    for _ in 0..ASKS_MAX {
        let reply = api
            .gated
            .decline(api.epoch(id), terms.tenant.clone(), id, grabber.clone())
            .await;
        match reply {
            Ok(DeclineReply::Declined { grant, replayed }) => {
                let held = HeldShare {
                    grabber: grabber.clone(),
                    grant,
                    declined: true,
                };
                return Ok((held, replayed));
            }
            Ok(DeclineReply::AlreadyGrabbed(_)) => return Err(ApiError::AlreadyGrabbed),
            Ok(DeclineReply::Over(reason)) => return Err(ApiError::AlreadyOver(reason)),
            Ok(DeclineReply::Funding) => return Err(ApiError::Funding),
            Ok(DeclineReply::Frozen) => return Err(ApiError::Frozen),
            Ok(DeclineReply::Missing) => {
                if let Some(held) = from_books(api, id, grabber, published).await? {
                    return Ok((held, true));
                }
                published = true;
            }
            Err(HotError::Epoch(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let words = "the envelope is neither in the hot store nor over";
    Err(ApiError::Unavailable(words.into()))
}

/// The share, if it was declined before the hot store forgot the envelope. `None`: the envelope
/// was not closed, and now it is published or repaired. Where the store then holds nothing of a
/// closing envelope, all that was granted is in the books.
async fn from_books(
    api: &Api,
    id: EnvelopeId,
    grabber: &PersonId,
    published: bool,
) -> Result<Option<HeldShare>, ApiError> {
    let rows = api.ledger.envelopes(vec![id]).await?;
    let row = rows.into_iter().flatten().next();
    let row = row.ok_or(ApiError::NotFound)?;
    let reason = match row.state {
        BookState::Closed(reason) => reason,
        BookState::Closing(reason) if published => reason,
        BookState::Funding | BookState::Live if row.frozen => return Err(ApiError::Frozen),
        BookState::Funding | BookState::Live | BookState::Closing(_) => {
            api.publisher.publish(id).await?;
            return Ok(None);
        }
    };
    match api.reads.claim_of((id, grabber.clone())).await? {
        Some(held) if held.declined => Ok(Some(held)),
        Some(_) => Err(ApiError::AlreadyGrabbed),
        None => Err(ApiError::AlreadyOver(reason)),
    }
}
