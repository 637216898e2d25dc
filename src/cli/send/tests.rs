//! What `send` makes of what was typed.

use std::ffi::OsString;

use super::super::EXIT_NO_INPUT;
use super::super::args::{Ask, Invocation, parse};
use super::*;

const NOW_MS: i64 = 1_771_200_000_000;

fn typed(line: &str) -> SendEnvelope {
    let words = format!("red-envelope send {line}");
    let words = words.split_whitespace().map(OsString::from);
    match parse(words, &Environment::default()) {
        Invocation::Ask(Ask::Send(args)) => *args,
        Invocation::Say(text, _) => panic!("{line}: {text}"),
        _ => panic!("{line} is something else"),
    }
}

fn made(line: &str) -> Result<v1::CreateEnvelopeRequest, String> {
    let args = typed(line);
    let make = || {
        let kind = kind_of(&args)?;
        let code = currency_of(&args, kind)?;
        request(&args, kind, &code, &Currencies::default(), NOW_MS)
    };
    make().map_err(|failed: Failed| failed.sentence)
}

fn cny(minor_units: i64) -> v1::Money {
    v1::Money {
        currency_code: "CNY".to_owned(),
        minor_units,
    }
}

#[test]
fn a_lucky_envelope_takes_a_total_and_a_number_of_shares() {
    let request =
        made("alice --total 88.88 CNY --shares 10 --greeting 恭喜发财 --min 0.10").unwrap();
    assert_eq!(request.sender, "alice");
    assert_eq!(request.kind(), v1::EnvelopeKind::Lucky);
    assert_eq!(request.amount, Some(Amount::Total(cny(8_888))));
    assert_eq!((request.share_count, request.min_share_minor), (10, 10));
    assert_eq!(request.greeting, "恭喜发财");
    assert_eq!(
        (request.request_id.len(), request.client_nonce.len()),
        (32, 16)
    );
    assert_eq!(
        (request.split, request.audience, request.expires_in),
        (None, None, None)
    );
}

#[test]
fn the_kind_follows_from_what_was_given() {
    let equal = made("alice --each 5 CNY --shares 3").unwrap();
    assert_eq!(equal.kind(), v1::EnvelopeKind::Equal);
    assert_eq!(equal.amount, Some(Amount::PerShare(cny(500))));

    let exclusive = made("alice --to bob=8.88 --to x=y=1 --currency cny").unwrap();
    assert_eq!(exclusive.kind(), v1::EnvelopeKind::Exclusive);
    assert_eq!(exclusive.exclusive_currency_code, "CNY");
    let shares: Vec<_> = exclusive
        .exclusive_shares
        .iter()
        .map(|s| (s.grabber.as_str(), s.amount_minor))
        .collect();
    assert_eq!(shares, [("bob", 888), ("x=y", 100)]);
}

#[test]
fn tiers_groups_names_times_and_labels_arrive_in_the_request() {
    let request = made(
        "alice --total 10 CNY --shares 3 --tier 2.50x2 --tier 5x1 --named bob,carol \
         --expires 30m --open 10m --label campaign=spring --reveal-at-end",
    )
    .unwrap();
    let Some(v1::split::Rule::Tiers(tiers)) = request.split.unwrap().rule else {
        panic!("no tiers");
    };
    let tiers: Vec<_> = tiers
        .tiers
        .iter()
        .map(|t| (t.amount_minor, t.share_count))
        .collect();
    assert_eq!(tiers, [(250, 2), (500, 1)]);
    assert_eq!(request.expires_in.unwrap().seconds, 1_800);
    assert_eq!(words::ms_of(&request.open_time.unwrap()), NOW_MS + 600_000);
    assert_eq!(request.labels["campaign"], "spring");
    assert_eq!(request.reveal, i32::from(v1::Reveal::AtEnd));
    let Some(v1::audience::Audience::Named(named)) = request.audience.unwrap().audience else {
        panic!("not named");
    };
    assert_eq!(named.grabbers, ["bob", "carol"]);
}

#[test]
fn an_instant_may_carry_its_offset() {
    let request = made("alice --total 1 CNY --shares 1 --open 2026-02-17T00:00:00+08:00").unwrap();
    assert_eq!(request.open_time.unwrap().seconds, 1_771_257_600);
}

#[test]
fn a_request_that_is_repeated_by_its_id_is_the_same_to_the_byte() {
    let line = "alice --total 1 CNY --shares 1 --request-id again";
    assert_eq!(made(line).unwrap(), made(line).unwrap());
    assert_eq!(made(line).unwrap().request_id, "again");
}

#[test]
fn what_is_missing_or_does_not_belong_is_told_with_what_to_write() {
    for (line, says) in [
        ("alice", "how much? Add --total 88.88 CNY"),
        (
            "alice --total 5 CNY",
            "into how many shares? Add --shares 10",
        ),
        (
            "alice --kind equal --shares 2",
            "how much? Add --each 5 CNY, or --total 15 CNY",
        ),
        (
            "alice --kind exclusive",
            "an exclusive envelope names its grabbers: add --to bob=8.88 --currency CNY",
        ),
        ("alice --to bob=5", "in which currency? Add --currency CNY"),
        (
            "alice --kind lucky --to bob=5 --currency CNY",
            "--to belongs to --kind exclusive",
        ),
        (
            "alice --to bob --currency CNY",
            "--to must be a name and an amount such as bob=8.88, not \"bob\"",
        ),
        (
            "alice --total 5 CNY --shares 2 --split tiers",
            "which tiers? Add --tier 8.88x3 for three shares of 8.88",
        ),
        (
            "alice --total 5 CNY --shares 2 --split even --tier 1x5",
            "--tier belongs to --split tiers",
        ),
        (
            "alice --total 5 CNY --shares 2 --tier 1",
            "--tier must be an amount and a count such as 8.88x3, not \"1\"",
        ),
        (
            "alice --total 5 CNY --shares 2 --expires soon",
            "--expires must be a time such as 24h, 30m or 7d, not \"soon\"",
        ),
        (
            "alice --total 5 CNY --shares 2 --label spring",
            "--label must be a key and a value such as campaign=spring, not \"spring\"",
        ),
        (
            "alice --total 5 --shares 2",
            "--total must be an amount and a currency, such as 88.88 CNY, not \"5\"",
        ),
        (
            "alice --total 5.555 CNY --shares 2",
            "--total: \"5.555\" is no amount: write digits with at most 2 decimals, such as 8.88",
        ),
    ] {
        assert_eq!(made(line).unwrap_err(), says, "{line}");
    }
}

#[test]
fn a_passphrase_is_the_first_line_of_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("phrase");
    std::fs::write(&file, "开门 大吉\r\nnot this\n").unwrap();
    assert_eq!(passphrase(Some(&file), false).unwrap(), "开门 大吉");
    assert_eq!(passphrase(None, false).unwrap(), "");
    std::fs::write(&file, "\n").unwrap();
    assert_eq!(
        passphrase(Some(&file), false).unwrap_err().sentence,
        "the passphrase is empty"
    );
    let missing = passphrase(Some(&folder.path().join("nowhere")), false).unwrap_err();
    assert_eq!(missing.exit, EXIT_NO_INPUT);
}

#[test]
fn a_sent_envelope_is_told_with_what_to_do_next() {
    let envelope = v1::Envelope {
        envelope_id: "abc".to_owned(),
        sender: "alice".to_owned(),
        state: v1::EnvelopeState::Live.into(),
        total: Some(cny(8_888)),
        share_count: 10,
        greeting: "恭喜发财".to_owned(),
        expire_time: Some(Timestamp {
            seconds: NOW_MS / 1_000 + 86_400,
            nanos: 0,
        }),
        ..v1::Envelope::default()
    };
    let key = "f00d".to_owned();
    assert_eq!(
        sent_words(
            &Currencies::default(),
            &envelope,
            key,
            NOW_MS,
            Style::default()
        ),
        "alice sent 88.88 CNY in 10 shares: 恭喜发财\n  envelope    abc\n  state       live\n  \
         expires     in 1 d\n  seed        leaf 0 of batch 0\n  request id  f00d\n  \
         grab it     red-envelope grab abc --as NAME\n"
    );
}
