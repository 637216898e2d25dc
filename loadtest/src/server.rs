//! The server under test: one that runs already, or one started here with its stores and stopped by its
//! id; or several of them, side by side on the same stores.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use tonic::transport::{Channel, Endpoint};

use crate::process::Process;
use crate::scrape::Scrape;
use crate::stack::{Own, SERVERS, Stores};

/// How long a start, or a stop, may take.
const STEP_MAX: Duration = Duration::from_secs(30);
/// How often a start or a stop is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a connection may take to come up.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A connection that is silent for so long is asked whether it still lives.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Nothing answers at an address.
#[derive(Debug)]
pub struct Unreachable(pub String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no server answers at {}", self.0)
    }
}

impl std::error::Error for Unreachable {}

/// Where a listener is.
#[derive(Clone, Debug)]
pub struct Address(String);

impl Address {
    /// From what a person typed: `127.0.0.1:50051` means `http://127.0.0.1:50051`.
    pub fn parse(typed: &str) -> anyhow::Result<Self> {
        let url = if typed.contains("://") {
            typed.to_owned()
        } else {
            format!("http://{typed}")
        };
        Endpoint::from_shared(url.clone())
            .with_context(|| format!("{typed:?} is no address such as http://127.0.0.1:50051"))?;
        Ok(Self(url))
    }

    /// A new connection.
    pub async fn connect(&self) -> anyhow::Result<Channel> {
        Endpoint::from_shared(self.0.clone())?
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_MAX)
            .http2_keep_alive_interval(KEEPALIVE)
            .connect()
            .await
            .map_err(|error| anyhow::Error::new(error).context(Unreachable(self.0.clone())))
    }
}

/// What a server announces in its data folder.
#[derive(Deserialize)]
struct Ports {
    grpc: u16,
    admin: u16,
    http: u16,
}

/// One process of it.
struct Serving {
    child: Child,
    ports: Ports,
}

/// A server that was started here.
pub struct OwnServer {
    /// At least one.
    servings: Vec<Serving>,
    /// Ended after them.
    stores: Option<Stores>,
    folder: PathBuf,
    /// The public listener of each process.
    pub public: Vec<Address>,
    /// The first one's admin listener.
    pub admin: Address,
    /// Each one's metrics.
    pub metrics: Vec<Scrape>,
    /// The name of its stack.
    pub stack: String,
    /// The name of its level of acknowledgement.
    pub ack: String,
}

impl OwnServer {
    /// Starts the stores that are asked for and the `red-envelope` beside this program, on free ports,
    /// with their data in a new folder under the system's temporary one. Builds it first where it is
    /// missing.
    pub async fn start(own: &Own, say: impl Fn(&str)) -> anyhow::Result<Self> {
        let program = program(&say)?;
        let name = format!(
            "red-envelope-loadtest-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        );
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let stores = Stores::start(own, &folder)
            .with_context(|| format!("no stores; their data stays in {}", folder.display()))?;
        let mut servings: Vec<Serving> = Vec::new();
        for number in 0..own.processes {
            // The first one founds the books, and its keys are those of all.
            let keys = folder.join("data/seal.key");
            let keys = (number > 0).then_some(keys.as_path());
            let serving = Serving::start(&program, &folder, number + 1, (&stores.flags, keys));
            servings.push(serving.await?);
        }
        let loopback = |port: u16| Address(format!("http://127.0.0.1:{port}"));
        let ports = || servings.iter().map(|serving| &serving.ports);
        Ok(Self {
            public: ports().map(|ports| loopback(ports.grpc)).collect(),
            admin: loopback(servings[0].ports.admin),
            metrics: ports()
                .map(|ports| Scrape::on_loopback(ports.http))
                .collect(),
            stores: Some(stores),
            stack: own.stack_name(),
            ack: own.ack_name(),
            servings,
            folder,
        })
    }

    /// Each process that was started here.
    pub fn processes(&self) -> Vec<Process> {
        let named = self.servings.iter().zip(SERVERS);
        let servers = named.map(|(serving, name)| Process {
            name,
            pid: serving.child.id(),
            with_children: false,
        });
        let stores = self.stores.iter().flat_map(Stores::processes);
        servers.chain(stores).collect()
    }

    /// What commands that run meanwhile are told: where it is, which processes, and its stores' flags.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let flags = self.stores.iter().flat_map(|stores| &stores.flags);
        let flags: Vec<&str> = flags.map(String::as_str).collect();
        let folder = self.folder.display().to_string();
        let servings = self.servings.iter();
        let pids: Vec<String> = servings.map(|it| it.child.id().to_string()).collect();
        vec![
            ("RED_ENVELOPE_LOADTEST_FOLDER", folder),
            ("RED_ENVELOPE_LOADTEST_SERVER", pids.join(" ")),
            ("RED_ENVELOPE_LOADTEST_STORES", flags.join(" ")),
        ]
    }

    /// Where its data and its log are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// SIGTERM to each, and a wait until it has ended. The data goes, unless `keep_data`.
    pub async fn stop(mut self, keep_data: bool) -> anyhow::Result<()> {
        for serving in std::mem::take(&mut self.servings) {
            serving.stop().await?;
        }
        if let Some(stores) = self.stores.take() {
            stores.stop()?;
        }
        if !keep_data {
            std::fs::remove_dir_all(&self.folder)
                .with_context(|| format!("cannot remove {}", self.folder.display()))?;
        }
        Ok(())
    }
}

impl Serving {
    /// Starts one with a data folder of its own, and waits until it says where it listens.
    async fn start(
        program: &Path,
        folder: &Path,
        number: u32,
        (flags, keys): (&[String], Option<&Path>),
    ) -> anyhow::Result<Self> {
        let named = |name: &str, ending: &str| match number {
            1 => folder.join(format!("{name}{ending}")),
            _ => folder.join(format!("{name}-{number}{ending}")),
        };
        let (data, log_file) = (named("data", ""), named("server", ".log"));
        let log = std::fs::File::create(&log_file)?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(&data)
            .args(["--grpc-listen", "127.0.0.1:0"])
            .args(["--admin-listen", "127.0.0.1:0"])
            .args(["--http-listen", "127.0.0.1:0"])
            .args(flags);
        if let Some(keys) = keys {
            command.arg("--data-keys").arg(keys);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        match announced(&mut child, &data).await {
            Ok(ports) => Ok(Self { child, ports }),
            Err(error) => {
                // Both fail if it has ended by itself.
                let _already_gone = child.kill();
                let _already_gone = child.wait();
                Err(error.context(format!("see {}", log_file.display())))
            }
        }
    }

    /// SIGTERM, and a wait until it has ended.
    async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().to_string();
        let asked = Command::new("sh")
            .args(["-c", "kill -TERM \"$1\"", "sh", &pid])
            .status()
            .context("cannot run sh")?;
        ensure!(asked.success(), "the server (process {pid}) had died");
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(
                began.elapsed() < STEP_MAX,
                "the server (process {pid}) did not end within {STEP_MAX:?} of SIGTERM"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        };
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // After `stop` both fail, which is fine: nobody is left to kill.
        let _already_gone = self.child.kill();
        let _already_gone = self.child.wait();
    }
}

async fn announced(child: &mut Child, data: &Path) -> anyhow::Result<Ports> {
    let began = Instant::now();
    while began.elapsed() < STEP_MAX {
        // Half a file does not parse; the next look finds all of it.
        if let Ok(text) = std::fs::read_to_string(data.join("ports.json"))
            && let Ok(ports) = serde_json::from_str(&text)
        {
            return Ok(ports);
        }
        if let Some(status) = child.try_wait()? {
            bail!("the server ended with {status} when it was started");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bail!("the server announced no ports within {STEP_MAX:?}")
}

/// The server's program in the folder of this one.
fn program(say: &impl Fn(&str)) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's folder")?;
    let folder = own.parent().context("this program lies in no folder")?;
    let program = folder.join("red-envelope");
    if program.exists() {
        return Ok(program);
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let target = folder.parent().context("no target folder")?;
    // Cargo names the folder of the profile `dev` after its first name, `debug`.
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => bail!("the folder {} has no name", folder.display()),
    };
    say(&format!(
        "no red-envelope beside this program: building it first (profile {profile})"
    ));
    let built = Command::new("cargo")
        .args([
            "build",
            "--locked",
            "-p",
            "red-envelope",
            "--profile",
            profile,
        ])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(target)
        .status()
        .context("cannot run cargo")?;
    ensure!(built.success(), "cargo build ended with {built}");
    ensure!(program.exists(), "cargo built no {}", program.display());
    Ok(program)
}
