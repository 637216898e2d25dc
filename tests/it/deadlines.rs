//! Calls whose time is over before the stores answer: the server says so, and a repetition tells what came of them.
//!
//! The client here sends its deadline and keeps no time of its own, so that what it is told is the server's word.

use std::future::Future;
use std::time::Duration;

use hyper_util::client::legacy::Client as Transport;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::{GetEnvelopeRequest, ListGrabsRequest, RecallEnvelopeRequest};
use tonic::body::Body;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::harness::fleet::Fleet;
use crate::harness::world::{grab_of, in_time};
use crate::harness::{cny, equal};

const FUNDS: i64 = 1_000;
const SHARE: i64 = 10;
const SHARES: u32 = 5;
/// What a caller waits: less than the server waits for its Redis.
const HASTE: Duration = Duration::from_millis(200);

type Unhurried = EnvelopeServiceClient<Transport<HttpConnector, Body>>;

/// A client that keeps no time.
fn unhurried(port: u16) -> Unhurried {
    let transport = Transport::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let origin = format!("http://127.0.0.1:{port}");
    EnvelopeServiceClient::with_origin(transport, origin.parse().unwrap())
}

fn hasty<Asked>(asked: Asked) -> Request<Asked> {
    let mut request = Request::new(asked);
    request.set_timeout(HASTE);
    request
}

/// The server says that the time is over, with what a client needs to know.
async fn is_told_so<Told: std::fmt::Debug>(
    what: &str,
    call: impl Future<Output = Result<Response<Told>, Status>>,
) {
    let told = tokio::time::timeout_at(in_time(), call).await;
    let status = told.expect("an answer").unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{what}: {status}");
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.reason, "DEADLINE_EXCEEDED", "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_time_is_over_is_told_so_by_the_server_and_a_repetition_tells_what_came_of_it()
{
    let mut fleet = Fleet::of(1).await;
    fleet.processes[0].fund("alice", cny(FUNDS)).await;
    let sent = fleet.processes[0].send(equal("alice", cny(SHARE), SHARES));
    let id = sent.await.envelope_id;
    fleet.processes[0].win(&id, "bob").await;
    let client = unhurried(fleet.processes[0].server.grpc());

    fleet.redis.pause();
    let (mut grabs, mut looks, mut lists) = (client.clone(), client.clone(), client.clone());
    let look = GetEnvelopeRequest {
        envelope_id: id.clone(),
        viewer: "bob".to_owned(),
        ..GetEnvelopeRequest::default()
    };
    let list = ListGrabsRequest {
        envelope_id: id.clone(),
        viewer: "bob".to_owned(),
        ..ListGrabsRequest::default()
    };
    let grab = grab_of(&id, "carol");
    let asked = fleet.processes[0].record.ask(&grab);
    assert!(asked.is_some(), "in the history, though without an answer");
    tokio::join!(
        is_told_so("Grab", grabs.grab(hasty(grab))),
        is_told_so("GetEnvelope", looks.get_envelope(hasty(look))),
        is_told_so("ListGrabs", lists.list_grabs(hasty(list))),
    );
    fleet.redis.resume();
    // Whichever of the two took the share.
    let carol = fleet.processes[0].grab_until_answered(&id, "carol").await;
    assert_eq!(carol.share.unwrap().amount, Some(cny(SHARE)), "carol");

    fleet.postgres.pause();
    let (mut creates, mut recalls) = (client.clone(), client);
    let create = equal("alice", cny(SHARE), SHARES);
    let recall = RecallEnvelopeRequest {
        envelope_id: id.clone(),
        sender: "alice".to_owned(),
        request_id: "recalled-in-haste".to_owned(),
        ..RecallEnvelopeRequest::default()
    };
    tokio::join!(
        is_told_so(
            "CreateEnvelope",
            creates.create_envelope(hasty(create.clone()))
        ),
        is_told_so(
            "RecallEnvelope",
            recalls.recall_envelope(hasty(recall.clone()))
        ),
    );
    fleet.postgres.resume();
    let process = &mut fleet.processes[0];
    process.until_ready().await;
    // The same request: one envelope, whichever of the two made it.
    let again = process.send(create).await;
    assert_ne!(again.envelope_id, id);
    let recalled = process.envelopes.recall_envelope(recall).await.unwrap();
    let recalled = recalled.into_inner().envelope.unwrap();
    assert_eq!(recalled.envelope_id, id);
    let left = FUNDS - 2 * SHARE - i64::from(SHARES) * SHARE;
    process.until_available("alice", left).await;
    for winner in ["bob", "carol"] {
        process.until_available(winner, SHARE).await;
    }
    process.audit_when_quiet().await;
}
