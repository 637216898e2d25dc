//! Everything that a stranger needs to re-derive an envelope's shares offline, as one JSON file: what
//! `red-envelope proof` writes and `red-envelope verify` reads.
//!
//! *Shape.* [`Proof::verify`] takes the steps of `docs/FAIRNESS.md`, section 9, in their order, and stops
//! at the first that fails. [`Proof::reveal`] writes a proof and verifies it before it hands it out.
//!
//! *Not here.* What was promised: a proof is consistent in itself or not, and only the commitment
//! that was given out at creation tells whether it is the proof of *that* envelope.

use super::hex::{Hex32, HexBytes};
use super::{
    BatchSecret, BatchTree, LEAVES_PER_BATCH, ServerSeed, batch_of, frame, index_in_batch,
    leaf_hash, root_from_path,
};
use crate::domain::envelope::CLIENT_NONCE_BYTES_MAX;
use crate::domain::split::{Cut, CutError, Split, Tier};
use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The version of all that is hashed and drawn. Any change of a byte is a new one.
pub const PROOF_VERSION: u32 = 1;

/// Up to so many shares a proof lists them all; above it gives their hash only, which whoever
/// verifies re-derives. 10,000 amounts are at most 170 kB of JSON, half of what one message takes.
pub const PROOF_AMOUNTS_MAX: u32 = 10_000;

/// How the shares came about: by a rule, or listed by the sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum ProofSplit {
    /// [`Split::Even`].
    Even,
    /// [`Split::DoubleMean`].
    DoubleMean,
    /// [`Split::BrokenStick`].
    BrokenStick,
    /// [`Split::Tiers`].
    Tiers {
        /// The merchant's list.
        tiers: Vec<Tier>,
    },
    /// An EXCLUSIVE envelope: the sender named each amount, in the order of the list, and nothing was
    /// left to chance. Only the sum, the count and the id are there to be checked.
    Exclusive,
}

impl From<Split> for ProofSplit {
    fn from(split: Split) -> Self {
        match split {
            Split::Even => Self::Even,
            Split::DoubleMean => Self::DoubleMean,
            Split::BrokenStick => Self::BrokenStick,
            Split::Tiers { tiers } => Self::Tiers { tiers },
        }
    }
}

impl ProofSplit {
    /// The rule of the cut; none for EXCLUSIVE.
    fn cut_by(&self) -> Option<Split> {
        match self {
            Self::Even => Some(Split::Even),
            Self::DoubleMean => Some(Split::DoubleMean),
            Self::BrokenStick => Some(Split::BrokenStick),
            Self::Tiers { tiers } => Some(Split::Tiers {
                tiers: tiers.clone(),
            }),
            Self::Exclusive => None,
        }
    }

    /// The fields that stand for the rule in the proof's digest.
    fn digest_fields(&self) -> Vec<Vec<u8>> {
        let name: &[u8] = match self {
            Self::Even => b"even",
            Self::DoubleMean => b"double_mean",
            Self::BrokenStick => b"broken_stick",
            Self::Tiers { .. } => b"tiers",
            Self::Exclusive => b"exclusive",
        };
        let mut fields = vec![name.to_vec()];
        if let Self::Tiers { tiers } = self {
            for tier in tiers {
                fields.push(tier.amount_minor.to_be_bytes().to_vec());
                fields.push(u64::from(tier.count).to_be_bytes().to_vec());
            }
        }
        fields
    }
}

/// What the envelope was, as its sender and grabbers knew it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofTerms {
    /// Whose envelope.
    pub tenant: String,
    /// Creation day (big endian, days since 1970-01-01 UTC) and 14 derived bytes.
    pub envelope_id: [u8; 16],
    /// The leaf that it consumed.
    pub leaf_number: u64,
    /// What the sender's client put into the split's seed, at most [`CLIENT_NONCE_BYTES_MAX`] bytes.
    pub client_nonce: Vec<u8>,
    /// The currency or declared unit of all amounts.
    pub currency_code: String,
    /// The sum of all shares, in minor units.
    pub total_minor: i64,
    /// How many shares.
    pub share_count: u32,
    /// The least that a share could be; for EXCLUSIVE 1.
    pub min_minor: i64,
    /// The most that a share could be; for EXCLUSIVE the total.
    pub max_minor: i64,
    /// How the shares came about.
    pub split: ProofSplit,
}

/// A proof, as it is written to a file. Public as a whole, so it is made only after the close.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// [`PROOF_VERSION`].
    pub version: u32,
    /// Whose envelope.
    pub tenant: String,
    /// The 16 bytes of the id in base32 of RFC 4648, lower case, without padding: 26 characters.
    pub envelope_id: String,
    /// The number of the leaf.
    pub leaf_number: u64,
    /// [`LEAVES_PER_BATCH`].
    pub leaf_count_per_batch: u32,
    /// The commitment that was returned at creation.
    pub leaf_hash: Hex32,
    /// The root that was published before the leaf was used.
    pub batch_root: Hex32,
    /// The siblings from the leaf up.
    pub path: Vec<Hex32>,
    /// The seed that the leaf committed to.
    pub server_seed: Hex32,
    /// What the sender's client put in.
    pub client_nonce: HexBytes,
    /// The currency of all amounts.
    pub currency_code: String,
    /// The sum of all shares, in minor units.
    pub total_minor: i64,
    /// How many shares.
    pub share_count: u32,
    /// The least that a share could be.
    pub min_minor: i64,
    /// The most that a share could be.
    pub max_minor: i64,
    /// How the shares came about.
    pub split: ProofSplit,
    /// All shares in grabbing order; absent above [`PROOF_AMOUNTS_MAX`] shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amounts: Option<Vec<i64>>,
    /// SHA-256 of all amounts in grabbing order, 8 bytes each, little endian.
    pub amounts_sha256: Hex32,
    /// SHA-256 of everything above that is not derived: a name for this proof that fits a message.
    pub digest: Hex32,
}

/// What a verified proof says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// To be compared with the commitment that was returned at creation.
    pub leaf_hash: [u8; 32],
    /// To be compared with the root that was published for `batch_number`.
    pub batch_root: [u8; 32],
    /// The batch of the leaf.
    pub batch_number: u64,
    /// The day in the id, days since 1970-01-01 UTC, to be compared with the creation time.
    pub creation_day: u16,
    /// Every share in grabbing order, re-derived.
    pub amounts: Vec<i64>,
}

/// The first step of the verification that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not a proof file at all.
    #[error("this is not a proof: {reason}")]
    Format {
        /// What the reader stumbled over.
        reason: String,
    },
    /// Made by another release, or for another size of batch.
    #[error(
        "this proof has version {version} with {leaf_count} leaves a batch; known is version {PROOF_VERSION} with {LEAVES_PER_BATCH}"
    )]
    Version {
        /// The version in the proof.
        version: u32,
        /// The leaves of a batch in the proof.
        leaf_count: u32,
    },
    /// The id is not 26 characters of base32.
    #[error("the envelope id is not 26 characters of a-z and 2-7 for 16 bytes")]
    EnvelopeId,
    /// The nonce is longer than one can be.
    #[error("the client's nonce has {bytes} bytes; at most {CLIENT_NONCE_BYTES_MAX} are possible")]
    ClientNonce {
        /// Its length.
        bytes: usize,
    },
    /// The seed is not the one that was committed to.
    #[error("the leaf hash is not the commitment to this server seed, tenant and leaf number")]
    Leaf,
    /// The leaf is not in the batch.
    #[error("the leaf and its path do not lead to the batch root")]
    Root,
    /// The id was not derived from the leaf.
    #[error("the envelope id does not follow from the server seed, tenant and leaf number")]
    Id,
    /// No envelope can have these terms.
    #[error("no envelope has these terms: {0}")]
    Terms(#[from] CutError),
    /// The list of an EXCLUSIVE envelope does not keep to its terms.
    #[error(
        "the amounts are not {share_count} of at least {min_minor} and at most {max_minor} that add up to {total_minor}"
    )]
    Listed {
        /// The number of shares.
        share_count: u32,
        /// The least share.
        min_minor: i64,
        /// The greatest share.
        max_minor: i64,
        /// The total.
        total_minor: i64,
    },
    /// The shares are not those of the seed, or are listed where they may not be or not where they
    /// must.
    #[error("the amounts are not those that the seed, the nonce and the terms give")]
    Amounts,
    /// The hash of the shares is another one.
    #[error("the hash of the amounts is not that of the amounts")]
    AmountsHash,
    /// Something that nothing else depends on was changed, such as the currency.
    #[error("the digest is not that of this proof: a term was changed")]
    Digest,
}

impl ProofError {
    /// The name of the failed step, the same in every program that follows `docs/FAIRNESS.md`.
    pub fn step(&self) -> &'static str {
        match self {
            Self::Format { .. } => "format",
            Self::Version { .. } => "version",
            Self::EnvelopeId => "envelope_id",
            Self::ClientNonce { .. } => "client_nonce",
            Self::Leaf => "leaf",
            Self::Root => "root",
            Self::Id => "id",
            Self::Terms(_) => "terms",
            Self::Listed { .. } | Self::Amounts => "amounts",
            Self::AmountsHash => "amounts_sha256",
            Self::Digest => "digest",
        }
    }
}

impl Proof {
    /// Writes the proof of a closed envelope. `listed` is the sender's list for EXCLUSIVE and empty
    /// otherwise.
    ///
    /// # Errors
    /// What [`Proof::verify`] says of it: the secret, the terms or the list are not those with which
    /// the envelope was made, and a proof that fails is never handed out.
    pub fn reveal(
        terms: ProofTerms,
        secret: &BatchSecret,
        listed: &[i64],
    ) -> Result<Self, ProofError> {
        let seed = secret.server_seed(&terms.tenant, terms.leaf_number);
        let tree = BatchTree::grow(secret, &terms.tenant, batch_of(terms.leaf_number));
        let index = index_in_batch(terms.leaf_number);
        let mut proof = Self {
            version: PROOF_VERSION,
            envelope_id: BASE32_NOPAD.encode(&terms.envelope_id).to_lowercase(),
            leaf_count_per_batch: LEAVES_PER_BATCH,
            leaf_hash: Hex32(tree.leaf(index)),
            batch_root: Hex32(tree.root()),
            path: tree.path(index).into_iter().map(Hex32).collect(),
            server_seed: Hex32(seed.reveal()),
            client_nonce: HexBytes(terms.client_nonce),
            tenant: terms.tenant,
            leaf_number: terms.leaf_number,
            currency_code: terms.currency_code,
            total_minor: terms.total_minor,
            share_count: terms.share_count,
            min_minor: terms.min_minor,
            max_minor: terms.max_minor,
            split: terms.split,
            amounts: None,
            amounts_sha256: Hex32([0; 32]),
            digest: Hex32([0; 32]),
        };
        let amounts = match proof.cut() {
            Some(cut) => cut.amounts(&seed.split_seed(terms.envelope_id, &proof.client_nonce.0))?,
            None => listed.to_vec(),
        };
        proof.amounts_sha256 = Hex32(amounts_sha256(&amounts));
        if proof.share_count <= PROOF_AMOUNTS_MAX {
            proof.amounts = Some(amounts);
        }
        proof.digest = Hex32(proof.digest_of(&terms.envelope_id));
        proof.verify()?;
        Ok(proof)
    }

    /// Reads a proof file.
    ///
    /// # Errors
    /// [`ProofError::Format`] with what is wrong and where.
    pub fn from_json(text: &str) -> Result<Self, ProofError> {
        serde_json::from_str(text).map_err(|error| ProofError::Format {
            reason: error.to_string(),
        })
    }

    /// The proof file, indented for people.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings, integers and lists always serialize")
    }

    /// Whether everything in this proof follows from its seed, nonce and terms.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn verify(&self) -> Result<Verified, ProofError> {
        let id = self.check_shape()?;
        let seed = ServerSeed::new(self.server_seed.0);
        self.check_commitment(&seed)?;
        if seed.id_random(&self.tenant, self.leaf_number) != id[2..] {
            return Err(ProofError::Id);
        }
        let amounts = self.check_amounts(&seed, id)?;
        if amounts_sha256(&amounts) != self.amounts_sha256.0 {
            return Err(ProofError::AmountsHash);
        }
        if self.digest_of(&id) != self.digest.0 {
            return Err(ProofError::Digest);
        }
        Ok(Verified {
            leaf_hash: self.leaf_hash.0,
            batch_root: self.batch_root.0,
            batch_number: batch_of(self.leaf_number),
            creation_day: u16::from_be_bytes([id[0], id[1]]),
            amounts,
        })
    }

    /// Version, batch size, id and nonce are of the known form; gives the id's bytes.
    fn check_shape(&self) -> Result<[u8; 16], ProofError> {
        if self.version != PROOF_VERSION || self.leaf_count_per_batch != LEAVES_PER_BATCH {
            return Err(ProofError::Version {
                version: self.version,
                leaf_count: self.leaf_count_per_batch,
            });
        }
        let lower = !self.envelope_id.bytes().any(|b| b.is_ascii_uppercase());
        let id = BASE32_NOPAD
            .decode(self.envelope_id.to_ascii_uppercase().as_bytes())
            .ok()
            .filter(|_| lower)
            .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
            .ok_or(ProofError::EnvelopeId)?;
        let bytes = self.client_nonce.0.len();
        if bytes > CLIENT_NONCE_BYTES_MAX {
            return Err(ProofError::ClientNonce { bytes });
        }
        Ok(id)
    }

    /// The leaf commits to the seed, and the root to the leaf at its place.
    fn check_commitment(&self, seed: &ServerSeed) -> Result<(), ProofError> {
        if leaf_hash(&self.tenant, self.leaf_number, seed) != self.leaf_hash.0 {
            return Err(ProofError::Leaf);
        }
        let path: Vec<[u8; 32]> = self.path.iter().map(|sibling| sibling.0).collect();
        let index = index_in_batch(self.leaf_number);
        let root = root_from_path(self.leaf_hash.0, index, &path);
        if path.len() != super::MERKLE_DEPTH as usize || root != self.batch_root.0 {
            return Err(ProofError::Root);
        }
        Ok(())
    }

    /// The amounts that the seed gives, or the sender's list, compared with those in the proof.
    fn check_amounts(&self, seed: &ServerSeed, id: [u8; 16]) -> Result<Vec<i64>, ProofError> {
        let Some(cut) = self.cut() else {
            // The bounds of a list are checked as those of a cut that any rule could make.
            self.bounds(Split::Even).check()?;
            let amounts = self.amounts.as_ref().filter(|amounts| {
                let sum: i128 = amounts.iter().map(|&amount| i128::from(amount)).sum();
                amounts.len() == self.share_count as usize
                    && sum == i128::from(self.total_minor)
                    && amounts
                        .iter()
                        .all(|amount| (self.min_minor..=self.max_minor).contains(amount))
            });
            return amounts.cloned().ok_or(ProofError::Listed {
                share_count: self.share_count,
                min_minor: self.min_minor,
                max_minor: self.max_minor,
                total_minor: self.total_minor,
            });
        };
        let derived = cut.amounts(&seed.split_seed(id, &self.client_nonce.0))?;
        let as_it_must_be = match &self.amounts {
            Some(told) => self.share_count <= PROOF_AMOUNTS_MAX && *told == derived,
            None => self.share_count > PROOF_AMOUNTS_MAX,
        };
        if as_it_must_be {
            Ok(derived)
        } else {
            Err(ProofError::Amounts)
        }
    }

    /// The cut that made the shares; none for EXCLUSIVE.
    fn cut(&self) -> Option<Cut> {
        self.split.cut_by().map(|split| self.bounds(split))
    }

    fn bounds(&self, split: Split) -> Cut {
        Cut {
            total_minor: self.total_minor,
            share_count: self.share_count,
            min_minor: self.min_minor,
            max_minor: self.max_minor,
            split,
        }
    }

    fn digest_of(&self, id: &[u8; 16]) -> [u8; 32] {
        let split = self.split.digest_fields();
        let leaf_number = self.leaf_number.to_be_bytes();
        let total = self.total_minor.to_be_bytes();
        let share_count = u64::from(self.share_count).to_be_bytes();
        let (min, max) = (self.min_minor.to_be_bytes(), self.max_minor.to_be_bytes());
        let mut fields: Vec<&[u8]> = vec![
            b"red-envelope/v1/proof",
            self.tenant.as_bytes(),
            id,
            &leaf_number,
            &self.batch_root.0,
            &self.server_seed.0,
            &self.client_nonce.0,
            self.currency_code.as_bytes(),
            &total,
            &share_count,
            &min,
            &max,
            &self.amounts_sha256.0,
        ];
        fields.extend(split.iter().map(Vec::as_slice));
        let mut hash = Sha256::new();
        frame(&fields, |bytes| hash.update(bytes));
        hash.finalize().into()
    }
}

/// SHA-256 of the amounts, 8 bytes each, little endian.
pub(super) fn amounts_sha256(amounts: &[i64]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for amount in amounts {
        hash.update(amount.to_le_bytes());
    }
    hash.finalize().into()
}
