//! Outboxes that are empty.

use super::{Crash, Flavour, OnRedis};
use crate::domain::id::{Epoch, Partition};
use crate::hot::conformance::stage::{Cast, partition};
use crate::hot::{HotError, HotStore};

async fn on_redis() -> OnRedis {
    OnRedis::new(Flavour::Debian, Crash::Process).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_question_tells_which_outboxes_hold_something() {
    let stage = on_redis().await;
    let store = &*stage.store;
    assert_eq!(store.owing().await.unwrap(), []);
    let cast = Cast::lucky(&[5, 7]);
    cast.publish(store).await;
    cast.grab(store, "ann").await;
    assert_eq!(store.owing().await.unwrap(), [partition(store, cast.id)]);
    // Another process sees it as well.
    let other = super::store(&stage.server, &stage.clock);
    stage.introduce(&other).await;
    assert_eq!(other.owing().await.unwrap(), [partition(store, cast.id)]);
    cast.settle_all(store).await;
    assert_eq!(store.owing().await.unwrap(), []);
    // An outbox that is none is looked at, so that somebody says so.
    let key = store.core.keys.outbox(Partition::ZERO);
    stage.server.command(&[b"SET", key.as_bytes(), b"x"]);
    assert_eq!(store.owing().await.unwrap(), [Partition::ZERO]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_outbox_may_hold_something_where_another_epoch_stands() {
    let mut stage = on_redis().await;
    let late = super::store(&stage.server, &stage.clock);
    stage.introduce(&late).await;
    stage.register(Epoch(3)).await;
    let all: Vec<_> = late.partitions().all().collect();
    assert_eq!(late.owing().await.unwrap(), all);
    // Who reads one hears of the new epoch, and the question is a question again.
    for partition in all {
        let read = late.outbox(partition, None, 10).await;
        assert!(matches!(read, Err(HotError::Epoch(Epoch(3)))), "{read:?}");
    }
    assert_eq!(late.owing().await.unwrap(), []);
    stage.server.command(&[b"FLUSHALL"]);
    assert_eq!(late.owing().await.unwrap().len(), 4);
}
