//! The end of an envelope: Live, Closing, Closed, and what the sweeper has to do about it.
//!
//! # Shape
//! | step | what |
//! |---|---|
//! | `mark_live` | Funding → Live |
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
//! # If it crashes here
//! Every step can be repeated: a state is never left backwards, and the refund and Closed are one
//! transaction.

use std::collections::BTreeMap;

use rusqlite::{Connection, params_from_iter};

use crate::domain::envelope::{BookState, CloseReason};
use crate::domain::id::{EnvelopeId, Epoch, Partition, UnixMs};
use crate::domain::posting::PostingKind;
use crate::ledger::{CloseProgress, Due, EnvelopeRow, LedgerError, Under};

use super::post::{
    AccountName, Posting, account, account_entry, add_to_account, escrow_entry, posting,
};
use super::rows::{Sql, envelope_id, known_envelope, page, reason_name};
use super::writer::Books;

pub(super) fn mark_live(books: &Books<'_>, id: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
    let mut envelope = known_envelope(books.db, id)?;
    if envelope.state != BookState::Funding {
        return Ok(envelope);
    }
    books
        .db
        .prepare_cached("-- ledger.mark_live\nUPDATE envelope SET state = 'live' WHERE row = ?1")
        .and_then(|mut update| update.execute([envelope.row]))
        .sql()?;
    envelope.state = BookState::Live;
    Ok(envelope)
}

pub(super) fn gather(books: &Books<'_>, id: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
    let mut envelope = known_envelope(books.db, id)?;
    if !envelope.is_to_gather()? {
        return Ok(envelope);
    }
    books
        .db
        .prepare_cached("-- ledger.gather\nUPDATE envelope SET gathered = 1 WHERE row = ?1")
        .and_then(|mut update| update.execute([envelope.row]))
        .sql()?;
    envelope.gathered = true;
    Ok(envelope)
}

pub(super) fn begin_close(
    books: &Books<'_>,
    id: EnvelopeId,
    reason: CloseReason,
) -> Result<EnvelopeRow, LedgerError> {
    let envelope = known_envelope(books.db, id)?;
    match envelope.state {
        BookState::Closing(_) | BookState::Closed(_) => return Ok(envelope),
        BookState::Funding | BookState::Live if envelope.frozen => return Err(LedgerError::Frozen),
        BookState::Funding | BookState::Live => {}
    }
    books
        .db
        .prepare_cached(
            "-- ledger.begin_close
             UPDATE envelope SET state = 'closing', reason = ?2 WHERE row = ?1",
        )
        .and_then(|mut update| update.execute((envelope.row, reason_name(reason))))
        .sql()?;
    known_envelope(books.db, id)
}

pub(super) fn finish_close(
    books: &Books<'_>,
    (id, under): (EnvelopeId, &BTreeMap<Partition, Epoch>),
    reason: CloseReason,
    taken_count: u32,
) -> Result<CloseProgress, LedgerError> {
    // ---- read ----
    let envelope = known_envelope(books.db, id)?;
    match envelope.state {
        BookState::Closed(_) => return Ok(CloseProgress::Closed(envelope)),
        BookState::Funding | BookState::Live => {
            return Err(LedgerError::Broken(
                "finish_close of an envelope that is not closing".to_owned(),
            ));
        }
        BookState::Closing(_) if envelope.frozen => return Err(LedgerError::Frozen),
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
        refund(books, &envelope, remainder_minor)?;
    }
    books
        .db
        .prepare_cached(
            "-- ledger.finish_close
             UPDATE envelope SET state = 'closed', reason = ?2, closed_at = ?3,
                 refunded_minor = refunded_minor + ?4
             WHERE row = ?1",
        )
        .and_then(|mut update| {
            update.execute((
                envelope.row,
                reason_name(reason),
                books.now.0,
                remainder_minor,
            ))
        })
        .sql()?;
    known_envelope(books.db, id).map(CloseProgress::Closed)
}

/// Escrow → sender. However full the account is: the money is the sender's already.
fn refund(books: &Books<'_>, envelope: &EnvelopeRow, amount_minor: i64) -> Result<(), LedgerError> {
    let terms = &envelope.terms;
    let name = AccountName::of(&terms.tenant, &terms.sender, terms.currency);
    let sender = account(books.db, name)?;
    let sender_row = add_to_account(books.db, name, &sender, amount_minor)?;
    let posting_row = posting(
        books.db,
        &Posting {
            tenant: terms.tenant.as_str(),
            kind: PostingKind::Refund,
            currency: terms.currency,
            envelope_row: Some(envelope.row),
            share_count: 0,
            reference: "",
            posted_at: books.now,
        },
    )?;
    escrow_entry(books.db, posting_row, envelope.row, -amount_minor)?;
    account_entry(books.db, posting_row, sender_row, amount_minor)
}

const DUE_EXPIRED: &str = "-- ledger.due_expired
    SELECT row, id FROM envelope
    WHERE state IN ('funding', 'live') AND frozen = 0 AND expires_at <= ?3 AND row > ?1
    ORDER BY row LIMIT ?2";

const DUE_CLOSING: &str = "-- ledger.due_closing
    SELECT row, id FROM envelope
    WHERE state = 'closing' AND frozen = 0 AND row > ?1
    ORDER BY row LIMIT ?2";

const DUE_EMPTY: &str = "-- ledger.due_empty
    SELECT row, id FROM envelope
    WHERE state = 'live' AND frozen = 0 AND settled_count + declined_count = share_count
        AND row > ?1 AND expires_at > ?3
    ORDER BY row LIMIT ?2";

const DUE_UNPUBLISHED: &str = "-- ledger.due_unpublished
    SELECT row, id FROM envelope
    WHERE state = 'funding' AND frozen = 0 AND row > ?1 AND expires_at > ?3 AND created_at <= ?4
    ORDER BY row LIMIT ?2";

type Question<'a> = (fn(EnvelopeId) -> Due, &'static str, &'a [i64]);

/// One page of work above `after_row`, by row. No envelope answers two of the questions.
pub(super) fn due(
    db: &Connection,
    now: UnixMs,
    patience_ms: i64,
    (after, limit): (i64, usize),
) -> Result<Vec<(i64, Due)>, LedgerError> {
    let (now, rows) = (now.0, page(limit));
    let patient = now.saturating_sub(patience_ms);
    let questions: [Question<'_>; 4] = [
        (Due::Expired, DUE_EXPIRED, &[after, rows, now]),
        (Due::Closing, DUE_CLOSING, &[after, rows]),
        (Due::Empty, DUE_EMPTY, &[after, rows, now]),
        (
            Due::Unpublished,
            DUE_UNPUBLISHED,
            &[after, rows, now, patient],
        ),
    ];
    let mut work = Vec::new();
    for (due, sql, args) in questions {
        let mut ask = db.prepare_cached(sql).sql()?;
        let found = ask
            .query_map(params_from_iter(args), |row| {
                Ok((row.get(0)?, due(envelope_id(row, 1)?)))
            })
            .sql()?;
        for row in found {
            work.push(row.sql()?);
        }
    }
    // Each list holds its own lowest rows, so the lowest of all are among them.
    work.sort_unstable_by_key(|(row, _)| *row);
    work.truncate(usize::try_from(rows).expect("a page is small"));
    Ok(work)
}
