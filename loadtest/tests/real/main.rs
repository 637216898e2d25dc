//! Real programs: the load test starts a server of its own, is sent to one that runs already, and
//! finds none; the server or the load test is stopped for a while (`stalled`), the server is killed (`died`), its
//! books are edited (`planted`), and servers are planned from what a run measured (`planned`).

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod died;
mod planned;
mod planted;
mod stalled;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const LOADTEST: &str = env!("CARGO_BIN_EXE_loadtest");
/// Looks for the ports that a server announces, and the rest between two: 30 s in all.
const LOOKS_MAX: u32 = 1_500;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A new folder under cargo's, which goes at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// The smoke profile, shortened to what proves that the programs meet.
    fn profile(&self) -> PathBuf {
        let smoke = include_str!("../../profiles/smoke.toml");
        let short = smoke
            .replace("spread_ms = 6_000", "spread_ms = 200")
            .replace("envelopes = 30", "envelopes = 3")
            .replace("envelopes = 20", "envelopes = 2")
            .replace("envelopes = 10", "envelopes = 1")
            .replace("_p99_ms_max = 5_000", "_p99_ms_max = 60_000")
            .replace("give_up_ms = 2_000", "give_up_ms = 60_000");
        let path = self.0.join("short.toml");
        std::fs::write(&path, short).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// A server that somebody else started.
struct Server(Child);

impl Server {
    /// Starts it, and answers where its two listeners are.
    fn start(program: &Path, data: &Path) -> (Self, [String; 2]) {
        let child = Command::new(program)
            .arg("serve")
            .arg("--data-dir")
            .arg(data)
            .args(["--grpc-listen", "127.0.0.1:0"])
            .args(["--admin-listen", "127.0.0.1:0"])
            .args(["--http-listen", "127.0.0.1:0"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self(child);
        for _ in 0..LOOKS_MAX {
            let text = std::fs::read_to_string(data.join("ports.json")).unwrap_or_default();
            if let Ok(ports) = serde_json::from_str::<serde_json::Value>(&text) {
                let at = |listener: &str| format!("http://127.0.0.1:{}", ports[listener]);
                return (server, [at("grpc"), at("admin")]);
            }
            assert!(server.runs(), "the server ended when it was started");
            std::thread::park_timeout(LOOK_EVERY);
        }
        panic!("the server announced no ports");
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _already_gone = self.0.wait();
    }
}

fn loadtest(profile: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(LOADTEST);
    command.arg(profile).args(more).args(["--json", "-"]);
    command.output().unwrap()
}

/// It passed, and its JSON says so. Answers that.
fn passes(output: &Output) -> serde_json::Value {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}", output.status);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["audit"]["clean"], true, "{report}");
    assert_eq!(report["audit"]["quiet"], true, "{report}");
    report
}

#[test]
fn a_server_of_its_own_and_one_that_runs_already_pass_the_same_rehearsal() {
    let folder = Folder::new("real");
    let profile = folder.profile();
    // Builds the server beside this program if it is missing.
    passes(&loadtest(&profile, &[]));

    let program = Path::new(LOADTEST).with_file_name("red-envelope");
    let (mut server, [public, admin]) = Server::start(&program, &folder.0.join("data"));
    let there = ["--server", &public, "--admin", &admin];
    passes(&loadtest(&profile, &there));
    // Twice on the same books: a run has people and envelopes of its own.
    let typed_short = [
        "--server",
        public.trim_start_matches("http://"),
        "--admin",
        admin.trim_start_matches("http://"),
    ];
    passes(&loadtest(&profile, &typed_short));
    assert!(
        server.runs(),
        "a server that was found running is left running"
    );

    drop(server);
    let nobody = loadtest(&profile, &there);
    assert_eq!(nobody.status.code(), Some(69));
    let told = String::from_utf8_lossy(&nobody.stderr);
    assert!(
        told.contains(&format!("no server answers at {public}")),
        "{told}"
    );
}

/// The servers are those of the tests (`scripts/with-servers`), or Debian's.
#[test]
fn stores_of_its_own_are_started_with_the_server_and_ended_after_it() {
    let folder = Folder::new("stacks");
    let profile = folder.profile();
    for (stack, stores) in [
        (["--stack", "redis", "--ack", "memory"], &["redis"][..]),
        (
            ["--stack", "redis+postgres", "--ack", "ledger"],
            &["redis", "postgres"],
        ),
    ] {
        let output = loadtest(&profile, &stack);
        let report = passes(&output);
        let cpu = &report["cpu_us_per_grab_until_closed"];
        for process in ["loadtest", "server"].iter().chain(stores) {
            assert!(cpu[process].as_f64().unwrap() > 0.0, "{process}: {cpu}");
        }
    }
    let refused = loadtest(&profile, &["--processes", "2", "--stack", "redis"]);
    assert_eq!(refused.status.code(), Some(64));
    let refused = loadtest(&profile, &["--ack", "memory"]);
    assert_eq!(refused.status.code(), Some(64));
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("add --stack redis"), "{told}");
}

#[test]
fn several_servers_share_the_load_and_the_stores() {
    let folder = Folder::new("fleet");
    let json = folder.0.join("fleet.json");
    let words = ["--stack", "redis+postgres", "--processes", "2"];
    let report = passes(&loadtest(&folder.profile(), &words));
    assert_eq!(report["setup"]["processes"], 2);
    let answered = report["answered_by"].as_object().unwrap();
    let sent = |transport: &str| report[transport]["sent"].as_u64().unwrap();
    let mut sum = 0;
    for server in ["server", "server 2"] {
        let grabs = answered[server].as_u64().unwrap();
        assert!(grabs > 0, "{answered:?}");
        let memory = report["memory"][server]["peak_bytes"].as_u64();
        assert!(memory.unwrap() > 1 << 20, "{server}");
        sum += grabs;
    }
    let sent = [sent("unary"), sent("stream")];
    assert!(sum >= sent.iter().sum(), "{answered:?} of {sent:?}");
    adds_up(&report);
    std::fs::write(&json, report.to_string()).unwrap();
    let page = folder.0.join("fleet.html");
    let drawn = Command::new(LOADTEST)
        .arg("draw")
        .args([&json, &page])
        .output();
    assert!(drawn.unwrap().status.success());
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("2 servers on stores redis+postgres"));
}

/// What the run recorded, second by second, adds up to what it told of the whole.
fn adds_up(report: &serde_json::Value) {
    assert_eq!(report["format"], 2);
    let counts = |of: &serde_json::Value| -> u64 {
        let slots = of.as_array().unwrap();
        slots.iter().map(|slot| slot.as_u64().unwrap()).sum()
    };
    for transport in ["unary", "stream"] {
        let (lines, over_time) = (&report[transport], &report[transport]["over_time"]);
        assert_eq!(counts(&over_time["sent"]), lines["sent"], "{transport}");
        let answered = over_time["answered"].as_object().unwrap();
        let answered: u64 = answered.values().map(counts).sum();
        assert_eq!(answered, lines["sent"], "{transport}");
    }
    // The server told its own side, and had posted everything at the end.
    let server = &report["samples"]["server"];
    let last = |name: &str| server[name].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last("backlog"), 0.0, "{report}");
    let claims = report["audit"]["claims"].as_f64().unwrap();
    assert!(last("settled").as_f64().unwrap() >= claims, "{report}");
    assert!(report["memory"]["server"]["peak_bytes"].as_u64().unwrap() > 1 << 20);
    let batches = report["batches"]["settle_batch_records"].as_array();
    assert!(!batches.unwrap().is_empty());
}

#[test]
fn what_a_run_tells_is_drawn_and_compared_and_planned_from_only_if_it_can_be() {
    let folder = Folder::new("told");
    let at = |name: &str| folder.0.join(name).to_str().unwrap().to_owned();
    let (json, page, again) = (at("a.json"), at("a.html"), at("b.html"));
    let run = |arguments: &[&str], code: i32| {
        let output = Command::new(LOADTEST).args(arguments).output().unwrap();
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told).into_owned();
        assert_eq!(output.status.code(), Some(code), "{told}");
        told
    };
    let profile = folder.profile();
    let files = ["--json", &json, "--html", &page];
    run(&[&[profile.to_str().unwrap()], &files[..]].concat(), 0);
    adds_up(&serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap());

    run(&["draw", &json, &again], 0);
    let pages = [page, again].map(|page| std::fs::read_to_string(page).unwrap());
    assert_eq!(pages[0], pages[1]);
    assert!(pages[0].contains("Money audit: clean."));

    // One short run of each says nothing, and does not say that all is well.
    let told = run(&["compare", &json, &json], 65);
    assert!(told.contains("NOTHING COULD BE JUDGED"), "{told}");
    std::fs::write(at("old.json"), "{}").unwrap();
    let told = run(&["compare", &json, &at("old.json")], 64);
    assert!(
        told.contains("old.json") && told.contains("format is none"),
        "{told}"
    );

    let told = run(&["plan", "--peak", "760000", "--from", &json], 64);
    assert!(
        told.contains("burst --stack redis+postgres --json"),
        "{told}"
    );
}
