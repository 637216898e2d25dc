//! Puts the RPCs on two listeners: what everybody may call, and what operators may.
//!
//! # Shape
//! | listener | services |
//! |---|---|
//! | public | EnvelopeService, AccountService, InfoService, health, reflection v1 and v1alpha |
//! | admin | AdminService, health, reflection v1 and v1alpha |
//!
//! # Bounds
//! `MESSAGE_BYTES_MAX` a request message.
//!
//! # Not here
//! Sockets, connections, deadlines: `listen`, `deadline`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use prost::Message;
use red_envelope_proto::v1;
use red_envelope_proto::v1::account_service_server::{AccountService, AccountServiceServer};
use red_envelope_proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use red_envelope_proto::v1::envelope_service_server::EnvelopeService;
use red_envelope_proto::v1::info_service_server::{InfoService, InfoServiceServer};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use super::envelopes::Envelopes;
use super::priority::Prioritize;
use super::status::ApiError;
use super::{
    Api, Deps, MESSAGE_BYTES_MAX, account, admin_audit, admin_dead_letters, admin_freeze,
    admin_trace, create, decline, get, grab, grab_stream, list_grabs, preview, proof, recall,
    sent_received, server_facts, watch, year_totals,
};
use crate::telemetry::metrics;

/// The RPCs of EnvelopeService, AccountService and InfoService.
#[derive(Clone)]
struct Public(Arc<Api>);

/// The RPCs of AdminService.
#[derive(Clone)]
struct Operators(Arc<Api>);

/// All four services over one pair of stores.
pub struct Services {
    pub(super) api: Arc<Api>,
    health: HealthReporter,
}

impl Services {
    /// Must be called on a runtime: look-ups and watches have tasks of their own, which end when
    /// this value and its routes are dropped.
    pub fn new(deps: Deps) -> Self {
        Self {
            api: Api::new(deps),
            health: HealthReporter::new(),
        }
    }

    /// What `grpc.health.v1` answers for the server and for each of its services. Until it is told
    /// otherwise the server counts as serving, its services as unknown.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving {
            tonic_health::ServingStatus::Serving
        } else {
            tonic_health::ServingStatus::NotServing
        };
        for name in PUBLIC_NAMES.into_iter().chain(ADMIN_NAMES).chain([""]) {
            self.health.set_service_status(name, status).await;
        }
    }

    /// How long the oldest unsettled grab has waited, as settlement measured it.
    pub fn settlement_is_behind(&self, age_ms: i64) {
        self.api.backlog.measured(age_ms);
    }

    /// How late this process is in what it does.
    pub fn runs_late(&self, by: Duration) {
        self.api.priorities.late(by);
        metrics::waits(self.api.gated.wait(), by);
    }

    /// Turns calls away while there are too many: a layer around the routes of both listeners.
    pub fn prioritize(&self) -> Prioritize {
        Prioritize::of(&self.api)
    }

    /// For gateways, clients and everybody else.
    pub fn public_routes(&self) -> Routes {
        let public = Public(Arc::clone(&self.api));
        let envelopes = Envelopes::new(public.clone(), Arc::clone(&self.api));
        let routes = Routes::new(envelopes)
            .add_service(
                AccountServiceServer::new(public.clone())
                    .max_decoding_message_size(MESSAGE_BYTES_MAX),
            )
            .add_service(
                InfoServiceServer::new(public).max_decoding_message_size(MESSAGE_BYTES_MAX),
            );
        self.finish(routes, &PUBLIC_NAMES)
    }

    /// For operators.
    pub fn admin_routes(&self) -> Routes {
        let operators = Operators(Arc::clone(&self.api));
        let routes = Routes::new(
            AdminServiceServer::new(operators).max_decoding_message_size(MESSAGE_BYTES_MAX),
        );
        self.finish(routes, &ADMIN_NAMES)
    }

    fn finish(&self, routes: Routes, names: &[&str]) -> Routes {
        let health = HealthServer::new(HealthService::from_health_reporter(self.health.clone()));
        let v1 = reflection(names).build_v1();
        let v1alpha = reflection(names).build_v1alpha();
        routes
            .add_service(health.max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(
                v1.expect("our own descriptors are sound")
                    .max_decoding_message_size(MESSAGE_BYTES_MAX),
            )
            .add_service(
                v1alpha
                    .expect("our own descriptors are sound")
                    .max_decoding_message_size(MESSAGE_BYTES_MAX),
            )
            .prepare()
    }
}

const PUBLIC_NAMES: [&str; 3] = [
    "redenvelope.v1.EnvelopeService",
    "redenvelope.v1.AccountService",
    "redenvelope.v1.InfoService",
];
const ADMIN_NAMES: [&str; 1] = ["redenvelope.v1.AdminService"];

/// Describes the services of one listener, and the details that errors carry.
fn reflection(names: &[&str]) -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(red_envelope_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_file_descriptor_set(google_rpc())
        .with_service_name("grpc.health.v1.Health");
    names
        .iter()
        .fold(builder, |builder, name| builder.with_service_name(*name))
}

/// `google.rpc` under the paths by which protobuf files import it.
fn google_rpc() -> prost_types::FileDescriptorSet {
    let set = prost_types::FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET);
    let mut set = set.expect("tonic-types carries its own descriptors");
    for file in &mut set.file {
        if let Some(name @ ("status.proto" | "error_details.proto")) = file.name.as_deref() {
            file.name = Some(format!("google/rpc/{name}"));
        }
    }
    set
}

/// A flow's answer as tonic wants it.
fn answered<T>(answer: Result<T, ApiError>) -> Result<Response<T>, Status> {
    Ok(Response::new(answer?))
}

#[tonic::async_trait]
impl EnvelopeService for Public {
    async fn create_envelope(
        &self,
        request: Request<v1::CreateEnvelopeRequest>,
    ) -> Result<Response<v1::CreateEnvelopeResponse>, Status> {
        answered(create::create_envelope(&self.0, request.into_inner()).await)
    }

    async fn get_envelope(
        &self,
        request: Request<v1::GetEnvelopeRequest>,
    ) -> Result<Response<v1::GetEnvelopeResponse>, Status> {
        answered(get::get_envelope(&self.0, request.into_inner()).await)
    }

    async fn batch_get_envelopes(
        &self,
        request: Request<v1::BatchGetEnvelopesRequest>,
    ) -> Result<Response<v1::BatchGetEnvelopesResponse>, Status> {
        answered(get::batch_get_envelopes(&self.0, request.into_inner()).await)
    }

    async fn grab(
        &self,
        request: Request<v1::GrabRequest>,
    ) -> Result<Response<v1::GrabResponse>, Status> {
        answered(grab::grab(&self.0, request.into_inner()).await)
    }

    type GrabStreamStream = grab_stream::Session;

    async fn grab_stream(
        &self,
        _: Request<Streaming<v1::GrabStreamRequest>>,
    ) -> Result<Response<Self::GrabStreamStream>, Status> {
        let words =
            "GrabStream is served by `envelopes`, which reads its messages by another codec";
        Err(ApiError::Internal(words.into()).to_status())
    }

    async fn list_grabs(
        &self,
        request: Request<v1::ListGrabsRequest>,
    ) -> Result<Response<v1::ListGrabsResponse>, Status> {
        answered(list_grabs::list_grabs(&self.0, request.into_inner()).await)
    }

    type WatchEnvelopeStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchEnvelopeResponse, Status>> + Send>>;

    async fn watch_envelope(
        &self,
        request: Request<v1::WatchEnvelopeRequest>,
    ) -> Result<Response<Self::WatchEnvelopeStream>, Status> {
        let watched = watch::watch_envelope(&self.0, request.into_inner()).await?;
        Ok(Response::new(Box::pin(watched)))
    }

    async fn recall_envelope(
        &self,
        request: Request<v1::RecallEnvelopeRequest>,
    ) -> Result<Response<v1::RecallEnvelopeResponse>, Status> {
        answered(recall::recall_envelope(&self.0, request.into_inner()).await)
    }

    async fn decline_envelope(
        &self,
        request: Request<v1::DeclineEnvelopeRequest>,
    ) -> Result<Response<v1::DeclineEnvelopeResponse>, Status> {
        answered(decline::decline_envelope(&self.0, request.into_inner()).await)
    }

    async fn preview_split(
        &self,
        request: Request<v1::PreviewSplitRequest>,
    ) -> Result<Response<v1::PreviewSplitResponse>, Status> {
        answered(preview::preview_split(&self.0, request.into_inner()).await)
    }

    async fn get_fairness_proof(
        &self,
        request: Request<v1::GetFairnessProofRequest>,
    ) -> Result<Response<v1::GetFairnessProofResponse>, Status> {
        answered(proof::get_fairness_proof(&self.0, request.into_inner()).await)
    }

    async fn list_sent_envelopes(
        &self,
        request: Request<v1::ListSentEnvelopesRequest>,
    ) -> Result<Response<v1::ListSentEnvelopesResponse>, Status> {
        answered(sent_received::list_sent_envelopes(&self.0, request.into_inner()).await)
    }

    async fn get_year_totals(
        &self,
        request: Request<v1::GetYearTotalsRequest>,
    ) -> Result<Response<v1::GetYearTotalsResponse>, Status> {
        answered(year_totals::get_year_totals(&self.0, request.into_inner()).await)
    }

    async fn list_received_shares(
        &self,
        request: Request<v1::ListReceivedSharesRequest>,
    ) -> Result<Response<v1::ListReceivedSharesResponse>, Status> {
        answered(sent_received::list_received_shares(&self.0, request.into_inner()).await)
    }
}

#[tonic::async_trait]
impl AccountService for Public {
    async fn deposit(
        &self,
        request: Request<v1::DepositRequest>,
    ) -> Result<Response<v1::DepositResponse>, Status> {
        answered(account::deposit(&self.0, request.into_inner()).await)
    }

    async fn withdraw(
        &self,
        request: Request<v1::WithdrawRequest>,
    ) -> Result<Response<v1::WithdrawResponse>, Status> {
        answered(account::withdraw(&self.0, request.into_inner()).await)
    }

    async fn get_balance(
        &self,
        request: Request<v1::GetBalanceRequest>,
    ) -> Result<Response<v1::GetBalanceResponse>, Status> {
        answered(account::get_balance(&self.0, request.into_inner()).await)
    }

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Result<Response<v1::ListEntriesResponse>, Status> {
        answered(account::list_entries(&self.0, request.into_inner()).await)
    }
}

#[tonic::async_trait]
impl InfoService for Public {
    async fn get_service_info(
        &self,
        request: Request<v1::GetServiceInfoRequest>,
    ) -> Result<Response<v1::GetServiceInfoResponse>, Status> {
        answered(server_facts::get_service_info(&self.0, request.into_inner()).await)
    }
}

#[tonic::async_trait]
impl AdminService for Operators {
    async fn audit(
        &self,
        request: Request<v1::AuditRequest>,
    ) -> Result<Response<v1::AuditResponse>, Status> {
        answered(admin_audit::audit(&self.0, request.into_inner()).await)
    }

    async fn trace_envelope(
        &self,
        request: Request<v1::TraceEnvelopeRequest>,
    ) -> Result<Response<v1::TraceEnvelopeResponse>, Status> {
        answered(admin_trace::trace_envelope(&self.0, request.into_inner()).await)
    }

    async fn freeze_envelope(
        &self,
        request: Request<v1::FreezeEnvelopeRequest>,
    ) -> Result<Response<v1::FreezeEnvelopeResponse>, Status> {
        answered(admin_freeze::freeze_envelope(&self.0, request.into_inner()).await)
    }

    async fn unfreeze_envelope(
        &self,
        request: Request<v1::UnfreezeEnvelopeRequest>,
    ) -> Result<Response<v1::UnfreezeEnvelopeResponse>, Status> {
        answered(admin_freeze::unfreeze_envelope(&self.0, request.into_inner()).await)
    }

    async fn list_dead_letters(
        &self,
        request: Request<v1::ListDeadLettersRequest>,
    ) -> Result<Response<v1::ListDeadLettersResponse>, Status> {
        answered(admin_dead_letters::list_dead_letters(&self.0, request.into_inner()).await)
    }

    async fn replay_dead_letter(
        &self,
        request: Request<v1::ReplayDeadLetterRequest>,
    ) -> Result<Response<v1::ReplayDeadLetterResponse>, Status> {
        answered(admin_dead_letters::replay_dead_letter(&self.0, request.into_inner()).await)
    }

    async fn dismiss_dead_letter(
        &self,
        request: Request<v1::DismissDeadLetterRequest>,
    ) -> Result<Response<v1::DismissDeadLetterResponse>, Status> {
        answered(admin_dead_letters::dismiss_dead_letter(&self.0, request.into_inner()).await)
    }
}
