//! The door of the simulated ledger, as a process sees it across the network.

use std::sync::Arc;

use async_trait::async_trait;
use red_envelope::domain::envelope::{CloseReason, Terms};
use red_envelope::domain::fairness::{Proof, ServerSeed};
use red_envelope::domain::grab::HeldShare;
use red_envelope::domain::id::{EnvelopeId, Epoch, Partition, PersonId, TenantId, UnixMs};
use red_envelope::domain::money::Currency;
use red_envelope::ledger::{
    AdminAct, AuditPage, AuditRow, AuditTotals, BalanceRow, BegunAnew, CloseProgress,
    DeadLetterRow, Due, EntryRow, EnvelopePosting, EnvelopeRow, Fund, Funded, HotLayout, LeafBatch,
    Ledger, LedgerError, LetterDeed, MakeGood, Parked, PartitionRow, Period, PeriodTotals, Portion,
    ReceivedRow, SetAside, SettleItem, Settled, Transfer, Transferred, Under,
};

use crate::net::{Net, To};
use crate::stores::{Rule, Stores};

pub struct BooksDoor {
    pub net: Net,
    pub process: usize,
}

impl BooksDoor {
    async fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Stores) -> T + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.attempt(|stores| Ok(act(stores))).await
    }

    async fn attempt<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Stores) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let route = (self.process, To::Books);
        self.net.call(route, LedgerError::Unavailable, act).await
    }
}

/// What no step of settlement, publish or a grab asks for.
fn nobody_asks<T>() -> Result<T, LedgerError> {
    Err(LedgerError::Broken("not simulated".to_owned()))
}

#[async_trait]
impl Ledger for BooksDoor {
    fn now(&self) -> UnixMs {
        self.net.shared().stores.books_now()
    }

    fn kind(&self) -> &'static str {
        "simulated"
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    async fn fund(&self, fund: Fund) -> Result<Funded, LedgerError> {
        self.ask(|s| {
            let now = s.books_now();
            s.books.fund(fund, now)
        })
        .await
    }

    async fn server_seed(&self, terms: Arc<Terms>) -> Result<ServerSeed, LedgerError> {
        self.attempt(move |s| s.books.seed(&terms)).await
    }

    async fn mark_live(&self, id: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
        self.attempt(move |s| s.books.mark_live(id)).await
    }

    async fn gather(&self, id: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
        self.attempt(move |s| s.books.gather(id)).await
    }

    /// The simulated reserve has no bound, and an audit that it is not needed.
    fn make_good_up_to(&self, _: MakeGood) {}

    async fn settle(
        &self,
        under: Under,
        items: Vec<SettleItem>,
    ) -> Result<Vec<Settled>, LedgerError> {
        self.attempt(move |s| {
            s.books.stands(under)?;
            let unique = s.keep(Rule::UniqueClaims);
            Ok(s.books.settle(items, unique))
        })
        .await
    }

    async fn lease(&self, holder: String, for_ms: i64) -> Result<Portion, LedgerError> {
        self.ask(move |s| {
            let now = s.books_now();
            s.books.lease(holder, for_ms, now)
        })
        .await
    }

    async fn serving(&self, _: String, _: i64) -> Result<usize, LedgerError> {
        nobody_asks()
    }

    async fn parked(
        &self,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, EnvelopeId)>, LedgerError> {
        self.ask(move |s| s.books.parked(after_row, limit)).await
    }

    async fn parked_of(
        &self,
        envelope_row: i64,
        after: i64,
        limit: usize,
    ) -> Result<Vec<i64>, LedgerError> {
        self.ask(move |s| s.books.parked_of(envelope_row, after, limit))
            .await
    }

    async fn settle_parked(
        &self,
        parked: Parked,
        _: Option<&'static str>,
    ) -> Result<Vec<Settled>, LedgerError> {
        self.ask(move |s| s.books.settle_parked(parked.envelope_row))
            .await
    }

    async fn begin_close(
        &self,
        id: EnvelopeId,
        reason: CloseReason,
    ) -> Result<EnvelopeRow, LedgerError> {
        self.attempt(move |s| s.books.begin_close(id, reason)).await
    }

    async fn finish_close(
        &self,
        under: Vec<Under>,
        id: EnvelopeId,
        reason: CloseReason,
        taken_count: u32,
    ) -> Result<CloseProgress, LedgerError> {
        Under::by_partition(&under)?;
        self.attempt(move |s| {
            let stands = |under: &Under| s.books.stands(*under);
            under.iter().try_for_each(stands)?;
            let replaced = under.iter().any(|under| under.epoch != Epoch::FIRST);
            let when = (s.books_now(), replaced);
            s.books.finish_close(id, (reason, taken_count), when)
        })
        .await
    }

    async fn due(
        &self,
        patience_ms: i64,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, Due)>, LedgerError> {
        self.ask(move |s| s.books.due(patience_ms, after_row, limit, s.books_now()))
            .await
    }

    async fn envelopes(
        &self,
        ids: Vec<EnvelopeId>,
    ) -> Result<Vec<Option<EnvelopeRow>>, LedgerError> {
        self.ask(move |s| ids.into_iter().map(|id| s.books.row(id)).collect())
            .await
    }

    async fn claims(
        &self,
        id: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Vec<HeldShare>, LedgerError> {
        self.ask(move |s| s.books.claims(id, from, limit)).await
    }

    async fn claims_of(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, LedgerError> {
        self.ask(move |s| {
            let claim = |(id, who): &_| s.books.claim_of(who, *id);
            whose.iter().map(claim).collect()
        })
        .await
    }

    async fn freeze(&self, id: EnvelopeId, _: AdminAct) -> Result<bool, LedgerError> {
        self.attempt(move |s| s.books.mark(id, true)).await
    }

    async fn unfreeze(&self, id: EnvelopeId, _: AdminAct) -> Result<bool, LedgerError> {
        self.attempt(move |s| s.books.mark(id, false)).await
    }

    async fn frozen(
        &self,
        after_row: i64,
        limit: usize,
    ) -> Result<Vec<(i64, EnvelopeId)>, LedgerError> {
        self.ask(move |s| s.books.frozen(after_row, limit)).await
    }

    // ---- not simulated ----

    async fn deposit(&self, _: Transfer) -> Result<Transferred, LedgerError> {
        nobody_asks()
    }

    async fn withdraw(&self, _: Transfer) -> Result<Transferred, LedgerError> {
        nobody_asks()
    }

    async fn balances(
        &self,
        _: TenantId,
        _: PersonId,
        _: Vec<(EnvelopeId, u32)>,
    ) -> Result<(Vec<BalanceRow>, Vec<bool>), LedgerError> {
        nobody_asks()
    }

    async fn entries(
        &self,
        _: TenantId,
        _: PersonId,
        _: Option<Currency>,
        _: Option<i64>,
        _: usize,
    ) -> Result<Vec<EntryRow>, LedgerError> {
        nobody_asks()
    }

    async fn funded(&self, _: Fund) -> Result<Option<Funded>, LedgerError> {
        nobody_asks()
    }

    async fn best_claim(&self, _: EnvelopeId) -> Result<Option<HeldShare>, LedgerError> {
        nobody_asks()
    }

    async fn sent(
        &self,
        _: TenantId,
        _: PersonId,
        _: Option<i64>,
        _: usize,
    ) -> Result<Vec<EnvelopeRow>, LedgerError> {
        nobody_asks()
    }

    async fn received(
        &self,
        _: TenantId,
        _: PersonId,
        _: Option<i64>,
        _: usize,
    ) -> Result<Vec<ReceivedRow>, LedgerError> {
        nobody_asks()
    }

    async fn totals(
        &self,
        _: TenantId,
        _: PersonId,
        _: Period,
    ) -> Result<Option<Vec<PeriodTotals>>, LedgerError> {
        nobody_asks()
    }

    async fn leaf_batches(&self, _: TenantId, _: usize) -> Result<Vec<LeafBatch>, LedgerError> {
        nobody_asks()
    }

    async fn proof(&self, _: EnvelopeId) -> Result<Option<Proof>, LedgerError> {
        nobody_asks()
    }

    async fn hot_layout(&self, _: HotLayout) -> Result<HotLayout, LedgerError> {
        nobody_asks()
    }

    async fn partitions(&self) -> Result<Vec<PartitionRow>, LedgerError> {
        nobody_asks()
    }

    async fn advance_epochs(
        &self,
        _: Vec<(Partition, Epoch)>,
        _: String,
    ) -> Result<Vec<PartitionRow>, LedgerError> {
        nobody_asks()
    }

    async fn restored(
        &self,
        _: Vec<(Partition, Epoch)>,
        _: AdminAct,
    ) -> Result<BegunAnew, LedgerError> {
        nobody_asks()
    }

    async fn record_act(&self, _: AdminAct) -> Result<(), LedgerError> {
        nobody_asks()
    }

    async fn acts(&self, _: Option<EnvelopeId>, _: usize) -> Result<Vec<AdminAct>, LedgerError> {
        nobody_asks()
    }

    async fn postings(&self, _: EnvelopeId, _: usize) -> Result<Vec<EnvelopePosting>, LedgerError> {
        nobody_asks()
    }

    async fn dead_letters(
        &self,
        _: Option<TenantId>,
        _: i64,
        _: usize,
    ) -> Result<Vec<DeadLetterRow>, LedgerError> {
        nobody_asks()
    }

    async fn dead_letter(&self, _: i64) -> Result<Option<DeadLetterRow>, LedgerError> {
        nobody_asks()
    }

    /// No letter is there: the audit says so.
    async fn set_aside(&self, id: EnvelopeId, _: i64, _: usize) -> Result<SetAside, LedgerError> {
        let set_aside = move |s: &mut Stores| SetAside {
            parked_count: s.books.parked_count(id),
            letters: Vec::new(),
        };
        self.ask(set_aside).await
    }

    async fn act_on_letter(
        &self,
        _: i64,
        _: LetterDeed,
        _: Option<i64>,
        _: AdminAct,
    ) -> Result<DeadLetterRow, LedgerError> {
        nobody_asks()
    }

    async fn audit_envelopes(
        &self,
        _: Option<TenantId>,
        _: AuditPage,
    ) -> Result<Vec<AuditRow>, LedgerError> {
        nobody_asks()
    }

    async fn audit_totals(&self, _: Option<TenantId>) -> Result<AuditTotals, LedgerError> {
        nobody_asks()
    }
}
