//! Unary calls: 256 in flight on eight connections, through tonic's channels as T's client.
//!
//! The messages hold what is asked and looked at, and nothing else of the contract's.
//!
//! **Not here**: looks, which are [`Question`]s of their own (`looks`).
//!
//! **Bounds**: everybody stops after the window; a call that is not answered within [`CALL_MAX`] fails the
//! benchmark.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use hdrhistogram::Histogram;
use prost::bytes::Bytes;
use red_envelope_proto::v1::GrabOutcome;
use tokio::task::JoinSet;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::light::LightMoney;
use crate::measure::{Measured, Window};
use crate::server::connect;
use crate::streams::latencies;
use crate::subject::Target;

/// Connections to the server.
const CONNECTIONS: usize = 8;
/// Calls in flight on each.
const IN_FLIGHT: usize = 32;
/// Twice what a server may take.
const CALL_MAX: Duration = Duration::from_secs(10);

/// What every caller asks.
pub trait Question: Send + Sync + 'static {
    /// The request, or the parts of it that are filled.
    type Asked: prost::Message + Default + 'static;
    /// The answer, or the parts of it that are looked at.
    type Told: prost::Message + Default + 'static;
    /// The method.
    const PATH: &'static str;

    /// The call with this number.
    fn ask(&self, number: u64) -> Self::Asked;

    /// How many calls can be answered so.
    fn calls_max(&self) -> u64 {
        u64::MAX
    }

    /// The share that was won, if the answer to the call with this number is what it must be.
    fn won(&self, number: u64, told: &Self::Told) -> anyhow::Result<Option<u32>>;
}

/// A grab, by somebody new each time.
struct Grab {
    envelope_id: Bytes,
    /// What it must come to.
    outcome: GrabOutcome,
    /// How many shares there are.
    shares: u32,
}

/// The parts of `GrabRequest` that are filled.
#[derive(Clone, PartialEq, prost::Message)]
struct Asked {
    #[prost(bytes = "bytes", tag = "2")]
    envelope_id: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    grabber: Bytes,
}

/// The parts of `GrabResponse` that are looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct Told {
    #[prost(enumeration = "GrabOutcome", tag = "1")]
    outcome: i32,
    #[prost(message, optional, tag = "2")]
    share: Option<ToldShare>,
}

/// The parts of `Share` that are looked at.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToldShare {
    /// Which.
    #[prost(uint32, tag = "1")]
    pub number: u32,
    #[prost(message, optional, tag = "3")]
    amount: Option<LightMoney>,
}

impl Question for Grab {
    type Asked = Asked;
    type Told = Told;
    const PATH: &'static str = "/redenvelope.v1.EnvelopeService/Grab";

    fn ask(&self, number: u64) -> Asked {
        Asked {
            envelope_id: self.envelope_id.clone(),
            grabber: format!("g{number:016x}").into(),
        }
    }

    fn calls_max(&self) -> u64 {
        match self.outcome {
            GrabOutcome::Won => self.shares.into(),
            _ => u64::MAX,
        }
    }

    fn won(&self, _: u64, told: &Told) -> anyhow::Result<Option<u32>> {
        let wanted = self.outcome;
        ensure!(told.outcome() == wanted, "not {wanted:?}, but {told:?}");
        Ok(told.share.as_ref().map(|share| share.number))
    }
}

/// What the callers share.
struct Crowd<Q> {
    target: Target,
    question: Q,
    /// The number of the next call: everybody grabs once.
    next: AtomicU64,
    answered: AtomicU64,
    stopped: AtomicBool,
}

/// What one caller saw.
struct Seen {
    shares: Vec<u32>,
    latencies: Histogram<u64>,
    turned_away: u64,
}

/// Grabs until `span` after the warm-up is over.
pub async fn grab(target: Target, span: Duration) -> anyhow::Result<Measured> {
    let id = target.envelope_ids.first().context("an envelope")?;
    let grab = Grab {
        envelope_id: Bytes::copy_from_slice(id.as_bytes()),
        outcome: target.outcome,
        shares: target.shares,
    };
    run(target, grab, span).await
}

/// Asks until `span` after the warm-up is over.
pub async fn run<Q: Question>(
    target: Target,
    question: Q,
    span: Duration,
) -> anyhow::Result<Measured> {
    let crowd = Arc::new(Crowd {
        target,
        question,
        next: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
    });
    let mut callers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let channel = connect(crowd.target.address).await?;
        for _ in 0..IN_FLIGHT {
            callers.spawn(call_until_stopped(channel.clone(), Arc::clone(&crowd)));
        }
    }
    let answered = || crowd.answered.load(Ordering::Relaxed);
    let most = crowd.question.calls_max();
    let window = tokio::select! {
        window = Window::watch(answered, most, &crowd.target.processes, span) => window?,
        Some(ended) = callers.join_next() => {
            ended.context("a caller panicked")??;
            bail!("a caller ended before it was told to");
        }
    };
    crowd.stopped.store(true, Ordering::Relaxed);
    let (mut taken, mut latencies, mut turned_away) = (HashSet::new(), latencies()?, 0);
    while let Some(ended) = callers.join_next().await {
        let seen = ended.context("a caller panicked")??;
        latencies.add(seen.latencies)?;
        turned_away += seen.turned_away;
        for share in seen.shares {
            ensure!(share < crowd.target.shares, "there is no share {share}");
            ensure!(taken.insert(share), "the share {share} went to two");
        }
    }
    Ok(Measured {
        taken: taken.len() as u64,
        turned_away,
        ..window.with(&latencies)
    })
}

async fn call_until_stopped<Q: Question>(
    channel: Channel,
    crowd: Arc<Crowd<Q>>,
) -> anyhow::Result<Seen> {
    let mut grpc = tonic::client::Grpc::new(channel);
    let mut seen = Seen {
        shares: Vec::new(),
        latencies: latencies()?,
        turned_away: 0,
    };
    while !crowd.stopped.load(Ordering::Relaxed) {
        let number = crowd.next.fetch_add(1, Ordering::Relaxed);
        let asked = crowd.question.ask(number);
        let began = Instant::now();
        grpc.ready().await.context("the connection is gone")?;
        let call = grpc.unary::<Q::Asked, Q::Told, _>(
            Request::new(asked),
            PathAndQuery::from_static(Q::PATH),
            ProstCodec::default(),
        );
        let answer = tokio::time::timeout(CALL_MAX, call).await;
        match answer.with_context(|| format!("no answer within {CALL_MAX:?}"))? {
            Ok(told) => {
                let won = crowd.question.won(number, &told.into_inner())?;
                seen.shares.extend(won);
                crowd.answered.fetch_add(1, Ordering::Relaxed);
                let took = began.elapsed().as_nanos();
                seen.latencies.saturating_record(u64::try_from(took)?);
            }
            Err(status) if crowd.target.may_turn_away && status.code() == Code::Unavailable => {
                seen.turned_away += 1;
            }
            Err(status) => return Err(status).context(Q::PATH),
        }
    }
    Ok(seen)
}
