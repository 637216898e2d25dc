//! The hot store's incarnations: epochs that only advance, and batches that keep to theirs.

use super::{FIRST, World, pay};
use crate::domain::envelope::CloseReason;
use crate::domain::id::{Epoch, Partition, PartitionCount};
use crate::ledger::{CloseProgress, HotLayout, LedgerError, PartitionRow, Settled, Under};

/// By its number.
pub(super) fn partition(index: u16) -> Partition {
    Partition::new(index).expect("cases name partitions that there can be")
}

fn row(index: u16, epoch: u64, server: &str) -> PartitionRow {
    PartitionRow {
        partition: partition(index),
        epoch: Epoch(epoch),
        server: server.to_owned(),
    }
}

/// Takes partitions beyond these epochs, on `server`.
pub(super) async fn advance(world: &World, from: &[(u16, u64)], server: &str) -> Vec<PartitionRow> {
    let from = from
        .iter()
        .map(|(index, epoch)| (partition(*index), Epoch(*epoch)));
    let advanced = world
        .ledger
        .advance_epochs(from.collect(), server.to_owned());
    advanced.await.expect("epochs advance")
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_batch_read_under_an_older_epoch_posts_nothing(world: &World) {
    let id = world.live(100, 4, "e1").await;
    assert_eq!(
        world.settle(vec![pay(id, 0, "bob", 40)]).await,
        [Settled::Paid]
    );
    assert_eq!(
        advance(world, &[(0, 1)], "redis a").await,
        [row(0, 2, "redis a")]
    );
    let batch = vec![pay(id, 0, "bob", 40), pay(id, 1, "carol", 25)];
    // The epochs of other partitions are another matter.
    advance(world, &[(7, 1)], "redis a").await;
    advance(world, &[(7, 2)], "redis a").await;
    for epoch in [Epoch(1), Epoch(3)] {
        let under = Under { epoch, ..FIRST };
        let posted = world.ledger.settle(under, batch.clone()).await;
        assert!(
            matches!(posted, Err(LedgerError::Epoch(Epoch(2)))),
            "{posted:?}"
        );
    }
    assert_eq!(world.has("carol").await, (0, 0));
    let under = Under {
        epoch: Epoch(2),
        ..FIRST
    };
    let verdicts = world.ledger.settle(under, batch).await.expect("is posted");
    assert_eq!(verdicts, [Settled::Duplicate, Settled::Paid]);
    assert_eq!(world.has("carol").await, (25, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_close_of_an_older_epoch_refunds_nothing(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    // The store that said "nobody took a share" is gone, and its successor may have granted one.
    advance(world, &[(0, 1)], "redis a").await;
    let finish = |epoch| {
        let under = Under { epoch, ..FIRST };
        let ledger = &world.ledger;
        ledger.finish_close(vec![under], id, CloseReason::Expired, 0)
    };
    let older = finish(Epoch::FIRST).await;
    assert!(matches!(older, Err(LedgerError::Epoch(Epoch(2)))));
    assert_eq!(world.has("alice").await, (0, 100));
    let closed = finish(Epoch(2)).await;
    assert!(matches!(closed, Ok(CloseProgress::Closed(_))));
    assert_eq!(world.has("alice").await, (100, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_close_forgives_a_replaced_store_what_it_lost(world: &World) {
    let id = world.live(100, 4, "e1").await;
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    let finish = |epoch| {
        let under = Under { epoch, ..FIRST };
        let ledger = &world.ledger;
        ledger.finish_close(vec![under], id, CloseReason::Expired, 0)
    };
    let contradicted = finish(Epoch::FIRST).await;
    let waits = matches!(
        contradicted,
        Ok(CloseProgress::Waiting {
            claimed_count: 1,
            ..
        })
    );
    assert!(waits, "{contradicted:?}");
    advance(world, &[(0, 1)], "redis a").await;
    let closed = finish(Epoch(2)).await;
    assert!(matches!(closed, Ok(CloseProgress::Closed(_))), "{closed:?}");
    assert_eq!(world.has("alice").await, (60, 0));
    assert_eq!(world.has("bob").await, (40, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn an_epoch_advances_once_however_many_race_for_it(world: &World) {
    let race = |server| advance(world, &[(3, 1), (4, 1)], server);
    let (a, b) = tokio::join!(race("redis a"), race("redis b"));
    assert_eq!(a, b, "both see the same rows");
    // Which of the two came first is not decided by who was asked first.
    let of = |server| [row(3, 2, server), row(4, 2, server)];
    let (winner, loser) = if a == of("redis a") {
        ("redis a", "redis b")
    } else {
        ("redis b", "redis a")
    };
    assert_eq!(a, of(winner));
    assert_eq!(world.ledger.partitions().await.expect("rows"), a);
    // The loser goes on from what it saw.
    let next = advance(world, &[(3, 2), (4, 2)], loser).await;
    assert_eq!(next, [row(3, 3, loser), row(4, 3, loser)]);
    assert_eq!(world.ledger.partitions().await.expect("rows"), next);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_partition_that_stands_elsewhere_stays_and_the_others_advance(world: &World) {
    assert_eq!(world.ledger.partitions().await.expect("rows"), []);
    advance(world, &[(0, 1)], "redis a").await;
    let rows = advance(world, &[(0, 1), (1, 1), (2, 5)], "redis b").await;
    // Partition 2 was never registered, and stands in the first epoch.
    assert_eq!(rows, [row(0, 2, "redis a"), row(1, 2, "redis b")]);
    assert_eq!(world.ledger.partitions().await.expect("rows"), rows);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn more_partitions_than_there_can_be_are_not_begun(world: &World) {
    let all = (0..PartitionCount::MAX).map(|index| (partition(index), Epoch::FIRST));
    let mut pairs: Vec<_> = all.collect();
    let whole = world
        .ledger
        .advance_epochs(pairs.clone(), "redis a".to_owned());
    assert_eq!(whole.await.expect("all advance").len(), pairs.len());
    pairs.push((Partition::ZERO, Epoch(2)));
    let more = world
        .ledger
        .advance_epochs(pairs, "redis a".to_owned())
        .await;
    assert!(matches!(more, Err(LedgerError::Broken(_))));
    let rows = world.ledger.partitions().await.expect("rows");
    assert!(rows.iter().all(|row| row.epoch == Epoch(2)));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_layout_is_recorded_once(world: &World) {
    let layout = |store: &str, partitions| HotLayout {
        store: store.to_owned(),
        layout: 1,
        partitions,
    };
    let first = layout("redis", 64);
    for asked in [
        layout("redis", 64),
        layout("embedded", 1),
        layout("redis", 128),
    ] {
        let on_record = world.ledger.hot_layout(asked).await.expect("a layout");
        assert_eq!(on_record, first);
    }
}
