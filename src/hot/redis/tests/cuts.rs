//! The AOF of a burst, cut at thousands of bytes, each cut loaded by a real server: every call is
//! there as a whole or not at all, and every call that was answered before the cut is there.
//!
//! # Shape
//! | step | what |
//! |---|---|
//! | burst | calls on a server that syncs before each answer; after each, the length of the file and all that is on the server |
//! | cut | a server on the same files, the last of them cut, must hold what was there after the last call whose bytes are whole |
//!
//! # Bounds
//! [`CUTS`] starts, [`SERVERS`] at once, on sockets in folders of their own.
//!
//! # Not here
//! A disk that lies: `redis_power` in the end-to-end tests.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::{Client, Connection, Value};

use super::Flavour;
use super::scene::{Dump, Scene, Words, code_of, codes_of_grabs, dump_of};
use crate::hot::conformance::stage::Cast;
use crate::hot::redis::reply::Reply;

/// Calls of the burst that grab.
const BURST_CALLS: usize = 240;
/// Cuts: half of them spread over the burst, the others at each of the last bytes. A build that is
/// not optimised tries fewer.
const CUTS: usize = if cfg!(debug_assertions) { 400 } else { 2_000 };
const SERVERS: usize = 3;
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
}

impl Burst {
    fn new() -> Self {
        let mut burst = Self {
            scene: Scene::new(&[("auto-aof-rewrite-percentage", "0")]),
            points: Vec::new(),
            casts: Vec::new(),
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
        self.note();
        for cast in self.casts.clone() {
            let (won, owed) = self.scene.winners(&cast).unwrap();
            // What was settled is owed no more.
            assert!(
                owed.iter().all(|name| won.contains(name)),
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
        let folder = tempfile::tempdir().unwrap();
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

/// Where the file is cut.
fn cuts(from: usize, to: usize) -> Vec<usize> {
    let last = CUTS / 2;
    let spread = (0..CUTS - last).map(|n| from + (to - from) * n / (CUTS - last));
    spread.chain(to - last..to).collect()
}

#[test]
fn an_aof_that_is_cut_anywhere_has_every_call_as_a_whole_or_not_at_all() {
    let mut burst = Burst::new();
    burst.play();
    let (from, to) = (burst.points[0].bytes, burst.points.last().unwrap().bytes);
    let all = cuts(from, to);
    println!("{} calls in {} bytes", burst.points.len() - 1, to - from);
    let (points, aof) = (&burst.points, burst.scene.server.aof());
    std::thread::scope(|scope| {
        for some in all.chunks(all.len().div_ceil(SERVERS)) {
            let loader = Loader::new(&aof);
            scope.spawn(move || {
                for cut in some {
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
