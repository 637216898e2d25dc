//! Peers that mean harm (F30): what HTTP/2 lets one side ask of the other without end. The server ends it by its own
//! means, in bounded memory, and who behaves is served as before.
//!
//! # Shape
//! | attack | ends with |
//! |---|---|
//! | calls that are taken back before they are looked at | GOAWAY, ENHANCE_YOUR_CALM |
//! | calls that are taken back while they are served | nothing: it costs no more than calls |
//! | heads without end | GOAWAY, ENHANCE_YOUR_CALM |
//! | bodies of nothing | GOAWAY, ENHANCE_YOUR_CALM |
//! | answers that are not taken | refusals of more, and the end of the connection |
//! | 10,000 connections | those beyond the limit of a peer are closed at once |
//!
//! # Bounds
//! Those of `harness/scene.rs`, and memory: a named one for each attack.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use red_envelope_proto::v1::ListGrabsRequest;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::harness::fleet::{Client, rush, seen_by};
use crate::harness::frames::{
    BODY, CONTINUATION, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Gone, HEADERS,
    INITIAL_WINDOW_SIZE, PADDED, RST_STREAM, Raw, field, frame, head, hello, message,
};
use crate::harness::scene::{Scene, Signs};
use crate::harness::world::{channel, grab_of, in_time};
use crate::harness::{Hot, Start, cny, equal};

/// Connections of an attack at a time, each followed by another one when it has ended.
const ATTACKERS: usize = 4;
/// How soon the server ends what it has to end by itself. It takes milliseconds where it has a core.
const ENDED_WITHIN: Duration = Duration::from_secs(60);
/// Between two connections of an attacker: without a rest it would be his use of the machine's cores that is measured,
/// which an attacker from elsewhere does not have.
const BETWEEN_FLOODS: Duration = Duration::from_millis(10);
/// Frames that are written at a time.
const FRAMES_PER_WRITE: usize = 512;
/// Writes of an attack on one connection: without a bound of the server's, so many frames of an attack would be held.
const WRITES_MAX: usize = 200;
/// The payload of a CONTINUATION: the largest frame that HTTP/2 allows by default.
const CONTINUATION_BYTES: usize = 16_384;

/// What a flood may cost. It takes one to three MB, most of them what the allocator keeps of connections that came and
/// went; what the attackers send at a time is 100 MB of heads, or 400,000 frames.
const FLOOD_BYTES_MAX: u64 = 32 << 20;

/// How the connections of a flood ended.
#[derive(Debug, Default)]
struct Floods {
    calmed: AtomicU64,
    /// Broken off before the words were read: the peer's own writes cross them.
    broken: AtomicU64,
}

impl Floods {
    /// The connection ends by itself; with words, these.
    async fn end(&self, raw: &Raw, says: &[&str]) {
        match raw.ended(ENDED_WITHIN).await {
            None => self.broken.fetch_add(1, Ordering::SeqCst),
            Some(Gone { reason, says: told }) => {
                assert_eq!(reason, ENHANCE_YOUR_CALM, "{told}");
                assert!(says.contains(&&*told), "{told}");
                self.calmed.fetch_add(1, Ordering::SeqCst)
            }
        };
    }
}

/// Floods connection after connection: first what `begins` writes, then what `goes_on` writes, until it is ended.
async fn flood(
    signs: Signs,
    says: &'static [&'static str],
    begins: impl Fn(&mut Raw) -> Vec<u8> + Copy + 'static,
    goes_on: impl Fn(&mut Raw) -> Vec<u8> + Copy + 'static,
) -> Arc<Floods> {
    let floods = Arc::new(Floods::default());
    let attackers = tokio::task::LocalSet::new();
    for _ in 0..ATTACKERS {
        let (floods, signs) = (Arc::clone(&floods), signs.clone());
        attackers.spawn_local(async move {
            let mut rest = tokio::time::interval(BETWEEN_FLOODS);
            rest.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !signs.over.is_cancelled() {
                rest.tick().await;
                let Some(mut raw) = Raw::open(signs.port, &[]).await else {
                    continue;
                };
                let first = begins(&mut raw);
                let mut open = raw.write(&first).await;
                for _ in 0..WRITES_MAX {
                    let more = goes_on(&mut raw);
                    open = open && raw.write(&more).await;
                }
                floods.end(&raw, says).await;
                signs.standing.cancel();
            }
        });
    }
    attackers.await;
    floods
}

fn is_calmed(floods: &Floods) {
    println!("{floods:?}");
    assert!(floods.calmed.load(Ordering::SeqCst) > 0, "{floods:?}");
}

fn nothing(_: &mut Raw) -> Vec<u8> {
    Vec::new()
}

/// Calls, each taken back at once.
fn taken_back(raw: &mut Raw) -> Vec<u8> {
    let (mut bytes, head) = (Vec::new(), head("EnvelopeService/Grab"));
    for _ in 0..FRAMES_PER_WRITE {
        let stream = raw.stream();
        bytes.extend(frame(HEADERS, END_HEADERS, stream, &head));
        bytes.extend(frame(RST_STREAM, 0, stream, &CANCEL));
    }
    bytes
}

/// HTTP/2's reason of who takes a call back.
const CANCEL: [u8; 4] = 8_u32.to_be_bytes();

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_taken_back_at_once_end_their_connection_and_cost_nobody_else() {
    let mut scene = Scene::new(Start::on(Hot::Redis)).await;
    let floods = scene.endures("rapid reset", FLOOD_BYTES_MAX, |signs| {
        flood(signs, &["too_many_resets"], nothing, taken_back)
    });
    is_calmed(&*floods.await);
    scene.ends().await;
}

/// Between two calls that are taken back while they are served.
const BETWEEN_CALLS: Duration = Duration::from_millis(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_taken_back_while_they_are_served_cost_no_more_than_calls() {
    let mut scene = Scene::new(Start::on(Hot::Redis)).await;
    // Who takes his grab back may have a share all the same, of which he hears when he repeats it.
    let apart = equal("alice", cny(1), 100_000);
    let apart = scene.world.envelopes.create_envelope(apart).await.unwrap();
    let id = apart.into_inner().envelope.unwrap().envelope_id;
    let attack = move |signs: Signs| async move {
        let mut raw = Raw::open(signs.port, &[]).await.unwrap();
        let mut ticks = tokio::time::interval(BETWEEN_CALLS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut calls = 0_u32;
        signs.standing.cancel();
        while !signs.over.is_cancelled() {
            let asked = grab_of(&id, &format!("mallory-{calls}"));
            let call = call(&mut raw, "EnvelopeService/Grab", &asked);
            let sent = raw.write(&call).await;
            // The server has the call by then: a reset that comes with it is of the attack above.
            ticks.tick().await;
            let reset = frame(RST_STREAM, 0, raw.last_stream(), &CANCEL);
            if !(sent && raw.write(&reset).await) {
                // It had no core for so long that they came together.
                let gone = raw.ended(ENDED_WITHIN).await;
                assert!(gone.is_none_or(|gone| gone.reason == ENHANCE_YOUR_CALM));
                raw = Raw::open(signs.port, &[]).await.unwrap();
            }
            calls += 1;
        }
        calls
    };
    let calls = scene.endures("slow reset", FLOOD_BYTES_MAX, attack).await;
    println!("{calls} calls were taken back");
    scene.ends().await;
}

/// A call whose head does not end.
fn endless(raw: &mut Raw) -> Vec<u8> {
    let stream = raw.stream();
    frame(HEADERS, 0, stream, &head("EnvelopeService/Grab"))
}

/// Frames that go on with the head of the first call.
fn going_on(payload: &[u8], count: usize) -> Vec<u8> {
    frame(CONTINUATION, 0, 1, payload).repeat(count)
}

fn with_nothing(_: &mut Raw) -> Vec<u8> {
    going_on(&[], FRAMES_PER_WRITE)
}

fn with_fields(_: &mut Raw) -> Vec<u8> {
    let mut fields = Vec::new();
    while fields.len() < CONTINUATION_BYTES - 256 {
        field(&mut fields, "x-more", &"m".repeat(100));
    }
    going_on(&fields, 8)
}

/// A field whose value does not end: 127 and three more digits of seven bits are 2^21 bytes and some.
fn with_one_field(raw: &mut Raw) -> Vec<u8> {
    let mut bytes = endless(raw);
    bytes.extend(frame(
        CONTINUATION,
        0,
        1,
        &[&[0, 1, b'x', 0x7f][..], &[0xff, 0xff, 0x7f]].concat(),
    ));
    bytes
}

fn with_its_value(_: &mut Raw) -> Vec<u8> {
    going_on(&[b'm'; CONTINUATION_BYTES], 8)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_without_end_end_their_connection_and_cost_nobody_else() {
    const SAYS: &[&str] = &["too_many_continuations", "header_list_way_too_large"];
    let mut scene = Scene::new(Start::on(Hot::Redis)).await;
    let floods = scene.endures("empty CONTINUATION", FLOOD_BYTES_MAX, |signs| {
        flood(signs, SAYS, endless, with_nothing)
    });
    is_calmed(&*floods.await);
    let floods = scene.endures("CONTINUATION of fields", FLOOD_BYTES_MAX, |signs| {
        flood(signs, SAYS, endless, with_fields)
    });
    is_calmed(&*floods.await);
    let floods = scene.endures("CONTINUATION of a field", FLOOD_BYTES_MAX, |signs| {
        flood(signs, SAYS, with_one_field, with_its_value)
    });
    is_calmed(&*floods.await);
    scene.ends().await;
}

/// A call whose message does not begin.
fn silent(raw: &mut Raw) -> Vec<u8> {
    let stream = raw.stream();
    frame(HEADERS, END_HEADERS, stream, &head("EnvelopeService/Grab"))
}

fn empty(_: &mut Raw) -> Vec<u8> {
    frame(BODY, 0, 1, &[]).repeat(FRAMES_PER_WRITE)
}

/// Nothing but padding, as much as there may be.
fn padding(_: &mut Raw) -> Vec<u8> {
    let payload = [&[255][..], &[0; 255]].concat();
    frame(BODY, PADDED, 1, &payload).repeat(FRAMES_PER_WRITE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_nothing_end_their_connection_and_cost_nobody_else() {
    const SAYS: &[&str] = &["too_many_data_frames"];
    let mut scene = Scene::new(Start::on(Hot::Redis)).await;
    let floods = scene.endures("empty DATA", FLOOD_BYTES_MAX, |signs| {
        flood(signs, SAYS, silent, empty)
    });
    is_calmed(&*floods.await);
    let floods = scene.endures("padded DATA", FLOOD_BYTES_MAX, |signs| {
        flood(signs, SAYS, silent, padding)
    });
    is_calmed(&*floods.await);
    scene.ends().await;
}

/// Connections whose answers are not taken, and calls of each: what one connection may have in flight.
const DEAF: usize = 10;
const CALLS_OF_ONE: u64 = 1_024;
/// Calls that are sent before their answers are waited for. It is not their number a second that is the attack: many at
/// once are turned away for that.
const CALLS_AT_ONCE: u64 = 4;
/// Refusals after which a connection asks for no more.
const REFUSED_ENOUGH: u64 = 2 * CALLS_AT_ONCE;
/// Shares of the page that each of them asks for, the largest, with names as long as they may be: 96 KB a page.
const PAGE: u16 = 1_000;
/// What all of them may cost: 128 MiB of answers that may wait on a listener, and what it takes to write them out.
/// All that they may ask for is 1 GB, of which each byte took two before it was counted.
const UNTAKEN_BYTES: u64 = 192 << 20;
/// How soon such a connection ends, from its last answer that was kept: the server's bound, and the ping with which
/// it looks.
const DEAF_ENDS_WITHIN: Duration = Duration::from_secs(90);

/// A call that is whole.
fn call(raw: &mut Raw, method: &str, asked: &impl prost::Message) -> Vec<u8> {
    let stream = raw.stream();
    let mut call = frame(HEADERS, END_HEADERS, stream, &head(method));
    call.extend(frame(BODY, END_STREAM, stream, &message(asked)));
    call
}

/// Asks for pages, and has room for so many bytes of each.
async fn deaf(port: u16, window: u32, asked: ListGrabsRequest) -> Raw {
    let settings = [(INITIAL_WINDOW_SIZE, window)];
    let mut raw = Raw::open(port, &settings).await.unwrap();
    while raw.answers() < CALLS_OF_ONE && raw.refusals() < REFUSED_ENOUGH && !raw.is_ended() {
        let sent = raw.answers() + CALLS_AT_ONCE;
        for _ in 0..CALLS_AT_ONCE {
            let call = call(&mut raw, "EnvelopeService/ListGrabs", &asked);
            // The server may have had enough.
            let _ended = raw.write(&call).await;
        }
        let all = async || (raw.answers() == sent || raw.is_ended()).then_some(());
        seen_by(in_time(), "every call is answered", all).await;
    }
    raw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_not_taken_are_bounded_and_end_their_connection() {
    let mut scene = Scene::new(Start::on(Hot::Redis)).await;
    let clients = [scene.good.clone()];
    let crowd = (0..PAGE).map(|number| format!("{number:0>64}"));
    rush(&scene.world.record, &clients, &scene.id, crowd).await;
    let asked = ListGrabsRequest {
        envelope_id: scene.id.clone(),
        viewer: "alice".to_owned(),
        page_size: PAGE.into(),
        ..ListGrabsRequest::default()
    };
    let attack = move |signs: Signs| async move {
        // With no room an answer waits in front of HTTP/2, with a little it waits inside.
        let mut all = Vec::new();
        for window in (0..2).cycle().take(DEAF) {
            all.push(deaf(signs.port, window, asked.clone()).await);
        }
        signs.standing.cancel();
        signs.over.cancelled().await;
        // Who found all room taken holds nothing, and stays.
        for raw in all.iter().filter(|raw| raw.answers() > raw.refusals()) {
            raw.ended(DEAF_ENDS_WITHIN).await;
        }
        let told = all.iter().map(|raw| (raw.answers(), raw.refusals()));
        told.collect::<Vec<_>>()
    };
    let told = scene.endures("window 0", UNTAKEN_BYTES, attack).await;
    println!("answers, and of them refusals: {told:?}");
    let held = told.iter().filter(|(answers, refusals)| answers > refusals);
    let held = held.count();
    assert!(told.iter().all(|(_, refusals)| *refusals > 0), "{told:?}");
    let counted = scene
        .world
        .server
        .counted_of(SHED, "what=\"untaken\"")
        .await;
    assert!(counted > 0.0);
    let deaf = scene.world.server.counted_of(TURNED_AWAY, "why=\"deaf\"");
    assert_eq!(deaf.await, held as f64);
    // Who takes what he asks for hears again.
    let shares = scene.world.shares(&scene.id, "alice").await;
    assert_eq!(shares.len(), scene.grabbed + usize::from(PAGE));
    scene.ends().await;
}

/// What the catalogue names.
const CONNECTIONS: usize = 10_000;
/// `transport.connections_per_peer_max`, and the one that this test has besides those it attacks with.
const OF_A_PEER_MAX: usize = 8_000;
/// Connections that are made at the same time: the kernel's queue of those not accepted yet takes so many.
const AT_ONCE: usize = 64;
/// The soft limit of open files with which many systems start a process.
const OPEN_FILES_USUAL: u32 = 1_024;
/// Open files of this test: its connections, and what else a test has open.
const OPEN_FILES_OF_TEST: u64 = 10_500;
/// What a connection may cost: it takes 32 KB, most of them what HTTP/2 reads and writes with.
const CONNECTION_BYTES_MAX: u64 = 48 << 10;

fn make_room() {
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum;
    assert!(
        hard.is_none_or(|hard| hard >= OPEN_FILES_OF_TEST),
        "this test opens {CONNECTIONS} connections: raise the hard limit of open files (ulimit -Hn), which is {hard:?}"
    );
    let raised = rustix::process::Rlimit {
        current: hard,
        maximum: hard,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

/// Whether the peer closed it, or is about to: it says nothing on one that it keeps but its settings.
async fn is_closed(socket: &mut TcpStream) -> bool {
    let mut byte = [0];
    !matches!(socket.read(&mut byte).await, Ok(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_thousand_connections_of_a_peer_those_beyond_its_limit_are_closed_at_once() {
    make_room();
    let start = Start {
        open_files_max: Some(OPEN_FILES_USUAL),
        ..Start::on(Hot::Redis)
    };
    let mut scene = Scene::new(start).await;
    let before = scene.world.server.counted_of(OPEN, GRPC).await;
    let attack = |signs: Signs| async move {
        let port = signs.port;
        let (mut kept, mut closed) = (Vec::new(), 0);
        for _ in 0..CONNECTIONS.div_ceil(AT_ONCE) {
            let mut opening = JoinSet::new();
            for _ in 0..AT_ONCE.min(CONNECTIONS - kept.len() - closed) {
                opening.spawn(async move {
                    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    // The preface, after which the server has all that a connection has.
                    let _closed =
                        tokio::io::AsyncWriteExt::write_all(&mut socket, &hello(&[])).await;
                    (!is_closed(&mut socket).await).then_some(socket)
                });
            }
            for socket in opening.join_all().await {
                match socket {
                    Some(socket) => kept.push(socket),
                    None => closed += 1,
                }
            }
        }
        signs.standing.cancel();
        signs.over.cancelled().await;
        (kept.len(), closed)
    };
    let bytes_max = CONNECTION_BYTES_MAX * OF_A_PEER_MAX as u64;
    let (kept, closed) = scene.endures("10,000 connections", bytes_max, attack).await;
    println!("{kept} were kept, {closed} closed");
    assert_eq!(kept + closed, CONNECTIONS);
    assert_eq!(kept as f64 + before, OF_A_PEER_MAX as f64);
    let counted = scene.world.server.counted_of(TURNED_AWAY, GRPC).await;
    assert_eq!(counted, closed as f64);
    // Room for others again.
    let gone = async || (scene.world.server.counted_of(OPEN, GRPC).await <= before).then_some(());
    seen_by(in_time(), "the connections are gone", gone).await;
    scene.good = Client::new(channel(scene.world.server.grpc()).await);
    scene.p99().await;
    scene.ends().await;
}

const SHED: &str = "red_envelope_shed_total";
const OPEN: &str = "red_envelope_connections";
const TURNED_AWAY: &str = "red_envelope_connections_turned_away_total";
/// The listener of clients.
const GRPC: &str = "listener=\"grpc\"";
