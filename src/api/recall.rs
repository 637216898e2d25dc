//! RecallEnvelope: the sender ends it early, and what nobody took goes back.
//!
//! # Shape
//! | step | door | effect |
//! |---|---|---|
//! | 1. is it over already? | `hot.view`, `ledger.envelopes` | none |
//! | 2. no settlement forgets it | `ledger.begin_close(Recalled)` | Closing |
//! | 3. no grab after it | `hot.close(Recalled)` | over; its first reason stands |
//!
//! # Bounds
//! [`CLOSE_TRIES_MAX`] closes, one more for each new epoch.
//!
//! # Ordering
//! The hot store's reason is the final one, also in the books (`finish_close` takes it). So an
//! envelope that is Empty or Expired there answers ALREADY_OVER in step 1 and nothing is written;
//! one that runs empty between 1 and 3 stands as Closing(Recalled) in the books for a moment, and
//! its sender hears ALREADY_OVER, now and whenever the call is repeated.
//!
//! # If it crashes here
//! After 2: grabs go on until settlement, which finds the row Closing, closes the hot store. The
//! sender has no answer yet, and the repeated call goes on with step 3. After 3: the repeated call
//! answers `replayed`.
//!
//! # Not here
//! The refund: settlement makes it when all that was granted is settled.

use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::sight::{Snapshot, Viewer};
use super::status::ApiError;
use crate::domain::envelope::{BookState, CloseReason, HotState};
use crate::domain::id::EnvelopeId;
use crate::hot::{CloseReply, HotError};

/// Closes that one recall sends: a partition changes its epoch once in a failover.
pub const CLOSE_TRIES_MAX: usize = 2;

/// The RPC.
pub(super) async fn recall_envelope(
    api: &Api,
    request: v1::RecallEnvelopeRequest,
) -> Result<v1::RecallEnvelopeResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let id = a.envelope("envelope_id", &request.envelope_id);
    let sender = a.name("sender", &request.sender);
    let _ = a.name("request_id", &request.request_id);
    let (tenant, (id, sender)) = a.admit(tenant.zip(id.zip(sender)))?;
    let terms = api.facts.find(id).await?;
    if terms.tenant != tenant || terms.sender != sender {
        return Err(ApiError::NotFound);
    }
    // 1. look
    let before = api.snapshot(id).await?;
    let replayed = over_before(&before)?;
    // 2. books, 3. hot store
    if !before.closed() {
        api.ledger.begin_close(id, CloseReason::Recalled).await?;
        close(api, id, &before).await?;
    }
    let after = api.snapshot(id).await?;
    let viewer = Viewer {
        person: sender,
        own: None,
    };
    Ok(v1::RecallEnvelopeResponse {
        envelope: Some(after.envelope(&viewer)),
        replayed,
    })
}

/// Whether it was recalled before.
///
/// # Errors
/// It is over for another reason, or frozen.
fn over_before(before: &Snapshot) -> Result<bool, ApiError> {
    if before.frozen() {
        return Err(ApiError::Frozen);
    }
    match before.standing() {
        HotState::Over(CloseReason::Recalled) => Ok(true),
        HotState::Over(reason) => Err(ApiError::AlreadyOver(reason)),
        HotState::Funding | HotState::Live => match before.row.state {
            BookState::Closing(CloseReason::Recalled) => Ok(true),
            BookState::Closing(reason) => Err(ApiError::AlreadyOver(reason)),
            BookState::Funding | BookState::Live | BookState::Closed(_) => Ok(false),
        },
    }
}

async fn close(api: &Api, id: EnvelopeId, before: &Snapshot) -> Result<(), ApiError> {
    for _ in 0..CLOSE_TRIES_MAX {
        let terms = before.terms().clone();
        let under = api.hot.epochs();
        let closed = api.hot.close(&under, id, terms, CloseReason::Recalled);
        return match closed.await {
            Ok(CloseReply::Over {
                reason: CloseReason::Recalled,
                ..
            }) => Ok(()),
            Ok(CloseReply::Over { reason, .. }) => Err(ApiError::AlreadyOver(reason)),
            Ok(CloseReply::Frozen) => Err(ApiError::Frozen),
            Ok(CloseReply::NotDue(_)) => {
                Err(ApiError::Internal("a recall was told to wait".into()))
            }
            Err(HotError::Epoch(_)) => continue,
            Err(error) => Err(error.into()),
        };
    }
    let words = "the partition changed its epoch twice";
    Err(ApiError::Unavailable(words.into()))
}
