//! Several servers on one Redis and one PostgreSQL: each answers what the others did, any may die, and
//! every grab is paid once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use red_envelope_proto::v1::{EnvelopeState, GrabOutcome, GrabResponse, RecallEnvelopeRequest};
use tokio::time::Instant;

use crate::harness::fleet::{Fleet, rush, shortly};
use crate::harness::world::grab_of;
use crate::harness::{Start, cny, equal, lucky};

/// How long PostgreSQL is away at the most while people grab: half of what sheds their grabs.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// The winners and their shares; nobody has another one's.
pub fn winners(answers: &[(String, GrabResponse)]) -> BTreeMap<String, (u32, i64)> {
    let mut held = BTreeMap::new();
    let mut numbers = BTreeMap::new();
    for (grabber, answer) in answers {
        match answer.outcome() {
            GrabOutcome::Won | GrabOutcome::AlreadyGrabbed => {
                let share = answer.share.clone().unwrap();
                let amount = share.amount.unwrap().minor_units;
                let before = numbers.insert(share.number, grabber.clone());
                assert!(
                    before.is_none_or(|before| before == *grabber),
                    "{}",
                    share.number
                );
                let told = held.insert(grabber.clone(), (share.number, amount));
                assert!(
                    told.is_none_or(|told| told == (share.number, amount)),
                    "{grabber}"
                );
            }
            GrabOutcome::Empty => {}
            other => panic!("{grabber}: {other:?}"),
        }
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_over_three_processes_makes_as_many_winners_as_there_are_shares() {
    let mut fleet = Fleet::of(3).await;
    fleet.processes[0].fund("alice", cny(1_000_000)).await;
    let sent = fleet.processes[0]
        .send(lucky("alice", cny(888_888), 100))
        .await;
    let id = sent.envelope_id;
    let crowd = (0..10_000).map(|number| format!("grabber-{number}"));
    let held = winners(&fleet.rush(&id, crowd).await);
    assert_eq!(held.len(), 100);
    assert_eq!(
        held.values().map(|(_, amount)| amount).sum::<i64>(),
        888_888
    );

    // One who asks a thousand times, everywhere at once.
    let second = fleet.processes[1].send(equal("alice", cny(100), 50)).await;
    let tried_before = fleet.record.grabs();
    let once = std::iter::repeat_n("bob".to_owned(), 1_000);
    let answers = fleet.rush(&second.envelope_id, once).await;
    let unanswered = fleet.record.grabs() - tried_before - answers.len();
    let won = answers
        .iter()
        .filter(|(_, a)| a.outcome() == GrabOutcome::Won);
    assert!(answers.iter().all(|(_, answer)| answer.share.is_some()));
    assert_eq!(winners(&answers).len(), 1);
    // Only a try without an answer may have won what all the others hear of.
    let won = won.count();
    assert!(won == 1 || (won == 0 && unanswered > 0), "{won} won");

    for place in [0, 1, 2] {
        let process = &mut fleet.processes[place];
        process.until(&id, "alice", EnvelopeState::Closed).await;
        for (grabber, (_, amount)) in held.iter().skip(place).step_by(3) {
            assert_eq!(process.available(grabber).await, *amount, "{grabber}");
        }
    }
    fleet.processes[2].audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_an_answer_is_answered_by_another_process() {
    let mut fleet = Fleet::of(2).await;
    fleet.processes[0].fund("alice", cny(100_000)).await;
    let mut asked = lucky("alice", cny(10_000), 10);
    asked.request_id = "the-same".to_owned();
    let mut ids = BTreeSet::new();
    for turn in 0..6 {
        let place = turn % 2;
        let client = &mut fleet.processes[place].envelopes;
        let made = client
            .create_envelope(asked.clone())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(made.replayed, turn > 0, "{turn}");
        ids.insert(made.envelope.unwrap().envelope_id);
    }
    assert_eq!(ids.len(), 1);
    let id = ids.pop_first().unwrap();
    let first = fleet.processes[0].grab(&id, "bob").await;
    assert_eq!(first.outcome(), GrabOutcome::Won);
    let again = fleet.processes[1].grab(&id, "bob").await;
    assert_eq!(again.outcome(), GrabOutcome::AlreadyGrabbed);
    assert_eq!(again.share, first.share);
    for (turn, place) in [1, 0, 1].into_iter().enumerate() {
        let request = RecallEnvelopeRequest {
            envelope_id: id.clone(),
            sender: "alice".to_owned(),
            request_id: "recall-1".to_owned(),
            ..RecallEnvelopeRequest::default()
        };
        let client = &mut fleet.processes[place].envelopes;
        let recalled = client.recall_envelope(request).await.unwrap().into_inner();
        assert_eq!(recalled.replayed, turn > 0, "{turn}");
    }
    let won = first.share.unwrap().amount.unwrap().minor_units;
    fleet.processes[0]
        .until(&id, "alice", EnvelopeState::Closed)
        .await;
    let (available, _, held) = fleet.processes[1].balance("alice").await;
    assert_eq!((available, held), (100_000 - won, 0));
    fleet.processes[1].audit_when_quiet().await;
}

/// How often there is work for a process that is to die of it: while it was held up, another one may have taken all.
const WORKED_MAX: usize = 3;

/// Enough envelopes for both processes to have partitions with grabs, and what their winners are owed.
async fn work_for_both(
    fleet: &mut Fleet,
    point: &str,
    paid: &mut BTreeMap<String, i64>,
) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..32 {
        let sent = fleet.processes[0].send(equal("alice", cny(10), 5)).await;
        ids.push(sent.envelope_id);
    }
    for id in &ids {
        for number in 0..5 {
            let grabber = format!("{point}-{number}");
            fleet.processes[0].win(id, &grabber).await;
            *paid.entry(grabber).or_default() += 10;
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settler_that_dies_at_any_point_leaves_its_work_to_the_others() {
    let points = [
        "settle::before_post",
        "settle::before_commit",
        "settle::after_post",
        "settle::after_settled",
        "close::after_hot",
        "close::after_finish",
    ];
    let mut fleet = Fleet::of(1).await;
    fleet.processes[0].fund("alice", cny(100_000)).await;
    for point in points {
        let dying = Start {
            abort_at: Some(point.to_owned()),
            ..Start::default()
        };
        // The one before is forgotten, and this one is known: else there may be no work for it.
        fleet.until_divided_by(1).await;
        fleet.join(dying).await;
        fleet.until_divided_by(2).await;
        let (mut ids, mut paid) = (Vec::new(), BTreeMap::new());
        for _ in 0..WORKED_MAX {
            ids.extend(work_for_both(&mut fleet, point, &mut paid).await);
            if fleet.processes[1].server.ended_soon().await {
                break;
            }
        }
        assert!(fleet.processes[1].server.crashed().await, "{point}");
        for id in &ids {
            fleet.processes[0]
                .until(id, "alice", EnvelopeState::Closed)
                .await;
        }
        for (grabber, amount) in paid {
            assert_eq!(
                fleet.processes[0].available(&grabber).await,
                amount,
                "{grabber}"
            );
        }
        fleet.processes[0].audit_when_quiet().await;
        fleet.processes.pop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envelopes_that_expire_in_the_middle_of_grabs_are_swept_once() {
    let mut fleet = Fleet::of(2).await;
    fleet.processes[0].fund("alice", cny(100_000)).await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        let mut asked = equal("alice", cny(10), 1_000);
        asked.expires_in = Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        });
        ids.push(fleet.processes[0].send(asked).await.envelope_id);
    }
    let answered = AtomicUsize::new(0);
    let rushes = ids.iter().map(|id| {
        let crowd = (0..125).map(|number| format!("grabber-{number}"));
        rush_until_over(&fleet, id, crowd, &answered)
    });
    let answers = futures_util::future::join_all(rushes).await;
    let mut paid = BTreeMap::<String, i64>::new();
    for answer in answers.into_iter().flatten() {
        if answer.1 {
            *paid.entry(answer.0).or_default() += 10;
        }
    }
    for id in &ids {
        fleet.processes[1]
            .until(id, "alice", EnvelopeState::Closed)
            .await;
    }
    let given: i64 = paid.values().sum();
    assert!(
        0 < given && given < 10_000,
        "the expiry was not in the middle: {given}"
    );
    for (grabber, amount) in &paid {
        assert_eq!(fleet.processes[1].available(grabber).await, *amount);
    }
    assert_eq!(fleet.processes[0].available("alice").await, 100_000 - given);
    fleet.processes[0].audit_when_quiet().await;
}

/// Answers to all grabbers together after which the time of the envelopes is up.
const EXPIRED_AFTER: usize = 300;

/// Who grabbed, and whether there was a share: the envelope may be over. Whoever hears the three hundredth answer
/// has the time be up.
async fn rush_until_over(
    fleet: &Fleet,
    id: &str,
    grabbers: impl Iterator<Item = String>,
    answered: &AtomicUsize,
) -> Vec<(String, bool)> {
    let mut answers = Vec::new();
    for (turn, grabber) in grabbers.enumerate() {
        let mut client = fleet.processes[turn % fleet.processes.len()]
            .envelopes
            .clone();
        let answer = fleet.record.grab(&mut client, grab_of(id, &grabber)).await;
        let answer = answer.unwrap();
        match answer.outcome() {
            GrabOutcome::Won => answers.push((grabber, true)),
            GrabOutcome::Expired => answers.push((grabber, false)),
            other => panic!("{grabber}: {other:?}"),
        }
        if answered.fetch_add(1, Ordering::SeqCst) + 1 == EXPIRED_AFTER {
            fleet.set_clock_ms(61_000);
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_are_restarted_one_after_the_other_fail_nobody_who_repeats() {
    let mut fleet = Fleet::of(3).await;
    fleet.processes[0].fund("alice", cny(1_000_000)).await;
    let id = fleet.processes[0]
        .send(equal("alice", cny(10), 4_000))
        .await
        .envelope_id;
    let mut held = BTreeMap::new();
    // First each is asked to go, then each is killed.
    for (turn, place) in (0..3).chain(0..3).enumerate() {
        let crowd = (0..600).map(|number| format!("g{turn}-{number}"));
        // The one that ends is asked like the others, until it is gone.
        let (clients, record) = (fleet.clients(), fleet.record.clone());
        let mut victim = fleet.processes.remove(place);
        let end = async {
            if turn < 3 {
                assert!(victim.server.stop().await.success());
            } else {
                victim.server.kill();
            }
        };
        let (answers, ()) = tokio::join!(rush(&record, &clients, &id, crowd), end);
        fleet.processes.insert(place, victim);
        held.extend(winners(&answers));
        fleet.again(place, Start::default()).await;
        fleet.processes[place].until_ready().await;
    }
    assert_eq!(held.len(), 3_600);
    fleet.processes[1].audit_when_quiet().await;
    for (number, (grabber, (_, amount))) in held.iter().enumerate() {
        if number % 50 == 0 {
            assert_eq!(fleet.processes[0].available(grabber).await, *amount);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_that_is_killed_under_load_loses_and_doubles_nothing() {
    let mut fleet = Fleet::of(2).await;
    fleet.processes[0].fund("alice", cny(1_000_000)).await;
    let id = fleet.processes[0]
        .send(equal("alice", cny(10), 6_000))
        .await
        .envelope_id;
    // Each process has met the envelope: it needs no book to grant from it.
    for place in [0, 1] {
        fleet.processes[place]
            .win(&id, &format!("first-{place}"))
            .await;
    }
    let (mut held, mut asked) = (BTreeMap::new(), 0);
    for life in 0..3 {
        let crowd: Vec<_> = (0..1_000)
            .map(|number| format!("g{life}-{number}"))
            .collect();
        let Fleet {
            processes,
            postgres,
            record,
            ..
        } = &mut fleet;
        let strike = async {
            shortly().await;
            postgres.kill();
        };
        let clients: Vec<_> = processes.iter().map(|p| p.envelopes.clone()).collect();
        let grabs = async {
            let (mut answers, began) = (Vec::new(), Instant::now());
            for (number, grabber) in crowd.into_iter().enumerate() {
                // What waits for too long for its books is shed, and this is not about that.
                if began.elapsed() > AWAY_MAX {
                    break;
                }
                let mut client = clients[number % clients.len()].clone();
                let answer = record.grab(&mut client, grab_of(&id, &grabber)).await;
                answers.push((grabber, answer.unwrap()));
            }
            answers
        };
        // Grabs don't wait for the books: they go on while PostgreSQL is down.
        let (answers, ()) = tokio::join!(grabs, strike);
        asked += answers.len();
        held.extend(winners(&answers));
        tokio::task::block_in_place(|| fleet.postgres.start_again());
    }
    assert_eq!(held.len(), asked);
    for process in &fleet.processes {
        process.until_ready().await;
    }
    fleet.processes[0].audit_when_quiet().await;
    for (number, (grabber, (_, amount))) in held.iter().enumerate() {
        if number % 50 == 0 {
            assert_eq!(
                fleet.processes[1].available(grabber).await,
                *amount,
                "{grabber}"
            );
        }
    }
}
