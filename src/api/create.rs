//! CreateEnvelope: holds the money, publishes the shares, answers when they can be grabbed.
//!
//! # Shape
//! | step | where | crash point after it |
//! |---|---|---|
//! | 1. check everything, hash the request | `draft` | |
//! | 2. hold: sender → escrow, one transaction | `Ledger::fund` | `create::after_fund` |
//! | 3. shares into the hot store, open, mark | `Publisher::publish_new`, for a replay `publish` | its own |
//! | 4. answer as the sender sees it, by the row that step 3 has read | `sight` | `create::before_reply` |
//!
//! # Bounds
//! Above [`SYNCHRONOUS_SHARES_MAX`] shares step 3 goes on without the caller, in at most
//! [`BACKGROUND_PUBLISHES_MAX`] tasks; beyond that the sweeper publishes.
//!
//! # Ordering
//! Nothing is written before everything was checked. A repeat is answered as the first time, though
//! the hour or the accepted units would refuse it by now. A grab is possible only after the hold.
//!
//! # If it crashes here
//! Before step 2 nothing happened. After it the same request finds its envelope, goes on with step
//! 3 and answers with `replayed`; without a retry the sweeper publishes, and at the latest at the
//! expiry the money goes back.
//!
//! # Not here
//! How an id and a seed are chosen: the ledger takes the next committed leaf.

use std::sync::Arc;
use std::time::Duration;

use red_envelope_proto::v1;

use super::Api;
use super::draft::{Drafted, Rules, draft};
use super::sight::Viewer;
use super::status::{ApiError, Offence};
use crate::domain::envelope::{BookState, SYNCHRONOUS_SHARES_MAX};
use crate::domain::id::EnvelopeId;
use crate::hot::Epochs;
use crate::ledger::{EnvelopeRow, Fund, Funded};
use crate::publish::{PublishError, Published};
use crate::telemetry::metrics;

/// Large envelopes that are published at once without a waiting caller: the vectors of four of the
/// largest are 320 MB, and `publish` lets two of those load at a time.
pub const BACKGROUND_PUBLISHES_MAX: usize = 4;

/// The RPC.
pub(super) async fn create_envelope(
    api: &Arc<Api>,
    request: v1::CreateEnvelopeRequest,
) -> Result<v1::CreateEnvelopeResponse, ApiError> {
    // 1. check
    let rules = Rules {
        currencies: &api.currencies,
        pepper: &api.pepper,
        now: api.ledger.now(),
        salt: rand::random(),
        deal: (api.stripe_above_shares, api.hot.partitions()),
    };
    let Drafted {
        request_id,
        request_hash,
        draft,
        by_now,
    } = draft(request, &rules)?;
    let sender = draft.sender.clone();
    // 2. hold
    let before = api.hot.epochs();
    let fund = Fund {
        request_id,
        request_hash,
        draft,
    };
    let funded = hold(api, fund, by_now).await?;
    let row = funded.envelope;
    if !funded.replayed {
        metrics::envelope_created(row.terms.kind);
    }
    api.facts.learn(row.id, Arc::clone(&row.terms));
    fail::fail_point!("create::after_fund", |_| Err(ApiError::Unavailable(
        "a test stops here".into()
    )));
    // 3. publish
    let id = row.id;
    let published = publish(api, row, funded.replayed, &before).await?;
    // 4. answer
    fail::fail_point!("create::before_reply", |_| Err(ApiError::Unavailable(
        "a test stops here".into()
    )));
    let viewer = Viewer {
        person: sender,
        own: None,
    };
    let snapshot = match published {
        Some(published) => api.snapshot_of(published).await?,
        None => api.snapshot(id).await?,
    };
    Ok(v1::CreateEnvelopeResponse {
        envelope: Some(snapshot.envelope(&viewer)),
        replayed: funded.replayed,
    })
}

/// How long a request that is to be turned away waits for the books to say whether it was served before.
const FUNDED_WAIT: Duration = Duration::from_millis(500);

/// Holds the money, or finds what the same request held before. What is wrong only by now stands in
/// the way of a first request, and so does a backlog; neither undoes what was done.
async fn hold(api: &Api, fund: Fund, by_now: Vec<Offence>) -> Result<Funded, ApiError> {
    let refused = match api.admit_create() {
        Ok(()) if by_now.is_empty() => return Ok(api.ledger.fund(fund).await?),
        Err(later) if by_now.is_empty() => later,
        _ => ApiError::Invalid(by_now),
    };
    let look = api.ledger.funded(fund);
    let before = match refused {
        // Books that don't answer are behind, too, and the repetition asks again.
        ApiError::Behind(_) | ApiError::Unavailable(_) => tokio::time::timeout(FUNDED_WAIT, look)
            .await
            .unwrap_or(Ok(None)),
        _ => look.await,
    }?;
    before.ok_or_else(|| {
        if let ApiError::Behind(behind) = refused {
            metrics::shed(behind.name(), 1);
        }
        refused
    })
}

/// Publishes what nobody has published yet. An envelope that is live or over in the books was;
/// a frozen one stays as it is, and the answer says so. What was published for the first time is answered
/// with.
async fn publish(
    api: &Arc<Api>,
    row: EnvelopeRow,
    replayed: bool,
    before: &Epochs,
) -> Result<Option<Published>, ApiError> {
    if row.frozen || row.state != BookState::Funding {
        return Ok(None);
    }
    if row.terms.share_count > SYNCHRONOUS_SHARES_MAX {
        publish_behind(api, row.id);
        return Ok(None);
    }
    let published = match replayed {
        true => api.publisher.publish(row.id).await.map(|_| None),
        false => api.publisher.publish_new(row, before).await.map(Some),
    };
    match published {
        Err(PublishError::Frozen) => Ok(None),
        published => Ok(published?),
    }
}

/// Publishes without a waiting caller.
fn publish_behind(api: &Arc<Api>, id: EnvelopeId) {
    let Ok(permit) = Arc::clone(&api.publishes).try_acquire_owned() else {
        // The sweeper finds it: the row says Funding.
        return;
    };
    let publisher = Arc::clone(&api.publisher);
    tokio::spawn(async move {
        if let Err(error) = publisher.publish(id).await {
            tracing::warn!(envelope = %id, %error, "not published yet: the sweeper tries again");
        }
        drop(permit);
    });
}
