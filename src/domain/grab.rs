//! Asking for a share, and the answer. Losing is not an error; it is the usual answer.

use serde::{Deserialize, Serialize};

use super::audience::PhraseDigest;
use super::id::{EnvelopeId, Epoch, Partition, PersonId, TenantId, UnixMs};

/// Grabs that one call of the hot store takes. Redis: 1,000 elements keep a call under 5 ms.
pub const GRABS_PER_CALL_MAX: usize = 1_000;

/// One grab, after admission: the audience was checked, the shape was checked.
#[derive(Clone, Debug)]
pub struct Grab {
    /// Where the grabber's home stripe lies; once that is dry, where the first one does.
    pub partition: Partition,
    /// The epoch under which the caller believes that partition to stand.
    pub epoch: Epoch,
    /// Whose envelope; another tenant's is missing.
    pub tenant: TenantId,
    /// Which envelope.
    pub envelope: EnvelopeId,
    /// Who grabs.
    pub grabber: PersonId,
    /// What the grabber brought to the lock; `None`: nothing.
    pub phrase: Option<PhraseDigest>,
}

/// A share that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The share's number.
    pub share: u32,
    /// Minor units.
    pub amount_minor: i64,
    /// When, by the store's clock.
    pub at: UnixMs,
}

/// A share and who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldShare {
    /// Who.
    pub grabber: PersonId,
    /// What and when.
    pub grant: Grant,
    /// Declined: it goes back to the sender.
    pub declined: bool,
}

/// Which rule refused a grab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The passphrase is wrong.
    WrongPassphrase,
    /// The tries are used up.
    TooManyTries,
    /// The sender may not grab this envelope.
    OwnEnvelope,
    /// The grabber declined the share before.
    Declined,
}

/// The answer to a grab: what the grabber is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Taken by this call.
    Won(Grant),
    /// Taken by an earlier call: the same share each time.
    AlreadyGrabbed(Grant),
    /// Every share is taken.
    Empty,
    /// The time is over.
    Expired,
    /// The sender ended it.
    Recalled,
    /// Not before this instant.
    NotOpenYet(UnixMs),
    /// The rules say no.
    Refused(Refusal),
}

/// The hot store's answer to a grab: an outcome, or why there is none here and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrabReply {
    /// What the grabber is told.
    Outcome(Outcome),
    /// The store does not hold the envelope: ask the ledger.
    Missing,
    /// The shares are still being loaded: try again.
    Funding,
    /// An operator's act or a broken invariant stopped it: try again later.
    Frozen,
    /// The grabber has no share in this stripe, which gives none any more: its first one may have what is left.
    Dry,
    /// It is decided, and the books don't have it yet: told to nobody, try again.
    Unsettled,
    /// The store stands in another epoch than the caller believes.
    Epoch(Epoch),
}

/// What the hot store owes to the ledger for one share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRecord {
    /// Which envelope.
    pub envelope: EnvelopeId,
    /// Who.
    pub grabber: PersonId,
    /// What and when.
    pub grant: Grant,
    /// Declined: owed to the sender.
    pub declined: bool,
}

impl OutboxRecord {
    /// Whether it is what is owed for this grant. The instant tells nothing.
    pub fn is_of(&self, held: &HeldShare) -> bool {
        held.grant.share == self.grant.share
            && held.grant.amount_minor == self.grant.amount_minor
            && held.grabber == self.grabber
            && held.declined == self.declined
    }
}

/// Records that were written in one atomic call: acknowledged grabs and their debt to the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxEntry {
    /// Ascending within a partition, but it may come back after a failover.
    pub id: u64,
    /// Random: tells an entry from another one under the same id.
    pub nonce: u64,
    /// The epoch in which it was written.
    pub epoch: Epoch,
    /// In the order of the grants.
    pub records: Vec<OutboxRecord>,
}
