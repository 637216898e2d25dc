//! Measures overload: two, five and ten times as many tries as the hot store can serve, of people who try again at
//! once when they are turned away.
//!
//! `make bench` or `cargo bench --features test-hooks --bench overload`, with the servers that
//! `scripts/with-servers` names. docs/PERFORMANCE.md explains the figures.
//!
//! # Shape
//! | process | what |
//! |---|---|
//! | Redis | with appendfsync always |
//! | a wire | the replies of Redis are [`SLOW`] late: what the server can do is two calls of 512 grabs in this time, whatever the machine |
//! | `serve` | all of it, with books in SQLite |
//! | people | in this process, on eight streams (`crowd`, which the tests have, too) |
//!
//! The peak is what is served of a closed loop that keeps the calls on their way and the next one full. A span
//! in which the people themselves were late is void, and fails the benchmark, as does an audit that is not clean.
//!
//! # Not here
//! Unary calls: what a call costs HTTP/2 is a good part of what a grab costs (docs/adr/0009).

#[path = "../../tests/it/harness/crowd.rs"]
#[expect(
    clippy::unwrap_used,
    reason = "a failed step ends the benchmark as it ends a test"
)]
mod crowd;
#[path = "../../tests/it/harness/proxy.rs"]
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "the tests cut and stall wires, too"
)]
mod proxy;
#[path = "../embedded/sender.rs"]
mod sender;
#[path = "../embedded/server.rs"]
#[expect(dead_code, reason = "the other benchmarks ask more of it")]
mod server;
#[path = "../burst/summary.rs"]
mod summary;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope_proto::v1::EnvelopeState;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use serde_json::{Map, Value};
use tonic::transport::Channel;

use crate::crowd::{Crowd, Load, Seen};
use crate::proxy::Proxy;
use crate::server::ServerProcess;

/// How late replies of Redis are.
const SLOW: Duration = Duration::from_millis(200);
/// Two calls on their way and as many again.
const IN_FLIGHT: usize = 2_048;
/// What counts begins so much later than the tries.
const WARM_UP: Duration = Duration::from_secs(2);
const SPAN: Duration = Duration::from_secs(6);
/// How many times the peak.
const TIMES: [u32; 3] = [2, 5, 10];
/// Shares: more than are served in all spans.
const SHARES: u32 = 250_000;
/// How long the shares may take to be published, and everything to settle at the end.
const LIVE_MAX: Duration = Duration::from_secs(60);
const QUIET_MAX: Duration = Duration::from_secs(60);
/// Between two looks at either.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The mean share.
const SHARE_MINOR: i64 = 10;

fn main() -> ExitCode {
    if !std::env::args().any(|word| word == "--bench") {
        println!("this measures; run it with: cargo bench --features test-hooks --bench overload");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let measured = runtime
        .context("a runtime")
        .and_then(|runtime| runtime.block_on(measure()));
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let options = [("appendonly", "yes"), ("appendfsync", "always")];
    let redis = RedisServer::start_on_disk(Flavour::Debian, &options);
    let wire = Proxy::to(redis.port()).await;
    let hot = format!("redis://127.0.0.1:{}", wire.port());
    let flags = ["--hot", &hot, "--redis-response-timeout-ms", "5000"];
    let server = ServerProcess::start(folder.path(), &flags).await?;
    let channel = server.connect().await?;
    let mut envelopes = EnvelopeServiceClient::new(channel);
    let id = live(&server, &mut envelopes).await?;
    let mut crowd = Crowd::new(envelopes, &id);
    wire.slow_replies(SLOW);

    println!(
        "{:>10} {:>9} {:>10} {:>8} {:>8} {:>12}",
        "", "tries/s", "served/s", "p50 ms", "p99 ms", "turned away"
    );
    let peak = press(&mut crowd, "peak", Load::InFlight(IN_FLIGHT)).await?;
    let mut figures = Map::new();
    let mut put = |name: String, value: f64| {
        figures.insert(name, Value::from((value * 1_000.0).round() / 1_000.0));
    };
    put("overload_peak_per_s".into(), peak.served_per_s);
    put("overload_peak_p99_ms".into(), ms(&peak, 990));
    for times in TIMES {
        let load = Load::PerSecond(f64::from(times) * peak.served_per_s);
        let seen = press(&mut crowd, &format!("{times} times"), load).await?;
        let goodput = seen.served_per_s / peak.served_per_s;
        put(format!("overload_goodput_{times}x"), goodput);
        put(
            format!("overload_p99_over_peak_{times}x"),
            ms(&seen, 990) / ms(&peak, 990),
        );
    }
    let verdict = |met| if met { "met" } else { "MISSED" };
    for times in TIMES {
        let told = |name: &str| figures[name].as_f64().unwrap_or_default();
        let goodput = format!("overload_goodput_{times}x");
        let p99 = format!("overload_p99_over_peak_{times}x");
        let (served, waited) = (told(&goodput), told(&p99));
        let (serves, waits) = (verdict(served >= 0.85), verdict(waited <= 2.0));
        println!("{goodput:>28} {served:>7.2}   goal ≥ 0.85: {serves}");
        println!("{p99:>28} {waited:>7.2}   goal ≤ 2: {waits}");
    }
    wire.slow_replies(Duration::ZERO);
    let began = Instant::now();
    let audit = loop {
        match server.audit().await {
            Ok(audit) => break audit,
            Err(error) if began.elapsed() > QUIET_MAX => return Err(error),
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    };
    println!("money audit clean and quiet: {} claims", audit.claim_count);
    summary::write(figures)
}

/// A new envelope that can be grabbed from.
async fn live(
    server: &ServerProcess,
    envelopes: &mut EnvelopeServiceClient<Channel>,
) -> anyhow::Result<String> {
    let total_minor = SHARE_MINOR * i64::from(SHARES);
    sender::deposit(server, "alice", "funds".to_owned(), total_minor).await?;
    let began = Instant::now();
    while began.elapsed() < LIVE_MAX {
        let sent = sender::send(envelopes, "alice", "one".to_owned(), SHARES, total_minor).await?;
        if sent.state() == EnvelopeState::Live {
            return Ok(sent.envelope_id);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bail!("{SHARES} shares are not out")
}

async fn press(crowd: &mut Crowd, name: &str, load: Load) -> anyhow::Result<Seen> {
    let seen = crowd.press(load, WARM_UP, SPAN).await;
    ensure!(seen.failed.is_empty(), "{name}: {:?}", seen.failed.first());
    ensure!(
        seen.is_valid(),
        "{name}: {} of {} tries left late: void",
        seen.late,
        seen.sent
    );
    println!(
        "{name:>10} {:>9.0} {:>10.0} {:>8.0} {:>8.0} {:>12}",
        seen.sent as f64 / SPAN.as_secs_f64(),
        seen.served_per_s,
        ms(&seen, 500),
        ms(&seen, 990),
        seen.turned_away,
    );
    Ok(seen)
}

fn ms(seen: &Seen, permille: usize) -> f64 {
    seen.latency(permille).as_secs_f64() * 1_000.0
}
