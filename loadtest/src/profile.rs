//! A profile: which crowds meet which envelopes, how they are fired, and what must hold.
//!
//! `profiles/smoke.toml` is the manual of the format. Everything is checked before anything is
//! connected, so that a typing error costs a second and not a run.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

/// The profiles that are part of the program.
const EMBEDDED: [(&str, &str); 6] = [
    ("smoke", include_str!("../profiles/smoke.toml")),
    ("burst", include_str!("../profiles/burst.toml")),
    (
        "new-year-eve",
        include_str!("../profiles/new-year-eve.toml"),
    ),
    ("red-rain", include_str!("../profiles/red-rain.toml")),
    ("retry-storm", include_str!("../profiles/retry-storm.toml")),
    ("soak", include_str!("../profiles/soak.toml")),
];

/// Grabs that one run may plan: the schedule and the book are kept in memory, about 100 bytes each.
pub const ARRIVALS_MAX: u64 = 10_000_000;
/// A server serves at most so many grabs of one stream.
const IN_FLIGHT_MAX: u32 = 1_024;
/// Named shares of one exclusive envelope, as the contract bounds them.
const EXCLUSIVE_SHARES_MAX: u32 = 1_000;
/// Shares of one envelope, as the contract bounds them.
const SHARES_MAX: u32 = 10_000_000;
/// Repetitions of one person at one envelope.
const REPEATS_MAX: u32 = 100_000;
/// Of a thousand.
const EVERY_PERMILLE: u64 = 1_000;
/// Twelve hours: envelopes live for a day, and all exist before the first grab.
pub const MINUTES_MAX: i64 = 720;
/// [`MINUTES_MAX`] in milliseconds.
const SPREAD_MS_MAX: u64 = 43_200_000;
/// How much larger or smaller than written a profile may be made.
const TIMES_MAX: f64 = 1_000.0;

/// One rehearsal.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// From which all arrivals follow.
    pub seed: u64,
    /// How grabs are fired.
    pub fire: Fire,
    /// Who grabs what.
    #[serde(rename = "crowd")]
    pub crowds: Vec<Crowd>,
    /// What must hold.
    pub gates: Gates,
}

/// How grabs are fired.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fire {
    /// Connections of each transport.
    pub connections: u32,
    /// On the way on one connection.
    pub in_flight_max: u32,
    /// Later than this is late.
    pub late_ms: u64,
    /// Without a place for so long is not sent.
    pub give_up_ms: u64,
    /// Of one try.
    pub timeout_ms: u32,
    /// Of one grab.
    pub tries_max: u32,
    /// Of those, the first ones that are impatient: each follows at once.
    #[serde(default)]
    pub impatient_tries: u32,
    /// Of an impatient try.
    #[serde(default = "impatient_timeout_ms")]
    pub impatient_timeout_ms: u32,
    /// From the last answer until every envelope has closed.
    pub close_s_max: u64,
}

/// People and the envelopes that they meet.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crowd {
    /// Its name, part of everybody's name in it.
    pub name: String,
    /// What the envelopes do with their money.
    pub kind: Kind,
    /// How lucky ones are cut.
    #[serde(default)]
    pub split: Split,
    /// Of all amounts.
    pub currency: String,
    /// How many.
    pub envelopes: u32,
    /// Of each.
    pub shares: u32,
    /// Of each, on average.
    pub share_mean_minor: i64,
    /// Of each envelope.
    pub grabbers: u32,
    /// Circles of people that envelopes go to in turn. 0: all go to the same people.
    #[serde(default)]
    pub circles: u32,
    /// Of a thousand grabbers.
    pub repeats_permille: u32,
    /// Of each of those.
    #[serde(default = "repeats_each")]
    pub repeats_each: u32,
    /// Of each envelope.
    pub outsiders: u32,
    /// Empty: nothing is asked.
    #[serde(default)]
    pub passphrase: String,
    /// Who may grab.
    pub audience: Audience,
    /// How grabs travel.
    pub via: Via,
    /// By which law envelopes appear.
    #[serde(default)]
    pub appear: Appear,
    /// Over which envelopes appear.
    pub spread_ms: u64,
    /// By which law grabbers arrive.
    #[serde(default)]
    pub arrive: Arrive,
    /// After which, on average, a grabber arrives.
    pub burst_ms: u64,
}

impl Crowd {
    /// What one envelope holds.
    pub fn total_minor(&self) -> i64 {
        i64::from(self.shares) * self.share_mean_minor
    }
}

/// By which law envelopes appear within `spread_ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Appear {
    /// At any instant alike.
    #[default]
    Evenly,
    /// The hour after midnight and the quarter of it before (`schedule::midnight`).
    Midnight,
}

/// By which law people arrive at an envelope that has appeared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrive {
    /// Exponentially, with the mean `burst_ms`.
    #[default]
    Burst,
    /// At any instant within `burst_ms` alike, repetitions too.
    Evenly,
}

/// What an envelope does with its money.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Random shares.
    Lucky,
    /// Equal shares.
    Equal,
    /// Named grabbers.
    Exclusive,
}

/// The rule that cuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// WeChat's law.
    #[default]
    DoubleMean,
    /// Uniform spacings.
    BrokenStick,
    /// The same for everybody.
    Even,
}

/// Who may grab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// Whoever has the id.
    Anyone,
    /// The members of the crowd's group.
    Group,
}

/// How a crowd's grabs travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// Single calls.
    Unary,
    /// Streams.
    Stream,
    /// Half of the people each.
    Both,
}

/// What must hold beside the truth of every answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gates {
    /// Given up, of a thousand.
    pub not_sent_permille_max: u64,
    /// Late, of a thousand. None: not judged.
    #[serde(default)]
    pub late_permille_max: Option<u64>,
    /// Tries after the first, by a thousand grabs: below it what the profile rehearses did not happen. None: not
    /// judged.
    #[serde(default)]
    pub retried_permille_min: Option<u64>,
    /// Unknown after all tries.
    pub unresolved_max: u64,
    /// Of single calls.
    pub unary_p99_ms_max: u64,
    /// Of grabs on streams.
    pub stream_p99_ms_max: u64,
    /// CPU time of the generator, of a thousand of what its cores offered: above it the run is void.
    #[serde(default = "generator_cpu_permille_max")]
    pub generator_cpu_permille_max: u64,
    /// How late 99 of 100 grabs may be by the generator's own fault.
    #[serde(default = "generator_late_ms_max")]
    pub generator_late_ms_max: u64,
}

fn impatient_timeout_ms() -> u32 {
    20
}

fn repeats_each() -> u32 {
    1
}

fn generator_cpu_permille_max() -> u64 {
    800
}

fn generator_late_ms_max() -> u64 {
    20
}

impl Profile {
    /// So many times the envelopes; of a crowd with one envelope, so many times its shares and people.
    pub fn scaled(mut self, factor: f64) -> anyhow::Result<Self> {
        for crowd in &mut self.crowds {
            if crowd.envelopes > 1 {
                crowd.envelopes = scaled(crowd.envelopes, factor);
            } else {
                crowd.shares = scaled(crowd.shares, factor);
                crowd.grabbers = scaled(crowd.grabbers, factor);
                crowd.outsiders = match crowd.outsiders {
                    0 => 0,
                    some => scaled(some, factor),
                };
            }
        }
        checked(self).with_context(|| format!("--scale {factor} is not for this profile"))
    }

    /// The same rate for so many minutes.
    pub fn lasting(mut self, minutes: u32) -> anyhow::Result<Self> {
        let longest_ms = self.crowds.iter().map(|crowd| crowd.spread_ms).max();
        let longest_ms = longest_ms.unwrap_or_default();
        let alone = |crowd: &Crowd| crowd.spread_ms == 0 || crowd.envelopes == 1;
        ensure!(
            !self.crowds.iter().any(alone),
            "--minutes is not for this profile: a crowd has one envelope, or all at once"
        );
        let factor = f64::from(minutes) * 60_000.0 / longest_ms as f64;
        for crowd in &mut self.crowds {
            crowd.envelopes = scaled(crowd.envelopes, factor);
            let spread = Duration::from_millis(crowd.spread_ms).mul_f64(factor);
            crowd.spread_ms = u64::try_from(spread.as_millis())?;
        }
        checked(self).with_context(|| format!("--minutes {minutes} is too long"))
    }
}

/// At least one, and what no profile may have becomes what the check refuses.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast of a float saturates"
)]
fn scaled(count: u32, factor: f64) -> u32 {
    ((f64::from(count) * factor).round() as u32).max(1)
}

/// What `--scale` takes.
pub fn times(typed: &str) -> anyhow::Result<f64> {
    let times: f64 = typed.parse()?;
    ensure!(
        (1.0 / TIMES_MAX..=TIMES_MAX).contains(&times),
        "not {} to {TIMES_MAX}",
        1.0 / TIMES_MAX
    );
    Ok(times)
}

/// What may be named on the command line.
pub fn manual() -> String {
    let known = EMBEDDED.map(|(name, _)| name).join(", ");
    format!(
        "What to rehearse: {known}, or the path of a .toml file (loadtest/profiles/smoke.toml is the manual)"
    )
}

/// The profile of that name, or in the file of that name if it ends with `.toml`.
pub fn load(name: &str) -> anyhow::Result<Profile> {
    if name.ends_with(".toml") {
        let text = std::fs::read_to_string(name).with_context(|| format!("cannot read {name}"))?;
        return parse(&text).with_context(|| format!("{name} is no profile"));
    }
    let Some((_, text)) = EMBEDDED.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = EMBEDDED.iter().map(|(known, _)| *known).collect();
        bail!(
            "no profile {name:?}: take one of [{}] or the path of a .toml file",
            known.join(", ")
        );
    };
    parse(text)
}

/// Reads and checks.
pub fn parse(text: &str) -> anyhow::Result<Profile> {
    let mut profile: Profile = toml::from_str(text)?;
    // A gate that no run can miss would be told as met.
    let late_max = &mut profile.gates.late_permille_max;
    *late_max = late_max.filter(|max| *max < EVERY_PERMILLE);
    checked(profile)
}

fn checked(profile: Profile) -> anyhow::Result<Profile> {
    ensure!(!profile.crowds.is_empty(), "a profile needs a [[crowd]]");
    let fire = &profile.fire;
    ensure!(
        (1..=64).contains(&fire.connections),
        "fire.connections is {}, not 1 to 64",
        fire.connections
    );
    ensure!(
        (1..=IN_FLIGHT_MAX).contains(&fire.in_flight_max),
        "fire.in_flight_max is {}, not 1 to {IN_FLIGHT_MAX}",
        fire.in_flight_max
    );
    for (key, timeout_ms) in [
        ("timeout_ms", fire.timeout_ms),
        ("impatient_timeout_ms", fire.impatient_timeout_ms),
    ] {
        ensure!(
            (1..=60_000).contains(&timeout_ms),
            "fire.{key} is {timeout_ms}, not 1 to 60,000"
        );
    }
    ensure!(
        (1..=100).contains(&fire.tries_max),
        "fire.tries_max is {}, not 1 to 100",
        fire.tries_max
    );
    ensure!(
        fire.impatient_tries < fire.tries_max,
        "fire.impatient_tries is {}, and the last of {} tries is patient",
        fire.impatient_tries,
        fire.tries_max
    );
    let mut names = std::collections::HashSet::new();
    let mut arrivals = 0_u64;
    for crowd in &profile.crowds {
        ensure!(
            names.insert(&crowd.name),
            "two crowds are named {:?}",
            crowd.name
        );
        check(crowd).with_context(|| format!("crowd {:?}", crowd.name))?;
        // Every grabber may be one of those who repeat.
        let times = 1 + u64::from(crowd.repeats_each);
        let each = times * u64::from(crowd.grabbers) + u64::from(crowd.outsiders);
        arrivals += u64::from(crowd.envelopes) * each;
    }
    ensure!(
        arrivals <= ARRIVALS_MAX,
        "up to {arrivals} grabs, more than the {ARRIVALS_MAX} that one run plans"
    );
    Ok(profile)
}

fn check(crowd: &Crowd) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        (1..=20).contains(&crowd.name.len()) && crowd.name.chars().all(plain),
        "the name has 1 to 20 of a-z, 0-9 and '-'"
    );
    ensure!(crowd.envelopes >= 1, "envelopes is 0");
    ensure!(
        (1..=SHARES_MAX).contains(&crowd.shares),
        "shares is {}, not 1 to {SHARES_MAX}",
        crowd.shares
    );
    ensure!(
        (1..=100_000_000).contains(&crowd.share_mean_minor),
        "share_mean_minor is {}, not 1 to 100,000,000",
        crowd.share_mean_minor
    );
    ensure!(crowd.grabbers >= 1, "grabbers is 0");
    ensure!(
        crowd.repeats_permille <= 1_000,
        "repeats_permille is above 1,000"
    );
    ensure!(
        (1..=REPEATS_MAX).contains(&crowd.repeats_each),
        "repeats_each is {}, not 1 to {REPEATS_MAX}",
        crowd.repeats_each
    );
    ensure!(
        crowd.spread_ms <= SPREAD_MS_MAX && crowd.burst_ms <= 600_000,
        "spread_ms is above twelve hours or burst_ms above ten minutes"
    );
    if crowd.kind == Kind::Exclusive {
        ensure!(
            crowd.grabbers == crowd.shares && crowd.shares <= EXCLUSIVE_SHARES_MAX,
            "exclusive envelopes have as many grabbers as shares, at most {EXCLUSIVE_SHARES_MAX}"
        );
        ensure!(
            crowd.audience == Audience::Anyone,
            "exclusive envelopes take no audience"
        );
    } else if crowd.audience == Audience::Anyone {
        ensure!(
            crowd.outsiders == 0,
            "anyone may grab, so there are no outsiders"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
