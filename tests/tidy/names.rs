//! Names: what a thing may not be called, and what a test must be called.

use std::collections::BTreeSet;

use crate::tree::{File, Finding, Tree};

/// Words that say nothing, wherever they stand in a name.
const EMPTY_WORDS: &[&str] = &[
    "common",
    "handler",
    "handlers",
    "helper",
    "helpers",
    "manager",
    "managers",
    "misc",
    "processor",
    "processors",
    "util",
    "utils",
];

/// Words that say nothing as a whole name or as its end: `GrabInfo`, `EnvelopeData`. Elsewhere
/// they may qualify (`data_folder`).
const EMPTY_ENDS: &[&str] = &["base", "data", "info", "infos"];

/// Words that our vocabulary has another word for.
const FOREIGN_WORDS: &[(&str, &str)] = &[
    ("bag", "envelope"),
    ("claimer", "grabber"),
    ("hongbao", "envelope"),
    ("packet", "envelope"),
    (
        "service",
        "a word of the contract; elsewhere say what it does",
    ),
    ("snatch", "grab"),
];

/// Names that the contract or a protocol gives us.
const GIVEN: &[(&str, &str)] = &[
    ("ConnectInfo", "the associated type of tonic's Connected"),
    ("Data", "the associated type of http_body::Body"),
    ("Service", "the associated type of tower::Layer"),
    ("connect_info", "a function of tonic's Connected"),
    ("account_service", "the contract's file and module"),
    ("admin_service", "the contract's file and module"),
    ("connect_info", "the method of tonic's Connected"),
    ("envelope_service", "the contract's file and module"),
    ("get_service_info", "the contract's RPC GetServiceInfo"),
    ("info_service", "the contract's file and module"),
];

/// A test's name is a sentence: at least this many words.
const TEST_WORDS_MIN: usize = 3;

/// A name of so many words in prose is that of a test, a metric or somebody's setting: it stands in a
/// source, too.
const CITED_WORDS_MIN: usize = 5;

const DEFINES: &[&str] = &[
    "const",
    "enum",
    "fn",
    "macro_rules",
    "mod",
    "static",
    "struct",
    "trait",
    "type",
    "union",
];

/// What our processes, and the tools that run them, may be told through the environment.
const ENVIRONMENT_OF_OTHERS: &[(&str, &str)] = &[
    ("CARGO_", "cargo tells a test where it built"),
    ("LD_PRELOAD", "the dynamic linker's, for the power-cut shim"),
    ("NO_COLOR", "the convention of command lines"),
    ("OUT_DIR", "cargo tells a build script where to write"),
    ("PATH", "the shell's"),
    ("PYTHON", "the interpreter's own"),
];

/// `GrabReply` and `grab_reply` → grab, reply.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut previous_lower = false;
    for c in name.chars() {
        let begins = c == '_' || c == '-' || c == '.' || c.is_uppercase() && previous_lower;
        if begins || words.is_empty() {
            words.push(String::new());
        }
        if c.is_alphanumeric() {
            let last = words.last_mut().expect("a word was pushed");
            last.extend(c.to_lowercase());
        }
        previous_lower = c.is_lowercase() || c.is_numeric();
    }
    words.retain(|w| !w.is_empty());
    words
}

fn why_not(name: &str) -> Option<String> {
    if GIVEN.iter().any(|(given, _)| *given == name) {
        return None;
    }
    let words = words(name);
    let empty = words.iter().find(|w| EMPTY_WORDS.contains(&w.as_str()));
    let empty_end = words.last().filter(|w| EMPTY_ENDS.contains(&w.as_str()));
    if let Some(word) = empty.or(empty_end) {
        return Some(format!("`{name}`: the word `{word}` says nothing"));
    }
    FOREIGN_WORDS
        .iter()
        .find(|(foreign, _)| words.iter().any(|w| w == foreign))
        .map(|(foreign, ours)| format!("`{name}`: not `{foreign}` but {ours}"))
}

fn no_item_has_an_empty_name(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust() {
        for pair in rust.tokens.windows(2) {
            if !DEFINES.contains(&pair[0].text.as_str()) || !pair[1].is_word() {
                continue;
            }
            if let Some(why) = why_not(&pair[1].text) {
                found.push(file.finding(pair[1].at, why));
            }
        }
    }
    found
}

fn no_file_has_an_empty_name(tree: &Tree) -> Vec<Finding> {
    tree.files
        .iter()
        .filter(|f| !f.is_in(&["docs/"]))
        .filter_map(|f| {
            let of_a_folder_or_file = |part: &str| {
                let stem = part.split('.').find(|p| !p.is_empty()).unwrap_or(part);
                why_not(stem)
            };
            let why = f.path.split('/').find_map(of_a_folder_or_file)?;
            Some(f.finding(0, why))
        })
        .collect()
}

fn a_test_is_named_as_a_sentence(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust() {
        for f in rust.functions().into_iter().filter(|f| f.is_test) {
            let plain = f.name.starts_with("test_");
            if plain || words(&f.name).len() < TEST_WORDS_MIN {
                found.push(file.finding(f.at, format!("`{}` is no sentence", f.name)));
            }
        }
    }
    found
}

/// What stands in backticks on a line, and where.
fn cited(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    let parts = line.split('`').enumerate().map(move |(place, part)| {
        let began = at;
        at += part.len() + 1;
        (place, began, part)
    });
    parts
        .filter(|(place, _, _)| place % 2 == 1)
        .map(|(_, at, part)| (at, part))
}

/// Prose: all of a Markdown file, and the comments of a Rust file.
fn is_prose(file: &File, line: &str) -> bool {
    file.path.ends_with(".md") || file.rust.is_some() && line.trim_start().starts_with("//")
}

fn a_test_that_prose_names_is_there(tree: &Tree) -> Vec<Finding> {
    let mut named: BTreeSet<&str> = BTreeSet::new();
    for (_, rust) in tree.rust() {
        named.extend(rust.tokens.iter().map(|token| token.text.as_str()));
        let literals = rust
            .literals
            .iter()
            .flat_map(|l| l.body.split(not_of_a_name));
        named.extend(literals);
    }
    let others = tree
        .files
        .iter()
        .filter(|f| f.rust.is_none() && !f.path.ends_with(".md"));
    named.extend(others.flat_map(|f| f.text.split(not_of_a_name)));
    let mut found = Vec::new();
    for file in &tree.files {
        let mut begins = 0;
        for line in file.text.split_inclusive('\n') {
            for (at, name) in cited(line).filter(|_| is_prose(file, line)) {
                let is_name = name
                    .chars()
                    .all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit());
                if is_name && words(name).len() >= CITED_WORDS_MIN && !named.contains(name) {
                    found.push(file.finding(begins + at, format!("no source has `{name}`")));
                }
            }
            begins += line.len();
        }
    }
    found
}

fn not_of_a_name(c: char) -> bool {
    c != '_' && !c.is_ascii_alphanumeric()
}

fn our_environment_variables_carry_our_name(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust() {
        for i in 0..rust.tokens.len() {
            let is_read = ["var", "var_os", "env", "env_remove"]
                .iter()
                .any(|call| rust.stands(i, &[call, "(", "\""]))
                || rust.stands(i, &["env", "=", "\""]);
            if !is_read {
                continue;
            }
            let at = rust.tokens[i + 2].at;
            let literal = rust.literals.iter().find(|l| l.at == at);
            let name = literal.map_or("", |l| l.body.as_str());
            let others = ENVIRONMENT_OF_OTHERS
                .iter()
                .any(|(theirs, _)| name.starts_with(theirs));
            if !others && !name.starts_with("RED_ENVELOPE_") {
                found.push(file.finding(at, format!("`{name}` does not begin with RED_ENVELOPE_")));
            }
        }
    }
    found
}

/// Only plain text can hold these: the environment's names in shell files and the Makefile.
fn what_make_exports_carries_our_name(tree: &Tree) -> Vec<Finding> {
    let exports = |file: &File| {
        let mut found = Vec::new();
        let mut at = 0;
        for line in file.text.split_inclusive('\n') {
            if let Some(rest) = line.trim_start().strip_prefix("export ")
                && !rest.starts_with("RED_ENVELOPE_")
            {
                found.push(file.finding(at, "an exported name begins with RED_ENVELOPE_"));
            }
            at += line.len();
        }
        found
    };
    tree.files
        .iter()
        .filter(|f| f.is_in(&["Makefile", ".ci/", "scripts/"]))
        .flat_map(exports)
        .collect()
}

mod held {
    use crate::tree::hold;

    #[test]
    fn no_item_has_an_empty_name() {
        hold(
            super::no_item_has_an_empty_name,
            &[
                ("src/hot/mod.rs", "struct GrabManager;"),
                ("src/hot/mod.rs", "mod utils;"),
                ("src/hot/mod.rs", "fn request_handler() {}"),
                ("src/hot/mod.rs", "type EnvelopeData = u8;"),
                ("src/hot/mod.rs", "enum GrabInfo {}"),
                ("src/hot/mod.rs", "struct Hongbao;"),
                ("src/api/mod.rs", "struct EnvelopeService;"),
            ],
            &[
                (
                    "src/api/mod.rs",
                    "fn get_service_info() {} fn lock_data_folder() {}",
                ),
                (
                    "src/domain/id.rs",
                    "fn base32() {} fn information() {} // struct Helper",
                ),
            ],
        );
    }

    #[test]
    fn no_file_has_an_empty_name() {
        hold(
            super::no_file_has_an_empty_name,
            &[
                ("src/utils.rs", "//! x"),
                ("tests/it/common/mod.rs", "//! x"),
                ("tests/it/test_helpers.py", "x"),
            ],
            &[
                ("src/api/info_service.rs", "//! x"),
                ("src/domain/base32.rs", "//! x"),
                (".gitignore", "/target"),
            ],
        );
    }

    #[test]
    fn a_test_is_named_as_a_sentence() {
        hold(
            super::a_test_is_named_as_a_sentence,
            &[
                ("src/hot/mod.rs", "#[test]\nfn empty_envelope() {}"),
                ("src/hot/mod.rs", "#[test]\nfn test_that_it_works() {}"),
                (
                    "tests/it/a.rs",
                    "#[tokio::test(flavor = \"x\")]\nasync fn grabs() {}",
                ),
            ],
            &[(
                "src/hot/mod.rs",
                "#[test]\nfn nobody_wins_twice() {}\n#[cfg(test)]\nfn cny() {}",
            )],
        );
    }

    #[test]
    fn a_test_that_prose_names_is_there() {
        hold(
            super::a_test_that_prose_names_is_there,
            &[
                ("docs/API.md", "| x | `nobody_wins_twice_in_a_row` |"),
                (
                    "src/hot/mod.rs",
                    "//! Held by `nobody_wins_twice_in_a_row`.",
                ),
            ],
            &[
                (
                    "docs/API.md",
                    "`not_before_expiry`, `fn two_of_them_have_arguments()`",
                ),
                (
                    "src/hot/mod.rs",
                    "//! `nobody_wins_twice_in_a_row`\nfn nobody_wins_twice_in_a_row() {}",
                ),
            ],
        );
    }

    #[test]
    fn our_environment_variables_carry_our_name() {
        hold(
            super::our_environment_variables_carry_our_name,
            &[
                ("src/config.rs", "env::var(\"LISTEN\")"),
                ("src/config.rs", "#[arg(env = \"REDENVELOPE_X\")] x: u8"),
                ("tests/it/a.rs", "Command::new(\"x\").env(\"CLOCK\", p)"),
            ],
            &[(
                "src/config.rs",
                "env::var(\"RED_ENVELOPE_LISTEN\"); c.env(\"LD_PRELOAD\", p)",
            )],
        );
    }

    #[test]
    fn what_make_exports_carries_our_name() {
        hold(
            super::what_make_exports_carries_our_name,
            &[("Makefile", "export PYTHON_OF_TESTS := x")],
            &[("Makefile", "export RED_ENVELOPE_PYTHON := x")],
        );
    }
}
