//! An envelope that is dealt to stripes, looked at and ended as one.
//!
//! # Shape
//! | state of a stripe | who has a share there | anybody else |
//! |---|---|---|
//! | live | hears it | takes the next one |
//! | dry: used up, or halted | hears it | is told to ask the first stripe, once the shares are gathered |
//! | over | hears it | the same; in the first one, how the envelope ended |
//!
//! Gathered, the first stripe has what was left in all, and its counts are those of the whole envelope.
//! Before that they are the sums of all stripes.
//!
//! # Ordering
//! The first stripe decides why an envelope is over: the others are closed after it, for its reason.
//!
//! A stripe that was halted stays as it is within its epoch, so what it has left may be read in parts.
//!
//! # Bounds
//! A walk over the grants keeps those of two stripes.
//!
//! # Not here
//! What is left where, once one of them is used up: `publish` gathers it, by `halt` and `repair`.

use std::collections::HashMap;
use std::sync::Arc;

use redis::Value;

use super::core::{Call, Core, Place};
use super::layout::{Meta, Reader};
use super::lifecycle::unexpected;
use super::reply::{self, Reply};
use super::sums::{SHARES_PER_LOOK_BYTES, Sums};
use crate::domain::envelope::{CloseReason, HotState, Terms};
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, Epoch};
use crate::domain::stripes::{Stripe, StripeCount, dealt, dealt_to};
use crate::hot::{CloseReply, Epochs, GrantWalk, Halted, HotError, HotView};

/// The meta of a stripe, what its taken shares add up to, and what both make of it.
struct Seen {
    meta: Meta,
    sums: Sums,
    view: HotView,
}

impl Core {
    /// Where an envelope lies, as far as its terms are known here.
    pub(super) async fn lies_in(&self, id: EnvelopeId) -> Result<Vec<Place>, HotError> {
        let terms = self.terms_of(&[id]).await?.pop().flatten();
        Ok(match terms {
            Some(terms) => self.places(id, terms.stripes),
            None => vec![self.first(id)],
        })
    }

    /// The sum of the epochs of all partitions in which it lies: each loss makes it larger.
    pub(super) fn under_sum(&self, id: EnvelopeId, of: StripeCount) -> u64 {
        let places = of.all().map(|stripe| self.place(id, stripe, of));
        places.map(|at| self.epoch(at.partition).0).sum()
    }

    /// What lies of these envelopes beside their first stripes: all are looked at together.
    pub(super) async fn others_of(
        &self,
        dealt: &[(EnvelopeId, Arc<Terms>)],
    ) -> Result<HashMap<Place, (Meta, Sums)>, HotError> {
        let others = |(id, terms): &(EnvelopeId, Arc<Terms>)| {
            self.places(*id, terms.stripes).into_iter().skip(1)
        };
        let places: Vec<_> = dealt.iter().flat_map(others).collect();
        let found = self.looks(&places).await?;
        let found = places.into_iter().zip(found);
        Ok(found.filter_map(|(at, found)| Some((at, found?))).collect())
    }

    /// How far an envelope is whose first stripe was found to be so, and the `others` so; `None` where a stripe
    /// is missing.
    pub(super) async fn view_of_dealt(
        &self,
        id: EnvelopeId,
        first: (Meta, Sums),
        others: &mut HashMap<Place, (Meta, Sums)>,
        terms: Arc<Terms>,
    ) -> Result<Option<HotView>, HotError> {
        let under = self.under_sum(id, terms.stripes);
        let places = self.places(id, terms.stripes);
        let rest = places[1..].iter().map(|at| others.remove(at));
        let found: Option<Vec<_>> = std::iter::once(Some(first)).chain(rest).collect();
        let Some(found) = found else {
            return Ok(None);
        };
        let mut seen = Vec::with_capacity(found.len());
        for (at, (meta, sums)) in places.iter().zip(found) {
            let view = self.view_of(*at, &meta, sums.clone(), Arc::clone(&terms));
            let view = view.await?;
            seen.push(Seen { meta, sums, view });
        }
        let told: Vec<_> = seen.iter().map(|seen| (&seen.meta, &seen.view)).collect();
        let mut view = joined(&told, under);
        if matches!(view.state, HotState::Over(_)) {
            view.best = self.best_of_all(&places, seen).await?;
        }
        Ok(Some(view))
    }

    /// The best of the best of each stripe.
    async fn best_of_all(
        &self,
        places: &[Place],
        seen: Vec<Seen>,
    ) -> Result<Option<HeldShare>, HotError> {
        let mut best: Vec<HeldShare> = Vec::new();
        for (at, seen) in places.iter().zip(seen) {
            let known = self.sums.get(at).and_then(|sums| sums.best_held);
            let own = match known {
                Some(own) => own,
                None => {
                    let own = self.best_held(*at, &seen.meta, &seen.sums).await?;
                    let mut sums = seen.sums;
                    sums.best_held = Some(own.clone());
                    self.sums.insert(*at, sums);
                    own
                }
            };
            best.extend(own);
        }
        Ok(super::reads::best(&best))
    }

    /// A page of the grants of a dealt envelope: stripe by stripe, with what the first one has of each.
    pub(super) async fn walk_dealt(
        &self,
        walk: &mut GrantWalk,
        id: EnvelopeId,
        terms: &Terms,
        (from, limit): (u32, usize),
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        let (of, count) = (terms.stripes, terms.share_count);
        let first = self.first(id);
        let mut of_first = walk.first.take().unwrap_or_default();
        let (mut page, mut from) = (Vec::new(), from);
        while let Some(stripe) = dealt_to(from, of, count).filter(|_| page.len() < limit) {
            let own = dealt(stripe, of, count);
            let at = self.place(id, stripe, of);
            let mut here = Vec::new();
            // By turn the first one has its own shares first, and then those of all.
            let by_first = self.walk_place(&mut of_first, first, (0, from), limit);
            match by_first.await? {
                Some(shares) => here.extend(shares),
                None => return Ok(None),
            }
            if at != first {
                let by_own = self.walk_place(walk, at, (own.start, from), limit);
                match by_own.await? {
                    Some(shares) => here.extend(shares),
                    None => return Ok(None),
                }
            }
            here.retain(|held| (from..own.end).contains(&held.grant.share));
            here.sort_by_key(|held| held.grant.share);
            here.dedup();
            page.extend(here);
            from = own.end;
        }
        page.truncate(limit);
        walk.first = Some(of_first);
        Ok(Some(page))
    }

    /// Ends an envelope: see [`HotStore::close`](crate::hot::HotStore::close).
    pub async fn close(
        &self,
        under: &Epochs,
        id: EnvelopeId,
        terms: &Arc<Terms>,
        reason: CloseReason,
    ) -> Result<CloseReply, HotError> {
        let first = (Stripe::FIRST, self.first(id));
        if terms.stripes.is_one() {
            return self.close_place(under, first, terms, reason).await;
        }
        for at in self.places(id, terms.stripes) {
            self.stands_in(at.partition, under)?;
        }
        // One that was halted can't tell by itself whether what it had left is taken. What is over stays so, also where
        // a stripe that was lost counts no grab any more.
        if reason == CloseReason::Empty
            && let Some(view) = self.view(vec![id]).await?.pop().flatten()
            && !matches!(view.state, HotState::Over(_))
            && view.taken_count < terms.share_count
        {
            return Err(HotError::Mismatch("not every share is taken".into()));
        }
        let why = match self.close_place(under, first, terms, reason).await? {
            CloseReply::Over { reason, .. } => reason,
            not_over => return Ok(not_over),
        };
        let others = terms.stripes.all().skip(1);
        for stripe in others {
            let at = self.place(id, stripe, terms.stripes);
            // What has ended by itself for another reason is over all the same.
            match self.close_place(under, (stripe, at), terms, why).await? {
                CloseReply::Over { .. } => {}
                not_over => return Ok(not_over),
            }
        }
        let reply = self.close_place(under, first, terms, why).await?;
        let CloseReply::Over { reason, .. } = reply else {
            return Ok(reply);
        };
        let view = self.view(vec![id]).await?.pop().flatten();
        let view = view.ok_or_else(|| {
            HotError::Unavailable("a stripe of the envelope was lost while it was closed".into())
        })?;
        Ok(CloseReply::Over {
            reason,
            taken_count: view.taken_count,
            taken_minor: view.taken_minor,
        })
    }

    /// See [`HotStore::halt`](crate::hot::HotStore::halt).
    pub async fn halt(
        &self,
        under: &Epochs,
        id: EnvelopeId,
        terms: &Terms,
        stripe: Stripe,
    ) -> Result<Option<Halted>, HotError> {
        let at = self.place(id, stripe, terms.stripes);
        let epoch = self.stands_in(at.partition, under)?;
        let places = self.places(id, terms.stripes).into_iter();
        let sum: u64 = places.map(|at| under.of(at.partition).0).sum();
        let own = self.own(at);
        let call = Call::writing(self, "halt_1", at.partition)
            .key(own.grabs)
            .key(own.shares)
            .under(epoch)
            .number(sum);
        let meta = match self.call(call).await? {
            (Reply::Ok, items) => items
                .first()
                .map_or(Ok(&[][..]), reply::bytes)
                .map(Meta::unpack)?,
            (Reply::Stale | Reply::Missing, _) => return Ok(None),
            (code, items) => return Err(unexpected(code, items)),
        };
        let meta = meta.ok_or_else(|| reply::nonsense(&Value::Nil))?;
        let tombstone = meta.length == 0 && !meta.compact;
        let left = self.left(at, &meta).await?;
        let over = match meta.state {
            HotState::Over(reason) => Some(reason),
            HotState::Funding | HotState::Live => None,
        };
        Ok(Some(Halted {
            left,
            over,
            tombstone,
        }))
    }

    /// Whether a repair of what lies there is under way in this epoch.
    pub(super) async fn is_being_rebuilt(&self, at: Place, epoch: Epoch) -> Result<bool, HotError> {
        let mut get = redis::cmd("HGET");
        get.arg(self.own(at).grabs).arg("");
        let raw = self.read_all(vec![get]).await?.pop();
        let raw = raw.as_ref().and_then(|raw| reply::bytes(raw).ok());
        let meta = raw.and_then(Meta::unpack);
        Ok(meta.is_some_and(|meta| meta.half_rebuilt() && meta.epoch == epoch))
    }

    /// See [`HotStore::was_gathered`](crate::hot::HotStore::was_gathered).
    pub async fn was_gathered(&self, id: EnvelopeId, terms: &Terms) -> Result<bool, HotError> {
        let looks = self.places(id, terms.stripes).into_iter().map(|at| {
            let mut get = redis::cmd("HGET");
            get.arg(self.own(at).grabs).arg("");
            get
        });
        let metas = self.read_all(looks.collect()).await?;
        let tells = |raw: &Value| {
            let meta = reply::bytes(raw).ok().and_then(Meta::unpack);
            meta.is_some_and(|meta| {
                let whole = meta.part.as_ref().is_some_and(|part| part.whole);
                whole || (meta.is_dry() && meta.next < meta.length)
            })
        };
        Ok(metas.iter().any(tells))
    }

    /// The numbers of the shares that a stripe has left which grants nothing.
    async fn left(&self, at: Place, meta: &Meta) -> Result<Vec<u32>, HotError> {
        if !meta.compact {
            return Ok((meta.first() + meta.next..meta.first() + meta.length).collect());
        }
        let bytes = meta.record_bytes();
        let place = |turn: u32| usize::try_from(turn).unwrap_or(usize::MAX) * bytes;
        let step = SHARES_PER_LOOK_BYTES / bytes * bytes;
        let mut left = Vec::new();
        for from in (place(meta.next)..place(meta.length)).step_by(step) {
            let to = place(meta.length).min(from + step);
            let mut read = redis::cmd("GETRANGE");
            read.arg(self.own(at).shares).arg(from).arg(to - 1);
            let read = self.read_all(vec![read]).await?.pop().unwrap_or(Value::Nil);
            let records = reply::bytes(&read)?.chunks(bytes);
            left.extend(records.filter_map(|record| Reader(record).u32()));
        }
        let wanted = meta.length - meta.next;
        match u32::try_from(left.len()) == Ok(wanted) {
            true => Ok(left),
            false => Err(HotError::Unavailable(
                "the shares of a stripe can't be read any more: try again".into(),
            )),
        }
    }
}

/// PURE: what the stripes of an envelope say together: the meta and the view of each, the first one's first.
/// `under`: the sum of their epochs now.
pub fn joined(told: &[(&Meta, &HotView)], under: u64) -> HotView {
    let (first, of_first) = told[0];
    let mut view = of_first.clone();
    let part = first.part.as_ref();
    let whole = part.is_some_and(|part| part.whole);
    // One that was halted again, and not rebuilt, gives nothing yet.
    view.gathered = whole && !first.is_dry();
    let others = || told.iter().skip(1).map(|(_, view)| view);
    view.frozen = told.iter().filter_map(|(_, view)| view.frozen).max();
    view.stale |= others().any(|view| view.stale);
    if whole {
        // What was lost elsewhere since may be given again, or does not count any more.
        view.stale |= part.is_some_and(|part| part.under != under);
        return view;
    }
    view.taken_count += others().map(|view| view.taken_count).sum::<u32>();
    view.taken_minor += others().map(|view| view.taken_minor).sum::<i64>();
    if !matches!(view.state, HotState::Over(_)) {
        let over = others().find(|view| matches!(view.state, HotState::Over(_)));
        if let Some(over) = over {
            view.state = over.state;
        } else if told.iter().any(|(_, view)| view.state == HotState::Funding) {
            view.state = HotState::Funding;
            // A stripe that was rebuilt is no part of a load.
            view.stale |= told.iter().any(|(meta, _)| meta.compact);
        }
    }
    view
}
