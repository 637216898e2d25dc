//! Who is served first where not everybody can be: who ends something before who grabs, who grabs before who
//! creates, who creates before who looks.
//!
//! # Shape
//! | class | turned away while a grab waits for | while this process is late by | inside | by their own pace |
//! |---|---|---|---|---|
//! | Operate: operators, probes, facts about the server | | | | |
//! | Close: recall, decline | | | [`CLOSES_MAX`] | |
//! | Grab | `GRAB_WAIT_MAX` (in the store, after what memory can answer) | [`LATE_FOR_GRABS`] | [`GRABS_MAX`] | |
//! | Create: new envelopes, deposits, withdrawals | half of that | [`LATE_FOR_CREATES`] | [`CREATES_MAX`] | [`CREATE_WAIT_MAX`] |
//! | Look: everything else | a quarter of that | [`LATE_FOR_LOOKS`] | [`LOOKS_MAX`] | [`LOOK_WAIT_MAX`] |
//!
//! A layer asks before a request is decoded. Messages of GrabStream are asked about one by one.
//!
//! # Bounds
//! The table. What is turned away costs a header, and is told when to come again.
//!
//! # Ordering
//! Settlement is no call: it works on connections of its own, and what it falls behind by turns creates and grabs
//! away (`backlog`). Nothing was done when a call is turned away: its repeat is the first try.
//!
//! # Not here
//! How a wait is known: `hot::pace`. How late the process is: `telemetry::lag`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::Api;
use super::status::{ApiError, Full, code_name};
use super::untaken::Untaken;
use crate::hot::GRAB_WAIT_MAX;
use crate::hot::pace::{Pace, Passing};
use crate::telemetry::metrics;

/// Recalls and declines in flight.
pub const CLOSES_MAX: usize = 4_096;
/// Unary grabs in flight: what the hot store lets wait, and as many that are looked up.
pub const GRABS_MAX: usize = 2 * 65_536;
/// Creates, deposits and withdrawals in flight: what the books let wait.
pub const CREATES_MAX: usize = 10_000;
/// Looks in flight. Their answers, of up to 4 MiB, are counted until they are taken: `untaken`.
pub const LOOKS_MAX: usize = 4_096;

/// From so many creates in flight on, their pace counts: two transactions of the books.
const CREATES_PACED_FROM: usize = 512;
/// From so many looks in flight on.
const LOOKS_PACED_FROM: usize = 256;

/// How long a Create may wait: its sender looks at a spinner.
pub const CREATE_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a look may wait: who looks can look again.
pub const LOOK_WAIT_MAX: Duration = Duration::from_millis(500);

/// How late this process may be in what it does before looks have to wait. A process that has
/// the cores that it needs is late by less than a millisecond.
pub const LATE_FOR_LOOKS: Duration = Duration::from_millis(200);
/// … before creates have to wait.
pub const LATE_FOR_CREATES: Duration = Duration::from_millis(400);
/// … before grabs have to wait.
pub const LATE_FOR_GRABS: Duration = Duration::from_millis(600);

/// How much of the patience of grabs is left to creates, and to looks.
const CREATES_PART: u32 = 2;
const LOOKS_PART: u32 = 4;

/// What a call is, to who has to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Operate,
    Close,
    Grab,
    Create,
    Look,
}

/// The contract's methods, by class. Whoever adds one decides here: a test compares.
const CLASSES: [(Class, &[&str]); 5] = [
    (
        Class::Operate,
        &[
            "AdminService/Audit",
            "AdminService/DismissDeadLetter",
            "AdminService/FreezeEnvelope",
            "AdminService/ListDeadLetters",
            "AdminService/ReplayDeadLetter",
            "AdminService/TraceEnvelope",
            "AdminService/UnfreezeEnvelope",
            "InfoService/GetServiceInfo",
        ],
    ),
    (
        Class::Close,
        &[
            "EnvelopeService/DeclineEnvelope",
            "EnvelopeService/RecallEnvelope",
        ],
    ),
    (
        Class::Grab,
        &["EnvelopeService/Grab", "EnvelopeService/GrabStream"],
    ),
    (
        Class::Create,
        &[
            "AccountService/Deposit",
            "AccountService/Withdraw",
            "EnvelopeService/CreateEnvelope",
        ],
    ),
    (
        Class::Look,
        &[
            "AccountService/GetBalance",
            "AccountService/ListEntries",
            "EnvelopeService/BatchGetEnvelopes",
            "EnvelopeService/GetEnvelope",
            "EnvelopeService/GetFairnessProof",
            "EnvelopeService/GetYearTotals",
            "EnvelopeService/ListGrabs",
            "EnvelopeService/ListReceivedShares",
            "EnvelopeService/ListSentEnvelopes",
            "EnvelopeService/PreviewSplit",
            "EnvelopeService/WatchEnvelope",
        ],
    ),
];

/// One call of it is one grab.
const GRAB: &str = "/redenvelope.v1.EnvelopeService/Grab";

const PACKAGE: &str = "/redenvelope.v1.";

/// The class of a path. What the contract does not have (health, reflection, mistakes) is answered at once.
fn class_of(path: &str) -> Class {
    let Some(method) = path.strip_prefix(PACKAGE) else {
        return Class::Operate;
    };
    let named = CLASSES
        .iter()
        .find(|(_, methods)| methods.contains(&method));
    named.map_or(Class::Operate, |(class, _)| *class)
}

/// Who is inside, by class, and how late this process is.
pub(super) struct Priorities {
    closes: Arc<Pace>,
    grabs: Arc<Pace>,
    creates: Arc<Pace>,
    looks: Arc<Pace>,
    late_ms: AtomicU64,
}

impl Default for Priorities {
    fn default() -> Self {
        let bounded = |max| Arc::new(Pace::new(max, max, Duration::MAX));
        let paced = |max, from, patience| Arc::new(Pace::new(max, from, patience));
        Self {
            closes: bounded(CLOSES_MAX),
            grabs: bounded(GRABS_MAX),
            creates: paced(CREATES_MAX, CREATES_PACED_FROM, CREATE_WAIT_MAX),
            looks: paced(LOOKS_MAX, LOOKS_PACED_FROM, LOOK_WAIT_MAX),
            late_ms: AtomicU64::new(0),
        }
    }
}

impl Priorities {
    /// How late this process is in what it does.
    pub(super) fn late(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.late_ms.store(ms, Ordering::Relaxed);
    }

    fn is_later_than(&self, by: Duration) -> bool {
        Duration::from_millis(self.late_ms.load(Ordering::Relaxed)) > by
    }

    /// Whether this process has time for one more grab.
    ///
    /// # Errors
    /// It has not.
    pub(super) fn admit_grab(&self) -> Result<(), ApiError> {
        match self.is_later_than(LATE_FOR_GRABS) {
            false => Ok(()),
            true => Err(turned_away(Full::Grabs)),
        }
    }

    /// Lets a call in, while a grab that comes now would wait so long. `None`: nobody counts it.
    fn enter(&self, class: Class, grab_waits: Duration) -> Result<Option<Inside>, Full> {
        let (pace, full, late_max, grabs_wait_max) = match class {
            Class::Operate => return Ok(None),
            Class::Close => (&self.closes, Full::Closes, Duration::MAX, Duration::MAX),
            Class::Grab => (&self.grabs, Full::Grabs, LATE_FOR_GRABS, Duration::MAX),
            Class::Create => {
                let part = GRAB_WAIT_MAX / CREATES_PART;
                (&self.creates, Full::Creates, LATE_FOR_CREATES, part)
            }
            Class::Look => {
                let part = GRAB_WAIT_MAX / LOOKS_PART;
                (&self.looks, Full::Looks, LATE_FOR_LOOKS, part)
            }
        };
        if self.is_later_than(late_max) || grab_waits > grabs_wait_max {
            return Err(full);
        }
        pace.enter().map(Some).map_err(|_| full)
    }
}

type Inside = Passing;

/// The answer, unless too many wait to be taken.
fn kept(untaken: &Arc<Untaken>, answer: Response<Body>) -> Response<Body> {
    let kept = untaken.keep(answer);
    kept.unwrap_or_else(|| turned_away(Full::Untaken).to_status().into_http())
}

/// Counts it, too.
pub(super) fn turned_away(full: Full) -> ApiError {
    metrics::shed(full.name(), 1);
    ApiError::Shed(full)
}

/// The layer.
#[derive(Clone)]
pub struct Prioritize(Arc<Api>);

impl Prioritize {
    pub(super) fn of(api: &Arc<Api>) -> Self {
        Self(Arc::clone(api))
    }
}

impl<S> Layer<S> for Prioritize {
    type Service = Prioritized<S>;

    fn layer(&self, inner: S) -> Prioritized<S> {
        Prioritized {
            inner,
            api: Arc::clone(&self.0),
        }
    }
}

/// What the layer makes of a server.
#[derive(Clone)]
pub struct Prioritized<S> {
    inner: S,
    api: Arc<Api>,
}

impl<S, I> Service<Request<I>> for Prioritized<S>
where
    S: Service<Request<I>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let class = class_of(request.uri().path());
        let is_grab = request.uri().path() == GRAB;
        let priorities = &self.api.priorities;
        match priorities.enter(class, self.api.gated.wait()) {
            Ok(inside) => {
                let untaken = match class {
                    Class::Look => request.extensions().get::<Arc<Untaken>>().cloned(),
                    _ => None,
                };
                let answer = self.inner.call(request);
                Box::pin(async move {
                    let answer = answer.await;
                    if let Some(inside) = inside {
                        inside.answered();
                    }
                    match untaken {
                        Some(untaken) => answer.map(|answer| kept(&untaken, answer)),
                        None => answer,
                    }
                })
            }
            Err(full) => {
                let error = turned_away(full);
                if is_grab {
                    metrics::grabs_failed(code_name(error.row().code), 1);
                }
                let answer = error.to_status().into_http();
                Box::pin(std::future::ready(Ok(answer)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::listen::rpc_names;

    const NO_WAIT: Duration = Duration::ZERO;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn every_rpc_of_the_contract_has_a_class_and_no_other_has() {
        let mut named: Vec<_> = CLASSES
            .iter()
            .flat_map(|(_, methods)| methods.iter())
            .map(|method| format!("redenvelope.v1.{method}"))
            .collect();
        let mut contract = rpc_names();
        named.sort();
        contract.sort();
        assert_eq!(named, contract);
        assert_eq!(class_of("/grpc.health.v1.Health/Check"), Class::Operate);
    }

    #[test]
    fn the_longer_grabs_wait_the_fewer_are_let_in_beside_them() {
        let priorities = Priorities::default();
        let served = |wait| {
            let classes = [Class::Look, Class::Create, Class::Grab, Class::Close];
            classes.map(|class| priorities.enter(class, wait).is_ok())
        };
        assert_eq!(served(NO_WAIT), [true; 4]);
        assert_eq!(served(ms(126)), [false, true, true, true]);
        assert_eq!(served(ms(251)), [false, false, true, true]);
        // Who grabs is turned away by the store, which answers from memory what it can.
        assert_eq!(served(ms(60_000)), [false, false, true, true]);
    }

    #[test]
    fn the_later_the_process_is_the_fewer_are_let_in() {
        let priorities = Priorities::default();
        let served = |late| {
            priorities.late(late);
            let classes = [Class::Look, Class::Create, Class::Grab, Class::Close];
            let served = classes.map(|class| priorities.enter(class, NO_WAIT).is_ok());
            assert_eq!(priorities.admit_grab().is_ok(), served[2]);
            served
        };
        assert_eq!(served(ms(200)), [true; 4]);
        assert_eq!(served(ms(201)), [false, true, true, true]);
        assert_eq!(served(ms(401)), [false, false, true, true]);
        assert_eq!(served(ms(601)), [false, false, false, true]);
        assert!(priorities.enter(Class::Operate, ms(60_000)).is_ok());
        assert_eq!(served(NO_WAIT), [true; 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn looks_that_are_not_answered_keep_others_out_and_no_other_class() {
        let priorities = Priorities::default();
        let enter = |class| priorities.enter(class, NO_WAIT);
        let held: Vec<_> = (0..LOOKS_PACED_FROM).map(|_| enter(Class::Look)).collect();
        tokio::time::advance(LOOK_WAIT_MAX + ms(1)).await;
        assert_eq!(enter(Class::Look).unwrap_err(), Full::Looks);
        assert!(enter(Class::Create).is_ok());
        drop(held);
        assert!(enter(Class::Look).is_ok());
    }

    #[test]
    fn every_class_has_a_bound_in_numbers() {
        let priorities = Priorities::default();
        for (class, max, full) in [
            (Class::Close, CLOSES_MAX, Full::Closes),
            (Class::Grab, GRABS_MAX, Full::Grabs),
            (Class::Create, CREATES_MAX, Full::Creates),
            (Class::Look, LOOKS_MAX, Full::Looks),
        ] {
            let inside: Vec<_> = (0..max).map(|_| priorities.enter(class, NO_WAIT)).collect();
            assert!(inside.iter().all(Result::is_ok), "{class:?}");
            assert_eq!(priorities.enter(class, NO_WAIT).unwrap_err(), full);
        }
    }
}
