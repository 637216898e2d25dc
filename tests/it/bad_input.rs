//! Bad input gets a clear error that names the field, and nothing is written.

use red_envelope_proto::v1::audience::{Audience as Rule, Named};
use red_envelope_proto::v1::create_envelope_request::Amount;
use red_envelope_proto::v1::split::{Rule as SplitRule, Tier, Tiers};
use red_envelope_proto::v1::{
    Audience, CreateEnvelopeRequest, DepositRequest, EnvelopeKind, ExclusiveShare,
    ListSentEnvelopesRequest, Money, Split,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{Hot, World, cny, exclusive, lucky, on_both_stores};

on_both_stores! {
    a_bad_envelope_is_rejected_by_field_and_leaves_no_trace,
    several_bad_fields_are_named_in_one_answer,
    money_that_cannot_be_is_neither_deposited_nor_spent,
    a_request_id_means_one_request_for_ever,
}

/// 2^53 + 1: the first integer that a double can't hold.
const BEYOND_DOUBLE: i64 = 9_007_199_254_740_993;

fn fields_of(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().domain, "redenvelope.v1");
    let violations = &details.bad_request().unwrap().field_violations;
    assert!(violations.iter().all(|v| !v.description.is_empty()));
    violations.iter().map(|v| v.field.clone()).collect()
}

fn plain() -> CreateEnvelopeRequest {
    lucky("alice", cny(1_000), 10)
}

fn with(change: impl FnOnce(&mut CreateEnvelopeRequest)) -> CreateEnvelopeRequest {
    let mut request = plain();
    change(&mut request);
    request
}

fn total(minor_units: i64) -> CreateEnvelopeRequest {
    with(|r| r.amount = Some(Amount::Total(cny(minor_units))))
}

fn currency(code: &str) -> CreateEnvelopeRequest {
    with(|r| {
        r.amount = Some(Amount::Total(Money {
            currency_code: code.to_owned(),
            minor_units: 1_000,
        }));
    })
}

fn tiers(tiers: &[(i64, u32)]) -> CreateEnvelopeRequest {
    let tiers = tiers
        .iter()
        .map(|&(amount_minor, share_count)| Tier {
            amount_minor,
            share_count,
        })
        .collect();
    with(|r| {
        r.split = Some(Split {
            rule: Some(SplitRule::Tiers(Tiers { tiers })),
        })
    })
}

/// Each bad request and the field that the answer must name (its beginning).
fn bad_creates() -> Vec<(CreateEnvelopeRequest, &'static str)> {
    [bad_amounts(), bad_words(), bad_people()].concat()
}

fn bad_amounts() -> Vec<(CreateEnvelopeRequest, &'static str)> {
    vec![
        (total(0), "total.minor_units"),
        (total(-1), "total.minor_units"),
        (total(i64::MIN), "total.minor_units"),
        (total(i64::MAX), "total.minor_units"),
        (total(BEYOND_DOUBLE), "total.minor_units"),
        (total(9), "total.minor_units"),
        (with(|r| r.share_count = 0), "share_count"),
        (with(|r| r.share_count = 10_000_001), "share_count"),
        (with(|r| r.amount = None), "total"),
        (currency("XXY"), "total.currency_code"),
        (currency("cny"), "total.currency_code"),
        (currency(""), "total.currency_code"),
        (with(|r| r.min_share_minor = 101), "total.minor_units"),
        (with(|r| r.min_share_minor = -1), "min_share_minor"),
        (with(|r| r.max_share_minor = 99), "max_share_minor"),
        (
            with(|r| (r.min_share_minor, r.max_share_minor) = (20, 10)),
            "max_share_minor",
        ),
        (tiers(&[(100, 9)]), "split.tiers"),
        (tiers(&[(0, 10)]), "split.tiers"),
        (tiers(&[(i64::MAX, 2), (i64::MAX, 8)]), "split.tiers"),
    ]
}

fn bad_words() -> Vec<(CreateEnvelopeRequest, &'static str)> {
    vec![
        (with(|r| r.sender = String::new()), "sender"),
        (with(|r| r.sender = "x".repeat(65)), "sender"),
        (with(|r| r.sender = "a\nb".to_owned()), "sender"),
        (with(|r| r.request_id = String::new()), "request_id"),
        (with(|r| r.tenant = "No Tenant".to_owned()), "tenant"),
        (with(|r| r.kind = 0), "kind"),
        (with(|r| r.kind = 99), "kind"),
        (with(|r| r.greeting = "恭".repeat(43)), "greeting"),
        (with(|r| r.greeting = "a\u{202e}b".to_owned()), "greeting"),
        (with(|r| r.greeting = "a\u{7}b".to_owned()), "greeting"),
        (with(|r| r.cover_id = "x".repeat(65)), "cover_id"),
        (with(|r| r.client_nonce = vec![0; 65]), "client_nonce"),
        (with(|r| r.passphrase = "x".repeat(65)), "passphrase"),
        (with(|r| r.expires_in = seconds(0)), "expires_in"),
        (with(|r| r.expires_in = seconds(-5)), "expires_in"),
        (
            with(|r| r.expires_in = seconds(90 * 86_400 + 1)),
            "expires_in",
        ),
        (
            with(|r| r.labels = (0..17).map(|n| (format!("k{n}"), String::new())).collect()),
            "labels",
        ),
        (
            with(|r| r.labels = [("k".to_owned(), "x".repeat(129))].into()),
            "labels",
        ),
    ]
}

fn bad_people() -> Vec<(CreateEnvelopeRequest, &'static str)> {
    vec![
        (
            with(|r| {
                let named = Named {
                    grabbers: vec!["bob".to_owned(), "bob".to_owned()],
                };
                r.audience = Some(Audience {
                    audience: Some(Rule::Named(named)),
                });
            }),
            "audience.named.grabbers",
        ),
        (exclusive("alice", &[]), "exclusive_shares"),
        (
            exclusive("alice", &[("bob", 0)]),
            "exclusive_shares[0].amount_minor",
        ),
        (
            exclusive("alice", &[("bob", 1), ("bob", 1)]),
            "exclusive_shares[1].grabber",
        ),
        (
            with(|r| {
                r.exclusive_shares = vec![ExclusiveShare {
                    grabber: "bob".to_owned(),
                    amount_minor: 5,
                }];
            }),
            "exclusive_shares",
        ),
    ]
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

async fn a_bad_envelope_is_rejected_by_field_and_leaves_no_trace(hot: Hot) {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(10_000)).await;
    let mut unnamed = Vec::new();
    for (request, field) in bad_creates() {
        let status = world
            .envelopes
            .create_envelope(request.clone())
            .await
            .unwrap_err();
        let fields = fields_of(&status);
        if !fields.iter().any(|f| f.starts_with(field)) {
            unnamed.push(format!("{field} is not among {fields:?}"));
        }
    }
    assert!(unnamed.is_empty(), "{unnamed:#?}");
    // What the bad ones were made from is good.
    world
        .send(with(|r| r.kind = EnvelopeKind::Equal.into()))
        .await;
    let sent = world
        .envelopes
        .list_sent_envelopes(ListSentEnvelopesRequest {
            sender: "alice".to_owned(),
            ..ListSentEnvelopesRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(sent.into_inner().envelopes.len(), 1);
    assert_eq!(world.balance("alice").await, (9_000, 0, 1_000));
    world.audit_when_quiet().await;
}

async fn several_bad_fields_are_named_in_one_answer(hot: Hot) {
    let mut world = World::on(hot).await;
    let request = with(|r| {
        r.sender.clear();
        r.share_count = 0;
        r.greeting = "\u{1}".to_owned();
    });
    let status = world.envelopes.create_envelope(request).await.unwrap_err();
    let fields = fields_of(&status);
    for field in ["sender", "share_count", "greeting"] {
        assert!(
            fields.iter().any(|f| f == field),
            "{field} is not in {fields:?}"
        );
    }
}

async fn money_that_cannot_be_is_neither_deposited_nor_spent(hot: Hot) {
    let mut world = World::on(hot).await;
    for bad in [0, -1, i64::MAX, BEYOND_DOUBLE] {
        let request = DepositRequest {
            owner: "alice".to_owned(),
            request_id: format!("bad-{bad}"),
            amount: Some(cny(bad)),
            ..DepositRequest::default()
        };
        let status = world.accounts.deposit(request).await.unwrap_err();
        assert_eq!(fields_of(&status), ["amount.minor_units"]);
    }
    let status = world.envelopes.create_envelope(plain()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "INSUFFICIENT_FUNDS");
    assert_eq!(world.balance("alice").await, (0, 0, 0));
    world.audit_when_quiet().await;
}

async fn a_request_id_means_one_request_for_ever(hot: Hot) {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(10_000)).await;
    let request = plain();
    let first = world
        .envelopes
        .create_envelope(request.clone())
        .await
        .unwrap()
        .into_inner();
    let again = world
        .envelopes
        .create_envelope(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(!first.replayed);
    assert!(again.replayed);
    assert_eq!(
        first.envelope.unwrap().envelope_id,
        again.envelope.unwrap().envelope_id
    );
    let other = CreateEnvelopeRequest {
        share_count: 11,
        ..request
    };
    let status = world.envelopes.create_envelope(other).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "REQUEST_ID_REUSED");
    assert_eq!(world.balance("alice").await, (9_000, 0, 1_000));
    world.audit_when_quiet().await;
}
