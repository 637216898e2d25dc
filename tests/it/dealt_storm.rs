//! Whatever happens next to an envelope that is dealt to stripes: by the numbers of a seed people grab, and meanwhile
//! Redis or the server is killed, keys are lost, all of it is, and whoever gathers shares comes to no end.
//!
//! # Shape
//! | step | is |
//! |---|---|
//! | people | a few who grab at once, some of a stripe by choice |
//! | strike | at the same time: see [`Strike`] |
//! | look | everybody who was told of a share hears of it again |
//!
//! A server that comes to no end with gathering turns people away, so each of them asks once, and after a loss another
//! server begins.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use redis::Value;
use tokio::task::JoinSet;

use crate::dealt::{STRIPES, Stage, crowd, dealing, freeze, people_of, unfreeze};
use crate::harness::fleet::{Client, rush};
use crate::harness::world::grab_of;
use crate::harness::{Start, World};

/// Each is a story that is told anew with every run.
const SEEDS: std::ops::Range<u64> = 0..2;
/// Steps of a story: until about every share is taken.
const STEPS: usize = 16;
/// People of a step.
const PEOPLE_MAX: usize = 6;

/// What a server may do while it gathers shares, and whether it comes to no end for ever.
const POINTS: [(&str, bool); 6] = [
    ("", false),
    ("gather::between_stripes=3*off->1*return->off", false),
    ("gather::before_first=1*return->off", false),
    ("gather::after_books=return", true),
    ("gather::between_stripes=3*off->return", true),
    ("gather::before_first=return", true),
];

#[derive(Clone, Copy, Debug)]
enum Strike {
    Nothing,
    /// The key of a stripe.
    LosesKey(&'static str),
    LosesAll,
    RedisDies,
    ServerDies,
    Freeze,
}

const STRIKES: [Strike; 9] = [
    Strike::Nothing,
    Strike::Nothing,
    Strike::LosesKey("g"),
    Strike::LosesKey("s"),
    Strike::LosesAll,
    Strike::RedisDies,
    Strike::ServerDies,
    Strike::ServerDies,
    Strike::Freeze,
];

struct Story {
    stage: Stage,
    rng: StdRng,
    asked: Vec<String>,
    /// This server comes to no end with gathering.
    stuck: bool,
    /// Another server may have acknowledged what is not settled yet.
    unsettled: bool,
    /// The store may have got back from this server what it owes to nobody.
    adopted: bool,
}

impl Story {
    async fn begin(seed: u64) -> Self {
        let world = World::start(dealing(Start::default())).await;
        Self {
            stage: Stage::of(world).await,
            rng: StdRng::seed_from_u64(seed),
            asked: Vec::new(),
            stuck: false,
            unsettled: false,
            adopted: false,
        }
    }

    /// A few, of whom some are of one stripe.
    fn people(&mut self, step: usize) -> Vec<String> {
        let role = format!("storm-{step}");
        let one = self.rng.random_range(0..STRIPES);
        let count = self.rng.random_range(0..=PEOPLE_MAX);
        let of_it = self.rng.random_range(0..=count);
        let mut people: Vec<_> = people_of(&self.stage.id, one, &role).take(of_it).collect();
        for _ in of_it..count {
            let stripe = self.rng.random_range(0..STRIPES);
            let role = format!("{role}-{}", people.len());
            people.extend(people_of(&self.stage.id, stripe, &role).take(1));
        }
        self.asked.extend(people.iter().cloned());
        people
    }

    /// Each of these asks once; whoever hears nothing will ask again.
    fn ask_once(
        &self,
        people: Vec<String>,
    ) -> JoinSet<Option<(String, red_envelope_proto::v1::GrabResponse)>> {
        let mut asked = JoinSet::new();
        for grabber in people {
            let (record, id) = (self.stage.world.record.clone(), self.stage.id.clone());
            let mut client: Client = self.stage.world.envelopes.clone();
            asked.spawn(async move {
                let answer = record.grab(&mut client, grab_of(&id, &grabber)).await;
                Some((grabber, answer.ok()?))
            });
        }
        asked
    }

    async fn step(mut self, step: usize) -> Self {
        let strike = *STRIKES.choose(&mut self.rng).unwrap();
        let people = self.people(step);
        println!(
            "{step}: {strike:?}, {} people, stuck {}",
            people.len(),
            self.stuck
        );
        // Somebody must know of every share that was told: the store, the books, or the server that told it.
        let forgets = match strike {
            Strike::LosesAll => self.stuck || self.unsettled,
            Strike::ServerDies => self.adopted,
            _ => self.stuck && self.adopted,
        };
        if forgets {
            self.is_quiet().await;
        }
        if self.stuck || matches!(strike, Strike::ServerDies | Strike::Freeze) {
            let asked = self.ask_once(people);
            if !matches!(strike, Strike::ServerDies | Strike::Freeze) {
                let answers: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
                self.stage.are_told(&answers);
                if matches!(strike, Strike::LosesAll) {
                    self.is_quiet().await;
                }
                self.strike(strike).await;
            } else {
                self.strike(strike).await;
                let answers: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
                self.stage.are_told(&answers);
            }
        } else {
            let (record, id) = (self.stage.world.record.clone(), self.stage.id.clone());
            let clients = [self.stage.world.envelopes.clone()];
            let (answers, ()) =
                tokio::join!(rush(&record, &clients, &id, people), self.strike(strike));
            self.stage.are_told(&answers);
        }
        // What comes back into an epoch is gathered, which this server does not do.
        let lost = !matches!(strike, Strike::Nothing | Strike::Freeze);
        if matches!(strike, Strike::ServerDies) || (self.stuck && lost) {
            self = self.another_server().await;
        } else {
            self.adopted |= lost;
        }
        self.stage.the_answers_stay().await;
        self
    }

    /// All that was told is in the books.
    async fn is_quiet(&mut self) {
        self.stage.world.audit_when_quiet().await;
        (self.unsettled, self.adopted) = (false, false);
    }

    async fn strike(&mut self, strike: Strike) {
        match strike {
            Strike::Nothing => {}
            Strike::LosesKey(letter) => {
                let keys = self.stage.keys(letter);
                if let Some(key) = keys.choose(&mut self.rng) {
                    let lost = self.stage.world.redis().command(&[b"DEL", key]);
                    assert!(matches!(lost, Value::Int(_)));
                }
            }
            Strike::LosesAll => drop(self.stage.world.redis().command(&[b"FLUSHALL"])),
            Strike::RedisDies => {
                self.stage.world.redis().kill();
                self.stage.world.redis().restart();
                self.stage.world.until_ready().await;
            }
            Strike::ServerDies => self.stage.world.server.kill(),
            Strike::Freeze => {
                if freeze(&mut self.stage).await.is_ok() {
                    unfreeze(&mut self.stage).await.unwrap();
                }
            }
        }
    }

    /// Instead of the one before, which is killed.
    async fn another_server(mut self) -> Self {
        let lost = self.stuck;
        let (points, stuck) = match lost {
            true => POINTS[0],
            false => *POINTS.choose(&mut self.rng).unwrap(),
        };
        let start = Start {
            points: Some(points.to_owned()),
            ..Start::default()
        };
        println!("   {points}");
        self.stage = self.stage.restarted_as(start).await;
        (self.stuck, self.unsettled) = (stuck, true);
        self
    }
}

async fn story(seed: u64) {
    println!("seed {seed}");
    let mut story = Story::begin(seed).await;
    for step in 0..STEPS {
        story = story.step(step).await;
    }
    let mut stage = story.stage.restarted().await;
    stage.the_answers_stay().await;
    let people = story.asked.into_iter().chain(crowd());
    stage.ends_with(people).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_next_a_dealt_envelope_gives_each_share_once_and_keeps_its_word() {
    for seed in SEEDS {
        story(seed).await;
    }
}
