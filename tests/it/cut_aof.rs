//! The AOF of a burst, cut in the middle of it, and the books of that moment: what a server makes of both.
//!
//! # Shape
//! | step | what |
//! |---|---|
//! | before | some grabs that are in the books and in Redis |
//! | burst | callers grab while the books are held; each notes how long the AOF was before and behind its grab |
//! | copies | the books without the burst, and with all of it |
//! | cut | Redis starts on the AOF up to a byte of the burst, a server on a copy of the books; it settles, is grabbed from, and its time comes |
//!
//! With the books of before the burst each cut is what a crash may leave at any level: whose grab is behind
//! the cut was not answered at `fsync`. With those behind it Redis has lost what is paid, as at `memory`.
//!
//! # Not here
//! Every byte: `cuts` in the tests of the Redis store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope_proto::v1::{EnvelopeState, GrabOutcome, Share};
use tokio::task::JoinSet;

use crate::harness::fleet::Client;
use crate::harness::server::{Server, copy, new_folder};
use crate::harness::world::{channel, grab_of};
use crate::harness::{Start, World, cny, lucky};

/// Shares of the envelope, what they are worth, and who grabs before the burst.
const SHARES: u32 = 200;
const TOTAL: i64 = 100_000;
const EARLY: usize = 20;
/// Callers of the burst and grabs of each.
const CALLERS: usize = 4;
const GRABS_OF_A_CALLER: usize = 30;
/// Cuts of the burst, for each of the books.
const CUTS: usize = 8;
/// Of those whose grabs were cut off, how many grab again.
const AGAIN: usize = 3;
const A_DAY_LATER_MS: i64 = 25 * 3_600_000;

/// A share, and how long the AOF was before its grab was sent and behind its answer.
#[derive(Clone, Copy, Debug)]
struct Told {
    share: u32,
    amount: i64,
    before: usize,
    behind: usize,
}

/// The file to which Redis appends.
fn appended(aof: &Path) -> PathBuf {
    let files = std::fs::read_dir(aof).unwrap();
    let mut files = files.map(|file| file.unwrap().path());
    let file = files.find(|path| path.to_string_lossy().ends_with(".incr.aof"));
    file.unwrap()
}

fn bytes_of(file: &Path) -> usize {
    let bytes = std::fs::metadata(file).unwrap().len();
    usize::try_from(bytes).unwrap()
}

/// Each caller grabs under new names; what they were told.
async fn burst(world: &World, id: &str) -> BTreeMap<String, Told> {
    let file = appended(&world.redis.as_ref().unwrap().aof());
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut client = Client::new(channel(world.server.grpc()).await);
        let (id, file, record) = (id.to_owned(), file.clone(), world.record.clone());
        callers.spawn(async move {
            let mut told = Vec::new();
            for number in 0..GRABS_OF_A_CALLER {
                let grabber = format!("caller-{caller}-{number}");
                let before = bytes_of(&file);
                let answer = record.grab(&mut client, grab_of(&id, &grabber)).await;
                let answer = answer.unwrap();
                assert_eq!(answer.outcome(), GrabOutcome::Won, "{grabber}");
                let share = answer.share.unwrap();
                let of_it = Told {
                    share: share.number,
                    amount: share.amount.unwrap().minor_units,
                    before,
                    behind: bytes_of(&file),
                };
                told.push((grabber, of_it));
            }
            told
        });
    }
    callers.join_all().await.into_iter().flatten().collect()
}

/// What is left of the burst.
struct Scene {
    id: String,
    redis: Option<RedisServer>,
    /// Where the append-only files of the whole burst, the books without it and those with it are.
    copies: tempfile::TempDir,
    /// How long the file was before and behind the burst.
    bytes: std::ops::Range<usize>,
    told: BTreeMap<String, Told>,
}

impl Scene {
    async fn new() -> Self {
        let whole = [("auto-aof-rewrite-percentage", "0")];
        let redis = RedisServer::start(Flavour::Debian, &whole);
        let mut world = World::over(redis, Start::default()).await;
        world.fund("alice", cny(TOTAL)).await;
        let id = world.send(lucky("alice", cny(TOTAL), SHARES)).await;
        let id = id.envelope_id;
        for number in 0..EARLY {
            world.win(&id, &format!("early-{number}")).await;
        }
        world.audit_when_quiet().await;
        let aof = world.redis().aof();
        let from = bytes_of(&appended(&aof));
        let books = world.server.hold_the_books();
        let told = burst(&world, &id).await;
        let to = bytes_of(&appended(&aof));
        let copies = new_folder();
        let data = world.server.data_folder();
        // Nobody writes to the books while they are held, and nothing of the burst is in them.
        world.server.kill();
        drop(books);
        copy(&aof, &copies.path().join("aof"));
        copy(&data, &copies.path().join("without"));
        let mut world = world.restarted(Start::default()).await;
        world.until_ready().await;
        world.audit_when_quiet().await;
        world.server.kill();
        copy(&data, &copies.path().join("with"));
        Self {
            id,
            redis: world.redis.take(),
            copies,
            bytes: from..to,
            told,
        }
    }

    /// Where the burst is cut: spread over it, at bytes that are the same for the same burst.
    fn cuts(&self) -> impl Iterator<Item = usize> + use<> {
        let (from, length) = (self.bytes.start, self.bytes.len());
        (1..=CUTS).map(move |cut| from + length * (2 * cut - 1) / (2 * CUTS))
    }

    /// Redis on what is before the cut, and a server on a copy of these books.
    async fn cut(&mut self, books: &str, cut: usize, start: Start) -> World {
        let mut redis = self.redis.take().unwrap();
        redis.kill();
        let aof = redis.aof();
        std::fs::remove_dir_all(&aof).unwrap();
        copy(&self.copies.path().join("aof"), &aof);
        let file = std::fs::File::options().write(true).open(appended(&aof));
        file.unwrap().set_len(cut.try_into().unwrap()).unwrap();
        redis.restart();
        let books = self.copies.path().join(books);
        let start = start.reaching(Some(&redis));
        let server = Server::on_a_copy_of(&books, start).await;
        World::around(server, Some(redis)).await
    }
}

/// Number and amount of the share of each who has one.
async fn held(world: &mut World, id: &str) -> BTreeMap<String, (u32, i64)> {
    let shares = world.shares(id, "alice").await.into_iter();
    let of_it = |share: Share| {
        let amount = share.amount.unwrap().minor_units;
        (share.grabber, (share.number, amount))
    };
    shares.map(of_it).collect()
}

/// Some who lost a share grab again, its time comes, and everybody has once what he holds.
async fn ends_well(world: &mut World, id: &str, lost: &[&String]) {
    for grabber in lost.iter().take(AGAIN) {
        world.win(id, grabber).await;
    }
    world.audit_when_quiet().await;
    world.server.set_clock_ms(A_DAY_LATER_MS);
    let closed = world.until(id, "alice", EnvelopeState::Closed).await;
    let held = held(world, id).await;
    let numbers: BTreeSet<_> = held.values().map(|(number, _)| number).collect();
    assert_eq!(numbers.len(), held.len());
    let won: i64 = held.values().map(|(_, amount)| amount).sum();
    let progress = closed.progress.unwrap();
    assert_eq!(progress.settled.unwrap().minor_units, won);
    assert_eq!(progress.refunded.unwrap().minor_units, TOTAL - won);
    assert_eq!(world.balance("alice").await, (TOTAL - won, 0, 0));
    for (grabber, (_, amount)) in &held {
        assert_eq!(world.available(grabber).await, *amount, "{grabber}");
    }
    for grabber in lost.iter().skip(AGAIN) {
        assert_eq!(world.available(grabber).await, 0, "{grabber}");
    }
    let report = world.audit_when_quiet().await;
    assert!(report.totals.iter().all(|sums| sums.made_good_minor == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aof_that_is_cut_in_a_burst_is_settled_with_the_books_of_that_moment() {
    let mut scene = Scene::new().await;
    let (mut kept_before, mut torn) = (EARLY, 0);
    for cut in scene.cuts() {
        let mut world = scene.cut("without", cut, Start::default()).await;
        torn += usize::from(world.redis().log().contains("short read"));
        world.until_ready().await;
        world.audit_when_quiet().await;
        let held = held(&mut world, &scene.id).await;
        // More was kept than of the cut before, and no grab in part.
        assert!(kept_before < held.len(), "{kept_before} at {cut}");
        kept_before = held.len();
        let mut lost = Vec::new();
        for (grabber, told) in &scene.told {
            let has = held.get(grabber);
            // Who was answered before the cut has what he was told, and who asked behind it has nothing.
            assert!(has.is_none() || told.before < cut, "{grabber} at {cut}");
            assert!(has.is_some() || told.behind > cut, "{grabber} at {cut}");
            assert!(has.is_none_or(|share| *share == (told.share, told.amount)));
            if has.is_none() {
                lost.push(grabber);
            }
        }
        ends_well(&mut world, &scene.id, &lost).await;
        scene.redis = world.redis.take();
    }
    assert!(torn > 0, "no cut was in the middle of a call");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aof_that_is_cut_before_what_is_in_the_books_costs_nobody_his_share() {
    let mut scene = Scene::new().await;
    for cut in scene.cuts() {
        let memory = Start {
            flags: ["--ack", "memory"].map(str::to_owned).to_vec(),
            ..Start::default()
        };
        let mut world = scene.cut("with", cut, memory).await;
        world.until_ready().await;
        // The next to come gets what nobody has, and who had a share hears of it.
        let stranger = world.win(&scene.id, "stranger").await.number;
        assert!(scene.told.values().all(|told| told.share != stranger));
        for (grabber, told) in &scene.told {
            let again = world.grab(&scene.id, grabber).await;
            assert_eq!(again.outcome(), GrabOutcome::AlreadyGrabbed, "{grabber}");
            let share = again.share.unwrap();
            let is = (share.number, share.amount.unwrap().minor_units);
            assert_eq!(is, (told.share, told.amount), "{grabber} at {cut}");
        }
        let held = held(&mut world, &scene.id).await;
        assert_eq!(held.len(), EARLY + scene.told.len() + 1);
        ends_well(&mut world, &scene.id, &[]).await;
        scene.redis = world.redis.take();
    }
}
