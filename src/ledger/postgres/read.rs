//! Questions about envelopes, claims, entries and balances.
//!
//! *Bounds.* Every listing answers at most `PAGE_ROWS_MAX` rows and is served by an index. The
//! accounts of one owner are as many as currencies.

use std::collections::HashMap;

use deadpool_postgres::GenericClient;
use tokio_postgres::Row;

use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, PersonId, TenantId};
use crate::domain::money::{Currency, Money};
use crate::ledger::{BalanceRow, EntryRow, EnvelopeRow, ReceivedRow};

use super::rows::{
    at, claim_columns, currency, envelope, envelope_columns, envelope_id, held, int_or_none, kind,
    page, person, some_envelope_id,
};
use super::sql::{self, Fault};

fn bytes_of(ids: &[EnvelopeId]) -> Vec<Vec<u8>> {
    ids.iter().map(|id| id.to_bytes().to_vec()).collect()
}

/// What an owner has, and which of the pending (envelope, share) pairs have no claim, in one
/// statement, so that both are of one snapshot.
pub(super) async fn balances(
    db: &impl GenericClient,
    tenant: &TenantId,
    owner: &PersonId,
    pending: &[(EnvelopeId, u32)],
) -> Result<(Vec<BalanceRow>, Vec<bool>), Fault> {
    let ids: Vec<EnvelopeId> = pending.iter().map(|(id, _)| *id).collect();
    let shares: Vec<i64> = pending.iter().map(|(_, share)| i64::from(*share)).collect();
    let found = sql::rows(
        db,
        "-- ledger.balances
         SELECT a.currency, a.available_minor,
             (SELECT coalesce(sum(n.funded_minor - n.settled_minor - n.refunded_minor), 0)::bigint
              FROM envelope n
              WHERE n.tenant = a.tenant AND n.sender = a.owner AND n.currency = a.currency
                  AND n.state <> 'closed'),
             NULL::bigint
         FROM account a
         WHERE a.tenant = $1 AND a.kind = 'owner' AND a.owner = $2
         UNION ALL
         SELECT '', 0, 0, u.place
         FROM unnest($3::bytea[], $4::bigint[]) WITH ORDINALITY u (id, share, place)
             JOIN envelope n ON n.id = u.id
             JOIN claim c ON c.envelope_row = n.row AND c.share = u.share
         ORDER BY 1",
        &[&tenant.as_str(), &owner.as_str(), &bytes_of(&ids), &shares],
    )
    .await?;
    let mut unclaimed = vec![true; pending.len()];
    let mut rows = Vec::new();
    for row in found {
        if let Some(place) = row.try_get::<_, Option<i64>>(3)? {
            let at = usize::try_from(place - 1).ok();
            if let Some(pending) = at.and_then(|at| unclaimed.get_mut(at)) {
                *pending = false;
            }
            continue;
        }
        rows.push(BalanceRow {
            currency: currency(&row, 0)?,
            available_minor: row.try_get(1)?,
            held_minor: row.try_get(2)?,
        });
    }
    Ok((rows, unclaimed))
}

/// Rows of an owner's accounts, of one currency or of all.
pub(super) async fn accounts_of(
    db: &impl GenericClient,
    tenant: &TenantId,
    owner: &PersonId,
    only: Option<Currency>,
) -> Result<Vec<(i64, Currency)>, Fault> {
    let code = only.as_ref().map(Currency::code);
    let found = sql::rows(
        db,
        "-- ledger.accounts_of
         SELECT row, currency FROM account
         WHERE tenant = $1 AND kind = 'owner' AND owner = $2
             AND ($3::text IS NULL OR currency = $3)",
        &[&tenant.as_str(), &owner.as_str(), &code],
    )
    .await?;
    let account = |row: &Row| Ok((row.try_get(0)?, currency(row, 1)?));
    found.iter().map(account).collect()
}

/// The newest rows of several lists that each begin with their newest.
fn newest<T>(mut rows: Vec<T>, limit: usize, key: impl Fn(&T) -> i64) -> Vec<T> {
    rows.sort_unstable_by_key(|row| std::cmp::Reverse(key(row)));
    rows.truncate(usize::try_from(page(limit)).expect("a page is small"));
    rows
}

const ENTRIES: &str = "-- ledger.entries
    SELECT e.row, e.posting_row, p.kind, e.amount_minor, p.posted_at, n.id,
        (SELECT m.share FROM made_good m WHERE p.kind = 'make_good' AND m.posting_row = p.row
            AND NOT m.back),
        p.reference
    FROM entry e JOIN posting p ON p.row = e.posting_row
        LEFT JOIN envelope n ON n.row = p.envelope_row
    WHERE e.account_row = $1 AND e.row < $2 ORDER BY e.row DESC LIMIT $3";

const SHARE_ENTRIES: &str = "-- ledger.share_entries
    SELECT c.row, c.posting_row, p.kind, c.amount_minor, p.posted_at, n.id, c.share, p.reference
    FROM claim c JOIN posting p ON p.row = c.posting_row JOIN envelope n ON n.row = c.envelope_row
    WHERE c.account_row = $1 AND c.row < $2 AND NOT c.declined ORDER BY c.row DESC LIMIT $3";

/// Entries below `before`, the newest first. An account's history is in two tables (shares, others),
/// each with an index by row: a page of each holds the page of both.
pub(super) async fn entries(
    db: &impl GenericClient,
    tenant: &TenantId,
    owner: &PersonId,
    only: Option<Currency>,
    (before, limit): (Option<i64>, usize),
) -> Result<Vec<EntryRow>, Fault> {
    let mut rows = Vec::new();
    for (account, currency) in accounts_of(db, tenant, owner, only).await? {
        for question in [ENTRIES, SHARE_ENTRIES] {
            let values: sql::Values<'_> = &[&account, &before.unwrap_or(i64::MAX), &page(limit)];
            for row in sql::rows(db, question, values).await? {
                rows.push(EntryRow {
                    entry: row.try_get(0)?,
                    posting: row.try_get(1)?,
                    kind: kind(&row, 2)?,
                    amount: Money {
                        currency,
                        minor: row.try_get(3)?,
                    },
                    posted_at: at(&row, 4)?,
                    envelope: some_envelope_id(&row, 5)?,
                    share: int_or_none(&row, 6)?,
                    reference: row.try_get(7)?,
                });
            }
        }
    }
    Ok(newest(rows, limit, |row| row.entry))
}

const RECEIVED: &str = concat!(
    "-- ledger.received\nSELECT ",
    claim_columns!(),
    ", c.row, n.id, n.sender
     FROM claim c JOIN account g ON g.row = c.account_row JOIN envelope n ON n.row = c.envelope_row
     WHERE c.account_row = $1 AND NOT c.declined AND c.row < $2
     ORDER BY c.row DESC LIMIT $3"
);

/// Shares paid to a grabber below `before`, the newest first.
pub(super) async fn received(
    db: &impl GenericClient,
    tenant: &TenantId,
    grabber: &PersonId,
    (before, limit): (Option<i64>, usize),
) -> Result<Vec<ReceivedRow>, Fault> {
    let mut rows = Vec::new();
    for (account, currency) in accounts_of(db, tenant, grabber, None).await? {
        let values: sql::Values<'_> = &[&account, &before.unwrap_or(i64::MAX), &page(limit)];
        for row in sql::rows(db, RECEIVED, values).await? {
            rows.push(ReceivedRow {
                row: row.try_get(5)?,
                envelope: envelope_id(&row, 6)?,
                sender: person(&row, 7)?,
                currency,
                share: held(&row)?,
            });
        }
    }
    Ok(newest(rows, limit, |row| row.row))
}

/// Envelopes of a sender below `before`, the newest first.
pub(super) async fn sent(
    db: &impl GenericClient,
    tenant: &TenantId,
    sender: &PersonId,
    (before, limit): (Option<i64>, usize),
) -> Result<Vec<EnvelopeRow>, Fault> {
    let found = sql::rows(
        db,
        concat!(
            "-- ledger.sent\nSELECT ",
            envelope_columns!(),
            " FROM envelope n WHERE n.tenant = $1 AND n.sender = $2 AND n.row < $3
             ORDER BY n.row DESC LIMIT $4"
        ),
        &[
            &tenant.as_str(),
            &sender.as_str(),
            &before.unwrap_or(i64::MAX),
            &page(limit),
        ],
    )
    .await?;
    found.iter().map(envelope).collect()
}

/// Envelopes in their order.
pub(super) async fn envelopes(
    db: &impl GenericClient,
    ids: &[EnvelopeId],
) -> Result<Vec<Option<EnvelopeRow>>, Fault> {
    let found = sql::rows(
        db,
        concat!(
            "-- ledger.envelopes\nSELECT ",
            envelope_columns!(),
            " FROM envelope n WHERE n.id = ANY ($1)"
        ),
        &[&bytes_of(ids)],
    )
    .await?;
    let mut by_id = HashMap::new();
    for row in found {
        let row = envelope(&row)?;
        by_id.insert(row.id, row);
    }
    Ok(ids.iter().map(|id| by_id.get(id).cloned()).collect())
}

/// Claims with share numbers from `from`, by number. The envelope's row is asked for apart: a join leaves
/// the planner no order to read the index in, and each page would cost all claims after it.
pub(super) async fn claims(
    db: &impl GenericClient,
    id: EnvelopeId,
    from: u32,
    limit: usize,
) -> Result<Vec<HeldShare>, Fault> {
    let found = sql::rows(
        db,
        concat!(
            "-- ledger.claims\nSELECT ",
            claim_columns!(),
            " FROM claim c JOIN account g ON g.row = c.account_row
             WHERE c.envelope_row = (SELECT n.row FROM envelope n WHERE n.id = $1)
                 AND c.share >= $2
             ORDER BY c.share LIMIT $3"
        ),
        &[
            &&id.to_bytes()[..],
            &i32::try_from(from).unwrap_or(i32::MAX),
            &page(limit),
        ],
    )
    .await?;
    found.iter().map(held).collect()
}

/// What each was paid from an envelope, in their order.
pub(super) async fn claims_of(
    db: &impl GenericClient,
    whose: &[(EnvelopeId, PersonId)],
) -> Result<Vec<Option<HeldShare>>, Fault> {
    let ids: Vec<_> = whose.iter().map(|(id, _)| *id).collect();
    let owners: Vec<&str> = whose.iter().map(|(_, owner)| owner.as_str()).collect();
    let found = sql::rows(
        db,
        concat!(
            "-- ledger.claims_of\nSELECT ",
            claim_columns!(),
            ", u.place FROM unnest($1::bytea[], $2::text[]) WITH ORDINALITY u (id, owner, place)
                 JOIN envelope n ON n.id = u.id
                 JOIN account g ON g.tenant = n.tenant AND g.kind = 'owner' AND g.owner = u.owner
                     AND g.currency = n.currency
                 JOIN claim c ON c.envelope_row = n.row AND c.account_row = g.row"
        ),
        &[&bytes_of(&ids), &owners],
    )
    .await?;
    let mut claims = vec![None; whose.len()];
    for row in found {
        let place: i64 = row.try_get(5)?;
        let at = usize::try_from(place - 1).ok();
        if let Some(claim) = at.and_then(|at| claims.get_mut(at)) {
            *claim = Some(held(&row)?);
        }
    }
    Ok(claims)
}

/// The best claim, as settling kept it.
pub(super) async fn best_claim(
    db: &impl GenericClient,
    id: EnvelopeId,
) -> Result<Option<HeldShare>, Fault> {
    let found = sql::row(
        db,
        concat!(
            "-- ledger.best_claim\nSELECT ",
            claim_columns!(),
            " FROM envelope n
                 JOIN claim c ON c.envelope_row = n.row AND c.share = n.best_share
                 JOIN account g ON g.row = c.account_row
             WHERE n.id = $1"
        ),
        &[&&id.to_bytes()[..]],
    )
    .await?;
    found.as_ref().map(held).transpose()
}
