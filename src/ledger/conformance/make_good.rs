//! What was shown to somebody and went to somebody else.

use super::{FIRST, HOUR_MS, World, act, cny, decline, pay, person, record, tenant};
use crate::domain::envelope::CloseReason;
use crate::domain::id::EnvelopeId;
use crate::domain::posting::PostingKind;
use crate::ledger::{CloseProgress, DeadLetterRow, SettleItem, Settled};

/// More than any of these cases makes good.
pub(super) const PLENTY: i64 = 1_000_000;

impl World {
    /// What the reserves paid, less what went back, of CNY.
    pub(super) async fn reserve_paid(&self) -> i64 {
        let totals = self.ledger.audit_totals(None).await.expect("an audit");
        let sums = totals.currencies.iter();
        let mut of_yuan = sums.filter(|sums| sums.currency == cny(0).currency);
        of_yuan.next().map_or(0, |sums| sums.made_good_minor)
    }

    /// The only letter.
    pub(super) async fn letter(&self) -> DeadLetterRow {
        let letters = self.ledger.dead_letters(None, 0, 10).await;
        let mut letters = letters.expect("letters");
        assert_eq!(letters.len(), 1, "{letters:?}");
        letters.remove(0)
    }

    pub(super) async fn replay(&self, letter: &DeadLetterRow) -> Option<DeadLetterRow> {
        let (row, amount) = (letter.row, letter.record.grant.amount_minor);
        let act = act("replay", letter.record.envelope);
        let replayed = self.ledger.replay_dead_letter(row, Some(amount), act);
        replayed.await.expect("an answer")
    }

    pub(super) async fn one(&self, item: SettleItem) -> Settled {
        self.settle(vec![item]).await[0]
    }

    pub(super) async fn is_closed(&self, id: EnvelopeId, taken_count: u32) {
        let expired = CloseReason::Expired;
        let begun = self.ledger.begin_close(id, expired).await;
        begun.expect("it closes");
        let done = self
            .ledger
            .finish_close(vec![FIRST], id, expired, taken_count);
        let done = done.await.expect("it closes");
        assert!(matches!(done, CloseProgress::Closed(_)), "{done:?}");
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn what_was_shown_and_went_to_another_is_made_good_once(world: &World) {
    world.make_good_up_to(PLENTY, 10);
    let id = world.live(100, 4, "e1").await;
    let other = world.live(100, 4, "e2").await;
    assert_eq!(world.one(pay(id, 0, "bob", 40)).await, Settled::Paid);
    let lost = || pay(id, 0, "carol", 40);
    assert_eq!(world.one(lost()).await, Settled::MadeGood);
    let twice = world.settle(vec![lost(), lost()]).await;
    assert_eq!(twice, [Settled::Duplicate; 2]);
    assert_eq!(world.has("carol").await, (40, 0));
    assert_eq!(world.has("bob").await, (40, 0));
    // The envelope's own money is what it was.
    let row = world.envelope(id).await;
    assert_eq!((row.settled_count, row.settled_minor), (1, 40));
    assert_eq!((row.made_good_minor, row.set_aside_count), (40, 0));
    assert_eq!(world.has("alice").await, (0, 160));
    // Another lost share of hers in it is no second one, and in another envelope it is.
    assert_eq!(world.one(pay(id, 1, "dave", 10)).await, Settled::Paid);
    assert_eq!(
        world.one(pay(id, 1, "carol", 10)).await,
        Settled::Superseded
    );
    let elsewhere = vec![pay(other, 3, "bob", 7), pay(other, 3, "carol", 7)];
    let verdicts = [Settled::Paid, Settled::MadeGood];
    assert_eq!(world.settle(elsewhere).await, verdicts);
    assert_eq!(world.has("carol").await, (47, 0));
    assert_eq!(world.reserve_paid().await, 47);
    world.is_closed(id, 2).await;
    assert_eq!(world.one(lost()).await, Settled::Duplicate);
    assert_eq!(world.has("alice").await, (50, 93));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn who_has_another_share_is_made_good_the_difference_and_no_more(world: &World) {
    world.make_good_up_to(PLENTY, 10);
    let id = world.live(100, 4, "e1").await;
    let won = vec![
        pay(id, 0, "bob", 40),
        pay(id, 1, "carol", 15),
        pay(id, 2, "dave", 41),
    ];
    assert_eq!(world.settle(won).await, [Settled::Paid; 3]);
    // Shown 40 and paid 15; shown 40 and paid 41; shown what nobody has.
    let lost = vec![
        pay(id, 0, "carol", 40),
        pay(id, 0, "dave", 40),
        pay(id, 3, "bob", 4),
    ];
    let (good, nothing) = (Settled::MadeGood, Settled::Superseded);
    assert_eq!(world.settle(lost.clone()).await, [good, nothing, nothing]);
    let again = [Settled::Duplicate, nothing, nothing];
    assert_eq!(world.settle(lost).await, again);
    assert_eq!(world.has("carol").await, (40, 0));
    assert_eq!(world.has("dave").await, (41, 0));
    assert_eq!(world.reserve_paid().await, 25);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_share_that_comes_after_all_gives_back_what_it_pays(world: &World) {
    world.make_good_up_to(PLENTY, 10);
    let id = world.live(100, 4, "e1").await;
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    let lost = vec![pay(id, 0, "carol", 40), pay(id, 0, "dave", 40)];
    assert_eq!(world.settle(lost.clone()).await, [Settled::MadeGood; 2]);
    assert_eq!(world.reserve_paid().await, 80);
    // Carol won less meanwhile, and dave more.
    let won = vec![pay(id, 1, "carol", 10), pay(id, 2, "dave", 45)];
    assert_eq!(world.settle(won.clone()).await, [Settled::Paid; 2]);
    assert_eq!(world.has("carol").await, (40, 0));
    assert_eq!(world.has("dave").await, (45, 0));
    assert_eq!(world.reserve_paid().await, 30);
    let row = world.envelope(id).await;
    assert_eq!((row.made_good_minor, row.settled_minor), (30, 95));
    // Whatever comes again moves nothing, and a third share is nobody's way to more.
    for batch in [lost, won] {
        assert_eq!(world.settle(batch).await, [Settled::Duplicate; 2]);
    }
    assert_eq!(world.one(pay(id, 3, "carol", 5)).await, Settled::Superseded);
    // Nor is a second lost one that was larger: once is once, also where all of it went back.
    assert_eq!(world.one(pay(id, 3, "erin", 5)).await, Settled::Paid);
    world.is_closed(id, 4).await;
    assert_eq!(world.has("carol").await, (40, 0));
    assert_eq!(world.has("alice").await, (0, 0));
    let second = world.live(100, 3, "e2").await;
    let all = vec![
        pay(second, 0, "bob", 10),
        pay(second, 0, "carol", 10),
        pay(second, 1, "carol", 20),
        pay(second, 2, "bob", 1),
        pay(second, 2, "erin", 30),
        pay(second, 2, "carol", 30),
    ];
    let verdicts = [
        Settled::Paid,
        Settled::MadeGood,
        Settled::Paid,
        Settled::Superseded,
        Settled::Paid,
        Settled::Superseded,
    ];
    assert_eq!(world.settle(all).await, verdicts);
    assert_eq!(world.envelope(second).await.made_good_minor, 0);
    assert_eq!(
        world.one(pay(second, 2, "carol", 30)).await,
        Settled::Superseded
    );
}

/// The orders of three things.
const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn every_order_of_arrival_ends_with_the_larger_amount(world: &World) {
    world.make_good_up_to(PLENTY, 100);
    let mut expected = (0, 0, 0);
    for (lost, won) in [(40, 15), (15, 40)] {
        for (number, order) in ORDERS.into_iter().enumerate() {
            let id = world.live(100, 4, &format!("e-{lost}-{number}")).await;
            // Bob has the share that carol was shown, and she has another one.
            let records = [
                pay(id, 0, "bob", lost),
                pay(id, 0, "carol", lost),
                pay(id, 1, "carol", won),
            ];
            // Each comes again, at any time. A share that nobody has yet is not another's: only the second
            // time is carol's record one of bob's share where it came before his, and after her other one.
            for at in order.into_iter().chain(order) {
                world.one(records[at].clone()).await;
                world.one(records[order[0]].clone()).await;
            }
            // Who comes first has the share: then it is bob to whom it was shown besides.
            let carol_first = order[0] == 1;
            let claims = world.ledger.claims(id, 0, 10).await.expect("claims");
            let first = &claims[0].grabber;
            assert_eq!(*first == person("carol"), carol_first, "{order:?}");
            expected.0 += lost;
            expected.1 += if carol_first { lost } else { lost.max(won) };
            expected.2 += match carol_first {
                true => lost,
                false => (lost - won).max(0),
            };
            let has = (
                world.has("bob").await.0,
                world.has("carol").await.0,
                world.reserve_paid().await,
            );
            assert_eq!(has, expected, "{order:?} of {lost} and {won}");
            // Once more in this order, nothing moves.
            for at in order {
                let verdict = world.one(records[at].clone()).await;
                let nothing = [Settled::Duplicate, Settled::Superseded];
                assert!(nothing.contains(&verdict), "{verdict:?}");
            }
            assert_eq!(world.reserve_paid().await, expected.2);
        }
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn all_of_it_in_one_batch_is_the_same(world: &World) {
    world.make_good_up_to(PLENTY, 10);
    let id = world.live(100, 4, "e1").await;
    let batch = vec![
        pay(id, 0, "bob", 40),
        pay(id, 0, "carol", 40),
        pay(id, 1, "carol", 15),
        // What carol has now, dave was shown.
        pay(id, 1, "dave", 15),
        pay(id, 2, "dave", 20),
        pay(id, 0, "carol", 40),
    ];
    let verdicts = [
        Settled::Paid,
        Settled::MadeGood,
        Settled::Paid,
        Settled::MadeGood,
        Settled::Paid,
        Settled::Duplicate,
    ];
    assert_eq!(world.settle(batch.clone()).await, verdicts);
    assert_eq!(world.settle(batch).await, [Settled::Duplicate; 6]);
    assert_eq!(world.has("carol").await, (40, 0));
    assert_eq!(world.has("dave").await, (20, 0));
    assert_eq!(world.reserve_paid().await, 25);
    assert_eq!(world.envelope(id).await.made_good_minor, 25);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn nothing_is_made_good_against_the_plan_or_of_a_declined_share(world: &World) {
    world.make_good_up_to(PLENTY, 10);
    let id = world.live(100, 4, "e1").await;
    world
        .settle(vec![pay(id, 0, "bob", 40), decline(id, 1, "dave", 10)])
        .await;
    let none = vec![
        SettleItem::SetAside(record(id, 0, "carol", 40), "wrong_grabber"),
        // Not what the share is worth, as its claim says.
        pay(id, 0, "carol", 41),
        decline(id, 0, "carol", 40),
        // Dave had declined.
        pay(id, 0, "dave", 40),
        pay(id, 1, "dave", 10),
    ];
    assert_eq!(world.settle(none).await, [Settled::Superseded; 5]);
    assert_eq!(world.reserve_paid().await, 0);
    let letters = world.ledger.dead_letters(None, 0, 10).await;
    assert!(letters.expect("letters").is_empty());
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_frozen_envelope_makes_nothing_good_until_it_is_unfrozen(world: &World) {
    world.make_good_up_to(PLENTY, 10);
    let id = world.live(100, 4, "e1").await;
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    let frozen = world.ledger.freeze(id, act("freeze", id)).await;
    assert!(!frozen.expect("is frozen"));
    assert_eq!(world.one(pay(id, 0, "carol", 40)).await, Settled::Parked);
    assert_eq!(world.unparked().await, 0);
    assert_eq!(world.has("carol").await, (0, 0));
    let unfrozen = world.ledger.unfreeze(id, act("unfreeze", id)).await;
    assert!(!unfrozen.expect("is unfrozen"));
    assert_eq!(world.unparked().await, 1);
    assert_eq!(world.has("carol").await, (40, 0));
    world.is_closed(id, 1).await;
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_grabber_sees_it_in_his_entries_and_the_share_is_of_another(world: &World) {
    world.make_good_up_to(PLENTY, 10);
    let id = world.live(100, 4, "e1").await;
    let batch = vec![pay(id, 2, "bob", 40), pay(id, 2, "carol", 40)];
    world.settle(batch).await;
    world.clock.advance_ms(HOUR_MS / 2);
    world.settle(vec![pay(id, 0, "carol", 15)]).await;
    let entries = world
        .ledger
        .entries(tenant(), person("carol"), None, None, 10);
    let entries = entries.await.expect("entries");
    let mut told: Vec<_> = entries
        .iter()
        .map(|e| (e.kind, e.amount.minor, e.share, e.envelope))
        .collect();
    told.sort_by_key(|(_, minor, _, _)| std::cmp::Reverse(*minor));
    let of = Some(id);
    let expected = [
        (PostingKind::MakeGood, 40, Some(2), of),
        (PostingKind::Settle, 15, Some(0), of),
        (PostingKind::MakeGood, -15, None, of),
    ];
    assert_eq!(told, expected);
    assert_eq!(
        entries.last().expect("three").amount.minor,
        40,
        "the oldest"
    );
    let received = world.ledger.received(tenant(), person("carol"), None, 10);
    let received = received.await.expect("a list");
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].share.grant.share, 0);
    let claims = world.ledger.claims(id, 0, 10).await.expect("claims");
    let holders: Vec<_> = claims
        .iter()
        .map(|c| (c.grant.share, c.grabber.as_str()))
        .collect();
    assert_eq!(holders, [(0, "carol"), (2, "bob")]);
    let postings = world.ledger.postings(id, 10).await.expect("postings");
    let kinds: Vec<_> = postings.iter().map(|p| p.kind).collect();
    let made_good = kinds.iter().filter(|kind| **kind == PostingKind::MakeGood);
    assert_eq!(made_good.count(), 2, "{kinds:?}");
}
