//! The ledger on SQLite: one file, one writer, every posting one transaction.
//!
//! # Shape
//! | file | what |
//! |---|---|
//! | `open`, `migrations/` | the file: whose it is, its schema, its connections |
//! | `writer` | the queue, the group commit, the thread |
//! | `readers` | snapshots for reads |
//! | `rows`, `post` | rows ↔ domain; accounts, postings, entries |
//! | `transfer`, `leaves`, `fund` | money in and out; commitments; create |
//! | `settle`, `settle_post`, `make_good`, `set_aside`, `letters` | batches; what the reserve pays; what can't be paid now; what operators do about it |
//! | `partitions` | the hot store's layout, and the epoch in which a batch is posted |
//! | `close`, `operators`, `read`, `audit` | the end; acts; questions; sums recomputed |
//!
//! # Ordering
//! Writes take effect in the order of their queue and are answered after the fsync; a read that
//! begins after an answer sees its effect.
//!
//! # Not here
//! The lock on the data folder and backups.

mod audit;
mod close;
mod fund;
mod handle;
#[cfg(test)]
pub mod hooks;
mod leaves;
mod letters;
mod make_good;
mod open;
mod operators;
mod partitions;
mod post;
mod read;
mod readers;
mod rows;
mod set_aside;
mod settle;
mod settle_post;
#[cfg(test)]
mod tests;
mod totals;
mod transfer;
mod writer;

pub use open::OpenError;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::RwLock;
use rusqlite::Connection;

use crate::clock::Clock;
use crate::domain::envelope::{BookState, CloseReason, Terms};
use crate::domain::fairness::{Proof, SealKeys, ServerSeed};
use crate::domain::grab::HeldShare;
use crate::domain::id::{
    EnvelopeId, Epoch, Partition, PartitionCount, PersonId, TENANT_DEFAULT, TenantId, UnixMs,
};
use crate::domain::money::Currency;

use super::{
    AdminAct, AuditPage, AuditRow, AuditTotals, BalanceRow, BegunAnew, CloseProgress,
    DeadLetterRow, Due, Entropy, EntryRow, EnvelopePosting, EnvelopeRow, Fund, Funded, HotLayout,
    LeafBatch, Ledger, LedgerError, LetterDeed, MakeGood, PAGE_ROWS_MAX, Parked, PartitionRow,
    Period, PeriodTotals, Portion, ReceivedRow, SetAside, SettleItem, Settled, Transfer,
    Transferred, Under,
};
use readers::Readers;
use writer::{Books, CALL_COST, Writer};

/// The books in one SQLite file.
pub struct SqliteLedger {
    clock: Arc<dyn Clock>,
    keys: Arc<SealKeys>,
    identity: String,
    make_good: Arc<RwLock<MakeGood>>,
    /// Dropped before the writer: the last connection to close folds the log into the file, and
    /// only one that writes can.
    readers: Readers,
    writer: Writer,
}

/// The default tenant's first seeds are committed to before anybody can ask for an envelope.
fn commit_first(
    db: &Connection,
    now: UnixMs,
    keys: &SealKeys,
    rng: &mut Entropy,
) -> Result<(), OpenError> {
    let tenant = TenantId::parse(TENANT_DEFAULT).expect("the default tenant has a good name");
    let mut books = Books {
        db,
        now,
        keys,
        rng: &mut **rng,
    };
    leaves::commit_to(&mut books, &tenant, 0).map_err(OpenError::Founding)
}

#[async_trait]
impl Ledger for SqliteLedger {
    fn now(&self) -> UnixMs {
        self.clock.now()
    }

    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn ready(&self) -> Result<(), String> {
        self.writer.check()
    }

    async fn deposit(&self, transfer: Transfer) -> Result<Transferred, LedgerError> {
        self.write(move |books| transfer::deposit(books, &transfer))
            .await
    }

    async fn withdraw(&self, transfer: Transfer) -> Result<Transferred, LedgerError> {
        self.write(move |books| transfer::withdraw(books, &transfer))
            .await
    }

    async fn balances(
        &self,
        tenant: TenantId,
        owner: PersonId,
        pending: Vec<(EnvelopeId, u32)>,
    ) -> Result<(Vec<BalanceRow>, Vec<bool>), LedgerError> {
        self.read(move |db| read::balances(db, &tenant, &owner, &pending))
            .await
    }

    async fn entries(
        &self,
        tenant: TenantId,
        owner: PersonId,
        currency: Option<Currency>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, LedgerError> {
        self.read(move |db| read::entries(db, &tenant, &owner, currency, (before, limit)))
            .await
    }

    async fn fund(&self, fund: Fund) -> Result<Funded, LedgerError> {
        self.write(move |books| fund::fund(books, &fund)).await
    }

    async fn funded(&self, fund: Fund) -> Result<Option<Funded>, LedgerError> {
        self.read(move |db| fund::funded(db, &fund)).await
    }

    async fn server_seed(&self, terms: Arc<Terms>) -> Result<ServerSeed, LedgerError> {
        let keys = Arc::clone(&self.keys);
        self.read(move |db| fund::server_seed(db, &keys, &terms))
            .await
    }

    async fn mark_live(&self, envelope: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
        self.write(move |books| close::mark_live(books, envelope))
            .await
    }

    async fn gather(&self, envelope: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
        self.write(move |books| close::gather(books, envelope))
            .await
    }

    fn make_good_up_to(&self, cap: MakeGood) {
        *self.make_good.write() = cap;
    }

    async fn settle(
        &self,
        under: Under,
        items: Vec<SettleItem>,
    ) -> Result<Vec<Settled>, LedgerError> {
        let cap = self.cap();
        let cost = u32::try_from(items.len()).unwrap_or(u32::MAX);
        self.writer
            .call(cost.max(CALL_COST), move |books| {
                partitions::check(books.db, under)?;
                let settled = settle::settle(books, &cap, &items)?;
                fail::fail_point!("settle::before_commit");
                Ok(settled)
            })
            .await
    }

    /// These books have one process, by the lock on their folder.
    async fn lease(&self, _holder: String, _for_ms: i64) -> Result<Portion, LedgerError> {
        Ok(Portion::ALONE)
    }

    async fn serving(&self, _holder: String, _for_ms: i64) -> Result<usize, LedgerError> {
        Ok(0)
    }

    async fn parked(
        &self,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, EnvelopeId)>, LedgerError> {
        self.read(move |db| set_aside::parked(db, after_row, limit))
            .await
    }

    async fn parked_of(
        &self,
        envelope_row: i64,
        after: i64,
        limit: usize,
    ) -> Result<Vec<i64>, LedgerError> {
        self.read(move |db| set_aside::parked_of(db, envelope_row, (after, limit)))
            .await
    }

    async fn settle_parked(
        &self,
        parked: Parked,
        aside: Option<&'static str>,
    ) -> Result<Vec<Settled>, LedgerError> {
        let cap = self.cap();
        let cost = u32::try_from(parked.records).unwrap_or(u32::MAX);
        self.writer
            .call(cost.max(CALL_COST), move |books| {
                set_aside::settle_parked(books, &cap, parked, aside)
            })
            .await
    }

    async fn begin_close(
        &self,
        envelope: EnvelopeId,
        reason: CloseReason,
    ) -> Result<EnvelopeRow, LedgerError> {
        self.write(move |books| close::begin_close(books, envelope, reason))
            .await
    }

    async fn finish_close(
        &self,
        under: Vec<Under>,
        envelope: EnvelopeId,
        reason: CloseReason,
        taken_count: u32,
    ) -> Result<CloseProgress, LedgerError> {
        let under = Under::by_partition(&under)?;
        self.write(move |books| {
            partitions::check_all(books.db, &under)?;
            close::finish_close(books, (envelope, &under), reason, taken_count)
        })
        .await
    }

    async fn due(
        &self,
        patience_ms: i64,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, Due)>, LedgerError> {
        let now = self.now();
        self.read(move |db| close::due(db, now, patience_ms, (after_row, limit)))
            .await
    }

    async fn envelopes(
        &self,
        ids: Vec<EnvelopeId>,
    ) -> Result<Vec<Option<EnvelopeRow>>, LedgerError> {
        if ids.len() > PAGE_ROWS_MAX {
            return Err(LedgerError::Broken("more envelopes than a page".to_owned()));
        }
        self.read(move |db| {
            ids.into_iter()
                .map(|id| rows::find_envelope(db, id))
                .collect()
        })
        .await
    }

    async fn claims(
        &self,
        envelope: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Vec<HeldShare>, LedgerError> {
        self.read(move |db| read::claims(db, envelope, from, limit))
            .await
    }

    async fn claims_of(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, LedgerError> {
        self.read(move |db| read::claims_of(db, &whose)).await
    }

    async fn best_claim(&self, envelope: EnvelopeId) -> Result<Option<HeldShare>, LedgerError> {
        self.read(move |db| read::best_claim(db, envelope)).await
    }

    async fn sent(
        &self,
        tenant: TenantId,
        sender: PersonId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<EnvelopeRow>, LedgerError> {
        self.read(move |db| read::sent(db, &tenant, &sender, (before, limit)))
            .await
    }

    async fn received(
        &self,
        tenant: TenantId,
        grabber: PersonId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<ReceivedRow>, LedgerError> {
        self.read(move |db| read::received(db, &tenant, &grabber, (before, limit)))
            .await
    }

    async fn totals(
        &self,
        tenant: TenantId,
        person: PersonId,
        period: Period,
    ) -> Result<Option<Vec<PeriodTotals>>, LedgerError> {
        self.read(move |db| totals::totals(db, &tenant, &person, period))
            .await
    }

    async fn leaf_batches(
        &self,
        tenant: TenantId,
        limit: usize,
    ) -> Result<Vec<LeafBatch>, LedgerError> {
        self.read(move |db| leaves::newest_batches(db, &tenant, limit))
            .await
    }

    async fn proof(&self, envelope: EnvelopeId) -> Result<Option<Proof>, LedgerError> {
        let keys = Arc::clone(&self.keys);
        self.read(move |db| {
            let envelope = rows::known_envelope(db, envelope)?;
            match envelope.state {
                BookState::Closed(_) => fund::reveal(db, &keys, &envelope).map(Some),
                _ => Ok(None),
            }
        })
        .await
    }

    async fn hot_layout(&self, layout: HotLayout) -> Result<HotLayout, LedgerError> {
        self.write(move |books| partitions::hot_layout(books, &layout))
            .await
    }

    async fn partitions(&self) -> Result<Vec<PartitionRow>, LedgerError> {
        self.read(partitions::partitions).await
    }

    async fn advance_epochs(
        &self,
        from: Vec<(Partition, Epoch)>,
        server: String,
    ) -> Result<Vec<PartitionRow>, LedgerError> {
        self.write(move |books| partitions::advance(books, &from, &server))
            .await
    }

    async fn restored(
        &self,
        past: Vec<(Partition, Epoch)>,
        act: AdminAct,
    ) -> Result<BegunAnew, LedgerError> {
        self.write(move |books| operators::restored(books, &past, &act))
            .await
    }

    async fn record_act(&self, act: AdminAct) -> Result<(), LedgerError> {
        self.write(move |books| operators::record_act(books, &act))
            .await
    }

    async fn freeze(&self, envelope: EnvelopeId, act: AdminAct) -> Result<bool, LedgerError> {
        self.write(move |books| operators::mark_frozen(books, envelope, true, &act))
            .await
    }

    async fn unfreeze(&self, envelope: EnvelopeId, act: AdminAct) -> Result<bool, LedgerError> {
        self.write(move |books| operators::mark_frozen(books, envelope, false, &act))
            .await
    }

    async fn frozen(
        &self,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, EnvelopeId)>, LedgerError> {
        self.read(move |db| operators::frozen(db, after_row, limit))
            .await
    }

    async fn acts(
        &self,
        envelope: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<AdminAct>, LedgerError> {
        self.read(move |db| operators::acts(db, envelope, limit))
            .await
    }

    async fn postings(
        &self,
        envelope: EnvelopeId,
        limit: usize,
    ) -> Result<Vec<EnvelopePosting>, LedgerError> {
        self.read(move |db| operators::postings(db, envelope, limit))
            .await
    }

    async fn dead_letters(
        &self,
        tenant: Option<TenantId>,
        after: i64,
        limit: usize,
    ) -> Result<Vec<DeadLetterRow>, LedgerError> {
        self.read(move |db| letters::dead_letters(db, tenant.as_ref(), after, limit))
            .await
    }

    async fn dead_letter(&self, row: i64) -> Result<Option<DeadLetterRow>, LedgerError> {
        self.read(move |db| letters::find_letter(db, row)).await
    }

    async fn set_aside(
        &self,
        id: EnvelopeId,
        after: i64,
        limit: usize,
    ) -> Result<SetAside, LedgerError> {
        self.read(move |db| letters::of_envelope(db, id, after, limit))
            .await
    }

    async fn act_on_letter(
        &self,
        row: i64,
        deed: LetterDeed,
        amount_minor: Option<i64>,
        act: AdminAct,
    ) -> Result<DeadLetterRow, LedgerError> {
        let cap = self.cap();
        let deed = (row, deed);
        self.write(move |books| letters::act_on(books, &cap, deed, amount_minor, &act))
            .await
    }

    async fn audit_envelopes(
        &self,
        tenant: Option<TenantId>,
        page: AuditPage,
    ) -> Result<Vec<AuditRow>, LedgerError> {
        self.read(move |db| audit::envelopes(db, tenant.as_ref(), page))
            .await
    }

    async fn audit_totals(&self, tenant: Option<TenantId>) -> Result<AuditTotals, LedgerError> {
        let keys = Arc::clone(&self.keys);
        self.read(move |db| audit::totals(db, &keys, tenant.as_ref()))
            .await
    }
}
