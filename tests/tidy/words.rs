//! The repository speaks of itself alone: no place of one machine, no host of a registry.

use crate::tree::{File, Finding, Tree};

/// Where people's homes and work trees lie.
const MACHINE_ROOTS: &[&str] = &["home", "root", "work", "workspace", "Users", "private"];

/// Hosts of registries, in halves, so that this file names none. A package is named by its package
/// name: whoever builds us may use a mirror.
const HOSTS: &[(&str, &str)] = &[
    ("crates", "io"),
    ("debian", "org"),
    ("docker", "io"),
    ("gcr", "io"),
    ("ghcr", "io"),
    ("golang", "org"),
    ("npmjs", "com"),
    ("npmjs", "org"),
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("quay", "io"),
    ("rubygems", "org"),
    ("yarnpkg", "com"),
];

/// Cargo writes this one, hosts and all.
fn is_ours(file: &&File) -> bool {
    file.path != "Cargo.lock"
}

fn no_machine_path_is_written(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in tree.files.iter().filter(is_ours) {
        for root in MACHINE_ROOTS {
            let path = format!("/{root}/");
            for (at, _) in file.text.match_indices(&path) {
                // `a/work/b` and `~/work/` are parts of another path; an absolute one begins here.
                let before = file.text[..at].chars().next_back();
                let begins = before.is_none_or(|c| {
                    !c.is_alphanumeric() && !matches!(c, '_' | '-' | '.' | '/' | '}' | ')' | '~')
                });
                let goes_on = file.text[at + path.len()..]
                    .starts_with(|c: char| c == '.' || c.is_alphanumeric());
                if begins && goes_on {
                    found.push(file.finding(at, format!("a path of one machine: {path}…")));
                }
            }
        }
    }
    found
}

fn no_registry_host_is_written(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in tree.files.iter().filter(is_ours) {
        let text = file.text.to_ascii_lowercase();
        for (name, domain) in HOSTS {
            let host = format!("{name}.{domain}");
            for (at, _) in text.match_indices(&host) {
                let before = text[..at].chars().next_back();
                let after = text[at + host.len()..].chars().next();
                let is_part = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
                if !is_part(before) && !is_part(after) {
                    found.push(file.finding(at, format!("a registry's host: {host}")));
                }
            }
        }
    }
    found
}

mod held {
    use crate::tree::hold;

    #[test]
    fn no_machine_path_is_written() {
        hold(
            super::no_machine_path_is_written,
            &[
                ("docs/API.md", concat!("see `/ho", "me/alice/x`")),
                ("Makefile", concat!("X := /wo", "rk/main")),
                ("src/config.rs", concat!("\"/ro", "ot/.config\"")),
            ],
            &[(
                "docs/API.md",
                "POST /v1/work/1, $(ROOT)/work/x, ~/work/x, this/home/that",
            )],
        );
    }

    #[test]
    fn no_registry_host_is_written() {
        hold(
            super::no_registry_host_is_written,
            &[
                ("docs/API.md", concat!("get it from crates.", "io")),
                ("deny.toml", concat!("https://index.Crates.", "io/")),
            ],
            &[
                ("docs/API.md", "the crates.iota of the registry"),
                (
                    "Cargo.lock",
                    concat!("registry+https://x/crates.", "io-index"),
                ),
            ],
        );
    }
}
