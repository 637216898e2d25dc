//! What to do with each record of the outbox. PURE: records and what the seeds say go in, items
//! for the ledger come out.
//!
//! *Shape*
//!
//! | item | what |
//! |---|---|
//! | [`shares_needed`] | which shares of which envelopes a batch asks about |
//! | [`Known`] | what the books know of an envelope, as far as the batch needs it |
//! | [`plan`] | pay it, or set it aside with a stable reason |
//!
//! *Not here.* Claims that stand already, frozen envelopes, balances: the ledger's constraints
//! decide them in the transaction that posts the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::envelope::Terms;
pub use crate::domain::envelope::{NOT_DECLINABLE, NOT_IN_AUDIENCE, WRONG_GRABBER};
use crate::domain::grab::OutboxRecord;
use crate::domain::id::EnvelopeId;
use crate::ledger::SettleItem;

/// The envelope's seed says another amount.
pub const AMOUNT_MISMATCH: &str = "amount_mismatch";
/// The ledger has no such envelope.
pub const UNKNOWN_ENVELOPE: &str = "unknown_envelope";
/// The envelope has fewer shares.
pub const SHARE_OUT_OF_RANGE: &str = "share_out_of_range";
/// The envelope's row can't be read or makes no shares: it is damaged.
pub const BROKEN_TERMS: &str = "broken_terms";
/// The ledger refused the record `SETTLE_TRIES_MAX` times.
pub const REFUSED_BY_THE_BOOKS: &str = crate::ledger::REFUSED_BY_THE_BOOKS;

/// What the books know of an envelope, as far as a batch needs it.
#[derive(Clone, Debug)]
pub enum Known {
    /// Its terms, and the amounts of the shares that the batch names and that exist.
    Shares(Arc<Terms>, BTreeMap<u32, i64>),
    /// There is a row, but it can't be read or makes no shares.
    Broken,
}

/// The shares that a batch names, by envelope.
pub fn shares_needed<'a>(
    records: impl IntoIterator<Item = &'a OutboxRecord>,
) -> BTreeMap<EnvelopeId, BTreeSet<u32>> {
    let mut needed: BTreeMap<EnvelopeId, BTreeSet<u32>> = BTreeMap::new();
    for record in records {
        let shares = needed.entry(record.envelope).or_default();
        shares.insert(record.grant.share);
    }
    needed
}

/// One item a record, in their order.
pub fn plan<'a>(
    records: impl IntoIterator<Item = &'a OutboxRecord>,
    known: &BTreeMap<EnvelopeId, Known>,
) -> Vec<SettleItem> {
    let item = |record: &OutboxRecord| match objection(record, known.get(&record.envelope)) {
        None => SettleItem::Pay(record.clone()),
        Some(reason) => SettleItem::SetAside(record.clone(), reason),
    };
    records.into_iter().map(item).collect()
}

fn objection(record: &OutboxRecord, known: Option<&Known>) -> Option<&'static str> {
    let (terms, amounts) = match known {
        None => return Some(UNKNOWN_ENVELOPE),
        Some(Known::Broken) => return Some(BROKEN_TERMS),
        Some(Known::Shares(terms, amounts)) => (terms, amounts),
    };
    let Some(amount_minor) = amounts.get(&record.grant.share) else {
        return Some(SHARE_OUT_OF_RANGE);
    };
    if *amount_minor != record.grant.amount_minor {
        return Some(AMOUNT_MISMATCH);
    }
    terms.refuses(&record.grabber, record.grant.share, record.declined)
}

#[cfg(test)]
mod tests;
