//! Every SQL statement says whose it is, so that a slow one in a log can be found in the source.
//!
//! The name is that of the function that sends it; one that sends several names what each does.

use crate::tree::{File, Finding, Tree};

/// With these a statement reads or writes rows. What only shapes the store (CREATE, PRAGMA, BEGIN)
/// runs once and is not asked for.
const VERBS: &[&str] = &["DELETE", "INSERT", "REPLACE", "SELECT", "UPDATE", "WITH"];

fn a_statement_begins_with_its_name(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust().filter(|(f, _)| f.is_in(&["src/"])) {
        for literal in &rust.literals {
            let value = literal.value();
            let text = value.trim_start();
            if VERBS.iter().any(|verb| begins_with_word(text, verb)) {
                found.push(file.finding(
                    literal.at,
                    "a statement begins with `-- room.function`, on a line of its own",
                ));
            } else if let Some(rest) = text.strip_prefix("-- ")
                && let Some(why) = why_misnamed(file, rest)
            {
                found.push(file.finding(literal.at, why));
            }
        }
    }
    found
}

/// `SELECT 1` and `SELECT\n…`, but neither `SELECTED` nor prose: our verbs are in capitals.
fn begins_with_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word)
        .is_some_and(|rest| rest.starts_with(char::is_whitespace))
}

fn why_misnamed(file: &File, rest: &str) -> Option<String> {
    let name = rest.lines().next().unwrap_or("").trim();
    let is_word = |word: &str| {
        let first = word.starts_with(|c: char| c.is_ascii_lowercase());
        first
            && word
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let Some((room, _)) = name
        .split_once('.')
        .filter(|(room, what)| is_word(room) && is_word(what))
    else {
        return Some(format!("`-- {name}` is not `-- room.function`"));
    };
    let is_ours = file.path.starts_with(&format!("src/{room}/"));
    (!is_ours).then(|| format!("`-- {name}` names another room"))
}

mod held {
    use crate::tree::hold;

    #[test]
    fn a_statement_begins_with_its_name() {
        hold(
            super::a_statement_begins_with_its_name,
            &[
                ("src/ledger/a.rs", "fn f() { q(\"SELECT 1\") }"),
                ("src/ledger/a.rs", "fn f() { q(r#\"\n  INSERT INTO t\"#) }"),
                ("src/ledger/a.rs", "fn f() { q(\"-- f\\nSELECT 1\") }"),
                (
                    "src/ledger/a.rs",
                    "fn f() { q(\"-- ledger.Take it\\nSELECT 1\") }",
                ),
                ("src/ledger/a.rs", "fn f() { q(\"-- hot.f\\nSELECT 1\") }"),
                (
                    "src/ledger/a.rs",
                    "fn f() { q(\"\\\n   UPDATE t SET x = 1\") }",
                ),
            ],
            &[
                (
                    "src/ledger/a.rs",
                    "fn f() { q(\"-- ledger.f\\n\\\n   SELECT 1\") }",
                ),
                (
                    "src/ledger/a.rs",
                    "fn f() { q(\"Select an envelope\"); q(\"PRAGMA x\") }",
                ),
                ("tests/it/a.rs", "q(\"SELECT 1\")"),
            ],
        );
    }
}
