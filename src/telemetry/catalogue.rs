//! The table of metrics: names, kinds, units, descriptions, buckets. `docs/RUNBOOK.md` repeats it.

use metrics::Unit;

/// Seconds. OpenTelemetry's advice for RPCs is 5 ms…10 s; a grab takes less, so three buckets
/// are added below.
pub const LATENCY_BUCKETS: [f64; 17] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
    7.5, 10.0,
];

/// Records of one commit: powers of four up to the largest batch of the ledger (5,000) and beyond.
pub const SIZE_BUCKETS: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0];

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Latency,
    Size,
}

pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    pub unit: Unit,
    pub what: &'static str,
}

const fn metric(name: &'static str, kind: MetricKind, unit: Unit, what: &'static str) -> Metric {
    Metric {
        name,
        kind,
        unit,
        what,
    }
}

pub const GRABS: &str = "red_envelope_grabs_total";
pub const GRABS_FAILED: &str = "red_envelope_grabs_failed_total";
pub const CREATED: &str = "red_envelope_envelopes_created_total";
pub const CLOSED: &str = "red_envelope_envelopes_closed_total";
pub const COMMIT_SECONDS: &str = "red_envelope_hot_commit_seconds";
pub const COMMIT_GRABS: &str = "red_envelope_hot_commit_grabs";
pub const SETTLED: &str = "red_envelope_settled_records_total";
pub const SUPERSEDED: &str = "red_envelope_superseded_records_total";
pub const SETTLE_SECONDS: &str = "red_envelope_settle_batch_seconds";
pub const SETTLE_RECORDS: &str = "red_envelope_settle_batch_records";
pub const REFUNDED: &str = "red_envelope_refunds_total";
pub const SET_ASIDE: &str = "red_envelope_dead_letters_total";
pub const MADE_GOOD: &str = "red_envelope_made_good_total";
pub const MAKE_GOOD_CAPPED: &str = "red_envelope_make_good_capped_total";
pub const RECONCILED: &str = "red_envelope_reconciled_records_total";
pub const ACKED_DROPPED: &str = "red_envelope_acked_dropped_total";
pub const UNREADABLE: &str = "red_envelope_outbox_unreadable_total";
pub const REPAIRED: &str = "red_envelope_envelopes_rebuilt_total";
pub const GATHERED: &str = "red_envelope_envelopes_gathered_total";
pub const FROZEN: &str = "red_envelope_frozen_envelopes";
pub const BROKEN: &str = "red_envelope_broken_invariants_total";
pub const OUTBOX: &str = "red_envelope_outbox_records";
pub const OUTBOX_AGE: &str = "red_envelope_outbox_oldest_age_seconds";
pub const CLOCK_AHEAD: &str = "red_envelope_clock_ahead_seconds";
pub const HELD: &str = "red_envelope_hot_envelopes";
pub const QUEUED: &str = "red_envelope_hot_queued_grabs";
pub const WAIT: &str = "red_envelope_hot_wait_seconds";
pub const LATE: &str = "red_envelope_runtime_late_seconds";
pub const SHED: &str = "red_envelope_shed_total";
pub const READY: &str = "red_envelope_ready";
pub const NOT_READY: &str = "red_envelope_not_ready";
pub const CONNECTIONS: &str = "red_envelope_connections";
pub const TURNED_AWAY: &str = "red_envelope_connections_turned_away_total";
pub const STREAMS: &str = "red_envelope_grab_streams";
pub const WATCHERS: &str = "red_envelope_watchers";
pub const LOOKED_UP: &str = "red_envelope_ledger_lookups_total";
pub const DISCREPANCIES: &str = "red_envelope_audit_discrepancies";
pub const STORE_BYTES: &str = "red_envelope_store_bytes";
/// OpenTelemetry's `rpc.server.call.duration`, as Prometheus spells it.
pub const RPC_SECONDS: &str = "rpc_server_call_duration_seconds";

/// Every metric: the table of docs/RUNBOOK.md.
pub const METRICS: &[Metric] = &[
    metric(
        GRABS,
        MetricKind::Counter,
        Unit::Count,
        "Grabs answered, by outcome",
    ),
    metric(
        GRABS_FAILED,
        MetricKind::Counter,
        Unit::Count,
        "Grabs answered with an error, by gRPC code",
    ),
    metric(
        CREATED,
        MetricKind::Counter,
        Unit::Count,
        "Envelopes funded, by kind; replays are not counted",
    ),
    metric(
        CLOSED,
        MetricKind::Counter,
        Unit::Count,
        "Envelopes whose books were balanced, by reason",
    ),
    metric(
        COMMIT_SECONDS,
        MetricKind::Latency,
        Unit::Seconds,
        "One commit of the hot store with its sync to disk, or one call of Redis",
    ),
    metric(
        COMMIT_GRABS,
        MetricKind::Size,
        Unit::Count,
        "Grabs that one commit or call of the hot store carried",
    ),
    metric(
        SETTLED,
        MetricKind::Counter,
        Unit::Count,
        "Records of the outbox that the ledger has posted",
    ),
    metric(
        SUPERSEDED,
        MetricKind::Counter,
        Unit::Count,
        "Records that nothing was paid for, since their share or their grabber was paid otherwise before",
    ),
    metric(
        SETTLE_SECONDS,
        MetricKind::Latency,
        Unit::Seconds,
        "One settlement batch, from reading to acknowledging",
    ),
    metric(
        SETTLE_RECORDS,
        MetricKind::Size,
        Unit::Count,
        "Records of one settlement batch",
    ),
    metric(
        REFUNDED,
        MetricKind::Counter,
        Unit::Count,
        "Remainders that went back to senders",
    ),
    metric(
        RECONCILED,
        MetricKind::Counter,
        Unit::Count,
        "Grants that no outbox owed, posted by the reconciler",
    ),
    metric(
        ACKED_DROPPED,
        MetricKind::Counter,
        Unit::Count,
        "Acknowledged grabs that are no longer kept for a Redis that loses them",
    ),
    metric(
        UNREADABLE,
        MetricKind::Counter,
        Unit::Count,
        "Outbox entries that nobody can read, kept under the poison key",
    ),
    metric(
        REPAIRED,
        MetricKind::Counter,
        Unit::Count,
        "Envelopes that the hot store had lost, wholly or in part, rebuilt from the books",
    ),
    metric(
        GATHERED,
        MetricKind::Counter,
        Unit::Count,
        "Dealt envelopes of which a stripe was used up, so that what was left went to the first one",
    ),
    metric(
        SET_ASIDE,
        MetricKind::Counter,
        Unit::Count,
        "Records that could not be settled and were set aside",
    ),
    metric(
        MADE_GOOD,
        MetricKind::Counter,
        Unit::Count,
        "Lost grabs that the reserve has made good",
    ),
    metric(
        MAKE_GOOD_CAPPED,
        MetricKind::Counter,
        Unit::Count,
        "Lost grabs that were set aside since the cap of what is made good is reached",
    ),
    metric(
        FROZEN,
        MetricKind::Gauge,
        Unit::Count,
        "Envelopes that stand still until an operator acts",
    ),
    metric(
        BROKEN,
        MetricKind::Counter,
        Unit::Count,
        "Envelopes that the service froze since an invariant would have broken",
    ),
    metric(
        OUTBOX,
        MetricKind::Gauge,
        Unit::Count,
        "Acknowledged records that wait for the ledger",
    ),
    metric(
        OUTBOX_AGE,
        MetricKind::Gauge,
        Unit::Seconds,
        "Age of the oldest of them",
    ),
    metric(
        CLOCK_AHEAD,
        MetricKind::Gauge,
        Unit::Seconds,
        "How far this host's clock is ahead of the hot store's",
    ),
    metric(
        HELD,
        MetricKind::Gauge,
        Unit::Count,
        "Envelopes in the hot store",
    ),
    metric(
        QUEUED,
        MetricKind::Gauge,
        Unit::Count,
        "Grabs that wait for the hot store's writer",
    ),
    metric(
        WAIT,
        MetricKind::Gauge,
        Unit::Seconds,
        "How long a grab that comes now would wait for its turn",
    ),
    metric(
        LATE,
        MetricKind::Gauge,
        Unit::Seconds,
        "How late this process runs what could run: the least of a tenth of a second",
    ),
    metric(
        SHED,
        MetricKind::Counter,
        Unit::Count,
        "Calls turned away because there were too many, by what",
    ),
    metric(
        READY,
        MetricKind::Gauge,
        Unit::Count,
        "1 while /readyz answers 200",
    ),
    metric(
        NOT_READY,
        MetricKind::Gauge,
        Unit::Count,
        "1 while /readyz answers 503 for this reason",
    ),
    metric(
        CONNECTIONS,
        MetricKind::Gauge,
        Unit::Count,
        "Open connections, by listener",
    ),
    metric(
        TURNED_AWAY,
        MetricKind::Counter,
        Unit::Count,
        "Connections that the server closed, by listener and reason",
    ),
    metric(STREAMS, MetricKind::Gauge, Unit::Count, "Open GrabStreams"),
    metric(
        WATCHERS,
        MetricKind::Gauge,
        Unit::Count,
        "Open WatchEnvelope streams",
    ),
    metric(
        LOOKED_UP,
        MetricKind::Counter,
        Unit::Count,
        "Envelopes asked of the ledger since the hot store had none, by whether it knew them",
    ),
    metric(
        DISCREPANCIES,
        MetricKind::Gauge,
        Unit::Count,
        "Discrepancies that the last audit of every tenant found, `of` all or of what is hot",
    ),
    metric(
        STORE_BYTES,
        MetricKind::Gauge,
        Unit::Bytes,
        "Size of a store's files, by store",
    ),
    metric(
        RPC_SECONDS,
        MetricKind::Latency,
        Unit::Seconds,
        "rpc.server.call.duration: one RPC from its first byte to its status",
    ),
];
