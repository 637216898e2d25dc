//! Empty envelopes that are answered from memory: as Redis would, and no longer than that.
//!
//! # Not here
//! Long lists of calls with this memory always on: `histories`.

use std::time::Duration;

use super::mended::{Kind, Mended, stage};
use super::{OnRedis, answered, own_keys, store as another};
use crate::domain::grab::{Grab, GrabReply, Outcome};
use crate::domain::id::{Epoch, TenantId};
use crate::hot::conformance::stage::{Cast, outcome};
use crate::hot::redis::emptied::{EMPTIES_HEARD_MIN, STANDS_FOR};
use crate::hot::redis::layout::LISTED_SHARES_MIN;
use crate::hot::redis::link::Failure;
use crate::hot::{HotError, HotStore, Mark};

/// Longer than any test.
const FOR_GOOD: Duration = Duration::from_secs(3_600);
/// Grabs after which the winners must have been read.
const GRABS_MAX: usize = 10_000;
const WINNERS: [&str; 3] = ["ann", "bob", "cat"];

/// Three shares, and nothing left of them.
async fn emptied(stage: &OnRedis) -> Cast {
    let cast = Cast::lucky(&[5, 7, 11]);
    cast.publish(&*stage.store).await;
    for name in WINNERS {
        let won = outcome(cast.grab(&*stage.store, name).await);
        assert!(matches!(won, Outcome::Won(_)), "{won:?}");
    }
    cast
}

/// Grabs until Redis is not asked any more; by somebody else each time, for one may be taken for a winner.
async fn until_known(stage: &OnRedis, cast: &Cast) {
    for number in 0..GRABS_MAX {
        let before = calls(stage);
        let late = format!("late-{number}");
        let told = outcome(cast.grab(&*stage.store, &late).await);
        assert_eq!(told, Outcome::Empty);
        if calls(stage) == before {
            return;
        }
    }
    panic!("its winners are not read");
}

/// Calls of functions that write, which this server has answered.
fn calls(stage: &OnRedis) -> u64 {
    answered(&stage.server, "fcall")
}

/// What each of them is told, and whether Redis was asked.
async fn told(stage: &OnRedis, cast: &Cast, names: &[&str]) -> (Vec<Outcome>, bool) {
    let before = calls(stage);
    let grabs = names.iter().map(|name| cast.grab_in(&*stage.store, name));
    let replies = stage.store.grab(grabs.collect()).await.unwrap();
    let outcomes = replies.into_iter().map(outcome).collect();
    (outcomes, calls(stage) > before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_an_empty_envelope_hears_from_memory_what_redis_would_say() {
    let stage = stage().await;
    let cast = emptied(&stage).await;
    let people = ["cat", "dan", "ann", "eve", "bob"];
    let (by_redis, asked) = told(&stage, &cast, &people).await;
    assert!(asked);
    stage.store.core.emptied.set(EMPTIES_HEARD_MIN, FOR_GOOD);
    until_known(&stage, &cast).await;
    let (by_memory, asked) = told(&stage, &cast, &people).await;
    assert!(!asked);
    assert_eq!(by_memory, by_redis);
    assert!(matches!(by_memory[0], Outcome::AlreadyGrabbed(_)));
    assert_eq!(by_memory[1], Outcome::Empty);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_that_few_ask_for_is_asked_of_redis() {
    let stage = stage().await;
    let cast = emptied(&stage).await;
    stage.store.core.emptied.set(EMPTIES_HEARD_MIN, FOR_GOOD);
    for _ in 1..EMPTIES_HEARD_MIN {
        let (_, asked) = told(&stage, &cast, &["late"]).await;
        assert!(asked);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grabs_of_several_envelopes_are_told_from_both_in_their_order() {
    let stage = stage().await;
    let (empty, live) = (emptied(&stage).await, Cast::lucky(&[13, 17]));
    live.publish(&*stage.store).await;
    stage.store.core.emptied.set(1, FOR_GOOD);
    until_known(&stage, &empty).await;
    let store = &*stage.store;
    let grabs: Vec<Grab> = vec![
        empty.grab_in(store, "late"),
        live.grab_in(store, "late"),
        empty.grab_in(store, "bob"),
        live.grab_in(store, "bob"),
        live.grab_in(store, "nobody"),
    ];
    let replies = store.grab(grabs).await.unwrap();
    let outcomes: Vec<_> = replies.into_iter().map(outcome).collect();
    assert_eq!(outcomes[0], Outcome::Empty);
    assert!(matches!(outcomes[1], Outcome::Won(grant) if grant.amount_minor == 13));
    assert!(matches!(outcomes[2], Outcome::AlreadyGrabbed(grant) if grant.amount_minor == 7));
    assert!(matches!(outcomes[3], Outcome::Won(grant) if grant.amount_minor == 17));
    assert_eq!(outcomes[4], Outcome::Empty);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_said_stands_no_longer_than_it_may() {
    let stage = stage().await;
    let cast = emptied(&stage).await;
    assert!(
        STANDS_FOR <= Duration::from_secs(1),
        "others are heard soon"
    );
    stage.store.core.emptied.set(1, FOR_GOOD);
    until_known(&stage, &cast).await;
    // Another envelope's answer stands for no time at all.
    let other = emptied(&stage).await;
    stage.store.core.emptied.set(1, Duration::ZERO);
    for _ in 0..100 {
        let (outcomes, asked) = told(&stage, &other, &["late", "ann"]).await;
        assert!(asked);
        assert_eq!(outcomes[0], Outcome::Empty);
        assert!(matches!(outcomes[1], Outcome::AlreadyGrabbed(_)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_a_removal_and_another_tenant_are_not_answered_from_memory() {
    let stage = stage().await;
    let cast = emptied(&stage).await;
    stage.store.core.emptied.set(1, FOR_GOOD);
    until_known(&stage, &cast).await;
    let store = &*stage.store;
    let grab = || cast.grab_in(store, "ann");
    let stranger = Grab {
        tenant: TenantId::parse("other").unwrap(),
        ..grab()
    };
    let replies = store.grab(vec![grab(), stranger, grab()]).await.unwrap();
    assert_eq!(replies[1], GrabReply::Missing);
    assert_eq!(replies[0], replies[2]);
    let under = store.epochs();
    store.freeze(&under, cast.id).await.unwrap();
    assert_eq!(cast.grab(store, "ann").await, GrabReply::Frozen);
    store.unfreeze(&under, cast.id, Mark::Books).await.unwrap();
    until_known(&stage, &cast).await;
    cast.settle_all(store).await;
    store.remove(&under, vec![cast.id]).await.unwrap();
    assert_eq!(cast.grab(store, "ann").await, GrabReply::Missing);
    assert_eq!(cast.grab(store, "late").await, GrabReply::Missing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_known_of_an_epoch_ends_with_it() {
    let stage = stage().await;
    let cast = emptied(&stage).await;
    stage.store.core.emptied.set(1, FOR_GOOD);
    until_known(&stage, &cast).await;
    let (old, partition) = (
        cast.grab_in(&*stage.store, "ann"),
        stage.store.core.partition(cast.id),
    );
    let newer = Epoch(old.epoch.0 + 1);
    assert!(stage.store.core.learn(partition, newer));
    let replies = stage.store.grab(vec![old]).await.unwrap();
    assert_eq!(replies, [GrabReply::Epoch(newer)]);
    // And with the registration of the server.
    let other = emptied_elsewhere(&stage, partition).await;
    until_known(&stage, &other).await;
    stage.store.core.lost();
    let before = calls(&stage);
    other.grab(&*stage.store, "ann").await;
    assert!(calls(&stage) > before, "Redis is asked");
}

/// An envelope of another partition.
async fn emptied_elsewhere(stage: &OnRedis, partition: crate::domain::id::Partition) -> Cast {
    loop {
        let cast = Cast::lucky(&[5, 7, 11]);
        if stage.store.core.partition(cast.id) == partition {
            continue;
        }
        cast.publish(&*stage.store).await;
        for name in WINNERS {
            cast.grab(&*stage.store, name).await;
        }
        return cast;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_that_was_damaged_is_asked_of_redis_once_it_says_so() {
    let stage = stage().await;
    let cast = emptied(&stage).await;
    stage.store.core.emptied.set(1, Duration::ZERO);
    for _ in 0..100 {
        cast.grab(&*stage.store, "late").await;
    }
    let own = own_keys(&stage.store, cast.id);
    stage
        .server
        .command(&[b"HDEL", own.grabs.as_bytes(), b"bob"]);
    assert_eq!(cast.grab(&*stage.store, "late").await, GrabReply::Missing);
    stage.store.core.emptied.set(1, FOR_GOOD);
    for _ in 0..100 {
        assert_eq!(cast.grab(&*stage.store, "late").await, GrabReply::Missing);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_call_that_failed_redis_is_asked_again() {
    let stage = stage().await;
    let cast = emptied(&stage).await;
    stage.store.core.emptied.set(1, FOR_GOOD);
    until_known(&stage, &cast).await;
    let lost = HotError::Unavailable("the reply was lost".into());
    let _told = stage.store.core.fault(Failure::Unreachable(lost));
    let (outcomes, asked) = told(&stage, &cast, &["ann", "late"]).await;
    assert!(asked);
    assert!(matches!(outcomes[0], Outcome::AlreadyGrabbed(_)));
    // What Redis says from then on counts again.
    until_known(&stage, &cast).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_winners_those_who_surely_are_none_hear_it_from_memory() {
    let stage = stage().await;
    let store = &*stage.store;
    store.core.emptied.set(1, FOR_GOOD);
    store.core.emptied.keep_shares_up_to(2);
    // So many that the hash is walked, and that they have to be heard of often.
    let shares = LISTED_SHARES_MIN + 1;
    let cast = Cast::lucky(&vec![3; usize::try_from(shares).unwrap()]);
    cast.publish(store).await;
    let names: Vec<_> = (0..shares).map(|number| format!("w{number}")).collect();
    let mut held = Vec::new();
    for page in names.chunks(500) {
        let grabs = page.iter().map(|name| cast.grab_in(store, name));
        let replies = store.grab(grabs.collect()).await.unwrap();
        held.extend(replies.into_iter().map(outcome));
    }
    let before = calls(&stage);
    until_known(&stage, &cast).await;
    assert!(
        calls(&stage) - before >= u64::from(shares / 8),
        "it is worth while"
    );
    let strangers: Vec<_> = (0..1_000).map(|number| format!("s{number}")).collect();
    let (mut by_memory, mut by_redis) = (0, 0);
    for name in &strangers {
        let (told, asked) = told(&stage, &cast, &[name]).await;
        assert_eq!(told, [Outcome::Empty]);
        by_memory += usize::from(!asked);
        by_redis += usize::from(asked);
    }
    assert!(
        by_memory > 900,
        "{by_redis} of 1,000 were taken for winners"
    );
    for (name, won) in names.iter().zip(held) {
        let (told, asked) = told(&stage, &cast, &[name]).await;
        assert!(asked, "where his share stands");
        let Outcome::Won(grant) = won else {
            panic!("{name}: {won:?}");
        };
        assert_eq!(told, [Outcome::AlreadyGrabbed(grant)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_does_not_keep_the_level_is_not_made_up_for() {
    let stage = stage().await;
    let cast = emptied(&stage).await;
    stage.store.core.emptied.set(1, FOR_GOOD);
    until_known(&stage, &cast).await;
    stage
        .server
        .command(&[b"CONFIG", b"SET", b"appendfsync", b"no"]);
    stage.store.check().await;
    let grab = cast.grab_in(&*stage.store, "ann");
    let refused = stage.store.grab(vec![grab]).await.unwrap_err();
    assert!(matches!(refused, HotError::Unavailable(_)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_process_has_done_meanwhile_is_seen_before_anybody_hears_of_it_from_memory() {
    let stage = stage().await;
    let store = &*stage.store;
    let mended = Mended::play(store, Kind::Lucky).await;
    mended.grab(store, &["ann", "eve", "dan"]).await;
    mended.cast.settle_all(store).await;
    store.core.emptied.set(1, FOR_GOOD);
    until_known(&stage, &mended.cast).await;
    let lapse = || {
        let lost = HotError::Unavailable("the reply was lost".into());
        let _told = store.core.fault(Failure::Unreachable(lost));
    };
    // Nothing was done: a look tells.
    lapse();
    until_known(&stage, &mended.cast).await;
    // It was lost, and repaired by books that know nothing of bob, and somebody else has won his share.
    let claims = store.grants(mended.cast.id, 0, 100).await.unwrap();
    let mut claims = claims.unwrap();
    claims.retain(|held| held.grabber.as_str() != "bob");
    let own = own_keys(&stage.store, mended.cast.id);
    for key in [own.grabs, own.shares] {
        stage.server.command(&[b"UNLINK", key.as_bytes()]);
    }
    let other = another(&stage.server, &stage.clock);
    stage.introduce(&other).await;
    mended.mend(&*other, &claims).await;
    let won = mended.grab(&*other, &["kim"]).await.pop().unwrap();
    let GrabReply::Outcome(Outcome::Won(grant)) = won else {
        panic!("bob's is free: {won:?}");
    };
    lapse();
    for number in 0..200 {
        let late = format!("later-{number}");
        let replies = mended.grab(store, &[&late, "kim"]).await;
        let kim = Outcome::AlreadyGrabbed(grant);
        assert_eq!(replies, [Outcome::Empty, kim].map(GrabReply::Outcome));
    }
}
