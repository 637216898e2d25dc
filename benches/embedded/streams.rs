//! Keeps so many grabs in flight on streams: a closed loop on GrabStream that spends little on a grab.
//!
//! Every grab must win: whoever grabs has never grabbed from this envelope before, and there are shares left. With
//! [`start_paced`] the loop is open: grabs leave at a pace, whatever was answered.
//!
//! **Bounds**: a stream sends no more than [`Field::new`] was told, and nothing after [`Field::stop`].
//!
//! **Not here**: envelopes, and what the server has to say of itself.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use futures_util::task::AtomicWaker;
use hdrhistogram::Histogram;
use red_envelope_proto::v1;
use tokio::task::JoinSet;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::light::{LightAnswer, LightCodec, LightGrab};

/// Streams, each on a connection of its own, as T has connections.
pub const CONNECTIONS: usize = 4;
/// Between two looks at what is due, of a paced field.
const PACE_EVERY: Duration = Duration::from_millis(5);
/// Answers that are taken together, of a paced field.
const TAKEN_AT_ONCE: usize = 1_024;
/// Answers that take longer than two minutes are recorded as that.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// What the streams share.
pub struct Field {
    /// Grabbed from in turn, `at_once` of them until everybody has grabbed once.
    pub envelope_ids: Vec<Arc<str>>,
    at_once: usize,
    grabbers: usize,
    /// What each of them has paid, in minor units.
    pub paid_minor: Vec<AtomicI64>,
    sent_ns: Vec<AtomicU64>,
    next: AtomicUsize,
    stopped: AtomicBool,
    began: Instant,
}

impl Field {
    /// For so many grabs at the most.
    pub fn new(envelope_ids: Vec<Arc<str>>, grabs_max: usize) -> Self {
        Self {
            paid_minor: envelope_ids.iter().map(|_| AtomicI64::new(0)).collect(),
            at_once: envelope_ids.len(),
            grabbers: usize::MAX,
            envelope_ids,
            sent_ns: (0..grabs_max).map(|_| AtomicU64::new(0)).collect(),
            next: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            began: Instant::now(),
        }
    }

    /// For so many grabs of so many people: when all of them have grabbed once they go on to the next envelopes.
    pub fn of_people(envelope_ids: Vec<Arc<str>>, grabs_max: usize, grabbers: usize) -> Self {
        let passes = grabs_max.div_ceil(grabbers);
        Self {
            at_once: envelope_ids.len() / passes,
            grabbers,
            ..Self::new(envelope_ids, grabs_max)
        }
    }

    /// From which envelope the grab of this tag is, and whose it is.
    fn place(&self, tag: usize) -> (usize, usize) {
        let (pass, grabber) = (tag / self.grabbers, tag % self.grabbers);
        (pass * self.at_once + grabber % self.at_once, grabber)
    }

    /// Nothing more is sent; what is on its way is answered.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Grabs that were let go.
    pub fn sent(&self) -> usize {
        self.next.load(Ordering::Relaxed).min(self.sent_ns.len())
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).expect("a stage lasts less than 584 years")
    }

    fn is_over(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.sent_ns.len()
            || self.stopped.load(Ordering::Relaxed)
    }
}

/// Streams that run; each ends with its answer times.
pub type Streams = JoinSet<anyhow::Result<Histogram<u64>>>;

/// Begins to grab, a stream on each channel, `in_flight` over all of them.
pub fn start(channels: Vec<Channel>, field: &Arc<Field>, in_flight: usize) -> Streams {
    let mut streams = JoinSet::new();
    let each = in_flight / channels.len();
    for channel in channels {
        let credit = Arc::new(Credit::new(each));
        streams.spawn(drive(channel, Arc::clone(field), credit, Some(each)));
    }
    streams
}

/// Begins to grab, a stream on each channel, `per_s` over all of them, until the field is over.
pub fn start_paced(channels: Vec<Channel>, field: &Arc<Field>, per_s: u32) -> Streams {
    let mut streams = JoinSet::new();
    let credits: Vec<_> = channels.iter().map(|_| Arc::new(Credit::new(0))).collect();
    for (channel, credit) in channels.into_iter().zip(&credits) {
        streams.spawn(drive(channel, Arc::clone(field), Arc::clone(credit), None));
    }
    streams.spawn(pace(Arc::clone(field), credits, per_s));
    streams
}

/// Lets grabs go as they become due.
async fn pace(
    field: Arc<Field>,
    credits: Vec<Arc<Credit>>,
    per_s: u32,
) -> anyhow::Result<Histogram<u64>> {
    let (began, mut given) = (Instant::now(), 0_u64);
    let mut ticks = tokio::time::interval(PACE_EVERY);
    while !field.is_over() {
        ticks.tick().await;
        let streams = credits.len() as u64;
        let due = u64::try_from(began.elapsed().as_millis())? * u64::from(per_s) / 1_000 / streams;
        for credit in &credits {
            credit.give(usize::try_from(due - given)?);
        }
        given = due;
    }
    for credit in &credits {
        credit.waker.wake();
    }
    latencies()
}

/// The answer times of all, when the last one has ended.
pub async fn finish(mut streams: Streams) -> anyhow::Result<Histogram<u64>> {
    let mut all = latencies()?;
    while let Some(ended) = streams.join_next().await {
        all.add(ended.context("a stream's task panicked")??)?;
    }
    Ok(all)
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
    fn new(left: usize) -> Self {
        Self {
            left: AtomicUsize::new(left),
            waker: AtomicWaker::new(),
        }
    }

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
        if field.is_over() {
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
        let (envelope, grabber) = field.place(tag);
        Poll::Ready(Some(LightGrab {
            tag: tag as u64,
            grabber: grabber as u64,
            envelope_id: Arc::clone(&field.envelope_ids[envelope]),
        }))
    }
}

/// Sends on one stream what there is credit for until nothing is left; an answer gives credit back where so many are to
/// be kept on the way.
async fn drive(
    channel: Channel,
    field: Arc<Field>,
    credit: Arc<Credit>,
    in_flight: Option<usize>,
) -> anyhow::Result<Histogram<u64>> {
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
    let mut latencies = latencies()?;
    while let Some(answer) = answers.message().await.context("the stream broke")? {
        // Whatever has arrived by now is taken before new requests are let go: frames stay full.
        let mut taken = 1;
        count(&field, &answer, &mut latencies)?;
        while taken < in_flight.unwrap_or(TAKEN_AT_ONCE)
            && let Some(Ok(Some(answer))) = answers.message().now_or_never()
        {
            count(&field, &answer, &mut latencies)?;
            taken += 1;
        }
        if in_flight.is_some() {
            credit.give(taken);
        }
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
    field.paid_minor[field.place(tag).0].fetch_add(amount.minor_units, Ordering::Relaxed);
    Ok(())
}

/// Nothing counted yet.
pub fn latencies() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_max(LATENCY_NS_MAX, 3)?)
}
