//! How much an envelope is worth and how it is cut, or what is wrong with it.
//!
//! # Shape
//! Each number is checked by itself first, so that all offences are told; `Cut::check` then judges
//! them together.

use std::borrow::Cow;
use std::collections::BTreeSet;

use red_envelope_proto::v1;
use red_envelope_proto::v1::create_envelope_request::Amount;

use crate::api::admission::Admission;
use crate::api::status::ApiError;
use crate::domain::envelope::{EXCLUSIVE_SHARES_MAX, ExclusiveShare, Kind};
use crate::domain::money::{AMOUNT_MINOR_MAX, Currencies, Currency};
use crate::domain::split::{Cut, CutError, SHARE_COUNT_MAX, Split, TIER_COUNT_MAX, Tier};

/// What an envelope is worth and how it is cut. For EXCLUSIVE the split is not used.
pub(super) struct Worth {
    pub(super) currency: Currency,
    pub(super) cut: Cut,
    pub(super) exclusive: Vec<ExclusiveShare>,
}

/// Which fields carry the amount: `total` or `per_share`.
#[derive(Clone, Copy)]
struct AmountFields {
    currency: &'static str,
    minor: &'static str,
}

const TOTAL: AmountFields = AmountFields {
    currency: "total.currency_code",
    minor: "total.minor_units",
};
const PER_SHARE: AmountFields = AmountFields {
    currency: "per_share.currency_code",
    minor: "per_share.minor_units",
};

/// Checks what PreviewSplit asks about: the cut of a LUCKY envelope.
///
/// # Errors
/// Everything that is wrong with it.
pub fn preview(
    request: &v1::PreviewSplitRequest,
    currencies: &Currencies,
) -> Result<(Currency, Cut), ApiError> {
    let mut a = Admission::default();
    let names = TOTAL;
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

/// Checks the amount, the count, the bounds and the split.
pub(super) fn worth(
    a: &mut Admission,
    kind: Kind,
    request: &v1::CreateEnvelopeRequest,
    currencies: &Currencies,
) -> Option<Worth> {
    if kind == Kind::Exclusive {
        return exclusive(a, request, currencies);
    }
    let only = "only an EXCLUSIVE envelope takes";
    if !request.exclusive_shares.is_empty() {
        a.offend("exclusive_shares", format!("{only} them"));
    }
    if !request.exclusive_currency_code.is_empty() {
        a.offend("exclusive_currency_code", format!("{only} it"));
    }
    let count = share_count(a, request.share_count);
    let stated = stated(a, kind, request.amount.as_ref(), count, currencies);
    let split = match kind {
        Kind::Equal => {
            if request.split.as_ref().is_some_and(|s| s.rule.is_some()) {
                a.offend("split", "an EQUAL envelope takes none");
            }
            Some(Split::Even)
        }
        Kind::Lucky | Kind::Exclusive => split(a, request.split.as_ref()),
    };
    let given = (request.min_share_minor, request.max_share_minor);
    let (names, currency, total_minor) = stated.unwrap_or((TOTAL, None, None));
    let cut = checked_cut(a, names, total_minor, count, given, split);
    Some(Worth {
        currency: currency?,
        cut: cut?,
        exclusive: Vec::new(),
    })
}

/// The total as the request states it, and the fields that state it.
fn stated(
    a: &mut Admission,
    kind: Kind,
    amount: Option<&Amount>,
    count: Option<u32>,
    currencies: &Currencies,
) -> Option<(AmountFields, Option<Currency>, Option<i64>)> {
    match (kind, amount) {
        (_, Some(Amount::Total(money))) => {
            let currency = a.currency(TOTAL.currency, &money.currency_code, currencies);
            let total = a.amount(TOTAL.minor, money.minor_units);
            if let (Kind::Equal, Some(total), Some(count)) = (kind, total, count)
                && total % i64::from(count) != 0
            {
                let says = format!("{total} does not divide into {count} equal shares");
                a.offend(TOTAL.minor, says);
            }
            Some((TOTAL, currency, total))
        }
        (Kind::Equal, Some(Amount::PerShare(money))) => {
            let currency = a.currency(PER_SHARE.currency, &money.currency_code, currencies);
            let each = a.amount(PER_SHARE.minor, money.minor_units);
            let total = each
                .zip(count)
                .and_then(|(each, count)| total_of(a, PER_SHARE.minor, each, count));
            Some((PER_SHARE, currency, total))
        }
        (_, Some(Amount::PerShare(_))) => {
            a.offend("per_share", "only an EQUAL envelope takes it; give total");
            None
        }
        (_, None) => {
            a.offend("total", "must say how much money");
            None
        }
    }
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
) -> Option<Worth> {
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
    (shares.len() == listed.len()).then_some(Worth {
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
