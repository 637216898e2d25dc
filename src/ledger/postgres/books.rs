//! The connections, and how work is done on them: read, or written in one transaction.

use std::sync::Arc;

use deadpool_postgres::Pool;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::domain::fairness::SealKeys;
use crate::domain::id::UnixMs;
use crate::ledger::{Entropy, Fund, Funded, LedgerError};

use super::sql::Fault;
use super::{fund, sql};

/// What a call has at hand besides its transaction.
pub(super) struct Desk {
    pub clock: Arc<dyn Clock>,
    pub keys: SealKeys,
    pub rng: Mutex<Entropy>,
}

impl Desk {
    pub fn now(&self) -> UnixMs {
        self.clock.now()
    }
}

/// The connections, and what calls have at hand.
pub(super) struct Books {
    pub pool: Pool,
    pub desk: Desk,
    pub trouble: Mutex<Option<String>>,
}

/// Runs `$work` in a transaction and commits it; again, where PostgreSQL says so.
macro_rules! write {
    ($books:expr, |$tx:ident| $work:expr) => {{
        let mut tries = 1;
        let done = loop {
            let attempt = async {
                let mut client = $books.pool.get().await.map_err(Fault::from)?;
                let $tx = client.transaction().await.map_err(Fault::from)?;
                let done = $work.await?;
                fail::fail_point!("ledger::before_commit");
                $tx.commit().await.map_err(Fault::from)?;
                fail::fail_point!("ledger::after_commit");
                Ok::<_, Fault>(done)
            };
            match attempt.await {
                Ok(done) => break Ok(done),
                Err(Fault::Again(why)) if tries < sql::TRIES_MAX => {
                    tracing::debug!(why, tries, "a transaction is tried again");
                    tries += 1;
                }
                Err(fault) => break Err(LedgerError::from(fault)),
            }
        };
        $books.noted(done)
    }};
}

/// Runs `$work` on a connection.
macro_rules! read {
    ($books:expr, |$db:ident| $work:expr) => {{
        let attempt = async {
            let client = $books.pool.get().await.map_err(Fault::from)?;
            let $db = &client;
            $work.await
        };
        $books.noted(attempt.await.map_err(LedgerError::from))
    }};
}

impl Books {
    /// Remembers whether PostgreSQL could be reached, for readiness.
    pub fn noted<T>(&self, done: Result<T, LedgerError>) -> Result<T, LedgerError> {
        let trouble = match &done {
            Err(LedgerError::Unavailable(why)) => Some(why.clone()),
            _ => None,
        };
        let mut noted = self.trouble.lock();
        if *noted != trouble {
            match &trouble {
                Some(why) => tracing::warn!(why, "PostgreSQL does not answer as it should"),
                None => tracing::info!("PostgreSQL answers again"),
            }
            *noted = trouble;
        }
        done
    }

    pub async fn fund(
        &self,
        funds: &[Fund],
    ) -> Result<Vec<Result<Funded, LedgerError>>, LedgerError> {
        write!(self, |tx| fund::fund(&tx, &self.desk, funds))
    }
}

pub(super) use {read, write};
