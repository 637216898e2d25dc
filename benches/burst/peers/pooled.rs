//! `deadpool`: a connection of a pool a grab, and the grab's commands one after the other on it.
//!
//! | key of an envelope | what |
//! |---|---|
//! | `peer:ID:shares` | list of shares as `number,minor`, filled by whoever publishes |
//! | `peer:ID:grabs` | hash: grabber → share |
//! | `peer:ID:outbox` | list of `grabber,number,minor` for the books |
//!
//! *If it crashes here*: a share that was popped and not yet written is lost. Our server keeps it.

use std::time::Duration;

use anyhow::Context as _;
use deadpool_redis::{Connection, Manager, Pool, Runtime};
use redis::{AsyncConnectionConfig, FromRedisValue};

use crate::CONNECTIONS_MAX;
use crate::frame::{Answer, Peer, Share};

/// For the answer to a command: far above what a machine with other work needs.
const RESPONSE_MAX: Duration = Duration::from_secs(5);

/// The pool, as its documentation has it.
pub fn pool(url: &str) -> anyhow::Result<Pool> {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE_MAX));
    let pool = Pool::builder(Manager::new_with_config(url, config)?)
        .max_size(CONNECTIONS_MAX)
        .runtime(Runtime::Tokio1);
    Ok(pool.build()?)
}

/// The names of an envelope's keys.
pub struct Keys {
    /// What is left.
    pub shares: String,
    /// Who has what.
    pub grabs: String,
    /// What the books are owed.
    pub outbox: String,
}

impl Keys {
    /// Of this envelope.
    pub fn of(envelope: &str) -> Self {
        Self {
            shares: format!("peer:{envelope}:shares"),
            grabs: format!("peer:{envelope}:grabs"),
            outbox: format!("peer:{envelope}:outbox"),
        }
    }
}

/// A share as Redis keeps it.
pub fn share(kept: &str) -> anyhow::Result<Share> {
    let (number, minor) = kept.split_once(',').context("a share without a comma")?;
    Ok(Share {
        number: number.parse()?,
        minor: minor.parse()?,
    })
}

/// One command and its answer.
async fn ask<T: FromRedisValue>(
    connection: &mut Connection,
    name: &str,
    words: &[&str],
) -> anyhow::Result<T> {
    Ok(redis::cmd(name).arg(words).query_async(connection).await?)
}

/// Who has a share is told so; else the next one is taken, written down and owed.
pub async fn take(
    connection: &mut Connection,
    keys: &Keys,
    grabber: &str,
) -> anyhow::Result<Answer> {
    let held: Option<String> = ask(connection, "HGET", &[&keys.grabs, grabber]).await?;
    if let Some(held) = held {
        return Ok(Answer::AlreadyGrabbed(share(&held)?));
    }
    let popped: Option<String> = ask(connection, "LPOP", &[&keys.shares]).await?;
    let Some(popped) = popped else {
        return Ok(Answer::Empty);
    };
    let is_first: bool = ask(connection, "HSETNX", &[&keys.grabs, grabber, &popped]).await?;
    if !is_first {
        // The same grabber came twice at once: the other one has a share.
        ask::<i64>(connection, "LPUSH", &[&keys.shares, &popped]).await?;
        let held: String = ask(connection, "HGET", &[&keys.grabs, grabber]).await?;
        return Ok(Answer::AlreadyGrabbed(share(&held)?));
    }
    let owed = format!("{grabber},{popped}");
    ask::<i64>(connection, "LPUSH", &[&keys.outbox, &owed]).await?;
    Ok(Answer::Won(share(&popped)?))
}

/// The design.
pub struct Pooled(Pool);

impl Pooled {
    /// On the Redis at `url`.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        Ok(Self(pool(url)?))
    }
}

impl Peer for Pooled {
    async fn grab(&self, envelope: &str, grabber: &str) -> anyhow::Result<Answer> {
        let mut connection = self.0.get().await?;
        take(&mut connection, &Keys::of(envelope), grabber).await
    }
}
