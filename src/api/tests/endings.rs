//! Recall and decline: how envelopes end early, and what is heard afterwards.

use red_envelope_proto::v1::EnvelopeState as S;

use super::*;

async fn decline(
    world: &World,
    id: &str,
    grabber: &str,
) -> Result<v1::DeclineEnvelopeResponse, Status> {
    let request = v1::DeclineEnvelopeRequest {
        envelope_id: id.into(),
        grabber: grabber.into(),
        request_id: "x".into(),
        ..Default::default()
    };
    let answer = world.envelopes.clone().decline_envelope(request).await?;
    Ok(answer.into_inner())
}

#[tokio::test]
async fn a_recalled_envelope_gives_nothing_more_and_refunds_the_rest() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let won = world.wins(&id, "bob").await;
    assert_eq!(failure(world.recall(&id, "bob").await), not_found());
    let recalled = world.recall(&id, "alice").await.unwrap();
    assert!(!recalled.replayed);
    assert_eq!(recalled.envelope.unwrap().state(), S::Recalled);
    let late = world.grab(&id, "carol").await.unwrap();
    assert_eq!(late.outcome(), v1::GrabOutcome::Recalled);
    world.close(&id).await;
    assert_eq!(world.balance("alice").await, (10_000 - won, 0, 0));
    let again = world.recall(&id, "alice").await.unwrap();
    assert!(again.replayed);
    assert_eq!(again.envelope.unwrap().state(), S::Closed);
}

#[tokio::test]
async fn what_is_over_for_another_reason_cannot_be_recalled() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 1)).await;
    world.wins(&id, "bob").await;
    for close in [false, true] {
        if close {
            world.close(&id).await;
        }
        let over = world.recall(&id, "alice").await;
        assert_eq!(failure(over), refused("ALREADY_OVER"));
    }
    let row = world.ledger.envelopes(vec![id.parse().unwrap()]).await;
    let state = row.unwrap().remove(0).unwrap().state;
    let empty = crate::domain::envelope::CloseReason::Empty;
    assert_eq!(state, crate::domain::envelope::BookState::Closed(empty));
}

#[tokio::test]
async fn an_envelope_that_ran_empty_beside_the_recall_stays_empty() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 1)).await;
    world.wins(&id, "bob").await;
    // The recall had passed its first look when the last share went.
    let reason = crate::domain::envelope::CloseReason::Recalled;
    world
        .ledger
        .begin_close(id.parse().unwrap(), reason)
        .await
        .unwrap();
    for _ in 0..2 {
        let over = world.recall(&id, "alice").await;
        assert_eq!(failure(over), refused("ALREADY_OVER"));
    }
    assert_eq!(world.state(&id).await, S::Empty);
}

#[tokio::test]
async fn a_declined_share_goes_back_and_cannot_be_grabbed() {
    let world = World::with_alice().await;
    let id = world
        .send(exclusive("r1", &[("bob", 300), ("carol", 700)]))
        .await;
    assert_eq!(failure(decline(&world, &id, "eve").await), not_found());
    let first = decline(&world, &id, "bob").await.unwrap();
    let again = decline(&world, &id, "bob").await.unwrap();
    assert!(!first.replayed && again.replayed);
    assert_eq!(first.share, again.share);
    assert!(first.share.unwrap().declined);
    let grab = world.grab(&id, "bob").await.unwrap();
    assert_eq!(grab.refusal(), v1::RefusalReason::Declined);
    assert_eq!(world.wins(&id, "carol").await, 700);
    let late = decline(&world, &id, "carol").await;
    assert_eq!(failure(late), refused("ALREADY_GRABBED"));
    world.close(&id).await;
    assert_eq!(world.balance("alice").await, (9_300, 0, 0));
    assert_eq!(world.balance("carol").await, (700, 0, 0));
}

#[tokio::test]
async fn only_exclusive_shares_can_be_declined() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 1)).await;
    let declined = decline(&world, &id, "bob").await;
    assert_eq!(failure(declined), refused("NOT_EXCLUSIVE"));
}

#[tokio::test]
async fn a_repeat_is_answered_as_the_first_time_though_the_hour_would_refuse_it() {
    let world = World::with_alice().await;
    let opens = |request_id: &str| v1::CreateEnvelopeRequest {
        open_time: Some(crate::api::wire::timestamp(
            crate::domain::id::UnixMs(NOON_MS).plus_ms(3_600_000),
        )),
        expires_in: Some(crate::api::wire::duration(7_200_000)),
        ..lucky(request_id, 1_000, 4)
    };
    let id = world.send(opens("r1")).await;
    // A clock that was set back: by now it would open after its expiry.
    world.clock.advance_ms(-7_200_000);
    let late = world.create(opens("r2")).await.unwrap_err();
    let named = late.get_details_bad_request().unwrap().field_violations;
    assert_eq!(named[0].field, "open_time");
    let again = world.create(opens("r1")).await.unwrap();
    assert!(again.replayed);
    assert_eq!(again.envelope.unwrap().envelope_id, id);
}
