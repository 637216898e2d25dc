//! Many grabs on one stream: answers by tag, out of order, and no message ends the stream.

use std::collections::{BTreeMap, BTreeSet};

use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::grab_stream_response::Result as Answer;
use red_envelope_proto::v1::{GrabOutcome, GrabRequest, GrabStreamRequest, GrabStreamResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use crate::harness::world::grab_of;
use crate::harness::{Hot, World, cny, lucky, on_both_stores};

on_both_stores! {
    five_thousand_grabs_on_one_stream_are_answered_once_each,
    a_bad_message_is_answered_and_the_stream_goes_on,
    a_client_that_does_not_read_stops_its_own_stream_only,
}

/// How long a message waits for its answer: as long as it may.
const ANSWER_MS_MAX: u32 = 60_000;

fn message(tag: u64, grab: GrabRequest) -> GrabStreamRequest {
    GrabStreamRequest {
        tag,
        timeout_ms: ANSWER_MS_MAX,
        grab: Some(grab),
    }
}

async fn open(
    client: &mut EnvelopeServiceClient<Channel>,
) -> (
    mpsc::Sender<GrabStreamRequest>,
    Streaming<GrabStreamResponse>,
) {
    let (requests, outgoing) = mpsc::channel(4_096);
    let replies = client
        .grab_stream(ReceiverStream::new(outgoing))
        .await
        .unwrap();
    (requests, replies.into_inner())
}

async fn next(replies: &mut Streaming<GrabStreamResponse>) -> (u64, Answer) {
    let reply = replies
        .message()
        .await
        .unwrap()
        .expect("the stream goes on");
    (reply.tag, reply.result.unwrap())
}

async fn five_thousand_grabs_on_one_stream_are_answered_once_each(hot: Hot) {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(100_000)).await;
    let id = world
        .send(lucky("alice", cny(100_000), 1_000))
        .await
        .envelope_id;
    let (requests, mut replies) = open(&mut world.envelopes).await;
    let sender = tokio::spawn(async move {
        for tag in 0..5_000 {
            let grab = grab_of(&id, &format!("grabber-{}", tag % 4_000));
            requests.send(message(tag, grab)).await.unwrap();
        }
    });
    let mut outcomes: BTreeMap<i32, u32> = BTreeMap::new();
    let mut tags = BTreeSet::new();
    let mut shares: BTreeMap<u64, u32> = BTreeMap::new();
    for _ in 0..5_000 {
        let (tag, answer) = next(&mut replies).await;
        assert!(tags.insert(tag), "tag {tag} was answered twice");
        let Answer::Outcome(answer) = answer else {
            panic!("{tag}: {answer:?}")
        };
        *outcomes.entry(answer.outcome).or_default() += 1;
        if let Some(share) = answer.share {
            let first = *shares.entry(tag % 4_000).or_insert(share.number);
            assert_eq!(first, share.number);
        }
    }
    sender.await.unwrap();
    assert_eq!(
        replies.message().await.unwrap(),
        None,
        "the stream ends with its client's half"
    );
    assert_eq!(outcomes[&GrabOutcome::Won.into()], 1_000);
    assert_eq!(shares.values().collect::<BTreeSet<_>>().len(), 1_000);
    world.audit_when_quiet().await;
}

async fn a_bad_message_is_answered_and_the_stream_goes_on(hot: Hot) {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(100)).await;
    let id = world.send(lucky("alice", cny(100), 2)).await.envelope_id;
    let (requests, mut replies) = open(&mut world.envelopes).await;
    let bad = [
        message(1, grab_of("not an id", "bob")),
        message(2, grab_of(&id, "")),
        GrabStreamRequest {
            tag: 3,
            timeout_ms: 60_001,
            grab: Some(grab_of(&id, "bob")),
        },
        GrabStreamRequest {
            tag: 4,
            timeout_ms: 0,
            grab: None,
        },
        message(5, grab_of("aaaaaaaaaaaaaaaaaaaaaaaaaa", "bob")),
    ];
    for request in bad {
        let tag = request.tag;
        requests.send(request).await.unwrap();
        let (answered, answer) = next(&mut replies).await;
        assert_eq!(answered, tag);
        let Answer::Status(status) = answer else {
            panic!("{tag}: {answer:?}")
        };
        let expected = if tag == 5 {
            Code::NotFound
        } else {
            Code::InvalidArgument
        };
        assert_eq!(Code::from(status.code), expected, "{tag}: {status:?}");
        assert!(!status.details.is_empty(), "{tag} has no details");
    }
    requests
        .send(message(6, grab_of(&id, "bob")))
        .await
        .unwrap();
    let (_, answer) = next(&mut replies).await;
    let Answer::Outcome(answer) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(answer.outcome(), GrabOutcome::Won);
}

async fn a_client_that_does_not_read_stops_its_own_stream_only(hot: Hot) {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(100_000)).await;
    let id = world
        .send(lucky("alice", cny(100_000), 10))
        .await
        .envelope_id;
    // Both streams on one connection, each with the window that HTTP/2 gives by default.
    let connection = Endpoint::from_shared(world.server.url(world.server.grpc()))
        .unwrap()
        .initial_stream_window_size(65_535)
        .connect()
        .await
        .unwrap();
    let mut client = EnvelopeServiceClient::new(connection);
    let (deaf, unread) = open(&mut client).await;
    // Far more than may be in flight: the sender is held up once window and queues are full.
    let mut sent: u64 = 0;
    let held_up = loop {
        let grab = grab_of(&id, "deaf");
        match deaf.try_send(message(sent, grab)) {
            Ok(()) => sent += 1,
            Err(mpsc::error::TrySendError::Full(_)) => {
                let grab = grab_of(&id, "deaf");
                let more =
                    deaf.send_timeout(message(sent, grab), std::time::Duration::from_secs(2));
                match more.await {
                    Ok(()) => sent += 1,
                    Err(_) => break true,
                }
            }
            Err(mpsc::error::TrySendError::Closed(_)) => break false,
        }
        assert!(
            sent < 200_000,
            "the server reads a stream whose answers nobody takes"
        );
    };
    assert!(held_up);
    let (requests, mut replies) = open(&mut client).await;
    for tag in 0..100 {
        requests
            .send(message(tag, grab_of(&id, &format!("g-{tag}"))))
            .await
            .unwrap();
        assert_eq!(next(&mut replies).await.0, tag);
    }
    drop(unread);
    world.audit_when_quiet().await;
}
