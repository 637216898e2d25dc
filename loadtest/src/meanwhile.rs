//! Commands that run beside a rehearsal: bad days on purpose, and errors that are planted to see them found.
//!
//! `2000=kill -9 123` runs at that many milliseconds of the firing, `closed=…` when all envelopes have closed,
//! before anything is compared and audited. Each is a line for `sh`, with this program's input and outputs,
//! and must end with success: a bad day that did not happen proves nothing.
//!
//! **Bounds**: `COMMANDS_MAX` of them, each ended after `COMMAND_MAX`.

use std::process::{Command, ExitStatus};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Commands of one run.
pub const COMMANDS_MAX: usize = 16;
/// How long a command may run.
const COMMAND_MAX: Duration = Duration::from_secs(600);
/// How often a command is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One command and its instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meanwhile {
    when: When,
    line: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Counted from the start of the firing.
    Firing(Duration),
    /// When all envelopes have closed.
    Closed,
}

impl FromStr for Meanwhile {
    type Err = anyhow::Error;

    fn from_str(typed: &str) -> anyhow::Result<Self> {
        let (when, line) = typed
            .split_once('=')
            .context("not WHEN=COMMAND, such as 2000=COMMAND or closed=COMMAND")?;
        let when = match when {
            "closed" => When::Closed,
            ms => When::Firing(Duration::from_millis(ms.parse().with_context(|| {
                format!("{ms:?} is neither a number of milliseconds nor \"closed\"")
            })?)),
        };
        ensure!(!line.trim().is_empty(), "there is no command");
        Ok(Self {
            when,
            line: line.to_owned(),
        })
    }
}

/// Those of one run.
#[derive(Clone, Default)]
pub struct Commands {
    /// What to run.
    pub all: Vec<Meanwhile>,
    /// What each is told.
    pub environment: Vec<(&'static str, String)>,
}

impl Commands {
    /// Starts those of the firing, which begins at `start`, each at its instant.
    pub fn during(&self, start: Instant) -> JoinSet<anyhow::Result<()>> {
        let mut running = JoinSet::new();
        for Meanwhile { when, line } in &self.all {
            let When::Firing(at) = *when else { continue };
            let (line, environment) = (line.clone(), self.environment.clone());
            running.spawn(async move {
                tokio::time::sleep_until(start + at).await;
                tokio::task::spawn_blocking(move || run(&line, environment)).await?
            });
        }
        running
    }

    /// Runs those of the close, one after the other.
    ///
    /// Blocks the thread: nothing else happens then.
    pub fn closed(&self) -> anyhow::Result<()> {
        let all = self.all.iter().filter(|it| it.when == When::Closed);
        for Meanwhile { line, .. } in all {
            run(line, self.environment.clone())?;
        }
        Ok(())
    }
}

/// Waits for all that were started.
pub async fn ended(mut running: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(ended) = running.join_next().await {
        ended.context("a command's task panicked")??;
    }
    Ok(())
}

fn run(line: &str, environment: Vec<(&'static str, String)>) -> anyhow::Result<()> {
    let mut child = Command::new("sh")
        .args(["-c", line])
        .envs(environment)
        .spawn()
        .context("cannot run sh")?;
    let began = std::time::Instant::now();
    let status: ExitStatus = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > COMMAND_MAX {
            // Both fail if it has ended by itself.
            let _already_gone = child.kill();
            let _already_gone = child.wait();
            bail!("{line:?} did not end within {COMMAND_MAX:?}");
        }
        std::thread::sleep(LOOK_EVERY);
    };
    ensure!(status.success(), "{line:?} ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(typed: &[&str]) -> Commands {
        Commands {
            all: typed.iter().map(|it| it.parse().unwrap()).collect(),
            environment: vec![("RED_ENVELOPE_LOADTEST_FOLDER", "there".into())],
        }
    }

    #[test]
    fn a_command_may_hold_what_separates_it_from_its_instant() {
        let command: Meanwhile = "250=a=b".parse().unwrap();
        assert_eq!(command.when, When::Firing(Duration::from_millis(250)));
        assert_eq!(command.line, "a=b");
        for typed in ["kill", "soon=kill", "250= "] {
            assert!(typed.parse::<Meanwhile>().is_err(), "{typed}");
        }
    }

    #[tokio::test]
    async fn each_command_runs_at_its_own_instant_and_its_failure_is_told() {
        let all = commands(&[
            "50=exit 3",
            "closed=test \"$RED_ENVELOPE_LOADTEST_FOLDER\" = there",
        ]);
        let start = Instant::now();
        let failed = ended(all.during(start)).await.unwrap_err().to_string();
        assert!(start.elapsed() >= Duration::from_millis(50));
        assert!(failed.contains("exit status: 3"), "{failed}");
        all.closed().unwrap();
        assert!(commands(&["closed=false"]).closed().is_err());
    }
}
