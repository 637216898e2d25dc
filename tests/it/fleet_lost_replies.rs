//! Replies that are lost at each hop of several servers: on the way to their clients, from Redis, from
//! PostgreSQL. Whoever repeats the same call, through another of them, learns the same answer, and the books
//! have it once.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use red_envelope_proto::v1::{
    CreateEnvelopeRequest, EnvelopeState, GrabOutcome, RecallEnvelopeRequest,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::fleet::{Client, Fleet, Store, a_moment};
use crate::harness::proxy::Proxy;
use crate::harness::record::Record;
use crate::harness::world::{channel, grab_of};
use crate::harness::{cny, equal};

/// Minor units of a share, and what each sender has at first.
const SHARE: i64 = 10;
const FUNDS: i64 = 1_000_000;
/// Clients that send, grab and recall at the same time, each through both processes.
const CLIENTS: usize = 16;
/// A call that is tried so often in a storm that loses too little is no test.
const TRIES_MAX: usize = 20_000;
/// Tries of one call before it counts as never answered.
const TRIES_OF_A_CALL_MAX: usize = 500;
/// The longest that one try may take: above it the call hangs.
const TRY_MAX: Duration = Duration::from_secs(30);
/// Between two beats of the storm over a wire, and beats until it begins anew.
const BEAT: Duration = Duration::from_millis(20);
const BEATS: usize = 100;
/// Of them, those in which replies are lost: of so many in turn the first few.
const BEATS_OF_GUSTS: usize = 60;
const GUST: usize = 10;
const GUST_LASTS: usize = 3;
/// Then nothing is answered for two beats, and later everything is cut once.
const SILENT_BEATS: std::ops::Range<usize> = 70..72;
const CUT_AT: usize = 90;
/// Shares of an envelope, one of which is grabbed.
const SHARES: u32 = 3;
/// Why a Create is turned away until settlement has caught up: asking at once is of no use.
const BEHIND: &str = "SETTLEMENT_BEHIND";
/// A hop at which replies are lost, and how many of them until the storm may end.
#[derive(Clone, Copy)]
struct Hop {
    /// What asks for such a reply, as it looks on the wire, each in its turn. None: whatever is asked.
    requests: &'static [&'static [u8]],
    /// The storm ends when the clients have made so many tries together and so many such replies were lost.
    tries: usize,
    lost: u64,
    /// Whether the clients' own wires break, rather than those of the servers.
    breaks_off: bool,
}

/// A commit takes long, and so does the loss of one: fewer tries, of which more are lost.
const BOOKS: Hop = Hop {
    requests: &[b"COMMIT\0"],
    tries: 1_000,
    lost: 100,
    breaks_off: false,
};
/// The calls that change something: shares are loaded, opened, granted, and closed for good.
const REDIS: Hop = Hop {
    requests: &[b"grab_1", b"open_1", b"load_1", b"grab_1", b"close_1"],
    tries: 4_000,
    lost: 50,
    breaks_off: false,
};
/// Each loss is that of all calls which a client's connection has in flight.
const CLIENTS_HOP: Hop = Hop {
    requests: &[],
    tries: 4_000,
    lost: 50,
    breaks_off: true,
};

/// The storm over one wire, until it is called off: requests whose replies are lost, then nothing but
/// silence, then a cut, with calm between them.
async fn storm(hop: Hop, wire: Arc<Proxy>, begins_at: usize, over: Arc<AtomicBool>) {
    let mut beats = tokio::time::interval(BEAT);
    let mut beat = begins_at;
    while !over.load(Ordering::SeqCst) {
        beats.tick().await;
        beat += 1;
        let in_turn = beat % BEATS;
        let gust = in_turn < BEATS_OF_GUSTS && in_turn % GUST < GUST_LASTS;
        let request = hop.requests.get(beat / GUST % hop.requests.len().max(1));
        wire.swallow_replies_to(request.copied().filter(|_| gust));
        let all = gust && hop.requests.is_empty();
        wire.swallow_replies(all || SILENT_BEATS.contains(&in_turn));
        if in_turn == CUT_AT {
            wire.cut();
        }
    }
    wire.swallow_replies_to(None);
    wire.swallow_replies(false);
}

impl Hop {
    /// Replies that were lost over a wire, of those that the storm is about.
    fn lost_over(self, wire: &Proxy) -> u64 {
        match self.requests {
            [] => wire.swallowed(),
            _ => wire.unanswered(),
        }
    }

    /// What a call without an answer may be told.
    fn is_lost(self, status: &Status) -> bool {
        // A connection that broke off is told by the client itself, under any code.
        if self.breaks_off && status.source().is_some() {
            return true;
        }
        // Nothing happens to the clients' own wires: whatever is lost, they are told to repeat.
        let told = status.get_error_details();
        status.code() == Code::Unavailable && told.retry_info().is_some()
    }
}

/// Somebody who sends, grabs and recalls.
struct Caller {
    number: usize,
    hop: Hop,
    record: Record,
    wires: Vec<Arc<Proxy>>,
    clients: Vec<Client>,
    turn: AtomicUsize,
    tries: Arc<AtomicUsize>,
}

/// What one caller did.
#[derive(Default)]
struct Done {
    sent: Vec<String>,
    /// Creates, grabs and recalls of which a try without an answer had taken effect.
    found: [usize; 3],
}

impl Caller {
    /// Repeats one call, each time through another process, until it is answered. Answers how many tries
    /// were not.
    async fn ask<Answer, Called>(&self, mut call: impl FnMut(Client) -> Called) -> (Answer, usize)
    where
        Called: Future<Output = Result<Answer, Status>>,
    {
        let mut last = None;
        for unanswered in 0..TRIES_OF_A_CALL_MAX {
            self.tries.fetch_add(1, Ordering::SeqCst);
            let turn = self.turn.fetch_add(1, Ordering::SeqCst);
            let client = self.clients[turn % self.clients.len()].clone();
            let tried = tokio::time::timeout(TRY_MAX, call(client)).await;
            match tried.expect("a call hangs") {
                Ok(answer) => return (answer, unanswered),
                Err(status) => {
                    assert!(self.hop.is_lost(&status), "{status:?}");
                    let told = status.get_error_details();
                    let behind = told.error_info().is_some_and(|i| i.reason == BEHIND);
                    last = Some(status);
                    match behind {
                        true => a_moment().await,
                        false => tokio::task::yield_now().await,
                    }
                }
            }
        }
        panic!("a call was never answered: {last:?}");
    }

    async fn sends(&self, round: usize, done: &mut Done) -> String {
        let request = CreateEnvelopeRequest {
            request_id: format!("send-{round}"),
            ..equal(&format!("sender-{}", self.number), cny(SHARE), SHARES)
        };
        let create = |mut client: Client| {
            let request = request.clone();
            async move { client.create_envelope(request).await }
        };
        let (first, unanswered) = self.ask(create).await;
        let first = first.into_inner();
        assert!(unanswered > 0 || !first.replayed);
        done.found[0] += usize::from(first.replayed);
        let envelope = first.envelope.unwrap();
        self.record.begin(&envelope);
        // The other process knows it, and says that it was there.
        let again = self.ask(create).await.0.into_inner();
        assert!(again.replayed);
        let same = again.envelope.unwrap();
        assert_eq!(same.envelope_id, envelope.envelope_id);
        assert_eq!(same.total, envelope.total);
        envelope.envelope_id
    }

    async fn grabs(&self, id: &str, done: &mut Done) {
        let grab = |mut client: Client| {
            let request = grab_of(id, &format!("grabber-{}", self.number));
            async move { self.record.grab(&mut client, request).await }
        };
        let (first, unanswered) = self.ask(grab).await;
        let second = self.ask(grab).await.0;
        let repeated = unanswered > 0 && first.outcome() == GrabOutcome::AlreadyGrabbed;
        assert!(repeated || first.outcome() == GrabOutcome::Won, "{first:?}");
        done.found[1] += usize::from(repeated);
        assert_eq!(second.outcome(), GrabOutcome::AlreadyGrabbed);
        assert_eq!(second.share, first.share);
    }

    async fn recalls(&self, id: &str, round: usize, done: &mut Done) {
        let request = RecallEnvelopeRequest {
            envelope_id: id.to_owned(),
            sender: format!("sender-{}", self.number),
            request_id: format!("recall-{round}"),
            ..RecallEnvelopeRequest::default()
        };
        let recall = |mut client: Client| {
            let request = request.clone();
            async move { client.recall_envelope(request).await }
        };
        let (first, unanswered) = self.ask(recall).await;
        let first = first.into_inner();
        assert!(unanswered > 0 || !first.replayed);
        done.found[2] += usize::from(first.replayed);
        assert!(self.ask(recall).await.0.into_inner().replayed);
    }

    async fn lives(&self) -> Done {
        let mut done = Done::default();
        for round in 0.. {
            let tries = self.tries.load(Ordering::SeqCst);
            let lost: u64 = self.wires.iter().map(|wire| self.hop.lost_over(wire)).sum();
            if tries >= self.hop.tries && lost >= self.hop.lost {
                break;
            }
            assert!(tries < TRIES_MAX, "the storm loses nothing");
            let id = self.sends(round, &mut done).await;
            self.grabs(&id, &mut done).await;
            self.recalls(&id, round, &mut done).await;
            done.sent.push(id);
        }
        done
    }
}

/// Clients of both processes in a storm over these wires, one a process; then every unit is where it
/// should be. Answers what was found done by the repetition: creates, grabs, recalls.
async fn nothing_is_done_twice(
    hop: Hop,
    fleet: &mut Fleet,
    wires: Vec<Proxy>,
    clients: Vec<Client>,
) -> [usize; 3] {
    for number in 0..CLIENTS {
        let sender = format!("sender-{number}");
        fleet.processes[0].fund(&sender, cny(FUNDS)).await;
    }
    let wires: Vec<_> = wires.into_iter().map(Arc::new).collect();
    let over = Arc::new(AtomicBool::new(false));
    let mut storms = JoinSet::new();
    for (place, wire) in wires.iter().enumerate() {
        // While one process suffers, the other one may have good weather.
        let begins_at = place * BEATS / wires.len();
        storms.spawn(storm(hop, Arc::clone(wire), begins_at, Arc::clone(&over)));
    }
    let tries = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for number in 0..CLIENTS {
        let caller = Caller {
            number,
            hop,
            record: fleet.record.clone(),
            wires: wires.clone(),
            clients: clients.clone(),
            turn: AtomicUsize::new(number),
            tries: Arc::clone(&tries),
        };
        callers.spawn(async move { (number, caller.lives().await) });
    }
    let done: BTreeMap<usize, Done> = callers.join_all().await.into_iter().collect();
    over.store(true, Ordering::SeqCst);
    storms.join_all().await;
    for wire in &wires {
        assert!(hop.lost_over(wire) > 0, "no reply was lost");
        assert!(hop.requests.is_empty() || wire.swallowed() > wire.unanswered());
    }
    each_call_took_effect_once(fleet, &done).await;
    let found = |kind: usize| done.values().map(|done| done.found[kind]).sum();
    [found(0), found(1), found(2)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_lost_between_the_servers_and_the_books_change_nothing() {
    let mut fleet = Fleet::on_wires_to(Store::Books, 2).await;
    let (wires, clients) = (std::mem::take(&mut fleet.wires), fleet.clients());
    let found = nothing_is_done_twice(BOOKS, &mut fleet, wires, clients).await;
    assert!(found[0] > 0 && found[2] > 0, "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_lost_between_the_servers_and_redis_change_nothing() {
    let mut fleet = Fleet::on_wires_to(Store::Redis, 2).await;
    let (wires, clients) = (std::mem::take(&mut fleet.wires), fleet.clients());
    let found = nothing_is_done_twice(REDIS, &mut fleet, wires, clients).await;
    assert!(found[0] > 0 && found[1] > 0, "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_lost_between_clients_and_several_servers_change_nothing() {
    let mut fleet = Fleet::of(2).await;
    let (mut wires, mut clients) = (Vec::new(), Vec::new());
    for process in &fleet.processes {
        let wire = Proxy::to(process.server.grpc()).await;
        clients.push(Client::new(channel(wire.port()).await));
        wires.push(wire);
    }
    let found = nothing_is_done_twice(CLIENTS_HOP, &mut fleet, wires, clients).await;
    assert!(found.iter().all(|found| *found > 0), "{found:?}");
}

/// The books have what was answered, and nothing besides.
async fn each_call_took_effect_once(fleet: &mut Fleet, done: &BTreeMap<usize, Done>) {
    for process in &fleet.processes {
        process.until_ready().await;
    }
    let mut sent = 0;
    for (number, done) in done {
        sent += done.sent.len();
        let (sender, process) = (format!("sender-{number}"), &mut fleet.processes[number % 2]);
        for id in &done.sent {
            process.until(id, &sender, EnvelopeState::Closed).await;
        }
        let won = i64::try_from(done.sent.len()).unwrap() * SHARE;
        assert_eq!(process.available(&sender).await, FUNDS - won);
        assert_eq!(process.available(&format!("grabber-{number}")).await, won);
    }
    for kind in ["fund", "settle", "refund"] {
        let made = format!("SELECT count(*) FROM red_envelope.posting WHERE kind = '{kind}'");
        assert_eq!(fleet.ask_the_books(&made), sent.to_string(), "{kind}");
    }
    for process in &mut fleet.processes {
        process.audit_when_quiet().await;
    }
}
