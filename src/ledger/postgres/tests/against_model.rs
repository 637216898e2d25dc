//! Random lists of operations on the books and on the model.

use proptest::prelude::*;

use super::world;
use crate::ledger::conformance::model::{Model, ops};

proptest! {
    // Each case founds books of its own and audits them after every operation.
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn the_books_agree_with_the_model_after_every_operation(ops in ops()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (world, _server) = world().await;
            let mut model = Model::default();
            for op in ops {
                model.step(&world, op).await;
            }
        });
    }
}
