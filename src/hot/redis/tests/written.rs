//! Which function writes which key: the table in `keys`, against what changes on a server.
//!
//! # Shape
//! Every case of `damage` tells which keys changed. Two writes are made beside those: a wrong try is
//! counted, and a close leaves a tombstone.
//!
//! # Not here
//! What is written without a function: `keys` says it in words.

use std::collections::BTreeSet;

use super::damage::{kinds, play, play_undamaged};
use super::scene::{Scene, functions};
use crate::hot::conformance::stage::Cast;

/// A key as the table names it, and a function.
type Writes = BTreeSet<(String, String)>;

/// `re1:{0}:g:2f…` → `re1:{T}:g:ID`.
fn shown(key: &str) -> String {
    let (_, part) = key.split_once('}').unwrap();
    match part.split(':').collect::<Vec<_>>()[..] {
        ["", letter, _] => format!("re1:{{T}}:{letter}:ID"),
        ["", name] => format!("re1:{{T}}:{name}"),
        _ => panic!("{key}"),
    }
}

/// What the table says.
fn table() -> Writes {
    let rows = include_str!("../keys.rs").lines();
    let rows = rows.filter_map(|line| line.strip_prefix("//! | `"));
    let mut writes = Writes::new();
    for row in rows {
        let columns: Vec<&str> = row.split(" | ").collect();
        let key = columns[0].trim_end_matches('`');
        let functions = columns[3].split('`').skip(1).step_by(2);
        writes.extend(functions.map(|name| (key.to_owned(), name.to_owned())));
    }
    writes
}

#[test]
fn each_key_is_written_by_the_functions_that_the_table_names() {
    let mut scene = Scene::new(&[("appendonly", "no")]);
    let mut seen = Writes::new();
    for (name, _) in functions() {
        let mut note = |keys: Vec<String>| {
            seen.extend(keys.iter().map(|key| (shown(key), name.clone())));
        };
        for shares in kinds(&name) {
            note(play_undamaged(&mut scene, &name, *shares));
            play(&mut scene, &name, *shares, |case, outcome| {
                note(outcome.unwrap_or_else(|why| panic!("{case}: {why}")));
            });
        }
    }
    // Who says the wrong words has a try less; a close where nothing is leaves a tombstone.
    let cast = Cast::locked(&[3, 3]);
    for (name, published) in [("grab_1", true), ("close_1", false)] {
        scene.clear();
        if published {
            scene.publish(&cast);
        }
        let mut words = scene.words(name, &cast);
        if published {
            words.last_mut().unwrap()[0] ^= 1;
        }
        let before = scene.dump();
        scene.send(&words);
        let after = scene.dump();
        let changed = after
            .iter()
            .filter(|(key, kept)| before.get(*key) != Some(*kept));
        let changed = changed.map(|(key, _)| shown(std::str::from_utf8(key).unwrap()));
        seen.extend(changed.map(|key| (key, name.to_owned())));
    }
    let table = table();
    let lacking: Vec<_> = seen.difference(&table).collect();
    let too_much: Vec<_> = table.difference(&seen).collect();
    assert!(
        lacking.is_empty() && too_much.is_empty(),
        "the table lacks {lacking:#?}, and says too much with {too_much:#?}"
    );
}
