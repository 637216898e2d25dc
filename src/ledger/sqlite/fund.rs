//! Create: sender → escrow, and the envelope's row.
//!
//! # Shape
//! | phase | what |
//! |---|---|
//! | read | the idempotency row, the sender's account, the next leaf |
//! | decide | replay, another request, too little; id and terms follow from the leaf and the clock |
//! | post | envelope, posting, two entries, balance, idempotency row |
//!
//! # If it crashes here
//! All of it is there or nothing: a leaf is used exactly by the envelope that names it.
//!
//! # Not here
//! Shares: they follow from the seed, and the hot store has them.

use rusqlite::{Connection, OptionalExtension};

use crate::domain::envelope::{Draft, Terms};
use crate::domain::fairness::{Proof, ProofSplit, ProofTerms, SealKeys, ServerSeed};
use crate::domain::id::EnvelopeId;
use crate::domain::money::checked_amount;
use crate::domain::posting::PostingKind;
use crate::ledger::{EnvelopeRow, Fund, Funded, LedgerError};

use super::leaves::{next_leaf, open_batch};
use super::post::{
    AccountName, Posting, account, account_entry, add_to_account, check_debit, escrow_entry,
    posting,
};
use super::rows::{ENVELOPE_COLUMNS, Sql, envelope};
use super::transfer::{RequestKey, made_before, remember};
use super::writer::Books;

pub(super) fn fund(books: &mut Books<'_>, fund: &Fund) -> Result<Funded, LedgerError> {
    // ---- read ----
    let draft = &fund.draft;
    if let Some(before) = funded(books.db, fund)? {
        return Ok(before);
    }
    let key = key(fund);
    let total_minor = checked_amount(draft.total_minor)
        .map_err(|error| LedgerError::Broken(error.to_string()))?;
    let sender_name = AccountName::of(&draft.tenant, &draft.sender, draft.currency);
    let sender = account(books.db, sender_name)?;

    // ---- decide ----
    check_debit(&sender, total_minor)?;
    let leaf = next_leaf(books, &draft.tenant)?;
    let random = leaf
        .seed
        .id_random(draft.tenant.as_str(), leaf.reference.leaf_number);
    let id = EnvelopeId::from_parts(books.now.day(), random);
    let terms = Terms {
        draft: draft.clone(),
        created_at: books.now,
        expires_at: books.now.plus_ms(draft.expires_in_ms),
        leaf: leaf.reference,
    };

    // ---- post ----
    let row = insert_envelope(books, id, &terms)?;
    let sender_row = add_to_account(books.db, sender_name, &sender, -total_minor)?;
    let posting_row = posting(
        books.db,
        &Posting {
            tenant: draft.tenant.as_str(),
            kind: PostingKind::Fund,
            currency: draft.currency,
            envelope_row: Some(row),
            share_count: 0,
            reference: "",
            posted_at: books.now,
        },
    )?;
    account_entry(books.db, posting_row, sender_row, -total_minor)?;
    escrow_entry(books.db, posting_row, row, total_minor)?;
    remember(books.db, key, &fund.request_hash, (posting_row, Some(row)))?;
    Ok(Funded {
        envelope: envelope_at(books.db, Some(row))?,
        replayed: false,
    })
}

/// What the same request funded before.
pub(super) fn funded(db: &Connection, fund: &Fund) -> Result<Option<Funded>, LedgerError> {
    let Some((_, row)) = made_before(db, key(fund), &fund.request_hash)? else {
        return Ok(None);
    };
    Ok(Some(Funded {
        envelope: envelope_at(db, row)?,
        replayed: true,
    }))
}

fn key(fund: &Fund) -> RequestKey<'_> {
    RequestKey {
        tenant: fund.draft.tenant.as_str(),
        owner: fund.draft.sender.as_str(),
        method: "fund",
        request_id: fund.request_id.as_str(),
    }
}

fn insert_envelope(books: &Books<'_>, id: EnvelopeId, terms: &Terms) -> Result<i64, LedgerError> {
    let leaf_number = i64::try_from(terms.leaf.leaf_number)
        .map_err(|_| LedgerError::Broken("there are no more leaves".to_owned()))?;
    books
        .db
        .prepare_cached(
            "-- ledger.insert_envelope
             INSERT INTO envelope
                 (id, day, tenant, sender, currency, terms, leaf_number, share_count,
                  funded_minor, state, created_at, expires_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'funding', ?10, ?11)",
        )
        .and_then(|mut insert| {
            insert.insert((
                id.to_bytes(),
                id.day(),
                terms.tenant.as_str(),
                terms.sender.as_str(),
                terms.currency.code(),
                terms.to_json(),
                leaf_number,
                terms.share_count,
                terms.total_minor,
                terms.created_at.0,
                terms.expires_at.0,
            ))
        })
        .sql()
}

fn envelope_at(db: &Connection, row: Option<i64>) -> Result<EnvelopeRow, LedgerError> {
    db.prepare_cached(&format!(
        "-- ledger.envelope_at\nSELECT {ENVELOPE_COLUMNS} FROM envelope n WHERE n.row = ?1"
    ))
    .and_then(|mut find| find.query_row([row], envelope).optional())
    .sql()?
    .ok_or_else(|| LedgerError::Broken("a request's envelope is missing".to_owned()))
}

/// The seed of an envelope, derived from the sealed secret of its batch.
pub(super) fn server_seed(
    db: &Connection,
    keys: &SealKeys,
    terms: &Terms,
) -> Result<ServerSeed, LedgerError> {
    let (secret, _) = open_batch(db, keys, &terms.tenant, terms.leaf.batch_number)?;
    let seed = secret.committed_seed(terms.tenant.as_str(), &terms.leaf);
    let other = "the terms commit to another seed than their batch makes";
    seed.ok_or_else(|| LedgerError::Broken(other.to_owned()))
}

/// The proof of an envelope. It is verified before it is handed out.
pub(super) fn reveal(
    db: &Connection,
    keys: &SealKeys,
    envelope: &EnvelopeRow,
) -> Result<Proof, LedgerError> {
    let terms = &envelope.terms;
    let (secret, _) = open_batch(db, keys, &terms.tenant, terms.leaf.batch_number)?;
    let listed: Vec<i64> = terms.exclusive.iter().map(|s| s.amount_minor).collect();
    Proof::reveal(proof_terms(envelope.id, terms), &secret, &listed)
        .map_err(|error| LedgerError::Broken(format!("the proof does not verify: {error}")))
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
