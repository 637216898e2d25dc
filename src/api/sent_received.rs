//! ListSentEnvelopes and ListReceivedShares: what somebody gave and got.
//!
//! # Bounds
//! Pages of 100 envelopes and 1,000 shares. A page of envelopes ends early where the next one would
//! not fit the answer: a sender's own view carries every name of a Named audience.
//!
//! # Not here
//! Grabs that are not settled: they are in the balance as `pending`.

use std::collections::HashMap;

use prost::Message;
use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::get::RESPONSE_BYTES_MAX;
use super::sight::Viewer;
use super::status::ApiError;
use super::token::Cursor;
use super::wire;
use crate::domain::id::{EnvelopeId, TenantId};
use crate::hot::VIEWS_PER_CALL_MAX;
use crate::ledger::{PAGE_ROWS_MAX, ReceivedRow};

const ENVELOPES_PER_PAGE: usize = 20;
const SHARES_PER_PAGE: usize = 100;

/// ListSentEnvelopes.
pub(super) async fn list_sent_envelopes(
    api: &Api,
    request: v1::ListSentEnvelopesRequest,
) -> Result<v1::ListSentEnvelopesResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let sender = a.name("sender", &request.sender);
    let size = a.page_size(request.page_size, ENVELOPES_PER_PAGE, VIEWS_PER_CALL_MAX);
    let page = api.tokens.page(
        "ListSentEnvelopes",
        &[
            tenant.as_ref().map_or("", TenantId::as_str),
            &request.sender,
        ],
    );
    let before = page.cursor(&mut a, &request.page_token);
    let (tenant, sender) = a.admit(tenant.zip(sender))?;
    let before = before.map(|Cursor(row)| row);
    let rows = api
        .ledger
        .sent(tenant, sender.clone(), before, size)
        .await?;
    let full = rows.len() == size;
    let viewer = Viewer {
        person: sender,
        own: None,
    };
    let mut answer = v1::ListSentEnvelopesResponse::default();
    let mut bytes = 0;
    let mut last = None;
    let mut cut = false;
    for snapshot in api.snapshots_of(rows).await? {
        let envelope = snapshot.envelope(&viewer);
        bytes += envelope.encoded_len();
        cut = bytes > RESPONSE_BYTES_MAX;
        if cut {
            break;
        }
        last = Some(snapshot.row.row);
        answer.envelopes.push(envelope);
    }
    if let Some(row) = last.filter(|_| full || cut) {
        answer.next_page_token = page.token(Cursor(row));
    }
    Ok(answer)
}

/// ListReceivedShares.
pub(super) async fn list_received_shares(
    api: &Api,
    request: v1::ListReceivedSharesRequest,
) -> Result<v1::ListReceivedSharesResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let grabber = a.name("grabber", &request.grabber);
    let size = a.page_size(request.page_size, SHARES_PER_PAGE, PAGE_ROWS_MAX);
    let page = api.tokens.page(
        "ListReceivedShares",
        &[
            tenant.as_ref().map_or("", TenantId::as_str),
            &request.grabber,
        ],
    );
    let before = page.cursor(&mut a, &request.page_token);
    let (tenant, grabber) = a.admit(tenant.zip(grabber))?;
    let before = before.map(|Cursor(row)| row);
    let rows = api.ledger.received(tenant, grabber, before, size).await?;
    let best = best_shares(api, &rows).await?;
    let next = rows.last().filter(|_| rows.len() == size);
    Ok(v1::ListReceivedSharesResponse {
        next_page_token: next
            .map(|row| page.token(Cursor(row.row)))
            .unwrap_or_default(),
        received_shares: rows.into_iter().map(|row| received(row, &best)).collect(),
    })
}

/// The number of the best share of each envelope that is empty or closed.
async fn best_shares(
    api: &Api,
    rows: &[ReceivedRow],
) -> Result<HashMap<EnvelopeId, u32>, ApiError> {
    let mut ids: Vec<_> = rows.iter().map(|row| row.envelope).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut best = HashMap::new();
    for chunk in ids.chunks(VIEWS_PER_CALL_MAX) {
        let snapshots = api.snapshots(chunk.to_vec()).await?;
        for snapshot in snapshots.into_iter().flatten().filter(|s| s.ended()) {
            let number = snapshot.best.as_ref().map(|share| share.grant.share);
            best.extend(number.map(|number| (snapshot.row.id, number)));
        }
    }
    Ok(best)
}

fn received(row: ReceivedRow, best: &HashMap<EnvelopeId, u32>) -> v1::ReceivedShare {
    let mut share = wire::share(&row.share, row.currency);
    share.settled = !row.share.declined;
    share.best_luck = best.get(&row.envelope) == Some(&row.share.grant.share);
    v1::ReceivedShare {
        envelope_id: row.envelope.to_string(),
        sender: row.sender.to_string(),
        share: Some(share),
    }
}
