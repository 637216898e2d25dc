//! Keeps batch secrets unreadable at rest: AES-256-GCM under a key that the operator holds outside
//! the database.
//!
//! *Shape.* sealed = version (1 byte, 1) ‖ key id (4 bytes, big endian) ‖ nonce (12) ‖ ciphertext (32)
//! ‖ tag (16). The associated data frame version, key id, tenant and batch number, so a sealed secret
//! that is copied to another row does not open there.
//!
//! *Bounds.* Nonces are 96 random bits, so NIST SP 800-38D (section 8.3) allows 2^32 seals a key: 2^42
//! envelopes.
//!
//! *Not here.* Randomness and files: the nonce and the text of the key file come in as values.

use super::{BatchSecret, frame};
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use data_encoding::HEXLOWER_PERMISSIVE;
use zeroize::{Zeroize, Zeroizing};

/// The most keys that are held at once. Each rotation adds one and nothing is resealed, so this is
/// five years of monthly rotation.
pub const SEAL_KEYS_MAX: usize = 64;

const VERSION: u8 = 1;
const NONCE_BYTES: usize = 12;
const HEADER_BYTES: usize = 1 + 4 + NONCE_BYTES;
const SEALED_BYTES: usize = HEADER_BYTES + 32 + 16;

/// One key of the operator, wiped when dropped.
pub struct SealKey {
    /// Higher is newer. It is written into every row that the key seals.
    pub id: u32,
    key: [u8; 32],
}

/// The keys that are held: the one with the highest id seals, all of them open.
pub struct SealKeys {
    /// Ascending by id, distinct, at least one.
    keys: Vec<SealKey>,
}

/// Where a sealed secret belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealContext<'a> {
    /// The tenant whose batch it is.
    pub tenant: &'a str,
    /// The number of the batch.
    pub batch_number: u64,
}

/// Why a key or a sealed secret was not accepted. None tells anything of a key or a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key file is not as it should be: the operator's to mend.
    #[error("line {line} of the seal keys: {reason}")]
    KeyFile {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No key at all.
    #[error("there is no seal key")]
    NoKey,
    /// More keys than are held.
    #[error("there are more than {SEAL_KEYS_MAX} seal keys")]
    TooManyKeys,
    /// Two keys with one id.
    #[error("seal key {id} is there twice")]
    DuplicateKey {
        /// The id.
        id: u32,
    },
    /// Not something that this release sealed.
    #[error("not a sealed secret: wrong length or version")]
    Malformed,
    /// The key that sealed it is not held. The operator gives it back, or the secret is lost.
    #[error("sealed with key {id}, which is not held")]
    UnknownKey {
        /// The id in the row.
        id: u32,
    },
    /// Changed, moved from another row, or sealed under another key of the same id.
    #[error("the sealed secret does not open: it was changed, moved, or sealed with another key")]
    DoesNotOpen,
}

impl SealKey {
    /// Takes 32 bytes from a cryptographic random number generator.
    pub fn new(id: u32, key: [u8; 32]) -> Self {
        Self { id, key }
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(&Key::<Aes256Gcm>::from(self.key))
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealKey({}, ..)", self.id)
    }
}

impl Drop for SealKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl std::fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.keys).finish()
    }
}

impl SealKeys {
    /// Holds these keys.
    ///
    /// # Errors
    /// None, more than [`SEAL_KEYS_MAX`], or two of one id.
    pub fn new(mut keys: Vec<SealKey>) -> Result<Self, SealError> {
        if keys.is_empty() {
            return Err(SealError::NoKey);
        }
        if keys.len() > SEAL_KEYS_MAX {
            return Err(SealError::TooManyKeys);
        }
        keys.sort_unstable_by_key(|key| key.id);
        if let Some(pair) = keys.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(SealError::DuplicateKey { id: pair[0].id });
        }
        Ok(Self { keys })
    }

    /// Reads the text of a key file: a line `id:key` for each key, the id in decimal, the key as 64
    /// hexadecimal digits. Empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// A line of another form, or what [`SealKeys::new`] does not accept.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if keys.len() == SEAL_KEYS_MAX {
                return Err(SealError::TooManyKeys);
            }
            keys.push(parse_line(line).map_err(|reason| SealError::KeyFile {
                line: number + 1,
                reason,
            })?);
        }
        Self::new(keys)
    }

    /// The id of the key that seals.
    pub fn newest_id(&self) -> u32 {
        self.newest().id
    }

    fn newest(&self) -> &SealKey {
        self.keys.last().expect("there is at least one key")
    }

    /// Seals a batch secret with the newest key. The nonce is 96 fresh random bits: one that is used
    /// twice under a key gives the key's authentication away.
    pub fn seal(
        &self,
        context: SealContext<'_>,
        nonce: [u8; NONCE_BYTES],
        secret: &BatchSecret,
    ) -> Vec<u8> {
        let key = self.newest();
        let aad = associated(context, key.id);
        let payload = Payload {
            msg: secret.expose(),
            aad: &aad,
        };
        let ciphertext = key
            .cipher()
            .encrypt(&Nonce::from(nonce), payload)
            .expect("32 bytes are within the limits of GCM");
        let mut sealed = Vec::with_capacity(SEALED_BYTES);
        sealed.push(VERSION);
        sealed.extend_from_slice(&key.id.to_be_bytes());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&ciphertext);
        sealed
    }

    /// Opens what [`SealKeys::seal`] sealed, at the same place.
    ///
    /// # Errors
    /// Not sealed by this release, by a key that is not held, or for another place.
    pub fn open(&self, context: SealContext<'_>, sealed: &[u8]) -> Result<BatchSecret, SealError> {
        if sealed.len() != SEALED_BYTES || sealed[0] != VERSION {
            return Err(SealError::Malformed);
        }
        let id = u32::from_be_bytes(sealed[1..5].try_into().expect("four bytes"));
        let nonce: [u8; NONCE_BYTES] = sealed[5..HEADER_BYTES].try_into().expect("twelve bytes");
        let key = self
            .keys
            .binary_search_by_key(&id, |key| key.id)
            .map(|place| &self.keys[place])
            .map_err(|_| SealError::UnknownKey { id })?;
        let aad = associated(context, id);
        let payload = Payload {
            msg: &sealed[HEADER_BYTES..],
            aad: &aad,
        };
        let opened = key
            .cipher()
            .decrypt(&Nonce::from(nonce), payload)
            .map_err(|_| SealError::DoesNotOpen)?;
        let opened = Zeroizing::new(opened);
        let bytes = <[u8; 32]>::try_from(opened.as_slice()).map_err(|_| SealError::Malformed)?;
        Ok(BatchSecret::new(bytes))
    }
}

fn parse_line(line: &str) -> Result<SealKey, &'static str> {
    let (id, digits) = line.split_once(':').ok_or("expected id:key")?;
    let id = id
        .trim()
        .parse()
        .map_err(|_| "the id is not a number of 32 bits")?;
    let bytes = HEXLOWER_PERMISSIVE
        .decode(digits.trim().as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| "the key is not hexadecimal")?;
    let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| "the key is not 32 bytes long")?;
    Ok(SealKey::new(id, key))
}

fn associated(context: SealContext<'_>, key_id: u32) -> Vec<u8> {
    let mut aad = Vec::new();
    frame(
        &[
            b"red-envelope/v1/seal",
            &[VERSION],
            &key_id.to_be_bytes(),
            context.tenant.as_bytes(),
            &context.batch_number.to_be_bytes(),
        ],
        |bytes| aad.extend_from_slice(bytes),
    );
    aad
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(ids: &[u32]) -> SealKeys {
        let keys = ids
            .iter()
            .map(|&id| SealKey::new(id, [u8::try_from(id % 251).unwrap(); 32]))
            .collect();
        SealKeys::new(keys).unwrap()
    }

    const HOME: SealContext<'static> = SealContext {
        tenant: "default",
        batch_number: 7,
    };

    proptest! {
        #[test]
        fn what_was_sealed_opens_at_its_own_place_only(
            secret: [u8; 32], nonce: [u8; 12], tenant in "[a-z]{1,9}", batch_number: u64,
            other_tenant in "[a-z]{1,9}", other_batch: u64,
        ) {
            let keys = keys(&[1, 2]);
            let home = SealContext { tenant: &tenant, batch_number };
            let sealed = keys.seal(home, nonce, &BatchSecret::new(secret));
            let opened = keys.open(home, &sealed).unwrap();
            prop_assert_eq!(opened.expose(), &secret);
            for away in [
                SealContext { tenant: &other_tenant, batch_number },
                SealContext { tenant: &tenant, batch_number: other_batch },
            ] {
                if away != home {
                    let opened = keys.open(away, &sealed).map(|_| ());
                    prop_assert_eq!(opened, Err(SealError::DoesNotOpen));
                }
            }
        }

        #[test]
        fn no_changed_bit_opens(secret: [u8; 32], nonce: [u8; 12], bit in 0..SEALED_BYTES * 8) {
            let keys = keys(&[1]);
            let mut sealed = keys.seal(HOME, nonce, &BatchSecret::new(secret));
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(keys.open(HOME, &sealed).is_err());
        }
    }

    #[test]
    fn the_newest_key_seals_and_the_old_ones_still_open() {
        let secret = BatchSecret::new([6; 32]);
        let sealed = keys(&[4]).seal(HOME, [0; 12], &secret);
        let rotated = keys(&[9, 4]);
        assert_eq!(rotated.newest_id(), 9);
        assert_eq!(rotated.open(HOME, &sealed).unwrap().expose(), &[6; 32]);
        let resealed = rotated.seal(HOME, [1; 12], &secret);
        assert_eq!(
            keys(&[4]).open(HOME, &resealed).unwrap_err(),
            SealError::UnknownKey { id: 9 }
        );
    }

    #[test]
    fn another_key_of_the_same_id_does_not_open() {
        let sealed = keys(&[4]).seal(HOME, [0; 12], &BatchSecret::new([6; 32]));
        let impostor = SealKeys::new(vec![SealKey::new(4, [0; 32])]).unwrap();
        assert_eq!(
            impostor.open(HOME, &sealed).unwrap_err(),
            SealError::DoesNotOpen
        );
    }

    #[test]
    fn what_was_never_sealed_is_malformed() {
        for text in [
            &b""[..],
            b"short",
            &[2; SEALED_BYTES],
            &[1; SEALED_BYTES + 1],
        ] {
            assert_eq!(
                keys(&[1]).open(HOME, text).unwrap_err(),
                SealError::Malformed
            );
        }
    }

    #[test]
    fn a_key_file_says_which_line_is_wrong() {
        let digits = "ab".repeat(32);
        let text = format!(
            "# rotated monthly\n\n1:{digits}\n 2 : {}\n",
            "CD".repeat(32)
        );
        assert_eq!(SealKeys::parse(&text).unwrap().newest_id(), 2);
        let wrong = |text: &str| SealKeys::parse(text).unwrap_err();
        assert_eq!(wrong(""), SealError::NoKey);
        assert_eq!(
            wrong(&format!("1:{digits}\n1:{digits}")),
            SealError::DuplicateKey { id: 1 }
        );
        for line in ["1", "x:00", "1:zz", "1:00"] {
            assert!(matches!(wrong(line), SealError::KeyFile { line: 1, .. }));
        }
        let many: String = (0..65).map(|id| format!("{id}:{digits}\n")).collect();
        assert_eq!(wrong(&many), SealError::TooManyKeys);
    }

    #[test]
    fn keys_do_not_print() {
        assert_eq!(
            format!("{:?}", keys(&[3, 8])),
            "[SealKey(3, ..), SealKey(8, ..)]"
        );
    }
}
