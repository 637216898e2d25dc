//! A profile: which crowds meet which envelopes, how they are fired, and what must hold.
//!
//! `profiles/smoke.toml` is the manual of the format. Everything is checked before anything is
//! connected, so that a typing error costs a second and not a run.

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

/// The profiles that are part of the program.
const EMBEDDED: [(&str, &str); 2] = [
    ("smoke", include_str!("../profiles/smoke.toml")),
    ("burst", include_str!("../profiles/burst.toml")),
];

/// Grabs that one run may plan: the schedule and the book are kept in memory, about 100 bytes each.
pub const ARRIVALS_MAX: u64 = 10_000_000;
/// A server serves at most so many grabs of one stream.
const IN_FLIGHT_MAX: u32 = 1_024;
/// Named shares of one exclusive envelope, as the contract bounds them.
const EXCLUSIVE_SHARES_MAX: u32 = 1_000;

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
    /// Of a thousand grabbers.
    pub repeats_permille: u32,
    /// Of each envelope.
    pub outsiders: u32,
    /// Empty: nothing is asked.
    #[serde(default)]
    pub passphrase: String,
    /// Who may grab.
    pub audience: Audience,
    /// How grabs travel.
    pub via: Via,
    /// Over which envelopes appear.
    pub spread_ms: u64,
    /// After which, on average, a grabber arrives.
    pub burst_ms: u64,
}

impl Crowd {
    /// What one envelope holds.
    pub fn total_minor(&self) -> i64 {
        i64::from(self.shares) * self.share_mean_minor
    }
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
    /// Late, of a thousand.
    pub late_permille_max: u64,
    /// Unknown after all tries.
    pub unresolved_max: u64,
    /// Of single calls.
    pub unary_p99_ms_max: u64,
    /// Of grabs on streams.
    pub stream_p99_ms_max: u64,
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
    let profile: Profile = toml::from_str(text)?;
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
    ensure!(
        (1..=60_000).contains(&fire.timeout_ms),
        "fire.timeout_ms is {}, not 1 to 60,000",
        fire.timeout_ms
    );
    ensure!(
        (1..=100).contains(&fire.tries_max),
        "fire.tries_max is {}, not 1 to 100",
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
        // Every grabber may repeat once.
        let each = 2 * u64::from(crowd.grabbers) + u64::from(crowd.outsiders);
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
        (1..=10_000_000).contains(&crowd.shares),
        "shares is {}, not 1 to 10,000,000",
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
        crowd.spread_ms <= 3_600_000 && crowd.burst_ms <= 600_000,
        "spread_ms is above an hour or burst_ms above ten minutes"
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
mod tests {
    use super::*;

    #[test]
    fn every_embedded_profile_is_valid_and_bears_its_name() {
        for (name, _) in EMBEDDED {
            assert_eq!(load(name).unwrap().name, name);
        }
    }

    #[test]
    fn a_mistyped_key_is_named() {
        let text = EMBEDDED[0].1.replace("late_ms", "late_msec");
        let error = format!("{:#}", parse(&text).unwrap_err());
        assert!(error.contains("late_msec"), "{error}");
    }

    #[test]
    fn outsiders_of_an_open_envelope_are_a_contradiction() {
        let text = EMBEDDED[0].1.replacen("outsiders = 0", "outsiders = 1", 1);
        let error = format!("{:#}", parse(&text).unwrap_err());
        assert!(error.contains("outsiders"), "{error}");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = load("smok").unwrap_err().to_string();
        assert!(error.contains("smoke"), "{error}");
    }
}
