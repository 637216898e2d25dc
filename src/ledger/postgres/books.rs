//! The connections, and how work is done on them: read, or written in one transaction.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Pool, Transaction};
use parking_lot::{Mutex, RwLock};
use tokio_postgres::{IsolationLevel, Row};

use crate::clock::Clock;
use crate::domain::fairness::SealKeys;
use crate::domain::id::UnixMs;
use crate::ledger::{Entropy, LedgerError, MakeGood, SettleItem, Settled};

use super::known::{Known, Secrets};
use super::settle::{Care, settle};
use super::settlements::Asked;
use super::sql::Fault;
use super::{partitions, sql};

/// What a call has at hand besides its transaction.
pub(super) struct Desk {
    pub clock: Arc<dyn Clock>,
    pub keys: SealKeys,
    pub rng: Mutex<Entropy>,
    pub known: Known,
    pub secrets: Secrets,
    /// How much may be made good.
    pub make_good: RwLock<MakeGood>,
}

impl Desk {
    pub fn now(&self) -> UnixMs {
        self.clock.now()
    }
}

/// The longest try of a call: a server that was stopped, or a host that is gone, must not keep all
/// connections. Its own limits are shorter, but it has to run to keep them.
pub(super) const TRY_WAIT: Duration = Duration::from_secs(20);
/// The same for what reads all tables.
const AUDIT_WAIT: Duration = Duration::from_secs(3_600);

/// The connections, and what calls have at hand.
pub(super) struct Books {
    pub pool: Pool,
    pub desk: Desk,
    /// Why the last call came to no end, if it did not.
    pub trouble: Mutex<Option<String>>,
    /// Why commits may be forgotten: then nothing is written.
    pub forgetful: Mutex<Option<String>>,
}

/// A try that is over when its time is.
pub(super) async fn in_time<T>(
    wait: Duration,
    attempt: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(wait, attempt).await {
        Ok(done) => done,
        Err(_) => Err(Fault::Told(LedgerError::Unavailable(format!(
            "PostgreSQL gave no answer within {} s",
            wait.as_secs()
        )))),
    }
}

/// Runs `$work` in a transaction and commits it; again, where PostgreSQL says so.
macro_rules! write {
    ($books:expr, |$tx:ident| $work:expr) => {{
        let mut tries = 1;
        let done = loop {
            let attempt = async {
                let mut client = $books.pool.get().await.map_err(Fault::from)?;
                let done = async {
                    let $tx = client.transaction().await.map_err(Fault::from)?;
                    let done = $work.await?;
                    fail::fail_point!("ledger::before_commit");
                    $tx.commit().await.map_err(Fault::from)?;
                    fail::fail_point!("ledger::after_commit");
                    Ok::<_, Fault>(done)
                }
                .await;
                if done.as_ref().is_err_and(Fault::is_strange) {
                    // Whatever the connection has still to say, nobody else hears it.
                    drop(deadpool_postgres::Object::take(client));
                }
                done
            };
            if let Err(why) = $books.keeps() {
                break Err(LedgerError::Unavailable(why));
            }
            match $crate::ledger::postgres::books::in_time(
                $crate::ledger::postgres::books::TRY_WAIT,
                attempt,
            )
            .await
            {
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
            let done = $work.await;
            if done.as_ref().is_err_and(Fault::is_strange) {
                drop(deadpool_postgres::Object::take(client));
            }
            done
        };
        $books.noted(
            $crate::ledger::postgres::books::in_time(
                $crate::ledger::postgres::books::TRY_WAIT,
                attempt,
            )
            .await
            .map_err(LedgerError::from),
        )
    }};
}

/// What a server must be set to so that it keeps what it has committed. Each answer is null where it is,
/// else what to change.
pub(super) const SETTINGS: &str = "-- ledger.settings
    SELECT
        CASE WHEN current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')
            THEN 'synchronous_commit is ' || current_setting('synchronous_commit')
                || ': set it to on (or remote_apply) for this user and database' END,
        CASE WHEN current_setting('fsync') <> 'on' THEN 'fsync is off: set it to on' END,
        CASE WHEN current_setting('full_page_writes') <> 'on'
            THEN 'full_page_writes is off: set it to on' END,
        CASE WHEN pg_is_in_recovery()
            THEN 'it is a standby: name the primary in ledger.url' END";

/// Why commits may be forgotten, or can't be made, by the answer of [`SETTINGS`].
pub(super) fn why_forgetful(row: &Row) -> Result<Option<String>, tokio_postgres::Error> {
    let mut reasons = Vec::<String>::new();
    for column in 0..row.len() {
        reasons.extend(row.try_get::<_, Option<String>>(column)?);
    }
    let why = || format!("PostgreSQL can't keep books: {}", reasons.join("; "));
    Ok((!reasons.is_empty()).then(why))
}

impl Books {
    /// Whether what is committed is kept.
    pub fn keeps(&self) -> Result<(), String> {
        self.forgetful.lock().clone().map_or(Ok(()), Err)
    }

    /// Looks whether it still is.
    pub async fn look(&self) -> Result<(), LedgerError> {
        let found = read!(self, |db| async {
            let row = sql::row(db, SETTINGS, &[]).await?;
            let row = row.ok_or_else(|| sql::broken("the server has no settings"))?;
            Ok::<_, Fault>(why_forgetful(&row)?)
        })?;
        let mut noted = self.forgetful.lock();
        if *noted != found {
            match &found {
                Some(why) => tracing::error!(why, "nothing is written to the books"),
                None => tracing::info!("PostgreSQL keeps what is committed again"),
            }
            *noted = found;
        }
        Ok(())
    }

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

    /// Asks on one snapshot, for as long as an audit may take.
    pub async fn audited<T>(
        &self,
        ask: impl AsyncFnOnce(&Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, LedgerError> {
        let attempt = async {
            let mut client = self.pool.get().await.map_err(Fault::from)?;
            let snapshot = client
                .build_transaction()
                .isolation_level(IsolationLevel::RepeatableRead)
                .read_only(true)
                .start();
            let tx = snapshot.await.map_err(Fault::from)?;
            // It reads whole tables.
            let apart = "SET LOCAL statement_timeout = 0; SET LOCAL enable_seqscan = on";
            tx.batch_execute(apart).await?;
            ask(&tx).await
        };
        let done = in_time(AUDIT_WAIT, attempt).await;
        self.noted(done.map_err(LedgerError::from))
    }

    /// Posts batches in one transaction: verdicts for each, or the epoch in which its partition stands.
    pub async fn settle(
        &self,
        asked: &[Asked],
    ) -> Result<Vec<Result<Vec<Settled>, LedgerError>>, LedgerError> {
        let care = Care::default();
        write!(self, |tx| async {
            let partitions = asked.iter().map(|asked| asked.under.partition).collect();
            let epochs = partitions::hold(&tx, &partitions).await?;
            let refusal = |asked: &Asked| {
                let stands = epochs.get(&asked.under.partition).copied();
                stands.filter(|epoch| *epoch != asked.under.epoch)
            };
            let posted = asked.iter().filter(|asked| refusal(asked).is_none());
            let items: Vec<&SettleItem> = posted.flat_map(|asked| &asked.items).collect();
            let mut verdicts = settle(&tx, &self.desk, &items, &care).await?.into_iter();
            let answers = asked.iter().map(|asked| match refusal(asked) {
                Some(epoch) => Err(LedgerError::Epoch(epoch)),
                None => Ok(verdicts.by_ref().take(asked.items.len()).collect()),
            });
            let answers = answers.collect();
            fail::fail_point!("settle::before_commit");
            Ok::<Vec<Result<Vec<Settled>, LedgerError>>, Fault>(answers)
        })
    }
}

pub(super) use {read, write};
