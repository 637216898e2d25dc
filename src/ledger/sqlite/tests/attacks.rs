//! Attacks on the file itself: the schema refuses them, and what gets past a disarmed schema is
//! named by the audit.

use rusqlite::{Connection, ErrorCode};

use super::{embedded, world_at};
use crate::domain::books::DiscrepancyKind;
use crate::domain::envelope::CloseReason;
use crate::domain::id::{EnvelopeId, Epoch, Partition};
use crate::ledger::Settled;
use crate::ledger::conformance::{World, decline, named, pay, unders};

struct Scene {
    world: World,
    db: Connection,
    open: EnvelopeId,
    _folder: tempfile::TempDir,
}

/// Row 1: a closed envelope of two stripes. Row 2: an open one that paid bob 40 of 100 and took 5 back, and of which
/// dave was made good the 40. Row 3: one that is gathered.
async fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let world = world_at(&path);
    let closed = world.live_in(2, (100, 4), "e1").await;
    world.settle(vec![pay(closed, 0, "bob", 40)]).await;
    world
        .ledger
        .begin_close(closed, CloseReason::Expired)
        .await
        .unwrap();
    world
        .ledger
        .finish_close(unders(&[(0, 1), (1, 1)]), closed, CloseReason::Expired, 1)
        .await
        .unwrap();
    let open = world.live(100, 4, "e2").await;
    world
        .settle(vec![pay(open, 0, "bob", 40), decline(open, 1, "carol", 5)])
        .await;
    world.make_good_up_to(100, 10);
    let shown = world.settle(vec![pay(open, 0, "dave", 40)]).await;
    assert_eq!(shown, [Settled::MadeGood]);
    world
        .ledger
        .record_act(crate::ledger::conformance::act("trace", open))
        .await
        .unwrap();
    world.ledger.hot_layout(embedded()).await.unwrap();
    world
        .ledger
        .advance_epochs(vec![(Partition::ZERO, Epoch::FIRST)], "a server".to_owned())
        .await
        .unwrap();
    let gathered = world.live_in(2, (100, 4), "e3").await;
    assert!(world.ledger.gather(gathered).await.unwrap().gathered);
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

/// The statements of a file, each with what its first line says after `-- ledger.word: `.
fn statements(file: &str) -> Vec<(&str, &str)> {
    let named = |part| {
        let (name, sql): (&str, &str) = str::split_once(part, '\n').unwrap();
        (name.split_once(": ").unwrap().1, sql)
    };
    file.split("\n\n").skip(1).map(named).collect()
}

#[tokio::test]
async fn direct_attacks_are_refused_by_the_schema() {
    let scene = scene().await;
    let attacks = statements(include_str!("attacks.sql"));
    assert_eq!(attacks.len(), 66);
    for (name, sql) in attacks {
        let refused = scene.db.execute(sql, []);
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
        .prepare("-- ledger.triggers\nSELECT name FROM sqlite_schema WHERE type = 'trigger'")
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
    named(&*scene.world.ledger, (2, scene.open)).await
}

#[tokio::test]
async fn an_edit_of_a_disarmed_file_is_named_by_the_audit() {
    let edits = statements(include_str!("edits.sql"));
    assert_eq!(edits.len(), 33);
    for (expected, sql) in edits {
        let (kind, detail) = expected.split_once(' ').unwrap();
        let found = found(sql).await;
        let is_it = |(k, d): &(_, String)| format!("{k:?}") == kind && d.contains(detail);
        assert!(found.iter().any(is_it), "{expected}: {sql}: {found:#?}");
    }
}
