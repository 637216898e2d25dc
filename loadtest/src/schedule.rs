//! Who grabs what at which instant: a pure value of profile and seed.
//!
//! Open loop: nobody waits for anybody's answer before arriving, as people don't. What the server
//! (or this generator) cannot keep up with becomes latency, not fewer arrivals.
//!
//! **Not here**: clocks, names and answers.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::profile::{Crowd, Profile, Via};

/// People of an exponential crowd who would arrive later than so many means arrive then: 0.7 %.
const TAIL_MEANS: f64 = 5.0;

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
    let appears_us = rng.random_range(0..=crowd.spread_ms * 1_000);
    let appears = Duration::from_micros(appears_us);
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
            let later = rng.random_range(0..=crowd.burst_ms * 1_000);
            arrive(person, due + Duration::from_micros(later));
        }
    }
    for number in 0..crowd.outsiders {
        let due = appears + after_appearing(crowd, rng);
        arrive(Person::Outsider(number), due);
    }
}

fn after_appearing(crowd: &Crowd, rng: &mut ChaCha8Rng) -> Duration {
    // 1 − u lies in (0, 1], so the logarithm is finite.
    let means = -(1.0 - rng.random::<f64>()).ln();
    let whole = Duration::from_millis(crowd.burst_ms).mul_f64(means.min(TAIL_MEANS));
    Duration::from_micros(u64::try_from(whole.as_micros()).expect("at most 50 minutes"))
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

    #[test]
    fn another_seed_plans_other_arrivals() {
        assert_ne!(plan(&smoke(1)), plan(&smoke(2)));
    }
}
