//! From a request for an envelope to a draft that the ledger may fund, or to all that is wrong.
//!
//! # Shape
//! | part | what |
//! |---|---|
//! | who and when | tenant, sender, request id, expiry, opening |
//! | what it looks like | greeting, cover, labels, reveal, nonce |
//! | how much | total or per-share amount, count, bounds, split; or named shares |
//! | for whom | audience, passphrase |
//!
//! # Bounds
//! [`CREATE_BYTES_MAX`] derives the largest request that can be valid.
//!
//! # Not here
//! Whether the sender has the money: the ledger decides in the transaction that holds it.

use std::borrow::Cow;
use std::collections::BTreeSet;

use red_envelope_proto::v1;
use red_envelope_proto::v1::create_envelope_request::Amount;

use super::admission::Admission;
use super::request_hash;
use super::status::ApiError;
use super::wire;
use crate::domain::audience::{
    Audience, NAMED_GRABBERS_MAX, PASSPHRASE_BYTES_MAX, PassphraseLock, Pepper, normalised,
};
use crate::domain::envelope::{
    CLIENT_NONCE_BYTES_MAX, Draft, EXCLUSIVE_SHARES_MAX, EXPIRES_IN_MS_DEFAULT, EXPIRES_IN_MS_MAX,
    EXPIRES_IN_MS_MIN, ExclusiveShare, GREETING_BYTES_MAX, Kind, LABEL_VALUE_BYTES_MAX, LABELS_MAX,
    Reveal,
};
use crate::domain::id::{ID_BYTES_MAX, PersonId, UnixMs};
use crate::domain::money::{AMOUNT_MINOR_MAX, Currencies, Currency};
use crate::domain::split::{Cut, CutError, SHARE_COUNT_MAX, Split, TIER_COUNT_MAX, Tier};

/// Bytes of a cover's id.
pub const COVER_ID_BYTES_MAX: usize = 64;

/// The largest valid CreateEnvelopeRequest, as protobuf. An EXCLUSIVE share is a name of 64 bytes
/// and an amount of 8, with 2 + 1 bytes of keys and lengths and 2 around it: 77. A named grabber
/// is 66, a tier 8 + 5 + 2 and 2 around it: 17. No kind takes both shares and the others, so the
/// lists take at most max(1,000 × 77, 1,000 × 66 + 1,000 × 17) = 83,000. 16 labels of 64 + 128 + 5
/// with 3 around each are 3,200. Names, nonce, cover, phrase and money are below 600. Text may
/// shrink by a factor of 3 when it is normalised: a greeting of 384 bytes and a phrase of 192.
pub const CREATE_BYTES_MAX: usize = 83_000 + 3_200 + 600 + 600;

/// A request that passed.
#[derive(Debug)]
pub struct Drafted {
    /// The key of idempotency.
    pub request_id: PersonId,
    /// Tells a replay from another request.
    pub request_hash: [u8; 32],
    /// What to fund.
    pub draft: Draft,
}

/// What a draft is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// What this server accepts.
    pub currencies: &'a Currencies,
    /// Keys locks and request hashes.
    pub pepper: &'a Pepper,
    /// Now, for an opening that must lie before the expiry.
    pub now: UnixMs,
    /// Random; part of the passphrase's lock and of nothing else.
    pub salt: [u8; 16],
}

/// Checks a request.
///
/// # Errors
/// Everything that is wrong with it.
pub fn draft(request: v1::CreateEnvelopeRequest, rules: &Rules<'_>) -> Result<Drafted, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let sender = a.name("sender", &request.sender);
    let request_id = a.name("request_id", &request.request_id);
    let kind = kind(&mut a, request.kind);
    let money = kind.and_then(|kind| money(&mut a, kind, &request, rules.currencies));
    let audience = audience(&mut a, kind, &request, money.as_ref());
    let phrase = normalised(&request.passphrase);
    a.text("passphrase", &phrase, PASSPHRASE_BYTES_MAX);
    let greeting = normalised(&request.greeting);
    a.text("greeting", &greeting, GREETING_BYTES_MAX);
    a.text("cover_id", &request.cover_id, COVER_ID_BYTES_MAX);
    let expires_in_ms = expires_in(&mut a, request.expires_in.as_ref());
    let opens_at = opens_at(&mut a, request.open_time.as_ref(), expires_in_ms, rules.now);
    let reveal = reveal(&mut a, request.reveal);
    if request.client_nonce.len() > CLIENT_NONCE_BYTES_MAX {
        a.offend(
            "client_nonce",
            format!(
                "is {} bytes long; at most {CLIENT_NONCE_BYTES_MAX} are allowed",
                request.client_nonce.len()
            ),
        );
    }
    labels(&mut a, &request);
    let parts = (|| Some((tenant?, sender?, request_id?, money?, audience?, kind?)))();
    let (tenant, sender, request_id, money, audience, kind) = a.admit(parts)?;
    let mut draft = Draft {
        tenant,
        sender,
        kind,
        currency: money.currency,
        total_minor: money.cut.total_minor,
        share_count: money.cut.share_count,
        min_minor: money.cut.min_minor,
        max_minor: money.cut.max_minor,
        split: (kind != Kind::Exclusive).then_some(money.cut.split),
        exclusive: money.exclusive,
        audience,
        passphrase: None,
        greeting,
        cover_id: request.cover_id,
        reveal,
        labels: request.labels,
        opens_at,
        expires_in_ms,
        client_nonce: request.client_nonce,
    };
    let request_hash = request_hash::of(&draft, &phrase, rules.pepper);
    draft.passphrase =
        (!phrase.is_empty()).then(|| PassphraseLock::new(&phrase, rules.salt, rules.pepper));
    Ok(Drafted {
        request_id,
        request_hash,
        draft,
    })
}

/// Checks what PreviewSplit asks about: the cut of a LUCKY envelope.
///
/// # Errors
/// Everything that is wrong with it.
pub fn preview(
    request: &v1::PreviewSplitRequest,
    currencies: &Currencies,
) -> Result<(Currency, Cut), ApiError> {
    let mut a = Admission::default();
    let names = AmountFields {
        currency: "total.currency_code",
        minor: "total.minor_units",
    };
    let money = request.total.as_ref();
    let currency = a.currency(
        names.currency,
        money.map_or("", |money| &money.currency_code),
        currencies,
    );
    let total_minor = a.amount(names.minor, money.map_or(0, |money| money.minor_units));
    let count = share_count(&mut a, request.share_count);
    let split = split(&mut a, request.split.as_ref());
    let bounds = (request.min_share_minor, request.max_share_minor);
    let cut = checked_cut(&mut a, names, total_minor, count, bounds, split);
    let parts = currency.zip(cut);
    a.admit(parts)
}

/// What an envelope is worth and how it is cut. For EXCLUSIVE the split is not used.
struct MoneyParts {
    currency: Currency,
    cut: Cut,
    exclusive: Vec<ExclusiveShare>,
}

/// Which fields carry the amount: `total` or `per_share`.
#[derive(Clone, Copy)]
struct AmountFields {
    currency: &'static str,
    minor: &'static str,
}

fn kind(a: &mut Admission, kind: i32) -> Option<Kind> {
    match v1::EnvelopeKind::try_from(kind) {
        Ok(v1::EnvelopeKind::Lucky) => Some(Kind::Lucky),
        Ok(v1::EnvelopeKind::Equal) => Some(Kind::Equal),
        Ok(v1::EnvelopeKind::Exclusive) => Some(Kind::Exclusive),
        Ok(v1::EnvelopeKind::Unspecified) | Err(_) => {
            a.offend("kind", "must be LUCKY, EQUAL or EXCLUSIVE");
            None
        }
    }
}

fn reveal(a: &mut Admission, reveal: i32) -> Reveal {
    match v1::Reveal::try_from(reveal) {
        Ok(v1::Reveal::Unspecified | v1::Reveal::AfterGrab) => Reveal::AfterGrab,
        Ok(v1::Reveal::AtEnd) => Reveal::AtEnd,
        Err(_) => {
            a.offend("reveal", "must be AFTER_GRAB or AT_END");
            Reveal::AtEnd
        }
    }
}

fn money(
    a: &mut Admission,
    kind: Kind,
    request: &v1::CreateEnvelopeRequest,
    currencies: &Currencies,
) -> Option<MoneyParts> {
    if kind == Kind::Exclusive {
        return exclusive(a, request, currencies);
    }
    if !request.exclusive_shares.is_empty() {
        a.offend("exclusive_shares", "only an EXCLUSIVE envelope takes them");
    }
    if !request.exclusive_currency_code.is_empty() {
        a.offend(
            "exclusive_currency_code",
            "only an EXCLUSIVE envelope takes it",
        );
    }
    let count = share_count(a, request.share_count);
    let (names, currency, total_minor) = match (kind, &request.amount) {
        (_, Some(Amount::Total(money))) => {
            let names = AmountFields {
                currency: "total.currency_code",
                minor: "total.minor_units",
            };
            let currency = a.currency(names.currency, &money.currency_code, currencies);
            let total = a.amount(names.minor, money.minor_units);
            if let (Kind::Equal, Some(total), Some(count)) = (kind, total, count)
                && total % i64::from(count) != 0
            {
                a.offend(
                    names.minor,
                    format!("{total} does not divide into {count} equal shares"),
                );
            }
            (names, currency, total)
        }
        (Kind::Equal, Some(Amount::PerShare(money))) => {
            let names = AmountFields {
                currency: "per_share.currency_code",
                minor: "per_share.minor_units",
            };
            let currency = a.currency(names.currency, &money.currency_code, currencies);
            let each = a.amount(names.minor, money.minor_units);
            let total = each
                .zip(count)
                .and_then(|(each, count)| total_of(a, names.minor, each, count));
            (names, currency, total)
        }
        (_, Some(Amount::PerShare(_))) => {
            a.offend("per_share", "only an EQUAL envelope takes it; give total");
            return None;
        }
        (_, None) => {
            a.offend("total", "must say how much money");
            return None;
        }
    };
    let split = match kind {
        Kind::Equal => {
            if request.split.as_ref().is_some_and(|s| s.rule.is_some()) {
                a.offend("split", "an EQUAL envelope takes none");
            }
            Some(Split::Even)
        }
        Kind::Lucky | Kind::Exclusive => split(a, request.split.as_ref()),
    };
    let bounds = (request.min_share_minor, request.max_share_minor);
    let cut = checked_cut(a, names, total_minor, count, bounds, split);
    Some(MoneyParts {
        currency: currency?,
        cut: cut?,
        exclusive: Vec::new(),
    })
}

fn total_of(a: &mut Admission, field: &'static str, each: i64, count: u32) -> Option<i64> {
    let total = i128::from(each) * i128::from(count);
    match i64::try_from(total) {
        Ok(total) if total <= AMOUNT_MINOR_MAX => Some(total),
        _ => {
            a.offend(
                field,
                format!("{count} shares of {each} are more than {AMOUNT_MINOR_MAX} minor units"),
            );
            None
        }
    }
}

fn share_count(a: &mut Admission, count: u32) -> Option<u32> {
    if (1..=SHARE_COUNT_MAX).contains(&count) {
        return Some(count);
    }
    a.offend(
        "share_count",
        format!("must be 1 to {SHARE_COUNT_MAX}, not {count}"),
    );
    None
}

fn split(a: &mut Admission, split: Option<&v1::Split>) -> Option<Split> {
    use v1::split::Rule;
    let tiers = match split.and_then(|split| split.rule.as_ref()) {
        None | Some(Rule::DoubleMean(_)) => return Some(Split::DoubleMean),
        Some(Rule::Even(_)) => return Some(Split::Even),
        Some(Rule::BrokenStick(_)) => return Some(Split::BrokenStick),
        Some(Rule::Tiers(tiers)) => &tiers.tiers,
    };
    if tiers.is_empty() || tiers.len() > TIER_COUNT_MAX {
        a.offend(
            "split.tiers.tiers",
            format!("must be 1 to {TIER_COUNT_MAX} tiers, not {}", tiers.len()),
        );
        return None;
    }
    let mut taken = Vec::with_capacity(tiers.len());
    for (index, tier) in tiers.iter().enumerate() {
        let amount_minor = a.amount(tier_field(index, "amount_minor"), tier.amount_minor);
        if tier.share_count == 0 {
            a.offend(tier_field(index, "share_count"), "must be at least 1");
        }
        taken.extend(amount_minor.map(|amount_minor| Tier {
            amount_minor,
            count: tier.share_count,
        }));
    }
    (taken.len() == tiers.len() && taken.iter().all(|tier| tier.count > 0))
        .then_some(Split::Tiers { tiers: taken })
}

fn tier_field(index: usize, name: &str) -> Cow<'static, str> {
    format!("split.tiers.tiers[{index}].{name}").into()
}

/// Bounds as they were given → bounds that a cut has: no minimum is 1, no maximum the total.
fn bounds(a: &mut Admission, given: (i64, i64), total_minor: i64) -> Option<(i64, i64)> {
    let mut check = |field, minor: i64, default| match minor {
        0 => Some(default),
        1..=AMOUNT_MINOR_MAX => Some(minor),
        _ => {
            let says = format!("must be 0 to {AMOUNT_MINOR_MAX} minor units, not {minor}");
            a.offend(field, says);
            None
        }
    };
    let min = check("min_share_minor", given.0, 1);
    let max = check("max_share_minor", given.1, total_minor);
    min.zip(max)
}

fn checked_cut(
    a: &mut Admission,
    names: AmountFields,
    total_minor: Option<i64>,
    share_count: Option<u32>,
    given: (i64, i64),
    split: Option<Split>,
) -> Option<Cut> {
    let bounds = bounds(a, given, total_minor.unwrap_or(AMOUNT_MINOR_MAX));
    let (min_minor, max_minor) = bounds?;
    let cut = Cut {
        total_minor: total_minor?,
        share_count: share_count?,
        min_minor,
        max_minor,
        split: split?,
    };
    let Err(error) = cut.check() else {
        return Some(cut);
    };
    a.offend(cut_field(&error, names), error.to_string());
    None
}

fn cut_field(error: &CutError, names: AmountFields) -> Cow<'static, str> {
    match error {
        CutError::TotalOutOfRange { .. } | CutError::TotalTooSmall { .. } => names.minor.into(),
        CutError::ShareCountOutOfRange { .. } => "share_count".into(),
        CutError::MinBelowOne { .. } => "min_share_minor".into(),
        CutError::MaxBelowMin { .. }
        | CutError::MaxOutOfRange { .. }
        | CutError::TotalTooLarge { .. } => "max_share_minor".into(),
        CutError::TierEmpty { tier_number } => tier_field(*tier_number, "share_count"),
        CutError::TierAmountOutOfRange { tier_number, .. } => {
            tier_field(*tier_number, "amount_minor")
        }
        CutError::TierCountOutOfRange { .. }
        | CutError::TierCountsMismatch { .. }
        | CutError::TierSumMismatch { .. } => "split.tiers.tiers".into(),
    }
}

fn exclusive(
    a: &mut Admission,
    request: &v1::CreateEnvelopeRequest,
    currencies: &Currencies,
) -> Option<MoneyParts> {
    if request.amount.is_some() {
        let field = match request.amount {
            Some(Amount::PerShare(_)) => "per_share",
            _ => "total",
        };
        a.offend(
            field,
            "an EXCLUSIVE envelope takes none: it is the sum of its shares",
        );
    }
    if request.share_count != 0 {
        a.offend(
            "share_count",
            "an EXCLUSIVE envelope takes 0: its list says it",
        );
    }
    if request.split.as_ref().is_some_and(|s| s.rule.is_some()) {
        a.offend("split", "an EXCLUSIVE envelope takes none");
    }
    let field = "exclusive_currency_code";
    let currency = a.currency(field, &request.exclusive_currency_code, currencies);
    let listed = &request.exclusive_shares;
    if listed.is_empty() || listed.len() > EXCLUSIVE_SHARES_MAX {
        a.offend(
            "exclusive_shares",
            format!(
                "must be 1 to {EXCLUSIVE_SHARES_MAX} shares, not {}",
                listed.len()
            ),
        );
        return None;
    }
    let bounds = bounds(
        a,
        (request.min_share_minor, request.max_share_minor),
        AMOUNT_MINOR_MAX,
    );
    let shares = exclusive_shares(a, listed, bounds);
    let total_minor = listed_total(a, &shares)?;
    let (min_minor, max_minor) = bounds?;
    let cut = Cut {
        total_minor,
        share_count: u32::try_from(shares.len()).expect("at most a thousand"),
        min_minor,
        // Without a greatest share of the sender's, none can be above the total.
        max_minor: if request.max_share_minor == 0 {
            total_minor
        } else {
            max_minor
        },
        split: Split::Even,
    };
    (shares.len() == listed.len()).then_some(MoneyParts {
        currency: currency?,
        cut,
        exclusive: shares,
    })
}

fn exclusive_shares(
    a: &mut Admission,
    listed: &[v1::ExclusiveShare],
    bounds: Option<(i64, i64)>,
) -> Vec<ExclusiveShare> {
    let mut seen = BTreeSet::new();
    let mut shares = Vec::with_capacity(listed.len());
    for (index, share) in listed.iter().enumerate() {
        let named = |name| format!("exclusive_shares[{index}].{name}");
        let grabber = a.name(named("grabber"), &share.grabber);
        if !seen.insert(share.grabber.as_str()) {
            a.offend(named("grabber"), "is named twice");
        }
        let amount = a.amount(named("amount_minor"), share.amount_minor);
        if let (Some(amount), Some((min, max))) = (amount, bounds)
            && !(min..=max).contains(&amount)
        {
            a.offend(
                named("amount_minor"),
                format!("{amount} lies outside {min} to {max}"),
            );
        }
        shares.extend(
            grabber
                .zip(amount)
                .map(|(grabber, amount_minor)| ExclusiveShare {
                    grabber,
                    amount_minor,
                }),
        );
    }
    shares
}

fn listed_total(a: &mut Admission, shares: &[ExclusiveShare]) -> Option<i64> {
    // A thousand amounts below 2^53 fit an i64.
    let total = shares.iter().map(|share| share.amount_minor).sum::<i64>();
    if total > AMOUNT_MINOR_MAX {
        a.offend(
            "exclusive_shares",
            format!("are worth {total} together, more than {AMOUNT_MINOR_MAX} minor units"),
        );
        return None;
    }
    Some(total)
}

fn audience(
    a: &mut Admission,
    kind: Option<Kind>,
    request: &v1::CreateEnvelopeRequest,
    money: Option<&MoneyParts>,
) -> Option<Audience> {
    use v1::audience::Audience as Said;
    let said = request
        .audience
        .as_ref()
        .and_then(|audience| audience.audience.as_ref());
    if kind == Some(Kind::Exclusive) {
        if said.is_some() {
            a.offend(
                "audience",
                "an EXCLUSIVE envelope takes none: it is the list of its shares",
            );
        }
        let shares = &money?.exclusive;
        return Some(Audience::Named(
            shares.iter().map(|share| share.grabber.clone()).collect(),
        ));
    }
    match said {
        None | Some(Said::Anyone(_)) => Some(Audience::Anyone),
        Some(Said::Group(group)) => a
            .name("audience.group.group_id", &group.group_id)
            .map(Audience::Group),
        Some(Said::Named(named)) => named_audience(a, &named.grabbers).map(Audience::Named),
    }
}

fn named_audience(a: &mut Admission, grabbers: &[String]) -> Option<BTreeSet<PersonId>> {
    if grabbers.is_empty() || grabbers.len() > NAMED_GRABBERS_MAX {
        a.offend(
            "audience.named.grabbers",
            format!(
                "must be 1 to {NAMED_GRABBERS_MAX} grabbers, not {}",
                grabbers.len()
            ),
        );
        return None;
    }
    let mut names = BTreeSet::new();
    for (index, grabber) in grabbers.iter().enumerate() {
        let field = format!("audience.named.grabbers[{index}]");
        if let Some(name) = a.name(field.clone(), grabber)
            && !names.insert(name)
        {
            a.offend(field, "is named twice");
        }
    }
    Some(names)
}

fn expires_in(a: &mut Admission, expires_in: Option<&prost_types::Duration>) -> i64 {
    let Some(duration) = expires_in else {
        return EXPIRES_IN_MS_DEFAULT;
    };
    match wire::duration_ms(duration) {
        Some(ms) if (EXPIRES_IN_MS_MIN..=EXPIRES_IN_MS_MAX).contains(&ms) => ms,
        _ => {
            a.offend("expires_in", "must be 1 s to 90 days");
            EXPIRES_IN_MS_DEFAULT
        }
    }
}

fn opens_at(
    a: &mut Admission,
    open_time: Option<&prost_types::Timestamp>,
    expires_in_ms: i64,
    now: UnixMs,
) -> Option<UnixMs> {
    let Some(opens_at) = wire::instant(open_time?) else {
        a.offend(
            "open_time",
            "is no timestamp: nanos must be 0 to 999,999,999",
        );
        return None;
    };
    // The ledger's clock says when the envelope expires; a request that is repeated later must
    // not fail where the first try was admitted, so the past is no offence.
    if opens_at >= now.plus_ms(expires_in_ms) {
        a.offend("open_time", "must lie before the envelope expires");
    }
    Some(opens_at)
}

fn labels(a: &mut Admission, request: &v1::CreateEnvelopeRequest) {
    if request.labels.len() > LABELS_MAX {
        a.offend(
            "labels",
            format!(
                "are {} labels; at most {LABELS_MAX} are allowed",
                request.labels.len()
            ),
        );
        return;
    }
    for (index, (key, value)) in request.labels.iter().enumerate() {
        if key.is_empty() {
            a.offend("labels", "a key must not be empty");
        }
        // By place in the order of keys: a key that offends is not repeated.
        a.text(format!("labels[{index}].key"), key, ID_BYTES_MAX);
        a.text(
            format!("labels[{index}].value"),
            value,
            LABEL_VALUE_BYTES_MAX,
        );
    }
}
