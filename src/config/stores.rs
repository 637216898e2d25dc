//! `[hot]`, `[redis]` and `[ledger]`: where envelopes and books are kept, and how safely.
//!
//! # Not here
//! Whether the server behind the address keeps what the level promises: the hot store asks it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::role::Role;
use super::{ConfigError, error};
use crate::domain::ack::AckLevel;
use crate::domain::id::PartitionCount;
use crate::domain::money::{Currencies, Currency, MoneyError, checked_amount};
use crate::domain::split::SHARE_COUNT_MAX;

/// The port of an address that names none.
const REDIS_PORT: u16 = 6_379;
/// Bytes of an address: a host name has 253 at the most, a password far fewer than the rest.
const URL_BYTES_MAX: usize = 2_048;

/// `[hot]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hot {
    /// Where shares are grabbed.
    pub url: HotUrl,
    /// The level that was asked for by name.
    pub ack: AskedAck,
    /// Redis only: a number that [`Hot::check`] has seen.
    partitions: u32,
    /// Redis only: envelopes with more shares are dealt to several partitions; 0: none is.
    pub stripe_above_shares: u32,
}

/// `[redis]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// For the answer to a command.
    pub response_timeout_ms: u64,
    /// For a connection.
    pub connect_timeout_ms: u64,
    /// For the acknowledgement of sent bytes by the other host.
    pub user_timeout_ms: u64,
}

/// `[ledger]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Books {
    /// Where the books are kept.
    pub url: BooksUrl,
    /// Code → minor units that are made good of a tenant in any 24 hours.
    make_good_max: BTreeMap<String, i64>,
    /// Records of each tenant and currency that are.
    pub make_good_records_max: u32,
}

/// Where shares are grabbed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum HotUrl {
    /// In the data folder.
    Embedded,
    /// In Redis or Valkey.
    Redis(RedisUrl),
}

/// The address of a Redis, which may hold a password: it is never printed with it.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

/// Where the books are kept.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum BooksUrl {
    /// In the data folder.
    Sqlite,
    /// In PostgreSQL.
    Postgres(PostgresUrl),
}

/// The address of a PostgreSQL, which may hold a password: it is never printed with it.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl(String);

/// The level that was asked for; `None`: the one that is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AskedAck(pub Option<AckLevel>);

impl Hot {
    /// How many partitions Redis is divided into.
    pub fn partitions(&self) -> PartitionCount {
        let count = u16::try_from(self.partitions).ok();
        count
            .and_then(PartitionCount::new)
            .expect("the range was checked when the configuration was loaded")
    }

    /// Key, value, smallest, largest.
    pub(super) fn ranges(&self) -> [(&'static str, u64, u64, u64); 2] {
        let max = u64::from(PartitionCount::MAX);
        let above = u64::from(self.stripe_above_shares);
        [
            ("hot.partitions", u64::from(self.partitions), 1, max),
            ("hot.stripe_above_shares", above, 0, SHARE_COUNT_MAX.into()),
        ]
    }

    /// What can only be judged when all of it is known.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match (&self.url, self.ack.0) {
            (
                HotUrl::Embedded,
                Some(level @ (AckLevel::Memory | AckLevel::Fsync | AckLevel::Ledger)),
            ) => error(format!(
                "hot.ack is \"{level}\", a level of Redis, but hot.url is \"embedded\", which \
                     has its own level: every grab is synced to disk before it is acknowledged. \
                     Leave hot.ack out, or set hot.url to a redis://… address"
            )),
            (HotUrl::Redis(_), Some(AckLevel::Embedded)) => error(
                "hot.ack is \"embedded\", the level of the embedded store, but hot.url is a \
                 Redis. Leave hot.ack out to have the level found out, or write \"fsync\", \
                 \"ledger\" or \"memory\"",
            ),
            _ => Ok(()),
        }
    }
}

impl Redis {
    /// Key, value, smallest, largest.
    pub(super) fn ranges(&self) -> [(&'static str, u64, u64, u64); 3] {
        let (response, connect) = (self.response_timeout_ms, self.connect_timeout_ms);
        [
            ("redis.response_timeout_ms", response, 10, 60_000),
            ("redis.connect_timeout_ms", connect, 10, 60_000),
            ("redis.user_timeout_ms", self.user_timeout_ms, 100, 600_000),
        ]
    }
}

impl HotUrl {
    /// As a flag, a variable or a file has it.
    ///
    /// # Errors
    /// Neither "embedded" nor an address of Redis. The sentence never holds the text, which may
    /// hold a password.
    pub fn read(text: &str) -> Result<Self, ConfigError> {
        if text == "embedded" {
            return Ok(Self::Embedded);
        }
        RedisUrl::read(text).map(Self::Redis)
    }
}

impl RedisUrl {
    fn read(text: &str) -> Result<Self, ConfigError> {
        let Some(rest) = text.strip_prefix("redis://") else {
            return error(match text.split_once("://") {
                Some(("rediss" | "valkeys", _)) => {
                    "hot.url asks for TLS, which connections to Redis don't speak yet: use \
                     redis:// on a network that nobody else can read"
                }
                Some(("redis-sentinel" | "sentinel" | "redis-cluster", _)) => {
                    "hot.url names Sentinels or a cluster, which are not served yet: name one \
                     Redis, as redis://host:6379"
                }
                Some(("valkey", _)) => {
                    "hot.url begins with valkey://: write redis://, Valkey speaks the same"
                }
                _ => {
                    "hot.url must be \"embedded\" or an address such as \
                     redis://user:password@host:6379/0"
                }
            });
        };
        if text.len() > URL_BYTES_MAX {
            return error(format!("hot.url is longer than {URL_BYTES_MAX} bytes"));
        }
        let wrong = |what: &str| {
            error(format!(
                "hot.url: {what}; an address looks like redis://user:password@host:6379/0"
            ))
        };
        if text.contains(['?', '#']) || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return wrong(
                "spaces, ? and # have no place in it (in a password write %20, %3F, %23)",
            );
        }
        let (person, place) = match rest.rsplit_once('@') {
            Some((person, place)) => (Some(person), place),
            None => (None, rest),
        };
        if person.is_some_and(|p| p.contains('/') || !is_percent_encoded(p)) {
            return wrong("in a user or a password write / as %2F and % as %25");
        }
        let (host, database) = place.split_once('/').unwrap_or((place, ""));
        if !database.is_empty() && database.parse::<u16>().is_err() {
            return wrong("what follows the / is the number of a database");
        }
        if !matches!(database, "" | "0") {
            return wrong("only database 0 is served: give the service a Redis of its own");
        }
        let Some((host, port)) = host_and_port(host) else {
            return wrong("the host or the port is missing or wrong");
        };
        let person = person.map(|p| format!("{p}@")).unwrap_or_default();
        Ok(Self(format!("redis://{person}{host}:{port}/0")))
    }

    /// The whole of it, for whoever connects, and for nobody who prints.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Whether each % is followed by two hexadecimal digits.
fn is_percent_encoded(text: &str) -> bool {
    let mut parts = text.split('%');
    let _before_the_first = parts.next();
    parts.all(|part| {
        let digits = part.as_bytes().get(..2);
        digits.is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    })
}

/// `host`, `host:port`, `[::1]:port`.
fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let behind_host = match text.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at(behind_host);
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().ok()?,
        None if rest.is_empty() => REDIS_PORT,
        None => return None,
    };
    (!host.is_empty() && port != 0).then_some((host, port))
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.rsplit_once('@') {
            Some((_, place)) => write!(f, "redis://***@{place}"),
            None => f.write_str(&self.0),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl BooksUrl {
    /// As a flag, a variable or a file has it.
    ///
    /// # Errors
    /// Anything but "sqlite". The sentence never holds the text, which may hold a password.
    pub fn read(text: &str) -> Result<Self, ConfigError> {
        match text {
            "sqlite" => Ok(Self::Sqlite),
            _ => PostgresUrl::read(text).map(Self::Postgres),
        }
    }
}

impl Books {
    /// What is made good of a tenant in any 24 hours, by currency.
    ///
    /// # Errors
    /// A currency that is unknown, or an amount that is none.
    pub fn make_good_max(
        &self,
        currencies: &Currencies,
    ) -> Result<BTreeMap<Currency, i64>, ConfigError> {
        let cap = |(code, minor): (&String, &i64)| -> Result<_, MoneyError> {
            Ok((currencies.find(code)?, checked_amount(*minor)?))
        };
        let caps: Result<_, MoneyError> = self.make_good_max.iter().map(cap).collect();
        caps.map_err(|why| ConfigError(format!("ledger.make_good_max: {why}")))
    }

    /// What can only be judged beside the hot store: an embedded one is in one process, and so are
    /// its books.
    pub(super) fn check(&self, hot: &Hot, role: Role) -> Result<(), ConfigError> {
        match (&self.url, &hot.url) {
            (BooksUrl::Postgres(_), HotUrl::Embedded) => error(
                "ledger.url is a PostgreSQL, but hot.url is \"embedded\", whose books are in the \
                 data folder: leave ledger.url out, or set hot.url to a redis://… address",
            ),
            (BooksUrl::Sqlite, _) if role != Role::All => error(
                "process.role divides the work among processes, but ledger.url is \"sqlite\", whose \
                 books one process has: leave process.role out, or set ledger.url to a \
                 postgresql://… address",
            ),
            _ => Ok(()),
        }
    }
}

impl PostgresUrl {
    fn read(text: &str) -> Result<Self, ConfigError> {
        let schemes = ["postgresql://", "postgres://"];
        if !schemes.iter().any(|scheme| text.starts_with(scheme)) {
            return error(
                "ledger.url must be \"sqlite\" or an address such as \
                 postgresql://user:password@host:5432/database",
            );
        }
        if text.len() > URL_BYTES_MAX {
            return error(format!("ledger.url is longer than {URL_BYTES_MAX} bytes"));
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return error("ledger.url: spaces have no place in it (in a password write %20)");
        }
        Ok(Self(text.to_owned()))
    }

    /// The whole of it, for whoever connects, and for nobody who prints.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PostgresUrl {
    /// What follows a `?` may hold a password too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.0.split('?').next().unwrap_or_default();
        let place = place.split_once("://").map_or(place, |(_, place)| place);
        match place.rsplit_once('@') {
            Some((_, place)) => write!(f, "postgresql://***@{place}"),
            None => write!(f, "postgresql://{place}"),
        }
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl AskedAck {
    /// As a flag, a variable or a file has it.
    ///
    /// # Errors
    /// No level, or one that is not served yet.
    pub fn read(text: &str) -> Result<Self, ConfigError> {
        Ok(Self(match text {
            "" => None,
            "embedded" => Some(AckLevel::Embedded),
            "memory" => Some(AckLevel::Memory),
            "fsync" => Some(AckLevel::Fsync),
            "ledger" => Some(AckLevel::Ledger),
            "replicated" => {
                return error(format!(
                    "hot.ack \"{text}\" is not served yet; write \"fsync\", \"ledger\" or \"memory\", \
                     or leave it out to have the level found out"
                ));
            }
            other => {
                return error(format!(
                    "hot.ack must be \"fsync\", \"ledger\" or \"memory\", or \"\" to have the level \
                     found out, not {other:?}"
                ));
            }
        }))
    }
}

/// Reads the settings of this file that are more than text, for a sentence of their own.
pub(super) fn read(key: &str, text: &str) -> Result<(), ConfigError> {
    match key {
        "hot.url" => HotUrl::read(text).map(drop),
        "hot.ack" => AskedAck::read(text).map(drop),
        "ledger.url" => BooksUrl::read(text).map(drop),
        _ => Ok(()),
    }
}

impl TryFrom<String> for HotUrl {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        Self::read(&text)
    }
}

impl TryFrom<String> for BooksUrl {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        Self::read(&text)
    }
}

impl TryFrom<String> for AskedAck {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        Self::read(&text)
    }
}

#[cfg(test)]
mod tests;
