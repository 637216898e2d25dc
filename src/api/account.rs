//! Deposit, Withdraw, GetBalance, ListEntries: money in, money out, what is there and why.
//!
//! # Ordering
//! A balance reads what is pending from the hot store first and asks the ledger, in the snapshot
//! that gives the available amount, which of it has no claim yet: a share is never counted twice.
//!
//! # Not here
//! Whose request it is: until identities arrive an owner is believed, on loopback only.

use std::collections::BTreeMap;

use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::status::ApiError;
use super::token::Cursor;
use super::wire;
use crate::domain::id::{PersonId, TenantId};
use crate::domain::money::{Currency, Money};
use crate::ledger::{EntryRow, PAGE_ROWS_MAX, Transfer, Transferred};

/// Bytes of a transfer's reference.
pub const REFERENCE_BYTES_MAX: usize = 128;

const ENTRIES_PER_PAGE: usize = 100;

/// What Deposit and Withdraw have in common.
struct Said<'a> {
    tenant: &'a str,
    owner: &'a str,
    request_id: &'a str,
    amount: Option<&'a v1::Money>,
    reference: &'a str,
}

fn transfer(api: &Api, said: &Said<'_>) -> Result<Transfer, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(said.tenant);
    let owner = a.name("owner", said.owner);
    let request_id = a.name("request_id", said.request_id);
    let code = said.amount.map_or("", |amount| &amount.currency_code);
    let currency = a.currency("amount.currency_code", code, &api.currencies);
    let minor = said.amount.map_or(0, |amount| amount.minor_units);
    let minor = a.amount("amount.minor_units", minor);
    a.text("reference", said.reference, REFERENCE_BYTES_MAX);
    let parts = (|| Some((tenant?, owner?, request_id?, currency?, minor?)))();
    let (tenant, owner, request_id, currency, minor) = a.admit(parts)?;
    Ok(Transfer {
        tenant,
        owner,
        request_id,
        amount: Money { currency, minor },
        reference: said.reference.to_owned(),
    })
}

/// Deposit.
pub(super) async fn deposit(
    api: &Api,
    request: v1::DepositRequest,
) -> Result<v1::DepositResponse, ApiError> {
    let said = Said {
        tenant: &request.tenant,
        owner: &request.owner,
        request_id: &request.request_id,
        amount: request.amount.as_ref(),
        reference: &request.reference,
    };
    let transfer = transfer(api, &said)?;
    let done = api.ledger.deposit(transfer.clone()).await?;
    let (posting_id, balance) = after(api, transfer, done).await?;
    Ok(v1::DepositResponse {
        posting_id,
        balance: Some(balance),
        replayed: done.replayed,
    })
}

/// Withdraw.
pub(super) async fn withdraw(
    api: &Api,
    request: v1::WithdrawRequest,
) -> Result<v1::WithdrawResponse, ApiError> {
    let said = Said {
        tenant: &request.tenant,
        owner: &request.owner,
        request_id: &request.request_id,
        amount: request.amount.as_ref(),
        reference: &request.reference,
    };
    let transfer = transfer(api, &said)?;
    let done = api.ledger.withdraw(transfer.clone()).await?;
    let (posting_id, balance) = after(api, transfer, done).await?;
    Ok(v1::WithdrawResponse {
        posting_id,
        balance: Some(balance),
        replayed: done.replayed,
    })
}

async fn after(
    api: &Api,
    transfer: Transfer,
    done: Transferred,
) -> Result<(String, v1::Balance), ApiError> {
    let currency = transfer.amount.currency;
    let balances = balances(api, transfer.tenant, transfer.owner).await?;
    let sums = balances.get(&currency).copied().unwrap_or_default();
    Ok((done.posting.to_string(), sums.to_wire(currency)))
}

/// What an owner has in one currency, in minor units.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    available: i64,
    pending: i64,
    held: i64,
}

impl Sums {
    fn to_wire(self, currency: Currency) -> v1::Balance {
        v1::Balance {
            available: Some(wire::money(currency, self.available)),
            pending: Some(wire::money(currency, self.pending)),
            held: Some(wire::money(currency, self.held)),
        }
    }
}

async fn balances(
    api: &Api,
    tenant: TenantId,
    owner: PersonId,
) -> Result<BTreeMap<Currency, Sums>, ApiError> {
    let pending = api.gated.pending(tenant.clone(), owner.clone()).await?;
    let pairs = pending
        .iter()
        .map(|share| (share.envelope, share.grant.share))
        .collect();
    let (rows, unpaid) = api.ledger.balances(tenant, owner, pairs).await?;
    let mut balances: BTreeMap<Currency, Sums> = BTreeMap::new();
    for row in rows {
        let sums = balances.entry(row.currency).or_default();
        sums.available = row.available_minor;
        sums.held = row.held_minor;
    }
    for (share, _) in pending.iter().zip(unpaid).filter(|(_, unpaid)| *unpaid) {
        let sums = balances.entry(share.terms.currency).or_default();
        sums.pending = sums.pending.saturating_add(share.grant.amount_minor);
    }
    Ok(balances)
}

/// GetBalance.
pub(super) async fn get_balance(
    api: &Api,
    request: v1::GetBalanceRequest,
) -> Result<v1::GetBalanceResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let owner = a.name("owner", &request.owner);
    let only = only_currency(&mut a, api, &request.currency_code);
    let (tenant, owner) = a.admit(tenant.zip(owner))?;
    let mut balances = balances(api, tenant, owner).await?;
    if let Some(currency) = only {
        // Who asks for a currency is told of it, also where there is nothing.
        balances.entry(currency).or_default();
        balances.retain(|held, _| *held == currency);
    }
    let balances = balances.into_iter();
    Ok(v1::GetBalanceResponse {
        balances: balances
            .map(|(currency, sums)| sums.to_wire(currency))
            .collect(),
    })
}

fn only_currency(a: &mut Admission, api: &Api, code: &str) -> Option<Currency> {
    if code.is_empty() {
        return None;
    }
    a.currency("currency_code", code, &api.currencies)
}

/// ListEntries.
pub(super) async fn list_entries(
    api: &Api,
    request: v1::ListEntriesRequest,
) -> Result<v1::ListEntriesResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let owner = a.name("owner", &request.owner);
    let only = only_currency(&mut a, api, &request.currency_code);
    let size = a.page_size(request.page_size, ENTRIES_PER_PAGE, PAGE_ROWS_MAX);
    let page = api.tokens.page(
        "ListEntries",
        &[
            tenant.as_ref().map_or("", TenantId::as_str),
            &request.owner,
            &request.currency_code,
        ],
    );
    let before = page.cursor(&mut a, &request.page_token);
    let (tenant, owner) = a.admit(tenant.zip(owner))?;
    let before = before.map(|Cursor(row)| row);
    let rows = api
        .ledger
        .entries(tenant, owner, only, before, size)
        .await?;
    let next = rows.last().filter(|_| rows.len() == size);
    Ok(v1::ListEntriesResponse {
        next_page_token: next
            .map(|row| page.token(Cursor(row.entry)))
            .unwrap_or_default(),
        entries: rows.into_iter().map(entry).collect(),
    })
}

fn entry(row: EntryRow) -> v1::Entry {
    v1::Entry {
        entry_id: row.entry.to_string(),
        posting_id: row.posting.to_string(),
        kind: wire::entry_kind(row.kind).into(),
        amount: Some(wire::money(row.amount.currency, row.amount.minor)),
        post_time: Some(wire::timestamp(row.posted_at)),
        envelope_id: row.envelope.map(|id| id.to_string()).unwrap_or_default(),
        share_number: row.share,
        reference: row.reference,
    }
}
