//! A Redis whose memory is full: nothing new is granted, and all that was granted is still paid and ended.

use std::collections::BTreeMap;

use red_envelope_proto::v1::{EnvelopeState, GrabOutcome, RecallEnvelopeRequest};
use redis::Value;
use tonic::Code;

use crate::harness::fleet::until;
use crate::harness::world::grab_of;
use crate::harness::{Hot, Start, World, cny, equal};

/// What the sender has at first, what a share is worth, and shares of an envelope.
const FUNDS: i64 = 100_000;
const SHARE: i64 = 10;
const SHARES: u32 = 50;
/// Who grabs from each envelope, in the books or owed to them when memory is full.
const SETTLED: usize = 10;
const OWED: usize = 10;
/// Less than any Redis holds: it refuses all that takes memory.
pub const FULL: &str = "1";
const A_DAY_LATER_MS: i64 = 25 * 3_600_000;

pub fn memory_max(world: &World, bytes: &str) {
    let words: [&[u8]; 4] = [b"CONFIG", b"SET", b"maxmemory", bytes.as_bytes()];
    let redis = world.redis.as_ref().unwrap();
    assert_eq!(redis.command(&words), Value::Okay);
}

/// These win; the number of the share of each.
async fn win(
    world: &mut World,
    id: &str,
    numbers: std::ops::Range<usize>,
) -> BTreeMap<String, u32> {
    let mut held = BTreeMap::new();
    for number in numbers {
        let grabber = format!("grabber-{number}");
        held.insert(grabber.clone(), world.win(id, &grabber).await.number);
    }
    held
}

/// A newcomer gets nothing, and who has a share hears of it again.
async fn only_repeats_are_answered(world: &mut World, id: &str, held: &BTreeMap<String, u32>) {
    let refused = world.try_grab(grab_of(id, "newcomer")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    for (grabber, number) in held {
        let again = world.grab(id, grabber).await;
        assert_eq!(again.outcome(), GrabOutcome::AlreadyGrabbed, "{grabber}");
        assert_eq!(again.share.unwrap().number, *number);
    }
}

/// It is over, what was won is paid, and the rest is back.
async fn ended(world: &mut World, id: &str) {
    let closed = world.until(id, "alice", EnvelopeState::Closed).await;
    let progress = closed.progress.unwrap();
    let won = i64::try_from(SETTLED + OWED).unwrap() * SHARE;
    let rest = i64::from(SHARES) * SHARE - won;
    assert_eq!(progress.settled.unwrap().minor_units, won);
    assert_eq!(progress.refunded.unwrap().minor_units, rest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_redis_has_granted_is_paid_and_ended() {
    let mut world = World::on(Hot::Redis).await;
    world.fund("alice", cny(FUNDS)).await;
    let mut envelopes = Vec::new();
    for _ in 0..2 {
        let id = world.send(equal("alice", cny(SHARE), SHARES)).await;
        let held = win(&mut world, &id.envelope_id, 0..SETTLED).await;
        envelopes.push((id.envelope_id, held));
    }
    world.audit_when_quiet().await;
    let books = world.server.hold_the_books();
    for (id, held) in &mut envelopes {
        held.extend(win(&mut world, id, SETTLED..SETTLED + OWED).await);
    }
    memory_max(&world, FULL);
    for (id, held) in &envelopes {
        only_repeats_are_answered(&mut world, id, held).await;
    }
    let told = async || world.server.readiness().await.1.contains("above 90 %");
    until("it says that memory is full", told).await;
    let reason = "reason=\"redis_memory\"";
    let full = world.server.counted_of("red_envelope_not_ready", reason);
    assert!(full.await > 0.0);
    for (id, held) in &envelopes {
        only_repeats_are_answered(&mut world, id, held).await;
    }
    drop(books);
    for number in SETTLED..SETTLED + OWED {
        let grabber = format!("grabber-{number}");
        world.until_available(&grabber, 2 * SHARE).await;
    }
    // One is ended by its sender, the other one by its time.
    let recall = RecallEnvelopeRequest {
        envelope_id: envelopes[0].0.clone(),
        sender: "alice".to_owned(),
        request_id: "back".to_owned(),
        ..RecallEnvelopeRequest::default()
    };
    world.envelopes.recall_envelope(recall).await.unwrap();
    ended(&mut world, &envelopes[0].0).await;
    // Also by a server that comes while it is full.
    world.server.kill();
    let mut world = world.restarted(Start::on(Hot::Redis)).await;
    world.server.set_clock_ms(A_DAY_LATER_MS);
    ended(&mut world, &envelopes[1].0).await;
    let paid = 2 * i64::try_from(SETTLED + OWED).unwrap() * SHARE;
    assert_eq!(world.balance("alice").await, (FUNDS - paid, 0, 0));
    assert!(!world.server.readiness().await.0, "it was full to the end");
    world.audit_when_quiet().await;

    memory_max(&world, "0");
    world.until_ready().await;
    let id = world.send(equal("alice", cny(SHARE), SHARES)).await;
    world.win(&id.envelope_id, "newcomer").await;
    world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_restarts_full_ends_what_it_holds_and_takes_no_new_envelope() {
    let mut world = World::on(Hot::Redis).await;
    world.fund("alice", cny(FUNDS)).await;
    let id = world.send(equal("alice", cny(SHARE), SHARES)).await;
    let won = win(&mut world, &id.envelope_id, 0..SETTLED + OWED).await;
    world.audit_when_quiet().await;
    let before = world.balance("alice").await;
    memory_max(&world, FULL);
    let redis = world.redis.as_ref().unwrap();
    assert_eq!(redis.command(&[b"CONFIG", b"REWRITE"]), Value::Okay);
    let told = async || world.server.readiness().await.1.contains("above 90 %");
    until("it says that memory is full", told).await;
    let another = equal("alice", cny(SHARE), SHARES);
    let refused = world.envelopes.create_envelope(another.clone()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    assert_eq!(world.balance("alice").await, before, "nothing was held");

    world.redis().restart();
    world.server.set_clock_ms(A_DAY_LATER_MS);
    ended(&mut world, &id.envelope_id).await;
    assert_eq!(won.len(), SETTLED + OWED);
    assert!(!world.server.readiness().await.0, "it was full to the end");
    world.audit_when_quiet().await;
    memory_max(&world, "0");
    world.until_ready().await;
    world.envelopes.create_envelope(another).await.unwrap();
    world.audit_when_quiet().await;
}
