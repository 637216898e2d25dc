//! Accounts, postings and entries: the only statements that move money.
//!
//! *Ordering.* A flow reads what it needs, decides, and then posts: a constraint that fires here
//! is a flow that decided wrongly, and takes the whole call back.

use rusqlite::{Connection, OptionalExtension};

use crate::domain::id::{PersonId, TenantId, UnixMs};
use crate::domain::money::{AMOUNT_MINOR_MAX, Currency};
use crate::domain::posting::PostingKind;
use crate::ledger::LedgerError;

use super::rows::Sql;

/// What the outside and the reserve may owe: the schema's bound, 1,000 full accounts.
const OUTSIDE_MINOR_MAX: i64 = 9_000_000_000_000_000_000;

/// An account as a flow sees it before it posts. Without a row it does not exist yet.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub row: Option<i64>,
    pub available_minor: i64,
}

/// Whose account.
#[derive(Clone, Copy, Debug)]
pub(super) struct AccountName<'a> {
    pub tenant: &'a str,
    /// Empty: the outside.
    pub owner: &'a str,
    pub currency: Currency,
}

impl<'a> AccountName<'a> {
    pub fn of(tenant: &'a TenantId, owner: &'a PersonId, currency: Currency) -> Self {
        Self {
            tenant: tenant.as_str(),
            owner: owner.as_str(),
            currency,
        }
    }

    pub fn outside(tenant: &'a TenantId, currency: Currency) -> Self {
        Self {
            tenant: tenant.as_str(),
            owner: "",
            currency,
        }
    }

    fn kind(&self) -> &'static str {
        if self.owner.is_empty() {
            "outside"
        } else {
            "owner"
        }
    }
}

pub(super) fn account(db: &Connection, name: AccountName<'_>) -> Result<Account, LedgerError> {
    let found = db
        .prepare_cached(
            "-- ledger.account
             SELECT row, available_minor FROM account
             WHERE tenant = ?1 AND kind = ?2 AND owner = ?3 AND currency = ?4",
        )
        .and_then(|mut find| {
            let key = (name.tenant, name.kind(), name.owner, name.currency.code());
            find.query_row(key, |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        })
        .sql()?;
    let (row, available_minor) = found.map_or((None, 0), |(row, minor)| (Some(row), minor));
    Ok(Account {
        row,
        available_minor,
    })
}

/// Adds a signed amount to the account's balance, opening the account if need be. Answers its row.
pub(super) fn add_to_account(
    db: &Connection,
    name: AccountName<'_>,
    account: &Account,
    amount_minor: i64,
) -> Result<i64, LedgerError> {
    if let Some(row) = account.row {
        db.prepare_cached(
            "-- ledger.add_to_account
             UPDATE account SET available_minor = available_minor + ?2 WHERE row = ?1",
        )
        .and_then(|mut add| add.execute((row, amount_minor)))
        .sql()?;
        return Ok(row);
    }
    db.prepare_cached(
        "-- ledger.open_account
         INSERT INTO account (tenant, kind, owner, currency, available_minor)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )
    .and_then(|mut open| {
        open.insert((
            name.tenant,
            name.kind(),
            name.owner,
            name.currency.code(),
            amount_minor,
        ))
    })
    .sql()
}

/// Why money moves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Posting<'a> {
    pub tenant: &'a str,
    pub kind: PostingKind,
    pub currency: Currency,
    pub envelope_row: Option<i64>,
    pub share_count: u32,
    pub reference: &'a str,
    pub posted_at: UnixMs,
}

pub(super) fn posting(db: &Connection, posting: &Posting<'_>) -> Result<i64, LedgerError> {
    db.prepare_cached(
        "-- ledger.posting
         INSERT INTO posting (tenant, kind, currency, envelope_row, share_count, reference, posted_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .and_then(|mut insert| {
        insert.insert((
            posting.tenant,
            posting.kind.name(),
            posting.currency.code(),
            posting.envelope_row,
            posting.share_count,
            posting.reference,
            posting.posted_at.0,
        ))
    })
    .sql()
}

/// An entry of an account: positive is a credit.
pub(super) fn account_entry(
    db: &Connection,
    posting_row: i64,
    account_row: i64,
    amount_minor: i64,
) -> Result<(), LedgerError> {
    db.prepare_cached(
        "-- ledger.account_entry
         INSERT INTO entry (posting_row, account_row, amount_minor) VALUES (?1, ?2, ?3)",
    )
    .and_then(|mut insert| insert.execute((posting_row, account_row, amount_minor)))
    .sql()?;
    Ok(())
}

/// An entry of an envelope's escrow: positive is a credit.
pub(super) fn escrow_entry(
    db: &Connection,
    posting_row: i64,
    envelope_row: i64,
    amount_minor: i64,
) -> Result<(), LedgerError> {
    db.prepare_cached(
        "-- ledger.escrow_entry
         INSERT INTO entry (posting_row, envelope_row, amount_minor) VALUES (?1, ?2, ?3)",
    )
    .and_then(|mut insert| insert.execute((posting_row, envelope_row, amount_minor)))
    .sql()?;
    Ok(())
}

/// Whether an owner's account can give so much.
pub(super) fn check_debit(account: &Account, amount_minor: i64) -> Result<(), LedgerError> {
    if account.available_minor < amount_minor {
        return Err(LedgerError::InsufficientFunds {
            available_minor: account.available_minor,
            needed_minor: amount_minor,
        });
    }
    Ok(())
}

/// Whether an owner's account may take so much more from outside. Refunds don't ask.
pub(super) fn check_credit(account: &Account, amount_minor: i64) -> Result<(), LedgerError> {
    if account.available_minor > AMOUNT_MINOR_MAX - amount_minor {
        return Err(LedgerError::BalanceTooLarge);
    }
    Ok(())
}

/// Whether the outside can owe so much more.
pub(super) fn check_outside(account: &Account, amount_minor: i64) -> Result<(), LedgerError> {
    if account.available_minor < amount_minor - OUTSIDE_MINOR_MAX {
        return Err(LedgerError::BalanceTooLarge);
    }
    Ok(())
}
