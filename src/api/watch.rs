//! WatchEnvelope: an envelope's life, told to whoever watches, at most four times a second.
//!
//! # Shape
//! One task looks at all watched envelopes, [`POLL`] after [`POLL`], a hundred in one call of each
//! store; each envelope has one broadcast of its latest snapshot; each watcher cuts it to what it
//! may see. The task begins with the first watcher and ends when nobody watches.
//!
//! # Bounds
//! [`ENVELOPES_WATCHED_MAX`], [`WATCHERS_MAX`]; beyond them RESOURCE_EXHAUSTED with RetryInfo. A
//! broadcast holds one snapshot, so a slow reader skips to the latest.
//!
//! # Ordering
//! A watcher hears what it may see now, then whatever differs from what it heard last, and CLOSED
//! as the last message. Where a store is out of reach it hears nothing new until it is back; of an
//! envelope that a replaced hot store lost it hears nothing new until somebody grabs from it, looks
//! at it or the sweeper closes it: two thousand watched envelopes are not repaired at once.
//!
//! # Not here
//! What is shown: `sight`. What outlives a disconnect: nothing, the watcher asks again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use parking_lot::Mutex;
use red_envelope_proto::v1;
use tokio::sync::watch;
use tonic::Status;

use super::Api;
use super::admission::Admission;
use super::get::looked_at;
use super::sight::{Snapshot, Viewer};
use super::status::{ApiError, Full};
use crate::domain::id::EnvelopeId;
use crate::hot::VIEWS_PER_CALL_MAX;
use crate::telemetry::metrics;

/// Between two looks at everything that is watched: four a second.
const POLL: Duration = Duration::from_millis(250);

/// Envelopes watched: 20 calls of each store a look, 80 a second.
pub const ENVELOPES_WATCHED_MAX: usize = 2_000;

/// Watchers of a process: each is a stream with a task and a few KiB, 100 MB together.
pub const WATCHERS_MAX: usize = 20_000;

/// What is watched.
#[derive(Default)]
pub(super) struct Watches(Mutex<Watched>);

#[derive(Default)]
struct Watched {
    envelopes: HashMap<EnvelopeId, watch::Sender<Arc<Snapshot>>>,
    watchers: usize,
    polling: bool,
}

/// One watcher's place.
struct Seat {
    api: Arc<Api>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.api.watches.0.lock().watchers -= 1;
        metrics::watch_ended();
    }
}

impl Seat {
    /// Takes a place and joins the envelope's broadcast, or begins it with what was just read.
    fn take(
        api: &Arc<Api>,
        snapshot: Snapshot,
    ) -> Result<(Self, watch::Receiver<Arc<Snapshot>>), ApiError> {
        let id = snapshot.row.id;
        let mut watched = api.watches.0.lock();
        let new = !watched.envelopes.contains_key(&id);
        let full = watched.watchers >= WATCHERS_MAX
            || (new && watched.envelopes.len() >= ENVELOPES_WATCHED_MAX);
        if full {
            metrics::shed(Full::Watchers.name(), 1);
            return Err(ApiError::Shed(Full::Watchers));
        }
        watched.watchers += 1;
        let broadcast = watched
            .envelopes
            .entry(id)
            .or_insert_with(|| watch::channel(Arc::new(snapshot)).0);
        let receiver = broadcast.subscribe();
        if !watched.polling {
            watched.polling = true;
            tokio::spawn(poll(Arc::clone(api)));
        }
        metrics::watch_opened();
        Ok((
            Self {
                api: Arc::clone(api),
            },
            receiver,
        ))
    }
}

/// The RPC.
pub(super) async fn watch_envelope(
    api: &Arc<Api>,
    request: v1::WatchEnvelopeRequest,
) -> Result<impl Stream<Item = Result<v1::WatchEnvelopeResponse, Status>> + use<>, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let id = a.envelope("envelope_id", &request.envelope_id);
    let viewer = a.name("viewer", &request.viewer);
    a.group(&request.group_id, &request.group_ticket);
    let (tenant, (id, person)) = a.admit(tenant.zip(id.zip(viewer)))?;
    let (snapshot, viewer) = looked_at(api, &tenant, id, person, &request.group_id).await?;
    let (seat, latest) = Seat::take(api, snapshot)?;
    let watcher = Watcher {
        seat,
        latest,
        viewer,
        said: None,
        over: false,
    };
    Ok(futures_util::stream::unfold(watcher, |mut watcher| async {
        let message = watcher.next().await?;
        Some((message, watcher))
    }))
}

/// One stream of messages.
struct Watcher {
    seat: Seat,
    latest: watch::Receiver<Arc<Snapshot>>,
    viewer: Viewer,
    said: Option<v1::WatchEnvelopeResponse>,
    over: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<v1::WatchEnvelopeResponse, Status>> {
        let shutdown = self.seat.api.shutdown.clone();
        while !self.over {
            let snapshot = Arc::clone(&self.latest.borrow_and_update());
            match self.message(&snapshot).await {
                Ok(message) if self.said.as_ref() != Some(&message) => {
                    self.over = snapshot.closed();
                    self.said = Some(message.clone());
                    return Some(Ok(message));
                }
                Ok(_) => {}
                Err(error) => {
                    self.over = true;
                    return Some(Err(error.to_status()));
                }
            }
            tokio::select! {
                changed = self.latest.changed() => changed.ok()?,
                () = shutdown.cancelled() => return None,
            }
        }
        None
    }

    async fn message(
        &mut self,
        snapshot: &Snapshot,
    ) -> Result<v1::WatchEnvelopeResponse, ApiError> {
        // What somebody holds of an envelope never changes once it is there.
        if self.viewer.own.is_none() {
            let person = self.viewer.person.clone();
            self.viewer = self.seat.api.viewer(person, snapshot).await?;
        }
        let viewer = &self.viewer;
        Ok(v1::WatchEnvelopeResponse {
            envelope: Some(snapshot.envelope(viewer)),
            own_share: viewer.own.as_ref().map(|own| snapshot.share(own, viewer)),
        })
    }
}

/// Looks at everything that is watched until nobody watches.
async fn poll(api: Arc<Api>) {
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let ids = {
            let mut watched = api.watches.0.lock();
            watched
                .envelopes
                .retain(|_, latest| latest.receiver_count() > 0);
            if watched.envelopes.is_empty() || api.shutdown.is_cancelled() {
                watched.polling = false;
                return;
            }
            watched.envelopes.keys().copied().collect::<Vec<_>>()
        };
        for chunk in ids.chunks(VIEWS_PER_CALL_MAX) {
            match api.snapshots_at_hand(chunk.to_vec()).await {
                Ok(snapshots) => tell(&api, snapshots),
                Err(error) => {
                    tracing::warn!(?error, "watchers hear nothing new: a store is out of reach");
                    break;
                }
            }
        }
    }
}

fn tell(api: &Api, snapshots: Vec<Snapshot>) {
    let watched = api.watches.0.lock();
    for snapshot in snapshots {
        let Some(latest) = watched.envelopes.get(&snapshot.row.id) else {
            continue;
        };
        latest.send_if_modified(|told| {
            let moved = moved(told, &snapshot);
            if moved {
                *told = Arc::new(snapshot);
            }
            moved
        });
    }
}

/// Whether anything that a message could tell is another.
fn moved(told: &Snapshot, now: &Snapshot) -> bool {
    let of = |s: &Snapshot| {
        let hot = s
            .hot
            .as_ref()
            .map(|hot| (hot.state, hot.taken_count, hot.frozen));
        let row = &s.row;
        let books = (row.state, row.frozen, row.settled_count, row.refunded_minor);
        (hot, books, s.best.as_ref().map(|best| best.grant))
    };
    of(told) != of(now)
}
