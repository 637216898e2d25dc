//! Measures what the embedded store carries, against what this machine can do at all.
//!
//! `make bench` or `cargo bench --bench embedded`. docs/PERFORMANCE.md explains the figures.
//!
//! | step of a round | what |
//! |---|---|
//! | T | the null echo of `echo`, in processes of its own |
//! | D | the small durable append of `disk` |
//! | own frame | T's calls against the server's health check: our runtime, our allocator |
//! | 64, 256, 1,024 | `grabs`: so many in flight through GrabStream (`streams`), then the wait for settlement |
//!
//! Rounds repeat all steps, so that a noisy minute touches every figure alike; a figure is the
//! median of its rounds, a ratio the median of the ratios inside each round. It ends with the money
//! audit and fails if that is not clean.
//!
//! **Bounds**: `ROUNDS_MAX` rounds, none begun after `BEGIN_MAX`.

mod disk;
#[expect(dead_code, reason = "the benchmark `burst` has h2load call it, too")]
mod echo;
mod grabs;
mod light;
mod report;
mod sender;
#[expect(dead_code, reason = "the benchmark `burst` asks more of it")]
mod server;
#[expect(dead_code, reason = "the benchmark `burst` stops before all is sent")]
mod streams;
#[path = "../burst/summary.rs"]
mod summary;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::grabs::{Stage, StageResult};
use crate::server::ServerProcess;

/// Odd, so that the median is a round that happened.
const ROUNDS_MAX: usize = 3;
/// A round takes 10 to 60 s; one that begins this late still ends within five minutes.
const BEGIN_MAX: Duration = Duration::from_secs(240);
/// How long T and the health check are counted in each round.
const T_SPAN: Duration = Duration::from_secs(2);
/// How long D is counted in each round.
const D_SPAN: Duration = Duration::from_secs(1);

/// Shares enough for about a second at each width.
pub const STAGES: [Stage; 3] = [
    Stage {
        in_flight: 64,
        envelopes: 16,
    },
    Stage {
        in_flight: 256,
        envelopes: 32,
    },
    Stage {
        in_flight: 1_024,
        envelopes: 40,
    },
];

/// What one round measured.
pub struct Round {
    /// T.
    pub t_per_s: f64,
    /// T's calls on the server's own frame.
    pub t_own_per_s: f64,
    /// D.
    pub d_per_s: f64,
    /// In the order of `STAGES`.
    pub stages: Vec<StageResult>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some(echo::SERVE) => echo::serve(),
        Some(echo::CALL) => echo::call(arguments.get(1).map_or("", String::as_str), T_SPAN),
        // What `cargo bench` passes; `cargo test --benches` does not, and measures nothing.
        Some("--bench") => measure(),
        _ => {
            println!("this measures; run it with: cargo bench --bench embedded");
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embedded: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The client's runtime has one worker: what is light needs no more, and the server gets the rest.
fn measure() -> anyhow::Result<()> {
    light::a_light_request_is_the_contract_s_request()?;
    let target = target_folder()?;
    let folder = target.join("bench").join("embedded-run");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("cannot clear the last run")?;
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(async {
            let server = ServerProcess::start(&folder, &[]).await?;
            let rounds = run_rounds(&server, &folder).await;
            let rounds = rounds.with_context(|| format!("the server's log:\n{}", server.log()))?;
            let audit = server.audit().await?;
            server.stop()?;
            report::tell(&rounds, &audit)
        })?;
    std::fs::remove_dir_all(&folder).context("cannot remove the run's data")
}

async fn run_rounds(server: &ServerProcess, folder: &Path) -> anyhow::Result<Vec<Round>> {
    let began = Instant::now();
    let mut rounds = Vec::with_capacity(ROUNDS_MAX);
    while rounds.len() < ROUNDS_MAX && began.elapsed() < BEGIN_MAX {
        let number = rounds.len() + 1;
        eprintln!(
            "round {number} of {ROUNDS_MAX} (server process {}) …",
            server.pid()
        );
        rounds.push(run_round(server, folder, number).await?);
    }
    Ok(rounds)
}

async fn run_round(server: &ServerProcess, folder: &Path, number: usize) -> anyhow::Result<Round> {
    let t_per_s = echo::rate()?;
    let d_per_s = disk::rate(folder, D_SPAN)?;
    let t_own_per_s =
        echo::drive(server.address()?, "/grpc.health.v1.Health/Check", T_SPAN).await?;
    let mut stages = Vec::with_capacity(STAGES.len());
    for stage in STAGES {
        let label = format!("{number}-{}", stage.in_flight);
        grabs::fund(server, stage, &label).await?;
        let result = grabs::run(server, stage, &label)
            .await
            .with_context(|| format!("round {number}, {} in flight", stage.in_flight))?;
        eprintln!(
            "  {:>5} in flight: {:>9.0} grabs/s, T {t_per_s:.0}, D {d_per_s:.0}",
            stage.in_flight, result.grabs_per_s
        );
        stages.push(result);
    }
    Ok(Round {
        t_per_s,
        t_own_per_s,
        d_per_s,
        stages,
    })
}

/// Cargo's target folder: this file runs as `TARGET/PROFILE/deps/embedded-HASH`.
fn target_folder() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program.ancestors().nth(3).context("no target folder")?;
    Ok(folder.to_path_buf())
}
