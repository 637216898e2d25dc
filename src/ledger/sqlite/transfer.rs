//! Money in and out: outside ↔ owner.
//!
//! # Shape
//! | phase | what |
//! |---|---|
//! | read | the idempotency row; then both accounts |
//! | decide | replay, another request, too little, too much |
//! | post | posting, two entries, two balances, idempotency row |

use rusqlite::{Connection, OptionalExtension};
use sha2::{Digest, Sha256};

use crate::domain::money::checked_amount;
use crate::domain::posting::PostingKind;
use crate::ledger::{LedgerError, Transfer, Transferred};

use super::leaves::commit_to;
use super::post::{
    AccountName, Posting, account, account_entry, add_to_account, check_credit, check_debit,
    check_outside, posting,
};
use super::rows::Sql;
use super::writer::Books;

/// The key of idempotency.
#[derive(Clone, Copy)]
pub(super) struct RequestKey<'a> {
    pub tenant: &'a str,
    pub owner: &'a str,
    pub method: &'static str,
    pub request_id: &'a str,
}

/// What a request made: (posting, envelope).
pub(super) type Made = (i64, Option<i64>);

pub(super) fn deposit(
    books: &mut Books<'_>,
    transfer: &Transfer,
) -> Result<Transferred, LedgerError> {
    // ---- read ----
    let (key, hash) = request(transfer, "deposit");
    if let Some((posting, _)) = made_before(books.db, key, &hash)? {
        return Ok(replayed(posting));
    }
    let amount_minor = checked(transfer)?;
    let currency = transfer.amount.currency;
    let outside_name = AccountName::outside(&transfer.tenant, currency);
    let owner_name = AccountName::of(&transfer.tenant, &transfer.owner, currency);
    let outside = account(books.db, outside_name)?;
    let owner = account(books.db, owner_name)?;

    // ---- decide ----
    check_credit(&owner, amount_minor)?;
    check_outside(&outside, amount_minor)?;

    // ---- post ----
    if outside.row.is_none() {
        // The tenant may be new: its first seeds are committed to before anybody can pay for an
        // envelope, and so before the server knows a nonce.
        commit_to(books, &transfer.tenant, 0)?;
    }
    let outside_row = add_to_account(books.db, outside_name, &outside, -amount_minor)?;
    let owner_row = add_to_account(books.db, owner_name, &owner, amount_minor)?;
    let posting = move_between(
        books,
        transfer,
        PostingKind::Deposit,
        (outside_row, owner_row),
    )?;
    remember(books.db, key, &hash, (posting, None))?;
    Ok(made_now(posting))
}

pub(super) fn withdraw(books: &Books<'_>, transfer: &Transfer) -> Result<Transferred, LedgerError> {
    // ---- read ----
    let (key, hash) = request(transfer, "withdraw");
    if let Some((posting, _)) = made_before(books.db, key, &hash)? {
        return Ok(replayed(posting));
    }
    let amount_minor = checked(transfer)?;
    let currency = transfer.amount.currency;
    let outside_name = AccountName::outside(&transfer.tenant, currency);
    let owner_name = AccountName::of(&transfer.tenant, &transfer.owner, currency);
    let owner = account(books.db, owner_name)?;

    // ---- decide ----
    check_debit(&owner, amount_minor)?;

    // ---- post ----
    let outside = account(books.db, outside_name)?;
    let owner_row = add_to_account(books.db, owner_name, &owner, -amount_minor)?;
    let outside_row = add_to_account(books.db, outside_name, &outside, amount_minor)?;
    let posting = move_between(
        books,
        transfer,
        PostingKind::Withdrawal,
        (owner_row, outside_row),
    )?;
    remember(books.db, key, &hash, (posting, None))?;
    Ok(made_now(posting))
}

fn replayed(posting: i64) -> Transferred {
    Transferred {
        posting,
        replayed: true,
    }
}

fn made_now(posting: i64) -> Transferred {
    Transferred {
        posting,
        replayed: false,
    }
}

/// The caller checked it; the books do not believe callers.
fn checked(transfer: &Transfer) -> Result<i64, LedgerError> {
    checked_amount(transfer.amount.minor).map_err(|error| LedgerError::Broken(error.to_string()))
}

/// Debits the first account and credits the second.
fn move_between(
    books: &Books<'_>,
    transfer: &Transfer,
    kind: PostingKind,
    (from_row, to_row): (i64, i64),
) -> Result<i64, LedgerError> {
    let amount_minor = transfer.amount.minor;
    let row = posting(
        books.db,
        &Posting {
            tenant: transfer.tenant.as_str(),
            kind,
            currency: transfer.amount.currency,
            envelope_row: None,
            share_count: 0,
            reference: &transfer.reference,
            posted_at: books.now,
        },
    )?;
    account_entry(books.db, row, from_row, -amount_minor)?;
    account_entry(books.db, row, to_row, amount_minor)?;
    Ok(row)
}

/// The key of a transfer, and what tells it from another request: every field is preceded by its
/// length or is of fixed length.
fn request<'a>(transfer: &'a Transfer, method: &'static str) -> (RequestKey<'a>, [u8; 32]) {
    let key = RequestKey {
        tenant: transfer.tenant.as_str(),
        owner: transfer.owner.as_str(),
        method,
        request_id: transfer.request_id.as_str(),
    };
    let mut hash = Sha256::new();
    let code = transfer.amount.currency.code();
    hash.update(transfer.amount.minor.to_be_bytes());
    hash.update([u8::try_from(code.len()).expect("a code has at most 8 letters")]);
    hash.update(code);
    hash.update(&transfer.reference);
    (key, hash.finalize().into())
}

/// What the same request made before.
pub(super) fn made_before(
    db: &Connection,
    key: RequestKey<'_>,
    hash: &[u8; 32],
) -> Result<Option<Made>, LedgerError> {
    let found: Option<([u8; 32], i64, Option<i64>)> = db
        .prepare_cached(
            "-- ledger.made_before
             SELECT request_hash, posting_row, envelope_row FROM idempotency
             WHERE tenant = ?1 AND owner = ?2 AND method = ?3 AND request_id = ?4",
        )
        .and_then(|mut find| {
            let key = (key.tenant, key.owner, key.method, key.request_id);
            find.query_row(key, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()
        })
        .sql()?;
    match found {
        Some((before, _, _)) if before != *hash => Err(LedgerError::RequestIdReused),
        Some((_, posting, envelope)) => Ok(Some((posting, envelope))),
        None => Ok(None),
    }
}

/// Puts down what a request made.
pub(super) fn remember(
    db: &Connection,
    key: RequestKey<'_>,
    hash: &[u8; 32],
    (posting, envelope): Made,
) -> Result<(), LedgerError> {
    db.prepare_cached(
        "-- ledger.remember
         INSERT INTO idempotency
             (tenant, owner, method, request_id, request_hash, posting_row, envelope_row)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .and_then(|mut insert| {
        insert.execute((
            key.tenant,
            key.owner,
            key.method,
            key.request_id,
            hash,
            posting,
            envelope,
        ))
    })
    .sql()?;
    Ok(())
}
