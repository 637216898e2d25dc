//! What was parked, posted by several at once and beside rows that somebody holds.

use super::super::open;
use super::{open_at, world};
use crate::domain::id::EnvelopeId;
use crate::ledger::conformance::{World, act, pay};
use crate::ledger::{Ledger as _, Settled};

/// How often two begin at the same instant.
const ROUNDS: u32 = 8;
/// Records of one envelope.
const RECORDS: u32 = 20;

/// An envelope that is not frozen any more, of which each grabber's share is parked.
async fn unfrozen(world: &World, name: &str, grabbers: impl Iterator<Item = String>) -> EnvelopeId {
    let id = world.live(i64::from(RECORDS), RECORDS, name).await;
    world.ledger.freeze(id, act("freeze", id)).await.unwrap();
    let shares = (0..).zip(grabbers);
    let batch = shares.map(|(share, who)| pay(id, share, &who, 1)).collect();
    let parked = world.settle(batch).await;
    assert!(parked.iter().all(|verdict| *verdict == Settled::Parked));
    let unfrozen = world.ledger.unfreeze(id, act("unfreeze", id)).await;
    assert!(!unfrozen.unwrap());
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_post_what_was_parked_at_once_pay_it_once() {
    let (world, place) = world().await;
    let other = open_at(&place.url, &world.clock).await.unwrap();
    for round in 0..ROUNDS {
        let name = |number: u32| format!("g{round}-{number}");
        let id = unfrozen(&world, &format!("e{round}"), (0..RECORDS).map(name)).await;
        let parked = world.parked(id).await.unwrap();
        assert_eq!(parked.records, RECORDS as usize);
        let (one, two) = tokio::join!(
            world.ledger.settle_parked(parked, None),
            other.settle_parked(parked, None)
        );
        let all = [one.unwrap(), two.unwrap()].concat();
        let paid = all.iter().filter(|verdict| **verdict == Settled::Paid);
        assert_eq!(paid.count(), RECORDS as usize);
        let twice = all.iter().filter(|verdict| **verdict == Settled::Duplicate);
        assert_eq!(twice.count(), all.len() - RECORDS as usize);
        assert!(world.parked(id).await.is_none());
        for number in 0..RECORDS {
            assert_eq!(world.has(&name(number)).await, (1, 0));
        }
        world.audit().await;
    }
}

#[tokio::test]
async fn who_holds_one_envelopes_row_keeps_nobody_elses_parked_records() {
    let (world, place) = world().await;
    let held = unfrozen(&world, "e1", ["bob".to_owned()].into_iter()).await;
    let free = unfrozen(&world, "e2", ["carol".to_owned()].into_iter()).await;
    let [of_held, of_free] =
        [world.parked(held).await, world.parked(free).await].map(Option::unwrap);
    let pool = open::pool(&place.url).unwrap();
    let holder = open::connect(&pool).await.unwrap();
    let hold = format!(
        "BEGIN; SELECT FROM envelope WHERE row = {} FOR UPDATE",
        of_held.envelope_row
    );
    holder.batch_execute(&hold).await.unwrap();
    let paid = world.ledger.settle_parked(of_free, None).await;
    assert_eq!(paid.unwrap(), [Settled::Paid]);
    assert_eq!(world.has("carol").await, (1, 0));
    // PostgreSQL may have ended it before: a transaction that says nothing has a limit.
    drop(holder.batch_execute("ROLLBACK").await);
    let paid = world.ledger.settle_parked(of_held, None).await;
    assert_eq!(paid.unwrap(), [Settled::Paid]);
    world.audit().await;
}
