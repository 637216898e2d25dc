//! A wire that can be cut: a TCP proxy between a client and a server, on this machine.
//!
//! # Shape
//! | order | new connections | bytes to the server | bytes to the client |
//! |---|---|---|---|
//! | none | taken | forwarded | forwarded |
//! | `stall` | taken | wait | wait |
//! | `refuse` | reset | forwarded | forwarded |
//! | `swallow_replies` | taken | forwarded | dropped; then the client is cut off |
//! | `swallow_replies_to` | taken | forwarded | forwarded; dropped from a request on that holds these bytes |
//! | `slow_replies` | taken | forwarded | forwarded so much later |
//! | `cut`, once | taken | both sides are reset | both sides are reset |
//!
//! # Bounds
//! A direction of a connection holds [`CHUNK_BYTES`], and one that is slow [`SLOW_CHUNKS_MAX`] times as much; what
//! it can't pass on waits with its sender.
//!
//! # Not here
//! Loss and reordering of packets: TCP would hide them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// What a direction of a connection holds.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks of replies that are late at the same time.
const SLOW_CHUNKS_MAX: usize = 256;
/// A server that was silent for so long has answered everything that reached it.
pub const SILENCE: Duration = Duration::from_millis(50);
/// Chunks of replies that are dropped before a client is cut off, if the server never is silent.
const CHUNKS_DROPPED_MAX: usize = 1_000;

/// What happens to bytes now.
#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    stall: bool,
    refuse: bool,
    swallow: bool,
    /// How much later replies are forwarded.
    late_by: Duration,
    /// Whoever sends these bytes hears no answer.
    unanswered: Option<&'static [u8]>,
    /// Connections that were made under a smaller number are reset.
    cuts: u64,
}

/// How a connection ends.
enum End {
    /// As one of the two sides ended it.
    Closed,
    /// Reset on both sides.
    Cut,
    /// A reply was dropped.
    Swallowed,
}

/// Clients whose reply was dropped.
#[derive(Default)]
struct Swallowed {
    all: AtomicU64,
    /// Of them, those that had sent the bytes which nobody answers.
    unanswered: AtomicU64,
}

/// The wire, until it is dropped.
pub struct Proxy {
    port: u16,
    orders: watch::Sender<Orders>,
    swallowed: Arc<Swallowed>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// To a port of this machine.
    pub async fn to(server_port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let orders = watch::Sender::new(Orders::default());
        let swallowed = Arc::<Swallowed>::default();
        let accepting = accept(
            listener,
            server_port,
            orders.subscribe(),
            Arc::clone(&swallowed),
        );
        Self {
            port,
            orders,
            swallowed,
            accepting: tokio::spawn(accepting),
        }
    }

    /// Where clients connect, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Resets every connection, on both sides. New ones are taken.
    pub fn cut(&self) {
        self.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Lets requests through and drops their replies; the client that misses one is cut off.
    pub fn swallow_replies(&self, on: bool) {
        self.orders.send_modify(|orders| orders.swallow = on);
    }

    /// Lets a request that holds these bytes through and drops the reply to it; the client that misses
    /// one is cut off. `None`: no such request any more.
    pub fn swallow_replies_to(&self, bytes: Option<&'static [u8]>) {
        self.orders.send_modify(|orders| orders.unanswered = bytes);
    }

    /// Forwards replies so much later. How many are on their way is up to the client: it is a store far away, or
    /// one that takes its time for each call.
    pub fn slow_replies(&self, by: Duration) {
        self.orders.send_modify(|orders| orders.late_by = by);
    }

    /// Resets new connections.
    pub fn refuse(&self, on: bool) {
        self.orders.send_modify(|orders| orders.refuse = on);
    }

    /// Holds every byte back.
    pub fn stall(&self, on: bool) {
        self.orders.send_modify(|orders| orders.stall = on);
    }

    /// Clients whose reply was dropped.
    pub fn swallowed(&self) -> u64 {
        self.swallowed.all.load(Ordering::Acquire)
    }

    /// Those of them that had sent what [`Proxy::swallow_replies_to`] names.
    pub fn unanswered(&self) -> u64 {
        self.swallowed.unanswered.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // With it go the connections, which live in its set.
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    server_port: u16,
    orders: watch::Receiver<Orders>,
    swallowed: Arc<Swallowed>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if orders.borrow().refuse {
            reset(&client);
            continue;
        }
        let (orders, swallowed) = (orders.clone(), Arc::clone(&swallowed));
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).await else {
                reset(&client);
                return;
            };
            join(client, server, orders, &swallowed).await;
        });
    }
}

/// The next drop of this socket is a reset, not an orderly end.
fn reset(socket: &TcpStream) {
    // A socket whose other side is gone already can't be told any more.
    let _gone = socket.set_zero_linger();
}

async fn join(
    client: TcpStream,
    server: TcpStream,
    orders: watch::Receiver<Orders>,
    swallowed: &Swallowed,
) {
    let _nodelay = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut cuts = orders.clone();
    let made_under = orders.borrow().cuts;
    let asked = AtomicBool::new(false);
    let (late, mut due) = mpsc::channel(SLOW_CHUNKS_MAX);
    let mut delivering = Box::pin(deliver(&mut due, &mut to_client));
    let end = tokio::select! {
        () = requests(&mut from_client, &mut to_server, orders.clone(), &asked) => End::Closed,
        end = replies(&mut from_server, late, orders, (swallowed, &asked)) => end,
        () = &mut delivering => End::Closed,
        _ = cuts.wait_for(|orders| orders.cuts > made_under) => End::Cut,
    };
    // What the server said before is told.
    match end {
        End::Cut => drop(delivering),
        End::Closed | End::Swallowed => delivering.await,
    }
    if !matches!(end, End::Closed) {
        let client = from_client.reunite(to_client);
        reset(&client.expect("both halves are of one socket"));
    }
    if let End::Cut = end {
        let server = from_server.reunite(to_server);
        reset(&server.expect("both halves are of one socket"));
    }
}

/// Waits while bytes are held back.
async fn flow(orders: &mut watch::Receiver<Orders>) {
    // The sender lives as long as the proxy, which ends this connection with itself.
    let _gone = orders.wait_for(|orders| !orders.stall).await;
}

async fn requests(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut orders: watch::Receiver<Orders>,
    asked: &AtomicBool,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let Ok(read @ 1..) = from.read(&mut chunk).await else {
            return;
        };
        flow(&mut orders).await;
        let unanswered = orders.borrow().unanswered;
        let holds = |bytes: &[u8]| chunk[..read].windows(bytes.len()).any(|some| some == bytes);
        if unanswered.is_some_and(holds) {
            asked.store(true, Ordering::Release);
        }
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}

async fn replies(
    from: &mut OwnedReadHalf,
    to: mpsc::Sender<Reply>,
    mut orders: watch::Receiver<Orders>,
    (swallowed, asked): (&Swallowed, &AtomicBool),
) -> End {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let Ok(read @ 1..) = from.read(&mut chunk).await else {
            return End::Closed;
        };
        flow(&mut orders).await;
        let unanswered = asked.load(Ordering::Acquire);
        if unanswered || orders.borrow().swallow {
            swallowed.all.fetch_add(1, Ordering::AcqRel);
            let more = u64::from(unanswered);
            swallowed.unanswered.fetch_add(more, Ordering::AcqRel);
            drop_the_rest(from, &mut chunk).await;
            return End::Swallowed;
        }
        let due = Instant::now() + orders.borrow().late_by;
        if to.send((due, chunk[..read].to_vec())).await.is_err() {
            return End::Closed;
        }
    }
}

/// Bytes to the client, and when they are due.
type Reply = (Instant, Vec<u8>);

/// Passes on what is due, and all of it before the client hears that the server has ended.
async fn deliver(due: &mut mpsc::Receiver<Reply>, to: &mut OwnedWriteHalf) {
    while let Some((at, bytes)) = due.recv().await {
        // Clocks of tokio are as coarse as a millisecond.
        if at > Instant::now() {
            tokio::time::sleep_until(at).await;
        }
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Requests that are on their way reach the server, and their replies nobody.
async fn drop_the_rest(from: &mut OwnedReadHalf, chunk: &mut [u8]) {
    for _ in 0..CHUNKS_DROPPED_MAX {
        let silent_or_gone = tokio::time::timeout(SILENCE, from.read(chunk)).await;
        if !matches!(silent_or_gone, Ok(Ok(1..))) {
            return;
        }
    }
}
