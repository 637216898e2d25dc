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

use super::id::UnixMs;

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

/// Batches that a restore leaves out where the clock was set back and its instant is no number to begin
/// with: a billion leaves.
pub const RESTORE_BATCH_GAP: u64 = 1 << 20;

/// The batch with which a tenant's leaves begin anew after its books were restored to an earlier moment,
/// where they know of batches up to `newest`. What was used after that moment, and after an earlier
/// restore of the same backup, nobody can look up any more. So the number is the instant, in milliseconds:
/// nobody uses a batch a millisecond, so no batch that was begun before has reached it. The leaf numbers
/// that follow fit a JSON number exactly (below 2^53) until the year 2248.
pub fn batch_after_restore(newest: u64, now: UnixMs) -> u64 {
    let instant = u64::try_from(now.0).unwrap_or(0);
    match instant > newest.saturating_add(1) {
        true => instant,
        false => newest.saturating_add(RESTORE_BATCH_GAP),
    }
}

/// The leaf that a tenant uses next, after `last` (`None`: it has used none), where its newest batch is
/// `newest_batch`. A batch is committed to when the one before it is begun, so a newer one than that was
/// begun by a restore, and the leaves before it are left out.
pub fn leaf_after(last: Option<u64>, newest_batch: u64) -> u64 {
    let next = last.map_or(0, |leaf| leaf.saturating_add(1));
    match newest_batch > batch_of(next) + 1 {
        true => newest_batch.saturating_mul(u64::from(LEAVES_PER_BATCH)),
        false => next,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn leaves_are_consecutive_until_a_restore_begins_a_batch() {
        let per_batch = u64::from(LEAVES_PER_BATCH);
        assert_eq!(leaf_after(None, 0), 0);
        // One batch is committed to ahead of the one in use.
        assert_eq!(leaf_after(Some(0), 1), 1);
        assert_eq!(leaf_after(Some(per_batch - 1), 1), per_batch);
        assert_eq!(leaf_after(Some(per_batch), 2), per_batch + 1);
        // Two ahead: nothing of the batch between them is used any more.
        assert_eq!(leaf_after(Some(0), 2), 2 * per_batch);
    }

    #[test]
    fn a_second_restore_of_the_same_backup_begins_behind_the_first_one() {
        let (noon, later) = (UnixMs(1_795_435_200_000), UnixMs(1_795_435_260_000));
        let first = batch_after_restore(3, noon);
        let second = batch_after_restore(3, later);
        assert!(second > first + 1, "{first} {second}");
        // A clock that was set back does not bring a batch back that the books know.
        assert_eq!(
            batch_after_restore(second, noon),
            second + RESTORE_BATCH_GAP
        );
        let in_2200 = UnixMs(7_258_118_400_000);
        assert!(leaf_after(None, batch_after_restore(0, in_2200)) < 1 << 53);
    }

    proptest! {
        #[test]
        fn a_restore_leaves_out_every_leaf_of_the_batches_that_were_committed_to(
            last in proptest::option::of(0_u64..1 << 40), ms in 0_i64..1 << 43,
        ) {
            let newest = last.map_or(0, |leaf| batch_of(leaf) + 1);
            let began = batch_after_restore(newest, UnixMs(ms));
            let next = leaf_after(last, began);
            prop_assert_eq!((batch_of(next), index_in_batch(next)), (began, 0));
            prop_assert!(began > newest + 1);
            // And from there on as ever.
            prop_assert_eq!(leaf_after(Some(next), began + 1), next + 1);
        }
    }
}
