//! A storm over wires in which replies are lost, and callers in it who repeat each call until it is answered:
//! what they learn are the first answers.
//!
//! # Shape
//! | word | means |
//! |---|---|
//! | hop | the wire: from the callers to the servers, or from the servers to one of their stores |
//! | try | one call, whatever becomes of it; a call is repeated, each time at the next server |
//! | arrived | a try that reached what is behind the wire: it was answered, and nobody can answer it without that (`needs`); or its reply is one of those that the wire lost |
//!
//! A try that a server turned down by itself, since it could not reach its store, counts as nothing.
//!
//! # Bounds
//! [`TRIES_MAX`] tries in all, [`CALL_MAX`] for one call, [`TRY_MAX`] for one try.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use red_envelope_proto::v1::{
    CreateEnvelopeRequest, CreateEnvelopeResponse, DeclineEnvelopeRequest, Envelope, EnvelopeState,
    GrabOutcome, RecallEnvelopeRequest,
};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::{Response, Status};
use tonic_types::StatusExt as _;

use super::fleet::{Client, a_moment};
use super::hop::{BEATS, Call, Hop, blow};
use super::proxy::Proxy;
use super::record::Record;
use super::world::{World, channel, cny, equal, exclusive, grab_of};

/// Minor units of a share, and what each sender has at first.
const SHARE: i64 = 10;
const FUNDS: i64 = 1_000_000;
/// Callers that send, grab, decline and recall at the same time.
const CALLERS: usize = 16;
/// The storm goes on until so many tries have arrived.
const ARRIVED_MIN: u64 = 10_000;
/// A call that is tried so often in a storm that loses too little is no test.
const TRIES_MAX: u64 = 100_000;
/// How long one call is repeated before it counts as never answered: a server that can't reach its store turns
/// tries down as fast as they come, and settlement may be behind for minutes where a machine does much else.
const CALL_MAX: Duration = Duration::from_secs(300);
/// Tries of one call after which its caller rests longer: of those that are turned down there may be many.
const TRIES_AT_ONCE_MAX: usize = 100;
/// The longest that one try may take: above it the call hangs.
const TRY_MAX: Duration = Duration::from_secs(30);
/// Between two tries of a call.
const REST: Duration = Duration::from_millis(5);
/// Between two rounds of a caller once enough has arrived and only losses are wanted: these come with the
/// gusts, by the clock, and a fast machine would use all tries up before there are enough.
const REST_OF_ROUND: Duration = Duration::from_millis(200);
/// Shares of an envelope, of which one is grabbed; in every other one another is declined.
const SHARES: u32 = 3;
/// Why a Create is turned away until settlement has caught up: asking at once is of no use.
const BEHIND: &str = "SETTLEMENT_BEHIND";

/// What all callers count together.
#[derive(Default)]
struct Tally {
    tries: AtomicU64,
    /// Tries to which a server's own word came back.
    heard: AtomicU64,
    /// Answers that nobody can give without what is behind the wire.
    answers: AtomicU64,
}

/// Somebody who sends, grabs, declines and recalls.
struct Caller {
    number: usize,
    hop: Hop,
    record: Record,
    wires: Vec<Arc<Proxy>>,
    clients: Vec<Client>,
    turn: AtomicUsize,
    tally: Arc<Tally>,
}

/// What one caller did.
#[derive(Default)]
struct Done {
    sent: Vec<String>,
    declined: usize,
    /// Calls of which a try without an answer had taken effect.
    found: BTreeMap<Call, usize>,
}

impl Done {
    fn finds(&mut self, call: Call, found: bool) {
        *self.found.entry(call).or_default() += usize::from(found);
    }
}

impl Caller {
    /// Repeats one call, each time through the next server, until it is answered. Answers how many tries
    /// were not.
    async fn ask<Answer, Called>(
        &self,
        (call, again): (Call, bool),
        mut once: impl FnMut(Client) -> Called,
    ) -> (Answer, usize)
    where
        Called: Future<Output = Result<Answer, Status>>,
    {
        let began = Instant::now();
        for unanswered in 0.. {
            self.tally.tries.fetch_add(1, Ordering::SeqCst);
            let turn = self.turn.fetch_add(1, Ordering::SeqCst);
            let client = self.clients[turn % self.clients.len()].clone();
            let tried = tokio::time::timeout(TRY_MAX, once(client)).await;
            match tried.expect("a call hangs") {
                Ok(answer) => {
                    self.tally.heard.fetch_add(1, Ordering::SeqCst);
                    let counts = u64::from((self.hop.needs)(call, again));
                    self.tally.answers.fetch_add(counts, Ordering::SeqCst);
                    return (answer, unanswered);
                }
                Err(status) => {
                    assert!(self.hop.is_lost(&status), "{status:?}");
                    let heard = u64::from(status.source().is_none());
                    self.tally.heard.fetch_add(heard, Ordering::SeqCst);
                    let told = status.get_error_details();
                    let behind = told.error_info().is_some_and(|i| i.reason == BEHIND);
                    let in_time = began.elapsed() < CALL_MAX;
                    assert!(in_time, "a call was never answered: {status:?}");
                    match behind || unanswered > TRIES_AT_ONCE_MAX {
                        true => a_moment().await,
                        false => tokio::time::sleep(REST).await,
                    }
                }
            }
        }
        unreachable!("a call is repeated until it is answered")
    }

    fn named(&self, role: &str) -> String {
        format!("{role}-{}", self.number)
    }

    /// Every other envelope has shares for people by name: those can be declined.
    fn envelope(&self, round: usize) -> CreateEnvelopeRequest {
        let sender = self.named("sender");
        let asked = match round % 2 {
            0 => equal(&sender, cny(SHARE), SHARES),
            _ => {
                let people = ["grabber", "decliner", "absent"].map(|role| self.named(role));
                exclusive(&sender, &people.each_ref().map(|who| (&**who, SHARE)))
            }
        };
        CreateEnvelopeRequest {
            request_id: format!("send-{round}"),
            ..asked
        }
    }

    async fn sends(&self, round: usize, done: &mut Done) -> String {
        let request = self.envelope(round);
        let create = |mut client: Client| {
            let request = request.clone();
            async move { client.create_envelope(request).await }
        };
        let (first, unanswered) = self.ask((Call::Create, false), create).await;
        let first: CreateEnvelopeResponse = first.into_inner();
        assert!(unanswered > 0 || !first.replayed);
        done.finds(Call::Create, first.replayed);
        let envelope = first.envelope.unwrap();
        self.record.begin(&envelope);
        // The next server knows it, and says that it was there.
        let again = self.ask((Call::Create, true), create).await.0.into_inner();
        assert!(again.replayed);
        assert_eq!(again.envelope.unwrap(), envelope);
        envelope.envelope_id
    }

    async fn grabs(&self, id: &str, done: &mut Done) {
        let grab = |mut client: Client| {
            let request = grab_of(id, &self.named("grabber"));
            async move { self.record.grab(&mut client, request).await }
        };
        let (first, unanswered) = self.ask((Call::Grab, false), grab).await;
        let second = self.ask((Call::Grab, true), grab).await.0;
        let repeated = unanswered > 0 && first.outcome() == GrabOutcome::AlreadyGrabbed;
        assert!(repeated || first.outcome() == GrabOutcome::Won, "{first:?}");
        done.finds(Call::Grab, repeated);
        let amount = first.share.as_ref().unwrap().amount.clone();
        assert_eq!(amount, Some(cny(SHARE)));
        assert_eq!(second.outcome(), GrabOutcome::AlreadyGrabbed);
        assert_eq!(second.share, first.share);
    }

    async fn declines(&self, id: &str, done: &mut Done) {
        let request = DeclineEnvelopeRequest {
            envelope_id: id.to_owned(),
            grabber: self.named("decliner"),
            request_id: "no-thanks".to_owned(),
            ..DeclineEnvelopeRequest::default()
        };
        let decline = |mut client: Client| {
            let request = request.clone();
            let answer = async move { client.decline_envelope(request).await };
            async { answer.await.map(Response::into_inner) }
        };
        let (first, unanswered) = self.ask((Call::Decline, false), decline).await;
        assert!(unanswered > 0 || !first.replayed);
        done.finds(Call::Decline, first.replayed);
        done.declined += 1;
        let share = first.share.unwrap();
        assert!(share.declined && share.amount == Some(cny(SHARE)));
        let again = self.ask((Call::Decline, true), decline).await.0;
        assert!(again.replayed);
        assert_eq!(again.share.unwrap(), share);
    }

    async fn recalls(&self, id: &str, round: usize, done: &mut Done) {
        let request = RecallEnvelopeRequest {
            envelope_id: id.to_owned(),
            sender: self.named("sender"),
            request_id: format!("recall-{round}"),
            ..RecallEnvelopeRequest::default()
        };
        let recall = |mut client: Client| {
            let request = request.clone();
            let answer = async move { client.recall_envelope(request).await };
            async { answer.await.map(Response::into_inner) }
        };
        let (first, unanswered) = self.ask((Call::Recall, false), recall).await;
        assert!(unanswered > 0 || !first.replayed);
        done.finds(Call::Recall, first.replayed);
        let taken = u32::try_from(1 + round % 2).unwrap();
        is_over(&first.envelope.unwrap(), id, taken);
        let again = self.ask((Call::Recall, true), recall).await.0;
        assert!(again.replayed);
        is_over(&again.envelope.unwrap(), id, taken);
    }

    async fn lives(&self) -> Done {
        let mut done = Done::default();
        for round in 0.. {
            let tries = self.tally.tries.load(Ordering::SeqCst);
            let answers = self.tally.answers.load(Ordering::SeqCst);
            let lost: u64 = self.wires.iter().map(|wire| self.hop.lost_over(wire)).sum();
            if answers >= ARRIVED_MIN && lost >= self.hop.lost_min {
                break;
            }
            assert!(tries < TRIES_MAX, "{answers} answers, {lost} were lost");
            if answers >= ARRIVED_MIN {
                tokio::time::sleep(REST_OF_ROUND).await;
            }
            let id = self.sends(round, &mut done).await;
            self.grabs(&id, &mut done).await;
            if round % 2 == 1 {
                self.declines(&id, &mut done).await;
            }
            self.recalls(&id, round, &mut done).await;
            done.sent.push(id);
        }
        done
    }
}

/// Its sender ended it when so many had been taken: whenever that is told, and whatever was paid since.
fn is_over(envelope: &Envelope, id: &str, taken: u32) {
    assert_eq!(envelope.envelope_id, id);
    let over = [EnvelopeState::Recalled, EnvelopeState::Closed];
    assert!(over.contains(&envelope.state()), "{envelope:?}");
    let progress = envelope.progress.as_ref().unwrap();
    let counts = (progress.taken_count, progress.remaining_count);
    assert_eq!(counts, (taken, SHARES - taken));
    assert_eq!(progress.taken, Some(cny(i64::from(taken) * SHARE)));
}

/// What the storm left behind.
pub struct Aftermath {
    hop: Hop,
    done: BTreeMap<usize, Done>,
    heard: u64,
    answers: u64,
    /// They lead to the stores still.
    wires: Vec<Arc<Proxy>>,
}

/// Callers of the servers at these ports live through a storm over these wires.
pub async fn rage(hop: Hop, worlds: &mut [World], wires: Vec<Proxy>, ports: &[u16]) -> Aftermath {
    for number in 0..CALLERS {
        worlds[0]
            .fund(&format!("sender-{number}"), cny(FUNDS))
            .await;
    }
    let wires: Vec<_> = wires.into_iter().map(Arc::new).collect();
    let tally = Arc::new(Tally::default());
    let mut callers = Vec::with_capacity(CALLERS);
    for number in 0..CALLERS {
        let mut clients = Vec::with_capacity(ports.len());
        // Connected while the weather is good.
        for port in ports {
            clients.push(Client::new(channel(*port).await));
        }
        callers.push(Caller {
            number,
            hop,
            record: worlds[0].record.clone(),
            wires: wires.clone(),
            clients,
            turn: AtomicUsize::new(number),
            tally: Arc::clone(&tally),
        });
    }
    let over = Arc::new(AtomicBool::new(false));
    let mut storms = JoinSet::new();
    for (place, wire) in wires.iter().enumerate() {
        // While one server suffers, another one may have good weather.
        let begins_at = place * BEATS / wires.len();
        storms.spawn(blow(hop, Arc::clone(wire), begins_at, Arc::clone(&over)));
    }
    let lives = callers
        .into_iter()
        .map(|caller| async move { (caller.number, caller.lives().await) });
    let callers: JoinSet<_> = lives.collect();
    let done = callers.join_all().await.into_iter().collect();
    over.store(true, Ordering::SeqCst);
    storms.join_all().await;
    for wire in &wires {
        assert!(hop.lost_over(wire) > 0, "no reply was lost");
        assert!(hop.requests.is_empty() || wire.swallowed() > wire.unanswered());
    }
    Aftermath {
        hop,
        done,
        heard: tally.heard.load(Ordering::SeqCst),
        answers: tally.answers.load(Ordering::SeqCst),
        wires,
    }
}

/// Calls of ours that have reached these servers.
async fn arrived_at(worlds: &[World]) -> u64 {
    let mut arrived = 0.0;
    for world in worlds {
        for call in Call::ALL {
            let metric = "rpc_server_call_duration_seconds_count";
            arrived += world.server.counted_of(metric, call.method()).await;
        }
    }
    format!("{arrived:.0}").parse().unwrap()
}

impl Aftermath {
    /// Every call took effect once, whoever was asked and however often, and enough tries arrived.
    /// `count` asks the books how many rows of a table there are.
    pub async fn comes_in_order(self, worlds: &mut [World], count: impl Fn(&str, &str) -> usize) {
        let over = self.wires.iter().map(|wire| self.hop.lost_over(wire));
        let mut lost: u64 = over.sum();
        if self.hop.breaks_off {
            // The servers know which tries reached them: what the callers did not hear of is lost.
            lost = arrived_at(worlds).await - self.heard;
        }
        let found = |call: &Call| {
            self.done
                .values()
                .map(|done| done.found[call])
                .sum::<usize>()
        };
        let found: Vec<_> = self
            .hop
            .finds
            .iter()
            .map(|call| (*call, found(call)))
            .collect();
        println!(
            "{} tries were answered, {lost} replies lost; found done: {found:?}",
            self.answers
        );
        assert!(self.answers >= ARRIVED_MIN && lost >= self.hop.lost_min);
        assert!(found.iter().all(|(_, count)| *count > 0), "{found:?}");
        self.is_in_the_books_once(worlds, count).await;
    }

    async fn is_in_the_books_once(
        &self,
        worlds: &mut [World],
        count: impl Fn(&str, &str) -> usize,
    ) {
        for world in &*worlds {
            world.until_ready().await;
        }
        let servers = worlds.len();
        let (mut sent, mut declined) = (0, 0);
        for (number, done) in &self.done {
            sent += done.sent.len();
            declined += done.declined;
            let (sender, world) = (format!("sender-{number}"), &mut worlds[number % servers]);
            for id in &done.sent {
                world.until(id, &sender, EnvelopeState::Closed).await;
            }
            let won = i64::try_from(done.sent.len()).unwrap() * SHARE;
            assert_eq!(world.balance(&sender).await, (FUNDS - won, 0, 0));
            assert_eq!(world.available(&format!("grabber-{number}")).await, won);
            assert_eq!(world.available(&format!("decliner-{number}")).await, 0);
        }
        assert_eq!(count("posting", "kind = 'fund'"), sent);
        assert_eq!(count("posting", "kind = 'settle'"), sent);
        // What was declined goes back by a posting of its own.
        assert_eq!(count("posting", "kind = 'refund'"), sent + declined);
        assert_eq!(count("claim", "true"), sent + declined);
        for world in worlds {
            world.audit_when_quiet().await;
        }
    }
}
