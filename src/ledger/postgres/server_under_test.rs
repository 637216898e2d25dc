//! A real PostgreSQL for tests: its own folder, a free port on loopback, gone with the test process.
//!
//! # Shape
//! `initdb` once a server, with the files of a folder of its own (`place`); a database a test. PostgreSQL
//! refuses to run as root, so where root tests, the server runs as the user `nobody`, who owns its folder.
//!
//! # Bounds
//! [`POLLS_MAX`] looks until it answers, and [`PORTS_TRIED_MAX`] ports.

mod place;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::config::Environment;

use place::{free_port, in_reach, make_folder};

/// Where Debian's package puts the programs.
const DEBIAN: &str = "/usr/lib/postgresql/15/bin";
/// The name by which a standby follows.
const STANDBY: &str = "standby";
/// The role of servers that own nothing.
pub const RUNTIME: &str = "red_runtime";
/// Looks of 50 ms until it answers.
const POLLS_MAX: u32 = 600;
/// Ports that are tried: another process may take one that was free.
const PORTS_TRIED_MAX: u32 = 5;
/// Starts after a kill.
const STARTS_TRIED_MAX: u32 = 50;

/// Which programs are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Debian's package.
    Debian,
    /// PostgreSQL 18.
    Eighteen,
}

impl Release {
    /// The folder of the programs.
    ///
    /// # Panics
    /// It is named nowhere. A test that is skipped would say that it holds.
    pub fn programs(self) -> PathBuf {
        let (variable, usual) = match self {
            Self::Debian => ("POSTGRES", Some(DEBIAN)),
            Self::Eighteen => ("POSTGRES_18", None),
        };
        let named = Environment::read().get(variable).map(PathBuf::from);
        named.or(usual.map(PathBuf::from)).unwrap_or_else(|| {
            panic!(
                "this test runs on {self:?}, and RED_ENVELOPE_{variable} does not say where its \
                 programs are: run `make test`, which installs them, or the command behind \
                 `scripts/with-servers target/venv`"
            )
        })
    }
}

/// A server process, its port and its folder.
pub struct PostgresServer {
    child: Child,
    port: u16,
    folder: PathBuf,
    programs: PathBuf,
    options: Vec<String>,
    databases: AtomicU32,
}

impl PostgresServer {
    /// A new server with an empty folder; `options` are settings such as `fsync=off`.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(release: Release, options: &[&str]) -> Self {
        Self::start_in(&place::in_memory(), release, options)
    }

    /// The same with its files on a disk: what is measured waits for it.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_on_disk(release: Release, options: &[&str]) -> Self {
        Self::start_in(&std::env::temp_dir(), release, options)
    }

    fn start_in(parent: &Path, release: Release, options: &[&str]) -> Self {
        let folder = make_folder(parent);
        let programs = in_reach(release.programs(), &folder);
        let data = folder.join("data");
        let words = as_nobody(&programs.join("initdb"));
        let made = Command::new(&words[0])
            .args(&words[1..])
            .args([
                "--auth=trust",
                "--username=red",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .arg("--pgdata")
            .arg(&data)
            .stdout(Stdio::null())
            .output()
            .expect("initdb can be started");
        let told = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "initdb: {told}");
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        Self::run(folder, programs, options)
    }

    /// On a folder that is made.
    fn run(folder: PathBuf, programs: PathBuf, options: Vec<String>) -> Self {
        for _ in 0..PORTS_TRIED_MAX {
            let port = free_port();
            let mut server = Self {
                child: spawn(&programs, &folder, port, &options),
                port,
                folder: folder.clone(),
                programs: programs.clone(),
                options: options.clone(),
                databases: AtomicU32::new(0),
            };
            if server.answers() {
                return server;
            }
            // The folder is for the next try.
            std::mem::take(&mut server.folder);
        }
        panic!("PostgreSQL did not start: {}", log_of(&folder));
    }

    /// A standby of this server, which from now on answers a commit when both have it.
    ///
    /// # Panics
    /// It can't be made.
    pub fn standby(&self) -> Self {
        let folder = make_folder(self.folder.parent().expect("it lies in a folder"));
        let words = as_nobody(&self.programs.join("pg_basebackup"));
        let from = self.url("postgres");
        done(
            Command::new(&words[0])
                .args(&words[1..])
                .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
                .arg(format!("--dbname={from}?application_name={STANDBY}"))
                .arg("--pgdata")
                .arg(folder.join("data")),
        );
        let standby = Self::run(folder, self.programs.clone(), Vec::new());
        let both = format!("ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'");
        self.sql("postgres", &both);
        self.sql("postgres", "-- ledger.reload\nSELECT pg_reload_conf()");
        standby
    }

    /// Ends that this is a standby.
    pub fn promote(&self) {
        let promote = "-- ledger.promote\nSELECT pg_promote()";
        assert_eq!(self.sql("postgres", promote), "t");
    }

    /// The port at which it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of a new, empty database.
    pub fn database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("books_{number}");
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The address of a new database whose schema is made, for a role that owns nothing and has the rights
    /// of a server.
    ///
    /// # Panics
    /// The schema can't be made.
    pub async fn database_for_a_server(&self) -> String {
        let owners = self.database();
        // The first one makes it; for the others it is there.
        let _made = self.try_sql("postgres", &format!("CREATE ROLE {RUNTIME} LOGIN"));
        let migrated = super::migrate(&owners, Some(RUNTIME)).await;
        migrated.expect("a superuser may do it");
        owners.replacen("red@", &format!("{RUNTIME}@"), 1)
    }

    /// The address of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://red@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs a statement as the superuser. Answers what psql prints, unaligned.
    ///
    /// # Panics
    /// The server refuses it.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        let answer = self.try_sql(database, statement);
        answer.unwrap_or_else(|why| panic!("{statement}: {why}"))
    }

    /// The same, or what psql says of the refusal.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn try_sql(&self, database: &str, statement: &str) -> Result<String, String> {
        let asked = Command::new(self.programs.join("psql"))
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .args(["--set", "ON_ERROR_STOP=1", "--command", statement])
            .arg(self.url(database))
            .output()
            .map_err(|error| error.to_string())?;
        match asked.status.success() {
            true => Ok(String::from_utf8_lossy(&asked.stdout).trim().to_owned()),
            false => Err(String::from_utf8_lossy(&asked.stderr).into_owned()),
        }
    }

    /// A backup of a database, as an operator makes one. It lies in the server's folder.
    ///
    /// # Panics
    /// It can't be made.
    pub fn dump(&self, database: &str) -> PathBuf {
        let file = self.folder.join(format!("{database}.dump"));
        let mut dump = Command::new(self.programs.join("pg_dump"));
        dump.args(["--format=custom", "--file"]).arg(&file);
        done(dump.arg("--dbname").arg(self.url(database)));
        file
    }

    /// Puts the database of a backup in the place of the one that there is. Nobody may be connected.
    ///
    /// # Panics
    /// It can't be done.
    pub fn restore(&self, database: &str, file: &Path) {
        self.sql("postgres", &format!("DROP DATABASE {database}"));
        self.sql("postgres", &format!("CREATE DATABASE {database}"));
        let mut restore = Command::new(self.programs.join("pg_restore"));
        restore.args(["--exit-on-error", "--dbname"]);
        done(restore.arg(self.url(database)).arg(file));
    }

    /// The SQLSTATE with which the server refuses a statement of the superuser.
    ///
    /// # Panics
    /// The server does it.
    pub fn refusal(&self, database: &str, statement: &str) -> String {
        let told = format!("\\set VERBOSITY sqlstate\n{statement}\n");
        let asked = Command::new(self.programs.join("psql"))
            .args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"])
            .arg(self.url(database))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut asked = asked.expect("psql can be started");
        let mut input = asked.stdin.take().expect("psql has an input");
        input.write_all(told.as_bytes()).expect("psql reads");
        drop(input);
        let answer = asked.wait_with_output().expect("psql ends");
        assert!(!answer.status.success(), "{statement} was done");
        let told = String::from_utf8_lossy(&answer.stderr).into_owned();
        told.trim()
            .rsplit(' ')
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    /// kill -9 of all its processes, as a crash of the host would; then a start on what the disk has.
    pub fn crash(&mut self) {
        self.kill();
        self.start_again();
    }

    /// kill -9 of all its processes.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill(&mut self) {
        self.die();
        let _reaped = self.child.wait();
    }

    /// The same, for somebody who goes on using its name.
    pub fn die(&self) {
        self.signal("-KILL");
    }

    /// SIGSTOP: it answers nothing, and its connections stay.
    ///
    /// # Panics
    /// It does not run.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT.
    ///
    /// # Panics
    /// It does not run.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let noted = std::fs::read_to_string(self.folder.join("data/postmaster.pid"));
        let noted = noted.expect("a server that runs notes its process");
        let first = noted.lines().next().unwrap_or_default().to_owned();
        if signal != "-CONT" {
            // From now on it makes no further children, of which the list below would not know.
            send("-STOP", std::slice::from_ref(&first));
        }
        let children = Command::new("ps")
            .args(["-o", "pid=", "--ppid", &first])
            .output();
        let children = children.expect("ps can be started");
        let mut victims = vec![first];
        let of_it = String::from_utf8_lossy(&children.stdout).into_owned();
        victims.extend(of_it.split_whitespace().map(str::to_owned));
        send(signal, &victims);
    }

    /// Starts it on the same folder and port.
    ///
    /// # Panics
    /// It does not come back.
    pub fn start_again(&mut self) {
        // The last processes of the one before may still hold its memory.
        for _ in 0..STARTS_TRIED_MAX {
            self.child = spawn(&self.programs, &self.folder, self.port, &self.options);
            if self.answers() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("PostgreSQL did not come back: {}", log_of(&self.folder));
    }

    /// Whether this server answers, and not another one that took its port meanwhile.
    fn answers(&mut self) -> bool {
        let ours = self.folder.join("data").display().to_string();
        for _ in 0..POLLS_MAX {
            let told = self.try_sql("postgres", "-- ledger.server_answers\nSHOW data_directory");
            if told.is_ok_and(|folder| folder == ours) {
                return true;
            }
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _reaped = self.child.wait();
        if !self.folder.as_os_str().is_empty() {
            let _left = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// Sends a signal to these processes. Some of them end by themselves when the first one has.
fn send(signal: &str, victims: &[String]) {
    let _gone = Command::new("kill")
        .arg(signal)
        .args(victims)
        .stderr(Stdio::null())
        .status();
}

fn done(command: &mut Command) {
    let ended = command
        .output()
        .expect("PostgreSQL's programs can be started");
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{command:?}: {told}");
}

fn is_root() -> bool {
    let asked = Command::new("id").arg("-u").output();
    asked.is_ok_and(|answer| answer.stdout.starts_with(b"0\n"))
}

/// The words that start the program as a user who may run it.
fn as_nobody(program: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = match is_root() {
        true => [
            "setpriv",
            "--reuid=nobody",
            "--regid=nogroup",
            "--clear-groups",
        ]
        .map(OsString::from)
        .to_vec(),
        false => Vec::new(),
    };
    words.push(program.into());
    words
}

/// Runs the rest of its words until they end or its input does, and then ends them with SIGQUIT: no
/// checkpoint that nobody needs. The input ends with the process that holds it, however that ends.
const WHILE_INPUT_LASTS: &str = r#"exec 3<&0; "$@" </dev/null & p=$!; (cat <&3 >/dev/null; kill -QUIT $p; kill -CONT $p) & wait $p"#;

fn spawn(programs: &Path, folder: &Path, port: u16, options: &[String]) -> Child {
    let log = std::fs::File::create(folder.join("log")).expect("the log can be made");
    let mut command = Command::new("sh");
    command
        .args(["-c", WHILE_INPUT_LASTS, "sh"])
        .args(as_nobody(&programs.join("postgres")))
        .arg("-D")
        .arg(folder.join("data"))
        .arg("-k")
        .arg(folder)
        .args(["-h", "127.0.0.1", "-p", &port.to_string()])
        .args(["-c", "max_connections=300"]);
    for option in options {
        command.args(["-c", option]);
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("PostgreSQL can be started")
}

fn log_of(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default()
}
