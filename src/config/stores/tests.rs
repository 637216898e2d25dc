//! Addresses, levels, and passwords that nobody prints.

use super::*;
use crate::config::{Config, Environment, Sources};

fn sources(variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    let own = |(key, text): &(&str, &str)| ((*key).to_owned(), (*text).to_owned());
    Sources {
        flags: flags.iter().map(own).collect(),
        file: None,
        environment: Environment::of(variables.iter().copied()),
    }
}

fn loaded(flags: &[(&str, &str)]) -> Config {
    Config::load(&sources(&[], flags)).unwrap().0
}

fn wrong(flags: &[(&str, &str)]) -> String {
    let refused = Config::load(&sources(&[], flags)).unwrap_err();
    refused.to_string()
}

#[test]
fn without_a_word_everything_is_kept_in_the_data_folder() {
    let config = loaded(&[]);
    assert_eq!(config.hot.url, HotUrl::Embedded);
    assert_eq!(config.hot.ack, AskedAck(None));
    assert_eq!(config.hot.partitions().get(), 64);
    assert_eq!(config.ledger.url, BooksUrl::Sqlite);
    assert_eq!(config.redis.response_timeout_ms, 500);
}

#[test]
fn an_address_of_redis_is_completed() {
    for (text, whole) in [
        ("redis://localhost", "redis://localhost:6379/0"),
        ("redis://10.0.0.7:7000", "redis://10.0.0.7:7000/0"),
        (
            "redis://redis.internal:6380/0",
            "redis://redis.internal:6380/0",
        ),
        ("redis://[::1]:6380/", "redis://[::1]:6380/0"),
        ("redis://[::1]", "redis://[::1]:6379/0"),
        ("redis://:secret@h", "redis://:secret@h:6379/0"),
        ("redis://a:p%40ss@h:1/0", "redis://a:p%40ss@h:1/0"),
        ("redis://a:p@ss@h:1/0", "redis://a:p@ss@h:1/0"),
    ] {
        let HotUrl::Redis(url) = HotUrl::read(text).unwrap() else {
            panic!("{text} is no Redis");
        };
        assert_eq!(url.expose(), whole);
    }
}

#[test]
fn a_wrong_address_is_refused_without_being_quoted() {
    for (text, expected) in [
        ("", "must be \"embedded\" or an address"),
        ("hunter2@h:6379", "must be \"embedded\" or an address"),
        (
            "postgres://a:hunter2@h",
            "must be \"embedded\" or an address",
        ),
        ("rediss://a:hunter2@h", "asks for TLS"),
        ("redis-sentinel://a:hunter2@h", "Sentinels or a cluster"),
        ("valkey://a:hunter2@h", "write redis://"),
        ("redis://", "the host or the port"),
        ("redis://a:hunter2@", "the host or the port"),
        ("redis://a:hunter2@h:port", "the host or the port"),
        ("redis://a:hunter2@h:0", "the host or the port"),
        ("redis://a:hunter2@h:70000", "the host or the port"),
        ("redis://a:hunter2@[::1", "the host or the port"),
        ("redis://a:hunter2@[::1]6379", "the host or the port"),
        ("redis://a:hunter2@h:1/x", "the number of a database"),
        ("redis://a:hunter2@h:1/2", "only database 0"),
        ("redis://a:hunter2%4@h", "write / as %2F"),
        ("redis://a:hunter2/x@h", "write / as %2F"),
        ("redis://a:hunter2 x@h", "have no place in it"),
        ("redis://a:hunter2?x@h", "have no place in it"),
    ] {
        let why = wrong(&[("hot.url", text)]);
        assert!(
            why.starts_with("hot.url") && why.contains(expected),
            "{text}: {why}"
        );
        assert!(!why.contains("hunter2"), "{why}");
    }
    assert!(wrong(&[("hot.url", &format!("redis://{}", "h".repeat(3_000)))]).contains("longer"));
}

#[test]
fn books_in_postgresql_need_a_hot_store_that_several_processes_share() {
    let hot = ("hot.url", "redis://h");
    for text in [
        "postgresql://a:hunter2@h/db?password=hunter2",
        "postgres://a:hunter2@h/db",
    ] {
        let config = loaded(&[hot, ("ledger.url", text)]);
        let BooksUrl::Postgres(url) = &config.ledger.url else {
            panic!("{text} is PostgreSQL");
        };
        assert_eq!(url.expose(), text);
        assert_eq!(url.to_string(), "postgresql://***@h/db");
        assert!(!format!("{config:?}").contains("hunter2"));
        let why = wrong(&[("ledger.url", text)]);
        assert!(why.contains("hot.url is \"embedded\""), "{why}");
        assert!(!why.contains("hunter2"), "{why}");
    }
    for (text, expected) in [
        ("mysql://a:hunter2@h", "must be \"sqlite\" or an address"),
        ("postgres://a:hunter 2@h", "have no place in it"),
        (&format!("postgres://{}", "h".repeat(3_000)), "longer"),
    ] {
        let why = wrong(&[hot, ("ledger.url", text)]);
        assert!(
            why.starts_with("ledger.url") && why.contains(expected),
            "{why}"
        );
        assert!(!why.contains("hunter"), "{why}");
    }
}

#[test]
fn a_password_is_read_from_the_environment_and_never_printed() {
    let variable = [("RED_ENVELOPE_HOT_URL", "redis://red:hunter2@h:6379")];
    let (config, unread) = Config::load(&sources(&variable, &[])).unwrap();
    assert!(unread.is_empty());
    let HotUrl::Redis(url) = &config.hot.url else {
        panic!("the variable is not read");
    };
    assert_eq!(url.expose(), "redis://red:hunter2@h:6379/0");
    assert_eq!(url.to_string(), "redis://***@h:6379/0");
    let printed = format!("{config:?} {config:#?}");
    assert!(
        !printed.contains("hunter2") && !printed.contains("red:"),
        "{printed}"
    );
}

#[test]
fn a_level_is_one_that_the_store_can_keep() {
    let redis = ("hot.url", "redis://localhost");
    for (text, level) in [
        ("", None),
        ("memory", Some(AckLevel::Memory)),
        ("fsync", Some(AckLevel::Fsync)),
        ("ledger", Some(AckLevel::Ledger)),
    ] {
        assert_eq!(loaded(&[redis, ("hot.ack", text)]).hot.ack, AskedAck(level));
    }
    let embedded = loaded(&[("hot.ack", "embedded")]);
    assert_eq!(embedded.hot.ack, AskedAck(Some(AckLevel::Embedded)));

    for level in ["memory", "fsync"] {
        let why = wrong(&[("hot.ack", level)]);
        assert!(why.contains("has its own level"), "{why}");
        assert!(why.contains("Leave hot.ack out"), "{why}");
    }
    assert!(wrong(&[redis, ("hot.ack", "embedded")]).contains("but hot.url is a Redis"));
    assert!(wrong(&[redis, ("hot.ack", "replicated")]).contains("is not served yet"));
    let why = wrong(&[redis, ("hot.ack", "always")]);
    assert!(
        why.contains("must be \"fsync\", \"ledger\" or \"memory\""),
        "{why}"
    );
}

#[test]
fn partitions_and_timeouts_have_bounds() {
    let count = |text| loaded(&[("hot.partitions", text)]).hot.partitions().get();
    assert_eq!((count("1"), count("1024")), (1, 1_024));
    for text in ["0", "1025", "70000"] {
        let why = wrong(&[("hot.partitions", text)]);
        assert_eq!(why, "hot.partitions must be between 1 and 1024");
    }
    for (key, text, bounds) in [
        ("redis.response_timeout_ms", "0", "between 10 and 60000"),
        ("redis.connect_timeout_ms", "60001", "between 10 and 60000"),
        ("redis.user_timeout_ms", "1", "between 100 and 600000"),
    ] {
        assert_eq!(wrong(&[(key, text)]), format!("{key} must be {bounds}"));
    }
}
