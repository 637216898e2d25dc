//! The level in force against a Redis whose settings change: nothing is acknowledged on a wrong one.

use std::time::Duration;

use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope_proto::v1::info_service_client::InfoServiceClient;
use red_envelope_proto::v1::{AckLevel, GetServiceInfoRequest, GrabOutcome, GrabRequest};
use redis::Value;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Code;

use crate::harness::fleet::until;
use crate::harness::world::{channel, grab_of, unless_unavailable};
use crate::harness::{Hot, Start, World, cny, lucky};
use crate::listeners::get;

/// The bound of F11: not ready so long after a setting went wrong, at the latest.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// How often readiness is looked at.
const POLL: Duration = Duration::from_millis(50);

/// An operator's command, which is obeyed.
fn does(world: &World, words: &[&str]) {
    let redis = world.redis.as_ref().unwrap();
    let bytes: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    assert_eq!(redis.command(&bytes), Value::Okay, "{words:?}");
}

fn set(world: &World, name: &str, value: &str) {
    does(world, &["CONFIG", "SET", name, value]);
}

/// Ends when so much time was served: where this process was held up longer than a few looks take, so was the
/// server, and nobody may count that against it.
async fn served(time: Duration) {
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut left, mut last) = (time, Instant::now());
    while !left.is_zero() {
        ticks.tick().await;
        left = left.saturating_sub(last.elapsed().min(4 * POLL));
        last = Instant::now();
    }
}

/// Looks until there is something to be seen, within the bound.
async fn seen<Seen>(what: &str, mut look: impl AsyncFnMut() -> Option<Seen>) -> Seen {
    let looks = async {
        let mut ticks = tokio::time::interval(POLL);
        loop {
            ticks.tick().await;
            if let Some(seen) = look().await {
                return seen;
            }
        }
    };
    tokio::select! {
        seen = looks => seen,
        () = served(SEEN_WITHIN) => panic!("not in time: {what}"),
    }
}

/// What /readyz says when it first answers with this status, and says one of these.
async fn readiness(world: &World, status: u16, says: &[&str]) -> String {
    seen(&format!("{status} and {says:?}"), async || {
        let said = get(world.server.ports.http, "/readyz").await;
        let fits = said.0 == status && says.iter().any(|words| said.1.contains(words));
        fits.then_some(said.1)
    })
    .await
}

async fn level(world: &World) -> AckLevel {
    let mut facts = InfoServiceClient::new(channel(world.server.grpc()).await);
    let reply = facts
        .get_service_info(GetServiceInfoRequest::default())
        .await;
    reply.unwrap().into_inner().ack_level()
}

/// What may be wrong with a Redis.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// A setting: its name, a wrong value, the right one.
    Setting(&'static str, &'static str, &'static str),
    /// A replica follows it.
    Replica,
    /// It answers nobody.
    Paused,
    /// The user may not do something: the rule that says so, and the one that takes it back.
    Right(&'static str, &'static str),
    /// It follows a primary that is not there.
    Following,
}

/// The host and the port of a primary that is not there: nothing listens on this port.
const NOBODY: (&str, &str) = ("127.0.0.1", "1");

/// Each, with what people are told (one of these), and the reason that programs are.
const TROUBLES: [(Wrong, &[&str], &str); 7] = [
    (
        Wrong::Setting("maxmemory-policy", "allkeys-lru", "noeviction"),
        &[
            "maxmemory-policy is allkeys-lru, which throws shares and acknowledged grabs away when memory \
             is full: CONFIG SET maxmemory-policy noeviction",
        ],
        "redis_eviction",
    ),
    (
        Wrong::Setting("appendfsync", "everysec", "always"),
        &[
            "this Redis has appendfsync everysec, so a crash may lose acknowledged grabs: CONFIG SET \
             appendonly yes and CONFIG SET appendfsync always",
        ],
        "redis_fsync",
    ),
    (
        Wrong::Setting("appendonly", "no", "yes"),
        &[
            "this Redis has no AOF, so a crash may lose acknowledged grabs: CONFIG SET appendonly yes",
        ],
        "redis_fsync",
    ),
    (
        Wrong::Replica,
        &[
            "this Redis has replicas (1), and a failover would lose acknowledged grabs, so level fsync is \
             refused: take them away (REPLICAOF NO ONE on each), or start with --ack memory",
        ],
        "redis_failover",
    ),
    (
        Wrong::Paused,
        // A question was under way, or the next connection was not made.
        &["Redis did not answer: ", "Redis can't be reached: "],
        "redis_unreachable",
    ),
    (
        Wrong::Right("-hset", "+hset"),
        &[
            "the Redis user default may not do what is needed: ACL SETUSER default ~re1:* +hset, and the \
             same in the ACL file",
        ],
        "redis_rights",
    ),
    (
        Wrong::Following,
        &[
            "this Redis is a replica of 127.0.0.1:1: name the primary in hot.url, or make this one a \
             primary with REPLICAOF NO ONE",
        ],
        "redis_server",
    ),
];

impl Wrong {
    /// Answers the replica, if that is what is wrong.
    async fn begins(self, world: &World) -> Option<RedisServer> {
        match self {
            Self::Setting(name, wrong, _) => set(world, name, wrong),
            Self::Replica => return Some(a_replica(world).await),
            Self::Paused => world.redis.as_ref().unwrap().pause(),
            Self::Right(taken, _) => does(world, &["ACL", "SETUSER", "default", taken]),
            Self::Following => does(world, &["REPLICAOF", NOBODY.0, NOBODY.1]),
        }
        None
    }

    fn ends(self, world: &World, replica: Option<RedisServer>) {
        match self {
            Self::Setting(name, _, right) => set(world, name, right),
            Self::Replica => {
                let done = replica.unwrap().command(&[b"REPLICAOF", b"NO", b"ONE"]);
                assert_eq!(done, Value::Okay);
            }
            Self::Paused => world.redis.as_ref().unwrap().resume(),
            Self::Right(_, given) => does(world, &["ACL", "SETUSER", "default", given]),
            Self::Following => does(world, &["REPLICAOF", "NO", "ONE"]),
        }
    }
}

/// A replica that follows it.
async fn a_replica(world: &World) -> RedisServer {
    let redis = world.redis.as_ref().unwrap();
    let primary = format!("127.0.0.1 {}", redis.port());
    let replica = RedisServer::start(Flavour::Debian, &[("replicaof", &primary)]);
    let follows = async || match redis.command(&[b"INFO", b"replication"]) {
        Value::BulkString(told) => told.windows(18).any(|words| words == b"connected_slaves:1"),
        other => panic!("INFO is text: {other:?}"),
    };
    until("the replica follows", follows).await;
    replica
}

/// Within ten seconds it is not ready, says why to people, in its log and to programs, and acknowledges
/// nothing. `heard`: how much of the log there was before.
async fn nothing_is_acknowledged(
    world: &mut World,
    (sentences, reason): (&[&str], &str),
    heard: usize,
    grab: GrabRequest,
) {
    readiness(world, 503, sentences).await;
    let log = &world.server.log()[heard..];
    let logged = sentences.iter().any(|sentence| log.contains(sentence));
    assert!(logged, "{reason}");
    let metric = async |name: &str, labels: &str| world.server.counted_of(name, labels).await;
    let label = format!("reason=\"{reason}\"");
    // A look that Redis did not answer in time has another reason, until the next one.
    seen(&format!("programs are told of {reason}"), async || {
        // Nothing else is wrong.
        let all = metric("red_envelope_not_ready", "reason=\"redis_").await;
        let told = (all - 1.0).abs() < f64::EPSILON
            && metric("red_envelope_ready", "").await < 1.0
            && metric("red_envelope_not_ready", &label).await > 0.0
            && metric("red_envelope_not_ready", "reason=\"hot_store\"").await > 0.0;
        told.then_some(())
    })
    .await;
    let refused = world.try_grab(grab).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
}

/// It is ready, says so to programs, and grabs are acknowledged.
async fn all_is_well_again(world: &mut World, grab: GrabRequest) {
    readiness(world, 200, &[""]).await;
    let metric = async |name: &str| world.server.counted(name).await;
    seen("programs are told that all is well", async || {
        let ready = metric("red_envelope_ready").await > 0.0;
        (ready && metric("red_envelope_not_ready").await < 1.0).then_some(())
    })
    .await;
    // Redis has the usual time: a try of which nothing was heard may have won the share.
    let mut unheard = false;
    let answer = seen("a grab is answered", async || {
        let answer = unless_unavailable(world.try_grab(grab.clone()).await);
        unheard |= answer.is_none();
        answer
    });
    let outcome = answer.await.outcome();
    let repeated = unheard && outcome == GrabOutcome::AlreadyGrabbed;
    assert!(outcome == GrabOutcome::Won || repeated, "{outcome:?}");
}

/// As it is by default: how soon a Redis that answers nobody is noticed hangs on how long it is waited for.
fn usual() -> Start {
    Start {
        usual_timing: true,
        ..Start::on(Hot::Redis)
    }
}

/// A world with an envelope from which nobody has grabbed.
async fn with_an_envelope() -> (World, String) {
    let mut world = World::start(usual()).await;
    world.fund("alice", cny(1_000)).await;
    let id = world.send(lucky("alice", cny(1_000), 10)).await.envelope_id;
    let in_force = async || (level(&world).await == AckLevel::Fsync).then_some(());
    seen("level fsync is in force", in_force).await;
    (world, id)
}

/// Who won has the same share still, and nobody else has one.
async fn the_winners_are_those(mut world: World, id: &str) {
    for number in 0..TROUBLES.len() {
        let again = world
            .grab_until_answered(id, &format!("bob-{number}"))
            .await;
        assert_eq!(again.outcome(), GrabOutcome::AlreadyGrabbed);
    }
    assert_eq!(world.shares(id, "alice").await.len(), TROUBLES.len());
    world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_goes_wrong_stops_the_grabs_within_ten_seconds_and_says_what_to_change() {
    let (mut world, id) = with_an_envelope().await;
    for (number, (wrong, sentences, reason)) in TROUBLES.into_iter().enumerate() {
        let grab = grab_of(&id, &format!("bob-{number}"));
        let heard = world.server.log().len();
        let replica = wrong.begins(&world).await;
        nothing_is_acknowledged(&mut world, (sentences, reason), heard, grab.clone()).await;
        wrong.ends(&world, replica);
        all_is_well_again(&mut world, grab).await;
    }
    the_winners_are_those(world, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_started_on_a_wrong_redis_waits_until_it_is_right() {
    let (mut world, id) = with_an_envelope().await;
    for (number, (wrong, sentences, reason)) in TROUBLES.into_iter().enumerate() {
        let grab = grab_of(&id, &format!("bob-{number}"));
        let heard = world.server.log().len();
        world.server.kill();
        let replica = wrong.begins(&world).await;
        world = world.restarted(usual()).await;
        nothing_is_acknowledged(&mut world, (sentences, reason), heard, grab.clone()).await;
        wrong.ends(&world, replica);
        all_is_well_again(&mut world, grab).await;
    }
    the_winners_are_those(world, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_the_level_only_when_it_is_asked_for_by_name() {
    let mut world = World::on(Hot::Redis).await;
    set(&world, "appendfsync", "everysec");
    world.server.kill();
    let mut world = world.restarted(Start::on(Hot::Redis)).await;
    let said = readiness(&world, 503, &["appendfsync everysec"]).await;
    for way in ["--ack memory", "--hot embedded"] {
        assert!(said.contains(way), "{said}");
    }
    world.server.kill();
    let by_name = Start {
        flags: vec!["--ack".to_owned(), "memory".to_owned()],
        ..Start::on(Hot::Redis)
    };
    let mut world = world.restarted(by_name).await;
    readiness(&world, 200, &[""]).await;
    assert_eq!(level(&world).await, AckLevel::Memory);
    world.fund("alice", cny(1_000)).await;
    let id = world.send(lucky("alice", cny(1_000), 10)).await.envelope_id;
    assert_eq!(world.grab(&id, "bob").await.outcome(), GrabOutcome::Won);
    world.audit_when_quiet().await;
}
