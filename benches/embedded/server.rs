//! The real server as a child process: started on free ports, watched, audited, stopped by its id.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use red_envelope_proto::v1;
use red_envelope_proto::v1::admin_service_client::AdminServiceClient;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// The program, built with the profile of this benchmark.
const PROGRAM: &str = env!("CARGO_BIN_EXE_red-envelope");
/// How long a start, or a stop, may take on a machine that compiles beside it.
const STEP_MAX: Duration = Duration::from_secs(30);
/// How often a start or a stop is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The kernel counts processor time in hundredths of a second (USER_HZ is 100 on every Linux ABI).
const TICKS_PER_S: f64 = 100.0;

/// What the server announces in its data folder.
#[derive(Clone, Copy, Deserialize)]
pub struct Ports {
    /// Clients; none where they are not served.
    grpc: Option<u16>,
    /// Operators.
    pub admin: u16,
    /// Probes and metrics.
    pub http: u16,
}

/// A running server.
pub struct ServerProcess {
    child: Child,
    folder: PathBuf,
    /// Where it listens.
    pub ports: Ports,
}

/// The log's commits so far.
pub struct Commits {
    commits: f64,
    grabs: f64,
}

impl Commits {
    /// What happened after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            commits: self.commits - earlier.commits,
            grabs: self.grabs - earlier.grabs,
        }
    }

    /// Grabs for each commit.
    pub fn mean_batch(&self) -> f64 {
        self.grabs / self.commits
    }
}

impl ServerProcess {
    /// Starts it with its data in `folder`, which must be new, and more flags.
    pub async fn start(folder: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let log = std::fs::File::create(folder.join("server.log"))?;
        let data = folder.join("data");
        let child = Command::new(PROGRAM)
            .arg("serve")
            .arg("--data-dir")
            .arg(&data)
            .args(["--grpc-listen", "127.0.0.1:0"])
            .args(["--admin-listen", "127.0.0.1:0"])
            .args(["--http-listen", "127.0.0.1:0"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {PROGRAM}"))?;
        let mut server = Self {
            child,
            folder: folder.to_path_buf(),
            ports: Ports {
                grpc: None,
                admin: 0,
                http: 0,
            },
        };
        let began = Instant::now();
        while began.elapsed() < STEP_MAX {
            if let Ok(announced) = std::fs::read_to_string(data.join("ports.json"))
                && let Ok(ports) = serde_json::from_str(&announced)
            {
                server.ports = ports;
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", server.log());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("no ports announced in {STEP_MAX:?}:\n{}", server.log());
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default()
    }

    /// The public listener.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        let port = self.ports.grpc.context("it serves no clients")?;
        Ok(([127, 0, 0, 1], port).into())
    }

    /// A new connection to it.
    pub async fn connect(&self) -> anyhow::Result<Channel> {
        connect(self.address()?).await
    }

    /// As many new connections.
    pub async fn connect_all(&self, count: usize) -> anyhow::Result<Vec<Channel>> {
        let mut channels = Vec::with_capacity(count);
        for _ in 0..count {
            channels.push(self.connect().await?);
        }
        Ok(channels)
    }

    /// Its number, for profilers.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Processor time that it has used, in seconds.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(self.child.id())
    }

    /// Grabs that it has brought into the books since it started, from `/metrics`.
    pub async fn settled(&self) -> anyhow::Result<f64> {
        read(&self.metrics().await?, "red_envelope_settled_records_total")
    }

    /// Commits of the grab log, or calls of Redis, from `/metrics`.
    pub async fn commits(&self) -> anyhow::Result<Commits> {
        let page = self.metrics().await?;
        let read = |name: &str| read(&page, name);
        // Before the first commit the histogram does not exist yet.
        if !page.contains("red_envelope_hot_commit_grabs_count") {
            return Ok(Commits {
                commits: 0.0,
                grabs: 0.0,
            });
        }
        Ok(Commits {
            commits: read("red_envelope_hot_commit_grabs_count")?,
            grabs: read("red_envelope_hot_commit_grabs_sum")?,
        })
    }

    async fn metrics(&self) -> anyhow::Result<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.ports.http)).await?;
        socket
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        let mut page = String::new();
        socket.read_to_string(&mut page).await?;
        ensure!(
            page.starts_with("HTTP/1.1 200"),
            "/metrics answered {:?}",
            page.lines().next()
        );
        Ok(page)
    }

    /// The money audit: an error unless every unit is where it belongs and nothing is in flight.
    pub async fn audit(&self) -> anyhow::Result<v1::AuditResponse> {
        self.audited(false).await
    }

    /// The same, or only of what the hot store holds.
    pub async fn audited(&self, hot_only: bool) -> anyhow::Result<v1::AuditResponse> {
        let found =
            AdminServiceClient::new(connect(([127, 0, 0, 1], self.ports.admin).into()).await?)
                .audit(v1::AuditRequest {
                    operator: "bench".to_owned(),
                    reason: "the end of a measurement".to_owned(),
                    hot_only,
                    ..v1::AuditRequest::default()
                })
                .await
                .context("Audit failed")?
                .into_inner();
        ensure!(
            found.clean && (found.quiet || hot_only),
            "the audit is not clean and quiet: {found:#?}"
        );
        Ok(found)
    }

    /// SIGTERM, and a wait until it has ended well.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let asked = Command::new("sh")
            .args(["-c", "kill -TERM \"$1\"", "sh", &self.pid().to_string()])
            .status()?;
        ensure!(asked.success(), "kill ended with {asked}");
        let began = Instant::now();
        while began.elapsed() < STEP_MAX {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the server ended with {status}");
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        bail!("the server did not end within {STEP_MAX:?} of SIGTERM")
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // After `stop` both fail, which is fine: nobody is left to kill.
        let _already_gone = self.child.kill();
        let _already_gone = self.child.wait();
    }
}

/// A figure without labels.
fn read(page: &str, name: &str) -> anyhow::Result<f64> {
    page.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .with_context(|| format!("/metrics has no {name}"))
}

/// A new connection.
pub async fn connect(address: SocketAddr) -> anyhow::Result<Channel> {
    Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .connect()
        .await
        .with_context(|| format!("nothing answers at {address}"))
}

/// Processor time that process `pid` has used, in seconds.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    // The name, in parentheses, may hold spaces; utime and stime are the 12th and 13th field after it.
    let fields = stat.rsplit_once(')').context("a strange stat line")?.1;
    let mut times = fields.split_whitespace().skip(11);
    let mut next = || -> anyhow::Result<f64> {
        Ok(times.next().context("a short stat line")?.parse::<f64>()?)
    };
    Ok((next()? + next()?) / TICKS_PER_S)
}
