//! Books that are restored to a moment before the shares of a dealt envelope were gathered, or before it was sent,
//! behind a Redis that went on.

use futures_util::future::join_all;
use red_envelope_proto::v1::GrabOutcome;
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;

use crate::dealt::{EARLY, HALTS, Phase, STRIPES, Stage, TOTAL, crowd, dealing};
use crate::harness::world::grab_of;
use crate::harness::{Start, World, cny};
use crate::redis_faults::recall;
use crate::restored::{grants, ids, told};
use crate::restored_folder::{copy, restore_ledger};

/// Whoever gathers shares comes to no end where this phase is to be reached.
fn reaching(phase: Phase) -> Start {
    Start {
        points: (phase == Phase::HalfGathered).then(|| HALTS.to_owned()),
        ..Start::default()
    }
}

/// The books as they are now. The server has ended.
async fn backup(world: &mut World) -> TempDir {
    world.audit_when_quiet().await;
    world.server.stop().await;
    let backup = tempfile::tempdir().unwrap();
    copy(&world.server.data_folder(), &backup.path().join("data"));
    backup
}

/// The server dies, and the books are those of the backup. What the operator is told of it.
fn restore(world: &mut World, backup: &TempDir) -> serde_json::Value {
    world.server.kill();
    let (kept, lives) = (backup.path().join("data"), world.server.data_folder());
    restore_ledger(&kept, &lives);
    let start = Start::default().reaching(world.redis.as_ref());
    tokio::task::block_in_place(|| told(&world.server.restored(&start.flags)))
}

/// Books of when every stripe gave shares, behind a Redis in which the envelope has come so far, and was `recalled`.
async fn books_from_before(phase: Phase, recalled: bool) {
    let world = World::start(dealing(Start::default())).await;
    let mut stage = Stage::of(world).await;
    stage.some_of_each("early", EARLY).await;
    let backup = backup(&mut stage.world).await;
    let mut stage = stage.restarted_as(reaching(phase)).await;
    stage.reaches(phase).await;
    stage.some_try("late", 0..STRIPES).await;
    if recalled {
        recall(&mut stage.world, &stage.id).await.unwrap();
    }
    let report = restore(&mut stage.world, &backup);
    assert_eq!(ids(&report["repaired"]), [stage.id.as_str()], "{report:#}");
    for nothing in ["unknown", "frozen", "left", "disputed"] {
        assert_eq!(report[nothing], json!([]), "{report:#}");
    }
    let mut stage = stage.restarted().await;
    stage.the_answers_stay().await;
    stage.the_counts_are_right().await;
    if !recalled {
        return stage.ends_with(crowd()).await;
    }
    stage.closes().await;
    let over = stage.world.grab(&stage.id, "nobody").await.outcome();
    assert_eq!(over, GrabOutcome::Recalled);
    let told: i64 = stage.held.values().map(|(_, amount)| amount).sum();
    assert_eq!(stage.world.available("alice").await, TOTAL - told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn books_that_do_not_know_that_shares_were_gathered_pay_everybody_what_he_was_told() {
    join_all(Phase::ALL.map(|phase| books_from_before(phase, false))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_an_end_that_they_have_forgotten_cost_anybody_a_share_of_a_dealt_envelope() {
    join_all(Phase::ALL.map(|phase| books_from_before(phase, true))).await;
}

/// Books of before it was sent.
async fn books_that_do_not_know_it(phase: Phase) {
    let mut world = World::start(dealing(Start::default())).await;
    world.fund("zoe", cny(1)).await;
    let backup = backup(&mut world).await;
    let world = world.restarted(dealing(reaching(phase))).await;
    let mut stage = Stage::of(world).await;
    stage.some_of_each("early", EARLY).await;
    stage.reaches(phase).await;
    let report = restore(&mut stage.world, &backup);
    assert_eq!(ids(&report["unknown"]), [stage.id.as_str()], "{report:#}");
    // The operator is told of everybody who was told of a share.
    let mut believed: Vec<_> = stage.held.iter().collect();
    believed.sort_by_key(|(_, (number, _))| *number);
    let believed = believed
        .into_iter()
        .map(|(who, (number, amount))| (u64::from(*number), *amount, who.as_str()));
    let listed = grants(&report["unknown"][0]);
    assert_eq!(listed, believed.collect::<Vec<_>>(), "{phase:?}");
    assert!(stage.keys("*").is_empty(), "it has left Redis");
    let mut stage = stage.restarted().await;
    let late = stage.world.try_grab(grab_of(&stage.id, "nobody")).await;
    assert_eq!(late.unwrap_err().code(), Code::NotFound);
    stage.world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_dealt_envelope_that_they_do_not_know_every_share_is_told_and_no_stripe_stays() {
    join_all(Phase::ALL.map(books_that_do_not_know_it)).await;
}
