//! A Redis whose memory is full: nobody wins any more, who has a share is still told so, and what gives
//! memory back goes on.

use redis::Value;

use super::damage::{Call, Shares, kinds, stage, succeeded};
use super::scene::{Scene, functions};
use super::{Crash, Flavour, OnRedis};
use crate::domain::grab::{Grab, GrabReply, Outcome, Refusal};
use crate::domain::id::{Epoch, TenantId};
use crate::hot::conformance::stage::{Cast, epoch, person, tenant, won};
use crate::hot::redis::register::LIBRARY;
use crate::hot::{HotError, HotStore};

/// Functions that run where memory is full: they end what would take more, free some, or come before either.
const FREES: [&str; 8] = [
    "close_1",
    "freeze_1",
    "halt_1",
    "register_2",
    "remove_1",
    "set_aside_1",
    "settled_1",
    "stamp_1",
];

/// Calls a function where memory is full: what is wrong with its answer and what it left behind.
fn complaint(
    scene: &mut Scene,
    (name, writes): (&str, bool),
    shares: Shares,
) -> Result<(), String> {
    let cast = stage(scene, name, shares);
    let words = scene.words(name, &cast);
    let read_before = (!writes).then(|| scene.send(&words));
    let call = Call::begin(scene, name, cast, words);
    scene.ask(&[b"CONFIG", b"SET", b"maxmemory", b"1"]);
    let reply = scene.send(&call.words);
    scene.ask(&[b"CONFIG", b"SET", b"maxmemory", b"0"]);
    let changed = call.judge(scene, &reply)?;
    let as_it_should = if FREES.contains(&name) {
        // What gives memory back goes on, to its end.
        succeeded(&reply) && !changed.is_empty() && call.has_its_effect(scene, &reply)
    } else {
        let refused = matches!(&reply, Value::ServerError(error) if error.code() == "OOM");
        changed.is_empty() && read_before.map_or(refused, |read| read == reply)
    };
    match as_it_should {
        true => Ok(()),
        false => Err(format!("{reply:?}, and {changed:?} changed")),
    }
}

#[test]
fn without_memory_nothing_is_granted_and_everything_is_read_settled_and_ended() {
    let mut scene = Scene::new(&[("appendonly", "no")]);
    for (name, writes) in functions() {
        for shares in kinds(&name) {
            let outcome = complaint(&mut scene, (&name, writes), *shares);
            outcome.unwrap_or_else(|why| panic!("{name} of {shares:?}: {why}"));
        }
    }
}

#[test]
fn a_library_that_does_not_free_or_takes_more_where_memory_is_full_is_noticed() {
    let mut scene = Scene::new(&[("appendonly", "no")]);
    let frees = "register_as(name, callback, { 'allow-oom' })";
    let writes = "local function writes(name, callback) register_as(name, callback, {}) end";
    for (there, instead, noticed) in [
        (frees, "register_as(name, callback, {})", true),
        (writes, &*writes.replace("{}", "{ 'allow-oom' }"), false),
    ] {
        assert_eq!(LIBRARY.matches(there).count(), 1, "{there}");
        scene.bring(&LIBRARY.replace(there, instead));
        for (name, _) in functions().into_iter().filter(|(_, writes)| *writes) {
            for shares in kinds(&name) {
                let outcome = complaint(&mut scene, (&name, true), *shares);
                let frees = FREES.contains(&name.as_str());
                assert_eq!(outcome.is_err(), frees == noticed, "{name}: {outcome:?}");
            }
        }
    }
}

/// Envelopes of which ann and bob have a share each, bob declined his.
async fn played(stage: &OnRedis) -> (Cast, Cast) {
    let store = &*stage.store;
    let lucky = Cast::lucky(&[5, 7, 9]);
    let named = Cast::exclusive(&[("ann", 5), ("bob", 7), ("eve", 9)]);
    for cast in [&lucky, &named] {
        cast.publish(store).await;
    }
    let id = named.id;
    let declined = store.decline(epoch(store, id), tenant(), id, person("bob"));
    declined.await.unwrap();
    (lucky, named)
}

/// One grab a call: what a caller hears.
async fn hears(store: &dyn HotStore, grab: Grab) -> Result<GrabReply, String> {
    match store.grab(vec![grab]).await {
        Ok(replies) => Ok(replies[0]),
        Err(HotError::Unavailable(why)) => Err(why),
        Err(other) => panic!("{other}"),
    }
}

async fn only_repeats_are_answered(stage: &OnRedis, lucky: &Cast, named: &Cast, why: &str) {
    let store = &*stage.store;
    let debts = lucky.debts(store).await;
    for cast in [lucky, named] {
        let told = hears(store, cast.grab_in(store, "ann")).await;
        let Ok(GrabReply::Outcome(Outcome::AlreadyGrabbed(grant))) = told else {
            panic!("{told:?}");
        };
        let held = store.held(vec![(cast.id, person("ann"))]).await.unwrap();
        assert_eq!(held[0].as_ref().unwrap().grant, grant);
        let refused = hears(store, cast.grab_in(store, "eve")).await.unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    let declined = hears(store, named.grab_in(store, "bob")).await;
    let expected = GrabReply::Outcome(Outcome::Refused(Refusal::Declined));
    assert_eq!(declined, Ok(expected));
    // Another tenant's person of the same name, and a call of which one grab would win.
    let stranger = Grab {
        tenant: TenantId::parse("other").unwrap(),
        ..lucky.grab_in(store, "ann")
    };
    assert!(hears(store, stranger).await.is_err());
    let both = vec![lucky.grab_in(store, "ann"), lucky.grab_in(store, "eve")];
    assert!(store.grab(both).await.is_err());
    let both = vec![lucky.grab_in(store, "ann"), named.grab_in(store, "ann")];
    assert_eq!(store.grab(both).await.unwrap().len(), 2);
    assert_eq!(lucky.debts(store).await, debts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_share_hears_it_again_from_a_redis_that_is_full() {
    for flavour in [Flavour::Debian, Flavour::Redis8, Flavour::Valkey9] {
        let stage = OnRedis::new(flavour, Crash::Process).await;
        let (lucky, named) = played(&stage).await;
        for cast in [&lucky, &named] {
            won(cast.grab(&*stage.store, "ann").await);
        }
        let set = |bytes: &str| {
            let words: [&[u8]; 4] = [b"CONFIG", b"SET", b"maxmemory", bytes.as_bytes()];
            stage.server.command(&words);
        };
        // Redis refuses before anybody has looked.
        set("1");
        only_repeats_are_answered(&stage, &lucky, &named, "no memory left").await;
        // The look says the same, and why.
        stage.store.check().await;
        assert_eq!(stage.store.ack_level(), None);
        only_repeats_are_answered(&stage, &lucky, &named, "above 90 %").await;
        // What is acknowledged at no level is not told again either.
        set("0");
        stage
            .server
            .command(&[b"CONFIG", b"SET", b"appendfsync", b"no"]);
        stage.store.check().await;
        let ann = hears(&*stage.store, lucky.grab_in(&*stage.store, "ann")).await;
        assert!(ann.unwrap_err().contains("appendfsync"));
        stage
            .server
            .command(&[b"CONFIG", b"SET", b"appendfsync", b"always"]);
        stage.store.check().await;
        won(lucky.grab(&*stage.store, "eve").await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_tells_nothing_of_what_is_frozen_or_waits_for_a_repair() {
    let mut stage = OnRedis::new(Flavour::Debian, Crash::Process).await;
    let (lucky, named) = played(&stage).await;
    for cast in [&lucky, &named] {
        won(cast.grab(&*stage.store, "ann").await);
    }
    let store = &*stage.store;
    store.freeze(&store.epochs(), lucky.id).await.unwrap();
    let full: [&[u8]; 4] = [b"CONFIG", b"SET", b"maxmemory", b"1"];
    stage.server.command(&full);
    assert!(hears(store, lucky.grab_in(store, "ann")).await.is_err());
    assert!(hears(store, named.grab_in(store, "ann")).await.is_ok());
    stage
        .server
        .command(&[b"CONFIG", b"SET", b"maxmemory", b"0"]);
    stage.register(Epoch(3)).await;
    stage.server.command(&full);
    let store = &*stage.store;
    assert!(hears(store, named.grab_in(store, "ann")).await.is_err());
}
