//! The level in force against a Redis whose settings change: nothing is acknowledged on a wrong one.

use std::time::Duration;

use red_envelope_proto::v1::info_service_client::InfoServiceClient;
use red_envelope_proto::v1::{AckLevel, GetServiceInfoRequest, GrabOutcome};
use redis::Value;
use tonic::Code;

use crate::harness::world::{channel, grab_of};
use crate::harness::{Hot, Start, World, cny, lucky};
use crate::listeners::get;

/// The bound of F11: not ready so long after a setting went wrong, at the latest.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// How often readiness is looked at.
const POLL: Duration = Duration::from_millis(50);

fn set(world: &World, name: &str, value: &str) {
    let redis = world.redis.as_ref().unwrap();
    let words = [
        b"CONFIG",
        b"SET".as_slice(),
        name.as_bytes(),
        value.as_bytes(),
    ];
    assert_eq!(redis.command(&words), Value::Okay, "{name} {value}");
}

/// What /readyz says when it first answers with this status.
async fn readiness(world: &World, status: u16) -> String {
    let look = async {
        let mut ticks = tokio::time::interval(POLL);
        loop {
            ticks.tick().await;
            let (now, said) = get(world.server.ports.http, "/readyz").await;
            if now == status {
                return said;
            }
        }
    };
    let seen = tokio::time::timeout(SEEN_WITHIN, look).await;
    seen.unwrap_or_else(|_| panic!("/readyz never said {status}"))
}

async fn level(world: &World) -> AckLevel {
    let mut facts = InfoServiceClient::new(channel(world.server.grpc()).await);
    let reply = facts
        .get_service_info(GetServiceInfoRequest::default())
        .await;
    reply.unwrap().into_inner().ack_level()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_goes_wrong_stops_the_grabs_within_ten_seconds_and_says_what_to_change() {
    let mut world = World::on(Hot::Redis).await;
    world.fund("alice", cny(1_000)).await;
    let id = world.send(lucky("alice", cny(1_000), 10)).await.envelope_id;
    assert_eq!(level(&world).await, AckLevel::Fsync);
    for (number, (name, wrong, right, expected)) in [
        (
            "maxmemory-policy",
            "allkeys-lru",
            "noeviction",
            "maxmemory-policy noeviction",
        ),
        (
            "appendfsync",
            "everysec",
            "always",
            "CONFIG SET appendfsync always",
        ),
        ("appendonly", "no", "yes", "CONFIG SET appendonly yes"),
    ]
    .into_iter()
    .enumerate()
    {
        set(&world, name, wrong);
        let said = readiness(&world, 503).await;
        assert!(said.contains(expected), "{said}");
        assert!(world.server.log().contains(expected));
        let grabber = format!("bob-{number}");
        let refused = world.try_grab(grab_of(&id, &grabber)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");

        set(&world, name, right);
        readiness(&world, 200).await;
        let answer = world.grab(&id, &grabber).await;
        assert_eq!(answer.outcome(), GrabOutcome::Won);
    }
    world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_the_level_only_when_it_is_asked_for_by_name() {
    let mut world = World::on(Hot::Redis).await;
    set(&world, "appendfsync", "everysec");
    world.server.kill();
    let mut world = world.restarted(Start::on(Hot::Redis)).await;
    let said = readiness(&world, 503).await;
    for way in ["appendfsync everysec", "--ack memory", "--hot embedded"] {
        assert!(said.contains(way), "{said}");
    }
    world.server.kill();
    let by_name = Start {
        flags: vec!["--ack".to_owned(), "memory".to_owned()],
        ..Start::on(Hot::Redis)
    };
    let mut world = world.restarted(by_name).await;
    readiness(&world, 200).await;
    assert_eq!(level(&world).await, AckLevel::Memory);
    world.fund("alice", cny(1_000)).await;
    let id = world.send(lucky("alice", cny(1_000), 10)).await.envelope_id;
    assert_eq!(world.grab(&id, "bob").await.outcome(), GrabOutcome::Won);
    world.audit_when_quiet().await;
}
