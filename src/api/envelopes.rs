//! EnvelopeService as it is served: the generated server, but for GrabStream, which has a codec of its
//! own (`grab_codec`).

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{Ready, ready};
use red_envelope_proto::v1::GrabStreamResponse;
use red_envelope_proto::v1::envelope_service_server::{EnvelopeService, EnvelopeServiceServer};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Status, Streaming};
use tower::Service;

use super::grab_codec::{Arrived, GrabCodec};
use super::grab_stream::Session;
use super::{Api, MESSAGE_BYTES_MAX};

const GRAB_STREAM: &str = "/redenvelope.v1.EnvelopeService/GrabStream";

/// The server.
#[derive(Clone)]
pub(super) struct Envelopes<T> {
    generated: EnvelopeServiceServer<T>,
    api: Arc<Api>,
}

impl<T: EnvelopeService> Envelopes<T> {
    pub(super) fn new(rpcs: T, api: Arc<Api>) -> Self {
        let generated = EnvelopeServiceServer::new(rpcs);
        Self {
            generated: generated.max_decoding_message_size(MESSAGE_BYTES_MAX),
            api,
        }
    }
}

impl<T> NamedService for Envelopes<T> {
    const NAME: &'static str = "redenvelope.v1.EnvelopeService";
}

impl<T: EnvelopeService> Service<Request<Body>> for Envelopes<T> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() != GRAB_STREAM {
            return self.generated.call(request);
        }
        let open = Open(Arc::clone(&self.api));
        let mut grpc =
            Grpc::new(GrabCodec).apply_max_message_size_config(Some(MESSAGE_BYTES_MAX), None);
        Box::pin(async move { Ok(grpc.streaming(open, request).await) })
    }
}

/// Opens a session for each stream.
struct Open(Arc<Api>);

impl StreamingService<Arrived> for Open {
    type Response = GrabStreamResponse;
    type ResponseStream = Session;
    type Future = Ready<Result<tonic::Response<Session>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Arrived>>) -> Self::Future {
        let session = Session::open(Arc::clone(&self.0), request.into_inner());
        ready(Ok(tonic::Response::new(session)))
    }
}
