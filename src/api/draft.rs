//! From a request for an envelope to a draft that the ledger may fund, or to all that is wrong.
//!
//! # Shape
//! | part | what |
//! |---|---|
//! | who and when | tenant, sender, request id, expiry, opening |
//! | what it looks like | greeting, cover, labels, reveal, nonce |
//! | how much (`worth`) | total or per-share amount, count, bounds, split; or named shares |
//! | for whom | audience, passphrase |
//!
//! # Bounds
//! [`CREATE_BYTES_MAX`] derives the largest request that can be valid.
//!
//! # Not here
//! Whether the sender has the money: the ledger decides in the transaction that holds it.

mod worth;

use std::collections::BTreeSet;

use red_envelope_proto::v1;

use super::admission::Admission;
use super::request_hash;
use super::status::{ApiError, Offence};
use super::wire;
use crate::domain::audience::{
    Audience, NAMED_GRABBERS_MAX, PASSPHRASE_BYTES_MAX, PassphraseLock, Pepper, normalised,
};
use crate::domain::envelope::{
    CLIENT_NONCE_BYTES_MAX, Draft, EXPIRES_IN_MS_DEFAULT, EXPIRES_IN_MS_MAX, EXPIRES_IN_MS_MIN,
    GREETING_BYTES_MAX, Kind, LABEL_VALUE_BYTES_MAX, LABELS_MAX, Reveal,
};
use crate::domain::id::{ID_BYTES_MAX, PartitionCount, PersonId, UnixMs};
use crate::domain::money::Currencies;
use crate::domain::stripes::StripeCount;

pub use worth::preview;
use worth::{Worth, worth};

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
    /// What is wrong with it by now: only a replay may go on.
    pub by_now: Vec<Offence>,
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
    /// Envelopes with more shares are dealt to stripes (0: none is), in as many partitions.
    pub deal: (u32, PartitionCount),
}

/// Checks a request.
///
/// # Errors
/// Everything that is wrong with it, if some of it was wrong at any time.
pub fn draft(request: v1::CreateEnvelopeRequest, rules: &Rules<'_>) -> Result<Drafted, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let sender = a.name("sender", &request.sender);
    let request_id = a.name("request_id", &request.request_id);
    let kind = kind(&mut a, request.kind);
    let money = kind.and_then(|kind| worth(&mut a, kind, &request, rules.currencies));
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
    let ((tenant, sender, request_id, money, audience, kind), by_now) =
        a.admit_before_now(parts)?;
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
        stripes: StripeCount::ONE,
    };
    let request_hash = request_hash::of(&draft, &phrase, rules.pepper);
    draft.passphrase =
        (!phrase.is_empty()).then(|| PassphraseLock::new(&phrase, rules.salt, rules.pepper));
    let (above, partitions) = rules.deal;
    let locked = draft.passphrase.is_some();
    draft.stripes = StripeCount::of((kind, locked), draft.share_count, above, partitions);
    Ok(Drafted {
        request_id,
        request_hash,
        draft,
        by_now,
    })
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

fn audience(
    a: &mut Admission,
    kind: Option<Kind>,
    request: &v1::CreateEnvelopeRequest,
    money: Option<&Worth>,
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
        a.offend_by_now("open_time", "must lie before the envelope expires");
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

#[cfg(test)]
mod tests;
