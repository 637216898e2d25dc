//! Money in and out: outside ↔ owner.
//!
//! # Shape
//! | phase | what |
//! |---|---|
//! | read | the idempotency row; then both accounts, locked |
//! | decide | replay, another request, too little, too much |
//! | post | posting, two entries, two balances, idempotency row |
//!
//! # Ordering
//! The idempotency row is inserted last, and decides: of two callers that make the same request at
//! once, the second one's transaction is taken back and finds, when it repeats, what the first made.

use deadpool_postgres::{GenericClient, Transaction};
use sha2::{Digest, Sha256};

use crate::domain::money::checked_amount;
use crate::domain::posting::PostingKind;
use crate::ledger::{LedgerError, Transfer, Transferred};

use super::Desk;
use super::leaves::commit_to;
use super::post::{
    AccountName, Accounts, Entry, Journal, Posting, Side, check_credit, check_debit, check_outside,
};
use super::rows::hash;
use super::sql::{self, Fault, POSTING_NUMBERS, broken};

/// The key of idempotency.
#[derive(Clone, Copy)]
pub(super) struct RequestKey<'a> {
    pub tenant: &'a str,
    pub owner: &'a str,
    pub method: &'static str,
    pub request_id: &'a str,
}

/// Outside → owner.
pub(super) async fn deposit(
    tx: &Transaction<'_>,
    desk: &Desk,
    transfer: &Transfer,
) -> Result<Transferred, Fault> {
    move_money(tx, desk, transfer, PostingKind::Deposit).await
}

/// Owner → outside.
pub(super) async fn withdraw(
    tx: &Transaction<'_>,
    desk: &Desk,
    transfer: &Transfer,
) -> Result<Transferred, Fault> {
    move_money(tx, desk, transfer, PostingKind::Withdrawal).await
}

async fn move_money(
    tx: &Transaction<'_>,
    desk: &Desk,
    transfer: &Transfer,
    kind: PostingKind,
) -> Result<Transferred, Fault> {
    let is_deposit = kind == PostingKind::Deposit;
    let (key, request_hash) = request(transfer, if is_deposit { "deposit" } else { "withdraw" });
    let replayed = |posting| Transferred {
        posting,
        replayed: true,
    };
    if let Some(posting) = made_before(tx, key, &request_hash).await? {
        return Ok(replayed(posting));
    }
    match move_once(tx, desk, transfer, kind, (key, request_hash)).await {
        // The same request may have taken effect between the look and the lock on the account: that is
        // why there is too little, or no room, and then this is its repetition.
        Err(Fault::Told(
            refusal @ (LedgerError::InsufficientFunds { .. } | LedgerError::BalanceTooLarge),
        )) => match made_before(tx, key, &request_hash).await? {
            Some(posting) => Ok(replayed(posting)),
            None => Err(Fault::Told(refusal)),
        },
        moved => moved,
    }
}

async fn move_once(
    tx: &Transaction<'_>,
    desk: &Desk,
    transfer: &Transfer,
    kind: PostingKind,
    (key, request_hash): (RequestKey<'_>, [u8; 32]),
) -> Result<Transferred, Fault> {
    // ---- read ----
    let is_deposit = kind == PostingKind::Deposit;
    let amount_minor = checked_amount(transfer.amount.minor)
        .map_err(|error| LedgerError::Broken(error.to_string()))?;
    let (tenant, currency) = (transfer.tenant.as_str(), transfer.amount.currency);
    let outside = AccountName::outside(tenant, currency);
    let owner = AccountName::of(tenant, transfer.owner.as_str(), currency);
    if is_deposit {
        // The tenant may be new: its first seeds are committed to before anybody can pay for an
        // envelope, and so before the server knows a nonce.
        commit_to(tx, desk, &transfer.tenant, 0).await?;
    } else {
        // Who has nothing to take opens no account by asking.
        let has = available(tx, &owner).await?;
        if has < amount_minor {
            return Err(too_little(has, amount_minor));
        }
    }
    let names = [outside.clone(), owner.clone()].into();
    let mut accounts = Accounts::lock(tx, &names).await?;

    // ---- decide ----
    let (debited, credited) = if is_deposit {
        check_credit(&accounts.get(&owner)?, amount_minor)?;
        check_outside(&accounts.get(&outside)?, amount_minor)?;
        (&outside, &owner)
    } else {
        check_debit(&accounts.get(&owner)?, amount_minor)?;
        (&owner, &outside)
    };

    // ---- post ----
    let moved = (debited, credited, amount_minor);
    let posting_row = post(tx, desk, transfer, kind, &mut accounts, moved).await?;
    remember(tx, &[(key, request_hash, posting_row, None)]).await?;
    Ok(Transferred {
        posting: posting_row,
        replayed: false,
    })
}

/// Posts debit and credit of accounts that are locked. Answers the posting's row.
async fn post(
    tx: &Transaction<'_>,
    desk: &Desk,
    transfer: &Transfer,
    kind: PostingKind,
    accounts: &mut Accounts,
    (debited, credited, amount_minor): (&AccountName, &AccountName, i64),
) -> Result<i64, Fault> {
    let number = || broken("there are no more numbers");
    let posting_row = sql::numbers(tx, POSTING_NUMBERS, 1).await?.next();
    let posting_row = posting_row.ok_or_else(number)?;
    let mut entry_rows = sql::entry_numbers(tx, 2).await?;
    let mut journal = Journal::default();
    let posting = Posting {
        tenant: transfer.tenant.as_str().to_owned(),
        kind,
        currency: transfer.amount.currency,
        envelope_row: None,
        share_count: 0,
        reference: transfer.reference.clone(),
    };
    journal.posting(posting_row, posting);
    for (name, moved_minor) in [(debited, -amount_minor), (credited, amount_minor)] {
        let entry = Entry {
            posting_row,
            side: Side::Account(accounts.add(name, moved_minor)?),
            amount_minor: moved_minor,
        };
        journal.entry(entry_rows.next().ok_or_else(number)?, entry);
    }
    accounts.write(tx).await?;
    journal.write(tx, desk.now()).await?;
    Ok(posting_row)
}

fn too_little(available_minor: i64, needed_minor: i64) -> Fault {
    let error = LedgerError::InsufficientFunds {
        available_minor,
        needed_minor,
    };
    error.into()
}

/// What an owner has, without opening an account.
async fn available(db: &impl GenericClient, name: &AccountName) -> Result<i64, Fault> {
    let found = sql::row(
        db,
        "-- ledger.available
         SELECT available_minor FROM account
         WHERE tenant = $1 AND kind = 'owner' AND owner = $2 AND currency = $3",
        &[&name.tenant, &name.owner, &name.currency.code()],
    )
    .await?;
    Ok(match found {
        Some(row) => row.try_get(0)?,
        None => 0,
    })
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

async fn made_before(
    db: &impl GenericClient,
    key: RequestKey<'_>,
    request_hash: &[u8; 32],
) -> Result<Option<i64>, Fault> {
    let found = sql::row(
        db,
        "-- ledger.made_before
         SELECT request_hash, posting_row FROM idempotency
         WHERE tenant = $1 AND owner = $2 AND method = $3 AND request_id = $4",
        &[&key.tenant, &key.owner, &key.method, &key.request_id],
    )
    .await?;
    let Some(row) = found else {
        return Ok(None);
    };
    if hash(&row, 0)? != *request_hash {
        return Err(LedgerError::RequestIdReused.into());
    }
    Ok(Some(row.try_get(1)?))
}

/// Puts down what requests made: posting and envelope.
pub(super) async fn remember(
    tx: &Transaction<'_>,
    made: &[(RequestKey<'_>, [u8; 32], i64, Option<i64>)],
) -> Result<(), Fault> {
    let each = |of: fn(&RequestKey<'_>) -> String| -> Vec<String> {
        made.iter().map(|(key, ..)| of(key)).collect()
    };
    let (tenants, owners) = (
        each(|key| key.tenant.to_owned()),
        each(|key| key.owner.to_owned()),
    );
    let (methods, request_ids) = (
        each(|key| key.method.to_owned()),
        each(|key| key.request_id.to_owned()),
    );
    let hashes: Vec<&[u8]> = made.iter().map(|(_, hash, ..)| &hash[..]).collect();
    let postings: Vec<i64> = made.iter().map(|(.., posting, _)| *posting).collect();
    let envelopes: Vec<Option<i64>> = made.iter().map(|(.., envelope)| *envelope).collect();
    sql::run(
        tx,
        "-- ledger.remember
         INSERT INTO idempotency
             (tenant, owner, method, request_id, request_hash, posting_row, envelope_row)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[],
             $6::bigint[], $7::bigint[])",
        &[
            &tenants,
            &owners,
            &methods,
            &request_ids,
            &hashes,
            &postings,
            &envelopes,
        ],
    )
    .await?;
    Ok(())
}
