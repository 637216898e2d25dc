//! Connections: how many there may be, and how long one may be silent, or live.

use std::net::SocketAddr;
use std::time::Duration;

use red_envelope_proto::v1::grab_stream_response::Result as Told;
use red_envelope_proto::v1::{GrabOutcome, GrabStreamRequest, GrabStreamResponse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::harness::fleet::a_moment;
use crate::harness::frames::{Gone, NO_ERROR, Raw, hello};
use crate::harness::record::Record;
use crate::harness::world::grab_of;
use crate::harness::{Start, World, cny, equal};

/// How soon the server ends what it has to end by itself. It takes eleven seconds.
const ENDED_WITHIN: Duration = Duration::from_secs(60);
const TOTAL_MAX: u16 = 12;
const PEER_MAX: u16 = 8;
/// The shortest that may be set.
const SHORT_MS: &str = "1000";
/// Long enough for whoever is served on a machine that does much beside the test.
const PATIENCE_MS: &str = "10000";

fn start(flags: &[&str]) -> Start {
    Start {
        flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..Start::default()
    }
}

/// A connection from this address of the machine's own, if the server keeps it.
async fn from(peer: &str, port: u16) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    let own: SocketAddr = format!("{peer}:0").parse().unwrap();
    socket.bind(own).unwrap();
    let there = format!("127.0.0.1:{port}").parse().unwrap();
    let mut socket = socket.connect(there).await.unwrap();
    let _closed = socket.write_all(&hello(&[])).await;
    // Its settings are what it says on one that it keeps.
    let mut byte = [0];
    matches!(socket.read(&mut byte).await, Ok(1)).then_some(socket)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_those_of_a_peer_or_of_all_are_closed_at_once() {
    let (total, of_peer) = (TOTAL_MAX.to_string(), PEER_MAX.to_string());
    let mut world = World::start(start(&[
        "--transport-connections-max",
        &total,
        "--transport-connections-per-peer-max",
        &of_peer,
    ]))
    .await;
    let port = world.server.grpc();
    let listener = "listener=\"grpc\"";
    let open = world
        .server
        .counted_of("red_envelope_connections", listener);
    let mut kept = vec![];
    let mut here = open.await;
    // Everybody on 127.0.0.1 is one peer, this test's clients too.
    for _ in 0..PEER_MAX {
        if let Some(socket) = from("127.0.0.1", port).await {
            kept.push(socket);
            here += 1.0;
        }
    }
    assert_eq!(here, f64::from(PEER_MAX));
    let mut others = 0;
    for number in 0..TOTAL_MAX {
        if let Some(socket) = from(&format!("127.0.0.{}", 2 + number % 3), port).await {
            kept.push(socket);
            others += 1;
        }
    }
    assert_eq!(others, TOTAL_MAX - PEER_MAX);
    let turned_away = "red_envelope_connections_turned_away_total";
    assert!(world.server.counted_of(turned_away, listener).await >= f64::from(PEER_MAX));
    // Who is in is served.
    world.fund("alice", cny(10)).await;
    // Room for others again.
    drop(kept);
    while from("127.0.0.2", port).await.is_none() {
        a_moment().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_that_does_not_answer_is_let_go_and_one_that_does_is_kept() {
    let world = World::start(start(&[
        "--transport-keepalive-interval-ms",
        SHORT_MS,
        "--transport-keepalive-timeout-ms",
        PATIENCE_MS,
    ]))
    .await;
    let port = world.server.grpc();
    let silent = Raw::open(port, &[]).await.unwrap();
    let mut deaf = from("127.0.0.1", port).await.unwrap();
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(ENDED_WITHIN, deaf.read_to_end(&mut heard)).await;
    let _whether_it_was_reset = ended.expect("it is let go");
    assert!(!silent.is_ended(), "it answers");
}

/// A stream on which grabs are sent one by one.
struct Lane {
    say: mpsc::Sender<GrabStreamRequest>,
    answers: Streaming<GrabStreamResponse>,
}

impl Lane {
    async fn open(world: &mut World) -> Self {
        let (say, said) = mpsc::channel(1);
        let opened = world.envelopes.grab_stream(ReceiverStream::new(said));
        let answers = opened.await.unwrap().into_inner();
        Self { say, answers }
    }

    async fn wins(&mut self, record: &Record, id: &str, grabber: &str) {
        let grab = grab_of(id, grabber);
        let asked = record.ask(&grab);
        let request = GrabStreamRequest {
            tag: 1,
            grab: Some(grab),
            ..GrabStreamRequest::default()
        };
        self.say.send(request).await.unwrap();
        let answer = self.answers.next().await.unwrap().unwrap();
        let Some(Told::Outcome(told)) = answer.result else {
            panic!("{answer:?}");
        };
        assert_eq!(told.outcome(), GrabOutcome::Won);
        record.hear(asked, &told);
    }

    /// Waits until the server ends it.
    async fn ends(mut self) {
        let last = tokio::time::timeout(ENDED_WITHIN, self.answers.next()).await;
        let last = last.expect("it ends with its connection");
        assert!(!matches!(last, Some(Ok(_))), "{last:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_of_age_is_asked_to_reconnect_and_its_calls_go_on_for_a_while() {
    let mut world = World::start(start(&[
        "--transport-connection-age-max-ms",
        SHORT_MS,
        "--transport-connection-age-grace-ms",
        PATIENCE_MS,
    ]))
    .await;
    let port = world.server.grpc();
    world.fund("alice", cny(3)).await;
    let id = world.send(equal("alice", cny(1), 3)).await.envelope_id;
    let mut lane = Lane::open(&mut world).await;
    lane.wins(&world.record, &id, "before").await;
    // This one is younger, so it hears it later.
    let raw = Raw::open(port, &[]).await.unwrap();
    let gone = raw.ended(ENDED_WITHIN).await.expect("it is told");
    let asked = Gone {
        reason: NO_ERROR,
        says: String::new(),
    };
    assert_eq!(gone, asked);
    lane.wins(&world.record, &id, "in its grace").await;
    // The client has another connection for what it calls now.
    world.win(&id, "after").await;
    lane.ends().await;
    world.audit_when_quiet().await;
}
