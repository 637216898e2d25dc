//! People behind a gateway who want a share, and try again at once when they are turned away.
//!
//! # Shape
//! | load | tries |
//! |---|---|
//! | [`Load::InFlight`] | so many at a time, of somebody new each: as fast as the server answers |
//! | [`Load::PerSecond`] | so many a second, whatever the server does: of who was turned away first, without any pause, then of somebody new |
//!
//! A try is served if it wins: there must be shares for all. Its time counts from the instant at which it was due, and
//! only tries that were due after the warm-up count.
//!
//! # Bounds
//! [`STREAMS`] streams; what a stream does not take waits in the gateway, [`HELD_MAX`] tries a stream, and what is more
//! is not sent: it counts as turned away by the gateway.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::grab_stream_response::Result as Told;
use red_envelope_proto::v1::{GrabOutcome, GrabRequest, GrabStreamRequest, GrabStreamResponse};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Streams of the gateway.
const STREAMS: usize = 8;
/// Tries that wait in the gateway for a stream to take them.
const HELD_MAX: usize = 1_024;
/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(5);
/// A try that is sent so much later than it was due is the gateway's fault.
pub const LATE: Duration = Duration::from_millis(100);
/// The longest that anybody waits for an answer.
const TIMEOUT_MS: u32 = 20_000;

/// How hard people try.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// So many tries at a time.
    InFlight(usize),
    /// So many tries a second.
    PerSecond(f64),
}

/// What became of the tries that were due in one span.
#[derive(Debug, Default)]
pub struct Seen {
    /// Tries that left.
    pub sent: u64,
    /// Of them, later than [`LATE`] after they were due.
    pub late: u64,
    /// Tries that the gateway had no room for.
    pub held_back: u64,
    /// Tries that were told to come again.
    pub turned_away: u64,
    /// Served in the span, a second.
    pub served_per_s: f64,
    /// When each was due, and how much later it was served.
    served: Vec<(Instant, Duration)>,
    /// Shares that were won, each with its number.
    pub won: Vec<u32>,
    /// Other answers than a win and SHED.
    pub failed: Vec<String>,
    /// How long after the last try the last answer came.
    pub drained: Duration,
}

impl Seen {
    /// So many thousandths of those served waited no longer than this.
    pub fn latency(&self, permille: usize) -> Duration {
        let mut all: Vec<_> = self.served.iter().map(|(_, waited)| *waited).collect();
        all.sort_unstable();
        let at = (all.len() * permille / 1_000).min(all.len().saturating_sub(1));
        all.get(at).copied().unwrap_or_default()
    }

    /// Whether the tries left as they were due: 99 of 100.
    pub fn is_valid(&self) -> bool {
        (self.late + self.held_back) * 100 <= self.sent
    }
}

/// People without end, and who of them was turned away.
struct People {
    envelope_id: String,
    next: AtomicU64,
    again: Mutex<VecDeque<u64>>,
}

impl People {
    fn somebody(&self) -> u64 {
        let again = self.again.lock().pop_front();
        again.unwrap_or_else(|| self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// A gateway in front of a server, for one envelope.
pub struct Crowd {
    people: Arc<People>,
    client: EnvelopeServiceClient<Channel>,
}

/// What the streams of a span share.
struct Span {
    people: Arc<People>,
    /// By tag: who, and when it was due. Tags are places here.
    tries: Mutex<Vec<(u64, Instant)>>,
    seen: Mutex<Seen>,
    /// When what counts is due.
    counts: Range<Instant>,
    /// Tries that were answered, whether they count or not.
    done: AtomicUsize,
    answered: tokio::sync::Notify,
}

impl Crowd {
    /// For this envelope.
    pub fn new(client: EnvelopeServiceClient<Channel>, envelope_id: &str) -> Self {
        let people = People {
            envelope_id: envelope_id.to_owned(),
            next: AtomicU64::new(0),
            again: Mutex::default(),
        };
        Self {
            people: Arc::new(people),
            client,
        }
    }

    /// Tries for so long; what counts was due after `warm_up`. Returns when everything that was sent is answered.
    pub async fn press(&mut self, load: Load, warm_up: Duration, span: Duration) -> Seen {
        let end = Instant::now() + warm_up + span;
        let shared = Arc::new(Span {
            people: Arc::clone(&self.people),
            tries: Mutex::default(),
            seen: Mutex::default(),
            counts: end - span..end,
            done: AtomicUsize::new(0),
            answered: tokio::sync::Notify::new(),
        });
        let (mut streams, mut lanes) = (JoinSet::new(), Vec::new());
        for _ in 0..STREAMS {
            let (lane, requests) = mpsc::channel(HELD_MAX);
            lanes.push(lane);
            let opened = self.client.grab_stream(ReceiverStream::new(requests));
            let mut answers = opened.await.unwrap().into_inner();
            let shared = Arc::clone(&shared);
            streams.spawn(async move {
                while let Some(answer) = answers.next().await {
                    shared.take(answer.unwrap());
                }
            });
        }
        match load {
            Load::InFlight(count) => shared.keep(&lanes, count, end).await,
            Load::PerSecond(rate) => shared.fire(&lanes, rate, end).await,
        }
        drop(lanes);
        while let Some(ended) = streams.join_next().await {
            ended.unwrap();
        }
        let mut seen = std::mem::take(&mut *shared.seen.lock());
        seen.served_per_s /= span.as_secs_f64();
        seen.drained = end.elapsed();
        seen
    }
}

impl Span {
    /// So many in flight until then.
    async fn keep(&self, lanes: &[mpsc::Sender<GrabStreamRequest>], count: usize, end: Instant) {
        let mut sent = 0;
        while Instant::now() < end {
            let answered = self.answered.notified();
            let done = self.done.load(Ordering::Acquire);
            while sent - done < count {
                self.send(&lanes[sent % lanes.len()], Instant::now());
                sent += 1;
            }
            let _time = tokio::time::timeout_at(end, answered).await;
        }
    }

    /// So many a second until then.
    async fn fire(&self, lanes: &[mpsc::Sender<GrabStreamRequest>], rate: f64, end: Instant) {
        let began = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        for number in 0_u32.. {
            let due = began + Duration::from_secs_f64(f64::from(number) / rate);
            if due >= end {
                return;
            }
            while due > Instant::now() {
                ticks.tick().await;
            }
            let lane = usize::try_from(number).unwrap_or(0) % lanes.len();
            self.send(&lanes[lane], due);
        }
    }

    fn send(&self, lane: &mpsc::Sender<GrabStreamRequest>, due: Instant) {
        let counts = u64::from(self.counts.contains(&due));
        let Ok(room) = lane.try_reserve() else {
            self.seen.lock().held_back += counts;
            return;
        };
        let person = self.people.somebody();
        let tag = {
            let mut tries = self.tries.lock();
            tries.push((person, due));
            tries.len() as u64 - 1
        };
        room.send(GrabStreamRequest {
            tag,
            timeout_ms: TIMEOUT_MS,
            grab: Some(GrabRequest {
                envelope_id: self.people.envelope_id.clone(),
                grabber: format!("person-{person}"),
                ..GrabRequest::default()
            }),
        });
        let mut seen = self.seen.lock();
        seen.sent += counts;
        seen.late += counts * u64::from(due.elapsed() > LATE);
    }

    fn take(&self, answer: GrabStreamResponse) {
        let place = usize::try_from(answer.tag).unwrap();
        let (person, due) = self.tries.lock()[place];
        let counts = self.counts.contains(&due);
        let mut seen = self.seen.lock();
        match answer.result.unwrap() {
            Told::Outcome(told) if told.outcome() == GrabOutcome::Won => {
                let now = Instant::now();
                seen.won.push(told.share.unwrap().number);
                if self.counts.contains(&now) {
                    seen.served_per_s += 1.0;
                }
                if counts {
                    seen.served.push((due, now - due));
                }
            }
            Told::Outcome(told) => seen.failed.push(told.outcome().as_str_name().to_owned()),
            Told::Status(status) if status.code == tonic::Code::ResourceExhausted as i32 => {
                seen.turned_away += u64::from(counts);
                drop(seen);
                self.people.again.lock().push_back(person);
            }
            Told::Status(status) => seen.failed.push(status.message),
        }
        self.done.fetch_add(1, Ordering::Release);
        self.answered.notify_one();
    }
}
