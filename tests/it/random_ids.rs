//! A million ids that nobody knows, on streams: each is answered, and PostgreSQL is asked a bounded number of times.

use std::time::Duration;

use red_envelope::domain::id::EnvelopeId;
use red_envelope_proto::v1::GrabStreamRequest;
use red_envelope_proto::v1::grab_stream_response::Result as Answer;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::harness::fleet::{Client, Fleet};
use crate::harness::world::{channel, grab_of, in_time};

/// Ids, and streams on which they come.
const IDS: u32 = 1_000_000;
const STREAMS: u32 = 4;
/// Messages that are on their way on a stream.
const ON_THE_WAY: usize = 1_024;
/// What [`IDS`] cost at the least, where a statement takes a thousand.
const LEAST: i64 = 1_000;
/// Statements that the books are asked in a second at the most, and transactions that a process has with them when
/// nothing happens.
const ASKED_PER_S_MAX: u32 = 200;
const OTHERS_PER_S: u32 = 100;
/// And those before and after.
const OTHERS: i64 = 500;

/// Sends these on one stream, again where there was no room for them. All are unknown.
async fn asks(mut client: Client, stream: u32) {
    let count = IDS / STREAMS;
    let (requests, outgoing) = mpsc::channel(ON_THE_WAY);
    let ask = move |tag: u64| {
        let mut random = [0; 14];
        random[..4].copy_from_slice(&stream.to_be_bytes());
        random[4..12].copy_from_slice(&tag.to_be_bytes());
        let id = EnvelopeId::from_parts(20_000, random).to_string();
        GrabStreamRequest {
            tag,
            timeout_ms: 0,
            grab: Some(grab_of(&id, "eve")),
        }
    };
    // Who takes the answers never waits for who sends.
    let (again, mut turned_away) = mpsc::unbounded_channel();
    let sends = tokio::spawn(async move {
        for tag in 0..u64::from(count) {
            requests.send(ask(tag)).await.unwrap();
        }
        while let Some(tag) = turned_away.recv().await {
            requests.send(ask(tag)).await.unwrap();
        }
    });
    let replies = client.grab_stream(ReceiverStream::new(outgoing)).await;
    let (mut replies, mut unknown) = (replies.unwrap().into_inner(), 0);
    while unknown < count {
        let reply = timeout_at(in_time(), replies.message()).await;
        let reply = reply.expect("a stream answers").unwrap().unwrap();
        let Some(Answer::Status(status)) = reply.result else {
            panic!("{reply:?}");
        };
        match Code::from_i32(status.code) {
            Code::NotFound => unknown += 1,
            Code::ResourceExhausted => again.send(reply.tag).unwrap(),
            _ => panic!("{status:?}"),
        }
    }
    drop(again);
    sends.await.unwrap();
}

/// Transactions that the database has ended. Processes tell of theirs when they end, at the latest.
fn transactions(fleet: &Fleet) -> i64 {
    let asked = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    fleet.ask_the_books(asked).trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_random_ids_cost_postgresql_some_statements_a_second() {
    let mut fleet = Fleet::of(1).await;
    let (before, began) = (transactions(&fleet), Instant::now());
    let mut streams = JoinSet::new();
    for stream in 0..STREAMS {
        let client = Client::new(channel(fleet.processes[0].server.grpc()).await);
        streams.spawn(asks(client, stream));
    }
    streams.join_all().await;
    let took = began.elapsed() + Duration::from_secs(1);
    fleet.processes[0].server.stop().await;
    let asked = transactions(&fleet) - before;
    let per_s = f64::from(ASKED_PER_S_MAX + OTHERS_PER_S);
    println!("{IDS} ids in {took:.1?}: {asked} transactions");
    assert!(asked >= LEAST, "{asked} transactions: they are not counted");
    #[expect(clippy::cast_possible_truncation, reason = "thousands")]
    let most = (took.as_secs_f64() * per_s) as i64 + OTHERS;
    assert!(asked <= most, "{asked} transactions in {took:.1?}");
}
