//! What settle can't pay now: parked records of frozen envelopes, and dead letters.
//!
//! *Bounds.* A record is set aside once, however often it comes: the unique key counts its tries.
//!
//! *Ordering.* An envelope with an open dead letter or a parked record can't close: both counts
//! stand in its row.
//!
//! *If it crashes here.* A record is taken out of here in the transaction that settles it, whether an
//! operator replays it or the outbox brings it again.

use rusqlite::{Connection, OptionalExtension, Row};

use crate::domain::grab::{Grant, OutboxRecord};
use crate::domain::id::{TenantId, UnixMs};
use crate::domain::money::Currency;
use crate::ledger::{
    AdminAct, DISMISSED, DeadLetterRow, LedgerError, MakeGood, SETTLE_BATCH_MAX, SUPERSEDED,
    SettleItem, Settled,
};

use super::operators;
use super::rows::{Sql, at, envelope_id, find_envelope, page, person};
use super::settle::{Batch, settle};
use super::writer::Books;

/// Keeps a record for later.
pub(super) fn park(
    db: &Connection,
    envelope_row: i64,
    record: &OutboxRecord,
) -> Result<(), LedgerError> {
    let parked = db
        .prepare_cached(
            "-- ledger.park
             INSERT INTO parked (envelope_row, share, grabber, amount_minor, declined, granted_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
        )
        .and_then(|mut insert| {
            insert.execute((
                envelope_row,
                record.grant.share,
                record.grabber.as_str(),
                record.grant.amount_minor,
                record.declined,
                record.grant.at.0,
            ))
        })
        .sql()?;
    count(
        db,
        "parked",
        envelope_row,
        i64::try_from(parked).unwrap_or(0),
    )
}

/// Sets a record aside, or counts one more try. `envelope_row` is the envelope whose close it
/// blocks; none where it is unknown or closed.
pub(super) fn dead_letter(
    db: &Connection,
    now: UnixMs,
    envelope_row: Option<i64>,
    record: &OutboxRecord,
    reason: &str,
) -> Result<(), LedgerError> {
    let tries: u32 = db
        .prepare_cached(
            "-- ledger.dead_letter
             INSERT INTO dead_letter
                 (envelope, envelope_row, share, grabber, amount_minor, declined, granted_at,
                  reason, tries, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 1, ?9)
             ON CONFLICT (envelope, share, grabber, amount_minor, declined)
             DO UPDATE SET tries = tries + 1,
                 reason = iif(settled_at IS NULL, excluded.reason, reason)
             RETURNING tries",
        )
        .and_then(|mut insert| {
            insert.query_row(
                (
                    record.envelope.to_bytes(),
                    envelope_row,
                    record.grant.share,
                    record.grabber.as_str(),
                    record.grant.amount_minor,
                    record.declined,
                    record.grant.at.0,
                    reason,
                    now.0,
                ),
                |row| row.get(0),
            )
        })
        .sql()?;
    match envelope_row {
        Some(row) if tries == 1 => count(db, "dead_letter", row, 1),
        _ => Ok(()),
    }
}

/// A record over the reserve's money blocks no close, whatever it did before: its open letter leaves the
/// count of its envelope.
pub(super) fn unblock(
    db: &Connection,
    envelope_row: i64,
    record: &OutboxRecord,
) -> Result<(), LedgerError> {
    let unblocked = db
        .prepare_cached(
            "-- ledger.unblock
             UPDATE dead_letter SET envelope_row = NULL
             WHERE envelope = ?1 AND share = ?2 AND grabber = ?3 AND amount_minor = ?4
                 AND declined = ?5 AND settled_at IS NULL AND envelope_row = ?6
                 AND (SELECT state <> 'closed' FROM envelope WHERE row = ?6)",
        )
        .and_then(|mut update| {
            update.execute((
                record.envelope.to_bytes(),
                record.grant.share,
                record.grabber.as_str(),
                record.grant.amount_minor,
                record.declined,
                envelope_row,
            ))
        })
        .sql()?;
    count(
        db,
        "dead_letter",
        envelope_row,
        -i64::try_from(unblocked).unwrap_or(0),
    )
}

/// Moves a count of the envelope's row.
fn count(
    db: &Connection,
    what: &'static str,
    envelope_row: i64,
    by: i64,
) -> Result<(), LedgerError> {
    if by == 0 {
        return Ok(());
    }
    let sql = match what {
        "parked" => {
            "-- ledger.count_parked
             UPDATE envelope SET parked_count = parked_count + ?2 WHERE row = ?1"
        }
        _ => {
            "-- ledger.count_dead_letter
             UPDATE envelope SET dead_letter_count = dead_letter_count + ?2 WHERE row = ?1"
        }
    };
    db.prepare_cached(sql)
        .and_then(|mut update| update.execute((envelope_row, by)))
        .sql()?;
    Ok(())
}

/// Posts what was parked of envelopes that are no longer frozen.
pub(super) fn settle_parked(
    books: &Books<'_>,
    cap: &MakeGood,
    limit: usize,
) -> Result<usize, LedgerError> {
    let limit = i64::try_from(limit.min(SETTLE_BATCH_MAX)).expect("a batch is small");
    let parked: Vec<(i64, i64, OutboxRecord)> = books
        .db
        .prepare_cached(
            "-- ledger.unparked
             SELECT n.id, p.share, p.grabber, p.amount_minor, p.declined, p.granted_at,
                    p.row, p.envelope_row
             FROM envelope n JOIN parked p ON p.envelope_row = n.row
             WHERE n.parked_count > 0 AND n.frozen = 0
             ORDER BY p.row LIMIT ?1",
        )
        .and_then(|mut find| {
            find.query_map([limit], |row| Ok((row.get(6)?, row.get(7)?, record(row)?)))?
                .collect()
        })
        .sql()?;
    let items: Vec<SettleItem> = parked
        .iter()
        .map(|(_, _, record)| SettleItem::Pay(record.clone()))
        .collect();
    let verdicts = settle(books, cap, &items)?;
    for (row, envelope_row, _) in &parked {
        books
            .db
            .prepare_cached("-- ledger.unpark\nDELETE FROM parked WHERE row = ?1")
            .and_then(|mut delete| delete.execute([row]))
            .sql()?;
        count(books.db, "parked", *envelope_row, -1)?;
    }
    let paid = |verdict: &&Settled| matches!(verdict, Settled::Paid | Settled::MadeGood);
    Ok(verdicts.iter().filter(paid).count())
}

/// Columns 0…5: envelope, share, grabber, amount, declined, granted at.
fn record(row: &Row<'_>) -> rusqlite::Result<OutboxRecord> {
    Ok(OutboxRecord {
        envelope: envelope_id(row, 0)?,
        grabber: person(row, 2)?,
        grant: Grant {
            share: row.get(1)?,
            amount_minor: row.get(3)?,
            at: at(row, 5)?,
        },
        declined: row.get(4)?,
    })
}

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

/// Tries a dead letter again. `None`: it is paid now, or made good. A row with the reason `superseded`: share or
/// grabber were paid by another claim, so nothing is owed and the letter no longer stands in the
/// way of the close. A letter that is settled is not tried, and the act is recorded all the same.
pub(super) fn replay(
    books: &Books<'_>,
    cap: &MakeGood,
    (row, amount_minor): (i64, Option<i64>),
    act: &AdminAct,
) -> Result<Option<DeadLetterRow>, LedgerError> {
    let letter = find_letter(books.db, row)?.ok_or(LedgerError::NotFound)?;
    if letter.settled_at.is_none() {
        try_again(books, cap, &letter, amount_minor)?;
    }
    let answer = find_letter(books.db, row)?.and_then(DeadLetterRow::answer);
    let result = answer
        .as_ref()
        .map_or("done".to_owned(), |letter| letter.reason.clone());
    let act = AdminAct {
        result,
        ..act.clone()
    };
    operators::record_act(books, &act)?;
    Ok(answer)
}

/// Decides an open letter anew, and marks it if nothing is owed by it any more.
fn try_again(
    books: &Books<'_>,
    cap: &MakeGood,
    letter: &DeadLetterRow,
    amount_minor: Option<i64>,
) -> Result<(), LedgerError> {
    let envelope = find_envelope(books.db, letter.record.envelope)?;
    if envelope.as_ref().is_some_and(|envelope| envelope.frozen) {
        return Err(LedgerError::Frozen);
    }
    let aside = if amount_minor == Some(letter.record.grant.amount_minor) {
        envelope.and_then(|envelope| letter.refused_by(&envelope.terms))
    } else {
        Some("amount_is_not_the_seeds")
    };
    let mut batch = Batch::begin(books, cap)?;
    let verdict = batch.decide(&letter.record, aside)?;
    batch.post()?;
    match verdict {
        Settled::Paid | Settled::Duplicate | Settled::MadeGood => {
            settle_letter(books, letter, None)
        }
        Settled::Superseded => settle_letter(books, letter, Some(SUPERSEDED)),
        Settled::Parked | Settled::DeadLetter | Settled::Capped => Ok(()),
    }
}

/// Lets go of a letter by which nothing can ever be owed. Answers it as it stands.
pub(super) fn dismiss(
    books: &Books<'_>,
    row: i64,
    amount_minor: Option<i64>,
    act: &AdminAct,
) -> Result<DeadLetterRow, LedgerError> {
    let letter = find_letter(books.db, row)?.ok_or(LedgerError::NotFound)?;
    let envelope = find_envelope(books.db, letter.record.envelope)?;
    if letter.settled_at.is_none()
        && let Some(envelope) = envelope
    {
        if envelope.frozen {
            return Err(LedgerError::Frozen);
        }
        if letter.is_contradicted(&envelope.terms, amount_minor) {
            settle_letter(books, &letter, Some(DISMISSED))?;
        }
    }
    let letter = find_letter(books.db, row)?.ok_or(LedgerError::NotFound)?;
    if letter.is_dismissed() {
        operators::record_act(books, act)?;
    }
    Ok(letter)
}

/// Marks the open letter of a record that stands in the books, if there is one.
pub(super) fn resolve_letter(
    db: &Connection,
    now: UnixMs,
    record: &OutboxRecord,
) -> Result<(), LedgerError> {
    let resolved: Option<Option<i64>> = db
        .prepare_cached(
            "-- ledger.resolve_letter
             UPDATE dead_letter SET settled_at = ?6
             WHERE envelope = ?1 AND share = ?2 AND grabber = ?3 AND amount_minor = ?4
                 AND declined = ?5 AND settled_at IS NULL
             RETURNING envelope_row",
        )
        .and_then(|mut update| {
            update
                .query_row(
                    (
                        record.envelope.to_bytes(),
                        record.grant.share,
                        record.grabber.as_str(),
                        record.grant.amount_minor,
                        record.declined,
                        now.0,
                    ),
                    |row| row.get(0),
                )
                .optional()
        })
        .sql()?;
    match resolved.flatten() {
        Some(row) => count(db, "dead_letter", row, -1),
        None => Ok(()),
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
