//! Asks a person for a line that nobody should read over a shoulder.
//!
//! # Bounds
//! As a file's first line.
//!
//! # If it crashes here
//! A process that is killed while it asks leaves the terminal without echo, as every program that
//! asks so does; a shell turns it on again, and `stty echo` does.

use std::io::{IsTerminal as _, Write as _};
use std::process::{Command, Stdio};

use super::first_line;

/// The terminal shows what is typed again when this is dropped.
struct Unseen;

impl Unseen {
    /// `None`: the terminal can't be told, and what is typed is seen.
    fn begin() -> Option<Self> {
        stty("-echo").then_some(Self)
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        stty("echo");
        // The return key was not shown either.
        eprintln!();
    }
}

/// POSIX has one program that every shell uses for this, and no call without `unsafe`.
fn stty(setting: &str) -> bool {
    let set = Command::new("stty")
        .arg(setting)
        .stdin(Stdio::inherit())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    set.is_ok_and(|status| status.success())
}

/// The first line of standard input. On a terminal it is asked for, and not shown.
pub(super) fn unseen_line(what: &str) -> std::io::Result<String> {
    if !std::io::stdin().is_terminal() {
        return first_line(std::io::stdin());
    }
    let unseen = Unseen::begin();
    match unseen {
        Some(_) => eprint!("{what}: "),
        None => eprint!("{what} (it will be seen): "),
    }
    let _closed = std::io::stderr().flush();
    first_line(std::io::stdin())
}
