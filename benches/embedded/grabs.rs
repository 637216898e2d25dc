//! One stage: so many grabs in flight through GrabStream, until every share of the stage is won.
//!
//! Closed loop on purpose: the question is how much the server can carry at a given number in
//! flight. How long people wait at a given arrival rate is the load test's question.
//!
//! Every grab must win, the amounts of each envelope must sum to its total, and every envelope must
//! close: a stage that loses money measures nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use red_envelope_proto::v1;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use tonic::transport::Channel;

use crate::sender;
use crate::server::{ServerProcess, cpu_seconds};
use crate::streams::{self, Field};

/// Shares of one envelope: below the 10,000 above which envelopes may be cut into stripes.
const SHARES: u32 = 10_000;
/// Minor units of one envelope: a mean share of 1,000.
const TOTAL_MINOR: i64 = 10_000_000;
/// How long settlement may take after the last grab before the stage fails.
const DRAIN_MAX: Duration = Duration::from_secs(90);
/// How often the stage looks whether its envelopes have closed.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Ids in one BatchGetEnvelopes.
const BATCH_GET_MAX: usize = 100;

/// What to run.
#[derive(Clone, Copy)]
pub struct Stage {
    /// Grabs on the way at any moment, over all streams.
    pub in_flight: usize,
    /// Envelopes, each of `SHARES` shares.
    pub envelopes: usize,
}

/// How it went.
pub struct StageResult {
    /// Acknowledged grabs per second, from the first request to the last answer.
    pub grabs_per_s: f64,
    /// Processor time of the server for a grab while grabs ran (settlement beside them included).
    pub server_us: f64,
    /// Processor time of this process for a grab.
    pub client_us: f64,
    /// Grabs for each commit of the log, by the server's own counters.
    pub mean_batch: f64,
    /// Won and not yet in the books when the last answer came.
    pub unsettled_at_end: u64,
    /// From the last answer until every envelope had closed.
    pub drain_s: f64,
    /// Answer times.
    pub p50_ms: f64,
    /// Answer times.
    pub p99_ms: f64,
}

/// Runs one stage and waits until its money is in the books.
pub async fn run(server: &ServerProcess, stage: Stage, label: &str) -> anyhow::Result<StageResult> {
    let mut envelopes = EnvelopeServiceClient::new(server.connect().await?);
    let ids = create(&mut envelopes, stage.envelopes, label).await?;
    let grabs = ids.len() * SHARES as usize;
    let channels = server.connect_all(streams::CONNECTIONS).await?;
    let field = Arc::new(Field::new(ids, grabs));

    let (commits_before, server_before, client_before) = (
        server.commits().await?,
        server.cpu_seconds()?,
        cpu_seconds(std::process::id())?,
    );
    let began = Instant::now();
    let latencies = streams::finish(streams::start(channels, &field, stage.in_flight)).await?;
    let span = began.elapsed().as_secs_f64();
    let (server_cpu, client_cpu) = (
        server.cpu_seconds()? - server_before,
        cpu_seconds(std::process::id())? - client_before,
    );
    let commits = server.commits().await?.since(&commits_before);

    for (id, paid) in field.envelope_ids.iter().zip(&field.paid_minor) {
        let paid = paid.load(Ordering::Relaxed);
        ensure!(
            paid == TOTAL_MINOR,
            "envelope {id} of {TOTAL_MINOR} paid {paid}"
        );
    }
    let (unsettled_at_end, drain_s) = drain(&mut envelopes, &field.envelope_ids, label).await?;
    let grabs = grabs as f64;
    Ok(StageResult {
        grabs_per_s: grabs / span,
        server_us: server_cpu * 1e6 / grabs,
        client_us: client_cpu * 1e6 / grabs,
        mean_batch: commits.mean_batch(),
        unsettled_at_end,
        drain_s,
        p50_ms: latencies.value_at_quantile(0.5) as f64 / 1e6,
        p99_ms: latencies.value_at_quantile(0.99) as f64 / 1e6,
    })
}

/// The sender of a stage; the label keeps stages apart.
fn sender(label: &str) -> String {
    format!("sender-{label}")
}

async fn create(
    envelopes: &mut EnvelopeServiceClient<Channel>,
    count: usize,
    label: &str,
) -> anyhow::Result<Vec<Arc<str>>> {
    let mut ids = Vec::with_capacity(count);
    for number in 0..count {
        let request_id = format!("bench-{label}-{number}");
        let envelope =
            sender::send(envelopes, &sender(label), request_id, SHARES, TOTAL_MINOR).await?;
        ids.push(envelope.envelope_id.into());
    }
    Ok(ids)
}

/// Brings in what the stage's sender needs.
pub async fn fund(server: &ServerProcess, stage: Stage, label: &str) -> anyhow::Result<()> {
    let total_minor = TOTAL_MINOR * i64::try_from(stage.envelopes)?;
    sender::deposit(
        server,
        &sender(label),
        format!("bench-{label}"),
        total_minor,
    )
    .await
}

/// Waits until every envelope has closed. What was unsettled at the first look, and how long it took.
async fn drain(
    envelopes: &mut EnvelopeServiceClient<Channel>,
    ids: &[Arc<str>],
    label: &str,
) -> anyhow::Result<(u64, f64)> {
    let began = Instant::now();
    let mut unsettled_first = None;
    let mut open: Vec<Arc<str>> = ids.to_vec();
    loop {
        let mut unsettled: HashMap<String, u64> = HashMap::new();
        for page in open.chunks(BATCH_GET_MAX) {
            let seen = envelopes
                .batch_get_envelopes(v1::BatchGetEnvelopesRequest {
                    envelope_ids: page.iter().map(ToString::to_string).collect(),
                    viewer: sender(label),
                    ..v1::BatchGetEnvelopesRequest::default()
                })
                .await
                .context("BatchGetEnvelopes failed")?
                .into_inner();
            ensure!(
                seen.missing.is_empty(),
                "envelopes vanished: {:?}",
                seen.missing
            );
            for envelope in seen.envelopes.into_iter().filter_map(|it| it.envelope) {
                if envelope.state() != v1::EnvelopeState::Closed {
                    let settled = envelope.progress.and_then(|it| it.settled);
                    let left = TOTAL_MINOR - settled.map_or(0, |it| it.minor_units);
                    // The mean share is a thousand minor units: enough for a figure of a backlog.
                    let shares = u64::try_from(left * i64::from(SHARES) / TOTAL_MINOR)?;
                    unsettled.insert(envelope.envelope_id, shares);
                }
            }
        }
        unsettled_first.get_or_insert(unsettled.values().sum());
        open.retain(|id| unsettled.contains_key(id.as_ref()));
        if open.is_empty() {
            let seconds = began.elapsed().as_secs_f64();
            return Ok((unsettled_first.unwrap_or_default(), seconds));
        }
        ensure!(
            began.elapsed() < DRAIN_MAX,
            "{} envelopes have not closed {DRAIN_MAX:?} after their last grab",
            open.len()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
