//! A call that fails half way leaves nothing, also where it has a transaction of its own.

use rusqlite::Connection;

use super::world_at;
use crate::ledger::conformance::{FIRST, pay};
use crate::ledger::{SettleItem, Settled};

#[tokio::test]
async fn a_large_batch_that_fails_half_way_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let world = world_at(&path);
    let envelope = world.live(3_000, 300, "e1").await;
    let batch: Vec<SettleItem> = (0..300)
        .map(|share| pay(envelope, share, &format!("g{share}"), 10))
        .collect();

    let db = Connection::open(&path).unwrap();
    db.execute_batch(
        "CREATE TRIGGER fault BEFORE INSERT ON claim WHEN NEW.share = 250
         BEGIN SELECT RAISE(ABORT, 'a fault'); END",
    )
    .unwrap();
    world.ledger.settle(FIRST, batch.clone()).await.unwrap_err();
    let claims: i64 = db
        .query_row(
            "-- ledger.count_claims\nSELECT count(*) FROM claim",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(claims, 0);

    db.execute_batch("DROP TRIGGER fault").unwrap();
    let verdicts = world.ledger.settle(FIRST, batch).await.unwrap();
    assert!(verdicts.iter().all(|verdict| *verdict == Settled::Paid));
}
