//! Books that are restored to an earlier moment: what was used since then does not come back, what the
//! books know is paid as it was told, and what they don't know is told to the operator.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use red_envelope::domain::id::EnvelopeId;
use red_envelope_proto::v1::{
    Envelope, EnvelopeState, GetFairnessProofRequest, GetFairnessProofResponse,
    RecallEnvelopeRequest, UnfreezeEnvelopeRequest,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::fleet::{Fleet, a_moment, seen_by};
use crate::harness::server::PROGRAM;
use crate::harness::world::{grab_of, in_time, unless_unavailable};
use crate::harness::{Start, World, cny, equal, lucky};

/// After a close the hot store forgets an envelope: ten minutes, and a second.
const FORGOTTEN_AFTER_MS: i64 = 601_000;
/// Looks until it is forgotten, of a fifth of a second each: a minute.
const LOOKS_MAX: u32 = 300;

/// What the operator was told.
pub fn told(output: &Output) -> Value {
    let (said, why) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{why}", output.status);
    serde_json::from_slice(said).unwrap()
}

/// The envelopes of a list.
pub fn ids(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap().iter();
    let mut ids: Vec<_> = list
        .map(|item| item["envelope_id"].as_str().or(item.as_str()).unwrap())
        .collect();
    ids.sort_unstable();
    ids
}

/// Grants of an unknown envelope: share, amount, grabber.
pub fn grants(stranger: &Value) -> Vec<(u64, i64, &str)> {
    let grants = stranger["grants"].as_array().unwrap().iter();
    grants
        .map(|grant| {
            let amount = grant["amount_minor"].as_i64().unwrap();
            let grabber = grant["grabber"].as_str().unwrap();
            (grant["share"].as_u64().unwrap(), amount, grabber)
        })
        .collect()
}

pub async fn recall(world: &mut World, envelope: &Envelope) {
    let request = RecallEnvelopeRequest {
        envelope_id: envelope.envelope_id.clone(),
        sender: envelope.sender.clone(),
        request_id: format!("recall-{}", envelope.envelope_id),
        ..RecallEnvelopeRequest::default()
    };
    let record = world.record.clone();
    seen_by(in_time(), "it is recalled", async || {
        let recalled = record.recall(&mut world.envelopes, request.clone()).await;
        unless_unavailable(recalled)
    })
    .await;
    let (id, sender) = (&envelope.envelope_id, &envelope.sender);
    world.until(id, sender, EnvelopeState::Closed).await;
}

pub async fn proof(world: &mut World, envelope: &Envelope) -> GetFairnessProofResponse {
    let request = GetFairnessProofRequest {
        envelope_id: envelope.envelope_id.clone(),
        viewer: envelope.sender.clone(),
        ..GetFairnessProofRequest::default()
    };
    let proof = seen_by(in_time(), "a proof", async || {
        unless_unavailable(world.envelopes.get_fairness_proof(request.clone()).await)
    });
    proof.await.into_inner()
}

/// Whether the program of anybody believes a proof.
pub fn verifies(folder: &Path, proof: &GetFairnessProofResponse) -> bool {
    let file = folder.join("proof.json");
    std::fs::write(&file, &proof.proof_json).unwrap();
    let asked = Command::new(PROGRAM).arg("verify").arg(&file).output();
    asked.unwrap().status.success()
}

/// Envelopes and what people were told of them, before and after the backup.
struct Story {
    /// Grabbed before and after; the last grab is in the outbox only.
    goes_on: Envelope,
    /// Recalled after the backup.
    recalled: Envelope,
    /// Its last share was taken after the backup.
    emptied: Envelope,
    /// Closed after the backup and forgotten by Redis.
    forgotten: Envelope,
    /// Funded after the backup; the last grab is in the outbox only.
    unknown: Envelope,
    /// Funded and closed after the backup.
    unknown_closed: Envelope,
    /// The proof of that one.
    proof: GetFairnessProofResponse,
    /// Of the known envelopes: who was told how much.
    winners: Vec<(&'static str, i64)>,
}

pub async fn won(
    world: &mut World,
    envelope: &Envelope,
    grabber: &'static str,
) -> (&'static str, i64) {
    let share = world.win(&envelope.envelope_id, grabber).await;
    (grabber, share.amount.unwrap().minor_units)
}

/// Plays until the processes are dead; answers what people believe, and the backup of the middle.
async fn play(fleet: &mut Fleet) -> (Story, std::path::PathBuf) {
    let mut winners = Vec::new();
    let world = &mut fleet.processes[0];
    world.fund("alice", cny(100_000)).await;
    let goes_on = world.send(lucky("alice", cny(10_000), 10)).await;
    let recalled = world.send(lucky("alice", cny(5_000), 5)).await;
    let emptied = world.send(equal("alice", cny(100), 2)).await;
    let forgotten = world.send(equal("alice", cny(70), 3)).await;
    winners.push(won(world, &goes_on, "bob").await);
    winners.push(won(world, &emptied, "bea").await);
    let _settled = world.audit_when_quiet().await;
    let database = fleet.database().to_owned();
    let backup = tokio::task::block_in_place(|| fleet.postgres.dump(&database));

    let world = &mut fleet.processes[1];
    // Who won this one is in no store any more when the books are restored.
    won(world, &forgotten, "lost").await;
    recall(world, &forgotten).await;
    fleet.set_clock_ms(FORGOTTEN_AFTER_MS);
    until_forgotten(fleet, &forgotten).await;
    // Redis goes on to epochs of which the backup knows nothing.
    for _ in 0..2 {
        fleet.redis.restart();
        fleet.record.replaced();
        let look = goes_on.envelope_id.as_str();
        fleet.processes[1].grab_until_answered(look, "bob").await;
    }
    let world = &mut fleet.processes[1];
    winners.push(won(world, &goes_on, "carol").await);
    winners.push(won(world, &recalled, "dave").await);
    recall(world, &recalled).await;
    winners.push(won(world, &emptied, "erin").await);
    let (id, sender) = (&emptied.envelope_id, &emptied.sender);
    world.until(id, sender, EnvelopeState::Closed).await;

    let world = &mut fleet.processes[1];
    world.fund("zoe", cny(5_000)).await;
    let unknown_closed = world.send(lucky("zoe", cny(300), 3)).await;
    won(world, &unknown_closed, "gus").await;
    recall(world, &unknown_closed).await;
    let proof = proof(world, &unknown_closed).await;
    let unknown = world.send(equal("zoe", cny(200), 4)).await;
    won(world, &unknown, "hana").await;
    let _settled = world.audit_when_quiet().await;
    into_the_last_epoch(fleet, &[(&goes_on, "bob"), (&unknown, "hana")]).await;
    // The books are away: what is told now stands in the outbox only, both in entries of their own.
    fleet.postgres.pause();
    let world = &mut fleet.processes[1];
    winners.push(won(world, &goes_on, "judy").await);
    won(world, &unknown, "ivan").await;
    for process in &mut fleet.processes {
        process.server.kill();
    }
    fleet.postgres.resume();
    let story = Story {
        goes_on,
        recalled,
        emptied,
        forgotten,
        unknown,
        unknown_closed,
        proof,
        winners,
    };
    (story, backup)
}

/// Each process registers a Redis that was restarted, in an epoch of its own: envelopes are brought into the
/// last one by those who hold shares of them, while the books are there.
async fn into_the_last_epoch(fleet: &mut Fleet, held: &[(&Envelope, &str)]) {
    for process in &mut fleet.processes {
        process.until_ready().await;
    }
    for (envelope, who) in held {
        let id = envelope.envelope_id.as_str();
        fleet.processes[1].grab_until_answered(id, who).await;
    }
}

async fn until_forgotten(fleet: &Fleet, envelope: &Envelope) {
    let pattern = format!("re1:*:g:{}", envelope.envelope_id);
    for _ in 0..LOOKS_MAX {
        let found = fleet.redis.command(&[b"KEYS", pattern.as_bytes()]);
        if found == redis::Value::Array(Vec::new()) {
            return;
        }
        a_moment().await;
    }
    panic!("{} was not forgotten", envelope.envelope_id);
}

/// The older books in the place of those that were lost.
fn restore(fleet: &Fleet, backup: &Path) {
    let database = fleet.database();
    // What the dead processes were connected with ends by itself, a moment later.
    fleet.postgres.sql(
        "postgres",
        &format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
        ),
    );
    fleet.postgres.restore(database, backup);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn books_restored_behind_a_redis_that_went_on_pay_what_was_told_and_list_the_rest() {
    let mut fleet = Fleet::of(2).await;
    let (story, backup) = play(&mut fleet).await;
    let report = tokio::task::block_in_place(|| {
        restore(&fleet, &backup);
        told(&fleet.processes[0].server.restored(&fleet.flags()))
    });

    // The operator knows who was told what of envelopes that nobody can be paid from.
    let mut strangers = vec![
        story.unknown.envelope_id.as_str(),
        story.unknown_closed.envelope_id.as_str(),
    ];
    strangers.sort_unstable();
    assert_eq!(ids(&report["unknown"]), strangers, "{report:#}");
    let unknown = report["unknown"].as_array().unwrap().iter();
    let unknown = unknown.clone().find(|s| s["total_minor"] == json!(800));
    assert_eq!(
        grants(unknown.unwrap()),
        [(0, 200, "hana"), (1, 200, "ivan")]
    );
    let mut repaired = vec![
        story.goes_on.envelope_id.as_str(),
        story.recalled.envelope_id.as_str(),
        story.emptied.envelope_id.as_str(),
    ];
    repaired.sort_unstable();
    assert_eq!(ids(&report["repaired"]), repaired, "{report:#}");
    assert_eq!(
        ids(&report["frozen"]),
        [story.forgotten.envelope_id.as_str()]
    );
    assert_eq!(report["left"], json!([]));

    serve_again(&mut fleet).await;
    what_the_books_know_is_as_it_was_told(&mut fleet, &story).await;
    what_they_do_not_know_is_gone(&mut fleet, &story, &report).await;
    fleet.processes[1].audit_when_quiet().await;
}

async fn serve_again(fleet: &mut Fleet) {
    fleet.record.replaced();
    for place in [0, 1] {
        fleet.again(place, Start::default()).await;
        fleet.processes[place].until_ready().await;
    }
}

async fn what_the_books_know_is_as_it_was_told(fleet: &mut Fleet, story: &Story) {
    for ended in [&story.recalled, &story.emptied] {
        let world = &mut fleet.processes[1];
        let id = &ended.envelope_id;
        world.until(id, "alice", EnvelopeState::Closed).await;
    }
    let mut given = 0;
    for (grabber, amount) in &story.winners {
        let world = &mut fleet.processes[0];
        world.until_available(grabber, *amount).await;
        given += amount;
    }
    // Nobody takes a share a second time, whichever is free.
    let id = &story.goes_on.envelope_id;
    let kim = won(&mut fleet.processes[0], &story.goes_on, "kim").await;
    let again = fleet.processes[1].win(id, "lea").await;
    given += kim.1 + again.amount.unwrap().minor_units;
    recall(&mut fleet.processes[0], &story.goes_on).await;

    // What Redis forgot stands still until an operator has decided.
    let frozen = fleet.processes[1]
        .try_grab(grab_of(&story.forgotten.envelope_id, "mia"))
        .await;
    assert_eq!(frozen.unwrap_err().code(), Code::Unavailable);
    let unfreeze = UnfreezeEnvelopeRequest {
        envelope_id: story.forgotten.envelope_id.clone(),
        operator: "olga".to_owned(),
        reason: "its winner was paid by hand".to_owned(),
        ..UnfreezeEnvelopeRequest::default()
    };
    let world = &mut fleet.processes[0];
    world.admin.unfreeze_envelope(unfreeze).await.unwrap();
    recall(world, &story.forgotten).await;
    assert_eq!(world.balance("alice").await, (100_000 - given, 0, 0));
}

async fn what_they_do_not_know_is_gone(fleet: &mut Fleet, story: &Story, report: &Value) {
    for unknown in [&story.unknown, &story.unknown_closed] {
        let late = fleet.processes[1]
            .try_grab(grab_of(&unknown.envelope_id, "nora"))
            .await;
        assert_eq!(late.unwrap_err().code(), Code::NotFound);
    }
    for grabber in ["gus", "hana", "ivan", "zoe"] {
        assert_eq!(fleet.processes[0].available(grabber).await, 0, "{grabber}");
    }
    // A new envelope has nothing of an old one, and an old proof says nothing of it.
    let first = report["leaves"][0]["first_leaf_number"].as_u64().unwrap();
    let world = &mut fleet.processes[0];
    world.fund("zoe", cny(5_000)).await;
    let fresh = world.send(lucky("zoe", cny(300), 3)).await;
    let old = story.proof.commitment.as_ref().unwrap();
    let new = fresh.fairness.as_ref().unwrap();
    assert_eq!(new.leaf_number, first);
    assert_ne!(new.leaf_hash, old.leaf_hash);
    assert_ne!(new.batch_root, old.batch_root);
    recall(world, &fresh).await;
    let revealed = proof(world, &fresh).await;
    assert_ne!(revealed.server_seed, story.proof.server_seed);
    let used = BTreeSet::from([
        &story.goes_on.envelope_id,
        &story.unknown.envelope_id,
        &story.unknown_closed.envelope_id,
    ]);
    assert!(!used.contains(&fresh.envelope_id));
    let folder = tempfile::tempdir().unwrap();
    assert!(verifies(folder.path(), &revealed) && verifies(folder.path(), &story.proof));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_act_that_dies_is_repeated_and_tells_the_same() {
    let mut fleet = Fleet::of(1).await;
    let world = &mut fleet.processes[0];
    world.fund("alice", cny(10_000)).await;
    let known = world.send(equal("alice", cny(100), 4)).await;
    won(world, &known, "bob").await;
    world.audit_when_quiet().await;
    let database = fleet.database().to_owned();
    let backup = tokio::task::block_in_place(|| fleet.postgres.dump(&database));
    let world = &mut fleet.processes[0];
    won(world, &known, "carol").await;
    let unknown = world.send(equal("alice", cny(50), 4)).await;
    won(world, &unknown, "gus").await;
    world.server.stop().await;
    let mut firsts = BTreeSet::new();
    tokio::task::block_in_place(|| {
        restore(&fleet, &backup);
        let server = &fleet.processes[0].server;
        for point in ["restored::after_books", "restored::after_telling"] {
            let died = server.restored_until(point, &fleet.flags());
            assert!(died.status.signal().is_some(), "{point}: {}", died.status);
        }
        let report = told(&server.restored(&fleet.flags()));
        assert_eq!(ids(&report["unknown"]), [unknown.envelope_id.as_str()]);
        assert_eq!(grants(&report["unknown"][0]), [(0, 50, "gus")]);
        firsts.insert(report["leaves"][0]["first_leaf_number"].as_u64());
        // And once more, after it ended well: nothing is left to tell.
        let report = told(&server.restored(&fleet.flags()));
        for nothing in ["unknown", "repaired", "frozen", "left", "disputed"] {
            assert_eq!(report[nothing], json!([]), "{report:#}");
        }
        firsts.insert(report["leaves"][0]["first_leaf_number"].as_u64());
    });
    assert_eq!(firsts.len(), 2);
    fleet.record.replaced();
    fleet.again(0, Start::default()).await;
    let world = &mut fleet.processes[0];
    world.until_ready().await;
    for (grabber, amount) in [("bob", 100), ("carol", 100), ("gus", 0)] {
        assert_eq!(world.available(grabber).await, amount, "{grabber}");
    }
    assert_eq!(world.balance("alice").await, (9_600, 0, 200));
    world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_redis_did_not_go_on_however_often_the_act_is_repeated() {
    let mut fleet = Fleet::of(1).await;
    let world = &mut fleet.processes[0];
    world.fund("alice", cny(10_000)).await;
    let known = world.send(equal("alice", cny(100), 4)).await;
    won(world, &known, "bob").await;
    world.audit_when_quiet().await;
    let database = fleet.database().to_owned();
    let backup = tokio::task::block_in_place(|| fleet.postgres.dump(&database));
    fleet.processes[0].server.stop().await;
    tokio::task::block_in_place(|| {
        restore(&fleet, &backup);
        fleet.redis.command(&[b"FLUSHALL"]);
        fleet.redis.command(&[b"FUNCTION", b"FLUSH"]);
        let server = &fleet.processes[0].server;
        let died = server.restored_until("restored::after_telling", &fleet.flags());
        assert!(died.status.signal().is_some(), "{}", died.status);
        for _ in 0..2 {
            let report = told(&server.restored(&fleet.flags()));
            for nothing in ["unknown", "repaired", "frozen", "left", "disputed"] {
                assert_eq!(report[nothing], json!([]), "{report:#}");
            }
        }
    });
    fleet.record.replaced();
    fleet.again(0, Start::default()).await;
    let world = &mut fleet.processes[0];
    world.until_ready().await;
    won(world, &known, "carol").await;
    world.until_available("carol", 100).await;
    world.audit_when_quiet().await;
}

/// Takes every key of an envelope out of Redis, and its place among the others.
fn lose(fleet: &Fleet, envelope: &Envelope) {
    let id: EnvelopeId = envelope.envelope_id.parse().unwrap();
    let keys = |pattern: &str| {
        let found = fleet.redis.command(&[b"KEYS", pattern.as_bytes()]);
        redis::from_redis_value::<Vec<Vec<u8>>>(found).unwrap()
    };
    let own = keys(&format!("re1:*:{id}"));
    assert!(!own.is_empty());
    for key in own {
        fleet.redis.command(&[b"UNLINK", &key]);
    }
    for index in keys("re1:*:index") {
        fleet.redis.command(&[b"ZREM", &index, &id.to_bytes()]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debt_of_an_unknown_envelope_that_redis_lost_is_told_and_makes_no_dead_letter() {
    let mut fleet = Fleet::of(1).await;
    fleet.processes[0].fund("alice", cny(10_000)).await;
    let database = fleet.database().to_owned();
    let backup = tokio::task::block_in_place(|| fleet.postgres.dump(&database));
    let world = &mut fleet.processes[0];
    let unknown = world.send(equal("alice", cny(50), 4)).await;
    won(world, &unknown, "hana").await;
    world.audit_when_quiet().await;
    fleet.postgres.pause();
    let world = &mut fleet.processes[0];
    won(world, &unknown, "gus").await;
    world.server.kill();
    fleet.postgres.resume();
    let report = tokio::task::block_in_place(|| {
        restore(&fleet, &backup);
        lose(&fleet, &unknown);
        told(&fleet.processes[0].server.restored(&fleet.flags()))
    });
    assert_eq!(ids(&report["unknown"]), [unknown.envelope_id.as_str()]);
    let stranger = &report["unknown"][0];
    assert_eq!(
        (&stranger["sender"], &stranger["stays"]),
        (&json!(null), &json!(false))
    );
    assert_eq!(grants(stranger), [(1, 50, "gus")]);
    fleet.record.replaced();
    fleet.again(0, Start::default()).await;
    fleet.processes[0].until_ready().await;
    fleet.processes[0].audit_when_quiet().await;
}
