//! Each key of an envelope is lost, of a small one and of a large one with a lock, or becomes a thing of another
//! type: nobody gets a second share, and nobody gets in without the passphrase.

use std::collections::{BTreeMap, BTreeSet};

use red_envelope_proto::v1::{
    CreateEnvelopeRequest, EnvelopeState, GrabOutcome, GrabRequest, RefusalReason,
};
use redis::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::fleet::until;
use crate::harness::world::grab_of;
use crate::harness::{Hot, Start, World, cny, lucky};
use crate::redis_faults::{
    MISSING_POSTED_WITHIN, keys_like, nothing_is_granted_twice, the_outbox_of, with_twenty_winners,
};

/// Shares of the large envelope: Redis lists who grabbed from one of more than 1,000.
const SHARES: u32 = 1_100;
/// What it is worth.
const TOTAL: i64 = 1_000_000;
const PHRASE: &str = "open sesame";
/// Keys of a large envelope with a lock: grabs, shares, terms, list, lock.
const LETTERS: [&str; 5] = ["g", "s", "t", "l", "p"];
/// Who grabs before a key is lost.
const GRABBERS: u32 = 20;

/// Share number and amount of each.
type Held = BTreeMap<String, (u32, i64)>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_of_an_envelope_may_be_deleted() {
    for letter in ["g", "s", "t"] {
        let (mut world, id, held) = with_twenty_winners().await;
        world.audit_when_quiet().await;
        the_key_is_deleted(&mut world, letter, &id);
        nothing_is_granted_twice(&mut world, &id, &held).await;
    }
}

/// Answers its name.
fn the_key_is_deleted(world: &mut World, letter: &str, id: &str) -> Vec<u8> {
    let mut keys = keys_like(world, &format!("re1:*:{letter}:{id}"));
    assert_eq!(keys.len(), 1, "{letter}");
    let key = keys.remove(0);
    assert_eq!(world.redis().command(&[b"DEL", &key]), Value::Int(1));
    key
}

fn with(phrase: &str, id: &str, grabber: &str) -> GrabRequest {
    GrabRequest {
        passphrase: phrase.to_owned(),
        ..grab_of(id, grabber)
    }
}

/// All these win, at once.
async fn all_win(world: &World, id: &str, grabbers: impl Iterator<Item = String>) -> Held {
    let mut crowd = JoinSet::new();
    for grabber in grabbers {
        let (mut client, record) = (world.envelopes.clone(), world.record.clone());
        let grab = with(PHRASE, id, &grabber);
        crowd.spawn(async move {
            let answer = record.grab(&mut client, grab).await.unwrap();
            assert_eq!(answer.outcome(), GrabOutcome::Won, "{grabber}");
            let share = answer.share.unwrap();
            (grabber, (share.number, share.amount.unwrap().minor_units))
        });
    }
    crowd.join_all().await.into_iter().collect()
}

/// Everybody hears of his own share again, as the sender sees it, too.
async fn the_answers_stay(world: &mut World, id: &str, held: &Held) {
    for (grabber, share) in held {
        let answer = world.try_grab(with(PHRASE, id, grabber)).await.unwrap();
        assert_eq!(answer.outcome(), GrabOutcome::AlreadyGrabbed, "{grabber}");
        let again = answer.share.unwrap();
        assert_eq!((again.number, again.amount.unwrap().minor_units), *share);
    }
    let listed = world.shares(id, "alice").await.into_iter();
    let listed: Held = listed
        .map(|share| {
            let amount = share.amount.unwrap().minor_units;
            (share.grabber, (share.number, amount))
        })
        .collect();
    assert_eq!(listed, *held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_of_a_large_envelope_with_a_lock_may_be_deleted() {
    let mut world = World::on(Hot::Redis).await;
    world.fund("alice", cny(TOTAL)).await;
    let locked = CreateEnvelopeRequest {
        passphrase: PHRASE.to_owned(),
        ..lucky("alice", cny(TOTAL), SHARES)
    };
    let id = world.send(locked).await.envelope_id;
    let mut held = Held::new();
    for letter in LETTERS {
        let grabbers = (0..GRABBERS).map(|number| format!("before-{letter}-{number}"));
        held.extend(all_win(&world, &id, grabbers).await);
        world.audit_when_quiet().await;
        let key = the_key_is_deleted(&mut world, letter, &id);
        // The first who comes has no key to the lock, whatever was lost.
        let thief = with("open barley", &id, &format!("thief-{letter}"));
        let refused = world.try_grab(thief).await.unwrap();
        assert_eq!(refused.outcome(), GrabOutcome::Refused, "{letter}");
        assert_eq!(refused.refusal(), RefusalReason::WrongPassphrase);
        the_answers_stay(&mut world, &id, &held).await;
        let late = std::iter::once(format!("behind-{letter}"));
        held.extend(all_win(&world, &id, late).await);
        // The terms are remembered by whoever serves; without its list an envelope tells the same, and goes on
        // without one.
        if !["t", "l"].contains(&letter) {
            let there = world.redis().command(&[b"EXISTS", &key]);
            assert_eq!(there, Value::Int(1), "{letter} is not there again");
        }
    }
    let left = SHARES - u32::try_from(held.len()).unwrap();
    let rest = (0..left).map(|number| format!("late-{number}"));
    held.extend(all_win(&world, &id, rest).await);
    let none = world.try_grab(with(PHRASE, &id, "nobody")).await.unwrap();
    assert_eq!(none.outcome(), GrabOutcome::Empty);
    let numbers: BTreeSet<_> = held.values().map(|share| share.0).collect();
    assert_eq!(numbers.len(), SHARES as usize);
    let closed = world.until(&id, "alice", EnvelopeState::Closed).await;
    let settled = closed.progress.unwrap().settled.unwrap();
    assert_eq!(settled.minor_units, TOTAL);
    for (grabber, (_, amount)) in &held {
        assert_eq!(world.available(grabber).await, *amount, "{grabber}");
    }
    world.audit_when_quiet().await;
}

/// The key holds something of another type than it should.
fn the_key_becomes_another_thing(world: &mut World, letter: &str, id: &str) {
    let key = the_key_is_deleted(world, letter, id);
    let becomes: &[&[u8]] = match letter {
        "g" => &[b"SET", &key, b"a text"],
        _ => &[b"RPUSH", &key, b"an item"],
    };
    let done = world.redis().command(becomes);
    assert!([Value::Okay, Value::Int(1)].contains(&done), "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_of_an_envelope_may_become_another_thing() {
    for letter in ["g", "s", "t"] {
        let (mut world, id, held) = with_twenty_winners().await;
        world.audit_when_quiet().await;
        the_key_becomes_another_thing(&mut world, letter, &id);
        nothing_is_granted_twice(&mut world, &id, &held).await;
    }
}

/// The key has lost a part of what it holds: a field, or all behind its first third.
fn the_key_loses_a_part(world: &mut World, (letter, field): (&str, &[u8]), id: &str) {
    let key = keys_like(world, &format!("re1:*:{letter}:{id}")).remove(0);
    let redis = world.redis();
    if letter == "g" {
        assert_eq!(redis.command(&[b"HDEL", &key, field]), Value::Int(1));
        return;
    }
    let Value::BulkString(whole) = redis.command(&[b"GET", &key]) else {
        panic!("{letter} is a text");
    };
    let part = &whole[..whole.len() / 3];
    assert_eq!(redis.command(&[b"SET", &key, part]), Value::Okay);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_of_an_envelope_may_lose_a_part() {
    // Somebody's share, the meta, the shares that are left.
    for lost in [("g", &b"early-3"[..]), ("g", b""), ("s", b"")] {
        let (mut world, id, held) = with_twenty_winners().await;
        world.audit_when_quiet().await;
        the_key_loses_a_part(&mut world, lost, &id);
        nothing_is_granted_twice(&mut world, &id, &held).await;
    }
}

/// Ten more have a share; the books don't know of them before what this answers is dropped.
async fn with_ten_who_are_owed() -> (World, String, Held, rusqlite::Connection) {
    let (mut world, id, mut held) = with_twenty_winners().await;
    world.audit_when_quiet().await;
    let books = world.server.hold_the_books();
    for number in 0..10 {
        let grabber = format!("owed-{number}");
        let share = world.win(&id, &grabber).await;
        held.insert(grabber, (share.number, share.amount.unwrap().minor_units));
    }
    (world, id, held, books)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_of_an_envelope_may_be_another_thing_when_a_server_comes_that_was_told_nothing() {
    for letter in ["g", "s", "t"] {
        let (mut world, id, held, books) = with_ten_who_are_owed().await;
        world.server.kill();
        drop(books);
        the_key_becomes_another_thing(&mut world, letter, &id);
        let mut world = world.restarted(Start::on(Hot::Redis)).await;
        world.until_ready().await;
        nothing_is_granted_twice(&mut world, &id, &held).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_that_is_another_thing_stops_the_grabs_until_it_is_gone_and_costs_nobody_anything()
 {
    let (mut world, id, held, books) = with_ten_who_are_owed().await;
    let outbox = the_outbox_of(world.redis(), &id);
    let redis = world.redis();
    assert_eq!(redis.command(&[b"DEL", &outbox]), Value::Int(1));
    assert_eq!(redis.command(&[b"SADD", &outbox, b"it"]), Value::Int(1));
    drop(books);
    // It is said, if not of the first one: of lines like this one some pass.
    until("it is said why", async || {
        let refused = world.try_grab(grab_of(&id, "late-0")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(refused.get_details_retry_info().is_some(), "{refused}");
        let said = "the outbox in Redis does not take what is owed";
        world.server.log().contains(said)
    })
    .await;
    // Nothing of that grab is there, so it is won when it is repeated (as the first of those who come late).
    assert_eq!(world.shares(&id, "alice").await.len(), held.len());

    assert_eq!(world.redis().command(&[b"DEL", &outbox]), Value::Int(1));
    let latest = Instant::now() + MISSING_POSTED_WITHIN;
    let paid = held.iter().map(|(who, (_, amount))| (who.clone(), *amount));
    world.until_all_are_paid_by(latest, &paid.collect()).await;
    nothing_is_granted_twice(&mut world, &id, &held).await;
}
