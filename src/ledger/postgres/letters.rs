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

use deadpool_postgres::{GenericClient, Transaction};
use tokio_postgres::Row;

use crate::domain::id::{EnvelopeId, TenantId, UnixMs};
use crate::domain::money::Currency;
use crate::ledger::{
    AdminAct, DISMISSED, DeadLetterRow, EnvelopeRow, LedgerError, LetterDeed, SetAside, SettleItem,
};

use super::Desk;
use super::operators;
use super::rows::{at, count, find_envelope, lock_envelope, page};
use super::set_aside::record;
use super::settle::{Care, settle};
use super::settle_post::{CountsOf, write_counts};
use super::sql::{self, Fault};

macro_rules! dead_letter_columns {
    () => {
        "d.envelope, d.share, d.grabber, d.amount_minor, d.declined, d.granted_at, d.row, \
         n.tenant, n.currency, d.reason, d.tries, d.created_at, d.settled_at \
         FROM dead_letter d LEFT JOIN envelope n ON n.id = d.envelope"
    };
}

fn dead_letter_row(row: &Row) -> Result<DeadLetterRow, Fault> {
    let tenant: Option<&str> = row.try_get(7)?;
    let currency: Option<&str> = row.try_get(8)?;
    Ok(DeadLetterRow {
        row: row.try_get(6)?,
        tenant: tenant.and_then(|tenant| TenantId::parse(tenant).ok()),
        currency: currency.and_then(Currency::from_code),
        record: record(row)?,
        reason: row.try_get(9)?,
        tries: count(row, 10)?,
        created_at: at(row, 11)?,
        settled_at: row.try_get::<_, Option<i64>>(12)?.map(UnixMs),
    })
}

/// Open dead letters, the oldest first. They are few: an alarm rings at the first.
pub(super) async fn dead_letters(
    db: &impl GenericClient,
    tenant: Option<&TenantId>,
    after: i64,
    limit: usize,
) -> Result<Vec<DeadLetterRow>, Fault> {
    let found = sql::rows(
        db,
        concat!(
            "-- ledger.dead_letters\nSELECT ",
            dead_letter_columns!(),
            " WHERE d.settled_at IS NULL AND d.row > $1 AND ($2::text IS NULL OR n.tenant = $2)
             ORDER BY d.row LIMIT $3"
        ),
        &[&after, &tenant.map(TenantId::as_str), &page(limit)],
    )
    .await?;
    found.iter().map(dead_letter_row).collect()
}

/// One, open or settled.
pub(super) async fn find_letter(
    db: &impl GenericClient,
    row: i64,
) -> Result<Option<DeadLetterRow>, Fault> {
    let found = sql::row(
        db,
        concat!(
            "-- ledger.find_letter\nSELECT ",
            dead_letter_columns!(),
            " WHERE d.row = $1"
        ),
        &[&row],
    )
    .await?;
    found.as_ref().map(dead_letter_row).transpose()
}

async fn known_letter(db: &impl GenericClient, row: i64) -> Result<DeadLetterRow, Fault> {
    let found = find_letter(db, row).await?;
    Ok(found.ok_or(LedgerError::NotFound)?)
}

/// What stands in the way of an envelope's close.
pub(super) async fn of_envelope(
    db: &impl GenericClient,
    id: EnvelopeId,
    after: i64,
    limit: usize,
) -> Result<SetAside, Fault> {
    let bytes = id.to_bytes();
    let parked = sql::row(
        db,
        "-- ledger.parked_of_envelope\nSELECT parked_count FROM envelope WHERE id = $1",
        &[&&bytes[..]],
    )
    .await?;
    let letters = sql::rows(
        db,
        concat!(
            "-- ledger.letters_of_envelope\nSELECT ",
            dead_letter_columns!(),
            " WHERE d.envelope = $1 AND d.envelope_row IS NOT NULL AND d.settled_at IS NULL
                 AND d.row > $2
             ORDER BY d.row LIMIT $3"
        ),
        &[&&bytes[..], &after, &page(limit)],
    )
    .await?;
    Ok(SetAside {
        parked_count: parked.as_ref().map_or(Ok(0), |row| count(row, 0))?,
        letters: letters
            .iter()
            .map(dead_letter_row)
            .collect::<Result<_, _>>()?,
    })
}

/// Does something about a letter. Answers it as it stands.
pub(super) async fn act_on(
    tx: &Transaction<'_>,
    (desk, care): (&Desk, &Care),
    (row, deed, amount_minor): (i64, LetterDeed, Option<i64>),
    act: &AdminAct,
) -> Result<DeadLetterRow, Fault> {
    let letter = known_letter(tx, row).await?;
    let envelope = locked(tx, letter.record.envelope).await?;
    // Read again: somebody else may have acted on it before its envelope was locked.
    let letter = known_letter(tx, row).await?;
    if letter.settled_at.is_none() {
        if envelope.as_ref().is_some_and(|envelope| envelope.frozen) {
            return Err(LedgerError::Frozen.into());
        }
        match deed {
            LetterDeed::Dismiss => dismiss(tx, desk, &letter, envelope, amount_minor).await?,
            LetterDeed::Replay | LetterDeed::Correct => {
                try_again(tx, (desk, care), (&letter, deed), envelope, amount_minor).await?;
            }
        }
    }
    let letter = known_letter(tx, row).await?;
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
    operators::record_act(tx, desk.now(), &act).await?;
    Ok(letter)
}

/// The envelope of a letter, if there is one. Its counts move, so nobody else changes it.
async fn locked(tx: &Transaction<'_>, id: EnvelopeId) -> Result<Option<EnvelopeRow>, Fault> {
    match find_envelope(tx, id).await? {
        Some(_) => lock_envelope(tx, id).await.map(Some),
        None => Ok(None),
    }
}

/// Decides an open letter anew, and marks it if nothing is owed by it any more.
async fn try_again(
    tx: &Transaction<'_>,
    (desk, care): (&Desk, &Care),
    (letter, deed): (&DeadLetterRow, LetterDeed),
    envelope: Option<EnvelopeRow>,
    amount_minor: Option<i64>,
) -> Result<(), Fault> {
    let terms = envelope.as_ref().map(|envelope| &*envelope.terms);
    let (record, aside) = letter.tried(deed, terms, amount_minor);
    let item = match aside {
        None => SettleItem::Pay(record.clone()),
        Some(reason) => SettleItem::SetAside(record.clone(), reason),
    };
    let verdicts = settle(tx, desk, &[&item], care).await?;
    let verdict = *verdicts.first().expect("one verdict a record");
    match letter.outcome(&record, verdict, envelope.as_ref())? {
        Some(reason) => settle_letter(tx, desk.now(), letter, reason).await,
        None => Ok(()),
    }
}

/// Lets go of an open letter, if an operator may.
async fn dismiss(
    tx: &Transaction<'_>,
    desk: &Desk,
    letter: &DeadLetterRow,
    envelope: Option<EnvelopeRow>,
    amount_minor: Option<i64>,
) -> Result<(), Fault> {
    match envelope {
        Some(envelope) if letter.may_be_dismissed(&envelope, amount_minor) => {
            settle_letter(tx, desk.now(), letter, Some(DISMISSED)).await
        }
        _ => Ok(()),
    }
}

/// Marks a letter as done, and takes it off its envelope's count; one that is done stays as it is.
async fn settle_letter(
    tx: &Transaction<'_>,
    now: UnixMs,
    letter: &DeadLetterRow,
    reason: Option<&str>,
) -> Result<(), Fault> {
    let settled = sql::row(
        tx,
        "-- ledger.settle_letter
         UPDATE dead_letter SET settled_at = $2, reason = coalesce($3, reason)
         WHERE row = $1 AND settled_at IS NULL RETURNING envelope_row",
        &[&letter.row, &now.0, &reason],
    )
    .await?;
    let Some(row) = settled else {
        return Ok(());
    };
    let mut counts = CountsOf::new();
    if let Some(envelope_row) = row.try_get::<_, Option<i64>>(0)? {
        counts.entry(envelope_row).or_default().letters -= 1;
    }
    write_counts(tx, counts).await
}
