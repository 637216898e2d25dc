//! Measures every RPC: OpenTelemetry's `rpc.server.call.duration`, as a layer around all of them.
//!
//! # Shape
//! | step | where |
//! |---|---|
//! | the path is looked up among the contract's methods; another one is `_OTHER` | `call` |
//! | the status is read from the response's headers, or from its trailers when they pass | `MeasuredBody` |
//! | an answer that is dropped before its trailers counts as CANCELLED | `Drop` |
//!
//! # Bounds
//! Methods × 17 status codes: the handles are made when first needed and kept.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use metrics::Histogram;
use tower::{Layer, Service};

use super::Stopwatch;

/// The names of gRPC's status codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const CANCELLED: usize = 1;
const UNKNOWN: usize = 2;

struct Method {
    name: String,
    seconds: [OnceLock<Histogram>; CODES.len()],
}

impl Method {
    fn new(name: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            seconds: [const { OnceLock::new() }; CODES.len()],
        })
    }

    fn answered(&self, code: usize, watch: Stopwatch) {
        self.seconds[code]
            .get_or_init(|| super::metrics::rpc_seconds(&self.name, CODES[code]))
            .record(watch.seconds());
    }
}

/// The layer.
#[derive(Clone)]
pub struct MeasureRpcs {
    methods: Arc<HashMap<String, Arc<Method>>>,
    other: Arc<Method>,
}

impl MeasureRpcs {
    /// Measures these methods by name, such as `redenvelope.v1.EnvelopeService/Grab`, and all
    /// others together.
    pub fn of(methods: impl IntoIterator<Item = String>) -> Self {
        let by_path = |name: String| (format!("/{name}"), Method::new(name));
        Self {
            methods: Arc::new(methods.into_iter().map(by_path).collect()),
            other: Method::new("_OTHER".to_owned()),
        }
    }
}

impl<S> Layer<S> for MeasureRpcs {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured {
            inner,
            layer: self.clone(),
        }
    }
}

/// What the layer makes of a server.
#[derive(Clone)]
pub struct Measured<S> {
    inner: S,
    layer: MeasureRpcs,
}

impl<S, I, O> Service<Request<I>> for Measured<S>
where
    S: Service<Request<I>, Response = Response<O>>,
    S::Future: Send + 'static,
{
    type Response = Response<MeasuredBody<O>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let known = self.layer.methods.get(request.uri().path());
        let mut call = Call {
            method: Arc::clone(known.unwrap_or(&self.layer.other)),
            watch: Stopwatch::start(),
            told: false,
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // A failure before the first message has its status among the headers.
            if let Some(code) = status_in(response.headers()) {
                call.tell(code);
            }
            Ok(response.map(|inner| MeasuredBody {
                inner: Box::pin(inner),
                call,
            }))
        })
    }
}

/// One RPC that is being measured. Told once; if never, it was cancelled.
struct Call {
    method: Arc<Method>,
    watch: Stopwatch,
    told: bool,
}

impl Call {
    fn tell(&mut self, code: usize) {
        if !self.told {
            self.told = true;
            self.method.answered(code, self.watch);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.tell(CANCELLED);
    }
}

fn status_in(headers: &HeaderMap) -> Option<usize> {
    let text = headers.get("grpc-status")?.to_str().ok()?;
    let number = text.parse().ok().filter(|n| *n < CODES.len());
    Some(number.unwrap_or(UNKNOWN))
}

/// A response's body that tells the status when the trailers pass.
pub struct MeasuredBody<B> {
    inner: Pin<Box<B>>,
    call: Call,
}

impl<B: Body> Body for MeasuredBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = self.inner.as_mut().poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = status_in(trailers).unwrap_or(UNKNOWN);
                    self.call.tell(code);
                }
            }
            Poll::Ready(Some(Err(_)) | None) => self.call.tell(UNKNOWN),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Bytes;
    use http_body_util::{BodyExt, Full};
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::telemetry::metrics;

    const NAME: &str = "redenvelope.v1.TestService/Measured";

    async fn call(path: &str, status: &'static str, in_headers: bool) -> MeasuredBody<TestBody> {
        let layer = MeasureRpcs::of([NAME.to_owned()]);
        let answer = move |_: Request<()>| async move {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            let mut response = Response::new(());
            if in_headers {
                *response.headers_mut() = trailers.clone();
            }
            let message = Full::new(Bytes::from_static(b"answer"));
            let body: TestBody = Box::pin(message.with_trailers(async move { Some(Ok(trailers)) }));
            Ok::<_, Infallible>(response.map(|()| body))
        };
        let request = Request::builder().uri(path).body(()).unwrap();
        let measured = layer.layer(service_fn(answer));
        measured.oneshot(request).await.unwrap().into_body()
    }

    type TestBody = Pin<Box<dyn Body<Data = Bytes, Error = Infallible> + Send>>;

    fn counted(method: &str, code: &str) -> bool {
        let series = format!(
            "rpc_server_call_duration_seconds_count{{rpc_system_name=\"grpc\",rpc_method=\"{method}\",rpc_response_status_code=\"{code}\"}}"
        );
        metrics::render().contains(&series)
    }

    #[tokio::test]
    async fn a_call_is_measured_by_the_status_in_its_trailers_its_headers_or_by_its_end() {
        metrics::install();
        let path = format!("/{NAME}");
        call(&path, "0", false).await.collect().await.unwrap();
        assert!(counted(NAME, "OK"));
        call(&path, "5", true).await.collect().await.unwrap();
        assert!(counted(NAME, "NOT_FOUND"));
        drop(call(&path, "0", false).await);
        assert!(counted(NAME, "CANCELLED"));
        call(&path, "99", false).await.collect().await.unwrap();
        assert!(counted(NAME, "UNKNOWN"));
    }

    #[tokio::test]
    async fn a_path_that_a_caller_made_up_becomes_no_series_of_its_own() {
        metrics::install();
        call("/made/up", "12", true).await.collect().await.unwrap();
        assert!(counted("_OTHER", "UNIMPLEMENTED"));
        assert!(!metrics::render().contains("made/up"));
    }
}
