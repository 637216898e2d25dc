//! What tests do to the books that no door allows.

use super::SqliteLedger;
use super::rows::Sql;
use crate::ledger::LedgerError;

impl SqliteLedger {
    /// Damages the sealed secrets of all seed leaves: nothing says any more what a share is worth.
    ///
    /// # Errors
    /// The file can't be written.
    pub async fn damage_secrets(&self) -> Result<(), LedgerError> {
        self.write(|books| {
            books
                .db
                .execute_batch(
                    "-- ledger.damage_secrets
                     DROP TRIGGER leaf_batch_is_not_changed;
                     UPDATE leaf_batch SET sealed = x'00';",
                )
                .sql()
        })
        .await
    }
}
