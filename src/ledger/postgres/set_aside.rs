//! What settle can't pay now: parked records of frozen envelopes, and dead letters.
//!
//! *Bounds.* A record is set aside once, however often it comes: the unique key counts its tries. One that
//! comes again after an operator dismissed it is a letter again, from its first try on: somebody writes it
//! once more, or grants it by now. When its envelope is closed nothing moves any more.
//!
//! *Ordering.* An envelope with an open dead letter or a parked record can't close: both counts
//! stand in its row, which whoever moves them has locked.
//!
//! *If it crashes here.* A record is taken out of here in the transaction that settles it, whether an
//! operator replays it or the outbox brings it again.
//!
//! *Not here.* What operators do about letters: `letters`.

use std::collections::BTreeMap;

use deadpool_postgres::{GenericClient, Transaction};
use hashbrown::HashSet;
use tokio_postgres::Row;

use crate::domain::grab::{Grant, OutboxRecord};
use crate::domain::id::{EnvelopeId, UnixMs};
use crate::ledger::{DISMISSED, Parked, SETTLE_BATCH_MAX, SettleItem, Settled};

use super::Desk;
use super::rows::{at, envelope_id, long_count, page, person};
use super::settle::{Aside, Care, settle};
use super::settle_post::{CountsOf, write_counts};
use super::sql::{self, Fault};

/// Records as the arrays that statements take.
#[derive(Default)]
struct RecordColumns {
    envelopes: Vec<Vec<u8>>,
    envelope_rows: Vec<Option<i64>>,
    shares: Vec<i64>,
    grabbers: Vec<String>,
    amounts: Vec<i64>,
    declined: Vec<bool>,
    granted: Vec<i64>,
    reasons: Vec<&'static str>,
    tries: Vec<i32>,
}

impl RecordColumns {
    fn push(
        &mut self,
        envelope_row: Option<i64>,
        record: &OutboxRecord,
        (reason, tries): (&'static str, i32),
    ) {
        self.envelopes.push(record.envelope.to_bytes().to_vec());
        self.envelope_rows.push(envelope_row);
        self.shares.push(i64::from(record.grant.share));
        self.grabbers.push(record.grabber.as_str().to_owned());
        self.amounts.push(record.grant.amount_minor);
        self.declined.push(record.declined);
        self.granted.push(record.grant.at.0);
        self.reasons.push(reason);
        self.tries.push(tries);
    }
}

/// What makes a record one: all but the instant.
pub(super) type Key = (Vec<u8>, u32, String, i64, bool);

pub(super) fn key(record: &OutboxRecord) -> Key {
    (
        record.envelope.to_bytes().to_vec(),
        record.grant.share,
        record.grabber.as_str().to_owned(),
        record.grant.amount_minor,
        record.declined,
    )
}

/// Writes what a batch sets aside. Answers what it moves in the counts of envelopes, which are for the
/// caller to write.
pub(super) async fn write(
    tx: &Transaction<'_>,
    now: UnixMs,
    asides: &[Aside<'_>],
) -> Result<CountsOf, Fault> {
    let mut counts = CountsOf::new();
    if asides.is_empty() {
        return Ok(counts);
    }
    park(tx, asides, &mut counts).await?;
    unblock(tx, asides, &mut counts).await?;
    set_letters_aside(tx, now, asides, &mut counts).await?;
    resolve_letters(tx, now, asides, &mut counts).await?;
    Ok(counts)
}

async fn park(
    tx: &Transaction<'_>,
    asides: &[Aside<'_>],
    counts: &mut CountsOf,
) -> Result<(), Fault> {
    let mut columns = RecordColumns::default();
    for aside in asides {
        if let Aside::Park(row, record) = aside {
            columns.push(Some(*row), record, ("", 1));
        }
    }
    if columns.shares.is_empty() {
        return Ok(());
    }
    let c = &columns;
    let parked = sql::rows(
        tx,
        "-- ledger.park
         INSERT INTO parked (envelope_row, share, grabber, amount_minor, declined, granted_at)
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::boolean[],
             $6::bigint[])
         ON CONFLICT DO NOTHING RETURNING envelope_row",
        &[
            &c.envelope_rows,
            &c.shares,
            &c.grabbers,
            &c.amounts,
            &c.declined,
            &c.granted,
        ],
    )
    .await?;
    for row in parked {
        counts.entry(row.try_get(0)?).or_default().parked += 1;
    }
    Ok(())
}

/// Records over the reserve's money block no close, whatever they did before: what was set aside of them
/// leaves the counts of their envelopes.
async fn unblock(
    tx: &Transaction<'_>,
    asides: &[Aside<'_>],
    counts: &mut CountsOf,
) -> Result<(), Fault> {
    let mut columns = RecordColumns::default();
    for aside in asides {
        if let Aside::Letter(None, record, reason) = aside {
            columns.push(None, record, (reason, 1));
        }
    }
    if columns.shares.is_empty() {
        return Ok(());
    }
    let c = &columns;
    let unblocked = sql::rows(
        tx,
        "-- ledger.unblock
         UPDATE dead_letter d SET envelope_row = NULL
         FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::bigint[], $5::boolean[])
                 u (envelope, share, grabber, amount_minor, declined)
             JOIN dead_letter o ON o.envelope = u.envelope AND o.share = u.share
                 AND o.grabber = u.grabber AND o.amount_minor = u.amount_minor
                 AND o.declined = u.declined AND o.settled_at IS NULL
             JOIN envelope n ON n.row = o.envelope_row AND n.state <> 'closed'
         WHERE d.row = o.row
         RETURNING o.envelope_row",
        &[
            &c.envelopes,
            &c.shares,
            &c.grabbers,
            &c.amounts,
            &c.declined,
        ],
    )
    .await?;
    for row in unblocked {
        counts.entry(row.try_get(0)?).or_default().letters -= 1;
    }
    Ok(())
}

const LETTERS: &str = "-- ledger.dead_letters_of_a_batch
    INSERT INTO dead_letter AS d
        (envelope, envelope_row, share, grabber, amount_minor, declined, granted_at, reason, tries,
         created_at)
    SELECT u.*, $10 FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[],
        $6::boolean[], $7::bigint[], $8::text[], $9::integer[]) u
    ON CONFLICT ON CONSTRAINT dead_letter_is_one
    DO UPDATE SET
        tries = CASE WHEN d.settled_at IS NULL THEN d.tries ELSE 0 END + excluded.tries,
        reason = excluded.reason,
        created_at = CASE WHEN d.settled_at IS NULL THEN d.created_at ELSE excluded.created_at END,
        envelope_row = CASE WHEN d.settled_at IS NULL THEN d.envelope_row ELSE excluded.envelope_row END,
        settled_at = NULL
    WHERE d.settled_at IS NULL OR excluded.envelope_row IS NOT NULL
    RETURNING d.envelope, d.share, d.grabber, d.amount_minor, d.declined, d.tries";

/// Sets records aside, or counts more tries.
async fn set_letters_aside(
    tx: &Transaction<'_>,
    now: UnixMs,
    asides: &[Aside<'_>],
    counts: &mut CountsOf,
) -> Result<(), Fault> {
    // A statement changes a row once: the same record twice in a batch is two tries of one letter.
    let mut letters: Vec<(Option<i64>, &OutboxRecord, &'static str, i32)> = Vec::new();
    let mut at_of = BTreeMap::<Key, usize>::new();
    for aside in asides {
        if let Aside::Letter(row, record, reason) = aside {
            let at = *at_of.entry(key(record)).or_insert(letters.len());
            if at == letters.len() {
                letters.push((*row, record, reason, 0));
            }
            (letters[at].0, letters[at].2) = (*row, reason);
            letters[at].3 += 1;
        }
    }
    if letters.is_empty() {
        return Ok(());
    }
    let mut columns = RecordColumns::default();
    for (row, record, reason, tries) in &letters {
        columns.push(*row, record, (reason, *tries));
    }
    let c = &columns;
    let values: sql::Values<'_> = &[
        &c.envelopes,
        &c.envelope_rows,
        &c.shares,
        &c.grabbers,
        &c.amounts,
        &c.declined,
        &c.granted,
        &c.reasons,
        &c.tries,
        &now.0,
    ];
    for row in sql::rows(tx, LETTERS, values).await? {
        let made = letter_key(&row)?;
        let tries: i32 = row.try_get(5)?;
        // Only one that is open since this batch counts: an older one was counted.
        if let Some((Some(envelope_row), _, _, asked)) = at_of.get(&made).map(|at| letters[*at])
            && tries == asked
        {
            counts.entry(envelope_row).or_default().letters += 1;
        }
    }
    Ok(())
}

/// Marks the open letters of records that stand in the books.
async fn resolve_letters(
    tx: &Transaction<'_>,
    now: UnixMs,
    asides: &[Aside<'_>],
    counts: &mut CountsOf,
) -> Result<(), Fault> {
    let mut columns = RecordColumns::default();
    for aside in asides {
        if let Aside::Resolve(record) = aside {
            columns.push(None, record, ("", 1));
        }
    }
    if columns.shares.is_empty() {
        return Ok(());
    }
    let c = &columns;
    let resolved = sql::rows(
        tx,
        "-- ledger.resolve_letters
         UPDATE dead_letter d SET settled_at = $6
         FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::bigint[], $5::boolean[])
             u (envelope, share, grabber, amount_minor, declined)
         WHERE d.envelope = u.envelope AND d.share = u.share AND d.grabber = u.grabber
             AND d.amount_minor = u.amount_minor AND d.declined = u.declined
             AND d.settled_at IS NULL
         RETURNING d.envelope_row",
        &[
            &c.envelopes,
            &c.shares,
            &c.grabbers,
            &c.amounts,
            &c.declined,
            &now.0,
        ],
    )
    .await?;
    for row in resolved {
        if let Some(envelope_row) = row.try_get::<_, Option<i64>>(0)? {
            counts.entry(envelope_row).or_default().letters -= 1;
        }
    }
    Ok(())
}

/// Which of these records an operator has dismissed.
pub(super) async fn dismissed(
    tx: &Transaction<'_>,
    records: &[&OutboxRecord],
) -> Result<HashSet<Key>, Fault> {
    let mut columns = RecordColumns::default();
    for record in records {
        columns.push(None, record, (DISMISSED, 0));
    }
    let c = &columns;
    let found = sql::rows(
        tx,
        "-- ledger.dismissed_before
         SELECT d.envelope, d.share, d.grabber, d.amount_minor, d.declined
         FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::bigint[], $5::boolean[])
                 u (envelope, share, grabber, amount_minor, declined)
             JOIN dead_letter d USING (envelope, share, grabber, amount_minor, declined)
         WHERE d.settled_at IS NOT NULL AND d.reason = $6",
        &[
            &c.envelopes,
            &c.shares,
            &c.grabbers,
            &c.amounts,
            &c.declined,
            &DISMISSED,
        ],
    )
    .await?;
    found.iter().map(letter_key).collect()
}

/// Columns 0…4: envelope, share, grabber, amount, declined.
fn letter_key(row: &Row) -> Result<Key, Fault> {
    Ok((
        row.try_get(0)?,
        long_count(row, 1)?,
        row.try_get(2)?,
        row.try_get(3)?,
        row.try_get(4)?,
    ))
}

/// Envelopes of which something is parked that may be posted.
pub(super) async fn parked(
    db: &impl GenericClient,
    after_row: i64,
    limit: usize,
) -> Result<Vec<(i64, EnvelopeId)>, Fault> {
    let found = sql::rows(
        db,
        "-- ledger.parked
         SELECT row, id FROM envelope WHERE parked_count > 0 AND NOT frozen AND row > $1
         ORDER BY row LIMIT $2",
        &[&after_row, &page(limit)],
    )
    .await?;
    let row = |row: &Row| Ok((row.try_get(0)?, envelope_id(row, 1)?));
    found.iter().map(row).collect()
}

/// What is parked of one of them.
pub(super) async fn parked_of(
    db: &impl GenericClient,
    envelope_row: i64,
    (after, limit): (i64, usize),
) -> Result<Vec<i64>, Fault> {
    let found = sql::rows(
        db,
        "-- ledger.parked_of
         SELECT row FROM parked WHERE envelope_row = $1 AND row > $2 ORDER BY row LIMIT $3",
        &[&envelope_row, &after, &batch(limit)],
    )
    .await?;
    let rows = found.iter().map(|row| Ok(row.try_get(0)?));
    rows.collect()
}

/// Posts what was parked of an envelope that is no longer frozen, or sets it aside.
pub(super) async fn settle_parked(
    tx: &Transaction<'_>,
    (desk, care): (&Desk, &Care),
    (parked, aside): (Parked, Option<&'static str>),
) -> Result<Vec<Settled>, Fault> {
    let found = sql::rows(
        tx,
        "-- ledger.unparked
         SELECT n.id, p.share, p.grabber, p.amount_minor, p.declined, p.granted_at, p.row
         FROM parked p JOIN envelope n ON n.row = p.envelope_row
         WHERE p.envelope_row = $1 AND p.row BETWEEN $2 AND $3 AND NOT n.frozen
         ORDER BY p.row LIMIT $4",
        &[
            &parked.envelope_row,
            &parked.first,
            &parked.last,
            &batch(SETTLE_BATCH_MAX),
        ],
    )
    .await?;
    let (mut rows, mut items) = (Vec::new(), Vec::new());
    for row in found {
        rows.push(row.try_get::<_, i64>(6)?);
        let record = record(&row)?;
        items.push(match aside {
            None => SettleItem::Pay(record),
            Some(reason) => SettleItem::SetAside(record, reason),
        });
    }
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let all: Vec<&SettleItem> = items.iter().collect();
    let verdicts = settle(tx, desk, &all, care).await?;
    // One that was frozen again meanwhile stays parked.
    let done: Vec<i64> = rows
        .iter()
        .zip(&verdicts)
        .filter(|(_, verdict)| **verdict != Settled::Parked)
        .map(|(row, _)| *row)
        .collect();
    let deleted = sql::rows(
        tx,
        "-- ledger.unpark\nDELETE FROM parked WHERE row = ANY ($1) RETURNING envelope_row",
        &[&done],
    )
    .await?;
    let mut counts = CountsOf::new();
    for row in deleted {
        counts.entry(row.try_get(0)?).or_default().parked -= 1;
    }
    write_counts(tx, counts).await?;
    Ok(verdicts)
}

/// So many records as one call may post.
fn batch(limit: usize) -> i64 {
    i64::try_from(limit.min(SETTLE_BATCH_MAX)).expect("a batch is small")
}

/// Columns 0…5: envelope, share, grabber, amount, declined, granted at.
pub(super) fn record(row: &Row) -> Result<OutboxRecord, Fault> {
    Ok(OutboxRecord {
        envelope: envelope_id(row, 0)?,
        grabber: person(row, 2)?,
        grant: Grant {
            share: long_count(row, 1)?,
            amount_minor: row.try_get(3)?,
            at: at(row, 5)?,
        },
        declined: row.try_get(4)?,
    })
}
