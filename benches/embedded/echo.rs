//! The yardstick T: how many empty unary calls a second this machine carries.
//!
//! T is what any gRPC service written with these libraries could reach at best if it did nothing,
//! so a grab rate over T says what the work on money costs, whatever machine it ran on.
//!
//! **Frame**, fixed so that figures of different days compare: a server process and a client
//! process, each with the system allocator and a multi-thread runtime of two workers; four
//! connections with sixteen calls in flight each; empty messages; fat LTO. Both are this program
//! again, so that nothing which ran before in the benchmark's own process is part of T.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// Workers of the runtime: one for each of the two cores of the machine on which T was defined.
pub const WORKERS: usize = 2;
/// Connections between client and server.
pub const CONNECTIONS: usize = 4;
/// Calls in flight on each connection.
pub const IN_FLIGHT: usize = 16;
/// The argument that makes this program the null echo's server.
pub const SERVE: &str = "--null-echo";
/// The argument, with a port, that makes this program the null echo's client.
pub const CALL: &str = "--null-call";
/// What runs before the clock does: connections open, caches fill.
pub const WARM_UP: Duration = Duration::from_millis(300);

/// Nothing, as a message.
#[derive(Clone, PartialEq, prost::Message)]
struct Null {}

/// Answers nothing with nothing.
#[derive(Clone)]
struct Echo;

impl Service<Request<Null>> for Echo {
    type Response = Response<Null>;
    type Error = Status;
    type Future = Ready<Result<Response<Null>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Null>) -> Self::Future {
        ready(Ok(Response::new(Null {})))
    }
}

/// What `tonic-build` would have written for a service with the one method `Echo`.
#[derive(Clone)]
struct EchoServer;

impl NamedService for EchoServer {
    const NAME: &'static str = "yardstick.Null";
}

impl<B> Service<http::Request<B>> for EchoServer
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Null, Null>::default());
            Ok(grpc.unary(Echo, request).await)
        })
    }
}

/// T: starts both processes and ends them.
pub fn rate() -> anyhow::Result<f64> {
    serving(|port| {
        let client = Command::new(std::env::current_exe()?)
            .args([CALL, port])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start the null echo's client")?;
        ensure!(client.status.success(), "the null echo's client failed");
        Ok(String::from_utf8(client.stdout)?.trim().parse()?)
    })
}

/// The same server, called by a client that is not tonic's: h2load (nghttp2), in the same frame of connections.
/// What is above T is what tonic's client takes of the cores.
pub fn rate_by_h2load(span: Duration) -> anyhow::Result<f64> {
    // A message of no bytes: not compressed, length 0.
    let mut body = tempfile::NamedTempFile::new()?;
    body.write_all(&[0; 5])?;
    serving(|port| {
        let (clients, in_flight) = (CONNECTIONS.to_string(), IN_FLIGHT.to_string());
        let (warm_up, seconds) = (1, span.as_secs().max(1));
        let called = Command::new("h2load")
            .args([
                "--clients",
                &clients,
                "--max-concurrent-streams",
                &in_flight,
            ])
            .args(["--warm-up-time", &format!("{warm_up}s")])
            .args(["--duration", &format!("{seconds}s")])
            .args(["--header", "content-type: application/grpc"])
            .args(["--header", "te: trailers"])
            .arg("--data")
            .arg(body.path())
            .arg(format!("http://127.0.0.1:{port}/yardstick.Null/Echo"))
            .output()
            .context("cannot start h2load: install nghttp2-client")?;
        ensure!(called.status.success(), "h2load failed");
        let said = String::from_utf8(called.stdout)?;
        let told = |what| {
            let line = said.lines().find_map(|line| line.strip_prefix(what));
            line.with_context(|| format!("h2load said no {what}: {said}"))
        };
        let all_well = told("status codes: ")?.contains(" 0 3xx, 0 4xx, 0 5xx");
        ensure!(all_well, "h2load was not answered well: {said}");
        // "finished in 3.00s, 211834.50 req/s, 12.34MB/s"
        let rate = told("finished in ")?.split(", ").nth(1);
        let rate = rate.and_then(|rate| rate.strip_suffix(" req/s"));
        Ok(rate
            .context("h2load tells its rate in another way")?
            .parse()?)
    })
}

/// Starts the server process, has it called at its port, and ends it.
fn serving(call: impl FnOnce(&str) -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    let mut server = Command::new(std::env::current_exe()?)
        .arg(SERVE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the null echo")?;
    let mut port = String::new();
    let announced = server.stdout.take().context("it has a standard output")?;
    BufReader::new(announced).read_line(&mut port)?;
    let rate = call(port.trim());
    // The server ends when its standard input does.
    drop(server.stdin.take());
    let ended = server.wait()?;
    ensure!(ended.success(), "the null echo ended with {ended}");
    rate
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
}

/// The server process: prints its port, serves until its standard input ends.
pub fn serve() -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        println!("{}", listener.local_addr()?.port());
        let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        let server = Server::builder()
            .add_service(EchoServer)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::select! {
            served = server => Ok(served?),
            ended = end => {
                ended??;
                Ok(())
            }
        }
    })
}

/// The client process: prints the rate.
pub fn call(port: &str, span: Duration) -> anyhow::Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], port.parse()?));
    let rate = runtime()?.block_on(drive(address, "/yardstick.Null/Echo", span))?;
    println!("{rate}");
    Ok(())
}

/// Calls per second of the empty call `path` at `address`, in T's frame of connections.
///
/// Any method whose request may be empty will do: the answer's bytes are skipped.
pub async fn drive(address: SocketAddr, path: &'static str, span: Duration) -> anyhow::Result<f64> {
    let calls = Arc::new(AtomicU64::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .tcp_nodelay(true)
            .connect()
            .await
            .with_context(|| format!("nothing answers at {address}"))?;
        for _ in 0..IN_FLIGHT {
            callers.spawn(call_for_ever(channel.clone(), path, Arc::clone(&calls)));
        }
    }
    tokio::time::sleep(WARM_UP).await;
    let (began, before) = (Instant::now(), calls.load(Ordering::Relaxed));
    tokio::select! {
        () = tokio::time::sleep(span) => {}
        Some(ended) = callers.join_next() => {
            ended.context("a caller panicked")??;
        }
    }
    let made = calls.load(Ordering::Relaxed) - before;
    Ok(made as f64 / began.elapsed().as_secs_f64())
}

async fn call_for_ever(
    channel: Channel,
    path: &'static str,
    calls: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let mut grpc = tonic::client::Grpc::new(channel);
    loop {
        grpc.ready().await.context("the connection is gone")?;
        grpc.unary::<Null, Null, _>(
            Request::new(Null {}),
            http::uri::PathAndQuery::from_static(path),
            ProstCodec::default(),
        )
        .await
        .with_context(|| format!("{path} failed"))?;
        calls.fetch_add(1, Ordering::Relaxed);
    }
}
