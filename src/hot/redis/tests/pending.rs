//! Many who ask at once what waits for them: each hears of his own, and Redis is asked a few times.

use super::{Crash, Flavour, OnRedis, answered};
use crate::hot::conformance::stage::{Cast, partition, person, tenant};
use crate::hot::redis::pending::TOGETHER_MAX;
use crate::hot::{HotError, HotStore};

/// Calls of functions that only read, which this server has answered.
fn looks(stage: &OnRedis) -> u64 {
    answered(&stage.server, "fcall_ro")
}

// On one thread, so that all have asked before anybody looks.
#[tokio::test]
async fn those_who_ask_at_once_hear_of_their_own_from_a_few_looks() {
    let stage = OnRedis::new(Flavour::Debian, Crash::Process).await;
    let store = &*stage.store;
    let (one, other) = (Cast::lucky(&[5, 7]), Cast::lucky(&[11]));
    for cast in [&one, &other] {
        cast.publish(store).await;
    }
    // One name is part of the other.
    one.grab(store, "ann").await;
    one.grab(store, "anna").await;
    other.grab(store, "ann").await;
    const MANY: usize = 200;
    let names: Vec<_> = (0..MANY)
        .map(|number| match number % 4 {
            0 => "ann".to_owned(),
            1 => "anna".to_owned(),
            _ => format!("guest-{number}"),
        })
        .collect();
    let before = looks(&stage);
    let asked = names
        .iter()
        .map(|name| store.pending(tenant(), person(name)));
    let told = futures_util::future::try_join_all(asked).await.unwrap();
    for (name, shares) in names.iter().zip(told) {
        let mut minor: Vec<_> = shares
            .iter()
            .map(|share| share.grant.amount_minor)
            .collect();
        minor.sort_unstable();
        match name.as_str() {
            "ann" => assert_eq!(minor.len(), 2, "{minor:?}"),
            "anna" => assert_eq!(minor.len(), 1, "{minor:?}"),
            _ => assert_eq!(minor, [0; 0]),
        }
    }
    // Of a look: which outboxes hold something, and one call for each of the two that do. Terms are known.
    let at_most = u64::try_from(MANY.div_ceil(TOGETHER_MAX) * 3).unwrap();
    let made = looks(&stage) - before;
    assert!((3..=at_most).contains(&made), "{made} looks of {at_most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_away_takes_nobody_s_answer_with_him() {
    let stage = OnRedis::new(Flavour::Debian, Crash::Process).await;
    let store = &*stage.store;
    let cast = Cast::lucky(&[5, 7]);
    cast.publish(store).await;
    cast.grab(store, "ann").await;
    for _ in 0..50 {
        let (gone, ann) = (person("gone"), person("ann"));
        let (mut goes, mut stays) = (
            Box::pin(store.pending(tenant(), gone)),
            Box::pin(store.pending(tenant(), ann)),
        );
        // He has asked, so that a look is on its way, and then leaves.
        assert!(futures_util::poll!(&mut goes).is_pending());
        assert!(futures_util::poll!(&mut stays).is_pending());
        drop(goes);
        assert_eq!(stays.await.unwrap().len(), 1);
    }
    // And where a look fails, each of those who asked hears of it, and the next one is asked anew.
    let own = partition(store, cast.id);
    let mut others = store.partitions().all().filter(|other| *other != own);
    let key = store.core.keys.outbox(others.next().unwrap());
    stage.server.command(&[b"SET", key.as_bytes(), b"x"]);
    let asked = ["ann", "bob"].map(|name| store.pending(tenant(), person(name)));
    for told in futures_util::future::join_all(asked).await {
        assert!(matches!(told, Err(HotError::Unavailable(_))), "{told:?}");
    }
    stage.server.command(&[b"DEL", key.as_bytes()]);
    assert_eq!(
        store.pending(tenant(), person("ann")).await.unwrap().len(),
        1
    );
}

#[tokio::test]
async fn where_a_look_is_broken_off_the_next_who_asks_begins_anew() {
    let stage = OnRedis::new(Flavour::Debian, Crash::Process).await;
    let store = &*stage.store;
    let cast = Cast::lucky(&[5]);
    cast.publish(store).await;
    cast.grab(store, "ann").await;
    // The task is broken off with the runtime that runs it, in the middle of its look.
    let core = std::sync::Arc::clone(&store.core);
    let (asked, waits) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let (tenant, ann) = (tenant(), person("ann"));
            let mut told = Box::pin(core.pending(&tenant, &ann));
            assert!(futures_util::poll!(&mut told).is_pending());
            tokio::task::yield_now().await;
            asked.send(()).unwrap();
        });
    });
    waits.recv().unwrap();
    other.join().unwrap();
    let shares = store.pending(tenant(), person("ann")).await.unwrap();
    assert_eq!(shares.len(), 1);
}
