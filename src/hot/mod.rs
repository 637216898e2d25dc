//! Who may take which share, now. [`HotStore`] is the only door.
//!
//! # Shape
//! | call | when | effect |
//! |---|---|---|
//! | `load`, `open` | publish | shares become grabbable; idempotent at offsets |
//! | `grab` | the burst | K grabs in one atomic call; a win and its debt to the ledger are born together |
//! | `decline` | EXCLUSIVE | a share goes to the outbox as the sender's |
//! | `view`, `held`, `grants`, `walk_grants`, `pending` | reads | nothing that is not yet durable is shown |
//! | `outbox`, `settled` | settle | what is owed to the ledger, until the ledger has it |
//! | `close`, `freeze`, `unfreeze`, `marked`, `remove` | the end | no grab after it |
//! | `standing`, `register` | a store process is new | it grants nothing before the ledger accepted it |
//! | `owes`, `repair` | the store may have lost something | what the books have paid is taken for ever |
//!
//! # Ordering
//! Every function takes the epoch under which the caller believes the partition to stand, and
//! does nothing but say so where it is another one. A grab names that partition; what brings an envelope
//! in, marks it or ends it takes the epochs of all ([`Epochs`]), and is held to that of the partition in
//! which the envelope lies. Every function is idempotent: repeating a call whose answer was lost has no
//! second effect.
//!
//! # Not here
//! Audiences (the caller checks them against the terms), money accounts (the ledger), protobuf.

#[cfg(any(test, feature = "test-hooks"))]
pub mod conformance;
pub mod embedded;
pub mod gate;
pub mod pace;
pub mod redis;
mod repair;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use repair::{Gathered, Halted, Repair};

use crate::domain::ack::AckLevel;
use crate::domain::envelope::{CloseReason, HotState, Terms};
use crate::domain::grab::{GRABS_PER_CALL_MAX, Grab, GrabReply, Grant, HeldShare, OutboxEntry};
use crate::domain::id::{EnvelopeId, Epoch, Partition, PartitionCount, PersonId, TenantId, UnixMs};
use crate::domain::stripes::Stripe;

/// Envelopes that one `view` looks at: a page of a chat.
pub const VIEWS_PER_CALL_MAX: usize = 100;
/// Shares that one page of `grants` holds.
pub const GRANTS_PER_PAGE_MAX: usize = 1_000;
/// Records that one call of `outbox` returns at about: it stops after the entry that reaches it.
pub const OUTBOX_RECORDS_PER_CALL_MAX: usize = 5_000;
/// Outbox entries that one call of `settled` deletes.
pub const SETTLED_PER_CALL_MAX: usize = 5_000;

/// How long a grab may wait for its turn: who would wait longer is turned away when he comes, and told when to
/// come again. A person who taps waits a second without a thought, and half of it is the way.
pub const GRAB_WAIT_MAX: Duration = Duration::from_millis(500);

/// Why a call had no effect and no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HotError {
    /// The caller's epoch is not the partition's: look it up again.
    #[error("the partition stands in epoch {0:?}")]
    Epoch(Epoch),
    /// A bounded queue is full, or its end too far: nothing was done, try again later.
    #[error("the hot store is too busy")]
    Shed,
    /// The outcome is unknown, or the store is out of reach: repeat the call.
    #[error("the hot store is unavailable: {0}")]
    Unavailable(String),
    /// Loaded shares are not what they should be: nothing is published.
    #[error("the envelope's shares don't match: {0}")]
    Mismatch(String),
    /// The store has stopped for good, since memory and disk may differ. The process must end.
    #[error("the hot store has stopped: {0}")]
    Stopped(String),
}

/// In which epoch each partition stands, as far as a process knew when it looked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epochs(Vec<Epoch>);

impl Epochs {
    /// The same one in each of so many partitions.
    pub fn all(partitions: PartitionCount, epoch: Epoch) -> Self {
        Self(vec![epoch; usize::from(partitions.get())])
    }

    /// That of a partition. One that is not there stands in none, so nothing is done in it.
    pub fn of(&self, partition: Partition) -> Epoch {
        let known = self.0.get(usize::from(partition.index()));
        known.copied().unwrap_or(Epoch(0))
    }
}

/// Consecutive shares of one envelope. Loading the same chunk twice changes nothing.
#[derive(Clone, Debug)]
pub struct LoadChunk {
    /// Which envelope.
    pub envelope: EnvelopeId,
    /// The terms it lives under.
    pub terms: Arc<Terms>,
    /// The number of the first share of the chunk.
    pub offset: u32,
    /// Minor units, at most `LOAD_CHUNK_SHARES_MAX` of them.
    pub amounts_minor: Vec<i64>,
}

/// Why an envelope stands still: the heavier mark hides the lighter one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// The books have the mark, and the store follows them.
    Books,
    /// A change would have broken an invariant. The store set the mark by itself, and the books
    /// have to be told.
    Broken,
}

/// How far an envelope is, in the hot store.
#[derive(Clone, Debug)]
pub struct HotView {
    /// Which envelope.
    pub envelope: EnvelopeId,
    /// The terms it lives under.
    pub terms: Arc<Terms>,
    /// Where it stands.
    pub state: HotState,
    /// Stopped, and why.
    pub frozen: Option<Mark>,
    /// Shares that were taken or declined.
    pub taken_count: u32,
    /// What they are worth.
    pub taken_minor: i64,
    /// Shares that were declined (part of `taken_count`).
    pub declined_count: u32,
    /// The largest share that was taken and not declined, ties to the lowest number. `None`
    /// before the end.
    pub best: Option<HeldShare>,
    /// It was last seen in an older epoch, or a repair of it has not ended: it grants nothing before
    /// [`HotStore::repair`].
    pub stale: bool,
    /// It is dealt to stripes, and the first of them has what was left in all.
    pub gathered: bool,
}

/// Who stands behind the door, before it is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which process: another one after each start, whatever data it starts with.
    pub server: String,
    /// By partition: the epoch that its data carry; `None` where there are none.
    pub epochs: Vec<Option<Epoch>>,
}

/// The answer to a close. Closing what is closed answers the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReply {
    /// No grab is granted any more.
    Over {
        /// The first reason stands, whatever was asked now.
        reason: CloseReason,
        /// Shares that were taken or declined in all.
        taken_count: u32,
        /// What they are worth.
        taken_minor: i64,
    },
    /// By the store's clock, which shows this, the envelope has not expired.
    NotDue(UnixMs),
    /// Frozen: nothing moves.
    Frozen,
}

/// The answer to a decline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeclineReply {
    /// The share goes back to the sender.
    Declined {
        /// Which, and when it was declined.
        grant: Grant,
        /// It had been declined before.
        replayed: bool,
    },
    /// The grabber took it before.
    AlreadyGrabbed(Grant),
    /// The envelope is over.
    Over(CloseReason),
    /// No share is held for this person, or the store does not hold the envelope.
    Missing,
    /// Shares are still being loaded.
    Funding,
    /// Frozen: nothing moves.
    Frozen,
}

/// A share that is acknowledged and not yet in the books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingShare {
    /// Which envelope.
    pub envelope: EnvelopeId,
    /// Its terms, for the currency.
    pub terms: Arc<Terms>,
    /// Which share.
    pub grant: Grant,
}

/// A walk over all grants of an envelope: what a store that can't page them by number has read as a
/// whole, for as long as the walk lasts.
#[derive(Debug, Default)]
pub struct GrantWalk {
    /// Where what lies, and the bytes by which the store knows how far it was.
    of: Option<(Partition, EnvelopeId, Vec<u8>)>,
    /// By share.
    held: Vec<HeldShare>,
    /// Of an envelope that is dealt: the same of its first stripe, which gives shares of all.
    first: Option<Box<Self>>,
}

/// What operators watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HotVitals {
    /// Envelopes that the store holds.
    pub envelopes: u64,
    /// Outbox records that wait for the ledger.
    pub unsettled_records: u64,
    /// When the oldest of them was granted.
    pub oldest_unsettled_at: Option<UnixMs>,
    /// Grabs that wait for an answer.
    pub queued_grabs: u64,
    /// By the store's own clock, which dates its grabs; `None`: it has the process's.
    pub now: Option<UnixMs>,
}

/// The only door to the hot store. Every reply states only what is durable at the level in force.
#[async_trait]
pub trait HotStore: Send + Sync + 'static {
    /// What it is made of: `embedded` or `redis`.
    fn kind(&self) -> &'static str;

    /// What an acknowledged grab survives; `None` before that was found out.
    fn ack_level(&self) -> Option<AckLevel>;

    /// How many partitions there are.
    fn partitions(&self) -> PartitionCount;

    /// In which epoch a partition stands, as far as this process knows.
    fn epoch(&self, partition: Partition) -> Epoch;

    /// The same of all partitions.
    fn epochs(&self) -> Epochs {
        let all = self.partitions().all();
        Epochs(all.map(|partition| self.epoch(partition)).collect())
    }

    /// Whether it serves; if not, a sentence that says what to change.
    fn ready(&self) -> Result<(), String>;

    /// Grabs that its next calls take: with fewer in flight it would do less than it can.
    fn takes_at_once(&self) -> usize {
        GRABS_PER_CALL_MAX
    }

    /// What is known of a grab without asking the store, as [`HotStore::grab`] would answer it.
    fn remembered(&self, _grab: &Grab) -> Option<GrabReply> {
        None
    }

    /// Backlog and size.
    async fn vitals(&self) -> Result<HotVitals, HotError>;

    /// Puts shares down at their offsets. An envelope that is Live or over stays as it is.
    /// Chunks are sent in ascending order; several may be on their way at once, and one that
    /// overtook the chunk before it is `Unavailable` until the load is repeated.
    async fn load(&self, under: &Epochs, chunk: LoadChunk) -> Result<(), HotError>;

    /// Makes a loaded envelope Live, if every share is there and `checksum`
    /// (`envelope::shares_checksum` over all amounts) is theirs. Answers the state that now
    /// stands: an envelope that is over stays over.
    async fn open(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        checksum: u32,
    ) -> Result<HotState, HotError>;

    /// Answers at most `GRABS_PER_CALL_MAX` grabs, in their order, atomically: one reply each.
    /// An error means that the outcome of all of them is unknown: repeating resolves it.
    async fn grab(&self, grabs: Vec<Grab>) -> Result<Vec<GrabReply>, HotError>;

    /// Declines the share that an EXCLUSIVE envelope holds for somebody.
    async fn decline(
        &self,
        epoch: Epoch,
        tenant: TenantId,
        envelope: EnvelopeId,
        grabber: PersonId,
    ) -> Result<DeclineReply, HotError>;

    /// At most [`VIEWS_PER_CALL_MAX`] envelopes, in their order; `None` where one is missing.
    async fn view(&self, envelopes: Vec<EnvelopeId>) -> Result<Vec<Option<HotView>>, HotError>;

    /// What each of at most [`VIEWS_PER_CALL_MAX`] persons holds of an envelope, in their order.
    async fn held(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, HotError>;

    /// Taken and declined shares with numbers ≥ `from`, by number; `None` where the envelope is
    /// missing. At most `limit` and [`GRANTS_PER_PAGE_MAX`].
    async fn grants(
        &self,
        envelope: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError>;

    /// A page of [`HotStore::grants`] for who asks for one behind another, in the same `walk` each time. It
    /// has what was granted before it was asked for.
    async fn walk_grants(
        &self,
        _walk: &mut GrantWalk,
        envelope: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        self.grants(envelope, from, limit).await
    }

    /// What somebody has won that is still in the outbox, declined shares aside.
    async fn pending(
        &self,
        tenant: TenantId,
        grabber: PersonId,
    ) -> Result<Vec<PendingShare>, HotError>;

    /// In which partition a share was granted that this store has told of.
    fn granted_in(&self, envelope: EnvelopeId, _held: &HeldShare) -> Partition {
        envelope.partition(self.partitions())
    }

    /// Whether it takes envelopes that are dealt to stripes.
    fn deals(&self) -> bool {
        false
    }

    /// Ends an envelope. A missing one leaves a tombstone under these terms, so that a late
    /// loader can't publish it again; so does one that is not whole, once nothing of it is owed.
    async fn close(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        terms: Arc<Terms>,
        reason: CloseReason,
    ) -> Result<CloseReply, HotError>;

    /// Sets [`Mark::Books`]; a heavier mark stays. A missing envelope is not an error: the ledger
    /// has the mark.
    async fn freeze(&self, under: &Epochs, envelope: EnvelopeId) -> Result<(), HotError>;

    /// Takes the mark off, unless it is heavier than `upto`.
    async fn unfreeze(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        upto: Mark,
    ) -> Result<(), HotError>;

    /// Marked envelopes with ids above `after`, ascending, at most `limit` and
    /// [`VIEWS_PER_CALL_MAX`].
    async fn marked(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<(EnvelopeId, Mark)>, HotError>;

    /// Which of these partitions, in their order, have an outbox that may hold something, asked of all at
    /// once: the outboxes of the others are empty.
    async fn owing(&self, of: Vec<Partition>) -> Result<Vec<Partition>, HotError> {
        Ok(of)
    }

    /// The head of a partition's outbox: entries with ids above `after`, oldest first, up to the
    /// entry that reaches `limit` records or [`OUTBOX_RECORDS_PER_CALL_MAX`].
    async fn outbox(
        &self,
        partition: Partition,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, HotError>;

    /// Deletes entries that the ledger has, by (id, nonce); a pair that does not match is
    /// skipped. Answers the watermark: every entry up to it is settled.
    async fn settled(
        &self,
        epoch: Epoch,
        partition: Partition,
        entries: Vec<(u64, u64)>,
    ) -> Result<u64, HotError>;

    /// Forgets envelopes that are over, closed in the ledger and out of the outbox; skips others.
    async fn remove(&self, under: &Epochs, envelopes: Vec<EnvelopeId>) -> Result<(), HotError>;

    /// Who stands behind the door; `None`: a store that nothing replaces under a process, which
    /// needs no registration.
    async fn standing(&self) -> Result<Option<Standing>, HotError>;

    /// Lets partitions grant under these epochs, after the ledger accepted for them who was
    /// `standing` there: that process, with the data that it had then.
    async fn register(
        &self,
        standing: Standing,
        epochs: Vec<(Partition, Epoch)>,
    ) -> Result<(), HotError>;

    /// Waits until the store must be registered: it has not been, or its process is another one.
    /// Returns at once while that is so; never where no registration is needed.
    async fn unregistered(&self);

    /// Whether a record of this envelope waits that only the outbox has, or may have: one that nobody
    /// can read is none where the store has every grant of the envelope.
    async fn owes(&self, envelope: EnvelopeId) -> Result<bool, HotError>;

    /// Whether this process has told somebody of a share of this envelope that the store may have lost.
    fn has_promised(&self, _envelope: EnvelopeId) -> bool {
        false
    }

    /// What this process acknowledged in older epochs, of at most `limit` envelopes with ids above `after`,
    /// ascending, as far as nobody has said by [`HotStore::answered`] what became of it. A store that loses
    /// nothing has none.
    fn lost_promises(
        &self,
        _after: Option<EnvelopeId>,
        _limit: usize,
    ) -> Vec<(EnvelopeId, Vec<HeldShare>)> {
        Vec::new()
    }

    /// The books have said what becomes of these.
    fn answered(&self, _envelope: EnvelopeId, _held: &[HeldShare]) {}

    /// The terms of an envelope, from who has its row: where it lies is known by them also where the store has
    /// lost them.
    fn learn(&self, _envelope: EnvelopeId, _terms: &Arc<Terms>) {}

    /// Whether something of a dealt envelope shows that its shares were gathered, or that this was begun.
    async fn was_gathered(
        &self,
        _envelope: EnvelopeId,
        _terms: Arc<Terms>,
    ) -> Result<bool, HotError> {
        Ok(false)
    }

    /// Has a stripe of a dealt envelope give nothing any more, after the books have said that its shares are
    /// gathered. Answers what is left in it, within its epoch for ever the same; `None`: it is missing
    /// or stale, and must be repaired first.
    async fn halt(
        &self,
        _under: &Epochs,
        _envelope: EnvelopeId,
        _terms: Arc<Terms>,
        _stripe: Stripe,
    ) -> Result<Option<Halted>, HotError> {
        Err(HotError::Mismatch(
            "this store deals no envelope to stripes".into(),
        ))
    }

    /// Brings an envelope that is missing or stale into this epoch: claims are taken, what the
    /// store still holds stays taken, the rest can be grabbed. Answers where it stands. An envelope
    /// that stands in this epoch stays as it is.
    async fn repair(&self, under: &Epochs, repair: Repair) -> Result<HotState, HotError>;

    /// Ids of envelopes above `after`, ascending, at most `limit`: how an audit walks the store.
    async fn envelopes(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<EnvelopeId>, HotError>;
}
