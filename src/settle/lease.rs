//! Which of the partitions this process settles, where several do.
//!
//! *Shape.* Each process renews a lease in the books. Those whose lease runs divide the partitions
//! among themselves by number: [`Portion`].
//!
//! *Bounds.* A lease runs [`LEASE_MS`] and is renewed every [`LEASE_RENEW_MS`]: what a process that
//! died would have settled waits for so long.
//!
//! *Ordering.* The lease saves work and decides nothing. Two processes that both believe a partition
//! theirs, for as long as their portions differ, post the same records: the books pay them once.
//!
//! *If it crashes here.* The lease runs out.
//!
//! A process that only serves has a lease of another kind, without a portion: it says that these books are
//! served.

use parking_lot::Mutex;

use super::SettleError;
use crate::domain::id::{EnvelopeId, Partition, PartitionCount};
use crate::ledger::{Ledger, Portion};

/// How long a lease runs: a sixth of what an acknowledged grab may wait before creates are shed, and
/// five renewals, so that one slow answer of the ledger moves no partition.
pub const LEASE_MS: i64 = 5_000;
/// The rest between two renewals.
pub const LEASE_RENEW_MS: u64 = 1_000;

/// A process among others.
pub struct Lease {
    holder: String,
    portion: Mutex<Portion>,
}

impl Lease {
    /// Alone, until the books say otherwise.
    pub fn new(holder: String) -> Self {
        Self {
            holder,
            portion: Mutex::new(Portion::ALONE),
        }
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// The ledger is out of reach: the portion stays as it was.
    pub async fn renew(&self, ledger: &dyn Ledger) -> Result<(), SettleError> {
        let portion = ledger.lease(self.holder.clone(), LEASE_MS).await?;
        let before = std::mem::replace(&mut *self.portion.lock(), portion);
        if before != portion {
            tracing::info!(
                rank = portion.rank,
                of = portion.of,
                "settlement is divided anew among the processes"
            );
        }
        Ok(())
    }

    /// Ends the lease, so that the others need not wait for its end.
    ///
    /// # Errors
    /// The ledger is out of reach: the lease runs out.
    pub async fn leave(&self, ledger: &dyn Ledger) -> Result<(), SettleError> {
        ledger.lease(self.holder.clone(), 0).await?;
        Ok(())
    }

    /// Renews the lease of a process that settles nothing: nobody counts it when partitions are divided.
    ///
    /// # Errors
    /// The ledger is out of reach.
    pub async fn serve(&self, ledger: &dyn Ledger) -> Result<(), SettleError> {
        ledger.serving(self.holder.clone(), LEASE_MS).await?;
        Ok(())
    }

    /// Ends that lease.
    ///
    /// # Errors
    /// The ledger is out of reach: the lease runs out.
    pub async fn serve_no_more(&self, ledger: &dyn Ledger) -> Result<(), SettleError> {
        ledger.serving(self.holder.clone(), 0).await?;
        Ok(())
    }

    /// Whether this process settles a partition now.
    pub fn has(&self, partition: Partition) -> bool {
        self.portion.lock().has(partition)
    }

    /// Whether this process sweeps an envelope now.
    pub fn has_envelope(&self, id: EnvelopeId, partitions: PartitionCount) -> bool {
        self.has(id.partition(partitions))
    }

    /// Whether nobody else settles, as far as is known.
    pub fn is_alone(&self) -> bool {
        self.portion.lock().of <= 1
    }

    /// Whether it is this process that does what one is enough for.
    pub fn is_first(&self) -> bool {
        self.portion.lock().rank == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portions_of_any_number_of_processes_are_all_partitions_once() {
        for of in [1, 2, 3, 7, 64, 100] {
            for partition in PartitionCount::new(64).unwrap().all() {
                let has = |rank: &u16| Portion { rank: *rank, of }.has(partition);
                assert_eq!((0..of).filter(has).count(), 1, "{of}");
            }
        }
    }
}
