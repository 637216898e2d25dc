//! What a row must say besides its sums, for the audits of both ledgers: the columns of an envelope say what
//! its terms say, and the root of a batch of leaves is that of its secret.
//!
//! # Bounds
//! A batch has 1,024 leaves: about a millisecond to hash.
//!
//! # Not here
//! Sums: each ledger asks its tables.

use crate::domain::books::{Discrepancy, DiscrepancyKind};
use crate::domain::fairness::{BatchTree, LEAVES_PER_BATCH, SealContext, SealKeys};
use crate::domain::id::TenantId;

use super::EnvelopeRow;

/// The columns of an envelope that say what its terms say, too.
pub(super) struct Columns<'a> {
    pub day: i64,
    pub tenant: &'a str,
    pub sender: &'a str,
    pub currency: &'a str,
    pub leaf_number: i64,
    pub share_count: i64,
    pub funded_minor: i64,
    pub created_at: i64,
    pub expires_at: i64,
    /// Of the batch that has its leaf, if the batch is there.
    pub batch_root: Option<&'a [u8]>,
}

impl Columns<'_> {
    /// Each column that says something else than the terms. No names of persons.
    pub fn contradict(&self, row: &EnvelopeRow) -> Option<String> {
        let (terms, leaf) = (&row.terms, &row.terms.leaf);
        let unsigned = |number: u64| i64::try_from(number).unwrap_or(i64::MIN);
        let per_batch = i64::from(LEAVES_PER_BATCH);
        let numbers = [
            ("day", self.day, i64::from(row.id.day())),
            ("leaf", self.leaf_number, unsigned(leaf.leaf_number)),
            (
                "batch",
                self.leaf_number / per_batch,
                unsigned(leaf.batch_number),
            ),
            ("shares", self.share_count, i64::from(terms.share_count)),
            ("funded", self.funded_minor, terms.total_minor),
            ("created", self.created_at, terms.created_at.0),
            ("expires", self.expires_at, terms.expires_at.0),
        ];
        let others = [
            ("tenant", self.tenant == terms.tenant.as_str()),
            ("sender", self.sender == terms.sender.as_str()),
            ("currency", self.currency == terms.currency.code()),
            (
                "root of leaves",
                self.batch_root == Some(&leaf.batch_root[..]),
            ),
        ];
        let differing = numbers.into_iter().filter(|(_, here, said)| here != said);
        let differing = differing.map(|(what, here, said)| format!("{what} {here}, not {said}"));
        let strange = others.into_iter().filter(|(_, same)| !same);
        let strange = strange.map(|(what, _)| format!("another {what}"));
        let all: Vec<String> = differing.chain(strange).collect();
        let detail = || {
            format!(
                "envelope row {} contradicts its terms: {}",
                row.row,
                all.join(", ")
            )
        };
        (!all.is_empty()).then(detail)
    }
}

/// A batch of leaves as it is kept.
pub(super) struct Batch<'a> {
    pub tenant: &'a str,
    pub batch_number: i64,
    pub root: &'a [u8],
    pub sealed: &'a [u8],
}

impl Batch<'_> {
    /// That its root is not the one of its secret, or that the secret can't be had.
    pub fn wrong(&self, keys: &SealKeys) -> Option<Discrepancy> {
        let why = match self.root_of_secret(keys) {
            Ok(root) if root == self.root => return None,
            Ok(_) => "its root is not that of its secret".to_owned(),
            Err(why) => why,
        };
        Some(Discrepancy {
            kind: DiscrepancyKind::AmountWrong,
            tenant: TenantId::parse(self.tenant).ok(),
            envelope: None,
            detail: format!("batch {} of leaves: {why}", self.batch_number),
        })
    }

    fn root_of_secret(&self, keys: &SealKeys) -> Result<[u8; 32], String> {
        let number = u64::try_from(self.batch_number).ok();
        let within = |number: &u64| number.checked_mul(u64::from(LEAVES_PER_BATCH)).is_some();
        let batch_number = number.filter(within).ok_or("there is no such batch")?;
        let context = SealContext {
            tenant: self.tenant,
            batch_number,
        };
        let secret = keys.open(context, self.sealed);
        let secret = secret.map_err(|error| error.to_string())?;
        Ok(BatchTree::grow(&secret, self.tenant, batch_number).root())
    }
}
