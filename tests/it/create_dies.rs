//! Create dies at each of its steps: a retry finds one envelope and one debit, and without a retry
//! the money is back by expiry + 60 s.

use red_envelope_proto::v1::{EnvelopeState, ListSentEnvelopesRequest};

use crate::harness::{Hot, Start, World, cny, lucky, on_both_stores};

on_both_stores! {
    a_retry_after_any_step_finds_one_envelope_and_one_debit,
    without_a_retry_the_money_is_back_by_expiry_and_a_minute,
}

/// Where the process aborts.
const STEPS: [&str; 6] = [
    "create::after_fund",
    "publish::before_load",
    "publish::between_chunks",
    "publish::before_open",
    "publish::before_mark_live",
    "create::before_reply",
];

/// Past expiry (24 h) by as little as can be: all of the promised 60 s are the server's.
const JUST_PAST_EXPIRY_MS: i64 = 24 * 3_600_000 + 1_000;

/// The promise: refunded so many seconds after expiry at the latest.
const REFUND_LATE_S_MAX: i64 = 60;

async fn died_at(
    hot: Hot,
    step: &str,
    request: &red_envelope_proto::v1::CreateEnvelopeRequest,
) -> World {
    let deadly = Start {
        abort_at: Some(step.to_owned()),
        ..Start::on(hot)
    };
    let mut world = World::start(deadly).await;
    world.fund("alice", cny(10_000)).await;
    let reply = world.envelopes.create_envelope(request.clone()).await;
    assert!(reply.is_err(), "{step} did not strike");
    assert!(world.server.crashed().await, "{step}");
    world.restarted(Start::on(hot)).await
}

async fn a_retry_after_any_step_finds_one_envelope_and_one_debit(hot: Hot) {
    for step in STEPS {
        let request = lucky("alice", cny(5_000), 2_500);
        let mut world = died_at(hot, step, &request).await;
        let envelope = world.send(request.clone()).await;
        assert_eq!(world.balance("alice").await, (5_000, 0, 5_000), "{step}");
        let sent = world
            .envelopes
            .list_sent_envelopes(ListSentEnvelopesRequest {
                sender: "alice".to_owned(),
                ..ListSentEnvelopesRequest::default()
            })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(sent.envelopes.len(), 1, "{step}");
        assert_eq!(sent.envelopes[0].envelope_id, envelope.envelope_id);
        world.grab(&envelope.envelope_id, "bob").await;
        world.audit_when_quiet().await;
    }
}

async fn without_a_retry_the_money_is_back_by_expiry_and_a_minute(hot: Hot) {
    for step in STEPS {
        let mut world = died_at(hot, step, &lucky("alice", cny(5_000), 2_500)).await;
        assert_eq!(world.balance("alice").await, (5_000, 0, 5_000), "{step}");
        world.server.set_clock_ms(JUST_PAST_EXPIRY_MS);
        let request = ListSentEnvelopesRequest {
            sender: "alice".to_owned(),
            ..ListSentEnvelopesRequest::default()
        };
        let sent = world.envelopes.list_sent_envelopes(request).await.unwrap();
        let id = sent.into_inner().envelopes[0].envelope_id.clone();
        let closed = world.until(&id, "alice", EnvelopeState::Closed).await;
        let late_s = closed.close_time.unwrap().seconds - closed.expire_time.unwrap().seconds;
        assert!(
            (0..=REFUND_LATE_S_MAX).contains(&late_s),
            "{step}: {late_s} s"
        );
        assert_eq!(world.balance("alice").await, (10_000, 0, 0), "{step}");
        world.audit_when_quiet().await;
    }
}
