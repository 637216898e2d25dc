//! Questions about envelopes, claims, entries and balances, each on one snapshot.
//!
//! *Bounds.* Every listing answers at most `PAGE_ROWS_MAX` rows and is served by an index. The
//! accounts of one owner are as many as currencies.

use rusqlite::{Connection, OptionalExtension};

use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, PersonId, TenantId};
use crate::domain::money::{Currency, Money};
use crate::ledger::{BalanceRow, EntryRow, EnvelopeRow, LedgerError, ReceivedRow};

use super::rows::{
    CLAIM_COLUMNS, ENVELOPE_COLUMNS, Sql, at, currency, envelope, envelope_id, held, kind, page,
    person,
};

/// What an owner has, and which of the pending (envelope, share) pairs have no claim.
pub(super) fn balances(
    db: &Connection,
    tenant: &TenantId,
    owner: &PersonId,
    pending: &[(EnvelopeId, u32)],
) -> Result<(Vec<BalanceRow>, Vec<bool>), LedgerError> {
    let rows = db
        .prepare_cached(
            "-- ledger.balances
             SELECT a.currency, a.available_minor,
                 (SELECT coalesce(sum(n.funded_minor - n.settled_minor - n.refunded_minor), 0)
                  FROM envelope n
                  WHERE n.tenant = a.tenant AND n.sender = a.owner AND n.currency = a.currency
                      AND n.state <> 'closed')
             FROM account a
             WHERE a.tenant = ?1 AND a.kind = 'owner' AND a.owner = ?2
             ORDER BY a.currency",
        )
        .and_then(|mut find| {
            find.query_map((tenant.as_str(), owner.as_str()), |row| {
                Ok(BalanceRow {
                    currency: currency(row, 0)?,
                    available_minor: row.get(1)?,
                    held_minor: row.get(2)?,
                })
            })?
            .collect()
        })
        .sql()?;
    let mut claimed = db
        .prepare_cached(
            "-- ledger.is_claimed
             SELECT 1 FROM envelope n JOIN claim c ON c.envelope_row = n.row AND c.share = ?2
             WHERE n.id = ?1",
        )
        .sql()?;
    let unclaimed = pending
        .iter()
        .map(|(id, share)| claimed.exists((id.to_bytes(), share)).map(|is| !is))
        .collect::<Result<_, _>>()
        .sql()?;
    Ok((rows, unclaimed))
}

/// Rows of an owner's accounts, of one currency or of all.
pub(super) fn accounts_of(
    db: &Connection,
    tenant: &TenantId,
    owner: &PersonId,
    only: Option<Currency>,
) -> Result<Vec<(i64, Currency)>, LedgerError> {
    db.prepare_cached(
        "-- ledger.accounts_of
         SELECT row, currency FROM account
         WHERE tenant = ?1 AND kind = 'owner' AND owner = ?2
             AND (?3 IS NULL OR currency = ?3)",
    )
    .and_then(|mut find| {
        let code = only.as_ref().map(Currency::code);
        find.query_map((tenant.as_str(), owner.as_str(), code), |row| {
            Ok((row.get(0)?, currency(row, 1)?))
        })?
        .collect()
    })
    .sql()
}

/// The newest rows of several lists that each begin with their newest.
fn newest<T>(mut rows: Vec<T>, limit: usize, key: impl Fn(&T) -> i64) -> Vec<T> {
    rows.sort_unstable_by_key(|row| std::cmp::Reverse(key(row)));
    rows.truncate(usize::try_from(page(limit)).expect("a page is small"));
    rows
}

/// Entries below `before`, the newest first. An account's index has two halves (shares, others),
/// each of them sorted by row: a page of each holds the page of both.
pub(super) fn entries(
    db: &Connection,
    tenant: &TenantId,
    owner: &PersonId,
    only: Option<Currency>,
    (before, limit): (Option<i64>, usize),
) -> Result<Vec<EntryRow>, LedgerError> {
    let mut find = db
        .prepare_cached(
            "-- ledger.entries
             SELECT e.row, e.posting_row, p.kind, e.amount_minor, p.posted_at, n.id, e.share,
                 p.reference
             FROM entry e JOIN posting p ON p.row = e.posting_row
                 LEFT JOIN envelope n ON n.row = p.envelope_row
             WHERE e.account_row = ?1 AND (e.share IS NOT NULL) = ?2 AND e.row < ?3
             ORDER BY e.row DESC LIMIT ?4",
        )
        .sql()?;
    let mut rows = Vec::new();
    for (account, currency) in accounts_of(db, tenant, owner, only)? {
        for of_share in [false, true] {
            let key = (account, of_share, before.unwrap_or(i64::MAX), page(limit));
            let half = find
                .query_map(key, |row| {
                    Ok(EntryRow {
                        entry: row.get(0)?,
                        posting: row.get(1)?,
                        kind: kind(row, 2)?,
                        amount: Money {
                            currency,
                            minor: row.get(3)?,
                        },
                        posted_at: at(row, 4)?,
                        envelope: row
                            .get::<_, Option<[u8; 16]>>(5)?
                            .map(EnvelopeId::from_bytes),
                        share: row.get(6)?,
                        reference: row.get(7)?,
                    })
                })
                .sql()?;
            for row in half {
                rows.push(row.sql()?);
            }
        }
    }
    Ok(newest(rows, limit, |row| row.entry))
}

/// Shares paid to a grabber below `before`, the newest first.
pub(super) fn received(
    db: &Connection,
    tenant: &TenantId,
    grabber: &PersonId,
    (before, limit): (Option<i64>, usize),
) -> Result<Vec<ReceivedRow>, LedgerError> {
    let mut find = db
        .prepare_cached(&format!(
            "-- ledger.received
             SELECT {CLAIM_COLUMNS}, c.row, n.id, n.sender
             FROM entry e JOIN claim c ON c.row = e.row JOIN envelope n ON n.row = c.envelope_row
             WHERE e.account_row = ?1 AND (e.share IS NOT NULL) = 1 AND e.row < ?2
             ORDER BY e.row DESC LIMIT ?3"
        ))
        .sql()?;
    let mut rows = Vec::new();
    for (account, currency) in accounts_of(db, tenant, grabber, None)? {
        let key = (account, before.unwrap_or(i64::MAX), page(limit));
        let paid = find
            .query_map(key, |row| {
                Ok(ReceivedRow {
                    row: row.get(5)?,
                    envelope: envelope_id(row, 6)?,
                    sender: person(row, 7)?,
                    currency,
                    share: held(row)?,
                })
            })
            .sql()?;
        for row in paid {
            rows.push(row.sql()?);
        }
    }
    Ok(newest(rows, limit, |row| row.row))
}

/// Envelopes of a sender below `before`, the newest first.
pub(super) fn sent(
    db: &Connection,
    tenant: &TenantId,
    sender: &PersonId,
    (before, limit): (Option<i64>, usize),
) -> Result<Vec<EnvelopeRow>, LedgerError> {
    db.prepare_cached(&format!(
        "-- ledger.sent
         SELECT {ENVELOPE_COLUMNS} FROM envelope n
         WHERE n.tenant = ?1 AND n.sender = ?2 AND n.row < ?3
         ORDER BY n.row DESC LIMIT ?4"
    ))
    .and_then(|mut find| {
        let before = before.unwrap_or(i64::MAX);
        find.query_map(
            (tenant.as_str(), sender.as_str(), before, page(limit)),
            envelope,
        )?
        .collect()
    })
    .sql()
}

/// Claims with share numbers from `from`, by number.
pub(super) fn claims(
    db: &Connection,
    id: EnvelopeId,
    from: u32,
    limit: usize,
) -> Result<Vec<HeldShare>, LedgerError> {
    db.prepare_cached(&format!(
        "-- ledger.claims
         SELECT {CLAIM_COLUMNS} FROM envelope n JOIN claim c ON c.envelope_row = n.row
         WHERE n.id = ?1 AND c.share >= ?2 ORDER BY c.share LIMIT ?3"
    ))
    .and_then(|mut find| {
        find.query_map((id.to_bytes(), from, page(limit)), held)?
            .collect()
    })
    .sql()
}

/// What each was paid from an envelope, in their order.
pub(super) fn claims_of(
    db: &Connection,
    whose: &[(EnvelopeId, PersonId)],
) -> Result<Vec<Option<HeldShare>>, LedgerError> {
    let mut find = db
        .prepare_cached(&format!(
            "-- ledger.claims_of
             SELECT {CLAIM_COLUMNS} FROM envelope n JOIN claim c ON c.envelope_row = n.row
             WHERE n.id = ?1 AND c.grabber = ?2"
        ))
        .sql()?;
    whose
        .iter()
        .map(|(id, grabber)| {
            find.query_row((id.to_bytes(), grabber.as_str()), held)
                .optional()
                .sql()
        })
        .collect()
}

/// The best claim, as settling kept it.
pub(super) fn best_claim(
    db: &Connection,
    id: EnvelopeId,
) -> Result<Option<HeldShare>, LedgerError> {
    db.prepare_cached(&format!(
        "-- ledger.best_claim
         SELECT {CLAIM_COLUMNS} FROM envelope n JOIN claim c ON c.row = n.best_claim
         WHERE n.id = ?1"
    ))
    .and_then(|mut find| find.query_row([id.to_bytes()], held).optional())
    .sql()
}
