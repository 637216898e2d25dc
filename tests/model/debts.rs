//! Grants that no outbox owes any more.

use red_envelope::domain::id::Partition;
use red_envelope::ledger::{SettleItem, Under};

use crate::world::{World, equal};

/// More than one step of the walk mends.
const ENVELOPES: usize = 600;

/// The outbox loses its entries.
async fn forget_what_is_owed(world: &World) {
    let partition = Partition::ZERO;
    let epoch = world.hot().epoch(partition);
    loop {
        let entries = world.hot().outbox(partition, None, 100).await.unwrap();
        if entries.is_empty() {
            break;
        }
        let done = entries.iter().map(|entry| (entry.id, entry.nonce));
        world
            .hot()
            .settled(epoch, partition, done.collect())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn debts_that_were_lost_at_once_are_all_paid_in_one_walk() {
    let mut world = World::new();
    for _ in 0..ENVELOPES {
        let id = world.live(equal("alice", 1, 2)).await;
        world.win(id, "bob").await;
    }
    forget_what_is_owed(&world).await;
    let walk = async || {
        let mut posted = 0;
        for _ in 0..ENVELOPES {
            let step = world.settlement().reconcile_once().await.unwrap();
            posted += step.posted;
            if !step.more {
                break;
            }
        }
        posted
    };
    // They may be on their way.
    assert_eq!(walk().await, 0);
    world.clock.advance_ms(10_000);
    assert_eq!(walk().await, ENVELOPES);
    assert_eq!(walk().await, 0);
    let paid = usize::try_from(world.available("bob").await);
    assert_eq!(paid, Ok(ENVELOPES));
    world.is_clean().await;
}

#[tokio::test]
async fn a_letter_that_nobody_was_granted_hides_no_debt() {
    let mut world = World::new();
    let id = world.live(equal("alice", 100, 4)).await;
    world.win(id, "bob").await;
    let under = Under {
        partition: Partition::ZERO,
        epoch: world.hot().epoch(Partition::ZERO),
    };
    let mut forged =
        world.hot().outbox(Partition::ZERO, None, 10).await.unwrap()[0].records[0].clone();
    (forged.grant.share, forged.grant.amount_minor) = (2, 7);
    let aside = vec![SettleItem::SetAside(forged, "amount_mismatch")];
    world.ledger().settle(under, aside).await.unwrap();
    forget_what_is_owed(&world).await;
    let posted = async || world.settlement().reconcile_once().await.unwrap().posted;
    assert_eq!(posted().await, 0);
    world.clock.advance_ms(10_000);
    assert_eq!(posted().await, 1);
    assert_eq!(world.available("bob").await, 100);
    // What was granted and is set aside is known: nobody posts it again and again.
    assert_eq!(posted().await, 0);
}
