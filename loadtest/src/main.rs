//! Rehearses the peak against a real server and ends with the money audit.
//!
//! | phase | room |
//! |---|---|
//! | read the profile, plan every arrival | `profile`, `schedule` |
//! | find or start the server and its stores | `server`, `stack` |
//! | deposit, create | `prepare` |
//! | grab, check each answer | `fire`, `stream`, `book`, `record` |
//! | recall, wait for the close, compare lists and balances | `finish` |
//! | audit, judge, tell | `audit`, `report` |
//!
//! It knows the contract and nothing else of the server.
//!
//! **Exit codes**: 0 every gate met · 1 a gate or the audit failed, or the run broke · 64 the
//! command line or the profile is wrong · 69 no server answers.

mod abreast;
mod audit;
mod book;
#[cfg(test)]
mod cheat;
mod finish;
mod fire;
mod generator;
mod meanwhile;
mod prepare;
mod profile;
mod record;
mod report;
mod schedule;
mod server;
mod stack;
mod stream;
mod world;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rand::RngExt as _;
use tokio::time::Instant;

use crate::meanwhile::{COMMANDS_MAX, Commands, Meanwhile};
use crate::profile::Profile;
use crate::report::{Cpu, Outcome, Report};
use crate::server::{Address, OwnServer, Unreachable};
use crate::stack::cpu_of;
use crate::world::World;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command line or the profile is wrong (EX_USAGE).
const EXIT_USAGE: u8 = 64;
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
    after_help = "Exit codes: 0 all gates met, 1 a gate or the audit failed, \
    64 bad usage, 69 no server answers."
)]
struct Arguments {
    /// What to rehearse: `smoke`, `burst`, or the path of a .toml file (loadtest/profiles/smoke.toml is
    /// the manual)
    profile: String,

    /// Send the load to a running server's public listener, as http://127.0.0.1:50051
    #[arg(long, value_name = "URL", requires = "admin")]
    server: Option<String>,

    /// The same server's admin listener, for the audit, as http://127.0.0.1:50052
    #[arg(long, value_name = "URL", requires = "server")]
    admin: Option<String>,

    #[command(flatten)]
    own: stack::Own,

    /// Write the report as JSON into this file; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

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

/// Where the load goes.
struct Target<'a> {
    public: Address,
    admin: Address,
    /// Whose CPU time can be told.
    own: Option<&'a OwnServer>,
    /// What happens beside the rehearsal.
    meanwhile: Commands,
}

impl Target<'_> {
    /// CPU time by process, this one's first.
    fn cpu(&self) -> Cpu {
        let own = cpu_of(std::process::id(), false).map(|time| ("loadtest", time));
        let others = self.own.into_iter().flat_map(OwnServer::cpu);
        Cpu(own.into_iter().chain(others).collect())
    }
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
    let (profile, target) = match read(&arguments) {
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
        .and_then(|runtime| runtime.block_on(run(&arguments, profile, target)));
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

fn say(words: &str) {
    // Whoever closed standard error does not want to know.
    let _closed = writeln!(std::io::stderr(), "loadtest: {words}");
}

fn read(arguments: &Arguments) -> anyhow::Result<(Profile, Option<Target<'static>>)> {
    let mut profile = profile::load(&arguments.profile)?;
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
    let target = match (&arguments.server, &arguments.admin) {
        (Some(public), Some(admin)) => Some(Target {
            public: Address::parse(public)?,
            admin: Address::parse(admin)?,
            own: None,
            meanwhile: Commands {
                all: arguments.meanwhile.clone(),
                environment: Vec::new(),
            },
        }),
        _ => None,
    };
    Ok((profile, target))
}

/// One run, with a server of its own if none was named.
async fn run(
    arguments: &Arguments,
    profile: Profile,
    target: Option<Target<'_>>,
) -> anyhow::Result<bool> {
    let Some(target) = target else {
        let own = OwnServer::start(&arguments.own, say).await?;
        let target = Target {
            public: own.public.clone(),
            admin: own.admin.clone(),
            own: Some(&own),
            meanwhile: Commands {
                all: arguments.meanwhile.clone(),
                environment: own.environment(),
            },
        };
        let passed = rehearse_and_tell(arguments, profile, &target).await;
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
    rehearse_and_tell(arguments, profile, &target).await
}

async fn rehearse_and_tell(
    arguments: &Arguments,
    profile: Profile,
    target: &Target<'_>,
) -> anyhow::Result<bool> {
    let report = rehearse(profile, target).await?;
    tell(arguments, &report)?;
    Ok(report.passed())
}

/// The whole run: prepare, fire, finish, audit, judge.
async fn rehearse(profile: Profile, target: &Target<'_>) -> anyhow::Result<Report> {
    let schedule = schedule::plan(&profile);
    let run = format!("r{:08x}", rand::rng().random::<u32>());
    let mut world = World::new(run, profile, schedule);
    let channel = target.public.connect().await?;

    let progress = bar(&world);
    progress.set_message("deposits and envelopes");
    prepare::prepare(&mut world, &channel).await?;

    progress.set_message("grabs");
    let world = Arc::new(world);
    let (began, cpu_before) = (Instant::now(), target.cpu());
    let mut commands = None;
    let begins = |start| commands = Some(target.meanwhile.during(start));
    let records = fire::fire(&world, &target.public, &progress, begins).await?;
    let fire_s = began.elapsed().as_secs_f64();
    let cpu_fire = target.cpu().since(&cpu_before);
    meanwhile::ended(commands.unwrap_or_default()).await?;

    progress.set_message("closing and comparing");
    let mut cpu_closed = None;
    let mut closed = Ok(());
    let all_closed = || {
        cpu_closed = Some(target.cpu().since(&cpu_before));
        closed = target.meanwhile.closed();
    };
    let findings = finish::finish(&world, &channel, all_closed).await?;
    closed?;
    progress.set_message("money audit");
    let wait = Duration::from_secs(world.profile.fire.close_s_max);
    let audit = audit::audit(&target.admin, wait).await?;
    progress.finish_and_clear();

    Ok(Report::new(Outcome {
        profile: &world.profile,
        run: &world.run,
        schedule: &world.schedule,
        records: &records,
        fire_s,
        cpu: [cpu_fire, cpu_closed.unwrap_or_default()],
        findings,
        audit,
    }))
}

/// Progress goes to standard error, and only to a terminal.
fn bar(world: &World) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg:24} {wide_bar} {human_pos} of {human_len} grabs, {per_sec}, {elapsed}",
    );
    let progress = ProgressBar::new(world.schedule.arrivals.len() as u64);
    progress.set_style(style.expect("the template is a constant that a test draws"));
    progress
}

fn tell(arguments: &Arguments, report: &Report) -> anyhow::Result<()> {
    let words = report.words();
    match &arguments.json {
        // Standard output belongs to the program that reads it.
        Some(file) if file.as_os_str() == "-" => {
            writeln!(std::io::stderr(), "{words}")?;
            write!(std::io::stdout(), "{}", report.json()?)?;
        }
        Some(file) => {
            writeln!(std::io::stdout(), "{words}")?;
            std::fs::write(file, report.json()?)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        None => writeln!(std::io::stdout(), "{words}")?,
    }
    Ok(())
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
    fn the_progress_bar_can_be_drawn() {
        let profile = profile::load("smoke").unwrap();
        let schedule = schedule::plan(&profile);
        let world = World::new("r".into(), profile, schedule);
        assert!(bar(&world).length().unwrap() > 10_000);
    }
}
