//! Reads the winners of empty envelopes, and looks whether those are as they were.
//!
//! # Bounds
//! Of many winners a bit for each share, and ten for each name: 14 MB for ten million.
//!
//! # Ordering
//! A share counts once, wherever it stands: what was repaired may stand at its winner's home and in the first
//! stripe. A walk over a hash comes by everything that was there all the time, and by some of it twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::{Entry, Who, Winners};
use crate::clock::timer_now;
use crate::domain::envelope::{CloseReason, HotState, Terms};
use crate::domain::grab::{Grab, Grant};
use crate::domain::id::{EnvelopeId, Epoch, PersonId};
use crate::domain::stripes::StripeCount;
use crate::hot::HotError;
use crate::hot::redis::core::{Call, Core};
use crate::hot::redis::layout::{Meta, grant_of};
use crate::hot::redis::names::Names;
use crate::hot::redis::reply;

/// The epochs in which Redis said so.
pub(super) struct Under {
    /// That of its first partition.
    epoch: Epoch,
    of: StripeCount,
    /// Of a dealt one: the sum of all of them, and how many changes of epochs had been heard of when it was last
    /// the same.
    sum: u64,
    changes: AtomicU64,
}

impl Under {
    fn now(core: &Core, id: EnvelopeId, of: StripeCount) -> Self {
        let changes = AtomicU64::new(core.changes());
        Self {
            epoch: core.epoch(core.partition(id)),
            of,
            sum: core.under_sum(id, of),
            changes,
        }
    }

    /// Whether they are those that stand, and that a grab names.
    pub(super) fn stands(&self, core: &Core, grab: &Grab) -> bool {
        if self.of.is_one() {
            return self.epoch == grab.epoch && self.epoch == core.epoch(grab.partition);
        }
        let changes = core.changes();
        if self.changes.load(Ordering::Relaxed) != changes {
            if core.under_sum(grab.envelope, self.of) != self.sum {
                return false;
            }
            self.changes.store(changes, Ordering::Relaxed);
        }
        grab.epoch == core.epoch(grab.partition)
    }
}

impl Core {
    /// What is known of an envelope stands for longer if it is as it was.
    pub(super) async fn look_again(&self, id: EnvelopeId) {
        let Some(Entry::Known(winners)) = self.emptied.kept.get(&id) else {
            return;
        };
        let asked = timer_now();
        match self.look_at_empty(id, &winners.under).await {
            Ok(Some(meta)) if meta == winners.meta => {
                self.emptied.stands_since(id, &winners, asked);
            }
            Ok(_) => self.emptied.forget(id),
            Err(_) => {}
        }
    }

    /// Reads who took the shares of an envelope, of which so many EMPTY were heard.
    pub(super) async fn walk_winners(&self, id: EnvelopeId, heard: u32) {
        if let Ok(Some((winners, asked))) = self.winners(id, heard).await {
            self.emptied.keep(id, winners, asked);
        }
    }

    /// Who took the shares of an envelope, and when Redis was asked last; `None` where it is not empty, or there is
    /// a share that nobody is found to have.
    async fn winners(
        &self,
        id: EnvelopeId,
        heard: u32,
    ) -> Result<Option<(Winners, Instant)>, HotError> {
        let terms = self.terms_of(&[id]).await?.pop().flatten();
        // Where they were not known here, it was not known either how many EMPTY it is worth.
        let worth = |terms: &Arc<Terms>| heard >= self.emptied.wanted(terms.share_count);
        let Some(terms) = terms.filter(worth) else {
            return Ok(None);
        };
        let under = Under::now(self, id, terms.stripes);
        let meta = self.look_at_empty(id, &under).await?;
        let Some(meta) = meta.filter(|meta| meta.count == terms.share_count) else {
            return Ok(None);
        };
        let few = meta.count <= self.emptied.policy.lock().grants_max;
        let who = match terms.stripes.is_one() && few {
            true => self.shares_of_all(id, &meta).await?.map(Who::Shares),
            false => {
                let names = self.names_of_all(id, &meta, terms.stripes);
                names.await?.map(Who::Names)
            }
        };
        let Some(who) = who else {
            return Ok(None);
        };
        let asked = timer_now();
        let after = self.look_at_empty(id, &under).await?;
        let winners = Winners {
            under,
            meta,
            who,
            seen_at: AtomicU64::new(0),
            good_until: AtomicU64::new(0),
        };
        let same = after.as_ref() == Some(&winners.meta);
        Ok(same.then_some((winners, asked)))
    }

    async fn shares_of_all(
        &self,
        id: EnvelopeId,
        meta: &Meta,
    ) -> Result<Option<HashMap<PersonId, Grant>>, HotError> {
        let held = self.held_shares(self.first(id), meta).await?;
        let all = u32::try_from(held.len()) == Ok(meta.count);
        let shares = held.into_iter().map(|held| (held.grabber, held.grant));
        let shares: HashMap<_, _> = shares.collect();
        let each_once = u32::try_from(shares.len()) == Ok(meta.count);
        Ok((all && each_once).then_some(shares))
    }

    async fn names_of_all(
        &self,
        id: EnvelopeId,
        meta: &Meta,
        of: StripeCount,
    ) -> Result<Option<Names>, HotError> {
        let (mut names, mut taken) = (Names::with_room(meta.count), Taken::of(meta.count));
        for at in self.places(id, of) {
            let mut note = |name: &[u8], value: &[u8]| {
                let grant = grant_of(value, meta.width).map(|(grant, _)| grant.share);
                let name = std::str::from_utf8(name)
                    .ok()
                    .filter(|name| !name.is_empty());
                if let (Some(name), Some(share)) = (name, grant) {
                    names.put(name);
                    taken.put(share);
                }
            };
            if !self.each_field(at, meta.count, &mut note).await? {
                return Ok(None);
            }
        }
        Ok(taken.is_all().then_some(names))
    }

    /// The meta of an envelope that is empty and whole under these epochs, and unmarked.
    async fn look_at_empty(&self, id: EnvelopeId, under: &Under) -> Result<Option<Meta>, HotError> {
        let partition = self.partition(id);
        let own = self.keys.envelope(partition, id);
        // As if all its shares were known: none is sent.
        let call = Call::reading(self, "view_1", partition)
            .key(own.grabs)
            .key(own.shares)
            .key(own.phrase)
            .under(under.epoch)
            .number(0)
            .number(u32::MAX);
        let (_, items) = self.call(call).await?;
        let meta = items.first().map_or(Ok(&[][..]), reply::bytes)?;
        let meta = Meta::unpack(meta);
        Ok(meta.filter(|meta| {
            let is_empty = meta.state == HotState::Over(CloseReason::Empty) && !meta.named;
            let is_here = meta.epoch == under.epoch && meta.frozen.is_none();
            // The first stripe of a dealt one knows that all are taken once it has what was left in all.
            let is_all = match &meta.part {
                Some(part) => part.whole && part.under == under.sum,
                None => under.of.is_one(),
            };
            is_empty && is_here && is_all
        }))
    }
}

/// Which shares of so many somebody is found to have.
struct Taken {
    words: Vec<u64>,
    count: u32,
    found: u32,
}

impl Taken {
    fn of(count: u32) -> Self {
        let words = count.div_ceil(u64::BITS);
        Self {
            words: vec![0; usize::try_from(words).unwrap_or(usize::MAX)],
            count,
            found: 0,
        }
    }

    /// One that the envelope does not have is nobody's.
    fn put(&mut self, share: u32) {
        if share >= self.count {
            return;
        }
        let word = usize::try_from(share / u64::BITS).unwrap_or(usize::MAX);
        let bit = 1 << (share % u64::BITS);
        self.found += u32::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    fn is_all(&self) -> bool {
        self.found == self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_are_taken_when_each_is_whoever_repeats_one() {
        let mut taken = Taken::of(65);
        for share in (0..64).chain(0..64).chain([65, u32::MAX]) {
            taken.put(share);
            assert!(!taken.is_all(), "share 64 is nobody's");
        }
        taken.put(64);
        assert!(taken.is_all());
        assert!(Taken::of(0).is_all());
    }
}
