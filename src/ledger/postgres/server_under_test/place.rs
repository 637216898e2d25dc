//! Where a server under test lies: its folder, its port, and programs that its user may read.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rand::RngExt;

use super::{as_nobody, is_root};

/// Where free ports are looked for: below those that the kernel gives to outgoing connections, so that a
/// port stays ours while the server is down; and below those of the Redis servers of tests.
const PORTS: std::ops::Range<u16> = 12_000..20_000;
/// Where files are in memory.
const MEMORY: &str = "/dev/shm";
/// Free bytes that it takes: a server's files and its log.
const MEMORY_BYTES_MIN: u64 = 4 << 30;

/// Where a sync costs nothing, if there is room: tests of what survives kill -9 prove nothing of disks.
pub(super) fn in_memory() -> PathBuf {
    let asked = Command::new("df")
        .args(["--output=avail", "-B1", MEMORY])
        .output();
    let told = asked.map(|answer| String::from_utf8_lossy(&answer.stdout).into_owned());
    let free = told
        .ok()
        .and_then(|told| told.lines().last()?.trim().parse::<u64>().ok());
    match free {
        Some(free) if free >= MEMORY_BYTES_MIN => PathBuf::from(MEMORY),
        _ => std::env::temp_dir(),
    }
}

/// A new folder, of the user who is going to run the server.
pub(super) fn make_folder(parent: &Path) -> PathBuf {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!(
        "red-envelope-pg-{}-{number}-{:08x}",
        std::process::id(),
        rand::random::<u32>()
    );
    let folder = parent.join(name);
    std::fs::create_dir_all(&folder).expect("a temporary folder can be made");
    if is_root() {
        let owned = Command::new("chown").arg("nobody").arg(&folder).status();
        assert!(owned.is_ok_and(|status| status.success()), "chown nobody");
    }
    folder
}

/// The programs, where the user that runs them may read them: else a copy of their release. A wheel keeps
/// its libraries in a folder two above the release, and so does the copy.
pub(super) fn in_reach(programs: PathBuf, folder: &Path) -> PathBuf {
    let mut words = as_nobody(Path::new("test"));
    words.extend(["-x".into(), programs.join("initdb").into()]);
    let reached = Command::new(&words[0]).args(&words[1..]).status();
    if reached.is_ok_and(|status| status.success()) {
        return programs;
    }
    let (wheels, copies) = (programs.join("../../.."), folder.join("wheels"));
    let release = copies.join("wheel/release");
    std::fs::create_dir_all(&release).expect("its folder is this test's");
    copy(&programs.join(".."), &release);
    for entry in std::fs::read_dir(&wheels).expect("the tests read what they start") {
        let library = entry.expect("a folder can be listed").path();
        if library.extension().is_some_and(|end| end == "libs") {
            let name = library.file_name().expect("it was listed by its name");
            copy(&library, &copies.join(name));
        }
    }
    // They were installed under the umask of whoever installed them.
    let opened = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(&copies)
        .status();
    assert!(opened.is_ok_and(|status| status.success()), "chmod -R");
    release.join("bin")
}

/// Copies what is in a folder.
fn copy(from: &Path, to: &Path) {
    let from = from.join(".");
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp -r");
}

/// A port at which nobody listens now.
pub(super) fn free_port() -> u16 {
    for _ in 0..PORTS.len() {
        let port = rand::rng().random_range(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}
