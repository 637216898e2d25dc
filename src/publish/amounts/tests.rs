//! Tests of the vectors: from the seed alone, and never too many of them.

use std::collections::BTreeMap;

use super::*;
use crate::domain::audience::Audience;
use crate::domain::envelope::{Draft, ExclusiveShare, LeafRef, Reveal};
use crate::domain::id::{PersonId, TenantId, UnixMs};
use crate::domain::money::Currency;
use crate::domain::split::Split;
use crate::domain::stripes::StripeCount;
use proptest::prelude::*;

fn id(n: u8) -> EnvelopeId {
    EnvelopeId::from_parts(1, [n; 14])
}

fn person(name: &str) -> PersonId {
    PersonId::parse(name).unwrap()
}

fn terms(kind: Kind, total_minor: i64, share_count: u32, split: Option<Split>) -> Terms {
    Terms {
        draft: Draft {
            tenant: TenantId::parse("").unwrap(),
            sender: person("alice"),
            kind,
            currency: Currency::from_code("CNY").unwrap(),
            total_minor,
            share_count,
            min_minor: 1,
            max_minor: total_minor,
            split,
            exclusive: Vec::new(),
            audience: Audience::Anyone,
            passphrase: None,
            greeting: String::new(),
            cover_id: String::new(),
            reveal: Reveal::AfterGrab,
            labels: BTreeMap::new(),
            opens_at: None,
            expires_in_ms: 1_000,
            client_nonce: vec![1, 2, 3],
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
    }
}

fn vector(n: u8, shares: usize) -> Vector {
    Vector {
        terms: Arc::new(terms(Kind::Equal, 1, 1, Some(Split::Even))),
        amounts: vec![i64::from(n); shares].into(),
    }
}

proptest! {
    #[test]
    fn the_cache_never_holds_more_shares_than_it_may(
        steps in proptest::collection::vec((0_u8..12, 0_usize..40), 1..100),
    ) {
        let mut kept = Kept::new(100);
        for (n, shares) in steps {
            kept.put(id(n), vector(n, shares));
            let held: u64 = kept.vectors.values().map(|(_, v)| weight(v)).sum();
            prop_assert_eq!(held, kept.shares);
            prop_assert!(kept.shares <= 100);
            prop_assert_eq!(kept.order.len(), kept.vectors.len());
            let found = kept.get(id(n)).expect("what was put last is kept");
            prop_assert!(found.amounts.iter().all(|a| *a == i64::from(n)));
        }
    }

    #[test]
    fn a_seed_always_makes_the_same_shares_and_another_nonce_makes_others(
        seed: [u8; 32], total in 1_000_000_i64..2_000_000, count in 10_u32..50,
    ) {
        let seed = ServerSeed::new(seed);
        let mut lucky = terms(Kind::Lucky, total, count, Some(Split::DoubleMean));
        let amounts = share_amounts(&lucky, id(1), &seed).unwrap();
        prop_assert_eq!(amounts.iter().sum::<i64>(), total);
        prop_assert_eq!(&share_amounts(&lucky, id(1), &seed).unwrap(), &amounts);
        prop_assert_ne!(&share_amounts(&lucky, id(2), &seed).unwrap(), &amounts);
        lucky.draft.client_nonce.push(4);
        prop_assert_ne!(&share_amounts(&lucky, id(1), &seed).unwrap(), &amounts);
    }
}

#[test]
fn the_vector_used_longest_ago_goes_first_and_a_too_large_one_is_not_kept() {
    let mut kept = Kept::new(10);
    kept.put(id(1), vector(1, 5));
    kept.put(id(2), vector(2, 5));
    assert!(kept.get(id(1)).is_some());
    kept.put(id(3), vector(3, 5));
    assert!(kept.get(id(2)).is_none());
    assert!(kept.get(id(1)).is_some() && kept.get(id(3)).is_some());
    kept.put(id(4), vector(4, 11));
    assert!(kept.get(id(4)).is_none() && kept.get(id(1)).is_some());
}

#[test]
fn an_exclusive_envelope_has_the_amounts_of_its_list_whatever_the_seed() {
    let mut exclusive = terms(Kind::Exclusive, 30, 2, None);
    for (name, amount_minor) in [("bob", 10), ("carol", 20)] {
        exclusive.draft.exclusive.push(ExclusiveShare {
            grabber: person(name),
            amount_minor,
        });
    }
    for seed in [[0; 32], [9; 32]] {
        let amounts = share_amounts(&exclusive, id(1), &ServerSeed::new(seed));
        assert_eq!(amounts, Ok(vec![10, 20]));
    }
    exclusive.draft.total_minor = 31;
    let amounts = share_amounts(&exclusive, id(1), &ServerSeed::new([0; 32]));
    assert_eq!(amounts, Err(AmountsError::List));
}

#[test]
fn terms_that_could_not_have_been_funded_have_no_shares() {
    let seed = ServerSeed::new([0; 32]);
    let splitless = terms(Kind::Lucky, 10, 2, None);
    assert_eq!(
        share_amounts(&splitless, id(1), &seed),
        Err(AmountsError::NoSplit)
    );
    let poor = terms(Kind::Equal, 1, 2, Some(Split::Even));
    assert!(matches!(
        share_amounts(&poor, id(1), &seed),
        Err(AmountsError::Cut(_))
    ));
}
