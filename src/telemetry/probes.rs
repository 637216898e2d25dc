//! `/livez`, `/readyz` and `/metrics`, on a listener of their own: probes speak HTTP/1.1, the gRPC
//! listeners HTTP/2 only.
//!
//! # Shape
//! | path | answers |
//! |---|---|
//! | `/livez` | 200 while the process can answer at all |
//! | `/readyz` | 200 `{"ready":true,"reasons":[]}`, or 503 with the reasons as sentences |
//! | `/metrics` | Prometheus' text format |
//!
//! # Bounds
//! [`CONNECTIONS_MAX`] connections, each [`REQUEST_TIME_MAX`] a request, heads of at most
//! [`HEAD_BYTES_MAX`]; bodies are not read.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::metrics;

/// Probes, a scraper or two, and people who look: 64 leave room for all of them.
pub const CONNECTIONS_MAX: usize = 64;
/// The head of a request, and what an idle connection is kept for.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// hyper's smallest buffer; a scraper's head takes about 500 bytes.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// Between two accepts that failed because the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the process does not want traffic. Shared between who knows and who is asked.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<Vec<String>>>);

#[derive(Serialize)]
struct ReadyReply {
    ready: bool,
    reasons: Vec<String>,
}

impl Readiness {
    /// Not ready yet, for this reason.
    pub fn not_yet(reason: &str) -> Self {
        Self(Arc::new(Mutex::new(vec![reason.to_owned()])))
    }

    /// Sets the reasons; none means ready. Answers whether that changed anything.
    pub fn set(&self, reasons: Vec<String>) -> bool {
        metrics::ready(reasons.is_empty());
        let mut now = self.0.lock();
        let changed = *now != reasons;
        *now = reasons;
        changed
    }

    /// The reasons now.
    pub fn reasons(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

fn routes(readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .with_state(readiness)
}

async fn readyz(State(readiness): State<Readiness>) -> impl IntoResponse {
    let reasons = readiness.reasons();
    let ready = reasons.is_empty();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(ReadyReply { ready, reasons }))
}

async fn metrics_text() -> impl IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::render())
}

/// Answers probes until `shutdown`; connections in flight may finish their request.
pub async fn serve(listener: TcpListener, readiness: Readiness, shutdown: CancellationToken) {
    let routes = routes(readiness);
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&free).try_acquire_owned() else {
            metrics::connection_turned_away("http", "total");
            continue;
        };
        metrics::connection_opened("http");
        let routes = TowerToHyperService::new(routes.clone());
        let shutdown = shutdown.clone();
        connections.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIME_MAX)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(socket), routes);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                // A peer that went away is not our fault, and nobody is there to be told.
                _ended = connection.as_mut() => {}
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ended = tokio::time::timeout(REQUEST_TIME_MAX, connection).await;
                }
            }
            metrics::connection_ended("http");
            drop(place);
        });
    }
    connections.close();
    connections.wait().await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn started(readiness: Readiness) -> (std::net::SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        tokio::spawn(serve(listener, readiness, shutdown.clone()));
        (address, shutdown)
    }

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: probes\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readyz_says_503_with_the_reasons_and_200_when_there_are_none() {
        let readiness = Readiness::not_yet("the stores are being opened");
        let (address, _shutdown) = started(readiness.clone()).await;
        let answer = ask(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        let body = r#"{"ready":false,"reasons":["the stores are being opened"]}"#;
        assert!(answer.ends_with(body), "{answer}");

        assert!(readiness.set(Vec::new()));
        assert!(!readiness.set(Vec::new()));
        let answer = ask(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(ask(address, "/elsewhere").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn metrics_are_served_as_text() {
        metrics::install();
        let (address, _shutdown) = started(Readiness::not_yet("test")).await;
        let answer = ask(address, "/metrics").await;
        assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains("red_envelope_ready"), "{answer}");
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_rejected() {
        let (address, _shutdown) = started(Readiness::not_yet("test")).await;
        let answer = ask(address, &format!("/{}", "x".repeat(2 * HEAD_BYTES_MAX))).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_are_closed_at_once() {
        let (address, shutdown) = started(Readiness::not_yet("test")).await;
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket
                .write_all(b"GET /livez HTTP/1.1\r\nhost: p\r\n\r\n")
                .await
                .unwrap();
            let mut first = [0; 12];
            socket.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"HTTP/1.1 200");
            held.push(socket);
        }
        let mut excess = TcpStream::connect(address).await.unwrap();
        let mut nothing = Vec::new();
        let read = excess.read_to_end(&mut nothing).await;
        assert!(read.is_err() || nothing.is_empty());
        shutdown.cancel();
    }
}
