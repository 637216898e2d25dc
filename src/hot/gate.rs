//! What anybody is told of a share, held back until it is acknowledged at the level in force.
//!
//! # Shape
//! | level | a grab, a decline, a look at who holds what |
//! |---|---|
//! | all but `ledger` | the hot store's answer, as it is: what it says is durable at its level |
//! | `ledger` | the same, after the books have what it says, through a [`Gate`] |
//!
//! # Bounds
//! One posting a partition that a call names. Up to [`POSTED_KEPT_MAX`] shares are remembered as posted.
//!
//! # Ordering
//! The hot store decides first, so there is no lock and no second winner; the books are asked about
//! what it decided, also where it was decided by an earlier call whose answer nobody got. What the
//! books did not take is told to nobody: the outbox owes it, and the same call finds it later.
//!
//! # If it crashes here
//! The drain posts what the outbox owes; a repeated grab is told what became of it.
//!
//! # Not here
//! How records are posted: the settle room, in the same process. Counts of taken shares, which are a
//! hint at every level.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future;
use quick_cache::sync::Cache;

use super::{DeclineReply, HotError, HotStore, HotView, PendingShare};
use crate::domain::grab::{Grab, GrabReply, HeldShare, OutboxRecord, Outcome};
use crate::domain::id::{EnvelopeId, Epoch, Partition, PersonId, TenantId};

/// Shares that are known to be in the books: those that people look at or ask for again.
const POSTED_KEPT_MAX: usize = 1 << 18;

/// Has the books take what the hot store decided.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Posts records of one partition that were granted in `epoch`. Answers for each whether it now
    /// stands in the books as it was granted.
    ///
    /// # Errors
    /// `Epoch`: the partition stands in another one. Otherwise the books are out of reach.
    async fn post(
        &self,
        partition: Partition,
        epoch: Epoch,
        records: Vec<OutboxRecord>,
    ) -> Result<Vec<bool>, HotError>;
}

/// See the module.
pub struct Gated {
    hot: Arc<dyn HotStore>,
    gate: Option<Closed>,
}

/// The gate, and what has passed it.
struct Closed {
    gate: Arc<dyn Gate>,
    posted: Cache<(EnvelopeId, u32), ()>,
}

/// Records of one partition and epoch, each with its place among the answers of a call.
type Owed = BTreeMap<(Partition, Epoch), Vec<(usize, OutboxRecord)>>;

impl Gated {
    /// Before this store; a gate where the level in force is `ledger`.
    pub fn new(hot: Arc<dyn HotStore>, gate: Option<Arc<dyn Gate>>) -> Self {
        let posted = || Cache::new(POSTED_KEPT_MAX);
        let closed = |gate| Closed {
            gate,
            posted: posted(),
        };
        Self {
            hot,
            gate: gate.map(closed),
        }
    }

    /// [`HotStore::grab`].
    ///
    /// # Errors
    /// Those of the store; `Unavailable` where the books can't be asked. A repetition resolves both.
    pub async fn grab(&self, grabs: Vec<Grab>) -> Result<Vec<GrabReply>, HotError> {
        let Some(closed) = &self.gate else {
            return self.hot.grab(grabs).await;
        };
        let mut replies = self.hot.grab(grabs.clone()).await?;
        let mut owed = Owed::new();
        for (place, (grab, reply)) in grabs.iter().zip(&replies).enumerate() {
            if let GrabReply::Outcome(Outcome::Won(grant) | Outcome::AlreadyGrabbed(grant)) = reply
            {
                let record = OutboxRecord {
                    envelope: grab.envelope,
                    grabber: grab.grabber.clone(),
                    grant: *grant,
                    declined: false,
                };
                let partition = grab.envelope.partition(self.hot.partitions());
                closed.owe(&mut owed, (partition, grab.epoch), place, record);
            }
        }
        for (place, posted) in closed.post(owed).await? {
            match posted {
                Ok(true) => {}
                // It stands still for everybody until somebody has looked at what the books refuse.
                Ok(false) => replies[place] = GrabReply::Frozen,
                Err(epoch) => replies[place] = GrabReply::Epoch(epoch),
            }
        }
        Ok(replies)
    }

    /// [`HotStore::decline`].
    ///
    /// # Errors
    /// As [`Gated::grab`].
    pub async fn decline(
        &self,
        epoch: Epoch,
        tenant: TenantId,
        envelope: EnvelopeId,
        grabber: PersonId,
    ) -> Result<DeclineReply, HotError> {
        let declined = self.hot.decline(epoch, tenant, envelope, grabber.clone());
        let declined = declined.await?;
        let (Some(closed), DeclineReply::Declined { grant, .. }) = (&self.gate, &declined) else {
            return Ok(declined);
        };
        let held = HeldShare {
            grabber,
            grant: *grant,
            declined: true,
        };
        let stands = self.stand(closed, epoch, envelope, vec![held]).await?;
        Ok(match stands.is_empty() {
            false => declined,
            true => DeclineReply::Frozen,
        })
    }

    /// [`HotStore::held`].
    ///
    /// # Errors
    /// As [`Gated::grab`].
    pub async fn held(
        &self,
        grabber: PersonId,
        envelopes: Vec<EnvelopeId>,
    ) -> Result<Vec<Option<HeldShare>>, HotError> {
        let Some(closed) = &self.gate else {
            return self.hot.held(grabber, envelopes).await;
        };
        // The epochs first: looked up afterwards, they could be those of a store that has lost what is
        // read here.
        let under = |id: &EnvelopeId| {
            let partition = id.partition(self.hot.partitions());
            (partition, self.hot.epoch(partition))
        };
        let unders: Vec<_> = envelopes.iter().map(under).collect();
        let mut found = self.hot.held(grabber, envelopes.clone()).await?;
        let mut owed = Owed::new();
        let asked = envelopes.into_iter().zip(unders);
        for (place, ((envelope, under), held)) in asked.zip(&found).enumerate() {
            if let Some(held) = held {
                closed.owe(&mut owed, under, place, record(envelope, held));
            }
        }
        for (place, posted) in closed.post(owed).await? {
            if posted != Ok(true) {
                found[place] = None;
            }
        }
        Ok(found)
    }

    /// [`HotStore::grants`].
    ///
    /// # Errors
    /// As [`Gated::grab`].
    pub async fn grants(
        &self,
        envelope: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        let epoch = self.hot.epoch(envelope.partition(self.hot.partitions()));
        let granted = self.hot.grants(envelope, from, limit).await?;
        Ok(match (&self.gate, granted) {
            (Some(closed), Some(granted)) => {
                Some(self.stand(closed, epoch, envelope, granted).await?)
            }
            (_, granted) => granted,
        })
    }

    /// [`HotStore::pending`]: nothing at level `ledger`, where what is not in the books was told to nobody.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn pending(
        &self,
        tenant: TenantId,
        grabber: PersonId,
    ) -> Result<Vec<PendingShare>, HotError> {
        match &self.gate {
            None => self.hot.pending(tenant, grabber).await,
            Some(_) => Ok(Vec::new()),
        }
    }

    /// Whether all that was taken of an envelope may be told of, where so many of its shares are in the
    /// books.
    pub fn has_passed(&self, view: &HotView, in_books: u32) -> bool {
        self.gate.is_none() || in_books >= view.taken_count
    }

    /// Those of these shares that stand in the books, in their order.
    async fn stand(
        &self,
        closed: &Closed,
        epoch: Epoch,
        envelope: EnvelopeId,
        held: Vec<HeldShare>,
    ) -> Result<Vec<HeldShare>, HotError> {
        let under = (envelope.partition(self.hot.partitions()), epoch);
        let mut owed = Owed::new();
        for (place, held) in held.iter().enumerate() {
            closed.owe(&mut owed, under, place, record(envelope, held));
        }
        let mut stands = vec![true; held.len()];
        for (place, posted) in closed.post(owed).await? {
            stands[place] = posted == Ok(true);
        }
        let pairs = held.into_iter().zip(stands);
        Ok(pairs
            .filter_map(|(held, stands)| stands.then_some(held))
            .collect())
    }
}

fn record(envelope: EnvelopeId, held: &HeldShare) -> OutboxRecord {
    OutboxRecord {
        envelope,
        grabber: held.grabber.clone(),
        grant: held.grant,
        declined: held.declined,
    }
}

impl Closed {
    /// Notes what is to be posted, unless it is known to be in the books.
    fn owe(&self, owed: &mut Owed, under: (Partition, Epoch), place: usize, record: OutboxRecord) {
        let share = (record.envelope, record.grant.share);
        if self.posted.get(&share).is_none() {
            owed.entry(under).or_default().push((place, record));
        }
    }

    /// By place: whether it stands in the books, or the epoch in which its partition does.
    async fn post(&self, owed: Owed) -> Result<Vec<(usize, Result<bool, Epoch>)>, HotError> {
        let posts = owed
            .into_iter()
            .map(|((partition, epoch), of_it)| async move {
                let (places, records): (Vec<usize>, Vec<OutboxRecord>) = of_it.into_iter().unzip();
                let shares: Vec<_> = records
                    .iter()
                    .map(|r| (r.envelope, r.grant.share))
                    .collect();
                let stands = match self.gate.post(partition, epoch, records).await {
                    Ok(stands) => stands.into_iter().map(Ok).collect(),
                    Err(HotError::Epoch(stands)) => vec![Err(stands); places.len()],
                    Err(error) => return Err(error),
                };
                for (share, stands) in shares.into_iter().zip(&stands) {
                    if *stands == Ok(true) {
                        self.posted.insert(share, ());
                    }
                }
                Ok(places.into_iter().zip(stands).collect::<Vec<_>>())
            });
        let posted = future::try_join_all(posts).await?;
        Ok(posted.into_iter().flatten().collect())
    }
}
