//! Our server on a Redis and on books in PostgreSQL, with settlement held back until a round has ended.
//!
//! # Shape
//! | process | what |
//! |---|---|
//! | Redis | without AOF at level `memory`, with appendfsync always at level `fsync` |
//! | `serve --role api` | what is measured |
//! | `serve --role settle` | started after each round, until every win of the round is in the books |
//!
//! # Bounds
//! [`LIVE_MAX`] until an envelope can be grabbed from, [`SETTLE_MAX`] for a round's wins, [`QUIET_MAX`] for the
//! last audit. Wins wait in Redis for a round at the longest, which is less than the 120 s after which our
//! server takes no more of them.
//!
//! # Not here
//! Making grabs and looks: `unary`, `streams`, `looks`.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use prost::bytes::Bytes;
use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope::ledger::postgres::server_under_test::PostgresServer;
use red_envelope_proto::v1;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;

use crate::looks::{self, List, Look, Looks};
use crate::measure::{Measured, Window};
use crate::peer::postgres_pid;
use crate::process::Process;
use crate::sender;
use crate::server::ServerProcess;
use crate::streams::{self, Field};
use crate::subject::{Subject, Target};
use crate::unary;

/// The mean share.
const SHARE_MINOR: i64 = 1_000;
/// How long a million shares may take to be published.
const LIVE_MAX: Duration = Duration::from_secs(60);
/// How long the wins of a round may take into the books.
const SETTLE_MAX: Duration = Duration::from_secs(90);
/// How long it may take until everything is quiet, and an audit of all that was grabbed has said so.
const QUIET_MAX: Duration = Duration::from_secs(120);
/// Between two looks at any of these.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A server and its stores.
pub struct Ours {
    /// Its hot store.
    pub redis: RedisServer,
    /// The one that serves.
    pub server: ServerProcess,
    /// Of the books' first process.
    books_pid: u32,
    folder: PathBuf,
    flags: Vec<String>,
    /// Wins that are not in the books.
    owed: Cell<u64>,
}

impl Ours {
    /// On new stores, at the level.
    pub async fn start(
        folder: &Path,
        books: &PostgresServer,
        level: &'static str,
    ) -> anyhow::Result<Self> {
        let options: &[_] = match level {
            "memory" => &[("appendonly", "no")],
            _ => &[("appendonly", "yes"), ("appendfsync", "always")],
        };
        let redis = RedisServer::start_on_disk(Flavour::Debian, options);
        let (hot, ledger) = (redis.url(), books.database());
        let flags = ["--hot", &hot, "--ledger", &ledger, "--ack", level];
        let serves: Vec<_> = flags.into_iter().chain(["--role", "api"]).collect();
        let server = ServerProcess::start(&folder.join("api"), &serves).await?;
        Ok(Self {
            flags: flags.map(str::to_owned).to_vec(),
            redis,
            server,
            books_pid: postgres_pid(books)?,
            folder: folder.to_path_buf(),
            owed: Cell::new(0),
        })
    }

    /// A new envelope that can be grabbed from.
    pub async fn target(&self, label: &str, shares: u32) -> anyhow::Result<Target> {
        let who = format!("sender-{label}");
        let total_minor = SHARE_MINOR * i64::from(shares);
        sender::deposit(&self.server, &who, label.to_owned(), total_minor).await?;
        let mut envelopes = EnvelopeServiceClient::new(self.server.connect().await?);
        let began = Instant::now();
        let envelope = loop {
            // Nobody sweeps: where a large one could not be published, the repeat does it.
            let request_id = label.to_owned();
            let sent = sender::send(&mut envelopes, &who, request_id, shares, total_minor).await?;
            if sent.state() == v1::EnvelopeState::Live {
                break sent;
            }
            ensure!(began.elapsed() < LIVE_MAX, "{shares} shares are not out");
            tokio::time::sleep(LOOK_EVERY).await;
        };
        Ok(Target {
            address: self.server.address()?,
            envelope_ids: vec![envelope.envelope_id.into()],
            shares,
            outcome: v1::GrabOutcome::Won,
            may_turn_away: false,
            processes: self.processes(),
            server: None,
        })
    }

    /// A new envelope with nothing left.
    pub async fn emptied(&self, label: &str) -> anyhow::Result<Target> {
        let target = self.taken(label, 1).await?;
        Ok(Target {
            outcome: v1::GrabOutcome::Empty,
            ..target
        })
    }

    /// A new envelope whose shares are all taken, by [`looks::holder`]s.
    pub async fn taken(&self, label: &str, shares: u32) -> anyhow::Result<Target> {
        let target = self.target(label, shares).await?;
        let mut envelopes = EnvelopeServiceClient::new(self.server.connect().await?);
        for number in 0..shares {
            let grab = v1::GrabRequest {
                envelope_id: target.envelope_ids[0].to_string(),
                grabber: looks::holder(number.into()),
                ..v1::GrabRequest::default()
            };
            let told = envelopes.grab(grab).await?.into_inner();
            ensure!(told.outcome() == v1::GrabOutcome::Won, "not won: {told:?}");
        }
        self.owe(shares.into());
        Ok(target)
    }

    /// Some new envelopes, with all their shares.
    pub async fn several(
        &self,
        label: &str,
        (count, shares): (usize, u32),
    ) -> anyhow::Result<Target> {
        let mut target = self.target(label, shares).await?;
        for number in 1..count {
            let one = self.target(&format!("{label}-{number}"), shares).await?;
            target.envelope_ids.extend(one.envelope_ids);
        }
        Ok(target)
    }

    /// Looks, by unary calls.
    pub async fn looks(
        &self,
        mut target: Target,
        subject: Subject,
        span: Duration,
    ) -> anyhow::Result<Measured> {
        target.processes.push(Process {
            name: "postgres",
            pid: self.books_pid,
            with_children: true,
        });
        let holders = match subject {
            Subject::LookApart => 0,
            _ => target.shares,
        };
        let ids = target.envelope_ids.iter();
        let ids = ids.map(|id| Bytes::copy_from_slice(id.as_bytes()));
        let looks = Looks::new(ids.collect(), holders);
        match subject {
            Subject::List => unary::run(target, List(looks), span).await,
            _ => unary::run(target, Look(looks), span).await,
        }
    }

    fn processes(&self) -> Vec<Process> {
        let process = |name, pid| Process {
            name,
            pid,
            with_children: false,
        };
        vec![
            process("server", self.server.pid()),
            process("redis", self.redis.pid()),
        ]
    }

    fn owe(&self, wins: u64) {
        self.owed.set(self.owed.get() + wins);
    }

    /// Unary calls.
    pub async fn unary(&self, target: Target, span: Duration) -> anyhow::Result<Measured> {
        let before = self.server.commits().await?;
        let mut measured = unary::grab(target, span).await?;
        measured.mean_batch = self.server.commits().await?.since(&before).mean_batch();
        self.owe(measured.taken);
        Ok(measured)
    }

    /// Streams with so many grabs in flight over all of them.
    pub async fn stream(
        &self,
        target: Target,
        (in_flight, connections): (usize, usize),
        span: Duration,
    ) -> anyhow::Result<Measured> {
        let before = self.server.commits().await?;
        let channels = self.server.connect_all(connections).await?;
        let ids = target.envelope_ids.clone();
        let field = Arc::new(Field::new(ids, usize::try_from(target.shares)?));
        let mut running = streams::start(channels, &field, in_flight);
        let sent = || field.sent() as u64;
        let window = tokio::select! {
            window = Window::watch(sent, u64::from(target.shares), &target.processes, span) => window?,
            Some(ended) = running.join_next() => {
                ended.context("a stream's task panicked")??;
                bail!("a stream ended before it was told to");
            }
        };
        field.stop();
        let latencies = streams::finish(running).await?;
        let (taken, answered) = (field.sent() as u64, latencies.len());
        ensure!(answered == taken, "{answered} answers to {taken} grabs");
        let paid = field.paid_minor[0].load(Ordering::Relaxed);
        let total = SHARE_MINOR * i64::from(target.shares);
        ensure!(paid <= total, "of {total} in the envelope {paid} were won");
        self.owe(taken);
        Ok(Measured {
            mean_batch: self.server.commits().await?.since(&before).mean_batch(),
            taken,
            ..window.with(&latencies)
        })
    }

    /// Brings what is owed into the books; answers how much that was.
    pub async fn settle(&self, round: usize) -> anyhow::Result<u64> {
        let keys = self.folder.join("api/data/seal.key");
        let keys = keys.to_str().context("a folder with a strange name")?;
        let mut flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        flags.extend(["--role", "settle", "--data-keys", keys]);
        let folder = self.folder.join(format!("settle-{round}"));
        let settler = ServerProcess::start(&folder, &flags).await?;
        let (owed, began) = (self.owed.replace(0), Instant::now());
        loop {
            let settled = settler.settled().await?;
            if settled >= owed as f64 {
                ensure!(settled == owed as f64, "of {owed} wins {settled} settled");
                settler.stop()?;
                return Ok(owed);
            }
            ensure!(
                began.elapsed() < SETTLE_MAX,
                "of {owed} wins {settled} are in the books after {SETTLE_MAX:?}:\n{}",
                settler.log()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The money audit, and the end of the server. Answers what was audited.
    pub async fn end(self) -> anyhow::Result<String> {
        let began = Instant::now();
        let audit = loop {
            match self.server.audit().await {
                Ok(audit) => break audit,
                Err(error) => ensure!(began.elapsed() < QUIET_MAX, "{error:#}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        self.server.stop()?;
        Ok(format!(
            "{} envelopes, {} grants, {} claims",
            audit.envelope_count, audit.grant_count, audit.claim_count
        ))
    }
}
