//! What brings an envelope back, or a stripe of one, and what a halted stripe has left.

use std::sync::Arc;

use crate::domain::envelope::{CloseReason, Terms};
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, PersonId};
use crate::domain::stripes::Stripe;

/// What the books know of an envelope, for a store that may have lost some of it.
#[derive(Clone, Debug)]
pub struct Repair {
    /// Which envelope.
    pub envelope: EnvelopeId,
    /// The terms it lives under.
    pub terms: Arc<Terms>,
    /// What every share is worth, by number.
    pub amounts_minor: Arc<[i64]>,
    /// Every share that the books have paid or given back, read after the epoch began.
    pub claims: Vec<HeldShare>,
    /// Why the books are ending it, if they are: then nobody wins from it any more.
    pub over: Option<CloseReason>,
    /// Which of its stripes; of an envelope that lies in one piece, the first.
    pub stripe: Stripe,
    /// The books say that its shares are gathered: no stripe but the first one gives any. For that one,
    /// what the others have left ([`HotStore::halt`](super::HotStore::halt)).
    pub gathered: Option<Gathered>,
}

/// A stripe that gives nothing any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Halted {
    /// The numbers of the shares that nobody has of it.
    pub left: Vec<u32>,
    /// It had ended before: so the envelope has.
    pub over: Option<CloseReason>,
    /// It ended as a tombstone, and does not know its shares.
    pub tombstone: bool,
}

/// What goes to the first stripe of a dealt envelope once the books say that its shares are gathered.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Shares that the other stripes have left, by number.
    pub left: Vec<u32>,
    /// For another stripe: those of its grabbers who have a claim of a share that was not dealt to it.
    pub elsewhere: Vec<PersonId>,
    /// One of them is a tombstone: what it had left is not known.
    pub lacks: bool,
    /// One of them had ended before, and told people so: then the first one has.
    pub over: Option<CloseReason>,
    /// The first one was found standing in its epoch, so the books were not asked for claims: where it does not
    /// stand any more, nothing is done.
    pub stands: bool,
}
