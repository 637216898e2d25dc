//! One partition on one Redis, on which every function of the library is called word by word: with
//! the keys and arguments that the store would send, without the store.
//!
//! # Not here
//! What a call should do: the tests that stage one.

use std::collections::BTreeMap;

use redis::{Connection, Value};

use super::{Flavour, RedisServer};
use crate::clock::ManualClock;
use crate::domain::envelope::LOAD_CHUNK_SHARES_MAX;
use crate::domain::grab::Grant;
use crate::domain::id::{Epoch, PartitionCount};
use crate::hot::conformance::stage::{Cast, NEW_YEAR_MS, phrase};
use crate::hot::redis::batcher::grant;
use crate::hot::redis::keys::{EnvelopeKeys, Keys};
use crate::hot::redis::layout::{Meta, Part, Reader, entry_of, grant_of, put_amount, width_of};
use crate::hot::redis::lifecycle::lock_of;
use crate::hot::redis::register::LIBRARY;
use crate::hot::redis::reply::Reply;
use crate::hot::redis::server_under_test::ask;

/// Words of a command.
pub type Words = Vec<Vec<u8>>;
/// Every key and all that it holds.
pub type Dump = BTreeMap<Vec<u8>, Vec<u8>>;
/// Who has which share, by name.
pub type Holders = Vec<(String, Grant)>;

/// A server that has the library, and where its only partition stands.
pub struct Scene {
    pub server: RedisServer,
    pub connection: Connection,
    pub keys: Keys,
    pub epoch: Epoch,
    pub clock: ManualClock,
    /// Of the process that answers.
    run_id: String,
}

fn text(text: impl std::fmt::Display) -> Vec<u8> {
    text.to_string().into_bytes()
}

/// The names of the library's functions, from its source: (name, whether it writes).
pub fn functions() -> Vec<(String, bool)> {
    let named = LIBRARY.lines().filter_map(|line| {
        let writes = line.starts_with("writes('") || line.starts_with("frees('");
        let rest = line
            .strip_prefix("writes('")
            .or(line.strip_prefix("frees('"))
            .or(line.strip_prefix("reads('"))?;
        Some((rest.split_once('\'')?.0.to_owned(), writes))
    });
    named.collect()
}

impl Scene {
    /// Registered for its first epoch.
    pub fn new(options: &[(&str, &str)]) -> Self {
        let server = RedisServer::start(Flavour::Debian, options);
        let mut scene = Self {
            connection: server.connection().unwrap(),
            server,
            keys: Keys::new(PartitionCount::new(1).unwrap()),
            epoch: Epoch(1),
            clock: ManualClock::at(NEW_YEAR_MS + 5_000),
            run_id: String::new(),
        };
        scene.run_id = scene.ask_run_id();
        scene.bring(LIBRARY);
        scene.next_epoch();
        scene
    }

    /// Connects again, after a restart.
    pub fn reconnect(&mut self) {
        self.connection = self.server.connection().unwrap();
        self.run_id = self.ask_run_id();
    }

    fn ask_run_id(&mut self) -> String {
        let info: String = redis::cmd("INFO")
            .arg("server")
            .query(&mut self.connection)
            .unwrap();
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        run_id.unwrap().trim().to_owned()
    }

    /// Puts a library on the server, whatever was there.
    pub fn bring(&mut self, library: &str) {
        let loaded = self.ask(&[b"FUNCTION", b"LOAD", b"REPLACE", library.as_bytes()]);
        assert!(!matches!(loaded, Value::ServerError(_)), "{loaded:?}");
    }

    pub fn next_epoch(&mut self) {
        self.epoch = Epoch(self.epoch.0 + 1);
        let cast = Cast::lucky(&[1]);
        assert_eq!(self.code("register_2", &cast), Some(Reply::Ok));
    }

    /// Nothing but the library, in the next epoch.
    pub fn clear(&mut self) {
        self.ask(&[b"FLUSHALL"]);
        self.next_epoch();
    }

    pub fn ask(&mut self, words: &[&[u8]]) -> Value {
        ask(&mut self.connection, words).unwrap()
    }

    /// Calls a function for an envelope.
    pub fn call(&mut self, name: &str, cast: &Cast) -> Value {
        let words = self.words(name, cast);
        self.send(&words)
    }

    pub fn send(&mut self, words: &Words) -> Value {
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        self.ask(&words)
    }

    /// The code of the answer; `None`: Redis refused.
    pub fn code(&mut self, name: &str, cast: &Cast) -> Option<Reply> {
        code_of(&self.call(name, cast))
    }

    /// Loads and opens an envelope.
    pub fn publish(&mut self, cast: &Cast) {
        self.load(cast);
        assert_eq!(self.code("open_1", cast), Some(Reply::Ok));
    }

    pub fn load(&mut self, cast: &Cast) {
        for number in 0..cast.amounts.len().div_ceil(LOAD_CHUNK_SHARES_MAX) {
            let words = self.words_of_chunk(cast, number);
            let loaded = self.send(&words);
            assert_eq!(code_of(&loaded), Some(Reply::Ok));
        }
    }

    /// Grabs for some people: the code of each.
    pub fn grab(&mut self, cast: &Cast, names: &[&str]) -> Vec<Reply> {
        let words = self.words_of_grabs(&[(cast, names)]);
        let reply = self.send(&words);
        codes_of_grabs(&reply).unwrap_or_else(|| panic!("{reply:?}"))
    }

    pub fn own(&self, cast: &Cast) -> EnvelopeKeys {
        self.keys
            .envelope(crate::domain::id::Partition::ZERO, cast.id)
    }

    /// The command that calls a function for an envelope, as the store would.
    pub fn words(&self, name: &str, cast: &Cast) -> Words {
        let partition = crate::domain::id::Partition::ZERO;
        let own = self.own(cast);
        let all = [&own.grabs, &own.shares, &own.terms, &own.list, &own.phrase].map(Clone::clone);
        let [g, s, _, l, p] = all.clone();
        let (outbox, index) = (self.keys.outbox(partition), self.keys.index(partition));
        let with_index = || all.iter().cloned().chain([index.clone()]).collect();
        let keys: Vec<String> = match name {
            "register_2" | "vitals_1" => vec![outbox, index],
            "load_1" | "close_1" | "rebuild_1" => with_index(),
            "open_1" | "rebuild_put_1" | "rebuild_put_2" | "halt_1" => vec![g, s],
            "grab_1" => vec![outbox, g, s, l, p],
            "decline_1" => vec![outbox, g],
            "freeze_1" => vec![g, self.keys.marked(partition)],
            "remove_1" => [index].into_iter().chain(all).collect(),
            "stamp_1" | "rebuilt_1" | "rebuilt_2" | "view_1" => vec![g, s, p],
            "settled_1" | "owing_1" | "outbox_1" | "find_1" => vec![outbox],
            "set_aside_1" => vec![outbox, self.keys.poison(partition)],
            "result_1" => vec![g],
            "grants_1" => vec![g, l],
            other => panic!("no case calls {other}"),
        };
        let verb = match functions().iter().any(|(n, writes)| n == name && !writes) {
            true => "FCALL_RO",
            false => "FCALL",
        };
        let mut words = vec![text(verb), text(name), text(keys.len() + 1)];
        words.push(text(self.keys.epoch(partition)));
        words.extend(keys.into_iter().map(text));
        words.extend(self.arguments(name, cast));
        words
    }

    fn arguments(&self, name: &str, cast: &Cast) -> Words {
        let clock = text(format_args!("={}", crate::clock::Clock::now(&self.clock).0));
        let under = [text(0), text(self.epoch.0)];
        let (id, terms) = (cast.id.to_bytes().to_vec(), text(cast.terms.to_json()));
        let meta = Meta::funding(&cast.terms, self.epoch).pack();
        let nonce = vec![7; 8];
        let lock = lock_of(&cast.terms);
        let own: Words = match name {
            "register_2" => vec![text(&self.run_id), self.carried()],
            "vitals_1" | "owing_1" => vec![],
            "halt_1" => vec![text(self.epoch.0)],
            "load_1" => return self.chunk_arguments(cast, 0),
            "open_1" => {
                let names = cast.terms.exclusive.iter();
                names.map(|share| text(share.grabber.as_str())).collect()
            }
            "grab_1" => return self.grab_arguments(&[(cast, &["ann", "bob"])]),
            "decline_1" => {
                let rest = [nonce, id, text("default"), text("ann")];
                return [vec![clock], under.to_vec(), rest.to_vec()].concat();
            }
            "close_1" => {
                let expires_at = text(cast.terms.expires_at.0);
                let rest = [id, text(4), expires_at, text(1), meta, terms];
                return [vec![clock], under.to_vec(), rest.to_vec()].concat();
            }
            "freeze_1" => vec![id, text(1), text(1)],
            "remove_1" => vec![id],
            "stamp_1" => vec![self.stamped(cast), text(1)],
            "rebuild_1" => vec![id, self.rebuilt_meta(cast), terms, lock, text(0)],
            "rebuild_put_1" => self.rebuilt_words(cast),
            "rebuild_put_2" => [vec![self.rebuilt_meta(cast)], self.rebuilt_words(cast)].concat(),
            "rebuilt_1" => vec![text(1)],
            "rebuilt_2" => vec![self.rebuilt_meta(cast), text(1)],
            "settled_1" => vec![text(format_args!("{}-1", self.epoch.0)), vec![7; 8]],
            "set_aside_1" => vec![text(format_args!("{}-1", self.epoch.0))],
            "view_1" => vec![text(65_536), text(0)],
            "result_1" => vec![text("zoe")],
            "grants_1" => vec![text(0), text(100)],
            "outbox_1" => vec![text("-"), text(1_000)],
            "find_1" => vec![text("-"), id],
            other => panic!("no case calls {other}"),
        };
        [under.to_vec(), own].concat()
    }

    pub fn words_of_chunk(&self, cast: &Cast, number: usize) -> Words {
        let mut words = self.words("load_1", cast);
        words.truncate(3 + 7);
        words.extend(self.chunk_arguments(cast, number));
        words
    }

    fn chunk_arguments(&self, cast: &Cast, number: usize) -> Words {
        let chunk = cast.chunk(number);
        let mut shares = Vec::new();
        for amount in &chunk.amounts_minor {
            put_amount(&mut shares, *amount, width_of(&cast.terms)).unwrap();
        }
        vec![
            text(0),
            text(self.epoch.0),
            cast.id.to_bytes().to_vec(),
            text(chunk.offset),
            shares,
            Meta::funding(&cast.terms, self.epoch).pack(),
            text(cast.terms.to_json()),
            lock_of(&cast.terms),
        ]
    }

    /// One call of grabs of several envelopes.
    pub fn words_of_grabs(&self, grabs: &[(&Cast, &[&str])]) -> Words {
        let mut words = self.words("grab_1", grabs[0].0);
        words.truncate(3 + 2);
        for (cast, _) in grabs {
            let own = self.own(cast);
            words.extend([own.grabs, own.shares, own.list, own.phrase].map(text));
        }
        words[2] = text(words.len() - 3);
        words.extend(self.grab_arguments(grabs));
        words
    }

    fn grab_arguments(&self, grabs: &[(&Cast, &[&str])]) -> Words {
        let now = crate::clock::Clock::now(&self.clock).0;
        let mut words = vec![text(format_args!("={now}")), text(0), text(self.epoch.0)];
        words.extend([vec![7; 8], text(grabs.len())]);
        for (cast, names) in grabs {
            let locked = cast.terms.passphrase.is_some();
            words.extend([cast.id.to_bytes().to_vec(), text("default")]);
            words.extend([text(names.len()), text(u8::from(locked))]);
            for name in *names {
                words.push(text(name));
                if locked {
                    words.push(phrase("open sesame").to_bytes().to_vec());
                }
            }
        }
        words
    }

    /// The epoch that the data carry now; 0: none.
    fn carried(&self) -> Vec<u8> {
        let key = self.keys.epoch(crate::domain::id::Partition::ZERO);
        match self.server.command(&[b"GET", key.as_bytes()]) {
            Value::BulkString(epoch) => epoch,
            _ => text(0),
        }
    }

    /// The meta of an envelope of which zoe and yan took the first shares under the epoch before.
    fn stamped(&self, cast: &Cast) -> Vec<u8> {
        let mut meta = Meta::funding(&cast.terms, Epoch(self.epoch.0 - 1));
        meta.state = crate::domain::envelope::HotState::Live;
        meta.opening_seen = true;
        meta.next = 2;
        meta.pack()
    }

    /// The same envelope as a repair begins it that knows of zoe alone.
    fn rebuilt_meta(&self, cast: &Cast) -> Vec<u8> {
        let mut meta = Meta::funding(&cast.terms, self.epoch);
        meta.compact = true;
        if meta.named {
            meta.next = 1;
        } else {
            (meta.base, meta.length) = (1, meta.count - 1);
            meta.base_minor = cast.amounts[0];
        }
        meta.pack()
    }

    /// What such a repair puts: yan's share can be taken again, as the others can.
    fn rebuilt_words(&self, cast: &Cast) -> Words {
        let numbered = (0_u32..).zip(&cast.amounts);
        let mut shares = numbered.map(|(number, amount)| untaken(cast, number, *amount));
        if cast.terms.exclusive.is_empty() {
            let left: Vec<_> = shares.skip(1).collect();
            return vec![text(0), left.concat(), text(1), text("yan")];
        }
        // Of an envelope that has none for yan, the first.
        let names = &mut cast.terms.exclusive.iter();
        let yan = names.position(|share| share.grabber.as_str() == "yan");
        let place = yan.unwrap_or(0);
        let name = cast.terms.exclusive[place].grabber.as_str();
        let share = shares.nth(place).unwrap();
        vec![text(0), Vec::new(), text(0), text(name), share]
    }

    /// Makes a stripe of an envelope: the first one, with all shares.
    pub fn deal(&mut self, cast: &Cast) {
        let mut meta = self.meta(cast).unwrap();
        meta.part = Some(Part::default());
        let grabs = self.own(cast).grabs;
        let set = self.ask(&[b"HSET", grabs.as_bytes(), b"", &meta.pack()]);
        assert_eq!(set, Value::Int(0));
    }

    /// Everything that is on the server.
    pub fn dump(&mut self) -> Dump {
        dump_of(&mut self.connection)
    }

    /// Who has a share of an envelope, by the hash and by the outbox; `None`: a key is no such key.
    pub fn winners(&mut self, cast: &Cast) -> Option<(Holders, Holders)> {
        let (own, outbox) = (
            self.own(cast),
            self.keys.outbox(crate::domain::id::Partition::ZERO),
        );
        let width = width_of(&cast.terms);
        let Value::Array(fields) = self.ask(&[b"HGETALL", own.grabs.as_bytes()]) else {
            return None;
        };
        let mut in_hash = Holders::new();
        for pair in fields.chunks(2) {
            let name = String::from_utf8(bytes(&pair[0])).unwrap();
            if let Some((grant, _)) = grant_of(&bytes(&pair[1]), width)
                && !name.is_empty()
            {
                in_hash.push((name, grant));
            }
        }
        let Value::Array(entries) = self.ask(&[b"XRANGE", outbox.as_bytes(), b"-", b"+"]) else {
            return None;
        };
        let mut owed = Holders::new();
        for entry in entries {
            let Value::Array(entry) = entry else { panic!() };
            let Value::Array(fields) = &entry[1] else {
                panic!()
            };
            let entry = entry_of("0-0", &bytes(&fields[1]))?;
            let ours = entry.records.into_iter().filter(|r| r.envelope == cast.id);
            owed.extend(ours.map(|record| (record.grabber.as_str().to_owned(), record.grant)));
        }
        for holders in [&mut in_hash, &mut owed] {
            holders.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        }
        Some((in_hash, owed))
    }

    /// The meta of an envelope.
    pub fn meta(&mut self, cast: &Cast) -> Option<Meta> {
        let grabs = self.own(cast).grabs;
        match self.ask(&[b"HGET", grabs.as_bytes(), b""]) {
            Value::BulkString(bytes) => Meta::unpack(&bytes),
            _ => None,
        }
    }
}

/// Number and amount of a share that nobody has, as a name's and as that of a rebuilt envelope.
pub fn untaken(cast: &Cast, number: u32, amount_minor: i64) -> Vec<u8> {
    let mut out = number.to_le_bytes().to_vec();
    put_amount(&mut out, amount_minor, width_of(&cast.terms)).unwrap();
    out
}

fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes.clone(),
        other => panic!("{other:?}"),
    }
}

/// Byte strings behind their lengths.
fn packed(strings: &[Value]) -> Vec<u8> {
    let mut out = Vec::new();
    for string in strings {
        let Value::BulkString(bytes) = string else {
            panic!("{string:?}");
        };
        out.extend(bytes.len().to_le_bytes());
        out.extend(bytes);
    }
    out
}

/// Everything that is on a server.
pub fn dump_of(connection: &mut Connection) -> Dump {
    let Value::Array(keys) = ask(connection, &[b"KEYS", b"*"]).unwrap() else {
        panic!("KEYS answers with an array");
    };
    let dump = keys.into_iter().map(|key| {
        let Value::BulkString(key) = key else {
            panic!("{key:?}");
        };
        // A large hash has another order in each process.
        let kept = match ask(connection, &[b"HGETALL", &key]).unwrap() {
            Value::Array(fields) => {
                let mut pairs: Vec<Vec<u8>> = fields.chunks(2).map(packed).collect();
                pairs.sort_unstable();
                pairs.concat()
            }
            _ => match ask(connection, &[b"DUMP", &key]).unwrap() {
                Value::BulkString(bytes) => bytes,
                other => panic!("{other:?}"),
            },
        };
        (key, kept)
    });
    dump.collect()
}

/// The code of an array's answer, or of the first grab.
pub fn code_of(reply: &Value) -> Option<Reply> {
    match reply {
        Value::Array(items) => match items.first() {
            Some(Value::Int(code)) => Reply::of(*code),
            _ => None,
        },
        Value::BulkString(bytes) => Reply::of(i64::from(*bytes.first()?)),
        _ => None,
    }
}

/// The code of each grab of a call; `None`: Redis refused.
pub fn codes_of_grabs(reply: &Value) -> Option<Vec<Reply>> {
    let answers = answers_of_grabs(reply)?.into_iter();
    Some(answers.map(|(code, _)| code).collect())
}

/// The answer to each grab of a call, with the share where it names one; `None`: Redis refused.
pub fn answers_of_grabs(reply: &Value) -> Option<Vec<(Reply, Option<Grant>)>> {
    let Value::BulkString(bytes) = reply else {
        return None;
    };
    let (mut answers, mut reader) = (Vec::new(), Reader(bytes));
    while let Some(code) = reader.byte() {
        let code = Reply::of(i64::from(code))?;
        let share = match code {
            Reply::Won | Reply::AlreadyGrabbed => Some(grant(&mut reader)?),
            Reply::NotOpenYet | Reply::Epoch => {
                reader.u48()?;
                None
            }
            _ => None,
        };
        answers.push((code, share));
    }
    Some(answers)
}
