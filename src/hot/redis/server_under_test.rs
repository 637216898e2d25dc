//! A Redis or Valkey server of one test: started on a free port in a folder of its own, killed by
//! its id, started again where it was.
//!
//! # Shape
//! | flavour | the program | named by |
//! |---|---|---|
//! | Debian | redis-server 7.0 | `RED_ENVELOPE_REDIS`, or `redis-server` on the PATH |
//! | Redis8 | redis-server 8 | `RED_ENVELOPE_REDIS_8` |
//! | Valkey9 | valkey-server 9 | `RED_ENVELOPE_VALKEY_9` |
//!
//! `make test` installs them and sets the variables; `scripts/with-servers` does for a command by
//! hand.
//!
//! # Bounds
//! A start waits [`POLLS_MAX`] looks for an answer, and is tried on [`PORTS_TRIED_MAX`] ports.
//!
//! # Not here
//! Replicas, Sentinels, clusters. Blocking on purpose: what waits here is the test.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rand::RngExt;
use redis::{Client, Connection, ConnectionLike, RedisError, ServerError, Value};

use crate::config::Environment;

/// How often it is looked whether a server answers.
const POLL: Duration = Duration::from_millis(10);
/// Looks before a start counts as failed: 30 s, for a machine that compiles beside the test.
const POLLS_MAX: u32 = 3_000;
/// Ports that a first start tries: each is free when it is picked, and may be taken by another
/// test a moment later.
const PORTS_TRIED_MAX: u32 = 20;
/// Where free ports are looked for: below those that the kernel gives to outgoing connections, so
/// that a port stays ours while the server is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// How long a connection may take, and an answer to a command.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Where files are in memory.
const MEMORY: &str = "/dev/shm";
/// Free bytes that it takes: the files of some servers at once.
const MEMORY_BYTES_MIN: u64 = 1 << 30;
/// Lines of a server's log that a failed test prints.
const LOG_LINES_MAX: usize = 40;

/// What a server is told unless the test says otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    ("appendonly", "yes"),
    ("appendfsync", "always"),
    ("maxmemory-policy", "noeviction"),
    ("save", ""),
    ("daemonize", "no"),
    ("lazyfree-lazy-expire", "yes"),
];

/// Which program is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flavour {
    /// The one of Debian's package.
    Debian,
    /// redis-server 8.
    Redis8,
    /// valkey-server 9.
    Valkey9,
}

impl Flavour {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Debian, Self::Redis8, Self::Valkey9];

    /// The program.
    ///
    /// # Panics
    /// It is named nowhere. A test that is skipped would say that it holds.
    pub fn program(self) -> PathBuf {
        let variable = match self {
            Self::Debian => "REDIS",
            Self::Redis8 => "REDIS_8",
            Self::Valkey9 => "VALKEY_9",
        };
        match (Environment::read().get(variable), self) {
            (Some(path), _) => PathBuf::from(path),
            (None, Self::Debian) => PathBuf::from("redis-server"),
            (None, _) => panic!(
                "this test runs on {self:?}, and RED_ENVELOPE_{variable} does not say where its \
                 server is: run `make test`, which installs it, or the command behind \
                 `scripts/with-servers target/venv`"
            ),
        }
    }
}

/// Variables of the server's environment, such as those of a preload.
pub type Variables = BTreeMap<String, String>;

/// A server process, its port and its folder.
pub struct RedisServer {
    flavour: Flavour,
    child: Child,
    port: u16,
    folder: OwnFolder,
    password: Option<String>,
    variables: Variables,
}

impl RedisServer {
    /// A new server with an empty folder; `options` are lines of redis.conf and stand above the
    /// defaults.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(flavour: Flavour, options: &[(&str, &str)]) -> Self {
        Self::start_in(&in_memory(), flavour, options, |_| Variables::new())
    }

    /// The same with its files on a disk: what is measured waits for it.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_on_disk(flavour: Flavour, options: &[(&str, &str)]) -> Self {
        Self::start_under(flavour, options, |_| Variables::new())
    }

    /// The same in an environment that may name places in [`RedisServer::folder`], also programs: these
    /// run from a disk, and from memory only where the system lets them.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_under(
        flavour: Flavour,
        options: &[(&str, &str)],
        variables: impl FnOnce(&Path) -> Variables,
    ) -> Self {
        Self::start_in(&std::env::temp_dir(), flavour, options, variables)
    }

    fn start_in(
        parent: &Path,
        flavour: Flavour,
        options: &[(&str, &str)],
        variables: impl FnOnce(&Path) -> Variables,
    ) -> Self {
        let folder = OwnFolder::make(parent);
        let variables = variables(&folder.0);
        let password = options.iter().find(|(name, _)| *name == "requirepass");
        let password = password.map(|(_, password)| (*password).to_owned());
        for _ in 0..PORTS_TRIED_MAX {
            let port = free_port();
            write_configuration(&folder.0, port, options);
            let Some(child) = spawn(flavour, &folder.0, &variables, port, password.as_deref())
            else {
                continue;
            };
            return Self {
                flavour,
                child,
                port,
                folder,
                password,
                variables,
            };
        }
        panic!("{PORTS_TRIED_MAX} ports were taken before {flavour:?} could listen on them");
    }

    /// Where clients connect, with the password if there is one.
    pub fn url(&self) -> String {
        url(self.port, self.password.as_deref())
    }

    /// On 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Everything of this server: its configuration, its log, and `data`.
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// Where it keeps its data.
    pub fn data_folder(&self) -> PathBuf {
        self.folder.0.join("data")
    }

    /// Where it keeps its append-only files.
    pub fn aof(&self) -> PathBuf {
        self.data_folder().join("appendonlydir")
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said.
    pub fn log(&self) -> String {
        log_of(&self.folder.0)
    }

    /// kill -9. Killing what is dead changes nothing.
    pub fn kill(&mut self) {
        let _already_gone = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    /// Starts it again, on its port and with what its folder holds, after a kill if need be.
    ///
    /// # Panics
    /// It does not start, or its port stays taken.
    pub fn restart(&mut self) {
        assert!(self.try_restart(), "its port stays taken:\n{}", self.log());
    }

    /// Starts it again on an empty folder.
    pub fn restart_empty(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.data_folder())
            .expect("the data of a dead server can be deleted");
        std::fs::create_dir(self.data_folder()).expect("a folder can be made");
        self.restart();
    }

    fn try_restart(&mut self) -> bool {
        self.kill();
        // The kernel may still hold the port for connections of the life before.
        for _ in 0..POLLS_MAX {
            let password = self.password.as_deref();
            let (folder, variables) = (&self.folder.0, &self.variables);
            if let Some(child) = spawn(self.flavour, folder, variables, self.port, password) {
                self.child = child;
                return true;
            }
            std::thread::sleep(POLL);
        }
        false
    }

    /// SIGSTOP: it answers nothing, and its connections stay.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let mut command = Command::new("kill");
        command.arg(signal).arg(self.child.id().to_string());
        let done = command.status().expect("kill is on every machine");
        assert!(done.success(), "kill {signal} had no effect");
    }

    /// One command on a connection of its own; an error reply is a value, too.
    ///
    /// # Panics
    /// It does not answer.
    pub fn command(&self, words: &[&[u8]]) -> Value {
        let answer = self.connection().and_then(|mut open| ask(&mut open, words));
        match answer {
            Ok(value) => value,
            Err(error) => panic!("{error}:\n{}", tail(&self.log())),
        }
    }

    /// The same where it may be dead.
    ///
    /// # Errors
    /// It can't be reached, or does not answer.
    pub fn try_command(&self, words: &[&[u8]]) -> Result<Value, RedisError> {
        ask(&mut connect(&self.url(), Some(ANSWER_MAX))?, words)
    }

    /// A connection for many commands, blocking.
    ///
    /// # Errors
    /// It can't be reached.
    pub fn connection(&self) -> Result<Connection, RedisError> {
        connect(&self.url(), None)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!(
                "---- the log of {:?} ----\n{}",
                self.flavour,
                tail(&self.log())
            );
        }
    }
}

/// One command; an error reply is a value, too.
///
/// # Errors
/// The connection broke.
pub fn ask(connection: &mut Connection, words: &[&[u8]]) -> Result<Value, RedisError> {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(*word);
    }
    match connection.req_command(&command) {
        Ok(value) => Ok(value),
        Err(error) => ServerError::try_from(error).map(Value::ServerError),
    }
}

fn url(port: u16, password: Option<&str>) -> String {
    match password {
        Some(password) => format!("redis://:{password}@127.0.0.1:{port}"),
        None => format!("redis://127.0.0.1:{port}"),
    }
}

/// With a limit a signal to another part of the process (a child that has ended) interrupts what waits for an
/// answer; without one the kernel goes on.
fn connect(url: &str, limit: Option<Duration>) -> Result<Connection, RedisError> {
    let client = Client::open(url)?;
    // Who waits with a limit is interrupted by every signal, such as that of the end of another test's server.
    let Some(limit) = limit else {
        return client.get_connection();
    };
    let connection = client.get_connection_with_timeout(limit)?;
    connection.set_read_timeout(Some(limit))?;
    connection.set_write_timeout(Some(limit))?;
    Ok(connection)
}

/// Where a sync costs nothing, if there is room: tests of what survives kill -9 prove nothing of disks, and
/// one that stalls fails those of anything else.
pub(super) fn in_memory() -> PathBuf {
    let asked = Command::new("df")
        .args(["--output=avail", "-B1", MEMORY])
        .output();
    let told = asked.map(|answer| String::from_utf8_lossy(&answer.stdout).into_owned());
    let free = told
        .ok()
        .and_then(|told| told.lines().last()?.trim().parse::<u64>().ok());
    match free {
        Some(free) if free >= MEMORY_BYTES_MIN => PathBuf::from(MEMORY),
        _ => std::env::temp_dir(),
    }
}

/// A folder that is deleted with its owner.
struct OwnFolder(PathBuf);

impl OwnFolder {
    fn make(parent: &Path) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "red-envelope-redis-{}-{number}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        );
        let path = parent.join(name);
        std::fs::create_dir_all(path.join("data")).expect("a folder can be made");
        Self(path)
    }
}

impl Drop for OwnFolder {
    fn drop(&mut self) {
        let _nothing_to_do = std::fs::remove_dir_all(&self.0);
    }
}

fn free_port() -> u16 {
    for _ in 0..PORTS.len() {
        let port = rand::rng().random_range(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

fn write_configuration(folder: &Path, port: u16, options: &[(&str, &str)]) {
    let mut text = format!(
        "port {port}\nbind 127.0.0.1\ndir \"{}\"\n",
        folder.join("data").display()
    );
    let told = |name: &str| options.iter().any(|(told, _)| *told == name);
    let defaults = DEFAULTS.iter().filter(|(name, _)| !told(name));
    for (name, value) in defaults.chain(options) {
        let value = if value.is_empty() { "\"\"" } else { value };
        writeln!(text, "{name} {value}").expect("a string takes every line");
    }
    std::fs::write(folder.join("redis.conf"), text).expect("a file can be written");
}

/// A process that answers; `None`: its port was taken.
fn spawn(
    flavour: Flavour,
    folder: &Path,
    variables: &Variables,
    port: u16,
    password: Option<&str>,
) -> Option<Child> {
    let program = flavour.program();
    // A log of one life, so that a taken port of the life before is not read again.
    let log = File::create(folder.join("log")).expect("a file can be written");
    let spawned = Command::new(&program)
        .arg(folder.join("redis.conf"))
        .envs(variables)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file can be shared"))
        .stderr(log)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => panic!(
            "{} is not there: `make test` installs it, or set RED_ENVELOPE_REDIS to the path of a \
             redis-server 7 or later",
            program.display()
        ),
        Err(error) => panic!("{}: {error}", program.display()),
    };
    for _ in 0..POLLS_MAX {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            let log = log_of(folder);
            if log.contains("Address already in use") {
                return None;
            }
            panic!("{flavour:?} ended with {status}:\n{}", tail(&log));
        }
        if answers(&url(port, password), child.id()) {
            return Some(child);
        }
        std::thread::sleep(POLL);
    }
    let _ended = child.kill();
    let _waited = child.wait();
    panic!("{flavour:?} does not answer:\n{}", tail(&log_of(folder)));
}

/// Whether this process answers, and has loaded what it had.
fn answers(url: &str, pid: u32) -> bool {
    let Ok(mut connection) = connect(url, Some(ANSWER_MAX)) else {
        return false;
    };
    match ask(&mut connection, &[b"PING"]) {
        Ok(Value::SimpleString(_) | Value::BulkString(_)) => {}
        // A user who may not even ask: that it listens must do.
        Ok(Value::ServerError(error)) if error.code() == "NOPERM" => return true,
        _ => return false,
    }
    match ask(&mut connection, &[b"INFO", b"server"]) {
        Ok(Value::BulkString(text)) => {
            // Another test's server may have taken the port; then ours is about to end.
            let line = format!("process_id:{pid}\r");
            String::from_utf8_lossy(&text)
                .lines()
                .any(|l| *l == *line.trim_end())
        }
        other => matches!(other, Ok(Value::ServerError(_))),
    }
}

fn log_of(folder: &Path) -> String {
    let bytes = std::fs::read(folder.join("log")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn tail(text: &str) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(LOG_LINES_MAX)..].join("\n")
}

#[cfg(test)]
mod tests;
