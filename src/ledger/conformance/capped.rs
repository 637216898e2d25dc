//! What is made good only up to a cap, and the letters over what is not.

use super::make_good::PLENTY;
use super::{World, act, draft, pay, record, transfer};
use crate::domain::id::TenantId;
use crate::domain::money::AMOUNT_MINOR_MAX;
use crate::ledger::{
    CAPPED, Fund, MAKE_GOOD_MS, NO_ROOM, REFUSED_BY_THE_BOOKS, SettleItem, Settled, Transfer,
};

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn beyond_the_cap_a_letter_waits_for_an_operator_and_blocks_nothing(world: &World) {
    let id = world.live(100, 4, "e1").await;
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    let lost = || pay(id, 0, "carol", 40);
    // Nothing is made good unless somebody says so.
    assert_eq!(world.one(lost()).await, Settled::Capped);
    world.make_good_up_to(39, 10);
    assert_eq!(world.one(lost()).await, Settled::Capped);
    let letter = world.letter().await;
    assert_eq!((letter.reason.as_str(), letter.tries), (CAPPED, 2));
    assert_eq!(world.replay(&letter).await.expect("capped").reason, CAPPED);
    assert_eq!(world.envelope(id).await.set_aside_count, 0);
    world.is_closed(id, 1).await;
    assert_eq!(world.has("alice").await, (60, 0));
    assert_eq!(world.has("carol").await, (0, 0));
    // The operator raises it; the answer is the same for ever.
    world.make_good_up_to(40, 10);
    for _ in 0..2 {
        assert!(world.replay(&letter).await.is_none());
    }
    assert_eq!(world.has("carol").await, (40, 0));
    assert_eq!(world.envelope(id).await.made_good_minor, 40);
    assert_eq!(world.one(lost()).await, Settled::Duplicate);
    // So it is where the record comes again by itself.
    let second = world.live(100, 4, "e2").await;
    let two = vec![pay(second, 0, "bob", 40), pay(second, 0, "carol", 40)];
    let verdicts = [Settled::Paid, Settled::Capped];
    assert_eq!(world.settle(two.clone()).await, verdicts);
    world.make_good_up_to(80, 10);
    let verdicts = [Settled::Duplicate, Settled::MadeGood];
    assert_eq!(world.settle(two).await, verdicts);
    let letters = world.ledger.dead_letters(None, 0, 10).await;
    assert!(letters.expect("letters").is_empty());
    assert_eq!(world.reserve_paid().await, 80);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn of_a_loss_of_many_so_much_is_made_good_as_the_cap_leaves(world: &World) {
    const LOST: u32 = 300;
    const LEFT: usize = 200;
    let id = world.live(3_000, LOST, "e1").await;
    let shares_of = |whose: &'static str| {
        (0..LOST).map(move |share| pay(id, share, &format!("{whose}{share}"), 10))
    };
    assert!(world.settle(shares_of("won").collect()).await == [Settled::Paid; LOST as usize]);
    world.make_good_up_to(10 * 200, LOST);
    let lost = || shares_of("lost").collect::<Vec<_>>();
    // A second time in the same transaction is the same letter, or is known to be made good.
    let twice = world
        .settle(lost().into_iter().chain(lost()).collect())
        .await;
    let (first, second) = twice.split_at(LOST as usize);
    assert!(
        first[..LEFT]
            .iter()
            .all(|verdict| *verdict == Settled::MadeGood)
    );
    assert!(
        second[..LEFT]
            .iter()
            .all(|verdict| *verdict == Settled::Duplicate)
    );
    let beyond = first[LEFT..].iter().chain(&second[LEFT..]);
    assert!(beyond.copied().all(|verdict| verdict == Settled::Capped));
    assert_eq!(world.reserve_paid().await, 2_000);
    let letters = world
        .ledger
        .dead_letters(None, 0, 1_000)
        .await
        .expect("letters");
    assert_eq!(letters.len(), 100);
    assert!(
        letters
            .iter()
            .all(|letter| letter.tries == 2 && letter.reason == CAPPED)
    );
    world.is_closed(id, LOST).await;
    world.make_good_up_to(PLENTY, LOST);
    let rest = world.settle(lost()).await;
    assert!(
        rest[..LEFT]
            .iter()
            .all(|verdict| *verdict == Settled::Duplicate)
    );
    assert!(
        rest[LEFT..]
            .iter()
            .all(|verdict| *verdict == Settled::MadeGood)
    );
    assert_eq!(world.envelope(id).await.made_good_minor, 3_000);
    for share in [0, 199, 200, 299] {
        assert_eq!(world.has(&format!("lost{share}")).await, (10, 0));
    }
    let letters = world.ledger.dead_letters(None, 0, 10).await;
    assert!(letters.expect("letters").is_empty());
    world.audit().await;
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_letter_that_nobody_will_make_good_is_dismissed(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let two = vec![pay(id, 0, "bob", 40), pay(id, 0, "mallory", 40)];
    assert_eq!(world.settle(two).await, [Settled::Paid, Settled::Capped]);
    let letter = world.letter().await;
    let act = || act("dismiss_dead_letter", id);
    // The seed says as much of the share: it is the reserve that owes, and nobody lets it.
    let dismissed = world
        .ledger
        .dismiss_dead_letter(letter.row, Some(40), act());
    assert!(dismissed.await.expect("an answer").is_dismissed());
    world.is_closed(id, 1).await;
    // It stays unpaid, also where the record comes again and the cap leaves more.
    world.make_good_up_to(PLENTY, 10);
    let again = world.one(pay(id, 0, "mallory", 40)).await;
    assert_eq!(again, Settled::Superseded);
    assert!(world.replay(&letter).await.expect("stays").is_dismissed());
    assert_eq!(world.has("mallory").await, (0, 0));
    assert_eq!(world.reserve_paid().await, 0);
    world.audit().await;
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_cap_is_of_any_day_and_of_each_tenant_and_counts_records(world: &World) {
    world.make_good_up_to(50, 2);
    let id = world.live(100, 4, "e1").await;
    world
        .settle(vec![pay(id, 0, "bob", 40), pay(id, 1, "ben", 5)])
        .await;
    let lost = vec![
        pay(id, 0, "carol", 40),
        // 10 are left.
        pay(id, 0, "dave", 40),
        pay(id, 1, "erin", 5),
        // Two records are the most.
        pay(id, 1, "fay", 5),
    ];
    let (good, capped) = (Settled::MadeGood, Settled::Capped);
    assert_eq!(world.settle(lost).await, [good, capped, good, capped]);
    // Another tenant has a reserve of its own.
    let other = TenantId::parse("other").expect("a name");
    let deposited = world.ledger.deposit(Transfer {
        tenant: other.clone(),
        ..transfer("alice", 100, "d-other")
    });
    deposited.await.expect("stands");
    let fund = Fund {
        draft: crate::domain::envelope::Draft {
            tenant: other,
            ..draft("alice", 100, 4)
        },
        ..super::fund(draft("alice", 100, 4), "e-other")
    };
    let its = world.ledger.fund(fund).await.expect("funded").envelope.id;
    let both = vec![pay(its, 0, "bob", 40), pay(its, 0, "carol", 40)];
    assert_eq!(world.settle(both).await, [Settled::Paid, good]);
    // A day later there is as much again.
    world.clock.advance_ms(MAKE_GOOD_MS - 1);
    assert_eq!(world.one(pay(id, 0, "dave", 40)).await, capped);
    world.clock.advance_ms(1);
    assert_eq!(world.one(pay(id, 0, "dave", 40)).await, good);
    assert_eq!(world.has("dave").await, (40, 0));
    assert_eq!(world.reserve_paid().await, 40 + 5 + 40 + 40);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_full_account_waits_and_a_closed_envelope_does_not(world: &World) {
    world.make_good_up_to(PLENTY, 10);
    let id = world.live(100, 4, "e1").await;
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    world.deposit("rich", AMOUNT_MINOR_MAX, "d1").await;
    assert_eq!(world.one(pay(id, 0, "rich", 40)).await, Settled::DeadLetter);
    let letter = world.letter().await;
    assert_eq!(letter.reason, NO_ROOM);
    world.is_closed(id, 1).await;
    // Carol's record comes when all is over.
    assert_eq!(world.one(pay(id, 0, "carol", 40)).await, Settled::MadeGood);
    assert_eq!(world.has("carol").await, (40, 0));
    let withdrawn = world.ledger.withdraw(transfer("rich", 40, "w1")).await;
    withdrawn.expect("stands");
    assert!(world.replay(&letter).await.is_none());
    assert_eq!(world.has("rich").await.0, AMOUNT_MINOR_MAX);
    assert_eq!(world.envelope(id).await.made_good_minor, 80);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_full_account_that_gives_back_what_it_takes_needs_no_room(world: &World) {
    world.make_good_up_to(PLENTY, 10);
    let id = world.live(100, 4, "e1").await;
    let two = vec![pay(id, 0, "bob", 40), pay(id, 0, "rich", 40)];
    assert_eq!(world.settle(two).await, [Settled::Paid, Settled::MadeGood]);
    world.deposit("rich", AMOUNT_MINOR_MAX - 40, "d1").await;
    assert_eq!(world.one(pay(id, 1, "rich", 10)).await, Settled::Paid);
    assert_eq!(world.has("rich").await.0, AMOUNT_MINOR_MAX);
    assert_eq!(world.reserve_paid().await, 30);
    world.is_closed(id, 2).await;
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn what_the_books_refuse_to_make_good_is_a_letter_that_is_replayed(world: &World) {
    world.make_good_up_to(PLENTY, 10);
    let id = world.live(100, 4, "e1").await;
    let refused = SettleItem::SetAside(record(id, 0, "carol", 40), REFUSED_BY_THE_BOOKS);
    let two = vec![pay(id, 0, "bob", 40), refused];
    assert_eq!(
        world.settle(two).await,
        [Settled::Paid, Settled::DeadLetter]
    );
    let letter = world.letter().await;
    assert_eq!(letter.reason, REFUSED_BY_THE_BOOKS);
    world.is_closed(id, 1).await;
    assert!(world.replay(&letter).await.is_none());
    assert_eq!(world.has("carol").await, (40, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn what_is_set_aside_and_then_another_s_in_one_transaction_blocks_nothing(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let carol = || record(id, 0, "carol", 40);
    let batch = vec![
        SettleItem::SetAside(carol(), REFUSED_BY_THE_BOOKS),
        pay(id, 0, "bob", 40),
        SettleItem::Pay(carol()),
    ];
    let verdicts = [Settled::DeadLetter, Settled::Paid, Settled::Capped];
    assert_eq!(world.settle(batch).await, verdicts);
    let letter = world.letter().await;
    assert_eq!((letter.reason.as_str(), letter.tries), (CAPPED, 2));
    world.is_closed(id, 1).await;
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_letter_of_an_envelope_that_is_closed_is_dismissed(world: &World) {
    let id = world.live(100, 4, "e1").await;
    world.is_closed(id, 0).await;
    assert_eq!(world.one(pay(id, 0, "bob", 40)).await, Settled::DeadLetter);
    let letter = world.letter().await;
    assert_eq!(letter.reason, "envelope_closed");
    let act = act("dismiss_dead_letter", id);
    let dismissed = world.ledger.dismiss_dead_letter(letter.row, Some(40), act);
    assert!(dismissed.await.expect("an answer").is_dismissed());
    world.audit().await;
}
