//! Settlement and publish die at each crash point; what comes after them finishes the work, once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, Once};

use futures_util::FutureExt;
use red_envelope::domain::envelope::{BookState, CloseReason};
use red_envelope::ledger::Fund;

use crate::world::{EXPIRES_IN_MS, World, equal};

const POINTS: [&str; 14] = [
    "publish::before_load",
    "publish::between_chunks",
    "publish::before_open",
    "publish::before_mark_live",
    "settle::before_post",
    "settle::after_post",
    "settle::after_settled",
    "close::after_begin",
    "close::after_hot",
    "close::before_finish",
    "close::after_finish",
    "marks::after_books_freeze",
    "marks::after_hot_unfreeze",
    "marks::after_books_unfreeze",
];

thread_local! {
    /// The point at which this thread's test dies next.
    static ARMED: RefCell<Option<&'static str>> = const { RefCell::new(None) };
}

/// The crash points are the process's, the tests are many: each point asks whether the thread that
/// passes it is to die there.
fn lay_points() {
    static LAID: Once = Once::new();
    LAID.call_once(|| {
        for point in POINTS {
            let die = move || {
                let here = ARMED.with_borrow(|armed| *armed == Some(point));
                if here {
                    ARMED.set(None);
                    std::panic::resume_unwind(Box::new(point));
                }
            };
            at(point, die);
        }
    });
}

/// Has every thread that passes `point` call this too.
pub fn at(point: &'static str, call: impl Fn() + Send + Sync + 'static) {
    type Calls = BTreeMap<&'static str, Vec<Arc<dyn Fn() + Send + Sync>>>;
    static CALLS: Mutex<Calls> = Mutex::new(BTreeMap::new());
    CALLS
        .lock()
        .unwrap()
        .entry(point)
        .or_default()
        .push(Arc::new(call));
    let all = move || {
        let calls = CALLS.lock().unwrap().get(point).cloned();
        for call in calls.into_iter().flatten() {
            call();
        }
    };
    fail::cfg_callback(point, all).unwrap();
}

/// Runs `step` until it dies at `point`: its future is dropped there, as a process would be.
pub async fn dies_at<T>(point: &'static str, step: impl Future<Output = T>) {
    lay_points();
    ARMED.set(Some(point));
    let died = AssertUnwindSafe(step).catch_unwind().await;
    assert!(died.is_err(), "{point} was not passed");
    assert!(ARMED.with_borrow(Option::is_none));
}

#[tokio::test]
async fn settlement_that_dies_at_any_point_pays_each_grab_once() {
    for point in POINTS.iter().filter(|point| point.starts_with("settle::")) {
        let mut world = World::new();
        let id = world.live(equal("alice", 10, 30)).await;
        for n in 0..20 {
            world.win(id, &format!("p{n}")).await;
        }
        dies_at(point, world.settlement().drain_once()).await;
        world.is_clean().await;
        // The same process goes on, and then another one.
        let world = world.reopen().await;
        world.settle().await;
        for n in 0..20 {
            assert_eq!(world.available(&format!("p{n}")).await, 10, "{point}");
        }
        let report = world.is_clean().await;
        assert!(report.quiet);
        assert_eq!(report.claim_count, 20);
    }
}

#[tokio::test]
async fn a_close_that_dies_at_any_point_refunds_once() {
    for point in POINTS.iter().filter(|point| point.starts_with("close::")) {
        let mut world = World::new();
        let id = world.live(equal("alice", 10, 30)).await;
        world.win(id, "bob").await;
        world.drain().await;
        world.clock.advance_ms(EXPIRES_IN_MS);
        dies_at(point, world.settlement().sweep_once()).await;
        world.is_clean().await;
        let world = world.reopen().await;
        world.settle().await;
        assert_eq!(world.available("alice").await, 290, "{point}");
        assert_eq!(world.available("bob").await, 10, "{point}");
        let row = world.row(id).await;
        assert_eq!(row.state, BookState::Closed(CloseReason::Expired));
        assert!(world.is_clean().await.quiet);
    }
}

#[tokio::test]
async fn a_publish_that_dies_at_any_point_is_finished_by_a_retry() {
    for point in POINTS.iter().filter(|point| point.starts_with("publish::")) {
        let mut world = World::new();
        world.deposit("alice", 3_000).await;
        let id = world.fund(equal("alice", 1, 3_000)).await;
        dies_at(point, world.publisher().publish(id)).await;
        world.is_clean().await;
        world.publish(id).await;
        assert_eq!(world.row(id).await.state, BookState::Live, "{point}");
        world.win(id, "bob").await;
        world.settle().await;
        assert_eq!(world.available("bob").await, 1);
        assert_eq!(world.available("alice").await, 0);
        world.is_clean().await;
    }
}

#[tokio::test]
async fn a_create_that_is_repeated_after_any_step_has_one_envelope_and_one_debit() {
    let points = POINTS.iter().filter(|point| point.starts_with("publish::"));
    // Inside the publish, and right after the hold.
    for point in points.map(Some).chain([None]) {
        let mut world = World::new();
        world.deposit("alice", 6_000).await;
        let request = Fund {
            request_id: world.request_id(),
            request_hash: [7; 32],
            draft: equal("alice", 1, 3_000),
        };
        let first = world.ledger().fund(request.clone()).await.unwrap();
        let id = first.envelope.id;
        if let Some(point) = point {
            dies_at(point, world.publisher().publish(id)).await;
        }
        let world = world.reopen().await;
        let again = world.ledger().fund(request).await.unwrap();
        assert_eq!((again.replayed, again.envelope.id), (true, id), "{point:?}");
        world.publish(id).await;
        world.publish(id).await;
        assert_eq!(world.available("alice").await, 3_000);
        assert_eq!(world.row(id).await.state, BookState::Live);
        assert_eq!(world.is_clean().await.envelope_count, 1);
    }
}

#[tokio::test]
async fn a_publish_that_dies_for_good_is_refunded_by_expiry_and_sixty_seconds() {
    for point in POINTS.iter().filter(|point| point.starts_with("publish::")) {
        let mut world = World::new();
        world.deposit("alice", 3_000).await;
        let id = world.fund(equal("alice", 1, 3_000)).await;
        dies_at(point, world.publisher().publish(id)).await;
        let world = world.reopen().await;
        world.clock.advance_ms(EXPIRES_IN_MS + 60_000);
        world.sweep().await;
        assert_eq!(world.available("alice").await, 3_000, "{point}");
        let state = world.row(id).await.state;
        assert_eq!(state, BookState::Closed(CloseReason::Expired), "{point}");
        assert!(world.is_clean().await.quiet);
    }
}
