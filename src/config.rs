//! Flags, environment and file become one checked configuration before any port is bound.
//!
//! # Shape
//! | part | what |
//! |---|---|
//! | `config.default.toml` | the manual and the defaults: the only list of settings |
//! | `settings` | that list as the program reads it; names of flags and variables follow from it |
//! | [`Config::load`] | flags > environment > file > default, then one check of everything |
//! | `role` | what the process does among others |
//! | `stores` | where envelopes and books are kept, and how safely |
//! | `folder`, `keys` | the data folder: made, locked, with the keys in it |
//!
//! # Bounds
//! Every number of the configuration is checked against the range that its field names.
//!
//! # Not here
//! Sockets and signals: `main` owns them.

pub mod folder;
pub mod keys;
pub mod open_files;
pub mod role;
mod settings;
pub mod stores;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::domain::money::Currencies;

pub use settings::{Setting, all as settings};

/// The manual: every setting with its default and a comment.
pub const DEFAULTS: &str = include_str!("config.default.toml");

/// The prefix of our environment variables.
const PREFIX: &str = "RED_ENVELOPE_";

/// Variables of the client commands and of tests, which are no settings of the server.
const OTHER_VARIABLES: [&str; 11] = [
    "CONFIG",
    "SERVER",
    "ADMIN",
    "TENANT",
    "TEST_CLOCK",
    "TEST_ABORT_AT",
    "REDIS",
    "REDIS_8",
    "VALKEY_9",
    "POSTGRES",
    "POSTGRES_18",
];

/// Bytes of a configuration file: far above what every setting with its comment takes (4 KB).
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The longest that any interval may be set to.
const DAY_MS: u64 = 86_400_000;

/// A sentence that says what to change. The process ends with exit code 64.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

fn error<T>(sentence: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(sentence.into()))
}

/// What the environment says to this program, and nothing else of it.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// Output goes to a person who did not forbid colours.
    pub colours: bool,
    /// Diagnostics go to a terminal.
    pub terminal: bool,
}

impl Environment {
    /// Reads it, once, at the start of `main`.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the environment"
    )]
    pub fn read() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(PREFIX) || name.starts_with("FAILPOINTS"))
            .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
            .collect();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self {
            variables,
            colours: !no_colour && std::io::stdout().is_terminal(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// For tests and for callers that have no environment.
    pub fn of<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            variables: variables.into_iter().map(own).collect(),
            ..Self::default()
        }
    }

    /// A variable by its name without the prefix; an empty one counts as unset.
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(&format!("{PREFIX}{name}"))?;
        Some(value.as_str()).filter(|v| !v.is_empty())
    }

    /// The file of the moved clock, in a build that has one.
    ///
    /// # Errors
    /// Variables of tests in a build that ignores them: better not to start than to be believed
    /// to obey.
    pub fn test_clock(&self) -> Result<Option<PathBuf>, ConfigError> {
        let of_tests = |name: &&String| {
            name.starts_with("RED_ENVELOPE_TEST_") || name.starts_with("FAILPOINTS")
        };
        match self.variables.keys().find(of_tests) {
            Some(name) if cfg!(not(feature = "test-hooks")) => error(format!(
                "{name} is set, which only builds for tests obey (cargo build --features \
                 test-hooks). Unset it to start this one."
            )),
            _ => Ok(self.get("TEST_CLOCK").map(PathBuf::from)),
        }
    }

    /// Variables with our prefix that nobody reads. One that is nearly the name of a setting is an
    /// error; others may belong to whoever started us, such as an orchestrator.
    fn unread(&self) -> Result<Vec<String>, ConfigError> {
        let known = settings();
        let mut unread = Vec::new();
        for name in self.variables.keys() {
            let Some(rest) = name.strip_prefix(PREFIX) else {
                continue;
            };
            let is_known =
                known.iter().any(|s| s.variable() == *name) || OTHER_VARIABLES.contains(&rest);
            if is_known {
                continue;
            }
            let candidates = known.iter().map(Setting::variable);
            if let Some(near) = settings::nearest(name, candidates) {
                return error(format!(
                    "the environment variable {name} is unknown; did you mean {near}?"
                ));
            }
            unread.push(name.clone());
        }
        Ok(unread)
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Where one listener listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataDir {
    /// The data folder.
    pub dir: PathBuf,
    /// The file of the keys; empty: in the data folder.
    keys: PathBuf,
}

impl DataDir {
    /// The file of the keys, where it is not the one in the data folder.
    pub fn keys(&self) -> Option<&std::path::Path> {
        Some(&*self.keys).filter(|path| !path.as_os_str().is_empty())
    }
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// Which lines are told.
    pub level: String,
}

/// `[runtime]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// Threads; 0: one per core, and 2 at the least.
    pub workers: usize,
}

/// `[money]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoneyUnits {
    /// Code → decimals.
    pub units: BTreeMap<String, u8>,
}

/// `[envelope]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeRules {
    /// A sender may grab an own LUCKY envelope.
    pub sender_may_grab: bool,
}

/// `[ready]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// Above it the process is not ready.
    pub unsettled_age_max_ms: i64,
}

/// `[transport]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transport {
    /// Of a gRPC listener in all.
    pub connections_max: usize,
    /// Of one peer address.
    pub connections_per_peer_max: usize,
    /// Calls in flight on one connection.
    pub streams_per_connection_max: u32,
    /// Between two pings.
    pub keepalive_interval_ms: u64,
    /// For the answer to one.
    pub keepalive_timeout_ms: u64,
    /// Before a connection is asked to go.
    pub connection_age_max_ms: u64,
    /// For its last calls.
    pub connection_age_grace_ms: u64,
}

/// `[shutdown]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// For calls in flight and for the last settlement.
    pub drain_max_ms: u64,
}

/// Everything that can be set. `config.default.toml` says what each setting does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Clients.
    pub grpc: Listen,
    /// Operators.
    pub admin: Listen,
    /// Probes.
    pub http: Listen,
    /// Its part of the work.
    pub process: role::Process,
    /// The data folder.
    pub data: DataDir,
    /// Log lines.
    pub log: Log,
    /// Threads.
    pub runtime: Runtime,
    /// Declared units.
    pub money: MoneyUnits,
    /// Where shares are grabbed.
    pub hot: stores::Hot,
    /// Connections to Redis.
    pub redis: stores::Redis,
    /// Where the books are kept.
    pub ledger: stores::Books,
    /// Rules of grabbing.
    pub envelope: EnvelopeRules,
    /// Readiness.
    pub ready: Ready,
    /// Connections.
    pub transport: Transport,
    /// The end.
    pub shutdown: Shutdown,
}

/// Where settings come from besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Key of the setting → text of its flag.
    pub flags: BTreeMap<String, String>,
    /// The file that a flag named.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Environment,
}

impl Config {
    /// One configuration from all sources, checked, and the names of variables with our prefix
    /// that had no effect.
    ///
    /// # Errors
    /// The first thing that is wrong, with what to do about it.
    pub fn load(sources: &Sources) -> Result<(Self, Vec<String>), ConfigError> {
        let unread = sources.environment.unread()?;
        let config = Self::of(sources)?;
        config.check()?;
        Ok((config, unread))
    }

    /// Where the books are kept, whatever the rest says: all that a migration needs.
    ///
    /// # Errors
    /// A setting that can't be read.
    pub fn books(sources: &Sources) -> Result<stores::BooksUrl, ConfigError> {
        Ok(Self::of(sources)?.ledger.url)
    }

    /// From all sources, not checked as a whole.
    fn of(sources: &Sources) -> Result<Self, ConfigError> {
        let mut table = settings::default_table();
        let named = sources.environment.get("CONFIG").map(PathBuf::from);
        if let Some(path) = sources.file.clone().or(named) {
            settings::overlay(&mut table, &read_file(&path)?, &path)?;
        }
        for setting in settings() {
            let name = setting.variable();
            if let Some(text) = sources.environment.get(&name[PREFIX.len()..]) {
                setting.put(&mut table, text, &name)?;
            }
            if let Some(text) = sources.flags.get(&setting.key) {
                setting.put(&mut table, text, &setting.flag())?;
            }
        }
        settings::typed(table)
    }

    /// The currencies that this server accepts.
    ///
    /// # Errors
    /// A unit that can't be declared.
    pub fn currencies(&self) -> Result<Currencies, ConfigError> {
        let units = self.money.units.iter().map(|(code, d)| (code.as_str(), *d));
        Currencies::with_declared(units).map_err(|e| ConfigError(format!("money.units: {e}")))
    }

    /// What can only be judged when all settings are known.
    fn check(&self) -> Result<(), ConfigError> {
        self.check_listeners()?;
        self.ledger.make_good_max(&self.currencies()?)?;
        self.hot.check()?;
        self.ledger.check(&self.hot, self.process.role)?;
        for (key, value, min, max) in self.ranges() {
            if !(min..=max).contains(&value) {
                return error(format!("{key} must be between {min} and {max}"));
            }
        }
        if let Err(why) = crate::telemetry::logs::filter(&self.log.level) {
            return error(format!(
                "log.level {:?} is not understood ({why}); write info, or \
                 info,red_envelope::settle=debug",
                self.log.level
            ));
        }
        Ok(())
    }

    /// Key, value, smallest, largest. A negative number counts as 0, which no duration may be.
    fn ranges(&self) -> Vec<(&'static str, u64, u64, u64)> {
        let transport = &self.transport;
        let ms = |signed: i64| u64::try_from(signed).unwrap_or(0);
        let count = |n: usize| n as u64;
        let per_peer = count(transport.connections_per_peer_max);
        let streams = u64::from(transport.streams_per_connection_max);
        let age_ms = transport.connection_age_max_ms;
        let unsettled_ms = ms(self.ready.unsettled_age_max_ms);
        let mut ranges = vec![
            ("runtime.workers", count(self.runtime.workers), 0, 1_024),
            ("ready.unsettled_age_max_ms", unsettled_ms, 1_000, DAY_MS),
            (
                "transport.connections_max",
                count(transport.connections_max),
                1,
                1_000_000,
            ),
            ("transport.connections_per_peer_max", per_peer, 1, 1_000_000),
            (
                "transport.streams_per_connection_max",
                streams,
                1,
                1_000_000,
            ),
            (
                "transport.keepalive_interval_ms",
                transport.keepalive_interval_ms,
                1_000,
                DAY_MS,
            ),
            (
                "transport.keepalive_timeout_ms",
                transport.keepalive_timeout_ms,
                1_000,
                DAY_MS,
            ),
            (
                "transport.connection_age_max_ms",
                age_ms,
                1_000,
                30 * DAY_MS,
            ),
            (
                "transport.connection_age_grace_ms",
                transport.connection_age_grace_ms,
                1_000,
                DAY_MS,
            ),
            (
                "shutdown.drain_max_ms",
                self.shutdown.drain_max_ms,
                0,
                600_000,
            ),
            ("data.dir", count(self.data.dir.as_os_str().len()), 1, 4_096),
        ];
        ranges.extend(self.hot.ranges());
        ranges.extend(self.redis.ranges());
        ranges
    }

    fn check_listeners(&self) -> Result<(), ConfigError> {
        let listeners = [
            ("grpc.listen", self.grpc.listen),
            ("admin.listen", self.admin.listen),
            ("http.listen", self.http.listen),
        ];
        for (index, (key, address)) in listeners.iter().enumerate() {
            if !address.ip().is_loopback() {
                return error(format!(
                    "{key} is {address}, which others can reach. Callers are not identified yet, \
                     so this server listens on loopback only: use 127.0.0.1:{} and put what \
                     identifies callers in front of it",
                    address.port()
                ));
            }
            let twice = listeners[..index]
                .iter()
                .find(|(_, other)| other == address && address.port() != 0);
            if let Some((other, _)) = twice {
                return error(format!(
                    "{other} and {key} are both {address}; give each listener its own port"
                ));
            }
        }
        Ok(())
    }
}

fn read_file(path: &std::path::Path) -> Result<String, ConfigError> {
    let sentence = |why: String| {
        ConfigError(format!(
            "the configuration file {} can't be read: {why}",
            path.display()
        ))
    };
    let size = std::fs::metadata(path)
        .map_err(|e| sentence(e.to_string()))?
        .len();
    if size > FILE_BYTES_MAX {
        return Err(sentence(format!(
            "it is larger than {FILE_BYTES_MAX} bytes"
        )));
    }
    std::fs::read_to_string(path).map_err(|e| sentence(e.to_string()))
}

#[cfg(test)]
mod tests;
