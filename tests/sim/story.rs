//! One history: a seed makes the envelopes, the people and the weather; then it becomes calm, and
//! everything must have come to its end.
//!
//! # Shape
//! | part | what |
//! |---|---|
//! | storm | people send, grab, recall and freeze; messages are lost, processes die, clocks jump |
//! | calm | nothing is lost any more; what was begun is published, then expires |
//! | after | everybody asks once more, in some histories after the hot store has forgotten all |

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use red_envelope::domain::envelope::BookState;
use red_envelope::domain::id::PartitionCount;
use red_envelope::ledger::conformance::NOON_MS;
use red_envelope::rules::{self, Rule};
use red_envelope_history::Violation;

use crate::audit;
use crate::books::Books;
use crate::hot::Hot;
use crate::hot_door::PARTITIONS;
use crate::net::{Net, Scheduler, To, Weather};
use crate::people::{Sending, Town};
use crate::process::Process;
use crate::stores::{self, Stores};
use crate::striped_story;

/// Steps of one history: a loop that never ends is a failure, too.
const STEPS_MAX: u64 = 200_000;
/// Steps of a storm.
const STORM_STEPS_MAX: u64 = 3_000;
/// Steps between two looks of the audit.
const LOOK_EVERY: u64 = 8;
/// People who grab, and one more.
const GRABBERS_MAX: usize = 12;
/// How far a clock jumps at the most.
const JUMP_MS_MAX: i64 = 20_000;
/// How long after the storm what was funded before it must be live: the sweeper's patience or the
/// lease of a process that died, by a clock that has jumped back since, and a few rounds.
const PUBLISHED_AFTER_MS: i64 = 5_000 + JUMP_MS_MAX + 10_000;
/// How often the operator looks for what is frozen after the storm.
const UNFREEZES: u32 = 3;
/// The bound that the promises name.
const STUCK_AFTER_MS: i64 = 60_000;
/// Longer than the hot store keeps what is closed.
const FORGOTTEN_AFTER_MS: i64 = 11 * 60_000;

/// A rule that is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Off {
    /// Of a store.
    Store(stores::Rule),
    /// Of settlement, or of the gathering of shares.
    Kept(Rule),
}

impl Off {
    pub fn of_store(self) -> Option<stores::Rule> {
        match self {
            Self::Store(rule) => Some(rule),
            Self::Kept(_) => None,
        }
    }

    /// Breaks the production's rules on this thread.
    pub fn switch(off: Option<Self>) {
        rules::switch_off(match off {
            Some(Self::Kept(rule)) => Some(rule),
            Some(Self::Store(_)) | None => None,
        });
    }
}

/// Where the envelopes of a history lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lay {
    /// Each in one piece.
    Whole,
    /// In stripes.
    Dealt,
}

/// What became of a history that went well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    pub steps: u64,
    pub grabs: usize,
    pub shares_paid: usize,
    pub crashes: usize,
    pub now_ms: i64,
}

struct Story {
    net: Net,
    town: Arc<Town>,
    scheduler: Scheduler,
    ending: Ending,
    lay: Lay,
}

/// Plays the history of a seed.
///
/// # Errors
/// Which promise was broken.
pub fn play(lay: Lay, seed: u64, off: Option<Off>) -> Result<Ending, String> {
    Off::switch(off);
    let mut story = Story::new(lay, seed, off);
    story.storm()?;
    story.calm()?;
    story.after()?;
    Ok(story.ending)
}

/// Chances of ten thousand, and mostly none.
fn weather(rng: &mut StdRng) -> Weather {
    let mut chances = |most: u32| match rng.random_range(0..3) {
        0 => 0,
        1 => most / 10,
        _ => most,
    };
    Weather {
        request_lost: chances(800),
        reply_lost: chances(800),
        slow: chances(1_500),
        crash: chances(100),
        clock: chances(200),
        outage: chances(60),
        outbox_lost: chances(200),
        partition_lost: 0,
    }
}

fn sendings(rng: &mut StdRng) -> Vec<Sending> {
    let one = |rng: &mut StdRng| {
        let large = rng.random_range(0..40) == 0;
        let share_count = match large {
            true => rng.random_range(1_001..2_500),
            false => rng.random_range(1..20),
        };
        Sending {
            total_minor: i64::from(share_count) * rng.random_range(1..100),
            share_count,
            expires_in_ms: rng.random_range(5_000..90_000),
            stripes: 1,
        }
    };
    let count = rng.random_range(1..4);
    (0..count).map(|_| one(rng)).collect()
}

impl Story {
    fn new(lay: Lay, seed: u64, off: Option<Off>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut weather, mut sendings) = (weather(&mut rng), sendings(&mut rng));
        let off_of_store = off.and_then(Off::of_store);
        let striped = (lay == Lay::Dealt)
            .then(|| striped_story::deal(&mut rng, (&mut weather, &mut sendings), off_of_store));
        let (processes, grabbers) = (rng.random_range(1..3), rng.random_range(2..GRABBERS_MAX));
        let partitions = PartitionCount::new(PARTITIONS).expect("a store has a few");
        let stores = Stores {
            now_ms: NOON_MS,
            hot_off_ms: 0,
            books_off_ms: 0,
            hot: Hot::new(partitions, StdRng::seed_from_u64(rng.random())),
            books: Books::new(StdRng::seed_from_u64(rng.random())),
            striped,
            heard: true,
            off: off_of_store,
        };
        let net = Net::new(rng, stores, weather);
        let town = Arc::new(Town::new(net.clone(), sendings));
        let mut story = Self {
            scheduler: Scheduler::new(net.clone()),
            net,
            town,
            ending: Ending::default(),
            lay,
        };
        for place in 0..processes {
            let process = Process::start(&mut story.scheduler, &story.net, place, 0);
            story.processes().push(process);
        }
        story.people(grabbers);
        story
    }

    fn processes(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Process>>> {
        let processes = self.town.processes.lock();
        processes.expect("a panic ends the history")
    }

    fn people(&mut self, grabbers: usize) {
        for envelope in 0..self.town.sendings.len() {
            let town = || Arc::clone(&self.town);
            // Some give up at once: their envelopes are completed by others, or refunded.
            let tries = [1, 30][usize::from(self.net.draw(5) > 0)];
            let (sends, recalls) = (town().send(envelope, tries), town().recall(envelope));
            let freezes = town().freeze_and_unfreeze(envelope);
            self.scheduler.spawn(None, sends);
            if self.net.draw(3) == 0 {
                self.scheduler.spawn(None, recalls);
            }
            if self.net.draw(6) == 0 {
                self.scheduler.spawn(None, freezes);
            }
        }
        // A burst, or the rest of a day.
        let every_ms = [300, 6_000][usize::from(self.net.draw(2) > 0)];
        for who in 0..grabbers {
            let grabs = 1 + self.net.draw(5);
            let lives = Arc::clone(&self.town).live(who, (grabs, every_ms));
            self.scheduler.spawn(None, lives);
        }
    }

    fn now_ms(&self) -> i64 {
        self.net.shared().stores.now_ms
    }

    fn step(&mut self) -> Result<(), String> {
        self.scheduler.step();
        self.ending.steps += 1;
        if self.ending.steps.is_multiple_of(LOOK_EVERY) {
            audit::at_any_time(&self.net.shared().stores)?;
        }
        match self.ending.steps < STEPS_MAX {
            true => Ok(()),
            false => Err("the history does not end".to_owned()),
        }
    }

    fn storm(&mut self) -> Result<(), String> {
        let lasts = 3_000 + self.net.draw(40_000);
        let until = self.now_ms() + i64::try_from(lasts).expect("storms are short");
        while self.now_ms() < until && self.ending.steps < STORM_STEPS_MAX {
            self.strike();
            self.step()?;
        }
        Ok(())
    }

    /// Something may go wrong before the next step.
    fn strike(&mut self) {
        let mut shared = self.net.shared();
        let weather = shared.weather;
        if shared.happens(weather.clock) {
            let jump = shared.rng.random_range(-JUMP_MS_MAX..JUMP_MS_MAX);
            match shared.rng.random_range(0..3) {
                0 => {
                    shared.stores.hot_off_ms = jump;
                    if let Some(striped) = &mut shared.stores.striped {
                        striped.clock_jumped = true;
                    }
                }
                1 => shared.stores.books_off_ms = jump,
                _ => shared.pass(jump.abs() / 4),
            }
        }
        if shared.happens(weather.outage) {
            let to = [To::Hot, To::Books][shared.rng.random_range(0..2)];
            let ms = shared.rng.random_range(100..8_000);
            shared.cut_off(to, ms);
        }
        if self.lay == Lay::Whole && shared.happens(weather.outbox_lost) {
            let index = shared.rng.random_range(0..PARTITIONS);
            let all = PartitionCount::new(PARTITIONS).expect("a store has a few");
            let partition = all.all().nth(usize::from(index));
            let partition = partition.expect("it is one of them");
            shared.stores.hot.lose_outbox(partition);
        }
        if shared.happens(weather.partition_lost) {
            striped_story::lose_one(&mut shared);
            self.town.record.replaced();
        }
        if shared.happens(weather.crash) {
            drop(shared);
            self.crash();
        }
    }

    fn crash(&mut self) {
        let count = self.processes().len();
        let place = self.net.shared().rng.random_range(0..count);
        self.processes()[place].kill();
        self.scheduler.crash(place);
        self.ending.crashes += 1;
        let life = self.ending.crashes;
        let process = Process::start(&mut self.scheduler, &self.net, place, life);
        self.processes()[place] = process;
    }

    fn calm(&mut self) -> Result<(), String> {
        {
            let mut shared = self.net.shared();
            shared.weather = Weather::default();
            shared.cut_off(To::Hot, 0);
            (shared.stores.hot_off_ms, shared.stores.books_off_ms) = (0, 0);
        }
        let calm_at = self.now_ms();
        let town = Arc::clone(&self.town);
        self.scheduler.spawn(None, async move {
            // A call to freeze that was under way may still arrive: the operator looks again.
            for _ in 0..UNFREEZES {
                for envelope in 0..town.sendings.len() {
                    if let Some(id) = town.id(envelope) {
                        town.unfreeze(id).await;
                    }
                }
                town.rest(10_000).await;
            }
        });
        let mut published = false;
        loop {
            let now = self.now_ms();
            if !published && now >= calm_at + PUBLISHED_AFTER_MS {
                published = true;
                audit::published(&self.net.shared().stores, calm_at)?;
            }
            if !self.scheduler.people_left() {
                match self.not_closed(calm_at) {
                    None => return Ok(()),
                    Some((by, what)) if now >= by => return Err(what),
                    Some(_) => {}
                }
            }
            self.step()?;
        }
    }

    /// An envelope that is not closed: until when it may be so, and what it is.
    fn not_closed(&self, calm_at: i64) -> Option<(i64, String)> {
        let shared = self.net.shared();
        let mut pages = shared.stores.books.pages.iter();
        let (id, page) = pages.find(|(_, page)| !matches!(page.state, BookState::Closed(_)))?;
        let striped = shared.stores.striped.as_ref();
        let by = page.terms.expires_at.0.max(calm_at) + STUCK_AFTER_MS;
        Some((
            by,
            format!(
                "{id} is stuck as {:?}{}, {} paid{}",
                page.state,
                if page.sheet.frozen { ", frozen" } else { "" },
                page.sheet.claims.len(),
                striped.map_or_else(String::new, |striped| striped.tell(*id)),
            ),
        ))
    }

    fn after(&mut self) -> Result<(), String> {
        if self.net.draw(4) == 0 {
            self.net.shared().pass(FORGOTTEN_AFTER_MS);
            let until = self.now_ms() + PUBLISHED_AFTER_MS;
            while self.now_ms() < until {
                self.step()?;
            }
        }
        for who in 0..GRABBERS_MAX {
            let town = Arc::clone(&self.town);
            self.scheduler.spawn(None, async move {
                for envelope in 0..town.sendings.len() {
                    town.grab(envelope, who, 20).await;
                }
            });
        }
        while self.scheduler.people_left() {
            self.step()?;
        }
        let found = self.town.record.violations();
        let shared = self.net.shared();
        let told = self.town.told.lock().expect("a panic ends the history");
        let ids = (0..self.town.sendings.len()).map(|envelope| {
            let request = red_envelope::ledger::conformance::person(&format!("request-{envelope}"));
            shared.stores.books.funded(&request)
        });
        audit::at_the_end(&shared.stores, &told, &ids.collect::<Vec<_>>())?;
        let counts = |found: &&(usize, Violation)| audit::may_tell(&shared.stores, found.1.rule);
        if let Some((envelope, violation)) = found.iter().find(counts) {
            return Err(format!("envelope {envelope}: {violation}"));
        }
        self.ending.grabs = self.town.record.attempts();
        self.ending.shares_paid = shared.stores.books.paid.len();
        self.ending.now_ms = shared.stores.now_ms;
        Ok(())
    }
}
