//! Empty envelopes that many still ask for are answered from memory: who took what never changes any more.
//!
//! # Shape
//! | moment | what |
//! |---|---|
//! | Redis says EMPTY | it is counted; after [`EMPTIES_HEARD_MIN`] of one envelope, of a large one as many as reading it is worth, its winners are read, once |
//! | a grab of it | a winner hears his share again, anybody else that nothing is left |
//! | a grab of one with more than [`GRANTS_OF_ONE_MAX`] winners, or of a dealt one | who is surely no winner hears that nothing is left (`names`); the others ask Redis |
//! | [`STANDS_FOR`] after Redis said EMPTY last | grabs go to Redis; its next EMPTY counts for as long again |
//! | Redis says anything else of it; this process marks, repairs or removes it | it is forgotten, also while its winners are read |
//! | a call of Redis fails | what was heard before answers nobody: Redis may come back with less |
//! | one of its partitions goes to a new epoch, or the server is lost | what is of the one before answers nobody |
//!
//! # Bounds
//! [`WEIGHT_MAX`] in all, [`NAMES_OF_ONE_PLACE_MAX`] winners in one place, [`READS_AT_ONCE_MAX`] envelopes read at
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
use super::names::Names;
use super::reply;
use crate::clock::timer_now;
use crate::domain::envelope::{CloseReason, HotState, Terms};
use crate::domain::grab::{Grab, GrabReply, Grant, Outcome};
use crate::domain::id::{EnvelopeId, Epoch, PersonId, TenantId};
#[cfg(test)]
use crate::domain::split::SHARE_COUNT_MAX;
use crate::domain::stripes::StripeCount;
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
/// Winners of one envelope who are kept with their shares. Of more, and of a dealt one, whose shares lie in
/// several partitions, only who is one.
pub const GRANTS_OF_ONE_MAX: u32 = 100_000;
/// Winners of an envelope, or of one of its stripes, whose names are read: 8 MB while they are.
pub const NAMES_OF_ONE_PLACE_MAX: usize = 1_000_000;
/// Winners that Redis tells for what an EMPTY costs it: some 0.8 µs each. An envelope is read once what was asked of it
/// cost as much, so nobody pays more than twice.
const WINNERS_PER_EMPTY: u32 = 8;
/// Bytes that weigh as much as a winner who is kept with his share.
const WEIGHT_BYTES: usize = 120;
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
    grants_max: u32,
}

#[derive(Clone)]
enum Entry {
    /// EMPTY was heard so often.
    Counted(u32),
    Known(Arc<Winners>),
}

/// An empty envelope.
struct Winners {
    under: Under,
    tenant: TenantId,
    who: Who,
    /// When Redis was asked last that said EMPTY, in milliseconds after `began`.
    heard_at: AtomicU64,
    /// How long that stands.
    good_until: AtomicU64,
}

/// Who took its shares.
enum Who {
    /// Each, and which.
    Shares(HashMap<PersonId, Grant>),
    /// Who is surely none of them.
    Names(Names),
}

/// The epochs in which Redis said so.
struct Under {
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
    fn stands(&self, core: &Core, grab: &Grab) -> bool {
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

#[derive(Clone)]
struct Weight;

impl Weighter<EnvelopeId, Entry> for Weight {
    fn weight(&self, _id: &EnvelopeId, entry: &Entry) -> u64 {
        match entry {
            Entry::Counted(_) => WEIGHT_OF_ONE,
            Entry::Known(winners) => {
                let weight = match &winners.who {
                    Who::Shares(shares) => shares.len(),
                    Who::Names(names) => names.bytes().div_ceil(WEIGHT_BYTES),
                };
                u64::try_from(weight)
                    .unwrap_or(u64::MAX)
                    .saturating_add(WEIGHT_OF_ONE)
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
                grants_max: GRANTS_OF_ONE_MAX,
            }),
        }
    }
}

impl Emptied {
    /// For tests: reads winners after so many answers, each of which stands for so long.
    #[cfg(test)]
    pub fn set(&self, heard_min: u32, stands_for: Duration) {
        let mut policy = self.policy.lock();
        policy.heard_min = heard_min;
        policy.stands_for = stands_for;
    }

    /// For tests: envelopes of more winners are kept without their shares.
    #[cfg(test)]
    pub fn keep_shares_up_to(&self, grants_max: u32) {
        self.policy.lock().grants_max = grants_max;
    }

    /// For tests: whether such winners of an envelope have a place.
    #[cfg(test)]
    pub fn is_kept(&self, id: EnvelopeId, grants: Option<HashMap<PersonId, Grant>>) -> bool {
        let winners = Winners {
            under: Under {
                epoch: Epoch(1),
                of: StripeCount::ONE,
                sum: 1,
                changes: AtomicU64::new(0),
            },
            tenant: TenantId::parse("default").expect("a name"),
            who: match grants {
                Some(shares) => Who::Shares(shares),
                None => Who::Names(Names::with_room(SHARE_COUNT_MAX)),
            },
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
        if !stands || !winners.under.stands(core, grab) || winners.tenant != grab.tenant {
            return None;
        }
        Some(GrabReply::Outcome(match &winners.who {
            Who::Shares(shares) => match shares.get(&grab.grabber) {
                Some(grant) => Outcome::AlreadyGrabbed(*grant),
                None => Outcome::Empty,
            },
            Who::Names(names) if names.may_have(grab.grabber.as_str()) => return None,
            Who::Names(_) => Outcome::Empty,
        }))
    }

    /// Redis has answered grabs of one envelope, asked at `asked`, so often with EMPTY; `stays`: and the others
    /// as who has a share of it. Answers after how many of them its winners shall be read.
    pub fn heard(
        &self,
        core: &Core,
        grab: &Grab,
        (empties, stays): (u32, bool),
        asked: Instant,
    ) -> Option<u32> {
        if !stays {
            self.mark_void(grab.envelope);
        }
        if empties == 0 && !self.knows_any.load(Ordering::Relaxed) {
            return None;
        }
        match self.kept.get(&grab.envelope) {
            Some(Entry::Known(winners)) if winners.tenant != grab.tenant => None,
            Some(Entry::Known(winners)) if winners.under.stands(core, grab) => {
                if !stays {
                    self.forget(grab.envelope);
                } else if empties > 0 {
                    let until = self.millis(asked + self.policy.lock().stands_for);
                    winners.good_until.fetch_max(until, Ordering::Relaxed);
                    let heard_at = self.millis(asked);
                    winners.heard_at.fetch_max(heard_at, Ordering::Relaxed);
                }
                None
            }
            _ if empties == 0 => None,
            // Of an epoch that has ended it is counted anew.
            entry => {
                let before = match entry {
                    Some(Entry::Counted(count)) => count,
                    _ => 0,
                };
                let count = before.saturating_add(empties);
                let terms = core.terms.peek(&grab.envelope);
                let full = count >= self.wanted(terms.map_or(0, |terms| terms.share_count));
                // One that can't be kept is not read at each answer.
                let next = if full { 0 } else { count };
                self.kept.insert(grab.envelope, Entry::Counted(next));
                full.then_some(count)
            }
        }
    }

    /// Answers after which it is worth while to read the winners of an envelope of so many shares.
    fn wanted(&self, share_count: u32) -> u32 {
        let heard_min = self.policy.lock().heard_min;
        heard_min.max(share_count / WINNERS_PER_EMPTY)
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

    /// Reads the winners of an envelope, of which so many EMPTY were heard, beside whoever waits for an answer.
    pub fn read(core: &Arc<Core>, grab: &Grab, heard: u32) {
        let id = grab.envelope;
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
            if let Ok(Some(winners)) = read.0.winners(id, heard).await {
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
    async fn winners(&self, id: EnvelopeId, heard: u32) -> Result<Option<Winners>, HotError> {
        let terms = self.terms_of(&[id]).await?.pop().flatten();
        // Where they were not known here, it was not known either how many EMPTY it is worth.
        let worth = |terms: &Arc<Terms>| heard >= self.emptied.wanted(terms.share_count);
        let Some(terms) = terms.filter(worth) else {
            return Ok(None);
        };
        let under = Under::now(self, id, terms.stripes);
        let Some(before) = self.look_at_empty(id, &under).await? else {
            return Ok(None);
        };
        let Some(who) = self.who_took(id, &before, terms.stripes).await? else {
            return Ok(None);
        };
        let asked = timer_now();
        let after = self.look_at_empty(id, &under).await?;
        if after.as_ref() != Some(&before) {
            return Ok(None);
        }
        let until = asked + self.emptied.policy.lock().stands_for;
        Ok(Some(Winners {
            under,
            tenant: before.tenant,
            who,
            heard_at: AtomicU64::new(self.emptied.millis(asked)),
            good_until: AtomicU64::new(self.emptied.millis(until)),
        }))
    }

    /// As many as there are shares; `None` where not so many are found, or too many to be kept.
    async fn who_took(
        &self,
        id: EnvelopeId,
        meta: &Meta,
        of: StripeCount,
    ) -> Result<Option<Who>, HotError> {
        let (count, grants_max) = (meta.count, self.emptied.policy.lock().grants_max);
        if of.is_one() && count <= grants_max {
            let held = self.held_shares(self.first(id), meta).await?;
            let all = u32::try_from(held.len()) == Ok(count);
            let shares = held.into_iter().map(|held| (held.grabber, held.grant));
            let shares: HashMap<_, _> = shares.collect();
            let each_once = u32::try_from(shares.len()) == Ok(count);
            return Ok((all && each_once).then_some(Who::Shares(shares)));
        }
        if usize::try_from(meta.held_count()).unwrap_or(usize::MAX) > NAMES_OF_ONE_PLACE_MAX {
            return Ok(None);
        }
        let (mut names, mut found) = (Names::with_room(count), 0);
        for at in self.places(id, of) {
            let mut hashes = Vec::new();
            let mut note = |name: &[u8], _: &[u8]| {
                let name = std::str::from_utf8(name).ok();
                let name = name.filter(|name| !name.is_empty());
                if hashes.len() < NAMES_OF_ONE_PLACE_MAX {
                    hashes.extend(name.map(|name| names.hash(name)));
                }
            };
            self.each_field(at, count, &mut note).await?;
            // A walk may come by one of them twice.
            hashes.sort_unstable();
            hashes.dedup();
            found += hashes.len();
            hashes.into_iter().for_each(|hash| names.put(hash));
        }
        Ok((u32::try_from(found) == Ok(count)).then_some(Who::Names(names)))
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
