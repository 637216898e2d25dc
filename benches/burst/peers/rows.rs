//! `row_lock`: a transaction a grab, which locks the envelope's row in PostgreSQL.
//!
//! | step | statement |
//! |---|---|
//! | 1 | SELECT … FOR UPDATE on the envelope: everybody else who grabs from it waits |
//! | 2 | INSERT the claim, unless the grabber has one |
//! | 3 | UPDATE what the envelope has given away |

use deadpool_postgres::{Manager, Pool, Runtime};
use tokio_postgres::NoTls;

use crate::CONNECTIONS_MAX;
use crate::frame::{Answer, Peer, Share};

/// The design.
pub struct Rows(Pool);

impl Rows {
    /// On the PostgreSQL at `url`, whose tables are there.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let pool = Pool::builder(Manager::new(url.parse()?, NoTls))
            .max_size(CONNECTIONS_MAX)
            .runtime(Runtime::Tokio1);
        Ok(Self(pool.build()?))
    }
}

impl Peer for Rows {
    async fn grab(&self, envelope: &str, grabber: &str) -> anyhow::Result<Answer> {
        let mut client = self.0.get().await?;
        let tx = client.transaction().await?;
        let lock = "-- peers.lock
             SELECT taken, share_count, share_minor FROM peer_envelope WHERE id = $1 FOR UPDATE";
        let lock = tx.prepare_cached(lock).await?;
        let row = tx.query_one(&lock, &[&envelope]).await?;
        let (taken, share_count, minor): (i32, i32, i64) = (row.get(0), row.get(1), row.get(2));
        let claim = "-- peers.claim
             INSERT INTO peer_claim (envelope, share, grabber, minor) VALUES ($1, $2, $3, $4)
             ON CONFLICT (envelope, grabber) DO NOTHING";
        let claim = tx.prepare_cached(claim).await?;
        let claimed = taken < share_count
            && tx
                .execute(&claim, &[&envelope, &taken, &grabber, &minor])
                .await?
                == 1;
        if !claimed {
            let held = "-- peers.held
                 SELECT share, minor FROM peer_claim WHERE envelope = $1 AND grabber = $2";
            let held = tx.prepare_cached(held).await?;
            let held = tx.query_opt(&held, &[&envelope, &grabber]).await?;
            return match held {
                Some(row) => Ok(Answer::AlreadyGrabbed(share(row.get(0), row.get(1))?)),
                None => Ok(Answer::Empty),
            };
        }
        let next = "-- peers.next
             UPDATE peer_envelope SET taken = taken + 1 WHERE id = $1";
        tx.execute(&tx.prepare_cached(next).await?, &[&envelope])
            .await?;
        tx.commit().await?;
        Ok(Answer::Won(share(taken, minor)?))
    }
}

fn share(number: i32, minor: i64) -> anyhow::Result<Share> {
    let number = number.try_into()?;
    Ok(Share { number, minor })
}
