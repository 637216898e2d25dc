//! The books. [`Ledger`] is the only door.
//!
//! # Shape
//! | flow | calls | transactions |
//! |---|---|---|
//! | money in and out | `deposit`, `withdraw` | one: idempotency row, posting, balances |
//! | create | `fund`, then `mark_live` | one for the hold, the leaf and the envelope's row |
//! | settle | `settle` | one for a whole batch: claims, entries, balances, dead letters |
//! | close | `begin_close`, `finish_close` | CLOSING first; the refund when all that was granted is settled |
//! | reads | `envelopes`, `claims`, `received`, `sent`, `entries`, `balances` | read snapshots |
//! | operators | `freeze`, `unfreeze`, `record_act`, `dead_letters`, `replay_dead_letter`, `audit_*` | each act is recorded in the same transaction |
//!
//! # Ordering
//! Every call that writes is idempotent by a key that its caller chose or that the schema holds
//! unique: (tenant, owner, request id), (envelope, share), (envelope, grabber).
//!
//! # Not here
//! What is grabbable now (the hot store), how shares are published, when to settle or to close.

#[cfg(any(test, feature = "test-hooks"))]
pub mod conformance;
pub mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::books::Discrepancy;
use crate::domain::envelope::{BookState, CloseReason, Draft, Terms};
use crate::domain::fairness::{Proof, ServerSeed};
use crate::domain::grab::{HeldShare, OutboxRecord};
use crate::domain::id::{EnvelopeId, PersonId, TenantId, UnixMs};
use crate::domain::money::{Currency, Money};
use crate::domain::posting::PostingKind;

/// Records that one `settle` posts: 5,000 take about 50 ms of one PostgreSQL, 20 ms of SQLite;
/// more gain little and hold the writer longer.
pub const SETTLE_BATCH_MAX: usize = 5_000;
/// Rows of one page of any listing.
pub const PAGE_ROWS_MAX: usize = 1_000;
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
    /// The balance would pass `AMOUNT_MINOR_MAX`.
    #[error("the account can't hold so much")]
    BalanceTooLarge,
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
    /// The books are not as they must be, or a statement is wrong: our bug or a damaged file.
    #[error("the ledger is broken: {0}")]
    Broken(String),
}

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
    /// When the books were balanced.
    pub closed_at: Option<UnixMs>,
}

/// One record of a batch, and what the plan makes of it.
#[derive(Clone, Debug)]
pub enum SettleItem {
    /// Pay it: (share, amount) is what the envelope's seed says.
    Pay(OutboxRecord),
    /// Set it aside, with a stable reason: it can't be paid as it stands.
    SetAside(OutboxRecord, &'static str),
}

/// What became of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Paid (or refunded, if declined) by this call.
    Paid,
    /// The same claim stood there before.
    Duplicate,
    /// The share or the grabber has another claim: paid once already, nothing moved.
    Superseded,
    /// Kept in the books for later: the envelope is frozen.
    Parked,
    /// In the dead letters; the envelope can't close.
    DeadLetter,
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
    /// Consecutive per tenant.
    pub batch_number: u64,
    /// The Merkle root.
    pub batch_root: [u8; 32],
    /// When it was committed to.
    pub committed_at: UnixMs,
}

/// An act of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminAct {
    /// `freeze`, `unfreeze`, `replay_dead_letter`, `trace`.
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

/// A record that could not be paid.
#[derive(Clone, Debug)]
pub struct DeadLetterRow {
    /// Ascending: the key of paging.
    pub row: i64,
    /// Whose envelope; `None` where the envelope is unknown.
    pub tenant: Option<TenantId>,
    /// Currency of the envelope; `None` where it is unknown.
    pub currency: Option<Currency>,
    /// What was promised.
    pub record: OutboxRecord,
    /// Why it can't be paid. Stable.
    pub reason: String,
    /// How often it was tried.
    pub tries: u32,
    /// When it was set aside.
    pub created_at: UnixMs,
}

/// A posting that touched an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvelopePosting {
    /// Which.
    pub posting: i64,
    /// Why.
    pub kind: PostingKind,
    /// What moved: positive into the escrow, negative out of it.
    pub amount_minor: i64,
    /// How many shares it paid.
    pub shares: u32,
    /// When.
    pub posted_at: UnixMs,
}

/// An envelope as the auditor reads it: the row beside what its entries and claims sum to, all
/// from one snapshot.
#[derive(Clone, Debug)]
pub struct AuditRow {
    /// The row.
    pub envelope: EnvelopeRow,
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
    /// rows that contradict each other; at most [`PAGE_ROWS_MAX`].
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

/// The only door to the books.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Now, by the ledger's clock: what expiry is picked by.
    fn now(&self) -> UnixMs;

    /// Whether it serves; if not, a sentence that says what to change.
    fn ready(&self) -> Result<(), String>;

    // ---- money in and out ----

    /// Outside → owner.
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

    /// The seed that the envelope's leaf commits to. Never leaves the process before the close.
    async fn server_seed(&self, envelope: EnvelopeId) -> Result<ServerSeed, LedgerError>;

    /// Funding → Live. Later states stay.
    async fn mark_live(&self, envelope: EnvelopeId) -> Result<(), LedgerError>;

    // ---- settle ----

    /// Posts at most [`SETTLE_BATCH_MAX`] records in one transaction: one verdict each, in order.
    async fn settle(&self, items: Vec<SettleItem>) -> Result<Vec<Settled>, LedgerError>;

    /// Posts what was parked while an envelope was frozen. Answers how many records it settled.
    async fn settle_parked(&self, limit: usize) -> Result<usize, LedgerError>;

    // ---- close ----

    /// Funding or Live → Closing. The first reason stands: answers the row as it now is.
    async fn begin_close(
        &self,
        envelope: EnvelopeId,
        reason: CloseReason,
    ) -> Result<EnvelopeRow, LedgerError>;

    /// Closing → Closed, if claims cover the `taken_count` shares that the hot store granted:
    /// refunds the remainder to the sender in the same transaction. `reason` is the hot store's:
    /// an envelope that turned out to be empty was not expired.
    async fn finish_close(
        &self,
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

    /// What somebody was paid from (or declined of) each envelope, in their order.
    async fn claims_of(
        &self,
        grabber: PersonId,
        envelopes: Vec<EnvelopeId>,
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

    // ---- fairness ----

    /// The newest batches of a tenant, the newest first. Commits to the first one if there is none.
    async fn leaf_batches(
        &self,
        tenant: TenantId,
        limit: usize,
    ) -> Result<Vec<LeafBatch>, LedgerError>;

    /// The proof of a Closed envelope; `None` before.
    async fn proof(&self, envelope: EnvelopeId) -> Result<Option<Proof>, LedgerError>;

    // ---- operators ----

    /// Puts an act on record.
    async fn record_act(&self, act: AdminAct) -> Result<(), LedgerError>;

    /// Freezes and records the act. Answers whether it was frozen before. Closed: `AlreadyOver`.
    async fn freeze(&self, envelope: EnvelopeId, act: AdminAct) -> Result<bool, LedgerError>;

    /// Unfreezes and records the act. Answers whether it was unfrozen before.
    async fn unfreeze(&self, envelope: EnvelopeId, act: AdminAct) -> Result<bool, LedgerError>;

    /// Acts on an envelope, the oldest first.
    async fn acts(&self, envelope: EnvelopeId, limit: usize) -> Result<Vec<AdminAct>, LedgerError>;

    /// Postings that touched an envelope, the oldest first.
    async fn postings(
        &self,
        envelope: EnvelopeId,
        limit: usize,
    ) -> Result<Vec<EnvelopePosting>, LedgerError>;

    /// Dead letters with rows above `after`, the oldest first.
    async fn dead_letters(
        &self,
        tenant: Option<TenantId>,
        after: i64,
        limit: usize,
    ) -> Result<Vec<DeadLetterRow>, LedgerError>;

    /// Tries a dead letter again and records the act: `None` when it is paid now, else the row as
    /// it stands. `amount_minor` is what the envelope's seed says of the share, `None` where it
    /// says nothing.
    async fn replay_dead_letter(
        &self,
        row: i64,
        amount_minor: Option<i64>,
        act: AdminAct,
    ) -> Result<Option<DeadLetterRow>, LedgerError>;

    // ---- audit ----

    /// Envelopes with rows above `after`, by row, with the sums of their entries and claims.
    /// Only one tenant's where one is named.
    async fn audit_envelopes(
        &self,
        tenant: Option<TenantId>,
        after: i64,
        limit: usize,
    ) -> Result<Vec<AuditRow>, LedgerError>;

    /// Every posting and account; only one tenant's where one is named.
    async fn audit_totals(&self, tenant: Option<TenantId>) -> Result<AuditTotals, LedgerError>;
}
