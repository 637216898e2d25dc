//! One publish of an envelope at a time in a process: who asks meanwhile gets the same answer.
//!
//! *Bounds.* At most [`FLIGHTS_MAX`] envelopes are being published at once; one more is shed.
//!
//! *If it crashes here.* A leader that is dropped (its caller's deadline passed) leaves the flight
//! to the next one who waits; the last one out removes the flight.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::PublishError;
use crate::domain::id::EnvelopeId;

/// Envelopes that are being published at once. A publish of a small envelope takes about 5 ms, so
/// this is 200,000 a second, far above what the ledger can fund; at the 1,000 shares that need no
/// permit (see `LARGE_SHARES_MAX`) their vectors take 8 MB.
pub(super) const FLIGHTS_MAX: usize = 1_024;

type Landing<T> = OnceCell<Result<T, PublishError>>;

/// The publishes under way.
pub(super) struct Flights<T> {
    under_way: Mutex<HashMap<EnvelopeId, Arc<Landing<T>>>>,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self {
            under_way: Mutex::default(),
        }
    }
}

impl<T: Clone> Flights<T> {
    /// Joins the flight of `id`, or starts it with `publish`.
    pub(super) async fn join(
        &self,
        id: EnvelopeId,
        publish: impl Future<Output = Result<T, PublishError>>,
    ) -> Result<T, PublishError> {
        let seat = self.board(id)?;
        seat.cell.get_or_init(|| publish).await.clone()
    }

    fn board(&self, id: EnvelopeId) -> Result<Seat<'_, T>, PublishError> {
        let mut under_way = self.under_way.lock();
        if under_way.len() >= FLIGHTS_MAX && !under_way.contains_key(&id) {
            return Err(PublishError::Shed);
        }
        let cell = Arc::clone(under_way.entry(id).or_default());
        Ok(Seat {
            flights: self,
            id,
            cell,
        })
    }
}

/// A place on a flight. Leaving it ends a flight that has landed or that nobody else is on.
struct Seat<'a, T> {
    flights: &'a Flights<T>,
    id: EnvelopeId,
    cell: Arc<Landing<T>>,
}

impl<T> Drop for Seat<'_, T> {
    fn drop(&mut self) {
        let mut under_way = self.flights.under_way.lock();
        let Some(cell) = under_way.get(&self.id) else {
            return;
        };
        // Seats are taken and left under the lock, so two owners are the map and this seat.
        let last = Arc::strong_count(cell) == 2;
        if Arc::ptr_eq(cell, &self.cell) && (last || cell.initialized()) {
            under_way.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::envelope::HotState;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn id(n: u16) -> EnvelopeId {
        EnvelopeId::from_parts(n, [0; 14])
    }

    #[tokio::test]
    async fn many_who_ask_at_once_cause_one_publish_and_get_its_answer() {
        let flights = Flights::default();
        let ran = AtomicU32::new(0);
        let asks = (0..100).map(|_| {
            flights.join(id(1), async {
                ran.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Ok(HotState::Live)
            })
        });
        for landing in futures_util::future::join_all(asks).await {
            assert!(matches!(landing, Ok(HotState::Live)));
        }
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        assert!(flights.under_way.lock().is_empty());
    }

    #[tokio::test]
    async fn a_dropped_leader_leaves_the_flight_to_the_next() {
        let flights = Flights::default();
        let mut leader = Box::pin(flights.join(id(1), std::future::pending()));
        assert!(futures_util::poll!(leader.as_mut()).is_pending());
        let mut next = Box::pin(flights.join(id(1), async { Ok(HotState::Live) }));
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        drop(leader);
        assert!(matches!(next.await, Ok(HotState::Live)));
        assert!(flights.under_way.lock().is_empty());
    }

    #[tokio::test]
    async fn one_flight_too_many_is_shed_and_a_waiter_is_not() {
        let flights = Flights::<HotState>::default();
        let mut seats = Vec::new();
        for n in 0..FLIGHTS_MAX {
            seats.push(flights.board(id(u16::try_from(n).unwrap())).unwrap());
        }
        assert!(matches!(
            flights.board(id(u16::MAX)),
            Err(PublishError::Shed)
        ));
        assert!(flights.board(id(0)).is_ok());
        seats.clear();
        assert!(flights.under_way.lock().is_empty());
    }
}
