//! What settle can't pay now: parked records of frozen envelopes, and dead letters.
//!
//! *Bounds.* A record is set aside once, however often it comes: the unique key counts its tries. One that
//! comes again after an operator dismissed it is a letter again, from its first try on: somebody writes it
//! once more, or grants it by now. When its envelope is closed nothing moves any more.
//!
//! *Ordering.* An envelope with an open dead letter or a parked record can't close: both counts
//! stand in its row.
//!
//! *If it crashes here.* A record is taken out of here in the transaction that settles it, whether an
//! operator replays it or the outbox brings it again.
//!
//! *Not here.* What operators do about letters: `letters`.

use rusqlite::{Connection, OptionalExtension, Row};

use crate::domain::grab::{Grant, OutboxRecord};
use crate::domain::id::{EnvelopeId, UnixMs};
use crate::ledger::{
    DISMISSED, LedgerError, MakeGood, Parked, SETTLE_BATCH_MAX, SettleItem, Settled,
};

use super::rows::{Sql, at, envelope_id, page, person};
use super::settle::settle;
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
    let tries: Option<u32> = db
        .prepare_cached(
            "-- ledger.dead_letter
             INSERT INTO dead_letter
                 (envelope, envelope_row, share, grabber, amount_minor, declined, granted_at,
                  reason, tries, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 1, ?9)
             ON CONFLICT (envelope, share, grabber, amount_minor, declined)
             DO UPDATE SET tries = iif(settled_at IS NULL, tries + 1, 1), reason = excluded.reason,
                 created_at = iif(settled_at IS NULL, created_at, excluded.created_at),
                 envelope_row = iif(settled_at IS NULL, envelope_row, excluded.envelope_row),
                 settled_at = NULL
             WHERE settled_at IS NULL OR excluded.envelope_row IS NOT NULL
             RETURNING tries",
        )
        .and_then(|mut insert| {
            insert
                .query_row(
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
                .optional()
        })
        .sql()?;
    match (envelope_row, tries) {
        // It is open since this try.
        (Some(row), Some(1)) => count(db, "dead_letter", row, 1),
        _ => Ok(()),
    }
}

/// Whether an operator has dismissed a record.
pub(super) fn is_dismissed(db: &Connection, record: &OutboxRecord) -> Result<bool, LedgerError> {
    db.prepare_cached(
        "-- ledger.dismissed_before
         SELECT count(*) FROM dead_letter
         WHERE envelope = ?1 AND share = ?2 AND grabber = ?3 AND amount_minor = ?4 AND declined = ?5
             AND settled_at IS NOT NULL AND reason = ?6",
    )
    .and_then(|mut find| {
        find.query_row(
            (
                record.envelope.to_bytes(),
                record.grant.share,
                record.grabber.as_str(),
                record.grant.amount_minor,
                record.declined,
                DISMISSED,
            ),
            |row| row.get(0),
        )
    })
    .map(|found: i64| found > 0)
    .sql()
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
pub(super) fn count(
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

/// Envelopes of which something is parked that may be posted.
pub(super) fn parked(
    db: &Connection,
    after_row: i64,
    limit: usize,
) -> Result<Vec<(i64, EnvelopeId)>, LedgerError> {
    db.prepare_cached(
        "-- ledger.parked
         SELECT row, id FROM envelope WHERE parked_count > 0 AND frozen = 0 AND row > ?1
         ORDER BY row LIMIT ?2",
    )
    .and_then(|mut find| {
        find.query_map((after_row, page(limit)), |row| {
            Ok((row.get(0)?, envelope_id(row, 1)?))
        })?
        .collect()
    })
    .sql()
}

/// What is parked of one of them.
pub(super) fn parked_of(
    db: &Connection,
    envelope_row: i64,
    (after, limit): (i64, usize),
) -> Result<Vec<i64>, LedgerError> {
    db.prepare_cached(
        "-- ledger.parked_of
         SELECT row FROM parked WHERE envelope_row = ?1 AND row > ?2 ORDER BY row LIMIT ?3",
    )
    .and_then(|mut find| {
        find.query_map((envelope_row, after, batch(limit)), |row| row.get(0))?
            .collect()
    })
    .sql()
}

/// Posts what was parked of an envelope that is no longer frozen, or sets it aside.
pub(super) fn settle_parked(
    books: &Books<'_>,
    cap: &MakeGood,
    parked: Parked,
    aside: Option<&'static str>,
) -> Result<Vec<Settled>, LedgerError> {
    let found: Vec<(i64, OutboxRecord)> = books
        .db
        .prepare_cached(
            "-- ledger.unparked
             SELECT n.id, p.share, p.grabber, p.amount_minor, p.declined, p.granted_at, p.row
             FROM parked p JOIN envelope n ON n.row = p.envelope_row
             WHERE p.envelope_row = ?1 AND p.row BETWEEN ?2 AND ?3 AND n.frozen = 0
             ORDER BY p.row LIMIT ?4",
        )
        .and_then(|mut find| {
            let (first, last) = (parked.first, parked.last);
            let limit = batch(SETTLE_BATCH_MAX);
            find.query_map((parked.envelope_row, first, last, limit), |row| {
                Ok((row.get(6)?, record(row)?))
            })?
            .collect()
        })
        .sql()?;
    let (rows, records): (Vec<i64>, Vec<OutboxRecord>) = found.into_iter().unzip();
    let item = |record| match aside {
        None => SettleItem::Pay(record),
        Some(reason) => SettleItem::SetAside(record, reason),
    };
    let items: Vec<SettleItem> = records.into_iter().map(item).collect();
    let verdicts = settle(books, cap, &items)?;
    let mut deleted = 0;
    for (row, verdict) in rows.iter().zip(&verdicts) {
        if *verdict == Settled::Parked {
            continue;
        }
        deleted += books
            .db
            .prepare_cached("-- ledger.unpark\nDELETE FROM parked WHERE row = ?1")
            .and_then(|mut delete| delete.execute([row]))
            .sql()?;
    }
    let deleted = i64::try_from(deleted).unwrap_or(0);
    count(books.db, "parked", parked.envelope_row, -deleted)?;
    Ok(verdicts)
}

/// So many records as one call may post.
fn batch(limit: usize) -> i64 {
    i64::try_from(limit.min(SETTLE_BATCH_MAX)).expect("a batch is small")
}

/// Columns 0…5: envelope, share, grabber, amount, declined, granted at.
pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<OutboxRecord> {
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
