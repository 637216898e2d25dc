//! Measures one hot envelope and everybody: our server on Redis, beside the designs that people would write.
//!
//! `make bench` or `cargo bench --features test-hooks --bench burst`, with the servers that
//! `scripts/with-servers` names. docs/PERFORMANCE.md explains the figures.
//!
//! # Shape
//! | step of a round | what |
//! |---|---|
//! | T, D | the yardsticks, in the files of the benchmark `embedded`; T's server also by h2load |
//! | own frame | T's calls against our server's health check |
//! | envelopes | a new one for each subject, as large as T says that it may have to be ([`subject`]) |
//! | subjects | ours (`ours`) and others' (`peer`) in turn, each watched for [`SPAN`] (`measure`) |
//! | books | what was held back is settled (`ours`); nothing is measured |
//!
//! Settlement is held back while grabs are counted: our servers have the role `api`, and who settles is
//! started at the end of the round. The figures are of grabs alone, as those of the peers, who have no books.
//! Every grab is one of a fresh grabber and must win, except where the envelope is to be empty. The
//! benchmark fails if a share goes to two or the money audit at its end is not clean.
//!
//! Unary calls are made as T's are, by tonic's channels on two workers with the system's allocator, but 256
//! of them are in flight on eight connections; T has 64 on four.
//!
//! Names of subjects after `--` measure these alone, for a profile or for how cost grows with connections:
//! `… --bench burst -- stream_1024 stream_on_32 stream_on_256 stream_on_1024`.
//!
//! # Bounds
//! An odd number of rounds, [`ROUNDS_MAX`] at the most; a pair of them is begun before [`BEGIN_MAX`] only.

#[path = "../embedded/disk.rs"]
mod disk;
#[path = "../embedded/echo.rs"]
mod echo;
#[path = "../embedded/light.rs"]
mod light;
mod looks;
mod measure;
mod ours;
mod peer;
#[path = "../../loadtest/src/process.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "the load test asks for memory, too, and has the tests"
)]
mod process;
mod report;
#[path = "../embedded/sender.rs"]
mod sender;
#[path = "../embedded/server.rs"]
#[expect(dead_code, reason = "the other benchmark asks more of it")]
mod server;
#[path = "../embedded/streams.rs"]
#[expect(dead_code, reason = "the benchmark `settle` paces them")]
mod streams;
mod subject;
mod summary;
mod unary;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use red_envelope::ledger::postgres::server_under_test::{PostgresServer, Release};
use tokio::runtime::Runtime;

use crate::measure::Measured;
use crate::ours::Ours;
use crate::peer::Peers;
use crate::subject::{Subject, Target};

/// Odd, so that the median is a round that happened.
const ROUNDS_MAX: usize = 5;
/// A pair of rounds takes up to two minutes, and the audit of all that was grabbed another.
const BEGIN_MAX: Duration = Duration::from_secs(150);
/// How long T, and each subject after its warm-up, is counted in a round.
const SPAN: Duration = Duration::from_secs(2);
/// How long D is counted in each round.
const D_SPAN: Duration = Duration::from_secs(1);

/// What one round measured.
struct Round {
    t_per_s: f64,
    /// T's server, called by h2load.
    h2load_per_s: f64,
    /// T's calls on our server's frame.
    t_own_per_s: f64,
    d_per_s: f64,
    /// By [`Subject::name`].
    measured: BTreeMap<&'static str, Measured>,
    /// Grabs that were not in the books when the last one was answered.
    unsettled: u64,
    /// How long it then took to settle them.
    settled_after_s: f64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.first().map(String::as_str) {
        Some(echo::SERVE) => echo::serve(),
        Some(echo::CALL) => echo::call(words.get(1).map_or("", String::as_str), SPAN),
        // What `cargo bench` passes, behind names; `cargo test --benches` does not, and measures nothing.
        Some(_) if words.iter().any(|word| word == "--bench") => asked(&words).and_then(measure),
        _ => {
            println!("this measures; run it with: cargo bench --features test-hooks --bench burst");
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("burst: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The subjects that were named; none: those of `make bench`.
fn asked(words: &[String]) -> anyhow::Result<Vec<Subject>> {
    let mut names = words.iter().filter(|word| *word != "--bench").peekable();
    if names.peek().is_none() {
        return Ok(Subject::ALL.to_vec());
    }
    let named = |name: &String| {
        let found = Subject::every().find(|subject| subject.name() == name);
        found.with_context(|| format!("{name} is nothing that can be measured"))
    };
    names.map(named).collect()
}

/// Everything that runs while a round does.
struct Stage {
    /// One worker: what is light needs no more.
    light: Runtime,
    /// As T's client has it.
    heavy: Runtime,
    memory: Ours,
    fsync: Ours,
    peers: Peers,
    /// Of our books; ends last.
    books: PostgresServer,
    subjects: Vec<Subject>,
}

fn workers(count: usize) -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(count)
        .enable_all()
        .build()
}

fn measure(subjects: Vec<Subject>) -> anyhow::Result<()> {
    light::a_light_request_is_the_contract_s_request()?;
    let folder = tempfile::tempdir()?;
    let stage = Stage::set(folder.path(), subjects)?;
    let logs = || {
        let (memory, fsync) = (stage.memory.server.log(), stage.fsync.server.log());
        format!("our servers' logs:\n{memory}\n{fsync}")
    };
    let rounds = stage.rounds().with_context(logs)?;
    let audited = stage.end()?;
    report::tell(&rounds, &audited)
}

impl Stage {
    fn set(folder: &Path, subjects: Vec<Subject>) -> anyhow::Result<Self> {
        let (light, heavy) = (workers(1)?, workers(echo::WORKERS)?);
        let settings = ["shared_buffers=1GB", "max_wal_size=8GB"];
        let books = PostgresServer::start_on_disk(Release::Debian, &settings);
        let start = |level| light.block_on(Ours::start(&folder.join(level), &books, level));
        Ok(Self {
            memory: start("memory")?,
            fsync: start("fsync")?,
            peers: Peers::start()?,
            books,
            light,
            heavy,
            subjects,
        })
    }

    fn rounds(&self) -> anyhow::Result<Vec<Round>> {
        let began = Instant::now();
        let mut rounds = Vec::with_capacity(ROUNDS_MAX);
        loop {
            let number = rounds.len() + 1;
            eprintln!("round {number} of {ROUNDS_MAX} at the most …");
            let round = self.round(number);
            rounds.push(round.with_context(|| format!("round {number}"))?);
            let is_odd = number % 2 == 1;
            if is_odd && (number == ROUNDS_MAX || began.elapsed() > BEGIN_MAX) {
                return Ok(rounds);
            }
        }
    }

    fn round(&self, number: usize) -> anyhow::Result<Round> {
        let t_per_s = echo::rate()?;
        let h2load_per_s = echo::rate_by_h2load(SPAN)?;
        let d_per_s = disk::rate(&self.fsync.redis.data_folder(), D_SPAN)?;
        eprintln!(
            "  {:>14} {t_per_s:>9.0}/s, by h2load {h2load_per_s:.0}/s, D {d_per_s:.0}/s",
            "T"
        );
        let mut targets = Vec::with_capacity(self.subjects.len());
        for &subject in &self.subjects {
            targets.push((subject, self.target(subject, number, t_per_s)?));
        }
        let check = "/grpc.health.v1.Health/Check";
        let own = echo::drive(self.memory.server.address()?, check, SPAN);
        let t_own_per_s = self.heavy.block_on(own)?;
        let mut measured = BTreeMap::new();
        for (subject, target) in targets {
            let name = subject.name();
            let figures = self.run(subject, target).context(name)?;
            eprintln!("  {name:>14} {:>9.0}/s", figures.per_s);
            measured.insert(name, figures);
        }
        let (mut unsettled, began) = (0, Instant::now());
        for ours in [&self.memory, &self.fsync] {
            let settling = ours.settle(number);
            unsettled += self.light.block_on(settling).context("settlement")?;
        }
        // What the books left in memory goes to the disk now, not beside the next round's grabs.
        self.books.sql("postgres", "CHECKPOINT");
        Ok(Round {
            t_per_s,
            h2load_per_s,
            t_own_per_s,
            d_per_s,
            measured,
            unsettled,
            settled_after_s: began.elapsed().as_secs_f64(),
        })
    }

    fn target(&self, subject: Subject, round: usize, t_per_s: f64) -> anyhow::Result<Target> {
        let shares = subject.shares(t_per_s, echo::WARM_UP + SPAN);
        let label = format!("{}-{round}", subject.name());
        match subject {
            Subject::Peer(design) => self.peers.target(design, &label, shares),
            Subject::Empty => self.light.block_on(self.memory.emptied(&label)),
            Subject::Unary | Subject::Stream(_) | Subject::StreamOn(_) => {
                self.light.block_on(self.memory.target(&label, shares))
            }
            Subject::StreamFsync => self.light.block_on(self.fsync.target(&label, shares)),
            Subject::Look | Subject::List => self.light.block_on(self.memory.taken(&label, shares)),
            Subject::LookApart => {
                let several = (subject::ENVELOPES_APART, shares);
                self.light.block_on(self.memory.several(&label, several))
            }
        }
    }

    fn run(&self, subject: Subject, target: Target) -> anyhow::Result<Measured> {
        let ours = match subject {
            Subject::StreamFsync => &self.fsync,
            _ => &self.memory,
        };
        match subject {
            Subject::Stream(in_flight) => {
                let stream = ours.stream(target, (in_flight, streams::CONNECTIONS), SPAN);
                self.light.block_on(stream)
            }
            Subject::StreamOn(connections) => {
                let stream = ours.stream(target, (1_024, connections), SPAN);
                self.light.block_on(stream)
            }
            Subject::StreamFsync => {
                let stream = ours.stream(target, (256, streams::CONNECTIONS), SPAN);
                self.light.block_on(stream)
            }
            Subject::Unary | Subject::Empty => self.heavy.block_on(ours.unary(target, SPAN)),
            Subject::Look | Subject::LookApart | Subject::List => {
                self.heavy.block_on(ours.looks(target, subject, SPAN))
            }
            Subject::Peer(_) => self.heavy.block_on(unary::grab(target, SPAN)),
        }
    }

    /// The audits of both books, in words.
    fn end(self) -> anyhow::Result<String> {
        let memory = self.light.block_on(self.memory.end())?;
        let fsync = self.light.block_on(self.fsync.end())?;
        Ok(format!("{memory} at level memory, {fsync} at level fsync"))
    }
}
