//! What is decided between the doors, with a hot store that says what a test tells it to. It proves
//! nothing of a protocol: `hot/conformance` and the real stores do.

mod publisher;
mod registrar;

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::Notify;

use crate::clock::ManualClock;
use crate::domain::ack::AckLevel;
use crate::domain::envelope::{CloseReason, HotState, Terms};
use crate::domain::fairness::{SealKey, SealKeys};
use crate::domain::grab::{Grab, GrabReply, HeldShare, OutboxEntry};
use crate::domain::id::{EnvelopeId, Epoch, Partition, PartitionCount, PersonId, TenantId};
use crate::hot::{
    CloseReply, DeclineReply, Epochs, HotError, HotStore, HotView, HotVitals, LoadChunk, Mark,
    PendingShare, Repair, Standing,
};
use crate::ledger::conformance::{NOON_MS, World};
use crate::ledger::sqlite::SqliteLedger;

/// Books of their own.
fn books() -> (World, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(NOON_MS);
    let keys = SealKeys::new(vec![SealKey::new(1, [7; 32])]).unwrap();
    let rng = Box::new(StdRng::seed_from_u64(3));
    let path = folder.path().join("ledger.sqlite");
    let ledger = SqliteLedger::open(&path, Arc::new(clock.clone()), keys, rng).unwrap();
    let ledger = Arc::new(ledger);
    (World { ledger, clock }, folder)
}

/// What the store says, and what it was told.
#[derive(Debug)]
struct Said {
    /// The epoch that this process believes in, and the one in which the store stands.
    believed: Epoch,
    stands: Epoch,
    view: Option<(HotState, bool)>,
    owes: bool,
    promised: bool,
    grants: Vec<HeldShare>,
    standing: Option<Standing>,
    /// How often it was asked who stands there.
    looks: usize,
    calls: Vec<&'static str>,
    repairs: Vec<Repair>,
    registered: Vec<(String, Vec<(Partition, Epoch)>)>,
}

/// A store that holds nothing but what it is told to say.
struct Scripted {
    partitions: PartitionCount,
    said: Mutex<Said>,
    unregistered: Notify,
}

impl Scripted {
    fn new(partitions: u16) -> Arc<Self> {
        Arc::new(Self {
            partitions: PartitionCount::new(partitions).unwrap(),
            said: Mutex::new(Said {
                believed: Epoch::FIRST,
                stands: Epoch::FIRST,
                view: None,
                owes: false,
                promised: false,
                grants: Vec::new(),
                standing: None,
                looks: 0,
                calls: Vec::new(),
                repairs: Vec::new(),
                registered: Vec::new(),
            }),
            unregistered: Notify::new(),
        })
    }

    /// The calls since it was asked last.
    fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.said.lock().calls)
    }

    /// Takes note of a call, and turns it away where its epochs are others.
    fn told(&self, call: &'static str, under: &Epochs) -> Result<(), HotError> {
        let mut said = self.said.lock();
        said.calls.push(call);
        if *under == Epochs::all(self.partitions, said.stands) {
            return Ok(());
        }
        said.believed = said.stands;
        Err(HotError::Epoch(said.stands))
    }
}

#[async_trait]
impl HotStore for Scripted {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn ack_level(&self) -> Option<AckLevel> {
        Some(AckLevel::Embedded)
    }

    fn partitions(&self) -> PartitionCount {
        self.partitions
    }

    fn epoch(&self, _: Partition) -> Epoch {
        self.said.lock().believed
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    async fn vitals(&self) -> Result<HotVitals, HotError> {
        Ok(HotVitals::default())
    }

    async fn load(&self, under: &Epochs, _: LoadChunk) -> Result<(), HotError> {
        self.told("load", under)
    }

    async fn open(&self, under: &Epochs, _: EnvelopeId, _: u32) -> Result<HotState, HotError> {
        self.told("open", under).map(|()| HotState::Live)
    }

    async fn grab(&self, _: Vec<Grab>) -> Result<Vec<GrabReply>, HotError> {
        unreachable!("nobody grabs here")
    }

    async fn decline(
        &self,
        _: Epoch,
        _: TenantId,
        _: EnvelopeId,
        _: PersonId,
    ) -> Result<DeclineReply, HotError> {
        unreachable!("nobody declines here")
    }

    async fn view(&self, envelopes: Vec<EnvelopeId>) -> Result<Vec<Option<HotView>>, HotError> {
        let mut said = self.said.lock();
        said.calls.push("view");
        let view = said.view.map(|(state, stale)| HotView {
            gathered: false,
            envelope: envelopes[0],
            terms: publisher::any_terms(),
            state,
            frozen: None,
            taken_count: 0,
            taken_minor: 0,
            declined_count: 0,
            best: None,
            stale,
        });
        Ok(vec![view])
    }

    async fn held(
        &self,
        _: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, HotError> {
        unreachable!("nobody looks here")
    }

    async fn grants(
        &self,
        _: EnvelopeId,
        _: u32,
        _: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        let mut said = self.said.lock();
        said.calls.push("grants");
        Ok(Some(said.grants.clone()))
    }

    async fn pending(&self, _: TenantId, _: PersonId) -> Result<Vec<PendingShare>, HotError> {
        unreachable!("nobody waits here")
    }

    async fn close(
        &self,
        under: &Epochs,
        _: EnvelopeId,
        _: Arc<Terms>,
        reason: CloseReason,
    ) -> Result<CloseReply, HotError> {
        self.told("close", under).map(|()| CloseReply::Over {
            reason,
            taken_count: 0,
            taken_minor: 0,
        })
    }

    async fn freeze(&self, under: &Epochs, _: EnvelopeId) -> Result<(), HotError> {
        self.told("freeze", under)
    }

    async fn unfreeze(&self, under: &Epochs, _: EnvelopeId, _: Mark) -> Result<(), HotError> {
        self.told("unfreeze", under)
    }

    async fn marked(
        &self,
        _: Option<EnvelopeId>,
        _: usize,
    ) -> Result<Vec<(EnvelopeId, Mark)>, HotError> {
        unreachable!("nobody asks for marks here")
    }

    async fn outbox(
        &self,
        _: Partition,
        _: Option<u64>,
        _: usize,
    ) -> Result<Vec<OutboxEntry>, HotError> {
        unreachable!("nobody drains here")
    }

    async fn settled(&self, _: Epoch, _: Partition, _: Vec<(u64, u64)>) -> Result<u64, HotError> {
        unreachable!("nobody drains here")
    }

    async fn remove(&self, _: &Epochs, _: Vec<EnvelopeId>) -> Result<(), HotError> {
        unreachable!("nothing is forgotten here")
    }

    async fn standing(&self) -> Result<Option<Standing>, HotError> {
        let mut said = self.said.lock();
        said.looks += 1;
        Ok(said.standing.clone())
    }

    async fn register(
        &self,
        standing: Standing,
        epochs: Vec<(Partition, Epoch)>,
    ) -> Result<(), HotError> {
        let mut said = self.said.lock();
        if let Some(standing) = &mut said.standing {
            for (partition, epoch) in &epochs {
                standing.epochs[usize::from(partition.index())] = Some(*epoch);
            }
        }
        said.registered.push((standing.server, epochs));
        Ok(())
    }

    async fn unregistered(&self) {
        self.unregistered.notified().await;
    }

    fn has_promised(&self, _envelope: EnvelopeId) -> bool {
        self.said.lock().promised
    }

    async fn owes(&self, _: EnvelopeId) -> Result<bool, HotError> {
        let mut said = self.said.lock();
        said.calls.push("owes");
        Ok(said.owes)
    }

    async fn repair(&self, under: &Epochs, repair: Repair) -> Result<HotState, HotError> {
        self.told("repair", under)?;
        let mut said = self.said.lock();
        let over = repair.over;
        said.repairs.push(repair);
        if let Some(reason) = over {
            return Ok(HotState::Over(reason));
        }
        let ended = said.view.map(|(state, _)| state);
        Ok(match ended {
            Some(HotState::Over(reason)) => HotState::Over(reason),
            _ => HotState::Live,
        })
    }

    async fn envelopes(
        &self,
        _: Option<EnvelopeId>,
        _: usize,
    ) -> Result<Vec<EnvelopeId>, HotError> {
        Ok(Vec::new())
    }
}
