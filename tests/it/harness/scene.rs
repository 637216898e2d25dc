//! Somebody who behaves, beside somebody who does not: what the one has of a server while the other attacks it, and
//! what that costs the server.
//!
//! # Bounds
//! What the catalogue names: a good client's p99 at most doubles. On a machine that does much else a p99 is what the
//! machine did at its worst moment, so the median of [`WINDOWS`] windows counts, the worse of before and after
//! the attack is what it is compared with, and below [`P99_FLOOR`] nobody minds, or below [`P99_FLOOR_ALONE`] where the
//! machine does nothing else (`make faults`).

use std::time::Duration;

use red_envelope_proto::v1::GrabOutcome;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Start;
use super::faults::Faults;
use super::fleet::Client;
use super::world::{World, channel, cny, equal, grab_of};

/// Windows of which the median counts.
const WINDOWS: usize = 5;
/// Grabs of a window: its p99 is the second slowest.
const GRABS_PER_WINDOW: usize = 150;
/// What the catalogue names.
const P99_TIMES_MAX: u32 = 2;
/// A p99 below this is a busy machine's, which lets a process wait for its cores so long: a client that is starved
/// waits for seconds.
const P99_FLOOR: Duration = Duration::from_millis(150);
/// The same on a machine that does nothing else but the attack, and shares its cores with that.
const P99_FLOOR_ALONE: Duration = Duration::from_millis(20);

/// How long an attack may take to be under way.
const STANDS_WITHIN: Duration = Duration::from_secs(120);
/// What an attack is told, and tells.
#[derive(Clone)]
pub struct Signs {
    pub port: u16,
    /// The attack: it is under way as a whole.
    pub standing: CancellationToken,
    /// To the attack: it is enough.
    pub over: CancellationToken,
}

/// A server, an envelope that is grabbed, and somebody who grabs it as one should.
pub struct Scene {
    pub world: World,
    pub id: String,
    pub good: Client,
    pub grabbed: usize,
    resident_max: u64,
}

impl Scene {
    /// Under these circumstances.
    pub async fn new(start: Start) -> Self {
        let mut world = World::start(start).await;
        world.fund("alice", cny(1_000_000)).await;
        let id = world
            .send(equal("alice", cny(1), 100_000))
            .await
            .envelope_id;
        let good = Client::new(channel(world.server.grpc()).await);
        Self {
            world,
            id,
            good,
            grabbed: 0,
            resident_max: 0,
        }
    }

    /// The median of the windows' p99.
    pub async fn p99(&mut self) -> Duration {
        let mut windows = Vec::with_capacity(WINDOWS);
        for _ in 0..WINDOWS {
            let mut waits = Vec::with_capacity(GRABS_PER_WINDOW);
            for _ in 0..GRABS_PER_WINDOW {
                let who = format!("good-{}", self.grabbed);
                self.grabbed += 1;
                let began = Instant::now();
                let grab = grab_of(&self.id, &who);
                let answer = self.world.record.grab(&mut self.good, grab).await;
                waits.push(began.elapsed());
                assert_eq!(answer.unwrap().outcome(), GrabOutcome::Won, "{who}");
                let resident = self.world.server.resident_bytes();
                self.resident_max = self.resident_max.max(resident);
            }
            windows.push(p99_of(waits));
        }
        windows.sort_unstable();
        windows[WINDOWS / 2]
    }

    /// What somebody good has of the server while this goes on, and what it costs. Answers what the attack answers.
    pub async fn endures<Told, Attacking>(
        &mut self,
        name: &str,
        bytes_max: u64,
        attack: impl FnOnce(Signs) -> Attacking + Send + 'static,
    ) -> Told
    where
        Told: Send + 'static,
        Attacking: Future<Output = Told>,
    {
        self.p99().await;
        let before = self.p99().await;
        let resident = self.world.server.resident_bytes();
        self.resident_max = resident;
        let signs = Signs {
            port: self.world.server.grpc(),
            standing: CancellationToken::new(),
            over: CancellationToken::new(),
        };
        // In a thread of its own: what is measured is the server, not who of this process gets a turn.
        let attacking = std::thread::spawn({
            let signs = signs.clone();
            move || alone(attack(signs))
        });
        let begins = self.p99().await;
        let stands = tokio::time::timeout(STANDS_WITHIN, signs.standing.cancelled()).await;
        stands.expect("the attack is under way");
        let during = begins.max(self.p99().await);
        signs.over.cancel();
        let told = tokio::task::spawn_blocking(|| attacking.join()).await;
        let told = told.unwrap().expect("the attack goes as it is meant");
        self.resident_max = self.resident_max.max(self.world.server.resident_bytes());
        let after = self.p99().await;
        let grown = self.resident_max.saturating_sub(resident);
        println!(
            "{name}: p99 {before:.1?} before, {during:.1?} during, {after:.1?} after; {:.1} MB more than {:.1} MB",
            megabytes(grown),
            megabytes(resident),
        );
        let server = &mut self.world.server;
        assert!(server.is_alive() && !server.log().contains("panicked"));
        assert!(grown <= bytes_max, "{name}: {grown} bytes");
        let quiet = before.max(after);
        assert!(
            is_borne(quiet, during, floor()),
            "{name}: {during:?} after {quiet:?}"
        );
        told
    }

    /// What was won is paid.
    pub async fn ends(mut self) {
        self.world.audit_when_quiet().await;
    }
}

fn alone<Told>(future: impl Future<Output = Told>) -> Told {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

fn p99_of(mut waits: Vec<Duration>) -> Duration {
    waits.sort_unstable();
    waits[waits.len() * 99 / 100]
}

fn floor() -> Duration {
    match Faults::asked_for().is_long {
        true => P99_FLOOR_ALONE,
        false => P99_FLOOR,
    }
}

fn is_borne(before: Duration, during: Duration, floor: Duration) -> bool {
    during <= (P99_TIMES_MAX * before).max(floor)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[test]
fn a_p99_that_more_than_doubles_is_told_from_one_that_does_not() {
    let ms = Duration::from_millis;
    let borne = |before, during| is_borne(ms(before), ms(during), ms(20));
    assert!(borne(2, 20) && !borne(2, 21));
    assert!(borne(100, 200) && !borne(100, 201));
    let slow_two = |slow| [vec![ms(1); GRABS_PER_WINDOW - 2], vec![slow; 2]].concat();
    assert_eq!(p99_of(slow_two(ms(500))), ms(500));
}
