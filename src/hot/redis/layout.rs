//! The bytes under the keys, as `library.lua` packs them: meta, grants, shares, outbox entries.
//!
//! # Shape
//! ```text
//! meta  = layout state frozen opening_seen named locked listed compact width      (u8 each)
//!         next base length count declined (u32) · opens_at expires_at epoch (u48)
//!         base_minor (i64) · tenant
//! meta of a stripe (layout 2): … base_minor · first held (u32) · whole u8 · under u48 · tenant
//! value = share u32 · at u48 · amount[width] · 'd' if declined;  untaken: share · amount
//! share = amount[width];  compact: share u32 · amount[width]
//! entry = layout u8 · at u48 · nonce[8] · records u32 · group*
//! group = id[16] · width u8 · declined u8 · count u16 · (share u32 · amount[width] · len u8 · name)*
//! ```
//! Integers are little endian.
//!
//! # Bounds
//! A length is believed only as far as the bytes reach.

use crate::domain::envelope::{CloseReason, HotState, Kind, Terms};
use crate::domain::grab::{Grant, HeldShare, OutboxEntry, OutboxRecord};
use crate::domain::id::{EnvelopeId, Epoch, PersonId, TenantId, UnixMs};

use super::keys::LAYOUT;
use crate::domain::stripes::{Stripe, dealt};
use crate::hot::Mark;

/// Envelopes with more shares keep their grabbers in a list as well, so that a page of them needs
/// no look at all of them. Up to here a page reads the whole hash: 30 KB.
pub const LISTED_SHARES_MIN: u32 = 1_000;

const META_BYTES: usize = 55;
/// The layout of a meta that belongs to one stripe of several.
const DEALT: u16 = 2;
/// The state of a stripe that grants nothing and is not over.
pub const DRY: u8 = 5;

/// What the meta of one stripe of several says besides; by default, of a first one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The number of the first share that was dealt to it; 0: it is the first stripe.
    pub first: u32,
    /// Grabbers that were in the grabs hash when it was built.
    pub held: u32,
    /// The first stripe has what was left in all of them: its counts are those of the whole envelope.
    pub whole: bool,
    /// The sum of the epochs of all its partitions when that was gathered.
    pub under: u64,
    /// Used up or halted: it grants nothing.
    pub dry: bool,
}

/// Under the empty field of the grabs hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Funding, Live, or why it is over.
    pub state: HotState,
    /// Nothing moves, and why.
    pub frozen: Option<Mark>,
    /// A call saw that `opens_at` had passed.
    pub opening_seen: bool,
    /// EXCLUSIVE: shares belong to names.
    pub named: bool,
    /// It has a passphrase.
    pub locked: bool,
    /// Grabbers are listed by turn.
    pub listed: bool,
    /// It was rebuilt: shares that can be taken stand with their numbers.
    pub compact: bool,
    /// Bytes of an amount.
    pub width: usize,
    /// Shares taken by turn since it was built (named: taken in all).
    pub next: u32,
    /// Shares that were taken before it was rebuilt.
    pub base: u32,
    /// Shares that can be taken by turn in all.
    pub length: u32,
    /// Shares of the envelope.
    pub count: u32,
    /// Of the taken ones, declined.
    pub declined: u32,
    /// 0: at once.
    pub opens_at: UnixMs,
    /// Grabbing ends.
    pub expires_at: UnixMs,
    /// In which it was seen last.
    pub epoch: Epoch,
    /// What the shares of `base` are worth.
    pub base_minor: i64,
    /// Whose.
    pub tenant: TenantId,
    /// `None`: the envelope lies in one piece.
    pub part: Option<Part>,
}

impl Meta {
    /// Of an envelope whose shares are not there yet.
    pub fn funding(terms: &Terms, epoch: Epoch) -> Self {
        Self {
            state: HotState::Funding,
            frozen: None,
            opening_seen: terms.opens_at.is_none(),
            named: terms.kind == Kind::Exclusive,
            locked: terms.passphrase.is_some(),
            listed: terms.share_count > LISTED_SHARES_MIN,
            compact: false,
            width: width_of(terms),
            next: 0,
            base: 0,
            length: terms.share_count,
            count: terms.share_count,
            declined: 0,
            opens_at: terms.opens_at.unwrap_or_default(),
            expires_at: terms.expires_at,
            epoch,
            base_minor: 0,
            tenant: terms.tenant.clone(),
            part: None,
        }
    }

    /// Of a stripe whose shares are not there yet.
    pub fn of_stripe(terms: &Terms, epoch: Epoch, stripe: Stripe) -> Self {
        let mut meta = Self::funding(terms, epoch);
        if terms.stripes.is_one() {
            return meta;
        }
        let shares = dealt(stripe, terms.stripes, terms.share_count);
        meta.length = shares.end - shares.start;
        meta.part = Some(Part {
            first: shares.start,
            ..Part::default()
        });
        meta
    }

    /// The number of the first share by turn, of one that was never rebuilt.
    pub fn first(&self) -> u32 {
        self.part.as_ref().map_or(0, |part| part.first)
    }

    /// A stripe that grants nothing and is not over.
    pub fn is_dry(&self) -> bool {
        self.state == HotState::Live && self.part.as_ref().is_some_and(|part| part.dry)
    }

    /// As it is stored.
    pub fn pack(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(META_BYTES + 16);
        let layout = self.part.as_ref().map_or(LAYOUT, |_| DEALT);
        out.push(u8::try_from(layout).expect("the layout's number is small"));
        out.push(self.code());
        out.push(mark_code(self.frozen));
        for flag in [self.opening_seen, self.named, self.locked, self.listed] {
            out.push(u8::from(flag));
        }
        out.push(u8::from(self.compact));
        out.push(u8::try_from(self.width).expect("an amount has at most 8 bytes"));
        for count in [self.next, self.base, self.length, self.count, self.declined] {
            out.extend_from_slice(&count.to_le_bytes());
        }
        let epoch = i64::try_from(self.epoch.0).expect("an epoch counts failovers");
        for instant in [self.opens_at.0, self.expires_at.0, epoch] {
            out.extend_from_slice(&instant.to_le_bytes()[..6]);
        }
        out.extend_from_slice(&self.base_minor.to_le_bytes());
        if let Some(part) = &self.part {
            out.extend_from_slice(&part.first.to_le_bytes());
            out.extend_from_slice(&part.held.to_le_bytes());
            out.push(u8::from(part.whole));
            out.extend_from_slice(&part.under.to_le_bytes()[..6]);
        }
        out.extend_from_slice(self.tenant.as_str().as_bytes());
        out
    }

    /// The number by which the library names its state.
    pub fn code(&self) -> u8 {
        match self.is_dry() {
            true => DRY,
            false => state_code(self.state),
        }
    }

    /// From what is stored; `None` where that is no meta of this layout.
    pub fn unpack(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        let layout = u16::from(r.byte()?);
        if !matches!(layout, LAYOUT | DEALT) || bytes.len() < META_BYTES {
            return None;
        }
        let code = r.byte()?;
        let dry = code == DRY && layout == DEALT;
        let state = if dry { HotState::Live } else { state_of(code)? };
        let frozen = match r.byte()? {
            0 => None,
            1 => Some(Mark::Books),
            _ => Some(Mark::Broken),
        };
        let mut flag = || Some(r.byte()? != 0);
        let (opening_seen, named, locked, listed, compact) =
            (flag()?, flag()?, flag()?, flag()?, flag()?);
        let width = usize::from(r.byte()?);
        let (next, base, length, count, declined) =
            (r.u32()?, r.u32()?, r.u32()?, r.u32()?, r.u32()?);
        let (opens_at, expires_at) = (UnixMs(r.u48()?), UnixMs(r.u48()?));
        let epoch = Epoch(u64::try_from(r.u48()?).ok()?);
        let base_minor = r.amount(8)?;
        let part = match layout {
            DEALT => Some(Part {
                first: r.u32()?,
                held: r.u32()?,
                whole: r.byte()? != 0,
                under: u64::try_from(r.u48()?).ok()?,
                dry,
            }),
            _ => None,
        };
        let tenant = TenantId::parse(std::str::from_utf8(r.0).ok()?).ok()?;
        (1..=8).contains(&width).then_some(Self {
            state,
            frozen,
            opening_seen,
            named,
            locked,
            listed,
            compact,
            width,
            next,
            base,
            length,
            count,
            declined,
            opens_at,
            expires_at,
            epoch,
            base_minor,
            tenant,
            part,
        })
    }

    /// Shares that were taken or declined.
    pub fn taken_count(&self) -> u32 {
        self.base.saturating_add(self.next)
    }

    /// Grabbers that have a share here.
    pub fn held_count(&self) -> u32 {
        let held = self.part.as_ref().map_or(self.base, |part| part.held);
        held.saturating_add(self.next)
    }

    /// A repair was begun and has not ended: nobody is served, and only a repair goes on with it.
    pub fn half_rebuilt(&self) -> bool {
        self.compact && self.state == HotState::Funding
    }

    /// Bytes of one share in the packed string.
    pub fn record_bytes(&self) -> usize {
        self.width + if self.compact { 4 } else { 0 }
    }

    /// What somebody holds, from the value under the grabber's field; `None` where it is untaken.
    pub fn held(&self, grabber: &str, value: &[u8]) -> Option<HeldShare> {
        let (grant, declined) = grant_of(value, self.width)?;
        Some(HeldShare {
            grabber: PersonId::parse(grabber).ok()?,
            grant,
            declined,
        })
    }
}

/// Bytes of an amount: what the largest share may need.
pub fn width_of(terms: &Terms) -> usize {
    let most = match terms.kind {
        Kind::Exclusive => terms.total_minor,
        Kind::Lucky | Kind::Equal => terms.max_minor.min(terms.total_minor),
    };
    let bits = 64 - most.max(1).leading_zeros();
    usize::try_from(bits.div_ceil(8)).expect("at most 8")
}

/// An amount in so many bytes; `None` where it needs more.
pub fn put_amount(out: &mut Vec<u8>, amount_minor: i64, width: usize) -> Option<()> {
    let bytes = amount_minor.to_le_bytes();
    let fits = amount_minor >= 0 && bytes[width..].iter().all(|b| *b == 0);
    out.extend_from_slice(fits.then_some(&bytes[..width])?);
    Some(())
}

/// A grant as a grabber's field keeps it.
pub fn value_of(held: &HeldShare, width: usize) -> Option<Vec<u8>> {
    let mut out = held.grant.share.to_le_bytes().to_vec();
    out.extend_from_slice(&held.grant.at.0.to_le_bytes()[..6]);
    put_amount(&mut out, held.grant.amount_minor, width)?;
    if held.declined {
        out.push(b'd');
    }
    Some(out)
}

/// The grant of a grabber's field and whether it was declined; `None` where it is untaken.
pub fn grant_of(value: &[u8], width: usize) -> Option<(Grant, bool)> {
    let declined = match value.len().checked_sub(width)? {
        10 => false,
        11 => true,
        _ => return None,
    };
    let mut r = Reader(value);
    let (share, at) = (r.u32()?, UnixMs(r.u48()?));
    let amount_minor = r.amount(width)?;
    Some((
        Grant {
            share,
            amount_minor,
            at,
        },
        declined,
    ))
}

/// An entry of the outbox; `None` where nobody of this layout wrote it.
pub fn entry_of(id: &str, bytes: &[u8]) -> Option<OutboxEntry> {
    let (epoch, _) = id.split_once('-')?;
    let mut r = Reader(bytes);
    if u16::from(r.byte()?) != LAYOUT {
        return None;
    }
    let at = UnixMs(r.u48()?);
    let nonce = u64::from_le_bytes(r.take(8)?.try_into().ok()?);
    let promised = r.u32()?;
    let mut records = Vec::new();
    while !r.0.is_empty() {
        let envelope = EnvelopeId::from_bytes(r.take(16)?.try_into().ok()?);
        let (width, declined) = (usize::from(r.byte()?), r.byte()? != 0);
        let count = u16::from_le_bytes(r.take(2)?.try_into().ok()?);
        for _ in 0..count {
            let share = r.u32()?;
            let amount_minor = r.amount(width)?;
            let length = usize::from(r.byte()?);
            let grabber = PersonId::parse(std::str::from_utf8(r.take(length)?).ok()?).ok()?;
            let grant = Grant {
                share,
                amount_minor,
                at,
            };
            records.push(OutboxRecord {
                envelope,
                grabber,
                grant,
                declined,
            });
        }
    }
    let whole = u32::try_from(records.len()) == Ok(promised);
    whole.then_some(OutboxEntry {
        id: number_of(id)?,
        nonce,
        epoch: Epoch(epoch.parse().ok()?),
        records,
    })
}

/// Bits of a stream id's second number in the number of an entry; the epoch has the others.
const SEQUENCE_BITS: u32 = 44;

/// `epoch-sequence` as one ascending number: 17 × 10^12 entries in each of a million epochs.
pub fn number_of(id: &str) -> Option<u64> {
    let (epoch, sequence) = id.split_once('-')?;
    let (epoch, sequence): (u64, u64) = (epoch.parse().ok()?, sequence.parse().ok()?);
    let fits = epoch < 1 << (64 - SEQUENCE_BITS) && sequence < 1 << SEQUENCE_BITS;
    fits.then_some(epoch << SEQUENCE_BITS | sequence)
}

/// The stream id of an entry's number.
pub fn id_of(number: u64) -> String {
    let sequence = number & ((1 << SEQUENCE_BITS) - 1);
    format!("{}-{sequence}", number >> SEQUENCE_BITS)
}

/// The number by which the library names a mark.
pub fn mark_code(mark: Option<Mark>) -> u8 {
    match mark {
        None => 0,
        Some(Mark::Books) => 1,
        Some(Mark::Broken) => 2,
    }
}

/// The number by which the library names a state.
pub fn state_code(state: HotState) -> u8 {
    match state {
        HotState::Funding => 0,
        HotState::Live => 1,
        HotState::Over(CloseReason::Empty) => 2,
        HotState::Over(CloseReason::Expired) => 3,
        HotState::Over(CloseReason::Recalled) => 4,
    }
}

/// The state that the library names so.
pub fn state_of(code: u8) -> Option<HotState> {
    Some(match code {
        0 => HotState::Funding,
        1 => HotState::Live,
        2 => HotState::Over(CloseReason::Empty),
        3 => HotState::Over(CloseReason::Expired),
        4 => HotState::Over(CloseReason::Recalled),
        _ => return None,
    })
}

/// Takes packed numbers off the front of bytes.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// So many bytes.
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    /// One byte.
    pub fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// Six bytes.
    pub fn u48(&mut self) -> Option<i64> {
        self.amount(6)
    }

    /// A whole number of so many bytes, at most eight; `None` where it is negative.
    pub fn amount(&mut self, width: usize) -> Option<i64> {
        let mut bytes = [0; 8];
        bytes.get_mut(..width)?.copy_from_slice(self.take(width)?);
        Some(i64::from_le_bytes(bytes)).filter(|amount| *amount >= 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hot::conformance::stage::Cast;
    use proptest::prelude::*;

    #[test]
    fn a_meta_reads_back_as_it_was_packed_and_fits_a_small_hash() {
        let cast = Cast::locked(&[5, 7]);
        let mut meta = Meta::funding(&cast.terms, Epoch(7));
        meta.state = HotState::Over(CloseReason::Expired);
        (meta.next, meta.base, meta.base_minor) = (1, 2, 9_000_000_000_000_000);
        let packed = meta.pack();
        // A longer value would turn a small hash into a large one, five times its size.
        assert!(packed.len() <= 64, "{}", packed.len());
        assert_eq!(Meta::unpack(&packed), Some(meta));
        for cut in 0..META_BYTES {
            assert_eq!(Meta::unpack(&packed[..cut]), None);
        }
    }

    proptest! {
        #[test]
        fn an_amount_reads_back_in_every_width_that_holds_it(amount in 0..=i64::MAX, width in 1..=8_usize) {
            let mut out = Vec::new();
            match put_amount(&mut out, amount, width) {
                Some(()) => prop_assert_eq!(Reader(&out).amount(width), Some(amount)),
                None => prop_assert!(width < 8 && amount >> (8 * width) > 0),
            }
        }

        #[test]
        fn bytes_that_are_no_entry_are_told_without_a_panic(bytes: Vec<u8>, id in "[0-9]{0,3}-?[0-9]{0,3}") {
            if let Some(entry) = entry_of(&id, &bytes) {
                prop_assert_eq!(id_of(entry.id), id);
            }
        }

        #[test]
        fn the_number_of_an_entry_names_its_stream_id(epoch in 0..1_u64 << 20, sequence in 0..1_u64 << 44) {
            let id = format!("{epoch}-{sequence}");
            prop_assert_eq!(id_of(number_of(&id).unwrap()), id);
        }
    }
}
