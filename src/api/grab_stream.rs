//! GrabStream: many grabs on one stream, answered out of order.
//!
//! # Shape
//! One value, no task and no channel: the transport polls it for answers, and it polls what it
//! waits for.
//!
//! | part | what |
//! |---|---|
//! | arrive | messages that have arrived are read and checked; those whose terms are in memory, and who need not wait too long, form one batch |
//! | batches | one call of the hot store each |
//! | alone | grabs that need more than one look (unknown here, missing there): the unary path |
//! | alarm | answers DEADLINE_EXCEEDED to what is overdue |
//! | answers | wait for the transport to take them |
//!
//! # Bounds
//! [`IN_FLIGHT_MAX`] grabs between being read and their answer being taken by the transport. So a
//! client that does not read its answers stops its own stream and nothing else. [`BATCHES_MAX`]
//! calls in flight, of at most `GRABS_PER_CALL_MAX` grabs; where they take longer than [`ALARM_LATE_MAX`], one more each
//! time that this passes.
//!
//! # Ordering
//! Every message gets exactly one answer. A message that can't be served is answered with a status,
//! and so are bytes that are no message. What breaks the stream into messages wrongly (a length beyond
//! the limit, a cut) ends it, with a status, after everything before it was answered.
//!
//! # If it crashes here
//! Grabs that were sent stand or do not, once each: repeating them tells.
//!
//! # Not here
//! Admission and the books: `grab`.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use red_envelope_proto::v1;
use red_envelope_proto::v1::grab_stream_response::Result as Answer;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::Api;
use super::details::detailed;
use super::grab::{Asked, Before, Prepared, UNSETTLED};
use super::grab_codec::Arrived;
use super::priority::turned_away;
use super::status::{ApiError, Full, code_name};
use super::wire;
use crate::clock::timer_now;
use crate::domain::envelope::Terms;
use crate::domain::grab::{GRABS_PER_CALL_MAX, Grab, GrabReply, Outcome};
use crate::hot::HotError;
use crate::hot::pace::Passing;
use crate::telemetry::metrics;

/// Grabs of one stream in flight: at 212,000 grabs a second and 5 ms a commit, one stream alone
/// keeps the store busy.
pub const IN_FLIGHT_MAX: usize = 1_024;

/// Calls of the hot store in flight, a stream: while one is committed the next ones queue up behind
/// it; more of them only make the batches smaller.
pub const BATCHES_MAX: usize = 4;

/// Milliseconds of a grab that names no timeout.
const TIMEOUT_MS_DEFAULT: u32 = 5_000;
/// Milliseconds of a grab at the most.
pub const TIMEOUT_MS_MAX: u32 = 60_000;

/// A grab of a batch that waits for its reply.
struct Waiting {
    tag: u64,
    deadline: Instant,
    asked: Asked,
    terms: Arc<Terms>,
    /// Overdue, and told so.
    answered: bool,
}

type Replies = Result<Vec<GrabReply>, HotError>;

/// What has arrived and is the next call.
#[derive(Default)]
struct Held {
    grabs: Vec<Grab>,
    waiting: Vec<Waiting>,
    turn: Option<Passing>,
}

/// One call of the hot store.
struct Batch {
    waiting: Vec<Waiting>,
    turn: Option<Passing>,
    call: BoxFuture<'static, Replies>,
}

impl Future for Batch {
    type Output = (Vec<Waiting>, Replies);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let replies = std::task::ready!(self.call.as_mut().poll(cx));
        if let Some(turn) = self.turn.take() {
            turn.answered();
        }
        Poll::Ready((std::mem::take(&mut self.waiting), replies))
    }
}

type Alone = BoxFuture<'static, v1::GrabStreamResponse>;

/// One stream.
pub struct Session {
    api: Arc<Api>,
    /// `None` once nothing more is read.
    inbound: Option<Streaming<Arrived>>,
    /// How the stream ends, if not well.
    ending: Option<Status>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    held: Held,
    batches: FuturesUnordered<Batch>,
    alone: FuturesUnordered<Alone>,
    answers: VecDeque<v1::GrabStreamResponse>,
    in_flight: usize,
    alarm: Pin<Box<Sleep>>,
    /// When the alarm goes off. `None`: it is not set.
    alarm_at: Option<Instant>,
}

impl Session {
    /// Begins to read.
    pub(super) fn open(api: Arc<Api>, inbound: Streaming<Arrived>) -> Self {
        metrics::stream_opened();
        Self {
            shutdown: Box::pin(api.shutdown.clone().cancelled_owned()),
            api,
            inbound: Some(inbound),
            ending: None,
            held: Held::default(),
            batches: FuturesUnordered::new(),
            alone: FuturesUnordered::new(),
            answers: VecDeque::new(),
            in_flight: 0,
            alarm: Box::pin(tokio::time::sleep(Duration::ZERO)),
            alarm_at: None,
        }
    }

    /// Sends on what has arrived, if a call is free. Answers whether anything moved.
    fn poll_arrivals(&mut self, cx: &mut Context<'_>) -> bool {
        if self.batches.len() >= BATCHES_MAX {
            return false;
        }
        let moved = self.read_on(cx);
        self.call() || moved
    }

    /// Sends on what was read. Answers whether there was something.
    fn call(&mut self) -> bool {
        if self.held.grabs.is_empty() {
            return false;
        }
        let Held {
            grabs,
            waiting,
            turn,
        } = std::mem::take(&mut self.held);
        self.api.retries.first(grabs.len());
        let hot = Arc::clone(&self.api.gated);
        self.batches.push(Batch {
            waiting,
            turn,
            call: Box::pin(async move { hot.grab(grabs).await }),
        });
        true
    }

    /// Reads what has arrived. Answers whether anything moved.
    fn read_on(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        let (now, wait) = (timer_now(), self.api.gated.wait());
        while self.in_flight < IN_FLIGHT_MAX && self.held.grabs.len() < GRABS_PER_CALL_MAX {
            let Some(inbound) = &mut self.inbound else {
                break;
            };
            match Pin::new(inbound).poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(message))) => {
                    self.in_flight += 1;
                    self.admit(message, now, wait);
                }
                Poll::Ready(Some(Err(status))) => {
                    self.ending = Some(detailed(status));
                    self.inbound = None;
                }
                Poll::Ready(None) => self.inbound = None,
            }
            moved = true;
        }
        moved
    }

    /// Checks one message. A grab whose terms are in memory joins the next call; every other message is
    /// answered, now or after a look.
    fn admit(&mut self, arrived: Arrived, now: Instant, wait: Duration) {
        let (tag, read) = match arrived {
            Ok(message) => (message.tag, read(message)),
            Err(unreadable) => (unreadable.tag, Err(ApiError::invalid("", unreadable.says))),
        };
        let (asked, timeout) = match read {
            Ok(read) => read,
            Err(error) => return self.fail(tag, &error),
        };
        if let Err(behind) = self.api.admit_grab() {
            return self.fail(tag, &behind);
        }
        let deadline = now + timeout;
        if let Some(terms) = self.api.facts.known(&asked.envelope) {
            match self.api.prepare(&asked, &terms) {
                Ok(Prepared::Ask(grab)) => {
                    let waiting = Waiting {
                        tag,
                        deadline,
                        asked,
                        terms,
                        answered: false,
                    };
                    return self.hold(grab, waiting, wait);
                }
                Ok(Prepared::OwnEnvelope) => {}
                Err(error) => return self.fail(tag, &error),
            }
        }
        self.go_alone(tag, deadline, asked, Before::Unasked);
    }

    /// For the next call, unless it need not be asked or would take too long.
    fn hold(&mut self, grab: Grab, waiting: Waiting, wait: Duration) {
        if let Some(GrabReply::Outcome(outcome)) = self.api.gated.remembered(&grab) {
            let answer = answered(waiting.tag, &outcome, &waiting.terms, waiting.asked);
            return self.answers.push_back(answer);
        }
        match self.api.gated.enter(&mut self.held.turn, wait) {
            Ok(()) => {
                self.held.grabs.push(grab);
                self.held.waiting.push(waiting);
            }
            Err(_) => self.fail(waiting.tag, &turned_away(Full::HotStore)),
        }
    }

    /// The unary path, under the message's own deadline, for who has been told so much by the store.
    fn go_alone(&mut self, tag: u64, deadline: Instant, asked: Asked, before: Before) {
        let api = Arc::clone(&self.api);
        self.alone.push(Box::pin(async move {
            let done = tokio::time::timeout_at(deadline, api.grab_one(&asked, before)).await;
            match done.unwrap_or(Err(ApiError::Deadline)) {
                Ok((outcome, terms)) => answered(tag, &outcome, &terms, asked),
                Err(error) => failed(tag, &error),
            }
        }));
    }

    fn fail(&mut self, tag: u64, error: &ApiError) {
        self.answers.push_back(failed(tag, error));
    }

    /// Takes the replies of calls that have come back.
    fn poll_batches(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Poll::Ready(Some((waiting, replies))) = Pin::new(&mut self.batches).poll_next(cx)
        {
            moved = true;
            match replies {
                Ok(replies) if replies.len() == waiting.len() => {
                    let now = timer_now();
                    for (waiting, reply) in waiting.into_iter().zip(replies) {
                        self.take(waiting, reply, now);
                    }
                }
                Ok(replies) => {
                    let words = format!("{} replies to {} grabs", replies.len(), waiting.len());
                    self.fail_all(waiting, &ApiError::Internal(words));
                }
                // What the partition's new epoch changes is the unary path's to find out.
                Err(HotError::Epoch(_)) => {
                    for waiting in waiting.into_iter().filter(|waiting| !waiting.answered) {
                        self.ask_again(waiting);
                    }
                }
                Err(error) => self.fail_all(waiting, &error.into()),
            }
        }
        moved
    }

    fn take(&mut self, waiting: Waiting, reply: GrabReply, now: Instant) {
        let tag = waiting.tag;
        if waiting.answered {
            return;
        }
        if waiting.deadline <= now {
            self.fail(tag, &ApiError::Deadline);
            return;
        }
        match reply {
            GrabReply::Outcome(outcome) => {
                let answer = answered(tag, &outcome, &waiting.terms, waiting.asked);
                self.answers.push_back(answer);
            }
            GrabReply::Funding => self.fail(tag, &ApiError::Funding),
            GrabReply::Frozen => self.fail(tag, &ApiError::Frozen),
            GrabReply::Unsettled => self.fail(tag, &ApiError::Unavailable(UNSETTLED.into())),
            // Not there, or decided in an epoch that has ended since: the unary path asks again, and finds what stands.
            GrabReply::Missing | GrabReply::Epoch(_) => self.ask_again(waiting),
            // Half of a way that every loser goes, so it is on no budget.
            GrabReply::Dry => {
                self.go_alone(waiting.tag, waiting.deadline, waiting.asked, Before::Dry);
            }
        }
    }

    /// The unary path, for a grab that the store was asked about once.
    fn ask_again(&mut self, waiting: Waiting) {
        match self.api.may_ask_again() {
            Ok(()) => self.go_alone(waiting.tag, waiting.deadline, waiting.asked, Before::Asked),
            Err(error) => self.fail(waiting.tag, &error),
        }
    }

    /// One failure of many grabs is made a status, and logged, once.
    fn fail_all(&mut self, waiting: Vec<Waiting>, error: &ApiError) {
        let unanswered: Vec<_> = waiting.iter().filter(|w| !w.answered).collect();
        metrics::grabs_failed(code_name(error.row().code), unanswered.len() as u64);
        let status = error.to_message();
        self.answers
            .extend(unanswered.iter().map(|waiting| v1::GrabStreamResponse {
                tag: waiting.tag,
                result: Some(Answer::Status(status.clone())),
            }));
    }

    fn poll_alone(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Poll::Ready(Some(answer)) = Pin::new(&mut self.alone).poll_next(cx) {
            self.answers.push_back(answer);
            moved = true;
        }
        moved
    }

    /// Answers what is overdue while its call is still in flight, and sets the alarm for the next.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> bool {
        if self.batches.is_empty() {
            self.alarm_at = None;
            return false;
        }
        if self.alarm_at.is_none() {
            self.set_alarm();
        }
        if self.alarm_at.is_none() || self.alarm.as_mut().poll(cx).is_pending() {
            return false;
        }
        // Calls that wait for each other are no reason to make who arrives now wait before the queue: there
        // nobody counts him, and nobody tells him that he comes too late.
        self.read_on(cx);
        self.call();
        let now = timer_now();
        let mut overdue = Vec::new();
        for batch in self.batches.iter_mut() {
            for waiting in &mut batch.waiting {
                if !waiting.answered && waiting.deadline <= now {
                    waiting.answered = true;
                    overdue.push(waiting.tag);
                }
            }
        }
        for tag in overdue {
            self.fail(tag, &ApiError::Deadline);
        }
        self.alarm_at = None;
        true
    }

    /// For the earliest deadline of all that waits. A later message may be due before it; it is
    /// answered [`ALARM_LATE_MAX`] late at the most.
    fn set_alarm(&mut self) {
        let waiting = self.batches.iter().flat_map(|batch| &batch.waiting);
        let due = waiting.filter(|w| !w.answered).map(|w| w.deadline).min();
        let soon = timer_now() + ALARM_LATE_MAX;
        self.alarm_at = match due {
            Some(due) => Some(due.min(soon)),
            // What arrives while all calls hang has to be read, too.
            None => (self.batches.len() >= BATCHES_MAX).then_some(soon),
        };
        if let Some(at) = self.alarm_at {
            self.alarm.as_mut().reset(at);
        }
    }
}

/// How long an alarm is left as it was set: looking at every deadline for each batch would cost
/// more than the lateness, which is below the shortest sensible timeout.
const ALARM_LATE_MAX: Duration = Duration::from_millis(20);

impl Stream for Session {
    type Item = Result<v1::GrabStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let session = &mut *self;
        loop {
            if let Some(answer) = session.answers.pop_front() {
                session.in_flight -= 1;
                return Poll::Ready(Some(Ok(answer)));
            }
            if session.inbound.is_some() && session.shutdown.as_mut().poll(cx).is_ready() {
                session.inbound = None;
            }
            let mut moved = session.poll_batches(cx);
            moved |= session.poll_arrivals(cx);
            moved |= session.poll_alone(cx);
            moved |= session.poll_alarm(cx);
            if moved {
                continue;
            }
            let idle = session.batches.is_empty() && session.alone.is_empty();
            if session.inbound.is_none() && idle {
                return Poll::Ready(session.ending.take().map(Err));
            }
            return Poll::Pending;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        metrics::stream_ended();
    }
}

/// Checks the shape of one message.
fn read(message: v1::GrabStreamRequest) -> Result<(Asked, Duration), ApiError> {
    let timeout_ms = match message.timeout_ms {
        0 => TIMEOUT_MS_DEFAULT,
        1..=TIMEOUT_MS_MAX => message.timeout_ms,
        more => {
            let says = format!("must be 0 to {TIMEOUT_MS_MAX}, not {more}");
            return Err(ApiError::invalid("timeout_ms", says));
        }
    };
    let Some(grab) = message.grab else {
        return Err(ApiError::invalid("grab", "must be there"));
    };
    let asked = Asked::read(grab)?;
    Ok((asked, Duration::from_millis(u64::from(timeout_ms))))
}

fn answered(tag: u64, outcome: &Outcome, terms: &Terms, asked: Asked) -> v1::GrabStreamResponse {
    metrics::grabs_answered(outcome, 1);
    let response = wire::grab_response(outcome, terms.currency, asked.request.grabber);
    v1::GrabStreamResponse {
        tag,
        result: Some(Answer::Outcome(response)),
    }
}

fn failed(tag: u64, error: &ApiError) -> v1::GrabStreamResponse {
    metrics::grabs_failed(code_name(error.row().code), 1);
    v1::GrabStreamResponse {
        tag,
        result: Some(Answer::Status(error.to_message())),
    }
}
