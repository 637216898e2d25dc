//! Random days: after each operation the promises hold, and at the end all money is where the model
//! says.
//!
//! The model knows what must happen and nothing of how: who was promised which share, what was
//! brought in and taken out, and which envelopes are over.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::Config;
use red_envelope::clock::Clock;
use red_envelope::domain::books::DiscrepancyKind;
use red_envelope::domain::envelope::{BookState, CloseReason, Draft, Kind};
use red_envelope::domain::grab::{GrabReply, Grant, HeldShare, Outcome, Refusal};
use red_envelope::domain::id::{EnvelopeId, UnixMs};
use red_envelope::hot::DeclineReply;
use red_envelope::ledger::LedgerError;
use red_envelope::publish::marks::{self, MarkError};

use crate::ops::{Op, op};
use crate::world::{World, equal, exclusive, lucky, person};

/// Days that one run tries; each takes some 30 operations and as many audits.
const DAYS: u32 = 24;
const SENDERS: [&str; 2] = ["sender-0", "sender-1"];
const GRABBERS: [&str; 4] = ["bob", "carol", "dave", "erin"];

/// An envelope as its sender and its grabbers know it.
struct Sent {
    id: EnvelopeId,
    sender: usize,
    draft: Draft,
    expires_at: UnixMs,
    recalled: bool,
    /// Nothing of it moves until an operator acts.
    frozen: bool,
    /// What was promised: by grabber, and whether it was declined.
    held: BTreeMap<usize, (Grant, bool)>,
}

impl Sent {
    fn names(&self, grabber: usize) -> bool {
        let person = person(GRABBERS[grabber]);
        self.draft.kind != Kind::Exclusive || self.draft.exclusive_share_of(&person).is_some()
    }

    fn paid_minor(&self) -> i64 {
        let paid = self.held.values().filter(|(_, declined)| !declined);
        paid.map(|(grant, _)| grant.amount_minor).sum()
    }

    fn declined_minor(&self) -> i64 {
        let back = self.held.values().filter(|(_, declined)| *declined);
        back.map(|(grant, _)| grant.amount_minor).sum()
    }

    fn full(&self) -> bool {
        self.held.len() == usize::try_from(self.draft.share_count).unwrap()
    }

    /// Whether a grabber may be told this.
    fn may_answer(&self, grabber: usize, outcome: Outcome, now: UnixMs) -> bool {
        match (self.held.get(&grabber), outcome) {
            (Some((grant, false)), Outcome::AlreadyGrabbed(same)) => *grant == same,
            (Some((_, true)), Outcome::Refused(Refusal::Declined)) => true,
            (Some(_), _) => false,
            (None, Outcome::Won(_)) => !self.full() && now < self.expires_at,
            (None, Outcome::Empty) => self.full(),
            (None, Outcome::Expired) => now >= self.expires_at,
            (None, Outcome::Recalled) => self.recalled,
            (None, _) => false,
        }
    }
}

struct Day {
    world: World,
    /// What each sender brought in, less what was taken out and put into envelopes.
    senders: [i64; 2],
    outside_minor: i64,
    sent: Vec<Sent>,
    /// The clock moved since settlement had its turn: what is late by now is not its fault.
    moved: bool,
}

impl Day {
    fn new() -> Self {
        Self {
            world: World::new(),
            senders: [0; 2],
            outside_minor: 0,
            sent: Vec::new(),
            moved: false,
        }
    }

    fn pick(&self, envelope: usize) -> Option<usize> {
        (!self.sent.is_empty()).then(|| envelope % self.sent.len())
    }

    async fn run(mut self, op: Op) -> Self {
        match op {
            Op::Deposit { sender, minor } => {
                self.world.deposit(SENDERS[sender], minor).await;
                self.senders[sender] += minor;
                self.outside_minor += minor;
            }
            Op::Withdraw { sender, minor } => self.withdraw(sender, minor).await,
            Op::Create {
                sender,
                kind,
                each_minor,
                shares,
                expires_in_ms,
            } => {
                let name = SENDERS[sender];
                let draft = draft(name, kind, each_minor, shares);
                let draft = Draft {
                    expires_in_ms,
                    ..draft
                };
                self.create(sender, draft).await;
            }
            Op::Grab { grabber, envelope } => self.grab(grabber, envelope).await,
            Op::Decline { grabber, envelope } => self.decline(grabber, envelope).await,
            Op::Recall { envelope } => self.recall(envelope).await,
            Op::Freeze { envelope } => self.freeze(envelope).await,
            Op::Unfreeze { envelope } => self.unfreeze(envelope).await,
            Op::Break { envelope } => self.break_invariant(envelope).await,
            Op::Advance { ms } => {
                self.world.clock.advance_ms(ms);
                self.moved = true;
            }
            Op::Drain => {
                let drained = self.world.drain().await;
                assert_eq!(
                    drained.superseded + drained.dead_letters + drained.refused,
                    0
                );
            }
            Op::Sweep => {
                assert_eq!(self.world.sweep().await.failure, None);
            }
            Op::Forget => {
                self.world.settlement().forget_once().await.unwrap();
            }
            Op::Reopen => self.world = self.world.reopen().await,
        }
        self
    }

    async fn withdraw(&mut self, sender: usize, minor: i64) {
        let available = self.world.available(SENDERS[sender]).await;
        let transfer = self.world.transfer(SENDERS[sender], minor);
        match self.world.ledger().withdraw(transfer).await {
            Ok(_) => {
                assert!(available >= minor, "{available} can't give {minor}");
                self.senders[sender] -= minor;
                self.outside_minor -= minor;
            }
            Err(LedgerError::InsufficientFunds { .. }) => assert!(available < minor),
            Err(other) => panic!("{other}"),
        }
    }

    async fn create(&mut self, sender: usize, draft: Draft) {
        let total = draft.total_minor;
        let short = total - self.world.available(SENDERS[sender]).await;
        if short > 0 {
            self.world.deposit(SENDERS[sender], short).await;
            self.senders[sender] += short;
            self.outside_minor += short;
        }
        let id = self.world.fund(draft.clone()).await;
        self.world.publish(id).await;
        self.senders[sender] -= total;
        let expires_at = self.world.row(id).await.terms.expires_at;
        self.sent.push(Sent {
            id,
            sender,
            draft,
            expires_at,
            recalled: false,
            frozen: false,
            held: BTreeMap::new(),
        });
    }

    async fn grab(&mut self, grabber: usize, envelope: usize) {
        let Some(at) = self.pick(envelope) else {
            return;
        };
        if !self.sent[at].names(grabber) {
            return;
        }
        let id = self.sent[at].id;
        let now = self.world.clock.now();
        let reply = self.world.grab(id, GRABBERS[grabber]).await;
        let outcome = match reply {
            GrabReply::Outcome(outcome) => outcome,
            GrabReply::Missing => {
                let state = self.world.row(id).await.state;
                assert!(matches!(state, BookState::Closed(_)), "{state:?}");
                return;
            }
            GrabReply::Frozen => {
                assert!(self.sent[at].frozen, "nobody froze it");
                return;
            }
            other => panic!("{other:?}"),
        };
        let sent = &mut self.sent[at];
        assert!(!sent.frozen, "a frozen envelope answered {outcome:?}");
        assert!(
            sent.may_answer(grabber, outcome, now),
            "{outcome:?} to {grabber}, who holds {:?}",
            sent.held.get(&grabber)
        );
        if let Outcome::Won(grant) = outcome {
            let taken = sent.held.values().any(|(g, _)| g.share == grant.share);
            assert!(!taken, "share {} was promised twice", grant.share);
            sent.held.insert(grabber, (grant, false));
        }
    }

    async fn decline(&mut self, grabber: usize, envelope: usize) {
        let Some(at) = self.pick(envelope) else {
            return;
        };
        if self.sent[at].draft.kind != Kind::Exclusive || !self.sent[at].names(grabber) {
            return;
        }
        let reply = self
            .world
            .decline(self.sent[at].id, GRABBERS[grabber])
            .await;
        let frozen = self.sent[at].frozen;
        let held = &mut self.sent[at].held;
        match (reply, held.get(&grabber)) {
            (DeclineReply::Declined { grant, replayed }, before) => {
                assert_eq!(before.is_some(), replayed);
                held.insert(grabber, (grant, true));
            }
            (DeclineReply::AlreadyGrabbed(grant), Some((same, false))) => assert_eq!(grant, *same),
            (DeclineReply::Over(_) | DeclineReply::Missing, _) => {}
            (DeclineReply::Frozen, _) => assert!(frozen, "nobody froze it"),
            (other, before) => panic!("{other:?}, and {before:?} before"),
        }
    }

    async fn recall(&mut self, envelope: usize) {
        let Some(at) = self.pick(envelope) else {
            return;
        };
        let (ledger, id) = (self.world.ledger(), self.sent[at].id);
        match ledger.begin_close(id, CloseReason::Recalled).await {
            // The hot store may have frozen it, and the books not know yet.
            Ok(_) => self.sent[at].recalled = true,
            Err(LedgerError::Frozen) => assert!(self.sent[at].frozen, "nobody froze it"),
            Err(other) => panic!("{other}"),
        }
    }

    async fn freeze(&mut self, envelope: usize) {
        let Some(at) = self.pick(envelope) else {
            return;
        };
        let id = self.sent[at].id;
        let act = self.world.act("freeze", id);
        match marks::freeze(self.world.hot(), self.world.ledger(), id, act).await {
            Ok(_) => self.sent[at].frozen = true,
            Err(MarkError::Ledger(LedgerError::AlreadyOver(_))) => self.is_closed(id).await,
            Err(other) => panic!("{other}"),
        }
    }

    async fn unfreeze(&mut self, envelope: usize) {
        let Some(at) = self.pick(envelope) else {
            return;
        };
        let id = self.sent[at].id;
        let act = self.world.act("unfreeze", id);
        match marks::unfreeze(self.world.hot(), self.world.ledger(), id, act).await {
            Ok(_) => self.sent[at].frozen = false,
            Err(MarkError::Ledger(LedgerError::AlreadyOver(_))) => self.is_closed(id).await,
            Err(other) => panic!("{other}"),
        }
    }

    async fn break_invariant(&mut self, envelope: usize) {
        let Some(at) = self.pick(envelope) else {
            return;
        };
        let id = self.sent[at].id;
        if !matches!(self.world.row(id).await.state, BookState::Closed(_)) {
            self.world.break_invariant(id).await;
            self.sent[at].frozen = true;
        }
    }

    async fn is_closed(&self, id: EnvelopeId) {
        let state = self.world.row(id).await.state;
        assert!(matches!(state, BookState::Closed(_)), "{state:?}");
    }

    /// Operators look at what is frozen and let it go on, each by an act.
    async fn operators_act(&mut self) {
        for at in 0..self.sent.len() {
            let frozen = self.sent[at].frozen;
            if frozen {
                self.unfreeze(at).await;
            }
            assert_eq!(self.world.marked(self.sent[at].id).await, None);
        }
    }

    /// The promises, after each operation.
    async fn holds(&self) {
        let report = self.world.audit().await;
        for wrong in &report.discrepancies {
            let late = [DiscrepancyKind::Stuck, DiscrepancyKind::GrantWithoutClaim];
            assert!(self.moved && late.contains(&wrong.kind), "{wrong:?}");
        }
        for sent in &self.sent {
            for (grabber, (grant, declined)) in &sent.held {
                let found = self.found(sent.id, *grabber).await;
                let expected = HeldShare {
                    grabber: person(GRABBERS[*grabber]),
                    grant: *grant,
                    declined: *declined,
                };
                assert_eq!(found, Some(expected), "an acknowledged share is gone");
            }
        }
    }

    /// What somebody holds, as the hot store or, when it has forgotten, the ledger says.
    async fn found(&self, id: EnvelopeId, grabber: usize) -> Option<HeldShare> {
        let whose = vec![(id, person(GRABBERS[grabber]))];
        let held = self.world.hot().held(whose.clone()).await.unwrap();
        if let Some(held) = held.into_iter().flatten().next() {
            return Some(held);
        }
        let claims = self.world.ledger().claims_of(whose).await.unwrap();
        claims.into_iter().flatten().next()
    }

    /// Settlement had its turn: every balance is what the model says.
    async fn adds_up(&mut self) {
        self.operators_act().await;
        self.world.settle().await;
        self.moved = false;
        self.holds().await;
        let mut senders = self.senders;
        let mut grabbers = [0; 4];
        for sent in &self.sent {
            let closed = matches!(self.world.row(sent.id).await.state, BookState::Closed(_));
            let now = self.world.clock.now();
            let over = sent.full() || sent.recalled || now >= sent.expires_at;
            assert_eq!(closed, over, "{:?}", sent.id);
            senders[sent.sender] += if closed {
                sent.draft.total_minor - sent.paid_minor()
            } else {
                sent.declined_minor()
            };
            for (grabber, (grant, declined)) in &sent.held {
                grabbers[*grabber] += if *declined { 0 } else { grant.amount_minor };
            }
        }
        for (name, minor) in SENDERS.iter().zip(senders) {
            assert_eq!(self.world.available(name).await, minor, "{name}");
        }
        for (name, minor) in GRABBERS.iter().zip(grabbers) {
            assert_eq!(self.world.available(name).await, minor, "{name}");
        }
        let report = self.world.is_clean().await;
        assert!(report.quiet);
        let outside: i64 = report.totals.iter().map(|t| t.outside_minor).sum();
        assert_eq!(outside, self.outside_minor);
    }

    /// All envelopes are over, and everything is on somebody's account.
    async fn ends(mut self) {
        self.world.clock.advance_ms(4_000_000);
        self.adds_up().await;
        let mut all = 0;
        for name in SENDERS.iter().chain(&GRABBERS) {
            all += self.world.available(name).await;
        }
        assert_eq!(all, self.outside_minor);
    }
}

fn draft(sender: &str, kind: Kind, each_minor: i64, shares: u32) -> Draft {
    match kind {
        Kind::Lucky => lucky(sender, each_minor * i64::from(shares), shares),
        Kind::Equal => equal(sender, each_minor, shares),
        Kind::Exclusive => {
            let named = GRABBERS.iter().take(usize::try_from(shares).unwrap());
            let named: Vec<_> = named.map(|name| (*name, each_minor)).collect();
            exclusive(sender, &named)
        }
    }
}

/// Runs a day in a runtime of its own.
fn live_through(ops: Vec<Op>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut day = Day::new();
        for (number, op) in ops.into_iter().enumerate() {
            day = day.run(op).await;
            day.holds().await;
            if number % 10 == 9 {
                day.adds_up().await;
            }
        }
        day.adds_up().await;
        day.ends().await;
    });
}

proptest! {
    #![proptest_config(Config { cases: DAYS, max_shrink_iters: 200, ..Config::default() })]

    #[test]
    fn on_any_day_the_promises_hold_after_each_operation(
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        live_through(ops);
    }
}
