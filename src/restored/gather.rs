//! Compares the envelopes of a hot store that may be ahead with the books.
//!
//! *Shape*
//!
//! | what the hot store holds | is |
//! |---|---|
//! | an envelope that the books don't know, or know under other terms | a stranger, with all its grants |
//! | a debt of an unknown envelope, in an outbox | a grant of a stranger |
//! | more grants than the books know, or an end that they have not begun | behind |
//! | something of an open envelope that is not whole | behind; of one that is dealt, missing (`mend`) |
//! | a share with another grabber than the books have paid | disputed, besides |
//!
//! *Bounds.* Of an envelope of which the books have claims, every grant and claim is read, a page at a time.
//!
//! *Ordering.* Nobody grants meanwhile, so the order of the reads does not matter. All of it is read before
//! anything is mended: a repair takes what the books have paid for ever, and forgets who else was told.
//!
//! *Not here.* What is done about it: `mend`.

use std::collections::{BTreeMap, BTreeSet};

use super::RestoredError;
use super::report::{Dispute, Stranger};
use crate::domain::envelope::{BookState, HotState};
use crate::domain::grab::{HeldShare, OutboxRecord};
use crate::domain::id::{EnvelopeId, PersonId};
use crate::hot::{
    GRANTS_PER_PAGE_MAX, GrantWalk, HotStore, HotView, OUTBOX_RECORDS_PER_CALL_MAX,
    VIEWS_PER_CALL_MAX,
};
use crate::ledger::{EnvelopeRow, Ledger, PAGE_ROWS_MAX};

/// What does not agree.
#[derive(Default)]
pub(super) struct Found {
    /// Envelopes that the books don't know, by id.
    pub strangers: Vec<Stranger>,
    /// Open envelopes of the books that know less of them.
    pub behind: BTreeSet<EnvelopeId>,
    /// Shares of which the two name different people.
    pub disputes: Vec<Dispute>,
}

/// How what the hot store holds of an envelope stands to the books.
#[derive(Debug, PartialEq, Eq)]
enum Kin {
    Stranger,
    Behind,
    Agrees,
}

/// PURE. `view`: `None` where the hot store has it, and not whole.
fn kin(row: Option<&EnvelopeRow>, view: Option<&HotView>) -> Kin {
    let Some(row) = row else {
        return Kin::Stranger;
    };
    // A leaf that was used twice makes one id of two envelopes.
    if view.is_some_and(|view| view.terms != row.terms) {
        return Kin::Stranger;
    }
    if matches!(row.state, BookState::Closed(_)) {
        return Kin::Agrees;
    }
    let Some(view) = view else {
        return Kin::Behind;
    };
    let known = row.settled_count + row.declined_count + row.set_aside_count;
    let over = matches!(view.state, HotState::Over(_));
    let ends = over && !matches!(row.state, BookState::Closing(_));
    match view.taken_count > known || ends {
        true => Kin::Behind,
        false => Kin::Agrees,
    }
}

/// Looks at all that the hot store holds.
pub(super) async fn gather(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
) -> Result<Found, RestoredError> {
    let mut strangers = BTreeMap::new();
    let mut behind = BTreeSet::new();
    let mut disputes = Vec::new();
    let mut after = None;
    loop {
        let page = hot.envelopes(after, PAGE_ROWS_MAX).await?;
        let Some(last) = page.last() else { break };
        after = Some(*last);
        for ids in page.chunks(VIEWS_PER_CALL_MAX) {
            let rows = ledger.envelopes(ids.to_vec()).await?;
            let views = hot.view(ids.to_vec()).await?;
            for ((id, row), view) in ids.iter().zip(rows).zip(views) {
                let kin = kin(row.as_ref(), view.as_ref());
                match (kin, row) {
                    (Kin::Stranger, _) | (_, None) => {
                        strangers.insert(*id, stranger(hot, *id, view).await?);
                        continue;
                    }
                    (Kin::Agrees, Some(row)) => disputed(hot, ledger, &row, &mut disputes).await?,
                    (Kin::Behind, Some(row)) => {
                        // Nobody knows what the stripe has granted that is not there: as of one that is
                        // missing as a whole.
                        let lacks_a_stripe = view.is_none() && !row.terms.stripes.is_one();
                        if !lacks_a_stripe {
                            behind.insert(*id);
                        }
                        disputed(hot, ledger, &row, &mut disputes).await?;
                    }
                }
            }
        }
    }
    owed(hot, ledger, &mut strangers).await?;
    Ok(Found {
        strangers: strangers.into_values().collect(),
        behind,
        disputes,
    })
}

/// Adds the shares of which the hot store names somebody else than the books have paid.
async fn disputed(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    row: &EnvelopeRow,
    disputes: &mut Vec<Dispute>,
) -> Result<(), RestoredError> {
    if row.settled_count + row.declined_count == 0 {
        return Ok(());
    }
    let (mut from, mut walk) = (Some(0), GrantWalk::default());
    while let Some(first) = from {
        let claims = ledger.claims(row.id, first, PAGE_ROWS_MAX).await?;
        let Some(last) = claims.last().map(|held| held.grant.share) else {
            break;
        };
        let full = claims.len() >= PAGE_ROWS_MAX;
        let paid: BTreeMap<_, _> = claims
            .into_iter()
            .map(|held| (held.grant.share, held.grabber))
            .collect();
        let granted = granted(hot, &mut walk, (row.id, first, last)).await?;
        disputes.extend(granted.into_iter().filter_map(|told| {
            let paid = paid.get(&told.grant.share)?;
            (*paid != told.grabber).then(|| Dispute {
                id: row.id,
                currency: row.terms.currency,
                told,
                paid: paid.clone(),
            })
        }));
        from = last.checked_add(1).filter(|_| full);
    }
    Ok(())
}

/// Grants of the shares `first` to `last`; none where the envelope is not whole.
async fn granted(
    hot: &dyn HotStore,
    walk: &mut GrantWalk,
    (id, first, last): (EnvelopeId, u32, u32),
) -> Result<Vec<HeldShare>, RestoredError> {
    let (mut all, mut from) = (Vec::new(), Some(first));
    while let Some(first) = from.filter(|share| *share <= last) {
        let page = hot
            .walk_grants(walk, id, first, GRANTS_PER_PAGE_MAX)
            .await?;
        let page = page.unwrap_or_default();
        let full = page.len() >= GRANTS_PER_PAGE_MAX;
        let end = page.last().filter(|_| full);
        from = end.and_then(|held| held.grant.share.checked_add(1));
        all.extend(page.into_iter().filter(|held| held.grant.share <= last));
    }
    Ok(all)
}

async fn stranger(
    hot: &dyn HotStore,
    id: EnvelopeId,
    view: Option<HotView>,
) -> Result<Stranger, RestoredError> {
    let mut stranger = Stranger::new(id);
    let Some(view) = view else {
        stranger.whole = false;
        return Ok(stranger);
    };
    stranger.terms = Some(view.terms);
    let (mut from, mut walk) = (Some(0), GrantWalk::default());
    while let Some(first) = from {
        let page = hot
            .walk_grants(&mut walk, id, first, GRANTS_PER_PAGE_MAX)
            .await?;
        let page = page.unwrap_or_default();
        let full = page.len() >= GRANTS_PER_PAGE_MAX;
        let next = page.last().filter(|_| full);
        from = next.and_then(|held| held.grant.share.checked_add(1));
        stranger.grants.extend(page.into_iter().map(named));
    }
    Ok(stranger)
}

/// A grant under what tells it from others.
fn named(held: HeldShare) -> ((u32, PersonId), HeldShare) {
    ((held.grant.share, held.grabber.clone()), held)
}

/// Adds what outboxes owe of envelopes that the books don't know.
async fn owed(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    strangers: &mut BTreeMap<EnvelopeId, Stranger>,
) -> Result<(), RestoredError> {
    let mut known = BTreeSet::new();
    for partition in hot.partitions().all() {
        let mut after = None;
        loop {
            let limit = OUTBOX_RECORDS_PER_CALL_MAX;
            let entries = hot.outbox(partition, after, limit).await?;
            let Some(last) = entries.last() else { break };
            after = Some(last.id);
            let records: Vec<_> = entries
                .into_iter()
                .flat_map(|entry| entry.records)
                .collect();
            let is_new = |id: &EnvelopeId| !known.contains(id) && !strangers.contains_key(id);
            let ids: BTreeSet<_> = records.iter().map(|record| record.envelope).collect();
            let ids: Vec<_> = ids.into_iter().filter(is_new).collect();
            for some in ids.chunks(PAGE_ROWS_MAX) {
                let rows = ledger.envelopes(some.to_vec()).await?;
                for (id, row) in some.iter().zip(rows) {
                    match row {
                        Some(_) => {
                            known.insert(*id);
                        }
                        None => {
                            strangers.insert(*id, Stranger::new(*id));
                        }
                    }
                }
            }
            for record in records {
                if let Some(stranger) = strangers.get_mut(&record.envelope) {
                    let (name, held) = named(held_by(record));
                    stranger.grants.entry(name).or_insert(held);
                }
            }
        }
    }
    Ok(())
}

fn held_by(record: OutboxRecord) -> HeldShare {
    HeldShare {
        grabber: record.grabber,
        grant: record.grant,
        declined: record.declined,
    }
}
