//! Who may grab, and the passphrase that a grab may have to bring.

use std::collections::BTreeSet;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use unicode_normalization::UnicodeNormalization;

use super::id::PersonId;

/// Grabbers that an audience may name: the terms of an envelope stay below 64 KiB plus names.
pub const NAMED_GRABBERS_MAX: usize = 1_000;

/// Bytes of a passphrase after NFC.
pub const PASSPHRASE_BYTES_MAX: usize = 64;

/// Wrong passphrases that one grabber may try on one envelope.
pub const WRONG_TRIES_PER_GRABBER_MAX: u32 = 5;

/// Wrong passphrases that all grabbers together may try on one envelope: at five tries each this
/// is 2,000 invented grabbers, against at least a million of the weakest sensible passphrases.
pub const WRONG_TRIES_PER_ENVELOPE_MAX: u32 = 10_000;

/// Who may grab. To everybody else the envelope does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// Anyone who has the id.
    Anyone,
    /// The members of the group, as the gateway names it.
    Group(PersonId),
    /// The named grabbers. An EXCLUSIVE envelope's audience is the list of its shares.
    Named(BTreeSet<PersonId>),
}

impl Audience {
    /// Whether somebody who comes through `group` (if any) is in it.
    pub fn admits(&self, person: &PersonId, group: Option<&str>) -> bool {
        match self {
            Self::Anyone => true,
            Self::Group(id) => group == Some(id.as_str()),
            Self::Named(grabbers) => grabbers.contains(person),
        }
    }
}

/// A passphrase as the stores keep it: HMAC-SHA256 under the server's pepper over salt ‖ phrase.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassphraseLock {
    salt: [u8; 16],
    digest: PhraseDigest,
}

impl std::fmt::Debug for PassphraseLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PassphraseLock")
    }
}

/// What a grab brings to a lock. Comparing two of them takes the same time wherever they differ.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PhraseDigest([u8; 32]);

impl PhraseDigest {
    /// Its 32 bytes, to be hashed with what else a request says.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl PartialEq for PhraseDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for PhraseDigest {}

impl std::fmt::Debug for PhraseDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PhraseDigest")
    }
}

/// The server's secret part of every lock: 32 bytes that no database holds.
#[derive(Clone)]
pub struct Pepper(pub [u8; 32]);

impl std::fmt::Debug for Pepper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pepper")
    }
}

impl PassphraseLock {
    /// Locks with a phrase; the caller brings 16 random bytes of salt.
    pub fn new(phrase: &str, salt: [u8; 16], pepper: &Pepper) -> Self {
        let digest = digest(phrase, &salt, pepper);
        Self { salt, digest }
    }

    /// What `phrase` would bring to this lock.
    pub fn try_phrase(&self, phrase: &str, pepper: &Pepper) -> PhraseDigest {
        digest(phrase, &self.salt, pepper)
    }

    /// What opens it.
    pub fn digest(&self) -> PhraseDigest {
        self.digest
    }
}

fn digest(phrase: &str, salt: &[u8; 16], pepper: &Pepper) -> PhraseDigest {
    let mut mac = Hmac::<Sha256>::new_from_slice(&pepper.0).expect("HMAC takes a key of any size");
    mac.update(salt);
    mac.update(normalised(phrase).as_bytes());
    PhraseDigest(mac.finalize().into_bytes().into())
}

/// Text in Unicode's normal form C: what looks the same is the same.
pub fn normalised(text: &str) -> String {
    text.nfc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(name: &str) -> PersonId {
        PersonId::parse(name).unwrap()
    }

    #[test]
    fn an_audience_admits_its_own_and_nobody_else() {
        let bob = person("bob");
        assert!(Audience::Anyone.admits(&bob, None));
        let group = Audience::Group(person("family"));
        assert!(group.admits(&bob, Some("family")));
        assert!(!group.admits(&bob, Some("work")));
        assert!(!group.admits(&bob, None));
        let named = Audience::Named([person("ann"), bob.clone()].into());
        assert!(named.admits(&bob, None));
        assert!(!named.admits(&person("eve"), Some("family")));
    }

    #[test]
    fn a_lock_opens_to_its_phrase_in_any_unicode_spelling() {
        let pepper = Pepper([7; 32]);
        let lock = PassphraseLock::new("caf\u{e9} 新年", [1; 16], &pepper);
        assert_eq!(lock.try_phrase("cafe\u{301} 新年", &pepper), lock.digest());
        assert_ne!(lock.try_phrase("cafe 新年", &pepper), lock.digest());
        assert_ne!(lock.try_phrase("", &pepper), lock.digest());
    }

    #[test]
    fn the_same_phrase_locks_differently_under_another_salt_or_pepper() {
        let lock = PassphraseLock::new("8888", [1; 16], &Pepper([7; 32]));
        let salted = PassphraseLock::new("8888", [2; 16], &Pepper([7; 32]));
        assert_ne!(lock.digest(), salted.digest());
        assert_ne!(lock.try_phrase("8888", &Pepper([8; 32])), lock.digest());
    }
}
