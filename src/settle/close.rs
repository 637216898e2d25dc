//! Ends an envelope: no grab after it, then the remainder back to the sender.
//!
//! *Shape*
//!
//! | step | door | crash point after it |
//! |---|---|---|
//! | 1. CLOSING | `ledger.begin_close` | `close::after_begin` |
//! | 2. no grab any more | `publisher.publish` where the hot store was replaced; `hot.close`, which tells how many shares were granted | `close::after_hot`, `close::before_finish` |
//! | 3. refund | `ledger.finish_close`, once nothing is owed and claims cover what was granted | `close::after_finish` |
//!
//! *Ordering.* Step 3 takes its count from step 2 of the same call, and step 2 grants nothing
//! after it: so the remainder that is refunded is never a share that somebody holds. Both steps are
//! of one epoch: where the store was replaced between them, its successor is closed first. A store
//! that lost some of an envelope says a smaller count in step 2, which claims may cover while it
//! still owes: so what it owes is asked for too. What it does not owe is in the books or lost: what a
//! process still remembered of it was brought back in step 2.
//!
//! *If it crashes here.* The envelope stays CLOSING, which the sweeper finds; each step answers the
//! same when it is repeated.
//!
//! *Not here.* When an envelope is due (`sweep`); posting the grants that step 3 waits for (`drain`).

use std::sync::Arc;

use super::{SettleError, crash};
use crate::domain::envelope::{BookState, CloseReason};
use crate::domain::id::{EnvelopeId, Epoch, PartitionCount};
use crate::domain::stripes::place;
use crate::hot::{CloseReply, Epochs, HotStore};
use crate::ledger::{CloseProgress, EnvelopeRow, Ledger, LedgerError, Under};
use crate::publish::{PublishError, Publisher, marks, must_revive};
use crate::rules::{self, Rule};
use crate::telemetry::metrics;

/// How far a close came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The books are balanced.
    Now(CloseReason),
    /// Granted shares are not settled yet, or dead letters stand in the way.
    Waiting,
    /// By the hot store's clock it has not expired.
    NotDue,
    /// It stands still until an operator acts.
    Frozen,
}

/// Begins the close of an envelope for `reason` (the first one stands) and takes it as far as it
/// can go now.
///
/// # Errors
/// A store is out of reach: the next sweep repeats it.
pub async fn close(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    publisher: &Publisher,
    (id, reason): (EnvelopeId, CloseReason),
) -> Result<Closed, SettleError> {
    let row = match ledger.begin_close(id, reason).await {
        Ok(row) => row,
        Err(LedgerError::Frozen) => return Ok(Closed::Frozen),
        Err(error) => return Err(error.into()),
    };
    crash("close::after_begin")?;
    go_on(hot, ledger, publisher, row).await
}

/// Takes an envelope that is CLOSING as far as it can go now.
///
/// # Errors
/// As [`close`].
pub async fn go_on(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    publisher: &Publisher,
    row: EnvelopeRow,
) -> Result<Closed, SettleError> {
    let reason = match row.state {
        BookState::Closed(reason) => return Ok(Closed::Now(reason)),
        BookState::Closing(reason) => reason,
        BookState::Funding | BookState::Live => {
            let why = format!("envelope {} is not closing", row.id);
            return Err(SettleError::Broken(why));
        }
    };
    let id = row.id;
    hot.learn(id, &row.terms);
    let epochs = hot.epochs();
    let under = under_all(&row, hot.partitions(), &epochs);
    // A store in its first epoch was never replaced, and has lost nothing. A dealt envelope may have been left
    // while its shares were gathered.
    let may_lack = under.iter().any(|under| under.epoch != Epoch::FIRST);
    let may_lack = may_lack || !row.terms.stripes.is_one();
    if may_lack {
        bring_back(hot, publisher, &row).await?;
    }
    let close = || hot.close(&epochs, id, Arc::clone(&row.terms), reason);
    let mut reply = close().await?;
    if reply == CloseReply::Frozen && free(hot, ledger, id).await? {
        reply = close().await?;
    }
    let (reason, mut taken_count) = match reply {
        CloseReply::Over {
            reason,
            taken_count,
            ..
        } => (reason, taken_count),
        CloseReply::NotDue(_) => return Ok(Closed::NotDue),
        CloseReply::Frozen => return Ok(Closed::Frozen),
    };
    crash("close::after_hot")?;
    crash("close::before_finish")?;
    if !rules::keeps(Rule::RefundAfterDrain) {
        taken_count = row.settled_count + row.declined_count;
    }
    if may_lack && hot.owes(id).await? {
        return Ok(Closed::Waiting);
    }
    let finished = ledger.finish_close(under, id, reason, taken_count);
    let progress = match finished.await {
        Ok(progress) => progress,
        Err(LedgerError::Frozen) => return Ok(Closed::Frozen),
        Err(error) => return Err(error.into()),
    };
    crash("close::after_finish")?;
    match progress {
        CloseProgress::Closed(closed) => {
            metrics::envelope_closed(reason);
            if closed.settled_minor < closed.terms.total_minor {
                metrics::refunded();
            }
            Ok(Closed::Now(reason))
        }
        CloseProgress::Waiting { .. } => Ok(Closed::Waiting),
    }
}

/// Every partition in which an envelope lies, with its epoch.
fn under_all(row: &EnvelopeRow, partitions: PartitionCount, epochs: &Epochs) -> Vec<Under> {
    let of = row.terms.stripes;
    let under = |stripe| {
        let partition = place(row.id, stripe, of, partitions);
        let epoch = epochs.of(partition);
        Under { partition, epoch }
    };
    of.all().map(under).collect()
}

/// What a replaced store lost, or has not been compared with the books, is brought back before the
/// envelope ends: grabs that somebody still remembers must not go back to the sender. One whose
/// shares can't be told any more ends as the store has it.
async fn bring_back(
    hot: &dyn HotStore,
    publisher: &Publisher,
    row: &EnvelopeRow,
) -> Result<(), SettleError> {
    let view = hot.view(vec![row.id]).await?.pop().flatten();
    if !must_revive(row, view.as_ref()) {
        return Ok(());
    }
    match publisher.publish(row.id).await {
        Ok(_) => {
            // It may have waited for one that had looked before this was lost: a close of what is missing or
            // stale would send its winners away.
            match hot.view(vec![row.id]).await?.pop().flatten() {
                Some(view) if !view.stale => Ok(()),
                _ => Err(SettleError::Unavailable(
                    "the envelope is not brought back yet: the next sweep repeats it".into(),
                )),
            }
        }
        Err(PublishError::Frozen) => Ok(()),
        Err(PublishError::Broken(why)) => {
            tracing::error!(envelope = %row.id, why, "an envelope ends without being compared");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes the marks alike: a broken invariant goes into the books, and a mark that is only a
/// stale copy of theirs is lifted. Answers whether the envelope is free now.
async fn free(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    id: EnvelopeId,
) -> Result<bool, SettleError> {
    let carried = marks::carry(hot, ledger, id).await?;
    Ok(!carried && !marks::follow(hot, ledger, id).await?)
}
