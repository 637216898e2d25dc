//! Unary grabs: outcomes, audiences, envelopes that the hot store does not hold.

use std::collections::BTreeMap;

use red_envelope_proto::v1::GrabOutcome as O;

use super::*;
use crate::api::{CREATES_SHED_AGE_MS, GRABS_SHED_AGE_MS};
use crate::domain::envelope::CloseReason;

#[tokio::test]
async fn shares_sum_to_the_total_and_the_late_go_empty() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let mut sum = 0;
    for grabber in ["a", "b", "c", "d"] {
        sum += world.wins(&id, grabber).await;
    }
    assert_eq!(sum, 1_000);
    let late = world.grab(&id, "late").await.unwrap();
    assert_eq!(late.outcome(), O::Empty);
    assert_eq!(world.state(&id).await, v1::EnvelopeState::Empty);
}

#[tokio::test]
async fn the_same_grabber_gets_the_same_share_each_time_also_after_the_close() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 1)).await;
    let first = world.grab(&id, "bob").await.unwrap();
    assert_eq!(first.outcome(), O::Won);
    for close in [false, true] {
        if close {
            world.close(&id).await;
            let hot_id = vec![id.parse().unwrap()];
            let under = world.hot.epochs();
            world.hot.remove(&under, hot_id.clone()).await.unwrap();
            assert!(world.hot.view(hot_id).await.unwrap()[0].is_none());
        }
        let again = world.grab(&id, "bob").await.unwrap();
        assert_eq!(again.outcome(), O::AlreadyGrabbed);
        assert_eq!(again.share, first.share);
    }
    assert_eq!(world.grab(&id, "eve").await.unwrap().outcome(), O::Empty);
    // Who comes later still is answered without another look at the envelope's row.
    let closed = world.services.api.facts.closed(&id.parse().unwrap());
    assert_eq!(closed, Some(CloseReason::Empty));
    assert_eq!(world.grab(&id, "fay").await.unwrap().outcome(), O::Empty);
    let again = world.grab(&id, "bob").await.unwrap();
    assert_eq!(
        (again.outcome(), again.share),
        (O::AlreadyGrabbed, first.share)
    );
}

#[tokio::test]
async fn unknown_and_not_for_this_caller_are_alike() {
    let world = World::with_alice().await;
    let mut named = lucky("r1", 1_000, 2);
    named.audience = Some(v1::Audience {
        audience: Some(v1::audience::Audience::Named(v1::audience::Named {
            grabbers: vec!["bob".into()],
        })),
    });
    let id = world.send(named).await;
    let unknown = EnvelopeId::from_parts(20_000, [1; 14]).to_string();
    let forbidden = failure(world.grab(&id, "eve").await);
    assert_eq!(forbidden, not_found());
    assert_eq!(failure(world.grab(&unknown, "eve").await), forbidden);
    assert_eq!(failure(world.grab(&unknown, "eve").await), forbidden);
    let elsewhere = v1::GrabRequest {
        tenant: "shop".into(),
        envelope_id: id.clone(),
        grabber: "bob".into(),
        ..Default::default()
    };
    assert_eq!(failure(world.grab_with(elsewhere).await), forbidden);
    world.wins(&id, "bob").await;
}

#[tokio::test]
async fn a_group_is_entered_through_the_group() {
    let world = World::with_alice().await;
    let mut request = lucky("r1", 1_000, 2);
    request.audience = Some(v1::Audience {
        audience: Some(v1::audience::Audience::Group(v1::audience::Group {
            group_id: "family".into(),
        })),
    });
    let id = world.send(request).await;
    let through = |group_id: &str| v1::GrabRequest {
        envelope_id: id.clone(),
        grabber: "bob".into(),
        group_id: group_id.into(),
        ..Default::default()
    };
    assert_eq!(failure(world.grab_with(through("work")).await), not_found());
    assert_eq!(failure(world.grab_with(through("")).await), not_found());
    let won = world.grab_with(through("family")).await.unwrap();
    assert_eq!(won.outcome(), O::Won);
}

#[tokio::test]
async fn a_passphrase_is_asked_of_every_grabber_five_times() {
    let world = World::with_alice().await;
    let mut request = lucky("r1", 1_000, 2);
    request.passphrase = "caf\u{e9}".into();
    let id = world.send(request).await;
    let with = |grabber: &str, passphrase: &str| v1::GrabRequest {
        envelope_id: id.clone(),
        grabber: grabber.into(),
        passphrase: passphrase.into(),
        ..Default::default()
    };
    for _ in 0..5 {
        let wrong = world.grab_with(with("eve", "cafe")).await.unwrap();
        assert_eq!(wrong.outcome(), O::Refused);
        assert_eq!(wrong.refusal(), v1::RefusalReason::WrongPassphrase);
    }
    let sixth = world.grab_with(with("eve", "caf\u{e9}")).await.unwrap();
    assert_eq!(sixth.refusal(), v1::RefusalReason::TooManyTries);
    let right = world.grab_with(with("bob", "cafe\u{301}")).await.unwrap();
    assert_eq!(right.outcome(), O::Won);
}

#[tokio::test]
async fn an_envelope_is_grabbed_between_its_opening_and_its_expiry() {
    let world = World::with_alice().await;
    let mut request = lucky("r1", 1_000, 2);
    request.open_time = Some(prost_types::Timestamp {
        seconds: NOON_MS / 1_000 + 10,
        nanos: 0,
    });
    request.expires_in = Some(prost_types::Duration {
        seconds: 60,
        nanos: 0,
    });
    let open_time = request.open_time;
    let id = world.send(request).await;
    let early = world.grab(&id, "bob").await.unwrap();
    assert_eq!(
        (early.outcome(), early.open_time),
        (O::NotOpenYet, open_time)
    );
    world.clock.advance_ms(10_000);
    world.wins(&id, "bob").await;
    world.clock.advance_ms(50_000);
    let late = world.grab(&id, "carol").await.unwrap();
    assert_eq!(late.outcome(), O::Expired);
    let again = world.grab(&id, "bob").await.unwrap();
    assert_eq!(again.outcome(), O::AlreadyGrabbed);
}

#[tokio::test]
async fn a_sender_grabs_only_what_the_rules_let_a_sender_grab() {
    let strict = World::made(Making {
        sender_may_grab: false,
        gate: None,
    })
    .await;
    strict.deposit("alice", 1_000).await;
    let id = strict.send(lucky("r1", 100, 2)).await;
    let own = strict.grab(&id, "alice").await.unwrap();
    assert_eq!(own.refusal(), v1::RefusalReason::OwnEnvelope);

    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 100, 2)).await;
    world.wins(&id, "alice").await;
    let mut equal = lucky("r2", 100, 2);
    equal.kind = v1::EnvelopeKind::Equal.into();
    let id = world.send(equal).await;
    let own = world.grab(&id, "alice").await.unwrap();
    assert_eq!(own.refusal(), v1::RefusalReason::OwnEnvelope);
}

/// What Create had written when it died: the money is held, and the hot store knows of nothing.
async fn held_alone(world: &World) -> String {
    let template = world.send(lucky("template", 1_000, 4)).await;
    let rows = world
        .ledger
        .envelopes(vec![template.parse().unwrap()])
        .await;
    let terms = rows.unwrap().remove(0).unwrap().terms;
    let funded = world
        .ledger
        .fund(crate::ledger::Fund {
            request_id: crate::domain::id::PersonId::parse("died").unwrap(),
            request_hash: [1; 32],
            draft: terms.draft.clone(),
        })
        .await
        .unwrap();
    let id = funded.envelope.id;
    assert!(world.hot.view(vec![id]).await.unwrap()[0].is_none());
    id.to_string()
}

/// Each grab of an envelope that is not there asks the store twice.
#[tokio::test]
async fn once_the_budget_is_spent_who_would_ask_again_is_told_to_come_again() {
    let world = World::with_alice().await;
    let retries = &world.services.api.retries;
    while retries.again() {}
    let id = held_alone(&world).await;
    let refused = world.grab(&id, "bob").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.get_details_retry_info().is_some(), "{refused}");
    // It is there by now, so he is served at the first asking.
    world.wins(&id, "bob").await;
}

#[tokio::test]
async fn a_grab_publishes_an_envelope_whose_create_died_after_the_hold() {
    let world = World::with_alice().await;
    let id = held_alone(&world).await;
    assert_eq!(world.state(&id).await, v1::EnvelopeState::Funding);
    world.wins(&id, "bob").await;
    assert_eq!(world.state(&id).await, v1::EnvelopeState::Live);
}

#[tokio::test]
async fn a_grab_that_has_the_wrong_shape_names_every_field() {
    let world = World::new().await;
    let wrong = v1::GrabRequest {
        tenant: "A".into(),
        envelope_id: "1".into(),
        group_ticket: vec![1],
        ..Default::default()
    };
    let status = world.grab_with(wrong).await.unwrap_err();
    let named = status.get_details_bad_request().unwrap().field_violations;
    let fields: Vec<_> = named.into_iter().map(|v| v.field).collect();
    assert_eq!(fields, ["tenant", "envelope_id", "grabber", "group_ticket"]);
}

#[tokio::test]
async fn a_thousand_grabbers_at_once_get_exactly_the_shares_there_are() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 5_000, 50)).await;
    let grabs = (0..1_000).map(|i| {
        let mut envelopes = world.envelopes.clone();
        let request = v1::GrabRequest {
            envelope_id: id.clone(),
            grabber: format!("g{}", i % 500),
            ..Default::default()
        };
        tokio::spawn(async move { envelopes.grab(request).await.unwrap().into_inner() })
    });
    let mut shares: BTreeMap<u32, (String, i64)> = BTreeMap::new();
    let mut won = 0;
    for answer in futures_util::future::join_all(grabs).await {
        let answer = answer.unwrap();
        won += u32::from(answer.outcome() == O::Won);
        let Some(share) = answer.share else {
            assert_eq!(answer.outcome(), O::Empty);
            continue;
        };
        let mine = (share.grabber, share.amount.unwrap().minor_units);
        let first = shares.entry(share.number).or_insert_with(|| mine.clone());
        assert_eq!(*first, mine);
    }
    assert_eq!((won, shares.len()), (50, 50));
    assert_eq!(shares.values().map(|(_, minor)| minor).sum::<i64>(), 5_000);
}

#[tokio::test]
async fn while_settlement_is_behind_envelopes_are_turned_away_and_then_grabs() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let behind = (Code::Unavailable, "SETTLEMENT_BEHIND".to_owned());

    world.services.settlement_is_behind(CREATES_SHED_AGE_MS);
    world.send(lucky("r2", 100, 4)).await;
    world.services.settlement_is_behind(CREATES_SHED_AGE_MS + 1);
    let turned_away = world.create(lucky("r3", 100, 4)).await;
    let told = turned_away.as_ref().unwrap_err().get_details_retry_info();
    assert!(told.is_some());
    assert_eq!(failure(turned_away), behind);
    // What was done before is answered as ever.
    assert!(world.create(lucky("r2", 100, 4)).await.unwrap().replayed);
    let share = world.wins(&id, "bob").await;

    world.services.settlement_is_behind(GRABS_SHED_AGE_MS + 1);
    assert_eq!(failure(world.grab(&id, "carol").await), behind);
    assert_eq!(world.balance("alice").await.2, 1_100, "nothing was held");

    // It has caught up: the same calls are served.
    world.services.settlement_is_behind(0);
    assert!(!world.create(lucky("r3", 100, 4)).await.unwrap().replayed);
    world.wins(&id, "carol").await;
    let again = world.grab(&id, "bob").await.unwrap().share.unwrap();
    assert_eq!(again.amount.unwrap().minor_units, share);
}
