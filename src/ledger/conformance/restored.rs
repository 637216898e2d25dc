//! After a restore: leaves that nobody has used, and epochs in which nothing was read.

use super::{FIRST, World, draft, pay, person, tenant, transfer};
use crate::domain::envelope::{CloseReason, Draft};
use crate::domain::fairness::{LEAVES_PER_BATCH, RESTORE_BATCH_GAP};
use crate::domain::id::{Epoch, Partition, TenantId, UnixMs};
use crate::ledger::{AdminAct, BegunAnew, LedgerError, Settled, Transfer, Under};

fn order() -> AdminAct {
    AdminAct {
        act: "restored".to_owned(),
        envelope: None,
        operator: person("olga"),
        reason: "a lost disk".to_owned(),
        at: UnixMs(0),
        result: "done".to_owned(),
    }
}

async fn restored(world: &World, past: &[(u16, u64)]) -> BegunAnew {
    let past = past.iter().map(|(index, epoch)| {
        let partition = Partition::new(*index).expect("cases name partitions that there can be");
        (partition, Epoch(*epoch))
    });
    let begun = world.ledger.restored(past.collect(), order()).await;
    begun.expect("the books begin anew")
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn leaves_begin_anew_in_every_tenant_and_go_on_from_there(world: &World) {
    let shop = TenantId::parse("shop").expect("a good name");
    world.deposit("alice", 1_000, "d1").await;
    let money = Transfer {
        tenant: shop.clone(),
        ..transfer("alice", 1_000, "d1")
    };
    world.ledger.deposit(money).await.expect("it stands");
    let before = world.fund(draft("alice", 100, 4), "f1").await;
    let begun = restored(world, &[]).await;
    let [(of_default, first), (of_shop, first_of_shop)] = &begun.first_leaves[..] else {
        panic!("{begun:?}");
    };
    assert_eq!((of_default, of_shop), (&tenant(), &shop));
    let gap = RESTORE_BATCH_GAP * u64::from(LEAVES_PER_BATCH);
    assert!(*first >= gap && *first_of_shop >= gap);

    let mut leaves = Vec::new();
    for request in ["f2", "f3"] {
        let funded = world.fund(draft("alice", 100, 4), request).await;
        assert_ne!(funded.id, before.id);
        leaves.push(funded.terms.leaf);
    }
    let numbers: Vec<_> = leaves.iter().map(|leaf| leaf.leaf_number).collect();
    assert_eq!(numbers, [*first, first + 1]);
    let of_the_shop = Draft {
        tenant: shop,
        ..draft("alice", 100, 4)
    };
    let leaf = world.fund(of_the_shop, "f1").await.terms.leaf;
    assert_eq!(leaf.leaf_number, *first_of_shop);
    // One batch is committed to ahead, as ever, and those before the restore are still there.
    let batches = world
        .ledger
        .leaf_batches(tenant(), 10)
        .await
        .expect("roots");
    let batch = first / u64::from(LEAVES_PER_BATCH);
    let listed: Vec<_> = batches.iter().map(|batch| batch.batch_number).collect();
    assert_eq!(listed, [batch + 1, batch, 1, 0]);
    assert_eq!(batches[1].batch_root, leaves[0].batch_root);

    let acts = world.ledger.acts(None, 10).await.expect("acts are read");
    assert_eq!(acts.len(), 1);
    assert_eq!(
        (acts[0].act.as_str(), acts[0].at),
        ("restored", world.ledger.now())
    );
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_second_restore_begins_behind_the_first_and_old_proofs_still_verify(world: &World) {
    world.deposit("alice", 1_000, "d1").await;
    let old = world.fund(draft("alice", 100, 4), "f1").await;
    let first = restored(world, &[]).await.first_leaves[0].1;
    let second = restored(world, &[]).await.first_leaves[0].1;
    assert!(
        second > first + u64::from(LEAVES_PER_BATCH),
        "{first} {second}"
    );
    let new = world.fund(draft("alice", 100, 4), "f2").await;
    assert_eq!(new.terms.leaf.leaf_number, second);
    for funded in [old, new] {
        world
            .ledger
            .mark_live(funded.id)
            .await
            .expect("it becomes Live");
        let reason = CloseReason::Recalled;
        let begun = world.ledger.begin_close(funded.id, reason).await;
        begun.expect("it closes");
        let closed = world
            .ledger
            .finish_close(vec![FIRST], funded.id, reason, 0)
            .await;
        closed.expect("it is closed");
        let proof = world.ledger.proof(funded.id).await.expect("a proof");
        let verified = proof.expect("it is closed").verify();
        let verified = verified.expect("the proof holds");
        assert_eq!(verified.batch_number, funded.terms.leaf.batch_number);
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn what_was_read_before_a_restore_is_not_posted_after_it(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let advanced = world
        .ledger
        .advance_epochs(vec![(Partition::ZERO, Epoch::FIRST)], "redis a".to_owned());
    advanced.await.expect("epochs advance");
    // The store went on to its fifth epoch, and a partition that these books never saw to its second.
    assert_eq!(restored(world, &[(0, 5), (3, 2)]).await.partitions, 2);
    let rows = world.ledger.partitions().await.expect("rows");
    let stand: Vec<_> = rows
        .iter()
        .map(|r| (r.partition.index(), r.epoch.0))
        .collect();
    assert_eq!(stand, [(0, 6), (3, 3)]);
    assert!(rows.iter().all(|row| row.server != "redis a"));
    for epoch in 1..6 {
        let under = Under {
            epoch: Epoch(epoch),
            ..FIRST
        };
        let posted = world
            .ledger
            .settle(under, vec![pay(id, 0, "bob", 40)])
            .await;
        assert!(
            matches!(posted, Err(LedgerError::Epoch(Epoch(6)))),
            "{posted:?}"
        );
    }
    let under = Under {
        epoch: Epoch(6),
        ..FIRST
    };
    let posted = world
        .ledger
        .settle(under, vec![pay(id, 0, "bob", 40)])
        .await;
    assert_eq!(posted.expect("is posted"), [Settled::Paid]);
    // Where no store went on, the books leave their own epochs behind.
    assert_eq!(restored(world, &[]).await.partitions, 2);
    let rows = world.ledger.partitions().await.expect("rows");
    let stand: Vec<_> = rows.iter().map(|row| row.epoch.0).collect();
    assert_eq!(stand, [7, 4]);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_store_that_is_absurdly_far_ahead_changes_nothing(world: &World) {
    world.deposit("alice", 1_000, "d1").await;
    let far = vec![(Partition::ZERO, Epoch(1 << 40))];
    let refused = world.ledger.restored(far, order()).await;
    let Err(LedgerError::Broken(why)) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("start on an empty one"), "{why}");
    assert_eq!(world.ledger.partitions().await.expect("rows"), []);
    assert_eq!(world.ledger.acts(None, 10).await.expect("acts"), []);
    let funded = world.fund(draft("alice", 100, 4), "f1").await;
    assert_eq!(funded.terms.leaf.leaf_number, 0);
}
