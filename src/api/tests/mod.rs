//! The services over the real embedded stores, in this process, through real clients.
//!
//! # Shape
//! [`World`] speaks the domain: deposit, send, grab. Its clock stands still until it is moved, and
//! nothing settles until a test says so.

mod accounts;
mod endings;
mod gated;
mod gates;
mod grabs;
mod letters;
mod operators;
mod raw;
mod sights;
mod streams;

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use red_envelope_proto::v1;
use red_envelope_proto::v1::account_service_client::AccountServiceClient;
use red_envelope_proto::v1::admin_service_client::AdminServiceClient;
use red_envelope_proto::v1::create_envelope_request::Amount;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::info_service_client::InfoServiceClient;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use gated::Gated;

use super::{Deps, Services};
use crate::clock::ManualClock;
use crate::domain::audience::Pepper;
use crate::domain::fairness::{SealKey, SealKeys};
use crate::domain::id::{EnvelopeId, Partition};
use crate::domain::money::Currencies;
use crate::hot::HotStore;
use crate::hot::embedded::{EmbeddedStore, Limits};
use crate::hot::gate::Gate;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{CloseProgress, Ledger, SettleItem, Under};
use crate::publish::{Amounts, Publisher};

/// Noon of a day in 2026.
const NOON_MS: i64 = 1_791_115_200_000;

type EnvelopeClient = EnvelopeServiceClient<Channel>;

struct World {
    clock: ManualClock,
    hot: Arc<Gated>,
    ledger: Arc<SqliteLedger>,
    envelopes: EnvelopeClient,
    accounts: AccountServiceClient<Channel>,
    operators: AdminServiceClient<Channel>,
    about: InfoServiceClient<Channel>,
    public: Channel,
    admin: Channel,
    shutdown: CancellationToken,
    services: Services,
    _serving: DropGuard,
    _folder: TempDir,
}

/// What a world is made with.
struct Making {
    sender_may_grab: bool,
    /// What is told of shares passes it.
    gate: Option<Arc<dyn Gate>>,
}

impl World {
    async fn new() -> Self {
        Self::made(Making {
            sender_may_grab: true,
            gate: None,
        })
        .await
    }

    async fn made(making: Making) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::at(NOON_MS);
        let ticking = || Arc::new(clock.clone());
        let hot = folder.path().join("hot.sqlite");
        let hot = EmbeddedStore::open(&hot, ticking(), Limits::default()).unwrap();
        let hot = Arc::new(Gated::open(Arc::new(hot)));
        let keys = SealKeys::new(vec![SealKey::new(1, [7; 32])]).unwrap();
        let rng = Box::new(StdRng::seed_from_u64(8));
        let books = folder.path().join("ledger.sqlite");
        let ledger = Arc::new(SqliteLedger::open(&books, ticking(), keys, rng).unwrap());
        let hot_door: Arc<dyn HotStore> = Arc::clone(&hot) as _;
        let ledger_door: Arc<dyn Ledger> = Arc::clone(&ledger) as _;
        let amounts = Arc::new(Amounts::new(Arc::clone(&ledger_door)));
        let publisher = Publisher::new(
            Arc::clone(&hot_door),
            Arc::clone(&ledger_door),
            Arc::clone(&amounts),
        );
        let shutdown = CancellationToken::new();
        let services = Services::new(Deps {
            gated: Arc::new(crate::hot::gate::Gated::new(
                Arc::clone(&hot_door),
                making.gate,
            )),
            hot: hot_door,
            ledger: ledger_door,
            publisher: Arc::new(publisher),
            amounts,
            currencies: Arc::new(Currencies::with_declared([("POINTS", 0)]).unwrap()),
            pepper: Pepper([9; 32]),
            sender_may_grab: making.sender_may_grab,
            stripe_above_shares: 0,
            version: "0.0.0-test",
            shutdown: shutdown.clone(),
        });
        let serving = CancellationToken::new();
        let public = serve(services.public_routes(), &serving).await;
        let admin = serve(services.admin_routes(), &serving).await;
        Self {
            clock,
            hot,
            ledger,
            envelopes: EnvelopeServiceClient::new(public.clone()),
            accounts: AccountServiceClient::new(public.clone()),
            about: InfoServiceClient::new(public.clone()),
            operators: AdminServiceClient::new(admin.clone()),
            public,
            admin,
            shutdown,
            services,
            _serving: serving.drop_guard(),
            _folder: folder,
        }
    }

    /// A world in which alice has 10,000 minor units of CNY.
    async fn with_alice() -> Self {
        let world = Self::new().await;
        world.deposit("alice", 10_000).await;
        world
    }

    async fn deposit(&self, owner: &str, minor_units: i64) {
        let request = v1::DepositRequest {
            owner: owner.into(),
            request_id: format!("d{minor_units}"),
            amount: Some(cny(minor_units)),
            ..Default::default()
        };
        self.accounts.clone().deposit(request).await.unwrap();
    }

    /// Available, pending, held.
    async fn balance(&self, owner: &str) -> (i64, i64, i64) {
        let request = v1::GetBalanceRequest {
            owner: owner.into(),
            currency_code: "CNY".into(),
            ..Default::default()
        };
        let answer = self.accounts.clone().get_balance(request).await.unwrap();
        let balance = answer.into_inner().balances.remove(0);
        let minor = |money: Option<v1::Money>| money.unwrap().minor_units;
        (
            minor(balance.available),
            minor(balance.pending),
            minor(balance.held),
        )
    }

    async fn create(
        &self,
        request: v1::CreateEnvelopeRequest,
    ) -> Result<v1::CreateEnvelopeResponse, Status> {
        let answer = self.envelopes.clone().create_envelope(request).await?;
        Ok(answer.into_inner())
    }

    /// The id of a new envelope.
    async fn send(&self, request: v1::CreateEnvelopeRequest) -> String {
        let created = self.create(request).await.unwrap();
        assert!(!created.replayed);
        created.envelope.unwrap().envelope_id
    }

    async fn grab(&self, id: &str, grabber: &str) -> Result<v1::GrabResponse, Status> {
        self.grab_with(v1::GrabRequest {
            envelope_id: id.into(),
            grabber: grabber.into(),
            ..Default::default()
        })
        .await
    }

    async fn grab_with(&self, request: v1::GrabRequest) -> Result<v1::GrabResponse, Status> {
        Ok(self.envelopes.clone().grab(request).await?.into_inner())
    }

    async fn wins(&self, id: &str, grabber: &str) -> i64 {
        let answer = self.grab(id, grabber).await.unwrap();
        assert_eq!(answer.outcome(), v1::GrabOutcome::Won, "{answer:?}");
        answer.share.unwrap().amount.unwrap().minor_units
    }

    async fn get(&self, id: &str, viewer: &str) -> Result<v1::GetEnvelopeResponse, Status> {
        let request = v1::GetEnvelopeRequest {
            envelope_id: id.into(),
            viewer: viewer.into(),
            ..Default::default()
        };
        let answer = self.envelopes.clone().get_envelope(request).await?;
        Ok(answer.into_inner())
    }

    async fn state(&self, id: &str) -> v1::EnvelopeState {
        self.get(id, "alice")
            .await
            .unwrap()
            .envelope
            .unwrap()
            .state()
    }

    async fn recall(&self, id: &str, sender: &str) -> Result<v1::RecallEnvelopeResponse, Status> {
        let request = v1::RecallEnvelopeRequest {
            envelope_id: id.into(),
            sender: sender.into(),
            request_id: "x".into(),
            ..Default::default()
        };
        let answer = self.envelopes.clone().recall_envelope(request).await?;
        Ok(answer.into_inner())
    }

    /// Moves all that is owed into the books, as settlement does.
    async fn settle(&self) {
        let page = 1_000;
        let under = Under {
            partition: Partition::ZERO,
            epoch: self.hot.epoch(Partition::ZERO),
        };
        let entries = self.hot.outbox(Partition::ZERO, None, page).await.unwrap();
        assert!(entries.len() < page, "the test's outbox fits one page");
        let records = entries.iter().flat_map(|entry| entry.records.clone());
        let items = records.map(SettleItem::Pay).collect();
        self.ledger.settle(under, items).await.unwrap();
        let done = entries
            .iter()
            .map(|entry| (entry.id, entry.nonce))
            .collect();
        let settled = self.hot.settled(under.epoch, Partition::ZERO, done).await;
        settled.unwrap();
    }

    /// Balances the books of an envelope that is over, as settlement does.
    async fn close(&self, id: &str) {
        use crate::domain::envelope::HotState;
        self.settle().await;
        let id: EnvelopeId = id.parse().unwrap();
        let views = self.hot.view(vec![id]).await.unwrap();
        let view = views.into_iter().flatten().next().unwrap();
        let HotState::Over(reason) = view.state else {
            panic!("the envelope is not over: {:?}", view.state);
        };
        self.ledger.begin_close(id, reason).await.unwrap();
        let under = Under {
            partition: Partition::ZERO,
            epoch: self.hot.epoch(Partition::ZERO),
        };
        let closed = self
            .ledger
            .finish_close(vec![under], id, reason, view.taken_count);
        let closed = closed.await;
        assert!(matches!(closed, Ok(CloseProgress::Closed(_))), "{closed:?}");
    }
}

async fn serve(routes: Routes, until: &CancellationToken) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = TcpListenerStream::new(listener);
    let until = until.clone().cancelled_owned();
    let server = Server::builder()
        .layer(super::details::Details)
        .layer(super::deadline::Deadlines)
        .add_routes(routes);
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, until));
    let url = format!("http://{address}");
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

fn cny(minor_units: i64) -> v1::Money {
    v1::Money {
        currency_code: "CNY".into(),
        minor_units,
    }
}

/// So much of alice's money in so many shares.
fn lucky(request_id: &str, total: i64, share_count: u32) -> v1::CreateEnvelopeRequest {
    v1::CreateEnvelopeRequest {
        sender: "alice".into(),
        request_id: request_id.into(),
        kind: v1::EnvelopeKind::Lucky.into(),
        amount: Some(Amount::Total(cny(total))),
        share_count,
        ..Default::default()
    }
}

/// Named grabbers with amounts, from alice.
fn exclusive(request_id: &str, shares: &[(&str, i64)]) -> v1::CreateEnvelopeRequest {
    let share = |&(grabber, amount_minor): &(&str, i64)| v1::ExclusiveShare {
        grabber: grabber.into(),
        amount_minor,
    };
    v1::CreateEnvelopeRequest {
        sender: "alice".into(),
        request_id: request_id.into(),
        kind: v1::EnvelopeKind::Exclusive.into(),
        exclusive_shares: shares.iter().map(share).collect(),
        exclusive_currency_code: "CNY".into(),
        ..Default::default()
    }
}

/// Code and stable reason of a failure.
#[track_caller]
fn failure<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    let reason = status.get_details_error_info().map(|info| info.reason);
    (status.code(), reason.unwrap_or_default())
}

fn not_found() -> (Code, String) {
    (Code::NotFound, "ENVELOPE_NOT_FOUND".into())
}

fn refused(reason: &str) -> (Code, String) {
    (Code::FailedPrecondition, reason.into())
}
