//! A server and the people around it.

use std::collections::BTreeMap;
use std::time::Duration;

use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope_proto::v1::account_service_client::AccountServiceClient;
use red_envelope_proto::v1::admin_service_client::AdminServiceClient;
use red_envelope_proto::v1::create_envelope_request::Amount;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::info_service_client::InfoServiceClient;
use red_envelope_proto::v1::{
    AuditRequest, AuditResponse, Balance, CreateEnvelopeRequest, DeadLetter, DepositRequest,
    Envelope, EnvelopeKind, EnvelopeState, ExclusiveShare, GetBalanceRequest, GetEnvelopeRequest,
    GetServiceInfoRequest, GrabOutcome, GrabRequest, GrabResponse, ListDeadLettersRequest,
    ListGrabsRequest, ListGrabsResponse, Money, Share,
};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::fleet::seen_by;
use super::record::Record;
use super::server::{Hot, Server, Start};

/// How long people wait for what must come: five minutes, for a machine that does much else. Who tests a
/// bound of the promises names an instant.
const PATIENCE: Duration = Duration::from_secs(300);

/// The end of that, from now on.
pub fn in_time() -> Instant {
    Instant::now() + PATIENCE
}

/// Minor units of renminbi.
pub fn cny(minor_units: i64) -> Money {
    Money {
        currency_code: "CNY".to_owned(),
        minor_units,
    }
}

/// A LUCKY envelope of a sender.
pub fn lucky(sender: &str, total: Money, share_count: u32) -> CreateEnvelopeRequest {
    CreateEnvelopeRequest {
        sender: sender.to_owned(),
        request_id: format!("{sender}-{:016x}", rand::random::<u64>()),
        kind: EnvelopeKind::Lucky.into(),
        amount: Some(Amount::Total(total)),
        share_count,
        client_nonce: b"a nonce of mine!".to_vec(),
        ..CreateEnvelopeRequest::default()
    }
}

/// An EQUAL envelope of a sender.
pub fn equal(sender: &str, per_share: Money, share_count: u32) -> CreateEnvelopeRequest {
    CreateEnvelopeRequest {
        kind: EnvelopeKind::Equal.into(),
        amount: Some(Amount::PerShare(per_share)),
        ..lucky(sender, cny(0), share_count)
    }
}

/// An EXCLUSIVE envelope of a sender.
pub fn exclusive(sender: &str, shares: &[(&str, i64)]) -> CreateEnvelopeRequest {
    CreateEnvelopeRequest {
        kind: EnvelopeKind::Exclusive.into(),
        amount: None,
        share_count: 0,
        exclusive_currency_code: "CNY".to_owned(),
        exclusive_shares: shares
            .iter()
            .map(|(grabber, amount_minor)| ExclusiveShare {
                grabber: (*grabber).to_owned(),
                amount_minor: *amount_minor,
            })
            .collect(),
        ..lucky(sender, cny(0), 0)
    }
}

/// A server and clients of its services.
pub struct World {
    /// The process.
    pub server: Server,
    /// Its hot store, if that is a process of its own. It outlives the server.
    pub redis: Option<RedisServer>,
    /// Sending and grabbing.
    pub envelopes: EnvelopeServiceClient<Channel>,
    /// Money in and out.
    pub accounts: AccountServiceClient<Channel>,
    /// What operators do.
    pub admin: AdminServiceClient<Channel>,
    /// Of every grab of an envelope that was sent here.
    pub record: Record,
}

impl World {
    /// A new server on an empty folder.
    pub async fn new() -> Self {
        Self::start(Start::default()).await
    }

    /// A new server on an empty folder and an empty hot store of this kind.
    pub async fn on(hot: Hot) -> Self {
        Self::start(Start::on(hot)).await
    }

    /// A new server on an empty folder, under these circumstances.
    pub async fn start(start: Start) -> Self {
        let redis = match start.hot {
            Hot::Embedded => None,
            Hot::Redis => Some(RedisServer::start(Flavour::Debian, &[])),
        };
        let server = Server::start(start.reaching(redis.as_ref())).await;
        Self::around(server, redis).await
    }

    /// A new server on an empty folder, in front of this Redis.
    pub async fn over(redis: RedisServer, start: Start) -> Self {
        let server = Server::start(start.reaching(Some(&redis))).await;
        Self::around(server, Some(redis)).await
    }

    /// A new server on an empty folder, whose flags say how it reaches this Redis.
    pub async fn beside(redis: RedisServer, start: Start) -> Self {
        Self::around(Server::start(start).await, Some(redis)).await
    }

    /// Its Redis, for something that may have it lose what it holds.
    pub fn redis(&mut self) -> &mut RedisServer {
        self.record.replaced();
        self.redis.as_mut().expect("the test has a Redis")
    }

    /// Clients of a server, in front of this Redis.
    pub async fn around(server: Server, redis: Option<RedisServer>) -> Self {
        Self::recorded(server, redis, Record::default()).await
    }

    /// The same, with what was recorded before.
    pub async fn recorded(server: Server, redis: Option<RedisServer>, record: Record) -> Self {
        let public = channel(server.grpc()).await;
        let facts = InfoServiceClient::new(public.clone())
            .get_service_info(GetServiceInfoRequest::default())
            .await;
        let limits = facts.unwrap().into_inner().limits.unwrap();
        record.deals_above(limits.stripe_above_shares);
        let admin = channel(server.ports.admin).await;
        Self {
            server,
            redis,
            envelopes: EnvelopeServiceClient::new(public.clone()),
            accounts: AccountServiceClient::new(public),
            admin: AdminServiceClient::new(admin),
            record,
        }
    }

    /// The same folder and hot store, another process. The one before must be gone.
    pub async fn restarted(self, start: Start) -> Self {
        let Self {
            server,
            redis,
            record,
            ..
        } = self;
        let server = server.again(start.reaching(redis.as_ref())).await;
        Self::recorded(server, redis, record).await
    }

    /// Brings money in, once, however often the books had no time for it.
    pub async fn fund(&mut self, owner: &str, amount: Money) {
        let request = DepositRequest {
            owner: owner.to_owned(),
            request_id: format!("fund-{:016x}", rand::random::<u64>()),
            amount: Some(amount),
            ..DepositRequest::default()
        };
        seen_by(in_time(), "money is brought in", async || {
            let brought = self.accounts.deposit(request.clone()).await;
            unless_unavailable(brought)
        })
        .await;
    }

    /// Sends an envelope, once, and answers it, Live.
    pub async fn send(&mut self, request: CreateEnvelopeRequest) -> Envelope {
        let reply = seen_by(in_time(), "an envelope is sent", async || {
            let sent = self.envelopes.create_envelope(request.clone()).await;
            unless_unavailable(sent)
        })
        .await;
        let envelope = reply.into_inner().envelope.unwrap();
        assert_eq!(envelope.state(), EnvelopeState::Live);
        self.record.begin(&envelope);
        envelope
    }

    /// Grabs, for somebody.
    pub async fn grab(&mut self, envelope_id: &str, grabber: &str) -> GrabResponse {
        self.try_grab(grab_of(envelope_id, grabber)).await.unwrap()
    }

    /// Grabs, whatever the answer.
    pub async fn try_grab(&mut self, request: GrabRequest) -> Result<GrabResponse, Status> {
        self.record.grab(&mut self.envelopes, request).await
    }

    /// The envelope as a viewer sees it.
    pub async fn look(&mut self, envelope_id: &str, viewer: &str) -> Envelope {
        self.try_look(envelope_id, viewer).await.unwrap()
    }

    pub async fn try_look(&mut self, envelope_id: &str, viewer: &str) -> Result<Envelope, Status> {
        let request = GetEnvelopeRequest {
            envelope_id: envelope_id.to_owned(),
            viewer: viewer.to_owned(),
            ..GetEnvelopeRequest::default()
        };
        let reply = self.envelopes.get_envelope(request).await?;
        Ok(reply.into_inner().envelope.unwrap())
    }

    /// Every share that was taken, as a viewer sees it, page by page.
    pub async fn shares(&mut self, envelope_id: &str, viewer: &str) -> Vec<Share> {
        let mut shares = Vec::new();
        let mut request = ListGrabsRequest {
            envelope_id: envelope_id.to_owned(),
            viewer: viewer.to_owned(),
            page_size: 37,
            ..ListGrabsRequest::default()
        };
        loop {
            let page = self.page_of_grabs(&request).await;
            shares.extend(page.shares);
            if page.next_page_token.is_empty() {
                return shares;
            }
            request.page_token = page.next_page_token;
        }
    }

    /// One page, asked for until it comes: the server may be registering its store.
    async fn page_of_grabs(&mut self, request: &ListGrabsRequest) -> ListGrabsResponse {
        seen_by(in_time(), "a page of grabs", async || {
            let page = self.envelopes.list_grabs(request.clone()).await;
            unless_unavailable(page).map(Response::into_inner)
        })
        .await
    }

    /// What somebody has of CNY.
    pub async fn balance(&mut self, owner: &str) -> (i64, i64, i64) {
        let request = GetBalanceRequest {
            owner: owner.to_owned(),
            currency_code: "CNY".to_owned(),
            ..GetBalanceRequest::default()
        };
        let reply = seen_by(in_time(), "a balance", async || {
            unless_unavailable(self.accounts.get_balance(request.clone()).await)
        })
        .await;
        let balance = reply
            .into_inner()
            .balances
            .pop()
            .unwrap_or_else(Balance::default);
        let minor = |money: Option<Money>| money.map_or(0, |m| m.minor_units);
        (
            minor(balance.available),
            minor(balance.pending),
            minor(balance.held),
        )
    }

    /// What somebody can spend of CNY.
    pub async fn available(&mut self, owner: &str) -> i64 {
        self.balance(owner).await.0
    }

    /// Waits until somebody has been paid so much.
    pub async fn until_available(&mut self, owner: &str, amount: i64) {
        self.until_available_by(in_time(), owner, amount).await;
    }

    async fn until_available_by(&mut self, latest: Instant, owner: &str, amount: i64) {
        let what = format!("{owner} has {amount}");
        let paid = async || (self.available(owner).await == amount).then_some(());
        seen_by(latest, &what, paid).await;
    }

    /// Waits until each of these has been paid what stands beside the name, all of them at this instant at
    /// the latest.
    pub async fn until_all_are_paid_by(&mut self, latest: Instant, owed: &BTreeMap<String, i64>) {
        for (owner, amount) in owed {
            self.until_available_by(latest, owner, *amount).await;
        }
        let late = Instant::now().saturating_duration_since(latest);
        assert!(late.is_zero(), "the last one was paid {late:?} too late");
    }

    /// The books of both stores, now.
    pub async fn audit(&mut self) -> AuditResponse {
        self.audited(false).await
    }

    /// The books of both stores, or only what is hot.
    pub async fn audited(&mut self, hot_only: bool) -> AuditResponse {
        let request = AuditRequest {
            operator: "olga".to_owned(),
            reason: "a test".to_owned(),
            hot_only,
            ..AuditRequest::default()
        };
        let reply = seen_by(in_time(), "an audit", async || {
            unless_unavailable(self.admin.audit(request.clone()).await)
        });
        reply.await.into_inner()
    }

    /// What was set aside, and why.
    pub async fn dead_letters(&mut self) -> Vec<DeadLetter> {
        let request = ListDeadLettersRequest {
            operator: "olga".to_owned(),
            reason: "a test".to_owned(),
            ..ListDeadLettersRequest::default()
        };
        let reply = seen_by(in_time(), "the dead letters", async || {
            unless_unavailable(self.admin.list_dead_letters(request.clone()).await)
        });
        reply.await.into_inner().dead_letters
    }

    /// Waits until nothing is in flight; then the books must be clean, and the answers such as
    /// envelopes can give.
    pub async fn audit_when_quiet(&mut self) -> AuditResponse {
        self.record.judge();
        let report = seen_by(in_time(), "the stores are quiet", async || {
            let report = self.audit().await;
            assert!(report.clean, "{:#?}", report.discrepancies);
            report.quiet.then_some(report)
        });
        let report = report.await;
        let hot = self.audited(true).await;
        assert!(hot.clean && hot.hot_only, "{:#?}", hot.discrepancies);
        assert!(hot.envelope_count <= report.envelope_count);
        report
    }

    /// Waits until the server says that it is ready.
    pub async fn until_ready(&self) {
        // Its log, which a failed test prints, has the reasons.
        let ready = async || self.server.readiness().await.0.then_some(());
        seen_by(in_time(), "the server is ready", ready).await;
    }

    /// Grabs until there is an outcome: the server may be registering its store.
    pub async fn grab_until_answered(&mut self, envelope_id: &str, grabber: &str) -> GrabResponse {
        let what = format!("{grabber} is answered");
        seen_by(in_time(), &what, async || {
            let answer = self.try_grab(grab_of(envelope_id, grabber)).await;
            unless_unavailable(answer)
        })
        .await
    }

    /// Grabs for somebody who has none until there is a share. A try without an answer may have won
    /// it: then, and only then, the repetition may hear that it has one already.
    pub async fn win(&mut self, envelope_id: &str, grabber: &str) -> Share {
        let first = self.try_grab(grab_of(envelope_id, grabber)).await;
        let unanswered = first.is_err();
        let answer = match first {
            Ok(answer) => answer,
            Err(_) => self.grab_until_answered(envelope_id, grabber).await,
        };
        let repeated = unanswered && answer.outcome() == GrabOutcome::AlreadyGrabbed;
        assert!(
            answer.outcome() == GrabOutcome::Won || repeated,
            "{grabber}: {answer:?}"
        );
        answer.share.expect("who won has a share")
    }

    /// Waits until the envelope is in this state.
    pub async fn until(
        &mut self,
        envelope_id: &str,
        viewer: &str,
        state: EnvelopeState,
    ) -> Envelope {
        seen_by(in_time(), &format!("it is {state:?}"), async || {
            // The server may be registering its store.
            let envelope = unless_unavailable(self.try_look(envelope_id, viewer).await)?;
            (envelope.state() == state).then_some(envelope)
        })
        .await
    }
}

/// An answer, unless it is that the server can't give one yet.
pub fn unless_unavailable<Answer>(answer: Result<Answer, Status>) -> Option<Answer> {
    if let Err(status) = &answer {
        // Too many at once are told to come again, too.
        let told = [Code::Unavailable, Code::ResourceExhausted];
        assert!(told.contains(&status.code()), "{status}");
    }
    answer.ok()
}

/// A grab by its two names.
pub fn grab_of(envelope_id: &str, grabber: &str) -> GrabRequest {
    GrabRequest {
        envelope_id: envelope_id.to_owned(),
        grabber: grabber.to_owned(),
        ..GrabRequest::default()
    }
}

/// A connection of its own.
pub async fn channel(port: u16) -> Channel {
    Endpoint::from_shared(format!("http://127.0.0.1:{port}"))
        .unwrap()
        .connect()
        .await
        .unwrap()
}
