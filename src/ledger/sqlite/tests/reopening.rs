//! What a file promises across restarts and releases.

use std::sync::Arc;
use std::task::Poll;

use rand::SeedableRng;
use rusqlite::Connection;

use super::{embedded, keys, open_at, world_at};
use crate::clock::ManualClock;
use crate::domain::envelope::BookState;
use crate::ledger::conformance::{NOON_MS, act, draft, fund, pay, record, tenant, transfer};
use crate::ledger::sqlite::writer::QUEUE_CALLS_MAX;
use crate::ledger::sqlite::{OpenError, SqliteLedger};
use crate::ledger::{HotLayout, LedgerError, SettleItem, Settled};

#[tokio::test]
async fn reopening_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let world = world_at(&path);
    let id = world.live(100, 4, "e1").await;
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    let poison = SettleItem::SetAside(record(id, 1, "carol", 5), "poison");
    world.settle(vec![poison]).await;
    world.ledger.freeze(id, act("freeze", id)).await.unwrap();
    let parked = world.settle(vec![pay(id, 2, "dave", 6)]).await;
    assert_eq!(parked, [Settled::Parked]);
    let before = world.envelope(id).await;
    let roots = world.ledger.leaf_batches(tenant(), 10).await.unwrap();
    drop(world);

    let world = world_at(&path);
    let after = world.envelope(id).await;
    assert_eq!(after.terms, before.terms);
    assert_eq!(after.state, BookState::Live);
    assert!(after.frozen);
    assert_eq!(after.settled_minor, 40);
    assert_eq!(world.has("bob").await, (40, 0));
    assert_eq!(world.has("alice").await, (0, 60));
    assert_eq!(
        world.ledger.leaf_batches(tenant(), 10).await.unwrap(),
        roots
    );
    let letters = world.ledger.dead_letters(None, 0, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    let replayed = world.ledger.fund(fund(draft("alice", 100, 4), "e1")).await;
    let replayed = replayed.unwrap();
    assert!(replayed.replayed);
    assert_eq!(replayed.envelope.id, id);
    world
        .ledger
        .unfreeze(id, act("unfreeze", id))
        .await
        .unwrap();
    assert_eq!(world.unparked().await, 1);
    let again = world.settle(vec![pay(id, 0, "bob", 40)]).await;
    assert_eq!(again, [Settled::Duplicate]);
    world.audit().await;
}

#[tokio::test]
async fn a_log_that_a_crash_left_is_folded_before_it_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let (file, log) = ("ledger.sqlite", "ledger.sqlite-wal");
    let world = world_at(&folder.path().join(file));
    let id = world.live(100, 4, "e1").await;
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    // What the disk has while the process still runs is what a crash leaves.
    let crashed = tempfile::tempdir().unwrap();
    for name in [file, log] {
        std::fs::copy(folder.path().join(name), crashed.path().join(name)).unwrap();
    }
    let bytes = || std::fs::metadata(crashed.path().join(log)).unwrap().len();
    assert!(bytes() > 0, "the crash left a log");

    let world = world_at(&crashed.path().join(file));
    assert_eq!(
        bytes(),
        0,
        "nothing is appended behind frames of unknown fate"
    );
    assert_eq!(world.has("bob").await, (40, 0));
    world.audit().await;
}

#[tokio::test]
async fn a_schema_of_a_later_release_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let clock = ManualClock::at(NOON_MS);
    drop(open_at(&path, &clock).unwrap());
    let db = Connection::open(&path).unwrap();
    db.execute_batch("PRAGMA user_version = 99").unwrap();
    drop(db);
    let refused = open_at(&path, &clock).err().unwrap();
    assert!(
        matches!(
            refused,
            OpenError::UnknownSchema {
                found: 99,
                known: 7
            }
        ),
        "{refused}"
    );
    let db = Connection::open(&path).unwrap();
    let version: i32 = db
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(version, 99);
}

/// Books as the first schema left them: alice brought in 100.
fn first_books(path: &std::path::Path) {
    let db = Connection::open(path).unwrap();
    let schema = include_str!("../migrations/0001_books.sql");
    db.execute_batch(schema).unwrap();
    db.execute_batch(
        "-- ledger.first_books
         PRAGMA application_id = 0x5264456e;
         PRAGMA user_version = 1;
         INSERT INTO book (row, partition_count, created_at) VALUES (1, 1, 0);
         INSERT INTO account (tenant, kind, owner, currency, available_minor)
         VALUES ('default', 'outside', '', 'CNY', -100), ('default', 'owner', 'alice', 'CNY', 100);
         INSERT INTO posting (tenant, kind, currency, posted_at)
         VALUES ('default', 'deposit', 'CNY', 0);
         INSERT INTO entry (posting_row, account_row, amount_minor)
         VALUES (1, 1, -100), (1, 2, 100);
         INSERT INTO idempotency (tenant, owner, method, request_id, request_hash, posting_row)
         VALUES ('default', 'alice', 'deposit', 'd1', zeroblob(32), 1);",
    )
    .unwrap();
}

#[tokio::test]
async fn books_of_the_first_schema_are_brought_up_to_date_and_keep_their_rows_and_rules() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    first_books(&path);
    let world = world_at(&path);
    assert_eq!(world.has("alice").await, (100, 0));
    let id = world.live(50, 2, "e1").await;
    world.settle(vec![pay(id, 0, "bob", 20)]).await;
    world.audit().await;
    drop(world);
    let db = Connection::open(&path).unwrap();
    let refused = db.execute("-- ledger.attack\nDELETE FROM account", []);
    assert!(refused.is_err(), "the triggers are there again");
    let version: i32 = db
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(version, 7);
}

#[tokio::test]
async fn books_whose_rows_refer_to_nothing_are_left_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    first_books(&path);
    let db = Connection::open(&path).unwrap();
    db.execute_batch(
        "-- ledger.attack
         PRAGMA foreign_keys = OFF;
         INSERT INTO entry (posting_row, account_row, amount_minor) VALUES (9, 9, 1);",
    )
    .unwrap();
    let refused = open_at(&path, &ManualClock::at(NOON_MS)).err().unwrap();
    assert!(matches!(refused, OpenError::References), "{refused}");
    let version: i32 = db
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(version, 1);
}

#[tokio::test]
async fn a_file_without_a_write_ahead_log_is_refused() {
    // SQLite keeps this one in memory, where there is no log.
    let nowhere = std::path::Path::new(":memory:");
    let refused = open_at(nowhere, &ManualClock::at(NOON_MS)).err().unwrap();
    assert!(
        matches!(&refused, OpenError::Journal(found) if found == "memory"),
        "{refused}"
    );
}

#[tokio::test]
async fn books_of_the_first_release_belong_to_the_embedded_store_once_they_are_used() {
    let asked = HotLayout {
        store: "redis".to_owned(),
        layout: 1,
        partitions: 64,
    };
    for used in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.sqlite");
        let world = world_at(&path);
        if used {
            world.live(100, 4, "e1").await;
        }
        drop(world);
        let db = Connection::open(&path).unwrap();
        db.execute_batch(
            "DROP TRIGGER envelope_stays_gathered; ALTER TABLE envelope DROP COLUMN gathered;
             DROP INDEX parked_in_order; DROP TRIGGER claim_of_made_good; DROP TABLE made_good;
             DROP TABLE hot_layout; DROP TABLE hot_partition; PRAGMA user_version = 3;",
        )
        .unwrap();
        drop(db);
        let world = world_at(&path);
        let on_record = world.ledger.hot_layout(asked.clone()).await.unwrap();
        assert_eq!(on_record, if used { embedded() } else { asked.clone() });
    }
}

#[tokio::test]
async fn a_file_of_another_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.sqlite");
    let db = Connection::open(&path).unwrap();
    db.execute_batch("CREATE TABLE theirs (n INTEGER)").unwrap();
    drop(db);
    let refused = open_at(&path, &ManualClock::at(NOON_MS)).err().unwrap();
    assert!(matches!(refused, OpenError::NotALedger(_)), "{refused}");
    let text = folder.path().join("text");
    std::fs::write(
        &text,
        "not a database, but long enough to be one ".repeat(99),
    )
    .unwrap();
    let refused = open_at(&text, &ManualClock::at(NOON_MS)).err().unwrap();
    assert!(matches!(refused, OpenError::Sqlite(_)), "{refused}");
}

#[tokio::test]
async fn another_number_of_partitions_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let clock = ManualClock::at(NOON_MS);
    drop(open_at(&path, &clock).unwrap());
    let db = Connection::open(&path).unwrap();
    db.execute(
        "-- ledger.other_partitions\nUPDATE book SET partition_count = 64",
        [],
    )
    .unwrap();
    drop(db);
    let refused = open_at(&path, &clock).err().unwrap();
    assert!(
        matches!(
            refused,
            OpenError::PartitionCount {
                found: 64,
                asked: 1
            }
        ),
        "{refused}"
    );
}

#[tokio::test]
async fn other_seal_keys_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let clock = ManualClock::at(NOON_MS);
    drop(open_at(&path, &clock).unwrap());
    let rng = Box::new(rand::rngs::StdRng::seed_from_u64(1));
    let refused = SqliteLedger::open(&path, Arc::new(clock), keys(8), rng);
    let refused = refused.err().unwrap();
    assert!(matches!(refused, OpenError::SealKeys(_)), "{refused}");
}

#[tokio::test]
async fn no_secret_of_a_seed_is_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let world = world_at(&path);
    let id = world.live(100, 4, "e1").await;
    let terms = world.envelope(id).await.terms;
    let seed = world.ledger.server_seed(terms).await.unwrap().reveal();
    drop(world);
    let bytes = std::fs::read(&path).unwrap();
    let found = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(found(&id.to_bytes()), "the envelope is in the file");
    assert!(!found(&seed));
}

#[tokio::test]
async fn a_full_queue_refuses_instead_of_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let world = world_at(&path);
    // Another writer holds the file, so that the queue can't drain.
    let blocker = Connection::open(&path).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut waiting = Vec::new();
    let refused = loop {
        let number = waiting.len();
        assert!(number <= QUEUE_CALLS_MAX + 1, "the queue has a bound");
        let mut call = world
            .ledger
            .deposit(transfer("alice", 1, &format!("d{number}")));
        let first_poll =
            std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
        match first_poll {
            Poll::Ready(answer) => break answer,
            Poll::Pending => waiting.push(call),
        }
    };
    assert!(matches!(refused, Err(LedgerError::Unavailable(_))));
    assert!(waiting.len() >= QUEUE_CALLS_MAX);
    blocker.execute_batch("ROLLBACK").unwrap();
    let mut stand = 0;
    for call in waiting {
        stand += i64::from(call.await.is_ok());
    }
    assert_eq!(world.has("alice").await, (stand, 0));
    assert!(world.ledger.ready().is_ok());
}
