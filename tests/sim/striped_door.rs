//! The door of the simulated store of stripes, as a process sees it across the network: each stripe is asked
//! by itself, as in `hot::redis`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use red_envelope::domain::ack::AckLevel;
use red_envelope::domain::envelope::{CloseReason, HotState, Terms};
use red_envelope::domain::grab::{Grab, GrabReply, HeldShare, OutboxEntry};
use red_envelope::domain::id::{EnvelopeId, Epoch, Partition, PartitionCount, PersonId, TenantId};
use red_envelope::domain::stripes::{Stripe, dealt};
use red_envelope::hot::redis::law::{Meta, joined};
use red_envelope::hot::{
    CloseReply, DeclineReply, Epochs, Halted, HotError, HotStore, HotView, HotVitals, LoadChunk,
    Mark, PendingShare, Repair, Standing,
};

use crate::net::{Net, To};
use crate::stores::{Rule, Stores};
use crate::striped::{Lies, Striped, partitions, places, sum_of};
use crate::striped_law::{At, taken_minor};

pub struct StripedDoor {
    pub net: Net,
    pub process: usize,
    /// In which epoch each partition stands, as far as this process knows.
    pub epochs: Mutex<Vec<Epoch>>,
    terms: Mutex<BTreeMap<EnvelopeId, Arc<Terms>>>,
}

impl StripedDoor {
    pub fn new(net: Net, process: usize) -> Self {
        Self {
            net,
            process,
            epochs: Mutex::new(partitions().all().map(|_| Epoch::FIRST).collect()),
            terms: Mutex::default(),
        }
    }

    /// One step in the store.
    pub async fn step<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Striped) -> Result<T, HotError> + Send + 'static,
    ) -> Result<T, HotError> {
        self.with_stores(|stores| act(stores.striped_mut())).await
    }

    async fn with_stores<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Stores) -> Result<T, HotError> + Send + 'static,
    ) -> Result<T, HotError> {
        let route = (self.process, To::Hot);
        self.net.call(route, HotError::Unavailable, act).await
    }

    pub fn knows(&self, id: EnvelopeId, terms: &Arc<Terms>) {
        let mut known = self.terms.lock().expect("a panic ends the history");
        known.insert(id, Arc::clone(terms));
    }

    /// Terms as this process remembers them, or as they stand by the first stripe.
    async fn terms_of(&self, id: EnvelopeId) -> Result<Option<Arc<Terms>>, HotError> {
        let known = {
            let known = self.terms.lock().expect("a panic ends the history");
            known.get(&id).cloned()
        };
        if known.is_some() {
            return Ok(known);
        }
        let first = id.partition(partitions());
        let terms =
            move |s: &mut Striped| Ok(s.lies(first, id).map(|lies| Arc::clone(&lies.terms)));
        self.step(terms).await
    }

    /// Every stripe of it; without its terms the first one.
    async fn lies_in(&self, id: EnvelopeId) -> Result<Vec<(Stripe, Partition)>, HotError> {
        Ok(match self.terms_of(id).await? {
            Some(terms) => places(id, terms.stripes),
            None => vec![(Stripe::FIRST, id.partition(partitions()))],
        })
    }

    /// What lies in these places, each read by itself.
    async fn look(
        &self,
        id: EnvelopeId,
        at: &[(Stripe, Partition)],
    ) -> Result<Option<Vec<Lies>>, HotError> {
        let mut found = Vec::new();
        for (_, partition) in at.iter().copied() {
            let epoch = self.epoch(partition);
            let lies = self.step(move |s| {
                s.stands(partition, epoch)?;
                Ok(s.lies(partition, id).cloned())
            });
            match lies.await? {
                Some(lies) => found.push(lies),
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    async fn view_one(&self, id: EnvelopeId) -> Result<Option<HotView>, HotError> {
        let first = (Stripe::FIRST, id.partition(partitions()));
        let Some(terms) = self.terms_of(id).await? else {
            return Ok(None);
        };
        let mut at = places(id, terms.stripes);
        at[0] = first;
        let Some(found) = self.look(id, &at).await? else {
            return Ok(None);
        };
        let seen = at.iter().zip(&found);
        let view = |((_, partition), lies): (&(Stripe, Partition), &Lies)| HotView {
            envelope: id,
            terms: Arc::clone(&terms),
            state: lies.meta.state,
            frozen: lies.meta.frozen,
            taken_count: lies.meta.taken_count(),
            taken_minor: taken_minor(lies),
            declined_count: 0,
            best: None,
            stale: lies.meta.epoch != self.epoch(*partition) || lies.meta.half_rebuilt(),
            gathered: false,
        };
        let views: Vec<_> = seen.map(view).collect();
        let metas = found.iter().map(|lies| &lies.meta);
        let told: Vec<(&Meta, &HotView)> = metas.zip(&views).collect();
        let now = at.iter().map(|(_, partition)| self.epoch(*partition).0);
        let under = match self.keeps(Rule::StaleUnderOld) {
            true => now.sum(),
            false => told[0].0.part.as_ref().map_or(0, |part| part.under),
        };
        Ok(Some(joined(&told, under)))
    }

    pub fn keeps(&self, rule: Rule) -> bool {
        self.net.shared().stores.striped_mut().keeps(rule)
    }

    async fn close_one(
        &self,
        at: At,
        terms: &Arc<Terms>,
        reason: CloseReason,
    ) -> Result<CloseReply, HotError> {
        let terms = Arc::clone(terms);
        self.with_stores(move |s| {
            let now = s.hot_now();
            s.striped_mut().close(at, &terms, (reason, now))
        })
        .await
    }

    async fn mark(
        &self,
        under: &Epochs,
        id: EnvelopeId,
        mark: impl Fn(Option<Mark>) -> Option<Mark> + Copy + Send + 'static,
    ) -> Result<(), HotError> {
        for place in self.lies_in(id).await? {
            let at = at(under, id, place);
            self.step(move |s| s.freeze(at, mark)).await?;
        }
        Ok(())
    }
}

/// A stripe, under the caller's epoch.
pub fn at(under: &Epochs, id: EnvelopeId, (stripe, partition): (Stripe, Partition)) -> At {
    At {
        id,
        stripe,
        partition,
        epoch: under.of(partition),
    }
}

/// What no step of settlement, publish or a grab asks for.
fn nobody_asks<T>() -> Result<T, HotError> {
    Err(HotError::Stopped("not simulated".to_owned()))
}

#[async_trait]
impl HotStore for StripedDoor {
    fn kind(&self) -> &'static str {
        "simulated stripes"
    }

    fn ack_level(&self) -> Option<AckLevel> {
        None
    }

    fn partitions(&self) -> PartitionCount {
        partitions()
    }

    fn epoch(&self, partition: Partition) -> Epoch {
        let epochs = self.epochs.lock().expect("a panic ends the history");
        epochs[usize::from(partition.index())]
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn deals(&self) -> bool {
        true
    }

    async fn vitals(&self) -> Result<HotVitals, HotError> {
        Ok(HotVitals::default())
    }

    async fn load(&self, under: &Epochs, chunk: LoadChunk) -> Result<(), HotError> {
        let (id, terms) = (chunk.envelope, chunk.terms);
        self.knows(id, &terms);
        let chunk_end = chunk.offset as usize + chunk.amounts_minor.len();
        for place in places(id, terms.stripes) {
            let own = dealt(place.0, terms.stripes, terms.share_count);
            let (start, end) = (own.start as usize, own.end as usize);
            let from = start.max(chunk.offset as usize);
            let to = end.min(chunk_end);
            if from >= to {
                continue;
            }
            let base = chunk.offset as usize;
            let amounts = chunk.amounts_minor[from - base..to - base].to_vec();
            let (at, terms) = (at(under, id, place), Arc::clone(&terms));
            self.step(move |s| s.load(at, &terms, (from - start, &amounts)))
                .await?;
        }
        Ok(())
    }

    async fn open(&self, under: &Epochs, id: EnvelopeId, _: u32) -> Result<HotState, HotError> {
        let mut state = HotState::Funding;
        // The first one last: where it is open all are.
        for place in self.lies_in(id).await?.into_iter().rev() {
            let at = at(under, id, place);
            state = self.step(move |s| s.open(at)).await?;
        }
        Ok(state)
    }

    async fn grab(&self, grabs: Vec<Grab>) -> Result<Vec<GrabReply>, HotError> {
        self.with_stores(move |s| {
            let (now, heard) = (s.hot_now(), s.heard);
            let striped = s.striped_mut();
            let reply = |grab: Grab| {
                let reply = striped.grab(&grab, now);
                if heard {
                    striped.told(grab.partition);
                }
                reply
            };
            Ok(grabs.into_iter().map(reply).collect())
        })
        .await
    }

    async fn decline(
        &self,
        _: Epoch,
        _: TenantId,
        _: EnvelopeId,
        _: PersonId,
    ) -> Result<DeclineReply, HotError> {
        nobody_asks()
    }

    async fn view(&self, ids: Vec<EnvelopeId>) -> Result<Vec<Option<HotView>>, HotError> {
        let mut views = Vec::new();
        for id in ids {
            views.push(self.view_one(id).await?);
        }
        Ok(views)
    }

    async fn held(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, HotError> {
        self.step(move |s| {
            let held = |(id, who): &(_, _)| s.held(who, *id);
            Ok(whose.iter().map(held).collect())
        })
        .await
    }

    async fn grants(
        &self,
        id: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        let at = self.lies_in(id).await?;
        let Some(found) = self.look(id, &at).await? else {
            return Ok(None);
        };
        let mut held: Vec<_> = found.iter().flat_map(Lies::held).collect();
        held.retain(|held| held.grant.share >= from);
        held.sort_by_key(|held| held.grant.share);
        held.dedup();
        held.truncate(limit);
        Ok(Some(held))
    }

    async fn pending(&self, _: TenantId, _: PersonId) -> Result<Vec<PendingShare>, HotError> {
        nobody_asks()
    }

    async fn close(
        &self,
        under: &Epochs,
        id: EnvelopeId,
        terms: Arc<Terms>,
        reason: CloseReason,
    ) -> Result<CloseReply, HotError> {
        self.knows(id, &terms);
        let mut all = places(id, terms.stripes);
        if !self.keeps(Rule::CloseAll) {
            all.truncate(1);
        }
        let at = |place| at(under, id, place);
        let mut why = reason;
        if reason != CloseReason::Empty {
            match self.close_one(at(all[0]), &terms, reason).await? {
                CloseReply::Over { reason, .. } => why = reason,
                not_over => return Ok(not_over),
            }
        }
        for place in all.iter().skip(1) {
            match self.close_one(at(*place), &terms, why).await? {
                CloseReply::Over { .. } => {}
                not_over => return Ok(not_over),
            }
        }
        let reply = self.close_one(at(all[0]), &terms, why).await?;
        let CloseReply::Over { reason, .. } = reply else {
            return Ok(reply);
        };
        let lost = || HotError::Unavailable("a stripe was lost while it was closed".into());
        let view = self.view_one(id).await?.ok_or_else(lost)?;
        Ok(CloseReply::Over {
            reason,
            taken_count: view.taken_count,
            taken_minor: view.taken_minor,
        })
    }

    async fn freeze(&self, under: &Epochs, id: EnvelopeId) -> Result<(), HotError> {
        let mark = |there: Option<Mark>| there.or(Some(Mark::Books));
        self.mark(under, id, mark).await
    }

    async fn unfreeze(&self, under: &Epochs, id: EnvelopeId, upto: Mark) -> Result<(), HotError> {
        let lift = move |there: Option<Mark>| there.filter(|mark| *mark > upto);
        self.mark(under, id, lift).await
    }

    async fn marked(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<(EnvelopeId, Mark)>, HotError> {
        self.step(move |s| {
            let mark = |id| {
                let places = partitions().all();
                let lies = places.filter_map(|partition| s.lies(partition, id));
                Some((id, lies.filter_map(|lies| lies.meta.frozen).max()?))
            };
            Ok(s.envelopes(after, limit)
                .into_iter()
                .filter_map(mark)
                .collect())
        })
        .await
    }

    async fn outbox(
        &self,
        partition: Partition,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, HotError> {
        let epoch = self.epoch(partition);
        self.step(move |s| {
            s.stands(partition, epoch)?;
            Ok(s.outbox(partition, after, limit))
        })
        .await
    }

    async fn settled(
        &self,
        epoch: Epoch,
        partition: Partition,
        entries: Vec<(u64, u64)>,
    ) -> Result<u64, HotError> {
        self.step(move |s| s.settled((partition, epoch), &entries))
            .await
    }

    async fn remove(&self, under: &Epochs, ids: Vec<EnvelopeId>) -> Result<(), HotError> {
        for id in ids {
            // The first one last: by it the others are found.
            for place in self.lies_in(id).await?.into_iter().rev() {
                let at = at(under, id, place);
                self.step(move |s| s.remove(at)).await?;
            }
        }
        Ok(())
    }

    async fn standing(&self) -> Result<Option<Standing>, HotError> {
        nobody_asks()
    }

    async fn register(&self, _: Standing, _: Vec<(Partition, Epoch)>) -> Result<(), HotError> {
        nobody_asks()
    }

    async fn unregistered(&self) {
        std::future::pending().await
    }

    async fn owes(&self, id: EnvelopeId) -> Result<bool, HotError> {
        for (_, partition) in self.lies_in(id).await? {
            let epoch = self.epoch(partition);
            let owes = self.step(move |s| {
                s.stands(partition, epoch)?;
                Ok(s.kept_in(partition).owes(id))
            });
            if owes.await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn halt(
        &self,
        under: &Epochs,
        id: EnvelopeId,
        terms: Arc<Terms>,
        stripe: Stripe,
    ) -> Result<Option<Halted>, HotError> {
        let all = places(id, terms.stripes);
        let at = at(under, id, all[usize::from(stripe.index())]);
        let sum = sum_of(under, &all);
        self.step(move |s| s.halt(at, sum)).await
    }

    async fn repair(&self, under: &Epochs, repair: Repair) -> Result<HotState, HotError> {
        self.repair_stripe(under, repair).await
    }

    async fn envelopes(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<EnvelopeId>, HotError> {
        self.step(move |s| Ok(s.envelopes(after, limit))).await
    }
}
