//! Registers the process that stands behind the hot store's door, so that it may grant.
//!
//! *Shape*
//!
//! | step | door |
//! |---|---|
//! | 1. who stands there, with which data | `hot.standing`; nobody to register: done |
//! | 2. whom the books accepted, and in which epoch | `ledger.partitions` |
//! | 3. partitions whose process or data are others | `ledger.advance_epochs`, compare and set |
//! | 4. let the accepted ones grant | `hot.register` |
//! | 5. another process won some of them | begin again with 1 |
//!
//! A partition keeps its epoch where the books accepted this very process and its data carry the
//! epoch of the books: this process started beside a store that runs, or the store's function
//! library was replaced. In every other case it advances: the store is another process (restarted,
//! promoted), or its data are older or gone.
//!
//! Where the books accepted this very process and only its data carry another epoch, one of our
//! processes may be between 3 and 4, or the data were lost. Nothing on record tells them apart, so the
//! other one is given [`GIVE_WAY_MS`]: an epoch that is taken on twice costs each envelope a repair.
//!
//! *Bounds.* [`RACES_MAX`] races a round, [`LOOKS_MAX`] looks after one that seems under way; rests between rounds from [`RETRY_MS_MIN`], doubled up to
//! [`RETRY_MS_MAX`], with a jitter that the caller brings.
//!
//! *Ordering.* A process grants nothing in an epoch before the books have it (3 before 4), and the
//! books post nothing that was read in an older one (`Ledger::settle`). Two of our processes that
//! register the same server agree: who loses the race registers the winner's epoch.
//!
//! *If it crashes here.* Between 3 and 4 the books are ahead of the store: its data carry an older
//! epoch, or none. The next round can't tell this from data that were lost again, and advances once
//! more. That is harmless, since nothing was granted in the epoch that is skipped. After 4 the data
//! carry the epoch, so the same loss never advances twice.
//!
//! *Not here.* What the store lost: `revive`, envelope by envelope, when it is touched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::id::{Epoch, Partition};
use crate::hot::{HotError, HotStore, Standing};
use crate::ledger::{HotLayout, Ledger, LedgerError, PartitionRow};

/// Races that one round may lose: each lost one means that another server was accepted meanwhile,
/// which a failover does once.
pub const RACES_MAX: u32 = 4;
/// The first rest after a failure, and the rest after a success: a store that is not content with
/// its registration is asked 20 times a second and not more often.
pub const RETRY_MS_MIN: u64 = 50;
/// The longest rest: while a store is unregistered it serves nobody, so half of what a failover may
/// take in all.
pub const RETRY_MS_MAX: u64 = 2_500;

/// How long a registration that seems under way in another of our processes is waited for: some
/// times what lies between an answer of the books and the last of 1,024 calls of the store.
pub const GIVE_WAY_MS: u64 = 200;
/// Looks in that time.
pub const LOOKS_MAX: u32 = 4;

/// Why nobody was registered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistrarError {
    /// The hot store can't be asked or does not accept it: try again.
    #[error("the hot store can't be registered: {0}")]
    Hot(HotError),
    /// The books can't be asked: try again.
    #[error("the hot store can't be registered: {0}")]
    Ledger(#[from] LedgerError),
    /// Other servers won every race.
    #[error("the hot store can't be registered: its server keeps changing")]
    Contended,
    /// The hot store has stopped for good: the process must end.
    #[error("the hot store has stopped: {0}")]
    Stopped(String),
    /// The books belong to another hot store: the process must not start.
    #[error("{0}")]
    Layout(String),
}

impl From<HotError> for RegistrarError {
    fn from(error: HotError) -> Self {
        match error {
            HotError::Stopped(why) => Self::Stopped(why),
            HotError::Epoch(_)
            | HotError::Shed
            | HotError::Unavailable(_)
            | HotError::Mismatch(_) => Self::Hot(error),
        }
    }
}

/// What a round did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// Nothing replaces this store under a process.
    NotNeeded,
    /// It grants.
    Done {
        /// Which process of the hot store.
        server: String,
        /// Partitions that kept their epoch.
        kept: usize,
        /// Partitions whose epoch is another one now.
        advanced: usize,
    },
}

/// Registers the hot store's process with the books.
pub struct Registrar {
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
}

/// What to do with the partitions of a server.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sorted {
    keep: Vec<(Partition, Epoch)>,
    /// The books accepted this process, its data carry another epoch: registered just now by
    /// another of our processes, or lost.
    under_way: Vec<(Partition, Epoch)>,
    advance: Vec<(Partition, Epoch)>,
}

/// PURE: which partitions stand as the books say, which may come to stand so, and which must advance.
fn sort(
    standing: &Standing,
    rows: Vec<PartitionRow>,
    all: impl Iterator<Item = Partition>,
) -> Sorted {
    let rows: BTreeMap<_, _> = rows.into_iter().map(|row| (row.partition, row)).collect();
    let mut sorted = Sorted::default();
    for partition in all {
        let found = standing.epochs.get(usize::from(partition.index()));
        let found = found.copied().flatten();
        match rows.get(&partition) {
            Some(row) if row.server == standing.server => {
                let of = match found == Some(row.epoch) {
                    true => &mut sorted.keep,
                    false => &mut sorted.under_way,
                };
                of.push((partition, row.epoch));
            }
            row => {
                let from = row.map_or(Epoch::FIRST, |row| row.epoch);
                sorted.advance.push((partition, from));
            }
        }
    }
    sorted
}

impl Registrar {
    /// Between these doors.
    pub fn new(hot: Arc<dyn HotStore>, ledger: Arc<dyn Ledger>) -> Self {
        Self { hot, ledger }
    }

    /// That the books belong to a hot store that is laid out like this. The first one that asks is
    /// recorded.
    ///
    /// # Errors
    /// `Layout`: another one is on record, with a sentence for whoever starts the process.
    pub async fn check_layout(&self, layout: HotLayout) -> Result<(), RegistrarError> {
        let on_record = self.ledger.hot_layout(layout.clone()).await?;
        if on_record == layout {
            return Ok(());
        }
        Err(RegistrarError::Layout(format!(
            "the books belong to a hot store of {}, not of {}: start with that store, or name other \
             books (--data-dir for another folder, --ledger for another database)",
            laid_out(&on_record, &layout),
            laid_out(&layout, &on_record),
        )))
    }

    /// One round.
    ///
    /// # Errors
    /// See [`RegistrarError`]: all but `Stopped` may be repeated.
    pub async fn once(&self) -> Result<Registered, RegistrarError> {
        let (mut advanced, mut races, mut looks) = (0, 0, 0);
        while races < RACES_MAX {
            // 1. who stands there
            let Some(standing) = self.hot.standing().await? else {
                return Ok(Registered::NotNeeded);
            };
            // 2. whom the books accepted
            let rows = self.ledger.partitions().await?;
            let mut sorted = sort(&standing, rows, self.hot.partitions().all());
            if !sorted.under_way.is_empty() && looks < LOOKS_MAX {
                looks += 1;
                tokio::time::sleep(Duration::from_millis(GIVE_WAY_MS / u64::from(LOOKS_MAX))).await;
                continue;
            }
            sorted.advance.append(&mut sorted.under_way);
            races += 1;
            let kept = sorted.keep.len();
            let mut accepted = sorted.keep;
            // 3. compare and set
            let mut lost = false;
            if !sorted.advance.is_empty() {
                let server = standing.server.clone();
                let rows = self.ledger.advance_epochs(sorted.advance, server).await?;
                let (ours, others): (Vec<_>, Vec<_>) = rows
                    .into_iter()
                    .partition(|row| row.server == standing.server);
                lost = !others.is_empty();
                advanced += ours.len();
                accepted.extend(ours.into_iter().map(|row| (row.partition, row.epoch)));
            }
            crash("register::before_register")?;
            // 4. let them grant
            if !accepted.is_empty() {
                self.hot.register(standing.clone(), accepted).await?;
            }
            if !lost {
                let server = standing.server;
                return Ok(Registered::Done {
                    server,
                    kept,
                    advanced,
                });
            }
        }
        Err(RegistrarError::Contended)
    }

    /// Registers whenever the store says that it is unregistered, until `shutdown`. `jitter(max)`
    /// answers a number from 0 to `max`.
    ///
    /// # Errors
    /// `Stopped`: the process must end.
    pub async fn run(
        &self,
        jitter: impl Fn(u64) -> u64 + Send + Sync,
        shutdown: CancellationToken,
    ) -> Result<(), RegistrarError> {
        let mut failures = 0_u32;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = self.hot.unregistered() => {}
            }
            let ended = tokio::select! {
                // What is under way is harmless where it stops: see above.
                () = shutdown.cancelled() => return Ok(()),
                ended = self.once() => ended,
            };
            match ended {
                Ok(registered) => {
                    told(&registered, failures);
                    failures = 0;
                }
                Err(RegistrarError::Stopped(why)) => return Err(RegistrarError::Stopped(why)),
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures == 1 {
                        tracing::warn!(%error, "the hot store grants nothing");
                    }
                }
            }
            let rest = Duration::from_millis(rest_ms(failures, &jitter));
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(rest) => {}
            }
        }
    }
}

fn told(registered: &Registered, failures: u32) {
    if let Registered::Done {
        server,
        kept,
        advanced,
    } = registered
    {
        tracing::info!(
            server,
            kept,
            advanced,
            failures,
            "the hot store is registered"
        );
    }
}

/// The rest after so many failures in a row: doubled each time, and half of it is jitter, so that
/// processes which lost the same store don't come back together.
fn rest_ms(failures: u32, jitter: &(impl Fn(u64) -> u64 + ?Sized)) -> u64 {
    let doubled = RETRY_MS_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let half = doubled.min(RETRY_MS_MAX) / 2;
    half + jitter(half).min(half)
}

/// A layout in words; the number of its keys or rows only where that is the difference.
fn laid_out(layout: &HotLayout, other: &HotLayout) -> String {
    let count = match layout.partitions {
        1 => "1 partition".to_owned(),
        count => format!("{count} partitions"),
    };
    let same = layout.store == other.store && layout.partitions == other.partitions;
    let number = match same {
        true => format!(" in layout {}", layout.layout),
        false => String::new(),
    };
    format!("kind {} with {count}{number}", layout.store)
}

/// A place where a test may stop a registration. Nothing in a release build.
fn crash(point: &str) -> Result<(), RegistrarError> {
    fail::fail_point!(point, |_| Err(RegistrarError::Hot(HotError::Unavailable(
        format!("stopped at {point}")
    ))));
    let _ = point;
    Ok(())
}
