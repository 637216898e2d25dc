//! How an envelope is dealt to stripes, and which of them is a grabber's.
//!
//! # Shape
//! | question | answer |
//! |---|---|
//! | into how many | [`StripeCount::of`], when it is funded; its terms keep the answer |
//! | which shares | [`dealt`]: a range of numbers. Shares are shuffled, so it is as fair as any other deal |
//! | to which was a share dealt | [`dealt_to`] |
//! | which is a grabber's | [`home`], for ever; [`home_partition`] says where that is |
//! | where did somebody get a share | [`granted_in`] |
//! | where does it lie | [`place`]: each in a partition of its own, the first in the envelope's |
//!
//! # Ordering
//! Stores keep grabs where these answers say, so they outlive releases and settings; tests pin them.
//!
//! # Not here
//! Shares that leave the stripe that they were dealt to: once one is used up, what is left in all goes to the
//! first (`publish::gather`, ADR 0010).

use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::envelope::Kind;
use super::id::{EnvelopeId, Partition, PartitionCount, PersonId};

/// Stripes of an envelope: the largest has 156,250 shares in each, and a look at it reads so many metas.
pub const STRIPES_MAX: u16 = 64;

/// Into how many stripes an envelope is dealt: 1…[`STRIPES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct StripeCount(u16);

impl StripeCount {
    /// The envelope lies in one partition.
    pub const ONE: Self = Self(1);

    /// 1…[`STRIPES_MAX`]; `None` for another number.
    pub fn new(count: u16) -> Option<Self> {
        (1..=STRIPES_MAX).contains(&count).then_some(Self(count))
    }

    /// For a new envelope, where those of more than `above_shares` shares are dealt (0: none is). An EXCLUSIVE
    /// one never is: its shares are few, and held for somebody each. Nor is one with a passphrase, whose wrong
    /// tries are counted in one place.
    pub fn of(
        (kind, locked): (Kind, bool),
        share_count: u32,
        above_shares: u32,
        partitions: PartitionCount,
    ) -> Self {
        let whole = kind == Kind::Exclusive || locked;
        if whole || above_shares == 0 || share_count <= above_shares {
            return Self::ONE;
        }
        let most = partitions.get().min(STRIPES_MAX);
        let wanted = u16::try_from(share_count.div_ceil(above_shares));
        Self(wanted.unwrap_or(most).min(most))
    }

    /// How many.
    pub fn get(self) -> u16 {
        self.0
    }

    /// Whether it is [`StripeCount::ONE`].
    pub fn is_one(&self) -> bool {
        *self == Self::ONE
    }

    /// Each of them.
    pub fn all(self) -> impl Iterator<Item = Stripe> {
        (0..self.0).map(Stripe)
    }
}

impl Default for StripeCount {
    fn default() -> Self {
        Self::ONE
    }
}

impl<'de> Deserialize<'de> for StripeCount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let count = u16::deserialize(deserializer)?;
        Self::new(count).ok_or_else(|| {
            let what = format!("{count} stripes: there are 1 to {STRIPES_MAX}");
            serde::de::Error::custom(what)
        })
    }
}

/// One of an envelope's stripes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stripe(u16);

impl Stripe {
    /// The one that lies in the envelope's own partition. There is always one.
    pub const FIRST: Self = Self(0);

    /// 0…count − 1.
    pub fn index(self) -> u16 {
        self.0
    }
}

/// The shares that are dealt to stripe k of S: those from ⌊k·N/S⌋ up to ⌊(k + 1)·N/S⌋.
pub fn dealt(stripe: Stripe, of: StripeCount, share_count: u32) -> Range<u32> {
    let before = |stripes: u16| {
        let shares = u64::from(stripes.min(of.0)) * u64::from(share_count) / u64::from(of.0);
        u32::try_from(shares).expect("no more than all shares")
    };
    before(stripe.0)..before(stripe.0.saturating_add(1))
}

/// The stripe to which a share is dealt: the last one that begins no later. `None`: there is no such share.
pub fn dealt_to(share: u32, of: StripeCount, share_count: u32) -> Option<Stripe> {
    if share >= share_count {
        return None;
    }
    // k·N/S, rounded down, is at most i exactly where k·N < (i + 1)·S.
    let behind = (u64::from(share) + 1) * u64::from(of.0);
    let stripe = (behind - 1) / u64::from(share_count);
    u16::try_from(stripe).ok().map(Stripe)
}

/// The stripe of a grabber: the first eight bytes, big endian, of SHA-256 over the envelope's 16 bytes and
/// the grabber's, modulo S.
pub fn home(id: EnvelopeId, grabber: &PersonId, of: StripeCount) -> Stripe {
    if of.is_one() {
        return Stripe::FIRST;
    }
    let hash = Sha256::new()
        .chain_update(id.to_bytes())
        .chain_update(grabber.as_str().as_bytes())
        .finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    let stripe = u64::from_be_bytes(first) % u64::from(of.0);
    Stripe(u16::try_from(stripe).expect("the remainder is below a u16"))
}

/// Where a stripe lies: ⌊P/S⌋ partitions behind the one before it, the first in the envelope's own.
/// Neighbouring partitions share a server, so stripes are as far from each other as they can be.
///
/// # Panics
/// Where there are fewer partitions than stripes: two of an envelope would lie in one. The number of
/// partitions is fixed at first start, and no envelope is dealt to more stripes than that.
pub fn place(
    id: EnvelopeId,
    stripe: Stripe,
    of: StripeCount,
    partitions: PartitionCount,
) -> Partition {
    assert!(
        of.0 <= partitions.get(),
        "an envelope of {} stripes among {} partitions",
        of.0,
        partitions.get()
    );
    let apart = u32::from(stripe.0) * u32::from(partitions.get() / of.0);
    let first = u32::from(id.partition(partitions).index());
    let index = (first + apart) % u32::from(partitions.get());
    let partition = u16::try_from(index).ok().and_then(Partition::new);
    partition.expect("the remainder is below the number of partitions")
}

/// The partition to which everything belongs that a grabber has of an envelope: where his [`home`] lies.
pub fn home_partition(
    id: EnvelopeId,
    grabber: &PersonId,
    of: StripeCount,
    partitions: PartitionCount,
) -> Partition {
    place(id, home(id, grabber, of), of, partitions)
}

/// The partition in which somebody got a share: where his [`home`] lies if the share was dealt to it, else the
/// envelope's own. A share of his home that was left there, and that the first stripe gave him, counts as his
/// home's.
pub fn granted_in(
    id: EnvelopeId,
    (grabber, share): (&PersonId, u32),
    (of, share_count): (StripeCount, u32),
    partitions: PartitionCount,
) -> Partition {
    let home = home(id, grabber, of);
    match dealt_to(share, of, share_count) == Some(home) {
        true => place(id, home, of, partitions),
        false => id.partition(partitions),
    }
}

#[cfg(test)]
mod tests;
