//! Dead letters: who is paid, who is not, and that the rest goes back.

use red_envelope::domain::envelope::{BookState, CloseReason, shares_checksum};
use red_envelope::domain::id::{EnvelopeId, Partition};
use red_envelope::hot::LoadChunk;
use red_envelope::ledger::{SettleItem, Under};
use red_envelope::settle::CLOSED_KEPT_MS;

use crate::world::{EXPIRES_IN_MS, World, equal};

/// Two shares of alice's that are worth 100 each, of which the hot store gives out the first as 150.
async fn with_other_amounts(world: &mut World) -> EnvelopeId {
    let id = world.fund_for(equal("alice", 100, 2)).await;
    let chunk = LoadChunk {
        envelope: id,
        terms: world.row(id).await.terms,
        offset: 0,
        amounts_minor: vec![150, 50],
    };
    let under = world.hot().epochs();
    world.hot().load(&under, chunk).await.unwrap();
    let checksum = shares_checksum(&[150, 50]);
    world.hot().open(&under, id, checksum).await.unwrap();
    id
}

#[tokio::test]
async fn a_grant_that_the_seed_denies_is_set_aside_and_the_others_settle() {
    let mut world = World::new();
    let healthy = world.live(equal("alice", 50, 2)).await;
    let poisoned = with_other_amounts(&mut world).await;
    world.win(poisoned, "bob").await;
    world.win(healthy, "bob").await;
    let drained = world.drain().await;
    assert_eq!((drained.paid, drained.dead_letters), (1, 1));
    assert_eq!(world.available("bob").await, 50);
    assert_eq!(world.drain().await.records, 0);
    // Its close is blocked, the other one's is not.
    world.clock.advance_ms(EXPIRES_IN_MS);
    world.settle().await;
    assert_eq!(world.available("alice").await, 50);
    assert!(matches!(
        world.row(poisoned).await.state,
        BookState::Closing(_)
    ));
    let letters = world.ledger().dead_letters(None, 0, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].reason, "amount_mismatch");
}

#[tokio::test]
async fn who_won_by_a_record_that_was_damaged_is_paid_once_it_is_dismissed() {
    let mut world = World::new();
    let id = world.live(equal("alice", 100, 2)).await;
    let grant = world.win(id, "bob").await;
    // On its way into the books the amount became another one.
    let partition = Partition::ZERO;
    let epoch = world.hot().epoch(partition);
    let mut entries = world.hot().outbox(partition, None, 10).await.unwrap();
    let mut entry = entries.remove(0);
    let mut record = entry.records.remove(0);
    record.grant.amount_minor = 7;
    let aside = vec![SettleItem::SetAside(record, "amount_mismatch")];
    let under = Under { partition, epoch };
    world.ledger().settle(under, aside).await.unwrap();
    let done = vec![(entry.id, entry.nonce)];
    world.hot().settled(epoch, partition, done).await.unwrap();
    world.clock.advance_ms(EXPIRES_IN_MS);
    world.settle().await;
    let expired = CloseReason::Expired;
    assert_eq!(world.row(id).await.state, BookState::Closing(expired));

    let letters = world.ledger().dead_letters(None, 0, 10).await.unwrap();
    let act = world.act("dismiss_dead_letter", id);
    let dismissed =
        world
            .ledger()
            .dismiss_dead_letter(letters[0].row, Some(grant.amount_minor), act);
    assert!(dismissed.await.unwrap().is_dismissed());
    // Nothing goes back to the sender before bob is paid.
    world.settle().await;
    assert_eq!(world.row(id).await.state, BookState::Closing(expired));
    assert_eq!(world.settlement().reconcile_once().await.unwrap().posted, 0);
    world.clock.advance_ms(10_000);
    assert_eq!(world.settlement().reconcile_once().await.unwrap().posted, 1);
    world.settle().await;
    assert_eq!(world.row(id).await.state, BookState::Closed(expired));
    assert_eq!(world.available("bob").await, 100);
    assert_eq!(world.available("alice").await, 100);
    world.is_clean().await;
}

#[tokio::test]
async fn a_share_that_is_granted_as_a_dismissed_letter_said_is_a_letter_again_and_is_corrected() {
    let mut world = World::new();
    let id = with_other_amounts(&mut world).await;
    // Before anybody is told so, somebody writes it into the outbox.
    let bob = world.win(id, "bob").await;
    let told = world.hot().outbox(Partition::ZERO, None, 10).await.unwrap();
    let granted = told[0].records[0].clone();
    assert_eq!(bob.amount_minor, 150);
    let under = Under {
        partition: Partition::ZERO,
        epoch: world.hot().epoch(Partition::ZERO),
    };
    let forged = SettleItem::SetAside(granted, "amount_mismatch");
    world.ledger().settle(under, vec![forged]).await.unwrap();
    let letters = world.ledger().dead_letters(None, 0, 10).await.unwrap();
    let letter = letters[0].row;
    let act = world.act("dismiss_dead_letter", id);
    let dismissed = world
        .ledger()
        .dismiss_dead_letter(letter, Some(100), act)
        .await;
    assert!(dismissed.unwrap().is_dismissed());
    // And then it comes as it was granted.
    assert_eq!(world.drain().await.dead_letters, 1);
    world.clock.advance_ms(EXPIRES_IN_MS);
    world.settle().await;
    let expired = CloseReason::Expired;
    assert_eq!(world.row(id).await.state, BookState::Closing(expired));
    let letters = world.ledger().dead_letters(None, 0, 10).await.unwrap();
    assert_eq!((letters[0].row, letters[0].tries), (letter, 1));
    let act = world.act("replay_dead_letter", id);
    let corrected = world
        .ledger()
        .correct_dead_letter(letter, Some(100), act)
        .await;
    assert!(corrected.unwrap().unwrap().is_corrected());
    world.settle().await;
    assert_eq!(world.row(id).await.state, BookState::Closed(expired));
    assert_eq!(world.available("bob").await, 100);
    assert_eq!(world.available("alice").await, 100);
    // Nothing is posted any more for what the hot store still says.
    world.clock.advance_ms(CLOSED_KEPT_MS);
    assert_eq!(world.settlement().reconcile_once().await.unwrap().posted, 0);
    assert_eq!(world.settlement().forget_once().await.unwrap(), 1);
    assert!(world.is_clean().await.quiet);
}
