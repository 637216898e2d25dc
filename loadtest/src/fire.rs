//! Fires the schedule: every grab at its instant, whatever the answers before it did.
//!
//! # Shape
//! Arrivals are dealt to lanes, a lane being one connection of one transport. A lane waits for the
//! next instant, takes a place (`in_flight_max` of them), lets the grab go as a task of its own and
//! looks at the next arrival.
//!
//! # Bounds
//! `in_flight_max` tasks a lane. Who finds no place for `give_up_ms` is counted as not sent; those
//! behind wait with it, leave late and are counted as late.
//!
//! # Unknown outcomes
//! A grab whose outcome is unknown is repeated, as the contract promises that this resolves it: up
//! to `tries_max` times, waiting twice as long each time. The impatient tries of a profile come before that,
//! with a timeout of their own and without a pause; the patient ones then have a connection of their own, as
//! somebody has who opens the app again: a connection on which many calls are given up is cut by the
//! transport, with everybody on it. Repeats are counted and printed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use red_envelope_proto::v1;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::again;
use crate::book::{Answer, Held};
use crate::generator::Turn;
use crate::record::Record;
use crate::schedule::{Arrival, Transport};
use crate::server::Address;
use crate::stream::Gateway;
use crate::world::World;

/// Before the first patient repetition; each further one waits twice as long.
const REPEAT_AFTER: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
const REPEAT_AFTER_MAX: Duration = Duration::from_secs(2);
/// From the end of the preparation to the first instant: all lanes stand ready.
const HEAD_START: Duration = Duration::from_millis(200);

/// A connection that grabs.
#[derive(Clone)]
enum Client {
    Unary(EnvelopeServiceClient<Channel>),
    Stream(Arc<Gateway>),
}

/// What the tasks of one lane share.
struct Lane {
    world: Arc<World>,
    client: Client,
    /// For the patient tries after impatient ones.
    calm: Client,
    start: Instant,
    record: Mutex<Record>,
    progress: ProgressBar,
}

/// Fires everything and waits for the last answer. `begins` is told the first instant before it comes.
pub async fn fire(
    world: &Arc<World>,
    servers: &[Address],
    progress: &ProgressBar,
    begins: impl FnOnce(Instant),
) -> anyhow::Result<BTreeMap<Transport, Record>> {
    let fire = &world.profile.fire;
    let mut lanes: BTreeMap<(Transport, usize), Vec<Arrival>> = BTreeMap::new();
    for arrival in &world.schedule.arrivals {
        // By person and envelope, so that a repetition may overtake on a lane or meet on two.
        let mixed = arrival.envelope * 31 + arrival.person.number() as usize;
        let lane = (arrival.transport, mixed % fire.connections as usize);
        lanes.entry(lane).or_default().push(*arrival);
    }
    let mut clients = Vec::with_capacity(lanes.len());
    // Lanes are dealt to the servers in turn, as a balancer deals connections. Who repeats does so on his own;
    // who opens the app again meets the next one.
    let dealt = servers.iter().cycle().zip(servers.iter().cycle().skip(1));
    for ((transport, _), (server, next)) in lanes.keys().zip(dealt) {
        let client = Client::new(*transport, server.connect().await?);
        let calm = match fire.impatient_tries {
            0 => client.clone(),
            _ => Client::new(*transport, next.connect().await?),
        };
        clients.push((client, calm));
    }
    let start = Instant::now() + HEAD_START;
    begins(start);
    let _set_once = world.fire_start.set(start);
    let mut running = tokio::task::JoinSet::new();
    for (((transport, _), arrivals), (client, calm)) in lanes.into_iter().zip(clients) {
        let lane = Arc::new(Lane {
            world: Arc::clone(world),
            client,
            calm,
            start,
            record: Mutex::new(Record::new(Duration::from_millis(fire.late_ms))),
            progress: progress.clone(),
        });
        running.spawn(async move { run(lane, arrivals).await.map(|record| (transport, record)) });
    }
    let mut records: BTreeMap<Transport, Record> = BTreeMap::new();
    while let Some(ended) = running.join_next().await {
        let (transport, record) = ended.context("a lane panicked")??;
        records
            .entry(transport)
            .and_modify(|sum| sum.absorb(&record))
            .or_insert(record);
    }
    Ok(records)
}

async fn run(lane: Arc<Lane>, arrivals: Vec<Arrival>) -> anyhow::Result<Record> {
    let fire = &lane.world.profile.fire;
    let places = Arc::new(Semaphore::new(fire.in_flight_max as usize));
    let give_up = Duration::from_millis(fire.give_up_ms);
    let in_flight_max = fire.in_flight_max;
    let mut turn = Turn::new(lane.start);
    for arrival in arrivals {
        let due = lane.start + arrival.due;
        tokio::time::sleep_until(due).await;
        let overslept = turn.own_delay(due, Instant::now());
        let Some(place) = place(&places, due + give_up, &mut turn).await? else {
            lane.record().given_up(arrival.due);
            lane.progress.inc(1);
            continue;
        };
        let lane = Arc::clone(&lane);
        let let_go = Instant::now();
        tokio::spawn(async move {
            let own_delay = overslept + let_go.elapsed();
            grab(&lane, arrival, own_delay).await;
            drop(place);
        });
    }
    // Every place is free again: every grab has been answered.
    let _all = places.acquire_many(in_flight_max).await?;
    let record = lane.record().clone();
    ensure!(
        record.answered_count() == record.sent,
        "{} of {} grabs ended without an answer: a task panicked",
        record.sent - record.answered_count(),
        record.sent
    );
    Ok(record)
}

/// A place on the lane's connection. None: until then there was none.
async fn place(
    places: &Arc<Semaphore>,
    until: Instant,
    turn: &mut Turn,
) -> anyhow::Result<Option<OwnedSemaphorePermit>> {
    if let Ok(place) = Arc::clone(places).try_acquire_owned() {
        return Ok(Some(place));
    }
    let place = tokio::time::timeout_at(until, Arc::clone(places).acquire_owned()).await;
    turn.waited_until(Instant::now());
    let place = place.ok().transpose();
    place.context("nobody closes the places")
}

impl Lane {
    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().expect("recording does not panic")
    }
}

async fn grab(lane: &Lane, arrival: Arrival, own_delay: Duration) {
    let world = &lane.world;
    let request = world.grab(arrival.envelope, arrival.person);
    let asked_at = world.page(arrival.envelope).ask(arrival.person);
    let left = lane.start.elapsed();
    lane.record().left(arrival.due, left);

    let fire = &world.profile.fire;
    let mut tries = 0;
    let mut pause = REPEAT_AFTER;
    let answer = loop {
        tries += 1;
        let impatient = tries <= fire.impatient_tries;
        let (client, timeout_ms) = match impatient {
            true => (&lane.client, fire.impatient_timeout_ms),
            false => (&lane.calm, fire.timeout_ms),
        };
        match client.try_once(request.clone(), timeout_ms).await {
            Ok(response) => break read(response),
            Err(status) if status.code() == Code::NotFound => break Answer::NotFound,
            Err(status) if !may_be_repeated(&status) => {
                break Answer::Odd(format!("{:?}: {}", status.code(), status.message()));
            }
            Err(status) if tries >= fire.tries_max => {
                break Answer::Unknown(format!("{:?}: {}", status.code(), status.message()));
            }
            Err(_) if impatient => {}
            Err(_) => {
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(REPEAT_AFTER_MAX);
            }
        }
    };
    let mut page = world.page(arrival.envelope);
    page.answer(arrival.person, asked_at, tries > 1, &answer);
    drop(page);
    let now = lane.start.elapsed();
    let mut record = lane.record();
    record.answered(arrival.due, now, tries, answer.label());
    record.own.delayed(own_delay);
    record.own.answered_after(now.saturating_sub(left));
    drop(record);
    lane.progress.inc(1);
}

impl Client {
    fn new(transport: Transport, channel: Channel) -> Self {
        match transport {
            Transport::Unary => Self::Unary(EnvelopeServiceClient::new(channel)),
            Transport::Stream => Self::Stream(Arc::new(Gateway::new(channel))),
        }
    }

    async fn try_once(
        &self,
        grab: v1::GrabRequest,
        timeout_ms: u32,
    ) -> Result<v1::GrabResponse, Status> {
        match self {
            Self::Stream(gateway) => gateway.grab(grab, timeout_ms).await,
            Self::Unary(client) => {
                let mut request = Request::new(grab);
                request.set_timeout(Duration::from_millis(timeout_ms.into()));
                Ok(client.clone().grab(request).await?.into_inner())
            }
        }
    }
}

/// Whether the contract says of this code that the outcome is unknown, or that nothing happened yet.
fn may_be_repeated(status: &Status) -> bool {
    again::is_away(status)
        || matches!(
            status.code(),
            Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted | Code::Aborted
        )
}

fn read(response: v1::GrabResponse) -> Answer {
    let outcome = response.outcome();
    let held = response.share.as_ref().and_then(|share| {
        Some(Held {
            number: share.number,
            amount_minor: share.amount.as_ref()?.minor_units,
        })
    });
    match (outcome, held) {
        (v1::GrabOutcome::Won, Some(held)) => Answer::Won(held),
        (v1::GrabOutcome::AlreadyGrabbed, Some(held)) => Answer::Already(held),
        (v1::GrabOutcome::Empty, None) => Answer::Empty,
        (outcome, held) => Answer::Odd(format!("{} with {held:?}", outcome.as_str_name())),
    }
}
