//! The books. [`Ledger`] is the only door.
//!
//! # Shape
//! | flow | calls | transactions |
//! |---|---|---|
//! | money in and out | `deposit`, `withdraw` | one: idempotency row, posting, balances |
//! | create | `fund` (or `funded`, for a repeat only), then `mark_live` | one for the hold, the leaf and the envelope's row |
//! | gather | `gather` | one |
//! | settle | `settle` | one for a whole batch: claims, entries, balances, what is made good, dead letters |
//! | who settles, who serves | `lease`, `serving` | one |
//! | close | `begin_close`, `finish_close` | CLOSING first; the refund when all that was granted is settled |
//! | reads | `envelopes`, `claims`, `received`, `sent`, `entries`, `balances` | read snapshots |
//! | after a restore | `restored` | one |
//! | operators | `freeze`, `unfreeze`, `frozen`, `record_act`, `dead_letters`, `dead_letter`, `set_aside`, `act_on_letter`, `audit_*` | each act is recorded in the same transaction |
//!
//! # Ordering
//! Every call that writes is idempotent by a key that its caller chose or that the schema holds
//! unique: (tenant, owner, request id), (envelope, share), (envelope, grabber).
//!
//! # Not here
//! What is grabbable now (the hot store), how shares are published, when to settle or to close.

mod audited;
#[cfg(any(test, feature = "test-hooks"))]
pub mod conformance;
mod letter;
mod make_good;
pub mod postgres;
mod shapes;
pub mod sqlite;
mod totals;

pub use letter::*;
pub use make_good::{CAPPED, MAKE_GOOD_MS, MakeGood, NO_ROOM, REFUSED_BY_THE_BOOKS};
pub use shapes::*;
pub use totals::{Period, PeriodTotals};

use std::sync::Arc;

use async_trait::async_trait;
use rand::CryptoRng;

use crate::domain::envelope::{CloseReason, Terms};
use crate::domain::fairness::{Proof, ServerSeed};
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, Epoch, Partition, PersonId, TenantId, UnixMs};
use crate::domain::money::Currency;

/// A source of unguessable bytes.
pub type Entropy = Box<dyn CryptoRng + Send>;

/// Records that one `settle` posts: 5,000 take about 60 ms of SQLite, and more gain little and hold the
/// writer longer. PostgreSQL posts several such batches in one transaction.
pub const SETTLE_BATCH_MAX: usize = 5_000;
/// Rows of one page of any listing.
pub const PAGE_ROWS_MAX: usize = 1_000;
/// Claims of one account, and envelopes of one sender, that are read for the totals of a period: a few tenths of
/// a second, and more than a person grabs.
pub const TOTALS_ROWS_MAX: usize = 100_000;
/// How often settlement tries a record that the books refuse before it is set aside.
pub const SETTLE_TRIES_MAX: u32 = 5;

/// Why a call had no effect and no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// The same request id came with another body before.
    #[error("this request_id was used before with another request")]
    RequestIdReused,
    /// The account has less than the call takes.
    #[error(
        "insufficient funds: {available_minor} minor units are available, {needed_minor} are needed"
    )]
    InsufficientFunds {
        /// What is there.
        available_minor: i64,
        /// What the call takes.
        needed_minor: i64,
    },
    /// A deposit would bring the balance above `AMOUNT_MINOR_MAX`.
    #[error("the account can't hold so much")]
    BalanceTooLarge,
    /// The share of a corrected letter went to somebody else, and the reserve pays no more for now.
    #[error("no more is made good for now")]
    MakeGoodCapped,
    /// No such thing in the books.
    #[error("not in the ledger")]
    NotFound,
    /// An operator froze the envelope.
    #[error("the envelope is frozen")]
    Frozen,
    /// The envelope is over for another reason than the one asked for.
    #[error("the envelope is over already")]
    AlreadyOver(CloseReason),
    /// Too busy, or out of reach for now: repeat the call.
    #[error("the ledger is unavailable: {0}")]
    Unavailable(String),
    /// The partition stands in another epoch: what was read under the caller's may be void.
    #[error("the partition stands in epoch {0:?}")]
    Epoch(Epoch),
    /// The books are not as they must be, or a statement is wrong: our bug or a damaged file.
    #[error("the ledger is broken: {0}")]
    Broken(String),
}

/// The only door to the books.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Now, by the ledger's clock: what expiry is picked by.
    fn now(&self) -> UnixMs;

    /// Its name in GetServiceInfo.
    fn kind(&self) -> &'static str;

    /// Whether it serves; if not, a sentence that says what to change.
    fn ready(&self) -> Result<(), String>;

    // ---- money in and out ----

    /// Outside → owner. A tenant's first deposit commits to its first batch of seed leaves: no
    /// envelope can be paid for before it.
    async fn deposit(&self, transfer: Transfer) -> Result<Transferred, LedgerError>;

    /// Owner → outside.
    async fn withdraw(&self, transfer: Transfer) -> Result<Transferred, LedgerError>;

    /// What an owner has, by currency code; of `pending` (envelope, share) pairs, it answers in
    /// the same snapshot which ones have no claim yet.
    async fn balances(
        &self,
        tenant: TenantId,
        owner: PersonId,
        pending: Vec<(EnvelopeId, u32)>,
    ) -> Result<(Vec<BalanceRow>, Vec<bool>), LedgerError>;

    /// Entries below `before`, the newest first.
    async fn entries(
        &self,
        tenant: TenantId,
        owner: PersonId,
        currency: Option<Currency>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, LedgerError>;

    // ---- create ----

    /// Sender → escrow: idempotency row, next leaf, id, hold, in one transaction.
    async fn fund(&self, fund: Fund) -> Result<Funded, LedgerError>;

    /// What the same request funded before; `None`: nothing. Writes nothing.
    async fn funded(&self, fund: Fund) -> Result<Option<Funded>, LedgerError>;

    /// The seed that the terms' leaf commits to; `Broken` where it commits to another one. Never leaves the
    /// process before the close.
    async fn server_seed(&self, terms: Arc<Terms>) -> Result<ServerSeed, LedgerError>;

    /// Funding → Live. Later states stay. Answers the row as it now is.
    async fn mark_live(&self, envelope: EnvelopeId) -> Result<EnvelopeRow, LedgerError>;

    /// Records that the shares of an envelope are gathered in its first stripe, where it is Funding or Live and
    /// not frozen; elsewhere nothing is changed. Never taken back. Answers the row as it now is: no stripe is
    /// told of it unless that says so. `Broken` for an envelope of one stripe.
    async fn gather(&self, envelope: EnvelopeId) -> Result<EnvelopeRow, LedgerError>;

    // ---- settle ----

    /// From now on, so much is made good of each tenant; before, nothing is.
    fn make_good_up_to(&self, cap: MakeGood);

    /// Posts at most [`SETTLE_BATCH_MAX`] records in one transaction: one verdict each, in order.
    /// Nothing is posted unless the partition stands in the epoch under which they were read.
    async fn settle(
        &self,
        under: Under,
        items: Vec<SettleItem>,
    ) -> Result<Vec<Settled>, LedgerError>;

    /// Renews the lease of a process that settles, for `for_ms`; 0 ends it. Answers its portion among
    /// those whose leases run, by the ledger's clock. It saves work and decides nothing: two who
    /// believe that they have the same partition pay nothing twice.
    async fn lease(&self, holder: String, for_ms: i64) -> Result<Portion, LedgerError>;

    /// Renews the lease of a process that serves and does not settle, for `for_ms`; 0 ends it. It has
    /// no portion: it only says that these books are served. Answers how many others run.
    async fn serving(&self, holder: String, for_ms: i64) -> Result<usize, LedgerError>;

    /// Envelopes of which something is parked and that are not frozen any more, with rows above `after_row`,
    /// by row.
    async fn parked(
        &self,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, EnvelopeId)>, LedgerError>;

    /// Rows of the records that are parked of the envelope in a row, above `after`, in the order in which they
    /// were parked: ascending. At most [`SETTLE_BATCH_MAX`].
    async fn parked_of(
        &self,
        envelope_row: i64,
        after: i64,
        limit: usize,
    ) -> Result<Vec<i64>, LedgerError>;

    /// Posts these parked records in one transaction, or sets them `aside` with a reason: one verdict each, in
    /// order. What has a verdict is parked no more. Nothing is done where the envelope is frozen again.
    async fn settle_parked(
        &self,
        parked: Parked,
        aside: Option<&'static str>,
    ) -> Result<Vec<Settled>, LedgerError>;

    // ---- close ----

    /// Funding or Live → Closing. The first reason stands: answers the row as it now is.
    async fn begin_close(
        &self,
        envelope: EnvelopeId,
        reason: CloseReason,
    ) -> Result<EnvelopeRow, LedgerError>;

    /// Closing → Closed, if claims cover the `taken_count` shares that the hot store granted:
    /// refunds the remainder to the sender in the same transaction. `reason` is the hot store's:
    /// an envelope that turned out to be empty was not expired. `under` is where the hot store
    /// closed it, each partition in which it lies once, at most [`UNDERS_MAX`]: in another epoch one may be
    /// granting again, so it is to be closed there first. More claims than grants are a contradiction
    /// where all stand in [`Epoch::FIRST`], and a loss where one stands in a later one.
    async fn finish_close(
        &self,
        under: Vec<Under>,
        envelope: EnvelopeId,
        reason: CloseReason,
        taken_count: u32,
    ) -> Result<CloseProgress, LedgerError>;

    /// What the sweeper has to do, by the ledger's clock, frozen envelopes aside: envelopes with
    /// rows above `after_row`, by row, each at most once, so that one which is blocked never
    /// hides the next. `Unpublished` were funded more than `patience_ms` ago.
    async fn due(
        &self,
        patience_ms: i64,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, Due)>, LedgerError>;

    // ---- reads ----

    /// Envelopes in their order, at most [`PAGE_ROWS_MAX`]; `None` where one is unknown.
    async fn envelopes(
        &self,
        ids: Vec<EnvelopeId>,
    ) -> Result<Vec<Option<EnvelopeRow>>, LedgerError>;

    /// Claims with share numbers ≥ `from`, by number.
    async fn claims(
        &self,
        envelope: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Vec<HeldShare>, LedgerError>;

    /// What each of at most [`PAGE_ROWS_MAX`] persons was paid from (or declined of) an envelope, in their order.
    async fn claims_of(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, LedgerError>;

    /// The largest claim, ties to the lowest number.
    async fn best_claim(&self, envelope: EnvelopeId) -> Result<Option<HeldShare>, LedgerError>;

    /// Envelopes of a sender with rows below `before`, the newest first.
    async fn sent(
        &self,
        tenant: TenantId,
        sender: PersonId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<EnvelopeRow>, LedgerError>;

    /// Shares paid to a grabber with rows below `before`, the newest first.
    async fn received(
        &self,
        tenant: TenantId,
        grabber: PersonId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<ReceivedRow>, LedgerError>;

    /// What somebody gave and got in a period, by currency; currencies without anything are left out. `None`:
    /// more than [`TOTALS_ROWS_MAX`] rows would have to be read.
    async fn totals(
        &self,
        tenant: TenantId,
        person: PersonId,
        period: Period,
    ) -> Result<Option<Vec<PeriodTotals>>, LedgerError>;

    // ---- fairness ----

    /// The newest batches of a tenant, the newest first. The first one is committed to when the books
    /// are founded (the default tenant's) or with the tenant's first deposit; before, there is none.
    async fn leaf_batches(
        &self,
        tenant: TenantId,
        limit: usize,
    ) -> Result<Vec<LeafBatch>, LedgerError>;

    /// The proof of a Closed envelope; `None` before.
    async fn proof(&self, envelope: EnvelopeId) -> Result<Option<Proof>, LedgerError>;

    // ---- the hot store's incarnations ----

    /// How the hot store is laid out: recorded the first time. Answers what is on record.
    async fn hot_layout(&self, layout: HotLayout) -> Result<HotLayout, LedgerError>;

    /// Which server each partition was registered for, and in which epoch; partitions that never
    /// were are missing, and stand in [`Epoch::FIRST`](crate::domain::id::Epoch::FIRST).
    async fn partitions(&self) -> Result<Vec<PartitionRow>, LedgerError>;

    /// Compare and set, each by itself: a partition that stands in the epoch of its pair goes to
    /// the next one, on `server`. Answers the rows of these partitions as they stand then. What
    /// `settle` posts after it was read after it.
    async fn advance_epochs(
        &self,
        from: Vec<(Partition, Epoch)>,
        server: String,
    ) -> Result<Vec<PartitionRow>, LedgerError>;

    /// These books were restored to an earlier moment. Begins the leaves of every tenant anew, takes
    /// every partition beyond its epoch and beyond that of `past` (what a hot store that went on stands
    /// in), and records the act, in one transaction. Repeating it begins anew once more.
    async fn restored(
        &self,
        past: Vec<(Partition, Epoch)>,
        act: AdminAct,
    ) -> Result<BegunAnew, LedgerError>;

    // ---- operators ----

    /// Puts an act on record.
    async fn record_act(&self, act: AdminAct) -> Result<(), LedgerError>;

    /// Freezes and records the act. Answers whether it was frozen before. Closed: `AlreadyOver`.
    async fn freeze(&self, envelope: EnvelopeId, act: AdminAct) -> Result<bool, LedgerError>;

    /// Unfreezes and records the act. Answers whether it was unfrozen before.
    async fn unfreeze(&self, envelope: EnvelopeId, act: AdminAct) -> Result<bool, LedgerError>;

    /// Frozen envelopes with rows above `after_row`, by row: each waits for an operator.
    async fn frozen(
        &self,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, EnvelopeId)>, LedgerError>;

    /// Acts on an envelope, the oldest first; `None`: those that were on none, such as audits.
    async fn acts(
        &self,
        envelope: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<AdminAct>, LedgerError>;

    /// Postings that touched an envelope, the oldest first.
    async fn postings(
        &self,
        envelope: EnvelopeId,
        limit: usize,
    ) -> Result<Vec<EnvelopePosting>, LedgerError>;

    /// Open dead letters with rows above `after`, the oldest first.
    async fn dead_letters(
        &self,
        tenant: Option<TenantId>,
        after: i64,
        limit: usize,
    ) -> Result<Vec<DeadLetterRow>, LedgerError>;

    /// A dead letter by its row, open or settled.
    async fn dead_letter(&self, row: i64) -> Result<Option<DeadLetterRow>, LedgerError>;

    /// What stands in the way of an envelope's close: how many records are parked, and a page of the open
    /// dead letters that its row counts, with rows above `after`, by row.
    async fn set_aside(
        &self,
        envelope: EnvelopeId,
        after: i64,
        limit: usize,
    ) -> Result<SetAside, LedgerError>;

    /// Does something about a dead letter and records the act. `amount_minor` is what the envelope's
    /// seed says of the share, `None` where it says nothing, since there is no such share. Answers the row
    /// as it stands. One that is settled is left as it is, so that repeating answers the same. The deeds
    /// are [`Ledger::replay_dead_letter`], [`Ledger::correct_dead_letter`] and
    /// [`Ledger::dismiss_dead_letter`].
    async fn act_on_letter(
        &self,
        row: i64,
        deed: LetterDeed,
        amount_minor: Option<i64>,
        act: AdminAct,
    ) -> Result<DeadLetterRow, LedgerError>;

    /// Tries a dead letter again: `None` when it is paid now, else the row as it stands. The terms are
    /// asked too: nobody is paid to whom they give nothing.
    async fn replay_dead_letter(
        &self,
        row: i64,
        amount_minor: Option<i64>,
        act: AdminAct,
    ) -> Result<Option<DeadLetterRow>, LedgerError> {
        let replay = self.act_on_letter(row, LetterDeed::Replay, amount_minor, act);
        Ok(replay.await?.answer())
    }

    /// Tries a dead letter again with what the seed says in the place of its amount, where the terms give
    /// its share to its grabber. The caller has to know that the share was granted so: the letter alone
    /// may be forged. One that can't be paid stays as it is: `BalanceTooLarge`,
    /// `AlreadyOver`, or `MakeGoodCapped`.
    async fn correct_dead_letter(
        &self,
        row: i64,
        amount_minor: Option<i64>,
        act: AdminAct,
    ) -> Result<Option<DeadLetterRow>, LedgerError> {
        let correct = self.act_on_letter(row, LetterDeed::Correct, amount_minor, act);
        Ok(correct.await?.answer())
    }

    /// Lets go of a dead letter, if nothing can ever be owed by it as it is written: the envelope's seed
    /// says another amount of the share, or the terms give it to somebody else; or if no envelope owes it: it is
    /// the reserve's, or its envelope is closed. Its envelope closes without it. Where the row that is answered is
    /// not dismissed, nothing was done or recorded. A record that comes again before the close opens its letter
    /// again, where an envelope may owe it.
    async fn dismiss_dead_letter(
        &self,
        row: i64,
        amount_minor: Option<i64>,
        act: AdminAct,
    ) -> Result<DeadLetterRow, LedgerError> {
        self.act_on_letter(row, LetterDeed::Dismiss, amount_minor, act)
            .await
    }

    // ---- audit ----

    /// Envelopes with the sums of their entries and claims, each from one snapshot. Only one tenant's where one is named.
    async fn audit_envelopes(
        &self,
        tenant: Option<TenantId>,
        page: AuditPage,
    ) -> Result<Vec<AuditRow>, LedgerError>;

    /// Every posting and account; only one tenant's where one is named.
    async fn audit_totals(&self, tenant: Option<TenantId>) -> Result<AuditTotals, LedgerError>;
}
