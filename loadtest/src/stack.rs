//! The stores behind a server that is started here: Redis and PostgreSQL, with their data in its folder.
//!
//! *Shape.* Each store runs under a shell that ends it when this program's end of a pipe closes: so also
//! when this program is killed.
//!
//! *Bounds.* [`STEP_MAX`] for a start and for an end.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use rand::RngExt as _;

use crate::process::Process;

/// How long a store may take to start, and to end.
const STEP_MAX: Duration = Duration::from_secs(60);
/// How often a start or an end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a Redis may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Where free ports are looked for: below those that the kernel gives to outgoing connections, which would
/// take one before its store listens.
const PORTS: std::ops::Range<u16> = 12_000..32_000;
/// Where Debian puts the programs of each release of PostgreSQL.
const DEBIAN: &str = "/usr/lib/postgresql";
/// The oldest release that the server takes.
const POSTGRES_MIN: u32 = 15;

/// Servers that may be started side by side, and how reports call each. With the load test and two stores they are as
/// many lines as a plot has styles, and more on one machine would tell nothing.
pub const SERVERS: [&str; 3] = ["server", "server 2", "server 3"];

/// Which stores the server gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stack {
    /// None but its own: the embedded store and SQLite.
    Embedded,
    /// Redis, and SQLite.
    Redis,
    /// Redis and PostgreSQL.
    #[value(name = "redis+postgres")]
    RedisPostgres,
}

/// What is acknowledged when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ack {
    /// When Redis has it in memory.
    Memory,
    /// When Redis has it on its disk.
    Fsync,
    /// When the books have it.
    Ledger,
}

/// The server that is started when none is named.
#[derive(Args, Clone, Debug)]
pub struct Own {
    /// Which stores the server gets that is started here: each is started, too
    #[arg(
        long,
        value_enum,
        default_value = "embedded",
        conflicts_with = "server"
    )]
    pub stack: Stack,

    /// Its level of acknowledgement; of a stack with Redis, whose default is `fsync`
    #[arg(long, value_enum, conflicts_with = "server")]
    pub ack: Option<Ack>,

    /// So many servers side by side on the same stores; of `--stack redis+postgres`
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "server",
          value_parser = clap::value_parser!(u32).range(1..=SERVERS.len() as i64))]
    pub processes: u32,

    /// The program of Redis or Valkey
    #[arg(
        long,
        env = "RED_ENVELOPE_REDIS",
        value_name = "FILE",
        default_value = "redis-server"
    )]
    redis_program: PathBuf,

    /// The folder of PostgreSQL's programs; else the newest release where Debian puts it
    #[arg(long, env = "RED_ENVELOPE_POSTGRES", value_name = "FOLDER")]
    postgres_programs: Option<PathBuf>,
}

impl Own {
    /// What can't be asked for together.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.ack.is_none() || self.stack != Stack::Embedded,
            "--ack is of a stack with Redis: add --stack redis or --stack redis+postgres"
        );
        ensure!(
            self.processes == 1 || self.stack == Stack::RedisPostgres,
            "several servers share a Redis and a PostgreSQL: add --stack redis+postgres to --processes"
        );
        Ok(())
    }

    /// The stack as it is asked for.
    pub fn stack_name(&self) -> String {
        word(self.stack)
    }

    /// The level as it is asked for, or the default of the server.
    pub fn ack_name(&self) -> String {
        word(self.ack.unwrap_or(Ack::Fsync))
    }
}

fn word(value: impl ValueEnum) -> String {
    let word = value.to_possible_value();
    word.map_or_else(String::new, |word| word.get_name().to_owned())
}

/// A store that runs.
struct Store {
    name: &'static str,
    /// The shell around it.
    shell: Child,
    /// Where it writes its own number.
    pid_file: PathBuf,
}

/// The stores that were started, and the server's flags that name them.
pub struct Stores {
    stores: Vec<Store>,
    /// Of `red-envelope serve`.
    pub flags: Vec<String>,
}

impl Stores {
    /// Starts what the stack asks for, in this folder.
    pub fn start(own: &Own, folder: &Path) -> anyhow::Result<Self> {
        let mut stores = Self {
            stores: Vec::new(),
            flags: Vec::new(),
        };
        if own.stack != Stack::Embedded {
            stores.redis(own, folder)?;
        }
        if own.stack == Stack::RedisPostgres {
            stores.postgres(own, folder)?;
        }
        Ok(stores)
    }

    fn redis(&mut self, own: &Own, folder: &Path) -> anyhow::Result<()> {
        let folder = folder.join("redis");
        std::fs::create_dir(&folder)?;
        let (port, pid_file) = (free_port()?, folder.join("pid"));
        let fsync = match own.ack {
            Some(Ack::Memory) => "everysec",
            _ => "always",
        };
        let port_word = port.to_string();
        let settings = [
            ["--port", &port_word],
            ["--bind", "127.0.0.1"],
            ["--appendonly", "yes"],
            ["--appendfsync", fsync],
            ["--maxmemory-policy", "noeviction"],
            ["--save", ""],
        ];
        let mut words: Vec<OsString> = vec![own.redis_program.clone().into()];
        words.extend(settings.iter().flatten().map(OsString::from));
        words.extend(["--dir".into(), folder.clone().into()]);
        words.extend(["--pidfile".into(), pid_file.clone().into()]);
        let shell = spawn(&words, "TERM", &folder)?;
        self.stores.push(Store {
            name: "redis",
            shell,
            pid_file,
        });
        self.wait(&folder, |store| {
            is_process(port, store.pid()?).then_some(())
        })?;
        let hot = format!("redis://127.0.0.1:{port}");
        self.flags.extend(["--hot".to_owned(), hot]);
        if own.ack.is_some() {
            self.flags.extend(["--ack".to_owned(), own.ack_name()]);
        }
        Ok(())
    }

    fn postgres(&mut self, own: &Own, folder: &Path) -> anyhow::Result<()> {
        let programs = match &own.postgres_programs {
            Some(folder) => folder.clone(),
            None => newest_programs(Path::new(DEBIAN))?,
        };
        let folder = folder.join("postgres");
        std::fs::create_dir(&folder)?;
        // It refuses to run as root.
        let as_whom: &[&str] = match is_root() {
            true => {
                run(Command::new("chown").arg("nobody").arg(&folder))?;
                &[
                    "setpriv",
                    "--reuid=nobody",
                    "--regid=65534",
                    "--clear-groups",
                ]
            }
            false => &[],
        };
        let words = |program: &str| -> Vec<OsString> {
            let mut words: Vec<OsString> = as_whom.iter().map(OsString::from).collect();
            words.push(programs.join(program).into());
            words
        };
        let data = folder.join("data");
        let made = words("initdb");
        let user = [
            "--auth=trust",
            "--username=red",
            "--encoding=UTF8",
            "--locale=C",
        ];
        let mut initdb = Command::new(&made[0]);
        run(initdb
            .current_dir(&folder)
            .args(&made[1..])
            .args(user)
            .arg("--pgdata")
            .arg(&data))?;

        let port = free_port()?.to_string();
        let mut server = words("postgres");
        server.extend([
            "-D".into(),
            data.clone().into(),
            "-k".into(),
            folder.clone().into(),
        ]);
        server
            .extend(["-h", "127.0.0.1", "-p", &port, "-c", "max_wal_size=8GB"].map(OsString::from));
        let shell = spawn(&server, "INT", &folder)?;
        self.stores.push(Store {
            name: "postgres",
            shell,
            pid_file: data.join("postmaster.pid"),
        });
        self.wait(&folder, |_| {
            // By the socket in its own folder: nobody else can be there.
            let mut create = Command::new(programs.join("createdb"));
            create.arg("-h").arg(&folder);
            run(create.args(["-p", &port, "-U", "red", "red_envelope"])).ok()
        })?;
        let ledger = format!("postgresql://red@127.0.0.1:{port}/red_envelope");
        self.flags.extend(["--ledger".to_owned(), ledger]);
        Ok(())
    }

    /// Until the store that was started last answers.
    fn wait(
        &mut self,
        folder: &Path,
        answers: impl Fn(&Store) -> Option<()>,
    ) -> anyhow::Result<()> {
        let store = self.stores.last_mut().context("no store was started")?;
        let log = folder.join("log");
        let began = Instant::now();
        loop {
            if let Some(status) = store.shell.try_wait()? {
                bail!("{} ended with {status}: see {}", store.name, log.display());
            }
            if answers(store).is_some() {
                return Ok(());
            }
            ensure!(
                began.elapsed() < STEP_MAX,
                "{} gave no answer within {STEP_MAX:?}: see {}",
                store.name,
                log.display()
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The process of each store, whose children belong to it.
    pub fn processes(&self) -> impl Iterator<Item = Process> {
        self.stores.iter().filter_map(|store| {
            Some(Process {
                name: store.name,
                pid: store.pid()?,
                with_children: true,
            })
        })
    }

    /// Ends the stores, the last one first.
    pub fn stop(mut self) -> anyhow::Result<()> {
        while let Some(mut store) = self.stores.pop() {
            ensure!(
                store.has_ended(),
                "{} did not end within {STEP_MAX:?}",
                store.name
            );
        }
        Ok(())
    }
}

impl Store {
    fn pid(&self) -> Option<u32> {
        let text = std::fs::read_to_string(&self.pid_file).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// Ends it, and waits for that.
    fn has_ended(&mut self) -> bool {
        drop(self.shell.stdin.take());
        let began = Instant::now();
        while began.elapsed() < STEP_MAX {
            if !matches!(self.shell.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        false
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // After a `stop` it has. One that can't end now does it later: nobody holds the pipe any more.
        let _late = self.has_ended();
    }
}

/// Runs the rest of its words until they end or its input does, and then ends them by the signal. The
/// input ends with the process that holds it, however that ends; a terminal that hangs up ends the shell
/// and not who waits for the input. Who has ended by itself is signalled no more.
const WHILE_INPUT_LASTS: &str = r#"exec 3<&0
signal=$1
shift
"$@" </dev/null &
p=$!
(trap '' HUP INT TERM QUIT; cat <&3 >/dev/null; kill -$signal $p) &
w=$!
wait $p
ended=$?
kill -KILL $w
exit $ended"#;

fn spawn(words: &[OsString], signal: &str, folder: &Path) -> anyhow::Result<Child> {
    let log = std::fs::File::create(folder.join("log"))?;
    Command::new("sh")
        .args(["-c", WHILE_INPUT_LASTS, "sh", signal])
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot run sh")
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_owned();
    let ended = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let told = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        ended.status.success(),
        "{}: {}",
        program.display(),
        told.trim()
    );
    Ok(())
}

fn is_root() -> bool {
    let asked = Command::new("id").arg("-u").output();
    asked.is_ok_and(|answer| answer.stdout.starts_with(b"0\n"))
}

/// Whether the Redis at a port is this process: another one may have taken the port meanwhile.
fn is_process(port: u16, pid: u32) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.write_all(b"INFO server\r\nQUIT\r\n")?;
        let mut told = String::new();
        stream.read_to_string(&mut told)?;
        Ok(told)
    };
    let named = format!("process_id:{pid}");
    ask().is_ok_and(|told| told.lines().any(|line| line == named))
}

fn free_port() -> anyhow::Result<u16> {
    for _ in 0..PORTS.len() {
        let port = rand::rng().random_range(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port of {PORTS:?} is free on loopback")
}

/// The programs of the newest release under `all` that the server takes.
fn newest_programs(all: &Path) -> anyhow::Result<PathBuf> {
    let releases = std::fs::read_dir(all).into_iter().flatten().flatten();
    let newest = releases
        .filter_map(|release| release.file_name().to_str()?.parse::<u32>().ok())
        .filter(|release| *release >= POSTGRES_MIN)
        .max();
    let newest = newest.with_context(|| {
        format!(
            "there is no PostgreSQL {POSTGRES_MIN} or later in {}: install it, or name the folder of its \
             programs with --postgres-programs",
            all.display()
        )
    })?;
    Ok(all.join(newest.to_string()).join("bin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_release_that_is_taken_is_found_and_none_is_told() {
        let folder = std::env::temp_dir().join(format!("loadtest-stack-{}", std::process::id()));
        for release in ["9.6", "14", "15", "17", "common"] {
            std::fs::create_dir_all(folder.join(release)).unwrap();
        }
        assert_eq!(newest_programs(&folder).unwrap(), folder.join("17/bin"));
        std::fs::remove_dir_all(folder.join("17")).unwrap();
        std::fs::remove_dir_all(folder.join("15")).unwrap();
        let none = newest_programs(&folder).unwrap_err().to_string();
        assert!(none.contains("--postgres-programs"), "{none}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
