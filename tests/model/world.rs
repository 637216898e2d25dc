//! Both stores in a folder of their own, settlement between them, and a clock that is moved.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use red_envelope::audit::{self, AuditOptions, AuditReport};
use red_envelope::clock::{Clock, ManualClock};
use red_envelope::domain::audience::Audience;
use red_envelope::domain::books::DiscrepancyKind;
use red_envelope::domain::envelope::{CloseReason, Draft, ExclusiveShare, Kind, Reveal};
use red_envelope::domain::fairness::{SealKey, SealKeys};
use red_envelope::domain::grab::{Grab, GrabReply, Grant, Outcome};
use red_envelope::domain::id::{EnvelopeId, Partition, PersonId, TenantId};
use red_envelope::domain::money::{Currency, Money};
use red_envelope::domain::split::Split;
use red_envelope::domain::stripes::StripeCount;
use red_envelope::hot::embedded::{EmbeddedStore, Limits};
use red_envelope::hot::redis::Timing;
use red_envelope::hot::{DeclineReply, HotStore, Mark};
use red_envelope::ledger::postgres::{OpenError, PostgresLedger};
use red_envelope::ledger::sqlite::SqliteLedger;
use red_envelope::ledger::{AdminAct, EnvelopeRow, Fund, Ledger, LedgerError, Transfer};
use red_envelope::publish::{Amounts, Publisher, marks};
use red_envelope::settle::{Drained, Settlement, Swept};

/// When a world begins: noon, UTC, on 2026-11-23.
pub const NOON_MS: i64 = 1_795_435_200_000;
/// How long a world's envelopes can be grabbed.
pub const EXPIRES_IN_MS: i64 = 3_600_000;

/// Rounds that settle a world's backlog: each has a drain and a sweep, and the largest test needs
/// one for the parked, one for the close and one to see that nothing is left.
const ROUNDS_MAX: usize = 20;

/// One process: two stores and what stands between them.
pub struct World {
    folder: tempfile::TempDir,
    pub clock: ManualClock,
    stores: Stores,
    requests: u32,
}

/// What goes away with the process.
struct Stores {
    embedded: Arc<EmbeddedStore>,
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    publisher: Arc<Publisher>,
    settlement: Settlement,
}

/// How long what is in front of a Redis waits for it: longer than usual, for a machine that does much beside the
/// tests.
pub fn patient() -> Timing {
    Timing {
        response: Duration::from_secs(10),
        connect: Duration::from_secs(10),
        ..Timing::default()
    }
}

/// Tries to open books: each has two seconds for a connection, which a busy machine may need for something else.
const OPENS_MAX: usize = 10;

/// Books in a PostgreSQL that is there.
pub async fn books_at(url: &str, clock: &Arc<dyn Clock>, seed: u64) -> PostgresLedger {
    for _ in 0..OPENS_MAX {
        let keys = SealKeys::new(vec![SealKey::new(1, [7; 32])]).unwrap();
        let rng = Box::new(StdRng::seed_from_u64(seed));
        match PostgresLedger::open(url, Arc::clone(clock), keys, rng).await {
            Err(OpenError::Ledger(LedgerError::Unavailable(_))) => {}
            opened => return opened.unwrap(),
        }
    }
    panic!("the books were never in reach");
}

pub fn tenant() -> TenantId {
    TenantId::parse("").unwrap()
}

pub fn person(name: &str) -> PersonId {
    PersonId::parse(name).unwrap()
}

pub fn cny() -> Currency {
    Currency::from_code("CNY").unwrap()
}

/// A lucky envelope that anyone may grab for an hour.
pub fn lucky(sender: &str, total_minor: i64, share_count: u32) -> Draft {
    Draft {
        tenant: tenant(),
        sender: person(sender),
        kind: Kind::Lucky,
        currency: cny(),
        total_minor,
        share_count,
        min_minor: 1,
        max_minor: total_minor,
        split: Some(Split::DoubleMean),
        exclusive: Vec::new(),
        audience: Audience::Anyone,
        passphrase: None,
        greeting: "恭喜发财".to_owned(),
        cover_id: String::new(),
        reveal: Reveal::AfterGrab,
        labels: BTreeMap::new(),
        opens_at: None,
        expires_in_ms: EXPIRES_IN_MS,
        client_nonce: b"nonce".to_vec(),
        stripes: StripeCount::ONE,
    }
}

/// The same amount for everybody.
pub fn equal(sender: &str, each_minor: i64, share_count: u32) -> Draft {
    Draft {
        kind: Kind::Equal,
        min_minor: each_minor,
        max_minor: each_minor,
        split: Some(Split::Even),
        ..lucky(sender, each_minor * i64::from(share_count), share_count)
    }
}

/// Named grabbers with amounts.
pub fn exclusive(sender: &str, shares: &[(&str, i64)]) -> Draft {
    let exclusive = shares.iter().map(|(name, amount_minor)| ExclusiveShare {
        grabber: person(name),
        amount_minor: *amount_minor,
    });
    let total = shares.iter().map(|(_, amount)| amount).sum();
    let count = u32::try_from(shares.len()).unwrap();
    Draft {
        kind: Kind::Exclusive,
        split: None,
        exclusive: exclusive.collect(),
        audience: Audience::Named(shares.iter().map(|(name, _)| person(name)).collect()),
        ..lucky(sender, total, count)
    }
}

impl Stores {
    fn open(folder: &std::path::Path, clock: &ManualClock, seed: u64) -> Self {
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let hot_file = folder.join("hot.sqlite");
        let embedded = EmbeddedStore::open(&hot_file, Arc::clone(&shared), Limits::default());
        let embedded = Arc::new(embedded.unwrap());
        let hot: Arc<dyn HotStore> = embedded.clone();
        let keys = SealKeys::new(vec![SealKey::new(1, [7; 32])]).unwrap();
        let rng = Box::new(StdRng::seed_from_u64(seed));
        let ledger_file = folder.join("ledger.sqlite");
        let ledger = SqliteLedger::open(&ledger_file, shared, keys, rng).unwrap();
        let ledger: Arc<dyn Ledger> = Arc::new(ledger);
        let amounts = Arc::new(Amounts::new(Arc::clone(&ledger)));
        let publisher = Publisher::new(hot.clone(), ledger.clone(), amounts.clone());
        let publisher = Arc::new(publisher);
        let settlement = Settlement::new(
            hot.clone(),
            ledger.clone(),
            publisher.clone(),
            amounts,
            "first".to_owned(),
        );
        Self {
            embedded,
            hot,
            ledger,
            publisher,
            settlement,
        }
    }
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::at(NOON_MS);
        let stores = Stores::open(folder.path(), &clock, 1);
        Self {
            folder,
            clock,
            stores,
            requests: 0,
        }
    }

    /// Ends the process cleanly and starts another one over the same files.
    pub async fn reopen(self) -> Self {
        let Self {
            folder,
            clock,
            stores,
            requests,
        } = self;
        stores.embedded.shutdown().await;
        drop(stores);
        let seed = u64::from(requests) + 1_000;
        let stores = Stores::open(folder.path(), &clock, seed);
        Self {
            folder,
            clock,
            stores,
            requests,
        }
    }

    pub fn hot(&self) -> &dyn HotStore {
        &*self.stores.hot
    }

    pub fn ledger(&self) -> &dyn Ledger {
        &*self.stores.ledger
    }

    /// Both doors, for what happens meanwhile.
    pub fn doors(&self) -> (Arc<dyn HotStore>, Arc<dyn Ledger>) {
        (
            Arc::clone(&self.stores.hot),
            Arc::clone(&self.stores.ledger),
        )
    }

    pub fn settlement(&self) -> &Settlement {
        &self.stores.settlement
    }

    /// A second drainer and sweeper over the same stores, as another process would have.
    pub fn second_settlement(&self) -> Settlement {
        let stores = &self.stores;
        Settlement::new(
            stores.hot.clone(),
            stores.ledger.clone(),
            stores.publisher.clone(),
            Arc::new(Amounts::new(stores.ledger.clone())),
            "second".to_owned(),
        )
    }

    /// The ledger's file, for what no door allows.
    pub fn ledger_file(&self) -> rusqlite::Connection {
        let file = self.folder.path().join("ledger.sqlite");
        rusqlite::Connection::open(file).unwrap()
    }

    pub fn request_id(&mut self) -> PersonId {
        self.requests += 1;
        person(&format!("r{}", self.requests))
    }

    pub fn transfer(&mut self, owner: &str, minor: i64) -> Transfer {
        Transfer {
            tenant: tenant(),
            owner: person(owner),
            request_id: self.request_id(),
            amount: Money {
                currency: cny(),
                minor,
            },
            reference: "a test".to_owned(),
        }
    }

    pub async fn deposit(&mut self, owner: &str, minor: i64) {
        let transfer = self.transfer(owner, minor);
        self.ledger().deposit(transfer).await.unwrap();
    }

    /// Holds the money, and no more.
    pub async fn fund(&mut self, draft: Draft) -> EnvelopeId {
        let fund = Fund {
            request_id: self.request_id(),
            request_hash: [0; 32],
            draft,
        };
        self.ledger().fund(fund).await.unwrap().envelope.id
    }

    pub async fn publish(&self, id: EnvelopeId) {
        self.stores.publisher.publish(id).await.unwrap();
    }

    pub fn publisher(&self) -> &Publisher {
        &self.stores.publisher
    }

    /// Holds money that its sender is given for it.
    pub async fn fund_for(&mut self, draft: Draft) -> EnvelopeId {
        let (sender, total) = (draft.sender.clone(), draft.total_minor);
        self.deposit(sender.as_str(), total).await;
        self.fund(draft).await
    }

    /// An envelope that is live; its sender is given the money for it.
    pub async fn live(&mut self, draft: Draft) -> EnvelopeId {
        let id = self.fund_for(draft).await;
        self.publish(id).await;
        id
    }

    pub async fn grab(&self, id: EnvelopeId, who: &str) -> GrabReply {
        let grab = Grab {
            partition: Partition::ZERO,
            epoch: self.hot().epoch(Partition::ZERO),
            tenant: tenant(),
            envelope: id,
            grabber: person(who),
            phrase: None,
        };
        self.hot().grab(vec![grab]).await.unwrap().remove(0)
    }

    /// A grab that must win.
    pub async fn win(&self, id: EnvelopeId, who: &str) -> Grant {
        match self.grab(id, who).await {
            GrabReply::Outcome(Outcome::Won(grant)) => grant,
            other => panic!("{who} did not win: {other:?}"),
        }
    }

    pub async fn decline(&self, id: EnvelopeId, who: &str) -> DeclineReply {
        let epoch = self.hot().epoch(Partition::ZERO);
        let decline = self.hot().decline(epoch, tenant(), id, person(who));
        decline.await.unwrap()
    }

    /// What a recall writes; the sweeper does the rest.
    pub async fn recall(&self, id: EnvelopeId) {
        let begun = self.ledger().begin_close(id, CloseReason::Recalled).await;
        begun.unwrap();
    }

    pub fn act(&self, name: &str, id: EnvelopeId) -> AdminAct {
        AdminAct {
            act: name.to_owned(),
            envelope: Some(id),
            operator: person("olga"),
            reason: "a test".to_owned(),
            at: self.clock.now(),
            result: "done".to_owned(),
        }
    }

    pub async fn freeze(&self, id: EnvelopeId) {
        let act = self.act("freeze", id);
        let frozen = marks::freeze(self.hot(), self.ledger(), id, act).await;
        frozen.unwrap();
    }

    pub async fn unfreeze(&self, id: EnvelopeId) {
        let act = self.act("unfreeze", id);
        let unfrozen = marks::unfreeze(self.hot(), self.ledger(), id, act).await;
        unfrozen.unwrap();
    }

    /// Has the hot store find that an invariant would break.
    pub async fn break_invariant(&self, id: EnvelopeId) {
        self.stores.embedded.break_invariant(id).await.unwrap();
    }

    /// The hot store's mark.
    pub async fn marked(&self, id: EnvelopeId) -> Option<Mark> {
        let views = self.hot().view(vec![id]).await.unwrap();
        views.into_iter().flatten().next().and_then(|v| v.frozen)
    }

    pub async fn drain(&self) -> Drained {
        self.settlement().drain_once().await.unwrap()
    }

    /// Sweeps, and publishes what the sweep found.
    pub async fn sweep(&self) -> Swept {
        self.settlement().measure_once().await.unwrap();
        let swept = self.settlement().sweep_once().await.unwrap();
        self.settlement().publish_once().await.unwrap();
        swept
    }

    /// Drains and sweeps until nothing changes any more.
    pub async fn settle(&self) {
        for _ in 0..ROUNDS_MAX {
            let drained = self.drain().await;
            let swept = self.sweep().await;
            let moved = drained.records + swept.closed + swept.unparked + swept.unpublished.len();
            if moved == 0 {
                return;
            }
        }
        panic!("settlement finds work without end");
    }

    pub async fn row(&self, id: EnvelopeId) -> EnvelopeRow {
        let rows = self.ledger().envelopes(vec![id]).await.unwrap();
        rows.into_iter().flatten().next().unwrap()
    }

    /// What somebody can spend.
    pub async fn available(&self, who: &str) -> i64 {
        let balances = self.ledger().balances(tenant(), person(who), Vec::new());
        let (rows, _) = balances.await.unwrap();
        rows.iter().map(|row| row.available_minor).sum()
    }

    pub async fn audit(&self) -> AuditReport {
        let audited = audit::run(self.hot(), self.ledger(), AuditOptions::default());
        audited.await.unwrap()
    }

    /// An audit of what the hot store holds.
    pub async fn audit_what_is_hot(&self) -> AuditReport {
        let options = AuditOptions {
            hot_only: true,
            ..AuditOptions::default()
        };
        let audited = audit::run(self.hot(), self.ledger(), options);
        audited.await.unwrap()
    }

    /// The audit finds nothing wrong, nor does one of what is hot.
    pub async fn is_clean(&self) -> AuditReport {
        let report = self.audit().await;
        assert!(report.clean, "{:#?}", report.discrepancies);
        let hot = self.audit_what_is_hot().await;
        assert!(hot.clean, "{:#?}", hot.discrepancies);
        assert!(hot.envelope_count <= report.envelope_count);
        report
    }

    /// The audit finds wrongs of exactly these kinds.
    pub async fn is_wrong_by(&self, kinds: &[DiscrepancyKind]) {
        let report = self.audit().await;
        let mut found: Vec<_> = Vec::new();
        for discrepancy in &report.discrepancies {
            if !found.contains(&discrepancy.kind) {
                found.push(discrepancy.kind);
            }
        }
        let all = kinds.iter().all(|kind| found.contains(kind)) && found.len() == kinds.len();
        assert!(
            all && !report.clean,
            "{kinds:?}: {:#?}",
            report.discrepancies
        );
    }
}
