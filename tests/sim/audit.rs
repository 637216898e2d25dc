//! What must be so after every step, and at the end.

use std::collections::{BTreeMap, BTreeSet};

use red_envelope::domain::envelope::BookState;
use red_envelope::domain::id::EnvelopeId;
use red_envelope::ledger::conformance::person;
use red_envelope_history::Rule;

use crate::people::Told;
use crate::stores::Stores;
use crate::striped_audit;

/// What was granted, paid and refunded of an envelope is never more than what was put in; and a debt
/// leaves the outbox only when it is in the books.
pub fn at_any_time(stores: &Stores) -> Result<(), String> {
    if let Some(striped) = &stores.striped {
        return striped_audit::at_any_time(striped, &stores.books);
    }
    let (hot, books) = (&stores.hot, &stores.books);
    let entries = hot.outboxes.values().flat_map(|outbox| &outbox.entries);
    let records = entries.flat_map(|entry| &entry.records);
    let owed: BTreeSet<_> = records.map(|r| (r.envelope, r.grant.share)).collect();
    for (id, page) in &books.pages {
        let sheet = &page.sheet;
        let granted = hot.granted.get(id).into_iter().flatten();
        let mut given = sheet.remainder;
        for (share, held) in granted {
            given += held.grant.amount_minor;
            let aside = sheet.parked.iter().chain(&sheet.letters);
            let known = sheet.claims.contains_key(share)
                || aside.clone().any(|other| other.grant.share == *share);
            if !known && !owed.contains(&(*id, *share)) && !hot.lost.contains(&(*id, *share)) {
                return Err(format!("share {share} of {id} is owed by nobody"));
            }
        }
        if given > sheet.total {
            return Err(format!(
                "{given} of {} of {id} were given away",
                sheet.total
            ));
        }
        if let Some(letter) = sheet.letters.first() {
            return Err(format!("{letter:?} of {id} can't be paid"));
        }
    }
    Ok(())
}

/// Whether the judge's verdict stands: who was never told of a win that is lost may be told anything, and what
/// he had is left again. And a clock that goes back has one stripe expire, and the first one go on: of those two
/// servers each has its own. An end that a stripe has seen by a clock that was ahead is lost with it: it goes on
/// where it comes back by a clock that was set back.
pub fn may_tell(stores: &Stores, rule: Rule) -> bool {
    let Some(striped) = &stores.striped else {
        return true;
    };
    let by_clock = [Rule::GrantAfterClose, Rule::OutOfPlace];
    if striped.clock_jumped && by_clock.contains(&rule) {
        return false;
    }
    if striped.watch.losses == 0 {
        return true;
    }
    if striped.clock_jumped && rule == Rule::SentAway {
        return false;
    }
    let counted = [
        Rule::SharesSkipped,
        Rule::EmptyTooEarly,
        Rule::GrantAfterEmpty,
    ];
    striped.keeps_told && !counted.contains(&rule)
}

/// What was funded before the storm ended is published, unless it is over.
pub fn published(stores: &Stores, before_ms: i64) -> Result<(), String> {
    for (id, page) in &stores.books.pages {
        let early = page.terms.created_at.0 <= before_ms;
        let lives = page.terms.expires_at.0 > stores.now_ms && !page.sheet.frozen;
        if early && lives && page.state == BookState::Funding {
            let striped = stores.striped.as_ref();
            let where_it_stands = striped.map_or_else(String::new, |striped| striped.tell(*id));
            return Err(format!("{id} is funded and not published{where_it_stands}"));
        }
    }
    Ok(())
}

/// Everything that was granted was paid once, as it was told, and the rest went back.
pub fn at_the_end(
    stores: &Stores,
    told: &BTreeMap<(usize, usize), Told>,
    ids: &[Option<EnvelopeId>],
) -> Result<(), String> {
    at_any_time(stores)?;
    let (hot, books) = (&stores.hot, &stores.books);
    let mut accounts: BTreeMap<_, i64> = BTreeMap::new();
    for (id, page) in &books.pages {
        let paid = || {
            books
                .paid
                .iter()
                .filter(|(of, _)| of == id)
                .map(|(_, held)| held)
        };
        let amounts: i64 = paid().map(|held| held.grant.amount_minor).sum();
        let (total, back) = (page.sheet.total, page.sheet.remainder);
        if amounts + back != total {
            return Err(format!("{id}: {amounts} paid, {back} back, {total} funded"));
        }
        let shares: BTreeSet<_> = paid().map(|held| held.grant.share).collect();
        let people: BTreeSet<_> = paid().map(|held| &held.grabber).collect();
        if shares.len() != paid().count() || people.len() != paid().count() {
            return Err(format!("{id}: a share or a grabber was paid twice"));
        }
        for held in paid() {
            let granted = hot
                .granted
                .get(id)
                .and_then(|all| all.get(&held.grant.share));
            if let Some(striped) = &stores.striped {
                striped_audit::paid(&striped.watch, *id, held)?;
            } else if granted != Some(held) {
                return Err(format!("{id}: {held:?} was paid and {granted:?} granted"));
            }
            *accounts.entry(held.grabber.clone()).or_default() += held.grant.amount_minor;
        }
        let granted = match &stores.striped {
            Some(striped) => striped.watch.standing_count(*id),
            None => hot.granted.get(id).map_or(0, BTreeMap::len),
        };
        if granted != paid().count() {
            return Err(format!("{id}: not everything that was granted was paid"));
        }
        *accounts.entry(page.terms.sender.clone()).or_default() += back - total;
    }
    if stores
        .striped
        .as_ref()
        .is_some_and(|striped| !striped.keeps_told)
    {
        return Ok(());
    }
    if books.reserve.used > 0 {
        let used = books.reserve.used;
        return Err(format!("{used} were made good, and nothing was lost"));
    }
    if accounts != books.accounts {
        return Err(format!(
            "accounts hold {:?}, not {accounts:?}",
            books.accounts
        ));
    }
    all_was_paid_as_told(stores, told, ids)
}

fn all_was_paid_as_told(
    stores: &Stores,
    told: &BTreeMap<(usize, usize), Told>,
    ids: &[Option<EnvelopeId>],
) -> Result<(), String> {
    let books = &stores.books;
    for ((envelope, who), (share, amount)) in told {
        let id = ids[*envelope].ok_or("an answer of an envelope that was never funded")?;
        let name = person(&format!("grabber-{who}"));
        let claim = books.claim_of(&name, id);
        let paid = claim.map(|held| (held.grant.share, held.grant.amount_minor));
        if paid != Some((*share, *amount)) {
            return Err(format!(
                "{name} was told {share} of {amount}, and paid {paid:?}"
            ));
        }
    }
    Ok(())
}
