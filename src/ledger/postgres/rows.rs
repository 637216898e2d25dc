//! Between rows and the domain: decoding, and naming states.

use std::sync::Arc;

use deadpool_postgres::GenericClient;
use tokio_postgres::Row;

use crate::domain::envelope::{BookState, CloseReason, Terms};
use crate::domain::grab::{Grant, HeldShare};
use crate::domain::id::{EnvelopeId, PersonId, UnixMs};
use crate::domain::money::Currency;
use crate::domain::posting::PostingKind;
use crate::ledger::{EnvelopeRow, LedgerError, PAGE_ROWS_MAX};

use super::sql::{self, Fault, broken};

/// A page's rows as PostgreSQL wants them: at most [`PAGE_ROWS_MAX`].
pub(super) fn page(limit: usize) -> i64 {
    i64::try_from(limit.min(PAGE_ROWS_MAX)).expect("a page is small")
}

pub(super) fn envelope_id(row: &Row, column: usize) -> Result<EnvelopeId, Fault> {
    let bytes: &[u8] = row.try_get(column)?;
    let id = bytes.try_into().map_err(|_| broken("no envelope's id"))?;
    Ok(EnvelopeId::from_bytes(id))
}

pub(super) fn some_envelope_id(row: &Row, column: usize) -> Result<Option<EnvelopeId>, Fault> {
    let there: Option<&[u8]> = row.try_get(column)?;
    there.map(|_| envelope_id(row, column)).transpose()
}

pub(super) fn person(row: &Row, column: usize) -> Result<PersonId, Fault> {
    PersonId::parse(row.try_get(column)?).map_err(|_| broken("no person's id"))
}

pub(super) fn currency(row: &Row, column: usize) -> Result<Currency, Fault> {
    Currency::from_code(row.try_get(column)?).ok_or_else(|| broken("no currency code"))
}

pub(super) fn kind(row: &Row, column: usize) -> Result<PostingKind, Fault> {
    PostingKind::from_name(row.try_get(column)?).ok_or_else(|| broken("no kind of posting"))
}

pub(super) fn at(row: &Row, column: usize) -> Result<UnixMs, Fault> {
    Ok(UnixMs(row.try_get(column)?))
}

/// A count that is never negative, from an integer of 32 bits.
pub(super) fn count(row: &Row, column: usize) -> Result<u32, Fault> {
    let count: i32 = row.try_get(column)?;
    u32::try_from(count).map_err(|_| broken("a count is negative"))
}

/// The same from one of 64.
pub(super) fn long_count(row: &Row, column: usize) -> Result<u32, Fault> {
    let count: i64 = row.try_get(column)?;
    u32::try_from(count).map_err(|_| broken("a count is negative or too large"))
}

pub(super) fn hash(row: &Row, column: usize) -> Result<[u8; 32], Fault> {
    let bytes: &[u8] = row.try_get(column)?;
    bytes.try_into().map_err(|_| broken("no hash"))
}

pub(super) fn reason_name(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::Empty => "empty",
        CloseReason::Expired => "expired",
        CloseReason::Recalled => "recalled",
    }
}

fn state(row: &Row, column: usize) -> Result<BookState, Fault> {
    let reason: Option<&str> = row.try_get(column + 1)?;
    let reason = match reason {
        None => None,
        Some("empty") => Some(CloseReason::Empty),
        Some("expired") => Some(CloseReason::Expired),
        Some("recalled") => Some(CloseReason::Recalled),
        Some(_) => return Err(broken("no reason of a close")),
    };
    match (row.try_get(column)?, reason) {
        ("funding", None) => Ok(BookState::Funding),
        ("live", None) => Ok(BookState::Live),
        ("closing", Some(reason)) => Ok(BookState::Closing(reason)),
        ("closed", Some(reason)) => Ok(BookState::Closed(reason)),
        _ => Err(broken("no state of an envelope")),
    }
}

/// The columns of [`envelope`], in its order.
macro_rules! envelope_columns {
    () => {
        "n.row, n.id, n.terms, n.state, n.reason, n.frozen, n.settled_count, n.settled_minor, \
         n.declined_count, n.refunded_minor, n.made_good_minor, n.closed_at, \
         n.parked_count + n.dead_letter_count, \
         EXISTS (SELECT FROM gathered o WHERE o.envelope_row = n.row)"
    };
}
pub(super) use envelope_columns;

pub(super) fn envelope(row: &Row) -> Result<EnvelopeRow, Fault> {
    let terms = Terms::from_json(row.try_get(2)?).map_err(|error| broken(error.to_string()))?;
    Ok(EnvelopeRow {
        row: row.try_get(0)?,
        id: envelope_id(row, 1)?,
        terms: Arc::new(terms),
        state: state(row, 3)?,
        frozen: row.try_get(5)?,
        gathered: row.try_get(13)?,
        settled_count: count(row, 6)?,
        settled_minor: row.try_get(7)?,
        declined_count: count(row, 8)?,
        refunded_minor: row.try_get(9)?,
        made_good_minor: row.try_get(10)?,
        closed_at: row.try_get::<_, Option<i64>>(11)?.map(UnixMs),
        set_aside_count: count(row, 12)?,
    })
}

/// The columns of [`held`], in its order: of claim `c` and its grabber's account `g`.
macro_rules! claim_columns {
    () => {
        "g.owner, c.share, c.amount_minor, c.granted_at, c.declined"
    };
}
pub(super) use claim_columns;

pub(super) fn held(row: &Row) -> Result<HeldShare, Fault> {
    Ok(HeldShare {
        grabber: person(row, 0)?,
        grant: Grant {
            share: count(row, 1)?,
            amount_minor: row.try_get(2)?,
            at: at(row, 3)?,
        },
        declined: row.try_get(4)?,
    })
}

/// An envelope by its id.
pub(super) async fn find_envelope(
    db: &impl GenericClient,
    id: EnvelopeId,
) -> Result<Option<EnvelopeRow>, Fault> {
    let found = sql::row(
        db,
        concat!(
            "-- ledger.find_envelope\nSELECT ",
            envelope_columns!(),
            " FROM envelope n WHERE n.id = $1"
        ),
        &[&&id.to_bytes()[..]],
    )
    .await?;
    found.as_ref().map(envelope).transpose()
}

/// The same, and nobody else changes it before this transaction ends.
pub(super) async fn lock_envelope(
    db: &impl GenericClient,
    id: EnvelopeId,
) -> Result<EnvelopeRow, Fault> {
    let lock = concat!(
        "-- ledger.lock_envelope\nSELECT ",
        envelope_columns!(),
        " FROM envelope n WHERE n.id = $1 FOR NO KEY UPDATE"
    );
    locked_by(db, lock, id).await
}

/// The same, and nobody gathers it either. What it says of `gathered` is as it was before this call waited: who wants to
/// know reads it again.
pub(super) async fn hold_envelope(
    db: &impl GenericClient,
    id: EnvelopeId,
) -> Result<EnvelopeRow, Fault> {
    let lock = concat!(
        "-- ledger.hold_envelope\nSELECT ",
        envelope_columns!(),
        " FROM envelope n WHERE n.id = $1 FOR UPDATE"
    );
    locked_by(db, lock, id).await
}

async fn locked_by(
    db: &impl GenericClient,
    lock: &str,
    id: EnvelopeId,
) -> Result<EnvelopeRow, Fault> {
    match sql::row(db, lock, &[&&id.to_bytes()[..]]).await? {
        Some(row) => envelope(&row),
        None => Err(LedgerError::NotFound.into()),
    }
}

/// An envelope that must be there.
pub(super) async fn known_envelope(
    db: &impl GenericClient,
    id: EnvelopeId,
) -> Result<EnvelopeRow, Fault> {
    let found = find_envelope(db, id).await?;
    Ok(found.ok_or(LedgerError::NotFound)?)
}

/// A count, where there is one.
pub(super) fn int_or_none(row: &Row, column: usize) -> Result<Option<u32>, Fault> {
    let there: Option<i32> = row.try_get(column)?;
    there.map(|_| count(row, column)).transpose()
}
