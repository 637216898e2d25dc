//! An entry that nobody can read stands in the way of its envelope only where the grants that it owed
//! may be lost.

use super::{Crash, Flavour, OnRedis, own_keys};
use crate::domain::envelope::CloseReason;
use crate::domain::id::Epoch;
use crate::hot::conformance::stage::{Cast, EXPIRES_IN_MS, partition, won};
use crate::hot::{CloseReply, HotError, HotStore};

/// An envelope with two winners whose debt has become bytes that nobody can read.
async fn spoiled() -> (OnRedis, Cast) {
    let stage = OnRedis::new(Flavour::Debian, Crash::Process).await;
    let cast = Cast::lucky(&[5, 7, 9]);
    cast.publish(&*stage.store).await;
    for name in ["ann", "bob"] {
        won(cast.grab(&*stage.store, name).await);
    }
    assert!(stage.store.owes(cast.id).await.unwrap());
    let outbox = stage
        .store
        .core
        .keys
        .outbox(partition(&*stage.store, cast.id));
    let junk = [&b"\x01 of "[..], &cast.id.to_bytes()].concat();
    stage
        .server
        .command(&[b"XTRIM", outbox.as_bytes(), b"MAXLEN", b"0"]);
    stage
        .server
        .command(&[b"XADD", outbox.as_bytes(), b"2-*", b"r", &junk]);
    (stage, cast)
}

/// Whether it is owed while the entry is in the outbox, and when it was set aside.
async fn owes_before_and_after(store: &dyn HotStore, cast: &Cast) -> [bool; 2] {
    let before = store.owes(cast.id).await.unwrap();
    assert_eq!(cast.debts(store).await, [], "nobody can read it");
    let all = store.partitions().all().collect();
    assert_eq!(store.owing(all).await.unwrap(), [], "it was set aside");
    [before, store.owes(cast.id).await.unwrap()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_of_an_envelope_that_has_all_its_grants_owes_nothing() {
    let (stage, cast) = spoiled().await;
    let store = &*stage.store;
    assert_eq!(owes_before_and_after(store, &cast).await, [false, false]);
    let grants = store.grants(cast.id, 0, 10).await.unwrap().unwrap();
    assert_eq!(grants.len(), 2);
    // It closes with what was granted, which the books must have before the rest goes back.
    stage.clock.advance_ms(EXPIRES_IN_MS + 1);
    let terms = std::sync::Arc::clone(&cast.terms);
    let under = store.epochs();
    let closed = store.close(&under, cast.id, terms, CloseReason::Expired);
    let CloseReply::Over { taken_count, .. } = closed.await.unwrap() else {
        panic!("it is due");
    };
    assert_eq!(taken_count, 2);
    assert!(!store.owes(cast.id).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_of_an_envelope_that_is_not_whole_is_owed_until_a_person_has_looked() {
    let damages: [&[&[u8]]; 3] = [&[b"UNLINK"], &[b"HDEL", b"ann"], &[b"HDEL", b""]];
    for damage in damages {
        let (stage, cast) = spoiled().await;
        let store = &*stage.store;
        let key = own_keys(store, cast.id).grabs;
        let words = [&[damage[0], key.as_bytes()], &damage[1..]].concat();
        stage.server.command(&words);
        assert_eq!(owes_before_and_after(store, &cast).await, [true, true]);
        // So no tombstone covers what it granted.
        stage.clock.advance_ms(EXPIRES_IN_MS + 1);
        let terms = std::sync::Arc::clone(&cast.terms);
        let (id, under) = (cast.id, store.epochs());
        let closed = store.close(
            &under,
            id,
            std::sync::Arc::clone(&terms),
            CloseReason::Expired,
        );
        let closed = closed.await;
        assert!(
            matches!(closed, Err(HotError::Unavailable(_))),
            "{closed:?}"
        );
        let poison = store.core.keys.poison(partition(store, id));
        stage.server.command(&[b"UNLINK", poison.as_bytes()]);
        assert!(!store.owes(id).await.unwrap());
        let closed = store.close(&under, id, terms, CloseReason::Expired).await;
        assert!(matches!(closed, Ok(CloseReply::Over { .. })), "{closed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_of_an_envelope_of_an_older_epoch_is_owed_until_it_is_repaired() {
    let (mut stage, cast) = spoiled().await;
    stage.register(Epoch(3)).await;
    let store = &*stage.store;
    assert_eq!(owes_before_and_after(store, &cast).await, [true, true]);
    stage.repair_all().await;
    assert!(!store.owes(cast.id).await.unwrap());
    assert_eq!(
        store.grants(cast.id, 0, 10).await.unwrap().unwrap().len(),
        2
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_does_not_know_who_had_a_share() {
    let (stage, cast) = spoiled().await;
    let store = &*stage.store;
    assert_eq!(owes_before_and_after(store, &cast).await, [false, false]);
    let poison = store.core.keys.poison(partition(store, cast.id));
    let kept = stage.server.command(&[b"LPOP", poison.as_bytes()]);
    let redis::Value::BulkString(kept) = kept else {
        panic!("{kept:?}");
    };
    let key = own_keys(store, cast.id).grabs;
    stage.server.command(&[b"UNLINK", key.as_bytes()]);
    stage.clock.advance_ms(EXPIRES_IN_MS + 1);
    let terms = std::sync::Arc::clone(&cast.terms);
    let (under, reason) = (store.epochs(), CloseReason::Expired);
    store.close(&under, cast.id, terms, reason).await.unwrap();
    assert!(!store.owes(cast.id).await.unwrap());
    // A person who puts the entry back has not settled it.
    stage.server.command(&[b"RPUSH", poison.as_bytes(), &kept]);
    assert!(store.owes(cast.id).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_can_not_be_set_aside_stays_and_stops_no_drain() {
    let (stage, cast) = spoiled().await;
    let store = &*stage.store;
    let poison = store.core.keys.poison(partition(store, cast.id));
    stage
        .server
        .command(&[b"SET", poison.as_bytes(), b"theirs"]);
    won(cast.grab(store, "cat").await);
    let debts = cast.debts(store).await;
    assert_eq!(debts.len(), 1, "{debts:?}");
    let all = store.partitions().all().collect();
    assert_eq!(
        store.owing(all).await.unwrap().len(),
        1,
        "it is still there"
    );
    stage.server.command(&[b"DEL", poison.as_bytes()]);
    cast.settle_all(store).await;
    let all = store.partitions().all().collect();
    assert_eq!(store.owing(all).await.unwrap(), [], "it was set aside");
}
