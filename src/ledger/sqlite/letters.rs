//! Dead letters, and what operators do about them.
//!
//! *Shape*
//!
//! | deed | of an open letter |
//! |---|---|
//! | replay | its record is settled like any: paid, or set aside again |
//! | correct | the same with the seed's amount, where only the amount is wrong; what can't be paid then changes nothing |
//! | dismiss | done with, where seed or terms contradict it |
//!
//! *Ordering.* A letter and the count in its envelope's row move together. The act is recorded with them.
//!
//! *If it crashes here.* All of a deed stands or nothing.
//!
//! *Not here.* How a record becomes a letter: `set_aside`. Whether the hot store has granted it: the
//! caller asks.

use rusqlite::{Connection, OptionalExtension, Row};

use crate::domain::id::{EnvelopeId, TenantId, UnixMs};
use crate::domain::money::Currency;
use crate::ledger::{
    AdminAct, DISMISSED, DeadLetterRow, EnvelopeRow, LedgerError, LetterDeed, MakeGood, SetAside,
};

use super::operators;
use super::rows::{Sql, at, find_envelope, page};
use super::set_aside::{count, record};
use super::settle::Batch;
use super::writer::Books;

const DEAD_LETTER: &str = "d.envelope, d.share, d.grabber, d.amount_minor, d.declined, \
     d.granted_at, d.row, n.tenant, n.currency, d.reason, d.tries, d.created_at, \
     d.settled_at FROM dead_letter d LEFT JOIN envelope n ON n.id = d.envelope";

fn dead_letter_row(row: &Row<'_>) -> rusqlite::Result<DeadLetterRow> {
    let tenant = row.get_ref(7)?.as_str_or_null()?;
    let currency = row.get_ref(8)?.as_str_or_null()?;
    Ok(DeadLetterRow {
        row: row.get(6)?,
        tenant: tenant.and_then(|tenant| TenantId::parse(tenant).ok()),
        currency: currency.and_then(Currency::from_code),
        record: record(row)?,
        reason: row.get(9)?,
        tries: row.get(10)?,
        created_at: at(row, 11)?,
        settled_at: row.get::<_, Option<i64>>(12)?.map(UnixMs),
    })
}

/// Open dead letters, the oldest first. They are few: an alarm rings at the first.
pub(super) fn dead_letters(
    db: &Connection,
    tenant: Option<&TenantId>,
    after: i64,
    limit: usize,
) -> Result<Vec<DeadLetterRow>, LedgerError> {
    db.prepare_cached(&format!(
        "-- ledger.dead_letters
         SELECT {DEAD_LETTER}
         WHERE d.settled_at IS NULL AND d.row > ?1 AND (?2 IS NULL OR n.tenant = ?2)
         ORDER BY d.row LIMIT ?3"
    ))
    .and_then(|mut find| {
        find.query_map(
            (after, tenant.map(TenantId::as_str), page(limit)),
            dead_letter_row,
        )?
        .collect()
    })
    .sql()
}

/// One, open or settled.
pub(super) fn find_letter(db: &Connection, row: i64) -> Result<Option<DeadLetterRow>, LedgerError> {
    db.prepare_cached(&format!(
        "-- ledger.find_letter\nSELECT {DEAD_LETTER} WHERE d.row = ?1"
    ))
    .and_then(|mut find| find.query_row([row], dead_letter_row).optional())
    .sql()
}

fn known_letter(db: &Connection, row: i64) -> Result<DeadLetterRow, LedgerError> {
    find_letter(db, row)?.ok_or(LedgerError::NotFound)
}

/// What stands in the way of an envelope's close.
pub(super) fn of_envelope(
    db: &Connection,
    id: EnvelopeId,
    after: i64,
    limit: usize,
) -> Result<SetAside, LedgerError> {
    let parked_count: Option<u32> = db
        .prepare_cached(
            "-- ledger.parked_of_envelope\nSELECT parked_count FROM envelope WHERE id = ?1",
        )
        .and_then(|mut find| find.query_row([id.to_bytes()], |row| row.get(0)).optional())
        .sql()?;
    let letters = db
        .prepare_cached(&format!(
            "-- ledger.letters_of_envelope
             SELECT {DEAD_LETTER}
             WHERE d.envelope = ?1 AND d.envelope_row IS NOT NULL AND d.settled_at IS NULL
                 AND d.row > ?2
             ORDER BY d.row LIMIT ?3"
        ))
        .and_then(|mut find| {
            find.query_map((id.to_bytes(), after, page(limit)), dead_letter_row)?
                .collect()
        })
        .sql()?;
    Ok(SetAside {
        parked_count: parked_count.unwrap_or(0),
        letters,
    })
}

/// Does something about a letter. Answers it as it stands.
pub(super) fn act_on(
    books: &Books<'_>,
    cap: &MakeGood,
    (row, deed): (i64, LetterDeed),
    amount_minor: Option<i64>,
    act: &AdminAct,
) -> Result<DeadLetterRow, LedgerError> {
    let letter = known_letter(books.db, row)?;
    if letter.settled_at.is_none() {
        let envelope = find_envelope(books.db, letter.record.envelope)?;
        if envelope.as_ref().is_some_and(|envelope| envelope.frozen) {
            return Err(LedgerError::Frozen);
        }
        match deed {
            LetterDeed::Dismiss => dismiss(books, &letter, envelope, amount_minor)?,
            LetterDeed::Replay | LetterDeed::Correct => {
                let tried = (&letter, deed);
                try_again(books, cap, tried, envelope, amount_minor)?;
            }
        }
    }
    let letter = known_letter(books.db, row)?;
    let answer = letter.clone().answer();
    let result = match deed {
        LetterDeed::Dismiss if !letter.is_dismissed() => return Ok(letter),
        LetterDeed::Dismiss => "done".to_owned(),
        LetterDeed::Replay | LetterDeed::Correct => {
            answer.map_or("done".to_owned(), |letter| letter.reason)
        }
    };
    let act = AdminAct {
        result,
        ..act.clone()
    };
    operators::record_act(books, &act)?;
    Ok(letter)
}

/// Decides an open letter anew, and marks it if nothing is owed by it any more.
fn try_again(
    books: &Books<'_>,
    cap: &MakeGood,
    (letter, deed): (&DeadLetterRow, LetterDeed),
    envelope: Option<EnvelopeRow>,
    amount_minor: Option<i64>,
) -> Result<(), LedgerError> {
    let terms = envelope.as_ref().map(|envelope| &*envelope.terms);
    let (record, aside) = letter.tried(deed, terms, amount_minor);
    let mut batch = Batch::begin(books, cap)?;
    let verdict = batch.decide(&record, aside)?;
    batch.post()?;
    match letter.outcome(&record, verdict, envelope.as_ref())? {
        Some(reason) => settle_letter(books, letter, reason),
        None => Ok(()),
    }
}

/// Lets go of an open letter, if an operator may.
fn dismiss(
    books: &Books<'_>,
    letter: &DeadLetterRow,
    envelope: Option<EnvelopeRow>,
    amount_minor: Option<i64>,
) -> Result<(), LedgerError> {
    match envelope {
        Some(envelope) if letter.may_be_dismissed(&envelope, amount_minor) => {
            settle_letter(books, letter, Some(DISMISSED))
        }
        _ => Ok(()),
    }
}

/// Marks a letter as done, and takes it off its envelope's count; one that is done stays as it is.
fn settle_letter(
    books: &Books<'_>,
    letter: &DeadLetterRow,
    reason: Option<&str>,
) -> Result<(), LedgerError> {
    let envelope_row: Option<Option<i64>> = books
        .db
        .prepare_cached(
            "-- ledger.settle_letter
             UPDATE dead_letter SET settled_at = ?2, reason = coalesce(?3, reason)
             WHERE row = ?1 AND settled_at IS NULL RETURNING envelope_row",
        )
        .and_then(|mut update| {
            update
                .query_row((letter.row, books.now.0, reason), |row| row.get(0))
                .optional()
        })
        .sql()?;
    match envelope_row.flatten() {
        Some(row) => count(books.db, "dead_letter", row, -1),
        None => Ok(()),
    }
}
