//! Who knows whom: rooms among each other, and rooms and the crates that stand for a technology.

use crate::rust::Rust;
use crate::tree::{File, Finding, Tree};

/// A room of `src/` and the rooms that it may name. The table of docs/ARCHITECTURE.md, as code.
struct Room {
    name: &'static str,
    knows: &'static [&'static str],
}

/// Configuration, clock and telemetry stand aside: whoever is not pure may know them.
const ASIDE: &[&str] = &["clock", "config", "telemetry"];

const ROOMS: &[Room] = &[
    // The pure rules and plans. They know nobody, so everybody may trust them in a simulation.
    Room {
        name: "domain",
        knows: &[],
    },
    // The two stores never know each other: what connects them can be killed between the two.
    Room {
        name: "hot",
        knows: &["domain"],
    },
    Room {
        name: "ledger",
        knows: &["domain"],
    },
    // Makes a funded envelope live; a retry (api) and the sweeper (settle) both come here.
    Room {
        name: "publish",
        knows: &["domain", "hot", "ledger", "rules"],
    },
    Room {
        name: "settle",
        knows: &["domain", "hot", "ledger", "publish", "rules"],
    },
    Room {
        // Of publish only the amounts that a seed makes, which it compares with what was paid.
        name: "audit",
        knows: &["domain", "hot", "ledger", "publish"],
    },
    // Never settle: a recall or a replay writes a state that settle finds.
    Room {
        name: "api",
        knows: &["domain", "hot", "ledger", "publish", "audit"],
    },
    // Opens what the configuration names; the only place that knows both stores by name.
    Room {
        name: "stores",
        knows: &["domain", "hot", "ledger", "publish"],
    },
    // What an operator does once, before restored books are served: it uses the rooms that serve them.
    Room {
        name: "restored",
        knows: &["domain", "hot", "ledger", "publish", "settle", "stores"],
    },
    // What settlement and the audit do, once and without a server.
    Room {
        name: "reconciled",
        knows: &[
            "audit", "hot", "ledger", "publish", "restored", "settle", "stores",
        ],
    },
    // What a simulation switches off in the two above.
    Room {
        name: "rules",
        knows: &[],
    },
    // A client like any other; the domain only to verify a proof offline.
    Room {
        name: "cli",
        knows: &["domain"],
    },
    Room {
        name: "clock",
        knows: &["domain"],
    },
    Room {
        name: "config",
        knows: &["domain"],
    },
    Room {
        name: "telemetry",
        knows: &["domain"],
    },
];

/// A name and the only places that may say it.
struct Reserved {
    /// Consecutive segments of a path.
    path: &'static [&'static str],
    places: &'static [&'static str],
    why: &'static str,
}

const STORES: &[&str] = &["src/hot/embedded/", "src/ledger/sqlite/", "tests/it/"];
const POSTGRES: &[&str] = &["src/ledger/postgres/", "benches/"];
const REDIS: &[&str] = &["src/hot/redis/", "tests/it/", "benches/"];
const WIRE: &[&str] = &[
    "src/api/",
    "src/cli/",
    "proto/",
    "loadtest/",
    "tests/it/",
    "benches/",
];
const EDGES: &[&str] = &["src/main.rs", "src/cli/", "loadtest/", "tests/", "benches/"];
const ENVIRONMENT: &[&str] = &["src/config.rs", "tests/", "benches/", "proto/build.rs"];
const CLOCK: &[&str] = &["src/clock.rs", "loadtest/", "tests/", "benches/"];
const STOPWATCH: &[&str] = &[
    "src/clock.rs",
    "src/telemetry/",
    "loadtest/",
    "tests/",
    "benches/",
];
const METRICS: &[&str] = &["src/telemetry/"];

const WHY_STORES: &str = "one room a store knows tables";
const WHY_REDIS: &str = "one room knows Redis";
const WHY_WIRE: &str = "only the edges know protobuf and gRPC";
const WHY_EDGES: &str = "an error that nobody can match on belongs to programs, not to rooms";
const WHY_ENVIRONMENT: &str = "config.rs is the only reader of the environment";
const WHY_CLOCK: &str = "clock.rs is the only asker of the time";
const WHY_STOPWATCH: &str = "a latency is measured by telemetry; what decides asks the Clock";
const WHY_METRICS: &str = "every metric is a verb of telemetry/metrics.rs";

const RESERVED: &[Reserved] = &[
    reserved(&["rusqlite"], STORES, WHY_STORES),
    reserved(&["tokio_postgres"], POSTGRES, WHY_STORES),
    reserved(&["deadpool_postgres"], POSTGRES, WHY_STORES),
    reserved(&["redis"], REDIS, WHY_REDIS),
    reserved(&["deadpool_redis"], REDIS, WHY_REDIS),
    reserved(&["red_envelope_proto"], WIRE, WHY_WIRE),
    reserved(&["prost"], WIRE, WHY_WIRE),
    reserved(&["prost_types"], WIRE, WHY_WIRE),
    reserved(&["tonic"], WIRE, WHY_WIRE),
    reserved(&["tonic_health"], WIRE, WHY_WIRE),
    reserved(&["tonic_prost"], WIRE, WHY_WIRE),
    reserved(&["tonic_reflection"], WIRE, WHY_WIRE),
    reserved(&["tonic_types"], WIRE, WHY_WIRE),
    reserved(&["anyhow"], EDGES, WHY_EDGES),
    reserved(&["env", "var"], ENVIRONMENT, WHY_ENVIRONMENT),
    reserved(&["env", "var_os"], ENVIRONMENT, WHY_ENVIRONMENT),
    reserved(&["env", "vars"], ENVIRONMENT, WHY_ENVIRONMENT),
    reserved(&["env", "vars_os"], ENVIRONMENT, WHY_ENVIRONMENT),
    reserved(&["SystemTime", "now"], CLOCK, WHY_CLOCK),
    reserved(&["Timestamp", "now"], CLOCK, WHY_CLOCK),
    reserved(&["Zoned", "now"], CLOCK, WHY_CLOCK),
    reserved(&["Instant", "now"], STOPWATCH, WHY_STOPWATCH),
    reserved(&["counter"], METRICS, WHY_METRICS),
    reserved(&["gauge"], METRICS, WHY_METRICS),
    reserved(&["histogram"], METRICS, WHY_METRICS),
];

const fn reserved(
    path: &'static [&'static str],
    places: &'static [&'static str],
    why: &'static str,
) -> Reserved {
    Reserved { path, places, why }
}

/// What the domain can't be pure with.
const IMPURE: &[&[&str]] = &[
    &["tokio"],
    &["rusqlite"],
    &["tokio_postgres"],
    &["deadpool_postgres"],
    &["tonic"],
    &["axum"],
    &["fail"],
    &["tracing"],
    &["std", "env"],
    &["std", "fs"],
    &["std", "io"],
    &["std", "net"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "time"],
    &["rand", "rng"],
    &["rand", "random"],
    &["OsRng"],
    &["SysRng"],
    &["ThreadRng"],
];

/// What settle may not ask, so that a simulated store can stand behind both doors.
const UNREPEATABLE: &[&[&str]] = &[
    &["rand"],
    &["std", "thread"],
    &["tokio", "spawn"],
    &["tokio", "task", "spawn"],
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
];

/// The room of a file of `src/`; None for `main.rs` and `lib.rs`, which know all.
fn room_of(path: &str) -> Option<&str> {
    let below = path.strip_prefix("src/")?;
    let name = below
        .split('/')
        .next()
        .unwrap_or(below)
        .trim_end_matches(".rs");
    (!matches!(name, "main" | "lib")).then_some(name)
}

/// How deep the file's module lies below the crate's root: `src/a.rs` and `src/a/mod.rs` at 1.
fn depth_of(path: &str) -> usize {
    let slashes = path.matches('/').count();
    if path.ends_with("/mod.rs") {
        slashes - 1
    } else {
        slashes
    }
}

fn names(path: &[String], sequence: &[&str]) -> bool {
    path.windows(sequence.len())
        .any(|w| w.iter().zip(sequence).all(|(a, b)| a == b))
}

/// The segment of `path` that lies at the crate's root, if the path leads there.
fn at_the_root<'a>(
    file: &File,
    rust: &Rust,
    at: usize,
    path: &'a [String],
) -> Option<Option<&'a str>> {
    if matches!(path[0].as_str(), "crate" | "red_envelope") && path.len() > 1 {
        return Some(path.get(1).map(String::as_str));
    }
    let supers = path.iter().take_while(|s| *s == "super").count();
    let depth = depth_of(&file.path) + rust.inline_modules_around(at);
    (supers > 0 && supers >= depth).then(|| path.get(supers).map(String::as_str))
}

fn a_room_names_only_the_rooms_it_knows(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust() {
        let Some(room) = room_of(&file.path) else {
            continue;
        };
        let Some(row) = ROOMS.iter().find(|r| r.name == room) else {
            found.push(file.finding(
                0,
                format!("room `{room}` has no row in tests/tidy/layers.rs"),
            ));
            continue;
        };
        for (at, path) in rust.paths() {
            let Some(named) = at_the_root(file, rust, at, &path) else {
                continue;
            };
            let named = named.unwrap_or("*");
            let aside = room != "domain" && ASIDE.contains(&named);
            if named != room && !aside && !row.knows.contains(&named) {
                found.push(file.finding(at, format!("`{room}` may not know `{named}`")));
            }
        }
    }
    found
}

fn a_technology_is_named_in_its_room_only(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust() {
        for (at, path) in rust.paths() {
            for reserved in RESERVED {
                let one_word = reserved.path.len() == 1;
                let hit = if one_word && path.len() == 1 {
                    // A bare word is the crate only where it is imported, or a macro's name.
                    path[0] == reserved.path[0] && is_import_or_macro(&file.text, at, &path[0])
                } else if one_word {
                    path[0] == reserved.path[0] || is_metric(&path, reserved)
                } else {
                    names(&path, reserved.path)
                };
                if hit && !file.is_in(reserved.places) {
                    let name = reserved.path.join("::");
                    found.push(file.finding(at, format!("`{name}`: {}", reserved.why)));
                }
            }
        }
    }
    found
}

fn is_import_or_macro(text: &str, at: usize, word: &str) -> bool {
    text[..at].trim_end().ends_with("use") || text[at + word.len()..].starts_with('!')
}

/// `metrics::counter`, however it is reached.
fn is_metric(path: &[String], reserved: &Reserved) -> bool {
    reserved.places == METRICS && names(path, &["metrics", reserved.path[0]])
}

fn the_environment_reaches_clap_only_in_programs(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust() {
        if file.is_in(&["src/config.rs", "src/cli/", "loadtest/"]) {
            continue;
        }
        for i in 0..rust.tokens.len() {
            if rust.stands(i, &["env", "=", "\""]) && inside_an_arg(rust, i) {
                found.push(file.finding(rust.tokens[i].at, WHY_ENVIRONMENT));
            }
        }
    }
    found
}

/// Whether `#[arg(` or `.arg(` opened shortly before token `i`.
fn inside_an_arg(rust: &Rust, i: usize) -> bool {
    rust.tokens[..i]
        .iter()
        .rev()
        .take_while(|t| t.text != "]")
        .any(|t| t.text == "arg")
}

fn the_domain_is_pure(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust().filter(|(f, _)| f.is_in(&["src/domain/"])) {
        for (at, path) in rust.paths() {
            for impure in IMPURE.iter().filter(|i| names(&path, i)) {
                let name = impure.join("::");
                found.push(file.finding(at, format!("the domain is pure: no `{name}`")));
            }
            if path == ["async"] || path == ["await"] {
                found.push(file.finding(at, "the domain is pure: nothing in it waits"));
            }
        }
    }
    found
}

fn settle_can_be_simulated(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (file, rust) in tree.rust().filter(|(f, _)| f.is_in(&["src/settle/"])) {
        for (at, path) in rust.paths() {
            for asked in UNREPEATABLE.iter().filter(|u| names(&path, u)) {
                let name = asked.join("::");
                found.push(file.finding(
                    at,
                    format!("settle is repeatable under simulation: no `{name}`"),
                ));
            }
        }
    }
    found
}

mod held {
    use crate::tree::hold;

    #[test]
    fn a_room_names_only_the_rooms_it_knows() {
        hold(
            super::a_room_names_only_the_rooms_it_knows,
            &[
                ("src/hot/mod.rs", "use crate::ledger::Ledger;"),
                ("src/ledger/sqlite/post.rs", "fn f(h: &crate::hot::View) {}"),
                ("src/api/grab.rs", "use crate::{domain::id, settle};"),
                (
                    "src/api/mod.rs",
                    "use crate::{\n    hot,\n    settle::{self, drain},\n};",
                ),
                ("src/settle/drain.rs", "use super::super::api::status;"),
                (
                    "src/audit/mod.rs",
                    "mod tests { use super::super::settle; }",
                ),
                ("src/domain/id.rs", "use crate::clock::Clock;"),
                ("src/cli/send.rs", "use red_envelope::api::wire;"),
                ("src/hot/mod.rs", "use crate::*;"),
                ("src/campaign/mod.rs", "use crate::domain::money;"),
            ],
            &[
                (
                    "src/hot/mod.rs",
                    "// crate::ledger\nuse crate::{clock, domain::id};",
                ),
                (
                    "src/domain/split/draw.rs",
                    "mod tests { use super::super::Tier; }",
                ),
                (
                    "src/settle/mod.rs",
                    "use crate::publish; pub(crate) fn f() {}",
                ),
                (
                    "src/hot/embedded/log.rs",
                    "use super::super::Grab; use crate::hot::View;",
                ),
                ("src/main.rs", "use red_envelope::{api, settle};"),
            ],
        );
    }

    #[test]
    fn a_technology_is_named_in_its_room_only() {
        hold(
            super::a_technology_is_named_in_its_room_only,
            &[
                ("src/hot/mod.rs", "use rusqlite::Connection;"),
                ("src/hot/mod.rs", "use redis::Client;"),
                ("src/settle/mod.rs", "fn f(p: deadpool_redis::Pool) {}"),
                ("src/stores.rs", "use tokio_postgres::NoTls;"),
                ("src/ledger/mod.rs", "fn f(p: deadpool_postgres::Pool) {}"),
                ("src/settle/mod.rs", "fn f() -> tonic::Status {}"),
                ("src/ledger/mod.rs", "use red_envelope_proto as pb;"),
                ("src/audit/mod.rs", "fn f() { anyhow!(\"x\") }"),
                (
                    "src/api/mod.rs",
                    "use std::env; fn f() { env::var(\"X\"); }",
                ),
                ("src/api/mod.rs", "use std::{env::{var_os}, fs};"),
                ("src/settle/mod.rs", "let t = std::time::SystemTime::now();"),
                ("src/api/mod.rs", "let t = tokio::time::Instant::now();"),
                ("src/hot/mod.rs", "metrics::counter!(\"x\");"),
                ("src/hot/mod.rs", "use metrics::{gauge, histogram};"),
            ],
            &[
                ("src/hot/embedded/log.rs", "use rusqlite::Connection;"),
                ("src/api/wire.rs", "use prost::Message; let counter = 1;"),
                ("src/clock.rs", "std::time::SystemTime::now()"),
                (
                    "src/hot/mod.rs",
                    "/* tonic::Status */ let s = \"rusqlite::x\";",
                ),
                ("loadtest/src/fire.rs", "anyhow!(\"x\"); Instant::now();"),
            ],
        );
    }

    #[test]
    fn the_environment_reaches_clap_only_in_programs() {
        hold(
            super::the_environment_reaches_clap_only_in_programs,
            &[(
                "src/api/mod.rs",
                "#[arg(long, env = \"RED_ENVELOPE_X\")] x: u8",
            )],
            &[("src/config.rs", "#[arg(env = \"RED_ENVELOPE_X\")] x: u8")],
        );
    }

    #[test]
    fn the_domain_is_pure() {
        hold(
            super::the_domain_is_pure,
            &[
                ("src/domain/id.rs", "use std::{fmt, time::Duration};"),
                ("src/domain/id.rs", "let r = rand::rng();"),
                ("src/domain/split/mod.rs", "pub async fn cut() {}"),
                ("src/domain/id.rs", "tokio::spawn(f);"),
            ],
            &[(
                "src/domain/id.rs",
                "use std::fmt; use rand_chacha::ChaCha20Rng; // tokio::x",
            )],
        );
    }

    #[test]
    fn settle_can_be_simulated() {
        hold(
            super::settle_can_be_simulated,
            &[
                ("src/settle/mod.rs", "tokio::spawn(drain());"),
                ("src/settle/drain.rs", "let n: u64 = rand::random();"),
            ],
            &[(
                "src/settle/drain.rs",
                "let now = clock.now(); tokio::select! {}",
            )],
        );
    }
}
