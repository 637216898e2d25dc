//! An envelope that is dealt to stripes: an operator stops it, it is forgotten, the books have it at once; and the
//! stage on which a crowd takes it (`dealt_crowd`), and on which it has its bad days (`dealt_faults`, `dealt_endings`,
//! `dealt_storm`).
//!
//! # Shape
//! | phase | what there is |
//! |---|---|
//! | [`Phase::Dealt`] | every stripe has shares, and gives them |
//! | [`Phase::HalfGathered`] | one is used up, some were halted, and whoever gathers the others comes to no end |
//! | [`Phase::Gathered`] | the first one has all that is left |

use std::collections::BTreeSet;

use red_envelope::domain::id::{EnvelopeId, PersonId};
use red_envelope::domain::stripes::{StripeCount, dealt, home};
use red_envelope::settle::CLOSED_KEPT_MS;
use red_envelope_proto::v1::{
    Envelope, EnvelopeState, FreezeEnvelopeRequest, GrabOutcome, GrabResponse, Share,
    UnfreezeEnvelopeRequest,
};
use tonic::{Code, Status};

use crate::crash::Promises;
use crate::harness::fleet::{rush, until};
use crate::harness::server::REDIS_PARTITIONS;
use crate::harness::world::grab_of;
use crate::harness::{Hot, Start, World, cny, lucky};
use crate::redis_faults::{keys_like, recall};
use crate::together::winners;

/// Shares of the envelopes here, and what they are worth together.
pub const SHARES: u32 = 60;
pub const TOTAL: i64 = 60_000;
/// Envelopes of more shares are dealt: those here into as many stripes as there are partitions.
pub const ABOVE: u32 = 5;
pub const STRIPES: u16 = REDIS_PARTITIONS;
/// How many want a share.
pub const CROWD: usize = 150;
/// Of each stripe, before anything happens.
pub const EARLY: usize = 2;
/// The stripe that is used up first.
const DRY: u16 = 3;
/// Halts that are done in an envelope that is gathered by half.
pub const HALTS: &str = "gather::between_stripes=3*off->return";

/// How far the envelope is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Dealt,
    HalfGathered,
    Gathered,
}

impl Phase {
    pub const ALL: [Self; 3] = [Self::Dealt, Self::HalfGathered, Self::Gathered];
}

/// On Redis, and envelopes of more than [`ABOVE`] shares are dealt.
pub fn dealing(start: Start) -> Start {
    dealing_above(ABOVE, start)
}

/// On Redis, and envelopes of more shares are dealt.
pub fn dealing_above(shares: u32, start: Start) -> Start {
    let mut start = Start {
        hot: Hot::Redis,
        ..start
    };
    let above = shares.to_string();
    let told = ["--hot-stripe-above-shares", &above];
    start.flags.extend(told.map(str::to_owned));
    start
}

/// Into how many stripes the envelopes here are dealt.
pub fn stripes() -> StripeCount {
    StripeCount::new(STRIPES).unwrap()
}

/// People who grab at this stripe, without end.
pub fn people_of(id: &str, stripe: u16, role: &str) -> impl Iterator<Item = String> + use<> {
    let (id, role): (EnvelopeId, _) = (id.parse().unwrap(), role.to_owned());
    let names = (0..).map(move |number| format!("{role}-{stripe}-{number}"));
    names.filter(move |name| {
        let grabber = PersonId::parse(name).unwrap();
        home(id, &grabber, stripes()).index() == stripe
    })
}

/// Shares that were dealt to a stripe.
fn dealt_to(stripe: u16) -> usize {
    let stripe = stripes().all().nth(stripe.into()).unwrap();
    dealt(stripe, stripes(), SHARES).len()
}

/// What somebody was told of his share.
fn what(share: Share) -> (u32, i64) {
    (share.number, share.amount.unwrap().minor_units)
}

/// A server, a dealt envelope, and what people were told of it.
pub struct Stage {
    pub world: World,
    pub id: String,
    pub held: Promises,
}

impl Stage {
    /// Of this server.
    pub async fn of(mut world: World) -> Self {
        world.fund("alice", cny(TOTAL)).await;
        let id = world.send(lucky("alice", cny(TOTAL), SHARES)).await;
        Self {
            world,
            id: id.envelope_id,
            held: Promises::new(),
        }
    }

    /// A new server, and the envelope so far, with some winners.
    pub async fn at(phase: Phase, start: Start) -> Self {
        let mut start = dealing(start);
        if phase == Phase::HalfGathered {
            start.points.get_or_insert(HALTS.to_owned());
        }
        let mut stage = Self::of(World::start(start).await).await;
        stage.some_of_each("early", EARLY).await;
        stage.reaches(phase).await;
        stage
    }

    /// From where it is dealt, with [`EARLY`] winners of each stripe.
    pub async fn reaches(&mut self, phase: Phase) {
        if phase == Phase::Dealt {
            return;
        }
        let next = self.is_used_up().await;
        match phase {
            Phase::Gathered => self.all_win([next]).await,
            _ => {
                let grab = grab_of(&self.id, &next);
                let status = self.world.try_grab(grab).await.unwrap_err();
                assert_eq!(status.code(), Code::Unavailable, "{status}");
            }
        }
        assert!(self.is_gathered());
    }

    /// One stripe has nothing left. Answers who comes to it next.
    pub async fn is_used_up(&mut self) -> String {
        let left = dealt_to(DRY) - EARLY;
        let mut people = people_of(&self.id, DRY, "tail");
        self.all_win(people.by_ref().take(left)).await;
        assert!(!self.is_gathered());
        people.next().unwrap()
    }

    /// What the books say.
    pub fn is_gathered(&self) -> bool {
        let books = self.world.server.data_folder().join("ledger.sqlite");
        let books = rusqlite::Connection::open(books).unwrap();
        let asked = "-- it.is_gathered\nSELECT max(gathered) FROM envelope";
        books.query_row(asked, [], |row| row.get(0)).unwrap()
    }

    /// Each of these wins.
    pub async fn all_win(&mut self, people: impl IntoIterator<Item = String>) {
        for grabber in people {
            let share = self.world.win(&self.id, &grabber).await;
            let before = self.held.insert(grabber, what(share));
            assert_eq!(before, None);
        }
    }

    /// So many people of each stripe win.
    pub async fn some_of_each(&mut self, role: &str, count: usize) {
        for stripe in 0..STRIPES {
            let people = people_of(&self.id, stripe, role).take(count);
            self.all_win(people).await;
        }
    }

    /// Somebody of each of these stripes tries once: where the envelope is gathered by half, some hear nothing.
    pub async fn some_try(&mut self, role: &str, stripes: impl IntoIterator<Item = u16>) {
        for stripe in stripes {
            for grabber in people_of(&self.id, stripe, role).take(1) {
                match self.world.try_grab(grab_of(&self.id, &grabber)).await {
                    Ok(answer) => {
                        assert_eq!(answer.outcome(), GrabOutcome::Won, "{grabber}");
                        self.held.insert(grabber, what(answer.share.unwrap()));
                    }
                    Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
                }
            }
        }
    }

    /// Another process, which stops at no point.
    pub async fn restarted(self) -> Self {
        self.restarted_as(Start::default()).await
    }

    /// Another process, under these circumstances.
    pub async fn restarted_as(self, start: Start) -> Self {
        let world = self.world.restarted(dealing(start)).await;
        world.until_ready().await;
        Self { world, ..self }
    }

    /// The envelope as its sender sees it says what people were told.
    pub async fn the_counts_are_right(&mut self) {
        let seen = self.world.look(&self.id, "alice").await.progress.unwrap();
        let count = u32::try_from(self.held.len()).unwrap();
        let sum: i64 = self.held.values().map(|(_, amount)| amount).sum();
        let counts = (seen.taken_count, seen.remaining_count);
        assert_eq!(counts, (count, SHARES - count));
        assert_eq!(seen.taken, Some(cny(sum)));
    }

    /// Everybody hears of his own share again; the sender sees each once, in order.
    pub async fn the_answers_stay(&mut self) {
        for (grabber, told) in &self.held {
            let again = self.world.grab_until_answered(&self.id, grabber).await;
            assert_eq!(again.outcome(), GrabOutcome::AlreadyGrabbed, "{grabber}");
            assert_eq!(what(again.share.unwrap()), *told, "{grabber}");
        }
        let listed = self.world.shares(&self.id, "alice").await;
        assert!(listed.is_sorted_by(|one, next| one.number < next.number));
        let told = listed.into_iter().map(|s| (s.grabber.clone(), what(s)));
        let told: Promises = told.collect();
        for (grabber, share) in &self.held {
            assert_eq!(told.get(grabber), Some(share), "{grabber}");
        }
    }

    /// All these ask, at once, until they are answered. They may have asked before.
    pub async fn a_crowd_asks(&mut self, people: impl IntoIterator<Item = String>) {
        let clients = [self.world.envelopes.clone()];
        let answers = rush(&self.world.record, &clients, &self.id, people).await;
        self.are_told(&answers);
    }

    /// Nobody is told anything else than before.
    pub fn are_told(&mut self, answers: &[(String, GrabResponse)]) {
        for (grabber, told) in winners(answers) {
            let before = self.held.insert(grabber.clone(), told);
            assert!(before.is_none_or(|before| before == told), "{grabber}");
        }
        for (grabber, answer) in answers {
            let has_none = answer.outcome() == GrabOutcome::Empty;
            assert!(!has_none || !self.held.contains_key(grabber), "{grabber}");
        }
    }

    /// Every share is taken, by these people and those who have one: each is told and paid once.
    pub async fn ends_with(mut self, people: impl IntoIterator<Item = String>) {
        self.a_crowd_asks(people).await;
        self.all_is_taken_and_paid().await;
    }

    pub async fn all_is_taken_and_paid(&mut self) {
        let numbers: BTreeSet<_> = self.held.values().map(|(number, _)| *number).collect();
        assert!(numbers.into_iter().eq(0..SHARES));
        assert_eq!(self.held.len(), SHARES as usize);
        let sum: i64 = self.held.values().map(|(_, amount)| amount).sum();
        assert_eq!(sum, TOTAL);
        let none = self.world.grab_until_answered(&self.id, "nobody").await;
        assert_eq!(none.outcome(), GrabOutcome::Empty);
        let closed = self.closes().await;
        let settled = closed.progress.as_ref().unwrap().settled.clone();
        assert_eq!(settled, Some(cny(TOTAL)));
        let best = what(closed.best_luck.unwrap());
        let largest = self.held.values().map(|(_, amount)| *amount).max();
        assert_eq!(Some(best.1), largest);
        let those = self.held.values().filter(|share| share.1 == best.1);
        assert_eq!(Some(best), those.copied().min(), "the first of the largest");
        assert_eq!(self.world.available("alice").await, 0);
        self.the_counts_are_right().await;
    }

    /// It is closed, each winner is paid what he was told, and the books are clean.
    pub async fn closes(&mut self) -> Envelope {
        let closed = self.world.until(&self.id, "alice", EnvelopeState::Closed);
        let closed = closed.await;
        for (grabber, (_, amount)) in &self.held {
            assert_eq!(self.world.available(grabber).await, *amount, "{grabber}");
        }
        self.the_answers_stay().await;
        self.world.audit_when_quiet().await;
        closed
    }

    /// What Redis holds of the envelope.
    pub fn keys(&mut self, letter: &str) -> Vec<Vec<u8>> {
        keys_like(&mut self.world, &format!("re1:*:{letter}:{}", self.id))
    }
}

/// Whoever comes last.
pub fn crowd() -> impl Iterator<Item = String> {
    (0..CROWD).map(|number| format!("crowd-{number}"))
}

/// An operator stops it.
pub async fn freeze(stage: &mut Stage) -> Result<(), Status> {
    let freeze = FreezeEnvelopeRequest {
        envelope_id: stage.id.clone(),
        operator: "olga".to_owned(),
        reason: "a complaint".to_owned(),
        ..FreezeEnvelopeRequest::default()
    };
    let frozen = stage.world.admin.freeze_envelope(freeze).await;
    frozen.map(drop)
}

/// An operator lets it go on.
pub async fn unfreeze(stage: &mut Stage) -> Result<(), Status> {
    let unfreeze = UnfreezeEnvelopeRequest {
        envelope_id: stage.id.clone(),
        operator: "olga".to_owned(),
        reason: "nothing found".to_owned(),
        ..UnfreezeEnvelopeRequest::default()
    };
    let freed = stage.world.admin.unfreeze_envelope(unfreeze).await;
    freed.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_dealt_envelope_gives_nothing_in_any_stripe_until_it_may_go_on() {
    for phase in Phase::ALL {
        let mut stage = Stage::at(phase, Start::default()).await;
        freeze(&mut stage).await.unwrap();
        let seen = stage.world.look(&stage.id, "alice").await;
        assert_eq!(seen.state(), EnvelopeState::Frozen, "{phase:?}");
        for stripe in 0..STRIPES {
            for grabber in people_of(&stage.id, stripe, "frozen").take(2) {
                let grab = grab_of(&stage.id, &grabber);
                let status = stage.world.try_grab(grab).await.unwrap_err();
                assert_eq!(status.code(), Code::Unavailable, "{phase:?}: {status}");
            }
        }
        stage.the_counts_are_right().await;
        unfreeze(&mut stage).await.unwrap();
        stage = match phase {
            Phase::HalfGathered => stage.restarted().await,
            _ => stage,
        };
        stage.the_answers_stay().await;
        stage.ends_with(crowd()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dealt_envelope_that_is_closed_is_forgotten_in_every_partition_and_told_from_the_books() {
    for phase in [Phase::Dealt, Phase::Gathered] {
        let mut stage = Stage::at(phase, Start::default()).await;
        if phase == Phase::Gathered {
            stage.a_crowd_asks(crowd()).await;
            stage.all_is_taken_and_paid().await;
        } else {
            recall(&mut stage.world, &stage.id).await.unwrap();
            stage.closes().await;
        }
        assert_eq!(stage.keys("g").len(), usize::from(STRIPES));
        let seen = stage.world.look(&stage.id, "alice").await;
        let shares = stage.world.shares(&stage.id, "alice").await;
        stage.world.server.set_clock_ms(CLOSED_KEPT_MS + 60_000);
        let nothing = async || stage.keys("*").is_empty();
        until("Redis has forgotten it", nothing).await;
        assert_eq!(stage.world.look(&stage.id, "alice").await, seen);
        assert_eq!(stage.world.shares(&stage.id, "alice").await, shares);
        stage.the_answers_stay().await;
        let over = stage.world.grab(&stage.id, "nobody").await.outcome();
        let why = match phase {
            Phase::Gathered => GrabOutcome::Empty,
            _ => GrabOutcome::Recalled,
        };
        assert_eq!(over, why);
        assert!(stage.keys("*").is_empty());
        stage.world.audit_when_quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_ledger_each_acknowledged_share_of_a_dealt_envelope_is_in_the_books() {
    let start = Start {
        flags: ["--ack", "ledger"].map(str::to_owned).to_vec(),
        ..Start::default()
    };
    let mut stage = Stage::of(World::start(dealing(start)).await).await;
    let mut won = 0;
    for stripe in 0..STRIPES {
        // The first three stripes are used up by their own people, and by others.
        let count = dealt_to(stripe) + 2;
        for grabber in people_of(&stage.id, stripe, "slow").take(count) {
            if won == SHARES {
                break;
            }
            stage.all_win([grabber.clone()]).await;
            let paid = stage.world.available(&grabber).await;
            assert_eq!(paid, stage.held[&grabber].1, "{grabber}");
            won += 1;
        }
    }
    assert_eq!(won, SHARES);
    stage.ends_with(crowd()).await;
}
