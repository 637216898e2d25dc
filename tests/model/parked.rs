//! Records that were parked and that the books refuse, beside others.

use red_envelope::domain::id::EnvelopeId;
use red_envelope::ledger::{REFUSED_BY_THE_BOOKS, SETTLE_TRIES_MAX};
use red_envelope::settle::PARKED_CALLS_MAX;

use crate::world::{EXPIRES_IN_MS, World, equal};

/// Who may claim nothing as long as it stands.
const POISON: &str = "CREATE TRIGGER poison BEFORE INSERT ON claim WHEN NEW.grabber LIKE 'mallory%'
    BEGIN SELECT RAISE(ABORT, 'poison'); END";
const CURE: &str = "DROP TRIGGER poison";

/// Has each of them win a share while its envelope is frozen, and settles what that leaves to the books.
async fn parked(world: &World, won: &[(EnvelopeId, String)]) {
    for (id, who) in won {
        world.win(*id, who).await;
    }
    let mut envelopes: Vec<_> = won.iter().map(|(id, _)| *id).collect();
    envelopes.sort_unstable();
    envelopes.dedup();
    for id in &envelopes {
        world.freeze(*id).await;
    }
    assert_eq!(world.drain().await.parked, won.len());
    for id in &envelopes {
        world.unfreeze(*id).await;
    }
}

#[tokio::test]
async fn a_parked_record_that_the_books_refuse_keeps_nobody_else_from_the_money() {
    let mut world = World::new();
    let poisoned = world.live(equal("alice", 10, 3)).await;
    let healthy = world.live(equal("alice", 10, 1)).await;
    world.ledger_file().execute_batch(POISON).unwrap();
    let of_poisoned = ["ann", "mallory", "bob"].map(|who| (poisoned, who.to_owned()));
    let won = [&of_poisoned[..], &[(healthy, "carol".to_owned())]].concat();
    parked(&world, &won).await;

    let swept = world.settlement().sweep_once().await.unwrap();
    assert_eq!((swept.unparked, swept.failed), (3, 1));
    assert!(swept.failure.unwrap().contains("poison"));
    for who in ["ann", "bob", "carol"] {
        assert_eq!(world.available(who).await, 10);
    }
    for _ in 2..SETTLE_TRIES_MAX {
        let swept = world.settlement().sweep_once().await.unwrap();
        assert_eq!((swept.unparked, swept.failed), (0, 1));
    }
    // The last try is the one after which it is set aside.
    for _ in 0..2 {
        let swept = world.settlement().sweep_once().await.unwrap();
        assert_eq!((swept.unparked, swept.failed), (0, 0));
    }
    let letters = world.ledger().dead_letters(None, 0, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].reason, REFUSED_BY_THE_BOOKS);
    assert_eq!(world.available("mallory").await, 0);

    world.ledger_file().execute_batch(CURE).unwrap();
    let act = world.act("replay_dead_letter", poisoned);
    let ledger = world.ledger();
    let replayed = ledger.replay_dead_letter(letters[0].row, Some(10), act);
    assert!(replayed.await.unwrap().is_none());
    assert_eq!(world.available("mallory").await, 10);
    world.settle().await;
    assert!(world.is_clean().await.quiet);
}

#[tokio::test]
async fn a_parked_record_that_the_books_take_again_is_paid_by_the_next_sweep() {
    let mut world = World::new();
    let id = world.live(equal("alice", 10, 2)).await;
    world.ledger_file().execute_batch(POISON).unwrap();
    parked(&world, &[(id, "mallory".to_owned())]).await;
    for _ in 1..SETTLE_TRIES_MAX {
        let swept = world.settlement().sweep_once().await.unwrap();
        assert_eq!((swept.unparked, swept.failed), (0, 1));
    }
    world.ledger_file().execute_batch(CURE).unwrap();
    let swept = world.settlement().sweep_once().await.unwrap();
    assert_eq!((swept.unparked, swept.failed), (1, 0));
    world.clock.advance_ms(EXPIRES_IN_MS);
    world.settle().await;
    assert!(world.is_clean().await.quiet);
}

#[tokio::test]
async fn many_refused_records_are_found_over_several_sweeps_and_the_others_are_paid() {
    const REFUSED: usize = 12;
    const OTHERS: usize = 48;
    let mut world = World::new();
    let poisoned = world.live(equal("alice", 10, 60)).await;
    let healthy = world.live(equal("alice", 10, 1)).await;
    world.ledger_file().execute_batch(POISON).unwrap();
    let name = |number: usize| match number % 5 {
        0 => format!("mallory{number}"),
        _ => format!("p{number}"),
    };
    let mut won: Vec<_> = (0..REFUSED + OTHERS)
        .map(|number| (poisoned, name(number)))
        .collect();
    won.push((healthy, "carol".to_owned()));
    parked(&world, &won).await;

    let first = world.settlement().sweep_once().await.unwrap();
    assert!(
        first.more && (1..REFUSED).contains(&first.failed),
        "{first:?}"
    );
    assert_eq!(world.available("carol").await, 10);
    // Each sweep tries at least one of them once more by itself.
    let sweeps_max = REFUSED * SETTLE_TRIES_MAX as usize;
    let mut paid = first.unparked;
    let mut sweeps = 1;
    loop {
        let swept = world.settlement().sweep_once().await.unwrap();
        paid += swept.unparked;
        if swept.failed == 0 && !swept.more {
            break;
        }
        sweeps += 1;
        assert!(sweeps <= sweeps_max, "{swept:?}");
    }
    assert_eq!(paid, OTHERS + 1);
    let letters = world.ledger().dead_letters(None, 0, 100).await.unwrap();
    assert_eq!(letters.len(), REFUSED);
    for (_, who) in won.iter().filter(|(_, who)| !who.starts_with("mallory")) {
        assert_eq!(world.available(who).await, 10);
    }
}

#[tokio::test]
async fn more_envelopes_than_one_sweep_looks_at_are_all_paid_by_the_next_ones() {
    let mut world = World::new();
    let mut won = Vec::new();
    for number in 0..PARKED_CALLS_MAX + 1 {
        let id = world.live(equal("alice", 10, 1)).await;
        won.push((id, format!("p{number}")));
    }
    parked(&world, &won).await;
    let swept = world.settlement().sweep_once().await.unwrap();
    assert_eq!((swept.unparked, swept.failed), (PARKED_CALLS_MAX, 0));
    assert!(swept.more);
    let swept = world.settlement().sweep_once().await.unwrap();
    assert_eq!((swept.unparked, swept.more), (1, false));
    world.settle().await;
    assert!(world.is_clean().await.quiet);
}
