//! Every sentence on made-up facts, and every fact on real servers.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Value};

use super::gather::gather;
use super::*;
use crate::hot::redis::server_under_test::{Flavour, RedisServer, ask};

/// How often a server is asked again.
const POLL: Duration = Duration::from_millis(20);
/// Questions before a fact counts as never seen: 20 s.
const POLLS_MAX: u32 = 1_000;
/// How long a server is waited for that is not silent: longer than usual, for a machine that does much beside the
/// tests.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A Redis on which `fsync` holds.
fn sound() -> ServerFacts {
    ServerFacts {
        version: "Redis 7.0.15".to_owned(),
        functions: true,
        sentinels: Some(0),
        eviction: "noeviction".to_owned(),
        memory_used: 1 << 20,
        aof: true,
        appendfsync: Some("always".to_owned()),
        user: Some("red-envelope".to_owned()),
        ..ServerFacts::default()
    }
}

/// The only reason why these facts are refused.
fn reason(facts: &ServerFacts, wanted: Option<AckLevel>) -> String {
    let mut reasons = judge(facts, wanted, None).unwrap_err();
    assert_eq!(reasons.len(), 1, "{reasons:#?}");
    reasons.remove(0).sentence
}

fn but(change: impl FnOnce(&mut ServerFacts)) -> ServerFacts {
    let mut facts = sound();
    change(&mut facts);
    facts
}

#[test]
fn a_sound_redis_keeps_the_level_that_is_asked_for_or_found_out() {
    for (wanted, level) in [
        (None, AckLevel::Fsync),
        (Some(AckLevel::Fsync), AckLevel::Fsync),
        (Some(AckLevel::Memory), AckLevel::Memory),
    ] {
        assert_eq!(judge(&sound(), wanted, None), Ok(level));
    }
    let never = judge(&sound(), Some(AckLevel::Embedded), None).unwrap_err();
    assert!(never[0].sentence.contains("no level of Redis"));
}

#[test]
fn what_makes_every_level_impossible_is_said_alone() {
    for (facts, expected) in [
        (but(|f| f.loading = true), "is loading its files: wait"),
        (
            but(|f| f.functions = false),
            "Redis 7.0.15 has no functions: use Redis 7.0 or later",
        ),
        (but(|f| f.cluster = true), "cluster-enabled no"),
        (
            but(|f| f.follows = Some("h:6379".into())),
            "is a replica of h:6379: name the primary",
        ),
    ] {
        let facts = ServerFacts {
            eviction: "allkeys-lru".to_owned(),
            ..facts
        };
        for wanted in [None, Some(AckLevel::Memory), Some(AckLevel::Fsync)] {
            let why = reason(&facts, wanted);
            assert!(why.contains(expected), "{why}");
        }
    }
}

#[test]
fn every_level_wants_memory_and_rights() {
    let full = |used: u64| {
        but(|f| {
            f.memory_max = 100 << 20;
            f.memory_used = used << 20;
        })
    };
    let missing = |missing| but(|f| f.missing_rights = missing);
    let known = MissingRights::Known(vec!["+hset".into(), "+function|load".into()]);
    for (facts, expected) in [
        (
            but(|f| f.eviction = "allkeys-lru".into()),
            "maxmemory-policy is allkeys-lru, which throws shares and acknowledged grabs away when \
             memory is full: CONFIG SET maxmemory-policy noeviction",
        ),
        (
            full(91),
            "holds 91 MB of the 100 MB that maxmemory allows, above 90 %",
        ),
        (but(|f| f.aof_failed = true), "could not write its AOF"),
        (
            but(|f| f.snapshot_failed = true),
            "refuses writes (MISCONF): make room on its disk",
        ),
        (
            missing(known),
            "ACL SETUSER red-envelope ~re1:* +hset +function|load",
        ),
        (
            missing(MissingRights::MayNotAsk),
            "ACL SETUSER red-envelope +acl|whoami +acl|dryrun",
        ),
    ] {
        for wanted in [None, Some(AckLevel::Memory)] {
            let why = reason(&facts, wanted);
            assert!(why.contains(expected), "{why}");
        }
    }
    assert!(judge(&full(90), None, None).is_ok());
    assert!(judge(&missing(MissingRights::Unanswered), None, None).is_ok());
}

#[test]
fn fsync_wants_every_acknowledged_grab_on_a_disk_that_is_never_replaced() {
    for (facts, expected) in [
        (
            but(|f| f.replicas = 2),
            "this Redis has replicas (2), and a failover would lose",
        ),
        (but(|f| f.sentinels = Some(3)), "watched by Sentinels (3)"),
        (
            but(|f| f.sentinels = None),
            "ACL SETUSER red-envelope +pubsub|numsub",
        ),
        (
            but(|f| f.appendfsync = None),
            "ACL SETUSER red-envelope +config|get",
        ),
        (but(|f| f.aof = false), "this Redis has no AOF"),
        (
            but(|f| {
                f.aof = false;
                f.appendfsync = None;
            }),
            "this Redis has no AOF",
        ),
        (
            but(|f| f.fsync_pauses = true),
            "CONFIG SET no-appendfsync-on-rewrite no",
        ),
        (
            but(|f| f.appendfsync = Some("everysec".into())),
            "this Redis has appendfsync everysec",
        ),
        (but(|f| f.aof_rewriting = true), "writing its AOF anew"),
    ] {
        for wanted in [None, Some(AckLevel::Fsync)] {
            let why = reason(&facts, wanted);
            assert!(why.contains(expected), "{why}");
        }
        assert_eq!(
            judge(&facts, Some(AckLevel::Memory), None),
            Ok(AckLevel::Memory)
        );
    }
}

#[test]
fn a_plain_redis_gets_one_sentence_with_the_ways_out() {
    let plain = but(|f| {
        f.aof = false;
        f.appendfsync = Some("everysec".into());
    });
    let why = reason(&plain, None);
    for way in [
        "CONFIG SET appendfsync always",
        "redis.conf",
        "--ack memory",
        "--hot embedded",
    ] {
        assert!(why.contains(way), "{why}");
    }
    assert!(why.starts_with("this Redis has no AOF"));
    let by_name = reason(&plain, Some(AckLevel::Fsync));
    assert!(by_name.starts_with("level fsync was asked for, and this Redis has no AOF"));
}

#[test]
fn an_ordinary_rewrite_of_the_aof_leaves_fsync_in_force() {
    let rewriting = but(|f| f.aof_rewriting = true);
    let before = Some(AckLevel::Fsync);
    assert_eq!(judge(&rewriting, None, before), Ok(AckLevel::Fsync));
}

#[test]
fn all_reasons_are_said_at_once() {
    let facts = but(|f| {
        f.eviction = "volatile-ttl".into();
        f.replicas = 1;
        f.aof = false;
    });
    let reasons = judge(&facts, None, None).unwrap_err().into_iter();
    let troubles: Vec<_> = reasons.map(|reason| reason.trouble).collect();
    let all = [Trouble::Eviction, Trouble::Failover, Trouble::Fsync];
    assert_eq!(troubles, all);
    let labels: BTreeSet<_> = Trouble::ALL.map(Trouble::label).into();
    assert_eq!(labels.len(), Trouble::ALL.len());
}

#[test]
fn the_runbook_has_the_line_of_the_acl() {
    let runbook = include_str!("../../../../docs/RUNBOOK.md");
    let line = rights::acl_line("red-envelope");
    assert!(runbook.contains(&line), "put this line there:\n{line}");
}

#[test]
fn every_command_that_the_library_calls_is_among_the_rights() {
    let library = include_str!("../library.lua");
    // Called at once, or kept as a value until they are all called.
    let calls = library.split("call('").skip(1);
    let kept = library.split("= '").skip(1);
    let kept = kept.filter(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()));
    let names = calls.chain(kept);
    let called: BTreeSet<&str> = names.filter_map(|rest| rest.split('\'').next()).collect();
    assert!(called.len() > 20, "{called:?}");
    let named = |name: &str| {
        let of_it = |command: &&'static str| command.split(' ').next() == Some(name);
        rights::COMMANDS.iter().any(of_it)
    };
    let missing: Vec<_> = called.into_iter().filter(|name| !named(name)).collect();
    assert!(missing.is_empty(), "add {missing:?}");
    let prefix = crate::hot::redis::keys::LAYOUT_KEY
        .split_inclusive(':')
        .next();
    assert_eq!(prefix, Some(rights::KEYS));
}

async fn connected(url: &str) -> MultiplexedConnection {
    let client = Client::open(url).unwrap();
    let patient = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER_MAX))
        .set_response_timeout(Some(ANSWER_MAX));
    let connected = client.get_multiplexed_async_connection_with_config(&patient);
    connected.await.unwrap()
}

fn set(server: &RedisServer, name: &str, value: &str) {
    let words = [
        b"CONFIG",
        b"SET".as_slice(),
        name.as_bytes(),
        value.as_bytes(),
    ];
    assert_eq!(server.command(&words), Value::Okay, "{name} {value}");
}

/// Asks until the facts are as expected.
async fn facts_until(
    connection: &mut MultiplexedConnection,
    what: &str,
    expected: impl Fn(&ServerFacts) -> bool,
) -> ServerFacts {
    let mut ticks = tokio::time::interval(POLL);
    for _ in 0..POLLS_MAX {
        ticks.tick().await;
        let facts = gather(connection).await.unwrap();
        if expected(&facts) {
            return facts;
        }
    }
    panic!("it was never seen that {what}");
}

#[tokio::test]
async fn a_wrong_setting_is_seen_at_the_next_look_and_so_is_its_mending() {
    for flavour in Flavour::ALL {
        let server = RedisServer::start(flavour, &[]);
        let mut connection = connected(&server.url()).await;
        let facts = gather(&mut connection).await.unwrap();
        assert_eq!(judge(&facts, None, None), Ok(AckLevel::Fsync), "{facts:#?}");
        let brand = if flavour == Flavour::Valkey9 {
            "Valkey 9."
        } else {
            "Redis "
        };
        assert!(facts.version.starts_with(brand), "{}", facts.version);

        for (name, wrong, right, expected) in [
            (
                "maxmemory-policy",
                "allkeys-lru",
                "noeviction",
                "maxmemory-policy is allkeys-lru",
            ),
            ("maxmemory", "100kb", "0", "above 90 %"),
            (
                "appendfsync",
                "everysec",
                "always",
                "has appendfsync everysec",
            ),
            ("appendfsync", "no", "always", "has appendfsync no"),
            (
                "no-appendfsync-on-rewrite",
                "yes",
                "no",
                "has no-appendfsync-on-rewrite yes",
            ),
            ("appendonly", "no", "yes", "has no AOF"),
        ] {
            set(&server, name, wrong);
            let facts = gather(&mut connection).await.unwrap();
            let why = reason(&facts, None);
            assert!(why.contains(expected), "{flavour:?}: {why}");
            set(&server, name, right);
            let mended = |f: &ServerFacts| judge(f, None, None).is_ok();
            facts_until(&mut connection, "it was mended", mended).await;
        }
    }
}

#[tokio::test]
async fn aof_that_was_switched_on_counts_only_when_it_is_there() {
    let server = RedisServer::start(Flavour::Debian, &[("appendonly", "no")]);
    for key in ["a", "b", "c"] {
        server.command(&[b"SET", key.as_bytes(), b"x"]);
    }
    // A rewrite that takes a second a key.
    set(&server, "rdb-key-save-delay", "1000000");
    set(&server, "appendonly", "yes");
    let mut connection = connected(&server.url()).await;
    let facts = gather(&mut connection).await.unwrap();
    assert!(
        facts.aof,
        "INFO does not call it enabled any more: the rule can go"
    );
    assert!(reason(&facts, None).contains("writing its AOF anew"));
    let there = |f: &ServerFacts| judge(f, None, None) == Ok(AckLevel::Fsync);
    facts_until(&mut connection, "the AOF is there", there).await;
    assert!(server.aof().join("appendonly.aof.manifest").exists());
}

#[tokio::test]
async fn a_snapshot_that_failed_is_seen_while_writes_are_refused() {
    for flavour in Flavour::ALL {
        let server = RedisServer::start(flavour, &[("save", "3600 1")]);
        // What can't be replaced by a file.
        std::fs::create_dir(server.data_folder().join("dump.rdb")).unwrap();
        let mut connection = connected(&server.url()).await;
        server.command(&[b"BGSAVE"]);
        let failed = |f: &ServerFacts| f.snapshot_failed;
        facts_until(&mut connection, "the snapshot has failed", failed).await;
        let write = || server.command(&[b"SET", b"a", b"x"]);
        let refused = write();
        let is_for_that = matches!(&refused, Value::ServerError(e) if e.code() == "MISCONF");
        assert!(is_for_that, "{flavour:?}: {refused:?}");
        set(&server, "save", "");
        assert_eq!(write(), Value::Okay);
        let well = |f: &ServerFacts| !f.snapshot_failed;
        facts_until(&mut connection, "it does without", well).await;
    }
}

#[test]
fn what_a_look_found_is_of_one_process_and_of_the_last_seconds() {
    let looked = Looked::default();
    let now = crate::clock::timer_now();
    assert_eq!(looked.before("a", now), None);
    looked.note("a".to_owned(), Some(AckLevel::Fsync), now);
    let later = now + LOOK_KEPT;
    assert_eq!(looked.before("a", later), Some(AckLevel::Fsync));
    assert_eq!(looked.before("b", later), None);
    let too_late = later + Duration::from_millis(1);
    assert_eq!(looked.before("a", too_late), None);
    looked.note("a".to_owned(), None, now);
    assert_eq!(looked.before("a", now), None);
}

#[tokio::test]
async fn a_replica_a_sentinel_and_a_cluster_are_seen() {
    for flavour in Flavour::ALL {
        let primary = RedisServer::start(flavour, &[]);
        let of = format!("127.0.0.1 {}", primary.port());
        let replica = RedisServer::start(flavour, &[("replicaof", &of)]);
        let mut connection = connected(&primary.url()).await;
        let followed = |f: &ServerFacts| f.replicas == 1;
        let facts = facts_until(&mut connection, "a replica follows", followed).await;
        assert!(reason(&facts, None).contains("has replicas (1)"));
        assert!(judge(&facts, Some(AckLevel::Memory), None).is_ok());
        let facts = gather(&mut connected(&replica.url()).await).await.unwrap();
        let place = format!("is a replica of 127.0.0.1:{}", primary.port());
        assert!(reason(&facts, None).contains(&place));
        drop(replica);

        // What a Sentinel does to the server that it watches.
        let mut sentinel = primary.connection().unwrap();
        ask(&mut sentinel, &[b"SUBSCRIBE", b"__sentinel__:hello"]).unwrap();
        let watched = |f: &ServerFacts| f.replicas == 0 && f.sentinels == Some(1);
        let facts = facts_until(&mut connection, "a Sentinel watches", watched).await;
        assert!(reason(&facts, None).contains("watched by Sentinels (1)"));

        let node = RedisServer::start(flavour, &[("cluster-enabled", "yes")]);
        let facts = gather(&mut connected(&node.url()).await).await.unwrap();
        assert!(reason(&facts, Some(AckLevel::Memory)).contains("cluster-enabled no"));
    }
}

#[tokio::test]
async fn the_line_of_the_acl_is_enough_and_each_missing_right_is_named() {
    for flavour in Flavour::ALL {
        let line = rights::acl_line("red-envelope").replace("PASSWORD", "letter-box");
        let (_, user) = line.split_once(' ').unwrap();
        let server = RedisServer::start(flavour, &[("user", user)]);
        let url = format!(
            "redis://red-envelope:letter-box@127.0.0.1:{}",
            server.port()
        );
        let mut connection = connected(&url).await;
        let facts = gather(&mut connection).await.unwrap();
        assert_eq!(facts.user.as_deref(), Some("red-envelope"));
        assert_eq!(judge(&facts, None, None), Ok(AckLevel::Fsync), "{facts:#?}");

        let rule = |rule: &str| {
            let words = [
                b"ACL",
                b"SETUSER".as_slice(),
                b"red-envelope",
                rule.as_bytes(),
            ];
            assert_eq!(server.command(&words), Value::Okay);
        };
        for (taken, given, expected) in [
            ("-hset", "+hset", "~re1:* +hset,"),
            ("-function|load", "+function|load", "+function|load,"),
            ("resetkeys", "~re1:*", "+fcall +fcall_ro"),
            ("-acl|dryrun", "+acl|dryrun", "+acl|whoami +acl|dryrun"),
            ("-config|get", "+config|get", "since CONFIG GET is refused"),
            (
                "-pubsub|numsub",
                "+pubsub|numsub",
                "since PUBSUB NUMSUB is refused",
            ),
        ] {
            rule(taken);
            let facts = gather(&mut connection).await.unwrap();
            let reasons = judge(&facts, None, None).unwrap_err();
            let said = reasons.iter().any(|why| why.sentence.contains(expected));
            assert!(said, "{flavour:?} {taken}: {reasons:#?}");
            rule(given);
        }
        rule("-info");
        let why = gather(&mut connection).await.unwrap_err().to_string();
        assert!(why.contains("may not run INFO"), "{why}");
    }
}

#[tokio::test]
async fn a_server_that_is_gone_or_silent_is_an_error() {
    let mut server = RedisServer::start(Flavour::Debian, &[]);
    let mut connection = connected(&server.url()).await;
    connection.set_response_timeout(Duration::from_millis(100));
    server.pause();
    assert!(gather(&mut connection).await.is_err());
    server.resume();
    server.kill();
    let why = gather(&mut connection).await.unwrap_err().to_string();
    assert!(why.starts_with("Redis did not answer"), "{why}");
}
