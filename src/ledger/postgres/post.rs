//! Accounts, postings and entries of all that moves money but for shares, whose claims and accounts are in
//! `settle_post` and `payees`.
//!
//! *Ordering.* Accounts are opened in the order of their names, then locked in the order of their
//! rows, before a balance decides: two such transactions that need the same ones wait, and never for
//! each other. Envelopes are locked before accounts.

use std::collections::{BTreeMap, BTreeSet};

use deadpool_postgres::Transaction;
use tokio_postgres::types::ToSql;

use crate::domain::id::UnixMs;
use crate::domain::money::{AMOUNT_MINOR_MAX, Currency};
use crate::domain::posting::PostingKind;
use crate::ledger::LedgerError;

use super::sql::{self, Fault};

/// What the outside and the reserve may owe: the schema's bound, 1,000 full accounts.
const OUTSIDE_MINOR_MAX: i64 = 9_000_000_000_000_000_000;

/// Whose account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AccountName {
    pub tenant: String,
    /// Empty: the outside.
    pub owner: String,
    pub currency: Currency,
}

impl AccountName {
    pub fn of(tenant: &str, owner: &str, currency: Currency) -> Self {
        Self {
            tenant: tenant.to_owned(),
            owner: owner.to_owned(),
            currency,
        }
    }

    pub fn outside(tenant: &str, currency: Currency) -> Self {
        Self::of(tenant, "", currency)
    }

    fn kind(&self) -> &'static str {
        if self.owner.is_empty() {
            "outside"
        } else {
            "owner"
        }
    }
}

/// An account that this transaction has locked, and what it adds to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    pub row: i64,
    pub available_minor: i64,
    pub added_minor: i64,
}

impl Account {
    /// What it has when this transaction commits.
    pub fn then_minor(&self) -> i64 {
        self.available_minor + self.added_minor
    }
}

/// Accounts of a transaction, locked.
pub(super) struct Accounts {
    by_name: BTreeMap<AccountName, Account>,
}

impl Accounts {
    /// Locks those that there are, and opens none: nobody gets an account by asking.
    pub async fn lock_open(
        tx: &Transaction<'_>,
        names: &BTreeSet<AccountName>,
    ) -> Result<Self, Fault> {
        let found = NameColumns::of(names);
        let found = sql::rows(tx, LOCK_ACCOUNTS, &found.values()).await?;
        let mut by_name = BTreeMap::new();
        for row in &found {
            let name = AccountName {
                tenant: row.try_get(2)?,
                owner: row.try_get(3)?,
                currency: super::rows::currency(row, 4)?,
            };
            let account = Account {
                row: row.try_get(0)?,
                available_minor: row.try_get(1)?,
                added_minor: 0,
            };
            by_name.insert(name, account);
        }
        Ok(Self { by_name })
    }

    /// Opens those that are missing and locks all.
    pub async fn lock(tx: &Transaction<'_>, names: &BTreeSet<AccountName>) -> Result<Self, Fault> {
        let mut accounts = Self::lock_open(tx, names).await?;
        accounts.open(tx, names).await?;
        Ok(accounts)
    }

    /// Opens and locks those of these that are missing. Who opens has locked what there was: so a
    /// transaction that waits for another's opening holds nothing which that one still needs.
    pub async fn open(
        &mut self,
        tx: &Transaction<'_>,
        names: &BTreeSet<AccountName>,
    ) -> Result<(), Fault> {
        let missing = names.iter().filter(|name| self.find(name).is_none());
        let missing: BTreeSet<AccountName> = missing.cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        sql::run(tx, OPEN_ACCOUNTS, &NameColumns::of(&missing).values()).await?;
        let opened = Self::lock_open(tx, &missing).await?;
        if opened.by_name.len() != missing.len() {
            return Err(sql::broken("an account was opened and is not there"));
        }
        self.by_name.extend(opened.by_name);
        Ok(())
    }

    /// One that was opened before this transaction or by it.
    pub fn find(&self, name: &AccountName) -> Option<Account> {
        self.by_name.get(name).copied()
    }

    /// One that was locked.
    pub fn get(&self, name: &AccountName) -> Result<Account, Fault> {
        self.find(name)
            .ok_or_else(|| sql::broken("an account was not locked"))
    }

    /// Adds a signed amount. Answers the account's row.
    pub fn add(&mut self, name: &AccountName, amount_minor: i64) -> Result<i64, Fault> {
        let account = self
            .by_name
            .get_mut(name)
            .ok_or_else(|| sql::broken("an account was not locked"))?;
        account.added_minor += amount_minor;
        Ok(account.row)
    }

    /// Writes what was added, each account once.
    pub async fn write(&self, tx: &Transaction<'_>) -> Result<(), Fault> {
        let moved = || self.by_name.values().filter(|a| a.added_minor != 0);
        let rows: Vec<i64> = moved().map(|account| account.row).collect();
        let added: Vec<i64> = moved().map(|account| account.added_minor).collect();
        if rows.is_empty() {
            return Ok(());
        }
        sql::run(tx, ADD_TO_ACCOUNTS, &[&rows, &added]).await?;
        Ok(())
    }
}

/// Names as the arrays that statements take.
struct NameColumns<'a> {
    tenants: Vec<&'a str>,
    kinds: Vec<&'a str>,
    owners: Vec<&'a str>,
    currencies: Vec<&'a str>,
}

impl<'a> NameColumns<'a> {
    fn of(names: &'a BTreeSet<AccountName>) -> Self {
        Self {
            tenants: names.iter().map(|name| name.tenant.as_str()).collect(),
            kinds: names.iter().map(AccountName::kind).collect(),
            owners: names.iter().map(|name| name.owner.as_str()).collect(),
            currencies: names.iter().map(|name| name.currency.code()).collect(),
        }
    }

    fn values(&self) -> [&(dyn ToSql + Sync); 4] {
        [&self.tenants, &self.kinds, &self.owners, &self.currencies]
    }
}

const OPEN_ACCOUNTS: &str = "-- ledger.open_accounts
    INSERT INTO account (tenant, kind, owner, currency)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) u (t, k, o, c)
    ORDER BY t, k, o, c
    ON CONFLICT ON CONSTRAINT account_is_one DO NOTHING";

const LOCK_ACCOUNTS: &str = "-- ledger.lock_accounts
    SELECT a.row, a.available_minor, a.tenant, a.owner, a.currency
    FROM account a JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[]) u (t, k, o, c)
        ON a.tenant = u.t AND a.kind = u.k AND a.owner = u.o AND a.currency = u.c
    ORDER BY a.row FOR NO KEY UPDATE OF a";

const ADD_TO_ACCOUNTS: &str = "-- ledger.add_to_accounts
    UPDATE account a SET available_minor = a.available_minor + u.added
    FROM unnest($1::bigint[], $2::bigint[]) u (row, added) WHERE a.row = u.row";

/// Why money moves.
#[derive(Clone, Debug)]
pub(super) struct Posting {
    pub tenant: String,
    pub kind: PostingKind,
    pub currency: Currency,
    pub envelope_row: Option<i64>,
    pub share_count: u32,
    pub reference: String,
}

/// Whose side of a posting an entry is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    /// An account's row.
    Account(i64),
    /// An envelope's row.
    Escrow(i64),
}

/// A debit or a credit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub posting_row: i64,
    pub side: Side,
    pub amount_minor: i64,
}

/// Postings with their entries, in the making.
#[derive(Default)]
pub(super) struct Journal {
    postings: Vec<(i64, Posting)>,
    entries: Vec<(i64, Entry)>,
}

impl Journal {
    /// A posting under a number of its own.
    pub fn posting(&mut self, row: i64, posting: Posting) {
        self.postings.push((row, posting));
    }

    /// An entry under a number of its own.
    pub fn entry(&mut self, row: i64, entry: Entry) {
        self.entries.push((row, entry));
    }

    /// Writes all of it, in two statements.
    pub async fn write(&self, tx: &Transaction<'_>, now: UnixMs) -> Result<(), Fault> {
        futures_util::try_join!(self.write_postings(tx, now), self.write_entries(tx))?;
        Ok(())
    }

    async fn write_postings(&self, tx: &Transaction<'_>, now: UnixMs) -> Result<(), Fault> {
        let mut counts = Vec::with_capacity(self.postings.len());
        for (_, posting) in &self.postings {
            counts.push(sql::int(posting.share_count)?);
        }
        let all = || self.postings.iter().map(|(_, posting)| posting);
        let rows: Vec<i64> = self.postings.iter().map(|(row, _)| *row).collect();
        let tenants: Vec<&str> = all().map(|p| p.tenant.as_str()).collect();
        let kinds: Vec<&str> = all().map(|p| p.kind.name()).collect();
        let currencies: Vec<&str> = all().map(|p| p.currency.code()).collect();
        let envelopes: Vec<Option<i64>> = all().map(|p| p.envelope_row).collect();
        let references: Vec<&str> = all().map(|p| p.reference.as_str()).collect();
        let values: sql::Values<'_> = &[
            &rows,
            &tenants,
            &kinds,
            &currencies,
            &envelopes,
            &counts,
            &references,
            &now.0,
        ];
        if !rows.is_empty() {
            sql::run(tx, POSTINGS, values).await?;
        }
        Ok(())
    }

    async fn write_entries(&self, tx: &Transaction<'_>) -> Result<(), Fault> {
        let all = || self.entries.iter().map(|(_, entry)| entry);
        let rows: Vec<i64> = self.entries.iter().map(|(row, _)| *row).collect();
        let postings: Vec<i64> = all().map(|e| e.posting_row).collect();
        let accounts: Vec<Option<i64>> = all()
            .map(|e| match e.side {
                Side::Account(row) => Some(row),
                Side::Escrow(_) => None,
            })
            .collect();
        let escrows: Vec<Option<i64>> = all()
            .map(|e| match e.side {
                Side::Account(_) => None,
                Side::Escrow(row) => Some(row),
            })
            .collect();
        let amounts: Vec<i64> = all().map(|e| e.amount_minor).collect();
        let values: sql::Values<'_> = &[&rows, &postings, &accounts, &escrows, &amounts];
        if !rows.is_empty() {
            sql::run(tx, ENTRIES, values).await?;
        }
        Ok(())
    }
}

const POSTINGS: &str = "-- ledger.postings_of_a_batch
    INSERT INTO posting
        (row, tenant, kind, currency, envelope_row, share_count, reference, posted_at)
    SELECT u.*, $8 FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[],
        $6::integer[], $7::text[]) u";

const ENTRIES: &str = "-- ledger.entries_of_a_batch
    INSERT INTO entry (row, posting_row, account_row, envelope_row, amount_minor)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])";

/// Whether an owner's account can give so much.
pub(super) fn check_debit(account: &Account, amount_minor: i64) -> Result<(), LedgerError> {
    if account.then_minor() < amount_minor {
        return Err(LedgerError::InsufficientFunds {
            available_minor: account.then_minor(),
            needed_minor: amount_minor,
        });
    }
    Ok(())
}

/// Whether an owner's account may take so much more from outside. Refunds don't ask.
pub(super) fn check_credit(account: &Account, amount_minor: i64) -> Result<(), LedgerError> {
    if account.then_minor() > AMOUNT_MINOR_MAX - amount_minor {
        return Err(LedgerError::BalanceTooLarge);
    }
    Ok(())
}

/// Whether the outside can owe so much more.
pub(super) fn check_outside(account: &Account, amount_minor: i64) -> Result<(), LedgerError> {
    if account.then_minor() < amount_minor - OUTSIDE_MINOR_MAX {
        return Err(LedgerError::BalanceTooLarge);
    }
    Ok(())
}
