//! Processes that share the work: some only serve clients, one only settles; and the level `ledger`.

use std::collections::BTreeSet;

use red_envelope_proto::v1::info_service_client::InfoServiceClient;
use red_envelope_proto::v1::{
    AckLevel, EnvelopeState, GetServiceInfoRequest, GrabOutcome, GrabResponse,
};

use crate::harness::fleet::{Fleet, a_moment};
use crate::harness::world::{channel, grab_of};
use crate::harness::{Start, cny, equal};
use crate::together::winners;

/// How long a client waits for a grab while the books are away.
const GRAB_WAIT: std::time::Duration = std::time::Duration::from_millis(1_500);

fn with(flags: &[&str]) -> Start {
    Start {
        flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..Start::default()
    }
}

/// A fleet whose processes have these flags.
async fn fleet_with(flags: &[&str], count: usize) -> Fleet {
    let mut fleet = Fleet::of(0).await;
    for _ in 0..count {
        fleet.join(with(flags)).await;
    }
    fleet
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_serves_leaves_the_money_to_who_only_settles() {
    let mut fleet = fleet_with(&["--role", "api"], 2).await;
    fleet.processes[0].fund("alice", cny(1_000)).await;
    let sent = fleet.processes[0].send(equal("alice", cny(10), 20)).await;
    let id = sent.envelope_id;
    for number in 0..10 {
        let grabber = format!("grabber-{number}");
        fleet.processes[number % 2].win(&id, &grabber).await;
    }
    a_moment().await;
    // Available, pending.
    let balance = fleet.processes[1].balance("grabber-0").await;
    assert_eq!((balance.0, balance.1), (0, 10));

    fleet.join_settler(with(&["--role", "settle"])).await;
    for number in 0..10 {
        let grabber = format!("grabber-{number}");
        fleet.processes[0].until_available(&grabber, 10).await;
    }
    assert_eq!(fleet.settlers[0].ports.grpc, None);
    // What nobody took goes back, by the one that settles.
    fleet.set_clock_ms(25 * 3_600_000);
    let closed = fleet.processes[1].until(&id, "alice", EnvelopeState::Closed);
    let refunded = closed.await.progress.unwrap().refunded.unwrap();
    assert_eq!(refunded.minor_units, 100);
    assert!(fleet.settlers[0].stop().await.success());
    fleet.processes[0].audit_when_quiet().await;
}

/// Of people who had none, so many have a share of ten each, no two the same one, and so many have none. Whoever
/// had no answer at first may hear that he has one already. Answers the numbers of the shares.
fn took_the_rest(told: &[(String, GrabResponse)], with: usize, without: usize) -> BTreeSet<u32> {
    let empty = |(_, answer): &&(String, GrabResponse)| answer.outcome() == GrabOutcome::Empty;
    let held = winners(told);
    assert_eq!(
        (held.len(), told.iter().filter(empty).count()),
        (with, without)
    );
    assert!(held.values().all(|(_, amount)| *amount == 10));
    let numbers: BTreeSet<u32> = held.values().map(|(number, _)| *number).collect();
    assert_eq!(numbers.len(), with);
    numbers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_ledger_a_grab_is_told_when_the_books_have_it() {
    let mut fleet = fleet_with(&["--ack", "ledger"], 2).await;
    let mut facts = InfoServiceClient::new(channel(fleet.processes[0].server.grpc()).await);
    let told = facts.get_service_info(GetServiceInfoRequest::default());
    let told = told.await.unwrap().into_inner();
    assert_eq!(told.ack_level(), AckLevel::Ledger);
    fleet.processes[0].fund("alice", cny(10_000)).await;
    let sent = fleet.processes[0].send(equal("alice", cny(10), 100)).await;
    let id = sent.envelope_id;
    for number in 0..10 {
        let grabber = format!("early-{number}");
        fleet.processes[number % 2].win(&id, &grabber).await;
        // At once, and through the other process too.
        let has = fleet.processes[(number + 1) % 2].balance(&grabber).await;
        assert_eq!((has.0, has.1), (10, 0), "{grabber}");
    }

    fleet.postgres.pause();
    for place in [0, 1] {
        let mut client = fleet.processes[place].envelopes.clone();
        let asked = fleet.record.grab(&mut client, grab_of(&id, "late"));
        let told = tokio::time::timeout(GRAB_WAIT, asked).await;
        // Nobody waits any more, or the answer is that there is none.
        assert!(told.is_err() || told.unwrap().is_err(), "{place}");
    }
    fleet.postgres.resume();
    let late = fleet.processes[1].grab_until_answered(&id, "late").await;
    let told = [GrabOutcome::Won, GrabOutcome::AlreadyGrabbed];
    assert!(told.contains(&late.outcome()), "{late:?}");
    let has = fleet.processes[0].balance("late").await;
    assert_eq!((has.0, has.1), (10, 0));
    let rest = fleet.rush(&id, (0..120).map(|n| format!("rush-{n}"))).await;
    took_the_rest(&rest, 89, 31);
    fleet.processes[0].audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_ledger_a_redis_that_forgets_everything_takes_no_acknowledged_grab_with_it() {
    let mut fleet = fleet_with(&["--ack", "ledger"], 2).await;
    fleet.processes[0].fund("alice", cny(10_000)).await;
    let sent = fleet.processes[0].send(equal("alice", cny(10), 60)).await;
    let id = sent.envelope_id;
    let mut shares = Vec::new();
    for round in 0..3 {
        for number in 0..10 {
            let grabber = format!("round-{round}-{number}");
            let process = &mut fleet.processes[number % 2];
            shares.push((grabber.clone(), process.win(&id, &grabber).await.number));
        }
        // Both processes lose what they remember, and Redis what it held.
        for process in &mut fleet.processes {
            process.server.kill();
        }
        fleet.redis.kill();
        fleet.redis.restart_empty();
        for place in [0, 1] {
            fleet.again(place, with(&["--ack", "ledger"])).await;
        }
        for process in &fleet.processes {
            process.until_ready().await;
        }
    }
    for (number, (grabber, share)) in shares.iter().enumerate() {
        let process = &mut fleet.processes[number % 2];
        let again = process.grab_until_answered(&id, grabber).await;
        assert_eq!(again.outcome(), GrabOutcome::AlreadyGrabbed, "{grabber}");
        assert_eq!(again.share.unwrap().number, *share, "{grabber}");
    }
    let rest = fleet.rush(&id, (0..40).map(|n| format!("rush-{n}"))).await;
    let taken = took_the_rest(&rest, 30, 10);
    assert!(shares.iter().all(|(_, before)| !taken.contains(before)));
    fleet.processes[0].audit_when_quiet().await;
}
