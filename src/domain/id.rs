//! Names of things: envelopes, tenants, people, partitions, epochs, instants.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Bytes of a person's, a group's or a request's id. Long enough for a UUID, an OpenID or a
/// SHA-256 in hex; short enough that a grab's record in the hot store stays near 100 bytes.
pub const ID_BYTES_MAX: usize = 64;

/// The tenant that is meant when a request names none.
pub const TENANT_DEFAULT: &str = "default";

/// Characters of a printed envelope id: 128 bits at 5 bits each, rounded up.
const ENVELOPE_ID_CHARS: usize = 26;

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;

/// An instant: milliseconds since 1970-01-01T00:00:00Z, leap seconds ignored.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMs(pub i64);

impl UnixMs {
    /// The instant `ms` milliseconds later; stops at the end of time instead of wrapping.
    pub fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Days since 1970-01-01, as they go into an envelope's id. Saturates in the year 2149.
    pub fn day(self) -> u16 {
        u16::try_from(self.0.div_euclid(DAY_MS).max(0)).unwrap_or(u16::MAX)
    }
}

/// Why a name was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("must not be empty")]
    Empty,
    /// Longer than [`ID_BYTES_MAX`].
    #[error("is {bytes} bytes long; at most {ID_BYTES_MAX} are allowed")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// A character that is not allowed at this place.
    #[error("{0}")]
    Character(&'static str),
    /// Not an envelope id.
    #[error("must be the 26 letters and digits (a-z, 2-7) that CreateEnvelope returned")]
    NotAnEnvelopeId,
}

fn checked(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > ID_BYTES_MAX {
        return Err(IdError::TooLong { bytes: text.len() });
    }
    Ok(())
}

/// Whose envelopes, accounts and seeds: part of every key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// 1…64 characters of a-z, 0-9, `-`, `_`; empty means [`TENANT_DEFAULT`].
    ///
    /// # Errors
    /// Too long, or another character.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Ok(Self(TENANT_DEFAULT.into()));
        }
        checked(text)?;
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if !text.bytes().all(allowed) {
            return Err(IdError::Character("may hold a-z, 0-9, '-' and '_' only"));
        }
        Ok(Self(text.into()))
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A sender, grabber, viewer, operator or account owner, as the chat app names them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PersonId(Arc<str>);

impl PersonId {
    /// 1…64 bytes without control characters.
    ///
    /// # Errors
    /// Empty, too long, or a control character.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        checked(text)?;
        // One pass over bytes serves the usual ASCII id; chars are looked at only beyond it.
        let plain = text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if !plain && text.chars().any(char::is_control) {
            return Err(IdError::Character("may not hold control characters"));
        }
        Ok(Self(text.into()))
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PersonId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PersonId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An envelope: 16 bits of creation day (big endian) and 112 bits that cannot be guessed.
///
/// Large tables are partitioned by the day, so that a share stays unique for ever inside one
/// partition. Printed as 26 characters of RFC 4648 base32 in lower case without padding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnvelopeId([u8; 16]);

impl EnvelopeId {
    /// From the day of creation and 112 unguessable bits.
    pub fn from_parts(day: u16, random: [u8; 14]) -> Self {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&day.to_be_bytes());
        bytes[2..].copy_from_slice(&random);
        Self(bytes)
    }

    /// From its 16 bytes, as the stores keep it.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its 16 bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Days since 1970-01-01 at creation.
    pub fn day(self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// The partition that it lives in: the last 32 of its random bits, modulo the count.
    pub fn partition(self, count: PartitionCount) -> Partition {
        let low = u32::from_be_bytes([self.0[12], self.0[13], self.0[14], self.0[15]]);
        let index = low % u32::from(count.get());
        Partition(u16::try_from(index).expect("the remainder is below a u16"))
    }
}

impl fmt::Display for EnvelopeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = data_encoding::BASE32_NOPAD.encode(&self.0);
        text.make_ascii_lowercase();
        f.write_str(&text)
    }
}

impl fmt::Debug for EnvelopeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EnvelopeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() != ENVELOPE_ID_CHARS {
            return Err(IdError::NotAnEnvelopeId);
        }
        let mut upper = [0; ENVELOPE_ID_CHARS];
        upper.copy_from_slice(text.as_bytes());
        upper.make_ascii_uppercase();
        let mut bytes = [0; 16];
        match data_encoding::BASE32_NOPAD.decode_mut(&upper, &mut bytes) {
            Ok(16) => Ok(Self(bytes)),
            _ => Err(IdError::NotAnEnvelopeId),
        }
    }
}

impl Serialize for EnvelopeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EnvelopeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// How many partitions there are: fixed at first start, 1…1,024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionCount(u16);

impl PartitionCount {
    /// The embedded store is one process on one disk: one partition.
    pub const ONE: Self = Self(1);

    /// The most that a hot store may have: a process holds something for each.
    pub const MAX: u16 = 1_024;

    /// 1…[`PartitionCount::MAX`]; `None` for another number.
    pub fn new(count: u16) -> Option<Self> {
        (1..=Self::MAX).contains(&count).then_some(Self(count))
    }

    /// How many.
    pub fn get(self) -> u16 {
        self.0
    }

    /// Each of them.
    pub fn all(self) -> impl Iterator<Item = Partition> {
        (0..self.0).map(Partition)
    }
}

/// The unit of ownership of envelopes in the hot store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(u16);

impl Partition {
    /// The only partition of an embedded store.
    pub const ZERO: Self = Self(0);

    /// By its number below [`PartitionCount::MAX`]; `None` for another one.
    pub fn new(index: u16) -> Option<Self> {
        (index < PartitionCount::MAX).then_some(Self(index))
    }

    /// 0…count − 1.
    pub fn index(self) -> u16 {
        self.0
    }
}

/// Which incarnation of a partition's hot store is meant. Grows when the store is replaced; the
/// embedded store is never replaced under a running process and stays at [`Epoch::FIRST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The first.
    pub const FIRST: Self = Self(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_envelope_id_reads_back_as_it_was_printed(day: u16, random: [u8; 14]) {
            let id = EnvelopeId::from_parts(day, random);
            prop_assert_eq!(id.day(), day);
            prop_assert_eq!(id.to_string().len(), ENVELOPE_ID_CHARS);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        }

        #[test]
        fn text_that_is_no_envelope_id_is_rejected_without_a_panic(text in "\\PC{0,40}") {
            if let Ok(id) = text.parse::<EnvelopeId>() {
                prop_assert_eq!(id.to_string(), text.to_lowercase());
            }
        }

        #[test]
        fn ids_of_one_day_sort_together(day in 0..u16::MAX, a: [u8; 14], b: [u8; 14]) {
            prop_assert!(EnvelopeId::from_parts(day, a) < EnvelopeId::from_parts(day + 1, b));
        }
    }

    #[test]
    fn an_id_with_stray_low_bits_is_not_a_second_name_of_an_envelope() {
        // 26 characters hold 130 bits: the two that are too many must be zero.
        let id = EnvelopeId::from_parts(1, [0; 14]).to_string();
        let stray = format!("{}b", &id[..25]);
        assert_eq!(stray.parse::<EnvelopeId>(), Err(IdError::NotAnEnvelopeId));
    }

    #[test]
    fn a_person_is_named_by_one_to_sixty_four_bytes_without_control_characters() {
        assert!(PersonId::parse("alice").is_ok());
        assert!(PersonId::parse("小明").is_ok());
        assert_eq!(PersonId::parse(""), Err(IdError::Empty));
        assert!(PersonId::parse(&"x".repeat(64)).is_ok());
        assert_eq!(
            PersonId::parse(&"x".repeat(65)),
            Err(IdError::TooLong { bytes: 65 })
        );
        for bad in ["a\nb", "a\u{0}", "a\u{7f}", "é\u{85}"] {
            assert!(matches!(PersonId::parse(bad), Err(IdError::Character(_))));
        }
    }

    #[test]
    fn an_unnamed_tenant_is_the_default_one() {
        assert_eq!(
            TenantId::parse("").map(|t| t.to_string()),
            Ok("default".into())
        );
        for bad in ["Shop", "a b", "ä", "a/b"] {
            assert!(matches!(TenantId::parse(bad), Err(IdError::Character(_))));
        }
    }
}
