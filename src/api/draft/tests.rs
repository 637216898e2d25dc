//! Every way in which a new envelope can be wrong names its field, and what is right passes.

use proptest::prelude::*;
use prost::Message;
use red_envelope_proto::v1;
use red_envelope_proto::v1::create_envelope_request::Amount;
use red_envelope_proto::v1::split::{DoubleMean, Even, Rule, Tier, Tiers};

use super::*;
use crate::api::MESSAGE_BYTES_MAX;
use crate::domain::split::{SHARE_COUNT_MAX, Split, TIER_COUNT_MAX};

const NOW: UnixMs = UnixMs(1_800_000_000_000);

fn drafted(request: v1::CreateEnvelopeRequest) -> Result<Drafted, ApiError> {
    let currencies = Currencies::with_declared([("POINTS", 0)]).unwrap();
    let rules = Rules {
        currencies: &currencies,
        pepper: &Pepper([7; 32]),
        now: NOW,
        salt: rand::random(),
        deal: (0, crate::domain::id::PartitionCount::ONE),
    };
    // As for a first request: what is wrong by now is wrong.
    let drafted = draft(request, &rules)?;
    match drafted.by_now.is_empty() {
        true => Ok(drafted),
        false => Err(ApiError::Invalid(drafted.by_now)),
    }
}

fn money(currency_code: &str, minor_units: i64) -> v1::Money {
    v1::Money {
        currency_code: currency_code.into(),
        minor_units,
    }
}

fn lucky() -> v1::CreateEnvelopeRequest {
    v1::CreateEnvelopeRequest {
        sender: "alice".into(),
        request_id: "r1".into(),
        kind: v1::EnvelopeKind::Lucky.into(),
        amount: Some(Amount::Total(money("CNY", 1_000))),
        share_count: 10,
        ..Default::default()
    }
}

fn equal() -> v1::CreateEnvelopeRequest {
    v1::CreateEnvelopeRequest {
        kind: v1::EnvelopeKind::Equal.into(),
        ..lucky()
    }
}

fn share(grabber: &str, amount_minor: i64) -> v1::ExclusiveShare {
    v1::ExclusiveShare {
        grabber: grabber.into(),
        amount_minor,
    }
}

fn exclusive() -> v1::CreateEnvelopeRequest {
    v1::CreateEnvelopeRequest {
        kind: v1::EnvelopeKind::Exclusive.into(),
        amount: None,
        share_count: 0,
        exclusive_shares: vec![share("bob", 300), share("carol", 700)],
        exclusive_currency_code: "CNY".into(),
        ..lucky()
    }
}

fn tiers(tiers: &[(i64, u32)]) -> Option<v1::Split> {
    let tier = |&(amount_minor, share_count)| Tier {
        amount_minor,
        share_count,
    };
    let tiers = tiers.iter().map(tier).collect();
    Some(v1::Split {
        rule: Some(Rule::Tiers(Tiers { tiers })),
    })
}

fn named(grabbers: impl IntoIterator<Item = String>) -> Option<v1::Audience> {
    use v1::audience::{Audience, Named};
    Some(v1::Audience {
        audience: Some(Audience::Named(Named {
            grabbers: grabbers.into_iter().collect(),
        })),
    })
}

/// The fields that are named as wrong.
fn offends(request: v1::CreateEnvelopeRequest) -> Vec<String> {
    match drafted(request) {
        Err(ApiError::Invalid(offences)) => {
            offences.into_iter().map(|o| o.field.into_owned()).collect()
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => Vec::new(),
    }
}

/// One change to a request that was right.
type Change = fn(&mut v1::CreateEnvelopeRequest);

#[track_caller]
fn rejects(good: fn() -> v1::CreateEnvelopeRequest, table: &[(&str, Change)]) {
    for (field, change) in table {
        let mut request = good();
        change(&mut request);
        assert_eq!(offends(request.clone()), [*field], "{request:?}");
    }
}

#[test]
fn amounts_that_cannot_move_name_the_amount() {
    for minor in [0, -1, i64::MAX, i64::MIN, 1 << 53, 9_000_000_000_000_001] {
        let mut request = lucky();
        request.amount = Some(Amount::Total(money("CNY", minor)));
        assert_eq!(offends(request), ["total.minor_units"], "{minor}");
        let mut request = equal();
        request.amount = Some(Amount::PerShare(money("CNY", minor)));
        assert_eq!(offends(request), ["per_share.minor_units"], "{minor}");
        let mut request = exclusive();
        request.exclusive_shares[1].amount_minor = minor;
        assert_eq!(
            offends(request),
            ["exclusive_shares[1].amount_minor"],
            "{minor}"
        );
    }
}

#[test]
fn a_lucky_envelope_that_cannot_be_cut_names_what_to_change() {
    rejects(
        lucky,
        &[
            ("share_count", |r| r.share_count = 0),
            ("share_count", |r| r.share_count = SHARE_COUNT_MAX + 1),
            ("share_count", |r| r.share_count = u32::MAX),
            ("total.minor_units", |r| r.share_count = 1_001),
            ("total.minor_units", |r| r.min_share_minor = 101),
            ("max_share_minor", |r| r.max_share_minor = 99),
            ("max_share_minor", |r| {
                r.min_share_minor = 90;
                r.max_share_minor = 80;
            }),
            ("min_share_minor", |r| r.min_share_minor = -1),
            ("max_share_minor", |r| r.max_share_minor = i64::MAX),
            ("total.currency_code", |r| {
                r.amount = Some(Amount::Total(money("XYZ", 1_000)));
            }),
            ("total.currency_code", |r| {
                r.amount = Some(Amount::Total(money("", 1_000)));
            }),
            ("total", |r| r.amount = None),
            ("per_share", |r| {
                r.amount = Some(Amount::PerShare(money("CNY", 100)));
            }),
            ("kind", |r| r.kind = 0),
            ("kind", |r| r.kind = 99),
            ("exclusive_currency_code", |r| {
                r.exclusive_currency_code = "CNY".into();
            }),
            ("exclusive_shares", |r| {
                r.exclusive_shares = vec![share("bob", 1)];
            }),
        ],
    );
}

#[test]
fn tiers_that_do_not_make_up_the_envelope_name_the_tier() {
    rejects(
        lucky,
        &[
            ("split.tiers.tiers", |r| r.split = tiers(&[])),
            ("split.tiers.tiers", |r| {
                r.split = tiers(&vec![(1, 1); TIER_COUNT_MAX + 1]);
            }),
            ("split.tiers.tiers[1].amount_minor", |r| {
                r.split = tiers(&[(100, 9), (0, 1)]);
            }),
            ("split.tiers.tiers[1].share_count", |r| {
                r.split = tiers(&[(100, 10), (100, 0)]);
            }),
            ("split.tiers.tiers[0].amount_minor", |r| {
                r.max_share_minor = 500;
                r.split = tiers(&[(600, 1), (44, 9)]);
            }),
            ("split.tiers.tiers", |r| r.split = tiers(&[(100, 9)])),
            ("split.tiers.tiers", |r| r.split = tiers(&[(99, 10)])),
        ],
    );
    let mut request = lucky();
    request.split = tiers(&[(550, 1), (50, 9)]);
    let draft = drafted(request).unwrap().draft;
    assert!(matches!(draft.split, Some(Split::Tiers { tiers }) if tiers.len() == 2));
}

#[test]
fn an_equal_envelope_takes_a_total_that_divides_or_the_amount_of_each() {
    rejects(
        equal,
        &[
            ("total.minor_units", |r| r.share_count = 3),
            ("per_share.minor_units", |r| {
                r.amount = Some(Amount::PerShare(money("CNY", 9_000_000_000_000_000)));
            }),
            ("split", |r| {
                let rule = Some(Rule::DoubleMean(DoubleMean {}));
                r.split = Some(v1::Split { rule });
            }),
        ],
    );
    let by_total = drafted(equal()).unwrap();
    let mut request = equal();
    request.amount = Some(Amount::PerShare(money("CNY", 100)));
    let by_share = drafted(request).unwrap();
    assert_eq!(by_total.draft, by_share.draft);
    assert_eq!(by_total.request_hash, by_share.request_hash);
}

#[test]
fn an_exclusive_envelope_names_its_grabbers_once_each() {
    rejects(
        exclusive,
        &[
            ("exclusive_shares", |r| r.exclusive_shares.clear()),
            ("exclusive_shares", |r| {
                let many = (0..1_001).map(|i| share(&i.to_string(), 1));
                r.exclusive_shares = many.collect();
            }),
            ("exclusive_shares[1].grabber", |r| {
                r.exclusive_shares[1].grabber = "bob".into();
            }),
            ("exclusive_shares[0].grabber", |r| {
                r.exclusive_shares[0].grabber.clear();
            }),
            ("exclusive_shares", |r| {
                for share in &mut r.exclusive_shares {
                    share.amount_minor = 5_000_000_000_000_000;
                }
            }),
            ("exclusive_shares[1].amount_minor", |r| {
                r.max_share_minor = 500;
            }),
            ("exclusive_currency_code", |r| {
                r.exclusive_currency_code = "cny".into();
            }),
            ("total", |r| {
                r.amount = Some(Amount::Total(money("CNY", 1_000)));
            }),
            ("per_share", |r| {
                r.amount = Some(Amount::PerShare(money("CNY", 1_000)));
            }),
            ("share_count", |r| r.share_count = 2),
            ("split", |r| {
                let rule = Some(Rule::Even(Even {}));
                r.split = Some(v1::Split { rule });
            }),
            ("audience", |r| r.audience = named(["bob".into()])),
        ],
    );
    let draft = drafted(exclusive()).unwrap().draft;
    assert_eq!((draft.total_minor, draft.share_count), (1_000, 2));
    assert_eq!(draft.split, None);
    assert!(matches!(draft.audience, Audience::Named(names) if names.len() == 2));
}

#[test]
fn names_texts_and_times_out_of_bounds_name_themselves() {
    rejects(
        lucky,
        &[
            ("tenant", |r| r.tenant = "Shop 1".into()),
            ("sender", |r| r.sender.clear()),
            ("sender", |r| r.sender = "x".repeat(65)),
            ("request_id", |r| r.request_id = "a\nb".into()),
            ("greeting", |r| r.greeting = "x".repeat(129)),
            ("greeting", |r| r.greeting = "a\u{202e}b".into()),
            ("greeting", |r| r.greeting = "a\u{7}b".into()),
            ("cover_id", |r| r.cover_id = "x".repeat(65)),
            ("passphrase", |r| r.passphrase = "x".repeat(65)),
            ("client_nonce", |r| r.client_nonce = vec![0; 65]),
            ("reveal", |r| r.reveal = 7),
            ("audience.group.group_id", |r| {
                use v1::audience::{Audience, Group};
                r.audience = Some(v1::Audience {
                    audience: Some(Audience::Group(Group::default())),
                });
            }),
            ("audience.named.grabbers", |r| r.audience = named([])),
            ("audience.named.grabbers[1]", |r| {
                r.audience = named(["bob".into(), "bob".into()]);
            }),
            ("labels", |r| {
                r.labels = (0..17).map(|i| (i.to_string(), String::new())).collect();
            }),
            ("labels", |r| {
                r.labels.insert(String::new(), "x".into());
            }),
            ("labels[0].key", |r| {
                r.labels.insert("x".repeat(65), "x".into());
            }),
            ("labels[0].value", |r| {
                r.labels.insert("x".into(), "x".repeat(129));
            }),
        ],
    );
}

#[test]
fn an_envelope_opens_before_it_expires_and_expires_within_ninety_days() {
    let seconds = |seconds| {
        Some(prost_types::Duration {
            seconds,
            nanos: 999_999,
        })
    };
    for bad in [0, -1, 90 * 86_400 + 1, i64::MAX] {
        let mut request = lucky();
        request.expires_in = seconds(bad);
        assert_eq!(offends(request), ["expires_in"], "{bad}");
    }
    let mut request = lucky();
    request.expires_in = seconds(60);
    request.open_time = Some(wire::timestamp(NOW.plus_ms(60_000)));
    assert_eq!(offends(request.clone()), ["open_time"]);
    request.open_time = Some(wire::timestamp(NOW.plus_ms(59_999)));
    let draft = drafted(request).unwrap().draft;
    assert_eq!(draft.expires_in_ms, 60_000);
    assert_eq!(draft.opens_at, Some(NOW.plus_ms(59_999)));
    assert_eq!(
        drafted(lucky()).unwrap().draft.expires_in_ms,
        EXPIRES_IN_MS_DEFAULT
    );
}

#[test]
fn all_that_is_wrong_is_named_at_once() {
    let mut request = lucky();
    request.sender.clear();
    request.amount = Some(Amount::Total(money("XYZ", -5)));
    request.share_count = 0;
    request.greeting = "\u{0}".into();
    assert_eq!(
        offends(request),
        [
            "sender",
            "share_count",
            "total.minor_units",
            "greeting",
            "total.currency_code"
        ]
    );
}

#[test]
fn a_greeting_is_measured_after_it_was_normalised() {
    let mut request = lucky();
    // 64 × (e + combining acute): 192 bytes, 128 once composed.
    request.greeting = "e\u{301}".repeat(64);
    assert_eq!(
        drafted(request).unwrap().draft.greeting,
        "\u{e9}".repeat(64)
    );
}

#[test]
fn the_largest_request_that_can_be_valid_fits_a_message() {
    let long = |i: usize| format!("{i:0>64}");
    let with_texts = |mut request: v1::CreateEnvelopeRequest| {
        request.tenant = "t".repeat(64);
        request.sender = "s".repeat(64);
        request.request_id = "r".repeat(64);
        request.greeting = "e\u{301}".repeat(64);
        request.passphrase = "e\u{301}".repeat(32);
        request.cover_id = "c".repeat(64);
        request.client_nonce = vec![1; 64];
        request.labels = (0..16).map(|i| (long(i), "v".repeat(128))).collect();
        request.open_time = Some(wire::timestamp(NOW));
        request.expires_in = Some(wire::duration(EXPIRES_IN_MS_MAX));
        request.min_share_minor = 1;
        request.max_share_minor = 9_000_000_000_000_000;
        request
    };
    let mut shares = exclusive();
    shares.exclusive_shares = (0..1_000)
        .map(|i| share(&long(i), 9_000_000_000_000))
        .collect();
    let mut lists = lucky();
    let each = 8_999_999_999_999;
    lists.amount = Some(Amount::Total(money("CNY", each * 1_000)));
    lists.share_count = 1_000;
    lists.split = tiers(&[(each, 1); 1_000]);
    lists.audience = named((0..1_000).map(long));
    for request in [with_texts(shares), with_texts(lists)] {
        let bytes = request.encoded_len();
        assert!(bytes <= CREATE_BYTES_MAX, "{bytes}");
        assert!(bytes <= MESSAGE_BYTES_MAX, "{bytes}");
        drafted(request).unwrap();
    }
}

#[test]
fn a_replay_hashes_the_same_and_another_request_another() {
    let mut request = lucky();
    request.passphrase = "8888".into();
    let first = drafted(request.clone()).unwrap();
    let again = drafted(request.clone()).unwrap();
    // The lock is salted anew each time, the hash is not.
    assert_ne!(first.draft.passphrase, again.draft.passphrase);
    assert_eq!(first.request_hash, again.request_hash);
    let changes: [Change; 12] = [
        |r| r.tenant = "shop".into(),
        |r| r.sender = "bob".into(),
        |r| r.kind = v1::EnvelopeKind::Equal.into(),
        |r| r.amount = Some(Amount::Total(money("CNY", 1_001))),
        |r| r.share_count = 9,
        |r| r.passphrase = "8889".into(),
        |r| r.passphrase.clear(),
        |r| r.greeting = "hi".into(),
        |r| r.reveal = v1::Reveal::AtEnd.into(),
        |r| r.client_nonce = vec![1],
        |r| r.audience = named(["bob".into()]),
        |r| {
            r.labels.insert("a".into(), "b".into());
        },
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut other = request.clone();
        change(&mut other);
        let other = drafted(other).unwrap();
        assert_ne!(first.request_hash, other.request_hash, "change {index}");
    }
}

#[test]
fn what_is_left_out_hashes_like_its_default() {
    let mut request = lucky();
    request.tenant = "default".into();
    request.min_share_minor = 1;
    request.max_share_minor = 1_000;
    request.reveal = v1::Reveal::AfterGrab.into();
    request.expires_in = Some(wire::duration(EXPIRES_IN_MS_DEFAULT));
    let rule = Some(Rule::DoubleMean(DoubleMean {}));
    request.split = Some(v1::Split { rule });
    assert_eq!(
        drafted(request).unwrap().request_hash,
        drafted(lucky()).unwrap().request_hash
    );
}

#[test]
fn the_hash_of_a_request_outlives_releases() {
    // The ledger compares with hashes that earlier releases wrote: this value never changes.
    let hash = drafted(lucky()).unwrap().request_hash;
    assert_eq!(
        data_encoding::HEXLOWER.encode(&hash),
        "43794d3e653379885de4b0847fef6f1647e4c2db19e5484f2b605c8864941c71"
    );
}

#[test]
fn into_how_many_stripes_the_server_deals_is_no_part_of_a_request() {
    let mut draft = drafted(lucky()).unwrap().draft;
    let hash = |draft: &Draft| request_hash::of(draft, "", &Pepper([7; 32]));
    let before = hash(&draft);
    draft.stripes = StripeCount::new(4).unwrap();
    assert_eq!(hash(&draft), before);
}

proptest! {
    #[test]
    fn no_request_panics(bytes: Vec<u8>, minor: i64, count: u32, min: i64, max: i64, kind in 0..5_i32) {
        let mut request = v1::CreateEnvelopeRequest::decode(bytes.as_slice()).unwrap_or_else(|_| lucky());
        request.kind = kind;
        request.share_count = count;
        request.amount = Some(Amount::Total(money("CNY", minor)));
        request.min_share_minor = min;
        request.max_share_minor = max;
        let _ = drafted(request);
    }
}
