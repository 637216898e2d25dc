//! `lock`: whoever holds the envelope's lock in Redis does the commands of `pooled`.
//!
//! *Bounds.* A lock holds for [`HELD_MS_MAX`], so that one whose holder died is free again. Who finds it taken
//! gives the connection back, rests for up to [`REST_MAX`] and tries again, for [`WAIT_MAX`] in all, as long as
//! a grab may take on our server; then the grab is turned away.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use deadpool_redis::{Connection, Pool};

use crate::frame::{Answer, Peer};
use crate::pooled::{Keys, pool, take};
use crate::scripted::load;

/// A hundred times what the commands take on a busy machine.
const HELD_MS_MAX: u32 = 2_000;
/// The first rest; doubled each time.
const REST_MIN: Duration = Duration::from_millis(1);
/// The longest: with 256 that wait, somebody looks eight times a millisecond.
const REST_MAX: Duration = Duration::from_millis(32);
/// Of one grab.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Frees the lock, unless it has become somebody else's.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// The design.
pub struct Locked {
    pool: Pool,
    release_sha: String,
}

impl Locked {
    /// On the Redis at `url`.
    pub async fn new(url: &str) -> anyhow::Result<Self> {
        let pool = pool(url)?;
        let release_sha = load(&pool, RELEASE).await?;
        Ok(Self { pool, release_sha })
    }

    async fn release(
        &self,
        connection: &mut Connection,
        lock: &str,
        token: u64,
    ) -> anyhow::Result<()> {
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.release_sha).arg(1).arg(lock).arg(token);
        let freed: i64 = call.query_async(connection).await?;
        // Then another one may have grabbed beside this one: the figures would be of no lock.
        (freed == 1)
            .then_some(())
            .context("the lock ran out while it was held")
    }
}

impl Peer for Locked {
    async fn grab(&self, envelope: &str, grabber: &str) -> anyhow::Result<Answer> {
        let (keys, lock) = (Keys::of(envelope), format!("peer:{envelope}:lock"));
        let token: u64 = rand::random();
        let (began, mut rest) = (Instant::now(), REST_MIN);
        while began.elapsed() < WAIT_MAX {
            let mut connection = self.pool.get().await?;
            let mut set = redis::cmd("SET");
            set.arg(&lock).arg(token);
            set.arg("NX").arg("PX").arg(HELD_MS_MAX);
            let is_ours: Option<String> = set.query_async(&mut connection).await?;
            if is_ours.is_some() {
                let answer = take(&mut connection, &keys, grabber).await;
                self.release(&mut connection, &lock, token).await?;
                return answer;
            }
            drop(connection);
            // Half of a rest is chance, so that those who failed together don't come back together.
            tokio::time::sleep(rest.mul_f64(rand::random_range(0.5..1.0))).await;
            rest = (rest * 2).min(REST_MAX);
        }
        Ok(Answer::TurnedAway)
    }
}
