//! Derives a server seed from a batch secret, and from the seed its commitment, the envelope's id
//! and the split seed.
//!
//! `docs/FAIRNESS.md`, sections 3 and 4, states this file to the bit.

use super::frame;
use crate::domain::split::SplitSeed;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::domain::envelope::LeafRef;

/// 32 random bytes from which the server seeds of one batch of one tenant follow. Whoever knows it
/// knows every share of every envelope of the batch, so it never prints and is wiped when dropped.
pub struct BatchSecret([u8; 32]);

/// What one leaf commits to: 32 bytes, secret until its envelope is closed.
#[derive(Clone)]
pub struct ServerSeed([u8; 32]);

impl BatchSecret {
    /// Takes 32 bytes from a cryptographic random number generator.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for sealing.
    pub(super) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The seed of the leaf that `leaf` refers to; `None` where it commits to another one.
    pub fn committed_seed(&self, tenant: &str, leaf: &LeafRef) -> Option<ServerSeed> {
        let seed = self.server_seed(tenant, leaf.leaf_number);
        (leaf_hash(tenant, leaf.leaf_number, &seed) == leaf.leaf_hash).then_some(seed)
    }

    /// The seed of one leaf.
    pub fn server_seed(&self, tenant: &str, leaf_number: u64) -> ServerSeed {
        ServerSeed(keyed(
            &self.0,
            &[
                b"red-envelope/v1/server-seed",
                tenant.as_bytes(),
                &leaf_number.to_be_bytes(),
            ],
        ))
    }
}

impl ServerSeed {
    /// A seed that was revealed, or kept for one envelope.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for revealing after the close and for nothing before it.
    pub fn reveal(&self) -> [u8; 32] {
        self.0
    }

    /// The 112 bits of the envelope's id that cannot be guessed before the envelope exists.
    pub fn id_random(&self, tenant: &str, leaf_number: u64) -> [u8; 14] {
        let tag = keyed(
            &self.0,
            &[
                b"red-envelope/v1/envelope-id",
                tenant.as_bytes(),
                &leaf_number.to_be_bytes(),
            ],
        );
        let mut random = [0; 14];
        random.copy_from_slice(&tag[..14]);
        random
    }

    /// The seed of the split. The client's nonce is in it, so the server, which was committed to its
    /// own part before it saw the nonce, chose nothing.
    pub fn split_seed(&self, id: [u8; 16], client_nonce: &[u8]) -> SplitSeed {
        SplitSeed(keyed(
            &self.0,
            &[b"red-envelope/v1/split-seed", &id, client_nonce],
        ))
    }
}

impl std::fmt::Debug for BatchSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BatchSecret(..)")
    }
}

impl std::fmt::Debug for ServerSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerSeed(..)")
    }
}

impl Drop for BatchSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Drop for ServerSeed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The commitment to a seed: a leaf of the batch's Merkle tree, returned when the envelope is
/// created. It hides the seed, because the seed has 256 bits that nobody can try, and binds it.
pub fn leaf_hash(tenant: &str, leaf_number: u64, seed: &ServerSeed) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix([0x00]);
    frame(
        &[
            b"red-envelope/v1/leaf",
            tenant.as_bytes(),
            &leaf_number.to_be_bytes(),
            &seed.0,
        ],
        |bytes| hash.update(bytes),
    );
    hash.finalize().into()
}

/// HMAC-SHA256 over framed fields.
fn keyed(key: &[u8; 32], fields: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    frame(fields, |bytes| mac.update(bytes));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_do_not_print() {
        let secret = BatchSecret::new([1; 32]);
        assert_eq!(format!("{secret:?}"), "BatchSecret(..)");
        let seed = secret.server_seed("default", 0);
        assert_eq!(format!("{seed:?}"), "ServerSeed(..)");
    }

    proptest! {
        #[test]
        fn every_leaf_of_every_tenant_has_its_own_seed(
            secret: [u8; 32], tenant in "[a-z]{1,8}", other in "[a-z]{1,8}", a: u64, b: u64,
        ) {
            let secret = BatchSecret::new(secret);
            let same = tenant == other && a == b;
            let (one, two) = (secret.server_seed(&tenant, a), secret.server_seed(&other, b));
            prop_assert_eq!(one.0 == two.0, same);
            prop_assert_eq!(leaf_hash(&tenant, a, &one) == leaf_hash(&other, b, &two), same);
        }

        #[test]
        fn the_split_seed_depends_on_every_bit_of_id_and_nonce(
            seed: [u8; 32], id: [u8; 16], mut nonce in proptest::collection::vec(any::<u8>(), 1..64),
            bit in 0_usize..8,
        ) {
            let seed = ServerSeed::new(seed);
            let split = seed.split_seed(id, &nonce).0;
            let mut other_id = id;
            other_id[bit] ^= 1 << bit;
            prop_assert_ne!(split, seed.split_seed(other_id, &nonce).0);
            let place = bit % nonce.len();
            nonce[place] ^= 1 << bit;
            prop_assert_ne!(split, seed.split_seed(id, &nonce).0);
            nonce.push(0);
            prop_assert_ne!(split, seed.split_seed(id, &nonce).0);
        }
    }
}
