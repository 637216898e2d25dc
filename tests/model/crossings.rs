//! What happens in the middle of another step, to its end, on a thread of its own.

use std::cell::RefCell;
use std::sync::Once;

use red_envelope::domain::envelope::{BookState, CloseReason, HotState};

use crate::world::{World, equal};

const POINTS: [&str; 3] = [
    "marks::between_look_and_write",
    "publish::before_permit",
    "publish::before_load",
];

type Crossing = (&'static str, Box<dyn FnOnce()>);

thread_local! {
    /// What happens when this thread's test next passes a point.
    static CROSSING: RefCell<Option<Crossing>> = const { RefCell::new(None) };
}

/// Runs `crossing` where this thread next passes `point`: the step that passes it waits there.
pub fn crosses<F: Future<Output = ()>>(
    point: &'static str,
    crossing: impl FnOnce() -> F + Send + 'static,
) {
    static LAID: Once = Once::new();
    LAID.call_once(|| {
        for point in POINTS {
            crate::crashes::at(point, move || {
                let here = CROSSING.with_borrow(|set| set.as_ref().is_some_and(|s| s.0 == point));
                if here && let Some((_, crossing)) = CROSSING.take() {
                    crossing();
                }
            });
        }
    });
    let apart = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(crossing());
    };
    let run = || std::thread::spawn(apart).join().unwrap();
    CROSSING.set(Some((point, Box::new(run))));
}

/// Whether it has happened.
pub fn crossed() -> bool {
    CROSSING.with_borrow(Option::is_none)
}

/// A publish is crossed at `point` by all that ends the envelope and has the hot store forget it.
async fn ended_and_forgotten_at(point: &'static str) {
    let mut world = World::new();
    // More than one chunk, so that a permit is asked for.
    let id = world.fund_for(equal("alice", 1, 2_500)).await;
    let (meanwhile, clock) = (world.second_settlement(), world.clock.clone());
    let (_, ledger) = world.doors();
    crosses(point, move || async move {
        let begun = ledger.begin_close(id, CloseReason::Recalled).await;
        begun.unwrap();
        assert_eq!(meanwhile.sweep_once().await.unwrap().closed, 1);
        clock.advance_ms(red_envelope::settle::CLOSED_KEPT_MS);
        assert_eq!(meanwhile.forget_once().await.unwrap(), 1);
    });
    let state = world.publisher().publish(id).await.unwrap();
    assert!(crossed(), "{point} was not passed");
    let recalled = CloseReason::Recalled;
    assert_eq!(state, HotState::Over(recalled), "{point}");
    assert_eq!(world.row(id).await.state, BookState::Closed(recalled));
    let view = world.hot().view(vec![id]).await.unwrap().remove(0);
    let live = view.is_some_and(|view| view.state == HotState::Live);
    assert!(!live, "{point}: a closed envelope can be grabbed");
    assert_eq!(world.available("alice").await, 2_500);
    world.is_clean().await;
}

#[tokio::test]
async fn an_envelope_that_was_forgotten_while_its_publish_waited_is_not_loaded() {
    ended_and_forgotten_at("publish::before_permit").await;
}

#[tokio::test]
async fn an_envelope_that_was_forgotten_while_it_was_loaded_ends_at_once() {
    ended_and_forgotten_at("publish::before_load").await;
}
