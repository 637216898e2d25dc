//! The queue before a Redis that does not answer for a while: what nobody waits for any more is not
//! sent, and what is too much is shed at once.
//!
//! # Shape
//! The server is stopped (SIGSTOP) and goes on later; the runtime has one thread, so that the queue
//! moves only while a test waits for it.

use std::pin::Pin;

use futures_util::future::join_all;
use futures_util::poll;

use super::*;
use crate::hot::HotStore;
use crate::hot::conformance::stage::{Cast, partition, person, won};
use crate::hot::redis::RedisStore;
use crate::hot::redis::server_under_test::{Flavour, RedisServer};
use crate::hot::redis::tests::{Crash, OnRedis};

/// Turns of the runtime in which the queue must have been looked at.
const TURNS_MAX: usize = 10_000;

type Asked<'a> = Pin<Box<dyn Future<Output = Result<Vec<GrabReply>, HotError>> + 'a>>;

/// A stage whose connection for grabs is open, and an envelope of so many shares of which zoe has one.
async fn played(shares: usize) -> (OnRedis, Cast) {
    let stage = OnRedis::new(Flavour::Debian, Crash::Process).await;
    let cast = Cast::lucky(&vec![3; shares]);
    cast.publish(&*stage.store).await;
    won(cast.grab(&*stage.store, "zoe").await);
    (stage, cast)
}

/// Grabs for somebody, and waits in the queue.
async fn asks<'a>(store: &'a RedisStore, cast: &Cast, name: &str, times: usize) -> Asked<'a> {
    let grabs = vec![cast.grab_in(store, name); times];
    let mut asked: Asked<'_> = Box::pin(store.batcher.grab(grabs));
    assert!(poll!(asked.as_mut()).is_pending(), "{name} waits");
    asked
}

/// Until all that was asked has left the queue: it was sent, or is the next to be.
async fn until_taken(batcher: &Batcher) {
    for _ in 0..TURNS_MAX {
        if batcher.asks.capacity() == QUEUED_GRABS_MAX {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("nobody takes what was asked");
}

/// Calls of functions that write, which this server has answered.
fn calls_answered(server: &RedisServer) -> u64 {
    let Value::BulkString(text) = server.command(&[b"INFO", b"commandstats"]) else {
        panic!("INFO answers with text");
    };
    let text = String::from_utf8(text).unwrap();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("cmdstat_fcall:calls="));
    line.unwrap().split(',').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_sent() {
    let (stage, cast) = played(9).await;
    let store = Arc::clone(&stage.store);
    let before = calls_answered(&stage.server);
    stage.server.pause();
    // Each is a call, and there are no more at once.
    let mut sent = Vec::new();
    for name in ["ann", "bob"] {
        sent.push(asks(&store, &cast, name, 1).await);
        until_taken(&store.batcher).await;
    }
    assert_eq!(sent.len(), CALLS_IN_FLIGHT_MAX);
    // Two are out of the queue and the next to be sent, two are still in it; of each one goes away.
    let (cat, dan) = (
        asks(&store, &cast, "cat", 1).await,
        asks(&store, &cast, "dan", 1).await,
    );
    until_taken(&store.batcher).await;
    let (eve, fay) = (
        asks(&store, &cast, "eve", 1).await,
        asks(&store, &cast, "fay", 1).await,
    );
    assert_eq!(store.batcher.waiting(), 6);
    drop((cat, eve));
    assert_eq!(store.batcher.waiting(), 4);
    stage.server.resume();
    sent.extend([dan, fay]);
    for answer in join_all(sent).await {
        won(answer.unwrap()[0]);
    }
    assert_eq!(store.batcher.waiting(), 0);
    assert_eq!(calls_answered(&stage.server) - before, 3);
    for (name, has_one) in [("cat", false), ("dan", true), ("eve", false), ("fay", true)] {
        let held = store.held(vec![(cast.id, person(name))]).await.unwrap();
        assert_eq!(held[0].is_some(), has_one, "{name}");
    }
}

#[tokio::test]
async fn a_call_for_which_nobody_waits_any_more_is_not_made() {
    let (stage, cast) = played(9).await;
    let store = Arc::clone(&stage.store);
    let before = calls_answered(&stage.server);
    stage.server.pause();
    let mut sent = Vec::new();
    for name in ["ann", "bob"] {
        sent.push(asks(&store, &cast, name, 1).await);
        until_taken(&store.batcher).await;
    }
    let overdue = [
        asks(&store, &cast, "cat", 1).await,
        asks(&store, &cast, "dan", 1).await,
    ];
    until_taken(&store.batcher).await;
    drop(overdue);
    stage.server.resume();
    for answer in join_all(sent).await {
        won(answer.unwrap()[0]);
    }
    // Who comes now is not kept waiting by what was dropped.
    won(cast.grab(&*store, "eve").await);
    assert_eq!(calls_answered(&stage.server) - before, 3);
    let view = store.view(vec![cast.id]).await.unwrap().remove(0).unwrap();
    assert_eq!(view.taken_count, 4);
}

#[tokio::test]
async fn a_queue_that_is_full_sheds_until_somebody_leaves_or_is_answered() {
    let (stage, cast) = played(4).await;
    let store = Arc::clone(&stage.store);
    stage.server.pause();
    let mut waiting = Vec::new();
    let mut room = QUEUED_GRABS_MAX;
    while room > 0 {
        let times = room.min(GRABS_PER_CALL_MAX);
        waiting.push(asks(&store, &cast, "ann", times).await);
        room -= times;
    }
    assert_eq!(store.batcher.waiting(), QUEUED_GRABS_MAX);
    let shed = |answer| assert!(matches!(answer, Err(HotError::Shed)), "{answer:?}");
    shed(store.grab(vec![cast.grab_in(&*store, "bob")]).await);
    // Who was shed takes no room, and who goes away leaves some.
    assert_eq!(store.batcher.waiting(), QUEUED_GRABS_MAX);
    let left = QUEUED_GRABS_MAX % GRABS_PER_CALL_MAX;
    drop(waiting.pop());
    assert_eq!(store.batcher.waiting(), QUEUED_GRABS_MAX - left);
    shed(
        store
            .grab(vec![cast.grab_in(&*store, "bob"); left + 1])
            .await,
    );
    let bob = asks(&store, &cast, "bob", left).await;
    stage.server.resume();
    let answers = join_all(waiting).await;
    let answered: usize = answers
        .into_iter()
        .map(|answer| answer.unwrap().len())
        .sum();
    assert_eq!(answered, QUEUED_GRABS_MAX - left);
    won(bob.await.unwrap()[0]);
    assert_eq!(store.batcher.waiting(), 0);
    won(cast.grab(&*store, "eve").await);
}

#[tokio::test]
async fn a_win_of_an_epoch_that_has_ended_is_told_by_the_next_one() {
    let (mut stage, cast) = played(9).await;
    let store = Arc::clone(&stage.store);
    stage.server.pause();
    let asked = asks(&store, &cast, "ann", 1).await;
    until_taken(&store.batcher).await;
    // Another process has registered another Redis meanwhile.
    let partition = partition(&*store, cast.id);
    let next = Epoch(store.epoch(partition).0 + 1);
    store.core.learn(partition, next);
    stage.server.resume();
    assert_eq!(asked.await.unwrap(), [GrabReply::Epoch(next)]);
    // It was won all the same, and is told to who asks again.
    stage.register(next).await;
    stage.repair_all().await;
    let again = cast.grab(&*store, "ann").await;
    assert!(matches!(
        again,
        GrabReply::Outcome(Outcome::AlreadyGrabbed(_))
    ));
}

#[tokio::test]
async fn a_grab_is_decided_in_the_partition_that_it_names() {
    let (stage, cast) = played(2).await;
    let store = &*stage.store;
    let own = cast.grab_in(store, "ann");
    let mut others = store.partitions().all().filter(|p| *p != own.partition);
    let elsewhere = Grab {
        partition: others.next().unwrap(),
        ..own.clone()
    };
    // One call asks both, and the envelope lies in one of them.
    let grabs = vec![elsewhere.clone(), own, elsewhere];
    let replies = store.grab(grabs).await.unwrap();
    assert_eq!([replies[0], replies[2]], [GrabReply::Missing; 2]);
    won(replies[1]);
    assert_eq!(cast.debts(store).await.len(), 2);
}
