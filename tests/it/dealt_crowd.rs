//! A crowd takes all of an envelope that is dealt to stripes, by calls and by a stream, while its sender looks at it.

use std::collections::BTreeMap;

use red_envelope_proto::v1::grab_stream_response::Result as Answer;
use red_envelope_proto::v1::info_service_client::InfoServiceClient;
use red_envelope_proto::v1::{
    GetEnvelopeRequest, GetServiceInfoRequest, GrabResponse, GrabStreamRequest,
};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout_at;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::dealt::{ABOVE, SHARES, STRIPES, Stage, TOTAL, crowd, dealing};
use crate::harness::fleet::{Client, a_moment, rush, until};
use crate::harness::record::Record;
use crate::harness::world::{channel, grab_of, in_time};
use crate::harness::{Start, World};
use crate::restored::{proof, verifies};

/// How long a message of a stream waits for its answer: as long as it may.
const ANSWER_MS_MAX: u32 = 60_000;

/// So many ask before the others come, each twice: not enough to take all.
const FIRST: usize = 2 * 4;

/// All these ask on one stream, again for as long as they are to repeat it.
async fn streamed(
    record: &Record,
    mut client: Client,
    id: &str,
    people: Vec<String>,
) -> Vec<(String, GrabResponse)> {
    let (requests, outgoing) = mpsc::channel(people.len());
    let mut asked = BTreeMap::new();
    let ask = async |tag: usize| {
        let grab = grab_of(id, &people[tag]);
        let asked = record.ask(&grab);
        let message = GrabStreamRequest {
            tag: tag.try_into().unwrap(),
            timeout_ms: ANSWER_MS_MAX,
            grab: Some(grab),
        };
        requests.send(message).await.unwrap();
        asked
    };
    for tag in 0..people.len() {
        asked.insert(tag, ask(tag).await);
    }
    let replies = client.grab_stream(ReceiverStream::new(outgoing)).await;
    let mut replies = replies.unwrap().into_inner();
    let mut answers = Vec::new();
    while answers.len() < people.len() {
        let reply = timeout_at(in_time(), replies.message()).await;
        let reply = reply.expect("a stream answers").unwrap().unwrap();
        let tag = usize::try_from(reply.tag).unwrap();
        match reply.result.unwrap() {
            Answer::Outcome(answer) => {
                record.hear(asked.remove(&tag).unwrap(), &answer);
                answers.push((people[tag].clone(), answer));
            }
            Answer::Status(status) => {
                let retryable = [Code::Unavailable, Code::ResourceExhausted];
                let told = Code::from_i32(status.code);
                assert!(retryable.contains(&told), "{status:?}");
                a_moment().await;
                asked.insert(tag, ask(tag).await);
            }
        }
    }
    answers
}

/// Looks all the time, until every share is taken: never fewer than before, and never more than there are.
/// Shows how many it saw taken.
async fn watched(mut client: Client, id: &str, seen_taken: watch::Sender<u32>) {
    let mut before = (0, 0);
    until("every share is taken", async || {
        let request = GetEnvelopeRequest {
            envelope_id: id.to_owned(),
            viewer: "alice".to_owned(),
            ..GetEnvelopeRequest::default()
        };
        let seen = match client.get_envelope(request).await {
            Ok(seen) => seen.into_inner().envelope.unwrap(),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                return false;
            }
        };
        let progress = seen.progress.unwrap();
        let taken = (progress.taken_count, progress.taken.unwrap().minor_units);
        assert!(
            before.0 <= taken.0 && before.1 <= taken.1,
            "{before:?} and then {taken:?}"
        );
        assert_eq!(progress.taken_count + progress.remaining_count, SHARES);
        before = taken;
        seen_taken.send_replace(taken.0);
        taken == (SHARES, TOTAL)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_takes_every_share_of_a_dealt_envelope_once_and_hears_empty_only_then() {
    let mut stage = Stage::of(World::start(dealing(Start::default())).await).await;
    let public = channel(stage.world.server.grpc()).await;
    let facts = InfoServiceClient::new(public.clone())
        .get_service_info(GetServiceInfoRequest::default())
        .await;
    let limits = facts.unwrap().into_inner().limits.unwrap();
    assert_eq!(limits.stripe_above_shares, ABOVE);
    assert_eq!(stage.keys("g").len(), usize::from(STRIPES));
    stage.the_counts_are_right().await;

    let twice = |turn: usize| {
        let people = crowd().enumerate().filter(move |(n, _)| n % 2 == turn);
        people.flat_map(|(_, who)| [who.clone(), who]).collect()
    };
    let (by_stream, by_call): (Vec<String>, Vec<String>) = (twice(0), twice(1));
    let (record, id) = (stage.world.record.clone(), stage.id.clone());
    let clients = [stage.world.envelopes.clone()];
    let (shows, mut seen_taken) = watch::channel(0);
    let crowd_comes = async {
        // Who looks has seen some shares taken, and not all, before most of the crowd comes.
        let first = rush(&record, &clients, &id, by_call[..FIRST].to_vec()).await;
        let some = seen_taken.wait_for(|taken| (1..SHARES).contains(taken));
        timeout_at(in_time(), some).await.expect("a look").unwrap();
        let (mut called, streamed) = tokio::join!(
            rush(&record, &clients, &id, by_call[FIRST..].to_vec()),
            streamed(&record, Client::new(public.clone()), &id, by_stream),
        );
        called.extend(first);
        (called, streamed)
    };
    let looks = watched(Client::new(public.clone()), &id, shows);
    let ((called, streamed), ()) = tokio::join!(crowd_comes, looks);
    stage.are_told(&called);
    stage.are_told(&streamed);
    assert!(stage.is_gathered());
    // Everybody asks again: winners hear of their shares, the others that there is none.
    stage.a_crowd_asks(crowd()).await;
    stage.all_is_taken_and_paid().await;

    let envelope = stage.world.look(&id, "alice").await;
    let proof = proof(&mut stage.world, &envelope).await;
    assert!(verifies(&stage.world.server.data_folder(), &proof));
    let proof: serde_json::Value = serde_json::from_str(&proof.proof_json).unwrap();
    let mut shares: Vec<_> = stage.held.values().collect();
    shares.sort_unstable();
    let amounts: Vec<_> = shares.iter().map(|(_, amount)| amount).collect();
    assert_eq!(proof["amounts"], serde_json::json!(amounts));
}
