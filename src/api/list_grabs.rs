//! ListGrabs: who got what, in the order of share numbers.
//!
//! # Ordering
//! A page is the hot store's grants and the ledger's claims of the same numbers, merged: what is
//! taken and not yet settled is in one, what is settled and forgotten by the hot store in the other.
//!
//! # Not here
//! Pages that several ask for at once: `reads`. Whose amounts are shown: `sight`.

use std::collections::BTreeMap;

use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::get::looked_at;
use super::reads::Shares;
use super::status::ApiError;
use super::token::Cursor;
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, TenantId};
use crate::hot::GRANTS_PER_PAGE_MAX;
use crate::ledger::Ledger;

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
    let shares = api.reads.page(id, from, size).await?;
    let (held, next) = &*shares;
    let next_page_token = next
        .map(|next| page.token(Cursor(i64::from(next))))
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

/// Shares with numbers ≥ `from` and whether each is paid, from what the hot store granted and where that
/// may go on; and where the next page begins, if there may be one.
pub(super) async fn page_of(
    ledger: &dyn Ledger,
    id: EnvelopeId,
    (from, size): (u32, usize),
    (granted, granted_next): (Vec<HeldShare>, Option<u32>),
) -> Result<Shares, ApiError> {
    let claimed = ledger.claims(id, from, size).await?;
    let last_claimed = claimed.last().filter(|_| claimed.len() >= size);
    let claimed_next = last_claimed.map(|held| held.grant.share + 1);
    // Below this both stores have told all that they have.
    let mut next = granted_next.into_iter().chain(claimed_next).min();
    let mut merged: BTreeMap<u32, (HeldShare, bool)> = BTreeMap::new();
    for share in granted {
        merged.insert(share.grant.share, (share, false));
    }
    for share in claimed {
        // A declined share is booked as a refund: it was not paid to anybody.
        let paid = !share.declined;
        merged.insert(share.grant.share, (share, paid));
    }
    let below = merged
        .into_iter()
        .take_while(|(number, _)| next.is_none_or(|next| *number < next));
    let mut shares: Vec<(HeldShare, bool)> = below.map(|(_, share)| share).collect();
    if shares.len() > size {
        next = Some(shares[size].0.grant.share);
        shares.truncate(size);
    }
    Ok((shares, next))
}
