//! Replies of PostgreSQL that are lost on the way to several servers: whoever repeats the same call, through
//! whichever of them, learns the same answer, and the books have it once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use red_envelope_proto::v1::{
    CreateEnvelopeRequest, EnvelopeState, GrabOutcome, RecallEnvelopeRequest,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::fleet::{Client, Fleet, a_moment};
use crate::harness::proxy::Proxy;
use crate::harness::world::grab_of;
use crate::harness::{cny, equal};

/// Minor units of a share, and what each sender has at first.
const SHARE: i64 = 10;
const FUNDS: i64 = 1_000_000;
/// Clients that send, grab and recall at the same time, each through both processes.
const CLIENTS: usize = 16;
/// The storm ends when they have made so many tries together and so many commits were without a reply: what
/// is done within a minute. A storm that loses fewer in the tries that the catalogue of faults names is none.
const TRIES: usize = 1_000;
const COMMITS_LOST: u64 = 100;
const TRIES_MAX: usize = 10_000;
/// Tries of one call before it counts as never answered.
const TRIES_OF_A_CALL_MAX: usize = 500;
/// The longest that one try may take: above it the call hangs.
const TRY_MAX: Duration = Duration::from_secs(30);
/// Between two beats of the storm over a wire, and beats until it begins anew.
const BEAT: Duration = Duration::from_millis(20);
const BEATS: usize = 100;
/// Of them, those in which commits may be without a reply: of so many in turn the first few.
const BEATS_OF_LOST_COMMITS: usize = 60;
const GUST: usize = 10;
const GUST_LASTS: usize = 3;
/// Then nothing is answered for two beats, and later everything is cut once.
const SILENT_BEATS: std::ops::Range<usize> = 70..72;
const CUT_AT: usize = 90;
/// Shares of an envelope, one of which is grabbed.
const SHARES: u32 = 3;
/// Why a Create is turned away until settlement has caught up: asking at once is of no use.
const BEHIND: &str = "SETTLEMENT_BEHIND";
/// How the order to commit looks on the wire.
const COMMIT: &[u8] = b"COMMIT\0";

/// The storm over one wire to the books, until it is called off: commits without a reply, then nothing but
/// silence, then a cut, with calm between them.
async fn storm(fleet: Arc<Fleet>, place: usize, over: Arc<AtomicBool>) {
    let wire = &fleet.wires[place];
    let mut beats = tokio::time::interval(BEAT);
    // While one process suffers, the other one may have good weather.
    let mut beat = place * BEATS / fleet.wires.len();
    while !over.load(Ordering::SeqCst) {
        beats.tick().await;
        beat += 1;
        let in_turn = beat % BEATS;
        let commits = in_turn < BEATS_OF_LOST_COMMITS && in_turn % GUST < GUST_LASTS;
        wire.swallow_replies_to(commits.then_some(COMMIT));
        wire.swallow_replies(SILENT_BEATS.contains(&in_turn));
        if in_turn == CUT_AT {
            wire.cut();
        }
    }
    wire.swallow_replies_to(None);
    wire.swallow_replies(false);
}

/// Commits that were done and not answered, over all wires.
fn commits_lost(fleet: &Fleet) -> u64 {
    fleet.wires.iter().map(Proxy::unanswered).sum()
}

/// Somebody who sends, grabs and recalls.
struct Caller {
    number: usize,
    fleet: Arc<Fleet>,
    clients: Vec<Client>,
    turn: AtomicUsize,
    tries: Arc<AtomicUsize>,
}

/// What one caller did.
#[derive(Default)]
struct Done {
    sent: Vec<String>,
    /// Creates and recalls of which a try without an answer had taken effect.
    found: (usize, usize),
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
                    // Nothing happens to the clients' own wires: whatever is lost, they are told to repeat.
                    let told = status.get_error_details();
                    assert_eq!(status.code(), Code::Unavailable, "{status}");
                    assert!(told.retry_info().is_some(), "{status}");
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
        done.found.0 += usize::from(first.replayed);
        let envelope = first.envelope.unwrap();
        self.fleet.record.begin(&envelope);
        // The other process knows it, and says that it was there.
        let again = self.ask(create).await.0.into_inner();
        assert!(again.replayed);
        let same = again.envelope.unwrap();
        assert_eq!(same.envelope_id, envelope.envelope_id);
        assert_eq!(same.total, envelope.total);
        envelope.envelope_id
    }

    async fn grabs(&self, id: &str) {
        let grab = |mut client: Client| {
            let request = grab_of(id, &format!("grabber-{}", self.number));
            async move { self.fleet.record.grab(&mut client, request).await }
        };
        let (first, unanswered) = self.ask(grab).await;
        let second = self.ask(grab).await.0;
        let repeated = unanswered > 0 && first.outcome() == GrabOutcome::AlreadyGrabbed;
        assert!(repeated || first.outcome() == GrabOutcome::Won, "{first:?}");
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
        done.found.1 += usize::from(first.replayed);
        assert!(self.ask(recall).await.0.into_inner().replayed);
    }

    async fn lives(&self) -> Done {
        let mut done = Done::default();
        for round in 0.. {
            let tries = self.tries.load(Ordering::SeqCst);
            if tries >= TRIES && commits_lost(&self.fleet) >= COMMITS_LOST {
                break;
            }
            assert!(tries < TRIES_MAX, "the storm loses nothing");
            let id = self.sends(round, &mut done).await;
            self.grabs(&id).await;
            self.recalls(&id, round, &mut done).await;
            done.sent.push(id);
        }
        done
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_lost_between_the_servers_and_the_books_change_nothing() {
    let mut fleet = Fleet::on_wires(2).await;
    for number in 0..CLIENTS {
        fleet.processes[0]
            .fund(&format!("sender-{number}"), cny(FUNDS))
            .await;
    }
    let fleet = Arc::new(fleet);
    let over = Arc::new(AtomicBool::new(false));
    let mut storms = JoinSet::new();
    for place in [0, 1] {
        storms.spawn(storm(Arc::clone(&fleet), place, Arc::clone(&over)));
    }
    let tries = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for number in 0..CLIENTS {
        let caller = Caller {
            number,
            fleet: Arc::clone(&fleet),
            clients: fleet.clients(),
            turn: AtomicUsize::new(number),
            tries: Arc::clone(&tries),
        };
        callers.spawn(async move { (number, caller.lives().await) });
    }
    let done: BTreeMap<usize, Done> = callers.join_all().await.into_iter().collect();
    over.store(true, Ordering::SeqCst);
    storms.join_all().await;
    let mut fleet = Arc::into_inner(fleet).expect("the storms are over");
    for wire in &fleet.wires {
        assert!(wire.unanswered() > 0, "no commit was lost");
        assert!(wire.swallowed() > wire.unanswered());
    }
    let found = |of: fn(&Done) -> usize| done.values().map(of).sum::<usize>();
    let (creates, recalls) = (found(|done| done.found.0), found(|done| done.found.1));
    assert!(creates > 0 && recalls > 0, "{creates} and {recalls}");
    each_call_took_effect_once(&mut fleet, &done).await;
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
