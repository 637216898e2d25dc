//! A plan from what a real run measured: a burst where programs are built for speed, and the refusal where not.

use std::path::Path;
use std::process::Command;

use super::{Folder, LOADTEST, loadtest, passes};

/// A fifth of the burst, which has grabs enough for a plan. Its figures may be those of a busy machine.
fn burst(folder: &Folder) -> std::path::PathBuf {
    let burst = include_str!("../../profiles/burst.toml");
    let small = burst
        .replace("shares = 50_000", "shares = 10_000")
        .replace("grabbers = 110_000", "grabbers = 22_000")
        .replace(
            "generator_late_ms_max = 100",
            "generator_late_ms_max = 60_000\ngenerator_cpu_permille_max = 1_000",
        );
    let path = folder.0.join("small.toml");
    std::fs::write(&path, small).unwrap();
    path
}

fn plan(report: &Path) -> (Option<i32>, String) {
    let output = Command::new(LOADTEST)
        .args(["plan", "--peak", "76000", "--redis-gib", "1", "--from"])
        .arg(report)
        .output()
        .unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    (output.status.code(), told)
}

#[test]
fn servers_are_planned_from_a_run_on_the_stores_of_a_fleet() {
    let folder = Folder::new("planned");
    let optimised = !cfg!(debug_assertions);
    let profile = match optimised {
        true => burst(&folder),
        false => folder.profile(),
    };
    let report = passes(&loadtest(&profile, &["--stack", "redis+postgres"]));
    let file = folder.0.join("report.json");
    std::fs::write(&file, report.to_string()).unwrap();
    let (code, told) = plan(&file);
    if !optimised {
        assert_eq!(code, Some(64), "{told}");
        assert!(told.contains("it was built without optimisation"), "{told}");
        return;
    }
    assert_eq!(code, Some(0), "{told}");
    let us = |process: &str| {
        let us = report["cpu_us_per_grab_until_closed"][process].as_f64();
        us.unwrap()
    };
    // Half of each core is headroom.
    let cores = |us: f64| 2.0 * 76_000.0 * us / 1e6;
    let pods = (cores(us("server")) / 4.0).ceil();
    let masters = cores(us("redis")).ceil();
    for line in [
        format!("{pods} pods, and one that may be away: {} PODS", pods + 1.0),
        format!("one core a master → {masters} masters"),
    ] {
        assert!(told.contains(&line), "{line:?} is not in\n{told}");
    }
    for part in ["REDIS MASTERS", "POSTGRESQL FOR CLAIMS", "FOR ACCOUNTS"] {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
}
