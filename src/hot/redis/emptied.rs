//! Empty envelopes that many still ask for are answered from memory: who took what never changes any more.
//!
//! # Shape
//! | moment | what |
//! |---|---|
//! | Redis says EMPTY | it is counted; after [`EMPTIES_HEARD_MIN`] of one envelope its winners are read, once |
//! | a grab of it | a winner hears his share again, anybody else that nothing is left |
//! | [`STANDS_FOR`] after Redis said EMPTY last | grabs go to Redis; its next EMPTY counts for as long again |
//! | Redis says anything else of it; this process marks, repairs or removes it | it is forgotten, also while its winners are read |
//! | a call of Redis fails | what was heard before answers nobody: Redis may come back with less |
//! | the partition goes to a new epoch, or the server is lost | what is of the one before answers nobody |
//!
//! # Bounds
//! [`WEIGHT_MAX`] in all, [`GRANTS_OF_ONE_MAX`] winners of one envelope, [`READS_AT_ONCE_MAX`] envelopes read at
//! once; who finds no place asks Redis, as before.
//!
//! # Ordering
//! Within an epoch an empty envelope stays as it is: nobody takes, and only named shares are declined, which
//! are not kept here. Its winners are read between two looks that found it empty under the epoch, and kept only
//! if they are as many as its shares. What other processes do to it (a mark, a removal), and an epoch that is
//! not known here yet, are heard within [`STANDS_FOR`].
//!
//! # If it crashes here
//! It is a cache.
//!
//! # Not here
//! Whether the level is held: the store asks that before. Whether a winner's share is in the books: the gate.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::time::Instant;

use super::core::{Call, Core};
use super::layout::Meta;
use super::reply;
use crate::clock::timer_now;
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::{Grab, GrabReply, Grant, Outcome};
use crate::domain::id::{EnvelopeId, Epoch, PersonId, TenantId};
use crate::hot::HotError;

/// Answers of EMPTY after which an envelope's winners are read: most envelopes are asked for less often.
pub const EMPTIES_HEARD_MIN: u32 = 32;
/// How long an EMPTY of Redis stands for all who ask.
pub const STANDS_FOR: Duration = Duration::from_secs(1);
/// Winners that are kept, and [`WEIGHT_OF_ONE`] an envelope: about 120 bytes each, 60 MB.
pub const WEIGHT_MAX: u64 = 500_000;
/// What an envelope weighs beside its winners.
const WEIGHT_OF_ONE: u64 = 4;
/// Parts of the cache, however many cores there are: the largest envelope fits into one.
const PARTS: usize = 4;
/// Winners of one envelope: reading them is a hundred commands.
pub const GRANTS_OF_ONE_MAX: u32 = 100_000;
/// Envelopes whose winners are read at once.
pub const READS_AT_ONCE_MAX: usize = 4;
/// Envelopes for which there is room at first.
const ENVELOPES_GUESS: usize = 20_000;

/// See the module.
pub struct Emptied {
    kept: Cache<EnvelopeId, Entry, Weight>,
    /// Whether winners were ever kept: until then no grab looks for them.
    knows_any: AtomicBool,
    /// Envelopes whose winners are being read, and whether they were forgotten meanwhile. At most
    /// [`READS_AT_ONCE_MAX`].
    reading: Mutex<HashMap<EnvelopeId, bool>>,
    /// What was heard before this instant answers nobody, in milliseconds after `began`.
    void_before: AtomicU64,
    began: Instant,
    policy: Mutex<Policy>,
}

/// When winners are read, and how long an EMPTY stands.
#[derive(Clone, Copy, Debug)]
struct Policy {
    heard_min: u32,
    stands_for: Duration,
}

#[derive(Clone)]
enum Entry {
    /// EMPTY was heard so often.
    Counted(u32),
    Known(Arc<Winners>),
}

/// An empty envelope.
struct Winners {
    epoch: Epoch,
    tenant: TenantId,
    shares: HashMap<PersonId, Grant>,
    /// When Redis was asked last that said EMPTY, in milliseconds after `began`.
    heard_at: AtomicU64,
    /// How long that stands.
    good_until: AtomicU64,
}

#[derive(Clone)]
struct Weight;

impl Weighter<EnvelopeId, Entry> for Weight {
    fn weight(&self, _id: &EnvelopeId, entry: &Entry) -> u64 {
        match entry {
            Entry::Counted(_) => WEIGHT_OF_ONE,
            Entry::Known(winners) => {
                let shares = u64::try_from(winners.shares.len()).unwrap_or(u64::MAX);
                shares.saturating_add(WEIGHT_OF_ONE)
            }
        }
    }
}

impl Default for Emptied {
    fn default() -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(ENVELOPES_GUESS)
            .weight_capacity(WEIGHT_MAX)
            .shards(PARTS)
            .build();
        Self {
            kept: Cache::with_options(
                options.expect("all that is needed is named"),
                Weight,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            knows_any: AtomicBool::new(false),
            reading: Mutex::default(),
            void_before: AtomicU64::new(0),
            began: timer_now(),
            policy: Mutex::new(Policy {
                heard_min: EMPTIES_HEARD_MIN,
                stands_for: STANDS_FOR,
            }),
        }
    }
}

impl Emptied {
    /// For tests: reads winners after so many answers, each of which stands for so long.
    #[cfg(test)]
    pub fn set(&self, heard_min: u32, stands_for: Duration) {
        *self.policy.lock() = Policy {
            heard_min,
            stands_for,
        };
    }

    /// For tests: whether so many winners of an envelope have a place.
    #[cfg(test)]
    pub fn is_kept(&self, id: EnvelopeId, count: u32) -> bool {
        let name = |number: u32| PersonId::parse(&format!("p{number}")).expect("a name");
        let at = crate::domain::id::UnixMs(0);
        let grant = |share| Grant {
            share,
            amount_minor: 1,
            at,
        };
        let winners = Winners {
            epoch: Epoch(1),
            tenant: TenantId::parse("default").expect("a name"),
            shares: (0..count)
                .map(|number| (name(number), grant(number)))
                .collect(),
            heard_at: AtomicU64::new(0),
            good_until: AtomicU64::new(0),
        };
        self.reading.lock().insert(id, false);
        self.keep(id, winners);
        self.reading.lock().remove(&id);
        matches!(self.kept.get(&id), Some(Entry::Known(_)))
    }

    /// What is known here of each grab, where Redis need not be asked; `None`: of none of them.
    pub fn answers(&self, core: &Core, grabs: &[Grab]) -> Option<Vec<Option<GrabReply>>> {
        if !self.knows_any.load(Ordering::Relaxed) || !core.is_registered() {
            return None;
        }
        let now = self.millis(timer_now());
        let answer = |grab| self.answer(core, grab, now);
        let first = grabs.iter().position(|grab| answer(grab).is_some())?;
        let unknown = std::iter::repeat_n(None, first);
        Some(unknown.chain(grabs[first..].iter().map(answer)).collect())
    }

    fn answer(&self, core: &Core, grab: &Grab, now: u64) -> Option<GrabReply> {
        let Entry::Known(winners) = self.kept.get(&grab.envelope)? else {
            return None;
        };
        let heard_at = winners.heard_at.load(Ordering::Relaxed);
        let stands = now < winners.good_until.load(Ordering::Relaxed)
            && heard_at >= self.void_before.load(Ordering::Acquire);
        let epoch = core.epoch(grab.partition);
        let is_its = winners.epoch == grab.epoch && winners.epoch == epoch;
        if !stands || !is_its || winners.tenant != grab.tenant {
            return None;
        }
        let share = winners.shares.get(&grab.grabber);
        Some(GrabReply::Outcome(match share {
            Some(grant) => Outcome::AlreadyGrabbed(*grant),
            None => Outcome::Empty,
        }))
    }

    /// Redis has answered grabs of one envelope, asked at `asked`, so often with EMPTY; `stays`: and the others
    /// as who has a share of it. Answers whether its winners shall be read.
    pub fn heard(&self, grab: &Grab, (empties, stays): (u32, bool), asked: Instant) -> bool {
        if !stays {
            self.mark_void(grab.envelope);
        }
        if empties == 0 && !self.knows_any.load(Ordering::Relaxed) {
            return false;
        }
        match self.kept.get(&grab.envelope) {
            Some(Entry::Known(winners)) if winners.tenant != grab.tenant => false,
            Some(Entry::Known(winners)) if winners.epoch == grab.epoch => {
                if !stays {
                    self.forget(grab.envelope);
                } else if empties > 0 {
                    let until = self.millis(asked + self.policy.lock().stands_for);
                    winners.good_until.fetch_max(until, Ordering::Relaxed);
                    let heard_at = self.millis(asked);
                    winners.heard_at.fetch_max(heard_at, Ordering::Relaxed);
                }
                false
            }
            _ if empties == 0 => false,
            // Of an epoch that has ended it is counted anew.
            entry => {
                let before = match entry {
                    Some(Entry::Counted(count)) => count,
                    _ => 0,
                };
                let count = before.saturating_add(empties);
                let full = count >= self.policy.lock().heard_min;
                // One that can't be kept is not read at each answer.
                let count = if full { 0 } else { count };
                self.kept.insert(grab.envelope, Entry::Counted(count));
                full
            }
        }
    }

    /// What is known of an envelope stands no longer.
    pub fn forget(&self, envelope: EnvelopeId) {
        self.mark_void(envelope);
        self.kept.remove(&envelope);
    }

    /// Nor does what is being read of it now.
    fn mark_void(&self, envelope: EnvelopeId) {
        if let Some(void) = self.reading.lock().get_mut(&envelope) {
            *void = true;
        }
    }

    /// What was heard so far answers nobody: a call failed, and Redis may come back with less.
    pub fn void(&self) {
        let now = self.millis(timer_now()).saturating_add(1);
        self.void_before.fetch_max(now, Ordering::AcqRel);
    }

    /// Reads the winners of an envelope, beside whoever waits for an answer.
    pub fn read(core: &Arc<Core>, grab: &Grab) {
        let (id, epoch) = (grab.envelope, grab.epoch);
        // Who took the shares of a dealt one stands in several places.
        if core
            .terms
            .get(&id)
            .is_some_and(|terms| !terms.stripes.is_one())
        {
            return;
        }
        {
            let mut reading = core.emptied.reading.lock();
            if reading.len() >= READS_AT_ONCE_MAX || reading.contains_key(&id) {
                return;
            }
            reading.insert(id, false);
        }
        let read = Read(Arc::clone(core), id);
        tokio::spawn(async move {
            // Who finds nothing here asks Redis, so a failure costs nobody anything.
            if let Ok(Some(winners)) = read.0.winners(id, epoch).await {
                read.0.emptied.keep(id, winners);
            }
        });
    }

    fn keep(&self, id: EnvelopeId, winners: Winners) {
        let reading = self.reading.lock();
        if reading.get(&id) == Some(&false) {
            self.kept.insert(id, Entry::Known(Arc::new(winners)));
            self.knows_any.store(true, Ordering::Relaxed);
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX)
    }
}

/// An envelope whose winners are being read, until that has ended.
struct Read(Arc<Core>, EnvelopeId);

impl Drop for Read {
    fn drop(&mut self) {
        self.0.emptied.reading.lock().remove(&self.1);
    }
}

impl Core {
    /// Who took the shares of an envelope; `None` where it is not empty, or none that is kept.
    async fn winners(&self, id: EnvelopeId, epoch: Epoch) -> Result<Option<Winners>, HotError> {
        let Some(before) = self.look_at_empty(id, epoch).await? else {
            return Ok(None);
        };
        let held = self.held_shares(self.first(id), &before).await?;
        let asked = timer_now();
        let after = self.look_at_empty(id, epoch).await?;
        if after.as_ref() != Some(&before) || u32::try_from(held.len()) != Ok(before.count) {
            return Ok(None);
        }
        let shares = held.into_iter().map(|held| (held.grabber, held.grant));
        let shares: HashMap<_, _> = shares.collect();
        let each_once = u32::try_from(shares.len()) == Ok(before.count);
        let until = self
            .emptied
            .millis(asked + self.emptied.policy.lock().stands_for);
        Ok(each_once.then(|| Winners {
            epoch,
            tenant: before.tenant,
            shares,
            heard_at: AtomicU64::new(self.emptied.millis(asked)),
            good_until: AtomicU64::new(until),
        }))
    }

    /// The meta of an envelope that is empty and whole under this epoch, unmarked, and not too large.
    async fn look_at_empty(&self, id: EnvelopeId, epoch: Epoch) -> Result<Option<Meta>, HotError> {
        let partition = self.partition(id);
        let own = self.keys.envelope(partition, id);
        // As if all its shares were known: none is sent.
        let call = Call::reading(self, "view_1", partition)
            .key(own.grabs)
            .key(own.shares)
            .key(own.phrase)
            .under(epoch)
            .number(0)
            .number(u32::MAX);
        let (_, items) = self.call(call).await?;
        let meta = items.first().map_or(Ok(&[][..]), reply::bytes)?;
        let meta = Meta::unpack(meta);
        Ok(meta.filter(|meta| {
            let is_empty = meta.state == HotState::Over(CloseReason::Empty) && !meta.named;
            let is_here = meta.epoch == epoch && meta.frozen.is_none();
            // Who took the shares of a dealt one, stands in other places, too.
            let is_all = meta.part.is_none();
            is_empty && is_here && is_all && meta.count <= GRANTS_OF_ONE_MAX
        }))
    }
}
