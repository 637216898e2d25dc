//! The hot store on Redis: every decision is one call of a function, whole or not at all.
//!
//! # Shape
//! | file | noun |
//! |---|---|
//! | `library.lua` | the functions, which run inside Redis |
//! | `keys`, `layout`, `reply` | names of keys, bytes under them, codes of answers |
//! | `link` | one multiplexed connection |
//! | `core` | what all parts share; how a function is called |
//! | `batcher` | grabs on their own connection, many a call |
//! | `acked` | what was acknowledged and is not in the books yet |
//! | `emptied`, `names` | who took the shares of empty envelopes that many still ask for |
//! | `pending` | what people have won that waits for the ledger |
//! | `dealt` | one envelope in several partitions |
//! | `index` | which envelopes there are |
//! | `lifecycle`, `reads`, `walk`, `outbox`, `repair` | the other functions of the door |
//! | `plan` | who has which share after a repair |
//! | `register` | the library and the epochs |
//! | `checks` | whether the server keeps what the level promises |
//!
//! # Ordering
//! The store grants nothing before the ledger accepted the Redis process for its partitions
//! (`register`), and nothing while the acknowledgement level does not hold ([`RedisStore::check`]).
//!
//! # If it crashes here
//! This process remembers caches of what never changes within an epoch, and what it acknowledged and
//! the books don't have yet (`acked`), for a Redis that loses it. Redis has all of it.
//!
//! # Not here
//! Sentinel and Cluster; the ledger.

mod acked;
mod batcher;
pub mod checks;
mod core;
mod dealt;
mod emptied;
mod index;
mod keys;
#[cfg(any(test, feature = "test-hooks"))]
pub mod law;
mod layout;
mod lifecycle;
mod link;
mod names;
mod outbox;
mod pending;
mod plan;
mod reads;
mod register;
mod repair;
mod reply;
#[cfg(any(test, feature = "test-hooks"))]
pub mod server_under_test;
mod sums;
mod walk;

#[cfg(test)]
mod tests;

use std::slice;
use std::sync::Arc;

use async_trait::async_trait;
use deadpool_redis::{Pool, PoolError, Timeouts};

pub use self::keys::LAYOUT;
pub use self::link::{BadAddress, Timing};

use self::batcher::{Batcher, CALL_GRABS_MAX, CALLS_IN_FLIGHT_MAX};
use self::checks::Trouble;
use self::core::Core;
use self::keys::Keys;
use self::link::Link;
use crate::clock::{Clock, timer_now};
use crate::domain::ack::AckLevel;
use crate::domain::envelope::{CloseReason, HotState, Terms};
use crate::domain::grab::{Grab, GrabReply, HeldShare, OutboxEntry};
use crate::domain::id::{EnvelopeId, Epoch, Partition, PartitionCount, PersonId, TenantId};
use crate::domain::stripes::{self, Stripe};
use crate::hot::{
    CloseReply, DeclineReply, Epochs, GRANTS_PER_PAGE_MAX, GrantWalk, Halted, HotError, HotStore,
    HotView, HotVitals, LoadChunk, Mark, OUTBOX_RECORDS_PER_CALL_MAX, PendingShare, Repair,
    SETTLED_PER_CALL_MAX, Standing, VIEWS_PER_CALL_MAX,
};

/// Ids that one page of `envelopes` holds.
const ENVELOPES_PER_PAGE_MAX: usize = 1_000;

/// Connections for administrative commands: a check and a person beside it.
const ADMIN_CONNECTIONS_MAX: usize = 2;

/// The hot store on one Redis.
pub struct RedisStore {
    core: Arc<Core>,
    batcher: Batcher,
    admin: Pool,
    asked: Option<AckLevel>,
    looked: checks::Looked,
}

impl RedisStore {
    /// For the server at `url`, at the level that was `asked` for by name. Nothing is connected
    /// yet, and nothing granted before `register`.
    ///
    /// # Errors
    /// A URL that is none of Redis'.
    pub fn new(
        url: &str,
        asked: Option<AckLevel>,
        count: PartitionCount,
        timing: Timing,
        clock: Arc<dyn Clock>,
        books: String,
    ) -> Result<Self, BadAddress> {
        let link = Link::new(url, timing)?;
        let core = Arc::new(Core::new(Keys::new(count), clock, books, link));
        let batcher = Batcher::start(Arc::clone(&core), Link::new(url, timing)?);
        Ok(Self {
            core,
            batcher,
            admin: pool(url, timing)?,
            asked,
            looked: checks::Looked::default(),
        })
    }

    /// Asks the server whether it keeps the level that was asked for (or which one it keeps). Until
    /// it does, nothing is acknowledged.
    pub async fn check(&self) {
        let in_force = self.core.ack_level();
        let mut full = false;
        let level = match self.admin.get().await {
            Ok(mut connection) => match checks::gather::gather(&mut connection).await {
                Ok(facts) => {
                    let before = self.looked.before(&facts.run_id, timer_now());
                    full = checks::is_full(&facts, self.asked, before);
                    let level = checks::judge(&facts, self.asked, before);
                    let kept = level.as_ref().ok().copied().or(before.filter(|_| full));
                    self.looked.note(facts.run_id, kept, timer_now());
                    level
                }
                Err(error) => Err(vec![error.into()]),
            },
            Err(error) => Err(vec![Trouble::Unreachable.says(unreachable(&error))]),
        };
        if let Err(reasons) = &level
            && in_force.is_some()
        {
            tracing::error!(why = reasons.join("; "), "nothing is acknowledged any more");
        }
        self.core.judged(level, full);
    }

    /// Whether the last check found a level that holds.
    pub fn holds(&self) -> bool {
        self.core.ack_level().is_some()
    }
}

/// Whoever changes an envelope here forgets what was known of it, also where nobody waits for the end.
struct Forgets<'a>(&'a Core, &'a [EnvelopeId]);

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        for envelope in self.1 {
            self.0.emptied.forget(*envelope);
        }
    }
}

/// The pool's words are about itself, so a time that ran out is told as one.
fn unreachable(error: &PoolError) -> String {
    const DO: &str =
        "look whether it runs, whether the network lets us through, and what hot.url names";
    match error {
        PoolError::Timeout(_) => format!("Redis can't be reached: it did not answer in time; {DO}"),
        PoolError::Backend(error) => format!("Redis can't be reached: {error}; {DO}"),
        other => format!("Redis can't be reached: {other}; {DO}"),
    }
}

fn pool(url: &str, timing: Timing) -> Result<Pool, BadAddress> {
    let bad = |e: String| BadAddress(e);
    let timeouts = Timeouts {
        wait: Some(timing.connect),
        create: Some(timing.connect),
        recycle: Some(timing.response),
    };
    let (target, config) = link::target(url, timing)?;
    let manager = deadpool_redis::Manager::new_with_config(target, config);
    Pool::builder(manager.map_err(|e| bad(e.to_string()))?)
        .max_size(ADMIN_CONNECTIONS_MAX)
        .timeouts(timeouts)
        .runtime(deadpool_redis::Runtime::Tokio1)
        .build()
        .map_err(|e| bad(e.to_string()))
}

#[async_trait]
impl HotStore for RedisStore {
    fn kind(&self) -> &'static str {
        "redis"
    }

    fn ack_level(&self) -> Option<AckLevel> {
        self.core.ack_level()
    }

    fn partitions(&self) -> PartitionCount {
        self.core.keys.count()
    }

    fn epoch(&self, partition: Partition) -> Epoch {
        self.core.epoch(partition)
    }

    fn ready(&self) -> Result<(), String> {
        let reasons = self.core.reasons();
        match reasons.is_empty() {
            true => Ok(()),
            false => Err(reasons.join("; ")),
        }
    }

    fn takes_at_once(&self) -> usize {
        // Those on their way and as many again: two that return together both find a full one.
        2 * CALLS_IN_FLIGHT_MAX * CALL_GRABS_MAX
    }

    fn remembered(&self, grab: &Grab) -> Option<GrabReply> {
        let answers = self.core.emptied.answers(&self.core, slice::from_ref(grab));
        let answer = answers?.pop()??;
        let may_tell = self.core.is_full() || self.core.may_acknowledge().is_ok();
        may_tell.then_some(answer)
    }

    async fn vitals(&self) -> Result<HotVitals, HotError> {
        let mut vitals = self.core.vitals().await?;
        vitals.queued_grabs = u64::try_from(self.batcher.waiting()).unwrap_or(u64::MAX);
        Ok(vitals)
    }

    async fn load(&self, under: &Epochs, chunk: LoadChunk) -> Result<(), HotError> {
        self.core.load(under, chunk).await
    }

    async fn open(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        checksum: u32,
    ) -> Result<HotState, HotError> {
        self.core.open(under, envelope, checksum).await
    }

    async fn grab(&self, grabs: Vec<Grab>) -> Result<Vec<GrabReply>, HotError> {
        if !self.core.is_full() {
            self.core.may_acknowledge()?;
        }
        let Some(mut answers) = self.core.emptied.answers(&self.core, &grabs) else {
            return self.batcher.grab(grabs).await;
        };
        let unknown = grabs.into_iter().zip(&answers);
        let unknown = unknown.filter_map(|(grab, answer)| answer.is_none().then_some(grab));
        let unknown: Vec<_> = unknown.collect();
        let mut others = self.batcher.grab(unknown).await?.into_iter();
        for answer in answers.iter_mut().filter(|answer| answer.is_none()) {
            *answer = others.next();
        }
        Ok(answers.into_iter().flatten().collect())
    }

    async fn decline(
        &self,
        epoch: Epoch,
        tenant: TenantId,
        envelope: EnvelopeId,
        grabber: PersonId,
    ) -> Result<DeclineReply, HotError> {
        self.core.decline(epoch, tenant, envelope, grabber).await
    }

    async fn view(&self, envelopes: Vec<EnvelopeId>) -> Result<Vec<Option<HotView>>, HotError> {
        self.core.view(envelopes).await
    }

    async fn held(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, HotError> {
        self.core.held(whose).await
    }

    async fn grants(
        &self,
        envelope: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        let limit = limit.min(GRANTS_PER_PAGE_MAX);
        self.core.grants(envelope, from, limit).await
    }

    async fn walk_grants(
        &self,
        walk: &mut GrantWalk,
        envelope: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        let limit = limit.min(GRANTS_PER_PAGE_MAX);
        self.core.walk_grants(walk, envelope, from, limit).await
    }

    async fn pending(
        &self,
        tenant: TenantId,
        grabber: PersonId,
    ) -> Result<Vec<PendingShare>, HotError> {
        self.core.pending(&tenant, &grabber).await
    }

    fn granted_in(&self, envelope: EnvelopeId, held: &HeldShare) -> Partition {
        let count = self.core.keys.count();
        // Who told of the share has looked its terms up.
        match self.core.terms.get(&envelope) {
            Some(terms) => stripes::granted_in(
                envelope,
                (&held.grabber, held.grant.share),
                (terms.stripes, terms.share_count),
                count,
            ),
            None => envelope.partition(count),
        }
    }

    fn deals(&self) -> bool {
        true
    }

    async fn close(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        terms: Arc<Terms>,
        reason: CloseReason,
    ) -> Result<CloseReply, HotError> {
        self.core.close(under, envelope, &terms, reason).await
    }

    async fn freeze(&self, under: &Epochs, envelope: EnvelopeId) -> Result<(), HotError> {
        let mark = Some(Mark::Books);
        let _forgets = Forgets(&self.core, std::slice::from_ref(&envelope));
        self.core.mark(under, envelope, mark, Mark::Books).await
    }

    async fn unfreeze(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        upto: Mark,
    ) -> Result<(), HotError> {
        self.core.mark(under, envelope, None, upto).await
    }

    async fn marked(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<(EnvelopeId, Mark)>, HotError> {
        self.core.marked(after, limit.min(VIEWS_PER_CALL_MAX)).await
    }

    async fn owing(&self, of: Vec<Partition>) -> Result<Vec<Partition>, HotError> {
        self.core.owing(of).await
    }

    async fn outbox(
        &self,
        partition: Partition,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, HotError> {
        let limit = limit.min(OUTBOX_RECORDS_PER_CALL_MAX);
        self.core.outbox(partition, after, limit).await
    }

    async fn settled(
        &self,
        epoch: Epoch,
        partition: Partition,
        entries: Vec<(u64, u64)>,
    ) -> Result<u64, HotError> {
        if entries.len() > SETTLED_PER_CALL_MAX {
            let what = format!("a call takes at most {SETTLED_PER_CALL_MAX} entries");
            return Err(HotError::Mismatch(what));
        }
        self.core.settled(epoch, partition, &entries).await
    }

    async fn remove(&self, under: &Epochs, envelopes: Vec<EnvelopeId>) -> Result<(), HotError> {
        let _forgets = Forgets(&self.core, &envelopes);
        self.core.remove(under, envelopes.clone()).await
    }

    async fn standing(&self) -> Result<Option<Standing>, HotError> {
        let standing = self.core.standing().await;
        self.core.heard(&standing);
        standing.map(Some)
    }

    async fn register(
        &self,
        standing: Standing,
        epochs: Vec<(Partition, Epoch)>,
    ) -> Result<(), HotError> {
        // A process that was started anew may have been started with other settings. They gate what is
        // acknowledged, not what is settled and ended.
        self.check().await;
        let registered = self.core.register(&standing, &epochs).await;
        self.core.heard(&registered);
        if registered.is_ok() && !self.holds() {
            // A call that heard of the epoch meanwhile did away with what the look found.
            self.check().await;
        }
        registered
    }

    async fn unregistered(&self) {
        self.core.unregistered().await;
    }

    async fn owes(&self, envelope: EnvelopeId) -> Result<bool, HotError> {
        self.core.owes(envelope).await
    }

    fn lost_promises(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Vec<(EnvelopeId, Vec<HeldShare>)> {
        self.core.acked.orphans(after, limit)
    }

    fn has_promised(&self, envelope: EnvelopeId) -> bool {
        !self.core.acked.orphans_of(envelope).is_empty()
    }

    fn answered(&self, envelope: EnvelopeId, held: &[HeldShare]) {
        self.core.acked.adopted(envelope, held);
    }

    fn learn(&self, envelope: EnvelopeId, terms: &Arc<Terms>) {
        self.core.terms.insert(envelope, Arc::clone(terms));
    }

    async fn was_gathered(
        &self,
        envelope: EnvelopeId,
        terms: Arc<Terms>,
    ) -> Result<bool, HotError> {
        self.core.was_gathered(envelope, &terms).await
    }

    async fn halt(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        terms: Arc<Terms>,
        stripe: Stripe,
    ) -> Result<Option<Halted>, HotError> {
        self.core.halt(under, envelope, &terms, stripe).await
    }

    async fn repair(&self, under: &Epochs, repair: Repair) -> Result<HotState, HotError> {
        let envelope = repair.envelope;
        let _forgets = Forgets(&self.core, std::slice::from_ref(&envelope));
        self.core.repair(under, repair).await
    }

    async fn envelopes(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<EnvelopeId>, HotError> {
        self.core
            .envelopes(after, limit.min(ENVELOPES_PER_PAGE_MAX))
            .await
    }
}
