//! Bad days of an envelope that is dealt to stripes: the server dies while its shares are gathered, whoever waits for
//! that goes away, and Redis is full, emptied, killed, or loses a key, before and after that.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use red_envelope_proto::v1::{EnvelopeState, GrabOutcome};
use redis::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::{Code, Request};

use crate::crash::Promises;
use crate::dealt::{Phase, STRIPES, Stage, TOTAL, crowd, dealing};
use crate::harness::fleet::{Client, rush};
use crate::harness::world::grab_of;
use crate::harness::{Start, World};
use crate::redis_faults::{MISSING_POSTED_WITHIN, recall, until_counted};
use crate::redis_full::{FULL, memory_max};

/// Whoever gathers shares comes to no end, once; and the stripes that were not halted then.
const ONCE: &str = "gather::between_stripes=3*off->1*return->off";
const GIVING: [u16; 4] = [0, 5, 6, 7];

/// Less than a gathering takes where it waits at each stripe.
const HASTE: Duration = Duration::from_secs(1);

/// Each of the crowd asks once, all at the same time: the shares of those who were told of one.
async fn asked_once(stage: &Stage) -> Promises {
    let mut asked = JoinSet::new();
    for grabber in crowd() {
        let (record, id) = (stage.world.record.clone(), stage.id.clone());
        let mut client: Client = stage.world.envelopes.clone();
        asked.spawn(async move {
            let answer = record.grab(&mut client, grab_of(&id, &grabber)).await;
            let answer = answer.ok()?;
            let share = answer.share.clone();
            let share = share.map(|s| (s.number, s.amount.unwrap().minor_units));
            assert_eq!(share.is_some(), answer.outcome() == GrabOutcome::Won);
            Some((grabber, share?))
        });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_while_shares_are_gathered_costs_nobody_his_own() {
    for point in [
        "gather::after_books",
        "gather::between_stripes",
        "gather::before_first",
    ] {
        let dying = Start {
            abort_at: Some(point.to_owned()),
            ..Start::default()
        };
        let mut stage = Stage::of(World::start(dealing(dying)).await).await;
        stage.held = asked_once(&stage).await;
        assert!(stage.world.server.crashed().await, "{point}");
        let mut stage = stage.restarted().await;
        stage.the_answers_stay().await;
        stage.ends_with(crowd()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_before_it_comes_to_the_end_of_a_gathering_costs_nobody_his_own() {
    for points in [
        "gather::after_books=return",
        "gather::between_stripes=5*off->return",
        "gather::before_first=return",
    ] {
        let stuck = Start {
            points: Some(points.to_owned()),
            ..Start::default()
        };
        let mut stage = Stage::of(World::start(dealing(stuck)).await).await;
        stage.held = asked_once(&stage).await;
        stage.the_answers_stay().await;
        stage.the_counts_are_right().await;
        stage.world.server.kill();
        let mut stage = stage.restarted().await;
        stage.the_answers_stay().await;
        stage.ends_with(crowd()).await;
    }
}

/// The books hear nothing of what some more win, until what this answers is dropped.
async fn some_are_owed(stage: &mut Stage) -> (rusqlite::Connection, BTreeMap<String, i64>) {
    stage.world.audit_when_quiet().await;
    let books = stage.world.server.hold_the_books();
    let before = stage.held.clone();
    stage.some_try("owed", GIVING).await;
    let owed = stage.held.iter();
    let owed = owed.filter(|(who, _)| !before.contains_key(*who));
    let owed: BTreeMap<_, _> = owed.map(|(who, told)| (who.clone(), told.1)).collect();
    assert_eq!(owed.len(), GIVING.len());
    (books, owed)
}

async fn a_flush_costs_nobody_his_own(phase: Phase) {
    let once = Start {
        points: (phase == Phase::HalfGathered).then(|| ONCE.to_owned()),
        ..Start::default()
    };
    let mut stage = Stage::at(phase, once).await;
    let (books, owed) = some_are_owed(&mut stage).await;
    stage.world.redis().command(&[b"FLUSHALL"]);
    drop(books);
    let latest = Instant::now() + MISSING_POSTED_WITHIN;
    stage.the_answers_stay().await;
    stage.the_counts_are_right().await;
    stage.world.until_all_are_paid_by(latest, &owed).await;
    stage.ends_with(crowd()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_redis_is_given_a_dealt_envelope_back_from_the_books_and_the_server() {
    // Each waits for its reconciler most of the time.
    join_all(Phase::ALL.map(a_flush_costs_nobody_his_own)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settled_shares_of_a_dealt_envelope_outlive_redis_and_the_server_at_once() {
    for phase in Phase::ALL {
        let mut stage = Stage::at(phase, Start::default()).await;
        stage.world.audit_when_quiet().await;
        stage.world.server.kill();
        stage.world.redis().command(&[b"FLUSHALL"]);
        let mut stage = stage.restarted().await;
        stage.the_answers_stay().await;
        stage.the_counts_are_right().await;
        stage.ends_with(crowd()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_loses_no_acknowledged_share_of_a_dealt_envelope() {
    for phase in Phase::ALL {
        let mut stage = Stage::at(phase, Start::default()).await;
        stage.some_try("before", 0..STRIPES).await;
        stage.world.redis().kill();
        stage.world.redis().restart();
        stage.world.until_ready().await;
        stage = match phase {
            Phase::HalfGathered => stage.restarted().await,
            _ => stage,
        };
        stage.the_answers_stay().await;
        stage.the_counts_are_right().await;
        stage.ends_with(crowd()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_killed_under_a_crowd_loses_no_acknowledged_share_of_a_dealt_envelope() {
    for phase in [Phase::Dealt, Phase::Gathered] {
        let mut stage = Stage::at(phase, Start::default()).await;
        let (record, id) = (stage.world.record.clone(), stage.id.clone());
        let clients = [stage.world.envelopes.clone()];
        let strike = async {
            tokio::task::yield_now().await;
            tokio::task::block_in_place(|| {
                stage.world.redis().kill();
                stage.world.redis().restart();
            });
        };
        let (answers, ()) = tokio::join!(rush(&record, &clients, &id, crowd()), strike);
        stage.are_told(&answers);
        stage.all_is_taken_and_paid().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_of_each_stripe_may_be_deleted() {
    for phase in [Phase::Dealt, Phase::Gathered] {
        for letter in ["g", "s", "t"] {
            let mut stage = Stage::at(phase, Start::default()).await;
            let keys = stage.keys(letter);
            assert_eq!(keys.len(), usize::from(STRIPES));
            stage.world.audit_when_quiet().await;
            for key in keys {
                let lost = stage.world.redis().command(&[b"DEL", &key]);
                assert_eq!(lost, Value::Int(1));
                stage.the_answers_stay().await;
                stage.the_counts_are_right().await;
            }
            stage.ends_with(crowd()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gathering_goes_on_where_whoever_began_it_goes_away() {
    let slow = Start {
        points: Some("gather::between_stripes=sleep(400)".to_owned()),
        ..Start::default()
    };
    let mut stage = Stage::at(Phase::Dealt, slow).await;
    let next = stage.is_used_up().await;
    let mut grab = Request::new(grab_of(&stage.id, &next));
    grab.set_timeout(HASTE);
    let status = stage.world.envelopes.grab(grab).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{status}"
    );
    // Nobody else asks.
    let gathered = "red_envelope_envelopes_gathered_total";
    until_counted(&stage.world, gathered, 1.0).await;
    stage.all_win([next]).await;
    stage.the_answers_stay().await;
    stage.ends_with(crowd()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_full_when_shares_are_gathered_keeps_its_word_and_goes_on_when_it_is_not() {
    for phase in [Phase::Dealt, Phase::HalfGathered] {
        let mut stage = Stage::at(phase, Start::default()).await;
        let next = match phase {
            Phase::Dealt => stage.is_used_up().await,
            _ => {
                stage = stage.restarted().await;
                "tired".to_owned()
            }
        };
        memory_max(&stage.world, FULL);
        for grabber in [next.as_str(), "newcomer"] {
            let grab = grab_of(&stage.id, grabber);
            let refused = stage.world.try_grab(grab).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        }
        stage.the_answers_stay().await;
        stage.the_counts_are_right().await;
        memory_max(&stage.world, "0");
        stage.world.until_ready().await;
        stage.ends_with(crowd()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dealt_envelope_ends_in_a_redis_that_is_full() {
    for phase in Phase::ALL {
        let mut stage = Stage::at(phase, Start::default()).await;
        memory_max(&stage.world, FULL);
        recall(&mut stage.world, &stage.id).await.unwrap();
        let told: i64 = stage.held.values().map(|(_, amount)| amount).sum();
        let id = stage.id.clone();
        stage.world.until(&id, "alice", EnvelopeState::Closed).await;
        assert_eq!(
            stage.world.available("alice").await,
            TOTAL - told,
            "{phase:?}"
        );
        memory_max(&stage.world, "0");
        stage.world.until_ready().await;
        stage.closes().await;
    }
}
