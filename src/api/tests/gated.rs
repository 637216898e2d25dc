//! The embedded store behind a gate: a test holds grabs back and counts look-ups.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::domain::ack::AckLevel;
use crate::domain::envelope::{CloseReason, HotState, Terms};
use crate::domain::grab::{Grab, GrabReply, HeldShare, OutboxEntry};
use crate::domain::id::{EnvelopeId, Epoch, Partition, PartitionCount, PersonId, TenantId};
use crate::hot::embedded::EmbeddedStore;
use crate::hot::{
    CloseReply, DeclineReply, Epochs, HotError, HotStore, HotView, HotVitals, LoadChunk, Mark,
    PendingShare, Repair, Standing,
};

pub(super) struct Gated {
    inner: Arc<EmbeddedStore>,
    open: watch::Sender<bool>,
    sees: watch::Sender<bool>,
    views: AtomicU64,
    viewed: AtomicU64,
}

impl Gated {
    pub(super) fn open(inner: Arc<EmbeddedStore>) -> Self {
        Self {
            inner,
            open: watch::Sender::new(true),
            sees: watch::Sender::new(true),
            views: AtomicU64::new(0),
            viewed: AtomicU64::new(0),
        }
    }

    /// Grabs wait before the store until the gate opens.
    pub(super) fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Looks wait before the store until it sees.
    pub(super) fn set_seeing(&self, sees: bool) {
        self.sees.send_replace(sees);
    }

    /// How often `view` was called.
    pub(super) fn views(&self) -> u64 {
        self.views.load(Ordering::SeqCst)
    }

    /// For how many ids.
    pub(super) fn viewed(&self) -> u64 {
        self.viewed.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl HotStore for Gated {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn ack_level(&self) -> Option<AckLevel> {
        Some(AckLevel::Embedded)
    }

    fn partitions(&self) -> PartitionCount {
        self.inner.partitions()
    }

    fn epoch(&self, partition: Partition) -> Epoch {
        self.inner.epoch(partition)
    }

    fn ready(&self) -> Result<(), String> {
        self.inner.ready()
    }

    async fn vitals(&self) -> Result<HotVitals, HotError> {
        self.inner.vitals().await
    }

    async fn load(&self, under: &Epochs, chunk: LoadChunk) -> Result<(), HotError> {
        self.inner.load(under, chunk).await
    }

    async fn open(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        checksum: u32,
    ) -> Result<HotState, HotError> {
        self.inner.open(under, envelope, checksum).await
    }

    async fn grab(&self, grabs: Vec<Grab>) -> Result<Vec<GrabReply>, HotError> {
        let mut gate = self.open.subscribe();
        let opened = gate.wait_for(|open| *open).await;
        opened.map_err(|_| HotError::Shed)?;
        self.inner.grab(grabs).await
    }

    async fn decline(
        &self,
        epoch: Epoch,
        tenant: TenantId,
        envelope: EnvelopeId,
        grabber: PersonId,
    ) -> Result<DeclineReply, HotError> {
        self.inner.decline(epoch, tenant, envelope, grabber).await
    }

    async fn view(&self, envelopes: Vec<EnvelopeId>) -> Result<Vec<Option<HotView>>, HotError> {
        self.views.fetch_add(1, Ordering::SeqCst);
        let count = u64::try_from(envelopes.len()).unwrap();
        self.viewed.fetch_add(count, Ordering::SeqCst);
        let mut sees = self.sees.subscribe();
        let seeing = sees.wait_for(|sees| *sees).await;
        seeing.map_err(|_| HotError::Shed)?;
        self.inner.view(envelopes).await
    }

    async fn held(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, HotError> {
        self.inner.held(whose).await
    }

    async fn grants(
        &self,
        envelope: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        self.inner.grants(envelope, from, limit).await
    }

    async fn pending(
        &self,
        tenant: TenantId,
        grabber: PersonId,
    ) -> Result<Vec<PendingShare>, HotError> {
        self.inner.pending(tenant, grabber).await
    }

    async fn close(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        terms: Arc<Terms>,
        reason: CloseReason,
    ) -> Result<CloseReply, HotError> {
        self.inner.close(under, envelope, terms, reason).await
    }

    async fn freeze(&self, under: &Epochs, envelope: EnvelopeId) -> Result<(), HotError> {
        self.inner.freeze(under, envelope).await
    }

    async fn unfreeze(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        upto: Mark,
    ) -> Result<(), HotError> {
        self.inner.unfreeze(under, envelope, upto).await
    }

    async fn marked(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<(EnvelopeId, Mark)>, HotError> {
        self.inner.marked(after, limit).await
    }

    async fn outbox(
        &self,
        partition: Partition,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, HotError> {
        self.inner.outbox(partition, after, limit).await
    }

    async fn settled(
        &self,
        epoch: Epoch,
        partition: Partition,
        entries: Vec<(u64, u64)>,
    ) -> Result<u64, HotError> {
        self.inner.settled(epoch, partition, entries).await
    }

    async fn remove(&self, under: &Epochs, envelopes: Vec<EnvelopeId>) -> Result<(), HotError> {
        self.inner.remove(under, envelopes).await
    }

    async fn standing(&self) -> Result<Option<Standing>, HotError> {
        self.inner.standing().await
    }

    async fn register(
        &self,
        standing: Standing,
        epochs: Vec<(Partition, Epoch)>,
    ) -> Result<(), HotError> {
        self.inner.register(standing, epochs).await
    }

    async fn unregistered(&self) {
        self.inner.unregistered().await;
    }

    async fn owes(&self, envelope: EnvelopeId) -> Result<bool, HotError> {
        self.inner.owes(envelope).await
    }

    async fn repair(&self, under: &Epochs, repair: Repair) -> Result<HotState, HotError> {
        self.inner.repair(under, repair).await
    }

    async fn envelopes(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<EnvelopeId>, HotError> {
        self.inner.envelopes(after, limit).await
    }
}
