//! The stores of the peers, what lies in them before the first grab, and the peers' servers.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope::ledger::postgres::server_under_test::{PostgresServer, Release};
use red_envelope_proto::v1::GrabOutcome;

use crate::process::Process;
use crate::subject::{Design, Target};

/// The program of `peers/`, built with the profile of this benchmark.
const PROGRAM: &str = env!("CARGO_BIN_EXE_burst-peers");
/// What each share is worth.
const SHARE_MINOR: u32 = 1_000;
/// Shares that one RPUSH brings.
const PUSH_SHARES_MAX: usize = 1_000;

/// The tables of the row lock. As many constraints as keep a share from two, and two from a grabber.
const TABLES: &str = "
    CREATE TABLE peer_envelope (id text PRIMARY KEY, taken integer NOT NULL,
        share_count integer NOT NULL, share_minor bigint NOT NULL);
    CREATE TABLE peer_claim (envelope text NOT NULL, share integer NOT NULL, grabber text NOT NULL,
        minor bigint NOT NULL, UNIQUE (envelope, share), UNIQUE (envelope, grabber))";

/// Stores that nothing but peers uses.
pub struct Peers {
    redis: RedisServer,
    postgres: PostgresServer,
    database: String,
}

impl Peers {
    /// Both as fast as they are: a Redis without AOF, a PostgreSQL that commits before the disk has it.
    pub fn start() -> anyhow::Result<Self> {
        let redis = RedisServer::start(Flavour::Debian, &[("appendonly", "no")]);
        let settings = ["synchronous_commit=off", "max_wal_size=8GB"];
        let postgres = PostgresServer::start_on_disk(Release::Debian, &settings);
        let url = postgres.database();
        let database = url.rsplit('/').next().context("a database")?.to_owned();
        postgres.sql(&database, TABLES);
        Ok(Self {
            redis,
            postgres,
            database,
        })
    }

    /// A new envelope, and a server of the design.
    pub fn target(&self, design: Design, label: &str, shares: u32) -> anyhow::Result<Target> {
        let (url, store) = match design {
            Design::RowLock => (self.publish_row(label, shares)?, self.postgres()?),
            _ => (self.publish_list(label, shares)?, self.redis()),
        };
        let (server, address) = PeerProcess::start(design, &url)?;
        let process = Process {
            name: "server",
            pid: server.0.id(),
            with_children: false,
        };
        Ok(Target {
            address,
            envelope_ids: vec![label.into()],
            shares,
            outcome: GrabOutcome::Won,
            may_turn_away: design == Design::Lock,
            processes: vec![process, store],
            server: Some(server),
        })
    }

    fn redis(&self) -> Process {
        Process {
            name: "redis",
            pid: self.redis.pid(),
            with_children: false,
        }
    }

    fn postgres(&self) -> anyhow::Result<Process> {
        Ok(Process {
            name: "postgres",
            pid: postgres_pid(&self.postgres)?,
            with_children: true,
        })
    }

    fn publish_list(&self, label: &str, shares: u32) -> anyhow::Result<String> {
        let mut connection = self.redis.connection()?;
        let all: Vec<String> = (0..shares)
            .map(|share| format!("{share},{SHARE_MINOR}"))
            .collect();
        for chunk in all.chunks(PUSH_SHARES_MAX) {
            let mut push = redis::cmd("RPUSH");
            push.arg(format!("peer:{label}:shares")).arg(chunk);
            push.query::<i64>(&mut connection)?;
        }
        Ok(self.redis.url())
    }

    fn publish_row(&self, label: &str, shares: u32) -> anyhow::Result<String> {
        let insert = format!(
            "-- peers.publish
             INSERT INTO peer_envelope VALUES ('{label}', 0, {shares}, {SHARE_MINOR})"
        );
        self.postgres.sql(&self.database, &insert);
        Ok(self.postgres.url(&self.database))
    }
}

/// The first process of a PostgreSQL.
pub fn postgres_pid(postgres: &PostgresServer) -> anyhow::Result<u32> {
    let noted = "-- peers.postmaster
        SELECT pg_read_file('postmaster.pid')";
    let noted = postgres.sql("postgres", noted);
    let pid = noted.lines().next();
    let pid = pid.context("PostgreSQL notes its process")?;
    Ok(pid.trim().parse()?)
}

/// A server of a peer. It ends when this is dropped.
pub struct PeerProcess(Child);

impl PeerProcess {
    fn start(design: Design, url: &str) -> anyhow::Result<(Self, SocketAddr)> {
        let child = Command::new(PROGRAM)
            .args([design.word(), url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {PROGRAM}"))?;
        let mut server = Self(child);
        let mut port = String::new();
        let announced = server.0.stdout.take().context("it has a standard output")?;
        BufReader::new(announced).read_line(&mut port)?;
        ensure!(!port.is_empty(), "{PROGRAM} ended before it named its port");
        let address = ([127, 0, 0, 1], port.trim().parse()?).into();
        Ok((server, address))
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        // It holds nothing that is needed. Where this program is killed, it ends with its standard input.
        let _already_gone = self.0.kill();
        let _already_gone = self.0.wait();
    }
}
