//! `red-envelope reconcile`: once, without a server, what settlement would do, and then the whole audit.
//!
//! # Shape
//! | step | door |
//! |---|---|
//! | 1. open both stores, register the hot store | `Stores` |
//! | 2. settle, close, publish until nothing is left that can be | `Settlement` |
//! | 3. post what no outbox owes; where the books are behind, once more after they may not be | `Settlement` |
//! | 4. where others settle beside it, all of it once more when the lease of one who died is over | `Settlement` |
//! | 5. compare everything | `audit` |
//!
//! # Bounds
//! [`ROUNDS_MAX`] rounds; whoever runs it bounds the time. The data folder is locked, so no server runs in it;
//! beside servers on the same Redis and PostgreSQL it settles the partitions that the lease gives it.
//!
//! # If it crashes here
//! Every step is one that a server's settlement takes: repeating goes on.
//!
//! # Not here
//! How each step works: `settle`, `publish`, `audit`.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use crate::audit::{self, AuditError, AuditOptions, AuditReport};
use crate::clock::timer_now;
use crate::config::Config;
use crate::hot::HotStore;
use crate::ledger::{Ledger, LedgerError, SETTLE_TRIES_MAX};
use crate::publish::{Amounts, Publisher};
use crate::restored::Order;
use crate::settle::{LEASE_MS, LEASE_RENEW_MS, RECONCILE_AFTER_MS, SettleError, Settlement};
use crate::stores::{Place, Stores, StoresError};

/// Rounds until nothing is left: each settles a batch of every partition, and closes a page of envelopes.
pub const ROUNDS_MAX: u32 = 1_000_000;

/// Rounds in a row that do nothing and have not come to the end of a walk.
const IN_VAIN_MAX: u32 = 10_000;
/// When the lease of one who died just before is over for certain.
const LEASE_OVER_MS: u64 = LEASE_MS.unsigned_abs() + LEASE_RENEW_MS;

/// What was put right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Healed {
    /// Grabs that the outboxes owed, or that were parked, and that are in the books now.
    pub settled: usize,
    /// Grabs that no outbox owed any more and that are in the books now.
    pub unowed: usize,
    /// Grabs whose share or grabber had been paid by another claim.
    pub superseded: usize,
    /// Grabs whose share had gone to somebody else, and that the reserve has paid.
    pub made_good: usize,
    /// Grabs that can't be paid as they stand.
    pub set_aside: usize,
    /// Envelopes that were closed, their remainder refunded.
    pub closed: usize,
    /// Envelopes whose shares were funded and not out.
    pub published: usize,
}

impl Healed {
    /// Each count under the name that programs read.
    pub fn named(&self) -> [(&'static str, usize); 7] {
        [
            ("settled", self.settled),
            ("unowed", self.unowed),
            ("superseded", self.superseded),
            ("made_good", self.made_good),
            ("set_aside", self.set_aside),
            ("closed", self.closed),
            ("published", self.published),
        ]
    }
}

/// Why it came to no end.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The stores can't be opened.
    #[error(transparent)]
    Store(#[from] StoresError),
    /// A store is out of reach, or has stopped.
    #[error("{0}. What was done stands: repeat this")]
    Settle(#[from] SettleError),
    /// A store can't be compared.
    #[error("{0}. Repeat this")]
    Audit(#[from] AuditError),
    /// The books can't be asked.
    #[error("{0}. Repeat this")]
    Ledger(#[from] LedgerError),
    /// More than [`ROUNDS_MAX`].
    #[error("there is more than was settled: repeat this")]
    More,
}

/// Does all of it, and records that it was asked for.
///
/// # Errors
/// See [`ReconcileError`]. What is wrong with the money is no error: it is in the report.
pub async fn reconcile(
    place: Place,
    config: &Config,
    order: &Order,
) -> Result<(Healed, AuditReport), ReconcileError> {
    Stores::expect_books(&place, config).await?;
    let (stores, _locked, _pepper) = Stores::open(place, config).await?;
    stores.greet().await;
    let (hot, ledger) = (stores.hot(), stores.ledger());
    let amounts = Arc::new(Amounts::new(Arc::clone(&ledger)));
    let publisher = Publisher::new(Arc::clone(&hot), Arc::clone(&ledger), Arc::clone(&amounts));
    let holder = format!("{:016x}", rand::rng().random::<u64>());
    let doors = (Arc::clone(&hot), Arc::clone(&ledger));
    let settlement = Settlement::new(doors.0, doors.1, Arc::new(publisher), amounts, holder);
    let healed = heal(&settlement).await;
    let left = settlement.leave().await;
    let report = match healed {
        Ok(_) => compare(&*hot, &*ledger, order).await,
        Err(_) => Ok(AuditReport::default()),
    };
    stores.shutdown().await;
    let healed = healed?;
    left?;
    Ok((healed, report?))
}

/// Step 5.
async fn compare(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    order: &Order,
) -> Result<AuditReport, ReconcileError> {
    let report = audit::run(hot, ledger, AuditOptions::default()).await?;
    let result = match report.clean {
        true => "done".to_owned(),
        false => format!("{} discrepancies", report.discrepancy_count),
    };
    let act = order.act("reconcile", None, result);
    ledger.record_act(act).await?;
    Ok(report)
}

/// Steps 2 to 4.
async fn heal(settlement: &Settlement) -> Result<Healed, ReconcileError> {
    settlement.lease_once().await?;
    let is_alone = settlement.is_alone();
    let mut healed = Healed::default();
    heal_our_part(settlement, &mut healed).await?;
    if !is_alone {
        // Who lives renews his lease and does his part; the part of who died is ours then.
        let until = timer_now() + Duration::from_millis(LEASE_OVER_MS);
        while timer_now() < until {
            tokio::time::sleep(Duration::from_millis(LEASE_RENEW_MS)).await;
            settlement.lease_once().await?;
        }
        heal_our_part(settlement, &mut healed).await?;
    }
    Ok(healed)
}

/// Steps 2 and 3, of the partitions that the lease gives.
async fn heal_our_part(settlement: &Settlement, healed: &mut Healed) -> Result<(), ReconcileError> {
    settle_all(settlement, healed).await?;
    if walk(settlement, healed).await? > 0 {
        // What is behind now may be on its way; what is so then is not.
        let rest = u64::try_from(RECONCILE_AFTER_MS).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(rest)).await;
        settlement.lease_once().await?;
        walk(settlement, healed).await?;
        settle_all(settlement, healed).await?;
    }
    Ok(())
}

/// Settles, closes and publishes until a round finds nothing to do; what the books refuse is tried until it
/// is set aside.
async fn settle_all(settlement: &Settlement, healed: &mut Healed) -> Result<(), ReconcileError> {
    let (mut in_vain, mut refusals) = (0, 0);
    for _ in 0..ROUNDS_MAX {
        settlement.lease_once().await?;
        let drained = settlement.drain_once().await?;
        healed.settled += drained.paid;
        healed.superseded += drained.superseded;
        healed.made_good += drained.made_good;
        healed.set_aside += drained.dead_letters;
        let swept = settlement.sweep_once().await?;
        healed.closed += swept.closed;
        healed.settled += swept.unparked;
        healed.set_aside += swept.set_aside;
        let published = settlement.publish_once().await?;
        healed.published += published;
        let taken_out = drained.paid + drained.duplicates + drained.superseded;
        let done = taken_out + drained.made_good + drained.dead_letters + drained.parked;
        let swept_up = swept.closed + swept.unparked + swept.set_aside;
        if done + swept_up + published > 0 {
            (in_vain, refusals) = (0, 0);
            continue;
        }
        in_vain += 1;
        if swept.more && in_vain < IN_VAIN_MAX {
            continue;
        }
        // A record that the books refuse is set aside after so many tries.
        refusals += 1;
        let refused = drained.refused + swept.failed;
        if refused == 0 || refusals > SETTLE_TRIES_MAX {
            return Ok(());
        }
    }
    Err(ReconcileError::More)
}

/// One walk over the hot store. Answers how many envelopes are behind.
async fn walk(settlement: &Settlement, healed: &mut Healed) -> Result<usize, ReconcileError> {
    for _ in 0..ROUNDS_MAX {
        let step = settlement.reconcile_once().await?;
        healed.unowed += step.posted;
        if !step.more {
            return Ok(step.behind);
        }
    }
    Err(ReconcileError::More)
}
