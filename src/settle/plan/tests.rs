//! Tests of the plan: nothing is paid that the seed does not say.

use super::*;
use crate::domain::audience::Audience;
use crate::domain::envelope::{Draft, ExclusiveShare, Kind, LeafRef, Reveal};
use crate::domain::grab::Grant;
use crate::domain::id::{PersonId, TenantId, UnixMs};
use crate::domain::money::Currency;
use crate::domain::stripes::StripeCount;
use proptest::prelude::*;

fn id(n: u8) -> EnvelopeId {
    EnvelopeId::from_parts(1, [n; 14])
}

fn person(n: u32) -> PersonId {
    PersonId::parse(&format!("p{n}")).unwrap()
}

/// Share n of an EXCLUSIVE envelope is person n's.
fn terms(kind: Kind, share_count: u32) -> Arc<Terms> {
    let exclusive = (0..share_count).filter(|_| kind == Kind::Exclusive);
    let exclusive = exclusive.map(|n| ExclusiveShare {
        grabber: person(n),
        amount_minor: 1,
    });
    Arc::new(Terms {
        draft: Draft {
            tenant: TenantId::parse("").unwrap(),
            sender: PersonId::parse("alice").unwrap(),
            kind,
            currency: Currency::from_code("CNY").unwrap(),
            total_minor: i64::from(share_count),
            share_count,
            min_minor: 1,
            max_minor: 1,
            split: None,
            exclusive: exclusive.collect(),
            audience: Audience::Anyone,
            passphrase: None,
            greeting: String::new(),
            cover_id: String::new(),
            reveal: Reveal::AfterGrab,
            labels: BTreeMap::new(),
            opens_at: None,
            expires_in_ms: 1_000,
            client_nonce: Vec::new(),
            stripes: StripeCount::ONE,
        },
        created_at: UnixMs(0),
        expires_at: UnixMs(1_000),
        leaf: LeafRef {
            leaf_number: 0,
            leaf_hash: [0; 32],
            batch_number: 0,
            batch_root: [0; 32],
        },
    })
}

fn record(envelope: u8, grabber: u32, share: u32, amount_minor: i64) -> OutboxRecord {
    OutboxRecord {
        envelope: id(envelope),
        grabber: person(grabber),
        grant: Grant {
            share,
            amount_minor,
            at: UnixMs(5),
        },
        declined: false,
    }
}

fn known(kind: Kind, amounts: &[i64]) -> Known {
    let count = u32::try_from(amounts.len()).unwrap();
    Known::Shares(
        terms(kind, count),
        (0..).zip(amounts.iter().copied()).collect(),
    )
}

fn reasons(records: &[OutboxRecord], known: &BTreeMap<EnvelopeId, Known>) -> Vec<&'static str> {
    let reason = |item| match item {
        SettleItem::Pay(_) => "pay",
        SettleItem::SetAside(_, reason) => reason,
    };
    plan(records, known).into_iter().map(reason).collect()
}

proptest! {
    #[test]
    fn a_record_is_paid_exactly_when_the_seed_says_share_and_amount(
        amounts in proptest::collection::vec(1_i64..5, 1..8),
        asked in proptest::collection::vec((0_u8..3, 0_u32..10, 0_u32..10, 0_i64..6), 0..50),
    ) {
        let books = BTreeMap::from([
            (id(0), known(Kind::Lucky, &amounts)),
            (id(1), known(Kind::Exclusive, &amounts)),
        ]);
        let records: Vec<_> = asked.iter().map(|(e, g, s, a)| record(*e, *g, *s, *a)).collect();
        let items = plan(&records, &books);
        prop_assert_eq!(items.len(), records.len());
        for ((envelope, grabber, share, amount), item) in asked.into_iter().zip(items) {
            let said = amounts.get(usize::try_from(share).unwrap());
            let named = envelope == 0 || grabber == share;
            let right = envelope < 2 && said == Some(&amount) && named;
            prop_assert_eq!(matches!(item, SettleItem::Pay(_)), right);
        }
    }

    #[test]
    fn a_batch_asks_for_each_share_once(
        asked in proptest::collection::vec((0_u8..3, 0_u32..10), 0..50),
    ) {
        let records: Vec<_> = asked.iter().map(|(e, s)| record(*e, 0, *s, 1)).collect();
        let needed = shares_needed(&records);
        let pairs: BTreeSet<_> = asked.into_iter().map(|(e, s)| (id(e), s)).collect();
        let found = needed.iter().flat_map(|(e, shares)| shares.iter().map(|s| (*e, *s)));
        prop_assert_eq!(found.collect::<BTreeSet<_>>(), pairs);
    }
}

#[test]
fn what_is_set_aside_says_why() {
    let books = BTreeMap::from([
        (id(0), known(Kind::Lucky, &[7, 8])),
        (id(1), known(Kind::Exclusive, &[7, 8])),
        (id(2), Known::Broken),
    ]);
    let declined = |envelope, grabber| OutboxRecord {
        declined: true,
        ..record(envelope, grabber, 1, 8)
    };
    let records = [
        record(0, 5, 1, 8),
        record(0, 5, 1, 7),
        record(0, 5, 2, 8),
        record(9, 5, 1, 8),
        record(1, 0, 1, 8),
        record(1, 1, 1, 8),
        declined(0, 1),
        declined(1, 1),
        record(2, 1, 1, 8),
    ];
    let expected = [
        "pay",
        AMOUNT_MISMATCH,
        SHARE_OUT_OF_RANGE,
        UNKNOWN_ENVELOPE,
        WRONG_GRABBER,
        "pay",
        NOT_DECLINABLE,
        "pay",
        BROKEN_TERMS,
    ];
    assert_eq!(reasons(&records, &books), expected);
}

#[test]
fn a_share_of_an_envelope_for_named_grabbers_is_paid_to_none_but_them() {
    let Known::Shares(open, amounts) = known(Kind::Lucky, &[9, 8]) else {
        panic!("it has shares");
    };
    let mut terms = (*open).clone();
    terms.draft.audience = Audience::Named([person(1)].into());
    let invited = Known::Shares(Arc::new(terms), amounts.clone());
    let books = [(id(0), invited), (id(1), Known::Shares(open, amounts))].into();
    let records = [
        record(0, 1, 1, 8),
        record(0, 5, 1, 8),
        record(0, 5, 1, 7),
        record(1, 5, 1, 8),
    ];
    let expected = ["pay", NOT_IN_AUDIENCE, AMOUNT_MISMATCH, "pay"];
    assert_eq!(reasons(&records, &books), expected);
}
