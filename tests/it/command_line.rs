//! The command line as a newcomer types it.

use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::server::PROGRAM;
use crate::harness::{Hot, World, on_both_stores};

on_both_stores! {
    a_newcomer_deposits_sends_grabs_looks_and_audits,
}

fn run(world: &World, arguments: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(arguments)
        .env("RED_ENVELOPE_SERVER", world.server.url(world.server.grpc()))
        .env(
            "RED_ENVELOPE_ADMIN",
            world.server.url(world.server.ports.admin),
        )
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn json(world: &World, arguments: &[&str]) -> Value {
    let mut with = arguments.to_vec();
    with.push("--json");
    serde_json::from_str(&said(&run(world, &with))).unwrap()
}

/// Commands are programs that block: off the test's own threads, so that nothing else waits.
async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn a_newcomer_deposits_sends_grabs_looks_and_audits(hot: Hot) {
    let world = World::on(hot).await;
    off(move || {
        said(&run(&world, &["deposit", "alice", "100 CNY"]));
        let sent = json(
            &world,
            &[
                "send",
                "alice",
                "--total",
                "88.88 CNY",
                "--shares",
                "3",
                "--greeting",
                "恭喜发财",
            ],
        );
        let id = sent["envelope"]["envelope_id"].as_str().unwrap().to_owned();
        for grabber in ["bob", "carol", "dave"] {
            assert!(said(&run(&world, &["grab", &id, "--as", grabber])).contains("CNY"));
        }
        let late = run(&world, &["grab", &id, "--as", "eve"]);
        assert_eq!(
            late.status.code(),
            Some(3),
            "no share is told by the exit code as well"
        );
        let shown = said(&run(&world, &["show", &id, "--as", "alice"]));
        for word in ["恭喜发财", "bob", "carol", "dave", "88.88 CNY"] {
            assert!(shown.contains(word), "{word} is not in:\n{shown}");
        }
        assert!(said(&run(&world, &["balance", "alice"])).contains("11.12 CNY"));
        said(&run(&world, &["watch", &id, "--as", "alice"]));
        let proof = run(&world, &["proof", &id, "--as", "alice"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proof.json");
        std::fs::write(&file, said(&proof)).unwrap();
        said(&run(&world, &["verify", file.to_str().unwrap()]));
        let tampered = std::fs::read_to_string(&file)
            .unwrap()
            .replacen("8888", "8889", 1);
        std::fs::write(&file, tampered).unwrap();
        let caught = run(&world, &["verify", file.to_str().unwrap()]);
        assert_eq!(caught.status.code(), Some(1));
        assert!(said(&run(&world, &["audit"])).starts_with("Clean"));
        let report = json(&world, &["audit"]);
        assert_eq!(report["clean"], true);
        let hot = said(&run(&world, &["audit", "--hot-only"]));
        assert!(hot.starts_with("Clean: every unit of what is hot"), "{hot}");
        assert!(!hot.contains("on accounts"), "{hot}");
        assert_eq!(json(&world, &["audit", "--hot-only"])["hot_only"], true);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_words_say_what_to_do() {
    let world = World::new().await;
    off(move || {
        let cases: [(&[&str], i32, &str); 5] = [
            (&["deposit", "alice", "1.234 CNY"], 64, "1.234"),
            (&["deposit", "alice", "5"], 64, "CNY"),
            (
                &["send", "alice", "--total", "1 CNY", "--shares", "2"],
                1,
                "available",
            ),
            (&["grab", "nonsense", "--as", "bob"], 64, "envelope"),
            (&["frobnicate"], 64, "frobnicate"),
        ];
        for (arguments, code, word) in cases {
            let output = run(&world, arguments);
            let text = String::from_utf8_lossy(&output.stderr).to_lowercase();
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
            assert!(text.contains(&word.to_lowercase()), "{arguments:?}: {text}");
            assert!(output.stdout.is_empty());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passphrase_that_is_typed_at_the_prompt_is_not_shown() {
    let world = World::new().await;
    off(move || {
        said(&run(&world, &["deposit", "alice", "100 CNY"]));
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let public = world.server.url(world.server.grpc());
        let output = Command::new(crate::contract::python())
            .arg(here.join("tests/it/prompt.py"))
            .arg(PROGRAM)
            .args(["send", "alice", "--total", "1 CNY", "--shares", "2"])
            .args(["--passphrase-prompt", "--server", &public])
            .output()
            .unwrap();
        let shown = said(&output);
        assert!(shown.contains("Passphrase: "), "{shown}");
        assert!(shown.contains("1.00 CNY"), "{shown}");
        assert!(!shown.contains("open sesame"), "{shown}");
    })
    .await;
}

#[test]
fn a_server_that_is_not_there_is_told_with_the_way_to_start_it() {
    let output = Command::new(PROGRAM)
        .args(["balance", "alice", "--server", "http://127.0.0.1:1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("red-envelope serve"), "{text}");
}
