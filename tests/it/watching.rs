//! Seeing: live watchers, a page of a chat, lists by page, what `reveal` hides.

use red_envelope_proto::v1::{
    BatchGetEnvelopesRequest, CreateEnvelopeRequest, EnvelopeState, ListReceivedSharesRequest,
    ListSentEnvelopesRequest, Reveal, WatchEnvelopeRequest,
};
use tonic::Code;

use crate::harness::{Hot, World, cny, lucky, on_both_stores};

on_both_stores! {
    a_watcher_sees_progress_then_best_luck_then_the_end,
    a_page_of_a_chat_is_one_call_and_names_what_is_missing,
    amounts_of_others_stay_hidden_until_reveal_says_so,
    histories_come_by_page_the_newest_first,
}

async fn world(hot: Hot) -> World {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(100_000)).await;
    world
}

async fn a_watcher_sees_progress_then_best_luck_then_the_end(hot: Hot) {
    let mut world = world(hot).await;
    let id = world.send(lucky("alice", cny(1_000), 3)).await.envelope_id;
    let request = WatchEnvelopeRequest {
        envelope_id: id.clone(),
        viewer: "alice".to_owned(),
        ..WatchEnvelopeRequest::default()
    };
    let mut watched = world
        .envelopes
        .watch_envelope(request)
        .await
        .unwrap()
        .into_inner();
    let first = watched.message().await.unwrap().unwrap().envelope.unwrap();
    assert_eq!(first.state(), EnvelopeState::Live);
    assert_eq!(first.progress.unwrap().taken_count, 0);
    assert_eq!(first.best_luck, None);

    for grabber in ["bob", "carol", "dave"] {
        world.grab(&id, grabber).await;
    }
    let mut states = Vec::new();
    let mut taken = 0;
    while let Some(message) = watched.message().await.unwrap() {
        let envelope = message.envelope.unwrap();
        let progress = envelope.progress.clone().unwrap();
        assert!(progress.taken_count >= taken, "progress steps back");
        taken = progress.taken_count;
        if envelope.state() != EnvelopeState::Live {
            assert!(envelope.best_luck.is_some());
        }
        states.push(envelope.state());
    }
    assert_eq!(taken, 3);
    assert_eq!(states.last(), Some(&EnvelopeState::Closed));
    world.audit_when_quiet().await;
}

async fn a_page_of_a_chat_is_one_call_and_names_what_is_missing(hot: Hot) {
    let mut world = world(hot).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(world.send(lucky("alice", cny(100), 2)).await.envelope_id);
    }
    world.grab(&ids[1], "bob").await;
    let unknown = "aaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned();
    let request = BatchGetEnvelopesRequest {
        envelope_ids: vec![ids[1].clone(), unknown.clone(), ids[0].clone()],
        viewer: "bob".to_owned(),
        ..BatchGetEnvelopesRequest::default()
    };
    let reply = world
        .envelopes
        .batch_get_envelopes(request.clone())
        .await
        .unwrap()
        .into_inner();
    let got: Vec<_> = reply
        .envelopes
        .iter()
        .map(|e| {
            (
                e.envelope.as_ref().unwrap().envelope_id.clone(),
                e.own_share.is_some(),
            )
        })
        .collect();
    assert_eq!(got, [(ids[1].clone(), true), (ids[0].clone(), false)]);
    assert_eq!(reply.missing, [unknown]);
    let too_many = BatchGetEnvelopesRequest {
        envelope_ids: vec![ids[0].clone(); 101],
        ..request
    };
    let status = world
        .envelopes
        .batch_get_envelopes(too_many)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

async fn amounts_of_others_stay_hidden_until_reveal_says_so(hot: Hot) {
    let mut world = world(hot).await;
    let request = CreateEnvelopeRequest {
        reveal: Reveal::AtEnd.into(),
        ..lucky("alice", cny(1_000), 3)
    };
    let id = world.send(request).await.envelope_id;
    world.grab(&id, "bob").await;
    world.grab(&id, "carol").await;
    let seen = |shares: Vec<red_envelope_proto::v1::Share>| -> Vec<(String, bool)> {
        shares
            .into_iter()
            .map(|s| (s.grabber, s.amount.is_some()))
            .collect()
    };
    let rows = |bob, carol| vec![("bob".to_owned(), bob), ("carol".to_owned(), carol)];
    assert_eq!(seen(world.shares(&id, "alice").await), rows(true, true));
    assert_eq!(seen(world.shares(&id, "bob").await), rows(true, false));
    assert_eq!(seen(world.shares(&id, "dave").await), rows(false, false));
    world.grab(&id, "dave").await;
    assert!(
        world
            .shares(&id, "bob")
            .await
            .iter()
            .all(|s| s.amount.is_some())
    );
    world.audit_when_quiet().await;
}

async fn histories_come_by_page_the_newest_first(hot: Hot) {
    let mut world = world(hot).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        let id = world.send(lucky("alice", cny(100), 1)).await.envelope_id;
        world.grab(&id, "bob").await;
        world.until(&id, "alice", EnvelopeState::Closed).await;
        ids.insert(0, id);
    }
    let mut sent = Vec::new();
    let mut request = ListSentEnvelopesRequest {
        sender: "alice".to_owned(),
        page_size: 2,
        ..ListSentEnvelopesRequest::default()
    };
    loop {
        let page = world
            .envelopes
            .list_sent_envelopes(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(page.envelopes.len() <= 2);
        sent.extend(page.envelopes.into_iter().map(|e| e.envelope_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(sent, ids);
    let request = ListReceivedSharesRequest {
        grabber: "bob".to_owned(),
        ..ListReceivedSharesRequest::default()
    };
    let received = world
        .envelopes
        .list_received_shares(request.clone())
        .await
        .unwrap()
        .into_inner();
    let received: Vec<_> = received
        .received_shares
        .into_iter()
        .map(|r| r.envelope_id)
        .collect();
    assert_eq!(received, ids);
    let forged = ListReceivedSharesRequest {
        page_token: "forged".to_owned(),
        ..request
    };
    let status = world
        .envelopes
        .list_received_shares(forged)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    world.audit_when_quiet().await;
}
