//! Every SQL statement says whose it is, so that a slow one in a log can be found in the source.

use crate::rust::Rust;
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
                && let Some(why) = why_misnamed(tree, file, rest)
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

fn why_misnamed(tree: &Tree, file: &File, rest: &str) -> Option<String> {
    let name = rest.lines().next().unwrap_or("").trim();
    let Some((room, function)) = name.split_once('.') else {
        return Some(format!("`-- {name}` is not `-- room.function`"));
    };
    let folder = format!("src/{room}/");
    if !file.path.starts_with(&folder) {
        return Some(format!("`-- {name}` names another room"));
    }
    let is_here = |rust: &Rust| rust.functions().iter().any(|f| f.name == function);
    let known = tree
        .rust()
        .any(|(f, rust)| f.path.starts_with(&folder) && is_here(rust));
    (!known).then(|| format!("`-- {name}` names no function of {folder}"))
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
                    "fn f() { q(\"-- ledger.g\\nSELECT 1\") }",
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
