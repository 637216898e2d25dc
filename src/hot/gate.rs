//! What anybody is told of a share, held back until it is acknowledged at the level in force.
//!
//! # Shape
//! | level | a grab, a decline, a look at who holds what |
//! |---|---|
//! | all but `ledger` | the hot store's answer, as it is: what it says is durable at its level |
//! | `ledger` | the same, after the books have what it says, through a [`Gate`] |
//!
//! # Bounds
//! [`GRABS_WAITING_MAX`] wait for an answer; beyond what the store takes at once, only who would be answered within
//! [`GRAB_WAIT_MAX`] may wait (`pace`). One posting a partition that a call names. Up to [`POSTED_KEPT_MAX`] shares are remembered as posted.
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
//! How records are posted: the settle room, in the same process. Counts and sums of taken shares, which
//! are a hint at this level.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future;
use quick_cache::sync::Cache;

use super::pace::{Pace, Passing, TurnedAway};
use super::{DeclineReply, Epochs, GRAB_WAIT_MAX, HotError, HotStore, HotView, PendingShare};
use crate::domain::grab::{Grab, GrabReply, HeldShare, OutboxRecord, Outcome};
use crate::domain::id::{EnvelopeId, Epoch, Partition, PersonId, TenantId};

/// Shares that are known to be in the books: those that people look at or ask for again.
const POSTED_KEPT_MAX: usize = 1 << 18;

/// Grabs that wait for an answer, however fast those are given.
pub const GRABS_WAITING_MAX: usize = 65_536;

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
    gate: Option<Shut>,
    pace: Arc<Pace>,
}

/// Where a grab goes that has come.
#[derive(Debug)]
pub enum Admitted {
    /// Nowhere: this is its answer, from memory.
    Told(GrabReply),
    /// To the store, and it is counted until this is dropped.
    In(Passing),
}

/// The gate, and who has passed it with which share in which epoch.
struct Shut {
    gate: Arc<dyn Gate>,
    posted: Cache<(EnvelopeId, u32, Epoch), PersonId>,
}

/// Records of one partition and epoch, each with its place among the answers of a call.
type Owed = BTreeMap<(Partition, Epoch), Vec<(usize, OutboxRecord)>>;

impl Gated {
    /// Before this store; a gate where the level in force is `ledger`.
    pub fn new(hot: Arc<dyn HotStore>, gate: Option<Arc<dyn Gate>>) -> Self {
        let posted = || Cache::new(POSTED_KEPT_MAX);
        let shut = |gate| Shut {
            gate,
            posted: posted(),
        };
        let pace = Pace::new(GRABS_WAITING_MAX, hot.takes_at_once(), GRAB_WAIT_MAX);
        Self {
            hot,
            gate: gate.map(shut),
            pace: Arc::new(pace),
        }
    }

    /// How long a grab that comes now would wait for its answer, as far as is known.
    pub fn wait(&self) -> Duration {
        self.pace.wait()
    }

    /// Whether a grab may come. Who asks for an envelope that is known to be empty is told so whatever else waits.
    ///
    /// # Errors
    /// It would wait too long: nothing was done.
    pub fn admit(&self, grab: &Grab) -> Result<Admitted, TurnedAway> {
        match self.remembered(grab) {
            Some(reply) => Ok(Admitted::Told(reply)),
            None => Ok(Admitted::In(self.pace.enter()?)),
        }
    }

    /// [`HotStore::remembered`], of what may be told.
    pub fn remembered(&self, grab: &Grab) -> Option<GrabReply> {
        let reply = self.hot.remembered(grab)?;
        let is_no_share = matches!(reply, GrabReply::Outcome(Outcome::Empty));
        (self.gate.is_none() || is_no_share).then_some(reply)
    }

    /// Counts one who is let in, beside those who are to be served with him. He would wait so long, by [`Gated::wait`]
    /// when the first of them came.
    ///
    /// # Errors
    /// As [`Gated::admit`].
    pub fn enter(&self, with: &mut Option<Passing>, wait: Duration) -> Result<(), TurnedAway> {
        match with {
            Some(passing) => passing.join(wait),
            None => {
                *with = Some(self.pace.enter()?);
                Ok(())
            }
        }
    }

    /// [`HotStore::grab`], for those who were let in.
    ///
    /// # Errors
    /// Those of the store. What the books did not take is `Unsettled`, each by itself.
    pub async fn grab(&self, grabs: Vec<Grab>) -> Result<Vec<GrabReply>, HotError> {
        let Some(shut) = &self.gate else {
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
                shut.owe(&mut owed, (grab.partition, grab.epoch), place, record);
            }
        }
        for (place, posted) in shut.post(owed).await {
            match posted {
                Ok(true) => {}
                Err(HotError::Epoch(epoch)) => replies[place] = GrabReply::Epoch(epoch),
                // The others of the call are answered: they are of other partitions, or need no books.
                Ok(false) | Err(_) => replies[place] = GrabReply::Unsettled,
            }
        }
        Ok(replies)
    }

    /// [`HotStore::decline`].
    ///
    /// # Errors
    /// As [`Gated::held`]; `Unavailable` where the books don't take it.
    pub async fn decline(
        &self,
        epoch: Epoch,
        tenant: TenantId,
        envelope: EnvelopeId,
        grabber: PersonId,
    ) -> Result<DeclineReply, HotError> {
        let epochs = Epochs::all(self.hot.partitions(), epoch);
        let declined = self.hot.decline(epoch, tenant, envelope, grabber.clone());
        let declined = declined.await?;
        let (Some(shut), DeclineReply::Declined { grant, .. }) = (&self.gate, &declined) else {
            return Ok(declined);
        };
        let held = HeldShare {
            grabber,
            grant: *grant,
            declined: true,
        };
        let stands = self.stand(shut, &epochs, envelope, vec![held]).await?;
        match stands.is_empty() {
            false => Ok(declined),
            true => {
                let why = "the books don't take the declined share as it stands";
                Err(HotError::Unavailable(why.to_owned()))
            }
        }
    }

    /// [`HotStore::held`].
    ///
    /// # Errors
    /// Those of the store, also where the books stand in another epoch; `Unavailable` where they can't be
    /// asked.
    pub async fn held(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, HotError> {
        let Some(shut) = &self.gate else {
            return self.hot.held(whose).await;
        };
        // The epochs first: looked up afterwards, they could be those of a store that has lost what is
        // read here.
        let epochs = self.hot.epochs();
        let envelopes: Vec<_> = whose.iter().map(|(envelope, _)| *envelope).collect();
        let mut found = self.hot.held(whose).await?;
        let mut owed = Owed::new();
        for (place, (envelope, held)) in envelopes.into_iter().zip(&found).enumerate() {
            if let Some(held) = held {
                let partition = self.hot.granted_in(envelope, held);
                let under = (partition, epochs.of(partition));
                shut.owe(&mut owed, under, place, record(envelope, held));
            }
        }
        for (place, posted) in shut.post(owed).await {
            if !posted? {
                found[place] = None;
            }
        }
        Ok(found)
    }

    /// [`HotStore::grants`], and the number from which there may be more.
    ///
    /// # Errors
    /// Those of the store; `Unavailable` where the books can't be asked.
    pub async fn grants(
        &self,
        envelope: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<(Vec<HeldShare>, Option<u32>), HotError> {
        let epochs = self.hot.epochs();
        let granted = self.hot.grants(envelope, from, limit).await?;
        let granted = granted.unwrap_or_default();
        let next = where_to_go_on(&granted, limit);
        let shown = match &self.gate {
            Some(shut) => self.stand(shut, &epochs, envelope, granted).await?,
            None => granted,
        };
        Ok((shown, next))
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
        shut: &Shut,
        epochs: &Epochs,
        envelope: EnvelopeId,
        held: Vec<HeldShare>,
    ) -> Result<Vec<HeldShare>, HotError> {
        let mut owed = Owed::new();
        for (place, held) in held.iter().enumerate() {
            let partition = self.hot.granted_in(envelope, held);
            let under = (partition, epochs.of(partition));
            shut.owe(&mut owed, under, place, record(envelope, held));
        }
        let mut stands = vec![true; held.len()];
        for (place, posted) in shut.post(owed).await {
            stands[place] = posted?;
        }
        let pairs = held.into_iter().zip(stands);
        Ok(pairs
            .filter_map(|(held, stands)| stands.then_some(held))
            .collect())
    }
}

/// Behind the last of so many grants, where all were asked for and there may be more.
pub fn where_to_go_on(granted: &[HeldShare], limit: usize) -> Option<u32> {
    let last = granted.last().filter(|_| granted.len() >= limit);
    last.map(|held| held.grant.share + 1)
}

fn record(envelope: EnvelopeId, held: &HeldShare) -> OutboxRecord {
    OutboxRecord {
        envelope,
        grabber: held.grabber.clone(),
        grant: held.grant,
        declined: held.declined,
    }
}

impl Shut {
    /// Notes what is to be posted, unless it is known to be in the books.
    fn owe(&self, owed: &mut Owed, under: (Partition, Epoch), place: usize, record: OutboxRecord) {
        let share = (record.envelope, record.grant.share, under.1);
        if self.posted.get(&share).as_ref() != Some(&record.grabber) {
            owed.entry(under).or_default().push((place, record));
        }
    }

    /// By place: whether it stands in the books, or why that is not known.
    async fn post(&self, owed: Owed) -> Vec<(usize, Result<bool, HotError>)> {
        let posts = owed
            .into_iter()
            .map(|((partition, epoch), of_it)| async move {
                let (places, records): (Vec<usize>, Vec<OutboxRecord>) = of_it.into_iter().unzip();
                let passing = records.iter().map(|record| {
                    let share = (record.envelope, record.grant.share, epoch);
                    (share, record.grabber.clone())
                });
                let passing: Vec<_> = passing.collect();
                let posted = self.gate.post(partition, epoch, records).await;
                let mut answers = Vec::with_capacity(places.len());
                for (at, (place, (share, grabber))) in places.into_iter().zip(passing).enumerate() {
                    let stands = match &posted {
                        Ok(stands) => Ok(stands.get(at).copied().unwrap_or(false)),
                        Err(error) => Err(error.clone()),
                    };
                    if matches!(stands, Ok(true)) {
                        self.posted.insert(share, grabber);
                    }
                    answers.push((place, stands));
                }
                answers
            });
        future::join_all(posts)
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}
