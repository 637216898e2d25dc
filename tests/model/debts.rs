//! Grants that no outbox owes any more.

use red_envelope::domain::id::Partition;

use crate::world::{World, equal};

/// More than one step of the walk mends.
const ENVELOPES: usize = 600;

#[tokio::test]
async fn debts_that_were_lost_at_once_are_all_paid_in_one_walk() {
    let mut world = World::new();
    for _ in 0..ENVELOPES {
        let id = world.live(equal("alice", 1, 2)).await;
        world.win(id, "bob").await;
    }
    // The outbox forgets what it owes.
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
