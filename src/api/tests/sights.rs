//! What is seen of envelopes: get, batch, lists, watch, preview, proof.

use super::*;

/// Turns that a test gives to the tasks until something must have happened.
const TURNS_MAX: usize = 1_000_000;

#[tokio::test]
async fn an_envelope_is_seen_by_its_sender_and_its_audience() {
    let world = World::with_alice().await;
    let id = world
        .send(exclusive("r1", &[("bob", 300), ("carol", 700)]))
        .await;
    for viewer in ["alice", "bob", "carol"] {
        world.get(&id, viewer).await.unwrap();
    }
    assert_eq!(failure(world.get(&id, "eve").await), not_found());
    world.wins(&id, "bob").await;
    let seen = world.get(&id, "bob").await.unwrap();
    assert_eq!(seen.own_share.unwrap().amount.unwrap().minor_units, 300);
    assert_eq!(seen.envelope.unwrap().progress.unwrap().taken_count, 1);
    assert_eq!(world.get(&id, "carol").await.unwrap().own_share, None);
}

/// Gives turns to the tasks until this is so.
async fn until(so: impl Fn() -> bool) {
    for _ in 0..TURNS_MAX {
        if so() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it does not come to that");
}

#[tokio::test]
async fn looks_that_come_together_are_one_look_at_the_stores() {
    let world = World::with_alice().await;
    let mut sent = Vec::new();
    for request_id in ["r1", "r2", "r3"] {
        let id = world.send(lucky(request_id, 100, 2)).await;
        world.wins(&id, "bob").await;
        sent.push(id);
    }
    let look = async |number: usize| {
        let viewer = ["bob", "carol"][number % 2];
        let id = &sent[number % sent.len()];
        let seen = world.get(id, viewer).await.unwrap();
        let envelope = seen.envelope.unwrap();
        assert_eq!(envelope.envelope_id, *id);
        assert_eq!(envelope.progress.unwrap().taken_count, 1);
        assert_eq!(seen.own_share.is_some(), viewer == "bob");
    };
    world.hot.set_seeing(false);
    let (views, viewed) = (world.hot.views(), world.hot.viewed());
    // Two wait for the store, each alone, and all others for them.
    let crowd = async {
        until(|| world.hot.views() == views + 2).await;
        let others = futures_util::future::join_all((0..40).map(&look));
        let seeing = async {
            until(|| world.services.api.reads.looks_queued() == 40).await;
            world.hot.set_seeing(true);
        };
        tokio::join!(others, seeing);
    };
    let second = async {
        until(|| world.hot.views() == views + 1).await;
        look(0).await;
    };
    tokio::join!(look(0), second, crowd);
    assert_eq!(world.hot.views() - views, 2 + 1);
    assert_eq!(world.hot.viewed() - viewed, 2 + 3);
}

#[tokio::test]
async fn a_batch_answers_in_order_and_names_what_is_missing() {
    let world = World::with_alice().await;
    let first = world.send(lucky("r1", 100, 2)).await;
    let hidden = world.send(exclusive("r2", &[("carol", 700)])).await;
    let second = world.send(lucky("r3", 100, 2)).await;
    let unknown = EnvelopeId::from_parts(20_000, [1; 14]).to_string();
    world.wins(&second, "bob").await;
    let batch = |ids: Vec<String>| v1::BatchGetEnvelopesRequest {
        envelope_ids: ids,
        viewer: "bob".into(),
        ..Default::default()
    };
    let mut envelopes = world.envelopes.clone();
    let ids = vec![
        second.clone(),
        unknown.clone(),
        hidden.clone(),
        first.clone(),
    ];
    let answer = envelopes
        .batch_get_envelopes(batch(ids))
        .await
        .unwrap()
        .into_inner();
    let seen: Vec<_> = answer
        .envelopes
        .iter()
        .map(|e| e.envelope.as_ref().unwrap())
        .collect();
    let seen: Vec<_> = seen.iter().map(|e| e.envelope_id.as_str()).collect();
    assert_eq!(seen, [second.as_str(), first.as_str()]);
    assert!(answer.envelopes[0].own_share.is_some());
    assert!(answer.envelopes[1].own_share.is_none());
    assert_eq!(answer.missing, [unknown, hidden]);
    for bad in [vec![], vec![first; 101]] {
        let status = envelopes.batch_get_envelopes(batch(bad)).await.unwrap_err();
        let named = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(named[0].field, "envelope_ids");
    }
}

#[tokio::test]
async fn grabs_are_listed_page_by_page_with_what_is_settled() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 7)).await;
    for grabber in ["a", "b", "c"] {
        world.wins(&id, grabber).await;
    }
    world.settle().await;
    for grabber in ["d", "e"] {
        world.wins(&id, grabber).await;
    }
    let mut token = String::new();
    let mut seen = Vec::new();
    loop {
        let request = v1::ListGrabsRequest {
            envelope_id: id.clone(),
            viewer: "a".into(),
            page_size: 2,
            page_token: token,
            ..Default::default()
        };
        let page = world.envelopes.clone().list_grabs(request).await.unwrap();
        let page = page.into_inner();
        seen.extend(page.shares);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let told: Vec<_> = seen
        .iter()
        .map(|s| (s.grabber.as_str(), s.settled))
        .collect();
    let expected = [
        ("a", true),
        ("b", true),
        ("c", true),
        ("d", false),
        ("e", false),
    ];
    assert_eq!(told, expected);
    assert!(
        seen.iter()
            .all(|share| share.amount.is_some() && !share.best_luck)
    );
}

#[tokio::test]
async fn what_was_sent_and_received_is_listed_from_the_newest() {
    let world = World::with_alice().await;
    let mut ids = Vec::new();
    for index in 0..3 {
        let id = world.send(lucky(&format!("r{index}"), 100, 1)).await;
        world.wins(&id, "bob").await;
        world.settle().await;
        ids.insert(0, id);
    }
    let sent = v1::ListSentEnvelopesRequest {
        sender: "alice".into(),
        page_size: 2,
        ..Default::default()
    };
    let mut envelopes = world.envelopes.clone();
    let first = envelopes
        .list_sent_envelopes(sent.clone())
        .await
        .unwrap()
        .into_inner();
    let rest = v1::ListSentEnvelopesRequest {
        page_token: first.next_page_token,
        ..sent
    };
    let rest = envelopes
        .list_sent_envelopes(rest)
        .await
        .unwrap()
        .into_inner();
    let listed = first.envelopes.iter().chain(&rest.envelopes);
    let listed: Vec<_> = listed.map(|e| e.envelope_id.clone()).collect();
    assert_eq!(listed, ids);
    let received = v1::ListReceivedSharesRequest {
        grabber: "bob".into(),
        ..Default::default()
    };
    let received = envelopes
        .list_received_shares(received)
        .await
        .unwrap()
        .into_inner();
    let from: Vec<_> = received
        .received_shares
        .iter()
        .map(|r| r.envelope_id.clone())
        .collect();
    assert_eq!(from, ids);
    let share = received.received_shares[0].share.as_ref().unwrap();
    assert!(share.settled && share.best_luck);
}

#[tokio::test]
async fn a_years_totals_are_of_whoever_asks_by_his_own_clock() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 100, 2)).await;
    world.wins(&id, "bob").await;
    world.wins(&id, "carol").await;
    world.settle().await;
    let now = jiff::Timestamp::from_millisecond(NOON_MS).unwrap();
    let year = i32::from(jiff::tz::Offset::UTC.to_datetime(now).year());
    let mut envelopes = world.envelopes.clone();
    let mut totals = async |person: &str, year| {
        let request = v1::GetYearTotalsRequest {
            person: person.into(),
            year,
            ..Default::default()
        };
        let answer = envelopes.get_year_totals(request).await;
        answer.map(|answer| answer.into_inner().totals)
    };
    let (bob, carol) = (
        totals("bob", year).await.unwrap(),
        totals("carol", year).await.unwrap(),
    );
    let minor = |money: &Option<v1::Money>| money.as_ref().unwrap().minor_units;
    assert_eq!(minor(&bob[0].received) + minor(&carol[0].received), 100);
    assert_eq!(bob[0].best_luck_count + carol[0].best_luck_count, 1);
    let alice = totals("alice", year).await.unwrap();
    assert_eq!((alice[0].sent_count, minor(&alice[0].sent)), (1, 100));
    assert!(totals("bob", year - 1).await.unwrap().is_empty());
    let refused = totals("bob", 1969).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("year"), "{}", refused.message());
}

#[tokio::test]
async fn a_watcher_hears_the_whole_life_and_closed_last() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 2)).await;
    let request = v1::WatchEnvelopeRequest {
        envelope_id: id.clone(),
        viewer: "bob".into(),
        ..Default::default()
    };
    let watched = world
        .envelopes
        .clone()
        .watch_envelope(request)
        .await
        .unwrap();
    let mut watched = watched.into_inner();
    let first = watched.message().await.unwrap().unwrap();
    assert_eq!(first.envelope.unwrap().state(), v1::EnvelopeState::Live);
    let won = world.wins(&id, "bob").await;
    let moved = watched.message().await.unwrap().unwrap();
    assert_eq!(moved.own_share.unwrap().amount.unwrap().minor_units, won);
    world.wins(&id, "carol").await;
    world.close(&id).await;
    let mut last = None;
    while let Some(message) = watched.message().await.unwrap() {
        last = message.envelope;
    }
    let last = last.unwrap();
    assert_eq!(last.state(), v1::EnvelopeState::Closed);
    assert_eq!(last.close_reason(), v1::CloseReason::Empty);
    assert!(last.best_luck.is_some() && last.close_time.is_some());
}

#[tokio::test]
async fn a_preview_tells_the_distribution_and_writes_nothing() {
    let world = World::new().await;
    let request = v1::PreviewSplitRequest {
        total: Some(cny(10_000)),
        share_count: 100,
        ..Default::default()
    };
    let told = world.envelopes.clone().preview_split(request).await;
    let told = told.unwrap().into_inner();
    assert_eq!(told.mean.unwrap().minor_units, 100);
    assert_eq!(told.example_minor.iter().sum::<i64>(), 10_000);
    assert!(told.share_quantiles.is_sorted_by_key(|q| q.permille));
    let wrong = v1::PreviewSplitRequest {
        total: Some(cny(10)),
        share_count: 100,
        ..Default::default()
    };
    let status = world
        .envelopes
        .clone()
        .preview_split(wrong)
        .await
        .unwrap_err();
    let named = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(named[0].field, "total.minor_units");
}

#[tokio::test]
async fn the_proof_is_out_when_the_books_are_closed() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 2)).await;
    let request = || v1::GetFairnessProofRequest {
        envelope_id: id.clone(),
        viewer: "bob".into(),
        ..Default::default()
    };
    let mut envelopes = world.envelopes.clone();
    let early = envelopes.get_fairness_proof(request()).await;
    assert_eq!(failure(early), refused("NOT_CLOSED"));
    let won = [world.wins(&id, "bob").await, world.wins(&id, "carol").await];
    world.close(&id).await;
    let told = envelopes
        .get_fairness_proof(request())
        .await
        .unwrap()
        .into_inner();
    let proof = crate::domain::fairness::Proof::from_json(&told.proof_json).unwrap();
    let verified = proof.verify().unwrap();
    assert_eq!(verified.amounts, won);
    assert_eq!(told.commitment.unwrap().leaf_hash, verified.leaf_hash);
}
