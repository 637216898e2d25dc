//! Rehearses the peak against a real server and ends with the money audit.
//!
//! | phase | room |
//! |---|---|
//! | read the profile, plan every arrival | `profile`, `schedule` |
//! | find or start the server and its stores | `server`, `stack` |
//! | deposit, create | `prepare` |
//! | grab, check each answer | `fire`, `stream`, `book`, `record` |
//! | recall, wait for the close, compare lists and balances | `finish` |
//! | audit, judge, tell | `audit`, `report`, `html`, `files` |
//! | the order of all this | `rehearse` |
//! | meanwhile: CPU time, memory, the server's metrics | `sample` of `process`, `scrape` |
//!
//! What is done with the reports of runs: `compare`, `plan`, `html`.
//!
//! It knows the contract and the documented metrics, and nothing else of the server.
//!
//! **Exit codes**: 0 every gate met · 1 a gate or the audit failed, the run broke or is void, or a comparison found
//! a regression · 64 the command line, the profile or a report is wrong · 65 a comparison could judge nothing ·
//! 69 no server answers.

mod abreast;
mod again;
mod audit;
mod book;
#[cfg(test)]
mod cheat;
mod compare;
mod files;
mod finish;
mod fire;
mod generator;
mod html;
mod meanwhile;
mod plan;
mod prepare;
mod process;
mod profile;
mod record;
mod rehearse;
mod report;
mod sample;
mod schedule;
mod scrape;
mod server;
mod stack;
mod stream;
mod text;
mod timeline;
mod world;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};

use crate::compare::Compared;
use crate::files::Files;
use crate::meanwhile::{COMMANDS_MAX, Commands, Meanwhile};
use crate::profile::Profile;
use crate::rehearse::Target;
use crate::report::Report;
use crate::scrape::Scrape;
use crate::server::{Address, OwnServer, Unreachable};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command line or the profile is wrong (EX_USAGE).
const EXIT_USAGE: u8 = 64;
/// The reports that are compared can't say anything (EX_DATAERR).
const EXIT_NO_VERDICT: u8 = 65;
/// No server answers (EX_UNAVAILABLE).
const EXIT_UNREACHABLE: u8 = 69;

/// Rehearses the peak against a red-envelope server, checks every answer, and ends with the money
/// audit.
///
/// Without --server it starts the red-envelope program of its own folder, and the stores of --stack,
/// with data in a temporary folder, and stops them at the end.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Exit codes: 0 all gates met, 1 a gate or the audit failed, the run is void, or a comparison \
    found a regression, 64 bad usage, 65 a comparison could judge nothing, 69 no server answers."
)]
struct Arguments {
    #[command(subcommand)]
    then: Option<Then>,

    #[arg(required = true, help = profile::manual())]
    profile: Option<String>,

    /// Send the load to a running server's public listener, as http://127.0.0.1:50051
    #[arg(long, value_name = "URL", requires = "admin")]
    server: Option<String>,

    /// The same server's admin listener, for the audit, as http://127.0.0.1:50052
    #[arg(long, value_name = "URL", requires = "server")]
    admin: Option<String>,

    /// The same server's metrics, for the report, as http://127.0.0.1:8080
    #[arg(long, value_name = "URL", requires = "server")]
    metrics: Option<String>,

    #[command(flatten)]
    own: stack::Own,

    /// Write the report as JSON into this file; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write the report with its plots into this file, as one page that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// So many times the profile's envelopes in the same time; of a crowd with one envelope, so many
    /// times its shares and people. Fractions shrink
    #[arg(long, value_name = "TIMES", value_parser = profile::times)]
    scale: Option<f64>,

    /// Stretch the firing to so many minutes at the profile's rate
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=profile::MINUTES_MAX))]
    minutes: Option<u32>,

    /// Run a line of `sh` beside the firing at that many milliseconds of it (`2000=COMMAND`), or when all
    /// envelopes have closed, before anything is compared and audited (`closed=COMMAND`). May be repeated.
    /// A server that was started here is told by RED_ENVELOPE_LOADTEST_FOLDER, _SERVER (its process) and
    /// _STORES (its flags)
    #[arg(long, value_name = "WHEN=COMMAND")]
    meanwhile: Vec<Meanwhile>,

    /// Plan the arrivals from this seed instead of the profile's
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// What is done with reports that were written before.
#[derive(Subcommand)]
enum Then {
    /// Says which figures of two runs, or of several runs on each side, differ by more than noise
    Compare(compare::Words),
    /// Works out the servers for a peak from what a rehearsal measured
    Plan(plan::Words),
    /// Draws a report of --json as a page
    Draw {
        /// What --json wrote
        report: PathBuf,
        /// The page
        html: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way too: they are no misuse.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            let _broken_pipe = error.print();
            return ExitCode::from(code);
        }
    };
    if let Some(then) = &arguments.then {
        return afterwards(then);
    }
    let (profile, target, files) = match read(&arguments) {
        Ok(read) => read,
        Err(error) => {
            say(&format!("{error:#}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(run(&arguments, profile, target, &files)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("{error:#}"));
            if error.is::<Unreachable>() {
                ExitCode::from(EXIT_UNREACHABLE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Whoever can't read a report, or asks it what it does not say, has used it wrongly.
fn afterwards(then: &Then) -> ExitCode {
    let done = match then {
        Then::Compare(words) => compare::compare(words).map(|(words, compared)| {
            let code = match compared {
                Compared::Well => 0,
                Compared::Worse => 1,
                Compared::Nothing => EXIT_NO_VERDICT,
            };
            (words, code)
        }),
        Then::Plan(words) => plan::plan(words).map(|words| (words, 0)),
        Then::Draw { report, html } => Report::read(report)
            .and_then(|report| draw(&report, html))
            .map(|()| (format!("{} is written", html.display()), 0)),
    };
    match done {
        Ok((words, code)) => {
            let _broken_pipe = writeln!(std::io::stdout(), "{words}");
            ExitCode::from(code)
        }
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn draw(report: &Report, file: &Path) -> anyhow::Result<()> {
    let page = html::page(report);
    std::fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))
}

fn say(words: &str) {
    // Whoever closed standard error does not want to know.
    let _closed = writeln!(std::io::stderr(), "loadtest: {words}");
}

/// What can be wrong before anything runs.
fn read(arguments: &Arguments) -> anyhow::Result<(Profile, Option<Target<'static>>, Files)> {
    let name = arguments.profile.as_deref();
    let mut profile = profile::load(name.context("no profile is named")?)?;
    profile.seed = arguments.seed.unwrap_or(profile.seed);
    if let Some(times) = arguments.scale {
        profile = profile.scaled(times)?;
    }
    if let Some(minutes) = arguments.minutes {
        profile = profile.lasting(minutes)?;
    }
    let commands = arguments.meanwhile.len();
    ensure!(
        commands <= COMMANDS_MAX,
        "{commands} commands to run meanwhile, more than {COMMANDS_MAX}"
    );
    arguments.own.check()?;
    let metrics = arguments.metrics.as_deref().map(Scrape::parse);
    let metrics = metrics.transpose()?;
    let target = match (&arguments.server, &arguments.admin) {
        (Some(public), Some(admin)) => Some(Target {
            public: vec![Address::parse(public)?],
            admin: Address::parse(admin)?,
            metrics: metrics.into_iter().collect(),
            own: None,
            meanwhile: Commands {
                all: arguments.meanwhile.clone(),
                environment: Vec::new(),
            },
        }),
        _ => None,
    };
    let files = Files::open(arguments.json.as_deref(), arguments.html.as_deref())?;
    Ok((profile, target, files))
}

/// One run, with a server of its own if none was named.
async fn run(
    arguments: &Arguments,
    profile: Profile,
    target: Option<Target<'_>>,
    files: &Files,
) -> anyhow::Result<bool> {
    let Some(target) = target else {
        let own = OwnServer::start(&arguments.own, say).await?;
        let target = Target {
            public: own.public.clone(),
            admin: own.admin.clone(),
            metrics: own.metrics.clone(),
            own: Some(&own),
            meanwhile: Commands {
                all: arguments.meanwhile.clone(),
                environment: own.environment(),
            },
        };
        let passed = rehearse_and_tell(files, profile, &target).await;
        let keep_data = !matches!(passed, Ok(true));
        if keep_data {
            say(&format!(
                "the server's data and log stay in {}",
                own.folder().display()
            ));
        }
        let stopped = own.stop(keep_data).await;
        let passed = passed?;
        stopped?;
        return Ok(passed);
    };
    rehearse_and_tell(files, profile, &target).await
}

async fn rehearse_and_tell(
    files: &Files,
    profile: Profile,
    target: &Target<'_>,
) -> anyhow::Result<bool> {
    let report = rehearse::rehearse(profile, target).await?;
    files.tell(&report)?;
    Ok(report.passed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(arguments: &[&str]) -> Option<clap::error::ErrorKind> {
        let all = std::iter::once(&"loadtest").chain(arguments);
        Arguments::try_parse_from(all).err().map(|it| it.kind())
    }

    #[test]
    fn a_server_without_its_admin_listener_cannot_be_audited() {
        use clap::error::ErrorKind::MissingRequiredArgument;
        let server = ["smoke", "--server", "http://127.0.0.1:1"];
        assert_eq!(code(&server), Some(MissingRequiredArgument));
        let admin = ["smoke", "--admin", "http://127.0.0.1:1"];
        assert_eq!(code(&admin), Some(MissingRequiredArgument));
        assert_eq!(code(&["smoke"]), None);
    }

    #[test]
    fn what_is_done_with_reports_needs_no_profile_and_takes_none() {
        use clap::error::ErrorKind::{ArgumentConflict, MissingRequiredArgument};
        assert_eq!(code(&["compare", "a.json", "b.json"]), None);
        assert_eq!(code(&["plan", "--peak", "9", "--from", "a.json"]), None);
        assert_eq!(code(&["compare", "a.json"]), Some(MissingRequiredArgument));
        assert_eq!(code(&[]), Some(MissingRequiredArgument));
        let both = ["--seed", "1", "compare", "a.json", "b.json"];
        assert_eq!(code(&both), Some(ArgumentConflict));
    }

    #[test]
    fn the_help_names_every_profile_and_every_exit_code() {
        use clap::CommandFactory as _;
        let help = Arguments::command().render_help().to_string();
        let profiles = [
            "smoke",
            "burst",
            "new-year-eve",
            "red-rain",
            "retry-storm",
            "soak",
        ];
        for told in profiles.into_iter().chain(["64 ", "65 ", "69 "]) {
            assert!(help.contains(told), "{told:?} is not in\n{help}");
        }
    }
}
