//! Money in and out.

use super::{
    FIRST, World, assert_insufficient, cny, decline, draft, pay, person, tenant, transfer,
};
use crate::domain::envelope::{CloseReason, Draft};
use crate::domain::id::{EnvelopeId, TenantId};
use crate::domain::money::AMOUNT_MINOR_MAX;
use crate::ledger::{AuditPage, CloseProgress, LedgerError, Settled, Transfer};

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_deposit_is_made_once_however_often_it_is_asked_for(world: &World) {
    let asked = transfer("alice", 500, "d1");
    let first = world.ledger.deposit(asked.clone()).await.expect("stands");
    let again = world.ledger.deposit(asked).await.expect("is repeated");
    assert!(!first.replayed);
    assert!(again.replayed);
    assert_eq!(first.posting, again.posting);
    assert_eq!(world.has("alice").await, (500, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_withdrawal_is_made_once_and_never_overdraws(world: &World) {
    world.deposit("alice", 500, "d1").await;
    let asked = transfer("alice", 400, "w1");
    let first = world.ledger.withdraw(asked.clone()).await.expect("stands");
    assert!(!first.replayed);
    let again = world.ledger.withdraw(asked).await.expect("is repeated");
    assert_eq!((again.posting, again.replayed), (first.posting, true));
    let more = world.ledger.withdraw(transfer("alice", 101, "w2")).await;
    assert_insufficient(more, 100, 101);
    let stranger = world.ledger.withdraw(transfer("bob", 1, "w1")).await;
    assert_insufficient(stranger, 0, 1);
    assert_eq!(world.has("alice").await, (100, 0));
    // A refusal leaves nothing behind: the same id may be used when the money is there.
    world.deposit("alice", 1, "d2").await;
    let later = world.ledger.withdraw(transfer("alice", 101, "w2")).await;
    assert!(!later.expect("the money is there now").replayed);
    assert_eq!(world.has("alice").await, (0, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn one_request_id_is_not_two_transfers(world: &World) {
    world.deposit("alice", 500, "r1").await;
    let others = [
        transfer("alice", 501, "r1"),
        Transfer {
            reference: "another payment".to_owned(),
            ..transfer("alice", 500, "r1")
        },
    ];
    for other in others {
        let answer = world.ledger.deposit(other).await;
        assert!(matches!(answer, Err(LedgerError::RequestIdReused)));
    }
    // The key is per owner and direction.
    world.deposit("bob", 500, "r1").await;
    let withdrawn = world.ledger.withdraw(transfer("alice", 500, "r1")).await;
    assert!(!withdrawn.expect("another direction").replayed);
    assert_eq!(world.has("alice").await, (0, 0));
    assert_eq!(world.has("bob").await, (500, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn an_account_holds_at_most_the_limit(world: &World) {
    world.deposit("alice", AMOUNT_MINOR_MAX, "d1").await;
    let more = world.ledger.deposit(transfer("alice", 1, "d2")).await;
    assert!(matches!(more, Err(LedgerError::BalanceTooLarge)));
    assert_eq!(world.has("alice").await, (AMOUNT_MINOR_MAX, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_refund_always_fits_and_the_limit_binds_what_comes_from_outside(world: &World) {
    world.deposit("alice", AMOUNT_MINOR_MAX, "d1").await;
    let id = world.fund(draft("alice", 100, 4), "f1").await.id;
    world.ledger.mark_live(id).await.expect("it becomes Live");
    world.deposit("alice", 100, "d2").await;
    // She is full: what was declined, and then the remainder, comes on top.
    let back = world.settle(vec![decline(id, 1, "bob", 30)]).await;
    assert_eq!(back, [Settled::Paid]);
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    let done = world
        .ledger
        .finish_close(vec![FIRST], id, CloseReason::Expired, 1)
        .await;
    assert!(matches!(done, Ok(CloseProgress::Closed(_))), "{done:?}");
    assert_eq!(world.has("alice").await, (AMOUNT_MINOR_MAX + 100, 0));
    let more = world.ledger.deposit(transfer("alice", 1, "d3")).await;
    assert!(matches!(more, Err(LedgerError::BalanceTooLarge)));
    let out = world.ledger.withdraw(transfer("alice", 101, "w1")).await;
    out.expect("it is hers");
    world.deposit("alice", 1, "d4").await;
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn tenants_do_not_see_each_other(world: &World) {
    let shop = TenantId::parse("shop").expect("a good name");
    world.deposit("alice", 500, "d1").await;
    let there = Transfer {
        tenant: shop.clone(),
        ..transfer("alice", 70, "d1")
    };
    let done = world.ledger.deposit(there).await.expect("another tenant's");
    assert!(!done.replayed);
    assert_eq!(world.has("alice").await, (500, 0));
    let asked = world
        .ledger
        .balances(shop.clone(), person("alice"), Vec::new());
    let (rows, _) = asked.await.expect("balances are read");
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].available_minor, 70);
    let only = world.ledger.audit_totals(Some(shop)).await.expect("audits");
    assert_eq!(only.currencies.len(), 1);
    assert_eq!(only.currencies[0].outside_minor, 70);
    let all = world.ledger.audit_totals(None).await.expect("audits");
    assert_eq!(all.currencies[0].outside_minor, 570);
    let entries = world
        .ledger
        .entries(tenant(), person("alice"), Some(cny(0).currency), None, 10);
    assert_eq!(entries.await.expect("entries are read").len(), 1);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_auditor_reads_the_envelopes_that_it_names(world: &World) {
    let mut ids = Vec::new();
    for name in ["e1", "e2", "e3"] {
        let id = world.live(100, 4, name).await;
        world
            .settle(vec![pay(id, 2, "bob", 30), decline(id, 0, "carol", 20)])
            .await;
        ids.push(id);
    }
    let shop = TenantId::parse("shop").expect("a good name");
    let there = Transfer {
        tenant: shop.clone(),
        ..transfer("alice", 100, "there")
    };
    world.ledger.deposit(there).await.expect("another tenant's");
    let elsewhere = Draft {
        tenant: shop.clone(),
        ..draft("alice", 100, 4)
    };
    let elsewhere = world.fund(elsewhere, "there").await.id;
    let unknown = EnvelopeId::from_bytes([7; 16]);
    let asked = vec![ids[2], unknown, elsewhere, ids[0]];
    let read = async |tenant: Option<TenantId>, page| {
        let rows = world.ledger.audit_envelopes(tenant, page).await;
        let rows = rows.expect("an audit of envelopes");
        let mut sums: Vec<_> = rows
            .into_iter()
            .map(|row| {
                let sums = (row.entries_in_minor, row.entries_out_minor);
                (row.row, row.id, sums, row.paid, row.declined)
            })
            .collect();
        sums.sort_unstable_by_key(|(row, ..)| *row);
        sums
    };
    let all = read(None, AuditPage::After(i64::MIN, 1_000)).await;
    assert_eq!(all.len(), 4);
    let named = read(None, AuditPage::Of(asked.clone())).await;
    let wanted = [Some(ids[0]), Some(ids[2]), Some(elsewhere)];
    let of_all = all.iter().filter(|(_, id, ..)| wanted.contains(id));
    assert_eq!(named, of_all.cloned().collect::<Vec<_>>());
    assert_eq!(named[0].2, (100, 50));
    assert_eq!((named[0].3, named[0].4), ((1, 30), (1, 20)));
    let theirs = read(Some(shop), AuditPage::Of(asked)).await;
    assert_eq!(theirs.len(), 1);
    assert_eq!(theirs[0].1, Some(elsewhere));
    assert!(read(None, AuditPage::Of(Vec::new())).await.is_empty());
}
