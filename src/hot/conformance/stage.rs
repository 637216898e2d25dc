//! The stage on which the conformance cases play: envelopes to load, people who grab.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::clock::ManualClock;
use crate::domain::audience::{Audience, PassphraseLock, Pepper, PhraseDigest};
use crate::domain::envelope::{
    Draft, ExclusiveShare, HotState, Kind, LOAD_CHUNK_SHARES_MAX, Reveal, Terms, shares_checksum,
};
use crate::domain::grab::{Grab, GrabReply, OutboxRecord, Outcome};
use crate::domain::id::{EnvelopeId, Epoch, Partition, PersonId, TenantId, UnixMs};
use crate::domain::money::Currency;
use crate::domain::split::Split;
use crate::domain::stripes::{StripeCount, home_partition};
use crate::hot::{HotError, HotStore, LoadChunk};

/// When the stage's clock begins: 2026-02-17, a new year.
pub const NEW_YEAR_MS: i64 = 1_771_286_400_000;
/// How long the stage's envelopes can be grabbed.
pub const EXPIRES_IN_MS: i64 = 3_600_000;
const PEPPER: Pepper = Pepper([9; 32]);

/// A store under test, its clock, and a way to lose what is not durable.
#[async_trait]
pub trait Stage: Send {
    /// The store as it runs now.
    fn store(&self) -> Arc<dyn HotStore>;
    /// The clock that the store reads.
    fn clock(&self) -> &ManualClock;
    /// Ends the store without warning and starts it on what is durable.
    async fn crash(&mut self);
}

/// Somebody.
pub fn person(name: &str) -> PersonId {
    PersonId::parse(name).expect("the cases name people properly")
}

/// The default tenant.
pub fn tenant() -> TenantId {
    TenantId::parse("").expect("the default tenant has a name")
}

/// The partition of an envelope.
pub fn partition(store: &dyn HotStore, id: EnvelopeId) -> Partition {
    id.partition(store.partitions())
}

/// The epoch in which a store's partition of an envelope stands.
pub fn epoch(store: &dyn HotStore, id: EnvelopeId) -> Epoch {
    store.epoch(partition(store, id))
}

/// What somebody who says `phrase` brings to an envelope of [`Cast::locked`].
pub fn phrase(phrase: &str) -> PhraseDigest {
    lock().try_phrase(phrase, &PEPPER)
}

fn lock() -> PassphraseLock {
    PassphraseLock::new("open sesame", [1; 16], &PEPPER)
}

/// An envelope that a case plays with.
#[derive(Clone, Debug)]
pub struct Cast {
    /// Drawn at random, so that cases can share a store.
    pub id: EnvelopeId,
    /// Its terms.
    pub terms: Arc<Terms>,
    /// What its shares are worth.
    pub amounts: Vec<i64>,
}

impl Cast {
    /// A lucky envelope with these shares.
    pub fn lucky(amounts: &[i64]) -> Self {
        let share_count = u32::try_from(amounts.len()).expect("cases are small");
        let draft = Draft {
            tenant: tenant(),
            sender: person("sender"),
            kind: Kind::Lucky,
            currency: Currency::from_code("CNY").expect("CNY is a code"),
            total_minor: amounts.iter().sum(),
            share_count,
            min_minor: 1,
            max_minor: 1_000_000,
            split: Some(Split::DoubleMean),
            exclusive: Vec::new(),
            audience: Audience::Anyone,
            passphrase: None,
            greeting: "恭喜发财".into(),
            cover_id: String::new(),
            reveal: Reveal::AfterGrab,
            labels: BTreeMap::new(),
            opens_at: None,
            expires_in_ms: EXPIRES_IN_MS,
            client_nonce: Vec::new(),
            stripes: StripeCount::ONE,
        };
        Self::under(draft, amounts.to_vec())
    }

    /// Shares for the named, in their order.
    pub fn exclusive(shares: &[(&str, i64)]) -> Self {
        let amounts: Vec<i64> = shares.iter().map(|(_, amount)| *amount).collect();
        Self::lucky(&amounts).with(|draft| {
            draft.kind = Kind::Exclusive;
            draft.split = None;
            let named = shares.iter().map(|(name, amount_minor)| ExclusiveShare {
                grabber: person(name),
                amount_minor: *amount_minor,
            });
            draft.exclusive = named.collect();
            draft.audience = Audience::Named(shares.iter().map(|(name, _)| person(name)).collect());
        })
    }

    /// Locked with a passphrase, "open sesame".
    pub fn locked(amounts: &[i64]) -> Self {
        Self::lucky(amounts).with(|draft| draft.passphrase = Some(lock()))
    }

    /// The same with another draft.
    pub fn with(self, change: impl FnOnce(&mut Draft)) -> Self {
        let mut draft = self.terms.draft.clone();
        change(&mut draft);
        Self::under(draft, self.amounts)
    }

    fn under(draft: Draft, amounts: Vec<i64>) -> Self {
        let created_at = UnixMs(NEW_YEAR_MS);
        let leaf = crate::domain::envelope::LeafRef {
            leaf_number: 1,
            leaf_hash: [2; 32],
            batch_number: 0,
            batch_root: [3; 32],
        };
        let expires_at = created_at.plus_ms(draft.expires_in_ms);
        Self {
            id: EnvelopeId::from_parts(created_at.day(), rand::random()),
            terms: Arc::new(Terms {
                draft,
                created_at,
                expires_at,
                leaf,
            }),
            amounts,
        }
    }

    /// Its `number`th chunk.
    pub fn chunk(&self, number: usize) -> LoadChunk {
        let from = number * LOAD_CHUNK_SHARES_MAX;
        let to = self.amounts.len().min(from + LOAD_CHUNK_SHARES_MAX);
        LoadChunk {
            envelope: self.id,
            terms: Arc::clone(&self.terms),
            offset: u32::try_from(from).expect("cases are small"),
            amounts_minor: self.amounts[from..to].to_vec(),
        }
    }

    /// Loads it.
    pub async fn load(&self, store: &dyn HotStore) -> Result<(), HotError> {
        for number in 0..self.amounts.len().div_ceil(LOAD_CHUNK_SHARES_MAX) {
            store.load(&store.epochs(), self.chunk(number)).await?;
        }
        Ok(())
    }

    /// Opens it.
    pub async fn open(&self, store: &dyn HotStore) -> Result<HotState, HotError> {
        let checksum = shares_checksum(&self.amounts);
        store.open(&store.epochs(), self.id, checksum).await
    }

    /// Loads and opens it.
    pub async fn publish(&self, store: &dyn HotStore) {
        self.load(store).await.expect("the shares are fine");
        let state = self.open(store).await.expect("they are all there");
        assert_eq!(state, HotState::Live);
    }

    /// A grab by somebody, in the epoch in which the store stands.
    pub fn grab_in(&self, store: &dyn HotStore, name: &str) -> Grab {
        let (grab, of) = (self.grab_by(name), self.terms.stripes);
        let partition = home_partition(self.id, &grab.grabber, of, store.partitions());
        Grab {
            partition,
            epoch: store.epoch(partition),
            ..grab
        }
    }

    /// A grab by somebody, of a store that is never replaced.
    pub fn grab_by(&self, name: &str) -> Grab {
        Grab {
            partition: Partition::ZERO,
            epoch: Epoch::FIRST,
            tenant: self.terms.tenant.clone(),
            envelope: self.id,
            grabber: person(name),
            phrase: None,
        }
    }

    /// Grabs for somebody and waits for the answer.
    pub async fn grab(&self, store: &dyn HotStore, name: &str) -> GrabReply {
        one(store, self.grab_in(store, name)).await
    }

    /// Grabs with a passphrase.
    pub async fn grab_with(&self, store: &dyn HotStore, name: &str, said: &str) -> GrabReply {
        let grab = Grab {
            phrase: Some(phrase(said)),
            ..self.grab_in(store, name)
        };
        one(store, grab).await
    }

    /// What is owed for it.
    pub async fn debts(&self, store: &dyn HotStore) -> Vec<OutboxRecord> {
        let entries = store
            .outbox(partition(store, self.id), None, usize::MAX)
            .await;
        let entries = entries.expect("the outbox can be read");
        let records = entries.into_iter().flat_map(|entry| entry.records);
        records.filter(|r| r.envelope == self.id).collect()
    }

    /// Settles everything that the store owes.
    pub async fn settle_all(&self, store: &dyn HotStore) -> u64 {
        let entries = store
            .outbox(partition(store, self.id), None, usize::MAX)
            .await;
        let entries = entries.expect("the outbox can be read");
        let pairs = entries.iter().map(|e| (e.id, e.nonce)).collect();
        let (epoch, partition) = (epoch(store, self.id), partition(store, self.id));
        let settled = store.settled(epoch, partition, pairs).await;
        settled.expect("settling is allowed")
    }
}

/// Asks for one grab.
pub async fn one(store: &dyn HotStore, grab: Grab) -> GrabReply {
    let replies = store.grab(vec![grab]).await.expect("the store serves");
    let [reply] = replies[..] else {
        panic!("one grab has {} replies", replies.len());
    };
    reply
}

/// The outcome of a reply that has one.
pub fn outcome(reply: GrabReply) -> Outcome {
    match reply {
        GrabReply::Outcome(outcome) => outcome,
        other => panic!("no outcome: {other:?}"),
    }
}

/// The number and amount of a share that was just won.
pub fn won(reply: GrabReply) -> (u32, i64) {
    match outcome(reply) {
        Outcome::Won(grant) => (grant.share, grant.amount_minor),
        other => panic!("not won: {other:?}"),
    }
}
