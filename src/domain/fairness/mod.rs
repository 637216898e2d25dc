//! Commits to the seed of every split before the request is known that will use it, and lets
//! anybody check it afterwards, offline, with another program.
//!
//! *Shape*
//!
//! | step | when | where |
//! |---|---|---|
//! | a batch secret makes [`LEAVES_PER_BATCH`] server seeds | before any envelope | `leaf` |
//! | their hashes make a Merkle tree, whose root is published | before any envelope | `merkle` |
//! | the secret is kept sealed | at rest | `seal` |
//! | an envelope takes the next leaf: id and split seed follow from it and the client's nonce | at creation | `leaf` |
//! | the seed is revealed, with all that leads to the shares | after the close | `proof` |
//!
//! *Ordering.* Root before envelope, leaf number in order without choice, reveal after the close. The
//! callers keep this order; `docs/FAIRNESS.md` says what follows if they do not, and states every
//! byte that is hashed here.
//!
//! *Not here.* Random numbers (secrets and nonces come in as values), storage of leaves, and the
//! rules that cut: `split`.

mod hex;
mod leaf;
mod merkle;
mod proof;
mod seal;
#[cfg(test)]
mod vectors;

pub use hex::{Hex32, HexBytes};
pub use leaf::{BatchSecret, ServerSeed, leaf_hash};
pub use merkle::{BatchTree, batch_root, merkle_path, root_from_path};
pub use proof::{
    PROOF_AMOUNTS_MAX, PROOF_VERSION, Proof, ProofError, ProofSplit, ProofTerms, Verified,
};
pub use seal::{SEAL_KEYS_MAX, SealContext, SealError, SealKey, SealKeys};

/// How many leaves one secret makes and one root covers.
///
/// A proof carries log2 of it in hashes (10, 320 bytes), opening a secret costs this many HMACs once
/// (about a millisecond, and again for each proof that is asked for), and each batch is one row and
/// one published root. 1,024 keeps the row and the root below a thousandth of an envelope's own
/// cost, and a tenant who creates 1,000 envelopes a second publishes a root a second.
pub const LEAVES_PER_BATCH: u32 = 1 << MERKLE_DEPTH;

/// Siblings between a leaf and the root.
pub const MERKLE_DEPTH: u32 = 10;

/// The batch in which a leaf lies.
pub fn batch_of(leaf_number: u64) -> u64 {
    leaf_number / u64::from(LEAVES_PER_BATCH)
}

/// The place of a leaf in its batch, from 0.
pub fn index_in_batch(leaf_number: u64) -> u32 {
    u32::try_from(leaf_number % u64::from(LEAVES_PER_BATCH)).expect("below LEAVES_PER_BATCH")
}

/// Feeds fields to a hash so that no two lists of fields give the same bytes: each is preceded by
/// its length, 4 bytes, big endian. The first is always a label that names the use.
fn frame(fields: &[&[u8]], mut take: impl FnMut(&[u8])) {
    for field in fields {
        let length = u32::try_from(field.len()).expect("a field is far below 4 GiB");
        take(&length.to_be_bytes());
        take(field);
    }
}
