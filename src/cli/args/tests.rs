//! What is understood on the command line, and how it ends otherwise.

use super::*;

fn parsed(line: &str) -> Invocation {
    let words = line.split_whitespace().map(OsString::from);
    parse(words, &Environment::default())
}

#[test]
fn the_definition_is_sound() {
    command().debug_assert();
}

#[test]
fn without_a_command_it_serves() {
    let Invocation::Serve(sources) = parsed("red-envelope") else {
        panic!("it does something else");
    };
    assert!(sources.flags.is_empty() && sources.file.is_none());
}

#[test]
fn every_setting_of_the_manual_is_a_flag_of_serve() {
    for setting in config::settings() {
        let line = format!("red-envelope serve {} some-text", setting.flag());
        let Invocation::Serve(sources) = parsed(&line) else {
            panic!("{line} is not understood");
        };
        assert_eq!(sources.flags[&setting.key], "some-text");
    }
}

#[test]
fn a_short_flag_is_the_long_one() {
    let line = "red-envelope serve --hot redis://localhost --ledger sqlite --ack memory";
    let Invocation::Serve(sources) = parsed(line) else {
        panic!("{line} is not understood");
    };
    assert_eq!(sources.flags["hot.url"], "redis://localhost");
    assert_eq!(sources.flags["ledger.url"], "sqlite");
    assert_eq!(sources.flags["hot.ack"], "memory");
    assert!(
        SHORT_FLAGS
            .iter()
            .all(|(key, _)| config::settings().iter().any(|s| s.key == *key))
    );
}

#[test]
fn an_amount_is_written_with_or_without_quotes() {
    for line in [
        "red-envelope send alice --total 88.88 CNY --shares 10",
        "red-envelope send alice --total 88.88CNY --shares 10",
    ] {
        let Invocation::Ask(Ask::Send(send)) = parsed(line) else {
            panic!("{line} is not understood");
        };
        assert_eq!(send.total.concat(), "88.88CNY");
        assert_eq!((send.sender.as_str(), send.shares), ("alice", 10));
    }
}

#[test]
fn wrong_usage_ends_with_64_and_help_with_0() {
    for (line, expected) in [
        ("red-envelope dance", 64),
        ("red-envelope grab", 64),
        ("red-envelope serve --grpc-listn 1", 64),
        ("red-envelope --help", 0),
        ("red-envelope --version", 0),
    ] {
        let Invocation::Say(text, code) = parsed(line) else {
            panic!("{line} is understood");
        };
        assert_eq!(code, expected, "{line}: {text}");
    }
}
