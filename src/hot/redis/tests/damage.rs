//! Every function of the library with each of its keys missing, of another type, or half there: all of
//! its effect or none, and never a win that is not written down.
//!
//! # Shape
//! A case is a function, whose shares there are, one of its keys, and a damage to it. Everything on
//! the server is dumped before and after the call. A function without a case fails the test: `scene`
//! knows no words for it.
//!
//! # Not here
//! Whether these cases would notice a library that breaks its word: `planted`. Which keys a function
//! may write: `written`. Each function without memory: `full`.

use redis::Value;

use super::scene::{
    Dump, Holders, Scene, Words, answers_of_grabs, code_of, codes_of_grabs, functions, untaken,
};
use crate::domain::envelope::HotState;
use crate::domain::id::Partition;
use crate::hot::conformance::stage::Cast;
use crate::hot::redis::batcher::grant;
use crate::hot::redis::layout::{Meta, Reader, width_of};
use crate::hot::redis::reply::Reply;

/// Whose the shares of a stage's envelope are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shares {
    /// The next one's, so many that the grabbers are listed.
    ByTurn,
    /// Named people's.
    Named,
    /// The next one's, in the first stripe of a dealt envelope.
    OfAStripe,
}

/// What a function is tried on.
pub fn kinds(name: &str) -> &'static [Shares] {
    match name {
        "decline_1" => &[Shares::Named],
        // A page of few is read without it.
        "grants_1" => &[Shares::ByTurn],
        "halt_1" => &[Shares::OfAStripe],
        "grab_1" | "close_1" | "freeze_1" | "remove_1" | "view_1" | "result_1" => {
            &[Shares::ByTurn, Shares::Named, Shares::OfAStripe]
        }
        _ => &[Shares::ByTurn, Shares::Named],
    }
}

/// An envelope behind a passphrase.
fn cast(shares: Shares) -> Cast {
    let by_turn = Cast::locked(&[2; 1_001]);
    match shares {
        Shares::ByTurn => by_turn,
        // One with a passphrase is not dealt.
        Shares::OfAStripe => Cast::lucky(&[2; 1_001]),
        Shares::Named => {
            let named = [("zoe", 9), ("yan", 11), ("ann", 5), ("bob", 7)];
            let lock = by_turn.terms.passphrase.clone();
            Cast::exclusive(&named).with(|draft| draft.passphrase = lock)
        }
    }
}

/// Sets the scene in which a function has its whole effect.
pub fn stage(scene: &mut Scene, name: &str, shares: Shares) -> Cast {
    scene.clear();
    let cast = cast(shares);
    match name {
        "load_1" => return cast,
        "open_1" => {
            scene.load(&cast);
            return cast;
        }
        _ => scene.publish(&cast),
    }
    if shares == Shares::OfAStripe {
        scene.deal(&cast);
    }
    assert_eq!(scene.grab(&cast, &["zoe", "yan"]), [Reply::Won, Reply::Won]);
    let before: &[&str] = match name {
        "remove_1" => &["close_1"],
        "rebuild_put_1" | "rebuild_put_2" => &["rebuild_1"],
        "rebuilt_1" | "rebuilt_2" => &["rebuild_1", "rebuild_put_1"],
        _ => &[],
    };
    if name == "register_2" {
        scene.epoch.0 += 1;
    } else if name == "stamp_1" || name.starts_with("rebuild") || name.starts_with("rebuilt") {
        scene.next_epoch();
    }
    for step in before {
        assert_eq!(scene.code(step, &cast), Some(Reply::Ok), "{step}");
    }
    cast
}

/// The commands that leave a key half there, by what it is; none where nothing is half of it.
fn halves(key: &str) -> Vec<Vec<&'static [u8]>> {
    let part = key.rsplit_once('}').map_or(key, |(_, part)| part);
    match part.get(1..3).unwrap_or_default() {
        "g:" => vec![
            vec![b"HDEL", b""],
            vec![b"HSET", b"", b"\x01\x01\0\x01"],
            vec![b"HDEL", b"zoe", b"bob"],
            vec![b"HSET", b"zoe", b"\0\0\0\0\0", b"bob", b"\0\0\0\0\0"],
            vec![b"HSET", b"ann", b"\0\0\0\0\0\0"],
            vec![b"HSET", b"stranger", b"\0\0\0\0\0\0\0\0\0\0\x02"],
        ],
        "s:" => vec![vec![b"SET", b"\x02\x02\x02"], vec![b"APPEND", b"\x02"]],
        "t:" => vec![vec![b"SET", b"{"]],
        "l:" => vec![vec![b"RPOP"], vec![b"RPUSH", b"stranger"]],
        "p:" => vec![
            vec![b"HDEL", b""],
            vec![b"HSET", b"", b"short"],
            vec![b"HSET", b"ann", b"many"],
        ],
        "ou" => vec![vec![b"XADD", b"9999-1", b"r", b"junk"]],
        "ep" => vec![vec![b"SET", b"junk"], vec![b"SET", b"1"]],
        "in" | "ma" => vec![vec![b"ZADD", b"0", b"junk"]],
        "po" => vec![vec![b"RPUSH", b"junk"]],
        other => panic!("no damage to {other}"),
    }
}

/// Every damage to a key, as commands without the key.
pub fn damages(key: &str) -> Vec<Vec<Vec<&'static [u8]>>> {
    let part = key.rsplit_once('}').map_or(key, |(_, part)| part);
    let is_text = [":s:", ":t:", ":ep"].iter().any(|p| part.starts_with(p));
    let other: Vec<&[u8]> = match is_text {
        true => vec![b"RPUSH", b"x"],
        false => vec![b"SET", b"x"],
    };
    let mut all = vec![vec![vec![&b"UNLINK"[..]]]];
    all.push(vec![vec![b"UNLINK"], other]);
    all.extend(halves(key).into_iter().map(|half| vec![half]));
    all
}

fn hurt(scene: &mut Scene, key: &[u8], commands: &[Vec<&[u8]>]) {
    for command in commands {
        let mut words = vec![command[0], key];
        words.extend(&command[1..]);
        let _nothing_to_cut = scene.ask(&words);
    }
}

fn exists(scene: &mut Scene, key: &str) -> bool {
    scene.ask(&[b"EXISTS", key.as_bytes()]) == Value::Int(1)
}

/// A function, and what is there before it is called.
pub struct Call {
    name: String,
    cast: Cast,
    /// The command.
    pub words: Words,
    before: Dump,
    holders: Option<(Holders, Holders)>,
    meta: Option<Meta>,
}

impl Call {
    pub fn begin(scene: &mut Scene, name: &str, cast: Cast, words: Words) -> Self {
        Self {
            name: name.to_owned(),
            words,
            before: scene.dump(),
            holders: scene.winners(&cast),
            meta: scene.meta(&cast),
            cast,
        }
    }

    /// What is wrong with an answer and what it left behind; else the keys that it changed.
    pub fn judge(&self, scene: &mut Scene, reply: &Value) -> Result<Vec<String>, String> {
        let after = scene.dump();
        let keys = self.before.keys().chain(after.keys());
        let mut changed: Vec<_> = keys
            .filter(|key| self.before.get(*key) != after.get(*key))
            .map(|key| String::from_utf8(key.clone()).unwrap())
            .collect();
        changed.dedup();
        self.told_is_written(scene, reply)?;
        if says_done(&self.name, reply) && !self.has_its_effect(scene, reply) {
            return Err("it answers that it is done, and it is not".to_owned());
        }
        if !changed.is_empty() {
            if !succeeded(reply) {
                return Err(format!("it changes {changed:?} and does not say so"));
            }
            // The rest of a call whose answer was lost changes nothing.
            let _repeated = scene.send(&self.words);
            if scene.dump() != after {
                return Err("once more, it changes more".to_owned());
            }
        }
        Ok(changed)
    }

    /// Who is told of a new share by this call.
    fn told(&self, reply: &Value) -> Holders {
        if self.name == "decline_1" {
            let (Some(Reply::Ok), Value::Array(items)) = (code_of(reply), reply) else {
                return Vec::new();
            };
            let Some(Value::BulkString(share)) = items.get(1) else {
                panic!("{reply:?}");
            };
            return vec![("ann".to_owned(), grant(&mut Reader(&share[1..])).unwrap())];
        }
        let answers = answers_of_grabs(reply).unwrap_or_default();
        let told = ["ann", "bob"].into_iter().zip(answers);
        told.filter(|(_, (code, _))| *code == Reply::Won)
            .map(|(name, (_, share))| (name.to_owned(), share.unwrap()))
            .collect()
    }

    /// Those who are told of a share, and they alone, have it now by the hash and by the outbox, and
    /// had it by neither before.
    fn told_is_written(&self, scene: &mut Scene, reply: &Value) -> Result<(), String> {
        let told = self.told(reply);
        let (Some(before), Some(after)) = (&self.holders, scene.winners(&self.cast)) else {
            return match told.is_empty() {
                true => Ok(()),
                false => Err(format!("{told:?} is written nowhere that can be read")),
            };
        };
        let places = [
            ("the hash", &before.0, after.0),
            ("the outbox", &before.1, after.1),
        ];
        for (place, before, after) in places {
            let new = after.into_iter().filter(|one| !before.contains(one));
            let new: Holders = new.collect();
            if new != told {
                return Err(format!("told are {told:?}, and new in {place} are {new:?}"));
            }
        }
        Ok(())
    }

    /// Whether the whole effect of the function is there.
    pub fn has_its_effect(&self, scene: &mut Scene, reply: &Value) -> bool {
        let (cast, meta) = (&self.cast, scene.meta(&self.cast));
        let own = scene.own(cast);
        let (index, marked) = (
            scene.keys.index(Partition::ZERO),
            scene.keys.marked(Partition::ZERO),
        );
        let id = cast.id.to_bytes();
        let listed = |scene: &mut Scene, key: &str| {
            scene.ask(&[b"ZSCORE", key.as_bytes(), &id]) != Value::Nil
        };
        let ours = |meta: &Meta| meta.epoch == scene.epoch && meta.tenant == cast.terms.tenant;
        let stands = meta.as_ref().is_some_and(ours);
        let lives = stands && meta.as_ref().is_some_and(|m| m.state == HotState::Live);
        match self.name.as_str() {
            "load_1" => {
                let first = cast.amounts.len().min(1_000) * width_of(&cast.terms);
                let all = stands && exists(scene, &own.terms) && exists(scene, &own.phrase);
                all && shares_are(scene, &own.shares, first) && listed(scene, &index)
            }
            "open_1" => lives && self.names_have_their_shares(scene),
            "grab_1" => stands && self.turns_are_counted(scene, reply),
            "close_1" => stands && meta.is_some_and(|m| matches!(m.state, HotState::Over(_))),
            "freeze_1" => meta.is_some_and(|m| m.frozen.is_some()) && listed(scene, &marked),
            "remove_1" => {
                let keys = [own.grabs, own.shares, own.terms, own.list, own.phrase];
                keys.iter().all(|key| !exists(scene, key)) && !listed(scene, &index)
            }
            "rebuild_1" => stands && !exists(scene, &own.shares) && listed(scene, &index),
            "rebuild_put_1" | "rebuild_put_2" => {
                let yan = |(held, _): (Holders, Holders)| held.iter().any(|(n, _)| n == "yan");
                let freed = !scene.winners(cast).is_some_and(yan);
                // Named people's shares stand with their names.
                let left = (cast.amounts.len() - 1) * (width_of(&cast.terms) + 4);
                let named = !cast.terms.exclusive.is_empty();
                stands && freed && (named || shares_are(scene, &own.shares, left))
            }
            "settled_1" | "set_aside_1" => {
                let outbox = scene.keys.outbox(Partition::ZERO);
                let left = scene.ask(&[b"XRANGE", outbox.as_bytes(), b"-", b"+"]);
                !format!("{left:?}").contains(&format!("{}-1", scene.epoch.0))
            }
            "register_2" => {
                let key = scene.keys.epoch(Partition::ZERO);
                let epoch = scene.epoch.0.to_string().into_bytes();
                scene.ask(&[b"GET", key.as_bytes()]) == Value::BulkString(epoch)
            }
            "stamp_1" | "rebuilt_1" | "rebuilt_2" => lives,
            "halt_1" => stands && meta.is_some_and(|m| m.is_dry()),
            "decline_1" => stands && self.turns_are_counted(scene, reply),
            other => panic!("nobody knows the effect of {other}"),
        }
    }

    /// Of an EXCLUSIVE envelope that was opened, each name has its share; of others nobody does.
    fn names_have_their_shares(&self, scene: &mut Scene) -> bool {
        let grabs = scene.own(&self.cast).grabs;
        let mut named = (0..).zip(&self.cast.terms.exclusive);
        named.all(|(number, share)| {
            let name = share.grabber.as_str().as_bytes();
            let there = scene.ask(&[b"HGET", grabs.as_bytes(), name]);
            there == Value::BulkString(untaken(&self.cast, number, share.amount_minor))
        })
    }

    /// As many more were taken as are told so, the last of the list among them.
    fn turns_are_counted(&self, scene: &mut Scene, reply: &Value) -> bool {
        let told = self.told(reply);
        let (Some(before), Some(after)) = (&self.meta, scene.meta(&self.cast)) else {
            return false;
        };
        let wins = u32::try_from(told.len()).unwrap();
        if after.next != before.next + wins {
            return false;
        }
        let list = scene.own(&self.cast).list;
        let last = format!("-{wins}");
        let names = told.iter().map(|(name, _)| name.clone().into_bytes());
        let names: Vec<_> = names.map(Value::BulkString).collect();
        !after.listed
            || scene.ask(&[b"LRANGE", list.as_bytes(), last.as_bytes(), b"-1"])
                == Value::Array(names)
    }
}

/// Whether the packed shares have so many bytes.
fn shares_are(scene: &mut Scene, key: &str, bytes: usize) -> bool {
    let length = scene.ask(&[b"STRLEN", key.as_bytes()]);
    length == Value::Int(i64::try_from(bytes).unwrap())
}

pub fn succeeded(reply: &Value) -> bool {
    match codes_of_grabs(reply) {
        Some(codes) => codes.contains(&Reply::Won),
        None => code_of(reply) == Some(Reply::Ok),
    }
}

/// Whether an answer says that the function had its effect. Two are also told that nothing was there
/// for them; one of those counts.
fn says_done(name: &str, reply: &Value) -> bool {
    let counts_one = matches!(reply, Value::Array(items) if items.get(1) == Some(&Value::Int(1)));
    let of_nothing = match name {
        "freeze_1" => true,
        "remove_1" => !counts_one,
        _ => false,
    };
    succeeded(reply) && !of_nothing && writes(name)
}

fn writes(name: &str) -> bool {
    functions()
        .iter()
        .any(|(known, writes)| known == name && *writes)
}

/// Plays every case of a function. Of each: what was done, and what was wrong or which keys changed.
pub fn play(
    scene: &mut Scene,
    name: &str,
    shares: Shares,
    mut seen: impl FnMut(String, Result<Vec<String>, String>),
) {
    let mut case = |scene: &mut Scene, place: usize, damage: usize| -> bool {
        let cast = stage(scene, name, shares);
        let words = scene.words(name, &cast);
        let Some(key) = words[3..]
            .get(place)
            .filter(|_| place < keys_of(&words))
            .cloned()
        else {
            return false;
        };
        let shown = String::from_utf8(key.clone()).unwrap();
        let all = damages(&shown);
        let Some(commands) = all.get(damage) else {
            return false;
        };
        hurt(scene, &key, commands);
        let call = Call::begin(scene, name, cast, words);
        let reply = scene.send(&call.words);
        let outcome = call.judge(scene, &reply);
        seen(
            format!("{name} of {shares:?} with {shown} after {commands:?}: {reply:?}"),
            outcome,
        );
        true
    };
    let mut place = 0;
    while case(scene, place, 0) {
        let mut damage = 1;
        while case(scene, place, damage) {
            damage += 1;
        }
        place += 1;
    }
}

fn keys_of(words: &Words) -> usize {
    String::from_utf8(words[2].clone())
        .unwrap()
        .parse()
        .unwrap()
}

/// Calls a function where nothing is damaged: its answer, and which keys it changed.
pub fn play_undamaged(scene: &mut Scene, name: &str, shares: Shares) -> Vec<String> {
    let cast = stage(scene, name, shares);
    let words = scene.words(name, &cast);
    let call = Call::begin(scene, name, cast, words);
    let reply = scene.send(&call.words);
    assert!(succeeded(&reply), "{name} of {shares:?}: {reply:?}");
    let changed = call.judge(scene, &reply);
    let changed = changed.unwrap_or_else(|why| panic!("{name} of {shares:?}: {why}"));
    assert_eq!(!changed.is_empty(), writes(name), "{name} of {shares:?}");
    assert!(
        !writes(name) || call.has_its_effect(scene, &reply),
        "{name} of {shares:?}: {reply:?}"
    );
    changed
}

#[test]
fn every_function_has_all_of_its_effect_or_none_whatever_is_damaged() {
    let mut scene = Scene::new(&[("appendonly", "no")]);
    let mut cases = 0;
    for (name, writes) in functions() {
        for shares in kinds(&name) {
            play_undamaged(&mut scene, &name, *shares);
            play(&mut scene, &name, *shares, |case, outcome| {
                let changed = outcome.unwrap_or_else(|why| panic!("{case}: {why}"));
                assert!(writes || changed.is_empty(), "{case}");
                cases += 1;
            });
        }
    }
    println!("{cases} cases");
}

#[test]
fn a_damaged_envelope_of_a_call_does_not_stand_in_the_way_of_the_others() {
    let mut scene = Scene::new(&[("appendonly", "no")]);
    let words = {
        let cast = stage(&mut scene, "grab_1", Shares::ByTurn);
        scene.words("grab_1", &cast)
    };
    let keys = ["g", "s", "l", "p"];
    for (place, letter) in (2..).zip(keys) {
        let all = damages(&String::from_utf8(words[3 + place].clone()).unwrap());
        for damage in all {
            let cast = stage(&mut scene, "grab_1", Shares::ByTurn);
            let whole = Cast::lucky(&[4, 4]);
            scene.publish(&whole);
            let call = scene.words_of_grabs(&[(&cast, &["ann", "bob"]), (&whole, &["eve"])]);
            hurt(&mut scene, &call[3 + place].clone(), &damage);
            let reply = scene.send(&call);
            let codes = codes_of_grabs(&reply).unwrap_or_default();
            assert_eq!(
                codes.last(),
                Some(&Reply::Won),
                "{letter} {damage:?} {reply:?}"
            );
        }
    }
}
