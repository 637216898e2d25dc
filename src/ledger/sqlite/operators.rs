//! What operators do: freeze and unfreeze, begin anew after a restore, and the record of every act.

use rusqlite::{Connection, OptionalExtension};

use crate::domain::envelope::BookState;
use crate::domain::id::{EnvelopeId, Epoch, Partition};
use crate::ledger::{AdminAct, BegunAnew, EnvelopePosting, LedgerError};

use super::rows::{Sql, at, envelope_id, kind, known_envelope, page, person};
use super::writer::Books;
use super::{leaves, partitions};

pub(super) fn record_act(books: &Books<'_>, act: &AdminAct) -> Result<(), LedgerError> {
    books
        .db
        .prepare_cached(
            "-- ledger.record_act
             INSERT INTO admin_act (act, envelope, operator, reason, at, result)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .and_then(|mut insert| {
            insert.execute((
                &act.act,
                act.envelope.map(EnvelopeId::to_bytes),
                act.operator.as_str(),
                &act.reason,
                books.now.0,
                &act.result,
            ))
        })
        .sql()?;
    Ok(())
}

/// Begins anew after a restore: epochs, leaves, the act.
pub(super) fn restored(
    books: &mut Books<'_>,
    past: &[(Partition, Epoch)],
    act: &AdminAct,
) -> Result<BegunAnew, LedgerError> {
    let partitions = partitions::leave_behind(books, past)?;
    let first_leaves = leaves::begin_anew(books)?;
    record_act(books, act)?;
    Ok(BegunAnew {
        first_leaves,
        partitions,
    })
}

/// Sets the mark, or takes it off. Answers whether it was so before.
pub(super) fn mark_frozen(
    books: &Books<'_>,
    id: EnvelopeId,
    frozen: bool,
    act: &AdminAct,
) -> Result<bool, LedgerError> {
    let envelope = known_envelope(books.db, id)?;
    if let BookState::Closed(reason) = envelope.state {
        return Err(LedgerError::AlreadyOver(reason));
    }
    if envelope.frozen != frozen {
        books
            .db
            .prepare_cached("-- ledger.mark_frozen\nUPDATE envelope SET frozen = ?2 WHERE row = ?1")
            .and_then(|mut update| update.execute((envelope.row, frozen)))
            .sql()?;
    }
    record_act(books, act)?;
    Ok(envelope.frozen == frozen)
}

/// Frozen envelopes above a row.
pub(super) fn frozen(
    db: &Connection,
    after_row: i64,
    limit: usize,
) -> Result<Vec<(i64, EnvelopeId)>, LedgerError> {
    db.prepare_cached(
        "-- ledger.frozen
         SELECT row, id FROM envelope WHERE frozen = 1 AND row > ?1 ORDER BY row LIMIT ?2",
    )
    .and_then(|mut find| {
        find.query_map((after_row, page(limit)), |row| {
            Ok((row.get(0)?, envelope_id(row, 1)?))
        })?
        .collect()
    })
    .sql()
}

const ACTS_ON_ENVELOPE: &str = "-- ledger.acts_on_envelope
    SELECT act, operator, reason, at, result FROM admin_act
    WHERE envelope = ?1 ORDER BY row LIMIT ?2";

/// Reads the whole record: no RPC asks for it.
const ACTS_ON_NONE: &str = "-- ledger.acts_on_none
    SELECT act, operator, reason, at, result FROM admin_act
    WHERE envelope IS ?1 ORDER BY row LIMIT ?2";

pub(super) fn acts(
    db: &Connection,
    id: Option<EnvelopeId>,
    limit: usize,
) -> Result<Vec<AdminAct>, LedgerError> {
    let sql = id.map_or(ACTS_ON_NONE, |_| ACTS_ON_ENVELOPE);
    db.prepare_cached(sql)
        .and_then(|mut find| {
            find.query_map((id.map(EnvelopeId::to_bytes), page(limit)), |row| {
                Ok(AdminAct {
                    act: row.get(0)?,
                    envelope: id,
                    operator: person(row, 1)?,
                    reason: row.get(2)?,
                    at: at(row, 3)?,
                    result: row.get(4)?,
                })
            })?
            .collect()
        })
        .sql()
}

/// Postings that moved the escrow, the oldest first.
pub(super) fn postings(
    db: &Connection,
    id: EnvelopeId,
    limit: usize,
) -> Result<Vec<EnvelopePosting>, LedgerError> {
    let row: Option<i64> = db
        .prepare_cached("-- ledger.row_of\nSELECT row FROM envelope WHERE id = ?1")
        .and_then(|mut find| find.query_row([id.to_bytes()], |row| row.get(0)).optional())
        .sql()?;
    db.prepare_cached(
        "-- ledger.postings
         SELECT p.row, p.kind, e.amount_minor, p.share_count, p.posted_at
         FROM entry e JOIN posting p ON p.row = e.posting_row
         WHERE e.envelope_row = ?1
         UNION ALL
         SELECT p.row, p.kind, iif(m.back, m.amount_minor, -m.amount_minor), p.share_count, p.posted_at
         FROM made_good m JOIN posting p ON p.row = m.posting_row
         WHERE m.envelope_row = ?1
         ORDER BY 1 LIMIT ?2",
    )
    .and_then(|mut find| {
        find.query_map((row, page(limit)), |row| {
            Ok(EnvelopePosting {
                posting: row.get(0)?,
                kind: kind(row, 1)?,
                amount_minor: row.get(2)?,
                shares: row.get(3)?,
                posted_at: at(row, 4)?,
            })
        })?
        .collect()
    })
    .sql()
}
