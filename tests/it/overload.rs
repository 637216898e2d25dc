//! Overload (F20): people without end, and a hot store that takes its time for each call. What is turned away costs
//! the others nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use red_envelope_proto::v1::{
    EnvelopeState, GetServiceInfoRequest, RecallEnvelopeRequest,
    info_service_client::InfoServiceClient,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::crowd::{Crowd, Load, Seen};
use crate::harness::fleet::{Fleet, Store, a_moment};
use crate::harness::world::channel;
use crate::harness::{Start, cny, lucky};

/// How long Redis takes to answer a call, as the server sees it: two calls of 512 grabs in this time are what it can do.
const SLOW: Duration = Duration::from_millis(900);
/// The calls on their way and as many again: what the server lets wait of any Redis.
const IN_FLIGHT: usize = 2_048;
/// What counts begins so much later than the tries.
const WARM_UP: Duration = Duration::from_secs(3);
const SPAN: Duration = Duration::from_secs(9);
/// How soon after the last answer of the overload it must be as before: what counts begins then.
const BACK_MAX: Duration = Duration::from_secs(5);
/// How soon after its last try: what the catalogue names.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// Nothing is left of it: a p99 is of a Redis that answers after as long as ever.
const AS_BEFORE: f64 = 1.25;
/// Shares of an envelope, each overload on one of its own: for all that is served if every try of a span but the last is void.
const SHARES: u32 = 100_000;
/// How often a span is tried in which the crowd itself could not keep up.
const SPANS_MAX: usize = 4;

/// An envelope for a crowd, in front of a Redis that takes its time.
struct Stand {
    id: String,
    crowd: Crowd,
    won: BTreeSet<u32>,
}

impl Stand {
    async fn begins(fleet: &mut Fleet) -> Self {
        fleet.wires[0].slow_replies(Duration::ZERO);
        let process = &mut fleet.processes[0];
        let sent = lucky("alice", cny(10 * i64::from(SHARES)), SHARES);
        let id = process.send(sent).await.envelope_id;
        let crowd = Crowd::new(process.envelopes.clone(), &id);
        fleet.wires[0].slow_replies(SLOW);
        let won = BTreeSet::new();
        Self { id, crowd, won }
    }

    /// No share is won twice.
    async fn pressed(&mut self, load: Load, warm_up: Duration) -> Seen {
        for _ in 0..SPANS_MAX {
            let seen = self.crowd.press(load, warm_up, SPAN).await;
            assert_eq!(seen.failed, Vec::<String>::new(), "{load:?}");
            for share in &seen.won {
                assert!(self.won.insert(*share), "share {share} was won twice");
            }
            eprintln!(
                "{load:?}: {} sent, {} late, {} held back, {} turned away, {:.0} served/s, p50 {:?}, p99 {:?}",
                seen.sent,
                seen.late,
                seen.held_back,
                seen.turned_away,
                seen.served_per_s,
                seen.latency(500),
                seen.latency(990),
            );
            if seen.is_valid() {
                return seen;
            }
        }
        panic!("the crowd was late in every one of {SPANS_MAX} spans: {load:?}");
    }

    /// No win was told that is none.
    async fn ends(self, fleet: &mut Fleet) {
        fleet.wires[0].slow_replies(Duration::ZERO);
        let told = fleet.processes[0].look(&self.id, "alice").await.progress;
        let taken = told.unwrap().taken_count;
        assert_eq!(usize::try_from(taken).unwrap(), self.won.len());
    }
}

/// A span on a new envelope.
async fn pressed(fleet: &mut Fleet, load: Load) -> Seen {
    let mut stand = Stand::begins(fleet).await;
    let seen = stand.pressed(load, WARM_UP).await;
    stand.ends(fleet).await;
    seen
}

/// Neither an answer nor a connection that takes a second is given up.
fn slow_is_not_dead() -> Vec<String> {
    let flags = [
        "--redis-response-timeout-ms",
        "20000",
        "--redis-connect-timeout-ms",
        "20000",
    ];
    flags.map(str::to_owned).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_turned_away_costs_nothing_of_what_is_served() {
    let mut fleet = Fleet::on_wires_to(Store::Redis, 0).await;
    let start = Start {
        flags: slow_is_not_dead(),
        ..Start::default()
    };
    fleet.join(start).await;
    fleet.processes[0].fund("alice", cny(10_000_000)).await;

    let peak = pressed(&mut fleet, Load::InFlight(IN_FLIGHT)).await;
    let (peak_per_s, peak_p99) = (peak.served_per_s, peak.latency(990));
    let half = Load::PerSecond(peak_per_s / 2.0);
    let before = pressed(&mut fleet, half).await.latency(990);
    for times in [2.0, 5.0, 10.0] {
        let load = Load::PerSecond(times * peak_per_s);
        let mut stand = Stand::begins(&mut fleet).await;
        let seen = stand.pressed(load, WARM_UP).await;
        assert!(seen.turned_away > 0, "{times} times");
        let goodput = seen.served_per_s / peak_per_s;
        assert!(goodput >= 0.85, "{times} times: {goodput}");
        let p99 = seen.latency(990);
        assert!(
            p99 <= 2 * peak_p99,
            "{times} times: {p99:?} after {peak_p99:?}"
        );
        // The same envelope, before the same slow Redis, with whatever the overload left there.
        assert!(
            seen.drained + BACK_MAX <= BACK_WITHIN,
            "{times} times: {:?}",
            seen.drained
        );
        let after = stand.pressed(half, BACK_MAX).await;
        assert_eq!(after.turned_away, 0);
        let p99 = after.latency(990);
        assert!(
            Duration::ZERO < p99 && p99 <= before.mul_f64(AS_BEFORE),
            "{times} times: {p99:?} after it, {before:?} before"
        );
        stand.ends(&mut fleet).await;
    }

    fleet.processes[0].audit_when_quiet().await;
}

/// Of the calls of one class: those that were turned away, and those that were answered.
#[derive(Debug, Default)]
struct Heard {
    turned_away: usize,
    served: usize,
}

impl Heard {
    fn hears<Answer>(&mut self, answer: Result<Answer, Status>) {
        match answer {
            Ok(_) => self.served += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                let told = status.get_error_details();
                assert!(told.retry_info().is_some(), "{status}");
                self.turned_away += 1;
            }
        }
    }
}

/// Tries a second of a crowd of which one in some ten can be served.
const TEN_TIMES: f64 = 11_000.0;
/// Envelopes that are recalled while people press.
const RECALLS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_grabs_have_to_wait_who_ends_something_is_served_and_who_creates_or_looks_comes_again()
 {
    let mut fleet = Fleet::on_wires_to(Store::Redis, 0).await;
    let start = Start {
        flags: slow_is_not_dead(),
        ..Start::default()
    };
    fleet.join(start).await;
    let process = &mut fleet.processes[0];
    process.fund("alice", cny(10_000_000)).await;
    let mut recalled = Vec::new();
    for _ in 0..RECALLS {
        recalled.push(process.send(lucky("alice", cny(100), 10)).await.envelope_id);
    }
    let crowded = lucky("alice", cny(10 * i64::from(SHARES)), SHARES);
    let id = process.send(crowded).await.envelope_id;
    let mut crowd = Crowd::new(process.envelopes.clone(), &id);
    fleet.wires[0].slow_replies(SLOW);
    let presses = crowd.press(Load::PerSecond(TEN_TIMES), WARM_UP, SPAN);

    let process = &mut fleet.processes[0];
    let mut facts = InfoServiceClient::new(channel(process.server.grpc()).await);
    let (mut looks, mut creates) = (Heard::default(), Heard::default());
    let asks = async {
        // Until the crowd is there.
        while creates.turned_away == 0 {
            creates.hears(
                process
                    .envelopes
                    .create_envelope(lucky("alice", cny(10), 1))
                    .await,
            );
            a_moment().await;
        }
        for id in &recalled {
            looks.hears(process.try_look(id, "alice").await);
            creates.hears(
                process
                    .envelopes
                    .create_envelope(lucky("alice", cny(10), 1))
                    .await,
            );
            let request = RecallEnvelopeRequest {
                sender: "alice".to_owned(),
                envelope_id: id.clone(),
                request_id: "enough".to_owned(),
                ..RecallEnvelopeRequest::default()
            };
            let ended = process.envelopes.recall_envelope(request).await.unwrap();
            let state = ended.into_inner().envelope.unwrap().state();
            assert_ne!(state, EnvelopeState::Live);
            let asked = GetServiceInfoRequest::default();
            facts.get_service_info(asked).await.unwrap();
        }
    };
    let (seen, ()) = tokio::join!(presses, asks);
    eprintln!(
        "{looks:?} looks, {creates:?} creates, {} turned away",
        seen.turned_away
    );
    assert_eq!(seen.failed, Vec::<String>::new());
    assert!(looks.turned_away > 0 && creates.turned_away > 1);
    // Grabs are served meanwhile, as many as Redis can take.
    assert!(!seen.won.is_empty());
    fleet.wires[0].slow_replies(Duration::ZERO);
    fleet.processes[0].audit_when_quiet().await;
}
