//! `red-envelope reconcile`: what a server would have settled, and whether every unit is accounted for.

use std::process::Output;

use serde_json::Value;

use crate::harness::fleet::Fleet;
use crate::harness::{Hot, Start, World, cny, equal};

const GRABBERS: [&str; 4] = ["ann", "bob", "cem", "dan"];
/// Envelopes of the fleet: each of its processes has some of their partitions.
const SENT: usize = 24;

/// What it said, and the code with which it ended.
fn told(output: &Output) -> (Value, Option<i32>) {
    let why = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    (
        report.unwrap_or_else(|e| panic!("{e}: {why}")),
        output.status.code(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_server_left_is_settled_and_audited_without_one() {
    let mut world = World::new().await;
    world.fund("alice", cny(50)).await;
    let id = world.send(equal("alice", cny(10), 5)).await.envelope_id;
    let held = world.server.hold_the_books();
    for name in GRABBERS {
        world.win(&id, name).await;
    }
    let running = tokio::task::block_in_place(|| world.server.reconcile(&[]));
    let why = String::from_utf8_lossy(&running.stderr).into_owned();
    assert_eq!(running.status.code(), Some(64), "{why}");
    assert!(why.contains("in use by another red-envelope"), "{why}");

    world.server.kill();
    drop(held);
    let reconcile = || tokio::task::block_in_place(|| told(&world.server.reconcile(&[])));
    let (report, code) = reconcile();
    assert_eq!(
        (&report["clean"], code),
        (&true.into(), Some(0)),
        "{report:#}"
    );
    assert_eq!(report["healed"]["settled"], 4, "{report:#}");
    assert_eq!(report["claim_count"], 4, "{report:#}");
    let (again, code) = reconcile();
    assert_eq!(
        (&again["healed"]["settled"], code),
        (&0.into(), Some(0)),
        "{again:#}"
    );

    let books = world.server.data_folder().join("ledger.sqlite");
    let books = rusqlite::Connection::open(books).unwrap();
    let edit = "-- it.edit\nUPDATE account SET available_minor = 11 WHERE owner = 'ann'";
    books.execute_batch(edit).unwrap();
    let (report, code) = reconcile();
    assert_eq!(
        (&report["clean"], code),
        (&false.into(), Some(1)),
        "{report:#}"
    );
    assert_eq!(
        report["discrepancies"][0]["kind"], "balance_wrong",
        "{report:#}"
    );
    let mended = "-- it.mend\nUPDATE account SET available_minor = 10 WHERE owner = 'ann'";
    books.execute_batch(mended).unwrap();
    drop(books);

    let mut world = world.restarted(Start::default()).await;
    for name in GRABBERS {
        assert_eq!(world.available(name).await, 10);
    }
    world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_outbox_owes_is_paid_without_a_server() {
    let mut world = World::on(Hot::Redis).await;
    world.fund("alice", cny(50)).await;
    let id = world.send(equal("alice", cny(10), 5)).await.envelope_id;
    let held = world.server.hold_the_books();
    for name in GRABBERS {
        world.win(&id, name).await;
    }
    world.server.kill();
    drop(held);
    let keys = world.redis().command(&[b"KEYS", b"re1:*:outbox"]);
    let redis::Value::Array(keys) = keys else {
        panic!("{keys:?}");
    };
    for key in keys {
        let redis::Value::BulkString(key) = key else {
            panic!("{key:?}");
        };
        world.redis().command(&[b"XTRIM", &key, b"MAXLEN", b"0"]);
    }
    let flags = Start::default().reaching(Some(&*world.redis())).flags;
    let (report, code) = tokio::task::block_in_place(|| told(&world.server.reconcile(&flags)));
    assert_eq!(
        (&report["clean"], code),
        (&true.into(), Some(0)),
        "{report:#}"
    );
    let healed = &report["healed"];
    assert_eq!(
        (&healed["settled"], &healed["unowed"]),
        (&0.into(), &4.into()),
        "{report:#}"
    );
}

/// Two processes are killed with grabs in their hands. Their leases run on for seconds, and whoever asks at
/// once must not take them for living.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_fleet_left_is_settled_also_while_its_leases_run() {
    let mut fleet = Fleet::of(2).await;
    fleet.until_divided().await;
    let first = &mut fleet.processes[0];
    first.fund("alice", cny(10_000)).await;
    let mut ids = Vec::new();
    for _ in 0..SENT {
        let sent = first.send(equal("alice", cny(10), 5)).await;
        ids.push(sent.envelope_id);
    }
    fleet.postgres.pause();
    for id in &ids {
        for name in GRABBERS {
            fleet.processes[0].win(id, name).await;
        }
    }
    for process in &mut fleet.processes {
        process.server.kill();
    }
    fleet.postgres.resume();
    let flags = fleet.flags();
    let last = &fleet.processes[1].server;
    let (report, code) = tokio::task::block_in_place(|| told(&last.reconcile(&flags)));
    assert_eq!(
        (&report["clean"], &report["quiet"], code),
        (&true.into(), &true.into(), Some(0)),
        "{report:#}"
    );
    let all = SENT * GRABBERS.len();
    assert_eq!(report["claim_count"], all, "{report:#}");
    assert_eq!(report["grant_count"], all, "{report:#}");
}
