//! One stage: so many grabs in flight through GrabStream, until every share of the stage is won.
//!
//! Closed loop on purpose: the question is how much the server can carry at a given number in
//! flight. How long people wait at a given arrival rate is the load test's question.
//!
//! Every grab must win, the amounts of each envelope must sum to its total, and every envelope must
//! close: a stage that loses money measures nothing.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::FutureExt as _;
use futures_util::task::AtomicWaker;
use hdrhistogram::Histogram;
use red_envelope_proto::v1;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::light::{LightAnswer, LightCodec, LightGrab};
use crate::server::{ServerProcess, cpu_seconds};

/// Streams, each on a connection of its own, as T has connections.
const CONNECTIONS: usize = 4;
/// Shares of one envelope: below the 10,000 above which envelopes may be cut into stripes.
const SHARES: u32 = 10_000;
/// Minor units of one envelope: a mean share of 1,000.
const TOTAL_MINOR: i64 = 10_000_000;
/// How long settlement may take after the last grab before the stage fails.
const DRAIN_MAX: Duration = Duration::from_secs(90);
/// Answers that take longer than two minutes are recorded as that.
const LATENCY_NS_MAX: u64 = 120_000_000_000;
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

/// What the streams of a stage share.
struct Field {
    envelope_ids: Vec<Arc<str>>,
    paid_minor: Vec<AtomicI64>,
    sent_ns: Vec<AtomicU64>,
    next: AtomicUsize,
    began: Instant,
}

impl Field {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).expect("a stage lasts less than 584 years")
    }
}

/// Runs one stage and waits until its money is in the books.
pub async fn run(server: &ServerProcess, stage: Stage, label: &str) -> anyhow::Result<StageResult> {
    let mut envelopes = EnvelopeServiceClient::new(server.connect().await?);
    let ids = create(&mut envelopes, stage.envelopes, label).await?;
    let grabs = ids.len() * SHARES as usize;
    let channels = connect_all(server).await?;
    let field = Arc::new(Field {
        paid_minor: ids.iter().map(|_| AtomicI64::new(0)).collect(),
        envelope_ids: ids,
        sent_ns: (0..grabs).map(|_| AtomicU64::new(0)).collect(),
        next: AtomicUsize::new(0),
        began: Instant::now(),
    });

    let (commits_before, server_before, client_before) = (
        server.commits().await?,
        server.cpu_seconds()?,
        cpu_seconds(std::process::id())?,
    );
    let began = Instant::now();
    let mut streams = tokio::task::JoinSet::new();
    for channel in channels {
        streams.spawn(drive(
            channel,
            Arc::clone(&field),
            stage.in_flight / CONNECTIONS,
        ));
    }
    let mut latencies = Histogram::new_with_max(LATENCY_NS_MAX, 3)?;
    while let Some(ended) = streams.join_next().await {
        latencies.add(ended.context("a stream's task panicked")??)?;
    }
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

async fn connect_all(server: &ServerProcess) -> anyhow::Result<Vec<Channel>> {
    let mut channels = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        channels.push(server.connect().await?);
    }
    Ok(channels)
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
        let created = envelopes
            .create_envelope(v1::CreateEnvelopeRequest {
                sender: sender(label),
                request_id: format!("bench-{label}-{number}"),
                kind: v1::EnvelopeKind::Lucky.into(),
                amount: Some(v1::create_envelope_request::Amount::Total(v1::Money {
                    currency_code: "CNY".into(),
                    minor_units: TOTAL_MINOR,
                })),
                share_count: SHARES,
                ..v1::CreateEnvelopeRequest::default()
            })
            .await
            .context("CreateEnvelope failed")?
            .into_inner();
        let envelope = created.envelope.context("an answer without an envelope")?;
        ids.push(envelope.envelope_id.into());
    }
    Ok(ids)
}

/// Brings in what the stage's sender needs.
pub async fn fund(server: &ServerProcess, stage: Stage, label: &str) -> anyhow::Result<()> {
    let envelopes = i64::try_from(stage.envelopes)?;
    v1::account_service_client::AccountServiceClient::new(server.connect().await?)
        .deposit(v1::DepositRequest {
            owner: sender(label),
            request_id: format!("bench-{label}"),
            amount: Some(v1::Money {
                currency_code: "CNY".into(),
                minor_units: TOTAL_MINOR * envelopes,
            }),
            ..v1::DepositRequest::default()
        })
        .await
        .context("Deposit failed")?;
    Ok(())
}

/// The requests of one stream: as many as there is credit for, each answer giving one back.
struct Requests {
    field: Arc<Field>,
    credit: Arc<Credit>,
}

struct Credit {
    left: AtomicUsize,
    waker: AtomicWaker,
}

impl Credit {
    fn give(&self, count: usize) {
        self.left.fetch_add(count, Ordering::Release);
        self.waker.wake();
    }

    fn take(&self) -> bool {
        self.left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
                left.checked_sub(1)
            })
            .is_ok()
    }
}

impl tokio_stream::Stream for Requests {
    type Item = LightGrab;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LightGrab>> {
        let field = &self.field;
        if field.next.load(Ordering::Relaxed) >= field.sent_ns.len() {
            return Poll::Ready(None);
        }
        if !self.credit.take() {
            self.credit.waker.register(cx.waker());
            // Credit that came between the look and the registration woke nobody.
            if !self.credit.take() {
                return Poll::Pending;
            }
        }
        let tag = field.next.fetch_add(1, Ordering::Relaxed);
        let Some(sent_ns) = field.sent_ns.get(tag) else {
            return Poll::Ready(None);
        };
        sent_ns.store(field.now_ns(), Ordering::Relaxed);
        let envelope = tag % field.envelope_ids.len();
        Poll::Ready(Some(LightGrab {
            tag: tag as u64,
            envelope_id: Arc::clone(&field.envelope_ids[envelope]),
        }))
    }
}

/// Keeps `in_flight` grabs on one stream on the way until none is left.
async fn drive(
    channel: Channel,
    field: Arc<Field>,
    in_flight: usize,
) -> anyhow::Result<Histogram<u64>> {
    let credit = Arc::new(Credit {
        left: AtomicUsize::new(in_flight),
        waker: AtomicWaker::new(),
    });
    let requests = Requests {
        field: Arc::clone(&field),
        credit: Arc::clone(&credit),
    };
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.context("the connection is gone")?;
    let mut answers: Streaming<LightAnswer> = grpc
        .streaming(
            Request::new(requests),
            PathAndQuery::from_static("/redenvelope.v1.EnvelopeService/GrabStream"),
            LightCodec,
        )
        .await
        .context("GrabStream failed")?
        .into_inner();
    let mut latencies = Histogram::new_with_max(LATENCY_NS_MAX, 3)?;
    while let Some(answer) = answers.message().await.context("the stream broke")? {
        // Whatever has arrived by now is taken before new requests are let go: frames stay full.
        let mut taken = 1;
        count(&field, &answer, &mut latencies)?;
        while taken < in_flight
            && let Some(Ok(Some(answer))) = answers.message().now_or_never()
        {
            count(&field, &answer, &mut latencies)?;
            taken += 1;
        }
        credit.give(taken);
    }
    Ok(latencies)
}

fn count(
    field: &Field,
    answer: &LightAnswer,
    latencies: &mut Histogram<u64>,
) -> anyhow::Result<()> {
    let tag = usize::try_from(answer.tag)?;
    let won = answer
        .outcome
        .as_ref()
        .filter(|it| it.outcome == v1::GrabOutcome::Won as i32)
        .and_then(|it| it.share.as_ref())
        .and_then(|it| it.amount.as_ref());
    let (Some(amount), Some(sent_ns)) = (won, field.sent_ns.get(tag)) else {
        bail!("a grab of a fresh grabber on an envelope with shares did not win: {answer:?}");
    };
    latencies.saturating_record(field.now_ns() - sent_ns.load(Ordering::Relaxed));
    field.paid_minor[tag % field.paid_minor.len()].fetch_add(amount.minor_units, Ordering::Relaxed);
    Ok(())
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
