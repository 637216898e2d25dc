//! Grabs by unary calls: 256 in flight on eight connections, through tonic's channels as T's client.
//!
//! The messages hold what is asked and looked at, and nothing else of the contract's.
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
struct ToldShare {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(message, optional, tag = "3")]
    amount: Option<LightMoney>,
}

/// What the callers share.
struct Crowd {
    target: Target,
    /// Who grabs next: everybody grabs once.
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
pub async fn run(target: Target, span: Duration) -> anyhow::Result<Measured> {
    let crowd = Arc::new(Crowd {
        target,
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
    let shares = match crowd.target.outcome {
        GrabOutcome::Won => u64::from(crowd.target.shares),
        _ => u64::MAX,
    };
    let window = tokio::select! {
        window = Window::watch(answered, shares, &crowd.target.processes, span) => window?,
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

async fn call_until_stopped(channel: Channel, crowd: Arc<Crowd>) -> anyhow::Result<Seen> {
    let mut grpc = tonic::client::Grpc::new(channel);
    let envelope_id = Bytes::copy_from_slice(crowd.target.envelope_id.as_bytes());
    let mut seen = Seen {
        shares: Vec::new(),
        latencies: latencies()?,
        turned_away: 0,
    };
    while !crowd.stopped.load(Ordering::Relaxed) {
        let number = crowd.next.fetch_add(1, Ordering::Relaxed);
        let asked = Asked {
            envelope_id: envelope_id.clone(),
            grabber: format!("g{number:016x}").into(),
        };
        let began = Instant::now();
        grpc.ready().await.context("the connection is gone")?;
        let call = grpc.unary::<Asked, Told, _>(
            Request::new(asked),
            PathAndQuery::from_static("/redenvelope.v1.EnvelopeService/Grab"),
            ProstCodec::default(),
        );
        let answer = tokio::time::timeout(CALL_MAX, call).await;
        match answer.with_context(|| format!("no answer within {CALL_MAX:?}"))? {
            Ok(told) => {
                let told = told.into_inner();
                let wanted = crowd.target.outcome;
                ensure!(told.outcome() == wanted, "not {wanted:?}, but {told:?}");
                seen.shares.extend(told.share.map(|share| share.number));
                crowd.answered.fetch_add(1, Ordering::Relaxed);
                let took = began.elapsed().as_nanos();
                seen.latencies.saturating_record(u64::try_from(took)?);
            }
            Err(status) if crowd.target.may_turn_away && status.code() == Code::Unavailable => {
                seen.turned_away += 1;
            }
            Err(status) => return Err(status).context("Grab failed"),
        }
    }
    Ok(seen)
}
