//! ListDeadLetters and ReplayDeadLetter: grabs that could not be settled, seen and tried again.
//!
//! # Shape
//! A replay reads the letter, re-derives from the envelope's seed what the share is worth, and has
//! the ledger try again with that amount in the transaction that records the act.
//!
//! # Ordering
//! Every act is on record before it is answered, a look and a refusal too. A repeat of a replay that
//! settled its letter is on record as well, and answers the same without a try.
//!
//! # Not here
//! Why a record could not be settled: the ledger's stable reason.

use red_envelope_proto::v1;

use super::Api;
use super::admin_freeze::said;
use super::admission::Admission;
use super::status::ApiError;
use super::token::Cursor;
use super::wire;
use crate::domain::id::EnvelopeId;
use crate::ledger::{DeadLetterRow, PAGE_ROWS_MAX};

const LETTERS_PER_PAGE: usize = 100;

/// ListDeadLetters.
pub(super) async fn list_dead_letters(
    api: &Api,
    request: v1::ListDeadLettersRequest,
) -> Result<v1::ListDeadLettersResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant_or_all(&request.tenant);
    let size = a.page_size(request.page_size, LETTERS_PER_PAGE, PAGE_ROWS_MAX);
    let page = api.tokens.page("ListDeadLetters", &[&request.tenant]);
    let after = page.cursor(&mut a, &request.page_token);
    let said = said(&mut a, &request.operator, &request.reason);
    let (tenant, said) = a.admit(tenant.zip(said))?;
    let after = after.map_or(i64::MIN, |Cursor(row)| row);
    let act = said.act("list_dead_letters", None);
    let rows = match api.ledger.dead_letters(tenant, after, size).await {
        Ok(rows) => rows,
        Err(error) => return Err(api.refused(act, error.into()).await),
    };
    api.ledger.record_act(act).await?;
    let next = rows.last().filter(|_| rows.len() == size);
    Ok(v1::ListDeadLettersResponse {
        next_page_token: next
            .map(|row| page.token(Cursor(row.row)))
            .unwrap_or_default(),
        dead_letters: rows.into_iter().map(letter).collect(),
    })
}

fn letter(row: DeadLetterRow) -> v1::DeadLetter {
    let amount = row.record.grant.amount_minor;
    v1::DeadLetter {
        dead_letter_id: row.row.to_string(),
        tenant: row.tenant.map(|t| t.to_string()).unwrap_or_default(),
        envelope_id: row.record.envelope.to_string(),
        share_number: row.record.grant.share,
        // Where the envelope is unknown, so is the currency.
        amount: row.currency.map(|currency| wire::money(currency, amount)),
        reason: row.reason,
        try_count: row.tries,
        create_time: Some(wire::timestamp(row.created_at)),
    }
}

/// ReplayDeadLetter.
pub(super) async fn replay_dead_letter(
    api: &Api,
    request: v1::ReplayDeadLetterRequest,
) -> Result<v1::ReplayDeadLetterResponse, ApiError> {
    let mut a = Admission::default();
    let row: Option<i64> = request.dead_letter_id.parse().ok().filter(|row| *row > 0);
    if row.is_none() {
        a.offend("dead_letter_id", "must be an id that ListDeadLetters told");
    }
    let said = said(&mut a, &request.operator, &request.reason);
    let (row, said) = a.admit(row.zip(said))?;
    let act = said.act("replay_dead_letter", None);
    let found = match found(api, row).await {
        Ok(found) => found,
        Err(error) => return Err(api.refused(act, error).await),
    };
    let act = said.act("replay_dead_letter", Some(found.record.envelope));
    let record = &found.record;
    let amount = match found.settled_at {
        // Nothing is tried.
        Some(_) => None,
        None => match amount(api, record.envelope, record.grant.share).await {
            Ok(amount) => amount,
            Err(error) => return Err(api.refused(act, error).await),
        },
    };
    let tried = api
        .ledger
        .replay_dead_letter(row, amount, act.clone())
        .await;
    match tried {
        Ok(left) => Ok(v1::ReplayDeadLetterResponse {
            settled: left.is_none(),
            dead_letter: left.map(letter),
        }),
        Err(error) => Err(api.refused(act, error.into()).await),
    }
}

async fn found(api: &Api, row: i64) -> Result<DeadLetterRow, ApiError> {
    let found = api.ledger.dead_letter(row).await?;
    found.ok_or(ApiError::DeadLetterNotFound)
}

/// What the envelope's seed says of a share. `None`: it says nothing, since there is no such
/// envelope or no such share.
async fn amount(api: &Api, id: EnvelopeId, share: u32) -> Result<Option<i64>, ApiError> {
    let terms = match api.facts.find(id).await {
        Ok(terms) => terms,
        Err(ApiError::NotFound) => return Ok(None),
        Err(error) => return Err(error),
    };
    if share >= terms.share_count {
        return Ok(None);
    }
    let amounts = api.amounts.of(id, &terms).await?;
    let index = usize::try_from(share).unwrap_or(usize::MAX);
    Ok(amounts.get(index).copied())
}
