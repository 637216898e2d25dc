//! An envelope that is dealt to four stripes, on a real Redis: who takes what where, and what is left in the
//! end.
//!
//! # Not here
//! Who gathers, and when: `publish`. Crowds, crashes of processes and losses in any order: the simulation.

mod ends;
mod lost;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::task::Poll;

use super::{Crash, Flavour, OnRedis, store as another};
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::{Grab, GrabReply, HeldShare, Outcome};
use crate::domain::stripes::{Stripe, StripeCount, dealt, home};
use crate::hot::conformance::stage::{Cast, one, outcome, person};
use crate::hot::{Gathered, GrantWalk, HotError, HotStore, HotView, Repair};

/// Polls that a gather is given at most before it counts as whole.
const POLLS_MAX: usize = 400;

const STRIPES: u16 = 4;
/// People of each stripe who have asked when all is taken.
const ASKED: usize = 9;

fn of() -> StripeCount {
    StripeCount::new(STRIPES).unwrap()
}

fn cast(count: usize) -> Cast {
    let amounts: Vec<i64> = (1..=count).map(|n| i64::try_from(n).unwrap()).collect();
    Cast::lucky(&amounts).with(|draft| draft.stripes = of())
}

async fn stage() -> OnRedis {
    OnRedis::new(Flavour::Debian, Crash::Process).await
}

/// So many people whose home is a stripe.
fn people_of(cast: &Cast, stripe: u16, count: usize) -> Vec<String> {
    let names = (0..).map(|number| format!("p{number}"));
    let at_home = names.filter(|name| home(cast.id, &person(name), of()).index() == stripe);
    at_home.take(count).collect()
}

fn repair(cast: &Cast, stripe: Stripe, claims: &[HeldShare]) -> Repair {
    let own = dealt(stripe, of(), cast.terms.share_count);
    let is_first = stripe == Stripe::FIRST;
    let claims = claims.iter();
    let claims = claims.filter(|claim| is_first || own.contains(&claim.grant.share));
    Repair {
        envelope: cast.id,
        terms: std::sync::Arc::clone(&cast.terms),
        amounts_minor: cast.amounts.clone().into(),
        claims: claims.cloned().collect(),
        over: None,
        stripe,
        gathered: None,
    }
}

/// As `publish` gathers: all other stripes first, those that are lost from the books.
async fn gather(
    store: &dyn HotStore,
    cast: &Cast,
    claims: Option<&[HeldShare]>,
) -> Result<HotState, HotError> {
    let (under, mut all) = (store.epochs(), Gathered::default());
    let halt = |stripe| store.halt(&under, cast.id, cast.terms.clone(), stripe);
    for stripe in of().all().skip(1) {
        let mut halted = halt(stripe).await?;
        if halted.is_none() {
            let claims = claims.unwrap_or_default();
            let lives = |held: &&HeldShare| home(cast.id, &held.grabber, of()) == stripe;
            let own = dealt(stripe, of(), cast.terms.share_count);
            let elsewhere = claims.iter().filter(lives);
            let elsewhere = elsewhere.filter(|held| !own.contains(&held.grant.share));
            let lost = Repair {
                gathered: Some(Gathered {
                    elsewhere: elsewhere.map(|held| held.grabber.clone()).collect(),
                    ..Gathered::default()
                }),
                ..repair(cast, stripe, claims)
            };
            store.repair(&under, lost).await?;
            halted = halt(stripe).await?;
        }
        let halted = halted.expect("it was repaired");
        all.left.extend(halted.left);
        all.lacks |= halted.tombstone;
    }
    all.stands = claims.is_none();
    let first = Repair {
        gathered: Some(all),
        ..repair(cast, Stripe::FIRST, claims.unwrap_or_default())
    };
    store.repair(&under, first).await
}

/// At home, and then from the first one: `None` before it may be asked.
async fn grab(store: &dyn HotStore, cast: &Cast, name: &str, gathered: bool) -> Option<Outcome> {
    let at_home = cast.grab_in(store, name);
    match one(store, at_home.clone()).await {
        GrabReply::Dry if gathered => {
            let partition = cast.id.partition(store.partitions());
            let first = Grab {
                partition,
                epoch: store.epoch(partition),
                ..at_home
            };
            Some(outcome(one(store, first).await))
        }
        GrabReply::Dry => None,
        reply => Some(outcome(reply)),
    }
}

async fn view(store: &dyn HotStore, cast: &Cast) -> HotView {
    let views = store.view(vec![cast.id]).await.unwrap();
    views.into_iter().flatten().next().expect("it is there")
}

/// Every grant, by pages of seven.
async fn grants(store: &dyn HotStore, cast: &Cast) -> Vec<HeldShare> {
    let (mut all, mut walk) = (Vec::new(), GrantWalk::default());
    loop {
        let from = all
            .last()
            .map_or(0, |held: &HeldShare| held.grant.share + 1);
        let page = store
            .walk_grants(&mut walk, cast.id, from, 7)
            .await
            .unwrap();
        let page = page.expect("it is there");
        let single = store.grants(cast.id, from, 7).await.unwrap();
        assert_eq!(single.as_ref(), Some(&page));
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// What each person was told, and that nobody was told two things, and no share twice.
#[derive(Default)]
struct Told(BTreeMap<String, (u32, i64)>);

impl Told {
    fn hears(&mut self, name: &str, outcome: Option<Outcome>) {
        match (outcome, self.0.get(name).copied()) {
            (Some(Outcome::Won(grant)), None) => {
                let taken = self.0.values().any(|(share, _)| *share == grant.share);
                assert!(!taken, "share {} twice", grant.share);
                let told = (grant.share, grant.amount_minor);
                self.0.insert(name.to_owned(), told);
            }
            (Some(Outcome::AlreadyGrabbed(grant)), Some(told)) => {
                assert_eq!((grant.share, grant.amount_minor), told, "{name}");
            }
            (Some(Outcome::Empty) | None, None) => {}
            (outcome, before) => panic!("{name} heard {before:?} and then {outcome:?}"),
        }
    }

    /// Whether the store counts and lists the same.
    async fn is_counted(&self, store: &dyn HotStore, cast: &Cast) {
        let view = view(store, cast).await;
        assert_eq!(usize::try_from(view.taken_count), Ok(self.0.len()));
        let minor: i64 = self.0.values().map(|told| told.1).sum();
        assert_eq!(view.taken_minor, minor);
        let listed = grants(store, cast).await.into_iter();
        let listed = listed.map(|held| (held.grabber.as_str().to_owned(), held.grant.share));
        let told = self
            .0
            .iter()
            .map(|(name, (share, _))| (name.clone(), *share));
        let told: BTreeSet<_> = told.collect();
        assert_eq!(listed.collect::<BTreeSet<_>>(), told);
        for (name, (share, _)) in &self.0 {
            let held = store.held(vec![(cast.id, person(name))]).await.unwrap();
            assert_eq!(held[0].as_ref().unwrap().grant.share, *share, "{name}");
        }
    }
}

/// Sixteen shares, of which all of the second stripe are taken and one of each other.
async fn played(store: &dyn HotStore, cast: &Cast) -> Told {
    let mut told = Told::default();
    for (stripe, takers) in [(0, 1), (1, 6), (2, 1), (3, 1)] {
        for name in people_of(cast, stripe, takers) {
            told.hears(&name, grab(store, cast, &name, false).await);
        }
    }
    told
}

/// Everybody who has not won takes what is left; in the end it is empty.
async fn takes_the_rest(store: &dyn HotStore, cast: &Cast, told: &mut Told) {
    for stripe in 0..STRIPES {
        for name in people_of(cast, stripe, ASKED) {
            told.hears(&name, grab(store, cast, &name, true).await);
        }
    }
    assert_eq!(told.0.len(), cast.amounts.len());
    assert_eq!(
        grab(store, cast, "late", true).await,
        Some(Outcome::Empty),
        "all are taken"
    );
    told.is_counted(store, cast).await;
    let view = view(store, cast).await;
    assert_eq!(view.state, HotState::Over(CloseReason::Empty));
    let best = view.best.unwrap();
    assert_eq!(best.grant.amount_minor, *cast.amounts.last().unwrap());
}

#[tokio::test]
async fn each_stripe_hands_out_its_own_shares_in_turn_to_those_whose_home_it_is() {
    for count in [16, 1_203] {
        let (stage, cast) = (stage().await, cast(count));
        let store = &*stage.store;
        cast.publish(store).await;
        let mut told = Told::default();
        for stripe in of().all() {
            let own = dealt(stripe, of(), cast.terms.share_count);
            for (name, share) in people_of(&cast, stripe.index(), 3).into_iter().zip(own) {
                told.hears(&name, grab(store, &cast, &name, false).await);
                assert_eq!(told.0[&name].0, share);
                told.hears(&name, grab(store, &cast, &name, false).await);
            }
        }
        told.is_counted(store, &cast).await;
        assert_eq!(view(store, &cast).await.state, HotState::Live);
    }
}

#[tokio::test]
async fn chunks_that_are_on_their_way_together_are_loaded_across_stripes() {
    let (stage, cast) = (stage().await, cast(4_999));
    let (store, under) = (&*stage.store, stage.store.epochs());
    let chunks = (0..5).map(|number| store.load(&under, cast.chunk(number)));
    for loaded in futures_util::future::join_all(chunks).await {
        loaded.unwrap();
    }
    assert_eq!(cast.open(store).await.unwrap(), HotState::Live);
    assert_eq!(view(store, &cast).await.state, HotState::Live);
}

#[tokio::test]
async fn a_stripe_that_is_used_up_tells_nobody_that_the_envelope_is_empty() {
    let (stage, cast) = (stage().await, cast(16));
    let store = &*stage.store;
    cast.publish(store).await;
    let told = played(store, &cast).await;
    assert_eq!(
        told.0.len(),
        7,
        "four of the second one, three of the others"
    );
    told.is_counted(store, &cast).await;
    for name in people_of(&cast, 1, 6) {
        let reply = one(store, cast.grab_in(store, &name)).await;
        let won = told.0.contains_key(&name);
        assert_eq!(won, reply != GrabReply::Dry, "{name}: {reply:?}");
    }
    let view = view(store, &cast).await;
    assert_eq!((view.state, view.gathered), (HotState::Live, false));
}

#[tokio::test]
async fn what_is_left_in_all_stripes_is_taken_from_the_first_to_the_last_share() {
    for count in [16, 1_203] {
        let (stage, cast) = (stage().await, cast(count));
        let store = &*stage.store;
        cast.publish(store).await;
        let mut told = played(store, &cast).await;
        assert_eq!(gather(store, &cast, None).await.unwrap(), HotState::Live);
        assert!(view(store, &cast).await.gathered);
        told.is_counted(store, &cast).await;
        // Again, and by another process: nothing changes.
        let other = another(&stage.server, &stage.clock);
        stage.introduce(&other).await;
        gather(&*other, &cast, None).await.unwrap();
        told.is_counted(&*other, &cast).await;
        if count == 16 {
            takes_the_rest(store, &cast, &mut told).await;
            told.is_counted(&*other, &cast).await;
        }
    }
}

/// Gathers, and dies after so many polls. Whether it died.
async fn dies_after(polls: usize, store: &dyn HotStore, cast: &Cast) -> bool {
    let mut gather = pin!(gather(store, cast, None));
    let mut left = polls;
    let ended = std::future::poll_fn(|context| match left {
        0 => Poll::Ready(None),
        _ => {
            left -= 1;
            gather.as_mut().poll(context).map(Some)
        }
    });
    match ended.await {
        None => true,
        Some(done) => {
            done.unwrap();
            false
        }
    }
}

#[tokio::test]
async fn a_gather_that_dies_anywhere_is_ended_by_the_next_one() {
    let stage = stage().await;
    let store = &*stage.store;
    for polls in 0..POLLS_MAX {
        let cast = cast(16);
        cast.publish(store).await;
        let mut told = played(store, &cast).await;
        let died = dies_after(polls, store, &cast).await;
        // What was sent before the death may still be on its way.
        store.vitals().await.unwrap();
        // Nobody who is served meanwhile hears what is not so.
        for name in people_of(&cast, 0, 2) {
            match one(store, cast.grab_in(store, &name)).await {
                GrabReply::Outcome(outcome) => told.hears(&name, Some(outcome)),
                GrabReply::Dry | GrabReply::Missing => {}
                other => panic!("{other:?}"),
            }
        }
        // Half rebuilt it is brought back by the books, as `publish` does; they know of nothing here.
        let again = match view(store, &cast).await.stale {
            true => gather(store, &cast, Some(&[])).await,
            false => gather(store, &cast, None).await,
        };
        again.unwrap();
        takes_the_rest(store, &cast, &mut told).await;
        if !died {
            return;
        }
    }
    panic!("a gather takes more than {POLLS_MAX} polls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_gather_at_once_end_as_one() {
    let stage = stage().await;
    let other = another(&stage.server, &stage.clock);
    stage.introduce(&other).await;
    let store = &*stage.store;
    for _ in 0..20 {
        let cast = cast(16);
        cast.publish(store).await;
        let mut told = played(store, &cast).await;
        let both = tokio::join!(gather(store, &cast, None), gather(&*other, &cast, None));
        // One may find that the other was before it, and try again.
        assert!(both.0.is_ok() || both.1.is_ok(), "{both:?}");
        gather(store, &cast, None).await.unwrap();
        takes_the_rest(store, &cast, &mut told).await;
    }
}

#[tokio::test]
async fn a_frozen_one_gives_nothing_in_any_stripe() {
    let (stage, cast) = (stage().await, cast(16));
    let store = &*stage.store;
    cast.publish(store).await;
    store.freeze(&store.epochs(), cast.id).await.unwrap();
    for stripe in 0..STRIPES {
        for name in people_of(&cast, stripe, 1) {
            let reply = one(store, cast.grab_in(store, &name)).await;
            assert_eq!(reply, GrabReply::Frozen);
        }
    }
    assert_eq!(store.marked(None, 10).await.unwrap().len(), 1);
    let mark = crate::hot::Mark::Books;
    store
        .unfreeze(&store.epochs(), cast.id, mark)
        .await
        .unwrap();
    played(store, &cast).await;
}
