//! Random histories on the store and on the model that every store is held to, also after crashes,
//! restarts, snapshots and cuts of the log.

use std::sync::Arc;

use async_trait::async_trait;
use proptest::prelude::*;

use super::{CRAMPED, Embedded};
use crate::domain::id::EnvelopeId;
use crate::hot::conformance::world::{Player, World, ops};

#[async_trait]
impl Player for Embedded {
    const REMEMBERS_SETTLED: bool = false;

    async fn break_invariant(&mut self, id: EnvelopeId) {
        self.store.break_invariant(id).await.unwrap();
    }

    async fn restart(&mut self) {
        let store = Arc::clone(&self.store);
        store.shutdown().await;
        drop(store);
        self.reopen_copy();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_history_goes_as_the_model_says(ops in ops(true, 60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut stage = Embedded::new(CRAMPED);
            World::new(&mut stage).play_all(&ops, 1).await;
        });
    }
}
