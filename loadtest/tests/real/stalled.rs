//! A server that stands still for two seconds: the report tells what its users had, and a clock that
//! starts at the send would not have seen it. A load test that stands still itself: the run is void.
//!
//! The bounds are those of the schedule. People come evenly over 8 s, and the server is stopped for 2 s of
//! them, wherever in the 8 s a busy machine lets that happen: whoever comes in the first half of these 2 s waits
//! for more than one second, and that is an eighth of everybody; a fortieth waits for more than 1.8 s. A slow
//! machine makes all of them wait longer, never shorter.

use super::{Folder, LOADTEST, Server, loadtest, passes};

/// 2,400 people, half of them by each transport, on one connection each with four grabs on the way.
const PROFILE: &str = r#"
name = "stall"
seed = 1

[fire]
connections = 1
in_flight_max = 4
late_ms = 20
give_up_ms = 60_000
timeout_ms = 60_000
tries_max = 6
close_s_max = 60

[[crowd]]
name = "everyone"
kind = "equal"
currency = "CNY"
envelopes = 1
shares = 2_400
share_mean_minor = 100
grabbers = 2_400
repeats_permille = 0
outsiders = 0
audience = "anyone"
via = "both"
spread_ms = 0
arrive = "evenly"
burst_ms = 8_000

[gates]
not_sent_permille_max = 0
unresolved_max = 0
unary_p99_ms_max = 60_000
stream_p99_ms_max = 60_000
generator_cpu_permille_max = 1_000
generator_late_ms_max = 60_000
"#;

#[test]
fn a_stalled_server_is_the_latency_of_its_users_and_no_latency_from_the_send() {
    let folder = Folder::new("stalled");
    let profile = folder.0.join("stall.toml");
    std::fs::write(&profile, PROFILE).unwrap();
    let program = std::path::Path::new(LOADTEST).with_file_name("red-envelope");
    assert!(program.exists(), "build the server first: cargo build");
    let (server, [public, admin]) = Server::start(&program, &folder.0.join("data"));
    let pid = server.0.id();
    let stall = format!("3000=kill -STOP {pid} && sleep 2; kill -CONT {pid}");
    let there = ["--server", &public, "--admin", &admin];
    let output = loadtest(&profile, &[&there[..], &["--meanwhile", &stall]].concat());
    let report = passes(&output);

    for transport in ["unary", "stream"] {
        let side = &report[transport];
        assert_eq!(side["sent"], 1_200, "{transport}: {report:#}");
        let ms = |figure: &str, quantile: &str| side[figure][quantile].as_f64().unwrap();
        for (quantile, least) in [("p90", 1_000.0), ("p99", 1_800.0), ("max", 1_900.0)] {
            let found = ms("latency_ms", quantile);
            assert!(found >= least, "{transport} {quantile}: {found} ms");
        }
        // From the send the four that were on the way saw it, of 1,200: p99 is blind to them. Twelve grabs
        // of a second each, four at a time, would take a machine that stops three times more.
        let blind = ms("from_send_ms", "p99");
        assert!(blind < 1_000.0, "{transport} from the send: {blind} ms");
        let seen = ms("from_send_ms", "max");
        assert!(seen >= 1_900.0, "{transport} from the send: {seen} ms");
        // Whoever was behind waited for a place, which is no fault of the load test.
        let own = ms("own_delay_ms", "p99");
        assert!(own < 1_000.0, "{transport} own delay: {own} ms");
    }
}

/// The load test is the parent of what it runs meanwhile.
const STALL_THE_LOAD_TEST: &str = "3000=kill -STOP $PPID && sleep 2; kill -CONT $PPID";

#[test]
fn a_load_test_that_stood_still_measured_itself_and_its_run_is_void() {
    let folder = Folder::new("stalled-itself");
    let profile = folder.0.join("stall.toml");
    // Places for everybody, and the limit of every profile that names none.
    let text = PROFILE
        .replace("in_flight_max = 4", "in_flight_max = 1_024")
        .replace("generator_late_ms_max = 60_000", "");
    std::fs::write(&profile, text).unwrap();
    let program = std::path::Path::new(LOADTEST).with_file_name("red-envelope");
    let (_server, [public, admin]) = Server::start(&program, &folder.0.join("data"));
    let there = ["--server", &public, "--admin", &admin];
    let output = loadtest(
        &profile,
        &[&there[..], &["--meanwhile", STALL_THE_LOAD_TEST]].concat(),
    );
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("VOID   one "), "{told}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["passed"], false);
    assert_eq!(report["audit"]["clean"], true, "{report:#}");
    let gates = report["gates"].as_array().unwrap();
    assert!(gates.iter().all(|gate| gate["met"] == true), "{gates:#?}");
    let why = report["generator"]["void"].as_str().unwrap();
    assert!(why.contains("late by the generator's own fault"), "{why}");
    for transport in ["unary", "stream"] {
        let own = report[transport]["own_delay_ms"]["p99"].as_f64().unwrap();
        assert!(own >= 1_800.0, "{transport} own delay: {own} ms");
    }
}
