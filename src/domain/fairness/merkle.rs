//! Binds the commitments of one batch under one root, so that publishing 32 bytes fixes 1,024 seeds
//! before any of them is used.
//!
//! The tree is that of RFC 6962, section 2.1, on a number of leaves that is a power of two: leaves
//! are hashed after a byte 0x00 and nodes after 0x01, so neither passes for the other.
//!
//! `docs/FAIRNESS.md`, section 3, states this file to the bit.

use super::{
    BatchSecret, LEAVES_PER_BATCH, MERKLE_DEPTH, batch_of, index_in_batch, leaf::leaf_hash,
};
use sha2::{Digest, Sha256};

/// All hashes of one batch, for callers who ask for more than one of them: 64 kB, about a
/// millisecond to grow. It holds commitments only, nothing secret.
pub struct BatchTree {
    /// From the leaves (level 0) to the root (level [`MERKLE_DEPTH`], one hash).
    levels: Vec<Vec<[u8; 32]>>,
}

impl BatchTree {
    /// Hashes every leaf of a batch.
    ///
    /// # Panics
    /// If the batch lies beyond the last leaf number, 2^64 − 1.
    pub fn grow(secret: &BatchSecret, tenant: &str, batch_number: u64) -> Self {
        let first = batch_number
            .checked_mul(u64::from(LEAVES_PER_BATCH))
            .expect("2^54 batches are more than a tenant can use");
        let leaves = (0..u64::from(LEAVES_PER_BATCH))
            .map(|index| {
                let leaf_number = first + index;
                let seed = secret.server_seed(tenant, leaf_number);
                leaf_hash(tenant, leaf_number, &seed)
            })
            .collect();
        Self::over(leaves)
    }

    fn over(leaves: Vec<[u8; 32]>) -> Self {
        debug_assert_eq!(leaves.len(), LEAVES_PER_BATCH as usize);
        let mut levels = vec![leaves];
        for level in 0..MERKLE_DEPTH as usize {
            let above = levels[level]
                .chunks_exact(2)
                .map(|pair| node_hash(&pair[0], &pair[1]))
                .collect();
            levels.push(above);
        }
        Self { levels }
    }

    /// What is published before the first leaf is used.
    pub fn root(&self) -> [u8; 32] {
        self.levels[MERKLE_DEPTH as usize][0]
    }

    /// The commitment at a place of the batch, from 0.
    ///
    /// # Panics
    /// If the index is not below [`LEAVES_PER_BATCH`].
    pub fn leaf(&self, index: u32) -> [u8; 32] {
        self.levels[0][index as usize]
    }

    /// The siblings from the leaf at this index up to the root.
    ///
    /// # Panics
    /// If the index is not below [`LEAVES_PER_BATCH`].
    pub fn path(&self, index: u32) -> Vec<[u8; 32]> {
        (0..MERKLE_DEPTH as usize)
            .map(|level| self.levels[level][(index as usize >> level) ^ 1])
            .collect()
    }
}

/// The root of a batch.
pub fn batch_root(secret: &BatchSecret, tenant: &str, batch_number: u64) -> [u8; 32] {
    BatchTree::grow(secret, tenant, batch_number).root()
}

/// The siblings from a leaf up to the root of its batch.
pub fn merkle_path(secret: &BatchSecret, tenant: &str, leaf_number: u64) -> Vec<[u8; 32]> {
    BatchTree::grow(secret, tenant, batch_of(leaf_number)).path(index_in_batch(leaf_number))
}

/// The root to which a leaf and its siblings lead. Bit i of the index says whether the path comes
/// from the right at level i.
pub fn root_from_path(leaf_hash: [u8; 32], index: u32, path: &[[u8; 32]]) -> [u8; 32] {
    let mut hash = leaf_hash;
    let mut place = index;
    for sibling in path {
        hash = if place & 1 == 0 {
            node_hash(&hash, sibling)
        } else {
            node_hash(sibling, &hash)
        };
        place >>= 1;
    }
    hash
}

fn node_hash(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    Sha256::new_with_prefix([0x01])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_leads_to_the_root_and_to_no_other_place() {
        let tree = BatchTree::grow(&BatchSecret::new([9; 32]), "default", 3);
        for index in 0..LEAVES_PER_BATCH {
            let path = tree.path(index);
            assert_eq!(path.len(), MERKLE_DEPTH as usize);
            assert_eq!(root_from_path(tree.leaf(index), index, &path), tree.root());
            let elsewhere = index ^ (1 << (index % MERKLE_DEPTH));
            assert_ne!(
                root_from_path(tree.leaf(index), elsewhere, &path),
                tree.root()
            );
        }
    }

    #[test]
    fn a_changed_sibling_leads_elsewhere() {
        let tree = BatchTree::grow(&BatchSecret::new([9; 32]), "default", 0);
        for level in 0..MERKLE_DEPTH as usize {
            let mut path = tree.path(77);
            path[level][level] ^= 0x10;
            assert_ne!(root_from_path(tree.leaf(77), 77, &path), tree.root());
        }
    }

    #[test]
    fn the_short_ways_agree_with_the_tree() {
        let secret = BatchSecret::new([2; 32]);
        let tree = BatchTree::grow(&secret, "acme", 5);
        assert_eq!(batch_root(&secret, "acme", 5), tree.root());
        assert_eq!(merkle_path(&secret, "acme", 5 * 1_024 + 9), tree.path(9));
    }

    #[test]
    fn batches_and_tenants_have_different_roots() {
        let secret = BatchSecret::new([2; 32]);
        let root = batch_root(&secret, "acme", 0);
        assert_ne!(root, batch_root(&secret, "acme", 1));
        assert_ne!(root, batch_root(&secret, "acme2", 0));
    }
}
