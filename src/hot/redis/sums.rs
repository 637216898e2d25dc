//! What the taken shares of an envelope add up to, read once: the library does no arithmetic on
//! amounts.
//!
//! # Bounds
//! A look reads what was taken since the last one, at most [`SHARES_PER_LOOK_BYTES`] a call.
//!
//! # Ordering
//! Within an epoch a taken share never changes, so what was added stays right. A new epoch clears
//! everything (`Core::now_registered`), and a rebuilt envelope is a new one.

use super::layout::{Meta, Reader};
use crate::domain::grab::HeldShare;
use crate::domain::id::Epoch;

/// Bytes of packed shares that one look reads: 0.1 ms of Redis.
pub const SHARES_PER_LOOK_BYTES: usize = 65_536;

/// Of the shares taken so far.
#[derive(Clone, Debug)]
pub struct Sums {
    epoch: Epoch,
    compact: bool,
    base: u32,
    /// Shares that are added up.
    pub known: u32,
    /// Minor units, those before a rebuild aside.
    pub minor: i64,
    /// The largest and its number, by turn.
    pub best: Option<(i64, u32)>,
    /// Who has the best, once it can't change any more; the inner `None`: nobody.
    pub best_held: Option<Option<HeldShare>>,
}

impl Sums {
    /// Nothing is added up yet.
    pub fn new(meta: &Meta) -> Self {
        Self {
            epoch: meta.epoch,
            compact: meta.compact,
            base: meta.base,
            known: 0,
            minor: 0,
            best: None,
            best_held: None,
        }
    }

    /// Whether they were taken of what `meta` describes.
    pub fn fits(&self, meta: &Meta) -> bool {
        (self.epoch, self.compact, self.base) == (meta.epoch, meta.compact, meta.base)
            && self.known <= meta.next
    }

    /// Adds shares that follow the known ones; `None` where the bytes are none.
    pub fn add(&mut self, meta: &Meta, bytes: &[u8]) -> Option<()> {
        for record in bytes.chunks(meta.record_bytes()) {
            let mut reader = Reader(record);
            let share = match meta.compact {
                true => reader.u32()?,
                false => meta.first() + self.known,
            };
            let amount = reader.amount(meta.width)?;
            self.known += 1;
            self.best_held = None;
            self.minor = self.minor.checked_add(amount)?;
            let better = self
                .best
                .is_none_or(|(best, number)| amount > best || (amount == best && share < number));
            if better {
                self.best = Some((amount, share));
            }
        }
        Some(())
    }
}
