//! Every function of the library with each of its keys missing, of another type, or half there, and
//! without memory: all of its effect or none, and never a win without its debt.
//!
//! # Shape
//! A case is a function, one of its keys, and a damage to it. Everything on the server is dumped
//! before and after the call. A function without a case fails the test: `scene` knows no words for
//! it.

use redis::Value;

use super::scene::{Scene, code_of, codes_of_grabs, functions};
use crate::domain::envelope::HotState;
use crate::domain::id::Partition;
use crate::hot::conformance::stage::Cast;
use crate::hot::redis::layout::Meta;
use crate::hot::redis::reply::Reply;

/// Sets the scene in which a function has its whole effect.
fn stage(scene: &mut Scene, name: &str) -> Cast {
    scene.clear();
    if name == "decline_1" {
        let cast = Cast::exclusive(&[("ann", 5), ("bob", 7)]);
        scene.publish(&cast);
        assert_eq!(scene.grab(&cast, &["bob"]), [Reply::Won]);
        return cast;
    }
    // Large enough for a list of its grabbers.
    let cast = Cast::locked(&[2; 1_001]);
    match name {
        "load_1" => return cast,
        "open_1" => {
            scene.load(&cast);
            return cast;
        }
        _ => scene.publish(&cast),
    }
    assert_eq!(scene.grab(&cast, &["zoe", "yan"]), [Reply::Won, Reply::Won]);
    let before: &[&str] = match name {
        "remove_1" => &["close_1"],
        "rebuild_put_1" => &["rebuild_1"],
        "rebuilt_1" => &["rebuild_1", "rebuild_put_1"],
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

/// Whether the whole effect of a function is there.
fn has_its_effect(scene: &mut Scene, name: &str, cast: &Cast, reply: &Value) -> bool {
    let own = scene.own(cast);
    let (index, marked) = (
        scene.keys.index(Partition::ZERO),
        scene.keys.marked(Partition::ZERO),
    );
    let meta = match scene.ask(&[b"HGET", own.grabs.as_bytes(), b""]) {
        Value::BulkString(bytes) => Meta::unpack(&bytes),
        _ => None,
    };
    let id = cast.id.to_bytes();
    let listed =
        |scene: &mut Scene, key: &str| scene.ask(&[b"ZSCORE", key.as_bytes(), &id]) != Value::Nil;
    let stands = meta
        .as_ref()
        .is_some_and(|meta| meta.epoch == scene.epoch && meta.tenant == cast.terms.tenant);
    match name {
        "load_1" => {
            let length = scene.ask(&[b"STRLEN", own.shares.as_bytes()]);
            let all = stands && exists(scene, &own.terms) && exists(scene, &own.phrase);
            all && length == Value::Int(2_000) && listed(scene, &index)
        }
        "close_1" => stands && meta.is_some_and(|meta| matches!(meta.state, HotState::Over(_))),
        "freeze_1" => meta.is_some_and(|meta| meta.frozen.is_some()) && listed(scene, &marked),
        "remove_1" => {
            let keys = [own.grabs, own.shares, own.terms, own.list, own.phrase];
            keys.iter().all(|key| !exists(scene, key)) && !listed(scene, &index)
        }
        "rebuild_1" => stands && !exists(scene, &own.shares) && listed(scene, &index),
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
        "grab_1" => codes_of_grabs(reply).is_some_and(|codes| codes.contains(&Reply::Won)),
        _ => stands,
    }
}

fn succeeded(reply: &Value) -> bool {
    match codes_of_grabs(reply) {
        Some(codes) => codes.contains(&Reply::Won),
        None => code_of(reply) == Some(Reply::Ok),
    }
}

/// Who won by this call: everybody who is in both lists now and was in neither before.
fn no_win_without_its_debt(scene: &mut Scene, cast: &Cast, before: &Winners, name: &str) {
    let (Some(before), Some(after)) = (before, scene.winners(cast)) else {
        return;
    };
    let new = |before: &[String], after: &[String]| -> Vec<String> {
        after
            .iter()
            .filter(|n| !before.contains(n))
            .cloned()
            .collect()
    };
    let won = new(&before.0, &after.0);
    assert_eq!(won, new(&before.1, &after.1), "{name}");
}

type Winners = Option<(Vec<String>, Vec<String>)>;

fn play(scene: &mut Scene, name: &str, place: usize, damage: usize, writes: bool) -> bool {
    let cast = stage(scene, name);
    let words = scene.words(name, &cast);
    let key = words[3 + place].clone();
    let shown = String::from_utf8(key.clone()).unwrap();
    let all = damages(&shown);
    let Some(commands) = all.get(damage) else {
        return false;
    };
    hurt(scene, &key, commands);
    let (before, winners) = (scene.dump(), scene.winners(&cast));
    let reply = scene.send(&words);
    let after = scene.dump();
    let case = format!("{name} with {shown} after {commands:?}: {reply:?}");
    if after != before {
        assert!(writes && succeeded(&reply), "{case}");
        assert!(has_its_effect(scene, name, &cast, &reply), "{case}");
        no_win_without_its_debt(scene, &cast, &winners, &case);
        // The rest of a call whose answer was lost changes nothing.
        let _repeated = scene.send(&words);
        assert_eq!(scene.dump(), after, "again: {case}");
    }
    true
}

#[test]
fn every_function_has_all_of_its_effect_or_none_whatever_is_damaged() {
    let mut scene = Scene::new(&[("appendonly", "no")]);
    let mut cases = 0;
    for (name, writes) in functions() {
        // Undamaged, it has its effect.
        let cast = stage(&mut scene, &name);
        let (words, before) = (scene.words(&name, &cast), scene.dump());
        let reply = scene.send(&words);
        assert!(succeeded(&reply), "{name}: {reply:?}");
        assert_eq!(scene.dump() != before, writes, "{name}");
        assert!(
            !writes || has_its_effect(&mut scene, &name, &cast, &reply),
            "{name}"
        );
        let keys: usize = String::from_utf8(words[2].clone())
            .unwrap()
            .parse()
            .unwrap();
        for place in 0..keys {
            let mut damage = 0;
            while play(&mut scene, &name, place, damage, writes) {
                damage += 1;
            }
            cases += damage;
        }
    }
    println!("{cases} cases");
}

/// Functions that run where memory is full: they end what would take more, or free some.
const FREES: [&str; 5] = [
    "close_1",
    "freeze_1",
    "remove_1",
    "set_aside_1",
    "settled_1",
];

#[test]
fn without_memory_nothing_is_granted_and_everything_is_read_settled_and_ended() {
    let mut scene = Scene::new(&[("appendonly", "no")]);
    for (name, writes) in functions() {
        let cast = stage(&mut scene, &name);
        let words = scene.words(&name, &cast);
        let read_before = (!writes).then(|| scene.send(&words));
        let before = scene.dump();
        scene.ask(&[b"CONFIG", b"SET", b"maxmemory", b"1"]);
        let reply = scene.send(&words);
        scene.ask(&[b"CONFIG", b"SET", b"maxmemory", b"0"]);
        match (read_before, &reply) {
            (Some(read), reply) => assert_eq!(read, *reply, "{name}"),
            (None, Value::ServerError(error)) => assert_eq!(error.code(), "OOM", "{name}"),
            // What gives memory back goes on.
            (None, _) if FREES.contains(&name.as_str()) => continue,
            (None, other) => panic!("{name}: {other:?}"),
        }
        assert_eq!(scene.dump(), before, "{name}");
    }
}

#[test]
fn a_damaged_envelope_of_a_call_does_not_stand_in_the_way_of_the_others() {
    let mut scene = Scene::new(&[("appendonly", "no")]);
    let words = {
        let cast = stage(&mut scene, "grab_1");
        scene.words("grab_1", &cast)
    };
    let keys = ["g", "s", "l", "p"];
    for (place, letter) in (2..).zip(keys) {
        let all = damages(&String::from_utf8(words[3 + place].clone()).unwrap());
        for damage in all {
            let cast = stage(&mut scene, "grab_1");
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
