//! The door of the simulated hot store, as a process sees it across the network.

use std::sync::Arc;

use async_trait::async_trait;
use red_envelope::domain::ack::AckLevel;
use red_envelope::domain::envelope::{CloseReason, HotState, Terms};
use red_envelope::domain::grab::{Grab, GrabReply, HeldShare, OutboxEntry};
use red_envelope::domain::id::{EnvelopeId, Epoch, Partition, PartitionCount, PersonId, TenantId};
use red_envelope::hot::{
    CloseReply, DeclineReply, Epochs, HotError, HotStore, HotView, HotVitals, LoadChunk, Mark,
    PendingShare, Repair, Standing,
};

use crate::net::{Net, To};
use crate::stores::{Rule, Stores};

/// Partitions of the simulated hot store.
pub const PARTITIONS: u16 = 2;

pub struct HotDoor {
    pub net: Net,
    pub process: usize,
}

impl HotDoor {
    async fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Stores) -> T + Send + 'static,
    ) -> Result<T, HotError> {
        self.attempt(|stores| Ok(act(stores))).await
    }

    async fn attempt<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Stores) -> Result<T, HotError> + Send + 'static,
    ) -> Result<T, HotError> {
        let route = (self.process, To::Hot);
        self.net.call(route, HotError::Unavailable, act).await
    }
}

/// What no step of settlement, publish or a grab asks for.
fn nobody_asks<T>() -> Result<T, HotError> {
    Err(HotError::Stopped("not simulated".to_owned()))
}

#[async_trait]
impl HotStore for HotDoor {
    fn kind(&self) -> &'static str {
        "simulated"
    }

    fn ack_level(&self) -> Option<AckLevel> {
        None
    }

    fn partitions(&self) -> PartitionCount {
        PartitionCount::new(PARTITIONS).expect("a store has a few")
    }

    fn epoch(&self, _: Partition) -> Epoch {
        Epoch::FIRST
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    async fn vitals(&self) -> Result<HotVitals, HotError> {
        self.ask(|s| s.hot.vitals()).await
    }

    async fn load(&self, _: &Epochs, chunk: LoadChunk) -> Result<(), HotError> {
        self.attempt(|s| {
            let idempotent = s.keep(Rule::IdempotentLoad);
            s.hot.load(chunk, idempotent)
        })
        .await
    }

    async fn open(&self, _: &Epochs, id: EnvelopeId, checksum: u32) -> Result<HotState, HotError> {
        self.attempt(move |s| s.hot.open(id, checksum)).await
    }

    async fn grab(&self, grabs: Vec<Grab>) -> Result<Vec<GrabReply>, HotError> {
        self.ask(|s| {
            let now = s.hot_now();
            s.hot.grab(grabs, now)
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
        self.ask(move |s| ids.into_iter().map(|id| s.hot.view(id)).collect())
            .await
    }

    async fn held(
        &self,
        _: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, HotError> {
        nobody_asks()
    }

    async fn grants(
        &self,
        id: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        self.ask(move |s| {
            let kept = s.hot.envelopes.get(&id)?;
            let held = kept.should.held.range(from..).map(|(_, held)| held.clone());
            Some(held.take(limit).collect())
        })
        .await
    }

    async fn pending(&self, _: TenantId, _: PersonId) -> Result<Vec<PendingShare>, HotError> {
        nobody_asks()
    }

    async fn close(
        &self,
        _: &Epochs,
        id: EnvelopeId,
        terms: Arc<Terms>,
        reason: CloseReason,
    ) -> Result<CloseReply, HotError> {
        self.attempt(move |s| {
            let (now, marked) = (s.hot_now(), s.keep(Rule::ClosedMark));
            s.hot.close((id, terms), reason, (now, marked))
        })
        .await
    }

    async fn freeze(&self, _: &Epochs, id: EnvelopeId) -> Result<(), HotError> {
        self.ask(move |s| {
            if let Some(kept) = s.hot.envelopes.get_mut(&id) {
                kept.should.frozen = kept.should.frozen.or(Some(Mark::Books));
            }
        })
        .await
    }

    async fn unfreeze(&self, _: &Epochs, id: EnvelopeId, upto: Mark) -> Result<(), HotError> {
        self.ask(move |s| {
            if let Some(kept) = s.hot.envelopes.get_mut(&id) {
                kept.should.frozen = kept.should.frozen.filter(|mark| *mark > upto);
            }
        })
        .await
    }

    async fn marked(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<(EnvelopeId, Mark)>, HotError> {
        self.ask(move |s| s.hot.marked(after, limit)).await
    }

    async fn outbox(
        &self,
        partition: Partition,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, HotError> {
        self.ask(move |s| s.hot.outbox(partition, after, limit))
            .await
    }

    async fn settled(
        &self,
        _: Epoch,
        partition: Partition,
        entries: Vec<(u64, u64)>,
    ) -> Result<u64, HotError> {
        self.ask(move |s| {
            let by_nonce = s.keep(Rule::Nonce);
            s.hot.settled(partition, &entries, by_nonce)
        })
        .await
    }

    async fn remove(&self, _: &Epochs, ids: Vec<EnvelopeId>) -> Result<(), HotError> {
        self.ask(|s| s.hot.remove(ids)).await
    }

    async fn standing(&self) -> Result<Option<Standing>, HotError> {
        Ok(None)
    }

    async fn register(&self, _: Standing, _: Vec<(Partition, Epoch)>) -> Result<(), HotError> {
        nobody_asks()
    }

    async fn unregistered(&self) {
        std::future::pending().await
    }

    async fn owes(&self, id: EnvelopeId) -> Result<bool, HotError> {
        self.ask(move |s| s.hot.owes(id)).await
    }

    async fn repair(&self, _: &Epochs, repair: Repair) -> Result<HotState, HotError> {
        self.attempt(|s| s.hot.repair(repair)).await
    }

    async fn envelopes(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<EnvelopeId>, HotError> {
        self.ask(move |s| {
            let above = s.hot.envelopes.keys().filter(|id| Some(**id) > after);
            above.copied().take(limit).collect()
        })
        .await
    }
}
