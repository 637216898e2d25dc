//! An envelope: the terms it was funded under, where it stands, the limits of both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::audience::{Audience, PassphraseLock};
use super::id::{PersonId, TenantId, UnixMs};
use super::money::Currency;
use super::split::{Cut, Split};
use super::stripes::StripeCount;

/// Shares of an EXCLUSIVE envelope: it is loaded and closed in one chunk.
pub const EXCLUSIVE_SHARES_MAX: usize = 1_000;
/// Bytes of a greeting after NFC.
pub const GREETING_BYTES_MAX: usize = 128;
/// Labels of an envelope.
pub const LABELS_MAX: usize = 16;
/// Bytes of a label's value.
pub const LABEL_VALUE_BYTES_MAX: usize = 128;
/// Bytes of the client's nonce.
pub const CLIENT_NONCE_BYTES_MAX: usize = 64;
/// How long an envelope can be grabbed if the sender says nothing: 24 h.
pub const EXPIRES_IN_MS_DEFAULT: i64 = 24 * 3_600_000;
/// How long an envelope can be grabbed at the most: 90 days.
pub const EXPIRES_IN_MS_MAX: i64 = 90 * 24 * 3_600_000;
/// How long an envelope can be grabbed at the least: 1 s.
pub const EXPIRES_IN_MS_MIN: i64 = 1_000;
/// Shares that one call loads into the hot store: 1,000 take a Redis 6 ms, a million 1.5 s.
pub const LOAD_CHUNK_SHARES_MAX: usize = 1_000;
/// Above so many shares CreateEnvelope may answer while the envelope is still Funding.
pub const SYNCHRONOUS_SHARES_MAX: u32 = 100_000;

/// What an envelope does with its money.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Random shares.
    Lucky,
    /// The same amount for everybody.
    Equal,
    /// Named grabbers with amounts.
    Exclusive,
}

/// The EXCLUSIVE envelope holds the share for somebody else. Stable.
pub const WRONG_GRABBER: &str = "wrong_grabber";
/// Only a share of an EXCLUSIVE envelope may be declined. Stable.
pub const NOT_DECLINABLE: &str = "not_declinable";
/// The envelope is for named grabbers, and this is none of them. Stable.
pub const NOT_IN_AUDIENCE: &str = "not_in_audience";

/// When grabbers see the amounts of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reveal {
    /// As soon as they hold a share.
    AfterGrab,
    /// When the envelope is empty or closed.
    AtEnd,
}

/// Where an envelope stands in the hot store.
///
/// Funding → Live → Empty | Expired | Recalled. Whether the books are balanced (Closed) is the
/// ledger's to say; frozen is a mark beside the state, so that unfreezing finds the state again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HotState {
    /// Shares are being loaded.
    Funding,
    /// Shares can be grabbed.
    Live,
    /// Over: no share is granted any more, for this reason.
    Over(CloseReason),
}

/// Why an envelope no longer gives out shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// Every share was taken or declined.
    Empty,
    /// The time is over.
    Expired,
    /// The sender ended it.
    Recalled,
}

/// Where an envelope stands in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BookState {
    /// The money is held; nobody knows yet that the shares are published.
    Funding,
    /// The shares are published.
    Live,
    /// No grab is accepted any more; what was won is still being settled.
    Closing(CloseReason),
    /// Settled and refunded add up to what was funded.
    Closed(CloseReason),
}

/// One share of an EXCLUSIVE envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExclusiveShare {
    /// For whom.
    pub grabber: PersonId,
    /// Minor units, ≥ 1.
    pub amount_minor: i64,
}

/// Where an envelope's seed was committed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafRef {
    /// Consecutive per tenant.
    pub leaf_number: u64,
    /// SHA-256 commitment to the server's seed.
    pub leaf_hash: [u8; 32],
    /// The Merkle batch of the leaf.
    pub batch_number: u64,
    /// The published root of that batch.
    pub batch_root: [u8; 32],
}

/// What the sender asked for, checked: everything but what the ledger adds when it funds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// Whose envelope.
    pub tenant: TenantId,
    /// Who pays.
    pub sender: PersonId,
    /// What it does with its money.
    pub kind: Kind,
    /// Of all its amounts.
    pub currency: Currency,
    /// All shares together, minor units.
    pub total_minor: i64,
    /// 1…10,000,000.
    pub share_count: u32,
    /// The smallest share, minor units, ≥ 1.
    pub min_minor: i64,
    /// The largest share, minor units.
    pub max_minor: i64,
    /// How it is cut. `None` for EXCLUSIVE.
    pub split: Option<Split>,
    /// In the sender's order; empty unless EXCLUSIVE.
    pub exclusive: Vec<ExclusiveShare>,
    /// Who may grab. For EXCLUSIVE the grabbers of its shares.
    pub audience: Audience,
    /// Asked of every grabber.
    pub passphrase: Option<PassphraseLock>,
    /// After NFC.
    pub greeting: String,
    /// The picture, as the chat app names it.
    pub cover_id: String,
    /// When amounts of others become visible.
    pub reveal: Reveal,
    /// The sender's labels.
    pub labels: BTreeMap<String, String>,
    /// Grabbing begins. `None`: at once.
    pub opens_at: Option<UnixMs>,
    /// Grabbing ends so long after funding.
    pub expires_in_ms: i64,
    /// Goes into the split's seed.
    pub client_nonce: Vec<u8>,
    /// Into how many stripes it is dealt: the server's choice, which stands once it is funded. Terms without it
    /// have one, and terms with one don't write it: the stores compare terms byte by byte.
    #[serde(default, skip_serializing_if = "StripeCount::is_one")]
    pub stripes: StripeCount,
}

/// The terms that an envelope lives under. They never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// What the sender asked for.
    #[serde(flatten)]
    pub draft: Draft,
    /// When the money was held, by the ledger's clock.
    pub created_at: UnixMs,
    /// When grabbing ends: `created_at` + `expires_in_ms`.
    pub expires_at: UnixMs,
    /// Where its seed was committed to.
    pub leaf: LeafRef,
}

impl std::ops::Deref for Terms {
    type Target = Draft;

    fn deref(&self) -> &Draft {
        &self.draft
    }
}

impl Draft {
    /// What the split is asked to cut; `None` for EXCLUSIVE, whose amounts are given.
    pub fn cut(&self) -> Option<Cut> {
        let split = self.split.clone()?;
        Some(Cut {
            total_minor: self.total_minor,
            share_count: self.share_count,
            min_minor: self.min_minor,
            max_minor: self.max_minor,
            split,
        })
    }

    /// The number of the share that an EXCLUSIVE envelope holds for somebody.
    pub fn exclusive_share_of(&self, grabber: &PersonId) -> Option<u32> {
        let index = self.exclusive.iter().position(|s| s.grabber == *grabber)?;
        u32::try_from(index).ok()
    }

    /// PURE: why nobody of this name can have won such a share, or have declined it, whatever the amount.
    /// Who is in a group only the gateway knows.
    pub fn refuses(&self, grabber: &PersonId, share: u32, declined: bool) -> Option<&'static str> {
        if self.kind == Kind::Exclusive {
            let held = self.exclusive_share_of(grabber);
            return (held != Some(share)).then_some(WRONG_GRABBER);
        }
        if declined {
            return Some(NOT_DECLINABLE);
        }
        let is_outside =
            matches!(&self.audience, Audience::Named(names) if !names.contains(grabber));
        is_outside.then_some(NOT_IN_AUDIENCE)
    }
}

impl Terms {
    /// As the stores keep it: JSON, so that an operator can read a row and a later release can
    /// add a field.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("terms have string keys only")
    }

    /// From [`Terms::to_json`].
    ///
    /// # Errors
    /// Text that this release does not understand.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// CRC-32 over amounts as little-endian i64: `open` compares it with what was loaded.
pub fn shares_checksum(amounts_minor: &[i64]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for amount in amounts_minor {
        crc.update(&amount.to_le_bytes());
    }
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a release wrote that knew no stripes.
    const TERMS: &str = concat!(
        r#"{"tenant":"default","sender":"alice","kind":"lucky","currency":"CNY","total_minor":888,"#,
        r#""share_count":8,"min_minor":1,"max_minor":888,"split":{"rule":"double_mean"},"#,
        r#""exclusive":[],"audience":"anyone","passphrase":null,"greeting":"恭喜发财","cover_id":"","#,
        r#""reveal":"after_grab","labels":{},"opens_at":null,"expires_in_ms":3600000,"#,
        r#""client_nonce":[110],"created_at":1795435200000,"expires_at":1795438800000,"#,
        r#""leaf":{"leaf_number":0,"leaf_hash":"#,
        "[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]",
        r#","batch_number":0,"batch_root":"#,
        "[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]",
        "}}",
    );

    #[test]
    fn terms_without_stripes_have_one_and_keep_their_bytes() {
        let terms = Terms::from_json(TERMS).unwrap();
        assert_eq!(terms.stripes, StripeCount::ONE);
        assert_eq!(terms.to_json(), TERMS);
    }

    #[test]
    fn terms_of_several_stripes_read_back_and_those_of_a_wrong_number_do_not() {
        let mut terms = Terms::from_json(TERMS).unwrap();
        terms.draft.stripes = StripeCount::new(4).unwrap();
        let text = terms.to_json();
        assert_eq!(Terms::from_json(&text).unwrap(), terms);
        for (number, good) in [("1", true), ("64", true), ("0", false), ("65", false)] {
            let other = text.replace("\"stripes\":4", &format!("\"stripes\":{number}"));
            assert_ne!(other, text);
            assert_eq!(Terms::from_json(&other).is_ok(), good, "{number}");
        }
    }
}
