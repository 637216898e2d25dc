//! How an envelope that is dealt to stripes ends before all of it is taken: its sender recalls it, or it expires,
//! while every stripe gives shares, while they are gathered, and afterwards.

use red_envelope_proto::v1::{EnvelopeState, GrabOutcome, RecallEnvelopeRequest};

use crate::dealt::{Phase, SHARES, STRIPES, Stage, TOTAL, crowd, people_of};
use crate::harness::fleet::{rush, seen_by};
use crate::harness::world::{in_time, unless_unavailable};
use crate::harness::{Start, cny};

/// A time at which every envelope here has expired.
const A_DAY_LATER_MS: i64 = 25 * 3_600_000;
/// People who grab while it is recalled: fewer than there are shares left.
const FEW: usize = 30;

fn back(id: &str) -> RecallEnvelopeRequest {
    RecallEnvelopeRequest {
        envelope_id: id.to_owned(),
        sender: "alice".to_owned(),
        request_id: "enough".to_owned(),
        ..RecallEnvelopeRequest::default()
    }
}

/// Nobody wins any more, who has a share hears of it, and the sender has the rest.
async fn is_over(mut stage: Stage, phase: Phase, why: GrabOutcome) {
    for stripe in 0..STRIPES {
        for grabber in people_of(&stage.id, stripe, "late").take(2) {
            let late = stage.world.grab_until_answered(&stage.id, &grabber).await;
            assert_eq!(late.outcome(), why, "{phase:?}: {grabber}");
        }
    }
    stage.the_answers_stay().await;
    let closed = stage.closes().await.progress.unwrap();
    let paid: i64 = stage.held.values().map(|(_, amount)| amount).sum();
    assert_eq!(closed.settled, Some(cny(paid)), "{phase:?}");
    assert_eq!(closed.refunded, Some(cny(TOTAL - paid)), "{phase:?}");
    let count = u32::try_from(stage.held.len()).unwrap();
    assert_eq!(closed.remaining_count, SHARES - count, "{phase:?}");
    assert_eq!(stage.world.balance("alice").await, (TOTAL - paid, 0, 0));
    stage.the_counts_are_right().await;
    let listed = stage.world.shares(&stage.id, "alice").await;
    assert_eq!(listed.len(), stage.held.len(), "{phase:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dealt_envelope_that_is_recalled_gives_back_what_nobody_has_taken() {
    for phase in Phase::ALL {
        let mut stage = Stage::at(phase, Start::default()).await;
        let world = &mut stage.world;
        let recalled = world.record.recall(&mut world.envelopes, back(&stage.id));
        let recalled = recalled.await.unwrap();
        assert_eq!(recalled.state(), EnvelopeState::Recalled, "{phase:?}");
        is_over(stage, phase, GrabOutcome::Recalled).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dealt_envelope_that_expires_gives_back_what_nobody_has_taken() {
    for phase in Phase::ALL {
        let stage = Stage::at(phase, Start::default()).await;
        stage.world.server.set_clock_ms(A_DAY_LATER_MS);
        is_over(stage, phase, GrabOutcome::Expired).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dealt_envelope_that_is_recalled_under_a_crowd_pays_who_was_told_and_no_other() {
    for phase in [Phase::Dealt, Phase::Gathered] {
        let mut stage = Stage::at(phase, Start::default()).await;
        let (record, id) = (stage.world.record.clone(), stage.id.clone());
        let clients = [stage.world.envelopes.clone()];
        let mut sender = stage.world.envelopes.clone();
        let recall = seen_by(in_time(), "it is recalled", async || {
            let recalled = record.recall(&mut sender, back(&id)).await;
            unless_unavailable(recalled)
        });
        // Fewer than there are shares: whoever comes too late is too late for one reason.
        let few = crowd().take(FEW);
        let (mut answers, _) = tokio::join!(rush(&record, &clients, &id, few), recall);
        answers.retain(|(_, answer)| answer.outcome() != GrabOutcome::Recalled);
        stage.are_told(&answers);
        is_over(stage, phase, GrabOutcome::Recalled).await;
    }
}
