//! Accounts whose rows are not where this process has seen them: books that were restored behind it.

use super::world;
use crate::ledger::Settled;
use crate::ledger::conformance::pay;

/// bob and carol change places.
const SWAP: &str = "SET search_path = red_envelope;
    ALTER TABLE account DISABLE TRIGGER account_stays_whose_it_is;
    UPDATE account SET owner = 'nobody' WHERE owner = 'bob';
    UPDATE account SET owner = 'bob' WHERE owner = 'carol';
    UPDATE account SET owner = 'carol' WHERE owner = 'nobody';
    ALTER TABLE account ENABLE TRIGGER account_stays_whose_it_is;";

#[tokio::test]
async fn a_remembered_row_that_is_somebody_elses_now_is_not_paid() {
    let (world, place) = world().await;
    let first = world.live(100, 4, "e1").await;
    let both = vec![pay(first, 0, "bob", 20), pay(first, 1, "carol", 30)];
    // Met twice: opened by the first, found by the second, and remembered.
    let second = world.live(100, 4, "e2").await;
    let again = vec![pay(second, 0, "bob", 1), pay(second, 1, "carol", 2)];
    for batch in [both.clone(), again] {
        assert_eq!(world.settle(batch).await, [Settled::Paid; 2]);
    }
    place.server.sql(place.database(), SWAP);
    assert_eq!(world.has("bob").await.0, 32);

    let third = world.live(100, 4, "e3").await;
    let paid = vec![pay(third, 0, "bob", 40), pay(third, 1, "carol", 50)];
    assert_eq!(world.settle(paid).await, [Settled::Paid; 2]);
    assert_eq!(world.has("bob").await.0, 32 + 40);
    assert_eq!(world.has("carol").await.0, 21 + 50);
    world.audit().await;
}

#[tokio::test]
async fn a_remembered_row_makes_nobody_elses_claim_a_duplicate() {
    let (world, place) = world().await;
    let first = world.live(100, 4, "e1").await;
    let both = vec![pay(first, 0, "bob", 20), pay(first, 1, "carol", 20)];
    let duplicates = [Settled::Duplicate; 2];
    assert_eq!(world.settle(both.clone()).await, [Settled::Paid; 2]);
    assert_eq!(world.settle(both.clone()).await, duplicates);
    place.server.sql(place.database(), SWAP);
    // Each claim is the other's now, and no row tells so by itself.
    assert_eq!(world.settle(both).await, [Settled::Superseded; 2]);
    world.audit().await;
}
