//! The AOF of a burst, cut at thousands of bytes, each cut loaded by a real server: every call is
//! there as a whole or not at all, and every call that was answered before the cut is there.
//!
//! # Shape
//! | step | what |
//! |---|---|
//! | burst | calls on a server that syncs before each answer; after each, the length of the file and all that is on the server |
//! | each | the same for each function that writes, on a server of its own, so that a start is short |
//! | cut | a server on the same files, the last of them cut, must hold what was there after the last call whose bytes are whole |
//!
//! # Bounds
//! [`BURST_CUTS`] starts over the burst, and one for each byte of the other file (in a build that is not
//! optimised for every [`STEP`]th), [`SERVERS`] at once, on sockets in folders of their own.
//!
//! # Not here
//! A disk that lies: `redis_power` in the end-to-end tests. What settlement makes of such a file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::{Client, Connection, Value};

use super::scene::{Dump, Scene, Words, code_of, codes_of_grabs, dump_of, functions};
use super::{Flavour, in_memory};
use crate::domain::id::Partition;
use crate::hot::conformance::stage::Cast;
use crate::hot::redis::reply::Reply;

/// Calls of the burst that grab.
const BURST_CALLS: usize = 240;
/// Cuts that are spread over the burst.
const BURST_CUTS: usize = 500 / if cfg!(debug_assertions) { 5 } else { 1 };
/// Bytes of the file that each function writes to, at the least.
const BYTES_MIN: usize = 2_000;
/// Bytes of it from one cut to the next.
const STEP: usize = if cfg!(debug_assertions) { 7 } else { 1 };
/// A server loads on one core; the machines that run this have two or more.
const SERVERS: usize = 2;
/// Looks at a start: a minute.
const POLLS_MAX: u32 = 60_000;

/// What stood on the server when the file had this length.
struct Point {
    bytes: usize,
    dump: Dump,
}

struct Burst {
    scene: Scene,
    points: Vec<Point>,
    casts: Vec<Cast>,
    called: BTreeSet<String>,
}

impl Burst {
    fn new() -> Self {
        let mut burst = Self {
            scene: Scene::new(&[("auto-aof-rewrite-percentage", "0")]),
            points: Vec::new(),
            casts: Vec::new(),
            called: BTreeSet::new(),
        };
        burst.note();
        burst
    }

    fn file(&self) -> PathBuf {
        let folder = self.scene.server.aof();
        let mut files = std::fs::read_dir(folder)
            .unwrap()
            .map(|f| f.unwrap().path());
        let file = files.find(|path| path.to_string_lossy().ends_with(".incr.aof"));
        file.unwrap()
    }

    fn note(&mut self) {
        let bytes = std::fs::metadata(self.file()).unwrap().len();
        let bytes = usize::try_from(bytes).unwrap();
        let dump = self.scene.dump();
        self.points.push(Point { bytes, dump });
    }

    fn send(&mut self, words: &Words) -> Value {
        let reply = self.scene.send(words);
        let name = String::from_utf8(words[1].clone()).unwrap();
        self.called.insert(name);
        self.note();
        for cast in self.casts.clone() {
            let (won, owed) = self.scene.winners(&cast).unwrap();
            // What was settled is owed no more.
            assert!(
                owed.iter().all(|share| won.contains(share)),
                "{won:?} {owed:?}"
            );
        }
        reply
    }

    fn call(&mut self, name: &str, cast: &Cast) {
        let words = self.scene.words(name, cast);
        let reply = self.send(&words);
        assert_eq!(code_of(&reply), Some(Reply::Ok), "{name}");
    }

    fn publish(&mut self, cast: Cast) -> Cast {
        self.call("load_1", &cast);
        if cast.amounts.len() > 1_000 {
            let words = self.scene.words_of_chunk(&cast, 1);
            assert_eq!(code_of(&self.send(&words)), Some(Reply::Ok));
        }
        self.call("open_1", &cast);
        self.casts.push(cast.clone());
        cast
    }

    /// Grabs of two envelopes a call, and everything else now and then.
    fn play(&mut self) {
        let lucky = [2, 3].map(|amount| self.publish(Cast::lucky(&[amount; 1_100])));
        let locked = self.publish(Cast::locked(&[9; 2_000]));
        for number in 0..BURST_CALLS {
            let names: Vec<String> = (0..4).map(|n| format!("{number}-{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            // The first one is closed half way.
            let open = if number > BURST_CALLS / 2 {
                1
            } else {
                number % 2
            };
            let first = (&lucky[open], &names[..]);
            let words = self.scene.words_of_grabs(&[first, (&locked, &names[..2])]);
            let reply = self.send(&words);
            let codes = codes_of_grabs(&reply).unwrap();
            assert!(codes.iter().all(|code| *code == Reply::Won), "{codes:?}");
            if number % 20 == 0 {
                let named = self.publish(Cast::exclusive(&[("ann", 5), ("bob", 7)]));
                self.call("decline_1", &named);
                self.call("close_1", &named);
            }
            if number == BURST_CALLS / 2 {
                self.call("settled_1", &lucky[0]);
                self.call("close_1", &lucky[0]);
            }
        }
    }

    /// Calls a function of the outbox for its newest entry.
    fn call_for_the_newest(&mut self, name: &str, cast: &Cast, behind: usize) {
        let outbox = self.scene.keys.outbox(Partition::ZERO);
        let newest: [&[u8]; 6] = [b"XREVRANGE", outbox.as_bytes(), b"+", b"-", b"COUNT", b"1"];
        let Value::Array(entries) = self.scene.ask(&newest) else {
            panic!("XREVRANGE answers with an array");
        };
        let Some(Value::Array(entry)) = entries.first() else {
            panic!("nothing is owed");
        };
        let Value::BulkString(id) = &entry[0] else {
            panic!("{entry:?}");
        };
        let mut words = self.scene.words(name, cast);
        let at = words.len() - 1 - behind;
        words[at].clone_from(id);
        assert_eq!(code_of(&self.send(&words)), Some(Reply::Ok), "{name}");
        let left = self.scene.ask(&newest);
        assert!(left != Value::Array(entries), "{name} did nothing");
    }

    fn grab(&mut self, cast: &Cast, names: &[&str]) {
        let words = self.scene.words_of_grabs(&[(cast, names)]);
        let codes = codes_of_grabs(&self.send(&words)).unwrap();
        assert!(codes.iter().all(|code| *code == Reply::Won), "{codes:?}");
    }

    /// Each function that writes.
    fn play_each(&mut self) {
        let lucky = self.publish(Cast::locked(&[2; 4]));
        self.grab(&lucky, &["zoe", "yan"]);
        // The entry's nonce stands behind its id.
        self.call_for_the_newest("settled_1", &lucky, 1);
        let named = self.publish(Cast::exclusive(&[("ann", 5), ("bob", 7)]));
        self.call("decline_1", &named);
        self.call_for_the_newest("settled_1", &named, 1);
        self.call("close_1", &named);
        self.call("remove_1", &named);
        self.scene.epoch.0 += 1;
        self.call("register_2", &lucky);
        self.call("stamp_1", &lucky);
        self.scene.epoch.0 += 1;
        self.call("register_2", &lucky);
        self.call("rebuild_1", &lucky);
        self.call("rebuild_put_2", &lucky);
        self.call("rebuilt_2", &lucky);
        self.scene.epoch.0 += 1;
        self.call("register_2", &lucky);
        self.call("rebuild_1", &lucky);
        self.call("rebuild_put_1", &lucky);
        self.call("rebuilt_1", &lucky);
        self.grab(&lucky, &["yan", "ann"]);
        self.call_for_the_newest("set_aside_1", &lucky, 0);
        self.grab(&lucky, &["bob"]);
        self.call("freeze_1", &lucky);
        let dealt = self.publish(Cast::lucky(&[2; 4]));
        self.scene.deal(&dealt);
        self.note();
        self.call("halt_1", &dealt);
        let writing = functions().into_iter().filter(|(_, writes)| *writes);
        let writing: BTreeSet<String> = writing.map(|(name, _)| name).collect();
        assert_eq!(self.called, writing);
    }
}

/// A server on a folder of its own, which is filled anew for every cut.
struct Loader {
    folder: tempfile::TempDir,
    files: Vec<(String, Vec<u8>)>,
}

impl Loader {
    fn new(aof: &Path) -> Self {
        let files = std::fs::read_dir(aof).unwrap().map(|file| {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            (name, std::fs::read(file.path()).unwrap())
        });
        let files = files.collect();
        let folder = tempfile::tempdir_in(in_memory()).unwrap();
        std::fs::create_dir(folder.path().join("appendonlydir")).unwrap();
        Self { folder, files }
    }

    /// What a server holds that starts on the files, the last of them cut after so many bytes.
    fn load(&self, cut: usize) -> Dump {
        for (name, bytes) in &self.files {
            let end = if name.ends_with(".incr.aof") {
                cut
            } else {
                bytes.len()
            };
            let path = self.folder.path().join("appendonlydir").join(name);
            std::fs::write(path, &bytes[..end]).unwrap();
        }
        let mut server = self.start();
        let dump = dump_of(&mut server.1);
        server.0.kill().unwrap();
        server.0.wait().unwrap();
        dump
    }

    fn start(&self) -> (Child, Connection) {
        let socket = self.folder.path().join("socket");
        let _first_start = std::fs::remove_file(&socket);
        let mut command = Command::new(Flavour::Debian.program());
        command.args(["--port", "0", "--appendonly", "yes", "--save", ""]);
        command.args(["--aof-load-truncated", "yes", "--loglevel", "warning"]);
        command.arg("--dir").arg(self.folder.path());
        command.arg("--unixsocket").arg(&socket);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut child = child.unwrap();
        let client = Client::open(format!("unix:{}", socket.display())).unwrap();
        for _ in 0..POLLS_MAX {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "it does not load what was cut: {ended:?}");
            // While it loads it refuses everything.
            if let Ok(mut connection) = client.get_connection()
                && redis::cmd("PING").query::<String>(&mut connection).is_ok()
            {
                return (child, connection);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ended = (child.kill(), child.wait());
        panic!("a server does not answer");
    }
}

/// Each cut of the file is loaded, and holds what it should.
fn cut(burst: &Burst, cuts: &[usize]) {
    let (points, aof) = (&burst.points, burst.scene.server.aof());
    let (from, to) = (points[0].bytes, points.last().unwrap().bytes);
    println!(
        "{} calls in {} bytes, cut {} times",
        points.len() - 1,
        to - from,
        cuts.len()
    );
    std::thread::scope(|scope| {
        for first in 0..SERVERS {
            let loader = Loader::new(&aof);
            scope.spawn(move || {
                for cut in cuts.iter().skip(first).step_by(SERVERS) {
                    let whole = points.partition_point(|point| point.bytes <= *cut) - 1;
                    let dump = loader.load(*cut);
                    assert!(
                        dump == points[whole].dump,
                        "cut after {cut} bytes, in call {whole}"
                    );
                }
            });
        }
    });
}

#[test]
fn an_aof_that_is_cut_anywhere_has_every_call_as_a_whole_or_not_at_all() {
    let mut burst = Burst::new();
    burst.play();
    let (from, to) = (burst.points[0].bytes, burst.points.last().unwrap().bytes);
    let spread = (1..=BURST_CUTS).map(|n| from + (to - from) * n / BURST_CUTS);
    cut(&burst, &spread.collect::<Vec<_>>());
}

#[test]
fn an_aof_of_each_function_that_is_cut_at_every_byte_has_every_call_as_a_whole_or_not_at_all() {
    let mut burst = Burst::new();
    let from = burst.points[0].bytes;
    burst.play_each();
    let to = burst.points.last().unwrap().bytes;
    assert!(to - from >= BYTES_MIN, "{} bytes", to - from);
    cut(&burst, &(from..=to).step_by(STEP).collect::<Vec<_>>());
}
