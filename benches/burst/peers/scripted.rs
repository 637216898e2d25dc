//! `lua`: one call of a script a grab, on a connection of a pool.

use anyhow::bail;
use deadpool_redis::Pool;

use crate::frame::{Answer, Peer};
use crate::pooled::{Keys, pool, share};

/// The commands of `pooled::take` in one call, which nothing comes between.
const GRAB: &str = "
local held = redis.call('HGET', KEYS[2], ARGV[1])
if held then return {1, held} end
local share = redis.call('LPOP', KEYS[1])
if not share then return {2, ''} end
redis.call('HSET', KEYS[2], ARGV[1], share)
redis.call('LPUSH', KEYS[3], ARGV[1] .. ',' .. share)
return {0, share}";

/// The design.
pub struct Scripted {
    pool: Pool,
    sha: String,
}

impl Scripted {
    /// On the Redis at `url`.
    pub async fn new(url: &str) -> anyhow::Result<Self> {
        let pool = pool(url)?;
        let sha = load(&pool, GRAB).await?;
        Ok(Self { pool, sha })
    }
}

impl Peer for Scripted {
    async fn grab(&self, envelope: &str, grabber: &str) -> anyhow::Result<Answer> {
        let keys = Keys::of(envelope);
        let mut connection = self.pool.get().await?;
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.sha).arg(3);
        call.arg(&keys.shares).arg(&keys.grabs).arg(&keys.outbox);
        let told = call.arg(grabber).query_async(&mut connection).await?;
        let (code, kept): (i64, String) = told;
        Ok(match code {
            0 => Answer::Won(share(&kept)?),
            1 => Answer::AlreadyGrabbed(share(&kept)?),
            2 => Answer::Empty,
            _ => bail!("the script has no code {code}"),
        })
    }
}

/// Loads a script; answers its name.
pub async fn load(pool: &Pool, script: &str) -> anyhow::Result<String> {
    let mut connection = pool.get().await?;
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(script);
    Ok(load.query_async(&mut connection).await?)
}
