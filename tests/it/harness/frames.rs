//! HTTP/2 frames written by hand, for peers that no client library would be.
//!
//! # Shape
//! | part | what |
//! |---|---|
//! | [`Raw`] | a connection: what it is told to write, it writes; what comes back is counted |
//! | [`head`], [`message`], [`frame`] | the bytes of a gRPC call |
//!
//! A connection takes what it is sent, and answers SETTINGS and pings, so that what ends it is what it does.
//!
//! # Bounds
//! A frame that comes back is read as a whole: the server's are of 16 KiB at the most, what HTTP/2 gives by default.
//!
//! # Not here
//! Answers: their bytes are let go. HPACK's table and Huffman codes: each field is written out.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Kinds of frames. HTTP/2 calls the first one DATA.
pub const BODY: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;

/// Flags.
const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

/// The setting that says how much of an answer may be sent unasked.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// Reasons to go away.
pub const NO_ERROR: u32 = 0;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// What a client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length, kind, flags, stream.
const FRAME_HEAD_BYTES: usize = 9;
/// What a GOAWAY says before its words: the last stream, and the reason.
const GOAWAY_HEAD_BYTES: usize = 8;

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A string of HPACK, of less than 127 bytes.
fn text(bytes: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 127, "{text} is too long to be written so");
    bytes.push(length);
    bytes.extend(text.as_bytes());
}

/// A field that nobody has to remember.
pub fn field(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.push(0);
    text(bytes, name);
    text(bytes, value);
}

/// The head of a call, such as of `EnvelopeService/Grab`.
pub fn head(method: &str) -> Vec<u8> {
    // POST and http are in everybody's table.
    let mut bytes = vec![0x83, 0x86];
    for (name, value) in [
        (":path", &*format!("/redenvelope.v1.{method}")),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        field(&mut bytes, name, value);
    }
    bytes
}

/// A message as gRPC frames it.
pub fn message(message: &impl prost::Message) -> Vec<u8> {
    let encoded = message.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(encoded.len()).unwrap().to_be_bytes());
    bytes.extend(encoded);
    bytes
}

/// What a client says first, with these settings.
pub fn hello(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut told = Vec::new();
    for (name, value) in settings {
        told.extend(name.to_be_bytes());
        told.extend(value.to_be_bytes());
    }
    [PREFACE, &frame(SETTINGS, 0, 0, &told)].concat()
}

/// Why a peer said that it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// HTTP/2's number.
    pub reason: u32,
    /// Its own words.
    pub says: String,
}

/// What came back on a connection.
#[derive(Default)]
struct Heard {
    answers: AtomicU64,
    refusals: AtomicU64,
    gone: Mutex<Option<Gone>>,
    ended: CancellationToken,
}

/// A connection on which everything is possible.
pub struct Raw {
    out: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    heard: Arc<Heard>,
    next_stream: u32,
    _reading: DropGuard,
}

impl Raw {
    /// Connects, with these settings. `None`: the connection was closed before.
    pub async fn open(port: u16, settings: &[(u16, u32)]) -> Option<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let (read, mut write) = socket.into_split();
        // First of all: the server's settings may be there before, and would be answered before it.
        write.write_all(&hello(settings)).await.ok()?;
        let out = Arc::new(tokio::sync::Mutex::new(write));
        let heard = Arc::new(Heard::default());
        let reading = CancellationToken::new();
        tokio::spawn({
            let (out, heard) = (Arc::clone(&out), Arc::clone(&heard));
            let reading = reading.clone();
            async move {
                tokio::select! {
                    _ended = listen(read, &out, &heard) => {}
                    () = reading.cancelled() => {}
                }
                heard.ended.cancel();
            }
        });
        Some(Self {
            out,
            heard,
            next_stream: 1,
            _reading: reading.drop_guard(),
        })
    }

    /// The number of a stream that was not used yet.
    pub fn stream(&mut self) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        stream
    }

    /// The number of the stream that was begun last.
    pub fn last_stream(&self) -> u32 {
        self.next_stream - 2
    }

    /// Writes bytes. Answers whether the peer may still take some.
    pub async fn write(&self, bytes: &[u8]) -> bool {
        let written = async { self.out.lock().await.write_all(bytes).await };
        tokio::select! {
            written = written => written.is_ok() && !self.heard.ended.is_cancelled(),
            () = self.heard.ended.cancelled() => false,
        }
    }

    /// Streams on which an answer has begun.
    pub fn answers(&self) -> u64 {
        self.heard.answers.load(Ordering::SeqCst)
    }

    /// Of them, those on which no message comes.
    pub fn refusals(&self) -> u64 {
        self.heard.refusals.load(Ordering::SeqCst)
    }

    /// Whether the peer has ended it.
    pub fn is_ended(&self) -> bool {
        self.heard.ended.is_cancelled()
    }

    /// Waits until the peer has ended it, so long at the most. Answers why, if it said so.
    pub async fn ended(&self, within: Duration) -> Option<Gone> {
        let ended = tokio::time::timeout(within, self.heard.ended.cancelled()).await;
        ended.expect("the peer goes on with a connection that it should end");
        self.heard.gone.lock().clone()
    }
}

/// Reads frames until the connection ends.
async fn listen(
    mut read: OwnedReadHalf,
    out: &tokio::sync::Mutex<OwnedWriteHalf>,
    heard: &Heard,
) -> std::io::Result<()> {
    let (mut payload, mut answered) = (Vec::new(), HashSet::new());
    loop {
        let mut first = [0; FRAME_HEAD_BYTES];
        read.read_exact(&mut first).await?;
        let [a, b, c, kind, flags, stream @ ..] = first;
        payload.resize(
            usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            0,
        );
        read.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes(stream);
        match kind {
            SETTINGS | PING if flags & ACK == 0 => {
                let echo = if kind == PING { &payload[..] } else { &[] };
                let echo = frame(kind, ACK, stream, echo);
                // A peer that takes nothing more may still have something to say.
                let _deaf = out.lock().await.write_all(&echo).await;
            }
            HEADERS | RST_STREAM => {
                let is_first = answered.insert(stream);
                let is_last = kind == RST_STREAM || flags & END_STREAM != 0;
                heard
                    .answers
                    .fetch_add(u64::from(is_first), Ordering::SeqCst);
                heard
                    .refusals
                    .fetch_add(u64::from(is_first && is_last), Ordering::SeqCst);
            }
            GOAWAY => {
                let (told, says) = payload.split_at(GOAWAY_HEAD_BYTES);
                let reason = told[4..].try_into().map(u32::from_be_bytes).unwrap();
                let says = String::from_utf8_lossy(says).into_owned();
                *heard.gone.lock() = Some(Gone { reason, says });
            }
            _ => {}
        }
    }
}
