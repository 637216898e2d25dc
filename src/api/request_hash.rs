//! Tells a replayed CreateEnvelope from another request under the same id.
//!
//! # Shape
//! SHA-256 over tagged, length-prefixed fields of what was asked for, after defaults were filled
//! in: `total` and `per_share` that mean the same hash the same, and so do `default` and an empty
//! tenant. Random parts (the passphrase's salt) and instants of arrival are not in it.
//!
//! # Ordering
//! The ledger keeps hashes for as long as it keeps requests, so this encoding outlives releases. A
//! field that is added later gets the next tag and is fed only where it differs from its default;
//! a test pins the bytes.
//!
//! # Not here
//! The passphrase itself: a short phrase could be guessed from a hash. What goes in is its HMAC
//! under the server's pepper, which no database holds.

use sha2::{Digest, Sha256};

use crate::domain::audience::{Audience, PassphraseLock, Pepper};
use crate::domain::envelope::{Draft, Kind, Reveal};
use crate::domain::split::Split;

/// Names the encoding.
const LABEL: &[u8] = b"red-envelope/create-request/1";

/// The salt of phrases that go into a hash. Fixed, so that a replay hashes the same; the rest of
/// the request, which is hashed with it, tells equal phrases of two envelopes apart.
const PHRASE_SALT: [u8; 16] = *b"request-hash/1\0\0";

/// Feeds tagged, length-prefixed fields: no two lists of fields give the same bytes.
struct Canon(Sha256);

impl Canon {
    fn field(&mut self, tag: u8, bytes: &[u8]) {
        self.0.update([tag]);
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    fn number(&mut self, tag: u8, number: i64) {
        self.field(tag, &number.to_be_bytes());
    }
}

/// The hash of what was asked for. `draft.passphrase` is not looked at.
pub fn of(draft: &Draft, phrase: &str, pepper: &Pepper) -> [u8; 32] {
    let mut canon = Canon(Sha256::new());
    canon.field(0, LABEL);
    canon.field(1, draft.tenant.as_str().as_bytes());
    canon.field(2, draft.sender.as_str().as_bytes());
    let kind = match draft.kind {
        Kind::Lucky => 1,
        Kind::Equal => 2,
        Kind::Exclusive => 3,
    };
    canon.number(3, kind);
    canon.field(4, draft.currency.code().as_bytes());
    canon.number(5, draft.total_minor);
    canon.number(6, i64::from(draft.share_count));
    canon.number(7, draft.min_minor);
    canon.number(8, draft.max_minor);
    split(&mut canon, draft.split.as_ref());
    for share in &draft.exclusive {
        canon.field(11, share.grabber.as_str().as_bytes());
        canon.number(12, share.amount_minor);
    }
    audience(&mut canon, draft);
    if !phrase.is_empty() {
        let lock = PassphraseLock::new(phrase, PHRASE_SALT, pepper);
        canon.field(16, &lock.digest().to_bytes());
    }
    canon.field(17, draft.greeting.as_bytes());
    canon.field(18, draft.cover_id.as_bytes());
    canon.number(19, draft.expires_in_ms);
    if let Some(opens_at) = draft.opens_at {
        canon.number(20, opens_at.0);
    }
    canon.field(21, &draft.client_nonce);
    let reveal = match draft.reveal {
        Reveal::AfterGrab => 1,
        Reveal::AtEnd => 2,
    };
    canon.number(22, reveal);
    for (key, value) in &draft.labels {
        canon.field(23, key.as_bytes());
        canon.field(24, value.as_bytes());
    }
    canon.0.finalize().into()
}

fn split(canon: &mut Canon, split: Option<&Split>) {
    let Some(split) = split else { return };
    let rule = match split {
        Split::Even => 1,
        Split::DoubleMean => 2,
        Split::BrokenStick => 3,
        Split::Tiers { .. } => 4,
    };
    canon.number(9, rule);
    if let Split::Tiers { tiers } = split {
        for tier in tiers {
            canon.number(10, tier.amount_minor);
            canon.number(10, i64::from(tier.count));
        }
    }
}

fn audience(canon: &mut Canon, draft: &Draft) {
    match &draft.audience {
        Audience::Anyone => canon.field(13, b""),
        Audience::Group(group) => canon.field(14, group.as_str().as_bytes()),
        Audience::Named(grabbers) => {
            for grabber in grabbers {
                canon.field(15, grabber.as_str().as_bytes());
            }
        }
    }
}
