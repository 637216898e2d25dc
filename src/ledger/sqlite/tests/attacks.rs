//! Attacks on the file itself: the schema refuses them, and what gets past a disarmed schema is
//! named by the audit.

use rusqlite::{Connection, ErrorCode};

use super::world_at;
use crate::domain::books::DiscrepancyKind;
use crate::domain::envelope::CloseReason;
use crate::domain::id::EnvelopeId;
use crate::ledger::conformance::{World, decline, pay};

struct Scene {
    world: World,
    db: Connection,
    open: EnvelopeId,
    _folder: tempfile::TempDir,
}

/// Row 1: a closed envelope. Row 2: an open one that paid bob 40 of 100 and took 5 back.
async fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let world = world_at(&path);
    let closed = world.live(100, 4, "e1").await;
    world.settle(vec![pay(closed, 0, "bob", 40)]).await;
    world
        .ledger
        .begin_close(closed, CloseReason::Expired)
        .await
        .unwrap();
    world
        .ledger
        .finish_close(closed, CloseReason::Expired, 1)
        .await
        .unwrap();
    let open = world.live(100, 4, "e2").await;
    world
        .settle(vec![pay(open, 0, "bob", 40), decline(open, 1, "carol", 5)])
        .await;
    world
        .ledger
        .record_act(crate::ledger::conformance::act("trace", open))
        .await
        .unwrap();
    let db = Connection::open(&path).unwrap();
    db.execute_batch("PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = ON;")
        .unwrap();
    Scene {
        world,
        db,
        open,
        _folder: folder,
    }
}

const CLAIM: &str = "INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES";
const ENTRY: &str =
    "INSERT INTO entry (posting_row, account_row, envelope_row, amount_minor, share)
    VALUES";

#[tokio::test]
async fn direct_attacks_are_refused_by_the_schema() {
    let scene = scene().await;
    let attacks = [
        ("a share twice", format!("{CLAIM} (900, 2, 0, 'mallory', 1, 0, 0)")),
        ("a grabber twice", format!("{CLAIM} (900, 2, 2, 'bob', 1, 0, 0)")),
        ("a grabber twice after declining", format!("{CLAIM} (900, 2, 2, 'carol', 1, 0, 0)")),
        ("nothing as a share", format!("{CLAIM} (900, 2, 2, 'mallory', 0, 0, 0)")),
        ("a negative share", format!("{CLAIM} (900, 2, 2, 'mallory', -1, 0, 0)")),
        ("a share that there is not", format!("{CLAIM} (900, 2, 4, 'mallory', 1, 0, 0)")),
        ("a share of a closed envelope", format!("{CLAIM} (900, 1, 1, 'mallory', 1, 0, 0)")),
        ("a share of no envelope", format!("{CLAIM} (900, 99, 1, 'mallory', 1, 0, 0)")),
        ("text as an amount", format!("{CLAIM} (900, 2, 2, 'mallory', 'much', 0, 0)")),
        ("a fraction as an amount", format!("{CLAIM} (900, 2, 2, 'mallory', 1.5, 0, 0)")),
        ("overdrawing", "UPDATE account SET available_minor = -1 WHERE owner = 'bob'".into()),
        (
            "more than an account holds",
            "UPDATE account SET available_minor = 9000000000000001 WHERE owner = 'bob'".into(),
        ),
        ("stealing an account", "UPDATE account SET owner = 'mallory' WHERE owner = 'bob'".into()),
        (
            "a second account",
            "INSERT INTO account (tenant, kind, owner, currency) VALUES ('default', 'owner', 'bob', 'CNY')".into(),
        ),
        ("deleting an account", "DELETE FROM account WHERE owner = 'bob'".into()),
        ("refunding too much", "UPDATE envelope SET refunded_minor = 61 WHERE row = 2".into()),
        ("settling too much", "UPDATE envelope SET settled_minor = 96 WHERE row = 2".into()),
        ("negative refunds", "UPDATE envelope SET refunded_minor = -1 WHERE row = 2".into()),
        ("too many shares", "UPDATE envelope SET settled_count = 4 WHERE row = 2".into()),
        ("funding more", "UPDATE envelope SET funded_minor = 200 WHERE row = 2".into()),
        ("other terms", "UPDATE envelope SET terms = '{}' WHERE row = 2".into()),
        ("a later expiry", "UPDATE envelope SET expires_at = expires_at + 1 WHERE row = 2".into()),
        (
            "closing out of balance",
            "UPDATE envelope SET state = 'closed', reason = 'empty', closed_at = 1 WHERE row = 2".into(),
        ),
        ("opening again", "UPDATE envelope SET state = 'live', reason = NULL WHERE row = 1".into()),
        ("moving a closed sum", "UPDATE envelope SET settled_minor = 39 WHERE row = 1".into()),
        ("deleting an envelope", "DELETE FROM envelope WHERE row = 2".into()),
        ("editing an entry", "UPDATE entry SET amount_minor = 41 WHERE amount_minor = 40".into()),
        ("deleting an entry", "DELETE FROM entry WHERE row = 1".into()),
        (
            "replacing an entry",
            "INSERT OR REPLACE INTO entry (row, posting_row, account_row, amount_minor) VALUES (1, 1, 1, 5)".into(),
        ),
        ("an entry of nothing", format!("{ENTRY} (1, 1, NULL, 0, NULL)")),
        ("an entry of two sides", format!("{ENTRY} (1, 1, 2, 5, NULL)")),
        ("an entry of no side", format!("{ENTRY} (1, NULL, NULL, 5, NULL)")),
        ("an entry of no posting", format!("{ENTRY} (999, 1, NULL, 5, NULL)")),
        ("a share that takes", format!("{ENTRY} (1, 1, NULL, -5, 3)")),
        ("editing a posting", "UPDATE posting SET kind = 'refund' WHERE row = 1".into()),
        ("deleting a posting", "DELETE FROM posting WHERE row = 1".into()),
        ("editing a claim", "UPDATE claim SET grabber = 'mallory' WHERE grabber = 'bob'".into()),
        ("deleting a claim", "DELETE FROM claim".into()),
        ("editing an act", "UPDATE admin_act SET operator = 'nobody'".into()),
        ("deleting an act", "DELETE FROM admin_act".into()),
        ("forgetting a request", "DELETE FROM idempotency".into()),
        ("changing a request", "UPDATE idempotency SET request_hash = zeroblob(32)".into()),
        ("another root", "UPDATE leaf_batch SET batch_root = zeroblob(32)".into()),
        ("no root", "DELETE FROM leaf_batch".into()),
    ];
    for (name, sql) in attacks {
        let refused = scene.db.execute(&sql, []);
        let code = refused
            .as_ref()
            .err()
            .and_then(rusqlite::Error::sqlite_error_code);
        assert_eq!(
            code,
            Some(ErrorCode::ConstraintViolation),
            "{name}: {refused:?}"
        );
    }
    scene.world.audit().await;
}

/// Disarms the schema as somebody can who owns the file.
fn disarm(db: &Connection) {
    let names: Vec<String> = db
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    for name in names {
        db.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
    }
    db.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;")
        .unwrap();
}

/// Runs an edit and answers what the audit says of it.
async fn found(sql: &str) -> Vec<(DiscrepancyKind, String)> {
    let scene = scene().await;
    disarm(&scene.db);
    assert!(scene.db.execute(sql, []).unwrap() > 0, "{sql}");
    let totals = scene.world.ledger.audit_totals(None).await.unwrap();
    for discrepancy in &totals.discrepancies {
        assert!(
            !discrepancy.detail.contains("bob"),
            "no names: {discrepancy:?}"
        );
        if discrepancy.detail.contains("envelope row 2") {
            assert_eq!(discrepancy.envelope, Some(scene.open));
        }
    }
    totals
        .discrepancies
        .into_iter()
        .map(|d| (d.kind, d.detail))
        .collect()
}

#[tokio::test]
async fn an_edit_of_a_disarmed_file_is_named_by_the_audit() {
    use DiscrepancyKind::{BalanceWrong, EnvelopeUnbalanced, PostingUnbalanced};
    let cases = [
        (
            "UPDATE account SET available_minor = available_minor + 1 WHERE owner = 'bob'",
            BalanceWrong,
            "account 3 (owner, CNY) has 81, its entries sum to 80",
        ),
        (
            "UPDATE entry SET amount_minor = 41 WHERE row =
                 (SELECT max(row) FROM claim WHERE grabber = 'bob')",
            PostingUnbalanced,
            "(settle) sums to 1",
        ),
        (
            "DELETE FROM entry WHERE row = (SELECT max(row) FROM claim WHERE grabber = 'bob')",
            EnvelopeUnbalanced,
            "of share 0 says 40, its entry says nothing",
        ),
        (
            "UPDATE claim SET amount_minor = 39 WHERE envelope_row = 2 AND share = 0",
            EnvelopeUnbalanced,
            "of share 0 says 39, its entry says 40",
        ),
        (
            "UPDATE claim SET grabber = 'mallory' WHERE envelope_row = 2 AND share = 0",
            EnvelopeUnbalanced,
            "of share 0 says 40, its entry says 40",
        ),
        (
            "DELETE FROM claim WHERE envelope_row = 2 AND share = 0",
            EnvelopeUnbalanced,
            "pays share 0 without a claim",
        ),
        (
            "UPDATE envelope SET settled_minor = 30 WHERE row = 2",
            EnvelopeUnbalanced,
            "envelope row 2: funded 100, settled 30",
        ),
        (
            "UPDATE envelope SET funded_minor = 101 WHERE row = 2",
            EnvelopeUnbalanced,
            "envelope row 2: funded 101",
        ),
        (
            "DELETE FROM entry WHERE posting_row = 1",
            PostingUnbalanced,
            "posting 1 (deposit) sums to nothing",
        ),
        (
            "DELETE FROM posting WHERE row = 1",
            PostingUnbalanced,
            "entry 1 of posting 1 belongs to another",
        ),
        (
            "UPDATE account SET currency = 'USD' WHERE owner = 'bob'",
            PostingUnbalanced,
            "belongs to another tenant, currency or envelope",
        ),
    ];
    for (sql, kind, detail) in cases {
        let found = found(sql).await;
        assert!(
            found.iter().any(|(k, d)| *k == kind && d.contains(detail)),
            "{sql}: {found:#?}"
        );
    }
}
