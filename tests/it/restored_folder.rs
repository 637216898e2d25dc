//! A data folder that is restored from its copy: the embedded store and its books.

use std::path::Path;
use std::process::Command;

use red_envelope::domain::id::EnvelopeId;
use red_envelope_proto::v1::Envelope;
use serde_json::json;

use crate::harness::record::Record;
use crate::harness::{Start, World, cny, equal, lucky};
use crate::restored::{grants, ids, proof, recall, told, verifies, won};

/// The id without its first two bytes, the day: midnight may lie between two envelopes.
fn unguessable(envelope: &Envelope) -> Vec<u8> {
    let id: EnvelopeId = envelope.envelope_id.parse().unwrap();
    id.to_bytes()[2..].to_vec()
}

fn leaf_of(envelope: &Envelope) -> u64 {
    envelope.fairness.as_ref().unwrap().leaf_number
}

/// Older books in a folder whose embedded store went on: as if only one file had been restored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_ledger_beside_a_newer_embedded_store_is_put_right() {
    let mut world = World::new().await;
    world.fund("alice", cny(10_000)).await;
    let known = world.send(equal("alice", cny(100), 4)).await;
    won(&mut world, &known, "bob").await;
    world.audit_when_quiet().await;
    world.server.stop().await;
    let backup = tempfile::tempdir().unwrap();
    let (kept, lives) = (backup.path().join("data"), world.server.data_folder());
    copy(&lives, &kept);
    world = world.restarted(Start::default()).await;
    won(&mut world, &known, "carol").await;
    let unknown = world.send(equal("alice", cny(50), 4)).await;
    won(&mut world, &unknown, "gus").await;
    world.server.stop().await;
    restore_ledger(&kept, &lives);
    let report = tokio::task::block_in_place(|| told(&world.server.restored(&[])));
    assert_eq!(ids(&report["unknown"]), [unknown.envelope_id.as_str()]);
    assert_eq!(grants(&report["unknown"][0]), [(0, 50, "gus")]);
    assert_eq!(ids(&report["repaired"]), [known.envelope_id.as_str()]);
    world = world.restarted(Start::default()).await;
    for (grabber, amount) in [("bob", 100), ("carol", 100), ("gus", 0)] {
        assert_eq!(world.available(grabber).await, amount, "{grabber}");
    }
    world.audit_when_quiet().await;
}

/// Puts the ledger of a folder in the place of another one's.
pub fn restore_ledger(kept: &Path, lives: &Path) {
    for file in ["ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"] {
        let _not_there = std::fs::remove_file(lives.join(file));
    }
    copy(&kept.join("ledger.sqlite"), &lives.join("ledger.sqlite"));
}

/// Copies a folder with what is in it.
pub fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// The first envelope that is sent after a backup of the folder, once before the folder is restored and
/// once after it.
async fn sent_twice(with_the_act: bool) -> (Envelope, Envelope) {
    let mut world = World::new().await;
    world.fund("alice", cny(10_000)).await;
    let before = world.send(lucky("alice", cny(1_000), 5)).await;
    let bob = won(&mut world, &before, "bob").await;
    world.audit_when_quiet().await;
    world.server.stop().await;
    let backup = tempfile::tempdir().unwrap();
    let (kept, lives) = (backup.path().join("data"), world.server.data_folder());
    copy(&lives, &kept);

    world = world.restarted(Start::default()).await;
    let first = world.send(lucky("alice", cny(1_000), 5)).await;
    won(&mut world, &first, "carol").await;
    recall(&mut world, &first).await;
    let revealed = proof(&mut world, &first).await;
    world.server.stop().await;
    std::fs::remove_dir_all(&lives).unwrap();
    copy(&kept, &lives);
    // Two envelopes under one id can't be told apart by what was answered.
    world.record = Record::default();
    if with_the_act {
        let report = tokio::task::block_in_place(|| told(&world.server.restored(&[])));
        for nothing in ["unknown", "repaired", "frozen", "left", "disputed"] {
            assert_eq!(report[nothing], json!([]), "{report:#}");
        }
    }

    world = world.restarted(Start::default()).await;
    assert_eq!(world.available("bob").await, bob.1);
    let second = world.send(lucky("alice", cny(1_000), 5)).await;
    won(&mut world, &second, "dave").await;
    recall(&mut world, &second).await;
    let again = proof(&mut world, &second).await;
    assert_eq!(again.server_seed == revealed.server_seed, !with_the_act);
    let folder = tempfile::tempdir().unwrap();
    assert!(verifies(folder.path(), &again));
    world.audit_when_quiet().await;
    (first, second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_folder_begins_new_leaves() {
    let (first, second) = sent_twice(true).await;
    assert_ne!(unguessable(&first), unguessable(&second));
    assert!(leaf_of(&second) > leaf_of(&first) + 1_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_folder_that_does_not_begin_anew_uses_a_revealed_seed_again() {
    let (first, second) = sent_twice(false).await;
    assert_eq!(unguessable(&first), unguessable(&second));
    assert_eq!(leaf_of(&second), leaf_of(&first));
}
