//! Who grabs what at which instant: a pure value of profile and seed.
//!
//! Open loop: nobody waits for anybody's answer before arriving, as people don't. What the server
//! (or this generator) cannot keep up with becomes latency, not fewer arrivals.
//!
//! **Not here**: clocks, names and answers.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::profile::{Appear, Arrive, Crowd, Profile, Via};

/// People of an exponential crowd who would arrive later than so many means arrive then: 0.7 %.
const TAIL_MEANS: f64 = 5.0;
/// See [`midnight`].
const MIDNIGHT_AT: f64 = 0.25;
const QUIET: f64 = 0.2;
const EARLY: f64 = 0.3;
const EARLY_POWER: i32 = 4;
const DECAY_HOURS: f64 = 0.59;

/// Everything that will be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The crowd of each envelope, by index.
    pub envelopes: Vec<usize>,
    /// In the order of their instants.
    pub arrivals: Vec<Arrival>,
}

/// One grab that is due at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// Counted from the start of the firing.
    pub due: Duration,
    /// Which of `Schedule::envelopes`.
    pub envelope: usize,
    /// Who.
    pub person: Person,
    /// How it travels.
    pub transport: Transport,
}

/// Somebody of the envelope's crowd, or outside it. Numbers count from 0 within the crowd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Person {
    /// May grab.
    Guest(u32),
    /// May not even know.
    Outsider(u32),
}

impl Person {
    /// The number within its kind.
    pub fn number(self) -> u32 {
        match self {
            Self::Guest(number) | Self::Outsider(number) => number,
        }
    }
}

/// How a grab travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A call of its own.
    Unary,
    /// A message on a stream.
    Stream,
}

impl Transport {
    /// As reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Stream => "stream",
        }
    }
}

/// Plans the profile with its own seed.
pub fn plan(profile: &Profile) -> Schedule {
    let mut envelopes = Vec::new();
    let mut arrivals = Vec::new();
    for (index, crowd) in profile.crowds.iter().enumerate() {
        let mut rng = ChaCha8Rng::seed_from_u64(profile.seed);
        // A stream of numbers for each crowd: changing one leaves the others where they were.
        rng.set_stream(index as u64);
        for _ in 0..crowd.envelopes {
            plan_envelope(crowd, envelopes.len(), &mut rng, &mut arrivals);
            envelopes.push(index);
        }
    }
    arrivals.sort_unstable();
    Schedule {
        envelopes,
        arrivals,
    }
}

fn plan_envelope(
    crowd: &Crowd,
    envelope: usize,
    rng: &mut ChaCha8Rng,
    arrivals: &mut Vec<Arrival>,
) {
    let appears = match crowd.appear {
        Appear::Evenly => evenly(crowd.spread_ms, rng),
        Appear::Midnight => span(crowd.spread_ms, midnight(rng.random())),
    };
    let mut arrive = |person: Person, due: Duration| {
        arrivals.push(Arrival {
            due,
            envelope,
            person,
            transport: transport(crowd.via, person),
        });
    };
    for number in 0..crowd.grabbers {
        let person = Person::Guest(number);
        let due = appears + after_appearing(crowd, rng);
        arrive(person, due);
        if rng.random_range(0..1_000) < crowd.repeats_permille {
            for _ in 0..crowd.repeats_each {
                let first = match crowd.arrive {
                    Arrive::Burst => due,
                    Arrive::Evenly => appears,
                };
                arrive(person, first + evenly(crowd.burst_ms, rng));
            }
        }
    }
    for number in 0..crowd.outsiders {
        let due = appears + after_appearing(crowd, rng);
        arrive(Person::Outsider(number), due);
    }
}

fn after_appearing(crowd: &Crowd, rng: &mut ChaCha8Rng) -> Duration {
    match crowd.arrive {
        Arrive::Burst => {
            // 1 − u lies in (0, 1], so the logarithm is finite.
            let means = -(1.0 - rng.random::<f64>()).ln();
            span(crowd.burst_ms, means.min(TAIL_MEANS))
        }
        Arrive::Evenly => evenly(crowd.burst_ms, rng),
    }
}

fn evenly(over_ms: u64, rng: &mut ChaCha8Rng) -> Duration {
    Duration::from_micros(rng.random_range(0..=over_ms * 1_000))
}

/// So many times a span, in whole microseconds.
fn span(ms: u64, times: f64) -> Duration {
    let whole = Duration::from_millis(ms).mul_f64(times);
    Duration::from_micros(u64::try_from(whole.as_micros()).expect("at most 60 hours"))
}

/// When an envelope of the new year appears, as a part of the whole: the inverse of the law's distribution
/// at `u`, which lies in [0, 1).
///
/// The law is the hour after midnight and the quarter of it before. Where midnight has the rate 1:
///
/// | part x | rate | from |
/// |---|---|---|
/// | before midnight (x < ¼) | 0.2 + 0.3 · (4x)⁴ | reasoned: the evening's level, and those who are early |
/// | after it (x ≥ ¼) | exp(−h / 0.59), h = (x − ¼) / ¾ of the hour | published figures |
///
/// Tencent's figures of 28 January 2017: 208,000 payments a second at the peak, 360 million in the first
/// hour, which is 100,000 a second: the peak is 2.08 times the hour's mean, and a rate that falls exponentially
/// does that where its mean is 0.59 of the hour. And of WeChat's day: 14.2 billion grabs and a peak
/// of 760,000 a second, 4.6 times the day's mean: outside of the hour it is about a fifth of the peak.
/// The jump is sharp, as clocks are. What a profile does is the same law in less time.
fn midnight(u: f64) -> f64 {
    let quiet = MIDNIGHT_AT * QUIET;
    let early = MIDNIGHT_AT * EARLY / f64::from(EARLY_POWER + 1);
    let hour = 1.0 - MIDNIGHT_AT;
    let within_hour = 1.0 - (-1.0 / DECAY_HOURS).exp();
    let after = hour * DECAY_HOURS * within_hour;
    let mass = u * (quiet + early + after);
    if mass < quiet {
        MIDNIGHT_AT * mass / quiet
    } else if mass < quiet + early {
        let part = (mass - quiet) / early;
        MIDNIGHT_AT * part.powf(1.0 / f64::from(EARLY_POWER + 1))
    } else {
        let part = (mass - quiet - early) / after;
        let hours = -DECAY_HOURS * (-part * within_hour).ln_1p();
        MIDNIGHT_AT + hour * hours
    }
}

fn transport(via: Via, person: Person) -> Transport {
    match via {
        Via::Unary => Transport::Unary,
        Via::Stream => Transport::Stream,
        Via::Both if person.number().is_multiple_of(2) => Transport::Unary,
        Via::Both => Transport::Stream,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile;
    use proptest::prelude::*;

    fn smoke(seed: u64) -> Profile {
        let mut profile = profile::load("smoke").unwrap();
        profile.seed = seed;
        profile
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_same_seed_plans_the_same_arrivals(seed: u64) {
            prop_assert_eq!(plan(&smoke(seed)), plan(&smoke(seed)));
        }

        #[test]
        fn arrivals_are_in_order_and_within_the_profile(seed: u64) {
            let profile = smoke(seed);
            let schedule = plan(&profile);
            prop_assert!(schedule.arrivals.is_sorted());
            for arrival in &schedule.arrivals {
                let crowd = &profile.crowds[schedule.envelopes[arrival.envelope]];
                let last = crowd.spread_ms + 6 * crowd.burst_ms;
                prop_assert!(arrival.due <= Duration::from_millis(last));
                let among = match arrival.person {
                    Person::Guest(number) => number < crowd.grabbers,
                    Person::Outsider(number) => number < crowd.outsiders,
                };
                prop_assert!(among);
            }
        }

        #[test]
        fn everybody_comes_once_and_nobody_more_than_twice(seed: u64) {
            let profile = smoke(seed);
            let schedule = plan(&profile);
            let mut times = std::collections::HashMap::new();
            for arrival in &schedule.arrivals {
                *times.entry((arrival.envelope, arrival.person)).or_insert(0) += 1;
            }
            let people: u32 = schedule
                .envelopes
                .iter()
                .map(|crowd| profile.crowds[*crowd].grabbers + profile.crowds[*crowd].outsiders)
                .sum();
            prop_assert_eq!(times.len(), people as usize);
            prop_assert!(times.values().all(|times| (1..=2).contains(times)));
        }

        #[test]
        fn a_crowd_keeps_its_instants_when_another_changes(seed: u64) {
            let mut other = smoke(seed);
            let before = plan(&other);
            other.crowds[1].burst_ms *= 3;
            let after = plan(&other);
            let of_first = |schedule: &Schedule| -> Vec<Arrival> {
                let first = |it: &&Arrival| schedule.envelopes[it.envelope] == 0;
                schedule.arrivals.iter().filter(first).copied().collect()
            };
            prop_assert_eq!(of_first(&before), of_first(&after));
        }
    }

    /// By the distribution itself, at evenly spaced quantiles: no chance is involved.
    #[test]
    fn midnight_is_as_much_above_its_hour_as_was_published() {
        const QUANTILES: u32 = 400_000;
        let mut bins = [0_u32; 400];
        for quantile in 0..QUANTILES {
            let part = midnight((f64::from(quantile) + 0.5) / f64::from(QUANTILES));
            assert!((0.0..1.0).contains(&part), "{part}");
            bins[(1..400)
                .take_while(|bin| part >= f64::from(*bin) / 400.0)
                .count()] += 1;
        }
        let peak = f64::from(bins[100]);
        assert_eq!(bins.iter().max(), Some(&bins[100]), "midnight is the peak");
        let hour = bins[100..].iter().sum::<u32>();
        let over_hour = peak / (f64::from(hour) / 300.0);
        assert!((over_hour - 2.08).abs() < 0.03, "{over_hour}");
        // The evening's level, and the last moment before midnight, beside the peak.
        let quiet = f64::from(bins[10]) / peak;
        assert!((quiet - 0.2).abs() < 0.01, "{quiet}");
        let early = f64::from(bins[99]) / peak;
        assert!((early - 0.5).abs() < 0.02, "{early}");
    }

    #[test]
    fn a_person_taps_as_often_as_the_profile_says() {
        let mut profile = smoke(1);
        for crowd in &mut profile.crowds {
            (crowd.repeats_permille, crowd.repeats_each) = (1_000, 9);
            crowd.arrive = Arrive::Evenly;
        }
        let schedule = plan(&profile);
        let of_guest = |it: &&Arrival| (it.envelope, it.person) == (0, Person::Guest(0));
        assert_eq!(schedule.arrivals.iter().filter(of_guest).count(), 10);
        let last = |crowd: &Crowd| crowd.spread_ms + crowd.burst_ms;
        let bound = profile.crowds.iter().map(last).max().unwrap();
        let found = schedule.arrivals.last().unwrap().due;
        assert!(found <= Duration::from_millis(bound), "{found:?}");
    }

    #[test]
    fn another_seed_plans_other_arrivals() {
        assert_ne!(plan(&smoke(1)), plan(&smoke(2)));
    }
}
