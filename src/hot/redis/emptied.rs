//! Empty envelopes that many still ask for are answered from memory: who took what never changes any more.
//!
//! # Shape
//! | moment | what |
//! |---|---|
//! | Redis says EMPTY | it is counted; after [`EMPTIES_HEARD_MIN`] of one envelope, of a large one as many as its reading is worth ([`WINNERS_PER_EMPTY`]), its winners are read, once (`read`) |
//! | a grab of it | a winner hears his share again, anybody else that nothing is left |
//! | … with more than [`GRANTS_OF_ONE_MAX`] winners, or of a dealt one | who is surely no winner hears that nothing is left (`names`); the others ask Redis |
//! | [`STANDS_FOR`] after Redis was looked at last | grabs go to Redis; at its next EMPTY one look tells whether all is as it was, and counts for as long again |
//! | Redis says anything else of it; this process marks, repairs or removes it | it is forgotten, also while its winners are read |
//! | a call of the library fails | what was seen before answers nobody: Redis may come back with less |
//! | one of its partitions goes to a new epoch, or the server is lost | what is of the one before answers nobody |
//!
//! # Bounds
//! [`WEIGHT_MAX`] in all; [`WALKS_AT_ONCE_MAX`] envelopes read at once, of them [`LARGE_WALKS_AT_ONCE_MAX`] large
//! ones; [`LOOKS_AT_ONCE_MAX`] looked at. Who finds no place asks Redis, as before.
//!
//! # Ordering
//! Within an epoch, of a dealt one within those of all its partitions, an empty envelope stays as it is: nobody takes,
//! and only named shares are declined, which are not kept here. Its winners are read between two looks that found it
//! empty and the same, and kept only if every share has one. What other processes do to it (a mark, a repair, a
//! removal), and an epoch that is not known here yet, are seen within [`STANDS_FOR`].
//!
//! # If it crashes here
//! It is a cache.
//!
//! # Not here
//! Whether the level is held: the store asks that before. Whether a winner's share is in the books: the gate.

mod read;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::time::Instant;

use self::read::Under;
use super::core::Core;
use super::layout::Meta;
use super::names::Names;
use crate::clock::timer_now;
use crate::domain::grab::{Grab, GrabReply, Grant, Outcome};
use crate::domain::id::{EnvelopeId, PersonId};

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
/// Winners whose reading costs Redis about what one EMPTY does: 0.8 µs each. An envelope is read once its EMPTYs have
/// cost as much as that, so both together cost at most twice the better of the two.
const WINNERS_PER_EMPTY: u32 = 8;
/// Bytes that weigh as much as a winner who is kept with his share.
const WEIGHT_BYTES: usize = 120;
/// Envelopes whose winners are read at once, and those of them that are large: each is a thousand commands a
/// million, and 14 MB at the most while it lasts.
pub const WALKS_AT_ONCE_MAX: usize = 4;
const LARGE_WALKS_AT_ONCE_MAX: usize = 1;
/// Envelopes that are looked at, at once, whether they are as they were.
const LOOKS_AT_ONCE_MAX: usize = 64;
/// Envelopes for which there is room at first.
const ENVELOPES_GUESS: usize = 20_000;

/// See the module.
pub struct Emptied {
    kept: Cache<EnvelopeId, Entry, Weight>,
    /// Whether winners were ever kept: until then no grab looks for them.
    knows_any: AtomicBool,
    /// Envelopes that are read or looked at now.
    underway: Mutex<HashMap<EnvelopeId, Underway>>,
    /// What was seen before this instant answers nobody, in milliseconds after `began`.
    void_before: AtomicU64,
    began: Instant,
    policy: Mutex<Policy>,
}

/// When winners are read, how many are kept with their shares, and how long what was seen stands.
#[derive(Clone, Copy, Debug)]
struct Policy {
    heard_min: u32,
    stands_for: Duration,
    grants_max: u32,
}

/// What becomes of an envelope beside those who wait for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// EMPTY was heard so often that its winners are to be read.
    Walk(u32),
    /// What is known of it stands no longer: whether it is as it was.
    Look,
}

/// It is read or looked at, and whether it was forgotten meanwhile.
struct Underway {
    how: How,
    void: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Walk,
    LargeWalk,
    Look,
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
    /// As it was when they were read.
    meta: Meta,
    who: Who,
    /// When Redis was looked at last, in milliseconds after `began`.
    seen_at: AtomicU64,
    /// How long that stands.
    good_until: AtomicU64,
}

/// Who took its shares.
enum Who {
    /// Each, and which.
    Shares(HashMap<PersonId, Grant>),
    /// So many that only who is one is kept, or in several partitions.
    Names(Names),
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
            underway: Mutex::default(),
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
    /// For tests: reads the winners of small envelopes after so many answers, and what was seen stands for so long.
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
        let is_its = winners.under.stands(core, grab) && winners.meta.tenant == grab.tenant;
        if !is_its || !self.is_good(&winners, now) {
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

    fn is_good(&self, winners: &Winners, now: u64) -> bool {
        let seen_at = winners.seen_at.load(Ordering::Relaxed);
        now < winners.good_until.load(Ordering::Relaxed)
            && seen_at >= self.void_before.load(Ordering::Acquire)
    }

    /// Redis has answered grabs of one envelope so often with EMPTY; `stays`: and the others as who has a share of
    /// it, or as another stripe. Answers what is to be done next.
    pub fn heard(&self, core: &Core, grab: &Grab, (empties, stays): (u32, bool)) -> Option<Next> {
        let id = grab.envelope;
        if !stays {
            self.mark_void(id);
        }
        if empties == 0 && !self.knows_any.load(Ordering::Relaxed) {
            return None;
        }
        match self.kept.get(&id) {
            Some(Entry::Known(winners)) if winners.meta.tenant != grab.tenant => None,
            Some(Entry::Known(winners)) if winners.under.stands(core, grab) => {
                if !stays {
                    self.forget(id);
                    return None;
                }
                let is_good = self.is_good(&winners, self.millis(timer_now()));
                (empties > 0 && !is_good).then_some(Next::Look)
            }
            _ if empties == 0 || self.underway.lock().contains_key(&id) => None,
            // Of an epoch that has ended it is counted anew.
            entry => {
                let before = match entry {
                    Some(Entry::Counted(count)) => count,
                    _ => 0,
                };
                let count = before.saturating_add(empties);
                self.kept.insert(id, Entry::Counted(count));
                let enough = count >= self.wanted(share_count(core, id));
                enough.then_some(Next::Walk(count))
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

    /// Nor does what is being found out of it now.
    fn mark_void(&self, envelope: EnvelopeId) {
        if let Some(underway) = self.underway.lock().get_mut(&envelope) {
            underway.void = true;
        }
    }

    /// What was seen so far answers nobody: a call failed, and Redis may come back with less.
    pub fn void(&self) {
        let now = self.millis(timer_now()).saturating_add(1);
        self.void_before.fetch_max(now, Ordering::AcqRel);
    }

    /// Does what is to be done next, beside whoever waits for an answer. Who finds nothing here asks Redis, so a
    /// failure costs nobody anything.
    pub fn follow(core: &Arc<Core>, id: EnvelopeId, next: Next) {
        let how = match next {
            Next::Look => How::Look,
            Next::Walk(_) if share_count(core, id) > GRANTS_OF_ONE_MAX => How::LargeWalk,
            Next::Walk(_) => How::Walk,
        };
        if !core.emptied.begin(id, how) {
            return;
        }
        let step = Step(Arc::clone(core), id);
        tokio::spawn(async move {
            let (core, id) = (&step.0, step.1);
            match next {
                Next::Look => core.look_again(id).await,
                Next::Walk(heard) => core.walk_winners(id, heard).await,
            }
        });
    }

    /// Whether there is room for one more.
    fn begin(&self, id: EnvelopeId, how: How) -> bool {
        let mut underway = self.underway.lock();
        let of = |how: How| underway.values().filter(|other| other.how == how).count();
        let large = of(How::LargeWalk);
        let room = match how {
            How::Look => of(How::Look) < LOOKS_AT_ONCE_MAX,
            How::LargeWalk => large < LARGE_WALKS_AT_ONCE_MAX,
            How::Walk => of(How::Walk) + large < WALKS_AT_ONCE_MAX,
        };
        let begins = room && !underway.contains_key(&id);
        if begins {
            underway.insert(id, Underway { how, void: false });
        }
        drop(underway);
        if begins && how != How::Look {
            // One that can't be kept is not read at each answer.
            self.kept.insert(id, Entry::Counted(0));
        }
        begins
    }

    /// These are the winners of an envelope, unless it was forgotten since its reading began.
    fn keep(&self, id: EnvelopeId, winners: Winners, asked: Instant) {
        let winners = Arc::new(winners);
        // It answers nobody yet. What has to go for it goes while nobody waits for the lock.
        self.kept.insert(id, Entry::Known(Arc::clone(&winners)));
        if !self.stands_since(id, &winners, asked) {
            self.kept.remove(&id);
        }
    }

    /// An envelope was as it is known when Redis was asked, at this instant. `false`: it was forgotten since.
    fn stands_since(&self, id: EnvelopeId, winners: &Winners, asked: Instant) -> bool {
        let until = self.millis(asked + self.policy.lock().stands_for);
        let underway = self.underway.lock();
        let stands = underway.get(&id).is_some_and(|underway| !underway.void);
        if stands {
            self.knows_any.store(true, Ordering::Relaxed);
            let seen_at = self.millis(asked);
            winners.seen_at.fetch_max(seen_at, Ordering::Relaxed);
            winners.good_until.fetch_max(until, Ordering::Relaxed);
        }
        stands
    }

    fn millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX)
    }
}

/// Shares of an envelope, as far as its terms are known here; 0: they are not.
fn share_count(core: &Core, id: EnvelopeId) -> u32 {
    core.terms.peek(&id).map_or(0, |terms| terms.share_count)
}

/// An envelope that is read or looked at, until that has ended.
struct Step(Arc<Core>, EnvelopeId);

impl Drop for Step {
    fn drop(&mut self) {
        self.0.emptied.underway.lock().remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::split::SHARE_COUNT_MAX;

    #[test]
    fn the_largest_envelopes_that_are_read_are_kept() {
        // As many parts share it.
        let room = WEIGHT_MAX / u64::try_from(PARTS).unwrap();
        let names = Names::with_room(SHARE_COUNT_MAX)
            .bytes()
            .div_ceil(WEIGHT_BYTES);
        for weight in [u64::from(GRANTS_OF_ONE_MAX), u64::try_from(names).unwrap()] {
            // A cache keeps what weighs as much as 97 % of a part.
            assert!((weight + WEIGHT_OF_ONE) * 100 <= room * 97, "{weight}");
        }
    }
}
