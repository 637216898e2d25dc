//! One rehearsal from the deposits to the judgement: the phases in their order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use rand::RngExt as _;
use tokio::time::Instant;

use crate::generator::Watch;
use crate::meanwhile::Commands;
use crate::process::Process;
use crate::profile::Profile;
use crate::report::{Cpu, Outcome, Report, Resident, Setup};
use crate::sample::Sampler;
use crate::scrape::Scrape;
use crate::server::{Address, OwnServer};
use crate::world::World;
use crate::{audit, finish, fire, meanwhile, prepare, schedule};

/// Where the load goes.
pub struct Target<'a> {
    /// Of each process.
    pub public: Vec<Address>,
    /// For the audit.
    pub admin: Address,
    /// Of each process, too.
    pub metrics: Vec<Scrape>,
    /// Whose CPU time can be told.
    pub own: Option<&'a OwnServer>,
    /// What happens beside the rehearsal.
    pub meanwhile: Commands,
}

impl Target<'_> {
    /// Those whose cost can be told, this one first.
    fn processes(&self) -> Vec<Process> {
        let others = self.own.into_iter().flat_map(OwnServer::processes);
        std::iter::once(Process::own()).chain(others).collect()
    }

    fn setup(&self) -> Setup {
        let cores = std::thread::available_parallelism();
        Setup {
            stack: self.own.map(|own| own.stack.clone()),
            ack: self.own.map(|own| own.ack.clone()),
            processes: self.own.map(|own| own.public.len() as u64),
            cores: cores.map_or(0, |cores| cores.get() as u64),
            optimised: !cfg!(debug_assertions),
        }
    }
}

fn cpu(processes: &[Process]) -> Cpu {
    let times = processes.iter();
    Cpu(times.filter_map(|it| Some((it.name, it.cpu()?))).collect())
}

fn resident(processes: &[Process]) -> Resident {
    let all = processes.iter();
    all.filter_map(|it| Some((it.name, it.memory_bytes()?)))
        .collect()
}

/// The whole run: prepare, fire, finish, audit, judge.
///
/// From the first grab on, what fails is told by the report: a server that died, whose users had what they had, is
/// when a report is wanted most.
pub async fn rehearse(profile: Profile, target: &Target<'_>) -> anyhow::Result<Report> {
    let schedule = schedule::plan(&profile);
    let run = format!("r{:08x}", rand::rng().random::<u32>());
    let mut world = World::new(run, profile, schedule);
    let first = target.public.first().context("no server is named")?;
    let channel = first.connect().await?;
    let (began_at, processes) = (now(), target.processes());
    let sampler = Sampler::start(processes.clone(), target.metrics.clone())?;

    let progress = bar(&world);
    progress.set_message("deposits and envelopes");
    let memory_before = resident(&processes);
    prepare::prepare(&mut world, &channel).await?;
    let memory = [memory_before, resident(&processes)];

    progress.set_message("grabs");
    let world = Arc::new(world);
    let cpu_before = cpu(&processes);
    let mut commands = None;
    let begins = |start| commands = Some(target.meanwhile.during(start));
    let watch = Watch::start()?;
    let records = fire::fire(&world, &target.public, &progress, begins).await?;
    let end = Instant::now().into_std();
    let still = watch.stop()?;
    let cpu_fire = cpu(&processes).since(&cpu_before);
    let start = world.fire_start.get().map_or(end, |it| it.into_std());
    let during = meanwhile::ended(commands.unwrap_or_default()).await;

    progress.set_message("closing");
    let mut cpu_closed = None;
    let mut closed = Ok(());
    let mut audited = None;
    let wait = Duration::from_secs(world.profile.fire.close_s_max);
    let all_closed = async || {
        cpu_closed = Some(cpu(&processes).since(&cpu_before));
        closed = target.meanwhile.closed();
        // Before the hot store forgets what is over: with many people the comparison takes longer than that.
        progress.set_message("money audit");
        audited = Some(audit::audit(&target.admin, wait).await);
        progress.set_message("comparing accounts");
    };
    let findings = finish::finish(&world, &channel, all_closed).await;
    let audit = match audited {
        Some(audit) => audit,
        None => audit::audit(&target.admin, wait).await,
    };
    progress.finish_and_clear();

    Ok(Report::new(Outcome {
        profile: &world.profile,
        setup: target.setup(),
        began_at,
        run: &world.run,
        schedule: &world.schedule,
        records,
        fired: [start, end],
        cpu: [cpu_fire, cpu_closed.unwrap_or_default()],
        memory,
        still,
        looks: sampler.stop()?,
        findings,
        audit: audit.map_err(|error| format!("{error:#}")),
        meanwhile: during.and(closed).err().map(|error| format!("{error:#}")),
    }))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a report says when it was made; nothing is decided by it"
)]
fn now() -> String {
    let seconds = jiff::Timestamp::now().as_second();
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |it| it.to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_bar_can_be_drawn() {
        let profile = crate::profile::load("smoke").unwrap();
        let schedule = schedule::plan(&profile);
        let world = World::new("r".into(), profile, schedule);
        assert!(bar(&world).length().unwrap() > 10_000);
    }
}
