//! A process between the stores: the production's publisher and settlement, and the loops that repeat
//! its steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use red_envelope::hot::HotStore;
use red_envelope::ledger::Ledger;
use red_envelope::publish::{Amounts, Publisher};
use red_envelope::settle::Settlement;

use crate::books_door::BooksDoor;
use crate::hot_door::HotDoor;
use crate::net::{Net, Scheduler};
use crate::striped_door::StripedDoor;

/// The rests of the loops, on the average: of `settle::run`, but for a drain that found nothing, which
/// would be most of a history.
const DRAIN_MS: u64 = 700;
const SWEEP_MS: u64 = 1_500;
const RECONCILE_MS: u64 = 5_000;
const LEASE_MS: u64 = 1_000;
const REGISTER_MS: u64 = 300;

pub struct Process {
    alive: AtomicBool,
    pub hot: Arc<dyn HotStore>,
    pub ledger: Arc<dyn Ledger>,
    pub publisher: Arc<Publisher>,
    /// The same door as `hot`, in histories that have stripes.
    striped: Option<Arc<StripedDoor>>,
    settlement: Settlement,
}

impl Process {
    /// Starts one at a place, with its loops. `life` tells it from those before it.
    pub fn start(scheduler: &mut Scheduler, net: &Net, place: usize, life: usize) -> Arc<Self> {
        let door = || net.clone();
        let deals = net.shared().stores.striped.is_some();
        let striped = deals.then(|| Arc::new(StripedDoor::new(door(), place)));
        let hot: Arc<dyn HotStore> = match &striped {
            Some(striped) => Arc::clone(striped) as Arc<dyn HotStore>,
            None => Arc::new(HotDoor {
                net: door(),
                process: place,
            }),
        };
        let ledger: Arc<dyn Ledger> = Arc::new(BooksDoor {
            net: door(),
            process: place,
        });
        let amounts = Arc::new(Amounts::new(Arc::clone(&ledger)));
        let publisher = Arc::new(Publisher::new(
            Arc::clone(&hot),
            Arc::clone(&ledger),
            Arc::clone(&amounts),
        ));
        let holder = format!("process {place}, life {life}");
        let process = Arc::new(Self {
            alive: AtomicBool::new(true),
            settlement: Settlement::new(
                Arc::clone(&hot),
                Arc::clone(&ledger),
                Arc::clone(&publisher),
                amounts,
                holder,
            ),
            hot,
            ledger,
            publisher,
            striped,
        });
        let one = || (Arc::clone(&process), net.clone());
        scheduler.spawn(Some(place), drain(one()));
        scheduler.spawn(Some(place), sweep(one()));
        scheduler.spawn(Some(place), lease(one()));
        scheduler.spawn(Some(place), reconcile(one()));
        if deals {
            scheduler.spawn(Some(place), register(one()));
        }
        process
    }

    /// One round of who registers partitions that were lost.
    pub async fn register(&self) {
        if let Some(striped) = &self.striped {
            let _the_next_round_goes_on = striped.register_lost().await;
        }
    }

    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    pub fn kill(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }
}

type One = (Arc<Process>, Net);

// What fails is repeated: the stores know what is still to do.

async fn drain((process, net): One) {
    loop {
        let drained = process.settlement.drain_once().await;
        let more = drained.is_ok_and(|drained| drained.more);
        rest(&net, if more { 1 } else { DRAIN_MS }).await;
    }
}

async fn sweep((process, net): One) {
    loop {
        if process.settlement.sweep_once().await.is_ok() {
            let _ends_only_with_the_store = process.settlement.publish_once().await;
        }
        rest(&net, SWEEP_MS).await;
    }
}

async fn lease((process, net): One) {
    loop {
        let _stays_as_it_was = process.settlement.lease_once().await;
        rest(&net, LEASE_MS).await;
    }
}

async fn reconcile((process, net): One) {
    loop {
        let _goes_on_where_it_stood = process.settlement.reconcile_once().await;
        let _the_next_walk_finds_them = process.settlement.forget_once().await;
        rest(&net, RECONCILE_MS).await;
    }
}

async fn register((process, net): One) {
    loop {
        process.register().await;
        rest(&net, REGISTER_MS).await;
    }
}

async fn rest(net: &Net, about_ms: u64) {
    let ms = about_ms / 2 + net.draw(about_ms + 1);
    net.rest(i64::try_from(ms).expect("rests are short")).await;
}
