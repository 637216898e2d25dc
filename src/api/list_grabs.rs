//! ListGrabs: who got what, in the order of share numbers.
//!
//! # Ordering
//! A page is the hot store's grants and the ledger's claims of the same numbers, merged: what is
//! taken and not yet settled is in one, what is settled and forgotten by the hot store in the other.
//!
//! # Not here
//! Whose amounts are shown: `sight`.

use std::collections::BTreeMap;

use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::get::looked_at;
use super::status::ApiError;
use super::token::Cursor;
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, TenantId};
use crate::hot::GRANTS_PER_PAGE_MAX;

const GRABS_PER_PAGE: usize = 100;

/// The RPC.
pub(super) async fn list_grabs(
    api: &Api,
    request: v1::ListGrabsRequest,
) -> Result<v1::ListGrabsResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let id = a.envelope("envelope_id", &request.envelope_id);
    let viewer = a.name("viewer", &request.viewer);
    a.group(&request.group_id, &request.group_ticket);
    let size = a.page_size(request.page_size, GRABS_PER_PAGE, GRANTS_PER_PAGE_MAX);
    let page = api.tokens.page(
        "ListGrabs",
        &[
            tenant.as_ref().map_or("", TenantId::as_str),
            &id.map_or_else(String::new, |id| id.to_string()),
            &request.viewer,
            &request.group_id,
        ],
    );
    let from = page.cursor(&mut a, &request.page_token);
    let (tenant, (id, viewer)) = a.admit(tenant.zip(id.zip(viewer)))?;
    let (snapshot, viewer) = looked_at(api, &tenant, id, viewer, &request.group_id).await?;
    let from = from.map_or(0, |Cursor(from)| u32::try_from(from).unwrap_or(u32::MAX));
    let (held, more) = page_of(api, id, from, size).await?;
    let next = held.last().filter(|_| more);
    let next_page_token = next
        .map(|(last, _)| page.token(Cursor(i64::from(last.grant.share) + 1)))
        .unwrap_or_default();
    let shares = held
        .iter()
        .map(|(held, settled)| {
            let mut share = snapshot.share(held, &viewer);
            share.settled = *settled;
            share
        })
        .collect();
    Ok(v1::ListGrabsResponse {
        shares,
        next_page_token,
    })
}

/// Shares with numbers ≥ `from` and whether each is paid; and whether there may be more.
pub(super) async fn page_of(
    api: &Api,
    id: EnvelopeId,
    from: u32,
    size: usize,
) -> Result<(Vec<(HeldShare, bool)>, bool), ApiError> {
    let granted = api.gated.grants(id, from, size).await?;
    let claimed = api.ledger.claims(id, from, size).await?;
    let full = |shares: usize| shares >= size;
    let more = granted.as_ref().is_some_and(|g| full(g.len())) || full(claimed.len());
    let mut merged: BTreeMap<u32, (HeldShare, bool)> = BTreeMap::new();
    for share in granted.into_iter().flatten() {
        merged.insert(share.grant.share, (share, false));
    }
    for share in claimed {
        // A declined share is booked as a refund: it was not paid to anybody.
        let paid = !share.declined;
        merged.insert(share.grant.share, (share, paid));
    }
    let dropped = merged.len() > size;
    Ok((merged.into_values().take(size).collect(), more || dropped))
}
