//! Outboxes that are empty, outboxes that are long, and a library that is gone: what a look costs is
//! bounded, and what a call finds is said.

use futures_util::FutureExt;
use redis::Value;

use super::scene::Scene;
use super::{Crash, Flavour, OnRedis};
use crate::domain::ack::AckLevel;
use crate::domain::id::{Epoch, Partition};
use crate::hot::conformance::stage::{Cast, partition, person, tenant, won};
use crate::hot::redis::RedisStore;
use crate::hot::redis::layout::id_of;
use crate::hot::{HotError, HotStore};

/// Bytes of an entry of 512 grabs by people with names of eighteen letters.
const FAT_BYTES: usize = 15_000;

async fn on_redis() -> OnRedis {
    OnRedis::new(Flavour::Debian, Crash::Process).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_question_tells_which_outboxes_hold_something() {
    let stage = on_redis().await;
    let store = &*stage.store;
    let all: Vec<_> = store.partitions().all().collect();
    let owing = async |store: &RedisStore| store.owing(all.clone()).await.unwrap();
    assert_eq!(owing(store).await, []);
    let cast = Cast::lucky(&[5, 7]);
    cast.publish(store).await;
    cast.grab(store, "ann").await;
    assert_eq!(owing(store).await, [partition(store, cast.id)]);
    // Nobody hears of a partition that was not asked for.
    let own = partition(store, cast.id);
    let others: Vec<_> = all.iter().copied().filter(|p| *p != own).collect();
    assert_eq!(store.owing(others).await.unwrap(), []);
    assert_eq!(store.owing(vec![own]).await.unwrap(), [own]);
    assert_eq!(store.owing(Vec::new()).await.unwrap(), []);
    // Another process sees it as well.
    let other = super::store(&stage.server, &stage.clock);
    stage.introduce(&other).await;
    assert_eq!(owing(&other).await, [partition(store, cast.id)]);
    cast.settle_all(store).await;
    assert_eq!(owing(store).await, []);
    // An outbox that is none is looked at, so that somebody says so.
    let key = store.core.keys.outbox(Partition::ZERO);
    stage.server.command(&[b"SET", key.as_bytes(), b"x"]);
    assert_eq!(owing(store).await, [Partition::ZERO]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_outbox_may_hold_something_where_another_epoch_stands() {
    let mut stage = on_redis().await;
    let late = super::store(&stage.server, &stage.clock);
    stage.introduce(&late).await;
    stage.register(Epoch(3)).await;
    let all: Vec<_> = late.partitions().all().collect();
    assert_eq!(late.owing(all.clone()).await.unwrap(), all);
    // Who reads one hears of the new epoch, and the question is a question again.
    for partition in all.iter().copied() {
        let read = late.outbox(partition, None, 10).await;
        assert!(matches!(read, Err(HotError::Epoch(Epoch(3)))), "{read:?}");
    }
    assert_eq!(late.owing(all.clone()).await.unwrap(), []);
    stage.server.command(&[b"FLUSHALL"]);
    assert_eq!(late.owing(all.clone()).await.unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_epoch_that_another_process_began_nothing_is_acknowledged_before_a_look() {
    let mut stage = on_redis().await;
    let late = super::store(&stage.server, &stage.clock);
    stage.introduce(&late).await;
    assert_eq!(late.ack_level(), Some(AckLevel::Fsync));
    stage.register(Epoch(3)).await;
    let cast = Cast::lucky(&[5, 7]);
    cast.publish(&*stage.store).await;
    // It may be another Redis since, with other settings.
    let sync = |how: &[u8]| {
        stage
            .server
            .command(&[b"CONFIG", b"SET", b"appendfsync", how]);
    };
    sync(b"no");
    let heard = late.outbox(Partition::ZERO, None, 10).await;
    assert!(matches!(heard, Err(HotError::Epoch(Epoch(3)))), "{heard:?}");
    assert_eq!(late.ack_level(), None);
    let refused = late.grab(vec![cast.grab_in(&*late, "ann")]).await;
    assert!(
        matches!(refused, Err(HotError::Unavailable(_))),
        "{refused:?}"
    );
    assert!(late.unregistered().now_or_never().is_some());
    stage.introduce(&late).await;
    assert_eq!(late.ack_level(), None, "it was looked at");
    sync(b"always");
    late.check().await;
    assert_eq!(late.ack_level(), Some(AckLevel::Fsync));
    won(cast.grab(&*late, "ann").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grab_that_finds_no_library_has_redis_registered_anew() {
    let mut stage = on_redis().await;
    let cast = Cast::lucky(&[5, 7]);
    cast.publish(&*stage.store).await;
    stage.server.command(&[b"FUNCTION", b"FLUSH"]);
    let refused = stage
        .store
        .grab(vec![cast.grab_in(&*stage.store, "ann")])
        .await;
    assert!(
        matches!(refused, Err(HotError::Unavailable(_))),
        "{refused:?}"
    );
    assert!(stage.store.unregistered().now_or_never().is_some());
    stage.register(Epoch(2)).await;
    cast.grab(&*stage.store, "ann").await;
}

/// Puts so many fat entries into an outbox, in this epoch.
fn fatten(scene: &mut Scene, outbox: &str, entries: usize, last: &[u8]) {
    let id = format!("{}-*", scene.epoch.0);
    let fat = vec![b'.'; FAT_BYTES];
    for _ in 0..entries {
        scene.ask(&[b"XADD", outbox.as_bytes(), id.as_bytes(), b"r", &fat]);
    }
    scene.ask(&[b"XADD", outbox.as_bytes(), id.as_bytes(), b"r", last]);
}

#[test]
fn a_look_through_an_outbox_stops_at_its_bytes_and_goes_on_where_it_stopped() {
    let mut scene = Scene::new(&[("appendonly", "no")]);
    let cast = Cast::lucky(&[5]);
    let outbox = scene.keys.outbox(Partition::ZERO);
    let last = [&b"behind: "[..], &cast.id.to_bytes()].concat();
    fatten(&mut scene, &outbox, 100, &last);
    let mut words = scene.words("find_1", &cast);
    let (mut looks, mut seen) = (0, 0);
    let found = loop {
        let Value::Array(items) = scene.send(&words) else {
            panic!("find_1 answers a list");
        };
        let Value::BulkString(stopped) = &items[1] else {
            panic!("{items:?}");
        };
        looks += 1;
        let at = words.len() - 2;
        if stopped.is_empty() {
            break items[2..].to_vec();
        }
        assert_eq!(items.len(), 2, "nothing of it was found before");
        let before = scene.ask(&[b"XRANGE", outbox.as_bytes(), b"-", &stopped[1..]]);
        let Value::Array(before) = before else {
            panic!("{before:?}");
        };
        // A look reads more than its bound only by the page that reaches it.
        assert!((before.len() - seen) * FAT_BYTES < 500_000, "{looks}");
        seen = before.len();
        words[at].clone_from(stopped);
    };
    assert_eq!(found, [Value::BulkString(last)]);
    assert!(looks >= 4, "{looks}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balance_is_told_behind_a_backlog_and_refused_behind_one_that_is_too_long() {
    let stage = on_redis().await;
    let store = &*stage.store;
    let cast = Cast::lucky(&[5, 7]);
    cast.publish(store).await;
    let of_it = partition(store, cast.id);
    let key = store.core.keys.outbox(of_it);
    let mut connection = stage.server.connection().unwrap();
    let mut fatten = |entries: usize| {
        let mut many = redis::pipe();
        for _ in 0..entries {
            many.cmd("XADD").arg(&key).arg("2-*").arg("r");
            many.arg(vec![b'.'; FAT_BYTES]).ignore();
        }
        many.query::<()>(&mut connection).unwrap();
    };
    fatten(100);
    cast.grab(store, "ann").await;
    let pending = store.pending(tenant(), person("ann")).await.unwrap();
    assert_eq!(pending.len(), 1);
    assert!(store.owes(cast.id).await.unwrap());
    // Some 15 MB more.
    fatten(1_000);
    let refused = store.pending(tenant(), person("ann")).await;
    assert!(matches!(refused, Err(HotError::Shed)), "{refused:?}");
    let refused = store.owes(cast.id).await;
    assert!(matches!(refused, Err(HotError::Shed)), "{refused:?}");
    // What was settled is no backlog.
    stage.server.command(&[
        b"XTRIM",
        key.as_bytes(),
        b"MINID",
        id_of(3 << 44).as_bytes(),
    ]);
    assert_eq!(store.pending(tenant(), person("ann")).await.unwrap(), []);
}
