//! Libraries that break their word about a win, planted on purpose: the cases of `damage` notice each,
//! also one that does so only where a key is damaged.

use super::damage::{Shares, play};
use super::scene::Scene;
use crate::hot::redis::register::LIBRARY;

/// Where the library finds that the list of grabbers is not whole: from there on a planted one breaks
/// its word, until the next commit.
const DAMAGED: (&str, &str) = (
    "if m.listed == 1 and try_call('LLEN', e.l) ~= m.next then m.listed = 0 end",
    "if m.listed == 1 and try_call('LLEN', e.l) ~= m.next then m.listed, astray = 0, true end",
);

/// What it does instead: its name, the lines of the library, and those that stand for them.
const PLANTED: [(&str, &str, &str); 6] = [
    (
        "it tells and writes nothing",
        "  local there\n  if p.records == 0 then\n",
        "  local there\n  if astray then\n    there, p.writes_to = true, p.writes_from\n  \
         elseif p.records == 0 then\n",
    ),
    (
        "it writes the debt alone",
        "  write(t.writes, p.writes_from, p.writes_to)\n",
        "  if not astray then write(t.writes, p.writes_from, p.writes_to) end\n",
    ),
    (
        "it writes no debt",
        "    there = owe(p.outbox",
        "    there = astray or owe(p.outbox",
    ),
    (
        "it owes to somebody else",
        "owed[o + 1], owed[o + 2], owed[o + 3], owed[o + 4] = share, amount, char(#grabber), grabber\n",
        "owed[o + 1], owed[o + 2], owed[o + 3], owed[o + 4] = share, amount, char(#grabber),\n\
         astray and rep('x', #grabber) or grabber\n",
    ),
    (
        "it tells of another share",
        "answers[a + 1], answers[a + 2], answers[a + 3] = CODE[REPLY.WON], share, wide(amount)\n",
        "answers[a + 1], answers[a + 2], answers[a + 3] = CODE[REPLY.WON],\n\
         astray and pack('<I4', m.next) or share, wide(amount)\n",
    ),
    (
        "it tells one more than it writes",
        "      writes[w + 1], writes[w + 2] = grabber, value\n",
        "      if astray then grabber = 'ann' end\n      writes[w + 1], writes[w + 2] = grabber, value\n",
    ),
];

fn with(library: &str, (there, instead): (&str, &str)) -> String {
    assert_eq!(library.matches(there).count(), 1, "{there}");
    library.replace(there, instead)
}

/// What the cases of a grab find wrong with a library.
fn complaints(library: &str) -> Vec<String> {
    let mut scene = Scene::new(&[("appendonly", "no")]);
    scene.bring(library);
    scene.next_epoch();
    let mut complaints = Vec::new();
    play(&mut scene, "grab_1", Shares::ByTurn, |case, outcome| {
        complaints.extend(outcome.err().map(|why| format!("{case}: {why}")));
    });
    complaints
}

#[test]
fn a_library_that_breaks_its_word_where_a_key_is_damaged_is_noticed() {
    let astray = with(
        LIBRARY,
        ("local fence = {}", "local astray = false\nlocal fence = {}"),
    );
    let astray = with(&astray, DAMAGED);
    // The next call begins in good faith.
    let begins = "local function grab(keys, args)\n";
    let astray = with(&astray, (begins, &format!("{begins}  astray = false\n")));
    assert_eq!(complaints(&astray), Vec::<String>::new());
    for (what, there, instead) in PLANTED {
        let found = complaints(&with(&astray, (there, instead)));
        assert!(!found.is_empty(), "{what}, and nobody notices");
        let of_lists = found.iter().filter(|case| case.contains("}:l:")).count();
        assert_eq!(of_lists, found.len(), "{what}: {found:#?}");
    }
}

#[test]
fn a_library_that_opens_without_the_names_is_noticed() {
    let library = with(
        LIBRARY,
        (
            "call('HSET', keys[2], '', packed(m), items(sets))",
            "call('HSET', keys[2], '', packed(m))",
        ),
    );
    let mut scene = Scene::new(&[("appendonly", "no")]);
    scene.bring(&library);
    scene.next_epoch();
    let mut wrong = 0;
    play(&mut scene, "open_1", Shares::Named, |_, outcome| {
        wrong += usize::from(outcome.is_err());
    });
    assert!(wrong > 0);
}
