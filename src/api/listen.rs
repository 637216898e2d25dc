//! The gRPC listeners: who may connect, how many, for how long.
//!
//! # Shape
//! | step | where |
//! |---|---|
//! | accept, count, set TCP_NODELAY | [`Door`] |
//! | HTTP/2 with keepalive, stream limit, connection age | tonic's server, under the limits of `config::Transport` |
//! | deadline, then details for what the transport refuses, then who is served first, then measurement of every RPC | layers |
//!
//! # Bounds
//! tonic has no limit of connections, so [`Door`] closes what exceeds the total or a peer's share
//! before a byte is read. A head of more than [`HEAD_BYTES_MAX`] ends its stream. A connection that takes
//! nothing of what it asked for is ended ([`Untaken::is_deaf`]).
//!
//! tonic asks a connection of age to reconnect (GOAWAY), and [`Connection`] ends it if it stays. Told of the grace,
//! tonic would ask nobody, and cut each in the middle of its calls when that is over.
//!
//! # Not here
//! What the RPCs do; limits of messages (each server's own).

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
pub use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::deadline::Deadlines;
use super::details::Details;
use super::priority::Prioritize;
use super::untaken::Untaken;
use crate::config::Transport;
use crate::telemetry::metrics;
use crate::telemetry::rpc::MeasureRpcs;

/// Unread bytes that one stream may send ahead: a GrabStream's 1,024 grabs of 64 bytes. What HTTP/2
/// gives by default.
const STREAM_WINDOW_BYTES: u32 = 65_535;

/// Unread bytes that one connection may send ahead: 64 streams that are not read on, because their
/// clients don't take their answers, leave room for the others. With a window no larger than a
/// stream's, one deaf GrabStream would stop every call of its connection.
const CONNECTION_WINDOW_BYTES: u32 = 65 * STREAM_WINDOW_BYTES;

/// The head of one request. gRPC's own fields take about 300 bytes; tokens of later releases 4 KB.
pub const HEAD_BYTES_MAX: u32 = 16 << 10;
/// Between two accepts that failed because the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `routes` until `shutdown`, then until the calls in flight are over; the caller bounds
/// that wait.
///
/// # Errors
/// The transport could not be set up; a connection that fails is nobody's error but its own.
pub async fn serve(
    listener: TcpListener,
    name: &'static str,
    routes: Routes,
    prioritize: Prioritize,
    transport: &Transport,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let ms = Duration::from_millis;
    let door = Door {
        listener,
        seats: Arc::new(Seats {
            name,
            total_max: transport.connections_max,
            peer_max: transport.connections_per_peer_max,
            taken: Mutex::default(),
        }),
        untaken: Arc::default(),
        lives_for: ms(transport.connection_age_max_ms)
            .saturating_add(ms(transport.connection_age_grace_ms)),
    };
    Server::builder()
        .max_concurrent_streams(transport.streams_per_connection_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(ms(transport.keepalive_interval_ms)))
        .http2_keepalive_timeout(Some(ms(transport.keepalive_timeout_ms)))
        .max_connection_age(ms(transport.connection_age_max_ms))
        .http2_max_header_list_size(HEAD_BYTES_MAX)
        .layer(MeasureRpcs::of(rpc_names()))
        .layer(prioritize)
        .layer(Details)
        .layer(Deadlines)
        .add_routes(routes)
        .serve_with_incoming_shutdown(door.connections(), shutdown.cancelled_owned())
        .await
}

/// Every RPC of the contract, such as `redenvelope.v1.EnvelopeService/Grab`.
pub fn rpc_names() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(red_envelope_proto::FILE_DESCRIPTOR_SET)
        .expect("the build wrote the descriptors");
    let mut names = Vec::new();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                let package = file.package();
                names.push(format!("{package}.{}/{}", service.name(), method.name()));
            }
        }
    }
    names
}

/// Accepts connections as long as there is room.
struct Door {
    listener: TcpListener,
    seats: Arc<Seats>,
    /// Bytes of answers that no connection has taken yet.
    untaken: Arc<AtomicUsize>,
    /// What a connection has from its first to its last byte.
    lives_for: Duration,
}

impl Door {
    fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        stream::unfold(self, |door| async move {
            let connection = door.next().await;
            Some((Ok(connection), door))
        })
    }

    async fn next(&self) -> Connection {
        loop {
            let Ok((socket, peer)) = self.listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Some(seat) = Seat::take(&self.seats, peer.ip()) else {
                continue;
            };
            // A socket that refuses the option is about to fail anyway.
            let _slower = socket.set_nodelay(true);
            return Connection {
                socket,
                untaken: Untaken::beside(&self.untaken),
                seat,
                end: Box::pin(tokio::time::sleep(self.lives_for)),
            };
        }
    }
}

struct Seats {
    name: &'static str,
    total_max: usize,
    peer_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// A connection's place in the counts, given back when it is dropped.
struct Seat {
    seats: Arc<Seats>,
    peer: IpAddr,
}

impl Seat {
    fn take(seats: &Arc<Seats>, peer: IpAddr) -> Option<Self> {
        let mut taken = seats.taken.lock();
        let of_peer = taken.by_peer.get(&peer).copied().unwrap_or(0);
        let full = if taken.total >= seats.total_max {
            Some("total")
        } else {
            (of_peer >= seats.peer_max).then_some("peer")
        };
        if let Some(why) = full {
            metrics::connection_turned_away(seats.name, why);
            return None;
        }
        taken.total += 1;
        taken.by_peer.insert(peer, of_peer + 1);
        metrics::connection_opened(seats.name);
        Some(Self {
            seats: Arc::clone(seats),
            peer,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock();
        taken.total -= 1;
        if let Some(of_peer) = taken.by_peer.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                taken.by_peer.remove(&self.peer);
            }
        }
        metrics::connection_ended(self.seats.name);
    }
}

/// A socket in its seat.
struct Connection {
    socket: TcpStream,
    untaken: Arc<Untaken>,
    seat: Seat,
    /// Of its age, and of the grace after that.
    end: Pin<Box<tokio::time::Sleep>>,
}

/// Every request of the connection is told.
impl Connected for Connection {
    type ConnectInfo = Arc<Untaken>;

    fn connect_info(&self) -> Arc<Untaken> {
        Arc::clone(&self.untaken)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // It is asked at the latest when the next ping is due.
        if self.untaken.is_deaf() {
            metrics::connection_turned_away(self.seat.seats.name, "deaf");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        // It was asked to reconnect before.
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn seats(total_max: usize, peer_max: usize) -> Arc<Seats> {
        Arc::new(Seats {
            name: "test",
            total_max,
            peer_max,
            taken: Mutex::default(),
        })
    }

    #[test]
    fn a_peer_takes_no_more_than_its_share_and_all_no_more_than_the_total() {
        let seats = seats(3, 2);
        let here: IpAddr = [127, 0, 0, 1].into();
        let there: IpAddr = [127, 0, 0, 2].into();
        let first = Seat::take(&seats, here).unwrap();
        let _second = Seat::take(&seats, here).unwrap();
        assert!(Seat::take(&seats, here).is_none());
        let _third = Seat::take(&seats, there).unwrap();
        assert!(Seat::take(&seats, there).is_none());
        drop(first);
        assert!(Seat::take(&seats, there).is_some());
    }

    #[test]
    fn a_peer_that_left_is_forgotten() {
        let seats = seats(3, 2);
        drop(Seat::take(&seats, [127, 0, 0, 1].into()));
        assert!(seats.taken.lock().by_peer.is_empty());
    }

    #[tokio::test]
    async fn what_exceeds_the_limit_is_closed_before_a_byte_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door {
            listener,
            seats: seats(1, 1),
            untaken: Arc::default(),
            lives_for: Duration::from_secs(3_600),
        };
        let accepting = tokio::spawn(async move {
            let first = door.next().await;
            let _second = door.next().await;
            drop(first);
        });
        let _held = TcpStream::connect(address).await.unwrap();
        let mut excess = TcpStream::connect(address).await.unwrap();
        let mut nothing = Vec::new();
        let read = excess.read_to_end(&mut nothing).await;
        assert!(read.is_err() || nothing.is_empty());
        accepting.abort();
    }

    #[test]
    fn the_contract_names_its_rpcs() {
        let names = rpc_names();
        assert!(names.contains(&"redenvelope.v1.EnvelopeService/Grab".to_owned()));
        assert!(names.contains(&"redenvelope.v1.AdminService/Audit".to_owned()));
    }
}
