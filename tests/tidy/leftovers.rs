//! What a working day leaves behind, and what makes a test lie.

use crate::tree::{File, Finding, Tree};

/// Macros that stand for code that was not written.
const PLACEHOLDERS: &[&str] = &["dbg", "todo", "unimplemented"];

/// Marks of what was not finished. Put together here, so that this file has none.
const MARKS: &[&str] = &[
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("X", "XX"),
    concat!("HA", "CK:"),
];

/// Where a test may wait for another process, with a bound.
const MAY_WAIT: &[&str] = &["tests/it/harness/"];

fn nothing_is_left_unwritten(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust() {
        for pair in rust.tokens.windows(2) {
            if PLACEHOLDERS.contains(&pair[0].text.as_str()) && pair[1].text == "!" {
                found.push(file.finding(pair[0].at, format!("`{}!`", pair[0].text)));
            }
        }
    }
    found
}

fn nothing_is_marked_for_later(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in tree.files.iter().filter(|f| f.path != "Cargo.lock") {
        for mark in MARKS {
            for (at, _) in file.text.match_indices(mark) {
                if stands_alone(file, at, mark) {
                    found.push(file.finding(at, format!("`{mark}`: do it, or file it")));
                }
            }
        }
    }
    found
}

/// Whether the word at `at` is no part of a longer one, such as the pattern of mktemp.
fn stands_alone(file: &File, at: usize, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let before = file.text[..at].chars().next_back();
    let after = file.text[at + word.len()..].chars().next();
    !before.is_some_and(is_word) && !after.is_some_and(is_word)
}

fn no_test_is_switched_off(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust() {
        for i in 0..rust.tokens.len() {
            let off = rust.stands(i, &["#", "[", "ignore"]);
            // `cfg_attr(…, ignore)` is the same by another door.
            let by_cfg = rust.stands(i, &[",", "ignore", ")", "]"])
                || rust.stands(i, &[",", "ignore", "=", "\"", ")", "]"]);
            if off || by_cfg {
                found.push(file.finding(rust.tokens[i].at, "a test that does not run is none"));
            }
        }
    }
    found
}

fn a_lint_is_expected_never_allowed(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust() {
        for i in 0..rust.tokens.len() {
            if rust.stands(i, &["[", "allow", "("]) {
                found.push(file.finding(
                    rust.tokens[i].at,
                    "write #[expect(lint, reason = \"…\")]: it tells when it is needed no more",
                ));
            }
        }
    }
    found
}

fn a_test_moves_the_clock_and_never_sleeps(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust().filter(|(f, _)| f.is_in(&["tests/"])) {
        for pair in rust.tokens.windows(2) {
            let sleeps = pair[0].text == "sleep" && pair[1].text == "(";
            if sleeps && !file.is_in(MAY_WAIT) {
                found.push(file.finding(pair[0].at, "waiting belongs to tests/it/harness/"));
            }
        }
    }
    found
}

mod held {
    use crate::tree::hold;

    #[test]
    fn nothing_is_left_unwritten() {
        hold(
            super::nothing_is_left_unwritten,
            &[
                ("src/hot/mod.rs", "fn f() { todo!() }"),
                ("src/hot/mod.rs", "fn f() { unimplemented!(\"x\") }"),
                ("src/hot/mod.rs", "dbg!(x);"),
            ],
            &[("src/hot/mod.rs", "// todo!()\nlet todo = \"dbg!(x)\";")],
        );
    }

    #[test]
    fn nothing_is_marked_for_later() {
        hold(
            super::nothing_is_marked_for_later,
            &[
                ("src/hot/mod.rs", concat!("// FIX", "ME: later")),
                ("docs/API.md", concat!("X", "XX")),
            ],
            &[("src/hot/mod.rs", concat!("const XX", "XX: u8 = 1;"))],
        );
    }

    #[test]
    fn no_test_is_switched_off() {
        hold(
            super::no_test_is_switched_off,
            &[
                ("tests/it/a.rs", "#[test]\n#[ignore]\nfn f() {}"),
                ("tests/it/a.rs", "#[ignore = \"slow\"]"),
                ("tests/it/a.rs", "#[cfg_attr(not(unix), ignore)]"),
            ],
            &[("tests/it/a.rs", "// #[ignore]\nlet x = (a, ignore);")],
        );
    }

    #[test]
    fn a_lint_is_expected_never_allowed() {
        hold(
            super::a_lint_is_expected_never_allowed,
            &[
                ("src/hot/mod.rs", "#[allow(dead_code)]"),
                ("src/hot/mod.rs", "#![allow(unused, reason = \"x\")]"),
            ],
            &[(
                "src/hot/mod.rs",
                "#[expect(dead_code, reason = \"x\")] fn allow(x: u8) {}",
            )],
        );
    }

    #[test]
    fn a_test_moves_the_clock_and_never_sleeps() {
        hold(
            super::a_test_moves_the_clock_and_never_sleeps,
            &[("tests/it/expiry.rs", "tokio::time::sleep(SECOND).await;")],
            &[("tests/it/harness/process.rs", "thread::sleep(POLL);")],
        );
    }
}
