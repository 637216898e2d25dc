//! Ends a call when its client no longer waits for it, with DEADLINE_EXCEEDED.
//!
//! The transport ends it too, but says CANCELLED, which a client may not take for "try again".
//! So this layer, which sits inside, ends it [`AHEAD`] earlier.
//!
//! # Ordering
//! What ends is the waiting. A grab that had reached the hot store may still be won: repeating the
//! call tells.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

use super::status::ApiError;
use crate::clock::timer_now;

/// Long enough for two timers of one tick (1 ms) to fire in order, short beside any deadline.
const AHEAD: Duration = Duration::from_millis(3);
/// The longest call, whatever its client says: an audit of a hundred million envelopes. Streams end
/// by their own rules once they have begun.
const CALL_MAX: Duration = Duration::from_secs(600);
/// A deadline of more digits than gRPC allows is no deadline.
const DIGITS_MAX: usize = 8;

/// The layer.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines;

impl<S> Layer<S> for Deadlines {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner }
    }
}

/// What the layer makes of a server.
#[derive(Clone, Debug)]
pub struct Bounded<S> {
    inner: S,
}

impl<S, I> Service<Request<I>> for Bounded<S>
where
    S: Service<Request<I>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let deadline = deadline_of(request.headers());
        let answer = self.inner.call(request);
        let wait = deadline.map_or(CALL_MAX, |deadline| deadline.min(CALL_MAX));
        let over = timer_now() + wait;
        let ends = over - AHEAD.min(wait);
        Box::pin(async move {
            match tokio::time::timeout_at(ends, answer).await {
                // A process that was stopped meanwhile finds its answer there and its time over, and would look at
                // the answer first.
                Ok(answer) if timer_now() < over => answer,
                _ => Ok(ApiError::Deadline.to_status().into_http()),
            }
        })
    }
}

/// gRPC's `grpc-timeout`: up to eight digits and a unit.
fn deadline_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > DIGITS_MAX {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number.saturating_mul(3_600))),
        "M" => Some(Duration::from_secs(number.saturating_mul(60))),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{ServiceExt, service_fn};

    use super::*;

    fn timeout(text: &str) -> Request<()> {
        let request = Request::builder().header("grpc-timeout", text);
        request.body(()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_outlives_its_deadline_answers_deadline_exceeded() {
        let never = service_fn(|_: Request<()>| std::future::pending::<Result<_, Infallible>>());
        let bounded = Deadlines.layer(never);
        let answer = bounded.oneshot(timeout("50m")).await.unwrap();
        let code = answer.headers().get("grpc-status").unwrap();
        assert_eq!(code, "4");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_found_after_the_deadline_is_not_given() {
        let late = service_fn(|_: Request<()>| {
            let mut passes = Box::pin(tokio::time::advance(Duration::from_millis(100)));
            std::future::poll_fn(move |cx| {
                // The time passes at the first look, as while a process is stopped.
                let _goes_on = passes.as_mut().poll(cx);
                Poll::Ready(Ok::<_, Infallible>(Response::new(Body::empty())))
            })
        });
        let bounded = Deadlines.layer(late);
        let answer = bounded.clone().oneshot(timeout("50m")).await.unwrap();
        assert_eq!(answer.headers().get("grpc-status").unwrap(), "4");
        let answer = bounded.oneshot(timeout("1S")).await.unwrap();
        assert!(answer.headers().get("grpc-status").is_none());
    }

    #[tokio::test]
    async fn a_call_in_time_is_left_alone() {
        let at_once = service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let bounded = Deadlines.layer(at_once);
        let answer = bounded.oneshot(timeout("1S")).await.unwrap();
        assert!(answer.headers().get("grpc-status").is_none());
    }

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let read = |text: &str| deadline_of(timeout(text).headers());
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            read("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3_600))
        );
        for bad in ["", "S", "5", "5X", "-1S", "999999999S", "1.5S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
