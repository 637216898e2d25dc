//! The books in PostgreSQL: any number of processes, one truth.
//!
//! # Shape
//! | part | what |
//! |---|---|
//! | `handle`, `open` | connects, migrates, founds |
//! | `books` | connections, transactions, tries |
//! | `sql` | statements, and what their failures mean |
//! | `post` | accounts, postings, entries |
//! | `transfer`, `fund`, `settle`, `make_good`, `set_aside`, `letters`, `close`, `operators`, `partitions` | what writes: each in one transaction |
//! | `read`, `audit` | what reads |
//! | `together`, `settlements` | calls of one kind, or batches, that arrive together are one transaction |
//!
//! # Bounds
//! [`CONNECTIONS_MAX`] connections; every statement, every wait for a lock and every idle transaction has
//! a time limit, set when a connection is made.
//!
//! # Ordering
//! Locks are taken in one order: a partition, envelopes by row, accounts by row, a tenant's leaves. Where
//! PostgreSQL finds a deadlock all the same, the call is tried again.
//!
//! # If it crashes here
//! PostgreSQL takes the transaction back. Where a COMMIT has no answer, the caller repeats the call and
//! finds what it made.
//!
//! # Not here
//! The clock of expiry is this process's: hosts are expected to keep theirs together.

mod audit;
mod books;
mod close;
mod fund;
mod handle;
mod known;
mod leaves;
mod letters;
mod make_good;
mod open;
mod operators;
mod partitions;
mod payees;
mod post;
mod read;
mod rows;
#[cfg(any(test, feature = "test-hooks"))]
pub mod server_under_test;
mod set_aside;
mod settle;
mod settle_post;
mod settle_read;
mod settlements;
mod sql;
#[cfg(test)]
mod tests;
mod together;
mod totals;
mod transfer;

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};

use crate::clock::Clock;
use crate::domain::envelope::{BookState, CloseReason, Terms};
use crate::domain::fairness::{Proof, SealKeys, ServerSeed};
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, Epoch, Partition, PersonId, TenantId, UnixMs};
use crate::domain::money::Currency;

use super::{
    AdminAct, AuditPage, AuditRow, AuditTotals, BalanceRow, BegunAnew, CloseProgress,
    DeadLetterRow, Due, Entropy, EntryRow, EnvelopePosting, EnvelopeRow, Fund, Funded, HotLayout,
    LeafBatch, Ledger, LedgerError, LetterDeed, MakeGood, PAGE_ROWS_MAX, Parked, PartitionRow,
    Period, PeriodTotals, Portion, ReceivedRow, SETTLE_BATCH_MAX, SetAside, SettleItem, Settled,
    Transfer, Transferred, Under,
};
use books::{Books, Desk, read, write};
use close::MarkLive;
use known::{Known, Secrets};
pub use open::{CONNECTIONS_MAX, OpenError, has_books, migrate};
use settlements::Settlements;
use sql::Fault;
use together::Together;

/// The books in one database.
pub struct PostgresLedger {
    books: Arc<Books>,
    funds: Together<Fund>,
    marks: Together<MarkLive>,
    settlements: Settlements,
    identity: String,
}

#[async_trait]
impl Ledger for PostgresLedger {
    fn now(&self) -> UnixMs {
        self.books.desk.now()
    }

    fn kind(&self) -> &'static str {
        "postgresql"
    }

    /// One that does not answer is no reason: grabs go on without it, and what waits for it has limits
    /// of its own.
    fn ready(&self) -> Result<(), String> {
        if self.funds.is_over() || self.marks.is_over() || self.settlements.is_over() {
            return Err("a task of the ledger has ended: restart the process".to_owned());
        }
        self.books.keeps()
    }

    async fn deposit(&self, transfer: Transfer) -> Result<Transferred, LedgerError> {
        let books = &self.books;
        write!(books, |tx| transfer::deposit(&tx, &books.desk, &transfer))
    }

    async fn withdraw(&self, transfer: Transfer) -> Result<Transferred, LedgerError> {
        let books = &self.books;
        write!(books, |tx| transfer::withdraw(&tx, &books.desk, &transfer))
    }

    async fn balances(
        &self,
        tenant: TenantId,
        owner: PersonId,
        pending: Vec<(EnvelopeId, u32)>,
    ) -> Result<(Vec<BalanceRow>, Vec<bool>), LedgerError> {
        read!(self.books, |db| read::balances(
            db, &tenant, &owner, &pending
        ))
    }

    async fn entries(
        &self,
        tenant: TenantId,
        owner: PersonId,
        currency: Option<Currency>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, LedgerError> {
        let page = (before, limit);
        read!(self.books, |db| read::entries(
            db, &tenant, &owner, currency, page
        ))
    }

    async fn fund(&self, fund: Fund) -> Result<Funded, LedgerError> {
        self.funds.call(fund).await
    }

    async fn funded(&self, fund: Fund) -> Result<Option<Funded>, LedgerError> {
        let one = std::slice::from_ref(&fund);
        let made = read!(self.books, |db| fund::made_before(db, one))?;
        made.into_iter().flatten().next().transpose()
    }

    async fn server_seed(&self, terms: Arc<Terms>) -> Result<ServerSeed, LedgerError> {
        let desk = &self.books.desk;
        if let Some(seed) = leaves::kept_seed(desk, &terms) {
            return Ok(seed);
        }
        read!(self.books, |db| leaves::server_seed(db, desk, &terms))
    }

    async fn mark_live(&self, envelope: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
        self.marks.call(MarkLive(envelope)).await
    }

    async fn gather(&self, envelope: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
        write!(self.books, |tx| close::gather(&tx, envelope))
    }

    fn make_good_up_to(&self, cap: MakeGood) {
        *self.books.desk.make_good.write() = cap;
    }

    async fn settle(
        &self,
        under: Under,
        items: Vec<SettleItem>,
    ) -> Result<Vec<Settled>, LedgerError> {
        if items.len() > SETTLE_BATCH_MAX {
            let why = format!("{} records are more than a batch", items.len());
            return Err(LedgerError::Broken(why));
        }
        self.settlements.settle(under, items).await
    }

    async fn lease(&self, holder: String, for_ms: i64) -> Result<Portion, LedgerError> {
        // The one call that is made again and again, whatever else is done.
        self.books.look().await?;
        write!(self.books, |tx| partitions::lease(&tx, &holder, for_ms))
    }

    async fn serving(&self, holder: String, for_ms: i64) -> Result<usize, LedgerError> {
        write!(self.books, |tx| partitions::serving(&tx, &holder, for_ms))
    }

    async fn parked(
        &self,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, EnvelopeId)>, LedgerError> {
        read!(self.books, |db| set_aside::parked(db, after_row, limit))
    }

    async fn parked_of(
        &self,
        envelope_row: i64,
        after: i64,
        limit: usize,
    ) -> Result<Vec<i64>, LedgerError> {
        let page = (after, limit);
        read!(self.books, |db| set_aside::parked_of(
            db,
            envelope_row,
            page
        ))
    }

    async fn settle_parked(
        &self,
        parked: Parked,
        aside: Option<&'static str>,
    ) -> Result<Vec<Settled>, LedgerError> {
        let care = settle::Care::careful();
        let (at, what) = ((&self.books.desk, &care), (parked, aside));
        write!(self.books, |tx| set_aside::settle_parked(&tx, at, what))
    }

    async fn begin_close(
        &self,
        envelope: EnvelopeId,
        reason: CloseReason,
    ) -> Result<EnvelopeRow, LedgerError> {
        write!(self.books, |tx| close::begin_close(&tx, envelope, reason))
    }

    async fn finish_close(
        &self,
        under: Vec<Under>,
        envelope: EnvelopeId,
        reason: CloseReason,
        taken_count: u32,
    ) -> Result<CloseProgress, LedgerError> {
        let (now, under) = (self.now(), Under::by_partition(&under)?);
        write!(self.books, |tx| async {
            partitions::check(&tx, &under).await?;
            let which = (envelope, &under);
            close::finish_close(&tx, now, which, reason, taken_count).await
        })
    }

    async fn due(
        &self,
        patience_ms: i64,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, Due)>, LedgerError> {
        let (now, page) = (self.now(), (after_row, limit));
        read!(self.books, |db| close::due(db, now, patience_ms, page))
    }

    async fn envelopes(
        &self,
        ids: Vec<EnvelopeId>,
    ) -> Result<Vec<Option<EnvelopeRow>>, LedgerError> {
        if ids.len() > PAGE_ROWS_MAX {
            return Err(LedgerError::Broken("more envelopes than a page".to_owned()));
        }
        read!(self.books, |db| read::envelopes(db, &ids))
    }

    async fn claims(
        &self,
        envelope: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Vec<HeldShare>, LedgerError> {
        read!(self.books, |db| read::claims(db, envelope, from, limit))
    }

    async fn claims_of(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, LedgerError> {
        read!(self.books, |db| read::claims_of(db, &whose))
    }

    async fn best_claim(&self, envelope: EnvelopeId) -> Result<Option<HeldShare>, LedgerError> {
        read!(self.books, |db| read::best_claim(db, envelope))
    }

    async fn sent(
        &self,
        tenant: TenantId,
        sender: PersonId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<EnvelopeRow>, LedgerError> {
        let page = (before, limit);
        read!(self.books, |db| read::sent(db, &tenant, &sender, page))
    }

    async fn received(
        &self,
        tenant: TenantId,
        grabber: PersonId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<ReceivedRow>, LedgerError> {
        let page = (before, limit);
        read!(self.books, |db| read::received(db, &tenant, &grabber, page))
    }

    async fn totals(
        &self,
        tenant: TenantId,
        person: PersonId,
        period: Period,
    ) -> Result<Option<Vec<PeriodTotals>>, LedgerError> {
        read!(self.books, |db| totals::totals(
            db, &tenant, &person, period
        ))
    }

    async fn leaf_batches(
        &self,
        tenant: TenantId,
        limit: usize,
    ) -> Result<Vec<LeafBatch>, LedgerError> {
        read!(self.books, |db| leaves::newest_batches(db, &tenant, limit))
    }

    async fn proof(&self, envelope: EnvelopeId) -> Result<Option<Proof>, LedgerError> {
        let desk = &self.books.desk;
        read!(self.books, |db| async {
            let envelope = rows::known_envelope(db, envelope).await?;
            match envelope.state {
                BookState::Closed(_) => fund::reveal(db, desk, &envelope).await.map(Some),
                _ => Ok(None),
            }
        })
    }

    async fn hot_layout(&self, layout: HotLayout) -> Result<HotLayout, LedgerError> {
        write!(self.books, |tx| partitions::hot_layout(&tx, &layout))
    }

    async fn partitions(&self) -> Result<Vec<PartitionRow>, LedgerError> {
        read!(self.books, |db| partitions::partitions(db))
    }

    async fn advance_epochs(
        &self,
        from: Vec<(Partition, Epoch)>,
        server: String,
    ) -> Result<Vec<PartitionRow>, LedgerError> {
        write!(self.books, |tx| partitions::advance(&tx, &from, &server))
    }

    async fn restored(
        &self,
        past: Vec<(Partition, Epoch)>,
        act: AdminAct,
    ) -> Result<BegunAnew, LedgerError> {
        let desk = &self.books.desk;
        write!(self.books, |tx| operators::restored(&tx, desk, &past, &act))
    }

    async fn record_act(&self, act: AdminAct) -> Result<(), LedgerError> {
        let now = self.now();
        write!(self.books, |tx| operators::record_act(&tx, now, &act))
    }

    async fn freeze(&self, envelope: EnvelopeId, act: AdminAct) -> Result<bool, LedgerError> {
        let now = self.now();
        write!(self.books, |tx| operators::mark_frozen(
            &tx, now, envelope, true, &act
        ))
    }

    async fn unfreeze(&self, envelope: EnvelopeId, act: AdminAct) -> Result<bool, LedgerError> {
        let now = self.now();
        write!(self.books, |tx| operators::mark_frozen(
            &tx, now, envelope, false, &act
        ))
    }

    async fn frozen(
        &self,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, EnvelopeId)>, LedgerError> {
        read!(self.books, |db| operators::frozen(db, after_row, limit))
    }

    async fn acts(
        &self,
        envelope: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<AdminAct>, LedgerError> {
        read!(self.books, |db| operators::acts(db, envelope, limit))
    }

    async fn postings(
        &self,
        envelope: EnvelopeId,
        limit: usize,
    ) -> Result<Vec<EnvelopePosting>, LedgerError> {
        read!(self.books, |db| operators::postings(db, envelope, limit))
    }

    async fn dead_letters(
        &self,
        tenant: Option<TenantId>,
        after: i64,
        limit: usize,
    ) -> Result<Vec<DeadLetterRow>, LedgerError> {
        read!(self.books, |db| letters::dead_letters(
            db,
            tenant.as_ref(),
            after,
            limit
        ))
    }

    async fn dead_letter(&self, row: i64) -> Result<Option<DeadLetterRow>, LedgerError> {
        read!(self.books, |db| letters::find_letter(db, row))
    }

    async fn set_aside(
        &self,
        id: EnvelopeId,
        after: i64,
        limit: usize,
    ) -> Result<SetAside, LedgerError> {
        read!(self.books, |db| letters::of_envelope(db, id, after, limit))
    }

    async fn act_on_letter(
        &self,
        row: i64,
        deed: LetterDeed,
        amount_minor: Option<i64>,
        act: AdminAct,
    ) -> Result<DeadLetterRow, LedgerError> {
        let care = settle::Care::careful();
        let (at, deed) = ((&self.books.desk, &care), (row, deed, amount_minor));
        write!(self.books, |tx| letters::act_on(&tx, at, deed, &act))
    }

    async fn audit_envelopes(
        &self,
        tenant: Option<TenantId>,
        page: AuditPage,
    ) -> Result<Vec<AuditRow>, LedgerError> {
        // What is audited is what the books hold, not what was remembered of them.
        self.books.desk.secrets.forget();
        self.books
            .audited(async |tx| audit::envelopes(tx, tenant.as_ref(), page).await)
            .await
    }

    async fn audit_totals(&self, tenant: Option<TenantId>) -> Result<AuditTotals, LedgerError> {
        self.books
            .audited(async |tx| audit::totals(tx, &self.books.desk, tenant.as_ref()).await)
            .await
    }
}
