//! Not open yet, expired, recalled, declined: nobody grabs, and what nobody took goes home.

use red_envelope_proto::v1::{
    CloseReason, CreateEnvelopeRequest, DeclineEnvelopeRequest, EnvelopeState,
    FreezeEnvelopeRequest, GetFairnessProofRequest, GrabOutcome, RecallEnvelopeRequest,
    RefusalReason, UnfreezeEnvelopeRequest,
};
use tonic::Code;

use crate::harness::world::grab_of;
use crate::harness::{Hot, Start, World, cny, exclusive, lucky, on_both_stores};

on_both_stores! {
    an_envelope_opens_at_its_time_and_stays_open_when_the_clock_steps_back,
    an_expired_envelope_pays_its_winners_and_refunds_the_rest,
    a_recalled_envelope_goes_home_and_only_its_sender_can_recall_it,
    an_empty_envelope_can_no_longer_be_recalled,
    a_declined_share_goes_back_to_the_sender_and_cannot_be_grabbed,
    a_frozen_envelope_stands_still_until_an_operator_lets_it_go_on,
    the_proof_is_revealed_when_the_envelope_is_closed_and_not_before,
}

/// An hour, in milliseconds.
const HOUR_MS: i64 = 3_600_000;

async fn world(hot: Hot) -> World {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(10_000)).await;
    world
}

fn recall_of(envelope_id: &str, sender: &str) -> RecallEnvelopeRequest {
    RecallEnvelopeRequest {
        envelope_id: envelope_id.to_owned(),
        sender: sender.to_owned(),
        request_id: "recall-1".to_owned(),
        ..RecallEnvelopeRequest::default()
    }
}

fn decline_of(envelope_id: &str, grabber: &str) -> DeclineEnvelopeRequest {
    DeclineEnvelopeRequest {
        envelope_id: envelope_id.to_owned(),
        grabber: grabber.to_owned(),
        request_id: "decline-1".to_owned(),
        ..DeclineEnvelopeRequest::default()
    }
}

async fn an_envelope_opens_at_its_time_and_stays_open_when_the_clock_steps_back(hot: Hot) {
    let mut world = world(hot).await;
    let now = std::time::SystemTime::now();
    let opens = now + std::time::Duration::from_secs(3_600);
    let request = CreateEnvelopeRequest {
        open_time: Some(opens.into()),
        ..lucky("alice", cny(1_000), 10)
    };
    let id = world.send(request).await.envelope_id;

    let early = world.grab(&id, "bob").await;
    assert_eq!(early.outcome(), GrabOutcome::NotOpenYet);
    assert_eq!(early.share, None);
    assert!(early.open_time.is_some());
    world.server.set_clock_ms(2 * HOUR_MS);
    assert_eq!(world.grab(&id, "bob").await.outcome(), GrabOutcome::Won);
    world.server.set_clock_ms(0);
    assert_eq!(world.grab(&id, "carol").await.outcome(), GrabOutcome::Won);
    world.audit_when_quiet().await;
}

async fn an_expired_envelope_pays_its_winners_and_refunds_the_rest(hot: Hot) {
    let mut world = world(hot).await;
    let id = world
        .send(lucky("alice", cny(10_000), 10))
        .await
        .envelope_id;
    let won = world.grab(&id, "bob").await.share.unwrap();
    let won = won.amount.unwrap().minor_units;
    assert_eq!(world.balance("alice").await.0, 0);
    // A grab that is a day old and not settled has new grabs turned away.
    world.audit_when_quiet().await;

    world.server.set_clock_ms(25 * HOUR_MS);
    assert_eq!(
        world.grab(&id, "carol").await.outcome(),
        GrabOutcome::Expired
    );
    let again = world.grab(&id, "bob").await;
    assert_eq!(again.outcome(), GrabOutcome::AlreadyGrabbed);
    let closed = world.until(&id, "alice", EnvelopeState::Closed).await;
    assert_eq!(closed.close_reason(), CloseReason::Expired);
    assert_eq!(closed.progress.unwrap().refunded, Some(cny(10_000 - won)));
    assert_eq!(world.balance("alice").await, (10_000 - won, 0, 0));
    assert_eq!(world.balance("bob").await, (won, 0, 0));
    // The answers stay the same for ever, also in another process that has forgotten the shares.
    let mut world = world.restarted(Start::on(hot)).await;
    assert_eq!(
        world.grab(&id, "carol").await.outcome(),
        GrabOutcome::Expired
    );
    let share = world.grab(&id, "bob").await.share.unwrap();
    assert_eq!(share.amount, Some(cny(won)));
    world.audit_when_quiet().await;
}

async fn a_recalled_envelope_goes_home_and_only_its_sender_can_recall_it(hot: Hot) {
    let mut world = world(hot).await;
    let id = world
        .send(lucky("alice", cny(10_000), 10))
        .await
        .envelope_id;
    let won = world.grab(&id, "bob").await.share.unwrap();
    let won = won.amount.unwrap().minor_units;

    let status = world
        .envelopes
        .recall_envelope(recall_of(&id, "bob"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    for replayed in [false, true] {
        let reply = world
            .envelopes
            .recall_envelope(recall_of(&id, "alice"))
            .await
            .unwrap();
        assert_eq!(reply.into_inner().replayed, replayed);
    }
    assert_eq!(
        world.grab(&id, "carol").await.outcome(),
        GrabOutcome::Recalled
    );
    let closed = world.until(&id, "alice", EnvelopeState::Closed).await;
    assert_eq!(closed.close_reason(), CloseReason::Recalled);
    assert_eq!(world.available("alice").await, 10_000 - won);
    let reply = world
        .envelopes
        .recall_envelope(recall_of(&id, "alice"))
        .await
        .unwrap();
    assert!(reply.into_inner().replayed);
    world.audit_when_quiet().await;
}

async fn an_empty_envelope_can_no_longer_be_recalled(hot: Hot) {
    let mut world = world(hot).await;
    let id = world.send(lucky("alice", cny(100), 1)).await.envelope_id;
    world.grab(&id, "bob").await;
    let status = world
        .envelopes
        .recall_envelope(recall_of(&id, "alice"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let closed = world.until(&id, "alice", EnvelopeState::Closed).await;
    assert_eq!(closed.close_reason(), CloseReason::Empty);
    assert_eq!(world.grab(&id, "carol").await.outcome(), GrabOutcome::Empty);
    world.audit_when_quiet().await;
}

async fn a_declined_share_goes_back_to_the_sender_and_cannot_be_grabbed(hot: Hot) {
    let mut world = world(hot).await;
    let id = world
        .send(exclusive("alice", &[("bob", 600), ("carol", 400)]))
        .await
        .envelope_id;

    for replayed in [false, true] {
        let reply = world
            .envelopes
            .decline_envelope(decline_of(&id, "bob"))
            .await
            .unwrap();
        let reply = reply.into_inner();
        assert_eq!(reply.replayed, replayed);
        assert!(reply.share.unwrap().declined);
    }
    let answer = world.grab(&id, "bob").await;
    assert_eq!(answer.refusal(), RefusalReason::Declined);
    let status = world
        .envelopes
        .decline_envelope(decline_of(&id, "eve"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(world.grab(&id, "carol").await.outcome(), GrabOutcome::Won);
    let status = world
        .envelopes
        .decline_envelope(decline_of(&id, "carol"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);

    world.until(&id, "alice", EnvelopeState::Closed).await;
    assert_eq!(world.balance("alice").await, (9_600, 0, 0));
    assert_eq!(world.available("bob").await, 0);
    assert_eq!(world.available("carol").await, 400);
    let answer = world.grab(&id, "bob").await;
    assert_eq!(answer.refusal(), RefusalReason::Declined);
    world.audit_when_quiet().await;
}

async fn a_frozen_envelope_stands_still_until_an_operator_lets_it_go_on(hot: Hot) {
    let mut world = world(hot).await;
    let id = world.send(lucky("alice", cny(1_000), 2)).await.envelope_id;
    let freeze = FreezeEnvelopeRequest {
        envelope_id: id.clone(),
        operator: "olga".to_owned(),
        reason: "a complaint".to_owned(),
        ..FreezeEnvelopeRequest::default()
    };
    world.admin.freeze_envelope(freeze).await.unwrap();
    let status = world.try_grab(grab_of(&id, "bob")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        world.look(&id, "alice").await.state(),
        EnvelopeState::Frozen
    );
    world.server.set_clock_ms(25 * HOUR_MS);

    let unfreeze = UnfreezeEnvelopeRequest {
        envelope_id: id.clone(),
        operator: "olga".to_owned(),
        reason: "nothing found".to_owned(),
        ..UnfreezeEnvelopeRequest::default()
    };
    world.server.set_clock_ms(0);
    world.admin.unfreeze_envelope(unfreeze).await.unwrap();
    for grabber in ["bob", "carol"] {
        assert_eq!(world.grab(&id, grabber).await.outcome(), GrabOutcome::Won);
    }
    world.until(&id, "alice", EnvelopeState::Closed).await;
    world.audit_when_quiet().await;
}

async fn the_proof_is_revealed_when_the_envelope_is_closed_and_not_before(hot: Hot) {
    let mut world = world(hot).await;
    let envelope = world.send(lucky("alice", cny(1_000), 2)).await;
    let id = envelope.envelope_id;
    let ask = GetFairnessProofRequest {
        envelope_id: id.clone(),
        viewer: "alice".to_owned(),
        ..GetFairnessProofRequest::default()
    };
    let status = world
        .envelopes
        .get_fairness_proof(ask.clone())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let mut amounts = Vec::new();
    for grabber in ["bob", "carol"] {
        let share = world.grab(&id, grabber).await.share.unwrap();
        amounts.push(share.amount.unwrap().minor_units);
    }
    world.until(&id, "alice", EnvelopeState::Closed).await;
    let reply = world
        .envelopes
        .get_fairness_proof(ask)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.commitment, envelope.fairness);
    let proof: red_envelope::domain::fairness::Proof =
        serde_json::from_str(&reply.proof_json).unwrap();
    proof.verify().unwrap();
    let json: serde_json::Value = serde_json::from_str(&reply.proof_json).unwrap();
    assert_eq!(json["amounts"], serde_json::json!(amounts));
    assert_eq!(json["envelope_id"], serde_json::json!(id));
}
