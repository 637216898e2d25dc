//! Decisions and lints on record: numbered without gaps, each with what a reader asks for.

use std::collections::BTreeMap;

use crate::tree::{File, Finding, Tree};

const ADR_HEADINGS: &[&str] = &["Status", "Context", "Decision", "Consequences"];

/// The number of `docs/adr/0007-words.md`; None for another file; Some(None) for a bad name.
fn adr_number(file: &File) -> Option<Option<usize>> {
    let name = file.path.strip_prefix("docs/adr/")?;
    if name == "README.md" {
        return None;
    }
    let number = || {
        let (digits, words) = name.strip_suffix(".md")?.split_once('-')?;
        let is_words = words
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        (digits.len() == 4 && is_words && !words.is_empty())
            .then(|| digits.parse().ok())
            .flatten()
    };
    Some(number())
}

fn decisions_are_numbered_without_gaps(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut seen: BTreeMap<usize, &File> = BTreeMap::new();
    for file in &tree.files {
        let Some(named) = adr_number(file) else {
            continue;
        };
        let Some(number) = named else {
            found.push(file.finding(0, "a decision's file is NNNN-words.md"));
            continue;
        };
        if seen.insert(number, file).is_some() {
            found.push(file.finding(0, format!("decision {number} is there twice")));
        }
    }
    for (expected, (number, file)) in (1..).zip(seen) {
        if number != expected {
            found.push(file.finding(0, format!("decision {expected} is missing before this")));
            break;
        }
    }
    found
}

fn a_decision_says_why_and_what_follows(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in tree.files.iter().filter(|f| adr_number(f).is_some()) {
        let mut sections = file.text.split("\n## ").skip(1);
        for heading in ADR_HEADINGS {
            let section = sections.find(|s| s.lines().next() == Some(*heading));
            let is_empty = section.is_none_or(|s| s.lines().skip(1).all(|l| l.trim().is_empty()));
            if is_empty {
                found.push(
                    file.finding(0, format!("`## {heading}` is missing, empty or displaced")),
                );
                break;
            }
        }
    }
    found
}

fn every_lint_has_its_reason(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in tree.files.iter().filter(|f| f.path == "Cargo.toml") {
        let mut in_lints = false;
        // A reason covers the lines below it, up to a blank line.
        let mut reasoned = false;
        let mut at = 0;
        for line in file.text.lines() {
            if line.starts_with('[') {
                in_lints = line.starts_with("[workspace.lints");
                reasoned = false;
            } else if line.is_empty() || line.starts_with('#') {
                reasoned = !line.is_empty();
            } else if in_lints && !reasoned {
                found.push(file.finding(at, format!("why? {line}")));
            }
            at += line.len() + 1;
        }
    }
    found
}

fn every_package_keeps_the_lints(tree: &Tree) -> Vec<Finding> {
    tree.files
        .iter()
        .filter(|f| f.path.ends_with("Cargo.toml"))
        .filter(|f| !f.text.contains("\n[lints]\nworkspace = true"))
        .map(|f| f.finding(0, "[lints] workspace = true is missing"))
        .collect()
}

mod held {
    use crate::tree::hold;

    #[test]
    fn decisions_are_numbered_without_gaps() {
        hold(
            super::decisions_are_numbered_without_gaps,
            &[
                ("docs/adr/0002-one-writer.md", "x"),
                ("docs/adr/one-writer.md", "x"),
                ("docs/adr/1-one-writer.md", "x"),
            ],
            &[
                ("docs/adr/0001-one-writer.md", "x"),
                ("docs/adr/README.md", "x"),
            ],
        );
    }

    #[test]
    fn a_decision_says_why_and_what_follows() {
        let whole =
            "# 1\n\n## Status\nAccepted\n\n## Context\nc\n\n## Decision\nd\n\n## Consequences\ne\n";
        let empty = whole.replace("\nd\n", "\n\n");
        let without = whole.replace("## Context", "## Background");
        hold(
            super::a_decision_says_why_and_what_follows,
            &[
                ("docs/adr/0001-a.md", &empty),
                ("docs/adr/0001-a.md", &without),
                ("docs/adr/0001-a.md", "# 1\n"),
            ],
            &[("docs/adr/0001-a.md", whole)],
        );
    }

    #[test]
    fn every_lint_has_its_reason() {
        hold(
            super::every_lint_has_its_reason,
            &[("Cargo.toml", "[workspace.lints.clippy]\ntodo = \"warn\"\n")],
            &[(
                "Cargo.toml",
                "[workspace.lints.clippy]\n# Why.\ntodo = \"warn\"\n\n[lib]\nname = \"x\"\n",
            )],
        );
    }

    #[test]
    fn every_package_keeps_the_lints() {
        hold(
            super::every_package_keeps_the_lints,
            &[("loadtest/Cargo.toml", "[package]\nname = \"x\"\n")],
            &[(
                "loadtest/Cargo.toml",
                "[package]\n\n[lints]\nworkspace = true\n",
            )],
        );
    }
}
