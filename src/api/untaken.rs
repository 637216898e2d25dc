//! Answers that their clients have not taken yet: how many bytes of them this process holds, and how long.
//!
//! HTTP/2 lets a client ask for much and give no room for the answers. Whoever only looks then costs memory for as
//! long as the connection lasts: a page of grabs takes 100 KB, a proof of a large envelope 4 MB, and a connection
//! may have 1,024 calls in flight.
//!
//! # Shape
//! | step | where |
//! |---|---|
//! | the answer to a look is written out, and counted until the transport has sent all of it | [`Untaken::keep`] |
//! | one that is too much is turned away instead | the caller of that |
//! | a connection that takes nothing for [`TAKEN_WITHIN`] is ended | [`Untaken::is_deaf`], which `listen` asks |
//!
//! # Bounds
//! [`UNTAKEN_BYTES_MAX`] of a listener, of which one connection has [`UNTAKEN_BYTES_OF_ONE_MAX`] at the most, so that
//! one that is deaf keeps no other from looking. Answers of less than [`COUNTED_BYTES_MIN`] are not counted: the call
//! itself takes as much.
//!
//! # Not here
//! Requests that are not read: the windows of `listen`. Streams: each bounds what it holds.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body::{Body as _, Frame};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::Response;
use tonic::codegen::http::response::Parts;

use crate::clock::timer_now;

/// Of all connections of a listener: 32 of the largest answers, or a thousand pages of grabs.
pub const UNTAKEN_BYTES_MAX: usize = 128 << 20;
/// Of one connection: a quarter of that.
pub const UNTAKEN_BYTES_OF_ONE_MAX: usize = UNTAKEN_BYTES_MAX / 4;
/// A call in flight costs some KB whatever it is answered.
pub const COUNTED_BYTES_MIN: usize = 4 << 10;
/// What a unary call answers with: a message, and trailers.
const READY_MAX: usize = 2;
/// As long as a connection that says nothing is given to prove that it is alive. On loopback the largest answer is
/// taken in a few milliseconds.
pub const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// What one connection has not taken.
#[derive(Debug)]
pub struct Untaken {
    /// Bytes of all connections.
    all: Arc<AtomicUsize>,
    own: Mutex<Own>,
}

#[derive(Debug)]
struct Own {
    bytes: usize,
    /// When an answer was taken last, or the first of these was kept.
    since: Instant,
}

impl Untaken {
    /// Of a new connection, beside `all` others.
    pub fn beside(all: &Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::clone(all),
            own: Mutex::new(Own {
                bytes: 0,
                since: timer_now(),
            }),
        })
    }

    /// Whether its client has taken nothing of what waits for it for too long.
    pub fn is_deaf(&self) -> bool {
        let own = self.own.lock();
        own.bytes > 0 && own.since.elapsed() > TAKEN_WITHIN
    }

    /// Counts an answer until it is taken. `None`: it is too much.
    pub fn keep(self: &Arc<Self>, answer: Response<Body>) -> Option<Response<Body>> {
        let (head, mut body) = answer.into_parts();
        if body.is_end_stream() {
            return Some(Response::from_parts(head, body));
        }
        let mut begun = Begun::default();
        while begun.ready.len() < READY_MAX {
            match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).now_or_never() {
                // A stream that has nothing more to say yet.
                None => break,
                Some(None) => return Some(begun.under(head)),
                Some(Some(Err(status))) => {
                    begun.ready.push_back(Err(status));
                    return Some(begun.under(head));
                }
                Some(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => begun.ready.push_back(Ok(Frame::data(self.hold(bytes)?))),
                    Err(trailers) => {
                        begun.ready.push_back(Ok(trailers));
                        return Some(begun.under(head));
                    }
                },
            }
        }
        begun.rest = Some(body);
        Some(begun.under(head))
    }

    fn hold(self: &Arc<Self>, bytes: Bytes) -> Option<Bytes> {
        let more = bytes.len();
        if more < COUNTED_BYTES_MIN {
            return Some(bytes);
        }
        let mut own = self.own.lock();
        if own.bytes + more > UNTAKEN_BYTES_OF_ONE_MAX {
            return None;
        }
        if self.all.fetch_add(more, Ordering::Relaxed) + more > UNTAKEN_BYTES_MAX {
            self.all.fetch_sub(more, Ordering::Relaxed);
            return None;
        }
        if own.bytes == 0 {
            own.since = timer_now();
        }
        own.bytes += more;
        drop(own);
        // What the answer was written into may be twice as large.
        let bytes = Bytes::copy_from_slice(&bytes);
        let of = Arc::clone(self);
        Some(Bytes::from_owner(Held { bytes, of }))
    }
}

/// Bytes that are counted as long as the transport has some of them to send.
struct Held {
    bytes: Bytes,
    of: Arc<Untaken>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut own = self.of.own.lock();
        own.bytes -= self.bytes.len();
        own.since = timer_now();
        self.of.all.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// A body of which some is there.
#[derive(Default)]
struct Begun {
    ready: VecDeque<Result<Frame<Bytes>, Status>>,
    /// Gone where all of it is there: it would hold on to what the answer was written into.
    rest: Option<Body>,
}

impl Begun {
    fn under(self, head: Parts) -> Response<Body> {
        Response::from_parts(head, Body::new(self))
    }
}

impl http_body::Body for Begun {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(frame) = self.ready.pop_front() {
            return Poll::Ready(Some(frame));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full, StreamBody};
    use tonic::codegen::http::{HeaderMap, HeaderValue};

    use super::*;

    fn answer(bytes: usize) -> Response<Body> {
        Response::new(Body::new(Full::new(Bytes::from(vec![1; bytes]))))
    }

    fn all() -> Arc<AtomicUsize> {
        Arc::default()
    }

    #[tokio::test]
    async fn an_answer_counts_until_its_last_byte_is_taken() {
        let all = all();
        let untaken = Untaken::beside(&all);
        let kept = untaken.keep(answer(COUNTED_BYTES_MIN)).unwrap();
        assert_eq!(all.load(Ordering::Relaxed), COUNTED_BYTES_MIN);
        let mut taken = kept.into_body().collect().await.unwrap().to_bytes();
        let rest = taken.split_off(1);
        drop(taken);
        assert_eq!(all.load(Ordering::Relaxed), COUNTED_BYTES_MIN);
        drop(rest);
        assert_eq!(all.load(Ordering::Relaxed), 0);
        let small = untaken.keep(answer(COUNTED_BYTES_MIN - 1)).unwrap();
        assert_eq!(all.load(Ordering::Relaxed), 0);
        let taken = small.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(taken.len(), COUNTED_BYTES_MIN - 1);
    }

    #[tokio::test]
    async fn one_connection_and_all_of_them_hold_no_more_than_they_may() {
        let all = all();
        let one = Untaken::beside(&all);
        let held = one.keep(answer(UNTAKEN_BYTES_OF_ONE_MAX)).unwrap();
        assert!(one.keep(answer(COUNTED_BYTES_MIN)).is_none());
        let others: Vec<_> = (0..4).map(|_| Untaken::beside(&all)).collect();
        let keep = |of: &Arc<Untaken>| of.keep(answer(UNTAKEN_BYTES_OF_ONE_MAX));
        let kept: Vec<_> = others.iter().map(keep).collect();
        let fit: Vec<_> = kept.iter().map(Option::is_some).collect();
        assert_eq!(fit, [true, true, true, false]);
        drop(held);
        assert!(keep(&others[3]).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_for_too_long_is_deaf_also_when_he_asks_for_more() {
        let untaken = Untaken::beside(&all());
        let moment = Duration::from_millis(1);
        tokio::time::advance(TAKEN_WITHIN + moment).await;
        let held = untaken.keep(answer(UNTAKEN_BYTES_OF_ONE_MAX / 2)).unwrap();
        let more = untaken.keep(answer(UNTAKEN_BYTES_OF_ONE_MAX / 2)).unwrap();
        tokio::time::advance(TAKEN_WITHIN).await;
        assert!(untaken.keep(answer(COUNTED_BYTES_MIN)).is_none());
        assert!(!untaken.is_deaf());
        tokio::time::advance(moment).await;
        assert!(untaken.is_deaf());
        drop(held);
        assert!(!untaken.is_deaf());
        drop(more);
        tokio::time::advance(TAKEN_WITHIN + moment).await;
        assert!(!untaken.is_deaf());
    }

    #[tokio::test]
    async fn message_and_trailers_are_kept_in_their_order() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let bytes = Bytes::from(vec![1; COUNTED_BYTES_MIN]);
        let frames: [Result<_, Status>; 2] = [
            Ok(Frame::data(bytes.clone())),
            Ok(Frame::trailers(trailers.clone())),
        ];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let answer = Response::new(Body::new(body));
        let mut body = Untaken::beside(&all()).keep(answer).unwrap().into_body();
        assert_eq!(
            body.frame().await.unwrap().unwrap().into_data().unwrap(),
            bytes
        );
        assert!(!body.is_end_stream());
        let last = body.frame().await.unwrap().unwrap().into_trailers();
        assert_eq!(last.unwrap(), trailers);
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_that_has_nothing_to_say_yet_is_left_alone() {
        let silent = futures_util::stream::pending::<Result<Frame<Bytes>, Status>>();
        let body = Body::new(StreamBody::new(silent));
        let kept = Untaken::beside(&all()).keep(Response::new(body)).unwrap();
        let mut body = kept.into_body();
        assert!(body.frame().now_or_never().is_none());
    }
}
