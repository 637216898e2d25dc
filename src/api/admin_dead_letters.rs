//! ListDeadLetters, ReplayDeadLetter and DismissDeadLetter: grabs that could not be settled, seen, tried
//! again, and let go of.
//!
//! # Shape
//! A replay reads the letter, re-derives from the envelope's seed what the share is worth, and has
//! the ledger try again with that amount in the transaction that records the act. A dismissal does the
//! same, and asks the hot store before whether it has granted what the letter says: then somebody was
//! told, whatever the seed says. (It is not asked of a share that the terms refuse, or that is another's by a
//! claim.) Who was granted the share with another amount is paid by the reconciler
//! once the letter is out of its way, and the close waits for that.
//!
//! Where the hot store has granted what the letter says and only the amount is not the seed's, no other
//! act ends it: then a replay that corrects the amount pays what the seed says, to whom the store says.
//!
//! A hot store that has lost an open envelope says nothing of it, so the envelope is brought back first.
//! One that ended without being whole there (a tombstone) says that nothing was granted: it never will say
//! more, and what seed or terms contradict is not owed as it is written.
//!
//! # Ordering
//! Every act is on record before it is answered, a look and a refusal too. A repeat of a replay that
//! settled its letter is on record as well, and answers the same without a try.
//!
//! # Not here
//! Why a record could not be settled: the ledger's stable reason.

use std::sync::Arc;

use red_envelope_proto::v1;

use super::Api;
use super::admin_freeze::{Said, said};
use super::admission::Admission;
use super::status::ApiError;
use super::token::Cursor;
use super::wire;
use crate::domain::envelope::{BookState, Terms};
use crate::domain::grab::OutboxRecord;
use crate::ledger::{AdminAct, DeadLetterRow, PAGE_ROWS_MAX};
use crate::publish::{PublishError, must_revive};

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

/// What an operator asks of one letter.
struct Asked {
    row: i64,
    said: Said,
}

fn admit(id: &str, operator: &str, reason: &str) -> Result<Asked, ApiError> {
    let mut a = Admission::default();
    let row: Option<i64> = id.parse().ok().filter(|row| *row > 0);
    if row.is_none() {
        a.offend("dead_letter_id", "must be an id that ListDeadLetters told");
    }
    let said = said(&mut a, operator, reason);
    let (row, said) = a.admit(row.zip(said))?;
    Ok(Asked { row, said })
}

/// ReplayDeadLetter.
pub(super) async fn replay_dead_letter(
    api: &Api,
    request: v1::ReplayDeadLetterRequest,
) -> Result<v1::ReplayDeadLetterResponse, ApiError> {
    let Asked { row, said } = admit(&request.dead_letter_id, &request.operator, &request.reason)?;
    let act = said.act("replay_dead_letter", None);
    let found = match found(api, row).await {
        Ok(found) => found,
        Err(error) => return Err(api.refused(act, error).await),
    };
    let act = said.act("replay_dead_letter", Some(found.record.envelope));
    match replayed(api, &found, request.correct_amount, act.clone()).await {
        Ok(left) => Ok(v1::ReplayDeadLetterResponse {
            settled: left.as_ref().is_none_or(DeadLetterRow::is_corrected),
            dead_letter: left.map(letter),
        }),
        Err(error) => Err(api.refused(act, error).await),
    }
}

async fn replayed(
    api: &Api,
    found: &DeadLetterRow,
    correct: bool,
    act: AdminAct,
) -> Result<Option<DeadLetterRow>, ApiError> {
    let said = says(api, found).await?;
    let amount = said.as_ref().map(|said| said.amount_minor);
    let corrigible = said.is_some_and(|said| found.is_corrigible(&said.terms, amount));
    if !(correct && corrigible) {
        return Ok(api
            .ledger
            .replay_dead_letter(found.row, amount, act)
            .await?);
    }
    if granted(api, &found.record).await? != Granted::So {
        return Err(ApiError::DeadLetterNotGranted);
    }
    let corrected = api.ledger.correct_dead_letter(found.row, amount, act);
    Ok(corrected.await?)
}

/// DismissDeadLetter.
pub(super) async fn dismiss_dead_letter(
    api: &Api,
    request: v1::DismissDeadLetterRequest,
) -> Result<v1::DismissDeadLetterResponse, ApiError> {
    let Asked { row, said } = admit(&request.dead_letter_id, &request.operator, &request.reason)?;
    let act = said.act("dismiss_dead_letter", None);
    let found = match found(api, row).await {
        Ok(found) => found,
        Err(error) => return Err(api.refused(act, error).await),
    };
    let act = said.act("dismiss_dead_letter", Some(found.record.envelope));
    match dismissed(api, &found, act.clone()).await {
        Ok(row) => Ok(v1::DismissDeadLetterResponse {
            dead_letter: Some(letter(row)),
        }),
        Err(error) => Err(api.refused(act, error).await),
    }
}

async fn dismissed(
    api: &Api,
    found: &DeadLetterRow,
    act: AdminAct,
) -> Result<DeadLetterRow, ApiError> {
    let said = says(api, found).await?;
    let is_refused = said
        .as_ref()
        .is_some_and(|said| found.refused_by(&said.terms).is_some());
    // Of a share that is another's by a claim, or that the terms give nobody of this name, the hot store has
    // nothing to say.
    let is_asked = found.settled_at.is_none() && !found.is_of_the_reserve() && !is_refused;
    if is_asked && granted(api, &found.record).await? != Granted::NotSo {
        return Err(ApiError::DeadLetterStands);
    }
    let amount = said.map(|said| said.amount_minor);
    let dismissed = api.ledger.dismiss_dead_letter(found.row, amount, act);
    let letter = dismissed.await?;
    match letter.settled_at {
        None => Err(ApiError::DeadLetterStands),
        Some(_) if !letter.is_dismissed() => Err(ApiError::DeadLetterSettled),
        Some(_) => Ok(letter),
    }
}

/// What the hot store says of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Granted {
    /// It has granted what the record says.
    So,
    /// It has not.
    NotSo,
    /// It does not hold the envelope, or there is none.
    Unknown,
}

async fn granted(api: &Api, record: &OutboxRecord) -> Result<Granted, ApiError> {
    let (id, share) = (record.envelope, record.grant.share);
    let Some(row) = api.ledger.envelopes(vec![id]).await?.pop().flatten() else {
        return Ok(Granted::Unknown);
    };
    // All of it is paid or refunded, and the hot store may have forgotten it.
    if matches!(row.state, BookState::Closed(_)) {
        return Ok(Granted::NotSo);
    }
    let mut page = api.hot.grants(id, share, 1).await?;
    if page.is_none() && must_revive(&row, None) {
        match api.publisher.publish(id).await {
            Ok(_) => page = api.hot.grants(id, share, 1).await?,
            // Its row is damaged, so it is never brought back.
            Err(PublishError::Broken(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(match page {
        None => Granted::Unknown,
        Some(page) if page.iter().any(|held| record.is_of(held)) => Granted::So,
        Some(_) => Granted::NotSo,
    })
}

async fn found(api: &Api, row: i64) -> Result<DeadLetterRow, ApiError> {
    let found = api.ledger.dead_letter(row).await?;
    found.ok_or(ApiError::DeadLetterNotFound)
}

/// What the books say of a letter's share.
struct Says {
    terms: Arc<Terms>,
    /// By the envelope's seed.
    amount_minor: i64,
}

/// `None`: they say nothing, since there is no such envelope or no such share; or the letter is settled, and
/// nothing is asked.
async fn says(api: &Api, letter: &DeadLetterRow) -> Result<Option<Says>, ApiError> {
    if letter.settled_at.is_some() {
        return Ok(None);
    }
    let (id, share) = (letter.record.envelope, letter.record.grant.share);
    // By the books' terms: whoever forged a record may have written into the hot store's, too.
    let Some(row) = api.ledger.envelopes(vec![id]).await?.pop().flatten() else {
        return Ok(None);
    };
    let terms = row.terms;
    if share >= terms.share_count {
        return Ok(None);
    }
    let amounts = api.amounts.of(id, &terms).await?;
    let index = usize::try_from(share).unwrap_or(usize::MAX);
    let amount = amounts.get(index).copied();
    Ok(amount.map(|amount_minor| Says {
        terms,
        amount_minor,
    }))
}
