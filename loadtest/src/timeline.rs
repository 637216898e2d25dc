//! What happened when: counts and latencies by slots of time since the start of the firing.
//!
//! A grab is *due*, *late* or *not sent* in the slot of its instant, and its latency belongs there too:
//! a server that stalled for a second shows what the people of that second waited. It is *sent* and
//! *answered* in the slot where that happened, which is what the server carried.
//!
//! **Bounds**: [`SLOTS_MAX`] slots. They are a second wide until a run outlasts them; then each two
//! become one, twice as wide. A slot's histogram grows with what it saw, to 11 KiB at most.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Slots of one timeline: as many as a plot can show on a screen.
pub const SLOTS_MAX: usize = 600;
/// Percentiles that are told of each slot, in thousandths.
const QUANTILES: [(&str, u32); 4] = [("p50", 500), ("p90", 900), ("p99", 990), ("max", 1_000)];

/// One connection's, or one transport's, run over time.
#[derive(Clone, Debug)]
pub struct Timeline {
    slot_s: u64,
    slots: Vec<Slot>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    due: u64,
    sent: u64,
    late: u64,
    not_sent: u64,
    answered: BTreeMap<&'static str, u64>,
    /// Only where somebody was answered.
    latency_us: Option<Histogram<u32>>,
}

/// A timeline as reports keep it: one column a figure, one value a slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OverTime {
    /// How wide a slot is, in seconds.
    pub slot_s: u64,
    /// Grabs whose instant lies in the slot.
    pub due: Vec<u64>,
    /// Grabs that left in it.
    pub sent: Vec<u64>,
    /// Of those that were due in it: left later than the profile allows.
    pub late: Vec<u64>,
    /// Of those that were due in it: given up.
    pub not_sent: Vec<u64>,
    /// Grabs that were answered in it, by outcome.
    pub answered: BTreeMap<String, Vec<u64>>,
    /// Of those that were due in it, from their instant to their answer: milliseconds by percentile.
    /// None where nobody was due.
    pub latency_ms: BTreeMap<String, Vec<Option<f64>>>,
}

impl Timeline {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            slot_s: 1,
            slots: Vec::new(),
        }
    }

    /// A grab that was due at `due` left at `now`.
    pub fn left(&mut self, due: Duration, now: Duration, late: bool) {
        let slot = self.slot(due);
        slot.due += 1;
        slot.late += u64::from(late);
        self.slot(now).sent += 1;
    }

    /// A grab that was due at `due` had its answer at `now`.
    pub fn answered(&mut self, due: Duration, now: Duration, latency_us: u64, label: &'static str) {
        *self.slot(now).answered.entry(label).or_default() += 1;
        let histogram = self.slot(due).latency_us.get_or_insert_with(|| {
            Histogram::new(2).expect("two digits are valid, and it grows by itself")
        });
        // Not `saturating_record`, which would rather cut a value than grow.
        histogram
            .record(latency_us)
            .expect("a histogram that grows takes any value");
    }

    /// A grab that was due at `due` was given up.
    pub fn given_up(&mut self, due: Duration) {
        let slot = self.slot(due);
        slot.due += 1;
        slot.not_sent += 1;
    }

    /// Adds what another connection saw.
    pub fn absorb(&mut self, other: &Self) {
        let mut other = other.clone();
        self.widen_to(other.slot_s);
        other.widen_to(self.slot_s);
        if self.slots.len() < other.slots.len() {
            self.slots.resize_with(other.slots.len(), Slot::default);
        }
        for (slot, theirs) in self.slots.iter_mut().zip(&other.slots) {
            slot.absorb(theirs);
        }
    }

    /// How wide a slot is, in seconds.
    pub fn slot_s(&self) -> u64 {
        self.slot_s
    }

    /// Slots so far.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Makes slots at least so wide.
    pub fn widen_to(&mut self, slot_s: u64) {
        while self.slot_s < slot_s {
            self.widen();
        }
    }

    /// For reports, with so many slots at least.
    pub fn told(&self, slots_min: usize) -> OverTime {
        let mut slots = self.slots.clone();
        slots.resize_with(slots.len().max(slots_min), Slot::default);
        let column = |of: fn(&Slot) -> u64| slots.iter().map(of).collect::<Vec<u64>>();
        let labels = slots.iter().flat_map(|slot| slot.answered.keys().copied());
        let labels: std::collections::BTreeSet<&str> = labels.collect();
        let answered = labels.into_iter().map(|label| {
            let count = |slot: &Slot| slot.answered.get(label).copied().unwrap_or(0);
            (label.to_owned(), slots.iter().map(count).collect())
        });
        let latency_ms = QUANTILES.map(|(name, permille)| {
            let of = |slot: &Slot| Some(ms(slot.latency_us.as_ref()?, permille));
            (name.to_owned(), slots.iter().map(of).collect())
        });
        OverTime {
            slot_s: self.slot_s,
            due: column(|slot| slot.due),
            sent: column(|slot| slot.sent),
            late: column(|slot| slot.late),
            not_sent: column(|slot| slot.not_sent),
            answered: answered.collect(),
            latency_ms: latency_ms.into(),
        }
    }

    fn slot(&mut self, at: Duration) -> &mut Slot {
        // Ends: each turn halves the place.
        let place = loop {
            let place = usize::try_from(at.as_secs() / self.slot_s).unwrap_or(usize::MAX);
            if place < SLOTS_MAX {
                break place;
            }
            self.widen();
        };
        if self.slots.len() <= place {
            self.slots.resize_with(place + 1, Slot::default);
        }
        &mut self.slots[place]
    }

    fn widen(&mut self) {
        self.slot_s *= 2;
        let pairs = self.slots.chunks(2).map(|pair| {
            let mut sum = pair[0].clone();
            pair.iter().skip(1).for_each(|second| sum.absorb(second));
            sum
        });
        self.slots = pairs.collect();
    }
}

impl Slot {
    fn absorb(&mut self, other: &Self) {
        self.due += other.due;
        self.sent += other.sent;
        self.late += other.late;
        self.not_sent += other.not_sent;
        for (label, count) in &other.answered {
            *self.answered.entry(label).or_default() += count;
        }
        match (&mut self.latency_us, &other.latency_us) {
            (Some(sum), Some(theirs)) => sum.add(theirs).expect("histograms grow by themselves"),
            (none @ None, Some(theirs)) => *none = Some(theirs.clone()),
            (_, None) => {}
        }
    }
}

fn ms(histogram: &Histogram<u32>, permille: u32) -> f64 {
    histogram.value_at_quantile(f64::from(permille) / 1_000.0) as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_answer_counts_where_it_came_and_its_latency_where_it_was_due() {
        let mut timeline = Timeline::new();
        timeline.left(at_ms(500), at_ms(2_100), true);
        timeline.answered(at_ms(500), at_ms(3_500), 3_000_000, "won");
        let told = timeline.told(0);
        assert_eq!(told.due, [1, 0, 0, 0]);
        assert_eq!(told.late, [1, 0, 0, 0]);
        assert_eq!(told.sent, [0, 0, 1, 0]);
        assert_eq!(told.answered["won"], [0, 0, 0, 1]);
        let first = told.latency_ms["p50"][0].unwrap();
        assert!((first - 3_000.0).abs() < 30.0, "{first}");
        assert_eq!(told.latency_ms["p50"][1..], [None, None, None]);
    }

    #[test]
    fn a_long_run_has_wider_slots_and_loses_nobody() {
        let mut timeline = Timeline::new();
        let seconds = 5 * SLOTS_MAX as u64;
        for second in 0..seconds {
            let due = Duration::from_secs(second);
            timeline.left(due, due, false);
            timeline.answered(due, due, 1_000, "won");
            timeline.given_up(due);
        }
        let told = timeline.told(0);
        assert_eq!(told.slot_s, 8);
        assert!(told.due.len() <= SLOTS_MAX);
        assert_eq!(told.due.iter().sum::<u64>(), 2 * seconds);
        assert_eq!(told.not_sent.iter().sum::<u64>(), seconds);
        assert_eq!(told.answered["won"].iter().sum::<u64>(), seconds);
        assert_eq!(told.answered["won"][0], 8);
    }

    #[test]
    fn timelines_of_different_widths_add_up() {
        let mut short = Timeline::new();
        short.answered(at_ms(3_000), at_ms(3_000), 10, "won");
        let mut long = Timeline::new();
        let late = Duration::from_secs(2 * SLOTS_MAX as u64 - 1);
        long.answered(late, late, 10, "empty");
        for (mut one, other) in [(short.clone(), &long), (long.clone(), &short)] {
            one.absorb(other);
            let told = one.told(0);
            assert_eq!(told.slot_s, 2);
            assert_eq!(told.answered["won"][1], 1);
            assert_eq!(told.answered["empty"].iter().sum::<u64>(), 1);
        }
    }
}
