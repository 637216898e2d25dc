//! Everyone at once: exactly as many winners as shares, to the minor unit.

use std::collections::{BTreeMap, BTreeSet};

use red_envelope_proto::v1::{EnvelopeState, GrabOutcome, GrabResponse, RecallEnvelopeRequest};
use tokio::task::JoinSet;

use crate::harness::world::{channel, grab_of};
use crate::harness::{Hot, World, cny, equal, lucky, on_both_stores};
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;

on_both_stores! {
    ten_thousand_grabbers_of_a_hundred_shares_make_a_hundred_winners,
    one_grabber_who_calls_a_thousand_times_holds_one_share,
    everybody_gets_the_same_of_an_equal_envelope,
    a_recall_in_the_middle_of_a_rush_ends_it_at_one_instant,
}

/// Connections that the crowd shares, as a gateway would.
const CONNECTIONS: usize = 8;

/// All grabs at once, over a few connections; the answers by grabber.
async fn rush(
    world: &World,
    envelope_id: &str,
    grabbers: impl IntoIterator<Item = String>,
) -> Vec<(String, GrabResponse)> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(EnvelopeServiceClient::new(
            channel(world.server.grpc()).await,
        ));
    }
    let mut crowd = JoinSet::new();
    for (index, grabber) in grabbers.into_iter().enumerate() {
        let mut client = clients[index % CONNECTIONS].clone();
        let request = grab_of(envelope_id, &grabber);
        let record = world.record.clone();
        crowd.spawn(async move { (grabber, record.grab(&mut client, request).await.unwrap()) });
    }
    crowd.join_all().await
}

async fn ten_thousand_grabbers_of_a_hundred_shares_make_a_hundred_winners(hot: Hot) {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(1_000_000)).await;
    let envelope = world.send(lucky("alice", cny(888_888), 100)).await;

    let names = (0..10_000).map(|n| format!("grabber-{n}"));
    let answers = rush(&world, &envelope.envelope_id, names).await;

    let mut won: BTreeMap<u32, (String, i64)> = BTreeMap::new();
    for (grabber, answer) in &answers {
        match answer.outcome() {
            GrabOutcome::Won => {
                let share = answer.share.as_ref().unwrap();
                let amount = share.amount.as_ref().unwrap().minor_units;
                assert!(amount >= 1);
                let twice = won.insert(share.number, (grabber.clone(), amount));
                assert_eq!(twice, None, "share {} was won twice", share.number);
            }
            GrabOutcome::Empty => assert_eq!(answer.share, None),
            other => panic!("{grabber}: {other:?}"),
        }
    }
    assert_eq!(answers.len(), 10_000);
    assert_eq!(won.len(), 100);
    assert_eq!(
        won.keys().copied().collect::<Vec<_>>(),
        (0..100).collect::<Vec<_>>()
    );
    assert_eq!(won.values().map(|(_, amount)| amount).sum::<i64>(), 888_888);

    let id = &envelope.envelope_id;
    let closed = world.until(id, "alice", EnvelopeState::Closed).await;
    let best = closed.best_luck.unwrap();
    let top = won
        .iter()
        .max_by_key(|(n, (_, amount))| (*amount, std::cmp::Reverse(**n)));
    assert_eq!(best.number, *top.unwrap().0);
    for (grabber, amount) in won.values() {
        assert_eq!(world.available(grabber).await, *amount);
    }
    assert_eq!(world.balance("alice").await, (1_000_000 - 888_888, 0, 0));
    let listed = world.shares(id, "alice").await;
    let listed: BTreeMap<_, _> = listed
        .into_iter()
        .map(|s| (s.number, (s.grabber, s.amount.unwrap().minor_units)))
        .collect();
    assert_eq!(listed, won);
    assert_eq!(world.record.grabs(), 10_000);
    let report = world.audit_when_quiet().await;
    assert_eq!(report.claim_count, 100);
    assert_eq!(report.totals[0].settled_minor, 888_888);
}

async fn one_grabber_who_calls_a_thousand_times_holds_one_share(hot: Hot) {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(10_000)).await;
    let envelope = world.send(lucky("alice", cny(10_000), 50)).await;
    let id = &envelope.envelope_id;

    let answers = rush(&world, id, (0..1_000).map(|_| "bob".to_owned())).await;

    let won = |outcome| {
        answers
            .iter()
            .filter(|(_, a)| a.outcome() == outcome)
            .count()
    };
    assert_eq!(won(GrabOutcome::Won), 1);
    assert_eq!(won(GrabOutcome::AlreadyGrabbed), 999);
    let shares: BTreeSet<String> = answers
        .iter()
        .map(|(_, a)| {
            format!(
                "{:?}",
                a.share
                    .as_ref()
                    .map(|s| (s.number, &s.amount, &s.grab_time))
            )
        })
        .collect();
    assert_eq!(shares.len(), 1, "{shares:?}");
    let seen = world.look(id, "bob").await;
    assert_eq!(seen.progress.unwrap().taken_count, 1);
    world.audit_when_quiet().await;
}

async fn everybody_gets_the_same_of_an_equal_envelope(hot: Hot) {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(500)).await;
    let envelope = world.send(equal("alice", cny(100), 5)).await;
    assert_eq!(envelope.total, Some(cny(500)));

    let names = (0..7).map(|n| format!("grabber-{n}"));
    let answers = rush(&world, &envelope.envelope_id, names).await;

    let amounts: Vec<i64> = answers
        .iter()
        .filter_map(|(_, a)| a.share.as_ref()?.amount.as_ref())
        .map(|m| m.minor_units)
        .collect();
    assert_eq!(amounts, [100; 5]);
    world
        .until(&envelope.envelope_id, "alice", EnvelopeState::Closed)
        .await;
    world.audit_when_quiet().await;
}

async fn a_recall_in_the_middle_of_a_rush_ends_it_at_one_instant(hot: Hot) {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(1_000)).await;
    let envelope = world.send(equal("alice", cny(1), 1_000)).await;
    let id = &envelope.envelope_id;

    let (mut client, record) = (world.envelopes.clone(), world.record.clone());
    let recall = RecallEnvelopeRequest {
        envelope_id: id.clone(),
        sender: "alice".to_owned(),
        request_id: "enough".to_owned(),
        ..RecallEnvelopeRequest::default()
    };
    let end = async { record.recall(&mut client, recall).await.unwrap() };
    let names = (0..500).map(|n| format!("grabber-{n}"));
    let (_, early) = tokio::join!(end, rush(&world, id, names));
    let late = rush(&world, id, (0..50).map(|n| format!("late-{n}"))).await;

    let won = |answers: &[(String, GrabResponse)]| {
        let won = |(_, a): &&(String, GrabResponse)| a.outcome() == GrabOutcome::Won;
        i64::try_from(answers.iter().filter(won).count()).unwrap()
    };
    assert_eq!(won(&late), 0);
    world.until(id, "alice", EnvelopeState::Closed).await;
    assert_eq!(world.available("alice").await, 1_000 - won(&early));
    assert_eq!(world.record.grabs(), 550);
    world.audit_when_quiet().await;
}
