//! A frozen envelope goes on only by a recorded act, whatever crosses and wherever it dies.

use red_envelope::domain::envelope::{BookState, CloseReason};
use red_envelope::domain::grab::GrabReply;
use red_envelope::domain::id::EnvelopeId;
use red_envelope::hot::Mark;
use red_envelope::publish::marks;

use crate::crashes::dies_at;
use crate::crossings::{crossed, crosses};
use crate::world::{EXPIRES_IN_MS, World, equal};

/// Who did what to an envelope, and why.
async fn acts(world: &World, id: EnvelopeId) -> Vec<(String, String, String)> {
    let acts = world.ledger().acts(Some(id), 10).await.unwrap();
    let told = acts.into_iter();
    told.map(|act| (act.operator.as_str().to_owned(), act.act, act.reason))
        .collect()
}

fn by_itself() -> (String, String, String) {
    (
        marks::RED_ENVELOPE.to_owned(),
        "freeze".to_owned(),
        marks::BROKEN_INVARIANT.to_owned(),
    )
}

/// Three shares of 100, of which bob has won one.
async fn grabbed(world: &mut World) -> EnvelopeId {
    let id = world.live(equal("alice", 100, 3)).await;
    world.win(id, "bob").await;
    id
}

#[tokio::test]
async fn a_broken_invariant_freezes_until_an_operator_acts() {
    let mut world = World::new();
    let id = grabbed(&mut world).await;
    world.break_invariant(id).await;
    assert_eq!(world.grab(id, "carol").await, GrabReply::Frozen);
    let swept = world.sweep().await;
    assert_eq!((swept.marked.carried, swept.failure), (1, None));
    assert!(world.row(id).await.frozen);
    assert_eq!(acts(&world, id).await, [by_itself()]);

    // Neither time nor another process lets it go, and the act is not repeated.
    world.clock.advance_ms(EXPIRES_IN_MS + 60_001);
    world.settle().await;
    let world = world.reopen().await;
    world.settle().await;
    assert_eq!(world.marked(id).await, Some(Mark::Broken));
    assert_eq!(world.row(id).await.state, BookState::Live);
    assert_eq!(acts(&world, id).await.len(), 1);
    assert_eq!(world.available("alice").await, 0);

    world.unfreeze(id).await;
    world.settle().await;
    let closed = BookState::Closed(CloseReason::Expired);
    assert_eq!(world.row(id).await.state, closed);
    assert_eq!(world.available("alice").await, 200);
    assert_eq!(world.available("bob").await, 100);
    world.is_clean().await;
}

#[tokio::test]
async fn a_close_that_meets_a_broken_invariant_carries_it_into_the_books() {
    let mut world = World::new();
    let id = grabbed(&mut world).await;
    world.drain().await;
    world.recall(id).await;
    world.break_invariant(id).await;
    let row = world.row(id).await;
    let closed =
        red_envelope::settle::close::go_on(world.hot(), world.ledger(), world.publisher(), row)
            .await;
    assert_eq!(closed.unwrap(), red_envelope::settle::close::Closed::Frozen);
    assert!(world.row(id).await.frozen);
    assert_eq!(acts(&world, id).await, [by_itself()]);
    world.unfreeze(id).await;
    world.settle().await;
    assert_eq!(world.available("alice").await, 200);
    world.is_clean().await;
}

#[tokio::test]
async fn an_unfreeze_before_anybody_knew_leaves_both_acts_on_record() {
    let mut world = World::new();
    let id = grabbed(&mut world).await;
    world.break_invariant(id).await;
    world.unfreeze(id).await;
    let told = acts(&world, id).await;
    assert_eq!(told[0], by_itself());
    assert_eq!(
        (told[1].0.as_str(), told[1].1.as_str()),
        ("olga", "unfreeze")
    );
    world.sweep().await;
    world.win(id, "carol").await;
}

#[tokio::test]
async fn a_freeze_that_dies_between_the_stores_is_made_good_by_the_sweeper() {
    let mut world = World::new();
    let id = world.live(equal("alice", 100, 3)).await;
    dies_at("marks::after_books_freeze", world.freeze(id)).await;
    world.win(id, "bob").await;
    assert_eq!(world.drain().await.parked, 1);
    assert_eq!(world.sweep().await.marked.followed, 1);
    assert_eq!(world.grab(id, "carol").await, GrabReply::Frozen);
    world.unfreeze(id).await;
    world.settle().await;
    assert_eq!(world.available("bob").await, 100);
    world.is_clean().await;
}

#[tokio::test]
async fn an_unfreeze_that_dies_leaves_it_frozen_or_free_and_never_between() {
    for (point, frozen) in [
        ("marks::after_hot_unfreeze", true),
        ("marks::after_books_unfreeze", false),
    ] {
        for broken in [false, true] {
            let mut world = World::new();
            let id = grabbed(&mut world).await;
            match broken {
                true => world.break_invariant(id).await,
                false => world.freeze(id).await,
            }
            dies_at(point, world.unfreeze(id)).await;
            world.sweep().await;
            let mark = frozen.then_some(Mark::Books);
            assert_eq!(world.marked(id).await, mark, "{point}, broken: {broken}");
            assert_eq!(world.row(id).await.frozen, frozen, "{point}");
            world.unfreeze(id).await;
            world.win(id, "carol").await;
            world.settle().await;
            world.is_clean().await;
        }
    }
}

#[tokio::test]
async fn a_mark_that_the_books_have_no_more_is_lifted_without_an_act() {
    let mut world = World::new();
    let id = grabbed(&mut world).await;
    let under = world.hot().epochs();
    world.hot().freeze(&under, id).await.unwrap();
    assert_eq!(world.sweep().await.marked.followed, 1);
    world.win(id, "carol").await;
    assert_eq!(acts(&world, id).await, []);
}

#[tokio::test]
async fn a_broken_mark_of_a_closed_envelope_does_not_keep_it_for_ever() {
    let mut world = World::new();
    let id = grabbed(&mut world).await;
    world.drain().await;
    world.recall(id).await;
    world.settle().await;
    world.break_invariant(id).await;
    world.sweep().await;
    assert_eq!(world.marked(id).await, None);
    assert_eq!(acts(&world, id).await, []);
}

#[tokio::test]
async fn of_a_publish_and_an_unfreeze_that_cross_the_unfreeze_stands() {
    let mut world = World::new();
    let id = grabbed(&mut world).await;
    let act = world.act("freeze", id);
    world.ledger().freeze(id, act).await.unwrap();
    let (hot, ledger) = world.doors();
    let act = world.act("unfreeze", id);
    crosses("marks::between_look_and_write", move || async move {
        let unfrozen = marks::unfreeze(&*hot, &*ledger, id, act).await;
        unfrozen.unwrap();
    });
    // As at the end of a publish: it reads that the books are frozen, is crossed, and marks.
    let frozen = marks::follow(world.hot(), world.ledger(), id).await;
    assert!(!frozen.unwrap());
    assert!(crossed());
    assert_eq!(world.marked(id).await, None);
    world.win(id, "carol").await;
}

#[tokio::test]
async fn of_a_sweep_and_a_freeze_that_cross_the_freeze_stands() {
    let mut world = World::new();
    let id = grabbed(&mut world).await;
    let under = world.hot().epochs();
    world.hot().freeze(&under, id).await.unwrap();
    let (hot, ledger) = world.doors();
    let act = world.act("freeze", id);
    crosses("marks::between_look_and_write", move || async move {
        let frozen = marks::freeze(&*hot, &*ledger, id, act).await;
        frozen.unwrap();
    });
    // It reads that the books are not frozen, is crossed, and lifts the mark.
    world.sweep().await;
    assert!(crossed());
    assert_eq!(world.marked(id).await, Some(Mark::Books));
}

#[tokio::test]
async fn a_mark_on_an_envelope_whose_row_is_damaged_does_not_stop_the_refunds() {
    let mut world = World::new();
    let damaged = world.live(equal("alice", 100, 2)).await;
    world.live(equal("dave", 10, 2)).await;
    world.break_invariant(damaged).await;
    let file = world.ledger_file();
    let unguard = "DROP TRIGGER envelope_keeps_its_terms";
    file.execute_batch(unguard).unwrap();
    let damage = "UPDATE envelope SET terms = '{' WHERE id = ?1";
    assert_eq!(file.execute(damage, [damaged.to_bytes()]).unwrap(), 1);
    world.clock.advance_ms(EXPIRES_IN_MS);
    let swept = world.sweep().await;
    assert!(swept.marked.failed > 0 && swept.failure.is_some());
    assert_eq!(world.available("dave").await, 20);
    assert_eq!(world.marked(damaged).await, Some(Mark::Broken));
}
