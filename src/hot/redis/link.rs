//! One multiplexed connection to one server, made again when it broke.
//!
//! # Bounds
//! A command waits [`Timing::response`] for its answer; a connection is tried at most every
//! [`Timing::pause`]; [`COMMANDS_IN_FLIGHT_MAX`] commands wait on it.
//!
//! # Ordering
//! A command is sent once. If its answer is lost its outcome is unknown and the caller is told so:
//! every function may be called again. A connection that lost an answer is not used again, since
//! the answers behind it would wait for a server that may be gone.
//!
//! # Not here
//! What is sent: `core`. Pools: administrative commands use deadpool.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisError,
    Value,
};

use crate::clock;
use crate::hot::HotError;

/// Commands that wait on one connection: what a drain over 1,024 partitions sends at once, and the
/// grabs' calls beside it.
pub const COMMANDS_IN_FLIGHT_MAX: usize = 4_096;

/// How long a link waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For the answer to a command. A call of the library takes below 10 ms; a server that saves
    /// its AOF under load may take a hundred.
    pub response: Duration,
    /// For a connection.
    pub connect: Duration,
    /// For the acknowledgement of sent bytes by the other host: without it a black hole is noticed
    /// after a quarter of an hour.
    pub unacknowledged: Duration,
    /// Between two tries to connect.
    pub pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            response: Duration::from_millis(500),
            connect: Duration::from_millis(1_000),
            unacknowledged: Duration::from_millis(2_000),
            pause: Duration::from_millis(50),
        }
    }
}

/// Why a server's address can't be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadAddress(pub String);

/// How connections to the server at `url` are made, whatever they are for.
///
/// # Errors
/// A URL that is none of Redis'.
pub fn target(
    url: &str,
    timing: Timing,
) -> Result<(ConnectionInfo, AsyncConnectionConfig), BadAddress> {
    let bad = |e: RedisError| BadAddress(e.to_string());
    let keepalive = socket2::TcpKeepalive::new().with_time(timing.unacknowledged);
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(keepalive)
        .set_user_timeout(timing.unacknowledged);
    let target = url
        .into_connection_info()
        .map_err(bad)?
        .set_tcp_settings(tcp);
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(timing.connect))
        .set_response_timeout(Some(timing.response))
        .set_pipeline_buffer_size(COMMANDS_IN_FLIGHT_MAX)
        .set_concurrency_limit(COMMANDS_IN_FLIGHT_MAX);
    Ok((target, config))
}

/// A connection, or the next try at one.
pub struct Link {
    client: Client,
    config: AsyncConnectionConfig,
    timing: Timing,
    open: Arc<Mutex<Option<MultiplexedConnection>>>,
    /// One try at a time; when the last one failed.
    trying: Arc<tokio::sync::Mutex<Option<tokio::time::Instant>>>,
}

impl Link {
    /// To the server at `url`. Nothing is connected yet.
    ///
    /// # Errors
    /// A URL that is none of Redis'.
    pub fn new(url: &str, timing: Timing) -> Result<Self, BadAddress> {
        let (target, config) = target(url, timing)?;
        Ok(Self {
            client: Client::open(target).map_err(|e| BadAddress(e.to_string()))?,
            config,
            timing,
            open: Arc::default(),
            trying: Arc::default(),
        })
    }

    /// The connection, made if there is none.
    pub async fn connection(&self) -> Result<MultiplexedConnection, HotError> {
        if let Some(open) = self.open.lock().clone() {
            return Ok(open);
        }
        // By a task of its own: a caller who is not polled, such as a call on a stream whose client does
        // not read, must not keep the right to try from all others.
        let (client, config) = (self.client.clone(), self.config.clone());
        let (open, trying) = (Arc::clone(&self.open), Arc::clone(&self.trying));
        let pause = self.timing.pause;
        let tried = tokio::spawn(async move {
            let mut failed_at = trying.lock().await;
            if let Some(open) = open.lock().clone() {
                return Ok(open);
            }
            if failed_at.is_some_and(|at| at.elapsed() < pause) {
                return Err(HotError::Unavailable("Redis can't be reached".into()));
            }
            match client
                .get_multiplexed_async_connection_with_config(&config)
                .await
            {
                Ok(connected) => {
                    *failed_at = None;
                    *open.lock() = Some(connected.clone());
                    Ok(connected)
                }
                Err(error) => {
                    *failed_at = Some(clock::timer_now());
                    Err(HotError::Unavailable(format!(
                        "Redis can't be reached: {error}"
                    )))
                }
            }
        });
        let ending = |_| HotError::Unavailable("the process is ending".into());
        tried.await.map_err(ending)?
    }

    /// Sends one command.
    ///
    /// # Errors
    /// See [`failure`] and [`refusal`]; the connection is given up where its answers may be late.
    pub async fn send(&self, command: &Cmd) -> Result<Value, Failure> {
        let mut open = self.connection().await.map_err(Failure::Unreachable)?;
        let sent = open.send_packed_command(command).await;
        match sent.map_err(|error| self.failed(&error))? {
            Value::ServerError(error) => {
                Err(refusal(error.code(), error.details().unwrap_or_default()))
            }
            value => Ok(value),
        }
    }

    /// Sends commands without waiting for one another's answers. An error of one is its answer.
    ///
    /// # Errors
    /// As [`Link::send`], of the connection.
    pub async fn send_all(&self, commands: &Pipeline) -> Result<Vec<Value>, Failure> {
        let mut open = self.connection().await.map_err(Failure::Unreachable)?;
        let count = commands.len();
        let sent = open.send_packed_commands(commands, 0, count).await;
        sent.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &RedisError) -> Failure {
        let failure = failure(error);
        if let Failure::Unreachable(_) = failure {
            *self.open.lock() = None;
        }
        failure
    }
}

/// Why a command has no answer of ours.
#[derive(Debug)]
pub enum Failure {
    /// The outcome is unknown, or nothing was sent.
    Unreachable(HotError),
    /// The server does not have the library.
    NoLibrary,
    /// The server has no memory left for what would take some.
    Full,
    /// The server refused: a right that is missing, a type that is wrong.
    Refused(String),
}

impl From<Failure> for HotError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable(error) => error,
            Failure::NoLibrary => Self::Unavailable("Redis has lost the function library".into()),
            Failure::Full => {
                Self::Unavailable("Redis has no memory left for new shares: raise maxmemory".into())
            }
            Failure::Refused(why) => Self::Unavailable(why),
        }
    }
}

/// What an error of the client means to a caller.
pub fn failure(error: &RedisError) -> Failure {
    let Some(code) = error.code() else {
        return Failure::Unreachable(HotError::Unavailable(format!(
            "Redis did not answer: {error}"
        )));
    };
    refusal(code, error.detail().unwrap_or_default())
}

/// What an error reply of the server means.
pub fn refusal(code: &str, detail: &str) -> Failure {
    if code == "ERR" && detail.starts_with("Function not found") {
        return Failure::NoLibrary;
    }
    if code == "OOM" {
        return Failure::Full;
    }
    Failure::Refused(match code {
        "NOPERM" => format!("the Redis user may not do what the service needs: {detail}"),
        _ => format!("Redis refused: {code} {detail}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caller_who_is_not_polled_keeps_nobody_from_connecting() {
        // Connections to it are made, and nobody says a word.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", silent.local_addr().unwrap());
        let timing = Timing {
            connect: Duration::from_millis(50),
            ..Timing::default()
        };
        let link = Link::new(&url, timing).unwrap();
        let mut stuck = Box::pin(link.connection());
        assert!(futures_util::poll!(stuck.as_mut()).is_pending());
        let other = tokio::time::timeout(Duration::from_secs(30), link.connection()).await;
        assert!(matches!(other, Ok(Err(HotError::Unavailable(_)))));
    }
}
