//! The end of an envelope: Live, Closing, Closed, and what the sweeper has to do about it.
//!
//! # Shape
//! | step | what |
//! |---|---|
//! | `mark_live` | Funding → Live, of all that wait |
//! | `gather` | once the shares of a dealt envelope are gathered in its first stripe, that stays on record |
//! | `begin_close` | Funding or Live → Closing; the first reason stands |
//! | `finish_close` | Closing → Closed with the refund of the remainder, if claims cover what was granted |
//! | `due` | which envelopes the sweeper should look at |
//!
//! # Bounds
//! `due` answers one page by row, and the caller goes on above the last row of it: a page of
//! envelopes that can't go on never hides the others. Each question has an index of its own, so
//! open envelopes for which nothing is due are not looked at.
//!
//! # Ordering
//! Each step holds the envelope's row, as settling does: what it reads stands until it commits. `gather` holds its key
//! alone, since a burst settles all the time what was won of the envelope: it and `begin_close` wait for each other.
//!
//! # If it crashes here
//! Every step can be repeated: a state is never left backwards, and the refund and Closed are one
//! transaction.

use std::collections::BTreeMap;

use deadpool_postgres::{GenericClient, Transaction};

use crate::domain::envelope::{BookState, CloseReason};
use crate::domain::id::{EnvelopeId, Epoch, Partition, UnixMs};
use crate::domain::posting::PostingKind;
use crate::ledger::{CloseProgress, Due, EnvelopeRow, LedgerError, Under};

use super::books::{Books, write};
use super::post::{AccountName, Accounts, Entry, Journal, Posting, Side};
use super::read;
use super::rows::{envelope_id, hold_envelope, known_envelope, lock_envelope, page, reason_name};
use super::sql::{self, Fault, POSTING_NUMBERS, broken};
use super::together::{self, Work};

/// Envelopes that one transaction marks live.
const MARKS_PER_TRANSACTION_MAX: usize = 256;
/// Marks that wait: one for each publish that may be under way, and those of a sweep.
const QUEUED_MARKS_MAX: usize = 4_096;

/// An envelope to be marked live.
pub(super) struct MarkLive(pub EnvelopeId);

impl Work for MarkLive {
    type Answer = EnvelopeRow;
    const TOGETHER_MAX: usize = MARKS_PER_TRANSACTION_MAX;
    const QUEUED_MAX: usize = QUEUED_MARKS_MAX;

    async fn do_all(books: &Books, marks: &[Self]) -> together::Answers<Self> {
        write!(books, |tx| mark_live(&tx, marks))
    }
}

/// Only what is Funding is locked: a row that somebody holds for longer keeps no other envelope from
/// becoming live.
async fn mark_live(
    tx: &Transaction<'_>,
    marks: &[MarkLive],
) -> Result<Vec<Result<EnvelopeRow, LedgerError>>, Fault> {
    let ids: Vec<_> = marks.iter().map(|mark| mark.0.to_bytes()).collect();
    let ids: Vec<&[u8]> = ids.iter().map(|id| &id[..]).collect();
    let funding = sql::rows(
        tx,
        "-- ledger.lock_funding
         SELECT row FROM envelope WHERE id = ANY ($1::bytea[]) AND state = 'funding'
         ORDER BY row FOR NO KEY UPDATE",
        &[&ids],
    )
    .await?;
    if !funding.is_empty() {
        let rows: Vec<i64> = funding.iter().map(|row| row.get(0)).collect();
        sql::run(
            tx,
            "-- ledger.mark_live
             UPDATE envelope SET state = 'live' WHERE row = ANY ($1::bigint[])",
            &[&rows],
        )
        .await?;
    }
    let ids: Vec<EnvelopeId> = marks.iter().map(|mark| mark.0).collect();
    let rows = read::envelopes(tx, &ids).await?.into_iter();
    Ok(rows.map(|row| row.ok_or(LedgerError::NotFound)).collect())
}

/// Locks the envelope's key and nothing else: it waits for whoever begins to close it or freezes it, and for nobody who settles
/// what was won of it. Who finds it gathered, or over, waits for nobody.
pub(super) async fn gather(tx: &Transaction<'_>, id: EnvelopeId) -> Result<EnvelopeRow, Fault> {
    let envelope = known_envelope(tx, id).await?;
    if !envelope.is_to_gather()? {
        return Ok(envelope);
    }
    // Asked again of the row as it is when it is locked: somebody may have closed it meanwhile.
    sql::run(
        tx,
        "-- ledger.gather
         INSERT INTO gathered (envelope_row)
         SELECT row FROM envelope
         WHERE row = $1 AND state IN ('funding', 'live') AND NOT frozen FOR KEY SHARE
         ON CONFLICT DO NOTHING",
        &[&envelope.row],
    )
    .await?;
    known_envelope(tx, id).await
}

pub(super) async fn begin_close(
    tx: &Transaction<'_>,
    id: EnvelopeId,
    reason: CloseReason,
) -> Result<EnvelopeRow, Fault> {
    let envelope = hold_envelope(tx, id).await?;
    match envelope.state {
        BookState::Closing(_) | BookState::Closed(_) => return known_envelope(tx, id).await,
        BookState::Funding | BookState::Live if envelope.frozen => {
            return Err(LedgerError::Frozen.into());
        }
        BookState::Funding | BookState::Live => {}
    }
    sql::run(
        tx,
        "-- ledger.begin_close\nUPDATE envelope SET state = 'closing', reason = $2 WHERE row = $1",
        &[&envelope.row, &reason_name(reason)],
    )
    .await?;
    known_envelope(tx, id).await
}

pub(super) async fn finish_close(
    tx: &Transaction<'_>,
    now: UnixMs,
    (id, under): (EnvelopeId, &BTreeMap<Partition, Epoch>),
    reason: CloseReason,
    taken_count: u32,
) -> Result<CloseProgress, Fault> {
    // ---- read ----
    let envelope = lock_envelope(tx, id).await?;
    match envelope.state {
        BookState::Closed(_) => {
            return known_envelope(tx, id).await.map(CloseProgress::Closed);
        }
        BookState::Funding | BookState::Live => {
            return Err(broken("finish_close of an envelope that is not closing"));
        }
        BookState::Closing(_) if envelope.frozen => return Err(LedgerError::Frozen.into()),
        BookState::Closing(_) => Under::check_all(under, envelope.terms.stripes)?,
    }
    let dead_letters = envelope.set_aside_count;

    // ---- decide ----
    let claimed_count = envelope.settled_count + envelope.declined_count;
    // Fewer granted than claimed: a store that was replaced may have lost some of what is settled;
    // from one that never was it is a contradiction, which never closes.
    let replaced = under.values().any(|epoch| *epoch != Epoch::FIRST);
    let covered = claimed_count == taken_count || (claimed_count > taken_count && replaced);
    if !covered || dead_letters > 0 {
        return Ok(CloseProgress::Waiting {
            claimed_count,
            dead_letters,
        });
    }
    let remainder_minor =
        envelope.terms.total_minor - envelope.settled_minor - envelope.refunded_minor;

    // ---- post ----
    if remainder_minor > 0 {
        refund(tx, now, &envelope, remainder_minor).await?;
    }
    sql::run(
        tx,
        "-- ledger.finish_close
         UPDATE envelope SET state = 'closed', reason = $2, closed_at = $3,
             refunded_minor = refunded_minor + $4
         WHERE row = $1",
        &[
            &envelope.row,
            &reason_name(reason),
            &now.0,
            &remainder_minor,
        ],
    )
    .await?;
    known_envelope(tx, id).await.map(CloseProgress::Closed)
}

/// Escrow → sender. However full the account is: the money is the sender's already.
async fn refund(
    tx: &Transaction<'_>,
    now: UnixMs,
    envelope: &EnvelopeRow,
    amount_minor: i64,
) -> Result<(), Fault> {
    let terms = &envelope.terms;
    let name = AccountName::of(terms.tenant.as_str(), terms.sender.as_str(), terms.currency);
    let mut accounts = Accounts::lock(tx, &[name.clone()].into()).await?;
    let none = || broken("there are no more numbers");
    let posting_row = sql::numbers(tx, POSTING_NUMBERS, 1).await?.next();
    let posting_row = posting_row.ok_or_else(none)?;
    let mut entry_rows = sql::entry_numbers(tx, 2).await?;
    let mut journal = Journal::default();
    let posting = Posting {
        tenant: terms.tenant.as_str().to_owned(),
        kind: PostingKind::Refund,
        currency: terms.currency,
        envelope_row: Some(envelope.row),
        share_count: 0,
        reference: String::new(),
    };
    journal.posting(posting_row, posting);
    let sender = accounts.add(&name, amount_minor)?;
    let sides = [
        (Side::Escrow(envelope.row), -amount_minor),
        (Side::Account(sender), amount_minor),
    ];
    for (side, amount_minor) in sides {
        let entry = Entry {
            posting_row,
            side,
            amount_minor,
        };
        journal.entry(entry_rows.next().ok_or_else(none)?, entry);
    }
    accounts.write(tx).await?;
    journal.write(tx, now).await
}

const DUE_EXPIRED: &str = "-- ledger.due_expired
    SELECT row, id FROM envelope
    WHERE state IN ('funding', 'live') AND NOT frozen AND expires_at <= $3 AND row > $1
    ORDER BY row LIMIT $2";

const DUE_CLOSING: &str = "-- ledger.due_closing
    SELECT row, id FROM envelope
    WHERE state = 'closing' AND NOT frozen AND row > $1
    ORDER BY row LIMIT $2";

const DUE_EMPTY: &str = "-- ledger.due_empty
    SELECT row, id FROM envelope
    WHERE state = 'live' AND NOT frozen AND settled_count + declined_count = share_count
        AND row > $1 AND expires_at > $3
    ORDER BY row LIMIT $2";

const DUE_UNPUBLISHED: &str = "-- ledger.due_unpublished
    SELECT row, id FROM envelope
    WHERE state = 'funding' AND NOT frozen AND row > $1 AND expires_at > $3 AND created_at <= $4
    ORDER BY row LIMIT $2";

type Question<'a> = (fn(EnvelopeId) -> Due, &'static str, sql::Values<'a>);

/// One page of work above `after_row`, by row. No envelope answers two of the questions.
pub(super) async fn due(
    db: &impl GenericClient,
    now: UnixMs,
    patience_ms: i64,
    (after, limit): (i64, usize),
) -> Result<Vec<(i64, Due)>, Fault> {
    let (now, rows) = (now.0, page(limit));
    let patient = now.saturating_sub(patience_ms);
    let questions: [Question<'_>; 4] = [
        (Due::Expired, DUE_EXPIRED, &[&after, &rows, &now]),
        (Due::Closing, DUE_CLOSING, &[&after, &rows]),
        (Due::Empty, DUE_EMPTY, &[&after, &rows, &now]),
        (
            Due::Unpublished,
            DUE_UNPUBLISHED,
            &[&after, &rows, &now, &patient],
        ),
    ];
    let mut work = Vec::new();
    for (due, question, values) in questions {
        for row in sql::rows(db, question, values).await? {
            work.push((row.try_get(0)?, due(envelope_id(&row, 1)?)));
        }
    }
    // Each list holds its own lowest rows, so the lowest of all are among them.
    work.sort_unstable_by_key(|(row, _)| *row);
    work.truncate(usize::try_from(rows).expect("a page is small"));
    Ok(work)
}
