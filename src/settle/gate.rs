//! Posts what the hot store decided before anybody is told: the acknowledgement level `ledger`.
//!
//! *Shape.* The plan and the posting of the drain, for records that are still in the outbox. The drain
//! meets them again and finds duplicates.
//!
//! *Bounds.* Those of a grab's call; calls that arrive together are one transaction of the ledger.
//!
//! *Not here.* Who waits for it: `hot::gate`.

use async_trait::async_trait;

use super::{Drain, SettleError};
use crate::domain::grab::OutboxRecord;
use crate::domain::id::{Epoch, Partition};
use crate::hot::HotError;
use crate::hot::gate::Gate;
use crate::ledger::{Settled, Under};

#[async_trait]
impl Gate for Drain {
    async fn post(
        &self,
        partition: Partition,
        epoch: Epoch,
        records: Vec<OutboxRecord>,
    ) -> Result<Vec<bool>, HotError> {
        let verdicts = self.post_each(Under { partition, epoch }, &records).await;
        let verdicts = verdicts.map_err(|error| match error {
            SettleError::Epoch(epoch) => HotError::Epoch(epoch),
            error => HotError::Unavailable(format!("the books don't take it yet: {error}")),
        })?;
        let stands = |verdict| matches!(verdict, Some(Settled::Paid | Settled::Duplicate));
        Ok(verdicts.into_iter().map(stands).collect())
    }
}
