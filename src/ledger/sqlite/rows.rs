//! Between rows and the domain: decoding, naming states, mapping SQLite's errors by their codes.

use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row};

use crate::domain::envelope::{BookState, CloseReason, Terms};
use crate::domain::grab::{Grant, HeldShare};
use crate::domain::id::{EnvelopeId, PersonId, UnixMs};
use crate::domain::money::Currency;
use crate::domain::posting::PostingKind;
use crate::ledger::{EnvelopeRow, LedgerError, PAGE_ROWS_MAX};

/// What the caller can do about an error of SQLite. Refusals are decided by reading before
/// anything is written, so a constraint that fires is our bug.
pub(super) fn from_sqlite(error: &rusqlite::Error) -> LedgerError {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted,
        ) => LedgerError::Unavailable(error.to_string()),
        _ => LedgerError::Broken(error.to_string()),
    }
}

/// `.sql()?` where a statement's error becomes the room's.
pub(super) trait Sql<T> {
    fn sql(self) -> Result<T, LedgerError>;
}

impl<T> Sql<T> for rusqlite::Result<T> {
    fn sql(self) -> Result<T, LedgerError> {
        self.map_err(|error| from_sqlite(&error))
    }
}

/// A page's rows as SQLite wants them: at most [`PAGE_ROWS_MAX`].
pub(super) fn page(limit: usize) -> i64 {
    i64::try_from(limit.min(PAGE_ROWS_MAX)).expect("a page is small")
}

/// A column that does not hold what this release writes.
pub(super) fn strange(column: usize, what: &'static str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, what.into())
}

pub(super) fn envelope_id(row: &Row<'_>, column: usize) -> rusqlite::Result<EnvelopeId> {
    row.get::<_, [u8; 16]>(column).map(EnvelopeId::from_bytes)
}

pub(super) fn person(row: &Row<'_>, column: usize) -> rusqlite::Result<PersonId> {
    PersonId::parse(row.get_ref(column)?.as_str()?).map_err(|_| strange(column, "no person's id"))
}

pub(super) fn currency(row: &Row<'_>, column: usize) -> rusqlite::Result<Currency> {
    Currency::from_code(row.get_ref(column)?.as_str()?)
        .ok_or_else(|| strange(column, "no currency code"))
}

pub(super) fn kind(row: &Row<'_>, column: usize) -> rusqlite::Result<PostingKind> {
    PostingKind::from_name(row.get_ref(column)?.as_str()?)
        .ok_or_else(|| strange(column, "no kind of posting"))
}

pub(super) fn at(row: &Row<'_>, column: usize) -> rusqlite::Result<UnixMs> {
    row.get(column).map(UnixMs)
}

pub(super) fn reason_name(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::Empty => "empty",
        CloseReason::Expired => "expired",
        CloseReason::Recalled => "recalled",
    }
}

pub(super) fn state(row: &Row<'_>, column: usize) -> rusqlite::Result<BookState> {
    let reason = match row.get_ref(column + 1)?.as_str_or_null()? {
        None => None,
        Some("empty") => Some(CloseReason::Empty),
        Some("expired") => Some(CloseReason::Expired),
        Some("recalled") => Some(CloseReason::Recalled),
        Some(_) => return Err(strange(column + 1, "no reason")),
    };
    match (row.get_ref(column)?.as_str()?, reason) {
        ("funding", None) => Ok(BookState::Funding),
        ("live", None) => Ok(BookState::Live),
        ("closing", Some(reason)) => Ok(BookState::Closing(reason)),
        ("closed", Some(reason)) => Ok(BookState::Closed(reason)),
        _ => Err(strange(column, "no state")),
    }
}

/// The columns of [`envelope`], in its order.
pub(super) const ENVELOPE_COLUMNS: &str = "n.row, n.id, n.terms, n.state, n.reason, n.frozen, \
     n.settled_count, n.settled_minor, n.declined_count, n.refunded_minor, n.made_good_minor, \
     n.closed_at, n.parked_count + n.dead_letter_count, n.gathered";

pub(super) fn envelope(row: &Row<'_>) -> rusqlite::Result<EnvelopeRow> {
    let terms = Terms::from_json(row.get_ref(2)?.as_str()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(2, Type::Text, error.into()))?;
    Ok(EnvelopeRow {
        row: row.get(0)?,
        id: envelope_id(row, 1)?,
        terms: Arc::new(terms),
        state: state(row, 3)?,
        frozen: row.get(5)?,
        gathered: row.get(13)?,
        settled_count: row.get(6)?,
        settled_minor: row.get(7)?,
        declined_count: row.get(8)?,
        refunded_minor: row.get(9)?,
        made_good_minor: row.get(10)?,
        closed_at: row.get::<_, Option<i64>>(11)?.map(UnixMs),
        set_aside_count: row.get(12)?,
    })
}

/// The columns of [`held`], in its order.
pub(super) const CLAIM_COLUMNS: &str =
    "c.grabber, c.share, c.amount_minor, c.granted_at, c.declined";

pub(super) fn held(row: &Row<'_>) -> rusqlite::Result<HeldShare> {
    Ok(HeldShare {
        grabber: person(row, 0)?,
        grant: Grant {
            share: row.get(1)?,
            amount_minor: row.get(2)?,
            at: at(row, 3)?,
        },
        declined: row.get(4)?,
    })
}

/// An envelope by its id.
pub(super) fn find_envelope(
    db: &Connection,
    id: EnvelopeId,
) -> Result<Option<EnvelopeRow>, LedgerError> {
    db.prepare_cached(&format!(
        "-- ledger.find_envelope\nSELECT {ENVELOPE_COLUMNS} FROM envelope n WHERE n.id = ?1"
    ))
    .and_then(|mut find| find.query_row([id.to_bytes()], envelope).optional())
    .sql()
}

/// An envelope that must be there.
pub(super) fn known_envelope(db: &Connection, id: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
    find_envelope(db, id)?.ok_or(LedgerError::NotFound)
}
