//! What owners and operators are shown.

use super::{FIRST, NOON_MS, World, cny, decline, draft, pay, person, tenant, transfer};
use crate::domain::envelope::CloseReason;
use crate::domain::id::{EnvelopeId, UnixMs};
use crate::domain::money::Currency;
use crate::domain::posting::PostingKind;
use crate::ledger::{Period, PeriodTotals, SettleItem, Transfer};

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn entries_tell_the_whole_history_of_an_account(world: &World) {
    world.deposit("alice", 1_000, "d1").await;
    let id = world.fund(draft("alice", 100, 4), "f1").await.id;
    world
        .settle(vec![pay(id, 2, "alice", 30), decline(id, 0, "bob", 20)])
        .await;
    world
        .ledger
        .withdraw(transfer("alice", 7, "w1"))
        .await
        .expect("stands");
    let begun = world.ledger.begin_close(id, CloseReason::Recalled).await;
    begun.expect("it closes");
    let done = world
        .ledger
        .finish_close(vec![FIRST], id, CloseReason::Recalled, 2)
        .await;
    done.expect("it closes");
    let points = Currency::from_code("POINTS").expect("a code");
    let mut other = transfer("alice", 5, "d2");
    other.amount.currency = points;
    world
        .ledger
        .deposit(other as Transfer)
        .await
        .expect("stands");

    let read = async |currency, before, limit| {
        let page = world
            .ledger
            .entries(tenant(), person("alice"), currency, before, limit);
        page.await.expect("entries are read")
    };
    let yuan = read(Some(cny(0).currency), None, 100).await;
    let told: Vec<_> = yuan
        .iter()
        .rev()
        .map(|e| (e.kind, e.amount.minor, e.share))
        .collect();
    assert_eq!(
        told,
        [
            (PostingKind::Deposit, 1_000, None),
            (PostingKind::Fund, -100, None),
            (PostingKind::Settle, 30, Some(2)),
            (PostingKind::Refund, 20, None),
            (PostingKind::Withdrawal, -7, None),
            (PostingKind::Refund, 50, None),
        ]
    );
    let sum: i64 = yuan.iter().map(|e| e.amount.minor).sum();
    assert_eq!((sum, 0), world.has("alice").await);
    assert_eq!(yuan.last().expect("six").reference, "a payment");
    assert_eq!(yuan[0].envelope, Some(id));
    // All currencies, in pages of two.
    let mut paged = Vec::new();
    let mut before = None;
    loop {
        let page = read(None, before, 2).await;
        let Some(last) = page.last() else { break };
        before = Some(last.entry);
        paged.extend(page);
    }
    assert_eq!(paged.len(), 7);
    assert_eq!(paged[0].amount.currency, points);
    assert_eq!(paged[1..], yuan);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn sent_and_received_page_from_the_newest(world: &World) {
    let mut ids = Vec::new();
    for index in 0..5 {
        let id = world.live(100, 2, &format!("e{index}")).await;
        world
            .settle(vec![
                pay(id, 0, "bob", 10 + index),
                decline(id, 1, "carol", 3),
            ])
            .await;
        ids.push(id);
    }
    ids.reverse();
    let sent = async |before, limit| {
        let page = world.ledger.sent(tenant(), person("alice"), before, limit);
        page.await.expect("envelopes are read")
    };
    let first = sent(None, 2).await;
    let rest = sent(Some(first[1].row), 100).await;
    let told: Vec<_> = first.iter().chain(&rest).map(|row| row.id).collect();
    assert_eq!(told, ids);
    let received = async |who, before, limit| {
        let page = world.ledger.received(tenant(), person(who), before, limit);
        page.await.expect("shares are read")
    };
    let first = received("bob", None, 2).await;
    let rest = received("bob", Some(first[1].row), 100).await;
    let told: Vec<_> = first.iter().chain(&rest).map(|row| row.envelope).collect();
    assert_eq!(told, ids);
    assert_eq!(first[0].share.grant.amount_minor, 14);
    assert_eq!(first[0].sender, person("alice"));
    assert_eq!(first[0].currency, cny(0).currency);
    assert!(
        received("carol", None, 10).await.is_empty(),
        "declined is not received"
    );
    assert!(
        received("alice", None, 10).await.is_empty(),
        "a refund is not received"
    );
    let unknown = EnvelopeId::from_parts(1, [9; 14]);
    // Several at once, of one person and of others, one of them twice.
    let asked = [
        (ids[0], "bob"),
        (unknown, "bob"),
        (ids[1], "bob"),
        (ids[1], "nobody"),
        (ids[1], "carol"),
        (ids[0], "bob"),
    ];
    let whose = asked.map(|(id, who)| (id, person(who))).to_vec();
    let claims = world.ledger.claims_of(whose).await;
    let claims = claims.expect("claims are read");
    let found: Vec<_> = claims
        .iter()
        .map(|c| c.as_ref().map(|c| (&c.grabber, c.grant.amount_minor)))
        .collect();
    let (bob, carol) = (person("bob"), person("carol"));
    let (first, second) = (Some((&bob, 14)), Some((&bob, 13)));
    let declined = Some((&carol, 3));
    assert_eq!(found, [first, None, second, None, declined, first]);
    let both = world
        .ledger
        .envelopes(vec![ids[3], unknown])
        .await
        .expect("a read");
    assert_eq!(both[0].as_ref().map(|row| row.id), Some(ids[3]));
    assert!(both[1].is_none());
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn pending_shares_are_those_without_a_claim(world: &World) {
    let id = world.live(100, 4, "e1").await;
    world.settle(vec![pay(id, 1, "bob", 10)]).await;
    let unknown = EnvelopeId::from_parts(1, [9; 14]);
    let pairs = vec![(id, 0), (id, 1), (unknown, 1), (id, 2)];
    let asked = world.ledger.balances(tenant(), person("bob"), pairs).await;
    let (rows, pending) = asked.expect("balances are read");
    assert_eq!(pending, [true, false, true, true]);
    assert_eq!(rows[0].available_minor, 10);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_postings_of_an_envelope_tell_where_its_money_went(world: &World) {
    let id = world.live(100, 4, "e1").await;
    world
        .settle(vec![pay(id, 0, "bob", 10), pay(id, 1, "carol", 20)])
        .await;
    world.settle(vec![decline(id, 2, "dave", 30)]).await;
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    let done = world
        .ledger
        .finish_close(vec![FIRST], id, CloseReason::Expired, 3)
        .await;
    done.expect("it closes");
    let postings = world.ledger.postings(id, 10).await.expect("postings");
    let told: Vec<_> = postings
        .iter()
        .map(|p| (p.kind, p.amount_minor, p.shares))
        .collect();
    assert_eq!(
        told,
        [
            (PostingKind::Fund, 100, 0),
            (PostingKind::Settle, -30, 2),
            (PostingKind::Refund, -30, 0),
            (PostingKind::Refund, -40, 0),
        ]
    );
    let unknown = EnvelopeId::from_parts(1, [9; 14]);
    assert!(
        world
            .ledger
            .postings(unknown, 10)
            .await
            .expect("a read")
            .is_empty()
    );
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_periods_totals_count_what_was_grabbed_and_funded_in_it(world: &World) {
    let at = UnixMs(NOON_MS + 1);
    let totals = async |who, from, to| {
        let period = Period { from, to };
        let asked = world.ledger.totals(tenant(), person(who), period).await;
        asked.expect("totals are read").expect("they are few")
    };
    let day = async |who| totals(who, UnixMs(NOON_MS), at.plus_ms(1)).await;
    assert!(day("bob").await.is_empty());

    // bob has the best share of the first envelope, which is empty, and none of the others.
    let first = world.live(100, 2, "e1").await;
    world
        .settle(vec![pay(first, 0, "bob", 60), pay(first, 1, "carol", 40)])
        .await;
    let second = world.live(50, 3, "e2").await;
    world
        .settle(vec![
            pay(second, 0, "bob", 10),
            decline(second, 1, "carol", 15),
        ])
        .await;
    let bob = PeriodTotals {
        received_count: 2,
        received_minor: 70,
        best_count: 1,
        ..PeriodTotals::nothing(cny(0).currency)
    };
    assert_eq!(day("bob").await, [bob]);
    let carol = PeriodTotals {
        received_count: 1,
        received_minor: 40,
        best_count: 0,
        ..bob
    };
    assert_eq!(day("carol").await, [carol], "what was declined is nobody's");
    let alice = PeriodTotals {
        sent_count: 2,
        sent_minor: 150,
        refunded_minor: 15,
        ..PeriodTotals::nothing(cny(0).currency)
    };
    assert_eq!(day("alice").await, [alice]);

    // A period has its first instant and not its last.
    assert_eq!(totals("bob", at, at.plus_ms(1)).await, [bob]);
    assert!(totals("bob", UnixMs(NOON_MS), at).await.is_empty());
    assert!(totals("alice", at, at.plus_ms(1)).await.is_empty());
    // A share is of the day on which it was grabbed, however long its envelope was there.
    world.clock.advance_ms(80 * 86_400_000);
    let later = at.plus_ms(70 * 86_400_000);
    let mut late = pay(second, 2, "dan", 25);
    let SettleItem::Pay(record) = &mut late else {
        unreachable!()
    };
    record.grant.at = later;
    world.settle(vec![late]).await;
    let dan = PeriodTotals {
        received_count: 1,
        received_minor: 25,
        best_count: 1,
        ..PeriodTotals::nothing(cny(0).currency)
    };
    assert_eq!(totals("dan", later, later.plus_ms(1)).await, [dan]);
    assert!(day("dan").await.is_empty());
}
