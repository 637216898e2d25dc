//! What tests do to the books that no door allows.

use std::path::Path;

use rusqlite::Connection;

use super::SqliteLedger;
use super::rows::Sql;
use crate::ledger::LedgerError;

/// Does something to the file of books beside whoever serves them.
///
/// # Errors
/// The file can't be written.
pub fn damage(path: &Path, sql: &str) -> Result<(), LedgerError> {
    let file = Connection::open(path).sql()?;
    file.execute_batch(sql).sql()
}

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
