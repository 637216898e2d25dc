//! A server that is killed while people grab: the worst night is when a report is wanted most.

use super::{Folder, LOADTEST, Server};

/// A thousand people within three seconds, whose clients give up soon.
const PROFILE: &str = r#"
name = "died"
seed = 1

[fire]
connections = 1
in_flight_max = 1_024
late_ms = 20
give_up_ms = 60_000
timeout_ms = 1_000
tries_max = 2
close_s_max = 60

[[crowd]]
name = "everyone"
kind = "equal"
currency = "CNY"
envelopes = 1
shares = 1_000
share_mean_minor = 100
grabbers = 1_000
repeats_permille = 0
outsiders = 0
audience = "anyone"
via = "both"
spread_ms = 0
arrive = "evenly"
burst_ms = 3_000

[gates]
not_sent_permille_max = 0
unresolved_max = 0
unary_p99_ms_max = 60_000
stream_p99_ms_max = 60_000
generator_cpu_permille_max = 1_000
generator_late_ms_max = 60_000
"#;

#[test]
fn a_server_that_is_killed_leaves_the_whole_report_and_a_failure() {
    let folder = Folder::new("died");
    let at = |name: &str| folder.0.join(name).to_str().unwrap().to_owned();
    let (profile, json, page) = (at("died.toml"), at("died.json"), at("died.html"));
    std::fs::write(&profile, PROFILE).unwrap();
    let program = std::path::Path::new(LOADTEST).with_file_name("red-envelope");
    assert!(program.exists(), "build the server first: cargo build");
    let (server, [public, admin]) = Server::start(&program, &folder.0.join("data"));
    let kill = format!("1500=kill -9 {}", server.0.id());
    let there = ["--server", &public, "--admin", &admin];
    let files = ["--json", &json, "--html", &page];
    let output = std::process::Command::new(LOADTEST)
        .arg(&profile)
        .args([&there[..], &files, &["--meanwhile", &kill]].concat())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));

    let words = String::from_utf8_lossy(&output.stdout);
    for told in [
        "p99 ms",
        "could not be compared: ",
        "could not be audited: ",
        "FAILED",
    ] {
        assert!(words.contains(told), "{told:?} is not in\n{words}");
    }
    let report = std::fs::read_to_string(&json).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["passed"], false);
    let gates = report["gates"].as_array().unwrap();
    let missed = gates.iter().filter(|gate| gate["met"] == false);
    let missed: Vec<&str> = missed.map(|gate| gate["name"].as_str().unwrap()).collect();
    assert_eq!(missed, ["comparison", "audit", "unresolved"]);
    // Those of before had their answers, and nobody else is left out.
    let of = |transport: &str, label: &str| report[transport]["outcomes"][label].as_u64();
    for transport in ["unary", "stream"] {
        let (won, unresolved) = (of(transport, "won"), of(transport, "unresolved"));
        assert!(won > Some(0) && unresolved > Some(0), "{report:#}");
        assert_eq!(won.zip(unresolved).map(|(a, b)| a + b), Some(500));
    }
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("Money audit: there was none."));
    assert!(page.contains("could not be compared: "));
}

#[test]
fn a_report_that_could_not_be_written_is_refused_before_anybody_grabs() {
    let folder = Folder::new("unwritable");
    let nowhere = folder.0.join("no-such-folder/report");
    for file in ["--json", "--html"] {
        let output = std::process::Command::new(LOADTEST)
            .args(["smoke", file])
            .arg(&nowhere)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(64));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("cannot write"), "{told}");
    }
}
