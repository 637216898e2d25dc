//! Create: sender → escrow, and the envelope's row, for many envelopes in one transaction.
//!
//! # Shape
//! | phase | what |
//! |---|---|
//! | read | what these requests made before; the senders' accounts, locked; where leaves go on |
//! | decide | one by one, in order: replay, another request, too little; id and terms follow from the leaf and the clock |
//! | post | envelopes, postings, entries, balances, idempotency rows: a statement each |
//!
//! # Bounds
//! [`FUNDS_PER_TRANSACTION_MAX`] envelopes.
//!
//! # If it crashes here
//! All of it is there or nothing: a leaf is used exactly by the envelope that names it.
//!
//! # Not here
//! Shares: they follow from the seed, and the hot store has them. Waiting for others: `together`.

use std::collections::BTreeMap;
use std::sync::Arc;

use deadpool_postgres::{GenericClient, Transaction};

use crate::domain::envelope::{BookState, Draft, Terms};
use crate::domain::fairness::{Proof, ProofSplit, ProofTerms};
use crate::domain::id::{EnvelopeId, TenantId, UnixMs};
use crate::domain::money::checked_amount;
use crate::domain::posting::PostingKind;
use crate::ledger::{EnvelopeRow, Fund, Funded, LedgerError};

use super::books::{Books, Desk, write};
use super::leaves::{self, open_batch};
use super::post::{AccountName, Accounts, Entry, Journal, Posting, Side, check_debit};
use super::rows::{envelope, envelope_columns, hash};
use super::sql::{self, Fault, POSTING_NUMBERS, broken, int};
use super::together::{self, Work};
use super::transfer::{RequestKey, remember};

/// Envelopes that one transaction funds: their rows are read and written by ten statements, however
/// many they are, and above this the first ones wait longer than the statements saved.
const FUNDS_PER_TRANSACTION_MAX: usize = 256;

/// Creates that wait: two seconds' at 5,000/s.
const QUEUED_FUNDS_MAX: usize = 10_000;

impl Work for Fund {
    type Answer = Funded;
    const TOGETHER_MAX: usize = FUNDS_PER_TRANSACTION_MAX;
    const QUEUED_MAX: usize = QUEUED_FUNDS_MAX;

    async fn do_all(books: &Books, funds: &[Self]) -> together::Answers<Self> {
        write!(books, |tx| fund(&tx, &books.desk, funds))
    }
}

/// What became of each request, in order.
type Answers = Vec<Option<Result<Funded, LedgerError>>>;

/// Funds what these requests ask for; one answer each, in order.
async fn fund(
    tx: &Transaction<'_>,
    desk: &Desk,
    funds: &[Fund],
) -> Result<Vec<Result<Funded, LedgerError>>, Fault> {
    // ---- read ----
    let mut answers: Answers = made_before(tx, funds).await?;
    let fresh: Vec<usize> = (0..funds.len())
        .filter(|at| answers[*at].is_none())
        .collect();
    if !fresh.is_empty() {
        let names = fresh
            .iter()
            .map(|at| sender_of(&funds[*at].draft))
            .collect();
        let mut accounts = Accounts::lock_open(tx, &names).await?;

        // ---- decide ----
        let first = decide(funds, &fresh, &mut accounts, &mut answers);
        replay_instead(tx, funds, &mut answers).await?;
        let paid: Vec<usize> = fresh
            .iter()
            .copied()
            .filter(|at| answers[*at].is_none())
            .collect();
        let paid: Vec<usize> = paid.into_iter().filter(|at| first[at] == *at).collect();
        let made = make(tx, desk, funds, &paid).await?;

        // ---- post ----
        post(tx, desk, funds, &made, &mut accounts).await?;
        for (at, row) in made {
            answers[at] = Some(Ok(funded_as(row.envelope, false)));
        }
        // The same request twice in a batch: the second one is a repetition of the first.
        for at in fresh {
            if answers[at].is_none() {
                answers[at] = repeated(funds, at, &first, &answers);
            }
        }
    }
    let missing = || Err(LedgerError::Broken("a request has no answer".to_owned()));
    Ok(answers
        .into_iter()
        .map(|answer| answer.unwrap_or_else(missing))
        .collect())
}

/// Who has too little may have it because the same request took effect between the first look and the
/// lock on the account: then it is answered as a repetition.
async fn replay_instead(
    tx: &Transaction<'_>,
    funds: &[Fund],
    answers: &mut Answers,
) -> Result<(), Fault> {
    let is_refused = |answer: &Option<_>| matches!(answer, Some(Err(_)));
    if !answers.iter().any(is_refused) {
        return Ok(());
    }
    for (answer, made) in answers.iter_mut().zip(made_before(tx, funds).await?) {
        if is_refused(answer) && made.is_some() {
            *answer = made;
        }
    }
    Ok(())
}

fn funded_as(envelope: EnvelopeRow, replayed: bool) -> Funded {
    Funded { envelope, replayed }
}

fn repeated(
    funds: &[Fund],
    at: usize,
    first: &BTreeMap<usize, usize>,
    answers: &Answers,
) -> Option<Result<Funded, LedgerError>> {
    let before = *first.get(&at)?;
    if funds[before].request_hash != funds[at].request_hash {
        return Some(Err(LedgerError::RequestIdReused));
    }
    let answer = answers[before].as_ref()?;
    let repeated = |funded: &Funded| funded_as(funded.envelope.clone(), true);
    Some(answer.as_ref().map(repeated).map_err(Clone::clone))
}

/// Refuses who has too little, and debits the others. Answers, for each fresh request, the first one
/// of the same key.
fn decide(
    funds: &[Fund],
    fresh: &[usize],
    accounts: &mut Accounts,
    answers: &mut Answers,
) -> BTreeMap<usize, usize> {
    let mut of_key = BTreeMap::new();
    let mut first = BTreeMap::new();
    for at in fresh {
        let fund = &funds[*at];
        let key = key(fund);
        let before = *of_key
            .entry((key.tenant, key.owner, key.request_id))
            .or_insert(*at);
        first.insert(*at, before);
        if before != *at {
            continue;
        }
        if let Err(error) = debit(fund, accounts) {
            answers[*at] = Some(Err(error));
        }
    }
    first
}

fn debit(fund: &Fund, accounts: &mut Accounts) -> Result<(), LedgerError> {
    let total_minor = checked_amount(fund.draft.total_minor)
        .map_err(|error| LedgerError::Broken(error.to_string()))?;
    let name = sender_of(&fund.draft);
    let Some(account) = accounts.find(&name) else {
        return Err(LedgerError::InsufficientFunds {
            available_minor: 0,
            needed_minor: total_minor,
        });
    };
    check_debit(&account, total_minor)?;
    accounts
        .add(&name, -total_minor)
        .map(drop)
        .map_err(Into::into)
}

fn sender_of(draft: &Draft) -> AccountName {
    AccountName::of(draft.tenant.as_str(), draft.sender.as_str(), draft.currency)
}

/// An envelope that is about to be inserted.
struct Made {
    envelope: EnvelopeRow,
    posting_row: i64,
    entry_rows: [i64; 2],
}

/// Leaves, ids, terms and numbers.
async fn make(
    tx: &Transaction<'_>,
    desk: &Desk,
    funds: &[Fund],
    paid: &[usize],
) -> Result<Vec<(usize, Made)>, Fault> {
    let now = desk.now();
    let mut of_tenant = BTreeMap::<&TenantId, Vec<usize>>::new();
    for at in paid {
        of_tenant
            .entry(&funds[*at].draft.tenant)
            .or_default()
            .push(*at);
    }
    let mut envelope_rows = sql::envelope_numbers(tx, now.day(), paid.len()).await?;
    let mut posting_rows = sql::numbers(tx, POSTING_NUMBERS, paid.len()).await?;
    let mut entry_rows = sql::entry_numbers(tx, 2 * paid.len()).await?;
    let mut made = Vec::with_capacity(paid.len());
    // Tenants in their order, so that two transactions don't wait for each other.
    for (tenant, requests) in of_tenant {
        let mut leaf_number = leaves::next_number(tx, tenant).await?;
        let mut opened = None;
        for at in requests {
            let leaf = leaves::leaf(tx, desk, tenant, leaf_number, &mut opened).await?;
            let random = leaf.seed.id_random(tenant.as_str(), leaf_number);
            let terms = Terms {
                draft: funds[at].draft.clone(),
                created_at: now,
                expires_at: now.plus_ms(funds[at].draft.expires_in_ms),
                leaf: leaf.reference,
            };
            let number = |rows: &mut std::vec::IntoIter<i64>| {
                rows.next()
                    .ok_or_else(|| broken("there are no more numbers"))
            };
            let envelope = new_row(number(&mut envelope_rows)?, now, random, terms);
            made.push((
                at,
                Made {
                    envelope,
                    posting_row: number(&mut posting_rows)?,
                    entry_rows: [number(&mut entry_rows)?, number(&mut entry_rows)?],
                },
            ));
            leaf_number += 1;
        }
    }
    Ok(made)
}

fn new_row(row: i64, now: UnixMs, random: [u8; 14], terms: Terms) -> EnvelopeRow {
    EnvelopeRow {
        id: EnvelopeId::from_parts(now.day(), random),
        row,
        terms: Arc::new(terms),
        state: BookState::Funding,
        frozen: false,
        gathered: false,
        settled_count: 0,
        settled_minor: 0,
        declined_count: 0,
        refunded_minor: 0,
        made_good_minor: 0,
        set_aside_count: 0,
        closed_at: None,
    }
}

async fn post(
    tx: &Transaction<'_>,
    desk: &Desk,
    funds: &[Fund],
    made: &[(usize, Made)],
    accounts: &mut Accounts,
) -> Result<(), Fault> {
    if made.is_empty() {
        return Ok(());
    }
    insert_envelopes(tx, made).await?;
    let mut journal = Journal::default();
    let mut requests = Vec::with_capacity(made.len());
    for (at, made) in made {
        let draft = &funds[*at].draft;
        let envelope_row = made.envelope.row;
        let posting_row = made.posting_row;
        let posting = Posting {
            tenant: draft.tenant.as_str().to_owned(),
            kind: PostingKind::Fund,
            currency: draft.currency,
            envelope_row: Some(envelope_row),
            share_count: 0,
            reference: String::new(),
        };
        journal.posting(posting_row, posting);
        let sender = accounts.get(&sender_of(draft))?.row;
        let sides = [
            (Side::Account(sender), -draft.total_minor),
            (Side::Escrow(envelope_row), draft.total_minor),
        ];
        for (row, (side, amount_minor)) in made.entry_rows.into_iter().zip(sides) {
            let entry = Entry {
                posting_row,
                side,
                amount_minor,
            };
            journal.entry(row, entry);
        }
        let hash = funds[*at].request_hash;
        requests.push((key(&funds[*at]), hash, posting_row, Some(envelope_row)));
    }
    journal.write(tx, desk.now()).await?;
    futures_util::try_join!(accounts.write(tx), remember(tx, &requests))?;
    Ok(())
}

const INSERT_ENVELOPES: &str = "-- ledger.insert_envelopes
    INSERT INTO envelope
        (row, id, day, tenant, sender, currency, terms, leaf_number, share_count, funded_minor,
         created_at, expires_at, state)
    SELECT u.*, 'funding' FROM unnest($1::bigint[], $2::bytea[], $3::integer[], $4::text[],
        $5::text[], $6::text[], $7::text[], $8::bigint[], $9::integer[], $10::bigint[],
        $11::bigint[], $12::bigint[]) u";

async fn insert_envelopes(tx: &Transaction<'_>, made: &[(usize, Made)]) -> Result<(), Fault> {
    let all = || made.iter().map(|(_, made)| &made.envelope);
    let (mut leaf_numbers, mut share_counts) = (Vec::new(), Vec::new());
    for envelope in all() {
        let leaf = i64::try_from(envelope.terms.leaf.leaf_number);
        leaf_numbers.push(leaf.map_err(|_| broken("there are no more leaves"))?);
        share_counts.push(int(envelope.terms.share_count)?);
    }
    let rows: Vec<i64> = all().map(|e| e.row).collect();
    let ids: Vec<Vec<u8>> = all().map(|e| e.id.to_bytes().to_vec()).collect();
    let days: Vec<i32> = all().map(|e| i32::from(e.id.day())).collect();
    let tenants: Vec<&str> = all().map(|e| e.terms.tenant.as_str()).collect();
    let senders: Vec<&str> = all().map(|e| e.terms.sender.as_str()).collect();
    let currencies: Vec<&str> = all().map(|e| e.terms.currency.code()).collect();
    let terms: Vec<String> = all().map(|e| e.terms.to_json()).collect();
    let totals: Vec<i64> = all().map(|e| e.terms.total_minor).collect();
    let created: Vec<i64> = all().map(|e| e.terms.created_at.0).collect();
    let expiring: Vec<i64> = all().map(|e| e.terms.expires_at.0).collect();
    let values: sql::Values<'_> = &[
        &rows,
        &ids,
        &days,
        &tenants,
        &senders,
        &currencies,
        &terms,
        &leaf_numbers,
        &share_counts,
        &totals,
        &created,
        &expiring,
    ];
    sql::run(tx, INSERT_ENVELOPES, values).await?;
    Ok(())
}

/// What these requests made before: the envelope as it stands; `None` where nothing.
pub(super) async fn made_before(db: &impl GenericClient, funds: &[Fund]) -> Result<Answers, Fault> {
    let keys: Vec<RequestKey<'_>> = funds.iter().map(key).collect();
    let tenants: Vec<&str> = keys.iter().map(|key| key.tenant).collect();
    let owners: Vec<&str> = keys.iter().map(|key| key.owner).collect();
    let request_ids: Vec<&str> = keys.iter().map(|key| key.request_id).collect();
    let found = sql::rows(
        db,
        concat!(
            "-- ledger.funded_before\nSELECT ",
            envelope_columns!(),
            ", i.request_hash, u.place
             FROM unnest($1::text[], $2::text[], $3::text[])
                 WITH ORDINALITY u (tenant, owner, request_id, place)
             JOIN idempotency i ON i.tenant = u.tenant AND i.owner = u.owner AND i.method = 'fund'
                 AND i.request_id = u.request_id
             JOIN envelope n ON n.row = i.envelope_row"
        ),
        &[&tenants, &owners, &request_ids],
    )
    .await?;
    let mut answers: Answers = funds.iter().map(|_| None).collect();
    for row in found {
        let place: i64 = row.try_get(15)?;
        let at = usize::try_from(place - 1).map_err(|_| broken("a place is negative"))?;
        answers[at] = Some(if hash(&row, 14)? == funds[at].request_hash {
            Ok(funded_as(envelope(&row)?, true))
        } else {
            Err(LedgerError::RequestIdReused)
        });
    }
    Ok(answers)
}

fn key(fund: &Fund) -> RequestKey<'_> {
    RequestKey {
        tenant: fund.draft.tenant.as_str(),
        owner: fund.draft.sender.as_str(),
        method: "fund",
        request_id: fund.request_id.as_str(),
    }
}

/// The proof of an envelope. It is verified before it is handed out.
pub(super) async fn reveal(
    db: &impl GenericClient,
    desk: &Desk,
    envelope: &EnvelopeRow,
) -> Result<Proof, Fault> {
    let terms = &envelope.terms;
    let (secret, _) = open_batch(db, desk, &terms.tenant, terms.leaf.batch_number).await?;
    let listed: Vec<i64> = terms.exclusive.iter().map(|s| s.amount_minor).collect();
    Proof::reveal(proof_terms(envelope.id, terms), &secret, &listed)
        .map_err(|error| broken(format!("the proof does not verify: {error}")))
}

fn proof_terms(id: EnvelopeId, terms: &Terms) -> ProofTerms {
    let draft: &Draft = terms;
    let exclusive = draft.split.is_none();
    ProofTerms {
        tenant: draft.tenant.to_string(),
        envelope_id: id.to_bytes(),
        leaf_number: terms.leaf.leaf_number,
        client_nonce: draft.client_nonce.clone(),
        currency_code: draft.currency.code().to_owned(),
        total_minor: draft.total_minor,
        share_count: draft.share_count,
        min_minor: if exclusive { 1 } else { draft.min_minor },
        max_minor: if exclusive {
            draft.total_minor
        } else {
            draft.max_minor
        },
        split: draft
            .split
            .clone()
            .map_or(ProofSplit::Exclusive, ProofSplit::from),
    }
}
