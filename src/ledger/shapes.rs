//! What goes through the door of the books: requests, rows, verdicts.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::LedgerError;
use crate::domain::books::{Discrepancy, DiscrepancyKind};
use crate::domain::envelope::{BookState, Draft, Terms};
use crate::domain::grab::{HeldShare, OutboxRecord};
use crate::domain::id::{EnvelopeId, Epoch, Partition, PersonId, TenantId, UnixMs};
use crate::domain::money::{Currency, Money};
use crate::domain::posting::PostingKind;
use crate::domain::stripes::{STRIPES_MAX, StripeCount};

/// Money in or out.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Whose books.
    pub tenant: TenantId,
    /// Whose account.
    pub owner: PersonId,
    /// The key of idempotency, 1…64 bytes, per owner and direction.
    pub request_id: PersonId,
    /// How much, 1…`AMOUNT_MINOR_MAX`.
    pub amount: Money,
    /// The payment's name outside.
    pub reference: String,
}

/// A transfer that stands in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// The posting.
    pub posting: i64,
    /// It stood there before this call.
    pub replayed: bool,
}

/// What an owner has in one currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalanceRow {
    /// Which.
    pub currency: Currency,
    /// To spend.
    pub available_minor: i64,
    /// In own envelopes that are not closed: funded − settled − refunded.
    pub held_minor: i64,
}

/// One movement of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// Ascending.
    pub entry: i64,
    /// What balances it.
    pub posting: i64,
    /// Why.
    pub kind: PostingKind,
    /// Signed.
    pub amount: Money,
    /// By the ledger's clock.
    pub posted_at: UnixMs,
    /// For fund, settle, refund and make-good.
    pub envelope: Option<EnvelopeId>,
    /// For settle and make-good.
    pub share: Option<u32>,
    /// Of a deposit or withdrawal.
    pub reference: String,
}

/// An envelope to be funded.
#[derive(Clone, Debug)]
pub struct Fund {
    /// The key of idempotency, per (tenant, sender).
    pub request_id: PersonId,
    /// SHA-256 of the request's canonical form: tells a replay from another request.
    pub request_hash: [u8; 32],
    /// What was asked for.
    pub draft: Draft,
}

/// An envelope that is funded.
#[derive(Clone, Debug)]
pub struct Funded {
    /// As it stands.
    pub envelope: EnvelopeRow,
    /// It stood there before this call.
    pub replayed: bool,
}

/// An envelope in the books.
#[derive(Clone, Debug)]
pub struct EnvelopeRow {
    /// Which.
    pub id: EnvelopeId,
    /// Ascending in the order of funding: the key of paging.
    pub row: i64,
    /// The terms it lives under.
    pub terms: Arc<Terms>,
    /// Where it stands.
    pub state: BookState,
    /// Stopped by an operator or by a broken invariant.
    pub frozen: bool,
    /// The shares that were left in its stripes are gathered in the first one, once and for ever: no other
    /// stripe grants anything any more. Recorded before any of them is told. Never of an envelope of one stripe.
    pub gathered: bool,
    /// Shares that were paid.
    pub settled_count: u32,
    /// What they are worth.
    pub settled_minor: i64,
    /// Declined shares that went back to the sender (not part of `settled_count`).
    pub declined_count: u32,
    /// What went back to the sender: declined shares and the remainder.
    pub refunded_minor: i64,
    /// Paid from the reserve.
    pub made_good_minor: i64,
    /// Records that were granted and have no claim: parked ones and dead letters. They block the
    /// close.
    pub set_aside_count: u32,
    /// When the books were balanced.
    pub closed_at: Option<UnixMs>,
}

impl EnvelopeRow {
    /// Whether [`gather`](super::Ledger::gather) records something: it is open, nobody froze it, and its shares
    /// are not gathered yet.
    ///
    /// # Errors
    /// It has one stripe.
    pub(super) fn is_to_gather(&self) -> Result<bool, LedgerError> {
        if self.terms.stripes.is_one() {
            let why = "an envelope of one stripe has nothing to gather".to_owned();
            return Err(LedgerError::Broken(why));
        }
        let open = matches!(self.state, BookState::Funding | BookState::Live);
        Ok(open && !self.frozen && !self.gathered)
    }
}

/// Where a batch was read: it is posted only while the partition still stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Under {
    /// Whose outbox.
    pub partition: Partition,
    /// The epoch in which it was read.
    pub epoch: Epoch,
}

/// Partitions that one call names: as many as an envelope has stripes at the most.
pub const UNDERS_MAX: usize = STRIPES_MAX as usize;

impl Under {
    /// The epoch of each partition, ascending: the order in which they are locked.
    ///
    /// # Errors
    /// There is none, there are more than [`UNDERS_MAX`], or one partition is named twice.
    pub fn by_partition(all: &[Self]) -> Result<BTreeMap<Partition, Epoch>, LedgerError> {
        if !(1..=UNDERS_MAX).contains(&all.len()) {
            let why = format!("an envelope does not lie in {} partitions", all.len());
            return Err(LedgerError::Broken(why));
        }
        let epochs: BTreeMap<_, _> = all.iter().map(|u| (u.partition, u.epoch)).collect();
        if epochs.len() < all.len() {
            let why = "an envelope has one stripe in a partition".to_owned();
            return Err(LedgerError::Broken(why));
        }
        Ok(epochs)
    }

    /// That an envelope's partitions are named, all of them: what one that is not named has granted may be more than
    /// its remainder knows.
    ///
    /// # Errors
    /// There are more or fewer than the envelope has stripes.
    pub fn check_all(
        named: &BTreeMap<Partition, Epoch>,
        stripes: StripeCount,
    ) -> Result<(), LedgerError> {
        let (named, stripes) = (named.len(), usize::from(stripes.get()));
        if named != stripes {
            let why = format!("{named} partitions are named, and the envelope lies in {stripes}");
            return Err(LedgerError::Broken(why));
        }
        Ok(())
    }
}

/// How a hot store is laid out. Fixed at first start: grabs would be looked for in another place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotLayout {
    /// `embedded` or `redis`.
    pub store: String,
    /// The number of its set of keys or rows.
    pub layout: u16,
    /// How many partitions.
    pub partitions: u16,
}

/// A partition's registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionRow {
    /// Which.
    pub partition: Partition,
    /// In which epoch it stands.
    pub epoch: Epoch,
    /// On which process of the hot store.
    pub server: String,
}

/// The server of a partition that was left behind by a restore: no process of a hot store is called so, so
/// whichever comes next is registered for another epoch.
pub(super) const SERVER_OF_A_RESTORE: &str = "none since a restore";
/// How many epochs a hot store that went on may be ahead of restored books: each is a failover.
pub(super) const RESTORE_EPOCHS_MAX: u64 = 10_000;

/// What a restore has begun anew in the books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BegunAnew {
    /// By tenant: the first leaf that is used from now on.
    pub first_leaves: Vec<(TenantId, u64)>,
    /// Partitions that stand in an epoch in which nothing was read or granted.
    pub partitions: usize,
}

/// PURE: beyond which epoch each partition has to be after a restore, as its column has it: its own, and
/// the one of `past`, in which a hot store went on.
pub(super) fn epochs_beyond(
    rows: Vec<PartitionRow>,
    past: &[(Partition, Epoch)],
) -> Result<BTreeMap<u16, i64>, LedgerError> {
    let own: BTreeMap<_, _> = rows.into_iter().map(|r| (r.partition, r.epoch)).collect();
    let mut beyond = BTreeMap::new();
    for (partition, epoch) in own.iter().chain(past.iter().map(|(p, epoch)| (p, epoch))) {
        let stands = own.get(partition).copied().unwrap_or(Epoch::FIRST);
        if epoch.0.saturating_sub(stands.0) >= RESTORE_EPOCHS_MAX {
            let why = format!(
                "the hot store stands in epoch {} and the books in {}, too far behind: are these the \
                 books of this hot store? If they are, start on an empty one",
                epoch.0, stands.0
            );
            return Err(LedgerError::Broken(why));
        }
        let next = i64::try_from(epoch.0 + 1);
        let next = next.map_err(|_| LedgerError::Broken("the epochs are used up".to_owned()))?;
        let wanted = beyond.entry(partition.index()).or_insert(next);
        *wanted = next.max(*wanted);
    }
    Ok(beyond)
}

/// Which partitions a process settles among several: those whose number, divided by `of`, leaves
/// `rank`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    /// 0…`of` − 1.
    pub rank: u16,
    /// How many processes settle, at least 1.
    pub of: u16,
}

impl Portion {
    /// Of the only one.
    pub const ALONE: Self = Self { rank: 0, of: 1 };

    /// Whether the partition is among them.
    pub fn has(self, partition: Partition) -> bool {
        partition.index() % self.of.max(1) == self.rank
    }
}

/// One record of a batch, and what the plan makes of it.
#[derive(Clone, Debug)]
pub enum SettleItem {
    /// Pay it: (share, amount) is what the envelope's seed says.
    Pay(OutboxRecord),
    /// Set it aside, with a stable reason: it can't be paid as it stands.
    SetAside(OutboxRecord, &'static str),
}

/// Records that are parked of one envelope.
#[derive(Clone, Copy, Debug)]
pub struct Parked {
    /// The envelope's row.
    pub envelope_row: i64,
    /// The row of the first record.
    pub first: i64,
    /// The row of the last one.
    pub last: i64,
    /// How many they were when somebody looked: what the call will cost.
    pub records: usize,
}

impl Parked {
    /// Those in these rows, which ascend.
    pub fn of(envelope_row: i64, rows: &[i64]) -> Option<Self> {
        Some(Self {
            envelope_row,
            first: *rows.first()?,
            last: *rows.last()?,
            records: rows.len(),
        })
    }
}

/// What became of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Paid (or refunded, if declined) by this call.
    Paid,
    /// The same claim stood there before.
    Duplicate,
    /// The share or the grabber has another claim, and nothing is owed: nothing moved.
    Superseded,
    /// The share went to somebody else, and the reserve has paid what the grabber's own claim does not.
    MadeGood,
    /// Kept in the books for later: the envelope is frozen.
    Parked,
    /// In the dead letters; the envelope can't close.
    DeadLetter,
    /// In the dead letters: as [`Settled::MadeGood`], but the cap is reached. The envelope closes all the
    /// same, since its own money is not concerned.
    Capped,
}

/// How far a close has come.
#[derive(Clone, Debug)]
pub enum CloseProgress {
    /// Settled and refunded add up to what was funded.
    Closed(EnvelopeRow),
    /// What was granted is not settled yet, or dead letters stand in the way.
    Waiting {
        /// Shares with a claim.
        claimed_count: u32,
        /// Dead letters of the envelope.
        dead_letters: u32,
    },
}

/// Work for the sweeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Funded for more than the sweeper's patience and not known to be Live.
    Unpublished(EnvelopeId),
    /// Past its expiry, by the ledger's clock, and still Live (or Funding).
    Expired(EnvelopeId),
    /// Every share has a claim and the envelope is still Live.
    Empty(EnvelopeId),
    /// Closing: the refund is due as soon as all that was granted is settled.
    Closing(EnvelopeId),
}

impl Due {
    /// Which envelope waits.
    pub fn envelope(self) -> EnvelopeId {
        match self {
            Self::Unpublished(id) | Self::Expired(id) | Self::Empty(id) | Self::Closing(id) => id,
        }
    }
}

/// A share that was paid, for the grabber's history.
#[derive(Clone, Debug)]
pub struct ReceivedRow {
    /// Ascending in the order of settlement: the key of paging.
    pub row: i64,
    /// From which envelope.
    pub envelope: EnvelopeId,
    /// Its sender.
    pub sender: PersonId,
    /// Its currency.
    pub currency: Currency,
    /// The share.
    pub share: HeldShare,
}

/// A published batch of seed leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafBatch {
    /// Consecutive per tenant, until a restore begins one far above.
    pub batch_number: u64,
    /// The Merkle root.
    pub batch_root: [u8; 32],
    /// When it was committed to.
    pub committed_at: UnixMs,
}

/// An act of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminAct {
    /// `freeze`, `unfreeze`, `replay_dead_letter`, `dismiss_dead_letter`, `trace`, `audit`, `list_dead_letters`, `restored`,
    /// `give_up`, `reconcile`.
    pub act: String,
    /// Which envelope.
    pub envelope: Option<EnvelopeId>,
    /// Who.
    pub operator: PersonId,
    /// Why.
    pub reason: String,
    /// When. Filled by the ledger.
    pub at: UnixMs,
    /// `done`, or why it was refused.
    pub result: String,
}

/// A posting that touched an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvelopePosting {
    /// Which.
    pub posting: i64,
    /// Why.
    pub kind: PostingKind,
    /// What moved: positive into the escrow, negative out of it. Of a make-good it is the reserve's, and not
    /// the escrow's: negative to a grabber, positive back.
    pub amount_minor: i64,
    /// How many shares it paid.
    pub shares: u32,
    /// When.
    pub posted_at: UnixMs,
}

/// Which envelopes the auditor reads at once.
#[derive(Clone, Debug)]
pub enum AuditPage {
    /// Those with rows above this one, by row, at most so many.
    After(i64, usize),
    /// These, in any order. Who is not in the books is left out.
    Of(Vec<EnvelopeId>),
}

/// An envelope as the auditor reads it: the row beside what its entries and claims sum to, all
/// from one snapshot.
#[derive(Clone, Debug)]
pub struct AuditRow {
    /// Its place among the rows.
    pub row: i64,
    /// Its id, where that is one.
    pub id: Option<EnvelopeId>,
    /// The row, or why this release can't read it.
    pub envelope: Result<EnvelopeRow, String>,
    /// Where its columns say something else than its terms.
    pub contradicts: Option<String>,
    /// Sum of the escrow's credits.
    pub entries_in_minor: i64,
    /// Sum of the escrow's debits, as a positive amount.
    pub entries_out_minor: i64,
    /// Claims of shares that were paid: count and sum.
    pub paid: (u32, i64),
    /// Claims of shares that were declined: count and sum.
    pub declined: (u32, i64),
    /// Dead letters and parked records.
    pub dead_letters: u32,
}

/// What the books say as a whole, all from one snapshot.
#[derive(Clone, Debug, Default)]
pub struct AuditTotals {
    /// One a currency.
    pub currencies: Vec<CurrencyTotals>,
    /// Postings that don't sum to zero, accounts whose balance is not the sum of their entries,
    /// rows that contradict each other; at most `PAGE_ROWS_MAX`.
    pub discrepancies: Vec<Discrepancy>,
}

/// Sums of one currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrencyTotals {
    /// Which.
    pub currency: Currency,
    /// Brought in less taken out.
    pub outside_minor: i64,
    /// On the accounts of owners.
    pub available_minor: i64,
    /// In escrow.
    pub escrow_minor: i64,
    /// Paid from the reserve.
    pub made_good_minor: i64,
}

impl CurrencyTotals {
    /// What was brought in, and paid from the reserve, is on accounts or in escrow.
    pub fn unbalanced(&self) -> Option<Discrepancy> {
        let came = i128::from(self.outside_minor) + i128::from(self.made_good_minor);
        let there = i128::from(self.available_minor) + i128::from(self.escrow_minor);
        (came != there).then(|| Discrepancy {
            kind: DiscrepancyKind::BalanceWrong,
            tenant: None,
            envelope: None,
            detail: format!(
                "{}: {came} came in, {there} are on accounts and in escrow",
                self.currency
            ),
        })
    }
}
