//! Probes, metrics, and everything that must stop a start before a port is bound.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::server::PROGRAM;
use crate::harness::{Hot, Start, World, cny, lucky, on_both_stores};

on_both_stores! {
    probes_say_alive_and_ready_and_metrics_count_what_happened,
    a_data_folder_in_use_and_a_port_in_use_say_so,
    a_stop_is_clean_and_what_was_won_is_in_the_books,
}

pub async fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Starts a server that must not come up, with these flags in place of the usual ones.
fn serve(flags: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    let mut all = BTreeMap::from([
        ("--grpc-listen", "127.0.0.1:0"),
        ("--admin-listen", "127.0.0.1:0"),
        ("--http-listen", "127.0.0.1:0"),
        ("--data-dir", &data),
    ]);
    all.extend(flags.iter().copied());
    Command::new(PROGRAM)
        .arg("serve")
        .args(all.into_iter().flat_map(|(flag, value)| [flag, value]))
        .output()
        .unwrap()
}

fn says(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

async fn probes_say_alive_and_ready_and_metrics_count_what_happened(hot: Hot) {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(1_000)).await;
    let id = world.send(lucky("alice", cny(1_000), 1)).await.envelope_id;
    world.grab(&id, "bob").await;
    world.grab(&id, "carol").await;
    let port = world.server.ports.http;
    assert_eq!(get(port, "/livez").await.0, 200);
    let (status, reasons) = get(port, "/readyz").await;
    assert_eq!(status, 200, "{reasons}");
    let (status, metrics) = get(port, "/metrics").await;
    assert_eq!(status, 200);
    let counted = |name: &str, label: &str| {
        metrics
            .lines()
            .any(|line| line.starts_with(name) && line.contains(label) && line.ends_with(" 1"))
    };
    assert!(
        counted("red_envelope_grabs_total", "outcome=\"won\""),
        "{metrics}"
    );
    assert!(
        counted("red_envelope_grabs_total", "outcome=\"empty\""),
        "{metrics}"
    );
    assert!(!metrics.contains("alice"), "a metric names a person");
    assert_eq!(get(port, "/nothing").await.0, 404);
}

#[test]
fn beyond_loopback_it_refuses_to_start_without_identity() {
    let output = serve(&[("--grpc-listen", "0.0.0.0:0")]);
    assert_eq!(output.status.code(), Some(64));
    says(&output, &["loopback", "0.0.0.0"]);
}

#[test]
fn an_unknown_key_or_a_bad_value_stops_the_start_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "no_such_key = 1\n").unwrap();
    let output = serve(&[("--config", file.to_str().unwrap())]);
    assert_eq!(output.status.code(), Some(64));
    says(&output, &["no_such_key"]);
}

async fn a_data_folder_in_use_and_a_port_in_use_say_so(hot: Hot) {
    let world = World::on(hot).await;
    let data = world.server.data_folder();
    let output = serve(&[("--data-dir", data.to_str().unwrap())]);
    assert_eq!(output.status.code(), Some(64));
    says(&output, &["in use", data.to_str().unwrap()]);
    let taken = format!("127.0.0.1:{}", world.server.grpc());
    let output = serve(&[("--grpc-listen", &taken)]);
    assert_eq!(output.status.code(), Some(64));
    says(&output, &["in use", &taken]);
}

async fn a_stop_is_clean_and_what_was_won_is_in_the_books(hot: Hot) {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(1_000)).await;
    let id = world.send(lucky("alice", cny(1_000), 2)).await.envelope_id;
    let won = world.grab(&id, "bob").await.share.unwrap().amount.unwrap();
    assert!(
        world.server.stop().await.success(),
        "{}",
        world.server.log()
    );
    let mut world = world.restarted(Start::on(hot)).await;
    assert_eq!(world.balance("bob").await, (won.minor_units, 0, 0));
    world.audit_when_quiet().await;
}
