//! Books that somebody has edited behind the server's back, so that rows can't be read: each is a line of the
//! audit's report, and not the end of the audit. In SQLite and in PostgreSQL.

use red_envelope_proto::v1::{AuditResponse, DiscrepancyKind, EnvelopeState};

use crate::harness::fleet::Fleet;
use crate::harness::world::World;
use crate::harness::{Hot, cny, equal};

/// What is done to the books, what undoes it, and what the audit says meanwhile.
struct Edit {
    done: &'static str,
    undone: &'static str,
    kind: DiscrepancyKind,
    told: &'static str,
}

/// What both ledgers call alike.
const EDITS: [Edit; 3] = [
    Edit {
        done: "UPDATE envelope SET terms = 'not ' || terms WHERE row = (SELECT max(row) FROM envelope)",
        undone: "UPDATE envelope SET terms = substr(terms, 5) WHERE row = (SELECT max(row) FROM envelope)",
        kind: DiscrepancyKind::EnvelopeUnbalanced,
        told: "can't be read",
    },
    Edit {
        done: "INSERT INTO dead_letter (row, envelope, share, grabber, amount_minor, declined, granted_at,
            reason, tries, created_at) SELECT 99, id, 0, '', 1, declined_count > 9, 0, 'a test', 1, 0
            FROM envelope WHERE row = (SELECT max(row) FROM envelope)",
        undone: "DELETE FROM dead_letter WHERE row = 99",
        kind: DiscrepancyKind::EnvelopeUnbalanced,
        told: "can't be read",
    },
    Edit {
        done: "UPDATE leaf_batch SET batch_number = batch_number + 7",
        undone: "UPDATE leaf_batch SET batch_number = batch_number - 7",
        kind: DiscrepancyKind::EnvelopeUnbalanced,
        told: "its shares can't be derived",
    },
];

const TOO_LONG: &str = "its claims can't be read";

/// Of a grabber in SQLite, and of the owner of an account in PostgreSQL.
const IN_SQLITE: Edit = Edit {
    done: "UPDATE claim SET grabber = printf('%.*c', 70, 'b') WHERE grabber = 'bob'",
    undone: "UPDATE claim SET grabber = 'bob' WHERE length(grabber) = 70",
    kind: DiscrepancyKind::EnvelopeUnbalanced,
    told: TOO_LONG,
};
const IN_POSTGRESQL: [Edit; 2] = [
    Edit {
        done: "UPDATE account SET owner = repeat('b', 70) WHERE owner = 'bob'",
        undone: "UPDATE account SET owner = 'bob' WHERE length(owner) = 70",
        kind: DiscrepancyKind::EnvelopeUnbalanced,
        told: TOO_LONG,
    },
    Edit {
        done: "UPDATE hot_partition SET epoch = epoch + 9 WHERE partition > 0;
            UPDATE hot_partition SET epoch = epoch - 1 WHERE partition = 0",
        undone: "UPDATE hot_partition SET epoch = epoch - 9 WHERE partition > 0;
            UPDATE hot_partition SET epoch = epoch + 1 WHERE partition = 0",
        kind: DiscrepancyKind::StateMismatch,
        told: "partition 0: the hot store grants in epoch 2, the ledger has gone back to 1",
    },
];

/// Two envelopes, of each of which bob has a share. All is paid, so nobody but the audit reads them.
async fn settled(world: &mut World) {
    world.fund("alice", cny(1_000)).await;
    for _ in 0..2 {
        let id = world.send(equal("alice", cny(10), 1)).await.envelope_id;
        world.win(&id, "bob").await;
        world.until(&id, "alice", EnvelopeState::Closed).await;
    }
    world.audit_when_quiet().await;
}

async fn is_told(world: &mut World, edits: &[&Edit], mut edit: impl FnMut(&str)) {
    for Edit {
        done,
        undone,
        kind,
        told,
    } in edits
    {
        edit(done);
        // Both envelopes were closed a moment ago, so they are hot still.
        let reports = [world.audit().await, world.audited(true).await];
        edit(undone);
        for report in reports {
            let AuditResponse { discrepancies, .. } = &report;
            let mut all = discrepancies.iter();
            let is_it = all.any(|d| d.kind() == *kind && d.detail.contains(told));
            assert!(is_it, "{done}: {discrepancies:#?}");
            // All the rest was looked at.
            assert_eq!(report.envelope_count, 2, "{done}");
        }
        world.audit_when_quiet().await;
    }
    keeps_its_alarm(world, edit).await;
}

/// Of an account that is wrong, an audit of what is hot tells nothing; so it must not take the alarm of the whole one away.
async fn keeps_its_alarm(world: &mut World, mut edit: impl FnMut(&str)) {
    let found = async |world: &World, of: &str| {
        let discrepancies = "red_envelope_audit_discrepancies";
        world.server.counted_of(discrepancies, of).await
    };
    edit("UPDATE account SET available_minor = available_minor + 1 WHERE owner = 'alice'");
    assert!(!world.audit().await.clean);
    let alarm = found(world, "of=\"all\"").await;
    assert!(alarm > 0.0, "{alarm}");
    assert!(world.audited(true).await.clean);
    assert_eq!(found(world, "of=\"all\"").await, alarm);
    assert_eq!(found(world, "of=\"hot\"").await, 0.0);
    edit("UPDATE account SET available_minor = available_minor - 1 WHERE owner = 'alice'");
    world.audit_when_quiet().await;
    assert_eq!(found(world, "of=\"all\"").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_nobody_can_read_is_a_line_of_the_audit_of_sqlite() {
    let mut world = World::on(Hot::Embedded).await;
    settled(&mut world).await;
    let books = world.server.data_folder().join("ledger.sqlite");
    let books = rusqlite::Connection::open(books).unwrap();
    let triggers: Vec<String> = books
        .prepare("-- it.triggers\nSELECT name FROM sqlite_schema WHERE type = 'trigger'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    for name in triggers {
        books
            .execute_batch(&format!("DROP TRIGGER {name}"))
            .unwrap();
    }
    let disarmed = "PRAGMA busy_timeout = 30000; PRAGMA ignore_check_constraints = ON";
    books.execute_batch(disarmed).unwrap();
    let edits: Vec<_> = EDITS.iter().chain([&IN_SQLITE]).collect();
    is_told(&mut world, &edits, |edit| {
        books.execute_batch(edit).unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_nobody_can_read_is_a_line_of_the_audit_of_postgresql() {
    let mut fleet = Fleet::of(1).await;
    settled(&mut fleet.processes[0]).await;
    fleet.ask_the_books(
        "ALTER TABLE red_envelope.hot_partition DROP CONSTRAINT hot_partition_epoch_check",
    );
    let identity = "ALTER TABLE red_envelope.dead_letter ALTER row DROP IDENTITY";
    fleet.ask_the_books(identity);
    let edits: Vec<_> = EDITS.iter().chain(&IN_POSTGRESQL).collect();
    let Fleet {
        processes,
        postgres,
        books,
        ..
    } = &mut fleet;
    let name = books.rsplit('/').next().unwrap();
    // No trigger fires in a session of a replica.
    let edit = |edit: &str| {
        let as_a_replica = "SET search_path = red_envelope; SET session_replication_role = replica";
        postgres.sql(name, &format!("{as_a_replica}; {edit}"));
    };
    is_told(&mut processes[0], &edits, edit).await;
}
