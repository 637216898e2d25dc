//! Money from the sender's hold to the last entry.

use red_envelope::domain::books::DiscrepancyKind;
use red_envelope::domain::envelope::{BookState, CloseReason, HotState};
use red_envelope::domain::grab::{GrabReply, Outcome};
use red_envelope::hot::DeclineReply;
use red_envelope::ledger::SETTLE_TRIES_MAX;
use red_envelope::settle::{CLOSED_KEPT_MS, Drained, PUBLISH_PATIENCE_MS};
use tokio_util::sync::CancellationToken;

use crate::world::{EXPIRES_IN_MS, World, equal, exclusive, lucky};

#[tokio::test]
async fn an_envelope_is_paid_out_and_closes_when_it_is_empty() {
    let mut world = World::new();
    let id = world.live(lucky("alice", 1_000, 3)).await;
    assert_eq!(world.available("alice").await, 0);
    let mut won = 0;
    for who in ["bob", "carol", "dave"] {
        let grant = world.win(id, who).await;
        world.is_clean().await;
        world.drain().await;
        assert_eq!(world.available(who).await, grant.amount_minor);
        won += grant.amount_minor;
    }
    assert_eq!(won, 1_000);
    world.sweep().await;
    assert_eq!(
        world.row(id).await.state,
        BookState::Closed(CloseReason::Empty)
    );
    let report = world.is_clean().await;
    assert!(report.quiet);
    assert_eq!((report.claim_count, report.grant_count), (3, 3));
    assert_eq!(report.totals[0].settled_minor, 1_000);
    assert_eq!(report.totals[0].outside_minor, 1_000);
}

#[tokio::test]
async fn what_nobody_took_goes_back_to_the_sender_at_the_expiry() {
    let mut world = World::new();
    let id = world.live(lucky("alice", 1_000, 5)).await;
    let grant = world.win(id, "bob").await;
    world.clock.advance_ms(EXPIRES_IN_MS - 1);
    world.settle().await;
    assert_eq!(world.row(id).await.state, BookState::Live);
    world.clock.advance_ms(1);
    world.settle().await;
    let row = world.row(id).await;
    assert_eq!(row.state, BookState::Closed(CloseReason::Expired));
    assert_eq!(row.refunded_minor, 1_000 - grant.amount_minor);
    assert_eq!(world.available("bob").await, grant.amount_minor);
    assert_eq!(world.available("alice").await, 1_000 - grant.amount_minor);
    let late = world.grab(id, "carol").await;
    assert_eq!(late, GrabReply::Outcome(Outcome::Expired));
    assert!(world.is_clean().await.quiet);
}

#[tokio::test]
async fn the_refund_waits_for_what_was_won_and_not_yet_settled() {
    let mut world = World::new();
    let id = world.live(equal("alice", 100, 3)).await;
    world.clock.advance_ms(EXPIRES_IN_MS - 1);
    world.win(id, "bob").await;
    world.clock.advance_ms(1);
    let swept = world.sweep().await;
    assert_eq!((swept.closed, swept.waiting), (0, 1));
    assert_eq!(world.available("alice").await, 0);
    world.is_clean().await;
    world.settle().await;
    assert_eq!(world.available("alice").await, 200);
    assert_eq!(world.available("bob").await, 100);
    world.is_clean().await;
}

#[tokio::test]
async fn a_recalled_envelope_keeps_its_winners_and_refunds_the_others() {
    let mut world = World::new();
    let id = world.live(equal("alice", 100, 3)).await;
    world.win(id, "bob").await;
    world.recall(id).await;
    world.is_clean().await;
    world.settle().await;
    let row = world.row(id).await;
    assert_eq!(row.state, BookState::Closed(CloseReason::Recalled));
    assert_eq!(world.available("alice").await, 200);
    assert_eq!(world.available("bob").await, 100);
    let late = world.grab(id, "carol").await;
    assert_eq!(late, GrabReply::Outcome(Outcome::Recalled));
    world.is_clean().await;
}

#[tokio::test]
async fn a_declined_share_goes_back_to_the_sender() {
    let mut world = World::new();
    let id = world
        .live(exclusive("alice", &[("bob", 30), ("carol", 70)]))
        .await;
    assert!(matches!(
        world.decline(id, "carol").await,
        DeclineReply::Declined { .. }
    ));
    world.is_clean().await;
    assert_eq!(world.win(id, "bob").await.amount_minor, 30);
    world.settle().await;
    let row = world.row(id).await;
    assert_eq!(row.state, BookState::Closed(CloseReason::Empty));
    assert_eq!((row.settled_count, row.declined_count), (1, 1));
    assert_eq!(world.available("alice").await, 70);
    assert_eq!(world.available("carol").await, 0);
    world.is_clean().await;
}

#[tokio::test]
async fn a_frozen_envelope_stands_still_and_goes_on_where_it_stood() {
    let mut world = World::new();
    let id = world.live(equal("alice", 100, 3)).await;
    world.win(id, "bob").await;
    world.freeze(id).await;
    assert_eq!(world.drain().await.parked, 1);
    assert_eq!(world.available("bob").await, 0);
    world.is_clean().await;
    world.clock.advance_ms(EXPIRES_IN_MS + 60_001);
    world.settle().await;
    assert_eq!(world.row(id).await.state, BookState::Live);
    // Stuck is listed, whoever froze it, and so is the promise that waits.
    world
        .is_wrong_by(&[DiscrepancyKind::Stuck, DiscrepancyKind::GrantWithoutClaim])
        .await;
    world.unfreeze(id).await;
    world.settle().await;
    assert_eq!(world.available("bob").await, 100);
    assert_eq!(world.available("alice").await, 200);
    world.is_clean().await;
}

#[tokio::test]
async fn an_envelope_frozen_before_its_publish_stays_unpublished() {
    let mut world = World::new();
    world.deposit("alice", 300).await;
    let id = world.fund(equal("alice", 100, 3)).await;
    world.freeze(id).await;
    assert!(world.publisher().publish(id).await.is_err());
    assert_eq!(world.grab(id, "bob").await, GrabReply::Missing);
    world.unfreeze(id).await;
    world.publish(id).await;
    world.win(id, "bob").await;
    world.is_clean().await;
}

#[tokio::test]
async fn an_envelope_whose_row_is_damaged_is_set_aside_and_the_others_settle() {
    let mut world = World::new();
    let damaged = world.live(equal("alice", 100, 2)).await;
    let healthy = world.live(equal("alice", 50, 2)).await;
    world.win(damaged, "bob").await;
    world.win(healthy, "carol").await;
    // A restart remembers no terms.
    let world = world.reopen().await;
    let file = world.ledger_file();
    let unguard = "DROP TRIGGER envelope_keeps_its_terms";
    file.execute_batch(unguard).unwrap();
    let damage = "UPDATE envelope SET terms = '{' WHERE id = ?1";
    assert_eq!(file.execute(damage, [damaged.to_bytes()]).unwrap(), 1);
    let drained = world.drain().await;
    assert_eq!((drained.paid, drained.dead_letters), (1, 1));
    assert_eq!(world.available("carol").await, 50);
    assert_eq!(world.available("bob").await, 0);
    assert_eq!(world.drain().await, Drained::default());
    let letters = world.ledger().dead_letters(None, 0, 10).await.unwrap();
    assert_eq!(letters[0].reason, "broken_terms");
}

#[tokio::test]
async fn a_parked_record_that_the_books_refuse_does_not_stop_the_refunds() {
    let mut world = World::new();
    let poisoned = world.live(equal("alice", 10, 2)).await;
    world.live(equal("dave", 10, 2)).await;
    let poison = "CREATE TRIGGER poison BEFORE INSERT ON claim WHEN NEW.grabber = 'mallory'
        BEGIN SELECT RAISE(ABORT, 'poison'); END";
    world.ledger_file().execute_batch(poison).unwrap();
    world.win(poisoned, "mallory").await;
    world.freeze(poisoned).await;
    assert_eq!(world.drain().await.parked, 1);
    world.unfreeze(poisoned).await;
    world.clock.advance_ms(EXPIRES_IN_MS);
    let swept = world.settlement().sweep_once().await.unwrap();
    assert_eq!((swept.failed, swept.closed), (1, 1));
    assert!(swept.failure.unwrap().contains("poison"));
    assert_eq!(world.available("dave").await, 20);
}

#[tokio::test]
async fn a_record_that_the_books_refuse_is_set_aside_after_five_tries() {
    let mut world = World::new();
    let id = world.live(equal("alice", 10, 60)).await;
    let poison = "CREATE TRIGGER poison BEFORE INSERT ON claim WHEN NEW.grabber = 'mallory'
        BEGIN SELECT RAISE(ABORT, 'poison'); END";
    world.ledger_file().execute_batch(poison).unwrap();
    for n in 0..50 {
        world.win(id, &format!("p{n}")).await;
    }
    world.win(id, "mallory").await;
    // The others are paid in the first round.
    for round in 0..SETTLE_TRIES_MAX {
        let drained = world.drain().await;
        assert_eq!(drained.refused, 1, "round {round}");
        assert!(drained.refusal.is_some());
        for n in 0..50 {
            assert_eq!(world.available(&format!("p{n}")).await, 10);
        }
    }
    assert_eq!(world.drain().await.dead_letters, 1);
    assert_eq!(world.drain().await, Drained::default());
    assert_eq!(world.available("mallory").await, 0);
    world.clock.advance_ms(EXPIRES_IN_MS);
    world.settle().await;
    let state = world.row(id).await.state;
    assert_eq!(state, BookState::Closing(CloseReason::Expired));
    world
        .is_wrong_by(&[
            DiscrepancyKind::DeadLetter,
            DiscrepancyKind::GrantWithoutClaim,
        ])
        .await;
}

#[tokio::test]
async fn the_loops_pay_publish_and_refund_and_end_when_they_are_told() {
    let mut world = World::new();
    let id = world.live(equal("alice", 100, 2)).await;
    let unpublished = world.fund_for(equal("carol", 100, 1)).await;
    world.win(id, "bob").await;
    let shutdown = CancellationToken::new();
    let day = async {
        while world.available("bob").await != 100 {
            tokio::task::yield_now().await;
        }
        world.clock.advance_ms(PUBLISH_PATIENCE_MS + 1);
        while world.row(unpublished).await.state != BookState::Live {
            tokio::task::yield_now().await;
        }
        world.clock.advance_ms(EXPIRES_IN_MS);
        while world.available("alice").await != 100 || world.available("carol").await != 100 {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
    };
    let run = world.settlement().run(|max| max / 2, shutdown.clone());
    let (ended, ()) = tokio::join!(run, day);
    ended.unwrap();
    assert_eq!(world.settlement().vitals().seen().last_error, None);
    assert!(world.is_clean().await.quiet);
}

#[tokio::test]
async fn a_create_that_died_is_published_by_the_sweeper() {
    let mut world = World::new();
    world.deposit("alice", 300).await;
    let id = world.fund(equal("alice", 100, 3)).await;
    world.sweep().await;
    assert_eq!(world.row(id).await.state, BookState::Funding);
    world.clock.advance_ms(PUBLISH_PATIENCE_MS + 1);
    world.sweep().await;
    assert_eq!(world.row(id).await.state, BookState::Live);
    world.win(id, "bob").await;
    world.settle().await;
    world.is_clean().await;
}

#[tokio::test]
async fn a_create_that_died_for_good_is_refunded_at_the_expiry() {
    let mut world = World::new();
    world.deposit("alice", 300).await;
    let id = world.fund(equal("alice", 100, 3)).await;
    world.clock.advance_ms(EXPIRES_IN_MS);
    world.sweep().await;
    assert_eq!(world.available("alice").await, 300);
    // The tombstone keeps a late publisher out.
    let state = world.publisher().publish(id).await.unwrap();
    assert_eq!(state, HotState::Over(CloseReason::Expired));
    let late = world.grab(id, "bob").await;
    assert_eq!(late, GrabReply::Outcome(Outcome::Expired));
    world.is_clean().await;
}

#[tokio::test]
async fn an_envelope_recalled_before_its_publish_never_goes_live() {
    let mut world = World::new();
    let id = world.fund_for(equal("alice", 100, 3)).await;
    world.recall(id).await;
    let state = world.publisher().publish(id).await.unwrap();
    assert_eq!(state, HotState::Over(CloseReason::Recalled));
    assert_eq!(world.grab(id, "bob").await, GrabReply::Missing);
    world.settle().await;
    assert_eq!(world.available("alice").await, 300);
    world.is_clean().await;
}

#[tokio::test]
async fn publishing_and_closing_at_once_never_leaves_a_closed_envelope_live() {
    let mut world = World::new();
    for round in 0..20 {
        world.deposit("alice", 5_000).await;
        let id = world.fund(equal("alice", 1, 5_000)).await;
        let recall = async {
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            world.recall(id).await;
            world.settle().await;
        };
        let (published, ()) = tokio::join!(world.publisher().publish(id), recall);
        published.unwrap();
        world.settle().await;
        let late = world.grab(id, "bob").await;
        assert_eq!(late, GrabReply::Outcome(Outcome::Recalled));
        assert_eq!(world.available("alice").await, 5_000 * (round + 1));
        world.is_clean().await;
    }
}

#[tokio::test]
async fn a_closed_envelope_is_forgotten_after_its_retention_and_not_before() {
    let mut world = World::new();
    let id = world.live(equal("alice", 100, 1)).await;
    let open = world.live(equal("alice", 100, 1)).await;
    world.win(id, "bob").await;
    world.settle().await;
    world.clock.advance_ms(CLOSED_KEPT_MS - 1);
    assert_eq!(world.settlement().forget_once().await.unwrap(), 0);
    world.clock.advance_ms(1);
    world.settlement().forget_once().await.unwrap();
    world.settlement().forget_once().await.unwrap();
    assert_eq!(world.grab(id, "carol").await, GrabReply::Missing);
    world.is_clean().await;
    world.win(open, "carol").await;
}

#[tokio::test]
async fn many_drainers_over_the_same_records_pay_each_once() {
    let mut world = World::new();
    let id = world.live(equal("alice", 10, 50)).await;
    for n in 0..50 {
        world.win(id, &format!("p{n}")).await;
    }
    let others = [world.second_settlement(), world.second_settlement()];
    let (a, b, c) = tokio::join!(
        world.settlement().drain_once(),
        others[0].drain_once(),
        others[1].drain_once()
    );
    let drained = [a.unwrap(), b.unwrap(), c.unwrap()];
    // Each of them had all of the records in its hands.
    assert_eq!(drained.each_ref().map(|d| d.records), [50; 3]);
    assert_eq!(drained.iter().map(|d| d.paid).sum::<usize>(), 50);
    assert_eq!(drained.iter().map(|d| d.duplicates).sum::<usize>(), 100);
    assert!(drained.iter().all(|d| d.superseded + d.dead_letters == 0));
    for n in 0..50 {
        assert_eq!(world.available(&format!("p{n}")).await, 10);
    }
    world.settle().await;
    assert!(world.is_clean().await.quiet);
}

#[tokio::test]
async fn a_blocked_page_does_not_hide_the_envelopes_behind_it() {
    let mut world = World::new();
    let mut frozen = Vec::new();
    for _ in 0..5 {
        let id = world.live(equal("alice", 100, 2)).await;
        world.win(id, "bob").await;
        frozen.push(id);
    }
    let last = world.live(equal("carol", 100, 1)).await;
    world.clock.advance_ms(EXPIRES_IN_MS);
    // No drain: the first five wait for their grabs, the last one is refunded in the same tick.
    let swept = world.sweep().await;
    assert_eq!((swept.closed, swept.waiting), (1, 5));
    assert_eq!(world.available("carol").await, 100);
    assert!(matches!(world.row(last).await.state, BookState::Closed(_)));
    world.settle().await;
    world.is_clean().await;
}

#[tokio::test]
async fn a_sweep_measures_how_long_the_oldest_grab_waits_for_its_money() {
    let mut world = World::new();
    let id = world.live(equal("alice", 100, 3)).await;
    world.win(id, "bob").await;
    world.clock.advance_ms(30_001);
    world.sweep().await;
    let age_ms = || world.settlement().vitals().seen().oldest_age_ms;
    assert_eq!(age_ms(), 30_001);
    world.drain().await;
    world.sweep().await;
    assert_eq!(age_ms(), 0);
}
