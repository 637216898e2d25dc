//! A network, a clock and a scheduler that one seed decides: the same seed, the same history.
//!
//! # Shape
//! A call is a message. When it arrives, which any other message may do before it, it takes effect or
//! it is lost, and so may its reply be. A caller that is dropped takes nothing back that is on its way.
//!
//! # Bounds
//! Time goes on when nothing else can happen, and now and then in the middle of calls.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::stores::Stores;

/// To which store a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    Hot,
    Books,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Done,
    RequestLost,
    ReplyLost,
}

/// How long a message may take while others pass it: what a deadline of a call allows.
const SLOW_MS_MAX: i64 = 3_000;

type Effect = Box<dyn FnOnce(&mut Stores, Fate) + Send>;

struct Message {
    to: To,
    sender: usize,
    /// When it arrives at the earliest.
    due_ms: i64,
    effect: Effect,
}

/// How rough it is. Chances are of ten thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub request_lost: u32,
    pub reply_lost: u32,
    /// A message that is on its way for up to [`SLOW_MS_MAX`].
    pub slow: u32,
    /// A step at which a process ends.
    pub crash: u32,
    /// A step at which a clock jumps, or time passes in the middle of calls.
    pub clock: u32,
    /// A step at which a store is out of reach for a while.
    pub outage: u32,
    /// A step at which an outbox loses what it holds, and its numbers.
    pub outbox_lost: u32,
    /// A step at which a partition of stripes is lost.
    pub partition_lost: u32,
}

/// What all tasks share.
pub struct Shared {
    pub rng: StdRng,
    pub stores: Stores,
    pub weather: Weather,
    messages: Vec<Message>,
    timers: Vec<(i64, Waker)>,
    outage: Option<(To, i64)>,
}

impl Shared {
    /// Whether something happens that has so many chances of ten thousand.
    pub fn happens(&mut self, chances: u32) -> bool {
        chances > 0 && self.rng.random_range(0..10_000) < chances
    }

    /// Time goes on.
    pub fn pass(&mut self, ms: i64) {
        self.stores.now_ms += ms;
        let now_ms = self.stores.now_ms;
        self.timers.retain(|(at, waker)| {
            let waits = *at > now_ms;
            if !waits {
                waker.wake_by_ref();
            }
            waits
        });
    }

    /// A store is out of reach for so long.
    pub fn cut_off(&mut self, to: To, ms: i64) {
        self.outage = Some((to, self.stores.now_ms + ms));
    }

    /// Half of what a process has sent and is not there yet never comes.
    pub fn crashed(&mut self, sender: usize) {
        let rng = &mut self.rng;
        self.messages
            .retain(|message| message.sender != sender || rng.random());
    }

    /// One of those that are due.
    fn deliver(&mut self, number: usize) {
        let now_ms = self.stores.now_ms;
        let due = |place: &usize| self.messages[*place].due_ms <= now_ms;
        let place = (0..self.messages.len()).filter(due).nth(number);
        let message = self.messages.swap_remove(place.expect("so many are due"));
        let out = self.outage;
        let away = out.is_some_and(|(to, until)| to == message.to && self.stores.now_ms < until);
        let fate = if away || self.happens(self.weather.request_lost) {
            Fate::RequestLost
        } else if self.happens(self.weather.reply_lost) {
            Fate::ReplyLost
        } else {
            Fate::Done
        };
        (message.effect)(&mut self.stores, fate);
    }
}

/// The network, for everybody on it.
#[derive(Clone)]
pub struct Net(Arc<Mutex<Shared>>);

struct Slot<A> {
    answer: Option<A>,
    waker: Option<Waker>,
}

impl Net {
    pub fn new(rng: StdRng, stores: Stores, weather: Weather) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            rng,
            stores,
            weather,
            messages: Vec::new(),
            timers: Vec::new(),
            outage: None,
        })))
    }

    pub fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().expect("a panic ends the history")
    }

    /// A number below `below`.
    pub fn draw(&self, below: u64) -> u64 {
        self.shared().rng.random_range(0..below)
    }

    /// Calls a store, as a process.
    pub async fn call<T: Send + 'static, E: Send + 'static>(
        &self,
        (sender, to): (usize, To),
        lost: fn(String) -> E,
        act: impl FnOnce(&mut Stores) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let slot = Arc::new(Mutex::new(Slot {
            answer: None,
            waker: None,
        }));
        let told = Arc::clone(&slot);
        let effect = Box::new(move |stores: &mut Stores, fate| {
            stores.heard = fate == Fate::Done;
            let answer = match fate {
                Fate::Done => act(stores),
                Fate::RequestLost => Err(lost("the request was lost".to_owned())),
                Fate::ReplyLost => {
                    let _unheard = act(stores);
                    Err(lost("the reply was lost".to_owned()))
                }
            };
            let mut slot = told.lock().expect("a panic ends the history");
            slot.answer = Some(answer);
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        });
        {
            let mut shared = self.shared();
            let chances = shared.weather.slow;
            let slow = shared.happens(chances);
            let late_ms = if slow {
                shared.rng.random_range(1..SLOW_MS_MAX)
            } else {
                0
            };
            let due_ms = shared.stores.now_ms + late_ms;
            shared.messages.push(Message {
                to,
                sender,
                due_ms,
                effect,
            });
        }
        poll_fn(|context| {
            let mut slot = slot.lock().expect("a panic ends the history");
            match slot.answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    slot.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Rests.
    pub async fn rest(&self, ms: i64) {
        let at = self.shared().stores.now_ms + ms;
        poll_fn(|context| {
            let mut shared = self.shared();
            if shared.stores.now_ms >= at {
                return Poll::Ready(());
            }
            shared.timers.push((at, context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

#[derive(Default)]
struct Ready(AtomicBool);

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task {
    /// Of which process; `None`: somebody outside.
    process: Option<usize>,
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    ready: Arc<Ready>,
}

/// What is under way.
pub struct Scheduler {
    net: Net,
    tasks: Vec<Task>,
}

impl Scheduler {
    pub fn new(net: Net) -> Self {
        let tasks = Vec::new();
        Self { net, tasks }
    }

    pub fn spawn(
        &mut self,
        process: Option<usize>,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tasks.push(Task {
            process,
            future: Box::pin(future),
            ready: Arc::new(Ready(AtomicBool::new(true))),
        });
    }

    /// A process ends without warning, wherever its tasks stand; who waits for it learns that.
    pub fn crash(&mut self, process: usize) {
        self.net.shared().crashed(process);
        self.tasks.retain(|task| task.process != Some(process));
        for task in &self.tasks {
            task.ready.0.store(true, Ordering::Relaxed);
        }
    }

    /// Whether somebody outside is still at it.
    pub fn people_left(&self) -> bool {
        self.tasks.iter().any(|task| task.process.is_none())
    }

    /// One thing happens: a task goes on, a message arrives, or time does.
    pub fn step(&mut self) {
        let is_ready = |task: &Task| task.ready.0.load(Ordering::Relaxed);
        let ready = self.tasks.iter().filter(|task| is_ready(task)).count();
        let mut shared = self.net.shared();
        let now_ms = shared.stores.now_ms;
        let due = shared
            .messages
            .iter()
            .filter(|message| message.due_ms <= now_ms);
        let choices = ready + due.count();
        if choices == 0 {
            let timers = shared.timers.iter().map(|(at, _)| *at);
            let next = timers
                .chain(shared.messages.iter().map(|message| message.due_ms))
                .min();
            let next = next.expect("the loops of settlement always rest");
            return shared.pass(next - now_ms);
        }
        let choice = shared.rng.random_range(0..choices);
        if choice >= ready {
            return shared.deliver(choice - ready);
        }
        drop(shared);
        let mut places = (0..self.tasks.len()).filter(|place| is_ready(&self.tasks[*place]));
        let place = places.nth(choice).expect("so many are ready");
        let task = &mut self.tasks[place];
        task.ready.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&task.ready));
        let mut context = Context::from_waker(&waker);
        if task.future.as_mut().poll(&mut context).is_ready() {
            self.tasks.swap_remove(place);
        }
    }
}
