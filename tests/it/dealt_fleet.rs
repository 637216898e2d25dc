//! Several servers on one Redis and one PostgreSQL give one envelope that is dealt to stripes, and one of them dies:
//! what all of them answered is what one envelope can answer.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use red_envelope_proto::v1::{EnvelopeState, GrabOutcome, GrabResponse};

use crate::crash::Promises;
use crate::dealt::{SHARES, TOTAL, crowd, dealing};
use crate::harness::fleet::{Client, Fleet, asked_around, rush, until};
use crate::harness::record::Record;
use crate::harness::world::grab_of;
use crate::harness::{Start, cny, lucky};
use crate::together::winners;

/// Servers.
const SERVERS: usize = 3;
/// Answers after which one of them dies: some stripes are nearly used up.
const KILLED_AFTER: usize = 40;
/// Answers after which Redis dies: before, while and after shares are gathered.
const REDIS_KILLED_AFTER: [usize; 3] = [15, 40, 55];

async fn a_fleet_that_deals(dying: &Start) -> Fleet {
    let mut fleet = Fleet::of(0).await;
    for _ in 1..SERVERS {
        fleet.join(dealing(Start::default())).await;
    }
    fleet.join(dealing(dying.clone())).await;
    fleet.until_divided().await;
    fleet
}

/// The whole envelope is told alike by everybody, and paid.
async fn all_is_taken_once(fleet: &mut Fleet, id: &str, held: &Promises) {
    let numbers: BTreeSet<_> = held.values().map(|(number, _)| *number).collect();
    assert!(numbers.into_iter().eq(0..SHARES));
    assert_eq!(held.len(), SHARES as usize);
    for process in &mut fleet.processes {
        let closed = process.until(id, "alice", EnvelopeState::Closed).await;
        assert_eq!(closed.progress.unwrap().settled, Some(cny(TOTAL)));
        for (grabber, told) in held {
            let again = process.grab_until_answered(id, grabber).await;
            assert_eq!(again.outcome(), GrabOutcome::AlreadyGrabbed, "{grabber}");
            let share = again.share.unwrap();
            let again = (share.number, share.amount.unwrap().minor_units);
            assert_eq!(again, *told, "{grabber}");
            assert_eq!(process.available(grabber).await, told.1, "{grabber}");
        }
        let none = process.grab_until_answered(id, "nobody").await;
        assert_eq!(none.outcome(), GrabOutcome::Empty);
        process.audit_when_quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_over_three_processes_takes_a_dealt_envelope_while_one_of_them_is_killed() {
    let mut fleet = a_fleet_that_deals(&Start::default()).await;
    fleet.processes[0].fund("alice", cny(TOTAL)).await;
    let sent = fleet.processes[0].send(lucky("alice", cny(TOTAL), SHARES));
    let id = sent.await.envelope_id;
    let (clients, record) = (fleet.clients(), fleet.record.clone());
    let answered = AtomicUsize::new(0);
    let mut victim = fleet.processes.pop().unwrap();
    let strike = async {
        let some = async || answered.load(Ordering::SeqCst) >= KILLED_AFTER;
        until("some have grabbed", some).await;
        victim.server.kill();
    };
    let grabs = counted(&record, &clients, &id, &answered);
    let (answers, ()) = tokio::join!(grabs, strike);
    fleet.processes.push(victim);
    fleet.again(SERVERS - 1, dealing(Start::default())).await;
    let held = winners(&answers);
    // Everybody asks once more, somewhere else.
    let mut clients = fleet.clients();
    clients.reverse();
    let again = winners(&rush(&record, &clients, &id, crowd()).await);
    assert_eq!(again, held);
    all_is_taken_once(&mut fleet, &id, &held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_dies_under_a_crowd_over_three_processes_costs_nobody_a_share() {
    let mut fleet = a_fleet_that_deals(&Start::default()).await;
    fleet.processes[0].fund("alice", cny(TOTAL)).await;
    let sent = fleet.processes[0].send(lucky("alice", cny(TOTAL), SHARES));
    let id = sent.await.envelope_id;
    let (clients, record) = (fleet.clients(), fleet.record.clone());
    let answered = AtomicUsize::new(0);
    let redis = &mut fleet.redis;
    let strike = async {
        for count in REDIS_KILLED_AFTER {
            let some = async || answered.load(Ordering::SeqCst) >= count;
            until("some have grabbed", some).await;
            tokio::task::block_in_place(|| {
                redis.kill();
                redis.restart();
            });
        }
    };
    let grabs = counted(&record, &clients, &id, &answered);
    let (answers, ()) = tokio::join!(grabs, strike);
    let held = winners(&answers);
    let again = winners(&rush(&record, &fleet.clients(), &id, crowd()).await);
    assert_eq!(again, held);
    all_is_taken_once(&mut fleet, &id, &held).await;
}

/// The crowd asks, and the answers are counted.
async fn counted(
    record: &Record,
    clients: &[Client],
    id: &str,
    answered: &AtomicUsize,
) -> Vec<(String, GrabResponse)> {
    let asks = crowd().enumerate().map(async |(number, grabber)| {
        let answer = asked_around(clients, number, |mut client| {
            let (record, grab) = (record.clone(), grab_of(id, &grabber));
            async move { record.grab(&mut client, grab).await }
        });
        let answer = answer.await;
        answered.fetch_add(1, Ordering::SeqCst);
        (grabber.clone(), answer)
    });
    join_all(asks).await
}

async fn it_dies_of_gathering_at(point: &str) {
    let dying = Start {
        abort_at: Some(point.to_owned()),
        ..Start::default()
    };
    let mut fleet = a_fleet_that_deals(&dying).await;
    fleet.processes[0].fund("alice", cny(TOTAL)).await;
    let sent = fleet.processes[0].send(lucky("alice", cny(TOTAL), SHARES));
    let id = sent.await.envelope_id;
    // First through the one that dies of it alone: it is the first one to gather.
    let record = fleet.record.clone();
    let mut client = fleet.processes[SERVERS - 1].envelopes.clone();
    let mut held = Promises::new();
    for grabber in crowd() {
        let Ok(answer) = record.grab(&mut client, grab_of(&id, &grabber)).await else {
            break;
        };
        held.extend(winners(&[(grabber, answer)]));
    }
    assert!(held.len() < SHARES as usize);
    let mut dead = fleet.processes.pop().unwrap();
    assert!(dead.server.crashed().await, "{point}");
    let answers = rush(&record, &fleet.clients(), &id, crowd()).await;
    let told = winners(&answers);
    for (grabber, share) in &held {
        assert_eq!(told.get(grabber), Some(share), "{point}: {grabber}");
    }
    all_is_taken_once(&mut fleet, &id, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_that_a_process_was_gathering_when_it_died_are_gathered_by_the_others() {
    let points = [
        "gather::after_books",
        "gather::between_stripes",
        "gather::before_first",
    ];
    // Each waits for the leases of the dead most of the time.
    join_all(points.map(it_dies_of_gathering_at)).await;
}
