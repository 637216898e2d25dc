//! Random histories on the store and on a model of twenty lines a rule: every answer and every
//! view must be the same, also after crashes, restarts, snapshots and cuts of the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{CRAMPED, Embedded};
use crate::domain::audience::WRONG_TRIES_PER_GRABBER_MAX;
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::{Grab, GrabReply, Grant, HeldShare, OutboxRecord, Outcome, Refusal};
use crate::domain::id::{Epoch, Partition, PersonId, UnixMs};
use crate::hot::conformance::stage::{
    Cast, EXPIRES_IN_MS, NEW_YEAR_MS, Stage, person, phrase, tenant,
};
use crate::hot::{CloseReply, DeclineReply, HotError, HotStore, HotView, Mark};

const NAMES: [&str; 5] = ["ann", "bob", "cat", "dan", "eve"];

#[derive(Clone, Debug)]
enum Op {
    Load(usize),
    Open(usize),
    /// Envelope, name, right phrase.
    Grab(Vec<(usize, usize, bool)>),
    Decline(usize, usize),
    Close(usize, CloseReason),
    Freeze(usize),
    Break(usize),
    Unfreeze(usize, Mark),
    MoveClock(i64),
    SettleOne,
    SettleAll,
    SettleAllAndRemove(usize),
    Crash,
    Restart,
}

fn casts() -> Vec<Cast> {
    let opens_at = Some(UnixMs(NEW_YEAR_MS + 1_000));
    vec![
        Cast::lucky(&[5, 11, 11]).with(|draft| draft.opens_at = opens_at),
        Cast::exclusive(&[("ann", 5), ("bob", 7)]),
        Cast::locked(&[2, 3]),
        Cast::lucky(&[1]),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let which = || 0..casts().len();
    let name = || 0..NAMES.len();
    let mark = prop_oneof![Just(Mark::Books), Just(Mark::Broken)];
    let reason = prop_oneof![Just(CloseReason::Expired), Just(CloseReason::Recalled)];
    let steps = prop_oneof![
        Just(600),
        Just(-600),
        Just(EXPIRES_IN_MS / 2),
        Just(-EXPIRES_IN_MS / 2)
    ];
    let op = prop_oneof![
        3 => which().prop_map(Op::Load),
        3 => which().prop_map(Op::Open),
        9 => vec((which(), name(), any::<bool>()), 1..6).prop_map(Op::Grab),
        2 => (which(), name()).prop_map(|(which, name)| Op::Decline(which, name)),
        1 => (which(), reason).prop_map(|(which, reason)| Op::Close(which, reason)),
        1 => which().prop_map(Op::Freeze),
        1 => which().prop_map(Op::Break),
        2 => (which(), mark).prop_map(|(which, upto)| Op::Unfreeze(which, upto)),
        2 => steps.prop_map(Op::MoveClock),
        2 => Just(Op::SettleOne),
        3 => Just(Op::SettleAll),
        1 => which().prop_map(Op::SettleAllAndRemove),
        2 => Just(Op::Crash),
        1 => Just(Op::Restart),
    ];
    // Most histories begin with something to grab.
    let beginning: Vec<_> = (0..casts().len())
        .flat_map(|which| [Op::Load(which), Op::Open(which)])
        .collect();
    (any::<bool>(), vec(op, 1..60)).prop_map(move |(begun, rest)| {
        let beginning = if begun { beginning.clone() } else { Vec::new() };
        beginning.into_iter().chain(rest).collect()
    })
}

/// What an envelope should be.
#[derive(Clone, Debug)]
struct Should {
    state: HotState,
    loaded: bool,
    opening_seen: bool,
    frozen: Option<Mark>,
    held: BTreeMap<u32, HeldShare>,
    tries: BTreeMap<PersonId, u32>,
}

impl Should {
    fn new(state: HotState, loaded: bool) -> Self {
        Self {
            state,
            loaded,
            opening_seen: false,
            frozen: None,
            held: BTreeMap::new(),
            tries: BTreeMap::new(),
        }
    }

    fn of(&self, who: &PersonId) -> Option<&HeldShare> {
        self.held.values().find(|held| held.grabber == *who)
    }

    fn over(&mut self, reason: CloseReason) -> CloseReason {
        self.state = HotState::Over(reason);
        reason
    }

    fn give(
        &mut self,
        cast: &Cast,
        share: u32,
        who: &PersonId,
        at: UnixMs,
        declined: bool,
    ) -> Grant {
        let grant = Grant {
            share,
            amount_minor: cast.amounts[share as usize],
            at,
        };
        let grabber = who.clone();
        let held = HeldShare {
            grabber,
            grant,
            declined,
        };
        assert!(self.held.insert(share, held).is_none());
        if self.held.len() == cast.amounts.len() {
            self.over(CloseReason::Empty);
        }
        grant
    }

    fn grab(&mut self, cast: &Cast, who: &PersonId, right: bool, now: UnixMs) -> GrabReply {
        let refused = |refusal| GrabReply::Outcome(Outcome::Refused(refusal));
        if self.frozen.is_some() {
            return GrabReply::Frozen;
        }
        if self.state == HotState::Funding {
            return GrabReply::Funding;
        }
        if let Some(held) = self.of(who) {
            return match held.declined {
                true => refused(Refusal::Declined),
                false => GrabReply::Outcome(Outcome::AlreadyGrabbed(held.grant)),
            };
        }
        if self.state == HotState::Live && now >= cast.terms.expires_at {
            self.over(CloseReason::Expired);
        }
        if let HotState::Over(reason) = self.state {
            return GrabReply::Outcome(match reason {
                CloseReason::Empty => Outcome::Empty,
                CloseReason::Expired => Outcome::Expired,
                CloseReason::Recalled => Outcome::Recalled,
            });
        }
        let named = &cast.terms.exclusive;
        let share = match named.is_empty() {
            true => self.held.len(),
            false => match named.iter().position(|share| share.grabber == *who) {
                Some(place) => place,
                None => return GrabReply::Missing,
            },
        };
        if let Some(at) = cast
            .terms
            .opens_at
            .filter(|at| !self.opening_seen && now < *at)
        {
            return GrabReply::Outcome(Outcome::NotOpenYet(at));
        }
        self.opening_seen = true;
        if cast.terms.passphrase.is_some() {
            let tries = self.tries.entry(who.clone()).or_default();
            if *tries == WRONG_TRIES_PER_GRABBER_MAX {
                return refused(Refusal::TooManyTries);
            }
            if !right {
                *tries += 1;
                return refused(Refusal::WrongPassphrase);
            }
        }
        let share = u32::try_from(share).unwrap();
        GrabReply::Outcome(Outcome::Won(self.give(cast, share, who, now, false)))
    }

    fn decline(&mut self, cast: &Cast, who: &PersonId, now: UnixMs) -> DeclineReply {
        let Some(share) = cast.terms.exclusive_share_of(who) else {
            return DeclineReply::Missing;
        };
        if self.frozen.is_some() {
            return DeclineReply::Frozen;
        }
        if self.state == HotState::Funding {
            return DeclineReply::Funding;
        }
        if let Some(HeldShare {
            grant, declined, ..
        }) = self.of(who).cloned()
        {
            return match declined {
                true => DeclineReply::Declined {
                    grant,
                    replayed: true,
                },
                false => DeclineReply::AlreadyGrabbed(grant),
            };
        }
        if let HotState::Over(reason) = self.state {
            return DeclineReply::Over(reason);
        }
        if now >= cast.terms.expires_at {
            return DeclineReply::Over(self.over(CloseReason::Expired));
        }
        DeclineReply::Declined {
            grant: self.give(cast, share, who, now, true),
            replayed: false,
        }
    }

    fn close_reply(&self, reason: CloseReason) -> CloseReply {
        let amounts = self.held.values().map(|held| held.grant.amount_minor);
        CloseReply::Over {
            reason,
            taken_count: u32::try_from(self.held.len()).unwrap(),
            taken_minor: amounts.sum(),
        }
    }

    fn best(&self) -> Option<HeldShare> {
        let HotState::Over(_) = self.state else {
            return None;
        };
        let kept = self.held.values().filter(|held| !held.declined);
        // The last of the largest from the back is the first from the front.
        kept.rev()
            .max_by_key(|held| held.grant.amount_minor)
            .cloned()
    }
}

struct World {
    stage: Embedded,
    casts: Vec<Cast>,
    should: Vec<Option<Should>>,
    /// Not settled.
    owed: Vec<OutboxRecord>,
    /// Settled or not.
    ever_owed: Vec<OutboxRecord>,
}

impl World {
    fn new() -> Self {
        let casts = casts();
        Self {
            stage: Embedded::new(CRAMPED),
            should: vec![None; casts.len()],
            casts,
            owed: Vec::new(),
            ever_owed: Vec::new(),
        }
    }

    fn now(&self) -> UnixMs {
        crate::clock::Clock::now(&self.stage.clock)
    }

    async fn play(&mut self, op: &Op) {
        let store = Arc::clone(&self.stage.store);
        let now = self.now();
        match op {
            Op::Load(which) => {
                self.casts[*which].load(&*store).await.unwrap();
                self.should[*which].get_or_insert(Should::new(HotState::Funding, true));
            }
            Op::Open(which) => self.open(&*store, *which).await,
            Op::Grab(grabs) => self.grab(&*store, grabs, now).await,
            Op::Decline(which, name) => {
                let (cast, who) = (self.casts[*which].clone(), person(NAMES[*name]));
                let declined = store.decline(Epoch::FIRST, tenant(), cast.id, who.clone());
                let expected = match &mut self.should[*which] {
                    Some(should) => should.decline(&cast, &who, now),
                    None => DeclineReply::Missing,
                };
                assert_eq!(declined.await.unwrap(), expected);
                self.note(*which);
            }
            Op::Close(which, reason) => self.close(&*store, *which, *reason, now).await,
            Op::Freeze(which) => {
                let id = self.casts[*which].id;
                store.freeze(Epoch::FIRST, id).await.unwrap();
                if let Some(should) = &mut self.should[*which] {
                    should.frozen = should.frozen.or(Some(Mark::Books));
                }
            }
            Op::Break(which) => {
                store.break_invariant(self.casts[*which].id).await.unwrap();
                if let Some(should) = &mut self.should[*which] {
                    should.frozen = Some(Mark::Broken);
                }
            }
            Op::Unfreeze(which, upto) => {
                let id = self.casts[*which].id;
                store.unfreeze(Epoch::FIRST, id, *upto).await.unwrap();
                if let Some(should) = &mut self.should[*which] {
                    should.frozen = should.frozen.filter(|mark| mark > upto);
                }
            }
            Op::MoveClock(ms) => self.stage.clock.advance_ms(*ms),
            Op::SettleOne => self.settle(&*store, 1).await,
            Op::SettleAll => self.settle(&*store, usize::MAX).await,
            Op::SettleAllAndRemove(which) => {
                self.settle(&*store, usize::MAX).await;
                let ids = vec![self.casts[*which].id];
                store.remove(Epoch::FIRST, ids).await.unwrap();
                let gone = |s: &Should| matches!(s.state, HotState::Over(_)) && s.frozen.is_none();
                if self.should[*which].as_ref().is_some_and(gone) {
                    self.should[*which] = None;
                }
            }
            Op::Crash => {
                drop(store);
                self.stage.crash().await;
            }
            Op::Restart => {
                store.shutdown().await;
                drop(store);
                self.stage.reopen_copy();
            }
        }
    }

    async fn open(&mut self, store: &dyn HotStore, which: usize) {
        let opened = self.casts[which].open(store).await;
        let Some(should) = &mut self.should[which] else {
            assert!(matches!(opened, Err(HotError::Mismatch(_))));
            return;
        };
        if should.state == HotState::Funding {
            assert!(should.loaded);
            should.state = HotState::Live;
        }
        assert_eq!(opened.unwrap(), should.state);
    }

    async fn grab(&mut self, store: &dyn HotStore, grabs: &[(usize, usize, bool)], now: UnixMs) {
        let asked = grabs.iter().map(|(which, name, right)| Grab {
            phrase: right.then(|| phrase("open sesame")),
            ..self.casts[*which].grab_by(NAMES[*name])
        });
        let replies = store.grab(asked.collect()).await.unwrap();
        assert_eq!(replies.len(), grabs.len());
        for ((which, name, right), reply) in grabs.iter().zip(replies) {
            let expected = match &mut self.should[*which] {
                Some(should) => {
                    should.grab(&self.casts[*which], &person(NAMES[*name]), *right, now)
                }
                None => GrabReply::Missing,
            };
            assert_eq!(reply, expected);
            self.note(*which);
        }
    }

    async fn close(
        &mut self,
        store: &dyn HotStore,
        which: usize,
        reason: CloseReason,
        now: UnixMs,
    ) {
        let cast = &self.casts[which];
        let terms = Arc::clone(&cast.terms);
        let reply = store.close(Epoch::FIRST, cast.id, terms, reason).await;
        let standing = self.should[which].take();
        let mut should = standing
            .clone()
            .unwrap_or(Should::new(HotState::Funding, false));
        let due = now >= cast.terms.expires_at;
        let expected = match should.state {
            _ if should.frozen.is_some() => CloseReply::Frozen,
            HotState::Over(first) => should.close_reply(first),
            _ if !due && reason == CloseReason::Expired => {
                self.should[which] = standing;
                assert_eq!(reply.unwrap(), CloseReply::NotDue(now));
                return;
            }
            _ => {
                let reason = should.over(if due { CloseReason::Expired } else { reason });
                should.close_reply(reason)
            }
        };
        assert_eq!(reply.unwrap(), expected);
        self.should[which] = Some(should);
    }

    /// Remembers what an envelope owes by now.
    fn note(&mut self, which: usize) {
        let held = self.should[which].iter().flat_map(|s| s.held.values());
        let envelope = self.casts[which].id;
        for share in held {
            let debt = OutboxRecord {
                envelope,
                grabber: share.grabber.clone(),
                grant: share.grant,
                declined: share.declined,
            };
            if !self.ever_owed.contains(&debt) {
                self.ever_owed.push(debt.clone());
                self.owed.push(debt);
            }
        }
    }

    async fn settle(&mut self, store: &dyn HotStore, entries_max: usize) {
        let entries = store
            .outbox(Partition::ZERO, None, usize::MAX)
            .await
            .unwrap();
        let some = &entries[..entries.len().min(entries_max)];
        let pairs = some.iter().map(|e| (e.id, e.nonce)).collect();
        let settled = store.settled(Epoch::FIRST, Partition::ZERO, pairs).await;
        settled.unwrap();
        for record in some.iter().flat_map(|entry| &entry.records) {
            self.owed.retain(|debt| debt != record);
        }
    }

    /// Everything that can be seen is as it should be.
    async fn check(&self) {
        let store = &self.stage.store;
        let ids: Vec<_> = self.casts.iter().map(|cast| cast.id).collect();
        let views = store.view(ids).await.unwrap();
        for ((cast, should), view) in self.casts.iter().zip(&self.should).zip(views) {
            let grants = store.grants(cast.id, 0, 100).await.unwrap();
            let Some(should) = should else {
                assert!(view.is_none() && grants.is_none());
                continue;
            };
            let held: Vec<_> = should.held.values().cloned().collect();
            assert_eq!(grants.unwrap(), held);
            same(&view.unwrap(), should);
        }
        // A crash may bring settled debts back, and never loses one that is not settled.
        let entries = store.outbox(Partition::ZERO, None, usize::MAX).await;
        let entries = entries.unwrap();
        let offered: Vec<_> = entries.iter().flat_map(|entry| &entry.records).collect();
        assert!(self.owed.iter().all(|debt| offered.contains(&debt)));
        assert!(offered.iter().all(|debt| self.ever_owed.contains(debt)));
    }
}

fn same(view: &HotView, should: &Should) {
    assert_eq!((view.state, view.frozen), (should.state, should.frozen));
    let amounts = should.held.values().map(|held| held.grant.amount_minor);
    assert_eq!(view.taken_minor, amounts.sum::<i64>());
    assert_eq!(view.taken_count as usize, should.held.len());
    let declined = should.held.values().filter(|held| held.declined).count();
    assert_eq!(view.declined_count as usize, declined);
    assert_eq!(view.best, should.best());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_history_goes_as_the_model_says(ops in ops()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for op in &ops {
                world.play(op).await;
                world.check().await;
            }
        });
    }
}
