//! One `red-envelope serve` process: started on free ports, killed by its id.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use red_envelope::hot::redis::server_under_test::RedisServer;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::power::{self, Loss};

/// How often the harness looks whether the server has announced its ports.
const POLL: Duration = Duration::from_millis(10);
/// Looks before a start counts as failed: 30 s, for a machine that compiles beside the test.
const POLLS_MAX: u32 = 3_000;

/// Partitions of a Redis: enough that envelopes lie in different ones.
pub const REDIS_PARTITIONS: u16 = 8;

/// How long a connection to Redis, and an answer of it, may take in a test that is not about that.
const REDIS_ANSWERS_WITHIN_MS: &str = "10000";

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_red-envelope");

/// Which hot store a server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hot {
    /// The one that needs nothing.
    #[default]
    Embedded,
    /// A Redis of the test's own.
    Redis,
}

/// Under what circumstances a server starts.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Which hot store. A restart stays on the one that there is.
    pub hot: Hot,
    /// On a disk that can lose power.
    pub power_cut: bool,
    /// On a disk that lies about syncs as well.
    pub no_sync: bool,
    /// The crash point at which it dies, such as `publish::before_open`.
    pub abort_at: Option<String>,
    /// Redis has the time that servers usually give it; else more, for a machine that does much beside the test.
    /// For tests in which it gives no answer.
    pub usual_timing: bool,
    /// Partitions of its Redis, where they are not [`REDIS_PARTITIONS`].
    pub partitions: Option<u16>,
    /// The soft limit of open files with which it starts, as many systems set it; else this process's.
    pub open_files_max: Option<u32>,
    /// What it does at other points, such as `settle::before_post=1*sleep(1000)`.
    pub points: Option<String>,
    /// More flags.
    pub flags: Vec<String>,
}

impl Start {
    /// On this hot store.
    pub fn on(hot: Hot) -> Self {
        Self {
            hot,
            ..Self::default()
        }
    }

    /// The same, told where its Redis is.
    pub fn reaching(self, redis: Option<&RedisServer>) -> Self {
        match redis {
            None => self,
            Some(redis) => self.reaching_at(&redis.url()),
        }
    }

    /// The same, with the address that is told.
    pub fn reaching_at(mut self, redis: &str) -> Self {
        let partitions = self.partitions.unwrap_or(REDIS_PARTITIONS).to_string();
        let told = ["--hot", redis, "--hot-partitions", &partitions];
        self.flags.extend(told.map(str::to_owned));
        if !self.usual_timing {
            for wait in ["--redis-connect-timeout-ms", "--redis-response-timeout-ms"] {
                let told = [wait, REDIS_ANSWERS_WITHIN_MS];
                self.flags.extend(told.map(str::to_owned));
            }
        }
        self
    }
}

/// Where a server listens.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Ports {
    /// Clients; none where it only settles.
    pub grpc: Option<u16>,
    /// Operators.
    pub admin: u16,
    /// Probes and metrics.
    pub http: u16,
}

/// A server process and its folder.
pub struct Server {
    child: Child,
    folder: Arc<TempDir>,
    /// Where it listens.
    pub ports: Ports,
}

impl Server {
    /// On a new folder.
    pub async fn start(start: Start) -> Self {
        Self::on(Arc::new(new_folder()), start).await
    }

    /// On a copy of this data folder, in which no server is.
    pub async fn on_a_copy_of(data: &Path, start: Start) -> Self {
        let folder = new_folder();
        copy(data, &folder.path().join("data"));
        Self::on(Arc::new(folder), start).await
    }

    /// On the same folder, after this process has ended.
    pub async fn again(mut self, start: Start) -> Self {
        self.kill();
        Self::on(Arc::clone(&self.folder), start).await
    }

    async fn on(folder: Arc<TempDir>, start: Start) -> Self {
        let mut child = spawn(folder.path(), &start);
        for _ in 0..POLLS_MAX {
            if let Some(ports) = announced(folder.path()) {
                return Self {
                    child,
                    folder,
                    ports,
                };
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", log_of(folder.path()));
            }
            tokio::time::interval_at(tokio::time::Instant::now() + POLL, POLL)
                .tick()
                .await;
        }
        let _ended = child.kill();
        panic!("no ports were announced:\n{}", log_of(folder.path()));
    }

    /// The port of its clients.
    pub fn grpc(&self) -> u16 {
        self.ports.grpc.expect("the server serves clients")
    }

    /// Its resident memory.
    pub fn resident_kib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the process lives");
        let told = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = told.and_then(|rest| rest.trim().strip_suffix(" kB"));
        kib.expect("Linux tells it in kB").parse().unwrap()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let _already_gone = self.child.kill();
        self.child.wait().unwrap();
    }

    /// SIGTERM, as an operator stops it; answers how it ended.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal("-TERM");
        self.ended().await
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        if let Some(status) = self.ended_within(POLLS_MAX).await {
            return status;
        }
        self.kill();
        panic!("the server did not end:\n{}", self.log());
    }

    async fn ended_within(&mut self, polls_max: u32) -> Option<ExitStatus> {
        for _ in 0..polls_max {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            tokio::time::interval_at(tokio::time::Instant::now() + POLL, POLL)
                .tick()
                .await;
        }
        None
    }

    /// Another process on its folder, which dies at a crash point, maybe before it listens.
    pub async fn again_until_it_crashes(&mut self, start: &Start) {
        self.kill();
        self.child = spawn(self.folder.path(), start);
        assert!(self.crashed().await, "it did not crash:\n{}", self.log());
    }

    /// Whether it died of a signal (a crash point aborts the process).
    pub async fn crashed(&mut self) -> bool {
        self.ended().await.signal().is_some()
    }

    /// Waits ten seconds at the most until it ends. Answers whether it did.
    pub async fn ended_soon(&mut self) -> bool {
        self.ended_within(POLLS_MAX / 3).await.is_some()
    }

    /// Runs `red-envelope restored` on its folder, as an operator does.
    pub fn restored(&self, flags: &[String]) -> Output {
        self.restored_under(&Start::default(), flags)
    }

    /// The same, until it dies at a crash point.
    pub fn restored_until(&self, point: &str, flags: &[String]) -> Output {
        let start = Start {
            abort_at: Some(point.to_owned()),
            ..Start::default()
        };
        self.restored_under(&start, flags)
    }

    /// Runs `red-envelope reconcile` on its folder.
    pub fn reconcile(&self, flags: &[String]) -> Output {
        Command::new(PROGRAM)
            .args(["reconcile", "--json", "--data-dir"])
            .arg(self.data_folder())
            .args(flags)
            .envs(circumstances(self.folder.path(), &Start::default()))
            .output()
            .unwrap()
    }

    fn restored_under(&self, start: &Start, flags: &[String]) -> Output {
        Command::new(PROGRAM)
            .arg("restored")
            .args(["--operator", "olga", "--reason", "a lost disk", "--json"])
            .args(["--data-dir".as_ref(), self.data_folder().as_os_str()])
            .args(flags)
            .envs(circumstances(self.folder.path(), start))
            .output()
            .unwrap()
    }

    /// kill -9, then the disk loses what was not synced. Answers how many changes were unsynced.
    pub fn lose_power(&mut self, loss: Loss) -> usize {
        self.kill();
        power::cut(&power::log(self.folder.path()), loss)
    }

    /// Orders a fault of the disk ("write EIO", "sync EIO", "write ENOSPC", "write TORN").
    pub fn break_disk(&self, fault: &str) {
        std::fs::write(self.folder.path().join("fault"), fault).unwrap();
    }

    /// Takes the order back.
    pub fn mend_disk(&self) {
        std::fs::remove_file(self.folder.path().join("fault")).unwrap();
    }

    /// Moves the server's clock: so many milliseconds beside the machine's.
    pub fn set_clock_ms(&self, offset_ms: i64) {
        set_clock(self.folder.path(), offset_ms);
    }

    /// SIGSTOP: it does nothing, and its connections stay.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The memory that it holds, as the kernel counts it.
    pub fn resident_bytes(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kib << 10
    }

    /// Whether it is ready, and what it says about that.
    pub async fn readiness(&self) -> (bool, String) {
        let (head, body) = self.get("/readyz").await;
        (head.starts_with("HTTP/1.1 200"), body)
    }

    /// What it has counted under a name, all labels together; 0 before the first.
    pub async fn counted(&self, metric: &str) -> f64 {
        self.counted_of(metric, "").await
    }

    /// The same, of those lines alone that hold these labels.
    pub async fn counted_of(&self, metric: &str, labels: &str) -> f64 {
        let (_, metrics) = self.get("/metrics").await;
        let of_it = |line: &str| {
            let rest = line.strip_prefix(metric)?;
            let value = (rest.starts_with([' ', '{']) && rest.contains(labels))
                .then(|| rest.rsplit(' ').next());
            value.flatten()?.parse::<f64>().ok()
        };
        metrics.lines().filter_map(of_it).sum()
    }

    /// Head and body of a page of its HTTP listener.
    async fn get(&self, path: &str) -> (String, String) {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.ports.http))
            .await
            .unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.to_owned(), body.to_owned())
    }

    /// Holds the books: nothing is posted until what this answers is dropped.
    pub fn hold_the_books(&self) -> rusqlite::Connection {
        let books = rusqlite::Connection::open(self.data_folder().join("ledger.sqlite")).unwrap();
        books
            .execute_batch("-- it.hold_the_books\nPRAGMA busy_timeout = 30000; BEGIN IMMEDIATE")
            .unwrap();
        books
    }

    /// The folder in which it keeps its data.
    pub fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What it said.
    pub fn log(&self) -> String {
        log_of(self.folder.path())
    }

    /// The address of a listener, for clients that are programs.
    pub fn url(&self, port: u16) -> String {
        format!("http://127.0.0.1:{port}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- the server's log ----\n{}", tail(&self.log(), 60));
        }
    }
}

/// A folder that is deleted with what this answers.
pub fn new_folder() -> TempDir {
    let named = tempfile::Builder::new()
        .prefix("red-envelope-it-")
        .tempdir();
    named.unwrap()
}

/// Copies the files of a folder into a new one.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let to = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &to);
        } else {
            std::fs::copy(file.path(), to).unwrap();
        }
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn log_of(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default()
}

/// Written beside, then renamed: the server never reads half a number.
fn set_clock(folder: &Path, offset_ms: i64) {
    std::fs::write(folder.join("clock.new"), offset_ms.to_string()).unwrap();
    std::fs::rename(folder.join("clock.new"), folder.join("clock")).unwrap();
}

fn announced(folder: &Path) -> Option<Ports> {
    let text = std::fs::read_to_string(folder.join("data/ports.json")).ok()?;
    serde_json::from_str(&text).ok()
}

fn spawn(folder: &Path, start: &Start) -> Child {
    let data = folder.join("data");
    let _none_yet = std::fs::remove_file(data.join("ports.json"));
    if !folder.join("clock").exists() {
        set_clock(folder, 0);
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .unwrap();
    let mut command = match start.open_files_max {
        None => Command::new(PROGRAM),
        Some(max) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", "ulimit -S -n $0 && exec \"$@\""]);
            shell.args([&max.to_string(), PROGRAM]);
            shell
        }
    };
    command
        .arg("serve")
        .args(["--data-dir".as_ref(), data.as_os_str()])
        .args(["--grpc-listen", "127.0.0.1:0"])
        .args(["--admin-listen", "127.0.0.1:0"])
        .args(["--http-listen", "127.0.0.1:0"])
        .args(&start.flags)
        .envs(circumstances(folder, start))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    command.spawn().expect("the program under test starts")
}

fn circumstances(folder: &Path, start: &Start) -> BTreeMap<String, String> {
    let at = |name: &str| folder.join(name).display().to_string();
    let mut variables = BTreeMap::new();
    variables.insert("RED_ENVELOPE_TEST_CLOCK".to_owned(), at("clock"));
    if start.power_cut {
        variables.extend(power::variables(folder, &folder.join("data")));
    }
    if start.no_sync {
        variables.insert("POWER_CUT_NO_SYNC".to_owned(), "1".to_owned());
    }
    if let Some(point) = &start.abort_at {
        variables.insert("RED_ENVELOPE_TEST_ABORT_AT".to_owned(), point.clone());
    }
    if let Some(points) = &start.points {
        variables.insert("FAILPOINTS".to_owned(), points.clone());
    }
    variables
}
