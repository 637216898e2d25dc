//! Planted wrongs, each named by the audit.

use std::sync::Arc;

use red_envelope::audit::{self, AuditOptions, DISCREPANCIES_NAMED_MAX};
use red_envelope::domain::books::DiscrepancyKind;
use red_envelope::domain::envelope::shares_checksum;
use red_envelope::domain::grab::{Grant, OutboxRecord};
use red_envelope::domain::id::{EnvelopeId, Partition, TenantId, UnixMs};
use red_envelope::hot::LoadChunk;
use red_envelope::ledger::{SettleItem, Settled, Under};

use crate::world::{EXPIRES_IN_MS, NOON_MS, World, equal, lucky, person};

async fn pay(world: &World, id: EnvelopeId, share: u32, who: &str, amount_minor: i64) {
    let record = OutboxRecord {
        envelope: id,
        grabber: person(who),
        grant: Grant {
            share,
            amount_minor,
            at: UnixMs(NOON_MS),
        },
        declined: false,
    };
    let under = Under {
        partition: Partition::ZERO,
        epoch: world.hot().epoch(Partition::ZERO),
    };
    let items = vec![SettleItem::Pay(record)];
    let verdicts = world.ledger().settle(under, items).await;
    assert_eq!(verdicts.unwrap(), [Settled::Paid]);
}

/// Deletes the outbox's entries without posting them.
async fn lose_the_outbox(world: &World) {
    let hot = world.hot();
    let entries = hot.outbox(Partition::ZERO, None, 1_000).await.unwrap();
    let pairs = entries.iter().map(|entry| (entry.id, entry.nonce));
    let epoch = hot.epoch(Partition::ZERO);
    let settled = hot.settled(epoch, Partition::ZERO, pairs.collect());
    settled.await.unwrap();
}

#[tokio::test]
async fn a_share_that_was_paid_and_not_granted_is_named() {
    let mut world = World::new();
    let id = world.live(equal("alice", 10, 5)).await;
    world.win(id, "bob").await;
    world.settle().await;
    pay(&world, id, 3, "mallory", 10).await;
    world
        .is_wrong_by(&[DiscrepancyKind::ClaimWithoutGrant])
        .await;
}

#[tokio::test]
async fn a_share_that_was_paid_to_somebody_else_is_named() {
    let mut world = World::new();
    let id = world.live(equal("alice", 10, 5)).await;
    let grant = world.win(id, "bob").await;
    pay(&world, id, grant.share, "mallory", 10).await;
    world
        .is_wrong_by(&[DiscrepancyKind::ClaimWithoutGrant])
        .await;
}

#[tokio::test]
async fn a_share_that_was_paid_with_another_amount_is_named() {
    let mut world = World::new();
    let id = world.live(equal("alice", 10, 5)).await;
    let grant = world.win(id, "bob").await;
    pay(&world, id, grant.share, "bob", 11).await;
    world
        .is_wrong_by(&[
            DiscrepancyKind::AmountWrong,
            DiscrepancyKind::EnvelopeUnbalanced,
        ])
        .await;
}

#[tokio::test]
async fn a_lost_grab_is_in_flight_for_a_minute_and_then_named() {
    let mut world = World::new();
    let id = world.live(equal("alice", 10, 5)).await;
    world.win(id, "bob").await;
    lose_the_outbox(&world).await;
    world.clock.advance_ms(60_000);
    let report = world.is_clean().await;
    assert!(!report.quiet);
    assert_eq!(report.in_flight_count, 1);
    world.clock.advance_ms(1);
    world
        .is_wrong_by(&[DiscrepancyKind::GrantWithoutClaim])
        .await;
}

#[tokio::test]
async fn an_envelope_that_is_not_refunded_in_time_is_named() {
    let mut world = World::new();
    world.live(equal("alice", 10, 5)).await;
    world.clock.advance_ms(EXPIRES_IN_MS + 60_000);
    world.is_clean().await;
    world.clock.advance_ms(1);
    world.is_wrong_by(&[DiscrepancyKind::Stuck]).await;
    world.settle().await;
    assert!(world.is_clean().await.quiet);
}

#[tokio::test]
async fn an_envelope_that_only_the_hot_store_has_is_named() {
    let mut world = World::new();
    let known = world.live(equal("alice", 10, 2)).await;
    let row = world.row(known).await;
    let stranger = EnvelopeId::from_parts(known.day(), [9; 14]);
    let under = world.hot().epochs();
    let chunk = LoadChunk {
        envelope: stranger,
        terms: Arc::clone(&row.terms),
        offset: 0,
        amounts_minor: vec![10, 10],
    };
    world.hot().load(&under, chunk).await.unwrap();
    let checksum = shares_checksum(&[10, 10]);
    world.hot().open(&under, stranger, checksum).await.unwrap();
    world.is_wrong_by(&[DiscrepancyKind::StateMismatch]).await;
    let report = world.audit().await;
    assert_eq!(report.discrepancies[0].envelope, Some(stranger));
    // Its grab can't be paid: it is set aside, and the audit says so too.
    world.win(stranger, "bob").await;
    assert_eq!(world.drain().await.dead_letters, 1);
    world
        .is_wrong_by(&[DiscrepancyKind::StateMismatch, DiscrepancyKind::DeadLetter])
        .await;
}

#[tokio::test]
async fn a_balance_that_somebody_edited_is_named() {
    let mut world = World::new();
    world.live(equal("alice", 10, 2)).await;
    let file = world.ledger_file();
    let edit = "UPDATE account SET available_minor = available_minor + 1 WHERE owner = 'alice'";
    assert_eq!(file.execute(edit, []).unwrap(), 1);
    world.is_wrong_by(&[DiscrepancyKind::BalanceWrong]).await;
}

#[tokio::test]
async fn an_audit_of_one_tenant_looks_at_no_other() {
    let mut world = World::new();
    let id = world.live(equal("alice", 10, 5)).await;
    pay(&world, id, 3, "mallory", 10).await;
    let options = AuditOptions {
        tenant: Some(TenantId::parse("other").unwrap()),
        ..AuditOptions::default()
    };
    for hot_only in [false, true] {
        let options = AuditOptions {
            hot_only,
            ..options.clone()
        };
        let audited = audit::run(world.hot(), world.ledger(), options).await;
        let report = audited.unwrap();
        assert!(report.clean && report.envelope_count == 0);
    }
}

#[tokio::test]
async fn an_audit_of_what_is_hot_names_a_share_that_was_paid_and_not_granted() {
    let mut world = World::new();
    let id = world.live(equal("alice", 10, 5)).await;
    world.live(equal("alice", 10, 5)).await;
    world.win(id, "bob").await;
    world.settle().await;
    pay(&world, id, 3, "mallory", 10).await;
    let report = world.audit_what_is_hot().await;
    let kinds: Vec<_> = report.discrepancies.iter().map(|d| d.kind).collect();
    assert_eq!(kinds, [DiscrepancyKind::ClaimWithoutGrant]);
    assert_eq!(report.discrepancies[0].envelope, Some(id));
    assert_eq!((report.envelope_count, report.claim_count), (2, 2));
}

#[tokio::test]
async fn an_audit_of_what_is_hot_names_a_share_that_was_granted_and_never_paid() {
    let mut world = World::new();
    let id = world.live(equal("alice", 10, 5)).await;
    world.win(id, "bob").await;
    lose_the_outbox(&world).await;
    assert!(world.audit_what_is_hot().await.clean, "it is in flight");
    world.clock.advance_ms(60_001);
    let report = world.audit_what_is_hot().await;
    let kinds: Vec<_> = report.discrepancies.iter().map(|d| d.kind).collect();
    assert_eq!(kinds, [DiscrepancyKind::GrantWithoutClaim]);
}

#[tokio::test]
async fn an_audit_of_what_is_hot_adds_no_account_up() {
    let mut world = World::new();
    world.live(equal("alice", 10, 2)).await;
    let file = world.ledger_file();
    let edit = "UPDATE account SET available_minor = available_minor + 1 WHERE owner = 'alice'";
    assert_eq!(file.execute(edit, []).unwrap(), 1);
    let report = world.audit_what_is_hot().await;
    assert!(report.clean && report.hot_only && report.envelope_count == 1);
    assert!(
        report
            .totals
            .iter()
            .all(|totals| totals.available_minor == 0)
    );
}

#[tokio::test]
async fn an_audit_of_what_is_hot_reads_envelopes_beside_one_that_nobody_can() {
    let mut world = World::new();
    let broken = world.live(equal("alice", 10, 5)).await;
    let id = world.live(equal("alice", 10, 5)).await;
    pay(&world, id, 3, "mallory", 10).await;
    let file = world.ledger_file();
    let unguard = "DROP TRIGGER envelope_keeps_its_terms";
    file.execute_batch(unguard).unwrap();
    let edit = "UPDATE envelope SET terms = '{}' WHERE id = ?1";
    assert_eq!(file.execute(edit, [broken.to_bytes()]).unwrap(), 1);
    let report = world.audit_what_is_hot().await;
    let named: Vec<_> = report.discrepancies.iter().map(|d| d.envelope).collect();
    assert!(
        named.contains(&Some(id)) && named.contains(&Some(broken)),
        "{named:?}"
    );
}

#[tokio::test]
async fn more_wrongs_than_a_report_names_are_counted() {
    let mut world = World::new();
    let count = u32::try_from(DISCREPANCIES_NAMED_MAX).unwrap() + 500;
    let id = world.live(equal("alice", 1, count)).await;
    for n in 0..count {
        world.win(id, &format!("p{n}")).await;
    }
    lose_the_outbox(&world).await;
    world.clock.advance_ms(60_001);
    let report = world.audit().await;
    assert_eq!(report.discrepancy_count, u64::from(count));
    assert_eq!(report.discrepancies.len(), DISCREPANCIES_NAMED_MAX);
}

#[tokio::test]
async fn an_audit_while_money_moves_raises_no_false_alarm() {
    let mut world = World::new();
    let id = world.live(lucky("alice", 100_000, 400)).await;
    let grabs = async {
        for n in 0..400 {
            world.win(id, &format!("p{n}")).await;
        }
    };
    let settles = async {
        while world.row(id).await.settled_count < 400 {
            world.drain().await;
            world.sweep().await;
        }
    };
    let audits = async {
        for _ in 0..20 {
            world.is_clean().await;
        }
    };
    tokio::join!(grabs, settles, audits);
    world.settle().await;
    let report = world.is_clean().await;
    assert!(report.quiet);
    assert_eq!(report.claim_count, 400);
}
