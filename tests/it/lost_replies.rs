//! Replies that are lost on the way, at both hops: whoever repeats the same call learns the same
//! answer, and nothing takes effect twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::{
    CreateEnvelopeRequest, EnvelopeState, GrabOutcome, RecallEnvelopeRequest,
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::harness::proxy::Proxy;
use crate::harness::world::{channel, grab_of};
use crate::harness::{Hot, Start, World, cny, equal};

/// Clients that send, grab and recall at the same time.
const CLIENTS: usize = 8;
/// Tries that all clients make together before the storm ends: each is a call that may be cut.
const TRIES: usize = 10_000;
/// Tries of one call before it counts as never answered.
const TRIES_OF_A_CALL_MAX: usize = 2_000;
/// Between two beats of a storm.
const CALM: Duration = Duration::from_millis(15);
/// Minor units of a share, and shares of an envelope.
const SHARE: i64 = 7;
const SHARES: u32 = 3;

/// A storm over a wire: replies are swallowed for so many beats, then all goes well for as many,
/// then everything is cut; until it is called off.
async fn storm(wire: Arc<Proxy>, swallowing: u32, over: Arc<AtomicBool>) {
    let mut beats = tokio::time::interval(CALM);
    let mut beat = 0_u32;
    while !over.load(Ordering::SeqCst) {
        beats.tick().await;
        beat += 1;
        match beat % (2 * swallowing + 2) {
            0 => wire.cut(),
            n => wire.swallow_replies(n <= swallowing),
        }
    }
    wire.swallow_replies(false);
}

/// Repeats one call until it is answered; counts the tries.
async fn until_answered<Answer, Called>(
    tries: &AtomicUsize,
    mut call: impl FnMut() -> Called,
) -> Answer
where
    Called: Future<Output = Result<Answer, tonic::Status>>,
{
    for _ in 0..TRIES_OF_A_CALL_MAX {
        tries.fetch_add(1, Ordering::SeqCst);
        match call().await {
            Ok(answer) => return answer,
            Err(status) => {
                let lost = matches!(
                    status.code(),
                    tonic::Code::Unavailable
                        | tonic::Code::Unknown
                        | tonic::Code::Cancelled
                        | tonic::Code::Internal
                        | tonic::Code::DeadlineExceeded
                );
                assert!(lost, "{status}");
                tokio::task::yield_now().await;
            }
        }
    }
    panic!("a call was never answered");
}

/// What one client did: envelopes that it sent, grabbed once and recalled.
#[derive(Default)]
struct Done {
    sent: Vec<String>,
    wins: usize,
}

/// Sends, grabs twice and recalls, again and again, until there were tries enough.
async fn a_client(
    number: usize,
    client: EnvelopeServiceClient<Channel>,
    tries: Arc<AtomicUsize>,
) -> Done {
    let mut done = Done::default();
    let sender = format!("sender-{number}");
    for round in 0.. {
        if tries.load(Ordering::SeqCst) >= TRIES {
            break;
        }
        let request = CreateEnvelopeRequest {
            request_id: format!("send-{round}"),
            ..equal(&sender, cny(SHARE), SHARES)
        };
        let call = || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.create_envelope(request).await }
        };
        let created = until_answered(&tries, call).await.into_inner();
        let id = created.envelope.unwrap().envelope_id;
        // Asked once more it is the same envelope, and says that it was there.
        let again = until_answered(&tries, call).await.into_inner();
        assert!(again.replayed);
        assert_eq!(again.envelope.unwrap().envelope_id, id);
        let grab = || {
            let mut client = client.clone();
            let request = grab_of(&id, &format!("grabber-{number}"));
            async move { client.grab(request).await }
        };
        let first = until_answered(&tries, grab).await.into_inner();
        let second = until_answered(&tries, grab).await.into_inner();
        assert!(matches!(
            first.outcome(),
            GrabOutcome::Won | GrabOutcome::AlreadyGrabbed
        ));
        assert_eq!(second.outcome(), GrabOutcome::AlreadyGrabbed);
        assert_eq!(first.share.unwrap().number, second.share.unwrap().number);
        done.wins += 1;
        let recall = RecallEnvelopeRequest {
            envelope_id: id.clone(),
            sender: sender.clone(),
            request_id: format!("recall-{round}"),
            ..RecallEnvelopeRequest::default()
        };
        until_answered(&tries, || {
            let (mut client, recall) = (client.clone(), recall.clone());
            async move { client.recall_envelope(recall).await }
        })
        .await;
        done.sent.push(id);
    }
    done
}

/// Clients of the server at `grpc` under a storm over `wire` that swallows for so many beats; then
/// every unit is where it should be.
async fn nothing_takes_effect_twice(mut world: World, wire: Proxy, (grpc, swallowing): (u16, u32)) {
    for number in 0..CLIENTS {
        world
            .fund(&format!("sender-{number}"), cny(1_000_000))
            .await;
    }
    let (wire, over) = (Arc::new(wire), Arc::new(AtomicBool::new(false)));
    let weather = tokio::spawn(storm(Arc::clone(&wire), swallowing, Arc::clone(&over)));
    let tries = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = EnvelopeServiceClient::new(channel(grpc).await);
        let tries = Arc::clone(&tries);
        clients.spawn(async move { (number, a_client(number, client, tries).await) });
    }
    let done = clients.join_all().await;
    over.store(true, Ordering::SeqCst);
    weather.await.unwrap();
    assert!(tries.load(Ordering::SeqCst) >= TRIES);
    assert!(wire.swallowed() > 0, "no reply was lost");
    world.until_ready().await;
    world.audit_when_quiet().await;
    for (number, done) in done {
        let sender = format!("sender-{number}");
        for id in &done.sent {
            world.until(id, &sender, EnvelopeState::Closed).await;
        }
        let won = i64::try_from(done.wins).unwrap() * SHARE;
        assert_eq!(world.available(&sender).await, 1_000_000 - won);
        assert_eq!(world.available(&format!("grabber-{number}")).await, won);
    }
    world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_lost_between_clients_and_the_server_change_nothing() {
    let world = World::on(Hot::Redis).await;
    let wire = Proxy::to(world.server.grpc()).await;
    let port = wire.port();
    nothing_takes_effect_twice(world, wire, (port, 3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_lost_between_the_server_and_redis_change_nothing() {
    let redis = RedisServer::start(Flavour::Debian, &[]);
    let wire = Proxy::to(redis.port()).await;
    let start = Start {
        flags: ["--hot", &format!("redis://127.0.0.1:{}", wire.port())]
            .map(str::to_owned)
            .to_vec(),
        ..Start::default()
    };
    let world = World::beside(redis, start).await;
    let grpc = world.server.grpc();
    // The server asks Redis all the time, so a swallowed wire is silent only when it has given up.
    nothing_takes_effect_twice(world, wire, (grpc, 45)).await;
}
