//! The frame around each design: tonic's server as ours sets it up, without our layers, and the one RPC Grab.
//!
//! *Not here*: every other RPC, which is UNIMPLEMENTED; the checks of a request that our server makes.

use std::convert::Infallible;
use std::future::Future;
use std::io::Read as _;
use std::sync::Arc;
use std::task::{Context, Poll};

use red_envelope_proto::v1;
use tokio::net::TcpListener;
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// The only RPC.
const GRAB: &str = "/redenvelope.v1.EnvelopeService/Grab";

/// One share of an envelope.
pub struct Share {
    /// From 0.
    pub number: u32,
    /// What it is worth.
    pub minor: i64,
}

/// What a grab came to.
pub enum Answer {
    /// It took this share.
    Won(Share),
    /// An earlier one took it.
    AlreadyGrabbed(Share),
    /// None is left.
    Empty,
    /// The design gave up: it can be tried again.
    TurnedAway,
}

/// A way to hand out shares.
pub trait Peer: Send + Sync + 'static {
    /// The next share of `envelope` for `grabber`, or the one that the grabber has.
    fn grab(
        &self,
        envelope: &str,
        grabber: &str,
    ) -> impl Future<Output = anyhow::Result<Answer>> + Send;
}

/// The RPC.
struct Grab<P>(Arc<P>);

impl<P: Peer> UnaryService<v1::GrabRequest> for Grab<P> {
    type Response = v1::GrabResponse;
    type Future = BoxFuture<Response<v1::GrabResponse>, Status>;

    fn call(&mut self, request: Request<v1::GrabRequest>) -> Self::Future {
        let peer = Arc::clone(&self.0);
        Box::pin(async move {
            let asked = request.into_inner();
            let answer = peer.grab(&asked.envelope_id, &asked.grabber).await;
            let answer = answer.map_err(|error| Status::internal(format!("{error:#}")))?;
            told(answer, asked.grabber).map(Response::new)
        })
    }
}

fn told(answer: Answer, grabber: String) -> Result<v1::GrabResponse, Status> {
    let (outcome, share) = match answer {
        Answer::Won(share) => (v1::GrabOutcome::Won, Some(share)),
        Answer::AlreadyGrabbed(share) => (v1::GrabOutcome::AlreadyGrabbed, Some(share)),
        Answer::Empty => (v1::GrabOutcome::Empty, None),
        Answer::TurnedAway => return Err(Status::unavailable("too many wait: try again")),
    };
    let share = share.map(|share| v1::Share {
        number: share.number,
        grabber,
        amount: Some(v1::Money {
            currency_code: "CNY".to_owned(),
            minor_units: share.minor,
        }),
        ..v1::Share::default()
    });
    Ok(v1::GrabResponse {
        outcome: outcome.into(),
        share,
        ..v1::GrabResponse::default()
    })
}

/// What `tonic-build` writes for EnvelopeService, for Grab alone.
struct Contract<P>(Arc<P>);

impl<P> Clone for Contract<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P> NamedService for Contract<P> {
    const NAME: &'static str = "redenvelope.v1.EnvelopeService";
}

impl<P, B> Service<http::Request<B>> for Contract<P>
where
    P: Peer,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let grab = Grab(Arc::clone(&self.0));
        Box::pin(async move {
            if request.uri().path() != GRAB {
                return Ok(Status::unimplemented("a peer answers Grab alone").into_http());
            }
            let codec = ProstCodec::<v1::GrabResponse, v1::GrabRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(grab, request).await)
        })
    }
}

/// Prints the port, serves until the standard input ends.
pub async fn serve(peer: impl Peer) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?.port());
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let server = Server::builder()
        .add_service(Contract(Arc::new(peer)))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    tokio::select! {
        served = server => Ok(served?),
        ended = end => {
            ended??;
            Ok(())
        }
    }
}
