//! What operators do: freeze and unfreeze, begin anew after a restore, and the record of every act.

use deadpool_postgres::{GenericClient, Transaction};
use tokio_postgres::Row;

use crate::domain::envelope::BookState;
use crate::domain::id::{EnvelopeId, Epoch, Partition, UnixMs};
use crate::ledger::{AdminAct, BegunAnew, EnvelopePosting, LedgerError};

use super::rows::{at, count, envelope_id, hold_envelope, kind, page, person};
use super::sql::{self, Fault};
use super::{Desk, leaves, partitions};

pub(super) async fn record_act(
    db: &impl GenericClient,
    now: UnixMs,
    act: &AdminAct,
) -> Result<(), Fault> {
    let envelope = act.envelope.map(|id| id.to_bytes().to_vec());
    sql::run(
        db,
        "-- ledger.record_act
         INSERT INTO admin_act (act, envelope, operator, reason, at, result)
         VALUES ($1, $2, $3, $4, $5, $6)",
        &[
            &act.act,
            &envelope,
            &act.operator.as_str(),
            &act.reason,
            &now.0,
            &act.result,
        ],
    )
    .await?;
    Ok(())
}

/// Begins anew after a restore: epochs, leaves, the act. Locks in their order: partitions, tenants.
pub(super) async fn restored(
    tx: &Transaction<'_>,
    desk: &Desk,
    past: &[(Partition, Epoch)],
    act: &AdminAct,
) -> Result<BegunAnew, Fault> {
    let partitions = partitions::leave_behind(tx, past).await?;
    let first_leaves = leaves::begin_anew(tx, desk).await?;
    record_act(tx, desk.now(), act).await?;
    Ok(BegunAnew {
        first_leaves,
        partitions,
    })
}

/// Sets the mark, or takes it off. Answers whether it was so before.
pub(super) async fn mark_frozen(
    tx: &Transaction<'_>,
    now: UnixMs,
    id: EnvelopeId,
    frozen: bool,
    act: &AdminAct,
) -> Result<bool, Fault> {
    let envelope = hold_envelope(tx, id).await?;
    if let BookState::Closed(reason) = envelope.state {
        return Err(LedgerError::AlreadyOver(reason).into());
    }
    if envelope.frozen != frozen {
        sql::run(
            tx,
            "-- ledger.mark_frozen\nUPDATE envelope SET frozen = $2 WHERE row = $1",
            &[&envelope.row, &frozen],
        )
        .await?;
    }
    record_act(tx, now, act).await?;
    Ok(envelope.frozen == frozen)
}

/// Frozen envelopes above a row.
pub(super) async fn frozen(
    db: &impl GenericClient,
    after_row: i64,
    limit: usize,
) -> Result<Vec<(i64, EnvelopeId)>, Fault> {
    let found = sql::rows(
        db,
        "-- ledger.frozen
         SELECT row, id FROM envelope WHERE frozen AND row > $1 ORDER BY row LIMIT $2",
        &[&after_row, &page(limit)],
    )
    .await?;
    let pair = |row: &Row| Ok((row.try_get(0)?, envelope_id(row, 1)?));
    found.iter().map(pair).collect()
}

const ACTS_ON_ENVELOPE: &str = "-- ledger.acts_on_envelope
    SELECT act, operator, reason, at, result FROM admin_act
    WHERE envelope = $1 ORDER BY row LIMIT $2";

/// Reads the whole record: no RPC asks for it.
const ACTS_ON_NONE: &str = "-- ledger.acts_on_none
    SELECT act, operator, reason, at, result FROM admin_act
    WHERE envelope IS NOT DISTINCT FROM $1 ORDER BY row LIMIT $2";

pub(super) async fn acts(
    db: &impl GenericClient,
    id: Option<EnvelopeId>,
    limit: usize,
) -> Result<Vec<AdminAct>, Fault> {
    let sql = id.map_or(ACTS_ON_NONE, |_| ACTS_ON_ENVELOPE);
    let bytes = id.map(|id| id.to_bytes().to_vec());
    let act = |row: &Row| {
        Ok(AdminAct {
            act: row.try_get(0)?,
            envelope: id,
            operator: person(row, 1)?,
            reason: row.try_get(2)?,
            at: at(row, 3)?,
            result: row.try_get(4)?,
        })
    };
    let found = sql::rows(db, sql, &[&bytes, &page(limit)]).await?;
    found.iter().map(act).collect()
}

/// Postings that moved the escrow, the oldest first.
pub(super) async fn postings(
    db: &impl GenericClient,
    id: EnvelopeId,
    limit: usize,
) -> Result<Vec<EnvelopePosting>, Fault> {
    let found = sql::rows(
        db,
        "-- ledger.postings
         SELECT p.row, p.kind, e.amount_minor, p.share_count, p.posted_at
         FROM envelope n JOIN entry e ON e.envelope_row = n.row
             JOIN posting p ON p.row = e.posting_row
         WHERE n.id = $1
         UNION ALL
         SELECT p.row, p.kind, CASE WHEN m.back THEN m.amount_minor ELSE -m.amount_minor END,
             p.share_count, p.posted_at
         FROM envelope n JOIN made_good m ON m.envelope_row = n.row
             JOIN posting p ON p.row = m.posting_row
         WHERE n.id = $1
         ORDER BY 1 LIMIT $2",
        &[&&id.to_bytes()[..], &page(limit)],
    )
    .await?;
    let posting = |row: &Row| {
        Ok(EnvelopePosting {
            posting: row.try_get(0)?,
            kind: kind(row, 1)?,
            amount_minor: row.try_get(2)?,
            shares: count(row, 3)?,
            posted_at: at(row, 4)?,
        })
    };
    found.iter().map(posting).collect()
}
