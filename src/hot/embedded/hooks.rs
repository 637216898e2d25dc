//! What tests do to the store that no door allows.

use super::EmbeddedStore;
use crate::domain::id::EnvelopeId;
use crate::hot::HotError;

impl EmbeddedStore {
    /// Asks for a change that would break an invariant of the envelope, as a bug would.
    ///
    /// # Errors
    /// The store does not serve.
    pub async fn break_invariant(&self, envelope: EnvelopeId) -> Result<(), HotError> {
        self.ask(1, move |desk| {
            desk.index.break_invariant(desk.batch, envelope);
        })
        .await
    }
}
