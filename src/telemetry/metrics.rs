//! Every metric of the process, each a verb: what happened, and how much of it.
//!
//! # Shape
//! | part | what |
//! |---|---|
//! | `catalogue` | name, kind, unit, description |
//! | `Meters` | the handles of what is counted on hot paths, looked up once |
//! | verbs | one function each; without [`install`] they do nothing, so tests need no recorder |
//!
//! # Bounds
//! Labels are closed sets (outcomes, kinds, RPC methods of the contract): no name that a caller
//! chose becomes a label, so the number of series is a constant of the program.
//!
//! # Not here
//! Amounts of money, and whose: the ledger tells them to whoever may ask.

use std::sync::OnceLock;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::catalogue::{
    ACKED_DROPPED, BROKEN, CLOCK_AHEAD, CLOSED, COMMIT_GRABS, COMMIT_SECONDS, CONNECTIONS, CREATED,
    DISCREPANCIES, FROZEN, GATHERED, GRABS, GRABS_FAILED, HELD, LATE, LATENCY_BUCKETS, LOOKED_UP,
    MADE_GOOD, MAKE_GOOD_CAPPED, METRICS, MetricKind, NOT_READY, OUTBOX, OUTBOX_AGE, QUEUED, READY,
    RECONCILED, REFUNDED, REPAIRED, RPC_SECONDS, SET_ASIDE, SETTLE_RECORDS, SETTLE_SECONDS,
    SETTLED, SHED, SIZE_BUCKETS, STORE_BYTES, STREAMS, SUPERSEDED, TURNED_AWAY, UNREADABLE, WAIT,
    WATCHERS,
};
use crate::domain::envelope::{CloseReason, Kind};
use crate::domain::grab::Outcome;

const OUTCOMES: [&str; 7] = [
    "won",
    "already_grabbed",
    "empty",
    "expired",
    "recalled",
    "not_open_yet",
    "refused",
];
const KINDS: [&str; 3] = ["lucky", "equal", "exclusive"];
const REASONS: [&str; 3] = ["empty", "expired", "recalled"];

struct Meters {
    grabs: [Counter; 7],
    created: [Counter; 3],
    closed: [Counter; 3],
    commit_seconds: Histogram,
    commit_grabs: Histogram,
    settled: Counter,
    superseded: Counter,
    settle_seconds: Histogram,
    settle_records: Histogram,
    refunded: Counter,
    set_aside: Counter,
    made_good: Counter,
    make_good_capped: Counter,
    unreadable: Counter,
    acked_dropped: Counter,
    reconciled: Counter,
    repaired: Counter,
    gathered: Counter,
    frozen: Gauge,
    broken: Counter,
    outbox: Gauge,
    outbox_age: Gauge,
    held: Gauge,
    queued: Gauge,
    wait: Gauge,
    late: Gauge,
    ready: Gauge,
    streams: Gauge,
    watchers: Gauge,
    looked_up: [Counter; 2],
    discrepancies: Gauge,
    discrepancies_of_hot: Gauge,
}

impl Meters {
    fn new() -> Self {
        let by = |name: &'static str, label: &'static str, value: &'static str| metrics::counter!(name, label => value);
        Self {
            grabs: OUTCOMES.map(|outcome| by(GRABS, "outcome", outcome)),
            created: KINDS.map(|kind| by(CREATED, "kind", kind)),
            closed: REASONS.map(|reason| by(CLOSED, "reason", reason)),
            commit_seconds: metrics::histogram!(COMMIT_SECONDS),
            commit_grabs: metrics::histogram!(COMMIT_GRABS),
            settled: metrics::counter!(SETTLED),
            superseded: metrics::counter!(SUPERSEDED),
            settle_seconds: metrics::histogram!(SETTLE_SECONDS),
            settle_records: metrics::histogram!(SETTLE_RECORDS),
            refunded: metrics::counter!(REFUNDED),
            set_aside: metrics::counter!(SET_ASIDE),
            made_good: metrics::counter!(MADE_GOOD),
            make_good_capped: metrics::counter!(MAKE_GOOD_CAPPED),
            unreadable: metrics::counter!(UNREADABLE),
            acked_dropped: metrics::counter!(ACKED_DROPPED),
            reconciled: metrics::counter!(RECONCILED),
            repaired: metrics::counter!(REPAIRED),
            gathered: metrics::counter!(GATHERED),
            frozen: metrics::gauge!(FROZEN),
            broken: metrics::counter!(BROKEN),
            outbox: metrics::gauge!(OUTBOX),
            outbox_age: metrics::gauge!(OUTBOX_AGE),
            held: metrics::gauge!(HELD),
            queued: metrics::gauge!(QUEUED),
            wait: metrics::gauge!(WAIT),
            late: metrics::gauge!(LATE),
            ready: metrics::gauge!(READY),
            streams: metrics::gauge!(STREAMS),
            watchers: metrics::gauge!(WATCHERS),
            looked_up: ["no", "yes"].map(|known| by(LOOKED_UP, "known", known)),
            discrepancies: metrics::gauge!(DISCREPANCIES, "of" => "all"),
            discrepancies_of_hot: metrics::gauge!(DISCREPANCIES, "of" => "hot"),
        }
    }
}

static INSTALLED: OnceLock<Option<(PrometheusHandle, Meters)>> = OnceLock::new();

fn meters() -> Option<&'static Meters> {
    INSTALLED.get()?.as_ref().map(|(_, meters)| meters)
}

/// Starts counting, once a process; later calls change nothing.
pub fn install() {
    INSTALLED.get_or_init(|| {
        let mut builder = PrometheusBuilder::new();
        for metric in METRICS {
            let buckets: &[f64] = match metric.kind {
                MetricKind::Latency => &LATENCY_BUCKETS,
                MetricKind::Size => &SIZE_BUCKETS,
                MetricKind::Counter | MetricKind::Gauge => continue,
            };
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
                .expect("the buckets are not empty");
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        // Somebody else's recorder (a test's) stays: then nothing of ours is counted.
        metrics::set_global_recorder(recorder).ok()?;
        for metric in METRICS {
            match metric.kind {
                MetricKind::Counter => {
                    metrics::describe_counter!(metric.name, metric.unit, metric.what);
                }
                MetricKind::Gauge => {
                    metrics::describe_gauge!(metric.name, metric.unit, metric.what);
                }
                MetricKind::Latency | MetricKind::Size => {
                    metrics::describe_histogram!(metric.name, metric.unit, metric.what);
                }
            }
        }
        Some((handle, Meters::new()))
    });
}

/// Everything counted so far, in Prometheus' text format. Empty before [`install`].
pub fn render() -> String {
    let installed = INSTALLED.get().and_then(Option::as_ref);
    installed.map_or_else(String::new, |(handle, _)| handle.render())
}

/// Folds what histograms have collected since the last call. Without it their memory grows until
/// somebody reads the metrics.
pub fn upkeep() {
    if let Some((handle, _)) = INSTALLED.get().and_then(Option::as_ref) {
        handle.run_upkeep();
    }
}

/// Gauges take floats; counts below 2^53 arrive exactly.
#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge of 2^53 things would be off by one"
)]
fn gauge_of(count: u64) -> f64 {
    count as f64
}

// ---- grabs ----

/// So many grabs got this answer.
pub fn grabs_answered(outcome: &Outcome, grabs: u64) {
    if let Some(meters) = meters() {
        let index = match outcome {
            Outcome::Won(_) => 0,
            Outcome::AlreadyGrabbed(_) => 1,
            Outcome::Empty => 2,
            Outcome::Expired => 3,
            Outcome::Recalled => 4,
            Outcome::NotOpenYet(_) => 5,
            Outcome::Refused(_) => 6,
        };
        meters.grabs[index].increment(grabs);
    }
}

/// So many grabs ended in an error; `code` is the name of a gRPC code, such as `UNAVAILABLE`.
pub fn grabs_failed(code: &'static str, grabs: u64) {
    metrics::counter!(GRABS_FAILED, "code" => code).increment(grabs);
}

/// The hot store made so many grabs durable, in so many seconds.
pub fn batch_committed(grabs: usize, seconds: f64) {
    if let Some(meters) = meters() {
        meters.commit_seconds.record(seconds);
        meters.commit_grabs.record(gauge_of(grabs as u64));
    }
}

/// A GrabStream was opened.
pub fn stream_opened() {
    if let Some(meters) = meters() {
        meters.streams.increment(1.0);
    }
}

/// A GrabStream ended.
pub fn stream_ended() {
    if let Some(meters) = meters() {
        meters.streams.decrement(1.0);
    }
}

/// Somebody began to watch an envelope.
pub fn watch_opened() {
    if let Some(meters) = meters() {
        meters.watchers.increment(1.0);
    }
}

/// Somebody stopped watching.
pub fn watch_ended() {
    if let Some(meters) = meters() {
        meters.watchers.decrement(1.0);
    }
}

// ---- envelopes ----

/// An envelope was funded for the first time.
pub fn envelope_created(kind: Kind) {
    if let Some(meters) = meters() {
        let index = match kind {
            Kind::Lucky => 0,
            Kind::Equal => 1,
            Kind::Exclusive => 2,
        };
        meters.created[index].increment(1);
    }
}

/// An entry of the outbox that nobody can read was set aside.
pub fn outbox_unreadable() {
    if let Some(meters) = meters() {
        meters.unreadable.increment(1);
    }
}

/// Grants that no outbox owed were posted.
pub fn reconciled(records: usize) {
    if let Some(meters) = meters() {
        meters.reconciled.increment(records as u64);
    }
}

/// Acknowledged grabs that wait for the ledger are no longer kept.
pub fn acked_dropped(grants: usize) {
    if let Some(meters) = meters() {
        meters.acked_dropped.increment(grants as u64);
    }
}

/// An envelope that the hot store had lost was rebuilt from the books.
pub fn envelope_repaired() {
    if let Some(meters) = meters() {
        meters.repaired.increment(1);
    }
}

/// What was left of a dealt envelope went to its first stripe.
pub fn envelope_gathered() {
    if let Some(meters) = meters() {
        meters.gathered.increment(1);
    }
}

/// An envelope's books were balanced.
pub fn envelope_closed(reason: CloseReason) {
    if let Some(meters) = meters() {
        let index = match reason {
            CloseReason::Empty => 0,
            CloseReason::Expired => 1,
            CloseReason::Recalled => 2,
        };
        meters.closed[index].increment(1);
    }
}

/// The ledger was asked for an envelope that the hot store does not hold.
pub fn ledger_asked(known: bool) {
    if let Some(meters) = meters() {
        meters.looked_up[usize::from(known)].increment(1);
    }
}

// ---- the ledger's side ----

/// The ledger posted so many records of the outbox.
pub fn settled(records: usize) {
    if let Some(meters) = meters() {
        meters.settled.increment(records as u64);
    }
}

/// So many records were paid otherwise before, so nothing was paid for them.
pub fn superseded(records: usize) {
    if let Some(meters) = meters() {
        meters.superseded.increment(records as u64);
    }
}

/// One settlement batch of so many records took so many seconds.
pub fn settle_batch(records: usize, seconds: f64) {
    if let Some(meters) = meters() {
        meters.settle_records.record(gauge_of(records as u64));
        meters.settle_seconds.record(seconds);
    }
}

/// What nobody took of an envelope went back to its sender.
pub fn refunded() {
    if let Some(meters) = meters() {
        meters.refunded.increment(1);
    }
}

/// So many records could not be settled and were set aside.
pub fn set_aside(records: usize) {
    if let Some(meters) = meters() {
        meters.set_aside.increment(records as u64);
    }
}

/// So many lost grabs were made good.
pub fn made_good(records: usize) {
    if let Some(meters) = meters() {
        meters.made_good.increment(records as u64);
    }
}

/// So many lost grabs were set aside since the cap is reached.
pub fn make_good_capped(records: usize) {
    if let Some(meters) = meters() {
        meters.make_good_capped.increment(records as u64);
    }
}

/// So many envelopes are frozen in the books.
pub fn frozen(envelopes: u64) {
    if let Some(meters) = meters() {
        meters.frozen.set(gauge_of(envelopes));
    }
}

/// An invariant would have broken: the service froze an envelope.
pub fn broken() {
    if let Some(meters) = meters() {
        meters.broken.increment(1);
    }
}

/// So many acknowledged records wait for the ledger, the oldest of them since so long.
pub fn outbox_waiting(records: u64, oldest_age_ms: i64) {
    if let Some(meters) = meters() {
        meters.outbox.set(gauge_of(records));
        let age = u64::try_from(oldest_age_ms).unwrap_or(0);
        meters.outbox_age.set(gauge_of(age) / 1_000.0);
    }
}

/// This host's clock is ahead of the hot store's by so much.
pub fn clock_ahead(ms: i64) {
    let ahead = gauge_of(ms.unsigned_abs()) / 1_000.0;
    metrics::gauge!(CLOCK_AHEAD).set(if ms < 0 { -ahead } else { ahead });
}

/// An audit of every tenant ended with so many discrepancies: of everything, or of what is hot.
pub fn audited(discrepancies: u64, hot_only: bool) {
    if let Some(meters) = meters() {
        let of = match hot_only {
            true => &meters.discrepancies_of_hot,
            false => &meters.discrepancies,
        };
        of.set(gauge_of(discrepancies));
    }
}

// ---- the process ----

/// The hot store holds so many envelopes, and so many grabs wait for its writer.
pub fn hot_holds(envelopes: u64, queued_grabs: u64) {
    if let Some(meters) = meters() {
        meters.held.set(gauge_of(envelopes));
        meters.queued.set(gauge_of(queued_grabs));
    }
}

/// How long a grab would wait for its turn, and how late this process is in what it does.
pub fn waits(grab: std::time::Duration, late: std::time::Duration) {
    if let Some(meters) = meters() {
        meters.wait.set(grab.as_secs_f64());
        meters.late.set(late.as_secs_f64());
    }
}

/// A store's files have this size.
pub fn store_holds(store: &'static str, bytes: u64) {
    metrics::gauge!(STORE_BYTES, "store" => store).set(gauge_of(bytes));
}

/// So many calls were turned away because there were too many of `what`.
pub fn shed(what: &'static str, calls: usize) {
    metrics::counter!(SHED, "what" => what).increment(calls as u64);
}

/// Whether this process wants traffic.
pub fn ready(yes: bool) {
    if let Some(meters) = meters() {
        meters.ready.set(if yes { 1.0 } else { 0.0 });
    }
}

/// Whether this reason keeps the process from being ready.
pub fn not_ready(reason: &'static str, yes: bool) {
    metrics::gauge!(NOT_READY, "reason" => reason).set(if yes { 1.0 } else { 0.0 });
}

/// A connection was accepted.
pub fn connection_opened(listener: &'static str) {
    metrics::gauge!(CONNECTIONS, "listener" => listener).increment(1.0);
}

/// A connection ended.
pub fn connection_ended(listener: &'static str) {
    metrics::gauge!(CONNECTIONS, "listener" => listener).decrement(1.0);
}

/// A connection was closed: at once, where `why` is `total` or `peer`, or when it was `deaf`.
pub fn connection_turned_away(listener: &'static str, why: &'static str) {
    metrics::counter!(TURNED_AWAY, "listener" => listener, "why" => why).increment(1);
}

/// The histogram of one RPC method and status; whoever calls often keeps it.
pub(super) fn rpc_seconds(method: &str, code: &'static str) -> Histogram {
    metrics::histogram!(
        RPC_SECONDS,
        "rpc_system_name" => "grpc",
        "rpc_method" => method.to_owned(),
        "rpc_response_status_code" => code
    )
}

#[cfg(test)]
mod tests;
