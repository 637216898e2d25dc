//! Random histories, and a world that plays one on a store and on the model side by side: every
//! answer, every view and every debt must be the same, also after crashes.
//!
//! # Shape
//! [`ops`] draws a history; [`World::play_all`] plays it on a [`Player`], which may go on with the
//! next history afterwards: each world has envelopes of its own.
//!
//! # Not here
//! The law itself: `model`.

use std::sync::Arc;

use async_trait::async_trait;
use proptest::collection::vec;
use proptest::prelude::*;

use super::model::Should;
use super::stage::{
    Cast, EXPIRES_IN_MS, NEW_YEAR_MS, Stage, epoch, partition, person, phrase, tenant,
};
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::{Grab, GrabReply, HeldShare, OutboxEntry, OutboxRecord};
use crate::domain::id::{EnvelopeId, UnixMs};
use crate::hot::{CloseReply, DeclineReply, HotError, HotStore, Mark};

const NAMES: [&str; 5] = ["ann", "bob", "cat", "dan", "eve"];

/// A store that worlds are played on.
#[async_trait]
pub trait Player: Stage {
    /// A crash may bring debts back that were settled: the ledger meets them as duplicates.
    const REMEMBERS_SETTLED: bool;

    /// Marks an envelope as if a change had broken an invariant.
    async fn break_invariant(&mut self, _id: EnvelopeId) {
        unreachable!("this history is not for this store");
    }

    /// Ends in order and starts again.
    async fn restart(&mut self) {
        unreachable!("this history is not for this store");
    }
}

/// A step of a history.
#[derive(Clone, Debug)]
pub enum Op {
    /// Puts the shares of an envelope down.
    Load(usize),
    /// Publishes one.
    Open(usize),
    /// Envelope, name, right phrase.
    Grab(Vec<(usize, usize, bool)>),
    /// Envelope and name.
    Decline(usize, usize),
    /// Ends one.
    Close(usize, CloseReason),
    /// Marks one.
    Freeze(usize),
    /// Marks one as broken.
    Break(usize),
    /// Lifts a mark.
    Unfreeze(usize, Mark),
    /// So many milliseconds, also back.
    MoveClock(i64),
    /// The first entry of the outbox.
    SettleOne,
    /// All of it.
    SettleAll,
    /// And forgets an envelope.
    SettleAllAndRemove(usize),
    /// The store ends without warning.
    Crash,
    /// The store ends in order.
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

/// Histories of up to so many steps; with `breaks`, also of those that only a store with hooks can
/// take.
pub fn ops(breaks: bool, steps_max: usize) -> impl Strategy<Value = Vec<Op>> {
    const CASTS: usize = 4;
    let which = || 0..CASTS;
    let name = || 0..NAMES.len();
    let mark = prop_oneof![Just(Mark::Books), Just(Mark::Broken)];
    let reason = prop_oneof![Just(CloseReason::Expired), Just(CloseReason::Recalled)];
    let steps = prop_oneof![
        Just(600),
        Just(-600),
        Just(EXPIRES_IN_MS / 2),
        Just(-EXPIRES_IN_MS / 2)
    ];
    let own = if breaks {
        prop_oneof![which().prop_map(Op::Break), Just(Op::Restart)].boxed()
    } else {
        Just(Op::Crash).boxed()
    };
    let op = prop_oneof![
        3 => which().prop_map(Op::Load),
        3 => which().prop_map(Op::Open),
        9 => vec((which(), name(), any::<bool>()), 1..6).prop_map(Op::Grab),
        2 => (which(), name()).prop_map(|(which, name)| Op::Decline(which, name)),
        1 => (which(), reason).prop_map(|(which, reason)| Op::Close(which, reason)),
        1 => which().prop_map(Op::Freeze),
        2 => (which(), mark).prop_map(|(which, upto)| Op::Unfreeze(which, upto)),
        2 => steps.prop_map(Op::MoveClock),
        2 => Just(Op::SettleOne),
        3 => Just(Op::SettleAll),
        1 => which().prop_map(Op::SettleAllAndRemove),
        1 => Just(Op::Crash),
        1 => own,
    ];
    // Most histories begin with something to grab.
    let beginning: Vec<_> = (0..CASTS)
        .flat_map(|which| [Op::Load(which), Op::Open(which)])
        .collect();
    (any::<bool>(), vec(op, 1..=steps_max)).prop_map(move |(begun, rest)| {
        let beginning = if begun { beginning.clone() } else { Vec::new() };
        beginning.into_iter().chain(rest).collect()
    })
}

/// Envelopes, what they should be, and what they owe.
pub struct World<'a, P> {
    stage: &'a mut P,
    casts: Vec<Cast>,
    should: Vec<Option<Should>>,
    /// Not settled.
    owed: Vec<OutboxRecord>,
    /// Settled or not.
    ever_owed: Vec<OutboxRecord>,
    /// Envelopes and shares whose debts are among them, since the envelope was loaded.
    noted: Vec<(usize, u32)>,
}

impl<'a, P: Player> World<'a, P> {
    /// New envelopes on a stage, whose clock is set back to the beginning.
    pub fn new(stage: &'a mut P) -> Self {
        stage.clock().set(NEW_YEAR_MS);
        let casts = casts();
        Self {
            stage,
            should: vec![None; casts.len()],
            casts,
            owed: Vec::new(),
            ever_owed: Vec::new(),
            noted: Vec::new(),
        }
    }

    /// Plays a history, and looks at envelopes and debts after each `every`th step, and at
    /// everything at the end. Leaves no debt behind.
    pub async fn play_all(&mut self, ops: &[Op], every: usize) {
        for (number, op) in ops.iter().enumerate() {
            self.play(op).await;
            if number % every == every - 1 {
                self.check().await;
            }
        }
        self.check().await;
        let store = self.stage.store();
        for name in NAMES {
            self.check_of(&*store, name).await;
        }
        self.settle(&*store, usize::MAX).await;
    }

    fn now(&self) -> UnixMs {
        crate::clock::Clock::now(self.stage.clock())
    }

    async fn play(&mut self, op: &Op) {
        let store = self.stage.store();
        let now = self.now();
        match op {
            Op::Load(which) => {
                self.casts[*which].load(&*store).await.unwrap();
                self.should[*which].get_or_insert(Should::new(HotState::Funding, true));
            }
            Op::Open(which) => self.open(&*store, *which).await,
            Op::Grab(grabs) => self.grab(&*store, grabs, now).await,
            Op::Decline(which, name) => self.decline(&*store, *which, NAMES[*name], now).await,
            Op::Close(which, reason) => self.close(&*store, *which, *reason, now).await,
            Op::Freeze(which) => {
                let id = self.casts[*which].id;
                store.freeze(&store.epochs(), id).await.unwrap();
                if let Some(should) = &mut self.should[*which] {
                    should.frozen = should.frozen.or(Some(Mark::Books));
                }
            }
            Op::Break(which) => {
                self.stage.break_invariant(self.casts[*which].id).await;
                if let Some(should) = &mut self.should[*which] {
                    should.frozen = Some(Mark::Broken);
                }
            }
            Op::Unfreeze(which, upto) => {
                let id = self.casts[*which].id;
                store.unfreeze(&store.epochs(), id, *upto).await.unwrap();
                if let Some(should) = &mut self.should[*which] {
                    should.frozen = should.frozen.filter(|mark| mark > upto);
                }
            }
            Op::MoveClock(ms) => self.stage.clock().advance_ms(*ms),
            Op::SettleOne => self.settle(&*store, 1).await,
            Op::SettleAll => self.settle(&*store, usize::MAX).await,
            Op::SettleAllAndRemove(which) => {
                self.settle(&*store, usize::MAX).await;
                let id = self.casts[*which].id;
                store.remove(&store.epochs(), vec![id]).await.unwrap();
                let gone = |s: &Should| matches!(s.state, HotState::Over(_)) && s.frozen.is_none();
                if self.should[*which].as_ref().is_some_and(gone) {
                    self.should[*which] = None;
                    self.noted.retain(|(noted, _)| noted != which);
                }
            }
            Op::Crash => {
                drop(store);
                self.stage.crash().await;
            }
            Op::Restart => {
                drop(store);
                self.stage.restart().await;
            }
        }
    }

    async fn open(&mut self, store: &dyn HotStore, which: usize) {
        let opened = self.casts[which].open(store).await;
        let Some(should) = &mut self.should[which] else {
            assert!(matches!(opened, Err(HotError::Mismatch(_))), "{opened:?}");
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
            ..self.casts[*which].grab_in(store, NAMES[*name])
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

    async fn decline(&mut self, store: &dyn HotStore, which: usize, name: &str, now: UnixMs) {
        let (cast, who) = (self.casts[which].clone(), person(name));
        let declined = store.decline(epoch(store, cast.id), tenant(), cast.id, who.clone());
        let expected = match &mut self.should[which] {
            Some(should) => should.decline(&cast, &who, now),
            None => DeclineReply::Missing,
        };
        assert_eq!(declined.await.unwrap(), expected);
        self.note(which);
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
        let reply = store.close(&store.epochs(), cast.id, terms, reason).await;
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
            if !self.noted.contains(&(which, share.grant.share)) {
                self.noted.push((which, share.grant.share));
                self.ever_owed.push(debt.clone());
                self.owed.push(debt);
            }
        }
    }

    /// The entries of this world, partition by partition: others may play on the same server.
    async fn entries(&self, store: &dyn HotStore) -> Vec<OutboxEntry> {
        let mut partitions: Vec<_> = self.casts.iter().map(|c| partition(store, c.id)).collect();
        partitions.sort_unstable();
        partitions.dedup();
        let mut entries = Vec::new();
        for partition in partitions {
            entries.extend(store.outbox(partition, None, usize::MAX).await.unwrap());
        }
        let ours = |record: &OutboxRecord| self.casts.iter().any(|c| c.id == record.envelope);
        entries.retain(|entry| entry.records.iter().any(ours));
        entries
    }

    async fn settle(&mut self, store: &dyn HotStore, entries_max: usize) {
        let entries = self.entries(store).await;
        for entry in entries.iter().take(entries_max) {
            let id = entry.records[0].envelope;
            let pair = vec![(entry.id, entry.nonce)];
            let settled = store.settled(epoch(store, id), partition(store, id), pair);
            settled.await.unwrap();
            for record in &entry.records {
                self.owed.retain(|debt| debt != record);
            }
        }
    }

    /// Envelopes and debts are as they should be.
    async fn check(&self) {
        let store = self.stage.store();
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
            should.is_shown_by(&view.unwrap());
        }
        let entries = self.entries(&*store).await;
        let offered = entries.iter().flat_map(|entry| &entry.records);
        self.are_owed(offered.collect::<Vec<_>>(), |_| true);
    }

    /// What one person sees.
    async fn check_of(&self, store: &dyn HotStore, name: &str) {
        let who = person(name);
        let ids: Vec<_> = self.casts.iter().map(|cast| cast.id).collect();
        let whose = ids.iter().map(|id| (*id, who.clone())).collect();
        let held = store.held(whose).await.unwrap();
        let should = |s: &Option<Should>| -> Option<HeldShare> { s.as_ref()?.of(&who).cloned() };
        let expected: Vec<_> = self.should.iter().map(should).collect();
        assert_eq!(held, expected);
        let pending = store.pending(tenant(), who.clone()).await.unwrap();
        let records = pending.into_iter().map(|share| OutboxRecord {
            envelope: share.envelope,
            grabber: who.clone(),
            grant: share.grant,
            declined: false,
        });
        let records: Vec<_> = records.filter(|r| ids.contains(&r.envelope)).collect();
        self.are_owed(records.iter().collect(), |debt| {
            debt.grabber == who && !debt.declined
        });
    }

    /// No debt that is not settled is missing, and none was never owed.
    fn are_owed(&self, offered: Vec<&OutboxRecord>, of: impl Fn(&OutboxRecord) -> bool) {
        let mut owed = self.owed.iter().filter(|debt| of(debt));
        assert!(owed.clone().all(|debt| offered.contains(&debt)));
        let known = |record: &&OutboxRecord| self.ever_owed.contains(record);
        assert!(offered.iter().all(known));
        if P::REMEMBERS_SETTLED {
            assert_eq!(offered.len(), owed.by_ref().count());
        }
    }
}
