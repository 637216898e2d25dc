//! What must be done before restored books are served: books of an earlier moment must not use again what
//! was used since then, nor believe a hot store that went on.
//!
//! # Shape
//! | step | door | file |
//! |---|---|---|
//! | 1. nobody serves these books | the folder's lock, then `ledger.lease`, `ledger.serving` | here |
//! | 2. in which epochs the hot store went on | `hot.standing` | here |
//! | 3. leaves and epochs begin anew, on record | `ledger.restored` | here |
//! | 4. the hot store is registered in the new epochs | `publish::Registrar` | here |
//! | 5. which envelopes the books don't know, or know less of, and which shares they have paid to somebody else | `hot.envelopes`, `hot.grants`, `hot.outbox`, `ledger.claims` | `gather` |
//! | 6. what the books know is brought up to what was told | `publish::Publisher`, `settle::post_missing`, `ledger.begin_close` | `mend` |
//! | 7. which open envelopes the hot store has forgotten | `ledger.audit_envelopes`, `hot.view` | `mend` |
//! | 8. the operator is told | the caller's | `report` |
//! | 9. what was forgotten stands still | `ledger.freeze` | `mend` |
//! | 10. what the books don't know leaves the hot store, on record | `ledger.record_act`, `hot.settled`, `hot.close`, `hot.remove` | `mend` |
//!
//! A hot store that carries no epoch has never granted anything. There is nothing to compare with, so 4 to
//! 7 are left out, and nothing is written there: a repetition finds it as new as it was.
//!
//! # Bounds
//! It holds all that is told in memory: a hundred bytes a grant of envelopes that the books don't know. 7
//! reads every envelope of the books, `PAGE_ROWS_MAX` at a time.
//!
//! # Ordering
//! Nothing is frozen (9) or leaves the hot store (10) before the operator was told of it (8); what stands
//! still does so before what the hot store has it by leaves. From 3 on nothing that was read before can be
//! posted, from 4 on nothing is granted in an epoch of before.
//!
//! # If it crashes here
//! Every step may be repeated, and the whole as well: leaves and epochs begin anew once more, and what is
//! still in the hot store is told again, and what still stands still as well.
//!
//! # Not here
//! The restore itself: the tools of PostgreSQL and of the file system do it. Money that was paid or brought
//! in after the backup and is in no store.

mod gather;
mod mend;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use report::{Dispute, Left, Mended, Report, Stranger};

use crate::config::Config;
use crate::domain::id::{EnvelopeId, PersonId, UnixMs};
use crate::hot::{HotError, HotStore};
use crate::ledger::{AdminAct, Ledger, LedgerError};
use crate::publish::{Registrar, RegistrarError};
use crate::settle::{LEASE_MS, LEASE_RENEW_MS, SettleError};
use crate::stores::{Place, Stores, StoresError};
use mend::{Mender, Missing};

/// How this is called among the processes that settle.
const HOLDER: &str = "restored";
/// Looks at the leases, one a renewal: a process that died is counted until its lease has run out, one
/// that lives is still there at the last look.
const LEASE_LOOKS_MAX: u64 = LEASE_MS.unsigned_abs() / LEASE_RENEW_MS + 2;

/// The longest reason, as operators' calls have it.
pub const REASON_BYTES_MAX: usize = 256;

/// Who says that the books were restored, and why.
#[derive(Clone, Debug)]
pub struct Order {
    /// Who.
    pub operator: PersonId,
    /// Why.
    pub reason: String,
}

/// Why it came to no end. Unless it says otherwise, repeat it from the beginning.
#[derive(Debug, thiserror::Error)]
pub enum RestoredError {
    /// The stores can't be opened, or don't belong together.
    #[error(transparent)]
    Store(#[from] StoresError),
    /// A process serves these books. Nothing was done.
    #[error(
        "a process serves these books: stop every one, and whatever starts them again, then repeat \
         this. Nothing was done"
    )]
    Serving,
    /// The operator was not told, so nothing left the hot store.
    #[error("the list can't be written ({0}): nothing was taken out of the hot store. Repeat this")]
    Untold(std::io::Error),
    /// A store is out of reach.
    #[error("{0}. Repeat this until it ends well")]
    Away(String),
    /// A store is not as it must be, or they don't belong together.
    #[error("{0}. Repeating this does not help before that is mended")]
    Broken(String),
}

impl From<LedgerError> for RestoredError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Unavailable(_) | LedgerError::Epoch(_) => Self::Away(error.to_string()),
            LedgerError::Broken(why) => Self::Broken(why),
            other => Self::Broken(other.to_string()),
        }
    }
}

impl From<HotError> for RestoredError {
    fn from(error: HotError) -> Self {
        match error {
            HotError::Mismatch(_) => Self::Broken(error.to_string()),
            HotError::Epoch(_)
            | HotError::Shed
            | HotError::Unavailable(_)
            | HotError::Stopped(_) => Self::Away(error.to_string()),
        }
    }
}

impl From<SettleError> for RestoredError {
    fn from(error: SettleError) -> Self {
        match error {
            SettleError::Broken(why) => Self::Broken(why),
            other => Self::Away(other.to_string()),
        }
    }
}

impl From<RegistrarError> for RestoredError {
    fn from(error: RegistrarError) -> Self {
        match error {
            RegistrarError::Hot(error) => error.into(),
            RegistrarError::Ledger(error) => error.into(),
            RegistrarError::Layout(why) => Self::Broken(why),
            RegistrarError::Contended | RegistrarError::Stopped(_) => Self::Away(error.to_string()),
        }
    }
}

impl Order {
    /// Checks who and why, as operators' calls do.
    ///
    /// # Errors
    /// What is wrong with which flag.
    pub fn parse(operator: &str, reason: &str) -> Result<Self, String> {
        let operator = PersonId::parse(operator);
        let operator = operator.map_err(|_| {
            "--operator must be 1 to 64 bytes without control characters".to_owned()
        })?;
        // Those that turn the reading direction around could show a reason that is not there.
        let misleads = |c: char| {
            c.is_control()
                || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        if reason.is_empty() || reason.len() > REASON_BYTES_MAX || reason.chars().any(misleads) {
            return Err(format!(
                "--reason must be 1 to {REASON_BYTES_MAX} bytes without control or bidirectional \
                 formatting characters"
            ));
        }
        Ok(Self {
            operator,
            reason: reason.to_owned(),
        })
    }

    /// An act of this operator, as the books keep it.
    pub(crate) fn act(&self, act: &str, envelope: Option<EnvelopeId>, result: String) -> AdminAct {
        AdminAct {
            act: act.to_owned(),
            envelope,
            operator: self.operator.clone(),
            reason: self.reason.clone(),
            at: UnixMs(0),
            result,
        }
    }
}

/// Does all of it. `tell` is called once, before anything leaves the hot store; where it fails, nothing
/// does. Answers how many envelopes left it.
///
/// # Errors
/// See [`RestoredError`].
pub async fn restored(
    place: Place,
    config: &Config,
    order: Order,
    tell: impl FnOnce(&Report) -> std::io::Result<()>,
) -> Result<usize, RestoredError> {
    Stores::expect_books(&place, config).await?;
    let (stores, _locked, _pepper) = Stores::open(place, config).await?;
    let done = begin_anew(stores.hot(), stores.ledger(), order, tell).await;
    stores.shutdown().await;
    done
}

async fn begin_anew(
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    order: Order,
    tell: impl FnOnce(&Report) -> std::io::Result<()>,
) -> Result<usize, RestoredError> {
    // 1. nobody serves
    nobody_serves(&*ledger).await?;
    // 2. where the hot store went on
    let standing = hot.standing().await?;
    let is_replaceable = standing.is_some();
    let epochs = standing.map(|standing| standing.epochs).unwrap_or_default();
    let found = hot.partitions().all().zip(epochs);
    let past: BTreeMap<_, _> = found.filter_map(|(p, epoch)| Some((p, epoch?))).collect();
    let is_new = is_replaceable && past.is_empty();
    // 3. leaves and epochs
    let act = order.act("restored", None, "done".to_owned());
    let begun = ledger.restored(past.into_iter().collect(), act).await?;
    crash("restored::after_books")?;
    let mender = Mender::new(Arc::clone(&hot), Arc::clone(&ledger), order);
    let mut report = Report::new(begun);
    let mut missing = Missing::default();
    if !is_new {
        // 4. register
        let registrar = Registrar::new(Arc::clone(&hot), Arc::clone(&ledger));
        registrar.once().await?;
        // 5. gather
        let found = gather::gather(&*hot, &*ledger).await?;
        // 6. mend
        (report.mended, report.left) = mender.mend_all(&found.behind).await;
        // 7. what was forgotten
        missing = mender.missing(&found).await?;
        report.missing.clone_from(&missing.ids);
        report.disputes = found.disputes;
        report.strangers = found.strangers;
    }
    // 8. tell
    tell(&report).map_err(RestoredError::Untold)?;
    crash("restored::after_telling")?;
    // 9. freeze
    mender.freeze(missing.moving).await?;
    // 10. take out
    mender.take_out(&report.strangers).await
}

/// Waits until no lease but this one's runs, as long as one of a process that died may run.
async fn nobody_serves(ledger: &dyn Ledger) -> Result<(), RestoredError> {
    for look in 0..LEASE_LOOKS_MAX {
        if look > 0 {
            tokio::time::sleep(Duration::from_millis(LEASE_RENEW_MS)).await;
        }
        let portion = ledger.lease(HOLDER.to_owned(), LEASE_MS).await?;
        let serving = ledger.serving(HOLDER.to_owned(), 0).await?;
        if portion.of <= 1 && serving == 0 {
            ledger.lease(HOLDER.to_owned(), 0).await?;
            return Ok(());
        }
    }
    ledger.lease(HOLDER.to_owned(), 0).await?;
    Err(RestoredError::Serving)
}

/// A place where a test may stop this. Nothing in a release build.
fn crash(point: &str) -> Result<(), RestoredError> {
    fail::fail_point!(point, |_| Err(RestoredError::Away(format!(
        "stopped at {point}"
    ))));
    let _ = point;
    Ok(())
}
