//! Every call is held to the epoch of the partition in which its envelope lies, on a Redis whose partitions
//! stand in different ones: whoever looks at another partition's, or tells it to Redis, fails here.
//!
//! # Not here
//! What a call does: the conformance suite, on whose stage all partitions stand in one epoch.

use std::sync::Arc;

use super::mended::stage;
use super::scene::{Dump, dump_of};
use super::{Meta, OnRedis, own_keys};
use crate::domain::envelope::{CloseReason, HotState, shares_checksum};
use crate::domain::grab::{Grab, GrabReply};
use crate::domain::id::{Epoch, Partition};
use crate::domain::stripes::Stripe;
use crate::hot::conformance::stage::{Cast, partition, person, tenant, won};
use crate::hot::{DeclineReply, Epochs, HotError, HotStore, Mark, Repair};

/// That of the first partition; each of the others stands one further.
const FIRST: Epoch = Epoch(10);
/// One in which no partition stands.
const NOWHERE: Epoch = Epoch(777);

/// A call that takes the epochs of all partitions.
#[derive(Clone, Copy, Debug)]
enum Call {
    Load,
    Open,
    Freeze,
    Unfreeze,
    Close,
    Remove,
    Repair,
}

/// How an envelope stands: its state and its mark; `None` where it is missing.
type Stands = Option<(HotState, Option<Mark>)>;

/// The calls, each with what it makes of what the one before left.
const LIFE: [(Call, Stands); 7] = [
    (Call::Load, Some((HotState::Funding, None))),
    (Call::Open, Some((HotState::Live, None))),
    (Call::Freeze, Some((HotState::Live, Some(Mark::Books)))),
    (Call::Unfreeze, Some((HotState::Live, None))),
    (
        Call::Close,
        Some((HotState::Over(CloseReason::Recalled), None)),
    ),
    (Call::Remove, None),
    (Call::Repair, Some((HotState::Live, None))),
];

impl Call {
    async fn ask(self, store: &dyn HotStore, cast: &Cast, under: &Epochs) -> Result<(), HotError> {
        let (id, terms) = (cast.id, Arc::clone(&cast.terms));
        match self {
            Self::Load => store.load(under, cast.chunk(0)).await,
            Self::Open => {
                let checksum = shares_checksum(&cast.amounts);
                store.open(under, id, checksum).await.map(drop)
            }
            Self::Freeze => store.freeze(under, id).await,
            Self::Unfreeze => store.unfreeze(under, id, Mark::Books).await,
            Self::Close => {
                let closed = store.close(under, id, terms, CloseReason::Recalled);
                closed.await.map(drop)
            }
            Self::Remove => store.remove(under, vec![id]).await,
            Self::Repair => {
                let repair = Repair {
                    envelope: id,
                    terms,
                    amounts_minor: cast.amounts.clone().into(),
                    claims: Vec::new(),
                    over: None,
                    stripe: Stripe::FIRST,
                    gathered: None,
                };
                store.repair(under, repair).await.map(drop)
            }
        }
    }
}

/// Registers every partition for an epoch of its own.
async fn register_apart(stage: &OnRedis, first: Epoch) {
    let standing = stage.store.standing().await.unwrap().unwrap();
    let all = stage.store.partitions().all();
    let epochs = all.map(|own| (own, Epoch(first.0 + u64::from(own.index()))));
    let registered = stage.store.register(standing, epochs.collect());
    registered.await.unwrap();
}

async fn apart() -> OnRedis {
    let stage = stage().await;
    register_apart(&stage, FIRST).await;
    stage
}

/// The first drawn envelope that lies in a partition.
fn drawn_for(store: &dyn HotStore, own: Partition, draw: impl Fn() -> Cast) -> Cast {
    let lies_there = |cast: &Cast| partition(store, cast.id) == own;
    std::iter::repeat_with(draw).find(lies_there).unwrap()
}

/// The same epochs but for one partition.
fn but_for(mut epochs: Epochs, own: Partition, other: Epoch) -> Epochs {
    epochs.0[usize::from(own.index())] = other;
    epochs
}

/// Those in which a partition does not stand: those of the others, and one of nobody.
fn wrong_ones(store: &dyn HotStore, own: Partition) -> Vec<Epoch> {
    let others = store.partitions().all().filter(|other| *other != own);
    let others = others.map(|other| store.epoch(other));
    others.chain([NOWHERE]).collect()
}

fn dump(stage: &OnRedis) -> Dump {
    dump_of(&mut stage.server.connection().unwrap())
}

fn names(answer: &Result<impl Sized, HotError>, own: Epoch) -> bool {
    matches!(answer, Err(HotError::Epoch(stands)) if *stands == own)
}

/// How an envelope stands; if it is there, then in the epoch of its partition.
async fn stands(stage: &OnRedis, cast: &Cast) -> Stands {
    let view = stage.store.view(vec![cast.id]).await.unwrap();
    let view = view.into_iter().next().flatten()?;
    assert!(!view.stale);
    let own = own_keys(&stage.store, cast.id);
    let kept = stage.server.command(&[b"HGET", own.grabs.as_bytes(), b""]);
    let redis::Value::BulkString(kept) = kept else {
        panic!("{kept:?}");
    };
    let epoch = stage.store.epoch(partition(&*stage.store, cast.id));
    assert_eq!(Meta::unpack(&kept).unwrap().epoch, epoch);
    Some((view.state, view.frozen))
}

/// Nothing happens under a wrong epoch of the envelope's partition, whatever is right beside it, and the
/// call is done under the right one, whatever is wrong beside it.
async fn is_held_to_its_own(stage: &OnRedis, call: Call, cast: &Cast) {
    let store = &*stage.store;
    let own = partition(store, cast.id);
    let before = dump(stage);
    for wrong in wrong_ones(store, own) {
        let under = but_for(store.epochs(), own, wrong);
        let answer = call.ask(store, cast, &under).await;
        let what = format!("{call:?} in {own:?} under {wrong:?}: {answer:?}");
        assert!(names(&answer, store.epoch(own)), "{what}");
        assert_eq!(dump(stage), before, "{what}");
    }
    let nowhere = Epochs::all(store.partitions(), NOWHERE);
    let under = but_for(nowhere, own, store.epoch(own));
    let answer = call.ask(store, cast, &under).await;
    assert!(answer.is_ok(), "{call:?} in {own:?}: {answer:?}");
    assert_ne!(dump(stage), before, "{call:?} in {own:?} did nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_is_held_to_the_epoch_of_the_partition_of_its_envelope() {
    let stage = apart().await;
    for own in stage.store.partitions().all() {
        let cast = drawn_for(&*stage.store, own, || Cast::lucky(&[5, 7]));
        for (call, expected) in LIFE {
            is_held_to_its_own(&stage, call, &cast).await;
            let what = format!("{call:?} in {own:?}");
            assert_eq!(stands(&stage, &cast).await, expected, "{what}");
        }
        assert_eq!(won(cast.grab(&*stage.store, "ann").await), (0, 5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_whole_is_brought_into_the_epoch_of_its_own_partition() {
    let stage = apart().await;
    let store = &*stage.store;
    let all = store.partitions().all();
    let casts = all.map(|own| drawn_for(store, own, || Cast::lucky(&[5, 7])));
    let casts: Vec<Cast> = casts.collect();
    for cast in &casts {
        cast.publish(store).await;
    }
    // Each in the one in which its neighbour stood.
    register_apart(&stage, Epoch(FIRST.0 + 1)).await;
    for cast in &casts {
        is_held_to_its_own(&stage, Call::Repair, cast).await;
        let live = Some((HotState::Live, None));
        assert_eq!(stands(&stage, cast).await, live);
    }
}

/// Partitions are asked one behind another, ascending: what was removed before the refusal is gone, and the
/// call may be repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envelopes_stay_from_the_first_partition_on_that_stands_in_another_epoch() {
    let stage = apart().await;
    let store = &*stage.store;
    for own in store.partitions().all() {
        let all = store.partitions().all();
        let casts = all.map(|own| drawn_for(store, own, || Cast::lucky(&[5, 7])));
        let casts: Vec<Cast> = casts.collect();
        for cast in &casts {
            cast.publish(store).await;
            let closed = Call::Close.ask(store, cast, &store.epochs()).await;
            closed.unwrap();
        }
        // They are not asked in the order in which they are named.
        let ids: Vec<_> = casts.iter().rev().map(|cast| cast.id).collect();
        let under = but_for(store.epochs(), own, NOWHERE);
        let refused = store.remove(&under, ids.clone()).await;
        assert!(names(&refused, store.epoch(own)), "{own:?}: {refused:?}");
        for cast in &casts {
            let is_there = stands(&stage, cast).await.is_some();
            let lies_in = partition(store, cast.id);
            assert_eq!(is_there, lies_in >= own, "{lies_in:?}, refused in {own:?}");
        }
        store.remove(&store.epochs(), ids).await.unwrap();
        for cast in &casts {
            assert_eq!(stands(&stage, cast).await, None);
        }
    }
}

/// One grab of each envelope, in one call; the epochs are those in which the partitions stand, or the other
/// one where `is_other` says so.
async fn grab_each(
    store: &dyn HotStore,
    casts: &[Cast],
    name: &str,
    (other, is_other): (Epoch, impl Fn(Partition) -> bool),
) {
    let grabs = casts.iter().map(|cast| {
        let grab = cast.grab_in(store, name);
        match is_other(grab.partition) {
            true => Grab {
                epoch: other,
                ..grab
            },
            false => grab,
        }
    });
    let replies = store.grab(grabs.collect()).await.unwrap();
    assert_eq!(replies.len(), casts.len());
    for (cast, reply) in casts.iter().zip(replies) {
        let own = partition(store, cast.id);
        if is_other(own) {
            let expected = GrabReply::Epoch(store.epoch(own));
            assert_eq!(reply, expected, "{name} in {own:?}");
        } else {
            assert_eq!(won(reply).1, 3, "{name} in {own:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_grab_of_a_call_is_held_to_the_epoch_of_its_own_partition() {
    let stage = apart().await;
    let store = &*stage.store;
    let all = store.partitions().all();
    let casts = all.map(|own| drawn_for(store, own, || Cast::lucky(&[3; 50])));
    let casts: Vec<Cast> = casts.collect();
    for cast in &casts {
        cast.publish(store).await;
    }
    let mut calls = 0;
    for own in store.partitions().all() {
        for wrong in wrong_ones(store, own) {
            calls += 1;
            let name = format!("p{calls}");
            grab_each(store, &casts, &name, (wrong, |p| p == own)).await;
        }
        let name = format!("q{}", own.index());
        grab_each(store, &casts, &name, (NOWHERE, |p| p != own)).await;
    }
    // Each was grabbed by the calls that were wrong in another partition, and by the one that was right in
    // its own alone.
    let partitions = casts.len();
    let expected = calls / partitions * (partitions - 1) + 1;
    for cast in &casts {
        let own = partition(store, cast.id);
        assert_eq!(cast.debts(store).await.len(), expected, "{own:?}");
        let entries = store.outbox(own, None, usize::MAX).await.unwrap();
        let stood = store.epoch(own);
        assert!(entries.iter().all(|entry| entry.epoch == stood), "{own:?}");
        let grants = store.grants(cast.id, 0, 100).await.unwrap();
        assert_eq!(grants.unwrap().len(), expected, "{own:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decline_and_what_is_settled_are_held_to_the_epoch_of_their_partition() {
    let stage = apart().await;
    let store = &*stage.store;
    for own in store.partitions().all() {
        let cast = drawn_for(store, own, || Cast::exclusive(&[("ann", 5), ("bob", 7)]));
        cast.publish(store).await;
        let decline = |epoch| store.decline(epoch, tenant(), cast.id, person("bob"));
        let before = dump(&stage);
        for wrong in wrong_ones(store, own) {
            let answer = decline(wrong).await;
            assert!(names(&answer, store.epoch(own)), "{own:?}: {answer:?}");
        }
        assert_eq!(dump(&stage), before, "{own:?}");
        let declined = decline(store.epoch(own)).await.unwrap();
        let is_declined = matches!(declined, DeclineReply::Declined { .. });
        assert!(is_declined, "{own:?}: {declined:?}");

        let owed = store.outbox(own, None, usize::MAX).await.unwrap();
        let owed: Vec<_> = owed.iter().map(|entry| (entry.id, entry.nonce)).collect();
        assert_eq!(owed.len(), 1);
        let before = dump(&stage);
        for wrong in wrong_ones(store, own) {
            let answer = store.settled(wrong, own, owed.clone()).await;
            assert!(names(&answer, store.epoch(own)), "{own:?}: {answer:?}");
        }
        assert_eq!(dump(&stage), before, "{own:?}");
        store.settled(store.epoch(own), own, owed).await.unwrap();
        assert_eq!(cast.debts(store).await, [], "{own:?}");
    }
}
